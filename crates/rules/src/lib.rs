//! Rules: what is configuration over filters. Block, tunnel, map, modify, respond, slow down, hold, inject.
//!
//! A [`RuleSet`] is an ordered list, read from files ([`RuleSet::load`]) and lowered from mitmproxy's options
//! ([`MitmOptions`]). [`Rules`] is the interceptor that puts one in force, and another one while traffic passes.
//!
//! A rule has a filter and one action:
//!
//! ```toml
//! [[rule]]
//! name = "no telemetry"
//! when = "~d telemetry.example"
//! block = 403                  # 444 cuts the connection
//!
//! [[rule]]
//! when = "~d api.example & ~t json"
//! response_body = { replace = '"beta":\s*false', with = '"beta": true' }
//! ```
#![forbid(unsafe_code)]

mod ask;
mod budget;
mod config;
mod error;
mod explain;
mod hold;
mod inject;
mod interceptor;
mod kill;
mod local;
mod mitm;
mod recorded;
pub mod replay;
mod rewrite;
mod rule;
mod set;
mod sticky;
mod template;
#[cfg(test)]
mod tests;
mod url;

pub use error::{Place, RuleError, closest};
pub use explain::Explained;
pub use hold::{Decision, Held, Holds, MAX_HELD};
pub use interceptor::Rules;
pub use kill::KillSwitch;
pub use mitm::MitmOptions;
pub use rewrite::REWRITE_WINDOW;
pub use rule::{CUT, Rule};
pub use set::RuleSet;

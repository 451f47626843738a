//! Scanners: bytes of logical text in, [`Finding`]s out, the same for every way of cutting them.
//!
//! A [`Scanner`] is compiled once and shared; every stream has a [`ScanState`] of at most 4 KiB.
//! Text is judged in blocks at fixed offsets, each with a fixed stretch of text before and after it,
//! so that what is found can't depend on how the stream was cut into pieces.

mod assign;
mod builtin;
mod catalogue;
mod classes;
mod command;
mod decode;
pub(crate) mod encoding;
mod finding;
mod gitleaks;
mod injection;
mod known;
mod literals;
mod multi;
mod prefix;
mod rule;
mod scanner;
mod toolcall;
mod unicode;
mod url;
mod verify;

pub use finding::{Category, Confidence, Finding, Kind, Range64, Severity};
pub use gitleaks::{MAX_PACK_BYTES, MAX_PACK_RULES, PackError, RulePack};
pub use known::{KnownError, KnownSecrets, MAX_KNOWN, MAX_KNOWN_LEN, MIN_KNOWN_LEN};
pub use rule::{PatternError, RuleInfo};
pub(crate) use scanner::{AHEAD, BACK, BLOCK};
pub use scanner::{BuildError, ScanState, Scanner, ScannerBuilder};
pub use tollgate_wire::address::{Unsafe, unsafe_address};
pub(crate) use url::loose_ipv4;
pub use url::unsafe_host;

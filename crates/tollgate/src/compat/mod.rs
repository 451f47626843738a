//! The public surfaces of two other proxies, as thin adapters over this one.
//!
//! Code that was written for them compiles with the crate name changed:
//!
//! | was | is |
//! |---|---|
//! | `use mitmproxy_rs::…` | `use tollgate::compat::mitmproxy_rs::…` |
//! | `use soth_mitm::…` | `use tollgate::compat::soth_mitm::…` |
//!
//! Each module says where its behaviour differs from the original. What is new is written against
//! [`Interceptor`](crate::Interceptor) instead: these adapters copy what the native trait lends.

mod message;
pub mod mitmproxy_rs;
pub mod soth_mitm;

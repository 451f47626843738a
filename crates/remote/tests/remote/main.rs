//! The scanners for others, from outside: every byte between a scripted client and the service.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test asserts by panicking, in its helpers too"
)]

mod external;
mod http;
mod icap;
mod support;

//! The engine from outside: a real client, the proxy, a real origin, and every byte between them.
//!
//! One program, so that it links once; one module for each question. `support` has the actors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests assert by panicking, in their helpers too"
)]

#[path = "../support/mod.rs"]
mod support;

mod body_messages;
mod fidelity;
mod framing;
#[cfg(feature = "http2")]
mod h2_conformance;
#[cfg(feature = "http2")]
mod h2_floods;
#[cfg(feature = "http2")]
mod h2_hooks;
#[cfg(feature = "http2")]
mod h2_streams;
#[cfg(feature = "http2")]
mod h2_versions;
#[cfg(feature = "http2")]
mod h2_websocket;
#[cfg(feature = "http3")]
mod h3;
mod interceptors;
mod lifecycle;
mod modes;
mod offline;
mod predecessors;
mod routing;
mod smuggling;
mod timeouts;
mod tls_failures;
mod tls_records;
mod upstream;
mod visible;
mod ways_out;
mod websocket;

//! Screening over a network: the scanners of `tollgate-screen` for those who are no client of the proxy.
//!
//! | | |
//! |---|---|
//! | [`Judge`] | a [`Screen`](tollgate_screen::Screen) outside a proxy: whole messages in, a judgement out |
//! | [`scan`] | `POST /scan`: JSON in, a judgement as JSON out, without a listener |
//! | [`icap`] | an ICAP server (RFC 3507): other proxies show it their requests and responses |
//! | [`ExternalScanner`] | the other way round: an interceptor that asks a scanner elsewhere |
//! | [`Server`] | listens, counts, limits, and ends in an orderly way |
//!
//! Nothing here knows how the engine connects, and the screen knows nothing of sockets: this crate is where the two
//! questions "what is in it" and "who asks" meet.
#![forbid(unsafe_code)]

mod connection;
mod external;
mod http;
pub mod icap;
mod judge;
pub mod scan;
mod server;

pub use external::{ExternalConfig, ExternalScanner, ExternalStats, InvalidUrl, ScannerUrl};
pub use http::Access;
pub use judge::{Exchange, Judge, Said};
pub use server::{Ended, Limits, Server, ServerError};

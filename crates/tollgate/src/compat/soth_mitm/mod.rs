//! The surface of soth-mitm 0.1: a handler that decides about requests and watches responses and streams.
//!
//! ```
//! use std::time::Duration;
//! use tollgate::Bytes;
//! use tollgate::compat::soth_mitm::{
//!     HandlerDecision, InterceptHandler, MitmConfig, MitmProxyBuilder, RawRequest, generate_ca,
//! };
//!
//! struct Gate;
//!
//! impl InterceptHandler for Gate {
//!     async fn on_request(&self, request: &RawRequest) -> HandlerDecision {
//!         if request.path.contains("/blocked") {
//!             return HandlerDecision::Block {
//!                 status: 403,
//!                 body: Bytes::from_static(b"blocked by policy"),
//!             };
//!         }
//!         HandlerDecision::Allow
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = MitmConfig::default();
//! config.bind = "127.0.0.1:0".parse()?;
//! config.interception.destinations.push("api.example.com:443".to_string());
//!
//! let proxy = MitmProxyBuilder::new(config, Gate).with_ca(generate_ca()?).build()?;
//! let handle = proxy.start().await?;
//! println!("listening at {}", handle.local_addr());
//! handle.shutdown(Duration::from_secs(2)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where it differs from the original
//!
//! * **Failures are closed.** A request whose `on_request` panics or takes too long is answered 502 or 504
//!   and does not reach the origin; the original let it through. See [`HandlerConfig`].
//! * **Every field of the configuration does something**, and a panic, an aborted handshake or a request
//!   header never turns interception off.
//! * `on_response` is called for streams too, first and with an empty body.
//! * `RawRequest::body` is empty unless `body.buffer_request_bodies` is set.
//! * [`SocketFamily`] has our address as `local` and the client's as `remote`; `TlsInfo::sni` is the name in
//!   the client's hello; connection ids are random; [`CertificateAuthority::fingerprint`] is one.
//! * [`MitmProxy::start`] returns when the proxy accepts connections, and fails when it can't.
//! * [`uninstall_ca_system_trust`] and [`is_ca_trusted`] take the authority.
//! * WebSocket connections pass and are not reported message by message yet.

mod adapter;
mod ca;
mod config;
mod dispatch;
mod error;
mod handler;
mod proxy;
mod scope;
mod types;

pub use ca::{
    CertificateAuthority, generate_ca, install_ca_system_trust, is_ca_trusted, load_ca,
    load_ca_from_files, uninstall_ca_system_trust,
};
pub use config::{
    BodyConfig, ConnectionPoolConfig, HandlerConfig, InterceptionScope, MitmConfig,
    ProcessAttributionConfig, TlsConfig, UpstreamConfig,
};
pub use error::{CaError, MitmError};
pub use handler::InterceptHandler;
pub use http::HeaderMap;
pub use proxy::{MitmProxy, MitmProxyBuilder, MitmProxyHandle};
pub use tollgate_flow::Bytes;
pub use types::{
    ConnectionMeta, FrameKind, HandlerDecision, ProcessInfo, ProxyMetrics, RawRequest, RawResponse,
    SocketFamily, StreamChunk, TlsInfo, TlsVersion,
};
pub use uuid::Uuid;

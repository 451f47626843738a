//! The surface of mitmproxy-rs: an interceptor that sees whole responses and may change them.
//!
//! ```
//! use tollgate::compat::mitmproxy_rs::{HTTPFlow, ProxyBuilder, ResponseInterceptor};
//!
//! struct MyInterceptor;
//!
//! impl ResponseInterceptor for MyInterceptor {
//!     fn on_response(&self, flow: &mut HTTPFlow) {
//!         if let Some(body) = &flow.response.content {
//!             println!("Response: {} bytes", body.len());
//!         }
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let certs = tempfile::tempdir()?;
//! let proxy = ProxyBuilder::new()
//!     .listen_port(0)
//! #   .cert_store_path(certs.path())
//!     .interceptor(MyInterceptor)
//!     .build()?;
//! let handle = proxy.start().await?; // or `proxy.run().await`
//! println!("listening at {}", handle.local_addr());
//! handle.shutdown(std::time::Duration::from_secs(1)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The authority is kept in a folder, `~/.mitmproxy-rs/certs` unless [`Config::cert_store_path`] says
//! otherwise; clients must be told to trust `tollgate-ca-cert.pem` in it.
//!
//! Of the original's configuration, what would have no meaning here is left out: the web interface and its
//! token, the flow store, `mode` and `upstream_server` (this is a regular proxy), `showhost`, `no_server`,
//! `upstream_cert`.

mod adapter;
mod flow;
mod server;

pub use flow::{HTTPFlow, HTTPRequest, HTTPResponse};
pub use server::{BuildError, Config, Proxy, ProxyBuilder, ProxyServer};

pub use crate::CertificateAuthority;
pub use crate::Handle;
#[cfg(feature = "sse-parsing")]
pub use crate::sse;

/// Sees responses, and may change them.
///
/// The methods run on a thread of the proxy: they must not block. A panic ends the flow with 502.
pub trait ResponseInterceptor: Send + Sync + 'static {
    /// A response has come; the client has been sent nothing of it. Changes of its status, reason, headers
    /// and content go to the client, with its framing put right; changes of the request have no effect.
    ///
    /// Of a response that is a stream, or longer than [`Config::max_body_bytes`], this is the head:
    /// `content` is `None`, and [`on_response_chunk`](Self::on_response_chunk) gets the body in pieces.
    /// A response is taken for a stream when its request asked for one (`Accept: text/event-stream`), or
    /// when the engine passes it on without collecting it; any other is held back until it is whole.
    fn on_response(&self, flow: &mut HTTPFlow);

    /// A piece of the body of a response whose `content` was `None` passes, its content coding undone. The
    /// flow is as `on_response` left it.
    fn on_response_chunk(&self, flow: &HTTPFlow, chunk: &[u8]) {
        let _ = (flow, chunk);
    }
}

/// Lets a shared interceptor be used as one.
impl<T: ResponseInterceptor + ?Sized> ResponseInterceptor for std::sync::Arc<T> {
    fn on_response(&self, flow: &mut HTTPFlow) {
        (**self).on_response(flow);
    }

    fn on_response_chunk(&self, flow: &HTTPFlow, chunk: &[u8]) {
        (**self).on_response_chunk(flow, chunk);
    }
}

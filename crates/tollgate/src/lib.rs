//! An intercepting proxy as a library.
//!
//! Tollgate stands between a program and the internet. It opens TLS with certificates of its own authority,
//! shows what passes, and lets an [`Interceptor`] change it, answer it or refuse it. A proxy takes five lines:
//!
#![cfg_attr(feature = "tls-intercept", doc = "```no_run")]
#![cfg_attr(not(feature = "tls-intercept"), doc = "```ignore")]
//! use std::sync::Arc;
//! use tollgate::prelude::*;
//!
//! struct Block;
//!
//! impl Interceptor for Block {
//!     fn interest(&self, _flow: &Flow) -> Interest {
//!         Interest::REQUEST
//!     }
//!     fn request(&self, flow: &mut Flow) -> Step {
//!         if flow.request.path().starts_with(b"/admin") {
//!             return Step::respond(Reply::new(403).text("not through here"));
//!         }
//!         Step::Continue
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let authority = CertificateAuthority::new("~/.tollgate")?;
//! let proxy = Proxy::builder().authority(Arc::new(authority)).interceptor(Block).build()?;
//! proxy.run().await?; // listens at 127.0.0.1:8080
//! # Ok(())
//! # }
//! ```
//!
//! Clients use it as their HTTP proxy and trust `~/.tollgate/tollgate-ca-cert.pem`. To know when it listens, to
//! stop it, to read its counters or to change its configuration, start it instead:
//!
#![cfg_attr(feature = "tls-intercept", doc = "```")]
#![cfg_attr(not(feature = "tls-intercept"), doc = "```ignore")]
//! use tollgate::prelude::*;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.listen = vec![Listen::Tcp("127.0.0.1:0".parse()?).into()];
//! config.policy.ignore = vec![HostPattern::new("*.bank.example")?];
//!
//! let handle = Proxy::builder().config(config).build()?.start().await?;
//! println!("listening at {}", handle.local_addr());
//! println!("{} connections so far", handle.metrics().connections_total);
//! let end = handle.shutdown(std::time::Duration::from_secs(5)).await;
//! assert!(end.drained);
//! # Ok(())
//! # }
//! ```
//!
//! Without an authority one is made in memory, which no client trusts.
//!
//! # Features
//!
//! | feature | what it adds | default |
//! |---|---|---|
//! | `http-proxy` | the proxy: [`Proxy`], [`Config`], [`Handle`] | yes |
//! | `tls-intercept` | [`CertificateAuthority`], and opening TLS by default; without it TLS passes unopened | yes |
//! | `http2` | HTTP/2 on both sides | no |
//! | `http3` | HTTP/3 on both sides; brings `http2` along | no |
//! | `sse-parsing` | [`sse`]: server-sent events, and the text of LLM streams | no |
//! | `rules` | [`rules`]: block, map, modify, respond, hold, inject credentials, from a file | no |
//! | `screen` | [`screen`]: secrets that leave, dangerous tool calls that come | no |
//! | `store` | [`store`]: flows recorded on disk, listed, searched, followed | no |
//! | `rest-api` | nothing yet; reserved for the REST API | no |
//! | `compat` | [`compat`]: the surfaces of mitmproxy-rs and soth-mitm | no |
//!
//! With none of them the crate is the traits and types of flows and the [`wire`] formats, and opens no socket.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(all(
        feature = "http-proxy",
        feature = "tls-intercept",
        feature = "sse-parsing",
        feature = "rules",
        feature = "screen",
        feature = "store",
        feature = "compat"
    )),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "the feature table links to what a build without the feature lacks"
    )
)]

#[cfg(feature = "compat")]
pub mod compat;
#[cfg(all(feature = "http-proxy", not(feature = "tls-intercept")))]
mod plain;
pub mod prelude;
#[cfg(feature = "sse-parsing")]
pub mod sse;

#[cfg(all(feature = "http-proxy", not(feature = "tls-intercept")))]
pub use plain::{Proxy, ProxyBuilder};
#[cfg(feature = "tls-intercept")]
pub use tollgate_ca as ca;
#[cfg(feature = "tls-intercept")]
pub use tollgate_ca::{Authority as CertificateAuthority, CaError, HostCert};
#[cfg(feature = "http-proxy")]
pub use tollgate_engine::{
    Action, Config, ConfigError, ConnectionStrategy, Handle, HostPattern, LatencyHistogram, Limits,
    Listen, Metrics, Policy, PoolConfig, PoolMode, ProxyError, Retry, Roots, Runtime, Shutdown,
    Timeouts, TlsConfig, TlsVersions, UpstreamHttp, raise_file_limit,
};
#[cfg(all(feature = "http-proxy", feature = "tls-intercept"))]
pub use tollgate_engine::{Proxy, ProxyBuilder};
pub use tollgate_flow::*;
#[cfg(feature = "rules")]
pub use tollgate_rules as rules;
#[cfg(feature = "screen")]
pub use tollgate_screen as screen;
#[cfg(feature = "store")]
pub use tollgate_store as store;
pub use tollgate_wire as wire;

// The snippets of the documents are tested like those of the code.
#[cfg(all(doctest, feature = "http-proxy", feature = "tls-intercept"))]
#[doc = include_str!("../../../README.md")]
struct Readme;

#[cfg(all(doctest, feature = "http-proxy", feature = "tls-intercept"))]
#[doc = include_str!("../../../docs/embedding.md")]
struct Embedding;

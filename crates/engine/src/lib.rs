//! The engine of an intercepting proxy: it listens, detects what is spoken, decides, dials, opens
//! TLS, relays, pools upstream connections and calls interceptors.
//!
//! [`Proxy::builder`] is the way in. The engine knows nothing of rules, findings or databases:
//! those are [`Interceptor`](tollgate_flow::Interceptor)s.
//!
//! To follow one request through the code: `proxy` accepts, `stages` is the loop of a connection's
//! stages, `h1`, `h2` and `h3` serve clients, `streams` relays exchanges, `session` finds upstream connections, `io` and `tls` are
//! the wire. `docs/architecture.md` walks that way.
#![deny(unsafe_code)]

mod auth;
mod body;
mod config;
mod dial;
mod h1;
#[cfg(feature = "http2")]
mod h2;
#[cfg(feature = "http3")]
mod h3;
mod hooks;
mod io;
mod metrics;
mod mode;
mod os;
mod policy;
mod pool;
mod ports;
mod proxy;
mod proxy_protocol;
mod reply;
mod sandwich;
mod session;
mod socks;
mod stages;
#[cfg(feature = "http2")]
mod streams;
mod tcp;
mod timer;
mod tls;
mod tunnel;
mod via;
mod visible;
mod websocket;

pub use auth::{InvalidAuth, NoRandomness, ProxyAuth};
pub use config::{
    Config, ConfigError, ConnectionStrategy, Limits, Listen, PoolConfig, PoolMode, ProxyProtocol,
    ProxyProtocolVersion, Retry, Roots, Sandwich, Timeouts, TlsConfig, TlsVersions, UpstreamHttp,
    ViaConfig, ViaRule,
};
pub use dial::{Resolver, Resolving};
pub use metrics::{LatencyHistogram, Metrics};
pub use mode::{Endpoint, InvalidMode, Mode, ModeSpec, Reverse, ReverseScheme};
pub use policy::{Action, HostPattern, Policy};
pub use proxy::{Handle, Proxy, ProxyBuilder, ProxyError, Runtime, Shutdown, raise_file_limit};

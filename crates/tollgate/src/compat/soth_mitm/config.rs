//! What the proxy is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use tollgate_engine::{Config, Listen};

use super::error::MitmError;
use super::scope::Scope;
use super::types::TlsVersion;

/// The configuration. `interception.destinations` must not stay empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MitmConfig {
    /// Where to listen. Default: `127.0.0.1:8080`. Port 0 takes a free one, see
    /// [`MitmProxyHandle::local_addr`](super::MitmProxyHandle::local_addr).
    pub bind: SocketAddr,
    /// A Unix socket to listen at as well. A socket file that nobody listens on is replaced.
    pub unix_socket_path: Option<PathBuf>,
    /// What is opened.
    pub interception: InterceptionScope,
    /// Whether clients' processes are looked up.
    pub process_attribution: ProcessAttributionConfig,
    /// TLS.
    pub tls: TlsConfig,
    /// Towards origins.
    pub upstream: UpstreamConfig,
    /// Upstream connections.
    pub connection_pool: ConnectionPoolConfig,
    /// Bodies.
    pub body: BodyConfig,
    /// Calls of the handler.
    pub handler: HandlerConfig,
}

impl Default for MitmConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            unix_socket_path: None,
            interception: InterceptionScope::default(),
            process_attribution: ProcessAttributionConfig::default(),
            tls: TlsConfig::default(),
            upstream: UpstreamConfig::default(),
            connection_pool: ConnectionPoolConfig::default(),
            body: BodyConfig::default(),
            handler: HandlerConfig::default(),
        }
    }
}

/// What is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterceptionScope {
    /// `host:port`, `[v6]:port`; a host may hold `*` (`*.example.com:443`, `*:443`). Default: none,
    /// which [`build`](super::MitmProxyBuilder::build) refuses.
    pub destinations: Vec<String>,
    /// Whether other destinations are passed on unopened (plain HTTP: unseen by the handler). If not,
    /// they are refused with 403 and not dialled. Default: true.
    pub passthrough_unlisted: bool,
}

impl Default for InterceptionScope {
    fn default() -> Self {
        Self {
            destinations: Vec::new(),
            passthrough_unlisted: true,
        }
    }
}

/// Whether clients' processes are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessAttributionConfig {
    /// Default: true. The look-up takes about a millisecond, when a client connects.
    pub enabled: bool,
    /// What takes longer counts as not found. Default: 5000.
    pub lookup_timeout_ms: u64,
}

impl Default for ProcessAttributionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            lookup_timeout_ms: 5000,
        }
    }
}

/// TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// The authority's certificate, PEM. Default: `./certs/soth-mitm-ca.pem`. If neither this file nor
    /// the key exists, both are made (the key readable to its owner only); if one does, `build` fails.
    pub ca_cert_path: PathBuf,
    /// The authority's private key, PEM. Default: `./certs/soth-mitm-ca-key.pem`.
    pub ca_key_path: PathBuf,
    /// The lowest version on either side. Default: TLS 1.2.
    pub min_version: TlsVersion,
    /// Whether [`TlsInfo::ja4_hash`](super::TlsInfo::ja4_hash) is filled in. Default: true.
    pub capture_fingerprint: bool,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            ca_cert_path: PathBuf::from("./certs/soth-mitm-ca.pem"),
            ca_key_path: PathBuf::from("./certs/soth-mitm-ca-key.pem"),
            min_version: TlsVersion::Tls12,
            capture_fingerprint: true,
        }
    }
}

/// Towards origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// How long an origin may be silent between the end of a request and its response head; then 504.
    /// Default: 30 000.
    pub timeout_ms: u64,
    /// A TCP connection, DNS included; then 504. Default: 10 000.
    pub connect_timeout_ms: u64,
    /// Whether a connection that can't be made is tried once more. Nothing has been sent by then, so
    /// it is safe for every request. Default: false.
    pub retry_on_failure: bool,
    /// How long to wait before that. Default: 200.
    pub retry_delay_ms: u64,
    /// Whether origins' certificates are verified (by the platform's trust store). Default: true.
    pub verify_upstream_tls: bool,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            timeout_ms: 30_000,
            connect_timeout_ms: 10_000,
            retry_on_failure: false,
            retry_delay_ms: 200,
            verify_upstream_tls: true,
        }
    }
}

/// Upstream connections, per destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPoolConfig {
    /// How many at once; further requests wait. Default: 32. There are never more worker threads than
    /// this, because each has its share of it.
    pub max_connections_per_host: usize,
    /// How long an idle one is kept. Default: 60 000.
    pub idle_timeout_ms: u64,
    /// How many idle ones are kept, divided among the workers and rounded up. Default: 8.
    pub max_idle_per_host: usize,
}

impl Default for ConnectionPoolConfig {
    fn default() -> Self {
        Self {
            max_connections_per_host: 32,
            idle_timeout_ms: 60_000,
            max_idle_per_host: 8,
        }
    }
}

/// Bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyConfig {
    /// The most of one body that a handler gets. A request that is buffered and longer is answered 413;
    /// a response goes on, and the handler's copy is cut. Default: 10 MiB.
    pub max_size_bytes: usize,
    /// Whether request bodies are collected for [`RawRequest::body`](super::RawRequest::body) before
    /// `on_request`. Default: false, the handler decides by the head.
    pub buffer_request_bodies: bool,
}

impl Default for BodyConfig {
    fn default() -> Self {
        Self {
            max_size_bytes: 10 * 1024 * 1024,
            buffer_request_bodies: false,
        }
    }
}

/// Calls of the handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerConfig {
    /// How long `on_request` may take; then the client gets 504 and the origin nothing. Default: 5000.
    pub request_timeout_ms: u64,
    /// How long each of the other asynchronous calls may take; then it is cancelled. Default: 5000.
    pub response_timeout_ms: u64,
    /// What a panic of the handler costs. True, the default: that call. A request whose `on_request`
    /// panicked is answered 502, and a panic of `should_intercept_tls` counts as `true`. False: the
    /// client's connection. A request is never let through because its handler failed.
    pub recover_from_panics: bool,
}

impl Default for HandlerConfig {
    fn default() -> Self {
        Self {
            request_timeout_ms: 5000,
            response_timeout_ms: 5000,
            recover_from_panics: true,
        }
    }
}

impl MitmConfig {
    /// Checks what can be checked without touching a file or a socket.
    pub(super) fn validate(&self) -> Result<Scope, MitmError> {
        let positive = [
            (
                "process_attribution.lookup_timeout_ms",
                self.process_attribution.lookup_timeout_ms,
            ),
            ("upstream.timeout_ms", self.upstream.timeout_ms),
            (
                "upstream.connect_timeout_ms",
                self.upstream.connect_timeout_ms,
            ),
            (
                "connection_pool.max_connections_per_host",
                self.connection_pool.max_connections_per_host as u64,
            ),
            (
                "connection_pool.idle_timeout_ms",
                self.connection_pool.idle_timeout_ms,
            ),
            ("body.max_size_bytes", self.body.max_size_bytes as u64),
            (
                "handler.request_timeout_ms",
                self.handler.request_timeout_ms,
            ),
            (
                "handler.response_timeout_ms",
                self.handler.response_timeout_ms,
            ),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, value)| *value == 0) {
            return Err(MitmError::InvalidConfig(format!(
                "{name} must be greater than 0"
            )));
        }
        Scope::new(&self.interception)
    }

    /// The same in the engine's words.
    pub(super) fn to_engine(&self) -> Config {
        let pool = &self.connection_pool;
        let workers = available_parallelism()
            .map_or(1, NonZeroUsize::get)
            .min(pool.max_connections_per_host)
            .max(1);
        let mut config = Config::default();
        config.listen = std::iter::once(Listen::Tcp(self.bind))
            .chain(self.unix_socket_path.clone().map(Listen::Unix))
            .map(Into::into)
            .collect();
        config.workers = workers;
        config.process_attribution = self.process_attribution.enabled;
        config.tls.client_versions.min = self.tls.min_version.into();
        config.tls.upstream_versions.min = self.tls.min_version.into();
        config.tls.insecure = !self.upstream.verify_upstream_tls;
        config.timeouts.response_head = Duration::from_millis(self.upstream.timeout_ms);
        config.timeouts.connect = Duration::from_millis(self.upstream.connect_timeout_ms);
        config.retry.on_connect_failure = self.upstream.retry_on_failure;
        config.retry.delay = Duration::from_millis(self.upstream.retry_delay_ms);
        config.pool.max_per_route = pool.max_connections_per_host / workers;
        config.pool.max_idle_per_route = pool.max_idle_per_host.div_ceil(workers);
        config.pool.idle_timeout = Duration::from_millis(pool.idle_timeout_ms);
        config.limits.body_limit = self.body.max_size_bytes;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> MitmConfig {
        let mut config = MitmConfig::default();
        config.interception.destinations.push("a.test:443".into());
        config
    }

    #[test]
    fn every_field_that_the_engine_serves_changes_its_configuration() {
        type Flip = fn(&mut MitmConfig);
        let flips: [(&str, Flip); 14] = [
            ("bind", |c| c.bind.set_port(1)),
            ("unix_socket_path", |c| {
                c.unix_socket_path = Some("s".into())
            }),
            ("enabled", |c| c.process_attribution.enabled = false),
            ("min_version", |c| c.tls.min_version = TlsVersion::Tls13),
            ("timeout_ms", |c| c.upstream.timeout_ms = 1),
            ("connect_timeout_ms", |c| c.upstream.connect_timeout_ms = 1),
            ("retry_on_failure", |c| c.upstream.retry_on_failure = true),
            ("retry_delay_ms", |c| c.upstream.retry_delay_ms = 1),
            ("verify", |c| c.upstream.verify_upstream_tls = false),
            ("max_connections", |c| {
                c.connection_pool.max_connections_per_host = 1;
            }),
            ("idle_timeout_ms", |c| c.connection_pool.idle_timeout_ms = 1),
            ("max_idle", |c| c.connection_pool.max_idle_per_host = 0),
            ("max_size_bytes", |c| c.body.max_size_bytes = 1),
            ("nothing", |_| {}),
        ];
        for (name, flip) in flips {
            let mut config = valid();
            flip(&mut config);
            assert_eq!(
                config.to_engine() != valid().to_engine(),
                name != "nothing",
                "{name}"
            );
        }
    }

    #[test]
    fn connections_per_host_are_never_more_than_said() {
        for limit in [1, 2, 3, 7, 32, 1000] {
            let mut config = valid();
            config.connection_pool.max_connections_per_host = limit;
            let engine = config.to_engine();
            assert!(engine.pool.max_per_route >= 1);
            assert!(
                engine.workers * engine.pool.max_per_route <= limit,
                "{limit}"
            );
        }
    }

    #[test]
    fn zeros_and_missing_destinations_are_refused() {
        type Flip = fn(&mut MitmConfig);
        let flips: [(&str, Flip); 9] = [
            ("lookup_timeout_ms", |c| {
                c.process_attribution.lookup_timeout_ms = 0
            }),
            ("upstream.timeout_ms", |c| c.upstream.timeout_ms = 0),
            ("connect_timeout_ms", |c| c.upstream.connect_timeout_ms = 0),
            ("max_connections_per_host", |c| {
                c.connection_pool.max_connections_per_host = 0;
            }),
            ("idle_timeout_ms", |c| c.connection_pool.idle_timeout_ms = 0),
            ("max_size_bytes", |c| c.body.max_size_bytes = 0),
            ("request_timeout_ms", |c| c.handler.request_timeout_ms = 0),
            ("response_timeout_ms", |c| c.handler.response_timeout_ms = 0),
            ("destinations", |c| c.interception.destinations.clear()),
        ];
        assert!(valid().validate().is_ok());
        for (name, flip) in flips {
            let mut config = valid();
            flip(&mut config);
            match config.validate() {
                Err(MitmError::InvalidConfig(text)) => assert!(text.contains(name), "{text}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

//! What a proxy is told.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tollgate_flow::{OnFailure, TlsVersion, UpstreamProxy};

use crate::auth::ProxyAuth;
use crate::mode::Endpoint;
use crate::policy::{HostPattern, Policy};

/// The configuration of one proxy. Every field has a default that a newcomer wants.
///
/// What can change while the proxy runs is said at [`Handle::reload`](crate::Handle::reload).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where to listen, and in which mode. Default: `127.0.0.1:8080`, an HTTP proxy. Port 0 takes
    /// a free one.
    pub listen: Vec<Endpoint>,
    /// How many workers: threads with a runtime, a listener and an upstream pool each. 0, the
    /// default, makes one per core.
    pub workers: usize,
    /// What is opened, tunnelled and refused.
    pub policy: Policy,
    /// Whether HTTP/2 is spoken, on either side. Default: true.
    pub http2: bool,
    /// Which HTTP version is spoken upstream. Default: the client's.
    pub upstream_http: UpstreamHttp,
    /// TLS on both sides.
    pub tls: TlsConfig,
    /// Upstream connections.
    pub pool: PoolConfig,
    /// What happens when no upstream connection can be made.
    pub retry: Retry,
    /// Sizes and counts that are never exceeded.
    pub limits: Limits,
    /// How long each stage may take.
    pub timeouts: Timeouts,
    /// Whether interceptors may ask which process holds a client connection. Default: true; it
    /// costs nothing until somebody asks.
    pub process_attribution: bool,
    /// The local address that upstream connections are bound to.
    pub connect_addr: Option<IpAddr>,
    /// Whether a reverse proxy leaves the client's `Host` as it is. Default: false; the server
    /// behind us sees its own name.
    pub keep_host_header: bool,
    /// When the origin of a CONNECT, or of TLS, is dialled. Default: before the client is answered.
    pub connection_strategy: ConnectionStrategy,
    /// Proxies on the way to origins.
    pub via: ViaConfig,
    /// Addresses that are used for names, before the resolver is asked.
    pub hosts: Vec<(String, Vec<IpAddr>)>,
    /// Who may use the proxy. Default: everybody who reaches it.
    pub auth: Option<ProxyAuth>,
    /// The PROXY protocol, on either side.
    pub proxy_protocol: ProxyProtocol,
    /// Hands every request to a scanner, and takes it back from it.
    pub sandwich: Option<Sandwich>,
    /// Whether clients are kept from moving to where they aren't seen: HTTP/3 is taken out of
    /// `Alt-Svc` in responses over HTTP/1 and HTTP/2, and HTTP/3 and the keys of Encrypted Client
    /// Hello out of HTTPS and SVCB records in answers of DNS over HTTPS. Default: true.
    pub hide_http3: bool,
    /// Hosts whose responses pass as they are all the same.
    pub show_http3: Vec<HostPattern>,
    /// Whether datagrams to port 443 are dropped (SOCKS5's UDP ASSOCIATE), so that clients use
    /// TCP, where they are seen. Default: true.
    pub block_quic: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))).into()],
            workers: 0,
            policy: Policy::default(),
            http2: true,
            upstream_http: UpstreamHttp::default(),
            tls: TlsConfig::default(),
            pool: PoolConfig::default(),
            retry: Retry::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            process_attribution: true,
            connect_addr: None,
            keep_host_header: false,
            connection_strategy: ConnectionStrategy::default(),
            via: ViaConfig::default(),
            hosts: Vec::new(),
            auth: None,
            proxy_protocol: ProxyProtocol::default(),
            sandwich: None,
            hide_http3: true,
            show_http3: Vec::new(),
            block_quic: true,
        }
    }
}

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket. The file must not exist, or be a socket that nobody listens on.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Proxies on the way to origins. The first of these that says something decides: an
/// interceptor ([`Request::via`](tollgate_flow::Request::via)), `rules`, `no_proxy`, the mode
/// ([`Mode::Upstream`](crate::Mode::Upstream)), `proxy`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ViaConfig {
    /// For everything that nothing else decides. Default: none.
    pub proxy: Option<Arc<UpstreamProxy>>,
    /// Hosts that are reached without a proxy.
    pub no_proxy: Vec<HostPattern>,
    /// By host; the first that matches decides.
    pub rules: Vec<ViaRule>,
}

/// Which way some hosts are reached.
#[derive(Clone, Debug, PartialEq)]
pub struct ViaRule {
    /// The hosts.
    pub hosts: Vec<HostPattern>,
    /// The proxy; `None` for none.
    pub proxy: Option<Arc<UpstreamProxy>>,
}

/// The PROXY protocol, versions 1 and 2, by which a load balancer says whom it speaks for.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ProxyProtocol {
    /// Peers that must begin with a PROXY header; what it says of the client is believed. A
    /// header from anybody else is refused like any other bytes that are no protocol. Patterns are
    /// addresses or networks. Default: none.
    pub from: Vec<HostPattern>,
    /// Begin each connection to an origin with such a header for its client. Such connections are
    /// not shared between clients. Default: no.
    pub send: Option<ProxyProtocolVersion>,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// A scanner between two of our listeners: TLS is opened on one, the plain request goes to the
/// scanner, an HTTP proxy that forwards to a listener in [`Mode::Return`](crate::Mode::Return),
/// and from there over verified TLS to the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandwich {
    /// The scanner.
    pub scanner: Arc<UpstreamProxy>,
    /// What happens while the scanner can't be reached. Closed, the default in
    /// [`Sandwich::new`], answers 502; open sends requests straight to the origin, unscanned.
    pub on_failure: OnFailure,
}

impl Sandwich {
    /// A sandwich that fails closed.
    pub fn new(scanner: UpstreamProxy) -> Self {
        Self {
            scanner: Arc::new(scanner),
            on_failure: OnFailure::Closed,
        }
    }
}

/// Which HTTP version to speak upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHttp {
    /// Offer the origin what the client offered, and give the client what the origin chose.
    #[default]
    Mirror,
    /// Only HTTP/1.1, whatever the client speaks.
    Http1,
    /// HTTP/2 where the origin has it, also for clients that speak HTTP/1.1.
    Http2,
    /// HTTP/3 to origins with TLS, whatever the client speaks; there is no way back to TCP, but
    /// for WebSockets, which go over HTTP/1.1. Needs the feature `http3`.
    Http3,
}

/// When origins are dialled: mitmproxy's `connection_strategy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionStrategy {
    /// Before the client is told that it is connected: an origin that is down is an honest 502, and the client's TLS is
    /// what the origin agreed to.
    #[default]
    Eager,
    /// When a request has to go there. What interceptors answer needs no origin at all; a leaf has the names that the
    /// client asked for only, and the client is offered what the configuration allows.
    Lazy,
    /// Never: what interceptors don't answer is refused with 403 and a text that says so, whatever the protocol; no name
    /// is resolved either. For programs that are to run without a network.
    Never,
}

/// TLS on both sides.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct TlsConfig {
    /// Versions accepted from clients.
    pub client_versions: TlsVersions,
    /// Versions spoken to origins.
    pub upstream_versions: TlsVersions,
    /// Which authorities are trusted to sign origins.
    pub roots: Roots,
    /// PEM files with further trusted authorities.
    pub extra_roots: Vec<PathBuf>,
    /// Accept any certificate from any origin. Every such connection is reported as unverified.
    pub insecure: bool,
    /// Hosts whose certificates are accepted although they fail verification; reported likewise.
    pub insecure_hosts: Vec<HostPattern>,
    /// A PEM file with a client certificate and its key, or a folder of `<host>.pem` files.
    pub client_certs: Option<PathBuf>,
    /// Leaves that are used instead of minted ones: `[host pattern=]path.pem`, as mitmproxy's `--certs`.
    pub certs: Vec<String>,
}

/// Which authorities are trusted to sign origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// The platform's, or Mozilla's where the platform has none.
    #[default]
    Platform,
    /// Only those in these PEM files (or folders of PEM files).
    Files(Vec<PathBuf>),
}

/// Bounds on TLS versions, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsVersions {
    /// The lowest.
    pub min: TlsVersion,
    /// The highest.
    pub max: TlsVersion,
}

impl Default for TlsVersions {
    fn default() -> Self {
        Self {
            min: TlsVersion::Tls12,
            max: TlsVersion::Tls13,
        }
    }
}

/// How upstream connections are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Whether upstream connections are shared or mirror those of clients.
    pub mode: PoolMode,
    /// How many idle connections are kept for one route by one worker. Default: 256.
    pub max_idle_per_route: usize,
    /// How many idle connections one worker keeps in all. Default: 1024. The oldest is closed when
    /// another comes.
    pub max_idle: usize,
    /// How long an idle connection is kept. Default: 55 s, below the 60 s and more that servers give.
    pub idle_timeout: Duration,
    /// How many connections to one route one worker opens at once; further requests wait for one
    /// (up to `timeouts.connect`). Default: 0, no bound.
    pub max_per_route: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            mode: PoolMode::default(),
            max_idle_per_route: 256,
            max_idle: 1024,
            idle_timeout: Duration::from_secs(55),
            max_per_route: 0,
        }
    }
}

/// Whether upstream connections are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PoolMode {
    /// A connection that is idle serves whichever client needs its route next.
    #[default]
    Pooled,
    /// Each client connection has its own upstream connections.
    Mirror,
}

/// Whether a failed connection attempt is made again. (A request that met a pooled connection which
/// the origin had just closed is always sent once more, on another.)
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Try once more to connect before the client gets its 502. Default: false.
    pub on_connect_failure: bool,
    /// How long to wait before that. Default: 200 ms.
    pub delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            on_connect_failure: false,
            delay: Duration::from_millis(200),
        }
    }
}

/// Sizes and counts that are never exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Client connections at once, over all workers. At the limit the listener stops accepting
    /// (clients wait in the kernel's backlog) and the counter `connections_delayed` rises.
    /// Default: 65 536, or what the file-descriptor limit leaves (two for each), if less.
    pub connections: usize,
    /// Bytes of a request or response head. Larger: 431, or 502. Default: 64 KiB.
    pub head_bytes: usize,
    /// Header lines of a head. More: 431, or 502. Default: 256.
    pub header_lines: usize,
    /// Bytes of trailers. Default: 16 KiB.
    pub trailer_bytes: usize,
    /// Bytes of a body that is collected for an interceptor. A larger request is answered 413, a
    /// larger response streams past. Default: 32 MiB.
    pub body_limit: usize,
    /// Bytes that a content-coded body may decode to for an observer. Beyond that it sees no
    /// more of it; the wire is not affected. Default: 256 MiB.
    pub decoded_bytes: u64,
    /// Bytes of one message of a WebSocket, or within a body, that is put together for an
    /// interceptor. After a larger one observers see no more of that direction, and the wire is
    /// not affected; a WebSocket that may be edited is closed with 1009. Default: 16 MiB.
    pub message_bytes: usize,
    /// Streams that a client may have open on one connection of HTTP/2 or HTTP/3. Default: 256.
    pub h2_streams: u32,
    /// Names in the DNS cache. Default: 4096.
    pub dns_entries: usize,
    /// Leaves in the certificate cache. Default: 4096.
    pub leaves: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 65_536,
            head_bytes: 64 * 1024,
            header_lines: 256,
            trailer_bytes: 16 * 1024,
            body_limit: 32 * 1024 * 1024,
            decoded_bytes: 256 * 1024 * 1024,
            message_bytes: 16 * 1024 * 1024,
            h2_streams: 256,
            dns_entries: 4096,
            leaves: 4096,
        }
    }
}

/// How long each stage may take. A zero duration means no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timeouts {
    /// From accept to the first byte, and from the first byte of a ClientHello to its last.
    /// Default: 60 s.
    pub first_bytes: Duration,
    /// From the first byte of a request head to its last. Default: 30 s; then 408.
    pub request_head: Duration,
    /// A TCP connection to an origin, DNS included; over HTTP/3 its handshake, too. Default: 10 s;
    /// then 504.
    pub connect: Duration,
    /// A TLS handshake, on either side. Default: 10 s.
    pub handshake: Duration,
    /// From the end of the request to the response head, with nothing received. Default: 600 s;
    /// then 504.
    pub response_head: Duration,
    /// Without a byte in either direction in the middle of a body or a tunnel. Default: 600 s.
    pub idle: Duration,
    /// A kept-alive client connection between requests. Default: 300 s.
    pub keep_alive: Duration,
    /// How long an answer from DNS is used again. Default: 30 s.
    pub dns_cache: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self {
            first_bytes: secs(60),
            request_head: secs(30),
            connect: secs(10),
            handshake: secs(10),
            response_head: secs(600),
            idle: secs(600),
            keep_alive: secs(300),
            dns_cache: secs(30),
        }
    }
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file can't be read.
    #[error("{what} {path}: {error}")]
    File {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file holds no certificate or key, or broken ones.
    #[error("{what} {path}: {problem}")]
    Certificate {
        /// What the file is for.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A host pattern can't be parsed.
    #[error("host pattern {pattern:?}: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        problem: String,
    },
    /// TLS settings contradict each other.
    #[error("TLS settings: {0}")]
    Tls(String),
    /// Nothing to listen at, or bounds that can't be kept.
    #[error("{0}")]
    Invalid(String),
    /// A field that can't change while the proxy runs.
    #[error("`{0}` can't change while the proxy runs")]
    NotReloadable(&'static str),
}

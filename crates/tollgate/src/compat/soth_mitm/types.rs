//! What handlers see.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use tollgate_flow::Bytes;
use uuid::Uuid;

/// What a handler decides about a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HandlerDecision {
    /// It goes to the origin.
    #[default]
    Allow,
    /// The client gets this answer; the origin gets nothing, not even a connection.
    Block {
        /// The status, 200 to 599; anything else is sent as 500.
        status: u16,
        /// The body.
        body: Bytes,
    },
}

/// A request, before anything of it has gone to the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The headers, names in lower case. `host` is always there, also on HTTP/2.
    pub headers: HeaderMap,
    /// The body with its content coding undone, if `body.buffer_request_bodies` is set; else empty.
    pub body: Bytes,
    /// The connection.
    pub connection_meta: Arc<ConnectionMeta>,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawResponse {
    /// The status code.
    pub status: u16,
    /// The headers as the origin sent them, names in lower case. Two may be added:
    /// `x-soth-body-truncated` (the body is longer than `body.max_size_bytes`, or broke off) and
    /// `x-soth-encoding-error` (its content coding could not be undone) concern the copy in `body`,
    /// never what the client gets.
    pub headers: HeaderMap,
    /// The body with its content coding undone. Empty for streams (SSE, NDJSON, gRPC), whose content
    /// comes as [`StreamChunk`]s.
    pub body: Bytes,
    /// The connection.
    pub connection_meta: Arc<ConnectionMeta>,
}

/// What a [`StreamChunk`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// The data of one server-sent event, its lines joined by LF.
    SseData,
    /// One line of NDJSON.
    NdjsonLine,
    /// One gRPC message without its prefix, as sent (perhaps compressed).
    GrpcMessage,
    /// A WebSocket text message. Not emitted yet.
    WebSocketText,
    /// A WebSocket binary message. Not emitted yet.
    WebSocketBinary,
    /// A WebSocket close. Not emitted yet.
    WebSocketClose,
}

impl FrameKind {
    /// A short stable name: `sse_data`, `ndjson_line`, `grpc_message`, `websocket_text`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SseData => "sse_data",
            Self::NdjsonLine => "ndjson_line",
            Self::GrpcMessage => "grpc_message",
            Self::WebSocketText => "websocket_text",
            Self::WebSocketBinary => "websocket_binary",
            Self::WebSocketClose => "websocket_close",
        }
    }
}

/// One message of a streamed response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamChunk {
    /// The connection that the stream is on.
    pub connection_id: Uuid,
    /// The message.
    pub payload: Bytes,
    /// Counts the messages of one stream from 0. A gap means that messages were dropped because the
    /// handler did not keep up.
    pub sequence: u64,
    /// What it is.
    pub frame_kind: FrameKind,
}

/// A client's connection.
///
/// On HTTP/2 every stream is a connection of its own to the handler, with its own id, so that request,
/// response and chunks of streams that run at once can be told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionMeta {
    /// Random, unique across restarts.
    pub connection_id: Uuid,
    /// The addresses.
    pub socket_family: SocketFamily,
    /// The client's process, if it is on this machine and `process_attribution.enabled` is set.
    pub process_info: Option<ProcessInfo>,
    /// TLS between the client and the proxy; `None` before the handshake and on plaintext.
    pub tls_info: Option<TlsInfo>,
}

/// The addresses of a client's connection: `local` is the proxy's, `remote` the client's.
///
/// (The original gave the client's address as `local` and nothing as `remote`.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketFamily {
    /// TCP over IPv4.
    TcpV4 {
        /// Our address, which the client connected to.
        local: SocketAddrV4,
        /// The client's address.
        remote: SocketAddrV4,
    },
    /// TCP over IPv6.
    TcpV6 {
        /// Our address, which the client connected to.
        local: SocketAddrV6,
        /// The client's address.
        remote: SocketAddrV6,
    },
    /// A Unix socket.
    UnixDomain {
        /// Our socket's path.
        path: Option<PathBuf>,
    },
}

impl SocketFamily {
    /// From our address and the client's.
    pub(super) fn tcp(local: SocketAddr, remote: SocketAddr) -> Self {
        let v6 = |address| match address {
            SocketAddr::V6(address) => address,
            SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        };
        match (local, remote) {
            (SocketAddr::V4(local), SocketAddr::V4(remote)) => Self::TcpV4 { local, remote },
            (local, remote) => Self::TcpV6 {
                local: v6(local),
                remote: v6(remote),
            },
        }
    }
}

/// TLS between the client and the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// The server name in the client's hello.
    pub sni: Option<String>,
    /// The protocol that was agreed by ALPN, e.g. `h2`.
    pub negotiated_proto: Option<String>,
    /// The JA4 fingerprint of the client's hello, if `tls.capture_fingerprint` is set.
    pub ja4_hash: Option<String>,
    /// The version that was agreed.
    pub tls_version: Option<TlsVersion>,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl From<tollgate_flow::TlsVersion> for TlsVersion {
    fn from(version: tollgate_flow::TlsVersion) -> Self {
        match version {
            tollgate_flow::TlsVersion::Tls12 => Self::Tls12,
            tollgate_flow::TlsVersion::Tls13 => Self::Tls13,
        }
    }
}

impl From<TlsVersion> for tollgate_flow::TlsVersion {
    fn from(version: TlsVersion) -> Self {
        match version {
            TlsVersion::Tls12 => Self::Tls12,
            TlsVersion::Tls13 => Self::Tls13,
        }
    }
}

/// A process on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The process id.
    pub pid: u32,
    /// The bundle identifier. Always `None`: a thing of macOS that is not looked up.
    pub bundle_id: Option<String>,
    /// The short name.
    pub exe_name: Option<String>,
    /// The executable.
    pub exe_path: Option<PathBuf>,
    /// The parent's process id.
    pub parent_pid: Option<u32>,
    /// The parent's short name.
    pub parent_process_name: Option<String>,
}

impl From<&tollgate_flow::ProcessInfo> for ProcessInfo {
    fn from(process: &tollgate_flow::ProcessInfo) -> Self {
        Self {
            pid: process.pid,
            bundle_id: None,
            exe_name: process.name.clone(),
            exe_path: process.executable.clone(),
            parent_pid: process.parent_pid,
            parent_process_name: process.parent_name.clone(),
        }
    }
}

/// A snapshot of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyMetrics {
    /// Client connections open now.
    pub active_connections: u64,
    /// Client connections since the start.
    pub total_connections: u64,
    /// Hooks that panicked.
    pub handler_panic_count: u64,
    /// Hooks that took longer than their time.
    pub handler_timeout_count: u64,
    /// Upstream connections that could not be made: name, TCP or TLS.
    pub upstream_connect_error_count: u64,
    /// Times that an origin took longer than its time.
    pub upstream_timeout_count: u64,
    /// Clients whose process is not known.
    pub process_attribution_failure_count: u64,
    /// Look-ups of processes that took longer than their time.
    pub process_attribution_timeout_count: u64,
    /// Always 0: there is no cache by connection, each is looked up once.
    pub process_cache_connection_hit_count: u64,
    /// Always 0: the resolver keeps its cache to itself.
    pub process_cache_identity_hit_count: u64,
    /// Always 0, likewise.
    pub process_cache_miss_count: u64,
    /// Always 0, likewise.
    pub process_cache_eviction_count: u64,
    /// Always 0, likewise: a reused process id is noticed and not counted.
    pub process_pid_reuse_detected_count: u64,
    /// Responses, chunks and whole streams that a handler was not told of because it did not keep up.
    pub dropped_dispatch_work_count: u64,
    /// Always 0: nothing is reaped, connections end by their own timeouts.
    pub stale_flow_reap_count: u64,
    /// Always 0: ids of closed connections need not be remembered.
    pub closed_flow_id_eviction_count: u64,
}

//! Facts about a client's connection and about the upstream connection that served a flow.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::tls::ClientTls;
use crate::upstream_proxy::UpstreamProxy;

/// Identifies one client connection within one proxy. Never reused while the proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A client's connection, from accept to close.
///
/// It is shared by every flow on the connection. What is learnt later (where the client wants to
/// go, its TLS hello, its process) is filled in once and stays.
pub struct ConnectionInfo {
    /// Identifies the connection within this proxy.
    pub id: ConnectionId,
    /// The client's address.
    pub client: SocketAddr,
    /// Our address, the one that the client connected to.
    pub local: SocketAddr,
    /// When the connection was accepted.
    pub opened: SystemTime,
    pub(crate) target: OnceLock<Target>,
    pub(crate) tls: OnceLock<ClientTls>,
    mode: OnceLock<Arc<str>>,
    user: OnceLock<Arc<str>>,
    process: OnceLock<Option<Arc<ProcessInfo>>>,
    resolver: Option<Arc<dyn ProcessResolver>>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl ConnectionInfo {
    /// Describes a connection that was just accepted. `resolver` names the client's process when
    /// somebody asks; `None` where that can't be known.
    pub fn new(
        id: ConnectionId,
        client: SocketAddr,
        local: SocketAddr,
        resolver: Option<Arc<dyn ProcessResolver>>,
    ) -> Self {
        Self {
            id,
            client,
            local,
            opened: SystemTime::now(),
            target: OnceLock::new(),
            tls: OnceLock::new(),
            mode: OnceLock::new(),
            user: OnceLock::new(),
            process: OnceLock::new(),
            resolver,
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }

    /// Where the client asked to be connected: the authority of its `CONNECT`, or the listener's
    /// fixed target. `None` for a connection that carries absolute-form requests.
    pub fn target(&self) -> Option<&Target> {
        self.target.get()
    }

    /// What the client said in its TLS hello, and what was agreed; `None` before a hello was read.
    pub fn tls(&self) -> Option<&ClientTls> {
        self.tls.get()
    }

    /// The client's process, for a client on this machine. Looked up at the first call (which may
    /// take a millisecond of file reading) and remembered.
    pub fn process(&self) -> Option<&Arc<ProcessInfo>> {
        self.process
            .get_or_init(|| {
                let resolver = self.resolver.as_ref()?;
                resolver.resolve(self.client, self.local)
            })
            .as_ref()
    }

    /// Bytes read from the client's socket so far.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes written to the client's socket so far.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    /// The mode of the listener that accepted it, as mitmproxy writes it: `regular`,
    /// `reverse:https://example.com`, …; empty before the engine has filled it in.
    pub fn mode(&self) -> &str {
        self.mode.get().map_or("", |mode| mode)
    }

    /// The user that the client has shown to be, where the proxy asks for one.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.user.get()
    }

    /// Fills in the listener's mode. The first call wins.
    pub fn set_mode(&self, mode: Arc<str>) {
        let _ = self.mode.set(mode);
    }

    /// Fills in who the client is. The first call wins.
    pub fn set_user(&self, user: Arc<str>) {
        let _ = self.user.set(user);
    }

    /// Fills in where the client wants to go. The first call wins.
    pub fn set_target(&self, target: Target) {
        let _ = self.target.set(target);
    }

    /// Fills in the TLS facts. The first call wins.
    pub fn set_tls(&self, tls: ClientTls) {
        let _ = self.tls.set(tls);
    }

    /// Adds to the byte counters.
    pub fn count_bytes(&self, read: u64, written: u64) {
        if read > 0 {
            self.bytes_in.fetch_add(read, Ordering::Relaxed);
        }
        if written > 0 {
            self.bytes_out.fetch_add(written, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for ConnectionInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionInfo")
            .field("id", &self.id)
            .field("client", &self.client)
            .field("local", &self.local)
            .field("target", &self.target.get())
            .finish_non_exhaustive()
    }
}

/// A host and port as somebody named them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// A host name in lower case without a trailing dot, or an IP address without brackets.
    pub host: Arc<str>,
    /// The TCP port.
    pub port: u16,
}

impl Target {
    /// A target from a host (case and a trailing dot don't matter; IPv6 with or without brackets).
    pub fn new(host: &str, port: u16) -> Self {
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            host.to_ascii_lowercase().into()
        } else {
            host.into()
        };
        Self { host, port }
    }

    /// Reads `host:port`, `[v6]:port`, or `host` with a default port.
    /// `None` when the host is empty, the port isn't one, or an IPv6 address lacks its brackets.
    pub fn parse(authority: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return None,
            }
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        let port = match port {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok()?,
            Some(_) => return None,
            None => default_port?,
        };
        let legal = |b: u8| b > b' ' && b != 0x7f && !b"/?#@\\<>\"{}|^`".contains(&b);
        if host.is_empty() || host == "." || port == 0 || !host.bytes().all(legal) {
            return None;
        }
        Some(Self::new(host, port))
    }

    /// The host as an address, when it is a literal.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The upstream connection that carried a flow.
#[derive(Clone, Debug)]
pub struct UpstreamInfo {
    /// The address that was dialled: the origin's, or that of the proxy on the way.
    pub address: SocketAddr,
    /// The proxy on the way, where there is one.
    pub via: Option<Arc<UpstreamProxy>>,
    /// Our own address on that connection.
    pub local: SocketAddr,
    /// The TLS version towards the origin; `None` on a plaintext connection.
    pub tls_version: Option<crate::TlsVersion>,
    /// The protocol that the origin chose, e.g. `h2`.
    pub alpn: Option<Vec<u8>>,
    /// The origin's certificates, leaf first, DER.
    pub certificates: Arc<[Vec<u8>]>,
    /// True when the origin's certificate was accepted although it failed verification, because
    /// an exception for this host (or `insecure`) says so.
    pub unverified: bool,
    /// When TCP was connected; for QUIC, when the handshake began.
    pub connected: SystemTime,
    /// How long the TCP connection took.
    pub connect_time: std::time::Duration,
    /// How long the TLS handshake took; zero on plaintext.
    pub handshake_time: std::time::Duration,
}

/// A process on this machine that holds a client connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The process id.
    pub pid: u32,
    /// The parent's process id.
    pub parent_pid: Option<u32>,
    /// The parent's short name.
    pub parent_name: Option<String>,
    /// The executable's path.
    pub executable: Option<PathBuf>,
    /// The short name (`comm`).
    pub name: Option<String>,
    /// The command line.
    pub command: Vec<String>,
}

/// Finds the process that holds the client's end of a connection.
pub trait ProcessResolver: Send + Sync + 'static {
    /// Looks up the process with a socket from `client` to `local`. May block for about a
    /// millisecond; `None` when there is none on this machine or it may not be seen.
    fn resolve(&self, client: SocketAddr, local: SocketAddr) -> Option<Arc<ProcessInfo>>;
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn target_parses_authorities() {
        let ok = |s: &str| Target::parse(s, Some(443)).map(|t| t.to_string());
        assert_eq!(ok("Example.COM.:8443").as_deref(), Some("example.com:8443"));
        assert_eq!(ok("[::1]:9").as_deref(), Some("[::1]:9"));
        assert_eq!(ok("[::1]").as_deref(), Some("[::1]:443"));
        assert_eq!(ok("127.0.0.1").as_deref(), Some("127.0.0.1:443"));
        for bad in [
            "", ":80", "a:", "a:0", "a:65536", "a:+1", "::1:80", "[::1", "[x]:1", "a b:1", "a/b:1",
            "u@a:1", ".:80",
        ] {
            assert_eq!(ok(bad), None, "{bad}");
        }
        assert_eq!(Target::parse("host", None), None);
    }
}

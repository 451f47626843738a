//! Listeners: each place to listen at is a port, with a socket for each worker.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwap;

use crate::config::Listen;
use crate::io::Conn;
use crate::mode::{Endpoint, Mode};
use crate::os;
use crate::proxy::ProxyError;

/// A place that is listened at.
pub(crate) struct Port {
    /// Tells this port from all that the proxy ever had.
    pub id: u32,
    pub at: Listen,
    /// The mode, which a reload may change under the same sockets.
    pub mode: ArcSwap<Mode>,
    /// The real address; `None` for a Unix socket.
    pub address: Option<SocketAddr>,
}

/// A port that was just bound.
pub(crate) struct Bound {
    pub port: Arc<Port>,
    /// For the workers, one each; fewer where the platform or the kind of socket has it so.
    pub sockets: Vec<Socket>,
    /// Removes the socket's file when the port is closed.
    pub file: Option<UnixPath>,
}

impl Port {
    /// Binds a place: one socket for each worker, where the platform has that.
    ///
    /// # Errors
    /// What can't be bound, and why.
    pub fn bind(id: u32, endpoint: &Endpoint, workers: usize) -> Result<Bound, ProxyError> {
        let error = |address: String| {
            move |error| ProxyError::Bind {
                address: address.clone(),
                error,
            }
        };
        let port = |address| {
            Arc::new(Self {
                id,
                at: endpoint.at.clone(),
                mode: ArcSwap::from_pointee(endpoint.mode.clone()),
                address,
            })
        };
        match &endpoint.at {
            #[cfg(feature = "http3")]
            Listen::Tcp(address) if endpoint.mode.is_datagrams() => {
                let error = error(address.to_string());
                let socket = std::net::UdpSocket::bind(address).map_err(&error)?;
                let bound = socket.local_addr().map_err(&error)?;
                Ok(Bound {
                    port: port(Some(bound)),
                    // All packets of a connection must come to one socket, wherever its client
                    // moves: the first worker has it.
                    sockets: vec![Socket::Quic(socket)],
                    file: None,
                })
            }
            Listen::Tcp(address) => {
                let error = error(address.to_string());
                let transparent = endpoint.mode == Mode::Transparent;
                let listeners = os::bind_tcp(*address, workers, transparent).map_err(&error)?;
                let bound = match listeners.first() {
                    Some(first) => Some(first.local_addr().map_err(&error)?),
                    None => None,
                };
                Ok(Bound {
                    port: port(bound),
                    sockets: listeners.into_iter().map(Socket::Tcp).collect(),
                    file: None,
                })
            }
            #[cfg(unix)]
            Listen::Unix(path) => {
                let listener = bind_unix(path).map_err(error(path.display().to_string()))?;
                Ok(Bound {
                    port: port(None),
                    sockets: vec![Socket::Unix(listener)],
                    file: Some(UnixPath(path.clone())),
                })
            }
            #[cfg(not(unix))]
            Listen::Unix(path) => Err(error(path.display().to_string())(
                io::ErrorKind::Unsupported.into(),
            )),
        }
    }

    /// Whether it takes datagrams.
    pub fn is_udp(&self) -> bool {
        self.mode.load().is_datagrams()
    }

    /// Whether this port serves an endpoint's place. Its mode may have been another.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        // A transparent listener is bound differently, and one for QUIC is of another kind.
        let kind = |mode: &Mode| (*mode == Mode::Transparent, mode.is_datagrams());
        self.at == endpoint.at && kind(&self.mode.load()) == kind(&endpoint.mode)
    }
}

/// A bound socket that no runtime knows yet.
pub(crate) enum Socket {
    Tcp(std::net::TcpListener),
    #[cfg(feature = "http3")]
    Quic(std::net::UdpSocket),
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

/// Removes a Unix socket's file.
pub(crate) struct UnixPath(PathBuf);

impl Drop for UnixPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(unix)]
fn bind_unix(path: &std::path::Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::os::unix::net::{UnixListener, UnixStream};
    let left_over = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path).is_err();
    if left_over {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One worker's socket of a port.
pub(crate) struct Acceptor {
    pub port: Arc<Port>,
    socket: AcceptorSocket,
}

enum AcceptorSocket {
    Tcp(tokio::net::TcpListener),
    #[cfg(feature = "http3")]
    Quic(Box<crate::h3::Acceptor>),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

/// What a client came with.
#[cfg_attr(
    feature = "http3",
    expect(
        clippy::large_enum_variant,
        reason = "made and taken apart in the same breath, never stored"
    )
)]
pub(crate) enum Came {
    Stream(Conn),
    /// A connection of QUIC.
    #[cfg(feature = "http3")]
    Quic(crate::h3::Incoming),
}

/// A connection that was accepted.
pub(crate) struct Accepted {
    pub came: Came,
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// Our address that the connection came to, whatever a PROXY header says.
    pub reached: SocketAddr,
    /// Where the client was going, where the kernel gave us its connection.
    pub original: Option<SocketAddr>,
    pub port: Arc<Port>,
}

impl Acceptor {
    /// Hands a socket to the runtime that calls this.
    pub fn new(port: Arc<Port>, socket: Socket) -> io::Result<Self> {
        let socket = match socket {
            Socket::Tcp(socket) => AcceptorSocket::Tcp(tokio::net::TcpListener::from_std(socket)?),
            #[cfg(feature = "http3")]
            Socket::Quic(socket) => {
                AcceptorSocket::Quic(Box::new(crate::h3::Acceptor::new(socket)?))
            }
            #[cfg(unix)]
            Socket::Unix(socket) => {
                AcceptorSocket::Unix(tokio::net::UnixListener::from_std(socket)?)
            }
        };
        Ok(Self { port, socket })
    }

    /// Whether it takes back what a scanner was given.
    pub fn takes_back(&self) -> bool {
        **self.port.mode.load() == Mode::Return
    }

    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        let accepted = match &mut self.socket {
            AcceptorSocket::Tcp(socket) => {
                std::task::ready!(socket.poll_accept(cx)).and_then(|(stream, client)| {
                    let local = stream.local_addr()?;
                    let original = match **self.port.mode.load() {
                        Mode::Transparent => os::original_destination(&stream).or(Some(local)),
                        _ => None,
                    };
                    Ok((Came::Stream(Conn::tcp(stream)), client, local, original))
                })
            }
            #[cfg(feature = "http3")]
            AcceptorSocket::Quic(acceptor) => std::task::ready!(acceptor.poll_accept(cx))
                .map(|(incoming, client, local)| (Came::Quic(incoming), client, local, None)),
            #[cfg(unix)]
            AcceptorSocket::Unix(socket) => {
                std::task::ready!(socket.poll_accept(cx)).map(|(stream, _)| {
                    let none = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
                    (Came::Stream(Conn::unix(stream)), none, none, None)
                })
            }
        };
        Poll::Ready(accepted.map(|(came, client, local, original)| Accepted {
            came,
            client: canonical(client),
            local: canonical(local),
            reached: canonical(local),
            original: original.map(canonical),
            port: Arc::clone(&self.port),
        }))
    }
}

/// A listener for both versions of IP sees IPv4 as a part of IPv6; everybody else, rules and people, sees IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

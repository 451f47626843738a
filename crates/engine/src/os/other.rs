//! Every platform but Linux: what std offers, and "not on this platform" for the rest.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};
use tollgate_flow::ProcessResolver;

/// One listener that the workers share: `SO_REUSEPORT` either isn't there, or it gives all
/// connections to the last listener instead of spreading them.
pub(super) fn bind_tcp(
    address: SocketAddr,
    workers: usize,
    transparent: bool,
) -> io::Result<Vec<TcpListener>> {
    if transparent {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "transparent mode is not on this platform",
        ));
    }
    let first = super::bind_and_listen(super::socket_to_bind(address)?, address)?;
    let mut listeners = (1..workers)
        .map(|_| first.try_clone())
        .collect::<io::Result<Vec<_>>>()?;
    listeners.push(first);
    Ok(listeners)
}

/// Not on this platform.
pub(super) fn original_destination(_stream: &TcpStream) -> Option<SocketAddr> {
    None
}

/// Not on this platform.
pub(super) fn before_bind_for_connect(_socket: &TcpSocket) {}

/// Not on this platform.
pub(super) fn file_limit() -> Option<u64> {
    None
}

/// Not on this platform.
pub(super) fn raise_file_limit() -> Option<u64> {
    None
}

/// Not on this platform.
pub(super) fn process_resolver() -> Option<Arc<dyn ProcessResolver>> {
    None
}

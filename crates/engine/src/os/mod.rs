//! What differs by platform: listeners, limits, and whose connection this is.
//!
//! Linux is served in full. Elsewhere the workers share one listener, and what can't be had is
//! `None`: not on this platform.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tollgate_flow::ProcessResolver;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
#[path = "other.rs"]
mod platform;

/// How many connections may wait to be accepted, for each listener. The kernel lowers it to its
/// own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Listens on `address`, with one listener for each worker (at least one); port 0 is one free port
/// for all of them. The listeners don't block and aren't inherited by child processes.
///
/// `[::]` takes IPv4 as well; every other IPv6 address takes IPv6 only. An IPv4-mapped address is
/// the IPv4 address.
///
/// On Linux the kernel spreads connections over the listeners; a connection that waits in one is
/// refused when that listener closes, even while the others go on. Elsewhere all of them are one
/// listener.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] when anybody listens on the port already, another proxy (also of
/// this process) included; and whatever else the operating system says.
///
/// A `transparent` listener also takes connections to addresses that are not ours, where the
/// kernel hands it such (Linux, TPROXY).
pub(crate) fn bind_tcp(
    address: SocketAddr,
    workers: usize,
    transparent: bool,
) -> io::Result<Vec<TcpListener>> {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    platform::bind_tcp(address, workers.max(1), transparent)
}

/// Where a connection was going before the kernel gave it to us: by REDIRECT, whose table knows,
/// or by TPROXY, where it is what we are called by. `None` when it came straight to us, and where
/// that can't be known.
pub(crate) fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    platform::original_destination(stream)
}

/// To be called before `socket` is bound to an address with port 0 in order to connect from that
/// address: the port is then chosen when it connects, so that it need only be unique towards that
/// peer. Without it, one address has at most some 28 000 outgoing connections to all peers
/// together. Where it can't be had, nothing happens.
pub(crate) fn before_bind_for_connect(socket: &TcpSocket) {
    platform::before_bind_for_connect(socket);
}

/// How many files and sockets this process may have open now (the soft `RLIMIT_NOFILE`,
/// `u64::MAX` for no limit). `None`: not on this platform.
pub(crate) fn file_limit() -> Option<u64> {
    platform::file_limit()
}

/// Raises the limit on open files and sockets as far as the process may (to the hard
/// `RLIMIT_NOFILE`), and returns the limit that holds then, also where it couldn't be raised.
/// `None`: not on this platform.
///
/// The limit belongs to the process and its children inherit it, so only a program that owns its
/// process calls this.
pub(crate) fn raise_file_limit() -> Option<u64> {
    platform::raise_file_limit()
}

/// Names the processes of this machine that connect to us. `None`: not on this platform.
///
/// Only processes that we may look at are found (as an ordinary user: our own), in our network
/// and pid namespaces. Where several share a socket, it's one that was found before, or the
/// youngest.
pub(crate) fn process_resolver() -> Option<Arc<dyn ProcessResolver>> {
    platform::process_resolver()
}

/// A socket that is ready to be bound to `address` for listening.
fn socket_to_bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if let IpAddr::V6(ip) = address.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    // As the standard library does: on Unix it lets a restarted proxy have its port although old
    // connections linger; on Windows it would let anybody take the port from us.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn bind_and_listen(socket: Socket, address: SocketAddr) -> io::Result<TcpListener> {
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

    use super::{bind_tcp, file_limit, process_resolver};

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn one_listener_for_each_worker_on_one_port() {
        for (workers, expected) in [(0, 1), (1, 1), (3, 3)] {
            let listeners = bind_tcp(LOOPBACK, workers, false).unwrap();
            assert_eq!(listeners.len(), expected);
            let address = listeners[0].local_addr().unwrap();
            assert_ne!(address.port(), 0);
            for listener in &listeners {
                assert_eq!(listener.local_addr().unwrap(), address);
                let error = listener.accept().unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
        }
    }

    #[test]
    fn a_port_that_is_listened_on_is_in_use() {
        let ours = bind_tcp(LOOPBACK, 3, false).unwrap();
        let theirs = TcpListener::bind(LOOPBACK).unwrap();
        for taken in [&ours[0], &theirs] {
            let address = taken.local_addr().unwrap();
            for workers in [1, 3] {
                let error = bind_tcp(address, workers, false).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{address}");
            }
        }
        let address = ours[0].local_addr().unwrap();
        let error = TcpListener::bind(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn ipv4_mapped_is_ipv4_and_unspecified_ipv6_takes_both() {
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let listeners = bind_tcp(SocketAddr::new(mapped.into(), 0), 2, false).unwrap();
        assert!(listeners[0].local_addr().unwrap().is_ipv4());

        let both = match bind_tcp(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), 2, false) {
            Ok(both) => both,
            // A machine may have no IPv6; this half then has nothing to show.
            Err(error) => {
                assert_ne!(error.kind(), io::ErrorKind::AddrInUse);
                return;
            }
        };
        let port = both[0].local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let error = bind_tcp(
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            2,
            false,
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn only_linux_knows_processes_and_limits() {
        let linux = cfg!(target_os = "linux");
        assert_eq!(process_resolver().is_some(), linux);
        assert_eq!(file_limit().is_some(), linux);
    }
}

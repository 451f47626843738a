//! Linux: `SO_REUSEPORT`, socket options and limits that std lacks, and the client's process from
//! `sock_diag(7)` and `proc(5)`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tollgate_flow::{ProcessInfo, ProcessResolver};

/// The descriptions of this many processes are kept.
const MAX_PROCESSES: usize = 1024;

/// A description is made anew after this long, because a process can change what it shows.
const PROCESS_TTL: Duration = Duration::from_secs(5 * 60);

/// The processes that connected last are looked at before all others.
const MAX_RECENT: usize = 8;

/// One search reads at most this many file descriptors (about a microsecond each), then gives up.
const MAX_DESCRIPTORS: usize = 64 * 1024;

/// So much of a command line is kept.
const MAX_COMMAND_BYTES: u64 = 16 * 1024;

/// So many arguments of a command line are kept.
const MAX_ARGUMENTS: usize = 1024;

/// One listener for each worker, over which the kernel spreads connections.
///
/// `SO_REUSEPORT` alone would also let us join the listeners of another proxy of the same user, and
/// each would get half of the other's connections. So the first socket takes the port for itself;
/// only once it listens, and the port is ours, does it open the port to its siblings.
/// From then on the kernel would also let in a stranger of the same user that asks for
/// `SO_REUSEPORT` itself; another proxy doesn't, because its first socket is exclusive too.
pub(super) fn bind_tcp(
    address: SocketAddr,
    workers: usize,
    transparent: bool,
) -> io::Result<Vec<TcpListener>> {
    let socket = super::socket_to_bind(address)?;
    if transparent {
        make_transparent(&socket, address);
    }
    let first = super::bind_and_listen(socket, address)?;
    let address = first.local_addr()?;
    SockRef::from(&first).set_reuse_port(true)?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        let socket = super::socket_to_bind(address)?;
        socket.set_reuse_port(true)?;
        if transparent {
            make_transparent(&socket, address);
        }
        listeners.push(super::bind_and_listen(socket, address)?);
    }
    Ok(listeners)
}

/// Lets a listener take connections to addresses that are not ours (TPROXY). That needs
/// `CAP_NET_ADMIN`; without it the listener still takes what REDIRECT sends.
fn make_transparent(socket: &Socket, address: SocketAddr) {
    // `[::]` takes IPv4 as well.
    let set = socket.set_ip_transparent_v4(true);
    let set = if address.is_ipv6() {
        set.and(socket.set_ip_transparent_v6(true))
    } else {
        set
    };
    if let Err(error) = set {
        tracing::debug!(%error, "TPROXY needs CAP_NET_ADMIN; REDIRECT works without");
    }
}

/// Where a connection was going before the kernel gave it to us.
pub(super) fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let redirected = match socket.local_addr().ok()?.as_socket()? {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(local) if local.ip().to_ipv4_mapped().is_some() => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    redirected.ok().and_then(|address| address.as_socket())
}

/// Sets `IP_BIND_ADDRESS_NO_PORT`, see ip(7).
#[expect(unsafe_code, reason = "neither std nor socket2 has this socket option")]
pub(super) fn before_bind_for_connect(socket: &TcpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open while `socket` is borrowed, and the kernel only reads the
    // `int` that the pointer and the length describe. Failing leaves the socket as it was.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            mem::size_of_val(&on) as libc::socklen_t,
        );
    }
}

/// The soft `RLIMIT_NOFILE`.
pub(super) fn file_limit() -> Option<u64> {
    file_limits().map(|limits| limits.rlim_cur)
}

/// Sets the soft `RLIMIT_NOFILE` to the hard one.
pub(super) fn raise_file_limit() -> Option<u64> {
    let limits = file_limits()?;
    if limits.rlim_cur < limits.rlim_max {
        set_file_limits(libc::rlimit {
            rlim_cur: limits.rlim_max,
            ..limits
        });
    }
    file_limit()
}

#[expect(unsafe_code, reason = "std has no getrlimit")]
fn file_limits() -> Option<libc::rlimit> {
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limits` is a valid `rlimit` that the call may write to.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) };
    (result == 0).then_some(limits)
}

#[expect(unsafe_code, reason = "std has no setrlimit")]
fn set_file_limits(limits: libc::rlimit) {
    // SAFETY: `limits` is a valid `rlimit` that the call only reads. Failing changes nothing.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) };
}

/// A resolver of its own for each proxy; `None` where `/proc` isn't mounted.
pub(super) fn process_resolver() -> Option<Arc<dyn ProcessResolver>> {
    Stat::read(process::id())?;
    Some(Arc::new(Resolver::default()))
}

/// Finds the client's socket by its addresses, then the process that holds it, then describes it.
#[derive(Default)]
struct Resolver {
    /// Whether sock_diag answers here; asked when it first matters.
    sock_diag: OnceLock<bool>,
    /// The processes that were found last, the latest first. A pid that was reused meanwhile does
    /// no harm: it has to hold the socket.
    recent: Mutex<Vec<u32>>,
    described: Mutex<Descriptions>,
}

impl ProcessResolver for Resolver {
    fn resolve(&self, client: SocketAddr, local: SocketAddr) -> Option<Arc<ProcessInfo>> {
        let inode = self.inode(Tuple::new(client, local)?)?;
        let (pid, stat) = self.holder(inode)?;
        self.describe(pid, stat)
    }
}

impl Resolver {
    /// The inode of the client's socket.
    fn inode(&self, tuple: Tuple) -> Option<u32> {
        match sock_diag::find(tuple) {
            Ok(Some(inode)) => Some(inode),
            // "No such socket" and "no such kernel module" are the same error.
            Ok(None) if *self.sock_diag.get_or_init(sock_diag::is_available) => None,
            _ => proc_net::find(tuple),
        }
    }

    /// The process that holds a socket.
    fn holder(&self, inode: u32) -> Option<(u32, Stat)> {
        let mut search = Search::new(inode);
        let recent = lock(&self.recent).clone();
        let found = recent
            .iter()
            .find_map(|&pid| search.look_into(pid))
            .or_else(|| {
                pids()
                    .into_iter()
                    .filter(|pid| !recent.contains(pid))
                    .find_map(|pid| search.look_into(pid))
            })?;
        let mut recent = lock(&self.recent);
        recent.retain(|&pid| pid != found.0);
        recent.insert(0, found.0);
        recent.truncate(MAX_RECENT);
        Some(found)
    }

    /// Describes the process `pid`, if it's still the one that `stat` was read from.
    fn describe(&self, pid: u32, stat: Stat) -> Option<Arc<ProcessInfo>> {
        if let Some(known) = lock(&self.described).get(pid, &stat, Instant::now()) {
            return Some(known);
        }
        let info = Arc::new(describe(pid, &stat));
        if Stat::read(pid)?.started != stat.started {
            return None;
        }
        lock(&self.described).insert(pid, stat, Arc::clone(&info), Instant::now());
        Some(info)
    }
}

/// Nothing is left half done under these locks, so one that a panic poisoned is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The two ends of a connection as the client's socket has them: both IPv4 or both IPv6, never
/// IPv4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    client: (IpAddr, u16),
    server: (IpAddr, u16),
    /// The interface of link-local addresses, else 0.
    interface: u32,
}

impl Tuple {
    /// `None` when the addresses are of different families: there is no such connection.
    fn new(client: SocketAddr, server: SocketAddr) -> Option<Self> {
        let interface = match (client, server) {
            (SocketAddr::V6(client), SocketAddr::V6(server)) => {
                client.scope_id().max(server.scope_id())
            }
            _ => 0,
        };
        let [client, server] = [client, server].map(|end| (end.ip().to_canonical(), end.port()));
        (client.0.is_ipv4() == server.0.is_ipv4()).then_some(Self {
            client,
            server,
            interface,
        })
    }
}

/// The running processes in the order to search them: the youngest first, as far as pids tell,
/// because a process that just connected often just started. We come last: a proxy has many
/// sockets, and it's seldom its own client.
fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let ourselves = process::id();
    pids.sort_unstable_by_key(|&pid| (pid == ourselves, std::cmp::Reverse(pid)));
    pids
}

/// A search for the process that holds one socket.
struct Search {
    /// What the descriptor's link in `/proc` reads.
    link: OsString,
    /// How many descriptors may still be read.
    budget: usize,
}

impl Search {
    fn new(inode: u32) -> Self {
        Self {
            link: format!("socket:[{inode}]").into(),
            budget: MAX_DESCRIPTORS,
        }
    }

    /// The process's identity, if it holds the socket.
    fn look_into(&mut self, pid: u32) -> Option<(u32, Stat)> {
        if self.budget == 0 {
            return None;
        }
        let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let path = loop {
            self.budget = self.budget.checked_sub(1)?;
            let path = descriptors.next()?.path();
            if self.is_link(&path) {
                break path;
            }
        };
        // The pid may have gone to another process since: what is true after the identity was
        // read is true of that identity.
        let stat = Stat::read(pid)?;
        self.is_link(&path).then_some((pid, stat))
    }

    fn is_link(&self, path: &Path) -> bool {
        fs::read_link(path).is_ok_and(|link| link.as_os_str() == self.link)
    }
}

/// What `/proc/PID/stat` says. The start time tells a process from another one that had its pid
/// before; the name changes when it executes another program.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: Option<u32>,
    /// Clock ticks since boot.
    started: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&read_some(&format!("/proc/{pid}/stat"), 4096)?)
    }

    /// `PID (NAME) STATE PPID …`, where the name may contain anything, parentheses too.
    fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|&b| b == b'(')?;
        let close = line.iter().rposition(|&b| b == b')')?;
        let name = line.get(open.checked_add(1)?..close)?;
        let rest = str::from_utf8(line.get(close.checked_add(1)?..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace().skip(1);
        let parent: u32 = fields.next()?.parse().ok()?;
        // proc_pid_stat(5) counts from 1: the parent is field 4, the start time field 22.
        let started = fields.nth(22 - 4 - 1)?.parse().ok()?;
        Some(Self {
            name: String::from_utf8_lossy(name).into_owned(),
            // 0: the parent is outside of our pid namespace.
            parent: (parent != 0).then_some(parent),
            started,
        })
    }
}

/// Reads what `/proc` shows of a process. What it doesn't show us stays empty.
fn describe(pid: u32, stat: &Stat) -> ProcessInfo {
    let command = read_some(&format!("/proc/{pid}/cmdline"), MAX_COMMAND_BYTES);
    ProcessInfo {
        pid,
        parent_pid: stat.parent,
        parent_name: stat.parent.and_then(Stat::read).map(|parent| parent.name),
        // The kernel's " (deleted)" stays: what is at that path now is another program.
        executable: fs::read_link(format!("/proc/{pid}/exe")).ok(),
        name: Some(stat.name.clone()),
        command: command.as_deref().map(arguments).unwrap_or_default(),
    }
}

/// Splits a command line at its NULs. Those at the end don't count: programs that change their
/// title leave a tail of them.
fn arguments(command: &[u8]) -> Vec<String> {
    let Some(last) = command.iter().rposition(|&b| b != 0) else {
        return Vec::new();
    };
    let command = command.get(..=last).unwrap_or_default();
    command
        .split(|&b| b == 0)
        .take(MAX_ARGUMENTS)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The first `limit` bytes of a file.
fn read_some(path: &str, limit: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// Processes that were described before, at most [`MAX_PROCESSES`].
#[derive(Default)]
struct Descriptions {
    by_pid: HashMap<u32, Description>,
}

struct Description {
    stat: Stat,
    info: Arc<ProcessInfo>,
    until: Instant,
}

impl Descriptions {
    fn get(&self, pid: u32, stat: &Stat, now: Instant) -> Option<Arc<ProcessInfo>> {
        self.by_pid
            .get(&pid)
            .filter(|known| known.stat == *stat && known.until > now)
            .map(|known| Arc::clone(&known.info))
    }

    fn insert(&mut self, pid: u32, stat: Stat, info: Arc<ProcessInfo>, now: Instant) {
        if self.by_pid.len() >= MAX_PROCESSES && !self.by_pid.contains_key(&pid) {
            self.by_pid.retain(|_, known| known.until > now);
            // More processes than that within five minutes: beginning anew costs each of them one
            // description, and keeping an order would cost every hit.
            if self.by_pid.len() >= MAX_PROCESSES {
                self.by_pid.clear();
            }
        }
        let until = now + PROCESS_TTL;
        self.by_pid.insert(pid, Description { stat, info, until });
    }
}

/// Asks the kernel for one socket by its addresses, over netlink: sock_diag(7).
mod sock_diag {
    use super::*;

    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = libc::NLM_F_REQUEST as u16;
    const NLM_F_DUMP: u16 = libc::NLM_F_DUMP as u16;
    const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
    const NLMSG_DONE: u16 = libc::NLMSG_DONE as u16;

    /// `struct nlmsghdr`.
    const HEADER: usize = 16;
    /// `struct nlmsghdr` and `struct inet_diag_req_v2`.
    const REQUEST: usize = HEADER + 56;
    /// Any number: the socket serves one question.
    const SEQUENCE: u32 = 1;

    /// The inode of the client's socket; `None` when this machine has no such socket, or no
    /// process has it any more, or the kernel doesn't know about TCP here (see [`is_available`]).
    pub(super) fn find(tuple: Tuple) -> io::Result<Option<u32>> {
        let mut buffer = [0; 4096];
        let reply = ask(&request(tuple, NLM_F_REQUEST, u32::MAX), &mut buffer)?;
        match field(reply, 4).map(u16::from_ne_bytes) {
            Some(SOCK_DIAG_BY_FAMILY) => parse(reply, tuple).ok_or_else(unexpected),
            Some(NLMSG_ERROR) => match error_code(reply) {
                Some(code) if code == -libc::ENOENT => Ok(None),
                Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                _ => Err(unexpected()),
            },
            _ => Err(unexpected()),
        }
    }

    /// Whether the kernel answers questions about TCP, by asking for a list of the sockets in no
    /// state at all: an empty list, or an error.
    pub(super) fn is_available() -> bool {
        let nobody = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let tuple = Tuple {
            client: nobody,
            server: nobody,
            interface: 0,
        };
        let mut buffer = [0; 4096];
        ask(&request(tuple, NLM_F_REQUEST | NLM_F_DUMP, 0), &mut buffer).is_ok_and(|reply| {
            field(reply, 4).map(u16::from_ne_bytes) == Some(NLMSG_DONE)
                && error_code(reply) == Some(0)
        })
    }

    /// Sends one message and returns the first message that comes back.
    fn ask<'a>(request: &[u8], buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let socket = Socket::new(
            Domain::from(libc::AF_NETLINK),
            Type::DGRAM,
            Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
        )?;
        // The kernel has answered when `send` returns, so there is nothing to wait for.
        socket.set_nonblocking(true)?;
        socket.send(request)?;
        let length = (&socket).read(buffer)?;
        let received = buffer.get(..length).ok_or_else(unexpected)?;
        let claimed = field(received, 0).map(u32::from_ne_bytes);
        let message = claimed
            .and_then(|length| received.get(..usize::try_from(length).ok()?))
            .ok_or_else(unexpected)?;
        match field(message, 8).map(u32::from_ne_bytes) {
            Some(SEQUENCE) => Ok(message),
            _ => Err(unexpected()),
        }
    }

    /// `struct nlmsghdr`, then `struct inet_diag_req_v2`. Numbers are in host order, addresses and
    /// ports in network order.
    pub(super) fn request(tuple: Tuple, flags: u16, states: u32) -> Vec<u8> {
        let family = match tuple.client.0 {
            IpAddr::V4(_) => libc::AF_INET,
            IpAddr::V6(_) => libc::AF_INET6,
        };
        let mut message = Vec::with_capacity(REQUEST);
        message.extend_from_slice(&(REQUEST as u32).to_ne_bytes());
        message.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&SEQUENCE.to_ne_bytes());
        message.extend_from_slice(&0_u32.to_ne_bytes());
        message.extend_from_slice(&[family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
        message.extend_from_slice(&states.to_ne_bytes());
        message.extend_from_slice(&tuple.client.1.to_be_bytes());
        message.extend_from_slice(&tuple.server.1.to_be_bytes());
        message.extend_from_slice(&sixteen(tuple.client.0));
        message.extend_from_slice(&sixteen(tuple.server.0));
        message.extend_from_slice(&tuple.interface.to_ne_bytes());
        // INET_DIAG_NOCOOKIE: whichever socket it is.
        message.extend_from_slice(&[0xff; 8]);
        message
    }

    /// The inode from a `struct nlmsghdr` with a `struct inet_diag_msg`; the outer `None` is a
    /// message that is none, the inner one a socket that isn't the client's.
    pub(super) fn parse(reply: &[u8], tuple: Tuple) -> Option<Option<u32>> {
        let body = reply.get(HEADER..)?;
        let family = i32::from(*body.first()?);
        let port = |at| field(body, at).map(u16::from_be_bytes);
        let address = |at| {
            Some(if family == libc::AF_INET {
                IpAddr::V4(Ipv4Addr::from(field::<4>(body, at)?))
            } else {
                // An IPv6 socket that speaks IPv4 says so with mapped addresses.
                IpAddr::V6(Ipv6Addr::from(field::<16>(body, at)?)).to_canonical()
            })
        };
        let client = (address(8)?, port(4)?);
        let server = (address(24)?, port(6)?);
        let inode = u32::from_ne_bytes(field(body, 68)?);
        // Where there is no connection the kernel answers with a listener on the client's port, if
        // there is one. A socket that no process has any more has inode 0.
        let is_the_clients = (client, server) == (tuple.client, tuple.server) && inode != 0;
        Some(is_the_clients.then_some(inode))
    }

    /// The `int` that `NLMSG_ERROR` and `NLMSG_DONE` carry: 0, or a negative error number.
    fn error_code(reply: &[u8]) -> Option<i32> {
        field(reply, HEADER).map(i32::from_ne_bytes)
    }

    fn sixteen(ip: IpAddr) -> [u8; 16] {
        match ip {
            IpAddr::V4(ip) => {
                let [a, b, c, d] = ip.octets();
                [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
            }
            IpAddr::V6(ip) => ip.octets(),
        }
    }

    fn field<const N: usize>(message: &[u8], at: usize) -> Option<[u8; N]> {
        message.get(at..)?.first_chunk().copied()
    }

    fn unexpected() -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's sock_diag answer is not understood",
        )
    }
}

/// Finds a socket in the lists of `/proc/net`, for a kernel or a sandbox without sock_diag.
mod proc_net {
    use super::*;

    /// The inode of the client's socket.
    pub(super) fn find(tuple: Tuple) -> Option<u32> {
        if !is_ours(tuple.client.0) {
            return None;
        }
        // IPv4 is in both: an IPv6 socket may speak IPv4.
        let lists: &[&str] = match tuple.client.0 {
            IpAddr::V4(_) => &["/proc/net/tcp", "/proc/net/tcp6"],
            IpAddr::V6(_) => &["/proc/net/tcp6"],
        };
        lists
            .iter()
            .filter_map(|list| File::open(list).ok())
            .find_map(|list| find_in(BufReader::new(list), tuple))
    }

    /// Whether the address is one of this machine, without reading a list for every client that
    /// isn't: only such an address can be bound.
    fn is_ours(ip: IpAddr) -> bool {
        ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok() || is_link_local(ip)
    }

    /// Can't be bound without its interface, so it counts as ours.
    fn is_link_local(ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
    }

    pub(super) fn find_in(mut list: impl BufRead, tuple: Tuple) -> Option<u32> {
        let mut line = String::new();
        loop {
            line.clear();
            if list.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some((client, server, inode)) = parse(&line)
                && (client, server) == (tuple.client, tuple.server)
            {
                // 0: no process has it any more.
                return (inode != 0).then_some(inode);
            }
        }
    }

    type Line = ((IpAddr, u16), (IpAddr, u16), u32);

    /// `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`
    fn parse(line: &str) -> Option<Line> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let client = end(fields.next()?)?;
        let server = end(fields.next()?)?;
        let inode = fields.nth(6)?.parse().ok()?;
        Some((client, server, inode))
    }

    /// `ADDRESS:PORT` in hexadecimal. The address is printed as numbers of 32 bits, each of which
    /// has network order in memory.
    fn end(text: &str) -> Option<(IpAddr, u16)> {
        let (address, port) = text.split_once(':')?;
        let word = |at: usize| {
            let digits = address.get(at..at.checked_add(8)?)?;
            Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
        };
        let ip = match address.len() {
            8 => IpAddr::from(word(0)?),
            32 => {
                let mut octets = [0; 16];
                for (index, chunk) in octets.chunks_exact_mut(4).enumerate() {
                    chunk.copy_from_slice(&word(index.checked_mul(8)?)?);
                }
                IpAddr::from(octets).to_canonical()
            }
            _ => return None,
        };
        Some((ip, u16::from_str_radix(port, 16).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::sync::{RwLock, RwLockReadGuard};
    use std::thread;

    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const MANY_SECONDS: Duration = Duration::from_secs(30);

    /// A connection on this machine: the client's end and the accepted end.
    fn connect(listen: SocketAddr, reach: IpAddr) -> io::Result<(TcpStream, TcpStream)> {
        let listener = listener(listen)?;
        let client = TcpStream::connect((reach, listener.local_addr()?.port()))?;
        Ok((client, listener.accept()?.0))
    }

    /// Gives up waiting after a while instead of hanging the tests.
    fn listener(address: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(address)?;
        SockRef::from(&listener).set_read_timeout(Some(MANY_SECONDS))?;
        Ok(listener)
    }

    fn ends(accepted: &TcpStream) -> (SocketAddr, SocketAddr) {
        (
            accepted.peer_addr().unwrap(),
            accepted.local_addr().unwrap(),
        )
    }

    fn tuple(accepted: &TcpStream) -> Tuple {
        let (client, local) = ends(accepted);
        Tuple::new(client, local).unwrap()
    }

    /// Ends the process also when the test fails.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A child has all our sockets until it executes its program: whoever counts on being the only
    /// one to have a socket reads, whoever starts a child writes.
    static STARTING: RwLock<()> = RwLock::new(());

    fn nobody_starts() -> RwLockReadGuard<'static, ()> {
        STARTING.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shell that connects to `port` and waits for a line.
    fn shell(port: u16) -> Running {
        let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read x <&3");
        Running(
            Command::new("bash")
                .args(["-c", &script, "a name", ""])
                .stdin(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    #[test]
    fn connections_spread_over_the_listeners() {
        const CONNECTIONS: usize = 96;
        let listeners = bind_tcp(LOOPBACK, 3, false).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let mut accepted = vec![0; listeners.len()];
        let deadline = Instant::now() + MANY_SECONDS;
        while accepted.iter().sum::<usize>() < clients.len() {
            assert!(Instant::now() < deadline, "{accepted:?}");
            for (listener, count) in listeners.iter().zip(&mut accepted) {
                *count += usize::from(listener.accept().is_ok());
            }
            thread::yield_now();
        }
        assert!(accepted.iter().all(|&count| count > 0), "{accepted:?}");
    }

    #[test]
    fn a_port_that_others_share_is_in_use() {
        let socket = super::super::socket_to_bind(LOOPBACK).unwrap();
        socket.set_reuse_port(true).unwrap();
        let theirs = super::super::bind_and_listen(socket, LOOPBACK).unwrap();
        let error = bind_tcp(theirs.local_addr().unwrap(), 2, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_restart_gets_the_port_although_connections_linger() {
        let _alone = nobody_starts();
        let listeners = bind_tcp(LOOPBACK, 2, false).unwrap();
        let address = listeners[0].local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let deadline = Instant::now() + MANY_SECONDS;
        let accepted = loop {
            assert!(Instant::now() < deadline);
            match listeners.iter().find_map(|l| l.accept().ok()) {
                Some((accepted, _)) => break accepted,
                None => thread::yield_now(),
            }
        };
        drop(listeners);
        // Once while the connection is open, and once when it waits out its end on our side.
        drop(bind_tcp(address, 2, false).unwrap());
        drop(accepted);
        drop(client);
        bind_tcp(address, 2, false).unwrap();
    }

    #[test]
    fn the_port_is_chosen_at_connect() {
        for (socket, ip) in [
            (TcpSocket::new_v4(), IpAddr::V4(Ipv4Addr::LOCALHOST)),
            (TcpSocket::new_v6(), IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            // A machine may have no IPv6.
            let Ok(socket) = socket else { continue };
            before_bind_for_connect(&socket);
            if socket.bind((ip, 0).into()).is_ok() {
                assert_eq!(socket.local_addr().unwrap().port(), 0);
            } else {
                assert!(ip.is_ipv6());
            }
        }
    }

    #[test]
    fn the_file_limit_rises_to_the_hard_limit() {
        let before = file_limits().unwrap();
        set_file_limits(libc::rlimit {
            rlim_cur: before.rlim_max - 1,
            ..before
        });
        assert_eq!(file_limit(), Some(before.rlim_max - 1));
        assert_eq!(raise_file_limit(), Some(before.rlim_max));
        assert_eq!(file_limit(), Some(before.rlim_max));
        set_file_limits(before);
    }

    #[test]
    fn finds_its_own_process() {
        let _alone = nobody_starts();
        let (_client, accepted) = connect(LOOPBACK, LOOPBACK.ip()).unwrap();
        let (client, local) = ends(&accepted);
        let resolver = process_resolver().unwrap();
        let info = resolver.resolve(client, local).unwrap();
        assert_eq!(info.pid, process::id());
        assert_eq!(info.executable, std::env::current_exe().ok());
        assert_eq!(info.command, std::env::args().collect::<Vec<_>>());
        assert_eq!(info.parent_pid, Some(std::os::unix::process::parent_id()));
        // The second time it's known.
        let again = resolver.resolve(client, local).unwrap();
        assert!(Arc::ptr_eq(&info, &again));
    }

    #[test]
    fn finds_a_child_process() {
        let resolver = process_resolver().unwrap();
        let listener = listener(LOOPBACK).unwrap();
        let port = listener.local_addr().unwrap().port();
        // The second child is found although another process was found before it.
        for _ in 0..2 {
            let child = shell(port);
            let (accepted, _) = listener.accept().unwrap();
            let (client, local) = ends(&accepted);
            let info = resolver.resolve(client, local).unwrap();
            assert_eq!(info.pid, child.0.id());
            assert_eq!(info.name.as_deref(), Some("bash"));
            assert_eq!(info.parent_pid, Some(process::id()));
            assert_eq!(
                info.parent_name,
                Some(Stat::read(process::id()).unwrap().name)
            );
            let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read x <&3");
            assert_eq!(info.command, ["bash", "-c", &script, "a name"]);
            assert!(info.executable.as_ref().unwrap().is_absolute());
            drop(child);
            assert_eq!(resolver.resolve(client, local), None);
        }
    }

    #[test]
    fn finds_nobody_for_an_unknown_connection() {
        let _alone = nobody_starts();
        let resolver = process_resolver().unwrap();
        let (client_end, accepted) = connect(LOOPBACK, LOOPBACK.ip()).unwrap();
        let (client, local) = ends(&accepted);
        // The kernel would answer with this listener.
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let listening = listener.local_addr().unwrap().port();
        for client in [
            "192.0.2.1:50000".parse().unwrap(),
            "[2001:db8::1]:50000".parse().unwrap(),
            SocketAddr::new(client.ip(), listening),
        ] {
            assert_eq!(resolver.resolve(client, local), None, "{client}");
        }
        let v6 = "[::1]:50000".parse().unwrap();
        assert_eq!(
            resolver.resolve("[2001:db8::1]:50000".parse().unwrap(), v6),
            None
        );
        // A closed client is nobody's socket any more.
        drop(client_end);
        assert_eq!(resolver.resolve(client, local), None);
    }

    #[test]
    fn every_family_is_found_in_both_places() {
        let _alone = nobody_starts();
        let v4 = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let v6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        let any_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        for (listen, reach) in [
            (v4, v4),
            (v6, v6),
            // An IPv6 client socket that speaks IPv4, to an IPv4 listener and to one for both.
            (v4, mapped),
            (any_v6, mapped),
            (any_v6, v4),
        ] {
            let connection = connect((listen, 0).into(), reach);
            let (_client, accepted) = match connection {
                Ok(connection) => connection,
                // A machine may have no IPv6.
                Err(error) => {
                    assert!(listen.is_ipv6() || reach.is_ipv6(), "{error}");
                    continue;
                }
            };
            let tuple = tuple(&accepted);
            let inode = proc_net::find(tuple);
            assert!(inode.is_some(), "{listen} {reach}");
            if sock_diag::is_available() {
                assert_eq!(sock_diag::find(tuple).unwrap(), inode);
            }
            let (client, local) = ends(&accepted);
            let info = Resolver::default().resolve(client, local).unwrap();
            assert_eq!(info.pid, process::id());
        }
    }

    #[test]
    fn proc_net_does_not_search_for_clients_from_elsewhere() {
        let ends = |client: &str| {
            Tuple::new(client.parse().unwrap(), "127.0.0.1:80".parse().unwrap()).unwrap()
        };
        assert_eq!(proc_net::find(ends("192.0.2.1:50000")), None);
        assert_eq!(proc_net::find(ends("127.0.0.1:1")), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn proc_net_lines_are_read() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0\n\
            \x20  1: 0100007F:C350 0200007F:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 22 1 0\n\
            \x20  2: 0100007F:C351 0200007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0\n\
            \x20  3: 0000000000000000FFFF00000100007F:C352 0000000000000000FFFF00000200007F:1F90 01 0:0 0:0 0 0 0 33 1\n\
            \x20  4: B80D0120000000000000000001000000:C353 B80D0120000000000000000002000000:1F90 01 0:0 0:0 0 0 0 44 1\n\
            broken: 0100007F 0200007F:1F90 01 0:0 0:0 0 0 0 55 1\n";
        for (client, local, inode) in [
            ("127.0.0.1:50000", "127.0.0.2:8080", Some(22)),
            ("127.0.0.1:50001", "127.0.0.2:8080", None),
            ("127.0.0.1:50002", "127.0.0.2:8080", Some(33)),
            ("[2001:db8::1]:50003", "[2001:db8::2]:8080", Some(44)),
            ("127.0.0.1:50004", "127.0.0.2:8080", None),
            ("127.0.0.2:8080", "127.0.0.1:50000", None),
        ] {
            let tuple = Tuple::new(client.parse().unwrap(), local.parse().unwrap()).unwrap();
            assert_eq!(proc_net::find_in(list.as_bytes(), tuple), inode, "{client}");
        }
    }

    #[test]
    fn sock_diag_questions_carry_the_interface_of_link_local_addresses() {
        let client = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 0x1234, 0, 7);
        let local = std::net::SocketAddrV6::new("fe80::2".parse().unwrap(), 0x5678, 0, 7);
        let tuple = Tuple::new(client.into(), local.into()).unwrap();
        let message = sock_diag::request(tuple, 1, 2);
        assert_eq!(message.len(), 72);
        assert_eq!(message[16..18], [10, 6]);
        assert_eq!(message[24..28], [0x12, 0x34, 0x56, 0x78]);
        assert_eq!(message[28..30], [0xfe, 0x80]);
        assert_eq!(message[60..64], 7_u32.to_ne_bytes());
    }

    #[test]
    fn sock_diag_answers_may_be_cut_anywhere() {
        let tuple = Tuple::new(
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        )
        .unwrap();
        let mut answer = vec![0; 16 + 72];
        answer[16] = 2;
        answer[20..24].copy_from_slice(&[0, 1, 0, 2]);
        answer[24..28].copy_from_slice(&[127, 0, 0, 1]);
        answer[40..44].copy_from_slice(&[127, 0, 0, 1]);
        answer[84..88].copy_from_slice(&9_u32.to_ne_bytes());
        assert_eq!(sock_diag::parse(&answer, tuple), Some(Some(9)));
        for length in 0..answer.len() {
            assert_eq!(sock_diag::parse(&answer[..length], tuple), None);
        }
        answer[21] = 3;
        assert_eq!(sock_diag::parse(&answer, tuple), Some(None));
    }

    #[test]
    fn a_process_may_have_any_name() {
        let rest = "S 41 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 10 11\n";
        for name in ["cat", "a b", ") R 1 (", "", "\u{e4}"] {
            let stat = Stat::parse(format!("42 ({name}) {rest}").as_bytes()).unwrap();
            assert_eq!(stat.name, name);
            assert_eq!(stat.parent, Some(41));
            assert_eq!(stat.started, 9876);
        }
        for broken in ["", "42", ")(", "42 (cat", "42 (cat) S 41", "42 (cat) S x"] {
            assert_eq!(Stat::parse(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn command_lines_are_split_and_bounded() {
        assert_eq!(arguments(b""), Vec::<String>::new());
        assert_eq!(arguments(b"\0\0"), Vec::<String>::new());
        assert_eq!(arguments(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert_eq!(arguments(b"title of a daemon\0\0\0"), ["title of a daemon"]);
        assert_eq!(arguments(b"\xff"), ["\u{fffd}"]);
        let many = b"a\0".repeat(MAX_ARGUMENTS * 2);
        assert_eq!(arguments(&many).len(), MAX_ARGUMENTS);
    }

    #[test]
    fn descriptions_end_with_the_process_and_with_time() {
        let stat = |name: &str, started| Stat {
            name: name.into(),
            parent: Some(1),
            started,
        };
        let first = stat("bash", 100);
        let info = Arc::new(describe(process::id(), &first));
        let now = Instant::now();
        let mut known = Descriptions::default();
        known.insert(7, first.clone(), Arc::clone(&info), now);
        assert!(known.get(7, &first, now).is_some());
        assert!(known.get(8, &first, now).is_none());
        // The pid was reused.
        assert!(known.get(7, &stat("bash", 101), now).is_none());
        // The process executed another program.
        assert!(known.get(7, &stat("curl", 100), now).is_none());
        assert!(known.get(7, &first, now + PROCESS_TTL).is_none());

        for pid in 0..5000 {
            known.insert(pid, first.clone(), Arc::clone(&info), now);
            assert!(known.by_pid.len() <= MAX_PROCESSES);
            assert!(known.get(pid, &first, now).is_some());
        }
    }

    #[test]
    fn a_search_ends_when_its_budget_is_used_up() {
        let (client, accepted) = connect(LOOPBACK, LOOPBACK.ip()).unwrap();
        let inode = proc_net::find(tuple(&accepted)).unwrap();
        let mut search = Search::new(inode);
        assert!(search.look_into(process::id()).is_some());
        search.budget = 1;
        assert!(search.look_into(process::id()).is_none());
        assert!(search.look_into(process::id()).is_none());
        assert_eq!(search.budget, 0);
        drop(client);
    }
}

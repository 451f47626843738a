//! Other people's proxies.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::origin::free_ports;
use crate::process::{Process, command};

/// How often a port that was free may turn out to be taken when the program wants it.
const ATTEMPTS: usize = 5;

/// A forward proxy from Debian's packages, on a free port.
pub struct ForwardProxy {
    process: Process,
    address: SocketAddr,
    _dir: TempDir,
}

impl ForwardProxy {
    /// tinyproxy, an HTTP proxy. `lines` are added to its configuration.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    pub fn tinyproxy(lines: &str) -> Self {
        let [address] = free_ports();
        Self::tinyproxy_at(address, lines)
            .or_else(|| {
                (1..ATTEMPTS).find_map(|_| {
                    let [address] = free_ports();
                    Self::tinyproxy_at(address, lines)
                })
            })
            .expect("tinyproxy starts")
    }

    /// The same at an address that somebody else has been told already; `None` if it is taken.
    ///
    /// # Panics
    /// If its files can't be written.
    #[must_use]
    pub fn tinyproxy_at(address: SocketAddr, lines: &str) -> Option<Self> {
        Self::start(address, |dir| {
            let file = dir.join("tinyproxy.conf");
            let (host, port) = (address.ip(), address.port());
            let own = format!("Listen {host}\nPort {port}\nTimeout 60\nLogLevel Info\n");
            fs::write(&file, own + lines).unwrap();
            let mut tinyproxy = command("tinyproxy");
            tinyproxy.arg("-d").arg("-c").arg(file);
            tinyproxy
        })
    }

    /// microsocks, a SOCKS5 proxy, with arguments of the test's own.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    pub fn microsocks(arguments: &[&str]) -> Self {
        (0..ATTEMPTS)
            .find_map(|_| {
                let [address] = free_ports();
                Self::start(address, |_| {
                    let mut microsocks = command("microsocks");
                    microsocks
                        .args(["-i", &address.ip().to_string()])
                        .args(["-p", &address.port().to_string()])
                        .args(arguments);
                    microsocks
                })
            })
            .expect("microsocks starts")
    }

    /// squid, with `lines` of the test's own in its configuration. It keeps nothing.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    pub fn squid(lines: &str) -> Self {
        (0..ATTEMPTS)
            .find_map(|_| {
                let [address] = free_ports();
                Self::start(address, |dir| {
                    // Started as root it becomes somebody else, who writes here as well.
                    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
                    let file = dir.join("squid.conf");
                    let shown = dir.display();
                    let own = format!(
                        "http_port {address}\npid_filename {shown}/squid.pid\ncoredump_dir {shown}\n\
                         cache_log {shown}/cache.log\naccess_log none\nnetdb_filename none\n\
                         visible_hostname localhost\nhttp_access allow all\ncache deny all\n\
                         pinger_enable off\nshutdown_lifetime 1 seconds\n"
                    );
                    fs::write(&file, own + lines).unwrap();
                    let mut squid = command("squid");
                    // In the foreground, in one process, with what goes wrong on standard error.
                    squid.args(["-N", "-d", "1", "-f"]).arg(file);
                    squid
                })
            })
            .expect("squid starts")
    }

    fn start(
        address: SocketAddr,
        command: impl FnOnce(&Path) -> std::process::Command,
    ) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start(command(dir.path()));
        let patience = Duration::from_secs(5);
        process
            .becomes(|| TcpStream::connect_timeout(&address, patience).is_ok())
            .then_some(Self {
                process,
                address,
                _dir: dir,
            })
    }

    /// A free address, for a proxy that somebody must know before it starts.
    pub fn free_address() -> SocketAddr {
        let [address] = free_ports();
        address
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process, for what it writes.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

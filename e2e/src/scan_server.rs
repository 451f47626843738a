//! The scanners for other programs.

use std::net::SocketAddr;

use crate::LIMIT;
use crate::process::{Finished, Process, command};
use crate::tollgate::binary;

/// A running `tollgate scan-server` on a free port.
pub struct ScanServer {
    process: Process,
    icap: SocketAddr,
    http: SocketAddr,
}

impl ScanServer {
    /// Starts it with these arguments beside `--icap` and `--http`, and waits for the
    /// addresses that it prints.
    ///
    /// # Panics
    /// If it doesn't start.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let mut tollgate = command(binary());
        tollgate
            .args([
                "scan-server",
                "--icap",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
            ])
            .args(arguments);
        let process = Process::start(tollgate);
        let (icap, http) = process.wait_stderr(LIMIT, "where it listens", |text| {
            let between = |begin: &str, end: &str| {
                let (_, rest) = text.split_once(begin)?;
                rest.split_once(end)?.0.parse().ok()
            };
            Some((between("icap://", "/reqmod")?, between("http://", "/scan")?))
        });
        Self {
            process,
            icap,
            http,
        }
    }

    /// Where it speaks ICAP.
    #[must_use]
    pub fn icap(&self) -> SocketAddr {
        self.icap
    }

    /// The URL of a path of its HTTP server.
    #[must_use]
    pub fn http(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// The process, for what it writes.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it in good order.
    ///
    /// # Panics
    /// If it doesn't end in time.
    #[must_use]
    pub fn end(self) -> Finished {
        self.process.signal("TERM");
        self.process.finish(LIMIT)
    }
}

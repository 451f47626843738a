//! Small servers in Python, in `e2e/programs/`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::LIMIT;
use crate::process::{Process, command};
use crate::programs::python_venv;

/// A server that was written for these tests, on a port of its own choice.
///
/// Needs `python-venv`, see [`require!`](crate::require).
pub struct Script {
    _process: Process,
    port: u16,
}

impl Script {
    /// Starts `e2e/programs/NAME` with these arguments, and waits for its port: the first line that it prints.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn start<A: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut python = command(&python_venv().to_string_lossy());
        python.arg(Self::path(name)).args(arguments);
        let process = Process::start(python);
        let port = process.wait_stdout(LIMIT, "its port", |text| {
            let (line, _) = text.split_once('\n')?;
            line.trim().parse().ok()
        });
        Self {
            _process: process,
            port,
        }
    }

    /// Where such a program lies, for those that are clients.
    pub fn path(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("programs")
            .join(name)
    }

    /// The port that it listens on, of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `localhost:PORT`.
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

//! Programs that a test starts.

use std::env;
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{LIMIT, programs};

/// What would make a client take another way, trust something else, or write differently than the test says; and all
/// that begins with `TOLLGATE_`.
const FOREIGN: [&str; 20] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GIT_SSL_NO_VERIFY",
    "NODE_EXTRA_CA_CERTS",
    "NODE_OPTIONS",
    "NODE_TLS_REJECT_UNAUTHORIZED",
    "NODE_USE_ENV_PROXY",
    "JAVA_TOOL_OPTIONS",
    "CLICOLOR_FORCE",
];

/// A command in an environment that says nothing about proxies, authorities or Tollgate. `program` is found as
/// [`programs::find`] does, or is a path.
pub fn command(program: &str) -> Command {
    let mut command = match programs::find(program) {
        Some(path) => Command::new(path),
        None => Command::new(program),
    };
    let own = env::vars_os().map(|(name, _)| name);
    for name in own.filter(|name| name.as_encoded_bytes().starts_with(b"TOLLGATE_")) {
        command.env_remove(name);
    }
    for name in FOREIGN {
        command.env_remove(name);
    }
    command
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0");
    command
}

/// A running program, in a process group of its own that is killed when this is dropped. What it writes is kept, and shown
/// when the test fails.
pub struct Process {
    name: String,
    pid: u32,
    ended: Receiver<io::Result<ExitStatus>>,
    status: Option<ExitStatus>,
    stdout: Captured,
    stderr: Captured,
}

/// A program that has ended.
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// All it wrote to standard output.
    pub stdout: Vec<u8>,
    /// All it wrote to standard error.
    pub stderr: String,
}

impl Process {
    /// Starts it, with nothing on standard input.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(command: Command) -> Self {
        Self::start_with_input(command, Vec::new())
    }

    /// Starts it, with `input` on standard input, and then its end.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_with_input(mut command: Command, input: Vec<u8>) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let stdin = if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        };
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("can't start {name}: {error}"));
        if let Some(mut stdin) = child.stdin.take() {
            // A program may end without reading all of it; its output then says why.
            thread::spawn(move || stdin.write_all(&input));
        }
        let stdout = Captured::read(child.stdout.take().expect("is piped"));
        let stderr = Captured::read(child.stderr.take().expect("is piped"));
        let pid = child.id();
        let (tell, ended) = mpsc::channel();
        thread::spawn(move || tell.send(child.wait()));
        Self {
            name,
            pid,
            ended,
            status: None,
            stdout,
            stderr,
        }
    }

    /// Starts a program and waits for its end.
    ///
    /// # Panics
    /// If it can't be started, or takes longer than `limit`.
    pub fn run(command: Command, limit: Duration) -> Finished {
        Self::start(command).finish(limit)
    }

    /// Waits for its end, and for the end of its output.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let deadline = Instant::now() + limit;
        let status = match self.ended.recv_timeout(limit) {
            Ok(status) => status.expect("a child can be waited for"),
            Err(_) => panic!("{} did not end within {limit:?}", self.name),
        };
        self.status = Some(status);
        for output in [&self.stdout, &self.stderr] {
            if output
                .wait(deadline, |_, ended| ended.then_some(()))
                .is_none()
            {
                // As long as the group has members, its number is nobody else's.
                kill("KILL", &format!("-{}", self.pid));
                panic!("{} left someone behind who holds its output", self.name);
            }
        }
        Finished {
            status,
            stdout: self.stdout.lock().bytes.clone(),
            stderr: self.stderr.text(),
        }
    }

    /// Whether it has ended by now, or does within `patience`.
    pub fn has_ended(&mut self, patience: Duration) -> bool {
        if self.status.is_none()
            && let Ok(Ok(status)) = self.ended.recv_timeout(patience)
        {
            self.status = Some(status);
        }
        self.status.is_some()
    }

    /// Waits until it is `ready`, which is asked again and again; `false` when it has ended instead, or takes too long.
    pub fn becomes(&mut self, ready: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + LIMIT;
        // Its end would be news, and else there is time for another try.
        while Instant::now() < deadline && !self.has_ended(Duration::from_millis(10)) {
            if ready() {
                return true;
            }
        }
        false
    }

    /// Sends a signal by its name without SIG.
    ///
    /// # Panics
    /// If there is no such process any more.
    pub fn signal(&self, name: &str) {
        let target = self.pid.to_string();
        assert!(kill(name, &target), "can't send SIG{name} to {}", self.name);
    }

    /// Waits until standard output, as far as it is there, satisfies `find`.
    ///
    /// # Panics
    /// If it doesn't within `limit`; `what` says what was expected.
    pub fn wait_stdout<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> T {
        self.wait_output(&self.stdout, limit, what, find)
    }

    /// Waits until standard error, as far as it is there, satisfies `find`.
    ///
    /// # Panics
    /// If it doesn't within `limit`; `what` says what was expected.
    pub fn wait_stderr<T>(
        &self,
        limit: Duration,
        what: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> T {
        self.wait_output(&self.stderr, limit, what, find)
    }

    fn wait_output<T>(
        &self,
        output: &Captured,
        limit: Duration,
        what: &str,
        find: impl Fn(&str) -> Option<T>,
    ) -> T {
        output
            .wait(Instant::now() + limit, |bytes, _| {
                find(&String::from_utf8_lossy(bytes))
            })
            .unwrap_or_else(|| panic!("{} never wrote {what}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended(Duration::ZERO) {
            kill("KILL", &format!("-{}", self.pid));
            // So that it is gone, and has let go of its port and folder, when the test ends.
            self.has_ended(Duration::from_secs(10));
        }
        if thread::panicking() {
            let _ = writeln!(
                io::stderr(),
                "---- {} wrote to standard output ----\n{}\n---- and to standard error ----\n{}",
                self.name,
                self.stdout.text(),
                self.stderr.text()
            );
        }
    }
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself, if the program ended with exit code 0.
    ///
    /// # Panics
    /// If it didn't; with its output.
    #[track_caller]
    pub fn success(self) -> Self {
        assert!(
            self.status.success(),
            "ended with {}\n---- standard output ----\n{}\n---- standard error ----\n{}",
            self.status,
            self.text(),
            self.stderr
        );
        self
    }
}

/// Sends a signal, to a whole group if the target has a minus sign. The shell's own command, as the system call is unsafe
/// in Rust.
fn kill(signal: &str, target: &str) -> bool {
    Command::new("sh")
        .args(["-c", "kill -s \"$1\" -- \"$2\"", "sh", signal, target])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A stream that is read to its end by a thread.
struct Captured {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    fn read(mut stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let captured = Self {
            shared: Arc::clone(&shared),
        };
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                let count = stream.read(&mut buffer).unwrap_or(0);
                let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend_from_slice(&buffer[..count]);
                state.ended = count == 0;
                shared.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        captured
    }

    /// Waits until `find` finds something in what was read so far; `None` at the deadline, or when nothing more will come.
    fn wait<T>(&self, deadline: Instant, find: impl Fn(&[u8], bool) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state.bytes, state.ended) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

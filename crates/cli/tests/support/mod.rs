//! An HTTPS origin, and the command itself, for the tests of this crate.
#![allow(
    dead_code,
    reason = "each test file is its own crate and uses a part of this"
)]

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;
use tollgate_ca::{Authority, AuthorityParams, LeafRequest};

/// The longest that anything here is waited for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An HTTPS server on localhost that answers every request with JSON about it, and closes.
pub struct Origin {
    /// Where it listens.
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    dir: TempDir,
}

impl Origin {
    pub fn start() -> Self {
        let authority = Authority::generate(&AuthorityParams::default()).unwrap();
        let leaf = authority.mint(&LeafRequest::new("localhost")).unwrap();
        let resolver = rustls::sign::SingleCertAndKey::from(leaf.certified.as_ref().clone());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        let config = Arc::new(config);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.cert_pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let config = Arc::clone(&config);
                thread::spawn(move || answer(stream, config));
            }
        });
        Self {
            address,
            accepted,
            dir,
        }
    }

    /// The file with the authority that signed it.
    pub fn ca(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// How many connections came.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }
}

/// Failures here are failures at the client, which the test sees.
fn answer(stream: TcpStream, config: Arc<ServerConfig>) -> Option<()> {
    let connection = ServerConnection::new(config).ok()?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut length = 0;
    let mut first = String::new();
    stream.read_line(&mut first).ok()?;
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        head.push(line.to_owned());
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    std::io::copy(&mut stream.by_ref().take(length), &mut std::io::sink()).ok()?;
    let target = first.split(' ').nth(1)?;
    // What it was asked for, on request.
    let head = match target.contains("head") {
        true => format!(",\"head\":{}", serde_json::to_string(&head).ok()?),
        false => String::new(),
    };
    let body = format!("{{\"path\":\"{target}\",\"received\":{length}{head}}}");
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let stream = stream.get_mut();
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()?;
    stream.conn.send_close_notify();
    stream.flush().ok()
}

/// The command with an empty home and a clean environment.
pub fn tollgate(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("TMPDIR", home);
    command
}

/// Runs the command to its end.
pub fn output(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    tollgate(home.path()).args(arguments).output().unwrap()
}

/// Exit code and the only line on standard error.
pub fn failure(arguments: &[&str]) -> (i32, String) {
    let output = output(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code().unwrap(), text.trim_end().to_owned())
}

/// The proxy, running.
pub struct Proxy {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    stdout: Option<BufReader<ChildStdout>>,
    /// Its home folder.
    pub home: TempDir,
    /// Where it listens.
    pub address: OnceLock<String>,
}

impl Proxy {
    /// Starts it on a free port, and waits until it says where.
    pub fn start(arguments: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut child = tollgate(home.path())
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let stdout = child.stdout.take().map(BufReader::new);
        let mut proxy = Self {
            child,
            lines,
            seen: Vec::new(),
            stdout,
            home,
            address: OnceLock::new(),
        };
        let line = proxy.wait_for("listens on http://");
        let (_, address) = line.split_once("http://").unwrap();
        proxy.address.set(address.trim().to_owned()).unwrap();
        proxy
    }

    /// Its process id.
    #[allow(dead_code, reason = "not every test program needs it")]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn address(&self) -> &str {
        self.address.get().unwrap()
    }

    /// The certificate in the default folder.
    pub fn cert(&self) -> PathBuf {
        self.home
            .path()
            .join(".local/share/tollgate/tollgate-ca-cert.pem")
    }

    /// Waits for a line on standard error that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!("no {text:?} ({error}) in {:#?}", self.seen),
            }
        }
    }

    /// The next line on standard output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What is left on standard output when the proxy has ended.
    pub fn rest(&mut self) -> String {
        let mut rest = String::new();
        self.stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        rest
    }

    /// Closes our end of its standard output.
    pub fn hang_up(&mut self) {
        self.stdout = None;
    }

    /// Gets a page through it, with curl.
    pub fn curl(&self, url: &str, more: &[&str]) -> Output {
        Command::new("curl")
            .args(["--silent", "--show-error", "--noproxy", "", "--proxy"])
            .arg(self.address())
            .arg("--cacert")
            .arg(self.cert())
            .args(more)
            .arg(url)
            .output()
            .unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end, and for the last of its standard error.
    pub fn wait(&mut self) -> (ExitStatus, Vec<String>) {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:#?}", self.seen),
            }
        }
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program is there to test with.
pub fn has(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        println!("skipped: no {program} here");
    }
    found
}

//! The binary under test.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde_json::Value;
use tempfile::TempDir;

use crate::LIMIT;
use crate::process::{Finished, Process, command};
use crate::programs::profile_dir;

/// A running `tollgate`, with an authority of its own in a folder of its own.
pub struct Tollgate {
    process: Process,
    listeners: Vec<Listener>,
    cert: PathBuf,
    data: TempDir,
}

/// What it says about a listener.
struct Listener {
    mode: String,
    at: String,
}

impl Tollgate {
    /// Starts it on a free port with these arguments beside `--listen` and `--data-dir`, and waits for the address that it
    /// prints.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn start<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Self {
        let mut tollgate = command(binary());
        tollgate.args(["--listen", "127.0.0.1:0"]).args(arguments);
        Self::launch(tollgate)
    }

    /// Starts it so that it trusts an origin's authority, the certificate in the file `ca`.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn trusting(ca: &Path, arguments: &[&str]) -> Self {
        let trust = [OsStr::new("--upstream-trusted-ca"), ca.as_os_str()];
        Self::start(trust.into_iter().chain(arguments.iter().map(OsStr::new)))
    }

    /// The same with a listener for each of these modes, and no other. A mode says where it listens.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn with_modes<M: AsRef<str>>(ca: &Path, modes: &[M], arguments: &[&str]) -> Self {
        let mut tollgate = command(binary());
        for mode in modes {
            tollgate.args(["--mode", mode.as_ref()]);
        }
        tollgate
            .arg("--upstream-trusted-ca")
            .arg(ca)
            .args(arguments);
        Self::launch(tollgate)
    }

    /// Runs a command that is, or becomes, `tollgate`; it gets `--data-dir`.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn launch(mut tollgate: Command) -> Self {
        let data = tempfile::tempdir().unwrap();
        tollgate.arg("--data-dir").arg(data.path());
        let process = Process::start(tollgate);
        let (listeners, cert) = process.wait_stderr(LIMIT, "where it listens", |text| {
            let (_, rest) = text.split_once("listens on")?;
            // The line after the certificate's: the path is printed in full by then.
            let (before, _) = rest.split_once("SHA-256")?;
            let (listeners, path) = before.split_once("  certificate ")?;
            let path = path.trim().trim_end_matches("(new)").trim_end();
            Some((listeners_of(listeners), PathBuf::from(path)))
        });
        Self {
            process,
            listeners,
            cert,
            data,
        }
    }

    /// Its folder, for files that it is to find there while it runs.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Where the listener is whose mode begins so: `ADDRESS:PORT`, or `unix:PATH`.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn at(&self, mode: &str) -> &str {
        let found = self.listeners.iter().find(|one| one.mode.starts_with(mode));
        &found
            .unwrap_or_else(|| panic!("no listener in mode {mode}"))
            .at
    }

    /// Where it listens as an ordinary proxy.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn address(&self) -> SocketAddr {
        self.at("regular").parse().expect("an address and port")
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The certificate of its authority, at the path that it has printed.
    pub fn cert(&self) -> &Path {
        &self.cert
    }

    /// The process, for what it writes.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The same, to ask whether it has ended.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for the lines of a flow whose request line contains `request`: that one and its answer's.
    ///
    /// # Panics
    /// If they don't come.
    pub fn wait_flow(&self, request: &str) -> [String; 2] {
        let what = format!("a flow of {request:?}");
        self.process.wait_stdout(LIMIT, &what, |text| {
            let (complete, _) = text.rsplit_once('\n')?;
            let mut lines = complete.lines().skip_while(|line| !line.contains(request));
            Some([lines.next()?.to_owned(), lines.next()?.to_owned()])
        })
    }

    /// With `--json`: waits for a flow whose URL ends with `path`.
    ///
    /// # Panics
    /// If it doesn't come.
    pub fn wait_json(&self, path: &str) -> Value {
        let what = format!("a flow of {path:?}");
        self.process
            .wait_stdout(LIMIT, &what, |text| find_flow(text, path))
    }

    /// Waits until it has said something on standard error.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn wait_log(&self, words: &str) -> String {
        let what = format!("a log line with {words:?}");
        self.process.wait_stderr(LIMIT, &what, |text| {
            let (complete, _) = text.rsplit_once('\n')?;
            let line = complete.lines().find(|line| line.contains(words))?;
            Some(line.to_owned())
        })
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it doesn't end in time.
    pub fn finish(self) -> Finished {
        self.process.finish(LIMIT)
    }
}

/// ` http://ADDRESS unix:PATH` and lines of `  MODE at PLACE`.
fn listeners_of(text: &str) -> Vec<Listener> {
    let (regular, others) = text.split_once('\n').unwrap_or((text, ""));
    let regular = regular.split_whitespace().map(|place| Listener {
        mode: "regular".to_owned(),
        at: place.strip_prefix("http://").unwrap_or(place).to_owned(),
    });
    let others = others.lines().filter_map(|line| {
        let (mode, at) = line.trim().rsplit_once(" at ")?;
        Some(Listener {
            mode: mode.to_owned(),
            at: at.to_owned(),
        })
    });
    regular.chain(others).collect()
}

/// What came of a command under `tollgate run`.
pub struct Ran {
    /// The command's exit code and output. Flows are on standard error, between its own lines.
    pub finished: Finished,
}

impl Ran {
    /// The flow whose URL ends with `path`.
    ///
    /// # Panics
    /// If there was none: the command did not go through the proxy.
    #[track_caller]
    pub fn flow(&self, path: &str) -> Value {
        find_flow(&self.finished.stderr, path)
            .unwrap_or_else(|| panic!("no flow of {path:?} in\n{}", self.finished.stderr))
    }

    /// Standard output.
    pub fn text(&self) -> String {
        self.finished.text()
    }
}

/// Runs `tollgate run -- COMMAND` with the authority of the origin trusted upstream, and nothing else told to the command.
///
/// # Panics
/// If it takes too long, or the command fails.
#[track_caller]
pub fn tollgate_run<A: AsRef<OsStr>>(ca: &Path, words: impl IntoIterator<Item = A>) -> Ran {
    let mut tollgate = command(binary());
    tollgate
        .args(["run", "--json", "--upstream-trusted-ca"])
        .arg(ca)
        .arg("--")
        .args(words);
    let finished = Process::run(tollgate, LIMIT).success();
    Ran { finished }
}

/// Runs `tollgate` with a command that ends by itself.
///
/// # Panics
/// If it takes too long, or fails.
#[track_caller]
pub fn tollgate_command(arguments: &[&str]) -> Finished {
    let mut tollgate = command(binary());
    tollgate.args(arguments);
    Process::run(tollgate, LIMIT).success()
}

/// The flow in lines of JSON, mixed with others, whose URL ends with `path`.
fn find_flow(text: &str, path: &str) -> Option<Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|flow| flow["url"].as_str().is_some_and(|url| url.ends_with(path)))
}

/// The path of the binary: see the crate's documentation.
///
/// # Panics
/// If it can't be built.
pub fn binary() -> &'static str {
    static BINARY: OnceLock<String> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(own) = env::var_os("TOLLGATE_BIN") {
            let own = own.into_string().expect("TOLLGATE_BIN is UTF-8");
            assert!(
                Path::new(&own).is_file(),
                "TOLLGATE_BIN={own}: no such file"
            );
            return own;
        }
        let dir = profile_dir();
        let binary = dir.join("tollgate");
        if !is_current(&binary) {
            build(&dir);
        }
        binary
            .into_os_string()
            .into_string()
            .expect("a path in UTF-8")
    })
}

/// Whether the binary is there, and younger than the sources in the list that cargo puts beside it.
fn is_current(binary: &Path) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let (Ok(built), Ok(list)) = (
        changed(binary),
        fs::read_to_string(binary.with_extension("d")),
    ) else {
        return false;
    };
    let is_older = |path: &Path| changed(path).is_ok_and(|changed: SystemTime| changed <= built);
    // `target: source source …`, where a space within a path has a backslash before it.
    list.lines()
        .filter_map(|line| line.split_once(": "))
        .flat_map(|(_, sources)| {
            let whole = sources.replace("\\ ", "\0");
            whole
                .split(' ')
                .map(|source| PathBuf::from(source.replace('\0', " ")))
                .collect::<Vec<_>>()
        })
        .all(|source| is_older(&source))
}

fn build(profile_dir: &Path) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = match profile_dir.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut build = Command::new(cargo);
    build
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args([
            "build",
            "--quiet",
            "-p",
            "tollgate-cli",
            "--bin",
            "tollgate",
        ])
        .args(["--profile", profile, "--target-dir"])
        .args(profile_dir.parent());
    let status = build.status().expect("cargo can be started");
    assert!(status.success(), "`cargo build -p tollgate-cli` failed");
}

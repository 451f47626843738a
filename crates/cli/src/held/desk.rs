//! The socket of a running proxy at which people decide about held flows: one request and its answers, as lines of JSON.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tollgate_flow::mitm::FlowWriter;
use tollgate_flow::{Direction, FlowId};
use tollgate_rules::{Decision, Held, Holds, Rules};

/// People who are served at once; the next ones wait.
const VISITORS: usize = 16;

/// The longest request.
const MAX_REQUEST: u64 = 64 << 10;

/// How long somebody may take to ask, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// All flows that are held, and with `follow` those that come and go from then on.
    List {
        /// Whether it goes on.
        follow: bool,
    },
    /// What a flow is.
    Show {
        /// Its id, or how that begins.
        flow: String,
    },
    /// Let a flow go on.
    Release {
        /// Its id, or how that begins; `all` for all.
        flow: String,
    },
    /// Refuse a flow.
    Refuse {
        /// As above.
        flow: String,
        /// The status that its client gets; 444 cuts the connection.
        status: u16,
    },
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A flow is held.
    Held(HeldFlow),
    /// A flow is held no longer.
    Gone(String),
    /// Those were all; so many could not be held because too many were.
    Listed {
        /// How many.
        not_held: u64,
    },
    /// A flow file with the one flow, as base64.
    Record(String),
    /// So many flows were decided on.
    Decided(usize),
    /// It can't be done.
    Failed(String),
}

/// A held flow, for who lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldFlow {
    /// Its id.
    pub flow: String,
    /// What waits: `request` or `response`.
    pub on: String,
    /// The method of its request.
    pub method: String,
    /// The URL of its request.
    pub url: String,
    /// The rule that holds it.
    pub rule: String,
    /// Since when, in seconds of Unix time.
    pub since: f64,
    /// Until when at most, likewise.
    pub until: f64,
}

impl HeldFlow {
    fn new(held: &Held) -> Self {
        let seconds = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64()
        };
        Self {
            flow: held.flow.to_string(),
            on: match held.direction {
                Direction::Request => "request".to_owned(),
                Direction::Response => "response".to_owned(),
            },
            method: held.method.clone(),
            url: held.url.clone(),
            rule: held.rule.clone(),
            since: seconds(held.since),
            until: seconds(held.until),
        }
    }
}

/// The folder of the sockets: `$XDG_RUNTIME_DIR/tollgate`, else `tollgate-UID` in the folder for temporary files.
pub fn folder() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    match runtime {
        Some(base) => base.join("tollgate"),
        None => std::env::temp_dir().join(format!("tollgate-{}", crate::os::user_id())),
    }
}

/// The socket of a process.
pub fn socket_of(folder: &Path, pid: u32) -> PathBuf {
    folder.join(format!("held-{pid}.sock"))
}

/// The process of a socket, by its name.
pub fn pid_of(socket: &Path) -> Option<u32> {
    let name = socket.file_name()?.to_str()?;
    name.strip_prefix("held-")?
        .strip_suffix(".sock")?
        .parse()
        .ok()
}

/// Opens the socket of this process, and serves whoever comes for as long as the runtime lives.
///
/// # Errors
/// A folder or socket that can't be made, or isn't ours alone.
pub fn open(rules: &Rules) -> anyhow::Result<()> {
    let folder = folder();
    private(&folder)?;
    let path = socket_of(&folder, std::process::id());
    let failed = || format!("can't make {}", path.display());
    // Left by a process that had our number.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(failed);
        }
        _ => {}
    }
    // Nobody else gets into the folder, so that nobody can come before this is done.
    let listener = UnixListener::bind(&path).with_context(failed)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).with_context(failed)?;
    let socket = Socket(path);
    let rules = rules.clone();
    tokio::spawn(async move {
        // Goes when this task is dropped.
        let _socket = socket;
        serve(&listener, &rules).await;
    });
    Ok(())
}

/// Goes with the process.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes a folder that is ours alone, or makes sure that it is.
fn private(folder: &Path) -> anyhow::Result<()> {
    let failed = || format!("can't make the folder {}", folder.display());
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(failed);
        }
        _ => {}
    }
    is_ours(folder)
}

/// Makes sure that a folder is ours alone.
///
/// # Errors
/// It isn't.
pub fn is_ours(folder: &Path) -> anyhow::Result<()> {
    let found = fs::symlink_metadata(folder)
        .with_context(|| format!("can't look at the folder {}", folder.display()))?;
    ensure!(
        found.is_dir() && found.uid() == crate::os::user_id() && found.mode() & 0o077 == 0,
        "{} is no folder that only this user can enter",
        folder.display()
    );
    Ok(())
}

async fn serve(listener: &UnixListener, rules: &Rules) {
    let mut visits = JoinSet::new();
    loop {
        if visits.len() >= VISITORS {
            let _ = visits.join_next().await;
            continue;
        }
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let rules = rules.clone();
                    // Who goes away in the middle needs no answer.
                    visits.spawn(async move { visit(stream, rules.holds()).await.is_ok() });
                }
                // No descriptors, say: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = visits.join_next() => {}
        }
    }
}

async fn visit(stream: UnixStream, holds: &Holds) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read.take(MAX_REQUEST));
    let mut line = String::new();
    tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await??;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let answer = Answer::Failed(format!(
                "this proxy doesn't understand what is asked: {error}"
            ));
            return send(&mut write, &[answer]).await;
        }
    };
    match request {
        Request::List { follow: false } => send(&mut write, &list(holds)).await,
        Request::List { follow: true } => tokio::select! {
            result = follow(&mut write, holds) => result,
            // Nothing more is said: this is the end of the connection.
            _ = read.read_line(&mut line) => Ok(()),
        },
        request => {
            let answer =
                decide(&request, holds).unwrap_or_else(|error| Answer::Failed(error.to_string()));
            send(&mut write, &[answer]).await
        }
    }
}

fn list(holds: &Holds) -> Vec<Answer> {
    let held = holds.list();
    let held = held.iter().map(|held| Answer::Held(HeldFlow::new(held)));
    let not_held = holds.not_held();
    held.chain([Answer::Listed { not_held }]).collect()
}

async fn follow(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    holds: &Holds,
) -> anyhow::Result<()> {
    let mut changes = holds.changes();
    let mut known: HashSet<(FlowId, Direction)> = HashSet::new();
    loop {
        changes.mark_unchanged();
        let held = holds.list();
        let now = held.iter().map(|held| (held.flow, held.direction));
        let now: HashSet<(FlowId, Direction)> = now.collect();
        let gone = known.difference(&now);
        let mut answers: Vec<Answer> = gone
            .map(|(flow, _)| Answer::Gone(flow.to_string()))
            .collect();
        for held in &held {
            if !known.contains(&(held.flow, held.direction)) {
                answers.push(Answer::Held(HeldFlow::new(held)));
            }
        }
        known = now;
        send(write, &answers).await?;
        changes.changed().await?;
    }
}

/// Does what is asked of one flow, or of all.
fn decide(request: &Request, holds: &Holds) -> anyhow::Result<Answer> {
    let (flow, decision) = match request {
        Request::Show { flow } => {
            let id = one(holds, flow)?;
            let record = holds.record(id).context("it is held no longer")?;
            let mut file = FlowWriter::new(Vec::new());
            file.write(&record)?;
            return Ok(Answer::Record(STANDARD.encode(file.into_inner())));
        }
        Request::Release { flow } => (flow, Decision::Resume),
        Request::Refuse { flow, status } => (flow, Decision::BlockWith(*status)),
        Request::List { .. } => bail!("a list is no decision"),
    };
    if flow == "all" {
        return Ok(Answer::Decided(holds.decide_all(decision)));
    }
    let id = one(holds, flow)?;
    ensure!(holds.decide(id, decision), "{id} is held no longer");
    Ok(Answer::Decided(1))
}

/// The flow whose id begins so.
fn one(holds: &Holds, begins: &str) -> anyhow::Result<FlowId> {
    let begins = begins.to_ascii_lowercase();
    let held = holds.list();
    let mut found = held
        .iter()
        .map(|held| held.flow)
        .filter(|id| id.to_string().starts_with(&begins));
    let first = found
        .next()
        .with_context(|| format!("no held flow has the id {begins}"))?;
    // One that waits in both directions is one.
    ensure!(
        found.all(|id| id == first),
        "more than one held flow has an id that begins with {begins}"
    );
    Ok(first)
}

async fn send(
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
    answers: &[Answer],
) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for answer in answers {
        serde_json::to_writer(&mut text, answer)?;
        text.push(b'\n');
    }
    tokio::time::timeout(PATIENCE, write.write_all(&text)).await??;
    Ok(())
}

//! A log of verdicts that shows when somebody has changed it.
//!
//! Each line is a JSON object with the SHA-256 of the line before it (`prev`), so that a line that was changed, taken
//! out or put in breaks the chain at the next one: [`verify`] names it. What was cut off at the end shows only to who
//! has kept a later hash; keep the one that `tollgate audit verify` prints.
//!
//! With an [`AuditKey`], lines in between are signed checkpoints: who has the public key can tell a chain from one that
//! was made anew. One process writes a log at a time.

mod key;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tollgate_flow::{Flow, FlowKind, Interceptor, Interest, Message, Piece, Reply, Step};

pub use self::key::{AuditKey, AuditPublicKey, KeyError};
use crate::interceptor::Verdict;

/// Verdicts that wait to be written. More are dropped, and the next line says how many.
const QUEUE: usize = 4096;
/// A file of this size is set aside, and the chain goes on in a new one.
const MAX_FILE: u64 = 16 << 20;
/// Files that are set aside; then the oldest goes.
const MAX_ASIDE: usize = 64;
/// The longest line that is read.
const MAX_LINE: usize = 1 << 20;
/// Findings in one line; the others are counted.
const MAX_FINDINGS: usize = 64;
/// Characters of one text.
const MAX_TEXT: usize = 4096;
/// What stands before the first line of all.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Lines that are signed at the latest by the next checkpoint.
const SIGN_LINES: u64 = 256;
/// How long a line waits for a checkpoint.
const SIGN_AFTER: Duration = Duration::from_secs(10);
/// How often a log that can't be written is tried again while traffic stands still for it.
const AGAIN: Duration = Duration::from_secs(1);

/// What happens when the log can't be written: a full disk, say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Traffic goes on; the next line that is written says how many verdicts are missing.
    #[default]
    GoOn,
    /// Traffic is refused ([`AuditLog::guard`]) until the log can be written again.
    Stop,
}

/// How a log is kept.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct AuditOptions {
    /// Signs checkpoints. Default: none are written.
    pub key: Option<AuditKey>,
    /// What happens when it can't be written. Default: traffic goes on.
    pub when_full: WhenFull,
}

/// Why a log can't be continued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Another process writes it.
    #[error("{}: another process writes this log; each needs a file of its own", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// What is there is no whole chain.
    #[error("{}: {broken}; it is not continued: move it away to begin a new one", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where, and how.
        broken: Broken,
    },
}

/// Where a chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} {why}")]
pub struct Broken {
    /// The line, from 1, over all files.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

/// A chain that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Lines.
    pub lines: u64,
    /// The number of the first, 1 unless older files are gone.
    pub first: u64,
    /// The hash of the last line: what the next one will name.
    pub last_hash: String,
    /// Verdicts that were dropped, by what the lines say.
    pub dropped: u64,
    /// Checkpoints. With a public key, each of them was proven.
    pub checkpoints: u64,
    /// Lines after the last checkpoint: nothing is signed that names them.
    pub unsigned: u64,
}

/// A log of verdicts. Dropping it writes what waits.
#[derive(Debug)]
pub struct AuditLog {
    sender: Mutex<Option<SyncSender<Value>>>,
    dropped: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl AuditLog {
    /// Opens a log, and continues the one that is there, which must be whole. A last line that was cut off by a crash is
    /// set aside as `FILE.torn`. The file is for its owner's eyes only.
    ///
    /// ```
    /// use tollgate_screen::audit::{AuditLog, verify};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let path = dir.path().join("audit.jsonl");
    /// let log = AuditLog::open(&path)?;
    /// // Screen::new(…).on_verdict(Arc::new(move |verdict| log.record(verdict)))
    /// drop(log);
    /// assert_eq!(verify([std::fs::File::open(&path)?])?.lines, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::with(path, AuditOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn with(path: &Path, with: AuditOptions) -> Result<Self, AuditError> {
        let io = |error| AuditError::Io {
            path: path.to_owned(),
            error,
        };
        let lock = lock(path)?;
        let mut file = owned().truncate(false).open(path).map_err(io)?;
        let end = end_of_lines(&file).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut chain = Chain::default();
        // Before anything is changed: it may be no log at all.
        chain
            .read(&mut BufReader::new(io::Read::take(&file, end)))
            .map_err(|broken| AuditError::Broken {
                path: path.to_owned(),
                broken,
            })?;
        if chain.verified.lines == 0 {
            // An empty file goes on where the newest one that was set aside ends.
            chain = newest_aside(path)?.unwrap_or_default();
        }
        set_torn_line_aside(&mut file, end, path).map_err(io)?;
        file.seek(SeekFrom::Start(end)).map_err(io)?;
        let mut writer = Writer {
            path: path.to_owned(),
            file,
            end,
            next: chain.next(),
            prev: chain.hash(),
            failing: false,
            unsigned: chain.verified.unsigned,
            sign_at: None,
            with,
            dropped: Arc::new(AtomicU64::new(0)),
            stopped: Arc::new(AtomicBool::new(false)),
            waiting: VecDeque::new(),
            _lock: lock,
        };
        writer.sign_later();
        let (sender, receiver) = sync_channel(QUEUE);
        let dropped = Arc::clone(&writer.dropped);
        let stopped = Arc::clone(&writer.stopped);
        let thread = std::thread::Builder::new()
            .name("tollgate-audit".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(io)?;
        Ok(Self {
            sender: Mutex::new(Some(sender)),
            dropped,
            stopped,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes a verdict, beside whoever calls. It never waits: where too many wait already, or the disk is full, the
    /// verdict is dropped and counted, and the next line says so.
    pub fn record(&self, verdict: &Verdict) {
        // Made before the lock, where others wait.
        let entry = verdict.to_json();
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = sender
            .as_ref()
            .is_some_and(|sender| sender.try_send(entry).is_ok());
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the log can't be written, and traffic is to stand still until it can ([`WhenFull::Stop`]).
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Refuses requests with 503 for as long as [`is_stopped`](Self::is_stopped), and cuts what clients go on sending.
    /// Answers that are under way arrive.
    pub fn guard(&self) -> AuditGuard {
        AuditGuard {
            stopped: Arc::clone(&self.stopped),
        }
    }

    /// Takes no more verdicts, and writes what waits.
    pub fn close(&self) {
        // With the sender the thread ends.
        drop(
            self.sender
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl Verdict {
    /// It as JSON: what a line of the log holds, without the chain. Findings are redacted already.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let findings: Vec<Value> = self
            .findings
            .iter()
            .take(MAX_FINDINGS)
            .map(|finding| {
                json!({
                    "rule": &*finding.rule,
                    "severity": finding.severity.as_str(),
                    "excerpt": finding.excerpt,
                    "allow": finding.allow_hint(),
                })
            })
            .collect();
        let mut value = json!({
            "time_ms": now_ms(),
            "flow": self.flow.to_string(),
            "target": cut(&self.target),
            "place": cut(&self.place.to_string()),
            "refused": self.refused,
            "reason": cut(&self.reason),
            "action": self.action.as_str(),
            "rule": self.rule.as_deref().map(cut),
            "allow": cut(&self.allow),
            "findings": findings,
        });
        let more = self.findings.len().saturating_sub(MAX_FINDINGS);
        if let (true, Value::Object(fields)) = (more > 0, &mut value) {
            fields.insert("more_findings".to_owned(), json!(more));
        }
        value
    }
}

/// Names that others chose, such as a tool's, are as long as they like: a line of the log is not.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// An interceptor that lets nothing leave whose verdicts can't be written. See [`AuditLog::guard`].
#[derive(Clone, Debug)]
pub struct AuditGuard {
    stopped: Arc<AtomicBool>,
}

impl AuditGuard {
    const WHY: &str = "the audit log can't be written";

    fn cut(&self) -> Step {
        match self.stopped.load(Ordering::Relaxed) {
            true => Step::close(Self::WHY),
            false => Step::Continue,
        }
    }
}

impl Interceptor for AuditGuard {
    fn name(&self) -> &str {
        "audit guard"
    }

    fn interest(&self, flow: &Flow) -> Interest {
        let all = Interest::REQUEST | Interest::REQUEST_DATA;
        match flow.kind {
            FlowKind::Http if flow.request.headers().has_token("upgrade", "websocket") => {
                all | Interest::MESSAGES
            }
            _ => all,
        }
    }

    fn request(&self, _: &mut Flow) -> Step {
        match self.stopped.load(Ordering::Relaxed) {
            true => {
                let text = format!(
                    "Tollgate: {}, and traffic stands still until it can\n",
                    Self::WHY
                );
                Step::respond(Reply::new(503).text(text))
            }
            false => Step::Continue,
        }
    }

    fn data(&self, _: &mut Flow, _: Piece<'_>) -> Step {
        self.cut()
    }

    fn message(&self, _: &mut Flow, _: Message<'_>) -> Step {
        self.cut()
    }
}

/// Files of their owner's alone, to be read and written.
fn owned() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A file beside the log that its writer holds: the log itself is replaced when it is set aside.
fn lock(path: &Path) -> Result<File, AuditError> {
    let name = with_suffix(path, "lock");
    let io = |error| AuditError::Io {
        path: name.clone(),
        error,
    };
    let file = owned().truncate(false).open(&name).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AuditError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(io(error)),
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    /// Where the last whole line ends.
    end: u64,
    next: u64,
    prev: String,
    failing: bool,
    /// Lines since the last checkpoint.
    unsigned: u64,
    /// When the next checkpoint is due.
    sign_at: Option<Instant>,
    with: AuditOptions,
    dropped: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    /// Verdicts that came while the log couldn't be written.
    waiting: VecDeque<Value>,
    _lock: File,
}

impl Writer {
    fn run(&mut self, entries: &Receiver<Value>) {
        loop {
            let entry = match self.waiting.pop_front() {
                Some(entry) => Ok(entry),
                None => match self.sign_at {
                    Some(at) => entries.recv_timeout(at.saturating_duration_since(Instant::now())),
                    None => entries.recv().map_err(|_| RecvTimeoutError::Disconnected),
                },
            };
            match entry {
                Ok(entry) => self.verdict(entry, entries),
                Err(RecvTimeoutError::Timeout) => self.checkpoint(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.unsigned >= SIGN_LINES {
                self.checkpoint();
            }
        }
        self.checkpoint();
        let lost = self.dropped.load(Ordering::Relaxed);
        if lost > 0 {
            // No line follows that could say it.
            tracing::error!(
                "{}: {lost} verdicts are missing at its end",
                self.path.display()
            );
        }
        // A machine that loses power keeps what was written up to here.
        let _ = self.file.sync_data();
    }

    fn verdict(&mut self, mut entry: Value, entries: &Receiver<Value>) {
        let missing = self.dropped.swap(0, Ordering::Relaxed);
        if let Value::Object(fields) = &mut entry
            && missing > 0
        {
            fields.insert("dropped".to_owned(), json!(missing));
        }
        if self.line(entry.clone()) {
            return;
        }
        if self.with.when_full == WhenFull::Stop && self.insist(entry, entries) {
            return;
        }
        self.dropped.fetch_add(missing + 1, Ordering::Relaxed);
    }

    /// Tries again and again, while traffic stands still. `false`: until the log was closed.
    fn insist(&mut self, entry: Value, entries: &Receiver<Value>) -> bool {
        self.stopped.store(true, Ordering::Relaxed);
        loop {
            match entries.recv_timeout(AGAIN) {
                Ok(other) if self.waiting.len() < QUEUE => self.waiting.push_back(other),
                Ok(_) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.line(entry),
            }
            if self.line(entry.clone()) {
                self.stopped.store(false, Ordering::Relaxed);
                return true;
            }
        }
    }

    /// Writes a line; whether it was written.
    fn line(&mut self, mut entry: Value) -> bool {
        if let Value::Object(fields) = &mut entry {
            fields.insert("seq".to_owned(), json!(self.next));
            fields.insert("prev".to_owned(), json!(self.prev));
        }
        let mut line = entry.to_string();
        let hash = hash_of(line.as_bytes());
        line.push('\n');
        match self.write(line.as_bytes()) {
            Ok(()) => {
                self.next = self.next.saturating_add(1);
                self.prev = hash;
                self.unsigned += 1;
                self.failing = false;
                self.sign_later();
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!("{}: verdicts are not written: {error}", self.path.display());
                }
                false
            }
        }
    }

    fn sign_later(&mut self) {
        if self.with.key.is_some() && self.unsigned > 0 && self.sign_at.is_none() {
            self.sign_at = Instant::now().checked_add(SIGN_AFTER);
        }
    }

    /// Signs everything up to here.
    fn checkpoint(&mut self) {
        self.sign_at = None;
        let Some(key) = &self.with.key else {
            return;
        };
        if self.unsigned == 0 {
            return;
        }
        let time = now_ms();
        let signature = key.sign(&checkpoint_text(self.next, &self.prev, time));
        let entry = json!({
            "time_ms": time,
            "checkpoint": { "key": key.public().name(), "signature": signature },
        });
        if self.line(entry) {
            self.unsigned = 0;
            self.sign_at = None;
        } else {
            self.sign_later();
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.end + line.len() as u64 > MAX_FILE && self.end > 0 {
            self.rotate()?;
        }
        let result = self.file.write_all(line);
        if result.is_ok() {
            self.end += line.len() as u64;
        } else {
            let _ = self.file.set_len(self.end);
            let _ = self.file.seek(SeekFrom::Start(self.end));
        }
        result
    }

    /// Sets the file aside under the number of its last line, and begins another.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let last = self.next.saturating_sub(1);
        let new = with_suffix(&self.path, "new");
        let _ = fs::remove_file(&new);
        let file = owned().create_new(true).open(&new)?;
        fs::rename(&self.path, with_suffix(&self.path, &format!("{last:012}")))?;
        fs::rename(&new, &self.path)?;
        self.file = file;
        self.end = 0;
        let mut aside = set_aside(&self.path);
        while aside.len() > MAX_ASIDE {
            let oldest = aside.remove(0);
            tracing::warn!("{}: the oldest verdicts are removed", oldest.display());
            fs::remove_file(oldest)?;
        }
        Ok(())
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// The files that were set aside, the oldest first.
pub fn set_aside(path: &Path) -> Vec<PathBuf> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let is_aside = |file: &PathBuf| {
        let other = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        other
            .strip_prefix(&name)
            .and_then(|rest| rest.strip_prefix('.'))
            .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_aside)
        .collect();
    found.sort();
    found
}

fn newest_aside(path: &Path) -> Result<Option<Chain>, AuditError> {
    let Some(newest) = set_aside(path).pop() else {
        return Ok(None);
    };
    let file = match File::open(&newest) {
        Ok(file) => file,
        Err(error) => {
            return Err(AuditError::Io {
                path: newest,
                error,
            });
        }
    };
    let mut chain = Chain::default();
    match chain.read(&mut BufReader::new(file)) {
        Ok(()) => Ok(Some(chain)),
        Err(broken) => Err(AuditError::Broken {
            path: newest,
            broken,
        }),
    }
}

/// Where the last line with an end ends.
fn end_of_lines(file: &File) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let (mut at, mut end) = (0, 0);
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok(end);
        }
        if let Some(last) = memchr::memrchr(b'\n', piece) {
            end = at + last as u64 + 1;
        }
        let length = piece.len();
        at += length as u64;
        reader.consume(length);
    }
}

/// Cuts off what stands behind the last whole line, and keeps it beside the file.
fn set_torn_line_aside(file: &mut File, end: u64, path: &Path) -> io::Result<()> {
    if file.metadata()?.len() <= end {
        return Ok(());
    }
    let torn = with_suffix(path, "torn");
    tracing::warn!(
        "{}: its last line was cut off; it is now {}",
        path.display(),
        torn.display()
    );
    let mut options = OpenOptions::new();
    options.write(true).create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut aside = options.open(torn)?;
    file.seek(SeekFrom::Start(end))?;
    io::copy(file, &mut aside)?;
    aside.write_all(b"\n")?;
    file.set_len(end)
}

fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What a checkpoint signs: with the hash of the line before it all that came before.
fn checkpoint_text(seq: u64, prev: &str, time_ms: u64) -> Vec<u8> {
    format!("tollgate audit 1\n{seq}\n{prev}\n{time_ms}\n").into_bytes()
}

fn hash_of(line: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(line) {
        // Writing to memory can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Follows a chain.
#[derive(Default)]
struct Chain {
    verified: Verified,
    last_seq: u64,
    /// Proves checkpoints; without it they are believed.
    key: Option<AuditPublicKey>,
}

impl Chain {
    fn hash(&self) -> String {
        match self.verified.last_hash.is_empty() {
            true => NOTHING.to_owned(),
            false => self.verified.last_hash.clone(),
        }
    }

    fn next(&self) -> u64 {
        self.last_seq.saturating_add(1)
    }

    fn read(&mut self, input: &mut impl BufRead) -> Result<(), Broken> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let at = self.verified.lines + 1;
            let broken = |why: &str| Broken {
                line: at,
                why: why.to_owned(),
            };
            let mut limited = io::Read::take(&mut *input, MAX_LINE as u64);
            let n = limited
                .read_until(b'\n', &mut line)
                .map_err(|error| broken(&format!("can't be read: {error}")))?;
            if n == 0 {
                return Ok(());
            }
            let text = line
                .strip_suffix(b"\n")
                .ok_or_else(|| broken("is cut off, or longer than a line can be"))?;
            let value: Value = serde_json::from_slice(text)
                .map_err(|error| broken(&format!("is no JSON: {error}")))?;
            let seq = value.get("seq").and_then(Value::as_u64);
            let seq = seq.ok_or_else(|| broken("has no number"))?;
            let prev = value.get("prev").and_then(Value::as_str);
            let prev = prev.ok_or_else(|| broken("names no line before it"))?;
            if self.verified.lines == 0 {
                if seq == 1 && prev != NOTHING {
                    return Err(broken("says that it is the first, and names one before it"));
                }
                self.verified.first = seq;
            } else if prev != self.verified.last_hash {
                return Err(broken(
                    "does not follow: the line before it was changed, taken out or put in",
                ));
            } else if seq != self.next() {
                return Err(broken("has another number than the next"));
            }
            if let Some(checkpoint) = value.get("checkpoint") {
                let time = value.get("time_ms").and_then(Value::as_u64).unwrap_or(0);
                let signature = checkpoint.get("signature").and_then(Value::as_str);
                let text = checkpoint_text(seq, prev, time);
                let proven = |key: &AuditPublicKey| {
                    signature.is_some_and(|signature| key.proves(&text, signature))
                };
                if self.key.as_ref().is_some_and(|key| !proven(key)) {
                    return Err(broken("is a checkpoint that this key has not signed"));
                }
                self.verified.checkpoints += 1;
                self.verified.unsigned = 0;
            } else {
                self.verified.unsigned += 1;
            }
            let dropped = value.get("dropped").and_then(Value::as_u64).unwrap_or(0);
            self.verified.dropped = self.verified.dropped.saturating_add(dropped);
            self.verified.lines = at;
            self.verified.last_hash = hash_of(text);
            self.last_seq = seq;
        }
    }
}

/// Checks a log: its files in order, the oldest first.
///
/// # Errors
/// The first line that breaks the chain.
pub fn verify(files: impl IntoIterator<Item = File>) -> Result<Verified, Broken> {
    check(files, None)
}

/// The same, and proves every checkpoint with the public key.
///
/// A chain that is whole, and whose checkpoints are proven, was written by who has the private key, but for its
/// [`unsigned`](Verified::unsigned) end.
///
/// # Errors
/// The first line that breaks the chain, or isn't proven.
pub fn verify_signed(
    files: impl IntoIterator<Item = File>,
    key: &AuditPublicKey,
) -> Result<Verified, Broken> {
    check(files, Some(*key))
}

fn check(
    files: impl IntoIterator<Item = File>,
    key: Option<AuditPublicKey>,
) -> Result<Verified, Broken> {
    let mut chain = Chain {
        key,
        ..Chain::default()
    };
    for file in files {
        chain.read(&mut BufReader::new(file))?;
    }
    chain.verified.last_hash = chain.hash();
    Ok(chain.verified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interceptor::Place;
    use tollgate_flow::FlowId;

    fn verdict(n: u128) -> Verdict {
        Verdict {
            flow: FlowId(n),
            target: "api.example:443".to_owned(),
            place: Place::RequestBody,
            findings: Vec::new(),
            refused: true,
            reason: "x".repeat(200),
            action: crate::policy::Action::Block,
            rule: None,
            allow: String::new(),
        }
    }

    fn write(path: &Path, count: u128) {
        let log = AuditLog::open(path).unwrap();
        for n in 0..count {
            log.record(&verdict(n));
        }
    }

    fn check(path: &Path) -> Result<Verified, Broken> {
        super::verify([File::open(path).unwrap()])
    }

    #[test]
    fn a_log_goes_on_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        write(&path, 3);
        write(&path, 2);
        let verified = check(&path).unwrap();
        assert_eq!(
            (verified.lines, verified.first, verified.dropped),
            (5, 1, 0)
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn what_was_changed_taken_out_or_put_in_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        write(&path, 5);
        let whole = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        let changed = lines[2].replace("true", "false");
        for (what, edited, line) in [
            (
                "changed",
                [lines[0], lines[1], &changed, lines[3], lines[4]].join("\n"),
                4,
            ),
            (
                "taken out",
                [lines[0], lines[1], lines[3], lines[4]].join("\n"),
                3,
            ),
            (
                "put in",
                [lines[0], lines[0], lines[1], lines[2]].join("\n"),
                2,
            ),
            ("no JSON", [lines[0], "x"].join("\n"), 2),
        ] {
            fs::write(&path, edited + "\n").unwrap();
            assert_eq!(check(&path).unwrap_err().line, line, "{what}");
            assert!(
                matches!(AuditLog::open(&path), Err(AuditError::Broken { .. })),
                "{what}"
            );
        }
    }

    #[test]
    fn a_torn_line_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        write(&path, 2);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        write(&path, 1);
        assert_eq!(check(&path).unwrap().lines, 2);
        let torn = fs::read_to_string(dir.path().join("audit.jsonl.torn")).unwrap();
        assert!(torn.contains("api.example:443"), "{torn}");
    }

    #[test]
    fn the_chain_goes_on_in_another_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        write(&path, 1);
        // As after a rotation at a time when nothing has followed yet.
        fs::rename(&path, dir.path().join("audit.jsonl.000000000001")).unwrap();
        write(&path, 2);
        let mut files = set_aside(&path);
        assert_eq!(files.len(), 1);
        files.push(path.clone());
        let verified = verify(files.iter().map(|file| File::open(file).unwrap())).unwrap();
        assert_eq!(verified.lines, 3);
        // The newer one alone begins later.
        assert_eq!(check(&path).unwrap().first, 2);
    }

    #[test]
    fn a_file_that_is_no_log_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        let notes = "first things\nand the last without a line break";
        fs::write(&path, notes).unwrap();
        let error = AuditLog::open(&path).unwrap_err();
        assert!(matches!(error, AuditError::Broken { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), notes);
        assert!(!dir.path().join("notes.txt.torn").exists());
    }

    #[test]
    fn a_chain_does_not_begin_again_behind_a_file_that_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let aside = dir.path().join("audit.jsonl.000000000001");
        fs::write(&aside, "{}\n").unwrap();
        let error = AuditLog::open(&path).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("audit.jsonl.000000000001: line 1"),
            "{error}"
        );
        fs::remove_file(&aside).unwrap();
        fs::create_dir(&aside).unwrap();
        let error = AuditLog::open(&path).unwrap_err();
        assert!(error.to_string().contains("audit.jsonl.0000000"), "{error}");
    }

    #[test]
    fn numbers_as_large_as_can_be_are_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let line = |seq: u64, prev: &str| json!({"seq": seq, "prev": prev, "dropped": u64::MAX});
        let first = line(u64::MAX - 1, "x").to_string();
        let second = line(u64::MAX, &hash_of(first.as_bytes())).to_string();
        let third = line(0, &hash_of(second.as_bytes())).to_string();
        fs::write(&path, format!("{first}\n{second}\n")).unwrap();
        assert_eq!(check(&path).unwrap().dropped, u64::MAX);
        fs::write(&path, format!("{first}\n{second}\n{third}\n")).unwrap();
        assert_eq!(check(&path).unwrap_err().line, 3);
    }

    #[test]
    fn a_second_writer_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let first = AuditLog::open(&path).unwrap();
        let error = AuditLog::open(&path).unwrap_err();
        assert!(matches!(error, AuditError::InUse { .. }), "{error}");
        assert!(
            error.to_string().contains("another process writes"),
            "{error}"
        );
        drop(first);
        AuditLog::open(&path).unwrap();
    }

    fn signed(dir: &Path, count: u128) -> (PathBuf, AuditPublicKey) {
        let path = dir.join("audit.jsonl");
        let key_path = dir.join("key.pem");
        let key = AuditKey::open(&key_path).or_else(|_| AuditKey::create(&key_path));
        let key = key.unwrap();
        let public = key.public();
        let log = AuditLog::with(
            &path,
            AuditOptions {
                key: Some(key),
                ..AuditOptions::default()
            },
        )
        .unwrap();
        for n in 0..count {
            log.record(&verdict(n));
        }
        (path, public)
    }

    fn prove(path: &Path, key: &AuditPublicKey) -> Result<Verified, Broken> {
        verify_signed([File::open(path).unwrap()], key)
    }

    #[test]
    fn checkpoints_prove_what_came_before_them() {
        let dir = tempfile::tempdir().unwrap();
        signed(dir.path(), 3);
        let (path, key) = signed(dir.path(), u128::from(SIGN_LINES) + 1);
        let verified = prove(&path, &key).unwrap();
        // 3 verdicts and one at the end; then one in between and one at the end.
        assert_eq!(
            (verified.lines, verified.checkpoints, verified.unsigned),
            (3 + 1 + 257 + 2, 3, 0)
        );

        // Another key doesn't prove it, and says where.
        let other = AuditKey::create(&dir.path().join("other.pem"))
            .unwrap()
            .public();
        assert_eq!(prove(&path, &other).unwrap_err().line, 4);

        // Without the last checkpoint, lines are there that nothing signs.
        let whole = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        fs::write(&path, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
        assert_eq!(prove(&path, &key).unwrap().unsigned, 1);
    }

    #[test]
    fn a_chain_that_was_made_anew_is_not_proven() {
        let dir = tempfile::tempdir().unwrap();
        let (path, key) = signed(dir.path(), 3);
        let whole = fs::read_to_string(&path).unwrap();
        // Somebody without the key changes a verdict, and hashes every line after it anew.
        let mut prev = NOTHING.to_owned();
        let mut forged = String::new();
        for line in whole.lines() {
            let mut value: Value = serde_json::from_str(line).unwrap();
            value["prev"] = json!(prev);
            if value.get("refused").is_some() {
                value["refused"] = json!(false);
            }
            let line = value.to_string();
            prev = hash_of(line.as_bytes());
            forged.push_str(&line);
            forged.push('\n');
        }
        fs::write(&path, forged).unwrap();
        assert!(check(&path).is_ok());
        let broken = prove(&path, &key).unwrap_err();
        assert_eq!(
            broken.to_string(),
            "line 4 is a checkpoint that this key has not signed"
        );
    }

    #[test]
    fn a_log_that_can_not_be_written_stops_traffic_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let lock = lock(&path).unwrap();
        // A file that can't be written, then one that can.
        fs::write(&path, "").unwrap();
        let (sender, receiver) = sync_channel(QUEUE);
        let mut writer = Writer {
            path: path.clone(),
            file: File::open(&path).unwrap(),
            end: 0,
            next: 1,
            prev: NOTHING.to_owned(),
            failing: false,
            unsigned: 0,
            sign_at: None,
            with: AuditOptions {
                when_full: WhenFull::Stop,
                ..AuditOptions::default()
            },
            dropped: Arc::default(),
            stopped: Arc::default(),
            waiting: VecDeque::new(),
            _lock: lock,
        };
        let guard = AuditGuard {
            stopped: Arc::clone(&writer.stopped),
        };
        assert!(matches!(guard.cut(), Step::Continue));
        sender.send(verdict(2).to_json()).unwrap();
        drop(sender);
        assert!(!writer.insist(verdict(1).to_json(), &receiver));
        assert!(matches!(guard.cut(), Step::Close(_)));
        assert_eq!(writer.waiting.len(), 1);

        writer.file = owned().truncate(false).open(&path).unwrap();
        let (_sender, receiver) = sync_channel(QUEUE);
        assert!(writer.insist(verdict(1).to_json(), &receiver));
        assert!(matches!(guard.cut(), Step::Continue));
        assert_eq!(check(&path).unwrap().lines, 1);
    }

    #[test]
    fn a_line_is_short_whatever_a_tool_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let log = AuditLog::open(&path).unwrap();
        log.record(&Verdict {
            place: Place::ToolCall("é".repeat(3 << 20)),
            ..verdict(1)
        });
        drop(log);
        // Else the log couldn't be opened again.
        assert_eq!(check(&path).unwrap().lines, 1);
        AuditLog::open(&path).unwrap();
    }
}

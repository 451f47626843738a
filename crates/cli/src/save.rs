//! `-w`, `--set hardump` and `--record`: flows into a file as they end.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, ensure};
use tollgate_flow::PieceMark;
use tollgate_flow::filter::Filter;
use tollgate_flow::mitm::FlowWriter;
use tollgate_flow::record::{Content, HttpMessage, Record};
use tollgate_store::{CaptureLimits, Dropped, RecordSink};

use crate::args::FileFormat;
use crate::files::{Sink, output_format, plural, say, warn};

/// Flows that wait to be written.
const QUEUE_FLOWS: usize = 4096;
/// Bytes of bodies that wait to be written.
const QUEUE_BYTES: usize = 128 << 20;

/// How much of what passes goes into a file: what mitmproxy keeps whole is bounded here.
pub const LIMITS: CaptureLimits = CaptureLimits {
    body_bytes: 64 << 20,
    messages: 65_536,
    in_flight_bytes: 512 << 20,
    pieces: 65_536,
};

/// A file that flows are written to.
#[derive(Clone, Debug)]
pub struct SaveSettings {
    /// The file.
    pub path: PathBuf,
    /// Whether the name is a pattern of `strftime`: a new file is begun whenever it gives another name.
    pub dated: bool,
    /// Whether flows are added to what is in it.
    pub append: bool,
    /// Only flows that match.
    pub filter: Option<Filter>,
}

impl SaveSettings {
    /// Reads mitmproxy's notation: `FILE`, or `+FILE` to append; with `%Y` and its like, a name that changes with the time.
    pub fn new(spec: &str, filter: Option<Filter>) -> Self {
        let (path, append) = match spec.strip_prefix('+') {
            Some(path) => (path, true),
            None => (spec, false),
        };
        Self {
            path: crate::paths::expand_home(path),
            dated: path.contains('%'),
            append,
            filter,
        }
    }

    /// Opens the file, and the way into it.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn open(&self) -> anyhow::Result<(FileSink, SaveFile)> {
        let output = match output_format(&self.path, None)? {
            FileFormat::Har => {
                ensure!(
                    !self.append,
                    "{}: nothing can be appended to HAR",
                    self.path.display()
                );
                let path = self.path_at(SystemTime::now())?;
                Output::Har(Some(Box::new(Sink::open(&path, FileFormat::Har, None)?)))
            }
            FileFormat::Mitm => Output::Mitm(Box::new(FlowFile::open(self)?)),
        };
        let (sender, receiver) = sync_channel(QUEUE_FLOWS);
        let waiting = Arc::new(AtomicUsize::new(0));
        let lost = Arc::new(AtomicU64::new(0));
        let sender = Arc::new(Mutex::new(Some(sender)));
        let sink = FileSink {
            sender: Arc::clone(&sender),
            waiting: Arc::clone(&waiting),
            lost: Arc::clone(&lost),
            filter: self.filter.clone(),
        };
        let path = self.path.clone();
        let losses = Arc::clone(&lost);
        let thread = std::thread::Builder::new()
            .name("tollgate-save".to_owned())
            .spawn(move || write(output, &receiver, &waiting, &losses, &path))
            .context("can't start a thread")?;
        Ok((
            sink,
            SaveFile {
                path: self.path.clone(),
                sender,
                thread,
                lost,
            },
        ))
    }

    /// The name of the file that is written at a time.
    fn path_at(&self, now: SystemTime) -> anyhow::Result<PathBuf> {
        if !self.dated {
            return Ok(self.path.clone());
        }
        let pattern = self.path.to_str().context("the name is no text")?;
        crate::os::strftime(pattern, now)
            .map(PathBuf::from)
            .with_context(|| format!("{pattern}: no date can be written into this name"))
    }
}

type Sender = Arc<Mutex<Option<SyncSender<Record>>>>;

/// Closes all files, and says whether everything is in them.
///
/// # Errors
/// The first that could not be completed; the others are closed all the same.
pub fn close(all: Vec<SaveFile>, quiet: bool) -> anyhow::Result<bool> {
    let mut whole = Ok(true);
    for file in all {
        let closed = file.close(quiet);
        whole = whole.and_then(|before| closed.map(|now| before && now));
    }
    whole
}

/// Opens all files.
///
/// # Errors
/// The first that can't be written.
pub fn open(all: &[SaveSettings]) -> anyhow::Result<(Vec<FileSink>, Vec<SaveFile>)> {
    let opened: anyhow::Result<Vec<_>> = all.iter().map(SaveSettings::open).collect();
    Ok(opened?.into_iter().unzip())
}

/// The way into a file. As a sink of a capture it never waits.
#[derive(Clone)]
pub struct FileSink {
    sender: Sender,
    waiting: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
    filter: Option<Filter>,
}

impl FileSink {
    fn wants(&self, record: &Record) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.matches(record))
    }

    fn sender(&self) -> Option<SyncSender<Record>> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.clone()
    }

    /// Hands a flow over, and waits for room.
    pub fn put(&self, record: Record) {
        if self.wants(&record)
            && let Some(sender) = self.sender()
        {
            self.waiting.fetch_add(weight(&record), Ordering::Relaxed);
            // Fails when the writing thread has panicked, which `close` tells.
            let _ = sender.send(record);
        }
    }
}

impl RecordSink for FileSink {
    fn record(&self, record: Record) -> Result<(), Dropped> {
        if !self.wants(&record) {
            return Ok(());
        }
        let Some(sender) = self.sender() else {
            return Err(Dropped::Closed);
        };
        let weight = weight(&record);
        let before = self.waiting.fetch_add(weight, Ordering::Relaxed);
        let sent = match before > QUEUE_BYTES {
            true => Err(Dropped::Behind),
            false => sender.try_send(record).map_err(|error| match error {
                TrySendError::Full(_) => Dropped::Behind,
                TrySendError::Disconnected(_) => Dropped::Closed,
            }),
        };
        if sent.is_err() {
            self.waiting.fetch_sub(weight, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }
}

fn weight(record: &Record) -> usize {
    let body = |message: &HttpMessage| message.body.data.as_ref().map_or(0, |data| data.len());
    let bytes = match &record.content {
        Content::Http(http) => {
            let messages = http.websocket.iter().flat_map(|socket| &socket.messages);
            body(&http.request.message)
                + http.response.as_ref().map_or(0, |r| body(&r.message))
                + messages.map(|message| message.content.len()).sum::<usize>()
        }
        Content::Tcp(messages) | Content::Udp(messages) => {
            messages.iter().map(|message| message.content.len()).sum()
        }
        Content::Dns(_) => 0,
    };
    bytes + record.facts.response_pieces.len() * size_of::<PieceMark>() + 4096
}

/// The file, for who waits for its end.
pub struct SaveFile {
    path: PathBuf,
    sender: Sender,
    thread: JoinHandle<anyhow::Result<u64>>,
    lost: Arc<AtomicU64>,
}

impl SaveFile {
    /// Takes no more flows, and waits until all are written. Says whether they were: what was lost is told.
    ///
    /// # Errors
    /// What kept the file from being completed.
    pub fn close(self, quiet: bool) -> anyhow::Result<bool> {
        // With the last sender the writing thread ends.
        drop(
            self.sender
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        let written = self
            .thread
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("writing it failed")))
            .with_context(|| self.path.display().to_string())?;
        let lost = self.lost.load(Ordering::Relaxed);
        if lost > 0 {
            warn(&format!(
                "{} could not be written to {}",
                plural(lost, "flow"),
                self.path.display()
            ));
        }
        if !quiet && self.path != Path::new("-") {
            say(&format!(
                "{} to {}",
                plural(written, "flow"),
                self.path.display()
            ));
        }
        Ok(lost == 0)
    }
}

enum Output {
    Mitm(Box<FlowFile>),
    /// `None` once something could not be written: half an entry stands in it.
    Har(Option<Box<Sink>>),
}

/// A flow file that holds whole flows only, whatever its disk does.
struct FlowFile {
    settings: SaveSettings,
    path: PathBuf,
    file: File,
    /// Where the last whole flow ends.
    end: u64,
    writer: FlowWriter<Vec<u8>>,
}

impl FlowFile {
    fn open(settings: &SaveSettings) -> anyhow::Result<Self> {
        let path = settings.path_at(SystemTime::now())?;
        let (file, end) = Self::open_at(settings, &path)?;
        Ok(Self {
            settings: settings.clone(),
            path,
            file,
            end,
            writer: FlowWriter::new(Vec::new()),
        })
    }

    fn open_at(settings: &SaveSettings, path: &Path) -> anyhow::Result<(File, u64)> {
        let failed = || format!("can't write {}", path.display());
        if settings.dated
            && let Some(folder) = path.parent()
        {
            std::fs::create_dir_all(folder).with_context(failed)?;
        }
        let mut options = OpenOptions::new();
        options.create(true).write(true);
        match settings.append {
            true => options.append(true),
            false => options.truncate(true),
        };
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path).with_context(failed)?;
        let end = file.metadata().map_or(0, |data| data.len());
        Ok((file, end))
    }

    /// Goes on in another file where the time asks for one.
    fn follow_time(&mut self) -> anyhow::Result<()> {
        let path = self.settings.path_at(SystemTime::now())?;
        if path != self.path {
            (self.file, self.end) = Self::open_at(&self.settings, &path)?;
            self.path = path;
        }
        Ok(())
    }

    /// Writes the flows that wait. On failure they are lost, and the file is as it was.
    fn flush(&mut self) -> anyhow::Result<()> {
        let writer = std::mem::replace(&mut self.writer, FlowWriter::new(Vec::new()));
        let bytes = writer.into_inner();
        if self.settings.dated {
            self.follow_time()?;
        }
        let result = self.file.write_all(&bytes);
        if result.is_err() {
            let _ = self.file.set_len(self.end);
            let _ = self.file.seek(SeekFrom::Start(self.end));
        } else {
            self.end += bytes.len() as u64;
        }
        result.context("can't write")
    }
}

/// Flows, and bytes of them, that are written at once, at most.
const BATCH: u64 = 64;
const BATCH_BYTES: usize = 8 << 20;

/// Writes until nobody sends any more. A disk that is full costs flows, and no traffic: every batch is tried. (HAR is one
/// piece: it ends with what could not be written, and is not there in the end.)
fn write(
    mut output: Output,
    records: &Receiver<Record>,
    waiting: &AtomicUsize,
    lost: &AtomicU64,
    path: &Path,
) -> anyhow::Result<u64> {
    let mut written = 0;
    let mut failing = false;
    let mut har_failed = false;
    while let Ok(first) = records.recv() {
        let mut next = Some(first);
        let mut batch = 0;
        let mut bytes = 0;
        let mut result = Ok(());
        // What has come meanwhile goes with it.
        while let Some(record) = next {
            let weight = weight(&record);
            waiting.fetch_sub(weight, Ordering::Relaxed);
            batch += 1;
            bytes += weight;
            result = result.and_then(|()| match &mut output {
                Output::Mitm(file) => file
                    .writer
                    .write(&record)
                    .map(|_| ())
                    .context("can't write"),
                Output::Har(Some(sink)) => sink.write(&record),
                Output::Har(None) => Err(anyhow!("it has failed before")),
            });
            next = (batch < BATCH && bytes < BATCH_BYTES)
                .then(|| records.try_recv().ok())
                .flatten();
        }
        match &mut output {
            Output::Mitm(file) => result = result.and(file.flush()),
            Output::Har(sink) if result.is_err() => {
                har_failed = true;
                *sink = None;
            }
            Output::Har(_) => {}
        }
        match result {
            Ok(()) => {
                written += batch;
                failing = false;
            }
            Err(error) => {
                lost.fetch_add(batch, Ordering::Relaxed);
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!("{}: {error:#}; traffic goes on", path.display());
                }
            }
        }
    }
    if let Output::Har(Some(sink)) = output {
        sink.close()?;
    }
    ensure!(!har_failed, "it could not be completed");
    Ok(written)
}

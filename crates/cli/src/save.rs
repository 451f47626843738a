//! `-w`, `--set hardump` and `--record`: flows into a file as they end.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use tollgate_flow::filter::Filter;
use tollgate_flow::mitm::FlowWriter;
use tollgate_flow::record::{Content, HttpMessage, Record};
use tollgate_store::{CaptureLimits, Dropped, RecordSink};

use crate::args::FileFormat;
use crate::files::{Sink, output_format, plural, say};

/// Flows that wait to be written.
const QUEUE_FLOWS: usize = 4096;
/// Bytes of bodies that wait to be written.
const QUEUE_BYTES: usize = 128 << 20;

/// How much of what passes goes into a file: what mitmproxy keeps whole is bounded here.
pub const LIMITS: CaptureLimits = CaptureLimits {
    body_bytes: 64 << 20,
    messages: 65_536,
    in_flight_bytes: 512 << 20,
};

/// A file that flows are written to.
#[derive(Clone, Debug)]
pub struct SaveSettings {
    /// The file.
    pub path: PathBuf,
    /// Whether flows are added to what is in it.
    pub append: bool,
    /// Only flows that match.
    pub filter: Option<Filter>,
}

impl SaveSettings {
    /// Reads mitmproxy's notation: `FILE`, or `+FILE` to append.
    pub fn new(spec: &str, filter: Option<Filter>) -> Self {
        let (path, append) = match spec.strip_prefix('+') {
            Some(path) => (path, true),
            None => (spec, false),
        };
        Self {
            path: crate::paths::expand_home(path),
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
                Output::Har(Box::new(Sink::open(&self.path, FileFormat::Har, None)?))
            }
            FileFormat::Mitm => {
                let mut options = OpenOptions::new();
                options.create(true).write(true);
                match self.append {
                    true => options.append(true),
                    false => options.truncate(true),
                };
                #[cfg(unix)]
                std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
                let file = options
                    .open(&self.path)
                    .with_context(|| format!("can't write {}", self.path.display()))?;
                let end = file.metadata().map_or(0, |data| data.len());
                Output::Mitm(FlowFile {
                    file,
                    end,
                    writer: FlowWriter::new(Vec::new()),
                })
            }
        };
        let (sender, receiver) = sync_channel(QUEUE_FLOWS);
        let waiting = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let sender = Arc::new(Mutex::new(Some(sender)));
        let sink = FileSink {
            sender: Arc::clone(&sender),
            waiting: Arc::clone(&waiting),
            dropped: Arc::clone(&dropped),
            filter: self.filter.clone(),
        };
        let path = self.path.clone();
        let thread = std::thread::Builder::new()
            .name("tollgate-save".to_owned())
            .spawn(move || write(output, &receiver, &waiting, &path))
            .context("can't start a thread")?;
        Ok((
            sink,
            SaveFile {
                path: self.path.clone(),
                sender,
                thread,
                dropped,
            },
        ))
    }
}

type Sender = Arc<Mutex<Option<SyncSender<Record>>>>;

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
    dropped: Arc<AtomicU64>,
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
            self.dropped.fetch_add(1, Ordering::Relaxed);
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
    bytes + 4096
}

/// The file, for who waits for its end.
pub struct SaveFile {
    path: PathBuf,
    sender: Sender,
    thread: JoinHandle<anyhow::Result<u64>>,
    dropped: Arc<AtomicU64>,
}

impl SaveFile {
    /// Takes no more flows, and waits until all are written.
    ///
    /// # Errors
    /// What kept the file from being completed.
    pub fn close(self, quiet: bool) -> anyhow::Result<()> {
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
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(
                "{} not written to {}",
                plural(dropped, "flow"),
                self.path.display()
            );
        }
        if !quiet && self.path != Path::new("-") {
            say(&format!(
                "{} to {}",
                plural(written, "flow"),
                self.path.display()
            ));
        }
        Ok(())
    }
}

enum Output {
    Mitm(FlowFile),
    Har(Box<Sink>),
}

/// A flow file that holds whole flows only, whatever its disk does.
struct FlowFile {
    file: File,
    /// Where the last whole flow ends.
    end: u64,
    writer: FlowWriter<Vec<u8>>,
}

impl FlowFile {
    /// Writes the flows that wait. On failure they are lost, and the file is as it was.
    fn flush(&mut self) -> anyhow::Result<()> {
        let writer = std::mem::replace(&mut self.writer, FlowWriter::new(Vec::new()));
        let bytes = writer.into_inner();
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

/// Flows that are written at once, at most.
const BATCH: u64 = 64;

/// Writes until nobody sends any more. A disk that is full costs flows, and no traffic: every batch is tried.
fn write(
    mut output: Output,
    records: &Receiver<Record>,
    waiting: &AtomicUsize,
    path: &Path,
) -> anyhow::Result<u64> {
    let mut written = 0;
    let mut failing = false;
    while let Ok(first) = records.recv() {
        let mut next = Some(first);
        let mut batch = 0;
        let mut result = Ok(());
        // What has come meanwhile goes with it.
        while let Some(record) = next {
            waiting.fetch_sub(weight(&record), Ordering::Relaxed);
            batch += 1;
            result = result.and_then(|()| match &mut output {
                Output::Mitm(file) => file
                    .writer
                    .write(&record)
                    .map(|_| ())
                    .context("can't write"),
                Output::Har(sink) => sink.write(&record),
            });
            next = (batch < BATCH).then(|| records.try_recv().ok()).flatten();
        }
        if let Output::Mitm(file) = &mut output {
            result = result.and(file.flush());
        }
        match result {
            Ok(()) => {
                written += batch;
                failing = false;
            }
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::error!("{}: {error:#}; traffic goes on", path.display());
            }
            Err(_) => {}
        }
    }
    if let Output::Har(sink) = output {
        sink.close()?;
    }
    Ok(written)
}

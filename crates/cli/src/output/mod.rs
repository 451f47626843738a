//! What appears on standard output and standard error while the proxy runs.
//!
//! One thread writes; everybody else hands it lines through a bounded queue and never waits for it. What finds the queue full
//! is dropped and counted, and the count is shown as soon as the terminal keeps up again.

mod detail;
mod flows;
mod json;
mod line;
mod log;
mod record;
mod stored;
mod style;
mod usage;
mod websocket;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::Notify;

pub use flows::FlowPrinter;
pub use json::timestamp;
pub use line::pretty_size;
pub use log::{Verbosity, install as install_log};
pub use record::{record_json, record_lines};
pub use stored::{record_detail, record_detail_json, summary_json, summary_line};
pub use style::{Style, harmless};
pub use usage::usage_totals;

/// Lines that may wait for the terminal.
const QUEUE: usize = 4096;
/// How long the last lines may take when the program ends: a stopped terminal must not keep it.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The way to the thread that writes. Cheap to clone.
#[derive(Clone)]
pub struct Printer {
    queue: SyncSender<Item>,
    shared: Arc<Shared>,
}

/// Where a line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output: what was asked for.
    Stdout,
    /// Standard error: everything else.
    Stderr,
}

impl Printer {
    /// Starts the thread that writes to this process's streams.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> io::Result<Self> {
        Self::with_outputs(io::stdout(), io::stderr())
    }

    fn with_outputs(
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, items) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let thread = WriterThread {
            items,
            stdout: Output::new(stdout),
            stderr: Output::new(stderr),
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("tollgate-print".to_owned())
            .spawn(move || thread.run())?;
        Ok(Self { queue, shared })
    }

    /// Shows a flow, if the queue has room. `text` ends with a line end.
    pub fn flow(&self, stream: Stream, text: Text) {
        if self.queue.try_send(Item::Text(stream, text)).is_err() {
            self.shared.lost_flows.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Shows a line of the log on standard error, if the queue has room. `text` ends with a line end.
    pub fn log(&self, text: String) {
        let item = Item::Text(Stream::Stderr, Text::Ready(text));
        if self.queue.try_send(item).is_err() {
            self.shared.lost_logs.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Shows text on standard error, and waits for room in the queue. Not for the proxy's workers.
    pub fn notice(&self, text: String) {
        let _ = self
            .queue
            .send(Item::Text(Stream::Stderr, Text::Ready(text)));
    }

    /// Waits until everything before has been written, two seconds at most.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            let _ = written.recv_timeout(LAST_LINES);
        }
    }

    /// Whether standard output was closed by its reader.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    /// Waits until standard output has been closed by its reader.
    pub async fn closed(&self) {
        while !self.is_closed() {
            let notified = self.shared.closing.notified();
            if self.is_closed() {
                return;
            }
            notified.await;
        }
    }
}

/// Text to show.
pub enum Text {
    /// As it is.
    Ready(String),
    /// Made by the thread that writes, because making it takes time.
    Later(Box<dyn FnOnce() -> String + Send>),
}

enum Item {
    Text(Stream, Text),
    Flush(SyncSender<()>),
}

#[derive(Default)]
struct Shared {
    lost_flows: AtomicU64,
    lost_logs: AtomicU64,
    closed: AtomicBool,
    closing: Notify,
}

impl Shared {
    /// What was lost since the last call, in words.
    fn losses(&self) -> Option<String> {
        let flows = self.lost_flows.swap(0, Ordering::Relaxed);
        let logs = self.lost_logs.swap(0, Ordering::Relaxed);
        let what = match (flows, logs) {
            (0, 0) => return None,
            (flows, 0) => format!("{flows} flows"),
            (0, logs) => format!("{logs} log lines"),
            (flows, logs) => format!("{flows} flows and {logs} log lines"),
        };
        Some(format!("… {what} not shown: the terminal is too slow\n"))
    }
}

struct WriterThread {
    items: Receiver<Item>,
    stdout: Output,
    stderr: Output,
    shared: Arc<Shared>,
}

impl WriterThread {
    fn run(mut self) {
        loop {
            // The streams are flushed when there is nothing more to write for the moment.
            let item = match self.items.try_recv() {
                Ok(item) => item,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.idle();
                    match self.items.recv_timeout(Duration::from_secs(60)) {
                        Ok(item) => item,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
            };
            match item {
                Item::Text(stream, text) => {
                    let text = match text {
                        Text::Ready(text) => text,
                        Text::Later(make) => make(),
                    };
                    match stream {
                        Stream::Stdout => self.stdout.write(&text),
                        Stream::Stderr => {
                            // Keeps the order of the two where they are the same terminal.
                            self.stdout.flush();
                            self.stderr.write(&text);
                        }
                    }
                }
                Item::Flush(done) => {
                    self.idle();
                    let _ = done.try_send(());
                }
            }
        }
        self.idle();
    }

    fn idle(&mut self) {
        self.stdout.flush();
        if let Some(losses) = self.shared.losses() {
            self.stderr.write(&losses);
        }
        self.stderr.flush();
        if self.stdout.closed && !self.shared.closed.swap(true, Ordering::AcqRel) {
            self.shared.closing.notify_waiters();
        }
    }
}

struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
    closed: bool,
}

impl Output {
    fn new(writer: impl Write + Send + 'static) -> Self {
        Self {
            writer: BufWriter::with_capacity(32 * 1024, Box::new(writer)),
            closed: false,
        }
    }

    fn write(&mut self, text: &str) {
        if !self.closed {
            let result = self.writer.write_all(text.as_bytes());
            self.note(result);
        }
    }

    fn flush(&mut self) {
        if !self.closed {
            let result = self.writer.flush();
            self.note(result);
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        // Other errors (a full disk) may pass.
        self.closed |= result.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Memory {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (out, err) = (Memory::default(), Memory::default());
        let printer = Printer::with_outputs(out.clone(), err.clone()).unwrap();
        // The thread is held up by a text that waits to be made.
        let (go, wait) = channel::<()>();
        let (busy, is_busy) = channel::<()>();
        printer.flow(
            Stream::Stdout,
            Text::Later(Box::new(move || {
                busy.send(()).unwrap();
                wait.recv().unwrap();
                "first\n".to_owned()
            })),
        );
        is_busy.recv().unwrap();
        for _ in 0..QUEUE + 3 {
            printer.flow(Stream::Stdout, Text::Ready("x\n".to_owned()));
        }
        printer.log("lost\n".to_owned());
        go.send(()).unwrap();
        let (done, written) = sync_channel(1);
        printer.queue.send(Item::Flush(done)).unwrap();
        written.recv().unwrap();
        assert_eq!(out.text().lines().count(), QUEUE + 1);
        assert_eq!(
            err.text(),
            "… 3 flows and 1 log lines not shown: the terminal is too slow\n"
        );
    }

    #[tokio::test]
    async fn a_closed_standard_output_is_told() {
        let printer = Printer::with_outputs(Closed, Memory::default()).unwrap();
        assert!(!printer.is_closed());
        printer.flow(Stream::Stdout, Text::Ready("x\n".to_owned()));
        printer.closed().await;
        assert!(printer.is_closed());
    }
}

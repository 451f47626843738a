//! The way into a store: a bounded queue beside the wire.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tollgate_flow::record::{Content, HttpMessage, Record};

use crate::segment::lock;

/// How long the writer waits for more once something is there: what is written together costs less.
const LINGER: Duration = Duration::from_millis(20);

/// What a flow weighs in the queue beside its bodies and messages, about.
const FLOW_BYTES: usize = 4096;

/// Takes recorded flows: a store, a file.
///
/// ```
/// use std::sync::Mutex;
///
/// use tollgate_flow::record::Record;
/// use tollgate_store::{Capture, CaptureLimits, Dropped, RecordSink};
///
/// /// Keeps the newest URL.
/// struct Newest(Mutex<String>);
///
/// impl RecordSink for Newest {
///     fn record(&self, record: Record) -> Result<(), Dropped> {
///         if let (Some(http), Ok(mut url)) = (record.as_http(), self.0.lock()) {
///             *url = http.request.url();
///         }
///         Ok(())
///     }
/// }
///
/// let capture = Capture::new(Newest(Mutex::default()), CaptureLimits::default());
/// # let _ = capture;
/// ```
pub trait RecordSink: Send + Sync + 'static {
    /// Hands a flow over. Called on a connection's worker: it must not block.
    ///
    /// # Errors
    /// Why the flow is not kept. Whoever drops it counts it.
    fn record(&self, record: Record) -> Result<(), Dropped>;
}

impl RecordSink for FlowSink {
    fn record(&self, record: Record) -> Result<(), Dropped> {
        self.queue.push(record)
    }
}

/// Each gets the flow; the last error counts.
impl RecordSink for Vec<Box<dyn RecordSink>> {
    fn record(&self, record: Record) -> Result<(), Dropped> {
        let mut result = Ok(());
        let Some((last, others)) = self.split_last() else {
            return result;
        };
        for sink in others {
            result = sink.record(record.clone()).and(result);
        }
        last.record(record).and(result)
    }
}

/// Takes flows for a store. Clones are cheap and go to the same store.
#[derive(Clone)]
pub struct FlowSink {
    pub(crate) queue: Arc<Queue>,
}

/// Why a flow was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// More flows wait to be written than the limits allow.
    #[error("flows come faster than they can be written")]
    Behind,
    /// The store can't write: its disk is full, say. It goes on by itself when it can.
    #[error("the store can't write")]
    Stopped,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl FlowSink {
    /// Hands a flow over. It never blocks: it takes a lock that is held for the time of a push.
    ///
    /// # Errors
    /// Why the flow is not kept. That is counted, too, and leaves a gap in the numbers of the flows.
    pub fn record(&self, record: Record) -> Result<(), Dropped> {
        self.queue.push(record)
    }
}

impl fmt::Debug for FlowSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowSink").finish_non_exhaustive()
    }
}

/// What was dropped, and what was kept, since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub kept: AtomicU64,
    pub behind: AtomicU64,
    pub stopped: AtomicU64,
    pub lost: AtomicU64,
}

pub(crate) struct Queue {
    inner: Mutex<Inner>,
    /// For the writer: there is work.
    work: Condvar,
    /// For those who wait for a flush: there was work.
    done: Condvar,
    pub counters: Counters,
    max_flows: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Inner {
    records: VecDeque<Record>,
    bytes: usize,
    /// How many were pushed, and how many of them the writer has dealt with.
    pushed: u64,
    dealt_with: u64,
    /// Flows that were dropped since the last batch.
    dropped: u64,
    /// Somebody waits for what is in the queue.
    hurry: bool,
    /// How many times somebody asked for tidying, and how many of them are done.
    tidy_asked: u64,
    tidy_done: u64,
    stopped: bool,
    closed: bool,
}

/// What the writer gets.
pub(crate) struct Batch {
    pub records: VecDeque<Record>,
    /// How many flows were dropped before these.
    pub dropped: u64,
    /// Somebody wants the store tidied now: how often that was asked so far.
    pub tidy: Option<u64>,
    pub closed: bool,
}

impl Queue {
    pub fn new(max_flows: usize, max_bytes: usize) -> Self {
        Self {
            inner: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            counters: Counters::default(),
            max_flows,
            max_bytes,
        }
    }

    fn push(&self, record: Record) -> Result<(), Dropped> {
        let weight = weight(&record);
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(Dropped::Closed);
        }
        if inner.stopped {
            inner.dropped += 1;
            self.counters.stopped.fetch_add(1, Ordering::Relaxed);
            return Err(Dropped::Stopped);
        }
        if inner.records.len() >= self.max_flows
            || (inner.bytes.saturating_add(weight) > self.max_bytes && !inner.records.is_empty())
        {
            inner.dropped += 1;
            self.counters.behind.fetch_add(1, Ordering::Relaxed);
            return Err(Dropped::Behind);
        }
        let was_half_full = self.is_half_full(&inner);
        inner.bytes = inner.bytes.saturating_add(weight);
        inner.pushed += 1;
        inner.records.push_back(record);
        let wake = inner.records.len() == 1 || (!was_half_full && self.is_half_full(&inner));
        drop(inner);
        if wake {
            self.work.notify_one();
        }
        Ok(())
    }

    fn is_half_full(&self, inner: &Inner) -> bool {
        inner.records.len() >= (self.max_flows / 2).max(1)
            || inner.bytes >= (self.max_bytes / 2).max(1)
    }

    /// Waits for flows, at most `tick`, and takes them.
    pub fn take(&self, tick: Duration) -> Batch {
        let mut inner = lock(&self.inner);
        let deadline = Instant::now() + tick;
        let mut linger = None;
        loop {
            if inner.closed || inner.hurry || self.is_half_full(&inner) {
                break;
            }
            if linger.is_none() && !inner.records.is_empty() {
                linger = Some(Instant::now() + LINGER);
            }
            let until = linger.unwrap_or(deadline);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.work.wait_timeout(inner, left);
            inner = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(inner, _)| inner);
        }
        inner.bytes = 0;
        inner.hurry = false;
        Batch {
            records: std::mem::take(&mut inner.records),
            dropped: std::mem::take(&mut inner.dropped),
            tidy: (inner.tidy_asked > inner.tidy_done).then_some(inner.tidy_asked),
            closed: inner.closed,
        }
    }

    /// Says that the store was tidied as often as it was asked.
    pub fn tidied(&self, asked: u64) {
        lock(&self.inner).tidy_done = asked;
        self.done.notify_all();
    }

    /// Has the store tidied, and waits for it.
    pub fn tidy(&self) {
        let mut inner = lock(&self.inner);
        inner.tidy_asked += 1;
        let target = inner.tidy_asked;
        while inner.tidy_done < target && !inner.closed {
            inner.hurry = true;
            self.work.notify_one();
            let waited = self.done.wait(inner);
            inner = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Says that so many flows were written, or lost.
    pub fn dealt_with(&self, flows: u64) {
        lock(&self.inner).dealt_with += flows;
        self.done.notify_all();
    }

    /// Waits until all that was pushed before has been dealt with.
    pub fn flush(&self) {
        let mut inner = lock(&self.inner);
        let target = inner.pushed;
        while inner.dealt_with < target && !inner.closed {
            inner.hurry = true;
            self.work.notify_one();
            let waited = self.done.wait(inner);
            inner = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Refuses flows, or no longer.
    pub fn set_stopped(&self, stopped: bool) {
        lock(&self.inner).stopped = stopped;
    }

    pub fn is_stopped(&self) -> bool {
        lock(&self.inner).stopped
    }

    /// Refuses flows for good; the writer gets what is left.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
        self.work.notify_one();
        self.done.notify_all();
    }

    pub fn waiting(&self) -> usize {
        lock(&self.inner).records.len()
    }
}

fn weight(record: &Record) -> usize {
    let body = |message: &HttpMessage| message.body.data.as_ref().map_or(0, |data| data.len());
    let bytes = match &record.content {
        Content::Http(http) => {
            let response = http.response.as_ref().map_or(0, |r| body(&r.message));
            let messages = http.websocket.iter().flat_map(|socket| &socket.messages);
            let messages: usize = messages.map(|message| message.content.len() + 64).sum();
            body(&http.request.message) + response + messages
        }
        Content::Tcp(messages) | Content::Udp(messages) => messages
            .iter()
            .map(|message| message.content.len() + 64)
            .sum(),
        Content::Dns(_) => 0,
    };
    bytes.saturating_add(FLOW_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{Body, HttpExchange, HttpRequest};

    fn record(body: usize) -> Record {
        let mut request = HttpRequest::new("GET", "http", "a", 80, "/");
        request.message.body = Body::whole(vec![0; body]);
        Record::http("x", HttpExchange::new(request))
    }

    #[test]
    fn the_queue_is_bounded_by_flows_and_by_bytes() {
        let queue = Queue::new(3, 1 << 20);
        for _ in 0..3 {
            queue.push(record(0)).unwrap();
        }
        assert_eq!(queue.push(record(0)), Err(Dropped::Behind));
        let batch = queue.take(Duration::ZERO);
        assert_eq!((batch.records.len(), batch.dropped), (3, 1));
        // A flow that is larger than the bound by itself passes, alone.
        queue.push(record(2 << 20)).unwrap();
        assert_eq!(queue.push(record(0)), Err(Dropped::Behind));
        assert_eq!(queue.counters.behind.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_stopped_or_closed_queue_says_so() {
        let queue = Queue::new(3, 1 << 20);
        queue.set_stopped(true);
        assert_eq!(queue.push(record(0)), Err(Dropped::Stopped));
        queue.set_stopped(false);
        queue.push(record(0)).unwrap();
        queue.close();
        assert_eq!(queue.push(record(0)), Err(Dropped::Closed));
        let batch = queue.take(Duration::from_secs(60));
        assert!(batch.closed && batch.records.len() == 1 && batch.dropped == 1);
    }
}

//! The way into a store: a bounded queue beside the wire.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tollgate_flow::Flow;
use tollgate_flow::record::{Content, HeaderFields, HttpMessage, Record};

use crate::capture::Ended;
use crate::codec::Cursor;
use crate::entry::{Entry, Live, Message};
use crate::link::{Link, Links};
use crate::segment::lock;

/// How long the writer waits for more once something is there: what is written together costs less.
const LINGER: Duration = Duration::from_millis(100);

/// So many bytes are enough to write at once. More together cost hardly less, leave the processor's caches on the way,
/// and keep the writer at work for longer than workers should have to wait for its core.
const ENOUGH_BYTES: usize = 1 << 20;

/// What a record weighs in the queue beside its heads, bodies and messages, about; and what carried entries.
const FLOW_BYTES: usize = 4096;

/// What an entry takes beside its bodies, mostly.
const ENTRY_BYTES: usize = 1024;

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

    /// Hands over a flow that has just ended. As it is, a record is made of it; a sink that needs less does better.
    ///
    /// # Errors
    /// As for [`record`](Self::record).
    fn ended(&self, ended: Ended<'_>) -> Result<(), Dropped> {
        self.record(ended.into_record())
    }
}

impl RecordSink for FlowSink {
    fn record(&self, record: Record) -> Result<(), Dropped> {
        self.queue.push(record)
    }

    fn ended(&self, ended: Ended<'_>) -> Result<(), Dropped> {
        match ended.entry() {
            Some(entry) => self.queue.push_entry(&entry, ended.flow()),
            None => self.queue.push(ended.into_record()),
        }
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
    /// Flows in the order in which they came: each a mark, and behind it an entry, or nothing for the next record.
    flows: Vec<u8>,
    /// Buffers of those before them.
    full: Vec<Vec<u8>>,
    /// Buffers to be used next.
    spare: Vec<Vec<u8>>,
    records: VecDeque<Record>,
    /// What carried the entries.
    links: Links,
    waiting: usize,
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

/// What stands before an entry, and for a record.
const ENTRY: u8 = 1;
const RECORD: u8 = 0;

/// The size of a buffer. A flow for which there is no room in one begins the next: to move what is there into a larger one
/// takes milliseconds, in which every worker that has a flow waits.
const BUFFER_BYTES: usize = 1 << 20;

/// Buffers that go back and forth between workers and writer, at most.
const KEPT_BUFFERS: usize = 4;

/// What the writer gets.
#[derive(Default)]
pub(crate) struct Batch {
    pub flows: Flows,
    pub waiting: usize,
    /// How many flows were dropped before these.
    pub dropped: u64,
    /// Somebody wants the store tidied now: how often that was asked so far.
    pub tidy: Option<u64>,
    pub closed: bool,
}

/// The flows of a batch.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    buffers: Vec<Vec<u8>>,
    records: VecDeque<Record>,
    pub links: Vec<Link>,
}

/// One of them.
#[expect(
    clippy::large_enum_variant,
    reason = "most are entries, and none is kept"
)]
pub(crate) enum Queued<'a> {
    Entry(Entry<&'a [u8], &'a [u8]>),
    Record(Box<Record>),
}

impl Flows {
    /// Hands them out in order.
    pub fn each<E>(&mut self, mut found: impl FnMut(Queued<'_>) -> Result<(), E>) -> Result<(), E> {
        for buffer in &self.buffers {
            let mut cursor = Cursor(buffer);
            while let Some(mark) = cursor.u8() {
                let flow = match mark {
                    ENTRY => Entry::read_whole(&mut cursor).map(Queued::Entry),
                    _ => self
                        .records
                        .pop_front()
                        .map(|record| Queued::Record(Box::new(record))),
                };
                // It was written by this program: there is nothing else.
                let Some(flow) = flow else { return Ok(()) };
                found(flow)?;
            }
        }
        Ok(())
    }
}

impl Inner {
    /// A buffer that has room for so many bytes.
    fn room(&mut self, wanted: usize) -> &mut Vec<u8> {
        if self.flows.capacity() - self.flows.len() < wanted {
            let mut next = self.spare.pop().unwrap_or_default();
            next.reserve_exact(wanted.max(BUFFER_BYTES));
            let full = std::mem::replace(&mut self.flows, next);
            if !full.is_empty() {
                self.full.push(full);
            }
        }
        &mut self.flows
    }

    /// Takes all that have something in them.
    fn take_flows(&mut self) -> Vec<Vec<u8>> {
        let last = std::mem::take(&mut self.flows);
        if !last.is_empty() {
            self.full.push(last);
        }
        std::mem::take(&mut self.full)
    }
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
        self.put(weight, |inner| {
            inner.room(1).push(RECORD);
            inner.records.push_back(record);
            weight
        })
    }

    fn push_entry(&self, entry: &Entry<Live<'_>, &[u8]>, flow: &Flow) -> Result<(), Dropped> {
        let body = |message: &Message<Live<'_>, &[u8]>| message.body.map_or(0, <[u8]>::len);
        let response = entry
            .response
            .as_ref()
            .map_or(0, |answer| body(&answer.message));
        let about = body(&entry.request) + response + ENTRY_BYTES;
        self.put(about, |inner| {
            let links = inner.links.len();
            let link = inner.links.number(flow);
            let links = inner.links.len() - links;
            let buffer = inner.room(about);
            let before = buffer.len();
            buffer.push(ENTRY);
            Entry { link, ..*entry }.write_whole(buffer);
            buffer.len() - before + links * FLOW_BYTES
        })
    }

    /// Puts a flow in that weighs about so much; the function answers what it weighs.
    fn put(&self, about: usize, put: impl FnOnce(&mut Inner) -> usize) -> Result<(), Dropped> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err(Dropped::Closed);
        }
        if inner.stopped {
            inner.dropped += 1;
            self.counters.stopped.fetch_add(1, Ordering::Relaxed);
            return Err(Dropped::Stopped);
        }
        if inner.waiting >= self.max_flows
            || (inner.bytes.saturating_add(about) > self.max_bytes && inner.waiting > 0)
        {
            inner.dropped += 1;
            self.counters.behind.fetch_add(1, Ordering::Relaxed);
            return Err(Dropped::Behind);
        }
        let was_enough = self.is_enough(&inner);
        let weight = put(&mut inner);
        inner.bytes = inner.bytes.saturating_add(weight);
        inner.pushed += 1;
        inner.waiting += 1;
        let wake = inner.waiting == 1 || (!was_enough && self.is_enough(&inner));
        drop(inner);
        if wake {
            self.work.notify_one();
        }
        Ok(())
    }

    fn is_enough(&self, inner: &Inner) -> bool {
        let enough = (self.max_bytes / 2).clamp(1, ENOUGH_BYTES);
        inner.waiting >= (self.max_flows / 2).max(1) || inner.bytes >= enough
    }

    /// Waits for flows, at most `tick`, and takes them. The memory of the last batch is used again.
    pub fn take(&self, tick: Duration, last: Flows) -> Batch {
        let mut spare = last.buffers;
        spare.retain(|buffer| buffer.capacity() <= 2 * BUFFER_BYTES);
        spare.iter_mut().for_each(Vec::clear);
        let mut inner = lock(&self.inner);
        let deadline = Instant::now() + tick;
        let mut linger = None;
        loop {
            if inner.closed || inner.hurry || self.is_enough(&inner) {
                break;
            }
            if linger.is_none() && inner.waiting > 0 {
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
        spare.append(&mut inner.spare);
        let too_many = spare.split_off(spare.len().min(KEPT_BUFFERS));
        inner.spare = spare;
        let batch = Batch {
            flows: Flows {
                buffers: inner.take_flows(),
                records: std::mem::take(&mut inner.records),
                links: inner.links.take(),
            },
            waiting: std::mem::take(&mut inner.waiting),
            dropped: std::mem::take(&mut inner.dropped),
            tidy: (inner.tidy_asked > inner.tidy_done).then_some(inner.tidy_asked),
            closed: inner.closed,
        };
        // Workers wait for the lock, not for memory to be freed.
        drop(inner);
        drop(too_many);
        batch
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
        lock(&self.inner).waiting
    }
}

fn weight(record: &Record) -> usize {
    let message = |message: &HttpMessage| {
        let body = message.body.data.as_ref().map_or(0, |data| data.len());
        let fields = message.trailers.iter().chain([&message.headers]);
        let fields = fields.flat_map(HeaderFields::iter);
        body + fields
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>()
    };
    let bytes = match &record.content {
        Content::Http(http) => {
            let response = http.response.as_ref().map_or(0, |r| message(&r.message));
            let messages = http.websocket.iter().flat_map(|socket| &socket.messages);
            let messages: usize = messages.map(|message| message.content.len() + 64).sum();
            http.request.path.len() + message(&http.request.message) + response + messages
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
        let batch = queue.take(Duration::ZERO, Flows::default());
        assert_eq!((batch.waiting, batch.dropped), (3, 1));
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
        let batch = queue.take(Duration::from_secs(60), Flows::default());
        assert!(batch.closed && batch.waiting == 1 && batch.dropped == 1);
    }
}

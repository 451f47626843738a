//! Calls the handler off the path of the data: in order for each connection, with bounds.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::error;
use uuid::Uuid;

use super::config::MitmConfig;
use super::handler::InterceptHandler;
use super::scope::Scope;
use super::types::{RawResponse, StreamChunk};

/// Calls that one connection may have waiting.
const QUEUE: usize = 256;
/// What all that waits may hold, unless `body.max_size_bytes` asks for more.
const MEMORY: usize = 64 * 1024 * 1024;
/// What a waiting call costs beside its body.
const OVERHEAD: usize = 512;

/// The configuration in force.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub config: MitmConfig,
    pub scope: Scope,
}

/// What the parts of one proxy share.
pub(super) struct Shared {
    live: RwLock<Arc<Live>>,
    /// Where the handler's asynchronous methods run: the runtime that started the proxy.
    runtime: OnceLock<Handle>,
    pub counts: Counts,
    /// Bytes held for calls that wait, and for bodies that are being collected.
    memory: AtomicUsize,
    /// Lanes that have not been drained.
    lanes: watch::Sender<usize>,
}

#[derive(Default)]
pub(super) struct Counts {
    pub panics: AtomicU64,
    pub timeouts: AtomicU64,
    pub dropped: AtomicU64,
    pub attribution_failures: AtomicU64,
    pub attribution_timeouts: AtomicU64,
}

impl Shared {
    pub fn new(live: Live) -> Self {
        Self {
            live: RwLock::new(Arc::new(live)),
            runtime: OnceLock::new(),
            counts: Counts::default(),
            memory: AtomicUsize::new(0),
            lanes: watch::Sender::new(0),
        }
    }

    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_live(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    pub fn set_runtime(&self, runtime: Handle) {
        let _ = self.runtime.set(runtime);
    }

    pub fn runtime(&self) -> Option<&Handle> {
        self.runtime.get()
    }

    /// Waits until every lane is drained: the handler has had its last call.
    pub async fn drained(&self) {
        // The sender is ours, so that the wait can't fail.
        let _ = self.lanes.subscribe().wait_for(|lanes| *lanes == 0).await;
    }

    /// Calls a synchronous method of the handler; `None` when it panicked.
    pub fn guard<T>(&self, call: impl FnOnce() -> T) -> Option<T> {
        let result = catch_unwind(AssertUnwindSafe(call)).ok();
        if result.is_none() {
            self.panicked();
        }
        result
    }

    pub fn panicked(&self) {
        count(&self.counts.panics);
        error!("an intercept handler panicked");
    }

    /// Whether a panic costs only the call that it happened in.
    pub fn recovers(&self) -> bool {
        self.live().config.handler.recover_from_panics
    }
}

/// Adds one to a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A UUID of version 4.
pub(super) fn random_uuid() -> Uuid {
    let mut bytes = [0; 16];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        // Does not happen where TLS works at all; the ids would then not be unique.
        error!("no random numbers");
    }
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// A part of the memory that all waiting calls share; given back when dropped.
pub(super) struct Reserved {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Reserved {
    pub fn none(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            bytes: 0,
        }
    }

    /// Takes `bytes` more, if there are as many left.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let max_body = self.shared.live().config.body.max_size_bytes;
        let limit = MEMORY.max(max_body.saturating_mul(2));
        let taken = self.shared.memory.fetch_add(bytes, Ordering::Relaxed);
        if taken.saturating_add(bytes) > limit {
            self.shared.memory.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        true
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A call that waits.
pub(super) enum Call {
    Response(RawResponse),
    /// The response whose chunks follow; makes sure that there will be room for its end.
    StreamStart(RawResponse),
    Chunk(StreamChunk),
    StreamEnd,
}

struct Waiting {
    call: Call,
    _reserved: Reserved,
}

/// The calls for one connection (on HTTP/2: for one stream), one after the other. When the last owner
/// drops it and what waits is done, `on_connection_close` is called.
pub(super) struct Lane {
    pub id: Uuid,
    shared: Arc<Shared>,
    sender: mpsc::UnboundedSender<Waiting>,
    /// Calls that wait, and ends of streams that will.
    queued: Arc<AtomicUsize>,
    poisoned: Arc<AtomicBool>,
}

impl Lane {
    pub fn open<H: InterceptHandler>(
        handler: &Arc<H>,
        shared: &Arc<Shared>,
        id: Uuid,
    ) -> Arc<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let lane = Arc::new(Self {
            id,
            shared: Arc::clone(shared),
            sender,
            queued: Arc::default(),
            poisoned: Arc::default(),
        });
        if let Some(runtime) = shared.runtime() {
            shared.lanes.send_modify(|lanes| *lanes += 1);
            runtime.spawn(drain(
                Arc::clone(handler),
                Open(Arc::clone(shared)),
                id,
                receiver,
                Arc::clone(&lane.queued),
                Arc::clone(&lane.poisoned),
            ));
        }
        lane
    }

    /// Whether a panic has cost this connection its life.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }

    /// Queues a call; false (and counted) when there is no room. The end of a stream always has room.
    pub fn offer(&self, call: Call, mut reserved: Reserved) -> bool {
        let places = match call {
            Call::Response(_) | Call::Chunk(_) => 1,
            Call::StreamStart(_) => 2,
            Call::StreamEnd => 0,
        };
        let size = match &call {
            Call::Chunk(chunk) => chunk.payload.len().saturating_add(OVERHEAD),
            Call::StreamEnd => 0,
            // Its body was reserved while it was collected.
            Call::Response(_) | Call::StreamStart(_) => OVERHEAD,
        };
        let queued = self.queued.fetch_add(places, Ordering::Relaxed);
        let fits = places == 0 || (queued + places <= QUEUE && reserved.grow(size));
        let kept = fits
            && self
                .sender
                .send(Waiting {
                    call,
                    _reserved: reserved,
                })
                .is_ok();
        if !kept {
            self.queued.fetch_sub(places, Ordering::Relaxed);
            count(&self.shared.counts.dropped);
        }
        kept
    }
}

/// Counts a lane as open.
struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lanes.send_modify(|lanes| *lanes -= 1);
    }
}

async fn drain<H: InterceptHandler>(
    handler: Arc<H>,
    open: Open,
    id: Uuid,
    mut receiver: mpsc::UnboundedReceiver<Waiting>,
    queued: Arc<AtomicUsize>,
    poisoned: Arc<AtomicBool>,
) {
    let shared = &open.0;
    while let Some(waiting) = receiver.recv().await {
        queued.fetch_sub(1, Ordering::Relaxed);
        let limit = Duration::from_millis(shared.live().config.handler.response_timeout_ms);
        let done = match &waiting.call {
            Call::Response(response) | Call::StreamStart(response) => {
                timeout(limit, catch(handler.on_response(response))).await
            }
            Call::Chunk(chunk) => timeout(limit, catch(handler.on_stream_chunk(chunk))).await,
            Call::StreamEnd => timeout(limit, catch(handler.on_stream_end(id))).await,
        };
        match done {
            Ok(Ok(())) => {}
            Ok(Err(Panicked)) => {
                shared.panicked();
                if !shared.recovers() {
                    poisoned.store(true, Ordering::Relaxed);
                }
            }
            Err(_) => count(&shared.counts.timeouts),
        }
    }
    shared.guard(|| handler.on_connection_close(id));
}

struct Panicked;

/// Turns a panic of a future into an error.
async fn catch<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        },
    )
    .await
}

//! Upstream connections that many exchanges share.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tollgate_flow::{ErrorClass, FlowError, Side, UpstreamInfo};
use tracing::debug;

use crate::metrics::count;
use crate::pool::{Destination, Route, UpConn};
use crate::session::{Session, UpstreamError};

use super::io::Io;
use super::{CONNECTION_WINDOW, MAX_FRAME, SEND_BUFFER, STREAM_WINDOW};

/// Streams that one of our upstream connections may carry before another is opened.
pub(super) const STREAMS_PER_UPSTREAM: usize = 100;

/// An upstream HTTP/2 connection that many exchanges use at once.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(super) send: SendRequest<Bytes>,
    pub info: Arc<UpstreamInfo>,
    pub route: Arc<Route>,
    pub(super) state: Arc<SharedState>,
}

pub(super) struct SharedState {
    /// Exchanges under way.
    pub(super) streams: AtomicUsize,
    pub(super) last_used: Mutex<Instant>,
    pub(super) closed: AtomicBool,
}

impl Shared {
    pub fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Relaxed)
    }

    pub(super) fn streams(&self) -> usize {
        self.state.streams.load(Ordering::Relaxed)
    }
}

/// Counts an exchange on a shared connection for as long as it lives.
pub(super) struct InUse(pub(super) Arc<SharedState>);

impl InUse {
    pub(super) fn new(shared: &Shared) -> Self {
        shared.state.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&shared.state))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self
                .0
                .last_used
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }
}

/// The upstream HTTP/2 connections of a worker.
#[derive(Default)]
pub(crate) struct SharedConnections {
    pub(super) by_route: HashMap<Arc<Route>, Vec<Shared>>,
}

impl SharedConnections {
    /// A connection with room for another stream.
    pub fn get(&mut self, route: &Route) -> Option<Shared> {
        let list = self.by_route.get_mut(route)?;
        list.retain(Shared::is_open);
        if list.is_empty() {
            self.by_route.remove(route);
            return None;
        }
        list.iter()
            .filter(|s| s.streams() < STREAMS_PER_UPSTREAM)
            .min_by_key(|s| s.streams())
            .cloned()
    }

    pub(super) fn add(&mut self, shared: &Shared) {
        self.by_route
            .entry(Arc::clone(&shared.route))
            .or_default()
            .push(shared.clone());
    }

    pub fn knows(&self, destination: &Destination) -> bool {
        self.by_route
            .iter()
            .any(|(route, list)| route.to == *destination && list.iter().any(Shared::is_open))
    }

    /// Forgets those without streams for `limit`; without our handle they close.
    pub fn expire(&mut self, limit: Duration) {
        self.by_route.retain(|_, list| {
            list.retain(|shared| {
                let last_used = *shared
                    .state
                    .last_used
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                shared.is_open() && (shared.streams() > 0 || last_used.elapsed() < limit)
            });
            !list.is_empty()
        });
    }

    pub fn remove_route(&mut self, route: &Route) {
        self.by_route.remove(route);
    }

    /// Forgets all: exchanges under way end, new ones get new connections.
    pub fn clear(&mut self) {
        self.by_route.clear();
    }
}

/// Looks for a connection that is open already.
pub(crate) fn shared(session: &Session, route: &Route) -> Option<Shared> {
    let worker = &session.worker;
    let found = worker
        .h2
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(route)?;
    count(&worker.counters.upstream_reused);
    Some(found)
}

/// Begins HTTP/2 on a connection whose origin chose it.
pub(crate) async fn start(session: &Session, up: UpConn) -> Result<Shared, UpstreamError> {
    let config = &session.live.config;
    let failed = |e: h2::Error| {
        FlowError::new(
            Side::Upstream,
            ErrorClass::Protocol,
            format!("HTTP/2 can't be begun with {}: {e}", up.route.to.target),
        )
    };
    let (io, outlet) = Io::new(up.conn, &session.worker, None);
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(config.limits.head_bytes.try_into().unwrap_or(u32::MAX))
        .enable_push(false)
        .handshake(io)
        .await;
    let (send, connection) = handshake.map_err(failed)?;
    let state = Arc::new(SharedState {
        streams: AtomicUsize::new(0),
        last_used: Mutex::new(Instant::now()),
        closed: AtomicBool::new(false),
    });
    let shared = Shared {
        send,
        info: up.info,
        route: up.route,
        state: Arc::clone(&state),
    };
    let slot = up.slot;
    tokio::spawn(async move {
        let _slot = slot;
        let mut connection = pin!(connection);
        let ended = poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            outlet.end_turn(cx);
            polled
        })
        .await;
        if let Err(error) = ended {
            debug!(%error, "an upstream HTTP/2 connection ended");
        }
        state.closed.store(true, Ordering::Relaxed);
    });
    session
        .worker
        .h2
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .add(&shared);
    Ok(shared)
}

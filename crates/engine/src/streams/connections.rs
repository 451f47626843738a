//! Upstream connections that many exchanges share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tollgate_flow::{ConnectionId, UpstreamInfo};

use crate::metrics::count;
use crate::pool::{Destination, Route};
use crate::session::Session;

/// Streams that one of our upstream connections may carry before another is opened.
const STREAMS_PER_UPSTREAM: usize = 100;

/// An upstream connection that many exchanges use at once.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) carrier: Carrier,
    pub info: Arc<UpstreamInfo>,
    pub route: Arc<Route>,
    pub(crate) state: Arc<SharedState>,
}

/// What carries the streams.
#[derive(Clone)]
pub(crate) enum Carrier {
    H2(SendRequest<Bytes>),
    #[cfg(feature = "http3")]
    H3(crate::h3::Client),
}

pub(crate) struct SharedState {
    /// Exchanges under way.
    streams: AtomicUsize,
    last_used: Mutex<Instant>,
    closed: AtomicBool,
}

impl SharedState {
    /// No further streams go onto the connection.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// A connection that was just made. Others find it once it is [listed](Self::list).
    pub(crate) fn new(carrier: Carrier, info: Arc<UpstreamInfo>, route: Arc<Route>) -> Self {
        Self {
            carrier,
            info,
            route,
            state: Arc::new(SharedState {
                streams: AtomicUsize::new(0),
                last_used: Mutex::new(Instant::now()),
                closed: AtomicBool::new(false),
            }),
        }
    }

    /// From now on it stands among the worker's.
    pub(crate) fn list(self, session: &Session) -> Self {
        session.worker.shared_upstreams().add(&self);
        self
    }

    pub fn is_open(&self) -> bool {
        let is_leaving = match &self.carrier {
            Carrier::H2(_) => false,
            #[cfg(feature = "http3")]
            Carrier::H3(client) => client.is_leaving(),
        };
        !is_leaving && !self.state.closed.load(Ordering::Relaxed)
    }

    fn streams(&self) -> usize {
        self.state.streams.load(Ordering::Relaxed)
    }
}

/// Counts an exchange on a shared connection for as long as it lives.
pub(crate) struct InUse(Arc<SharedState>);

impl InUse {
    pub(crate) fn new(shared: &Shared) -> Self {
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

/// The shared upstream connections of a worker.
#[derive(Default)]
pub(crate) struct SharedConnections {
    by_route: HashMap<Arc<Route>, Vec<Shared>>,
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

    fn add(&mut self, shared: &Shared) {
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

    /// Forgets those that a client's connection has for itself: with what is under way on them they close.
    pub fn drop_isolated(&mut self, client: ConnectionId) {
        self.by_route
            .retain(|route, _| route.isolation != Some(client));
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
    let found = worker.shared_upstreams().get(route)?;
    count(&worker.counters.upstream_reused);
    Some(found)
}

//! Idle upstream connections, one pool for each worker, keyed by [`Route`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tollgate_flow::{ConnectionId, Target, UpstreamInfo, UpstreamProxy};

use crate::config::PoolConfig;
use crate::io::Conn;
use crate::metrics::{Counters, count, uncount};

/// Where and how to dial: the recipe, and the key under which the connection is kept. What is
/// dialled but not hashed would hand one client's connection to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    pub to: Destination,
    /// The proxy reads the requests: what stands in `to` is the proxy itself, and nothing is asked
    /// of it before the first request.
    pub forward: bool,
    /// HTTP/2 without TLS, with prior knowledge (RFC 9113 section 3.3): the client has it, too.
    pub h2c: bool,
    pub tls: Option<RouteTls>,
    /// Set where a connection may serve one client connection only: mirror mode, and
    /// authentication that is bound to the connection (NTLM, Negotiate).
    pub isolation: Option<ConnectionId>,
    /// The configuration it was dialled with: a reload must not hand out what an older one verified.
    pub generation: u64,
}

impl Route {
    /// Whether it is gone by QUIC.
    #[cfg(feature = "http3")]
    pub fn is_h3(&self) -> bool {
        let offer = self.tls.as_ref().map(|tls| &*tls.alpn);
        matches!(offer, Some([only]) if only == crate::h3::ALPN)
    }

    /// Whether a connection of this route may carry what another would, for the same client.
    pub fn is_same_way(&self, other: &Self) -> bool {
        self.to == other.to
            && self.forward == other.forward
            && self.h2c == other.h2c
            && self.tls == other.tls
    }
}

/// Whom a connection leads to, on whose behalf.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    pub target: Target,
    /// The proxy on the way.
    pub via: Option<Arc<UpstreamProxy>>,
    /// The listener that the client came to, and who it is: neither shares connections with others.
    pub port: u32,
    pub user: Option<Arc<str>>,
}

/// Origins that were found not to speak HTTP/2 without TLS, and when.
#[derive(Default)]
pub(crate) struct NotH2c(Mutex<HashMap<Destination, Instant>>);

impl NotH2c {
    /// So many are remembered; then all are forgotten, and asked once more.
    #[cfg(feature = "http2")]
    const MAX: usize = 1024;

    /// So long it counts: an origin that was just starting, say, is asked again.
    const MAX_AGE: Duration = Duration::from_secs(600);

    pub fn contains(&self, destination: &Destination) -> bool {
        self.lock()
            .get(destination)
            .is_some_and(|since| since.elapsed() < Self::MAX_AGE)
    }

    #[cfg(feature = "http2")]
    pub fn add(&self, destination: &Destination) {
        let mut known = self.lock();
        if known.len() >= Self::MAX {
            known.clear();
        }
        known.insert(destination.clone(), Instant::now());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Destination, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How TLS is spoken on a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RouteTls {
    pub sni: Arc<str>,
    pub alpn: Arc<[Vec<u8>]>,
}

#[cfg(feature = "http2")]
impl RouteTls {
    /// Whether the connection may become one that many exchanges share.
    pub fn may_be_shared(&self) -> bool {
        self.alpn.iter().any(|p| p == b"h2" || p == b"h3")
    }

    /// The same for what needs a connection of its own: only HTTP/1 is offered.
    pub fn only_http1(self) -> Self {
        Self {
            alpn: Arc::new([b"http/1.1".to_vec()]),
            ..self
        }
    }
}

/// A connection to an origin that speaks HTTP/1, or whatever the client makes of it.
pub(crate) struct UpConn {
    pub conn: Conn,
    pub info: Arc<UpstreamInfo>,
    pub route: Arc<Route>,
    /// It has carried an exchange before.
    pub reused: bool,
    /// It must not serve another client connection.
    pub pinned: bool,
    /// Its place among the connections to its destination, where their number is bounded.
    pub slot: Option<Slot>,
}

impl UpConn {
    /// Whether the origin chose HTTP/2.
    pub fn is_h2(&self) -> bool {
        self.info.alpn.as_deref() == Some(b"h2")
    }

    /// Adds what passed since the last call to the counters.
    pub fn count_bytes(&mut self, counters: &Counters) {
        crate::metrics::add_to(&counters.upstream_bytes_in, self.conn.rd.take_received());
        crate::metrics::add_to(&counters.upstream_bytes_out, self.conn.wr.take_sent());
    }
}

/// Counts the connections to each destination, where `max_per_route` bounds them.
#[derive(Default)]
pub(crate) struct Slots(Mutex<HashMap<Target, Arc<SlotState>>>);

#[derive(Default)]
pub(crate) struct SlotState {
    open: AtomicUsize,
    /// A connection was closed, or given to the pool.
    pub freed: Notify,
}

/// A place among the connections to a destination, for as long as it lives.
pub(crate) struct Slot(Arc<SlotState>);

impl Slots {
    pub fn of(&self, target: &Target) -> Arc<SlotState> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(target.clone()).or_default())
    }

    /// Forgets destinations without connections.
    pub fn prune(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, state| Arc::strong_count(state) > 1);
    }
}

impl SlotState {
    /// Whether there is a connection.
    pub fn is_taken(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Takes a place, if fewer than `max` are taken.
    pub fn take(self: &Arc<Self>, max: usize) -> Option<Slot> {
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < max).then_some(n + 1)
            })
            .ok()
            .map(|_| Slot(Arc::clone(self)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.freed.notify_waiters();
    }
}

/// Idle connections.
#[derive(Default)]
pub(crate) struct Pool {
    idle: HashMap<Arc<Route>, Vec<(UpConn, Instant)>>,
    len: usize,
    /// Idle connections by destination, whatever the TLS on them: knowing that there is one saves
    /// dialling before a CONNECT is answered.
    destinations: HashMap<Destination, usize>,
}

impl Pool {
    /// Takes the connection that was used last; dead ones on the way are dropped.
    pub fn take(&mut self, route: &Route, counters: &Counters) -> Option<UpConn> {
        loop {
            let list = self.idle.get_mut(route)?;
            let popped = list.pop();
            if list.is_empty() {
                self.idle.remove(route);
            }
            let (mut up, _) = popped?;
            self.removed(&up.route.to, counters);
            if up.conn.is_idle_alive() {
                up.reused = true;
                return Some(up);
            }
        }
    }

    /// Takes a connection that has carried nothing yet: what it speaks is open.
    #[cfg(feature = "http2")]
    pub fn take_unused(&mut self, route: &Route, counters: &Counters) -> Option<UpConn> {
        loop {
            let list = self.idle.get_mut(route)?;
            let at = list.iter().position(|(up, _)| !up.reused)?;
            let (mut up, _) = list.remove(at);
            if list.is_empty() {
                self.idle.remove(route);
            }
            self.removed(&up.route.to, counters);
            if up.conn.is_idle_alive() {
                return Some(up);
            }
        }
    }

    /// Whether there is an idle connection to a destination.
    pub fn knows(&self, destination: &Destination) -> bool {
        self.destinations.contains_key(destination)
    }

    /// Keeps a connection. At a bound the oldest goes.
    pub fn put(&mut self, up: UpConn, config: &PoolConfig, counters: &Counters) {
        if config.max_idle == 0 || config.max_idle_per_route == 0 || up.pinned {
            return;
        }
        if self.len >= config.max_idle {
            self.evict_oldest(counters);
        }
        *self.destinations.entry(up.route.to.clone()).or_default() += 1;
        let list = self.idle.entry(Arc::clone(&up.route)).or_default();
        let full = list.len() >= config.max_idle_per_route;
        let dropped = full.then(|| list.remove(0));
        let slot = up.slot.as_ref().map(|slot| Arc::clone(&slot.0));
        list.push((up, Instant::now()));
        if let Some(state) = slot {
            state.freed.notify_waiters();
        }
        self.len += 1;
        count(&counters.upstream_idle);
        if let Some((up, _)) = dropped {
            count(&counters.upstream_evicted);
            self.removed(&up.route.to, counters);
        }
    }

    /// Drops what has been idle for longer than `limit`.
    pub fn expire(&mut self, limit: Duration, counters: &Counters) {
        let now = Instant::now();
        let mut expired = Vec::new();
        self.idle.retain(|_, list| {
            // The oldest stand first.
            let old = list
                .iter()
                .take_while(|(_, since)| now.duration_since(*since) >= limit)
                .count();
            expired.extend(list.drain(..old));
            !list.is_empty()
        });
        for (up, _) in expired {
            count(&counters.upstream_evicted);
            self.removed(&up.route.to, counters);
        }
    }

    /// Drops what only one client connection could use, once that has ended.
    pub fn drop_isolated(&mut self, client: ConnectionId, counters: &Counters) {
        let mut dropped = Vec::new();
        self.idle.retain(|route, list| {
            let keep = route.isolation != Some(client);
            if !keep {
                dropped.append(list);
            }
            keep
        });
        for (up, _) in dropped {
            self.removed(&up.route.to, counters);
        }
    }

    /// Drops everything.
    pub fn clear(&mut self, counters: &Counters) {
        self.expire(Duration::ZERO, counters);
    }

    fn evict_oldest(&mut self, counters: &Counters) {
        let oldest = self
            .idle
            .iter()
            .filter_map(|(route, list)| list.first().map(|(_, since)| (*since, Arc::clone(route))))
            .min_by_key(|(since, _)| *since);
        let Some((_, route)) = oldest else { return };
        if let Entry::Occupied(mut entry) = self.idle.entry(route) {
            let (up, _) = entry.get_mut().remove(0);
            if entry.get().is_empty() {
                entry.remove();
            }
            count(&counters.upstream_evicted);
            self.removed(&up.route.to, counters);
        }
    }

    fn removed(&mut self, destination: &Destination, counters: &Counters) {
        self.len = self.len.saturating_sub(1);
        if counters.upstream_idle.load(Ordering::Relaxed) > 0 {
            uncount(&counters.upstream_idle);
        }
        if let Some(n) = self.destinations.get_mut(destination) {
            *n -= 1;
            if *n == 0 {
                self.destinations.remove(destination);
            }
        }
    }
}

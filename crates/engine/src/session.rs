//! What belongs to one client connection while it is served.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tollgate_flow::{
    ConnectionId, ConnectionInfo, ErrorClass, Flow, FlowError, FlowId, HttpVersion, OnFailure,
    Outcome, OutcomeKind, ProxyScheme, Side, Target, TlsFailure, TlsFailureKind, UpstreamInfo,
    UpstreamProxy, Via,
};
use tracing::{debug, warn};

use crate::config::{PoolMode, UpstreamHttp};
use crate::dial::{Own, dial, not_public};
use crate::hooks::Run;
use crate::io::Conn;
use crate::metrics::{Counters, add_to, count, uncount};
use crate::mode::Mode;
use crate::pool::{Destination, Route, RouteTls, Slot, UpConn};
use crate::proxy::{Live, Worker};
use crate::proxy_protocol;
use crate::sandwich::{Issued, Ticket, Tickets};
use crate::timer::Timer;
use crate::tls::{failure, handshake};
use crate::via;

/// One client connection.
pub(crate) struct Session {
    pub worker: Arc<Worker>,
    /// The configuration that was in force when the connection was accepted.
    pub live: Arc<Live>,
    pub info: Arc<ConnectionInfo>,
    /// The mode of the listener that accepted it, then.
    pub mode: Arc<Mode>,
    /// That listener.
    pub port: u32,
    /// Our address that the connection came to: what a PROXY header says of it is the client's address for it.
    pub reached: SocketAddr,
    pub timer: Timer,
    pub control: Arc<Control>,
    /// Of a request that a scanner gives back: what it was.
    pub acting_for: Option<Arc<Ticket>>,
}

impl Session {
    pub fn counters(&self) -> &Counters {
        &self.worker.counters
    }

    /// Starts a flow: gives it its id and its times.
    pub fn begin_flow(&self, flow: &mut Flow) {
        flow.upstream = None;
        flow.metadata.clear();
        flow.replay = None;
        flow.websocket = None;
        let now = SystemTime::now();
        flow.id = FlowId::new(now, self.worker.shared.unique());
        flow.timing = tollgate_flow::Timing {
            started: now,
            start: Instant::now(),
            ..Default::default()
        };
        count(&self.counters().flows_total);
        count(&self.counters().flows_active);
    }

    /// The scanner that this connection's requests go to first.
    pub fn scanner(&self) -> Option<&Arc<UpstreamProxy>> {
        match &self.live.config.sandwich {
            Some(sandwich) if *self.mode != Mode::Return => Some(&sandwich.scanner),
            _ => None,
        }
    }

    /// The way to a destination for bytes that no proxy on it is to read.
    pub fn destination(&self, target: &Target, asked: &Via) -> Destination {
        Destination {
            target: target.clone(),
            via: via::choose(&self.live.config, &self.mode, asked, target),
            port: self.port,
            user: self.user(),
        }
    }

    /// The client whose request is under way.
    fn client(&self) -> SocketAddr {
        match &self.acting_for {
            Some(ticket) => ticket.client,
            None => self.info.client,
        }
    }

    /// Whose request is under way: the client's, or, where a scanner gives one back, its client's.
    fn user(&self) -> Option<Arc<str>> {
        match &self.acting_for {
            Some(ticket) => ticket.user.clone(),
            None => self.info.user().cloned(),
        }
    }

    /// The route to a destination for this connection, for bytes that no proxy is to read.
    pub fn route(&self, to: Destination, tls: Option<RouteTls>, pinned: bool) -> Route {
        let config = &self.live.config;
        let own = pinned
            || config.pool.mode == PoolMode::Mirror
            // The header that the connection begins with names this client.
            || config.proxy_protocol.send.is_some();
        Route {
            to,
            forward: false,
            h2c: false,
            tls,
            isolation: own.then_some(match &self.acting_for {
                Some(ticket) => ticket.connection,
                None => self.info.id,
            }),
            generation: self.live.generation,
        }
    }

    /// The route for a request. `tls` is for the origin, `upgrades` a request that may turn the
    /// connection into something else.
    pub fn request_route(
        &self,
        request: &tollgate_flow::Request,
        tls: Option<&RouteTls>,
        pinned: bool,
        upgrades: bool,
    ) -> Route {
        let forwarded = |proxy: &Arc<UpstreamProxy>| Destination {
            target: proxy.address.clone(),
            via: Some(Arc::clone(proxy)),
            port: self.port,
            user: self.user(),
        };
        if let Some(scanner) = self.scanner() {
            return Route {
                forward: true,
                ..self.route(forwarded(scanner), None, pinned)
            };
        }
        let to = self.destination(&request.target, &request.via);
        match &to.via {
            // A proxy for HTTP reads what is plain HTTP.
            Some(proxy) if tls.is_none() && !upgrades && proxy.scheme != ProxyScheme::Socks5 => {
                Route {
                    forward: true,
                    ..self.route(forwarded(proxy), None, pinned)
                }
            }
            _ => {
                let h2c =
                    tls.is_none() && request.version == HttpVersion::Http2 && self.tries_h2c(&to);
                Route {
                    h2c,
                    ..self.route(to, tls.cloned(), pinned)
                }
            }
        }
    }

    /// Whether HTTP/2 is tried without TLS, for a client that speaks it so: where the origin isn't
    /// known not to.
    pub fn tries_h2c(&self, to: &Destination) -> bool {
        let config = &self.live.config;
        cfg!(feature = "http2")
            && config.http2
            && config.upstream_http != UpstreamHttp::Http1
            && !self.worker.not_h2c.contains(to)
    }

    /// Whether a request may go straight to its origin because the scanner isn't there.
    pub fn may_bypass(&self, error: &UpstreamError) -> bool {
        let open = self.scanner().is_some()
            && matches!(&self.live.config.sandwich, Some(s) if s.on_failure == OnFailure::Open)
            && matches!(
                error,
                UpstreamError::Tls(_)
                    | UpstreamError::Flow(FlowError {
                        side: Side::Upstream,
                        class: ErrorClass::Connect | ErrorClass::Dns | ErrorClass::Timeout,
                        ..
                    })
            );
        if open {
            count(&self.counters().scanner_bypassed);
            warn!(client = %self.info.client, "unscanned: {}", error.clone().into_flow_error());
        }
        open
    }

    /// The scanner's ticket for a request that goes along a route, where it needs one.
    pub fn ticket<'t>(
        &self,
        tickets: &'t Tickets,
        route: &Route,
        request: &tollgate_flow::Request,
        tls: Option<&RouteTls>,
    ) -> Result<Option<Issued<'t>>, FlowError> {
        if !route.forward || self.scanner().is_none() {
            return Ok(None);
        }
        let via = via::choose(&self.live.config, &self.mode, &request.via, &request.target);
        tickets
            .issue(
                request,
                tls.cloned(),
                (self.info.client, self.info.id),
                self.user(),
                via,
            )
            .map(Some)
    }

    /// Takes an idle connection, if the pool has one.
    pub fn pooled(&self, route: &Route) -> Option<UpConn> {
        let mut pool = self.worker.pool();
        let up = pool.take(route, self.counters())?;
        count(&self.counters().upstream_reused);
        Some(up)
    }

    /// Another session of the same connection, with a timer of its own.
    pub fn another(&self) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            live: Arc::clone(&self.live),
            info: Arc::clone(&self.info),
            mode: Arc::clone(&self.mode),
            port: self.port,
            reached: self.reached,
            timer: Timer::default(),
            control: Arc::clone(&self.control),
            acting_for: None,
        }
    }

    /// Finds a connection for a route: an open or idle one, or a new one. `dialled` is a TCP
    /// connection that was made for it already.
    pub async fn acquire(
        &self,
        route: Route,
        dialled: Option<Dialled>,
    ) -> Result<Up, UpstreamError> {
        if dialled.is_none() {
            if let Some(up) = self.pooled(&route) {
                return Ok(Up::Conn(up));
            }
            #[cfg(feature = "http2")]
            if let Some(shared) = crate::streams::connections::shared(self, &route) {
                return Ok(Up::Shared(shared));
            }
        }
        // Boxed: most exchanges find a connection, and don't carry the state of making one.
        Box::pin(self.make(route, dialled)).await
    }

    /// Makes a new connection for a route, even if there are others.
    pub async fn fresh(&self, route: Route) -> Result<Up, UpstreamError> {
        Box::pin(self.make(route, None)).await
    }

    async fn make(&self, route: Route, dialled: Option<Dialled>) -> Result<Up, UpstreamError> {
        let slot = match self.live.config.pool.max_per_route {
            0 => None,
            max => match self.slot(&route, max).await? {
                Place::Free(slot) => Some(slot),
                Place::Pooled(up) => return Ok(Up::Conn(up)),
            },
        };
        #[cfg(feature = "http3")]
        if route.is_h3() {
            let shared = crate::h3::connect(self, Arc::new(route), slot).await?;
            return Ok(Up::Shared(shared));
        }
        #[cfg(feature = "http2")]
        let h2c = route.h2c;
        #[cfg(feature = "http2")]
        let idle = h2c.then(|| Route {
            h2c: false,
            ..route.clone()
        });
        let route = Arc::new(route);
        // The connection that showed the origin to be alive has said nothing yet.
        #[cfg(feature = "http2")]
        let unused = idle.and_then(|idle| self.worker.pool().take_unused(&idle, self.counters()));
        #[cfg(not(feature = "http2"))]
        let unused = None::<UpConn>;
        let up = match unused {
            Some(up) => UpConn { route, ..up },
            None => {
                let mut up = self.connect(route, dialled).await?;
                up.slot = slot;
                up
            }
        };
        #[cfg(feature = "http2")]
        if h2c {
            let mut up = up;
            let (slot, route) = (up.slot.take(), Arc::clone(&up.route));
            if let Some(shared) = crate::h2::start_h2c(self, up).await? {
                return Ok(Up::Shared(shared));
            }
            // It doesn't speak it: from now on it is asked in HTTP/1.
            self.worker.not_h2c.add(&route.to);
            let plain = Route {
                h2c: false,
                ..Route::clone(&route)
            };
            let mut up = self.connect(Arc::new(plain), None).await?;
            up.slot = slot;
            return Ok(Up::Conn(up));
        }
        if !up.is_h2() {
            return Ok(Up::Conn(up));
        }
        #[cfg(feature = "http2")]
        return Ok(Up::Shared(crate::h2::start(self, up).await?));
        #[cfg(not(feature = "http2"))]
        Err(FlowError::new(
            Side::Upstream,
            ErrorClass::Protocol,
            "the origin chose HTTP/2, which this build does not speak",
        )
        .into())
    }

    /// Waits for a place among the connections to a destination, or for one of them to be idle.
    async fn slot(&self, route: &Route, max: usize) -> Result<Place, FlowError> {
        let state = self.worker.slots.of(&route.to.target);
        let limit = self.live.config.timeouts.connect;
        let wait = async {
            loop {
                let freed = state.freed.notified();
                if let Some(slot) = state.take(max) {
                    return Place::Free(slot);
                }
                if let Some(up) = self.pooled(route) {
                    return Place::Pooled(up);
                }
                freed.await;
            }
        };
        if limit.is_zero() {
            return Ok(wait.await);
        }
        timeout(limit, wait).await.map_err(|_| {
            FlowError::new(
                Side::Proxy,
                ErrorClass::Limit,
                format!(
                    "all {max} connections to {} were busy for {limit:?}",
                    route.to.target
                ),
            )
        })
    }

    /// Gives a connection to the pool. A shared one stands with its like anyway.
    pub fn give_back(&self, up: Up) {
        let mut up = match up {
            Up::Conn(up) => up,
            #[cfg(feature = "http2")]
            Up::Shared(_) => return,
        };
        up.count_bytes(self.counters());
        if !self.live_is_current() {
            return;
        }
        let config = &self.live.config.pool;
        self.worker.pool().put(up, config, self.counters());
    }

    fn live_is_current(&self) -> bool {
        self.worker.shared.live.load().generation == self.live.generation
            && !self.control.is_draining()
    }

    /// Makes a TCP connection to a destination.
    async fn dial_tcp(
        &self,
        target: &Target,
        own: Own,
    ) -> Result<(Conn, SocketAddr, SocketAddr, Duration), FlowError> {
        let shared = &self.worker.shared;
        let config = &self.live.config;
        let started = Instant::now();
        let local = self.reached;
        let stream = dial(
            &shared.dns,
            target,
            config,
            self.counters(),
            own,
            |address| shared.is_ourselves(address, local, false),
        )
        .await?;
        let failed = |e: std::io::Error| {
            FlowError::new(
                Side::Upstream,
                ErrorClass::Connect,
                format!("can't connect to {target}: {e}"),
            )
        };
        let address = stream.peer_addr().map_err(failed)?;
        let local = stream.local_addr().map_err(failed)?;
        Ok((Conn::tcp(stream), address, local, started.elapsed()))
    }

    /// Makes a connection by a route: TCP, and TLS where the route says so.
    async fn connect(
        &self,
        route: Arc<Route>,
        dialled: Option<Dialled>,
    ) -> Result<UpConn, UpstreamError> {
        let Dialled {
            mut conn,
            address,
            local,
            connected,
            connect_time,
        } = match dialled {
            Some(dialled) => dialled,
            None => self.dial(&route.to, route.forward).await?,
        };
        let mut info = UpstreamInfo {
            address,
            via: route.to.via.clone(),
            local,
            tls_version: None,
            alpn: None,
            certificates: Arc::new([]),
            unverified: false,
            connected,
            connect_time,
            handshake_time: Duration::ZERO,
        };
        if let Some(tls) = &route.tls {
            let started = Instant::now();
            let agreed = self.handshake(&mut conn, &route.to.target, tls).await?;
            info.handshake_time = started.elapsed();
            info.tls_version = Some(agreed.0.version);
            info.alpn = agreed.0.alpn;
            info.certificates = agreed.0.certificates;
            info.unverified = agreed.1;
        }
        Ok(UpConn {
            conn,
            info: Arc::new(info),
            route,
            reused: false,
            pinned: false,
            slot: None,
        })
    }

    /// Dials, through the proxy on the way if there is one; what is behind it has been told nothing
    /// yet. To a proxy that is to `forward` requests, the connection ends there.
    pub async fn dial(&self, to: &Destination, forward: bool) -> Result<Dialled, UpstreamError> {
        let config = &self.live.config;
        let Some(proxy) = &to.via else {
            let own = match &*self.mode {
                Mode::Reverse(reverse) if reverse.target == to.target => Own::Configured,
                _ => Own::Asked,
            };
            let mut dialled = self.dial_retrying(&to.target, own).await?;
            if let Some(version) = config.proxy_protocol.send {
                proxy_protocol::send(&mut dialled, version, self.client(), &config.timeouts)
                    .await?;
            }
            return Ok(dialled);
        };
        let mut dialled = self
            .dial_retrying(&proxy.address, Own::Configured)
            .await
            .map_err(|e| FlowError {
                message: match self.scanner() {
                    Some(_) => format!("the scanner {proxy} is not there: {}", e.message).into(),
                    None => format!("the proxy {proxy} is not there: {}", e.message).into(),
                },
                ..e
            })?;
        if proxy.scheme == ProxyScheme::Https {
            let tls = RouteTls {
                sni: Arc::clone(&proxy.address.host),
                alpn: Arc::new([b"http/1.1".to_vec()]),
            };
            self.handshake(&mut dialled.conn, &proxy.address, &tls)
                .await?;
        }
        if forward {
            return Ok(dialled);
        }
        // A name is resolved there, where nobody here sees its addresses.
        if let Some(ip) = to
            .target
            .ip()
            .filter(|ip| !config.policy.may_be_at(&to.target, *ip))
        {
            count(&self.counters().blocked_total);
            return Err(not_public(&to.target, ip).into());
        }
        let limit = config.timeouts.connect;
        via::tunnel_through(&mut dialled.conn, proxy, &to.target, limit).await?;
        if proxy.scheme == ProxyScheme::Https {
            dialled.conn = via::nest(dialled.conn, config.timeouts.idle);
        }
        Ok(dialled)
    }

    /// Makes a TCP connection; once more where the configuration says so.
    async fn dial_retrying(&self, target: &Target, own: Own) -> Result<Dialled, FlowError> {
        let retry = &self.live.config.retry;
        let dialled = match self.dial_tcp(target, own).await {
            Err(error)
                if retry.on_connect_failure
                    && matches!(error.class, ErrorClass::Connect | ErrorClass::Timeout) =>
            {
                count(&self.counters().retries);
                tokio::time::sleep(retry.delay).await;
                self.dial_tcp(target, own).await
            }
            dialled => dialled,
        };
        let (conn, address, local, connect_time) = dialled?;
        Ok(Dialled {
            conn,
            address,
            local,
            connected: SystemTime::now(),
            connect_time,
        })
    }

    async fn handshake(
        &self,
        conn: &mut Conn,
        target: &Target,
        tls: &RouteTls,
    ) -> Result<(handshake::Agreed, bool), UpstreamError> {
        let failed = |kind, detail: String| TlsFailure {
            side: Side::Upstream,
            kind,
            host: Arc::clone(&target.host),
            detail,
        };
        let name = ServerName::try_from(&*tls.sni)
            .map_err(|e| failed(TlsFailureKind::Protocol, e.to_string()))?
            .to_owned();
        let with = self
            .live
            .upstream
            .handshake(target, &tls.alpn)
            .map_err(|e| failed(TlsFailureKind::ClientCertificateRequired, e.to_string()))?;
        let limit = self.live.config.timeouts.handshake;
        let work = handshake::connect(conn, with.config, name);
        let result = if limit.is_zero() {
            work.await
        } else {
            match timeout(limit, work).await {
                Ok(result) => result,
                Err(_) => return Err(failed(TlsFailureKind::Timeout, format!("{limit:?}")).into()),
            }
        };
        let agreed = result.map_err(|e| failure::upstream(&e, &target.host))?;
        count(&self.counters().upstream_handshakes);
        if agreed.resumed {
            count(&self.counters().upstream_resumptions);
        }
        let problem = with.exception.and_then(|e| e.problem());
        if let Some(problem) = problem {
            count(&self.counters().unverified_upstreams);
            warn!(host = %target, "accepted although {problem}");
        }
        Ok((agreed, problem.is_some()))
    }

    /// Records a TLS failure: counters, log and interceptors.
    pub fn tls_failed(&self, failure: &TlsFailure) {
        self.counters().tls_failure(failure.side, failure.kind);
        warn!(client = %self.info.client, "{failure}");
        self.worker
            .shared
            .hooks
            .tls_failed(failure, &self.info, self.counters());
    }

    /// Adds what passed on the client's connection since the last call to the counters.
    pub fn count_client_bytes(&self, client: &mut Conn) {
        let (read, sent) = (client.rd.take_received(), client.wr.take_sent());
        add_to(&self.counters().client_bytes_in, read);
        add_to(&self.counters().client_bytes_out, sent);
        self.info.count_bytes(read, sent);
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart in the same breath, never stored"
)]
enum Place {
    Free(Slot),
    Pooled(UpConn),
}

/// A connection to an origin that can carry an exchange.
pub(crate) enum Up {
    /// One at a time: HTTP/1, or bytes.
    Conn(UpConn),
    /// Many at once.
    #[cfg(feature = "http2")]
    Shared(crate::streams::connections::Shared),
}

impl Up {
    pub fn info(&self) -> &Arc<UpstreamInfo> {
        match self {
            Self::Conn(up) => &up.info,
            #[cfg(feature = "http2")]
            Self::Shared(shared) => &shared.info,
        }
    }

    pub fn route(&self) -> &Arc<Route> {
        match self {
            Self::Conn(up) => &up.route,
            #[cfg(feature = "http2")]
            Self::Shared(shared) => &shared.route,
        }
    }
}

/// A fresh TCP connection, and how it came about.
pub(crate) struct Dialled {
    pub conn: Conn,
    pub address: SocketAddr,
    pub local: SocketAddr,
    pub connected: SystemTime,
    pub connect_time: Duration,
}

/// Why there is no upstream connection.
#[derive(Clone, Debug)]
pub(crate) enum UpstreamError {
    Flow(FlowError),
    Tls(TlsFailure),
}

impl From<FlowError> for UpstreamError {
    fn from(error: FlowError) -> Self {
        Self::Flow(error)
    }
}

impl From<TlsFailure> for UpstreamError {
    fn from(failure: TlsFailure) -> Self {
        Self::Tls(failure)
    }
}

impl UpstreamError {
    /// As the error of a flow.
    pub fn into_flow_error(self) -> FlowError {
        match self {
            Self::Flow(error) => error,
            Self::Tls(failure) => {
                let class = if failure.kind == TlsFailureKind::Timeout {
                    ErrorClass::Timeout
                } else {
                    ErrorClass::Tls
                };
                FlowError::new(
                    Side::Upstream,
                    class,
                    format!(
                        "TLS handshake with {} failed: {}",
                        failure.host, failure.kind
                    ),
                )
            }
        }
    }
}

/// Ends a flow exactly once, also when the connection's task is cancelled.
pub(crate) struct FlowGuard<'a> {
    pub flow: &'a mut Flow,
    pub run: Run,
    pub counters: &'a Counters,
    ended: bool,
}

impl<'a> FlowGuard<'a> {
    pub fn new(flow: &'a mut Flow, run: Run, counters: &'a Counters) -> Self {
        Self {
            flow,
            run,
            counters,
            ended: false,
        }
    }

    /// Ends the flow. Only the first call counts.
    pub fn end(&mut self, outcome: &Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let elapsed = self.flow.timing.start.elapsed();
        self.flow.timing.response_end.get_or_insert(elapsed);
        uncount(&self.counters.flows_active);
        match outcome.kind {
            OutcomeKind::Completed | OutcomeKind::Upgraded => {
                count(&self.counters.flows_completed);
                self.counters.latency.record(elapsed);
            }
            OutcomeKind::Answered | OutcomeKind::Dropped => count(&self.counters.flows_answered),
            OutcomeKind::Failed => count(&self.counters.flows_failed),
        }
        if let Some(error) = &outcome.error {
            self.counters.failure(error.side, error.class);
            debug!(flow = %self.flow.id, %error, "flow failed");
        }
        self.run.end(self.flow, outcome, self.counters);
    }
}

impl Drop for FlowGuard<'_> {
    fn drop(&mut self) {
        self.end(&Outcome::failed(FlowError::new(
            Side::Proxy,
            ErrorClass::Shutdown,
            "the proxy closed the connection",
        )));
    }
}

/// Lets a worker tell an idle connection that the proxy is shutting down.
#[derive(Default)]
pub(crate) struct Control {
    draining: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Control {
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Ready once the proxy drains; else wakes the task when it does.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_draining() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        // Draining may have begun before the waker stood there.
        if self.is_draining() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The open connections of a worker.
#[derive(Default)]
pub(crate) struct Registry(Mutex<HashMap<ConnectionId, Arc<Control>>>);

impl Registry {
    pub fn add(&self, id: ConnectionId) -> Arc<Control> {
        let control = Arc::new(Control::default());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, Arc::clone(&control));
        control
    }

    pub fn remove(&self, id: ConnectionId) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
    }

    pub fn drain_all(&self) {
        let controls: Vec<_> = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        for control in controls {
            control.drain();
        }
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

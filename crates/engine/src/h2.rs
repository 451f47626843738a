//! HTTP/2 on either side, on the `h2` crate; and the exchanges that have it on one side only.
//!
//! A stream is a task. Its bodies are pulled: a piece is read, offered, sent, and only then is its
//! flow-control window given back, so that the receiver's window is the only buffer.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinSet;
use tollgate_flow::{
    ConnectionInfo, Direction, ErrorClass, Flow, FlowError, HttpVersion, Interest, Outcome,
    OutcomeKind, Reply, Response, Scheme, Side, Target, UpstreamInfo,
};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{self, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version};
use tracing::debug;

use crate::body::Body;
use crate::config::{Config, PoolMode};
use crate::h1::{self, ClientBody, Closing, ExchangeEnd, Exchanged, Fixed, UpstreamAfter};
use crate::hooks::{BodyRun, PieceVerdict, Run, SharedFlow, Verdict, lock};
use crate::io::{Buffer, Conn, ReadHalf, WriteHalf};
use crate::metrics::{Counters, add_to, count};
use crate::policy::Action;
use crate::pool::{Route, RouteTls, UpConn};
use crate::proxy::Worker;
use crate::reply;
use crate::session::{FlowGuard, Session, Up, UpstreamError};
use crate::timer::{Elapsed, Timer};

/// Flow-control windows that we give: what may be in flight and not yet passed on.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// What h2 may hold of a stream that its peer doesn't take yet.
const SEND_BUFFER: usize = 256 * 1024;
const MAX_FRAME: u32 = 64 * 1024;
/// Streams that one of our upstream connections may carry before another is opened.
const STREAMS_PER_UPSTREAM: usize = 100;

// Upstream connections.

/// An upstream HTTP/2 connection that many exchanges use at once.
#[derive(Clone)]
pub(crate) struct Shared {
    send: SendRequest<Bytes>,
    pub info: Arc<UpstreamInfo>,
    pub route: Arc<Route>,
    state: Arc<SharedState>,
}

struct SharedState {
    /// Exchanges under way.
    streams: AtomicUsize,
    last_used: Mutex<Instant>,
    closed: AtomicBool,
}

impl Shared {
    pub fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Relaxed)
    }

    fn streams(&self) -> usize {
        self.state.streams.load(Ordering::Relaxed)
    }
}

/// Counts an exchange on a shared connection for as long as it lives.
struct InUse(Arc<SharedState>);

impl InUse {
    fn new(shared: &Shared) -> Self {
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

    pub fn knows(&self, target: &Target) -> bool {
        self.by_route
            .iter()
            .any(|(route, list)| route.target == *target && list.iter().any(Shared::is_open))
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
    shared_of(&session.worker, route)
}

fn shared_of(worker: &Worker, route: &Route) -> Option<Shared> {
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
            format!("HTTP/2 can't be begun with {}: {e}", up.route.target),
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

/// A connection that h2 reads and writes.
///
/// h2 flushes after nearly every frame of data. Here frames are gathered, and leave when the task
/// that drives the connection has had its turn: in full TLS records, and in one system call.
/// That task has the other [`Outlet`].
struct Io(Outlet);

/// Sends what h2 has written.
#[derive(Clone)]
struct Outlet(Arc<Mutex<Gathering>>);

struct Gathering {
    conn: Conn,
    /// Frames that wait for the end of the turn.
    gathered: Buffer,
    worker: Arc<Worker>,
    /// The client's connection; `None` on an upstream one.
    client: Option<Arc<ConnectionInfo>>,
}

/// Most bytes that are gathered before they leave in the middle of a turn.
const GATHER: usize = 4 * 16 * 1024;
/// A write of this size is worth a record of its own, and is not copied.
const LARGE_WRITE: usize = 12 * 1024;

impl Io {
    fn new(
        conn: Conn,
        worker: &Arc<Worker>,
        client: Option<&Arc<ConnectionInfo>>,
    ) -> (Self, Outlet) {
        let outlet = Outlet(Arc::new(Mutex::new(Gathering {
            conn,
            gathered: Buffer::default(),
            worker: Arc::clone(worker),
            client: client.map(Arc::clone),
        })));
        (Self(outlet.clone()), outlet)
    }
}

impl Outlet {
    fn lock(&self) -> MutexGuard<'_, Gathering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what was gathered in this turn. A socket that is full wakes the task; one that failed
    /// is noticed by h2's next read.
    fn end_turn(&self, cx: &mut Context<'_>) {
        let mut io = self.lock();
        if let Poll::Ready(Ok(())) = io.poll_drain(cx) {
            let _ = io.conn.wr.poll_flush(cx);
        }
        io.count();
    }
}

impl Gathering {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.data().is_empty() {
            let n = ready!(self.conn.wr.poll_write(cx, self.gathered.data()))?;
            self.gathered.consume(n);
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self) {
        let (read, sent) = (self.conn.rd.take_received(), self.conn.wr.take_sent());
        let counters = &self.worker.counters;
        let (read_counter, sent_counter) = match &self.client {
            Some(info) => {
                info.count_bytes(read, sent);
                (&counters.client_bytes_in, &counters.client_bytes_out)
            }
            None => (&counters.upstream_bytes_in, &counters.upstream_bytes_out),
        };
        add_to(read_counter, read);
        add_to(sent_counter, sent);
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.count();
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut io = self.0.lock();
        let rd = &mut io.conn.rd;
        if rd.data().is_empty() && ready!(rd.poll_fill(cx))? == 0 {
            return Poll::Ready(Ok(()));
        }
        let n = rd.data().len().min(buf.remaining());
        buf.put_slice(rd.data().get(..n).unwrap_or_default());
        rd.consume(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut io = self.0.lock();
        let total: usize = slices.iter().map(|s| s.len()).sum();
        if total < LARGE_WRITE {
            if io.gathered.data().len() + total > GATHER {
                ready!(io.poll_drain(cx))?;
            }
            for slice in slices {
                io.gathered.append(slice);
            }
            return Poll::Ready(Ok(total));
        }
        ready!(io.poll_drain(cx))?;
        let wr = &mut io.conn.wr;
        match slices {
            [] => Poll::Ready(Ok(0)),
            [one] => wr.poll_write(cx, one),
            [first, second, ..] => wr.poll_write2(cx, first, second),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: see [`Outlet::end_turn`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = self.0.lock();
        ready!(io.poll_drain(cx))?;
        io.conn.wr.poll_shutdown(cx)
    }
}

// Clients.

/// What the streams of one client connection share.
struct Streams {
    session: Session,
    fixed: Option<Fixed>,
}

/// Serves HTTP/2 to a client until its connection ends.
pub(crate) async fn serve(
    session: &mut Session,
    client: Conn,
    fixed: Option<Fixed>,
    upstream: Option<Up>,
) {
    let config = Arc::clone(&session.live.config);
    // An HTTP/2 connection that was just opened stands among the shared ones; one of HTTP/1 waits
    // in the pool for the first stream.
    if let Some(up) = upstream {
        session.give_back(up);
    }
    let builder = {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(config.limits.h2_streams)
            .max_header_list_size(config.limits.head_bytes.try_into().unwrap_or(u32::MAX));
        builder
    };
    let (io, outlet) = Io::new(client, &session.worker, Some(&session.info));
    let handshake = session
        .timer
        .within(
            config.timeouts.first_bytes,
            builder.handshake::<_, Bytes>(io),
        )
        .await;
    let mut connection = match handshake {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            debug!(client = %session.info.client, %error, "HTTP/2 was not begun");
            session
                .counters()
                .failure(Side::Client, ErrorClass::Protocol);
            return;
        }
        Err(_) => {
            session
                .counters()
                .failure(Side::Client, ErrorClass::Timeout);
            return;
        }
    };
    let streams = Arc::new(Streams {
        session: session.another(),
        fixed,
    });
    // Dropped with this future: then every stream's task is gone too.
    let mut tasks = JoinSet::new();
    let mut draining = false;
    let keep_alive = config.timeouts.keep_alive;
    session.timer.set(keep_alive);
    loop {
        let Session { timer, control, .. } = &mut *session;
        let event = poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = tasks.poll_join_next(cx) {
                // The time between requests counts from the end of the last one.
                timer.set(keep_alive);
            }
            let polled = connection.poll_accept(cx);
            if !matches!(polled, Poll::Ready(Some(Ok(_)))) {
                outlet.end_turn(cx);
            }
            if let Poll::Ready(accepted) = polled {
                return Poll::Ready(Accepted::Stream(accepted));
            }
            if !draining && control.poll_drain(cx).is_ready() {
                return Poll::Ready(Accepted::Drain);
            }
            if timer.poll(cx).is_ready() {
                return Poll::Ready(Accepted::Tick);
            }
            Poll::Pending
        })
        .await;
        match event {
            Accepted::Stream(Some(Ok((request, respond)))) => {
                // Boxed here: a task is moved several times on its way to the runtime.
                tasks.spawn(Box::pin(stream(Arc::clone(&streams), request, respond)));
            }
            Accepted::Stream(Some(Err(error))) => {
                debug!(client = %session.info.client, %error, "an HTTP/2 connection failed");
                if error.is_library() || error.is_remote() {
                    session
                        .counters()
                        .failure(Side::Client, ErrorClass::Protocol);
                }
                break;
            }
            Accepted::Stream(None) => break,
            Accepted::Drain => {
                draining = true;
                connection.graceful_shutdown();
            }
            Accepted::Tick if connection.has_streams() || !tasks.is_empty() => {
                session.timer.set(keep_alive);
            }
            Accepted::Tick => {
                draining = true;
                connection.graceful_shutdown();
            }
        }
    }
    // The connection is gone: the streams notice and end by themselves, with their own reasons.
    drop(connection);
    let _ = session
        .timer
        .within(Duration::from_secs(1), async {
            while tasks.join_next().await.is_some() {}
        })
        .await;
    drop(tasks);
    if config.pool.mode == PoolMode::Mirror
        && let Some(fixed) = &streams.fixed
    {
        let route = session.route(&fixed.target, fixed.tls.clone(), false);
        session
            .worker
            .h2
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove_route(&route);
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart in the same breath, never stored"
)]
enum Accepted {
    Stream(Option<Result<NewStream, h2::Error>>),
    Drain,
    Tick,
}

type NewStream = (Request<RecvStream>, SendResponse<Bytes>);

/// Serves one stream.
async fn stream(
    streams: Arc<Streams>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let session = &streams.session;
    let counters = session.counters();
    let config = &*session.live.config;
    let mut flow = Box::new(Flow::new(Arc::clone(&session.info)));
    let (mut parts, body) = request.into_parts();
    let prepared = prepare(
        &mut parts,
        streams.fixed.as_ref(),
        config.limits.header_lines,
        &mut flow,
    );
    session.begin_flow(&mut flow);
    let hooks = &session.worker.shared.hooks;
    if !hooks.is_empty()
        && let Err(error) = fill_head(&parts, &mut flow)
    {
        debug!(%error, "a request head can't be shown to interceptors");
    }
    let run = Run::begin(hooks, &flow, counters);
    let mut guard = FlowGuard::new(&mut flow, run, counters);
    let head_only = parts.method == http::Method::HEAD;

    let early = match prepared {
        Err((status, error)) => Some((
            Box::new(reply::with_status(status, &error)),
            Outcome::failed(error),
        )),
        Ok(()) => refused(config, streams.fixed.as_ref(), &guard.flow.request).map(|target| {
            count(&counters.blocked_total);
            let error = h1::blocked(&target);
            (Box::new(reply::for_error(&error)), Outcome::failed(error))
        }),
    };
    if let Some((reply, outcome)) = early {
        answer(&mut respond, &mut guard, &reply, head_only);
        guard.end(&outcome);
        return;
    }

    let mut source = if body.is_end_stream() {
        Source::Empty
    } else {
        Source::H2(body)
    };
    let exchange = Exchange {
        streams: &streams,
        config,
        counters,
    };
    let mut down = Down::H2 {
        respond: &mut respond,
        stream: None,
        head_only,
    };
    let end = exchange
        .run(&mut guard, Some(parts), &mut source, &mut down)
        .await;
    let sent = match down {
        Down::H2 { stream, .. } => stream,
        Down::H1 { .. } => None,
    };
    match end {
        Ended::Complete => guard.end(&Outcome::COMPLETED),
        Ended::Answer(reply, outcome) => {
            answer(&mut respond, &mut guard, &reply, head_only);
            guard.end(&outcome);
        }
        Ended::Cut(reason, outcome) => {
            match sent {
                Some(mut stream) => stream.send_reset(reason),
                None => respond.send_reset(reason),
            }
            guard.end(&outcome);
        }
    }
}

/// Sends a reply of our own.
fn answer(
    respond: &mut SendResponse<Bytes>,
    guard: &mut FlowGuard<'_>,
    reply: &Reply,
    head_only: bool,
) {
    h1::put_reply(guard.flow, reply);
    let status = reply::valid_status(reply.status);
    let mut response = http::Response::new(());
    if let Ok(status) = http::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    let bodiless = status == 204 || status == 304;
    to_map(&reply.headers, response.headers_mut());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    if !bodiless {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    }
    let empty = bodiless || head_only || reply.body.is_empty();
    // Fails when the client has reset the stream: then nobody waits for it.
    if let Ok(mut stream) = respond.send_response(response, empty)
        && !empty
    {
        let _ = stream.send_data(reply.body.clone(), true);
    }
}

/// The destination that a request may not have, by what it was connected to or by its authority.
fn refused(
    config: &Config,
    fixed: Option<&Fixed>,
    request: &tollgate_flow::Request,
) -> Option<Target> {
    let is_blocked = |target: &Target| config.policy.decide(&[target]) == Action::Block;
    if fixed.is_none() {
        return is_blocked(&request.target).then(|| request.target.clone());
    }
    if config.policy.block.is_empty() {
        return None;
    }
    let authority = std::str::from_utf8(request.authority.as_deref()?).ok()?;
    Target::parse(authority, Some(request.target.port)).filter(is_blocked)
}

/// Finds out where a request goes.
fn prepare(
    parts: &mut http::request::Parts,
    fixed: Option<&Fixed>,
    lines: usize,
    flow: &mut Flow,
) -> Result<(), (u16, FlowError)> {
    let bad = |status: u16, message: &str| {
        (
            status,
            FlowError::new(Side::Client, ErrorClass::Protocol, message.to_owned()),
        )
    };
    flow.request.version = HttpVersion::Http2;
    let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
    let host = parts
        .headers
        .get(header::HOST)
        .map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned());
    if parts.headers.get_all(header::HOST).iter().count() > 1 {
        return Err(bad(400, "more than one Host"));
    }
    if parts.headers.len() > lines {
        return Err(bad(431, "the request has too many header fields"));
    }
    if let (Some(authority), Some(host)) = (&authority, &host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(bad(400, ":authority and Host differ"));
    }
    if authority.is_none()
        && let Some(host) = &host
    {
        // RFC 9113 section 8.3.1 lets a Host stand in; from here on the authority is what counts.
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Authority::try_from(host.as_str()).ok();
        uri.scheme.get_or_insert(UriScheme::HTTPS);
        uri.path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
        parts.uri = Uri::from_parts(uri).map_err(|_| bad(400, "Host is not a host"))?;
    }
    flow.request.authority = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes().to_vec());
    match fixed {
        Some(fixed) => {
            flow.request.target = fixed.target.clone();
            flow.request.scheme = fixed.scheme;
        }
        None => {
            let scheme = parts.uri.scheme_str().unwrap_or("http");
            if scheme != "http" {
                return Err(bad(
                    400,
                    "only http:// URLs are served on this port; use CONNECT",
                ));
            }
            let target = authority
                .as_deref()
                .or(host.as_deref())
                .and_then(|a| Target::parse(a, Some(80)))
                .ok_or_else(|| bad(400, "the request names no host"))?;
            flow.request.target = target;
            flow.request.scheme = Scheme::Http;
        }
    }
    if parts.method == http::Method::CONNECT {
        return Err(bad(501, "CONNECT inside HTTP/2 is not served"));
    }
    parts.headers.remove(header::PROXY_AUTHORIZATION);
    parts.headers.remove("proxy-connection");
    Ok(())
}

/// Shows a head to interceptors as the ordered list that HTTP/1 has.
fn fill_head(parts: &http::request::Parts, flow: &mut Flow) -> Result<(), FlowError> {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    flow.request.head = RequestHead::build(
        parts.method.as_str().as_bytes(),
        path.as_bytes(),
        Version::Http11,
    )
    .map_err(interceptor_error)?;
    from_map(&parts.headers, &mut flow.request.head.headers);
    Ok(())
}

fn interceptor_error(e: tollgate_wire::headers::InvalidHeader) -> FlowError {
    FlowError::new(Side::Proxy, ErrorClass::Interceptor, e.to_string())
}

/// Makes the parts of an HTTP/2 request from what interceptors left of a flow's head.
fn parts_of(flow: &Flow) -> Result<http::request::Parts, FlowError> {
    let failed = |what: &str| {
        FlowError::new(
            Side::Proxy,
            ErrorClass::Protocol,
            format!("{what} can't be sent over HTTP/2"),
        )
    };
    let mut request = Request::new(());
    *request.method_mut() =
        http::Method::from_bytes(flow.request.method()).map_err(|_| failed("the method"))?;
    let headers = flow.request.headers();
    let authority = match (&flow.request.authority, headers.get("host")) {
        (_, Some(host)) => host.to_vec(),
        (Some(authority), None) => authority.clone(),
        (None, None) => flow.request.target.to_string().into_bytes(),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(match flow.request.scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    });
    uri.authority = Some(Authority::try_from(&*authority).map_err(|_| failed("the host"))?);
    let path = flow.request.path();
    let path = match path {
        b"*" => PathAndQuery::from_static("*"),
        path => PathAndQuery::try_from(path).map_err(|_| failed("the path"))?,
    };
    uri.path_and_query = Some(path);
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| failed("the URL"))?;
    let map = request.headers_mut();
    // Removing it afterwards would reorder the others.
    copy_to_map(headers, map, |name| !name.eq_ignore_ascii_case(b"host"));
    let (parts, ()) = request.into_parts();
    Ok(parts)
}

/// Copies an ordered list to a map for HTTP/2: lower case, without what belongs to a connection
/// (RFC 9113 section 8.2.2).
fn to_map(list: &HeaderList, map: &mut HeaderMap) {
    copy_to_map(list, map, |_| true);
}

fn copy_to_map(list: &HeaderList, map: &mut HeaderMap, wanted: impl Fn(&[u8]) -> bool) {
    map.reserve(list.len());
    for (name, value) in list.iter() {
        if !wanted(name) || is_connection_specific(name) || list_names(list, name) {
            continue;
        }
        if name.eq_ignore_ascii_case(b"te") && !value.eq_ignore_ascii_case(b"trailers") {
            continue;
        }
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        else {
            continue;
        };
        map.append(name, value);
    }
}

/// Whether `Connection` names a field.
fn list_names(list: &HeaderList, name: &[u8]) -> bool {
    !name.eq_ignore_ascii_case(b"te")
        && list
            .tokens("connection")
            .any(|token| token.eq_ignore_ascii_case(name))
}

fn is_connection_specific(name: &[u8]) -> bool {
    [
        &b"connection"[..],
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    ]
    .iter()
    .any(|n| name.eq_ignore_ascii_case(n))
}

fn from_map(map: &HeaderMap, list: &mut HeaderList) {
    for (name, value) in map {
        // What h2 let through is a valid field.
        let _ = list.append(name.as_str().as_bytes(), value.as_bytes());
    }
}

// Exchanges.

/// The client's side of an exchange.
enum Down<'a> {
    H2 {
        respond: &'a mut SendResponse<Bytes>,
        /// Where the body goes, once the head has left.
        stream: Option<SendStream<Bytes>>,
        head_only: bool,
    },
    H1 {
        wr: &'a mut WriteHalf,
        is_10: bool,
        keep_alive: bool,
        head_only: bool,
        closing: &'a mut Closing,
        started: bool,
        /// The reading half, where no body is read from it: to notice that the client goes away.
        watch: Option<&'a mut ReadHalf>,
    },
}

/// Where a body comes from.
enum Source<'a> {
    Empty,
    /// A collected one.
    Whole(Option<Bytes>, Option<HeaderList>),
    H2(RecvStream),
    H1 {
        rd: &'a mut ReadHalf,
        body: &'a mut Body,
    },
}

/// Where a body goes.
enum Sink<'a> {
    H2(&'a mut SendStream<Bytes>),
    H1 {
        wr: &'a mut WriteHalf,
        framing: SinkFraming,
        /// The client's reading half, to notice that it goes away while nothing comes.
        watch: Option<&'a mut ReadHalf>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SinkFraming {
    Chunked,
    /// By length or up to the close: bytes as they are.
    Plain,
}

enum Ended {
    Complete,
    Answer(Box<Reply>, Outcome),
    Cut(Reason, Outcome),
}

struct Exchange<'a> {
    streams: &'a Streams,
    config: &'a Config,
    counters: &'a Counters,
}

/// An upstream's side of an exchange.
enum Link {
    H2 { shared: Shared, _in_use: InUse },
    H1(Box<UpConn>),
}

impl Exchange<'_> {
    /// Runs an exchange. `parts` is the request as HTTP/2 has it, where it came so.
    async fn run(
        &self,
        guard: &mut FlowGuard<'_>,
        parts: Option<http::request::Parts>,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Ended {
        if guard.run.wants(Interest::REQUEST_BODY) {
            let limits = (self.config.limits.body_limit, self.config.timeouts.idle);
            match Box::pin(collect(source, Direction::Request, limits.0, limits.1)).await {
                Ok(Collected::Whole(bytes, trailers)) => {
                    guard.flow.request.body_size = bytes.len() as u64;
                    guard.flow.request.trailers = trailers;
                    guard.flow.request.put_collected_body(bytes);
                }
                Ok(Collected::TooLarge(_)) => {
                    return failed(FlowError::new(
                        Side::Client,
                        ErrorClass::Limit,
                        "the request body is larger than an interceptor may collect",
                    ));
                }
                Err(error) => return self.cut(error),
            }
        }
        let verdict = {
            let shared = SharedFlow::new(&mut *guard.flow);
            guard.run.request(&shared, self.counters).await
        };
        match verdict {
            Verdict::Continue => {}
            verdict => return by_verdict(verdict, false),
        }
        if guard.run.wants(Interest::REQUEST_BODY) {
            let edited = guard.flow.request.is_body_edited();
            let body = guard.flow.request.body().cloned().unwrap_or_default();
            if edited {
                let headers = guard.flow.request.headers_mut();
                let _ = headers.set(b"content-length", body.len().to_string().as_bytes());
            }
            let trailers = guard.flow.request.trailers.clone();
            *source = Source::Whole((!body.is_empty()).then_some(body), trailers);
        } else if guard.run.edits(Direction::Request) {
            guard.flow.request.headers_mut().remove("content-length");
        }
        let seen_by_hooks =
            guard.run.wants(Interest::REQUEST) || guard.run.edits(Direction::Request);
        let parts = match parts {
            Some(parts) if !seen_by_hooks => Some(parts),
            _ => None,
        };

        let whole = match source {
            Source::Whole(bytes, trailers) => Some((bytes.clone(), trailers.clone())),
            _ => None,
        };
        // Once more where a shared connection turned out to be closing.
        for attempt in 0..3 {
            if let Some((bytes, trailers)) = &whole {
                *source = Source::Whole(bytes.clone(), trailers.clone());
            }
            let link = self.link(&guard.flow.request.target, attempt > 0);
            let link = match link.await {
                Ok(link) => link,
                Err(error) => return failed(error.into_flow_error()),
            };
            let ended = match link {
                Link::H2 { shared, _in_use } => {
                    guard.flow.upstream = Some(Arc::clone(&shared.info));
                    let parts = match &parts {
                        Some(parts) => Ok(parts.clone()),
                        None => parts_of(guard.flow),
                    };
                    match parts {
                        Ok(parts) => self.over_h2(guard, shared, parts, source, down).await,
                        Err(error) => return failed(error),
                    }
                }
                Link::H1(up) => {
                    guard.flow.upstream = Some(Arc::clone(&up.info));
                    let has_body = !source.is_empty();
                    let head = match &parts {
                        Some(parts) => head_of(parts, guard.flow, has_body),
                        None => head_from_flow(guard.flow, has_body),
                    };
                    match head {
                        Ok(head) => Box::pin(self.over_h1(guard, *up, head, source, down)).await,
                        Err(error) => return failed(error),
                    }
                }
            };
            match ended {
                Some(ended) => return ended,
                None => count(&self.counters.retries),
            }
        }
        failed(FlowError::new(
            Side::Upstream,
            ErrorClass::Reset,
            "the origin closed the connection before it answered",
        ))
    }

    async fn link(&self, target: &Target, fresh: bool) -> Result<Link, UpstreamError> {
        let session = &self.streams.session;
        let tls = match &self.streams.fixed {
            Some(fixed) if fixed.target == *target => {
                if let Some(error) = &fixed.broken {
                    return Err(error.clone().into());
                }
                fixed.tls.clone()
            }
            // An interceptor sent it elsewhere.
            Some(fixed) => fixed.tls.clone().map(|tls| RouteTls {
                sni: Arc::clone(&target.host),
                ..tls
            }),
            None => None,
        };
        let route = session.route(target, tls, false);
        let up = if fresh {
            session.fresh(route).await?
        } else {
            session.acquire(route, None).await?
        };
        Ok(match up {
            Up::H2(shared) => Link::H2 {
                _in_use: InUse::new(&shared),
                shared,
            },
            Up::Conn(up) => Link::H1(Box::new(up)),
        })
    }

    /// The exchange over an HTTP/2 upstream. `None`: nothing was seen of it, try another connection.
    async fn over_h2(
        &self,
        guard: &mut FlowGuard<'_>,
        shared: Shared,
        parts: http::request::Parts,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Option<Ended> {
        let replayable = source.is_replayable();
        let retry = |error: &h2::Error| {
            replayable
                && (error.is_go_away()
                    || error.reason() == Some(Reason::REFUSED_STREAM)
                    || error.is_io())
        };
        let state = Arc::clone(&shared.state);
        let sent = stream_allowed(shared.send, self.config.timeouts.connect).await;
        let mut send = match sent {
            Err(_) => {
                return Some(failed(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Timeout,
                    "the origin allows no further streams",
                )));
            }
            Ok(Ok(send)) => send,
            Ok(Err(error)) => {
                state.closed.store(true, Ordering::Relaxed);
                if retry(&error) {
                    return None;
                }
                return Some(failed(upstream_error(&error, "sending the request")));
            }
        };
        let request = Request::from_parts(parts, ());
        let empty = source.is_empty();
        let (mut response, mut body) = match send.send_request(request, empty) {
            Ok(sent) => sent,
            Err(error) => {
                // An error in what we send is no fault of the connection.
                if error.is_io() || error.is_go_away() || error.is_library() {
                    state.closed.store(true, Ordering::Relaxed);
                }
                if retry(&error) {
                    return None;
                }
                return Some(failed(upstream_error(&error, "sending the request")));
            }
        };
        drop(send);
        let FlowGuard { flow, run, .. } = &mut *guard;
        let progress = AtomicU64::new(0);
        let size = AtomicU64::new(flow.request.body_size);
        let shared_flow = SharedFlow::new(flow);
        let request_body = async {
            if empty {
                request_done(&shared_flow);
                return Ok(());
            }
            let mut hooks = run.body(
                &shared_flow,
                Direction::Request,
                self.config.limits.decoded_bytes,
                self.counters,
            );
            let mut sink = Sink::H2(&mut body);
            let result = relay(source, &mut sink, &mut hooks, &progress, &size).await;
            if let Ok(trailers) = &result {
                let mut flow = lock(&shared_flow);
                if trailers.is_some() {
                    flow.request.trailers.clone_from(trailers);
                }
            }
            request_done(&shared_flow);
            result.map(|_| ())
        };
        let relay_response = async {
            let head = loop {
                let event = poll_fn(|cx| {
                    if down.poll_gone(cx).is_ready() {
                        return Poll::Ready(Ok(Arrived::Gone));
                    }
                    match response.poll_informational(cx) {
                        Poll::Ready(Some(Ok(interim))) => {
                            return Poll::Ready(Ok(Arrived::Interim(interim)));
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                        Poll::Ready(None) | Poll::Pending => {}
                    }
                    pin!(&mut response).poll(cx).map_ok(Arrived::Final)
                })
                .await;
                match event {
                    Ok(Arrived::Final(head)) => break head,
                    Ok(Arrived::Gone) => {
                        return Some(Ended::Cut(
                            Reason::CANCEL,
                            Outcome::failed(h1::client_gone()),
                        ));
                    }
                    Ok(Arrived::Interim(interim)) => {
                        progress.fetch_add(1, Ordering::Relaxed);
                        if down.interim(interim).await.is_err() {
                            return Some(Ended::Cut(
                                Reason::CANCEL,
                                Outcome::failed(h1::client_gone()),
                            ));
                        }
                    }
                    Err(error) => {
                        if retry(&error) {
                            return None;
                        }
                        if let Some(reason) = error.reason()
                            && error.is_reset()
                        {
                            // The origin's word for it reaches the client as it is.
                            let outcome =
                                Outcome::failed(upstream_error(&error, "waiting for the response"));
                            if matches!(down, Down::H2 { .. }) {
                                return Some(Ended::Cut(reason, outcome));
                            }
                        }
                        return Some(failed(upstream_error(&error, "waiting for the response")));
                    }
                }
            };
            progress.fetch_add(1, Ordering::Relaxed);
            let (head, body) = head.into_parts();
            let source = if body.is_end_stream() {
                Source::Empty
            } else {
                Source::H2(body)
            };
            Some(
                self.respond(
                    run,
                    &shared_flow,
                    ResponseParts::Http(head),
                    source,
                    down,
                    &progress,
                )
                .await,
            )
        };
        let ended = self.both(request_body, relay_response, &progress).await;
        if let Some(ended) = &ended
            && !matches!(ended, Ended::Complete)
        {
            body.send_reset(Reason::CANCEL);
        }
        lock(&shared_flow).request.body_size = size.load(Ordering::Relaxed);
        ended
    }

    /// The exchange over an HTTP/1 upstream.
    async fn over_h1(
        &self,
        guard: &mut FlowGuard<'_>,
        mut up: UpConn,
        head: RequestHead,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Option<Ended> {
        let session = &self.streams.session;
        let replayable = source.is_replayable();
        let reused = std::mem::replace(&mut up.reused, true);
        let method = h1::exchange::Method::of(head.method());
        let framing = match head.framing() {
            Ok(Framing::Chunked) => SinkFraming::Chunked,
            _ => SinkFraming::Plain,
        };
        let mut bytes = Vec::with_capacity(512);
        head.write_to(&mut bytes);
        // A whole body leaves with the head.
        let mut first = Vec::new();
        if let Source::Whole(whole, trailers) = &*source {
            let whole = whole.as_deref().unwrap_or_default();
            if framing == SinkFraming::Chunked {
                http1::encode_chunk(&mut first, whole);
                http1::encode_last(&mut first, trailers.as_ref());
            } else {
                first.extend_from_slice(whole);
            }
        }
        if let Err(e) = up.conn.wr.write_all2(&bytes, &first).await {
            if reused && replayable {
                return None;
            }
            return Some(failed(FlowError::new(
                Side::Upstream,
                ErrorClass::Reset,
                format!("the connection to the origin failed while sending the request: {e}"),
            )));
        }
        let FlowGuard { flow, run, .. } = &mut *guard;
        let progress = AtomicU64::new(0);
        let size = AtomicU64::new(flow.request.body_size);
        let shared_flow = SharedFlow::new(flow);
        let Conn { rd, wr } = &mut up.conn;
        let mut keep = false;
        let mut dead = false;
        // A connection on which a request has not ended must not get another.
        let sent_whole = AtomicBool::new(replayable);
        let request_body = async {
            if replayable {
                request_done(&shared_flow);
                return Ok(());
            }
            let mut hooks = run.body(
                &shared_flow,
                Direction::Request,
                self.config.limits.decoded_bytes,
                self.counters,
            );
            let mut sink = Sink::H1 {
                wr,
                framing,
                watch: None,
            };
            let result = relay(source, &mut sink, &mut hooks, &progress, &size).await;
            sent_whole.store(result.is_ok(), Ordering::Relaxed);
            request_done(&shared_flow);
            result.map(|_| ())
        };
        let relay_response = async {
            let limits = HeadLimits {
                bytes: self.config.limits.head_bytes,
                lines: self.config.limits.header_lines,
            };
            let mut head = ResponseHead::new();
            let mut nothing_seen = true;
            let len = loop {
                if !rd.data().is_empty() {
                    nothing_seen = false;
                    match head.parse(rd.data(), &limits) {
                        Ok(Parsed::Complete { len }) if head.is_interim() => {
                            let mut interim = http::Response::new(());
                            if let Ok(status) = http::StatusCode::from_u16(head.status()) {
                                *interim.status_mut() = status;
                            }
                            to_map(&head.headers, interim.headers_mut());
                            rd.consume(len);
                            if head.status() == 101 || down.interim(interim).await.is_err() {
                                return Some(Ended::Cut(
                                    Reason::PROTOCOL_ERROR,
                                    Outcome::failed(FlowError::new(
                                        Side::Upstream,
                                        ErrorClass::Protocol,
                                        "the origin switched protocols without being asked",
                                    )),
                                ));
                            }
                            continue;
                        }
                        Ok(Parsed::Complete { len }) => break len,
                        Ok(Parsed::Partial) => {}
                        Err(anomaly) => {
                            return Some(failed(h1::failure::upstream_anomaly(anomaly)));
                        }
                    }
                }
                let filled = poll_fn(|cx| {
                    if down.poll_gone(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    rd.poll_fill(cx).map(Some)
                })
                .await;
                match filled {
                    None => {
                        return Some(Ended::Cut(
                            Reason::CANCEL,
                            Outcome::failed(h1::client_gone()),
                        ));
                    }
                    Some(Ok(n)) if n > 0 => {
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    _ if nothing_seen && reused && replayable => {
                        dead = true;
                        return None;
                    }
                    _ => {
                        return Some(failed(FlowError::new(
                            Side::Upstream,
                            ErrorClass::Reset,
                            "the origin closed the connection before it answered",
                        )));
                    }
                }
            };
            rd.consume(len);
            let framing = match head.framing(method.as_bytes()) {
                Ok(framing) => framing,
                Err(anomaly) => return Some(failed(h1::failure::upstream_anomaly(anomaly))),
            };
            let keeps = head.keep_alive() && framing != Framing::UntilClose;
            let mut body = Body::new(framing, self.config.limits.trailer_bytes);
            let source = if body.is_done() {
                Source::Empty
            } else {
                Source::H1 {
                    rd: &mut *rd,
                    body: &mut body,
                }
            };
            let ended = self
                .respond(
                    run,
                    &shared_flow,
                    ResponseParts::Http1(head),
                    source,
                    down,
                    &progress,
                )
                .await;
            keep = keeps && body.is_done() && rd.data().is_empty();
            Some(ended)
        };
        let ended = self.both(request_body, relay_response, &progress).await;
        lock(&shared_flow).request.body_size = size.load(Ordering::Relaxed);
        if matches!(ended, Some(Ended::Complete))
            && keep
            && !dead
            && sent_whole.load(Ordering::Relaxed)
        {
            session.give_back(Up::Conn(up));
        } else {
            up.count_bytes(self.counters);
        }
        ended
    }

    /// Runs both directions. The response decides; the request's end is waited for only while the
    /// response is.
    async fn both(
        &self,
        request: impl Future<Output = Result<(), RelayError>>,
        response: impl Future<Output = Option<Ended>>,
        progress: &AtomicU64,
    ) -> Option<Ended> {
        let mut request = pin!(request);
        let mut response = pin!(response);
        let mut request_done = false;
        let mut timer = Timer::default();
        let mut seen = 0;
        timer.set(self.config.timeouts.response_head);
        poll_fn(|cx| {
            if !request_done && let Poll::Ready(result) = request.as_mut().poll(cx) {
                request_done = true;
                match result {
                    // An origin that stops reading may have answered already.
                    Ok(()) | Err(RelayError::Write(_)) => {}
                    Err(RelayError::Read(error, _)) => {
                        return Poll::Ready(Some(Ended::Cut(
                            Reason::CANCEL,
                            Outcome::failed(error),
                        )));
                    }
                    Err(RelayError::Verdict(verdict)) => {
                        return Poll::Ready(Some(by_verdict(
                            verdict,
                            progress.load(Ordering::Relaxed) > 0,
                        )));
                    }
                }
            }
            if let Poll::Ready(ended) = response.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            while timer.poll(cx).is_ready() {
                let now = progress.load(Ordering::Relaxed);
                if now == seen {
                    let error = FlowError::new(
                        Side::Upstream,
                        ErrorClass::Timeout,
                        "nothing passed for too long",
                    );
                    return Poll::Ready(Some(if now == 0 {
                        failed(error)
                    } else {
                        Ended::Cut(Reason::CANCEL, Outcome::failed(error))
                    }));
                }
                seen = now;
                timer.set(self.config.timeouts.idle);
            }
            Poll::Pending
        })
        .await
    }

    /// Brings a response to the client.
    async fn respond(
        &self,
        run: &Run,
        flow: &SharedFlow<'_>,
        head: ResponseParts,
        mut source: Source<'_>,
        down: &mut Down<'_>,
        progress: &AtomicU64,
    ) -> Ended {
        {
            let mut flow = lock(flow);
            let elapsed = flow.timing.start.elapsed();
            flow.timing.response_start = Some(elapsed);
        }
        let hooked = run.wants_anything();
        let mut plain = None;
        match head {
            // Nobody looks, and both sides speak HTTP/2: the head goes on as it is.
            ResponseParts::Http(parts) if !hooked && matches!(down, Down::H2 { .. }) => {
                plain = Some(parts);
            }
            head => {
                let mut flow = lock(flow);
                match head.into_response() {
                    Ok(response) => flow.response = Some(response),
                    Err(error) => return failed(error),
                }
            }
        }
        let mut collected = false;
        if run.wants(Interest::RESPONSE_BODY) && !h1::head::is_stream(&lock(flow)) {
            let limits = (self.config.limits.body_limit, self.config.timeouts.idle);
            match Box::pin(collect(
                &mut source,
                Direction::Response,
                limits.0,
                limits.1,
            ))
            .await
            {
                Ok(Collected::Whole(bytes, trailers)) => {
                    if let Some(response) = &mut lock(flow).response {
                        response.body_size = bytes.len() as u64;
                        response.trailers = trailers;
                        response.put_collected_body(bytes);
                    }
                    collected = true;
                }
                Ok(Collected::TooLarge(start)) => {
                    source = match source {
                        Source::H2(recv) => {
                            let source = Source::H2(recv);
                            return Box::pin(
                                self.oversized(run, flow, start, source, down, progress),
                            )
                            .await;
                        }
                        Source::H1 { rd, body } => {
                            let source = Source::H1 { rd, body };
                            return Box::pin(
                                self.oversized(run, flow, start, source, down, progress),
                            )
                            .await;
                        }
                        source => source,
                    };
                }
                Err(error) => return failed(error),
            }
        }
        match run.response(flow, self.counters).await {
            Verdict::Continue => {}
            verdict => return by_verdict(verdict, false),
        }
        if collected {
            let mut flow = lock(flow);
            if let Some(response) = &mut flow.response {
                let body = response.body().cloned().unwrap_or_default();
                if response.is_body_edited() {
                    let length = body.len().to_string();
                    let _ = response
                        .headers_mut()
                        .set(b"content-length", length.as_bytes());
                }
                let trailers = response.trailers.clone();
                source = Source::Whole((!body.is_empty()).then_some(body), trailers);
            }
        } else if run.edits(Direction::Response)
            && let Some(response) = &mut lock(flow).response
        {
            response.headers_mut().remove("content-length");
        }
        self.send(run, flow, plain, Bytes::new(), source, down, progress)
            .await
    }

    /// A body that turned out too large to collect: what was collected goes first.
    async fn oversized(
        &self,
        run: &Run,
        flow: &SharedFlow<'_>,
        start: Vec<u8>,
        source: Source<'_>,
        down: &mut Down<'_>,
        progress: &AtomicU64,
    ) -> Ended {
        match run.response(flow, self.counters).await {
            Verdict::Continue => {}
            verdict => return by_verdict(verdict, false),
        }
        self.send(run, flow, None, start.into(), source, down, progress)
            .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one response, handed on once"
    )]
    async fn send(
        &self,
        run: &Run,
        flow: &SharedFlow<'_>,
        plain: Option<http::response::Parts>,
        prefix: Bytes,
        mut source: Source<'_>,
        down: &mut Down<'_>,
        progress: &AtomicU64,
    ) -> Ended {
        let empty = source.is_empty() && prefix.is_empty();
        let mut sink = match down.head(plain, flow, empty).await {
            Ok(Some(sink)) => sink,
            Ok(None) => return Ended::Complete,
            Err(ended) => return ended,
        };
        let size = AtomicU64::new(0);
        let mut hooks = run.body(
            flow,
            Direction::Response,
            self.config.limits.decoded_bytes,
            self.counters,
        );
        if !prefix.is_empty() {
            size.store(prefix.len() as u64, Ordering::Relaxed);
            if let Err(error) = sink.send(prefix, false).await {
                return Ended::Cut(Reason::CANCEL, Outcome::failed(error));
            }
        }
        let result = relay(&mut source, &mut sink, &mut hooks, progress, &size).await;
        drop(hooks);
        let mut flow = lock(flow);
        if let Some(response) = &mut flow.response {
            response.body_size = response.body_size.max(size.load(Ordering::Relaxed));
        }
        match result {
            Ok(trailers) => {
                if let Some(response) = &mut flow.response
                    && trailers.is_some()
                {
                    response.trailers = trailers;
                }
                Ended::Complete
            }
            Err(RelayError::Read(error, reason)) => Ended::Cut(reason, Outcome::failed(error)),
            Err(RelayError::Write(error)) => Ended::Cut(Reason::CANCEL, Outcome::failed(error)),
            Err(RelayError::Verdict(verdict)) => by_verdict(verdict, true),
        }
    }

    fn cut(&self, error: FlowError) -> Ended {
        Ended::Cut(Reason::CANCEL, Outcome::failed(error))
    }
}

enum Arrived {
    Gone,
    Interim(http::Response<()>),
    Final(http::Response<RecvStream>),
}

enum ResponseParts {
    Http(http::response::Parts),
    Http1(ResponseHead),
}

impl ResponseParts {
    fn into_response(self) -> Result<Box<Response>, FlowError> {
        let mut response = Box::<Response>::default();
        match self {
            Self::Http(parts) => {
                response.version = HttpVersion::Http2;
                response.head =
                    ResponseHead::build(parts.status.as_u16(), b"").map_err(interceptor_error)?;
                from_map(&parts.headers, &mut response.head.headers);
            }
            Self::Http1(head) => {
                response.version = match head.version() {
                    Version::Http10 => HttpVersion::Http10,
                    Version::Http11 => HttpVersion::Http11,
                };
                response.head = head;
            }
        }
        Ok(response)
    }
}

impl Down<'_> {
    /// Ready when the client has given its stream up.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2 { respond, .. } => respond.poll_reset(cx).map(|_| ()),
            Self::H1 { watch, .. } => poll_gone(watch.as_deref_mut(), cx),
        }
    }

    /// Relays an interim response.
    async fn interim(&mut self, interim: http::Response<()>) -> Result<(), FlowError> {
        match self {
            Self::H2 { respond, .. } => respond
                .send_informational(interim)
                .map_err(|_| h1::client_gone()),
            Self::H1 { is_10: true, .. } => Ok(()),
            Self::H1 { wr, .. } => {
                let status = interim.status().as_u16();
                let reason = interim.status().canonical_reason().unwrap_or("");
                let mut head = ResponseHead::build(status, reason.as_bytes())
                    .map_err(|_| h1::client_gone())?;
                from_map(interim.headers(), &mut head.headers);
                let mut out = Vec::new();
                head.write_to(&mut out);
                wr.write_all(&out).await.map_err(|_| h1::client_gone())
            }
        }
    }

    /// Sends the head; answers where the body goes, `None` when there is none.
    async fn head(
        &mut self,
        plain: Option<http::response::Parts>,
        flow: &SharedFlow<'_>,
        empty: bool,
    ) -> Result<Option<Sink<'_>>, Ended> {
        let gone = || Ended::Cut(Reason::CANCEL, Outcome::failed(h1::client_gone()));
        match self {
            Self::H2 {
                respond,
                stream,
                head_only,
            } => {
                let response = match plain {
                    Some(parts) => http::Response::from_parts(parts, ()),
                    None => {
                        let flow = lock(flow);
                        let Some(from) = &flow.response else {
                            return Err(gone());
                        };
                        let mut response = http::Response::new(());
                        if let Ok(status) = http::StatusCode::from_u16(from.status()) {
                            *response.status_mut() = status;
                        }
                        to_map(from.headers(), response.headers_mut());
                        response
                    }
                };
                let empty = empty || *head_only;
                let sent = respond.send_response(response, empty).map_err(|_| gone())?;
                if empty {
                    return Ok(None);
                }
                Ok(Some(Sink::H2(stream.insert(sent))))
            }
            Self::H1 {
                wr,
                is_10,
                keep_alive,
                head_only,
                closing,
                started,
                watch,
            } => {
                let mut out = Vec::with_capacity(512);
                let framing;
                {
                    let mut flow = lock(flow);
                    let Some(from) = &mut flow.response else {
                        return Err(gone());
                    };
                    let status = from.status();
                    let mut head = ResponseHead::build(status, reply::reason(status).as_bytes())
                        .map_err(|_| gone())?;
                    for (name, value) in from.headers().iter() {
                        if !is_connection_specific(name) {
                            let _ = head.headers.append(name, value);
                        }
                    }
                    let bodiless = *head_only || status == 204 || status == 304;
                    let mut close = !*keep_alive;
                    framing = if head.headers.contains("content-length") || bodiless {
                        SinkFraming::Plain
                    } else if empty {
                        let _ = head.headers.append(b"content-length", b"0");
                        SinkFraming::Plain
                    } else if *is_10 {
                        close = true;
                        SinkFraming::Plain
                    } else {
                        let _ = head.headers.append(b"transfer-encoding", b"chunked");
                        SinkFraming::Chunked
                    };
                    if close {
                        let _ = head.headers.append(b"connection", b"close");
                        **closing = Closing::Close;
                    } else if *is_10 {
                        let _ = head.headers.append(b"connection", b"keep-alive");
                    }
                    head.write_to(&mut out);
                }
                *started = true;
                wr.write_all(&out).await.map_err(|_| gone())?;
                if empty || *head_only {
                    return Ok(None);
                }
                Ok(Some(Sink::H1 {
                    wr,
                    framing,
                    watch: watch.as_deref_mut(),
                }))
            }
        }
    }
}

/// Waits until the origin allows another stream.
async fn stream_allowed(
    send: SendRequest<Bytes>,
    limit: Duration,
) -> Result<Result<SendRequest<Bytes>, h2::Error>, Elapsed> {
    let mut ready = pin!(send.ready());
    // Nearly always at once, and then without a timer.
    let first = poll_fn(|cx| Poll::Ready(ready.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(result) => Ok(result),
        Poll::Pending => Timer::default().within(limit, ready).await,
    }
}

fn request_done(flow: &SharedFlow<'_>) {
    let mut flow = lock(flow);
    let elapsed = flow.timing.start.elapsed();
    flow.timing.request_end = Some(elapsed);
}

fn failed(error: FlowError) -> Ended {
    Ended::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error))
}

fn by_verdict(verdict: Verdict, started: bool) -> Ended {
    match verdict {
        Verdict::Respond(reply) if !started => Ended::Answer(
            reply,
            Outcome {
                kind: OutcomeKind::Answered,
                error: None,
            },
        ),
        Verdict::Failed(error) if !started => failed(error),
        verdict => Ended::Cut(Reason::CANCEL, h1::dropped(verdict)),
    }
}

fn upstream_error(error: &h2::Error, doing: &str) -> FlowError {
    let class = if error.is_io() || error.is_reset() || error.is_go_away() {
        ErrorClass::Reset
    } else {
        ErrorClass::Protocol
    };
    FlowError::new(
        Side::Upstream,
        class,
        format!("the HTTP/2 connection to the origin failed while {doing}: {error}"),
    )
}

/// The head of an HTTP/1 request for one that came as HTTP/2.
fn head_of(
    parts: &http::request::Parts,
    flow: &Flow,
    has_body: bool,
) -> Result<RequestHead, FlowError> {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut list = HeaderList::new();
    from_map(&parts.headers, &mut list);
    let authority = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes().to_vec());
    http1_head(
        parts.method.as_str().as_bytes(),
        path.as_bytes(),
        authority,
        &list,
        flow,
        has_body,
    )
}

fn head_from_flow(flow: &Flow, has_body: bool) -> Result<RequestHead, FlowError> {
    http1_head(
        flow.request.method(),
        flow.request.path(),
        flow.request.authority.clone(),
        flow.request.headers(),
        flow,
        has_body,
    )
}

fn http1_head(
    method: &[u8],
    path: &[u8],
    authority: Option<Vec<u8>>,
    from: &HeaderList,
    flow: &Flow,
    has_body: bool,
) -> Result<RequestHead, FlowError> {
    let mut head = RequestHead::build(method, path, Version::Http11).map_err(interceptor_error)?;
    let host = match (from.get("host"), authority) {
        (Some(host), _) => host.to_vec(),
        (None, Some(authority)) => authority,
        (None, None) => flow.request.target.to_string().into_bytes(),
    };
    let put = |head: &mut RequestHead, name: &[u8], value: &[u8]| {
        head.headers.append(name, value).map_err(interceptor_error)
    };
    put(&mut head, b"host", &host)?;
    // HTTP/2 splits cookies for compression; HTTP/1 servers expect one (RFC 9113 section 8.2.3).
    let cookies: Vec<&[u8]> = from.get_all("cookie").collect();
    let mut cookies_written = false;
    for (name, value) in from.iter() {
        if name.eq_ignore_ascii_case(b"host") || is_connection_specific(name) {
            continue;
        }
        if name.eq_ignore_ascii_case(b"cookie") {
            if !std::mem::replace(&mut cookies_written, true) {
                put(&mut head, name, &cookies.join(&b"; "[..]))?;
            }
            continue;
        }
        put(&mut head, name, value)?;
    }
    if !head.headers.contains("content-length") {
        if has_body {
            put(&mut head, b"transfer-encoding", b"chunked")?;
        } else if matches!(method, b"POST" | b"PUT" | b"PATCH") {
            put(&mut head, b"content-length", b"0")?;
        }
    }
    Ok(head)
}

// Bodies.

enum RelayError {
    Read(FlowError, Reason),
    Write(FlowError),
    Verdict(Verdict),
}

impl Source<'_> {
    /// Nothing comes, not even trailers.
    fn is_empty(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(None, None))
    }

    /// It can be sent again on another connection.
    fn is_replayable(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(..))
    }

    /// The next piece, and whether it is known to be the last one.
    async fn next(&mut self) -> Result<Option<(Bytes, bool)>, Broken> {
        match self {
            Self::Empty => Ok(None),
            Self::Whole(bytes, trailers) => Ok(bytes.take().map(|b| (b, trailers.is_none()))),
            Self::H2(recv) => match recv.data().await {
                Some(Ok(bytes)) => {
                    let last = recv.is_end_stream();
                    Ok(Some((bytes, last)))
                }
                Some(Err(error)) => Err(Broken::by_h2(&error)),
                None => Ok(None),
            },
            Self::H1 { rd, body } => loop {
                let mut piece = Vec::new();
                let n = body
                    .advance(rd.data(), |payload| piece.extend_from_slice(payload))
                    .map_err(|anomaly| Broken {
                        message: format!("the body is malformed: {anomaly}"),
                        class: ErrorClass::Protocol,
                        reason: Reason::PROTOCOL_ERROR,
                    })?;
                rd.consume(n);
                if !piece.is_empty() {
                    // Trailers may follow what a chunked body has shown so far.
                    let last = body.is_done() && body.trailers().is_none();
                    return Ok(Some((piece.into(), last)));
                }
                if body.is_done() {
                    return Ok(None);
                }
                match rd.fill().await {
                    Ok(n) if n > 0 => {}
                    Ok(_) if body.end_of_stream() => return Ok(None),
                    _ => {
                        return Err(Broken {
                            message: "the connection closed in the middle of the body".to_owned(),
                            class: ErrorClass::Reset,
                            reason: Reason::INTERNAL_ERROR,
                        });
                    }
                }
            },
        }
    }

    /// Gives the window back for bytes that have been passed on.
    fn release(&mut self, n: usize) {
        if let Self::H2(recv) = self {
            let _ = recv.flow_control().release_capacity(n);
        }
    }

    async fn trailers(&mut self) -> Result<Option<HeaderList>, Broken> {
        match self {
            Self::H2(recv) => match recv.trailers().await {
                Ok(Some(map)) => {
                    let mut list = HeaderList::new();
                    from_map(&map, &mut list);
                    Ok(Some(list))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(Broken::by_h2(&error)),
            },
            Self::H1 { body, .. } => Ok(body.trailers().cloned()),
            Self::Whole(_, trailers) => Ok(trailers.take()),
            Self::Empty => Ok(None),
        }
    }
}

/// A body that ended before its end.
struct Broken {
    message: String,
    class: ErrorClass,
    /// What the other side's stream is reset with.
    reason: Reason,
}

impl Broken {
    fn by_h2(error: &h2::Error) -> Self {
        Self {
            message: format!("the stream ended in the middle of the body: {error}"),
            class: ErrorClass::Reset,
            reason: error.reason().unwrap_or(Reason::INTERNAL_ERROR),
        }
    }

    /// As the error of the side that the body came from.
    fn on(self, direction: Direction) -> RelayError {
        let reason = self.reason;
        RelayError::Read(self.into_error(direction), reason)
    }

    fn into_error(self, direction: Direction) -> FlowError {
        let side = match direction {
            Direction::Request => Side::Client,
            Direction::Response => Side::Upstream,
        };
        FlowError::new(side, self.class, self.message)
    }
}

impl Sink<'_> {
    /// Ready when nobody wants the rest.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(stream) => stream.poll_reset(cx).map(|_| ()),
            Self::H1 { watch, .. } => poll_gone(watch.as_deref_mut(), cx),
        }
    }

    async fn send(&mut self, mut data: Bytes, last: bool) -> Result<(), FlowError> {
        match self {
            Self::H2(stream) => {
                if data.is_empty() && last {
                    return stream.send_data(data, true).map_err(|e| sink_error(&e));
                }
                while !data.is_empty() {
                    stream.reserve_capacity(data.len());
                    let mut room = stream.capacity();
                    while room == 0 {
                        let granted = poll_fn(|cx| {
                            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                                return Poll::Ready(Err(reset));
                            }
                            stream.poll_capacity(cx).map(Ok)
                        })
                        .await;
                        room = match granted {
                            Ok(Some(Ok(n))) => n,
                            Ok(Some(Err(e))) => return Err(sink_error(&e)),
                            Ok(None) | Err(_) => {
                                return Err(FlowError::new(
                                    Side::Client,
                                    ErrorClass::Reset,
                                    "the stream was reset",
                                ));
                            }
                        };
                    }
                    let piece = data.split_to(room.min(data.len()));
                    stream
                        .send_data(piece, last && data.is_empty())
                        .map_err(|e| sink_error(&e))?;
                }
                Ok(())
            }
            Self::H1 { wr, framing, .. } => {
                let result = match framing {
                    SinkFraming::Chunked => {
                        let mut out = Vec::with_capacity(data.len() + 16);
                        http1::encode_chunk(&mut out, &data);
                        if last {
                            http1::encode_last(&mut out, None);
                        }
                        wr.write_all(&out).await
                    }
                    SinkFraming::Plain => wr.write_all(&data).await,
                };
                result.map_err(|_| h1::client_gone())
            }
        }
    }

    async fn finish(&mut self, trailers: Option<&HeaderList>) -> Result<(), FlowError> {
        match self {
            Self::H2(stream) => match trailers {
                Some(list) => {
                    let mut map = HeaderMap::new();
                    to_map(list, &mut map);
                    stream.send_trailers(map).map_err(|e| sink_error(&e))
                }
                None => stream
                    .send_data(Bytes::new(), true)
                    .map_err(|e| sink_error(&e)),
            },
            Self::H1 { wr, framing, .. } => match framing {
                SinkFraming::Chunked => {
                    let mut out = Vec::new();
                    http1::encode_last(&mut out, trailers);
                    wr.write_all(&out).await.map_err(|_| h1::client_gone())
                }
                SinkFraming::Plain => Ok(()),
            },
        }
    }
}

/// Ready when a client that is not being read from has gone.
fn poll_gone(watch: Option<&mut ReadHalf>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(rd) = watch else {
        return Poll::Pending;
    };
    loop {
        match ready!(rd.poll_watch(cx)) {
            Ok(n) if n > 0 => {}
            _ => return Poll::Ready(()),
        }
    }
}

fn sink_error(error: &h2::Error) -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Reset,
        format!("the stream can't be written: {error}"),
    )
}

/// Relays a body: takes a piece, offers it, sends it, and only then takes the next.
async fn relay(
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    hooks: &mut BodyRun<'_, '_>,
    progress: &AtomicU64,
    size: &AtomicU64,
) -> Result<Option<HeaderList>, RelayError> {
    loop {
        let next = {
            let mut next = pin!(source.next());
            poll_fn(|cx| {
                if let Poll::Ready(next) = next.as_mut().poll(cx) {
                    return Poll::Ready(Some(next));
                }
                sink.poll_gone(cx).map(|()| None)
            })
            .await
        };
        let next = match next {
            Some(next) => next.map_err(|broken| broken.on(hooks.direction))?,
            None => return Err(RelayError::Write(h1::client_gone())),
        };
        let Some((data, last)) = next else {
            break;
        };
        let len = data.len();
        size.fetch_add(len as u64, Ordering::Relaxed);
        let mut out = data;
        if hooks.watched && len > 0 {
            match hooks.data(&out, false).await {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) => out = bytes,
                PieceVerdict::End(verdict) => return Err(RelayError::Verdict(verdict)),
            }
        }
        // The last piece of a watched body may still be followed by what a hook adds.
        let last = last && !hooks.watched;
        if !out.is_empty() || last {
            sink.send(out, last).await.map_err(RelayError::Write)?;
        }
        source.release(len);
        progress.fetch_add(1, Ordering::Relaxed);
        if last {
            return Ok(None);
        }
    }
    let trailers = source
        .trailers()
        .await
        .map_err(|broken| broken.on(hooks.direction))?;
    if hooks.watched {
        match hooks.data(&[], true).await {
            PieceVerdict::Pass => {}
            PieceVerdict::Replace(bytes) => {
                sink.send(bytes, false).await.map_err(RelayError::Write)?;
            }
            PieceVerdict::End(verdict) => return Err(RelayError::Verdict(verdict)),
        }
    }
    sink.finish(trailers.as_ref())
        .await
        .map_err(RelayError::Write)?;
    Ok(trailers)
}

enum Collected {
    Whole(Bytes, Option<HeaderList>),
    TooLarge(Vec<u8>),
}

/// Reads a whole body, up to a bound.
async fn collect(
    source: &mut Source<'_>,
    direction: Direction,
    limit: usize,
    idle: Duration,
) -> Result<Collected, FlowError> {
    let mut whole = Vec::new();
    loop {
        let next = tokio::time::timeout(idle, source.next()).await;
        let next = next
            .map_err(|_| {
                let broken = Broken {
                    message: "the body did not arrive in time".to_owned(),
                    class: ErrorClass::Timeout,
                    reason: Reason::CANCEL,
                };
                broken.into_error(direction)
            })?
            .map_err(|broken| broken.into_error(direction))?;
        let Some((data, _)) = next else {
            let trailers = source
                .trailers()
                .await
                .map_err(|broken| broken.into_error(direction))?;
            return Ok(Collected::Whole(whole.into(), trailers));
        };
        whole.extend_from_slice(&data);
        source.release(data.len());
        if whole.len() > limit {
            return Ok(Collected::TooLarge(whole));
        }
    }
}

// HTTP/1 clients of HTTP/2 upstreams.

/// Runs the exchange of an HTTP/1 request over an HTTP/2 upstream. The hooks for the request have
/// been called.
pub(crate) async fn exchange_from_h1(
    session: &Session,
    client: &mut Conn,
    request: &mut ClientBody,
    guard: &mut FlowGuard<'_>,
    shared: Shared,
    keep_alive: bool,
) -> ExchangeEnd {
    let head_only = guard.flow.request.method() == b"HEAD";
    let is_10 = guard.flow.request.version == HttpVersion::Http10;
    let streams = Streams {
        session: session.another(),
        fixed: None,
    };
    let exchange = Exchange {
        streams: &streams,
        config: &session.live.config,
        counters: session.counters(),
    };
    request.consume(client);
    let Conn { rd, wr } = client;
    let mut watch = None;
    let mut source = match &request.collected {
        Some(whole) => {
            watch = Some(rd);
            let trailers = request.body.trailers().cloned();
            Source::Whole((!whole.is_empty()).then(|| whole.clone()), trailers)
        }
        None if request.body.is_done() => {
            watch = Some(rd);
            Source::Empty
        }
        None => Source::H1 {
            rd,
            body: &mut request.body,
        },
    };
    let mut closing = Closing::Keep;
    let mut down = Down::H1 {
        wr,
        is_10,
        keep_alive,
        head_only,
        closing: &mut closing,
        started: false,
        watch,
    };
    guard.flow.upstream = Some(Arc::clone(&shared.info));
    let in_use = InUse::new(&shared);
    let parts = match parts_of(guard.flow) {
        Ok(mut parts) => {
            // Asked of us, not of the origin's connection: HTTP/2 has no such wait.
            if parts.headers.contains_key(header::EXPECT) && !matches!(source, Source::Whole(..)) {
                let _ = down
                    .interim({
                        let mut interim = http::Response::new(());
                        *interim.status_mut() = http::StatusCode::CONTINUE;
                        interim
                    })
                    .await;
                parts.headers.remove(header::EXPECT);
            }
            parts
        }
        Err(error) => {
            return end(Exchanged::Answer(
                Box::new(reply::for_error(&error)),
                Outcome::failed(error),
            ));
        }
    };
    let ended = exchange
        .over_h2(guard, shared, parts, &mut source, &mut down)
        .await;
    drop(in_use);
    let started = matches!(down, Down::H1 { started: true, .. });
    end(match ended {
        None => Exchanged::Retry,
        Some(Ended::Complete) => Exchanged::Complete { close: closing },
        Some(Ended::Answer(reply, outcome)) if !started => Exchanged::Answer(reply, outcome),
        Some(Ended::Answer(_, outcome) | Ended::Cut(_, outcome)) => Exchanged::Cut(outcome),
    })
}

fn end(result: Exchanged) -> ExchangeEnd {
    ExchangeEnd {
        result,
        upstream: UpstreamAfter::Dead,
    }
}

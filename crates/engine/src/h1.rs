//! Serves HTTP/1 to a client: reads heads, runs the exchange with an HTTP/1 upstream, keeps alive.
//!
//! The path of a request that nobody is interested in: its head is parsed where it lies in the
//! read buffer, head and body leave verbatim in one write, and the response comes back the same
//! way. Two system calls to read, two to write, no allocation.

mod body;
pub(crate) mod exchange;
pub(crate) mod failure;
pub(crate) mod head;
mod response;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tollgate_flow::{
    Direction, ErrorClass, Flow, FlowError, HttpVersion, Interest, Outcome, OutcomeKind, Reply,
    Response, Scheme, Side, Target, Via,
};
use tollgate_wire::http1::{self, HeadLimits, Parsed, RequestHead};

use body::CollectError;
use exchange::Exchange;
use failure::client_anomaly;
use head::{Prepared, is_connection_bound, make_chunked, prepare, refused};

pub(crate) use body::ClientBody;
pub(crate) use exchange::{Closing, ExchangeEnd, Exchanged, UpstreamAfter};
pub(crate) use failure::{blocked, client_gone, dropped};

use crate::auth::{self, Admitted};
use crate::body::Body;
use crate::hooks::{Run, SharedFlow, Verdict};
use crate::io::{Conn, ReadHalf, WriteHalf};
use crate::metrics::count;
use crate::pool::{RouteTls, UpConn};
use crate::reply;
use crate::session::{FlowGuard, Session, Up, UpstreamError};
use crate::stages::origin_tls;
use crate::via;
use crate::websocket;

/// How long a client that idles keeps its upstream connection to itself.
const STICKY: Duration = Duration::from_secs(1);

/// What a client may still send after an answer that ends its connection, before it is cut off.
const LINGER_BYTES: usize = 256 * 1024;

const LINGER: Duration = Duration::from_secs(2);
/// How long a client may take to read an answer of our own.
pub(crate) const REPLY: Duration = Duration::from_secs(60);

/// Where requests go.
pub(crate) enum Mode {
    /// Where each request says: absolute-form targets, and CONNECT.
    Proxy,
    /// All to one destination: inside a CONNECT, or in reverse.
    Fixed(Fixed),
    /// Where the tickets of requests say that a scanner gives back.
    Return,
}

/// The one destination of a connection.
#[derive(Clone)]
pub(crate) struct Fixed {
    pub target: Target,
    pub scheme: Scheme,
    pub tls: Option<RouteTls>,
    /// What requests name as their host from here on, in place of what the client said.
    pub host_header: Option<Arc<str>>,
    /// What requests show of who we are, in place of what the client shows.
    pub authorization: Option<Arc<str>>,
    /// The upstream connection could not be made: each request is answered with this.
    pub broken: Option<FlowError>,
}

/// What comes after the HTTP/1 stage.
pub(crate) enum Next {
    /// The connection has ended.
    Close,
    /// The client asked for a tunnel; nothing has been answered.
    Connect(Target),
    /// The connection was upgraded and now carries another protocol to this upstream.
    Upgraded(Box<UpConn>),
}

/// Serves requests until the connection ends or becomes something else.
pub(crate) async fn serve(
    session: &mut Session,
    client: &mut Conn,
    mode: &Mode,
    first: Option<Up>,
) -> Next {
    let mut server = Server {
        upstream: first,
        spare: None,
    };
    let mut flow = Box::new(Flow::new(Arc::clone(&session.info)));
    loop {
        let after = match server
            .read_head(session, client, &mut flow.request.head)
            .await
        {
            Head::Complete(len) => server.exchange(session, client, mode, &mut flow, len).await,
            Head::Closed => After::Close,
            Head::Refused { status, error } => {
                session.counters().failure(error.side, error.class);
                let reply = reply::with_status(status, &error);
                let _ = send_reply(client, &reply, false, true).await;
                After::Linger
            }
        };
        session.count_client_bytes(client);
        if let Some(Up::Conn(up)) = &mut server.upstream {
            up.count_bytes(session.counters());
        }
        match after {
            After::KeepAlive => {
                if let Some(response) = flow.response.take() {
                    server.spare = Some(response);
                }
            }
            After::Connect(target) => {
                server.release(session);
                return Next::Connect(target);
            }
            After::Upgraded => {
                return match server.upstream.take() {
                    Some(Up::Conn(up)) => Next::Upgraded(Box::new(up)),
                    _ => Next::Close,
                };
            }
            After::Linger => {
                server.release(session);
                linger(session, client).await;
                return Next::Close;
            }
            After::Close => {
                server.release(session);
                let _ = session.timer.within(LINGER, client.wr.shutdown()).await;
                return Next::Close;
            }
            After::Abort => return Next::Close,
        }
    }
}

/// What is to be done with the client's connection after an exchange.
enum After {
    KeepAlive,
    Connect(Target),
    Upgraded,
    /// Close in good order: everything was read.
    Close,
    /// Close, but read on for a while so that the answer isn't lost to a reset.
    Linger,
    /// Cut: the client must notice that something is missing.
    Abort,
}

enum Head {
    Complete(usize),
    Closed,
    Refused { status: u16, error: FlowError },
}

struct Server {
    /// The upstream connection of the last request: the next one most likely goes there too.
    upstream: Option<Up>,
    /// A response whose buffers are used again.
    spare: Option<Box<Response>>,
}

impl Server {
    fn release(&mut self, session: &Session) {
        if let Some(up) = self.upstream.take() {
            session.give_back(up);
        }
    }

    async fn read_head(
        &mut self,
        session: &mut Session,
        client: &mut Conn,
        head: &mut RequestHead,
    ) -> Head {
        let timeouts = &session.live.config.timeouts;
        if client.rd.data().is_empty() {
            let keep_alive = timeouts.keep_alive;
            let mut waited = Duration::ZERO;
            session.timer.set(match keep_alive {
                Duration::ZERO => STICKY,
                limit => STICKY.min(limit),
            });
            loop {
                let Session { timer, control, .. } = session;
                let woken = poll_fn(|cx| {
                    if let Poll::Ready(result) = client.rd.poll_fill(cx) {
                        return Poll::Ready(Idle::Read(result));
                    }
                    if control.poll_drain(cx).is_ready() {
                        return Poll::Ready(Idle::Drain);
                    }
                    timer.poll(cx).map(|()| Idle::Tick)
                })
                .await;
                match woken {
                    Idle::Read(Ok(0) | Err(_)) | Idle::Drain => return Head::Closed,
                    Idle::Read(Ok(_)) => break,
                    Idle::Tick if !keep_alive.is_zero() && waited.max(STICKY) >= keep_alive => {
                        return Head::Closed;
                    }
                    Idle::Tick => {
                        // Others may have the upstream connection meanwhile.
                        self.release(session);
                        self.spare = None;
                        waited = keep_alive;
                        session.timer.set(keep_alive.saturating_sub(STICKY));
                    }
                }
            }
        }
        let limits = head_limits(session);
        let limit = session.live.config.timeouts.request_head;
        let mut timing = false;
        loop {
            match head.parse(client.rd.data(), &limits) {
                Ok(Parsed::Complete { len }) => return Head::Complete(len),
                Ok(Parsed::Partial) => {}
                Err(anomaly) => {
                    return Head::Refused {
                        status: anomaly.status(),
                        error: client_anomaly(anomaly),
                    };
                }
            }
            if !timing {
                session.timer.set(limit);
                timing = true;
            }
            let timer = &mut session.timer;
            let filled = poll_fn(|cx| {
                if let Poll::Ready(result) = client.rd.poll_fill(cx) {
                    return Poll::Ready(Some(result));
                }
                timer.poll(cx).map(|()| None)
            })
            .await;
            match filled {
                Some(Ok(n)) if n > 0 => {}
                Some(_) => return Head::Closed,
                None => {
                    return Head::Refused {
                        status: 408,
                        error: FlowError::new(
                            Side::Client,
                            ErrorClass::Timeout,
                            format!("the request head took longer than {limit:?}"),
                        ),
                    };
                }
            }
        }
    }

    /// One request and its response. The head has been parsed, its `head_len` bytes are not consumed.
    async fn exchange(
        &mut self,
        session: &mut Session,
        client: &mut Conn,
        mode: &Mode,
        flow: &mut Flow,
        head_len: usize,
    ) -> After {
        flow.request.reset();
        flow.response = None;
        let asked = auth::asked(session);
        let shown = asked.map(|(name, _)| flow.request.headers().get(name).map(<[u8]>::to_vec));
        let mut prepared = prepare(mode, &mut flow.request, &session.worker.shared.tickets);
        if let (Some((name, status)), Ok(_)) = (asked, &prepared) {
            let shown = shown.flatten();
            match auth::admit(session, shown.as_deref(), status).await {
                Ok(Admitted::AsItIs) => {}
                Ok(Admitted::WithoutField) => {
                    // What stands there may be ours already.
                    if !matches!(mode, Mode::Fixed(fixed) if fixed.authorization.is_some()) {
                        flow.request.headers_mut().remove(name);
                    }
                }
                Err(refusal) => {
                    if let Ok(Prepared::Connect(target)) = prepared {
                        flow.request.target = target;
                    }
                    prepared = Err(refusal);
                }
            }
        }
        let mut returned = None;
        session.acting_for = None;
        let refusal = match prepared {
            Ok(Prepared::Connect(target)) => {
                client.rd.consume(head_len);
                return After::Connect(target);
            }
            Ok(Prepared::Request) => None,
            Ok(Prepared::Returned(ticket)) => {
                flow.request.via = match &ticket.via {
                    Some(proxy) => Via::Proxy(Arc::clone(proxy)),
                    None => Via::Direct,
                };
                session.acting_for = Some(Arc::clone(&ticket));
                returned = Some(ticket);
                None
            }
            Err((status, error)) => {
                if let (Mode::Proxy | Mode::Return, 400..=400 | 403) = (mode, status) {
                    // It says nothing of where it goes: it came to us.
                    let local = session.info.local;
                    flow.request.target = Target::new(&local.ip().to_string(), local.port());
                }
                Some((status, error))
            }
        };
        let framing = match flow.request.head.framing() {
            Ok(framing) => framing,
            Err(anomaly) => {
                let error = client_anomaly(anomaly);
                session.counters().failure(error.side, error.class);
                let reply = reply::with_status(anomaly.status(), &error);
                let _ = send_reply(client, &reply, false, true).await;
                return After::Linger;
            }
        };
        let config = Arc::clone(&session.live.config);
        let worker = Arc::clone(&session.worker);
        let counters = &worker.counters;
        session.begin_flow(flow);
        let run = match returned {
            None => Run::begin(&worker.shared.hooks, flow, counters),
            // It was shown to them on its way to the scanner.
            Some(_) => Run::none(),
        };
        let mut guard = FlowGuard::new(flow, run, counters);
        let mut request = ClientBody {
            body: Body::new(framing, config.limits.trailer_bytes),
            head_len,
            buffered: 0,
            replayable: false,
            collected: None,
        };
        let keep_alive = guard.flow.request.head.keep_alive() && !session.control.is_draining();
        let head_only = guard.flow.request.method() == b"HEAD";

        // Whatever is answered from here on leaves through this.
        macro_rules! answer {
            ($reply:expr, $outcome:expr) => {{
                let reply: Reply = $reply;
                let whole = request.is_buffered(client);
                let close = !keep_alive || !whole;
                put_reply(guard.flow, &reply);
                let version = guard.flow.request.version;
                let sent = send_answer(client, &reply, version, head_only, close).await;
                guard.end(&$outcome);
                return match (sent, close) {
                    (Err(_), _) => After::Abort,
                    (Ok(()), false) => {
                        request.consume(client);
                        After::KeepAlive
                    }
                    (Ok(()), true) => After::Linger,
                };
            }};
        }
        macro_rules! fail {
            ($error:expr) => {{
                let error: FlowError = $error;
                answer!(reply::for_error(&error), Outcome::failed(error))
            }};
        }
        macro_rules! settle {
            ($verdict:expr) => {
                match $verdict {
                    Verdict::Continue => {}
                    Verdict::Respond(reply) => answer!(
                        *reply,
                        Outcome {
                            kind: OutcomeKind::Answered,
                            error: None,
                        }
                    ),
                    Verdict::Failed(error) => fail!(error),
                    verdict @ (Verdict::Drop | Verdict::Close(_)) => {
                        guard.end(&dropped(verdict));
                        return After::Abort;
                    }
                }
            };
        }

        if let Some((status, error)) = refusal {
            let reply = auth::refusal(status, &error);
            answer!(reply, Outcome::failed(error));
        }
        if let Some(target) = refused(&config.policy, mode, &guard.flow.request) {
            count(&counters.blocked_total);
            fail!(blocked(&target));
        }
        if guard.run.wants(Interest::REQUEST_BODY) && !request.body.is_done() {
            // The client may be waiting to be told to send what we are about to collect.
            if guard.flow.request.head.expects_continue()
                && client.rd.data().len() == head_len
                && client
                    .wr
                    .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                    .await
                    .is_err()
            {
                guard.end(&Outcome::failed(client_gone()));
                return After::Abort;
            }
            guard.flow.request.head.headers.remove("expect");
            let collected = session
                .timer
                .within(
                    config.timeouts.idle,
                    request.collect(client, config.limits.body_limit),
                )
                .await;
            match collected {
                Ok(Ok(())) => {}
                Ok(Err(CollectError::TooLarge)) => {
                    let error = FlowError::new(
                        Side::Client,
                        ErrorClass::Limit,
                        format!(
                            "the request body is larger than {} bytes, which is the most that an interceptor may collect",
                            config.limits.body_limit
                        ),
                    );
                    fail!(error);
                }
                Ok(Err(CollectError::Anomaly(anomaly))) => fail!(client_anomaly(anomaly)),
                Ok(Err(CollectError::Gone)) => {
                    guard.end(&Outcome::failed(client_gone()));
                    return After::Abort;
                }
                Err(_) => fail!(FlowError::new(
                    Side::Client,
                    ErrorClass::Timeout,
                    "the request body did not arrive in time",
                )),
            }
            guard.flow.request.trailers = request.body.trailers().cloned();
            let body = request.collected.clone().unwrap_or_default();
            guard.flow.request.body_size = body.len() as u64;
            guard.flow.request.put_collected_body(body);
        } else if guard.run.wants(Interest::REQUEST_BODY) {
            request.collected = Some(Bytes::new());
            guard.flow.request.put_collected_body(Bytes::new());
        }
        let verdict = {
            let shared = SharedFlow::new(&mut *guard.flow);
            let hooks = guard.run.request(&shared, counters);
            while_client_stays(&mut client.rd, hooks).await
        };
        let Some(verdict) = verdict else {
            guard.end(&Outcome::failed(client_gone()));
            return After::Abort;
        };
        settle!(verdict);
        if request.collected.is_some() {
            if let Err(error) = request.put_framing(&mut guard.flow.request) {
                fail!(error);
            }
        } else if guard.run.edits(Direction::Request) && !request.body.is_done() {
            if guard.flow.request.version == HttpVersion::Http10 {
                fail!(FlowError::new(
                    Side::Proxy,
                    ErrorClass::Interceptor,
                    "a body of HTTP/1.0 can't be edited while it streams",
                ));
            }
            make_chunked(&mut guard.flow.request.head.headers);
        }

        let is_websocket = guard.flow.request.head.upgrade().is_some()
            && websocket::is_websocket(guard.flow.request.headers());
        if is_websocket && guard.run.wants(Interest::EDIT_MESSAGES) {
            websocket::restrict_offer(guard.flow.request.headers_mut());
        }

        // The upstream connection: the last one, a pooled one, or a new one.
        let tls = match mode {
            Mode::Fixed(fixed) => origin_tls(session, &guard.flow.request, Some(fixed)),
            Mode::Proxy => origin_tls(session, &guard.flow.request, None),
            Mode::Return => Ok(returned.as_ref().and_then(|t| t.tls.clone())),
        };
        let tls = match tls {
            Ok(tls) => tls,
            Err(error) => fail!(error),
        };
        #[cfg(feature = "http2")]
        let mut tls = tls;
        let pinned = is_connection_bound(&guard.flow.request.head.headers, "authorization");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let found = self
                .find_upstream(
                    session,
                    &guard.flow.request,
                    tls.as_ref(),
                    pinned,
                    attempt > 1,
                )
                .await;
            if let Err(error) = found {
                fail!(error.into_flow_error());
            }
            let up = match &mut self.upstream {
                Some(Up::Conn(up)) => up,
                // An upgrade has no meaning there (RFC 9113 section 8.6).
                #[cfg(feature = "http2")]
                Some(Up::Shared(_))
                    if is_websocket && tls.as_ref().is_some_and(RouteTls::may_be_shared) =>
                {
                    tls = tls.map(RouteTls::only_http1);
                    attempt = 0;
                    continue;
                }
                #[cfg(feature = "http2")]
                Some(Up::Shared(shared)) => {
                    let shared = shared.clone();
                    let end = crate::streams::exchange::exchange_from_h1(
                        session,
                        client,
                        &mut request,
                        &mut guard,
                        shared,
                        keep_alive,
                    )
                    .await;
                    self.upstream = None;
                    if matches!(end.result, Exchanged::Retry) && attempt < 3 {
                        count(&counters.retries);
                        continue;
                    }
                    return self
                        .conclude(client, guard, request, end, keep_alive, head_only)
                        .await;
                }
                None => continue,
            };
            guard.flow.upstream = Some(Arc::clone(&up.info));
            if let Some(ticket) = &returned {
                let _ = ticket.upstream.set(Arc::clone(&up.info));
            }
            let route = Arc::clone(&up.route);
            let tickets = &worker.shared.tickets;
            let ticket = session.ticket(tickets, &route, &guard.flow.request, tls.as_ref());
            let ticket = match ticket {
                Ok(ticket) => ticket,
                Err(error) => fail!(error),
            };
            let exchange = Exchange {
                config: &config,
                counters,
                run: &guard.run,
                keep_alive,
                spare: &mut self.spare,
                forward: via::forward(&route, ticket.as_ref().map(|issued| &*issued.ticket)),
            };
            let end = exchange
                .run(client, up, &mut request, guard.flow, &mut session.timer)
                .await;
            if let Some(origin) = ticket.as_ref().and_then(|i| i.ticket.upstream.get()) {
                // What the flow reached in the end, rather than the scanner.
                guard.flow.upstream = Some(Arc::clone(origin));
            }
            match end.upstream {
                UpstreamAfter::Reusable => {}
                UpstreamAfter::Pin => up.pinned = true,
                UpstreamAfter::Dead => {
                    up.count_bytes(counters);
                    self.upstream = None;
                }
                UpstreamAfter::Upgraded => {}
            }
            if let Exchanged::Retry = end.result {
                if attempt < 3 {
                    count(&counters.retries);
                    continue;
                }
                fail!(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Reset,
                    "the origin closed the connection before it answered",
                ));
            }
            if is_websocket
                && matches!(end.result, Exchanged::Upgraded)
                && guard.run.wants(Interest::MESSAGES)
            {
                request.consume(client);
                if let Some(Up::Conn(up)) = &mut self.upstream {
                    let relay = relay_messages(session, client, up, &mut guard);
                    let outcome = Box::pin(relay).await;
                    guard.end(&outcome);
                }
                return After::Abort;
            }
            return self
                .conclude(client, guard, request, end, keep_alive, head_only)
                .await;
        }
    }

    /// Ends the flow by what came of the exchange, and says what the client's connection is good for.
    async fn conclude(
        &mut self,
        client: &mut Conn,
        mut guard: FlowGuard<'_>,
        mut request: ClientBody,
        end: ExchangeEnd,
        keep_alive: bool,
        head_only: bool,
    ) -> After {
        let answered = match end.result {
            Exchanged::Complete { close } => {
                guard.end(&Outcome::COMPLETED);
                return match (close, request.is_done()) {
                    (Closing::Keep, true) => {
                        request.consume(client);
                        After::KeepAlive
                    }
                    (Closing::Truncated, _) => After::Abort,
                    (_, true) => After::Close,
                    (_, false) => After::Linger,
                };
            }
            Exchanged::Upgraded => {
                request.consume(client);
                guard.end(&Outcome {
                    kind: OutcomeKind::Upgraded,
                    error: None,
                });
                return After::Upgraded;
            }
            Exchanged::Cut(outcome) => {
                guard.end(&outcome);
                return After::Abort;
            }
            Exchanged::Retry => {
                let error = FlowError::new(
                    Side::Upstream,
                    ErrorClass::Reset,
                    "the origin closed the connection before it answered",
                );
                (reply::for_error(&error), Outcome::failed(error))
            }
            Exchanged::Answer(reply, outcome) => (*reply, outcome),
        };
        let (reply, outcome) = answered;
        let close = !keep_alive || !request.is_buffered(client);
        put_reply(guard.flow, &reply);
        let version = guard.flow.request.version;
        let sent = send_answer(client, &reply, version, head_only, close).await;
        guard.end(&outcome);
        match (sent, close) {
            (Err(_), _) => After::Abort,
            (Ok(()), false) => {
                request.consume(client);
                After::KeepAlive
            }
            (Ok(()), true) => After::Linger,
        }
    }

    /// Finds the connection for a request; afterwards it stands in `self.upstream`.
    async fn find_upstream(
        &mut self,
        session: &Session,
        request: &tollgate_flow::Request,
        tls: Option<&RouteTls>,
        pinned: bool,
        fresh: bool,
    ) -> Result<(), UpstreamError> {
        let upgrades = request.head.upgrade().is_some();
        let route = session.request_route(request, tls, pinned, upgrades);
        let keep = match &mut self.upstream {
            Some(up) if fresh || !up.route().is_same_way(&route) => false,
            Some(Up::Conn(up)) => up.conn.is_idle_alive(),
            #[cfg(feature = "http2")]
            Some(Up::Shared(shared)) => shared.is_open(),
            None => false,
        };
        if keep {
            count(&session.counters().upstream_reused);
        } else {
            self.release(session);
            let found = if fresh {
                session.fresh(route).await
            } else {
                session.acquire(route, None).await
            };
            self.upstream = Some(match found {
                Err(error) if session.may_bypass(&error) => {
                    let to = session.destination(&request.target, &request.via);
                    session
                        .acquire(session.route(to, tls.cloned(), pinned), None)
                        .await?
                }
                found => found?,
            });
        }
        if let Some(Up::Conn(up)) = &mut self.upstream {
            up.pinned |= pinned;
        }
        Ok(())
    }
}

/// Relays a WebSocket whose messages somebody wants.
async fn relay_messages(
    session: &mut Session,
    client: &mut Conn,
    up: &mut UpConn,
    guard: &mut FlowGuard<'_>,
) -> Outcome {
    let bounds = websocket::Bounds::of(&session.live.config);
    let worker = Arc::clone(&session.worker);
    let flow = SharedFlow::new(&mut *guard.flow);
    websocket::relay(
        &guard.run,
        &flow,
        &worker.counters,
        bounds,
        &mut session.timer,
        websocket::Ends::of(client),
        websocket::Ends::of(&mut up.conn),
    )
    .await
}

/// Waits for hooks for as long as the client is there. `None`: it has gone.
async fn while_client_stays<T>(rd: &mut ReadHalf, hooks: impl Future<Output = T>) -> Option<T> {
    let mut hooks = pin!(hooks);
    poll_fn(|cx| {
        if let Poll::Ready(value) = hooks.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        loop {
            match rd.poll_watch(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(None),
            }
        }
    })
    .await
}

enum Idle {
    Read(io::Result<usize>),
    Drain,
    Tick,
}

fn head_limits(session: &Session) -> HeadLimits {
    HeadLimits {
        bytes: session.live.config.limits.head_bytes,
        lines: session.live.config.limits.header_lines,
    }
}

/// Puts a reply in the flow as its response.
pub(crate) fn put_reply(flow: &mut Flow, reply: &Reply) {
    let status = reply::valid_status(reply.status);
    let mut response = Box::<Response>::default();
    if let Ok(head) = http1::ResponseHead::build(status, http1::standard_reason(status).as_bytes())
    {
        response.head = head;
    }
    response.version = flow.request.version;
    response.head.headers = reply.headers.clone();
    response.body_size = reply.body.len() as u64;
    response.trailers.clone_from(&reply.trailers);
    response.put_collected_body(reply.body.clone());
    flow.timing
        .response_start
        .get_or_insert(flow.timing.start.elapsed());
    flow.response = Some(response);
}

pub(crate) async fn send_reply(
    client: &mut Conn,
    reply: &Reply,
    head_only: bool,
    close: bool,
) -> io::Result<()> {
    let mut out = Vec::with_capacity(512 + reply.body.len());
    reply::write_http1(reply, head_only, close, &mut out);
    write_in_time(&mut client.wr, &out).await
}

/// Sends a reply to a request: at once, or in the pieces that it comes in.
async fn send_answer(
    client: &mut Conn,
    reply: &Reply,
    version: HttpVersion,
    head_only: bool,
    close: bool,
) -> io::Result<()> {
    let bodiless = head_only || reply::is_bodiless(reply::valid_status(reply.status));
    if bodiless || !reply.is_streamed() {
        return send_reply(client, reply, head_only, close).await;
    }
    Box::pin(send_in_pieces(client, reply, version, close)).await
}

/// Sends a reply in its pieces, for as long as the client is there.
async fn send_in_pieces(
    client: &mut Conn,
    reply: &Reply,
    version: HttpVersion,
    close: bool,
) -> io::Result<()> {
    let has_length = reply.trailers.is_none() && reply.headers.contains("content-length");
    let chunked = version != HttpVersion::Http10 && !has_length;
    let Conn { rd, wr } = client;
    let work = async {
        let mut out = Vec::with_capacity(512);
        let length = (!chunked).then_some(reply.body.len() as u64);
        reply::write_http1_head(reply, length, close, &mut out);
        write_in_time(wr, &out).await?;
        let started = Instant::now();
        for (piece, at) in reply.cut() {
            if !at.is_zero() {
                tokio::time::sleep_until(started + at).await;
            }
            if chunked {
                out.clear();
                http1::encode_chunk(&mut out, &piece);
                write_in_time(wr, &out).await?;
            } else {
                write_in_time(wr, &piece).await?;
            }
        }
        if chunked {
            out.clear();
            http1::encode_last(&mut out, reply.trailers.as_ref());
            write_in_time(wr, &out).await?;
        }
        Ok(())
    };
    while_client_stays(rd, work)
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::ConnectionReset.into()))
}

/// Writes a part of an answer of our own, which a client has to take within a time.
async fn write_in_time(wr: &mut WriteHalf, bytes: &[u8]) -> io::Result<()> {
    tokio::time::timeout(REPLY, wr.write_all(bytes))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Ends our direction and reads on for a while: a socket closed with unread input sends a reset,
/// which may destroy the answer before the client has read it.
pub(crate) async fn linger(session: &mut Session, client: &mut Conn) {
    let work = async {
        if client.wr.shutdown().await.is_err() {
            return;
        }
        let mut left = LINGER_BYTES;
        loop {
            let n = client.rd.data().len();
            client.rd.consume(n);
            left = left.saturating_sub(n);
            if left == 0 || !matches!(client.rd.fill().await, Ok(n) if n > 0) {
                return;
            }
        }
    };
    let _ = session.timer.within(LINGER, work).await;
}

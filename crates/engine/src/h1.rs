//! Serves HTTP/1 to a client: reads heads, runs the exchange with an HTTP/1 upstream, keeps alive.
//!
//! The path of a request that nobody is interested in: its head is parsed where it lies in the
//! read buffer, head and body leave verbatim in one write, and the response comes back the same
//! way. Two system calls to read, two to write, no allocation.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tollgate_flow::{
    Direction, ErrorClass, Flow, FlowError, HttpVersion, Interest, Outcome, OutcomeKind, Reply,
    Response, Scheme, Side, Target,
};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{self, Anomaly, Framing, HeadLimits, Parsed, RequestHead, Version};

use crate::body::Body;
use crate::config::Timeouts;
use crate::dial::describe;
use crate::hooks::{BodyRun, PieceVerdict, Run, SharedFlow, Verdict, lock};
use crate::io::{Conn, End, ReadHalf, WriteHalf};
use crate::metrics::{Counters, count};
use crate::policy::{Action, Policy};
use crate::pool::{RouteTls, UpConn};
use crate::reply;
use crate::session::{FlowGuard, Session, Up, UpstreamError};
use crate::timer::Timer;

/// How long a client that idles keeps its upstream connection to itself.
const STICKY: Duration = Duration::from_secs(1);
/// What a client may still send after an answer that ends its connection, before it is cut off.
const LINGER_BYTES: usize = 256 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// Where requests go.
pub(crate) enum Mode {
    /// Where each request says: absolute-form targets, and CONNECT.
    Proxy,
    /// All to one destination: inside a CONNECT, or in reverse.
    Fixed(Fixed),
}

/// The one destination of a connection.
#[derive(Clone)]
pub(crate) struct Fixed {
    pub target: Target,
    pub scheme: Scheme,
    pub tls: Option<RouteTls>,
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
        let refusal = match prepare(mode, &mut flow.request) {
            Ok(Prepared::Connect(target)) => {
                client.rd.consume(head_len);
                return After::Connect(target);
            }
            Ok(Prepared::Request) => None,
            Err((status, error)) => Some((status, error)),
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
        let run = Run::begin(&worker.shared.hooks, flow, counters);
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
                let sent = send_reply(client, &reply, head_only, close).await;
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
            let reply = reply::with_status(status, &error);
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

        // The upstream connection: the last one, a pooled one, or a new one.
        let (tls, broken) = match mode {
            Mode::Fixed(fixed) if guard.flow.request.target == fixed.target => {
                (fixed.tls.clone(), fixed.broken.clone())
            }
            Mode::Fixed(fixed) => (
                fixed.tls.clone().map(|tls| RouteTls {
                    sni: Arc::clone(&guard.flow.request.target.host),
                    ..tls
                }),
                None,
            ),
            Mode::Proxy => (None, None),
        };
        if let Some(error) = broken {
            fail!(error);
        }
        let pinned = is_connection_bound(&guard.flow.request.head.headers, "authorization");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let found = self
                .find_upstream(
                    session,
                    &guard.flow.request.target,
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
                #[cfg(feature = "http2")]
                Some(Up::H2(shared)) => {
                    let shared = shared.clone();
                    let end = crate::h2::exchange_from_h1(
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
            let exchange = Exchange {
                config: &config,
                counters,
                run: &guard.run,
                keep_alive,
                spare: &mut self.spare,
            };
            let end = exchange
                .run(client, up, &mut request, guard.flow, &mut session.timer)
                .await;
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
        let sent = send_reply(client, &reply, head_only, close).await;
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
        target: &Target,
        tls: Option<&RouteTls>,
        pinned: bool,
        fresh: bool,
    ) -> Result<(), UpstreamError> {
        let keep = match &mut self.upstream {
            Some(up) if fresh || up.route().target != *target || up.route().tls.as_ref() != tls => {
                false
            }
            Some(Up::Conn(up)) => up.conn.is_idle_alive(),
            #[cfg(feature = "http2")]
            Some(Up::H2(shared)) => shared.is_open(),
            None => false,
        };
        if keep {
            count(&session.counters().upstream_reused);
        } else {
            self.release(session);
            let route = session.route(target, tls.cloned(), pinned);
            self.upstream = Some(if fresh {
                session.fresh(route).await?
            } else {
                session.acquire(route, None).await?
            });
        }
        if let Some(Up::Conn(up)) = &mut self.upstream {
            up.pinned |= pinned;
        }
        Ok(())
    }
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

enum Prepared {
    Request,
    Connect(Target),
}

/// Finds out where a request goes, and takes off what is meant for this hop only.
fn prepare(
    mode: &Mode,
    request: &mut tollgate_flow::Request,
) -> Result<Prepared, (u16, FlowError)> {
    let bad = |message: &str| {
        (
            400,
            FlowError::new(Side::Client, ErrorClass::Protocol, message.to_owned()),
        )
    };
    request.version = match request.head.version() {
        Version::Http10 => HttpVersion::Http10,
        Version::Http11 => HttpVersion::Http11,
    };
    match mode {
        Mode::Proxy => {
            if request.head.method() == b"CONNECT" {
                let target = std::str::from_utf8(request.head.target())
                    .ok()
                    .and_then(|t| Target::parse(t, None))
                    .ok_or_else(|| bad("CONNECT needs a target of the form host:port"))?;
                return Ok(Prepared::Connect(target));
            }
            check_host(&request.head)?;
            absolute_form(request).map_err(bad)?;
        }
        Mode::Fixed(fixed) => {
            check_host(&request.head)?;
            if request.target != fixed.target {
                request.target = fixed.target.clone();
            }
            request.scheme = fixed.scheme;
        }
    }
    strip_hop_by_hop(&mut request.head.headers);
    Ok(Prepared::Request)
}

fn check_host(head: &RequestHead) -> Result<(), (u16, FlowError)> {
    head.check_host()
        .map_err(|anomaly| (anomaly.status(), client_anomaly(anomaly)))
}

/// The destination that a request may not have, by the name it was connected to or by the one it
/// names as its host: what the two say may differ (domain fronting).
fn refused(policy: &Policy, mode: &Mode, request: &tollgate_flow::Request) -> Option<Target> {
    let is_blocked = |target: &Target| policy.decide(&[target]) == Action::Block;
    if let Mode::Proxy = mode {
        return is_blocked(&request.target).then(|| request.target.clone());
    }
    if policy.block.is_empty() {
        return None;
    }
    let host = std::str::from_utf8(request.headers().get("host")?).ok()?;
    Target::parse(host, Some(request.target.port)).filter(is_blocked)
}

/// Reads `http://host/path`, and leaves the path as the request's target.
fn absolute_form(request: &mut tollgate_flow::Request) -> Result<(), &'static str> {
    let target = request.head.target();
    let rest = match target.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(b"http://") => rest,
        _ if target
            .get(..8)
            .is_some_and(|s| s.eq_ignore_ascii_case(b"https://")) =>
        {
            return Err("https:// is asked for with CONNECT, not with an absolute URL");
        }
        _ => {
            return Err(
                "this is an HTTP proxy: requests need an absolute URL (http://host/path) or CONNECT",
            );
        }
    };
    let end = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, b""));
    // Credentials in a URL are the client's business with nobody; they are not sent on.
    let host = match authority.iter().rposition(|b| *b == b'@') {
        Some(at) => authority.get(at + 1..).unwrap_or_default(),
        None => authority,
    };
    let parsed = std::str::from_utf8(host)
        .ok()
        .and_then(|h| Target::parse(h, Some(80)))
        .ok_or("the URL's host is not one")?;
    let path = match path.first() {
        Some(b'/') => path.to_vec(),
        None if request.head.method() == b"OPTIONS" => b"*".to_vec(),
        _ => [b"/", path].concat(),
    };
    let authority = host.to_vec();
    request
        .head
        .set_target(&path)
        .map_err(|_| "the URL's path is not valid")?;
    // RFC 9112 section 3.2.2: the target's authority wins over a Host that says otherwise.
    let same = request
        .head
        .headers
        .get("host")
        .is_some_and(|h| h.eq_ignore_ascii_case(&authority));
    if !same {
        request
            .head
            .headers
            .set(b"Host", &authority)
            .map_err(|_| "the URL's host is not one")?;
    }
    request.authority = Some(authority);
    request.scheme = Scheme::Http;
    if request.target != parsed {
        request.target = parsed;
    }
    Ok(())
}

/// Takes off the fields that are for this hop (RFC 9110 section 7.6.1). `Connection` itself stays
/// with the options that mean the same on the next hop.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderList) {
    headers.remove("proxy-authorization");
    headers.remove("proxy-connection");
    let foreign = |token: &[u8]| {
        ![&b"close"[..], b"keep-alive", b"upgrade", b"te"]
            .iter()
            .any(|known| token.eq_ignore_ascii_case(known))
    };
    if headers.contains("keep-alive") && headers.has_token("connection", "keep-alive") {
        headers.remove("keep-alive");
    }
    if !headers.tokens("connection").any(foreign) {
        return;
    }
    let tokens: Vec<Vec<u8>> = headers.tokens("connection").map(<[u8]>::to_vec).collect();
    let (named, kept): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|t| foreign(t));
    for name in named {
        // A field that frames the message or names its host is no option of a connection.
        let protected = [
            &b"host"[..],
            b"content-length",
            b"transfer-encoding",
            b"connection",
        ];
        if protected.iter().any(|p| name.eq_ignore_ascii_case(p)) {
            continue;
        }
        if let Ok(name) = std::str::from_utf8(&name) {
            headers.remove(name);
        }
    }
    if kept.is_empty() {
        headers.remove("connection");
    } else {
        // Tokens of a header that was parsed are a valid value.
        let _ = headers.set(b"Connection", &kept.join(&b", "[..]));
    }
}

/// Whether credentials are bound to the connection that carries them.
fn is_connection_bound(headers: &HeaderList, name: &str) -> bool {
    headers.get_all(name).any(|value| {
        [&b"ntlm"[..], b"negotiate"].iter().any(|scheme| {
            value
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
    })
}

/// Whether a response is one that goes on for as long as the origin likes: collecting it would
/// keep from the client what it is waiting for.
pub(crate) fn is_stream(flow: &Flow) -> bool {
    let Some(value) = flow
        .response
        .as_ref()
        .and_then(|r| r.headers().get("content-type"))
    else {
        return false;
    };
    let media = value.split(|b| *b == b';').next().unwrap_or_default();
    let media = media.trim_ascii().to_ascii_lowercase();
    media.starts_with(b"application/grpc")
        || [
            &b"text/event-stream"[..],
            b"application/x-ndjson",
            b"application/ndjson",
            b"application/jsonl",
            b"application/json-seq",
            b"application/vnd.amazon.eventstream",
            b"multipart/x-mixed-replace",
        ]
        .contains(&media.as_slice())
}

fn make_chunked(headers: &mut HeaderList) {
    headers.remove("content-length");
    if !headers.has_token("transfer-encoding", "chunked") {
        let _ = headers.set(b"Transfer-Encoding", b"chunked");
    }
}

fn head_limits(session: &Session) -> HeadLimits {
    HeadLimits {
        bytes: session.live.config.limits.head_bytes,
        lines: session.live.config.limits.header_lines,
    }
}

pub(crate) fn client_anomaly(anomaly: Anomaly) -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Protocol,
        format!("the request is malformed or ambiguous: {anomaly}"),
    )
}

pub(crate) fn client_gone() -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Reset,
        "the client closed the connection",
    )
}

pub(crate) fn blocked(target: &Target) -> FlowError {
    FlowError::new(
        Side::Proxy,
        ErrorClass::Blocked,
        format!("{target} is blocked by policy"),
    )
}

pub(crate) fn dropped(verdict: Verdict) -> Outcome {
    let error = match verdict {
        Verdict::Close(reason) => Some(FlowError::new(Side::Proxy, ErrorClass::Blocked, reason)),
        Verdict::Failed(error) => return Outcome::failed(error),
        _ => None,
    };
    Outcome {
        kind: OutcomeKind::Dropped,
        error,
    }
}

/// Puts a reply in the flow as its response.
pub(crate) fn put_reply(flow: &mut Flow, reply: &Reply) {
    let status = reply::valid_status(reply.status);
    let mut response = Box::<Response>::default();
    if let Ok(head) = http1::ResponseHead::build(status, reply::reason(status).as_bytes()) {
        response.head = head;
    }
    response.head.headers = reply.headers.clone();
    response.body_size = reply.body.len() as u64;
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
    client.wr.write_all(&out).await
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

/// The request's body on the client's connection.
pub(crate) struct ClientBody {
    pub body: Body,
    /// Bytes of the head that still stand at the start of the read buffer.
    pub head_len: usize,
    /// Bytes of the body that stand behind it: the request was here whole, and may be sent again.
    pub buffered: usize,
    /// Nothing of the request is lost yet.
    pub replayable: bool,
    /// The whole body, where an interceptor asked for it.
    pub collected: Option<Bytes>,
}

pub(crate) enum CollectError {
    TooLarge,
    Anomaly(Anomaly),
    Gone,
}

impl ClientBody {
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// Whether everything that is left of the request is in the buffer already: then an early
    /// answer needs no close. Moves the body to its end.
    fn is_buffered(&mut self, client: &Conn) -> bool {
        if self.body.is_done() {
            return true;
        }
        let held = self.head_len + self.buffered;
        let data = client.rd.data().get(held..).unwrap_or_default();
        match self.body.advance(data, |_| {}) {
            Ok(n) => {
                self.buffered += n;
                self.body.is_done()
            }
            Err(_) => false,
        }
    }

    /// Drops what was held of the request in the buffer.
    pub fn consume(&mut self, client: &mut Conn) {
        client.rd.consume(self.head_len + self.buffered);
        self.head_len = 0;
        self.buffered = 0;
    }

    async fn collect(&mut self, client: &mut Conn, limit: usize) -> Result<(), CollectError> {
        let mut whole = Vec::new();
        loop {
            let data = client.rd.data().get(self.head_len..).unwrap_or_default();
            let n = self
                .body
                .advance(data, |payload| whole.extend_from_slice(payload))
                .map_err(CollectError::Anomaly)?;
            self.consume(client);
            client.rd.consume(n);
            if whole.len() > limit {
                return Err(CollectError::TooLarge);
            }
            if self.body.is_done() {
                self.collected = Some(whole.into());
                return Ok(());
            }
            match client.rd.fill().await {
                Ok(n) if n > 0 => {}
                _ => return Err(CollectError::Gone),
            }
        }
    }

    /// Puts the framing headers right for a body that is sent whole.
    fn put_framing(&mut self, request: &mut tollgate_flow::Request) -> Result<(), FlowError> {
        let edited = request.is_body_edited();
        let body = request.body().cloned().unwrap_or_default();
        let had_body = !self.collected.as_ref().is_some_and(Bytes::is_empty);
        self.collected = Some(body.clone());
        if !had_body && !edited {
            return Ok(());
        }
        let headers = &mut request.head.headers;
        let length = body.len().to_string();
        if headers.contains("transfer-encoding") || edited {
            headers.remove("transfer-encoding");
            headers
                .set(b"Content-Length", length.as_bytes())
                .map_err(|e| FlowError::new(Side::Proxy, ErrorClass::Interceptor, e.to_string()))?;
        }
        Ok(())
    }
}

/// What came of an exchange.
pub(crate) struct ExchangeEnd {
    pub result: Exchanged,
    pub upstream: UpstreamAfter,
}

pub(crate) enum Exchanged {
    /// Request and response passed.
    Complete { close: Closing },
    /// Both sides now speak another protocol.
    Upgraded,
    /// Nothing came back on a connection that had been idle: it may be tried on another.
    Retry,
    /// Nothing was sent to the client yet: it gets this.
    Answer(Box<Reply>, Outcome),
    /// Something was sent, and there is no way to say what went wrong but to cut.
    Cut(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    Keep,
    Close,
    /// The origin's stream was cut off where only its end says that it is whole.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamAfter {
    Reusable,
    /// Reusable by this client only.
    Pin,
    Upgraded,
    Dead,
}

/// An exchange between an HTTP/1 client and an HTTP/1 upstream.
struct Exchange<'a> {
    config: &'a crate::config::Config,
    counters: &'a Counters,
    run: &'a Run,
    keep_alive: bool,
    spare: &'a mut Option<Box<Response>>,
}

/// What an exchange waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The response's head.
    Head,
    /// More of a body.
    Bytes,
}

impl Waiting {
    fn limit(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Head => timeouts.response_head,
            Self::Bytes => timeouts.idle,
        }
    }
}

impl Exchange<'_> {
    async fn run(
        self,
        client: &mut Conn,
        up: &mut UpConn,
        request: &mut ClientBody,
        flow: &mut Flow,
        timer: &mut Timer,
    ) -> ExchangeEnd {
        let config = self.config;
        let (limits, timeouts) = (&config.limits, &config.timeouts);
        let method = Method::of(flow.request.method());
        let wants_upgrade = method == Method::Connect || flow.request.head.upgrade().is_some();
        let client_is_10 = flow.request.version == HttpVersion::Http10;
        let reused = up.reused;
        up.reused = true;
        let edits = self.run.edits(Direction::Request) && request.collected.is_none();

        // The head and what is here of the body leave in one write.
        let first = {
            let shared = SharedFlow::new(&mut *flow);
            let mut body = self.run.body(
                &shared,
                Direction::Request,
                limits.decoded_bytes,
                self.counters,
            );
            self.send_start(client, up, request, &mut body, edits).await
        };
        let replayable = match first {
            Ok(size) => {
                flow.request.body_size = flow.request.body_size.max(size);
                request.replayable
            }
            Err(Start::Upstream(e)) => {
                if reused && request.replayable {
                    return ExchangeEnd {
                        result: Exchanged::Retry,
                        upstream: UpstreamAfter::Dead,
                    };
                }
                // The origin may have answered before it closed; see below.
                if e.kind() != io::ErrorKind::BrokenPipe
                    && e.kind() != io::ErrorKind::ConnectionReset
                {
                    return upstream_failed(upstream_io(&e, "sending the request"));
                }
                false
            }
            Err(Start::Anomaly(anomaly)) => {
                let error = client_anomaly(anomaly);
                return ExchangeEnd {
                    result: Exchanged::Answer(
                        Box::new(reply::with_status(anomaly.status(), &error)),
                        Outcome::failed(error),
                    ),
                    upstream: UpstreamAfter::Dead,
                };
            }
        };
        let streaming = !request.is_done();
        if !streaming {
            flow.timing.request_end = Some(flow.timing.start.elapsed());
        }

        let progress = AtomicU64::new(0);
        let sent = AtomicU64::new(flow.request.body_size);
        let shared = SharedFlow::new(flow);
        let relay = ResponseRelay {
            config: self.config,
            counters: self.counters,
            run: self.run,
            keep_alive: self.keep_alive,
            method,
            wants_upgrade,
            client_is_10,
            may_retry: reused && replayable,
            progress: &progress,
        };
        let started = AtomicBool::new(false);
        let response = relay.run(
            &mut up.conn.rd,
            &mut client.wr,
            &shared,
            self.spare,
            &started,
        );
        let mut response = pin!(response);
        let end = if streaming {
            let mut body = self.run.body(
                &shared,
                Direction::Request,
                limits.decoded_bytes,
                self.counters,
            );
            // Pieces that left with the head went through another decoder: the body is offered
            // whole to one of them only.
            let pump = pump(
                &mut client.rd,
                &mut up.conn.wr,
                &mut request.body,
                &mut body,
                edits,
                &progress,
                &sent,
            );
            let mut pump = pin!(pump);
            let mut pumped: Option<Result<(), PumpError>> = None;
            let mut seen = 0;
            let mut finished: Option<ExchangeEnd> = None;
            let mut waiting = Waiting::Bytes;
            timer.set(waiting.limit(timeouts));
            poll_fn(|cx| {
                if pumped.is_none()
                    && let Poll::Ready(result) = pump.as_mut().poll(cx)
                {
                    if result.is_ok() {
                        let mut flow = lock(&shared);
                        let elapsed = flow.timing.start.elapsed();
                        flow.timing.request_end = Some(elapsed);
                    }
                    match &result {
                        // An origin that stops reading may have answered already.
                        Ok(()) | Err(PumpError::Write) => {}
                        Err(_) => {
                            let result = pumped.insert(result);
                            return Poll::Ready(Duplex::RequestFailed(std::mem::replace(
                                result,
                                Ok(()),
                            )));
                        }
                    }
                    pumped = Some(result);
                }
                if finished.is_none()
                    && let Poll::Ready(end) = response.as_mut().poll(cx)
                {
                    finished = Some(end);
                }
                // What is waited for, and how long, changes with what has happened.
                let now = match (started.load(Ordering::Relaxed), &pumped) {
                    (false, Some(_)) => Waiting::Head,
                    _ => Waiting::Bytes,
                };
                if now != waiting {
                    waiting = now;
                    timer.set(now.limit(timeouts));
                }
                let reading = matches!(
                    &finished,
                    Some(ExchangeEnd {
                        upstream: UpstreamAfter::Reusable | UpstreamAfter::Pin,
                        ..
                    })
                );
                // An origin that answers early and keeps the connection still reads.
                if finished.is_some()
                    && (pumped.is_some() || !reading)
                    && let Some(end) = finished.take()
                {
                    return Poll::Ready(Duplex::Response(end));
                }
                while timer.poll(cx).is_ready() {
                    let now = progress.load(Ordering::Relaxed);
                    if now == seen {
                        return Poll::Ready(Duplex::Idle);
                    }
                    seen = now;
                    timer.set(waiting.limit(timeouts));
                }
                Poll::Pending
            })
            .await
        } else {
            let watch = &mut client.rd;
            let mut seen = 0;
            let mut waiting = Waiting::Head;
            timer.set(waiting.limit(timeouts));
            poll_fn(|cx| {
                if let Poll::Ready(end) = response.as_mut().poll(cx) {
                    return Poll::Ready(Duplex::Response(end));
                }
                if waiting == Waiting::Head && started.load(Ordering::Relaxed) {
                    waiting = Waiting::Bytes;
                    timer.set(waiting.limit(timeouts));
                }
                loop {
                    match watch.poll_watch(cx) {
                        Poll::Pending => break,
                        Poll::Ready(Ok(n)) if n > 0 => {}
                        Poll::Ready(_) => return Poll::Ready(Duplex::ClientGone),
                    }
                }
                while timer.poll(cx).is_ready() {
                    let now = progress.load(Ordering::Relaxed);
                    if now == seen {
                        return Poll::Ready(Duplex::Idle);
                    }
                    seen = now;
                    timer.set(waiting.limit(timeouts));
                }
                Poll::Pending
            })
            .await
        };
        let started = started.load(Ordering::Relaxed);
        {
            let mut flow = lock(&shared);
            flow.request.body_size = sent.load(Ordering::Relaxed);
            if request.collected.is_none() {
                flow.request.trailers = request.body.trailers().cloned();
            }
        }
        let error = match end {
            Duplex::Response(mut end) => {
                if !request.is_done() && end.upstream != UpstreamAfter::Upgraded {
                    end.upstream = UpstreamAfter::Dead;
                }
                return end;
            }
            Duplex::ClientGone => client_gone(),
            Duplex::RequestFailed(Err(PumpError::Read)) => client_gone(),
            Duplex::RequestFailed(Err(PumpError::Anomaly(anomaly))) => {
                let error = client_anomaly(anomaly);
                if !started {
                    return ExchangeEnd {
                        result: Exchanged::Answer(
                            Box::new(reply::with_status(anomaly.status(), &error)),
                            Outcome::failed(error),
                        ),
                        upstream: UpstreamAfter::Dead,
                    };
                }
                error
            }
            Duplex::RequestFailed(Err(PumpError::Verdict(verdict))) => {
                if started {
                    return cut(dropped(verdict));
                }
                return verdict_before_response(verdict);
            }
            Duplex::RequestFailed(_) => client_gone(),
            Duplex::Idle if started => FlowError::new(
                Side::Upstream,
                ErrorClass::Timeout,
                format!("nothing passed for {:?}", self.config.timeouts.idle),
            ),
            Duplex::Idle => {
                let error = FlowError::new(
                    Side::Upstream,
                    ErrorClass::Timeout,
                    format!(
                        "the origin did not answer within {:?}",
                        self.config.timeouts.response_head
                    ),
                );
                return ExchangeEnd {
                    result: Exchanged::Answer(
                        Box::new(reply::for_error(&error)),
                        Outcome::failed(error),
                    ),
                    upstream: UpstreamAfter::Dead,
                };
            }
        };
        cut(Outcome::failed(error))
    }

    /// Sends the head, and as much of the body as is here. The bytes stay in the client's buffer
    /// while the whole request is there, so that it can be sent again. Answers the payload's size.
    async fn send_start(
        &self,
        client: &mut Conn,
        up: &mut UpConn,
        request: &mut ClientBody,
        body: &mut BodyRun<'_, '_>,
        edits: bool,
    ) -> Result<u64, Start> {
        let mut head = Vec::new();
        let untouched = {
            let flow = body.flow();
            let untouched = flow
                .request
                .head
                .as_raw()
                .is_some_and(|raw| raw.len() == request.head_len);
            if !untouched || edits || request.collected.is_some() {
                flow.request.head.write_to(&mut head);
            }
            untouched
        };
        if let Some(whole) = &request.collected {
            request.replayable = true;
            up.conn
                .wr
                .write_all2(&head, whole)
                .await
                .map_err(Start::Upstream)?;
            return Ok(whole.len() as u64);
        }
        let data = client.rd.data();
        let head_len = request.head_len;
        let rest = data.get(head_len..).unwrap_or_default();
        if body.watched || edits {
            if head.is_empty() {
                head.extend_from_slice(data.get(..head_len).unwrap_or_default());
            }
            up.conn.wr.write_all(&head).await.map_err(Start::Upstream)?;
            client.rd.consume(head_len);
            request.head_len = 0;
            request.replayable = request.is_done();
            return Ok(0);
        }
        let mut size = 0;
        let n = if request.replayable {
            // Once more: the body has been followed to its end already.
            request.buffered
        } else {
            request
                .body
                .advance(rest, |payload| size += payload.len() as u64)
                .map_err(Start::Anomaly)?
        };
        let written = if untouched {
            let whole = data.get(..head_len + n).unwrap_or_default();
            up.conn.wr.write_all(whole).await
        } else {
            let rest = rest.get(..n).unwrap_or_default();
            up.conn.wr.write_all2(&head, rest).await
        };
        // A request without a body can be sent again from its parsed head, one that was here
        // whole from the buffer.
        request.replayable = request.is_done();
        if n > 0 && request.is_done() {
            request.buffered = n;
        } else {
            client.rd.consume(head_len + n);
            request.head_len = 0;
        }
        written.map_err(Start::Upstream)?;
        Ok(size)
    }
}

enum Start {
    Upstream(io::Error),
    Anomaly(Anomaly),
}

enum Duplex {
    Response(ExchangeEnd),
    RequestFailed(Result<(), PumpError>),
    ClientGone,
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Head,
    Connect,
    Other,
}

impl Method {
    pub fn of(method: &[u8]) -> Self {
        match method {
            b"HEAD" => Self::Head,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Head => b"HEAD",
            Self::Connect => b"CONNECT",
            Self::Other => b"GET",
        }
    }
}

fn upstream_io(e: &io::Error, doing: &str) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Reset,
        format!(
            "the connection to the origin failed while {doing}: {}",
            describe(e)
        ),
    )
}

fn upstream_failed(error: FlowError) -> ExchangeEnd {
    ExchangeEnd {
        result: Exchanged::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error)),
        upstream: UpstreamAfter::Dead,
    }
}

fn cut(outcome: Outcome) -> ExchangeEnd {
    ExchangeEnd {
        result: Exchanged::Cut(outcome),
        upstream: UpstreamAfter::Dead,
    }
}

fn verdict_before_response(verdict: Verdict) -> ExchangeEnd {
    let result = match verdict {
        Verdict::Respond(reply) => Exchanged::Answer(
            reply,
            Outcome {
                kind: OutcomeKind::Answered,
                error: None,
            },
        ),
        Verdict::Failed(error) => {
            Exchanged::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error))
        }
        verdict => Exchanged::Cut(dropped(verdict)),
    };
    ExchangeEnd {
        result,
        upstream: UpstreamAfter::Dead,
    }
}

pub(crate) enum PumpError {
    /// The side that sends ended or failed.
    Read,
    /// The side that receives failed.
    Write,
    Anomaly(Anomaly),
    Verdict(Verdict),
}

/// Relays a body piece by piece: reads, offers, writes, and only then reads again.
async fn pump(
    rd: &mut ReadHalf,
    wr: &mut WriteHalf,
    body: &mut Body,
    hooks: &mut BodyRun<'_, '_>,
    edits: bool,
    progress: &AtomicU64,
    size: &AtomicU64,
) -> Result<(), PumpError> {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    let mut out = Vec::new();
    loop {
        let data = rd.data();
        if !data.is_empty() {
            pieces.clear();
            let start = data.as_ptr().addr();
            let mut payload = 0;
            let n = body
                .advance(data, |piece| {
                    payload += piece.len() as u64;
                    pieces.push((piece.as_ptr().addr() - start, piece.len()));
                })
                .map_err(PumpError::Anomaly)?;
            size.fetch_add(payload, Ordering::Relaxed);
            if hooks.watched {
                out.clear();
                for (at, len) in &pieces {
                    let piece = data.get(*at..at + len).unwrap_or_default();
                    match hooks.data(piece, false).await {
                        PieceVerdict::Pass => http1::encode_chunk(&mut out, piece),
                        PieceVerdict::Replace(bytes) => http1::encode_chunk(&mut out, &bytes),
                        PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
                    }
                }
            }
            let raw = data.get(..n).unwrap_or_default();
            wr.write_all(if edits { &out } else { raw })
                .await
                .map_err(|_| PumpError::Write)?;
            rd.consume(n);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        if body.is_done() {
            break;
        }
        match rd.fill().await {
            Ok(n) if n > 0 => {}
            Ok(_) if body.end_of_stream() => break,
            _ => return Err(PumpError::Read),
        }
    }
    if hooks.watched {
        match hooks.data(&[], true).await {
            PieceVerdict::Pass => out.clear(),
            PieceVerdict::Replace(bytes) => {
                out.clear();
                http1::encode_chunk(&mut out, &bytes);
            }
            PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
        }
    }
    if edits {
        http1::encode_last(&mut out, body.trailers());
        wr.write_all(&out).await.map_err(|_| PumpError::Write)?;
    }
    Ok(())
}

/// Brings a response from an HTTP/1 upstream to an HTTP/1 client.
struct ResponseRelay<'a> {
    config: &'a crate::config::Config,
    counters: &'a Counters,
    run: &'a Run,
    keep_alive: bool,
    method: Method,
    wants_upgrade: bool,
    client_is_10: bool,
    may_retry: bool,
    progress: &'a AtomicU64,
}

impl ResponseRelay<'_> {
    async fn run(
        self,
        rd: &mut ReadHalf,
        wr: &mut WriteHalf,
        flow: &SharedFlow<'_>,
        spare: &mut Option<Box<Response>>,
        started: &AtomicBool,
    ) -> ExchangeEnd {
        let mut response = spare.take().unwrap_or_default();
        response.reset();
        let head_len = match self.read_head(rd, wr, &mut response).await {
            Ok(len) => len,
            Err(end) => return end,
        };
        self.progress.fetch_add(1, Ordering::Relaxed);
        let status = response.status();
        response.version = match response.head.version() {
            Version::Http10 => HttpVersion::Http10,
            Version::Http11 => HttpVersion::Http11,
        };
        let framing = match response.head.framing(self.method.as_bytes()) {
            Ok(framing) => framing,
            Err(anomaly) => return upstream_failed(upstream_anomaly(anomaly)),
        };
        let upstream_keeps = response.head.keep_alive() && framing != Framing::UntilClose;
        let pin = is_connection_bound(&response.head.headers, "www-authenticate");
        let upgraded =
            status == 101 || (self.method == Method::Connect && (200..300).contains(&status));
        {
            let mut flow = lock(flow);
            let elapsed = flow.timing.start.elapsed();
            flow.timing.response_start = Some(elapsed);
            flow.response = Some(response);
        }

        let mut body = Body::new(framing, self.config.limits.trailer_bytes);
        let mut collected: Option<Bytes> = None;
        let mut prefix: Option<Vec<u8>> = None;
        if self.run.wants(Interest::RESPONSE_BODY) && !upgraded && !is_stream(&lock(flow)) {
            match self.collect(rd, head_len, &mut body).await {
                Ok(Collected::Whole(bytes)) => {
                    let mut flow = lock(flow);
                    if let Some(response) = &mut flow.response {
                        response.body_size = bytes.len() as u64;
                        response.trailers = body.trailers().cloned();
                        response.put_collected_body(bytes.clone());
                    }
                    collected = Some(bytes);
                }
                Ok(Collected::TooLarge(start)) => prefix = Some(start),
                Err(error) => return upstream_failed(error),
            }
        }
        match self.run.response(flow, self.counters).await {
            Verdict::Continue => {}
            verdict => return verdict_before_response(verdict),
        }
        let edits = self.run.edits(Direction::Response) && collected.is_none() && !body.is_done();
        let mut head = Vec::new();
        let mut whole: Option<Bytes> = None;
        let mut no_body = false;
        let mut until_close = framing == Framing::UntilClose;
        let closing;
        {
            let mut flow = lock(flow);
            let Some(response) = &mut flow.response else {
                return cut(Outcome::failed(client_gone()));
            };
            if collected.is_some() {
                let edited = response.is_body_edited();
                let bytes = response.body().cloned().unwrap_or_default();
                let bodiless = matches!(framing, Framing::None);
                if edited || (until_close && !bodiless) {
                    let headers = &mut response.head.headers;
                    headers.remove("transfer-encoding");
                    let _ = headers.set(b"Content-Length", bytes.len().to_string().as_bytes());
                    until_close = false;
                }
                // Where the message has no body, its head is all that there is to send.
                no_body = bodiless && !edited;
                whole = Some(if no_body { Bytes::new() } else { bytes });
            } else if prefix.is_some() || edits {
                if self.client_is_10 {
                    response.head.headers.remove("content-length");
                    response.head.headers.remove("transfer-encoding");
                    until_close = true;
                } else {
                    make_chunked(&mut response.head.headers);
                    until_close = false;
                }
            }
            closing = if !self.keep_alive || until_close || !response.head.keep_alive() {
                Closing::Close
            } else {
                Closing::Keep
            };
            // The origin may keep its connection where we have to close the client's: then it
            // has to be told, unless its own head said so.
            if closing == Closing::Close
                && response.head.keep_alive()
                && !until_close
                && !upgraded
                && !response.head.headers.has_token("connection", "close")
            {
                let _ = response.head.headers.set(b"Connection", b"close");
            }
            let untouched = response
                .head
                .as_raw()
                .is_some_and(|raw| raw.len() == head_len);
            if !untouched || whole.is_some() || prefix.is_some() || edits {
                response.head.write_to(&mut head);
            }
        }

        started.store(true, Ordering::Relaxed);
        if upgraded {
            let data = rd.data().get(..head_len).unwrap_or_default();
            let bytes = if head.is_empty() { data } else { &head };
            if wr.write_all(bytes).await.is_err() {
                return cut(Outcome::failed(client_gone()));
            }
            rd.consume(head_len);
            return if self.wants_upgrade {
                ExchangeEnd {
                    result: Exchanged::Upgraded,
                    upstream: UpstreamAfter::Upgraded,
                }
            } else {
                cut(Outcome::failed(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Protocol,
                    "the origin switched protocols without being asked",
                )))
            };
        }

        let relayed = if let Some(whole) = whole {
            let chunked = {
                let flow = lock(flow);
                flow.response
                    .as_ref()
                    .is_some_and(|r| r.head.headers.has_token("transfer-encoding", "chunked"))
            };
            let mut out = Vec::new();
            if self.method != Method::Head && !no_body {
                if chunked {
                    http1::encode_chunk(&mut out, &whole);
                    http1::encode_last(&mut out, body.trailers());
                    wr.write_all2(&head, &out).await
                } else {
                    wr.write_all2(&head, &whole).await
                }
            } else {
                wr.write_all(&head).await
            }
            .map_err(|_| PumpError::Write)
        } else {
            self.relay_body(
                rd,
                wr,
                flow,
                head,
                head_len,
                prefix,
                &mut body,
                edits,
                until_close,
            )
            .await
        };
        {
            let mut flow = lock(flow);
            if let Some(response) = &mut flow.response
                && collected.is_none()
            {
                response.trailers = body.trailers().cloned();
            }
        }
        match relayed {
            Ok(()) => {
                let truncated = framing == Framing::UntilClose && rd.end() == Some(End::Truncated);
                let closing = match closing {
                    // TLS says whether a stream without a length is whole.
                    Closing::Close if until_close && truncated => Closing::Truncated,
                    closing => closing,
                };
                let upstream = match (upstream_keeps && rd.data().is_empty(), pin) {
                    (false, _) => UpstreamAfter::Dead,
                    (true, true) => UpstreamAfter::Pin,
                    (true, false) => UpstreamAfter::Reusable,
                };
                ExchangeEnd {
                    result: Exchanged::Complete { close: closing },
                    upstream,
                }
            }
            Err(PumpError::Read) => cut(Outcome::failed(FlowError::new(
                Side::Upstream,
                ErrorClass::Reset,
                "the origin closed the connection in the middle of the response",
            ))),
            Err(PumpError::Write) => cut(Outcome::failed(client_gone())),
            Err(PumpError::Anomaly(anomaly)) => cut(Outcome::failed(upstream_anomaly(anomaly))),
            Err(PumpError::Verdict(verdict)) => cut(dropped(verdict)),
        }
    }

    /// Reads up to the final head, which stays in the buffer. Interim responses are relayed.
    async fn read_head(
        &self,
        rd: &mut ReadHalf,
        wr: &mut WriteHalf,
        response: &mut Response,
    ) -> Result<usize, ExchangeEnd> {
        let limits = HeadLimits {
            bytes: self.config.limits.head_bytes,
            lines: self.config.limits.header_lines,
        };
        let mut nothing_seen = true;
        loop {
            if !rd.data().is_empty() {
                nothing_seen = false;
                match response.head.parse(rd.data(), &limits) {
                    Ok(Parsed::Complete { len }) => {
                        if !response.head.is_interim() {
                            return Ok(len);
                        }
                        if response.status() == 101 {
                            return Ok(len);
                        }
                        // RFC 9110 section 15.2: HTTP/1.0 knows no interim responses.
                        if !self.client_is_10 {
                            let interim = rd.data().get(..len).unwrap_or_default();
                            if wr.write_all(interim).await.is_err() {
                                return Err(cut(Outcome::failed(client_gone())));
                            }
                        }
                        rd.consume(len);
                        self.progress.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Ok(Parsed::Partial) => {}
                    Err(anomaly) => return Err(upstream_failed(upstream_anomaly(anomaly))),
                }
            }
            let failed = match rd.fill().await {
                Ok(n) if n > 0 => continue,
                Ok(_) => None,
                Err(e) => Some(e),
            };
            if nothing_seen && self.may_retry {
                return Err(ExchangeEnd {
                    result: Exchanged::Retry,
                    upstream: UpstreamAfter::Dead,
                });
            }
            return Err(upstream_failed(match failed {
                Some(e) => upstream_io(&e, "waiting for the response"),
                None => FlowError::new(
                    Side::Upstream,
                    ErrorClass::Reset,
                    "the origin closed the connection before it answered",
                ),
            }));
        }
    }

    async fn collect(
        &self,
        rd: &mut ReadHalf,
        head_len: usize,
        body: &mut Body,
    ) -> Result<Collected, FlowError> {
        let mut whole = Vec::new();
        rd.consume(head_len);
        loop {
            let n = body
                .advance(rd.data(), |payload| whole.extend_from_slice(payload))
                .map_err(upstream_anomaly)?;
            rd.consume(n);
            self.progress.fetch_add(1, Ordering::Relaxed);
            if whole.len() > self.config.limits.body_limit {
                return Ok(Collected::TooLarge(whole));
            }
            if body.is_done() {
                return Ok(Collected::Whole(whole.into()));
            }
            match rd.fill().await {
                Ok(n) if n > 0 => {}
                Ok(_) if body.end_of_stream() => return Ok(Collected::Whole(whole.into())),
                Ok(_) => {
                    return Err(FlowError::new(
                        Side::Upstream,
                        ErrorClass::Reset,
                        "the origin closed the connection in the middle of the response",
                    ));
                }
                Err(e) => return Err(upstream_io(&e, "reading the response")),
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, whose arguments are the state of one relay"
    )]
    async fn relay_body(
        &self,
        rd: &mut ReadHalf,
        wr: &mut WriteHalf,
        flow: &SharedFlow<'_>,
        head: Vec<u8>,
        head_len: usize,
        prefix: Option<Vec<u8>>,
        body: &mut Body,
        edits: bool,
        until_close: bool,
    ) -> Result<(), PumpError> {
        let size = AtomicU64::new(0);
        let mut hooks = self.run.body(
            flow,
            Direction::Response,
            self.config.limits.decoded_bytes,
            self.counters,
        );
        let result = if let Some(prefix) = prefix {
            // The head's bytes are gone from the buffer; the body goes on chunk by chunk.
            size.store(prefix.len() as u64, Ordering::Relaxed);
            let mut sink = Reframed { wr, until_close };
            sink.start(&head, &prefix, &mut hooks).await?;
            sink.relay(rd, body, &mut hooks, self.progress, &size).await
        } else if edits && until_close {
            rd.consume(head_len);
            let mut sink = Reframed { wr, until_close };
            sink.start(&head, &[], &mut hooks).await?;
            sink.relay(rd, body, &mut hooks, self.progress, &size).await
        } else if hooks.watched || edits {
            let data = rd.data().get(..head_len).unwrap_or_default();
            let bytes = if head.is_empty() { data } else { &head };
            wr.write_all(bytes).await.map_err(|_| PumpError::Write)?;
            rd.consume(head_len);
            pump(rd, wr, body, &mut hooks, edits, self.progress, &size).await
        } else {
            let data = rd.data();
            let rest = data.get(head_len..).unwrap_or_default();
            let mut payload = 0;
            let n = body
                .advance(rest, |piece| payload += piece.len() as u64)
                .map_err(PumpError::Anomaly)?;
            size.store(payload, Ordering::Relaxed);
            if head.is_empty() {
                wr.write_all(data.get(..head_len + n).unwrap_or_default())
                    .await
            } else {
                wr.write_all2(&head, rest.get(..n).unwrap_or_default())
                    .await
            }
            .map_err(|_| PumpError::Write)?;
            rd.consume(head_len + n);
            if body.is_done() {
                Ok(())
            } else {
                pump(rd, wr, body, &mut hooks, edits, self.progress, &size).await
            }
        };
        if let Some(response) = &mut lock(flow).response {
            response.body_size = size.load(Ordering::Relaxed);
        }
        result
    }
}

enum Collected {
    Whole(Bytes),
    TooLarge(Vec<u8>),
}

pub(crate) fn upstream_anomaly(anomaly: Anomaly) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Protocol,
        format!("the response is malformed or ambiguous: {anomaly}"),
    )
}

/// Sends a body with a framing of our own: chunked, or up to the close for HTTP/1.0 clients.
struct Reframed<'a> {
    wr: &'a mut WriteHalf,
    until_close: bool,
}

impl Reframed<'_> {
    async fn start(
        &mut self,
        head: &[u8],
        prefix: &[u8],
        hooks: &mut BodyRun<'_, '_>,
    ) -> Result<(), PumpError> {
        self.wr
            .write_all(head)
            .await
            .map_err(|_| PumpError::Write)?;
        self.send(prefix, hooks).await
    }

    async fn send(&mut self, piece: &[u8], hooks: &mut BodyRun<'_, '_>) -> Result<(), PumpError> {
        let mut replaced = None;
        if hooks.watched && !piece.is_empty() {
            match hooks.data(piece, false).await {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) => replaced = Some(bytes),
                PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
            }
        }
        let piece = replaced.as_deref().unwrap_or(piece);
        if self.until_close {
            return self.wr.write_all(piece).await.map_err(|_| PumpError::Write);
        }
        let mut out = Vec::with_capacity(piece.len() + 16);
        http1::encode_chunk(&mut out, piece);
        self.wr.write_all(&out).await.map_err(|_| PumpError::Write)
    }

    async fn relay(
        &mut self,
        rd: &mut ReadHalf,
        body: &mut Body,
        hooks: &mut BodyRun<'_, '_>,
        progress: &AtomicU64,
        size: &AtomicU64,
    ) -> Result<(), PumpError> {
        loop {
            let mut piece = Vec::new();
            let n = body
                .advance(rd.data(), |payload| piece.extend_from_slice(payload))
                .map_err(PumpError::Anomaly)?;
            rd.consume(n);
            size.fetch_add(piece.len() as u64, Ordering::Relaxed);
            progress.fetch_add(1, Ordering::Relaxed);
            self.send(&piece, hooks).await?;
            if body.is_done() {
                break;
            }
            match rd.fill().await {
                Ok(n) if n > 0 => {}
                Ok(_) if body.end_of_stream() => break,
                _ => return Err(PumpError::Read),
            }
        }
        let mut out = Vec::new();
        if hooks.watched {
            match hooks.data(&[], true).await {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) if self.until_close => out.extend_from_slice(&bytes),
                PieceVerdict::Replace(bytes) => http1::encode_chunk(&mut out, &bytes),
                PieceVerdict::End(verdict) => return Err(PumpError::Verdict(verdict)),
            }
        }
        if !self.until_close {
            http1::encode_last(&mut out, body.trailers());
        }
        self.wr.write_all(&out).await.map_err(|_| PumpError::Write)
    }
}

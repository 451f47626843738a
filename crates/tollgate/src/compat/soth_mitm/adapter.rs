//! The native interceptor that speaks to a handler.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONTENT_ENCODING, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::task::JoinHandle;
use tollgate_flow::{
    Bytes, ClientHello, ConnectDecision, ConnectionId, ConnectionInfo, Direction, Flow, FlowId,
    HeaderList, HttpVersion, Interceptor, Interest, Outcome, OutcomeKind, Piece, Reply, Step,
    Target, TlsDecision, TlsFailure,
};
use tollgate_wire::framing::{DEFAULT_MAX_MESSAGE_BYTES, GrpcSplitter, NdjsonSplitter};
use tollgate_wire::sse::SseParser;
use tracing::warn;

use super::dispatch::{Call, Lane, Reserved, Shared, count, random_uuid};
use super::handler::InterceptHandler;
use super::scope::Verdict;
use super::types::{
    ConnectionMeta, FrameKind, HandlerDecision, ProcessInfo, RawRequest, RawResponse, SocketFamily,
    StreamChunk, TlsInfo,
};
use crate::compat::message::{Content, StreamKind, decode, text};

/// The most that one message of a stream may hold: the default of gRPC implementations.
const MAX_MESSAGE: usize = DEFAULT_MAX_MESSAGE_BYTES;

const TRUNCATED: HeaderName = HeaderName::from_static("x-soth-body-truncated");
const UNDECODABLE: HeaderName = HeaderName::from_static("x-soth-encoding-error");

/// Calls an [`InterceptHandler`] for what passes.
pub(super) struct Adapter<H> {
    handler: Arc<H>,
    shared: Arc<Shared>,
    connections: Mutex<HashMap<ConnectionId, Arc<Connection>>>,
}

/// One client connection.
struct Connection {
    lane: Arc<Lane>,
    meta: Mutex<Arc<ConnectionMeta>>,
    /// Whether its destination is listed, once it has asked for one.
    listed: OnceLock<bool>,
    exchanges: Mutex<HashMap<FlowId, Exchange>>,
}

/// One request and its response.
struct Exchange {
    lane: Arc<Lane>,
    meta: Arc<ConnectionMeta>,
    state: State,
}

enum State {
    /// The response has not come.
    Waiting,
    /// A response that is collected.
    Body {
        head: Head,
        body: Vec<u8>,
        truncated: bool,
        reserved: Reserved,
    },
    /// A streamed response.
    Stream {
        splitter: Splitter,
        kind: FrameKind,
        sequence: u64,
        /// The handler knows of it.
        told: bool,
    },
    /// The handler has been told everything.
    Done,
}

struct Head {
    status: u16,
    headers: HeaderMap,
}

impl<H: InterceptHandler> Adapter<H> {
    pub fn new(handler: Arc<H>, shared: Arc<Shared>) -> Self {
        Self {
            handler,
            shared,
            connections: Mutex::default(),
        }
    }

    fn connection(&self, id: ConnectionId) -> Option<Arc<Connection>> {
        lock(&self.connections).get(&id).cloned()
    }

    fn listed(&self, connection: &Connection, target: &Target) -> Verdict {
        match connection.listed.get() {
            Some(true) => Verdict::Listed,
            _ => self.shared.live().scope.decide(target),
        }
    }

    fn process(&self, connection: &ConnectionInfo) -> Option<ProcessInfo> {
        let attribution = self.shared.live().config.process_attribution.clone();
        if !attribution.enabled {
            return None;
        }
        let started = Instant::now();
        let found = connection.process().map(|p| ProcessInfo::from(&**p));
        if started.elapsed() > Duration::from_millis(attribution.lookup_timeout_ms) {
            count(&self.shared.counts.attribution_timeouts);
            return None;
        }
        if found.is_none() {
            count(&self.shared.counts.attribution_failures);
        }
        found
    }

    /// What the handler is told about the connection; TLS facts are added once they are known.
    fn meta(&self, connection: &Connection, info: &ConnectionInfo) -> Arc<ConnectionMeta> {
        let mut meta = lock(&connection.meta);
        if meta.tls_info.is_none()
            && let Some(tls) = info.tls()
        {
            let capture = self.shared.live().config.tls.capture_fingerprint;
            Arc::make_mut(&mut meta).tls_info = Some(TlsInfo {
                sni: tls.hello.server_name.clone(),
                negotiated_proto: tls.alpn().map(|p| text(p).into_owned()),
                ja4_hash: capture.then(|| tls.hello.ja4()),
                tls_version: tls.version().map(Into::into),
            });
        }
        Arc::clone(&meta)
    }

    /// Asks the handler about a request, on the runtime that started the proxy.
    fn ask(&self, request: RawRequest, lane: &Arc<Lane>) -> Step {
        let Some(runtime) = self.shared.runtime() else {
            return Step::respond(Reply::new(503).text("the proxy is not running"));
        };
        let handler = Arc::clone(&self.handler);
        let mut task =
            AbortOnDrop(runtime.spawn(async move { handler.on_request(&request).await }));
        let shared = Arc::clone(&self.shared);
        let lane = Arc::clone(lane);
        let limit = self.shared.live().config.handler.request_timeout_ms;
        Step::hold(
            async move {
                match (&mut task.0).await {
                    Ok(HandlerDecision::Allow) => Step::Continue,
                    Ok(HandlerDecision::Block { status, body }) => {
                        Step::respond(Reply::new(status).body(body))
                    }
                    Err(error) => {
                        if error.is_panic() {
                            shared.panicked();
                            if !shared.recovers() {
                                lane.poison();
                                return Step::close("the intercept handler panicked");
                            }
                        }
                        Step::respond(Reply::new(502).text("the intercept handler failed"))
                    }
                }
            },
            Duration::from_millis(limit),
            Step::respond(Reply::new(504).text("the intercept handler did not answer in time")),
        )
    }
}

impl<H: InterceptHandler> Interceptor for Adapter<H> {
    fn name(&self) -> &str {
        "soth_mitm handler"
    }

    fn connection_opened(&self, info: &ConnectionInfo) {
        let id = random_uuid();
        let socket_family = if info.client.port() == 0 {
            // A Unix socket has no address on the client's side.
            SocketFamily::UnixDomain {
                path: self.shared.live().config.unix_socket_path.clone(),
            }
        } else {
            SocketFamily::tcp(info.local, info.client)
        };
        let meta = Arc::new(ConnectionMeta {
            connection_id: id,
            socket_family,
            process_info: self.process(info),
            tls_info: None,
        });
        let connection = Connection {
            lane: Lane::open(&self.handler, &self.shared, id),
            meta: Mutex::new(Arc::clone(&meta)),
            listed: OnceLock::new(),
            exchanges: Mutex::default(),
        };
        self.open(&connection.lane, &meta);
        lock(&self.connections).insert(info.id, Arc::new(connection));
    }

    fn connection_closed(&self, info: &ConnectionInfo) {
        // The last owner of the lane goes, and with it comes `on_connection_close`.
        lock(&self.connections).remove(&info.id);
    }

    fn connect(&self, target: &Target, info: &ConnectionInfo) -> ConnectDecision {
        let Some(connection) = self.connection(info.id) else {
            return ConnectDecision::Block;
        };
        if connection.lane.is_poisoned() {
            return ConnectDecision::Block;
        }
        let verdict = self.shared.live().scope.decide(target);
        let _ = connection.listed.set(verdict == Verdict::Listed);
        match verdict {
            Verdict::Listed => ConnectDecision::Intercept,
            Verdict::Passthrough => ConnectDecision::Tunnel,
            Verdict::Refused => ConnectDecision::Block,
        }
    }

    fn tls(&self, hello: &ClientHello, info: &ConnectionInfo) -> TlsDecision {
        let Some(connection) = self.connection(info.id) else {
            return TlsDecision::Block;
        };
        if connection.lane.is_poisoned() {
            return TlsDecision::Block;
        }
        if connection.listed.get() == Some(&false) {
            return TlsDecision::Tunnel;
        }
        let host = match info.target() {
            Some(target) => &*target.host,
            None => hello.server_name.as_deref().unwrap_or_default(),
        };
        let meta = Arc::clone(&lock(&connection.meta));
        let intercept = self.shared.guard(|| {
            self.handler
                .should_intercept_tls(host, meta.process_info.as_ref())
        });
        match intercept {
            Some(true) => TlsDecision::Intercept,
            Some(false) => TlsDecision::Tunnel,
            None if self.shared.recovers() => TlsDecision::Intercept,
            None => {
                connection.lane.poison();
                TlsDecision::Block
            }
        }
    }

    fn tls_failed(&self, failure: &TlsFailure, _: &ConnectionInfo) {
        self.shared.guard(|| {
            self.handler
                .on_tls_failure(&failure.host, &failure.to_string());
        });
    }

    fn interest(&self, flow: &Flow) -> Interest {
        let Some(connection) = self.connection(flow.connection.id) else {
            return Interest::REQUEST;
        };
        match self.listed(&connection, &flow.request.target) {
            Verdict::Passthrough => Interest::NONE,
            Verdict::Refused => Interest::REQUEST,
            Verdict::Listed => {
                let buffer = self.shared.live().config.body.buffer_request_bodies;
                let request = if buffer {
                    Interest::REQUEST_BODY
                } else {
                    Interest::REQUEST
                };
                request | Interest::RESPONSE | Interest::RESPONSE_DATA | Interest::DECODED
            }
        }
    }

    fn request(&self, flow: &mut Flow) -> Step {
        let Some(connection) = self.connection(flow.connection.id) else {
            return Step::respond(Reply::new(502).text("the connection is not known"));
        };
        if connection.lane.is_poisoned() {
            return Step::close("the intercept handler panicked");
        }
        if self.listed(&connection, &flow.request.target) == Verdict::Refused {
            return Step::respond(Reply::new(403).text("destination_not_allowed"));
        }
        let mut meta = self.meta(&connection, &flow.connection);
        let lane = if flow.request.version >= HttpVersion::Http2 {
            let id = random_uuid();
            Arc::make_mut(&mut meta).connection_id = id;
            let lane = Lane::open(&self.handler, &self.shared, id);
            self.open(&lane, &meta);
            lane
        } else {
            Arc::clone(&connection.lane)
        };
        let limit = self.shared.live().config.body.max_size_bytes;
        let request = raw_request(flow, Arc::clone(&meta), limit);
        let step = self.ask(request, &lane);
        lock(&connection.exchanges).insert(
            flow.id,
            Exchange {
                lane,
                meta,
                state: State::Waiting,
            },
        );
        step
    }

    fn response(&self, flow: &mut Flow) -> Step {
        let Some(connection) = self.connection(flow.connection.id) else {
            return Step::Continue;
        };
        let mut exchanges = lock(&connection.exchanges);
        let (Some(exchange), Some(response)) = (exchanges.get_mut(&flow.id), &flow.response) else {
            return Step::Continue;
        };
        if exchange.lane.is_poisoned() {
            return Step::close("the intercept handler panicked");
        }
        let head = Head {
            status: response.status(),
            headers: header_map(response.headers()),
        };
        let limit = self.shared.live().config.body.max_size_bytes;
        exchange.state = match StreamKind::of(response.headers()) {
            Some(stream) => {
                let start = Call::StreamStart(exchange.raw_response(head, Bytes::new()));
                let told = exchange.lane.offer(start, Reserved::none(&self.shared));
                let (splitter, kind) = Splitter::new(stream, limit.min(MAX_MESSAGE));
                State::Stream {
                    splitter,
                    kind,
                    sequence: 0,
                    told,
                }
            }
            None => State::Body {
                head,
                body: Vec::new(),
                truncated: false,
                reserved: Reserved::none(&self.shared),
            },
        };
        Step::Continue
    }

    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        if piece.direction == Direction::Request {
            return Step::Continue;
        }
        let Some(connection) = self.connection(flow.connection.id) else {
            return Step::Continue;
        };
        let mut exchanges = lock(&connection.exchanges);
        let Some(exchange) = exchanges.get_mut(&flow.id) else {
            return Step::Continue;
        };
        if exchange.lane.is_poisoned() {
            return Step::close("the intercept handler panicked");
        }
        exchange.take(piece.data, &self.shared);
        // Of other responses, all is known when the flow ends.
        if piece.last && matches!(exchange.state, State::Stream { .. }) {
            exchange.finish(flow, true, &self.shared);
        }
        Step::Continue
    }

    fn end(&self, flow: &Flow, outcome: &Outcome) {
        let Some(connection) = self.connection(flow.connection.id) else {
            return;
        };
        let exchange = lock(&connection.exchanges).remove(&flow.id);
        if let Some(mut exchange) = exchange {
            let whole = matches!(outcome.kind, OutcomeKind::Completed | OutcomeKind::Upgraded);
            exchange.finish(flow, whole, &self.shared);
        }
    }
}

impl<H: InterceptHandler> Adapter<H> {
    fn open(&self, lane: &Lane, meta: &ConnectionMeta) {
        let opened = self.shared.guard(|| self.handler.on_connection_open(meta));
        if opened.is_none() && !self.shared.recovers() {
            lane.poison();
        }
    }
}

impl Exchange {
    fn raw_response(&self, head: Head, body: Bytes) -> RawResponse {
        RawResponse {
            status: head.status,
            headers: head.headers,
            body,
            connection_meta: Arc::clone(&self.meta),
        }
    }

    /// Takes a piece of the response body.
    fn take(&mut self, data: &[u8], shared: &Arc<Shared>) {
        match &mut self.state {
            State::Body {
                body,
                truncated,
                reserved,
                ..
            } if !*truncated => {
                let limit = shared.live().config.body.max_size_bytes;
                let room = limit.saturating_sub(body.len());
                let piece = data.get(..room).unwrap_or(data);
                if reserved.grow(piece.len()) {
                    body.extend_from_slice(piece);
                    *truncated = piece.len() < data.len();
                } else {
                    *truncated = true;
                }
            }
            State::Stream {
                splitter,
                kind,
                sequence,
                told: true,
            } => {
                let lane = &self.lane;
                splitter.feed(data, |payload| {
                    offer_chunk(lane, shared, *kind, sequence, payload);
                });
            }
            _ => {}
        }
    }

    /// Tells the handler how it ended. Only the first call counts.
    fn finish(&mut self, flow: &Flow, whole: bool, shared: &Arc<Shared>) {
        match std::mem::replace(&mut self.state, State::Done) {
            // Nothing came: the request was blocked or failed.
            State::Waiting | State::Done => {}
            State::Body {
                mut head,
                body,
                truncated,
                reserved,
            } => {
                let flag = HeaderValue::from_static("true");
                if truncated || !whole {
                    head.headers.insert(TRUNCATED, flag.clone());
                }
                let on_wire = flow.response.as_ref().map_or(0, |r| r.body_size);
                if body.is_empty() && on_wire > 0 && head.headers.contains_key(CONTENT_ENCODING) {
                    head.headers.insert(UNDECODABLE, flag);
                }
                let response = self.raw_response(head, body.into());
                self.lane.offer(Call::Response(response), reserved);
            }
            State::Stream {
                mut splitter,
                kind,
                mut sequence,
                told: true,
            } => {
                if whole && let Some(payload) = splitter.finish() {
                    offer_chunk(&self.lane, shared, kind, &mut sequence, &payload);
                }
                self.lane.offer(Call::StreamEnd, Reserved::none(shared));
            }
            State::Stream { told: false, .. } => {}
        }
    }
}

fn offer_chunk(
    lane: &Lane,
    shared: &Arc<Shared>,
    frame_kind: FrameKind,
    sequence: &mut u64,
    payload: &[u8],
) {
    let chunk = StreamChunk {
        connection_id: lane.id,
        payload: Bytes::copy_from_slice(payload),
        sequence: *sequence,
        frame_kind,
    };
    *sequence = sequence.saturating_add(1);
    lane.offer(Call::Chunk(chunk), Reserved::none(shared));
}

/// Cuts a stream into its messages.
enum Splitter {
    Sse(SseParser),
    Ndjson(NdjsonSplitter),
    Grpc(GrpcSplitter),
    /// It broke its format: there are no more messages.
    Broken,
}

impl Splitter {
    fn new(kind: StreamKind, limit: usize) -> (Self, FrameKind) {
        match kind {
            StreamKind::Sse => (Self::Sse(SseParser::with_limit(limit)), FrameKind::SseData),
            StreamKind::Ndjson => (
                Self::Ndjson(NdjsonSplitter::with_limit(limit)),
                FrameKind::NdjsonLine,
            ),
            StreamKind::Grpc => (
                Self::Grpc(GrpcSplitter::with_limit(limit)),
                FrameKind::GrpcMessage,
            ),
        }
    }

    fn feed(&mut self, data: &[u8], mut on_message: impl FnMut(&[u8])) {
        let result = match self {
            Self::Sse(parser) => {
                parser.feed(data, |event| on_message(event.data.as_bytes()));
                Ok(())
            }
            Self::Ndjson(splitter) => splitter.feed(data, on_message),
            Self::Grpc(splitter) => splitter.feed(data, |message| {
                // Trailers of gRPC-Web are no message.
                if !message.trailers {
                    on_message(message.payload);
                }
            }),
            Self::Broken => Ok(()),
        };
        if let Err(error) = result {
            warn!(%error, "a stream can't be split into messages any further");
            *self = Self::Broken;
        }
    }

    /// What is left at the end.
    fn finish(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Sse(parser) => parser.flush().map(|event| event.data.into_bytes()),
            Self::Ndjson(splitter) => splitter.finish().ok().flatten(),
            Self::Grpc(_) | Self::Broken => None,
        }
    }
}

fn raw_request(flow: &Flow, meta: Arc<ConnectionMeta>, limit: usize) -> RawRequest {
    let request = &flow.request;
    let mut headers = header_map(request.headers());
    if !headers.contains_key(HOST) {
        let authority = match &request.authority {
            Some(authority) => HeaderValue::from_bytes(authority).ok(),
            None => HeaderValue::from_str(&request.target.to_string()).ok(),
        };
        if let Some(authority) = authority {
            headers.insert(HOST, authority);
        }
    }
    let on_wire = request.body().cloned().unwrap_or_default();
    let body = match decode(request.headers(), &on_wire, limit) {
        Content::AsSent => on_wire,
        Content::Decoded(body) => body,
        Content::Undecodable => {
            headers.insert(UNDECODABLE, HeaderValue::from_static("true"));
            on_wire
        }
    };
    RawRequest {
        method: text(request.method()).into_owned(),
        path: text(request.path()).into_owned(),
        headers,
        body,
        connection_meta: meta,
    }
}

/// The headers as the `http` crate has them; what it can't express is left out.
fn header_map(list: &HeaderList) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(list.len());
    for (name, value) in list.iter() {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    map
}

/// A task that ends when nobody waits for it any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tollgate_flow::ProcessResolver;

    use super::*;
    use crate::compat::soth_mitm::dispatch::Live;
    use crate::compat::soth_mitm::scope::Scope;
    use crate::compat::soth_mitm::{InterceptionScope, MitmConfig};

    struct Nobody;

    impl InterceptHandler for Nobody {}

    /// Takes as long as it is told to.
    struct Slow(Duration);

    impl ProcessResolver for Slow {
        fn resolve(
            &self,
            _: std::net::SocketAddr,
            _: std::net::SocketAddr,
        ) -> Option<Arc<tollgate_flow::ProcessInfo>> {
            let started = Instant::now();
            while started.elapsed() <= self.0 {
                std::hint::spin_loop();
            }
            Some(Arc::new(tollgate_flow::ProcessInfo {
                pid: 7,
                parent_pid: None,
                parent_name: None,
                executable: None,
                name: Some("agent".into()),
                command: Vec::new(),
            }))
        }
    }

    #[test]
    fn a_look_up_that_takes_too_long_counts_as_not_found() {
        for (limit, found) in [(1, None), (60_000, Some(7))] {
            let mut config = MitmConfig::default();
            config.process_attribution.lookup_timeout_ms = limit;
            let scope = Scope::new(&InterceptionScope {
                destinations: vec!["a:1".into()],
                passthrough_unlisted: true,
            });
            let shared = Arc::new(Shared::new(Live {
                config,
                scope: scope.unwrap(),
            }));
            let adapter = Adapter::new(Arc::new(Nobody), Arc::clone(&shared));
            let address = "127.0.0.1:9".parse().unwrap();
            let resolver = Arc::new(Slow(Duration::from_millis(2)));
            let info = ConnectionInfo::new(ConnectionId(1), address, address, Some(resolver));
            assert_eq!(adapter.process(&info).map(|p| p.pid), found);
            let timeouts = shared.counts.attribution_timeouts.load(Ordering::Relaxed);
            assert_eq!(timeouts, u64::from(found.is_none()));
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let scope = Scope::new(&InterceptionScope {
            destinations: vec!["a:1".into()],
            passthrough_unlisted: true,
        });
        let shared = Arc::new(Shared::new(Live {
            config: MitmConfig::default(),
            scope: scope.unwrap(),
        }));
        let adapter = Adapter::new(Arc::new(Nobody), shared);
        let address = "127.0.0.1:9".parse().unwrap();
        let info = Arc::new(ConnectionInfo::new(ConnectionId(1), address, address, None));
        let target = Target::new("a", 1);
        assert_eq!(adapter.connect(&target, &info), ConnectDecision::Block);
        let mut flow = Flow::new(info);
        assert!(adapter.interest(&flow).contains(Interest::REQUEST));
        assert!(matches!(adapter.request(&mut flow), Step::Respond(_)));
    }
}

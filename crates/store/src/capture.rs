//! The interceptor that records what passes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hashbrown::HashMap;
use tollgate_flow::record::{
    Body, Content, HttpMessage, Record, StreamMessage, Timestamp, WebSocketData, WebSocketMessage,
};
use tollgate_flow::{
    Direction, Flow, FlowId, FlowKind, Interceptor, Interest, Message, MessageKind, OnFailure,
    Outcome, Piece, PieceMark, Step,
};

use crate::segment::lock;
use crate::sink::RecordSink;

/// Flows in flight are spread over so many tables, so that workers seldom meet at a lock.
const SHARDS: usize = 16;

/// The key in a record's metadata that says how many messages were not kept, or were cut.
pub const CUT_MESSAGES: &str = "cut_messages";

/// How much of what passes is kept. At a limit the rest passes unrecorded, and the record says so: bodies by
/// [`Body::cut_from`], messages by a note in the metadata under `cut_messages`. (Pieces beyond their limit are part of the
/// last one.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureLimits {
    /// The most that is kept of one body, of one message of a WebSocket, and of each direction over TCP or UDP, in
    /// bytes. Default: 1 MiB.
    pub body_bytes: usize,
    /// The most messages (WebSocket, TCP, UDP) that are kept of one flow. Default: 4096.
    pub messages: usize,
    /// The most bytes that all flows in flight may hold together. Default: 64 MiB.
    pub in_flight_bytes: usize,
    /// In how many pieces a response's body may stand in `facts.response_pieces`, with the times at which they came, to
    /// be replayed so; 0 for none. Each takes 24 bytes of those in flight. Default: 0.
    pub pieces: usize,
}

impl Default for CaptureLimits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            messages: 4096,
            in_flight_bytes: 64 << 20,
            pieces: 0,
        }
    }
}

/// Records every flow when it ends: heads as they are then, bodies as on the wire (still content-coded), messages of
/// WebSockets, and what passes over TCP and UDP.
///
/// Add it as the last interceptor, and it records what the others made of the traffic. It never holds traffic up.
///
/// ```
/// use tollgate_store::{Capture, CaptureLimits, Place, Store, StoreConfig};
///
/// let store = Store::open(StoreConfig::new(Place::Memory))?;
/// let capture = Capture::new(store.sink(), CaptureLimits::default());
/// // Proxy::builder().interceptor(capture) …
/// # let _ = capture;
/// # Ok::<(), tollgate_store::StoreError>(())
/// ```
pub struct Capture {
    sink: Box<dyn RecordSink>,
    limits: CaptureLimits,
    shards: [Mutex<HashMap<FlowId, InFlight>>; SHARDS],
    in_flight: AtomicUsize,
    cut: Arc<AtomicU64>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// What a message takes beside its content, about.
const MESSAGE_BYTES: usize = 96;

/// What the mark of a piece takes.
const MARK_BYTES: usize = size_of::<PieceMark>();

/// A body of one piece that came so soon after its head needs no mark.
const WITH_HEAD: Duration = Duration::from_millis(5);

/// What is held of a flow that has not ended.
#[derive(Debug, Default)]
struct InFlight {
    request: Part,
    response: Part,
    messages: Vec<Captured>,
    /// Bytes of messages, by direction: requests, responses.
    passed: [usize; 2],
    cut_messages: u64,
    closed: Option<Closed>,
}

#[derive(Debug, Default)]
struct Part {
    data: Vec<u8>,
    marks: Vec<PieceMark>,
    seen: bool,
    cut: bool,
}

#[derive(Debug)]
struct Captured {
    direction: Direction,
    opcode: u8,
    injected: bool,
    content: Bytes,
    at: SystemTime,
}

#[derive(Debug)]
struct Closed {
    by: Direction,
    code: Option<u16>,
    reason: String,
    at: SystemTime,
}

impl Capture {
    /// Records into a sink.
    pub fn new(sink: impl RecordSink, limits: CaptureLimits) -> Self {
        Self {
            sink: Box::new(sink),
            limits,
            shards: Default::default(),
            in_flight: AtomicUsize::new(0),
            cut: Arc::default(),
        }
    }

    /// A counter of bodies and messages that were cut, or not kept, at a limit.
    pub fn cut_counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.cut)
    }

    fn shard(&self, id: FlowId) -> &Mutex<HashMap<FlowId, InFlight>> {
        // The low bits of an id are its random ones.
        let at = (id.0 % SHARDS as u128) as usize;
        #[expect(
            clippy::indexing_slicing,
            reason = "a remainder by the number of shards"
        )]
        &self.shards[at]
    }

    /// How many of `wanted` bytes there is room for among all flows in flight; that many are taken.
    fn reserve(&self, wanted: usize) -> usize {
        let mut granted = 0;
        let _ = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                granted = wanted.min(self.limits.in_flight_bytes.saturating_sub(used));
                Some(used + granted)
            });
        granted
    }

    fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    fn body(&self, live: &Flow, piece: Piece<'_>) {
        let mut shard = lock(self.shard(live.id));
        let flow = shard.entry(live.id).or_default();
        let part = match piece.direction {
            Direction::Request => &mut flow.request,
            Direction::Response => &mut flow.response,
        };
        part.seen = true;
        if part.cut {
            return;
        }
        let room = self.limits.body_bytes.saturating_sub(part.data.len());
        let kept = self.reserve(piece.data.len().min(room));
        part.data
            .extend_from_slice(piece.data.get(..kept).unwrap_or_default());
        if kept < piece.data.len() {
            part.cut = true;
            self.count_cut();
        }
        if piece.direction == Direction::Response && self.limits.pieces > 0 {
            self.mark(part, kept, live);
        }
    }

    /// Remembers where a piece ended, and when it came.
    fn mark(&self, part: &mut Part, bytes: usize, flow: &Flow) {
        let has_room = part.marks.len() < self.limits.pieces && {
            let granted = self.reserve(MARK_BYTES);
            if granted < MARK_BYTES {
                self.in_flight.fetch_sub(granted, Ordering::Relaxed);
            }
            granted == MARK_BYTES
        };
        if has_room {
            let head = flow.timing.response_start.unwrap_or_default();
            let at = flow.timing.start.elapsed().saturating_sub(head);
            part.marks.push(PieceMark { bytes, at });
        } else if let Some(last) = part.marks.last_mut() {
            last.bytes += bytes;
        }
    }

    /// A piece of a stream, which is a message of the record.
    fn stream_piece(&self, id: FlowId, piece: Piece<'_>) {
        let mut shard = lock(self.shard(id));
        let flow = shard.entry(id).or_default();
        let [request, response] = flow.passed;
        let passed = match piece.direction {
            Direction::Request => request,
            Direction::Response => response,
        };
        let room = self.limits.body_bytes.saturating_sub(passed);
        self.keep(flow, piece.direction, 0, false, piece.data, room);
    }

    fn keep(
        &self,
        flow: &mut InFlight,
        direction: Direction,
        opcode: u8,
        injected: bool,
        data: &[u8],
        room: usize,
    ) {
        // Small messages are many: each takes its own room, too.
        let granted = if flow.messages.len() < self.limits.messages {
            self.reserve(data.len().min(room) + MESSAGE_BYTES)
        } else {
            0
        };
        let has_room = granted >= MESSAGE_BYTES;
        let kept = granted.saturating_sub(MESSAGE_BYTES);
        if !has_room {
            self.in_flight.fetch_sub(granted, Ordering::Relaxed);
        }
        if kept < data.len() || !has_room {
            flow.cut_messages += 1;
            self.count_cut();
        }
        if has_room && kept == 0 && !data.is_empty() {
            self.in_flight.fetch_sub(MESSAGE_BYTES, Ordering::Relaxed);
        }
        if has_room && (kept > 0 || data.is_empty()) {
            let [request, response] = &mut flow.passed;
            *match direction {
                Direction::Request => request,
                Direction::Response => response,
            } += kept;
            flow.messages.push(Captured {
                direction,
                opcode,
                injected,
                content: Bytes::copy_from_slice(data.get(..kept).unwrap_or_default()),
                at: SystemTime::now(),
            });
        }
    }

    fn take(&self, id: FlowId) -> InFlight {
        let flow = lock(self.shard(id)).remove(&id).unwrap_or_default();
        let messages: usize = flow
            .messages
            .iter()
            .map(|m| m.content.len() + MESSAGE_BYTES)
            .sum();
        let marks = flow.response.marks.len() * MARK_BYTES;
        let held = flow.request.data.len() + flow.response.data.len() + messages + marks;
        if held > 0 {
            self.in_flight.fetch_sub(held, Ordering::Relaxed);
        }
        flow
    }

    fn complete(&self, record: &mut Record, flow: &Flow, mut captured: InFlight) {
        let marks = std::mem::take(&mut captured.response.marks);
        if marks.len() > 1 || marks.first().is_some_and(|mark| mark.at > WITH_HEAD) {
            record.facts.response_pieces = marks;
        }
        if captured.cut_messages > 0 {
            record
                .metadata
                .set(CUT_MESSAGES, captured.cut_messages.to_string().as_str());
        }
        match &mut record.content {
            Content::Http(http) => {
                let size = flow.request.body_size;
                self.put(&mut http.request.message, captured.request, size);
                if let (Some(recorded), Some(live)) = (&mut http.response, &flow.response) {
                    self.put(&mut recorded.message, captured.response, live.body_size);
                }
                if !captured.messages.is_empty() || captured.closed.is_some() {
                    let mut seen = websocket(captured.messages, captured.closed);
                    // A close of the proxy's own is known to the flow alone.
                    if let Some(known) = http.websocket.take().filter(|_| seen.close_code.is_none())
                    {
                        seen.closed_by_client = seen.closed_by_client.or(known.closed_by_client);
                        seen.close_code = known.close_code;
                        seen.close_reason = seen.close_reason.or(known.close_reason);
                        seen.timestamp_end = seen.timestamp_end.or(known.timestamp_end);
                    }
                    http.websocket = Some(seen);
                }
            }
            Content::Tcp(messages) | Content::Udp(messages) => {
                *messages = captured
                    .messages
                    .into_iter()
                    .map(|message| StreamMessage {
                        from_client: message.direction == Direction::Request,
                        content: message.content,
                        timestamp: message.at.into(),
                    })
                    .collect();
            }
            Content::Dns(_) => {}
        }
    }

    /// What was captured, or else what an interceptor had collected or replied, within the limit.
    fn put(&self, message: &mut HttpMessage, part: Part, size: u64) {
        if part.seen {
            let kept = part.data.len() as u64;
            message.body = if part.cut {
                Body::kept(part.data, size.max(kept + 1))
            } else {
                Body::whole(part.data)
            };
        } else if let Some(data) = &message.body.data
            && data.len() > self.limits.body_bytes
        {
            let whole = data.len() as u64;
            // A slice would keep the whole of it alive.
            let kept = data.get(..self.limits.body_bytes).unwrap_or_default();
            message.body = Body::kept(Bytes::copy_from_slice(kept), whole);
            self.count_cut();
        }
    }
}

impl Interceptor for Capture {
    fn name(&self) -> &str {
        "capture"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Open
    }

    fn interest(&self, flow: &Flow) -> Interest {
        let all = Interest::DATA | Interest::END;
        if flow.request.headers().has_token("upgrade", "websocket") {
            all | Interest::MESSAGES
        } else {
            all
        }
    }

    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        if !piece.data.is_empty() {
            match flow.kind {
                FlowKind::Http => self.body(flow, piece),
                _ => self.stream_piece(flow.id, piece),
            }
        }
        Step::Continue
    }

    fn message(&self, flow: &mut Flow, message: Message<'_>) -> Step {
        let opcode = match message.kind {
            MessageKind::Text => 1,
            MessageKind::Binary => 2,
            MessageKind::Close { code } => {
                let mut shard = lock(self.shard(flow.id));
                // The first side to say so closes; the other one answers.
                shard
                    .entry(flow.id)
                    .or_default()
                    .closed
                    .get_or_insert_with(|| Closed {
                        by: message.direction,
                        code,
                        reason: String::from_utf8_lossy(message.data).into_owned(),
                        at: SystemTime::now(),
                    });
                return Step::Continue;
            }
            _ => return Step::Continue,
        };
        let mut shard = lock(self.shard(flow.id));
        let held = shard.entry(flow.id).or_default();
        let room = self.limits.body_bytes;
        self.keep(
            held,
            message.direction,
            opcode,
            message.injected,
            message.data,
            room,
        );
        Step::Continue
    }

    fn end(&self, flow: &Flow, outcome: &Outcome) {
        let captured = self.take(flow.id);
        let mut record = Record::from_flow(flow, Some(outcome));
        self.complete(&mut record, flow, captured);
        // What is dropped is counted by the store.
        let _ = self.sink.record(record);
    }
}

fn websocket(messages: Vec<Captured>, closed: Option<Closed>) -> WebSocketData {
    WebSocketData {
        messages: messages
            .into_iter()
            .map(|message| WebSocketMessage {
                opcode: message.opcode,
                from_client: message.direction == Direction::Request,
                content: message.content,
                timestamp: message.at.into(),
                dropped: false,
                injected: message.injected,
            })
            .collect(),
        closed_by_client: closed
            .as_ref()
            .map(|closed| closed.by == Direction::Request),
        close_code: closed.as_ref().and_then(|closed| closed.code),
        close_reason: closed.as_ref().map(|closed| closed.reason.clone()),
        timestamp_end: closed.map(|closed| Timestamp::from(closed.at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Place, Query, Store, StoreConfig};
    use tollgate_flow::{ConnectionId, ConnectionInfo, HeaderList, Response};

    fn flow(id: u128) -> Flow {
        let address = "127.0.0.1:9".parse().unwrap();
        let connection = ConnectionInfo::new(ConnectionId(1), address, address, None);
        let mut flow = Flow::new(Arc::new(connection));
        flow.id = FlowId(id);
        flow.timing.started = SystemTime::now();
        flow
    }

    fn piece(direction: Direction, data: &[u8]) -> Piece<'_> {
        Piece {
            direction,
            data,
            last: data.is_empty(),
        }
    }

    fn records(store: &Store) -> Vec<Record> {
        store.flush();
        let rows = store.flows().list(&Query::all()).unwrap();
        rows.iter()
            .map(|row| store.flows().read(row).unwrap().unwrap())
            .collect()
    }

    #[test]
    fn bodies_are_kept_up_to_the_limits_and_marked() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let capture = Capture::new(
            store.sink(),
            CaptureLimits {
                body_bytes: 10,
                in_flight_bytes: 25,
                ..CaptureLimits::default()
            },
        );
        let mut first = flow(1);
        first.response = Some(Box::new(Response::default()));
        let _ = capture.data(&mut first, piece(Direction::Request, b"12345"));
        let _ = capture.data(&mut first, piece(Direction::Request, b"6789012"));
        first.request.body_size = 12;
        let _ = capture.data(&mut first, piece(Direction::Response, b"abc"));
        first.response.as_mut().unwrap().body_size = 3;
        // 13 of 25 bytes are held: of this one there is room for 10 by its own limit, of the next for 2.
        let mut second = flow(2);
        let _ = capture.data(&mut second, piece(Direction::Request, b"0123456789"));
        second.request.body_size = 10;
        let mut third = flow(3);
        let _ = capture.data(&mut third, piece(Direction::Request, b"0123"));
        third.request.body_size = 4;
        for flow in [&first, &second, &third] {
            capture.end(flow, &Outcome::COMPLETED);
        }
        assert_eq!(capture.in_flight.load(Ordering::Relaxed), 0);
        assert_eq!(capture.cut_counter().load(Ordering::Relaxed), 2);
        let records = records(&store);
        let body = |n: usize| &records[n].as_http().unwrap().request.message.body;
        assert_eq!(*body(0), Body::kept("1234567890", 12));
        assert_eq!(*body(1), Body::whole("0123456789"));
        assert_eq!(*body(2), Body::kept("01", 4));
        let response = records[0].as_http().unwrap().response.as_ref().unwrap();
        assert_eq!(response.message.body, Body::whole("abc"));
        let rows = store.flows().list(&Query::all()).unwrap();
        assert_eq!(
            rows.iter().map(|row| row.is_cut).collect::<Vec<_>>(),
            [true, false, true]
        );
    }

    #[test]
    fn pieces_are_marked_where_it_is_asked_for_and_within_bounds() {
        let pass = |limits: CaptureLimits, pieces: &[&str]| {
            let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
            let capture = Capture::new(store.sink(), limits);
            let mut flow = flow(1);
            flow.response = Some(Box::new(Response::default()));
            flow.timing.response_start = Some(Duration::ZERO);
            let _ = capture.data(&mut flow, piece(Direction::Request, b"not these"));
            for data in pieces {
                let _ = capture.data(&mut flow, piece(Direction::Response, data.as_bytes()));
            }
            capture.end(&flow, &Outcome::COMPLETED);
            assert_eq!(capture.in_flight.load(Ordering::Relaxed), 0);
            let marks = records(&store).remove(0).facts.response_pieces;
            assert!(marks.windows(2).all(|pair| pair[0].at <= pair[1].at));
            marks.iter().map(|mark| mark.bytes).collect::<Vec<_>>()
        };
        let limits = |pieces, in_flight_bytes| CaptureLimits {
            pieces,
            in_flight_bytes,
            ..CaptureLimits::default()
        };
        let events = ["one", "three", "to", "fore"];
        assert_eq!(pass(limits(0, 1000), &events), [0; 0]);
        assert_eq!(pass(limits(9, 1000), &events), [3, 5, 2, 4]);
        // Beyond its limit, or that of all, a piece is part of the last one.
        assert_eq!(pass(limits(2, 1000), &events), [3, 11]);
        assert_eq!(pass(limits(9, 9 + 14 + 60), &events), [3, 11]);
    }

    #[test]
    fn a_websocket_is_recorded_with_its_messages() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let limits = CaptureLimits {
            messages: 2,
            ..CaptureLimits::default()
        };
        let capture = Capture::new(store.sink(), limits);
        let mut socket = flow(1);
        assert!(!capture.interest(&socket).contains(Interest::MESSAGES));
        let headers: &mut HeaderList = socket.request.headers_mut();
        headers.append(b"Upgrade", b"websocket").unwrap();
        assert!(capture.interest(&socket).contains(Interest::MESSAGES));
        let message = |kind, data: &'static str| Message {
            direction: Direction::Response,
            sequence: 0,
            kind,
            data: data.as_bytes(),
            injected: false,
        };
        for kind in [
            MessageKind::Text,
            MessageKind::Ping,
            MessageKind::Binary,
            MessageKind::Text,
        ] {
            let _ = capture.message(&mut socket, message(kind, "hi"));
        }
        let close = MessageKind::Close { code: Some(1000) };
        let _ = capture.message(&mut socket, message(close, "bye"));
        capture.end(&socket, &Outcome::COMPLETED);
        let records = records(&store);
        let socket = records[0].as_http().unwrap().websocket.as_ref().unwrap();
        assert_eq!(socket.messages.len(), 2);
        assert_eq!(socket.messages[1].opcode, 2);
        assert_eq!(socket.close_code, Some(1000));
        assert_eq!(socket.closed_by_client, Some(false));
        assert_eq!(records[0].metadata.get(CUT_MESSAGES), Some(&"1".into()));
    }

    #[test]
    fn a_stream_is_recorded_piece_by_piece() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let limits = CaptureLimits {
            body_bytes: 5,
            ..CaptureLimits::default()
        };
        let capture = Capture::new(store.sink(), limits);
        let mut stream = flow(1);
        stream.kind = FlowKind::Tcp;
        let _ = capture.data(&mut stream, piece(Direction::Request, b"abc"));
        let _ = capture.data(&mut stream, piece(Direction::Response, b"123"));
        let _ = capture.data(&mut stream, piece(Direction::Request, b"def"));
        capture.end(&stream, &Outcome::COMPLETED);
        let records = records(&store);
        let Content::Tcp(messages) = &records[0].content else {
            panic!("not TCP")
        };
        let contents: Vec<_> = messages.iter().map(|m| &m.content[..]).collect();
        assert_eq!(contents, [&b"abc"[..], b"123", b"de"]);
        assert!(store.flows().list(&Query::all()).unwrap()[0].is_cut);
    }
}

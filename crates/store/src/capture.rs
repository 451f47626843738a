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
    Direction, Flow, FlowId, FlowKind, HeaderList, Interceptor, Interest, Message, MessageKind,
    OnFailure, Outcome, Piece, PieceMark, Response, Step,
};

use crate::block::FULL_BYTES;
use crate::entry::{Entry, Kept, Live};
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

/// Bodies of so many bytes fill a block of their own: no other flow shares them. They are handed over instead of copied,
/// since others wait for the lock meanwhile.
const LARGE: usize = FULL_BYTES;

/// Bodies whose first piece has so many bytes may have many more.
const WORTH_RESERVING: usize = 8 * 1024;

/// The most that is reserved for a body before it has come.
const RESERVED: usize = 1 << 20;

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

#[derive(Clone, Debug, Default)]
struct Part {
    data: Vec<u8>,
    marks: Vec<PieceMark>,
    seen: bool,
    cut: bool,
}

impl Part {
    /// Whether the pieces that it came in are worth being told.
    fn came_in_pieces(&self) -> bool {
        self.marks.len() > 1 || self.marks.first().is_some_and(|mark| mark.at > WITH_HEAD)
    }
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
        if !part.seen && piece.data.len() >= WORTH_RESERVING {
            // It grows to its whole length without being moved.
            let headers = match piece.direction {
                Direction::Request => Some(live.request.headers()),
                Direction::Response => live.response.as_deref().map(Response::headers),
            };
            let length = headers.and_then(HeaderList::content_length).unwrap_or(0);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            part.data
                .reserve_exact(length.min(self.limits.body_bytes).min(RESERVED));
        }
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
}

/// A flow that has just ended, with what was captured of it.
#[derive(Debug)]
pub struct Ended<'a> {
    flow: &'a Flow,
    outcome: &'a Outcome,
    captured: InFlight,
    limit: usize,
    cut: &'a AtomicU64,
}

impl<'a> Ended<'a> {
    /// The flow, as it ended.
    pub fn flow(&self) -> &'a Flow {
        self.flow
    }

    /// How it ended.
    pub fn outcome(&self) -> &'a Outcome {
        self.outcome
    }

    /// A record of the flow.
    pub fn into_record(mut self) -> Record {
        let mut record = Record::from_flow(self.flow, Some(self.outcome));
        self.complete(&mut record);
        record
    }

    /// The same as bytes to come. `None` for a flow of another kind than most.
    pub(crate) fn entry(&self) -> Option<Entry<Live<'_>, &[u8]>> {
        let captured = &self.captured;
        if captured.cut_messages > 0
            || !captured.messages.is_empty()
            || captured.closed.is_some()
            || captured.response.came_in_pieces()
            // An entry has no place for it.
            || self.flow.replay.is_some()
        {
            return None;
        }
        let flow = self.flow;
        let request = self.kept(
            &captured.request,
            flow.request.body(),
            flow.request.body_size,
        );
        let response = match flow.response.as_deref() {
            Some(answer) => self.kept(&captured.response, answer.body(), answer.body_size),
            None => Kept::default(),
        };
        let bytes = |kept: &Kept<'_>| kept.data.map_or(0, <[u8]>::len);
        if bytes(&request) + bytes(&response) >= LARGE {
            return None;
        }
        let entry = Entry::of(flow, self.outcome, 0, request, response)?;
        // Collected bodies are cut here and nowhere else.
        for (part, collected) in [
            (&captured.request, flow.request.body()),
            (
                &captured.response,
                flow.response.as_deref().and_then(|answer| answer.body()),
            ),
        ] {
            if !part.seen && collected.is_some_and(|data| data.len() > self.limit) {
                self.cut.fetch_add(1, Ordering::Relaxed);
            }
        }
        Some(entry)
    }

    /// What was captured, or else what an interceptor had collected or replied, within the limit.
    fn kept<'b>(&self, part: &'b Part, collected: Option<&'b Bytes>, size: u64) -> Kept<'b> {
        if part.seen {
            let length = part.data.len() as u64;
            return Kept {
                data: Some(&part.data),
                cut_from: part.cut.then(|| size.max(length + 1)),
            };
        }
        match collected {
            Some(data) => Kept {
                data: Some(data.get(..self.limit).unwrap_or(data)),
                cut_from: (data.len() > self.limit).then_some(data.len() as u64),
            },
            None if size == 0 => Kept {
                data: Some(&[]),
                cut_from: None,
            },
            None => Kept {
                data: None,
                cut_from: Some(size),
            },
        }
    }

    fn complete(&mut self, record: &mut Record) {
        let flow = self.flow;
        let mut captured = std::mem::take(&mut self.captured);
        if captured.response.came_in_pieces() {
            record.facts.response_pieces = std::mem::take(&mut captured.response.marks);
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
            && data.len() > self.limit
        {
            let whole = data.len() as u64;
            // A slice would keep the whole of it alive.
            let kept = data.get(..self.limit).unwrap_or_default();
            message.body = Body::kept(Bytes::copy_from_slice(kept), whole);
            self.cut.fetch_add(1, Ordering::Relaxed);
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
        // What is dropped is counted by the store.
        let _ = self.sink.ended(Ended {
            flow,
            outcome,
            captured: self.take(flow.id),
            limit: self.limits.body_bytes,
            cut: &self.cut,
        });
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
    use crate::sink::{Dropped, Queue};
    use crate::summary::Summary;
    use crate::{FlowSink, Place, Query, Store, StoreConfig, Words};
    use std::time::Duration;
    use tollgate_flow::filter::Filter;
    use tollgate_flow::record::Replay;
    use tollgate_flow::{
        ClientHello, ClientTls, ConnectionId, ConnectionInfo, ErrorClass, FlowError, HeaderList,
        HttpVersion, Response, Scheme, Side, Target, TlsVersion, UpstreamInfo,
    };
    use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

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

    /// Hands a flow over as the store takes it, and keeps the record of it.
    struct Both(FlowSink, Arc<Mutex<Vec<Record>>>);

    impl RecordSink for Both {
        fn record(&self, record: Record) -> Result<(), Dropped> {
            panic!("{} was made a record before its time", record.id)
        }

        fn ended(&self, ended: Ended<'_>) -> Result<(), Dropped> {
            let copy = Ended {
                captured: InFlight {
                    request: ended.captured.request.clone(),
                    response: ended.captured.response.clone(),
                    ..InFlight::default()
                },
                ..ended
            };
            lock(&self.1).push(copy.into_record());
            self.0.ended(ended)
        }
    }

    fn request(flow: &mut Flow, method: &str, target: &str, fields: &[(&str, &str)]) {
        flow.request.head =
            RequestHead::build(method.as_bytes(), target.as_bytes(), Version::Http11).unwrap();
        for (name, value) in fields {
            let list = flow.request.headers_mut();
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
    }

    fn response(flow: &mut Flow, status: u16, fields: &[(&str, &str)]) {
        let mut response = Response::default();
        response.head = ResponseHead::build(status, b"Fine").unwrap();
        for (name, value) in fields {
            let list = response.headers_mut();
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        flow.response = Some(Box::new(response));
        flow.timing.request_end = Some(Duration::from_nanos(1_234_567));
        flow.timing.response_start = Some(Duration::from_nanos(2_345_678));
        flow.timing.response_end = Some(Duration::from_nanos(3_456_789));
    }

    fn upstream(tls: bool) -> UpstreamInfo {
        UpstreamInfo {
            address: "[2001:db8::1]:443".parse().unwrap(),
            via: Some(Arc::new("http://proxy.example:3128".parse().unwrap())),
            local: "192.0.2.2:1234".parse().unwrap(),
            tls_version: tls.then_some(TlsVersion::Tls13),
            alpn: tls.then(|| b"h2".to_vec()),
            certificates: if tls {
                Arc::new([vec![1; 300], vec![2, 3]])
            } else {
                Arc::new([])
            },
            unverified: false,
            connected: SystemTime::now(),
            connect_time: Duration::from_millis(5),
            handshake_time: Duration::from_millis(7),
        }
    }

    /// Flows of every kind that is stored without a record being made, with what passed of them.
    fn variety() -> Vec<(Flow, [Vec<u8>; 2], Outcome)> {
        let text = |n: usize| format!("{{\"word{n}\": true}}").into_bytes();
        let mut flows = Vec::new();
        let mut number = 0;
        let mut next = |connection: &Flow| {
            number += 1;
            let mut flow = connection.clone();
            flow.id = FlowId::new(SystemTime::now(), number);
            flow.timing.started = SystemTime::now();
            flow
        };
        let json = ("Content-Type", "application/json; charset=utf-8");
        let plain = flow(0);
        for n in 0..3 {
            let mut one = next(&plain);
            one.request.target = Target::new("Example.com", 8080);
            request(
                &mut one,
                "GET",
                &format!("/a/{}?q", n % 2),
                &[("Host", "www.example.com")],
            );
            response(&mut one, 200, &[("Server", "x"), json]);
            flows.push((one, [Vec::new(), text(n)], Outcome::COMPLETED));
        }
        // One that failed before there was a connection, and one that somebody dropped.
        let mut failed = next(&plain);
        failed.request.target = Target::new("::1", 80);
        request(
            &mut failed,
            "POST",
            "/up",
            &[("host", "[::1]"), ("X", "caf\u{e9}")],
        );
        failed.metadata.push(("finding".into(), "one".into()));
        failed.metadata.push(("rule".into(), "block: x".into()));
        failed.metadata.push(("finding".into(), "two".into()));
        let error = FlowError::new(Side::Upstream, ErrorClass::Connect, "no route");
        flows.push((failed, [text(9), Vec::new()], Outcome::failed(error)));
        let mut dropped = next(&plain);
        request(&mut dropped, "CONNECT", "a.example:443", &[]);
        dropped.request.authority = Some(b"a.example:443".to_vec());
        let outcome = Outcome {
            kind: tollgate_flow::OutcomeKind::Dropped,
            error: None,
        };
        flows.push((dropped, [Vec::new(), Vec::new()], outcome));
        // TLS on both sides, before and after the handshake was done.
        let secure = flow(0);
        let hello = ClientHello::default();
        secure
            .connection
            .set_mode("reverse:https://b.example".into());
        secure.connection.set_tls(ClientTls::new(Arc::new(hello)));
        for n in 0..2 {
            let mut one = next(&secure);
            one.upstream = Some(Arc::new(upstream(true)));
            one.request.scheme = Scheme::Https;
            one.request.target = Target::new("b.example", 443);
            one.request.version = [HttpVersion::Http2, HttpVersion::Http3][n];
            one.request.authority = Some(b"b.example".to_vec());
            request(
                &mut one,
                "PUT",
                "/",
                &[("Host", "b.example"), ("content-encoding", "br")],
            );
            response(
                &mut one,
                404,
                &[("content-type", "text/html"), ("content-type", "a/b")],
            );
            let mut trailers = HeaderList::new();
            trailers.append(b"grpc-status", b"0").unwrap();
            one.request.trailers = Some(trailers.clone());
            let answer = one.response.as_mut().unwrap();
            answer.trailers = Some(trailers);
            answer.version = HttpVersion::Http2;
            // Larger than what is kept.
            flows.push((one, [vec![b'x'; 90], vec![b'y'; 70]], Outcome::COMPLETED));
            let tls = secure.connection.tls().unwrap();
            tls.set_agreed(Some(b"h2".to_vec()), TlsVersion::Tls13);
        }
        // Bodies that were collected, of which too much; of another only the size is known.
        for n in [10, 100] {
            let mut one = next(&plain);
            one.upstream = Some(Arc::new(upstream(false)));
            request(&mut one, "POST", "/c", &[("Host", "")]);
            response(&mut one, 500, &[]);
            one.timing.response_start = None;
            one.request.put_collected_body(vec![b'z'; n].into());
            one.response.as_mut().unwrap().body_size = 77;
            flows.push((one, [Vec::new(), Vec::new()], Outcome::COMPLETED));
        }
        flows
    }

    #[test]
    fn what_the_store_makes_of_a_live_flow_is_its_record() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let limits = CaptureLimits {
            body_bytes: 64,
            ..CaptureLimits::default()
        };
        let capture = Capture::new(Both(store.sink(), Arc::clone(&kept)), limits);
        for (mut flow, [sent, received], outcome) in variety() {
            for (direction, data) in [
                (Direction::Request, &sent),
                (Direction::Response, &received),
            ] {
                if !data.is_empty() {
                    let _ = capture.data(&mut flow, piece(direction, data));
                }
            }
            capture.end(&flow, &outcome);
        }
        let mut expected = lock(&kept).clone();
        let mut found = records(&store);
        assert_eq!(found.len(), expected.len());
        let rows = store.flows().list(&Query::all()).unwrap();
        for ((expected, found), row) in expected.iter_mut().zip(&mut found).zip(rows) {
            // Each took the time for itself.
            if let (Some(one), Some(other)) = (&mut expected.error, &mut found.error) {
                assert!(other.timestamp >= one.timestamp);
                other.timestamp = one.timestamp;
            }
            assert_eq!(found, expected);
            assert_eq!(row, Summary::of(row.seq, row.block, expected));
            let newest = Query {
                words: Words::new(&format!("{} {}", row.method.unwrap(), row.url.unwrap())),
                ..Query::all()
            };
            let with_words = store.flows().list(&newest).unwrap();
            let is_it = |other: &Summary| other.id == row.id;
            assert!(with_words.iter().any(is_it), "{with_words:?}");
        }
        // Every word of the records is in the index, and no other: a search for each word finds what has it.
        for text in [
            "word1",
            "two",
            "xml",
            "proxy",
            "no route",
            "grpc",
            "caf\u{e9}",
            "zzzz*",
            "example",
        ] {
            let words = Words::new(text).unwrap();
            let query = Query {
                words: Some(words.clone()),
                ..Query::all()
            };
            let with_words: Vec<_> = store.flows().list(&query).unwrap();
            let with_words: Vec<_> = with_words.into_iter().map(|row| row.id).collect();
            let expected = expected.iter().filter(|record| words.matches(record));
            let expected: Vec<_> = expected.map(|record| record.id.clone()).collect();
            assert_eq!(with_words, expected, "{text}");
        }
        // Four that were captured; one that was collected, for the record and for the store.
        assert_eq!(capture.cut_counter().load(Ordering::Relaxed), 4 + 2);
    }

    #[test]
    fn a_filter_is_answered_from_heads_as_from_the_record() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let capture = Capture::new(store.sink(), CaptureLimits::default());
        for (mut flow, [_, received], outcome) in variety() {
            let _ = capture.data(&mut flow, piece(Direction::Response, &received));
            capture.end(&flow, &outcome);
        }
        let mut twice = flow(99);
        let hosts = [("Host", "one.example"), ("Host", "two.example")];
        request(&mut twice, "GET", "/", &hosts);
        capture.end(&twice, &Outcome::COMPLETED);
        let records = records(&store);
        let last = records.len();
        for (expression, of_head) in [
            ("~m GET | ~m CONNECT", true),
            ("~u ^http://www.example.com/a/1", true),
            ("~u a.example:443", true),
            ("~u ^https://b.example/$", true),
            ("~d www.example.com", true),
            ("~d ^example.com$ | ~d ^::1$", true),
            ("!~d b.example", true),
            ("~hq '^x: caf'", true),
            ("~hs 'server: x\r\n'", true),
            ("~h host", true),
            ("~t a/b", true),
            ("~ts 'html$' & !~a", true),
            ("~c 404 | ~status 2xx", true),
            ("~e & ~q", true),
            ("~s & ~http & !~websocket & !~replay", true),
            ("~size 0 | ~sizes >60 | ~sizeq 10", true),
            ("~duration >=3ms & ~duration <4ms", true),
            ("~src :9$ & ~m GET", true),
            ("~dst b.example:443", true),
            ("~sni . | ~ja3 . | ~ja4 .", true),
            ("~version 2.0", true),
            ("~id 1$", true),
            ("~marked | ~comment .", true),
            ("~finding two", false),
            ("~meta block", false),
            ("~b word1", false),
        ] {
            let filter = Filter::new(expression).unwrap();
            let (mut yes, mut no) = (0, 0);
            for (n, record) in records.iter().enumerate() {
                let seq = n as u64 + 1;
                let block = store.flows().holding(seq, false).unwrap().unwrap();
                let answer = block.matches(seq, &filter).unwrap();
                let expected = filter.matches(record);
                *if expected { &mut yes } else { &mut no } += 1;
                assert!(
                    answer.is_none_or(|answer| answer == expected),
                    "{expression} at {n}"
                );
                // Of several hosts the record makes one.
                if of_head && n + 1 < last {
                    assert!(answer.is_some(), "{expression} at {n}");
                }
                if expression.starts_with("~b") {
                    assert_eq!(answer, None);
                }
            }
            assert!(no > 0, "{expression}");
            let never = ["~marked", "~sni"]
                .iter()
                .any(|part| expression.contains(part));
            assert!(yes > 0 || never, "{expression}");
            let query = Query {
                filter: Some(filter),
                ..Query::all()
            };
            assert_eq!(
                store.flows().list(&query).unwrap().len(),
                yes,
                "{expression}"
            );
        }
    }

    #[test]
    fn a_flow_that_was_replayed_is_recorded_as_one() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let capture = Capture::new(store.sink(), CaptureLimits::default());
        let all = [None, Some(Replay::Request), Some(Replay::Response)];
        for (n, replay) in (1..).zip(all) {
            let mut one = flow(n);
            request(&mut one, "GET", "/", &[("Host", "a.example")]);
            response(&mut one, 200, &[]);
            one.replay = replay;
            capture.end(&one, &Outcome::COMPLETED);
        }
        let found: Vec<_> = records(&store).iter().map(|r| r.replay).collect();
        assert_eq!(found, all);
        let rows = store.flows().list(&Query::all()).unwrap();
        assert_eq!(rows.iter().map(|row| row.replay).collect::<Vec<_>>(), all);
    }

    #[test]
    fn heads_count_among_the_bytes_that_wait() {
        let queue = Arc::new(Queue::new(usize::MAX, 1 << 20));
        let sink = FlowSink {
            queue: Arc::clone(&queue),
        };
        let capture = Capture::new(sink, CaptureLimits::default());
        let mut long = flow(1);
        request(&mut long, "GET", "/", &[("X", &"x".repeat(50_000))]);
        for n in 0..1000 {
            long.id = FlowId(n);
            // As an entry, and as a record.
            long.replay = (n % 2 == 0).then_some(Replay::Request);
            capture.end(&long, &Outcome::COMPLETED);
        }
        // 20 times 50 000 bytes are the bound.
        let waiting = queue.waiting();
        assert!((15..=25).contains(&waiting), "{waiting}");
    }

    #[test]
    fn flows_come_in_order_however_large_they_are() {
        let store = Store::open(StoreConfig::new(Place::Memory)).unwrap();
        let capture = Capture::new(
            store.sink(),
            CaptureLimits {
                body_bytes: 8 << 20,
                ..CaptureLimits::default()
            },
        );
        // Four of 250 000 bytes fill a buffer.
        let fill = 250_000;
        let sizes = [
            10,
            fill,
            fill,
            0,
            3 << 20,
            20,
            fill,
            fill,
            fill,
            LARGE,
            fill,
            30,
        ];
        for round in 0..3 {
            for (n, size) in (round * 100..).zip(sizes) {
                let mut one = flow(n);
                // Some of them are records.
                one.replay = (size == 20).then_some(Replay::Request);
                request(&mut one, "POST", &format!("/{n}"), &[("Host", "a")]);
                let body = vec![n as u8; size];
                let _ = capture.data(&mut one, piece(Direction::Request, &body));
                one.request.body_size = size as u64;
                capture.end(&one, &Outcome::COMPLETED);
            }
            store.flush();
        }
        let found = records(&store);
        let expected = (0..3).flat_map(|round| (round * 100..).zip(sizes));
        assert_eq!(found.len(), 3 * sizes.len());
        for (record, (n, size)) in found.iter().zip(expected) {
            let request = &record.as_http().unwrap().request;
            assert_eq!(request.path, format!("/{n}"));
            assert_eq!(request.message.body, Body::whole(vec![n as u8; size]));
        }
    }

    #[test]
    fn flows_of_a_store_survive_being_moved_and_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Store::open(StoreConfig::new(Place::Disk(folder.path().into()))).unwrap();
        let store = open();
        let capture = Capture::new(store.sink(), CaptureLimits::default());
        for (flow, _, outcome) in variety() {
            capture.end(&flow, &outcome);
        }
        let mut expected = records(&store);
        // What is left of its block is written anew.
        let second = Query {
            after: Some(1),
            before: Some(3),
            ..Query::all()
        };
        assert_eq!(store.flows().delete(&second).unwrap(), 1);
        expected.remove(1);
        store.tidy();
        assert_eq!(records(&store), expected);
        drop((capture, store));
        std::fs::remove_file(folder.path().join("flows.db")).unwrap();
        assert_eq!(records(&open()), expected);
    }
}

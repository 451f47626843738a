//! Relays WebSockets whose messages somebody wants. The others are tunnelled.
//!
//! Each direction is one loop. Where interceptors only observe, bytes are read, shown and written
//! as they came, and nothing that is wrong with them stops them. Where one may edit, a message
//! waits until it is whole and judged; what nobody changed still leaves in the frames in which it
//! came, as far as compression allows it.

mod ends;
mod handshake;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tollgate_flow::{
    Direction, ErrorClass, FlowError, Injected, Interest, Message, MessageKind, Outcome,
    OutcomeKind, Side, WebSocket, WebSocketClose, WebSocketHandle,
};
use tollgate_wire::websocket::{
    Deflater, Event, MessageReader, Negotiated, Opcode, PermessageDeflate, Sender, WebSocketError,
    write_close, write_frame, write_message_frame,
};

use crate::config::Config;
use crate::h1::{client_gone, dropped};
use crate::hooks::{MessageVerdict, Run, SharedFlow, Verdict, lock, mark_unread};
use crate::io::Conn;
use crate::metrics::{Counters, count};
use crate::timer::Timer;

pub(crate) use ends::{Input, Output};
#[cfg(feature = "http2")]
pub(crate) use handshake::check_extensions;
pub(crate) use handshake::{check_answer, is_websocket, restrict_offer};

use handshake::negotiated;

/// How long both sides may take to read a close frame of our own and to end.
const CLOSING: Duration = Duration::from_secs(2);

/// What is still read, and dropped, of a side that was sent such a frame.
const CLOSING_BYTES: usize = 256 * 1024;

/// Frames of a message that is held may take this much more than the message itself, and twice
/// the message's own bytes: small fragments are legal.
const FRAMING_SLACK: usize = 64 * 1024;

/// The bounds of a relay.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of one message.
    pub message: usize,
    /// Without a byte in either direction.
    pub idle: Duration,
}

impl Bounds {
    pub fn of(config: &Config) -> Self {
        Self {
            message: config.limits.message_bytes,
            idle: config.timeouts.idle,
        }
    }
}

/// One side of a relay.
pub(crate) struct Ends<'a> {
    pub input: Input<'a>,
    pub output: Output<'a>,
}

impl<'a> Ends<'a> {
    pub fn of(conn: &'a mut Conn) -> Self {
        Self {
            input: Input::Conn(&mut conn.rd),
            output: Output::Conn(&mut conn.wr),
        }
    }
}

/// Relays until both directions have ended, and answers how the flow ended. The handshake is over.
pub(crate) async fn relay(
    run: &Run,
    flow: &SharedFlow<'_>,
    counters: &Counters,
    bounds: Bounds,
    timer: &mut Timer,
    mut client: Ends<'_>,
    mut origin: Ends<'_>,
) -> Outcome {
    let handle = run
        .wants(Interest::EDIT_MESSAGES)
        .then(WebSocketHandle::new);
    let relay = Relay {
        run,
        flow,
        counters,
        message: bounds.message,
        handle: handle.clone(),
        ending: Ending::default(),
        progress: AtomicU64::new(0),
    };
    let mut agreed = None;
    if run.wants(Interest::MESSAGES) {
        count(&counters.websockets_total);
        let answer = {
            let mut flow = lock(flow);
            flow.websocket = Some(Box::new(WebSocket::new(handle)));
            flow.response.as_ref().map(|r| negotiated(r.headers()))
        };
        match answer {
            Some(Ok(negotiated)) => agreed = Some(negotiated),
            // Where somebody may edit, the handshake has been checked for it.
            _ => relay.unread("both directions", "a WebSocket extension that is not known"),
        }
    }
    let outcome = {
        let mut there = relay.direction(Direction::Request, agreed);
        let mut back = relay.direction(Direction::Response, agreed);
        let there = there.run(&mut client.input, &mut origin.output);
        let back = back.run(&mut origin.input, &mut client.output);
        relay
            .both(pin!(there), pin!(back), timer, bounds.idle)
            .await
    };
    if let Some(handle) = &relay.handle {
        handle.end();
    }
    if relay.ending.is_set() {
        // A socket that is closed with unread input resets, which may destroy the close frame.
        let drain = async {
            tokio::join!(drain(&mut client.input), drain(&mut origin.input));
        };
        let _ = timer.within(CLOSING, drain).await;
    }
    outcome
}

async fn drain(input: &mut Input<'_>) {
    let mut left = CLOSING_BYTES;
    loop {
        let n = input.data().len();
        input.consume(n);
        left = left.saturating_sub(n);
        if left == 0 || !matches!(poll_fn(|cx| input.poll_fill(cx)).await, Ok(n) if n > 0) {
            return;
        }
    }
}

/// What both directions share.
struct Relay<'a, 'f> {
    run: &'a Run,
    flow: &'a SharedFlow<'f>,
    counters: &'a Counters,
    message: usize,
    /// Speaks into the WebSocket; there is one where somebody may edit.
    handle: Option<WebSocketHandle>,
    ending: Ending,
    progress: AtomicU64,
}

/// That we end the WebSocket ourselves, and how. What comes first counts.
#[derive(Default)]
struct Ending(Mutex<Option<End>>);

#[derive(Clone)]
struct End {
    code: u16,
    /// For the client only: what interceptors say is no business of the origin.
    reason: String,
    to_origin: String,
    outcome: Outcome,
}

impl Ending {
    fn set(&self, end: End) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(end);
    }

    fn is_set(&self) -> bool {
        self.get().is_some()
    }

    fn get(&self) -> Option<End> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

type OneWay<'a> = Pin<&'a mut (dyn Future<Output = Result<(), Cut>> + Send + 'a)>;

impl<'a, 'f> Relay<'a, 'f> {
    fn direction(
        &self,
        direction: Direction,
        agreed: Option<Negotiated>,
    ) -> OneDirection<'_, 'a, 'f> {
        let sender = sender(direction);
        let reader =
            agreed.map(|agreed| MessageReader::new(sender, self.message, agreed.deflate.as_ref()));
        OneDirection {
            relay: self,
            direction,
            reader,
            agreed: agreed.and_then(|agreed| agreed.deflate),
            sequence: 0,
            close_sent: false,
        }
    }

    /// Runs both directions until both have ended, one fails, or nothing passes for `idle`.
    async fn both<'w>(
        &self,
        mut there: OneWay<'w>,
        mut back: OneWay<'w>,
        timer: &mut Timer,
        idle: Duration,
    ) -> Outcome {
        let (mut there_done, mut back_done) = (false, false);
        let mut seen = 0;
        let mut ending = false;
        timer.set(idle);
        let cut = poll_fn(|cx| {
            loop {
                for (way, done) in [(&mut there, &mut there_done), (&mut back, &mut back_done)] {
                    if !*done && let Poll::Ready(result) = way.as_mut().poll(cx) {
                        if let Err(cut) = result {
                            return Poll::Ready(Some(cut));
                        }
                        *done = true;
                    }
                }
                if there_done && back_done {
                    return Poll::Ready(None);
                }
                // One direction may have asked for the end of both.
                if !ending && self.ending.is_set() {
                    ending = true;
                    timer.set(CLOSING);
                    continue;
                }
                break;
            }
            while timer.poll(cx).is_ready() {
                let now = self.progress.load(Ordering::Relaxed);
                if ending || now == seen {
                    return Poll::Ready(Some(Cut::Idle));
                }
                seen = now;
                timer.set(idle);
            }
            Poll::Pending
        })
        .await;
        if let Some(end) = self.ending.get() {
            return end.outcome;
        }
        let upgraded = Outcome {
            kind: OutcomeKind::Upgraded,
            error: None,
        };
        let closed = lock(self.flow)
            .websocket
            .as_ref()
            .is_some_and(|ws| ws.close.is_some());
        match cut {
            None => upgraded,
            Some(Cut::Verdict(verdict)) => dropped(verdict),
            // After a close frame it doesn't matter how the connections end.
            Some(_) if closed => upgraded,
            Some(Cut::Idle) => Outcome::failed(FlowError::new(
                Side::Proxy,
                ErrorClass::Timeout,
                format!("nothing passed for {idle:?}"),
            )),
            Some(Cut::Failed(Side::Client)) => Outcome::failed(client_gone()),
            Some(Cut::Failed(side)) => Outcome::failed(FlowError::new(
                side,
                ErrorClass::Reset,
                "the origin closed the connection without closing the WebSocket",
            )),
        }
    }

    /// Marks the flow: interceptors see no more.
    fn unread(&self, whose: &str, why: &str) {
        count(&self.counters.observer_truncations);
        mark_unread(self.flow, whose, why);
    }

    /// Keeps account of what passes.
    fn note(&self, direction: Direction, event: &Event<'_>) {
        let mut flow = lock(self.flow);
        let Some(ws) = &mut flow.websocket else {
            return;
        };
        match event {
            Event::Text(_) | Event::Binary(_) => {
                count(&self.counters.websocket_messages);
                match direction {
                    Direction::Request => ws.client_messages += 1,
                    Direction::Response => ws.origin_messages += 1,
                }
            }
            Event::Close(close) => {
                ws.close.get_or_insert_with(|| WebSocketClose {
                    by: source(direction),
                    code: close.code,
                    reason: close.reason.to_owned(),
                });
            }
            Event::Ping(_) | Event::Pong(_) | Event::Fragment => {}
        }
    }

    /// Ends the WebSocket on both sides.
    fn end(&self, end: End) {
        if let Some(ws) = &mut lock(self.flow).websocket {
            ws.close.get_or_insert_with(|| WebSocketClose {
                by: Side::Proxy,
                code: Some(end.code),
                reason: end.reason.clone(),
            });
        }
        self.ending.set(end);
    }

    fn end_by_verdict(&self, verdict: Verdict) {
        let (code, reason) = match &verdict {
            Verdict::Close(reason) => (1008, reason.clone()),
            Verdict::Failed(_) => (1011, "an interceptor failed".to_owned()),
            _ => (1008, String::new()),
        };
        self.end(End {
            code,
            reason,
            to_origin: String::new(),
            outcome: dropped(verdict),
        });
    }

    fn end_by_violation(&self, direction: Direction, error: WebSocketError) {
        let class = match error {
            WebSocketError::TooLarge { .. } => ErrorClass::Limit,
            _ => ErrorClass::Protocol,
        };
        let side = source(direction);
        let reason = format!("the {} sent {error}", name(side));
        self.end(End {
            code: error.close_code(),
            reason: reason.clone(),
            to_origin: reason.clone(),
            outcome: Outcome::failed(FlowError::new(side, class, reason)),
        });
    }
}

/// Why a direction ends without having ended the other's output in good order.
enum Cut {
    /// A connection failed.
    Failed(Side),
    Idle,
    /// An interceptor that only observes ended the flow.
    Verdict(Verdict),
}

/// One direction of a relay.
struct OneDirection<'r, 'a, 'f> {
    relay: &'r Relay<'a, 'f>,
    direction: Direction,
    /// `None` where the bytes can't be read, or can't any more.
    reader: Option<MessageReader>,
    agreed: Option<PermessageDeflate>,
    sequence: u64,
    /// A close frame has been passed on: nothing may follow it.
    close_sent: bool,
}

impl OneDirection<'_, '_, '_> {
    async fn run(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Cut> {
        match (self.reader.take(), &self.relay.handle) {
            (Some(reader), Some(handle)) => self.edit(reader, handle, input, output).await,
            (reader, _) => {
                self.reader = reader;
                self.observe(input, output).await
            }
        }
    }

    /// Shows what passes, and passes it on as it came.
    async fn observe(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Cut> {
        let (from, to) = (source(self.direction), sink(self.direction));
        loop {
            let data = input.data();
            if !data.is_empty() {
                if let Some(mut reader) = self.reader.take() {
                    let mut rest = data;
                    loop {
                        match reader.next(&mut rest) {
                            Ok(None) => {
                                self.reader = Some(reader);
                                break;
                            }
                            Ok(Some(event)) => {
                                if let MessageVerdict::End(verdict) = self.show(&event, false).await
                                {
                                    return Err(Cut::Verdict(verdict));
                                }
                            }
                            Err(error) => {
                                self.relay.unread(name(from), &error.to_string());
                                break;
                            }
                        }
                    }
                }
                let n = data.len();
                output.write_all(data).await.map_err(|_| Cut::Failed(to))?;
                input.consume(n);
                self.relay.progress.fetch_add(1, Ordering::Relaxed);
            }
            match poll_fn(|cx| input.poll_fill(cx)).await {
                Ok(0) => {
                    let ended = output.shutdown(input.is_truncated());
                    return ended.await.map_err(|_| Cut::Failed(to));
                }
                Ok(_) => {}
                Err(_) => return Err(Cut::Failed(from)),
            }
        }
    }

    /// Offers an event to the interceptors, and keeps account of it.
    async fn show(&mut self, event: &Event<'_>, injected: bool) -> MessageVerdict {
        let (kind, data): (_, &[u8]) = match *event {
            Event::Text(text) => (MessageKind::Text, text.as_bytes()),
            Event::Binary(data) => (MessageKind::Binary, data),
            Event::Ping(data) => (MessageKind::Ping, data),
            Event::Pong(data) => (MessageKind::Pong, data),
            Event::Close(close) => (
                MessageKind::Close { code: close.code },
                close.reason.as_bytes(),
            ),
            Event::Fragment => return MessageVerdict::Pass,
        };
        if !injected {
            self.relay.note(self.direction, event);
        }
        let message = Message {
            direction: self.direction,
            sequence: self.sequence,
            kind,
            data,
            injected,
        };
        self.sequence += 1;
        self.relay
            .run
            .message(self.relay.flow, message, self.relay.counters)
            .await
    }

    /// Whether what is held of a message is more than it may be; then the WebSocket ends.
    fn is_too_much(&self, held: &Held) -> bool {
        let limit = self.relay.message;
        let is_too_much = held.len() > limit.saturating_mul(2) + FRAMING_SLACK;
        if is_too_much {
            self.relay
                .end_by_violation(self.direction, WebSocketError::TooLarge { limit });
        }
        is_too_much
    }

    /// Passes on what interceptors made of each message.
    async fn edit(
        &mut self,
        mut reader: MessageReader,
        handle: &WebSocketHandle,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Cut> {
        let (from, to) = (source(self.direction), sink(self.direction));
        let failed = |_| Cut::Failed(to);
        let mut held = Held::default();
        let mut writer = Writer::new(self.direction, self.agreed);
        loop {
            let data = input.data();
            let mut rest = data;
            while !rest.is_empty() && !self.relay.ending.is_set() {
                let before = rest;
                let read = reader.next(&mut rest);
                let taken = before.get(..before.len() - rest.len()).unwrap_or_default();
                let event = match read {
                    Ok(Some(Event::Fragment)) => {
                        held.fragment(taken);
                        // Fragments may be empty, and come for ever.
                        if self.is_too_much(&held) {
                            break;
                        }
                        continue;
                    }
                    Ok(Some(event)) => event,
                    // What comes after a close frame is read and dropped.
                    Ok(None) if self.close_sent => break,
                    Ok(None) => {
                        held.part(taken);
                        self.is_too_much(&held);
                        break;
                    }
                    Err(error) => {
                        self.relay.end_by_violation(self.direction, error);
                        break;
                    }
                };
                let verdict = {
                    let mut offer = pin!(self.show(&event, false));
                    match poll_once(offer.as_mut()).await {
                        Some(verdict) => verdict,
                        None => {
                            // It waits for a decision: what was decided before must not.
                            output.write_all(&writer.out).await.map_err(failed)?;
                            writer.out.clear();
                            offer.await
                        }
                    }
                };
                if let MessageVerdict::End(verdict) = verdict {
                    self.relay.end_by_verdict(verdict);
                    break;
                }
                self.close_sent |= matches!(event, Event::Close(_));
                held.take(&event, taken, |raw| writer.message(&event, raw, verdict))
                    .map_err(failed)?;
            }
            let n = data.len();
            output.write_all(&writer.out).await.map_err(failed)?;
            writer.recycle();
            input.consume(n);
            self.relay.progress.fetch_add(1, Ordering::Relaxed);
            match self.wait(handle, input).await {
                Wake::Read(Ok(0)) => {
                    let ended = output.shutdown(input.is_truncated());
                    return ended.await.map_err(failed);
                }
                Wake::Read(Ok(_)) => {}
                Wake::Read(Err(_)) => return Err(Cut::Failed(from)),
                Wake::Injected(injected) => {
                    self.inject(injected, &mut writer).await.map_err(failed)?
                }
                Wake::End(end) => {
                    if !self.close_sent {
                        let reason = match self.direction {
                            Direction::Request => &end.to_origin,
                            Direction::Response => &end.reason,
                        };
                        writer
                            .frame(Opcode::Close, &write_close(end.code, reason))
                            .map_err(failed)?;
                        output.write_all(&writer.out).await.map_err(failed)?;
                    }
                    return output.shutdown(false).await.map_err(failed);
                }
            }
        }
    }

    /// Waits for bytes, for something to inject, or for the end.
    async fn wait(&self, handle: &WebSocketHandle, input: &mut Input<'_>) -> Wake {
        poll_fn(|cx: &mut Context<'_>| {
            if let Some(end) = self.relay.ending.get() {
                return Poll::Ready(Wake::End(end));
            }
            if !self.close_sent
                && let Poll::Ready(next) = handle.poll_next(self.direction, cx)
            {
                return Poll::Ready(Wake::Injected(next));
            }
            input.poll_fill(cx).map(Wake::Read)
        })
        .await
    }

    async fn inject(&mut self, injected: Injected, writer: &mut Writer) -> io::Result<()> {
        let event = match &injected {
            Injected::Text(text) => Event::Text(text),
            Injected::Binary(data) => Event::Binary(data),
            Injected::Close { code, reason } => {
                self.relay.end(End {
                    code: *code,
                    reason: reason.clone(),
                    to_origin: reason.clone(),
                    outcome: Outcome {
                        kind: OutcomeKind::Upgraded,
                        error: None,
                    },
                });
                return Ok(());
            }
        };
        match self.show(&event, true).await {
            MessageVerdict::End(verdict) => self.relay.end_by_verdict(verdict),
            verdict => writer.message(&event, &[], verdict)?,
        }
        Ok(())
    }
}

enum Wake {
    Read(io::Result<usize>),
    Injected(Injected),
    End(End),
}

/// The frames of what is not judged yet, as they came.
#[derive(Default)]
struct Held {
    /// The frame that has begun.
    frame: Vec<u8>,
    /// Whole frames of the message that has begun.
    message: Vec<u8>,
}

impl Held {
    fn len(&self) -> usize {
        self.frame.len() + self.message.len()
    }

    fn part(&mut self, bytes: &[u8]) {
        self.frame.extend_from_slice(bytes);
    }

    fn fragment(&mut self, end: &[u8]) {
        self.message.append(&mut self.frame);
        self.message.extend_from_slice(end);
    }

    /// Gives up the frames of an event whose last bytes are `end`.
    fn take<T>(&mut self, event: &Event<'_>, end: &[u8], with: impl FnOnce(&[u8]) -> T) -> T {
        let is_data = matches!(event, Event::Text(_) | Event::Binary(_));
        if self.frame.is_empty() && (!is_data || self.message.is_empty()) {
            return with(end);
        }
        self.frame.extend_from_slice(end);
        if !is_data {
            let result = with(&self.frame);
            self.frame.clear();
            return result;
        }
        self.message.append(&mut self.frame);
        let result = with(&self.message);
        *self = Self::default();
        result
    }
}

/// Writes the frames of one direction.
struct Writer {
    direction: Direction,
    out: Vec<u8>,
    deflater: Option<Deflater>,
    keeps_context: bool,
    /// The receiver's window is no longer that of the sender: what the sender compresses with its
    /// window can't be passed on as it is.
    diverged: bool,
}

impl Writer {
    fn new(direction: Direction, agreed: Option<PermessageDeflate>) -> Self {
        let sender = sender(direction);
        Self {
            direction,
            out: Vec::new(),
            deflater: agreed.map(|agreed| Deflater::new(&agreed, sender)),
            keeps_context: agreed.is_some_and(|agreed| agreed.context_takeover(sender)),
            diverged: false,
        }
    }

    /// Writes what became of a message. `raw` are its frames, none for one that we add.
    fn message(
        &mut self,
        event: &Event<'_>,
        raw: &[u8],
        verdict: MessageVerdict,
    ) -> io::Result<()> {
        let compressed = raw.first().is_some_and(|first| first & 0x40 != 0);
        let passes = matches!(verdict, MessageVerdict::Pass);
        let lost = compressed && self.diverged;
        if passes && !raw.is_empty() && !lost {
            self.out.extend_from_slice(raw);
            return Ok(());
        }
        self.diverged |= compressed && self.keeps_context;
        let (opcode, data): (_, &[u8]) = match event {
            Event::Text(text) => (Opcode::Text, text.as_bytes()),
            Event::Binary(data) => (Opcode::Binary, data),
            Event::Ping(data) => (Opcode::Ping, data),
            Event::Pong(data) => (Opcode::Pong, data),
            // Passed on in any case: see `Run::message`.
            Event::Close(_) | Event::Fragment => {
                self.out.extend_from_slice(raw);
                return Ok(());
            }
        };
        let data = match &verdict {
            MessageVerdict::Replace(bytes) => bytes,
            MessageVerdict::Drop => return Ok(()),
            MessageVerdict::Pass | MessageVerdict::End(_) => data,
        };
        let mut squeezed = Vec::new();
        if compressed
            && let Some(deflater) = &mut self.deflater
            && deflater.message(data, &mut squeezed)
        {
            let mask = self.mask()?;
            write_message_frame(&mut self.out, opcode, mask, true, &squeezed);
            return Ok(());
        }
        self.frame(opcode, data)
    }

    fn frame(&mut self, opcode: Opcode, payload: &[u8]) -> io::Result<()> {
        let mask = self.mask()?;
        write_frame(&mut self.out, opcode, mask, payload);
        Ok(())
    }

    /// A key for the next frame, where frames are masked (RFC 6455 section 5.3: unpredictable).
    fn mask(&self) -> io::Result<Option<[u8; 4]>> {
        if self.direction == Direction::Response {
            return Ok(None);
        }
        let mut key = [0; 4];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
        Ok(Some(key))
    }

    fn recycle(&mut self) {
        if self.out.capacity() > FRAMING_SLACK {
            self.out = Vec::new();
        }
        self.out.clear();
    }
}

/// Polls once.
async fn poll_once<T>(mut future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Option<T> {
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

fn sender(direction: Direction) -> Sender {
    match direction {
        Direction::Request => Sender::Client,
        Direction::Response => Sender::Server,
    }
}

fn source(direction: Direction) -> Side {
    match direction {
        Direction::Request => Side::Client,
        Direction::Response => Side::Upstream,
    }
}

fn sink(direction: Direction) -> Side {
    match direction {
        Direction::Request => Side::Upstream,
        Direction::Response => Side::Client,
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Upstream => "origin",
        Side::Proxy => "proxy",
    }
}

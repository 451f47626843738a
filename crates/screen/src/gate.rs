//! Holds the tool calls of a streamed answer until somebody has decided about them.
//!
//! A [`Gate`] stands in the body of one response. Text flows through it byte for byte, as it comes.
//! From the start of a tool call, the events of that call are held (and what must not overtake
//! them); when the call is complete, the gate asks ([`GateEvent::Decide`]), and [`Gate::resolve`]
//! answers: the held bytes go on **as they came**, or a refusal stands in their place, in the
//! provider's own shape, with what ends the answer fixed to match. Responses that are not streamed
//! are treated alike.
//!
//! The gate is sans-io: it is fed decoded bytes and writes bytes; waiting, deadlines
//! ([`Gate::give_up`]) and keep-alives ([`Gate::keep_alive`]) are its driver's. Dropping it releases nothing that is held: a reset in the middle of a hold leaks
//! nothing.
//!
//! ```
//! use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions};
//! use tollgate_screen::llm::Dialect;
//!
//! let options = GateOptions::default();
//! let content_type = Some("text/event-stream");
//! let mut gate =
//!     Gate::for_response(Some(Dialect::OpenAiChat), 200, content_type, options).unwrap();
//! let (mut out, mut events) = (Vec::new(), Vec::new());
//!
//! let call = br#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a",
//! data: "function":{"name":"bash","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#;
//! gate.feed(call, &mut out, &mut events);
//! gate.feed(b"\n\n", &mut out, &mut events);
//! assert!(out.is_empty(), "the call is held");
//!
//! let call = events.iter().find_map(|event| match event {
//!     GateEvent::Decide(call) => Some(call.call),
//!     _ => None,
//! });
//! let block = Decision::block("no shell here");
//! gate.resolve(call.unwrap(), block, &mut out, &mut events);
//! gate.finish(&mut out, &mut events);
//! let out = String::from_utf8(out).unwrap();
//! assert!(out.contains("no shell here") && out.contains(r#""finish_reason":"stop""#));
//! assert!(!out.contains("tool_calls"));
//! ```
//!
//! # Limits
//!
//! | limit | at it |
//! |---|---|
//! | [`GateOptions::hold_limit`] held bytes | calls without a decision get the declared answer |
//! | [`GateOptions::message_limit`] bytes of one message, or of a whole body | it is dropped (closed) or passes (open) |
//! | [`MAX_DEPTH`](crate::llm::json::MAX_DEPTH) levels of JSON | the same |
//! | 4096 calls in one stream | calls beyond get the declared answer |

mod calls;
mod dialects;
mod edit;
mod follow_up;
mod repeat;

use std::borrow::Cow;
use std::collections::VecDeque;

use self::calls::{Call, CallTable, Verdict};
pub use self::dialects::refusal_body;
pub(crate) use self::edit::Splice;
use self::edit::{FrameEdit, Piece};
pub use self::follow_up::{BlockedCalls, repair_request};
use self::repeat::Repeat;
use crate::llm::assembler::{Assembler, Order, Phase, Reading, Touch};
use crate::llm::frame::{Envelope, Frame, Framer, Place, contents, rewrite, write_new};
use crate::llm::json::Tape;
use crate::llm::{Arguments, CallId, Dialect, Event, Fault, Framing, RunsAt, ToolCall};

/// Headers of a response that no longer hold once a gate stands in its body: the body's length and
/// digests may change, and it leaves decoded.
pub const STALE_HEADERS: [&str; 9] = [
    "content-length",
    "content-encoding",
    "content-md5",
    "content-digest",
    "repr-digest",
    "digest",
    "etag",
    "last-modified",
    "accept-ranges",
];

/// What happens to a call that no decision was made about: at a limit, at a deadline, when it can't
/// be read or never ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// It is refused.
    #[default]
    Closed,
    /// It goes on as it came.
    Open,
}

/// How a gate behaves.
#[derive(Debug, Clone)]
pub struct GateOptions {
    /// What happens without a decision.
    pub on_failure: OnFailure,
    /// How many bytes may be held. Default: 1 MiB.
    pub hold_limit: usize,
    /// How large one message may be, and a body that isn't streamed. Default: 8 MiB.
    pub message_limit: usize,
    /// Tools whose calls stream at once, without a decision: those that only read. Exact names.
    pub stream_at_once: Vec<String>,
}

impl Default for GateOptions {
    fn default() -> Self {
        GateOptions {
            on_failure: OnFailure::Closed,
            hold_limit: 1 << 20,
            message_limit: 8 << 20,
            stream_at_once: Vec::new(),
        }
    }
}

/// What is decided about a tool call.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It goes on, byte for byte.
    Allow,
    /// It is replaced by a text that says so.
    Block {
        /// Why, in words for the model and the person behind it.
        reason: String,
    },
    /// It goes on with other arguments.
    Redact {
        /// The arguments.
        arguments: Arguments,
    },
}

impl Decision {
    /// [`Decision::Block`] with this reason.
    #[must_use]
    pub fn block(reason: impl Into<String>) -> Self {
        Self::Block {
            reason: reason.into(),
        }
    }
}

/// What a gate has to say.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GateEvent {
    /// What the response says; every call, text and figure, as if there were no gate.
    Seen(Event),
    /// A call is complete and waits for [`Gate::resolve`].
    Decide(ToolCall),
    /// A call was refused.
    Blocked(Blocked),
    /// Something couldn't be judged.
    Failed {
        /// What was wrong.
        fault: Fault,
        /// Whether it was passed on.
        passed: bool,
    },
}

/// A call that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Its number in the stream.
    pub call: CallId,
    /// The provider's identifier of the call.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The provider's identifier of the answer, if it has told one.
    pub response_id: Option<String>,
    /// Why.
    pub reason: String,
    /// Its arguments are free text (a custom tool).
    pub free_text: bool,
    /// It was the declared answer, not a decision.
    pub by_failure: bool,
}

/// Where a gate writes. Each call is one whole message, or a piece of a byte stream.
pub trait Output {
    /// Takes the next bytes for the client.
    fn write(&mut self, bytes: &[u8]);
}

/// A byte stream.
impl Output for Vec<u8> {
    fn write(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Whole messages, for [`Gate::for_websocket`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Messages(pub Vec<Vec<u8>>);

impl Output for Messages {
    fn write(&mut self, bytes: &[u8]) {
        self.0.push(bytes.to_vec());
    }
}

/// The gate in the body of one response.
#[derive(Debug)]
pub struct Gate {
    framer: Framer,
    core: Core,
}

impl Gate {
    /// A gate for a response, if it can carry tool calls: its status is 2xx, and it answers a request
    /// to a language model, or is a stream that might turn out to.
    ///
    /// `dialect` is what [`Dialect::of_request`] said of the request.
    #[must_use]
    pub fn for_response(
        dialect: Option<Dialect>,
        status: u16,
        content_type: Option<&str>,
        options: GateOptions,
    ) -> Option<Self> {
        let announced = content_type.and_then(Framing::from_content_type);
        let streams = matches!(
            announced,
            Some(Framing::Sse | Framing::Ndjson | Framing::AwsEventStream)
        );
        let carries = (200..300).contains(&status) && (dialect.is_some() || streams);
        carries.then(|| Self::new(dialect, announced, options))
    }

    /// A gate for what an origin sends over a WebSocket: [`feed`](Self::feed) it whole text messages,
    /// and let it write into [`Messages`].
    #[must_use]
    pub fn for_websocket(dialect: Option<Dialect>, options: GateOptions) -> Self {
        Self::new(dialect, Some(Framing::Message), options)
    }

    fn new(dialect: Option<Dialect>, announced: Option<Framing>, options: GateOptions) -> Self {
        Gate {
            framer: Framer::new(announced, dialect, options.message_limit),
            core: Core {
                assembler: Assembler::new(dialect, options.hold_limit),
                tape: Tape::default(),
                reading: Reading::default(),
                calls: CallTable::default(),
                queue: VecDeque::new(),
                held: 0,
                queued_blocks: Vec::new(),
                shift: 0,
                response_id: None,
                dialect,
                last: None,
                faulty: None,
                ended: false,
                refused_body: false,
                repeat: Repeat::default(),
                options,
            },
        }
    }

    /// Takes the next bytes of the body, content codings undone.
    pub fn feed(&mut self, mut input: &[u8], out: &mut impl Output, events: &mut Vec<GateEvent>) {
        while !input.is_empty() {
            if self.framer.is_between_events() {
                let limit = self.framer.limit();
                let passed = self.core.pass_repeats(input, limit, out, events);
                input = input.get(passed..).unwrap_or_default();
            }
            let (used, frame) = self.framer.next(input);
            if let Some(frame) = frame {
                self.core.take(&frame, out, events);
            }
            input = input.get(used..).unwrap_or_default();
        }
    }

    /// Answers [`GateEvent::Decide`]. A number that isn't waiting is ignored.
    pub fn resolve(
        &mut self,
        call: CallId,
        decision: Decision,
        out: &mut impl Output,
        events: &mut Vec<GateEvent>,
    ) {
        let undecided = self.core.calls.get(call).is_some_and(Call::is_undecided);
        if undecided {
            self.core.decide(call, decision, false, events);
            self.core.drain(out);
        }
    }

    /// The body has ended. Calls that haven't get the declared answer; those that wait for a decision
    /// still do, and their bytes follow when it comes.
    pub fn finish(&mut self, out: &mut impl Output, events: &mut Vec<GateEvent>) {
        if let Some(frame) = self.framer.finish() {
            self.core.take(&frame, out, events);
        }
        self.core.finish(out, events);
    }

    /// A deadline has passed: every call without a decision gets the declared answer.
    pub fn give_up(&mut self, out: &mut impl Output, events: &mut Vec<GateEvent>) {
        self.core.give_up("no decision was made in time", events);
        self.core.drain(out);
    }

    /// Whether bytes are held.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        !self.core.queue.is_empty()
    }

    /// How many bytes are held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.core.held
    }

    /// Something to write while nothing else is, so that the client sees that the answer is alive:
    /// bytes that its SDK passes over. `None` if the gate holds nothing, or the format has nothing of
    /// the kind.
    #[must_use]
    pub fn keep_alive(&self) -> Option<Vec<u8>> {
        if !self.is_holding() || self.core.faulty.is_some() {
            return None;
        }
        let dialect = self.core.dialect?;
        let (last, envelope) = self.core.last?;
        let anthropic = dialect == Dialect::AnthropicMessages;
        match envelope {
            Envelope::Sse if anthropic => {
                Some(b"event: ping\ndata: {\"type\": \"ping\"}\n\n".to_vec())
            }
            // A comment ends the stream of google-genai in an error.
            Envelope::Sse if last == Dialect::Gemini => None,
            Envelope::Sse => Some(b": hold\n\n".to_vec()),
            Envelope::Aws { wrapped: true } if last == Dialect::AnthropicMessages => {
                Some(write_new(&[], envelope, "ping", b"{\"type\":\"ping\"}"))
            }
            Envelope::Aws { .. } | Envelope::Within { .. } => None,
        }
    }

    /// The format that the answer is in, as far as it is known.
    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.core.dialect
    }

    /// How the body is framed, once its first bytes have shown it.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        self.framer.framing()
    }
}

/// A message that is held.
#[derive(Debug)]
struct Held {
    raw: Vec<u8>,
    name: String,
    envelope: Envelope,
    touches: Vec<Touch>,
    dialect: Option<Dialect>,
}

/// Everything behind the framing.
#[derive(Debug)]
struct Core {
    assembler: Assembler,
    tape: Tape,
    reading: Reading,
    calls: CallTable,
    queue: VecDeque<Held>,
    held: usize,
    /// Blocks whose beginning is in the queue.
    queued_blocks: Vec<u64>,
    /// How many more events than arrived were sent (Responses numbers them).
    shift: i64,
    response_id: Option<String>,
    dialect: Option<Dialect>,
    /// Format and envelope of the last message.
    last: Option<(Dialect, Envelope)>,
    /// What is wrong with the bytes that came last; they may be a piece of a message.
    faulty: Option<Fault>,
    /// The answer has ended.
    ended: bool,
    /// A refusal was written in the place of the whole body.
    refused_body: bool,
    repeat: Repeat,
    options: GateOptions,
}

impl Core {
    /// Passes on the events at the beginning of `input` that differ from the last one in their text alone; how many
    /// bytes they have.
    fn pass_repeats(
        &self,
        input: &[u8],
        limit: usize,
        out: &mut impl Output,
        events: &mut Vec<GateEvent>,
    ) -> usize {
        // What is held, or was changed, has its say about each event.
        if !self.queue.is_empty() || self.calls.any_changed() {
            return 0;
        }
        let mut passed = 0;
        while let Some(rest) = input.get(passed..)
            && let Some((used, block, text)) = self.repeat.next(rest)
            && used <= limit
        {
            events.push(GateEvent::Seen(Event::TextDelta { block, text }));
            passed += used;
        }
        if let Some(all) = input.get(..passed).filter(|all| !all.is_empty()) {
            out.write(all);
        }
        passed
    }

    /// Remembers a message that says nothing but more of a text.
    fn remember(&mut self, frame: &Frame<'_>) {
        if let [Event::TextDelta { block, .. }] = *self.reading.events
            && let Some(text) = self.reading.text.clone()
            && self.reading.touches.is_empty()
            && frame.envelope == Envelope::Sse
            && let Some(Cow::Borrowed(data)) = frame.data
            && let Some(text) = data.get(text)
        {
            self.repeat.remember(frame.raw, text, block);
        }
    }

    /// Takes a message.
    fn take(&mut self, frame: &Frame<'_>, out: &mut impl Output, events: &mut Vec<GateEvent>) {
        self.repeat.forget();
        if let Some(fault) = frame.fault {
            self.fault(frame, fault, out, events);
            return;
        }
        self.faulty = None;
        let Some(data) = frame.data.as_deref() else {
            // Comments may overtake; brackets and blank lines of other framings may not.
            if self.queue.is_empty() || frame.envelope == Envelope::Sse {
                out.write(frame.raw);
            } else {
                self.reading.clear();
                self.hold(frame, events);
            }
            return;
        };
        self.reading.clear();
        let mut unreadable = false;
        let may_be_json = self.may_be_json(data);
        match self.tape.read(data) {
            Ok(root) => {
                self.assembler.read(root, &frame.name, &mut self.reading);
                // Which of two equal members counts is a matter of taste; a call is no place for it.
                unreadable = !self.reading.touches.is_empty() && root.has_duplicate_keys();
            }
            Err(_) if may_be_json => unreadable = true,
            Err(_) => self.assembler.read_text(data, &mut self.reading),
        }
        if self.reading.dialect.is_some() {
            self.dialect = self.reading.dialect;
        }
        if let Some(dialect) = self.reading.dialect {
            self.last = Some((dialect, frame.envelope));
        }
        self.remember(frame);
        self.report(events);
        let unknown = |touch: &Touch| self.calls.get(touch.call).is_none();
        if unreadable || self.reading.touches.iter().any(unknown) {
            self.unreadable(frame, out, events);
            return;
        }
        if self.must_wait() {
            self.hold(frame, events);
            self.drain(out);
        } else {
            let touches = std::mem::take(&mut self.reading.touches);
            let message = Message {
                raw: frame.raw,
                data: Some(data),
                name: &frame.name,
                envelope: frame.envelope,
                touches: &touches,
                dialect: self.reading.dialect,
            };
            emit(
                &message,
                &mut self.tape,
                &mut self.calls,
                &mut self.shift,
                out,
            );
            self.reading.touches = touches;
            self.forget_finished();
        }
    }

    /// Whether a message that isn't JSON was meant as such. Where nothing has shown yet that a model
    /// answers, a text with a brace in it is a text.
    fn may_be_json(&self, data: &[u8]) -> bool {
        if self.dialect.is_some() {
            data.contains(&b'{')
        } else {
            data.trim_ascii_start().first() == Some(&b'{')
        }
    }

    /// Reports what the message says, opens and closes calls.
    fn report(&mut self, events: &mut Vec<GateEvent>) {
        let mut said = std::mem::take(&mut self.reading.events);
        for event in said.drain(..) {
            match &event {
                Event::Start { id, .. } => {
                    self.response_id.clone_from(id);
                    self.shift = 0;
                    self.ended = false;
                }
                Event::ToolCallStart {
                    call,
                    name,
                    runs_at,
                } => self.begin(*call, name, *runs_at),
                Event::ToolCallEnd(call) => {
                    let call = call.clone();
                    events.push(GateEvent::Seen(event));
                    self.end(call, events);
                    continue;
                }
                Event::End => self.ended = true,
                _ => {}
            }
            events.push(GateEvent::Seen(event));
        }
        self.reading.events = said;
        for touch in &self.reading.touches {
            if let Some(call) = self.calls.get_mut(touch.call)
                && matches!(touch.phase, Phase::Start | Phase::Whole)
            {
                call.choice = touch.choice;
            }
        }
    }

    fn begin(&mut self, call: CallId, name: &str, runs_at: RunsAt) {
        let at_once = runs_at == RunsAt::Provider
            || self.options.stream_at_once.iter().any(|tool| tool == name);
        let verdict = if at_once {
            Verdict::AtOnce
        } else {
            Verdict::Undecided
        };
        self.calls.begin(call, name, verdict, runs_at);
    }

    fn end(&mut self, ended: ToolCall, events: &mut Vec<GateEvent>) {
        let Some(call) = self.calls.get_mut(ended.call) else {
            return;
        };
        ended.id.clone_into(&mut call.id);
        ended.name.clone_into(&mut call.name);
        call.free_text = matches!(ended.arguments, Arguments::Text(_));
        // A name that is told late may be one of those that need no decision; it is asked about all
        // the same.
        if !call.is_undecided() {
            return;
        }
        match (&ended.arguments, self.options.on_failure) {
            (Arguments::Malformed { why, .. }, OnFailure::Closed) => {
                let number = ended.call;
                self.decide(number, Decision::block(*why), true, events);
            }
            _ => events.push(GateEvent::Decide(ended)),
        }
    }

    fn decide(
        &mut self,
        number: CallId,
        decision: Decision,
        by_failure: bool,
        events: &mut Vec<GateEvent>,
    ) {
        let Some(call) = self.calls.get(number) else {
            return;
        };
        let verdict = match decision {
            Decision::Allow => Verdict::Allow,
            Decision::Redact { arguments } => Verdict::Redact(arguments),
            Decision::Block { reason } => {
                let verdict = Verdict::Block(refusal_text(&call.name, &reason));
                events.push(GateEvent::Blocked(Blocked {
                    call: number,
                    id: call.id.clone(),
                    name: call.name.clone(),
                    response_id: self.response_id.clone(),
                    reason,
                    free_text: call.free_text,
                    by_failure,
                }));
                verdict
            }
        };
        self.calls.decide(number, verdict);
    }

    /// The declared answer for every call without a decision.
    fn give_up(&mut self, why: &str, events: &mut Vec<GateEvent>) {
        for number in self.calls.undecided() {
            let decision = match self.options.on_failure {
                OnFailure::Closed => Decision::block(why),
                OnFailure::Open => Decision::Allow,
            };
            self.decide(number, decision, true, events);
        }
    }

    /// A message that looks like JSON and can't be read, or can be read in two ways.
    fn unreadable(
        &mut self,
        frame: &Frame<'_>,
        out: &mut impl Output,
        events: &mut Vec<GateEvent>,
    ) {
        let passed = self.options.on_failure == OnFailure::Open;
        events.push(GateEvent::Failed {
            fault: Fault::Unreadable,
            passed,
        });
        if passed {
            self.hold(frame, events);
        } else {
            if whole_body(frame) {
                // There must be an answer; an empty one is none.
                let dialect = self.reading.dialect.or(self.dialect);
                let text = refusal_text("", "the answer can't be read");
                out.write(dialects::refusal_body(dialect, &text).as_bytes());
            }
            let touches = std::mem::take(&mut self.reading.touches);
            for touch in &touches {
                if self.calls.get(touch.call).is_some_and(Call::is_undecided) {
                    let decision = Decision::block("a part of the call can be read in two ways");
                    self.decide(touch.call, decision, true, events);
                }
            }
            self.reading.touches = touches;
        }
        self.drain(out);
    }

    fn fault(
        &mut self,
        frame: &Frame<'_>,
        fault: Fault,
        out: &mut impl Output,
        events: &mut Vec<GateEvent>,
    ) {
        let passed = self.options.on_failure == OnFailure::Open;
        let failed = GateEvent::Failed { fault, passed };
        // Once for all the pieces in which messages without fault don't stand.
        if self.faulty != Some(fault) {
            events.push(failed);
        }
        self.faulty = Some(fault);
        if fault == Fault::Broken {
            self.give_up("the stream is broken", events);
            self.drain(out);
        }
        if !passed && whole_body(frame) && !std::mem::replace(&mut self.refused_body, true) {
            let text = refusal_text("", "the answer is larger than what may be held");
            out.write(dialects::refusal_body(self.dialect, &text).as_bytes());
        }
        if passed {
            if self.queue.is_empty() {
                out.write(frame.raw);
            } else {
                self.reading.clear();
                self.hold(frame, events);
            }
        }
    }

    fn must_wait(&self) -> bool {
        let undecided = |touch: &Touch| self.calls.get(touch.call).is_some_and(Call::is_undecided);
        if self.reading.touches.iter().any(undecided) {
            return true;
        }
        !self.queue.is_empty()
            && match self.reading.order {
                Order::Free => false,
                Order::Behind => true,
                Order::Block { key, start } => start || self.queued_blocks.contains(&key),
            }
    }

    fn hold(&mut self, frame: &Frame<'_>, events: &mut Vec<GateEvent>) {
        if let Order::Block { key, .. } = self.reading.order
            && !self.queued_blocks.contains(&key)
        {
            self.queued_blocks.push(key);
        }
        self.held = self.held.saturating_add(frame.raw.len());
        self.queue.push_back(Held {
            raw: frame.raw.to_vec(),
            name: frame.name.clone().into_owned(),
            envelope: frame.envelope,
            touches: std::mem::take(&mut self.reading.touches),
            dialect: self.reading.dialect,
        });
        if self.held > self.options.hold_limit && !whole_body(frame) {
            self.give_up("it is larger than what may be held", events);
        }
    }

    /// Lets go of what is decided, in order.
    fn drain(&mut self, out: &mut impl Output) {
        while let Some(front) = self.queue.front() {
            let undecided =
                |touch: &Touch| self.calls.get(touch.call).is_some_and(Call::is_undecided);
            if front.touches.iter().any(undecided) {
                return;
            }
            let Some(held) = self.queue.pop_front() else {
                return;
            };
            self.held = self.held.saturating_sub(held.raw.len());
            let message = Message {
                raw: &held.raw,
                data: None,
                name: &held.name,
                envelope: held.envelope,
                touches: &held.touches,
                dialect: held.dialect,
            };
            emit(
                &message,
                &mut self.tape,
                &mut self.calls,
                &mut self.shift,
                out,
            );
        }
        self.queued_blocks.clear();
        self.queue.shrink_to(8);
        self.forget_finished();
    }

    /// On a WebSocket, one answer follows another: calls of those that have ended are forgotten.
    fn forget_finished(&mut self) {
        let several = matches!(
            self.last,
            Some((
                _,
                Envelope::Within {
                    place: Place::Message,
                    ..
                }
            ))
        );
        if several && self.ended && self.queue.is_empty() {
            self.calls.forget();
        }
    }

    fn finish(&mut self, out: &mut impl Output, events: &mut Vec<GateEvent>) {
        self.reading.clear();
        self.assembler.finish(&mut self.reading);
        if self.options.on_failure == OnFailure::Open {
            // What never ended isn't asked about.
            for event in &self.reading.events {
                if let Event::ToolCallEnd(call) = event
                    && let Some(call) = self.calls.get_mut(call.call)
                    && call.is_undecided()
                {
                    call.verdict = Verdict::Allow;
                }
            }
        }
        self.report(events);
        self.drain(out);
    }
}

/// Whether the message is a whole body: that is held in any case, and has a limit of its own.
fn whole_body(frame: &Frame<'_>) -> bool {
    matches!(
        frame.envelope,
        Envelope::Within {
            place: Place::Body,
            ..
        }
    )
}

/// A message on its way out.
struct Message<'a> {
    raw: &'a [u8],
    /// Its contents, if they are at hand.
    data: Option<&'a [u8]>,
    name: &'a str,
    envelope: Envelope,
    touches: &'a [Touch],
    dialect: Option<Dialect>,
}

/// Writes a message whose calls are decided: as it came, unless one of them changes it.
fn emit(
    message: &Message<'_>,
    tape: &mut Tape,
    calls: &mut CallTable,
    shift: &mut i64,
    out: &mut impl Output,
) {
    for touch in message.touches {
        if matches!(touch.phase, Phase::Start | Phase::Whole) {
            calls.number(touch.call);
        }
    }
    let untouched = !calls.any_changed()
        && !message.touches.iter().any(|touch| {
            calls
                .get(touch.call)
                .is_some_and(|call| matches!(call.verdict, Verdict::AtOnce))
        });
    let Some(dialect) = message.dialect.filter(|_| !untouched) else {
        out.write(message.raw);
        return;
    };
    if let [touch] = message.touches
        && matches!(touch.phase, Phase::Delta | Phase::End)
        && dialects::one_call_a_message(dialect)
        && calls.get(touch.call).is_some_and(Call::is_blocked)
    {
        // Nothing else is in it: no need to look.
        *shift -= 1;
        return;
    }
    let data = match message.data {
        Some(data) => Some(Cow::Borrowed(data)),
        None => contents(message.raw, message.envelope),
    };
    let pieces = data.as_deref().and_then(|data| {
        let root = tape.read(data).ok()?;
        let mut edit = FrameEdit {
            root,
            data,
            name: message.name,
            touches: message.touches,
            calls,
            shift,
            pieces: Vec::new(),
        };
        dialects::edit(dialect, &mut edit);
        Some(edit.pieces)
    });
    let Some(pieces) = pieces else {
        out.write(message.raw);
        return;
    };
    for piece in pieces {
        match piece {
            Piece::Keep => out.write(message.raw),
            Piece::Edited(data) => out.write(&rewrite(message.raw, message.envelope, &data)),
            Piece::New { name, data } => {
                out.write(&write_new(message.raw, message.envelope, name, &data));
            }
        }
    }
}

/// What stands in the place of a refused call.
fn refusal_text(tool: &str, reason: &str) -> String {
    let tool = if tool.is_empty() { "a tool" } else { tool };
    format!("[The call of {tool} was blocked by policy and did not run: {reason}]")
}

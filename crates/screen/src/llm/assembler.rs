//! Turns the messages of a response into [`Event`]s, and says which parts of a message belong to
//! which tool call.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;

use super::dialect::Dialect;
use super::json::{Tape, Value};
use super::model::{Arguments, BlockId, CallId, Event, RunsAt, TextKind, ToolCall};
use super::{anthropic, bedrock, cohere, gemini, mcp, ollama, openai_chat, openai_responses};

/// What one message says.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub events: Vec<Event>,
    /// Which parts of the message belong to tool calls, in their order in the message.
    pub touches: Vec<Touch>,
    pub order: Order,
    /// The format it was read as.
    pub dialect: Option<Dialect>,
    /// Where the inside of the text stands that was read last, if it is whole: no half of a character came before it or
    /// is left behind it.
    pub text: Option<Range<usize>>,
}

impl Reading {
    pub fn clear(&mut self) {
        self.events.clear();
        self.touches.clear();
        self.order = Order::default();
        self.dialect = None;
        self.text = None;
    }
}

/// Part of a message that belongs to a tool call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touch {
    pub call: CallId,
    pub phase: Phase,
    /// Where in the message: position of the choice (or candidate), and within it of the call.
    pub at: (u32, u32),
    /// The number of the choice that the call is in.
    pub choice: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The call begins here and isn't complete.
    Start,
    /// More of it.
    Delta,
    /// Its last part, without arguments of its own.
    End,
    /// The whole call.
    Whole,
    /// The whole call again, in a summary of the answer.
    Echo,
}

/// What a message that belongs to no call has to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Order {
    /// For everything that is held.
    #[default]
    Behind,
    /// For nothing.
    Free,
    /// For the beginning of its block.
    Block { key: u64, start: bool },
}

/// The calls of one response stream that have begun.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    open: Vec<OpenCall>,
    next: u32,
    limit: usize,
    /// High surrogates at the end of a delta, waiting for the next delta of their block.
    halves: Vec<(BlockId, u16)>,
    /// Text of the current answer has come.
    pub has_text: bool,
    /// The answer whose beginning was reported last.
    started: Option<String>,
    /// Calls of the current answer that a summary may repeat: (identifier of the item, the call).
    told: Vec<Told>,
}

#[derive(Debug, Clone)]
struct Told {
    id: String,
    call: CallId,
    arguments: u64,
}

#[derive(Debug, Clone)]
struct OpenCall {
    key: u64,
    call: CallId,
    id: String,
    name: String,
    text: String,
    half: Option<u16>,
    runs_at: RunsAt,
    free_text: bool,
    malformed: Option<&'static str>,
}

/// What is known of a call when it begins.
pub(crate) struct Begin<'a> {
    pub key: u64,
    pub id: &'a str,
    pub name: &'a str,
    pub runs_at: RunsAt,
    /// The arguments are text, not JSON.
    pub free_text: bool,
    pub at: (u32, u32),
}

impl Calls {
    /// Calls open at one time; more are ended as malformed.
    const MAX_OPEN: usize = 256;
    /// Identifiers kept for the summary of an answer.
    const MAX_TOLD: usize = 512;

    fn new(limit: usize) -> Self {
        Calls {
            open: Vec::new(),
            next: 0,
            limit,
            halves: Vec::new(),
            has_text: false,
            started: None,
            told: Vec::new(),
        }
    }

    /// The answer begins, unless it has begun: `holder` has its `id` and its `model`.
    pub fn start(&mut self, holder: Value<'_>, reading: &mut Reading) {
        self.start_as(some_text(holder, "id"), some_text(holder, "model"), reading);
    }

    /// The answer begins, unless it has begun.
    pub fn start_as(&mut self, id: Option<String>, model: Option<String>, reading: &mut Reading) {
        if self.started.is_some() && self.started.as_deref() == Some(id.as_deref().unwrap_or("")) {
            return;
        }
        self.started = Some(id.clone().unwrap_or_default());
        self.has_text = false;
        reading.events.push(Event::Start { id, model });
    }

    /// What the arguments of one call may take, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn is_open(&self, key: u64) -> bool {
        self.open.iter().any(|call| call.key == key)
    }

    /// The identifier and the name of an open call.
    pub fn open_id(&self, key: u64) -> Option<(&str, &str)> {
        let call = self.open.iter().find(|call| call.key == key)?;
        Some((&call.id, &call.name))
    }

    pub fn begin(&mut self, begin: &Begin<'_>, reading: &mut Reading) -> CallId {
        if self.is_open(begin.key) {
            // It begins anew without having ended.
            self.malform(begin.key, "the call begins twice");
            self.end(begin.key, None, reading);
        }
        if self.open.len() >= Self::MAX_OPEN
            && let Some(oldest) = self.open.first().map(|call| call.key)
        {
            self.malform(oldest, "too many calls are open");
            self.end(oldest, None, reading);
        }
        let call = CallId(self.next);
        self.next = self.next.wrapping_add(1);
        self.open.push(OpenCall {
            key: begin.key,
            call,
            id: begin.id.to_owned(),
            name: begin.name.to_owned(),
            text: String::new(),
            half: None,
            runs_at: begin.runs_at,
            free_text: begin.free_text,
            malformed: None,
        });
        reading.events.push(Event::ToolCallStart {
            call,
            name: begin.name.to_owned(),
            runs_at: begin.runs_at,
        });
        touch(
            reading,
            begin.runs_at,
            call,
            Phase::Start,
            begin.at,
            begin.key,
        );
        call
    }

    /// A piece of the arguments, a JSON string in the message.
    pub fn append(&mut self, key: u64, piece: Value<'_>, at: (u32, u32), reading: &mut Reading) {
        let limit = self.limit;
        let Some(open) = self.open.iter_mut().find(|call| call.key == key) else {
            return;
        };
        let before = open.text.len();
        if open.malformed.is_none() {
            piece.append_to(&mut open.text, &mut open.half);
        }
        if open.text.len() > limit {
            open.malformed = Some("the arguments are over the limit");
            open.text.truncate(floor_boundary(&open.text, limit));
        }
        if let Some(text) = open.text.get(before..).filter(|text| !text.is_empty()) {
            reading.events.push(Event::ToolCallDelta {
                call: open.call,
                text: text.to_owned(),
            });
        }
        touch(reading, open.runs_at, open.call, Phase::Delta, at, key);
    }

    /// Replaces what came of the arguments, where a format repeats them whole.
    pub fn set_arguments(&mut self, key: u64, text: String) {
        let limit = self.limit;
        if let Some(open) = self.open.iter_mut().find(|call| call.key == key) {
            if text.len() > limit {
                open.malformed = Some("the arguments are over the limit");
            } else if !open.text.is_empty() && open.text != text {
                open.malformed = Some("the arguments differ from their deltas");
            } else {
                open.text = text;
                open.half = None;
            }
        }
    }

    /// More of the name. Clients join the pieces, or take the last: only one reading is safe.
    pub fn append_name(&mut self, key: u64, name: &str) {
        if let Some(open) = self.open.iter_mut().find(|call| call.key == key) {
            if open.name.is_empty() {
                name.clone_into(&mut open.name);
            } else if open.name != name {
                open.malformed = Some("the name comes in several pieces");
            }
        }
    }

    pub fn set_id(&mut self, key: u64, id: &str) {
        if let Some(open) = self.open.iter_mut().find(|call| call.key == key) {
            id.clone_into(&mut open.id);
        }
    }

    pub fn malform(&mut self, key: u64, why: &'static str) {
        if let Some(open) = self.open.iter_mut().find(|call| call.key == key) {
            open.malformed.get_or_insert(why);
        }
    }

    /// `malform` for every open call whose key passes.
    pub fn malform_where(&mut self, passes: impl Fn(u64) -> bool, why: &'static str) {
        for open in self.open.iter_mut().filter(|call| passes(call.key)) {
            open.malformed.get_or_insert(why);
        }
    }

    /// The open call with this identifier: its key and its number.
    pub fn open_with_id(&self, id: &str) -> Option<(u64, CallId)> {
        let call = self.open.iter().find(|call| call.id == id)?;
        Some((call.key, call.call))
    }

    /// `append` for a piece within the part that began the call.
    pub fn append_silently(&mut self, key: u64, piece: Value<'_>, reading: &mut Reading) {
        let touches = reading.touches.len();
        self.append(key, piece, (0, 0), reading);
        reading.touches.truncate(touches);
    }

    /// A part of the call that carries nothing to be read.
    pub fn touch(&self, key: u64, phase: Phase, at: (u32, u32), reading: &mut Reading) {
        if let Some(open) = self.open.iter().find(|call| call.key == key) {
            touch(reading, open.runs_at, open.call, phase, at, key);
        }
    }

    /// The call is complete. `whole` are its arguments if the format gave them as a JSON value and
    /// no text came.
    pub fn end(
        &mut self,
        key: u64,
        whole: Option<Value<'_>>,
        reading: &mut Reading,
    ) -> Option<CallId> {
        let position = self.open.iter().position(|call| call.key == key)?;
        let open = self.open.remove(position);
        let call = open.into_call(whole);
        let number = call.call;
        reading.events.push(Event::ToolCallEnd(call));
        Some(number)
    }

    /// A call that comes whole.
    pub fn whole(
        &mut self,
        begin: &Begin<'_>,
        arguments: Arguments,
        phase: Phase,
        reading: &mut Reading,
    ) -> CallId {
        let call = CallId(self.next);
        self.next = self.next.wrapping_add(1);
        reading.events.push(Event::ToolCallStart {
            call,
            name: begin.name.to_owned(),
            runs_at: begin.runs_at,
        });
        reading.events.push(Event::ToolCallEnd(ToolCall {
            call,
            id: begin.id.to_owned(),
            name: begin.name.to_owned(),
            arguments,
            runs_at: begin.runs_at,
        }));
        touch(reading, begin.runs_at, call, phase, begin.at, begin.key);
        call
    }

    /// Ends every open call whose key passes.
    pub fn end_where(&mut self, passes: impl Fn(u64) -> bool, reading: &mut Reading) {
        while let Some(key) = self
            .open
            .iter()
            .map(|call| call.key)
            .find(|key| passes(*key))
        {
            self.end(key, None, reading);
        }
    }

    /// A piece of a text block.
    pub fn text(&mut self, block: BlockId, piece: Value<'_>, reading: &mut Reading) {
        let position = self.halves.iter().position(|(known, _)| *known == block);
        let mut half = position.map(|at| self.halves.swap_remove(at).1);
        let before = half;
        let mut text = String::new();
        piece.append_to(&mut text, &mut half);
        if let Some(half) = half
            && self.halves.len() < Self::MAX_OPEN
        {
            self.halves.push((block, half));
        }
        if !text.is_empty() {
            self.has_text = true;
            let whole = before.is_none() && half.is_none();
            reading.text = whole.then(|| piece.inner_span());
            reading.events.push(Event::TextDelta { block, text });
        }
    }

    /// Remembers under which identifier a summary may repeat the call that ended last in `reading`.
    pub fn tell(&mut self, id: &str, call: CallId, reading: &Reading) {
        let Some(Event::ToolCallEnd(ended)) = reading.events.last() else {
            return;
        };
        if !id.is_empty() && self.told.len() < Self::MAX_TOLD {
            self.told.push(Told {
                id: id.to_owned(),
                call,
                arguments: fingerprint(&ended.arguments),
            });
        }
    }

    /// The call that was told under this identifier with these arguments. With others it is not the
    /// call that was judged.
    pub fn told(&self, id: &str, arguments: &Arguments) -> Option<CallId> {
        let arguments = fingerprint(arguments);
        self.told
            .iter()
            .find(|told| told.id == id && told.arguments == arguments)
            .map(|told| told.call)
    }

    /// A new answer begins.
    pub fn restart(&mut self) {
        self.started = None;
        self.told.clear();
    }
}

fn fingerprint(arguments: &Arguments) -> u64 {
    let mut hasher = DefaultHasher::new();
    arguments.to_text().hash(&mut hasher);
    hasher.finish()
}

impl OpenCall {
    fn into_call(mut self, whole: Option<Value<'_>>) -> ToolCall {
        if self.half.take().is_some() {
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        if self.name.is_empty() {
            self.malformed.get_or_insert("the call has no name");
        }
        let arguments = match (self.malformed, whole) {
            (Some(why), _) => Arguments::Malformed {
                text: self.text,
                why,
            },
            (None, Some(value)) if self.text.is_empty() => value_arguments(value),
            (None, _) if self.free_text => Arguments::Text(self.text),
            (None, _) => text_arguments(self.text),
        };
        ToolCall {
            call: self.call,
            id: self.id,
            name: self.name,
            arguments,
            runs_at: self.runs_at,
        }
    }
}

fn touch(
    reading: &mut Reading,
    runs_at: RunsAt,
    call: CallId,
    phase: Phase,
    at: (u32, u32),
    key: u64,
) {
    if runs_at == RunsAt::Client {
        reading.touches.push(Touch {
            call,
            phase,
            at,
            // Formats with several choices keep them in the upper half of a key.
            choice: u32::try_from(key >> 32).unwrap_or(0),
        });
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

/// Arguments that came as JSON text within a string.
pub(crate) fn text_arguments(text: String) -> Arguments {
    if text.trim().is_empty() {
        return Arguments::Json(serde_json::Value::Object(serde_json::Map::new()));
    }
    let mut tape = Tape::default();
    let Ok(value) = tape.read(text.as_bytes()) else {
        return Arguments::Malformed {
            text,
            why: "the arguments are not JSON",
        };
    };
    match value_arguments(value) {
        Arguments::Malformed { why, .. } => Arguments::Malformed { text, why },
        arguments => arguments,
    }
}

/// Arguments that came as a JSON value.
pub(crate) fn value_arguments(value: Value<'_>) -> Arguments {
    let malformed = |why| Arguments::Malformed {
        text: String::from_utf8_lossy(value.raw()).into_owned(),
        why,
    };
    if value.has_duplicate_keys() {
        return malformed("the arguments have a member twice");
    }
    match serde_json::from_slice(value.raw()) {
        Ok(value) => Arguments::Json(value),
        Err(_) => malformed("the arguments are not JSON"),
    }
}

/// Reads the messages of one response, or of the responses that follow one another on a WebSocket.
#[derive(Debug, Clone)]
pub(crate) struct Assembler {
    /// What the request's path promised.
    expected: Option<Dialect>,
    pub calls: Calls,
    pub gemini: gemini::Partial,
}

impl Assembler {
    pub fn new(expected: Option<Dialect>, limit: usize) -> Self {
        Assembler {
            expected,
            calls: Calls::new(limit),
            gemini: gemini::Partial::default(),
        }
    }

    /// Reads one message. Its shape says what it is; where it has none of its own, what was
    /// expected, or what came before.
    pub fn read(&mut self, root: Value<'_>, name: &str, reading: &mut Reading) {
        let dialect = Dialect::of_message(root, name).or(self.expected);
        reading.dialect = dialect;
        match dialect {
            Some(Dialect::AnthropicMessages) => anthropic::read(&mut self.calls, root, reading),
            Some(Dialect::OpenAiChat) => openai_chat::read(&mut self.calls, root, reading),
            Some(Dialect::OpenAiResponses) => {
                openai_responses::read(&mut self.calls, root, reading);
            }
            Some(Dialect::Gemini) => {
                gemini::read(&mut self.calls, &mut self.gemini, root, reading);
            }
            Some(Dialect::BedrockConverse) => bedrock::read(&mut self.calls, root, name, reading),
            Some(Dialect::Ollama) => ollama::read(&mut self.calls, root, reading),
            Some(Dialect::CohereChat) => cohere::read(&mut self.calls, root, reading),
            Some(Dialect::Mcp) => mcp::read(root, reading),
            Some(Dialect::BedrockInvoke) | None => unknown(root.raw(), reading),
        }
        if matches!(self.expected, None | Some(Dialect::BedrockInvoke)) {
            self.expected = dialect;
        }
    }

    /// A message that is no JSON.
    pub fn read_text(&mut self, text: &[u8], reading: &mut Reading) {
        reading.dialect = self.expected;
        if text.trim_ascii() == b"[DONE]" {
            self.calls.end_where(|_| true, reading);
            reading.events.push(Event::End);
        } else {
            unknown(text, reading);
        }
    }

    /// The stream has ended: calls that are still open never will.
    pub fn finish(&mut self, reading: &mut Reading) {
        reading.dialect = self.expected;
        let keys: Vec<u64> = self.calls.open.iter().map(|call| call.key).collect();
        for key in keys {
            self.calls.malform(key, "the call never ended");
            self.calls.end(key, None, reading);
        }
    }
}

/// What has no place in the model is offered as text.
pub(crate) fn unknown(text: &[u8], reading: &mut Reading) {
    reading.events.push(Event::TextDelta {
        block: BlockId {
            choice: 0,
            index: 0,
            kind: TextKind::Unknown,
        },
        text: String::from_utf8_lossy(text).into_owned(),
    });
}

/// A member that is a number, as an index: 0 where there is none.
pub(crate) fn index(value: Value<'_>, name: &str) -> u32 {
    value
        .get(name)
        .and_then(Value::u64)
        .and_then(|number| u32::try_from(number).ok())
        .unwrap_or(0)
}

/// A member that is a string, without a copy if it can be; empty where there is none.
pub(crate) fn word<'t>(value: Value<'t>, name: &str) -> Cow<'t, str> {
    value.get(name).and_then(Value::str).unwrap_or_default()
}

/// A member that is a string; empty where there is none.
pub(crate) fn text(value: Value<'_>, name: &str) -> String {
    value.get(name).map(Value::string).unwrap_or_default()
}

/// A member that is a string that isn't empty.
pub(crate) fn some_text(value: Value<'_>, name: &str) -> Option<String> {
    Some(text(value, name)).filter(|text| !text.is_empty())
}

/// A position as it is kept in a [`Touch`].
pub(crate) fn position(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

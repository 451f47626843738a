//! Server-sent events: the `text/event-stream` parser of the WHATWG HTML standard (§9.2.6), for
//! bytes that arrive in pieces.
//!
//! ```
//! use tollgate_wire::sse::SseParser;
//!
//! let mut parser = SseParser::new();
//! let mut events = Vec::new();
//! parser.feed(b"event: greeting\nda", |event| events.push(event));
//! parser.feed(b"ta: hello\n\n", |event| events.push(event));
//! assert_eq!(events[0].event_type, "greeting");
//! assert_eq!(events[0].data, "hello");
//! ```

/// What an event may hold unless [`SseParser::with_limit`] says otherwise: 1 MiB.
pub const DEFAULT_MAX_EVENT_BYTES: usize = 1 << 20;

/// A longer `id` is ignored, because it would be copied into every event that follows.
pub const MAX_ID_BYTES: usize = 1024;

/// One dispatched event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseEvent {
    /// The `event` field, `"message"` unless given.
    pub event_type: String,
    /// The `data` fields, joined by LF.
    pub data: String,
    /// The last event ID in force when the event was dispatched (it stays in force until another
    /// one comes). `None` if there is none, or an empty `id` field took it back.
    pub id: Option<String>,
    /// The last valid `retry` field of this event, in milliseconds.
    pub retry: Option<u64>,
}

impl SseEvent {
    /// Whether this is the `[DONE]` with which OpenAI-style streams end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.data.trim() == "[DONE]"
    }

    /// The piece of answer text that this event of an LLM stream carries.
    ///
    /// Knows Anthropic Messages (`text_delta`), OpenAI Chat Completions (the first choice), OpenAI
    /// Responses (`response.output_text.delta`) and Gemini (the first candidate's text parts,
    /// joined). `None` for every other event: thinking, tool calls, `[DONE]`, data that isn't JSON.
    #[cfg(feature = "llm-text")]
    #[must_use]
    pub fn get_text(&self) -> Option<String> {
        llm_text::delta(&self.data)
    }
}

/// An incremental event-stream parser.
///
/// Events are the same however the bytes are cut. LF, CRLF and CR end a line, invalid UTF-8 becomes
/// U+FFFD, one leading byte order mark is skipped. Memory is bounded by about three times the event
/// limit (an invalid byte grows to three).
#[derive(Debug, Clone)]
pub struct SseParser {
    limit: usize,
    /// The line that has begun but not ended.
    line: Vec<u8>,
    /// The line being read has at least one byte; tells an empty line also while bytes are being
    /// dropped.
    line_has_bytes: bool,
    /// The last byte was a CR: an LF that follows belongs to the same line end.
    after_cr: bool,
    /// No line has ended yet, so a byte order mark may stand in front.
    first_line: bool,
    /// The event is over the limit: drop everything up to the next empty line.
    dropping: bool,
    event: Pending,
    last_event_id: String,
    reconnection_time: Option<u64>,
    overflowed: u64,
}

impl Default for SseParser {
    fn default() -> Self {
        Self::new()
    }
}

impl SseParser {
    /// A parser with [`DEFAULT_MAX_EVENT_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_EVENT_BYTES)
    }

    /// A parser that drops events whose `data` and `event` lines, or any single line, take more
    /// than `max_event_bytes`.
    #[must_use]
    pub fn with_limit(max_event_bytes: usize) -> Self {
        SseParser {
            limit: max_event_bytes,
            line: Vec::new(),
            line_has_bytes: false,
            after_cr: false,
            first_line: true,
            dropping: false,
            event: Pending::default(),
            last_event_id: String::new(),
            reconnection_time: None,
            overflowed: 0,
        }
    }

    /// Takes the next bytes and calls `on_event` for each event that they complete, without waiting
    /// for more.
    pub fn feed(&mut self, mut input: &[u8], mut on_event: impl FnMut(SseEvent)) {
        while let Some(event) = self.next_event(&mut input) {
            on_event(event);
        }
    }

    /// Takes bytes off `input` up to the end of the next event; all of them if no event ends there.
    pub(crate) fn next_event(&mut self, input: &mut &[u8]) -> Option<SseEvent> {
        loop {
            if self.after_cr && !input.is_empty() {
                self.after_cr = false;
                *input = input.strip_prefix(b"\n").unwrap_or(input);
            }
            let Some(end) = input.iter().position(|&b| b == b'\n' || b == b'\r') else {
                self.continue_line(std::mem::take(input));
                return None;
            };
            let (piece, rest) = input.split_at_checked(end).unwrap_or((input, &[]));
            self.after_cr = rest.first() == Some(&b'\r');
            *input = rest.get(1..).unwrap_or_default();
            if let Some(event) = self.end_line(piece) {
                return Some(event);
            }
        }
    }

    /// Ends the stream as the standard says: an event without its empty line is discarded.
    ///
    /// The parser is then ready for the stream of a reconnection: the last event ID stays in force.
    pub fn finish(&mut self) {
        *self = SseParser {
            last_event_id: std::mem::take(&mut self.last_event_id),
            reconnection_time: self.reconnection_time,
            overflowed: self.overflowed,
            ..Self::with_limit(self.limit)
        };
    }

    /// Ends the stream like [`finish`](Self::finish), but yields the event that its empty line is
    /// missing from, as many clients other than browsers do.
    pub fn flush(&mut self) -> Option<SseEvent> {
        if self.line_has_bytes {
            // Takes the fields of the line; only an empty line would dispatch.
            let _ = self.end_line(&[]);
        }
        let event = if self.dropping { None } else { self.dispatch() };
        self.finish();
        event
    }

    /// The last event ID that a client would send when it reconnects; empty if there is none.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// The reconnection time last set by a `retry` field, with or without an event, in
    /// milliseconds.
    #[must_use]
    pub fn reconnection_time(&self) -> Option<u64> {
        self.reconnection_time
    }

    /// How many events were dropped because they were over the limit.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// Keeps a piece of a line whose end hasn't come.
    fn continue_line(&mut self, piece: &[u8]) {
        self.line_has_bytes |= !piece.is_empty();
        if self.fits(piece) {
            self.line.extend_from_slice(piece);
        }
    }

    /// Handles a whole line: what was kept of it and its last piece.
    fn end_line(&mut self, piece: &[u8]) -> Option<SseEvent> {
        let fits = self.fits(piece);
        let has_bytes = std::mem::take(&mut self.line_has_bytes) || !piece.is_empty();
        let first = std::mem::take(&mut self.first_line);
        if !fits {
            if !has_bytes {
                self.dropping = false;
            }
            return None;
        }
        let mut kept = std::mem::take(&mut self.line);
        let whole = if kept.is_empty() {
            piece
        } else {
            kept.extend_from_slice(piece);
            &kept
        };
        let line = if first {
            whole.strip_prefix(b"\xef\xbb\xbf").unwrap_or(whole)
        } else {
            whole
        };
        let event = if line.is_empty() {
            self.dispatch()
        } else {
            self.event.take_line(line);
            None
        };
        kept.clear();
        self.line = kept;
        event
    }

    /// Whether the line, grown by `piece`, stays within the limit. If not, the event is given up.
    fn fits(&mut self, piece: &[u8]) -> bool {
        if self.dropping {
            return false;
        }
        let size = self
            .event
            .bytes
            .saturating_add(self.line.len())
            .saturating_add(piece.len());
        if size > self.limit {
            self.dropping = true;
            self.overflowed = self.overflowed.saturating_add(1);
            self.event = Pending::default();
            self.line = Vec::new();
        }
        !self.dropping
    }

    /// "Dispatch the event" of the standard.
    fn dispatch(&mut self) -> Option<SseEvent> {
        let event = std::mem::take(&mut self.event);
        if let Some(id) = event.id {
            self.last_event_id = id;
        }
        self.reconnection_time = event.retry.or(self.reconnection_time);
        Some(SseEvent {
            data: event.data?,
            event_type: if event.event_type.is_empty() {
                "message".to_owned()
            } else {
                event.event_type
            },
            id: Some(&self.last_event_id)
                .filter(|id| !id.is_empty())
                .cloned(),
            retry: event.retry,
        })
    }
}

/// The fields since the last empty line.
#[derive(Debug, Clone, Default)]
struct Pending {
    event_type: String,
    data: Option<String>,
    id: Option<String>,
    retry: Option<u64>,
    /// What `event_type` and `data` cost on the wire; counts against the limit.
    bytes: usize,
}

impl Pending {
    /// "Process the field" of the standard, for one non-empty line.
    fn take_line(&mut self, line: &[u8]) {
        let mut parts = line.splitn(2, |&b| b == b':');
        let name = parts.next().unwrap_or_default();
        let value = parts.next().unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                let text = String::from_utf8_lossy(value);
                match &mut self.data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(&text);
                    }
                    None => self.data = Some(text.into_owned()),
                }
                self.bytes = self.bytes.saturating_add(line.len());
            }
            b"event" => {
                self.event_type = String::from_utf8_lossy(value).into_owned();
                self.bytes = self.bytes.saturating_add(line.len());
            }
            b"id" if !value.contains(&0) && value.len() <= MAX_ID_BYTES => {
                self.id = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let number = std::str::from_utf8(value)
                    .ok()
                    .and_then(|digits| digits.parse().ok());
                self.retry = number.or(self.retry);
            }
            // Comments (an empty name) and fields that the standard doesn't know.
            _ => {}
        }
    }
}

#[cfg(feature = "llm-text")]
mod llm_text {
    use serde_json::Value;

    /// The text delta in the JSON of one event.
    pub(super) fn delta(data: &str) -> Option<String> {
        let event: Value = serde_json::from_str(data).ok()?;
        match event.get("type").and_then(Value::as_str) {
            Some("content_block_delta") => {
                let delta = event.get("delta")?;
                let is_text = delta.get("type").and_then(Value::as_str) == Some("text_delta");
                return string(delta.get("text").filter(|_| is_text));
            }
            Some("response.output_text.delta") => return string(event.get("delta")),
            _ => {}
        }
        string(event.pointer("/choices/0/delta/content")).or_else(|| gemini(&event))
    }

    fn string(value: Option<&Value>) -> Option<String> {
        value.and_then(Value::as_str).map(str::to_owned)
    }

    /// Parts marked `thought` are the model thinking, not answering.
    fn gemini(event: &Value) -> Option<String> {
        let parts = event.pointer("/candidates/0/content/parts")?.as_array()?;
        let mut texts = parts
            .iter()
            .filter(|part| part.get("thought").and_then(Value::as_bool) != Some(true))
            .filter_map(|part| part.get("text").and_then(Value::as_str))
            .peekable();
        texts.peek()?;
        Some(texts.collect())
    }
}

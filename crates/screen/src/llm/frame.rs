//! Cuts a response body into messages and keeps each one's bytes, so that it can be passed on as it
//! came or written anew with other contents.
//!
//! The splitters of [`tollgate_wire`] hand out what a message means; a gate also needs the bytes
//! that it came in.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::memchr2;
use tollgate_wire::framing::{AwsEventStreamMessage, AwsEventStreamSplitter, HeaderValue};

use super::dialect::Dialect;
use super::json::{Tape, quote};

/// How messages follow one another in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Framing {
    /// Server-sent events.
    Sse,
    /// One JSON value a line.
    Ndjson,
    /// One JSON array, whose elements are the messages.
    JsonArray,
    /// One JSON value: the whole body.
    Json,
    /// `application/vnd.amazon.eventstream`.
    AwsEventStream,
    /// Every piece that is fed is one message (WebSocket).
    Message,
}

impl Framing {
    /// What a `Content-Type` announces. The first bytes of a body have the last word, since clients
    /// don't look at this header either.
    #[must_use]
    pub fn from_content_type(value: &str) -> Option<Self> {
        let media = value.split(';').next().unwrap_or_default().trim();
        let is = |name: &str| media.eq_ignore_ascii_case(name);
        if is("text/event-stream") {
            Some(Self::Sse)
        } else if is("application/x-ndjson")
            || is("application/ndjson")
            || is("application/jsonl")
            || is("application/x-jsonlines")
        {
            Some(Self::Ndjson)
        } else if is("application/vnd.amazon.eventstream") {
            Some(Self::AwsEventStream)
        } else if is("application/json") {
            Some(Self::Json)
        } else {
            None
        }
    }

    fn detect(first: u8, announced: Option<Self>, dialect: Option<Dialect>) -> Self {
        match (first, announced) {
            (_, Some(Self::AwsEventStream)) => Self::AwsEventStream,
            (b'{', Some(Self::Ndjson)) => Self::Ndjson,
            (b'{', None) if dialect == Some(Dialect::Ollama) => Self::Ndjson,
            (b'[', _) if dialect == Some(Dialect::Gemini) => Self::JsonArray,
            (b'{' | b'[' | b'"', _) => Self::Json,
            // UTF-16 and UTF-32, which some clients would read: it isn't read here, and so refused.
            (0 | 0xFE | 0xFF, Some(Self::Json)) => Self::Json,
            (0, _)
                if matches!(
                    dialect,
                    Some(Dialect::BedrockConverse | Dialect::BedrockInvoke)
                ) =>
            {
                Self::AwsEventStream
            }
            _ => Self::Sse,
        }
    }
}

/// One message, or bytes that belong to none.
#[derive(Debug, Clone)]
pub(crate) struct Frame<'a> {
    /// The bytes it came in.
    pub raw: &'a [u8],
    /// The event's name: `event` of an SSE event, `:event-type` of an AWS message.
    pub name: Cow<'a, str>,
    /// Its contents, usually JSON. `None`: comments, blank lines, brackets.
    pub data: Option<Cow<'a, [u8]>>,
    /// How to write it anew.
    pub envelope: Envelope,
    /// The bytes can't be read as a message.
    pub fault: Option<Fault>,
}

/// How to write a message anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Envelope {
    Sse,
    /// The contents lie in the raw bytes at `start..end`; the rest stays.
    Within {
        start: usize,
        end: usize,
        place: Place,
    },
    /// An AWS message, and whether its payload wraps another in base64.
    Aws {
        wrapped: bool,
    },
}

/// What a message that isn't wrapped lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Line,
    Element,
    Body,
    Message,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A message is larger than the limit; all of it is meant.
    #[error("a message is larger than {0} bytes")]
    TooLarge(usize),
    /// The framing is broken; everything from here on is meant.
    #[error("the stream's framing is broken")]
    Broken,
    /// A message that looks like JSON can't be read.
    #[error("a message can't be read as JSON")]
    Unreadable,
}

/// The incremental splitter.
#[derive(Debug, Clone)]
pub(crate) struct Framer {
    framing: Option<Framing>,
    announced: Option<Framing>,
    dialect: Option<Dialect>,
    limit: usize,
    buf: Vec<u8>,
    /// `buf` was handed out and begins anew.
    used: bool,
    lines: Lines,
    array: Array,
    /// A message over the limit is being passed over.
    too_large: bool,
    broken: bool,
}

/// Where in an event the SSE splitter stands.
#[derive(Debug, Clone, Copy)]
struct Lines {
    /// The event has a line that isn't empty.
    seen: bool,
    /// Nothing of the current line has come.
    empty: bool,
    after_cr: bool,
    /// The last line ended in CRLF.
    crlf: bool,
    /// The event has ended but for the LF of its last CRLF.
    awaits_lf: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Array {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// Where in `raw` the element begins.
    start: Option<usize>,
    ended: bool,
}

const LINES: Lines = Lines {
    seen: false,
    empty: true,
    after_cr: false,
    crlf: false,
    awaits_lf: false,
};

impl Framer {
    const KEEP: usize = 4096;

    pub fn new(announced: Option<Framing>, dialect: Option<Dialect>, limit: usize) -> Self {
        Framer {
            framing: announced.filter(|framing| *framing == Framing::Message),
            announced,
            dialect,
            limit,
            buf: Vec::new(),
            used: false,
            lines: LINES,
            array: Array::default(),
            too_large: false,
            broken: false,
        }
    }

    /// The framing, once the first bytes have shown it.
    pub fn framing(&self) -> Option<Framing> {
        self.framing
    }

    /// Takes bytes of `input` up to the end of the next message; how many, and the message.
    pub fn next<'f>(&'f mut self, input: &'f [u8]) -> (usize, Option<Frame<'f>>) {
        if std::mem::take(&mut self.used) {
            self.buf.clear();
            self.buf.shrink_to(Self::KEEP);
        }
        if input.is_empty() {
            return (0, None);
        }
        if self.broken {
            return (input.len(), Some(fault(input, Fault::Broken)));
        }
        let framing = match self.framing {
            Some(framing) => framing,
            None => {
                let significant =
                    |b: &&u8| !matches!(**b, b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF);
                let Some(&first) = input.iter().find(significant) else {
                    return self.keep(input);
                };
                let framing = Framing::detect(first, self.announced, self.dialect);
                *self.framing.insert(framing)
            }
        };
        match framing {
            Framing::Message => (
                input.len(),
                Some(Frame {
                    raw: input,
                    name: Cow::Borrowed(""),
                    data: Some(Cow::Borrowed(input)),
                    envelope: Envelope::Within {
                        start: 0,
                        end: input.len(),
                        place: Place::Message,
                    },
                    fault: (input.len() > self.limit).then_some(Fault::TooLarge(self.limit)),
                }),
            ),
            Framing::Json => self.keep(input),
            Framing::Sse => match self.lines.event_end(input) {
                Some(end) => self.complete(input, end, sse_frame),
                None => self.keep(input),
            },
            Framing::Ndjson => match memchr2(b'\n', b'\r', input) {
                Some(end) => self.complete(input, end + 1, |raw| value_frame(raw, Place::Line)),
                None => self.keep(input),
            },
            Framing::AwsEventStream => self.next_aws(input),
            Framing::JsonArray => self.next_element(input),
        }
    }

    /// Whether a stream of events, with lines that end in LF, stands between two of them.
    pub fn is_between_events(&self) -> bool {
        let Lines {
            seen,
            empty,
            after_cr,
            crlf,
            awaits_lf,
        } = self.lines;
        self.framing == Some(Framing::Sse)
            && (self.buf.is_empty() || self.used)
            && empty
            && !(seen || after_cr || crlf || awaits_lf || self.too_large || self.broken)
    }

    /// How large a message may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Ends the body: what is left in it.
    pub fn finish(&mut self) -> Option<Frame<'_>> {
        if std::mem::take(&mut self.used) {
            self.buf.clear();
        }
        if self.buf.is_empty() || self.broken {
            return None;
        }
        self.used = true;
        Some(match self.framing {
            Some(Framing::Sse) => sse_frame(&self.buf),
            Some(Framing::Json) => value_frame(&self.buf, Place::Body),
            Some(Framing::Ndjson) => value_frame(&self.buf, Place::Line),
            Some(Framing::JsonArray) if self.array.start.is_none() => nothing(&self.buf),
            Some(Framing::AwsEventStream | Framing::JsonArray) => fault(&self.buf, Fault::Broken),
            Some(Framing::Message) | None => nothing(&self.buf),
        })
    }

    fn keep<'f>(&'f mut self, input: &'f [u8]) -> (usize, Option<Frame<'f>>) {
        if self.too_large || self.buf.len().saturating_add(input.len()) > self.limit {
            return self.overflow(input);
        }
        self.buf.extend_from_slice(input);
        (input.len(), None)
    }

    /// The message goes over the limit: what was kept and what came are handed out as a fault.
    fn overflow<'f>(&'f mut self, input: &'f [u8]) -> (usize, Option<Frame<'f>>) {
        self.too_large = true;
        self.buf.extend_from_slice(input);
        self.used = true;
        let mut frame = fault(&self.buf, Fault::TooLarge(self.limit));
        if self.framing == Some(Framing::Json) {
            frame.envelope = Envelope::Within {
                start: 0,
                end: frame.raw.len(),
                place: Place::Body,
            };
        }
        (input.len(), Some(frame))
    }

    fn complete<'f>(
        &'f mut self,
        input: &'f [u8],
        end: usize,
        frame: impl FnOnce(&'f [u8]) -> Frame<'f>,
    ) -> (usize, Option<Frame<'f>>) {
        let piece = input.get(..end).unwrap_or(input);
        let over = self.buf.len().saturating_add(piece.len()) > self.limit;
        if std::mem::take(&mut self.too_large) || over {
            self.buf.extend_from_slice(piece);
            self.used = true;
            return (end, Some(fault(&self.buf, Fault::TooLarge(self.limit))));
        }
        if self.buf.is_empty() {
            return (end, Some(frame(piece)));
        }
        self.buf.extend_from_slice(piece);
        self.used = true;
        (end, Some(frame(&self.buf)))
    }

    fn next_aws<'f>(&'f mut self, input: &'f [u8]) -> (usize, Option<Frame<'f>>) {
        let mut used = 0;
        if self.buf.len() < 4 {
            let missing = (4 - self.buf.len()).min(input.len());
            let (piece, _) = input.split_at_checked(missing).unwrap_or((input, &[]));
            self.buf.extend_from_slice(piece);
            used = missing;
        }
        let Some(total) = self
            .buf
            .first_chunk::<4>()
            .and_then(|length| usize::try_from(u32::from_be_bytes(*length)).ok())
        else {
            return (used, None);
        };
        if total < 16 || total > self.limit {
            self.broken = true;
            self.used = true;
            let fault_kind = if total < 16 {
                Fault::Broken
            } else {
                Fault::TooLarge(self.limit)
            };
            return (used, Some(fault(&self.buf, fault_kind)));
        }
        let missing = total.saturating_sub(self.buf.len());
        let rest = input.get(used..).unwrap_or_default();
        let (piece, _) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
        self.buf.extend_from_slice(piece);
        used += piece.len();
        if self.buf.len() < total {
            return (used, None);
        }
        self.used = true;
        let frame = aws_frame(&self.buf, self.limit);
        self.broken = frame.is_none();
        (
            used,
            Some(frame.unwrap_or_else(|| fault(&self.buf, Fault::Broken))),
        )
    }

    fn next_element<'f>(&'f mut self, input: &'f [u8]) -> (usize, Option<Frame<'f>>) {
        for (at, &byte) in input.iter().enumerate() {
            let array = &mut self.array;
            if array.start.is_some() {
                if array.take(byte) {
                    let start = array.start.take().unwrap_or_default();
                    return self.complete(input, at + 1, |raw| Frame {
                        raw,
                        name: Cow::Borrowed(""),
                        data: raw.get(start..).map(Cow::Borrowed),
                        envelope: Envelope::Within {
                            start,
                            end: raw.len(),
                            place: Place::Element,
                        },
                        fault: None,
                    });
                }
                continue;
            }
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'[' | b',' if !array.ended => {}
                b']' if !array.ended => {
                    array.ended = true;
                    return self.complete(input, at + 1, nothing);
                }
                b'{' if !array.ended => {
                    array.start = Some(self.buf.len() + at);
                    array.take(byte);
                }
                // A byte order mark.
                0xEF | 0xBB | 0xBF if !array.ended => {}
                _ => {
                    self.broken = true;
                    self.buf.extend_from_slice(input);
                    self.used = true;
                    return (input.len(), Some(fault(&self.buf, Fault::Broken)));
                }
            }
        }
        self.keep(input)
    }
}

impl Lines {
    /// The end of the event in `input`, behind its empty line.
    ///
    /// Where lines end in CRLF, an event ends behind its last LF, even if that has yet to come: else
    /// the bytes of an event would depend on how the stream is cut.
    fn event_end(&mut self, input: &[u8]) -> Option<usize> {
        if std::mem::take(&mut self.awaits_lf) {
            return Some(usize::from(input.first() == Some(&b'\n')));
        }
        let mut at = 0;
        loop {
            if self.after_cr {
                let next = input.get(at)?;
                self.after_cr = false;
                self.crlf = *next == b'\n';
                at += usize::from(self.crlf);
            }
            let rest = input.get(at..).unwrap_or_default();
            let Some(found) = memchr2(b'\n', b'\r', rest) else {
                self.empty &= rest.is_empty();
                return None;
            };
            let empty = self.empty && found == 0;
            self.empty = true;
            at += found;
            let cr = input.get(at) == Some(&b'\r');
            at += 1;
            if empty && std::mem::take(&mut self.seen) {
                return match input.get(at) {
                    Some(b'\n') if cr && self.crlf => Some(at + 1),
                    None if cr && self.crlf => {
                        self.awaits_lf = true;
                        None
                    }
                    _ => Some(at),
                };
            }
            self.seen |= !empty;
            self.after_cr = cr;
            self.crlf &= cr;
        }
    }
}

impl Array {
    /// Takes a byte of an element; whether it is the last.
    fn take(&mut self, byte: u8) -> bool {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

fn fault(raw: &[u8], fault: Fault) -> Frame<'_> {
    Frame {
        fault: Some(fault),
        ..nothing(raw)
    }
}

fn nothing(raw: &[u8]) -> Frame<'_> {
    Frame {
        raw,
        name: Cow::Borrowed(""),
        data: None,
        envelope: Envelope::Within {
            start: 0,
            end: raw.len(),
            place: Place::Element,
        },
        fault: None,
    }
}

/// A line, or a whole body of one value.
fn value_frame(raw: &[u8], place: Place) -> Frame<'_> {
    let start = raw
        .iter()
        .position(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | 0xEF | 0xBB | 0xBF));
    let Some(start) = start else {
        return nothing(raw);
    };
    let end = raw
        .iter()
        .rposition(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n'))
        .map_or(raw.len(), |last| last + 1);
    Frame {
        data: raw.get(start..end).map(Cow::Borrowed),
        envelope: Envelope::Within { start, end, place },
        ..nothing(raw)
    }
}

fn sse_frame(raw: &[u8]) -> Frame<'_> {
    let mut name: &[u8] = b"";
    let mut data: Option<Cow<'_, [u8]>> = None;
    for line in sse_lines(raw) {
        let line = line.text;
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => {
                let (field, value) = line.split_at_checked(colon).unwrap_or((line, &[]));
                let value = value.get(1..).unwrap_or_default();
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        match field {
            b"event" => name = value,
            b"data" => match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    let data = data.to_mut();
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            },
            _ => {}
        }
    }
    Frame {
        raw,
        name: String::from_utf8_lossy(name),
        data,
        envelope: Envelope::Sse,
        fault: None,
    }
}

struct Line<'a> {
    text: &'a [u8],
    end: &'a [u8],
}

/// The lines of an event; a byte order mark in front of them is passed over.
fn sse_lines(raw: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut rest = raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(raw);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let (text, tail) = rest.split_at_checked(length)?;
        let end = match tail {
            [b'\r', b'\n', ..] => 2,
            [_, ..] => 1,
            [] => 0,
        };
        let (end, tail) = tail.split_at_checked(end)?;
        rest = tail;
        Some(Line { text, end })
    })
}

fn aws_frame(raw: &[u8], limit: usize) -> Option<Frame<'_>> {
    let mut frame = None;
    AwsEventStreamSplitter::with_limit(limit)
        .feed(raw, |message| {
            let name = message
                .header(":event-type")
                .or_else(|| message.header(":exception-type"))
                .and_then(HeaderValue::as_str)
                .unwrap_or_default()
                .to_owned();
            let inner = (name == "chunk")
                .then(|| unwrap_chunk(message.payload))
                .flatten();
            frame = Some(Frame {
                raw,
                name: Cow::Owned(name),
                envelope: Envelope::Aws {
                    wrapped: inner.is_some(),
                },
                data: Some(Cow::Owned(
                    inner.unwrap_or_else(|| message.payload.to_vec()),
                )),
                fault: None,
            });
        })
        .ok()?;
    frame
}

/// The event that an `InvokeModelWithResponseStream` chunk carries in base64.
fn unwrap_chunk(payload: &[u8]) -> Option<Vec<u8>> {
    let mut tape = Tape::default();
    let bytes = tape.read(payload).ok()?.get("bytes")?.str()?;
    BASE64.decode(bytes.as_bytes()).ok()
}

/// The contents of a message that was read before, from its bytes.
pub(crate) fn contents(raw: &[u8], envelope: Envelope) -> Option<Cow<'_, [u8]>> {
    match envelope {
        Envelope::Sse => sse_frame(raw).data,
        Envelope::Within { start, end, .. } => raw.get(start..end).map(Cow::Borrowed),
        Envelope::Aws { .. } => aws_frame(raw, raw.len()).and_then(|frame| frame.data),
    }
}

/// A message written anew: the envelope of `raw` with other contents.
pub(crate) fn rewrite(raw: &[u8], envelope: Envelope, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len().max(data.len()) + 32);
    match envelope {
        Envelope::Within { start, end, .. } => {
            out.extend_from_slice(raw.get(..start).unwrap_or_default());
            out.extend_from_slice(data);
            out.extend_from_slice(raw.get(end..).unwrap_or_default());
        }
        Envelope::Sse => {
            let mut written = false;
            for line in sse_lines(raw) {
                let is_data = line.text == b"data" || line.text.starts_with(b"data:");
                if !is_data {
                    out.extend_from_slice(line.text);
                    out.extend_from_slice(line.end);
                } else if !std::mem::replace(&mut written, true) {
                    sse_data(data, line.end, &mut out);
                }
            }
        }
        Envelope::Aws { wrapped } => {
            let wrap = wrapped.then(|| wrap_chunk(data));
            let payload = wrap.as_deref().unwrap_or(data);
            // It was read before, so it is one whole message with headers that can be written.
            let _ = AwsEventStreamSplitter::new().feed(raw, |message| {
                let _ = AwsEventStreamMessage {
                    headers: message.headers,
                    payload,
                }
                .write_to(&mut out);
            });
        }
    }
    out
}

/// A message that wasn't there, in the style of one that was (`raw`).
pub(crate) fn write_new(raw: &[u8], envelope: Envelope, name: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + name.len() + 32);
    match envelope {
        Envelope::Within { place, .. } => {
            out.extend_from_slice(data);
            if place == Place::Line {
                out.push(b'\n');
            }
        }
        Envelope::Sse => {
            let end = sse_lines(raw)
                .map(|line| line.end)
                .find(|end| !end.is_empty())
                .unwrap_or(b"\n");
            let named = sse_lines(raw).any(|line| line.text.starts_with(b"event:"));
            if named && !name.is_empty() {
                out.extend_from_slice(b"event: ");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(end);
            }
            sse_data(data, end, &mut out);
            out.extend_from_slice(end);
        }
        Envelope::Aws { wrapped } => {
            let text = |text: &str| HeaderValue::String(text.to_owned());
            let wrap = wrapped.then(|| wrap_chunk(data));
            // Three short headers.
            let _ = AwsEventStreamMessage {
                headers: vec![
                    (
                        ":event-type".to_owned(),
                        text(if wrapped { "chunk" } else { name }),
                    ),
                    (":content-type".to_owned(), text("application/json")),
                    (":message-type".to_owned(), text("event")),
                ],
                payload: wrap.as_deref().unwrap_or(data),
            }
            .write_to(&mut out);
        }
    }
    out
}

fn sse_data(data: &[u8], end: &[u8], out: &mut Vec<u8>) {
    let end = if end.is_empty() { b"\n" } else { end };
    for line in data.split(|b| *b == b'\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.extend_from_slice(end);
    }
}

fn wrap_chunk(data: &[u8]) -> Vec<u8> {
    let mut out = b"{\"bytes\":".to_vec();
    quote(&BASE64.encode(data), &mut out);
    out.push(b'}');
    out
}

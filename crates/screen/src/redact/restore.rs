//! Puts secrets back where their placeholders come back.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;
use std::sync::Arc;

use super::text::{Leaf, Map};
use super::{OPENING, Replaced, as_text};
use crate::gate::{Output, Splice};
use crate::llm::frame::{Envelope, Framer, contents, rewrite};
use crate::llm::json::{Kind, Tape, Value, quoted};
use crate::llm::{Dialect, Framing};

/// How many secrets of one flow are put back; and how many bytes they have together, times 256. Placeholders beyond
/// stay.
pub const MAX_RESTORED: usize = 256;
const MAX_BYTES: usize = 256 << 10;
/// The largest message that is looked into; larger ones pass.
const MAX_MESSAGE: usize = 8 << 20;
/// Messages that may wait for the rest of a placeholder, and their bytes.
const MAX_WAITING: usize = 64;
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How many messages may pass a text by before the beginning of a placeholder in it counts as nothing.
const PATIENCE: usize = 16;

/// What was taken out of one flow: each placeholder and its secret.
#[derive(Clone, Default)]
pub struct Originals {
    all: Arc<Vec<(String, Arc<str>)>>,
    bytes: usize,
}

impl fmt::Debug for Originals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secrets", self.all.len())
    }
}

impl Originals {
    /// Remembers a secret. One that isn't UTF-8, or has a placeholder that another has, is not put back.
    pub fn remember(&mut self, replaced: &Replaced) {
        let Some(secret) = as_text(replaced.secret()) else {
            return;
        };
        let all = Arc::make_mut(&mut self.all);
        let placeholder = &replaced.placeholder;
        if let Some(at) = all.iter().position(|(known, _)| known == placeholder) {
            if all.get(at).is_some_and(|(_, known)| **known != *secret) {
                all.remove(at);
            }
            return;
        }
        let bytes = self.bytes + secret.len() + placeholder.len();
        if all.len() < MAX_RESTORED && bytes <= MAX_BYTES {
            self.bytes = bytes;
            all.push((placeholder.clone(), secret.into_owned().into()));
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a text has a placeholder of these.
    #[must_use]
    pub fn stand_in(&self, text: &str) -> bool {
        text.contains(OPENING) && self.all.iter().any(|(known, _)| text.contains(&**known))
    }

    /// A plain text with the secrets.
    #[must_use]
    pub fn restored(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((at, placeholder, secret)) = self.next(rest) {
            out.push_str(rest.get(..at).unwrap_or_default());
            out.push_str(secret);
            rest = rest.get(at + placeholder.len()..).unwrap_or_default();
        }
        out.push_str(rest);
        out
    }

    /// The first placeholder in a text.
    fn next<'a>(&'a self, text: &str) -> Option<(usize, &'a str, &'a str)> {
        let mut from = 0;
        while let Some(at) = text.get(from..)?.find(OPENING) {
            let at = from + at;
            let rest = text.get(at..)?;
            if let Some((placeholder, secret)) = self.at_start(rest) {
                return Some((at, placeholder, secret));
            }
            from = at + 1;
        }
        None
    }

    fn at_start(&self, text: &str) -> Option<(&str, &str)> {
        self.all
            .iter()
            .find(|(placeholder, _)| text.starts_with(&**placeholder))
            .map(|(placeholder, secret)| (&**placeholder, &**secret))
    }

    /// Whether more text could make this a placeholder.
    fn may_become(&self, text: &str) -> bool {
        !text.is_empty()
            && self.all.iter().any(|(placeholder, _)| {
                placeholder.len() > text.len() && placeholder.starts_with(text)
            })
    }

    /// Where, at the end of a text, one begins that isn't complete.
    fn tail(&self, text: &str) -> Option<usize> {
        // There is one bracket in a placeholder before its end.
        let at = text.rfind('[')?;
        text.get(at..)
            .is_some_and(|tail| self.may_become(tail))
            .then_some(at)
    }
}

/// Puts secrets back in the body of one answer, whose content coding is undone. However the body is cut, the same comes
/// out.
#[derive(Debug)]
pub struct Restorer {
    originals: Originals,
    kind: Body,
}

#[derive(Debug)]
enum Body {
    /// Bytes; what may be the beginning of a placeholder waits.
    Bytes(Vec<u8>),
    Messages(Box<Messages>),
}

#[derive(Debug)]
struct Messages {
    framer: Framer,
    tape: Tape,
    /// Messages that wait, in their order, and the number of the first.
    waiting: VecDeque<Waiting>,
    first: u64,
    bytes: usize,
    partial: Vec<Partial>,
}

#[derive(Debug)]
struct Waiting {
    raw: Vec<u8>,
    envelope: Envelope,
    edits: Splice,
}

/// The beginning of a placeholder at the end of a piece of a text.
#[derive(Debug)]
struct Partial {
    key: u64,
    nested: bool,
    text: String,
    /// Where its pieces stand: the message, and the bytes of its contents.
    pieces: Vec<(u64, Range<usize>)>,
    /// How many messages have passed it by.
    passed: usize,
}

/// A string in a message.
struct Text {
    key: u64,
    nested: bool,
    text: String,
    /// Where it stands.
    map: Map,
}

impl Restorer {
    /// For an answer with this `Content-Type`.
    #[must_use]
    pub fn new(originals: Originals, content_type: Option<&str>, dialect: Option<Dialect>) -> Self {
        let announced = content_type.and_then(Framing::from_content_type);
        let is_json = content_type.is_some_and(|media| media.contains("json"));
        let kind = match announced.is_some() || is_json || dialect.is_some() {
            true => Body::Messages(Box::new(Messages::new(Framer::new(
                announced.or(is_json.then_some(Framing::Json)),
                dialect,
                MAX_MESSAGE,
            )))),
            false => Body::Bytes(Vec::new()),
        };
        Self { originals, kind }
    }

    /// For the messages that a WebSocket brings, each fed whole: let it write into
    /// [`Messages`](crate::gate::Messages).
    #[must_use]
    pub fn for_messages(originals: Originals) -> Self {
        let framer = Framer::new(Some(Framing::Message), None, MAX_MESSAGE);
        Self {
            originals,
            kind: Body::Messages(Box::new(Messages::new(framer))),
        }
    }

    /// Knows these secrets from here on.
    pub fn know(&mut self, originals: &Originals) {
        if originals.all.len() != self.originals.all.len() {
            self.originals = originals.clone();
        }
    }

    /// Takes the next bytes, and writes what can go on.
    pub fn feed(&mut self, input: &[u8], out: &mut impl Output) {
        match &mut self.kind {
            Body::Bytes(held) => {
                held.extend_from_slice(input);
                let mut restored = Vec::with_capacity(held.len());
                let keep = restore_bytes(&self.originals, held, &mut restored);
                out.write(&restored);
                held.drain(..held.len().saturating_sub(keep));
            }
            Body::Messages(messages) => messages.feed(&self.originals, input, out),
        }
    }

    /// The body has ended: what waits goes on as it is.
    pub fn finish(&mut self, out: &mut impl Output) {
        match &mut self.kind {
            Body::Bytes(held) => out.write(&std::mem::take(held)),
            Body::Messages(messages) => messages.finish(&self.originals, out),
        }
    }
}

/// Restores in bytes, but for the last ones, which may be the beginning of a placeholder; how many.
fn restore_bytes(originals: &Originals, bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let mut rest = bytes;
    'next: while let Some(at) = memchr::memchr(b'[', rest) {
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, &[]));
        out.extend_from_slice(before);
        for (placeholder, secret) in originals.all.iter() {
            if from.starts_with(placeholder.as_bytes()) {
                out.extend_from_slice(secret.as_bytes());
                rest = from.get(placeholder.len()..).unwrap_or_default();
                continue 'next;
            }
            if placeholder.as_bytes().starts_with(from) {
                return from.len();
            }
        }
        out.push(b'[');
        rest = from.get(1..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    0
}

impl Messages {
    fn new(framer: Framer) -> Self {
        Self {
            framer,
            tape: Tape::default(),
            waiting: VecDeque::new(),
            first: 0,
            bytes: 0,
            partial: Vec::new(),
        }
    }

    fn feed(&mut self, originals: &Originals, mut input: &[u8], out: &mut impl Output) {
        while !input.is_empty() {
            let (used, frame) = self.framer.next(input);
            let message = frame.map(|frame| {
                let fault = frame.fault.is_some();
                (
                    frame.raw.to_vec(),
                    frame.envelope,
                    frame.data.filter(|_| !fault).map(|d| d.into_owned()),
                )
            });
            if let Some((raw, envelope, data)) = message {
                self.take(originals, raw, envelope, data.as_deref(), out);
            }
            input = input.get(used..).unwrap_or_default();
        }
    }

    fn finish(&mut self, originals: &Originals, out: &mut impl Output) {
        let message = self.framer.finish().map(|frame| {
            let fault = frame.fault.is_some();
            (
                frame.raw.to_vec(),
                frame.envelope,
                frame.data.filter(|_| !fault).map(|d| d.into_owned()),
            )
        });
        if let Some((raw, envelope, data)) = message {
            self.take(originals, raw, envelope, data.as_deref(), out);
        }
        self.partial.clear();
        self.release(out);
    }

    fn take(
        &mut self,
        originals: &Originals,
        raw: Vec<u8>,
        envelope: Envelope,
        data: Option<&[u8]>,
        out: &mut impl Output,
    ) {
        let looks = |data: &&[u8]| {
            !self.partial.is_empty() || data.contains(&b'[') || data.windows(2).any(|w| w == b"\\u")
        };
        let mut ends = false;
        let (texts, plain) = match data.filter(looks) {
            None => (Vec::new(), false),
            Some(data) => match self.tape.read(data) {
                Ok(root) => {
                    ends = ends_a_text(root);
                    (texts(root), false)
                }
                // Not JSON: a text of its own, as it stands.
                Err(_) => (as_text(data).map(Text::plain).into_iter().collect(), true),
            },
        };
        let number = self.first + self.waiting.len() as u64;
        self.bytes += raw.len();
        self.waiting.push_back(Waiting {
            raw,
            envelope,
            edits: Splice::default(),
        });
        for text in &texts {
            self.text(originals, number, text, plain);
        }
        if data.is_some() {
            let keys: Vec<u64> = texts.iter().map(|text| text.key).collect();
            self.partial.retain_mut(|partial| {
                partial.passed = match keys.contains(&partial.key) {
                    true => 0,
                    false => partial.passed + 1,
                };
                partial.passed <= PATIENCE
            });
        }
        if ends || self.waiting.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES {
            self.partial.clear();
        }
        self.release(out);
    }

    /// Looks at a string of a message: what goes on there, what stands in it, what begins in it.
    fn text(&mut self, originals: &Originals, number: u64, text: &Text, plain: bool) {
        let mut from = 0;
        if let Some(at) = self.partial.iter().position(|one| one.key == text.key)
            && !text.text.is_empty()
        {
            let mut partial = self.partial.swap_remove(at);
            let joined = format!("{}{}", partial.text, text.text);
            if let Some((placeholder, secret)) = originals.at_start(&joined) {
                let used = placeholder.len() - partial.text.len();
                let written = written(secret, partial.nested, plain);
                let mut pieces = partial.pieces.drain(..);
                if let Some((message, range)) = pieces.next() {
                    self.edit(message, range, written);
                }
                for (message, range) in pieces {
                    self.edit(message, range, Vec::new());
                }
                self.edit(number, text.map.to_raw(0..used), Vec::new());
                from = used;
            } else if originals.may_become(&joined) {
                partial.text = joined;
                partial
                    .pieces
                    .push((number, text.map.to_raw(0..text.text.len())));
                self.partial.push(partial);
                return;
            }
        }
        while let Some(rest) = text.text.get(from..)
            && let Some((at, placeholder, secret)) = originals.next(rest)
        {
            let range = from + at..from + at + placeholder.len();
            from = range.end;
            self.edit(
                number,
                text.map.to_raw(range),
                written(secret, text.nested, plain),
            );
        }
        let rest = text.text.get(from..).unwrap_or_default();
        if let Some(at) = originals.tail(rest) {
            let at = from + at;
            self.partial.push(Partial {
                key: text.key,
                nested: text.nested,
                text: text.text.get(at..).unwrap_or_default().to_owned(),
                pieces: vec![(number, text.map.to_raw(at..text.text.len()))],
                passed: 0,
            });
        }
    }

    fn edit(&mut self, message: u64, range: Range<usize>, with: Vec<u8>) {
        let at = usize::try_from(message.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(waiting) = self.waiting.get_mut(at) {
            waiting.edits.replace(range, with);
        }
    }

    /// Lets go of the messages before the first that may have to be changed.
    fn release(&mut self, out: &mut impl Output) {
        let pieces = self.partial.iter().filter_map(|p| p.pieces.first());
        let end = pieces.map(|(message, _)| *message).min();
        while end.is_none_or(|end| self.first < end)
            && let Some(message) = self.waiting.pop_front()
        {
            self.first += 1;
            self.bytes = self.bytes.saturating_sub(message.raw.len());
            let changed = match message.edits.is_empty() {
                true => None,
                false => {
                    contents(&message.raw, message.envelope).map(|data| message.edits.apply(&data))
                }
            };
            match changed {
                Some(data) => out.write(&rewrite(&message.raw, message.envelope, &data)),
                None => out.write(&message.raw),
            }
        }
    }
}

impl Text {
    fn plain(text: std::borrow::Cow<'_, str>) -> Self {
        Self {
            key: 0,
            nested: false,
            text: text.into_owned(),
            map: Map::plain(),
        }
    }
}

/// A secret as it is written into a string of JSON; twice over, where that string is a piece of JSON.
fn written(secret: &str, nested: bool, plain: bool) -> Vec<u8> {
    let inside = |text: &str| {
        let quoted = quoted(text);
        let inner = quoted.get(1..quoted.len().saturating_sub(1));
        inner.unwrap_or_default().to_owned()
    };
    match (plain, nested) {
        (true, _) => secret.as_bytes().to_vec(),
        (false, false) => inside(secret).into_bytes(),
        (false, true) => inside(&inside(secret)).into_bytes(),
    }
}

/// Whether a message says that a text, or the answer, has ended.
fn ends_a_text(root: Value<'_>) -> bool {
    let kind = root.get("type").and_then(Value::str).unwrap_or_default();
    [
        ".done",
        ".completed",
        ".failed",
        ".incomplete",
        "_stop",
        "-end",
    ]
    .iter()
    .any(|end| kind.ends_with(end))
}

/// The strings of a message, and which text each is a piece of.
fn texts(root: Value<'_>) -> Vec<Text> {
    let kind = root.get("type").and_then(Value::str).unwrap_or_default();
    let mut found = Vec::new();
    let mut stack: Vec<(Value<'_>, u64, &str)> = vec![(root, 0, "")];
    while let Some((value, path, name)) = stack.pop() {
        match value.kind() {
            Kind::Object => {
                let mut path = path;
                for (key, member) in value.members() {
                    // What tells one text from another.
                    let tells = [
                        "index",
                        "output_index",
                        "content_index",
                        "contentBlockIndex",
                        "item_id",
                    ];
                    if tells.iter().any(|known| key.is(known)) {
                        path = hashed(path, member.raw());
                    }
                }
                for (key, member) in value.members() {
                    let name = match key.raw() {
                        b"\"arguments\"" | b"\"partial_json\"" => "json",
                        b"\"delta\"" if kind.contains("arguments") => "json",
                        b"\"input\"" if name == "toolUse" => "json",
                        b"\"toolUse\"" => "toolUse",
                        _ => "",
                    };
                    stack.push((member, hashed(path, key.raw()), name));
                }
            }
            Kind::Array => {
                for (at, item) in value.items().enumerate() {
                    stack.push((item, hashed(path, &at.to_le_bytes()), ""));
                }
            }
            Kind::String => {
                let Some((text, map)) = Leaf::string(value, 0).into_text() else {
                    continue;
                };
                let is_json = || {
                    let mut tape = Tape::default();
                    text.starts_with(['{', '['])
                        && tape
                            .read(text.as_bytes())
                            .is_ok_and(|v| matches!(v.kind(), Kind::Object | Kind::Array))
                };
                found.push(Text {
                    key: path,
                    nested: name == "json" || is_json(),
                    text,
                    map,
                });
            }
            Kind::Scalar => {}
        }
    }
    found
}

fn hashed(path: u64, with: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (path, with).hash(&mut hasher);
    hasher.finish()
}

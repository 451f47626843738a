//! Texts in texts: the strings of JSON, the values of a form.

use std::borrow::Cow;
use std::ops::Range;

use crate::llm::json::{Kind, Tape, Value};

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// JSON; lines of JSON; else it counts as plain.
    Json,
    /// `application/x-www-form-urlencoded`, and the path and query of a URL.
    Form,
    /// Anything else.
    Plain,
}

/// A part of a text that can be replaced by itself.
#[derive(Debug)]
pub(super) struct Leaf<'t> {
    raw: Range<usize>,
    logical: Cow<'t, [u8]>,
    coding: Coding,
    map: Map,
}

/// Which bytes of a text say which bytes of what it says.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    /// Where in the text it begins.
    start: usize,
    /// Where coded units stand: logical start and length, raw start and length, both from the beginning.
    units: Vec<[u32; 4]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Plain,
    /// A string of JSON, without its quotes.
    String,
    /// A number of JSON: a string stands in its place.
    Number,
    Form,
}

/// Calls `take` with each leaf of a text, in any order.
pub(super) fn leaves(text: &[u8], shape: Shape, mut take: impl FnMut(&Leaf<'_>)) {
    match shape {
        Shape::Json => {
            if !json(text, 0, &mut take) {
                json_lines(text, &mut take);
            }
        }
        Shape::Form => {
            let mut at = 0;
            for piece in text.split(|b| matches!(b, b'&' | b'=' | b';' | b'?' | b'/' | b'#')) {
                take(&Leaf::new(piece, at, Coding::Form));
                at += piece.len() + 1;
            }
        }
        Shape::Plain => take(&Leaf::new(text, 0, Coding::Plain)),
    }
}

fn json_lines(text: &[u8], take: &mut impl FnMut(&Leaf<'_>)) {
    let mut at = 0;
    for line in text.split_inclusive(|b| *b == b'\n') {
        if !json(line, at, take) {
            take(&Leaf::new(line, at, Coding::Plain));
        }
        at += line.len();
    }
}

/// The leaves of one JSON value; false if it is none.
fn json(text: &[u8], base: usize, take: &mut impl FnMut(&Leaf<'_>)) -> bool {
    let mut tape = Tape::default();
    let start = match text.starts_with(b"\xef\xbb\xbf") {
        true => 3,
        false => 0,
    };
    let Ok(root) = tape.read(text.get(start..).unwrap_or_default()) else {
        return false;
    };
    let base = base + start;
    let mut stack = vec![root];
    while let Some(value) = stack.pop() {
        match value.kind() {
            Kind::Object => {
                for (name, member) in value.members() {
                    take(&Leaf::string(name, base));
                    stack.push(member);
                }
            }
            Kind::Array => stack.extend(value.items()),
            Kind::String => take(&Leaf::string(value, base)),
            Kind::Scalar if matches!(value.raw(), b"true" | b"false" | b"null") => {}
            Kind::Scalar => take(&Leaf::new(
                value.raw(),
                base + value.span().start,
                Coding::Number,
            )),
        }
    }
    true
}

impl<'t> Leaf<'t> {
    /// A string of JSON in a text that begins at `base`.
    pub fn string(value: Value<'t>, base: usize) -> Self {
        let raw = value.raw();
        let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        Self::new(inner, base + value.span().start + 1, Coding::String)
    }

    fn new(raw: &'t [u8], start: usize, coding: Coding) -> Self {
        let mut leaf = Self {
            raw: start..start + raw.len(),
            logical: Cow::Borrowed(raw),
            coding,
            map: Map {
                start,
                units: Vec::new(),
            },
        };
        let coded = match coding {
            Coding::String => raw.contains(&b'\\'),
            Coding::Form => raw.contains(&b'%') || raw.contains(&b'+'),
            Coding::Plain | Coding::Number => false,
        };
        if coded {
            leaf.decode(raw);
        }
        leaf
    }

    fn decode(&mut self, raw: &[u8]) {
        let mut logical = Vec::with_capacity(raw.len());
        let mut at = 0;
        while let Some(rest) = raw.get(at..).filter(|rest| !rest.is_empty()) {
            let unit = match self.coding {
                Coding::String => json_unit(rest),
                _ => form_unit(rest),
            };
            match unit {
                None => {
                    logical.extend(rest.first());
                    at += 1;
                }
                Some((length, bytes)) => {
                    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                    let lengths = [logical.len(), bytes.len(), at, length];
                    self.map.units.push(lengths.map(small));
                    logical.extend_from_slice(&bytes);
                    at += length;
                }
            }
        }
        self.logical = Cow::Owned(logical);
    }

    /// Where it stands in the text.
    pub fn range(&self) -> Range<usize> {
        self.raw.clone()
    }

    /// What it says.
    pub fn logical(&self) -> &[u8] {
        &self.logical
    }

    /// Whether it says something else than stands there.
    pub fn is_coded(&self) -> bool {
        !self.map.units.is_empty()
    }

    /// Whether it is JSON again.
    pub fn is_nested(&self) -> bool {
        self.coding == Coding::String
            && matches!(self.logical.trim_ascii_start().first(), Some(b'{' | b'['))
            && Tape::default().read(&self.logical).is_ok()
    }

    /// Bytes of the text as bytes of what it says; a unit that is cut counts as a whole.
    pub fn to_logical(&self, range: Range<usize>) -> Range<usize> {
        self.map.to_logical(range)
    }

    /// Bytes of what it says as bytes of the text.
    pub fn to_raw(&self, range: Range<usize>) -> Range<usize> {
        match self.coding {
            Coding::Number => self.raw.clone(),
            _ => self.map.to_raw(range),
        }
    }

    /// What it says as a text, and where that stands; `None` where it isn't UTF-8.
    pub fn into_text(self) -> Option<(String, Map)> {
        let text = String::from_utf8(self.logical.into_owned()).ok()?;
        Some((text, self.map))
    }

    /// A placeholder as it is written here.
    pub fn written(&self, placeholder: &str) -> String {
        match self.coding {
            Coding::Plain | Coding::String => placeholder.to_owned(),
            Coding::Number => format!("\"{placeholder}\""),
            Coding::Form => placeholder
                .replace('[', "%5B")
                .replace(']', "%5D")
                .replace(':', "%3A"),
        }
    }
}

impl Map {
    /// A text that says what stands there.
    pub fn plain() -> Self {
        Self::default()
    }

    fn to_logical(&self, range: Range<usize>) -> Range<usize> {
        let start = range.start.saturating_sub(self.start);
        let start = self.map(start, [2, 3, 0, 1], false);
        let end = range.end.saturating_sub(self.start);
        let end = self.map(end, [2, 3, 0, 1], true);
        start..end.max(start)
    }

    /// Bytes of what it says as bytes of the text.
    pub fn to_raw(&self, range: Range<usize>) -> Range<usize> {
        let start = self.map(range.start, [0, 1, 2, 3], false);
        let end = self.map(range.end, [0, 1, 2, 3], true);
        self.start + start..self.start + end.max(start)
    }

    /// A position in one text as a position in the other. Within a unit: its start, or its end.
    fn map(&self, at: usize, [start, length, to, to_length]: [usize; 4], up: bool) -> usize {
        let field =
            |unit: &[u32; 4], which: usize| unit.get(which).copied().unwrap_or_default() as usize;
        let before = self.units.partition_point(|unit| field(unit, start) < at);
        let Some(unit) = before.checked_sub(1).and_then(|last| self.units.get(last)) else {
            return at;
        };
        let inside = at - field(unit, start);
        if inside >= field(unit, length) {
            return field(unit, to) + field(unit, to_length) + inside - field(unit, length);
        }
        match up {
            true => field(unit, to) + field(unit, to_length),
            false => field(unit, to),
        }
    }
}

/// An escape of JSON: its length, and what it stands for.
fn json_unit(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    let [b'\\', escape, tail @ ..] = rest else {
        return None;
    };
    let plain = match escape {
        b'n' => b'\n',
        b't' => b'\t',
        b'r' => b'\r',
        b'b' => 8,
        b'f' => 12,
        b'u' => {
            let first = hex4(tail)?;
            let low = tail.get(4..).and_then(|rest| match rest {
                [b'\\', b'u', digits @ ..] => hex4(digits),
                _ => None,
            });
            let (length, code) = match (first, low) {
                (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) => {
                    (12, 0x1_0000 + ((first & 0x3ff) << 10) + (low & 0x3ff))
                }
                _ => (6, first),
            };
            let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
            return Some((length, c.to_string().into_bytes()));
        }
        other => *other,
    };
    Some((2, vec![plain]))
}

fn hex4(digits: &[u8]) -> Option<u32> {
    let digits = digits
        .get(..4)
        .filter(|d| d.iter().all(u8::is_ascii_hexdigit))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn form_unit(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    match rest {
        [b'+', ..] => Some((1, vec![b' '])),
        [b'%', high, low, ..] => {
            let digit = |b: &u8| char::from(*b).to_digit(16);
            let byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
            Some((3, vec![byte]))
        }
        _ => None,
    }
}

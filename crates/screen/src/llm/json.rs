//! JSON read in place: a flat list of nodes with the bytes that each one covers.
//!
//! The gate must change a few bytes of a message and leave every other byte as it came, so it needs
//! to know where a value lies, not only what it says. Reading is a little more lenient than RFC 8259
//! (`NaN`, control characters in strings, unknown escapes), because what any client's parser would
//! accept must be seen here, too. It never recurses.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use memchr::memchr2;

/// Objects and arrays nested deeper are [`JsonError::TooDeep`].
pub const MAX_DEPTH: usize = 256;

/// Why bytes are no JSON value that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// Not JSON, or JSON with something behind it.
    #[error("not one JSON value (at byte {0})")]
    Malformed(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Larger than 4 GiB.
    #[error("larger than 4 GiB")]
    TooLarge,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    String,
    /// A number, `true`, `false`, `null`, or what lenient parsers take for one.
    Scalar,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    start: u32,
    end: u32,
    /// The node behind this one and everything in it.
    next: u32,
    kind: Kind,
    /// A string with a backslash in it.
    escaped: bool,
}

/// The nodes of one text. Kept to be filled again, so that a stream of small messages allocates once.
#[derive(Debug, Clone, Default)]
pub struct Tape {
    nodes: Vec<Node>,
    open: Vec<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    node: u32,
    object: bool,
}

impl Tape {
    /// Nodes that stay allocated between texts.
    const KEEP: usize = 64;

    /// Reads one JSON value; white space may stand around it.
    ///
    /// # Errors
    /// [`JsonError`].
    pub fn read<'t>(&'t mut self, text: &'t [u8]) -> Result<Value<'t>, JsonError> {
        self.nodes.clear();
        self.nodes.shrink_to(Self::KEEP);
        self.open.clear();
        if u32::try_from(text.len()).is_err() {
            return Err(JsonError::TooLarge);
        }
        self.fill(text)?;
        Ok(Value {
            text,
            nodes: &self.nodes,
            at: 0,
        })
    }

    fn fill(&mut self, text: &[u8]) -> Result<(), JsonError> {
        let mut at = skip_space(text, 0);
        loop {
            // A value begins at `at`.
            match text.get(at).copied() {
                Some(opening @ (b'{' | b'[')) => {
                    let object = opening == b'{';
                    if self.open.len() >= MAX_DEPTH {
                        return Err(JsonError::TooDeep);
                    }
                    let node = self.push(
                        if object { Kind::Object } else { Kind::Array },
                        at,
                        at + 1,
                        false,
                    );
                    self.open.push(Open { node, object });
                    at = skip_space(text, at + 1);
                    let closing = if object { b'}' } else { b']' };
                    if text.get(at) == Some(&closing) {
                        at = self.close(at + 1);
                    } else {
                        if object {
                            at = self.key(text, at)?;
                        }
                        continue;
                    }
                }
                Some(b'"') => at = self.string(text, at)?,
                Some(_) => at = self.scalar(text, at)?,
                None => return Err(JsonError::Malformed(at)),
            }
            // A value has ended: what is around it goes on, or ends, too.
            loop {
                at = skip_space(text, at);
                let Some(open) = self.open.last().copied() else {
                    return if at == text.len() {
                        Ok(())
                    } else {
                        Err(JsonError::Malformed(at))
                    };
                };
                match text.get(at).copied() {
                    Some(b',') => {
                        at = skip_space(text, at + 1);
                        if open.object {
                            at = self.key(text, at)?;
                        }
                        break;
                    }
                    Some(b'}') if open.object => at = self.close(at + 1),
                    Some(b']') if !open.object => at = self.close(at + 1),
                    _ => return Err(JsonError::Malformed(at)),
                }
            }
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "`read` has checked that every position fits, and there are no more nodes than bytes"
    )]
    fn push(&mut self, kind: Kind, start: usize, end: usize, escaped: bool) -> u32 {
        let at = self.nodes.len() as u32;
        self.nodes.push(Node {
            start: start as u32,
            end: end as u32,
            next: at + 1,
            kind,
            escaped,
        });
        at
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "`read` has checked that every position fits, and there are no more nodes than bytes"
    )]
    fn close(&mut self, end: usize) -> usize {
        let next = self.nodes.len() as u32;
        if let Some(open) = self.open.pop()
            && let Some(node) = self.nodes.get_mut(open.node as usize)
        {
            node.end = end as u32;
            node.next = next;
        }
        end
    }

    /// A member's name and its colon; returns where the value begins.
    fn key(&mut self, text: &[u8], at: usize) -> Result<usize, JsonError> {
        if text.get(at) != Some(&b'"') {
            return Err(JsonError::Malformed(at));
        }
        let at = skip_space(text, self.string(text, at)?);
        match text.get(at) {
            Some(b':') => Ok(skip_space(text, at + 1)),
            _ => Err(JsonError::Malformed(at)),
        }
    }

    fn string(&mut self, text: &[u8], start: usize) -> Result<usize, JsonError> {
        let inside = text.get(start + 1..).unwrap_or_default();
        let (length, escaped) = string_length(inside).ok_or(JsonError::Malformed(text.len()))?;
        let end = start + 1 + length + 1;
        self.push(Kind::String, start, end, escaped);
        Ok(end)
    }

    fn scalar(&mut self, text: &[u8], start: usize) -> Result<usize, JsonError> {
        let rest = text.get(start..).unwrap_or_default();
        let length = rest
            .iter()
            .position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')))
            .unwrap_or(rest.len());
        let word = rest.get(..length).unwrap_or_default();
        let number = word
            .iter()
            .find(|b| !matches!(b, b'+' | b'-'))
            .is_some_and(|b| b.is_ascii_digit() || matches!(b, b'.' | b'I' | b'N'));
        if !number && !matches!(word, b"true" | b"false" | b"null") {
            return Err(JsonError::Malformed(start));
        }
        self.push(Kind::Scalar, start, start + length, false);
        Ok(start + length)
    }
}

/// How many bytes stand before the quote that ends a string, and whether one of them is a backslash.
pub(crate) fn string_length(inside: &[u8]) -> Option<(usize, bool)> {
    let mut at = 0;
    let mut escaped = false;
    loop {
        let rest = inside.get(at..)?;
        at += find::<b'"', b'\\'>(rest)?;
        if inside.get(at) == Some(&b'"') {
            return Some((at, escaped));
        }
        escaped = true;
        at += 2;
    }
}

/// Where the first of two bytes stands. Names are short and text is full of escapes: eight bytes at a time begin sooner
/// than a search for long stretches does.
fn find<const A: u8, const B: u8>(text: &[u8]) -> Option<usize> {
    const STRETCH: usize = 64;
    let mut at = 0;
    let mut rest = text;
    while let Some((eight, behind)) = rest.split_first_chunk::<8>() {
        if at == STRETCH {
            return memchr2(A, B, rest).map(|found| at + found);
        }
        if let Some(found) = first_of::<A, B>(*eight) {
            return Some(at + found);
        }
        at += 8;
        rest = behind;
    }
    let found = rest.iter().position(|byte| *byte == A || *byte == B)?;
    Some(at + found)
}

/// Which of eight bytes is the first of two.
fn first_of<const A: u8, const B: u8>(eight: [u8; 8]) -> Option<usize> {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = EACH << 7;
    let bytes = u64::from_le_bytes(eight);
    // The lowest bit that is set stands for the first byte that the XOR makes zero.
    let zero = |word: u64| word.wrapping_sub(EACH) & !word & HIGH;
    let found = zero(bytes ^ (EACH * u64::from(A))) | zero(bytes ^ (EACH * u64::from(B)));
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// One value of a text that has been read.
#[derive(Debug, Clone, Copy)]
pub struct Value<'t> {
    text: &'t [u8],
    nodes: &'t [Node],
    at: u32,
}

impl<'t> Value<'t> {
    fn node(self) -> Node {
        self.nodes.get(self.at as usize).copied().unwrap_or(Node {
            start: 0,
            end: 0,
            next: self.at,
            kind: Kind::Scalar,
            escaped: false,
        })
    }

    fn sibling(self, at: u32) -> Self {
        Value { at, ..self }
    }

    /// What it is.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// Whether it is an object.
    #[must_use]
    pub fn is_object(self) -> bool {
        self.kind() == Kind::Object
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(self) -> bool {
        self.raw() == b"null"
    }

    /// Whether it is `true`.
    #[must_use]
    pub fn is_true(self) -> bool {
        self.raw() == b"true"
    }

    /// The bytes of the text that it covers.
    #[must_use]
    pub fn span(self) -> Range<usize> {
        let node = self.node();
        node.start as usize..node.end as usize
    }

    /// Its bytes as they stand in the text.
    #[must_use]
    pub fn raw(self) -> &'t [u8] {
        self.text.get(self.span()).unwrap_or_default()
    }

    /// The member of this name. Of several, the **last** one: so do the JSON parsers of every
    /// official client (Python's `json` and jiter, JavaScript, Go, botocore).
    #[must_use]
    pub fn get(self, name: &str) -> Option<Value<'t>> {
        let mut found = None;
        for (key, value) in self.members() {
            if key.is(name) {
                found = Some(value);
            }
        }
        found
    }

    /// `get` along a path of names.
    #[must_use]
    pub fn path(self, names: &[&str]) -> Option<Value<'t>> {
        names.iter().try_fold(self, |value, name| value.get(name))
    }

    /// Whether an object in here, at any depth, has two members of one name.
    #[must_use]
    pub fn has_duplicate_keys(self) -> bool {
        let mut stack = vec![self];
        while let Some(value) = stack.pop() {
            if value.repeats_a_key() {
                return true;
            }
            let nested = |value: &Value<'_>| matches!(value.kind(), Kind::Object | Kind::Array);
            stack.extend(value.members().map(|(_, member)| member).filter(nested));
            stack.extend(value.items().filter(nested));
        }
        false
    }

    fn repeats_a_key(self) -> bool {
        const FEW: usize = 16;
        let keys = || self.members().map(|(key, _)| key);
        if keys().count() <= FEW && keys().all(|key| !key.node().escaped) {
            return keys()
                .enumerate()
                .any(|(at, key)| keys().take(at).any(|earlier| earlier.raw() == key.raw()));
        }
        let mut seen = HashSet::new();
        keys().any(|key| !seen.insert(key.str().unwrap_or_default()))
    }

    /// The members of an object, in order; of anything else none.
    pub fn members(self) -> impl Iterator<Item = (Value<'t>, Value<'t>)> {
        let mut children = self.children(Kind::Object);
        std::iter::from_fn(move || Some((children.next()?, children.next()?)))
    }

    /// The elements of an array, in order; of anything else none.
    pub fn items(self) -> impl Iterator<Item = Value<'t>> {
        self.children(Kind::Array)
    }

    /// The elements of an array as `items`, or of a member array.
    #[must_use]
    pub fn item(self, index: usize) -> Option<Value<'t>> {
        self.items().nth(index)
    }

    fn children(self, of: Kind) -> impl Iterator<Item = Value<'t>> {
        let node = self.node();
        let end = node.next;
        let mut at = if node.kind == of { self.at + 1 } else { end };
        std::iter::from_fn(move || {
            let child = self.sibling(at);
            if at >= end {
                return None;
            }
            at = child.node().next;
            Some(child)
        })
    }

    /// Whether it is this string.
    #[must_use]
    pub fn is(self, text: &str) -> bool {
        let node = self.node();
        if node.kind != Kind::String {
            return false;
        }
        if node.escaped {
            self.str().is_some_and(|own| own == text)
        } else {
            self.inner() == text.as_bytes()
        }
    }

    /// What stands between the quotes of a string.
    pub(crate) fn inner(self) -> &'t [u8] {
        self.text.get(self.inner_span()).unwrap_or_default()
    }

    /// Where it stands.
    pub(crate) fn inner_span(self) -> Range<usize> {
        let span = self.span();
        span.start.saturating_add(1)..span.end.saturating_sub(1)
    }

    /// The text of a string, unescaped. Invalid UTF-8 and lone surrogates become U+FFFD.
    #[must_use]
    pub fn str(self) -> Option<Cow<'t, str>> {
        let node = self.node();
        if node.kind != Kind::String {
            return None;
        }
        if !node.escaped {
            return Some(String::from_utf8_lossy(self.inner()));
        }
        let (mut text, mut half) = (String::new(), None);
        unescape(self.inner(), &mut text, &mut half);
        if half.is_some() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        Some(Cow::Owned(text))
    }

    /// The text of a string, owned; empty for anything else.
    #[must_use]
    pub fn string(self) -> String {
        self.str().unwrap_or_default().into_owned()
    }

    /// A whole number that isn't negative.
    #[must_use]
    pub fn u64(self) -> Option<u64> {
        std::str::from_utf8(self.raw()).ok()?.parse().ok()
    }

    /// Appends the text of a string that is one piece of a longer one. A high surrogate at its end
    /// waits in `half` for the low one that may begin the next piece.
    pub fn append_to(self, text: &mut String, half: &mut Option<u16>) {
        let node = self.node();
        if node.kind != Kind::String {
            return;
        }
        if !node.escaped {
            if !self.inner().is_empty() && half.take().is_some() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            text.push_str(&String::from_utf8_lossy(self.inner()));
            return;
        }
        unescape(self.inner(), text, half);
    }
}

/// Appends the text of a string's inside that is one piece of a longer text: see [`Value::append_to`].
pub(crate) fn unescape(inside: &[u8], text: &mut String, half: &mut Option<u16>) {
    if half.is_none() && unescape_plain(inside, text) {
        return;
    }
    let inside = String::from_utf8_lossy(inside);
    text.reserve(inside.len());
    let mut rest: &str = &inside;
    loop {
        let plain = find::<b'\\', b'\\'>(rest.as_bytes()).unwrap_or(rest.len());
        let (piece, after) = rest.split_at_checked(plain).unwrap_or((rest, ""));
        if !piece.is_empty() {
            if half.take().is_some() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            text.push_str(piece);
        }
        let mut after = after.chars();
        after.next();
        let Some(escape) = after.next() else {
            return;
        };
        rest = after.as_str();
        if escape == 'u'
            && let Some((digits, behind)) = rest.split_at_checked(4)
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            && let Ok(code) = u16::from_str_radix(digits, 16)
        {
            rest = behind;
            unit(code, text, half);
            continue;
        }
        if half.take().is_some() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text.push(match escape {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            '"' | '\\' | '/' => escape,
            _ => char::REPLACEMENT_CHARACTER,
        });
    }
}

/// The same if each escape is known and stands for a whole character, as nearly always. Otherwise nothing is appended.
fn unescape_plain(inside: &[u8], text: &mut String) -> bool {
    // No escape is shorter than what it stands for; eight bytes are written where fewer may count.
    let mut out = vec![0; inside.len() + 8];
    let mut to = 0;
    let mut rest = inside;
    while let Some((&first, behind)) = rest.split_first() {
        if let Some(eight) = rest.first_chunk::<8>()
            && let Some(room) = out.get_mut(to..to + 8)
        {
            room.copy_from_slice(eight);
            let plain = first_of::<b'\\', b'\\'>(*eight).unwrap_or(8);
            to += plain;
            rest = rest.get(plain..).unwrap_or_default();
            if plain == 8 {
                continue;
            }
        } else if first != b'\\' {
            if let Some(room) = out.get_mut(to) {
                *room = first;
            }
            to += 1;
            rest = behind;
            continue;
        }
        let [_, escape, tail @ ..] = rest else {
            return false;
        };
        rest = tail;
        let stands_for = match escape {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'"' | b'\\' | b'/' => char::from(*escape),
            b'u' => {
                let digits = tail.first_chunk::<4>().map(|digits| digits.map(char::from));
                let code = digits.and_then(|digits| {
                    digits
                        .into_iter()
                        .try_fold(0, |code, digit| Some(code << 4 | digit.to_digit(16)?))
                });
                // Half a character is none.
                let Some(c) = code.and_then(char::from_u32) else {
                    return false;
                };
                rest = tail.get(4..).unwrap_or_default();
                c
            }
            _ => return false,
        };
        let length = stands_for.len_utf8();
        let Some(room) = out.get_mut(to..to + length) else {
            return false;
        };
        stands_for.encode_utf8(room);
        to += length;
    }
    out.truncate(to);
    match String::from_utf8(out) {
        Ok(plain) if text.is_empty() => *text = plain,
        Ok(plain) => text.push_str(&plain),
        Err(_) => return false,
    }
    true
}

/// Appends what `\u` and four digits stand for: a character, or one half of it.
fn unit(code: u16, text: &mut String, half: &mut Option<u16>) {
    if let 0xD800..=0xDBFF = code {
        if half.replace(code).is_some() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        return;
    }
    let whole = |c: Result<char, _>| c.unwrap_or(char::REPLACEMENT_CHARACTER);
    match half.take() {
        Some(high) => text.extend(char::decode_utf16([high, code]).map(whole)),
        None => text.extend(char::decode_utf16([code]).map(whole)),
    }
}

/// Appends `text` as a JSON string, with its quotes.
pub(crate) fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 | 0x7f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                for digit in [byte >> 4, byte & 15] {
                    out.push(HEX.get(usize::from(digit)).copied().unwrap_or(b'0'));
                }
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// `text` as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len() + 2);
    quote(text, &mut out);
    // Quoting escapes ASCII only.
    String::from_utf8(out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_lie_where_they_say() {
        let text = br#" {"a": [1, {"b": "x\"y"}], "c": null, "a2": {} } "#;
        let mut tape = Tape::default();
        let root = tape.read(text).unwrap();
        let b = root.get("a").unwrap().item(1).unwrap().get("b").unwrap();
        assert_eq!(b.raw(), br#""x\"y""#);
        assert_eq!(b.str().unwrap(), "x\"y");
        assert_eq!(&text[b.span()], br#""x\"y""#);
        assert!(root.get("c").unwrap().is_null());
        assert_eq!(root.get("a2").unwrap().raw(), b"{}");
        assert_eq!(root.members().count(), 3);
    }

    #[test]
    fn the_last_of_two_equal_names_counts_however_it_is_written() {
        let mut tape = Tape::default();
        let root = tape.read(br#"{"type":"a","\u0074ype":"b"}"#).unwrap();
        assert_eq!(root.get("type").unwrap().str().unwrap(), "b");
        assert!(root.has_duplicate_keys());
    }

    #[test]
    fn a_pair_of_surrogates_may_be_split_between_two_pieces() {
        let (mut text, mut half) = (String::new(), None);
        for piece in [&br#""a\ud83d""#[..], br#""""#, br#""\ude00!""#] {
            let mut tape = Tape::default();
            tape.read(piece).unwrap().append_to(&mut text, &mut half);
        }
        assert_eq!((text.as_str(), half), ("a\u{1f600}!", None));
        let mut tape = Tape::default();
        let lone = tape.read(br#""\ud83dx\ude00""#).unwrap();
        assert_eq!(lone.str().unwrap(), "\u{fffd}x\u{fffd}");
    }

    #[test]
    fn depth_is_bounded_and_nothing_recurses() {
        let mut tape = Tape::default();
        assert_eq!(tape.read(&[b'['; 100_000]).unwrap_err(), JsonError::TooDeep);
        let deep = [vec![b'['; MAX_DEPTH], vec![b']'; MAX_DEPTH]].concat();
        assert!(tape.read(&deep).is_ok());
    }

    #[test]
    fn what_is_not_one_value_is_refused() {
        let mut tape = Tape::default();
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\"}",
            "{\"a\":1,}",
            "1 2",
            "{} x",
            "\"a",
            "\"a\\\"",
            "]",
            "{a:1}",
            "[DONE]",
            "[1 2]",
            "{\"a\":1]",
        ] {
            assert!(tape.read(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_short_way_to_unescape_leads_to_the_same(
            pieces in proptest::collection::vec(proptest::sample::select(vec![
                &b"a"[..], b"bcdefghijk", b"\\n", b"\\t", b"\\\"", b"\\\\", b"\\/", b"\\u00e9", b"\\u20aC", b"\\u0000",
                b"\\ud83d\\ude00", b"\\ud83d", b"\\ude00", b"\\q", b"\\u12", "\u{e9}".as_bytes(),
                "\u{65e5}\u{1f388}".as_bytes(), b"\xff", b"\xc3",
            ]), 0..16),
        ) {
            let inside = [&b"x"[..], &pieces.concat()].concat();
            let (mut short, mut half) = (String::from("\u{fffd}"), None);
            unescape(&inside, &mut short, &mut half);
            // With half a character before it, it goes the long way.
            let (mut long, mut other) = (String::new(), Some(0xd800));
            unescape(&inside, &mut long, &mut other);
            prop_assert_eq!((short, half), (long, other));
        }

        #[test]
        fn reads_what_serde_json_writes(text in ".{0,40}", number in any::<i64>()) {
            let value = serde_json::json!({"t": text, "n": [number, {"k": text}], "e": {}});
            let written = serde_json::to_vec(&value).unwrap();
            let mut tape = Tape::default();
            let root = tape.read(&written).unwrap();
            prop_assert_eq!(root.get("t").unwrap().string(), text.clone());
            prop_assert_eq!(root.path(&["n"]).unwrap().item(1).unwrap().get("k").unwrap().string(), text.clone());
            prop_assert_eq!(&serde_json::from_str::<String>(&quoted(&text)).unwrap(), &text);
        }

        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut tape = Tape::default();
            if let Ok(root) = tape.read(&text) {
                let _ = (root.str(), root.u64(), root.has_duplicate_keys());
            }
        }
    }
}

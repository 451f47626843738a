//! The ordered header list that every HTTP version shares.
//!
//! A [`HeaderList`] keeps what a map would lose: the order of the lines, the spelling of the names,
//! duplicates, and the exact bytes of every line nobody edited. Writing a parsed list gives back what
//! was parsed, byte for byte.
//!
//! ```
//! use tollgate_wire::headers::HeaderList;
//!
//! let mut list = HeaderList::new();
//! list.append(b"Host", b"example.com")?;
//! list.append(b"X-Trace", b"1")?;
//! list.append(b"x-trace", b"2")?;
//! assert_eq!(list.get("HOST"), Some(&b"example.com"[..]));
//! assert_eq!(list.get_all("x-trace").count(), 2);
//!
//! list.set(b"x-trace", b"3")?; // replaces the first, removes the other, keeps the spelling
//! let mut out = Vec::new();
//! list.write_to(&mut out);
//! assert_eq!(out, b"Host: example.com\r\nX-Trace: 3\r\n");
//! # Ok::<(), tollgate_wire::headers::InvalidHeader>(())
//! ```

use std::fmt;

/// Field lines in the order they came, with their original bytes.
///
/// Names compare without regard to ASCII case. Values are byte strings: latin-1 and UTF-8 are kept as
/// they are (RFC 9110 section 5.5). Two lists are equal when their sequences of (name as spelled, value) are.
///
/// The list reuses its buffers: after [`clear`](Self::clear), or when the head that owns it parses
/// the next message, no allocation takes place until a larger one arrives.
#[derive(Clone, Default)]
pub struct HeaderList {
    /// While `original` is set: the start line, every field line and the closing CRLF, as they came.
    /// Edited lines are appended behind that.
    buf: Vec<u8>,
    lines: Vec<Line>,
    known: KnownSet,
    original: Option<Original>,
    edited: bool,
    /// Bytes of `buf` that no line refers to any more.
    garbage: usize,
}

/// Why a name, a value or a part of a start line can't be written into a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidHeader {
    /// The name is empty or holds a byte that is no `tchar` (RFC 9110 section 5.6.2).
    #[error("a header name must be a non-empty token")]
    Name,
    /// The value holds CR, LF or NUL.
    #[error("a header value can't hold CR, LF or NUL")]
    Value,
    /// The method is empty or holds a byte that is no `tchar`.
    #[error("a method must be a non-empty token")]
    Method,
    /// The target is empty or holds white space or a control character.
    #[error("a request target can't be empty or hold white space or control characters")]
    Target,
    /// The status is outside 100..=999.
    #[error("a status must have three digits and be at least 100")]
    Status,
    /// The reason phrase holds CR, LF or NUL.
    #[error("a reason phrase can't hold CR, LF or NUL")]
    Reason,
    /// The list would grow over 4 GiB.
    #[error("the header list would grow over 4 GiB")]
    TooLarge,
}

impl HeaderList {
    /// An empty list. Allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes every line and keeps the capacity.
    pub fn clear(&mut self) {
        let was_used = self.original.is_some() || self.edited;
        self.reset();
        self.edited = was_used;
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Every line in order: the name as spelled, and the value without the white space around it.
    pub fn iter(
        &self,
    ) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> + DoubleEndedIterator + Clone {
        self.lines
            .iter()
            .map(|line| (line.name(&self.buf), line.value(&self.buf)))
    }

    /// The value of the first line with this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let wanted = Wanted::new(name.as_bytes());
        self.matching(wanted).next()
    }

    /// The values of all lines with this name, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.matching(Wanted::new(name.as_bytes()))
    }

    /// Whether a line with this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The index of the first line with this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        let wanted = Wanted::new(name.as_bytes());
        self.lines
            .iter()
            .position(|line| wanted.is(line, &self.buf))
    }

    /// The comma-separated elements of all lines with this name, without the white space around them;
    /// empty elements are skipped (RFC 9110 section 5.6.1.2). Quoted strings are not looked into.
    pub fn tokens<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name)
            .flat_map(elements)
            .filter(|element| !element.is_empty())
    }

    /// Whether a comma-separated element equals `token` without regard to ASCII case, as in
    /// `has_token("connection", "upgrade")`.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.tokens(name)
            .any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The length of the body, as `Content-Length` declares it (RFC 9110 section 8.6).
    ///
    /// The same number several times, in lines of their own or as in `42, 42`, is that number. `None` without the
    /// field, and where it gives no one length: for numbers that differ, for anything but digits, and for a number over
    /// `i64::MAX`, which many peers can't hold. Whoever must tell these from a missing field refuses the message by its
    /// framing ([`RequestHead::framing`](crate::http1::RequestHead::framing)).
    ///
    /// ```
    /// # use tollgate_wire::headers::HeaderList;
    /// let mut list = HeaderList::new();
    /// list.append(b"Content-Length", b"42")?;
    /// assert_eq!(list.content_length(), Some(42));
    /// list.append(b"Content-Length", b"7")?;
    /// assert_eq!(list.content_length(), None);
    /// # Ok::<(), tollgate_wire::headers::InvalidHeader>(())
    /// ```
    pub fn content_length(&self) -> Option<u64> {
        let values = self.known_values(Known::ContentLength);
        let mut lengths = values.flat_map(elements).map(decimal_length);
        let first = lengths.next()??;
        lengths.all(|length| length == Some(first)).then_some(first)
    }

    /// The bytes of one line as they stand on the wire, including CRLF.
    pub fn raw_line(&self, index: usize) -> Option<&[u8]> {
        self.lines.get(index).map(|line| line.raw(&self.buf))
    }

    /// Adds a line at the end, written as `Name: value`. White space around the value is dropped.
    ///
    /// # Errors
    /// [`InvalidHeader::Name`] or [`InvalidHeader::Value`]; the list is then unchanged.
    pub fn append(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidHeader> {
        self.insert_at(self.lines.len(), name, value)
    }

    /// Adds a line before the line at `index`, or at the end when there are fewer lines.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub fn insert_at(
        &mut self,
        index: usize,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), InvalidHeader> {
        check_name(name)?;
        check_value(value)?;
        self.make_room(name.len(), value.len())?;
        let start = self.buf.len();
        self.buf.extend_from_slice(name);
        let line = self.finish_line(start, name.len(), value, Known::of(name));
        self.lines.insert(index.min(self.lines.len()), line);
        self.known.add(line.known);
        self.edited = true;
        Ok(())
    }

    /// Gives a name exactly one value. The first line with the name keeps its place and its spelling, the
    /// others are removed; without one, a line is appended. Setting the value that is already there,
    /// once, edits nothing.
    ///
    /// # Errors
    /// As for [`append`](Self::append).
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidHeader> {
        check_name(name)?;
        check_value(value)?;
        let value = trim_ows(value);
        let wanted = Wanted::new(name);
        let Some(index) = self
            .lines
            .iter()
            .position(|line| wanted.is(line, &self.buf))
        else {
            return self.append(name, value);
        };
        self.make_room(name.len(), value.len())?;
        let Some(&first) = self.lines.get(index) else {
            return Ok(());
        };
        if first.value(&self.buf) != value {
            let start = self.buf.len();
            self.buf.extend_from_within(first.name_range());
            let line = self.finish_line(start, name.len(), value, first.known);
            if let Some(slot) = self.lines.get_mut(index) {
                *slot = line;
            }
            self.garbage += first.raw_len as usize;
            self.edited = true;
        }
        let mut at = 0;
        self.remove_lines(|line, buf| {
            let extra = at > index && wanted.is(line, buf);
            at += 1;
            extra
        });
        Ok(())
    }

    /// Removes all lines with this name and answers how many there were. The order of the rest is unchanged.
    pub fn remove(&mut self, name: &str) -> usize {
        let wanted = Wanted::new(name.as_bytes());
        if !self.known.may_hold(wanted.known) {
            return 0;
        }
        self.remove_lines(|line, buf| wanted.is(line, buf))
    }

    /// Keeps the lines for which `keep(name, value)` answers true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        self.remove_lines(|line, buf| !keep(line.name(buf), line.value(buf)));
    }

    /// Whether the list differs from what was parsed. A list that was never parsed counts as edited once
    /// a line was added.
    pub fn is_edited(&self) -> bool {
        self.edited
    }

    /// Appends all lines to `out`: untouched ones byte for byte, edited ones as `Name: value` and CRLF. The
    /// empty line that ends a head is not written.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        match self.original_block() {
            Some((_, block)) => out.extend_from_slice(block.strip_suffix(b"\r\n").unwrap_or(block)),
            None => self
                .lines
                .iter()
                .for_each(|line| out.extend_from_slice(line.raw(&self.buf))),
        }
    }
}

/// Names are shown as spelled; values of credentials are shown by length only.
impl fmt::Debug for HeaderList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for (name, value) in self.iter() {
            if is_secret(name) {
                list.entry(&format_args!(
                    "{}: [{} bytes]",
                    name.escape_ascii(),
                    value.len()
                ));
            } else {
                list.entry(&format_args!(
                    "{}: {}",
                    name.escape_ascii(),
                    value.escape_ascii()
                ));
            }
        }
        list.finish()
    }
}

impl PartialEq for HeaderList {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for HeaderList {}

// What the codecs of this crate use.
impl HeaderList {
    /// Empties the list for the next message; nothing counts as edited.
    pub(crate) fn reset(&mut self) {
        self.buf.clear();
        self.lines.clear();
        self.known = KnownSet::default();
        self.original = None;
        self.edited = false;
        self.garbage = 0;
    }

    /// Takes over a parsed block: `block` is a start line of `preamble` bytes (which may be zero), the field
    /// lines and the closing CRLF; the offsets of `lines` count from its beginning. `lines` gets the old vector.
    pub(crate) fn adopt(
        &mut self,
        block: &[u8],
        preamble: usize,
        lines: &mut Vec<Line>,
        known: KnownSet,
    ) {
        self.reset();
        self.buf.extend_from_slice(block);
        std::mem::swap(&mut self.lines, lines);
        lines.clear();
        self.known = known;
        self.original = Some(Original {
            preamble,
            len: block.len(),
        });
    }

    /// While nothing was edited: the start line and field lines that [`adopt`](Self::adopt) got, as
    /// (start line, field lines and closing CRLF).
    pub(crate) fn original_block(&self) -> Option<(&[u8], &[u8])> {
        let original = self.original.filter(|_| !self.edited)?;
        self.buf
            .get(..original.len)?
            .split_at_checked(original.preamble)
    }

    /// The whole block while nothing was edited.
    pub(crate) fn original_bytes(&self) -> Option<&[u8]> {
        let original = self.original.filter(|_| !self.edited)?;
        self.buf.get(..original.len)
    }

    /// Whether a line with this well-known name exists. Doesn't look at the lines.
    pub(crate) fn has_known(&self, known: Known) -> bool {
        self.known.may_hold(known)
    }

    /// The values of all lines with this well-known name.
    pub(crate) fn known_values(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.matching(Wanted { name: &[], known })
    }

    /// [`has_token`](Self::has_token) for a well-known name.
    pub(crate) fn known_has_token(&self, known: Known, token: &[u8]) -> bool {
        self.has_known(known)
            && self
                .known_values(known)
                .flat_map(elements)
                .any(|element| element.eq_ignore_ascii_case(token))
    }
}

impl HeaderList {
    fn matching<'a, 'n>(
        &'a self,
        wanted: Wanted<'n>,
    ) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let lines = if self.known.may_hold(wanted.known) {
            self.lines.as_slice()
        } else {
            &[]
        };
        lines
            .iter()
            .filter(move |line| wanted.is(line, &self.buf))
            .map(|line| line.value(&self.buf))
    }

    /// Makes sure that a line of these parts fits into the offsets; drops dead bytes when they outweigh the
    /// living ones, so that a list can be edited for ever without growing.
    fn make_room(&mut self, name: usize, value: usize) -> Result<(), InvalidHeader> {
        if self.garbage > COMPACT_AT && self.garbage > self.buf.len() / 2 {
            self.compact();
        }
        let end = self
            .buf
            .len()
            .checked_add(name)
            .and_then(|len| len.checked_add(value)?.checked_add(LINE_OVERHEAD));
        match end {
            Some(end) if u32::try_from(end).is_ok() => Ok(()),
            _ => Err(InvalidHeader::TooLarge),
        }
    }

    fn compact(&mut self) {
        let mut buf = Vec::with_capacity(self.buf.len().saturating_sub(self.garbage));
        for line in &mut self.lines {
            let start = buf.len() as u32;
            buf.extend_from_slice(line.raw(&self.buf));
            line.value_start = line.value_start - line.start + start;
            line.start = start;
        }
        self.buf = buf;
        self.garbage = 0;
        self.original = None;
        self.edited = true;
    }

    /// Completes the line whose name was just written at `start`. [`make_room`](Self::make_room) came before,
    /// so that the offsets fit.
    fn finish_line(&mut self, start: usize, name_len: usize, value: &[u8], known: Known) -> Line {
        let value = trim_ows(value);
        self.buf.extend_from_slice(b": ");
        let value_start = self.buf.len();
        self.buf.extend_from_slice(value);
        self.buf.extend_from_slice(b"\r\n");
        Line::new(
            start,
            name_len,
            value_start,
            value.len(),
            self.buf.len() - start,
            known,
        )
    }

    fn remove_lines(&mut self, mut gone: impl FnMut(&Line, &[u8]) -> bool) -> usize {
        let before = self.lines.len();
        let (buf, garbage) = (&self.buf, &mut self.garbage);
        let mut known = KnownSet::default();
        self.lines.retain(|line| {
            let gone = gone(line, buf);
            if gone {
                *garbage += line.raw_len as usize;
            } else {
                known.add(line.known);
            }
            !gone
        });
        self.known = known;
        let removed = before - self.lines.len();
        self.edited |= removed > 0;
        removed
    }
}

/// Dead bytes below this are never worth a copy.
const COMPACT_AT: usize = 4096;
/// `: ` and CRLF.
const LINE_OVERHEAD: usize = 4;

#[derive(Clone, Copy)]
struct Original {
    preamble: usize,
    len: usize,
}

/// Where one line stands in the buffer. The name is always at the beginning of the line.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    start: u32,
    name_len: u32,
    value_start: u32,
    value_len: u32,
    raw_len: u32,
    known: Known,
}

impl Line {
    /// All offsets count from the beginning of the buffer, and the caller has bounded it to `u32::MAX` bytes.
    pub(crate) fn new(
        start: usize,
        name_len: usize,
        value_start: usize,
        value_len: usize,
        raw_len: usize,
        known: Known,
    ) -> Self {
        Self {
            start: start as u32,
            name_len: name_len as u32,
            value_start: value_start as u32,
            value_len: value_len as u32,
            raw_len: raw_len as u32,
            known,
        }
    }

    fn name_range(&self) -> std::ops::Range<usize> {
        range(self.start, self.name_len)
    }

    fn name<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(self.name_range()).unwrap_or_default()
    }

    fn value<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(range(self.value_start, self.value_len))
            .unwrap_or_default()
    }

    fn raw<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(range(self.start, self.raw_len)).unwrap_or_default()
    }
}

fn range(start: u32, len: u32) -> std::ops::Range<usize> {
    let start = start as usize;
    start..start + len as usize
}

/// Names the codecs ask for on every message, recognised once while parsing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Known {
    Other,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentType,
    Expect,
    Host,
    ProxyAuthorization,
    ProxyConnection,
    TransferEncoding,
    Upgrade,
}

impl Known {
    pub(crate) fn of(name: &[u8]) -> Self {
        let first = name.first().map_or(0, |byte| byte | 0x20);
        let (known, spelled): (Self, &[u8]) = match (name.len(), first) {
            (4, b'h') => (Self::Host, b"host"),
            (6, b'e') => (Self::Expect, b"expect"),
            (7, b'u') => (Self::Upgrade, b"upgrade"),
            (10, b'c') => (Self::Connection, b"connection"),
            (12, b'c') => (Self::ContentType, b"content-type"),
            (14, b'c') => (Self::ContentLength, b"content-length"),
            (16, b'c') => (Self::ContentEncoding, b"content-encoding"),
            (16, b'p') => (Self::ProxyConnection, b"proxy-connection"),
            (17, b't') => (Self::TransferEncoding, b"transfer-encoding"),
            (19, b'p') => (Self::ProxyAuthorization, b"proxy-authorization"),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(spelled) {
            known
        } else {
            Self::Other
        }
    }
}

/// Which well-known names a list holds. Exact for each of them; says nothing about [`Known::Other`].
#[derive(Clone, Copy, Default)]
pub(crate) struct KnownSet(u16);

impl KnownSet {
    pub(crate) fn add(&mut self, known: Known) {
        self.0 |= 1 << known as u8;
    }

    fn may_hold(self, known: Known) -> bool {
        known == Known::Other || self.0 & (1 << known as u8) != 0
    }
}

/// A name to look for: by its class where it has one, by its bytes otherwise.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    name: &'a [u8],
    known: Known,
}

impl<'a> Wanted<'a> {
    fn new(name: &'a [u8]) -> Self {
        Self {
            name,
            known: Known::of(name),
        }
    }

    fn is(&self, line: &Line, buf: &[u8]) -> bool {
        line.known == self.known
            && (self.known != Known::Other || line.name(buf).eq_ignore_ascii_case(self.name))
    }
}

/// Splits a value at its commas and trims the elements; empty ones stay.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim_ows)
}

/// One number of `Content-Length`: digits only. Many peers hold lengths in an `i64`, and would see something else above
/// its range.
pub(crate) fn decimal_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut length: i64 = 0;
    for byte in value {
        let digit = match byte {
            b'0'..=b'9' => i64::from(byte - b'0'),
            _ => return None,
        };
        length = length.checked_mul(10)?.checked_add(digit)?;
    }
    Some(length.unsigned_abs())
}

/// Removes SP and HTAB on both sides.
pub(crate) fn trim_ows(value: &[u8]) -> &[u8] {
    let mut value = trim_ows_start(value);
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Removes SP and HTAB at the beginning.
pub(crate) fn trim_ows_start(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    value
}

/// `tchar` of RFC 9110 section 5.6.2.
#[inline]
pub(crate) fn is_tchar(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0u8;
        while byte < 128 {
            #[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
            {
                table[byte as usize] = byte.is_ascii_alphanumeric()
                    || matches!(
                        byte,
                        b'!' | b'#'
                            | b'$'
                            | b'%'
                            | b'&'
                            | b'\''
                            | b'*'
                            | b'+'
                            | b'-'
                            | b'.'
                            | b'^'
                            | b'_'
                            | b'`'
                            | b'|'
                            | b'~'
                    );
            }
            byte += 1;
        }
        table
    };
    #[expect(
        clippy::indexing_slicing,
        reason = "a u8 can't leave a table of 256; this is the hottest loop of a head"
    )]
    TABLE[byte as usize]
}

/// Whether `text` is a non-empty token.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|&byte| is_tchar(byte))
}

/// Whether `text` can stand in a field value or a reason phrase.
pub(crate) fn is_field_value(text: &[u8]) -> bool {
    !text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))
}

fn check_name(name: &[u8]) -> Result<(), InvalidHeader> {
    if is_token(name) {
        Ok(())
    } else {
        Err(InvalidHeader::Name)
    }
}

fn check_value(value: &[u8]) -> Result<(), InvalidHeader> {
    if is_field_value(value) {
        Ok(())
    } else {
        Err(InvalidHeader::Value)
    }
}

/// Names whose values never appear in a `Debug` output.
fn is_secret(name: &[u8]) -> bool {
    const SECRET: [&[u8]; 8] = [
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"x-amz-security-token",
    ];
    SECRET
        .iter()
        .any(|secret| name.eq_ignore_ascii_case(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(lines: &[(&str, &str)]) -> HeaderList {
        let mut list = HeaderList::new();
        for (name, value) in lines {
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        list
    }

    fn written(list: &HeaderList) -> String {
        let mut out = Vec::new();
        list.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn looks_up_without_regard_to_case() {
        let list = list(&[("HOST", "a"), ("x-One", "1"), ("X-one", "2")]);
        assert_eq!(list.get("host"), Some(&b"a"[..]));
        assert_eq!(list.get_all("X-ONE").collect::<Vec<_>>(), [b"1", b"2"]);
        assert!(list.contains("x-one"));
        assert!(!list.contains("x-on"));
        assert_eq!(list.position("X-One"), Some(1));
        assert_eq!(list.get("content-length"), None);
    }

    #[test]
    fn a_content_length_is_one_number() {
        let of = |values: &[&str]| {
            let lines: Vec<_> = values.iter().map(|v| ("Content-LENGTH", *v)).collect();
            list(&lines).content_length()
        };
        for (values, length) in [
            (&["0"][..], 0),
            (&["42"], 42),
            (&["  42\t"], 42),
            (&["0042"], 42),
            (&["42", "42"], 42),
            (&["42, 42"], 42),
            (&["42 ,\t42,42", "042"], 42),
            (&["9223372036854775807"], i64::MAX as u64),
        ] {
            assert_eq!(of(values), Some(length), "{values:?}");
        }
        for values in [
            &[][..],
            &[""],
            &["42", ""],
            &["42,"],
            &[",42"],
            &["42", "43"],
            &["42, 43"],
            &["42", "42, 43"],
            &["42", "x"],
            &["+42"],
            &["-0"],
            &["4 2"],
            &["42;q=1"],
            &["0x2a"],
            &["4.2"],
            &["\u{664}\u{662}"],
            &["9223372036854775808"],
            &["18446744073709551616"],
            &["99999999999999999999999999"],
        ] {
            assert_eq!(of(values), None, "{values:?}");
        }
    }

    #[test]
    fn set_keeps_place_and_spelling() {
        let mut list = list(&[("A", "1"), ("x-KEY", "1"), ("B", "2"), ("X-Key", "2")]);
        list.set(b"X-KEY", b" new ").unwrap();
        assert_eq!(written(&list), "A: 1\r\nx-KEY: new\r\nB: 2\r\n");
        list.set(b"C", b"").unwrap();
        assert_eq!(written(&list), "A: 1\r\nx-KEY: new\r\nB: 2\r\nC: \r\n");
    }

    #[test]
    fn set_removes_later_duplicates_even_when_the_first_value_stays() {
        let mut list = list(&[("Host", "a"), ("B", "2"), ("host", "b")]);
        list.set(b"host", b"a").unwrap();
        assert_eq!(written(&list), "Host: a\r\nB: 2\r\n");
        assert_eq!(list.get_all("host").count(), 1);
    }

    #[test]
    fn insert_remove_retain() {
        let mut list = list(&[("A", "1"), ("B", "2"), ("b", "3")]);
        list.insert_at(1, b"Z", b"0").unwrap();
        list.insert_at(99, b"End", b"9").unwrap();
        assert_eq!(list.remove("B"), 2);
        assert_eq!(list.remove("B"), 0);
        assert_eq!(list.remove("transfer-encoding"), 0);
        assert_eq!(written(&list), "A: 1\r\nZ: 0\r\nEnd: 9\r\n");
        list.retain(|name, _| name != b"Z");
        assert_eq!(written(&list), "A: 1\r\nEnd: 9\r\n");
        assert_eq!(list.raw_line(1), Some(&b"End: 9\r\n"[..]));
    }

    #[test]
    fn removing_a_known_name_is_seen_by_the_index() {
        let mut list = list(&[("Content-Length", "1"), ("content-length", "2")]);
        assert!(list.has_known(Known::ContentLength));
        list.retain(|_, value| value != b"1");
        assert!(list.has_known(Known::ContentLength));
        assert_eq!(list.remove("CONTENT-LENGTH"), 1);
        assert!(!list.has_known(Known::ContentLength));
        list.append(b"Content-length", b"3").unwrap();
        assert_eq!(list.get("content-length"), Some(&b"3"[..]));
    }

    #[test]
    fn tokens() {
        let list = list(&[
            ("Connection", "keep-alive, ,  Upgrade\t"),
            ("connection", "x-hop"),
        ]);
        assert!(list.has_token("connection", "upgrade"));
        assert!(list.has_token("Connection", "X-Hop"));
        assert!(!list.has_token("connection", "keep"));
        assert_eq!(list.tokens("connection").count(), 3);
        assert!(list.known_has_token(Known::Connection, b"keep-alive"));
    }

    #[test]
    fn refuses_what_would_split_a_message() {
        let mut list = HeaderList::new();
        for name in ["", "a b", "a:", "a\r\n", "ä", "a\0"] {
            assert_eq!(
                list.append(name.as_bytes(), b"v"),
                Err(InvalidHeader::Name),
                "{name:?}"
            );
            assert_eq!(
                list.set(name.as_bytes(), b"v"),
                Err(InvalidHeader::Name),
                "{name:?}"
            );
        }
        for value in ["a\r\nb: c", "a\nb", "a\rb", "\0"] {
            assert_eq!(
                list.append(b"a", value.as_bytes()),
                Err(InvalidHeader::Value),
                "{value:?}"
            );
        }
        assert!(list.is_empty() && !list.is_edited());
    }

    #[test]
    fn debug_hides_credentials() {
        let list = list(&[
            ("Authorization", "Bearer s3cret"),
            ("set-cookie", "s3cret"),
            ("X-Api-Key", "s3cret"),
            ("A", "b"),
        ]);
        let shown = format!("{list:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(
            shown.contains("Authorization: [13 bytes]") && shown.contains("A: b"),
            "{shown}"
        );
    }

    #[test]
    fn edited_for_ever_stays_small() {
        let mut list = list(&[("A", "first"), ("B", "second"), ("Host", "h")]);
        for n in 0..20_000 {
            list.set(b"B", format!("{n}").as_bytes()).unwrap();
        }
        assert!(list.buf.len() < 4 * COMPACT_AT, "{}", list.buf.len());
        assert_eq!(written(&list), "A: first\r\nB: 19999\r\nHost: h\r\n");
        assert_eq!(list.get("host"), Some(&b"h"[..]));
    }

    #[test]
    fn equality_is_by_name_and_value() {
        assert_eq!(list(&[("A", "1")]), list(&[("A", " 1 ")]));
        assert_ne!(list(&[("A", "1")]), list(&[("a", "1")]));
        assert_ne!(list(&[("A", "1")]), list(&[("A", "1"), ("A", "1")]));
    }

    #[test]
    fn tchar_table() {
        let tchars = (0..=255u8).filter(|&byte| is_tchar(byte)).count();
        assert_eq!(tchars, 62 + 15);
        assert!(!is_tchar(b':') && !is_tchar(b' ') && !is_tchar(0x80));
    }
}

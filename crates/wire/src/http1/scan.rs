//! One pass over a head: finds its lines and its end, and refuses what is ambiguous.
//!
//! Everything is decided from left to right, at the first byte that can decide it, so that it makes no difference in
//! which pieces a head arrives.

use super::{Anomaly, HeadLimits, Version};
use crate::headers::{HeaderList, Known, KnownSet, Line, is_tchar, trim_ows, trim_ows_start};

/// Empty lines skipped before a request line (RFC 9112 section 2.2 asks for at least one).
const MAX_EMPTY_LINES: usize = 4;
/// Keeps every offset far inside a `u32`.
const MAX_HEAD: usize = 1 << 30;

/// What stands before the field lines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    Response,
    /// Nothing: a trailer section.
    Trailers,
}

/// A start line that has been read.
#[derive(Clone, Copy, Default)]
pub(crate) struct StartLine {
    /// Bytes including CRLF.
    pub len: usize,
    pub version: Version,
    /// Request: length of the method. Response: the status.
    pub detail: usize,
}

/// Reads a head that may arrive in pieces. It stops at the first byte that isn't there yet and goes on from there:
/// no byte is looked at twice, but for a few at the point where it stopped.
#[derive(Clone, Default)]
pub(crate) struct HeadScan {
    /// Bytes of empty lines before the head. All other offsets count from the beginning of the head.
    skipped: usize,
    part: Part,
    /// Up to here the head has been read.
    checked: usize,
    start: StartLine,
    /// Where the current field line begins.
    line: usize,
    lines: Vec<Line>,
    known: KnownSet,
}

/// What stands at [`HeadScan::checked`].
#[derive(Clone, Copy, Default)]
enum Part {
    /// Nothing was read yet but empty lines.
    #[default]
    Begin,
    Method,
    Target,
    /// The version of a request, and its line end.
    Version,
    /// Version and status of a response.
    Status,
    Reason,
    /// A field line up to its colon, or the empty line.
    Name,
    Value {
        name_len: usize,
    },
}

/// What reading a part came to.
enum Step {
    /// The next part begins at [`HeadScan::checked`].
    Next(Part),
    /// The head ends behind the empty line at [`HeadScan::checked`].
    End,
    /// More bytes are needed.
    Wait,
}

impl HeadScan {
    /// Forgets a message that was begun.
    pub(crate) fn restart(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        *self = Self {
            lines,
            ..Self::default()
        };
    }

    /// Reads on. Answers the length of the head including its empty line, or `None` for more bytes. After an
    /// error, the next call begins a new message.
    pub(crate) fn advance(
        &mut self,
        kind: Kind,
        input: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<usize>, Anomaly> {
        if input.len() < self.skipped + self.checked {
            self.restart();
        }
        let limit = limits.bytes.min(MAX_HEAD);
        let view = input.get(..limit).unwrap_or(input);
        let result = match self.read(kind, view, limits.lines) {
            Ok(None) if view.len() == limit => Err(Anomaly::HeadTooLarge),
            other => other,
        };
        if result.is_err() {
            self.restart();
        }
        result
    }

    /// Moves a complete head of `len` bytes, as [`advance`](Self::advance) counted them, into `headers`, and gets
    /// ready for the next one. Answers the start line and its bytes.
    pub(crate) fn finish<'a>(
        &mut self,
        input: &'a [u8],
        len: usize,
        headers: &mut HeaderList,
    ) -> (StartLine, &'a [u8]) {
        let head = input.get(self.skipped..len).unwrap_or_default();
        let start = self.start;
        headers.adopt(head, start.len, &mut self.lines, self.known);
        self.restart();
        (start, head.get(..start.len).unwrap_or_default())
    }

    fn read(
        &mut self,
        kind: Kind,
        view: &[u8],
        max_lines: usize,
    ) -> Result<Option<usize>, Anomaly> {
        if matches!(self.part, Part::Begin) {
            match self.begin(kind, view)? {
                Some(part) => self.part = part,
                None => return Ok(None),
            }
        }
        let head = view.get(self.skipped..).unwrap_or_default();
        loop {
            let step = match self.part {
                Part::Begin => Step::Wait,
                Part::Method => self.method(head)?,
                Part::Target => self.target(head)?,
                Part::Version => self.version(head)?,
                Part::Status => self.status(head)?,
                Part::Reason => self.reason(head)?,
                Part::Name => self.name(head)?,
                Part::Value { name_len } => self.value(head, name_len, max_lines)?,
            };
            match step {
                Step::Next(part) => self.part = part,
                Step::End => return Ok(Some(self.skipped + self.checked + 2)),
                Step::Wait => return Ok(None),
            }
        }
    }

    /// Skips empty lines before a request. `None` until the first byte of the head is there.
    fn begin(&mut self, kind: Kind, view: &[u8]) -> Result<Option<Part>, Anomaly> {
        match kind {
            Kind::Trailers => return Ok(Some(Part::Name)),
            Kind::Response => return Ok(Some(Part::Status)),
            Kind::Request => {}
        }
        loop {
            match view.get(self.skipped..).unwrap_or_default() {
                [] | [b'\r'] => return Ok(None),
                [b'\r', b'\n', ..] if self.skipped < 2 * MAX_EMPTY_LINES => self.skipped += 2,
                [b'\r', b'\n', ..] => return Err(Anomaly::LeadingEmptyLines),
                [b'\r', ..] => return Err(Anomaly::BareCr),
                _ => return Ok(Some(Part::Method)),
            }
        }
    }

    // A request line is `method SP request-target SP HTTP-version CRLF`, with single spaces.

    fn method(&mut self, head: &[u8]) -> Result<Step, Anomaly> {
        let end = self.skip_to(head, |rest| rest.iter().position(|&byte| !is_tchar(byte)));
        match end {
            [] => Ok(Step::Wait),
            [b' ', ..] if self.checked > 0 => {
                self.start.detail = self.checked;
                self.checked += 1;
                Ok(Step::Next(Part::Target))
            }
            [b'\r', ..] if self.checked > 0 => cut_short(end, Anomaly::InvalidTarget),
            [b'\n', ..] => Err(Anomaly::BareLf),
            _ => Err(Anomaly::InvalidMethod),
        }
    }

    fn target(&mut self, head: &[u8]) -> Result<Step, Anomaly> {
        let end = self.skip_to(head, find_control::<0x21>);
        let is_empty = self.checked == self.start.detail + 1;
        match end {
            [] => Ok(Step::Wait),
            [b' ', ..] if !is_empty => {
                self.checked += 1;
                Ok(Step::Next(Part::Version))
            }
            [b'\r', ..] if !is_empty => cut_short(end, Anomaly::InvalidVersion),
            [b'\n', ..] => Err(Anomaly::BareLf),
            _ => Err(Anomaly::InvalidTarget),
        }
    }

    fn version(&mut self, head: &[u8]) -> Result<Step, Anomaly> {
        let text = head.get(self.checked..).unwrap_or_default();
        let Some((version, rest)) = read_version(text)? else {
            return Ok(Step::Wait);
        };
        match rest {
            [] | [b'\r'] => Ok(Step::Wait),
            [b'\r', b'\n', ..] => self.end_start_line(version?, self.checked + VERSION_LEN),
            [b'\r', ..] => Err(Anomaly::BareCr),
            [b'\n', ..] => Err(Anomaly::BareLf),
            _ => Err(Anomaly::InvalidVersion),
        }
    }

    // A status line is `HTTP-version SP status-code [SP [reason-phrase]] CRLF`.

    fn status(&mut self, head: &[u8]) -> Result<Step, Anomaly> {
        let Some((version, rest)) = read_version(head)? else {
            return Ok(Step::Wait);
        };
        let digits = match rest {
            [] => return Ok(Step::Wait),
            [b' ', digits @ ..] => digits,
            [b'\n', ..] => return Err(Anomaly::BareLf),
            [b'\r', ..] => return cut_short(rest, Anomaly::InvalidStatus),
            _ => return Err(Anomaly::InvalidVersion),
        };
        self.start.version = version?;
        let mut status = 0;
        for place in 0..3 {
            status = match digits.get(place) {
                None => return Ok(Step::Wait),
                Some(b'0') if place == 0 => return Err(Anomaly::InvalidStatus),
                Some(digit @ b'0'..=b'9') => status * 10 + usize::from(digit - b'0'),
                Some(b'\n') => return Err(Anomaly::BareLf),
                Some(_) => return Err(Anomaly::InvalidStatus),
            };
        }
        match digits.get(3) {
            None => return Ok(Step::Wait),
            Some(b' ' | b'\r' | b'\n') => {}
            Some(_) => return Err(Anomaly::InvalidStatus),
        }
        self.start.detail = status;
        self.checked = VERSION_LEN + 4;
        Ok(Step::Next(Part::Reason))
    }

    fn reason(&mut self, head: &[u8]) -> Result<Step, Anomaly> {
        if self.skip_text(head, Anomaly::InvalidReason)? {
            self.end_start_line(self.start.version, self.checked)
        } else {
            Ok(Step::Wait)
        }
    }

    /// Ends the start line, whose CRLF stands at `end`.
    fn end_start_line(&mut self, version: Version, end: usize) -> Result<Step, Anomaly> {
        self.start.version = version;
        self.start.len = end + 2;
        self.line = end + 2;
        self.checked = end + 2;
        Ok(Step::Next(Part::Name))
    }

    // A field line is `name ":" OWS value OWS CRLF`.

    #[inline]
    fn name(&mut self, head: &[u8]) -> Result<Step, Anomaly> {
        let end = self.skip_to(head, |rest| rest.iter().position(|&byte| !is_tchar(byte)));
        let name_len = self.checked - self.line;
        match end {
            [] => Ok(Step::Wait),
            [b':', ..] if name_len > 0 => {
                self.checked += 1;
                Ok(Step::Next(Part::Value { name_len }))
            }
            [b'\r', b'\n', ..] if name_len == 0 => Ok(Step::End),
            [b'\r', ..] => cut_short(end, Anomaly::MissingColon),
            [b'\n', ..] => Err(Anomaly::BareLf),
            [b':', ..] => Err(Anomaly::EmptyHeaderName),
            [b' ' | b'\t', ..] if name_len > 0 => Err(Anomaly::SpaceBeforeColon),
            [b' ' | b'\t', ..] if self.lines.is_empty() => Err(Anomaly::SpaceBeforeFirstHeader),
            [b' ' | b'\t', ..] => Err(Anomaly::ObsFold),
            _ => Err(Anomaly::InvalidHeaderName),
        }
    }

    #[inline]
    fn value(&mut self, head: &[u8], name_len: usize, max_lines: usize) -> Result<Step, Anomaly> {
        if !self.skip_text(head, Anomaly::InvalidHeaderValue)? {
            return Ok(Step::Wait);
        }
        if self.lines.len() >= max_lines {
            return Err(Anomaly::TooManyHeaders);
        }
        let start = self.line + name_len + 1;
        let value = head.get(start..self.checked).unwrap_or_default();
        let leading = value.len() - trim_ows_start(value).len();
        let trimmed = trim_ows(value);
        let end = self.checked + 2;
        let name = head.get(self.line..self.line + name_len);
        let known = name.map_or(Known::Other, Known::of);
        self.lines.push(Line::new(
            self.line,
            name_len,
            start + leading,
            trimmed.len(),
            end - self.line,
            known,
        ));
        self.known.add(known);
        self.line = end;
        self.checked = end;
        Ok(Step::Next(Part::Name))
    }

    /// Moves on to the byte that `find` answers, or to the end of what is there; answers what begins there.
    #[inline]
    fn skip_to<'a>(&mut self, head: &'a [u8], find: impl Fn(&[u8]) -> Option<usize>) -> &'a [u8] {
        let rest = head.get(self.checked..).unwrap_or_default();
        self.checked += find(rest).unwrap_or(rest.len());
        head.get(self.checked..).unwrap_or_default()
    }

    /// Moves on to the CRLF that ends a text, and answers whether it is there. NUL in the text is answered with `nul`.
    #[inline]
    fn skip_text(&mut self, head: &[u8], nul: Anomaly) -> Result<bool, Anomaly> {
        loop {
            match self.skip_to(head, find_control::<0x20>) {
                [b'\r', b'\n', ..] => return Ok(true),
                [] | [b'\r'] => return Ok(false),
                [b'\r', ..] => return Err(Anomaly::BareCr),
                [b'\n', ..] => return Err(Anomaly::BareLf),
                [0, ..] => return Err(nul),
                // HTAB, and controls that mean nothing to anybody.
                _ => self.checked += 1,
            }
        }
    }
}

/// Bytes of `HTTP/1.1`.
const VERSION_LEN: usize = 8;

/// `end` begins with a CR before its line had all its parts: `anomaly`, unless the line end itself is broken.
fn cut_short(end: &[u8], anomaly: Anomaly) -> Result<Step, Anomaly> {
    match end.get(1) {
        None => Ok(Step::Wait),
        Some(b'\n') => Err(anomaly),
        Some(_) => Err(Anomaly::BareCr),
    }
}

/// A version, or that it isn't supported: what stands behind it may be worse.
type SupportedVersion = Result<Version, Anomaly>;

/// Reads `HTTP/` digit `.` digit and answers what follows, or `None` for more bytes.
fn read_version(text: &[u8]) -> Result<Option<(SupportedVersion, &[u8])>, Anomaly> {
    const HTTP11: &[u8; VERSION_LEN] = b"HTTP/1.1";
    if let Some(rest) = text.strip_prefix(HTTP11) {
        return Ok(Some((Ok(Version::Http11), rest)));
    }
    // Something else than HTTP is refused at its first wrong byte, it may never send a line end.
    for (&byte, &expected) in text.iter().zip(HTTP11) {
        let fits = if expected == b'1' {
            byte.is_ascii_digit()
        } else {
            byte == expected
        };
        match byte {
            _ if fits => {}
            b'\n' => return Err(Anomaly::BareLf),
            _ => return Err(Anomaly::InvalidVersion),
        }
    }
    let Some((version, rest)) = text.split_at_checked(VERSION_LEN) else {
        return Ok(None);
    };
    let version = match version {
        b"HTTP/1.0" => Ok(Version::Http10),
        _ => Err(Anomaly::UnsupportedVersion),
    };
    Ok(Some((version, rest)))
}

/// The first byte below `MIN`, or DEL. Eight bytes at a time.
#[inline]
fn find_control<const MIN: u8>(text: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let (words, tail) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The classic "has a byte less than": a borrow can only spoil bytes above the first hit, so that the lowest
        // flag is right.
        let low = word.wrapping_sub(ONES * u64::from(MIN)) & !word & HIGH;
        let del = word ^ (ONES * 0x7F);
        let del = del.wrapping_sub(ONES) & !del & HIGH;
        let hits = low | del;
        if hits != 0 {
            return Some(index * 8 + hits.trailing_zeros() as usize / 8);
        }
    }
    let at = tail.iter().position(|&byte| byte < MIN || byte == 0x7F)?;
    Some(words.len() * 8 + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn find_control_is_position(text in prop::collection::vec(prop_oneof![3 => 0x20u8..=0xFF, 1 => any::<u8>()], 0..40)) {
            prop_assert_eq!(find_control::<0x20>(&text), text.iter().position(|&b| b < 0x20 || b == 0x7F));
            prop_assert_eq!(find_control::<0x21>(&text), text.iter().position(|&b| b < 0x21 || b == 0x7F));
        }
    }

    #[test]
    fn find_control_at_every_place_and_value() {
        for len in 0..20 {
            for at in 0..len {
                for byte in 0..=255u8 {
                    let mut text = vec![b'a'; len];
                    text[at] = byte;
                    let expected = (byte < 0x21 || byte == 0x7F).then_some(at);
                    assert_eq!(
                        find_control::<0x21>(&text),
                        expected,
                        "{byte} at {at} of {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn no_byte_is_read_twice() {
        let limits = HeadLimits::default();
        let input = b"POST /target HTTP/1.1\r\nName: a long value\r\n\r\n";
        let mut scan = HeadScan::default();
        for len in 0..input.len() {
            assert_eq!(
                scan.advance(Kind::Request, &input[..len], &limits),
                Ok(None)
            );
            let lag = len - scan.checked;
            assert!(lag <= VERSION_LEN + 1, "{lag} bytes behind at {len}");
        }
    }
}

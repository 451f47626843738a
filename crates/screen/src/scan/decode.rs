//! Encoded text: found wherever it stands, opened, and scanned again. Bounded in depth and bytes.

use std::ops::Range;

use flate2::{Decompress, FlushDecompress, Status};

use super::catalogue::own;
use super::classes::{in_run, next_number, next_run};
use super::command;
use super::finding::{Confidence, Finding, Kind, Range64, Severity};
use super::scanner::{MAX_DEPTH, Memo, Pass, Report, Window, redact};
use super::verify::{self, Base58, base64_digit, hex_digit};
use crate::shell::Script;

/// A shorter run of an encoding's alphabet holds nothing worth opening.
const MIN_RUN: usize = 16;
/// How far behind the block a run is followed.
const RUN_BEHIND: usize = 256;
/// How far ahead of the block a run is followed.
const RUN_AHEAD: usize = 768;
/// How far a number is followed to either side, with its separators.
const MAX_NUMBER: usize = 48;
/// So many printable bytes in a row make decoded base64 text.
const MIN_TEXT: usize = 12;
/// Most bytes that one compressed stretch may become.
const MAX_INFLATED: usize = 32 << 10;
/// What all compressed stretches of a stream may become: this, and as much as was fed.
const INFLATE_CREDIT: u64 = 64 << 10;

impl Pass<'_> {
    /// Opens an encoded stretch: scans what it decodes to.
    pub(super) fn rescan(
        &mut self,
        window: Window<'_>,
        range: Range<usize>,
        decoded: &[u8],
        how: &'static str,
    ) {
        if self.depth >= MAX_DEPTH || decoded.len() < 4 {
            return;
        }
        let (origin, mut via) = match &self.origin {
            Some((origin, via)) => (*origin, via.clone()),
            None => (
                Range64 {
                    start: window.base + range.start as u64,
                    end: window.base + range.end as u64,
                },
                Vec::new(),
            ),
        };
        via.push(how);
        let mut inner: Vec<Finding> = Vec::new();
        let mut memo = Memo::default();
        memo.inflated = self.memo.inflated;
        Pass {
            scanner: self.scanner,
            kind: self.kind,
            memo: &mut memo,
            out: &mut inner,
            origin: Some((origin, via)),
            depth: self.depth + 1,
        }
        .judge(Window {
            text: decoded,
            base: origin.start,
            from: 0,
            to: decoded.len(),
        });
        self.memo.inflated = memo.inflated;
        if matches!(how, "base64" | "hex" | "gzip")
            && self.kind != Kind::Command
            && decoded
                .iter()
                .all(|b| *b >= b' ' || b.is_ascii_whitespace())
        {
            self.encoded_command(window, range.clone(), decoded);
        }
        for finding in inner {
            self.adopt(finding);
        }
    }

    /// A dangerous command that somebody took the trouble to encode.
    fn encoded_command(&mut self, window: Window<'_>, range: Range<usize>, decoded: &[u8]) {
        let text = String::from_utf8_lossy(decoded);
        for danger in command::judge(&Script::parse(&text)) {
            if danger.severity < Severity::High {
                continue;
            }
            let rule = danger.info();
            let report = Report {
                confidence: Confidence::Medium,
                excerpt: danger.excerpt,
                score: None,
            };
            self.emit(window, &rule, range.clone(), report);
        }
    }

    /// Runs of base64 and hexadecimal, and account numbers.
    pub(super) fn runs(&mut self, window: Window<'_>) {
        let text = window.text;
        let belongs = |at: usize| text.get(at).is_some_and(|&byte| in_run(byte));
        let end_of = |mut end: usize| {
            while belongs(end) && end < window.to + RUN_AHEAD {
                end += 1;
            }
            end
        };
        let mut at = window.from;
        // A run that goes on from before: with the block before it was seen whole, unless it is a long one.
        if at > 0 && belongs(at - 1) && belongs(at) {
            let mut start = at;
            while start > 0 && belongs(start - 1) && at - start < RUN_BEHIND {
                start -= 1;
            }
            let end = end_of(at);
            let seen = at - start < RUN_BEHIND && end < at + RUN_AHEAD;
            if !seen && end - start >= MIN_RUN {
                self.run(window, start..end);
            }
            at = end + 1;
        }
        while let Some(start) = next_run(text, at..window.to) {
            let end = end_of(start + MIN_RUN);
            self.run(window, start..end);
            at = end + 1;
        }
    }

    fn run(&mut self, window: Window<'_>, range: Range<usize>) {
        let run = window.get(range.clone());
        let (mut upper, mut lower, mut digit) = (false, false, false);
        for byte in run {
            upper |= byte.is_ascii_uppercase();
            lower |= byte.is_ascii_lowercase();
            digit |= byte.is_ascii_digit();
        }
        if digit {
            self.account(window, range.clone());
        }
        // Text in base64 has letters of both cases, text in hexadecimal has digits.
        if !(digit || upper && lower) {
            return;
        }
        if digit && let Some(decoded) = hex(run) {
            self.rescan(window, range, &decoded, "hex");
            return;
        }
        if self.kind == Kind::Outbound
            && (32..=128).contains(&run.len())
            && self
                .origin
                .as_ref()
                .and_then(|(_, via)| via.last())
                .is_some_and(|how| matches!(*how, "base64" | "hex" | "gzip"))
        {
            let mixed = run.iter().any(u8::is_ascii_uppercase)
                && run.iter().any(u8::is_ascii_lowercase)
                && run.iter().any(u8::is_ascii_digit);
            if mixed && verify::random_looking(run) {
                let rule = own("encoded-random-string");
                let report = Report {
                    confidence: Confidence::Low,
                    excerpt: redact(run),
                    score: None,
                };
                self.emit(window, &rule, range.clone(), report);
            }
        }
        if self.depth >= MAX_DEPTH {
            return;
        }
        if run.starts_with(b"H4sI") || (run.starts_with(b"eJ") && run.len() >= 32) {
            self.inflate(window, range.clone());
        }
        // PowerShell's -EncodedCommand: UTF-16.
        if !(upper && lower) {
            return;
        }
        let zeros = run.iter().filter(|&&byte| byte == b'A').count();
        if zeros * 4 >= run.len()
            && let Some(wide) = verify::base64(run)
        {
            let odd_zero = wide.iter().skip(1).step_by(2).filter(|&&b| b == 0).count();
            if odd_zero * 5 >= wide.len() * 2 {
                let narrow: Vec<u8> = wide.iter().copied().filter(|&b| b != 0).collect();
                self.rescan(window, range.clone(), &narrow, "base64");
                return;
            }
        }
        // Wrapped lines: a long run that a line break cuts goes on in the next line.
        let joined = self.unwrapped(window, &range);
        let run = joined.as_deref().unwrap_or(run);
        for lead in (0..4).filter(|&lead| promising(run, lead)) {
            for segment in segments(run, lead) {
                self.rescan(window, range.clone(), &segment, "base64");
            }
        }
    }

    /// Joins the lines of wrapped base64.
    fn unwrapped(&self, window: Window<'_>, range: &Range<usize>) -> Option<Vec<u8>> {
        if range.len() < 48 {
            return None;
        }
        let mut joined = window.get(range.clone()).to_vec();
        let mut at = range.end;
        let mut lines = 0;
        while lines < 4 {
            let skip = match window.get(at..at + 4) {
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] => 1,
                [b'\\', b'r', b'\\', b'n'] => 4,
                [b'\\', b'n', ..] => 2,
                _ => break,
            };
            let rest = window.get(at + skip..window.text.len());
            let len = rest.iter().take_while(|&&byte| in_run(byte)).count();
            if len == 0 {
                break;
            }
            joined.extend_from_slice(rest.get(..len).unwrap_or_default());
            at += skip + len;
            lines += 1;
        }
        (lines > 0).then_some(joined)
    }

    fn inflate(&mut self, window: Window<'_>, range: Range<usize>) {
        let Some(packed) = verify::base64(window.get(range.clone())) else {
            return;
        };
        let credit = INFLATE_CREDIT + window.base;
        if self.memo.inflated > credit {
            return;
        }
        let body = if packed.starts_with(&[0x1f, 0x8b]) {
            gzip_body(&packed)
        } else {
            packed.get(2..)
        };
        let Some(body) = body else {
            return;
        };
        let mut plain = Vec::with_capacity(MAX_INFLATED);
        let mut inflater = Decompress::new(false);
        let mut fed = 0;
        // What of the stream is here is opened, even if its end isn't.
        loop {
            let before = (inflater.total_in(), plain.len());
            let rest = body.get(fed..).unwrap_or_default();
            match inflater.decompress_vec(rest, &mut plain, FlushDecompress::Sync) {
                Ok(Status::Ok) => {}
                Ok(Status::StreamEnd | Status::BufError) | Err(_) => break,
            }
            fed = usize::try_from(inflater.total_in()).unwrap_or(usize::MAX);
            if plain.len() >= MAX_INFLATED || (inflater.total_in(), plain.len()) == before {
                break;
            }
        }
        self.memo.inflated += plain.len() as u64;
        self.rescan(window, range, &plain, "gzip");
    }

    /// Escapes: percent, `\x`, `\u`, octal, HTML, quoted-printable.
    pub(super) fn escapes(&mut self, window: Window<'_>) {
        if self.depth >= MAX_DEPTH {
            return;
        }
        let mut at = window.from;
        while at < window.to {
            let rest = window.get(at..window.to);
            let Some(next) = memchr::memchr3(b'%', b'\\', b'&', rest) else {
                break;
            };
            at += next;
            // Most of them escape nothing: a reference, a line break in a string, a remainder.
            if escape(window.text, at).is_none() {
                at += 1;
                continue;
            }
            let mut start = at;
            while start > 0 && at - start < RUN_BEHIND && !ends_token(window.text, start - 1) {
                start -= 1;
            }
            let mut end = at;
            while end < window.text.len() && end < at + 1024 && !ends_token(window.text, end) {
                end += 1;
            }
            let token = window.get(start..end);
            let (decoded, how) = unescape(token);
            if decoded != token {
                self.multiply_encoded(window, start..end, token);
                self.rescan(window, start..end, &decoded, how);
            }
            at = end.max(at + 1);
        }
        if self.depth == 0 {
            self.quoted_printable(window);
        }
    }

    /// Percent signs encoded more than once more: nobody's form does that.
    fn multiply_encoded(&mut self, window: Window<'_>, range: Range<usize>, token: &[u8]) {
        if self.kind == Kind::Outbound && verify::contains(token, b"%252525") {
            let rule = own("multiply-encoded");
            let report = Report {
                confidence: Confidence::Medium,
                excerpt: format!(
                    "percent-encoding in percent-encoding ({} bytes)",
                    token.len()
                ),
                score: None,
            };
            self.emit(window, &rule, range, report);
        }
    }

    fn quoted_printable(&mut self, window: Window<'_>) {
        let block = window.get(window.from..window.to);
        // A soft line break cuts a word; an assignment at a line's end and base64's padding don't.
        let soft = |at: usize| {
            let before = at.checked_sub(1).and_then(|at| block.get(at));
            let rest = block.get(at + 1..).unwrap_or_default();
            let after = rest
                .strip_prefix(b"\r\n")
                .or_else(|| rest.strip_prefix(b"\n"))
                .and_then(<[u8]>::first);
            before.is_some_and(u8::is_ascii_alphanumeric)
                && after.is_some_and(u8::is_ascii_alphanumeric)
        };
        if !memchr::memchr_iter(b'=', block).any(soft) {
            return;
        }
        let start = window.from.saturating_sub(RUN_BEHIND);
        let end = window.text.len().min(window.to + RUN_AHEAD);
        let text = window.get(start..end);
        let mut plain = Vec::with_capacity(text.len());
        let mut at = 0;
        while let Some(&byte) = text.get(at) {
            let rest = text.get(at + 1..).unwrap_or_default();
            match (byte, rest) {
                (b'=', [b'\n', ..]) => at += 2,
                (b'=', [b'\r', b'\n', ..]) => at += 3,
                (b'=', [high, low, ..])
                    if hex_digit(*high).is_some() && hex_digit(*low).is_some() =>
                {
                    plain.push(hex_digit(*high).unwrap_or(0) << 4 | hex_digit(*low).unwrap_or(0));
                    at += 3;
                }
                _ => {
                    plain.push(byte);
                    at += 1;
                }
            }
        }
        self.rescan(window, start..end, &plain, "quoted-printable");
    }

    /// Wallets and bank accounts in one piece.
    fn account(&mut self, window: Window<'_>, range: Range<usize>) {
        let run = window.get(range.clone());
        // A key of a query or a path may be glued on: wallet=…, /addr/…
        for piece in pieces(run, range.start) {
            let token = window.get(piece.clone());
            let found = if (40..=112).contains(&token.len())
                && matches!(token.first(), Some(b'5' | b'K' | b'L' | b'9' | b'c' | b'x'))
            {
                match verify::base58check(token) {
                    Some(Base58::PrivateKey | Base58::ExtendedPrivateKey) => {
                        Some(("wallet-private-key", Confidence::High))
                    }
                    _ => None,
                }
            } else {
                None
            };
            let found = found.or_else(|| {
                if self.kind == Kind::Inbound {
                    return None;
                }
                let address = (25..=36).contains(&token.len())
                    && matches!(token.first(), Some(b'1' | b'3'))
                    && verify::base58check(token) == Some(Base58::Address);
                let segwit = token.len() >= 26
                    && matches!(token.get(..3), Some(b"bc1" | b"tb1" | b"BC1"))
                    && verify::bech32(token);
                let ethereum = token.len() == 42
                    && token.starts_with(b"0x")
                    && token.iter().skip(2).all(u8::is_ascii_hexdigit)
                    && token.iter().any(u8::is_ascii_uppercase)
                    && token.iter().skip(2).any(u8::is_ascii_lowercase);
                if address || segwit || ethereum {
                    return Some((
                        "wallet-address",
                        if ethereum {
                            Confidence::Medium
                        } else {
                            Confidence::High
                        },
                    ));
                }
                verify::iban(token).then_some(("iban", Confidence::High))
            });
            if let Some((id, confidence)) = found {
                let report = Report {
                    confidence,
                    excerpt: redact(token),
                    score: None,
                };
                self.emit(window, &own(id), piece, report);
            }
        }
    }

    /// Payment cards and bank accounts, in groups or in one piece.
    pub(super) fn numbers(&mut self, window: Window<'_>) {
        if self.kind == Kind::Inbound {
            return;
        }
        let text = window.text;
        let belongs = |at: usize| text.get(at).is_some_and(|&byte| in_number(byte));
        let mut at = window.from;
        while at > 0 && window.from - at < MAX_NUMBER && belongs(at - 1) {
            at -= 1;
        }
        while let Some(found) = next_number(text, at..window.to) {
            let mut run = found;
            while run > at && found - run < MAX_NUMBER && belongs(run - 1) {
                run -= 1;
            }
            // Separators before the first digit don't count, as many as there are.
            let mut digit = run;
            while belongs(digit) && !text.get(digit).is_some_and(u8::is_ascii_digit) {
                digit += 1;
            }
            let mut end = digit;
            while belongs(end) && end - digit < MAX_NUMBER {
                end += 1;
            }
            at = end + 1;
            if end == digit {
                continue;
            }
            self.card(window, digit..end);
            // The bank's code can be letters: the country may stand some groups earlier.
            let start = run.max(digit.saturating_sub(MAX_NUMBER));
            let first = start.saturating_sub(26);
            let around = window.get(first..text.len().min(start + 3));
            for (place, five) in around.array_windows().enumerate() {
                if let [a, b, c, d, b' '] = five
                    && a.is_ascii_uppercase()
                    && b.is_ascii_uppercase()
                    && c.is_ascii_digit()
                    && d.is_ascii_digit()
                {
                    self.spaced_iban(window, first + place);
                }
            }
        }
    }

    fn card(&mut self, window: Window<'_>, range: Range<usize>) {
        let text = window.get(range.clone());
        let count = text.iter().filter(|byte| byte.is_ascii_digit()).count();
        if !(14..=19).contains(&count) {
            return;
        }
        // Leading and trailing separators don't belong.
        let lead = text
            .iter()
            .take_while(|byte| !byte.is_ascii_digit())
            .count();
        let tail = text
            .iter()
            .rev()
            .take_while(|byte| !byte.is_ascii_digit())
            .count();
        let range = range.start + lead..range.end.saturating_sub(tail).max(range.start + lead);
        let text = window.get(range.clone());
        let digits: Vec<u8> = text.iter().copied().filter(u8::is_ascii_digit).collect();
        let edge = |at: Option<usize>| {
            at.and_then(|at| window.text.get(at))
                .is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
        };
        if edge(range.start.checked_sub(1))
            || window
                .text
                .get(range.end)
                .is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
        {
            return;
        }
        let groups: Vec<usize> = text
            .split(|byte| !byte.is_ascii_digit())
            .map(<[u8]>::len)
            .collect();
        let grouped = matches!(
            groups.as_slice(),
            [_] | [4, 4, 4, 4] | [4, 6, 5] | [4, 6, 4] | [4, 4, 4, 4, 1..=3]
        );
        if grouped && verify::card(&digits) {
            let rule = own("payment-card");
            let report = Report {
                confidence: Confidence::High,
                excerpt: format!("…({} digits)", digits.len()),
                score: None,
            };
            self.emit(window, &rule, range, report);
        }
    }

    /// `GB82 WEST 1234 …`: groups of four from a country code on, which stands at `start`.
    fn spaced_iban(&mut self, window: Window<'_>, start: usize) {
        let mut compact = Vec::with_capacity(34);
        let mut end = start;
        for (at, group) in window
            .get(start..(start + 44).min(window.text.len()))
            .split(|&byte| byte == b' ')
            .enumerate()
        {
            let word = group
                .iter()
                .take_while(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
                .count();
            compact.extend_from_slice(group.get(..word).unwrap_or_default());
            end += word + usize::from(at > 0);
            if word < 4 || word < group.len() {
                break;
            }
        }
        if verify::iban(&compact) {
            let rule = own("iban");
            let report = Report {
                confidence: Confidence::High,
                excerpt: redact(&compact),
                score: None,
            };
            self.emit(window, &rule, start..end, report);
        }
    }
}

/// Digits, and what separates groups of them.
fn in_number(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b' ' | b'-')
}

/// A run and what is between its slashes.
fn pieces(run: &[u8], start: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = start;
    run.split(|byte| matches!(byte, b'/' | b'+' | b'-' | b'_'))
        .map(move |piece| {
            let range = at..at + piece.len();
            at += piece.len() + 1;
            range
        })
}

/// Hexadecimal in one piece or in pairs with a separator.
fn hex(run: &[u8]) -> Option<Vec<u8>> {
    let separator = match run {
        [_, _, separator @ (b'-' | b'_' | b'/'), ..] => Some(*separator),
        _ => None,
    };
    if separator.is_none() && !run.iter().skip(2).take(6).all(u8::is_ascii_hexdigit) {
        return None;
    }
    let digits: Vec<u8> = match separator {
        Some(separator) => {
            let mut digits = Vec::with_capacity(run.len());
            for pair in run.split(|&byte| byte == separator) {
                if pair.len() != 2 {
                    return None;
                }
                digits.extend_from_slice(pair);
            }
            digits
        }
        None => run.to_vec(),
    };
    let digits = match digits.as_slice() {
        [b'0', b'x' | b'X', rest @ ..] => rest,
        all => all,
    };
    if !digits.iter().take(8).all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 2);
    for pair in digits.chunks(2) {
        match pair {
            [high, low] => out.push(hex_digit(*high)? << 4 | hex_digit(*low)?),
            _ => {
                hex_digit(pair.first().copied()?)?;
            }
        }
    }
    Some(out)
}

/// Whether three groups in a row decode to printable bytes.
fn promising(run: &[u8], lead: usize) -> bool {
    let mut row = 0;
    for quad in run.get(lead..).unwrap_or_default().chunks_exact(4) {
        let [a, b, c, d] = quad else {
            return false;
        };
        let text = printable_first(*a) && {
            let digit = |byte: &u8| u32::from(base64_digit(*byte).unwrap_or(0));
            let bits = digit(a) << 18 | digit(b) << 12 | digit(c) << 6 | digit(d);
            [bits >> 16, bits >> 8 & 0xff, bits & 0xff]
                .iter()
                .all(|byte| matches!(byte, 0x20..=0x7e | 0x9 | 0xa | 0xd))
        };
        row = if text { row + 1 } else { 0 };
        if row >= 3 {
            return true;
        }
    }
    false
}

/// Whether a group of base64 that begins with this digit can begin with a printable byte.
fn printable_first(digit: u8) -> bool {
    matches!(digit, b'I'..=b'Z' | b'a'..=b'f' | b'C' | b'D')
}

/// The stretches of a run that are base64 of text, at one of the four alignments.
fn segments(run: &[u8], lead: usize) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut text: Vec<u8> = Vec::new();
    let mut close = |text: &mut Vec<u8>| {
        if text.len() >= MIN_TEXT {
            out.push(std::mem::take(text));
        } else {
            text.clear();
        }
    };
    let rest = run.get(lead..).unwrap_or_default();
    for quad in rest.chunks(4) {
        // The first byte of a group is printable for fewer than half of the digits: the cheap test.
        let first = quad.first().copied().unwrap_or(0);
        if !printable_first(first) {
            close(&mut text);
            continue;
        }
        let mut bits = 0_u32;
        for &byte in quad {
            bits = bits << 6 | u32::from(base64_digit(byte).unwrap_or(0));
        }
        bits <<= 6 * (4 - quad.len());
        let bytes = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
        let whole = bytes.get(..(quad.len() * 6 / 8)).unwrap_or_default();
        let printable = |byte: &u8| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t');
        if whole.iter().all(printable) {
            text.extend_from_slice(whole);
        } else {
            text.extend(whole.iter().take_while(|byte| printable(byte)));
            close(&mut text);
            text.extend(
                whole
                    .iter()
                    .rev()
                    .take_while(|byte| printable(byte))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev(),
            );
        }
    }
    close(&mut text);
    out
}

/// What follows the header of a gzip member (RFC 1952).
fn gzip_body(packed: &[u8]) -> Option<&[u8]> {
    let flags = *packed.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        let len = usize::from(*packed.get(10)?) | usize::from(*packed.get(11)?) << 8;
        at += 2 + len;
    }
    for bit in [8, 16] {
        if flags & bit != 0 {
            at += packed.get(at..)?.iter().position(|&byte| byte == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    packed.get(at..)
}

fn ends_token(text: &[u8], at: usize) -> bool {
    let byte = text.get(at).copied().unwrap_or(b' ');
    byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`')
}

/// The escape at `at`: what it stands for, how long it is, and its kind.
fn escape(text: &[u8], at: usize) -> Option<(u32, usize, &'static str)> {
    let rest = text.get(at..)?;
    let digits = |from: usize, count: usize, radix: u32| -> Option<u32> {
        let mut value = 0_u32;
        for &byte in rest.get(from..from + count)? {
            value = value * radix + char::from(byte).to_digit(radix)?;
        }
        Some(value)
    };
    match rest {
        [b'%', ..] => digits(1, 2, 16).map(|value| (value, 3, "percent")),
        [b'\\', b'x', ..] => digits(2, 2, 16).map(|value| (value, 4, "escape")),
        [b'\\', b'u', b'{', ..] => {
            let len = rest.iter().take(10).position(|&byte| byte == b'}')?;
            digits(3, len.checked_sub(3)?, 16).map(|value| (value, len + 1, "escape"))
        }
        [b'\\', b'u', ..] => digits(2, 4, 16).map(|value| (value, 6, "escape")),
        [b'\\', b'U', ..] => digits(2, 8, 16).map(|value| (value, 10, "escape")),
        [b'\\', b'0'..=b'3', ..] => digits(1, 3, 8).map(|value| (value, 4, "escape")),
        [b'&', b'#', ..] => {
            let len = rest.iter().take(10).position(|&byte| byte == b';')?;
            let value = if matches!(rest.get(2), Some(b'x' | b'X')) {
                digits(3, len.checked_sub(3)?, 16)
            } else {
                digits(2, len.checked_sub(2)?, 10)
            };
            value.map(|value| (value, len + 1, "html"))
        }
        _ => None,
    }
}

/// Undoes every escape of a token.
fn unescape(token: &[u8]) -> (Vec<u8>, &'static str) {
    let mut out = Vec::with_capacity(token.len());
    let mut how = "percent";
    let mut at = 0;
    let mut high_surrogate: Option<u32> = None;
    while let Some(&byte) = token.get(at) {
        let found = if matches!(byte, b'%' | b'\\' | b'&') {
            escape(token, at)
        } else {
            None
        };
        match found {
            Some((value, len, kind)) => {
                how = kind;
                at += len;
                let value = match (high_surrogate.take(), value) {
                    (Some(high), 0xdc00..=0xdfff) => {
                        0x1_0000_u32 + ((high & 0x3ff) << 10) + (value & 0x3ff)
                    }
                    (_, 0xd800..=0xdbff) => {
                        high_surrogate = Some(value);
                        continue;
                    }
                    _ => value,
                };
                if kind == "percent" || (value < 0x80) {
                    out.push((value & 0xff) as u8);
                } else if let Some(c) = char::from_u32(value) {
                    let mut utf8 = [0; 4];
                    out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
                }
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    (out, how)
}

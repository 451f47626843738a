//! Characters that hide text or dress it up: found, and undone for the other scanners.

use std::ops::Range;

use super::catalogue::own;
use super::finding::Confidence;
use super::scanner::{MAX_DEPTH, Pass, Report, Window};

/// So many invisible characters in a row carry data.
const HIDDEN_RUN: usize = 8;

/// So many tag characters in a block are a text. One alone says nothing, and stands in some megabytes of random bytes by
/// chance.
const HIDDEN_TAGS: usize = 2;

#[derive(Default)]
struct Seen {
    tags: Vec<u8>,
    tags_at: Option<Range<usize>>,
    selectors: Vec<u8>,
    selectors_at: Option<Range<usize>>,
    in_words: usize,
    in_words_at: Option<Range<usize>>,
    longest: usize,
    longest_at: Option<Range<usize>>,
    overrides_at: Option<Range<usize>>,
    dressed: bool,
}

impl Pass<'_> {
    /// Looks at a block with characters beyond ASCII, or with escapes of a terminal.
    pub(super) fn unicode(&mut self, window: Window<'_>) {
        let block = window.get(window.from..window.to);
        if memchr::memchr2(0x1b, 0x08, block).is_some() {
            self.terminal(window);
        }
        if block.is_ascii() {
            return;
        }
        let seen = look(window);
        let mut tell = |id: &'static str, range: Option<Range<usize>>, confidence| {
            if let Some(range) = range {
                let excerpt = format!("invisible or reordering characters ({} bytes)", range.len());
                let report = Report {
                    confidence,
                    excerpt,
                    score: None,
                };
                self.emit(window, &own(id), range, report);
            }
        };
        tell(
            "hidden-tag-characters",
            seen.tags_at
                .clone()
                .filter(|_| seen.tags.len() >= HIDDEN_TAGS),
            Confidence::High,
        );
        tell(
            "hidden-variation-selectors",
            seen.selectors_at
                .clone()
                .filter(|_| seen.selectors.len() >= 3),
            Confidence::High,
        );
        tell(
            "hidden-zero-width",
            seen.longest_at
                .clone()
                .filter(|_| seen.longest >= HIDDEN_RUN),
            Confidence::High,
        );
        tell(
            "invisible-in-words",
            seen.in_words_at.clone().filter(|_| seen.in_words >= 2),
            Confidence::Medium,
        );
        tell(
            "bidi-override",
            seen.overrides_at.clone(),
            Confidence::Medium,
        );
        if self.depth >= MAX_DEPTH {
            return;
        }
        if let Some(range) = seen.tags_at {
            self.rescan(window, range, &seen.tags, "tag-characters");
        }
        if let Some(range) = seen.selectors_at {
            self.rescan(window, range, &seen.selectors, "variation-selectors");
        }
        if seen.dressed {
            let start = window.from.saturating_sub(256);
            let end = window.text.len().min(window.to + 512);
            let (plain, map) = plain(window.get(start..end));
            self.rescan_mapped(window, start, &plain, &map);
        }
    }

    /// As `rescan`, with places that can be told exactly.
    fn rescan_mapped(&mut self, window: Window<'_>, start: usize, plain: &[u8], map: &[u32]) {
        let before = self.out.len();
        self.rescan(window, start..start + plain.len(), plain, "unicode");
        if self.origin.is_some() {
            return;
        }
        // What was found stands at an offset of the plain text; the range of the whole stretch says
        // less than it could, so it is cut to where the first changed byte is.
        let first = map
            .iter()
            .enumerate()
            .find(|&(at, &from)| at as u32 != from)
            .map_or(0, |(at, _)| at);
        let last = map.last().map_or(0, |&last| last as usize + 1);
        for finding in self.out.get_mut(before..).unwrap_or_default() {
            if finding.via.first() == Some(&"unicode") {
                let from = map.get(first.saturating_sub(64)).copied().unwrap_or(0);
                finding.range.start = window.base + start as u64 + u64::from(from);
                finding.range.end = window.base + (start + last) as u64;
            }
        }
    }

    fn terminal(&mut self, window: Window<'_>) {
        let block = window.get(window.from..window.to);
        for at in memchr::memchr_iter(0x1b, block) {
            let rest =
                window.get(window.from + at + 1..window.text.len().min(window.from + at + 40));
            let what = match rest {
                [b']', b'5', b'2', b';', ..] => "writes to the clipboard",
                [b']', b'0'..=b'2', b';', ..] => "sets the window's title",
                [b']', b'8', b';', ..] => "makes a link of other text",
                // In decoded text, that is as likely binary data.
                [b'P' | b'_' | b'^' | b'X' | b'c', ..] if self.depth > 0 => continue,
                [b'P' | b'_' | b'^' | b'X', ..] => "talks to the terminal",
                [b'c', ..] => "resets the terminal",
                [b'[', parameters @ ..] => {
                    let len = parameters
                        .iter()
                        .take_while(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b'?'))
                        .count();
                    let numbers = parameters.get(..len).unwrap_or_default();
                    match parameters.get(len) {
                        Some(b'm') if numbers.split(|&b| b == b';').any(|n| n == b"8") => {
                            "conceals text"
                        }
                        Some(b'J') => "erases the screen",
                        Some(b'A' | b'F') => "goes back over lines",
                        Some(b'n' | b'i') => "talks to the terminal",
                        _ => continue,
                    }
                }
                _ => continue,
            };
            let rule = own("terminal-escape");
            let report = Report {
                confidence: Confidence::High,
                excerpt: what.to_owned(),
                score: None,
            };
            let start = window.from + at;
            self.emit(window, &rule, start..start + 1, report);
        }
    }
}

/// Characters with their places, from text that may be cut or broken.
fn chars(text: &[u8]) -> impl Iterator<Item = (usize, usize, char)> {
    let mut at = 0;
    text.utf8_chunks().flat_map(move |chunk| {
        let start = at;
        at += chunk.valid().len() + chunk.invalid().len();
        chunk
            .valid()
            .char_indices()
            .map(move |(offset, c)| (start + offset, c.len_utf8(), c))
    })
}

/// How many bytes of ASCII a text begins with.
fn ascii_len(text: &[u8]) -> usize {
    let whole = text
        .chunks(32)
        .take_while(|chunk| chunk.is_ascii())
        .map(<[u8]>::len)
        .sum();
    let rest = text.get(whole..).unwrap_or_default();
    whole + rest.iter().take_while(|byte| byte.is_ascii()).count()
}

/// The character that a text begins with.
fn first_char(text: &[u8]) -> Option<char> {
    // Most letters that are not ASCII have two bytes.
    if let &[lead @ 0xc2..=0xdf, next @ 0x80..=0xbf, ..] = text {
        return char::from_u32(u32::from(lead & 0x1f) << 6 | u32::from(next & 0x3f));
    }
    let len = match text.first()? {
        0..=0x7f => 1,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return None,
    };
    std::str::from_utf8(text.get(..len)?).ok()?.chars().next()
}

fn invisible(c: char) -> bool {
    matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}' | '\u{ad}' | '\u{34f}' | '\u{61c}'
        | '\u{180e}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0000}'..='\u{e01ef}')
}

fn look(window: Window<'_>) -> Seen {
    // A little more on both sides, so that a neighbour is known; places before the block are only
    // context.
    let start = window.from.saturating_sub(8);
    let end = window.text.len().min(window.to + 64);
    let mut seen = Seen::default();
    let mut last = ' ';
    let mut run = 0;
    let mut run_start = 0;
    let mut latin = false;
    let mut foreign = false;
    let grow = |range: &mut Option<Range<usize>>, from: usize, to: usize| match range {
        Some(range) => range.end = to,
        None => *range = Some(from..to),
    };
    let mut flag = false;
    let text = window.get(start..end);
    let mut offset = 0;
    while let Some(rest) = text.get(offset..).filter(|rest| !rest.is_empty()) {
        let at = start + offset;
        let here = at >= window.from && at < window.to;
        let plain = ascii_len(rest);
        if let Some((&first, &last_byte)) = rest
            .get(..plain)
            .and_then(|plain| Some((plain.first()?, plain.last()?)))
        {
            // Of plain text only its ends matter: the word that it goes on with, and the one that goes on behind it.
            let plain_text = rest.get(..plain).unwrap_or_default();
            if run > 0 && last.is_ascii_alphanumeric() && first.is_ascii_alphanumeric() && here {
                seen.in_words += 1;
                seen.dressed = true;
                grow(&mut seen.in_words_at, run_start, at);
            }
            let word = |byte: &&u8| byte.is_ascii_alphanumeric();
            let head = plain_text.iter().take_while(word);
            latin |= head.clone().any(u8::is_ascii_alphabetic);
            let head = head.count();
            if latin && foreign && head > 0 {
                seen.dressed = true;
            }
            if head < plain {
                foreign = false;
                latin = plain_text
                    .iter()
                    .rev()
                    .take_while(word)
                    .any(u8::is_ascii_alphabetic);
            }
            flag = false;
            run = 0;
            last = char::from(last_byte);
            offset += plain;
            continue;
        }
        // Letters of Chinese, Japanese and Korean (U+3040 to U+313F, U+4000 to U+CFFF) hide nothing, and look like none
        // of ours.
        if let [0xe3, 0x81..=0x84, 0x80..=0xbf, ..] | [0xe4..=0xec, 0x80..=0xbf, 0x80..=0xbf, ..] =
            rest
        {
            offset += 3;
            flag = false;
            run = 0;
            last = '\u{4e00}';
            continue;
        }
        // Bytes that make no character are passed over.
        let Some(c) = first_char(rest) else {
            offset += 1;
            continue;
        };
        let len = c.len_utf8();
        offset += len;
        match c {
            '\u{e0020}'..='\u{e007f}' if !flag && here => {
                seen.tags.push((u32::from(c) & 0x7f) as u8);
                grow(&mut seen.tags_at, at, at + len);
            }
            '\u{e0020}'..='\u{e007f}' => {}
            '\u{fe00}'..='\u{fe0f}' if run > 0 && here => {
                seen.selectors.push((u32::from(c) & 0xf) as u8);
                grow(&mut seen.selectors_at, at, at + len);
            }
            '\u{e0100}'..='\u{e01ef}' if here => {
                let byte = u32::from(c) - 0xe0100 + 16;
                seen.selectors.push(u8::try_from(byte).unwrap_or(0));
                grow(&mut seen.selectors_at, at, at + len);
            }
            '\u{202d}' | '\u{202e}' if here => grow(&mut seen.overrides_at, at, at + len),
            _ => {}
        }
        if invisible(c) {
            if run == 0 {
                run_start = at;
            }
            run += 1;
            if here
                && run > seen.longest
                && matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
            {
                seen.longest = run;
                seen.longest_at = Some(run_start..at + len);
            }
            continue;
        }
        flag = c == '\u{1f3f4}';
        run = 0;
        last = c;
        match unmask(c) {
            Some((_, true)) => seen.dressed |= here,
            Some((_, false)) => {
                foreign = true;
                if latin {
                    seen.dressed = true;
                }
            }
            // Punctuation of all scripts ends a word.
            None if matches!(c, '\u{80}'..='\u{bf}' | '\u{2000}'..='\u{206f}' | '\u{3000}'..='\u{303f}' | '\u{ff5f}'..='\u{ff65}') =>
            {
                (latin, foreign) = (false, false);
            }
            None => {}
        }
    }
    seen
}

/// The text without invisible characters and with lookalikes replaced, and for each byte of it the
/// place it came from.
fn plain(text: &[u8]) -> (Vec<u8>, Vec<u32>) {
    let mut out = Vec::with_capacity(text.len());
    let mut map = Vec::with_capacity(text.len());
    for (at, _, c) in chars(text) {
        if invisible(c) {
            continue;
        }
        let c = unmask(c).map_or(c, |(ascii, _)| ascii);
        let mut utf8 = [0; 4];
        for &byte in c.encode_utf8(&mut utf8).as_bytes() {
            out.push(byte);
            map.push(u32::try_from(at).unwrap_or(u32::MAX));
        }
    }
    (out, map)
}

/// The ASCII character that another one looks like, and whether the other exists for its looks
/// alone (full width, mathematical) rather than as a letter of a script.
fn unmask(c: char) -> Option<(char, bool)> {
    let code = u32::from(c);
    if matches!(code, 0x2200..=0x24b5 | 0x2500..=0xff00 | 0x10000..=0x1d3ff) {
        return None;
    }
    let ascii = |value: u32| char::from_u32(value);
    match code {
        0xff01..=0xff5e => return ascii(code - 0xff01 + 0x21).map(|c| (c, true)),
        0x1d400..=0x1d6a3 => {
            let at = (code - 0x1d400) % 52;
            let base = if at < 26 { 0x41 + at } else { 0x61 + at - 26 };
            return ascii(base).map(|c| (c, true));
        }
        0x1d7ce..=0x1d7ff => return ascii(0x30 + (code - 0x1d7ce) % 10).map(|c| (c, true)),
        0x24b6..=0x24cf => return ascii(0x41 + code - 0x24b6).map(|c| (c, true)),
        0x24d0..=0x24e9 => return ascii(0x61 + code - 0x24d0).map(|c| (c, true)),
        0x1f130..=0x1f149 => return ascii(0x41 + code - 0x1f130).map(|c| (c, true)),
        0x2010..=0x2015 | 0x2212 => return Some(('-', false)),
        _ => {}
    }
    let ascii = match c {
        'а' | 'α' | 'ɑ' => 'a',
        'Ь' | 'Ƅ' => 'b',
        'с' | 'ϲ' | 'ⅽ' => 'c',
        'ԁ' | 'ⅾ' => 'd',
        'е' | 'ҽ' | 'ε' => 'e',
        'ɡ' | 'ց' => 'g',
        'һ' | 'հ' => 'h',
        'і' | 'ι' | 'ı' | 'ⅰ' => 'i',
        'ј' | 'ϳ' => 'j',
        'κ' | 'к' => 'k',
        'ӏ' | 'ⅼ' | 'ℓ' => 'l',
        'ⅿ' | 'м' => 'm',
        'ո' | 'п' => 'n',
        'о' | 'ο' | 'օ' => 'o',
        'р' | 'ρ' => 'p',
        'ԛ' => 'q',
        'г' => 'r',
        'ѕ' => 's',
        'т' | 'τ' => 't',
        'υ' | 'ս' => 'u',
        'ν' | 'ѵ' | 'ⅴ' => 'v',
        'ԝ' | 'ѡ' => 'w',
        'х' | 'χ' | 'ⅹ' => 'x',
        'у' | 'γ' => 'y',
        'ᴢ' => 'z',
        'А' | 'Α' => 'A',
        'В' | 'Β' => 'B',
        'С' | 'Ϲ' => 'C',
        'Е' | 'Ε' => 'E',
        'Ԍ' => 'G',
        'Н' | 'Η' => 'H',
        'І' | 'Ι' => 'I',
        'Ј' => 'J',
        'К' | 'Κ' => 'K',
        'М' | 'Μ' => 'M',
        'Ν' => 'N',
        'О' | 'Ο' => 'O',
        'Р' | 'Ρ' => 'P',
        'Ѕ' => 'S',
        'Т' | 'Τ' => 'T',
        'Χ' | 'Х' => 'X',
        'Υ' | 'Ү' => 'Y',
        'Ζ' => 'Z',
        _ => return None,
    };
    Some((ascii, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::{Kind, Scanner};

    fn has_hidden_tags(text: &[u8]) -> bool {
        let scanner = Scanner::builtin();
        let mut state = scanner.start(Kind::Outbound);
        let mut findings = Vec::new();
        scanner.feed(&mut state, text, &mut findings);
        scanner.finish(&mut state, &mut findings);
        findings
            .iter()
            .any(|finding| &*finding.rule == "hidden-tag-characters")
    }

    #[test]
    fn letters_that_are_passed_over_are_plain() {
        for c in ('\u{3040}'..='\u{313f}').chain('\u{4000}'..='\u{cfff}') {
            assert!(!invisible(c) && unmask(c).is_none(), "{c:?}");
        }
    }

    #[test]
    fn the_first_character_is_what_the_standard_library_reads() {
        for c in '\0'..=char::MAX {
            assert_eq!(first_char(format!("{c}x").as_bytes()), Some(c));
        }
        for (lead, next) in
            (0..=u8::MAX).flat_map(|lead| (0..=u8::MAX).map(move |next| (lead, next)))
        {
            let valid = std::str::from_utf8(&[lead, next])
                .ok()
                .and_then(|text| text.chars().next());
            assert_eq!(
                first_char(&[lead, next]).filter(|c| c.len_utf8() == 2),
                valid.filter(|c| c.len_utf8() == 2)
            );
        }
    }

    #[test]
    fn one_tag_character_in_binary_data_is_no_text() {
        assert!(has_hidden_tags("look \u{e0068}\u{e0069} here".as_bytes()));
        assert!(!has_hidden_tags(
            b"\x00\xff\xf3\xa0\x81\x81\xfe\x12\x80\xc3"
        ));
    }
}

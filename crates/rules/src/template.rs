//! What a match is replaced by, in the notation of Python's `re.sub`.

use regex::bytes::Captures;

/// A replacement: text, and groups of the match.
///
/// `\1` to `\99`, `\g<1>`, `\g<0>` and `\g<name>` stand for groups; `\n`, `\t` and the like, and octal escapes, for
/// characters; a backslash before anything but a letter or digit stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Group(usize),
}

/// Why a replacement is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A backslash with nothing behind it.
    #[error("the replacement ends with a backslash")]
    TrailingBackslash,
    /// A letter that means nothing behind a backslash.
    #[error("'\\{0}' means nothing in a replacement")]
    Escape(char),
    /// A group that the pattern doesn't have.
    #[error("the pattern has no group {0}")]
    NoGroup(String),
    /// `\g` without a name between angle brackets.
    #[error("'\\g' is followed by the group's number or name in angle brackets: \\g<1>")]
    NoName,
}

impl Template {
    /// Reads a replacement for matches of `pattern`.
    pub fn parse(text: &[u8], pattern: &regex::bytes::Regex) -> Result<Self, TemplateError> {
        let mut template = Self { parts: Vec::new() };
        let mut rest = text;
        let groups = pattern.captures_len();
        let group = |number: usize| match number < groups {
            true => Ok(Part::Group(number)),
            false => Err(TemplateError::NoGroup(number.to_string())),
        };
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte != b'\\' {
                template.push(byte);
                continue;
            }
            let (&escaped, after) = rest.split_first().ok_or(TemplateError::TrailingBackslash)?;
            rest = after;
            match escaped {
                b'g' => {
                    let body = rest.strip_prefix(b"<").ok_or(TemplateError::NoName)?;
                    let end = body.iter().position(|b| *b == b'>');
                    let (name, after) = end
                        .and_then(|end| body.split_at_checked(end))
                        .ok_or(TemplateError::NoName)?;
                    rest = after.get(1..).unwrap_or_default();
                    let name = String::from_utf8_lossy(name);
                    let number = match name.parse::<usize>() {
                        Ok(number) => Some(number),
                        Err(_) => pattern
                            .capture_names()
                            .position(|known| known == Some(&*name)),
                    };
                    let number = number.ok_or_else(|| TemplateError::NoGroup(name.into_owned()))?;
                    template.parts.push(group(number)?);
                }
                b'0' => {
                    let (code, after) = octal(rest, 2);
                    rest = after;
                    template.push(code as u8);
                }
                b'1'..=b'9' => {
                    let second = rest.first().copied().filter(u8::is_ascii_digit);
                    let third = rest.get(1).copied();
                    let is_octal = |b: u8| (b'0'..=b'7').contains(&b);
                    if let (Some(second), Some(third)) = (second, third)
                        && [escaped, second, third].into_iter().all(is_octal)
                    {
                        let code = u32::from(escaped - b'0') * 64
                            + u32::from(second - b'0') * 8
                            + u32::from(third - b'0');
                        // Python refuses what doesn't fit a byte; so does the group's number.
                        let code = u8::try_from(code)
                            .map_err(|_| TemplateError::NoGroup(format!("{code:o}")))?;
                        rest = rest.get(2..).unwrap_or_default();
                        template.push(code);
                        continue;
                    }
                    let mut number = usize::from(escaped - b'0');
                    if let Some(digit) = second {
                        number = number * 10 + usize::from(digit - b'0');
                        rest = rest.get(1..).unwrap_or_default();
                    }
                    template.parts.push(group(number)?);
                }
                b'n' => template.push(b'\n'),
                b'r' => template.push(b'\r'),
                b't' => template.push(b'\t'),
                b'a' => template.push(7),
                b'b' => template.push(8),
                b'f' => template.push(12),
                b'v' => template.push(11),
                b'\\' => template.push(b'\\'),
                letter if letter.is_ascii_alphabetic() => {
                    return Err(TemplateError::Escape(letter.into()));
                }
                other => {
                    template.push(b'\\');
                    template.push(other);
                }
            }
        }
        Ok(template)
    }

    fn push(&mut self, byte: u8) {
        match self.parts.last_mut() {
            Some(Part::Text(text)) => text.push(byte),
            _ => self.parts.push(Part::Text(vec![byte])),
        }
    }

    /// Appends what stands in place of a match.
    pub fn expand(&self, found: &Captures<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text),
                Part::Group(number) => {
                    if let Some(group) = found.get(*number) {
                        out.extend_from_slice(group.as_bytes());
                    }
                }
            }
        }
    }
}

/// Up to `most` octal digits.
fn octal(text: &[u8], most: usize) -> (u32, &[u8]) {
    let digits = text
        .iter()
        .take(most)
        .take_while(|b| (b'0'..=b'7').contains(*b))
        .count();
    let (digits, rest) = text.split_at_checked(digits).unwrap_or((&[], text));
    let code = digits
        .iter()
        .fold(0, |code, digit| code * 8 + u32::from(digit - b'0'));
    (code, rest)
}

/// Undoes the escapes of a Python string literal as far as mitmproxy's options have them: `\n`, `\x41`, `\u00e9`, octal
/// ones; text that isn't escaped is UTF-8. Unknown escapes stay as they are.
pub(crate) fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        out.extend_from_slice(before.as_bytes());
        let mut chars = from.chars();
        chars.next();
        let Some(escaped) = chars.next() else {
            return Err("it ends with a backslash".to_owned());
        };
        let mut tail = chars.as_str();
        let mut digits = |count: usize, radix: u32| {
            let (digits, after) = tail
                .split_at_checked(count)
                .filter(|(digits, _)| digits.chars().all(|c| c.is_digit(radix)))
                .ok_or_else(|| format!("'\\{escaped}' needs {count} hexadecimal digits"))?;
            tail = after;
            u32::from_str_radix(digits, radix).map_err(|error| error.to_string())
        };
        match escaped {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(escaped as u8),
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            // Two digits fit a byte.
            'x' => out.push(digits(2, 16)? as u8),
            '0'..='7' => {
                let (code, _) = octal(chars_from(from, 1).as_bytes(), 3);
                let taken = chars_from(from, 1)
                    .bytes()
                    .take(3)
                    .take_while(|b| (b'0'..=b'7').contains(b))
                    .count();
                tail = chars_from(from, 1 + taken);
                out.push((code & 0xff) as u8);
            }
            other => {
                out.push(b'\\');
                let mut buffer = [0; 4];
                out.extend_from_slice(other.encode_utf8(&mut buffer).as_bytes());
            }
        }
        rest = tail;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

fn chars_from(text: &str, at: usize) -> &str {
    text.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sub(pattern: &str, template: &str, text: &str) -> Result<String, TemplateError> {
        let regex = regex::bytes::Regex::new(pattern).unwrap();
        let template = Template::parse(template.as_bytes(), &regex)?;
        let mut out = Vec::new();
        template.expand(&regex.captures(text.as_bytes()).unwrap(), &mut out);
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn groups_and_escapes_are_pythons() {
        for (template, expected) in [
            (r"\1-\2", "a-b"),
            (r"\g<2>0", "b0"),
            (r"\g<0>", "ab"),
            (r"\g<n>", "b"),
            (r"\n\t\\", "\n\t\\"),
            (r"\.", r"\."),
            (r"\101", "A"),
            (r"\060", "0"),
            ("$1", "$1"),
            ("", ""),
        ] {
            assert_eq!(
                sub("(a)(?P<n>b)", template, "ab").unwrap(),
                expected,
                "{template}"
            );
        }
        for (template, error) in [
            (r"\3", TemplateError::NoGroup("3".into())),
            (r"\g<x>", TemplateError::NoGroup("x".into())),
            (r"\q", TemplateError::Escape('q')),
            (r"\g1", TemplateError::NoName),
            ("\\", TemplateError::TrailingBackslash),
        ] {
            assert_eq!(sub("(a)(?P<n>b)", template, "ab"), Err(error), "{template}");
        }
    }

    #[test]
    fn escapes_of_options() {
        assert_eq!(
            unescape(r"a\x41\n\\1\é\101").unwrap(),
            "aA\n\\1\\éA".as_bytes()
        );
        assert!(unescape(r"\x4").is_err());
        assert!(unescape("\\").is_err());
    }
}

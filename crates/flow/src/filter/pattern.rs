//! Regular expressions of Python, compiled for an engine that takes linear time.
//!
//! A pattern is read by Python's rules and written anew for the `regex` crate, whose syntax differs in corners: `$`
//! before a last line break, `\Z`, octal escapes, `[` and `&&` in classes, braces that are no quantifiers, `(?#…)`. What
//! can't be had in linear time is refused by name.

use std::fmt::{self, Write as _};

use regex::bytes::{Regex, RegexBuilder};

use super::FilterError;
use super::operators::Flavour;
use super::parse::error;

/// A word or string of an expression: its characters, each with its column.
#[derive(Clone, Debug)]
pub(super) struct Token {
    chars: Vec<(char, usize)>,
    end: usize,
}

impl Token {
    /// `end` is the column behind the last character.
    pub fn new(chars: Vec<(char, usize)>, end: usize) -> Self {
        Self { chars, end }
    }

    pub fn text(&self) -> String {
        self.chars.iter().map(|(c, _)| c).collect()
    }

    pub fn column(&self, index: usize) -> usize {
        self.chars
            .get(index)
            .map_or(self.end, |(_, column)| *column)
    }
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    source: String,
    regex: Regex,
    flags: &'static str,
}

impl Pattern {
    pub fn compile(
        token: &Token,
        flavour: Flavour,
        ignore_case: bool,
    ) -> Result<Self, FilterError> {
        let mut translator = Translator::new(token, flavour, false);
        translator.pattern()?;
        let regex = RegexBuilder::new(&translator.out)
            .unicode(!flavour.bytes)
            .case_insensitive(ignore_case)
            .build()
            .map_err(|cause| not_compiled(cause, token.column(0)))?;
        let flags = match (ignore_case, flavour.multi_line, flavour.dot_all) {
            (true, true, _) => "im",
            (true, _, true) => "is",
            (true, ..) => "i",
            (false, true, _) => "m",
            (false, _, true) => "s",
            (false, ..) => "",
        };
        Ok(Self {
            source: token.text(),
            regex,
            flags,
        })
    }

    /// Whether it matches anywhere in the text.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}

/// A regular expression of Python's `re` module, compiled for an engine that takes linear time, with its groups.
///
/// `dot_all` is Python's `re.DOTALL`. It matches bytes as Python's `re` does with a pattern of type `bytes` (classes and
/// case are those of ASCII), or text, in UTF-8, as with one of type `str`.
///
/// # Errors
/// What Python refuses, too; and look-around, back-references, possessive quantifiers and conditions, which have no
/// linear time.
///
/// ```
/// let regex = tollgate_flow::filter::python_regex(r"(?P<host>\w+)\.example\Z", true, false)?;
/// let found = regex.captures(b"https://api.example").unwrap();
/// assert_eq!(&found["host"], b"api");
/// # Ok::<(), tollgate_flow::filter::FilterError>(())
/// ```
pub fn python_regex(pattern: &str, bytes: bool, dot_all: bool) -> Result<Regex, FilterError> {
    let chars: Vec<(char, usize)> = pattern.chars().zip(1..).collect();
    let token = Token::new(chars, pattern.chars().count() + 1);
    let flavour = Flavour {
        bytes,
        multi_line: false,
        dot_all,
    };
    let mut translator = Translator::new(&token, flavour, true);
    translator.pattern()?;
    RegexBuilder::new(&translator.out)
        .unicode(!bytes)
        .build()
        .map_err(|cause| not_compiled(cause, 1))
}

fn not_compiled(cause: regex::Error, column: usize) -> FilterError {
    let message = match cause {
        regex::Error::CompiledTooBig(_) => {
            "the pattern is too large; are the repetitions meant?".to_owned()
        }
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default();
            format!(
                "the pattern is no regular expression: {}",
                last.trim_start_matches("error: ")
            )
        }
    };
    error(column, &message)
}

/// `/pattern/flags`.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/{}", self.source, self.flags)
    }
}

/// The deepest nesting of groups.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Copy)]
struct Flags {
    multi_line: bool,
    dot_all: bool,
    verbose: bool,
    ascii: bool,
}

struct Translator {
    /// Bytes or characters, as Python would see them, and their columns.
    units: Vec<(u32, usize)>,
    end: usize,
    at: usize,
    bytes: bool,
    flags: Flags,
    out: String,
    depth: usize,
    /// Groups stay groups.
    capturing: bool,
}

type Outcome<T> = Result<T, FilterError>;

impl Translator {
    fn new(token: &Token, flavour: Flavour, capturing: bool) -> Self {
        let mut units = Vec::with_capacity(token.chars.len());
        for &(c, column) in &token.chars {
            if flavour.bytes {
                let mut buffer = [0; 4];
                for byte in c.encode_utf8(&mut buffer).bytes() {
                    units.push((byte.into(), column));
                }
            } else {
                units.push((c.into(), column));
            }
        }
        Self {
            units,
            end: token.end,
            at: 0,
            bytes: flavour.bytes,
            flags: Flags {
                multi_line: flavour.multi_line,
                dot_all: flavour.dot_all,
                verbose: false,
                ascii: flavour.bytes,
            },
            out: String::new(),
            depth: 0,
            capturing,
        }
    }

    fn pattern(&mut self) -> Outcome<()> {
        self.alternatives()?;
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fail(self.at, "this parenthesis in the pattern closes none")),
        }
    }

    /// Up to the end or a closing parenthesis.
    fn alternatives(&mut self) -> Outcome<()> {
        let mut repeatable = false;
        loop {
            let at = self.at;
            let Some(c) = self.peek() else {
                return Ok(());
            };
            if c == ')' {
                return Ok(());
            }
            self.at += 1;
            match c {
                '|' => {
                    self.out.push('|');
                    repeatable = false;
                    continue;
                }
                '*' | '+' | '?' => {
                    self.quantifier(at, repeatable, &c.to_string())?;
                    continue;
                }
                '{' => {
                    if let Some(range) = self.braces() {
                        self.quantifier(at, repeatable, &range)?;
                        continue;
                    }
                    self.literal('{'.into());
                }
                '(' => {
                    if !self.group(at)? {
                        continue;
                    }
                }
                '[' => self.class(at)?,
                '.' => self
                    .out
                    .push_str(if self.flags.dot_all { "(?s:.)" } else { "." }),
                '^' => self.out.push_str(if self.flags.multi_line {
                    "(?m:^)"
                } else {
                    r"\A"
                }),
                // Python's $ also matches before a line break that ends the text.
                '$' => self.out.push_str(if self.flags.multi_line {
                    "(?m:$)"
                } else {
                    r"(?:\n?\z)"
                }),
                '\\' => self.escape(at)?,
                '#' if self.flags.verbose => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                    continue;
                }
                c if self.flags.verbose && c.is_ascii_whitespace() => continue,
                _ => self.literal(self.unit(at)),
            }
            repeatable = true;
        }
    }

    fn quantifier(&mut self, at: usize, repeatable: bool, text: &str) -> Outcome<()> {
        if !repeatable {
            return Err(self.fail(at, "there is nothing to repeat in the pattern here"));
        }
        self.out.push_str(text);
        match self.peek() {
            Some('?') => {
                self.at += 1;
                self.out.push('?');
            }
            Some('+') => {
                return Err(self.fail(
                    at,
                    "possessive quantifiers are not possible: patterns are matched in linear time",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// `{2}`, `{2,}`, `{,3}`, `{2,3}`; anything else is a brace.
    fn braces(&mut self) -> Option<String> {
        let start = self.at;
        let low = self.digits();
        let range = match self.peek() {
            Some('}') if !low.is_empty() => Some(format!("{{{low}}}")),
            Some(',') => {
                self.at += 1;
                let high = self.digits();
                let low = if low.is_empty() { "0" } else { &low };
                Some(format!("{{{low},{high}}}")).filter(|_| self.peek() == Some('}'))
            }
            _ => None,
        };
        self.at = if range.is_some() { self.at + 1 } else { start };
        range
    }

    fn digits(&mut self) -> String {
        let mut digits = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            digits.push(c);
            self.at += 1;
        }
        digits
    }

    /// After the opening parenthesis. Answers whether it was something that can be repeated.
    fn group(&mut self, at: usize) -> Outcome<bool> {
        let outer = self.flags;
        if self.peek() != Some('?') {
            let opening = if self.capturing { "(" } else { "(?:" };
            self.inner(at, opening, outer)?;
            return Ok(true);
        }
        self.at += 1;
        let linear =
            |what: &str| format!("{what} not possible: patterns are matched in linear time");
        let kind = self.peek();
        self.at += 1;
        match (kind, self.peek()) {
            (Some(':'), _) => self.inner(at, "(?:", outer)?,
            (Some('P'), Some('<')) => {
                let mut opening = "(?P<".to_owned();
                self.at += 1;
                while let Some(c) = self.peek().filter(|c| *c != '>') {
                    opening.push(c);
                    self.at += 1;
                }
                self.at += 1;
                opening.push('>');
                let opening = if self.capturing { &opening } else { "(?:" };
                self.inner(at, opening, outer)?;
            }
            (Some('P'), Some('=')) => return Err(self.fail(at, &linear("back-references are"))),
            (Some('='), _) | (Some('!'), _) => return Err(self.fail(at, &linear("look-ahead is"))),
            (Some('<'), Some('=' | '!')) => return Err(self.fail(at, &linear("look-behind is"))),
            (Some('>'), _) => return Err(self.fail(at, &linear("atomic groups are"))),
            (Some('('), _) => return Err(self.fail(at, &linear("conditions are"))),
            (Some('#'), _) => {
                while self.peek().is_some_and(|c| c != ')') {
                    self.at += 1;
                }
                self.close(at)?;
                return Ok(false);
            }
            _ => {
                self.at -= 1;
                return self.flag_group(at, outer);
            }
        }
        Ok(true)
    }

    /// `(?i)`, `(?i-s:…)`.
    fn flag_group(&mut self, at: usize, outer: Flags) -> Outcome<bool> {
        let mut inner = outer;
        let mut opening = "(?".to_owned();
        let mut on = true;
        loop {
            let flag = self.peek();
            self.at += 1;
            match flag {
                Some('i') => opening.push('i'),
                Some('m') => inner.multi_line = on,
                Some('s') => inner.dot_all = on,
                Some('x') => inner.verbose = on,
                Some('a') if on => inner.ascii = true,
                Some('u') if on && !self.bytes => inner.ascii = false,
                Some('-') if on => {
                    on = false;
                    opening.push('-');
                }
                Some(':') => {
                    if opening.ends_with('-') {
                        opening.pop();
                    }
                    opening.push(':');
                    self.inner(at, &opening, inner)?;
                    return Ok(true);
                }
                Some(')') if on => {
                    if at != 0 {
                        return Err(
                            self.fail(at, "flags for the whole pattern stand at its beginning")
                        );
                    }
                    if opening.len() > 2 {
                        self.out.push_str(&opening);
                        self.out.push(')');
                    }
                    self.flags = inner;
                    return Ok(false);
                }
                _ => {
                    return Err(self.fail(
                        at,
                        "this group in the pattern begins with (? and something unknown",
                    ));
                }
            }
        }
    }

    fn inner(&mut self, at: usize, opening: &str, flags: Flags) -> Outcome<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fail(at, "more than 100 groups within each other"));
        }
        let outer = std::mem::replace(&mut self.flags, flags);
        self.out.push_str(opening);
        self.alternatives()?;
        self.close(at)?;
        self.out.push(')');
        self.flags = outer;
        self.depth -= 1;
        Ok(())
    }

    fn close(&mut self, opened: usize) -> Outcome<()> {
        if self.peek() != Some(')') {
            return Err(self.fail(opened, "this parenthesis in the pattern is never closed"));
        }
        self.at += 1;
        Ok(())
    }

    /// After the backslash, outside of a class.
    fn escape(&mut self, at: usize) -> Outcome<()> {
        let Some(c) = self.peek() else {
            return Err(self.fail(at, "a backslash ends the pattern"));
        };
        match c {
            'A' => self.assertion(r"\A"),
            'Z' | 'z' => self.assertion(r"\z"),
            'b' if self.flags.ascii => self.assertion(r"(?-u:\b)"),
            'B' if self.flags.ascii && self.bytes => self.assertion(r"\B"),
            'b' => self.assertion(r"\b"),
            'B' => self.assertion(r"\B"),
            'd' | 'D' | 's' | 'S' | 'w' | 'W' => {
                self.at += 1;
                let members = self.named_class(c);
                let _ = write!(self.out, "[{members}]");
            }
            '1'..='9' if !self.is_octal() => {
                return Err(self.fail(
                    at,
                    "back-references are not possible: patterns are matched in linear time",
                ));
            }
            _ => {
                let unit = self.escaped_unit(at)?;
                self.literal(unit);
            }
        }
        Ok(())
    }

    fn assertion(&mut self, text: &str) {
        self.at += 1;
        self.out.push_str(text);
    }

    /// Members of a class that stand for `\d` and the like.
    fn named_class(&self, name: char) -> &'static str {
        match (name, self.flags.ascii && !self.bytes) {
            ('d', false) => r"\d",
            ('D', false) => r"\D",
            ('s', false) => r"\s",
            ('S', false) => r"\S",
            ('w', false) => r"\w",
            ('W', false) => r"\W",
            ('d', true) => "0-9",
            ('D', true) => "[^0-9]",
            ('s', true) => r"\t-\r\x20",
            ('S', true) => r"[^\t-\r\x20]",
            ('w', true) => "0-9A-Za-z_",
            (_, true) => "[^0-9A-Za-z_]",
            (_, false) => r"\W",
        }
    }

    /// Whether three octal digits follow, which make a character and no back-reference.
    fn is_octal(&self) -> bool {
        (0..3).all(|i| {
            let unit = self.units.get(self.at + i).map(|(unit, _)| *unit);
            unit.is_some_and(|unit| (0x30..0x38).contains(&unit))
        })
    }

    /// After a backslash: the character that is meant.
    fn escaped_unit(&mut self, at: usize) -> Outcome<u32> {
        let Some(c) = self.peek() else {
            return Err(self.fail(at, "a backslash ends the pattern"));
        };
        let unit = self.unit(self.at);
        self.at += 1;
        match c {
            'a' => Ok(7),
            'f' => Ok(0xc),
            'n' => Ok(0xa),
            'r' => Ok(0xd),
            't' => Ok(9),
            'v' => Ok(0xb),
            'x' => self.hex(at, 2),
            'u' if !self.bytes => self.hex(at, 4),
            'U' if !self.bytes => self.hex(at, 8),
            '0'..='7' => {
                let mut value = unit - 0x30;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    value = value * 8 + digit;
                    self.at += 1;
                }
                if value > 0o377 {
                    return Err(self.fail(at, "an octal escape goes up to \\377"));
                }
                Ok(value)
            }
            c if c.is_ascii_alphanumeric() => {
                Err(self.fail(at, &format!("\\{c} means nothing in a pattern")))
            }
            _ => Ok(unit),
        }
    }

    fn hex(&mut self, at: usize, digits: usize) -> Outcome<u32> {
        let mut value: u32 = 0;
        for _ in 0..digits {
            let Some(digit) = self.peek().and_then(|c| c.to_digit(16)) else {
                return Err(self.fail(
                    at,
                    &format!("{digits} hexadecimal digits are expected behind it"),
                ));
            };
            value = value.wrapping_mul(16).wrapping_add(digit);
            self.at += 1;
        }
        if char::from_u32(value).is_none() {
            return Err(self.fail(at, "there is no such character"));
        }
        Ok(value)
    }

    /// After the opening bracket.
    fn class(&mut self, at: usize) -> Outcome<()> {
        self.out.push('[');
        if self.peek() == Some('^') {
            self.at += 1;
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let start = self.at;
            match self.peek() {
                None => return Err(self.fail(at, "this class of characters is never closed")),
                Some(']') if !first => {
                    self.at += 1;
                    self.out.push(']');
                    return Ok(());
                }
                Some(_) => {}
            }
            first = false;
            let Some(low) = self.member()? else {
                // \d and the like; a hyphen behind it can't make a range.
                if self.is_range() {
                    return Err(self.fail(start, "a range can't begin with a class"));
                }
                continue;
            };
            if !self.is_range() {
                self.class_unit(low);
                continue;
            }
            self.at += 1;
            match self.member()? {
                Some(high) if high >= low => {
                    self.class_unit(low);
                    self.out.push('-');
                    self.class_unit(high);
                }
                Some(_) => return Err(self.fail(start, "this range runs backwards")),
                None => return Err(self.fail(start, "a range can't end with a class")),
            }
        }
    }

    /// Whether a hyphen follows that is not the last in its class.
    fn is_range(&self) -> bool {
        let next = self.units.get(self.at + 1).map(|(unit, _)| *unit);
        self.peek() == Some('-') && next.is_some_and(|next| next != u32::from(']'))
    }

    /// One member of a class; `None` for one that was a class itself and has been written.
    fn member(&mut self) -> Outcome<Option<u32>> {
        let at = self.at;
        let unit = self.unit(at);
        self.at += 1;
        if unit != u32::from('\\') {
            return Ok(Some(unit));
        }
        match self.peek() {
            Some(c @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => {
                self.at += 1;
                let members = self.named_class(c);
                self.out.push_str(members);
                Ok(None)
            }
            Some('b') => {
                self.at += 1;
                Ok(Some(8))
            }
            _ => self.escaped_unit(at).map(Some),
        }
    }

    fn class_unit(&mut self, unit: u32) {
        // With braces it is a character, without them a byte. Writing to a string can't fail.
        let _ = if self.bytes {
            write!(self.out, "\\x{unit:02x}")
        } else {
            write!(self.out, "\\x{{{unit:x}}}")
        };
    }

    fn literal(&mut self, unit: u32) {
        match char::from_u32(unit) {
            Some(c) if c.is_ascii_alphanumeric() => self.out.push(c),
            Some(c) if !self.bytes && !c.is_ascii() => self.out.push(c),
            _ => self.class_unit(unit),
        }
    }

    fn unit(&self, at: usize) -> u32 {
        self.units.get(at).map_or(0, |(unit, _)| *unit)
    }

    /// The next unit, where it is syntax or could be; a byte beyond ASCII is never syntax.
    fn peek(&self) -> Option<char> {
        let (unit, _) = self.units.get(self.at)?;
        Some(char::from_u32(*unit).unwrap_or('\u{fffd}'))
    }

    fn fail(&self, at: usize, message: &str) -> FilterError {
        let column = self.units.get(at).map_or(self.end, |(_, column)| *column);
        error(column, message)
    }
}

#[cfg(test)]
mod tests {
    use super::super::operators::Texts;
    use super::*;

    fn token(pattern: &str) -> Token {
        let columns = 1..=pattern.chars().count();
        let end = *columns.end() + 1;
        Token::new(pattern.chars().zip(columns).collect(), end)
    }

    fn compiled(texts: Texts, pattern: &str) -> Pattern {
        Pattern::compile(&token(pattern), texts.flavour(), true).unwrap()
    }

    #[test]
    fn patterns_mean_what_they_mean_in_python() {
        // Checked with Python's re.
        for (texts, pattern, text, expected) in [
            (Texts::Url, "^a$", "A", true),
            (Texts::Url, "a$", "a\n", true),
            (Texts::Url, "a$", "a\n\n", false),
            (Texts::Url, "a.b", "a\nb", false),
            (Texts::Url, "^b", "a\nb", false),
            (Texts::Comment, "^b$", "a\nb\nc", true),
            (Texts::Body, "a.b", "a\nb", true),
            (Texts::Body, "^b", "a\nb", false),
            (Texts::Header, "^b: c$", "a: b\r\nB: c\n", true),
            (Texts::Url, r"a\Z", "a\n", false),
            (Texts::Url, r"\x41\u0042\103", "abc", true),
            (Texts::Body, r"\xff\377", "\u{ff}", false),
            (Texts::Url, r"\0", "\0", true),
            (Texts::Url, "a{,2}b", "b", true),
            (Texts::Url, "a{b", "a{b", true),
            (Texts::Url, "a{1", "a{1", true),
            (Texts::Url, "a{}", "a{}", true),
            (Texts::Url, "x{2}{", "xx{", true),
            (Texts::Url, "[]a]", "]", true),
            (Texts::Url, "[^]a]", "]", false),
            (Texts::Url, "[[a]", "[", true),
            (Texts::Url, "[a&&b]", "&", true),
            (Texts::Url, "[a&&b]", "a", true),
            (Texts::Url, "[!--a]", "x", false),
            (Texts::Url, "[!--a]", "+", true),
            (Texts::Url, "[[:alpha:]]", "x]", false),
            (Texts::Url, "[[:alpha:]]", "a]", true),
            (Texts::Url, r"[\w-]", "-", true),
            (Texts::Url, r"[\]]", "]", true),
            (Texts::Url, "[a-]", "-", true),
            (Texts::Url, r"[\b]", "\u{8}", true),
            (Texts::Url, r"a\-b\/\_\<", "a-b/_<", true),
            (Texts::Url, "a(?#comment)b", "ab", true),
            (Texts::Url, "(?P<n>a)b", "ab", true),
            (Texts::Url, "(?x) a b # c", "ab", true),
            (Texts::Url, "(?x) a[ ]b", "a b", true),
            (Texts::Url, "(?s:a.)b", "a\nb", true),
            (Texts::Url, "(?s)a.b", "a\nb", true),
            (Texts::Body, "(?-s:a.b)", "a\nb", false),
            (Texts::Url, "(?-i:A)b", "aB", false),
            (Texts::Url, "(?-i:A)b", "AB", true),
            (Texts::Url, "(?m)^b", "a\nb", true),
            (Texts::Url, "ÄÖ", "äö", true),
            (Texts::Url, r"\w", "ä", true),
            (Texts::Url, r"(?a)^\w$", "ä", false),
            (Texts::Url, r"(?a)^[\W]$", "ä", true),
            (Texts::Url, r"(?a)\d[\s]", "1 ", true),
            (Texts::Body, r"\w", "ä", false),
            (Texts::Body, "Ä", "ä", false),
            (Texts::Body, "ä", "ä", true),
            (Texts::Body, "[ä]", "ä", true),
            (Texts::Body, "ä{2}", "\u{e4}", false),
            (Texts::Url, "a|", "zzz", true),
            (Texts::Url, "", "", true),
            (Texts::Url, "a+?b*?c??", "ab", true),
            (Texts::Url, r"\bb\B.", "a bc", true),
            (Texts::Method, r"\bb\B.", "a bc", true),
            (Texts::Url, "💥", "💥", true),
        ] {
            let found = compiled(texts, pattern).is_match(text.as_bytes());
            assert_eq!(found, expected, "{pattern:?} in {text:?}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_its_place() {
        for (pattern, column, part) in [
            ("a(?=b)", 2, "look-ahead"),
            ("a(?!b)", 2, "look-ahead"),
            ("(?<=a)b", 1, "look-behind"),
            ("(?<!a)b", 1, "look-behind"),
            (r"(a)\1", 4, "back-references"),
            ("(?P<a>b)(?P=a)", 9, "back-references"),
            ("a*+", 2, "possessive"),
            ("a{2}+", 2, "possessive"),
            ("(?>a)", 1, "atomic"),
            ("(?(1)a|b)", 1, "conditions"),
            ("a)", 2, "closes none"),
            ("(a", 1, "never closed"),
            ("[a", 1, "never closed"),
            ("[b-a]", 2, "backwards"),
            (r"[\d-a]", 2, "range"),
            (r"[a-\d]", 2, "range"),
            ("*a", 1, "nothing to repeat"),
            ("a|*", 3, "nothing to repeat"),
            (r"\q", 1, "means nothing"),
            (r"\xf", 1, "hexadecimal"),
            (r"\ud800", 1, "no such character"),
            (r"\777", 1, "octal"),
            ("a(?i)", 2, "beginning"),
            ("(?", 1, "unknown"),
            ("(?z)", 1, "unknown"),
            ("\\", 1, "backslash"),
            ("(((a{1000}){1000}){1000})", 1, "too large"),
        ] {
            let result = Pattern::compile(&token(pattern), Texts::Url.flavour(), true);
            let error = result.unwrap_err();
            assert_eq!(error.column, column, "{pattern}: {error}");
            assert!(error.message.contains(part), "{pattern}: {error}");
        }
        let deep = "(".repeat(200);
        assert!(Pattern::compile(&token(&deep), Texts::Url.flavour(), true).is_err());
    }

    #[test]
    fn case_can_matter() {
        let pattern = Pattern::compile(&token("A"), Texts::Url.flavour(), false).unwrap();
        assert!(pattern.is_match(b"A") && !pattern.is_match(b"a"));
        assert_eq!(pattern.to_string(), "/A/");
        assert_eq!(compiled(Texts::Body, "a").to_string(), "/a/is");
    }
}

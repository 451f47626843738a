//! A tnetstring as a tree that borrows from it.

use std::borrow::Cow;

use bytes::Bytes;

use crate::value::Value;

/// The deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// The longest length prefix, as mitmproxy has it.
pub(super) const MAX_LENGTH_DIGITS: usize = 12;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item<'a> {
    Null,
    Bool(bool),
    Int(i64),
    BigInt(&'a str),
    Float(f64),
    Bytes(Cow<'a, [u8]>),
    Str(Cow<'a, str>),
    List(Vec<Item<'a>>),
    Dict(Dict<'a>),
    /// A list that was not taken apart yet: its items one after the other.
    RawList(&'a [u8]),
    /// A dictionary that was not taken apart yet.
    RawDict(&'a [u8]),
}

/// Entries as they stand in the file, which is the reverse of the order in which they were put in.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Dict<'a>(pub Vec<(Item<'a>, Item<'a>)>);

/// Where the syntax breaks: counted from the start of the payload that was given, or, in what was taken apart later,
/// the address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    pub offset: usize,
    pub what: &'static str,
}

impl<'a> Item<'a> {
    /// Reads the payload of a tnetstring with a tag.
    pub fn parse(payload: &'a [u8], tag: u8) -> Result<Self, Malformed> {
        let parser = Parser {
            base: payload.as_ptr() as usize,
            is_shallow: false,
        };
        parser.item(payload, tag, 0)
    }

    /// The same for a flow of the newest version, in which nothing is moved: what lists and dictionaries within it hold
    /// is read when it is asked for, and so once.
    pub fn parse_shallow(payload: &'a [u8], tag: u8) -> Result<Self, Malformed> {
        let parser = Parser {
            base: payload.as_ptr() as usize,
            is_shallow: true,
        };
        parser.item(payload, tag, 0)
    }

    /// What it is, for an error.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Bytes(_) => "bytes",
            Self::Str(_) => "text",
            Self::List(_) | Self::RawList(_) => "a list",
            Self::Dict(_) | Self::RawDict(_) => "a dictionary",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Python's truth: whether it is something that isn't empty, false or zero.
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::BigInt(_) => true,
            Self::Float(number) => *number != 0.0,
            Self::Bytes(bytes) => !bytes.is_empty(),
            Self::Str(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Dict(dict) => !dict.0.is_empty(),
            Self::RawList(raw) | Self::RawDict(raw) => !raw.is_empty(),
        }
    }

    /// A copy that owns what it holds, with dictionaries in the order in which they were made.
    pub fn into_value(self) -> Result<Value, Malformed> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Int(number) => Value::Int(number),
            Self::BigInt(digits) => Value::BigInt(digits.to_owned()),
            Self::Float(number) => Value::Float(number),
            Self::Bytes(bytes) => Value::Bytes(Bytes::from(bytes.into_owned())),
            Self::Str(text) => Value::Str(text.into_owned()),
            Self::List(items) => {
                let items = items.into_iter().map(Self::into_value);
                Value::List(items.collect::<Result<_, _>>()?)
            }
            Self::Dict(dict) => Value::Dict(dict.into_values()?),
            Self::RawList(raw) => LATER.item(raw, b']', 1)?.into_value()?,
            Self::RawDict(raw) => LATER.item(raw, b'}', 1)?.into_value()?,
        })
    }
}

/// The items of a list.
pub(super) enum Items<'a> {
    Read(std::vec::IntoIter<Item<'a>>),
    Raw(&'a [u8]),
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Read(items) => items.next().map(Ok),
            Self::Raw(rest) => next_of(rest),
        }
    }
}

/// The entries of a dictionary, as they stand in the file.
pub(super) enum Entries<'a> {
    Read(std::vec::IntoIter<(Item<'a>, Item<'a>)>),
    Raw(&'a [u8]),
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(Item<'a>, Item<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Read(entries) => entries.next().map(Ok),
            Self::Raw(rest) => {
                let at = *rest;
                let key = match next_of(rest)? {
                    Ok(key) => key,
                    Err(malformed) => return Some(Err(malformed)),
                };
                let value = next_of(rest);
                let value = value.unwrap_or_else(|| Err(LATER.broken(at, "a length is missing")));
                Some(value.map(|value| (key, value)))
            }
        }
    }
}

/// Takes the next item off. Behind what is broken, nothing follows.
fn next_of<'a>(rest: &mut &'a [u8]) -> Option<Result<Item<'a>, Malformed>> {
    if rest.is_empty() {
        return None;
    }
    let parser = Parser {
        base: 0,
        is_shallow: true,
    };
    Some(match parser.next(rest, 1) {
        Ok((item, after)) => {
            *rest = after;
            Ok(item)
        }
        Err(malformed) => {
            *rest = &[];
            Err(malformed)
        }
    })
}

impl<'a> Dict<'a> {
    pub fn get(&self, key: &str) -> Option<&Item<'a>> {
        let found = self.0.iter().find(|(name, _)| name.as_str() == Some(key));
        found.map(|(_, item)| item)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Item<'a>> {
        let found = self
            .0
            .iter_mut()
            .find(|(name, _)| name.as_str() == Some(key));
        found.map(|(_, item)| item)
    }

    /// Takes an entry out.
    pub fn take(&mut self, key: &str) -> Option<Item<'a>> {
        let at = self
            .0
            .iter()
            .position(|(name, _)| name.as_str() == Some(key))?;
        Some(self.0.swap_remove(at).1)
    }

    /// Puts an entry in, in place of one with that key.
    pub fn put(&mut self, key: &'static str, item: Item<'a>) {
        match self.get_mut(key) {
            Some(slot) => *slot = item,
            None => self.0.push((Item::Str(Cow::Borrowed(key)), item)),
        }
    }

    /// Gives an entry another key; a missing one becomes `Null`.
    pub fn rename(&mut self, from: &str, to: &'static str) {
        let item = self.take(from).unwrap_or(Item::Null);
        self.put(to, item);
    }

    pub fn dict_mut(&mut self, key: &str) -> Option<&mut Dict<'a>> {
        match self.get_mut(key) {
            Some(Item::Dict(dict)) => Some(dict),
            _ => None,
        }
    }

    pub fn into_values(self) -> Result<Vec<(Value, Value)>, Malformed> {
        let entries = self.0.into_iter().rev();
        entries
            .map(|(key, item)| Ok((key.into_value()?, item.into_value()?)))
            .collect()
    }
}

/// Takes apart all that is left, and tells addresses.
const LATER: Parser = Parser {
    base: 0,
    is_shallow: false,
};

struct Parser {
    /// The address from which offsets count.
    base: usize,
    /// Whether what stands within something else is left as it is.
    is_shallow: bool,
}

impl Parser {
    fn item<'a>(&self, payload: &'a [u8], tag: u8, depth: usize) -> Result<Item<'a>, Malformed> {
        let text =
            || std::str::from_utf8(payload).map_err(|_| self.broken(payload, "text is not UTF-8"));
        Ok(match tag {
            b',' => Item::Bytes(Cow::Borrowed(payload)),
            b';' => Item::Str(Cow::Borrowed(text()?)),
            b'#' => self.integer(payload)?,
            b'^' => {
                let number = text()?.trim().parse();
                Item::Float(number.map_err(|_| self.broken(payload, "a number is none"))?)
            }
            b'!' if payload == b"true" => Item::Bool(true),
            b'!' if payload == b"false" => Item::Bool(false),
            b'!' => return Err(self.broken(payload, "a truth value is neither true nor false")),
            b'~' if payload.is_empty() => Item::Null,
            b'~' => return Err(self.broken(payload, "nothing has a length")),
            b']' | b'}' if depth >= MAX_DEPTH => {
                return Err(self.broken(payload, "more than 64 lists within each other"));
            }
            b']' if self.is_shallow && depth > 0 => Item::RawList(payload),
            b'}' if self.is_shallow && depth > 0 => Item::RawDict(payload),
            b']' => {
                let mut items = Vec::new();
                let mut rest = payload;
                while !rest.is_empty() {
                    let (item, after) = self.next(rest, depth + 1)?;
                    items.push(item);
                    rest = after;
                }
                Item::List(items)
            }
            b'}' => {
                let mut entries = Vec::with_capacity(16);
                let mut rest = payload;
                while !rest.is_empty() {
                    let (key, after) = self.next(rest, depth + 1)?;
                    let (value, after) = self.next(after, depth + 1)?;
                    entries.push((key, value));
                    rest = after;
                }
                Item::Dict(Dict(entries))
            }
            _ => return Err(self.broken(payload, "a type is unknown")),
        })
    }

    /// One tnetstring, and what follows it.
    fn next<'a>(&self, data: &'a [u8], depth: usize) -> Result<(Item<'a>, &'a [u8]), Malformed> {
        let no_length = || self.broken(data, "a length is missing");
        let mut length: usize = 0;
        let mut rest = data;
        for digits in 0.. {
            let (&byte, after) = rest.split_first().ok_or_else(no_length)?;
            rest = after;
            match byte {
                b'0'..=b'9' if digits < MAX_LENGTH_DIGITS => {
                    // Twelve digits fit.
                    length = length * 10 + usize::from(byte - b'0');
                }
                b':' if digits > 0 => break,
                _ => return Err(no_length()),
            }
        }
        let too_long = || self.broken(data, "a length goes beyond the end");
        let (payload, rest) = rest.split_at_checked(length).ok_or_else(too_long)?;
        let (&tag, rest) = rest.split_first().ok_or_else(too_long)?;
        Ok((self.item(payload, tag, depth)?, rest))
    }

    fn integer<'a>(&self, payload: &'a [u8]) -> Result<Item<'a>, Malformed> {
        let text = std::str::from_utf8(payload).unwrap_or_default().trim();
        if let Ok(number) = text.parse() {
            return Ok(Item::Int(number));
        }
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.broken(payload, "an integer is none"));
        }
        Ok(Item::BigInt(text))
    }

    fn broken(&self, at: &[u8], what: &'static str) -> Malformed {
        Malformed {
            offset: (at.as_ptr() as usize).saturating_sub(self.base),
            what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Value, Malformed> {
        let base = text.as_ptr() as usize;
        let read = |is_shallow| {
            let (item, _) = Parser { base, is_shallow }.next(text.as_bytes(), 0)?;
            item.into_value()
        };
        let whole = read(false);
        // Read later, it is the same; what is broken within is then at an address.
        match (read(true), &whole) {
            (Ok(later), Ok(whole)) => assert_eq!(later, *whole),
            (Err(later), Err(whole)) => {
                let offset = later.offset;
                assert!(offset == whole.offset || offset - base == whole.offset);
                assert_eq!(later.what, whole.what);
            }
            (later, whole) => panic!("{text}: {later:?}, {whole:?}"),
        }
        whole
    }

    #[test]
    fn every_type_is_read() {
        for (text, value) in [
            ("1:a,", Value::Bytes(Bytes::from_static(b"a"))),
            ("2:\u{fc};", Value::Str("ü".into())),
            ("2:-1#", Value::Int(-1)),
            (
                "20:99999999999999999999#",
                Value::BigInt("99999999999999999999".into()),
            ),
            ("6:1e-320^", Value::Float(1e-320)),
            ("4:true!", Value::Bool(true)),
            ("5:false!", Value::Bool(false)),
            ("0:~", Value::Null),
            (
                "8:1:1#1:2#]",
                Value::List(vec![Value::Int(1), Value::Int(2)]),
            ),
            // What was put in last stands first.
            (
                "16:1:b;1:2#1:a;1:1#}",
                Value::Dict(vec![
                    ("a".into(), Value::Int(1)),
                    ("b".into(), Value::Int(2)),
                ]),
            ),
        ] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_broken_is_located() {
        for (text, offset, what) in [
            ("", 0, "a length is missing"),
            (":", 0, "a length is missing"),
            ("1", 0, "a length is missing"),
            ("1234567890123:", 0, "a length is missing"),
            ("x:", 0, "a length is missing"),
            ("-1:a,", 0, "a length is missing"),
            ("5:a,", 0, "a length goes beyond the end"),
            ("1:a", 0, "a length goes beyond the end"),
            ("1:a?", 2, "a type is unknown"),
            ("4:maybe!", 2, "a type is unknown"),
            ("3:tru!", 2, "a truth value is neither true nor false"),
            ("1:x~", 2, "nothing has a length"),
            ("1:x#", 2, "an integer is none"),
            ("1:x^", 2, "a number is none"),
            ("8:1:a,1:b?]", 8, "a type is unknown"),
            ("4:1:a,}", 6, "a length is missing"),
        ] {
            assert_eq!(parse(text), Err(Malformed { offset, what }), "{text}");
        }
        assert_eq!(
            Item::parse(b"\xff", b';'),
            Err(Malformed {
                offset: 0,
                what: "text is not UTF-8"
            })
        );
        let mut deep = "0:]".to_owned();
        for _ in 0..100 {
            deep = format!("{}:{deep}]", deep.len());
        }
        assert!(parse(&deep).is_err());
    }
}

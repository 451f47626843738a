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

/// The entries of a dictionary, as they stand in the file. The name of one that is not text is empty. (No upgrade makes
/// names that aren't borrowed.)
pub(super) enum Entries<'a> {
    Read(std::vec::IntoIter<(Item<'a>, Item<'a>)>),
    Raw(&'a [u8]),
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(&'a str, Item<'a>), Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Read(entries) => entries.next().map(|(key, item)| match key {
                Item::Str(Cow::Borrowed(name)) => Ok((name, item)),
                _ => Ok(("", item)),
            }),
            Self::Raw(rest) => {
                if rest.is_empty() {
                    return None;
                }
                let entry = entry_of(rest);
                if entry.is_err() {
                    *rest = &[];
                }
                Some(entry)
            }
        }
    }
}

#[inline]
fn entry_of<'a>(rest: &mut &'a [u8]) -> Result<(&'a str, Item<'a>), Malformed> {
    let name = match AS_IT_IS.next(rest, 1)? {
        Item::Str(Cow::Borrowed(name)) => name,
        _ => "",
    };
    Ok((name, AS_IT_IS.next(rest, 1)?))
}

/// Takes the next item off. Behind what is broken, nothing follows.
#[inline]
fn next_of<'a>(rest: &mut &'a [u8]) -> Option<Result<Item<'a>, Malformed>> {
    if rest.is_empty() {
        return None;
    }
    let item = AS_IT_IS.next(rest, 1);
    if item.is_err() {
        *rest = &[];
    }
    Some(item)
}

/// The name and value of a header field, and what follows it, where they are just that: a list of two runs of bytes.
#[inline]
pub(super) fn pair_of<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (mut pair, b']', after) = token(rest)? else {
        return None;
    };
    let (name, b',', more) = token(pair)? else {
        return None;
    };
    pair = more;
    let (value, b',', []) = token(pair)? else {
        return None;
    };
    *rest = after;
    Some((name, value))
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

/// Takes one thing off and leaves what stands within, and tells addresses.
const AS_IT_IS: Parser = Parser {
    base: 0,
    is_shallow: true,
};

/// The payload of the tnetstring that data begins with, its tag, and what follows. `None` where there is no whole one.
#[inline]
fn token(data: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let digit = |byte: &u8| usize::from(byte.wrapping_sub(b'0'));
    // Most lengths have one to three digits.
    let (length, rest) = match data {
        [a @ b'0'..=b'9', b':', rest @ ..] => (digit(a), rest),
        [a @ b'0'..=b'9', b @ b'0'..=b'9', b':', rest @ ..] => (digit(a) * 10 + digit(b), rest),
        [
            a @ b'0'..=b'9',
            b @ b'0'..=b'9',
            c @ b'0'..=b'9',
            b':',
            rest @ ..,
        ] => (digit(a) * 100 + digit(b) * 10 + digit(c), rest),
        _ => long_length(data)?,
    };
    let (payload, rest) = rest.split_at_checked(length)?;
    let (&tag, rest) = rest.split_first()?;
    Some((payload, tag, rest))
}

/// A number of one to nine digits.
#[inline]
fn small(digits: &[u8]) -> Option<i64> {
    if !(1..=9).contains(&digits.len()) {
        return None;
    }
    let mut number = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + i64::from(digit);
    }
    Some(number)
}

#[cold]
fn long_length(data: &[u8]) -> Option<(usize, &[u8])> {
    let digits = data.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = data.split_at_checked(digits)?;
    let rest = rest.strip_prefix(b":")?;
    if !(1..=MAX_LENGTH_DIGITS).contains(&digits) {
        return None;
    }
    // Twelve digits fit.
    let length = number.iter().fold(0_u64, |length, byte| {
        length * 10 + u64::from(byte.wrapping_sub(b'0'))
    });
    Some((usize::try_from(length).ok()?, rest))
}

struct Parser {
    /// The address from which offsets count.
    base: usize,
    /// Whether what stands within something else is left as it is.
    is_shallow: bool,
}

impl Parser {
    #[inline]
    fn item<'a>(&self, payload: &'a [u8], tag: u8, depth: usize) -> Result<Item<'a>, Malformed> {
        Ok(match tag {
            b',' => Item::Bytes(Cow::Borrowed(payload)),
            b';' => match std::str::from_utf8(payload) {
                Ok(text) => Item::Str(Cow::Borrowed(text)),
                Err(_) => return Err(self.broken(payload, "text is not UTF-8")),
            },
            b'~' if payload.is_empty() => Item::Null,
            b'!' if payload == b"false" => Item::Bool(false),
            b'!' if payload == b"true" => Item::Bool(true),
            b'#' => match small(payload) {
                Some(number) => Item::Int(number),
                None => self.integer(payload)?,
            },
            b']' if self.is_shallow && depth > 0 => Item::RawList(payload),
            b'}' if self.is_shallow && depth > 0 => Item::RawDict(payload),
            _ => return self.other_item(payload, tag, depth),
        })
    }

    fn other_item<'a>(
        &self,
        payload: &'a [u8],
        tag: u8,
        depth: usize,
    ) -> Result<Item<'a>, Malformed> {
        let text =
            || std::str::from_utf8(payload).map_err(|_| self.broken(payload, "text is not UTF-8"));
        Ok(match tag {
            b'^' => {
                let number = text()?.trim().parse();
                Item::Float(number.map_err(|_| self.broken(payload, "a number is none"))?)
            }
            b'!' => return Err(self.broken(payload, "a truth value is neither true nor false")),
            b'~' => return Err(self.broken(payload, "nothing has a length")),
            b']' | b'}' if depth >= MAX_DEPTH => {
                return Err(self.broken(payload, "more than 64 lists within each other"));
            }
            b']' => {
                let mut items = Vec::new();
                let mut rest = payload;
                while !rest.is_empty() {
                    items.push(self.next(&mut rest, depth + 1)?);
                }
                Item::List(items)
            }
            b'}' => {
                let mut entries = Vec::with_capacity(16);
                let mut rest = payload;
                while !rest.is_empty() {
                    let key = self.next(&mut rest, depth + 1)?;
                    entries.push((key, self.next(&mut rest, depth + 1)?));
                }
                Item::Dict(Dict(entries))
            }
            _ => return Err(self.broken(payload, "a type is unknown")),
        })
    }

    /// Takes one tnetstring off.
    #[inline]
    fn next<'a>(&self, rest: &mut &'a [u8], depth: usize) -> Result<Item<'a>, Malformed> {
        let data = *rest;
        let Some((payload, tag, after)) = token(data) else {
            return Err(self.no_token(data));
        };
        *rest = after;
        self.item(payload, tag, depth)
    }

    /// Why there is no tnetstring.
    #[cold]
    fn no_token(&self, data: &[u8]) -> Malformed {
        let digits = data.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let has_length =
            (1..=MAX_LENGTH_DIGITS).contains(&digits) && data.get(digits) == Some(&b':');
        match has_length {
            true => self.broken(data, "a length goes beyond the end"),
            false => self.broken(data, "a length is missing"),
        }
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
            let item = Parser { base, is_shallow }.next(&mut text.as_bytes(), 0)?;
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

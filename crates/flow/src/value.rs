//! Values without a schema: what a flow file holds beside what it must hold.

use std::fmt::{self, Write as _};

use bytes::Bytes;

/// A value of the kinds that a flow file knows: what add-ons left in a flow's metadata, and the backup of an edited flow.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An integer that needs more than 64 bits, in decimal.
    BigInt(String),
    /// A floating-point number.
    Float(f64),
    /// Bytes.
    Bytes(Bytes),
    /// Text.
    Str(String),
    /// A list.
    List(Vec<Value>),
    /// A dictionary, in the order in which its entries were put in. Keys are mostly text.
    Dict(Vec<(Value, Value)>),
}

impl Value {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The entry of a dictionary under a text key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Self::Dict(entries) => lookup(entries, key),
            _ => None,
        }
    }

    /// As Python's `str()` shows it, which is what mitmproxy's `~meta` looks at: text as it is, everything else as
    /// [`repr`](Self::write_repr).
    pub fn write_str(&self, out: &mut String) {
        match self {
            Self::Str(text) => out.push_str(text),
            other => other.write_repr(out),
        }
    }

    /// As Python's `repr()` shows it.
    pub fn write_repr(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            // Writing to a string can't fail.
            Self::Int(number) => drop(write!(out, "{number}")),
            Self::BigInt(digits) => out.push_str(digits),
            Self::Float(number) => drop(write!(out, "{}", PythonFloat(*number))),
            Self::Bytes(bytes) => bytes_repr(bytes, out),
            Self::Str(text) => str_repr(text, out),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    item.write_repr(out);
                }
                out.push(']');
            }
            Self::Dict(entries) => {
                out.push('{');
                for (i, (key, value)) in entries.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    key.write_repr(out);
                    out.push_str(": ");
                    value.write_repr(out);
                }
                out.push('}');
            }
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or_else(|_| Self::BigInt(number.to_string()), Self::Int)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

pub(crate) fn lookup<'a>(entries: &'a [(Value, Value)], key: &str) -> Option<&'a Value> {
    entries
        .iter()
        .find(|(name, _)| name.as_str() == Some(key))
        .map(|(_, value)| value)
}

/// A float as Python's `repr()` writes it: the shortest digits that give the same number back.
pub(crate) struct PythonFloat(pub f64);

impl fmt::Display for PythonFloat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        if number.is_nan() {
            return f.write_str("nan");
        }
        let size = number.abs();
        if number.is_infinite() || size == 0.0 || (1e-4..1e16).contains(&size) {
            return write!(f, "{number:?}");
        }
        // Rust writes 1e16 and 1e-5 where Python writes 1e+16 and 1e-05.
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        write!(f, "{digits}e{sign}{exponent:0>2}")
    }
}

fn quote_for(has_single: bool, has_double: bool) -> char {
    if has_single && !has_double { '"' } else { '\'' }
}

pub(crate) fn bytes_repr(bytes: &[u8], out: &mut String) {
    let quote = quote_for(bytes.contains(&b'\''), bytes.contains(&b'"'));
    out.push('b');
    out.push(quote);
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\t' => out.push_str("\\t"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b' '..=b'~' if char::from(byte) == quote => {
                out.push('\\');
                out.push(quote);
            }
            b' '..=b'~' => out.push(char::from(byte)),
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    out.push(quote);
}

pub(crate) fn str_repr(text: &str, out: &mut String) {
    let quote = quote_for(text.contains('\''), text.contains('"'));
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Near enough to Python's `str.isprintable`: no control characters, no white space but the space, no format characters.
fn is_printable(c: char) -> bool {
    let hidden = matches!(
        u32::from(c),
        0xad | 0x600..=0x605 | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xe000..=0xf8ff | 0xfeff
    );
    !c.is_control() && !c.is_whitespace() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repr(value: &Value) -> String {
        let mut out = String::new();
        value.write_repr(&mut out);
        out
    }

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (number, text) in [
            (946681203.0, "946681203.0"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9999999999999998.0, "9999999999999998.0"),
            (0.0001, "0.0001"),
            (0.00001234, "1.234e-05"),
            (1e300, "1e+300"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
            (1700000000.123456, "1700000000.123456"),
        ] {
            assert_eq!(PythonFloat(number).to_string(), text);
        }
    }

    #[test]
    fn values_are_shown_as_python_shows_them() {
        let value = Value::Dict(vec![
            (
                "it's".into(),
                Value::List(vec![Value::Null, true.into(), Value::Int(-1)]),
            ),
            (
                Value::Int(1),
                Value::Bytes(Bytes::from_static(b"a\"'\\\n\xff")),
            ),
            ("ü\u{200b}\u{1f600}".into(), Value::Float(1.0)),
        ]);
        assert_eq!(
            repr(&value),
            r#"{"it's": [None, True, -1], 1: b'a"\'\\\n\xff', 'ü\u200b😀': 1.0}"#
        );
        let mut text = String::new();
        Value::from("as it's").write_str(&mut text);
        assert_eq!(text, "as it's");
    }
}

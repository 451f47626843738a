//! JSON in the layout of Python's `json.dumps(indent=4)`.

use std::io::Write as _;

use crate::record::Timestamp;
use crate::value::PythonFloat;

/// A number that is an integer while it can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    pub fn value(self) -> f64 {
        match self {
            Self::Int(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    /// Milliseconds between two moments.
    pub fn millis_between(start: Timestamp, end: Timestamp) -> Self {
        if start.is_integer() && end.is_integer() {
            Self::Int((1000.0 * (end.seconds() - start.seconds())) as i64)
        } else {
            Self::Float(1000.0 * (end.seconds() - start.seconds()))
        }
    }

    /// The sum of those that aren't negative, as Python adds floats: with what rounding lost put back at the end.
    pub fn sum_of_positive(numbers: &[Self]) -> Self {
        let mut ints: i64 = 0;
        let mut floats: Option<(f64, f64)> = None;
        for number in numbers.iter().filter(|number| number.value() >= 0.0) {
            match (number, &mut floats) {
                (Self::Int(number), None) => ints = ints.saturating_add(*number),
                (number, floats) => {
                    let (sum, lost) = floats.get_or_insert((ints as f64, 0.0));
                    let x = number.value();
                    let next = *sum + x;
                    *lost += if sum.abs() >= x.abs() {
                        (*sum - next) + x
                    } else {
                        (x - next) + *sum
                    };
                    *sum = next;
                }
            }
        }
        match floats {
            None => Self::Int(ints),
            Some((sum, lost)) => Self::Float(sum + lost),
        }
    }
}

impl From<Timestamp> for Number {
    fn from(moment: Timestamp) -> Self {
        if moment.is_integer() {
            Self::Int(moment.seconds() as i64)
        } else {
            Self::Float(moment.seconds())
        }
    }
}

/// Writes one value after another; the caller says when an object or a list begins and ends.
#[derive(Debug, Default)]
pub(super) struct Json {
    pub out: Vec<u8>,
    depth: usize,
    /// Whether a comma is due before the next member.
    comma: bool,
}

impl Json {
    pub fn at_depth(depth: usize) -> Self {
        Self {
            depth,
            ..Self::default()
        }
    }

    /// `{ … }`
    pub fn object(&mut self, write: impl FnOnce(&mut Self)) {
        self.nested(b'{', b'}', write);
    }

    /// `[ … ]`
    pub fn list<T>(&mut self, items: impl Iterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        self.nested(b'[', b']', |json| {
            for item in items {
                json.begin_member();
                write(json, item);
                json.comma = true;
            }
        });
    }

    fn nested(&mut self, open: u8, close: u8, write: impl FnOnce(&mut Self)) {
        self.out.push(open);
        self.depth += 1;
        self.comma = false;
        let before = self.out.len();
        write(self);
        self.depth -= 1;
        if self.out.len() > before {
            self.line();
        }
        self.out.push(close);
        self.comma = true;
    }

    fn begin_member(&mut self) {
        if self.comma {
            self.out.push(b',');
        }
        self.line();
    }

    fn line(&mut self) {
        self.out.push(b'\n');
        self.out.resize(self.out.len() + 4 * self.depth, b' ');
    }

    /// The name of a member; its value follows.
    pub fn key(&mut self, name: &str) -> &mut Self {
        self.begin_member();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\": ");
        self
    }

    pub fn raw(&mut self, literal: &str) {
        self.out.extend_from_slice(literal.as_bytes());
        self.comma = true;
    }

    pub fn null(&mut self) {
        self.raw("null");
    }

    pub fn boolean(&mut self, value: bool) {
        self.raw(if value { "true" } else { "false" });
    }

    pub fn integer(&mut self, number: i64) {
        // Writing to memory can't fail.
        let _ = write!(self.out, "{number}");
        self.comma = true;
    }

    pub fn number(&mut self, number: Number) {
        match number {
            Number::Int(number) => self.integer(number),
            Number::Float(number) if number.is_finite() => {
                let _ = write!(self.out, "{}", PythonFloat(number));
                self.comma = true;
            }
            // JSON has no word for it.
            Number::Float(_) => self.integer(0),
        }
    }

    /// UTF-8; a byte that is none becomes the surrogate U+DC00 and its value, as Python's `surrogateescape` does.
    pub fn string(&mut self, text: &[u8]) {
        self.out.push(b'"');
        for chunk in text.utf8_chunks() {
            for c in chunk.valid().chars() {
                self.character(c);
            }
            for byte in chunk.invalid() {
                let _ = write!(self.out, "\\udc{byte:02x}");
            }
        }
        self.out.push(b'"');
        self.comma = true;
    }

    fn character(&mut self, c: char) {
        let _ = match c {
            '"' => self.out.write(b"\\\""),
            '\\' => self.out.write(b"\\\\"),
            '\n' => self.out.write(b"\\n"),
            '\r' => self.out.write(b"\\r"),
            '\t' => self.out.write(b"\\t"),
            '\x08' => self.out.write(b"\\b"),
            '\x0c' => self.out.write(b"\\f"),
            ' '..='~' => {
                self.out.push(c as u8);
                return;
            }
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(self.out, "\\u{unit:04x}");
                }
                return;
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_python() {
        let mut json = Json::default();
        json.object(|json| {
            json.key("a")
                .list([1, 2].into_iter(), |json, n| json.integer(n));
            json.key("b")
                .list([].into_iter(), |json, n| json.integer(n));
            json.key("c").object(|_| {});
            json.key("d").string("ü\u{1f600}\"\\\n\x7f\x01".as_bytes());
            json.key("e").string(b"\xff");
            json.key("f").number(Number::Float(1.5));
            json.key("g").object(|json| json.key("h").null());
        });
        assert_eq!(
            String::from_utf8(json.out).unwrap(),
            r#"{
    "a": [
        1,
        2
    ],
    "b": [],
    "c": {},
    "d": "\u00fc\ud83d\ude00\"\\\n\u007f\u0001",
    "e": "\udcff",
    "f": 1.5,
    "g": {
        "h": null
    }
}"#
        );
    }

    #[test]
    fn sums_are_those_of_python() {
        use Number::{Float, Int};
        assert_eq!(
            Number::sum_of_positive(&[Int(1), Int(2), Float(-1.0)]),
            Int(3)
        );
        assert_eq!(Number::sum_of_positive(&[Float(0.1); 10]), Float(1.0));
        assert_eq!(Number::sum_of_positive(&[Int(1), Float(0.5)]), Float(1.5));
    }
}

//! QPACK (RFC 9204) without a dynamic table: what is written refers to the static table only, and
//! what is read must do so too, which a peer must when our SETTINGS leave the table's capacity at 0.

mod huffman;
mod table;

use std::borrow::Cow;

use table::STATIC;

/// What RFC 9114 section 4.2.2 counts for each field beside its name and value.
const FIELD_OVERHEAD: usize = 32;

/// A field of a section. Pseudo-header fields come first, with their colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name, as it was sent.
    pub name: Cow<'static, [u8]>,
    /// The value.
    pub value: Cow<'static, [u8]>,
}

/// Bounds of a field section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all names and values, and 32 for each field.
    pub bytes: usize,
    /// Fields.
    pub lines: usize,
}

/// Why a field section can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QpackError {
    /// It ends in the middle of a field.
    #[error("the field section ends in the middle of a field")]
    Truncated,
    /// It refers to a dynamic table, which we don't have.
    #[error("the field section refers to a dynamic table that there is not")]
    Dynamic,
    /// An entry that the static table doesn't have.
    #[error("the static table has no entry {0}")]
    Static(u64),
    /// An integer that is too large to be one here.
    #[error("an integer is too large")]
    Integer,
    /// A string that isn't Huffman-coded as it says.
    #[error("a string is not Huffman-coded properly")]
    Huffman,
    /// More bytes or fields than [`Limits`] allow.
    #[error("the field section is larger than is allowed")]
    TooLarge,
}

/// Appends a field section. Strings are Huffman-coded where that is shorter.
pub fn encode<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>, out: &mut Vec<u8>) {
    // Required insert count and base: nothing dynamic.
    out.extend_from_slice(&[0, 0]);
    for (name, value) in fields {
        match find(name, value) {
            Found::Field(index) => write_integer(0b1100_0000, 6, index, out),
            Found::Name(index) => {
                write_integer(0b0101_0000, 4, index, out);
                write_string(0, 7, value, out);
            }
            Found::Nothing => {
                write_string(0b0010_0000, 3, name, out);
                write_string(0, 7, value, out);
            }
        }
    }
}

/// Reads a field section.
pub fn decode(block: &[u8], limits: &Limits) -> Result<Vec<Field>, QpackError> {
    let mut input = Input(block);
    if input.integer(8)? != 0 {
        return Err(QpackError::Dynamic);
    }
    input.integer(7)?;
    let mut fields = Vec::new();
    let mut size = 0_usize;
    while let Some(first) = input.peek() {
        let field = if first & 0x80 != 0 {
            // Indexed field line.
            let (name, value) = input.static_entry(first & 0x40 != 0, 6)?;
            Field {
                name: name.as_bytes().into(),
                value: value.as_bytes().into(),
            }
        } else if first & 0x40 != 0 {
            // Literal with a name from a table.
            let (name, _) = input.static_entry(first & 0x10 != 0, 4)?;
            Field {
                name: name.as_bytes().into(),
                value: input.string(7)?.into(),
            }
        } else if first & 0x20 != 0 {
            // Literal with a literal name.
            Field {
                name: input.string(3)?.into(),
                value: input.string(7)?.into(),
            }
        } else {
            // Relative to the base of a dynamic table.
            return Err(QpackError::Dynamic);
        };
        size = size
            .saturating_add(field.name.len())
            .saturating_add(field.value.len())
            .saturating_add(FIELD_OVERHEAD);
        if size > limits.bytes || fields.len() >= limits.lines {
            return Err(QpackError::TooLarge);
        }
        fields.push(field);
    }
    Ok(fields)
}

/// What is left of a section.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, QpackError> {
        let (first, rest) = self.0.split_first().ok_or(QpackError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    fn bytes(&mut self, n: u64) -> Result<&'a [u8], QpackError> {
        let n = usize::try_from(n).map_err(|_| QpackError::Integer)?;
        let (taken, rest) = self.0.split_at_checked(n).ok_or(QpackError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// An integer whose first byte has `prefix` bits of it (RFC 7541 section 5.1).
    fn integer(&mut self, prefix: u32) -> Result<u64, QpackError> {
        let full = 0xff_u8 >> (8 - prefix);
        let first = self.byte()? & full;
        let mut value = u64::from(first);
        if first < full {
            return Ok(value);
        }
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            // Larger than anything that could be meant, long before it overflows.
            if shift > 28 {
                return Err(QpackError::Integer);
            }
            value += u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Ok(value)
    }

    /// A string whose length has `prefix` bits, with the Huffman bit before them.
    fn string(&mut self, prefix: u32) -> Result<Vec<u8>, QpackError> {
        let is_huffman = self.peek().ok_or(QpackError::Truncated)? >> prefix & 1 == 1;
        let length = self.integer(prefix)?;
        let bytes = self.bytes(length)?;
        if is_huffman {
            huffman::decode(bytes).ok_or(QpackError::Huffman)
        } else {
            Ok(bytes.to_vec())
        }
    }

    fn static_entry(
        &mut self,
        is_static: bool,
        prefix: u32,
    ) -> Result<(&'static str, &'static str), QpackError> {
        let index = self.integer(prefix)?;
        if !is_static {
            return Err(QpackError::Dynamic);
        }
        usize::try_from(index)
            .ok()
            .and_then(|i| STATIC.get(i))
            .copied()
            .ok_or(QpackError::Static(index))
    }
}

enum Found {
    Field(u64),
    Name(u64),
    Nothing,
}

fn find(name: &[u8], value: &[u8]) -> Found {
    let mut found = Found::Nothing;
    for ((n, v), index) in STATIC.iter().zip(0..) {
        if n.as_bytes() == name {
            if v.as_bytes() == value {
                return Found::Field(index);
            }
            if let Found::Nothing = found {
                found = Found::Name(index);
            }
        }
    }
    found
}

fn write_integer(tag: u8, prefix: u32, value: u64, out: &mut Vec<u8>) {
    let full = 0xff_u8 >> (8 - prefix);
    match u8::try_from(value) {
        Ok(small) if small < full => out.push(tag | small),
        _ => {
            out.push(tag | full);
            let mut rest = value - u64::from(full);
            while rest >= 0x80 {
                out.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            out.push(rest as u8);
        }
    }
}

fn write_string(tag: u8, prefix: u32, string: &[u8], out: &mut Vec<u8>) {
    let coded = huffman::encoded_length(string);
    if coded < string.len() {
        write_integer(tag | 1 << prefix, prefix, coded as u64, out);
        huffman::encode(string, out);
    } else {
        write_integer(tag, prefix, string.len() as u64, out);
        out.extend_from_slice(string);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        bytes: 10_000,
        lines: 50,
    };

    fn field(name: &'static str, value: &'static str) -> Field {
        Field {
            name: name.as_bytes().into(),
            value: value.as_bytes().into(),
        }
    }

    #[test]
    fn the_example_of_the_rfc_is_read() {
        // RFC 9204 appendix B.1.
        let block = b"\x00\x00\x51\x0b/index.html";
        assert_eq!(
            decode(block, &LIMITS).unwrap(),
            [field(":path", "/index.html")]
        );
    }

    #[test]
    fn a_request_is_short() {
        let mut block = Vec::new();
        let fields: [(&[u8], &[u8]); 5] = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":path", b"/"),
            (b"accept", b"*/*"),
            (b"x-name", b"value"),
        ];
        encode(fields, &mut block);
        assert_eq!(block.get(..6), Some(&[0, 0, 0xd1, 0xd7, 0xc1, 0xdd][..]));
        let read = decode(&block, &LIMITS).unwrap();
        assert_eq!(read.len(), 5);
        assert_eq!(read[4], field("x-name", "value"));
    }

    #[test]
    fn a_dynamic_table_is_refused() {
        for block in [
            &b"\x01\x00"[..],    // a required insert count
            b"\x00\x00\x80",     // an indexed dynamic entry
            b"\x00\x00\x40\x00", // a literal with a dynamic name
            b"\x00\x00\x10",     // post-base
            b"\x00\x00\x00\x00", // post-base, literal
        ] {
            assert_eq!(decode(block, &LIMITS), Err(QpackError::Dynamic));
        }
    }

    #[test]
    fn broken_sections_are_refused() {
        let cases: [(&[u8], QpackError); 7] = [
            (b"", QpackError::Truncated),
            (b"\x00", QpackError::Truncated),
            (b"\x00\x00\xff\x24", QpackError::Static(99)),
            (b"\x00\x00\x51\x05abc", QpackError::Truncated),
            (b"\x00\x00\x51\xff", QpackError::Truncated),
            (
                b"\x00\x00\x51\x7f\xff\xff\xff\xff\xff\xff\x7f",
                QpackError::Integer,
            ),
            (b"\x00\x00\x51\x81\x00", QpackError::Huffman),
        ];
        for (block, error) in cases {
            assert_eq!(decode(block, &LIMITS), Err(error), "{block:02x?}");
        }
    }

    #[test]
    fn sections_have_bounds() {
        // A bomb: one byte each for a field of 49.
        let block = [&[0, 0][..], &[0xd1; 200]].concat();
        let few = Limits {
            bytes: 100_000,
            lines: 199,
        };
        assert_eq!(decode(&block, &few), Err(QpackError::TooLarge));
        let small = Limits {
            bytes: 200 * (7 + 3 + 32) - 1,
            lines: 1000,
        };
        assert_eq!(decode(&block, &small), Err(QpackError::TooLarge));
        let enough = Limits {
            bytes: small.bytes + 1,
            lines: 200,
        };
        assert_eq!(decode(&block, &enough).unwrap().len(), 200);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            fields in prop::collection::vec(
                (
                    prop_oneof![
                        prop::sample::select(STATIC.to_vec()).prop_map(|(n, _)| n.as_bytes().to_vec()),
                        prop::collection::vec(any::<u8>(), 1..40),
                    ],
                    prop_oneof![
                        prop::sample::select(STATIC.to_vec()).prop_map(|(_, v)| v.as_bytes().to_vec()),
                        prop::collection::vec(any::<u8>(), 0..200),
                    ],
                ),
                0..20,
            ),
        ) {
            let mut block = Vec::new();
            encode(fields.iter().map(|(n, v)| (n.as_slice(), v.as_slice())), &mut block);
            let read = decode(&block, &LIMITS).unwrap();
            let read: Vec<(Vec<u8>, Vec<u8>)> =
                read.into_iter().map(|f| (f.name.into_owned(), f.value.into_owned())).collect();
            prop_assert_eq!(read, fields);
        }

        #[test]
        fn nothing_panics(block in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&[&[0, 0][..], &block].concat(), &LIMITS);
            let _ = decode(&block, &LIMITS);
        }
    }
}

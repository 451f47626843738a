//! The Huffman code of RFC 7541 appendix B.
//!
//! It is a canonical one: symbols of one length have consecutive codes in the order of their values,
//! and the first code of a length follows from the last one of the length before. So the lengths are
//! all that needs to be written down.

/// The code's length in bits for each byte, and for the end of a string.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const SHORTEST: usize = 5;
const LONGEST: usize = 30;

/// By length: the first code, how many there are, and where their symbols stand in [`SYMBOLS`].
const RANGES: [Range; LONGEST + 1] = ranges();
/// The symbols, by length and then by value.
const SYMBOLS: [u16; 257] = symbols();
/// The code of each symbol.
const CODES: [u32; 257] = codes();

#[derive(Clone, Copy)]
struct Range {
    first: u32,
    count: u32,
    at: u32,
}

/// How many bytes a string takes.
pub(super) fn encoded_length(string: &[u8]) -> usize {
    let bits: usize = string
        .iter()
        .filter_map(|byte| LENGTHS.get(usize::from(*byte)))
        .map(|length| usize::from(*length))
        .sum();
    bits.div_ceil(8)
}

/// Appends a string.
pub(super) fn encode(string: &[u8], out: &mut Vec<u8>) {
    let mut bits = 0_u64;
    let mut count = 0_u32;
    for byte in string {
        let symbol = usize::from(*byte);
        let (Some(code), Some(length)) = (CODES.get(symbol), LENGTHS.get(symbol)) else {
            continue;
        };
        bits = bits << length | u64::from(*code);
        count += u32::from(*length);
        while count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    if count > 0 {
        // Filled up with the first bits of the end of string, which are ones.
        let fill = 8 - count;
        out.push((bits << fill) as u8 | (0xff >> count));
    }
}

/// Reads a string. `None`: it holds what no string does (section 5.2).
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(bytes.len() * 8 / SHORTEST);
    let mut code = 0_u32;
    let mut length = 0_usize;
    for byte in bytes {
        for shift in (0..8).rev() {
            code = code << 1 | u32::from(byte >> shift & 1);
            length += 1;
            let range = RANGES.get(length)?;
            let Some(offset) = code.checked_sub(range.first).filter(|o| *o < range.count) else {
                continue;
            };
            let symbol = *SYMBOLS.get((range.at + offset) as usize)?;
            // The end of a string may not stand in it.
            out.push(u8::try_from(symbol).ok()?);
            code = 0;
            length = 0;
        }
    }
    // What is left fills the last byte, with ones.
    (length < 8 && code == (1 << length) - 1).then_some(out)
}

#[expect(clippy::indexing_slicing, reason = "worked out by the compiler")]
const fn ranges() -> [Range; LONGEST + 1] {
    let mut ranges = [Range {
        first: 0,
        count: 0,
        at: 0,
    }; LONGEST + 1];
    let mut symbol = 0;
    while symbol < LENGTHS.len() {
        ranges[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut length = 1;
    while length <= LONGEST {
        let before = ranges[length - 1];
        ranges[length].first = (before.first + before.count) << 1;
        ranges[length].at = before.at + before.count;
        length += 1;
    }
    ranges
}

#[expect(clippy::indexing_slicing, reason = "worked out by the compiler")]
const fn symbols() -> [u16; 257] {
    let mut symbols = [0; 257];
    let mut at = 0;
    let mut length = SHORTEST;
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    symbols
}

#[expect(clippy::indexing_slicing, reason = "worked out by the compiler")]
const fn codes() -> [u32; 257] {
    let mut codes = [0; 257];
    let mut at = 0;
    while at < SYMBOLS.len() {
        let symbol = SYMBOLS[at] as usize;
        let range = RANGES[LENGTHS[symbol] as usize];
        codes[symbol] = range.first + (at as u32 - range.at);
        at += 1;
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_rfc_are_read_and_written() {
        // RFC 7541 appendix C.4 and C.6.
        let cases: [(&str, &[u8]); 6] = [
            (
                "www.example.com",
                b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            ),
            ("no-cache", b"\xa8\xeb\x10\x64\x9c\xbf"),
            ("custom-value", b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf"),
            ("302", b"\x64\x02"),
            ("private", b"\xae\xc3\x77\x1a\x4b"),
            (
                "https://www.example.com",
                b"\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3",
            ),
        ];
        for (text, coded) in cases {
            let mut out = Vec::new();
            encode(text.as_bytes(), &mut out);
            assert_eq!(out, coded, "{text}");
            assert_eq!(encoded_length(text.as_bytes()), coded.len());
            assert_eq!(decode(coded).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn every_byte_is_read_back() {
        let all: Vec<u8> = (0..=255).collect();
        let mut out = Vec::new();
        encode(&all, &mut out);
        assert_eq!(decode(&out).unwrap(), all);
    }

    #[test]
    fn the_codes_are_those_of_the_rfc() {
        for (symbol, code) in [
            (b'0', 0x0),
            (b't', 0x9),
            (b' ', 0x14),
            (b'%', 0x15),
            (b':', 0x5c),
            (b'~', 0x1ffd),
            (0, 0x1ff8),
            (b'\\', 0x7fff0),
            (255, 0x3ff_ffee),
        ] {
            assert_eq!(CODES[usize::from(symbol)], code, "{symbol}");
        }
        assert_eq!(CODES[256], 0x3fff_ffff);
    }

    #[test]
    fn bad_padding_and_the_end_of_string_are_refused() {
        // Zeros, a whole byte of ones, the end of string itself.
        for bad in [&b"\x00"[..], b"\x64\x02\xff", b"\xff\xff\xff\xff"] {
            assert_eq!(decode(bad), None, "{bad:02x?}");
        }
    }
}

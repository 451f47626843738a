//! Plain decoders, for those who know what they have.

use super::verify::hex_digit;

/// Base64 of either alphabet, padded or not; line breaks are skipped.
pub(crate) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let compact: Vec<u8> = text
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    super::verify::base64(&compact)
}

/// Hexadecimal without separators.
pub(crate) fn hex(text: &[u8]) -> Option<Vec<u8>> {
    text.chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(hex_digit(*high)? << 4 | hex_digit(*low)?),
            _ => None,
        })
        .collect()
}

/// Base32 (RFC 4648), either case, padded or not.
pub(crate) fn base32(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() * 5 / 8);
    let mut bits = 0_u32;
    let mut count = 0;
    for &byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a',
            b'2'..=b'7' => byte - b'2' + 26,
            b'=' => break,
            _ => return None,
        };
        bits = (bits << 5 | u32::from(digit)) & 0xffff;
        count += 5;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    Some(out)
}

//! The keys of the opening handshake (RFC 6455 section 4).

use sha1::{Digest, Sha1};

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
///
/// ```
/// let accept = tollgate_wire::websocket::accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
/// assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
/// ```
#[must_use]
pub fn accept_key(key: &[u8]) -> String {
    let hash = Sha1::new()
        .chain_update(key.trim_ascii())
        .chain_update(GUID)
        .finalize();
    base64(&hash)
}

/// A `Sec-WebSocket-Key` from sixteen random bytes.
#[must_use]
pub fn make_key(nonce: [u8; 16]) -> String {
    base64(&nonce)
}

/// Whether it is a `Sec-WebSocket-Key`: sixteen bytes in base64.
#[must_use]
pub fn is_valid_key(key: &[u8]) -> bool {
    let Some((digits, b"==")) = key.trim_ascii().split_last_chunk::<2>() else {
        return false;
    };
    digits.len() == 22
        && digits
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

fn base64(bytes: &[u8]) -> String {
    let digit = |value: u32| match (value & 0x3f) as u8 {
        v @ 0..26 => char::from(b'A' + v),
        v @ 26..52 => char::from(b'a' + v - 26),
        v @ 52..62 => char::from(b'0' + v - 52),
        62 => '+',
        _ => '/',
    };
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or_default());
        let value = at(0) << 16 | at(1) << 8 | at(2);
        text.push(digit(value >> 18));
        text.push(digit(value >> 12));
        text.push(if three.len() > 1 {
            digit(value >> 6)
        } else {
            '='
        });
        text.push(if three.len() > 2 { digit(value) } else { '=' });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(make_key(*b"the sample nonce"), "dGhlIHNhbXBsZSBub25jZQ==");
        assert!(is_valid_key(b" dGhlIHNhbXBsZSBub25jZQ== "));
        assert!(!is_valid_key(b"dGhlIHNhbXBsZSBub25jZQ"));
        assert!(!is_valid_key(b"dGhlIHNhbXBsZSBub25jZ-=="));
        assert_eq!(base64(b""), "");
        assert_eq!(base64(b"\xff\xfe"), "//4=");
    }
}

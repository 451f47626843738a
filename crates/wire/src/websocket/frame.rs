//! Frames: their headers and their masks.

use super::WebSocketError;

/// The longest header of a frame, in bytes.
pub const MAX_HEADER: usize = 14;

/// The most that a control frame may carry, in bytes (RFC 6455 section 5.5).
pub const MAX_CONTROL_PAYLOAD: usize = 125;

/// What a frame is (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// More of the message that was begun.
    Continuation,
    /// The start of a text.
    Text,
    /// The start of binary data.
    Binary,
    /// The end.
    Close,
    /// Asks for a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Opcode {
    fn from_bits(bits: u8) -> Result<Self, WebSocketError> {
        Ok(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            other => return Err(WebSocketError::ReservedOpcode(other)),
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    /// Whether frames of this kind may stand between the fragments of a message.
    #[must_use]
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The header of a frame (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The last frame of its message.
    pub fin: bool,
    /// The first reserved bit: with permessage-deflate, the message is compressed.
    pub rsv1: bool,
    /// The second reserved bit. No extension that is known here uses it.
    pub rsv2: bool,
    /// The third reserved bit. No extension that is known here uses it.
    pub rsv3: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// The key that the payload is masked with.
    pub mask: Option<[u8; 4]>,
    /// Bytes of payload.
    pub length: u64,
}

impl FrameHeader {
    /// Reads the header at the start of `input`, and how many bytes it takes; `None` while it has
    /// not arrived whole.
    ///
    /// # Errors
    /// [`WebSocketError::ReservedOpcode`], [`WebSocketError::BadControl`] and
    /// [`WebSocketError::InvalidLength`], each as soon as the bytes show it. Reserved bits are the
    /// caller's to judge.
    pub fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, WebSocketError> {
        let Some(&first) = input.first() else {
            return Ok(None);
        };
        let opcode = Opcode::from_bits(first & 0x0f)?;
        let fin = first & 0x80 != 0;
        if opcode.is_control() && !fin {
            return Err(WebSocketError::BadControl);
        }
        let Some(&second) = input.get(1) else {
            return Ok(None);
        };
        let short = second & 0x7f;
        if opcode.is_control() && usize::from(short) > MAX_CONTROL_PAYLOAD {
            return Err(WebSocketError::BadControl);
        }
        let rest = input.get(2..).unwrap_or_default();
        let (length, rest) = match short {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (u64::from(short), rest),
        };
        let least = match short {
            126 => 126,
            127 => 65_536,
            _ => 0,
        };
        if length < least || length > i64::MAX as u64 {
            return Err(WebSocketError::InvalidLength);
        }
        let (mask, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            match rest.split_first_chunk::<4>() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Ok(None),
            }
        };
        let header = Self {
            fin,
            rsv1: first & 0x40 != 0,
            rsv2: first & 0x20 != 0,
            rsv3: first & 0x10 != 0,
            opcode,
            mask,
            length,
        };
        Ok(Some((header, input.len() - rest.len())))
    }

    /// Appends the header as it is on the wire: the length in its shortest form.
    pub fn write(&self, out: &mut Vec<u8>) {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        let mask = bit(self.mask.is_some(), 0x80);
        out.push(
            bit(self.fin, 0x80)
                | bit(self.rsv1, 0x40)
                | bit(self.rsv2, 0x20)
                | bit(self.rsv3, 0x10)
                | self.opcode.bits(),
        );
        match (u8::try_from(self.length), u16::try_from(self.length)) {
            (Ok(length @ ..126), _) => out.push(mask | length),
            (_, Ok(length)) => {
                out.push(mask | 126);
                out.extend_from_slice(&length.to_be_bytes());
            }
            _ => {
                out.push(mask | 127);
                out.extend_from_slice(&self.length.to_be_bytes());
            }
        }
        if let Some(key) = self.mask {
            out.extend_from_slice(&key);
        }
    }
}

/// Masks a payload, or takes the mask off: both are the same (RFC 6455 section 5.3). `offset` is
/// where in its frame's payload `data` begins.
pub fn apply_mask(data: &mut [u8], mut key: [u8; 4], offset: u64) {
    key.rotate_left((offset % 4) as usize);
    let [a, b, c, d] = key;
    // Sixteen bytes at a time: what the compiler turns into vector instructions.
    let wide = u128::from_ne_bytes([a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d]);
    let (words, rest) = data.as_chunks_mut::<16>();
    for word in words {
        *word = (u128::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends a whole message, or a control frame, as one frame. A client masks it (`mask`: a fresh
/// unpredictable key for each frame), a server does not.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, mask: Option<[u8; 4]>, payload: &[u8]) {
    write_message_frame(out, opcode, mask, false, payload);
}

/// The same, of a payload that may have been compressed by a [`Deflater`](super::Deflater).
pub fn write_message_frame(
    out: &mut Vec<u8>,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    compressed: bool,
    payload: &[u8],
) {
    out.reserve(MAX_HEADER + payload.len());
    let header = FrameHeader {
        fin: true,
        rsv1: compressed,
        rsv2: false,
        rsv3: false,
        opcode,
        mask,
        length: payload.len() as u64,
    };
    header.write(out);
    let start = out.len();
    out.extend_from_slice(payload);
    if let (Some(key), Some(payload)) = (mask, out.get_mut(start..)) {
        apply_mask(payload, key, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_6455_section_5_7() {
        let (header, len) = FrameHeader::parse(&[0x81, 0x05]).unwrap().unwrap();
        assert_eq!((header.fin, header.opcode, len), (true, Opcode::Text, 2));
        assert_eq!((header.length, header.mask), (5, None));
        let masked = [
            0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
        ];
        let mut out = Vec::new();
        write_frame(
            &mut out,
            Opcode::Text,
            Some([0x37, 0xfa, 0x21, 0x3d]),
            b"Hello",
        );
        assert_eq!(out, masked);
        let (header, len) = FrameHeader::parse(&[0x82, 0x7e, 0x01, 0x00])
            .unwrap()
            .unwrap();
        assert_eq!(
            (header.opcode, header.length, len),
            (Opcode::Binary, 256, 4)
        );
        let (header, len) = FrameHeader::parse(&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0])
            .unwrap()
            .unwrap();
        assert_eq!((header.length, len), (65_536, 10));
    }

    #[test]
    fn what_is_malformed_is_refused_as_soon_as_it_shows() {
        let error = |bytes: &[u8]| FrameHeader::parse(bytes).unwrap_err();
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            assert_eq!(
                error(&[0x80 | opcode]),
                WebSocketError::ReservedOpcode(opcode)
            );
        }
        assert_eq!(error(&[0x09]), WebSocketError::BadControl);
        assert_eq!(error(&[0x89, 126]), WebSocketError::BadControl);
        assert_eq!(error(&[0x82, 126, 0, 125]), WebSocketError::InvalidLength);
        assert_eq!(
            error(&[0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255]),
            WebSocketError::InvalidLength
        );
        assert_eq!(
            error(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            WebSocketError::InvalidLength
        );
    }
}

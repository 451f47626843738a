use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError, GrpcMessage, GrpcSplitter};

/// gRPC-Web in its text form (`application/grpc-web-text`): the binary form in base64 (RFC 4648 section 4).
///
/// A server encodes as it flushes, so that padding may stand wherever a piece ended: after it, a new group of four begins.
///
/// ```
/// use tollgate_wire::framing::GrpcWebTextSplitter;
///
/// let mut splitter = GrpcWebTextSplitter::new();
/// let mut messages = Vec::new();
/// // The prefix of a message and the message "hi", encoded one after the other.
/// splitter.feed(b"AAAAAAI=aGk=", |message| messages.push(message.payload.to_vec()))?;
/// splitter.finish()?;
/// assert_eq!(messages, [b"hi"]);
/// # Ok::<(), tollgate_wire::framing::FramingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct GrpcWebTextSplitter {
    group: Group,
    messages: GrpcSplitter,
}

impl Default for GrpcWebTextSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl GrpcWebTextSplitter {
    /// A splitter for payloads of at most [`DEFAULT_MAX_MESSAGE_BYTES`], decoded.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for payloads of at most `limit` bytes, decoded.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        GrpcWebTextSplitter {
            group: Group::default(),
            messages: GrpcSplitter::with_limit(limit),
        }
    }

    /// Takes the next bytes; `on_message` gets each message that they complete.
    ///
    /// # Errors
    /// [`FramingError::InvalidBase64`], and those of [`GrpcSplitter::feed`].
    pub fn feed(
        &mut self,
        input: &[u8],
        mut on_message: impl FnMut(GrpcMessage<'_>),
    ) -> Result<(), FramingError> {
        let mut decoded = Vec::with_capacity(input.len().min(Self::DECODE) / 4 * 3 + 3);
        for piece in input.chunks(Self::DECODE) {
            decoded.clear();
            let result = piece
                .iter()
                .try_for_each(|&character| self.group.take(character, &mut decoded));
            // What stands before a bad character counts, however the bytes were cut.
            self.messages.feed(&decoded, &mut on_message)?;
            result.inspect_err(|&error| self.messages.fail(error))?;
        }
        // An earlier error is returned also when there is nothing to decode.
        self.messages.feed(&[], on_message)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`FramingError::Truncated`] within a message or within four characters; the error of an earlier
    /// [`feed`](Self::feed).
    pub fn finish(&mut self) -> Result<(), FramingError> {
        self.messages.finish()?;
        if !self.group.is_empty() {
            self.messages.fail(FramingError::Truncated);
            return Err(FramingError::Truncated);
        }
        Ok(())
    }

    /// Characters that are decoded at once, so that a large piece is never held twice.
    const DECODE: usize = 4096;
}

/// Four characters of base64, as far as they have come.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    bits: u32,
    characters: u8,
    padding: u8,
}

impl Group {
    fn is_empty(self) -> bool {
        self.characters == 0
    }

    /// Takes the next character; the fourth one puts the group's bytes into `decoded`.
    fn take(&mut self, character: u8, decoded: &mut Vec<u8>) -> Result<(), FramingError> {
        let value = match character {
            b'=' if self.characters >= 2 => {
                self.padding = self.padding.saturating_add(1);
                0
            }
            // Nothing but padding follows padding.
            _ if self.padding > 0 => return Err(FramingError::InvalidBase64),
            b'A'..=b'Z' => character.wrapping_sub(b'A'),
            b'a'..=b'z' => character.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => character.wrapping_sub(b'0').wrapping_add(52),
            b'+' => 62,
            b'/' => 63,
            _ => return Err(FramingError::InvalidBase64),
        };
        self.bits = self.bits << 6 | u32::from(value);
        self.characters = self.characters.saturating_add(1);
        if self.characters == 4 {
            let [_, bytes @ ..] = self.bits.to_be_bytes();
            let count = 3usize.saturating_sub(usize::from(self.padding));
            decoded.extend(bytes.iter().take(count));
            *self = Self::default();
        }
        Ok(())
    }
}

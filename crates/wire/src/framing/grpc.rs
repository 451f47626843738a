use super::envelope::EnvelopeSplitter;
use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError};

const COMPRESSED: u8 = 0x01;
const TRAILERS: u8 = 0x80;

/// One length-prefixed message of gRPC or gRPC-Web.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcMessage<'a> {
    /// The payload is compressed as the `grpc-encoding` header says.
    pub compressed: bool,
    /// A gRPC-Web trailers frame: the payload is an HTTP/1 header block, not a message.
    pub trailers: bool,
    /// The payload, as sent.
    pub payload: &'a [u8],
}

/// gRPC's length-prefixed messages, and gRPC-Web's in its binary form.
///
/// A message is a flags byte, a length of four bytes (big-endian), and the payload.
#[derive(Debug, Clone)]
pub struct GrpcSplitter {
    envelopes: EnvelopeSplitter,
}

impl Default for GrpcSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl GrpcSplitter {
    /// A splitter for payloads of at most [`DEFAULT_MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for payloads of at most `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        GrpcSplitter {
            envelopes: EnvelopeSplitter::new(limit, COMPRESSED | TRAILERS),
        }
    }

    /// Takes the next bytes; `on_message` gets each message that they complete.
    ///
    /// # Errors
    /// [`FramingError::TooLarge`] as soon as a length over the limit is announced,
    /// [`FramingError::InvalidFlags`].
    pub fn feed(
        &mut self,
        input: &[u8],
        mut on_message: impl FnMut(GrpcMessage<'_>),
    ) -> Result<(), FramingError> {
        self.envelopes.feed(input, |flags, payload| {
            on_message(GrpcMessage {
                compressed: flags & COMPRESSED != 0,
                trailers: flags & TRAILERS != 0,
                payload,
            });
        })
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`FramingError::Truncated`] within a message; the error of an earlier [`feed`](Self::feed).
    pub fn finish(&mut self) -> Result<(), FramingError> {
        self.envelopes.finish()
    }

    /// Lets go of what has been kept; every later call answers `error`.
    pub(super) fn fail(&mut self, error: FramingError) {
        self.envelopes.fail(error);
    }
}

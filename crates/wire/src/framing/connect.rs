use super::envelope::EnvelopeSplitter;
use super::{DEFAULT_MAX_MESSAGE_BYTES, FramingError};

const COMPRESSED: u8 = 0x01;
const END_STREAM: u8 = 0x02;

/// One enveloped message of a Connect stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectMessage<'a> {
    /// The payload is compressed as the `connect-content-encoding` header says.
    pub compressed: bool,
    /// The last message of a response: the payload is JSON with the error and the trailers.
    pub end_stream: bool,
    /// The payload, as sent.
    pub payload: &'a [u8],
}

/// The streams of the Connect protocol (`application/connect+proto`, `application/connect+json`).
///
/// ```
/// use tollgate_wire::framing::ConnectSplitter;
///
/// let mut splitter = ConnectSplitter::new();
/// let mut messages = Vec::new();
/// splitter.feed(b"\0\0\0\0\x02hi\x02\0\0\0\x02{}", |message| {
///     messages.push((message.payload.to_vec(), message.end_stream));
/// })?;
/// splitter.finish()?;
/// assert_eq!(messages, [(b"hi".to_vec(), false), (b"{}".to_vec(), true)]);
/// # Ok::<(), tollgate_wire::framing::FramingError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ConnectSplitter {
    envelopes: EnvelopeSplitter,
}

impl Default for ConnectSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectSplitter {
    /// A splitter for payloads of at most [`DEFAULT_MAX_MESSAGE_BYTES`].
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// A splitter for payloads of at most `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        ConnectSplitter {
            envelopes: EnvelopeSplitter::new(limit, COMPRESSED | END_STREAM),
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
        mut on_message: impl FnMut(ConnectMessage<'_>),
    ) -> Result<(), FramingError> {
        self.envelopes.feed(input, |flags, payload| {
            on_message(ConnectMessage {
                compressed: flags & COMPRESSED != 0,
                end_stream: flags & END_STREAM != 0,
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
}

//! Splitters for streams of messages: bytes in, whole messages out.
//!
//! [`StreamSplitter`] splits any of them, server-sent events included, by the `Content-Type`.
//!
//! All have the same shape. `feed` takes the next bytes and calls back once for each message that
//! they complete, at once; the messages are the same however the bytes are cut. A message that lies
//! whole within one feed is lent from it without copying (an AWS one is always copied once, gRPC-Web text is decoded). What
//! one message may hold is bounded, and memory with it. The first error is final: the splitter lets
//! go of its memory, and every later call returns the same error.

mod aws_event_stream;
mod connect;
mod envelope;
mod grpc;
mod grpc_web_text;
mod json_array;
mod json_seq;
mod ndjson;
mod stream;

pub use aws_event_stream::{AwsEventStreamMessage, AwsEventStreamSplitter, HeaderValue};
pub use connect::{ConnectMessage, ConnectSplitter};
pub use grpc::{GrpcMessage, GrpcSplitter};
pub use grpc_web_text::GrpcWebTextSplitter;
pub use json_array::JsonArraySplitter;
pub use json_seq::JsonSeqSplitter;
pub use ndjson::NdjsonSplitter;
pub use stream::{MessageKind, StreamKind, StreamMessage, StreamSplitter};

/// What one message may hold unless a splitter is told otherwise: 4 MiB, the default of gRPC
/// implementations.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Why a stream can't be split any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// A message is larger than the splitter's limit.
    #[error("message is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Length fields that contradict each other or the format.
    #[error("invalid length in a message prefix")]
    InvalidLength,
    /// A gRPC or Connect message whose first byte sets bits that have no meaning.
    #[error("invalid message flags {0:#04x}")]
    InvalidFlags(u8),
    /// gRPC-Web text that isn't base64.
    #[error("invalid base64")]
    InvalidBase64,
    /// An AWS event-stream prelude whose checksum doesn't match.
    #[error("prelude checksum does not match")]
    PreludeChecksum,
    /// An AWS event-stream message whose checksum doesn't match.
    #[error("message checksum does not match")]
    MessageChecksum,
    /// AWS event-stream headers that don't parse.
    #[error("invalid event-stream headers")]
    InvalidHeaders,
    /// The body is not a JSON array.
    #[error("not a JSON array")]
    NotAnArray,
    /// A JSON array whose elements aren't separated by single commas, or that is followed by
    /// something.
    #[error("malformed JSON array")]
    MalformedArray,
    /// The stream ended within a message.
    #[error("stream ends within a message")]
    Truncated,
}

/// The bytes of a message that has begun but not ended, with a bound.
#[derive(Debug, Clone, Default)]
struct Partial {
    bytes: Vec<u8>,
}

impl Partial {
    /// Capacity that is kept for the next message; more is given back.
    const KEEP: usize = 64 * 1024;

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn push(&mut self, piece: &[u8], limit: usize) -> Result<(), FramingError> {
        if self.bytes.len().saturating_add(piece.len()) > limit {
            return Err(FramingError::TooLarge { limit });
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Calls `use_message` with the whole message: what was kept and its last piece.
    fn complete<R>(
        &mut self,
        piece: &[u8],
        limit: usize,
        use_message: impl FnOnce(&[u8]) -> R,
    ) -> Result<R, FramingError> {
        if self.bytes.is_empty() {
            return if piece.len() > limit {
                Err(FramingError::TooLarge { limit })
            } else {
                Ok(use_message(piece))
            };
        }
        self.push(piece, limit)?;
        let result = use_message(&self.bytes);
        self.clear();
        Ok(result)
    }

    /// Takes bytes off `input` until the message has `need` of them; whether it has.
    ///
    /// Memory follows what has arrived, not what was announced.
    fn fill(&mut self, input: &mut &[u8], need: usize) -> bool {
        let missing = need.saturating_sub(self.bytes.len());
        let (piece, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
        self.bytes.extend_from_slice(piece);
        *input = rest;
        self.bytes.len() >= need
    }

    fn clear(&mut self) {
        if self.bytes.capacity() > Self::KEEP {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
    }
}

/// Follows JSON text only so far as to know where a value ends: strings and nesting.
#[derive(Debug, Clone, Copy, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Takes the next byte of the value.
    fn take(&mut self, byte: u8) {
        if self.in_string {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_string = false;
            }
            return;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth = self.depth.saturating_add(1),
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    /// Whether the bytes so far leave no string, object or array open.
    fn is_closed(self) -> bool {
        self.depth == 0 && !self.in_string
    }
}

/// The four bytes that JSON calls whitespace (RFC 8259 §2).
fn is_json_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn trim_json_space(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_json_space(*first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && is_json_space(*last)
    {
        text = rest;
    }
    text
}

//! WebSocket (RFC 6455) and its compression (RFC 7692): frames, messages, the handshake's headers.
//!
//! [`MessageReader`] takes the bytes of one direction as they come and answers the messages in them,
//! with fragments joined and compression undone; it never needs to hold back what is forwarded.
//! [`FrameHeader`] and [`write_frame`] write frames, [`Deflater`] compresses messages, [`Extensions`]
//! reads what the handshake agreed on and [`accept_key`] what proves that there was one.
//!
//! ```
//! use tollgate_wire::websocket::{Event, MessageReader, Opcode, Sender, write_frame};
//!
//! let mut wire = Vec::new();
//! write_frame(&mut wire, Opcode::Text, Some([1, 2, 3, 4]), b"hello");
//!
//! let mut reader = MessageReader::new(Sender::Client, 1 << 20, None);
//! let mut rest = wire.as_slice();
//! let event = reader.next(&mut rest)?;
//! assert_eq!(event, Some(Event::Text("hello")));
//! # Ok::<(), tollgate_wire::websocket::WebSocketError>(())
//! ```

mod close;
mod deflate;
mod extensions;
mod frame;
mod handshake;
mod reader;
mod utf8;

pub use close::{Close, is_valid_close_code, write_close};
pub use deflate::{Deflater, Inflater};
pub use extensions::{Extension, Extensions, Negotiated, PermessageDeflate, Unsupported};
pub use frame::{
    FrameHeader, MAX_CONTROL_PAYLOAD, MAX_HEADER, Opcode, apply_mask, write_frame,
    write_message_frame,
};
pub use handshake::{accept_key, is_valid_key, make_key};
pub use reader::{Event, MessageReader};
pub use utf8::Utf8;

/// Which side's frames are read: those of a client are masked, those of a server are not
/// (RFC 6455 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sender {
    /// The client.
    Client,
    /// The server.
    Server,
}

/// Why a direction of a WebSocket can't be read any further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebSocketError {
    /// A reserved bit is set that no agreed extension gives a meaning, or on a frame that may not
    /// carry it.
    #[error("a reserved bit is set")]
    ReservedBits,
    /// An opcode without a meaning.
    #[error("reserved opcode {0:#x}")]
    ReservedOpcode(u8),
    /// A control frame that is a fragment, or larger than 125 bytes.
    #[error("a control frame that is fragmented or larger than {MAX_CONTROL_PAYLOAD} bytes")]
    BadControl,
    /// A length that is not written in its shortest form, or has its highest bit set.
    #[error("an invalid payload length")]
    InvalidLength,
    /// A server's frame that is masked, or a client's that is not.
    #[error("a frame that is masked the wrong way")]
    Masking,
    /// A continuation of nothing.
    #[error("a continuation without a message")]
    UnexpectedContinuation,
    /// A new message in the middle of another.
    #[error("a new message before the last one has ended")]
    ExpectedContinuation,
    /// A close frame with half a code, or with one that may not be sent.
    #[error("an invalid close code")]
    InvalidClose,
    /// Text that is not UTF-8.
    #[error("text that is not UTF-8")]
    InvalidUtf8,
    /// Compressed data that can't be decompressed.
    #[error("compressed data that can't be decompressed")]
    InvalidDeflate,
    /// A message that is, or decompresses to, more than the limit.
    #[error("a message of more than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl WebSocketError {
    /// The close code that says it to a peer (RFC 6455 section 7.4.1).
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::InvalidUtf8 | Self::InvalidDeflate => 1007,
            Self::TooLarge { .. } => 1009,
            _ => 1002,
        }
    }
}

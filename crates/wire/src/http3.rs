//! HTTP/3 (RFC 9114) between QUIC's streams and HTTP's messages: frames, settings, error codes, and
//! QPACK with the static table only.
//!
//! QUIC itself is a library's; what stands here is what a stream carries. [`FrameDecoder`] takes the
//! bytes of a stream in whatever pieces they come and answers frames; the payload of DATA is not
//! copied, but pointed at. [`qpack`] reads and writes field sections.
//!
//! ```
//! use tollgate_wire::http3::{FrameDecoder, FrameKind, Step, frame_header, qpack};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut block = Vec::new();
//! qpack::encode([(&b":status"[..], &b"200"[..])], &mut block);
//! let mut stream = Vec::new();
//! frame_header(FrameKind::Headers, block.len() as u64, &mut stream);
//! stream.extend_from_slice(&block);
//!
//! let mut decoder = FrameDecoder::new(64 * 1024);
//! let Step::Frame { kind, payload, .. } = decoder.next(&stream)? else {
//!     panic!("the frame is here whole");
//! };
//! assert_eq!(kind, FrameKind::Headers);
//! let fields = qpack::decode(&payload, &qpack::Limits { bytes: 64 * 1024, lines: 100 })?;
//! assert_eq!((&*fields[0].name, &*fields[0].value), (&b":status"[..], &b"200"[..]));
//! # Ok(())
//! # }
//! ```

mod frame;
pub mod qpack;
mod settings;
mod varint;

pub use frame::{FrameDecoder, FrameError, FrameKind, Step, frame_header};
pub use settings::{Settings, SettingsError};
pub use varint::{read_varint, varint_length, write_varint};

/// Error codes of HTTP/3 and QPACK (RFC 9114 section 8.1, RFC 9204 section 6).
pub mod code {
    /// No error: how a connection or a stream is closed in good order.
    pub const NO_ERROR: u64 = 0x100;
    /// A violation that no other code names.
    pub const GENERAL_PROTOCOL_ERROR: u64 = 0x101;
    /// Something went wrong inside.
    pub const INTERNAL_ERROR: u64 = 0x102;
    /// The peer made a stream that is not accepted.
    pub const STREAM_CREATION_ERROR: u64 = 0x103;
    /// A stream that the connection needs was closed.
    pub const CLOSED_CRITICAL_STREAM: u64 = 0x104;
    /// A frame where it may not stand.
    pub const FRAME_UNEXPECTED: u64 = 0x105;
    /// A frame that is not laid out as its kind says.
    pub const FRAME_ERROR: u64 = 0x106;
    /// The peer makes us do too much.
    pub const EXCESSIVE_LOAD: u64 = 0x107;
    /// An identifier that was used wrongly.
    pub const ID_ERROR: u64 = 0x108;
    /// An error in SETTINGS.
    pub const SETTINGS_ERROR: u64 = 0x109;
    /// The control stream does not begin with SETTINGS.
    pub const MISSING_SETTINGS: u64 = 0x10a;
    /// The request was not processed: it may be sent again elsewhere.
    pub const REQUEST_REJECTED: u64 = 0x10b;
    /// The request or its response is no longer wanted.
    pub const REQUEST_CANCELLED: u64 = 0x10c;
    /// The stream ended before the request did.
    pub const REQUEST_INCOMPLETE: u64 = 0x10d;
    /// A malformed message.
    pub const MESSAGE_ERROR: u64 = 0x10e;
    /// The connection of a CONNECT was reset.
    pub const CONNECT_ERROR: u64 = 0x10f;
    /// The request can't be served over HTTP/3.
    pub const VERSION_FALLBACK: u64 = 0x110;
    /// A field section can't be decoded.
    pub const QPACK_DECOMPRESSION_FAILED: u64 = 0x200;
}

/// Types of unidirectional streams (RFC 9114 section 6.2, RFC 9204 section 4.2).
pub mod stream_type {
    /// The control stream: SETTINGS, then GOAWAY and the like.
    pub const CONTROL: u64 = 0;
    /// A server's push.
    pub const PUSH: u64 = 1;
    /// QPACK's encoder stream.
    pub const QPACK_ENCODER: u64 = 2;
    /// QPACK's decoder stream.
    pub const QPACK_DECODER: u64 = 3;
}

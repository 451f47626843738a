//! HTTP/1.0 and HTTP/1.1 messages (RFC 9112): heads that keep their bytes, framing that is never guessed,
//! and chunked bodies whose raw bytes can be forwarded as they came.
//!
//! The codec is strict where two implementations could disagree about where a message ends, and answers an
//! [`Anomaly`] there. It is lenient where only taste is at stake: odd white space, unusual case, empty values,
//! bytes above 0x7F and missing reason phrases parse, and are written back exactly.
//!
//! ```
//! use tollgate_wire::http1::{Framing, HeadLimits, Parsed, RequestHead};
//!
//! let input = b"POST /v1/messages HTTP/1.1\r\nhost:example.com\r\nContent-Length: 2\r\n\r\n{}";
//! let mut head = RequestHead::new();
//! let Parsed::Complete { len } = head.parse(input, &HeadLimits::default())? else { panic!("more bytes needed") };
//!
//! assert_eq!(head.method(), b"POST");
//! assert_eq!(head.headers.get("Host"), Some(&b"example.com"[..]));
//! assert_eq!(head.framing()?, Framing::Length(2));
//! assert_eq!(head.as_raw(), Some(&input[..len]));
//! assert_eq!(&input[len..], b"{}");
//! # Ok::<(), tollgate_wire::http1::Anomaly>(())
//! ```

mod anomaly;
mod chunked;
mod length;
mod request;
mod response;
pub(crate) mod scan;

pub use anomaly::Anomaly;
pub use chunked::{
    ChunkHeader, ChunkedDecoder, MAX_CHUNK_LINE, Progress, chunk_header, encode_chunk, encode_last,
};
pub use request::RequestHead;
pub use response::{ResponseHead, standard_reason};

/// The protocol version of a start line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Version {
    /// `HTTP/1.0`: no chunked bodies, and a connection ends with its response unless both sides ask to keep it.
    Http10,
    /// `HTTP/1.1`.
    #[default]
    Http11,
}

impl Version {
    /// As it stands in a start line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }
}

/// How large a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first one of the message to the empty line, both included. 65 536 by default; values above
    /// 1 GiB count as 1 GiB.
    pub bytes: usize,
    /// Field lines. 256 by default.
    pub lines: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self {
            bytes: 65_536,
            lines: 256,
        }
    }
}

/// What parsing a head came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The head is complete and took `len` bytes of the input; what follows belongs to the body.
    Complete {
        /// Bytes of the input up to and including the empty line.
        len: usize,
    },
    /// The head isn't complete yet. Call again with the same bytes and more behind them.
    Partial,
}

/// Where the body of a message ends (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body; the next byte belongs to the next message (or to a tunnel or another protocol).
    None,
    /// Exactly this many bytes follow. May be zero.
    Length(u64),
    /// A chunked body follows; see [`ChunkedDecoder`].
    Chunked,
    /// Everything until the connection closes is the body. Responses only.
    UntilClose,
}

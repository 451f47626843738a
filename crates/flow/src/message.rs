//! Messages inside streams: of a WebSocket, and of bodies that are streams.

use tollgate_wire::framing::HeaderValue;

use crate::interceptor::Direction;

/// A message that passes within a flow. What it is depends on the stream; see [`MessageKind`].
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Counts the messages of this direction from 0, control frames of a WebSocket included.
    pub sequence: u64,
    /// What it is.
    pub kind: MessageKind<'a>,
    /// Its content: fragments joined, compression undone where that could be done.
    pub data: &'a [u8],
    /// It comes from a [`WebSocketHandle`](crate::WebSocketHandle), not from a peer.
    pub injected: bool,
}

impl<'a> Message<'a> {
    /// The content as text, where it is UTF-8 and the kind isn't one of bytes.
    pub fn text(&self) -> Option<&'a str> {
        match self.kind {
            MessageKind::Binary | MessageKind::Ping | MessageKind::Pong => None,
            _ => std::str::from_utf8(self.data).ok(),
        }
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum MessageKind<'a> {
    /// A text of a WebSocket.
    Text,
    /// Binary data of a WebSocket.
    Binary,
    /// A ping of a WebSocket.
    Ping,
    /// A pong of a WebSocket.
    Pong,
    /// The close frame of a WebSocket; the content is the reason.
    Close {
        /// The code, where the frame has one.
        code: Option<u16>,
    },
    /// An event of `text/event-stream`; the content is its data.
    ServerSentEvent {
        /// The event's type, `message` unless the stream says otherwise.
        event_type: &'a str,
        /// The last event ID in force.
        id: Option<&'a str>,
    },
    /// A line of NDJSON.
    JsonLine,
    /// A text of `application/json-seq` (RFC 7464).
    JsonText,
    /// An element of a JSON array that is a whole body of `application/json`.
    JsonElement,
    /// A message of gRPC or gRPC-Web.
    Grpc {
        /// The content is still compressed as `grpc-encoding` says: it can't be decompressed here,
        /// or not within the bound.
        compressed: bool,
    },
    /// The trailers of gRPC-Web: lines like those of an HTTP/1 head.
    GrpcTrailers,
    /// A message of a Connect stream.
    Connect {
        /// The content is still compressed as `connect-content-encoding` says.
        compressed: bool,
    },
    /// The last message of a Connect stream: JSON with the error and the trailers.
    ConnectEnd,
    /// A message of `application/vnd.amazon.eventstream`, its checksums verified; the content is its
    /// payload.
    AwsEvent {
        /// Its headers in their order; `:event-type` says what it is.
        headers: &'a [(String, HeaderValue)],
    },
}

impl MessageKind<'_> {
    /// A short stable name for logs and records.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Binary => "binary",
            Self::Ping => "ping",
            Self::Pong => "pong",
            Self::Close { .. } => "close",
            Self::ServerSentEvent { .. } => "sse",
            Self::JsonLine => "ndjson",
            Self::JsonText => "json-seq",
            Self::JsonElement => "json-element",
            Self::Grpc { .. } => "grpc",
            Self::GrpcTrailers => "grpc-trailers",
            Self::Connect { .. } => "connect",
            Self::ConnectEnd => "connect-end",
            Self::AwsEvent { .. } => "aws-event",
        }
    }

    /// Whether it is a frame that controls a WebSocket: a ping, a pong or a close.
    pub fn is_control(&self) -> bool {
        matches!(self, Self::Ping | Self::Pong | Self::Close { .. })
    }
}

/// Key in [`Flow::metadata`](crate::Flow::metadata): why interceptors were shown no (more) messages
/// of a flow, although they asked for them. The value names the direction and the reason.
pub const UNREAD_MESSAGES: &str = "unread_messages";

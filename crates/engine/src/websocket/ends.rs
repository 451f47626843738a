//! Where a WebSocket's bytes come from and go to: a connection, or a stream of HTTP/2 (RFC 8441).

use std::io;
use std::task::{Context, Poll};

use crate::io::{End, ReadHalf, WriteHalf};

pub(crate) enum Input<'a> {
    Conn(&'a mut ReadHalf),
    #[cfg(feature = "http2")]
    Stream(crate::h2::Received),
}

impl Input<'_> {
    /// What has been read and not consumed.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Conn(rd) => rd.data(),
            #[cfg(feature = "http2")]
            Self::Stream(received) => received.data(),
        }
    }

    pub fn consume(&mut self, n: usize) {
        match self {
            Self::Conn(rd) => rd.consume(n),
            #[cfg(feature = "http2")]
            Self::Stream(received) => received.consume(n),
        }
    }

    /// Reads more; 0 at the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Self::Conn(rd) => rd.poll_fill(cx),
            #[cfg(feature = "http2")]
            Self::Stream(received) => received.poll_fill(cx),
        }
    }

    /// Whether what has ended was cut off.
    pub fn is_truncated(&self) -> bool {
        match self {
            Self::Conn(rd) => rd.end() == Some(End::Truncated),
            #[cfg(feature = "http2")]
            Self::Stream(_) => false,
        }
    }
}

pub(crate) enum Output<'a> {
    Conn(&'a mut WriteHalf),
    #[cfg(feature = "http2")]
    Stream(h2::SendStream<bytes::Bytes>),
}

impl Output<'_> {
    pub async fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Conn(wr) => wr.write_all(data).await,
            #[cfg(feature = "http2")]
            Self::Stream(stream) => {
                crate::h2::send(stream, bytes::Bytes::copy_from_slice(data)).await
            }
        }
    }

    /// Ends this direction.
    pub async fn shutdown(&mut self, truncated: bool) -> io::Result<()> {
        match self {
            Self::Conn(wr) if truncated => wr.shutdown_truncated().await,
            Self::Conn(wr) => wr.shutdown().await,
            #[cfg(feature = "http2")]
            Self::Stream(stream) => stream
                .send_data(bytes::Bytes::new(), true)
                .map_err(io::Error::other),
        }
    }
}

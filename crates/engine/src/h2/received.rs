//! A stream whose bytes are another protocol's, read and written like a connection (RFC 8441).

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use crate::streams::body::Sink;

/// The receiving half. The window is given back for what has been consumed.
pub(crate) struct Received {
    stream: RecvStream,
    data: Bytes,
}

impl Received {
    pub fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            data: Bytes::new(),
        }
    }

    pub fn data(&self) -> &[u8] {
        &self.data
    }

    pub fn consume(&mut self, n: usize) {
        let n = n.min(self.data.len());
        let _ = self.data.split_to(n);
        let _ = self.stream.flow_control().release_capacity(n);
    }

    /// Reads more; 0 at the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if !self.data.is_empty() {
            return Poll::Ready(Ok(self.data.len()));
        }
        loop {
            match ready!(self.stream.poll_data(cx)) {
                None => return Poll::Ready(Ok(0)),
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.data = data;
                    return Poll::Ready(Ok(self.data.len()));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
    }
}

/// Sends bytes as the receiver's window allows it.
pub(crate) async fn send(stream: &mut SendStream<Bytes>, data: Bytes) -> io::Result<()> {
    Sink::H2(stream)
        .send(data, false)
        .await
        .map_err(io::Error::other)
}

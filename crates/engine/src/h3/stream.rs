//! A request's stream: the half that is read and the half that is written.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::Reason;
use http::header::HeaderMap;
use http::{request, response};
use quinn::{ConnectionError, ReadError, WriteError};
use tollgate_flow::{ErrorClass, FlowError, Side};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http3::qpack::{self, Field, QpackError};
use tollgate_wire::http3::{FrameDecoder, FrameError, FrameKind, Step, code, frame_header};

use crate::config::Limits;
use crate::streams::body::Broken;

use super::connection::{Peer, close};
use super::{code_of, head, reason_of, varint};

/// What one read takes of a stream: a piece that is passed on before the next one is read.
const READ: usize = 64 * 1024;
/// How long a client may take to take a reply of our own.
const REPLY: Duration = Duration::from_secs(60);

/// Why a stream can't be read or written any further.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the peer reset the stream with code {0:#x}")]
    Reset(u64),
    #[error("the connection ended: {0}")]
    Lost(ConnectionError),
    #[error("{what}")]
    Malformed { code: u64, what: String },
    #[error("the head is too large")]
    TooLarge,
    #[error("the stream was closed before")]
    Closed,
}

impl Failure {
    /// What the other side's stream is reset with.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Reset(code) => reason_of(*code),
            Self::Malformed { .. } | Self::TooLarge => Reason::PROTOCOL_ERROR,
            Self::Lost(_) | Self::Closed => Reason::INTERNAL_ERROR,
        }
    }

    pub(super) fn class(&self) -> ErrorClass {
        match self {
            Self::Malformed { .. } | Self::TooLarge => ErrorClass::Protocol,
            Self::Lost(ConnectionError::TimedOut) => ErrorClass::Timeout,
            _ => ErrorClass::Reset,
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code.into_inner()),
            ReadError::ConnectionLost(error) => Self::Lost(error),
            _ => Self::Closed,
        }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Reset(code.into_inner()),
            WriteError::ConnectionLost(error) => Self::Lost(error),
            _ => Self::Closed,
        }
    }
}

enum Event {
    Data(Bytes),
    Frame(FrameKind, Vec<u8>),
    End,
}

/// The half of a request's stream that is read. Dropped before its end, it tells the peer to stop.
pub(crate) struct Receiver {
    stream: quinn::RecvStream,
    connection: quinn::Connection,
    decoder: FrameDecoder,
    arrived: Bytes,
    /// What was looked at and not taken.
    seen: Option<Event>,
    head_limits: qpack::Limits,
    trailer_limits: qpack::Limits,
    /// What Content-Length leaves of the body.
    left: Option<u64>,
    trailers: Option<HeaderList>,
    ended: bool,
    /// What the peer is told to stop with.
    stop: u64,
}

impl Receiver {
    pub(super) fn new(
        stream: quinn::RecvStream,
        connection: &quinn::Connection,
        limits: &Limits,
        stop: u64,
    ) -> Self {
        let lines = limits.header_lines;
        Self {
            stream,
            connection: connection.clone(),
            decoder: FrameDecoder::new(limits.head_bytes),
            arrived: Bytes::new(),
            seen: None,
            head_limits: qpack::Limits {
                bytes: limits.head_bytes,
                lines,
            },
            trailer_limits: qpack::Limits {
                bytes: limits.trailer_bytes,
                lines,
            },
            left: None,
            trailers: None,
            ended: false,
            stop,
        }
    }

    /// Reads the next head: a request's, or an interim or final one of a response.
    pub(super) async fn head(&mut self) -> Result<Vec<Field>, Failure> {
        match self.next().await? {
            Event::Frame(FrameKind::Headers, block) => self.fields(&block, self.head_limits),
            Event::End => Err(Failure::Malformed {
                code: code::REQUEST_INCOMPLETE,
                what: "the stream ended before the head did".to_owned(),
            }),
            Event::Data(_) | Event::Frame(..) => Err(self.unexpected()),
        }
    }

    /// Holds the body to the length that the head says.
    pub(super) fn expect_length(&mut self, headers: &HeaderMap) -> Result<(), Failure> {
        self.left = head::content_length(headers).map_err(|what| self.malformed(what))?;
        Ok(())
    }

    /// The message has no body: one that comes breaks the protocol.
    pub(super) fn expect_nothing(&mut self) {
        self.left = Some(0);
    }

    /// Whether the message has ended, as far as is known without waiting.
    pub(super) async fn has_ended(&mut self) -> Result<bool, Failure> {
        let event = {
            let mut next = pin!(self.next());
            std::future::poll_fn(|cx| {
                Poll::Ready(match next.as_mut().poll(cx) {
                    Poll::Ready(event) => Some(event),
                    Poll::Pending => None,
                })
            })
            .await
        };
        match event.transpose()? {
            Some(Event::End) => {
                self.check_length()?;
                self.ended = true;
                Ok(true)
            }
            event => {
                self.seen = event;
                Ok(false)
            }
        }
    }

    /// The next piece of the body. Whether it is the last one shows in the next call.
    pub(crate) async fn data(&mut self) -> Result<Option<(Bytes, bool)>, Broken> {
        if self.ended || self.trailers.is_some() {
            return Ok(None);
        }
        Ok(self.body().await?.map(|data| (data, false)))
    }

    async fn body(&mut self) -> Result<Option<Bytes>, Failure> {
        match self.next().await? {
            Event::Data(data) => {
                if let Some(left) = &mut self.left {
                    match left.checked_sub(data.len() as u64) {
                        Some(rest) => *left = rest,
                        None => return Err(self.malformed("the body is longer than its length")),
                    }
                }
                Ok(Some(data))
            }
            Event::Frame(FrameKind::Headers, block) => {
                self.check_length()?;
                let fields = self.fields(&block, self.trailer_limits)?;
                let trailers = head::trailers(fields).map_err(|what| self.malformed(what))?;
                self.trailers = Some(trailers);
                Ok(None)
            }
            Event::End => {
                self.check_length()?;
                self.ended = true;
                Ok(None)
            }
            Event::Frame(..) => Err(self.unexpected()),
        }
    }

    /// The trailers, once the body has ended.
    pub(crate) async fn trailers(&mut self) -> Result<Option<HeaderList>, Broken> {
        if self.trailers.is_some() && !self.ended {
            match self.next().await? {
                Event::End => self.ended = true,
                Event::Data(_) | Event::Frame(..) => return Err(self.unexpected().into()),
            }
        }
        Ok(self.trailers.take())
    }

    async fn next(&mut self) -> Result<Event, Failure> {
        if let Some(event) = self.seen.take() {
            return Ok(event);
        }
        loop {
            match self.decoder.next(&self.arrived) {
                Ok(Step::More) => {
                    self.arrived = Bytes::new();
                    match self.stream.read_chunk(READ, true).await? {
                        Some(chunk) => self.arrived = chunk.bytes,
                        None => {
                            let end = self.decoder.finish();
                            return end.map(|()| Event::End).map_err(|e| self.broken_frame(e));
                        }
                    }
                }
                Ok(Step::Data { skip, length }) => {
                    self.arrived.advance(skip);
                    return Ok(Event::Data(self.arrived.split_to(length)));
                }
                Ok(Step::Frame {
                    used,
                    kind,
                    payload,
                }) => {
                    self.arrived.advance(used);
                    return Ok(Event::Frame(kind, payload));
                }
                Err(error) => return Err(self.broken_frame(error)),
            }
        }
    }

    fn fields(&mut self, block: &[u8], limits: qpack::Limits) -> Result<Vec<Field>, Failure> {
        qpack::decode(block, &limits).map_err(|error| match error {
            QpackError::TooLarge => Failure::TooLarge,
            error => self.violation(code::QPACK_DECOMPRESSION_FAILED, &error.to_string()),
        })
    }

    fn check_length(&mut self) -> Result<(), Failure> {
        match self.left {
            Some(left) if left > 0 => Err(self.malformed("the body is shorter than its length")),
            _ => Ok(()),
        }
    }

    fn broken_frame(&mut self, error: FrameError) -> Failure {
        match error {
            FrameError::TooLarge { .. } => Failure::TooLarge,
            error => self.violation(error.code(), &error.to_string()),
        }
    }

    fn unexpected(&mut self) -> Failure {
        self.violation(code::FRAME_UNEXPECTED, "a frame that does not belong there")
    }

    /// An error of the whole connection.
    fn violation(&mut self, code: u64, what: &str) -> Failure {
        close(&self.connection, code, what);
        Failure::Malformed {
            code,
            what: what.to_owned(),
        }
    }

    /// Takes nothing more of it, and says why.
    pub(super) fn refuse(&mut self, code: u64) {
        self.stop = code;
    }

    /// An error of this message only (RFC 9114 section 4.1.2).
    pub(super) fn malformed(&mut self, what: &str) -> Failure {
        self.stop = code::MESSAGE_ERROR;
        Failure::Malformed {
            code: code::MESSAGE_ERROR,
            what: format!("the message is malformed: {what}"),
        }
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self {
            message: format!("the stream ended in the middle of the body: {failure}"),
            class: failure.class(),
            reason: failure.reason(),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.ended {
            // Fails where the peer has ended or reset it meanwhile.
            let _ = self.stream.stop(varint(self.stop));
        }
    }
}

/// The half of a request's stream that is written. Dropped before its end it is reset: quinn would
/// end it as if it were whole.
pub(crate) struct Sender {
    stream: quinn::SendStream,
    peer: Arc<Peer>,
    gone: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    ended: bool,
    /// It ended as a whole message does.
    finished: bool,
}

impl Sender {
    pub(super) fn new(stream: quinn::SendStream, peer: &Arc<Peer>) -> Self {
        Self {
            stream,
            peer: Arc::clone(peer),
            gone: None,
            ended: false,
            finished: false,
        }
    }

    pub(super) async fn request(&mut self, parts: &request::Parts) -> Result<(), Failure> {
        self.check_size(&parts.headers)?;
        self.section(head::write_request(parts)).await
    }

    /// Sends the head of a response, interim or final.
    pub(crate) async fn response(&mut self, parts: &response::Parts) -> Result<(), Failure> {
        self.check_size(&parts.headers)?;
        self.section(head::write_response(parts)).await
    }

    /// Sends a piece of the body, with all that the peer's window has no room for waiting here.
    pub(crate) async fn data(&mut self, data: Bytes, last: bool) -> Result<(), FlowError> {
        if !data.is_empty() {
            let mut frame = Vec::with_capacity(16);
            frame_header(FrameKind::Data, data.len() as u64, &mut frame);
            let mut chunks = [frame.into(), data];
            let written = self.stream.write_all_chunks(&mut chunks).await;
            written.map_err(|e| sink_error(&e.into()))?;
        }
        if last {
            self.end().map_err(|e| sink_error(&e))?;
        }
        Ok(())
    }

    /// Ends the message.
    pub(crate) async fn finish(&mut self, trailers: Option<&HeaderList>) -> Result<(), FlowError> {
        if let Some(list) = trailers {
            let section = self.section(head::write_trailers(list)).await;
            section.map_err(|e| sink_error(&e))?;
        }
        self.end().map_err(|e| sink_error(&e))
    }

    /// Sends a reply of our own, whole. Where it can't be sent nobody waits for it.
    pub(crate) async fn reply(&mut self, parts: &response::Parts, body: Option<Bytes>) {
        let work = async {
            self.response(parts).await.ok()?;
            self.data(body.unwrap_or_default(), true).await.ok()
        };
        let sent = tokio::time::timeout(REPLY, work).await;
        if !matches!(sent, Ok(Some(()))) {
            self.reset(Reason::CANCEL);
        }
    }

    /// Gives the stream up.
    pub(crate) fn reset(&mut self, reason: Reason) {
        self.reset_with(code_of(reason));
    }

    pub(super) fn reset_with(&mut self, code: u64) {
        if !std::mem::replace(&mut self.ended, true) {
            let _ = self.stream.reset(varint(code));
        }
    }

    /// Ready when nobody wants the rest.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stream = &self.stream;
        let gone = self.gone.get_or_insert_with(|| {
            let stopped = stream.stopped();
            Box::pin(async {
                let _ = stopped.await;
            })
        });
        gone.as_mut().poll(cx)
    }

    /// Waits until the peer has all that was sent, for at most `limit`: a connection that is closed
    /// before takes it along. Of a stream that was reset there is nothing to wait for.
    pub(super) async fn delivered(&mut self, limit: Duration) {
        if !self.finished {
            return;
        }
        let _ = tokio::time::timeout(limit, self.stream.stopped()).await;
    }

    fn check_size(&self, headers: &HeaderMap) -> Result<(), Failure> {
        match self.peer.takes_section(head::section_size(headers)) {
            true => Ok(()),
            false => Err(Failure::TooLarge),
        }
    }

    async fn section(&mut self, block: Vec<u8>) -> Result<(), Failure> {
        let mut out = Vec::with_capacity(block.len() + 16);
        frame_header(FrameKind::Headers, block.len() as u64, &mut out);
        out.extend_from_slice(&block);
        Ok(self.stream.write_chunk(out.into()).await?)
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.ended = true;
        self.stream.finish().map_err(|_| Failure::Closed)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.reset_with(code::REQUEST_CANCELLED);
    }
}

fn sink_error(failure: &Failure) -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Reset,
        format!("the stream can't be written: {failure}"),
    )
}

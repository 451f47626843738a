//! Bodies of every version: where they come from, where they go, and the pump between.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::header::HeaderMap;
use tollgate_flow::{Direction, ErrorClass, FlowError, Side};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1;

use crate::body::Body;
use crate::h1;
use crate::hooks::{BodyRun, Offered, PieceVerdict, Verdict};
use crate::io::{ReadHalf, WriteHalf};

use super::convert::{from_map, to_map};

/// Where a body comes from.
pub(crate) enum Source<'a> {
    Empty,
    /// A collected one.
    Whole(Option<Bytes>, Option<HeaderList>),
    H2(RecvStream),
    #[cfg(feature = "http3")]
    H3(crate::h3::Receiver),
    H1 {
        rd: &'a mut ReadHalf,
        body: &'a mut Body,
    },
}

/// Where a body goes.
pub(crate) enum Sink<'a> {
    H2(&'a mut SendStream<Bytes>),
    #[cfg(feature = "http3")]
    H3(&'a mut crate::h3::Sender),
    H1 {
        wr: &'a mut WriteHalf,
        framing: SinkFraming,
        /// The client's reading half, to notice that it goes away while nothing comes.
        watch: Option<&'a mut ReadHalf>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkFraming {
    Chunked,
    /// By length or up to the close: bytes as they are.
    Plain,
}

pub(crate) enum RelayError {
    Read(FlowError, Reason),
    Write(FlowError),
    Verdict(Verdict),
}

impl Source<'_> {
    /// Nothing comes, not even trailers.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(None, None))
    }

    /// It can be sent again on another connection.
    pub(crate) fn is_replayable(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(..))
    }

    /// The next piece, and whether it is known to be the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<(Bytes, bool)>, Broken> {
        match self {
            Self::Empty => Ok(None),
            Self::Whole(bytes, trailers) => Ok(bytes.take().map(|b| (b, trailers.is_none()))),
            Self::H2(recv) => match recv.data().await {
                Some(Ok(bytes)) => {
                    let last = recv.is_end_stream();
                    Ok(Some((bytes, last)))
                }
                Some(Err(error)) => Err(Broken::by_h2(&error)),
                None => Ok(None),
            },
            #[cfg(feature = "http3")]
            Self::H3(receiver) => receiver.data().await,
            Self::H1 { rd, body } => loop {
                let mut piece = Vec::new();
                let n = body
                    .advance(rd.data(), |payload| piece.extend_from_slice(payload))
                    .map_err(|anomaly| Broken {
                        message: format!("the body is malformed: {anomaly}"),
                        class: ErrorClass::Protocol,
                        reason: Reason::PROTOCOL_ERROR,
                    })?;
                rd.consume(n);
                if !piece.is_empty() {
                    // Trailers may follow what a chunked body has shown so far.
                    let last = body.is_done() && body.trailers().is_none();
                    return Ok(Some((piece.into(), last)));
                }
                if body.is_done() {
                    return Ok(None);
                }
                match rd.fill().await {
                    Ok(n) if n > 0 => {}
                    Ok(_) if body.end_of_stream() => return Ok(None),
                    _ => {
                        return Err(Broken {
                            message: "the connection closed in the middle of the body".to_owned(),
                            class: ErrorClass::Reset,
                            reason: Reason::INTERNAL_ERROR,
                        });
                    }
                }
            },
        }
    }

    /// Gives the window back for bytes that have been passed on. (QUIC gives it back as they are
    /// read, a piece at a time.)
    pub(crate) fn release(&mut self, n: usize) {
        if let Self::H2(recv) = self {
            let _ = recv.flow_control().release_capacity(n);
        }
    }

    pub(crate) async fn trailers(&mut self) -> Result<Option<HeaderList>, Broken> {
        match self {
            Self::H2(recv) => match recv.trailers().await {
                Ok(Some(map)) => {
                    let mut list = HeaderList::new();
                    from_map(&map, &mut list);
                    Ok(Some(list))
                }
                Ok(None) => Ok(None),
                Err(error) => Err(Broken::by_h2(&error)),
            },
            #[cfg(feature = "http3")]
            Self::H3(receiver) => receiver.trailers().await,
            Self::H1 { body, .. } => Ok(body.trailers().cloned()),
            Self::Whole(_, trailers) => Ok(trailers.take()),
            Self::Empty => Ok(None),
        }
    }
}

/// A body that ended before its end.
pub(crate) struct Broken {
    pub(crate) message: String,
    pub(crate) class: ErrorClass,
    /// What the other side's stream is reset with.
    pub(crate) reason: Reason,
}

impl Broken {
    pub(crate) fn by_h2(error: &h2::Error) -> Self {
        Self {
            message: format!("the stream ended in the middle of the body: {error}"),
            class: ErrorClass::Reset,
            reason: error.reason().unwrap_or(Reason::INTERNAL_ERROR),
        }
    }

    /// As the error of the side that the body came from.
    pub(crate) fn on(self, direction: Direction) -> RelayError {
        let reason = self.reason;
        RelayError::Read(self.into_error(direction), reason)
    }

    pub(crate) fn into_error(self, direction: Direction) -> FlowError {
        let side = match direction {
            Direction::Request => Side::Client,
            Direction::Response => Side::Upstream,
        };
        FlowError::new(side, self.class, self.message)
    }
}

impl Sink<'_> {
    /// Ready when nobody wants the rest.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2(stream) => stream.poll_reset(cx).map(|_| ()),
            #[cfg(feature = "http3")]
            Self::H3(sender) => sender.poll_gone(cx),
            Self::H1 { watch, .. } => poll_gone(watch.as_deref_mut(), cx),
        }
    }

    pub(crate) async fn send(&mut self, mut data: Bytes, last: bool) -> Result<(), FlowError> {
        match self {
            Self::H2(stream) => {
                if data.is_empty() && last {
                    return stream.send_data(data, true).map_err(|e| sink_error(&e));
                }
                while !data.is_empty() {
                    stream.reserve_capacity(data.len());
                    let mut room = stream.capacity();
                    while room == 0 {
                        let granted = poll_fn(|cx| {
                            if let Poll::Ready(reset) = stream.poll_reset(cx) {
                                return Poll::Ready(Err(reset));
                            }
                            stream.poll_capacity(cx).map(Ok)
                        })
                        .await;
                        room = match granted {
                            Ok(Some(Ok(n))) => n,
                            Ok(Some(Err(e))) => return Err(sink_error(&e)),
                            Ok(None) | Err(_) => {
                                return Err(FlowError::new(
                                    Side::Client,
                                    ErrorClass::Reset,
                                    "the stream was reset",
                                ));
                            }
                        };
                    }
                    let piece = data.split_to(room.min(data.len()));
                    stream
                        .send_data(piece, last && data.is_empty())
                        .map_err(|e| sink_error(&e))?;
                }
                Ok(())
            }
            #[cfg(feature = "http3")]
            Self::H3(sender) => sender.data(data, last).await,
            Self::H1 { wr, framing, .. } => {
                let result = match framing {
                    SinkFraming::Chunked => {
                        let mut out = Vec::with_capacity(data.len() + 16);
                        http1::encode_chunk(&mut out, &data);
                        if last {
                            http1::encode_last(&mut out, None);
                        }
                        wr.write_all(&out).await
                    }
                    SinkFraming::Plain => wr.write_all(&data).await,
                };
                result.map_err(|_| h1::client_gone())
            }
        }
    }

    pub(crate) async fn finish(&mut self, trailers: Option<&HeaderList>) -> Result<(), FlowError> {
        match self {
            Self::H2(stream) => match trailers {
                Some(list) => {
                    let mut map = HeaderMap::new();
                    to_map(list, &mut map);
                    stream.send_trailers(map).map_err(|e| sink_error(&e))
                }
                None => stream
                    .send_data(Bytes::new(), true)
                    .map_err(|e| sink_error(&e)),
            },
            #[cfg(feature = "http3")]
            Self::H3(sender) => sender.finish(trailers).await,
            Self::H1 { wr, framing, .. } => match framing {
                SinkFraming::Chunked => {
                    let mut out = Vec::new();
                    http1::encode_last(&mut out, trailers);
                    wr.write_all(&out).await.map_err(|_| h1::client_gone())
                }
                SinkFraming::Plain => Ok(()),
            },
        }
    }
}

/// Ready when a client that is not being read from has gone.
pub(crate) fn poll_gone(watch: Option<&mut ReadHalf>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(rd) = watch else {
        return Poll::Pending;
    };
    loop {
        match ready!(rd.poll_watch(cx)) {
            Ok(n) if n > 0 => {}
            _ => return Poll::Ready(()),
        }
    }
}

pub(crate) fn sink_error(error: &h2::Error) -> FlowError {
    FlowError::new(
        Side::Client,
        ErrorClass::Reset,
        format!("the stream can't be written: {error}"),
    )
}

/// Relays a body: takes a piece, offers it, sends it, and only then takes the next.
pub(crate) async fn relay(
    source: &mut Source<'_>,
    sink: &mut Sink<'_>,
    hooks: &mut BodyRun<'_, '_>,
    progress: &AtomicU64,
    size: &AtomicU64,
) -> Result<Option<HeaderList>, RelayError> {
    loop {
        let next = {
            let mut next = pin!(source.next());
            poll_fn(|cx| {
                if let Poll::Ready(next) = next.as_mut().poll(cx) {
                    return Poll::Ready(Some(next));
                }
                sink.poll_gone(cx).map(|()| None)
            })
            .await
        };
        let next = match next {
            Some(next) => next.map_err(|broken| broken.on(hooks.direction))?,
            None => return Err(RelayError::Write(h1::client_gone())),
        };
        let Some((data, last)) = next else {
            break;
        };
        let len = data.len();
        size.fetch_add(len as u64, Ordering::Relaxed);
        let mut out = data;
        if hooks.watched && len > 0 {
            let piece = out.clone();
            let mut offering = hooks.data(&piece, false);
            let verdict = loop {
                match offering.next().await {
                    Offered::Verdict(verdict) => break verdict,
                    Offered::Alive(bytes) => {
                        sink.send(bytes, false).await.map_err(RelayError::Write)?;
                    }
                }
            };
            match verdict {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) => out = bytes,
                PieceVerdict::End(verdict) => return Err(RelayError::Verdict(verdict)),
            }
        }
        // The last piece of a watched body may still be followed by what a hook adds.
        let last = last && !hooks.watched;
        if !out.is_empty() || last {
            sink.send(out, last).await.map_err(RelayError::Write)?;
        }
        source.release(len);
        progress.fetch_add(1, Ordering::Relaxed);
        if last {
            return Ok(None);
        }
    }
    let trailers = source
        .trailers()
        .await
        .map_err(|broken| broken.on(hooks.direction))?;
    if hooks.watched {
        hooks.put_trailers(trailers.as_ref());
        match hooks.data(&[], true).await {
            PieceVerdict::Pass => {}
            PieceVerdict::Replace(bytes) => {
                sink.send(bytes, false).await.map_err(RelayError::Write)?;
            }
            PieceVerdict::End(verdict) => return Err(RelayError::Verdict(verdict)),
        }
    }
    sink.finish(trailers.as_ref())
        .await
        .map_err(RelayError::Write)?;
    Ok(trailers)
}

pub(crate) enum Collected {
    Whole(Bytes, Option<HeaderList>),
    TooLarge(Vec<u8>),
}

/// Reads a whole body, up to a bound.
pub(crate) async fn collect(
    source: &mut Source<'_>,
    direction: Direction,
    limit: usize,
    idle: Duration,
) -> Result<Collected, FlowError> {
    let mut whole = Vec::new();
    loop {
        let next = tokio::time::timeout(idle, source.next()).await;
        let next = next
            .map_err(|_| {
                let broken = Broken {
                    message: "the body did not arrive in time".to_owned(),
                    class: ErrorClass::Timeout,
                    reason: Reason::CANCEL,
                };
                broken.into_error(direction)
            })?
            .map_err(|broken| broken.into_error(direction))?;
        let Some((data, _)) = next else {
            let trailers = source
                .trailers()
                .await
                .map_err(|broken| broken.into_error(direction))?;
            return Ok(Collected::Whole(whole.into(), trailers));
        };
        whole.extend_from_slice(&data);
        source.release(data.len());
        if whole.len() > limit {
            return Ok(Collected::TooLarge(whole));
        }
    }
}

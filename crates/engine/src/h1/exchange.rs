//! One request and its response between an HTTP/1 client and an HTTP/1 upstream.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tollgate_flow::{
    Direction, ErrorClass, Flow, FlowError, HttpVersion, Outcome, OutcomeKind, Reply, Response,
    Side,
};
use tollgate_wire::http1::Anomaly;

use crate::config::Timeouts;
use crate::hooks::{BodyRun, Run, SharedFlow, Verdict, lock};
use crate::io::Conn;
use crate::metrics::Counters;
use crate::pool::UpConn;
use crate::reply;
use crate::timer::Timer;
use crate::via::Forward;

use super::body::{ClientBody, PumpError, pump};
use super::failure::{client_anomaly, client_gone, dropped, upstream_io};
use super::response::ResponseRelay;

/// What came of an exchange.
pub(crate) struct ExchangeEnd {
    pub result: Exchanged,
    pub upstream: UpstreamAfter,
}

pub(crate) enum Exchanged {
    /// Request and response passed.
    Complete { close: Closing },
    /// Both sides now speak another protocol.
    Upgraded,
    /// Nothing came back on a connection that had been idle: it may be tried on another.
    Retry,
    /// Nothing was sent to the client yet: it gets this.
    Answer(Box<Reply>, Outcome),
    /// Something was sent, and there is no way to say what went wrong but to cut.
    Cut(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    Keep,
    Close,
    /// The origin's stream was cut off where only its end says that it is whole.
    Truncated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamAfter {
    Reusable,
    /// Reusable by this client only.
    Pin,
    Upgraded,
    Dead,
}

/// An exchange between an HTTP/1 client and an HTTP/1 upstream.
pub(super) struct Exchange<'a> {
    pub(super) config: &'a crate::config::Config,
    pub(super) counters: &'a Counters,
    pub(super) run: &'a Run,
    pub(super) keep_alive: bool,
    pub(super) spare: &'a mut Option<Box<Response>>,
    /// Set where a proxy reads the request.
    pub(super) forward: Option<Forward<'a>>,
}

/// What an exchange waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The response's head.
    Head,
    /// More of a body.
    Bytes,
}

impl Waiting {
    pub(super) fn limit(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::Head => timeouts.response_head,
            Self::Bytes => timeouts.idle,
        }
    }
}

impl Exchange<'_> {
    pub(super) async fn run(
        self,
        client: &mut Conn,
        up: &mut UpConn,
        request: &mut ClientBody,
        flow: &mut Flow,
        timer: &mut Timer,
    ) -> ExchangeEnd {
        let config = self.config;
        let (limits, timeouts) = (&config.limits, &config.timeouts);
        let method = Method::of(flow.request.method());
        let wants_upgrade = method == Method::Connect || flow.request.head.upgrade().is_some();
        let client_is_10 = flow.request.version == HttpVersion::Http10;
        let reused = up.reused;
        up.reused = true;
        let edits = self.run.edits(Direction::Request) && request.collected.is_none();

        // The head and what is here of the body leave in one write.
        let first = {
            let shared = SharedFlow::new(&mut *flow);
            let mut body = self
                .run
                .body(&shared, Direction::Request, limits, self.counters);
            let start = self.send_start(client, up, request, &mut body, edits);
            timer.within(timeouts.idle, start).await
        };
        let Ok(first) = first else {
            return upstream_failed(FlowError::new(
                Side::Upstream,
                ErrorClass::Timeout,
                format!(
                    "the origin took nothing of the request for {:?}",
                    timeouts.idle
                ),
            ));
        };
        let replayable = match first {
            Ok(size) => {
                flow.request.body_size = flow.request.body_size.max(size);
                request.replayable
            }
            Err(Start::Upstream(e)) => {
                if reused && request.replayable {
                    return ExchangeEnd {
                        result: Exchanged::Retry,
                        upstream: UpstreamAfter::Dead,
                    };
                }
                // The origin may have answered before it closed; see below.
                if e.kind() != io::ErrorKind::BrokenPipe
                    && e.kind() != io::ErrorKind::ConnectionReset
                {
                    return upstream_failed(upstream_io(&e, "sending the request"));
                }
                false
            }
            Err(Start::Proxy(error)) => return upstream_failed(error),
            Err(Start::Anomaly(anomaly)) => {
                let error = client_anomaly(anomaly);
                return ExchangeEnd {
                    result: Exchanged::Answer(
                        Box::new(reply::with_status(anomaly.status(), &error)),
                        Outcome::failed(error),
                    ),
                    upstream: UpstreamAfter::Dead,
                };
            }
        };
        let streaming = !request.is_done();
        if !streaming {
            flow.timing.request_end = Some(flow.timing.start.elapsed());
        }

        let progress = AtomicU64::new(0);
        let sent = AtomicU64::new(flow.request.body_size);
        let shared = SharedFlow::new(flow);
        let relay = ResponseRelay {
            config: self.config,
            counters: self.counters,
            run: self.run,
            keep_alive: self.keep_alive,
            method,
            wants_upgrade,
            client_is_10,
            may_retry: reused && replayable,
            progress: &progress,
        };
        let started = AtomicBool::new(false);
        let response = relay.run(
            &mut up.conn.rd,
            &mut client.wr,
            &shared,
            self.spare,
            &started,
        );
        let mut response = pin!(response);
        let end = if streaming {
            let mut body = self
                .run
                .body(&shared, Direction::Request, limits, self.counters);
            // Pieces that left with the head went through another decoder: the body is offered
            // whole to one of them only.
            let pump = pump(
                &mut client.rd,
                &mut up.conn.wr,
                &mut request.body,
                &mut body,
                edits,
                &progress,
                &sent,
            );
            let mut pump = pin!(pump);
            let mut pumped: Option<Result<(), PumpError>> = None;
            let mut seen = 0;
            let mut finished: Option<ExchangeEnd> = None;
            let mut waiting = Waiting::Bytes;
            timer.set(waiting.limit(timeouts));
            poll_fn(|cx| {
                if pumped.is_none()
                    && let Poll::Ready(result) = pump.as_mut().poll(cx)
                {
                    if result.is_ok() {
                        let mut flow = lock(&shared);
                        let elapsed = flow.timing.start.elapsed();
                        flow.timing.request_end = Some(elapsed);
                    }
                    match &result {
                        // An origin that stops reading may have answered already.
                        Ok(()) | Err(PumpError::Write) => {}
                        Err(_) => {
                            let result = pumped.insert(result);
                            return Poll::Ready(Duplex::RequestFailed(std::mem::replace(
                                result,
                                Ok(()),
                            )));
                        }
                    }
                    pumped = Some(result);
                }
                if finished.is_none()
                    && let Poll::Ready(end) = response.as_mut().poll(cx)
                {
                    finished = Some(end);
                }
                // What is waited for, and how long, changes with what has happened.
                let now = match (started.load(Ordering::Relaxed), &pumped) {
                    (false, Some(_)) => Waiting::Head,
                    _ => Waiting::Bytes,
                };
                if now != waiting {
                    waiting = now;
                    timer.set(now.limit(timeouts));
                }
                let reading = matches!(
                    &finished,
                    Some(ExchangeEnd {
                        upstream: UpstreamAfter::Reusable | UpstreamAfter::Pin,
                        ..
                    })
                );
                // An origin that answers early and keeps the connection still reads.
                if finished.is_some()
                    && (pumped.is_some() || !reading)
                    && let Some(end) = finished.take()
                {
                    return Poll::Ready(Duplex::Response(end));
                }
                while timer.poll(cx).is_ready() {
                    let now = progress.load(Ordering::Relaxed);
                    if now == seen {
                        return Poll::Ready(Duplex::Idle);
                    }
                    seen = now;
                    timer.set(waiting.limit(timeouts));
                }
                Poll::Pending
            })
            .await
        } else {
            let watch = &mut client.rd;
            let mut seen = 0;
            let mut waiting = Waiting::Head;
            timer.set(waiting.limit(timeouts));
            poll_fn(|cx| {
                if let Poll::Ready(end) = response.as_mut().poll(cx) {
                    return Poll::Ready(Duplex::Response(end));
                }
                if waiting == Waiting::Head && started.load(Ordering::Relaxed) {
                    waiting = Waiting::Bytes;
                    timer.set(waiting.limit(timeouts));
                }
                loop {
                    match watch.poll_watch(cx) {
                        Poll::Pending => break,
                        Poll::Ready(Ok(n)) if n > 0 => {}
                        Poll::Ready(_) => return Poll::Ready(Duplex::ClientGone),
                    }
                }
                while timer.poll(cx).is_ready() {
                    let now = progress.load(Ordering::Relaxed);
                    if now == seen {
                        return Poll::Ready(Duplex::Idle);
                    }
                    seen = now;
                    timer.set(waiting.limit(timeouts));
                }
                Poll::Pending
            })
            .await
        };
        let started = started.load(Ordering::Relaxed);
        {
            let mut flow = lock(&shared);
            flow.request.body_size = sent.load(Ordering::Relaxed);
            if request.collected.is_none() {
                flow.request.trailers = request.body.trailers().cloned();
            }
        }
        let error = match end {
            Duplex::Response(mut end) => {
                if !request.is_done() && end.upstream != UpstreamAfter::Upgraded {
                    end.upstream = UpstreamAfter::Dead;
                }
                return end;
            }
            Duplex::ClientGone => client_gone(),
            Duplex::RequestFailed(Err(PumpError::Read)) => client_gone(),
            Duplex::RequestFailed(Err(PumpError::Anomaly(anomaly))) => {
                let error = client_anomaly(anomaly);
                if !started {
                    return ExchangeEnd {
                        result: Exchanged::Answer(
                            Box::new(reply::with_status(anomaly.status(), &error)),
                            Outcome::failed(error),
                        ),
                        upstream: UpstreamAfter::Dead,
                    };
                }
                error
            }
            Duplex::RequestFailed(Err(PumpError::Verdict(verdict))) => {
                if started {
                    return cut(dropped(verdict));
                }
                return verdict_before_response(verdict);
            }
            Duplex::RequestFailed(_) => client_gone(),
            Duplex::Idle if started => FlowError::new(
                Side::Upstream,
                ErrorClass::Timeout,
                format!("nothing passed for {:?}", self.config.timeouts.idle),
            ),
            Duplex::Idle => {
                let error = FlowError::new(
                    Side::Upstream,
                    ErrorClass::Timeout,
                    format!(
                        "the origin did not answer within {:?}",
                        self.config.timeouts.response_head
                    ),
                );
                return ExchangeEnd {
                    result: Exchanged::Answer(
                        Box::new(reply::for_error(&error)),
                        Outcome::failed(error),
                    ),
                    upstream: UpstreamAfter::Dead,
                };
            }
        };
        cut(Outcome::failed(error))
    }

    /// Sends the head, and as much of the body as is here. The bytes stay in the client's buffer
    /// while the whole request is there, so that it can be sent again. Answers the payload's size.
    pub(super) async fn send_start(
        &self,
        client: &mut Conn,
        up: &mut UpConn,
        request: &mut ClientBody,
        body: &mut BodyRun<'_, '_>,
        edits: bool,
    ) -> Result<u64, Start> {
        let mut head = Vec::new();
        let untouched = {
            let flow = body.flow();
            let sent = flow.request.wire_head();
            let untouched = self.forward.is_none()
                && sent
                    .as_raw()
                    .is_some_and(|raw| raw.len() == request.head_len);
            if let Some(forward) = &self.forward {
                forward
                    .write_head(&sent, &flow.request.target, &mut head)
                    .map_err(Start::Proxy)?;
            } else if !untouched || edits || request.collected.is_some() {
                sent.write_to(&mut head);
            }
            untouched
        };
        if let Some(whole) = &request.collected {
            request.replayable = true;
            up.conn
                .wr
                .write_all2(&head, whole)
                .await
                .map_err(Start::Upstream)?;
            return Ok(whole.len() as u64);
        }
        let data = client.rd.data();
        let head_len = request.head_len;
        let rest = data.get(head_len..).unwrap_or_default();
        if body.watched || edits {
            if head.is_empty() {
                head.extend_from_slice(data.get(..head_len).unwrap_or_default());
            }
            up.conn.wr.write_all(&head).await.map_err(Start::Upstream)?;
            client.rd.consume(head_len);
            request.head_len = 0;
            request.replayable = request.is_done();
            return Ok(0);
        }
        let mut size = 0;
        let n = if request.replayable {
            // Once more: the body has been followed to its end already.
            request.buffered
        } else {
            request
                .body
                .advance(rest, |payload| size += payload.len() as u64)
                .map_err(Start::Anomaly)?
        };
        let written = if untouched {
            let whole = data.get(..head_len + n).unwrap_or_default();
            up.conn.wr.write_all(whole).await
        } else {
            let rest = rest.get(..n).unwrap_or_default();
            up.conn.wr.write_all2(&head, rest).await
        };
        // A request without a body can be sent again from its parsed head, one that was here
        // whole from the buffer.
        request.replayable = request.is_done();
        if n > 0 && request.is_done() {
            request.buffered = n;
        } else {
            client.rd.consume(head_len + n);
            request.head_len = 0;
        }
        written.map_err(Start::Upstream)?;
        Ok(size)
    }
}

pub(super) enum Start {
    Upstream(io::Error),
    Proxy(FlowError),
    Anomaly(Anomaly),
}

pub(super) enum Duplex {
    Response(ExchangeEnd),
    RequestFailed(Result<(), PumpError>),
    ClientGone,
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Head,
    Connect,
    Other,
}

impl Method {
    pub fn of(method: &[u8]) -> Self {
        match method {
            b"HEAD" => Self::Head,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Head => b"HEAD",
            Self::Connect => b"CONNECT",
            Self::Other => b"GET",
        }
    }
}

pub(super) fn upstream_failed(error: FlowError) -> ExchangeEnd {
    ExchangeEnd {
        result: Exchanged::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error)),
        upstream: UpstreamAfter::Dead,
    }
}

pub(super) fn cut(outcome: Outcome) -> ExchangeEnd {
    ExchangeEnd {
        result: Exchanged::Cut(outcome),
        upstream: UpstreamAfter::Dead,
    }
}

pub(super) fn verdict_before_response(verdict: Verdict) -> ExchangeEnd {
    let result = match verdict {
        Verdict::Respond(reply) => Exchanged::Answer(
            reply,
            Outcome {
                kind: OutcomeKind::Answered,
                error: None,
            },
        ),
        Verdict::Failed(error) => {
            Exchanged::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error))
        }
        verdict => Exchanged::Cut(dropped(verdict)),
    };
    ExchangeEnd {
        result,
        upstream: UpstreamAfter::Dead,
    }
}

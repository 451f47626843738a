//! One request and its response, with HTTP/2 on at least one side.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use http::header;
use tollgate_flow::{
    Direction, ErrorClass, FlowError, HttpVersion, Interest, Outcome, OutcomeKind, Reply, Response,
    Side, Target,
};
use tollgate_wire::http1::{self, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version};

use crate::body::Body;
use crate::config::Config;
use crate::h1::{self, ClientBody, Closing, ExchangeEnd, Exchanged, UpstreamAfter};
use crate::hooks::{Run, SharedFlow, Verdict, lock};
use crate::io::{Conn, ReadHalf, WriteHalf};
use crate::metrics::{Counters, count};
use crate::pool::{RouteTls, UpConn};
use crate::reply;
use crate::session::{FlowGuard, Session, Up, UpstreamError};
use crate::timer::{Elapsed, Timer};
use crate::via::{self, Forward};

use super::Streams;
use super::body::{Collected, RelayError, Sink, SinkFraming, Source, collect, poll_gone, relay};
use super::connections::{InUse, Shared};
use super::convert::{
    from_map, head_from_flow, head_of, interceptor_error, is_connection_specific, parts_of, to_map,
};

/// The client's side of an exchange.
pub(super) enum Down<'a> {
    H2 {
        respond: &'a mut SendResponse<Bytes>,
        /// Where the body goes, once the head has left.
        stream: Option<SendStream<Bytes>>,
        head_only: bool,
    },
    H1 {
        wr: &'a mut WriteHalf,
        is_10: bool,
        keep_alive: bool,
        head_only: bool,
        closing: &'a mut Closing,
        started: bool,
        /// The reading half, where no body is read from it: to notice that the client goes away.
        watch: Option<&'a mut ReadHalf>,
    },
}

pub(super) enum Ended {
    Complete,
    Answer(Box<Reply>, Outcome),
    Cut(Reason, Outcome),
}

pub(super) struct Exchange<'a> {
    pub(super) streams: &'a Streams,
    pub(super) config: &'a Config,
    pub(super) counters: &'a Counters,
}

/// An upstream's side of an exchange.
pub(super) enum Link {
    H2 { shared: Shared, _in_use: InUse },
    H1(Box<UpConn>),
}

impl Exchange<'_> {
    /// Runs an exchange. `parts` is the request as HTTP/2 has it, where it came so.
    pub(super) async fn run(
        &self,
        guard: &mut FlowGuard<'_>,
        parts: Option<http::request::Parts>,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Ended {
        if guard.run.wants(Interest::REQUEST_BODY) {
            let limits = (self.config.limits.body_limit, self.config.timeouts.idle);
            match Box::pin(collect(source, Direction::Request, limits.0, limits.1)).await {
                Ok(Collected::Whole(bytes, trailers)) => {
                    guard.flow.request.body_size = bytes.len() as u64;
                    guard.flow.request.trailers = trailers;
                    guard.flow.request.put_collected_body(bytes);
                }
                Ok(Collected::TooLarge(_)) => {
                    return failed(FlowError::new(
                        Side::Client,
                        ErrorClass::Limit,
                        "the request body is larger than an interceptor may collect",
                    ));
                }
                Err(error) => return self.cut(error),
            }
        }
        let verdict = {
            let shared = SharedFlow::new(&mut *guard.flow);
            guard.run.request(&shared, self.counters).await
        };
        match verdict {
            Verdict::Continue => {}
            verdict => return by_verdict(verdict, false),
        }
        if guard.run.wants(Interest::REQUEST_BODY) {
            let edited = guard.flow.request.is_body_edited();
            let body = guard.flow.request.body().cloned().unwrap_or_default();
            if edited {
                let headers = guard.flow.request.headers_mut();
                let _ = headers.set(b"content-length", body.len().to_string().as_bytes());
            }
            let trailers = guard.flow.request.trailers.clone();
            *source = Source::Whole((!body.is_empty()).then_some(body), trailers);
        } else if guard.run.edits(Direction::Request) {
            guard.flow.request.headers_mut().remove("content-length");
        }
        let seen_by_hooks =
            guard.run.wants(Interest::REQUEST) || guard.run.edits(Direction::Request);
        let parts = match parts {
            Some(parts) if !seen_by_hooks => Some(parts),
            _ => None,
        };

        let whole = match source {
            Source::Whole(bytes, trailers) => Some((bytes.clone(), trailers.clone())),
            _ => None,
        };
        // Once more where a shared connection turned out to be closing.
        for attempt in 0..3 {
            if let Some((bytes, trailers)) = &whole {
                *source = Source::Whole(bytes.clone(), trailers.clone());
            }
            let tls = self.tls(&guard.flow.request.target);
            let tls = match tls {
                Ok(tls) => tls,
                Err(error) => return failed(error),
            };
            let link = self.link(&guard.flow.request, tls.as_ref(), attempt > 0);
            let link = match link.await {
                Ok(link) => link,
                Err(error) => return failed(error.into_flow_error()),
            };
            let ended = match link {
                Link::H2 { shared, _in_use } => {
                    guard.flow.upstream = Some(Arc::clone(&shared.info));
                    let parts = match &parts {
                        Some(parts) => Ok(parts.clone()),
                        None => parts_of(guard.flow),
                    };
                    match parts {
                        Ok(parts) => self.over_h2(guard, shared, parts, source, down).await,
                        Err(error) => return failed(error),
                    }
                }
                Link::H1(up) => {
                    guard.flow.upstream = Some(Arc::clone(&up.info));
                    let session = &self.streams.session;
                    let route = Arc::clone(&up.route);
                    let tickets = &session.worker.shared.tickets;
                    let ticket = session.ticket(tickets, &route, &guard.flow.request, tls.as_ref());
                    let ticket = match ticket {
                        Ok(ticket) => ticket,
                        Err(error) => return failed(error),
                    };
                    let forward = via::forward(&route, ticket.as_ref().map(|t| &*t.ticket));
                    let has_body = !source.is_empty();
                    let head = match &parts {
                        Some(parts) => head_of(parts, guard.flow, has_body),
                        None => head_from_flow(guard.flow, has_body),
                    };
                    match head {
                        Ok(head) => {
                            let ended =
                                Box::pin(self.over_h1(guard, *up, head, forward, source, down));
                            let ended = ended.await;
                            let reached = ticket.as_ref().and_then(|t| t.ticket.upstream.get());
                            if let Some(origin) = reached {
                                // What the flow reached in the end, rather than the scanner.
                                guard.flow.upstream = Some(Arc::clone(origin));
                            }
                            ended
                        }
                        Err(error) => return failed(error),
                    }
                }
            };
            match ended {
                Some(ended) => return ended,
                None => count(&self.counters.retries),
            }
        }
        failed(FlowError::new(
            Side::Upstream,
            ErrorClass::Reset,
            "the origin closed the connection before it answered",
        ))
    }

    /// How TLS is spoken to the origin of a request.
    fn tls(&self, target: &Target) -> Result<Option<RouteTls>, FlowError> {
        Ok(match &self.streams.fixed {
            Some(fixed) if fixed.target == *target => {
                if let Some(error) = &fixed.broken {
                    return Err(error.clone());
                }
                fixed.tls.clone()
            }
            // An interceptor sent it elsewhere.
            Some(fixed) => fixed.tls.clone().map(|tls| RouteTls {
                sni: Arc::clone(&target.host),
                ..tls
            }),
            None => None,
        })
    }

    pub(super) async fn link(
        &self,
        request: &tollgate_flow::Request,
        tls: Option<&RouteTls>,
        fresh: bool,
    ) -> Result<Link, UpstreamError> {
        let session = &self.streams.session;
        let fixed = self.streams.fixed.as_ref();
        let prior_knowledge =
            tls.is_none() && fixed.is_some_and(|f| f.prior_knowledge && f.target == request.target);
        // A proxy on the way that reads what is plain would not understand it.
        let mut route = session.request_route(request, tls, false, prior_knowledge);
        route.prior_knowledge = prior_knowledge && !route.forward;
        let found = if fresh {
            session.fresh(route).await
        } else {
            session.acquire(route, None).await
        };
        let up = match found {
            Err(error) if session.may_bypass(&error) => {
                let to = session.destination(&request.target, &request.via);
                let route = session.route(to, tls.cloned(), false);
                session.acquire(route, None).await?
            }
            found => found?,
        };
        Ok(match up {
            Up::H2(shared) => Link::H2 {
                _in_use: InUse::new(&shared),
                shared,
            },
            Up::Conn(up) => Link::H1(Box::new(up)),
        })
    }

    /// The exchange over an HTTP/2 upstream. `None`: nothing was seen of it, try another connection.
    pub(super) async fn over_h2(
        &self,
        guard: &mut FlowGuard<'_>,
        shared: Shared,
        parts: http::request::Parts,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Option<Ended> {
        let replayable = source.is_replayable();
        let retry = |error: &h2::Error| {
            replayable
                && (error.is_go_away()
                    || error.reason() == Some(Reason::REFUSED_STREAM)
                    || error.is_io())
        };
        let state = Arc::clone(&shared.state);
        let sent = stream_allowed(shared.send, self.config.timeouts.connect).await;
        let mut send = match sent {
            Err(_) => {
                return Some(failed(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Timeout,
                    "the origin allows no further streams",
                )));
            }
            Ok(Ok(send)) => send,
            Ok(Err(error)) => {
                state.closed.store(true, Ordering::Relaxed);
                if retry(&error) {
                    return None;
                }
                return Some(failed(upstream_error(&error, "sending the request")));
            }
        };
        let request = Request::from_parts(parts, ());
        let empty = source.is_empty();
        let (mut response, mut body) = match send.send_request(request, empty) {
            Ok(sent) => sent,
            Err(error) => {
                // An error in what we send is no fault of the connection.
                if error.is_io() || error.is_go_away() || error.is_library() {
                    state.closed.store(true, Ordering::Relaxed);
                }
                if retry(&error) {
                    return None;
                }
                return Some(failed(upstream_error(&error, "sending the request")));
            }
        };
        drop(send);
        let FlowGuard { flow, run, .. } = &mut *guard;
        let progress = AtomicU64::new(0);
        let size = AtomicU64::new(flow.request.body_size);
        let shared_flow = SharedFlow::new(flow);
        let request_body = async {
            if empty {
                request_done(&shared_flow);
                return Ok(());
            }
            let mut hooks = run.body(
                &shared_flow,
                Direction::Request,
                self.config.limits.decoded_bytes,
                self.counters,
            );
            let mut sink = Sink::H2(&mut body);
            let result = relay(source, &mut sink, &mut hooks, &progress, &size).await;
            if let Ok(trailers) = &result {
                let mut flow = lock(&shared_flow);
                if trailers.is_some() {
                    flow.request.trailers.clone_from(trailers);
                }
            }
            request_done(&shared_flow);
            result.map(|_| ())
        };
        let relay_response = async {
            let head = loop {
                let event = poll_fn(|cx| {
                    if down.poll_gone(cx).is_ready() {
                        return Poll::Ready(Ok(Arrived::Gone));
                    }
                    match response.poll_informational(cx) {
                        Poll::Ready(Some(Ok(interim))) => {
                            return Poll::Ready(Ok(Arrived::Interim(interim)));
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                        Poll::Ready(None) | Poll::Pending => {}
                    }
                    pin!(&mut response).poll(cx).map_ok(Arrived::Final)
                })
                .await;
                match event {
                    Ok(Arrived::Final(head)) => break head,
                    Ok(Arrived::Gone) => {
                        return Some(Ended::Cut(
                            Reason::CANCEL,
                            Outcome::failed(h1::client_gone()),
                        ));
                    }
                    Ok(Arrived::Interim(interim)) => {
                        progress.fetch_add(1, Ordering::Relaxed);
                        if down.interim(interim).await.is_err() {
                            return Some(Ended::Cut(
                                Reason::CANCEL,
                                Outcome::failed(h1::client_gone()),
                            ));
                        }
                    }
                    Err(error) => {
                        if retry(&error) {
                            return None;
                        }
                        if let Some(reason) = error.reason()
                            && error.is_reset()
                        {
                            // The origin's word for it reaches the client as it is.
                            let outcome =
                                Outcome::failed(upstream_error(&error, "waiting for the response"));
                            if matches!(down, Down::H2 { .. }) {
                                return Some(Ended::Cut(reason, outcome));
                            }
                        }
                        return Some(failed(upstream_error(&error, "waiting for the response")));
                    }
                }
            };
            progress.fetch_add(1, Ordering::Relaxed);
            let (head, body) = head.into_parts();
            let source = if body.is_end_stream() {
                Source::Empty
            } else {
                Source::H2(body)
            };
            Some(
                self.respond(
                    run,
                    &shared_flow,
                    ResponseParts::Http(head),
                    source,
                    down,
                    &progress,
                )
                .await,
            )
        };
        let ended = self.both(request_body, relay_response, &progress).await;
        if let Some(ended) = &ended
            && !matches!(ended, Ended::Complete)
        {
            body.send_reset(Reason::CANCEL);
        }
        lock(&shared_flow).request.body_size = size.load(Ordering::Relaxed);
        ended
    }

    /// The exchange over an HTTP/1 upstream.
    pub(super) async fn over_h1(
        &self,
        guard: &mut FlowGuard<'_>,
        mut up: UpConn,
        head: RequestHead,
        forward: Option<Forward<'_>>,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Option<Ended> {
        let session = &self.streams.session;
        let replayable = source.is_replayable();
        let reused = std::mem::replace(&mut up.reused, true);
        let method = h1::exchange::Method::of(head.method());
        let framing = match head.framing() {
            Ok(Framing::Chunked) => SinkFraming::Chunked,
            _ => SinkFraming::Plain,
        };
        let mut bytes = Vec::with_capacity(512);
        match forward {
            Some(forward) => {
                let target = &guard.flow.request.target;
                if let Err(error) = forward.write_head(&head, target, &mut bytes) {
                    return Some(failed(error));
                }
            }
            None => head.write_to(&mut bytes),
        }
        // A whole body leaves with the head.
        let mut first = Vec::new();
        if let Source::Whole(whole, trailers) = &*source {
            let whole = whole.as_deref().unwrap_or_default();
            if framing == SinkFraming::Chunked {
                http1::encode_chunk(&mut first, whole);
                http1::encode_last(&mut first, trailers.as_ref());
            } else {
                first.extend_from_slice(whole);
            }
        }
        let start = Timer::default()
            .within(
                self.config.timeouts.idle,
                up.conn.wr.write_all2(&bytes, &first),
            )
            .await
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
        if let Err(e) = start {
            if reused && replayable {
                return None;
            }
            return Some(failed(FlowError::new(
                Side::Upstream,
                ErrorClass::Reset,
                format!("the connection to the origin failed while sending the request: {e}"),
            )));
        }
        let FlowGuard { flow, run, .. } = &mut *guard;
        let progress = AtomicU64::new(0);
        let size = AtomicU64::new(flow.request.body_size);
        let shared_flow = SharedFlow::new(flow);
        let Conn { rd, wr } = &mut up.conn;
        let mut keep = false;
        let mut dead = false;
        // A connection on which a request has not ended must not get another.
        let sent_whole = AtomicBool::new(replayable);
        let request_body = async {
            if replayable {
                request_done(&shared_flow);
                return Ok(());
            }
            let mut hooks = run.body(
                &shared_flow,
                Direction::Request,
                self.config.limits.decoded_bytes,
                self.counters,
            );
            let mut sink = Sink::H1 {
                wr,
                framing,
                watch: None,
            };
            let result = relay(source, &mut sink, &mut hooks, &progress, &size).await;
            sent_whole.store(result.is_ok(), Ordering::Relaxed);
            request_done(&shared_flow);
            result.map(|_| ())
        };
        let relay_response = async {
            let limits = HeadLimits {
                bytes: self.config.limits.head_bytes,
                lines: self.config.limits.header_lines,
            };
            let mut head = ResponseHead::new();
            let mut nothing_seen = true;
            let len = loop {
                if !rd.data().is_empty() {
                    nothing_seen = false;
                    match head.parse(rd.data(), &limits) {
                        Ok(Parsed::Complete { len }) if head.is_interim() => {
                            let mut interim = http::Response::new(());
                            if let Ok(status) = http::StatusCode::from_u16(head.status()) {
                                *interim.status_mut() = status;
                            }
                            to_map(&head.headers, interim.headers_mut());
                            rd.consume(len);
                            if head.status() == 101 || down.interim(interim).await.is_err() {
                                return Some(Ended::Cut(
                                    Reason::PROTOCOL_ERROR,
                                    Outcome::failed(FlowError::new(
                                        Side::Upstream,
                                        ErrorClass::Protocol,
                                        "the origin switched protocols without being asked",
                                    )),
                                ));
                            }
                            continue;
                        }
                        Ok(Parsed::Complete { len }) => break len,
                        Ok(Parsed::Partial) => {}
                        Err(anomaly) => {
                            return Some(failed(h1::failure::upstream_anomaly(anomaly)));
                        }
                    }
                }
                let filled = poll_fn(|cx| {
                    if down.poll_gone(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    rd.poll_fill(cx).map(Some)
                })
                .await;
                match filled {
                    None => {
                        return Some(Ended::Cut(
                            Reason::CANCEL,
                            Outcome::failed(h1::client_gone()),
                        ));
                    }
                    Some(Ok(n)) if n > 0 => {
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    _ if nothing_seen && reused && replayable => {
                        dead = true;
                        return None;
                    }
                    _ => {
                        return Some(failed(FlowError::new(
                            Side::Upstream,
                            ErrorClass::Reset,
                            "the origin closed the connection before it answered",
                        )));
                    }
                }
            };
            rd.consume(len);
            let framing = match head.framing(method.as_bytes()) {
                Ok(framing) => framing,
                Err(anomaly) => return Some(failed(h1::failure::upstream_anomaly(anomaly))),
            };
            let keeps = head.keep_alive() && framing != Framing::UntilClose;
            let mut body = Body::new(framing, self.config.limits.trailer_bytes);
            let source = if body.is_done() {
                Source::Empty
            } else {
                Source::H1 {
                    rd: &mut *rd,
                    body: &mut body,
                }
            };
            let ended = self
                .respond(
                    run,
                    &shared_flow,
                    ResponseParts::Http1(head),
                    source,
                    down,
                    &progress,
                )
                .await;
            keep = keeps && body.is_done() && rd.data().is_empty();
            Some(ended)
        };
        let ended = self.both(request_body, relay_response, &progress).await;
        lock(&shared_flow).request.body_size = size.load(Ordering::Relaxed);
        if matches!(ended, Some(Ended::Complete))
            && keep
            && !dead
            && sent_whole.load(Ordering::Relaxed)
        {
            session.give_back(Up::Conn(up));
        } else {
            up.count_bytes(self.counters);
        }
        ended
    }

    /// Runs both directions. The response decides; the request's end is waited for only while the
    /// response is.
    pub(super) async fn both(
        &self,
        request: impl Future<Output = Result<(), RelayError>>,
        response: impl Future<Output = Option<Ended>>,
        progress: &AtomicU64,
    ) -> Option<Ended> {
        let mut request = pin!(request);
        let mut response = pin!(response);
        let mut request_done = false;
        let mut timer = Timer::default();
        let mut seen = 0;
        timer.set(self.config.timeouts.response_head);
        poll_fn(|cx| {
            if !request_done && let Poll::Ready(result) = request.as_mut().poll(cx) {
                request_done = true;
                match result {
                    // An origin that stops reading may have answered already.
                    Ok(()) | Err(RelayError::Write(_)) => {}
                    Err(RelayError::Read(error, _)) => {
                        return Poll::Ready(Some(Ended::Cut(
                            Reason::CANCEL,
                            Outcome::failed(error),
                        )));
                    }
                    Err(RelayError::Verdict(verdict)) => {
                        return Poll::Ready(Some(by_verdict(
                            verdict,
                            progress.load(Ordering::Relaxed) > 0,
                        )));
                    }
                }
            }
            if let Poll::Ready(ended) = response.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            while timer.poll(cx).is_ready() {
                let now = progress.load(Ordering::Relaxed);
                if now == seen {
                    let error = FlowError::new(
                        Side::Upstream,
                        ErrorClass::Timeout,
                        "nothing passed for too long",
                    );
                    return Poll::Ready(Some(if now == 0 {
                        failed(error)
                    } else {
                        Ended::Cut(Reason::CANCEL, Outcome::failed(error))
                    }));
                }
                seen = now;
                timer.set(self.config.timeouts.idle);
            }
            Poll::Pending
        })
        .await
    }

    /// Brings a response to the client.
    pub(super) async fn respond(
        &self,
        run: &Run,
        flow: &SharedFlow<'_>,
        head: ResponseParts,
        mut source: Source<'_>,
        down: &mut Down<'_>,
        progress: &AtomicU64,
    ) -> Ended {
        {
            let mut flow = lock(flow);
            let elapsed = flow.timing.start.elapsed();
            flow.timing.response_start = Some(elapsed);
        }
        let hooked = run.wants_anything();
        let mut plain = None;
        match head {
            // Nobody looks, and both sides speak HTTP/2: the head goes on as it is.
            ResponseParts::Http(parts) if !hooked && matches!(down, Down::H2 { .. }) => {
                plain = Some(parts);
            }
            head => {
                let mut flow = lock(flow);
                match head.into_response() {
                    Ok(response) => flow.response = Some(response),
                    Err(error) => return failed(error),
                }
            }
        }
        let mut collected = false;
        if run.wants(Interest::RESPONSE_BODY) && !h1::head::is_stream(&lock(flow)) {
            let limits = (self.config.limits.body_limit, self.config.timeouts.idle);
            match Box::pin(collect(
                &mut source,
                Direction::Response,
                limits.0,
                limits.1,
            ))
            .await
            {
                Ok(Collected::Whole(bytes, trailers)) => {
                    if let Some(response) = &mut lock(flow).response {
                        response.body_size = bytes.len() as u64;
                        response.trailers = trailers;
                        response.put_collected_body(bytes);
                    }
                    collected = true;
                }
                Ok(Collected::TooLarge(start)) => {
                    source = match source {
                        Source::H2(recv) => {
                            let source = Source::H2(recv);
                            return Box::pin(
                                self.oversized(run, flow, start, source, down, progress),
                            )
                            .await;
                        }
                        Source::H1 { rd, body } => {
                            let source = Source::H1 { rd, body };
                            return Box::pin(
                                self.oversized(run, flow, start, source, down, progress),
                            )
                            .await;
                        }
                        source => source,
                    };
                }
                Err(error) => return failed(error),
            }
        }
        match run.response(flow, self.counters).await {
            Verdict::Continue => {}
            verdict => return by_verdict(verdict, false),
        }
        if collected {
            let mut flow = lock(flow);
            if let Some(response) = &mut flow.response {
                let body = response.body().cloned().unwrap_or_default();
                if response.is_body_edited() {
                    let length = body.len().to_string();
                    let _ = response
                        .headers_mut()
                        .set(b"content-length", length.as_bytes());
                }
                let trailers = response.trailers.clone();
                source = Source::Whole((!body.is_empty()).then_some(body), trailers);
            }
        } else if run.edits(Direction::Response)
            && let Some(response) = &mut lock(flow).response
        {
            response.headers_mut().remove("content-length");
        }
        self.send(run, flow, plain, Bytes::new(), source, down, progress)
            .await
    }

    /// A body that turned out too large to collect: what was collected goes first.
    pub(super) async fn oversized(
        &self,
        run: &Run,
        flow: &SharedFlow<'_>,
        start: Vec<u8>,
        source: Source<'_>,
        down: &mut Down<'_>,
        progress: &AtomicU64,
    ) -> Ended {
        match run.response(flow, self.counters).await {
            Verdict::Continue => {}
            verdict => return by_verdict(verdict, false),
        }
        self.send(run, flow, None, start.into(), source, down, progress)
            .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one response, handed on once"
    )]
    pub(super) async fn send(
        &self,
        run: &Run,
        flow: &SharedFlow<'_>,
        plain: Option<http::response::Parts>,
        prefix: Bytes,
        mut source: Source<'_>,
        down: &mut Down<'_>,
        progress: &AtomicU64,
    ) -> Ended {
        let empty = source.is_empty() && prefix.is_empty();
        let mut sink = match down.head(plain, flow, empty).await {
            Ok(Some(sink)) => sink,
            Ok(None) => return Ended::Complete,
            Err(ended) => return ended,
        };
        let size = AtomicU64::new(0);
        let mut hooks = run.body(
            flow,
            Direction::Response,
            self.config.limits.decoded_bytes,
            self.counters,
        );
        if !prefix.is_empty() {
            size.store(prefix.len() as u64, Ordering::Relaxed);
            if let Err(error) = sink.send(prefix, false).await {
                return Ended::Cut(Reason::CANCEL, Outcome::failed(error));
            }
        }
        let result = relay(&mut source, &mut sink, &mut hooks, progress, &size).await;
        drop(hooks);
        let mut flow = lock(flow);
        if let Some(response) = &mut flow.response {
            response.body_size = response.body_size.max(size.load(Ordering::Relaxed));
        }
        match result {
            Ok(trailers) => {
                if let Some(response) = &mut flow.response
                    && trailers.is_some()
                {
                    response.trailers = trailers;
                }
                Ended::Complete
            }
            Err(RelayError::Read(error, reason)) => Ended::Cut(reason, Outcome::failed(error)),
            Err(RelayError::Write(error)) => Ended::Cut(Reason::CANCEL, Outcome::failed(error)),
            Err(RelayError::Verdict(verdict)) => by_verdict(verdict, true),
        }
    }

    pub(super) fn cut(&self, error: FlowError) -> Ended {
        Ended::Cut(Reason::CANCEL, Outcome::failed(error))
    }
}

pub(super) enum Arrived {
    Gone,
    Interim(http::Response<()>),
    Final(http::Response<RecvStream>),
}

pub(super) enum ResponseParts {
    Http(http::response::Parts),
    Http1(ResponseHead),
}

impl ResponseParts {
    pub(super) fn into_response(self) -> Result<Box<Response>, FlowError> {
        let mut response = Box::<Response>::default();
        match self {
            Self::Http(parts) => {
                response.version = HttpVersion::Http2;
                response.head =
                    ResponseHead::build(parts.status.as_u16(), b"").map_err(interceptor_error)?;
                from_map(&parts.headers, &mut response.head.headers);
            }
            Self::Http1(head) => {
                response.version = match head.version() {
                    Version::Http10 => HttpVersion::Http10,
                    Version::Http11 => HttpVersion::Http11,
                };
                response.head = head;
            }
        }
        Ok(response)
    }
}

impl Down<'_> {
    /// Ready when the client has given its stream up.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2 { respond, .. } => respond.poll_reset(cx).map(|_| ()),
            Self::H1 { watch, .. } => poll_gone(watch.as_deref_mut(), cx),
        }
    }

    /// Relays an interim response.
    pub(super) async fn interim(&mut self, interim: http::Response<()>) -> Result<(), FlowError> {
        match self {
            Self::H2 { respond, .. } => respond
                .send_informational(interim)
                .map_err(|_| h1::client_gone()),
            Self::H1 { is_10: true, .. } => Ok(()),
            Self::H1 { wr, .. } => {
                let status = interim.status().as_u16();
                let reason = interim.status().canonical_reason().unwrap_or("");
                let mut head = ResponseHead::build(status, reason.as_bytes())
                    .map_err(|_| h1::client_gone())?;
                from_map(interim.headers(), &mut head.headers);
                let mut out = Vec::new();
                head.write_to(&mut out);
                wr.write_all(&out).await.map_err(|_| h1::client_gone())
            }
        }
    }

    /// Sends the head; answers where the body goes, `None` when there is none.
    pub(super) async fn head(
        &mut self,
        plain: Option<http::response::Parts>,
        flow: &SharedFlow<'_>,
        empty: bool,
    ) -> Result<Option<Sink<'_>>, Ended> {
        let gone = || Ended::Cut(Reason::CANCEL, Outcome::failed(h1::client_gone()));
        match self {
            Self::H2 {
                respond,
                stream,
                head_only,
            } => {
                let response = match plain {
                    Some(parts) => http::Response::from_parts(parts, ()),
                    None => {
                        let flow = lock(flow);
                        let Some(from) = &flow.response else {
                            return Err(gone());
                        };
                        let mut response = http::Response::new(());
                        if let Ok(status) = http::StatusCode::from_u16(from.status()) {
                            *response.status_mut() = status;
                        }
                        to_map(from.headers(), response.headers_mut());
                        response
                    }
                };
                let empty = empty || *head_only;
                let sent = respond.send_response(response, empty).map_err(|_| gone())?;
                if empty {
                    return Ok(None);
                }
                Ok(Some(Sink::H2(stream.insert(sent))))
            }
            Self::H1 {
                wr,
                is_10,
                keep_alive,
                head_only,
                closing,
                started,
                watch,
            } => {
                let mut out = Vec::with_capacity(512);
                let framing;
                {
                    let mut flow = lock(flow);
                    let Some(from) = &mut flow.response else {
                        return Err(gone());
                    };
                    let status = from.status();
                    let mut head = ResponseHead::build(status, reply::reason(status).as_bytes())
                        .map_err(|_| gone())?;
                    for (name, value) in from.headers().iter() {
                        if !is_connection_specific(name) {
                            let _ = head.headers.append(name, value);
                        }
                    }
                    let bodiless = *head_only || status == 204 || status == 304;
                    let mut close = !*keep_alive;
                    framing = if head.headers.contains("content-length") || bodiless {
                        SinkFraming::Plain
                    } else if empty {
                        let _ = head.headers.append(b"content-length", b"0");
                        SinkFraming::Plain
                    } else if *is_10 {
                        close = true;
                        SinkFraming::Plain
                    } else {
                        let _ = head.headers.append(b"transfer-encoding", b"chunked");
                        SinkFraming::Chunked
                    };
                    if close {
                        let _ = head.headers.append(b"connection", b"close");
                        **closing = Closing::Close;
                    } else if *is_10 {
                        let _ = head.headers.append(b"connection", b"keep-alive");
                    }
                    head.write_to(&mut out);
                }
                *started = true;
                wr.write_all(&out).await.map_err(|_| gone())?;
                if empty || *head_only {
                    return Ok(None);
                }
                Ok(Some(Sink::H1 {
                    wr,
                    framing,
                    watch: watch.as_deref_mut(),
                }))
            }
        }
    }
}

/// Waits until the origin allows another stream.
pub(super) async fn stream_allowed(
    send: SendRequest<Bytes>,
    limit: Duration,
) -> Result<Result<SendRequest<Bytes>, h2::Error>, Elapsed> {
    let mut ready = pin!(send.ready());
    // Nearly always at once, and then without a timer.
    let first = poll_fn(|cx| Poll::Ready(ready.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(result) => Ok(result),
        Poll::Pending => Timer::default().within(limit, ready).await,
    }
}

pub(super) fn request_done(flow: &SharedFlow<'_>) {
    let mut flow = lock(flow);
    let elapsed = flow.timing.start.elapsed();
    flow.timing.request_end = Some(elapsed);
}

pub(super) fn failed(error: FlowError) -> Ended {
    Ended::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error))
}

pub(super) fn by_verdict(verdict: Verdict, started: bool) -> Ended {
    match verdict {
        Verdict::Respond(reply) if !started => Ended::Answer(
            reply,
            Outcome {
                kind: OutcomeKind::Answered,
                error: None,
            },
        ),
        Verdict::Failed(error) if !started => failed(error),
        verdict => Ended::Cut(Reason::CANCEL, h1::dropped(verdict)),
    }
}

pub(super) fn upstream_error(error: &h2::Error, doing: &str) -> FlowError {
    let class = if error.is_io() || error.is_reset() || error.is_go_away() {
        ErrorClass::Reset
    } else {
        ErrorClass::Protocol
    };
    FlowError::new(
        Side::Upstream,
        class,
        format!("the HTTP/2 connection to the origin failed while {doing}: {error}"),
    )
}

/// Runs the exchange of an HTTP/1 request over an HTTP/2 upstream. The hooks for the request have
/// been called.
pub(crate) async fn exchange_from_h1(
    session: &Session,
    client: &mut Conn,
    request: &mut ClientBody,
    guard: &mut FlowGuard<'_>,
    shared: Shared,
    keep_alive: bool,
) -> ExchangeEnd {
    let head_only = guard.flow.request.method() == b"HEAD";
    let is_10 = guard.flow.request.version == HttpVersion::Http10;
    let streams = Streams {
        session: session.another(),
        fixed: None,
    };
    let exchange = Exchange {
        streams: &streams,
        config: &session.live.config,
        counters: session.counters(),
    };
    request.consume(client);
    let Conn { rd, wr } = client;
    let mut watch = None;
    let mut source = match &request.collected {
        Some(whole) => {
            watch = Some(rd);
            let trailers = request.body.trailers().cloned();
            Source::Whole((!whole.is_empty()).then(|| whole.clone()), trailers)
        }
        None if request.body.is_done() => {
            watch = Some(rd);
            Source::Empty
        }
        None => Source::H1 {
            rd,
            body: &mut request.body,
        },
    };
    let mut closing = Closing::Keep;
    let mut down = Down::H1 {
        wr,
        is_10,
        keep_alive,
        head_only,
        closing: &mut closing,
        started: false,
        watch,
    };
    guard.flow.upstream = Some(Arc::clone(&shared.info));
    let in_use = InUse::new(&shared);
    let parts = match parts_of(guard.flow) {
        Ok(mut parts) => {
            // Asked of us, not of the origin's connection: HTTP/2 has no such wait.
            if parts.headers.contains_key(header::EXPECT) && !matches!(source, Source::Whole(..)) {
                let _ = down
                    .interim({
                        let mut interim = http::Response::new(());
                        *interim.status_mut() = http::StatusCode::CONTINUE;
                        interim
                    })
                    .await;
                parts.headers.remove(header::EXPECT);
            }
            parts
        }
        Err(error) => {
            return end(Exchanged::Answer(
                Box::new(reply::for_error(&error)),
                Outcome::failed(error),
            ));
        }
    };
    let ended = exchange
        .over_h2(guard, shared, parts, &mut source, &mut down)
        .await;
    drop(in_use);
    let started = matches!(down, Down::H1 { started: true, .. });
    end(match ended {
        None => Exchanged::Retry,
        Some(Ended::Complete) => Exchanged::Complete { close: closing },
        Some(Ended::Answer(reply, outcome)) if !started => Exchanged::Answer(reply, outcome),
        Some(Ended::Answer(_, outcome) | Ended::Cut(_, outcome)) => Exchanged::Cut(outcome),
    })
}

pub(super) fn end(result: Exchanged) -> ExchangeEnd {
    ExchangeEnd {
        result,
        upstream: UpstreamAfter::Dead,
    }
}

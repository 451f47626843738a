//! One request and its response, with HTTP/2 or HTTP/3 on at least one side.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{self, HeaderValue};
use tokio::time::Instant;
use tollgate_flow::{
    Direction, ErrorClass, FlowError, HttpVersion, Interest, Outcome, OutcomeKind, Reply, Response,
    Side,
};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{self, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version};

use crate::body::Body;
use crate::config::Config;
use crate::h1::{self, ClientBody, Closing, ExchangeEnd, Exchanged, UpstreamAfter};
use crate::hooks::{PieceVerdict, Run, SharedFlow, Verdict, lock};
use crate::io::{Conn, ReadHalf, WriteHalf};
use crate::metrics::{Counters, count};
use crate::pool::{RouteTls, UpConn};
use crate::reply;
use crate::session::{FlowGuard, Session, Up, UpstreamError};
use crate::stages::origin_tls;
use crate::timer::Timer;
use crate::via::{self, Forward};
use crate::visible;
use crate::websocket;

use super::Streams;
use super::body::{
    Collected, RelayError, Sink, SinkFraming, Source, collect, poll_gone, relay, sink_error,
};
use super::connections::{Carrier, InUse, Shared};
use super::convert::{
    from_map, head_from_flow, head_of, interceptor_error, is_connection_specific, parts_of, to_map,
};

/// The client's side of an exchange.
pub(crate) enum Down<'a> {
    H2 {
        respond: &'a mut SendResponse<Bytes>,
        /// Where the body goes, once the head has left.
        stream: Option<SendStream<Bytes>>,
        head_only: bool,
    },
    #[cfg(feature = "http3")]
    H3 {
        sender: &'a mut crate::h3::Sender,
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

pub(crate) enum Ended {
    Complete,
    /// The origin agreed to a WebSocket.
    Switched(Box<Switched>),
    /// A WebSocket has ended, and with it the stream.
    Upgraded(Outcome),
    Answer(Box<Reply>, Outcome),
    Cut(Reason, Outcome),
}

/// An upstream that now carries a WebSocket.
pub(crate) struct Switched {
    pub(crate) head: ResponseParts,
    pub(crate) upstream: SwitchedTo,
}

pub(crate) enum SwitchedTo {
    H1(UpConn),
    Stream(Outgoing, Source<'static>),
}

pub(crate) struct Exchange<'a> {
    pub(crate) streams: &'a Streams,
    pub(crate) config: &'a Config,
    pub(crate) counters: &'a Counters,
}

/// An upstream's side of an exchange.
pub(crate) enum Link {
    Shared { shared: Shared, _in_use: InUse },
    H1(Box<UpConn>),
}

impl Exchange<'_> {
    /// Runs an exchange. `parts` is the request as HTTP/2 and HTTP/3 have it, where it came so.
    pub(crate) async fn run(
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
            let tls = self.tls(&guard.flow.request);
            let tls = match tls {
                Ok(tls) => tls,
                Err(error) => return failed(error),
            };
            let link = self.link(&guard.flow.request, tls.as_ref(), false, attempt > 0);
            let link = match link.await {
                Ok(link) => link,
                Err(error) => return failed(error.into_flow_error()),
            };
            let ended = match link {
                Link::Shared { shared, _in_use } => {
                    guard.flow.upstream = Some(Arc::clone(&shared.info));
                    let parts = match &parts {
                        Some(parts) => Ok(parts.clone()),
                        None => parts_of(guard.flow),
                    };
                    match parts {
                        Ok(parts) => self.over_shared(guard, shared, parts, source, down).await,
                        Err(error) => return failed(error),
                    }
                }
                Link::H1(up) => {
                    let has_body = !source.is_empty();
                    let head = match &parts {
                        Some(parts) => head_of(parts, guard.flow, has_body),
                        None => head_from_flow(guard.flow, has_body),
                    };
                    match head {
                        Ok(head) => {
                            self.by_h1(guard, *up, head, tls.as_ref(), source, down)
                                .await
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
    pub(crate) fn tls(
        &self,
        request: &tollgate_flow::Request,
    ) -> Result<Option<RouteTls>, FlowError> {
        let fixed = self.streams.fixed.as_ref();
        origin_tls(&self.streams.session, request, fixed)
    }

    pub(crate) async fn link(
        &self,
        request: &tollgate_flow::Request,
        tls: Option<&RouteTls>,
        upgrades: bool,
        fresh: bool,
    ) -> Result<Link, UpstreamError> {
        let session = &self.streams.session;
        // Within a tunnel, HTTP/2 without TLS is what the origin speaks: a proxy on the way that reads
        // what is plain would not understand it.
        let in_tunnel = self.streams.fixed.is_some() && request.version == HttpVersion::Http2;
        let route = session.request_route(request, tls, false, upgrades || in_tunnel);
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
            Up::Shared(shared) => Link::Shared {
                _in_use: InUse::new(&shared),
                shared,
            },
            Up::Conn(up) => Link::H1(Box::new(up)),
        })
    }

    /// The exchange over an HTTP/1 upstream, which may be a scanner. `tls` is for the origin.
    pub(crate) async fn by_h1(
        &self,
        guard: &mut FlowGuard<'_>,
        up: UpConn,
        head: RequestHead,
        tls: Option<&RouteTls>,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Option<Ended> {
        guard.flow.upstream = Some(Arc::clone(&up.info));
        let session = &self.streams.session;
        let route = Arc::clone(&up.route);
        let tickets = &session.worker.shared.tickets;
        let ticket = match session.ticket(tickets, &route, &guard.flow.request, tls) {
            Ok(ticket) => ticket,
            Err(error) => return Some(failed(error)),
        };
        let forward = via::forward(&route, ticket.as_ref().map(|t| &*t.ticket));
        let ended = Box::pin(self.over_h1(guard, up, head, forward, source, down)).await;
        let reached = ticket.as_ref().and_then(|t| t.ticket.upstream.get());
        if let Some(origin) = reached {
            // What the flow reached in the end, rather than the scanner.
            guard.flow.upstream = Some(Arc::clone(origin));
        }
        ended
    }

    /// The exchange over a shared upstream connection. `None`: nothing was seen of it, try another
    /// one.
    pub(crate) async fn over_shared(
        &self,
        guard: &mut FlowGuard<'_>,
        shared: Shared,
        parts: http::request::Parts,
        source: &mut Source<'_>,
        down: &mut Down<'_>,
    ) -> Option<Ended> {
        let replayable = source.is_replayable();
        // RFC 9110 section 9.2.2.
        let idempotent = parts.method.is_idempotent();
        // RFC 8441: the stream stays open for the other protocol.
        let extended = parts.extensions.get::<Protocol>().is_some();
        let empty = source.is_empty() && !extended;
        let limit = self.config.timeouts.connect;
        let opened = match &shared.carrier {
            Carrier::H2(send) => crate::h2::open(send.clone(), parts, empty, limit).await,
            #[cfg(feature = "http3")]
            Carrier::H3(client) => crate::h3::open(client, &parts, empty, limit).await,
        };
        let (mut body, mut response) = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                if failure.closes {
                    shared.state.close();
                }
                if failure.retry && replayable {
                    return None;
                }
                return Some(failed(failure.error));
            }
        };
        let FlowGuard { flow, run, .. } = &mut *guard;
        let progress = AtomicU64::new(0);
        let size = AtomicU64::new(flow.request.body_size);
        let shared_flow = SharedFlow::new(flow);
        let mut switched = None;
        let request_body = async {
            if empty || extended {
                request_done(&shared_flow);
                return Ok(());
            }
            let mut hooks = run.body(
                &shared_flow,
                Direction::Request,
                &self.config.limits,
                self.counters,
            );
            let mut sink = body.sink();
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
                    response.poll_arrived(cx)
                })
                .await;
                match event {
                    Ok(Arrived::Final(head, source)) => break (head, source),
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
                    Err(failure) => {
                        let harmless = failure.unprocessed || idempotent;
                        if failure.retry && replayable && harmless {
                            return None;
                        }
                        return Some(match failure.reset {
                            // The origin's word for it reaches the client as it is.
                            Some(reason) if !matches!(down, Down::H1 { .. }) => {
                                Ended::Cut(reason, Outcome::failed(failure.error))
                            }
                            _ => failed(failure.error),
                        });
                    }
                }
            };
            progress.fetch_add(1, Ordering::Relaxed);
            let (head, source) = head;
            if extended && head.status.is_success() {
                switched = Some((head, source));
                return Some(Ended::Complete);
            }
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
        #[cfg(feature = "http3")]
        if let Carrier::H3(client) = &shared.carrier {
            client.count_bytes(self.counters);
        }
        if let Some((head, received)) = switched {
            return Some(Ended::Switched(Box::new(Switched {
                head: ResponseParts::Http(head),
                upstream: SwitchedTo::Stream(body, received),
            })));
        }
        if let Some(ended) = &ended
            && !matches!(ended, Ended::Complete)
        {
            body.reset(Reason::CANCEL);
        }
        lock(&shared_flow).request.body_size = size.load(Ordering::Relaxed);
        ended
    }

    /// The exchange over an HTTP/1 upstream.
    pub(crate) async fn over_h1(
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
        let may_switch = websocket::is_websocket(&head.headers);
        let mut switched = None;
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
                &self.config.limits,
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
                        Ok(Parsed::Complete { len }) if may_switch && head.status() == 101 => {
                            rd.consume(len);
                            switched = Some(head);
                            return Some(Ended::Complete);
                        }
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
        if let Some(head) = switched {
            return Some(Ended::Switched(Box::new(Switched {
                head: ResponseParts::Http1(head),
                upstream: SwitchedTo::H1(up),
            })));
        }
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
    pub(crate) async fn both(
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
    pub(crate) async fn respond(
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
        let mut head = head;
        let mut too_large = None;
        if visible::applies(self.config, &lock(flow).request.target) {
            // A client that speaks HTTP/3 with us is seen there.
            if !down.is_h3() {
                head.strip_alt_svc(self.counters);
            }
            if head.is_dns() && !source.is_empty() {
                match Box::pin(self.strip_answer(&mut head, &mut source)).await {
                    Ok(start) => too_large = start,
                    Err(error) => return failed(error),
                }
            }
        }
        let hooked = run.wants_anything() || too_large.is_some();
        let mut plain = None;
        match head {
            // Nobody looks, and both sides have heads of the same form: it goes on as it is.
            ResponseParts::Http(parts) if !hooked && !matches!(down, Down::H1 { .. }) => {
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
        if let Some(start) = too_large {
            return Box::pin(self.oversized(run, flow, start, source, down, progress)).await;
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
                    return Box::pin(self.oversized(run, flow, start, source, down, progress))
                        .await;
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

    /// Takes out of an answer of DNS what leads clients away from us, where that is found. Answers
    /// what was read of one that is too large to be one.
    async fn strip_answer(
        &self,
        head: &mut ResponseParts,
        source: &mut Source<'_>,
    ) -> Result<Option<Vec<u8>>, FlowError> {
        let idle = self.config.timeouts.idle;
        let collected = collect(source, Direction::Response, visible::DNS_BYTES, idle).await?;
        let (body, trailers) = match collected {
            Collected::Whole(body, trailers) => (body, trailers),
            Collected::TooLarge(start) => return Ok(Some(start)),
        };
        let body = match visible::strip_answer(&body, head.codings(), self.counters) {
            Some(answer) => {
                if answer.is_decoded {
                    head.set_decoded(answer.body.len());
                }
                answer.body
            }
            None => body,
        };
        *source = Source::Whole((!body.is_empty()).then_some(body), trailers);
        Ok(None)
    }

    /// A body that turned out too large to collect: what was collected goes first.
    pub(crate) async fn oversized(
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
        if run.edits(Direction::Response)
            && let Some(response) = &mut lock(flow).response
        {
            response.headers_mut().remove("content-length");
        }
        self.send(run, flow, None, start.into(), source, down, progress)
            .await
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one response, handed on once"
    )]
    pub(crate) async fn send(
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
            &self.config.limits,
            self.counters,
        );
        if !prefix.is_empty() {
            size.store(prefix.len() as u64, Ordering::Relaxed);
            let prefix = match hooks.data(&prefix, false).await {
                PieceVerdict::Pass => prefix,
                PieceVerdict::Replace(bytes) => bytes,
                PieceVerdict::End(verdict) => return by_verdict(verdict, true),
            };
            if !prefix.is_empty()
                && let Err(error) = sink.send(prefix, false).await
            {
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

    pub(crate) fn cut(&self, error: FlowError) -> Ended {
        Ended::Cut(Reason::CANCEL, Outcome::failed(error))
    }
}

/// Where a request's body goes on a shared connection.
pub(crate) enum Outgoing {
    H2(SendStream<Bytes>),
    #[cfg(feature = "http3")]
    H3(crate::h3::Sender),
}

impl Outgoing {
    fn sink(&mut self) -> Sink<'_> {
        match self {
            Self::H2(stream) => Sink::H2(stream),
            #[cfg(feature = "http3")]
            Self::H3(sender) => Sink::H3(sender),
        }
    }

    fn reset(&mut self, reason: Reason) {
        match self {
            Self::H2(stream) => stream.send_reset(reason),
            #[cfg(feature = "http3")]
            Self::H3(sender) => sender.reset(reason),
        }
    }
}

/// Where a response's head comes from on a shared connection.
pub(crate) enum UpHead {
    H2(ResponseFuture),
    #[cfg(feature = "http3")]
    H3(crate::h3::ResponseHead),
}

impl UpHead {
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrived, StreamFailed>> {
        match self {
            Self::H2(response) => {
                let failed = |e: h2::Error| crate::h2::failed(&e, "waiting for the response");
                match response.poll_informational(cx) {
                    Poll::Ready(Some(interim)) => {
                        return Poll::Ready(interim.map(Arrived::Interim).map_err(failed));
                    }
                    Poll::Ready(None) | Poll::Pending => {}
                }
                let response = ready!(pin!(response).poll(cx)).map_err(failed)?;
                let (head, body) = response.into_parts();
                let source = if body.is_end_stream() {
                    Source::Empty
                } else {
                    Source::H2(body)
                };
                Poll::Ready(Ok(Arrived::Final(head, source)))
            }
            #[cfg(feature = "http3")]
            Self::H3(response) => response.poll_arrived(cx),
        }
    }
}

/// What arrived while the response was waited for.
#[allow(
    clippy::large_enum_variant,
    reason = "made and taken apart in the same breath, never stored; how large depends on features"
)]
pub(crate) enum Arrived {
    Gone,
    Interim(http::Response<()>),
    Final(http::response::Parts, Source<'static>),
}

/// Why a stream of a shared connection carries no exchange.
pub(crate) struct StreamFailed {
    pub(crate) error: FlowError,
    /// The request may be sent once more, if that does no harm.
    pub(crate) retry: bool,
    /// The origin has not processed it: it may be sent once more in any case.
    pub(crate) unprocessed: bool,
    /// The connection takes no further streams.
    pub(crate) closes: bool,
    /// The origin reset the stream, with this.
    pub(crate) reset: Option<Reason>,
}

impl StreamFailed {
    pub(crate) fn new(class: ErrorClass, message: String) -> Self {
        Self {
            error: FlowError::new(Side::Upstream, class, message),
            retry: false,
            unprocessed: false,
            closes: false,
            reset: None,
        }
    }
}

pub(crate) enum ResponseParts {
    /// Of HTTP/2 or HTTP/3, as its version says.
    Http(http::response::Parts),
    Http1(ResponseHead),
}

impl ResponseParts {
    fn strip_alt_svc(&mut self, counters: &Counters) {
        match self {
            Self::Http(parts) => visible::strip_map(&mut parts.headers, counters),
            Self::Http1(head) => visible::strip_list(&mut head.headers, counters),
        }
    }

    fn is_dns(&self) -> bool {
        match self {
            Self::Http(parts) => {
                let value = parts.headers.get(header::CONTENT_TYPE);
                visible::is_dns(parts.status.as_u16(), value.map(HeaderValue::as_bytes))
            }
            Self::Http1(head) => visible::is_dns(head.status(), head.headers.get("content-type")),
        }
    }

    /// The values of `Content-Encoding`.
    fn codings(&self) -> impl Iterator<Item = &[u8]> {
        let (map, list) = match self {
            Self::Http(parts) => (Some(&parts.headers), None),
            Self::Http1(head) => (None, Some(&head.headers)),
        };
        let of_map = map.into_iter().flat_map(|map| {
            let values = map.get_all(header::CONTENT_ENCODING);
            values.iter().map(HeaderValue::as_bytes)
        });
        let of_list = list
            .into_iter()
            .flat_map(|list| list.get_all("content-encoding"));
        of_map.chain(of_list)
    }

    /// The body is no longer coded, and has this length.
    fn set_decoded(&mut self, length: usize) {
        match self {
            Self::Http(parts) => {
                parts.headers.remove(header::CONTENT_ENCODING);
                if let Some(value) = parts.headers.get_mut(header::CONTENT_LENGTH) {
                    *value = length.into();
                }
            }
            Self::Http1(head) => {
                head.headers.remove("content-encoding");
                if head.headers.contains("content-length") {
                    let length = length.to_string();
                    let _ = head.headers.set(b"Content-Length", length.as_bytes());
                }
            }
        }
    }

    pub(crate) fn into_response(self) -> Result<Box<Response>, FlowError> {
        let mut response = Box::<Response>::default();
        match self {
            Self::Http(parts) => {
                response.version = match parts.version {
                    http::Version::HTTP_3 => HttpVersion::Http3,
                    _ => HttpVersion::Http2,
                };
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
    fn is_h3(&self) -> bool {
        match self {
            #[cfg(feature = "http3")]
            Self::H3 { .. } => true,
            _ => false,
        }
    }

    /// Ready when the client has given its stream up.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H2 { respond, .. } => respond.poll_reset(cx).map(|_| ()),
            #[cfg(feature = "http3")]
            Self::H3 { sender, .. } => sender.poll_gone(cx),
            Self::H1 { watch, .. } => poll_gone(watch.as_deref_mut(), cx),
        }
    }

    /// Relays an interim response.
    pub(crate) async fn interim(&mut self, interim: http::Response<()>) -> Result<(), FlowError> {
        match self {
            Self::H2 { respond, .. } => respond
                .send_informational(interim)
                .map_err(|_| h1::client_gone()),
            #[cfg(feature = "http3")]
            Self::H3 { sender, .. } => sender
                .response(&interim.into_parts().0)
                .await
                .map_err(|_| h1::client_gone()),
            Self::H1 { is_10: true, .. } => Ok(()),
            Self::H1 { wr, .. } => {
                let status = interim.status().as_u16();
                let reason = http1::standard_reason(status);
                let mut head = ResponseHead::build(status, reason.as_bytes())
                    .map_err(|_| h1::client_gone())?;
                from_map(interim.headers(), &mut head.headers);
                let mut out = Vec::new();
                head.write_to(&mut out);
                wr.write_all(&out).await.map_err(|_| h1::client_gone())
            }
        }
    }

    /// Sends a reply of our own; fails when the client has gone, and then nobody waits for it. (Those
    /// to HTTP/1 clients leave where their connection is kept.)
    pub(crate) async fn answer(&mut self, reply: &Reply) {
        let status = reply::valid_status(reply.status);
        let bodiless = reply::is_bodiless(status);
        let mut parts = response_parts(status, &reply.headers);
        if !bodiless && reply.is_streamed() && !self.is_head_only() {
            if Box::pin(self.answer_in_pieces(reply, parts)).await.is_err() {
                self.reset(Reason::CANCEL);
            }
            return;
        }
        parts.headers.remove(header::CONTENT_LENGTH);
        if !bodiless {
            let length = HeaderValue::from(reply::length(reply, self.is_head_only()));
            parts.headers.insert(header::CONTENT_LENGTH, length);
        }
        let bodiless = bodiless || reply.body.is_empty();
        match self {
            Self::H2 {
                respond, head_only, ..
            } => {
                let empty = bodiless || *head_only;
                let response = http::Response::from_parts(parts, ());
                if let Ok(mut stream) = respond.send_response(response, empty)
                    && !empty
                {
                    let _ = stream.send_data(reply.body.clone(), true);
                }
            }
            #[cfg(feature = "http3")]
            Self::H3 { sender, head_only } => {
                let body = (!bodiless && !*head_only).then(|| reply.body.clone());
                sender.reply(&parts, body).await;
            }
            Self::H1 { .. } => {}
        }
    }

    fn is_head_only(&self) -> bool {
        match self {
            Self::H2 { head_only, .. } | Self::H1 { head_only, .. } => *head_only,
            #[cfg(feature = "http3")]
            Self::H3 { head_only, .. } => *head_only,
        }
    }

    /// Sends a reply of our own in its pieces, each at its time, for as long as the client is there.
    async fn answer_in_pieces(
        &mut self,
        reply: &Reply,
        mut parts: http::response::Parts,
    ) -> Result<(), FlowError> {
        let has_length = parts.headers.remove(header::CONTENT_LENGTH).is_some();
        if has_length && reply.trailers.is_none() {
            let length = HeaderValue::from(reply.body.len());
            parts.headers.insert(header::CONTENT_LENGTH, length);
        }
        let mut sink = match self {
            Self::H2 {
                respond, stream, ..
            } => {
                let response = http::Response::from_parts(parts, ());
                let sent = respond.send_response(response, false);
                Sink::H2(stream.insert(sent.map_err(|e| sink_error(&e))?))
            }
            #[cfg(feature = "http3")]
            Self::H3 { sender, .. } => {
                let sent = sender.response(&parts).await;
                sent.map_err(|_| h1::client_gone())?;
                Sink::H3(sender)
            }
            Self::H1 { .. } => return Ok(()),
        };
        let started = Instant::now();
        let mut pieces = reply.cut().peekable();
        let mut ended = false;
        while let Some((piece, at)) = pieces.next() {
            if !at.is_zero() {
                let mut waited = pin!(tokio::time::sleep_until(started + at));
                let stays = poll_fn(|cx| match sink.poll_gone(cx) {
                    Poll::Ready(()) => Poll::Ready(false),
                    Poll::Pending => waited.as_mut().poll(cx).map(|()| true),
                });
                if !stays.await {
                    return Err(h1::client_gone());
                }
            }
            ended = reply.trailers.is_none() && pieces.peek().is_none();
            in_time(sink.send(piece, ended)).await?;
        }
        if ended {
            return Ok(());
        }
        in_time(sink.finish(reply.trailers.as_ref())).await
    }

    /// Gives the client's stream up. (HTTP/1 clients are cut where their connection is kept.)
    pub(crate) fn reset(&mut self, reason: Reason) {
        match self {
            Self::H2 {
                stream: Some(stream),
                ..
            } => stream.send_reset(reason),
            Self::H2 { respond, .. } => respond.send_reset(reason),
            #[cfg(feature = "http3")]
            Self::H3 { sender, .. } => sender.reset(reason),
            Self::H1 { .. } => {}
        }
    }

    /// Sends the head; answers where the body goes, `None` when there is none.
    pub(crate) async fn head(
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
                let Some(parts) = plain.or_else(|| parts_of_response(flow)) else {
                    return Err(gone());
                };
                let response = http::Response::from_parts(parts, ());
                let empty = empty || *head_only;
                let sent = respond.send_response(response, empty).map_err(|_| gone())?;
                if empty {
                    return Ok(None);
                }
                Ok(Some(Sink::H2(stream.insert(sent))))
            }
            #[cfg(feature = "http3")]
            Self::H3 { sender, head_only } => {
                let Some(parts) = plain.or_else(|| parts_of_response(flow)) else {
                    return Err(gone());
                };
                sender.response(&parts).await.map_err(|_| gone())?;
                if empty || *head_only {
                    sender.finish(None).await.map_err(|_| gone())?;
                    return Ok(None);
                }
                Ok(Some(Sink::H3(sender)))
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
                let bodiless;
                {
                    let mut flow = lock(flow);
                    let Some(from) = &mut flow.response else {
                        return Err(gone());
                    };
                    let status = from.status();
                    let mut head =
                        ResponseHead::build(status, http1::standard_reason(status).as_bytes())
                            .map_err(|_| gone())?;
                    for (name, value) in from.headers().iter() {
                        if !is_connection_specific(name) {
                            let _ = head.headers.append(name, value);
                        }
                    }
                    bodiless = *head_only || status == 204 || status == 304;
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
                // What an origin sends there all the same would be read as the next response.
                if empty || bodiless {
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

/// Waits for a client to take a part of an answer of our own.
async fn in_time(work: impl Future<Output = Result<(), FlowError>>) -> Result<(), FlowError> {
    tokio::time::timeout(h1::REPLY, work)
        .await
        .unwrap_or_else(|_| Err(h1::client_gone()))
}

/// The head of a response as HTTP/2 and HTTP/3 have it.
fn parts_of_response(flow: &SharedFlow<'_>) -> Option<http::response::Parts> {
    let flow = lock(flow);
    let from = flow.response.as_ref()?;
    Some(response_parts(from.status(), from.headers()))
}

fn response_parts(status: u16, headers: &HeaderList) -> http::response::Parts {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    if let Ok(status) = http::StatusCode::from_u16(status) {
        parts.status = status;
    }
    to_map(headers, &mut parts.headers);
    parts
}

pub(crate) fn request_done(flow: &SharedFlow<'_>) {
    let mut flow = lock(flow);
    let elapsed = flow.timing.start.elapsed();
    flow.timing.request_end = Some(elapsed);
}

pub(crate) fn failed(error: FlowError) -> Ended {
    Ended::Answer(Box::new(reply::for_error(&error)), Outcome::failed(error))
}

pub(crate) fn by_verdict(verdict: Verdict, started: bool) -> Ended {
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
        .over_shared(guard, shared, parts, &mut source, &mut down)
        .await;
    drop(in_use);
    let started = matches!(down, Down::H1 { started: true, .. });
    end(match ended {
        None => Exchanged::Retry,
        Some(Ended::Complete) => Exchanged::Complete { close: closing },
        // Not from here: a client of HTTP/1 gets its WebSocket over HTTP/1.
        Some(Ended::Switched(_)) => Exchanged::Cut(Outcome::failed(h1::client_gone())),
        Some(Ended::Upgraded(outcome)) => Exchanged::Cut(outcome),
        Some(Ended::Answer(reply, outcome)) if !started => Exchanged::Answer(reply, outcome),
        Some(Ended::Answer(_, outcome) | Ended::Cut(_, outcome)) => Exchanged::Cut(outcome),
    })
}

pub(crate) fn end(result: Exchanged) -> ExchangeEnd {
    ExchangeEnd {
        result,
        upstream: UpstreamAfter::Dead,
    }
}

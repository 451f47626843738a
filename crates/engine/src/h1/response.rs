//! Brings a response from an HTTP/1 upstream to an HTTP/1 client.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use tollgate_flow::{
    Direction, ErrorClass, FlowError, HttpVersion, Interest, Outcome, Response, Side,
};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{self, Framing, HeadLimits, Parsed, Version};

use crate::body::Body;
use crate::hooks::{BodyRun, PieceVerdict, Run, SharedFlow, Verdict, lock};
use crate::io::{End, ReadHalf, WriteHalf};
use crate::metrics::Counters;
use crate::visible;
use crate::websocket;

use super::body::{PumpError, Reframed, pump};
use super::exchange::{
    Closing, ExchangeEnd, Exchanged, Method, UpstreamAfter, cut, upstream_failed,
    verdict_before_response,
};
use super::failure::{client_gone, dropped, upstream_anomaly, upstream_io};
use super::head::{is_connection_bound, is_stream, make_chunked};

/// Brings a response from an HTTP/1 upstream to an HTTP/1 client.
pub(super) struct ResponseRelay<'a> {
    pub(super) config: &'a crate::config::Config,
    pub(super) counters: &'a Counters,
    pub(super) run: &'a Run,
    pub(super) keep_alive: bool,
    pub(super) method: Method,
    pub(super) wants_upgrade: bool,
    pub(super) client_is_10: bool,
    pub(super) may_retry: bool,
    pub(super) progress: &'a AtomicU64,
}

impl ResponseRelay<'_> {
    pub(super) async fn run(
        self,
        rd: &mut ReadHalf,
        wr: &mut WriteHalf,
        flow: &SharedFlow<'_>,
        spare: &mut Option<Box<Response>>,
        started: &AtomicBool,
    ) -> ExchangeEnd {
        let mut response = spare.take().unwrap_or_default();
        response.reset();
        let head_len = match self.read_head(rd, wr, &mut response).await {
            Ok(len) => len,
            Err(end) => return end,
        };
        self.progress.fetch_add(1, Ordering::Relaxed);
        let status = response.status();
        response.version = match response.head.version() {
            Version::Http10 => HttpVersion::Http10,
            Version::Http11 => HttpVersion::Http11,
        };
        let framing = match response.head.framing(self.method.as_bytes()) {
            Ok(framing) => framing,
            Err(anomaly) => return upstream_failed(upstream_anomaly(anomaly)),
        };
        let upstream_keeps = response.head.keep_alive() && framing != Framing::UntilClose;
        let pin = is_connection_bound(&response.head.headers, "www-authenticate");
        let hides = visible::applies(self.config, &lock(flow).request.target);
        if hides {
            visible::strip_list(&mut response.head.headers, self.counters);
        }
        let is_dns = hides && visible::is_dns(status, response.head.headers.get("content-type"));
        let upgraded =
            status == 101 || (self.method == Method::Connect && (200..300).contains(&status));
        if status == 101 {
            let request = lock(flow);
            let (asked, answered) = (request.request.headers(), &response.head.headers);
            if request.request.head.upgrade().is_none() {
                return upstream_failed(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Protocol,
                    "the origin switched protocols without being asked to",
                ));
            }
            if websocket::is_websocket(asked) || websocket::is_websocket(answered) {
                let edits = self.run.wants(Interest::EDIT_MESSAGES);
                if let Err(error) = websocket::check_answer(asked, answered, edits) {
                    return upstream_failed(error);
                }
            }
        }
        {
            let mut flow = lock(flow);
            let elapsed = flow.timing.start.elapsed();
            flow.timing.response_start = Some(elapsed);
            flow.response = Some(response);
        }

        let mut body = Body::new(framing, self.config.limits.trailer_bytes);
        let mut collected: Option<Bytes> = None;
        let mut prefix: Option<Vec<u8>> = None;
        let limit = self.config.limits.body_limit;
        if is_dns && !upgraded && !body.is_done() {
            match self
                .collect(rd, head_len, &mut body, visible::DNS_BYTES)
                .await
            {
                Ok(Collected::Whole(bytes)) => {
                    let mut flow = lock(flow);
                    if let Some(response) = &mut flow.response {
                        let bytes = self.strip_answer(&mut response.head.headers, bytes);
                        response.body_size = bytes.len() as u64;
                        response.trailers = body.trailers().cloned();
                        if self.run.watches(Direction::Response)
                            && !self.run.wants(Interest::RESPONSE_BODY)
                        {
                            // They are shown it as pieces.
                            prefix = Some(bytes.into());
                        } else {
                            response.put_collected_body(bytes.clone());
                            collected = Some(bytes);
                        }
                    }
                }
                Ok(Collected::TooLarge(start)) => prefix = Some(start),
                Err(error) => return upstream_failed(error),
            }
        } else if self.run.wants(Interest::RESPONSE_BODY) && !upgraded && !is_stream(&lock(flow)) {
            match self.collect(rd, head_len, &mut body, limit).await {
                Ok(Collected::Whole(bytes)) => {
                    let mut flow = lock(flow);
                    if let Some(response) = &mut flow.response {
                        response.body_size = bytes.len() as u64;
                        response.trailers = body.trailers().cloned();
                        response.put_collected_body(bytes.clone());
                    }
                    collected = Some(bytes);
                }
                Ok(Collected::TooLarge(start)) => prefix = Some(start),
                Err(error) => return upstream_failed(error),
            }
        }
        match self.run.response(flow, self.counters).await {
            Verdict::Continue => {}
            verdict => return verdict_before_response(verdict),
        }
        let edits = self.run.edits(Direction::Response) && collected.is_none() && !body.is_done();
        let mut head = Vec::new();
        let mut whole: Option<Bytes> = None;
        let mut no_body = false;
        let mut until_close = framing == Framing::UntilClose;
        let closing;
        {
            let mut flow = lock(flow);
            let Some(response) = &mut flow.response else {
                return cut(Outcome::failed(client_gone()));
            };
            if collected.is_some() {
                let edited = response.is_body_edited();
                let bytes = response.body().cloned().unwrap_or_default();
                let bodiless = matches!(framing, Framing::None);
                if edited || (until_close && !bodiless) {
                    let headers = &mut response.head.headers;
                    headers.remove("transfer-encoding");
                    let _ = headers.set(b"Content-Length", bytes.len().to_string().as_bytes());
                    until_close = false;
                }
                // Where the message has no body, its head is all that there is to send.
                no_body = bodiless && !edited;
                whole = Some(if no_body { Bytes::new() } else { bytes });
            } else if prefix.is_some() || edits {
                if self.client_is_10 {
                    response.head.headers.remove("content-length");
                    response.head.headers.remove("transfer-encoding");
                    until_close = true;
                } else {
                    make_chunked(&mut response.head.headers);
                    until_close = false;
                }
            }
            closing = if !self.keep_alive || until_close || !response.head.keep_alive() {
                Closing::Close
            } else {
                Closing::Keep
            };
            // The origin may keep its connection where we have to close the client's: then it
            // has to be told, unless its own head said so.
            if closing == Closing::Close
                && response.head.keep_alive()
                && !until_close
                && !upgraded
                && !response.head.headers.has_token("connection", "close")
            {
                let _ = response.head.headers.set(b"Connection", b"close");
            }
            let untouched = response
                .head
                .as_raw()
                .is_some_and(|raw| raw.len() == head_len);
            if !untouched || whole.is_some() || prefix.is_some() || edits {
                response.head.write_to(&mut head);
            }
        }

        started.store(true, Ordering::Relaxed);
        if upgraded {
            let data = rd.data().get(..head_len).unwrap_or_default();
            let bytes = if head.is_empty() { data } else { &head };
            if wr.write_all(bytes).await.is_err() {
                return cut(Outcome::failed(client_gone()));
            }
            rd.consume(head_len);
            return if self.wants_upgrade {
                ExchangeEnd {
                    result: Exchanged::Upgraded,
                    upstream: UpstreamAfter::Upgraded,
                }
            } else {
                cut(Outcome::failed(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Protocol,
                    "the origin switched protocols without being asked",
                )))
            };
        }

        let relayed = if let Some(whole) = whole {
            let chunked = {
                let flow = lock(flow);
                flow.response
                    .as_ref()
                    .is_some_and(|r| r.head.headers.has_token("transfer-encoding", "chunked"))
            };
            let mut out = Vec::new();
            if self.method != Method::Head && !no_body {
                if chunked {
                    http1::encode_chunk(&mut out, &whole);
                    http1::encode_last(&mut out, body.trailers());
                    wr.write_all2(&head, &out).await
                } else {
                    wr.write_all2(&head, &whole).await
                }
            } else {
                wr.write_all(&head).await
            }
            .map_err(|_| PumpError::Write)
        } else {
            self.relay_body(
                rd,
                wr,
                flow,
                head,
                head_len,
                prefix,
                &mut body,
                edits,
                until_close,
            )
            .await
        };
        {
            let mut flow = lock(flow);
            if let Some(response) = &mut flow.response
                && collected.is_none()
            {
                response.trailers = body.trailers().cloned();
            }
        }
        match relayed {
            Ok(()) => {
                let truncated = framing == Framing::UntilClose && rd.end() == Some(End::Truncated);
                let closing = match closing {
                    // TLS says whether a stream without a length is whole.
                    Closing::Close if until_close && truncated => Closing::Truncated,
                    closing => closing,
                };
                let upstream = match (upstream_keeps && rd.data().is_empty(), pin) {
                    (false, _) => UpstreamAfter::Dead,
                    (true, true) => UpstreamAfter::Pin,
                    (true, false) => UpstreamAfter::Reusable,
                };
                ExchangeEnd {
                    result: Exchanged::Complete { close: closing },
                    upstream,
                }
            }
            Err(PumpError::Read) => cut(Outcome::failed(FlowError::new(
                Side::Upstream,
                ErrorClass::Reset,
                "the origin closed the connection in the middle of the response",
            ))),
            Err(PumpError::Write) => cut(Outcome::failed(client_gone())),
            Err(PumpError::Anomaly(anomaly)) => cut(Outcome::failed(upstream_anomaly(anomaly))),
            Err(PumpError::Verdict(verdict)) => cut(dropped(verdict)),
        }
    }

    /// Reads up to the final head, which stays in the buffer. Interim responses are relayed.
    pub(super) async fn read_head(
        &self,
        rd: &mut ReadHalf,
        wr: &mut WriteHalf,
        response: &mut Response,
    ) -> Result<usize, ExchangeEnd> {
        let limits = HeadLimits {
            bytes: self.config.limits.head_bytes,
            lines: self.config.limits.header_lines,
        };
        let mut nothing_seen = true;
        loop {
            if !rd.data().is_empty() {
                nothing_seen = false;
                match response.head.parse(rd.data(), &limits) {
                    Ok(Parsed::Complete { len }) => {
                        if !response.head.is_interim() {
                            return Ok(len);
                        }
                        if response.status() == 101 {
                            return Ok(len);
                        }
                        // RFC 9110 section 15.2: HTTP/1.0 knows no interim responses.
                        if !self.client_is_10 {
                            let interim = rd.data().get(..len).unwrap_or_default();
                            if wr.write_all(interim).await.is_err() {
                                return Err(cut(Outcome::failed(client_gone())));
                            }
                        }
                        rd.consume(len);
                        self.progress.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    Ok(Parsed::Partial) => {}
                    Err(anomaly) => return Err(upstream_failed(upstream_anomaly(anomaly))),
                }
            }
            let failed = match rd.fill().await {
                Ok(n) if n > 0 => continue,
                Ok(_) => None,
                Err(e) => Some(e),
            };
            if nothing_seen && self.may_retry {
                return Err(ExchangeEnd {
                    result: Exchanged::Retry,
                    upstream: UpstreamAfter::Dead,
                });
            }
            return Err(upstream_failed(match failed {
                Some(e) => upstream_io(&e, "waiting for the response"),
                None => FlowError::new(
                    Side::Upstream,
                    ErrorClass::Reset,
                    "the origin closed the connection before it answered",
                ),
            }));
        }
    }

    /// Takes out of an answer of DNS what leads clients away from us.
    fn strip_answer(&self, headers: &mut HeaderList, body: Bytes) -> Bytes {
        let codings = headers.get_all("content-encoding");
        let Some(answer) = visible::strip_answer(&body, codings, self.counters) else {
            return body;
        };
        if answer.is_decoded {
            headers.remove("content-encoding");
            if headers.contains("content-length") {
                let length = answer.body.len().to_string();
                let _ = headers.set(b"Content-Length", length.as_bytes());
            }
        }
        answer.body
    }

    pub(super) async fn collect(
        &self,
        rd: &mut ReadHalf,
        head_len: usize,
        body: &mut Body,
        limit: usize,
    ) -> Result<Collected, FlowError> {
        let mut whole = Vec::new();
        rd.consume(head_len);
        loop {
            let n = body
                .advance(rd.data(), |payload| whole.extend_from_slice(payload))
                .map_err(upstream_anomaly)?;
            rd.consume(n);
            self.progress.fetch_add(1, Ordering::Relaxed);
            if whole.len() > limit {
                return Ok(Collected::TooLarge(whole));
            }
            if body.is_done() {
                return Ok(Collected::Whole(whole.into()));
            }
            match rd.fill().await {
                Ok(n) if n > 0 => {}
                Ok(_) if body.end_of_stream() => return Ok(Collected::Whole(whole.into())),
                Ok(_) => {
                    return Err(FlowError::new(
                        Side::Upstream,
                        ErrorClass::Reset,
                        "the origin closed the connection in the middle of the response",
                    ));
                }
                Err(e) => return Err(upstream_io(&e, "reading the response")),
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, whose arguments are the state of one relay"
    )]
    pub(super) async fn relay_body(
        &self,
        rd: &mut ReadHalf,
        wr: &mut WriteHalf,
        flow: &SharedFlow<'_>,
        head: Vec<u8>,
        head_len: usize,
        prefix: Option<Vec<u8>>,
        body: &mut Body,
        edits: bool,
        until_close: bool,
    ) -> Result<(), PumpError> {
        let size = AtomicU64::new(0);
        let mut hooks = self.run.body(
            flow,
            Direction::Response,
            &self.config.limits,
            self.counters,
        );
        let result = if let Some(prefix) = prefix {
            // The head's bytes are gone from the buffer; the body goes on chunk by chunk.
            size.store(prefix.len() as u64, Ordering::Relaxed);
            let mut sink = Reframed { wr, until_close };
            sink.start(&head, &prefix, &mut hooks).await?;
            sink.relay(rd, body, &mut hooks, self.progress, &size).await
        } else if edits && until_close {
            rd.consume(head_len);
            let mut sink = Reframed { wr, until_close };
            sink.start(&head, &[], &mut hooks).await?;
            sink.relay(rd, body, &mut hooks, self.progress, &size).await
        } else if edits {
            let data = rd.data().get(..head_len).unwrap_or_default();
            let bytes = if head.is_empty() { data } else { &head };
            wr.write_all(bytes).await.map_err(|_| PumpError::Write)?;
            rd.consume(head_len);
            pump(rd, wr, body, &mut hooks, edits, self.progress, &size).await
        } else if hooks.watched {
            let start = show_start(rd, wr, &head, head_len, body, &mut hooks, &size);
            let n = start.await?;
            rd.consume(n);
            pump(rd, wr, body, &mut hooks, edits, self.progress, &size).await
        } else {
            let data = rd.data();
            let rest = data.get(head_len..).unwrap_or_default();
            let mut payload = 0;
            let n = body
                .advance(rest, |piece| payload += piece.len() as u64)
                .map_err(PumpError::Anomaly)?;
            size.store(payload, Ordering::Relaxed);
            if head.is_empty() {
                wr.write_all(data.get(..head_len + n).unwrap_or_default())
                    .await
            } else {
                wr.write_all2(&head, rest.get(..n).unwrap_or_default())
                    .await
            }
            .map_err(|_| PumpError::Write)?;
            rd.consume(head_len + n);
            if body.is_done() {
                Ok(())
            } else {
                pump(rd, wr, body, &mut hooks, edits, self.progress, &size).await
            }
        };
        if let Some(response) = &mut lock(flow).response {
            response.body_size = size.load(Ordering::Relaxed);
        }
        result
    }
}

/// Sends the head and what is here of a body that is watched: in one write, unless a hook takes its time. Answers how much
/// of the buffer that was.
async fn show_start(
    rd: &ReadHalf,
    wr: &mut WriteHalf,
    head: &[u8],
    head_len: usize,
    body: &mut Body,
    hooks: &mut BodyRun<'_, '_>,
    size: &AtomicU64,
) -> Result<usize, PumpError> {
    let data = rd.data();
    let (original, rest) = data.split_at_checked(head_len).unwrap_or((data, &[]));
    let first = if head.is_empty() { original } else { head };
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    let mut payload = 0;
    let start = rest.as_ptr().addr();
    let n = body
        .advance(rest, |piece| {
            payload += piece.len() as u64;
            pieces.push((piece.as_ptr().addr() - start, piece.len()));
        })
        .map_err(PumpError::Anomaly)?;
    size.store(payload, Ordering::Relaxed);
    let mut sent = false;
    for (at, len) in pieces {
        let piece = rest.get(at..at + len).unwrap_or_default();
        let mut offer = pin!(hooks.data(piece, false));
        let verdict = match poll_fn(|cx| Poll::Ready(offer.as_mut().poll(cx))).await {
            Poll::Ready(verdict) => verdict,
            Poll::Pending => {
                // Who holds a piece doesn't hold the head.
                if !std::mem::replace(&mut sent, true) {
                    wr.write_all(first).await.map_err(|_| PumpError::Write)?;
                }
                offer.await
            }
        };
        if let PieceVerdict::End(verdict) = verdict {
            if !sent {
                wr.write_all(first).await.map_err(|_| PumpError::Write)?;
            }
            return Err(PumpError::Verdict(verdict));
        }
    }
    let whole = head_len + n;
    let payload_bytes = rest.get(..n).unwrap_or_default();
    let written = if sent {
        wr.write_all(payload_bytes).await
    } else if head.is_empty() {
        wr.write_all(data.get(..whole).unwrap_or_default()).await
    } else {
        wr.write_all2(head, payload_bytes).await
    };
    written.map_err(|_| PumpError::Write)?;
    Ok(whole)
}

pub(super) enum Collected {
    Whole(Bytes),
    TooLarge(Vec<u8>),
}

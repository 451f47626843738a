//! WebSockets over a stream of HTTP/2 (RFC 8441), to an origin that speaks it so or over HTTP/1.
//!
//! Interceptors are shown the handshake that HTTP/1 has, whichever way it came and goes.

use std::sync::Arc;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{Reason, SendStream};
use http::header::{self, HeaderValue};
use tollgate_flow::{ErrorClass, FlowError, Interest, Outcome, Side};
use tollgate_wire::http1::RequestHead;
use tollgate_wire::websocket::make_key;

use crate::h1;
use crate::h2::Received;
use crate::hooks::{SharedFlow, Verdict};
use crate::metrics::count;
use crate::pool::{Route, RouteTls};
use crate::session::{FlowGuard, Session, UpstreamError};
use crate::timer::Timer;
use crate::websocket::{self, Bounds, Ends, Input, Output};

use super::body::Source;
use super::connections::{Carrier, InUse, shared};
use super::convert::{head_from_flow, interceptor_error, parts_of, to_map};
use super::exchange::{
    Down, Ended, Exchange, Link, Outgoing, Switched, SwitchedTo, by_verdict, failed,
};

const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";

/// Whether a request asks for a WebSocket.
pub(super) fn is_asked_for(parts: &http::request::Parts) -> bool {
    parts.method == http::Method::CONNECT
        && parts
            .extensions
            .get::<Protocol>()
            .is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Makes the request look like the upgrade that asks for the same over HTTP/1.
pub(super) fn show_as_upgrade(parts: &mut http::request::Parts) {
    parts.method = http::Method::GET;
    let headers = &mut parts.headers;
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Serves a WebSocket, or answers why there is none.
pub(super) async fn serve(
    exchange: &Exchange<'_>,
    guard: &mut FlowGuard<'_>,
    source: Source<'_>,
    down: &mut Down<'_>,
) -> Ended {
    match run(exchange, guard, source, down).await {
        Ok(outcome) => Ended::Upgraded(outcome),
        Err(ended) => ended,
    }
}

async fn run(
    exchange: &Exchange<'_>,
    guard: &mut FlowGuard<'_>,
    source: Source<'_>,
    down: &mut Down<'_>,
) -> Result<Outcome, Ended> {
    put_key(guard)?;
    if guard.run.wants(Interest::REQUEST_BODY) {
        guard.flow.request.put_collected_body(Bytes::new());
    }
    let verdict = {
        let shared = SharedFlow::new(&mut *guard.flow);
        guard.run.request(&shared, exchange.counters).await
    };
    settle(verdict)?;
    if guard.run.wants(Interest::EDIT_MESSAGES) {
        websocket::restrict_offer(guard.flow.request.headers_mut());
    }
    let (switched, _in_use) = open(exchange, guard, down).await?;
    let Switched { head, upstream } = *switched;
    let response = head.into_response().map_err(failed)?;
    check(guard, &response, &upstream).map_err(failed)?;
    let elapsed = guard.flow.timing.start.elapsed();
    guard.flow.timing.response_start = Some(elapsed);
    guard.flow.response = Some(response);
    let verdict = {
        let shared = SharedFlow::new(&mut *guard.flow);
        guard.run.response(&shared, exchange.counters).await
    };
    settle(verdict)?;
    let Some(from_client) = stream_of(source) else {
        return Err(exchange.cut(h1::client_gone()));
    };
    let to_client = accept(guard, down)?;

    let client = Ends {
        input: Input::Stream(from_client),
        output: Output::Stream(to_client),
    };
    let bounds = Bounds::of(exchange.config);
    let mut timer = Timer::default();
    let flow = SharedFlow::new(&mut *guard.flow);
    let run = &guard.run;
    Ok(match upstream {
        SwitchedTo::Stream(outgoing, received) => {
            let (Some(received), Outgoing::H2(send)) = (stream_of(received), outgoing) else {
                return Err(exchange.cut(FlowError::new(
                    Side::Upstream,
                    ErrorClass::Reset,
                    "the origin closed the WebSocket at once",
                )));
            };
            let origin = Ends {
                input: Input::Stream(received),
                output: Output::Stream(send),
            };
            websocket::relay(
                run,
                &flow,
                exchange.counters,
                bounds,
                &mut timer,
                client,
                origin,
            )
            .await
        }
        SwitchedTo::H1(mut up) => {
            let outcome = websocket::relay(
                run,
                &flow,
                exchange.counters,
                bounds,
                &mut timer,
                client,
                Ends::of(&mut up.conn),
            )
            .await;
            up.count_bytes(exchange.counters);
            outcome
        }
    })
}

/// What a peer sends; `None` where it has ended already.
fn stream_of(source: Source<'_>) -> Option<Received> {
    match source {
        Source::H2(body) => Some(Received::new(body)),
        _ => None,
    }
}

fn settle(verdict: Verdict) -> Result<(), Ended> {
    match verdict {
        Verdict::Continue => Ok(()),
        verdict => Err(by_verdict(verdict, false)),
    }
}

/// HTTP/2 has no key; HTTP/1 needs one (RFC 8441 section 5).
fn put_key(guard: &mut FlowGuard<'_>) -> Result<(), Ended> {
    let mut nonce = [0; 16];
    let made = aws_lc_rs::rand::fill(&mut nonce);
    let headers = guard.flow.request.headers_mut();
    made.ok()
        .and_then(|()| headers.set(KEY.as_bytes(), make_key(nonce).as_bytes()).ok())
        .ok_or_else(|| {
            failed(FlowError::new(
                Side::Proxy,
                ErrorClass::Interceptor,
                "a key for the WebSocket can't be made",
            ))
        })
}

/// Asks the origin.
async fn open(
    exchange: &Exchange<'_>,
    guard: &mut FlowGuard<'_>,
    down: &mut Down<'_>,
) -> Result<(Box<Switched>, Option<InUse>), Ended> {
    let tls = exchange.tls(&guard.flow.request).map_err(failed)?;
    for attempt in 0..3 {
        let mut tls = tls.clone();
        let link = link(exchange, guard, &mut tls, attempt > 0)
            .await
            .map_err(|error| failed(error.into_flow_error()))?;
        let mut source = Source::Empty;
        let (ended, in_use) = match link {
            Link::Shared { shared, _in_use } => {
                guard.flow.upstream = Some(Arc::clone(&shared.info));
                let mut parts = parts_of(guard.flow).map_err(failed)?;
                parts.method = http::Method::CONNECT;
                parts.headers.remove(KEY);
                parts.extensions.insert(Protocol::from_static("websocket"));
                let asked = exchange.over_shared(guard, shared, parts, &mut source, down);
                (asked.await, Some(_in_use))
            }
            Link::H1(up) => {
                let head = upgrade_head(guard).map_err(failed)?;
                let asked = exchange.by_h1(guard, *up, head, tls.as_ref(), &mut source, down);
                (asked.await, None)
            }
        };
        match ended {
            Some(Ended::Switched(switched)) => return Ok((switched, in_use)),
            Some(ended) => return Err(ended),
            None => count(&exchange.counters.retries),
        }
    }
    Err(failed(FlowError::new(
        Side::Upstream,
        ErrorClass::Reset,
        "the origin closed the connection before it answered",
    )))
}

/// Finds a connection: an open one of HTTP/2 whose origin knows RFC 8441, else one of HTTP/1.
async fn link(
    exchange: &Exchange<'_>,
    guard: &FlowGuard<'_>,
    tls: &mut Option<RouteTls>,
    fresh: bool,
) -> Result<Link, UpstreamError> {
    let session = &exchange.streams.session;
    let request = &guard.flow.request;
    let mut route = None;
    if let Some(offer) = tls.take_if(|tls| tls.may_be_shared()) {
        let of_http2 = session.request_route(request, Some(&offer), false, true);
        if !fresh {
            if let Some(link) = announced(session, &of_http2) {
                return Ok(link);
            }
            route = Some(of_http2);
        }
        *tls = Some(offer.only_http1());
    }
    let link = exchange.link(request, tls.as_ref(), true, fresh).await;
    let link = link.and_then(|link| match link {
        Link::Shared { .. } => Err(FlowError::new(
            Side::Upstream,
            ErrorClass::Protocol,
            "the origin speaks only HTTP/2, and no WebSockets over it",
        )
        .into()),
        link => Ok(link),
    });
    link.or_else(|error| {
        // The connection of HTTP/2 may have been so new that the origin's settings were still on their way.
        let link = route.and_then(|route| announced(session, &route));
        link.ok_or(error)
    })
}

/// An open connection of HTTP/2 whose origin has announced that it knows RFC 8441.
fn announced(session: &Session, route: &Route) -> Option<Link> {
    let shared = shared(session, route)?;
    match &shared.carrier {
        Carrier::H2(send) if send.is_extended_connect_protocol_enabled() => Some(Link::Shared {
            _in_use: InUse::new(&shared),
            shared,
        }),
        _ => None,
    }
}

/// The upgrade of HTTP/1 for what is left of the flow's head.
fn upgrade_head(guard: &FlowGuard<'_>) -> Result<RequestHead, FlowError> {
    let mut head = head_from_flow(guard.flow, false)?;
    for (name, value) in [
        (&b"connection"[..], &b"Upgrade"[..]),
        (b"upgrade", b"websocket"),
    ] {
        head.headers.set(name, value).map_err(interceptor_error)?;
    }
    Ok(head)
}

fn check(
    guard: &FlowGuard<'_>,
    response: &tollgate_flow::Response,
    upstream: &SwitchedTo,
) -> Result<(), FlowError> {
    let edits = guard.run.wants(Interest::EDIT_MESSAGES);
    match upstream {
        SwitchedTo::H1(_) => {
            let asked = guard.flow.request.headers();
            websocket::check_answer(asked, response.headers(), edits)
        }
        SwitchedTo::Stream(..) => websocket::check_extensions(response.headers(), edits),
    }
}

/// Tells the client that the WebSocket is open.
fn accept(guard: &FlowGuard<'_>, down: &mut Down<'_>) -> Result<SendStream<Bytes>, Ended> {
    let gone = || Ended::Cut(Reason::CANCEL, Outcome::failed(h1::client_gone()));
    let Down::H2 { respond, .. } = down else {
        return Err(gone());
    };
    let mut response = http::Response::new(());
    if let Some(from) = &guard.flow.response {
        to_map(from.headers(), response.headers_mut());
    }
    for name in [ACCEPT, "content-length"] {
        response.headers_mut().remove(name);
    }
    respond.send_response(response, false).map_err(|_| gone())
}

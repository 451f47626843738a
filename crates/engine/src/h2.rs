//! HTTP/2 on either side, on the `h2` crate; and the exchanges that have it on one side only.
//!
//! A stream is a task. Its bodies are pulled: a piece is read, offered, sent, and only then is its
//! flow-control window given back, so that the receiver's window is the only buffer.

mod body;
mod connections;
mod convert;
mod exchange;
mod io;

use std::future::poll_fn;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Request, Uri};
use tokio::task::JoinSet;
use tollgate_flow::{
    ErrorClass, Flow, FlowError, HttpVersion, Outcome, Reply, Scheme, Side, Target,
};
use tracing::debug;

use crate::auth::{self, Admitted};
use crate::config::{Config, PoolMode};
use crate::h1::{self, Fixed};
use crate::hooks::Run;
use crate::io::Conn;
use crate::metrics::count;
use crate::policy::Action;
use crate::reply;
use crate::sandwich;
use crate::session::{FlowGuard, Session, Up};

use body::Source;
use convert::{fill_head, to_map};
use exchange::{Down, Ended, Exchange};
use io::Io;

pub(crate) use connections::{Shared, SharedConnections, shared, start};
pub(crate) use exchange::exchange_from_h1;

/// Flow-control windows that we give: what may be in flight and not yet passed on.
pub(super) const STREAM_WINDOW: u32 = 1024 * 1024;

pub(super) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// What h2 may hold of a stream that its peer doesn't take yet.
pub(super) const SEND_BUFFER: usize = 256 * 1024;

pub(super) const MAX_FRAME: u32 = 64 * 1024;

/// What the streams of one client connection share.
pub(super) struct Streams {
    pub(super) session: Session,
    pub(super) fixed: Option<Fixed>,
}

/// Serves HTTP/2 to a client until its connection ends.
pub(crate) async fn serve(
    session: &mut Session,
    client: Conn,
    fixed: Option<Fixed>,
    upstream: Option<Up>,
) {
    let config = Arc::clone(&session.live.config);
    // An HTTP/2 connection that was just opened stands among the shared ones; one of HTTP/1 waits
    // in the pool for the first stream.
    if let Some(up) = upstream {
        session.give_back(up);
    }
    let builder = {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(config.limits.h2_streams)
            .max_header_list_size(config.limits.head_bytes.try_into().unwrap_or(u32::MAX));
        builder
    };
    let (io, outlet) = Io::new(client, &session.worker, Some(&session.info));
    let handshake = session
        .timer
        .within(
            config.timeouts.first_bytes,
            builder.handshake::<_, Bytes>(io),
        )
        .await;
    let mut connection = match handshake {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            debug!(client = %session.info.client, %error, "HTTP/2 was not begun");
            session
                .counters()
                .failure(Side::Client, ErrorClass::Protocol);
            return;
        }
        Err(_) => {
            session
                .counters()
                .failure(Side::Client, ErrorClass::Timeout);
            return;
        }
    };
    let streams = Arc::new(Streams {
        session: session.another(),
        fixed,
    });
    // Dropped with this future: then every stream's task is gone too.
    let mut tasks = JoinSet::new();
    let mut draining = false;
    let keep_alive = config.timeouts.keep_alive;
    session.timer.set(keep_alive);
    loop {
        let Session { timer, control, .. } = &mut *session;
        let event = poll_fn(|cx| {
            while let Poll::Ready(Some(_)) = tasks.poll_join_next(cx) {
                // The time between requests counts from the end of the last one.
                timer.set(keep_alive);
            }
            let polled = connection.poll_accept(cx);
            if !matches!(polled, Poll::Ready(Some(Ok(_)))) {
                outlet.end_turn(cx);
            }
            if let Poll::Ready(accepted) = polled {
                return Poll::Ready(Accepted::Stream(accepted));
            }
            if !draining && control.poll_drain(cx).is_ready() {
                return Poll::Ready(Accepted::Drain);
            }
            if timer.poll(cx).is_ready() {
                return Poll::Ready(Accepted::Tick);
            }
            Poll::Pending
        })
        .await;
        match event {
            Accepted::Stream(Some(Ok((request, respond)))) => {
                // Boxed here: a task is moved several times on its way to the runtime.
                tasks.spawn(Box::pin(stream(Arc::clone(&streams), request, respond)));
            }
            Accepted::Stream(Some(Err(error))) => {
                debug!(client = %session.info.client, %error, "an HTTP/2 connection failed");
                if error.is_library() || error.is_remote() {
                    session
                        .counters()
                        .failure(Side::Client, ErrorClass::Protocol);
                }
                break;
            }
            Accepted::Stream(None) => break,
            Accepted::Drain => {
                draining = true;
                connection.graceful_shutdown();
            }
            Accepted::Tick if connection.has_streams() || !tasks.is_empty() => {
                session.timer.set(keep_alive);
            }
            Accepted::Tick => {
                draining = true;
                connection.graceful_shutdown();
            }
        }
    }
    // The connection is gone: the streams notice and end by themselves, with their own reasons.
    drop(connection);
    let _ = session
        .timer
        .within(Duration::from_secs(1), async {
            while tasks.join_next().await.is_some() {}
        })
        .await;
    drop(tasks);
    if config.pool.mode == PoolMode::Mirror
        && let Some(fixed) = &streams.fixed
    {
        let to = session.destination(&fixed.target, &tollgate_flow::Via::Configured);
        let route = session.route(to, fixed.tls.clone(), false);
        session
            .worker
            .h2
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove_route(&route);
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart in the same breath, never stored"
)]
pub(super) enum Accepted {
    Stream(Option<Result<NewStream, h2::Error>>),
    Drain,
    Tick,
}

pub(super) type NewStream = (Request<RecvStream>, SendResponse<Bytes>);

/// Serves one stream.
pub(super) async fn stream(
    streams: Arc<Streams>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let session = &streams.session;
    let counters = session.counters();
    let config = &*session.live.config;
    let mut flow = Box::new(Flow::new(Arc::clone(&session.info)));
    let (mut parts, body) = request.into_parts();
    let asked = auth::asked(session);
    let shown = asked.map(|(name, _)| parts.headers.get(name).map(|v| v.as_bytes().to_vec()));
    let mut prepared = prepare(
        &mut parts,
        streams.fixed.as_ref(),
        config.limits.header_lines,
        &mut flow,
    );
    if let (Some((name, status)), Ok(())) = (asked, &prepared) {
        let shown = shown.flatten();
        match auth::admit(session, shown.as_deref(), status).await {
            Ok(Admitted::AsItIs) => {}
            Ok(Admitted::WithoutField) => {
                // What stands there may be ours already.
                let fixed = streams.fixed.as_ref();
                if fixed.is_none_or(|fixed| fixed.authorization.is_none()) {
                    parts.headers.remove(name);
                }
            }
            Err(refusal) => prepared = Err(refusal),
        }
    }
    session.begin_flow(&mut flow);
    let hooks = &session.worker.shared.hooks;
    if !hooks.is_empty()
        && let Err(error) = fill_head(&parts, &mut flow)
    {
        debug!(%error, "a request head can't be shown to interceptors");
    }
    let run = Run::begin(hooks, &flow, counters);
    let mut guard = FlowGuard::new(&mut flow, run, counters);
    let head_only = parts.method == http::Method::HEAD;

    let early = match prepared {
        Err((status, error)) => Some((
            Box::new(auth::refusal(status, &error)),
            Outcome::failed(error),
        )),
        Ok(()) => refused(config, streams.fixed.as_ref(), &guard.flow.request).map(|target| {
            count(&counters.blocked_total);
            let error = h1::blocked(&target);
            (Box::new(reply::for_error(&error)), Outcome::failed(error))
        }),
    };
    if let Some((reply, outcome)) = early {
        answer(&mut respond, &mut guard, &reply, head_only);
        guard.end(&outcome);
        return;
    }

    let mut source = if body.is_end_stream() {
        Source::Empty
    } else {
        Source::H2(body)
    };
    let exchange = Exchange {
        streams: &streams,
        config,
        counters,
    };
    let mut down = Down::H2 {
        respond: &mut respond,
        stream: None,
        head_only,
    };
    let end = exchange
        .run(&mut guard, Some(parts), &mut source, &mut down)
        .await;
    let sent = match down {
        Down::H2 { stream, .. } => stream,
        Down::H1 { .. } => None,
    };
    match end {
        Ended::Complete => guard.end(&Outcome::COMPLETED),
        Ended::Answer(reply, outcome) => {
            answer(&mut respond, &mut guard, &reply, head_only);
            guard.end(&outcome);
        }
        Ended::Cut(reason, outcome) => {
            match sent {
                Some(mut stream) => stream.send_reset(reason),
                None => respond.send_reset(reason),
            }
            guard.end(&outcome);
        }
    }
}

/// Sends a reply of our own.
pub(super) fn answer(
    respond: &mut SendResponse<Bytes>,
    guard: &mut FlowGuard<'_>,
    reply: &Reply,
    head_only: bool,
) {
    h1::put_reply(guard.flow, reply);
    let status = reply::valid_status(reply.status);
    let mut response = http::Response::new(());
    if let Ok(status) = http::StatusCode::from_u16(status) {
        *response.status_mut() = status;
    }
    let bodiless = status == 204 || status == 304;
    to_map(&reply.headers, response.headers_mut());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    if !bodiless {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(reply.body.len()));
    }
    let empty = bodiless || head_only || reply.body.is_empty();
    // Fails when the client has reset the stream: then nobody waits for it.
    if let Ok(mut stream) = respond.send_response(response, empty)
        && !empty
    {
        let _ = stream.send_data(reply.body.clone(), true);
    }
}

/// The destination that a request may not have, by what it was connected to or by its authority.
pub(super) fn refused(
    config: &Config,
    fixed: Option<&Fixed>,
    request: &tollgate_flow::Request,
) -> Option<Target> {
    let is_blocked = |target: &Target| config.policy.decide(&[target]) == Action::Block;
    if fixed.is_none() {
        return is_blocked(&request.target).then(|| request.target.clone());
    }
    if config.policy.block.is_empty() {
        return None;
    }
    let authority = std::str::from_utf8(request.authority.as_deref()?).ok()?;
    Target::parse(authority, Some(request.target.port)).filter(is_blocked)
}

/// Finds out where a request goes.
pub(super) fn prepare(
    parts: &mut http::request::Parts,
    fixed: Option<&Fixed>,
    lines: usize,
    flow: &mut Flow,
) -> Result<(), (u16, FlowError)> {
    let bad = |status: u16, message: &str| {
        (
            status,
            FlowError::new(Side::Client, ErrorClass::Protocol, message.to_owned()),
        )
    };
    flow.request.version = HttpVersion::Http2;
    let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
    let host = parts
        .headers
        .get(header::HOST)
        .map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned());
    if parts.headers.get_all(header::HOST).iter().count() > 1 {
        return Err(bad(400, "more than one Host"));
    }
    if parts.headers.len() > lines {
        return Err(bad(431, "the request has too many header fields"));
    }
    if let (Some(authority), Some(host)) = (&authority, &host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(bad(400, ":authority and Host differ"));
    }
    if authority.is_none()
        && let Some(host) = &host
    {
        // RFC 9113 section 8.3.1 lets a Host stand in; from here on the authority is what counts.
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Authority::try_from(host.as_str()).ok();
        uri.scheme.get_or_insert(UriScheme::HTTPS);
        uri.path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
        parts.uri = Uri::from_parts(uri).map_err(|_| bad(400, "Host is not a host"))?;
    }
    flow.request.authority = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes().to_vec());
    match fixed {
        Some(fixed) => {
            flow.request.target = fixed.target.clone();
            flow.request.scheme = fixed.scheme;
            if let Some(host) = &fixed.host_header {
                let mut uri = std::mem::take(&mut parts.uri).into_parts();
                uri.authority = Authority::try_from(&**host).ok();
                uri.scheme.get_or_insert(UriScheme::HTTPS);
                uri.path_and_query
                    .get_or_insert(PathAndQuery::from_static("/"));
                parts.uri = Uri::from_parts(uri).map_err(|_| bad(400, "the URL is not one"))?;
                parts.headers.remove(header::HOST);
                flow.request.authority = Some(host.as_bytes().to_vec());
            }
            if let Some(authorization) = &fixed.authorization
                && let Ok(value) = HeaderValue::from_str(authorization)
            {
                parts.headers.insert(header::AUTHORIZATION, value);
            }
        }
        None => {
            let scheme = parts.uri.scheme_str().unwrap_or("http");
            if scheme != "http" {
                return Err(bad(
                    400,
                    "only http:// URLs are served on this port; use CONNECT",
                ));
            }
            let target = authority
                .as_deref()
                .or(host.as_deref())
                .and_then(|a| Target::parse(a, Some(80)))
                .ok_or_else(|| bad(400, "the request names no host"))?;
            flow.request.target = target;
            flow.request.scheme = Scheme::Http;
        }
    }
    if parts.method == http::Method::CONNECT {
        return Err(bad(501, "CONNECT inside HTTP/2 is not served"));
    }
    // Nobody but us gives receipts.
    parts.headers.remove(sandwich::FIELD);
    parts.headers.remove(header::PROXY_AUTHORIZATION);
    parts.headers.remove("proxy-connection");
    Ok(())
}

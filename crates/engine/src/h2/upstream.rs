//! HTTP/2 towards origins.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use tollgate_flow::{ErrorClass, FlowError, Side};
use tracing::debug;

use crate::pool::UpConn;
use crate::session::{Session, UpstreamError};
use crate::streams::connections::{Carrier, Shared};
use crate::streams::exchange::{Outgoing, StreamFailed, UpHead};
use crate::timer::{Elapsed, Timer};

use super::io::{Io, Outlet};
use super::{CONNECTION_WINDOW, MAX_FRAME, SEND_BUFFER, STREAM_WINDOW};

/// Begins HTTP/2 on a connection whose origin chose it.
pub(crate) async fn start(session: &Session, up: UpConn) -> Result<Shared, UpstreamError> {
    let (shared, _) = begin(session, up).await?;
    Ok(shared.list(session))
}

/// Begins HTTP/2 with prior knowledge. `None`: the origin answers in another protocol, or closes.
pub(crate) async fn start_h2c(
    session: &Session,
    up: UpConn,
) -> Result<Option<Shared>, UpstreamError> {
    let limit = session.live.config.timeouts.handshake;
    let (shared, outlet) = begin(session, up).await?;
    let answered = Timer::default().within(limit, outlet.first_bytes()).await;
    if let Ok(true) = answered {
        return Ok(Some(shared.list(session)));
    }
    shared.state.close();
    Ok(None)
}

async fn begin(session: &Session, up: UpConn) -> Result<(Shared, Outlet), UpstreamError> {
    let config = &session.live.config;
    let failed = |e: h2::Error| {
        FlowError::new(
            Side::Upstream,
            ErrorClass::Protocol,
            format!("HTTP/2 can't be begun with {}: {e}", up.route.to.target),
        )
    };
    let (io, outlet) = Io::new(up.conn, &session.worker, None);
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        // The others wait for the origin's SETTINGS, which are on their way: a stream that it refuses because they were
        // not there yet can't always be sent again.
        .initial_max_send_streams(1)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(config.limits.head_bytes.try_into().unwrap_or(u32::MAX))
        .enable_push(false)
        .handshake(io)
        .await;
    let (send, connection) = handshake.map_err(failed)?;
    let shared = Shared::new(Carrier::H2(send), up.info, up.route);
    let state = Arc::clone(&shared.state);
    let slot = up.slot;
    let driven = outlet.clone();
    tokio::spawn(async move {
        let _slot = slot;
        let mut connection = pin!(connection);
        let ended = poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            driven.end_turn(cx);
            polled
        })
        .await;
        if let Err(error) = ended {
            debug!(%error, "an upstream HTTP/2 connection ended");
        }
        state.close();
    });
    Ok((shared, outlet))
}

/// Opens a stream for a request and sends its head.
pub(crate) async fn open(
    send: SendRequest<Bytes>,
    parts: http::request::Parts,
    empty: bool,
    limit: Duration,
) -> Result<(Outgoing, UpHead), StreamFailed> {
    let mut send = match stream_allowed(send, limit).await {
        Ok(Ok(send)) => send,
        Ok(Err(error)) => {
            return Err(StreamFailed {
                closes: true,
                ..failed(&error, "sending the request")
            });
        }
        Err(_) => {
            return Err(StreamFailed::new(
                ErrorClass::Timeout,
                "the origin allows no further streams".to_owned(),
            ));
        }
    };
    match send.send_request(Request::from_parts(parts, ()), empty) {
        Ok((response, body)) => Ok((Outgoing::H2(body), UpHead::H2(response))),
        Err(error) => Err(StreamFailed {
            // An error in what we send is no fault of the connection.
            closes: error.is_io() || error.is_go_away() || error.is_library(),
            ..failed(&error, "sending the request")
        }),
    }
}

/// What an error of h2 means for the exchange.
pub(crate) fn failed(error: &h2::Error, doing: &str) -> StreamFailed {
    let class = if error.is_io() || error.is_reset() || error.is_go_away() {
        ErrorClass::Reset
    } else {
        ErrorClass::Protocol
    };
    StreamFailed {
        retry: error.is_go_away()
            || error.reason() == Some(Reason::REFUSED_STREAM)
            || error.is_io(),
        // An answer to GOAWAY leaves out only streams that the origin has not looked at.
        unprocessed: error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM),
        reset: error.reason().filter(|_| error.is_reset()),
        ..StreamFailed::new(
            class,
            format!("the HTTP/2 connection to the origin failed while {doing}: {error}"),
        )
    }
}

/// Waits until the origin allows another stream.
async fn stream_allowed(
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

//! HTTP/2 on either side, on the `h2` crate. What a stream carries is in [`crate::streams`].

mod io;
mod received;
mod upstream;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::task::JoinSet;
use tollgate_flow::{ErrorClass, HttpVersion, Side};
use tracing::debug;

use crate::config::PoolMode;
use crate::h1::Fixed;
use crate::io::Conn;
use crate::session::{Session, Up};
use crate::streams::body::Source;
use crate::streams::exchange::Down;
use crate::streams::{self, Streams};

use io::Io;

pub(crate) use received::{Received, send};
pub(crate) use upstream::{failed, open, start, start_h2c};

/// Flow-control windows that we give: what may be in flight and not yet passed on.
pub(super) const STREAM_WINDOW: u32 = 1024 * 1024;

pub(super) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// What h2 may hold of a stream that its peer doesn't take yet.
pub(super) const SEND_BUFFER: usize = 256 * 1024;

pub(super) const MAX_FRAME: u32 = 64 * 1024;

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
            // RFC 8441: an origin that doesn't know it is asked over HTTP/1.
            .enable_connect_protocol()
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
        session.worker.shared_upstreams().remove_route(&route);
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
    let (parts, body) = request.into_parts();
    let head_only = parts.method == http::Method::HEAD;
    let source = if body.is_end_stream() {
        Source::Empty
    } else {
        Source::H2(body)
    };
    let down = Down::H2 {
        respond: &mut respond,
        stream: None,
        head_only,
    };
    streams::serve(&streams, HttpVersion::Http2, parts, source, down).await;
}

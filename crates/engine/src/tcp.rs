//! Streams of protocols that are not HTTP, recorded as flows.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tollgate_flow::{
    Direction, ErrorClass, Flow, FlowError, FlowKind, Interest, Outcome, Scheme, Side, Target,
    UpstreamInfo,
};

use crate::h1::dropped;
use crate::hooks::{BodyRun, PieceVerdict, Run, SharedFlow, Verdict};
use crate::io::{Conn, End, ReadHalf, WriteHalf};
use crate::session::{FlowGuard, Session};
use crate::timer::Timer;
use crate::tunnel::{self, TunnelEnd};

/// Relays a stream as a flow until both sides are done.
pub(crate) async fn relay(
    session: &mut Session,
    client: &mut Conn,
    upstream: &mut Conn,
    target: Target,
    info: Option<Arc<UpstreamInfo>>,
) {
    let worker = Arc::clone(&session.worker);
    let counters = &worker.counters;
    let mut flow = Box::new(Flow::new(Arc::clone(&session.info)));
    flow.kind = FlowKind::Tcp;
    flow.request.target = target;
    flow.request.scheme = match &info {
        Some(info) if info.tls_version.is_some() => Scheme::Https,
        _ => Scheme::Http,
    };
    session.begin_flow(&mut flow);
    flow.upstream = info;
    flow.response = Some(Box::default());
    let run = Run::begin(&worker.shared.hooks, &flow, counters);
    let mut guard = FlowGuard::new(&mut flow, run, counters);
    let idle = session.live.config.timeouts.idle;
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let watched =
        guard.run.wants(Interest::REQUEST_DATA) || guard.run.wants(Interest::RESPONSE_DATA);
    let outcome = if watched {
        let FlowGuard { flow, run, .. } = &mut guard;
        let shared = SharedFlow::new(flow);
        let there = one_way(
            &mut client.rd,
            &mut upstream.wr,
            run.body(
                &shared,
                Direction::Request,
                &session.live.config.limits,
                counters,
            ),
            &sent,
        );
        let back = one_way(
            &mut upstream.rd,
            &mut client.wr,
            run.body(
                &shared,
                Direction::Response,
                &session.live.config.limits,
                counters,
            ),
            &received,
        );
        both(there, back, &mut session.timer, idle, || {
            sent.load(Ordering::Relaxed) + received.load(Ordering::Relaxed)
        })
        .await
    } else {
        let relayed =
            tunnel::relay_counting(client, upstream, &mut session.timer, idle, &sent, &received);
        outcome(relayed.await, idle)
    };
    guard.flow.request.body_size = sent.load(Ordering::Relaxed);
    if let Some(response) = &mut guard.flow.response {
        response.body_size = received.load(Ordering::Relaxed);
    }
    guard.end(&outcome);
}

fn outcome(end: TunnelEnd, idle: Duration) -> Outcome {
    match end {
        TunnelEnd::Done => Outcome::COMPLETED,
        TunnelEnd::Reset => Outcome::failed(FlowError::new(
            Side::Upstream,
            ErrorClass::Reset,
            "one side closed the connection in the middle",
        )),
        TunnelEnd::Idle => Outcome::failed(FlowError::new(
            Side::Upstream,
            ErrorClass::Timeout,
            format!("nothing passed for {idle:?}"),
        )),
    }
}

/// How one direction ends before its time.
enum Stopped {
    Reset,
    By(Verdict),
}

/// Relays one direction through the hooks: read, offer, write, and only then read again.
async fn one_way(
    rd: &mut ReadHalf,
    wr: &mut WriteHalf,
    mut hooks: BodyRun<'_, '_>,
    size: &AtomicU64,
) -> Result<(), Stopped> {
    let reset = |_| Stopped::Reset;
    loop {
        let n = rd.data().len();
        if n > 0 {
            size.fetch_add(n as u64, Ordering::Relaxed);
            let verdict = if hooks.watched {
                hooks.data(rd.data(), false).await
            } else {
                PieceVerdict::Pass
            };
            match verdict {
                PieceVerdict::Pass => wr.write_all(rd.data()).await.map_err(reset)?,
                PieceVerdict::Replace(bytes) => wr.write_all(&bytes).await.map_err(reset)?,
                PieceVerdict::End(verdict) => return Err(Stopped::By(verdict)),
            }
            rd.consume(n);
        }
        if rd.fill().await.map_err(reset)? > 0 {
            continue;
        }
        if hooks.watched {
            match hooks.data(&[], true).await {
                PieceVerdict::Pass => {}
                PieceVerdict::Replace(bytes) => wr.write_all(&bytes).await.map_err(reset)?,
                PieceVerdict::End(verdict) => return Err(Stopped::By(verdict)),
            }
        }
        let ended = match rd.end() {
            Some(End::Truncated) => wr.shutdown_truncated().await,
            _ => wr.shutdown().await,
        };
        return ended.map_err(reset);
    }
}

/// Runs both directions to their ends, or until one stops or nothing passes for `idle`.
async fn both(
    there: impl Future<Output = Result<(), Stopped>>,
    back: impl Future<Output = Result<(), Stopped>>,
    timer: &mut Timer,
    idle: Duration,
    progress: impl Fn() -> u64,
) -> Outcome {
    let (mut there, mut back) = (pin!(there), pin!(back));
    let (mut there_done, mut back_done) = (false, false);
    let mut seen = 0;
    timer.set(idle);
    let stopped = poll_fn(|cx| {
        if !there_done && let Poll::Ready(result) = there.as_mut().poll(cx) {
            match result {
                Ok(()) => there_done = true,
                Err(stopped) => return Poll::Ready(Err(stopped)),
            }
        }
        if !back_done && let Poll::Ready(result) = back.as_mut().poll(cx) {
            match result {
                Ok(()) => back_done = true,
                Err(stopped) => return Poll::Ready(Err(stopped)),
            }
        }
        if there_done && back_done {
            return Poll::Ready(Ok(TunnelEnd::Done));
        }
        while timer.poll(cx).is_ready() {
            let now = progress();
            if now == seen {
                return Poll::Ready(Ok(TunnelEnd::Idle));
            }
            seen = now;
            timer.set(idle);
        }
        Poll::Pending
    })
    .await;
    match stopped {
        Ok(end) => outcome(end, idle),
        Err(Stopped::Reset) => outcome(TunnelEnd::Reset, idle),
        // There is no reply in a protocol that is not HTTP.
        Err(Stopped::By(Verdict::Failed(error))) => Outcome::failed(error),
        Err(Stopped::By(Verdict::Respond(_) | Verdict::Continue)) => dropped(Verdict::Drop),
        Err(Stopped::By(verdict)) => dropped(verdict),
    }
}

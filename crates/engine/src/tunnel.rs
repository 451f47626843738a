//! Relays bytes without looking at them, each direction at its own pace.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::io::{Conn, End, ReadHalf, WriteHalf};
use crate::timer::Timer;

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TunnelEnd {
    /// Both directions ended.
    Done,
    /// A socket failed.
    Reset,
    /// Nothing passed for too long.
    Idle,
}

/// Relays until both directions have ended, one fails, or nothing passes for `idle`.
/// A direction that ends is ended on the other side; the other direction goes on.
pub(crate) async fn relay(
    a: &mut Conn,
    b: &mut Conn,
    timer: &mut Timer,
    idle: Duration,
) -> TunnelEnd {
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    relay_counting(a, b, timer, idle, &sent, &received).await
}

/// The same; `sent` counts the bytes from `a` to `b`, `received` those from `b` to `a`.
pub(crate) async fn relay_counting(
    a: &mut Conn,
    b: &mut Conn,
    timer: &mut Timer,
    idle: Duration,
    sent: &AtomicU64,
    received: &AtomicU64,
) -> TunnelEnd {
    let mut there = pin!(one_way(&mut a.rd, &mut b.wr, sent));
    let mut back = pin!(one_way(&mut b.rd, &mut a.wr, received));
    let (mut there_done, mut back_done) = (false, false);
    let mut seen = 0;
    timer.set(idle);
    poll_fn(|cx| {
        if !there_done && let Poll::Ready(result) = there.as_mut().poll(cx) {
            if result.is_err() {
                return Poll::Ready(TunnelEnd::Reset);
            }
            there_done = true;
        }
        if !back_done && let Poll::Ready(result) = back.as_mut().poll(cx) {
            if result.is_err() {
                return Poll::Ready(TunnelEnd::Reset);
            }
            back_done = true;
        }
        if there_done && back_done {
            return Poll::Ready(TunnelEnd::Done);
        }
        while timer.poll(cx).is_ready() {
            let now = sent.load(Ordering::Relaxed) + received.load(Ordering::Relaxed);
            if now == seen {
                return Poll::Ready(TunnelEnd::Idle);
            }
            seen = now;
            timer.set(idle);
        }
        Poll::Pending
    })
    .await
}

async fn one_way(rd: &mut ReadHalf, wr: &mut WriteHalf, size: &AtomicU64) -> std::io::Result<()> {
    loop {
        let n = rd.data().len();
        if n > 0 {
            wr.write_all(rd.data()).await?;
            rd.consume(n);
            size.fetch_add(n as u64, Ordering::Relaxed);
        }
        if rd.fill().await? == 0 {
            return match rd.end() {
                Some(End::Truncated) => wr.shutdown_truncated().await,
                _ => wr.shutdown().await,
            };
        }
    }
}

//! One timer for a connection, set anew at every wait without touching the runtime's wheel.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// The limit of a stage passed.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// A deadline that moves. The runtime's timer underneath fires at the earliest deadline it was
/// ever given and is then set to the current one, so that moving the deadline costs nothing.
#[derive(Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Timer {
    /// Starts to count; zero means no limit.
    pub fn set(&mut self, limit: Duration) {
        self.deadline = (!limit.is_zero()).then(|| Instant::now() + limit);
        if let (Some(sleep), Some(deadline)) = (&mut self.sleep, self.deadline)
            && sleep.deadline() > deadline
        {
            sleep.as_mut().reset(deadline);
        }
    }

    /// Ready when the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                self.deadline = None;
                self.sleep = None;
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Runs a future within a limit.
    pub async fn within<T>(
        &mut self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, Elapsed> {
        self.set(limit);
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            self.poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moved_deadline_holds() {
        let mut timer = Timer::default();
        let start = Instant::now();
        for _ in 0..5 {
            let wait = tokio::time::sleep(Duration::from_secs(3));
            assert!(timer.within(Duration::from_secs(5), wait).await.is_ok());
        }
        assert_eq!(start.elapsed().as_secs(), 15);
        let never = std::future::pending::<()>();
        assert!(timer.within(Duration::from_secs(2), never).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 17);
        let never = std::future::pending::<()>();
        assert!(timer.within(Duration::from_secs(20), never).await.is_err());
        assert_eq!(start.elapsed().as_secs(), 37);
    }
}

//! Following a store: first what is there, then what comes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::StoreError;
use crate::flows::{Flows, POLL, Query};
use crate::segment::lock;
use crate::summary::Summary;

/// Rows that are read at once.
const PAGE: usize = 256;

/// Follows the flows of a store by their numbers.
///
/// It keeps nobody waiting and holds one page: who is slow reads later what is still there, and learns of the rest by a
/// [`Followed::Gap`].
#[derive(Debug)]
pub struct Follow<'a> {
    flows: &'a Flows,
    /// The last number that was handed out.
    after: u64,
    page: VecDeque<Summary>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// A flow.
    Flow(Box<Summary>),
    /// Flows that were dropped, or are gone: deleted, or too old, or their room was needed.
    Gap {
        /// How many.
        missing: u64,
    },
}

impl<'a> Follow<'a> {
    pub(crate) fn new(flows: &'a Flows, after: u64) -> Self {
        Self {
            flows,
            after,
            page: VecDeque::new(),
        }
    }

    /// The last number that was handed out: where another one can go on.
    pub fn position(&self) -> u64 {
        self.after
    }

    /// The next flow or gap; waits for it, at most so long. `None` when nothing came in that time.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn next(&mut self, wait: Duration) -> Result<Option<Followed>, StoreError> {
        let deadline = Instant::now() + wait;
        loop {
            if self.page.is_empty() {
                let query = Query {
                    after: Some(self.after),
                    limit: Some(PAGE),
                    ..Query::all()
                };
                self.page = self.flows.list(&query)?.into();
            }
            if let Some(next) = self.page.front() {
                let missing = next.seq.saturating_sub(self.after + 1);
                if missing > 0 {
                    self.after = next.seq - 1;
                    return Ok(Some(Followed::Gap { missing }));
                }
                self.after = next.seq;
                return Ok(self
                    .page
                    .pop_front()
                    .map(|row| Followed::Flow(Box::new(row))));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left);
        }
    }

    fn wait(&self, left: Duration) {
        let Some(news) = self.flows.news() else {
            std::thread::sleep(left.min(POLL));
            return;
        };
        let last = lock(&news.last);
        if *last <= self.after {
            // What wakes for nothing looks again.
            let _ = news.changed.wait_timeout(last, left);
        } else {
            // Flows that are already gone again: there is nothing to be handed out yet.
            drop(last);
            std::thread::sleep(left.min(POLL));
        }
    }
}

//! Flows that wait for a person.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tollgate_flow::record::Record;
use tollgate_flow::{Direction, Flow, FlowId, Reply, Step};
use tracing::warn;

use crate::rule::CUT;

/// The most flows that wait at a time; the next ones get their deadline's answer at once.
pub const MAX_HELD: usize = 10_000;

/// What a person decides about a held flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on.
    Resume,
    /// It is refused with 403; what was held never arrives.
    Block,
    /// The same with this status, 200 to 599; 444 cuts the connection.
    BlockWith(u16),
}

/// A flow that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The flow.
    pub flow: FlowId,
    /// What waits of it.
    pub direction: Direction,
    /// The request's method.
    pub method: String,
    /// The request's URL.
    pub url: String,
    /// The rule that holds it.
    pub rule: String,
    /// Since when.
    pub since: SystemTime,
    /// Until when, at most.
    pub until: SystemTime,
}

/// The flows that wait, for whoever decides about them.
#[derive(Clone, Debug, Default)]
pub struct Holds(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    table: Mutex<Vec<Entry>>,
    /// Counts what came and went.
    changes: watch::Sender<u64>,
    not_held: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    held: Held,
    record: Arc<Record>,
    answer: oneshot::Sender<Decision>,
}

impl Holds {
    /// All that wait, the oldest first.
    pub fn list(&self) -> Vec<Held> {
        self.lock().iter().map(|entry| entry.held.clone()).collect()
    }

    /// What a flow that waits is, as far as it is known: bodies are there where somebody had asked for them whole.
    pub fn record(&self, flow: FlowId) -> Option<Arc<Record>> {
        let table = self.lock();
        let entry = table.iter().find(|entry| entry.held.flow == flow)?;
        Some(Arc::clone(&entry.record))
    }

    /// Sees a new number whenever a flow begins to wait, or no longer waits.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// How many flows should have waited and did not, because [`MAX_HELD`] waited already: they got their deadline's
    /// answer at once.
    pub fn not_held(&self) -> u64 {
        self.0.not_held.load(Ordering::Relaxed)
    }

    /// Decides about a flow; false if it doesn't wait (any more).
    pub fn decide(&self, flow: FlowId, decision: Decision) -> bool {
        let mut held = self.lock();
        let Some(at) = held.iter().position(|entry| entry.held.flow == flow) else {
            return false;
        };
        let entry = held.remove(at);
        drop(held);
        self.changed();
        entry.answer.send(decision).is_ok()
    }

    /// Decides about all that wait; answers how many did.
    pub fn decide_all(&self, decision: Decision) -> usize {
        let held = std::mem::take(&mut *self.lock());
        self.changed();
        held.into_iter()
            .filter_map(|entry| entry.answer.send(decision).ok())
            .count()
    }

    fn changed(&self) {
        self.0.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The step that makes a flow wait; then `resume` says how it goes on.
    pub(crate) fn hold(
        &self,
        flow: &Flow,
        direction: Direction,
        rule: String,
        deadline: Duration,
        then_continue: bool,
        resume: impl Fn(&mut Flow) -> Step + Send + Sync + Clone + 'static,
    ) -> Step {
        let answer = move |decision| match decision {
            Decision::Resume => {
                let resume = resume.clone();
                Step::edit(move |flow| resume(flow))
            }
            Decision::Block => refused(403),
            Decision::BlockWith(status) => refused(status),
        };
        let at_deadline = if then_continue {
            Decision::Resume
        } else {
            Decision::Block
        };
        // Outside of the lock: it copies heads.
        let record = Arc::new(Record::from_flow(flow, None));
        let mut held = self.lock();
        if held.len() >= MAX_HELD {
            drop(held);
            if self.0.not_held.fetch_add(1, Ordering::Relaxed) == 0 {
                warn!("{MAX_HELD} flows are held; the next get their deadline's answer at once");
            }
            return answer(at_deadline);
        }
        let (sender, receiver) = oneshot::channel();
        let since = SystemTime::now();
        held.push(Entry {
            held: Held {
                flow: flow.id,
                direction,
                method: String::from_utf8_lossy(flow.request.method()).into_owned(),
                url: flow.url(),
                rule,
                since,
                until: since + deadline,
            },
            record: Arc::clone(&record),
            answer: sender,
        });
        drop(held);
        self.changed();
        let waiting = Waiting {
            holds: self.clone(),
            record,
        };
        let on_time = answer.clone();
        let future = async move {
            let _waiting = waiting;
            // Dropped unanswered only with the table itself.
            on_time(receiver.await.unwrap_or(Decision::Block))
        };
        Step::hold(future, deadline, answer(at_deadline))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a wait off the table however it ends: decided, at the deadline, or because the client went. A flow may wait in
/// both directions at once, so its record says which wait it is.
struct Waiting {
    holds: Holds,
    record: Arc<Record>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut table = self.holds.lock();
        let before = table.len();
        table.retain(|entry| !Arc::ptr_eq(&entry.record, &self.record));
        let is_gone = table.len() < before;
        drop(table);
        if is_gone {
            self.holds.changed();
        }
    }
}

fn refused(status: u16) -> Step {
    if status == CUT {
        return Step::Drop;
    }
    Step::respond(
        Reply::new(status).text("Tollgate: a person refused this, or nobody decided in time\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::flow;

    fn hold(holds: &Holds, flow: &Flow, then_continue: bool) -> Step {
        holds.hold(
            flow,
            Direction::Request,
            "rule".into(),
            Duration::from_secs(5),
            then_continue,
            |_| Step::Continue,
        )
    }

    #[tokio::test]
    async fn a_person_decides() {
        let holds = Holds::default();
        let mut flow = flow("GET", "http://a.example/x");
        flow.id = FlowId(7);
        let decisions = [
            (Decision::Resume, None),
            (Decision::Block, Some(403)),
            (Decision::BlockWith(451), Some(451)),
        ];
        let mut changes = holds.changes();
        for (decision, status) in decisions {
            let Step::Hold(step) = hold(&holds, &flow, true) else {
                panic!("not held")
            };
            assert_eq!(holds.list()[0].url, "http://a.example/x");
            assert!(changes.has_changed().unwrap());
            changes.mark_unchanged();
            let record = holds.record(FlowId(7)).unwrap();
            assert_eq!(
                record.as_http().unwrap().request.url(),
                "http://a.example/x"
            );
            assert!(holds.decide(FlowId(7), decision));
            assert!(!holds.decide(FlowId(7), decision));
            match step.future.await {
                Step::Edit(edit) if status.is_none() => {
                    assert!(matches!((edit.0)(&mut flow), Step::Continue));
                }
                Step::Respond(reply) => assert_eq!(Some(reply.status), status),
                other => panic!("{other:?}"),
            }
        }
        let Step::Hold(step) = hold(&holds, &flow, true) else {
            panic!("not held")
        };
        assert!(holds.decide(FlowId(7), Decision::BlockWith(CUT)));
        assert!(matches!(step.future.await, Step::Drop));
        // A client that leaves takes its flow off the table.
        let step = hold(&holds, &flow, true);
        assert_eq!(holds.list().len(), 1);
        drop(step);
        assert!(holds.list().is_empty());
    }

    #[tokio::test]
    async fn of_a_flow_that_waits_twice_each_wait_ends_by_itself() {
        let holds = Holds::default();
        let flow = flow("GET", "http://a.example/socket");
        let (Step::Hold(first), Step::Hold(second)) =
            (hold(&holds, &flow, true), hold(&holds, &flow, true))
        else {
            panic!("not held")
        };
        drop(first);
        assert_eq!(holds.list().len(), 1);
        assert!(holds.decide(flow.id, Decision::Resume));
        assert!(matches!(second.future.await, Step::Edit(_)));
    }

    #[test]
    fn beyond_the_bound_a_flow_gets_its_deadlines_answer_at_once_and_is_counted() {
        let holds = Holds::default();
        let mut flow = flow("GET", "http://a.example/x");
        let mut steps = Vec::new();
        for n in 0..MAX_HELD {
            flow.id = FlowId(n as u128);
            steps.push(hold(&holds, &flow, true));
        }
        assert_eq!((holds.list().len(), holds.not_held()), (MAX_HELD, 0));
        flow.id = FlowId(u128::MAX);
        assert!(matches!(hold(&holds, &flow, true), Step::Edit(_)));
        assert!(matches!(hold(&holds, &flow, false), Step::Respond(_)));
        assert_eq!((holds.list().len(), holds.not_held()), (MAX_HELD, 2));
        assert_eq!(holds.decide_all(Decision::Resume), MAX_HELD);
    }
}

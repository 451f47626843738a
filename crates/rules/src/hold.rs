//! Flows that wait for a person.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tollgate_flow::{Direction, Flow, FlowId, Reply, Step};

/// The most flows that wait at a time; the next ones get their deadline's answer at once.
pub const MAX_HELD: usize = 10_000;

/// What a person decides about a held flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on.
    Resume,
    /// It is refused with 403; what was held never arrives.
    Block,
}

/// A flow that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The flow.
    pub flow: FlowId,
    /// What waits of it.
    pub direction: Direction,
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
pub struct Holds(Arc<Mutex<Table>>);

type Table = Vec<(Held, oneshot::Sender<Decision>)>;

impl Holds {
    /// All that wait, the oldest first.
    pub fn list(&self) -> Vec<Held> {
        self.lock().iter().map(|(held, _)| held.clone()).collect()
    }

    /// Decides about a flow; false if it doesn't wait (any more).
    pub fn decide(&self, flow: FlowId, decision: Decision) -> bool {
        let mut held = self.lock();
        let Some(at) = held.iter().position(|(held, _)| held.flow == flow) else {
            return false;
        };
        let (_, answer) = held.remove(at);
        drop(held);
        answer.send(decision).is_ok()
    }

    /// Decides about all that wait; answers how many did.
    pub fn decide_all(&self, decision: Decision) -> usize {
        let held = std::mem::take(&mut *self.lock());
        held.into_iter()
            .filter_map(|(_, answer)| answer.send(decision).ok())
            .count()
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
            Decision::Block => refused(),
        };
        let at_deadline = if then_continue {
            Decision::Resume
        } else {
            Decision::Block
        };
        let mut held = self.lock();
        if held.len() >= MAX_HELD {
            return answer(at_deadline);
        }
        let (sender, receiver) = oneshot::channel();
        let since = SystemTime::now();
        held.push((
            Held {
                flow: flow.id,
                direction,
                url: flow.url(),
                rule,
                since,
                until: since + deadline,
            },
            sender,
        ));
        drop(held);
        let waiting = Waiting {
            holds: self.clone(),
            flow: flow.id,
        };
        let on_time = answer.clone();
        let future = async move {
            let _waiting = waiting;
            // Dropped unanswered only with the table itself.
            on_time(receiver.await.unwrap_or(Decision::Block))
        };
        Step::hold(future, deadline, answer(at_deadline))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flow off the table however its wait ends: decided, at the deadline, or because the client went.
struct Waiting {
    holds: Holds,
    flow: FlowId,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.holds.lock().retain(|(held, _)| held.flow != self.flow);
    }
}

fn refused() -> Step {
    Step::respond(
        Reply::new(403).text("Tollgate: a person refused this, or nobody decided in time\n"),
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
        for (decision, continues) in [(Decision::Resume, true), (Decision::Block, false)] {
            let Step::Hold(step) = hold(&holds, &flow, true) else {
                panic!("not held")
            };
            assert_eq!(holds.list()[0].url, "http://a.example/x");
            assert!(holds.decide(FlowId(7), decision));
            assert!(!holds.decide(FlowId(7), decision));
            match step.future.await {
                Step::Edit(edit) if continues => {
                    assert!(matches!((edit.0)(&mut flow), Step::Continue));
                }
                Step::Respond(reply) if !continues => assert_eq!(reply.status, 403),
                other => panic!("{other:?}"),
            }
        }
        // A client that leaves takes its flow off the table.
        let step = hold(&holds, &flow, true);
        assert_eq!(holds.list().len(), 1);
        drop(step);
        assert!(holds.list().is_empty());
    }
}

//! Asking a person about a flow: the seam between who has a question and who keeps the table of those that wait.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::Flow;
use crate::interceptor::Direction;
use crate::step::Step;

/// What is asked about a flow.
#[derive(Clone, Debug)]
pub struct Question {
    /// What waits of it.
    pub direction: Direction,
    /// The rule that asks.
    pub rule: String,
    /// What is to be decided about, in words: `the request`, `a call of the tool bash`. No secrets.
    pub what: String,
    /// The longest wait.
    pub deadline: Duration,
    /// Whether it goes on when nobody has decided by then.
    pub then_resume: bool,
}

/// What follows from an answer: whether it goes on. Called for the deadline, and for what a person says.
pub type Answer = Arc<dyn Fn(bool) -> Step + Send + Sync>;

/// Somebody who can be asked about a flow.
pub trait AskPerson: Send + Sync + 'static {
    /// The step that makes a flow wait for a person.
    fn ask(&self, flow: &Flow, question: Question, answer: Answer) -> Step;
}

/// Nobody is there: the deadline passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl AskPerson for Nobody {
    fn ask(&self, _: &Flow, question: Question, answer: Answer) -> Step {
        Step::hold(
            std::future::pending(),
            question.deadline,
            answer(question.then_resume),
        )
    }
}

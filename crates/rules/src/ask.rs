//! The table of holds as somebody else's way to ask a person.

use tollgate_flow::hold::{Answer, AskPerson, Question};
use tollgate_flow::{Flow, Step};

use crate::hold::Holds;

impl AskPerson for Holds {
    fn ask(&self, flow: &Flow, question: Question, answer: Answer) -> Step {
        let rule = format!("{}: {}", question.rule, question.what);
        let held = self.hold(
            flow,
            question.direction,
            rule,
            question.deadline,
            question.then_resume,
            |_| Step::Continue,
        );
        // What is held goes on by an edit; whatever else comes refuses.
        let resumed = |step: &Step| matches!(step, Step::Edit(_));
        match held {
            Step::Hold(held) => {
                let at_deadline = answer(resumed(&held.at_deadline));
                let future = async move { answer(resumed(&held.future.await)) };
                Step::hold(future, held.deadline, at_deadline)
            }
            at_once => answer(resumed(&at_once)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tollgate_flow::{Direction, FlowId};

    use super::*;
    use crate::hold::Decision;
    use crate::tests::flow;

    #[tokio::test]
    async fn whoever_asks_hears_what_a_person_says() {
        let holds = Holds::default();
        let mut flow = flow("GET", "http://a.example/x");
        flow.id = FlowId(7);
        for (decision, goes_on) in [(Decision::Resume, true), (Decision::Block, false)] {
            let question = Question {
                direction: Direction::Response,
                rule: "no pushes".to_owned(),
                what: "a call of the tool bash".to_owned(),
                deadline: Duration::from_secs(5),
                then_resume: false,
            };
            let answer: Answer = Arc::new(|resume| match resume {
                true => Step::Continue,
                false => Step::Drop,
            });
            let Step::Hold(step) = holds.ask(&flow, question, answer) else {
                panic!("not held")
            };
            assert!(matches!(*step.at_deadline, Step::Drop));
            assert_eq!(holds.list()[0].rule, "no pushes: a call of the tool bash");
            assert!(holds.decide(FlowId(7), decision));
            match step.future.await {
                Step::Continue if goes_on => {}
                Step::Drop if !goes_on => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

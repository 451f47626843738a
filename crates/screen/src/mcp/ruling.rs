//! What the policy says of what was found in a message, and how that is told.

use super::Session;
use crate::interceptor::{Enforcement, Place, Verdict};
use crate::llm::json::{Tape, Value};
use crate::policy::{Action, CallFacts, DRIFT, Decision, Subject};
use crate::redact::{Replaced, Shape, cant_be_cut_out};
use crate::scan::{Category, Confidence, Finding, Severity};

/// What a message is, beside what was found in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct About<'a> {
    /// The call that it is.
    pub call: Option<&'a CallFacts>,
    /// Its method, or that of the request that it answers.
    pub method: Option<&'a str>,
    /// The tool that it is the answer or the description of.
    pub tool: Option<&'a str>,
    /// It asks or tells something by itself, whatever was found in it.
    pub as_such: bool,
}

/// What follows from what was found.
#[derive(Clone, Debug)]
pub(super) struct Ruling {
    pub place: Place,
    /// Each finding, and what is decided about it.
    pub findings: Vec<(Finding, Decision)>,
    pub decision: Decision,
    /// The finding that counts.
    counts: Option<Finding>,
}

/// What is to be done.
pub(super) enum Act {
    /// Nothing; it was told.
    Pass,
    /// It is refused, and that was told.
    Refuse(String),
    /// What was found is to be taken out, and then told.
    Redact(Box<Ruling>),
}

impl Ruling {
    /// Why, in one line.
    pub fn reason(&self) -> String {
        self.decision.reason(&self.place, self.counts.as_ref())
    }

    /// Whether it refuses, where findings have consequences.
    pub fn refuses(&self) -> bool {
        // Nobody can be asked here.
        matches!(self.decision.action, Action::Block | Action::Hold(_))
    }

    /// The findings that are told, the worst first: not what a rule allows.
    fn told(&self) -> Vec<Finding> {
        let mut told: Vec<&(Finding, Decision)> = self
            .findings
            .iter()
            .filter(|(_, own)| own.action != Action::Allow || own.rule.is_none())
            .collect();
        told.sort_by_key(|(finding, own)| {
            let strictness = own.action.strictness();
            std::cmp::Reverse((strictness, finding.severity, finding.confidence))
        });
        told.into_iter()
            .map(|(finding, _)| finding.clone())
            .collect()
    }
}

impl Session {
    /// What the policy says.
    pub(super) fn weigh(
        &self,
        place: Place,
        mut findings: Vec<Finding>,
        about: About<'_>,
    ) -> Ruling {
        findings.sort();
        findings.dedup();
        let judgement = self
            .policy
            .judge(&self.subject(&place, about).findings(&findings));
        let mut decision = match about.as_such {
            true => judgement.decision,
            false => Decision::default(),
        };
        if !about.as_such {
            for own in &judgement.findings {
                if own.action.strictness() > decision.action.strictness() {
                    decision = own.clone();
                }
            }
        }
        let counts = decision.finding.and_then(|at| findings.get(at)).cloned();
        Ruling {
            place,
            findings: findings.into_iter().zip(judgement.findings).collect(),
            decision,
            counts,
        }
    }

    fn subject<'a>(&self, place: &'a Place, about: About<'a>) -> Subject<'a> {
        let mut subject = Subject::new(place).tainted(self.tainted);
        if let Some(call) = about.call {
            subject = subject.call(call);
        }
        if let Some(method) = about.method {
            subject = subject.method(method);
        }
        if let Some(tool) = about.tool {
            subject = subject.tool(tool);
        }
        subject
    }

    /// What a rule says of a tool that is not what it was; `None` if none does.
    pub(super) fn weigh_drift(&self, name: &str) -> Option<Ruling> {
        let finding = Finding {
            range: (0..0).into(),
            rule: DRIFT.into(),
            category: Category::Injection,
            severity: Severity::High,
            confidence: Confidence::High,
            excerpt: String::new(),
            via: Vec::new(),
            score: None,
        };
        let about = About {
            method: Some("tools/list"),
            tool: Some(name),
            ..About::default()
        };
        let place = Place::ToolDescription(name.to_owned());
        let mut ruling = self.weigh(place, vec![finding], about);
        let (_, own) = ruling.findings.pop()?;
        own.rule.is_some().then_some(Ruling {
            decision: own,
            counts: None,
            ..ruling
        })
    }

    /// Tells what needs no more, and says what is to be done about the rest.
    pub(super) fn act(&mut self, ruling: Ruling) -> Act {
        let enforces = self.config.enforcement == Enforcement::Enforce;
        match ruling.decision.action {
            Action::Allow => Act::Pass,
            Action::Redact { .. } if enforces => Act::Redact(Box::new(ruling)),
            _ if enforces && ruling.refuses() => {
                self.tell_ruling(&ruling, true, &self.what(&ruling));
                Act::Refuse(ruling.reason())
            }
            _ => {
                self.tell_ruling(&ruling, false, &self.what(&ruling));
                Act::Pass
            }
        }
    }

    /// A message without what was found in it. It was told, whatever became of it.
    ///
    /// `remain` scans what is left.
    pub(super) fn take_out(
        &mut self,
        message: Value<'_>,
        ruling: &Ruling,
        about: About<'_>,
        remain: impl Fn(&Self, Value<'_>) -> Vec<Finding>,
    ) -> Result<Vec<u8>, String> {
        let done = self
            .redacted(message, &ruling.place, about)
            .and_then(|(text, replaced)| {
                let mut tape = Tape::default();
                let root = tape.read(&text).map_err(|error| error.to_string())?;
                let left = self.weigh(ruling.place.clone(), remain(self, root), about);
                let mut left = left.findings.iter();
                match left.find(|(_, own)| matches!(own.action, Action::Redact { .. })) {
                    Some((left, _)) => Err(cant_be_cut_out(left)),
                    None => Ok((text, replaced)),
                }
            });
        match done {
            Ok((text, replaced)) => {
                for one in replaced.iter() {
                    if self.redacts(&one.finding, &ruling.place, about) == Some(true) {
                        self.originals.remember(one);
                    }
                }
                self.tell_ruling(ruling, false, &self.what(ruling));
                Ok(text)
            }
            Err(why) => Err(self.not_redacted(ruling, &why)),
        }
    }

    fn redacted(
        &self,
        message: Value<'_>,
        place: &Place,
        about: About<'_>,
    ) -> Result<(Vec<u8>, Vec<Replaced>), String> {
        let wanted = |_: &[u8], finding: &Finding| self.redacts(finding, place, about).is_some();
        let mut edits = crate::gate::Splice::default();
        let mut replaced = Vec::new();
        let begins = message.span().start;
        for (name, member) in message.members() {
            if name.is("jsonrpc") || name.is("id") || name.is("method") {
                continue;
            }
            let one = self.redactor.redact(member.raw(), Shape::Json, &wanted);
            one.whole()?;
            if !one.replaced.is_empty() {
                let span = member.span();
                edits.replace(
                    span.start.saturating_sub(begins)..span.end.saturating_sub(begins),
                    one.text,
                );
                replaced.extend(one.replaced);
            }
        }
        Ok((edits.apply(message.raw()), replaced))
    }

    /// Whether a finding is taken out, and put back in the answer.
    fn redacts(&self, finding: &Finding, place: &Place, about: About<'_>) -> Option<bool> {
        let one = std::slice::from_ref(finding);
        let judgement = self.policy.judge(&self.subject(place, about).findings(one));
        match judgement.findings.first()?.action {
            Action::Redact { restore } => Some(restore),
            _ => None,
        }
    }

    /// Tells that what should have been taken out can't be; why it is refused.
    pub(super) fn not_redacted(&self, ruling: &Ruling, why: &str) -> String {
        let reason =
            |ruling: &Ruling| format!("{}, and it can't be redacted: {why}", ruling.reason());
        self.tell_ruling(ruling, true, &reason(&self.showable(ruling)));
        reason(ruling)
    }

    /// The scanner's rule that counts; where it is none, the whole reason.
    pub(super) fn what(&self, ruling: &Ruling) -> String {
        match &ruling.counts {
            Some(finding) => finding.rule.to_string(),
            None => self.showable(ruling).reason(),
        }
    }

    /// The same; where nothing follows, the rule of the worst that is told, if something is.
    pub(super) fn worst(&self, ruling: &Ruling) -> Option<String> {
        match ruling.decision.action {
            Action::Allow => ruling
                .told()
                .first()
                .map(|finding| finding.rule.to_string()),
            _ => Some(self.what(ruling)),
        }
    }

    fn showable(&self, ruling: &Ruling) -> Ruling {
        let mut shown = ruling.clone();
        self.make_showable(&mut shown.place);
        shown
    }

    /// Tells a ruling, and what became of the message.
    pub(super) fn tell_ruling(&self, ruling: &Ruling, refused: bool, reason: &str) {
        let decision = &ruling.decision;
        self.tell_verdict(
            ruling.place.clone(),
            Verdict {
                findings: ruling.told(),
                refused,
                reason: reason.to_owned(),
                action: decision.action,
                rule: decision.rule.clone(),
                allow: decision.allow.clone(),
                ..self.verdict()
            },
        );
    }
}

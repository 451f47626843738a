//! What the policy says of what was seen, and how that is told.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use tollgate_flow::hold::{Answer, Question};
use tollgate_flow::record::FINDING;
use tollgate_flow::{Direction, Flow, Step};

use super::{Enforcement, Place, Screen, Verdict, lock, refusal};
use crate::policy::{Action, CallFacts, Decision, Judgement, Policy, Subject};
use crate::redact::Originals;
use crate::scan::{Category, Finding};

/// Things that passed and were told, and aren't told again: at most so many, the oldest are forgotten.
const MAX_TOLD: usize = 4096;
/// Answers after which a conversation is known to be tainted.
const MAX_TAINTED: usize = 4096;
/// Warnings that one response carries.
pub(super) const MAX_WARNINGS: usize = 8;

/// The policy that is in force. Clones are the same one.
#[derive(Clone, Debug)]
pub struct PolicyInForce(Arc<RwLock<Arc<Policy>>>);

impl PolicyInForce {
    /// Puts a policy in force.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(policy))))
    }

    /// Puts another one in force, for the flows that come: one in progress keeps what it began with.
    pub fn replace(&self, policy: Policy) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
    }

    /// The one in force.
    #[must_use]
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is known of a flow, to decide by.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub policy: Arc<Policy>,
    pub tainted: bool,
}

/// What follows from what was found at a place.
#[derive(Clone, Debug)]
pub(super) struct Ruling {
    pub place: Place,
    pub findings: Vec<Finding>,
    pub judgement: Judgement,
    /// It comes again with every turn of a conversation.
    pub repeats: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It passed.
    Passed,
    /// It was refused.
    Refused,
}

/// What is to be done.
pub(super) enum Act {
    /// Nothing; it was told.
    Pass,
    /// It is refused, and that was told.
    Refuse(String),
    /// What was found is to be taken out, and then told, or a person is to be asked about the rest.
    Redact(Ruling),
    /// A person is to be asked.
    Ask(Ruling),
}

impl Ruling {
    pub fn decision(&self) -> &Decision {
        &self.judgement.decision
    }

    /// Whether something is to be taken out: also where a person decides about the rest.
    fn takes_out(&self) -> bool {
        let mut decisions = self.judgement.findings.iter();
        decisions.any(|one| matches!(one.action, Action::Redact { .. }))
    }

    /// Whether a person is to be asked.
    pub fn asks(&self) -> bool {
        matches!(self.decision().action, Action::Hold(_))
    }

    /// Why, in one line.
    pub fn reason(&self) -> String {
        self.decision().reason(&self.place, self.counts())
    }

    /// The scanner's rule that counts; where it is none, the whole reason.
    pub fn what(&self) -> String {
        match self.counts() {
            Some(finding) => finding.rule.to_string(),
            None => self.reason(),
        }
    }

    fn counts(&self) -> Option<&Finding> {
        let at = self.decision().finding?;
        self.findings.get(at)
    }
}

/// What is gathered while a request is looked at.
#[derive(Debug)]
pub(super) struct Round {
    pub standing: Standing,
    pub asks: Vec<Ruling>,
    pub warnings: Vec<String>,
    pub originals: Originals,
}

impl Round {
    pub fn new(standing: Standing) -> Self {
        Self {
            standing,
            asks: Vec::new(),
            warnings: Vec::new(),
            originals: Originals::default(),
        }
    }
}

impl Screen {
    /// What the policy says.
    pub(super) fn weigh(
        &self,
        flow: &Flow,
        standing: &Standing,
        place: Place,
        mut findings: Vec<Finding>,
        call: Option<&CallFacts>,
        method: Option<&str>,
    ) -> Ruling {
        findings.sort();
        findings.dedup();
        if call.is_some() {
            // A command is found in the arguments as they stand, and in what they say.
            let mut seen = HashSet::new();
            findings.retain(|finding| {
                seen.insert((Arc::clone(&finding.rule), finding.excerpt.clone()))
            });
        }
        let mut subject = Subject::new(&place)
            .findings(&findings)
            .flow(flow)
            .tainted(standing.tainted);
        if let Some(call) = call {
            subject = subject.call(call);
        }
        if let Some(method) = method {
            subject = subject.method(method);
        }
        let judgement = standing.policy.judge(&subject);
        Ruling {
            place,
            findings,
            judgement,
            repeats: false,
        }
    }

    /// Whether what was found is to be taken out, by itself, and put back in the answer. `call`: what it stands in, as in
    /// [`weigh`](Self::weigh).
    pub(super) fn redacts(
        &self,
        flow: &Flow,
        standing: &Standing,
        place: &Place,
        call: Option<&CallFacts>,
        finding: &Finding,
    ) -> Option<bool> {
        let one = std::slice::from_ref(finding);
        let mut subject = Subject::new(place)
            .findings(one)
            .flow(flow)
            .tainted(standing.tainted);
        if let Some(call) = call {
            subject = subject.call(call);
        }
        match standing.policy.judge(&subject).findings.first()?.action {
            Action::Redact { restore } => Some(restore),
            _ => None,
        }
    }

    /// Tells what needs no more, and says what is to be done about the rest.
    pub(super) fn act(&self, flow: &mut Flow, ruling: Ruling, warnings: &mut Vec<String>) -> Act {
        let enforces = self.config.enforcement == Enforcement::Enforce;
        match ruling.decision().action {
            Action::Block if enforces => {
                let reason = ruling.reason();
                self.report(flow, &ruling, Fate::Refused, &ruling.what());
                Act::Refuse(reason)
            }
            Action::Redact { .. } if enforces => Act::Redact(ruling),
            // Nobody is asked about what another rule takes out.
            Action::Hold(_) if enforces && ruling.takes_out() => Act::Redact(ruling),
            Action::Hold(_) if enforces => Act::Ask(ruling),
            Action::Allow => {
                self.report_what_passes(flow, ruling);
                Act::Pass
            }
            action => {
                // The client is told each time, the log once.
                if action == Action::Warn && enforces && warnings.len() < MAX_WARNINGS {
                    warnings.push(warning(&ruling));
                }
                let mut news = ruling.clone();
                self.forget_told(flow, &mut news);
                if !news.findings.is_empty() || ruling.findings.is_empty() {
                    self.report(flow, &ruling, Fate::Passed, &ruling.what());
                }
                Act::Pass
            }
        }
    }

    /// Who only watches is told of what isn't enough to refuse, too.
    fn report_what_passes(&self, flow: &mut Flow, mut ruling: Ruling) {
        if self.config.enforcement == Enforcement::Enforce {
            return;
        }
        let decisions = &ruling.judgement.findings;
        let mut builtin = decisions.iter().map(|decision| decision.rule.is_none());
        ruling.findings.retain(|_| builtin.next().unwrap_or(false));
        self.forget_told(flow, &mut ruling);
        ruling.judgement = Judgement::default();
        let Some(worst) = ruling.findings.iter().max_by_key(|f| f.severity).cloned() else {
            return;
        };
        self.report(flow, &ruling, Fate::Passed, &worst.rule);
    }

    /// Takes out what was told in an earlier turn of the conversation.
    pub(super) fn forget_told(&self, flow: &Flow, ruling: &mut Ruling) {
        if !ruling.repeats || self.config.tell_again {
            return;
        }
        let target = flow.request.target.to_string();
        let kind = ruling.place.kind();
        ruling.findings.retain(|finding| {
            let what = (&target, kind, &finding.rule, &finding.excerpt, &finding.via);
            lock(&self.told).is_new(&what)
        });
    }

    /// Tells a verdict.
    pub(super) fn report(&self, flow: &mut Flow, ruling: &Ruling, fate: Fate, reason: &str) {
        let decision = ruling.decision();
        let refused = fate == Fate::Refused;
        let word = match (refused, decision.action) {
            (true, _) => "refused",
            (false, Action::Redact { .. }) if self.config.enforcement == Enforcement::Enforce => {
                "redacted"
            }
            (false, Action::Hold(_)) if self.config.enforcement == Enforcement::Enforce => "held",
            (false, _) => "seen",
        };
        let what = match ruling.counts().or(ruling.findings.first()) {
            Some(finding) => finding.rule.to_string(),
            None => reason.to_owned(),
        };
        if flow.metadata.len() < 64 {
            let note = match &decision.rule {
                Some(rule) => format!("{word}: {what} in {} ({rule})", ruling.place),
                None => format!("{word}: {what} in {}", ruling.place),
            };
            flow.metadata.push((FINDING.to_owned(), note));
        }
        let Some(on_verdict) = &self.on_verdict else {
            return;
        };
        // What a rule allows is not told beside what another refuses.
        let allowed = |at: usize| {
            let own = ruling.judgement.findings.get(at);
            own.is_some_and(|own| own.action == Action::Allow && own.rule.is_some())
        };
        let findings = ruling.findings.iter().enumerate();
        on_verdict(&Verdict {
            flow: flow.id,
            target: flow.request.target.to_string(),
            place: ruling.place.clone(),
            findings: findings
                .filter(|(at, _)| !allowed(*at))
                .map(|(_, finding)| finding.clone())
                .collect(),
            refused,
            reason: reason.to_owned(),
            action: decision.action,
            rule: decision.rule.clone(),
            allow: decision.allow.clone(),
        });
    }

    /// Asks a person whether a request may go on.
    pub(super) fn ask_about_request(&self, flow: &mut Flow, asks: Vec<Ruling>) -> Step {
        let Some((question, first)) = question(&asks, Direction::Request) else {
            return Step::Continue;
        };
        for ruling in &asks {
            self.report(flow, ruling, Fate::Passed, &ruling.what());
        }
        let screen = self.clone();
        let answer: Answer = Arc::new(move |resume| {
            let (screen, ruling) = (screen.clone(), first.clone());
            Step::edit(move |flow| {
                let reason = screen.report_answer(flow, &ruling, resume);
                match resume {
                    true => Step::Continue,
                    false => refusal(flow, &reason),
                }
            })
        });
        self.person.ask(flow, question, answer)
    }

    /// Tells what a person has decided, or the deadline; in words.
    pub(super) fn report_answer(&self, flow: &mut Flow, ruling: &Ruling, resume: bool) -> String {
        let (fate, what) = match resume {
            true => (Fate::Passed, "a person, or the deadline, let it pass"),
            false => (
                Fate::Refused,
                "a person refused it, or nobody decided in time",
            ),
        };
        let reason = format!("{}: {what}", ruling.reason());
        let mut told = ruling.clone();
        told.judgement.decision.action = match resume {
            true => Action::Allow,
            false => Action::Block,
        };
        self.report(flow, &told, fate, &reason);
        reason
    }
}

/// One question for all that is to be asked, and what counts.
pub(super) fn question(asks: &[Ruling], direction: Direction) -> Option<(Question, Ruling)> {
    let first = asks.first()?;
    let times = asks
        .iter()
        .filter_map(|ruling| match ruling.decision().action {
            Action::Hold(hold) => Some(hold),
            _ => None,
        });
    let deadline = times.clone().map(|hold| hold.deadline).min()?;
    let reasons: Vec<String> = asks.iter().map(Ruling::reason).collect();
    let question = Question {
        direction,
        rule: first
            .decision()
            .rule
            .as_deref()
            .unwrap_or("screen")
            .to_owned(),
        what: reasons.join("; "),
        deadline,
        then_resume: times.clone().all(|hold| hold.then_allow),
    };
    Some((question, first.clone()))
}

/// A warning as the value of a header field.
fn warning(ruling: &Ruling) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| match c {
                '"' | '\\' => '\'',
                ' '..='~' => c,
                _ => '?',
            })
            .take(200)
            .collect()
    };
    let decision = ruling.decision();
    let what = ruling.counts().map_or("call", |finding| &*finding.rule);
    let mut value = format!(
        "{}; place=\"{}\"",
        plain(what),
        plain(&ruling.place.to_string())
    );
    if let Some(rule) = &decision.rule {
        value.push_str(&format!("; rule=\"{}\"", plain(rule)));
    }
    if let Some(message) = &decision.message {
        value.push_str(&format!("; message=\"{}\"", plain(message)));
    }
    value
}

/// What was told, or is known, lately.
#[derive(Debug)]
pub(super) struct Lately {
    hasher: RandomState,
    known: HashSet<u64>,
    order: VecDeque<u64>,
    most: usize,
}

impl Lately {
    pub fn told() -> Self {
        Self::new(MAX_TOLD)
    }

    pub fn tainted() -> Self {
        Self::new(MAX_TAINTED)
    }

    fn new(most: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            known: HashSet::new(),
            order: VecDeque::new(),
            most,
        }
    }

    /// Whether it is known.
    pub fn has(&self, what: &impl std::hash::Hash) -> bool {
        self.known.contains(&self.hasher.hash_one(what))
    }

    /// Whether it wasn't known; it is now.
    pub fn is_new(&mut self, what: &impl std::hash::Hash) -> bool {
        let hash = self.hasher.hash_one(what);
        if !self.known.insert(hash) {
            return false;
        }
        self.order.push_back(hash);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// Injection in what a tool answered: it doesn't prevent anything, and is told once for each flow.
pub(super) fn is_injection(finding: &Finding) -> bool {
    finding.category == Category::Injection
}

//! Rules over findings and tool calls: what follows from what was seen.
//!
//! A [`Policy`] is an ordered list, read from a file ([`Policy::load`]). The first rule all of whose conditions hold
//! decides; behind the last one stands what is built in: a finding from severity high on, that is more than a guess, is
//! refused. It works without a proxy: whoever has findings or a tool call asks [`Policy::decide`].
//!
//! ```
//! use tollgate_screen::Place;
//! use tollgate_screen::llm::{Arguments, CallId, RunsAt, ToolCall};
//! use tollgate_screen::policy::{Action, CallFacts, Policy, Subject};
//!
//! let policy = Policy::parse(
//!     r#"
//! [[rule]]
//! name = "ask before pushing"
//! tool = "bash"
//! command = "git push*"
//! action = "hold"
//! "#,
//!     "policy.toml",
//! )?;
//! let call = ToolCall {
//!     call: CallId(0),
//!     id: String::new(),
//!     name: "bash".into(),
//!     arguments: Arguments::Json(serde_json::json!({"command": "cd /srv; g\\it 'push' origin"})),
//!     runs_at: RunsAt::Client,
//! };
//! let place = Place::ToolCall(call.name.clone());
//! let facts = CallFacts::of(&call);
//! let decision = policy.decide(&Subject::new(&place).call(&facts));
//! assert!(matches!(decision.action, Action::Hold(_)));
//! assert_eq!(decision.rule.as_deref(), Some("ask before pushing"));
//! # Ok::<(), tollgate_screen::policy::PolicyError>(())
//! ```
//!
//! # What a rule is asked about
//!
//! Each finding by itself, and a tool call (or an MCP request) as such; the strictest answer counts. So a rule that
//! allows a finding doesn't allow a call that another rule refuses.
//!
//! `allow` and `warn` are lenient: where a call names several commands, paths or hosts, they hold only if **all**
//! match. The others hold if **any** does. What can't be read to its end is never all. A `warn` that holds for some of them
//! warns, and the rules behind it decide.

mod config;
mod facts;
mod glob;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tollgate_flow::Flow;
use tollgate_flow::filter::Filter;

pub use self::config::PolicyError;
pub use self::facts::CallFacts;
pub(crate) use self::facts::percent_decoded;
use self::facts::{CommandFacts, canonical_host};
use self::glob::{Globs, Pattern};
use crate::interceptor::{Place, goes_to};
use crate::llm::Arguments;
use crate::scan::{Category, Confidence, Finding, Severity};

/// What a policy calls a tool of an MCP server that is not what it was ([`crate::mcp`]).
pub const DRIFT: &str = "tool-drift";

/// The least severity that is refused where no rule decides.
const REFUSE_FROM: Severity = Severity::High;

/// What follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    #[default]
    Allow,
    /// It passes and is reported, to the client as well.
    Warn,
    /// What was found is taken out; the rest passes.
    Redact {
        /// Whether it is put back where it comes back in the answer.
        restore: bool,
    },
    /// A person decides.
    Hold(HoldFor),
    /// It doesn't pass.
    Block,
}

impl Action {
    /// The word for it in a policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Warn => "warn",
            Self::Redact { .. } => "redact",
            Self::Hold(_) => "hold",
            Self::Block => "block",
        }
    }

    pub(crate) fn strictness(self) -> u8 {
        match self {
            Self::Allow => 0,
            Self::Warn => 1,
            Self::Redact { .. } => 2,
            Self::Hold(_) => 3,
            Self::Block => 4,
        }
    }

    /// Whether it needs all parts of a call to match.
    fn is_lenient(self) -> bool {
        matches!(self, Self::Allow | Self::Warn)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long a person has, and what happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldFor {
    /// The longest wait.
    pub deadline: Duration,
    /// Whether it passes at the deadline; else it doesn't.
    pub then_allow: bool,
}

/// What is decided about a [`Subject`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// What follows.
    pub action: Action,
    /// The rule that decided; `None` for what is built in.
    pub rule: Option<Arc<str>>,
    /// What the rule has to say to the agent and the person behind it.
    pub message: Option<Arc<str>>,
    /// Which of the subject's findings it is about; `None` for the call as such.
    pub finding: Option<usize>,
    /// What an operator can do to let it pass: one sentence. Empty where it passes.
    pub allow: String,
}

impl Decision {
    /// In one line: the finding that counts, where, behind what, and what the rule says; without a finding, by which rule.
    pub(crate) fn reason(&self, place: &Place, counts: Option<&Finding>) -> String {
        let mut reason = match (counts, &self.rule) {
            (Some(finding), _) => format!("{} in {place}", finding.rule),
            (None, Some(rule)) => format!("{place} is not allowed by {rule}"),
            (None, None) => place.to_string(),
        };
        if let Some(finding) = counts.filter(|finding| !finding.via.is_empty()) {
            reason.push_str(&format!(", behind {}", finding.via.join(", ")));
        }
        if let Some(message) = &self.message {
            reason.push_str(&format!("; {message}"));
        }
        reason
    }
}

/// What is to be decided about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    place: &'a Place,
    findings: &'a [Finding],
    call: Option<&'a CallFacts>,
    method: Option<&'a str>,
    tool: Option<&'a str>,
    destination: Option<&'a str>,
    flow: Option<&'a Flow>,
    tainted: bool,
}

impl<'a> Subject<'a> {
    /// Something at a place, where nothing was found (yet).
    #[must_use]
    pub fn new(place: &'a Place) -> Self {
        Self {
            place,
            findings: &[],
            call: None,
            method: None,
            tool: None,
            destination: None,
            flow: None,
            tainted: false,
        }
    }

    /// What was found.
    #[must_use]
    pub fn findings(self, findings: &'a [Finding]) -> Self {
        Self { findings, ..self }
    }

    /// The tool call that it is.
    #[must_use]
    pub fn call(self, call: &'a CallFacts) -> Self {
        Self {
            call: Some(call),
            ..self
        }
    }

    /// The method of the MCP request that it is.
    #[must_use]
    pub fn method(self, method: &'a str) -> Self {
        Self {
            method: Some(method),
            ..self
        }
    }

    /// The tool that it is the answer or the description of. Only rules that name a finding or a category look at it: one
    /// that is about calls of a tool says nothing of what the tool says.
    #[must_use]
    pub fn tool(self, tool: &'a str) -> Self {
        Self {
            tool: Some(tool),
            ..self
        }
    }

    /// The flow that it stands in, and with it the destination.
    #[must_use]
    pub fn flow(self, flow: &'a Flow) -> Self {
        Self {
            flow: Some(flow),
            destination: Some(goes_to(flow)),
            ..self
        }
    }

    /// The host it goes to, where there is no flow.
    #[must_use]
    pub fn destination(self, host: &'a str) -> Self {
        Self {
            destination: Some(host),
            ..self
        }
    }

    /// Whether the conversation has had an injection in what a tool answered.
    #[must_use]
    pub fn tainted(self, tainted: bool) -> Self {
        Self { tainted, ..self }
    }
}

/// What is decided about a [`Subject`], and about each of its findings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// The strictest of all.
    pub decision: Decision,
    /// What is decided about each finding, in their order.
    pub findings: Vec<Decision>,
}

/// An ordered list of rules over findings and tool calls.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    refuse_from: Severity,
}

/// Without rules: what is built in.
impl Default for Policy {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            refuse_from: REFUSE_FROM,
        }
    }
}

impl Policy {
    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// A file that can't be read, and the first rule that can't be used, with its line.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        config::load(path).map(Self::of)
    }

    /// Reads rules from text in the format of a file; `shown` is what errors call it.
    ///
    /// ```
    /// use tollgate_screen::policy::Policy;
    ///
    /// let error = Policy::parse("[[rule]]\nfindng = \"x\"\naction = \"warn\"\n", "policy.toml").unwrap_err();
    /// assert_eq!(error.to_string(), "policy.toml:2: unknown key 'findng'; did you mean 'finding'?");
    /// ```
    ///
    /// # Errors
    /// The first rule that can't be used, with its line.
    pub fn parse(text: &str, shown: &str) -> Result<Self, PolicyError> {
        config::parse(text, shown).map(Self::of)
    }

    fn of(rules: Vec<Rule>) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// The least severe finding that is refused where no rule decides. Default: high.
    #[must_use]
    pub fn refuse_from(mut self, severity: Severity) -> Self {
        self.refuse_from = severity;
        self
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Looks whether every rule id that is named in full exists: a slip would be a rule that never holds. [`DRIFT`] does.
    ///
    /// # Errors
    /// The first that doesn't, with its line and what may have been meant.
    pub fn check_findings<'a>(
        &self,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<(), PolicyError> {
        for rule in &self.rules {
            let named = rule.finding.iter().flat_map(Globs::literals);
            for id in named {
                let mut all = known.clone().chain([DRIFT]);
                if all.any(|known| known == id) {
                    continue;
                }
                let meant = match tollgate_flow::closest(id, known.clone().chain([DRIFT])) {
                    Some(meant) => format!("; did you mean '{meant}'?"),
                    None => String::new(),
                };
                let message = format!("no scanner has a rule '{id}'{meant}");
                return Err(PolicyError::new(&rule.file, rule.line, message));
            }
        }
        Ok(())
    }

    /// The rules that look at a flow, its process or its destination, by name: where there is no connection, they never
    /// hold.
    pub fn needing_flows(&self) -> impl Iterator<Item = String> {
        self.rules
            .iter()
            .filter(|rule| rule.needs_flow())
            .map(Rule::shown)
    }

    /// Looks whether all can be done between an MCP client and its server, where nobody can be asked.
    ///
    /// # Errors
    /// The first rule that may hold there, and asks a person.
    pub(crate) fn check_for_mcp(&self) -> Result<(), PolicyError> {
        let there = |rule: &&Rule| {
            let at_place = |places: &Vec<&'static str>| {
                let mut places = places.iter();
                places.any(|kind| ["message", "tool-call", "tool-result"].contains(kind))
            };
            !rule.needs_flow() && rule.place.as_ref().is_none_or(at_place)
        };
        let asks = |rule: &&Rule| matches!(rule.action, Action::Hold(_));
        match self.rules.iter().filter(there).find(asks) {
            Some(rule) => {
                let name = match &rule.name {
                    Some(name) => format!("the rule \"{name}\""),
                    None => "this rule".to_owned(),
                };
                let message = format!(
                    "{name} asks a person (action = \"hold\"), and between an MCP client and its server nobody can be \
                     asked; use \"block\" or \"warn\", or give it a place that is not there (url, header, request-body, \
                     trailer, answer)"
                );
                Err(PolicyError::new(&rule.file, rule.line, message))
            }
            None => Ok(()),
        }
    }

    /// What follows.
    #[must_use]
    pub fn decide(&self, subject: &Subject<'_>) -> Decision {
        self.judge(subject).decision
    }

    /// What follows, and from which of the findings.
    #[must_use]
    pub fn judge(&self, subject: &Subject<'_>) -> Judgement {
        let asks = subject.call.is_some() || subject.method.is_some();
        let mut strictest = match asks {
            true => self.of_case(subject, None),
            false => Decision::default(),
        };
        let mut findings = Vec::with_capacity(subject.findings.len());
        for (at, finding) in subject.findings.iter().enumerate() {
            let decision = self.of_case(subject, Some((at, finding)));
            if decision.action.strictness() > strictest.action.strictness() {
                strictest = decision.clone();
            }
            findings.push(decision);
        }
        Judgement {
            decision: strictest,
            findings,
        }
    }

    /// Whether some rule asks what a tool call would touch.
    pub(crate) fn reads_calls(&self) -> bool {
        self.rules.iter().any(Rule::is_about_calls)
    }

    /// Whether some rule may end in such an action.
    pub(crate) fn any_action(&self, is: impl Fn(Action) -> bool) -> bool {
        self.rules.iter().any(|rule| is(rule.action))
    }

    /// Whether some rule puts back what it takes out.
    pub(crate) fn restores(&self) -> bool {
        self.any_action(|action| action == Action::Redact { restore: true })
    }

    /// Whether some rule may take something out of the body of this request. What can't be told before the body is here
    /// counts as given.
    pub(crate) fn may_redact_body(&self, flow: &Flow) -> bool {
        let place = Place::RequestBody;
        let subject = Subject::new(&place).flow(flow);
        self.rules.iter().any(|rule| {
            matches!(rule.action, Action::Redact { .. })
                && rule.method.is_none()
                && !rule.is_about_calls()
                && rule.holds_of_way(&subject)
        })
    }

    fn of_case(&self, subject: &Subject<'_>, finding: Option<(usize, &Finding)>) -> Decision {
        let at = finding.map(|(at, _)| at);
        let mut warned: Option<&Rule> = None;
        for rule in &self.rules {
            let redacts = matches!(rule.action, Action::Redact { .. });
            if redacts && (finding.is_none() || !can_redact(subject.place)) {
                continue;
            }
            if *subject.place == Place::AnswerText && !rule.ends_answers() {
                continue;
            }
            match (rule.holds(subject, finding.map(|(_, f)| f)), rule.action) {
                (Holds::No, _) => {}
                (Holds::Partly, Action::Warn) => {
                    warned.get_or_insert(rule);
                }
                (Holds::Partly, action) if action.is_lenient() => {}
                (Holds::Partly | Holds::Wholly, action) => {
                    // An earlier warning stands, unless this is stricter.
                    let rule = match action {
                        Action::Allow => warned.unwrap_or(rule),
                        _ => rule,
                    };
                    return rule.decision(at);
                }
            }
        }
        let refused = finding.filter(|(_, f)| refuses(f, self.refuse_from, subject.place));
        let refused_as = match subject.place {
            // It has passed.
            Place::AnswerText => Action::Warn,
            _ => Action::Block,
        };
        match (refused, warned) {
            (Some((at, finding)), _) => Decision {
                action: refused_as,
                rule: None,
                message: None,
                finding: Some(at),
                allow: finding.allow_hint(),
            },
            (None, Some(rule)) => rule.decision(at),
            (None, None) => Decision {
                finding: at,
                ..Decision::default()
            },
        }
    }
}

/// Where something leaves, or a call arrives, that can be written anew.
fn can_redact(place: &Place) -> bool {
    !matches!(
        place,
        Place::ToolResult | Place::Answer | Place::AnswerText | Place::ToolDescription(_)
    )
}

/// What is built in. Injection is never a reason by itself, and what only a name suggests isn't one for text that
/// leaves. In the text of an answer it isn't refused but told, and there less is enough.
fn refuses(finding: &Finding, from: Severity, place: &Place) -> bool {
    if *place == Place::AnswerText {
        let from = from.min(Severity::Medium);
        return finding.confidence >= Confidence::Medium && finding.severity >= from;
    }
    let by_category = match (place, finding.category) {
        (Place::McpReceived(_) | Place::McpResult(_) | Place::ToolDescription(_), category) => {
            refuses_received(category, place) && finding.confidence >= Confidence::Medium
        }
        (_, Category::Injection) => false,
        (_, Category::Command) => matches!(place, Place::ToolCall(_)),
        _ => finding.confidence >= Confidence::Medium,
    };
    by_category && finding.severity >= from
}

/// Whether something is a reason in what an MCP server says. A description is written once, for every conversation: orders
/// to a model have no place in it. In what a tool found they may be what was looked for.
fn refuses_received(category: Category, place: &Place) -> bool {
    match (place, category) {
        (_, Category::Secret | Category::KnownSecret) => true,
        (Place::ToolDescription(_), Category::Injection | Category::HiddenText) => true,
        (Place::McpReceived(method), Category::HiddenText) => {
            method.starts_with("sampling/") || method.starts_with("elicitation/")
        }
        _ => false,
    }
}

/// One rule.
#[derive(Clone, Debug)]
struct Rule {
    name: Option<String>,
    file: Arc<str>,
    line: usize,
    when: Option<Filter>,
    finding: Option<Globs>,
    category: Option<Vec<Category>>,
    severity: Option<Severity>,
    confidence: Option<Confidence>,
    place: Option<Vec<&'static str>>,
    destination: Option<Globs>,
    process: Option<Globs>,
    tainted: Option<bool>,
    method: Option<Globs>,
    tool: Option<Globs>,
    argument: Vec<(Vec<String>, Pattern)>,
    command: Option<CommandRule>,
    path: Option<Globs>,
    url: Option<Globs>,
    host: Option<Globs>,
    action: Action,
    message: Option<Arc<str>>,
}

/// What a simple command has to be.
#[derive(Clone, Debug, Default)]
struct CommandRule {
    line: Option<Globs>,
    program: Option<Globs>,
    subcommand: Option<Globs>,
    argument: Option<Globs>,
    path: Option<Globs>,
    host: Option<Globs>,
    elevated: Option<bool>,
}

/// Whether a rule's conditions hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    No,
    /// For some of the commands, paths or hosts of a call.
    Partly,
    Wholly,
}

impl Holds {
    fn yes(holds: bool) -> Self {
        match holds {
            true => Self::Wholly,
            false => Self::No,
        }
    }

    /// Of several things: some, or all and at least one.
    fn of<T>(things: &[T], all_there: bool, matches: impl Fn(&T) -> Self) -> Self {
        let each: Vec<Self> = things.iter().map(matches).collect();
        match (each.iter().min(), each.iter().max()) {
            (Some(Self::Wholly), _) if all_there => Self::Wholly,
            (_, Some(Self::Partly | Self::Wholly)) => Self::Partly,
            _ => Self::No,
        }
    }
}

impl Rule {
    fn shown(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => format!("{}:{}", self.file, self.line),
        }
    }

    /// Whether it may decide about the text of an answer: what would end the answer has to name that place.
    fn ends_answers(&self) -> bool {
        self.action.is_lenient() || self.place.is_some()
    }

    fn needs_flow(&self) -> bool {
        self.when.is_some() || self.process.is_some() || self.destination.is_some()
    }

    fn decision(&self, finding: Option<usize>) -> Decision {
        let shown = self.shown();
        let allow = match self.action {
            Action::Allow | Action::Warn => String::new(),
            _ => format!(
                "put a rule with action = \"allow\" before \"{shown}\" ({}:{}), or narrow that one",
                self.file, self.line
            ),
        };
        Decision {
            action: self.action,
            rule: Some(shown.into()),
            message: self.message.clone(),
            finding,
            allow,
        }
    }

    fn holds(&self, subject: &Subject<'_>, finding: Option<&Finding>) -> Holds {
        if !self.holds_of_finding(finding) || !self.holds_of_place(subject) {
            return Holds::No;
        }
        self.holds_of_call(subject)
    }

    fn holds_of_finding(&self, finding: Option<&Finding>) -> bool {
        let Some(finding) = finding else {
            return self.finding.is_none()
                && self.category.is_none()
                && self.severity.is_none()
                && self.confidence.is_none();
        };
        self.finding
            .as_ref()
            .is_none_or(|globs| globs.matches(&finding.rule))
            && self
                .category
                .as_ref()
                .is_none_or(|all| all.contains(&finding.category))
            && self.severity.is_none_or(|least| finding.severity >= least)
            && self
                .confidence
                .is_none_or(|least| finding.confidence >= least)
    }

    fn holds_of_place(&self, subject: &Subject<'_>) -> bool {
        self.holds_of_way(subject)
            && self
                .tainted
                .is_none_or(|tainted| tainted == subject.tainted)
            && self
                .method
                .as_ref()
                .is_none_or(|globs| subject.method.is_some_and(|method| globs.matches(method)))
            && self
                .when
                .as_ref()
                .is_none_or(|filter| subject.flow.is_some_and(|flow| filter.matches(flow)))
    }

    /// Where something stands, where it goes, and from whom.
    fn holds_of_way(&self, subject: &Subject<'_>) -> bool {
        let at_place = |places: &Vec<&'static str>| places.contains(&subject.place.kind());
        let goes_there = |globs: &Globs| {
            let host = subject.destination.and_then(canonical_host);
            host.is_some_and(|host| globs.matches(&host))
        };
        self.place.as_ref().is_none_or(at_place)
            && self.destination.as_ref().is_none_or(goes_there)
            && self.process.as_ref().is_none_or(|globs| {
                let process = subject.flow.and_then(|flow| flow.connection.process());
                process.is_some_and(|process| {
                    let path = process.executable.as_deref().map(|p| p.to_string_lossy());
                    process.name.as_deref().is_some_and(|n| globs.matches(n))
                        || path.is_some_and(|path| globs.matches(&path))
                })
            })
    }

    fn is_about_calls(&self) -> bool {
        self.tool.is_some()
            || !self.argument.is_empty()
            || self.command.is_some()
            || self.path.is_some()
            || self.url.is_some()
            || self.host.is_some()
    }

    fn holds_of_call(&self, subject: &Subject<'_>) -> Holds {
        if !self.is_about_calls() {
            return Holds::Wholly;
        }
        let Some(call) = subject.call else {
            return self.holds_of_tool(subject);
        };
        let whole = !call.partial;
        let tool = Holds::yes(self.tool.as_ref().is_none_or(|t| t.matches(&call.name)));
        let each = [
            tool,
            self.argument
                .iter()
                .map(|(path, pattern)| argument(call, path, pattern))
                .min()
                .unwrap_or(Holds::Wholly),
            self.command.as_ref().map_or(Holds::Wholly, |rule| {
                Holds::of(&call.commands, whole, |command| rule.holds(command))
            }),
            optional(self.path.as_ref(), |globs| {
                Holds::of(&call.paths, whole, |path| path_holds(path, globs))
            }),
            optional(self.url.as_ref(), |globs| {
                Holds::of(&call.urls, whole, |url| Holds::yes(globs.matches(url)))
            }),
            optional(self.host.as_ref(), |globs| {
                Holds::of(&call.hosts, whole, |host| Holds::yes(globs.matches(host)))
            }),
        ];
        each.into_iter().min().unwrap_or(Holds::No)
    }

    /// Of what a tool says, and not of a call of it.
    fn holds_of_tool(&self, subject: &Subject<'_>) -> Holds {
        let only_tool = self.argument.is_empty()
            && self.command.is_none()
            && self.path.is_none()
            && self.url.is_none()
            && self.host.is_none();
        let names_it = self.finding.is_some() || self.category.is_some();
        Holds::yes(
            only_tool
                && names_it
                && match (&self.tool, subject.tool) {
                    (Some(globs), Some(tool)) => globs.matches(tool),
                    _ => false,
                },
        )
    }
}

fn optional(globs: Option<&Globs>, holds: impl Fn(&Globs) -> Holds) -> Holds {
    globs.map_or(Holds::Wholly, holds)
}

/// A path matches in one of its forms; wholly, if in the one that counts.
fn path_holds(forms: &[String], globs: &Globs) -> Holds {
    let mut forms = forms.iter();
    if forms.next().is_some_and(|first| globs.matches(first)) {
        return Holds::Wholly;
    }
    match forms.any(|form| globs.matches(form)) {
        true => Holds::Partly,
        false => Holds::No,
    }
}

/// The value at a place in the arguments; a segment `*` stands for every member or element.
fn argument(call: &CallFacts, path: &[String], pattern: &Pattern) -> Holds {
    let root = match &call.arguments {
        Some(Arguments::Json(root)) => root,
        // Free text is an argument without a name.
        Some(Arguments::Text(text)) if path.is_empty() => {
            return Holds::yes(pattern.matches(text));
        }
        Some(Arguments::Malformed { text, .. }) => {
            return match pattern.matches(text) {
                true => Holds::Partly,
                false => Holds::No,
            };
        }
        _ => return Holds::No,
    };
    let mut found = vec![root];
    for segment in path {
        let mut next = Vec::new();
        for value in found {
            match value {
                Json::Object(members) if segment == "*" => next.extend(members.values()),
                Json::Array(items) if segment == "*" => next.extend(items),
                Json::Object(members) => next.extend(members.get(segment)),
                Json::Array(items) => {
                    next.extend(segment.parse().ok().and_then(|at: usize| items.get(at)));
                }
                _ => {}
            }
        }
        found = next;
    }
    Holds::of(&found, true, |value| {
        Holds::yes(match value {
            Json::String(text) => pattern.matches(text),
            other => pattern.matches(&other.to_string()),
        })
    })
}

impl CommandRule {
    fn holds(&self, command: &CommandFacts) -> Holds {
        let words: Vec<&String> = command.words.iter().collect();
        let subcommands = subcommands(&command.words);
        let named = optional(self.line.as_ref(), |g| Holds::yes(g.matches(&command.line)))
            .min(optional(self.program.as_ref(), |g| {
                Holds::yes(g.matches(&command.program))
            }))
            .min(optional(self.subcommand.as_ref(), |g| {
                Holds::of(&subcommands, true, |word| Holds::yes(g.matches(word)))
            }))
            .min(Holds::yes(
                self.elevated
                    .is_none_or(|wanted| wanted == command.elevated),
            ));
        let touched = optional(self.argument.as_ref(), |g| {
            Holds::of(&words, true, |word| Holds::yes(g.matches(word)))
        })
        .min(optional(self.path.as_ref(), |g| {
            Holds::of(&command.paths, true, |path| path_holds(path, g))
        }))
        .min(optional(self.host.as_ref(), |g| {
            Holds::of(&command.hosts, true, |host| Holds::yes(g.matches(host)))
        }));
        let says_it_all = !command.more && (!command.elevated || self.elevated == Some(true));
        match named.min(touched) {
            Holds::Wholly if !says_it_all => Holds::Partly,
            other => other,
        }
    }
}

/// The words that may be a subcommand: the first that is no option, and what follows one that may be an option's value
/// (`push` in `git -C folder push`).
fn subcommands(words: &[String]) -> Vec<&str> {
    let mut found = Vec::new();
    let mut may_be_value = false;
    for word in words {
        if word.starts_with('-') {
            may_be_value = !word.contains('=');
            continue;
        }
        found.push(word.as_str());
        if !std::mem::take(&mut may_be_value) {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests;

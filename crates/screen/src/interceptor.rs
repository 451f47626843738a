//! The scanners and the gate as an interceptor of flows.
//!
//! [`Screen`] looks at what leaves (the URL, the headers, the body, the trailers, the messages of a
//! WebSocket) before it is sent, and stands with a [`Gate`] in the answers of language models: text
//! passes as it comes, a tool call is held until it was judged, and a refused one is replaced in the
//! provider's own shape.
//!
//! | what | read how | refused how |
//! |---|---|---|
//! | a request of known length up to [`ScreenConfig::collect`], JSON of unknown length, or, to a language model or where a rule may redact it, any up to [`MODEL_COLLECT`] | whole, before it is sent | 403, nothing reaches the origin |
//! | any other request | in pieces; up to 3 KiB wait until they are judged | the connection is cut; what was judged before has left |
//! | the same, of gRPC or Connect | in pieces, each judged as it comes | the same |
//! | a request for another host than its connection is to | its names | 421: a browser asks again in another connection |
//! | a message of a WebSocket, towards the origin | whole | both sides are closed with code 1008 |
//! | a tool call in a model's answer, or on a WebSocket | whole, while it is held | a text in its place; the answer goes on |
//! | the text of a model's answer | while it passes | only by a rule that names its place: a refusal in the place of an answer that comes whole, an end of one that streams |
//!
//! Texts of tools in requests to a model are looked at for injection. That is reported and marks the
//! flow; it refuses nothing by itself.

mod answer;
mod bill;
mod credential;
mod fronting;
mod history;
mod outbound;
mod rewriting;
mod ruling;
mod said;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tollgate_flow::hold::{Answer, AskPerson, Nobody};
use tollgate_flow::{
    Bytes, Direction, Flow, FlowId, FlowKind, HeaderList, Interceptor, Interest, KeepAlive,
    Message, MessageKind, OnFailure, Outcome, Piece, Reply, Request, Step,
};
use tollgate_wire::coding::{Decoder, OutputLimit};

use self::answer::{Gated, Pending, Socket};
use self::bill::Bill;
pub(crate) use self::fronting::goes_to;
pub use self::history::HistoryStats;
use self::history::{History, Looked};
use self::outbound::{Holding, Stream};
use self::rewriting::request_line;
pub use self::ruling::PolicyInForce;
use self::ruling::{Act, Fate, Lately, Round, Ruling, Standing, question};
use self::said::Said;
use crate::gate::{
    BlockedCalls, Decision, Gate, GateEvent, GateOptions, Messages, Output, STALE_HEADERS,
    refusal_body, repair_request,
};
use crate::llm::json::Tape;
use crate::llm::{Arguments, CallId, Dialect, Event, Framing, ToolCall, mcp, skim};
use crate::policy::{Action, CallFacts, Policy};
use crate::redact::{Originals, Redactor, Restorer};
use crate::scan::{Category, Finding, Kind, Scanner, Severity};
use crate::usage::Ledger;

/// Whether findings have consequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// They are reported.
    Monitor,
    /// What is found is refused.
    #[default]
    Enforce,
}

/// How a [`Screen`] works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScreenConfig {
    /// Whether findings have consequences. Default: they do.
    pub enforcement: Enforcement,
    /// The least severe finding that refuses where no rule of a policy decides. Default: high.
    pub refuse_from: Severity,
    /// The length up to which a request is read whole before it is sent. Default: 8 MiB.
    pub collect: u64,
    /// What request bodies may decode to. Default: 64 MiB; beyond, a request is refused (closed) or
    /// passes unread (open).
    pub decoded: u64,
    /// What happens to what can't be read: a broken content coding, a limit, a panic. Default:
    /// closed while enforcing.
    pub on_failure: OnFailure,
    /// Tools whose calls are not held: those that only read. Exact names.
    pub stream_at_once: Vec<String>,
    /// Whether what passes and comes again with every turn of a conversation is told each time. Default: once.
    pub tell_again: bool,
}

impl Default for ScreenConfig {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Enforce,
            refuse_from: Severity::High,
            collect: 8 << 20,
            decoded: 64 << 20,
            on_failure: OnFailure::Closed,
            stream_at_once: Vec::new(),
            tell_again: false,
        }
    }
}

/// What was seen, and what followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The flow.
    pub flow: FlowId,
    /// Where it goes: `host:port`.
    pub target: String,
    /// Where the finding stands.
    pub place: Place,
    /// What was found; redacted. Empty where something couldn't be read, or a tool is not what it was.
    pub findings: Vec<Finding>,
    /// Whether it was refused.
    pub refused: bool,
    /// The scanner's rule that counts, or why something couldn't be read, isn't allowed, or can't be taken out.
    pub reason: String,
    /// What the policy says. Who only watches does none of it.
    pub action: Action,
    /// The policy's rule; `None` for what is built in.
    pub rule: Option<Arc<str>>,
    /// What an operator can do to let it pass: one sentence. Empty where it passes.
    pub allow: String,
}

/// Where in a flow a finding stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A request to a model as a whole: there is no budget left for it.
    Request,
    /// The URL of a request.
    Url,
    /// A header field of a request.
    Header(String),
    /// The body of a request.
    RequestBody,
    /// A trailer field of a request.
    Trailer(String),
    /// A message that a client sends over a WebSocket.
    Message,
    /// What a tool answered, on its way to a model.
    ToolResult,
    /// A tool call in a model's answer.
    ToolCall(String),
    /// A model's answer.
    Answer,
    /// The text of a model's answer. It has passed when it is judged, unless the answer comes whole.
    AnswerText,
    /// What an MCP client sends, by its method.
    McpSent(String),
    /// What an MCP server sends, by its method, or that of the request that it answers.
    McpReceived(String),
    /// What a tool of an MCP server answered.
    McpResult(String),
    /// What an MCP server says of one of its tools.
    ToolDescription(String),
}

impl Place {
    /// The kinds of places, as policies name them.
    pub const KINDS: [&'static str; 9] = [
        "url",
        "header",
        "request-body",
        "trailer",
        "message",
        "tool-result",
        "tool-call",
        "answer",
        "answer-text",
    ];

    /// Which of [`KINDS`](Self::KINDS) it is; `request` for budgets, about which no policy is asked.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Url => "url",
            Self::Header(_) => "header",
            Self::RequestBody => "request-body",
            Self::Trailer(_) => "trailer",
            Self::Message | Self::McpSent(_) => "message",
            Self::ToolResult
            | Self::McpResult(_)
            | Self::McpReceived(_)
            | Self::ToolDescription(_) => "tool-result",
            Self::ToolCall(_) => "tool-call",
            Self::Answer => "answer",
            Self::AnswerText => "answer-text",
        }
    }
}

impl Place {
    /// As a part of a path: `url`, `header/Cookie`, `tool-call/bash` …
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Request => "request".to_owned(),
            Self::Url => "url".to_owned(),
            Self::Header(name) => format!("header/{name}"),
            Self::RequestBody => "request-body".to_owned(),
            Self::Trailer(name) => format!("trailer/{name}"),
            Self::Message => "message".to_owned(),
            Self::ToolResult => "tool-result".to_owned(),
            Self::ToolCall(name) => format!("tool-call/{name}"),
            Self::Answer => "answer".to_owned(),
            Self::AnswerText => "answer-text".to_owned(),
            Self::McpSent(method) => format!("mcp-sent/{method}"),
            Self::McpReceived(method) => format!("mcp-received/{method}"),
            Self::McpResult(name) => format!("mcp-result/{name}"),
            Self::ToolDescription(name) => format!("tool-description/{name}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request => f.write_str("a request to a model"),
            Self::Url => f.write_str("the URL"),
            Self::Header(name) => write!(f, "the header {name}"),
            Self::RequestBody => f.write_str("the request body"),
            Self::Trailer(name) => write!(f, "the trailer {name}"),
            Self::Message => f.write_str("a WebSocket message"),
            Self::ToolResult => f.write_str("a tool result"),
            Self::ToolCall(name) => write!(f, "a call of the tool {name}"),
            Self::Answer => f.write_str("a model's answer"),
            Self::AnswerText => f.write_str("the text of a model's answer"),
            Self::McpSent(method) => write!(f, "what the client sends ({method})"),
            Self::McpReceived(method) => write!(f, "what the server sends ({method})"),
            Self::McpResult(name) => write!(f, "a result of the tool {name}"),
            Self::ToolDescription(name) => write!(f, "the description of the tool {name}"),
        }
    }
}

/// Takes verdicts. Called on a connection's worker: it must not block.
pub type OnVerdict = Arc<dyn Fn(&Verdict) + Send + Sync>;

/// Flows that are looked at at once; of further ones the declared failure is the answer.
const MAX_FLOWS: usize = 65_536;

/// The length up to which a request to a language model is read whole: what an engine collects by
/// default.
pub const MODEL_COLLECT: u64 = 32 << 20;

/// How long a client that waits for a person hears nothing: less than what programs, and what stands between them and the
/// proxy, take for a broken connection.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The field in which a response tells its client of what passed with a warning. An origin's own is taken out.
pub const WARNING_HEADER: &str = "Tollgate-Warning";

/// Screens flows. Clones are the same screen.
///
/// ```
/// use tollgate_flow::Interceptor;
/// use tollgate_screen::{Screen, ScreenConfig};
/// use tollgate_screen::scan::Scanner;
///
/// let screen = Screen::new(Scanner::builtin(), ScreenConfig::default());
/// assert_eq!(screen.name(), "screen");
/// ```
#[derive(Clone)]
pub struct Screen {
    scanner: Scanner,
    config: ScreenConfig,
    policy: PolicyInForce,
    redactor: Arc<Redactor>,
    person: Arc<dyn AskPerson>,
    on_verdict: Option<OnVerdict>,
    ledger: Option<Arc<Ledger>>,
    history: Arc<History>,
    open: Arc<Mutex<HashMap<FlowId, Arc<Mutex<Watch>>>>>,
    blocked: Arc<Mutex<BlockedCalls>>,
    told: Arc<Mutex<Lately>>,
    /// Answers of conversations that an injection was found in, by their identifiers.
    tainted: Arc<Mutex<Lately>>,
}

/// A call that a person is to be asked about.
struct Asks {
    call: CallId,
    ruling: Ruling,
    /// What follows if it may go on.
    allowed: Decision,
}

/// What came of what a gate said.
enum Settled {
    /// All of it was looked at.
    Done,
    /// A person is to be asked first.
    Asks(Box<Asks>),
    /// The text of the answer is refused.
    Refused(String),
}

/// What is kept of a flow while it passes.
struct Watch {
    dialect: Option<Dialect>,
    request: Option<Stream>,
    gate: Option<Box<Gated>>,
    socket: Option<Box<Socket>>,
    bill: Option<Box<Bill>>,
    standing: Standing,
    /// For the header of the response.
    warnings: Vec<String>,
    /// What is put back in the answer.
    originals: Originals,
    /// A finding ended it.
    ended: bool,
}

impl Screen {
    /// Screens with a scanner.
    pub fn new(scanner: Scanner, config: ScreenConfig) -> Self {
        let policy = Policy::default().refuse_from(config.refuse_from);
        Self {
            redactor: Arc::new(Redactor::new(scanner.clone())),
            scanner,
            config,
            policy: PolicyInForce::new(policy),
            person: Arc::new(Nobody),
            on_verdict: None,
            ledger: None,
            history: Arc::default(),
            open: Arc::default(),
            blocked: Arc::default(),
            told: Arc::new(Mutex::new(Lately::told())),
            tainted: Arc::new(Mutex::new(Lately::tainted())),
        }
    }

    /// Decides by this policy.
    #[must_use]
    pub fn policy(mut self, policy: PolicyInForce) -> Self {
        self.policy = policy;
        self
    }

    /// Asks this person where the policy says `hold`; without one, the deadline decides.
    #[must_use]
    pub fn person(mut self, person: Arc<dyn AskPerson>) -> Self {
        self.person = person;
        self
    }

    /// Tells each verdict to `on_verdict`.
    #[must_use]
    pub fn on_verdict(mut self, on_verdict: OnVerdict) -> Self {
        self.on_verdict = Some(on_verdict);
        self
    }

    /// Whether what is found has consequences.
    #[must_use]
    pub fn enforces(&self) -> bool {
        self.config.enforcement == Enforcement::Enforce
    }

    /// Counts what models used in this ledger, and keeps requests within its budgets.
    #[must_use]
    pub fn ledger(mut self, ledger: Arc<Ledger>) -> Self {
        self.ledger = Some(ledger);
        self
    }

    /// What is known of the beginnings of requests that were seen before.
    #[must_use]
    pub fn history(&self) -> HistoryStats {
        self.history.stats()
    }

    fn closed(&self) -> bool {
        self.config.enforcement == Enforcement::Enforce
            && self.config.on_failure == OnFailure::Closed
    }

    /// Judges what was found where nothing can be taken out and nobody can be asked: there, both refuse.
    fn judge(
        &self,
        flow: &mut Flow,
        standing: &Standing,
        place: Place,
        findings: Vec<Finding>,
    ) -> Option<String> {
        let ruling = self.weigh(flow, standing, place, findings, None, None);
        match self.act(flow, ruling, &mut Vec::new()) {
            Act::Pass => None,
            Act::Refuse(reason) => Some(reason),
            Act::Redact(ruling) => {
                Some(self.not_redacted(flow, &ruling, "what streams is not written anew"))
            }
            Act::Ask(ruling) => {
                let reason = format!("{}, and nobody can be asked here", ruling.reason());
                self.report(flow, &ruling, Fate::Refused, &reason);
                Some(reason)
            }
        }
    }

    /// Tells what isn't a finding.
    fn tell(&self, flow: &mut Flow, place: Place, refused: bool, why: &str) {
        let standing = Standing {
            policy: Arc::default(),
            tainted: false,
        };
        let ruling = self.weigh(flow, &standing, place, Vec::new(), None, None);
        let fate = match refused {
            true => Fate::Refused,
            false => Fate::Passed,
        };
        self.report(flow, &ruling, fate, why);
    }

    /// Reports what couldn't be read; whether that refuses.
    fn unread(&self, flow: &mut Flow, place: Place, why: &str) -> Option<String> {
        let refused = self.closed();
        let reason = format!("{place} can't be read: {why}");
        self.tell(flow, place, refused, why);
        refused.then_some(reason)
    }

    fn watch(&self, flow: FlowId) -> Option<Arc<Mutex<Watch>>> {
        lock(&self.open).get(&flow).cloned()
    }

    /// Looks at a request whose body is here.
    fn whole_request(
        &self,
        flow: &mut Flow,
        watch: &Mutex<Watch>,
        round: &mut Round,
    ) -> Result<(), Step> {
        let Some(body) = flow.request.body().filter(|b| !b.is_empty()).cloned() else {
            return Ok(());
        };
        let decoded = match decode(flow.request.headers(), &body, self.config.decoded) {
            Ok(decoded) => decoded,
            Err(why) => {
                return match self.unread(flow, Place::RequestBody, &why) {
                    Some(reason) => Err(refusal(flow, &reason)),
                    None => Ok(()),
                };
            }
        };
        let text = decoded.as_deref().unwrap_or(&body);
        let host = goes_to(flow).to_owned();
        let path = String::from_utf8_lossy(flow.request.path()).into_owned();
        let known = lock(watch).dialect;
        let dialect = known.or_else(|| Dialect::of_request(&host, &path, text));
        lock(watch).dialect = dialect;
        if let Some(dialect) = dialect
            && let Some(exhausted) = self.admit(flow, watch, dialect, text)
        {
            return Err(bill::exhausted(dialect, &exhausted));
        }
        // What is found in all of it, each time: what is taken out or refused in one turn comes again in the next.
        let mut looked = self.history.look(&self.scanner, dialect, text);
        let mut found = std::mem::take(&mut looked.leaving);
        if decoded.is_some() {
            // Decoders pass over what follows the end of a coding.
            found.extend(self.scanner.scan(Kind::Outbound, &body));
        }
        found.retain(|finding| !self.redactor.is_ours(text, finding));
        if dialect.is_some() {
            // What a model wants to run was judged when it said so, or is below, where a server is asked to.
            found.retain(|finding| finding.category != Category::Command);
        }
        if let Some(dialect) = dialect {
            self.read_history(flow, watch, round, dialect, text, &mut looked)?;
        }
        let mut changed = self.body(flow, round, dialect, found, text)?;
        if let Some(dialect) = dialect {
            let text = changed.as_deref().unwrap_or(text);
            if dialect == Dialect::Mcp {
                self.asked_of_server(flow, round, text)?;
            }
            changed = repair_request(dialect, text, &lock(&self.blocked)).or(changed);
        }
        self.history.remember(looked);
        if let Some(changed) = changed {
            flow.request.set_body(changed);
        }
        Ok(())
    }

    /// Judges a body; what it is without what was taken out, if something was.
    fn body(
        &self,
        flow: &mut Flow,
        round: &mut Round,
        dialect: Option<Dialect>,
        found: Vec<Finding>,
        text: &[u8],
    ) -> Result<Option<Vec<u8>>, Step> {
        let place = Place::RequestBody;
        let mut ruling = self.weigh(flow, &round.standing, place, found, None, None);
        ruling.repeats = dialect.is_some();
        match self.act(flow, ruling, &mut round.warnings) {
            Act::Pass => Ok(None),
            Act::Refuse(reason) => Err(refusal(flow, &reason)),
            Act::Ask(ruling) => {
                round.asks.push(ruling);
                Ok(None)
            }
            Act::Redact(ruling) => {
                let text = self.redact_body(flow, round, &ruling, dialect, text);
                let (text, done) = match text {
                    Ok(text) => (text, Ok(())),
                    Err(why) => (Vec::new(), Err(why)),
                };
                match self.redacted(flow, ruling, done) {
                    Ok(ask) => {
                        round.asks.extend(ask);
                        Ok(Some(text))
                    }
                    Err(reason) => Err(refusal(flow, &reason)),
                }
            }
        }
    }

    /// What tools answered in the turns before: whether it gives orders.
    fn read_history(
        &self,
        flow: &mut Flow,
        watch: &Mutex<Watch>,
        round: &mut Round,
        dialect: Dialect,
        text: &[u8],
        looked: &mut Looked,
    ) -> Result<(), Step> {
        let found = std::mem::take(&mut looked.answered);
        let previous = match dialect {
            Dialect::OpenAiResponses => {
                let inner = skim::object_of(text, "response").unwrap_or(text);
                skim::text_of(inner, "previous_response_id")
            }
            _ => None,
        };
        let went_before = previous.is_some_and(|previous| lock(&self.tainted).has(&previous));
        self.orders(flow, watch, round, found, went_before)
    }

    /// Orders in what tools answered taint the conversation.
    fn orders(
        &self,
        flow: &mut Flow,
        watch: &Mutex<Watch>,
        round: &mut Round,
        found: Vec<Finding>,
        went_before: bool,
    ) -> Result<(), Step> {
        if went_before || !found.is_empty() {
            round.standing.tainted = true;
            lock(watch).standing.tainted = true;
        }
        if found.is_empty() {
            return Ok(());
        }
        let place = Place::ToolResult;
        let mut ruling = self.weigh(flow, &round.standing, place, found, None, None);
        ruling.repeats = true;
        if ruling.decision().action == Action::Allow && ruling.decision().rule.is_none() {
            // Not prevention: whoever decides about calls may want to know.
            self.forget_told(flow, &mut ruling);
            if let Some(worst) = ruling.findings.iter().max_by_key(|f| f.severity) {
                let worst = worst.rule.to_string();
                self.report(flow, &ruling, Fate::Passed, &worst);
            }
            return Ok(());
        }
        match self.act(flow, ruling, &mut round.warnings) {
            Act::Refuse(reason) => Err(refusal(flow, &reason)),
            Act::Ask(ruling) => {
                round.asks.push(ruling);
                Ok(())
            }
            Act::Pass | Act::Redact(_) => Ok(()),
        }
    }

    /// What a client asks of an MCP server.
    fn asked_of_server(&self, flow: &mut Flow, round: &mut Round, text: &[u8]) -> Result<(), Step> {
        if let Some(why) = why_unread(flow, text)
            && let Some(reason) = self.unread(flow, Place::RequestBody, &why)
        {
            return Err(refusal(flow, &reason));
        }
        let requests = mcp::read_requests(text);
        let alone = requests.len() == 1;
        for request in requests {
            let facts = request.call.as_ref().map(CallFacts::of);
            if let Some(call) = &request.call
                && let Arguments::Malformed { why, .. } = &call.arguments
                && let Some(reason) = self.unread(flow, Place::ToolCall(call.name.clone()), why)
            {
                return Err(refusal(flow, &reason));
            }
            let found = match &request.call {
                // Secrets in it were found in the body.
                Some(call) => self.commands_in(call),
                None => Vec::new(),
            };
            let place = match &request.call {
                Some(call) => Place::ToolCall(call.name.clone()),
                None => Place::RequestBody,
            };
            let (standing, method) = (&round.standing, Some(&*request.method));
            let ruling = self.weigh(flow, standing, place, found, facts.as_ref(), method);
            let reason = match self.act(flow, ruling, &mut round.warnings) {
                Act::Pass => continue,
                Act::Ask(ruling) => {
                    round.asks.push(ruling);
                    continue;
                }
                Act::Refuse(reason) => reason,
                Act::Redact(ruling) => {
                    self.not_redacted(flow, &ruling, "a command is not cut out of a request")
                }
            };
            let is_call = alone && request.call.is_some();
            let id = request.id.filter(|_| is_call);
            let reply = id.and_then(|id| {
                let reason = format!("Tollgate refused this tool call: {reason}.");
                let reply = Reply::new(200).body(mcp::refusal(&id, &reason));
                reply.header("Content-Type", "application/json").ok()
            });
            return Err(match reply {
                Some(reply) => Step::respond(reply),
                None => refusal(flow, &reason),
            });
        }
        Ok(())
    }

    fn commands_in(&self, call: &ToolCall) -> Vec<Finding> {
        let mut found = Vec::new();
        for command in &call.facets().commands {
            let command = command.as_bytes();
            let all = self.scanner.scan(Kind::Command, command);
            // A command is one, whatever stands in it.
            found.extend(all.into_iter().filter(|finding| {
                finding.category == Category::Command || !self.redactor.is_ours(command, finding)
            }));
        }
        found
    }

    /// Decides about a tool call; or what a person is to be asked, and what follows if it may go on.
    fn decide(
        &self,
        flow: &mut Flow,
        standing: &Standing,
        originals: &Originals,
        call: &ToolCall,
    ) -> Result<Decision, Box<Asks>> {
        let arguments = call.arguments.to_text();
        let mut found = self.scanner.scan(Kind::Outbound, arguments.as_bytes());
        found.retain(|finding| !self.redactor.is_ours(arguments.as_bytes(), finding));
        found.extend(self.commands_in(call));
        let block = |reason: String| {
            Ok(Decision::block(format!(
                "Tollgate refused this tool call: {reason}."
            )))
        };
        let ask = |ruling, allowed| {
            Err(Box::new(Asks {
                call: call.call,
                ruling,
                allowed,
            }))
        };
        let facts = match standing.policy.reads_calls() || !originals.is_empty() {
            true => CallFacts::of(call),
            false => CallFacts::unread(call),
        };
        let place = Place::ToolCall(call.name.clone());
        if Self::would_send(originals, &facts, &call.arguments)
            && self.config.enforcement == Enforcement::Enforce
        {
            let hosts = facts.hosts().join(", ");
            let reason = format!("it would send what was redacted to {hosts}");
            self.tell(flow, place, true, &reason);
            return block(reason);
        }
        let ruling = self.weigh(flow, standing, place, found, Some(&facts), None);
        match self.act(flow, ruling, &mut Vec::new()) {
            Act::Pass => Ok(Decision::Allow),
            Act::Refuse(reason) => block(reason),
            Act::Ask(ruling) => ask(ruling, Decision::Allow),
            Act::Redact(ruling) => match self.redact_call(flow, standing, &ruling, call, &facts) {
                Ok(arguments) => {
                    let allowed = Decision::Redact { arguments };
                    match self.redacted(flow, ruling, Ok(())) {
                        Ok(Some(ruling)) => ask(ruling, allowed),
                        Ok(None) => Ok(allowed),
                        Err(reason) => block(reason),
                    }
                }
                Err(why) => block(self.not_redacted(flow, &ruling, &why)),
            },
        }
    }

    /// Puts bytes of an answer through the gate, and decides what it asks.
    fn through_gate(&self, flow: &mut Flow, watch: &mut Watch, data: &[u8], last: bool) -> Step {
        let Watch {
            gate: Some(gated),
            bill,
            ..
        } = watch
        else {
            return Step::Continue;
        };
        let decoded = gated.decode(data, last);
        if let Err(error) = &decoded {
            let refused = self.unread(flow, Place::Answer, &error.to_string());
            if refused.is_some() {
                // The client can't be given the rest as it came: it was promised another coding.
                return Step::close("the answer can't be decoded");
            }
            gated.broken = true;
        }
        let mut events = Vec::new();
        match &mut gated.gate {
            Some(gate) => {
                gate.feed(&gated.plain, &mut gated.out, &mut events);
                if last {
                    gate.finish(&mut gated.out, &mut events);
                }
            }
            None => gated.out.extend_from_slice(&gated.plain),
        }
        self.note_usage(flow, bill, &events, last);
        gated.pending.queue.extend(events);
        gated.last = last;
        self.go_on(flow, watch)
    }

    /// Decides what a gate in a body asks, and lets go of what it let go of.
    fn go_on(&self, flow: &mut Flow, watch: &mut Watch) -> Step {
        let Watch {
            gate: Some(gated),
            dialect,
            standing,
            originals,
            ended,
            ..
        } = watch
        else {
            return Step::Continue;
        };
        let Gated {
            gate,
            pending,
            out,
            last,
            ..
        } = &mut **gated;
        if let Some(answers) = gate {
            let mut settled = self.settle(flow, standing, originals, answers, pending, out);
            if *last && matches!(settled, Settled::Done) {
                settled = self.said_all(flow, standing, &mut pending.said);
            }
            match settled {
                Settled::Done => {}
                Settled::Asks(asks) => {
                    let alive = answers.keep_alive().map(|bytes| KeepAlive {
                        every: KEEP_ALIVE,
                        bytes: bytes.into(),
                    });
                    return self.ask_about_call(flow, *asks).keeping_alive(alive);
                }
                // Nothing of an answer that comes whole has been let go.
                Settled::Refused(reason) if *last && answers.framing() == Some(Framing::Json) => {
                    let text = format!("[Tollgate refused this answer: {reason}.]");
                    *out = refusal_body(answers.dialect().or(*dialect), &text).into_bytes();
                    *gate = None;
                }
                Settled::Refused(reason) => {
                    *ended = true;
                    return Step::close(format!("refused: {reason}"));
                }
            }
        }
        let mut out = std::mem::take(&mut gated.out);
        if let Some(restorer) = &mut gated.restorer {
            let mut restored = Vec::with_capacity(out.len());
            restorer.feed(&out, &mut restored);
            if gated.last {
                restorer.finish(&mut restored);
            }
            out = restored;
        }
        if out.is_empty() && !gated.last {
            return Step::Drop;
        }
        Step::Replace(Bytes::from(out))
    }

    /// Makes an answer wait for a person.
    fn ask_about_call(&self, flow: &mut Flow, asks: Asks) -> Step {
        let Asks {
            call,
            ruling,
            allowed,
        } = asks;
        self.report(flow, &ruling, Fate::Passed, &ruling.what());
        let Some((question, ruling)) = question(&[ruling], Direction::Response) else {
            return Step::close("nobody can be asked");
        };
        let screen = self.clone();
        let answer: Answer = Arc::new(move |resume| {
            let (screen, ruling) = (screen.clone(), ruling.clone());
            let allowed = resume.then(|| allowed.clone());
            Step::edit(move |flow| screen.answered(flow, call, &ruling, allowed))
        });
        self.person.ask(flow, question, answer)
    }

    /// A person has decided about a call, or the deadline. `allowed`: that it goes on, and how.
    fn answered(
        &self,
        flow: &mut Flow,
        call: CallId,
        ruling: &Ruling,
        allowed: Option<Decision>,
    ) -> Step {
        let Some(watch) = self.watch(flow.id) else {
            return Step::close("what was held is gone");
        };
        let reason = self.report_answer(flow, ruling, allowed.is_some());
        let decision = allowed.unwrap_or_else(|| {
            Decision::block(format!("Tollgate refused this tool call: {reason}."))
        });
        let mut watch = lock(&watch);
        let mut events = Vec::new();
        if let Some(gated) = &mut watch.gate {
            if let Some(gate) = &mut gated.gate {
                gate.resolve(call, decision, &mut gated.out, &mut events);
            }
            gated.pending.queue.extend(events);
            return self.go_on(flow, &mut watch);
        }
        if let Some(socket) = &mut watch.socket {
            let out = &mut socket.out;
            socket.gate.resolve(call, decision, out, &mut events);
            socket.pending.queue.extend(events);
        }
        self.deliver(flow, &mut watch, None)
    }

    /// Decides what a gate asks, and reports what it did by itself. What a person has to decide stops it.
    fn settle(
        &self,
        flow: &mut Flow,
        standing: &mut Standing,
        originals: &Originals,
        gate: &mut Gate,
        pending: &mut Pending,
        out: &mut impl Output,
    ) -> Settled {
        while let Some(event) = pending.queue.pop_front() {
            match event {
                GateEvent::Decide(call) => {
                    // What was said before a call counts when it is decided about.
                    if !standing.tainted && pending.said.taints_so_far(&self.scanner) {
                        self.taint(standing, &pending.said);
                    }
                    let decision = match self.decide(flow, standing, originals, &call) {
                        Ok(decision) => decision,
                        Err(asks) => return Settled::Asks(asks),
                    };
                    let mut more = Vec::new();
                    gate.resolve(call.call, decision, out, &mut more);
                    pending.queue.extend(more);
                }
                GateEvent::Blocked(blocked) => {
                    if blocked.by_failure {
                        let place = Place::ToolCall(blocked.name.clone());
                        self.tell(flow, place, true, &blocked.reason);
                    }
                    lock(&self.blocked).remember(blocked);
                }
                GateEvent::Failed { fault, passed } => {
                    self.tell(flow, Place::Answer, !passed, &fault.to_string());
                }
                GateEvent::Seen(Event::Start { id, .. }) => {
                    pending.said.begin(id);
                    if standing.tainted {
                        self.taint(standing, &pending.said);
                    }
                }
                GateEvent::Seen(Event::TextDelta { block, text }) => {
                    let mut found = Vec::new();
                    pending.said.hear(&self.scanner, block, &text, &mut found);
                    if let Some(reason) = self.said(flow, standing, &pending.said, found) {
                        return Settled::Refused(reason);
                    }
                }
                GateEvent::Seen(Event::End) => {
                    if let Settled::Refused(reason) =
                        self.said_all(flow, standing, &mut pending.said)
                    {
                        return Settled::Refused(reason);
                    }
                }
                GateEvent::Seen(_) => {}
            }
        }
        Settled::Done
    }

    /// The texts of an answer have ended.
    fn said_all(&self, flow: &mut Flow, standing: &mut Standing, said: &mut Said) -> Settled {
        let mut found = Vec::new();
        said.finish(&self.scanner, &mut found);
        match self.said(flow, standing, said, found) {
            Some(reason) => Settled::Refused(reason),
            None => Settled::Done,
        }
    }

    /// Judges header or trailer fields, but for those that carry credentials.
    fn fields(
        &self,
        flow: &mut Flow,
        round: &mut Round,
        place: fn(String) -> Place,
        of: impl Fn(&Request) -> Option<&HeaderList>,
    ) -> Result<(), Step> {
        let fields: Vec<(usize, String, Vec<u8>)> = of(&flow.request)
            .into_iter()
            .flat_map(HeaderList::iter)
            .enumerate()
            .filter(|(_, (name, _))| !credential::carries(name))
            .map(|(at, (name, value))| {
                (
                    at,
                    String::from_utf8_lossy(name).into_owned(),
                    value.to_vec(),
                )
            })
            .collect();
        for (at, name, value) in fields {
            let mut found = self.scanner.scan(Kind::Outbound, &value);
            found.retain(|finding| !self.redactor.is_ours(&value, finding));
            if found.is_empty() {
                continue;
            }
            let ruling = self.weigh(flow, &round.standing, place(name), found, None, None);
            match self.act(flow, ruling, &mut round.warnings) {
                Act::Pass => {}
                Act::Refuse(reason) => return Err(refusal(flow, &reason)),
                Act::Ask(ruling) => round.asks.push(ruling),
                Act::Redact(ruling) => {
                    let done = self.redact_field(flow, round, &ruling, at);
                    match self.redacted(flow, ruling, done) {
                        Ok(ask) => round.asks.extend(ask),
                        Err(reason) => return Err(refusal(flow, &reason)),
                    }
                }
            }
        }
        Ok(())
    }

    /// Judges where a request goes.
    fn url(&self, flow: &mut Flow, round: &mut Round) -> Result<(), Step> {
        let line = request_line(flow);
        let mut found = self.scanner.scan(Kind::Outbound, &line);
        let host = goes_to(flow);
        found.retain(|finding| {
            !credential::belongs(&line, host, finding) && !self.redactor.is_ours(&line, finding)
        });
        let ruling = self.weigh(flow, &round.standing, Place::Url, found, None, None);
        match self.act(flow, ruling, &mut round.warnings) {
            Act::Pass => Ok(()),
            Act::Refuse(reason) => Err(refusal(flow, &reason)),
            Act::Ask(ruling) => {
                round.asks.push(ruling);
                Ok(())
            }
            Act::Redact(ruling) => {
                let done = self.redact_url(flow, round, &ruling);
                match self.redacted(flow, ruling, done) {
                    Ok(ask) => {
                        round.asks.extend(ask);
                        Ok(())
                    }
                    Err(reason) => Err(refusal(flow, &reason)),
                }
            }
        }
    }

    /// `restores`: what was taken out comes back in the answer. Then every call is looked at: one that only reads can
    /// send it, too.
    fn gate_options(&self, restores: bool) -> GateOptions {
        GateOptions {
            on_failure: match self.closed() {
                true => crate::gate::OnFailure::Closed,
                false => crate::gate::OnFailure::Open,
            },
            stream_at_once: match restores {
                true => Vec::new(),
                false => self.config.stream_at_once.clone(),
            },
            ..GateOptions::default()
        }
    }

    /// A message that a client sends.
    fn sent(&self, flow: &mut Flow, watch: &mut Watch, message: Message<'_>) -> Step {
        let mut found = self.scanner.scan(Kind::Outbound, message.data);
        found.retain(|finding| !self.redactor.is_ours(message.data, finding));
        let dialect = watch.dialect;
        if dialect.is_some() {
            // It was judged when the model said so.
            found.retain(|finding| finding.category != Category::Command);
        }
        let standing = &watch.standing;
        let ruling = self.weigh(flow, standing, Place::Message, found, None, None);
        let mut changed = None;
        let mut ask = None;
        match self.act(flow, ruling, &mut Vec::new()) {
            Act::Pass => {}
            Act::Refuse(reason) => return Step::close(format!("refused: {reason}")),
            Act::Ask(ruling) => ask = Some(ruling),
            Act::Redact(ruling) => {
                let mut round = Round::new(standing.clone());
                round.originals = watch.originals.clone();
                let text = self.redact_body(flow, &mut round, &ruling, dialect, message.data);
                let done = text.map(|text| changed = Some(text));
                match self.redacted(flow, ruling, done) {
                    Ok(asked) => ask = asked,
                    Err(reason) => return Step::close(format!("refused: {reason}")),
                }
                watch.originals = round.originals;
            }
        }
        if let (MessageKind::Text, Some(dialect)) = (message.kind, dialect) {
            let text = changed.as_deref().unwrap_or(message.data);
            changed = repair_request(dialect, text, &lock(&self.blocked)).or(changed);
        }
        let step = match changed {
            Some(changed) => Step::Replace(Bytes::from(changed)),
            None => Step::Continue,
        };
        match ask {
            None => step,
            Some(ruling) => self.ask_about_message(flow, ruling, step),
        }
    }

    /// Makes a message wait for a person.
    fn ask_about_message(&self, flow: &mut Flow, ruling: Ruling, step: Step) -> Step {
        self.report(flow, &ruling, Fate::Passed, &ruling.what());
        let Some((question, ruling)) = question(&[ruling], Direction::Request) else {
            return Step::close("nobody can be asked");
        };
        let replaced = match step {
            Step::Replace(bytes) => Some(bytes),
            _ => None,
        };
        let screen = self.clone();
        let answer: Answer = Arc::new(move |resume| {
            let (screen, ruling, replaced) = (screen.clone(), ruling.clone(), replaced.clone());
            Step::edit(move |flow| {
                let reason = screen.report_answer(flow, &ruling, resume);
                match (resume, replaced) {
                    (false, _) => Step::close(format!("refused: {reason}")),
                    (true, Some(bytes)) => Step::Replace(bytes),
                    (true, None) => Step::Continue,
                }
            })
        });
        self.person.ask(flow, question, answer)
    }

    /// A message that an origin sends.
    fn received(&self, flow: &mut Flow, watch: &mut Watch, message: Message<'_>) -> Step {
        let Watch {
            dialect,
            socket,
            bill,
            standing,
            ..
        } = watch;
        let socket = socket.get_or_insert_with(|| {
            // It stands there before it is known what later messages have taken out of them.
            let restores = standing.policy.restores();
            let gate = Gate::for_websocket(*dialect, self.gate_options(restores));
            let mut socket = Socket::new(gate);
            socket.pending.said = self.listen(standing);
            Box::new(socket)
        });
        if message.injected {
            socket.queued = socket.queued.saturating_sub(1);
            return Step::Continue;
        }
        if !matches!(message.kind, MessageKind::Text | MessageKind::Binary) {
            return Step::Continue;
        }
        let mut events = Vec::new();
        socket.gate.feed(message.data, &mut socket.out, &mut events);
        self.note_usage(flow, bill, &events, Self::ends_answer(&events));
        socket.pending.queue.extend(events);
        self.deliver(flow, watch, Some(message.data))
    }

    /// Decides what the gate of a WebSocket asks, and sends what it let go of. `came` is the message in whose place
    /// that goes, if it goes in its place.
    fn deliver(&self, flow: &mut Flow, watch: &mut Watch, came: Option<&[u8]>) -> Step {
        let Watch {
            socket: Some(socket),
            standing,
            originals,
            ..
        } = watch
        else {
            return Step::Continue;
        };
        let Socket {
            gate, pending, out, ..
        } = &mut **socket;
        match self.settle(flow, standing, originals, gate, pending, out) {
            Settled::Done => {}
            Settled::Asks(asks) => return self.ask_about_call(flow, *asks),
            Settled::Refused(reason) => return Step::close(format!("refused: {reason}")),
        }
        let mut out = std::mem::take(&mut socket.out.0);
        if !originals.is_empty() {
            let restorer = socket
                .restorer
                .get_or_insert_with(|| Restorer::for_messages(Originals::default()));
            restorer.know(originals);
            let mut restored = Messages::default();
            for message in out {
                restorer.feed(&message, &mut restored);
            }
            out = restored.0;
        }
        if socket.queued == 0 && out.len() <= 1 {
            return match out.pop() {
                Some(same) if Some(same.as_slice()) == came => Step::Continue,
                Some(other) => Step::Replace(Bytes::from(other)),
                None => Step::Drop,
            };
        }
        // Several leave in the place of one, behind those that haven't left yet.
        let handle = flow.websocket.as_ref().and_then(|ws| ws.handle()).cloned();
        for message in out {
            let sent = match (&handle, String::from_utf8(message)) {
                (Some(handle), Ok(text)) => handle.send_text(Direction::Response, text).is_ok(),
                (Some(handle), Err(bytes)) => handle
                    .send_binary(Direction::Response, bytes.into_bytes())
                    .is_ok(),
                (None, _) => false,
            };
            if !sent {
                return Step::close("what was held back can't be sent");
            }
            socket.queued += 1;
        }
        Step::Drop
    }

    /// A piece of a request's body that streams.
    fn streamed(&self, flow: &mut Flow, watch: &mut Watch, piece: Piece<'_>) -> Step {
        let Watch {
            request: Some(stream),
            standing,
            ..
        } = watch
        else {
            return Step::Continue;
        };
        let mut found = Vec::new();
        let read = stream.scan(&self.scanner, piece, &mut found);
        // What would be found if nothing followed counts only where it refuses: else it is
        // told when it is settled.
        let mut so_far = stream.so_far(&self.scanner);
        if !so_far.is_empty() {
            let place = Place::RequestBody;
            let ruling = self.weigh(flow, standing, place, so_far, None, None);
            let decided = ruling.judgement.findings.iter();
            let refuses = decided.map(|one| !matches!(one.action, Action::Allow | Action::Warn));
            so_far = ruling
                .findings
                .iter()
                .cloned()
                .zip(refuses)
                .filter(|(_, r)| *r)
                .map(|(f, _)| f)
                .collect();
        }
        found.extend(so_far);
        let mut refused = self.judge(flow, standing, Place::RequestBody, found);
        if let Err(error) = &read {
            let why = error.to_string();
            refused = refused.or_else(|| self.unread(flow, Place::RequestBody, &why));
            stream.let_go();
        }
        if piece.last && refused.is_none() {
            let fields = flow.request.trailers.clone().unwrap_or_default();
            for (name, value) in fields.iter().filter(|(name, _)| !credential::carries(name)) {
                let place = Place::Trailer(String::from_utf8_lossy(name).into_owned());
                let found = self.scanner.scan(Kind::Outbound, value);
                refused = refused.or_else(|| self.judge(flow, standing, place, found));
            }
        }
        let step = match &refused {
            Some(reason) => Step::close(format!("refused: {reason}")),
            None => stream.release(piece),
        };
        watch.ended = refused.is_some();
        if read.is_err() {
            watch.request = None;
        }
        step
    }

    /// A host that stands behind another one.
    fn fronted(&self, flow: &mut Flow, round: &mut Round, found: Finding) -> Result<(), Step> {
        let ruling = self.weigh(flow, &round.standing, Place::Url, vec![found], None, None);
        let reason = match self.act(flow, ruling, &mut round.warnings) {
            Act::Pass => return Ok(()),
            Act::Ask(ruling) => {
                round.asks.push(ruling);
                return Ok(());
            }
            Act::Refuse(reason) => reason,
            Act::Redact(ruling) => self.not_redacted(flow, &ruling, "it stands in the host's name"),
        };
        // A browser that uses a connection for another host of the same certificate tries again in one of its own (RFC
        // 9113 section 9.1.2).
        Err(refusal_with(421, flow, &reason))
    }

    /// The whole of a request, but for a body that streams.
    fn look(&self, flow: &mut Flow, watch: &Mutex<Watch>, round: &mut Round) -> Result<(), Step> {
        self.url(flow, round)?;
        self.fields(flow, round, Place::Header, |request| {
            Some(request.headers())
        })?;
        if !self.scanner.is_allowed(fronting::RULE)
            && let Some(found) = fronting::fronted(flow)
        {
            self.fronted(flow, round, found)?;
        }
        if self.closed() && !is_websocket(flow) && flow.request.head.upgrade().is_some() {
            // What another protocol carries can't be read. An origin that is not asked for one goes
            // on in HTTP (RFC 9110 section 7.8).
            flow.request.headers_mut().remove("upgrade");
        }
        self.fields(flow, round, Place::Trailer, |request| {
            request.trailers.as_ref()
        })?;
        if flow.request.body().is_some() {
            return self.whole_request(flow, watch, round);
        }
        let dialect = lock(watch).dialect;
        if let Some(dialect) = dialect
            && !is_websocket(flow)
            && let Some(exhausted) = self.admit(flow, watch, dialect, b"")
        {
            return Err(bill::exhausted(dialect, &exhausted));
        }
        let limit = OutputLimit {
            total: self.config.decoded,
            per_feed: 32 << 20,
        };
        let codings = flow.request.headers().get_all("content-encoding");
        match Decoder::new(codings, limit) {
            Ok(decoder) => {
                let holding = match self.config.enforcement {
                    Enforcement::Monitor => Holding::Nothing,
                    Enforcement::Enforce if is_interactive(flow) => Holding::Interactive,
                    Enforcement::Enforce => Holding::Unjudged,
                };
                let stream = Stream::new(&self.scanner, decoder, holding);
                lock(watch).request = Some(stream);
                Ok(())
            }
            Err(error) => {
                let why = error.to_string();
                match self.unread(flow, Place::RequestBody, &why) {
                    Some(reason) => Err(refusal(flow, &reason)),
                    None => Ok(()),
                }
            }
        }
    }
}

impl Interceptor for Screen {
    fn name(&self) -> &str {
        "screen"
    }

    fn on_failure(&self) -> OnFailure {
        match self.config.enforcement {
            Enforcement::Enforce => self.config.on_failure,
            Enforcement::Monitor => OnFailure::Open,
        }
    }

    /// With a ledger: the requests that its budgets refused, and what the answers of models have used.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Some(ledger) = &self.ledger else {
            return Vec::new();
        };
        let total = ledger.total();
        vec![
            ("budget_refused", ledger.refused()),
            ("answers", total.answers),
            ("input_tokens", total.input),
            ("output_tokens", total.output),
            ("cache_read_tokens", total.cache_read),
            ("cache_write_tokens", total.cache_write),
        ]
    }

    fn interest(&self, flow: &Flow) -> Interest {
        if flow.kind != FlowKind::Http {
            return Interest::NONE;
        }
        let path = String::from_utf8_lossy(flow.request.path());
        let dialect = Dialect::of_path(&path);
        let headers = flow.request.headers();
        let length = headers.content_length();
        let content_type = headers.get("content-type").map(<[u8]>::to_ascii_lowercase);
        let content_type = content_type.as_deref().unwrap_or_default();
        let is_json = content_type.windows(4).any(|w| w == b"json");
        let is_document = content_type.starts_with(b"application/json")
            || content_type.windows(5).any(|w| w == b"+json");
        let policy = self.policy.current();
        let redacts = self.enforces() && policy.may_redact_body(flow);
        let whole = match length {
            // What is to be written anew is read whole.
            Some(length) if dialect.is_some() || redacts => {
                length <= self.config.collect.max(MODEL_COLLECT)
            }
            Some(length) => length <= self.config.collect,
            // As well, up to what the engine collects; it refuses what is longer. Where each message may wait for the
            // answer to the one before, there is no whole.
            None if redacts && !is_interactive(flow) => true,
            None => dialect.is_some() || is_document || !may_have_body(flow),
        };
        let mut open = lock(&self.open);
        if open.len() < MAX_FLOWS {
            open.insert(
                flow.id,
                Arc::new(Mutex::new(Watch {
                    dialect,
                    request: None,
                    gate: None,
                    socket: None,
                    bill: None,
                    standing: Standing {
                        policy: Arc::clone(&policy),
                        tainted: false,
                    },
                    warnings: Vec::new(),
                    originals: Originals::default(),
                    ended: false,
                })),
            );
        }
        let body = if whole {
            Interest::REQUEST_BODY
        } else if self.config.enforcement == Enforcement::Enforce {
            Interest::REQUEST | Interest::EDIT_REQUEST_DATA
        } else {
            Interest::REQUEST | Interest::REQUEST_DATA
        };
        if is_websocket(flow) {
            return body | Interest::EDIT_MESSAGES | Interest::END;
        }
        // A gateway has paths of its own: any JSON may turn out to be a request to a model. What is
        // none keeps its answer's framing.
        let restores = policy.restores();
        let answer = if dialect.is_some() || (is_json && length != Some(0)) || restores {
            Interest::RESPONSE | Interest::EDIT_RESPONSE_DATA
        } else if policy.any_action(|action| action == Action::Warn) {
            Interest::RESPONSE
        } else {
            Interest::NONE
        };
        body | answer | Interest::END
    }

    fn request(&self, flow: &mut Flow) -> Step {
        let Some(watch) = self.watch(flow.id) else {
            return if self.closed() {
                refusal(flow, "too many flows are being looked at")
            } else {
                Step::Continue
            };
        };
        let mut round = Round::new(lock(&watch).standing.clone());
        let looked = self.look(flow, &watch, &mut round);
        let mut kept = lock(&watch);
        kept.warnings = round.warnings;
        kept.originals = round.originals;
        drop(kept);
        match looked {
            Err(step) => step,
            Ok(()) if round.asks.is_empty() => Step::Continue,
            Ok(()) => self.ask_about_request(flow, round.asks),
        }
    }

    fn response(&self, flow: &mut Flow) -> Step {
        let Some(watch) = self.watch(flow.id) else {
            return Step::Continue;
        };
        let mut watch = lock(&watch);
        let Some(response) = &mut flow.response else {
            return Step::Continue;
        };
        // Whoever reads it must be able to trust it.
        response.headers_mut().remove(WARNING_HEADER);
        for warning in std::mem::take(&mut watch.warnings) {
            let name = WARNING_HEADER.as_bytes();
            // Written so that it can stand in a header.
            let _ = response.headers_mut().append(name, warning.as_bytes());
        }
        let content_type = response.headers().get("content-type");
        let content_type = content_type.map(|v| String::from_utf8_lossy(v).into_owned());
        let status = response.status();
        let options = self.gate_options(!watch.originals.is_empty());
        let gate = Gate::for_response(watch.dialect, status, content_type.as_deref(), options);
        let switches = status == 101 || status == 204 || status == 304;
        let restorer = (!watch.originals.is_empty() && !switches).then(|| {
            let originals = watch.originals.clone();
            Restorer::new(originals, content_type.as_deref(), watch.dialect)
        });
        if gate.is_none() && restorer.is_none() {
            return Step::Continue;
        }
        // A stream may be as long as it likes: what is held of it is bounded elsewhere.
        let limit = OutputLimit {
            total: u64::MAX,
            per_feed: 32 << 20,
        };
        let codings = response.headers().get_all("content-encoding");
        let decoder = match Decoder::new(codings, limit) {
            Ok(decoder) => decoder,
            Err(error) => {
                return match self.unread(flow, Place::Answer, &error.to_string()) {
                    Some(reason) => {
                        Step::respond(Reply::new(502).text(format!("Tollgate: {reason}\n")))
                    }
                    None => Step::Continue,
                };
            }
        };
        for name in STALE_HEADERS {
            response.headers_mut().remove(name);
        }
        let mut gated = Gated::new(gate, restorer, decoder);
        gated.pending.said = self.listen(&watch.standing);
        watch.gate = Some(Box::new(gated));
        Step::Continue
    }

    fn edits_response(&self, flow: &Flow) -> bool {
        self.watch(flow.id)
            .is_some_and(|watch| lock(&watch).gate.is_some())
    }

    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        let Some(watch) = self.watch(flow.id) else {
            return Step::Continue;
        };
        let mut watch = lock(&watch);
        if watch.ended {
            return Step::close("it was refused");
        }
        match piece.direction {
            Direction::Request => self.streamed(flow, &mut watch, piece),
            Direction::Response => self.through_gate(flow, &mut watch, piece.data, piece.last),
        }
    }

    fn message(&self, flow: &mut Flow, message: Message<'_>) -> Step {
        if !is_websocket(flow) {
            return Step::Continue;
        }
        let Some(watch) = self.watch(flow.id) else {
            return Step::Continue;
        };
        if message.direction == Direction::Request
            && let Some(step) = self.admit_message(flow, &watch, message.data)
        {
            return step;
        }
        let mut watch = lock(&watch);
        match message.direction {
            Direction::Request => self.sent(flow, &mut watch, message),
            Direction::Response => self.received(flow, &mut watch, message),
        }
    }

    fn end(&self, flow: &Flow, _outcome: &Outcome) {
        let Some(watch) = lock(&self.open).remove(&flow.id) else {
            return;
        };
        let mut watch = lock(&watch);
        if let Some(bill) = &mut watch.bill {
            // An answer that was cut.
            self.charge(bill);
        }
        self.said_last(flow, &mut watch);
    }
}

/// Whether a request asks for a WebSocket.
fn is_websocket(flow: &Flow) -> bool {
    flow.request.head.upgrade().is_some()
        && flow.request.headers().has_token("upgrade", "websocket")
}

/// Why an MCP server may read something else in a body than is seen here; `None` for what is no MCP (the registration of
/// a client, say).
fn why_unread(flow: &Flow, text: &[u8]) -> Option<String> {
    let mut tape = Tape::default();
    match tape.read(text) {
        Ok(root) => {
            let twice = crate::mcp::is_rpc(root) && crate::mcp::reads_in_two_ways(root);
            twice.then(|| "a member stands in it twice, or nearly".to_owned())
        }
        Err(error) => {
            let content_type = flow.request.headers().get("content-type");
            let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
            let is_json = content_type.windows(4).any(|word| word == b"json");
            is_json.then(|| error.to_string())
        }
    }
}

/// Whether the origin may answer each message before it is sent the next one.
fn is_interactive(flow: &Flow) -> bool {
    let content_type = flow.request.headers().get("content-type");
    let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
    content_type.starts_with(b"application/grpc")
        || content_type.starts_with(b"application/connect+")
}

fn may_have_body(flow: &Flow) -> bool {
    let headers = flow.request.headers();
    headers.contains("transfer-encoding")
        || (flow.request.version >= tollgate_flow::HttpVersion::Http2
            && !matches!(
                flow.request.method(),
                b"GET" | b"HEAD" | b"OPTIONS" | b"DELETE"
            ))
}

/// A body with its content coding undone; `None` if it has none.
fn decode(headers: &HeaderList, body: &[u8], limit: u64) -> Result<Option<Vec<u8>>, String> {
    let limit = OutputLimit {
        total: limit,
        per_feed: usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let decoder = Decoder::new(headers.get_all("content-encoding"), limit);
    let Some(mut decoder) = decoder.map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    let mut plain = Vec::new();
    decoder.feed(body, &mut plain).map_err(|e| e.to_string())?;
    decoder.finish(&mut plain).map_err(|e| e.to_string())?;
    Ok(Some(plain))
}

/// The answer to a refused request: for a program JSON, which says what was seen and what to do.
fn refusal(flow: &Flow, reason: &str) -> Step {
    refusal_with(403, flow, reason)
}

fn refusal_with(status: u16, flow: &Flow, reason: &str) -> Step {
    let body = serde_json::json!({
        "error": {
            "type": "tollgate_refused",
            "message": format!("Tollgate refused this request: {reason}."),
            "flow": flow.id.to_string(),
        }
    });
    let reply = Reply::new(status).body(body.to_string());
    // Constants that are valid headers.
    let reply = reply
        .header("Content-Type", "application/json")
        .and_then(|reply| reply.header("Proxy-Status", "tollgate; error=http_request_denied"));
    match reply {
        Ok(reply) => Step::respond(reply),
        Err(_) => Step::respond(Reply::new(status)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

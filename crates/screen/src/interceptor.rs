//! The scanners and the gate as an interceptor of flows.
//!
//! [`Screen`] looks at what leaves (the URL, the headers, the body, the trailers, the messages of a
//! WebSocket) before it is sent, and stands with a [`Gate`] in the answers of language models: text
//! passes as it comes, a tool call is held until it was judged, and a refused one is replaced in the
//! provider's own shape.
//!
//! | what | read how | refused how |
//! |---|---|---|
//! | a request of known length up to [`ScreenConfig::collect`], JSON of unknown length, or one to a language model up to [`MODEL_COLLECT`] | whole, before it is sent | 403, nothing reaches the origin |
//! | any other request | in pieces; up to 3 KiB wait until they are judged | the connection is cut; what was judged before has left |
//! | the same, of gRPC or Connect | in pieces, each judged as it comes | the same |
//! | a message of a WebSocket, towards the origin | whole | both sides are closed with code 1008 |
//! | a tool call in a model's answer, or on a WebSocket | whole, while it is held | a text in its place; the answer goes on |
//!
//! Texts of tools in requests to a model are looked at for injection. That is reported and marks the
//! flow; it refuses nothing by itself.

mod answer;
mod credential;
mod fronting;
mod outbound;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollgate_flow::record::FINDING;
use tollgate_flow::{
    Bytes, Direction, Flow, FlowId, FlowKind, HeaderList, Interceptor, Interest, Message,
    MessageKind, OnFailure, Outcome, Piece, Reply, Request, Step,
};
use tollgate_wire::coding::{Decoder, OutputLimit};

use self::answer::{Gated, Socket};
use self::outbound::{Holding, Stream};
use crate::gate::{
    BlockedCalls, Decision, Gate, GateEvent, GateOptions, Output, STALE_HEADERS, repair_request,
};
use crate::llm::{Dialect, Part, ToolCall, read_request};
use crate::scan::{Category, Confidence, Finding, Kind, Scanner, Severity};

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
    /// The least severe finding that refuses. Default: high.
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
    /// The rule that counts, or why something couldn't be read.
    pub reason: String,
}

/// Where in a flow a finding stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
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
    pub const KINDS: [&'static str; 8] = [
        "url",
        "header",
        "request-body",
        "trailer",
        "message",
        "tool-result",
        "tool-call",
        "answer",
    ];

    /// Which of [`KINDS`](Self::KINDS) it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
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
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => f.write_str("the URL"),
            Self::Header(name) => write!(f, "the header {name}"),
            Self::RequestBody => f.write_str("the request body"),
            Self::Trailer(name) => write!(f, "the trailer {name}"),
            Self::Message => f.write_str("a WebSocket message"),
            Self::ToolResult => f.write_str("a tool result"),
            Self::ToolCall(name) => write!(f, "a call of the tool {name}"),
            Self::Answer => f.write_str("a model's answer"),
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

/// Screens flows.
///
/// ```
/// use tollgate_flow::Interceptor;
/// use tollgate_screen::{Screen, ScreenConfig};
/// use tollgate_screen::scan::Scanner;
///
/// let screen = Screen::new(Scanner::builtin(), ScreenConfig::default());
/// assert_eq!(screen.name(), "screen");
/// ```
pub struct Screen {
    scanner: Scanner,
    config: ScreenConfig,
    on_verdict: Option<OnVerdict>,
    open: Mutex<HashMap<FlowId, Arc<Mutex<Watch>>>>,
    blocked: Mutex<BlockedCalls>,
}

/// What is kept of a flow while it passes.
struct Watch {
    dialect: Option<Dialect>,
    request: Option<Stream>,
    gate: Option<Box<Gated>>,
    socket: Option<Box<Socket>>,
    /// A finding ended it.
    ended: bool,
}

impl Screen {
    /// Screens with a scanner.
    pub fn new(scanner: Scanner, config: ScreenConfig) -> Self {
        Self {
            scanner,
            config,
            on_verdict: None,
            open: Mutex::default(),
            blocked: Mutex::default(),
        }
    }

    /// Tells each verdict to `on_verdict`.
    #[must_use]
    pub fn on_verdict(mut self, on_verdict: OnVerdict) -> Self {
        self.on_verdict = Some(on_verdict);
        self
    }

    fn closed(&self) -> bool {
        self.config.enforcement == Enforcement::Enforce
            && self.config.on_failure == OnFailure::Closed
    }

    /// Reports findings; whether they refuse.
    fn judge(&self, flow: &mut Flow, place: Place, mut findings: Vec<Finding>) -> Option<String> {
        findings.sort();
        findings.dedup();
        let worst = findings
            .iter()
            .filter(|f| refuses(f, self.config.refuse_from, &place))
            .max_by_key(|f| f.severity)?
            .clone();
        let refused = self.config.enforcement == Enforcement::Enforce;
        let mut reason = format!("{} in {place}", worst.rule);
        if !worst.via.is_empty() {
            reason.push_str(&format!(", behind {}", worst.via.join(", ")));
        }
        self.tell(flow, place, findings, refused, &worst.rule);
        refused.then_some(reason)
    }

    fn tell(
        &self,
        flow: &mut Flow,
        place: Place,
        findings: Vec<Finding>,
        refused: bool,
        rule: &str,
    ) {
        let word = if refused { "refused" } else { "seen" };
        let note = format!("{word}: {rule} in {place}");
        if flow.metadata.len() < 64 {
            flow.metadata.push((FINDING.to_owned(), note));
        }
        if let Some(on_verdict) = &self.on_verdict {
            on_verdict(&Verdict {
                flow: flow.id,
                target: flow.request.target.to_string(),
                place,
                findings,
                refused,
                reason: rule.to_owned(),
            });
        }
    }

    /// Reports what couldn't be read; whether that refuses.
    fn unread(&self, flow: &mut Flow, place: Place, why: &str) -> Option<String> {
        let refused = self.closed();
        let reason = format!("{place} can't be read: {why}");
        self.tell(flow, place, Vec::new(), refused, why);
        refused.then_some(reason)
    }

    fn watch(&self, flow: FlowId) -> Option<Arc<Mutex<Watch>>> {
        lock(&self.open).get(&flow).cloned()
    }

    /// Looks at a request whose body is here.
    fn whole_request(&self, flow: &mut Flow, dialect: Option<Dialect>) -> Result<(), Step> {
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
        let mut found = self.scanner.scan(Kind::Outbound, text);
        if decoded.is_some() {
            // Decoders pass over what follows the end of a coding.
            found.extend(self.scanner.scan(Kind::Outbound, &body));
        }
        if let Some(reason) = self.judge(flow, Place::RequestBody, found) {
            return Err(refusal(flow, &reason));
        }
        let host = flow.request.target.host.clone();
        let path = String::from_utf8_lossy(flow.request.path()).into_owned();
        let dialect = dialect.or_else(|| Dialect::of_request(&host, &path, text));
        if let Some(watch) = self.watch(flow.id) {
            lock(&watch).dialect = dialect;
        }
        let Some(dialect) = dialect else {
            return Ok(());
        };
        if let Ok(conversation) = read_request(dialect, text) {
            let results = conversation.parts.iter().filter_map(|part| match part {
                Part::Result(result) => Some(result.text.as_str()),
                _ => None,
            });
            let mut found = Vec::new();
            for result in results {
                let inbound = self.scanner.scan(Kind::Inbound, result.as_bytes());
                found.extend(
                    inbound
                        .into_iter()
                        .filter(|f| f.category == Category::Injection),
                );
            }
            if let Some(worst) = found.iter().max_by_key(|f| f.severity).cloned() {
                // Not prevention: whoever decides about calls may want to know.
                self.tell(flow, Place::ToolResult, found, false, &worst.rule);
            }
        }
        let repaired = repair_request(dialect, text, &lock(&self.blocked));
        if let Some(repaired) = repaired {
            flow.request.set_body(repaired);
        }
        Ok(())
    }

    /// Decides about a tool call.
    fn decide(&self, flow: &mut Flow, call: &ToolCall) -> Decision {
        let facets = call.facets();
        let mut found = Vec::new();
        for command in &facets.commands {
            found.extend(self.scanner.scan(Kind::Command, command.as_bytes()));
        }
        let arguments = call.arguments.to_text();
        found.extend(self.scanner.scan(Kind::Outbound, arguments.as_bytes()));
        match self.judge(flow, Place::ToolCall(call.name.clone()), found) {
            Some(reason) => Decision::block(format!("Tollgate refused this tool call: {reason}.")),
            None => Decision::Allow,
        }
    }

    /// Puts bytes of an answer through the gate, and decides what it asks.
    fn through_gate(&self, flow: &mut Flow, gated: &mut Gated, data: &[u8], last: bool) -> Step {
        let decoded = gated.decode(data, last);
        if let Err(error) = &decoded {
            let refused = self.unread(flow, Place::Answer, &error.to_string());
            if refused.is_some() {
                // The client can't be given the rest as it came: it was promised another coding.
                return Step::close("the answer can't be decoded");
            }
            gated.broken = true;
        }
        let mut out = Vec::with_capacity(gated.plain.len());
        let mut events = Vec::new();
        gated.gate.feed(&gated.plain, &mut out, &mut events);
        if last {
            gated.gate.finish(&mut out, &mut events);
        }
        self.settle(flow, &mut gated.gate, events, &mut out);
        if out.is_empty() && !last {
            return Step::Drop;
        }
        Step::Replace(Bytes::from(out))
    }

    /// Decides what a gate asks, and reports what it did by itself.
    fn settle(
        &self,
        flow: &mut Flow,
        gate: &mut Gate,
        events: Vec<GateEvent>,
        out: &mut impl Output,
    ) {
        let mut queue: VecDeque<GateEvent> = events.into();
        while let Some(event) = queue.pop_front() {
            match event {
                GateEvent::Decide(call) => {
                    let decision = self.decide(flow, &call);
                    let mut more = Vec::new();
                    gate.resolve(call.call, decision, out, &mut more);
                    queue.extend(more);
                }
                GateEvent::Blocked(blocked) => {
                    if blocked.by_failure {
                        let place = Place::ToolCall(blocked.name.clone());
                        self.tell(flow, place, Vec::new(), true, &blocked.reason);
                    }
                    lock(&self.blocked).remember(blocked);
                }
                GateEvent::Failed { fault, passed } => {
                    self.tell(flow, Place::Answer, Vec::new(), !passed, &fault.to_string());
                }
                GateEvent::Seen(_) => {}
            }
        }
    }

    /// Judges header or trailer fields, but for those that carry credentials.
    fn fields(
        &self,
        flow: &mut Flow,
        place: fn(String) -> Place,
        of: impl Fn(&Request) -> Option<&HeaderList>,
    ) -> Option<String> {
        let fields: Vec<(String, Vec<u8>)> = of(&flow.request)?
            .iter()
            .filter(|(name, _)| !credential::carries(name))
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()))
            .collect();
        fields.into_iter().find_map(|(name, value)| {
            let found = self.scanner.scan(Kind::Outbound, &value);
            self.judge(flow, place(name), found)
        })
    }

    fn gate_options(&self) -> GateOptions {
        GateOptions {
            on_failure: match self.closed() {
                true => crate::gate::OnFailure::Closed,
                false => crate::gate::OnFailure::Open,
            },
            stream_at_once: self.config.stream_at_once.clone(),
            ..GateOptions::default()
        }
    }

    /// A message that a client sends.
    fn sent(&self, flow: &mut Flow, dialect: Option<Dialect>, message: Message<'_>) -> Step {
        let found = self.scanner.scan(Kind::Outbound, message.data);
        if let Some(reason) = self.judge(flow, Place::Message, found) {
            return Step::close(format!("refused: {reason}"));
        }
        if let (MessageKind::Text, Some(dialect)) = (message.kind, dialect)
            && let Some(repaired) = repair_request(dialect, message.data, &lock(&self.blocked))
        {
            return Step::Replace(Bytes::from(repaired));
        }
        Step::Continue
    }

    /// A message that an origin sends.
    fn received(&self, flow: &mut Flow, socket: &mut Socket, message: Message<'_>) -> Step {
        if message.injected {
            socket.queued = socket.queued.saturating_sub(1);
            return Step::Continue;
        }
        if !matches!(message.kind, MessageKind::Text | MessageKind::Binary) {
            return Step::Continue;
        }
        let mut events = Vec::new();
        socket.gate.feed(message.data, &mut socket.out, &mut events);
        self.settle(flow, &mut socket.gate, events, &mut socket.out);
        let mut out = std::mem::take(&mut socket.out.0);
        if socket.queued == 0 && out.len() <= 1 {
            return match out.pop() {
                Some(same) if same == message.data => Step::Continue,
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
}

/// Whether a finding is a reason to refuse. Injection is never one by itself, and what only a name
/// suggests isn't one for text that leaves.
fn refuses(finding: &Finding, from: Severity, place: &Place) -> bool {
    let by_category = match finding.category {
        Category::Injection => false,
        Category::Command => matches!(place, Place::ToolCall(_)),
        _ => finding.confidence >= Confidence::Medium,
    };
    by_category && finding.severity >= from
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

    fn interest(&self, flow: &Flow) -> Interest {
        if flow.kind != FlowKind::Http {
            return Interest::NONE;
        }
        let path = String::from_utf8_lossy(flow.request.path());
        let dialect = Dialect::of_path(&path);
        let headers = flow.request.headers();
        let length = headers
            .get("content-length")
            .and_then(|v| std::str::from_utf8(v).ok())
            .and_then(|v| v.parse::<u64>().ok());
        let content_type = headers.get("content-type").map(<[u8]>::to_ascii_lowercase);
        let content_type = content_type.as_deref().unwrap_or_default();
        let is_json = content_type.windows(4).any(|w| w == b"json");
        let is_document = content_type.starts_with(b"application/json")
            || content_type.windows(5).any(|w| w == b"+json");
        let whole = match length {
            Some(length) if dialect.is_some() => length <= self.config.collect.max(MODEL_COLLECT),
            Some(length) => length <= self.config.collect,
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
        let answer = if dialect.is_some() || (is_json && length != Some(0)) {
            Interest::RESPONSE | Interest::EDIT_RESPONSE_DATA
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
        let line = [flow.request.method(), b" ", flow.request.url().as_bytes()].concat();
        let mut found = self.scanner.scan(Kind::Outbound, &line);
        let host = Arc::clone(&flow.request.target.host);
        found.retain(|finding| !credential::belongs(&line, &host, finding));
        if let Some(reason) = self.judge(flow, Place::Url, found) {
            return refusal(flow, &reason);
        }
        if let Some(reason) = self.fields(flow, Place::Header, |request| Some(request.headers())) {
            return refusal(flow, &reason);
        }
        if !self.scanner.is_allowed(fronting::RULE)
            && let Some(found) = fronting::fronted(flow)
            && let Some(reason) = self.judge(flow, Place::Url, vec![found])
        {
            return refusal(flow, &reason);
        }
        if self.closed() && !is_websocket(flow) && flow.request.head.upgrade().is_some() {
            // What another protocol carries can't be read. An origin that is not asked for one goes
            // on in HTTP (RFC 9110 section 7.8).
            flow.request.headers_mut().remove("upgrade");
        }
        if let Some(reason) = self.fields(flow, Place::Trailer, |request| request.trailers.as_ref())
        {
            return refusal(flow, &reason);
        }
        if flow.request.body().is_some() {
            let dialect = lock(&watch).dialect;
            if let Err(step) = self.whole_request(flow, dialect) {
                return step;
            }
        } else {
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
                    lock(&watch).request = Some(stream);
                }
                Err(error) => {
                    let why = error.to_string();
                    if let Some(reason) = self.unread(flow, Place::RequestBody, &why) {
                        return refusal(flow, &reason);
                    }
                }
            }
        }
        Step::Continue
    }

    fn response(&self, flow: &mut Flow) -> Step {
        let Some(watch) = self.watch(flow.id) else {
            return Step::Continue;
        };
        let mut watch = lock(&watch);
        let Some(response) = &mut flow.response else {
            return Step::Continue;
        };
        let content_type = response.headers().get("content-type");
        let content_type = content_type.map(|v| String::from_utf8_lossy(v).into_owned());
        let status = response.status();
        let options = self.gate_options();
        let gate = Gate::for_response(watch.dialect, status, content_type.as_deref(), options);
        let Some(gate) = gate else {
            return Step::Continue;
        };
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
        watch.gate = Some(Box::new(Gated::new(gate, decoder)));
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
            Direction::Request => {
                let Some(stream) = &mut watch.request else {
                    return Step::Continue;
                };
                let mut found = Vec::new();
                let read = stream.scan(&self.scanner, piece, &mut found);
                // What would be found if nothing followed counts only where it refuses: else it is
                // told when it is settled.
                let mut so_far = stream.so_far(&self.scanner);
                so_far.retain(|f| refuses(f, self.config.refuse_from, &Place::RequestBody));
                found.extend(so_far);
                let mut refused = self.judge(flow, Place::RequestBody, found);
                if let Err(error) = &read {
                    let why = error.to_string();
                    refused = refused.or_else(|| self.unread(flow, Place::RequestBody, &why));
                    stream.let_go();
                }
                if piece.last {
                    let trailers = || self.fields(flow, Place::Trailer, |r| r.trailers.as_ref());
                    refused = refused.or_else(trailers);
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
            Direction::Response => match &mut watch.gate {
                Some(gated) => self.through_gate(flow, gated, piece.data, piece.last),
                None => Step::Continue,
            },
        }
    }

    fn message(&self, flow: &mut Flow, message: Message<'_>) -> Step {
        if !is_websocket(flow) {
            return Step::Continue;
        }
        let Some(watch) = self.watch(flow.id) else {
            return Step::Continue;
        };
        let mut watch = lock(&watch);
        let dialect = watch.dialect;
        match message.direction {
            Direction::Request => self.sent(flow, dialect, message),
            Direction::Response => {
                let socket = watch.socket.get_or_insert_with(|| {
                    let gate = Gate::for_websocket(dialect, self.gate_options());
                    Box::new(Socket::new(gate))
                });
                self.received(flow, socket, message)
            }
        }
    }

    fn end(&self, flow: &Flow, _outcome: &Outcome) {
        lock(&self.open).remove(&flow.id);
    }
}

/// Whether a request asks for a WebSocket.
fn is_websocket(flow: &Flow) -> bool {
    flow.request.head.upgrade().is_some()
        && flow.request.headers().has_token("upgrade", "websocket")
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
    let body = serde_json::json!({
        "error": {
            "type": "tollgate_refused",
            "message": format!("Tollgate refused this request: {reason}."),
            "flow": flow.id.to_string(),
        }
    });
    let reply = Reply::new(403).body(body.to_string());
    // Constants that are valid headers.
    let reply = reply
        .header("Content-Type", "application/json")
        .and_then(|reply| reply.header("Proxy-Status", "tollgate; error=http_request_denied"));
    match reply {
        Ok(reply) => Step::respond(reply),
        Err(_) => Step::respond(Reply::new(403)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

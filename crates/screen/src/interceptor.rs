//! The scanners and the gate as an interceptor of flows.
//!
//! [`Screen`] looks at what leaves (the URL, the headers, the body) before anything of it is sent,
//! and stands with a [`Gate`] in the answers of language models: text passes as it comes, a tool call
//! is held until it was judged, and a refused one is replaced in the provider's own shape.
//!
//! | what | read how | refused how |
//! |---|---|---|
//! | a request of known length up to [`ScreenConfig::collect`], or to a language model | whole, before it is sent | 403, nothing reaches the origin |
//! | any other request | in pieces, as it passes | the connection is cut; the pieces before have left |
//! | a tool call in a model's answer | whole, while it is held | a text in its place; the answer goes on |
//!
//! Texts of tools in requests to a model are looked at for injection. That is reported and marks the
//! flow; it refuses nothing by itself.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollgate_flow::record::FINDING;
use tollgate_flow::{
    Bytes, Direction, Flow, FlowId, FlowKind, Interceptor, Interest, OnFailure, Outcome, Piece,
    Reply, Step,
};
use tollgate_wire::coding::{Decoder, OutputLimit};

use crate::gate::{
    BlockedCalls, Decision, Gate, GateEvent, GateOptions, STALE_HEADERS, repair_request,
};
use crate::llm::{Arguments, Dialect, Part, ToolCall, read_request};
use crate::scan::{Category, Confidence, Finding, Kind, ScanState, Scanner, Severity};

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
    /// What bodies may decode to. Default: 64 MiB; beyond, a request is refused (closed) or passes
    /// unread (open).
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
    /// What was found; redacted.
    pub findings: Vec<Finding>,
    /// Whether it was refused.
    pub refused: bool,
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
    /// What a tool answered, on its way to a model.
    ToolResult,
    /// A tool call in a model's answer.
    ToolCall(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => f.write_str("the URL"),
            Self::Header(name) => write!(f, "the header {name}"),
            Self::RequestBody => f.write_str("the request body"),
            Self::ToolResult => f.write_str("a tool result"),
            Self::ToolCall(name) => write!(f, "a call of the tool {name}"),
        }
    }
}

/// Takes verdicts. Called on a connection's worker: it must not block.
pub type OnVerdict = Arc<dyn Fn(&Verdict) + Send + Sync>;

/// Flows that are looked at at once; of further ones the declared failure is the answer.
const MAX_FLOWS: usize = 65_536;

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
    /// A finding ended it.
    ended: bool,
}

/// A body that is read as it passes.
struct Stream {
    decoder: Option<Decoder>,
    state: ScanState,
}

struct Gated {
    gate: Gate,
    decoder: Option<Decoder>,
    plain: Vec<u8>,
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
            });
        }
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
            Err(why) if self.closed() => {
                return Err(refusal(
                    flow,
                    &format!("the request body can't be read: {why}"),
                ));
            }
            Err(_) => return Ok(()),
        };
        let text = decoded.as_deref().unwrap_or(&body);
        let found = self.scanner.scan(Kind::Outbound, text);
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
        if let Arguments::Malformed { why, .. } = &call.arguments
            && self.closed()
        {
            // What was judged must be what is run.
            return Decision::block(format!("Tollgate refused this tool call: {why}."));
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
        gated.plain.clear();
        let decoded = match &mut gated.decoder {
            Some(decoder) if last => decoder.finish(&mut gated.plain),
            Some(decoder) => decoder.feed(data, &mut gated.plain),
            None => {
                gated.plain.extend_from_slice(data);
                Ok(())
            }
        };
        if decoded.is_err() {
            // The client can't be given the rest as it came: it was promised another coding.
            return Step::close("the answer can't be decoded");
        }
        let mut out = Vec::with_capacity(gated.plain.len());
        let mut events = Vec::new();
        gated.gate.feed(&gated.plain, &mut out, &mut events);
        if last {
            gated.gate.finish(&mut out, &mut events);
        }
        let mut queue: VecDeque<GateEvent> = events.into();
        while let Some(event) = queue.pop_front() {
            match event {
                GateEvent::Decide(call) => {
                    let decision = self.decide(flow, &call);
                    let mut more = Vec::new();
                    gated.gate.resolve(call.call, decision, &mut out, &mut more);
                    queue.extend(more);
                }
                GateEvent::Blocked(blocked) => lock(&self.blocked).remember(blocked),
                GateEvent::Seen(_) | GateEvent::Failed { .. } => {}
            }
        }
        if out.is_empty() && !last {
            return Step::Drop;
        }
        Step::Replace(Bytes::from(out))
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
        let whole = match length {
            Some(length) => length <= self.config.collect,
            None => dialect.is_some() || !may_have_body(flow),
        };
        let mut open = lock(&self.open);
        if open.len() < MAX_FLOWS {
            open.insert(
                flow.id,
                Arc::new(Mutex::new(Watch {
                    dialect,
                    request: None,
                    gate: None,
                    ended: false,
                })),
            );
        }
        let body = if whole {
            Interest::REQUEST_BODY
        } else {
            Interest::REQUEST | Interest::EDIT_REQUEST_DATA
        };
        // A gateway has paths of its own: any JSON may turn out to be a request to a model. What is
        // none keeps its answer's framing.
        let is_json = headers
            .get("content-type")
            .is_some_and(|v| v.to_ascii_lowercase().windows(4).any(|w| w == b"json"));
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
        let path = flow.request.path().to_vec();
        let found = self.scanner.scan(Kind::Outbound, &path);
        if let Some(reason) = self.judge(flow, Place::Url, found) {
            return refusal(flow, &reason);
        }
        let fields: Vec<(String, Vec<u8>)> = flow
            .request
            .headers()
            .iter()
            .filter(|(name, _)| !carries_credentials(name))
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.to_vec()))
            .collect();
        for (name, value) in fields {
            let found = self.scanner.scan(Kind::Outbound, &value);
            if let Some(reason) = self.judge(flow, Place::Header(name), found) {
                return refusal(flow, &reason);
            }
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
                    lock(&watch).request = Some(Stream {
                        decoder,
                        state: self.scanner.start(Kind::Outbound),
                    });
                }
                Err(error) if self.closed() => {
                    return refusal(flow, &format!("the request body can't be read: {error}"));
                }
                Err(_) => {}
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
        let options = GateOptions {
            on_failure: match self.closed() {
                true => crate::gate::OnFailure::Closed,
                false => crate::gate::OnFailure::Open,
            },
            stream_at_once: self.config.stream_at_once.clone(),
            ..GateOptions::default()
        };
        let status = response.status();
        let gate = Gate::for_response(watch.dialect, status, content_type.as_deref(), options);
        let Some(gate) = gate else {
            return Step::Continue;
        };
        let limit = OutputLimit {
            total: self.config.decoded,
            per_feed: 32 << 20,
        };
        let codings = response.headers().get_all("content-encoding");
        let decoder = match Decoder::new(codings, limit) {
            Ok(decoder) => decoder,
            Err(error) if self.closed() => {
                let why = format!("the answer of a model can't be read: {error}");
                return Step::respond(Reply::new(502).text(format!("Tollgate: {why}\n")));
            }
            Err(_) => return Step::Continue,
        };
        for name in STALE_HEADERS {
            response.headers_mut().remove(name);
        }
        watch.gate = Some(Box::new(Gated {
            gate,
            decoder,
            plain: Vec::new(),
        }));
        Step::Continue
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
                let read = stream.feed(&self.scanner, piece, &mut found);
                if let Some(reason) = self.judge(flow, Place::RequestBody, found) {
                    watch.ended = true;
                    return Step::close(format!("refused: {reason}"));
                }
                if read.is_err() && self.closed() {
                    watch.ended = true;
                    return Step::close("the request body can't be read");
                }
                Step::Continue
            }
            Direction::Response => match &mut watch.gate {
                Some(gated) => self.through_gate(flow, gated, piece.data, piece.last),
                None => Step::Continue,
            },
        }
    }

    fn end(&self, flow: &Flow, _outcome: &Outcome) {
        lock(&self.open).remove(&flow.id);
    }
}

impl Stream {
    fn feed(
        &mut self,
        scanner: &Scanner,
        piece: Piece<'_>,
        found: &mut Vec<Finding>,
    ) -> Result<(), ()> {
        let read = match &mut self.decoder {
            None => {
                scanner.feed(&mut self.state, piece.data, found);
                Ok(())
            }
            Some(decoder) => {
                let mut plain = Vec::new();
                let decoded = if piece.last {
                    decoder.finish(&mut plain)
                } else {
                    decoder.feed(piece.data, &mut plain)
                };
                scanner.feed(&mut self.state, &plain, found);
                decoded.map_err(drop)
            }
        };
        if piece.last {
            scanner.finish(&mut self.state, found);
        }
        read
    }
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

/// Fields that are there to carry a credential to whom it is for.
fn carries_credentials(name: &[u8]) -> bool {
    [
        "authorization",
        "cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-amz-security-token",
        "x-auth-token",
        "private-token",
    ]
    .iter()
    .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// A body with its content coding undone; `None` if it has none.
fn decode(
    headers: &tollgate_flow::HeaderList,
    body: &[u8],
    limit: u64,
) -> Result<Option<Vec<u8>>, String> {
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

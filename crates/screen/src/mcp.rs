//! A session of the Model Context Protocol over standard input and output, judged message by message.
//!
//! A [`Session`] stands between a client and a server that speak JSON-RPC 2.0, one message a line. It does no I/O: bytes
//! that came go in, bytes that are to go on lie in [`Session::to_server`] and [`Session::to_client`]. Nothing of a
//! message goes on before all of it was judged, and what passes is passed byte for byte. How the bytes were cut makes
//! no difference.
//!
//! | what | read as | refused how |
//! |---|---|---|
//! | `tools/call` | a command and text that leaves | a result with `isError` and a text, so that the model goes on |
//! | any other request of the client | text that leaves | a JSON-RPC error |
//! | the client's answer to a request of the server | text that leaves | a JSON-RPC error for the server |
//! | a tool in an answer to `tools/list` | a description, and what it was before | it is taken out of the list |
//! | any other answer of the server | text that comes in | as a request of the same kind is refused |
//! | a request of the server (sampling, elicitation) | text that comes in | a JSON-RPC error for the server |
//! | a notification | text that leaves or comes in | it is dropped |
//! | a batch | each of its messages | from a client: all of it; from a server: that message |
//!
//! What follows from a finding, and what passes in any case, a [`Policy`] may say ([`Session::policy`]). What it takes out
//! (`redact`) is taken out of parameters and results; the rest of a message stays as it was written.
//!
//! What can't be read (no JSON, no UTF-8, a name twice in an object, a request that is an answer as well, nested too deep,
//! too long) is refused where failure is closed: two programs would read it differently, or only the other one would.

mod lines;
mod pins;
mod ruling;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tollgate_flow::{FlowId, OnFailure};

use self::lines::{Item, Lines, Outline};
pub use self::pins::{PinError, Pins};
use self::pins::{Print, changed_members, print_of};
use self::ruling::{About, Act, Ruling};
use crate::interceptor::{Enforcement, OnVerdict, Place, Verdict};
use crate::llm::json::{JsonError, Kind as JsonKind, Tape, Value, quote};
use crate::llm::mcp::refusal;
use crate::llm::request::{definition, free_text};
use crate::llm::{CallId, RunsAt, ToolCall};
use crate::policy::{Action, CallFacts, Policy, PolicyError};
use crate::redact::{Originals, Redactor, Restorer};
use crate::scan::{Category, Finding, Kind, Scanner, Severity};

/// Tools of one server; those beyond can't be compared with what they were.
pub const MAX_TOOLS: usize = 10_000;
/// Requests whose answers are awaited, in either direction. The answers to further ones are known by their shape alone.
const MAX_PENDING: usize = 4096;
/// A longer id is not remembered.
const MAX_ID: usize = 256;
/// Characters of a name in a verdict.
const MAX_SHOWN: usize = 256;
/// The code of our JSON-RPC errors: the first of those that are the implementation's.
const REFUSED: i32 = -32000;
/// What JSON-RPC has for text that is no JSON.
const PARSE_ERROR: i32 = -32700;

/// What becomes of a tool that is not what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drift {
    /// It is taken out of the list, and calls of it are refused.
    #[default]
    Refuse,
    /// It is reported.
    Warn,
}

/// How a [`Session`] works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct McpConfig {
    /// Whether findings have consequences. Default: they do.
    pub enforcement: Enforcement,
    /// The least severe finding that refuses where no rule of a policy decides. Default: high.
    pub refuse_from: Severity,
    /// What happens to what can't be read. Default: closed while enforcing.
    pub on_failure: OnFailure,
    /// What becomes of a tool that has changed. Default: it is refused.
    pub drift: Drift,
    /// The longest message, in bytes. Default: 32 MiB. A longer one can't be read.
    pub max_message: usize,
}

impl Default for McpConfig {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Enforce,
            refuse_from: Severity::High,
            on_failure: OnFailure::Closed,
            drift: Drift::Refuse,
            max_message: 32 << 20,
        }
    }
}

/// Both directions between one client and one server.
///
/// ```
/// use tollgate_flow::FlowId;
/// use tollgate_screen::mcp::{McpConfig, Session};
/// use tollgate_screen::scan::Scanner;
///
/// let mut session = Session::new(Scanner::builtin(), McpConfig::default(), "mcp:demo", FlowId::default());
/// let call = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"bash","arguments":{"command":"rm -rf ~"}}}"#;
/// session.from_client(format!("{call}\n").as_bytes());
/// assert!(session.to_server.is_empty());
/// assert!(session.to_client.starts_with(br#"{"jsonrpc":"2.0","id":"a","result":{"content":[{"type":"text","text":"Tollgate"#));
/// ```
pub struct Session {
    scanner: Scanner,
    config: McpConfig,
    target: String,
    flow: FlowId,
    on_verdict: Option<OnVerdict>,
    policy: Arc<Policy>,
    redactor: Redactor,
    /// What was taken out of what the client sent, and is put back in answers.
    originals: Originals,
    /// What is to go on to the server. Whoever takes bytes out takes them from the front.
    pub to_server: Vec<u8>,
    /// What is to go on to the client.
    pub to_client: Vec<u8>,
    client: Lines,
    server: Lines,
    /// Our own messages that wait for the end of a line that is passed on in pieces.
    waiting_for_server: Vec<u8>,
    waiting_for_client: Vec<u8>,
    tape: Tape,
    /// What the client has asked, by id.
    asked: HashMap<String, Asked>,
    tools: Tools,
    tainted: bool,
    stopped: Option<&'static str>,
}

/// A request of the client that waits for its answer.
#[derive(Clone, Debug)]
struct Asked {
    method: String,
    /// The tool that it calls.
    tool: String,
    /// A list that begins anew: it has no cursor.
    first_page: bool,
}

/// The tools of the server, as it described them.
#[derive(Debug, Default)]
struct Tools {
    /// As they were when they were seen first.
    seen: HashMap<String, Print>,
    /// As they are in the file.
    pinned: Option<Pins>,
    /// The file is to be made when a list was read to its end.
    to_pin: bool,
    made: Option<Pins>,
    /// Names in the pages of the list that is being read.
    listed: BTreeSet<String>,
    /// Names whose calls are refused, and why.
    barred: HashMap<String, String>,
    /// What was said already: a client may list again and again.
    told: HashSet<(String, String)>,
}

/// What becomes of a message of the client.
enum Sent {
    Pass,
    Refuse(String),
    Rewrite(Vec<u8>),
}

/// What becomes of a message of the server.
enum Fate {
    Pass,
    Replace(Vec<u8>),
    Drop,
}

/// Why a message can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unread {
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("a carriage return stands inside of it, which some programs take for its end")]
    CarriageReturn,
    #[error("it is no JSON: {0}")]
    Json(JsonError),
    #[error("an object has two members of one name")]
    Twice,
    #[error("it is no message of JSON-RPC 2.0")]
    NotRpc,
    #[error("it was cut off")]
    CutOff,
}

/// Whose bytes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Session {
    /// A session with the server that `target` names in verdicts.
    pub fn new(scanner: Scanner, config: McpConfig, target: &str, flow: FlowId) -> Self {
        let policy = Policy::default().refuse_from(config.refuse_from);
        Self {
            redactor: Redactor::new(scanner.clone()),
            scanner,
            config,
            target: target.to_owned(),
            flow,
            on_verdict: None,
            policy: Arc::new(policy),
            originals: Originals::default(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            client: Lines::default(),
            server: Lines::default(),
            waiting_for_server: Vec::new(),
            waiting_for_client: Vec::new(),
            tape: Tape::default(),
            asked: HashMap::new(),
            tools: Tools::default(),
            tainted: false,
            stopped: None,
        }
    }

    /// Tells each verdict to `on_verdict`.
    #[must_use]
    pub fn on_verdict(mut self, on_verdict: OnVerdict) -> Self {
        self.on_verdict = Some(on_verdict);
        self
    }

    /// Decides by this policy. Rules that look at flows, processes or destinations never hold here.
    ///
    /// # Errors
    /// A rule that asks a person, and may hold here: nobody can be asked.
    pub fn policy(mut self, policy: Policy) -> Result<Self, PolicyError> {
        policy.check_for_mcp()?;
        self.policy = Arc::new(policy.refuse_from(self.config.refuse_from));
        Ok(self)
    }

    /// Compares tools with pins. Without any, the first list that was read to its end is what [`take_pins`] gives.
    ///
    /// [`take_pins`]: Self::take_pins
    #[must_use]
    pub fn pin(mut self, pins: Option<Pins>) -> Self {
        self.tools.to_pin = pins.is_none();
        self.tools.pinned = pins;
        self
    }

    /// Pins that were made, once.
    pub fn take_pins(&mut self) -> Option<Pins> {
        self.tools.made.take()
    }

    /// With a reason, every message that the client sends from now on is refused.
    pub fn stop(&mut self, why: Option<&'static str>) {
        self.stopped = why;
    }

    /// Whether the server has sent text that gives orders to a model, or that a person doesn't see.
    pub fn tainted(&self) -> bool {
        self.tainted
    }

    /// Takes bytes that the client sent.
    pub fn from_client(&mut self, bytes: &[u8]) {
        self.feed(Side::Client, bytes);
    }

    /// Takes bytes that the server sent.
    pub fn from_server(&mut self, bytes: &[u8]) {
        self.feed(Side::Server, bytes);
    }

    /// The client sends no more. A last message without a line break counts if it is whole.
    pub fn client_ended(&mut self) {
        self.end(Side::Client);
    }

    /// The server sends no more.
    pub fn server_ended(&mut self) {
        self.end(Side::Server);
    }

    fn feed(&mut self, side: Side, mut bytes: &[u8]) {
        let (limit, open) = (self.config.max_message, !self.closed());
        loop {
            let lines = match side {
                Side::Client => &mut self.client,
                Side::Server => &mut self.server,
            };
            match lines.next(&mut bytes, limit, open) {
                None => return,
                Some(Item::Line(line)) => self.line(side, &line, true),
                Some(Item::TooLong { begun }) => {
                    // It passes from here on in pieces, because failure is open.
                    self.tell_unread(side, Unread::TooLong(limit), false);
                    self.pass(side, &begun);
                }
                Some(Item::More(more)) => self.pass(side, more),
                Some(Item::Passed(rest)) => {
                    self.pass(side, rest);
                    self.flush_waiting();
                }
                Some(Item::Skipped(outline)) => {
                    self.tell_unread(side, Unread::TooLong(limit), true);
                    self.answer_unread(side, &outline, Unread::TooLong(limit));
                }
            }
        }
    }

    fn end(&mut self, side: Side) {
        let lines = match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.server,
        };
        match lines.end() {
            None => {}
            Some(Item::Line(line)) => self.line(side, &line, false),
            Some(_) => self.tell_unread(side, Unread::CutOff, self.closed()),
        }
        self.flush_waiting();
    }

    fn closed(&self) -> bool {
        self.config.enforcement == Enforcement::Enforce
            && self.config.on_failure == OnFailure::Closed
    }

    /// Appends what goes on to the other side.
    fn pass(&mut self, from: Side, bytes: &[u8]) {
        match from {
            Side::Client => self.to_server.extend_from_slice(bytes),
            Side::Server => self.to_client.extend_from_slice(bytes),
        }
    }

    /// Sends a message of ours, between two lines of whoever else writes there.
    fn send(&mut self, to: Side, message: &[u8]) {
        let (other, waiting, out) = match to {
            Side::Server => (
                &self.client,
                &mut self.waiting_for_server,
                &mut self.to_server,
            ),
            Side::Client => (
                &self.server,
                &mut self.waiting_for_client,
                &mut self.to_client,
            ),
        };
        let out = if other.is_passing() { waiting } else { out };
        out.extend_from_slice(message);
        out.push(b'\n');
    }

    fn flush_waiting(&mut self) {
        if !self.client.is_passing() {
            self.to_server.append(&mut self.waiting_for_server);
        }
        if !self.server.is_passing() {
            self.to_client.append(&mut self.waiting_for_client);
        }
    }

    /// Judges a line. One without a line break is the last.
    fn line(&mut self, side: Side, line: &[u8], complete: bool) {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        let body = body.strip_suffix(b"\r").unwrap_or(body);
        if body.trim_ascii().is_empty() {
            return self.pass(side, line);
        }
        let mut tape = std::mem::take(&mut self.tape);
        match read(body, &mut tape) {
            Ok(root) => match side {
                Side::Client => self.client_line(line, root),
                Side::Server => self.server_line(line, root),
            },
            Err(why) => {
                let why = if complete { why } else { Unread::CutOff };
                let refused = self.closed();
                self.tell_unread(side, why, refused);
                if refused {
                    self.answer_unread(side, &Outline::of(body), why);
                } else {
                    self.pass(side, line);
                }
            }
        }
        self.tape = tape;
    }

    fn tell_unread(&mut self, side: Side, why: Unread, refused: bool) {
        let place = match side {
            Side::Client => Place::McpSent("message".to_owned()),
            Side::Server => Place::McpReceived("message".to_owned()),
        };
        self.tell(place, Vec::new(), refused, &why.to_string());
    }

    /// Answers for a message that couldn't be read, as far as it says what it is: nobody should wait for ever.
    fn answer_unread(&mut self, side: Side, outline: &Outline, why: Unread) {
        let text = format!("Tollgate refused this message: {why}.");
        let id = outline.id();
        match (side, outline.is_request(), id) {
            (Side::Client, true, Some(id)) => {
                let answer = answer(id, outline.is_tool_call(), &text);
                self.send(Side::Client, &answer);
            }
            // An answer that doesn't arrive: who has asked gets another one.
            (Side::Client, false, Some(id)) => self.send(Side::Server, &error(id, REFUSED, &text)),
            (Side::Server, true, Some(id)) => self.send(Side::Server, &error(id, REFUSED, &text)),
            (Side::Server, false, Some(id)) if outline.is_answer() => {
                let of_tool = self
                    .asked
                    .remove(id)
                    .is_some_and(|asked| asked.method == "tools/call");
                self.send(Side::Client, &answer(id, of_tool, &text));
            }
            (Side::Client, _, None) if matches!(why, Unread::Json(_) | Unread::NotUtf8) => {
                self.send(Side::Client, &error("null", PARSE_ERROR, &text));
            }
            // A notification, or a line of a server's log.
            _ => {}
        }
    }

    // ---- what the client sends ----

    fn client_line(&mut self, line: &[u8], root: Value<'_>) {
        let mut asked = Vec::new();
        let (mut refused, mut changed) = (false, false);
        let mut fates = Vec::new();
        for message in messages(root) {
            let fate = self.client_message(message, &mut asked);
            refused |= matches!(fate, Sent::Refuse(_));
            changed |= matches!(fate, Sent::Rewrite(_));
            fates.push((message, fate));
        }
        if !refused {
            for (id, one) in asked {
                if self.asked.len() < MAX_PENDING && id.len() <= MAX_ID {
                    self.asked.insert(id, one);
                }
            }
            if !changed {
                return self.pass(Side::Client, line);
            }
            let written = fates.iter().map(|(message, fate)| match fate {
                Sent::Rewrite(other) => other.as_slice(),
                _ => message.raw(),
            });
            let mut out = match root.kind() {
                JsonKind::Array => array(written),
                _ => written.collect::<Vec<_>>().concat(),
            };
            out.push(b'\n');
            return self.pass(Side::Client, &out);
        }
        let batch = root.kind() == JsonKind::Array;
        let (mut for_client, mut for_server) = (Vec::new(), Vec::new());
        for (message, fate) in &fates {
            let message = *message;
            let why = match fate {
                Sent::Refuse(why) => why.as_str(),
                _ => {
                    "Tollgate refused the batch that this message was sent in: another message of it was refused."
                }
            };
            let Some(id) = id_of(message) else {
                continue;
            };
            if message.get("method").is_some() {
                let call = message.get("method").is_some_and(|m| m.is("tools/call"));
                for_client.push(answer(&id, call, why));
            } else {
                for_server.push(error(&id, REFUSED, why));
            }
        }
        self.send_all(Side::Client, for_client, batch);
        self.send_all(Side::Server, for_server, batch);
    }

    fn send_all(&mut self, to: Side, answers: Vec<Vec<u8>>, batch: bool) {
        if answers.is_empty() {
            return;
        }
        if batch {
            let array = array(answers.iter().map(Vec::as_slice));
            self.send(to, &array);
        } else {
            for answer in answers {
                self.send(to, &answer);
            }
        }
    }

    /// Judges a message of the client.
    fn client_message(&mut self, message: Value<'_>, asked: &mut Vec<(String, Asked)>) -> Sent {
        if let Some(why) = self.stopped {
            return Sent::Refuse(format!("Tollgate refused this message: {why}."));
        }
        let method = message.get("method").map(Value::string);
        let params = message.get("params");
        if let (Some("tools/call"), Some(params)) = (method.as_deref(), params) {
            let call = tool_call(params);
            if let Some(id) = id_of(message) {
                asked.push((id, Asked::call(&call.name)));
            }
            return self.call(&call, message);
        }
        let name = method.clone().unwrap_or_else(|| "answer".to_owned());
        if let (Some(method), Some(id)) = (method.clone(), id_of(message)) {
            let cursor = params.and_then(|p| p.get("cursor"));
            let first_page = cursor.is_none_or(Value::is_null);
            let one = Asked {
                method,
                tool: String::new(),
                first_page,
            };
            asked.push((id, one));
        }
        let found = self.scan_message(message);
        let about = About {
            method: method.as_deref(),
            as_such: method.is_some(),
            ..About::default()
        };
        let ruling = self.weigh(Place::McpSent(name), found, about);
        let reason = match self.act(ruling) {
            Act::Pass => return Sent::Pass,
            Act::Refuse(reason) => reason,
            Act::Redact(ruling) => {
                match self.take_out(message, &ruling, about, Self::scan_message) {
                    Ok(text) => return Sent::Rewrite(text),
                    Err(reason) => reason,
                }
            }
        };
        Sent::Refuse(format!("Tollgate refused this message: {reason}."))
    }

    fn call(&mut self, call: &ToolCall, message: Value<'_>) -> Sent {
        let refusal =
            |reason: &str| Sent::Refuse(format!("Tollgate refused this tool call: {reason}."));
        let place = || Place::ToolCall(call.name.clone());
        if let crate::llm::Arguments::Malformed { why, .. } = &call.arguments {
            let refused = self.closed();
            self.tell(place(), Vec::new(), refused, why);
            if refused {
                return refusal(why);
            }
        }
        if let Some(why) = self.tools.barred.get(&call.name).cloned() {
            self.tell(place(), Vec::new(), true, &why);
            return refusal(&why);
        }
        let facts = CallFacts::of(call);
        let about = About {
            call: Some(&facts),
            method: Some("tools/call"),
            as_such: true,
            ..About::default()
        };
        let ruling = self.weigh(place(), self.scan_call(call, message), about);
        match self.act(ruling) {
            Act::Pass => Sent::Pass,
            Act::Refuse(reason) => refusal(&reason),
            Act::Redact(ruling) => {
                let remain = |session: &Self, message: Value<'_>| match message.get("params") {
                    Some(params) => session.scan_call(&tool_call(params), message),
                    None => Vec::new(),
                };
                match self.take_out(message, &ruling, about, remain) {
                    Ok(text) => Sent::Rewrite(text),
                    Err(reason) => refusal(&reason),
                }
            }
        }
    }

    /// Scans a call: also what a shell makes of its arguments.
    fn scan_call(&self, call: &ToolCall, message: Value<'_>) -> Vec<Finding> {
        let mut found = Vec::new();
        for command in &call.facets().commands {
            let command = command.as_bytes();
            let all = self.scanner.scan(Kind::Command, command);
            // A command is one, whatever stands in it.
            found.extend(all.into_iter().filter(|finding| {
                finding.category == Category::Command || !self.redactor.is_ours(command, finding)
            }));
        }
        found.extend(self.scan_message(message));
        found
    }

    /// Scans all of a message that leaves, also what the protocol doesn't know, but its id: a number that was drawn looks
    /// like many things.
    fn scan_message(&self, message: Value<'_>) -> Vec<Finding> {
        let mut found = Vec::new();
        for (name, member) in message.members() {
            let name = name.string();
            if matches!(name.as_str(), "jsonrpc" | "id") {
                continue;
            }
            self.scan_sent(member, &mut found);
            if !matches!(name.as_str(), "method" | "params" | "result" | "error") {
                self.scan_text(name.as_bytes(), &mut found);
            }
        }
        found
    }

    /// Scans what leaves in its canonical form: no escape, no white space that isn't needed.
    fn scan_sent(&self, value: Value<'_>, found: &mut Vec<Finding>) {
        match serde_json::from_slice::<serde_json::Value>(value.raw()) {
            Ok(json) => {
                self.scan_text(json.to_string().as_bytes(), found);
            }
            // A lone half of a pair, say: what lenient parsers read, and as it came.
            Err(_) => {
                self.scan_text(value.raw(), found);
                self.scan_text(free_text(value).as_bytes(), found);
            }
        }
    }

    /// A placeholder is no secret.
    fn scan_text(&self, text: &[u8], found: &mut Vec<Finding>) {
        let all = self.scanner.scan(Kind::Outbound, text);
        found.extend(all.into_iter().filter(|f| !self.redactor.is_ours(text, f)));
    }

    // ---- what the server sends ----

    fn server_line(&mut self, line: &[u8], root: Value<'_>) {
        let mut changed = false;
        let mut fates = Vec::new();
        for message in messages(root) {
            let fate = self.server_message(message);
            changed |= !matches!(fate, Fate::Pass);
            fates.push((message, fate));
        }
        if !changed {
            return self.pass(Side::Server, line);
        }
        let left: Vec<&[u8]> = fates
            .iter()
            .filter_map(|(message, fate)| match fate {
                Fate::Pass => Some(message.raw()),
                Fate::Replace(other) => Some(other.as_slice()),
                Fate::Drop => None,
            })
            .collect();
        if left.is_empty() {
            return;
        }
        let mut out = match root.kind() {
            JsonKind::Array => array(left.into_iter()),
            _ => left.concat(),
        };
        out.push(b'\n');
        self.pass(Side::Server, &out);
    }

    fn server_message(&mut self, message: Value<'_>) -> Fate {
        if let Some(method) = message.get("method") {
            let name = method.string();
            let place = Place::McpReceived(name.clone());
            let about = About {
                method: Some(&name),
                as_such: true,
                ..About::default()
            };
            let text = |message: Value<'_>| message.get("params").map(free_text);
            let reason = match self.judge_received(message, place, about, text) {
                Sent::Pass => return Fate::Pass,
                Sent::Rewrite(other) => return Fate::Replace(other),
                Sent::Refuse(reason) => reason,
            };
            if let Some(id) = id_of(message) {
                let text = format!("Tollgate refused this request: {reason}.");
                self.send(Side::Server, &error(&id, REFUSED, &text));
            }
            return Fate::Drop;
        }
        let id = id_of(message);
        let asked = id.as_ref().and_then(|id| self.asked.remove(id));
        if let Some(tools) = message.path(&["result", "tools"])
            && tools.kind() == JsonKind::Array
        {
            let first_page = asked.as_ref().is_none_or(|asked| asked.first_page);
            let next = message.path(&["result", "nextCursor"]);
            let last_page = next.is_none_or(Value::is_null);
            return self.tool_list(message, tools, first_page, last_page);
        }
        let Some(body) = body_of(message) else {
            return Fate::Pass;
        };
        let is_call = match &asked {
            Some(asked) => asked.method == "tools/call",
            None => body
                .get("content")
                .is_some_and(|c| c.kind() == JsonKind::Array),
        };
        let place = match &asked {
            Some(asked) if is_call => Place::McpResult(asked.tool.clone()),
            Some(asked) => Place::McpReceived(asked.method.clone()),
            None if is_call => Place::McpResult("(unknown)".to_owned()),
            None => Place::McpReceived("answer".to_owned()),
        };
        let about = About {
            method: asked.as_ref().map(|asked| asked.method.as_str()),
            tool: asked
                .as_ref()
                .map(|asked| asked.tool.as_str())
                .filter(|_| is_call),
            ..About::default()
        };
        let text = |message: Value<'_>| body_of(message).map(free_text);
        let reason = match self.judge_received(message, place, about, text) {
            Sent::Pass => return self.restored(message),
            Sent::Rewrite(other) => return Fate::Replace(other),
            Sent::Refuse(reason) => reason,
        };
        let text = format!("Tollgate withheld this answer: {reason}.");
        match id {
            Some(id) => Fate::Replace(answer(&id, is_call, &text)),
            None => Fate::Drop,
        }
    }

    /// Judges the tools that a server offers, and takes out of the list what is refused.
    fn tool_list(
        &mut self,
        message: Value<'_>,
        tools: Value<'_>,
        first_page: bool,
        last_page: bool,
    ) -> Fate {
        if first_page {
            self.tools.listed.clear();
        }
        let mut kept = Vec::new();
        let mut all = true;
        for tool in tools.items() {
            let name = tool.get("name").map(Value::string).unwrap_or_default();
            let keep = self.tool(&name, tool);
            if keep {
                kept.push(tool.raw());
            }
            all &= keep;
        }
        // What stands beside the tools is text, too. Nothing is taken out of it: with the list it is passed or not.
        let mut beside = String::new();
        let result = message.get("result");
        for (key, member) in result.into_iter().flat_map(Value::members) {
            if !key.is("tools") {
                beside.push_str(&free_text(member));
                beside.push('\n');
            }
        }
        let place = Place::McpReceived("tools/list".to_owned());
        let about = About {
            method: Some("tools/list"),
            ..About::default()
        };
        let found = self.scanner.scan(Kind::Inbound, beside.as_bytes());
        let refused = match self.received(place, found, about) {
            Act::Pass => None,
            Act::Refuse(reason) => Some(reason),
            Act::Redact(ruling) => {
                Some(self.not_redacted(&ruling, "nothing is cut out of a list of tools"))
            }
        };
        if let Some(reason) = refused {
            let text = format!("Tollgate withheld this answer: {reason}.");
            return match id_of(message) {
                Some(id) => Fate::Replace(error(&id, REFUSED, &text)),
                None => Fate::Drop,
            };
        }
        if last_page {
            self.list_ended();
        }
        if all {
            return Fate::Pass;
        }
        let raw = message.raw();
        let (from, span) = (message.span().start, tools.span());
        let before = raw.get(..span.start.saturating_sub(from));
        let after = raw.get(span.end.saturating_sub(from)..);
        let array = array(kept.into_iter());
        Fate::Replace(
            [
                before.unwrap_or_default(),
                &array,
                after.unwrap_or_default(),
            ]
            .concat(),
        )
    }

    /// Judges a tool; whether it stays in the list.
    fn tool(&mut self, name: &str, tool: Value<'_>) -> bool {
        let place = Place::ToolDescription(name.to_owned());
        let text = definition(tool, String::new()).text;
        let mut keep = true;
        let found = self.scanner.scan(Kind::Inbound, text.as_bytes());
        self.taint(&found);
        let about = About {
            method: Some("tools/list"),
            tool: Some(name),
            ..About::default()
        };
        let mut ruling = self.weigh(place.clone(), found, about);
        worth_telling(&mut ruling);
        let enforces = self.config.enforcement == Enforcement::Enforce;
        if let Some(what) = self.worst(&ruling) {
            let refused = ruling.refuses() && enforces;
            if self.first_time(name, &what) {
                self.tell_ruling(&ruling, refused, &what);
            }
            if refused {
                self.bar(name, format!("its description was refused ({what})"));
                keep = false;
            }
        }
        let Some(why) = self.drift(name, tool) else {
            return keep;
        };
        let by_rule = self.weigh_drift(name);
        let refused = match &by_rule {
            Some(ruling) => ruling.refuses(),
            None => self.config.drift == Drift::Refuse,
        } && enforces;
        match by_rule {
            Some(ruling) if ruling.decision.action == Action::Allow => return keep,
            Some(ruling) if self.first_time(name, &why) => self.tell_ruling(&ruling, refused, &why),
            None if self.first_time(name, &why) => self.tell(place, Vec::new(), refused, &why),
            _ => {}
        }
        if refused {
            self.bar(name, why);
        }
        keep && !refused
    }

    /// What is not as it was, if a tool isn't.
    fn drift(&mut self, name: &str, tool: Value<'_>) -> Option<String> {
        let print = print_of(tool);
        if self.tools.listed.len() < MAX_TOOLS {
            self.tools.listed.insert(name.to_owned());
        }
        if let Some(pins) = &self.tools.pinned {
            match pins.get(name) {
                None => return Some("the tool is not among those that were pinned".to_owned()),
                Some(pinned) if *pinned != print => {
                    let what = changed_members(pinned, &print);
                    return Some(format!("the tool has changed since it was pinned: {what}"));
                }
                Some(_) => {}
            }
        }
        match self.tools.seen.get(name) {
            Some(seen) if *seen != print => {
                let what = changed_members(seen, &print);
                Some(format!("the tool has changed in this session: {what}"))
            }
            Some(_) => None,
            None if self.tools.seen.len() >= MAX_TOOLS => {
                Some(format!("there are more than {MAX_TOOLS} tools"))
            }
            None => {
                self.tools.seen.insert(name.to_owned(), print);
                None
            }
        }
    }

    /// A list was read to its last page.
    fn list_ended(&mut self) {
        if self.tools.to_pin {
            self.tools.to_pin = false;
            // What was refused is not worth keeping.
            let good = |name: &&String| !self.tools.barred.contains_key(*name);
            let listed = self.tools.listed.iter().filter(good);
            let pins: Pins = listed
                .filter_map(|name| Some((name.clone(), self.tools.seen.get(name)?.clone())))
                .collect();
            self.tools.pinned = Some(pins.clone());
            self.tools.made = Some(pins);
            return;
        }
        let gone: Vec<String> = match &self.tools.pinned {
            Some(pins) => pins
                .names()
                .filter(|name| !self.tools.listed.contains(*name))
                .map(str::to_owned)
                .collect(),
            None => Vec::new(),
        };
        for name in gone {
            let why = "the tool was pinned, and is gone";
            if self.first_time(&name, why) {
                self.tell(Place::ToolDescription(name), Vec::new(), false, why);
            }
        }
    }

    fn bar(&mut self, name: &str, why: String) {
        if self.tools.barred.len() < MAX_TOOLS || self.tools.barred.contains_key(name) {
            self.tools.barred.insert(name.to_owned(), why);
        }
    }

    fn first_time(&mut self, name: &str, what: &str) -> bool {
        if self.tools.told.len() >= 4 * MAX_TOOLS {
            self.tools.told.clear();
        }
        self.tools.told.insert((name.to_owned(), what.to_owned()))
    }

    // ---- findings ----

    /// Judges what a server says; `text` is what of it is read.
    fn judge_received(
        &mut self,
        message: Value<'_>,
        place: Place,
        about: About<'_>,
        text: impl Fn(Value<'_>) -> Option<String>,
    ) -> Sent {
        let scan = |session: &Self, message: Value<'_>| {
            let text = text(message).unwrap_or_default();
            let mut found = session.scanner.scan(Kind::Inbound, text.as_bytes());
            found.retain(|f| !session.redactor.is_ours(text.as_bytes(), f));
            found
        };
        let found = scan(self, message);
        match self.received(place, found, about) {
            Act::Pass => Sent::Pass,
            Act::Refuse(reason) => Sent::Refuse(reason),
            Act::Redact(ruling) => match self.take_out(message, &ruling, about, scan) {
                Ok(text) => Sent::Rewrite(text),
                Err(reason) => Sent::Refuse(reason),
            },
        }
    }

    /// Decides about text that comes in. What passes and a person may want to know of is told.
    fn received(&mut self, place: Place, found: Vec<Finding>, about: About<'_>) -> Act {
        self.taint(&found);
        let mut ruling = self.weigh(place, found, about);
        worth_telling(&mut ruling);
        if ruling.decision.action == Action::Allow
            && let Some(worst) = self.worst(&ruling)
        {
            self.tell_ruling(&ruling, false, &worst);
            return Act::Pass;
        }
        self.act(ruling)
    }

    /// An answer with what was taken out of what the client sent.
    fn restored(&self, message: Value<'_>) -> Fate {
        let is_there = || {
            let text = std::str::from_utf8(message.raw()).unwrap_or_default();
            self.originals.stand_in(text)
        };
        if self.originals.is_empty() || !is_there() {
            return Fate::Pass;
        }
        let mut out = Vec::new();
        let mut restorer = Restorer::new(self.originals.clone(), Some("application/json"), None);
        restorer.feed(message.raw(), &mut out);
        restorer.finish(&mut out);
        Fate::Replace(out)
    }

    fn taint(&mut self, found: &[Finding]) {
        self.tainted |= found.iter().any(reports_received);
    }

    /// What somebody else named is as long as he likes, and may be the secret itself. A verdict is for logs.
    fn make_showable(&self, place: &mut Place) {
        let (Place::ToolCall(name)
        | Place::McpSent(name)
        | Place::McpReceived(name)
        | Place::McpResult(name)
        | Place::ToolDescription(name)) = place
        else {
            return;
        };
        let found = self.scanner.scan(Kind::Outbound, name.as_bytes());
        let is_secret =
            |f: &Finding| matches!(f.category, Category::Secret | Category::KnownSecret);
        if found.iter().any(is_secret) {
            *name = "(a secret)".to_owned();
        } else if let Some((end, _)) = name.char_indices().nth(MAX_SHOWN) {
            name.truncate(end);
            name.push('…');
        }
    }

    fn tell(&self, place: Place, findings: Vec<Finding>, refused: bool, reason: &str) {
        self.tell_verdict(
            place,
            Verdict {
                findings,
                refused,
                reason: reason.to_owned(),
                action: match refused {
                    true => Action::Block,
                    false => Action::Allow,
                },
                ..self.verdict()
            },
        );
    }

    /// What all verdicts of a session have.
    fn verdict(&self) -> Verdict {
        Verdict {
            flow: self.flow,
            target: self.target.clone(),
            place: Place::Message,
            findings: Vec::new(),
            refused: false,
            reason: String::new(),
            action: Action::Allow,
            rule: None,
            allow: String::new(),
        }
    }

    fn tell_verdict(&self, mut place: Place, verdict: Verdict) {
        if let Some(on_verdict) = &self.on_verdict {
            self.make_showable(&mut place);
            on_verdict(&Verdict { place, ..verdict });
        }
    }
}

impl Asked {
    fn call(tool: &str) -> Self {
        Self {
            method: "tools/call".to_owned(),
            tool: tool.to_owned(),
            first_page: false,
        }
    }
}

/// What an answer says.
fn body_of(message: Value<'_>) -> Option<Value<'_>> {
    let body = |name| message.get(name).filter(|body| !body.is_null());
    body("result").or_else(|| body("error"))
}

/// Whether a person may want to know of a finding in text that comes in, although nothing follows from it.
fn reports_received(finding: &Finding) -> bool {
    finding.category == Category::Injection
        || finding.category == Category::HiddenText && finding.severity >= Severity::Medium
}

/// Leaves what follows something from, and what a person may want to know of.
fn worth_telling(ruling: &mut Ruling) {
    ruling.findings.retain(|(finding, own)| {
        own.action != Action::Allow || own.rule.is_none() && reports_received(finding)
    });
}

/// Reads a line as one message or a batch, as every program would.
fn read<'t>(body: &'t [u8], tape: &'t mut Tape) -> Result<Value<'t>, Unread> {
    if std::str::from_utf8(body).is_err() {
        return Err(Unread::NotUtf8);
    }
    // A writer of JSON has no reason for one; some readers of lines end them there.
    if memchr::memchr(b'\r', body).is_some() {
        return Err(Unread::CarriageReturn);
    }
    let root = tape.read(body).map_err(Unread::Json)?;
    if root.kind() == JsonKind::Array && root.items().next().is_none() {
        return Err(Unread::NotRpc);
    }
    for message in messages(root) {
        if !message.get("jsonrpc").is_some_and(|v| v.is("2.0")) || !is_one_thing(message) {
            return Err(Unread::NotRpc);
        }
    }
    if reads_in_two_ways(root) {
        return Err(Unread::Twice);
    }
    Ok(root)
}

/// Whether programs would take something else out of a message of JSON-RPC, or of a batch of them: a member that stands
/// there twice, or one that only some take for another.
pub(crate) fn reads_in_two_ways(root: Value<'_>) -> bool {
    let of_rpc = ["jsonrpc", "id", "method", "params", "result", "error"];
    messages(root).any(|message| {
        let params = message.get("params");
        let result = message.get("result");
        is_ambiguous(message, &of_rpc)
            || params.is_some_and(|params| is_ambiguous(params, &["name", "arguments", "cursor"]))
            || result.is_some_and(|result| is_ambiguous(result, &["tools", "content"]))
    }) || root.has_duplicate_keys()
}

/// Whether some program takes this for JSON-RPC.
pub(crate) fn is_rpc(root: Value<'_>) -> bool {
    messages(root).any(|message| {
        let mut members = message.members();
        members.any(|(key, _)| folded(&key.str().unwrap_or_default()) == "jsonrpc")
    })
}

/// Whether a message either asks or answers, and that in one way. One that does both is a request for some programs and
/// an answer for others. What is null is not there.
fn is_one_thing(message: Value<'_>) -> bool {
    let is_there = |name| message.get(name).is_some_and(|member| !member.is_null());
    match message.get("method") {
        Some(method) => {
            method.kind() == JsonKind::String && !is_there("result") && !is_there("error")
        }
        None => {
            let answers = message.get("result").is_some() || message.get("error").is_some();
            answers && !(is_there("result") && is_there("error"))
        }
    }
}

/// Whether an object has a member that a reader without regard to case (Go's) takes for one of these, and others don't.
fn is_ambiguous(object: Value<'_>, names: &[&str]) -> bool {
    object.members().any(|(key, _)| {
        let key = key.str().unwrap_or_default();
        !names.contains(&&*key) && names.contains(&folded(&key).as_str())
    })
}

fn folded(name: &str) -> String {
    let fold = |c: char| match c {
        'ſ' => 's',
        'K' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().take(32).map(fold).collect()
}

fn messages<'t>(root: Value<'t>) -> impl Iterator<Item = Value<'t>> {
    let single = (root.kind() != JsonKind::Array).then_some(root);
    single.into_iter().chain(root.items())
}

/// The id of a message as it stands there; `None` for a notification, and for what is no id.
fn id_of(message: Value<'_>) -> Option<String> {
    let id = message.get("id")?;
    let is_id = matches!(id.kind(), JsonKind::String | JsonKind::Scalar) && !id.is_null();
    is_id.then(|| String::from_utf8_lossy(id.raw()).into_owned())
}

fn tool_call(params: Value<'_>) -> ToolCall {
    use crate::llm::Arguments;
    use crate::llm::assembler::{text_arguments, value_arguments};
    let arguments = match params.get("arguments") {
        // By position, say: what is the name, and what is a command, only the server knows.
        _ if !params.is_object() => Arguments::Malformed {
            text: String::from_utf8_lossy(params.raw()).into_owned(),
            why: "its parameters are no object",
        },
        Some(arguments) => value_arguments(arguments),
        None => text_arguments(String::new()),
    };
    ToolCall {
        call: CallId(0),
        id: String::new(),
        name: params.get("name").map(Value::string).unwrap_or_default(),
        arguments,
        runs_at: RunsAt::Client,
    }
}

/// The answer to a request: for the call of a tool a result that the model reads, for others an error.
fn answer(id: &str, of_tool: bool, text: &str) -> Vec<u8> {
    if of_tool {
        refusal(id, text)
    } else {
        error(id, REFUSED, text)
    }
}

fn error(id: &str, code: i32, text: &str) -> Vec<u8> {
    let mut out = b"{\"jsonrpc\":\"2.0\",\"id\":".to_vec();
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(format!(",\"error\":{{\"code\":{code},\"message\":").as_bytes());
    quote(text, &mut out);
    out.extend_from_slice(b"}}");
    out
}

fn array<'a>(items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = vec![b'['];
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(item);
    }
    out.push(b']');
    out
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("target", &self.target)
            .field("tools", &self.tools.seen.len())
            .field("tainted", &self.tainted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

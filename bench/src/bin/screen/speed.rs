//! What screening costs.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_flow::{
    Bytes, ConnectionId, ConnectionInfo, Flow, Interceptor as _, Interest, Outcome, Step, Target,
};
use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions};
use tollgate_screen::llm::{BlockId, Dialect, Event, read_request};
use tollgate_screen::scan::{Finding, Kind, ScanState, Scanner, Severity};
use tollgate_screen::{Enforcement, Screen, ScreenConfig};
use tollgate_wire::http1::{RequestHead, Version};

use super::material::{self, Material};
use super::{Row, corpora};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a relay hands on at once.
const PIECE: usize = 16 << 10;
/// Rounds go on for so long.
const FOR: Duration = Duration::from_millis(2000);
/// A measurement takes so many seconds at least.
const LEAST: f64 = 0.1;

/// What is measured, by the names that `--speed` takes.
pub(super) const PARTS: [&str; 6] = [
    "scanning", "stream", "event", "verdict", "request", "memory",
];

/// Every row about time; or those of one part alone.
pub(super) fn rows(
    scanner: &Scanner,
    folder: Option<&Path>,
    only: Option<&str>,
) -> Result<Vec<Row>> {
    let takes = |part: &str| only.is_none_or(|only| only == part);
    let all = material::all()?;
    let words = all
        .get(2)
        .map(|kind| kind.text.as_slice())
        .unwrap_or_default();
    let mut rows = Vec::new();
    if takes("scanning") {
        rows.extend(scanning(scanner, folder, &all)?);
    }
    if takes("stream") {
        for dialect in [
            Dialect::AnthropicMessages,
            Dialect::OpenAiChat,
            Dialect::OpenAiResponses,
        ] {
            rows.push(stream(scanner, dialect, words, 40, "≥ 150 MB/s"));
        }
        rows.push(stream(
            scanner,
            Dialect::AnthropicMessages,
            words,
            1900,
            "≥ 150 MB/s",
        ));
    }
    if takes("event") {
        rows.push(event(scanner, words));
    }
    if takes("verdict") {
        rows.push(verdict(scanner, words));
    }
    if takes("request") {
        rows.extend(request(scanner, words)?);
    }
    if takes("memory") {
        rows.push(Row {
            what: "memory of a stream's scanner".to_owned(),
            figure: format!("{:.1} KiB", state_size(scanner, words) as f64 / 1024.0),
            wanted: "≤ 4 KiB",
            note: "at its largest, without what is held".to_owned(),
        });
    }
    Ok(rows)
}

/// The scanners alone.
fn scanning(scanner: &Scanner, folder: Option<&Path>, all: &[Material]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in all {
        let wanted = if kind.name.starts_with("mixed") {
            "≥ 300 MB/s"
        } else {
            ""
        };
        rows.push(throughput(
            scanner,
            Kind::Outbound,
            "outbound",
            kind,
            kind.text.len(),
            wanted,
        ));
    }
    if let Some(mixed) = all.last() {
        rows.push(throughput(
            scanner,
            Kind::Inbound,
            "inbound",
            mixed,
            mixed.text.len(),
            "≥ 300 MB/s",
        ));
        rows.push(throughput(
            scanner,
            Kind::Outbound,
            "outbound",
            mixed,
            2048,
            "",
        ));
    }
    if let Some(folder) = folder {
        let mut text = Vec::new();
        for line in corpora::lines_of(folder, "cyberseceval_mitre_frr")? {
            if !line.text.is_ascii() {
                text.extend_from_slice(line.text.as_bytes());
                text.push(b'\n');
            }
        }
        let other = Material {
            name: "prose in other scripts (CyberSecEval)",
            text,
        };
        rows.push(throughput(
            scanner,
            Kind::Outbound,
            "outbound",
            &other,
            other.text.len(),
            "",
        ));
    }
    Ok(rows)
}

/// What a round takes: processor time of this thread, so that other work on the machine hardly counts. The best of
/// several measurements of some rounds each.
fn best(mut round: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed() < FOR {
        let start = Clock::now();
        let mut rounds = 0_u32;
        let seconds = loop {
            round();
            rounds += 1;
            let seconds = start.seconds();
            if seconds > LEAST {
                break seconds;
            }
        };
        best = best.min(seconds / f64::from(rounds));
    }
    best
}

/// Processor time where the kernel tells it (Linux), else time.
enum Clock {
    Processor(f64),
    Wall(Instant),
}

impl Clock {
    fn now() -> Self {
        processor().map_or_else(|| Clock::Wall(Instant::now()), Clock::Processor)
    }

    fn seconds(&self) -> f64 {
        match self {
            Clock::Processor(start) => processor().unwrap_or(0.0) - start,
            Clock::Wall(start) => start.elapsed().as_secs_f64(),
        }
    }
}

/// Seconds that this thread has run, to some milliseconds.
fn processor() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(stat.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

fn throughput(
    scanner: &Scanner,
    kind: Kind,
    direction: &str,
    material: &Material,
    cut: usize,
    wanted: &'static str,
) -> Row {
    let text = &material.text;
    let mut findings = Vec::new();
    let seconds = best(|| {
        findings.clear();
        let mut state = scanner.start(kind);
        for piece in text.chunks(cut.max(1)) {
            scanner.feed(&mut state, black_box(piece), &mut findings);
        }
        scanner.finish(&mut state, &mut findings);
    });
    let cuts = if cut < text.len() {
        format!(", in pieces of {cut} bytes")
    } else {
        String::new()
    };
    Row {
        what: format!("scanning, {direction}, {}{cuts}", material.name),
        figure: format!("{:.0} MB/s", text.len() as f64 / 1e6 / seconds),
        wanted,
        note: format!(
            "both tiers, one core; {} findings in {:.1} MB",
            findings.len(),
            text.len() as f64 / 1e6
        ),
    }
}

/// The gate, and behind it a scanner for each block of text: what an answer costs whoever reads all of it.
struct Chain<'s> {
    scanner: &'s Scanner,
    gate: Gate,
    blocks: HashMap<BlockId, ScanState>,
    out: Vec<u8>,
    events: Vec<GateEvent>,
    findings: Vec<Finding>,
}

impl<'s> Chain<'s> {
    fn new(scanner: &'s Scanner, dialect: Dialect) -> Self {
        let gate = Gate::for_response(
            Some(dialect),
            200,
            Some("text/event-stream"),
            GateOptions::default(),
        );
        Chain {
            scanner,
            #[expect(
                clippy::expect_used,
                reason = "a stream of a language model has a gate"
            )]
            gate: gate.expect("a gate"),
            blocks: HashMap::new(),
            out: Vec::new(),
            events: Vec::new(),
            findings: Vec::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        self.out.clear();
        self.gate.feed(bytes, &mut self.out, &mut self.events);
        let mut call = None;
        for event in self.events.drain(..) {
            match event {
                GateEvent::Seen(Event::TextDelta { block, text }) => {
                    let state = self
                        .blocks
                        .entry(block)
                        .or_insert_with(|| self.scanner.start(Kind::Inbound));
                    self.scanner
                        .feed(state, text.as_bytes(), &mut self.findings);
                }
                GateEvent::Decide(asked) => call = Some(asked),
                _ => {}
            }
        }
        if let Some(call) = call {
            // As the interceptor decides.
            let mut found = Vec::new();
            for command in &call.facets().commands {
                found.extend(self.scanner.scan(Kind::Command, command.as_bytes()));
            }
            found.extend(
                self.scanner
                    .scan(Kind::Outbound, call.arguments.to_text().as_bytes()),
            );
            let refused = found
                .iter()
                .any(|finding| finding.severity >= Severity::High);
            let decision = if refused {
                Decision::block("no")
            } else {
                Decision::Allow
            };
            self.gate
                .resolve(call.call, decision, &mut self.out, &mut self.events);
        }
        self.events.clear();
        black_box(&self.out);
    }
}

/// A stretch of text that ends between two characters.
fn slice(text: &[u8], at: usize, len: usize) -> String {
    let from = at % text.len().saturating_sub(len).max(1);
    String::from_utf8_lossy(text.get(from..from + len).unwrap_or_default()).into_owned()
}

/// One event with a piece of text.
fn delta(dialect: Dialect, at: usize, text: &str) -> String {
    let text = serde_json::Value::from(text);
    match dialect {
        Dialect::AnthropicMessages => format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
             \"delta\":{{\"type\":\"text_delta\",\"text\":{text}}}}}\n\n"
        ),
        Dialect::OpenAiResponses => format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\
             \"sequence_number\":{at},\"item_id\":\"msg_68af4030baa48193b0b43b4c2a176a1a0e6967589f080e78\",\
             \"output_index\":0,\"content_index\":0,\"delta\":{text},\"logprobs\":[],\"obfuscation\":\"dGhlcXVpY2s\"}}\n\n"
        ),
        _ => format!(
            "data: {{\"id\":\"chatcmpl-CIvSl2V0XTS4VtnCBwiWUZGcLFMCI\",\"object\":\"chat.completion.chunk\",\
             \"created\":1758636115,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\
             \"system_fingerprint\":\"fp_51db84afab\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text}}},\
             \"logprobs\":null,\"finish_reason\":null}}],\"usage\":null}}\n\n"
        ),
    }
}

fn stream(
    scanner: &Scanner,
    dialect: Dialect,
    words: &[u8],
    each: usize,
    wanted: &'static str,
) -> Row {
    let mut wire = String::new();
    let mut at = 0;
    while wire.len() < 1 << 20 {
        wire.push_str(&delta(dialect, at, &slice(words, at, each)));
        at += each;
    }
    let seconds = best(|| {
        let mut chain = Chain::new(scanner, dialect);
        for piece in wire.as_bytes().chunks(PIECE) {
            chain.feed(piece);
        }
    });
    Row {
        what: format!(
            "a streamed answer, {}, {each} bytes of text an event",
            dialect.name()
        ),
        figure: format!("{:.0} MB/s", wire.len() as f64 / 1e6 / seconds),
        wanted,
        note: "framing, assembly, gate, scan of the text; bytes on the wire".to_owned(),
    }
}

fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |per_cent: usize| {
        let index = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
        times
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    (at(50), at(99))
}

fn event(scanner: &Scanner, words: &[u8]) -> Row {
    let events: Vec<String> = (0..400)
        .map(|at| {
            delta(
                Dialect::AnthropicMessages,
                at,
                &slice(words, at * 1900, 1850),
            )
        })
        .collect();
    let mut chain = Chain::new(scanner, Dialect::AnthropicMessages);
    let mut times = Vec::new();
    for event in events.iter().cycle().take(20_000) {
        let start = Instant::now();
        chain.feed(event.as_bytes());
        times.push(start.elapsed());
    }
    let (p50, p99) = percentiles(times);
    Row {
        what: "delay of an event of 2 KB, p50 / p99".to_owned(),
        figure: format!("{p50:.1} / {p99:.1} µs"),
        wanted: "≤ 15 / 100 µs",
        note: "from its last byte until it is written, its text scanned".to_owned(),
    }
}

/// Calls as agents make them: a command, a script, a file to write.
fn calls(words: &[u8]) -> Vec<serde_json::Value> {
    let mut calls = Vec::new();
    for at in 0..40 {
        calls.push(serde_json::json!({"command": format!("cd src && grep -rn 'item {at}' --include=*.rs . | head -{at}")}));
        let mut script = String::from("set -e\n");
        for line in 0..30 {
            let _ = writeln!(
                script,
                "if [ -f build/part{line}.txt ]; then cat build/part{line}.txt >> out.txt; fi"
            );
        }
        calls.push(serde_json::json!({"command": script, "description": "joins the parts"}));
        calls.push(serde_json::json!({"file_path": format!("src/part{at}.rs"), "content": slice(words, at * 9000, 4000)}));
    }
    calls
}

fn verdict(scanner: &Scanner, words: &[u8]) -> Row {
    let mut times = Vec::new();
    let all = calls(words);
    for arguments in all.iter().cycle().take(all.len() * 25) {
        let mut stream = String::from(
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":\
             {\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"bash\",\"input\":{}}}\n\n",
        );
        let json = arguments.to_string();
        for at in (0..json.len()).step_by(60) {
            let bytes = json
                .as_bytes()
                .get(at..(at + 60).min(json.len()))
                .unwrap_or_default();
            let _ = write!(
                stream,
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":\
                 {{\"type\":\"input_json_delta\",\"partial_json\":{}}}}}\n\n",
                serde_json::Value::from(String::from_utf8_lossy(bytes))
            );
        }
        let mut chain = Chain::new(scanner, Dialect::AnthropicMessages);
        chain.feed(stream.as_bytes());
        let start = Instant::now();
        chain.feed(
            b"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
        );
        times.push(start.elapsed());
    }
    let (p50, p99) = percentiles(times);
    Row {
        what: "verdict after a call's last byte, p50 / p99".to_owned(),
        figure: format!("{p50:.0} / {p99:.0} µs"),
        wanted: "p99 ≤ 200 µs",
        note: "commands, scripts of 2 KB, files of 4 KB; until the held bytes are written"
            .to_owned(),
    }
}

fn request(scanner: &Scanner, words: &[u8]) -> Result<Vec<Row>> {
    // A conversation of about 1 MB.
    let body: serde_json::Value = serde_json::from_slice(words)?;
    let mut messages = Vec::new();
    let mut size = 0;
    for message in body
        .get("messages")
        .and_then(|all| all.as_array())
        .into_iter()
        .flatten()
        .cycle()
    {
        size += message.to_string().len();
        messages.push(message.clone());
        if size > 1_000_000 {
            break;
        }
    }
    // What the request before had: all but the last answer of the model and of a tool.
    let before = messages.get(..messages.len().saturating_sub(2));
    let before = serde_json::json!({"model": "a-model", "messages": before.unwrap_or_default()});
    let body = serde_json::json!({"model": "a-model", "messages": messages}).to_string();
    let scan = best(|| {
        black_box(scanner.scan(Kind::Outbound, black_box(body.as_bytes())));
    });
    let whole = best(|| {
        black_box(scanner.scan(Kind::Outbound, black_box(body.as_bytes())));
        if let Ok(conversation) = read_request(Dialect::AnthropicMessages, body.as_bytes()) {
            for result in conversation.tool_results() {
                black_box(scanner.scan(Kind::Inbound, result.text.as_bytes()));
            }
        }
    });
    let note = format!("{:.2} MB of conversation in JSON", body.len() as f64 / 1e6);
    // The documentation shows what is to be found: it is told and passes.
    let mut config = ScreenConfig::default();
    config.enforcement = Enforcement::Monitor;
    let screen = Screen::new(scanner.clone(), config);
    look(&screen, &Bytes::from(before.to_string()))?;
    let seen = Bytes::from(body);
    // A request that isn't looked at, or refused, would be a figure of nothing.
    look(&screen, &seen)?;
    let known = best(|| {
        let _ = look(&screen, black_box(&seen));
    });
    Ok(vec![
        Row {
            what: "a request of 1 MB, scanned".to_owned(),
            figure: format!("{:.1} ms", scan * 1e3),
            wanted: "",
            note: note.clone(),
        },
        Row {
            what: "the same, and its tool results read and scanned for injection".to_owned(),
            figure: format!("{:.1} ms", whole * 1e3),
            wanted: "",
            note: format!("{note}; without the history that the proxy keeps"),
        },
        Row {
            what: "the same, by the proxy's interceptor, with a known history".to_owned(),
            figure: format!("{:.2} ms", known * 1e3),
            wanted: "≤ 1 ms",
            note,
        },
    ])
}

/// A request as the proxy's interceptor sees it.
fn look(screen: &Screen, body: &Bytes) -> Result<()> {
    let any = "127.0.0.1:1".parse()?;
    let connection = ConnectionInfo::new(ConnectionId(1), any, any, None);
    let mut flow = Flow::new(Arc::new(connection));
    flow.request.target = Target::new("api.example", 443);
    flow.request.head = RequestHead::build(b"POST", b"/v1/messages", Version::Http11)?;
    let wants_body = screen.interest(&flow);
    flow.request.put_collected_body(body.clone());
    let step = screen.request(&mut flow);
    screen.end(&flow, &Outcome::COMPLETED);
    if wants_body.contains(Interest::REQUEST_BODY) && matches!(step, Step::Continue) {
        Ok(())
    } else {
        Err(format!("the request is not read, or refused: {step:?}").into())
    }
}

fn state_size(scanner: &Scanner, words: &[u8]) -> usize {
    let mut state = scanner.start(Kind::Outbound);
    let mut findings = Vec::new();
    let mut most = 0;
    for piece in words.chunks(700).take(200) {
        scanner.feed(&mut state, piece, &mut findings);
        most = most.max(state.size());
    }
    most
}

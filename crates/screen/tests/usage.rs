//! What models used is counted for the flow, charged, and kept within budgets.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests assert by panicking"
)]

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tollgate_flow::record::USAGE;
use tollgate_flow::{
    ConnectionId, ConnectionInfo, Direction, Flow, FlowId, Injected, Interceptor, Message,
    MessageKind, Outcome, Piece, Reply, Response, Step, Target, WebSocket, WebSocketHandle,
};
use tollgate_screen::scan::Scanner;
use tollgate_screen::usage::{Ledger, Prices, Spent};
use tollgate_screen::{Enforcement, Place, Screen, ScreenConfig, Verdict};
use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

const PRICES: &str = "[[price]]\nmodel = 'm*'\ninput = 1\noutput = 10\ncache_read = 0.1\n";
const SSE: &str = "text/event-stream";
const JSON: &str = "application/json";

struct Run {
    screen: Screen,
    ledger: Arc<Ledger>,
    verdicts: Arc<Mutex<Vec<Verdict>>>,
    flows: Mutex<u128>,
}

fn run(enforcement: Enforcement, limits: &[&str]) -> Run {
    let mut config = ScreenConfig::default();
    config.enforcement = enforcement;
    let limits = limits.iter().map(|limit| limit.parse().unwrap());
    let ledger = Arc::new(Ledger::new(
        Prices::parse(PRICES).unwrap(),
        limits.collect(),
    ));
    let verdicts = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&verdicts);
    let screen = Screen::new(Scanner::builtin(), config)
        .on_verdict(Arc::new(move |v| log.lock().unwrap().push(v.clone())))
        .ledger(Arc::clone(&ledger));
    Run {
        screen,
        ledger,
        verdicts,
        flows: Mutex::new(0),
    }
}

impl Run {
    fn flow(&self, path: &str) -> Flow {
        let any = "127.0.0.1:1".parse().unwrap();
        let info = ConnectionInfo::new(ConnectionId(1), any, any, None);
        info.set_user("alice".into());
        let mut flow = Flow::new(Arc::new(info));
        let mut flows = self.flows.lock().unwrap();
        *flows += 1;
        flow.id = FlowId(*flows);
        flow.request.target = Target::new("api.example", 443);
        flow.request.head = RequestHead::build(b"POST", path.as_bytes(), Version::Http11).unwrap();
        flow
    }

    fn request(&self, flow: &mut Flow, body: &Value) -> Step {
        let body = body.to_string();
        let headers = flow.request.headers_mut();
        headers
            .append(b"Content-Length", body.len().to_string().as_bytes())
            .unwrap();
        headers.append(b"Content-Type", JSON.as_bytes()).unwrap();
        let _ = self.screen.interest(flow);
        flow.request.put_collected_body(body.into_bytes().into());
        self.screen.request(flow)
    }

    /// Passes an answer; without `end` it is cut.
    fn answer(&self, flow: &mut Flow, status: u16, content_type: &str, body: &[u8], end: bool) {
        let mut response = Response::default();
        response.head = ResponseHead::build(status, b"OK").unwrap();
        response
            .headers_mut()
            .append(b"Content-Type", content_type.as_bytes())
            .unwrap();
        flow.response = Some(Box::new(response));
        assert!(matches!(self.screen.response(flow), Step::Continue));
        let pieces = body.chunks(50).map(|piece| (piece, false));
        for (data, last) in pieces.chain(end.then_some((&b""[..], true))) {
            let direction = Direction::Response;
            let _ = self.screen.data(
                flow,
                Piece {
                    direction,
                    data,
                    last,
                },
            );
        }
        self.screen.end(flow, &Outcome::COMPLETED);
    }

    /// A whole exchange; what the flow says of it.
    fn exchange(&self, path: &str, request: &Value, content_type: &str, answer: &[u8]) -> Value {
        let mut flow = self.flow(path);
        assert!(matches!(self.request(&mut flow, request), Step::Continue));
        self.answer(&mut flow, 200, content_type, answer, true);
        let note = flow.metadata.iter().find(|(key, _)| key == USAGE);
        serde_json::from_str(&note.unwrap().1).unwrap()
    }
}

fn sse(events: &[Value]) -> Vec<u8> {
    let event = |event: &Value| match event["type"].as_str() {
        Some(name) => format!("event: {name}\ndata: {event}\n\n"),
        None => format!("data: {event}\n\n"),
    };
    events.iter().map(event).collect::<String>().into_bytes()
}

/// Every provider's way of telling that 100 tokens were read, 40 of them from its cache, and 30 were said.
#[test]
fn every_provider_is_counted_in_one_way() {
    let m = json!({"model": "m-1", "messages": [{"role": "user", "content": "hi"}]});
    let chat = json!({"prompt_tokens": 100, "completion_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 40}});
    let claude = json!({"input_tokens": 60, "output_tokens": 30, "cache_read_input_tokens": 40});
    let cases: Vec<(&str, Value, &str, Vec<u8>)> = vec![
        (
            "/v1/chat/completions",
            m.clone(),
            JSON,
            json!({"id": "c", "object": "chat.completion", "model": "m-1-2026", "usage": chat, "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}]})
            .to_string()
            .into_bytes(),
        ),
        (
            "/v1/chat/completions",
            m.clone(),
            SSE,
            [
                sse(&[
                    json!({"id": "c", "model": "m-1", "choices": [{"index": 0,
                        "delta": {"role": "assistant", "content": "hello"}}]}),
                    json!({"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": {},
                        "finish_reason": "stop"}]}),
                    json!({"id": "c", "model": "m-1", "choices": [], "usage": chat}),
                ]),
                b"data: [DONE]\n\n".to_vec(),
            ]
            .concat(),
        ),
        (
            "/v1/messages",
            m.clone(),
            SSE,
            sse(&[
                json!({"type": "message_start", "message": {"id": "x", "type": "message", "role": "assistant",
                    "model": "m-1", "content": [], "usage": {"input_tokens": 60, "output_tokens": 1,
                    "cache_read_input_tokens": 40}}}),
                json!({"type": "content_block_start", "index": 0,
                    "content_block": {"type": "text", "text": ""}}),
                json!({"type": "content_block_delta", "index": 0,
                    "delta": {"type": "text_delta", "text": "hello"}}),
                json!({"type": "content_block_stop", "index": 0}),
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
                    "usage": {"output_tokens": 30}}),
                json!({"type": "message_stop"}),
            ]),
        ),
        (
            "/v1/messages",
            m.clone(),
            JSON,
            json!({"id": "x", "type": "message", "role": "assistant", "model": "m-1", "stop_reason": "end_turn",
                "content": [{"type": "text", "text": "hello"}], "usage": claude})
            .to_string()
            .into_bytes(),
        ),
        (
            "/v1/responses",
            json!({"model": "m-1", "input": "hi"}),
            JSON,
            json!({"id": "r", "object": "response", "model": "m-1", "status": "completed", "output": [],
                "usage": {"input_tokens": 100, "output_tokens": 30,
                    "input_tokens_details": {"cached_tokens": 40}}})
            .to_string()
            .into_bytes(),
        ),
        (
            "/v1beta/models/m-1:generateContent",
            json!({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
            JSON,
            json!({"candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]},
                "finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 100,
                "cachedContentTokenCount": 40, "candidatesTokenCount": 20, "thoughtsTokenCount": 10}})
            .to_string()
            .into_bytes(),
        ),
        (
            "/model/m-1/converse",
            json!({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}),
            JSON,
            json!({"output": {"message": {"role": "assistant", "content": [{"text": "hello"}]}},
                "stopReason": "end_turn", "usage": {"inputTokens": 60, "outputTokens": 30,
                "cacheReadInputTokens": 40}})
            .to_string()
            .into_bytes(),
        ),
    ];
    let run = run(Enforcement::Enforce, &[]);
    let count = cases.len() as u64;
    for (path, request, content_type, answer) in cases {
        let note = run.exchange(path, &request, content_type, &answer);
        let expected = json!({"model": "m-1", "answers": 1, "input": 60, "output": 30, "cache_read": 40,
            "cache_write": 0, "cost": 0.000_364, "estimated": false});
        assert_eq!(note, expected, "{path} {content_type}");
    }
    let rows = run.ledger.rows();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let (asker, spent) = &rows[0];
    assert_eq!((asker.model.as_str(), &*asker.host), ("m-1", "api.example"));
    assert_eq!(asker.user.as_deref(), Some("alice"));
    assert_eq!((spent.answers, spent.output), (count, 30 * count));
}

#[test]
fn what_is_not_told_is_estimated() {
    let run = run(Enforcement::Enforce, &[]);
    let request = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "x".repeat(400)}]});
    let chunk = |text: &str| {
        let delta = json!({"role": "assistant", "content": text});
        json!({"id": "c", "choices": [{"index": 0, "delta": delta}]})
    };
    let answer = sse(&[chunk(&"y".repeat(40)), chunk(&"z".repeat(40))]);
    let note = run.exchange("/v1/chat/completions", &request, SSE, &answer);
    let asked = request.to_string().len() as u64;
    assert_eq!(note["input"], asked.div_ceil(4));
    assert_eq!(note["output"], 20);
    assert_eq!(note["estimated"], true);
    // One that was cut off is charged all the same.
    let before = run.ledger.total();
    let mut flow = run.flow("/v1/chat/completions");
    let _ = run.request(&mut flow, &request);
    run.answer(&mut flow, 200, SSE, &answer, false);
    assert_eq!(run.ledger.total().output, before.output + 20);
    // An error is not.
    let before = run.ledger.total();
    let mut flow = run.flow("/v1/chat/completions");
    let _ = run.request(&mut flow, &request);
    run.answer(&mut flow, 500, JSON, b"{\"error\":{}}", true);
    assert_eq!(run.ledger.total(), before);
}

/// The answer to a request beyond the budget.
fn beyond(run: &Run, path: &str, request: &Value) -> (Reply, Value) {
    let mut flow = run.flow(path);
    match run.request(&mut flow, request) {
        Step::Respond(reply) => {
            let body = serde_json::from_slice(&reply.body).unwrap();
            run.screen.end(&flow, &Outcome::COMPLETED);
            (*reply, body)
        }
        step => panic!("{path}: {step:?}"),
    }
}

fn use_up(run: &Run) {
    let request = json!({"model": "m", "messages": []});
    let answer = json!({"id": "c", "object": "chat.completion", "choices": [{"index": 0,
        "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 90, "completion_tokens": 10}});
    run.exchange(
        "/v1/chat/completions",
        &request,
        JSON,
        answer.to_string().as_bytes(),
    );
}

#[test]
fn beyond_a_budget_each_provider_is_imitated() {
    let run = run(Enforcement::Enforce, &["tokens=100,per=1h"]);
    use_up(&run);
    let messages = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (path, request, status, pointer, word) in [
        (
            "/v1/chat/completions",
            messages.clone(),
            429,
            "/error/code",
            "rate_limit_exceeded",
        ),
        (
            "/v1/responses",
            json!({"model": "m", "input": "hi"}),
            429,
            "/error/code",
            "rate_limit_exceeded",
        ),
        (
            "/v1/messages",
            messages.clone(),
            429,
            "/error/type",
            "rate_limit_error",
        ),
        (
            "/v1beta/models/m:generateContent",
            json!({"contents": []}),
            429,
            "/error/status",
            "RESOURCE_EXHAUSTED",
        ),
        (
            "/model/m/converse",
            json!({"messages": []}),
            400,
            "/message",
            "",
        ),
        ("/v2/chat", messages.clone(), 429, "/message", ""),
        ("/api/chat", messages.clone(), 429, "/error", ""),
    ] {
        let (reply, body) = beyond(&run, path, &request);
        assert_eq!(reply.status, status, "{path}");
        let text = body.pointer(pointer).and_then(Value::as_str).unwrap();
        assert!(text.contains(word), "{path}: {body}");
        assert!(body.to_string().contains("tokens=100,per=1h"), "{body}");
        let header = |name: &str| {
            reply
                .headers
                .get(name)
                .map(|v| String::from_utf8_lossy(v).into_owned())
        };
        assert_eq!(header("x-should-retry").as_deref(), Some("false"));
        match header("retry-after") {
            Some(wait) => assert!((3500..=3600).contains(&wait.parse().unwrap()), "{wait}"),
            None => assert_eq!(path, "/v2/chat"),
        }
    }
    assert_eq!(run.ledger.refused(), 7);
    let counters = run.screen.counters();
    assert_eq!(counters[0], ("budget_refused", 7));
    let total = run.ledger.total();
    let answers = counters.iter().find(|(name, _)| *name == "answers");
    assert_eq!(answers, Some(&("answers", total.answers)));
    assert!(total.answers > 0 && counters.contains(&("output_tokens", total.output)));
    let verdicts = run.verdicts.lock().unwrap();
    assert_eq!(verdicts.len(), 7);
    assert!(
        verdicts
            .iter()
            .all(|v| v.refused && v.place == Place::Request)
    );
    assert!(verdicts[0].reason.contains("tokens=100"), "{verdicts:?}");
}

#[test]
fn monitoring_tells_of_a_budget_and_refuses_nothing() {
    let run = run(Enforcement::Monitor, &["tokens=100,per=1h"]);
    use_up(&run);
    use_up(&run);
    let verdicts = run.verdicts.lock().unwrap();
    assert_eq!(verdicts.len(), 1);
    assert!(!verdicts[0].refused);
    assert_eq!(run.ledger.refused(), 0);
    assert_eq!(
        run.ledger.total(),
        Spent {
            answers: 2,
            input: 180,
            output: 20,
            nanos: 380_000,
            ..Spent::default()
        }
    );
}

#[test]
fn a_budget_of_cost_takes_no_model_without_a_price_however_it_is_written() {
    let run = run(Enforcement::Enforce, &["cost=5,per=1d"]);
    for model in ["\"x\"", "\"\"", "null", "\"m\",\"m\\u006fdel\":\"x\""] {
        let mut flow = run.flow("/v1/chat/completions");
        let body = format!("{{\"model\":{model},\"messages\":[]}}");
        let _ = run.screen.interest(&flow);
        flow.request.put_collected_body(body.into_bytes().into());
        let step = run.screen.request(&mut flow);
        assert!(
            matches!(step, Step::Respond(reply) if reply.status == 429),
            "{model}"
        );
    }
    let mut flow = run.flow("/v1/chat/completions");
    let step = run.request(&mut flow, &json!({"model": "m", "messages": []}));
    assert!(matches!(step, Step::Continue));
}

#[test]
fn where_the_path_says_the_model_the_body_can_not_say_another() {
    let run = run(Enforcement::Enforce, &["cost=5,per=1d"]);
    for path in [
        "/v1beta/models/x:generateContent",
        "/model/x/converse",
        "/openai/deployments/x/chat/completions",
    ] {
        let (reply, body) = beyond(&run, path, &json!({"model": "m", "messages": []}));
        assert!(matches!(reply.status, 429 | 400), "{path}");
        assert!(body.to_string().contains("has no price"), "{path}: {body}");
    }
    // Here it is only a part of the path.
    let mut flow = run.flow("/models/chat/completions");
    let step = run.request(&mut flow, &json!({"model": "m", "messages": []}));
    assert!(matches!(step, Step::Continue));
}

#[test]
fn answers_on_a_websocket_are_charged_one_by_one() {
    use std::task::{Context, Poll, Waker};

    let run = run(Enforcement::Enforce, &["tokens=100,per=1h"]);
    let mut flow = run.flow("/v1/responses");
    flow.request.head = RequestHead::build(b"GET", b"/v1/responses", Version::Http11).unwrap();
    let headers = flow.request.headers_mut();
    headers.append(b"Connection", b"Upgrade").unwrap();
    headers.append(b"Upgrade", b"websocket").unwrap();
    let handle = WebSocketHandle::new();
    flow.websocket = Some(Box::new(WebSocket::new(Some(handle.clone()))));
    let _ = run.screen.interest(&flow);
    assert!(matches!(run.screen.request(&mut flow), Step::Continue));
    let send = |flow: &mut Flow, direction, data: &str, injected| {
        let message = Message {
            direction,
            sequence: 0,
            kind: MessageKind::Text,
            data: data.as_bytes(),
            injected,
        };
        run.screen.message(flow, message)
    };
    let create = json!({"type": "response.create", "model": "m", "input": "hi"}).to_string();
    let completed =
        json!({"type": "response.completed", "response": {"id": "r", "object": "response",
        "model": "m", "output": [], "usage": {"input_tokens": 40, "output_tokens": 10}}})
        .to_string();
    for _ in 0..2 {
        assert!(matches!(
            send(&mut flow, Direction::Request, &create, false),
            Step::Continue
        ));
        assert!(matches!(
            send(&mut flow, Direction::Response, &completed, false),
            Step::Continue
        ));
    }
    let note = flow.metadata.iter().find(|(key, _)| key == USAGE).unwrap();
    let note: Value = serde_json::from_str(&note.1).unwrap();
    assert_eq!((&note["answers"], &note["input"]), (&json!(2), &json!(80)));
    // The next request doesn't reach the provider; the client gets an event that says why.
    assert!(matches!(
        send(&mut flow, Direction::Request, &create, false),
        Step::Drop
    ));
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Injected::Text(text)) = handle.poll_next(Direction::Response, &mut cx) else {
        panic!("nothing was sent")
    };
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&event["type"], &event["status"]),
        (&json!("error"), &json!(429))
    );
    assert_eq!(event["error"]["code"], "rate_limit_exceeded");
    assert!(matches!(
        send(&mut flow, Direction::Response, &text, true),
        Step::Continue
    ));
    // What comes after it isn't held up.
    assert!(matches!(
        send(&mut flow, Direction::Response, &completed, false),
        Step::Continue
    ));
}

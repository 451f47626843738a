//! Times the reading and the gating of streamed answers: `cargo bench -p tollgate-bench --bench llm`.
//!
//! `read` is framing and assembly for whoever only watches, `gate` the same with the bytes written out again.
//! `request-of-1-mb` is what a request costs that an agent sends with its whole history, seen before or not.
//! Streams are fed in pieces of 16 KiB, as a relay does, or one event at a time.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark whose input doesn't work has nothing to say, and stops"
)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tollgate_flow::{
    Bytes, ConnectionId, ConnectionInfo, Flow, Interceptor, Outcome, Step, Target,
};
use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions};
use tollgate_screen::llm::{Dialect, Framing, ResponseReader};
use tollgate_screen::scan::Scanner;
use tollgate_screen::{Screen, ScreenConfig};
use tollgate_wire::http1::{RequestHead, Version};

const SSE: &str = "text/event-stream";
const PIECE: usize = 16 * 1024;

/// A text answer of some 100 KB, a few words an event.
fn text(dialect: Dialect) -> String {
    let mut stream = String::new();
    for at in 0..500 {
        let words = r#"a \"few\" words, and more: \u00fc\n as models say"#;
        let event = match dialect {
            Dialect::AnthropicMessages => format!(
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
                 \"delta\":{{\"type\":\"text_delta\",\"text\":\"{words}\"}}}}\n\n"
            ),
            Dialect::OpenAiResponses => format!(
                "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\
                 \"sequence_number\":{at},\"item_id\":\"msg_68af4030baa48193b0b43b4c2a176a1a0e6967589f080e78\",\
                 \"output_index\":0,\"content_index\":0,\"delta\":\"{words}\",\"logprobs\":[],\
                 \"obfuscation\":\"dGhlcXVpY2s\"}}\n\n"
            ),
            _ => format!(
                "data: {{\"id\":\"chatcmpl-CIvSl2V0XTS4VtnCBwiWUZGcLFMCI\",\"object\":\"chat.completion.chunk\",\
                 \"created\":1758636115,\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\
                 \"system_fingerprint\":\"fp_51db84afab\",\"choices\":[{{\"index\":0,\"delta\":\
                 {{\"content\":\"{words}\"}},\"logprobs\":null,\"finish_reason\":null}}],\"usage\":null}}\n\n"
            ),
        };
        stream.push_str(&event);
    }
    stream
}

/// An Anthropic answer whose one call has 20 KB of arguments, without its last event.
fn call() -> (String, String) {
    let mut stream = String::from(
        "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":\
         {\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"write\",\"input\":{}}}\n\n",
    );
    let mut piece = |json: &str| {
        write!(
            stream,
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":\
             {{\"type\":\"input_json_delta\",\"partial_json\":\"{json}\"}}}}\n\n"
        )
        .unwrap();
    };
    piece(r#"{\"content\": \""#);
    for _ in 0..500 {
        piece(r"a line of forty bytes, or nearly so.\\n");
    }
    piece(r#"\"}"#);
    let stop = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n";
    (stream, stop.to_owned())
}

fn gate(dialect: Dialect) -> Gate {
    Gate::for_response(Some(dialect), 200, Some(SSE), GateOptions::default()).unwrap()
}

fn streams(criterion: &mut Criterion) {
    for dialect in [
        Dialect::AnthropicMessages,
        Dialect::OpenAiChat,
        Dialect::OpenAiResponses,
    ] {
        let stream = text(dialect);
        let mut group = criterion.benchmark_group(dialect.name());
        group.throughput(Throughput::Bytes(stream.len() as u64));
        group.bench_function("read", |bencher| {
            bencher.iter(|| {
                let mut reader = ResponseReader::new(Some(dialect), Some(Framing::Sse));
                for piece in stream.as_bytes().chunks(PIECE) {
                    reader.feed(piece, |event| drop(black_box(event)));
                }
            });
        });
        group.bench_function("gate", |bencher| {
            let (mut out, mut events) = (Vec::new(), Vec::new());
            bencher.iter(|| {
                let mut gate = gate(dialect);
                for piece in stream.as_bytes().chunks(PIECE) {
                    gate.feed(piece, &mut out, &mut events);
                    black_box((&out, &events));
                    out.clear();
                    events.clear();
                }
            });
        });
        group.finish();
    }
}

fn calls(criterion: &mut Criterion) {
    let (stream, stop) = call();
    let held = || {
        let mut gate = gate(Dialect::AnthropicMessages);
        let (mut out, mut events) = (Vec::new(), Vec::new());
        gate.feed(stream.as_bytes(), &mut out, &mut events);
        events.clear();
        (gate, out, events)
    };
    let mut group = criterion.benchmark_group("call-of-20-kb");
    group.bench_function("hold", |bencher| bencher.iter(|| black_box(held())));
    // From the last byte of the call to its bytes, or its refusal, on their way.
    for (name, decision) in [("allow", Decision::Allow), ("block", Decision::block("no"))] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                held,
                |(mut gate, mut out, mut events)| {
                    gate.feed(stop.as_bytes(), &mut out, &mut events);
                    let call = events.iter().find_map(|event| match event {
                        GateEvent::Decide(call) => Some(call.call),
                        _ => None,
                    });
                    gate.resolve(call.unwrap(), decision.clone(), &mut out, &mut events);
                    (gate, out, events)
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// What one event of 2 KB costs.
fn event(criterion: &mut Criterion) {
    let event = format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\
         \"delta\":{{\"type\":\"text_delta\",\"text\":\"{}\"}}}}\n\n",
        "Twenty bytes or so, ".repeat(95)
    );
    let mut group = criterion.benchmark_group("event-of-2-kb");
    group.throughput(Throughput::Bytes(event.len() as u64));
    group.bench_function("gate", |bencher| {
        let mut gate = gate(Dialect::AnthropicMessages);
        let (mut out, mut events) = (Vec::new(), Vec::new());
        bencher.iter(|| {
            gate.feed(event.as_bytes(), &mut out, &mut events);
            black_box((&out, &events));
            out.clear();
            events.clear();
        });
    });
    group.finish();
}

/// A request of 1 MB: its history seen for the first time, and again with one more message.
fn history(criterion: &mut Criterion) {
    let line = r"fn step(&mut self) -> Option<usize> { self.at += 1; self.body.get(self.at).map(|_| self.at) }\n";
    let message = format!(
        r#"{{"role":"tool","tool_call_id":"c","content":"{}"}}"#,
        line.repeat(80)
    );
    let messages = vec![message; 130].join(",");
    let body = |more: &str| {
        Bytes::from(format!(
            r#"{{"model":"m","stream":true,"messages":[{{"role":"system","content":"be brief"}},{messages}{more}]}}"#
        ))
    };
    let before = body("");
    let after = body(
        r#",{"role":"assistant","content":"Done."},{"role":"user","content":"And now the tests."}"#,
    );
    let look = |screen: &Screen, (mut flow, body): (Flow, Bytes)| {
        let _ = screen.interest(&flow);
        flow.request.put_collected_body(body);
        let step = screen.request(&mut flow);
        assert!(matches!(step, Step::Continue));
        screen.end(&flow, &Outcome::COMPLETED);
    };
    let screen = || Screen::new(Scanner::builtin(), ScreenConfig::default()).ledger(Arc::default());
    let mut group = criterion.benchmark_group("request-of-1-mb");
    group.throughput(Throughput::Bytes(after.len() as u64));
    let new = || (request(), after.clone());
    group.bench_function("new", |bencher| {
        bencher.iter_batched(
            || (screen(), new()),
            |(screen, request)| look(&screen, request),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("seen", |bencher| {
        let screen = screen();
        look(&screen, (request(), before.clone()));
        bencher.iter_batched(new, |request| look(&screen, request), BatchSize::LargeInput);
    });
    group.finish();
}

fn request() -> Flow {
    let any = "127.0.0.1:1".parse().unwrap();
    let mut flow = Flow::new(Arc::new(ConnectionInfo::new(
        ConnectionId(1),
        any,
        any,
        None,
    )));
    flow.request.target = Target::new("api.example", 443);
    flow.request.head =
        RequestHead::build(b"POST", b"/v1/chat/completions", Version::Http11).unwrap();
    flow
}

criterion_group!(benches, streams, calls, event, history);
criterion_main!(benches);

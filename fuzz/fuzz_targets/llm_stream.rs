//! Answers of language models from arbitrary bytes, read and gated: the same events and the same bytes for
//! every split, nothing refused is delivered, and what is allowed leaves as it came.
//!
//! The first byte says which format is expected and how the body is announced; the rest is the body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions, OnFailure};
use tollgate_screen::llm::{Dialect, Event, Framing, ResponseReader, RunsAt, json, read_request};

const DIALECTS: [Option<Dialect>; 10] = [
    None,
    Some(Dialect::AnthropicMessages),
    Some(Dialect::OpenAiChat),
    Some(Dialect::OpenAiResponses),
    Some(Dialect::Gemini),
    Some(Dialect::BedrockConverse),
    Some(Dialect::BedrockInvoke),
    Some(Dialect::Ollama),
    Some(Dialect::CohereChat),
    Some(Dialect::Mcp),
];

const TYPES: [&str; 4] = [
    "text/event-stream",
    "application/x-ndjson",
    "application/json",
    "application/vnd.amazon.eventstream",
];

fuzz_target!(|input: &[u8]| {
    let Some((&mode, body)) = input.split_first() else {
        return;
    };
    let dialect = DIALECTS[usize::from(mode % 10)];
    let content_type = TYPES[usize::from(mode / 10 % 4)];

    let read = |pieces: &[&[u8]]| {
        let announced = Framing::from_content_type(content_type);
        let mut reader = ResponseReader::with_limit(dialect, announced, 2048);
        let mut events = Vec::new();
        for piece in pieces {
            reader.feed(piece, |event| events.push(event));
        }
        reader.finish(|event| events.push(event));
        events
    };
    let events = read(&[body]);
    let blocked = gate(dialect, content_type, &[body], OnFailure::Closed, Decision::block("no"));
    for pieces in cuts(body) {
        assert_eq!(read(&pieces), events);
        let again = gate(dialect, content_type, &pieces, OnFailure::Closed, Decision::block("no"));
        assert_eq!(again, blocked);
    }
    if let Some((out, _)) = &blocked {
        let announced = Framing::from_content_type(content_type);
        let mut reader = ResponseReader::new(dialect, announced);
        let mut check = |event| {
            if let Event::ToolCallStart { runs_at, name, .. } = event {
                assert_eq!(runs_at, RunsAt::Provider, "{name} was delivered");
            }
        };
        reader.feed(out, &mut check);
        reader.finish(&mut check);
    }
    if let Some((out, _)) = gate(dialect, content_type, &[body], OnFailure::Open, Decision::Allow) {
        // Text of an open block may overtake a call that is held.
        let sorted = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.sort_unstable();
            bytes
        };
        assert_eq!(sorted(&out), sorted(body));
    }
    if let Some(dialect) = dialect {
        let request = read_request(dialect, body);
        if let Ok(request) = &request {
            assert!(request.parts.iter().all(|part| match part {
                tollgate_screen::llm::Part::Text(text) => body.get(text.span.clone()).is_some(),
                _ => true,
            }));
        }
        assert_eq!(request.is_ok(), json::Tape::default().read(body).is_ok());
    }
});

fn gate(
    dialect: Option<Dialect>,
    content_type: &str,
    pieces: &[&[u8]],
    on_failure: OnFailure,
    decision: Decision,
) -> Option<(Vec<u8>, Vec<GateEvent>)> {
    let options = GateOptions {
        on_failure,
        hold_limit: 1024,
        message_limit: 2048,
        ..GateOptions::default()
    };
    let mut gate = Gate::for_response(dialect, 200, Some(content_type), options)?;
    let (mut out, mut events) = (Vec::new(), Vec::new());
    for piece in pieces {
        gate.feed(piece, &mut out, &mut events);
    }
    gate.finish(&mut out, &mut events);
    let mut at = 0;
    while let Some(event) = events.get(at).cloned() {
        at += 1;
        if let GateEvent::Decide(call) = event {
            gate.resolve(call.call, decision.clone(), &mut out, &mut events);
        }
    }
    assert!(!gate.is_holding() && gate.held_bytes() == 0);
    // A message over the limit may fail in several pieces.
    events.dedup();
    Some((out, events))
}

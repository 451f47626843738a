//! Recorded streams of every provider through the gate: {allowed, blocked, one of two blocked,
//! redacted}, streamed and not, cut at every byte.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use std::path::PathBuf;

use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions, Messages, OnFailure};
use tollgate_screen::llm::{
    Arguments, Dialect, Event, Framing, ResponseReader, TextKind, ToolCall,
};
use tollgate_wire::framing::{AwsEventStreamMessage, AwsEventStreamSplitter, HeaderValue};

const TEXT: &str = "Let me look at that \u{1f600}.";

struct Stream {
    name: &'static str,
    dialect: Dialect,
    content_type: &'static str,
    /// The reason why the answer ended: as it came, and without a call left.
    stops: [&'static str; 2],
    /// The text holds the message whole, so that what is refused joins it.
    bytes: Vec<u8>,
}

fn file(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "streams", name]
        .iter()
        .collect();
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn aws(events: &[u8], chunk: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let text = |text: &str| HeaderValue::String(text.to_owned());
    for line in String::from_utf8(events.to_vec()).unwrap().lines() {
        let (name, payload) = line.split_once('\t').unwrap_or(("chunk", line));
        let wrapped = chunk.then(|| {
            use base64::Engine as _;
            let bytes = base64::engine::general_purpose::STANDARD.encode(payload);
            format!(r#"{{"bytes":"{bytes}","p":"abc"}}"#)
        });
        AwsEventStreamMessage {
            headers: vec![
                (":event-type".into(), text(name)),
                (":content-type".into(), text("application/json")),
                (":message-type".into(), text("event")),
            ],
            payload: wrapped.as_deref().unwrap_or(payload).as_bytes(),
        }
        .write_to(&mut out)
        .unwrap();
    }
    out
}

fn streams() -> Vec<Stream> {
    let stream = |name, dialect, content_type, stops| Stream {
        name,
        dialect,
        content_type,
        stops,
        bytes: file(name),
    };
    use Dialect::*;
    const SSE: &str = "text/event-stream; charset=utf-8";
    const JSON: &str = "application/json";
    const AWS: &str = "application/vnd.amazon.eventstream";
    let claude: Vec<u8> = String::from_utf8(file("anthropic.sse"))
        .unwrap()
        .lines()
        .filter_map(|line| Some(format!("{}\n", line.strip_prefix("data: ")?)))
        .collect::<String>()
        .into_bytes();
    vec![
        stream(
            "anthropic.sse",
            AnthropicMessages,
            SSE,
            ["tool_use", "end_turn"],
        ),
        stream(
            "anthropic.json",
            AnthropicMessages,
            JSON,
            ["tool_use", "end_turn"],
        ),
        stream("openai_chat.sse", OpenAiChat, SSE, ["tool_calls", "stop"]),
        stream("openai_chat.json", OpenAiChat, JSON, ["tool_calls", "stop"]),
        stream("mistral.sse", OpenAiChat, SSE, ["tool_calls", "stop"]),
        stream("mistral.json", OpenAiChat, JSON, ["tool_calls", "stop"]),
        stream(
            "openai_responses.sse",
            OpenAiResponses,
            SSE,
            ["completed", "completed"],
        ),
        stream(
            "openai_responses.json",
            OpenAiResponses,
            JSON,
            ["completed", "completed"],
        ),
        stream("gemini.sse", Gemini, SSE, ["STOP", "STOP"]),
        stream("gemini.json", Gemini, JSON, ["STOP", "STOP"]),
        stream("gemini_array.json", Gemini, JSON, ["STOP", "STOP"]),
        stream("vertex_partial.sse", Gemini, SSE, ["STOP", "STOP"]),
        Stream {
            name: "converse.events",
            dialect: BedrockConverse,
            content_type: AWS,
            stops: ["tool_use", "end_turn"],
            bytes: aws(&file("converse.events"), false),
        },
        stream(
            "converse.json",
            BedrockConverse,
            JSON,
            ["tool_use", "end_turn"],
        ),
        Stream {
            name: "invoke (anthropic.sse)",
            dialect: BedrockInvoke,
            content_type: AWS,
            stops: ["tool_use", "end_turn"],
            bytes: aws(&claude, true),
        },
        stream(
            "ollama.ndjson",
            Ollama,
            "application/x-ndjson",
            ["stop", "stop"],
        ),
        stream("ollama.json", Ollama, JSON, ["stop", "stop"]),
        stream("cohere.sse", CohereChat, SSE, ["TOOL_CALL", "COMPLETE"]),
        stream("cohere.json", CohereChat, JSON, ["TOOL_CALL", "COMPLETE"]),
    ]
}

/// Passes a body through a gate in pieces; decisions come after each piece.
fn gate(
    stream: &Stream,
    pieces: &[&[u8]],
    decide: impl Fn(&ToolCall) -> Decision,
) -> (Vec<u8>, Vec<GateEvent>) {
    let mut gate = Gate::for_response(
        Some(stream.dialect),
        200,
        Some(stream.content_type),
        GateOptions::default(),
    )
    .unwrap();
    let (mut out, mut all) = (Vec::new(), Vec::new());
    let mut settle = |gate: &mut Gate, out: &mut Vec<u8>, mut events: Vec<GateEvent>| {
        let mut at = 0;
        while let Some(event) = events.get(at).cloned() {
            at += 1;
            if let GateEvent::Decide(call) = event {
                let decision = decide(&call);
                gate.resolve(call.call, decision, out, &mut events);
            }
        }
        all.extend(events);
    };
    for piece in pieces {
        let mut events = Vec::new();
        gate.feed(piece, &mut out, &mut events);
        settle(&mut gate, &mut out, events);
    }
    let mut events = Vec::new();
    gate.finish(&mut out, &mut events);
    settle(&mut gate, &mut out, events);
    assert_eq!(gate.held_bytes(), 0, "{}", stream.name);
    (out, all)
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    calls: Vec<(String, String, String)>,
    stops: Vec<String>,
    unknown: Vec<String>,
}

fn read(dialect: Dialect, content_type: &str, bytes: &[u8]) -> Answer {
    let mut reader = ResponseReader::new(Some(dialect), Framing::from_content_type(content_type));
    let mut answer = Answer::default();
    let mut on_event = |event| match event {
        Event::TextDelta { block, text } => match block.kind {
            TextKind::Answer => answer.text.push_str(&text),
            TextKind::Unknown => answer.unknown.push(text),
            _ => {}
        },
        Event::ToolCallEnd(call) => {
            assert!(
                !matches!(call.arguments, Arguments::Malformed { .. }),
                "{call:?}"
            );
            let arguments = call.arguments.to_text();
            answer.calls.push((call.name, call.id, arguments));
        }
        Event::Stop { reason, .. } => answer.stops.push(reason),
        _ => {}
    };
    reader.feed(bytes, &mut on_event);
    reader.finish(&mut on_event);
    answer
}

fn block_bash(call: &ToolCall) -> Decision {
    match call.name.as_str() {
        "bash" => Decision::block("no \"shell\"\nhere"),
        _ => Decision::Allow,
    }
}

#[test]
fn allowed_streams_leave_byte_for_byte() {
    for stream in streams() {
        let (out, events) = gate(&stream, &[&stream.bytes], |_| Decision::Allow);
        assert!(out == stream.bytes, "{}", stream.name);
        let asked: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                GateEvent::Decide(call) => Some((call.name.as_str(), call.arguments.to_text())),
                _ => None,
            })
            .collect();
        assert_eq!(
            asked,
            [
                ("bash", r#"{"command":"rm -rf / # A ü"}"#.to_owned()),
                ("read_file", r#"{"path":"notes/a.txt"}"#.to_owned()),
            ],
            "{}",
            stream.name
        );
        let answer = read(stream.dialect, stream.content_type, &out);
        assert_eq!(answer.text, TEXT, "{}", stream.name);
        assert_eq!(answer.stops, [stream.stops[0]], "{}", stream.name);
        assert!(
            answer.unknown.is_empty(),
            "{}: {:?}",
            stream.name,
            answer.unknown
        );
    }
}

#[test]
fn one_of_two_is_replaced_and_the_other_delivered() {
    for stream in streams() {
        let before = read(stream.dialect, stream.content_type, &stream.bytes);
        let (out, _) = gate(&stream, &[&stream.bytes], block_bash);
        let shown = String::from_utf8_lossy(&out);
        let after = read(stream.dialect, stream.content_type, &out);
        assert_eq!(after.calls, before.calls[1..], "{}: {shown}", stream.name);
        assert!(after.text.starts_with(TEXT), "{}: {shown}", stream.name);
        assert!(
            after.text.contains("no \"shell\"\nhere"),
            "{}: {shown}",
            stream.name
        );
        assert_eq!(after.stops, [stream.stops[0]], "{}: {shown}", stream.name);
        assert!(!shown.contains("rm -rf"), "{}: {shown}", stream.name);
        assert!(
            after.unknown.is_empty(),
            "{}: {:?}",
            stream.name,
            after.unknown
        );
    }
}

#[test]
fn without_a_call_left_the_answer_ends_as_a_text_does() {
    for stream in streams() {
        let (out, events) = gate(&stream, &[&stream.bytes], |_| Decision::block("never"));
        let shown = String::from_utf8_lossy(&out);
        let after = read(stream.dialect, stream.content_type, &out);
        assert_eq!(after.calls, [], "{}: {shown}", stream.name);
        assert_eq!(
            after.text.matches("never").count(),
            2,
            "{}: {shown}",
            stream.name
        );
        assert_eq!(after.stops, [stream.stops[1]], "{}: {shown}", stream.name);
        let blocked = events.iter().filter(|e| matches!(e, GateEvent::Blocked(_)));
        assert_eq!(blocked.count(), 2, "{}", stream.name);
    }
}

#[test]
fn redacted_calls_arrive_with_the_new_arguments() {
    for stream in streams() {
        let before = read(stream.dialect, stream.content_type, &stream.bytes);
        let (out, _) = gate(&stream, &[&stream.bytes], |call| match call.name.as_str() {
            "bash" => Decision::Redact {
                arguments: Arguments::Json(serde_json::json!({"command": "echo \"hi\""})),
            },
            _ => Decision::Allow,
        });
        let shown = String::from_utf8_lossy(&out);
        let mut expected = before.calls.clone();
        expected[0].2 = r#"{"command":"echo \"hi\""}"#.to_owned();
        let after = read(stream.dialect, stream.content_type, &out);
        assert_eq!(after.calls, expected, "{}: {shown}", stream.name);
        assert_eq!(after.text, TEXT, "{}", stream.name);
        assert_eq!(after.stops, [stream.stops[0]], "{}", stream.name);
        assert!(!shown.contains("rm -rf"), "{}: {shown}", stream.name);
    }
}

#[test]
fn every_cut_gives_the_same_bytes_and_the_same_events() {
    for stream in streams() {
        let sorted = |events: Vec<GateEvent>| {
            // Decisions come at other moments; what is seen and decided is the same.
            let mut shown: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
            shown.sort();
            shown
        };
        let (whole, events) = gate(&stream, &[&stream.bytes], block_bash);
        let events = sorted(events);
        let pairs = (0..=stream.bytes.len()).step_by(5);
        let pairs = pairs.map(|at| Vec::from(<[&[u8]; 2]>::from(stream.bytes.split_at(at))));
        let bytewise = std::iter::once(stream.bytes.chunks(1).collect());
        for pieces in bytewise.chain(pairs) {
            let (out, found) = gate(&stream, &pieces, block_bash);
            assert!(out == whole, "{} {}", stream.name, pieces[0].len());
            assert_eq!(sorted(found), events, "{}", stream.name);
        }
    }
}

#[test]
fn text_is_never_held_before_a_call() {
    for stream in streams() {
        if stream.content_type == "application/json" && stream.name != "gemini_array.json" {
            continue;
        }
        let text_end = {
            let mut gate = Gate::for_response(
                Some(stream.dialect),
                200,
                Some(stream.content_type),
                GateOptions::default(),
            )
            .unwrap();
            let mut fed = 0;
            let mut out = Vec::new();
            let mut events = Vec::new();
            for byte in stream.bytes.chunks(1) {
                gate.feed(byte, &mut out, &mut events);
                if gate.is_holding() {
                    break;
                }
                fed += 1;
            }
            assert!(gate.is_holding(), "{}", stream.name);
            // All that came before the message that begins the call is out.
            assert_eq!(out, stream.bytes[..out.len()], "{}", stream.name);
            let text: String = events
                .iter()
                .filter_map(|event| match event {
                    GateEvent::Seen(Event::TextDelta { text, block })
                        if block.kind == TextKind::Answer =>
                    {
                        Some(text.as_str())
                    }
                    _ => None,
                })
                .collect();
            assert_eq!(text, TEXT, "{}", stream.name);
            assert!(fed >= out.len());
            out.len()
        };
        let out = &stream.bytes[..text_end];
        let delivered = read(stream.dialect, stream.content_type, out);
        assert_eq!(delivered.text, TEXT, "{}", stream.name);
    }
}

#[test]
fn a_reset_in_mid_hold_releases_nothing() {
    for stream in streams() {
        let mut gate = Gate::for_response(
            Some(stream.dialect),
            200,
            Some(stream.content_type),
            GateOptions::default(),
        )
        .unwrap();
        let (mut out, mut events) = (Vec::new(), Vec::new());
        gate.feed(&stream.bytes, &mut out, &mut events);
        drop(gate);
        assert!(
            !String::from_utf8_lossy(&out).contains("rm -"),
            "{}",
            stream.name
        );
        let delivered = read(stream.dialect, stream.content_type, &out);
        assert_eq!(delivered.calls, [], "{}", stream.name);
    }
}

#[test]
fn aws_messages_that_were_edited_have_good_checksums() {
    for stream in streams()
        .iter()
        .filter(|s| s.content_type.contains("amazon"))
    {
        let (out, _) = gate(stream, &[&stream.bytes], |_| Decision::block("x"));
        let mut splitter = AwsEventStreamSplitter::new();
        let mut names = Vec::new();
        splitter
            .feed(&out, |message| {
                let name = message.header(":event-type").and_then(HeaderValue::as_str);
                names.push(name.unwrap_or_default().to_owned());
            })
            .unwrap();
        splitter.finish().unwrap();
        assert!(names.len() > 5);
    }
}

#[test]
fn responses_stay_numbered_without_a_gap() {
    let streams = streams();
    let stream = streams
        .iter()
        .find(|s| s.name == "openai_responses.sse")
        .unwrap();
    for decide in [block_bash, |_: &ToolCall| Decision::block("all")] {
        let (out, _) = gate(stream, &[&stream.bytes], decide);
        let numbers: Vec<u64> = String::from_utf8(out)
            .unwrap()
            .lines()
            .filter_map(|line| {
                let event: serde_json::Value =
                    serde_json::from_str(line.strip_prefix("data: ")?).unwrap();
                event["sequence_number"].as_u64()
            })
            .collect();
        let expected: Vec<u64> = (0..numbers.len() as u64).collect();
        assert_eq!(numbers, expected);
    }
}

#[test]
fn websocket_messages_are_gated_like_events() {
    let messages = file("openai_responses.messages");
    let mut gate = Gate::for_websocket(Some(Dialect::OpenAiResponses), GateOptions::default());
    let mut out = Messages::default();
    // Two answers follow one another on one connection.
    for round in 0..2 {
        for message in messages.split(|b| *b == b'\n').filter(|m| !m.is_empty()) {
            let mut events = Vec::new();
            gate.feed(message, &mut out, &mut events);
            let mut at = 0;
            while let Some(event) = events.get(at).cloned() {
                at += 1;
                if let GateEvent::Decide(call) = event {
                    assert!(call.call.0 / 2 == round, "{call:?}");
                    gate.resolve(call.call, block_bash(&call), &mut out, &mut events);
                }
            }
        }
        assert_eq!(gate.held_bytes(), 0);
    }
    let values: Vec<serde_json::Value> = out
        .0
        .iter()
        .map(|message| serde_json::from_slice(message).unwrap())
        .collect();
    let completed: Vec<_> = values
        .iter()
        .filter(|event| event["type"] == "response.completed")
        .collect();
    assert_eq!(completed.len(), 2, "{values:#?}");
    for event in completed {
        assert_eq!(event["response"]["output"][1]["type"], "message");
        assert_eq!(event["response"]["output"][2]["name"], "read_file");
    }
    assert!(!out.0.concat().windows(6).any(|w| w == b"rm -rf"));
}

#[test]
fn tools_that_stream_at_once_are_not_held() {
    for stream in streams() {
        let options = GateOptions {
            stream_at_once: vec!["bash".into(), "read_file".into()],
            ..GateOptions::default()
        };
        let mut gate = Gate::for_response(
            Some(stream.dialect),
            200,
            Some(stream.content_type),
            options,
        )
        .unwrap();
        let (mut out, mut events) = (Vec::new(), Vec::new());
        for byte in stream.bytes.chunks(1) {
            gate.feed(byte, &mut out, &mut events);
            assert!(!gate.is_holding(), "{}", stream.name);
        }
        gate.finish(&mut out, &mut events);
        assert!(out == stream.bytes, "{}", stream.name);
        assert!(!events.iter().any(|e| matches!(e, GateEvent::Decide(_))));
    }
}

#[test]
fn a_call_that_never_ends_gets_the_declared_answer() {
    for stream in streams() {
        let streamed = stream.content_type != "application/json"
            && stream.dialect != Dialect::Ollama
            && stream.name != "mistral.sse"
            && stream.name != "gemini.sse";
        if !streamed {
            continue;
        }
        // Cut behind the first event of the call.
        let mut probe = Gate::for_response(
            Some(stream.dialect),
            200,
            Some(stream.content_type),
            GateOptions::default(),
        )
        .unwrap();
        let (mut out, mut events) = (Vec::new(), Vec::new());
        let mut at = 0;
        while !probe.is_holding() {
            probe.feed(&stream.bytes[at..=at], &mut out, &mut events);
            at += 1;
        }
        for on_failure in [OnFailure::Closed, OnFailure::Open] {
            let mut gate = Gate::for_response(
                Some(stream.dialect),
                200,
                Some(stream.content_type),
                GateOptions {
                    on_failure,
                    ..GateOptions::default()
                },
            )
            .unwrap();
            let (mut out, mut events) = (Vec::new(), Vec::new());
            gate.feed(&stream.bytes[..at], &mut out, &mut events);
            gate.finish(&mut out, &mut events);
            assert!(!gate.is_holding(), "{}", stream.name);
            match on_failure {
                OnFailure::Open => assert_eq!(out, stream.bytes[..at], "{}", stream.name),
                OnFailure::Closed => {
                    let answer = read(stream.dialect, stream.content_type, &out);
                    assert_eq!(answer.calls, [], "{}", stream.name);
                    assert!(answer.text.contains("never ended"), "{}", stream.name);
                }
            }
        }
    }
}

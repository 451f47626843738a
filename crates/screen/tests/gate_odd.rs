//! Streams that are odd, broken or hostile: nothing panics, nothing undecided is delivered, and what
//! is in order goes on.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use tollgate_screen::gate::BlockedCalls;
use tollgate_screen::gate::{
    Decision, Gate, GateEvent, GateOptions, Messages, OnFailure, repair_request,
};
use tollgate_screen::llm::{
    Arguments, Dialect, Event, Fault, Framing, ResponseReader, RunsAt, TextKind, ToolCall,
};

const SSE: &str = "text/event-stream";
const JSON: &str = "application/json";

struct Run {
    out: String,
    events: Vec<GateEvent>,
}

impl Run {
    /// The calls that were asked about: name and arguments.
    fn asked(&self) -> Vec<(String, String)> {
        let asked = |event: &GateEvent| match event {
            GateEvent::Decide(call) => Some((call.name.clone(), call.arguments.to_text())),
            _ => None,
        };
        self.events.iter().filter_map(asked).collect()
    }

    fn blocked(&self) -> Vec<(String, String)> {
        let blocked = |event: &GateEvent| match event {
            GateEvent::Blocked(call) => Some((call.name.clone(), call.reason.clone())),
            _ => None,
        };
        self.events.iter().filter_map(blocked).collect()
    }

    fn failed(&self) -> Vec<Fault> {
        let failed = |event: &GateEvent| match event {
            GateEvent::Failed { fault, .. } => Some(*fault),
            _ => None,
        };
        self.events.iter().filter_map(failed).collect()
    }
}

fn settle(
    gate: &mut Gate,
    out: &mut Vec<u8>,
    events: &mut Vec<GateEvent>,
    from: usize,
    decide: &dyn Fn(&ToolCall) -> Decision,
) {
    let mut at = from;
    while let Some(event) = events.get(at).cloned() {
        at += 1;
        if let GateEvent::Decide(call) = event {
            gate.resolve(call.call, decide(&call), out, events);
        }
    }
}

fn run_with(
    dialect: Option<Dialect>,
    content_type: &str,
    options: GateOptions,
    body: &[u8],
    decide: &dyn Fn(&ToolCall) -> Decision,
) -> Run {
    let mut gate = Gate::for_response(dialect, 200, Some(content_type), options).unwrap();
    let (mut out, mut events) = (Vec::new(), Vec::new());
    gate.feed(body, &mut out, &mut events);
    settle(&mut gate, &mut out, &mut events, 0, decide);
    let from = events.len();
    gate.finish(&mut out, &mut events);
    settle(&mut gate, &mut out, &mut events, from, decide);
    assert!(!gate.is_holding());
    Run {
        out: String::from_utf8_lossy(&out).into_owned(),
        events,
    }
}

fn run(dialect: Dialect, body: &str, decide: impl Fn(&ToolCall) -> Decision) -> Run {
    let content_type = if body.starts_with(['{', '[']) {
        JSON
    } else {
        SSE
    };
    let options = GateOptions::default();
    run_with(
        Some(dialect),
        content_type,
        options,
        body.as_bytes(),
        &decide,
    )
}

fn block(_: &ToolCall) -> Decision {
    Decision::block("no")
}

fn allow(_: &ToolCall) -> Decision {
    Decision::Allow
}

fn block_bash(call: &ToolCall) -> Decision {
    if call.name == "bash" {
        Decision::block("no")
    } else {
        Decision::Allow
    }
}

fn sse(events: &[&str]) -> String {
    events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect()
}

fn chunk(delta: &str, finish: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":{finish}}}]}}"#)
}

fn tool(index: u32, id: &str, name: &str, arguments: &str) -> String {
    let arguments = serde_json::to_string(arguments).unwrap();
    let delta = format!(
        r#"{{"tool_calls":[{{"index":{index},"id":"{id}","function":{{"name":"{name}","arguments":{arguments}}}}}]}}"#
    );
    chunk(&delta, "null")
}

#[test]
fn every_line_end_and_a_byte_order_mark_are_understood() {
    let path = [env!("CARGO_MANIFEST_DIR"), "/tests/streams/anthropic.sse"].concat();
    let stream = std::fs::read_to_string(path).unwrap();
    for body in [
        stream.replace('\n', "\r\n"),
        stream.replace('\n', "\r"),
        format!("\u{feff}{stream}"),
        stream.replace("data: ", "data:"),
        stream.replace("event: ", "id: 1\nretry: 3\nevent:"),
    ] {
        let run = run(Dialect::AnthropicMessages, &body, block_bash);
        assert_eq!(run.asked().len(), 2);
        assert!(!run.out.contains("rm -"), "{}", run.out);
        assert!(run.out.contains("read_file"), "{}", run.out);
        let untouched = run_with(
            Some(Dialect::AnthropicMessages),
            SSE,
            GateOptions::default(),
            body.as_bytes(),
            &allow,
        );
        assert_eq!(untouched.out, body);
    }
}

#[test]
fn data_over_several_lines_is_one_message() {
    let pretty = chunk("{}", "\"tool_calls\"");
    let call = tool(0, "a", "bash", "{}").replace(",\"id\"", ",\ndata: \"id\"");
    let body = format!("data: {call}\n\ndata: {pretty}\n\n");
    let blocked = run(Dialect::OpenAiChat, &body, block);
    assert_eq!(blocked.asked(), [("bash".into(), "{}".into())]);
    assert!(!blocked.out.contains("bash\""), "{}", blocked.out);
    assert_eq!(run(Dialect::OpenAiChat, &body, allow).out, body);
}

#[test]
fn interleaved_blocks_keep_their_text_live() {
    let start =
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let call = r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}"#;
    let text = r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"still here"}}"#;
    let late = r#"{"type":"content_block_start","index":2,"content_block":{"type":"text","text":"later"}}"#;
    let stop = r#"{"type":"content_block_stop","index":1}"#;
    let ping = r#"{"type":"ping"}"#;
    let mut gate = Gate::for_response(
        Some(Dialect::AnthropicMessages),
        200,
        Some(SSE),
        GateOptions::default(),
    )
    .unwrap();
    let (mut out, mut events) = (Vec::new(), Vec::new());
    gate.feed(
        sse(&[start, call, text, ping, late]).as_bytes(),
        &mut out,
        &mut events,
    );
    // The open block and the ping overtake the held call; a block that begins behind it can't.
    assert_eq!(String::from_utf8_lossy(&out), sse(&[start, text, ping]));
    out.clear();
    gate.feed(sse(&[stop]).as_bytes(), &mut out, &mut events);
    settle(&mut gate, &mut out, &mut events, 0, &allow);
    assert_eq!(String::from_utf8_lossy(&out), sse(&[call, late, stop]));
}

#[test]
fn a_call_without_arguments_is_a_call() {
    let call = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}"#;
    let stop = r#"{"type":"content_block_stop","index":0}"#;
    let run = run(Dialect::AnthropicMessages, &sse(&[call, stop]), block);
    assert_eq!(run.asked(), [("bash".into(), "{}".into())]);
    assert!(!run.out.contains("tool_use"));
}

#[test]
fn the_first_event_of_an_answer_may_not_smuggle_a_call() {
    let start = r#"{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[{"type":"tool_use","id":"t","name":"bash","input":{"command":"x"}}]}}"#;
    let run = run(Dialect::AnthropicMessages, &sse(&[start]), block);
    assert_eq!(run.asked().len(), 1);
    assert!(!run.out.contains("tool_use"), "{}", run.out);
    assert!(
        run.out.contains(r#""content":[{"type":"text""#),
        "{}",
        run.out
    );
}

#[test]
fn choices_are_judged_apart() {
    let call = tool(0, "a", "bash", "{}");
    let other = call
        .replace(r#""index":0,"delta""#, r#""index":1,"delta""#)
        .replace("bash", "look");
    let text = chunk(r#"{"content":"live"}"#, "null");
    let ends = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"},{"index":1,"delta":{},"finish_reason":"tool_calls"}]}"#;
    let run = run(
        Dialect::OpenAiChat,
        &sse(&[&call, &other, &text, ends]),
        block_bash,
    );
    assert_eq!(run.asked().len(), 2);
    assert!(
        run.out.starts_with(&sse(&[&text])),
        "text of a choice isn't held: {}",
        run.out
    );
    assert!(run.out.contains(&other));
    assert!(run.out.contains(r#"{"index":0,"delta":{},"finish_reason":"stop"},{"index":1,"delta":{},"finish_reason":"tool_calls"}"#));
}

#[test]
fn gateways_that_number_every_call_zero_are_understood() {
    let body = sse(&[
        &tool(0, "a", "bash", "{\"command\":\"x\"}"),
        &tool(0, "b", "look", "{}"),
        &chunk("{}", "\"tool_calls\""),
    ]);
    let run = run(Dialect::OpenAiChat, &body, block_bash);
    assert_eq!(run.asked().len(), 2);
    assert!(!run.out.contains(r#""name":"bash""#) && run.out.contains(r#""name":"look""#));
}

#[test]
fn survivors_are_numbered_anew() {
    let body = sse(&[
        &tool(0, "a", "bash", "{}"),
        &tool(1, "b", "look", ""),
        &tool(1, "", "", "{}"),
        &tool(2, "c", "bash", "{}"),
        &tool(3, "d", "list", "{}"),
        &chunk("{}", "\"tool_calls\""),
    ]);
    let run = run(Dialect::OpenAiChat, &body, block_bash);
    let index = |name: &str| {
        let at = run.out.find(&format!(r#""name":"{name}""#)).unwrap();
        let before = &run.out.as_bytes()[..at];
        let digit = before.iter().rev().find(|b| b.is_ascii_digit()).unwrap();
        digit - b'0'
    };
    assert_eq!((index("look"), index("list")), (0, 1), "{}", run.out);
    assert!(
        !run.out.contains(r#""index":2,"#) && !run.out.contains(r#""index":3,"#),
        "{}",
        run.out
    );
}

#[test]
fn what_can_be_read_in_two_ways_is_refused_without_asking() {
    let twice = r#"{"command":"ls","command":"rm -rf /"}"#;
    let cases = [
        (tool(0, "a", "bash", twice), "twice"),
        (tool(0, "a", "bash", "{\"command\":"), "not JSON"),
        (tool(0, "a", "bash", "{} {}"), "not JSON"),
        (tool(0, "a", "", "{}"), "no name"),
    ];
    for (call, why) in cases {
        let body = sse(&[&call, &chunk("{}", "\"tool_calls\"")]);
        let closed = run(Dialect::OpenAiChat, &body, allow);
        assert_eq!(closed.asked(), []);
        assert_eq!(closed.blocked().len(), 1, "{call}");
        assert!(
            closed.blocked()[0].1.contains(why),
            "{:?}",
            closed.blocked()
        );
        assert!(!closed.out.contains("tool_calls"), "{}", closed.out);
        let open = GateOptions {
            on_failure: OnFailure::Open,
            ..GateOptions::default()
        };
        let open = run_with(
            Some(Dialect::OpenAiChat),
            SSE,
            open,
            body.as_bytes(),
            &allow,
        );
        assert_eq!(open.asked().len(), 1, "open asks about it: {call}");
        assert_eq!(open.out, body);
    }
}

#[test]
fn a_name_in_pieces_is_refused_and_never_completes_one_that_streams_at_once() {
    let body = sse(&[
        &tool(0, "a", "read", ""),
        &tool(0, "", "_and_delete", "{}"),
        &chunk("{}", "\"tool_calls\""),
    ]);
    let held = run(Dialect::OpenAiChat, &body, allow);
    assert!(
        held.blocked()[0].1.contains("pieces"),
        "{:?}",
        held.blocked()
    );
    let options = GateOptions {
        stream_at_once: vec!["read".into()],
        ..GateOptions::default()
    };
    let at_once = run_with(
        Some(Dialect::OpenAiChat),
        SSE,
        options,
        body.as_bytes(),
        &allow,
    );
    assert!(!at_once.out.contains("_and_delete"), "{}", at_once.out);
    assert!(at_once.out.contains(r#""name":"read""#));
}

#[test]
fn members_that_stand_twice_do_not_hide_a_call() {
    // Python and JavaScript take the last one, others the first.
    let call = r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"bash","arguments":"{}"}}],"tool_calls":[{"index":0,"function":{"name":"look","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#;
    let run = run(Dialect::OpenAiChat, &sse(&[call]), allow);
    assert_eq!(run.failed(), [Fault::Unreadable]);
    assert!(!run.out.contains("bash"), "{}", run.out);
    let escaped = r#"{"choices":[{"index":0,"delta":{"tool\u005fcalls":[{"index":0,"function":{"name":"bash","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#;
    let found = self::run(Dialect::OpenAiChat, &sse(&[escaped]), block);
    assert_eq!(found.asked().len(), 1);
    assert!(!found.out.contains("bash\""));
}

#[test]
fn a_message_that_only_some_parsers_read_is_not_delivered() {
    for odd in [
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{}]}}]} trailing"#,
        r#"{'choices': 1}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"x"}}]"#,
    ] {
        let good = chunk(r#"{"content":"good"}"#, "null");
        let run = run(Dialect::OpenAiChat, &sse(&[odd, &good]), allow);
        assert_eq!(run.failed(), [Fault::Unreadable], "{odd}");
        assert_eq!(run.out, sse(&[&good]));
        let open = GateOptions {
            on_failure: OnFailure::Open,
            ..GateOptions::default()
        };
        let body = sse(&[odd, &good]);
        let run = run_with(
            Some(Dialect::OpenAiChat),
            SSE,
            open,
            body.as_bytes(),
            &allow,
        );
        assert_eq!(run.out, body);
    }
    // What can hold no call passes, whatever it is.
    let text = sse(&["hello", "[DONE]", ""]);
    assert_eq!(run(Dialect::OpenAiChat, &text, allow).out, text);
    // Python reads NaN.
    let nan = r#"{"choices":[{"index":0,"logprobs":NaN,"delta":{"tool_calls":[{"index":0,"function":{"name":"bash","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#;
    assert_eq!(
        run(Dialect::OpenAiChat, &sse(&[nan]), block).asked().len(),
        1
    );
}

#[test]
fn depth_has_a_limit_and_no_stack() {
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let run = run(Dialect::OpenAiChat, &sse(&[&deep]), allow);
    assert_eq!(run.failed(), [Fault::Unreadable]);
    let deep = serde_json::to_string(&format!("{}1{}", "[".repeat(900), "]".repeat(900))).unwrap();
    let call = tool(0, "a", "bash", "").replace("\"\"}", &format!("{deep}}}"));
    let run = self::run(
        Dialect::OpenAiChat,
        &sse(&[&call, &chunk("{}", "\"tool_calls\"")]),
        allow,
    );
    assert_eq!(run.blocked().len(), 1, "{:?}", run.events);
}

#[test]
fn a_body_has_the_framing_that_its_bytes_show() {
    let call = tool(0, "a", "bash", "{}");
    let body = sse(&[&call, &chunk("{}", "\"tool_calls\"")]);
    for content_type in [JSON, "text/plain", "application/x-ndjson", "nonsense"] {
        let options = GateOptions::default();
        let dialect = Some(Dialect::OpenAiChat);
        let run = run_with(dialect, content_type, options, body.as_bytes(), &block);
        assert_eq!(run.asked().len(), 1, "{content_type}");
    }
    let whole = r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"bash","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}"#;
    let run = run_with(
        Some(Dialect::OpenAiChat),
        SSE,
        GateOptions::default(),
        whole.as_bytes(),
        &block,
    );
    assert_eq!(run.asked().len(), 1);
    assert!(
        run.out
            .contains(r#""message":{"role":"assistant","content":"["#),
        "{}",
        run.out
    );
}

#[test]
fn shape_decides_where_the_path_says_nothing_or_something_else() {
    let call = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}"#;
    let stop = r#"{"type":"content_block_stop","index":0}"#;
    let body = sse(&[call, stop]);
    for dialect in [None, Some(Dialect::OpenAiChat), Some(Dialect::Mcp)] {
        let options = GateOptions::default();
        let run = run_with(dialect, SSE, options, body.as_bytes(), &block);
        assert_eq!(run.asked().len(), 1, "{dialect:?}");
    }
    let foreign = "event: tick\ndata: {\"n\": 1}\n\ndata: {\"n\": 2}\n\n";
    let run = run_with(
        None,
        SSE,
        GateOptions::default(),
        foreign.as_bytes(),
        &block,
    );
    assert_eq!(run.out, foreign);
    assert!(Gate::for_response(None, 200, Some(JSON), GateOptions::default()).is_none());
    let failed = Gate::for_response(
        Some(Dialect::Gemini),
        500,
        Some(SSE),
        GateOptions::default(),
    );
    assert!(failed.is_none());
}

#[test]
fn unknown_blocks_and_events_pass_and_are_shown_as_text() {
    let events = [
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"hologram","data":"z"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"hologram_delta","x":1}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"future_event","x":{"y":[1]}}"#,
    ];
    let run = run(Dialect::AnthropicMessages, &sse(&events), block);
    assert_eq!(run.out, sse(&events));
    let unknown = run.events.iter().filter(|event| {
        matches!(event, GateEvent::Seen(Event::TextDelta { block, .. })
            if block.kind == TextKind::Unknown)
    });
    assert_eq!(unknown.count(), 3);
}

#[test]
fn a_summary_cannot_bring_back_a_call_that_was_refused_or_never_judged() {
    let item = |arguments: &str| {
        format!(
            r#"{{"type":"function_call","id":"fc","call_id":"c","name":"bash","arguments":{}}}"#,
            serde_json::to_string(arguments).unwrap()
        )
    };
    let added = format!(
        r#"{{"type":"response.output_item.added","output_index":0,"item":{}}}"#,
        item("")
    );
    let done = format!(
        r#"{{"type":"response.output_item.done","output_index":0,"item":{}}}"#,
        item("{\"command\":\"ls\"}")
    );
    let completed = |arguments: &str| {
        format!(
            r#"{{"type":"response.completed","response":{{"id":"r","object":"response","output":[{}]}}}}"#,
            item(arguments)
        )
    };
    let evil = "{\"command\":\"rm -rf /\"}";
    let judge = |call: &ToolCall| {
        if call.arguments.to_text().contains("rm") {
            Decision::block("no")
        } else {
            Decision::Allow
        }
    };
    // The same call again isn't asked about twice.
    let fine = sse(&[&added, &done, &completed("{\"command\":\"ls\"}")]);
    let run = run(Dialect::OpenAiResponses, &fine, judge);
    assert_eq!((run.asked().len(), &run.out), (1, &fine));
    // One that was judged with other arguments is another call.
    let changed = sse(&[&added, &done, &completed(evil)]);
    let run = self::run(Dialect::OpenAiResponses, &changed, judge);
    assert_eq!(run.asked().len(), 2);
    assert!(!run.out.contains("rm -rf"), "{}", run.out);
    // So is one that the stream never mentioned, and one that began and has no end of its own.
    for body in [sse(&[&completed(evil)]), sse(&[&added, &completed(evil)])] {
        let run = self::run(Dialect::OpenAiResponses, &body, judge);
        assert_eq!(run.asked().len(), 1, "{:?}", run.events);
        assert!(!run.out.contains("rm -rf"), "{}", run.out);
    }
    // Deltas that say one thing, and an end that says another.
    let delta =
        r#"{"type":"response.function_call_arguments.delta","output_index":0,"delta":"{}"}"#;
    let run = self::run(
        Dialect::OpenAiResponses,
        &sse(&[&added, delta, &done]),
        allow,
    );
    assert!(run.blocked()[0].1.contains("differ"), "{:?}", run.blocked());
}

#[test]
fn every_kind_of_item_that_the_client_runs_is_asked_about() {
    for (kind, rest, name, text) in [
        (
            "custom_tool_call",
            r#""name":"apply","input":"free text""#,
            "apply",
            "free text",
        ),
        (
            "local_shell_call",
            r#""action":{"type":"exec","command":["ls"]}"#,
            "local_shell_call",
            "ls",
        ),
        (
            "shell_call",
            r#""action":{"commands":["ls"]}"#,
            "shell_call",
            "ls",
        ),
        (
            "apply_patch_call",
            r#""operation":{"type":"delete_file","path":"a"}"#,
            "apply_patch_call",
            "delete_file",
        ),
        (
            "computer_call",
            r#""action":{"type":"click"}"#,
            "computer_call",
            "click",
        ),
        (
            "mcp_approval_request",
            r#""name":"x","arguments":"{}""#,
            "x",
            "{}",
        ),
        (
            "telepathy_call",
            r#""thought":"y""#,
            "telepathy_call",
            "thought",
        ),
    ] {
        let item = format!(r#"{{"type":"{kind}","id":"i","call_id":"c",{rest}}}"#);
        let body = format!(r#"{{"object":"response","output":[{item}]}}"#);
        let run = run(Dialect::OpenAiResponses, &body, block);
        assert_eq!(run.asked().len(), 1, "{kind}");
        assert_eq!(run.asked()[0].0, name);
        assert!(run.asked()[0].1.contains(text), "{:?}", run.asked());
        assert!(!run.out.contains(&format!("\"{kind}\"")), "{}", run.out);
    }
    // Those that the provider has run are reported and pass.
    let body = r#"{"object":"response","output":[{"type":"web_search_call","id":"w","action":{"query":"q"}}]}"#;
    let run = run(Dialect::OpenAiResponses, body, block);
    assert_eq!((run.asked().len(), run.out.as_str()), (0, body));
}

#[test]
fn at_the_hold_limit_the_declared_answer_is_given_and_the_rest_is_swallowed() {
    let mut body = sse(&[&tool(0, "a", "write", "{\"x\":\"")]);
    for _ in 0..200 {
        body += &sse(&[&tool(0, "", "", "0123456789")]);
    }
    body += &sse(&[&tool(0, "", "", "\"}"), &chunk("{}", "\"tool_calls\"")]);
    for on_failure in [OnFailure::Closed, OnFailure::Open] {
        let options = GateOptions {
            on_failure,
            hold_limit: 4096,
            ..GateOptions::default()
        };
        let mut gate =
            Gate::for_response(Some(Dialect::OpenAiChat), 200, Some(SSE), options).unwrap();
        let (mut out, mut events) = (Vec::new(), Vec::new());
        let mut most = 0;
        for piece in body.as_bytes().chunks(100) {
            gate.feed(piece, &mut out, &mut events);
            most = most.max(gate.held_bytes());
        }
        gate.finish(&mut out, &mut events);
        assert!(most <= 4096 + 200, "{most}");
        let out = String::from_utf8(out).unwrap();
        if on_failure == OnFailure::Open {
            assert_eq!(out, body);
        } else {
            assert!(
                !out.contains("tool_calls") && !out.contains("0123"),
                "{out}"
            );
            assert!(
                out.contains("held") && out.contains(r#""finish_reason":"stop""#),
                "{out}"
            );
        }
    }
}

#[test]
fn a_deadline_gives_the_declared_answer() {
    let body = sse(&[&tool(0, "a", "bash", "{}"), &chunk("{}", "\"tool_calls\"")]);
    let mut gate = Gate::for_response(
        Some(Dialect::OpenAiChat),
        200,
        Some(SSE),
        GateOptions::default(),
    )
    .unwrap();
    let (mut out, mut events) = (Vec::new(), Vec::new());
    gate.feed(body.as_bytes(), &mut out, &mut events);
    assert!(out.is_empty() && gate.is_holding());
    gate.give_up(&mut out, &mut events);
    assert!(!gate.is_holding());
    assert!(String::from_utf8(out).unwrap().contains("in time"));
    let by_failure = |event: &GateEvent| matches!(event, GateEvent::Blocked(b) if b.by_failure);
    assert!(events.iter().any(by_failure));
}

#[test]
fn messages_over_the_limit_are_dropped_or_pass_in_pieces() {
    let good = chunk(r#"{"content":"good"}"#, "null");
    let large = chunk(&format!(r#"{{"content":"{}"}}"#, "x".repeat(500)), "null");
    let body = sse(&[&good, &large, &good]);
    for (on_failure, expected) in [
        (OnFailure::Closed, sse(&[&good, &good])),
        (OnFailure::Open, body.clone()),
    ] {
        let options = GateOptions {
            on_failure,
            message_limit: 200,
            ..GateOptions::default()
        };
        for size in [1, 7, 199, 10_000] {
            let mut gate =
                Gate::for_response(Some(Dialect::OpenAiChat), 200, Some(SSE), options.clone())
                    .unwrap();
            let (mut out, mut events) = (Vec::new(), Vec::new());
            for piece in body.as_bytes().chunks(size) {
                gate.feed(piece, &mut out, &mut events);
            }
            gate.finish(&mut out, &mut events);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{size}");
            let failed = events
                .iter()
                .filter(|e| matches!(e, GateEvent::Failed { .. }));
            assert_eq!(failed.count(), 1, "one failure for one message: {size}");
        }
    }
}

#[test]
fn a_whole_body_that_cannot_be_judged_is_answered_in_the_providers_shape() {
    let twice = r#"{"choices":[{"message":{"tool_calls":[{"id":"a","id":"b","function":{"name":"bash","arguments":"{}"}}]}}]}"#;
    let run = run(Dialect::OpenAiChat, twice, allow);
    let answer: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let options = GateOptions {
        message_limit: 100,
        ..GateOptions::default()
    };
    let large = format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{}"}}]}}}}]}}"#,
        "x".repeat(400)
    );
    for size in [1, 50, 1000] {
        let mut gate =
            Gate::for_response(Some(Dialect::Gemini), 200, Some(JSON), options.clone()).unwrap();
        let (mut out, mut events) = (Vec::new(), Vec::new());
        for piece in large.as_bytes().chunks(size) {
            gate.feed(piece, &mut out, &mut events);
        }
        gate.finish(&mut out, &mut events);
        let answer: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert!(answer["candidates"][0]["content"]["parts"][0]["text"].is_string());
    }
}

#[test]
fn a_broken_event_stream_ends_there() {
    let path = [env!("CARGO_MANIFEST_DIR"), "/tests/streams/converse.json"].concat();
    let mut body = vec![0, 0, 0, 40, 0, 0, 0, 0, 1, 2, 3, 4];
    body.extend(std::fs::read(path).unwrap());
    let aws = "application/vnd.amazon.eventstream";
    let dialect = Some(Dialect::BedrockConverse);
    let run = run_with(dialect, aws, GateOptions::default(), &body, &allow);
    assert_eq!((run.out.as_str(), run.failed()), ("", vec![Fault::Broken]));
    let mut gate = Gate::for_response(
        dialect,
        200,
        Some(aws),
        GateOptions {
            on_failure: OnFailure::Open,
            ..GateOptions::default()
        },
    )
    .unwrap();
    let (mut out, mut events) = (Vec::new(), Vec::new());
    for piece in body.chunks(3) {
        gate.feed(piece, &mut out, &mut events);
    }
    gate.finish(&mut out, &mut events);
    assert!(out == body);
}

#[test]
fn keep_alives_are_what_the_clients_pass_over() {
    let held = |dialect, body: &str| {
        let mut gate =
            Gate::for_response(Some(dialect), 200, Some(SSE), GateOptions::default()).unwrap();
        let (mut out, mut events): (Vec<u8>, _) = (Vec::new(), Vec::new());
        assert_eq!(gate.keep_alive(), None, "nothing is held");
        gate.feed(body.as_bytes(), &mut out, &mut events);
        assert!(gate.is_holding());
        gate.keep_alive()
    };
    let call = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"bash","input":{}}}"#;
    let ping = held(Dialect::AnthropicMessages, &sse(&[call])).unwrap();
    assert_eq!(ping, b"event: ping\ndata: {\"type\": \"ping\"}\n\n");
    let comment = held(Dialect::OpenAiChat, &sse(&[&tool(0, "a", "bash", "")])).unwrap();
    assert_eq!(comment, b": hold\n\n");
    let call =
        r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"bash","args":{}}}]}}]}"#;
    assert_eq!(held(Dialect::Gemini, &sse(&[call])), None);
}

#[test]
fn mcp_answers_pass_and_are_read() {
    let result = r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"ignore all"}],"isError":false}}"#;
    let tools = r#"{"jsonrpc":"2.0","id":2,"result":{"tools":[{"name":"t","description":"poison","inputSchema":{"properties":{"p":{"description":"deep"}}}}]}}"#;
    let body = format!("event: message\ndata: {result}\n\nevent: message\ndata: {tools}\n\n");
    let run = run(Dialect::Mcp, &body, block);
    assert_eq!(run.out, body);
    assert!(run.events.iter().any(|event| matches!(event,
        GateEvent::Seen(Event::ToolResult(result)) if result.text == "ignore all")));
    assert!(run.events.iter().any(|event| matches!(event,
        GateEvent::Seen(Event::Tools(tools)) if tools[0].text.contains("deep"))));
}

#[test]
fn the_follow_up_of_a_refused_call_answers_it_where_the_provider_waits() {
    let path = [
        env!("CARGO_MANIFEST_DIR"),
        "/tests/streams/openai_responses.sse",
    ]
    .concat();
    let stream = std::fs::read_to_string(path).unwrap();
    let run = run(Dialect::OpenAiResponses, &stream, block);
    let mut blocked = BlockedCalls::default();
    for event in run.events {
        if let GateEvent::Blocked(call) = event {
            blocked.remember(call);
        }
    }
    assert_eq!(blocked.len(), 2);
    for (input, items) in [
        (r#""input":"next""#, 3),
        (r#""input":[]"#, 2),
        (r#""input":[{"role":"user","content":"x"}]"#, 3),
        (
            r#""input":[{"type":"function_call_output","call_id":"call_2","output":"ok"}]"#,
            2,
        ),
        (r#""store":true"#, 2),
    ] {
        let body = format!(r#"{{"previous_response_id":"resp_1",{input}}}"#);
        for (body, at) in [
            (body.clone(), None),
            (
                format!(r#"{{"type":"response.create","response":{body}}}"#),
                Some("response"),
            ),
        ] {
            let repaired = repair_request(Dialect::OpenAiResponses, body.as_bytes(), &blocked);
            let value: serde_json::Value = serde_json::from_slice(&repaired.unwrap()).unwrap();
            let value = at.map_or(&value, |at| &value[at]);
            let list = value["input"].as_array().unwrap();
            assert_eq!(list.len(), items, "{body}");
            assert_eq!(list[0]["call_id"], "call_1");
        }
    }
    let other = br#"{"previous_response_id":"resp_2","input":"x"}"#;
    assert_eq!(
        repair_request(Dialect::OpenAiResponses, other, &blocked),
        None
    );
    assert_eq!(
        repair_request(Dialect::BedrockConverse, other, &blocked),
        None
    );
}

#[test]
fn state_is_small_while_nothing_is_held() {
    assert!(
        std::mem::size_of::<Gate>() <= 1536,
        "{}",
        std::mem::size_of::<Gate>()
    );
}

#[test]
fn text_split_within_a_pair_of_surrogates_is_one_character() {
    let pieces = [r#"{"content":"a\ud83d"}"#, r#"{"content":"\ude00b"}"#].map(|d| chunk(d, "null"));
    let mut text = String::new();
    let mut reader =
        ResponseReader::new(Some(Dialect::OpenAiChat), Framing::from_content_type(SSE));
    let body = sse(&[&pieces[0], &pieces[1]]);
    reader.feed(body.as_bytes(), |event| {
        if let Event::TextDelta { text: delta, .. } = event {
            text.push_str(&delta);
        }
    });
    assert_eq!(text, "a\u{1f600}b");
}

fn any_dialect() -> impl Strategy<Value = Option<Dialect>> {
    prop::sample::select(vec![
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
    ])
}

/// Streams with pieces exchanged, repeated, cut out and spoiled.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let folder = [env!("CARGO_MANIFEST_DIR"), "/tests/streams"].concat();
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let bodies: Vec<Vec<u8>> = files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect();
    let body = prop::sample::select(bodies);
    let change = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        0..5_u8,
        any::<u8>(),
    );
    (body, prop::collection::vec(change, 0..4)).prop_map(|(mut body, changes)| {
        for (at, other, what, byte) in changes {
            if body.is_empty() {
                break;
            }
            let (at, other) = (at.index(body.len()), other.index(body.len()));
            let (from, to) = (at.min(other), at.max(other));
            match what {
                0 => body[at] = byte,
                1 => body.truncate(at),
                2 => drop(body.drain(from..to.min(from + 200))),
                3 => {
                    let piece = body[from..to.min(from + 400)].to_vec();
                    body.splice(at..at, piece);
                }
                _ => body.insert(at, byte),
            }
        }
        body
    })
}

proptest! {
    #[test]
    fn any_stream_means_the_same_however_it_is_cut(
        body in any_stream(),
        dialect in any_dialect(),
        sizes in prop::collection::vec(1..300_usize, 1..8),
        open in any::<bool>(),
    ) {
        let options = GateOptions {
            on_failure: if open { OnFailure::Open } else { OnFailure::Closed },
            message_limit: 4000,
            hold_limit: 2000,
            ..GateOptions::default()
        };
        let go = |pieces: &mut dyn Iterator<Item = usize>| {
            let mut gate = Gate::for_response(dialect, 200, Some(SSE), options.clone())?;
            let (mut out, mut events) = (Vec::new(), Vec::new());
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(pieces.next().unwrap().min(rest.len()));
                gate.feed(piece, &mut out, &mut events);
                rest = after;
            }
            gate.finish(&mut out, &mut events);
            // Decided only now, so that the moment of the decision plays no part.
            settle(&mut gate, &mut out, &mut events, 0, &block_bash);
            assert!(!gate.is_holding());
            // How many pieces an oversized message passes in is all that may differ.
            events.dedup();
            Some((out, events))
        };
        let whole = go(&mut std::iter::repeat(usize::MAX));
        let cut = go(&mut sizes.iter().copied().cycle());
        let bytewise = go(&mut std::iter::repeat(1));
        prop_assert!(whole.is_some());
        prop_assert_eq!(&whole, &cut);
        prop_assert_eq!(&whole, &bytewise);
    }

    #[test]
    fn what_is_refused_is_not_delivered(body in any_stream(), dialect in any_dialect()) {
        for content_type in [SSE, "application/x-ndjson"] {
            let options = GateOptions::default();
            let Some(mut gate) = Gate::for_response(dialect, 200, Some(content_type), options) else {
                continue;
            };
            let (mut out, mut events) = (Vec::new(), Vec::new());
            gate.feed(&body, &mut out, &mut events);
            gate.finish(&mut out, &mut events);
            settle(&mut gate, &mut out, &mut events, 0, &block);
            let announced = Framing::from_content_type(content_type);
            let mut reader = ResponseReader::new(dialect, announced);
            let mut delivered = Vec::new();
            let mut check = |event| {
                if let Event::ToolCallStart { runs_at: RunsAt::Client, name, .. } = event {
                    delivered.push(name);
                }
            };
            reader.feed(&out, &mut check);
            reader.finish(&mut check);
            prop_assert!(delivered.is_empty(), "{:?}: {}", delivered, String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn allowed_means_untouched(body in any_stream(), dialect in any_dialect()) {
        let options = GateOptions {
            on_failure: OnFailure::Open,
            ..GateOptions::default()
        };
        let mut gate = Gate::for_response(dialect, 200, Some(SSE), options).unwrap();
        let (mut out, mut events) = (Vec::new(), Vec::new());
        gate.feed(&body, &mut out, &mut events);
        gate.finish(&mut out, &mut events);
        settle(&mut gate, &mut out, &mut events, 0, &allow);
        prop_assert!(sorted(&out) == sorted(&body));
    }

    #[test]
    fn any_messages_on_a_websocket_are_survived(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..10),
    ) {
        let mut gate = Gate::for_websocket(None, GateOptions::default());
        let (mut out, mut events) = (Messages::default(), Vec::new());
        for message in &messages {
            gate.feed(message, &mut out, &mut events);
        }
        gate.finish(&mut out, &mut events);
        prop_assert!(out.0.iter().all(|message| messages.contains(message)));
    }
}

/// Text of an open block may overtake a call that is held: the same messages, maybe in another order.
fn sorted(body: &[u8]) -> Vec<u8> {
    let mut bytes = body.to_vec();
    bytes.sort_unstable();
    bytes
}

#[test]
fn redaction_replaces_free_text_as_text() {
    let item =
        r#"{"type":"custom_tool_call","id":"i","call_id":"c","name":"apply","input":"secret"}"#;
    let body = format!(r#"{{"object":"response","output":[{item}]}}"#);
    let run = run(Dialect::OpenAiResponses, &body, |_| Decision::Redact {
        arguments: Arguments::Text("gone \"now\"".into()),
    });
    assert_eq!(run.out, body.replace("\"secret\"", "\"gone \\\"now\\\"\""));
}

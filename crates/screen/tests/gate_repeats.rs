//! Events that differ in their text alone take a short way through the gate. They come out, and are read, as if each had
//! come byte by byte, which is the long way.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use tollgate_screen::gate::{Decision, Gate, GateEvent, GateOptions};
use tollgate_screen::llm::Dialect;

/// Texts as they stand between the quotes.
const TEXTS: [&str; 12] = [
    "Hello",
    " world, and more of it than fits in eight bytes",
    "",
    r"a\n\tb",
    r#"say \"no\""#,
    r"back\\",
    r"\ud83d",
    r"\ude00",
    r"\u00e9t\u00e9",
    "日本語 🎈",
    r"\q\é",
    "x\ny",
];

/// Events of a kind; `@` is the text.
fn events(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::AnthropicMessages => &[
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"@\"}}\n\n",
            "event: content_block_delta\r\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"@\"}}\r\n\r\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"@\"}}\n\n",
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"@\"}}\n\n",
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t\",\"name\":\"bash\",\"input\":{}}}\n\n",
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"u\",\"name\":\"read\",\"input\":{}}}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{}\"}}\n\n",
            "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
            "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":1}\n\n",
            "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"}}\n\n",
            "data: {\"type\":\"content_block_delta\",\"text\":\"@\n\n",
            ": comment\n\n",
            "\n",
        ],
        Dialect::OpenAiChat => &[
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@\"},\"finish_reason\":null}]}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"@\"}}]}\n\n",
            "data: {\"id\":\"d\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"@\"}}]}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@\",\"reasoning\":\"@\"}}]}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@\",\"content\":\"@\"}}]}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@\"}}],\"usage\":{\"prompt_tokens\":1}}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"function\":{\"name\":\"bash\",\"arguments\":\"{}\"}}]}}]}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":1,\"id\":\"b\",\"function\":{\"name\":\"read\",\"arguments\":\"{}\"}}]}}]}\n\n",
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
            "data: [DONE]\n\n",
        ],
        _ => &[
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"output_index\":0,\"content_index\":0,\"delta\":\"@\"}\n\n",
            "data: {\"type\":\"response.output_text.delta\",\"sequence_number\":4,\"output_index\":0,\"delta\":\"@\"}\ndata:\n\n",
            "data: {\"type\":\"response.function_call_arguments.delta\",\"output_index\":1,\"delta\":\"@\"}\n\n",
            "data: {\"type\":\"response.output_item.added\",\"output_index\":1,\"item\":{\"type\":\"function_call\",\"call_id\":\"a\",\"id\":\"i\",\"name\":\"bash\",\"arguments\":\"\"}}\n\n",
            "data: {\"type\":\"response.output_item.done\",\"output_index\":1,\"item\":{\"type\":\"function_call\",\"call_id\":\"a\",\"id\":\"i\",\"name\":\"bash\",\"arguments\":\"{}\"}}\n\n",
            "data: {\"unknown\":\"@\"}\n\n",
        ],
    }
}

/// What a gate lets through, and what it says. It is fed pieces of `size` bytes, and decisions come where `stops` are, so
/// that they come at the same moments whatever the size is.
fn pass(
    dialect: Dialect,
    stream: &[u8],
    stops: &[usize],
    size: usize,
    limit: usize,
) -> (Vec<u8>, Vec<GateEvent>) {
    let options = GateOptions {
        message_limit: limit,
        ..GateOptions::default()
    };
    let sse = Some("text/event-stream");
    let mut gate = Gate::for_response(Some(dialect), 200, sse, options).unwrap();
    let (mut out, mut said) = (Vec::new(), Vec::new());
    let mut rest = stream;
    let mut stops = stops.iter().cycle();
    while !rest.is_empty() {
        let stop = stops.next().copied().unwrap_or(rest.len());
        let (now, later) = rest.split_at(stop.min(rest.len()));
        rest = later;
        let mut events = Vec::new();
        for piece in now.chunks(size) {
            gate.feed(piece, &mut out, &mut events);
        }
        if rest.is_empty() {
            gate.finish(&mut out, &mut events);
        }
        let mut at = 0;
        while let Some(event) = events.get(at).cloned() {
            at += 1;
            if let GateEvent::Decide(call) = &event {
                let decision = match call.name.as_str() {
                    "bash" => Decision::block("no"),
                    _ => Decision::Allow,
                };
                gate.resolve(call.call, decision, &mut out, &mut events);
            }
        }
        said.extend(events);
    }
    (out, said)
}

fn dialect() -> impl Strategy<Value = Dialect> {
    prop_oneof![
        Just(Dialect::AnthropicMessages),
        Just(Dialect::OpenAiChat),
        Just(Dialect::OpenAiResponses),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_short_way_leads_to_the_same(
        dialect in dialect(),
        // An event, how often it comes, and the first of its texts.
        runs in prop::collection::vec((any::<prop::sample::Index>(), 1..5_usize, 0..TEXTS.len()), 1..12),
        stops in prop::collection::vec(1..600_usize, 1..6),
        limit in prop_oneof![Just(100_usize), Just(1 << 20)],
    ) {
        let pool = events(dialect);
        let mut stream = String::new();
        for (event, times, text) in runs {
            for at in 0..times {
                let text = TEXTS[(text + at) % TEXTS.len()];
                stream.push_str(&event.get(pool).replace('@', text));
            }
        }
        let stream = stream.as_bytes();
        for stops in [stops, vec![usize::MAX]] {
            let fast = pass(dialect, stream, &stops, usize::MAX, limit);
            let slow = pass(dialect, stream, &stops, 1, limit);
            prop_assert_eq!(String::from_utf8_lossy(&fast.0), String::from_utf8_lossy(&slow.0));
            prop_assert_eq!(fast.1, slow.1);
        }
    }
}

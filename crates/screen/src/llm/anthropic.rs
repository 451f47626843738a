//! Anthropic Messages: `content_block_start` … `content_block_stop`, and the whole message.

use super::assembler::{
    Begin, Calls, Order, Phase, Reading, index, position, some_text, text, unknown,
    value_arguments, word,
};
use super::json::Value;
use super::model::{BlockId, Event, RunsAt, TextKind, ToolResult, Usage};

pub(super) fn read(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    match word(root, "type").as_ref() {
        "message_start" => {
            if let Some(message) = root.get("message") {
                start(calls, message, reading);
                // Usually empty; clients keep what is in it.
                blocks(calls, message, reading);
            }
        }
        "content_block_start" => block_start(calls, root, reading),
        "content_block_delta" => block_delta(calls, root, reading),
        "content_block_stop" => {
            let index = index(root, "index");
            let key = u64::from(index);
            reading.order = Order::Block { key, start: false };
            if calls.is_open(key) {
                calls.touch(key, Phase::End, (0, 0), reading);
                calls.end(key, None, reading);
            }
        }
        "message_delta" => {
            usage(root, reading);
            if let Some(delta) = root.get("delta") {
                stop(delta, reading);
            }
        }
        "message_stop" => reading.events.push(Event::End),
        "ping" => reading.order = Order::Free,
        "error" => reading.events.push(Event::Error {
            message: root
                .path(&["error", "message"])
                .map(Value::string)
                .unwrap_or_default(),
        }),
        "message" => whole(calls, root, reading),
        _ => unknown(root.raw(), reading),
    }
}

fn start(calls: &mut Calls, message: Value<'_>, reading: &mut Reading) {
    calls.start(message, reading);
    usage(message, reading);
}

fn stop(value: Value<'_>, reading: &mut Reading) {
    if let Some(reason) = some_text(value, "stop_reason") {
        reading.events.push(Event::Stop { choice: 0, reason });
    }
}

/// Who runs the tool of a block of this type; `None` if it is no call.
fn runs_at(kind: &str) -> Option<RunsAt> {
    match kind {
        "tool_use" => Some(RunsAt::Client),
        "server_tool_use" | "mcp_tool_use" => Some(RunsAt::Provider),
        _ => None,
    }
}

fn block_start(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    let key = u64::from(index(root, "index"));
    reading.order = Order::Block { key, start: true };
    let Some(block) = root.get("content_block") else {
        return;
    };
    let kind = text(block, "type");
    if let Some(runs_at) = runs_at(&kind) {
        calls.begin(
            &Begin {
                key,
                id: &text(block, "id"),
                name: &text(block, "name"),
                runs_at,
                free_text: false,
                at: (0, 0),
            },
            reading,
        );
        // Usually `{}`; deltas that follow replace it, and without them it is all there is.
        if let Some(input) = block.get("input").filter(|input| input.raw() != b"{}") {
            calls.set_arguments(key, String::from_utf8_lossy(input.raw()).into_owned());
        }
        return;
    }
    content(calls, index(root, "index"), block, &kind, reading);
}

/// A block that is no call: as it begins in a stream, or whole.
fn content(calls: &mut Calls, index: u32, block: Value<'_>, kind: &str, reading: &mut Reading) {
    let id = |kind| BlockId {
        choice: 0,
        index,
        kind,
    };
    match kind {
        "text" => {
            if let Some(text) = block.get("text") {
                calls.text(id(TextKind::Answer), text, reading);
            }
        }
        "thinking" => {
            if let Some(text) = block.get("thinking") {
                calls.text(id(TextKind::Thinking), text, reading);
            }
        }
        "redacted_thinking" => {}
        kind if kind.ends_with("tool_result") => {
            reading.events.push(Event::ToolResult(ToolResult {
                call_id: text(block, "tool_use_id"),
                text: super::request::all_text(block.get("content").unwrap_or(block)),
                is_error: block.get("is_error").is_some_and(Value::is_true),
                span: block.span(),
            }))
        }
        _ => unknown(block.raw(), reading),
    }
}

fn block_delta(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    let index = index(root, "index");
    let key = u64::from(index);
    reading.order = Order::Block { key, start: false };
    let Some(delta) = root.get("delta") else {
        return;
    };
    if calls.is_open(key) {
        match delta.get("partial_json") {
            Some(piece) => calls.append(key, piece, (0, 0), reading),
            None => calls.touch(key, Phase::Delta, (0, 0), reading),
        }
        return;
    }
    let block = |kind| BlockId {
        choice: 0,
        index,
        kind,
    };
    match word(delta, "type").as_ref() {
        "text_delta" => {
            if let Some(text) = delta.get("text") {
                calls.text(block(TextKind::Answer), text, reading);
            }
        }
        "thinking_delta" => {
            if let Some(text) = delta.get("thinking") {
                calls.text(block(TextKind::Thinking), text, reading);
            }
        }
        "signature_delta" => {}
        _ => unknown(delta.raw(), reading),
    }
}

fn whole(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    start(calls, root, reading);
    blocks(calls, root, reading);
    stop(root, reading);
    reading.events.push(Event::End);
}

/// The content of a whole message.
fn blocks(calls: &mut Calls, message: Value<'_>, reading: &mut Reading) {
    let blocks = message.get("content").into_iter().flat_map(Value::items);
    for (at, block) in blocks.enumerate() {
        let kind = text(block, "type");
        match runs_at(&kind) {
            Some(runs_at) => {
                let begin = Begin {
                    key: 0,
                    id: &text(block, "id"),
                    name: &text(block, "name"),
                    runs_at,
                    free_text: false,
                    at: (0, position(at)),
                };
                let input = block.get("input").unwrap_or(block);
                calls.whole(&begin, value_arguments(input), Phase::Whole, reading);
            }
            None => content(calls, position(at), block, &kind, reading),
        }
    }
}

fn usage(holder: Value<'_>, reading: &mut Reading) {
    let Some(usage) = holder.get("usage").filter(|usage| usage.is_object()) else {
        return;
    };
    let number = |name: &str| usage.get(name).and_then(Value::u64);
    reading.events.push(Event::Usage(Usage {
        input: number("input_tokens"),
        output: number("output_tokens"),
        cache_read: number("cache_read_input_tokens"),
        cache_write: number("cache_creation_input_tokens"),
        thinking: None,
    }));
}

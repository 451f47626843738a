//! Amazon Bedrock Converse and ConverseStream.

use super::assembler::{
    Begin, Calls, Order, Phase, Reading, index, position, some_text, text, unknown, value_arguments,
};
use super::json::Value;
use super::model::{BlockId, Event, RunsAt, TextKind, Usage};

/// `name` is the message's `:event-type`.
pub(super) fn read(calls: &mut Calls, root: Value<'_>, name: &str, reading: &mut Reading) {
    let block = index(root, "contentBlockIndex");
    let key = u64::from(block);
    match name {
        "messageStart" => calls.start_as(None, None, reading),
        "contentBlockStart" => {
            reading.order = Order::Block { key, start: true };
            if let Some(tool) = root.path(&["start", "toolUse"]) {
                // `type` is set on tools that Bedrock runs itself.
                let runs_at = match text(tool, "type").as_str() {
                    "server_tool_use" => RunsAt::Provider,
                    _ => RunsAt::Client,
                };
                let begin = Begin {
                    key,
                    id: &text(tool, "toolUseId"),
                    name: &text(tool, "name"),
                    runs_at,
                    free_text: false,
                    at: (0, 0),
                };
                calls.begin(&begin, reading);
            }
        }
        "contentBlockDelta" => {
            // Text blocks have no start of their own.
            reading.order = Order::Block { key, start: false };
            let Some(delta) = root.get("delta") else {
                return;
            };
            if calls.is_open(key) {
                match delta.path(&["toolUse", "input"]) {
                    Some(piece) => calls.append(key, piece, (0, 0), reading),
                    None => calls.touch(key, Phase::Delta, (0, 0), reading),
                }
            } else {
                content(calls, block, delta, reading);
            }
        }
        "contentBlockStop" => {
            reading.order = Order::Block { key, start: false };
            if calls.is_open(key) {
                calls.touch(key, Phase::End, (0, 0), reading);
                calls.end(key, None, reading);
            }
        }
        "messageStop" => {
            stop(root, reading);
            reading.events.push(Event::End);
        }
        "metadata" => usage(root, reading),
        "" => whole(calls, root, reading),
        name if name.ends_with("Exception") => reading.events.push(Event::Error {
            message: text(root, "message"),
        }),
        _ => unknown(root.raw(), reading),
    }
}

fn content(calls: &mut Calls, index: u32, block: Value<'_>, reading: &mut Reading) {
    let id = |kind| BlockId {
        choice: 0,
        index,
        kind,
    };
    let thinking = block
        .path(&["reasoningContent", "text"])
        .or_else(|| block.path(&["reasoningContent", "reasoningText", "text"]));
    if let Some(text) = block.get("text") {
        calls.text(id(TextKind::Answer), text, reading);
    } else if let Some(text) = thinking {
        calls.text(id(TextKind::Thinking), text, reading);
    } else if block.get("reasoningContent").is_none() {
        unknown(block.raw(), reading);
    }
}

fn whole(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    let Some(message) = root.path(&["output", "message"]) else {
        if let Some(message) = some_text(root, "message") {
            reading.events.push(Event::Error { message });
        } else {
            unknown(root.raw(), reading);
        }
        return;
    };
    calls.start_as(None, None, reading);
    let blocks = message.get("content").into_iter().flat_map(Value::items);
    for (at, block) in blocks.enumerate() {
        if let Some(tool) = block.get("toolUse") {
            let begin = Begin {
                key: 0,
                id: &text(tool, "toolUseId"),
                name: &text(tool, "name"),
                runs_at: RunsAt::Client,
                free_text: false,
                at: (0, position(at)),
            };
            let input = tool.get("input").unwrap_or(tool);
            calls.whole(&begin, value_arguments(input), Phase::Whole, reading);
        } else {
            content(calls, position(at), block, reading);
        }
    }
    stop(root, reading);
    usage(root, reading);
    reading.events.push(Event::End);
}

fn stop(root: Value<'_>, reading: &mut Reading) {
    if let Some(reason) = some_text(root, "stopReason") {
        reading.events.push(Event::Stop { choice: 0, reason });
    }
}

fn usage(root: Value<'_>, reading: &mut Reading) {
    if let Some(usage) = root.get("usage") {
        let number = |name: &str| usage.get(name).and_then(Value::u64);
        reading.events.push(Event::Usage(Usage {
            input: number("inputTokens"),
            output: number("outputTokens"),
            cache_read: number("cacheReadInputTokens"),
            cache_write: number("cacheWriteInputTokens"),
            thinking: None,
        }));
    }
}

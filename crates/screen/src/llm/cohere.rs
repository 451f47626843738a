//! Cohere Chat, version 2: typed events, and the whole response.

use super::assembler::{
    Begin, Calls, Order, Phase, Reading, index, position, some_text, text, text_arguments, unknown,
    value_arguments, word,
};
use super::json::{Kind, Value};
use super::model::{BlockId, Event, RunsAt, TextKind, Usage};

/// Content and tool calls are numbered apart; this sets the keys of content apart, too.
const CONTENT: u64 = 1 << 32;

pub(super) fn read(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    let number = index(root, "index");
    let key = u64::from(number);
    let message = root.path(&["delta", "message"]);
    let block = |kind| BlockId {
        choice: 0,
        index: number,
        kind,
    };
    match word(root, "type").as_ref() {
        "message-start" => calls.start_as(some_text(root, "id"), None, reading),
        "content-start" | "content-delta" => {
            reading.order = Order::Block {
                key: CONTENT | key,
                start: text(root, "type") == "content-start",
            };
            if let Some(content) = message.and_then(|message| message.get("content")) {
                if let Some(piece) = content.get("text") {
                    calls.text(block(TextKind::Answer), piece, reading);
                }
                if let Some(piece) = content.get("thinking") {
                    calls.text(block(TextKind::Thinking), piece, reading);
                }
            }
        }
        "content-end" => {
            reading.order = Order::Block {
                key: CONTENT | key,
                start: false,
            };
        }
        "tool-plan-delta" => {
            reading.order = Order::Free;
            if let Some(piece) = message.and_then(|message| message.get("tool_plan")) {
                calls.text(block(TextKind::Thinking), piece, reading);
            }
        }
        "tool-call-start" => {
            if let Some(entry) = message.and_then(|message| message.get("tool_calls")) {
                let entry = entry.item(0).unwrap_or(entry);
                let function = entry.get("function").unwrap_or(entry);
                let begin = Begin {
                    key,
                    id: &text(entry, "id"),
                    name: &text(function, "name"),
                    runs_at: RunsAt::Client,
                    free_text: false,
                    at: (0, 0),
                };
                calls.begin(&begin, reading);
                if let Some(piece) = function.get("arguments") {
                    calls.append_silently(key, piece, reading);
                }
            }
        }
        "tool-call-delta" => {
            let piece = message
                .and_then(|message| message.get("tool_calls"))
                .map(|entry| entry.item(0).unwrap_or(entry))
                .and_then(|entry| entry.path(&["function", "arguments"]));
            match piece {
                Some(piece) => calls.append(key, piece, (0, 0), reading),
                None => calls.touch(key, Phase::Delta, (0, 0), reading),
            }
        }
        "tool-call-end" => {
            calls.touch(key, Phase::End, (0, 0), reading);
            calls.end(key, None, reading);
        }
        "message-end" => {
            if let Some(delta) = root.get("delta") {
                end(delta, reading);
            }
        }
        "citation-start" | "citation-end" | "debug" => {}
        _ if root.get("message").is_some() => whole(calls, root, reading),
        _ => unknown(root.raw(), reading),
    }
}

fn whole(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    let Some(message) = root.get("message").filter(|message| message.is_object()) else {
        let message = text(root, "message");
        reading.events.push(Event::Error { message });
        return;
    };
    calls.start_as(some_text(root, "id"), None, reading);
    let block = |index, kind| BlockId {
        choice: 0,
        index,
        kind,
    };
    if let Some(plan) = message.get("tool_plan") {
        calls.text(block(0, TextKind::Thinking), plan, reading);
    }
    let content = message.get("content").into_iter().flat_map(Value::items);
    for (at, part) in content.enumerate() {
        for (name, kind) in [("text", TextKind::Answer), ("thinking", TextKind::Thinking)] {
            if let Some(piece) = part.get(name) {
                calls.text(block(position(at), kind), piece, reading);
            }
        }
    }
    let entries = message.get("tool_calls").into_iter().flat_map(Value::items);
    for (at, entry) in entries.enumerate() {
        let function = entry.get("function").unwrap_or(entry);
        let begin = Begin {
            key: 0,
            id: &text(entry, "id"),
            name: &text(function, "name"),
            runs_at: RunsAt::Client,
            free_text: false,
            at: (0, position(at)),
        };
        let arguments = match function.get("arguments") {
            Some(value) if value.kind() == Kind::String => text_arguments(value.string()),
            Some(value) => value_arguments(value),
            None => text_arguments(String::new()),
        };
        calls.whole(&begin, arguments, Phase::Whole, reading);
    }
    end(root, reading);
}

fn end(holder: Value<'_>, reading: &mut Reading) {
    let number = |kind: &str, name: &str| {
        let value = holder.path(&["usage", kind, name])?;
        let whole = std::str::from_utf8(value.raw()).ok()?.split('.').next()?;
        whole.parse().ok()
    };
    if holder.get("usage").is_some() {
        reading.events.push(Event::Usage(Usage {
            input: number("billed_units", "input_tokens"),
            output: number("billed_units", "output_tokens"),
            ..Usage::default()
        }));
    }
    if let Some(reason) = some_text(holder, "finish_reason") {
        reading.events.push(Event::Stop { choice: 0, reason });
    }
    reading.events.push(Event::End);
}

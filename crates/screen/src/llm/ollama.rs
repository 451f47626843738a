//! Ollama's own API: `/api/chat` and `/api/generate`, as lines or whole.

use super::assembler::{
    Begin, Calls, Order, Phase, Reading, position, some_text, text, text_arguments, value_arguments,
};
use super::json::{Kind, Value};
use super::model::{BlockId, Event, RunsAt, TextKind, Usage};

pub(super) fn read(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    if let Some(message) = some_text(root, "error") {
        reading.events.push(Event::Error { message });
        return;
    }
    calls.start_as(None, some_text(root, "model"), reading);
    let block = |kind| BlockId {
        choice: 0,
        index: 0,
        kind,
    };
    let message = root.get("message");
    for (holder, name, kind) in [
        (message, "thinking", TextKind::Thinking),
        (message, "content", TextKind::Answer),
        (Some(root), "thinking", TextKind::Thinking),
        (Some(root), "response", TextKind::Answer),
    ] {
        if let Some(piece) = holder.and_then(|holder| holder.get(name)) {
            calls.text(block(kind), piece, reading);
        }
    }
    let entries = message.and_then(|message| message.get("tool_calls"));
    for (at, entry) in entries.into_iter().flat_map(Value::items).enumerate() {
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
    if !root.get("done").is_some_and(Value::is_true) {
        if reading.touches.is_empty() {
            reading.order = Order::Free;
        }
        return;
    }
    let number = |name: &str| root.get(name).and_then(Value::u64);
    reading.events.push(Event::Usage(Usage {
        input: number("prompt_eval_count"),
        output: number("eval_count"),
        ..Usage::default()
    }));
    if let Some(reason) = some_text(root, "done_reason") {
        reading.events.push(Event::Stop { choice: 0, reason });
    }
    reading.events.push(Event::End);
}

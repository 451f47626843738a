//! OpenAI Responses: events over SSE or WebSocket, and the whole response.
//!
//! The events are numbered, so every one of them waits for those before it.

use super::assembler::{
    Begin, Calls, Phase, Reading, Touch, index, position, some_text, text, text_arguments, unknown,
    value_arguments, word,
};
use super::json::{Kind, Value};
use super::model::{Arguments, BlockId, CallId, Event, RunsAt, TextKind, Usage};

pub(super) fn read(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    let kind = word(root, "type");
    let output = index(root, "output_index");
    let key = u64::from(output);
    let block = |kind| BlockId {
        choice: output,
        index: index(root, "content_index").wrapping_add(index(root, "summary_index")),
        kind,
    };
    let delta = root.get("delta");
    match kind.as_ref() {
        "response.created" | "response.queued" | "response.in_progress" => {
            if let Some(response) = root.get("response") {
                if kind == "response.created" {
                    calls.restart();
                }
                calls.start(response, reading);
            }
        }
        "response.output_item.added" => {
            if let Some(item) = root.get("item")
                && let Some(call) = call_of(item)
            {
                calls.begin(&call.begin(key, (0, 0)), reading);
            }
        }
        "response.output_item.done" => {
            if let Some(item) = root.get("item")
                && let Some(call) = call_of(item)
            {
                item_done(calls, key, item, &call, reading);
            } else if calls.is_open(key) {
                // It ends as something else than it began.
                calls.malform(key, "the call ends as an item of another type");
                calls.touch(key, Phase::End, (0, 0), reading);
                calls.end(key, None, reading);
            }
        }
        "response.output_text.delta" => {
            if let Some(delta) = delta {
                calls.text(block(TextKind::Answer), delta, reading);
            }
        }
        "response.refusal.delta" => {
            if let Some(delta) = delta {
                calls.text(block(TextKind::Refusal), delta, reading);
            }
        }
        "response.reasoning_text.delta" | "response.reasoning_summary_text.delta" => {
            if let Some(delta) = delta {
                calls.text(block(TextKind::Thinking), delta, reading);
            }
        }
        "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
            if let Some(response) = root.get("response") {
                summary(calls, response, reading);
            }
        }
        "error" => reading.events.push(Event::Error {
            message: some_text(root, "message")
                .or_else(|| some_text(root.get("error")?, "message"))
                .unwrap_or_default(),
        }),
        kind if kind.starts_with("response.") => {
            if calls.is_open(key) {
                match delta.filter(|_| kind.ends_with(".delta")) {
                    Some(piece) if is_arguments(kind) => calls.append(key, piece, (0, 0), reading),
                    _ => {
                        if let Some(whole) = root.get("arguments").or_else(|| root.get("input")) {
                            calls.set_arguments(key, whole.string());
                        }
                        calls.touch(key, Phase::Delta, (0, 0), reading);
                    }
                }
            } else if let Some(piece) = delta.filter(|_| kind.ends_with("_call_arguments.delta")) {
                // Arguments of a call that never began.
                unknown(piece.raw(), reading);
            }
        }
        _ if root.get("output").is_some() => {
            calls.restart();
            calls.start(root, reading);
            summary(calls, root, reading);
        }
        _ => unknown(root.raw(), reading),
    }
}

fn is_arguments(kind: &str) -> bool {
    kind.contains("_arguments.") || kind.contains("_input.") || kind.contains("_code.")
}

/// An output item that is a call.
struct ItemCall {
    id: String,
    name: String,
    runs_at: RunsAt,
    free_text: bool,
}

impl ItemCall {
    fn begin(&self, key: u64, at: (u32, u32)) -> Begin<'_> {
        Begin {
            key,
            id: &self.id,
            name: &self.name,
            runs_at: self.runs_at,
            free_text: self.free_text,
            at,
        }
    }
}

/// An item that calls a tool. Types that aren't known and end in `_call` count, as run by the client.
fn call_of(item: Value<'_>) -> Option<ItemCall> {
    let kind = text(item, "type");
    let runs_at = match kind.as_str() {
        "mcp_call"
        | "code_interpreter_call"
        | "web_search_call"
        | "file_search_call"
        | "image_generation_call" => RunsAt::Provider,
        "mcp_approval_request" | "program" => RunsAt::Client,
        kind if kind.ends_with("_call") => RunsAt::Client,
        _ => return None,
    };
    Some(ItemCall {
        id: some_text(item, "call_id").unwrap_or_else(|| text(item, "id")),
        name: some_text(item, "name").unwrap_or_else(|| kind.clone()),
        runs_at,
        free_text: kind == "custom_tool_call",
    })
}

fn tell(calls: &mut Calls, item: Value<'_>, call: CallId, reading: &Reading) {
    calls.tell(&text(item, "call_id"), call, reading);
    calls.tell(&text(item, "id"), call, reading);
}

/// The call's arguments as a finished item has them.
fn item_arguments(item: Value<'_>, free_text: bool) -> Arguments {
    match item.get("arguments").or_else(|| item.get("input")) {
        Some(value) if value.kind() == Kind::String && free_text => Arguments::Text(value.string()),
        Some(value) if value.kind() == Kind::String => text_arguments(value.string()),
        Some(value) => value_arguments(value),
        None => value_arguments(
            item.get("action")
                .or_else(|| item.get("operation"))
                .unwrap_or(item),
        ),
    }
}

fn item_done(calls: &mut Calls, key: u64, item: Value<'_>, call: &ItemCall, reading: &mut Reading) {
    if !calls.is_open(key) {
        let whole = calls.whole(
            &call.begin(key, (0, 0)),
            item_arguments(item, call.free_text),
            Phase::Whole,
            reading,
        );
        tell(calls, item, whole, reading);
        return;
    }
    // What the client acts on is the finished item.
    if calls
        .open_id(key)
        .is_some_and(|(_, name)| name != call.name)
    {
        calls.append_name(key, &call.name);
    }
    let whole = match item.get("arguments").or_else(|| item.get("input")) {
        Some(value) if value.kind() == Kind::String => {
            calls.set_arguments(key, value.string());
            None
        }
        Some(value) => Some(value),
        None => Some(
            item.get("action")
                .or_else(|| item.get("operation"))
                .unwrap_or(item),
        ),
    };
    calls.touch(key, Phase::End, (0, 0), reading);
    if let Some(ended) = calls.end(key, whole, reading) {
        tell(calls, item, ended, reading);
    }
}

/// A whole response: of a request without a stream, or at the end of one.
fn summary(calls: &mut Calls, response: Value<'_>, reading: &mut Reading) {
    let streamed = calls.has_text;
    for (at, item) in response
        .get("output")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        let at = (0, position(at));
        let Some(call) = call_of(item) else {
            if !streamed {
                item_text(calls, at.1, item, reading);
            }
            continue;
        };
        let arguments = item_arguments(item, call.free_text);
        let ids = [text(item, "call_id"), text(item, "id")];
        let ids = ids.iter().filter(|id| !id.is_empty());
        // A call that has no end of its own ends here.
        if let Some((key, _)) = ids.clone().find_map(|id| calls.open_with_id(id)) {
            item_done(calls, key, item, &call, reading);
            reading.touches.pop();
        }
        match ids.clone().find_map(|id| calls.told(id, &arguments)) {
            Some(known) if call.runs_at == RunsAt::Client => reading.touches.push(Touch {
                call: known,
                phase: Phase::Echo,
                at,
                choice: 0,
            }),
            Some(_) => {}
            None => {
                let begin = call.begin(0, at);
                let whole = calls.whole(&begin, arguments, Phase::Whole, reading);
                tell(calls, item, whole, reading);
            }
        }
    }
    calls.malform_where(|_| true, "the call never ended");
    calls.end_where(|_| true, reading);
    usage(response, reading);
    if let Some(reason) = some_text(response, "status") {
        reading.events.push(Event::Stop { choice: 0, reason });
    }
    reading.events.push(Event::End);
}

fn item_text(calls: &mut Calls, at: u32, item: Value<'_>, reading: &mut Reading) {
    let parts = ["content", "summary"].map(|name| item.get(name));
    for (index, part) in parts
        .into_iter()
        .flatten()
        .flat_map(Value::items)
        .enumerate()
    {
        for (name, kind) in [("text", TextKind::Answer), ("refusal", TextKind::Refusal)] {
            let kind = match text(item, "type").as_str() {
                "message" => kind,
                _ => TextKind::Thinking,
            };
            let block = BlockId {
                choice: at,
                index: position(index),
                kind,
            };
            if let Some(piece) = part.get(name) {
                calls.text(block, piece, reading);
            }
        }
    }
}

fn usage(response: Value<'_>, reading: &mut Reading) {
    let Some(usage) = response.get("usage").filter(|usage| usage.is_object()) else {
        return;
    };
    let number = |path: &[&str]| usage.path(path).and_then(Value::u64);
    let cached = number(&["input_tokens_details", "cached_tokens"]);
    reading.events.push(Event::Usage(Usage {
        input: number(&["input_tokens"]).map(|all| all.saturating_sub(cached.unwrap_or(0))),
        output: number(&["output_tokens"]),
        cache_read: cached,
        cache_write: None,
        thinking: number(&["output_tokens_details", "reasoning_tokens"]),
    }));
}

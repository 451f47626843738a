//! OpenAI Chat Completions, and what is compatible with it: chunks and the whole completion.

use super::assembler::{
    Begin, Calls, Order, Phase, Reading, index, position, some_text, text, text_arguments, unknown,
    value_arguments,
};
use super::json::{Kind, Value};
use super::model::{Arguments, BlockId, Event, RunsAt, TextKind, Usage};

/// The position of a legacy `function_call`, which stands outside `tool_calls`.
pub(crate) const FUNCTION_CALL: u32 = u32::MAX;

pub(super) fn read(calls: &mut Calls, root: Value<'_>, reading: &mut Reading) {
    if let Some(error) = root.get("error").filter(|error| !error.is_null()) {
        let message = some_text(error, "message").or_else(|| error.str().map(Into::into));
        reading.events.push(Event::Error {
            message: message.unwrap_or_default(),
        });
    }
    let mut only_text = true;
    let mut any = false;
    for (at, choice) in root
        .get("choices")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        any = true;
        let number = index(choice, "index");
        let place = Place {
            choice: number,
            at: position(at),
        };
        if let Some(delta) = choice.get("delta").filter(|delta| delta.is_object()) {
            if delta.get("role").is_some() {
                calls.start(root, reading);
            }
            message(calls, place, delta, true, reading);
        } else if let Some(whole) = choice.get("message").filter(|v| v.is_object()) {
            calls.start(root, reading);
            message(calls, place, whole, false, reading);
            only_text = false;
        } else if let Some(piece) = choice.get("text") {
            let block = place.block(TextKind::Answer);
            calls.text(block, piece, reading);
        }
        if let Some(reason) = some_text(choice, "finish_reason") {
            only_text = false;
            calls.end_where(|key| key >> 32 == u64::from(number), reading);
            reading.events.push(Event::Stop {
                choice: number,
                reason,
            });
        }
    }
    if any && only_text && reading.touches.is_empty() {
        reading.order = Order::Free;
    }
    usage(root, reading);
    if !any && root.get("error").is_none() && root.get("usage").is_none() {
        unknown(root.raw(), reading);
    }
}

#[derive(Clone, Copy)]
struct Place {
    choice: u32,
    at: u32,
}

impl Place {
    fn block(self, kind: TextKind) -> BlockId {
        BlockId {
            choice: self.choice,
            index: 0,
            kind,
        }
    }
}

/// A delta, or a whole message.
fn message(calls: &mut Calls, place: Place, value: Value<'_>, delta: bool, reading: &mut Reading) {
    for (name, kind) in [
        ("reasoning_content", TextKind::Thinking),
        ("reasoning", TextKind::Thinking),
        ("content", TextKind::Answer),
        ("refusal", TextKind::Refusal),
    ] {
        let Some(piece) = value.get(name) else {
            continue;
        };
        calls.text(place.block(kind), piece, reading);
        // Mistral's content chunks.
        for chunk in piece.items() {
            if let Some(piece) = chunk.get("text") {
                calls.text(place.block(kind), piece, reading);
            }
            for thought in chunk.get("thinking").into_iter().flat_map(Value::items) {
                if let Some(piece) = thought.get("text") {
                    calls.text(place.block(TextKind::Thinking), piece, reading);
                }
            }
        }
    }
    if let Some(function) = value.get("function_call").filter(|v| v.is_object()) {
        call(calls, place, FUNCTION_CALL, value, function, delta, reading);
    }
    for (at, entry) in value
        .get("tool_calls")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        let function = entry
            .get("function")
            .or_else(|| entry.get("custom"))
            .unwrap_or(entry);
        call(calls, place, position(at), entry, function, delta, reading);
    }
}

/// One entry of `tool_calls`, or a `function_call`.
fn call(
    calls: &mut Calls,
    place: Place,
    entry_at: u32,
    entry: Value<'_>,
    function: Value<'_>,
    delta: bool,
    reading: &mut Reading,
) {
    let at = (place.at, entry_at);
    let legacy = entry_at == FUNCTION_CALL;
    let id = if legacy {
        String::new()
    } else {
        text(entry, "id")
    };
    let name = text(function, "name");
    let free_text = entry.get("custom").is_some();
    let arguments = function.get("arguments").or_else(|| function.get("input"));
    let slot = match entry.get("index").and_then(Value::u64) {
        _ if legacy => FUNCTION_CALL,
        Some(index) => u32::try_from(index).unwrap_or(FUNCTION_CALL - 1),
        None => entry_at,
    };
    let key = u64::from(place.choice) << 32 | u64::from(slot);
    let begin = Begin {
        key,
        id: &id,
        name: &name,
        runs_at: RunsAt::Client,
        free_text,
        at,
    };
    if !delta {
        let arguments = match arguments {
            Some(value) if value.kind() == Kind::String && free_text => {
                Arguments::Text(value.string())
            }
            Some(value) if value.kind() == Kind::String => text_arguments(value.string()),
            Some(value) => value_arguments(value),
            None => text_arguments(String::new()),
        };
        calls.whole(&begin, arguments, Phase::Whole, reading);
        return;
    }
    // Some gateways give every parallel call the index 0, and only the identifier tells them apart.
    let other = calls
        .open_id(key)
        .is_some_and(|(known, _)| !id.is_empty() && !known.is_empty() && known != id);
    if other {
        calls.end(key, None, reading);
    }
    if !calls.is_open(key) {
        calls.begin(&begin, reading);
    } else {
        if !name.is_empty() {
            calls.append_name(key, &name);
        }
        if !id.is_empty() {
            calls.set_id(key, &id);
        }
        calls.touch(key, Phase::Delta, at, reading);
    }
    match arguments {
        Some(piece) if piece.kind() == Kind::String => {
            // The touch stands already.
            let touches = reading.touches.len();
            calls.append(key, piece, at, reading);
            reading.touches.truncate(touches);
        }
        // Ollama-like gateways: the arguments are an object.
        Some(piece) if piece.is_object() => {
            calls.set_arguments(key, String::from_utf8_lossy(piece.raw()).into_owned());
        }
        _ => {}
    }
}

fn usage(root: Value<'_>, reading: &mut Reading) {
    let Some(usage) = root.get("usage").filter(|usage| usage.is_object()) else {
        return;
    };
    let number = |path: &[&str]| usage.path(path).and_then(Value::u64);
    let cached = number(&["prompt_tokens_details", "cached_tokens"]);
    reading.events.push(Event::Usage(Usage {
        input: number(&["prompt_tokens"]).map(|all| all.saturating_sub(cached.unwrap_or(0))),
        output: number(&["completion_tokens"]),
        cache_read: cached,
        cache_write: None,
        thinking: number(&["completion_tokens_details", "reasoning_tokens"]),
    }));
}

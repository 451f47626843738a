//! Gemini and Vertex AI: `GenerateContentResponse`, whole or as a stream of partial ones.

use serde_json::{Map, Value as Json};

use super::assembler::{
    Begin, Calls, Order, Phase, Reading, index, position, some_text, text, text_arguments,
    value_arguments,
};
use super::json::{Kind, Value};
use super::model::{Arguments, BlockId, Event, RunsAt, TextKind, ToolCall, Usage};

/// A function call whose arguments come in parts (`partialArgs`, `willContinue`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Partial {
    /// By candidate: the arguments so far, and the path of the string that goes on.
    open: Vec<(u64, Json, usize)>,
}

impl Partial {
    /// Candidates that have an unfinished call at one time.
    const MAX: usize = 64;
}

pub(super) fn read(
    calls: &mut Calls,
    partial: &mut Partial,
    root: Value<'_>,
    reading: &mut Reading,
) {
    // Gemini CLI's endpoint wraps the response.
    let root = root
        .get("response")
        .filter(|inner| inner.is_object())
        .unwrap_or(root);
    if let Some(error) = root.get("error") {
        reading.events.push(Event::Error {
            message: text(error, "message"),
        });
    }
    if root.get("responseId").is_some() || root.get("modelVersion").is_some() {
        calls.start_as(
            some_text(root, "responseId"),
            some_text(root, "modelVersion"),
            reading,
        );
    }
    let mut only_text = true;
    for (at, candidate) in root
        .get("candidates")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        let number = index(candidate, "index");
        let parts = candidate.path(&["content", "parts"]);
        for (part_at, part) in parts.into_iter().flat_map(Value::items).enumerate() {
            let place = Place {
                candidate: number,
                at: (position(at), position(part_at)),
            };
            read_part(calls, partial, place, part, reading);
        }
        if let Some(reason) = some_text(candidate, "finishReason") {
            only_text = false;
            let key = u64::from(number);
            calls.malform_where(|open| open == key, "the call never ended");
            calls.end_where(|open| open == key, reading);
            partial.open.retain(|(open, ..)| *open != key);
            reading.events.push(Event::Stop {
                choice: number,
                reason,
            });
        }
    }
    if only_text && reading.touches.is_empty() && root.get("candidates").is_some() {
        reading.order = Order::Free;
    }
    if let Some(usage) = root.get("usageMetadata") {
        let number = |name: &str| usage.get(name).and_then(Value::u64);
        let cached = number("cachedContentTokenCount");
        let thinking = number("thoughtsTokenCount");
        let answer = number("candidatesTokenCount");
        reading.events.push(Event::Usage(Usage {
            input: number("promptTokenCount").map(|all| all.saturating_sub(cached.unwrap_or(0))),
            output: answer
                .or(thinking)
                .map(|_| answer.unwrap_or(0).saturating_add(thinking.unwrap_or(0))),
            cache_read: cached,
            cache_write: None,
            thinking,
        }));
    }
}

#[derive(Clone, Copy)]
struct Place {
    candidate: u32,
    at: (u32, u32),
}

fn read_part(
    calls: &mut Calls,
    partial: &mut Partial,
    place: Place,
    part: Value<'_>,
    reading: &mut Reading,
) {
    if let Some(text) = part.get("text") {
        let thought = part.get("thought").is_some_and(Value::is_true);
        let block = BlockId {
            choice: place.candidate,
            index: 0,
            kind: if thought {
                TextKind::Thinking
            } else {
                TextKind::Answer
            },
        };
        calls.text(block, text, reading);
    }
    if let Some(code) = part.get("executableCode") {
        let begin = Begin {
            key: 0,
            id: &text(code, "id"),
            name: "code_execution",
            runs_at: RunsAt::Provider,
            free_text: false,
            at: place.at,
        };
        calls.whole(&begin, value_arguments(code), Phase::Whole, reading);
    }
    if let Some(call) = part.get("functionCall").filter(|call| call.is_object()) {
        function_call(calls, partial, place, call, reading);
    }
}

fn function_call(
    calls: &mut Calls,
    partial: &mut Partial,
    place: Place,
    call: Value<'_>,
    reading: &mut Reading,
) {
    let key = u64::from(place.candidate);
    let goes_on = call.get("willContinue").is_some_and(Value::is_true);
    let parts = call.get("partialArgs");
    let name = text(call, "name");
    let open = calls.is_open(key);
    if !open && !goes_on && parts.is_none() {
        let arguments = match call.get("args") {
            Some(args) if args.is_object() => value_arguments(args),
            Some(args) if !args.is_null() => value_arguments(args),
            _ => text_arguments(String::new()),
        };
        let begin = Begin {
            key,
            id: &text(call, "id"),
            name: &name,
            runs_at: RunsAt::Client,
            free_text: false,
            at: place.at,
        };
        calls.whole(&begin, arguments, Phase::Whole, reading);
        return;
    }
    if open {
        if !name.is_empty() {
            calls.append_name(key, &name);
        }
        calls.touch(
            key,
            if goes_on { Phase::Delta } else { Phase::End },
            place.at,
            reading,
        );
    } else {
        if partial.open.len() >= Partial::MAX {
            partial.open.remove(0);
        }
        partial.open.retain(|(open, ..)| *open != key);
        partial.open.push((key, Json::Object(Map::new()), 0));
        calls.begin(
            &Begin {
                key,
                id: &text(call, "id"),
                name: &name,
                runs_at: RunsAt::Client,
                free_text: false,
                at: place.at,
            },
            reading,
        );
    }
    let limit = calls.limit();
    if let Some((_, arguments, size)) = partial.open.iter_mut().find(|(open, ..)| *open == key) {
        if let Some(args) = call.get("args").filter(|args| args.is_object())
            && let Arguments::Json(Json::Object(members)) = value_arguments(args)
            && let Json::Object(known) = arguments
        {
            known.extend(members);
        }
        for piece in parts.into_iter().flat_map(Value::items) {
            *size = size.saturating_add(piece.raw().len());
            if *size > limit {
                calls.malform(key, "the arguments are over the limit");
            } else if put(arguments, piece).is_none() {
                calls.malform(key, "a part of the arguments has no place");
            }
        }
    }
    if goes_on {
        return;
    }
    let position = partial.open.iter().position(|(open, ..)| *open == key);
    let arguments = position.map(|at| partial.open.swap_remove(at).1);
    if let Some(arguments) = arguments {
        calls.set_arguments(key, arguments.to_string());
    }
    calls.end(key, None, reading);
}

/// Puts a `partialArgs` entry where its `jsonPath` points. A string joins the string before it.
fn put(arguments: &mut Json, piece: Value<'_>) -> Option<()> {
    let path = text(piece, "jsonPath");
    let mut target = arguments;
    for step in steps(&path)? {
        target = match step {
            Step::Name(name) => {
                if target.is_null() {
                    *target = Json::Object(Map::new());
                }
                target.as_object_mut()?.entry(name).or_insert(Json::Null)
            }
            Step::Index(index) => {
                if target.is_null() {
                    *target = Json::Array(Vec::new());
                }
                let list = target.as_array_mut()?;
                // Elements come in order.
                if index > list.len() {
                    return None;
                }
                if index == list.len() {
                    list.push(Json::Null);
                }
                list.get_mut(index)?
            }
        };
    }
    if let Some(text) = piece
        .get("stringValue")
        .filter(|v| v.kind() == Kind::String)
    {
        let before = target.as_str().unwrap_or_default();
        *target = Json::String(format!("{before}{}", text.string()));
    } else if let Some(value) = ["numberValue", "boolValue", "nullValue"]
        .into_iter()
        .find_map(|name| piece.get(name))
    {
        *target = serde_json::from_slice(value.raw()).unwrap_or(Json::Null);
    }
    Some(())
}

enum Step {
    Name(String),
    Index(usize),
}

/// `$.a.b[0]['c']` as steps; `None` if it isn't of that form or has over 32 steps.
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut rest = path.strip_prefix('$').unwrap_or(path);
    let mut steps = Vec::new();
    while !rest.is_empty() && steps.len() < 32 {
        if let Some(tail) = rest.strip_prefix('[') {
            let (inner, tail) = tail.split_once(']')?;
            let quoted = inner
                .strip_prefix(['\'', '"'])
                .and_then(|inner| inner.strip_suffix(['\'', '"']));
            steps.push(match quoted {
                Some(name) => Step::Name(name.to_owned()),
                None => Step::Index(inner.parse().ok()?),
            });
            rest = tail;
        } else {
            let tail = rest.strip_prefix('.').unwrap_or(rest);
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            let (name, tail) = tail.split_at_checked(end)?;
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Name(name.to_owned()));
            rest = tail;
        }
    }
    rest.is_empty().then_some(steps)
}

/// For requests: a `functionCall` of an earlier turn.
pub(super) fn call_in_history(call: Value<'_>, number: super::model::CallId) -> ToolCall {
    ToolCall {
        call: number,
        id: text(call, "id"),
        name: text(call, "name"),
        arguments: call
            .get("args")
            .map_or_else(|| text_arguments(String::new()), value_arguments),
        runs_at: RunsAt::Client,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::json::Tape;

    #[test]
    fn partial_arguments_find_their_place() {
        let mut arguments = Json::Object(Map::new());
        for piece in [
            r#"{"jsonPath":"$.command","stringValue":"rm ","willContinue":true}"#,
            r#"{"jsonPath":"$.command","stringValue":"-rf /"}"#,
            r#"{"jsonPath":"$.list[0].n","numberValue":3}"#,
            r#"{"jsonPath":"$['list'][1]","boolValue":true}"#,
        ] {
            let mut tape = Tape::default();
            put(&mut arguments, tape.read(piece.as_bytes()).unwrap()).unwrap();
        }
        assert_eq!(
            arguments,
            serde_json::json!({"command": "rm -rf /", "list": [{"n": 3}, true]})
        );
        let mut tape = Tape::default();
        let far = tape
            .read(br#"{"jsonPath":"$.x[9]","boolValue":true}"#)
            .unwrap();
        assert_eq!(put(&mut arguments, far), None);
    }
}

//! Formats with a list of calls in a message: OpenAI Chat Completions, Ollama, Cohere's whole answer.

use super::{Fate, fate};
use crate::gate::calls::Verdict;
use crate::gate::edit::{FrameEdit, Object, Splice};
use crate::llm::assembler::{Phase, index, position};
use crate::llm::json::{Kind, Value, quoted};
use crate::llm::openai_chat::FUNCTION_CALL;

pub(super) fn edit(frame: &mut FrameEdit<'_>) {
    let root = frame.root;
    let mut edits = Splice::default();
    // A message that carries nothing but parts of refused calls need not be sent.
    let mut empty = true;
    for (at, choice) in root
        .get("choices")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        let number = index(choice, "index");
        let holder = choice.get("delta").or_else(|| choice.get("message"));
        let touched = frame.touches.iter().any(|touch| touch.at.0 == position(at));
        if let Some(holder) = holder.filter(|holder| touched && holder.is_object()) {
            let new = message(frame, position(at), number, holder, Content::Text);
            empty &= new == b"{}";
            if new != holder.raw() {
                edits.replace(holder.span(), new);
            }
        } else {
            empty = false;
        }
        if let Some(reason) = choice
            .get("finish_reason")
            .filter(|reason| !reason.is_null())
        {
            empty = false;
            let calls = reason.is("tool_calls") || reason.is("function_call");
            if calls && frame.calls.none_left(number) {
                edits.replace(reason.span(), "\"stop\"");
            }
        }
    }
    let usage = root.get("usage").is_some_and(|usage| !usage.is_null());
    if !empty || usage || frame.touches.is_empty() {
        frame.edited(&edits);
    }
}

pub(super) fn edit_ollama(frame: &mut FrameEdit<'_>) {
    let mut edits = Splice::default();
    if let Some(holder) = frame.root.get("message")
        && !frame.touches.is_empty()
    {
        let new = message(frame, 0, 0, holder, Content::Text);
        edits.replace(holder.span(), new);
    }
    frame.edited(&edits);
}

/// How a format writes the text of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// As a string.
    Text,
    /// As a list of blocks.
    Blocks,
}

/// A message or delta without its refused calls.
pub(super) fn message(
    frame: &FrameEdit<'_>,
    at: u32,
    choice: u32,
    holder: Value<'_>,
    style: Content,
) -> Vec<u8> {
    let mut refusals = String::new();
    let mut legacy = None;
    if let Some(call) = holder.get("function_call").filter(|call| call.is_object()) {
        legacy = entry(frame, (at, FUNCTION_CALL), choice, call, &mut refusals);
    }
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let calls = holder.get("tool_calls");
    for (entry_at, call) in calls.into_iter().flat_map(Value::items).enumerate() {
        let place = (at, position(entry_at));
        kept.extend(entry(frame, place, choice, call, &mut refusals));
    }
    let mut object = Object::default();
    let has_content = holder.get("content").is_some();
    let mut say = |object: &mut Object, before: Option<Value<'_>>| {
        if !refusals.is_empty() {
            object.member("content", &content(before, &refusals, style));
            refusals.clear();
        } else if let Some(before) = before {
            object.member("content", before.raw());
        }
    };
    for (key, value) in holder.members() {
        if key.is("content") {
            say(&mut object, Some(value));
        } else if key.is("tool_calls") && value.kind() == Kind::Array {
            if !has_content {
                say(&mut object, None);
            }
            if !kept.is_empty() || value.items().next().is_none() {
                let list = [&b"["[..], &kept.join(&b","[..]), b"]"].concat();
                object.member("tool_calls", &list);
            }
        } else if key.is("function_call") && value.is_object() {
            if !has_content {
                say(&mut object, None);
            }
            if let Some(call) = &legacy {
                object.member("function_call", call);
            }
        } else {
            object.keep(key, value);
        }
    }
    object.finish()
}

/// One call as it goes on; `None` if it doesn't.
fn entry(
    frame: &FrameEdit<'_>,
    place: (u32, u32),
    choice: u32,
    call: Value<'_>,
    refusals: &mut String,
) -> Option<Vec<u8>> {
    let Some(touch) = frame.touch_at(place) else {
        return Some(call.raw().to_vec());
    };
    let function = call
        .get("function")
        .or_else(|| call.get("custom"))
        .unwrap_or(call);
    let mut edits = Splice::default();
    match fate(frame, touch.call, touch.phase) {
        Fate::Text(text) => {
            refusals.push_str(if refusals.is_empty() { "" } else { "\n" });
            refusals.push_str(&text);
            return None;
        }
        Fate::Drop => return None,
        Fate::Arguments(arguments) => {
            let old = function.get("arguments").or_else(|| function.get("input"));
            if let Some(old) = old {
                let new = match (touch.phase, old.kind()) {
                    (Phase::Delta | Phase::End, _) => "\"\"".to_owned(),
                    (_, Kind::String | Kind::Scalar) => quoted(&arguments),
                    _ => arguments,
                };
                edits.replace(old.span(), new);
            }
        }
        Fate::Keep => {}
    }
    let known = frame.call(touch.call);
    // What streams at once was let through by its name, so no more name may follow.
    if touch.phase == Phase::Delta
        && known.is_some_and(|call| matches!(call.verdict, Verdict::AtOnce))
        && let Some(name) = function
            .get("name")
            .filter(|name| !name.is("") && !name.is_null())
    {
        edits.replace(name.span(), "\"\"");
    }
    if frame.calls.any_blocked(choice)
        && let Some(index) = call.get("index")
        && let Some(position) = known.and_then(|call| call.position)
    {
        edits.replace(index.span(), position.to_string());
    }
    let start = call.span().start;
    Some(if edits.is_empty() {
        call.raw().to_vec()
    } else {
        let text = frame.data.get(..call.span().end).unwrap_or_default();
        edits.apply(text).split_off(start)
    })
}

/// The content of a message, with a text behind it.
fn content(before: Option<Value<'_>>, text: &str, style: Content) -> Vec<u8> {
    let before = before.filter(|before| !before.is_null());
    let block = || format!(r#"{{"type":"text","text":{}}}"#, quoted(text));
    match before {
        Some(list) if list.kind() == Kind::Array => {
            let mut items: Vec<&[u8]> = list.items().map(Value::raw).collect();
            let block = block();
            items.push(block.as_bytes());
            [&b"["[..], &items.join(&b","[..]), b"]"].concat()
        }
        Some(string) if string.kind() == Kind::String && !string.is("") => {
            let mut joined = string.raw().to_vec();
            joined.pop();
            joined.extend_from_slice(b"\\n");
            joined.extend_from_slice(quoted(text).as_bytes().get(1..).unwrap_or_default());
            joined
        }
        _ if style == Content::Blocks => format!("[{}]", block()).into_bytes(),
        _ => quoted(text).into_bytes(),
    }
}

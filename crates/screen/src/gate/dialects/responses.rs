use super::{Fate, fate};
use crate::gate::edit::{FrameEdit, Splice};
use crate::llm::assembler::{Phase, Touch, index, position};
use crate::llm::json::{Kind, Value, quoted};

pub(super) fn edit(frame: &mut FrameEdit<'_>) {
    let root = frame.root;
    let summary = root
        .get("response")
        .or_else(|| root.get("output").map(|_| root));
    if let Some(response) = summary.filter(|response| response.get("output").is_some()) {
        let mut edits = Splice::default();
        number(frame, &mut edits);
        outputs(frame, response, &mut edits);
        frame.edited(&edits);
    } else if let Some(touch) = frame.touches.first().copied() {
        part(frame, touch);
    } else {
        let mut edits = Splice::default();
        number(frame, &mut edits);
        frame.edited(&edits);
    }
}

/// Events are numbered: what was added or left out before moves the numbers of those behind.
fn number(frame: &FrameEdit<'_>, edits: &mut Splice) {
    if *frame.shift != 0
        && let Some(member) = frame.root.get("sequence_number")
        && let Some(number) = member.u64()
    {
        let moved = number.saturating_add_signed(*frame.shift);
        edits.replace(member.span(), moved.to_string());
    }
}

fn part(frame: &mut FrameEdit<'_>, touch: Touch) {
    let root = frame.root;
    let arguments = match fate(frame, touch.call, touch.phase) {
        Fate::Keep => {
            let mut edits = Splice::default();
            number(frame, &mut edits);
            frame.edited(&edits);
            return;
        }
        Fate::Drop => {
            *frame.shift -= 1;
            return;
        }
        Fate::Text(text) => {
            refuse(frame, touch, &text);
            return;
        }
        Fate::Arguments(arguments) => arguments,
    };
    let mut edits = Splice::default();
    number(frame, &mut edits);
    let item = root.get("item");
    match touch.phase {
        Phase::Start => {
            if let Some(item) = item
                && let Some(old) = arguments_of(item).filter(|old| !old.is(""))
            {
                edits.replace(old.span(), in_place_of(old, &arguments));
            }
        }
        Phase::Delta if root.get("delta").is_some() => {
            // The whole arguments are in the events that follow.
            *frame.shift -= 1;
            return;
        }
        _ => {
            let old = item.and_then(arguments_of).or_else(|| arguments_of(root));
            if let Some(old) = old {
                edits.replace(old.span(), in_place_of(old, &arguments));
            }
        }
    }
    frame.edited(&edits);
}

/// Where an item, or an event about it, has its arguments.
fn arguments_of(holder: Value<'_>) -> Option<Value<'_>> {
    ["arguments", "input", "action", "operation"]
        .into_iter()
        .find_map(|name| holder.get(name))
}

fn in_place_of(old: Value<'_>, arguments: &str) -> String {
    if old.kind() == Kind::String {
        quoted(arguments)
    } else {
        arguments.to_owned()
    }
}

/// A message with the text, in six events, in the place of the one that began the call.
fn refuse(frame: &mut FrameEdit<'_>, touch: Touch, text: &str) {
    let root = frame.root;
    let output = index(root, "output_index");
    let id = quoted(&message_id(frame, touch));
    let text = quoted(text);
    let first = root
        .get("sequence_number")
        .and_then(Value::u64)
        .map(|number| number.saturating_add_signed(*frame.shift));
    let item = message_item(id.trim_matches('"'), &text);
    let head = format!(r#""item_id":{id},"output_index":{output},"content_index":0"#);
    let part = format!(r#"{{"type":"output_text","annotations":[],"logprobs":[],"text":{text}}}"#);
    let events: [(&str, String); 6] = [
        (
            "response.output_item.added",
            format!(
                concat!(
                    r#""output_index":{},"item":{{"id":{},"type":"message","#,
                    r#""status":"in_progress","role":"assistant","content":[]}}"#
                ),
                output, id
            ),
        ),
        (
            "response.content_part.added",
            format!(
                r#"{head},"part":{{"type":"output_text","annotations":[],"logprobs":[],"text":""}}"#
            ),
        ),
        (
            "response.output_text.delta",
            format!(r#"{head},"logprobs":[],"delta":{text}"#),
        ),
        (
            "response.output_text.done",
            format!(r#"{head},"logprobs":[],"text":{text}"#),
        ),
        (
            "response.content_part.done",
            format!(r#"{head},"part":{part}"#),
        ),
        (
            "response.output_item.done",
            format!(r#""output_index":{output},"item":{item}"#),
        ),
    ];
    *frame.shift += 5;
    for (place, (name, members)) in events.into_iter().enumerate() {
        let number = first.map(|first| first.saturating_add(place as u64));
        let number = number.map_or_else(String::new, |n| format!(r#""sequence_number":{n},"#));
        frame.new_message(name, format!(r#"{{"type":"{name}",{number}{members}}}"#));
    }
}

/// Calls within a whole response.
fn outputs(frame: &FrameEdit<'_>, response: Value<'_>, edits: &mut Splice) {
    let items = response.get("output").into_iter().flat_map(Value::items);
    for (at, item) in items.enumerate() {
        let Some(touch) = frame.touch_at((0, position(at))) else {
            continue;
        };
        match fate(frame, touch.call, touch.phase) {
            Fate::Text(text) => {
                let id = message_id(frame, touch);
                edits.replace(item.span(), message_item(&id, &quoted(&text)));
            }
            Fate::Arguments(arguments) => {
                if let Some(old) = arguments_of(item) {
                    edits.replace(old.span(), in_place_of(old, &arguments));
                }
            }
            Fate::Keep | Fate::Drop => {}
        }
    }
}

/// An identifier that is the same wherever the refusal of this call stands.
fn message_id(frame: &FrameEdit<'_>, touch: Touch) -> String {
    let id = frame.call(touch.call).map(|call| call.id.as_str());
    let id = id
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_alphanumeric);
    format!("msg_{}x{}", id.take(64).collect::<String>(), touch.call.0)
}

/// A message with one text; `text` is JSON text.
pub(super) fn message_item(id: &str, text: &str) -> String {
    format!(
        concat!(
            r#"{{"id":"{}","type":"message","status":"completed","role":"assistant","#,
            r#""content":[{{"type":"output_text","annotations":[],"logprobs":[],"text":{}}}]}}"#
        ),
        id, text
    )
}

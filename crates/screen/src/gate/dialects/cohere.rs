use super::chat::{Content, message};
use super::{Fate, fate};
use crate::gate::edit::{FrameEdit, Splice};
use crate::llm::assembler::{Phase, index};
use crate::llm::json::{Value, quoted};

pub(super) fn edit(frame: &mut FrameEdit<'_>) {
    let root = frame.root;
    if root.get("type").is_none() {
        let mut edits = Splice::default();
        if let Some(holder) = root.get("message").filter(|message| message.is_object())
            && !frame.touches.is_empty()
        {
            let new = message(frame, 0, 0, holder, Content::Blocks);
            edits.replace(holder.span(), new);
        }
        stop(frame, root, &mut edits);
        frame.edited(&edits);
    } else if let Some(touch) = frame.touches.first().copied() {
        part(frame, fate(frame, touch.call, touch.phase), touch);
    } else {
        let mut edits = Splice::default();
        if let Some(delta) = root.get("delta") {
            stop(frame, delta, &mut edits);
        }
        frame.edited(&edits);
    }
}

fn part(frame: &mut FrameEdit<'_>, fate: Fate, touch: crate::llm::assembler::Touch) {
    let root = frame.root;
    match fate {
        Fate::Drop => {}
        Fate::Text(text) => {
            let index = index(root, "index");
            frame.new_message(
                "content-start",
                format!(
                    concat!(
                        r#"{{"type":"content-start","index":{},"#,
                        r#""delta":{{"message":{{"content":{{"type":"text","text":""}}}}}}}}"#
                    ),
                    index
                ),
            );
            frame.new_message(
                "content-delta",
                format!(
                    r#"{{"type":"content-delta","index":{index},"delta":{{"message":{{"content":{{"text":{}}}}}}}}}"#,
                    quoted(&text)
                ),
            );
            frame.new_message(
                "content-end",
                format!(r#"{{"type":"content-end","index":{index}}}"#),
            );
        }
        Fate::Keep | Fate::Arguments(_) => {
            let mut edits = Splice::default();
            if let Fate::Arguments(arguments) = fate {
                let entry = root.path(&["delta", "message", "tool_calls"]);
                let entry = entry.map(|entry| entry.item(0).unwrap_or(entry));
                let old = entry.and_then(|entry| entry.path(&["function", "arguments"]));
                match (touch.phase, old) {
                    (Phase::Delta, _) => return,
                    (Phase::Start, Some(old)) => edits.replace(old.span(), quoted(&arguments)),
                    _ => {}
                }
            }
            let position = frame.call(touch.call).and_then(|call| call.position);
            if frame.calls.any_blocked(0)
                && let (Some(index), Some(position)) = (root.get("index"), position)
            {
                edits.replace(index.span(), position.to_string());
            }
            frame.edited(&edits);
        }
    }
}

fn stop(frame: &FrameEdit<'_>, holder: Value<'_>, edits: &mut Splice) {
    if let Some(reason) = holder.get("finish_reason")
        && reason.is("TOOL_CALL")
        && frame.calls.none_left(0)
    {
        edits.replace(reason.span(), "\"COMPLETE\"");
    }
}

use super::{Fate, fate};
use crate::gate::edit::{FrameEdit, Splice};
use crate::llm::assembler::{Phase, index, position};
use crate::llm::json::{Value, quoted};

pub(super) fn edit(frame: &mut FrameEdit<'_>) {
    let root = frame.root;
    let kind = root.get("type");
    let is = |name: &str| kind.is_some_and(|kind| kind.is(name));
    if is("message") {
        whole(frame, root);
    } else if let Some(message) = root.get("message").filter(|_| is("message_start")) {
        whole(frame, message);
    } else if let Some(touch) = frame.touches.first().copied() {
        part(frame, fate(frame, touch.call, touch.phase), touch.phase);
    } else {
        let mut edits = Splice::default();
        if is("message_delta")
            && let Some(delta) = root.get("delta")
        {
            stop(frame, delta, &mut edits);
        }
        frame.edited(&edits);
    }
}

/// An event of a call.
fn part(frame: &mut FrameEdit<'_>, fate: Fate, phase: Phase) {
    let root = frame.root;
    let index = index(root, "index");
    match fate {
        Fate::Keep => frame.keep(),
        Fate::Drop => {}
        Fate::Text(text) => {
            frame.new_message(
                "content_block_start",
                format!(
                    r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"text","text":""}}}}"#
                ),
            );
            frame.new_message(
                "content_block_delta",
                format!(
                    r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"text_delta","text":{}}}}}"#,
                    quoted(&text)
                ),
            );
            frame.new_message(
                "content_block_stop",
                format!(r#"{{"type":"content_block_stop","index":{index}}}"#),
            );
        }
        Fate::Arguments(arguments) => match phase {
            Phase::Start => {
                let mut edits = Splice::default();
                let input = root.path(&["content_block", "input"]);
                if let Some(input) = input.filter(|input| input.raw() != b"{}") {
                    edits.replace(input.span(), "{}");
                }
                frame.edited(&edits);
                frame.new_message(
                    "content_block_delta",
                    format!(
                        concat!(
                            r#"{{"type":"content_block_delta","index":{},"#,
                            r#""delta":{{"type":"input_json_delta","partial_json":{}}}}}"#
                        ),
                        index,
                        quoted(&arguments)
                    ),
                );
            }
            Phase::Delta => {}
            _ => frame.keep(),
        },
    }
}

fn whole(frame: &mut FrameEdit<'_>, message: Value<'_>) {
    let mut edits = Splice::default();
    for (at, block) in message
        .get("content")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        let Some(touch) = frame.touch_at((0, position(at))) else {
            continue;
        };
        match fate(frame, touch.call, touch.phase) {
            Fate::Text(text) => edits.replace(
                block.span(),
                format!(r#"{{"type":"text","text":{}}}"#, quoted(&text)),
            ),
            Fate::Arguments(arguments) => {
                if let Some(input) = block.get("input") {
                    edits.replace(input.span(), arguments);
                }
            }
            Fate::Keep | Fate::Drop => {}
        }
    }
    stop(frame, message, &mut edits);
    frame.edited(&edits);
}

fn stop(frame: &FrameEdit<'_>, holder: Value<'_>, edits: &mut Splice) {
    if let Some(reason) = holder.get("stop_reason")
        && reason.is("tool_use")
        && frame.calls.none_left(0)
    {
        edits.replace(reason.span(), "\"end_turn\"");
    }
}

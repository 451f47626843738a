use super::{Fate, fate};
use crate::gate::edit::{FrameEdit, Splice};
use crate::llm::assembler::{Phase, index, position};
use crate::llm::json::{Value, quoted};

pub(super) fn edit(frame: &mut FrameEdit<'_>) {
    if frame.root.path(&["output", "message"]).is_some() {
        whole(frame);
    } else if let Some(touch) = frame.touches.first().copied() {
        part(frame, fate(frame, touch.call, touch.phase), touch.phase);
    } else {
        let mut edits = Splice::default();
        if frame.name == "messageStop" {
            stop(frame, &mut edits);
        }
        frame.edited(&edits);
    }
}

fn part(frame: &mut FrameEdit<'_>, fate: Fate, phase: Phase) {
    let index = index(frame.root, "contentBlockIndex");
    match fate {
        Fate::Keep => frame.keep(),
        Fate::Drop => {}
        Fate::Text(text) => {
            // A text block has no start event.
            frame.new_message(
                "contentBlockDelta",
                format!(
                    r#"{{"contentBlockIndex":{index},"delta":{{"text":{}}}}}"#,
                    quoted(&text)
                ),
            );
            frame.new_message(
                "contentBlockStop",
                format!(r#"{{"contentBlockIndex":{index}}}"#),
            );
        }
        Fate::Arguments(arguments) => match phase {
            Phase::Start => {
                frame.keep();
                frame.new_message(
                    "contentBlockDelta",
                    format!(
                        r#"{{"contentBlockIndex":{index},"delta":{{"toolUse":{{"input":{}}}}}}}"#,
                        quoted(&arguments)
                    ),
                );
            }
            Phase::Delta => {}
            _ => frame.keep(),
        },
    }
}

fn whole(frame: &mut FrameEdit<'_>) {
    let mut edits = Splice::default();
    let content = frame.root.path(&["output", "message", "content"]);
    for (at, block) in content.into_iter().flat_map(Value::items).enumerate() {
        let Some(touch) = frame.touch_at((0, position(at))) else {
            continue;
        };
        match fate(frame, touch.call, touch.phase) {
            Fate::Text(text) => {
                edits.replace(block.span(), format!(r#"{{"text":{}}}"#, quoted(&text)));
            }
            Fate::Arguments(arguments) => {
                if let Some(input) = block.path(&["toolUse", "input"]) {
                    edits.replace(input.span(), arguments);
                }
            }
            Fate::Keep | Fate::Drop => {}
        }
    }
    stop(frame, &mut edits);
    frame.edited(&edits);
}

fn stop(frame: &FrameEdit<'_>, edits: &mut Splice) {
    if let Some(reason) = frame.root.get("stopReason")
        && reason.is("tool_use")
        && frame.calls.none_left(0)
    {
        edits.replace(reason.span(), "\"end_turn\"");
    }
}

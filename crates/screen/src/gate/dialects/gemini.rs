use super::{Fate, fate};
use crate::gate::edit::{FrameEdit, Object, Splice};
use crate::llm::assembler::{Phase, position};
use crate::llm::json::{Value, quoted};

pub(super) fn edit(frame: &mut FrameEdit<'_>) {
    let root = frame
        .root
        .get("response")
        .filter(|inner| inner.is_object())
        .unwrap_or(frame.root);
    let mut edits = Splice::default();
    for (at, candidate) in root
        .get("candidates")
        .into_iter()
        .flat_map(Value::items)
        .enumerate()
    {
        let parts = candidate.path(&["content", "parts"]);
        for (part_at, part) in parts.into_iter().flat_map(Value::items).enumerate() {
            let Some(touch) = frame.touch_at((position(at), position(part_at))) else {
                continue;
            };
            match fate(frame, touch.call, touch.phase) {
                Fate::Keep => {}
                // The signature of the part goes with it: it signs the call.
                Fate::Text(text) => {
                    edits.replace(part.span(), format!(r#"{{"text":{}}}"#, quoted(&text)));
                }
                Fate::Drop => edits.replace(part.span(), r#"{"text":""}"#),
                Fate::Arguments(arguments) => match touch.phase {
                    Phase::Start | Phase::Whole => {
                        if let Some(call) = part.get("functionCall") {
                            edits.replace(call.span(), with_arguments(call, &arguments));
                        }
                    }
                    _ => edits.replace(part.span(), r#"{"text":""}"#),
                },
            }
        }
    }
    frame.edited(&edits);
}

fn with_arguments(call: Value<'_>, arguments: &str) -> Vec<u8> {
    let mut object = Object::default();
    for (key, value) in call.members() {
        if !["args", "partialArgs", "willContinue"]
            .iter()
            .any(|name| key.is(name))
        {
            object.keep(key, value);
        }
    }
    object.member("args", arguments.as_bytes());
    object.finish()
}

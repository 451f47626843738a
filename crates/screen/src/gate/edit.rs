//! One message being changed: which of its bytes, and what goes beside it.

use std::ops::Range;

use super::calls::{Call, CallTable};
use crate::llm::CallId;
use crate::llm::assembler::Touch;
use crate::llm::json::{Value, quote};

/// What leaves in the place of a message.
#[derive(Debug)]
pub(super) enum Piece {
    /// The message as it came.
    Keep,
    /// The message with these contents.
    Edited(Vec<u8>),
    /// Another message.
    New { name: &'static str, data: Vec<u8> },
}

/// A message, what was decided about its calls, and what shall leave in its place: nothing, unless
/// pieces are added.
pub(super) struct FrameEdit<'a> {
    pub root: Value<'a>,
    pub data: &'a [u8],
    pub name: &'a str,
    pub touches: &'a [Touch],
    pub calls: &'a mut CallTable,
    pub shift: &'a mut i64,
    pub pieces: Vec<Piece>,
}

impl FrameEdit<'_> {
    /// The message goes on.
    pub fn keep(&mut self) {
        self.pieces.push(Piece::Keep);
    }

    /// The message goes on with these changes.
    pub fn edited(&mut self, edits: &Splice) {
        self.pieces.push(if edits.is_empty() {
            Piece::Keep
        } else {
            Piece::Edited(edits.apply(self.data))
        });
    }

    /// Another message goes out.
    pub fn new_message(&mut self, name: &'static str, data: String) {
        self.pieces.push(Piece::New {
            name,
            data: data.into_bytes(),
        });
    }

    /// The call that the part at this place belongs to.
    pub fn touch_at(&self, at: (u32, u32)) -> Option<Touch> {
        self.touches.iter().find(|touch| touch.at == at).copied()
    }

    pub fn call(&self, call: CallId) -> Option<&Call> {
        self.calls.get(call)
    }
}

/// Replacements in a text; what isn't replaced stays as it is.
#[derive(Debug, Default)]
pub(crate) struct Splice {
    edits: Vec<(Range<usize>, Vec<u8>)>,
}

impl Splice {
    pub fn replace(&mut self, span: Range<usize>, with: impl Into<Vec<u8>>) {
        self.edits.push((span, with.into()));
    }

    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The text with the replacements. Of two that overlap, the one that begins later is left out.
    pub fn apply(&self, text: &[u8]) -> Vec<u8> {
        let mut edits: Vec<_> = self.edits.iter().collect();
        edits.sort_by_key(|(span, _)| span.start);
        let mut out = Vec::with_capacity(text.len());
        let mut at = 0;
        for (span, with) in edits {
            if span.start < at {
                continue;
            }
            out.extend_from_slice(text.get(at..span.start).unwrap_or_default());
            out.extend_from_slice(with);
            at = span.end;
        }
        out.extend_from_slice(text.get(at..).unwrap_or_default());
        out
    }
}

/// An object written anew from its own members.
#[derive(Debug, Default)]
pub(super) struct Object {
    text: Vec<u8>,
}

impl Object {
    /// Adds a member with its value as JSON text.
    pub fn member(&mut self, name: &str, value: &[u8]) {
        self.separate();
        quote(name, &mut self.text);
        self.text.push(b':');
        self.text.extend_from_slice(value);
    }

    /// Adds a member as it stands in the text.
    pub fn keep(&mut self, key: Value<'_>, value: Value<'_>) {
        self.separate();
        self.text.extend_from_slice(key.raw());
        self.text.push(b':');
        self.text.extend_from_slice(value.raw());
    }

    pub fn finish(mut self) -> Vec<u8> {
        if self.text.is_empty() {
            self.text.push(b'{');
        }
        self.text.push(b'}');
        self.text
    }

    fn separate(&mut self) {
        self.text
            .push(if self.text.is_empty() { b'{' } else { b',' });
    }
}

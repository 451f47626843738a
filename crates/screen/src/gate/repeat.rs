//! Events of a stream that say the same as the one before them, with another text.
//!
//! Most of an answer is one event again and again. Reading each for itself costs many times what scanning its text does,
//! so the gate remembers what stood around the text of the last one. As long as nothing else came, an event with the same
//! bytes around its text can only mean the same: more text of the same block.

use memchr::memchr2;

use crate::llm::BlockId;
use crate::llm::json::{string_length, unescape};

/// What stood around the text of the last event.
#[derive(Debug, Default)]
pub(super) struct Repeat {
    /// Everything before the text and behind it; nothing if the last event was of another kind.
    around: Vec<u8>,
    /// Where the text stands in it.
    at: usize,
    block: Option<BlockId>,
}

impl Repeat {
    /// Longer events are read each for itself.
    const MAX: usize = 768;

    /// Something else came.
    pub fn forget(&mut self) {
        self.block = None;
    }

    /// An event came that says nothing but more text of `block`, and that is all there is to it. `text` is the inside of
    /// its JSON string, a part of `raw`.
    pub fn remember(&mut self, raw: &[u8], text: &[u8], block: BlockId) {
        self.block = None;
        // Lines that end in CR have states of their own.
        let Some(at) = text.as_ptr().addr().checked_sub(raw.as_ptr().addr()) else {
            return;
        };
        let (Some(before), Some(behind)) = (raw.get(..at), raw.get(at + text.len()..)) else {
            return;
        };
        if before.len() + behind.len() > Self::MAX || memchr::memchr(b'\r', raw).is_some() {
            return;
        }
        self.around.clear();
        self.around.reserve_exact(before.len() + behind.len());
        self.around.extend_from_slice(before);
        self.around.extend_from_slice(behind);
        self.at = at;
        self.block = Some(block);
    }

    /// The event that `input` begins with, if it is of the same kind: its length, its block, its text. The stream must
    /// stand between two events.
    pub fn next(&self, input: &[u8]) -> Option<(usize, BlockId, String)> {
        let block = self.block?;
        let (before, behind) = self.around.split_at_checked(self.at)?;
        let rest = input.strip_prefix(before)?;
        let (length, escaped) = string_length(rest)?;
        let (inside, rest) = rest.split_at_checked(length)?;
        // A line break would end the event's line.
        if !rest.starts_with(behind) || inside.is_empty() || memchr2(b'\n', b'\r', inside).is_some()
        {
            return None;
        }
        let text = if escaped {
            let (mut text, mut half) = (String::new(), None);
            unescape(inside, &mut text, &mut half);
            // The other half of a character comes with the next event.
            if half.is_some() {
                return None;
            }
            text
        } else {
            String::from_utf8_lossy(inside).into_owned()
        };
        Some((self.around.len() + length, block, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::TextKind;

    const BLOCK: BlockId = BlockId {
        choice: 0,
        index: 0,
        kind: TextKind::Answer,
    };

    fn after(raw: &str, text: &str) -> Repeat {
        let mut repeat = Repeat::default();
        let at = raw.find(text).unwrap();
        repeat.remember(raw.as_bytes(), &raw.as_bytes()[at..at + text.len()], BLOCK);
        repeat
    }

    #[test]
    fn only_the_text_may_differ() {
        let repeat = after("data: {\"t\":\"one\"}\n\n", "one");
        let next = |raw: &str| {
            repeat
                .next(raw.as_bytes())
                .map(|(used, _, text)| (used, text))
        };
        assert_eq!(
            next("data: {\"t\":\"two\\n\"}\n\ndata: x"),
            Some((21, "two\n".to_owned()))
        );
        for other in [
            "data: {\"t\":\"\"}\n\n",
            "data: {\"t\":\"two\"}\n",
            "data: {\"t\":\"two",
            "data: {\"t\":\"two\",\"t\":1}\n\n",
            "data: {\"t\": \"two\"}\n\n",
            "data: {\"t\":\"t\nwo\"}\n\n",
            "data: {\"t\":\"two\"}\r\n\r\n",
            "data: {\"t\":\"\\ud83d\"}\n\n",
            "data: {\"t\":\"two\\\"}\n\n",
        ] {
            assert_eq!(next(other), None, "{other:?}");
        }
    }

    #[test]
    fn long_events_and_those_with_cr_are_not_remembered() {
        let long = format!("data: {{\"{}\":\"one\"}}\n\n", "x".repeat(Repeat::MAX));
        for raw in [long.as_str(), "data: {\"t\":\"one\"}\r\n\r\n"] {
            assert_eq!(after(raw, "one").next(raw.as_bytes()), None);
        }
    }
}

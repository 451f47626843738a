use super::assembler::{Assembler, Reading};
use super::dialect::Dialect;
use super::frame::{Framer, Framing};
use super::json::Tape;
use super::model::Event;

/// Reads a response, piece by piece, without changing anything: for whoever only watches.
///
/// A message may have `limit` bytes, and so may the arguments of one call; what is larger is passed
/// over (a call is then reported as malformed).
///
/// ```
/// use tollgate_screen::llm::{Dialect, Event, ResponseReader};
///
/// let mut reader = ResponseReader::new(Some(Dialect::OpenAiChat), None);
/// let mut text = String::new();
/// let mut on_event = |event| {
///     if let Event::TextDelta { text: delta, .. } = event {
///         text.push_str(&delta);
///     }
/// };
/// reader.feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"Hel", &mut on_event);
/// reader.feed(b"lo\"}}]}\n\ndata: [DONE]\n\n", &mut on_event);
/// reader.finish(&mut on_event);
/// assert_eq!(text, "Hello");
/// ```
#[derive(Debug)]
pub struct ResponseReader {
    framer: Framer,
    assembler: Assembler,
    tape: Tape,
    reading: Reading,
}

impl ResponseReader {
    /// The largest message that is read unless [`with_limit`](Self::with_limit) says otherwise.
    pub const DEFAULT_LIMIT: usize = 4 << 20;

    /// A reader for a response that should be in this format, with the framing that its
    /// `Content-Type` announces. Both are hints; the bytes have the last word.
    #[must_use]
    pub fn new(expected: Option<Dialect>, announced: Option<Framing>) -> Self {
        Self::with_limit(expected, announced, Self::DEFAULT_LIMIT)
    }

    /// The same, with a limit in bytes.
    #[must_use]
    pub fn with_limit(expected: Option<Dialect>, announced: Option<Framing>, limit: usize) -> Self {
        ResponseReader {
            framer: Framer::new(announced, expected, limit),
            assembler: Assembler::new(expected, limit),
            tape: Tape::default(),
            reading: Reading::default(),
        }
    }

    /// Takes the next bytes (after content decoding); `on_event` gets what they say.
    pub fn feed(&mut self, mut input: &[u8], mut on_event: impl FnMut(Event)) {
        while !input.is_empty() {
            let (used, frame) = self.framer.next(input);
            if let Some(frame) = frame {
                let data = frame.data.as_deref().filter(|_| frame.fault.is_none());
                read_into(
                    &mut self.assembler,
                    &mut self.tape,
                    data,
                    &frame.name,
                    &mut self.reading,
                );
                self.reading.events.drain(..).for_each(&mut on_event);
            }
            input = input.get(used..).unwrap_or_default();
        }
    }

    /// The response has ended.
    pub fn finish(&mut self, on_event: impl FnMut(Event)) {
        if let Some(frame) = self.framer.finish() {
            let data = frame.data.as_deref().filter(|_| frame.fault.is_none());
            read_into(
                &mut self.assembler,
                &mut self.tape,
                data,
                &frame.name,
                &mut self.reading,
            );
        }
        self.assembler.finish(&mut self.reading);
        self.reading.events.drain(..).for_each(on_event);
    }
}

fn read_into(
    assembler: &mut Assembler,
    tape: &mut Tape,
    data: Option<&[u8]>,
    name: &str,
    reading: &mut Reading,
) {
    let Some(data) = data else {
        return;
    };
    reading.touches.clear();
    match tape.read(data) {
        Ok(root) => assembler.read(root, name, reading),
        Err(_) => assembler.read_text(data, reading),
    }
}

//! Server-sent events, for whole bodies and for pieces.
//!
//! ```
//! use tollgate::sse::SseParser;
//!
//! let body = b"event: content_block_delta\n\
//!     data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n";
//! let parser = SseParser::new();
//! for event in parser.parse(body) {
//!     assert_eq!(event.event_type, "content_block_delta");
//!     assert_eq!(event.get_text().as_deref(), Some("Hello"));
//! }
//! ```

pub use tollgate_wire::sse::{DEFAULT_MAX_EVENT_BYTES, MAX_ID_BYTES, SseEvent};

/// A parser of `text/event-stream` (WHATWG HTML, 9.2.6).
///
/// [`parse`](Self::parse) takes a whole body. [`feed`](Self::feed) and [`parse_chunk`](Self::parse_chunk)
/// take a stream in pieces, however it is cut, and [`flush`](Self::flush) ends it. An event that takes
/// more than the limit (1 MiB by default) is dropped.
#[derive(Clone, Debug)]
pub struct SseParser {
    limit: usize,
    inner: tollgate_wire::sse::SseParser,
}

impl Default for SseParser {
    fn default() -> Self {
        Self::new()
    }
}

impl SseParser {
    /// A parser with [`DEFAULT_MAX_EVENT_BYTES`].
    pub fn new() -> Self {
        Self::with_limit(DEFAULT_MAX_EVENT_BYTES)
    }

    /// A parser that drops events of more than `max_event_bytes`.
    pub fn with_limit(max_event_bytes: usize) -> Self {
        Self {
            limit: max_event_bytes,
            inner: tollgate_wire::sse::SseParser::with_limit(max_event_bytes),
        }
    }

    /// The events of a whole body, without regard to what was fed before. A last event that lacks its
    /// empty line counts, as with most clients other than browsers.
    pub fn parse(&self, body: impl AsRef<[u8]>) -> Vec<SseEvent> {
        let mut whole = Self::with_limit(self.limit);
        let mut events = whole.parse_chunk(body.as_ref());
        events.extend(whole.flush());
        events
    }

    /// Takes the next piece of a stream and calls `on_event` for each event that it completes.
    pub fn feed(&mut self, piece: &[u8], on_event: impl FnMut(SseEvent)) {
        self.inner.feed(piece, on_event);
    }

    /// Takes the next piece of a stream and gives the events that it completes.
    pub fn parse_chunk(&mut self, piece: impl AsRef<[u8]>) -> Vec<SseEvent> {
        let mut events = Vec::new();
        self.inner.feed(piece.as_ref(), |event| events.push(event));
        events
    }

    /// Ends a stream that was fed in pieces: the event that its empty line is missing from, if any.
    /// The parser is then ready for the next stream.
    pub fn flush(&mut self) -> Option<SseEvent> {
        self.inner.flush()
    }

    /// Forgets everything, also the last event ID.
    pub fn reset(&mut self) {
        *self = Self::with_limit(self.limit);
    }

    /// The last event ID that a client would send when it reconnects; empty if there is none.
    pub fn last_event_id(&self) -> &str {
        self.inner.last_event_id()
    }

    /// How many events were dropped because they were over the limit.
    pub fn overflowed(&self) -> u64 {
        self.inner.overflowed()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_body_gives_all_events_and_leaves_the_stream_alone() {
        let mut parser = SseParser::new();
        assert!(parser.parse_chunk("id: 7\ndata: a").is_empty());
        let whole = parser.parse("event: x\ndata: 1\n\ndata: 2");
        assert_eq!(
            whole
                .iter()
                .map(|e| (e.event_type.as_str(), e.data.as_str()))
                .collect::<Vec<_>>(),
            [("x", "1"), ("message", "2")]
        );
        assert_eq!(parser.flush().unwrap().data, "a");
        assert_eq!(parser.last_event_id(), "7");
        parser.reset();
        assert_eq!(parser.last_event_id(), "");
    }

    #[test]
    fn events_over_the_limit_are_dropped_and_counted() {
        let mut parser = SseParser::with_limit(16);
        let events = parser.parse_chunk(format!("data: {}\n\ndata: ok\n\n", "x".repeat(64)));
        assert_eq!(events.len(), 1);
        assert_eq!(parser.overflowed(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_give_the_events_of_the_whole(
            body in "(event: [ab]|data: [a-zé]{0,4}|id: [0-9]|: c|)(\r\n|\n|\r){1,2}{0,8}",
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = body.as_bytes();
            let (left, right) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut parser = SseParser::new();
            let mut pieces = parser.parse_chunk(left);
            pieces.extend(parser.parse_chunk(right));
            pieces.extend(parser.flush());
            prop_assert_eq!(pieces, SseParser::new().parse(bytes));
        }
    }
}

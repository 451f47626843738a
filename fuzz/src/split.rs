//! What the targets for streams of messages share: a splitter must give the same for every cut.

use tollgate_wire::framing::{FramingError, StreamKind, StreamSplitter};

use crate::cuts;

/// What a stream came to. A message is its own bytes, with whatever else is said about it before them.
#[derive(Debug, PartialEq)]
pub struct Split {
    pub messages: Vec<Vec<u8>>,
    pub end: Result<Option<Vec<u8>>, FramingError>,
}

/// Splits a stream that comes in these pieces, under a limit.
pub type Splitter = fn(&[&[u8]], usize) -> Split;

/// Compares every cut with the whole, and answers the messages.
pub fn check(input: &[u8], limit: usize, split: Splitter) -> Vec<Vec<u8>> {
    let whole = split(&[input], limit);
    for pieces in cuts(input) {
        assert_eq!(split(&pieces, limit), whole);
    }
    whole.messages
}

/// Compares every cut with the whole for the splitter that chooses by its kind.
pub fn check_stream(input: &[u8], limit: usize, kind: StreamKind) {
    let whole = stream(&[input], limit, kind);
    for pieces in cuts(input) {
        assert_eq!(stream(&pieces, limit, kind), whole);
    }
}

fn stream(
    pieces: &[&[u8]],
    limit: usize,
    kind: StreamKind,
) -> (Vec<String>, Result<(), FramingError>) {
    let mut splitter = StreamSplitter::with_limit(kind, limit);
    let mut messages = Vec::new();
    for piece in pieces {
        let fed = splitter.feed(piece, &mut |message| messages.push(format!("{message:?}")));
        if let Err(error) = fed {
            let again = splitter.feed(b"data: 1\n\n[1]\n", &mut |_| panic!("after an error"));
            assert_eq!(again, Err(error), "an error that doesn't stay");
            return (messages, Err(error));
        }
    }
    let end = splitter.finish(&mut |message| messages.push(format!("{message:?}")));
    assert_eq!(splitter.count(), messages.len() as u64);
    (messages, end)
}

/// Feeds and finishes a splitter. A macro, because the splitters share a shape and not a trait.
#[macro_export]
macro_rules! split {
    ($splitter:expr, $pieces:expr, $as_bytes:expr, $end:expr) => {{
        let mut splitter = $splitter;
        let mut messages = Vec::new();
        let mut fed = Ok(());
        for piece in $pieces {
            fed = splitter.feed(piece, |message| messages.push($as_bytes(message)));
            if let Err(error) = fed {
                let again = splitter.feed(b"[1]\n", |_| panic!("a message after an error"));
                assert_eq!(again, Err(error), "an error that doesn't stay");
                break;
            }
        }
        let end = $end(splitter.finish());
        if let Err(error) = fed {
            assert_eq!(end, Err(error));
        }
        $crate::split::Split { messages, end }
    }};
}

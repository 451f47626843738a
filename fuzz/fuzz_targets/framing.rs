//! NDJSON, JSON arrays and sequences from arbitrary bytes: the same messages for every split, none over its
//! limit, and errors that stay.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::split;
use tollgate_fuzz::split::{Split, Splitter, check, check_stream};
use tollgate_wire::framing::{JsonArraySplitter, JsonSeqSplitter, NdjsonSplitter, StreamKind};

fuzz_target!(|input: &[u8]| {
    for limit in [1 << 20, 20] {
        for (kind, split) in [
            (StreamKind::Ndjson, ndjson as Splitter),
            (StreamKind::JsonArray, json_array),
            (StreamKind::JsonSeq, json_seq),
        ] {
            let messages = check(input, limit, split);
            let bytes: usize = messages.iter().map(Vec::len).sum();
            assert!(bytes <= input.len(), "messages hold more than came in");
            check_stream(input, limit, kind);
        }
    }
});

fn ndjson(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |line: &[u8]| {
        assert!(!line.is_empty() && line.len() <= limit && !line.contains(&b'\n'));
        line.to_vec()
    };
    split!(NdjsonSplitter::with_limit(limit), pieces, whole, |end| end)
}

fn json_array(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |element: &[u8]| {
        assert!(!element.is_empty() && element.len() <= limit);
        element.to_vec()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(JsonArraySplitter::with_limit(limit), pieces, whole, end)
}

fn json_seq(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |text: &[u8]| {
        assert!(!text.is_empty() && text.len() <= limit && !text.contains(&0x1e));
        text.to_vec()
    };
    split!(JsonSeqSplitter::with_limit(limit), pieces, whole, |end| end)
}

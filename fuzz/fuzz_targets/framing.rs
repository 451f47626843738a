//! NDJSON, JSON arrays and sequences, gRPC, gRPC-Web, Connect and AWS event streams from arbitrary bytes: the
//! same messages for every split, none over its limit, and errors that stay. The splitter that chooses among
//! them, with event streams, is held to the same.
//!
//! Every splitter reads the input as it stands. No mutation finds a CRC-32, so that the input is also
//! wrapped as one AWS message with good checksums, once as its headers and once as its payload.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_wire::framing::{
    AwsEventStreamMessage, AwsEventStreamSplitter, ConnectMessage, ConnectSplitter, FramingError,
    GrpcMessage, GrpcSplitter, GrpcWebTextSplitter, JsonArraySplitter, JsonSeqSplitter,
    NdjsonSplitter, StreamKind, StreamSplitter,
};

fuzz_target!(|input: &[u8]| {
    for limit in [1 << 20, 20] {
        for split in [
            ndjson as Splitter,
            json_array,
            json_seq,
            grpc,
            grpc_web_text,
            connect,
        ] {
            let messages = check(input, limit, split);
            let bytes: usize = messages.iter().map(Vec::len).sum();
            assert!(bytes <= input.len(), "messages hold more than came in");
        }
        check(input, limit, aws);
        for kind in KINDS {
            let whole = stream(kind, limit, &[input]);
            for pieces in cuts(input) {
                assert_eq!(stream(kind, limit, &pieces), whole, "{kind:?}");
            }
        }
    }
    check(&aws_message(input, b"payload"), 1 << 20, aws);
    let wrapped = aws_message(b"\x01a\x00", input);
    assert_eq!(aws(&[&wrapped], 1 << 20).messages.len(), 1);
});

/// What a stream came to. A message is its own bytes, with whatever else is said about it before them.
#[derive(Debug, PartialEq)]
struct Split {
    messages: Vec<Vec<u8>>,
    end: Result<Option<Vec<u8>>, FramingError>,
}

/// Splits a stream that comes in these pieces, under a limit.
type Splitter = fn(&[&[u8]], usize) -> Split;

/// Compares every cut with the whole, and answers the messages.
fn check(input: &[u8], limit: usize, split: Splitter) -> Vec<Vec<u8>> {
    let whole = split(&[input], limit);
    for pieces in cuts(input) {
        let cut = split(&pieces, limit);
        assert_eq!(cut.messages, whole.messages);
        assert_eq!(cut.end, whole.end);
    }
    whole.messages
}

/// Feeds and finishes a splitter. Macros, because the splitters share a shape and not a trait.
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
        Split { messages, end }
    }};
}

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

fn grpc(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: GrpcMessage<'_>| {
        assert!(message.payload.len() <= limit);
        let flags = [u8::from(message.compressed), u8::from(message.trailers)];
        [&flags, message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(GrpcSplitter::with_limit(limit), pieces, whole, end)
}

fn grpc_web_text(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: GrpcMessage<'_>| {
        assert!(message.payload.len() <= limit);
        let flags = [u8::from(message.compressed), u8::from(message.trailers)];
        [&flags, message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(GrpcWebTextSplitter::with_limit(limit), pieces, whole, end)
}

fn connect(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: ConnectMessage<'_>| {
        assert!(message.payload.len() <= limit);
        let flags = [u8::from(message.compressed), u8::from(message.end_stream)];
        [&flags, message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(ConnectSplitter::with_limit(limit), pieces, whole, end)
}

/// The kinds of which each has a way of its own through the splitter of all kinds.
const KINDS: [StreamKind; 8] = [
    StreamKind::Sse,
    StreamKind::Ndjson,
    StreamKind::JsonSeq,
    StreamKind::JsonArray,
    StreamKind::Grpc,
    StreamKind::GrpcWebText,
    StreamKind::Connect,
    StreamKind::AwsEventStream,
];

/// Everything that is said about a stream.
fn stream(
    kind: StreamKind,
    limit: usize,
    pieces: &[&[u8]],
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

fn aws(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: AwsEventStreamMessage<'_>| {
        assert!(message.payload.len() <= limit);
        for (name, _) in &message.headers {
            assert!(!name.is_empty() && message.header(name).is_some());
        }
        [format!("{:?}", message.headers).as_bytes(), message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(
        AwsEventStreamSplitter::with_limit(limit),
        pieces,
        whole,
        end
    )
}

/// A message with these headers and this payload, and checksums that match.
fn aws_message(headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let total = u32::try_from(16 + headers.len() + payload.len()).expect("short");
    let mut message = total.to_be_bytes().to_vec();
    message.extend(u32::try_from(headers.len()).expect("short").to_be_bytes());
    message.extend(crc32(&message));
    message.extend_from_slice(headers);
    message.extend_from_slice(payload);
    message.extend(crc32(&message));
    message
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_be_bytes()
}

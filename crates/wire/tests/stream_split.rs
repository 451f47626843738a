//! One splitter for every kind of stream: what it hands out, every split, every bound, how it ends.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use tollgate_wire::framing::{
    FramingError, HeaderValue, MessageKind, StreamKind, StreamMessage, StreamSplitter,
};

const KINDS: [StreamKind; 9] = [
    StreamKind::Sse,
    StreamKind::Ndjson,
    StreamKind::JsonSeq,
    StreamKind::JsonArray,
    StreamKind::Grpc,
    StreamKind::GrpcWeb,
    StreamKind::GrpcWebText,
    StreamKind::Connect,
    StreamKind::AwsEventStream,
];

/// Messages as text to compare, and how the stream ended.
type Outcome = (Vec<String>, Result<(), FramingError>);

fn show(message: StreamMessage<'_>) -> String {
    let about = match message.kind {
        MessageKind::Event {
            event_type,
            id,
            retry,
        } => format!("{event_type} {id:?} {retry:?}"),
        MessageKind::Json => "json".to_owned(),
        MessageKind::Grpc => "grpc".to_owned(),
        MessageKind::Connect => "connect".to_owned(),
        MessageKind::AwsEvent { headers } => format!("aws {headers:?}"),
        _ => unreachable!(),
    };
    let compressed = if message.compressed {
        " compressed"
    } else {
        ""
    };
    let end = if message.end_of_stream { " end" } else { "" };
    let data = message.data.escape_ascii();
    format!("{} {about}{compressed}{end}: {data}", message.sequence)
}

fn split(mut splitter: StreamSplitter, pieces: &[&[u8]]) -> Outcome {
    let mut messages = Vec::new();
    let mut result = Ok(());
    for piece in pieces {
        result = splitter.feed(piece, &mut |message| messages.push(show(message)));
        if result.is_err() {
            break;
        }
    }
    let result = result.and_then(|()| splitter.finish(&mut |message| messages.push(show(message))));
    if result.is_err() {
        assert_eq!(
            splitter.feed(b"data: 1\n\n[1]\n", &mut |_| unreachable!()),
            result
        );
        assert_eq!(splitter.finish(&mut |_| unreachable!()), result);
    }
    assert_eq!(splitter.count(), messages.len() as u64);
    (messages, result)
}

/// Splits the input whole, and at every byte into two; all must agree.
fn check(kind: StreamKind, input: &[u8], limit: usize) -> Outcome {
    let whole = split(StreamSplitter::with_limit(kind, limit), &[input]);
    let bytes: Vec<_> = input.chunks(1).collect();
    let splitter = StreamSplitter::with_limit(kind, limit);
    assert_eq!(split(splitter, &bytes), whole, "byte by byte");
    for at in 0..=input.len() {
        let (a, b) = input.split_at(at);
        let splitter = StreamSplitter::with_limit(kind, limit);
        assert_eq!(split(splitter, &[a, b]), whole, "at {at}");
    }
    whole
}

fn messages(kind: StreamKind, input: &[u8]) -> Vec<String> {
    let (messages, result) = check(kind, input, 1 << 20);
    assert_eq!(result, Ok(()));
    messages
}

#[test]
fn events_carry_their_type_id_and_retry() {
    let input = b"event: a\nid: 7\nretry: 10\ndata: 1\ndata: 2\n\n: ping\n\ndata: b\n\ndata: cut";
    assert_eq!(
        messages(StreamKind::Sse, input),
        [
            "0 a Some(\"7\") Some(10): 1\\n2",
            "1 message Some(\"7\") None: b",
            "2 message Some(\"7\") None: cut",
        ]
    );
}

#[test]
fn an_event_over_the_limit_ends_the_stream_where_it_stands() {
    let input = b"data: 1\n\ndata: 234567890\n\ndata: 3\n\n";
    assert_eq!(
        check(StreamKind::Sse, input, 12),
        (
            vec!["0 message None None: 1".to_owned()],
            Err(FramingError::TooLarge { limit: 12 })
        )
    );
}

#[test]
fn json_texts_come_from_lines_sequences_and_arrays() {
    let expected = ["0 json: {}", "1 json: [1]"];
    assert_eq!(messages(StreamKind::Ndjson, b"{}\r\n\n[1]"), expected);
    assert_eq!(
        messages(StreamKind::JsonSeq, b"\x1e{}\n\x1e[1]\n"),
        expected
    );
    assert_eq!(messages(StreamKind::JsonArray, b"[{}, [1]]"), expected);
    assert_eq!(
        check(StreamKind::JsonArray, b"[{}", 9).1,
        Err(FramingError::Truncated)
    );
}

#[test]
fn grpc_and_connect_say_what_is_compressed_and_what_ends() {
    let grpc = b"\x01\0\0\0\x01z\x80\0\0\0\x03a:b";
    let expected = ["0 grpc compressed: z", "1 grpc end: a:b"];
    assert_eq!(messages(StreamKind::Grpc, grpc), expected);
    assert_eq!(messages(StreamKind::GrpcWeb, grpc), expected);
    assert_eq!(
        messages(StreamKind::GrpcWebText, b"AQAAAAF6gAAAAANhOmI="),
        expected
    );
    assert_eq!(
        messages(StreamKind::Connect, b"\x01\0\0\0\x01z\x02\0\0\0\x02{}"),
        ["0 connect compressed: z", "1 connect end: {}"]
    );
}

#[test]
fn aws_messages_carry_their_headers() {
    let input = b"\x00\x00\x00\x3d\x00\x00\x00\x20\x07\xfd\x83\x96\x0ccontent-type\x07\x00\x10\
        application/json{'foo':'bar'}\x8d\x9c\x08\xb1";
    let header = (
        "content-type",
        HeaderValue::String("application/json".into()),
    );
    assert_eq!(
        messages(StreamKind::AwsEventStream, input),
        [format!("0 aws [{header:?}]: {{\\'foo\\':\\'bar\\'}}")]
    );
    let mut damaged = input.to_vec();
    damaged[40] ^= 1;
    assert_eq!(
        check(StreamKind::AwsEventStream, &damaged, 1 << 20),
        (Vec::new(), Err(FramingError::MessageChecksum))
    );
}

#[test]
fn every_kind_has_its_default_limit() {
    let oversized: [(StreamKind, &[u8], usize); 5] = [
        (StreamKind::Sse, b"data: ", 1 << 20),
        (StreamKind::Ndjson, b"", 4 << 20),
        (StreamKind::JsonSeq, b"\x1e", 4 << 20),
        (StreamKind::JsonArray, b"[\"", 4 << 20),
        (StreamKind::Connect, b"\0\xff\xff\xff\xff", 4 << 20),
    ];
    let filler = vec![b'a'; 64 << 10];
    for (kind, start, limit) in oversized {
        let mut splitter = StreamSplitter::new(kind);
        let mut result = splitter.feed(start, &mut |_| {});
        for _ in 0..65 {
            result = result.and_then(|()| splitter.feed(&filler, &mut |_| {}));
        }
        assert_eq!(result, Err(FramingError::TooLarge { limit }), "{kind:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_messages(
        tokens in proptest::collection::vec(
            prop::sample::select(vec![
                "data: x", "event:e", "id: 1", "retry: 5", ":", "\n", "\r\n", "\r", "{", "}", "[", "]", "\"", "\\", ",", "1", "\x1e",
                "{\"a\":1}\n", "\0\0\0\0\x02", "\x01\0\0\0\0", "\x02\0\0\0\0", "AAAAAAE=", "AAAAAAA=", "aA==", "=", "\u{feff}",
            ]),
            0..30,
        ),
        limit in prop_oneof![Just(8usize), Just(1 << 20)],
    ) {
        for kind in KINDS {
            let _ = check(kind, tokens.concat().as_bytes(), limit);
        }
    }
}

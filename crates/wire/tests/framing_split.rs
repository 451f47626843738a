//! The message splitters: what they hand out, every split, every bound.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use tollgate_wire::framing::{
    AwsEventStreamSplitter, ConnectSplitter, FramingError, GrpcSplitter, GrpcWebTextSplitter,
    HeaderValue, JsonArraySplitter, JsonSeqSplitter, NdjsonSplitter,
};

/// What a splitter handed out, as text to compare, and how it ended.
type Outcome = (Vec<String>, Result<(), FramingError>);

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn ndjson(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = NdjsonSplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        if let Err(error) = splitter.feed(piece, |item| items.push(show(item))) {
            assert_eq!(splitter.feed(b"1\n", |_| unreachable!()), Err(error));
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    let end = splitter
        .finish()
        .map(|tail| items.extend(tail.map(|t| format!("tail {}", show(&t)))));
    (items, end)
}

fn json_seq(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = JsonSeqSplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        if let Err(error) = splitter.feed(piece, |item| items.push(show(item))) {
            assert_eq!(splitter.feed(b"1\n", |_| unreachable!()), Err(error));
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    let end = splitter
        .finish()
        .map(|tail| items.extend(tail.map(|t| format!("tail {}", show(&t)))));
    (items, end)
}

fn json_array(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = JsonArraySplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        if let Err(error) = splitter.feed(piece, |item| items.push(show(item))) {
            assert_eq!(splitter.feed(b"[1]", |_| unreachable!()), Err(error));
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    let end = splitter.finish();
    assert_eq!(end.is_ok(), splitter.is_done());
    (items, end)
}

fn grpc(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = GrpcSplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        let result = splitter.feed(piece, |m| {
            let compressed = if m.compressed { "compressed " } else { "" };
            let trailers = if m.trailers { "trailers " } else { "" };
            items.push(format!("{compressed}{trailers}{}", show(m.payload)));
        });
        if let Err(error) = result {
            assert_eq!(splitter.feed(&[0; 5], |_| unreachable!()), Err(error));
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    (items, splitter.finish())
}

fn grpc_web_text(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = GrpcWebTextSplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        let result = splitter.feed(piece, |m| {
            let compressed = if m.compressed { "compressed " } else { "" };
            let trailers = if m.trailers { "trailers " } else { "" };
            items.push(format!("{compressed}{trailers}{}", show(m.payload)));
        });
        if let Err(error) = result {
            for input in [&b"AAAAAAAA"[..], b""] {
                assert_eq!(splitter.feed(input, |_| unreachable!()), Err(error));
            }
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    (items, splitter.finish())
}

fn connect(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = ConnectSplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        let result = splitter.feed(piece, |m| {
            let compressed = if m.compressed { "compressed " } else { "" };
            let end = if m.end_stream { "end " } else { "" };
            items.push(format!("{compressed}{end}{}", show(m.payload)));
        });
        if let Err(error) = result {
            assert_eq!(splitter.feed(&[0; 5], |_| unreachable!()), Err(error));
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    (items, splitter.finish())
}

fn aws(pieces: &[&[u8]], limit: usize) -> Outcome {
    let mut splitter = AwsEventStreamSplitter::with_limit(limit);
    let mut items = Vec::new();
    for piece in pieces {
        let result = splitter.feed(piece, |m| {
            items.push(format!("{:?} {}", m.headers, show(m.payload)))
        });
        if let Err(error) = result {
            assert_eq!(
                splitter.feed(&aws_message(&[], b""), |_| unreachable!()),
                Err(error)
            );
            assert_eq!(splitter.finish(), Err(error));
            return (items, Err(error));
        }
    }
    (items, splitter.finish())
}

fn ok(items: &[&str]) -> Outcome {
    (items.iter().map(|&item| item.into()).collect(), Ok(()))
}

fn failed(items: &[&str], error: FramingError) -> Outcome {
    (items.iter().map(|&item| item.into()).collect(), Err(error))
}

/// Runs a splitter over the input whole, byte by byte and in threes; all must agree.
fn check(split: fn(&[&[u8]], usize) -> Outcome, input: &[u8], limit: usize) -> Outcome {
    let whole = split(&[input], limit);
    for size in [1, 3] {
        let pieces: Vec<_> = input.chunks(size).collect();
        assert_eq!(split(&pieces, limit), whole, "{} by {size}", show(input));
    }
    whole
}

const ROOMY: usize = 1 << 20;

#[test]
fn ndjson_lines() {
    let run = |input: &str| check(ndjson, input.as_bytes(), ROOMY);
    assert_eq!(run("{}\n[1]\r\n\n \r\n2\n"), ok(&["{}", "[1]", "2"]));
    assert_eq!(run("{}\n{\"a\""), ok(&["{}", "tail {\\\"a\\\""]));
    assert_eq!(run(""), ok(&[]));
    assert_eq!(
        check(ndjson, b"12345\n123456\n1\n", 5),
        failed(&["12345"], FramingError::TooLarge { limit: 5 })
    );
    assert_eq!(
        check(ndjson, b"123456", 5),
        failed(&[], FramingError::TooLarge { limit: 5 })
    );
}

#[test]
fn json_texts_in_sequence() {
    let run = |input: &str| check(json_seq, input.as_bytes(), ROOMY);
    assert_eq!(run("\x1e{}\n\x1e[1,\n2]\n"), ok(&["{}", "[1,\\n2]"]));
    assert_eq!(
        run("\x1e\"a\\\"\\n\"\n\x1e1\n"),
        ok(&["\\\"a\\\\\\\"\\\\n\\\"", "1"])
    );
    assert_eq!(
        run("\x1e{\"cut\": \"\x1e{}\n"),
        ok(&["{\\\"cut\\\": \\\"", "{}"])
    );
    assert_eq!(run("\x1e\x1e\n\x1e {} \x1e"), ok(&["{}"]));
    assert_eq!(run("junk\n\x1e12"), ok(&["junk", "tail 12"]));
    assert_eq!(
        check(json_seq, b"\x1e[1]\n\x1e[1,2]\n", 3),
        failed(&["[1]"], FramingError::TooLarge { limit: 3 })
    );
}

#[test]
fn a_json_text_does_not_wait_for_the_next_one() {
    let mut splitter = JsonSeqSplitter::new();
    let mut seen = 0;
    splitter.feed(b"\x1e{\n}\n", |_| seen += 1).unwrap();
    assert_eq!(seen, 1);
}

#[test]
fn json_array_elements() {
    let run = |input: &str| check(json_array, input.as_bytes(), ROOMY);
    assert_eq!(run("[]"), ok(&[]));
    assert_eq!(run(" [ ] \n"), ok(&[]));
    assert_eq!(
        run("[{\"a\": [1, \"]}\\\"\"]}\r\n,\r\n[[]], \"s,]\" ,true,-1.5e3 ]\n"),
        ok(&[
            "{\\\"a\\\": [1, \\\"]}\\\\\\\"\\\"]}",
            "[[]]",
            "\\\"s,]\\\"",
            "true",
            "-1.5e3"
        ])
    );
    assert_eq!(run("[1"), failed(&[], FramingError::Truncated));
    assert_eq!(run("[1,"), failed(&["1"], FramingError::Truncated));
    assert_eq!(run(""), failed(&[], FramingError::Truncated));
    assert_eq!(run("{\"error\":1}"), failed(&[], FramingError::NotAnArray));
    for (malformed, before) in [
        ("[,1]", &[][..]),
        ("[1,]", &["1"]),
        ("[1,,2]", &["1"]),
        ("[1 2]", &["1"]),
        ("[{}{}]", &["{}"]),
        ("[}]", &[]),
        ("[1]x", &["1"]),
        ("[1][2]", &["1"]),
    ] {
        assert_eq!(
            run(malformed),
            failed(before, FramingError::MalformedArray),
            "{malformed}"
        );
    }
    assert_eq!(
        check(json_array, b"[[1],[12]]", 3),
        failed(&["[1]"], FramingError::TooLarge { limit: 3 })
    );
}

#[test]
fn an_array_element_does_not_wait_for_its_comma() {
    let mut splitter = JsonArraySplitter::new();
    let mut seen = 0;
    splitter.feed(b"[{\"text\": \"a\"}", |_| seen += 1).unwrap();
    assert_eq!(seen, 1);
}

fn grpc_frame(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![flags];
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn grpc_messages() {
    let stream = [
        grpc_frame(0, b"abc"),
        grpc_frame(0, b""),
        grpc_frame(1, b"zip"),
        grpc_frame(0x80, b"grpc-status:0"),
        grpc_frame(0x81, b"z"),
    ]
    .concat();
    assert_eq!(
        check(grpc, &stream, ROOMY),
        ok(&[
            "abc",
            "",
            "compressed zip",
            "trailers grpc-status:0",
            "compressed trailers z"
        ])
    );
    assert_eq!(
        check(grpc, &stream[..6], ROOMY),
        failed(&[], FramingError::Truncated)
    );
    assert_eq!(
        check(grpc, &stream[..10], ROOMY),
        failed(&["abc"], FramingError::Truncated)
    );
    assert_eq!(
        check(grpc, &grpc_frame(2, b""), ROOMY),
        failed(&[], FramingError::InvalidFlags(2))
    );
    let two = [grpc_frame(0, b"abc"), grpc_frame(0, b"abcd")].concat();
    assert_eq!(
        check(grpc, &two, 3),
        failed(&["abc"], FramingError::TooLarge { limit: 3 })
    );
    // Refused by its announced length, before a byte of it.
    assert_eq!(
        grpc(&[&[0, 0xff, 0xff, 0xff, 0xff]], ROOMY),
        failed(&[], FramingError::TooLarge { limit: ROOMY })
    );
}

#[test]
fn connect_messages() {
    let stream = [
        grpc_frame(0, b"abc"),
        grpc_frame(1, b"zip"),
        grpc_frame(2, b"{}"),
    ]
    .concat();
    assert_eq!(
        check(connect, &stream, ROOMY),
        ok(&["abc", "compressed zip", "end {}"])
    );
    assert_eq!(
        check(connect, &grpc_frame(3, b"z"), ROOMY),
        ok(&["compressed end z"])
    );
    assert_eq!(
        check(connect, &grpc_frame(0x80, b""), ROOMY),
        failed(&[], FramingError::InvalidFlags(0x80))
    );
    assert_eq!(
        check(connect, &stream[..10], ROOMY),
        failed(&["abc"], FramingError::Truncated)
    );
    assert_eq!(
        check(connect, &stream, 2),
        failed(&[], FramingError::TooLarge { limit: 2 })
    );
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let mut bits = [0; 3];
        bits[..group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        let character = |at: usize| {
            let value = bits >> (18 - 6 * at) & 63;
            let padding = at > group.len();
            if padding {
                '='
            } else {
                ALPHABET[value as usize] as char
            }
        };
        (0..4).map(character).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn grpc_web_text_messages() {
    let run = |input: &str| check(grpc_web_text, input.as_bytes(), ROOMY);
    assert_eq!(base64(b"\0\0\0\0\x02"), "AAAAAAI=");
    assert_eq!(run("AAAAAAI=aGk="), ok(&["hi"]));
    assert_eq!(run("AAAAAAJoaQ=="), ok(&["hi"]));
    let frames = [grpc_frame(1, b"\xff\xfe~?"), grpc_frame(0x80, b"a:b")];
    let whole = base64(&frames.concat());
    assert!(whole.contains('/') || whole.contains('+'));
    let items = ["compressed \\xff\\xfe~?", "trailers a:b"];
    assert_eq!(run(&whole), ok(&items));
    assert_eq!(run(&(base64(&frames[0]) + &base64(&frames[1]))), ok(&items));

    assert_eq!(run("AAAAAAI=aGk"), failed(&[], FramingError::Truncated));
    assert_eq!(run("AAAAAAAA"), failed(&[""], FramingError::Truncated));
    assert_eq!(run("AAAAAAA=A"), failed(&[""], FramingError::Truncated));
    assert_eq!(run("AAAAAAI="), failed(&[], FramingError::Truncated));
    for bad in ["=", "A=", "AA=A", "AA=\n", "AAA-", "A A", "AAAA=", "\u{e9}"] {
        assert_eq!(run(bad), failed(&[], FramingError::InvalidBase64), "{bad}");
    }
    // What comes first counts: a message, then bad flags, then a bad character.
    assert_eq!(run("AAAAAAA=Ag=="), failed(&[""], FramingError::Truncated));
    assert_eq!(
        run("AAAAAAA=AgAAAAA=!"),
        failed(&[""], FramingError::InvalidFlags(2))
    );
    assert_eq!(
        run("AAAAAAA=A!"),
        failed(&[""], FramingError::InvalidBase64)
    );
    assert_eq!(
        check(grpc_web_text, b"AAAAAAI=aGk=", 1),
        failed(&[], FramingError::TooLarge { limit: 1 })
    );
}

/// The checksum of RFC 1952, bit by bit: independent of the one under test.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
        })
    })
}

fn aws_message(headers: &[u8], payload: &[u8]) -> Vec<u8> {
    aws_message_with(headers.len() as u32, headers, payload)
}

fn aws_message_with(headers_length: u32, headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut message = ((16 + headers.len() + payload.len()) as u32)
        .to_be_bytes()
        .to_vec();
    message.extend(headers_length.to_be_bytes());
    message.extend(crc32(&message).to_be_bytes());
    message.extend(headers);
    message.extend(payload);
    message.extend(crc32(&message).to_be_bytes());
    message
}

/// Published messages: an empty one, and one with a header and a payload.
const AWS_EMPTY: &[u8] = b"\x00\x00\x00\x10\x00\x00\x00\x00\x05\xc2\x48\xeb\x7d\x98\xc8\xff";
const AWS_JSON: &[u8] =
    b"\x00\x00\x00\x3d\x00\x00\x00\x20\x07\xfd\x83\x96\x0ccontent-type\x07\x00\x10application/json\
    {'foo':'bar'}\x8d\x9c\x08\xb1";

#[test]
fn aws_event_stream_messages() {
    assert_eq!(aws_message(&[], b""), AWS_EMPTY);
    let mut splitter = AwsEventStreamSplitter::new();
    let mut count = 0;
    splitter
        .feed(&[AWS_EMPTY, AWS_JSON].concat(), |message| {
            count += 1;
            if count == 2 {
                assert_eq!(
                    message.header("content-type").and_then(HeaderValue::as_str),
                    Some("application/json")
                );
                assert_eq!(message.header("Content-Type"), None);
                assert_eq!(message.payload, b"{'foo':'bar'}");
            }
        })
        .unwrap();
    assert_eq!(count, 2);
    assert_eq!(splitter.finish(), Ok(()));
    let two = [AWS_EMPTY, AWS_JSON].concat();
    assert_eq!(check(aws, &two, ROOMY).0.len(), 2);
    assert_eq!(
        check(aws, &two[..two.len() - 1], ROOMY).1,
        Err(FramingError::Truncated)
    );
}

#[test]
fn aws_header_values_of_every_type() {
    let block = [
        &b"\x01t\x00\x01f\x01\x01b\x02\xff\x01s\x03\xff\xfe\x01i\x04\xff\xff\xff\xfd"[..],
        b"\x01l\x05\xff\xff\xff\xff\xff\xff\xff\xfc\x01y\x06\x00\x02\x00\xff\x01u\x07\x00\x02\xc3\xa9",
        b"\x01m\x08\x00\x00\x00\x00\x00\x00\x03\xe8\x01g\x090123456789abcdef",
    ]
    .concat();
    let mut seen = Vec::new();
    AwsEventStreamSplitter::new()
        .feed(&aws_message(&block, b"p"), |message| seen = message.headers)
        .unwrap();
    let expected = [
        ("t", HeaderValue::Bool(true)),
        ("f", HeaderValue::Bool(false)),
        ("b", HeaderValue::Byte(-1)),
        ("s", HeaderValue::Short(-2)),
        ("i", HeaderValue::Int(-3)),
        ("l", HeaderValue::Long(-4)),
        ("y", HeaderValue::Bytes(vec![0, 0xff])),
        ("u", HeaderValue::String("é".into())),
        ("m", HeaderValue::Timestamp(1000)),
        ("g", HeaderValue::Uuid(*b"0123456789abcdef")),
    ];
    assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn aws_damage_is_typed_and_final() {
    let flip = |at: usize| {
        let mut message = AWS_JSON.to_vec();
        message[at] ^= 1;
        check(aws, &message, ROOMY)
    };
    for at in 0..12 {
        assert_eq!(
            flip(at),
            failed(&[], FramingError::PreludeChecksum),
            "byte {at}"
        );
    }
    for at in 12..AWS_JSON.len() {
        assert_eq!(
            flip(at),
            failed(&[], FramingError::MessageChecksum),
            "byte {at}"
        );
    }
    let invalid_headers: [&[u8]; 6] = [
        b"\x00\x00",
        b"\x01n\x0a",
        b"\x01n\x07\x00\x02x",
        b"\x05n\x00",
        b"\x01\xff\x00",
        b"\x01n\x07\x00\x01\xff",
    ];
    for block in invalid_headers {
        assert_eq!(
            check(aws, &aws_message(block, b""), ROOMY),
            failed(&[], FramingError::InvalidHeaders),
            "{block:?}"
        );
    }
    assert_eq!(
        check(aws, &aws_message_with(1, b"", b""), ROOMY),
        failed(&[], FramingError::InvalidLength)
    );
    let mut short = 15u32.to_be_bytes().to_vec();
    short.extend([0; 4]);
    short.extend(crc32(&short).to_be_bytes());
    assert_eq!(
        check(aws, &short, ROOMY),
        failed(&[], FramingError::InvalidLength)
    );
    assert_eq!(
        check(aws, AWS_JSON, 60),
        failed(&[], FramingError::TooLarge { limit: 60 })
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_items(
        tokens in proptest::collection::vec(
            prop::sample::select(vec![
                "{", "}", "[", "]", "\"", "\\", ",", ":", "1", "null", " ", "\n", "\r\n", "\x1e", "[{}", ",{}", "{\"a\":1}\n",
                "\0\0\0\0\x02", "\x01\0\0\0\0", "\x02\0\0\0\0", "AAAAAAE=", "AAAAAAA=", "aA==", "=",
            ]),
            0..40,
        ),
        in_array in any::<bool>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
        limit in prop_oneof![Just(6usize), Just(ROOMY)],
    ) {
        let input = format!("{}{}", if in_array { "[" } else { "" }, tokens.concat()).into_bytes();
        let pieces = pieces(&input, &cuts);
        for split in [ndjson, json_seq, json_array, grpc, grpc_web_text, connect, aws] {
            prop_assert_eq!(split(&pieces, limit), split(&[&input], limit));
        }
    }

    #[test]
    fn framed_payloads_come_back(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..5),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let shown: Vec<_> = payloads.iter().map(|p| show(p)).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|p| grpc_frame(0, p)).collect();
        prop_assert_eq!(grpc(&pieces(&stream, &cuts), ROOMY), (shown.clone(), Ok(())));
        prop_assert_eq!(connect(&pieces(&stream, &cuts), ROOMY), (shown.clone(), Ok(())));
        let text: String = pieces(&stream, &cuts).into_iter().map(base64).collect();
        prop_assert_eq!(check(grpc_web_text, text.as_bytes(), ROOMY), (shown.clone(), Ok(())));

        let stream: Vec<u8> = payloads.iter().flat_map(|p| aws_message(b"", p)).collect();
        let shown = shown.iter().map(|p| format!("[] {p}")).collect();
        prop_assert_eq!(aws(&pieces(&stream, &cuts), ROOMY), (shown, Ok(())));
    }
}

fn pieces<'a>(data: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (data.len() + 1)).collect();
    at.extend([0, data.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &data[w[0]..w[1]]).collect()
}

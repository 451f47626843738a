//! Properties over generated messages: writing gives back what was parsed, pieces don't matter, nothing panics.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test asserts by panicking, in its helpers too"
)]

use proptest::collection::vec;
use proptest::prelude::*;
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{
    Anomaly, ChunkedDecoder, HeadLimits, Parsed, RequestHead, ResponseHead, encode_chunk,
    encode_last,
};

const LIMITS: HeadLimits = HeadLimits {
    bytes: 8192,
    lines: 64,
};

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}",
        1 => prop::sample::select(vec!["Host", "CONNECTION", "content-length", "Transfer-Encoding", "Upgrade", "Expect"])
            .prop_map(String::from),
    ]
}

/// Bytes that can stand in a value, and some white space around them.
fn value() -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![8 => 0x21u8..0x7F, 2 => 0x80u8..=0xFF, 1 => Just(b' '), 1 => Just(b'\t')],
        0..40,
    )
}

fn header_lines() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    vec((name(), value()), 0..12)
}

fn block(start: &[u8], lines: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = start.to_vec();
    for (name, value) in lines {
        out.extend_from_slice(&[name.as_bytes(), b":", value, b"\r\n"].concat());
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn request() -> impl Strategy<Value = (Vec<u8>, Vec<(String, Vec<u8>)>)> {
    ("[A-Z]{1,10}", "/[!-~]{0,40}", "[01]", header_lines()).prop_map(
        |(method, target, minor, lines)| {
            (
                block(
                    format!("{method} {target} HTTP/1.{minor}\r\n").as_bytes(),
                    &lines,
                ),
                lines,
            )
        },
    )
}

/// Bytes that are nearly a message.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        &b"GET / HTTP/1.1\r\n"[..],
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n",
        b"\r",
        b"\n",
        b" ",
        b"\t",
        b":",
        b"A",
        b"Host: a\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 1\r\n",
        b"0",
        b"5;x\r\nhello\r\n",
        b"\0",
        b"\xE9",
        b"HTTP/1.",
    ]);
    let start = prop::sample::select(vec![
        &b""[..],
        b"GET / HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"1\r\nx\r\n0\r\n",
    ]);
    (start, vec(pieces, 0..12)).prop_map(|(start, pieces)| [start, &pieces.concat()].concat())
}

fn anything() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => nearly_http(),
        1 => vec(any::<u8>(), 0..200),
        1 => (request(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|((mut bytes, _), at, byte)| {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
    ]
}

/// Parses growing prefixes of `input`; the steps give how many bytes are added each time, over and over.
fn in_pieces(
    input: &[u8],
    steps: &[usize],
    mut parse: impl FnMut(&[u8]) -> Result<Parsed, Anomaly>,
) -> Result<Parsed, Anomaly> {
    let mut result = Ok(Parsed::Partial);
    let mut end = 0;
    for step in steps.iter().cycle() {
        end = (end + step).min(input.len());
        result = parse(&input[..end]);
        if result != Ok(Parsed::Partial) || end == input.len() {
            break;
        }
    }
    result
}

/// Where a decoder stopped and whether the body was done, the payload, the trailers.
type Decoded = (Result<(usize, bool), Anomaly>, Vec<u8>, Option<HeaderList>);

fn decode(input: &[u8], steps: &[usize]) -> Decoded {
    let mut decoder = ChunkedDecoder::new(256);
    let mut body = Vec::new();
    let mut consumed = 0;
    for step in steps.iter().cycle() {
        let piece = &input[consumed..(consumed + step).min(input.len())];
        match decoder.feed(piece, |data| body.extend_from_slice(data)) {
            Err(anomaly) => return (Err(anomaly), body, None),
            Ok(progress) => {
                consumed += progress.consumed;
                assert!(progress.done || progress.consumed == piece.len());
                if progress.done || consumed == input.len() {
                    return (
                        Ok((consumed, progress.done)),
                        body,
                        decoder.trailers().cloned(),
                    );
                }
            }
        }
    }
    unreachable!("steps are never empty")
}

fn steps() -> impl Strategy<Value = Vec<usize>> {
    vec(1usize..20, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn write_is_the_inverse_of_parse((input, lines) in request()) {
        let mut head = RequestHead::new();
        prop_assert_eq!(head.parse(&input, &LIMITS), Ok(Parsed::Complete { len: input.len() }));
        let mut out = Vec::new();
        head.write_to(&mut out);
        prop_assert_eq!(&out, &input);
        let parsed: Vec<_> = head.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let expected: Vec<_> = lines
            .iter()
            .map(|(name, value)| {
                let start = value.iter().position(|b| !b" \t".contains(b)).unwrap_or(value.len());
                let end = value.iter().rposition(|b| !b" \t".contains(b)).map_or(start, |at| at + 1);
                (name.as_bytes().to_vec(), value[start..end].to_vec())
            })
            .collect();
        prop_assert_eq!(parsed, expected);
    }

    #[test]
    fn a_request_in_pieces((input, _) in request(), rest in vec(any::<u8>(), 0..20), steps in steps()) {
        let wire = [&input[..], &rest].concat();
        let mut head = RequestHead::new();
        let result = in_pieces(&wire, &steps, |bytes| head.parse(bytes, &LIMITS));
        prop_assert_eq!(result, Ok(Parsed::Complete { len: input.len() }));
        prop_assert_eq!(head.as_raw(), Some(&input[..]));
    }

    #[test]
    fn any_bytes_as_a_head(input in anything(), steps in steps(), bytes in 1usize..300, lines in 0usize..5) {
        let limits = HeadLimits { bytes, lines };
        let mut whole = RequestHead::new();
        let expected = whole.parse(&input, &limits);
        let mut head = RequestHead::new();
        let result = in_pieces(&input, &steps, |bytes| head.parse(bytes, &limits));
        prop_assert_eq!(result, expected);
        prop_assert_eq!(&head, &whole);
        if let Ok(Parsed::Complete { len }) = expected {
            prop_assert!(whole.as_raw().is_some_and(|raw| input[..len].ends_with(raw)));
            let _ = (whole.framing(), whole.check_host(), whole.keep_alive(), whole.upgrade(), format!("{whole:?}"));
        }

        let mut whole = ResponseHead::new();
        let expected = whole.parse(&input, &limits);
        let mut head = ResponseHead::new();
        let result = in_pieces(&input, &steps, |bytes| head.parse(bytes, &limits));
        prop_assert_eq!(result, expected);
        prop_assert_eq!(&head, &whole);
    }

    #[test]
    fn a_chunked_body_in_pieces(
        chunks in vec(vec(any::<u8>(), 0..50), 0..8),
        trailers in vec(("[a-z-]{5,9}x", "[!-~]{0,10}"), 0..4),
        rest in vec(any::<u8>(), 0..20),
        steps in steps(),
    ) {
        let mut list = HeaderList::new();
        for (name, value) in &trailers {
            list.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        let mut wire = Vec::new();
        chunks.iter().for_each(|chunk| encode_chunk(&mut wire, chunk));
        encode_last(&mut wire, Some(&list));
        let len = wire.len();
        wire.extend_from_slice(&rest);
        let expected = (Ok((len, true)), chunks.concat(), Some(list).filter(|list| !list.is_empty()));
        prop_assert_eq!(decode(&wire, &steps), expected.clone());
        prop_assert_eq!(decode(&wire, &[wire.len()]), expected);
    }

    #[test]
    fn any_bytes_as_a_chunked_body(input in anything().prop_filter("not empty", |b| !b.is_empty()), steps in steps()) {
        let (whole, whole_body, whole_trailers) = decode(&input, &[input.len()]);
        let (pieces, body, trailers) = decode(&input, &steps);
        prop_assert_eq!((pieces, body, trailers), (whole, whole_body, whole_trailers));
    }

    #[test]
    fn an_edited_list_is_what_was_asked(
        lines in header_lines(),
        edits in vec((0u8..5, name(), "[!-~]{0,12}", 0usize..14), 0..12),
    ) {
        let input = block(b"GET / HTTP/1.1\r\n", &lines);
        let mut head = RequestHead::new();
        head.parse(&input, &LIMITS).unwrap();
        let mut model: Vec<(Vec<u8>, Vec<u8>)> =
            head.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        for (kind, name, value, index) in &edits {
            // Half of the edits hit a name that is there.
            let name = match model.get(*index) {
                Some((existing, _)) => String::from_utf8(existing.to_ascii_uppercase()).unwrap(),
                None => name.clone(),
            };
            let pair = (name.as_bytes().to_vec(), value.as_bytes().to_vec());
            let same = |line: &(Vec<u8>, Vec<u8>)| line.0.eq_ignore_ascii_case(name.as_bytes());
            match kind {
                0 => {
                    head.headers.append(&pair.0, &pair.1).unwrap();
                    model.push(pair);
                }
                1 => {
                    head.headers.insert_at(*index, &pair.0, &pair.1).unwrap();
                    model.insert((*index).min(model.len()), pair);
                }
                2 => {
                    head.headers.set(&pair.0, &pair.1).unwrap();
                    match model.iter().position(same) {
                        None => model.push(pair),
                        Some(first) => {
                            model[first].1 = pair.1;
                            let mut at = 0;
                            model.retain(|line| {
                                at += 1;
                                at - 1 <= first || !same(line)
                            });
                        }
                    }
                }
                3 => {
                    let before = model.len();
                    model.retain(|line| !same(line));
                    prop_assert_eq!(head.headers.remove(&name), before - model.len());
                }
                _ => {
                    head.headers.retain(|name, value| (name.len() + value.len()) % 7 != 0);
                    model.retain(|(name, value)| !(name.len() + value.len()).is_multiple_of(7));
                }
            }
            let expected = model.iter().find(|line| same(line)).map(|(_, value)| value.as_slice());
            prop_assert_eq!(head.headers.get(&name), expected);
        }
        let listed: Vec<_> = head.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        prop_assert_eq!(&listed, &model);
        // What is written parses to the same list again.
        let mut out = Vec::new();
        head.write_to(&mut out);
        let mut again = RequestHead::new();
        prop_assert_eq!(again.parse(&out, &LIMITS), Ok(Parsed::Complete { len: out.len() }));
        prop_assert_eq!(&again.headers, &head.headers);
        prop_assert_eq!(again.framing(), head.framing());
        prop_assert_eq!(again.check_host(), head.check_host());
    }
}

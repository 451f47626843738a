//! Chunked bodies from arbitrary bytes: the same body, trailers and end for every split, and the same
//! as a plain reader of RFC 9112 finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{Anomaly, ChunkedDecoder, MAX_CHUNK_LINE, encode_chunk, encode_last};

fuzz_target!(|input: &[u8]| {
    for trailer_limit in [8192, 24] {
        let whole = decode(&[input], trailer_limit);
        for pieces in cuts(input) {
            assert_eq!(decode(&pieces, trailer_limit), whole);
        }
        check(input, &whole, trailer_limit);
    }
});

/// What a body came to.
#[derive(Debug, PartialEq)]
struct Body {
    payload: Vec<u8>,
    /// Bytes that belong to the body. Up to the failing piece, they aren't known after an error.
    consumed: Option<usize>,
    end: Result<bool, Anomaly>,
    trailers: Option<HeaderList>,
}

fn decode(pieces: &[&[u8]], trailer_limit: usize) -> Body {
    let mut decoder = ChunkedDecoder::new(trailer_limit);
    let (mut payload, mut consumed) = (Vec::new(), 0);
    let mut end = Ok(false);
    for input in pieces {
        let mut next = input.as_ptr_range().start;
        let fed = decoder.feed(input, |piece| {
            let range = piece.as_ptr_range();
            assert!(
                !piece.is_empty() && range.start >= next,
                "pieces are empty or out of order"
            );
            assert!(range.end <= input.as_ptr_range().end);
            next = range.end;
            payload.extend_from_slice(piece);
        });
        match fed {
            Ok(progress) => {
                assert!(
                    progress.done || progress.consumed == input.len(),
                    "a live body left bytes"
                );
                assert!(progress.consumed <= input.len());
                assert_eq!(progress.done, decoder.is_done());
                consumed += progress.consumed;
                end = Ok(progress.done);
            }
            Err(anomaly) => {
                let again = decoder.feed(input, |_| panic!("payload after an error"));
                assert_eq!(again, Err(anomaly), "an error that doesn't stay");
                assert!(!decoder.is_done());
                end = Err(anomaly);
                break;
            }
        }
    }
    Body {
        payload,
        consumed: end.is_ok().then_some(consumed),
        end,
        trailers: decoder.trailers().cloned(),
    }
}

fn check(input: &[u8], body: &Body, trailer_limit: usize) {
    let Some(consumed) = body.consumed else {
        assert!(body.trailers.is_none());
        return;
    };
    if body.end != Ok(true) {
        assert!(body.trailers.is_none() && consumed == input.len());
        return;
    }
    let wire = &input[..consumed];
    let (payload, trailers) = reference(wire).expect("a body that a plain reader refuses");
    assert_eq!(body.payload, payload);
    assert!(trailers.len() <= trailer_limit);
    let mut written = Vec::new();
    if let Some(list) = &body.trailers {
        assert!(!list.is_empty());
        list.write_to(&mut written);
    }
    assert_eq!(
        written, trailers,
        "trailers aren't written back as they came"
    );

    let mut encoded = Vec::new();
    for piece in payload.chunks(7) {
        encode_chunk(&mut encoded, piece);
    }
    encode_last(&mut encoded, body.trailers.as_ref());
    let again = decode(&[&encoded], trailer_limit);
    assert_eq!(again.consumed, Some(encoded.len()));
    assert_eq!((again.end, &again.payload), (Ok(true), &body.payload));
    assert_eq!(again.trailers, body.trailers);
}

/// A whole chunked body, read line by line: its payload and the bytes of its trailer lines.
fn reference(mut wire: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut payload = Vec::new();
    loop {
        let line = line(&mut wire)?;
        assert!(line.len() <= MAX_CHUNK_LINE);
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let extension = extension.trim_ascii_start();
        if !(extension.is_empty() || extension.starts_with(b";")) {
            return None;
        }
        match usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()? {
            0 => break,
            size => {
                let (data, rest) = wire.split_at_checked(size)?;
                payload.extend_from_slice(data);
                wire = rest.strip_prefix(b"\r\n")?;
            }
        }
    }
    let mut trailers = Vec::new();
    loop {
        match line(&mut wire)? {
            [] if wire.is_empty() => return Some((payload, trailers)),
            [] => return None,
            line => {
                trailers.extend_from_slice(line);
                trailers.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// Takes a line that ends with CRLF, without it. Neither byte may stand anywhere else in it.
fn line<'a>(wire: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = wire.iter().position(|b| matches!(b, b'\r' | b'\n'))?;
    let (line, rest) = wire.split_at(end);
    *wire = rest.strip_prefix(b"\r\n")?;
    Some(line)
}

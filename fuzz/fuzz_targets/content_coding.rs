//! Content codings from arbitrary bytes: output never over its bound, errors that stay, and the same
//! body for every split. The first byte chooses the codings, the rest is the body.
#![no_main]

use std::panic;

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_wire::coding::{Coding, CodingError, Decoder, Encoder, OutputLimit};

const HEADERS: [&str; 8] = [
    "gzip",
    "deflate",
    "br",
    "zstd",
    "x-gzip, identity, gzip",
    "deflate, br",
    "zstd, gzip",
    "br, zstd, deflate, gzip",
];

/// More than an input of libFuzzer's usual length can need, unless it is a bomb.
const LIMIT: OutputLimit = OutputLimit {
    total: 1 << 20,
    per_feed: 1 << 20,
};

const TIGHT: OutputLimit = OutputLimit {
    total: 1000,
    per_feed: 37,
};

fuzz_target!(
    init: {
        // The wire crate catches panics of the brotli library and answers an error. libFuzzer's own
        // hook would abort there; a panic that leaves the target still ends the run.
        panic::set_hook(Box::new(|_| {}));
    },
    |input: &[u8]| {
        if let Some((choice, body)) = input.split_first() {
            let checked = panic::catch_unwind(|| check(usize::from(*choice), body));
            if let Err(reason) = checked {
                let text = reason.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| reason.downcast_ref::<&str>().copied());
                eprintln!("content_coding: {}", text.unwrap_or("panicked"));
                std::process::abort();
            }
        }
    }
);

fn check(choice: usize, body: &[u8]) {
    let header = HEADERS[choice % HEADERS.len()];
    let whole = decode(header, &[body], LIMIT);
    assert!(
        body.is_empty() <= (whole == (Vec::new(), Ok(()))),
        "an empty body is complete"
    );

    for pieces in cuts(body).skip(choice % 3).step_by(17) {
        let (out, end) = decode(header, &pieces, LIMIT);
        match (&whole.1, &end) {
            (Ok(()), Ok(())) => assert_eq!(out, whole.0),
            (Err(_), Err(_)) => {
                let (short, long) = match out.len() < whole.0.len() {
                    true => (&out, &whole.0),
                    false => (&whole.0, &out),
                };
                assert!(long.starts_with(short), "other bytes before the error");
            }
            (whole, end) => panic!("{header}: whole {whole:?}, in pieces {end:?}"),
        }
        let (out, _) = decode(header, &pieces, TIGHT);
        assert!(whole.0.starts_with(&out) || out.starts_with(&whole.0));
    }

    round_trip(choice, body);
}

/// Decodes and keeps the books: no feed adds more than it may, and an error is the last word.
fn decode(
    header: &str,
    pieces: &[&[u8]],
    limit: OutputLimit,
) -> (Vec<u8>, Result<(), CodingError>) {
    let made = Decoder::new([header.as_bytes()].into_iter(), limit);
    let mut decoder = made.expect("a known header").expect("something to undo");
    let mut out = Vec::new();
    let mut end = Ok(());
    for piece in pieces {
        let before = out.len();
        end = decoder.feed(piece, &mut out);
        assert!(out.len() - before <= limit.per_feed && out.len() as u64 <= limit.total);
        assert_eq!(decoder.total_out(), out.len() as u64);
        if end.is_err() {
            break;
        }
    }
    let end = end.and_then(|()| decoder.finish(&mut out));
    if let Err(error) = &end {
        let len = out.len();
        assert_eq!(decoder.feed(b"more", &mut out).as_ref(), Err(error));
        assert_eq!(decoder.finish(&mut out).as_ref(), Err(error));
        assert_eq!(out.len(), len);
    }
    (out, end)
}

/// What an encoder writes, a decoder gives back.
fn round_trip(choice: usize, body: &[u8]) {
    let codings = [Coding::Gzip, Coding::Deflate, Coding::Zstd];
    let coding = codings[choice / HEADERS.len() % codings.len()];
    let mut encoder = Encoder::new(coding).expect("has an encoder");
    let mut packed = Vec::new();
    for piece in body.chunks(body.len() / 2 + 1) {
        encoder.feed(piece, &mut packed).expect("encodes");
    }
    encoder.finish(&mut packed).expect("ends");
    assert_eq!(
        decode(coding.as_str(), &[&packed], LIMIT),
        (body.to_vec(), Ok(()))
    );
}

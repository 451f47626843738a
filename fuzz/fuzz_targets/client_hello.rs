//! The ClientHello from arbitrary bytes: an answer that stands once it is given, the same hello however
//! it is spread over records, and fingerprints in their form.
//!
//! An input is read three times: as the bytes of a connection, as a handshake message, and as the
//! extensions of an otherwise good hello, so that mutations reach every depth.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::Random;
use tollgate_wire::detect::{Detected, Protocol, detect};
use tollgate_wire::tls::{
    ClientHello, HelloError, HelloStatus, MAX_HELLO_INPUT, parse_client_hello,
};

fuzz_target!(|input: &[u8]| {
    check_stream(input);

    let body = input.get(..60_000).unwrap_or(input);
    check_message(&handshake(body));

    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0x13, 1, 0x2a, 0x2a, 1, 0]);
    hello.extend(u16::try_from(body.len()).expect("cut above").to_be_bytes());
    hello.extend_from_slice(body);
    check_message(&handshake(&hello));
});

/// The bytes of a connection: what every prefix answers.
fn check_stream(input: &[u8]) {
    let whole = parse_client_hello(input);
    // Every prefix of a short input; of a long one as many, spread over it.
    let step = input.len() / 512 + 1;
    for len in (0..input.len()).step_by(step) {
        let now = parse_client_hello(&input[..len]);
        if now != Ok(HelloStatus::Partial) {
            assert_eq!(now, whole, "another answer after {len} bytes");
        }
    }
    match &whole {
        Ok(HelloStatus::Complete(hello)) => {
            assert!(hello.raw_len <= input.len() && hello.raw_len <= MAX_HELLO_INPUT);
            let (carried, _) = input.split_at(hello.raw_len);
            assert_eq!(parse_client_hello(carried), whole);
            let before = &carried[..carried.len() - 1];
            assert_eq!(parse_client_hello(before), Ok(HelloStatus::Partial));
            assert_eq!(detect(input), Detected::Known(Protocol::Tls));
            check_message(&joined(carried));
            check_fields(hello);
        }
        Ok(HelloStatus::Partial) => assert!(input.len() < MAX_HELLO_INPUT),
        Err(_) => {}
    }
}

/// A handshake message: the same hello, or the same error, from records of any length.
fn check_message(message: &[u8]) {
    let expected = without_raw_len(parse_client_hello(&records(message, || 1 << 14)));
    let mut random = Random::of(message);
    // At most 4096 records: the shortest are those that still fit.
    let shortest = message.len() / 4000 + 1;
    for most in [shortest, shortest + 2, shortest + 60, 1 << 14] {
        let input = records(message, || (shortest + random.below(most)).min(1 << 14));
        let parsed = parse_client_hello(&input);
        if let Ok(HelloStatus::Complete(hello)) = &parsed {
            assert_eq!(hello.raw_len, input.len());
            check_fields(hello);
        }
        assert_eq!(without_raw_len(parsed), expected);
    }
}

fn check_fields(hello: &ClientHello) {
    if let Some(name) = &hello.server_name {
        assert!(!name.is_empty() && name.len() <= 253 && !name.ends_with('.'));
        let in_shape = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        assert!(name.bytes().all(in_shape), "{name:?}");
    }
    assert!(hello.session_id.len() <= 32);
    assert!(
        hello
            .alpn
            .iter()
            .all(|name| !name.is_empty() && hello.offers_alpn(name))
    );

    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let ja3 = hello.ja3();
    assert!(ja3.len() == 32 && is_hex(&ja3));
    assert_eq!(hello.ja3_string().matches(',').count(), 4);
    for ja4 in [hello.ja4(), hello.ja4_o()] {
        let parts: Vec<_> = ja4.split('_').collect();
        let [readable, ciphers, extensions] = parts[..] else {
            panic!("{ja4}")
        };
        assert!(
            readable.len() == 10 && readable.is_ascii() && readable.starts_with('t'),
            "{ja4}"
        );
        assert!(ciphers.len() == 12 && is_hex(ciphers), "{ja4}");
        assert!(extensions.len() == 12 && is_hex(extensions), "{ja4}");
    }
    for raw in [hello.ja4_raw(), hello.ja4_ro()] {
        assert_eq!(raw.get(..10), hello.ja4().get(..10));
    }
}

fn without_raw_len(parsed: Result<HelloStatus, HelloError>) -> Result<HelloStatus, HelloError> {
    parsed.map(|status| match status {
        HelloStatus::Complete(mut hello) => {
            hello.raw_len = 0;
            HelloStatus::Complete(hello)
        }
        HelloStatus::Partial => HelloStatus::Partial,
    })
}

/// A ClientHello message with this body.
fn handshake(body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[1], &length[..], body].concat()
}

/// Cuts a message into handshake records of these lengths.
fn records(message: &[u8], mut length: impl FnMut() -> usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (fragment, tail) = rest.split_at(length().min(rest.len()));
        out.extend([0x16, 3, 1]);
        out.extend(
            u16::try_from(fragment.len())
                .expect("a record")
                .to_be_bytes(),
        );
        out.extend_from_slice(fragment);
        rest = tail;
    }
    out
}

/// The payloads of whole records.
fn joined(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Some((&[_, _, _, high, low], rest)) = records.split_first_chunk() {
        let (fragment, tail) = rest.split_at(usize::from(u16::from_be_bytes([high, low])));
        message.extend_from_slice(fragment);
        records = tail;
    }
    message
}

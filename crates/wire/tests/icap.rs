//! ICAP messages: what is read, what is refused, and that pieces don't matter.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test asserts by panicking, in its helpers too"
)]

use proptest::collection::vec;
use proptest::prelude::*;
use tollgate_wire::http1::{self, Anomaly, HeadLimits, Parsed, encode_chunk};
use tollgate_wire::icap::{
    BodyReader, BodyState, Encapsulated, HttpHeads, IcapError, LAST, LAST_OF_ALL, Part,
    RequestHead, ResponseHead, Shape, Violation,
};

const LIMITS: HeadLimits = HeadLimits {
    bytes: 4096,
    lines: 32,
};

/// What a whole request comes to.
#[derive(Debug, PartialEq)]
struct Message {
    method: Vec<u8>,
    uri: String,
    shape: Shape,
    heads: HttpHeads,
    /// Before and behind the end of the preview.
    body: [Vec<u8>; 2],
    taken: usize,
}

/// Reads a request that arrives in these pieces, as a driver does. `None`: more bytes are needed.
fn read(pieces: &[&[u8]]) -> Result<Option<Message>, IcapError> {
    let mut head = RequestHead::new();
    let mut arrived = Vec::new();
    let mut from = 0;
    let mut parts: Option<(Shape, HttpHeads, BodyReader)> = None;
    let mut body = [Vec::new(), Vec::new()];
    for piece in pieces {
        arrived.extend_from_slice(piece);
        if parts.is_none() {
            let len = match head.parse(&arrived, &LIMITS)? {
                Parsed::Complete { len } => len,
                Parsed::Partial => continue,
            };
            let shape = Shape::of(&head)?;
            let Some(heads) = arrived.get(len..len + shape.encapsulated.heads_len()) else {
                continue;
            };
            let heads = HttpHeads::parse(heads, &shape.encapsulated, &LIMITS)?;
            from = len + shape.encapsulated.heads_len();
            parts = Some((shape, heads, BodyReader::new(shape.preview)));
        }
        let (shape, _, reader) = parts.as_mut().unwrap();
        while shape.encapsulated.has_body() {
            let behind = usize::from(shape.preview.is_some() && body[1].capacity() > 0);
            let progress = reader.feed(&arrived[from..], |piece| {
                body[behind].extend_from_slice(piece)
            })?;
            from += progress.consumed;
            match progress.state {
                BodyState::More | BodyState::End => break,
                BodyState::Preview => {
                    body[1].reserve(1);
                    reader.go_on();
                }
            }
        }
    }
    let Some((shape, heads, reader)) = parts else {
        return Ok(None);
    };
    if shape.encapsulated.has_body() && reader.state() != BodyState::End {
        return Ok(None);
    }
    Ok(Some(Message {
        method: head.method().to_vec(),
        uri: head.uri().to_owned(),
        shape,
        heads,
        body,
        taken: from,
    }))
}

/// The same for every cut in two, and byte by byte.
fn read_any_way(input: &[u8]) -> Result<Option<Message>, IcapError> {
    let whole = read(&[input]);
    for at in 0..=input.len() {
        let (first, second) = input.split_at(at);
        assert_eq!(read(&[first, second]), whole, "cut at {at}");
    }
    let bytes: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(read(&bytes), whole, "byte by byte");
    whole
}

const REQUEST: &str = "POST /a HTTP/1.1\r\nHost: example.com\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n";

fn reqmod(headers: &str, rest: &str) -> Vec<u8> {
    format!(
        "REQMOD icap://localhost:1344/reqmod ICAP/1.0\r\nHost: localhost\r\n{headers}\r\n{rest}"
    )
    .into_bytes()
}

#[test]
fn a_request_with_a_preview_that_is_all() {
    let encapsulated = format!("Encapsulated: req-hdr=0, req-body={}\r\n", REQUEST.len());
    let headers = format!("{encapsulated}Preview: 1024\r\nAllow: 204, 206\r\n");
    let input = reqmod(&headers, &format!("{REQUEST}5\r\nhello\r\n0; ieof\r\n\r\n"));
    let message = read_any_way(&input).unwrap().unwrap();
    assert_eq!(
        (&message.method[..], message.uri.as_str()),
        (&b"REQMOD"[..], "icap://localhost:1344/reqmod")
    );
    assert_eq!(
        (message.shape.preview, message.shape.allow_204),
        (Some(1024), true)
    );
    assert_eq!(
        message.heads.request.unwrap().as_raw(),
        Some(REQUEST.as_bytes())
    );
    assert_eq!(message.body, [b"hello".to_vec(), Vec::new()]);
    assert_eq!(message.taken, input.len());
}

#[test]
fn a_preview_with_more_behind_it() {
    let encapsulated = format!("Encapsulated: req-hdr=0, req-body={}\r\n", REQUEST.len());
    for (preview, first) in [("4", "4\r\nhell\r\n"), ("0", "")] {
        let headers = format!("{encapsulated}Preview: {preview}\r\n");
        let input = reqmod(
            &headers,
            &format!("{REQUEST}{first}0\r\n\r\n2\r\no!\r\n0\r\n\r\nREQMOD"),
        );
        let message = read_any_way(&input).unwrap().unwrap();
        let before = if first.is_empty() { &b""[..] } else { b"hell" };
        assert_eq!(message.body, [before.to_vec(), b"o!".to_vec()]);
        assert_eq!(
            message.taken,
            input.len() - 6,
            "the next request is left alone"
        );
        assert!(!message.shape.allow_204);
    }
}

#[test]
fn a_response_with_its_request() {
    let (request, both) = (REQUEST.len(), REQUEST.len() + RESPONSE.len());
    let input = format!(
        "RESPMOD /respmod?x ICAP/1.0\r\nEncapsulated: req-hdr=0,res-hdr={request} ,\tres-body={both}\r\n\r\n\
         {REQUEST}{RESPONSE}3\r\nabc\r\n0\r\n\r\n"
    );
    let message = read_any_way(input.as_bytes()).unwrap().unwrap();
    assert_eq!(
        message.heads.response.unwrap().as_raw(),
        Some(RESPONSE.as_bytes())
    );
    assert_eq!(message.body[0], b"abc");
}

#[test]
fn options_need_no_parts() {
    let message = read_any_way(b"OPTIONS icap://h/reqmod ICAP/1.0\r\nHost: h\r\n\r\n")
        .unwrap()
        .unwrap();
    assert_eq!(message.shape.encapsulated, Encapsulated::NOTHING);
}

#[test]
fn services() {
    for (uri, service) in [
        ("icap://localhost:1344/reqmod", Some("reqmod")),
        ("ICAPS://[::1]/a/b/?mode=x", Some("a/b")),
        ("/respmod", Some("respmod")),
        ("icap://localhost", Some("")),
        ("icap://localhost/", Some("")),
        ("http://localhost/reqmod", None),
        ("reqmod", None),
        ("*", None),
    ] {
        assert_eq!(
            RequestHead::build("OPTIONS", uri).unwrap().service(),
            service,
            "{uri}"
        );
    }
}

#[test]
fn heads_that_are_refused() {
    let long = format!("OPTIONS /{} ICAP/1.0\r\n\r\n", "x".repeat(5000));
    let many = format!("OPTIONS / ICAP/1.0\r\n{}\r\n", "A: b\r\n".repeat(33));
    for (input, error, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", IcapError::Version, 505),
        ("OPTIONS / ICAP/2.0\r\n\r\n", IcapError::Version, 505),
        ("OPTIONS / ICAP/1\r\n\r\n", IcapError::StartLine, 400),
        ("OPTIONS / icap/1.0\r\n\r\n", IcapError::StartLine, 400),
        ("OPTIONS  / ICAP/1.0\r\n\r\n", IcapError::StartLine, 400),
        ("OPTIONS / ICAP/1.0 \r\n\r\n", IcapError::StartLine, 400),
        (" OPTIONS / ICAP/1.0\r\n\r\n", IcapError::StartLine, 400),
        ("OPT(ONS / ICAP/1.0\r\n\r\n", IcapError::StartLine, 400),
        ("\x16\x03\x01\x02", IcapError::StartLine, 400),
        (
            "OPTIONS / ICAP/1.0\n",
            IcapError::Http(Anomaly::BareLf),
            400,
        ),
        (
            "OPTIONS / ICAP/1.0\rx",
            IcapError::Http(Anomaly::BareCr),
            400,
        ),
        (
            "OPTIONS / ICAP/1.0\r\nA : b\r\n\r\n",
            IcapError::Http(Anomaly::SpaceBeforeColon),
            400,
        ),
        (
            "OPTIONS / ICAP/1.0\r\nA: b\r\n c\r\n\r\n",
            IcapError::Http(Anomaly::ObsFold),
            400,
        ),
        (&long, IcapError::Http(Anomaly::HeadTooLarge), 400),
        (&many, IcapError::Http(Anomaly::TooManyHeaders), 400),
    ] {
        let refused = read_any_way(input.as_bytes());
        assert_eq!(refused, Err(error), "{input:?}");
        assert_eq!(error.status(), status);
    }
}

#[test]
fn encapsulated_values() {
    for value in [
        "null-body=0",
        "req-body=0",
        "req-hdr=0, req-body=10",
        "req-hdr=0, null-body=10",
        "req-hdr=0, res-hdr=10, res-body=30",
        "res-hdr=0, null-body=7",
        "opt-body=0",
    ] {
        assert_eq!(
            Encapsulated::parse(value.as_bytes()).unwrap().to_string(),
            value
        );
    }
    let spelled = Encapsulated::parse(b"REQ-HDR=0,Req-Body=10").unwrap();
    assert_eq!(
        (spelled.heads_len(), spelled.body()),
        (10, Part::RequestBody)
    );
    for value in [
        "",
        "req-hdr=0",
        "req-hdr",
        "req-hdr=, req-body=3",
        "req-hdr=5, req-body=10",
        "req-hdr=0, req-body=0",
        "req-hdr=0, req-body=-1",
        "req-hdr=0, req-body=+9",
        "req-hdr=0, req-body=0x9",
        "req-hdr=0, req-body=9;",
        "req-hdr=0,, req-body=9",
        "res-hdr=0, req-hdr=5, req-body=9",
        "req-hdr=0, req-hdr=5, req-body=9",
        "req-hdr=0, req-body=9, res-body=20",
        "null-body=0, null-body=1",
        "req-hdr=0, other=9",
        "req-hdr=0, req-body=99999999999999999999",
    ] {
        assert_eq!(
            Encapsulated::parse(value.as_bytes()),
            Err(IcapError::EncapsulatedInvalid),
            "{value}"
        );
    }
    assert_eq!(
        Encapsulated::parse(b"req-hdr=0, req-body=1048577"),
        Err(IcapError::HeadsTooLarge)
    );
}

#[test]
fn shapes_that_are_refused() {
    let n = REQUEST.len();
    for (headers, error) in [
        (String::new(), IcapError::EncapsulatedMissing),
        (
            format!("Encapsulated: req-hdr=0, null-body={n}\r\n").repeat(2),
            IcapError::EncapsulatedMissing,
        ),
        (
            "Encapsulated: null-body=0\r\n".to_owned(),
            IcapError::PartsDontFit,
        ),
        (
            format!("Encapsulated: req-hdr=0, res-body={n}\r\n"),
            IcapError::PartsDontFit,
        ),
        (
            format!("Encapsulated: res-hdr=0, res-body={n}\r\n"),
            IcapError::PartsDontFit,
        ),
        (
            format!("Encapsulated: req-hdr=0, req-body={n}\r\nPreview: x\r\n"),
            IcapError::Preview,
        ),
        (
            format!("Encapsulated: req-hdr=0, req-body={n}\r\nPreview: 1048577\r\n"),
            IcapError::Preview,
        ),
        (
            format!("Encapsulated: req-hdr=0, req-body={n}\r\nPreview: 1\r\nPreview: 1\r\n"),
            IcapError::Preview,
        ),
        (
            format!("Encapsulated: req-hdr=0, null-body={}\r\n", n - 1),
            IcapError::HeadLength,
        ),
        (
            format!("Encapsulated: req-hdr=0, null-body={}\r\n", n + 1),
            IcapError::HeadLength,
        ),
    ] {
        let refused = read_any_way(&reqmod(&headers, &format!("{REQUEST}X")));
        assert_eq!(refused, Err(error), "{headers}");
    }
}

#[test]
fn bodies_that_are_refused() {
    let n = REQUEST.len();
    let headers = format!("Encapsulated: req-hdr=0, req-body={n}\r\nPreview: 4\r\n");
    for (body, error) in [
        ("5\r\nhello\r\n0\r\n\r\n", IcapError::PreviewTooLong),
        ("3\r\nabc\r\n2\r\nde\r\n", IcapError::PreviewTooLong),
        ("x\r\n", IcapError::Http(Anomaly::InvalidChunkSize)),
        ("0\r\n\r\nx\r\n", IcapError::Http(Anomaly::InvalidChunkSize)),
    ] {
        let input = reqmod(&headers, &format!("{REQUEST}{body}"));
        assert_eq!(read_any_way(&input), Err(error), "{body:?}");
    }
}

#[test]
fn an_encapsulated_head_is_read_strictly() {
    for head in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "\r\nGET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nA : b\r\n\r\n",
    ] {
        let headers = format!("Encapsulated: req-hdr=0, null-body={}\r\n", head.len());
        assert!(read_any_way(&reqmod(&headers, head)).is_err(), "{head:?}");
    }
}

#[test]
fn answers() {
    let input = b"ICAP/1.0 200 OK\r\nISTag: \"x\"\r\nX-Violations-Found: 1\r\n\tfile\r\n\tthreat\r\n\t0\r\n\t2\r\n\
        Connection: close\r\n\r\nHTTP/1.1 403";
    let mut head = ResponseHead::default();
    for len in 0..input.len() {
        let parsed = head.parse(&input[..len], &LIMITS).unwrap();
        let complete = len >= input.len() - 12;
        assert_eq!(parsed != Parsed::Partial, complete, "{len}");
    }
    assert_eq!(head.status(), 200);
    assert!(!head.keep_alive());
    let words: Vec<&[u8]> = head
        .headers
        .get("x-violations-found")
        .unwrap()
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .collect();
    assert_eq!(words, [&b"1"[..], b"file", b"threat", b"0", b"2"]);
    for (input, error) in [
        ("HTTP/1.1 200 OK\r\n\r\n", IcapError::Version),
        ("ICAP/1.0 20 OK\r\n\r\n", IcapError::StartLine),
        ("ICAP/1.0 2000\r\n\r\n", IcapError::StartLine),
        ("ICAP/1.0\r\n\r\n", IcapError::StartLine),
        (
            "ICAP/1.0 200\r\nA\r\n\r\n",
            IcapError::Http(Anomaly::MissingColon),
        ),
        (
            "ICAP/1.0 200\r\n folded\r\n\r\n",
            IcapError::Http(Anomaly::SpaceBeforeFirstHeader),
        ),
    ] {
        assert_eq!(
            head.parse(input.as_bytes(), &LIMITS),
            Err(error),
            "{input:?}"
        );
    }
}

#[test]
fn an_answer_is_written_as_it_is_read() {
    let mut head = ResponseHead::new(200);
    head.headers.append(b"ISTag", b"\"a\"").unwrap();
    head.violations.push(Violation {
        file: "the URL".to_owned(),
        threat: "aws\r\nX: y".to_owned(),
        resolution: 2,
    });
    let mut out = Vec::new();
    head.write_to(&mut out);
    assert_eq!(
        String::from_utf8_lossy(&out),
        "ICAP/1.0 200 OK\r\nISTag: \"a\"\r\nX-Violations-Found: 1\r\n\tthe URL\r\n\taws??X: y\r\n\t0\r\n\t2\r\n\r\n"
    );
    let mut again = ResponseHead::default();
    assert_eq!(
        again.parse(&out, &LIMITS),
        Ok(Parsed::Complete { len: out.len() })
    );
    assert_eq!(again.headers.len(), 2, "what was found can't add a header");
}

#[test]
fn a_head_that_is_used_again() {
    let mut head = RequestHead::new();
    assert_eq!(
        head.parse(b"OPTIONS /a ICAP/1.0\r\nA: b", &LIMITS),
        Ok(Parsed::Partial)
    );
    let next = b"REQMOD /b ICAP/1.0\r\n\r\n";
    assert_eq!(head.parse(&next[..5], &LIMITS), Ok(Parsed::Partial));
    assert_eq!(
        head.parse(next, &LIMITS),
        Ok(Parsed::Complete { len: next.len() })
    );
    assert_eq!(
        (head.method(), head.uri(), head.headers.len()),
        (&b"REQMOD"[..], "/b", 0)
    );
}

proptest! {
    /// What is written is read, however it is cut; with a preview of any length.
    #[test]
    fn written_and_read_back(
        body in vec(any::<u8>(), 0..200),
        preview in prop::option::of(0u64..64),
        chunk in 1usize..40,
        allow in any::<bool>(),
        path in "/[a-z0-9]{0,12}",
        cuts in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut http = http1::RequestHead::build(b"PUT", path.as_bytes(), http1::Version::Http11).unwrap();
        http.headers.append(b"Host", b"example.com").unwrap();
        let heads = HttpHeads { request: Some(http), response: None };
        let mut encapsulated_bytes = Vec::new();
        let encapsulated = heads.write_to(Part::RequestBody, &mut encapsulated_bytes);
        prop_assert_eq!(encapsulated.heads_len(), encapsulated_bytes.len());

        let mut head = RequestHead::build("REQMOD", "icap://h/reqmod").unwrap();
        head.headers.append(b"Encapsulated", encapsulated.to_string().as_bytes()).unwrap();
        if let Some(preview) = preview {
            head.headers.append(b"Preview", preview.to_string().as_bytes()).unwrap();
        }
        if allow {
            head.headers.append(b"Allow", b"204").unwrap();
        }
        let mut wire = Vec::new();
        head.write_to(&mut wire);
        wire.extend_from_slice(&encapsulated_bytes);
        let length = preview.map_or(body.len(), |preview| body.len().min(preview as usize));
        let (first, second) = body.split_at(length);
        for piece in first.chunks(chunk) {
            encode_chunk(&mut wire, piece);
        }
        let is_all = preview.is_none() || second.is_empty();
        wire.extend_from_slice(if preview.is_some() && is_all { LAST_OF_ALL } else { LAST });
        if !is_all {
            for piece in second.chunks(chunk) {
                encode_chunk(&mut wire, piece);
            }
            wire.extend_from_slice(LAST);
        }

        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
        at.extend([0, wire.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
        let message = read(&pieces).unwrap().unwrap();
        prop_assert_eq!(message.taken, wire.len());
        prop_assert_eq!(message.body.concat(), body);
        prop_assert_eq!(message.shape, Shape { encapsulated, preview, allow_204: allow });
        prop_assert_eq!(message.heads, heads);
    }

    /// Anything at all gives the same for every cut, and no panic.
    #[test]
    fn any_bytes_any_way(
        input in prop_oneof![
            vec(any::<u8>(), 0..120),
            vec(prop::sample::select(vec![
                &b"REQMOD"[..], b" ", b"/x", b" ICAP/1.0", b"\r\n", b"Encapsulated: ", b"req-hdr=0, ", b"req-body=18",
                b"null-body=0", b"Preview: 2", b"GET / HTTP/1.1\r\n\r\n", b"2\r\nab\r\n", b"0\r\n\r\n", b"0; ieof\r\n\r\n",
            ]), 0..14).prop_map(|parts| parts.concat()),
        ],
    ) {
        let whole = read(&[&input]);
        for at in 0..=input.len() {
            let (first, second) = input.split_at(at);
            prop_assert_eq!(&read(&[first, second]), &whole, "cut at {}", at);
        }
    }

    /// The same for answers.
    #[test]
    fn any_answer_any_way(
        input in prop_oneof![
            vec(any::<u8>(), 0..80),
            vec(prop::sample::select(vec![
                &b"ICAP/1.0"[..], b" 200", b" OK", b"\r\n", b"A: b", b"\t", b" ", b"\n", b":", b"\0",
            ]), 0..14).prop_map(|parts| parts.concat()),
        ],
    ) {
        let mut head = ResponseHead::default();
        let whole = head.parse(&input, &LIMITS);
        for at in 0..input.len() {
            let early = head.parse(&input[..at], &LIMITS);
            prop_assert!(early == Ok(Parsed::Partial) || early == whole, "{:?} at {}", early, at);
        }
    }
}

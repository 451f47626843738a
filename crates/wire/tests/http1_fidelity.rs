//! What nobody edits leaves exactly as it came.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test asserts by panicking, in its helpers too"
)]

use tollgate_wire::http1::{ChunkedDecoder, HeadLimits, Parsed, RequestHead, ResponseHead};

const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET http://example.com:8080/a?b=c HTTP/1.0\r\nPROXY-connection:Keep-Alive\r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost:a\r\n\r\n",
    b"m-search!#$%&'*+.^_`|~ /%zz?[]{}|\\^`\"<> HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /caf\xC3\xA9?q=\xE9 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nCOOKIE: a=1\r\ncookie: b=2\r\nCookie: a=1\r\nhOsT2: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nA:b\r\nB: \t c \t\r\nC:      d\r\nD:\r\nE: \r\nF:\t\r\nG: x\ty  z\r\nH: a:b: c\r\n\r\n",
    b"GET / HTTP/1.1\r\nLatin: d\xE9j\xE0 vu\r\nUtf: d\xC3\xA9j\xC3\xA0\r\nCtl: \x01\x0b\x7f\r\n\r\n",
    b"GET / HTTP/1.1\r\n!#$%&'*+-.^_`|~09azAZ: token\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
];

const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200\r\nA: b\r\n\r\n",
    b"HTTP/1.1 200 \r\nA: b\r\n\r\n",
    b"HTTP/1.0 999 d\xE9j\xE0  vu \r\nSet-Cookie: a\r\nset-cookie: b\r\nSET-COOKIE: a\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nlink:</b>\r\n\r\n",
];

#[test]
fn requests() {
    let mut head = RequestHead::new();
    for &input in REQUESTS {
        assert_eq!(
            head.parse(input, &HeadLimits::default()),
            Ok(Parsed::Complete { len: input.len() })
        );
        assert_eq!(head.as_raw(), Some(input));
        let mut out = b"before ".to_vec();
        head.write_to(&mut out);
        assert_eq!(out, [b"before ", input].concat());

        // The same through the path of an edited head: one line is added and taken away again.
        head.headers.append(b"X-Edit", b"1").unwrap();
        assert!(head.is_edited());
        assert_eq!(head.headers.remove("x-edit"), 1);
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(out, input, "{}", input.escape_ascii());
    }
}

#[test]
fn responses() {
    let mut head = ResponseHead::new();
    for &input in RESPONSES {
        assert_eq!(
            head.parse(input, &HeadLimits::default()),
            Ok(Parsed::Complete { len: input.len() })
        );
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(out, input);
        head.headers.append(b"X-Edit", b"1").unwrap();
        head.headers.retain(|name, _| name != b"X-Edit");
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(out, input, "{}", input.escape_ascii());
    }
}

#[test]
fn values_are_trimmed_and_lines_are_not() {
    let input = b"GET / HTTP/1.1\r\nA:b\r\nB: \t c \t\r\nC:\r\nD: \t \r\nE: x\ty \r\n\r\n";
    let mut head = RequestHead::new();
    head.parse(input, &HeadLimits::default()).unwrap();
    let values: Vec<_> = head.headers.iter().map(|(_, value)| value).collect();
    assert_eq!(values, [&b"b"[..], b"c", b"", b"", b"x\ty"]);
    assert_eq!(head.headers.raw_line(1), Some(&b"B: \t c \t\r\n"[..]));
    assert_eq!(head.headers.iter().len(), 5);
}

#[test]
fn an_edit_changes_its_own_line_only() {
    let input =
        b"GET / HTTP/1.1\r\nhOST:a\r\nx-old:  1 \r\nUser-Agent:\tagent \r\nX-OLD: 2\r\n\r\n";
    let mut head = RequestHead::new();
    head.parse(input, &HeadLimits::default()).unwrap();
    head.headers.set(b"X-Old", b"new").unwrap();
    head.headers.insert_at(0, b"First", b"0").unwrap();
    let mut out = Vec::new();
    head.write_to(&mut out);
    assert_eq!(
        out,
        b"GET / HTTP/1.1\r\nFirst: 0\r\nhOST:a\r\nx-old: new\r\nUser-Agent:\tagent \r\n\r\n"
    );
}

#[test]
fn an_edit_that_changes_nothing_is_none() {
    let input = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n";
    let mut head = RequestHead::new();
    head.parse(input, &HeadLimits::default()).unwrap();
    head.headers.set(b"host", b"a").unwrap();
    head.headers.remove("absent");
    head.headers.retain(|_, _| true);
    head.set_target(b"/").unwrap();
    assert_eq!(head.as_raw(), Some(&input[..]));
    head.headers.clear();
    assert!(head.is_edited());
    let mut out = Vec::new();
    head.write_to(&mut out);
    assert_eq!(out, b"GET / HTTP/1.1\r\n\r\n");
}

#[test]
fn pipelined_requests_with_chunked_bodies() {
    let wire = b"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
        5 ;ext=\"v\"\r\nhello\r\n00\r\nTrailer-One:1\r\ntrailer-one: 2\r\n\r\n\
        GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut head = RequestHead::new();
    let Ok(Parsed::Complete { len }) = head.parse(wire, &HeadLimits::default()) else {
        panic!("incomplete")
    };
    let mut body = Vec::new();
    let mut decoder = ChunkedDecoder::new(1024);
    let progress = decoder
        .feed(&wire[len..], |piece| body.extend_from_slice(piece))
        .unwrap();
    assert!(progress.done);
    assert_eq!(body, b"hello");
    let trailers = decoder.trailers().unwrap();
    assert_eq!(
        trailers.get_all("trailer-one").collect::<Vec<_>>(),
        [b"1", b"2"]
    );
    let mut out = Vec::new();
    trailers.write_to(&mut out);
    assert_eq!(out, b"Trailer-One:1\r\ntrailer-one: 2\r\n");
    let rest = &wire[len + progress.consumed..];
    assert_eq!(
        head.parse(rest, &HeadLimits::default()),
        Ok(Parsed::Complete { len: rest.len() })
    );
    assert_eq!(head.target(), b"/2");
    // A finished decoder takes nothing more.
    let progress = decoder.feed(rest, |_| panic!("no payload")).unwrap();
    assert_eq!((progress.consumed, progress.done), (0, true));
}

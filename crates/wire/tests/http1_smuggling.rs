//! Messages that two implementations could read differently: each shape is refused with its own anomaly, whatever
//! pieces it arrives in.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test asserts by panicking, in its helpers too"
)]

use tollgate_wire::http1::{
    Anomaly, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version,
};

const LIMITS: HeadLimits = HeadLimits {
    bytes: 4096,
    lines: 64,
};

/// What a request comes to: its framing, or the first anomaly of head, framing and host.
fn request(input: &[u8]) -> Result<Framing, Anomaly> {
    let verdict = |head: &mut RequestHead, input: &[u8]| match head.parse(input, &LIMITS)? {
        Parsed::Partial => Ok(None),
        Parsed::Complete { .. } => {
            let framing = head.framing()?;
            head.check_host()?;
            Ok(Some(framing))
        }
    };
    let whole = verdict(&mut RequestHead::new(), input);
    let mut head = RequestHead::new();
    let pieces = (1..=input.len())
        .map(|len| verdict(&mut head, &input[..len]))
        .find(|result| *result != Ok(None));
    assert_eq!(
        pieces.unwrap_or(Ok(None)),
        whole,
        "byte by byte: {}",
        input.escape_ascii()
    );
    whole.map(|framing| framing.expect("a complete head"))
}

fn response(input: &[u8]) -> Result<Framing, Anomaly> {
    let mut head = ResponseHead::new();
    match head.parse(input, &LIMITS)? {
        Parsed::Partial => panic!("incomplete: {}", input.escape_ascii()),
        Parsed::Complete { .. } => head.framing(b"GET"),
    }
}

#[test]
fn framing_headers() {
    use Anomaly::{
        BothTransferEncodingAndContentLength as Both, ChunkedNotLast, DifferingContentLengths,
        InvalidContentLength, RepeatedChunked, UnknownTransferCoding,
    };
    for (headers, anomaly) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Both),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Both),
        ("transfer-encoding: identity\r\ncontent-length: 5\r\n", Both),
        ("Transfer-Encoding:\r\nContent-Length:\r\n", Both),
        (
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            DifferingContentLengths,
        ),
        (
            "Content-Length: 5\r\ncontent-length: 05\r\n",
            DifferingContentLengths,
        ),
        (
            "Content-Length: 5\r\nContent-Length: x\r\n",
            InvalidContentLength,
        ),
        ("Content-Length: 5, 5\r\n", InvalidContentLength),
        ("Content-Length: 5,6\r\n", InvalidContentLength),
        ("Content-Length: +5\r\n", InvalidContentLength),
        ("Content-Length: -5\r\n", InvalidContentLength),
        ("Content-Length: 5 6\r\n", InvalidContentLength),
        ("Content-Length: 0x5\r\n", InvalidContentLength),
        ("Content-Length: 5.0\r\n", InvalidContentLength),
        ("Content-Length: 1_000\r\n", InvalidContentLength),
        ("Content-Length:\r\n", InvalidContentLength),
        ("Content-Length: \x0b5\r\n", InvalidContentLength),
        (
            "Content-Length: 9223372036854775808\r\n",
            InvalidContentLength,
        ),
        (
            "Content-Length: 18446744073709551617\r\n",
            InvalidContentLength,
        ),
        ("Transfer-Encoding: identity\r\n", UnknownTransferCoding),
        ("Transfer-Encoding: xchunked\r\n", UnknownTransferCoding),
        ("Transfer-Encoding: \x0bchunked\r\n", UnknownTransferCoding),
        ("Transfer-Encoding: \"chunked\"\r\n", UnknownTransferCoding),
        ("Transfer-Encoding: chunked;q=1\r\n", UnknownTransferCoding),
        ("Transfer-Encoding: chunk\r\n", UnknownTransferCoding),
        (
            "Transfer-Encoding: gzip, chunked\r\n",
            UnknownTransferCoding,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
            UnknownTransferCoding,
        ),
        ("Transfer-Encoding: ,chunked\r\n", UnknownTransferCoding),
        ("Transfer-Encoding:\r\n", UnknownTransferCoding),
        ("Transfer-Encoding: gzip\r\n", ChunkedNotLast),
        ("Transfer-Encoding: chunked, gzip\r\n", ChunkedNotLast),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            ChunkedNotLast,
        ),
        ("Transfer-Encoding: chunked,\r\n", ChunkedNotLast),
        ("Transfer-Encoding: chunked, chunked\r\n", RepeatedChunked),
        (
            "Transfer-Encoding: chunked\r\ntransfer-encoding: CHUNKED\r\n",
            RepeatedChunked,
        ),
    ] {
        let input = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        assert_eq!(request(input.as_bytes()), Err(anomaly), "{headers:?}");
        let input = format!("HTTP/1.1 200 OK\r\n{headers}\r\n");
        assert_eq!(
            response(input.as_bytes()),
            Err(anomaly),
            "response {headers:?}"
        );
    }
}

#[test]
fn framing_that_is_clear() {
    for (headers, framing) in [
        ("", Framing::None),
        ("Content-Length: 0\r\n", Framing::Length(0)),
        ("Content-Length:\t 007 \r\n", Framing::Length(7)),
        (
            "Content-Length: 5\r\nX: y\r\nContent-Length: 5\r\n",
            Framing::Length(5),
        ),
        (
            "Content-Length: 9223372036854775807\r\n",
            Framing::Length(i64::MAX as u64),
        ),
        ("Transfer-Encoding:  CHUNKED\t\r\n", Framing::Chunked),
        (
            "Content-Length2: x\r\nX-Transfer-Encoding: y\r\n",
            Framing::None,
        ),
    ] {
        let input = format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        assert_eq!(request(input.as_bytes()), Ok(framing), "{headers:?}");
    }
}

#[test]
fn http10_has_no_transfer_encoding() {
    let input = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(request(input), Err(Anomaly::TransferEncodingInHttp10));
    let input = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(response(input), Err(Anomaly::TransferEncodingInHttp10));
}

#[test]
fn header_lines() {
    for (lines, anomaly) in [
        ("A: b\n\r\n", Anomaly::BareLf),
        ("A: b\r\n\n", Anomaly::BareLf),
        ("A: b\nTransfer-Encoding: chunked\r\n\r\n", Anomaly::BareLf),
        ("A\n\r\n", Anomaly::BareLf),
        ("A: b\rTransfer-Encoding: chunked\r\n\r\n", Anomaly::BareCr),
        ("A: b\r\r\n\r\n", Anomaly::BareCr),
        ("\rA: b\r\n\r\n", Anomaly::BareCr),
        ("A\rB: c\r\n\r\n", Anomaly::BareCr),
        ("A: b\r\n c\r\n\r\n", Anomaly::ObsFold),
        (
            "A: b\r\n\tTransfer-Encoding: chunked\r\n\r\n",
            Anomaly::ObsFold,
        ),
        ("A: b\r\n \r\n\r\n", Anomaly::ObsFold),
        (
            "Transfer-Encoding : chunked\r\n\r\n",
            Anomaly::SpaceBeforeColon,
        ),
        ("Content-Length\t: 5\r\n\r\n", Anomaly::SpaceBeforeColon),
        (": b\r\n\r\n", Anomaly::EmptyHeaderName),
        ("A b: c\r\n\r\n", Anomaly::SpaceBeforeColon),
        ("A\0: c\r\n\r\n", Anomaly::InvalidHeaderName),
        ("\u{e4}: c\r\n\r\n", Anomaly::InvalidHeaderName),
        (
            "\x0bTransfer-Encoding: chunked\r\n\r\n",
            Anomaly::InvalidHeaderName,
        ),
        ("A(b): c\r\n\r\n", Anomaly::InvalidHeaderName),
        ("A\r\n\r\n", Anomaly::MissingColon),
        ("A \r\n\r\n", Anomaly::SpaceBeforeColon),
        ("A: b\0c\r\n\r\n", Anomaly::InvalidHeaderValue),
    ] {
        let input = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}");
        assert_eq!(request(input.as_bytes()), Err(anomaly), "{lines:?}");
        let input = format!("HTTP/1.1 200 OK\r\nHost: a\r\n{lines}");
        assert_eq!(
            response(input.as_bytes()),
            Err(anomaly),
            "response {lines:?}"
        );
    }
    assert_eq!(
        request(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        Err(Anomaly::SpaceBeforeFirstHeader)
    );
    assert_eq!(
        request(b"GET / HTTP/1.1\r\n\t\r\nHost: a\r\n\r\n"),
        Err(Anomaly::SpaceBeforeFirstHeader)
    );
}

#[test]
fn request_lines() {
    for (line, anomaly) in [
        ("G\u{e4}T / HTTP/1.1", Anomaly::InvalidMethod),
        ("GET\t/ HTTP/1.1", Anomaly::InvalidMethod),
        (" GET / HTTP/1.1", Anomaly::InvalidMethod),
        ("G(T / HTTP/1.1", Anomaly::InvalidMethod),
        ("\x16\x03\x01", Anomaly::InvalidMethod),
        ("GET", Anomaly::InvalidTarget),
        ("GET  / HTTP/1.1", Anomaly::InvalidTarget),
        ("GET /a b HTTP/1.1", Anomaly::InvalidVersion),
        ("GET /a\tb HTTP/1.1", Anomaly::InvalidTarget),
        ("GET /\0 HTTP/1.1", Anomaly::InvalidTarget),
        ("GET /\x7f HTTP/1.1", Anomaly::InvalidTarget),
        ("GET /  HTTP/1.1", Anomaly::InvalidVersion),
        ("GET /", Anomaly::InvalidVersion),
        ("GET / ", Anomaly::InvalidVersion),
        ("GET / HTTP/1.1 ", Anomaly::InvalidVersion),
        ("GET / http/1.1", Anomaly::InvalidVersion),
        ("GET / HTTP/1", Anomaly::InvalidVersion),
        ("GET / HTTP/1.10", Anomaly::InvalidVersion),
        ("GET / HTTP/11", Anomaly::InvalidVersion),
        ("GET / XTTP/1.1", Anomaly::InvalidVersion),
        ("GET / HTTP/0.9", Anomaly::UnsupportedVersion),
        ("GET / HTTP/1.2", Anomaly::UnsupportedVersion),
        ("PRI * HTTP/2.0", Anomaly::UnsupportedVersion),
        ("GET / HTTP/1.1\rX", Anomaly::BareCr),
        ("GET /\rX HTTP/1.1", Anomaly::BareCr),
        ("GET\rX / HTTP/1.1", Anomaly::BareCr),
        ("GET / HTTP/1.1\n", Anomaly::BareLf),
        ("GET /\n", Anomaly::BareLf),
        ("GET\n", Anomaly::BareLf),
        ("\n", Anomaly::BareLf),
    ] {
        let input = format!("{line}\r\nHost: a\r\n\r\n");
        assert_eq!(request(input.as_bytes()), Err(anomaly), "{line:?}");
    }
}

#[test]
fn status_lines() {
    for (line, anomaly) in [
        ("HTTP/1.1", Anomaly::InvalidStatus),
        ("HTTP/1.1 ", Anomaly::InvalidStatus),
        ("HTTP/1.1 20", Anomaly::InvalidStatus),
        ("HTTP/1.1 2000", Anomaly::InvalidStatus),
        ("HTTP/1.1 099 x", Anomaly::InvalidStatus),
        ("HTTP/1.1 +20 x", Anomaly::InvalidStatus),
        ("HTTP/1.1  200 x", Anomaly::InvalidStatus),
        ("HTTP/1.1 200\tOK", Anomaly::InvalidStatus),
        ("HTTP/1.10 200 OK", Anomaly::InvalidVersion),
        ("HTTP/1.1\t200 OK", Anomaly::InvalidVersion),
        ("ICY 200 OK", Anomaly::InvalidVersion),
        ("<html>", Anomaly::InvalidVersion),
        ("\r\nHTTP/1.1 200 OK", Anomaly::InvalidVersion),
        ("HTTP/2.0 200 OK", Anomaly::UnsupportedVersion),
        ("HTTP/1.1 200 O\0K", Anomaly::InvalidReason),
        ("HTTP/1.1 200 O\rK", Anomaly::BareCr),
        ("HTTP/1.1 200 OK\nA: b", Anomaly::BareLf),
    ] {
        assert_eq!(
            response(format!("{line}\r\nA: b\r\n\r\n").as_bytes()),
            Err(anomaly),
            "{line:?}"
        );
    }
    assert_eq!(
        ResponseHead::new().parse(b"SSH-2", &LIMITS),
        Err(Anomaly::InvalidVersion),
        "without a line end"
    );
}

#[test]
fn empty_lines_before_a_request() {
    let mut head = RequestHead::new();
    for count in 0..=4 {
        let input = [
            "\r\n".repeat(count).as_str(),
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ]
        .concat();
        assert_eq!(
            head.parse(input.as_bytes(), &LIMITS),
            Ok(Parsed::Complete { len: input.len() })
        );
        assert_eq!(
            (head.method(), head.version()),
            (&b"GET"[..], Version::Http11)
        );
        assert_eq!(head.as_raw(), Some(&input.as_bytes()[2 * count..]));
        assert_eq!(request(input.as_bytes()), Ok(Framing::None));
    }
    let input = ["\r\n".repeat(5).as_str(), "GET / HTTP/1.1\r\n\r\n"].concat();
    assert_eq!(request(input.as_bytes()), Err(Anomaly::LeadingEmptyLines));
    assert_eq!(request(b"\r\rGET / HTTP/1.1\r\n\r\n"), Err(Anomaly::BareCr));
}

#[test]
fn limits_are_exact() {
    let head = |filler: usize| format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(filler));
    let fixed = head(0).len();
    assert_eq!(
        request(head(LIMITS.bytes - fixed).as_bytes()),
        Ok(Framing::None)
    );
    assert_eq!(
        request(head(LIMITS.bytes - fixed + 1).as_bytes()),
        Err(Anomaly::HeadTooLarge)
    );

    let lines = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "A:b\r\n".repeat(count - 1)
        )
    };
    assert_eq!(request(lines(LIMITS.lines).as_bytes()), Ok(Framing::None));
    assert_eq!(
        request(lines(LIMITS.lines + 1).as_bytes()),
        Err(Anomaly::TooManyHeaders)
    );

    let endless = vec![b'A'; LIMITS.bytes];
    assert_eq!(request(&endless), Err(Anomaly::HeadTooLarge));
    // The body behind a head doesn't count.
    let input = [head(1).as_bytes(), &endless].concat();
    assert_eq!(request(&input), Ok(Framing::None));
}

#[test]
fn after_an_anomaly_the_next_message_parses() {
    let mut head = RequestHead::new();
    assert_eq!(
        head.parse(b"GET / HTTP/1.1\r\nA: b\r\nB", &LIMITS),
        Ok(Parsed::Partial)
    );
    assert_eq!(
        head.parse(b"GET / HTTP/1.1\r\nA: b\r\nB\n", &LIMITS),
        Err(Anomaly::BareLf)
    );
    let input = b"PUT /long/enough/to/be/longer/than/the/first HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(
        head.parse(input, &LIMITS),
        Ok(Parsed::Complete { len: input.len() })
    );
    assert_eq!(head.headers.len(), 1);
}

#[test]
fn statuses_and_codes() {
    for (anomaly, status, code) in [
        (
            Anomaly::BothTransferEncodingAndContentLength,
            400,
            "te-and-cl",
        ),
        (Anomaly::HeadTooLarge, 431, "head-too-large"),
        (Anomaly::TooManyHeaders, 431, "headers-too-many"),
        (Anomaly::UnknownTransferCoding, 501, "te-unknown"),
        (Anomaly::UnsupportedVersion, 505, "version-unsupported"),
    ] {
        assert_eq!((anomaly.status(), anomaly.code()), (status, code));
    }
}

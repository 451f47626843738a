//! What nobody edits leaves as it came: both ends are plain bytes, so that no library tidies them up.
#![cfg(unix)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use tollgate_e2e::raw::{self, RawOrigin, read_exactly, read_head};
use tollgate_e2e::{LIMIT, Pki, Tollgate, require};

#[test]
fn an_odd_exchange_arrives_unchanged_both_ways() {
    require!("openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    const BODY: &[u8] = b"\x00\xff{not json\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 299 Rather  Odd\r\n\
        x-second: 2\r\n\
        X-FIRST: 1\r\n\
        Set-Cookie: b=2\r\n\
        set-cookie: a=1\r\n\
        x-empty:\r\n\
        Transfer-Encoding: chunked\r\n\
        Trailer: X-Check\r\n\
        \r\n\
        005;name=\"value\"\r\nhello\r\n\
        6\r\n world\r\n\
        0\r\n\
        x-CHECK: fine\r\n\
        \r\n";
    let origin = RawOrigin::start(&pki, |stream| {
        let head = read_head(stream);
        let body = read_exactly(stream, BODY.len());
        stream.write_all(ANSWER).unwrap();
        (head, body)
    });
    let proxy = Tollgate::trusting(&pki.ca(), &[]);

    let authority = origin.authority();
    let head = format!(
        "POST /a/../b//%7euser?x=%2F&&y=;z HTTP/1.1\r\n\
         x-zebra: 1\r\n\
         hOsT: {authority}\r\n\
         X-Apple:   spaces  inside   \r\n\
         Cookie: b=2\r\n\
         X-ZEBRA: 2\r\n\
         cookie: a=1\r\n\
         X-Empty:\r\n\
         X-Latin: caf\u{e9}\r\n\
         Accept-Encoding: br,  gzip;q=0.5\r\n\
         cOnTeNt-LeNgTh: {}\r\n\
         \r\n",
        BODY.len()
    );
    let mut stream = raw::through(proxy.address(), &authority, proxy.cert());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(BODY).unwrap();
    let answer = read_exactly(&mut stream, ANSWER.len());
    assert_eq!(
        String::from_utf8_lossy(&answer),
        String::from_utf8_lossy(ANSWER)
    );

    let (seen, body) = origin.finish();
    assert_eq!(String::from_utf8_lossy(&seen), head);
    assert_eq!(body, BODY);
    let [_, response] = proxy.wait_flow("POST https://localhost:");
    assert!(response.contains("299 Rather"), "{response}");
}

#[test]
fn a_plain_request_loses_only_what_belongs_to_the_hop() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 ok\r\ncontent-LENGTH: 2\r\nx-B: 1\r\nx-a: 2\r\n\r\nhi";
    let origin = RawOrigin::start_plain(|stream| {
        let head = read_head(stream);
        stream.write_all(ANSWER).unwrap();
        head
    });
    let proxy = Tollgate::start::<&str>([]);
    let authority = origin.authority();
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "GET http://{authority}/A?b=%20 HTTP/1.1\r\n\
         x-Zebra: 1\r\n\
         HOST: {authority}\r\n\
         Proxy-Authorization: Basic c2VjcmV0OnNlY3JldA==\r\n\
         X-apple: 2\r\n\
         Proxy-Connection: keep-alive\r\n\
         \r\n"
    )
    .unwrap();
    assert_eq!(read_exactly(&mut stream, ANSWER.len()), ANSWER);
    assert_eq!(
        String::from_utf8_lossy(&origin.finish()),
        format!(
            "GET /A?b=%20 HTTP/1.1\r\n\
             x-Zebra: 1\r\n\
             HOST: {authority}\r\n\
             X-apple: 2\r\n\
             \r\n"
        )
    );
}

#[test]
fn a_stream_arrives_piece_by_piece() {
    require!("openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let (next, wait) = std::sync::mpsc::channel::<()>();
    let origin = RawOrigin::start(&pki, move |stream| {
        read_head(stream);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            .unwrap();
        for number in 0..5 {
            stream
                .write_all(format!("data: {number}\n\n").as_bytes())
                .unwrap();
            stream.flush().unwrap();
            // The next event is sent when the client has this one: a proxy that keeps any waits for ever.
            wait.recv_timeout(LIMIT).unwrap();
        }
    });
    let proxy = Tollgate::trusting(&pki.ca(), &["--flow-detail", "4"]);
    let authority = origin.authority();
    let mut stream = raw::through(proxy.address(), &authority, proxy.cert());
    write!(stream, "GET /events HTTP/1.1\r\nHost: {authority}\r\n\r\n").unwrap();
    read_head(&mut stream);
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        assert_eq!(read_exactly(&mut stream, event.len()), event.as_bytes());
        next.send(()).unwrap();
    }
    // The end of the response is the end of the connection (RFC 9112 section 6.3).
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    origin.finish();
}

//! Requests that two servers could read differently: refused, and not one byte of them is forwarded.

use crate::support::*;

/// Name, status, and the request.
const SHAPES: &[(&str, u16, &[u8])] = &[
    ("CL and TE", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("TE and CL", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n"),
    ("differing CL", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("a list of CL", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\nab"),
    ("CL with plus", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\na"),
    ("CL with minus", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\na"),
    ("CL in hex", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x1\r\n\r\na"),
    ("CL with space inside", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1 2\r\n\r\na"),
    ("CL too large", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551617\r\n\r\na"),
    ("empty CL", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length:\r\n\r\na"),
    ("CL with a letter", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1a\r\n\r\na"),
    ("CL with latin-1", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\xb2\r\n\r\na"),
    ("TE chunked twice", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("two TE lines", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("TE xchunked", 501, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("TE identity", 501, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    ("TE gzip, chunked", 501, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked not last", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    ("empty TE", 501, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n"),
    ("TE with vertical tab", 501, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("quoted TE", 501, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("TE in HTTP/1.0", 400, b"POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("space before colon", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length : 1\r\n\r\na"),
    ("tab before colon", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    ("space in a name", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nX Y: 1\r\n\r\n"),
    ("obs-fold", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: 1\r\n 2\r\n\r\n"),
    ("obs-fold of TE", 400, b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("space before the first header", 400, b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n"),
    ("bare LF after the request line", 400, b"GET / HTTP/1.1\nHost: localhost\r\n\r\n"),
    ("bare LF after a header", 400, b"GET / HTTP/1.1\r\nHost: localhost\nX: 1\r\n\r\n"),
    ("bare LF at the end of the head", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\n\n"),
    ("bare CR in a value", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n"),
    ("bare CR in a name", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nX\rY: a\r\n\r\n"),
    ("NUL in a value", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n"),
    ("NUL in a name", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nX\0: a\r\n\r\n"),
    ("NUL in the target", 400, b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("no colon", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n"),
    ("empty name", 400, b"GET / HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n"),
    ("a space in the target", 400, b"GET / x HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    ("no version", 400, b"GET /\r\nHost: localhost\r\n\r\n"),
    ("HTTP/2.0 in a request line", 505, b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n"),
    ("HTTP/1.2", 505, b"GET / HTTP/1.2\r\nHost: localhost\r\n\r\n"),
    ("http in lower case", 400, b"GET / http/1.1\r\nHost: localhost\r\n\r\n"),
    ("a method with a colon", 400, b"GE:T / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
];

/// Where the message ends is clear, but not whom it is for.
const HOSTS: &[(&str, u16, &[u8])] = &[
    (
        "two Hosts",
        400,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    ),
    ("no Host", 400, b"GET / HTTP/1.1\r\nX: 1\r\n\r\n"),
    (
        "Host with a path",
        400,
        b"GET / HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
    ),
    (
        "Host with userinfo",
        400,
        b"GET / HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
    ),
];

/// A body whose chunks break the rules; the head is fine.
const CHUNKS: &[(&str, &[u8])] = &[
    ("no digits", b"\r\n\r\n"),
    ("a sign", b"+1\r\na\r\n0\r\n\r\n"),
    ("0x", b"0x1\r\na\r\n0\r\n\r\n"),
    ("a letter that is no digit", b"g\r\na\r\n0\r\n\r\n"),
    ("17 digits", b"00000000000000001\r\na\r\n0\r\n\r\n"),
    ("more than 2^63", b"8000000000000000\r\na\r\n0\r\n\r\n"),
    ("bare LF after the size", b"1\na\r\n0\r\n\r\n"),
    ("bare LF after the data", b"1\r\na\n0\r\n\r\n"),
    ("data longer than the size", b"1\r\nab\r\n0\r\n\r\n"),
    ("a bare CR in an extension", b"1;a\rb\r\na\r\n0\r\n\r\n"),
    ("NUL in an extension", b"1;a=\0\r\na\r\n0\r\n\r\n"),
    ("CL in the trailers", b"0\r\nContent-Length: 5\r\n\r\n"),
    (
        "TE in the trailers",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    ("bare LF in the trailers", b"0\r\nX: 1\n\r\n"),
    ("an obs-fold in the trailers", b"0\r\nX: 1\r\n 2\r\n\r\n"),
];

#[test]
fn ambiguous_heads_inside_tls_are_refused_and_nothing_is_forwarded() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    for (name, status, request) in SHAPES {
        let mut client = proxy.tls(&origin);
        let response = client.exchange(request).unwrap();
        assert_eq!(response.status(), *status, "{name}: {}", response.text());
        assert_eq!(
            response.header("connection").as_deref(),
            Some("close"),
            "{name}"
        );
        // What follows is not taken for another request.
        let (rest, _) = client.read_to_end();
        assert_eq!(rest, b"", "{name}");
        assert_eq!(origin.received_all(), b"", "{name}");
    }
}

#[test]
fn ambiguous_heads_in_absolute_form_are_refused_and_nobody_is_dialled() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(config());
    for (name, status, request) in SHAPES {
        let authority = origin.authority();
        let request = String::from_utf8_lossy(request).into_owned();
        if !request.contains(" / ") || *name == "CL with latin-1" {
            continue;
        }
        let request = request.replacen(" / ", &format!(" http://{authority}/ "), 1);
        let mut client = proxy.plain();
        client.send(&request).unwrap();
        let response = client.read_response("GET").unwrap();
        assert_eq!(response.status(), *status, "{name}: {}", response.text());
        assert_eq!(origin.accepted(), 0, "{name}");
    }
}

#[test]
fn requests_for_nobody_in_particular_are_refused_and_nothing_is_forwarded() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    for (name, status, request) in HOSTS {
        let mut client = proxy.tls(&origin);
        let response = client.exchange(request).unwrap();
        assert_eq!(response.status(), *status, "{name}: {}", response.text());
        assert_eq!(origin.received_all(), b"", "{name}");
    }
}

#[test]

fn several_hosts_are_refused_in_absolute_form_too() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(config());
    let authority = origin.authority();
    for hosts in [["a.example", "b.example"], [&authority, "b.example"]] {
        let [a, b] = hosts;
        let request = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {a}\r\nHost: {b}\r\n\r\n");
        assert_eq!(proxy.plain().exchange(request).unwrap().status(), 400);
        assert_eq!(origin.accepted(), 0);
    }
}

#[test]
fn broken_chunks_are_refused_and_the_origin_never_sees_a_whole_request() {
    for (name, body) in CHUNKS {
        let origin = Origin::echo_path(Identity::Good);
        let proxy = start(config());
        let mut client = proxy.tls(&origin);
        let head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let response = client.exchange([&head[..], body].concat()).unwrap();
        assert_eq!(response.status(), 400, "{name}");
        assert_eq!(client.read_to_end().0, b"", "{name}");
        // It came in one piece, so that nothing of it had to be sent before it was read.
        assert_eq!(origin.received_all(), b"", "{name}");
    }
}

#[test]
fn a_chunk_that_breaks_later_ends_the_request_at_the_origin_too() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_until(b"1\r\na\r\n")?;
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(tollgate_flow::Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    let head = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
    client.send(head).unwrap();
    wait_until("the first chunk is there", || {
        origin.received_all().ends_with(b"1\r\na\r\n")
    });
    client.send("zz\r\n").unwrap();
    assert_eq!(client.read_response("POST").unwrap().status(), 400);
    let outcome = recorder.ends(1).remove(0);
    assert_eq!(outcome.error.unwrap().side, tollgate_flow::Side::Client);
    assert_same(&origin.received_all(), head.as_bytes());
}

#[test]
fn a_request_hidden_in_a_body_stays_a_body() {
    let origin = Origin::http(Identity::Good, |request| ok(&request.body));
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let hidden = "GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{hidden}",
        hidden.len()
    );
    assert_eq!(client.exchange(request).unwrap().text(), hidden);
    assert_eq!(proxy.metrics().flows_total, 1);
}

#[test]
fn an_origin_with_ambiguous_framing_is_a_502_and_its_connection_is_not_used_again() {
    for (name, response) in [
        (
            "CL and TE",
            &b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                [..],
        ),
        (
            "differing CL",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        ),
        (
            "CL with sign",
            b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        ),
        (
            "obs-fold",
            b"HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 0\r\n\r\n",
        ),
        ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
        (
            "TE xchunked",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        ("not HTTP", b"220 mail.example ESMTP\r\n\r\n"),
        ("a status of two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
    ] {
        let origin = Origin::script(Identity::Good, move |wire, number| {
            wire.read_request()?;
            wire.send(if number == 0 {
                response.to_vec()
            } else {
                ok("fresh")
            })?;
            wire.read_to_end();
            Ok(())
        });
        let proxy = start(config());
        let mut client = proxy.tls(&origin);
        let request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let refused = client.exchange(request).unwrap();
        assert_eq!(refused.status(), 502, "{name}");
        assert!(
            refused.text().contains("upstream"),
            "{name}: {}",
            refused.text()
        );
        assert_eq!(client.exchange(request).unwrap().text(), "fresh", "{name}");
        assert_eq!(origin.accepted(), 2, "{name}");
    }
}

//! What nobody edits leaves as it came, byte for byte.

use crate::support::*;

/// Requests as somebody might write them, all legal enough to be forwarded.
const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"get / HTTP/1.1\r\nhOsT: localhost\r\n\r\n",
    b"GET /a%20b/../c?d=e&&f=%zz#not-a-fragment HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /{}|\\^`<> HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"M-SEARCH / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://localhost/absolute HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nX-After: 1\r\nHost: localhost\r\nx-after: 2\r\nX-AFTER: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:localhost\r\nA:1\r\nB:  2  \r\nC:\t3\t\r\nD:\r\nE: \r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Latin: \xe9\xff\x80\r\nX-Utf8: \xc3\xa9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Odd!#$%&'*+-.^_`|~: (\"quoted, \\\" pair\")\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: a=1\r\nCookie: b=2\r\nCookie: c=3; d=4\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Keep-Alive, TE\r\nTE: trailers\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer abc\r\nVia: 1.1 before\r\nForwarded: for=1.2.3.4\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: LOCALHOST:443\r\nAccept-Encoding: gzip;q=1.0, identity; q=0.5, *;q=0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n\0\xff\r\n\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 005\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nget",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTRANSFER-encoding: Chunked\r\n\r\n5;name=value;other=\"a;b\"\r\nhello\r\n000A\r\n0123456789\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n00;last\r\nX-Sum: 1\r\nx-sum:2\r\nX-Latin: \xe9\r\n\r\n",
];

const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 299 Tout va tr\xe8s bien, \xc3\xa9\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 999 \r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nsEt-CoOkIe: a=1\r\nSet-Cookie: b=2; Path=/\r\nset-cookie: a=3\r\ncontent-length:2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nA:1\r\nB:  2  \r\nC:\t3\t\r\nD:\r\nE: \r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nX-Latin: \xe9\xff\x80\r\nContent-Length: 2\r\n\r\n\0\xff",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;name=value;other=\"a;b\"\r\nhello\r\n000A\r\n0123456789\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n00;last\r\nX-Sum: 1\r\nx-sum:2\r\nX-Latin: \xe9\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 77\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /a b\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\", Digest nonce=\"y\"\r\nContent-Length: 0\r\n\r\n",
];

fn log_then_answer() -> Origin {
    Origin::http(Identity::Good, |_| ok(""))
}

#[test]
fn requests_arrive_as_they_were_sent() {
    let origin = log_then_answer();
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let mut expected = Vec::new();
    for request in REQUESTS {
        assert_eq!(client.exchange(request).unwrap().status(), 200);
        expected.extend_from_slice(request);
        assert_same(&origin.received_all(), &expected);
    }
}

#[test]
fn requests_arrive_as_they_were_sent_when_they_trickle_in() {
    let origin = log_then_answer();
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let mut expected = Vec::new();
    for request in REQUESTS {
        for byte in request.chunks(1) {
            client.send(byte).unwrap();
        }
        assert_eq!(client.read_response("POST").unwrap().status(), 200);
        expected.extend_from_slice(request);
    }
    assert_same(&origin.received_all(), &expected);
}

#[test]
fn requests_arrive_as_they_were_sent_when_somebody_looks_on() {
    use tollgate_flow::Interest;
    for interest in [
        Interest::HEADS,
        Interest::HEADS | Interest::DATA,
        Interest::DATA | Interest::DECODED,
        Interest::RESPONSE_BODY,
    ] {
        let origin = log_then_answer();
        let proxy = start_with(config(), [Recorder::new(interest)]);
        let mut client = proxy.tls(&origin);
        let mut expected = Vec::new();
        for request in REQUESTS {
            assert_eq!(client.exchange(request).unwrap().status(), 200);
            expected.extend_from_slice(request);
            assert_same(&origin.received_all(), &expected);
        }
    }
}

#[test]
fn a_collected_request_that_nobody_edits_keeps_its_head_unless_it_was_chunked() {
    let origin = log_then_answer();
    let proxy = start_with(
        config(),
        [Recorder::new(tollgate_flow::Interest::REQUEST_BODY)],
    );
    let mut client = proxy.tls(&origin);
    let mut expected = Vec::new();
    for request in REQUESTS {
        if String::from_utf8_lossy(request)
            .to_lowercase()
            .contains("chunked")
        {
            continue;
        }
        assert_eq!(client.exchange(request).unwrap().status(), 200);
        expected.extend_from_slice(request);
        assert_same(&origin.received_all(), &expected);
    }
}

#[test]
fn responses_arrive_as_they_were_sent() {
    for interest in [
        None,
        Some(tollgate_flow::Interest::HEADS),
        Some(tollgate_flow::Interest::DATA | tollgate_flow::Interest::DECODED),
        Some(tollgate_flow::Interest::REQUEST_BODY),
    ] {
        let origin = Origin::http(Identity::Good, |request| {
            RESPONSES[request.path()[1..].parse::<usize>().unwrap()].to_vec()
        });
        let proxy = match interest {
            None => start(config()),
            Some(interest) => start_with(config(), [Recorder::new(interest)]),
        };
        let mut client = proxy.tls(&origin);
        for (n, response) in RESPONSES.iter().enumerate() {
            let request = format!("GET /{n} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            client.send(request).unwrap();
            assert_same(&client.read_exact(response.len()).unwrap(), response);
        }
        assert_eq!(origin.accepted(), 1);
    }
}

#[test]
fn responses_arrive_as_they_were_sent_when_they_trickle_in() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        for response in RESPONSES {
            wire.read_request()?;
            for byte in response.chunks(1) {
                wire.send(byte)?;
            }
        }
        Ok(())
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    for response in RESPONSES {
        client
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        assert_same(&client.read_exact(response.len()).unwrap(), response);
    }
}

#[test]
fn interim_responses_arrive_as_they_were_sent() {
    const ALL: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 102 Processing\r\nX: 1\r\nx: 2\r\n\r\n\
        HTTP/1.1 103 Early \xe9\r\nLink: </a>\r\nLink: </b>\r\n\r\n\
        HTTP/1.1 103\r\nlink:</c>\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let origin = Origin::http(Identity::Good, |_| ALL.to_vec());
    let recorder = Recorder::new(tollgate_flow::Interest::HEADS);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    for _ in 0..2 {
        client
            .send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .unwrap();
        assert_same(&client.read_exact(ALL.len()).unwrap(), ALL);
    }
    recorder.ends(2);
    let responses = recorder.trace();
    let finals = responses.iter().filter(|w| *w == "response 200").count();
    assert_eq!(finals, 2, "{responses:?}");
}

#[test]
fn plain_requests_change_only_in_what_the_hop_must_change() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(config());
    let authority = origin.authority();
    let mut client = proxy.plain();
    let rest = format!("hOsT:{authority}\r\nB:  2  \r\nX: \u{e9}\r\nb: 3\r\n\r\n");
    client
        .exchange(format!("GET http://{authority}/a?b HTTP/1.1\r\n{rest}"))
        .unwrap();
    assert_same(
        &origin.received_all(),
        format!("GET /a?b HTTP/1.1\r\n{rest}").as_bytes(),
    );
}

#[test]
fn fields_that_connection_names_stay_on_the_hop() {
    let origin = log_then_answer();
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client
        .exchange("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: X-Hop, Host, Content-Length, keep-alive\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n")
        .unwrap();
    assert_same(
        &origin.received_all(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nX-End: 2\r\n\r\n",
    );
}

#[test]
fn a_host_that_contradicts_an_absolute_url_gives_way_to_it() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(config());
    let authority = origin.authority();
    proxy
        .plain()
        .exchange(format!(
            "GET http://user:secret@{authority} HTTP/1.1\r\nHost: evil.example\r\nX: 1\r\n\r\n"
        ))
        .unwrap();
    assert_same(
        &origin.received_all(),
        format!("GET / HTTP/1.1\r\nHost: {authority}\r\nX: 1\r\n\r\n").as_bytes(),
    );
}

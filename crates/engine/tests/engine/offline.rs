//! A proxy that answers itself: replies in pieces, with trailers and at their times, and origins that are never dialled.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tollgate_engine::{
    Config, ConnectionStrategy, Endpoint, HostPattern, Listen, ModeSpec, Resolver, Resolving,
};
use tollgate_flow::{ErrorClass, HeaderList, Interest, OutcomeKind, PieceMark, Reply, Side, Step};

use crate::support::*;

fn never(mut config: Config) -> Config {
    config.connection_strategy = ConnectionStrategy::Never;
    config
}

fn in_mode(mode: &str) -> Config {
    let mut config = never(config());
    config.listen = vec![Endpoint {
        mode: mode.parse::<ModeSpec>().unwrap().mode,
        at: Listen::Tcp("127.0.0.1:0".parse().unwrap()),
    }];
    config
}

/// A resolver that must not be asked.
struct Unasked;

impl Resolver for Unasked {
    fn resolve(&self, host: &str) -> Resolving {
        panic!("{host} is resolved")
    }
}

#[test]
fn nothing_is_dialled_whatever_the_client_speaks() {
    let origin = Origin::echo_path(Identity::Good);
    let authority = origin.authority();
    let mut config = never(config());
    config.policy.ignore = vec![HostPattern::new("127.0.0.1").unwrap()];
    config.retry.on_connect_failure = true;
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config, [recorder.clone()]);
    // HTTP, plain and within TLS, gets an answer that says why.
    let request = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let plain = proxy.plain().exchange(request).unwrap();
    let inside = proxy
        .tls(&origin)
        .exchange("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    // What is passed unopened is refused before the client is told that it is connected.
    let port = origin.address().port();
    let tunnel = proxy
        .plain()
        .exchange(format!(
            "CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        ))
        .unwrap();
    for response in [plain, inside, tunnel] {
        assert_eq!(response.status(), 403);
        assert!(
            response.text().contains("this proxy is offline"),
            "{}",
            response.text()
        );
    }
    // Another protocol within a CONNECT ends without an answer: there is none in its terms.
    let mut other = proxy.tunnel(&authority);
    other.send("SSH-2.0-test\r\n").unwrap();
    assert_eq!(other.read_to_end().0, b"");
    for outcome in recorder.ends(2) {
        let error = outcome.error.unwrap();
        assert_eq!(
            (error.side, error.class),
            (Side::Proxy, ErrorClass::Blocked)
        );
    }
    assert_eq!(origin.accepted(), 0);
    assert_eq!(proxy.metrics().upstream_connects, 0);
    assert_eq!(proxy.metrics().retries, 0);
}

#[test]
fn nothing_is_dialled_in_other_modes_either() {
    let origin = Origin::echo_path(Identity::Plain);
    let (host, port) = ("127.0.0.1", origin.address().port());
    let reverse = start(in_mode(&format!("reverse:http://{host}:{port}")));
    let response = reverse
        .plain()
        .exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert_eq!(response.status(), 403);
    // A proxy on the way is no way round it.
    let upstream = start(in_mode(&format!("upstream:http://{host}:{port}")));
    let response = upstream
        .plain()
        .exchange("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .unwrap();
    assert_eq!(response.status(), 403);
    let raw = start(in_mode(&format!("reverse:tcp://{host}:{port}")));
    let mut client = raw.plain();
    client.send("hello").unwrap();
    assert_eq!(client.read_to_end().0, b"");
    // Datagrams: what was sent is gone when its flow could have begun.
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socks = start(in_mode("socks5"));
    let mut control = socks.plain();
    control.send([5, 1, 0]).unwrap();
    control.read_exact(2).unwrap();
    control.send([5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    let reply = control.read_exact(10).unwrap();
    let relay = ("127.0.0.1", u16::from_be_bytes([reply[8], reply[9]]));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut datagram = vec![0, 0, 0, 1, 127, 0, 0, 1];
    datagram.extend_from_slice(&peer.local_addr().unwrap().port().to_be_bytes());
    datagram.extend_from_slice(b"ping");
    client.send_to(&datagram, relay).unwrap();
    wait_until("the datagram was refused", || {
        let failures = socks.metrics().failures;
        failures.iter().map(|(_, _, n)| n).sum::<u64>() > 0
    });
    peer.set_nonblocking(true).unwrap();
    assert!(peer.recv_from(&mut [0; 8]).is_err());
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn no_name_is_resolved_where_nothing_is_dialled() {
    let proxy = tollgate_engine::Proxy::builder()
        .config(never(config()))
        .resolver(Unasked)
        .build()
        .unwrap();
    let proxy = TestProxy {
        handle: block_on(proxy.start()).unwrap(),
    };
    let request = "GET http://secret.example/ HTTP/1.1\r\nHost: secret.example\r\n\r\n";
    let response = proxy.plain().exchange(request).unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(proxy.metrics().dns_lookups, 0);
}

/// Three pieces, and trailers if the path says so.
fn in_pieces() -> Arc<dyn tollgate_flow::Interceptor> {
    Hook::new(Interest::REQUEST)
        .on_request(|flow| {
            let path = flow.request.path().to_vec();
            let mut reply = Reply::new(200)
                .header("Content-Type", "text/event-stream")
                .unwrap()
                .body("onetwothree and a rest");
            let pause = match &path[..] {
                b"/slowly" => 30,
                b"/never" => 3_600_000,
                _ => 0,
            };
            reply.pieces = [3, 3, 0, 5]
                .iter()
                .zip(1..)
                .map(|(bytes, n)| PieceMark {
                    bytes: *bytes,
                    at: Duration::from_millis(n * pause),
                })
                .collect();
            if path == b"/length" {
                reply = reply.header("Content-Length", "7").unwrap();
            }
            if path == b"/trailers" {
                let mut trailers = HeaderList::new();
                trailers.append(b"X-Sum", b"22").unwrap();
                reply.trailers = Some(trailers);
            }
            Step::respond(reply)
        })
        .shared()
}

const WHOLE: &str = "onetwothree and a rest";

#[test]
fn a_reply_leaves_in_its_pieces_over_http1() {
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(never(config()), [in_pieces(), recorder.clone()]);
    let mut client = proxy.plain();
    let get = |method: &str, path: &str, version: &str| {
        format!("{method} http://a.example{path} HTTP/{version}\r\nHost: a.example\r\n\r\n")
    };
    let chunks = "3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\nb\r\n and a rest\r\n0\r\n";
    for (path, end) in [
        ("/", "\r\n"),
        ("/trailers", "X-Sum: 22\r\n\r\n"),
        ("/slowly", "\r\n"),
    ] {
        let started = Instant::now();
        let response = client.exchange(get("GET", path, "1.1")).unwrap();
        assert_eq!(
            response.header("transfer-encoding").as_deref(),
            Some("chunked")
        );
        assert_eq!(response.header("content-length"), None);
        assert_same(&response.raw_body, format!("{chunks}{end}").as_bytes());
        if path == "/slowly" {
            assert!(started.elapsed() >= Duration::from_millis(120));
        }
    }
    let response = client.exchange(get("GET", "/length", "1.1")).unwrap();
    assert_eq!(response.header("content-length").as_deref(), Some("22"));
    assert_eq!(response.text(), WHOLE);
    let response = client.exchange(get("HEAD", "/", "1.1")).unwrap();
    assert_eq!((response.status(), response.text().as_str()), (200, ""));
    // HTTP/1.0 has no chunks: the length is known.
    let response = client.exchange(get("GET", "/trailers", "1.0")).unwrap();
    assert_eq!(response.header("content-length").as_deref(), Some("22"));
    assert_eq!(response.text(), WHOLE);
    for outcome in recorder.ends(6) {
        assert_eq!(outcome.kind, OutcomeKind::Answered);
    }
}

#[test]
fn a_reply_to_head_may_say_how_long_a_body_would_be() {
    let hook = Hook::new(Interest::REQUEST).on_request(|_| {
        let reply = Reply::new(200).header("Content-Length", "4711");
        Step::respond(reply.unwrap())
    });
    let proxy = start_with(never(config()), [hook.shared()]);
    let mut client = proxy.plain();
    for (method, length) in [("HEAD", "4711"), ("GET", "0"), ("HEAD", "4711")] {
        let request = format!("{method} http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let response = client.exchange(request).unwrap();
        assert_eq!(
            response.header("content-length").as_deref(),
            Some(length),
            "{method}"
        );
    }
    #[cfg(feature = "http2")]
    crate::support::http2::run(async {
        let client = proxy.h2("a.example:443").await;
        for (method, length) in [("HEAD", "4711"), ("GET", "0")] {
            let answer = client.call(client.request(method, "/"), "").await.unwrap();
            assert_eq!(answer.header("content-length"), Some(length), "{method}");
        }
    });
}

#[test]
fn a_client_that_goes_ends_a_slow_reply() {
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(never(config()), [in_pieces(), recorder.clone()]);
    let mut client = proxy.plain();
    client
        .send("GET http://a.example/never HTTP/1.1\r\nHost: a.example\r\n\r\n")
        .unwrap();
    client.read_head().unwrap();
    drop(client);
    recorder.ends(1);
}

#[cfg(feature = "http2")]
mod over_streams {
    use super::*;
    use crate::support::http2::{read, run};

    #[test]
    fn a_reply_leaves_in_its_pieces_over_http2() {
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(never(config()), [in_pieces(), recorder.clone()]);
        run(async {
            let client = proxy.h2("a.example:443").await;
            let (response, _) = client
                .begin(client.request("GET", "/"), true)
                .await
                .unwrap();
            let response = response.await.unwrap();
            assert!(!response.headers().contains_key("content-length"));
            let mut body = response.into_body();
            let mut pieces = Vec::new();
            while let Some(piece) = body.data().await {
                let piece = piece.unwrap();
                let _ = body.flow_control().release_capacity(piece.len());
                pieces.push(String::from_utf8(piece.to_vec()).unwrap());
            }
            assert_eq!(pieces, ["one", "two", "three", " and a rest"]);
            let with_trailers = client.get("/trailers").await.unwrap();
            assert_eq!(with_trailers.text(), WHOLE);
            assert_eq!(with_trailers.trailers.unwrap()["x-sum"], "22");
            let started = Instant::now();
            assert_eq!(client.get("/slowly").await.unwrap().text(), WHOLE);
            assert!(started.elapsed() >= Duration::from_millis(120));
            let with_length = client.get("/length").await.unwrap();
            assert_eq!(with_length.header("content-length"), Some("22"));
            let head = client.call(client.request("HEAD", "/"), "").await.unwrap();
            assert_eq!((head.status, head.body.len()), (200, 0));
            // One that its client gives up ends.
            let (response, mut upload) = client
                .begin(client.request("GET", "/never"), false)
                .await
                .unwrap();
            let mut response = response.await.unwrap();
            upload.send_reset(h2::Reason::CANCEL);
            assert!(read(response.body_mut()).await.is_err());
        });
        recorder.ends(6);
    }

    #[cfg(feature = "http3")]
    #[test]
    fn a_reply_leaves_in_its_pieces_over_http3() {
        use crate::support::http3::in_front_of;
        let config = never(in_front_of(config(), "a.example:443"));
        let proxy = start_with(config, [in_pieces()]);
        run(async {
            let client = proxy.h3("a.example:443").await;
            let plain = client.get("/").await.unwrap();
            assert_eq!(plain.text(), WHOLE);
            assert_eq!(plain.header("content-length"), None);
            let with_trailers = client.get("/trailers").await.unwrap();
            assert_eq!(with_trailers.text(), WHOLE);
            assert_eq!(with_trailers.trailers.unwrap()["x-sum"], "22");
            let started = Instant::now();
            assert_eq!(client.get("/slowly").await.unwrap().text(), WHOLE);
            assert!(started.elapsed() >= Duration::from_millis(120));
        });
        assert_eq!(proxy.metrics().upstream_connects, 0);
    }
}

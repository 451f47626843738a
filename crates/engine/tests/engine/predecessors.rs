//! What broke in the proxies that this one replaces, each as the test that would have shown it.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tollgate_engine::{HostPattern, Proxy, ProxyError};
use tollgate_flow::{Direction, Interest, OutcomeKind, Reply, Step, TlsFailureKind};

use crate::support::*;

const SSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
    e\r\ndata: {\"n\":1}\n\r\n1\r\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

#[test]
fn sse_that_ends_in_done_arrives_whole_and_a_second_request_follows() {
    let origin = Origin::http(Identity::Good, |request| match request.path().as_str() {
        "/sse" => SSE.to_vec(),
        path => ok(path),
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    let stream = client.exchange(get("/sse")).unwrap();
    assert_same(&[stream.head, stream.raw_body].concat(), SSE);
    let second = client.exchange(get("/second")).unwrap();
    assert_eq!((second.status(), second.text().as_str()), (200, "/second"));
    assert_eq!(proxy.metrics().connections_total, 1);
    for outcome in recorder.ends(2) {
        assert_eq!(outcome.kind, OutcomeKind::Completed);
    }
}

#[test]
fn sse_events_pass_one_by_one_as_they_are_sent() {
    let (next, go) = mpsc::channel::<()>();
    let go = std::sync::Mutex::new(go);
    let origin = Origin::script(Identity::Good, move |wire, _| {
        wire.read_request()?;
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for n in 0..5 {
            go.lock().unwrap().recv().unwrap();
            wire.send(format!("9\r\ndata: {n}\n\n\r\n"))?;
        }
        wire.send(b"0\r\n\r\n")
    });
    let recorder = Recorder::new(Interest::RESPONSE_DATA | Interest::DECODED);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    client.read_head().unwrap();
    for n in 0..5 {
        // The next event is only sent once this one has arrived.
        next.send(()).unwrap();
        let event = client.read_until(b"\n\n\r\n").unwrap();
        assert_eq!(event, format!("9\r\ndata: {n}\n\n\r\n").as_bytes());
    }
    assert_eq!(client.read_until(b"0\r\n\r\n").unwrap(), b"0\r\n\r\n");
    recorder.ends(1);
    let (pieces, last) = recorder.data(Direction::Response);
    assert_eq!((pieces.len(), last), (5, 1));
}

#[test]
fn every_hook_of_the_end_is_called_exactly_once_and_in_order() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::HEADS | Interest::DATA);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.exchange(get("/one")).unwrap();
    client.exchange(get("/two")).unwrap();
    drop(client);
    recorder.closed(1);
    assert_eq!(
        recorder.trace(),
        [
            "opened",
            "connect",
            "tls",
            "request /one",
            "response 200",
            "response data false",
            "response data true",
            "end /one Completed",
            "request /two",
            "response 200",
            "response data false",
            "response data true",
            "end /two Completed",
            "closed",
        ]
    );
}

#[test]
fn gauges_return_to_zero() {
    let origin = Origin::http(Identity::Good, |_| SSE.to_vec());
    let proxy = start(config());
    let mut clients: Vec<_> = (0..3).map(|_| proxy.tls(&origin)).collect();
    for client in &mut clients {
        client.exchange(get("/")).unwrap();
    }
    assert_eq!(proxy.metrics().connections_active, 3);
    // One in good order, one cut, one in the middle of a request.
    clients[0].finish();
    clients.pop().unwrap().reset();
    clients[1].send("GET /half HTTP/1.1\r\nHo").unwrap();
    drop(clients);
    wait_until("no connection is open", || {
        let metrics = proxy.metrics();
        metrics.connections_active == 0 && metrics.flows_active == 0
    });
    let metrics = proxy.metrics();
    assert_eq!((metrics.flows_total, metrics.flows_completed), (3, 3));
}

#[test]
fn idle_limits_do_not_end_a_tunnel_that_is_used() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        loop {
            let ping = wire.read_exact(4)?;
            wire.send(ping)?;
        }
    });
    let mut config = config();
    config.timeouts.idle = Duration::from_millis(300);
    config.timeouts.keep_alive = SHORT;
    config.timeouts.request_head = SHORT;
    config.policy.ignore = vec![HostPattern::new("localhost").unwrap()];
    let proxy = start(config);
    let trust = client_config(&[origin_authority().authority.cert_der().clone()]);
    let mut client = proxy
        .tunnel(&origin.authority())
        .tls_client(trust, "localhost")
        .unwrap();
    let begin = Instant::now();
    // Three times the limit; the pace is that of the traffic which keeps a tunnel open.
    while begin.elapsed() < Duration::from_millis(900) {
        client.send(b"ping").unwrap();
        assert_eq!(client.read_exact(4).unwrap(), b"ping");
        drop(proxy.plain());
        thread::park_timeout(Duration::from_millis(40));
    }
    // And one that is not used does end.
    client.read_to_end();
    assert!(begin.elapsed() < PATIENCE);
}

#[test]
fn idle_limits_do_not_end_a_response_that_flows() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..15 {
            thread::park_timeout(Duration::from_millis(40));
            wire.send(b"1\r\nx\r\n")?;
        }
        wire.send(b"0\r\n\r\n")
    });
    let mut config = config();
    config.timeouts.idle = Duration::from_millis(250);
    config.timeouts.response_head = Duration::from_millis(250);
    let proxy = start(config);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(response.body.len(), 15);
}

#[test]
fn aborted_handshakes_neither_hang_the_proxy_nor_end_interception() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::NONE);
    let proxy = start_with(config(), [recorder.clone()]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // It trusts nobody, and says so.
                let trust = client_config(&[]);
                let wire = proxy.tunnel(&origin.authority());
                assert!(wire.tls_client(trust, "localhost").is_err());
            });
        }
    });
    for failure in recorder.tls_failures(8) {
        assert_eq!(failure.kind, TlsFailureKind::UnknownAuthority);
    }
    // `tls` only lets a certificate of our authority pass.
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/after")).unwrap().text(), "/after");
    assert_eq!(recorder.tls_failures(8).len(), 8);
}

#[test]
fn a_chunked_upload_passes_an_interceptor_that_decides_on_the_whole_body() {
    let origin = Origin::http(Identity::Good, |request| ok(&request.body));
    let hook = Hook::new(Interest::REQUEST_BODY).on_request(|flow| {
        let body = flow.request.body().unwrap();
        if body.windows(6).any(|w| w == b"secret") {
            return Step::respond(Reply::new(403).text("no secrets"));
        }
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    let head = "POST /up HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(head).unwrap();
    client.send(b"5\r\nhello\r\n").unwrap();
    client.send(b"6\r\n world\r\n0\r\n\r\n").unwrap();
    assert_eq!(client.read_response("POST").unwrap().text(), "hello world");
    let refused = client
        .exchange(format!("{head}3\r\nsec\r\n3\r\nret\r\n0\r\n\r\n"))
        .unwrap();
    assert_eq!(
        (refused.status(), refused.text().as_str()),
        (403, "no secrets")
    );
    // The refused body never left.
    let received = origin.received_all();
    assert!(!received.windows(3).any(|w| w == b"ret"));
}

#[test]
fn a_hook_that_panics_fails_closed_unless_it_is_declared_open() {
    let origin = Origin::echo_path(Identity::Good);
    let panics = || Hook::new(Interest::REQUEST).on_request(|_| panic!("a bug in a hook"));
    let proxy = start_with(config(), [panics().shared()]);
    let mut client = proxy.tls(&origin);
    let response = client.exchange(get("/closed")).unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.text().contains("test-hook"), "{}", response.text());
    assert_eq!(origin.received_all(), b"");
    assert_eq!(proxy.metrics().hook_panics, 1);

    let proxy = start_with(config(), [panics().fails_open().shared()]);
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/open")).unwrap().text(), "/open");
    assert_eq!(proxy.metrics().hook_panics, 1);
}

#[test]
fn a_block_works_with_the_default_configuration() {
    let origin = Origin::echo_path(Identity::Good);
    let hook =
        Hook::new(Interest::REQUEST).on_request(|_| Step::respond(Reply::new(403).text("blocked")));
    let proxy = start_with(config(), [hook.shared()]);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(
        (response.status(), response.text().as_str()),
        (403, "blocked")
    );
    assert_eq!(origin.received_all(), b"");
}

#[test]
fn expect_100_continue_is_answered_by_the_origin() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        let head = wire.read_head()?;
        assert!(String::from_utf8_lossy(&head).contains("Expect: 100-continue"));
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let body = wire.read_exact(5)?;
        wire.send(ok(body))
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client
        .send("PUT / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        .unwrap();
    assert_eq!(
        client.read_head().unwrap(),
        b"HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.send(b"hello").unwrap();
    assert_eq!(client.read_response("PUT").unwrap().text(), "hello");
}

#[test]
fn expect_100_continue_does_not_wait_for_a_body_that_an_interceptor_collects() {
    let origin = Origin::http(Identity::Good, |request| ok(&request.body));
    let proxy = start_with(config(), [Hook::new(Interest::REQUEST_BODY).shared()]);
    let mut client = proxy.tls(&origin);
    client
        .send("PUT / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        .unwrap();
    assert_eq!(
        client.read_head().unwrap(),
        b"HTTP/1.1 100 Continue\r\n\r\n"
    );
    client.send(b"hello").unwrap();
    assert_eq!(client.read_response("PUT").unwrap().text(), "hello");
}

#[test]
fn an_early_hint_comes_before_the_response() {
    const HINT: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send(HINT)?;
        wire.send(ok("done"))
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    assert_eq!(client.read_head().unwrap(), HINT);
    assert_eq!(client.read_response("GET").unwrap().text(), "done");
}

#[test]
fn two_hosts_on_one_proxy_connection_get_their_own_requests() {
    let a = Origin::http(Identity::Plain, |_| ok("a"));
    let b = Origin::http(Identity::Plain, |_| ok("b"));
    let proxy = start(config());
    let mut client = proxy.plain();
    for (origin, name) in [(&a, "a"), (&b, "b"), (&a, "a")] {
        let authority = origin.authority();
        let request = format!(
            "GET http://{authority}/{name} HTTP/1.1\r\nHost: {authority}\r\nCookie: {name}\r\n\r\n"
        );
        assert_eq!(client.exchange(request).unwrap().text(), name);
    }
    for (origin, own, foreign) in [
        (&a, "Cookie: a", "Cookie: b"),
        (&b, "Cookie: b", "Cookie: a"),
    ] {
        let received = String::from_utf8(origin.received_all()).unwrap();
        assert!(
            received.contains(own) && !received.contains(foreign),
            "{received}"
        );
    }
    assert_eq!(proxy.metrics().connections_total, 1);
}

#[test]
fn an_upload_of_33_mib_arrives() {
    const SIZE: usize = 33 << 20;
    let origin = Origin::http(Identity::Good, |request| {
        assert_same(&request.body, &pattern(SIZE));
        ok(request.body.len().to_string())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n"
        ))
        .unwrap();
    client.send(pattern(SIZE)).unwrap();
    assert_eq!(
        client.read_response("POST").unwrap().text(),
        SIZE.to_string()
    );
    recorder.ends(1);
}

#[test]
fn four_downloads_of_12_mib_pass_one_connection() {
    const SIZE: usize = 12 << 20;
    let origin = Origin::http(Identity::Good, |_| ok(pattern(SIZE)));
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let expected = pattern(SIZE);
    for _ in 0..4 {
        assert_same(&client.exchange(get("/")).unwrap().body, &expected);
    }
    assert_eq!(proxy.metrics().connections_total, 1);
}

#[test]
fn a_latin_1_header_passes_both_ways() {
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nX-Caf\x65: caf\xe9\r\nContent-Length: 0\r\n\r\n";
    let origin = Origin::http(Identity::Good, |_| RESPONSE.to_vec());
    let proxy = start(config());
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Name: Ren\xe9e\r\n\r\n";
    let response = proxy.tls(&origin).exchange(request).unwrap();
    assert_same(&response.head, RESPONSE);
    assert_same(&origin.received_all(), request);
}

#[test]
fn a_gzip_bomb_ends_an_observer_and_not_the_response() {
    const SIZE: u64 = 200 << 20;
    const LIMIT: u64 = 1 << 20;
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..SIZE >> 20 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    let response = [head.as_bytes(), &bomb].concat();
    let origin = Origin::http(Identity::Good, move |_| response.clone());
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    let observer =
        Hook::new(Interest::RESPONSE_DATA | Interest::DECODED).on_data(move |_, piece| {
            count.fetch_add(piece.data.len() as u64, Ordering::Relaxed);
            Step::Continue
        });
    let mut config = config();
    config.limits.decoded_bytes = LIMIT;
    let proxy = start_with(config, [observer.shared()]);
    let mut client = proxy.tls(&origin);
    for n in 1..=2 {
        let got = client.exchange(get("/")).unwrap();
        assert_same(&got.body, &bomb);
        assert_eq!(proxy.metrics().observer_truncations, n);
    }
    // All of what was allowed at most, twice.
    assert!(seen.load(Ordering::Relaxed) <= 2 * LIMIT);
}

#[test]
fn a_thousand_idle_connections_leave_room_for_a_request() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let idle: Vec<_> = (0..1100).map(|_| proxy.plain()).collect();
    wait_until("all are accepted", || {
        proxy.metrics().connections_active == 1100
    });
    assert_eq!(proxy.tls(&origin).exchange(get("/x")).unwrap().text(), "/x");
    drop(idle);
    wait_until("all are closed", || proxy.metrics().connections_active == 0);
}

#[test]
fn fields_for_the_proxy_never_reach_the_origin_and_names_keep_their_case() {
    let plain = Origin::echo_path(Identity::Plain);
    let secure = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let fields = "X-MiXeD: 1\r\nProxy-Authorization: Basic c2VjcmV0\r\nProxy-Connection: keep-alive\r\nlower: 2\r\n";
    let authority = plain.authority();
    let request = format!("GET http://{authority}/p HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
    assert_eq!(proxy.plain().exchange(request).unwrap().text(), "/p");
    let request = format!("GET /s HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
    assert_eq!(proxy.tls(&secure).exchange(request).unwrap().text(), "/s");
    for (origin, path) in [(&plain, "/p"), (&secure, "/s")] {
        assert_same(
            &origin.received_all(),
            format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nX-MiXeD: 1\r\nlower: 2\r\n\r\n")
                .as_bytes(),
        );
    }
}

#[test]
fn connection_info_has_the_real_addresses() {
    let origin = Origin::echo_path(Identity::Good);
    let (report, reports) = mpsc::channel();
    let report = std::sync::Mutex::new(report);
    let hook = Hook::new(Interest::RESPONSE).on_response(move |flow| {
        let connection = &flow.connection;
        let upstream = flow.upstream.as_ref().unwrap();
        let sni = connection.tls().unwrap().hello.server_name.clone();
        let report = report.lock().unwrap();
        report
            .send((connection.client, connection.local, upstream.address, sni))
            .unwrap();
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    assert_eq!(
        reports.recv().unwrap(),
        (
            client.local_addr(),
            proxy.handle.local_addr(),
            origin.address(),
            Some("localhost".to_owned())
        )
    );
}

#[test]
fn at_the_connection_limit_clients_wait_and_are_never_tunnelled() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.limits.connections = 1;
    let proxy = start(config);
    let mut first = proxy.tls(&origin);
    assert_eq!(first.exchange(get("/1")).unwrap().text(), "/1");
    // Connected by the kernel, accepted by nobody.
    let mut second = proxy.plain();
    let authority = origin.authority();
    second
        .send(format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
        ))
        .unwrap();
    wait_until("accepting pauses", || {
        proxy.metrics().connections_delayed > 0
    });
    assert_eq!(first.exchange(get("/1")).unwrap().text(), "/1");
    assert_eq!(proxy.metrics().connections_total, 1);
    drop(first);
    assert_eq!(second.read_response("CONNECT").unwrap().status(), 200);
    let mut second = second
        .tls_client(proxy.client_config(), "localhost")
        .unwrap();
    assert_eq!(second.exchange(get("/2")).unwrap().text(), "/2");
    assert_eq!(proxy.metrics().tunnels_total, 0);
}

#[test]
fn a_port_in_use_is_an_error_of_start() {
    let first = start(config());
    let address = first.handle.local_addr();
    let mut config = config();
    config.listen = vec![tollgate_engine::Listen::Tcp(address).into()];
    match try_start(config, []) {
        Err(ProxyError::Bind { address: named, .. }) => assert_eq!(named, address.to_string()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two proxies on one port"),
    }
}

#[test]
fn two_proxies_in_one_process_share_nothing() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::END);
    let (a, b) = (start_with(config(), [recorder.clone()]), start(config()));
    assert_ne!(
        a.handle.authority().fingerprint_sha256(),
        b.handle.authority().fingerprint_sha256()
    );
    for (path, proxy) in [("/a", &a), ("/b", &b)] {
        let mut client = proxy.tls(&origin);
        assert_eq!(client.exchange(get(path)).unwrap().text(), path);
    }
    // Neither the pool, nor counters, nor interceptors.
    assert_eq!(origin.accepted(), 2);
    assert_eq!((a.metrics().flows_total, b.metrics().flows_total), (1, 1));
    assert_eq!(recorder.ends(1).len(), 1);
    a.shutdown(PATIENCE);
    assert_eq!(b.tls(&origin).exchange(get("/b")).unwrap().text(), "/b");
}

#[test]
fn a_header_cannot_opt_out_of_interception() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let authority = origin.authority();
    let mut client = proxy.plain();
    let connect = format!(
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nX-HTTP3-Passthrough: 1\r\nX-Tollgate-Tunnel: 1\r\nProxy-Passthrough: 1\r\n\r\n"
    );
    assert_eq!(client.exchange(connect).unwrap().status(), 200);
    // Only works with a certificate of our authority.
    let mut client = client
        .tls_client(proxy.client_config(), "localhost")
        .unwrap();
    assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
    assert_eq!(proxy.metrics().tunnels_total, 0);
}

#[test]
fn a_proxy_without_an_authority_of_its_own_makes_one() {
    let one = Proxy::builder().config(config()).build().unwrap();
    let handle = block_on(one.start()).unwrap();
    assert!(
        handle
            .authority()
            .cert_pem()
            .starts_with("-----BEGIN CERTIFICATE-----")
    );
}

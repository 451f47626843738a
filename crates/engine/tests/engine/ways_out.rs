//! Ways out: proxies on the way, resolvers, and the sandwich with a scanner in the middle.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use tollgate_engine::{
    Config, Endpoint, HostPattern, Listen, Mode, ModeSpec, Proxy, Resolver, Resolving, Sandwich,
    ViaRule,
};
use tollgate_flow::{Interest, OnFailure, Step, UpstreamProxy, Via};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn absolute(origin: &Origin, path: &str) -> String {
    let authority = origin.authority();
    format!("GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

fn proxy_at(scheme: &str, proxy: &TestProxy) -> Arc<UpstreamProxy> {
    let url = format!("{scheme}://anna:secret@{}", proxy.handle.local_addr());
    Arc::new(url.parse().unwrap())
}

/// A proxy to chain behind: it asks for a user and tunnels, as a company's does.
fn company(mode: &str) -> TestProxy {
    let mut config = config();
    config.listen = vec![Endpoint {
        mode: mode.parse::<ModeSpec>().unwrap().mode,
        at: Listen::Tcp("127.0.0.1:0".parse().unwrap()),
    }];
    config.policy.default = tollgate_engine::Action::Tunnel;
    config.auth = Some("anna:secret".parse().unwrap());
    start(config)
}

fn via(proxy: &Arc<UpstreamProxy>) -> Config {
    let mut config = config();
    config.via.proxy = Some(Arc::clone(proxy));
    config
}

#[test]
fn requests_go_through_a_proxy_on_the_way() {
    for (scheme, mode) in [("http", "regular"), ("socks5", "socks5")] {
        let behind = company(mode);
        let proxy = start(via(&proxy_at(scheme, &behind)));
        let plain = Origin::echo_path(Identity::Plain);
        let mut client = proxy.plain();
        for path in ["/1", "/2"] {
            let response = client.exchange(absolute(&plain, path)).unwrap();
            assert_eq!(response.text(), path, "{scheme}");
        }
        let secure = Origin::echo_path(Identity::Good);
        assert_eq!(
            proxy.tls(&secure).exchange(get("/3")).unwrap().text(),
            "/3",
            "{scheme}"
        );
        assert_eq!(behind.metrics().connections_total, 2, "{scheme}");
        let received = String::from_utf8(plain.received_all()).unwrap();
        assert!(!received.contains("Proxy-"), "{received}");
    }
}

#[test]
fn one_connection_to_a_proxy_serves_many_origins() {
    let behind = company("regular");
    let proxy = start(via(&proxy_at("http", &behind)));
    let (a, b) = (
        Origin::echo_path(Identity::Plain),
        Origin::echo_path(Identity::Plain),
    );
    let mut client = proxy.plain();
    for origin in [&a, &b, &a] {
        assert_eq!(
            client.exchange(absolute(origin, "/x")).unwrap().text(),
            "/x"
        );
    }
    assert_eq!(behind.metrics().connections_total, 1);
}

/// A proxy behind TLS that tunnels to one place, and the heads of what it was asked.
fn tls_proxy(to: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<Mutex<String>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(String::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config(Identity::Good)));
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            log.lock()
                .unwrap()
                .push_str(std::str::from_utf8(&head).unwrap());
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let mut onwards = tokio::net::TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut onwards).await;
        });
    });
    (address, asked)
}

#[test]
fn a_proxy_behind_tls_is_verified_and_carries_tls_inside() {
    let secure = Origin::echo_path(Identity::Good);
    let (behind, asked) = tls_proxy(secure.address());
    let url = format!("https://anna:secret@localhost:{}", behind.port());
    let proxy = start(via(&Arc::new(url.parse().unwrap())));
    let mut client = proxy.tls(&secure);
    for path in ["/inside", "/again"] {
        assert_eq!(client.exchange(get(path)).unwrap().text(), path);
    }
    let asked = asked.lock().unwrap().clone();
    let connect = format!("CONNECT {} HTTP/1.1\r\n", secure.authority());
    assert!(asked.starts_with(&connect), "{asked}");
    assert!(
        asked.contains("Proxy-Authorization: Basic YW5uYTpzZWNyZXQ=\r\n"),
        "{asked}"
    );
    // An untrusted one isn't told anything.
    let behind = Origin::script(Identity::SelfSigned, |wire, _| wire.read_head().map(drop));
    let url = format!("https://anna:secret@{}", behind.authority());
    let proxy = start(via(&Arc::new(url.parse().unwrap())));
    let plain = Origin::echo_path(Identity::Plain);
    let response = proxy.plain().exchange(absolute(&plain, "/")).unwrap();
    assert_eq!(response.status(), 502, "{}", response.text());
    assert!(behind.received_all().is_empty());
}

#[test]
fn what_the_proxy_on_the_way_says_is_passed_on_as_a_reason() {
    let origin = Origin::echo_path(Identity::Plain);
    let asks = company("regular");
    let nobody: UpstreamProxy = format!("http://{}", asks.handle.local_addr())
        .parse()
        .unwrap();
    let socks = company("socks5");
    let nobody_socks: UpstreamProxy = format!("socks5://{}", socks.handle.local_addr())
        .parse()
        .unwrap();
    let wrong: UpstreamProxy = format!("socks5://anna:wrong@{}", socks.handle.local_addr())
        .parse()
        .unwrap();
    let dead: UpstreamProxy = format!("http://127.0.0.1:{}", closed_port())
        .parse()
        .unwrap();
    let dead_origin = closed_port();
    for (proxy, port, status, parts) in [
        (
            &nobody,
            origin.address().port(),
            502,
            ["407", "--upstream-auth"],
        ),
        (
            &nobody_socks,
            origin.address().port(),
            502,
            ["does not connect", "authentication"],
        ),
        (
            &wrong,
            origin.address().port(),
            502,
            ["does not connect", "refused the user"],
        ),
        (
            &dead,
            origin.address().port(),
            502,
            ["is not there", "refused"],
        ),
    ] {
        let ours = start(via(&Arc::new(proxy.clone())));
        let connect =
            format!("CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
        let response = ours.plain().exchange(connect).unwrap();
        assert_eq!(response.status(), status);
        for part in parts {
            assert!(
                response.text().contains(part),
                "{part}: {}",
                response.text()
            );
        }
    }
    let ours = start(via(&proxy_at("http", &asks)));
    let connect = format!("CONNECT localhost:{dead_origin} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let response = ours.plain().exchange(connect).unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.text().contains("502"), "{}", response.text());
}

#[test]
fn nonsense_of_a_proxy_on_the_way_is_an_error_of_its_side() {
    for (scheme, answer) in [
        ("http", &b"SSH-2.0-x\r\n\r\n"[..]),
        ("http", b""),
        ("http", b"HTTP/1.1 200"),
        ("socks5", b"\x05\x09"),
        ("socks5", b"HTTP/1.1 400 no\r\n"),
        ("socks5", b"\x05"),
    ] {
        let behind = Origin::script(Identity::Plain, move |wire, _| {
            wire.fill()?;
            wire.send(answer)
        });
        let url = format!("{scheme}://{}", behind.authority());
        let proxy = start(via(&Arc::new(url.parse().unwrap())));
        let connect = "CONNECT o.example:443 HTTP/1.1\r\nHost: o.example:443\r\n\r\n";
        let response = proxy.plain().exchange(connect).unwrap();
        assert_eq!(response.status(), 502, "{scheme} {answer:?}");
        assert!(
            response.text().contains("the proxy "),
            "{}",
            response.text()
        );
    }
}

#[test]
fn rules_exceptions_modes_and_interceptors_choose_the_way() {
    let behind = company("regular");
    let proxy = proxy_at("http", &behind);
    let origin = Origin::echo_path(Identity::Plain);
    let here = || vec![HostPattern::new("localhost").unwrap()];
    let used = |config: Config, asked: Via| {
        let before = behind.metrics().connections_total;
        let hook = Hook::new(Interest::REQUEST).on_request(move |flow| {
            flow.request.via = asked.clone();
            Step::Continue
        });
        let ours = start_with(config, [hook.shared()]);
        let response = ours.plain().exchange(absolute(&origin, "/w")).unwrap();
        assert_eq!(response.text(), "/w");
        behind.metrics().connections_total > before
    };
    assert!(used(via(&proxy), Via::Configured));
    assert!(!used(via(&proxy), Via::Direct));
    assert!(!used(config(), Via::Configured));
    assert!(used(config(), Via::Proxy(Arc::clone(&proxy))));
    let mut excepted = via(&proxy);
    excepted.via.no_proxy = here();
    assert!(!used(excepted.clone(), Via::Configured));
    excepted.via.rules = vec![ViaRule {
        hosts: here(),
        proxy: Some(Arc::clone(&proxy)),
    }];
    assert!(used(excepted, Via::Configured));
    let mut ruled = via(&proxy);
    ruled.via.rules = vec![ViaRule {
        hosts: here(),
        proxy: None,
    }];
    assert!(!used(ruled, Via::Configured));
    let mut mode = config();
    mode.listen[0].mode = Mode::Upstream(Arc::clone(&proxy));
    assert!(used(mode, Via::Configured));
}

#[test]
fn an_upgrade_goes_through_a_proxy_as_a_tunnel() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.read_head()?;
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
        )?;
        let bytes = wire.read_exact(5)?;
        wire.send(bytes)
    });
    let behind = company("regular");
    let proxy = start(via(&proxy_at("http", &behind)));
    let authority = origin.authority();
    let mut client = proxy.plain();
    client
        .send(format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"))
        .unwrap();
    let head = client.read_head().unwrap();
    assert!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        head.escape_ascii()
    );
    client.send("hello").unwrap();
    assert_eq!(client.read_exact(5).unwrap(), b"hello");
    assert!(origin.received_all().starts_with(b"GET / HTTP/1.1\r\n"));
}

#[test]
fn users_do_not_share_upstream_connections() {
    let origin = Origin::echo_path(Identity::Plain);
    let mut config = config();
    config.auth = Some("any".parse().unwrap());
    let proxy = start(config);
    let authority = origin.authority();
    // anna:1, bert:1, anna:1
    for user in ["YW5uYTox", "YmVydDox", "YW5uYTox"] {
        let request = format!(
            "GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Basic {user}\r\nConnection: close\r\n\r\n"
        );
        let mut client = proxy.plain();
        assert_eq!(client.exchange(request).unwrap().status(), 200);
        client.read_to_end();
    }
    assert_eq!(origin.accepted(), 2);
}

struct Here;

impl Resolver for Here {
    fn resolve(&self, host: &str) -> Resolving {
        let known = host == "known.example";
        Box::pin(async move {
            if known {
                Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
            } else {
                Err(std::io::Error::other("never heard of it"))
            }
        })
    }
}

#[test]
fn names_are_found_in_the_overrides_and_by_a_resolver() {
    let origin = Origin::echo_path(Identity::Plain);
    let port = origin.address().port();
    let request =
        |host: &str| format!("GET http://{host}:{port}/n HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
    let mut config = config();
    config.hosts = vec![(
        "fixed.example".to_owned(),
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
    )];
    let handle = block_on(
        Proxy::builder()
            .config(config)
            .resolver(Here)
            .build()
            .unwrap()
            .start(),
    )
    .unwrap();
    let proxy = TestProxy { handle };
    for host in ["fixed.example", "known.example"] {
        assert_eq!(
            proxy.plain().exchange(request(host)).unwrap().text(),
            "/n",
            "{host}"
        );
    }
    let response = proxy.plain().exchange(request("unknown.example")).unwrap();
    assert_eq!(response.status(), 502);
    assert!(
        response.text().contains("never heard of it"),
        "{}",
        response.text()
    );
}

/// What a scanner does: an HTTP proxy that sends everything to where we take it back.
fn scanner(
    edit: impl Fn(Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
) -> (Origin, Arc<std::sync::OnceLock<std::net::SocketAddr>>) {
    let onwards = Arc::new(std::sync::OnceLock::new());
    let to = Arc::clone(&onwards);
    let scanner = Origin::script(Identity::Plain, move |wire, _| {
        let mut back = None;
        loop {
            let request = wire.read_request()?;
            let bytes = edit([request.head, request.body].concat());
            let back = back.get_or_insert_with(|| Wire::connect(*to.get().unwrap()));
            back.send(bytes)?;
            let response = back.read_response("GET")?;
            wire.send([response.head, response.body].concat())?;
        }
    });
    (scanner, onwards)
}

fn sandwich(scanner: &Origin) -> Config {
    let mut config = config();
    config.listen.push(Endpoint {
        mode: Mode::Return,
        at: Listen::Tcp("127.0.0.1:0".parse().unwrap()),
    });
    let url = format!("http://{}", scanner.address());
    config.sandwich = Some(Sandwich::new(url.parse().unwrap()));
    config
}

#[test]
fn the_scanner_sees_the_plain_request_and_the_origin_gets_it_over_tls() {
    let (scanner, onwards) = scanner(|bytes| bytes);
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(sandwich(&scanner), [recorder.clone()]);
    onwards.set(proxy.handle.local_addrs()[1]).unwrap();
    let secure = Origin::echo_path(Identity::Good);
    let plain = Origin::echo_path(Identity::Plain);
    let mut client = proxy.tls(&secure);
    for path in ["/1", "/2"] {
        assert_eq!(client.exchange(get(path)).unwrap().text(), path);
    }
    assert_eq!(
        proxy
            .plain()
            .exchange(absolute(&plain, "/3"))
            .unwrap()
            .text(),
        "/3"
    );
    let seen = String::from_utf8(scanner.received().concat()).unwrap();
    let url = format!("GET http://{}/1 HTTP/1.1", secure.authority());
    assert!(seen.contains(&url), "{seen}");
    assert!(
        seen.contains("; scheme=https; client=\"127.0.0.1:"),
        "{seen}"
    );
    // The origins see the request as the client sent it, and no ticket.
    assert_same(
        &secure.received_all(),
        [get("/1"), get("/2")].concat().as_bytes(),
    );
    assert!(
        !String::from_utf8(plain.received_all())
            .unwrap()
            .contains("icket")
    );
    // Each request is one flow, and it says whom it reached.
    assert_eq!(recorder.ends(3).len(), 3);
    assert_eq!(proxy.metrics().upstream_handshakes, 1);
}

#[test]
fn nobody_forges_a_way_around_the_scanner() {
    let (scanner, onwards) = scanner(|bytes| bytes);
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(sandwich(&scanner));
    let back = proxy.handle.local_addrs()[1];
    onwards.set(back).unwrap();
    let authority = origin.authority();
    // Straight to the listener that takes back: with no ticket, with one made up, by CONNECT.
    for (request, status) in [
        (absolute(&origin, "/forged"), 403),
        (
            format!(
                "GET http://{authority}/forged HTTP/1.1\r\nHost: {authority}\r\nTollgate-Ticket: {}\r\n\r\n",
                "ab".repeat(16)
            ),
            403,
        ),
        (
            format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            403,
        ),
    ] {
        let response = Wire::connect(back).exchange(request).unwrap();
        assert_eq!(response.status(), status, "{}", response.text());
    }
    // A ticket of the client's own doesn't get past the front either.
    let request = format!(
        "GET http://{authority}/mine HTTP/1.1\r\nHost: {authority}\r\nTollgate-Ticket: {}\r\n\r\n",
        "cd".repeat(16)
    );
    assert_eq!(proxy.plain().exchange(request).unwrap().text(), "/mine");
    let seen = String::from_utf8(scanner.received().concat()).unwrap();
    assert!(!seen.contains(&"cd".repeat(16)), "{seen}");
    // A protocol that is not HTTP has no way through.
    let mut raw = proxy.tunnel(&authority);
    raw.send(b"\0\x01\x02\x03").unwrap();
    assert_eq!(raw.read_to_end().0, b"");
    let received = String::from_utf8(origin.received_all()).unwrap();
    assert!(!received.contains("forged"), "{received}");
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_scanner_can_not_send_a_request_elsewhere_or_use_a_ticket_twice() {
    let origin = Origin::echo_path(Identity::Plain);
    let other = Origin::echo_path(Identity::Plain);
    let (from, to) = (origin.authority(), other.authority());
    let (scanner, onwards) = scanner(move |bytes| {
        String::from_utf8(bytes)
            .unwrap()
            .replace(&from, &to)
            .into_bytes()
    });
    let proxy = start(sandwich(&scanner));
    let back = proxy.handle.local_addrs()[1];
    onwards.set(back).unwrap();
    let response = proxy.plain().exchange(absolute(&origin, "/x")).unwrap();
    assert_eq!(response.status(), 403, "{}", response.text());
    assert_eq!((origin.accepted(), other.accepted()), (0, 0));
    // The request is over, and so is its ticket.
    let seen = String::from_utf8(scanner.received().concat()).unwrap();
    let again = seen.replace(&other.authority(), &origin.authority());
    let response = Wire::connect(back).exchange(again).unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn without_its_scanner_a_sandwich_is_closed_unless_told_to_be_open() {
    let origin = Origin::echo_path(Identity::Good);
    let dead = Origin::echo_path(Identity::Plain);
    let mut closed = sandwich(&dead);
    let url = format!("http://127.0.0.1:{}", closed_port());
    let mut sandwich = Sandwich::new(url.parse().unwrap());
    closed.sandwich = Some(sandwich.clone());
    let proxy = start(closed.clone());
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(response.status(), 502);
    assert!(
        response.text().contains("the scanner"),
        "{}",
        response.text()
    );
    assert_eq!(origin.accepted(), 0);
    sandwich.on_failure = OnFailure::Open;
    closed.sandwich = Some(sandwich);
    let proxy = start(closed);
    assert_eq!(
        proxy.tls(&origin).exchange(get("/open")).unwrap().text(),
        "/open"
    );
    assert_eq!(proxy.metrics().scanner_bypassed, 1);
}

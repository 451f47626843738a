//! Where connections go: protocols inside CONNECT, tunnels, blocks, loops.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tollgate_engine::{Action, HostPattern, Listen, Proxy, Resolver, Resolving};
use tollgate_flow::{ConnectDecision, Interest, TlsDecision};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn pattern_of(text: &str) -> Vec<HostPattern> {
    vec![HostPattern::new(text).unwrap()]
}

#[test]
fn only_public_addresses_are_connected_to_where_that_is_asked_for() {
    let origin = Origin::echo_path(Identity::Good);
    let plain = Origin::script(Identity::Plain, |wire, _| {
        loop {
            let path = wire.read_request()?.path();
            wire.send(ok(path))?;
        }
    });
    let port = |origin: &Origin| origin.authority().rsplit(':').next().unwrap().to_owned();
    let mut config = config();
    config.policy.public_only = true;
    // A name that leads here, like one that changes its mind after it was looked at.
    config.hosts = vec![(
        "rebinding.example".to_owned(),
        vec!["127.0.0.1".parse().unwrap()],
    )];
    let proxy = start(config.clone());
    for host in [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "rebinding.example",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::]",
        "[::7f00:1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.192",
        "192.0.0.8",
        "198.18.0.1",
        "240.0.0.1",
    ] {
        let authority = format!("{host}:{}", port(&origin));
        let mut client = proxy.plain();
        let answer = client
            .exchange(format!(
                "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
            ))
            .unwrap();
        assert_eq!(answer.status(), 403, "{host}: {}", answer.text());
        let authority = format!("{host}:{}", port(&plain));
        let mut client = proxy.plain();
        let answer = client
            .exchange(format!(
                "GET http://{authority}/x HTTP/1.1\r\nHost: {authority}\r\n\r\n"
            ))
            .unwrap();
        assert_eq!(answer.status(), 403, "{host}: {}", answer.text());
    }
    assert_eq!(origin.accepted() + plain.accepted(), 0);
    config.policy.private = vec![HostPattern::new("localhost").unwrap()];
    let proxy = start(config);
    let mut client = proxy.tls(&origin);
    let answer = client
        .exchange("GET /there HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert_eq!(answer.text(), "/there");
}

/// Leads here, and counts how often it is asked. Whoever asks twice gets another answer.
struct Rebinding(Arc<AtomicUsize>);

impl Resolver for Rebinding {
    fn resolve(&self, _host: &str) -> Resolving {
        let first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
        let address: IpAddr = if first { [10, 0, 0, 1] } else { [127, 0, 0, 1] }.into();
        Box::pin(async move { Ok(vec![address]) })
    }
}

#[test]
fn a_name_is_looked_up_once_and_what_was_vetted_is_dialled() {
    // One question for each dial: there is no second answer that could differ from the one that was judged.
    let asked = Arc::new(AtomicUsize::new(0));
    let mut config = config();
    config.policy.public_only = true;
    config.timeouts.dns_cache = Duration::ZERO;
    let builder = Proxy::builder()
        .config(config)
        .resolver(Rebinding(Arc::clone(&asked)));
    let handle = block_on(builder.build().unwrap().start());
    let proxy = TestProxy {
        handle: handle.unwrap(),
    };
    for times in 1..=2 {
        let request =
            "CONNECT rebinding.example:443 HTTP/1.1\r\nHost: rebinding.example:443\r\n\r\n";
        let answer = proxy.plain().exchange(request).unwrap();
        assert_eq!(answer.status(), 403, "{}", answer.text());
        assert_eq!(asked.load(Ordering::SeqCst), times);
    }
    assert_eq!(proxy.metrics().upstream_connects, 0);
}

#[test]
fn plain_http_inside_connect_is_seen() {
    let origin = Origin::echo_path(Identity::Plain);
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tunnel(&origin.authority());
    for path in ["/1", "/2"] {
        assert_eq!(client.exchange(get(path)).unwrap().text(), path);
    }
    assert_same(
        &origin.received_all(),
        [get("/1"), get("/2")].concat().as_bytes(),
    );
    assert_eq!(recorder.ends(2).len(), 2);
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_client_that_speaks_first_in_a_protocol_of_its_own_is_relayed() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        let hello = wire.read_exact(8)?;
        wire.send([&b"got "[..], &hello].concat())?;
        let (rest, ending) = wire.read_to_end();
        assert_eq!((rest.as_slice(), ending), (&b"more"[..], Ending::Clean));
        wire.send("bye")
    });
    let proxy = start(config());
    let mut client = proxy.tunnel(&origin.authority());
    client.send(b"\x00\x01\x02\xffabcd").unwrap();
    assert_eq!(client.read_exact(12).unwrap(), b"got \x00\x01\x02\xffabcd");
    client.send("more").unwrap();
    client.finish();
    assert_eq!(client.read_to_end(), (b"bye".to_vec(), Ending::Clean));
}

#[test]
fn a_server_that_speaks_first_is_relayed() {
    for banner in ["SSH-2.0-OpenSSH_9.9\r\n", "220 mail.example ESMTP\r\n"] {
        let origin = Origin::script(Identity::Plain, move |wire, _| {
            wire.send(banner)?;
            let line = wire.read_until(b"\r\n")?;
            wire.send(line)
        });
        let proxy = start(config());
        let mut client = proxy.tunnel(&origin.authority());
        assert_eq!(client.read_until(b"\r\n").unwrap(), banner.as_bytes());
        // Words that look like HTTP don't make it HTTP now.
        client.send("EHLO client.example\r\n").unwrap();
        assert_eq!(client.read_to_end().0, b"EHLO client.example\r\n");
    }
}

#[test]
fn a_protocol_of_its_own_inside_intercepted_tls_is_relayed() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        let hello = wire.read_exact(4)?;
        wire.send(hello)?;
        wire.finish();
        Ok(())
    });
    let proxy = start(config());
    let trust = client_config_with(
        &[proxy.handle.authority().cert_der().clone()],
        rustls::ALL_VERSIONS,
    );
    let mut client = proxy
        .tunnel(&origin.authority())
        .tls_client(trust.into(), "localhost")
        .unwrap();
    client.send(b"\0\x01\x02\x03").unwrap();
    assert_eq!(
        client.read_to_end(),
        (b"\0\x01\x02\x03".to_vec(), Ending::Clean)
    );
}

#[test]
fn http_without_alpn_inside_intercepted_tls_is_seen() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(config(), [recorder.clone()]);
    let trust = client_config_with(
        &[proxy.handle.authority().cert_der().clone()],
        rustls::ALL_VERSIONS,
    );
    let mut client = proxy
        .tunnel(&origin.authority())
        .tls_client(trust.into(), "localhost")
        .unwrap();
    assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
    assert!(client.tls().alpn_protocol().is_none());
    recorder.ends(1);
}

#[test]
fn a_client_is_given_the_protocol_that_the_origin_chose() {
    for choice in [None, Some(b"http/1.1".to_vec())] {
        let mut server = server_config(Identity::Good);
        server.alpn_protocols = choice.iter().cloned().collect();
        let origin = Origin::with_tls(server, |wire, _| {
            let request = wire.read_request()?;
            wire.send(ok(request.path()))
        });
        let proxy = start(config());
        let mut client = proxy.tls(&origin);
        assert_eq!(client.tls().alpn_protocol(), choice.as_deref());
        assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
    }
}

#[test]
fn a_tunnel_by_policy_is_byte_exact_and_shows_the_origins_own_certificate() {
    let origin = Origin::echo_path(Identity::Good);
    let recorder = Recorder::new(Interest::all());
    let mut by_ignore = config();
    by_ignore.policy.ignore = pattern_of("localhost");
    let mut by_allow = config();
    by_allow.policy.allow = pattern_of("only.example");
    let mut by_default = config();
    by_default.policy.default = Action::Tunnel;
    for config in [by_ignore, by_allow, by_default] {
        let proxy = start_with(config, [recorder.clone()]);
        let foreign = origin_authority().authority.cert_der().clone();
        let mut client = proxy
            .tunnel(&origin.authority())
            .tls_client(client_config(&[foreign]), "localhost")
            .unwrap();
        assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
        assert_eq!(proxy.metrics().tunnels_total, 1);
        assert_eq!(proxy.metrics().flows_total, 0);
    }
}

#[test]
fn a_tunnel_decided_by_hello_is_byte_exact_too() {
    let origin = Origin::echo_path(Identity::Good);
    let hook = Hook::new(Interest::NONE).on_tls(|_, _| TlsDecision::Tunnel);
    let proxy = start_with(config(), [hook.shared()]);
    let foreign = origin_authority().authority.cert_der().clone();
    let mut client = proxy
        .tunnel(&origin.authority())
        .tls_client(client_config(&[foreign]), "localhost")
        .unwrap();
    assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x");
    assert_eq!(proxy.metrics().tunnels_total, 1);
}

#[test]
fn a_tunnel_passes_every_byte_both_ways_at_once() {
    const SIZE: usize = 4 << 20;
    let origin = Origin::script(Identity::Plain, |wire, _| {
        loop {
            let n = wire.fill()?;
            if n == 0 {
                return Ok(());
            }
            let bytes = wire.read_exact(n)?;
            wire.send(bytes)?;
        }
    });
    let mut config = config();
    config.policy.default = Action::Tunnel;
    let proxy = start(config);
    let client = proxy.tunnel(&origin.authority());
    let mut sender = Wire::new(client.tcp().try_clone().unwrap());
    let upload = std::thread::spawn(move || {
        sender.send(pattern(SIZE)).unwrap();
        sender.finish();
    });
    let mut client = client;
    let (echo, ending) = client.read_to_end();
    upload.join().unwrap();
    assert_eq!(ending, Ending::Clean);
    assert_same(&echo, &pattern(SIZE));
    drop(client);
    wait_until("the bytes are counted", || {
        let metrics = proxy.metrics();
        metrics.client_bytes_in > SIZE as u64 && metrics.upstream_bytes_out == SIZE as u64
    });
}

#[test]
fn a_tunnel_that_is_reset_on_one_side_ends_on_the_other() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.read_exact(1)?;
        wire.read_to_end();
        Ok(())
    });
    let mut config = config();
    config.policy.default = Action::Tunnel;
    let recorder = Recorder::new(Interest::NONE);
    let proxy = start_with(config, [recorder.clone()]);
    let mut client = proxy.tunnel(&origin.authority());
    client.send("x").unwrap();
    client.reset();
    recorder.closed(1);
    assert_eq!(proxy.metrics().connections_active, 0);
}

#[test]
fn a_blocked_connect_is_a_403_and_the_origin_sees_no_connection() {
    let origin = Origin::echo_path(Identity::Good);
    let authority = origin.authority();
    let mut by_policy = config();
    by_policy.policy.block = pattern_of("localhost");
    let mut by_default = config();
    by_default.policy.default = Action::Block;
    let hook = || Hook::new(Interest::NONE).on_connect(|_| ConnectDecision::Block);
    for proxy in [
        start(by_policy),
        start(by_default),
        start_with(config(), [hook().shared()]),
    ] {
        let mut client = proxy.plain();
        let response = client
            .exchange(format!(
                "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
            ))
            .unwrap();
        assert_eq!(response.status(), 403);
        assert!(response.text().contains("blocked"), "{}", response.text());
        client.read_to_end();
        assert_eq!(origin.accepted(), 0);
        assert_eq!(proxy.metrics().blocked_total, 1);
        assert_eq!(proxy.metrics().upstream_connects, 0);
    }
}

#[test]
fn a_blocked_absolute_url_is_a_403_and_the_connection_goes_on() {
    let origin = Origin::echo_path(Identity::Plain);
    let free = Origin::echo_path(Identity::Plain);
    let mut config = config();
    config.policy.block = pattern_of(&origin.authority());
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config, [recorder.clone()]);
    let mut client = proxy.plain();
    for (origin, status) in [(&origin, 403), (&free, 200)] {
        let authority = origin.authority();
        let request = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        assert_eq!(client.exchange(request).unwrap().status(), status);
    }
    assert_eq!((origin.accepted(), free.accepted()), (0, 1));
    recorder.ends(2);
}

#[test]
fn a_block_by_sni_holds_where_connect_named_only_an_address() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.policy.block = pattern_of("localhost");
    let proxy = start(config);
    let wire = proxy.tunnel(&origin.address().to_string());
    assert!(wire.tls_client(proxy.client_config(), "localhost").is_err());
    assert_eq!(origin.handshakes(), 0);
    assert_eq!(proxy.metrics().blocked_total, 1);
}

#[test]

fn a_block_by_host_holds_inside_a_connection_to_another_name() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.policy.block = pattern_of("*.blocked.example");
    let proxy = start(config);
    let mut client = proxy.tls(&origin);
    let response = client
        .exchange("GET /fronted HTTP/1.1\r\nHost: a.blocked.example\r\n\r\n")
        .unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(origin.received_all(), b"");
}

#[test]
fn an_address_in_connect_and_a_name_in_the_hello_get_a_leaf_for_both() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    for name in ["localhost", "127.0.0.1"] {
        let wire = proxy.tunnel(&origin.address().to_string());
        let mut client = wire.tls_client(proxy.client_config(), name).unwrap();
        assert_eq!(client.exchange(get("/x")).unwrap().text(), "/x", "{name}");
    }
}

#[test]
fn a_request_to_the_proxy_itself_is_a_508() {
    let proxy = start(config());
    let own = proxy.handle.local_addr();
    for authority in [own.to_string(), format!("localhost:{}", own.port())] {
        for request in [
            format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
            format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
        ] {
            let response = proxy.plain().exchange(request).unwrap();
            assert_eq!(response.status(), 508);
            assert!(response.text().contains("itself"), "{}", response.text());
        }
    }
    assert_eq!(proxy.metrics().upstream_connects, 0);
}

#[test]
fn an_origin_form_request_to_the_proxys_port_is_a_400_that_explains() {
    let proxy = start(config());
    let response = proxy.plain().exchange(get("/")).unwrap();
    assert_eq!(response.status(), 400);
    assert!(response.text().contains("proxy"), "{}", response.text());
}

#[test]
fn what_is_not_http_on_the_proxys_port_is_answered_and_closed() {
    let proxy = start(config());
    let mut client = proxy.plain();
    client.send(b"\0\x01\x02\x03").unwrap();
    assert!(client.read_to_end().0.starts_with(b"HTTP/1.1 400 "));
    let trust = proxy.client_config();
    assert!(proxy.plain().tls_client(trust, "localhost").is_err());
    wait_until("both are closed", || {
        proxy.metrics().connections_active == 0
    });
}

#[cfg(unix)]
#[test]
fn a_unix_socket_serves_like_a_port() {
    let origin = Origin::echo_path(Identity::Plain);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proxy.sock");
    let mut config = config();
    config.listen.push(Listen::Unix(path.clone()).into());
    let proxy = start(config);
    let mut socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let authority = origin.authority();
    std::io::Write::write_all(
        &mut socket,
        format!(
            "GET http://{authority}/u HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )
    .unwrap();
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut socket, &mut answer).unwrap();
    assert!(answer.ends_with(b"\r\n\r\n/u"), "{}", answer.escape_ascii());
    assert!(proxy.shutdown(PATIENCE).drained);
    assert!(!path.exists());
}

//! Ways in: reverse, SOCKS5, the PROXY protocol, authentication, listeners that come and go.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use tollgate_engine::{
    Config, Endpoint, HostPattern, Listen, Mode, ModeSpec, ProxyProtocolVersion,
};
use tollgate_flow::{Direction, Flow, FlowKind, Interceptor, Interest, Outcome, OutcomeKind, Step};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: client.example\r\n\r\n")
}

fn listen(mode: &str) -> Endpoint {
    Endpoint {
        mode: mode.parse::<ModeSpec>().unwrap().mode,
        at: Listen::Tcp("127.0.0.1:0".parse().unwrap()),
    }
}

fn in_mode(mode: &str) -> Config {
    let mut config = config();
    config.listen = vec![listen(mode)];
    config
}

fn host_line(received: &[u8]) -> String {
    let text = String::from_utf8_lossy(received).into_owned();
    text.lines()
        .find(|l| l.to_ascii_lowercase().starts_with("host:"))
        .unwrap()
        .to_owned()
}

/// Keeps what ended: kind, target, bytes each way, mode, user.
#[derive(Default)]
struct Ends(Mutex<Vec<(FlowKind, String, u64, u64, OutcomeKind)>>);

impl Interceptor for Ends {
    fn interest(&self, _: &Flow) -> Interest {
        Interest::END
    }
    fn end(&self, flow: &Flow, outcome: &Outcome) {
        self.0.lock().unwrap().push((
            flow.kind,
            flow.request.target.to_string(),
            flow.request.body_size,
            flow.response.as_ref().map_or(0, |r| r.body_size),
            outcome.kind,
        ));
    }
}

#[test]
fn a_reverse_proxy_serves_the_one_server_behind_it() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(in_mode(&format!("reverse:http://{}", origin.authority())));
    let mut client = proxy.plain();
    for path in ["/a", "/b"] {
        assert_eq!(client.exchange(get(path)).unwrap().text(), path);
    }
    // The server is called by its own name.
    assert_eq!(
        host_line(&origin.received_all()),
        format!("Host: {}", origin.authority())
    );
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_reverse_proxy_leaves_the_host_alone_if_told_so() {
    let origin = Origin::echo_path(Identity::Plain);
    let mut config = in_mode(&format!("reverse:http://{}", origin.authority()));
    config.keep_host_header = true;
    let proxy = start(config);
    assert_eq!(proxy.plain().exchange(get("/x")).unwrap().text(), "/x");
    assert_same(&origin.received_all(), get("/x").as_bytes());
}

#[test]
fn a_reverse_proxy_takes_clients_with_tls_and_without() {
    for (scheme, identity) in [("https", Identity::Good), ("http", Identity::Plain)] {
        let origin = Origin::echo_path(identity);
        let proxy = start(in_mode(&format!(
            "reverse:{scheme}://{}",
            origin.authority()
        )));
        assert_eq!(
            proxy.plain().exchange(get("/p")).unwrap().text(),
            "/p",
            "{scheme}"
        );
        let mut client = proxy
            .plain()
            .tls_client(proxy.client_config(), "front.example")
            .unwrap();
        assert_eq!(client.exchange(get("/t")).unwrap().text(), "/t", "{scheme}");
        let received = origin.received();
        for log in received.iter().filter(|log| !log.is_empty()) {
            assert_eq!(host_line(log), format!("Host: {}", origin.authority()));
        }
    }
}

#[test]
fn a_reverse_proxy_whose_server_is_dead_says_so() {
    let proxy = start(in_mode(&format!(
        "reverse:http://127.0.0.1:{}",
        closed_port()
    )));
    let response = proxy.plain().exchange(get("/")).unwrap();
    assert_eq!(response.status(), 502);
    assert!(response.text().contains("refused"), "{}", response.text());
}

#[test]
fn raw_tcp_is_a_flow_that_counts_its_bytes() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.send("220 hello\r\n")?;
        let line = wire.read_until(b"\r\n")?;
        wire.send(line)
    });
    let ends = Arc::new(Ends::default());
    let proxy = start_with(
        in_mode(&format!("reverse:tcp://{}", origin.authority())),
        [ends.clone()],
    );
    let mut client = proxy.plain();
    assert_eq!(client.read_exact(11).unwrap(), b"220 hello\r\n");
    client.send("EHLO x\r\n").unwrap();
    assert_eq!(client.read_exact(8).unwrap(), b"EHLO x\r\n");
    client.finish();
    assert_eq!(client.read_to_end().1, Ending::Clean);
    wait_until("the flow ends", || !ends.0.lock().unwrap().is_empty());
    assert_eq!(
        *ends.0.lock().unwrap(),
        [(
            FlowKind::Tcp,
            origin.authority(),
            8,
            19,
            OutcomeKind::Completed
        )]
    );
}

#[test]
fn raw_tcp_can_be_edited_and_dropped() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        let (all, _) = wire.read_to_end();
        wire.send(all)
    });
    let hook = Hook::new(Interest::EDIT_REQUEST_DATA).on_data(|_, piece| {
        if piece.data.starts_with(b"secret") {
            Step::Replace((&b"******"[..]).into())
        } else {
            Step::Continue
        }
    });
    let proxy = start_with(
        in_mode(&format!("reverse:tcp://{}", origin.authority())),
        [hook.shared()],
    );
    let mut client = proxy.plain();
    client.send("secret").unwrap();
    client.finish();
    assert_eq!(client.read_to_end().0, b"******");
}

#[test]
fn raw_tls_is_opened_and_sealed_again() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        let bytes = wire.read_exact(4)?;
        wire.send([&b"got "[..], &bytes].concat())
    });
    let ends = Arc::new(Ends::default());
    let proxy = start_with(
        in_mode(&format!("reverse:tls://{}", origin.authority())),
        [ends.clone()],
    );
    for tls in [true, false] {
        let mut client = proxy.plain();
        if tls {
            client = client
                .tls_client(proxy.client_config(), "localhost")
                .unwrap();
        }
        client.send(b"\x01\x02GE").unwrap();
        assert_eq!(client.read_exact(8).unwrap(), b"got \x01\x02GE", "{tls}");
    }
    wait_until("both flows end", || ends.0.lock().unwrap().len() == 2);
}

#[test]
fn tcp_hosts_are_opened_and_not_read_as_http() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        let bytes = wire.read_until(b"\n")?;
        wire.send(bytes)
    });
    let ends = Arc::new(Ends::default());
    let mut config = config();
    config.policy.raw = vec![HostPattern::host_regex("^localhost$").unwrap()];
    let proxy = start_with(config, [ends.clone()]);
    let mut client = proxy.tls(&origin);
    client.send("GET me wrong\n").unwrap();
    assert_eq!(client.read_exact(13).unwrap(), b"GET me wrong\n");
    client.finish();
    wait_until("the flow ends", || !ends.0.lock().unwrap().is_empty());
    assert_eq!(ends.0.lock().unwrap()[0].0, FlowKind::Tcp);
}

fn socks_connect(host: &str, port: u16) -> Vec<u8> {
    let mut out = vec![5, 1, 0, 3, host.len() as u8];
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(&port.to_be_bytes());
    out
}

#[test]
fn socks5_connects_and_looks_inside() {
    for identity in [Identity::Plain, Identity::Good] {
        let origin = Origin::echo_path(identity);
        let recorder = Recorder::new(Interest::HEADS);
        let proxy = start_with(in_mode("socks5"), [recorder.clone()]);
        let mut client = proxy.plain();
        client.send([5, 1, 0]).unwrap();
        assert_eq!(client.read_exact(2).unwrap(), [5, 0]);
        client
            .send(socks_connect("localhost", origin.address().port()))
            .unwrap();
        let reply = client.read_exact(10).unwrap();
        assert_eq!(&reply[..4], [5, 0, 0, 1]);
        if identity == Identity::Good {
            client = client
                .tls_client(proxy.client_config(), "localhost")
                .unwrap();
        }
        assert_eq!(client.exchange(get("/s")).unwrap().text(), "/s");
        drop(client);
        assert_eq!(recorder.ends(1).len(), 1);
    }
}

#[test]
fn socks5_says_why_it_does_not_connect() {
    let mut config = in_mode("socks5");
    config.policy.block = vec![HostPattern::new("evil.example").unwrap()];
    let proxy = start(config);
    let closed = closed_port();
    for (host, port, code) in [
        ("evil.example", 80, 2),
        ("127.0.0.1.invalid", 80, 4),
        ("localhost", closed, 5),
    ] {
        let mut client = proxy.plain();
        client.send([5, 1, 0]).unwrap();
        client.read_exact(2).unwrap();
        client.send(socks_connect(host, port)).unwrap();
        assert_eq!(client.read_exact(2).unwrap()[1], code, "{host}");
    }
    for (garbage, answer) in [
        (&b"\x04\x01\0\x50\x7f\0\0\x01\0"[..], &b"\0\x5b"[..]),
        (&b"GET / HTTP/1.1\r\n\r\n"[..], &b""[..]),
        (&b"\x05\x01\x02"[..], &b"\x05\xff"[..]),
        (&b"\x05\x00"[..], &b""[..]),
    ] {
        let mut client = proxy.plain();
        client.send(garbage).unwrap();
        let (got, _) = client.read_to_end();
        assert!(
            got.starts_with(answer) && (answer.is_empty() == got.is_empty()),
            "{garbage:?}: {got:?}"
        );
    }
    wait_until("all are closed", || proxy.metrics().connections_active == 0);
}

#[test]
fn socks5_asks_for_a_user_and_a_password() {
    let origin = Origin::echo_path(Identity::Plain);
    let mut config = in_mode("socks5");
    config.auth = Some("anna:secret".parse().unwrap());
    let proxy = start(config);
    let login = |password: &str| {
        let mut client = proxy.plain();
        client.send([5, 2, 0, 2]).unwrap();
        assert_eq!(client.read_exact(2).unwrap(), [5, 2]);
        let mut message = vec![1, 4];
        message.extend_from_slice(b"anna");
        message.push(password.len() as u8);
        message.extend_from_slice(password.as_bytes());
        client.send(message).unwrap();
        let status = client.read_exact(2).unwrap()[1];
        (status, client)
    };
    assert_eq!(login("wrong").0, 1);
    let (status, mut client) = login("secret");
    assert_eq!(status, 0);
    client
        .send(socks_connect("localhost", origin.address().port()))
        .unwrap();
    assert_eq!(client.read_exact(10).unwrap()[1], 0);
    assert_eq!(client.exchange(get("/in")).unwrap().text(), "/in");
    // Without the method: refused.
    let mut client = proxy.plain();
    client.send([5, 1, 0]).unwrap();
    assert_eq!(client.read_exact(2).unwrap(), [5, 0xff]);
}

#[test]
fn socks5_relays_datagrams_as_flows() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let recorder = Recorder::new(Interest::DATA);
    let proxy = start_with(in_mode("socks5"), [recorder.clone()]);
    let mut control = proxy.plain();
    control.send([5, 1, 0]).unwrap();
    control.read_exact(2).unwrap();
    control.send([5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    let reply = control.read_exact(10).unwrap();
    assert_eq!(reply[1], 0);
    let relay = SocketAddr::from(([127, 0, 0, 1], u16::from_be_bytes([reply[8], reply[9]])));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = |port: u16, payload: &[u8]| {
        let mut datagram = vec![0, 0, 0, 1, 127, 0, 0, 1];
        datagram.extend_from_slice(&port.to_be_bytes());
        datagram.extend_from_slice(payload);
        datagram
    };
    let port = peer.local_addr().unwrap().port();
    // Dropped: QUIC, a fragment, and what is no datagram of SOCKS.
    client.send_to(&to(443, b"quic"), relay).unwrap();
    client
        .send_to(&[0, 0, 1, 1, 127, 0, 0, 1, 0, 9, 1], relay)
        .unwrap();
    client.send_to(b"?", relay).unwrap();
    client.send_to(&to(port, b"ping"), relay).unwrap();
    let mut buffer = [0; 64];
    let (n, from) = peer.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"ping");
    peer.send_to(b"pong!", from).unwrap();
    let (n, _) = client.recv_from(&mut buffer).unwrap();
    assert_same(&buffer[..n], &to(port, b"pong!"));
    wait_until("the others were counted", || {
        proxy.metrics().datagrams_dropped == 3
    });
    // The association ends with its connection, and the flow with it.
    drop(control);
    recorder.ends(1);
    assert_eq!(recorder.data(Direction::Request).0, [b"ping".to_vec()]);
    assert_eq!(recorder.data(Direction::Response).0, [b"pong!".to_vec()]);
    wait_until("it is closed", || proxy.metrics().connections_active == 0);
}

const BASIC: &str = "Basic YW5uYTpzZWNyZXQ=";

#[test]
fn a_proxy_asks_who_it_is_once_per_connection() {
    let origin = Origin::echo_path(Identity::Plain);
    let authority = origin.authority();
    let mut config = config();
    config.auth = Some("anna:secret".parse().unwrap());
    let proxy = start(config);
    let request = |path: &str, more: &str| {
        format!("GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n{more}\r\n")
    };
    let mut client = proxy.plain();
    let refused = client.exchange(request("/1", "")).unwrap();
    assert_eq!(refused.status(), 407);
    assert_eq!(
        refused.header("Proxy-Authenticate").unwrap(),
        "Basic realm=\"Tollgate\""
    );
    let wrong = "Proxy-Authorization: Basic YW5uYTp3cm9uZw==\r\n";
    assert_eq!(client.exchange(request("/2", wrong)).unwrap().status(), 407);
    let right = format!("Proxy-Authorization: {BASIC}\r\n");
    assert_eq!(client.exchange(request("/3", &right)).unwrap().text(), "/3");
    assert_eq!(client.exchange(request("/4", "")).unwrap().text(), "/4");
    let received = String::from_utf8(origin.received_all()).unwrap();
    assert!(
        !received.to_ascii_lowercase().contains("authorization"),
        "{received}"
    );
    assert!(!received.contains("GET /1 ") && !received.contains("GET /2 "));
    // CONNECT, too; and what is inside needs to say no more.
    let mut client = proxy.plain();
    let connect =
        |more: &str| format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{more}\r\n");
    assert_eq!(client.exchange(connect("")).unwrap().status(), 407);
    assert_eq!(client.exchange(connect(&right)).unwrap().status(), 200);
    assert_eq!(client.exchange(get("/5")).unwrap().text(), "/5");
}

#[test]
fn a_reverse_proxy_asks_with_401_and_keeps_what_it_was_shown() {
    let origin = Origin::echo_path(Identity::Plain);
    let mut config = in_mode(&format!("reverse:http://{}", origin.authority()));
    config.auth = Some("any".parse().unwrap());
    let proxy = start(config);
    let mut client = proxy.plain();
    let request = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n{more}\r\n");
    let refused = client.exchange(request("/1", "")).unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(
        refused.header("WWW-Authenticate").unwrap(),
        "Basic realm=\"Tollgate\""
    );
    let ours = format!("Authorization: {BASIC}\r\n");
    assert_eq!(client.exchange(request("/2", &ours)).unwrap().text(), "/2");
    // What else is shown is for the server.
    let theirs = "Authorization: Bearer t\r\n";
    assert_eq!(client.exchange(request("/3", theirs)).unwrap().text(), "/3");
    let received = String::from_utf8(origin.received_all()).unwrap();
    assert!(
        !received.contains("Basic") && received.contains("Bearer t"),
        "{received}"
    );
}

#[test]
fn what_can_not_be_asked_does_not_pass_where_everybody_is() {
    let origin = Origin::script(Identity::Plain, |wire, _| wire.send("hello"));
    let mut config = in_mode(&format!("reverse:tcp://{}", origin.authority()));
    config.auth = Some("any".parse().unwrap());
    let proxy = start(config);
    assert_eq!(proxy.plain().read_to_end().0, b"");
}

#[test]
fn a_proxy_header_is_believed_from_listed_peers_only() {
    let origin = Origin::echo_path(Identity::Plain);
    let authority = origin.authority();
    let request = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let header = "PROXY TCP4 192.0.2.7 198.51.100.1 5000 80\r\n";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let hook = |seen: &Arc<Mutex<Vec<SocketAddr>>>| {
        let seen = Arc::clone(seen);
        Hook::new(Interest::REQUEST).on_request(move |flow| {
            seen.lock().unwrap().push(flow.connection.client);
            Step::Continue
        })
    };
    let mut listed = config();
    listed.proxy_protocol.from = vec![HostPattern::new("127.0.0.0/8").unwrap()];
    let proxy = start_with(listed, [hook(&seen).shared()]);
    let mut client = proxy.plain();
    // In two pieces, and the request right behind.
    client.send(&header[..20]).unwrap();
    client.send(format!("{}{request}", &header[20..])).unwrap();
    assert_eq!(client.read_response("GET").unwrap().text(), "/");
    assert_eq!(*seen.lock().unwrap(), ["192.0.2.7:5000".parse().unwrap()]);
    // A listed peer must send one.
    let mut client = proxy.plain();
    client.send(&request).unwrap();
    assert_eq!(client.read_to_end().0, b"");
    // Anybody else mustn't.
    let proxy = start_with(config(), [hook(&seen).shared()]);
    let mut client = proxy.plain();
    client.send(format!("{header}{request}")).unwrap();
    let (answer, _) = client.read_to_end();
    assert!(
        answer.starts_with(b"HTTP/1.1 400 "),
        "{}",
        answer.escape_ascii()
    );
    assert_eq!(seen.lock().unwrap().len(), 1);
    wait_until("all are closed", || proxy.metrics().connections_active == 0);
}

#[test]
fn origins_are_told_of_the_client() {
    for version in [ProxyProtocolVersion::V1, ProxyProtocolVersion::V2] {
        let origin = Origin::script(Identity::Plain, move |wire, _| {
            let head = match version {
                ProxyProtocolVersion::V1 => wire.read_until(b"\r\n")?,
                ProxyProtocolVersion::V2 => wire.read_exact(28)?,
            };
            wire.read_request()?;
            wire.send(ok(head))
        });
        let mut config = in_mode(&format!("reverse:http://{}", origin.authority()));
        config.proxy_protocol.send = Some(version);
        let proxy = start(config);
        let mut client = proxy.plain();
        let port = client.local_addr().port();
        let header = client.exchange(get("/")).unwrap().body;
        match version {
            ProxyProtocolVersion::V1 => {
                let expected = format!(
                    "PROXY TCP4 127.0.0.1 127.0.0.1 {port} {}\r\n",
                    origin.address().port()
                );
                assert_eq!(String::from_utf8(header).unwrap(), expected);
            }
            ProxyProtocolVersion::V2 => {
                assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
                assert_eq!(header[24..26], port.to_be_bytes());
            }
        }
    }
}

#[test]
fn listeners_come_and_go_while_the_proxy_runs() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(config());
    let first = proxy.handle.local_addr();
    let mut open = proxy.plain();
    let mut config = (*proxy.handle.current_config()).clone();
    config
        .listen
        .push(listen(&format!("reverse:http://{}", origin.authority())));
    proxy.handle.reload(config.clone()).unwrap();
    let addresses = proxy.handle.local_addrs();
    assert_eq!(addresses[0], first);
    assert_eq!(
        Wire::connect(addresses[1])
            .exchange(get("/new"))
            .unwrap()
            .text(),
        "/new"
    );
    // The mode of a listener changes under its socket.
    config.listen = vec![Endpoint {
        mode: format!("reverse:http://{}", origin.authority())
            .parse::<ModeSpec>()
            .unwrap()
            .mode,
        at: config.listen[0].at.clone(),
    }];
    proxy.handle.reload(config.clone()).unwrap();
    assert_eq!(proxy.handle.local_addrs(), [first]);
    assert_eq!(
        proxy.plain().exchange(get("/changed")).unwrap().text(),
        "/changed"
    );
    wait_until("the other is closed", || {
        std::net::TcpStream::connect(addresses[1]).is_err()
    });
    // A connection keeps what it began with.
    let authority = origin.authority();
    let request = format!("GET http://{authority}/old HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    assert_eq!(open.exchange(request).unwrap().text(), "/old");
    // What can't be bound changes nothing.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut wrong = config.clone();
    wrong
        .listen
        .push(Listen::Tcp(taken.local_addr().unwrap()).into());
    wrong.policy.block = vec![HostPattern::new("*").unwrap()];
    assert!(proxy.handle.reload(wrong).is_err());
    assert_eq!(
        proxy.plain().exchange(get("/still")).unwrap().text(),
        "/still"
    );
    assert_eq!(proxy.handle.endpoints()[0].at, Listen::Tcp(first));
}

#[cfg(unix)]
#[test]
fn a_unix_socket_serves_in_any_mode_and_goes_with_its_listener() {
    let origin = Origin::echo_path(Identity::Plain);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reverse.sock");
    let mut with = config();
    with.listen.push(Endpoint {
        at: Listen::Unix(path.clone()),
        ..listen(&format!("reverse:http://{}", origin.authority()))
    });
    let proxy = start(with);
    let mut socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = "GET /u HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(b"\r\n\r\n/u"), "{}", answer.escape_ascii());
    let mut without = (*proxy.handle.current_config()).clone();
    without.listen.pop();
    proxy.handle.reload(without).unwrap();
    assert!(!path.exists());
}

#[test]
fn endpoints_that_can_not_serve_together_are_refused() {
    let place = Listen::Tcp("127.0.0.1:1".parse().unwrap());
    for (listen, part) in [
        (vec![], "nothing to listen at"),
        (
            vec![place.clone().into(), place.clone().into()],
            "two modes",
        ),
        (
            vec![Endpoint {
                mode: Mode::Return,
                at: place,
            }],
            "needs a sandwich",
        ),
    ] {
        let mut config = config();
        config.listen = listen;
        let Err(error) = try_start(config, []) else {
            panic!("it started")
        };
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_client_can_not_name_itself_past_us() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.policy.ignore = vec![HostPattern::new("*.pinned.example").unwrap()];
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(config, [recorder.clone()]);
    // The SNI says that it is a host to be left alone; the CONNECT says where it really goes.
    let mut config = (*proxy.client_config()).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = proxy
        .tunnel(&origin.authority())
        .tls_client(Arc::new(config), "www.pinned.example");
    if let Ok(mut client) = client {
        let _ = client.exchange(get("/"));
    }
    assert_eq!(proxy.metrics().tunnels_total, 0);
}

/// Keeps both ends of the client's connection.
#[derive(Default)]
struct Addresses(Mutex<Vec<SocketAddr>>);

impl Interceptor for Addresses {
    fn interest(&self, _: &Flow) -> Interest {
        Interest::END
    }
    fn end(&self, flow: &Flow, _: &Outcome) {
        let connection = &flow.connection;
        self.0
            .lock()
            .unwrap()
            .extend([connection.client, connection.local]);
    }
}

#[test]
fn a_client_of_ipv4_is_one_at_a_listener_for_both_versions_of_ip_too() {
    if std::net::TcpListener::bind("[::]:0").is_err() {
        // A machine may have no IPv6.
        return;
    }
    let origin = Origin::echo_path(Identity::Plain);
    let mut config = config();
    config.listen = vec![Listen::Tcp("[::]:0".parse().unwrap()).into()];
    let addresses = Arc::new(Addresses::default());
    let proxy = start_with(config, [addresses.clone()]);
    let port = proxy.handle.local_addr().port();
    let mut client = Wire::connect(SocketAddr::from(([127, 0, 0, 1], port)));
    let authority = origin.authority();
    let request = format!("GET http://{authority}/x HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    assert_eq!(client.exchange(request).unwrap().text(), "/x");
    wait_until("the flow has ended", || {
        addresses.0.lock().unwrap().len() == 2
    });
    for address in addresses.0.lock().unwrap().iter() {
        assert_eq!(address.ip().to_string(), "127.0.0.1");
    }
}

#[cfg(feature = "http2")]
#[test]
fn http2_without_tls_is_spoken_to_origins_that_know_it() {
    use bytes::Bytes;

    async fn ask(address: SocketAddr, path: &str) -> (u16, String) {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(format!("http://client.example{path}"))
            .body(())
            .unwrap();
        let (response, _) = send
            .ready()
            .await
            .unwrap()
            .send_request(request, true)
            .unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut text = Vec::new();
        while let Some(piece) = body.data().await {
            let piece: Bytes = piece.unwrap();
            text.extend_from_slice(&piece);
        }
        (head.status.as_u16(), String::from_utf8(text).unwrap())
    }

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let spoken = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&spoken);
    std::thread::spawn(move || {
        block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let log = Arc::clone(&log);
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        log.lock().unwrap().push(request.uri().to_string());
                        let mut body = respond
                            .send_response(http::Response::new(()), false)
                            .unwrap();
                        body.send_data(Bytes::from_static(b"h2c"), true).unwrap();
                    }
                });
            }
        });
    });
    let proxy = start(in_mode(&format!("reverse:http://{address}")));
    let answers = block_on(async {
        (
            ask(proxy.handle.local_addr(), "/1").await,
            ask(proxy.handle.local_addr(), "/2").await,
        )
    });
    assert_eq!(answers, ((200, "h2c".to_owned()), (200, "h2c".to_owned())));
    assert_eq!(
        *spoken.lock().unwrap(),
        [format!("http://{address}/1"), format!("http://{address}/2")]
    );
    // One that doesn't is asked in HTTP/1, and remembered.
    let origin = Origin::script(Identity::Plain, |wire, _| {
        loop {
            let head = wire.read_head()?;
            if head.starts_with(b"PRI ") {
                return wire.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
            }
            wire.send(ok("h1"))?;
        }
    });
    let proxy = start(in_mode(&format!("reverse:http://{}", origin.authority())));
    let answers = block_on(async {
        (
            ask(proxy.handle.local_addr(), "/1").await,
            ask(proxy.handle.local_addr(), "/2").await,
        )
    });
    assert_eq!(answers, ((200, "h1".to_owned()), (200, "h1".to_owned())));
    assert_eq!(origin.accepted(), 2);
}

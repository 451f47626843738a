//! Limits in time and size, each with the answer that it declares.

use std::time::Duration;

use tollgate_engine::Config;
use tollgate_flow::{ErrorClass, Interest, Side};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = config();
    change(&mut config);
    config
}

fn connect(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

#[test]
fn a_head_without_end_is_a_431() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client.send("GET / HTTP/1.1\r\nX: ").unwrap();
    // The proxy stops to read at its limit; what is sent then may be lost.
    for _ in 0..20 {
        if client.send([b'a'; 8192]).is_err() {
            break;
        }
    }
    assert_eq!(client.read_response("GET").unwrap().status(), 431);
    assert_eq!(origin.received_all(), b"");
}

#[test]
fn a_head_with_too_many_lines_is_a_431() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(with(|c| c.limits.header_lines = 10));
    let mut client = proxy.tls(&origin);
    let lines = "X: 1\r\n".repeat(10);
    let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
    assert_eq!(client.exchange(request).unwrap().status(), 431);
    assert_eq!(origin.received_all(), b"");
}

#[test]
fn a_head_of_just_the_limit_passes() {
    let origin = Origin::echo_path(Identity::Good);
    let start_of = "GET /x HTTP/1.1\r\nHost: localhost\r\nX: ";
    let fill = "a".repeat(65_536 - start_of.len() - 4);
    let request = format!("{start_of}{fill}\r\n\r\n");
    let proxy = start(config());
    let response = proxy.tls(&origin).exchange(&request).unwrap();
    assert_eq!(response.text(), "/x");
    assert_same(&origin.received_all(), request.as_bytes());
}

#[test]
fn a_slow_head_is_a_408() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(with(|c| c.timeouts.request_head = SHORT));
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    client.send("GET / HT").unwrap();
    let response = client.read_response("GET").unwrap();
    assert_eq!(response.status(), 408);
    assert_eq!(response.header("connection").as_deref(), Some("close"));
    client.read_to_end();
}

#[test]
fn a_client_that_says_nothing_is_let_go() {
    let proxy = start(with(|c| c.timeouts.first_bytes = SHORT));
    assert_eq!(proxy.plain().read_to_end().0, b"");
}

#[test]
fn a_client_that_says_nothing_after_connect_is_let_go() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(with(|c| c.timeouts.first_bytes = SHORT));
    assert_eq!(proxy.tunnel(&origin.authority()).read_to_end().0, b"");
}

/// The proxy lets others have an idle client's upstream connection after a second: limits on both
/// sides of that.
fn is_let_go_after(limit: Duration) {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(with(|c| c.timeouts.keep_alive = limit));
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    assert_eq!(client.read_to_end(), (Vec::new(), Ending::Clean));
    wait_until("it is closed", || proxy.metrics().connections_active == 0);
}

#[test]
fn a_kept_alive_client_is_let_go_after_its_time() {
    is_let_go_after(Duration::from_millis(1200));
}

#[test]

fn a_kept_alive_client_is_let_go_after_a_time_below_a_second() {
    is_let_go_after(SHORT);
}

#[test]
fn an_origin_that_never_answers_is_a_504() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(
        with(|c| c.timeouts.response_head = SHORT),
        [recorder.clone()],
    );
    let mut client = proxy.tls(&origin);
    for _ in 0..2 {
        let response = client.exchange(get("/")).unwrap();
        assert_eq!(response.status(), 504);
        assert!(
            response.text().contains("did not answer"),
            "{}",
            response.text()
        );
    }
    let error = recorder.ends(2).remove(1).error.unwrap();
    assert_eq!(
        (error.side, error.class),
        (Side::Upstream, ErrorClass::Timeout)
    );
    assert_eq!(origin.accepted(), 2);
}

#[test]

fn an_origin_that_never_answers_an_upload_is_a_504() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_to_end();
        Ok(())
    });
    let proxy = start(with(|c| c.timeouts.response_head = SHORT));
    let mut client = proxy.tls(&origin);
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        .unwrap();
    client.send(pattern(100_000)).unwrap();
    assert_eq!(client.read_response("POST").unwrap().status(), 504);
}

#[test]

fn a_response_that_stops_is_cut() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart")?;
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(with(|c| c.timeouts.idle = SHORT), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    let (got, ending) = client.read_to_end();
    assert!(got.ends_with(b"part"));
    assert_ne!(ending, Ending::Clean);
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!(error.class, ErrorClass::Timeout);
}

#[test]
fn an_upload_that_stops_is_not_waited_for() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(with(|c| c.timeouts.idle = SHORT), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\npart")
        .unwrap();
    client.read_to_end();
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!(error.class, ErrorClass::Timeout);
}

#[test]
fn a_tunnel_without_traffic_is_closed() {
    let origin = Origin::script(Identity::Plain, |wire, _| {
        wire.read_to_end();
        Ok(())
    });
    let proxy = start(with(|c| {
        c.timeouts.idle = SHORT;
        c.policy.default = tollgate_engine::Action::Tunnel;
    }));
    let mut client = proxy.tunnel(&origin.authority());
    client.send("x").unwrap();
    assert_eq!(client.read_to_end().0, b"");
}

#[test]
fn a_closed_port_is_a_502() {
    let proxy = start(config());
    let authority = format!("127.0.0.1:{}", closed_port());
    for request in [
        connect(&authority),
        format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n"),
    ] {
        let response = proxy.plain().exchange(request).unwrap();
        assert_eq!(response.status(), 502);
        assert!(
            response.text().contains("connection refused"),
            "{}",
            response.text()
        );
        let status = response.header("proxy-status").unwrap();
        assert!(status.contains("connection_refused"), "{status}");
    }
    wait_until("both are counted", || {
        proxy.metrics().failures == [("upstream", "connect", 2)]
    });
}

#[test]
fn a_connection_that_failed_is_tried_again_where_that_is_wanted() {
    let proxy = start(with(|c| {
        c.retry.on_connect_failure = true;
        c.retry.delay = Duration::from_millis(10);
    }));
    let authority = format!("127.0.0.1:{}", closed_port());
    let request = format!("GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    assert_eq!(proxy.plain().exchange(request).unwrap().status(), 502);
    assert_eq!(proxy.metrics().upstream_connects, 2);
}

#[test]
fn a_name_that_does_not_exist_is_a_502() {
    // RFC 6761 section 6.4: no resolver ever knows it. This one is too long even to be asked for.
    let name = format!("{}.invalid", "a".repeat(64));
    let proxy = start(config());
    for request in [
        connect(&format!("{name}:443")),
        format!("GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n"),
    ] {
        let response = proxy.plain().exchange(request).unwrap();
        assert_eq!(response.status(), 502);
        assert!(response.text().contains("resolved"), "{}", response.text());
        let status = response.header("proxy-status").unwrap();
        assert!(status.contains("dns_error"), "{status}");
    }
    wait_until("both are counted", || {
        proxy.metrics().failures == [("upstream", "dns", 2)]
    });
}

#[test]
fn a_response_head_that_is_too_large_is_a_502() {
    for head in [
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(70_000)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(300)),
        format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(70_000)),
    ] {
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send(&head)?;
            wire.read_to_end();
            Ok(())
        });
        let proxy = start(config());
        let mut client = proxy.tls(&origin);
        let response = client.exchange(get("/")).unwrap();
        assert_eq!(response.status(), 502);
        assert!(response.text().contains("too"), "{}", response.text());
    }
}

#[test]
fn trailers_that_are_too_large_end_the_exchange() {
    let origin = Origin::http(Identity::Good, |_| {
        let trailer = "a".repeat(20_000);
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: {trailer}\r\n\r\n")
            .into_bytes()
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    client.read_to_end();
    assert!(recorder.ends(1)[0].error.is_some());
}

//! Upstream connections: reuse, isolation, and what happens when one of them is dead.

use std::sync::Mutex;
use std::sync::mpsc;

use tollgate_engine::PoolMode;
use tollgate_flow::Interest;

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Answers with the number of the connection.
fn numbered() -> Origin {
    Origin::script(Identity::Good, |wire, number| {
        loop {
            wire.read_request()?;
            wire.send(ok(number.to_string()))?;
        }
    })
}

#[test]
fn keep_alive_uses_one_upstream_connection() {
    let origin = numbered();
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    for _ in 0..5 {
        assert_eq!(client.exchange(get("/")).unwrap().text(), "0");
    }
    let metrics = proxy.metrics();
    assert_eq!((metrics.upstream_connects, origin.accepted()), (1, 1));
    assert_eq!(metrics.upstream_handshakes, 1);
    assert!(metrics.upstream_reused >= 4, "{}", metrics.upstream_reused);
}

#[test]
fn clients_share_the_pool() {
    let origin = numbered();
    let proxy = start(config());
    for n in 1..=3 {
        let mut client = proxy.tls(&origin);
        assert_eq!(client.exchange(get("/")).unwrap().text(), "0");
        client.finish();
        client.read_to_end();
        wait_until("it is idle", || proxy.metrics().upstream_idle == 1);
        assert_eq!(proxy.metrics().connections_total, n);
    }
    assert_eq!(proxy.metrics().upstream_connects, 1);
}

#[test]
fn clients_at_the_same_time_have_connections_of_their_own() {
    let origin = numbered();
    let proxy = start(config());
    let (mut a, mut b) = (proxy.tls(&origin), proxy.tls(&origin));
    let first = a.exchange(get("/")).unwrap().text();
    let second = b.exchange(get("/")).unwrap().text();
    assert_ne!(first, second);
}

#[test]
fn in_mirror_mode_clients_share_nothing() {
    let origin = numbered();
    let mut config = config();
    config.pool.mode = PoolMode::Mirror;
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config, [recorder.clone()]);
    for n in 0..3 {
        let mut client = proxy.tls(&origin);
        for _ in 0..2 {
            assert_eq!(client.exchange(get("/")).unwrap().text(), n.to_string());
        }
        client.finish();
        client.read_to_end();
        recorder.closed(n + 1);
    }
    assert_eq!(origin.accepted(), 3);
}

#[test]

fn an_idle_connection_of_a_client_that_is_gone_in_mirror_mode_is_closed() {
    let (closed, closes) = mpsc::channel();
    let closed = Mutex::new(closed);
    let origin = Origin::script(Identity::Good, move |wire, _| {
        wire.read_request()?;
        wire.send(ok(""))?;
        wire.read_to_end();
        closed.lock().unwrap().send(()).unwrap();
        Ok(())
    });
    let mut config = config();
    config.pool.mode = PoolMode::Mirror;
    let proxy = start(config);
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    drop(client);
    // Nobody can ever use it again.
    closes.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn credentials_that_are_bound_to_a_connection_pin_it() {
    for scheme in ["NTLM", "Negotiate"] {
        // As an origin does that authenticates the connection: challenge, then welcome.
        let origin = Origin::script(Identity::Good, move |wire, number| {
            let mut known = false;
            loop {
                let request = wire.read_request()?;
                known |= request.header("authorization").is_some();
                if known {
                    wire.send(ok(format!("secret of {number}")))?;
                } else {
                    wire.send(format!(
                        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {scheme}\r\nContent-Length: 0\r\n\r\n"
                    ))?;
                }
            }
        });
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        assert_eq!(client.exchange(get("/")).unwrap().status(), 401);
        let login =
            format!("GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: {scheme} abc\r\n\r\n");
        assert_eq!(client.exchange(login).unwrap().text(), "secret of 0");
        assert_eq!(client.exchange(get("/")).unwrap().text(), "secret of 0");
        client.finish();
        client.read_to_end();
        recorder.closed(1);
        // Nobody inherits it.
        let mut other = proxy.tls(&origin);
        assert_eq!(other.exchange(get("/")).unwrap().status(), 401);
        assert_eq!(origin.accepted(), 2);
    }
}

#[test]
fn credentials_do_not_go_to_a_connection_that_others_have_used() {
    let origin = numbered();
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    // From here on this connection is its own.
    client
        .exchange("GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Negotiate abc\r\n\r\n")
        .unwrap();
    client.finish();
    client.read_to_end();
    recorder.closed(1);
    assert_eq!(proxy.metrics().upstream_idle, 0);
}

#[test]
fn a_pooled_connection_that_the_origin_closed_costs_nothing() {
    let (close, closes) = mpsc::channel::<()>();
    let closes = Mutex::new(closes);
    let (closed, wait) = mpsc::channel();
    let closed = Mutex::new(closed);
    let origin = Origin::script(Identity::Good, move |wire, number| {
        wire.read_request()?;
        wire.send(ok(number.to_string()))?;
        if number == 0 {
            closes.lock().unwrap().recv().unwrap();
            wire.finish();
            closed.lock().unwrap().send(()).unwrap();
        }
        wire.read_to_end();
        Ok(())
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/")).unwrap().text(), "0");
    close.send(()).unwrap();
    wait.recv().unwrap();
    assert_eq!(client.exchange(get("/")).unwrap().text(), "1");
}

/// Serves one request on its first connection, and closes it without a word when the next one
/// arrives: to the proxy that is a connection which was closed while it was idle.
fn closes_on_second() -> Origin {
    Origin::script(Identity::Good, |wire, number| {
        wire.read_request()?;
        wire.send(ok(number.to_string()))?;
        if number == 0 {
            wire.read_request()?;
            wire.finish();
            return Ok(());
        }
        loop {
            let request = wire.read_request()?;
            wire.send(ok([number.to_string().as_bytes(), &request.body].concat()))?;
        }
    })
}

#[test]
fn a_request_that_meets_a_dead_connection_is_sent_once_more() {
    for interest in [
        Interest::NONE,
        Interest::HEADS,
        Interest::HEADS | Interest::DATA,
    ] {
        let origin = closes_on_second();
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        assert_eq!(client.exchange(get("/")).unwrap().text(), "0");
        assert_eq!(client.exchange(get("/again")).unwrap().text(), "1");
        assert_eq!(proxy.metrics().retries, 1);
        // To interceptors it is one flow.
        assert_eq!(proxy.metrics().flows_total, 2);
        let received = origin.received();
        assert_same(&received[1], get("/again").as_bytes());
    }
}

fn put_is_sent_once_more(interest: Interest) {
    let request = "PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";
    let origin = closes_on_second();
    let proxy = start_with(config(), [Recorder::new(interest)]);
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/")).unwrap().text(), "0");
    assert_eq!(client.exchange(request).unwrap().text(), "1");
    assert_same(&origin.received()[1], request.as_bytes());
    assert_eq!(proxy.metrics().retries, 1);
}

#[test]

fn a_request_with_its_whole_body_at_hand_is_sent_once_more() {
    put_is_sent_once_more(Interest::NONE);
}

#[test]
fn a_request_whose_body_was_collected_is_sent_once_more() {
    put_is_sent_once_more(Interest::REQUEST_BODY);
}

#[test]
fn a_request_whose_body_has_gone_is_not_sent_again() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send(ok("first"))?;
        wire.read_until(b"part")?;
        wire.finish();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/")).unwrap().text(), "first");
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\npart")
        .unwrap();
    let response = client.read_response("POST").unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(proxy.metrics().retries, 0);
    assert_eq!(origin.accepted(), 1);
    recorder.ends(2);
}

#[test]
fn a_first_request_on_a_fresh_connection_is_not_sent_again() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.finish();
        Ok(())
    });
    let proxy = start(config());
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn an_origin_that_closes_every_time_is_a_502_after_few_tries() {
    let origin = Origin::script(Identity::Good, |wire, number| {
        wire.read_request()?;
        if number == 0 {
            wire.send(ok("only once"))?;
            wire.read_request()?;
        }
        wire.finish();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.exchange(get("/")).unwrap();
    assert_eq!(client.exchange(get("/")).unwrap().status(), 502);
    assert!(origin.accepted() <= 4, "{}", origin.accepted());
    recorder.ends(2);
}

#[test]
fn the_pool_keeps_no_more_than_it_may() {
    let origin = numbered();
    let mut config = config();
    config.pool.max_idle_per_route = 2;
    let proxy = start(config);
    let mut clients: Vec<_> = (0..5).map(|_| proxy.tls(&origin)).collect();
    for client in &mut clients {
        client.exchange(get("/")).unwrap();
    }
    drop(clients);
    wait_until("the rest is evicted", || {
        let metrics = proxy.metrics();
        metrics.upstream_idle == 2 && metrics.upstream_evicted == 3
    });
}

#[test]
fn with_a_bound_per_route_further_requests_wait_for_a_connection() {
    let (go, goes) = mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let origin = Origin::script(Identity::Plain, move |wire, number| {
        loop {
            wire.read_request()?;
            goes.lock().unwrap().recv().unwrap();
            wire.send(ok(number.to_string()))?;
        }
    });
    let mut config = config();
    config.pool.max_per_route = 1;
    let proxy = start(config);
    let authority = origin.authority();
    let request = format!(
        "GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
    );
    let (mut a, mut b) = (proxy.plain(), proxy.plain());
    a.send(&request).unwrap();
    wait_until("the first is there", || !origin.received_all().is_empty());
    b.send(&request).unwrap();
    wait_until("the second has begun", || proxy.metrics().flows_total == 2);
    go.send(()).unwrap();
    go.send(()).unwrap();
    a.read_response("GET").unwrap();
    b.read_response("GET").unwrap();
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn names_in_the_hello_have_connections_of_their_own() {
    let origin = numbered();
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    for (n, name) in ["localhost", "127.0.0.1"].into_iter().enumerate() {
        // To an address, with and without a name in the hello.
        let wire = proxy.tunnel(&origin.address().to_string());
        let mut client = wire.tls_client(proxy.client_config(), name).unwrap();
        assert_eq!(client.exchange(get("/")).unwrap().text(), n.to_string());
        client.finish();
        client.read_to_end();
        recorder.closed(n + 1);
    }
}

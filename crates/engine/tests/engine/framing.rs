//! Where messages end: bodies that must not be there, answers that come early, streams that break off.

use std::sync::Mutex;
use std::sync::mpsc;

use tollgate_flow::{ErrorClass, Interest, OutcomeKind, Side};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// Asks for responses that must not have a body, and for one after each that has.
fn bodiless(interest: Interest) {
    let origin = Origin::http(Identity::Good, |request| match request.path().as_str() {
        "/head" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n".to_vec(),
        "/head-chunked" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n".to_vec(),
        path => ok(path),
    });
    let proxy = start_with(config(), [Recorder::new(interest)]);
    let mut client = proxy.tls(&origin);
    for (method, path, status, length) in [
        ("HEAD", "/head", 200, Some("100")),
        ("HEAD", "/head-chunked", 200, None),
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, Some("100")),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = client.exchange(request).unwrap();
        assert_eq!(response.status(), status, "{path}");
        let announced = response.header("content-length");
        assert_eq!(announced.as_deref(), length, "{path}");
        assert_eq!(client.exchange(get("/next")).unwrap().text(), "/next");
    }
}

#[test]
fn responses_without_a_body_leave_the_connection_usable() {
    bodiless(Interest::NONE);
}

#[test]
fn responses_without_a_body_can_be_watched() {
    bodiless(Interest::HEADS | Interest::DATA);
}

#[test]
fn responses_without_a_body_can_be_edited() {
    bodiless(Interest::EDIT_RESPONSE_DATA);
}

#[test]

fn responses_without_a_body_can_be_collected() {
    bodiless(Interest::RESPONSE_BODY);
}

#[test]
fn an_early_answer_that_keeps_the_connection_arrives_before_the_body_ends() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_head()?;
        wire.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")?;
        wire.read_exact(10)?;
        let request = wire.read_request()?;
        wire.send(ok(request.path()))
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345")
        .unwrap();
    let response = client.read_response("POST").unwrap();
    assert_eq!((response.status(), response.text().as_str()), (401, "no"));
    // The client ends its body, and the connection goes on.
    client.send("67890").unwrap();
    assert_eq!(client.exchange(get("/next")).unwrap().text(), "/next");
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn an_early_answer_that_closes_arrives_before_the_body_ends() {
    let origin = Origin::script(Identity::Good, |wire, number| {
        if number > 0 {
            let request = wire.read_request()?;
            return wire.send(ok(request.path()));
        }
        wire.read_head()?;
        wire.send("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")?;
        wire.finish();
        // It doesn't read on.
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n12345")
        .unwrap();
    let response = client.read_response("POST").unwrap();
    assert_eq!((response.status(), response.text().as_str()), (401, "no"));
    assert_eq!(response.header("connection").as_deref(), Some("close"));
    assert_eq!(client.read_to_end().0, b"");
    recorder.ends(1);
}

#[test]
fn a_body_cut_short_by_the_origin_is_cut_short_for_the_client() {
    for (head, ends) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart",
            "a length",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
            "chunks",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\npart",
            "a chunk",
        ),
    ] {
        for clean in [true, false] {
            for interest in [Interest::END, Interest::RESPONSE_DATA] {
                let origin = Origin::script(Identity::Good, move |wire, _| {
                    wire.read_request()?;
                    wire.send(head)?;
                    if clean {
                        wire.finish();
                    }
                    Ok(())
                });
                let recorder = Recorder::new(interest);
                let proxy = start_with(config(), [recorder.clone()]);
                let mut client = proxy.tls(&origin);
                client.send(get("/")).unwrap();
                let (got, ending) = client.read_to_end();
                assert_same(&got, head.as_bytes());
                assert_ne!(
                    ending,
                    Ending::Clean,
                    "{ends}: a close_notify would be a lie"
                );
                let outcome = recorder.ends(1).remove(0);
                let error = outcome.error.unwrap();
                assert_eq!(outcome.kind, OutcomeKind::Failed);
                assert_eq!(
                    (error.side, error.class),
                    (Side::Upstream, ErrorClass::Reset)
                );
            }
        }
    }
}

#[test]
fn an_origin_that_closes_before_it_answers_is_a_502() {
    for part in ["", "HTTP/1.1 200 OK\r\nX: "] {
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send(part)?;
            wire.finish();
            Ok(())
        });
        let proxy = start(config());
        let response = proxy.tls(&origin).exchange(get("/")).unwrap();
        assert_eq!(response.status(), 502);
        assert_eq!(proxy.metrics().retries, 0);
    }
}

#[test]
fn a_body_until_close_ends_as_the_origin_ended_it() {
    for (clean, expected) in [(true, Ending::Clean), (false, Ending::Truncated)] {
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            wire.send(pattern(100_000))?;
            if clean {
                wire.finish();
            } else {
                wire.finish_truncated();
            }
            wire.read_to_end();
            Ok(())
        });
        let proxy = start(config());
        let mut client = proxy.tls(&origin);
        client.send(get("/")).unwrap();
        let head = client.read_head().unwrap();
        assert_same(&head, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        let (body, ending) = client.read_to_end();
        assert_same(&body, &pattern(100_000));
        assert_eq!(ending, expected);
    }
}

#[test]
fn a_body_until_close_that_is_collected_gets_a_length() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send("HTTP/1.1 200 OK\r\n\r\nall of it")?;
        wire.finish();
        Ok(())
    });
    let proxy = start_with(config(), [Recorder::new(Interest::RESPONSE_BODY)]);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(response.header("content-length").as_deref(), Some("9"));
    assert_eq!(response.text(), "all of it");
}

#[test]
fn an_http_1_0_client_is_served_and_its_connection_closed() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client
        .send("GET /old HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    assert_eq!(client.read_response("GET").unwrap().text(), "/old");
    assert_eq!(client.read_to_end(), (Vec::new(), Ending::Clean));
    assert_same(
        &origin.received_all(),
        b"GET /old HTTP/1.0\r\nHost: localhost\r\n\r\n",
    );
}

#[test]
fn an_http_1_0_client_that_asks_for_it_keeps_its_connection() {
    let origin = Origin::http(Identity::Good, |request| {
        let path = request.path();
        format!(
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n{path}",
            path.len()
        )
        .into_bytes()
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    for path in ["/1", "/2"] {
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.exchange(request).unwrap().text(), path);
    }
}

#[test]
fn an_http_1_0_client_gets_no_interim_response() {
    let origin = Origin::http(Identity::Good, |_| {
        [&b"HTTP/1.1 103 Early Hints\r\n\r\n"[..], &ok("x")].concat()
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client
        .send("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    // Only the close is news, and the client asked for it by its version.
    assert_same(
        &client.read_to_end().0,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx",
    );
}

#[test]
fn an_http_1_0_origin_is_understood() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold")?;
        wire.finish();
        Ok(())
    });
    let proxy = start(config());
    for _ in 0..2 {
        let mut client = proxy.tls(&origin);
        let response = client.exchange(get("/")).unwrap();
        assert_eq!(response.start_line(), "HTTP/1.0 200 OK");
        assert_eq!(response.text(), "old");
    }
    // Nothing was kept that the origin doesn't keep.
    assert_eq!(origin.accepted(), 2);
    assert_eq!(proxy.metrics().retries, 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::http(Identity::Good, |request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        ok(format!("{}{body}", request.path()))
    });
    for interest in [
        Interest::NONE,
        Interest::HEADS | Interest::DATA,
        Interest::BODIES,
    ] {
        let proxy = start_with(config(), [Recorder::new(interest)]);
        let mut client = proxy.tls(&origin);
        let mut all = String::new();
        for n in 0..20 {
            all.push_str(&get(&format!("/{n}")));
            all.push_str(&format!(
                "POST /p{n} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n!"
            ));
            all.push_str(&format!(
                "POST /c{n} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n?\r\n0\r\n\r\n"
            ));
        }
        client.send(all).unwrap();
        for n in 0..20 {
            for expected in [format!("/{n}"), format!("/p{n}!"), format!("/c{n}?")] {
                assert_eq!(client.read_response("GET").unwrap().text(), expected);
            }
        }
    }
}

/// A FIN may be half a close or a whole one; like most servers we take it for a whole one.
#[test]
fn a_client_that_ends_its_direction_before_the_answer_has_gone() {
    let (reached, reaches) = mpsc::channel();
    let (left, leaves) = mpsc::channel();
    let (reached, left) = (Mutex::new(reached), Mutex::new(left));
    let origin = Origin::script(Identity::Good, move |wire, _| {
        wire.read_request()?;
        reached.lock().unwrap().send(()).unwrap();
        wire.read_to_end();
        left.lock().unwrap().send(()).unwrap();
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    reaches.recv().unwrap();
    client.finish();
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Reset));
    // The origin isn't left to work for nobody.
    leaves.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn connection_close_from_either_side_closes_the_clients_connection() {
    let origin = Origin::http(Identity::Good, |request| match request.path().as_str() {
        "/close" => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
        path => ok(path),
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    client.exchange(get("/close")).unwrap();
    assert_eq!(client.read_to_end(), (Vec::new(), Ending::Clean));

    let mut client = proxy.tls(&origin);
    let response = client
        .exchange("GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(response.text(), "/x");
    assert_eq!(client.read_to_end(), (Vec::new(), Ending::Clean));
}

#[test]
fn an_upgrade_becomes_a_tunnel_for_opaque_bytes_both_ways() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        let request = wire.read_request()?;
        assert_eq!(request.header("upgrade").as_deref(), Some("chat"));
        // The first bytes of the other protocol come with the answer.
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nhello\0")?;
        let question = wire.read_exact(10)?;
        wire.send(question.iter().rev().copied().collect::<Vec<_>>())?;
        wire.read_to_end();
        wire.send("bye")?;
        wire.finish();
        Ok(())
    });
    for interest in [
        Interest::END,
        Interest::HEADS | Interest::DATA,
        Interest::BODIES,
    ] {
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        client
            .send("GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
            .unwrap();
        let head = client.read_head().unwrap();
        assert!(head.starts_with(b"HTTP/1.1 101 Switching Protocols\r\n"));
        assert_eq!(client.read_exact(6).unwrap(), b"hello\0");
        client.send(b"\xff\0GET / \r\n").unwrap();
        assert_eq!(client.read_exact(10).unwrap(), b"\n\r / TEG\0\xff");
        // One direction ends, the other goes on.
        client.finish();
        assert_eq!(client.read_to_end(), (b"bye".to_vec(), Ending::Clean));
        assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Upgraded);
        recorder.closed(1);
    }
}

#[test]
fn a_refused_upgrade_is_an_ordinary_response() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    let response = client
        .exchange(
            "GET /no HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n",
        )
        .unwrap();
    assert_eq!((response.status(), response.text().as_str()), (200, "/no"));
    assert_eq!(client.exchange(get("/next")).unwrap().text(), "/next");
}

#[test]
fn an_upgrade_that_nobody_asked_for_is_the_origins_failure() {
    let origin = Origin::http(Identity::Good, |_| {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n".to_vec()
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/")).unwrap().status(), 502);
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!(
        (error.side, error.class),
        (Side::Upstream, ErrorClass::Protocol)
    );
}

#[test]
fn bytes_after_a_response_are_never_given_to_the_next_request() {
    let origin = Origin::script(Identity::Good, |wire, number| {
        wire.read_request()?;
        wire.send([&ok("first")[..], &ok("stray")].concat())?;
        if number == 0 {
            wire.read_to_end();
        }
        Ok(())
    });
    let proxy = start(config());
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(get("/1")).unwrap().text(), "first");
    assert_eq!(client.exchange(get("/2")).unwrap().text(), "first");
    assert_eq!(origin.accepted(), 2);
}

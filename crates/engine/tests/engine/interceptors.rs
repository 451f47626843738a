//! What interceptors can do to a flow, and that the bytes follow.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tollgate_flow::{
    Direction, ErrorClass, HeaderList, Interest, KeepAlive, OutcomeKind, Reply, Side, Step, Target,
};

use crate::support::*;

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

const UPLOAD: &str = "POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello";

#[test]
fn a_reply_in_request_never_contacts_the_origin() {
    let origin = Origin::echo_path(Identity::Plain);
    let hook = Hook::new(Interest::REQUEST).on_request(|_| {
        let reply = Reply::new(418).header("X-By", "hook").unwrap();
        Step::respond(reply.text("short and stout"))
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.plain();
    let authority = origin.authority();
    for method in ["GET", "HEAD", "POST"] {
        let request = format!("{method} http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        let response = client.exchange(request).unwrap();
        assert_eq!(response.start_line(), "HTTP/1.1 418 I'm a teapot");
        assert_eq!(response.header("x-by").as_deref(), Some("hook"));
        assert_eq!(response.header("content-length").as_deref(), Some("15"));
        let text = if method == "HEAD" {
            ""
        } else {
            "short and stout"
        };
        assert_eq!(response.text(), text);
    }
    assert_eq!(origin.accepted(), 0);
    for outcome in recorder.ends(3) {
        assert_eq!(outcome.kind, OutcomeKind::Answered);
    }
    assert_eq!(proxy.metrics().flows_answered, 3);
}

#[test]
fn a_reply_to_an_upload_that_is_under_way_arrives() {
    let origin = Origin::echo_path(Identity::Good);
    let hook = Hook::new(Interest::REQUEST).on_request(|_| Step::respond(Reply::new(403)));
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        .unwrap();
    let response = client.read_response("POST").unwrap();
    assert_eq!(response.status(), 403);
    // The body could not be told from a next request.
    assert_eq!(response.header("connection").as_deref(), Some("close"));
    assert_eq!(origin.received_all(), b"");
}

#[test]
fn edits_of_the_request_head_are_what_the_origin_gets() {
    let origin = Origin::echo_path(Identity::Good);
    let hook = Hook::new(Interest::REQUEST).on_request(|flow| {
        flow.request.head.set_method(b"PATCH").unwrap();
        flow.request.head.set_target(b"/edited?x=1").unwrap();
        let headers = flow.request.headers_mut();
        headers.set(b"user-agent", b"tollgate").unwrap();
        headers.remove("x-secret");
        headers.append(b"X-New", b"caf\xe9").unwrap();
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let response = proxy
        .tls(&origin)
        .exchange("PUT /up HTTP/1.1\r\nhOsT: localhost\r\nX-Secret: 1\r\nUSER-Agent:  curl\r\nX:  odd \r\nContent-Length: 5\r\n\r\nhello")
        .unwrap();
    assert_eq!(response.text(), "/edited?x=1");
    assert_same(
        &origin.received_all(),
        b"PATCH /edited?x=1 HTTP/1.1\r\nhOsT: localhost\r\nUSER-Agent: tollgate\r\nX:  odd \r\nContent-Length: 5\r\nX-New: caf\xe9\r\n\r\nhello",
    );
}

#[test]
fn a_changed_target_goes_to_the_other_origin() {
    let (a, b) = (
        Origin::echo_path(Identity::Good),
        Origin::http(Identity::Good, |_| ok("b")),
    );
    let port = b.address().port();
    let hook = Hook::new(Interest::REQUEST).on_request(move |flow| {
        if flow.request.path() == b"/b" {
            flow.request.target = Target::new("localhost", port);
        }
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&a);
    for (path, text) in [("/a", "/a"), ("/b", "b"), ("/a", "/a"), ("/b", "b")] {
        assert_eq!(client.exchange(get(path)).unwrap().text(), text);
    }
    assert_same(
        &b.received().concat(),
        [get("/b"), get("/b")].concat().as_bytes(),
    );
    assert!(!a.received().concat().windows(2).any(|w| w == b"/b"));
}

#[test]
fn edits_of_the_response_head_are_what_the_client_gets() {
    let origin = Origin::http(Identity::Good, |_| {
        b"HTTP/1.1 200 OK\r\nServer: x\r\nA:  1\r\nContent-Length: 2\r\n\r\nhi".to_vec()
    });
    let hook = Hook::new(Interest::RESPONSE).on_response(|flow| {
        let response = flow.response.as_mut().unwrap();
        response.head.set_status(203, b"Because").unwrap();
        response.headers_mut().remove("server");
        response.headers_mut().append(b"X-Seen", b"1").unwrap();
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    let expected = b"HTTP/1.1 203 Because\r\nA:  1\r\nContent-Length: 2\r\nX-Seen: 1\r\n\r\nhi";
    for _ in 0..2 {
        client.send(get("/")).unwrap();
        assert_same(&client.read_exact(expected.len()).unwrap(), expected);
    }
}

#[test]
fn a_reply_in_response_replaces_the_origins() {
    let origin = Origin::http(Identity::Good, |_| ok(pattern(100_000)));
    let hook = Hook::new(Interest::RESPONSE)
        .on_response(|_| Step::respond(Reply::new(451).text("not for you")));
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    for _ in 0..2 {
        let response = client.exchange(get("/")).unwrap();
        assert_eq!(
            (response.status(), response.text().as_str()),
            (451, "not for you")
        );
    }
}

#[test]
fn a_replaced_request_body_has_its_length_and_no_coding() {
    let origin = Origin::http(Identity::Good, |request| ok(&request.body));
    let hook = Hook::new(Interest::REQUEST_BODY).on_request(|flow| {
        let body = flow.request.body().unwrap().clone();
        flow.request.set_body([&body[..], b" and more"].concat());
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(UPLOAD).unwrap().text(), "hello and more");
    let chunked = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
    assert_eq!(client.exchange(chunked).unwrap().text(), "x and more");
    assert_same(
        &origin.received_all(),
        b"POST /up HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\n\r\nhello and more\
          POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx and more",
    );
}

#[test]
fn a_body_given_to_a_request_without_one_is_sent() {
    let origin = Origin::http(Identity::Good, |request| ok(&request.body));
    let hook = Hook::new(Interest::REQUEST_BODY).on_request(|flow| {
        flow.request.set_body("made up");
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    let request = "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(client.exchange(request).unwrap().text(), "made up");
}

#[test]
fn a_replaced_response_body_has_its_length_and_no_coding() {
    let chunked = b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nT: 1\r\n\r\n";
    let origin = Origin::http(Identity::Good, |request| match request.path().as_str() {
        "/chunked" => chunked.to_vec(),
        "/204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx".to_vec(),
    });
    let hook = Hook::new(Interest::RESPONSE_BODY).on_response(|flow| {
        let response = flow.response.as_mut().unwrap();
        assert_eq!(response.body().unwrap(), "x");
        response.set_body("longer than before");
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    for path in ["/length", "/chunked", "/length"] {
        let response = client.exchange(get(path)).unwrap();
        assert_same(
            &[response.head, response.raw_body].concat(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nlonger than before",
        );
    }
}

#[test]
fn a_collected_response_that_nobody_edits_keeps_its_framing_and_trailers() {
    let origin = Origin::http(Identity::Good, |_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\nX-Sum: 9\r\n\r\n".to_vec()
    });
    let seen = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&seen);
    let hook = Hook::new(Interest::RESPONSE_BODY).on_response(move |flow| {
        let response = flow.response.as_ref().unwrap();
        let trailer = response
            .trailers
            .as_ref()
            .and_then(|t| t.get("x-sum"))
            .map(<[u8]>::to_vec);
        *keep.lock().unwrap() = Some((response.body().unwrap().clone(), trailer));
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    let response = client.exchange(get("/")).unwrap();
    assert_eq!(response.text(), "abc");
    assert!(response.raw_body.ends_with(b"\r\n0\r\nX-Sum: 9\r\n\r\n"));
    assert_eq!(
        seen.lock().unwrap().take(),
        Some(("abc".into(), Some(b"9".to_vec())))
    );
}

#[test]
fn a_request_body_over_the_limit_is_a_413_and_never_reaches_the_origin() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.limits.body_limit = 1000;
    let proxy = start_with(config, [Recorder::new(Interest::REQUEST_BODY)]);
    let mut client = proxy.tls(&origin);
    let body = "x".repeat(1001);
    let request =
        format!("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n{body}");
    let response = client.exchange(request).unwrap();
    assert_eq!(response.status(), 413);
    assert!(response.text().contains("1000"), "{}", response.text());
    assert_eq!(origin.received_all(), b"");
}

#[test]
fn a_response_body_over_the_limit_streams_past_whole() {
    const SIZE: usize = 1 << 20;
    let origin = Origin::http(Identity::Good, |request| match request.path().as_str() {
        "/chunked" => {
            let mut out = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in pattern(SIZE).chunks(10_000) {
                out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                out.extend_from_slice(chunk);
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
            out
        }
        _ => ok(pattern(SIZE)),
    });
    let collected = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&collected);
    let hook = Hook::new(Interest::RESPONSE_BODY).on_response(move |flow| {
        let body = flow.response.as_ref().unwrap().body();
        count.fetch_add(usize::from(body.is_some()), Ordering::Relaxed);
        Step::Continue
    });
    let mut config = config();
    config.limits.body_limit = 1000;
    let recorder = Recorder::new(Interest::RESPONSE_DATA);
    let proxy = start_with(config, [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    for path in ["/length", "/chunked"] {
        assert_same(&client.exchange(get(path)).unwrap().body, &pattern(SIZE));
    }
    assert_eq!(collected.load(Ordering::Relaxed), 0);
    recorder.ends(2);
    let (pieces, last) = recorder.data(Direction::Response);
    assert_same(&pieces.concat(), &[pattern(SIZE), pattern(SIZE)].concat());
    assert_eq!(last, 2);
}

#[test]
fn a_streaming_edit_of_the_response_replaces_and_drops_pieces() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        loop {
            let framed = wire.read_request()?.path();
            wire.send(match framed.as_str() {
                "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            })?;
            for piece in ["keep", "edit", "drop"] {
                match framed.as_str() {
                    "/length" => wire.send(piece)?,
                    _ => wire.send(format!("4\r\n{piece}\r\n"))?,
                }
            }
            if framed != "/length" {
                wire.send("0\r\nX-Sum: 1\r\n\r\n")?;
            }
        }
    });
    // Pieces are as they come off the wire; edits by content, whatever the cut.
    let hook = Hook::new(Interest::EDIT_RESPONSE_DATA).on_data(|_, piece| {
        let text = String::from_utf8_lossy(piece.data);
        match text.as_ref() {
            _ if piece.last => Step::Replace("!".into()),
            "drop" => Step::Drop,
            text => Step::Replace(text.replace("edit", "edited").replace("drop", "").into()),
        }
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    for path in ["/length", "/chunked"] {
        let response = client.exchange(get(path)).unwrap();
        assert_eq!(response.header("content-length"), None);
        assert_eq!(
            response.header("transfer-encoding").as_deref(),
            Some("chunked")
        );
        assert_eq!(response.text(), "keepedited!");
        assert_eq!(
            response.raw_body.ends_with(b"X-Sum: 1\r\n\r\n"),
            path == "/chunked"
        );
    }
}

#[test]
fn a_streaming_edit_of_the_request_replaces_and_drops_pieces() {
    let origin = Origin::http(Identity::Good, |request| ok(&request.body));
    let hook = Hook::new(Interest::EDIT_REQUEST_DATA).on_data(|_, piece| {
        match String::from_utf8_lossy(piece.data).replace("secret", "[hidden]") {
            text if text.is_empty() => Step::Continue,
            text => Step::Replace(text.into()),
        }
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    let length = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\na secret key";
    assert_eq!(client.exchange(length).unwrap().text(), "a [hidden] key");
    let chunked = "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n8\r\na secret\r\n4\r\n key\r\n0\r\nT: 1\r\n\r\n";
    assert_eq!(client.exchange(chunked).unwrap().text(), "a [hidden] key");
    let received = origin.received_all();
    assert!(
        received.ends_with(b"0\r\nT: 1\r\n\r\n"),
        "{}",
        received.escape_ascii()
    );
    assert!(!received.windows(6).any(|w| w == b"secret"));
}

#[test]
fn a_streaming_edit_of_a_body_until_close_is_framed_for_the_client() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send("HTTP/1.1 200 OK\r\n\r\nabc")?;
        wire.finish();
        Ok(())
    });
    let hook = Hook::new(Interest::EDIT_RESPONSE_DATA).on_data(|_, piece| match piece.data {
        [] => Step::Continue,
        data => Step::Replace(data.to_ascii_uppercase().into()),
    });
    let proxy = start_with(config(), [hook.shared()]);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(
        response.header("transfer-encoding").as_deref(),
        Some("chunked")
    );
    assert_eq!(response.text(), "ABC");
    let mut client = proxy.tls(&origin);
    client
        .send("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let response = client.read_response("GET").unwrap();
    assert_eq!(response.header("transfer-encoding"), None);
    assert_eq!(response.text(), "ABC");
}

#[test]
fn an_edit_without_the_interest_for_it_is_ignored() {
    let origin = Origin::http(Identity::Good, |_| ok("as it was"));
    let hook = Hook::new(Interest::RESPONSE_DATA).on_data(|_, _| Step::Replace("changed".into()));
    let proxy = start_with(config(), [hook.shared()]);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_same(&[response.head, response.body].concat(), &ok("as it was"));
}

#[test]
fn observers_see_a_body_decoded_and_the_wire_keeps_it_coded() {
    let text = b"some text, ".repeat(10_000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&text).unwrap();
    let gzip = gzip.finish().unwrap();
    let coded = [
        format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            gzip.len()
        )
        .into_bytes(),
        gzip,
    ]
    .concat();
    let response = coded.clone();
    let origin = Origin::http(Identity::Good, move |_| response.clone());
    let recorder = Recorder::new(Interest::RESPONSE_DATA | Interest::DECODED);
    let raw = Recorder::new(Interest::RESPONSE_DATA);
    let proxy = start_with(config(), [recorder.clone(), raw.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    assert_same(&client.read_exact(coded.len()).unwrap(), &coded);
    recorder.ends(1);
    assert_same(&recorder.data(Direction::Response).0.concat(), &text);
    raw.ends(1);
    assert!(coded.ends_with(&raw.data(Direction::Response).0.concat()));
}

#[test]
fn a_hold_waits_and_then_does_what_its_future_says() {
    let origin = Origin::echo_path(Identity::Good);
    let (decide, decision) = tokio::sync::oneshot::channel();
    let decision = Mutex::new(Some(decision));
    let (asked, asks) = mpsc::channel();
    let asked = Mutex::new(asked);
    let hook = Hook::new(Interest::REQUEST).on_request(move |_| {
        let decision = decision.lock().unwrap().take().unwrap();
        asked.lock().unwrap().send(()).unwrap();
        Step::hold(
            async move {
                decision.await.unwrap();
                Step::edit(|flow| {
                    flow.request.headers_mut().set(b"X-Ok", b"1").unwrap();
                    Step::Continue
                })
            },
            PATIENCE,
            Step::close("nobody came"),
        )
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/held")).unwrap();
    asks.recv().unwrap();
    assert_eq!(origin.received_all(), b"");
    // A held flow holds nobody else.
    let bystander = Origin::echo_path(Identity::Plain);
    let authority = bystander.authority();
    proxy.tunnel(&authority);
    decide.send(()).unwrap();
    assert_eq!(client.read_response("GET").unwrap().text(), "/held");
    assert!(origin.received_all().ends_with(b"X-Ok: 1\r\n\r\n"));
    assert_eq!(proxy.metrics().hold_timeouts, 0);
}

#[test]
fn a_hold_past_its_deadline_gets_its_declared_answer() {
    let origin = Origin::echo_path(Identity::Good);
    let held = |answer: fn() -> Step| {
        Hook::new(Interest::REQUEST)
            .on_request(move |_| Step::hold(std::future::pending(), SHORT, answer()))
    };
    let hook = held(|| Step::respond(Reply::new(504).text("too late")));
    let proxy = start_with(config(), [hook.shared()]);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(
        (response.status(), response.text().as_str()),
        (504, "too late")
    );
    assert_eq!(proxy.metrics().hold_timeouts, 1);
    assert_eq!(origin.received_all(), b"");

    let proxy = start_with(config(), [held(|| Step::Continue).shared()]);
    let response = proxy.tls(&origin).exchange(get("/passes")).unwrap();
    assert_eq!(response.text(), "/passes");
}

#[test]
fn a_hold_in_the_response_and_in_data_delays_and_no_more() {
    let origin = Origin::echo_path(Identity::Good);
    let later = || {
        Step::hold(
            async {
                tokio::task::yield_now().await;
                Step::Continue
            },
            PATIENCE,
            Step::Drop,
        )
    };
    let hook = Hook::new(Interest::HEADS | Interest::DATA)
        .on_response(move |_| later())
        .on_data(move |_, _| later());
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    for path in ["/1", "/2"] {
        assert_eq!(client.exchange(get(path)).unwrap().text(), path);
    }
    assert_eq!(recorder.ends(2)[1].kind, OutcomeKind::Completed);
}

#[test]
fn a_held_first_piece_lets_the_head_go() {
    let origin = Origin::http(Identity::Good, |_| ok("body"));
    let release = Arc::new(Notify::new());
    let held = Arc::clone(&release);
    let hook = Hook::new(Interest::RESPONSE_DATA).on_data(move |_, piece| {
        if piece.last {
            return Step::Continue;
        }
        let held = Arc::clone(&held);
        let wait = async move {
            held.notified().await;
            Step::Continue
        };
        Step::hold(wait, PATIENCE, Step::Drop)
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    assert!(client.read_head().unwrap().starts_with(b"HTTP/1.1 200"));
    release.notify_one();
    assert_eq!(client.read_exact(4).unwrap(), b"body");
    assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Completed);
}

#[test]
fn a_client_that_waits_for_a_held_piece_gets_signs_of_life() {
    const SIGN: &[u8] = b"8\r\n: hold\n\n\r\n";
    for chunked in [true, false] {
        let origin = Origin::http(Identity::Good, move |_| match chunked {
            true => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
                .to_vec(),
            false => ok("body"),
        });
        let release = Arc::new(Notify::new());
        let held = Arc::clone(&release);
        let hook = Hook::new(Interest::EDIT_RESPONSE_DATA).on_data(move |_, piece| {
            if piece.last {
                return Step::Continue;
            }
            let held = Arc::clone(&held);
            let wait = async move {
                held.notified().await;
                Step::Replace("decided".into())
            };
            Step::hold(wait, PATIENCE, Step::Drop).keeping_alive(Some(KeepAlive {
                every: Duration::from_millis(20),
                bytes: ": hold\n\n".into(),
            }))
        });
        let proxy = start_with(config(), [hook.shared()]);
        let mut client = proxy.tls(&origin);
        client.send(get("/")).unwrap();
        client.read_head().unwrap();
        for _ in 0..3 {
            assert_eq!(client.read_exact(SIGN.len()).unwrap(), SIGN);
        }
        release.notify_one();
        let mut rest = Vec::new();
        while !rest.ends_with(b"0\r\n\r\n") {
            rest.extend(client.read_exact(1).unwrap());
        }
        let mut rest = rest.as_slice();
        while let Some(behind) = rest.strip_prefix(SIGN) {
            rest = behind;
        }
        assert_eq!(rest, b"7\r\ndecided\r\n0\r\n\r\n");
    }
}

#[test]
fn a_hold_ends_when_its_client_leaves() {
    let origin = Origin::echo_path(Identity::Good);
    let (asked, asks) = mpsc::channel();
    let asked = Mutex::new(asked);
    let hook = Hook::new(Interest::REQUEST).on_request(move |_| {
        asked.lock().unwrap().send(()).unwrap();
        Step::hold(
            std::future::pending(),
            Duration::from_secs(3600),
            Step::Drop,
        )
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    asks.recv().unwrap();
    client.reset();
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Reset));
}

#[test]
fn drop_and_close_end_the_connection_without_an_answer() {
    type Case = (fn() -> Step, Option<&'static str>);
    let steps: [Case; 2] = [
        (|| Step::Drop, None),
        (|| Step::close("because of me"), Some("because of me")),
    ];
    for (step, reason) in steps {
        for interest in [Interest::REQUEST, Interest::RESPONSE] {
            let origin = Origin::echo_path(Identity::Good);
            let hook = Hook::new(interest)
                .on_request(move |_| step())
                .on_response(move |_| step());
            let recorder = Recorder::new(Interest::END);
            let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
            let mut client = proxy.tls(&origin);
            client.send(get("/")).unwrap();
            assert_eq!(client.read_to_end().0, b"");
            let outcome = recorder.ends(1).remove(0);
            assert_eq!(outcome.kind, OutcomeKind::Dropped);
            let why = outcome.error.map(|e| e.message.into_owned());
            assert_eq!(why.as_deref(), reason);
            assert_eq!(
                origin.received_all().is_empty(),
                interest == Interest::REQUEST
            );
            recorder.closed(1);
        }
    }
}

#[test]
fn close_in_data_cuts_the_response_where_it_is() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n")?;
        wire.send("6\r\nsecret\r\n0\r\n\r\n")
    });
    let hook = Hook::new(Interest::RESPONSE_DATA).on_data(|_, piece| {
        if piece.data.windows(6).any(|w| w == b"secret") {
            return Step::close("a secret");
        }
        Step::Continue
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/")).unwrap();
    let (got, ending) = client.read_to_end();
    assert!(!got.windows(6).any(|w| w == b"secret"));
    assert!(!got.ends_with(b"0\r\n\r\n"));
    assert_ne!(ending, Ending::Clean);
    assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Dropped);
}

#[test]
fn interceptors_run_in_the_order_in_which_they_were_added() {
    let origin = Origin::http(Identity::Good, |_| ok("x"));
    let tagging = |tag: &'static str| {
        let append = move |headers: &mut HeaderList| {
            let so_far = headers.get("x-order").unwrap_or_default();
            let value = [so_far, tag.as_bytes()].concat();
            headers.set(b"X-Order", &value).unwrap();
        };
        Hook::new(Interest::HEADS | Interest::EDIT_RESPONSE_DATA)
            .on_request(move |flow| {
                append(flow.request.headers_mut());
                Step::Continue
            })
            .on_response(move |flow| {
                append(flow.response.as_mut().unwrap().headers_mut());
                Step::Continue
            })
            .on_data(move |_, piece| match piece.data {
                [] => Step::Continue,
                data => Step::Replace([data, tag.as_bytes()].concat().into()),
            })
            .shared()
    };
    let proxy = start_with(config(), [tagging("1"), tagging("2"), tagging("3")]);
    let response = proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(response.header("x-order").as_deref(), Some("123"));
    assert_eq!(response.text(), "x123");
    let received = String::from_utf8(origin.received_all()).unwrap();
    assert!(received.contains("X-Order: 123\r\n"), "{received}");
}

#[test]
fn what_the_first_answers_the_second_is_not_asked() {
    let origin = Origin::echo_path(Identity::Good);
    let first = Hook::new(Interest::REQUEST).on_request(|_| Step::respond(Reply::new(403)));
    let second = Recorder::new(Interest::HEADS);
    let proxy = start_with(config(), [first.shared(), second.clone()]);
    proxy.tls(&origin).exchange(get("/")).unwrap();
    assert_eq!(second.ends(1)[0].kind, OutcomeKind::Answered);
    assert!(!second.trace().contains(&"request /".to_owned()));
}

#[test]
fn the_end_comes_once_when_the_client_aborts_in_the_middle() {
    let (sent, sends) = mpsc::channel();
    let sent = Mutex::new(sent);
    let origin = Origin::script(Identity::Good, move |wire, _| {
        wire.read_head()?;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\npart")?;
        sent.lock().unwrap().send(()).unwrap();
        wire.read_to_end();
        Ok(())
    });
    for request in [
        get("/"),
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\npart".to_owned(),
    ] {
        let recorder = Recorder::new(Interest::HEADS | Interest::DATA);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        client.send(request).unwrap();
        sends.recv().unwrap();
        client.read_until(b"part").unwrap();
        client.reset();
        recorder.closed(1);
        let ends = recorder.ends(1);
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0].kind, OutcomeKind::Failed);
        let error = ends[0].error.clone().unwrap();
        assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Reset));
        let metrics = proxy.metrics();
        assert_eq!((metrics.flows_active, metrics.flows_failed), (0, 1));
    }
}

#[test]
fn a_hook_that_panics_in_data_cuts_and_the_worker_lives_on() {
    let origin = Origin::echo_path(Identity::Good);
    let hook = Hook::new(Interest::RESPONSE_DATA).on_data(|flow, _| {
        if flow.request.path() == b"/bad" {
            panic!("a bug in a hook");
        }
        Step::Continue
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(get("/bad")).unwrap();
    let (got, ending) = client.read_to_end();
    assert!(!got.ends_with(b"/bad"));
    assert_ne!(ending, Ending::Clean);
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!(
        (error.side, error.class),
        (Side::Proxy, ErrorClass::Interceptor)
    );
    assert_eq!(
        proxy.tls(&origin).exchange(get("/good")).unwrap().text(),
        "/good"
    );
}

//! What interceptors see of streams, and can do to them.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tollgate_flow::{
    Direction, ErrorClass, Flow, Interceptor, Interest, KeepAlive, OutcomeKind, Piece, Reply,
    Scheme, Side, Step, Target,
};

use crate::support::http2::{self, H2Origin, read_exact, response, run, send, until};
use crate::support::*;

/// Answers with the body of the request.
fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn echo() -> H2Origin {
    H2Origin::serve(|mut call| async move {
        let (body, _) = call.body().await?;
        call.answer(200, body).await
    })
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_blocked_request_shows_the_origin_neither_head_nor_body() {
    let origin = echo();
    for interest in [Interest::REQUEST, Interest::REQUEST_BODY] {
        let hook = Hook::new(interest).on_request(|flow| match flow.request.path() {
            b"/block" => Step::respond(
                Reply::new(403)
                    .header("X-By", "hook")
                    .unwrap()
                    .text("not this"),
            ),
            _ => Step::Continue,
        });
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
        let before = origin.heads().len();
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            for body in ["", "with a body"] {
                let request = client.request("POST", "/block");
                let answer = client.call(request, body).await.unwrap();
                assert_eq!((answer.status, answer.text().as_str()), (403, "not this"));
                assert_eq!(answer.header("x-by"), Some("hook"));
                assert_eq!(answer.header("content-length"), Some("8"));
            }
            let request = client.request("HEAD", "/block");
            let answer = client.call(request, "").await.unwrap();
            assert_eq!((answer.status, answer.body.len()), (403, 0));
            assert_eq!(origin.heads().len(), before);
            let request = client.request("POST", "/pass");
            assert_eq!(client.call(request, "x").await.unwrap().text(), "x");
        });
        let heads = origin.heads();
        assert_eq!(heads.len(), before + 1);
        assert_eq!(heads[before].uri.path(), "/pass");
        for outcome in &recorder.ends(4)[..3] {
            assert_eq!(outcome.kind, OutcomeKind::Answered);
        }
        assert_eq!(proxy.metrics().flows_answered, 3);
    }
}

#[test]
fn a_reply_comes_before_an_upload_has_ended() {
    let origin = echo();
    let hook = Hook::new(Interest::REQUEST).on_request(|_| Step::respond(Reply::new(403)));
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/");
        let (answer, _stream) = client.begin(request, false).await.unwrap();
        assert_eq!(http2::answer(answer).await.unwrap().status, 403);
    });
    assert_eq!(origin.heads().len(), 0);
}

#[test]
fn hooks_come_in_order_and_the_end_once() {
    let origin = echo();
    let recorder = Recorder::new(Interest::HEADS | Interest::DATA);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        for path in ["/a", "/b"] {
            let request = client.request("POST", path);
            assert_eq!(client.call(request, "body").await.unwrap().text(), "body");
            let ends = || {
                recorder
                    .trace()
                    .last()
                    .is_some_and(|e| e.starts_with("end"))
            };
            until("the flow ends", ends).await;
        }
        client.abort();
    });
    recorder.closed(1);
    let mut expected = vec!["opened".to_owned(), "connect".into(), "tls".into()];
    for path in ["/a", "/b"] {
        expected.push(format!("request {path}"));
        expected.extend(
            [
                "request data false",
                "request data true",
                "response 200",
                "response data false",
                "response data true",
            ]
            .map(str::to_owned),
        );
        expected.push(format!("end {path} Completed"));
    }
    expected.push("closed".into());
    assert_eq!(recorder.trace(), expected);
    assert_eq!(
        recorder.data(Direction::Request).0,
        [b"body".to_vec(), b"body".to_vec()]
    );
}

#[test]
fn every_stream_of_many_ends_once() {
    const STREAMS: usize = 50;
    let origin = echo();
    let recorder = Recorder::new(Interest::HEADS | Interest::BODIES);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let calls: Vec<_> = (0..STREAMS)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move {
                    let request = client.request("POST", &format!("/{n}"));
                    let body = pattern(10_000 + n);
                    let answer = client.call(request, body.clone()).await.unwrap();
                    assert_same(&answer.body, &body);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        client.abort();
    });
    recorder.closed(1);
    let trace = recorder.trace();
    for n in 0..STREAMS {
        let end = format!("end /{n} Completed");
        assert_eq!(trace.iter().filter(|e| **e == end).count(), 1, "{end}");
    }
    assert_eq!(recorder.ends(STREAMS).len(), STREAMS);
}

#[test]
fn edits_of_the_request_head_are_what_the_origin_gets() {
    let origin = H2Origin::echo_path();
    let hook = Hook::new(Interest::REQUEST).on_request(|flow| {
        flow.request.head.set_method(b"PATCH").unwrap();
        flow.request.head.set_target(b"/edited?x=1").unwrap();
        let headers = flow.request.headers_mut();
        headers.set(b"user-agent", b"tollgate").unwrap();
        headers.remove("x-secret");
        headers.append(b"X-New", b"caf\xe9").unwrap();
        headers.append(b"Connection", b"close").unwrap();
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client
            .request("PUT", "/up")
            .header("x-secret", "1")
            .header("user-agent", "client")
            .header("x-kept", "1");
        assert_eq!(
            client.call(request, "body").await.unwrap().text(),
            "/edited"
        );
    });
    let head = &origin.heads()[0];
    assert_eq!(head.method, "PATCH");
    assert_eq!(
        head.uri.to_string(),
        format!("https://{}/edited?x=1", origin.authority())
    );
    assert_eq!(head.headers["user-agent"], "tollgate");
    assert_eq!(head.headers["x-kept"], "1");
    assert_eq!(head.headers["x-new"].as_bytes(), b"caf\xe9");
    for gone in ["x-secret", "connection", "host"] {
        assert!(!head.headers.contains_key(gone), "{gone}");
    }
}

#[test]
fn an_edited_host_is_the_authority() {
    let origin = H2Origin::echo_path();
    let hook = Hook::new(Interest::REQUEST).on_request(|flow| {
        let headers = flow.request.headers_mut();
        headers.set(b"host", b"other.example").unwrap();
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
    });
    assert_eq!(origin.heads()[0].uri.authority().unwrap(), "other.example");
}

#[test]
fn a_changed_target_goes_to_the_other_origin() {
    let a = H2Origin::echo_path();
    let b = H2Origin::serve(|mut call| async move { call.answer(200, "b").await });
    let port: u16 = b.authority().rsplit(':').next().unwrap().parse().unwrap();
    let hook = Hook::new(Interest::REQUEST).on_request(move |flow| {
        if flow.request.path() == b"/b" {
            flow.request.target = Target::new("localhost", port);
        }
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&a.authority()).await;
        for (path, text) in [("/a", "/a"), ("/b", "b"), ("/a", "/a"), ("/b", "b")] {
            assert_eq!(client.get(path).await.unwrap().text(), text);
        }
    });
    assert_eq!((a.heads().len(), b.heads().len()), (2, 2));
    assert_eq!((a.accepted(), b.accepted()), (1, 1));
}

#[test]
fn edits_of_the_response_head_are_what_the_client_gets() {
    let origin = H2Origin::serve(|mut call| async move {
        let fields = [("server", "x"), ("a", "1"), ("content-length", "2")];
        let mut stream = call.begin(response(200, &fields))?;
        stream.send_data("hi".into(), true)
    });
    let hook = Hook::new(Interest::RESPONSE).on_response(|flow| {
        let response = flow.response.as_mut().unwrap();
        response.head.set_status(203, b"").unwrap();
        response.headers_mut().remove("server");
        response.headers_mut().append(b"X-Seen", b"1").unwrap();
        response.headers_mut().append(b"Connection", b"x").unwrap();
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let answer = client.get("/").await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (203, "hi"));
        assert_eq!(answer.header("a"), Some("1"));
        assert_eq!(answer.header("x-seen"), Some("1"));
        assert_eq!(answer.header("content-length"), Some("2"));
        assert_eq!(
            (answer.header("server"), answer.header("connection")),
            (None, None)
        );
    });
}

#[test]
fn a_reply_in_response_replaces_the_origins() {
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[("x-origin", "1")]))?;
        let sent = send(&mut stream, pattern(1_000_000).into(), true).await;
        // It is cut off, or was done before.
        drop(sent);
        Ok(())
    });
    let hook = Hook::new(Interest::RESPONSE)
        .on_response(|_| Step::respond(Reply::new(451).text("not for you")));
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        for _ in 0..20 {
            let answer = client.get("/").await.unwrap();
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (451, "not for you")
            );
            assert_eq!(answer.header("x-origin"), None);
        }
    });
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_replaced_request_body_has_its_length_and_no_coding() {
    let origin = echo();
    let hook = Hook::new(Interest::REQUEST_BODY).on_request(|flow| {
        let body = flow.request.body().unwrap().clone();
        flow.request.set_body([&body[..], b" and more"].concat());
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client
            .request("POST", "/")
            .header("content-encoding", "gzip")
            .header("content-length", "5");
        let answer = client.call(request, "hello").await.unwrap();
        assert_eq!(answer.text(), "hello and more");
        let answer = client.call(client.request("POST", "/"), "x").await.unwrap();
        assert_eq!(answer.text(), "x and more");
        // And one that had none.
        let answer = client.call(client.request("POST", "/"), "").await.unwrap();
        assert_eq!(answer.text(), " and more");
    });
    for (head, length) in origin.heads().iter().zip(["14", "10", "9"]) {
        assert_eq!(head.headers["content-length"], length);
        assert!(!head.headers.contains_key("content-encoding"));
    }
}

#[test]
fn a_replaced_response_body_has_its_length_and_no_coding() {
    let origin = H2Origin::serve(|mut call| async move {
        let length = call.head.uri.path() == "/length";
        let mut fields = vec![("content-encoding", "br")];
        fields.extend(length.then_some(("content-length", "1")));
        let mut stream = call.begin(response(200, &fields))?;
        stream.send_data("x".into(), true)
    });
    let hook = Hook::new(Interest::RESPONSE_BODY).on_response(|flow| {
        let response = flow.response.as_mut().unwrap();
        assert_eq!(response.body().unwrap(), "x");
        response.set_body("longer than before");
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        for path in ["/length", "/none"] {
            let answer = client.get(path).await.unwrap();
            assert_eq!(answer.text(), "longer than before");
            assert_eq!(answer.header("content-length"), Some("18"));
            assert_eq!(answer.header("content-encoding"), None);
        }
    });
}

/// What an echo of body and trailers gives when interceptors have this interest.
fn echoed_with_trailers(interest: Interest) -> http2::Answer {
    let origin = H2Origin::serve(|mut call| async move {
        let (body, trailers) = call.body().await?;
        let mut stream = call.begin(response(200, &[("content-type", "text/plain")]))?;
        send(&mut stream, body.into(), false).await?;
        stream.send_trailers(trailers.unwrap_or_default())
    });
    let proxy = start_with(config(), [Recorder::new(interest)]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/");
        let (answer, mut stream) = client.begin(request, false).await.unwrap();
        stream.send_data("body".into(), false).unwrap();
        stream
            .send_trailers(http2::fields(&[("x-sum", "4")]))
            .unwrap();
        http2::answer(answer).await.unwrap()
    })
}

#[test]
fn watched_bodies_keep_their_trailers() {
    for interest in [
        Interest::DATA,
        Interest::EDIT_REQUEST_DATA,
        Interest::EDIT_RESPONSE_DATA,
    ] {
        let answer = echoed_with_trailers(interest);
        assert_eq!(answer.text(), "body");
        assert_eq!(answer.trailers.unwrap()["x-sum"], "4", "{interest:?}");
    }
}

#[test]
fn a_collected_request_keeps_its_trailers() {
    let answer = echoed_with_trailers(Interest::REQUEST_BODY);
    assert_eq!(answer.text(), "body");
    assert_eq!(answer.trailers.unwrap_or_default()["x-sum"], "4");
}

#[test]
fn a_collected_response_keeps_its_trailers() {
    let answer = echoed_with_trailers(Interest::RESPONSE_BODY);
    assert_eq!(answer.text(), "body");
    assert_eq!(answer.trailers.unwrap_or_default()["x-sum"], "4");
}

#[test]
fn a_request_body_over_the_limit_is_a_413_and_never_reaches_the_origin() {
    let origin = echo();
    let mut config = config();
    config.limits.body_limit = 1000;
    let proxy = start_with(config, [Recorder::new(Interest::REQUEST_BODY)]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/");
        let answer = client.call(request, vec![b'x'; 1001]).await.unwrap();
        assert_eq!(answer.status, 413);
        let request = client.request("POST", "/");
        let answer = client.call(request, vec![b'x'; 1000]).await.unwrap();
        assert_eq!(answer.body.len(), 1000);
    });
    assert_eq!(origin.heads().len(), 1);
}

#[test]
fn a_response_body_over_the_limit_streams_past_whole() {
    const SIZE: usize = 1 << 20;
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[("content-type", "text/plain")]))?;
        send(&mut stream, pattern(SIZE).into(), false).await?;
        stream.send_trailers(http2::fields(&[("x-sum", "1")]))
    });
    let mut config = config();
    config.limits.body_limit = 100_000;
    let collected = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&collected);
    let hook = Hook::new(Interest::RESPONSE_BODY).on_response(move |flow| {
        if flow.response.as_ref().unwrap().body().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
        }
        Step::Continue
    });
    let proxy = start_with(config, [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let answer = client.get("/").await.unwrap();
        assert_same(&answer.body, &pattern(SIZE));
        assert_eq!(answer.trailers.unwrap()["x-sum"], "1");
    });
    assert_eq!(collected.load(Ordering::SeqCst), 0);
}

#[test]
fn an_editor_sees_a_body_over_the_limit_from_its_first_byte() {
    const SIZE: usize = 300_000;
    let origin = H2Origin::serve(|mut call| async move {
        let length = SIZE.to_string();
        let mut stream = call.begin(response(200, &[("content-length", &length)]))?;
        send(&mut stream, vec![b'a'; SIZE].into(), true).await
    });
    let mut config = config();
    config.limits.body_limit = 100_000;
    let hook =
        Hook::new(Interest::RESPONSE_BODY | Interest::EDIT_RESPONSE_DATA).on_data(|_, piece| {
            match piece.last {
                true => Step::Replace("end".into()),
                false => Step::Replace(vec![b'b'; piece.data.len()].into()),
            }
        });
    let proxy = start_with(config, [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.header("content-length"), None);
        assert_same(&answer.body, &[&[b'b'; SIZE][..], b"end"].concat());
    });
}

#[test]
fn who_gives_up_editing_leaves_the_framing_as_it_is() {
    struct GivesUp;
    impl Interceptor for GivesUp {
        fn interest(&self, _: &Flow) -> Interest {
            Interest::EDIT_RESPONSE_DATA
        }
        fn edits_response(&self, flow: &Flow) -> bool {
            flow.request.path() == b"/edit"
        }
        fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
            assert_eq!(flow.request.path(), b"/edit");
            match piece.last {
                true => Step::Replace("!".into()),
                false => Step::Continue,
            }
        }
    }
    let plain = Origin::http(Identity::Good, |_| ok("body"));
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[("content-length", "4")]))?;
        send(&mut stream, "body".into(), true).await
    });
    let proxy = start_with(config(), [Arc::new(GivesUp) as Arc<dyn Interceptor>]);
    let mut client = proxy.tls(&plain);
    let answer = client.exchange(get("/")).unwrap();
    assert_eq!(answer.header("content-length").as_deref(), Some("4"));
    let answer = client.exchange(get("/edit")).unwrap();
    assert_eq!(answer.header("content-length"), None);
    assert_eq!(answer.text(), "body!");
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.header("content-length"), Some("4"));
        let answer = client.get("/edit").await.unwrap();
        assert_eq!(answer.header("content-length"), None);
        assert_eq!(answer.text(), "body!");
    });
}

#[test]
fn a_request_that_may_have_been_processed_is_sent_once_more_only_if_it_does_no_harm() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    // Each connection takes a request and goes away without a word; from the third on it answers.
    let origin = H2Origin::script(move |mut connection, number| {
        let log = Arc::clone(&log);
        async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                log.lock().unwrap().push(request.method().clone());
                if number < 2 {
                    return;
                }
                let _ = respond.send_response(response(200, &[]), true);
            }
        }
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let answer = client.call(client.request("POST", "/"), "").await.unwrap();
        assert_eq!(answer.status, 502);
        assert_eq!(*seen.lock().unwrap(), ["POST"]);
        // A GET finds the next connection that answers.
        assert_eq!(client.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_hook_sends_a_request_another_way() {
    let tls = Origin::echo_path(Identity::Good);
    let h2 = H2Origin::echo_path();
    let plain = Origin::script(Identity::Plain, |wire, _| {
        loop {
            let path = wire.read_request()?.path();
            wire.send(ok(format!("plain {path}")))?;
        }
    });
    let to_tls: u16 = tls.authority().rsplit(':').next().unwrap().parse().unwrap();
    let to_plain: u16 = plain
        .authority()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let hook = Hook::new(Interest::REQUEST).on_request(move |flow| {
        let (scheme, port) = match flow.request.path() {
            b"/to-tls" => (Scheme::Https, to_tls),
            b"/to-plain" => (Scheme::Http, to_plain),
            _ => return Step::Continue,
        };
        flow.request.scheme = scheme;
        flow.request.target = Target::new("localhost", port);
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let mut client = proxy.tls(&tls);
    assert_eq!(
        client.exchange(get("/to-plain")).unwrap().text(),
        "plain /to-plain"
    );
    assert_eq!(client.exchange(get("/here")).unwrap().text(), "/here");
    let mut client = proxy.plain();
    let to = |path: &str| {
        format!(
            "GET http://{}{path} HTTP/1.1\r\nHost: x\r\n\r\n",
            plain.authority()
        )
    };
    assert_eq!(client.exchange(to("/to-tls")).unwrap().text(), "/to-tls");
    assert_eq!(
        client.exchange(to("/there")).unwrap().text(),
        "plain /there"
    );
    // An absolute URL may say https by itself.
    let absolute = format!(
        "GET https://{}/direct HTTP/1.1\r\nHost: x\r\n\r\n",
        tls.authority()
    );
    assert_eq!(client.exchange(absolute).unwrap().text(), "/direct");
    run(async {
        let client = proxy.h2(&h2.authority()).await;
        assert_eq!(
            client.get("/to-plain").await.unwrap().text(),
            "plain /to-plain"
        );
        assert_eq!(client.get("/here").await.unwrap().text(), "/here");
    });
}

#[test]
fn a_hidden_header_reaches_the_origin_and_nobody_else() {
    let origin = Origin::http(Identity::Good, |request| {
        ok(request.header("authorization").unwrap_or_default())
    });
    let h2 = H2Origin::serve(|mut call| async move {
        let value = call.head.headers.get("authorization").cloned();
        call.answer(
            200,
            value.map_or(String::new(), |v| v.to_str().unwrap().to_owned()),
        )
        .await
    });
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&seen);
    let hook = Hook::new(Interest::HEADS)
        .on_request(|flow| {
            flow.request
                .put_hidden_header(b"Authorization", b"real")
                .unwrap();
            Step::Continue
        })
        .on_response(move |flow| {
            keep.lock().unwrap().push(format!("{flow:?}"));
            Step::Continue
        });
    let proxy = start_with(config(), [hook.shared()]);
    let request = "GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: dummy\r\n\r\n";
    let mut client = proxy.tls(&origin);
    assert_eq!(client.exchange(request).unwrap().text(), "real");
    run(async {
        let client = proxy.h2(&h2.authority()).await;
        assert_eq!(client.get("/").await.unwrap().text(), "real");
    });
    for flow in &*seen.lock().unwrap() {
        assert!(!flow.contains("real"), "{flow}");
    }
}

#[test]
fn pieces_of_a_response_can_be_replaced_and_dropped() {
    let origin = H2Origin::serve(|mut call| async move {
        let fields = [("content-length", "9"), ("content-type", "text/plain")];
        let mut stream = call.begin(response(200, &fields))?;
        for piece in ["one", "two", "six"] {
            stream.send_data(piece.into(), piece == "six")?;
            // The next when the client has heard of this one.
            read_exact(&mut call.body, 1).await?;
        }
        Ok(())
    });
    let (dropped, mut drops) = tokio::sync::mpsc::unbounded_channel();
    let hook = Hook::new(Interest::EDIT_RESPONSE_DATA).on_data(move |_, piece| match piece.data {
        b"one" => Step::Replace("1-1-1-1".into()),
        b"two" => {
            dropped.send(()).unwrap();
            Step::Drop
        }
        b"" if piece.last => Step::Replace("(end)".into()),
        _ => Step::Continue,
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/");
        let (answer, mut up) = client.begin(request, false).await.unwrap();
        let head = answer.await.unwrap();
        assert!(!head.headers().contains_key("content-length"));
        let mut body = head.into_body();
        assert_eq!(read_exact(&mut body, 7).await.unwrap(), b"1-1-1-1");
        up.send_data("x".into(), false).unwrap();
        drops.recv().await.unwrap();
        up.send_data("x".into(), false).unwrap();
        let (rest, _) = http2::read(&mut body).await.unwrap();
        assert_eq!(utf8(&rest), "six(end)");
    });
}

#[test]
fn a_stream_that_waits_for_a_held_piece_gets_signs_of_life() {
    let origin = H2Origin::echo_path();
    let (release, released) = tokio::sync::watch::channel(false);
    let hook = Hook::new(Interest::EDIT_RESPONSE_DATA).on_data(move |_, piece| {
        if piece.last {
            return Step::Continue;
        }
        let mut released = released.clone();
        let wait = async move {
            let _ = released.wait_for(|r| *r).await;
            Step::Replace("decided".into())
        };
        Step::hold(wait, PATIENCE, Step::Drop).keeping_alive(Some(KeepAlive {
            every: Duration::from_millis(20),
            bytes: ": hold\n\n".into(),
        }))
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let (answer, _up) = client
            .begin(client.request("GET", "/"), true)
            .await
            .unwrap();
        let mut body = answer.await.unwrap().into_body();
        let signs = read_exact(&mut body, 24).await.unwrap();
        assert_eq!(utf8(&signs), ": hold\n\n".repeat(3));
        release.send(true).unwrap();
        let (rest, _) = http2::read(&mut body).await.unwrap();
        assert_eq!(utf8(&rest).trim_start_matches(": hold\n\n"), "decided");
    });
}

#[test]
fn pieces_of_a_request_can_be_replaced() {
    let origin = echo();
    let hook = Hook::new(Interest::EDIT_REQUEST_DATA).on_data(|_, piece| {
        if piece.last {
            return Step::Replace("!".into());
        }
        Step::Replace(piece.data.to_ascii_uppercase().into())
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/").header("content-length", "5");
        assert_eq!(
            client.call(request, "hello").await.unwrap().text(),
            "HELLO!"
        );
    });
    assert!(!origin.heads()[0].headers.contains_key("content-length"));
}

#[test]
fn an_observer_of_decoded_bytes_sees_plain_text_and_the_client_gzip() {
    let text = "plain text ".repeat(10_000);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    let coded = Bytes::from(gzip.finish().unwrap());
    let body = coded.clone();
    let origin = H2Origin::serve(move |mut call| {
        let body = body.clone();
        async move {
            let mut stream = call.begin(response(200, &[("content-encoding", "gzip")]))?;
            send(&mut stream, body, true).await
        }
    });
    let recorder = Recorder::new(Interest::RESPONSE_DATA | Interest::DECODED);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let answer = client.get("/").await.unwrap();
        assert_same(&answer.body, &coded);
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
    });
    recorder.ends(1);
    let (pieces, last) = recorder.data(Direction::Response);
    assert_same(&pieces.concat(), text.as_bytes());
    assert_eq!(last, 1);
}

#[test]
fn a_hook_that_panics_fails_its_stream_only() {
    let origin = echo();
    let hook = || {
        Hook::new(Interest::REQUEST | Interest::RESPONSE)
            .on_request(|flow| match flow.request.path() {
                b"/request" => panic!("of the test"),
                _ => Step::Continue,
            })
            .on_response(|flow| match flow.request.path() {
                b"/response" => panic!("of the test"),
                _ => Step::Continue,
            })
    };
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook().shared(), recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        for path in ["/request", "/response"] {
            let request = client.request("POST", path);
            let answer = client.call(request, "body").await.unwrap();
            assert_eq!(answer.status, 502, "{path}");
            assert!(!answer.text().contains("of the test"));
        }
        let request = client.request("POST", "/");
        assert_eq!(client.call(request, "body").await.unwrap().text(), "body");
    });
    assert_eq!(proxy.metrics().hook_panics, 2);
    for outcome in &recorder.ends(3)[..2] {
        let error = outcome.error.as_ref().unwrap();
        assert_eq!(
            (error.side, error.class),
            (Side::Proxy, ErrorClass::Interceptor)
        );
    }
    assert!(
        origin
            .heads()
            .iter()
            .all(|head| head.uri.path() != "/request")
    );

    let open = start_with(config(), [hook().fails_open().shared()]);
    run(async {
        let client = open.h2(&origin.authority()).await;
        for path in ["/request", "/response"] {
            let request = client.request("POST", path);
            assert_eq!(client.call(request, "body").await.unwrap().text(), "body");
        }
    });
}

#[test]
fn a_hook_that_panics_in_a_body_cuts_the_stream() {
    let origin = echo();
    let hook = Hook::new(Interest::RESPONSE_DATA).on_data(|flow, _| {
        assert_ne!(flow.request.path(), b"/panic");
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/panic");
        assert!(client.call(request, "body").await.unwrap_err().is_reset());
        let request = client.request("POST", "/");
        assert_eq!(client.call(request, "body").await.unwrap().text(), "body");
    });
}

#[test]
fn a_held_request_waits_and_others_do_not() {
    let origin = H2Origin::echo_path();
    let (release, released) = tokio::sync::watch::channel(false);
    let hook = Hook::new(Interest::REQUEST).on_request(move |flow| {
        let mut released = released.clone();
        let deadline = match flow.request.path() {
            b"/held" => PATIENCE,
            b"/late" => SHORT,
            _ => return Step::Continue,
        };
        let wait = async move {
            let _ = released.wait_for(|r| *r).await;
            Step::Continue
        };
        Step::hold(
            wait,
            deadline,
            Step::respond(Reply::new(504).text("too late")),
        )
    });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let held = tokio::spawn({
            let client = client.clone();
            async move { client.get("/held").await }
        });
        let late = client.get("/late").await.unwrap();
        assert_eq!((late.status, late.text().as_str()), (504, "too late"));
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
        assert!(!held.is_finished());
        release.send(true).unwrap();
        assert_eq!(held.await.unwrap().unwrap().text(), "/held");
    });
    assert_eq!(proxy.metrics().hold_timeouts, 1);
    assert!(origin.heads().iter().all(|head| head.uri.path() != "/late"));
}

#[test]
fn a_held_request_whose_client_cancels_is_let_go() {
    let origin = H2Origin::echo_path();
    let hook = Hook::new(Interest::REQUEST).on_request(|flow| match flow.request.path() {
        b"/held" => Step::hold(std::future::pending(), 2 * PATIENCE, Step::Drop),
        _ => Step::Continue,
    });
    let recorder = Recorder::new(Interest::REQUEST);
    let proxy = start_with(config(), [recorder.clone(), hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("GET", "/held");
        let (_answer, mut stream) = client.begin(request, true).await.unwrap();
        let requested = || {
            recorder
                .events()
                .iter()
                .any(|e| matches!(e, Event::Request(_)))
        };
        until("the request arrives", requested).await;
        stream.send_reset(Reason::CANCEL);
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
    });
    wait_until("no flow is left", || proxy.metrics().flows_active == 0);
}

#[test]
fn dropped_and_closed_streams_are_reset_and_others_live() {
    let origin = H2Origin::echo_path();
    let hook = Hook::new(Interest::REQUEST).on_request(|flow| match flow.request.path() {
        b"/drop" => Step::Drop,
        _ => Step::Continue,
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        assert!(client.get("/drop").await.unwrap_err().is_reset());
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
    });
    assert_eq!(recorder.ends(2)[0].kind, OutcomeKind::Dropped);
    assert_eq!(origin.heads().len(), 1);
}

#[test]
fn a_client_that_aborts_in_the_middle_ends_the_flow_once() {
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[]))?;
        while send(&mut stream, vec![b'x'; 10_000].into(), false)
            .await
            .is_ok()
        {}
        Ok(())
    });
    for interest in [
        Interest::HEADS,
        Interest::DATA,
        Interest::EDIT_RESPONSE_DATA,
    ] {
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            let request = client.request("GET", "/");
            let (answer, _) = client.begin(request, true).await.unwrap();
            let mut body = answer.await.unwrap().into_body();
            body.data().await.unwrap().unwrap();
            client.abort();
        });
        recorder.closed(1);
        let ends = recorder.ends(1);
        assert_eq!(ends.len(), 1);
        assert_eq!(ends[0].kind, OutcomeKind::Failed);
        assert_eq!(
            ends[0].error.clone().unwrap().side,
            Side::Client,
            "{interest:?}"
        );
        assert_eq!(recorder.trace().last().unwrap(), "closed");
    }
}

#[test]
fn a_client_that_breaks_its_upload_off_is_the_one_who_failed() {
    let origin = echo();
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/");
        let (_answer, mut stream) = client.begin(request, false).await.unwrap();
        stream.send_data("part".into(), false).unwrap();
        let requested = || {
            recorder
                .events()
                .iter()
                .any(|e| matches!(e, Event::Request(_)))
        };
        until("the request arrives", requested).await;
        stream.send_reset(Reason::CANCEL);
        let request = client.request("POST", "/");
        assert_eq!(client.call(request, "x").await.unwrap().text(), "x");
    });
    let error = recorder.ends(2)[0].error.clone().unwrap();
    assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Reset));
}

#[test]
fn two_interceptors_come_in_order() {
    let origin = H2Origin::echo_path();
    let order = Arc::new(Mutex::new(Vec::new()));
    let hook = |name: &'static str| {
        let (on_request, on_response) = (Arc::clone(&order), Arc::clone(&order));
        Hook::new(Interest::HEADS)
            .on_request(move |_| {
                on_request.lock().unwrap().push(format!("{name} request"));
                Step::Continue
            })
            .on_response(move |_| {
                on_response.lock().unwrap().push(format!("{name} response"));
                Step::Continue
            })
            .shared()
    };
    let proxy = start_with(config(), [hook("a"), hook("b")]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        client.get("/x").await.unwrap();
    });
    let expected = ["a request", "b request", "a response", "b response"];
    assert_eq!(*order.lock().unwrap(), expected);
}

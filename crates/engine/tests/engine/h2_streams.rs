//! Streams beside each other: what happens to one does not happen to the others; and the
//! connections that carry them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tokio::sync::{Barrier, Notify, mpsc, watch};
use tollgate_engine::{HostPattern, PoolMode, UpstreamHttp};
use tollgate_flow::{ErrorClass, Interest, OutcomeKind, Side};

use crate::support::http2::{self, H2Origin, read_exact, reset_of, response, run, send, until};
use crate::support::*;

// Shapes of gRPC.

#[test]
fn a_head_that_ends_the_stream_arrives_as_such() {
    let origin = H2Origin::serve(|mut call| async move {
        let fields = [
            ("content-type", "application/grpc"),
            ("grpc-status", "5"),
            ("grpc-message", "not found"),
        ];
        call.respond.send_response(response(200, &fields), true)?;
        Ok(())
    });
    for interest in [
        Interest::NONE,
        Interest::HEADS,
        Interest::DATA,
        Interest::RESPONSE_BODY,
        Interest::EDIT_RESPONSE_DATA,
    ] {
        let proxy = start_with(config(), [Recorder::new(interest)]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            let request = client
                .request("POST", "/pkg.Service/Method")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let answer = client.call(request, "\0\0\0\0\0").await.unwrap();
            assert!(answer.head_only, "{interest:?}");
            assert_eq!(answer.header("grpc-status"), Some("5"));
            assert_eq!(answer.header("content-length"), None, "{interest:?}");
        });
    }
}

#[test]
fn a_unary_call_ends_with_its_trailers() {
    let origin = H2Origin::serve(|mut call| async move {
        assert_eq!(call.head.headers["te"], "trailers");
        let (body, _) = call.body().await?;
        let mut stream = call.begin(response(200, &[("content-type", "application/grpc")]))?;
        send(&mut stream, body.into(), false).await?;
        stream.send_trailers(http2::fields(&[("grpc-status", "0"), ("x-bin", "AA==")]))
    });
    for interest in [
        Interest::NONE,
        Interest::HEADS | Interest::DATA,
        Interest::BODIES,
        Interest::EDIT_REQUEST_DATA | Interest::EDIT_RESPONSE_DATA,
    ] {
        let proxy = start_with(config(), [Recorder::new(interest)]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            let request = client
                .request("POST", "/pkg.Service/Method")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let message = Bytes::from_static(b"\0\0\0\0\x03abc");
            let answer = client.call(request, message.clone()).await.unwrap();
            assert_eq!(answer.body, message);
            let trailers = answer.trailers.unwrap();
            assert_eq!(trailers["grpc-status"], "0", "{interest:?}");
            assert_eq!(trailers["x-bin"], "AA==");
        });
    }
}

#[test]
fn messages_of_both_directions_take_turns() {
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[("content-type", "application/grpc")]))?;
        while let Some(piece) = call.body.data().await {
            let piece = piece?;
            call.body.flow_control().release_capacity(piece.len())?;
            send(&mut stream, piece, false).await?;
        }
        stream.send_trailers(http2::fields(&[("grpc-status", "0")]))
    });
    for interest in [
        Interest::NONE,
        Interest::HEADS | Interest::DATA,
        Interest::RESPONSE_BODY,
        Interest::EDIT_REQUEST_DATA | Interest::EDIT_RESPONSE_DATA,
    ] {
        let proxy = start_with(config(), [Recorder::new(interest)]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            let request = client
                .request("POST", "/pkg.Service/Chat")
                .header("content-type", "application/grpc");
            let (answer, mut up) = client.begin(request, false).await.unwrap();
            // The head comes before the first message goes.
            let mut down = answer.await.unwrap().into_body();
            for n in 0..20 {
                let message = format!("message {n:04}");
                up.send_data(message.clone().into(), false).unwrap();
                let echo = read_exact(&mut down, message.len()).await.unwrap();
                assert_eq!(echo, message.as_bytes());
            }
            up.send_data(Bytes::new(), true).unwrap();
            let (rest, trailers) = http2::read(&mut down).await.unwrap();
            assert_eq!(rest, b"");
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        });
    }
}

#[test]
fn messages_take_turns_with_an_http1_origin_too() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_head()?;
        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        loop {
            let size = wire.read_until(b"\r\n")?;
            let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16);
            let chunk = wire.read_exact(size.unwrap() + 2)?;
            wire.send(format!("{:x}\r\n", chunk.len() - 2))?;
            wire.send(&chunk)?;
            if chunk.len() == 2 {
                return Ok(());
            }
        }
    });
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http1;
    let proxy = start(config);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/chat");
        let (answer, mut up) = client.begin(request, false).await.unwrap();
        let mut down = answer.await.unwrap().into_body();
        for n in 0..20 {
            let message = format!("message {n:04}");
            up.send_data(message.clone().into(), false).unwrap();
            let echo = read_exact(&mut down, message.len()).await.unwrap();
            assert_eq!(echo, message.as_bytes());
        }
        up.send_data(Bytes::new(), true).unwrap();
        assert_eq!(http2::read(&mut down).await.unwrap().0, b"");
    });
}

// Ends of single streams.

/// An origin that says with which code its streams were reset.
fn reports_resets() -> (H2Origin, mpsc::UnboundedReceiver<Reason>) {
    let (reasons, resets) = mpsc::unbounded_channel();
    let origin = H2Origin::serve(move |mut call| {
        let reasons = reasons.clone();
        async move {
            match call.head.uri.path() {
                "/unanswered" => {
                    let reason = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await?;
                    reasons.send(reason).unwrap();
                }
                "/quiet" => {
                    let mut stream = call.begin(response(200, &[]))?;
                    stream.send_data("begun".into(), false)?;
                    reasons.send(reset_of(&mut stream).await?).unwrap();
                }
                "/busy" => {
                    let mut stream = call.begin(response(200, &[]))?;
                    stream.send_data("begun".into(), false)?;
                    while send(&mut stream, vec![b'x'; 10_000].into(), false)
                        .await
                        .is_ok()
                    {}
                    reasons.send(reset_of(&mut stream).await?).unwrap();
                }
                _ => call.answer(200, "fine").await?,
            }
            Ok(())
        }
    });
    (origin, resets)
}

/// A client cancels a stream to `path`; another goes on.
fn cancel(path: &str, begins: bool) {
    let (origin, mut resets) = reports_resets();
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("GET", path);
        let (answer, mut stream) = client.begin(request, true).await.unwrap();
        until("the request arrives", || origin.heads().len() == 1).await;
        if begins {
            let mut body = answer.await.unwrap().into_body();
            body.data().await.unwrap().unwrap();
        }
        stream.send_reset(Reason::CANCEL);
        let reset = tokio::time::timeout(PATIENCE / 4, resets.recv()).await;
        let reset = reset.expect("the origin's stream goes on");
        assert_eq!(reset, Some(Reason::CANCEL));
        assert_eq!(client.get("/").await.unwrap().text(), "fine");
    });
    assert_eq!(origin.accepted(), 1);
    let error = recorder.ends(2)[0].error.clone().unwrap();
    assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Reset));
    wait_until("no flow is left", || proxy.metrics().flows_active == 0);
}

#[test]
fn a_request_that_the_client_cancels_is_reset_at_the_origin() {
    cancel("/unanswered", false);
}

#[test]
fn a_response_that_the_client_cancels_is_reset_at_the_origin() {
    cancel("/busy", true);
}

#[test]
fn a_quiet_response_that_the_client_cancels_is_reset_at_the_origin() {
    cancel("/quiet", true);
}

#[test]
fn a_reset_by_the_origin_before_the_head_keeps_its_code() {
    let origin = H2Origin::serve(|mut call| async move {
        match call.head.uri.path() {
            "/reset" => call.respond.send_reset(Reason::ENHANCE_YOUR_CALM),
            _ => call.answer(200, "fine").await?,
        }
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let error = client.get("/reset").await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
        assert!(error.is_reset() && error.is_remote(), "{error}");
        assert_eq!(client.get("/").await.unwrap().text(), "fine");
    });
    assert_eq!(origin.accepted(), 1);
    let error = recorder.ends(2)[0].error.clone().unwrap();
    assert_eq!(error.side, Side::Upstream);
}

/// An origin whose `/cut` breaks off in the middle of the body, and what the client and the
/// interceptor hear of it.
fn cut_in_the_middle() -> (Option<Reason>, Side) {
    let origin = H2Origin::serve(|mut call| async move {
        match call.head.uri.path() {
            "/cut" => {
                let mut stream = call.begin(response(200, &[]))?;
                stream.send_data("part".into(), false)?;
                // Not before the client asks for the rest, so that the part is out.
                call.body().await?;
                stream.send_reset(Reason::ENHANCE_YOUR_CALM);
            }
            _ => call.answer(200, "fine").await?,
        }
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    let reason = run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("POST", "/cut");
        let (answer, mut up) = client.begin(request, false).await.unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(read_exact(&mut body, 4).await.unwrap(), b"part");
        up.send_data(Bytes::new(), true).unwrap();
        let error = http2::read(&mut body).await.unwrap_err();
        assert!(error.is_reset() && error.is_remote(), "{error}");
        assert_eq!(client.get("/").await.unwrap().text(), "fine");
        error.reason()
    });
    let ends = recorder.ends(2);
    (reason, ends[0].error.clone().unwrap().side)
}

#[test]
fn a_body_that_the_origin_breaks_off_is_not_a_clean_end() {
    assert!(cut_in_the_middle().0.is_some());
}

#[test]
fn a_reset_by_the_origin_in_the_body_keeps_its_code() {
    assert_eq!(cut_in_the_middle().0, Some(Reason::ENHANCE_YOUR_CALM));
}

#[test]
fn a_reset_by_the_origin_in_the_body_is_the_origins() {
    assert_eq!(cut_in_the_middle().1, Side::Upstream);
}

#[test]
fn an_http1_client_sees_a_broken_body_as_truncated() {
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[]))?;
        stream.send_data("part".into(), false)?;
        call.body().await?;
        stream.send_reset(Reason::INTERNAL_ERROR);
        Ok(())
    });
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http2;
    let proxy = start(config);
    let mut client = proxy
        .tunnel(&origin.authority())
        .tls_client(proxy.client_config(), "localhost")
        .unwrap();
    client
        .send("POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n")
        .unwrap();
    client.read_until(b"part").unwrap();
    client.send("x").unwrap();
    let (rest, ending) = client.read_to_end();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", rest.escape_ascii());
    assert_ne!(ending, Ending::Clean);
}

#[test]
fn an_answer_before_the_body_ends_arrives_and_the_connection_lives() {
    let origin = H2Origin::serve(|mut call| async move {
        match call.head.uri.path() {
            "/401" => call.answer(401, "who are you?").await,
            _ => {
                let (body, _) = call.body().await?;
                call.answer(200, body).await
            }
        }
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        for _ in 0..3 {
            let request = client.request("POST", "/401");
            let (answer, mut stream) = client.begin(request, false).await.unwrap();
            stream.send_data(vec![b'x'; 10_000].into(), false).unwrap();
            let answer = http2::answer(answer).await.unwrap();
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (401, "who are you?")
            );
        }
        let request = client.request("POST", "/");
        assert_eq!(client.call(request, "more").await.unwrap().text(), "more");
    });
    wait_until("no flow is left", || proxy.metrics().flows_active == 0);
}

#[test]
fn a_refused_stream_is_sent_again() {
    let origin = H2Origin::serve(|mut call| async move {
        if call.connection == 0 {
            call.respond.send_reset(Reason::REFUSED_STREAM);
            return Ok(());
        }
        call.answer(200, "second").await
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        assert_eq!(client.get("/").await.unwrap().text(), "second");
    });
    assert_eq!(proxy.metrics().retries, 1);
}

#[test]
fn a_refused_upload_that_cannot_be_sent_again_says_so() {
    let origin = H2Origin::serve(|mut call| async move {
        call.respond.send_reset(Reason::REFUSED_STREAM);
        Ok(())
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let error = client.call(client.request("POST", "/"), "once").await;
        // The client may send it again: nothing was done with it (RFC 9113 section 8.7).
        assert_eq!(error.unwrap_err().reason(), Some(Reason::REFUSED_STREAM));
    });
    assert_eq!(origin.heads().len(), 1);
}

#[test]
fn an_origin_that_refuses_everything_is_a_502_in_the_end() {
    let origin = H2Origin::serve(|mut call| async move {
        call.respond.send_reset(Reason::REFUSED_STREAM);
        Ok(())
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        match client.get("/").await {
            Ok(answer) => assert_eq!(answer.status, 502),
            Err(error) => assert_eq!(error.reason(), Some(Reason::REFUSED_STREAM)),
        }
    });
    assert!(origin.heads().len() <= 4);
}

// Connections.

#[test]
fn a_goaway_while_idle_leads_to_another_connection() {
    let origin = H2Origin::script(|mut connection, number| async move {
        let mut served = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut stream = respond.send_response(response(200, &[]), false).unwrap();
            stream.send_data(number.to_string().into(), true).unwrap();
            served += 1;
            if number == 0 && served == 2 {
                connection.graceful_shutdown();
            }
        }
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        assert_eq!(client.get("/").await.unwrap().text(), "0");
        assert_eq!(client.get("/").await.unwrap().text(), "0");
        until("the first connection ends", || origin.ended() == 1).await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.unwrap().text(), "1");
        }
    });
    assert_eq!(origin.accepted(), 2);
}

#[test]
fn an_origin_that_hangs_up_leads_to_another_connection() {
    let origin = H2Origin::script(|mut connection, number| async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if number == 0 {
                connection.abrupt_shutdown(Reason::INTERNAL_ERROR);
                continue;
            }
            respond.send_response(response(204, &[]), true).unwrap();
        }
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        // The first is told that it failed, or is sent again: it is answered in any case.
        let _ = client.get("/").await;
        assert_eq!(client.get("/").await.unwrap().status, 204);
    });
}

#[test]
fn a_hundred_streams_run_at_once_on_one_connection() {
    const STREAMS: usize = 100;
    let together = Arc::new(Barrier::new(STREAMS));
    let origin = H2Origin::serve(move |mut call| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            let path = call.head.uri.path().to_owned();
            call.answer(200, path.repeat(1000)).await
        }
    });
    let proxy = start_with(config(), [Recorder::new(Interest::HEADS)]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let calls: Vec<_> = (0..STREAMS)
            .map(|n| {
                let client = client.clone();
                tokio::spawn(async move { client.get(&format!("/{n}")).await })
            })
            .collect();
        for (n, call) in calls.into_iter().enumerate() {
            let answer = call.await.unwrap().unwrap();
            assert_eq!(answer.text(), format!("/{n}").repeat(1000));
        }
    });
    assert_eq!(
        (origin.accepted(), proxy.metrics().upstream_connects),
        (1, 1)
    );
    wait_until("no flow is left", || proxy.metrics().flows_active == 0);
}

#[test]
fn more_streams_than_one_connection_takes_get_another() {
    const STREAMS: usize = 150;
    let together = Arc::new(Barrier::new(STREAMS));
    let origin = H2Origin::serve(move |mut call| {
        let together = Arc::clone(&together);
        async move {
            together.wait().await;
            call.answer(200, "x").await
        }
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let calls: Vec<_> = (0..STREAMS)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.get("/").await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().text(), "x");
        }
    });
    assert!(origin.accepted() > 1);
}

#[test]
fn streams_beyond_what_the_origin_allows_wait_for_their_turn() {
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(4);
    let origin = H2Origin::serve_with(Identity::Good, &settings, |mut call| async move {
        let (body, _) = call.body().await?;
        call.answer(200, body).await
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let calls: Vec<_> = (0..40)
            .map(|n: u32| {
                let client = client.clone();
                tokio::spawn(async move {
                    let request = client.request("POST", "/");
                    let answer = client.call(request, n.to_string()).await.unwrap();
                    assert_eq!((answer.status, answer.text()), (200, n.to_string()));
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    });
}

#[test]
fn clients_share_one_upstream_connection() {
    let origin = H2Origin::echo_path();
    let proxy = start(config());
    run(async {
        for n in 0..5 {
            let client = proxy.h2(&origin.authority()).await;
            let path = format!("/{n}");
            assert_eq!(client.get(&path).await.unwrap().text(), path);
        }
        let clients: Vec<_> = (0..5)
            .map(|_| async {
                let client = proxy.h2(&origin.authority()).await;
                assert_eq!(client.get("/x").await.unwrap().text(), "/x");
                client
            })
            .collect();
        for client in clients {
            client.await;
        }
    });
    let metrics = proxy.metrics();
    assert_eq!((origin.accepted(), metrics.upstream_connects), (1, 1));
    assert_eq!(metrics.flows_completed, 10);
}

#[test]
fn in_mirror_mode_each_client_has_its_own() {
    let origin = H2Origin::echo_path();
    let mut config = config();
    config.pool.mode = PoolMode::Mirror;
    let proxy = start(config);
    run(async {
        for n in 1..=3 {
            let client = proxy.h2(&origin.authority()).await;
            for _ in 0..3 {
                assert_eq!(client.get("/x").await.unwrap().text(), "/x");
            }
            assert_eq!(origin.accepted(), n);
            client.abort();
            until("its upstream connection ends too", || origin.ended() == n).await;
        }
    });
}

#[test]
fn idle_limits_do_not_end_a_connection_that_is_used() {
    let origin = H2Origin::echo_path();
    let mut config = config();
    for limit in [
        &mut config.timeouts.keep_alive,
        &mut config.timeouts.idle,
        &mut config.timeouts.first_bytes,
        &mut config.timeouts.handshake,
        &mut config.timeouts.response_head,
    ] {
        *limit = Duration::from_millis(400);
    }
    let proxy = start(config);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let mut rhythm = tokio::time::interval(Duration::from_millis(50));
        // Three times the limit.
        for _ in 0..24 {
            rhythm.tick().await;
            assert_eq!(client.get("/x").await.unwrap().text(), "/x");
        }
        // And one that is not used does end, in good order.
        client.ended().await;
    });
    assert_eq!(proxy.metrics().flows_failed, 0);
}

#[test]
fn idle_limits_do_not_end_a_stream_that_flows() {
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[]))?;
        let mut rhythm = tokio::time::interval(Duration::from_millis(50));
        for _ in 0..24 {
            rhythm.tick().await;
            stream.send_data("x".into(), false)?;
        }
        stream.send_data(Bytes::new(), true)
    });
    let mut config = config();
    config.timeouts.keep_alive = Duration::from_millis(400);
    config.timeouts.idle = Duration::from_millis(400);
    config.timeouts.response_head = Duration::from_millis(400);
    let proxy = start(config);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        assert_eq!(client.get("/").await.unwrap().body.len(), 24);
    });
}

#[test]
fn an_origin_that_never_answers_is_a_504() {
    let origin = H2Origin::serve(|mut call| async move {
        std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await?;
        Ok(())
    });
    let mut config = config();
    config.timeouts.response_head = SHORT;
    let proxy = start(config);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        assert_eq!(client.get("/").await.unwrap().status, 504);
        assert_eq!(client.get("/").await.unwrap().status, 504);
    });
    assert_eq!(origin.accepted(), 1);
}

// What is refused.

#[test]
fn a_bad_certificate_is_a_502_on_each_stream() {
    for (identity, word) in [
        (Identity::Expired, "expired"),
        (Identity::SelfSigned, "self-signed"),
    ] {
        let settings = h2::server::Builder::new();
        let origin = H2Origin::serve_with(identity, &settings, |mut call| async move {
            call.answer(200, "never").await
        });
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [recorder.clone()]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            for _ in 0..3 {
                let request = client.request("POST", "/");
                let answer = client.call(request, "secret").await.unwrap();
                assert_eq!(answer.status, 502);
                assert!(answer.text().contains("certificate"), "{}", answer.text());
                assert!(answer.text().contains(word), "{}", answer.text());
            }
        });
        assert_eq!(origin.heads().len(), 0);
        assert_eq!(recorder.tls_failures(1).len(), 1);
        for outcome in recorder.ends(3) {
            let error = outcome.error.unwrap();
            assert_eq!((error.side, error.class), (Side::Upstream, ErrorClass::Tls));
        }
    }
}

#[test]
fn authority_and_host_that_differ_are_refused() {
    let origin = H2Origin::echo_path();
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("GET", "/").header("host", "other.example");
        assert_eq!(client.call(request, "").await.unwrap().status, 400);
        assert_eq!(origin.heads().len(), 0);
        // Saying the same twice is no contradiction.
        let request = client
            .request("GET", "/x")
            .header("host", origin.authority());
        assert_eq!(client.call(request, "").await.unwrap().text(), "/x");
    });
}

#[test]
fn two_hosts_are_refused() {
    let origin = H2Origin::echo_path();
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client
            .request("GET", "/")
            .header("host", origin.authority())
            .header("host", "other.example");
        assert_eq!(client.call(request, "").await.unwrap().status, 400);
    });
    assert_eq!(origin.heads().len(), 0);
}

#[test]
fn a_header_list_over_the_limit_hurts_only_its_stream() {
    let origin = H2Origin::echo_path();
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let mut request = client.request("GET", "/large");
        for n in 0..20 {
            request = request.header(format!("x-{n}"), "v".repeat(4000));
        }
        match client.call(request, "").await {
            Ok(answer) => assert_eq!(answer.status, 431),
            Err(error) => assert!(error.is_reset(), "{error}"),
        }
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
    });
    assert_eq!(origin.heads().len(), 1);
}

#[test]
fn more_fields_than_the_limit_are_refused() {
    let origin = H2Origin::echo_path();
    let mut config = config();
    config.limits.header_lines = 20;
    let proxy = start(config);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let mut request = client.request("GET", "/many");
        for n in 0..30 {
            request = request.header(format!("x-{n}"), "v");
        }
        match client.call(request, "").await {
            Ok(answer) => assert_eq!(answer.status, 431),
            Err(error) => assert!(error.is_reset(), "{error}"),
        }
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
    });
}

#[test]
fn a_head_from_the_origin_over_the_limit_is_a_502_or_a_reset() {
    let origin = H2Origin::serve(|mut call| async move {
        if call.head.uri.path() == "/x" {
            return call.answer(200, "fine").await;
        }
        let mut head = response(200, &[]);
        for n in 0..20_u32 {
            let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
            let value = http::HeaderValue::try_from("v".repeat(4000)).unwrap();
            head.headers_mut().insert(name, value);
        }
        call.respond.send_response(head, true)?;
        Ok(())
    });
    let proxy = start(config());
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        match client.get("/large").await {
            Ok(answer) => assert_eq!(answer.status, 502),
            Err(error) => assert!(error.is_reset(), "{error}"),
        }
        assert_eq!(client.get("/x").await.unwrap().text(), "fine");
    });
}

#[test]
fn a_policy_blocks_by_authority_inside_a_connection() {
    let origin = H2Origin::echo_path();
    let mut config = config();
    config.policy.block = vec![HostPattern::new("blocked.example").unwrap()];
    let recorder = Recorder::new(Interest::HEADS);
    let proxy = start_with(config, [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = http::Request::get("https://blocked.example/secret");
        let answer = client.call(request, "").await.unwrap();
        assert_eq!(answer.status, 403);
        let request = http::Request::post("https://BLOCKED.example:443/secret");
        let answer = client.call(request, "body").await.unwrap();
        assert_eq!(answer.status, 403);
        assert_eq!(origin.heads().len(), 0);
        assert_eq!(client.get("/x").await.unwrap().text(), "/x");
    });
    assert_eq!(proxy.metrics().blocked_total, 2);
}

/// `:method GET`, `:scheme https`, `:path /`, `host`, and no `:authority` (RFC 9113 section 8.3.1
/// allows it).
fn head_without_authority(host: &str) -> Vec<u8> {
    let length = u8::try_from(host.len()).unwrap();
    let fields = [&b"\x82\x87\x84\x00\x04host"[..], &[length], host.as_bytes()].concat();
    http2::frame(1, 5, 1, &fields)
}

#[test]
fn a_policy_blocks_by_host_where_there_is_no_authority() {
    let origin = Origin::echo_path(Identity::Good);
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http1;
    config.policy.block = vec![HostPattern::new("blocked.example").unwrap()];
    let proxy = start(config);
    let mut client = proxy.raw_h2(&origin.authority());
    client
        .send(head_without_authority("blocked.example"))
        .unwrap();
    http2::read_frame_of(&mut client, 1);
    assert_eq!(origin.received_all().escape_ascii().to_string(), "");
    assert_eq!(proxy.metrics().blocked_total, 1);
}

#[test]
fn a_host_without_an_authority_is_served() {
    let origin = H2Origin::echo_path();
    let proxy = start(config());
    let mut client = proxy.raw_h2(&origin.authority());
    client
        .send(head_without_authority(&origin.authority()))
        .unwrap();
    http2::read_frame_of(&mut client, 1);
    let heads = origin.heads();
    assert_eq!(heads.len(), 1);
    let authority = heads[0].uri.authority().unwrap();
    assert_eq!(authority.as_str(), origin.authority());
}

// Shutdown.

#[test]
fn a_shutdown_lets_streams_end_and_takes_no_more() {
    let (go, goes) = watch::channel(false);
    let origin = H2Origin::serve(move |mut call| {
        let mut goes = goes.clone();
        async move {
            let mut stream = call.begin(response(200, &[]))?;
            stream.send_data("part".into(), false)?;
            let _ = goes.wait_for(|go| *go).await;
            stream.send_data("rest".into(), true)
        }
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let idle = proxy.h2(&origin.authority()).await;
        let mut bodies = Vec::new();
        for _ in 0..3 {
            let request = client.request("GET", "/");
            let (answer, _) = client.begin(request, true).await.unwrap();
            let mut body = answer.await.unwrap().into_body();
            read_exact(&mut body, 4).await.unwrap();
            bodies.push(body);
        }
        let shutdown = std::thread::spawn(move || proxy.shutdown(PATIENCE));
        idle.ended().await;
        // The connection with streams is told as well: what comes now is refused.
        until("no stream is opened", || {
            let mut send = client.send.clone();
            let poll =
                send.poll_ready(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            matches!(poll, std::task::Poll::Ready(Err(_)))
        })
        .await;
        assert!(!shutdown.is_finished());
        go.send(true).unwrap();
        for mut body in bodies {
            assert_eq!(http2::read(&mut body).await.unwrap().0, b"rest");
        }
        client.ended().await;
        let end = shutdown.join().unwrap();
        assert!(end.drained);
        assert_eq!(end.aborted_connections, 0);
    });
    for outcome in recorder.ends(3) {
        assert_eq!(outcome.kind, OutcomeKind::Completed);
    }
}

#[test]
fn a_shutdown_says_goodbye_to_an_idle_connection_before_it_closes() {
    let origin = H2Origin::echo_path();
    let proxy = start(config());
    let mut client = proxy.raw_h2(&origin.authority());
    // SETTINGS, and the acknowledgement of ours.
    http2::read_frame(&mut client).unwrap();
    let shutdown = std::thread::spawn(move || proxy.shutdown(PATIENCE));
    let mut goodbyes = Vec::new();
    let ending = loop {
        match http2::read_frame(&mut client) {
            Ok(frame) if frame.kind == 6 => {
                client.send(http2::frame(6, 1, 0, &frame.payload)).unwrap();
            }
            Ok(frame) if frame.kind == 7 => goodbyes.push(frame.payload),
            Ok(_) => {}
            Err(_) => break client.read_to_end().1,
        }
    };
    // First for all streams, then for those after the last one that was served (RFC 9113 section 6.8).
    assert_eq!(goodbyes.len(), 2, "{goodbyes:?}");
    assert_eq!(goodbyes[1], [0; 8]);
    assert_eq!(ending, Ending::Clean);
    assert!(shutdown.join().unwrap().drained);
}

#[test]
fn a_shutdown_closes_upstream_connections_on_a_runtime_that_goes_on() {
    let origin = H2Origin::echo_path();
    run(async {
        let builder = tollgate_engine::Proxy::builder()
            .config(config())
            .runtime(tollgate_engine::Runtime::Current);
        let handle = builder.build().unwrap().start().await.unwrap();
        let proxy = TestProxy { handle };
        let client = proxy.h2(&origin.authority()).await;
        assert_eq!(client.get("/kept").await.unwrap().text(), "/kept");
        drop(client);
        assert!(proxy.handle.shutdown(PATIENCE).await.drained);
        until("the upstream connection is closed", || origin.ended() == 1).await;
    });
}

#[test]
fn a_shutdown_past_its_deadline_cuts_streams_and_says_so() {
    let origin = H2Origin::serve(|mut call| async move {
        let mut stream = call.begin(response(200, &[]))?;
        stream.send_data("part".into(), false)?;
        reset_of(&mut stream).await?;
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client.request("GET", "/");
        let (answer, _) = client.begin(request, true).await.unwrap();
        let mut body = answer.await.unwrap().into_body();
        read_exact(&mut body, 4).await.unwrap();
        let shutdown = std::thread::spawn(move || proxy.shutdown(SHORT));
        assert!(http2::read(&mut body).await.is_err());
        let end = shutdown.join().unwrap();
        assert!(!end.drained);
        assert_eq!(end.aborted_connections, 1);
        assert_eq!(end.metrics.flows_active, 0);
    });
    let ends = recorder.ends(1);
    assert_eq!(ends.len(), 1);
    let error = ends[0].error.clone().unwrap();
    assert_eq!(
        (error.side, error.class),
        (Side::Proxy, ErrorClass::Shutdown)
    );
    assert_eq!(recorder.closed(1).len(), 1);
}

#[test]
fn a_client_that_vanishes_takes_its_streams_along() {
    let arrived = Arc::new(Notify::new());
    let seen = Arc::clone(&arrived);
    let (reasons, mut resets) = mpsc::unbounded_channel();
    let origin = H2Origin::serve(move |mut call| {
        let (seen, reasons) = (Arc::clone(&seen), reasons.clone());
        async move {
            seen.notify_one();
            let reset = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
            reasons.send(reset).unwrap();
            Ok(())
        }
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let (_answer, _stream) = client
            .begin(client.request("GET", "/"), true)
            .await
            .unwrap();
        arrived.notified().await;
        client.abort();
        assert!(resets.recv().await.unwrap().is_ok());
    });
    let ends = recorder.ends(1);
    let error = ends[0].error.clone().unwrap();
    assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Reset));
    recorder.closed(1);
    assert_eq!(recorder.ends(1).len(), 1);
}

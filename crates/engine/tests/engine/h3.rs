//! HTTP/3 on its own: what QUIC brings that the other versions don't have. What passes between the
//! versions is in `h2_versions`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h3::error::StreamError;
use quinn::{ConnectionError, ReadError, TransportConfig, VarInt};
use tollgate_engine::{Config, HostPattern, UpstreamHttp};
use tollgate_flow::{
    Direction, ErrorClass, HttpVersion, Interceptor, Interest, KeepAlive, OutcomeKind, Reply, Side,
    Step, TlsFailureKind,
};
use tollgate_wire::http3::{FrameKind, Settings, code, frame_header, qpack, write_varint};

use crate::support::http2::{response, run, until};
use crate::support::http3::{H3Origin, answer, in_front_of, rest};
use crate::support::*;

/// A proxy in front of an origin, with an interceptor.
fn proxy_with(origin: &H3Origin, interceptor: Arc<dyn Interceptor>) -> TestProxy {
    start_with(in_front_of(config(), &origin.authority()), [interceptor])
}

fn proxy(origin: &H3Origin) -> TestProxy {
    start(in_front_of(config(), &origin.authority()))
}

#[test]
fn requests_of_many_clients_share_a_connection_to_the_origin() {
    let origin = H3Origin::echo_path();
    let proxy = proxy(&origin);
    run(async {
        let first = proxy.h3(&origin.authority()).await;
        let second = proxy.h3(&origin.authority()).await;
        for path in ["/a", "/b", "/c"] {
            assert_eq!(first.get(path).await.unwrap().text(), path);
            assert_eq!(second.get(path).await.unwrap().text(), path);
        }
        until("bytes are counted while connections are open", || {
            let m = proxy.metrics();
            let client = m.client_bytes_in.min(m.client_bytes_out);
            client.min(m.upstream_bytes_in).min(m.upstream_bytes_out) > 0
        })
        .await;
    });
    assert_eq!(origin.accepted(), 1);
    let metrics = proxy.metrics();
    assert_eq!(metrics.client_handshakes, 2);
    assert_eq!(metrics.upstream_handshakes, 1);
    assert_eq!((metrics.flows_total, metrics.flows_completed), (6, 6));
}

#[test]
fn a_flow_knows_both_sides() {
    let origin = H3Origin::echo_path();
    let seen = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&seen);
    let hook = Hook::new(Interest::HEADS).on_response(move |flow| {
        *keep.lock().unwrap() = Some(flow.clone());
        Step::Continue
    });
    let proxy = proxy_with(&origin, hook.shared());
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        client.get("/path?query").await.unwrap();
    });
    let flow = seen.lock().unwrap().take().unwrap();
    assert_eq!(flow.request.version, HttpVersion::Http3);
    assert_eq!(flow.request.version.as_str(), "HTTP/3");
    assert_eq!(flow.request.path(), b"/path?query");
    assert_eq!(
        flow.request.authority.as_deref(),
        Some(origin.authority().as_bytes())
    );
    let tls = flow.connection.tls().unwrap();
    assert_eq!(tls.hello.server_name.as_deref(), Some("localhost"));
    assert_eq!(tls.alpn(), Some(&b"h3"[..]));
    let upstream = flow.upstream.as_ref().unwrap();
    assert_eq!(upstream.alpn.as_deref(), Some(&b"h3"[..]));
    assert!(!upstream.certificates.is_empty() && !upstream.unverified);
    assert_eq!(flow.response.as_ref().unwrap().version, HttpVersion::Http3);
}

#[test]
fn hooks_edit_heads_and_bodies() {
    let origin = H3Origin::serve(|mut call| async move {
        let (body, _) = call.body().await?;
        let added = call.head.headers.contains_key("x-added");
        let text = format!("{added} {}", String::from_utf8_lossy(&body));
        call.answer(200, text).await
    });
    let hook =
        Hook::new(Interest::HEADS | Interest::EDIT_REQUEST_DATA | Interest::EDIT_RESPONSE_DATA)
            .on_request(|flow| {
                flow.request.headers_mut().set(b"X-Added", b"1").unwrap();
                Step::Continue
            })
            .on_response(|flow| {
                let response = flow.response.as_mut().unwrap();
                response.head.set_status(201, b"").unwrap();
                response.headers_mut().set(b"X-Seen", b"1").unwrap();
                Step::Continue
            })
            .on_data(|_, piece| match piece.direction {
                _ if piece.data.is_empty() => Step::Continue,
                Direction::Request => Step::Replace(piece.data.to_ascii_uppercase().into()),
                Direction::Response => Step::Replace([b"<", piece.data, b">"].concat().into()),
            });
    let proxy = proxy_with(&origin, hook.shared());
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let request = client.request("POST", "/").header("content-length", 5);
        let answer = client.call(request, "hello").await.unwrap();
        assert_eq!(answer.status, 201);
        assert_eq!(answer.header("x-seen"), Some("1"));
        assert_eq!(answer.text(), "<true HELLO>");
    });
}

#[test]
fn a_stream_that_waits_for_a_held_piece_gets_signs_of_life() {
    let origin = H3Origin::echo_path();
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
    let proxy = proxy_with(&origin, hook.shared());
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let request = client.request("GET", "/");
        let (mut upload, mut download) = client.begin(request).await.unwrap();
        upload.finish().await.unwrap();
        let (head, ()) = download.recv_response().await.unwrap().into_parts();
        let mut signs = Vec::new();
        while signs.len() < 24 {
            let piece = download.recv_data().await.unwrap();
            signs.extend_from_slice(piece.expect("a sign of life").chunk());
        }
        assert!(
            signs.chunks(8).all(|sign| sign == b": hold\n\n"),
            "{}",
            String::from_utf8_lossy(&signs)
        );
        release.send(true).unwrap();
        let rest = rest(head, download).await.unwrap();
        assert_eq!(rest.text().trim_start_matches(": hold\n\n"), "decided");
    });
}

#[test]
fn hooks_answer_before_the_origin_is_asked() {
    let origin = H3Origin::echo_path();
    let hook = Hook::new(Interest::REQUEST)
        .on_request(|_| Step::Respond(Box::new(Reply::new(418).text("short and stout"))));
    let proxy = proxy_with(&origin, hook.shared());
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let request = client.request("POST", "/");
        let answer = client.call(request, vec![b'x'; 3 << 20]).await.unwrap();
        assert_eq!(answer.status, 418);
        assert_eq!(answer.text(), "short and stout");
    });
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn an_origin_that_does_not_answer_is_a_504() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let authority = format!("localhost:{}", silent.local_addr().unwrap().port());
    let mut config = in_front_of(config(), &authority);
    config.timeouts.connect = SHORT;
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config, [recorder.clone() as Arc<dyn Interceptor>]);
    run(async {
        let client = proxy.h3(&authority).await;
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.status, 504);
        assert!(answer.text().contains("UDP"), "{}", answer.text());
        // The connection is as good as before.
        assert_eq!(client.get("/").await.unwrap().status, 504);
    });
    let error = recorder.ends(2)[0].error.clone().unwrap();
    assert_eq!(
        (error.side, error.class),
        (Side::Upstream, ErrorClass::Timeout)
    );
}

#[test]
fn origins_are_verified_like_those_of_tcp() {
    let cases = [
        (Identity::Expired, "expired"),
        (Identity::WrongHost, "host"),
        (Identity::SelfSigned, "self"),
        (Identity::UnknownIssuer, "unknown authority"),
    ];
    for (identity, word) in cases {
        let origin = H3Origin::serve_as(identity, |mut call| async move {
            call.answer(200, "never").await
        });
        let mut strict = in_front_of(config(), &origin.authority());
        let mut lax = strict.clone();
        lax.tls.insecure_hosts = vec![HostPattern::new("localhost").unwrap()];
        strict.timeouts.connect = PATIENCE;
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(strict, [recorder.clone() as Arc<dyn Interceptor>]);
        run(async {
            let client = proxy.h3(&origin.authority()).await;
            let answer = client.get("/").await.unwrap();
            assert_eq!(answer.status, 502, "{identity:?}");
            assert!(answer.text().contains(word), "{}", answer.text());
        });
        let error = recorder.ends(1)[0].error.clone().unwrap();
        assert_eq!((error.side, error.class), (Side::Upstream, ErrorClass::Tls));

        let proxy = start(lax);
        run(async {
            let client = proxy.h3(&origin.authority()).await;
            assert_eq!(client.get("/").await.unwrap().status, 200);
        });
        assert_eq!(proxy.metrics().unverified_upstreams, 1, "{identity:?}");
    }
}

#[test]
fn a_client_that_does_not_trust_us_is_named() {
    let origin = H3Origin::echo_path();
    let recorder = Recorder::new(Interest::END);
    let proxy = proxy_with(&origin, recorder.clone());
    run(async {
        let stranger = origin_authority().authority.cert_der().clone();
        let (_endpoint, connecting) = proxy.quic_with(stranger, TransportConfig::default());
        assert!(connecting.await.is_err());
    });
    let failure = recorder.tls_failures(1)[0].clone();
    assert_eq!(failure.side, Side::Client);
    assert_eq!(failure.kind, TlsFailureKind::UnknownAuthority);
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn what_is_not_to_be_opened_is_refused() {
    let origin = H3Origin::echo_path();
    let refused = |change: fn(&mut Config)| {
        let mut config = in_front_of(config(), &origin.authority());
        change(&mut config);
        let proxy = start(config);
        run(async {
            let root = proxy.handle.authority().cert_der().clone();
            let (_endpoint, connecting) = proxy.quic_with(root, TransportConfig::default());
            assert!(connecting.await.is_err());
        });
        until_blocked(&proxy);
    };
    refused(|config| config.policy.block = vec![HostPattern::new("localhost").unwrap()]);
    refused(|config| config.policy.ignore = vec![HostPattern::new("localhost").unwrap()]);
    assert_eq!(origin.accepted(), 0);
}

#[track_caller]
fn until_blocked(proxy: &TestProxy) {
    wait_until("the refusal is counted", || {
        proxy.metrics().blocked_total == 1
    });
}

#[test]
fn a_reset_of_the_origin_reaches_the_client_as_it_is() {
    let origin = H3Origin::serve(|mut call| async move {
        if call.head.uri.path() == "/late" {
            call.stream.send_response(response(200, &[])).await?;
            call.stream.send_data(Bytes::from_static(b"part")).await?;
        }
        call.stream.stop_stream(h3::error::Code::H3_EXCESSIVE_LOAD);
        Ok(())
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = proxy_with(&origin, recorder.clone());
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        for path in ["/early", "/late"] {
            let error = client.get(path).await.unwrap_err();
            assert!(
                matches!(
                    error,
                    StreamError::RemoteTerminate {
                        code: h3::error::Code::H3_EXCESSIVE_LOAD,
                        ..
                    }
                ),
                "{path}: {error:?}"
            );
        }
    });
    for outcome in recorder.ends(2) {
        let error = outcome.error.unwrap();
        assert_eq!(
            (error.side, error.class),
            (Side::Upstream, ErrorClass::Reset)
        );
    }
}

#[test]
fn a_client_that_gives_up_frees_the_origin() {
    let (gone, notice) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let origin = H3Origin::serve(move |mut call| {
        let gone = gone.lock().unwrap().clone();
        async move {
            call.stream.send_response(response(200, &[])).await?;
            // Until nobody wants it any more.
            while call.stream.send_data(vec![0; 1 << 16].into()).await.is_ok() {}
            gone.send(()).unwrap();
            Ok(())
        }
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = proxy_with(&origin, recorder.clone());
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let (mut upload, mut download) = client.begin(client.request("GET", "/")).await.unwrap();
        upload.finish().await.unwrap();
        download.recv_response().await.unwrap();
        download.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
        drop(download);
        // The connection goes on.
        until("the flow has ended", || {
            let events = recorder.events();
            events.iter().any(|e| matches!(e, Event::End(..)))
        })
        .await;
    });
    notice.recv_timeout(PATIENCE).unwrap();
    let outcome = recorder.ends(1)[0].clone();
    assert_eq!(outcome.kind, OutcomeKind::Failed);
    assert_eq!(outcome.error.unwrap().side, Side::Client);
}

/// More than all windows and buffers on the way together.
const MUCH: usize = 64 << 20;

#[test]
fn a_reader_that_stops_stops_the_origin() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let origin = H3Origin::serve(move |mut call| {
        let count = Arc::clone(&count);
        async move {
            if call.head.uri.path() == "/small" {
                return call.answer(200, "small").await;
            }
            call.stream.send_response(response(200, &[])).await?;
            for _ in 0..MUCH >> 16 {
                call.stream.send_data(vec![7; 1 << 16].into()).await?;
                count.fetch_add(1 << 16, Ordering::SeqCst);
            }
            call.stream.finish().await
        }
    });
    let proxy = proxy(&origin);
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let (mut upload, download) = client.begin(client.request("GET", "/")).await.unwrap();
        upload.finish().await.unwrap();
        // Time enough for the sender to run away, in which others are served.
        for _ in 0..50 {
            assert_eq!(client.get("/small").await.unwrap().text(), "small");
        }
        let stopped = sent.load(Ordering::SeqCst);
        assert!(stopped < MUCH / 2, "{stopped} bytes were taken");
        let answer = answer(download).await.unwrap();
        assert_eq!(answer.body.len(), MUCH);
    });
}

#[test]
fn an_origin_that_stops_reading_stops_the_upload() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let origin = H3Origin::serve(move |mut call| {
        let mut wait = wait.clone();
        async move {
            if call.head.uri.path() == "/small" {
                return call.answer(200, "small").await;
            }
            wait.wait_for(|go| *go).await.unwrap();
            let (body, _) = call.body().await?;
            call.answer(200, body.len().to_string()).await
        }
    });
    let proxy = proxy(&origin);
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let (mut upload, download) = client.begin(client.request("POST", "/")).await.unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let sending = tokio::spawn(async move {
            for _ in 0..MUCH >> 16 {
                upload.send_data(vec![7; 1 << 16].into()).await.unwrap();
                count.fetch_add(1 << 16, Ordering::SeqCst);
            }
            upload.finish().await.unwrap();
        });
        for _ in 0..50 {
            assert_eq!(client.get("/small").await.unwrap().text(), "small");
        }
        let stopped = sent.load(Ordering::SeqCst);
        assert!(stopped < MUCH / 2, "{stopped} bytes were taken");
        go.send(true).unwrap();
        let answer = answer(download).await.unwrap();
        assert_eq!(answer.text(), MUCH.to_string());
        sending.await.unwrap();
    });
}

#[test]
fn a_shutdown_lets_requests_end_and_takes_no_new_ones() {
    let (go, wait) = tokio::sync::watch::channel(false);
    let (begun, mut started) = tokio::sync::mpsc::unbounded_channel();
    let origin = H3Origin::serve(move |mut call| {
        let mut wait = wait.clone();
        begun.send(()).unwrap();
        async move {
            wait.wait_for(|go| *go).await.unwrap();
            call.answer(200, pattern(1 << 20)).await
        }
    });
    let proxy = proxy(&origin);
    let authority = origin.authority();
    run(async {
        let client = Arc::new(proxy.h3(&authority).await);
        let other = Arc::clone(&client);
        let pending = tokio::spawn(async move { other.get("/").await });
        started.recv().await.unwrap();
        let shutdown = tokio::spawn(proxy.handle.shutdown(PATIENCE));
        // The client learns of it by GOAWAY.
        let refused = async {
            loop {
                if let Err(error) = client.begin(client.request("GET", "/new")).await {
                    break error;
                }
                tokio::task::yield_now().await;
            }
        };
        let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap();
        assert!(
            matches!(refused, StreamError::RemoteClosing { .. }),
            "{refused:?}"
        );
        go.send(true).unwrap();
        let answer = pending.await.unwrap().unwrap();
        assert_same(&answer.body, &pattern(1 << 20));
        let closed = client.quic.closed().await;
        assert!(
            matches!(&closed, ConnectionError::ApplicationClosed(close)
                if close.error_code == VarInt::from_u64(code::NO_ERROR).unwrap()),
            "{closed}"
        );
        let shutdown = shutdown.await.unwrap();
        assert!(shutdown.drained);
        assert_eq!(shutdown.aborted_connections, 0);
        assert!(shutdown.metrics.client_bytes_out > 1 << 20);
        assert!(shutdown.metrics.upstream_bytes_in > 1 << 20);
    });
}

#[test]
fn a_connection_to_the_origin_that_takes_no_more_requests_is_replaced() {
    let origin = H3Origin::script(Identity::Good, |connection| async move {
        let quic = h3_quinn::Connection::new(connection);
        let mut http = h3::server::Connection::<_, Bytes>::new(quic).await.unwrap();
        // One request for each connection.
        let resolver = http.accept().await.unwrap().unwrap();
        let (_, mut stream) = resolver.resolve_request().await.unwrap();
        http.shutdown(0).await.unwrap();
        stream.send_response(response(200, &[])).await.unwrap();
        stream.finish().await.unwrap();
        while let Ok(Some(_)) = http.accept().await {}
    });
    let proxy = proxy(&origin);
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        for _ in 0..3 {
            assert_eq!(client.get("/").await.unwrap().status, 200);
        }
    });
    assert!(origin.accepted() >= 2);
    assert_eq!(proxy.metrics().flows_completed, 3);
}

#[test]
fn http1_clients_reach_an_origin_that_only_has_http3() {
    let origin = H3Origin::echo_path();
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http3;
    let proxy = start(config);
    let authority = origin.authority();
    let mut client = proxy
        .tunnel(&authority)
        .tls_client(proxy.client_config(), "localhost")
        .unwrap();
    for path in ["/a", "/b"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        let answer = client.exchange(request).unwrap();
        assert_eq!(
            (answer.status(), answer.body.as_slice()),
            (200, path.as_bytes())
        );
    }
    assert_eq!(origin.accepted(), 1);
}

#[test]
fn a_body_where_there_is_none_is_not_the_next_response_of_an_http1_client() {
    let origin = H3Origin::serve(|mut call| async move {
        let status = match call.head.uri.path() {
            "/204" => 204,
            _ => 200,
        };
        let head = response(status, &[]);
        call.stream.send_response(head).await?;
        call.stream
            .send_data(Bytes::from_static(
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            ))
            .await?;
        call.stream.finish().await
    });
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http3;
    let proxy = start(config);
    let authority = origin.authority();
    for (method, path) in [("GET", "/204"), ("HEAD", "/")] {
        let mut client = proxy
            .tunnel(&authority)
            .tls_client(proxy.client_config(), "localhost")
            .unwrap();
        client
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
            ))
            .unwrap();
        // Refused, or the head alone: never what the origin put there.
        let head = client.read_head().unwrap();
        client.finish();
        let bytes = [head, client.read_to_end().0].concat();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("evil"), "{method} {path}: {text}");
        assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
    }
}

#[test]
fn http3_does_not_go_around_a_proxy_on_the_way() {
    let origin = H3Origin::echo_path();
    let mut config = in_front_of(config(), &origin.authority());
    let way = format!("http://127.0.0.1:{}", closed_port());
    config.via.proxy = Some(Arc::new(way.parse().unwrap()));
    let proxy = start(config);
    run(async {
        let client = proxy.h3(&origin.authority()).await;
        let answer = client.get("/").await.unwrap();
        assert_eq!(answer.status, 502);
        assert!(
            answer.text().contains("carries no UDP"),
            "{}",
            answer.text()
        );
    });
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn a_client_that_allows_us_no_stream_is_let_go() {
    let origin = H3Origin::echo_path();
    let mut config = in_front_of(config(), &origin.authority());
    config.timeouts.handshake = SHORT;
    let proxy = start(config);
    run(async {
        let mut mute = TransportConfig::default();
        mute.max_concurrent_uni_streams(VarInt::from_u32(0));
        let root = proxy.handle.authority().cert_der().clone();
        let (_endpoint, connecting) = proxy.quic_with(root, mute);
        let connection = connecting.await.unwrap();
        let closed = connection.closed().await;
        assert!(
            matches!(closed, ConnectionError::ApplicationClosed(_)),
            "{closed}"
        );
    });
    wait_until("the connection is over", || {
        proxy.metrics().connections_active == 0
    });
}

// What a proper client does not send, by hand.

fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let fields = fields.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
    qpack::encode(fields, &mut block);
    frame(FrameKind::Headers, &block)
}

fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame_header(kind, payload.len() as u64, &mut out);
    out.extend_from_slice(payload);
    out
}

const POST: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "localhost"),
    (":path", "/"),
];

fn post(more: &[(&str, &str)]) -> Vec<u8> {
    headers(&[&POST[..], more].concat())
}

/// Sends bytes on a request's stream, and ends it; answers what comes back, or with which code the
/// stream was reset or the connection closed.
async fn raw(proxy: &TestProxy, bytes: &[u8]) -> Result<Vec<u8>, u64> {
    let (_endpoint, connection) = proxy.quic().await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    match recv.read_to_end(1 << 20).await {
        Ok(all) => Ok(all),
        Err(quinn::ReadToEndError::Read(ReadError::Reset(code))) => Err(code.into_inner()),
        Err(_) => match connection.closed().await {
            ConnectionError::ApplicationClosed(close) => Err(close.error_code.into_inner()),
            other => panic!("{other}"),
        },
    }
}

#[test]
fn malformed_requests_are_reset_and_never_reach_the_origin() {
    let origin = H3Origin::echo_path();
    let proxy = proxy(&origin);
    let data = frame(FrameKind::Data, b"12345");
    let stream_errors = [
        headers(&[(":method", "GET")]),
        post(&[("connection", "close")]),
        post(&[("Upper", "1")]),
        post(&[("content-length", "5"), ("content-length", "6")]),
        [post(&[("content-length", "3")])].concat(),
    ];
    run(async {
        for bytes in stream_errors {
            assert_eq!(raw(&proxy, &bytes).await, Err(code::MESSAGE_ERROR));
        }
        let connection_errors = [
            (data.clone(), code::FRAME_UNEXPECTED),
            (frame(FrameKind::Settings, &[]), code::FRAME_UNEXPECTED),
            (vec![0x02, 0], code::FRAME_UNEXPECTED),
            (vec![0x01, 4, 0, 0], code::FRAME_ERROR),
            (
                frame(FrameKind::Headers, &[0, 0, 0x80]),
                code::QPACK_DECOMPRESSION_FAILED,
            ),
        ];
        for (bytes, code) in connection_errors {
            assert_eq!(raw(&proxy, &bytes).await, Err(code), "{bytes:02x?}");
        }
        assert_eq!(raw(&proxy, &[]).await, Err(code::REQUEST_INCOMPLETE));
    });
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn a_head_that_is_too_large_is_a_431() {
    let origin = H3Origin::echo_path();
    let proxy = proxy(&origin);
    let long = "x".repeat(70_000);
    let many: Vec<(&str, &str)> = (0..300).map(|_| ("x", "1")).collect();
    // Its head says so already: nothing is collected.
    let mut endless = Vec::new();
    frame_header(FrameKind::Headers, 1 << 40, &mut endless);
    let expected = headers(&[(":status", "431")]);
    run(async {
        for bytes in [post(&[("x", &long)]), post(&many), endless] {
            let answer = raw(&proxy, &bytes).await.unwrap();
            assert_same(&answer, &expected);
        }
    });
    assert_eq!(origin.accepted(), 0);
}

#[test]
fn a_body_of_another_length_never_passes_as_whole() {
    let bodies = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&bodies);
    let origin = H3Origin::serve(move |mut call| {
        let count = Arc::clone(&count);
        async move {
            call.body().await?;
            count.fetch_add(1, Ordering::SeqCst);
            call.answer(200, "whole").await
        }
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = proxy_with(&origin, recorder.clone());
    let data = frame(FrameKind::Data, b"12345");
    run(async {
        for length in ["4", "6"] {
            let bytes = [post(&[("content-length", length)]), data.clone()].concat();
            assert!(raw(&proxy, &bytes).await.is_err(), "{length}");
        }
        // Cut in the middle of a frame.
        let bytes = [post(&[]), data[..4].to_vec()].concat();
        assert_eq!(raw(&proxy, &bytes).await, Err(code::FRAME_ERROR));
        let whole = [post(&[("content-length", "5")]), data].concat();
        assert!(raw(&proxy, &whole).await.is_ok());
    });
    assert_eq!(bodies.load(Ordering::SeqCst), 1);
    let ends = recorder.ends(4);
    let completed = ends.iter().filter(|o| o.kind == OutcomeKind::Completed);
    assert_eq!(completed.count(), 1);
}

/// What a connection is closed with after these bytes on unidirectional streams.
async fn uni(proxy: &TestProxy, streams: &[(Vec<u8>, bool)]) -> u64 {
    let (_endpoint, connection) = proxy.quic().await;
    let mut open = Vec::new();
    for (bytes, ends) in streams {
        let mut stream = connection.open_uni().await.unwrap();
        let _ = stream.write_all(bytes).await;
        if *ends {
            let _ = stream.finish();
        }
        open.push(stream);
    }
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_control_stream_that_breaks_the_rules_ends_the_connection() {
    let origin = H3Origin::echo_path();
    let proxy = proxy(&origin);
    let control = |frames: &[u8]| {
        let mut out = Vec::new();
        write_varint(0, &mut out);
        out.extend_from_slice(frames);
        out
    };
    let mut payload = Vec::new();
    Settings::default().write_to(&mut payload);
    let settings = frame(FrameKind::Settings, &payload);
    let twice = [settings.clone(), settings.clone()].concat();
    let data = [settings.clone(), frame(FrameKind::Data, b"x")].concat();
    let goaway = [settings.clone(), frame(FrameKind::Goaway, &[0, 0])].concat();
    let cases = [
        (
            vec![(control(&frame(FrameKind::Goaway, &[0])), false)],
            code::MISSING_SETTINGS,
        ),
        (vec![(control(&twice), false)], code::FRAME_UNEXPECTED),
        (vec![(control(&data), false)], code::FRAME_UNEXPECTED),
        (vec![(control(&goaway), false)], code::FRAME_ERROR),
        (
            vec![(control(&frame(FrameKind::Settings, &[2, 0])), false)],
            code::SETTINGS_ERROR,
        ),
        (
            vec![(control(&settings), true)],
            code::CLOSED_CRITICAL_STREAM,
        ),
        (
            vec![(control(&settings), false), (control(&settings), false)],
            code::STREAM_CREATION_ERROR,
        ),
        (vec![(vec![1, 0], false)], code::STREAM_CREATION_ERROR),
        (vec![(vec![2], true)], code::CLOSED_CRITICAL_STREAM),
    ];
    run(async {
        for (streams, code) in cases {
            assert_eq!(uni(&proxy, &streams).await, code, "{streams:02x?}");
        }
    });
}

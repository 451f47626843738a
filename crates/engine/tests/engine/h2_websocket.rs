//! WebSockets over a stream of HTTP/2 (RFC 8441), to origins that know it and to those that don't.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use tollgate_engine::UpstreamHttp;
use tollgate_flow::{Direction, HttpVersion, Interest, OutcomeKind, Step};
use tollgate_wire::websocket::{Opcode, accept_key, apply_mask, write_close, write_frame};

use crate::support::http2::{H2Client, H2Origin, response, run, send, until};
use crate::support::*;

const MASK: [u8; 4] = [9, 8, 7, 6];

fn frame(opcode: Opcode, payload: &[u8]) -> Bytes {
    let mut out = Vec::new();
    write_frame(&mut out, opcode, Some(MASK), payload);
    out.into()
}

/// An origin of HTTP/2 that announces RFC 8441, and echoes frames with their mask taken off.
fn h2_echo() -> H2Origin {
    let mut settings = h2::server::Builder::new();
    settings.enable_connect_protocol();
    H2Origin::serve_with(Identity::Good, &settings, |mut call| async move {
        if call.head.extensions.get::<Protocol>().is_none() {
            return call.answer(200, "no websocket").await;
        }
        assert_eq!(call.head.headers.get("sec-websocket-key"), None);
        assert_eq!(call.head.headers.get("connection"), None);
        let answer = response(200, &[("sec-websocket-protocol", "chat")]);
        let mut out = call.begin(answer)?;
        let mut body = Bytewise::new(call.body);
        while let Some((opcode, payload)) = body.frame().await {
            let mut frame = Vec::new();
            write_frame(&mut frame, opcode, None, &payload);
            send(&mut out, frame.into(), opcode == Opcode::Close).await?;
        }
        Ok(())
    })
}

/// An origin that chooses HTTP/2, and for whom only HTTP/1 has WebSockets.
fn both_versions() -> Origin {
    let mut config = server_config(Identity::Good);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Origin::with_tls(config, |wire, _| {
        let request = wire.read_request()?;
        let Some(key) = request.header("sec-websocket-key") else {
            return wire.send(ok("no websocket"));
        };
        assert_eq!(request.header("upgrade").as_deref(), Some("websocket"));
        wire.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
            accept_key(key.as_bytes())
        ))?;
        loop {
            let head = wire.read_exact(6)?;
            let mut payload = wire.read_exact(usize::from(head[1] & 0x7f))?;
            apply_mask(&mut payload, head[2..].try_into().unwrap(), 0);
            wire.send([&[head[0], payload.len() as u8][..], &payload].concat())?;
            if head[0] == 0x88 {
                wire.finish();
                return Ok(());
            }
        }
    })
}

/// A body of which so many bytes are read at a time.
struct Bytewise {
    body: RecvStream,
    unread: Vec<u8>,
}

impl Bytewise {
    fn new(body: RecvStream) -> Self {
        Self {
            body,
            unread: Vec::new(),
        }
    }

    /// `None` at the end.
    async fn read(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.unread.len() < n {
            self.unread.extend(self.body.data().await?.unwrap());
        }
        let rest = self.unread.split_off(n);
        Some(std::mem::replace(&mut self.unread, rest))
    }

    /// A masked frame of at most 125 bytes.
    async fn frame(&mut self) -> Option<(Opcode, Vec<u8>)> {
        let head = self.read(6).await?;
        let mut payload = self.read(usize::from(head[1] & 0x7f)).await?;
        apply_mask(&mut payload, head[2..].try_into().unwrap(), 0);
        let opcode = match head[0] & 0x0f {
            1 => Opcode::Text,
            8 => Opcode::Close,
            _ => Opcode::Binary,
        };
        Some((opcode, payload))
    }
}

/// Asks for a WebSocket; answers the response and both directions.
async fn open(client: &H2Client, path: &str) -> (http::Response<RecvStream>, SendStream<Bytes>) {
    let mut request = client
        .request("CONNECT", path)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .body(())
        .unwrap();
    request
        .extensions_mut()
        .insert(Protocol::from_static("websocket"));
    let mut sender = client.send.clone().ready().await.unwrap();
    let announced = || sender.is_extended_connect_protocol_enabled();
    until("the settings", announced).await;
    let (answer, stream) = sender.send_request(request, false).unwrap();
    (answer.await.unwrap(), stream)
}

async fn talk(client: &H2Client) {
    let (answer, mut out) = open(client, "/ws").await;
    assert_eq!(answer.status(), 200);
    let headers = answer.headers();
    assert_eq!(headers["sec-websocket-protocol"], "chat");
    for gone in [
        "sec-websocket-accept",
        "upgrade",
        "connection",
        "content-length",
    ] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    let mut body = Bytewise::new(answer.into_body());
    for text in ["one", "two"] {
        out.send_data(frame(Opcode::Text, text.as_bytes()), false)
            .unwrap();
        let echo = body.read(5).await.unwrap();
        assert_eq!(echo, [b"\x81\x03", text.as_bytes()].concat());
    }
    let close = write_close(1000, "");
    out.send_data(frame(Opcode::Close, &close), true).unwrap();
    assert_eq!(body.read(4).await.unwrap(), b"\x88\x02\x03\xe8");
    assert_eq!(body.read(1).await, None);
}

fn check(recorder: &Recorder, interest: Interest) {
    let ended = recorder.ends(1).remove(0);
    assert_eq!(ended.kind, OutcomeKind::Upgraded, "{ended:?}");
    if !interest.contains(Interest::MESSAGES) {
        return;
    }
    let sent: Vec<_> = recorder
        .messages(6)
        .into_iter()
        .filter(|(direction, ..)| *direction == Direction::Request)
        .map(|(_, kind, data)| format!("{kind} {data}"))
        .collect();
    assert_eq!(sent, ["text one", "text two", "close "]);
    let websocket = recorder.stream().0.unwrap();
    assert_eq!(
        (websocket.client_messages, websocket.origin_messages),
        (2, 2)
    );
    assert_eq!(websocket.close.unwrap().code, Some(1000));
}

const INTERESTS: [Interest; 3] = [Interest::END, Interest::MESSAGES, Interest::EDIT_MESSAGES];

#[test]
fn an_origin_that_announces_it_gets_it_over_http2() {
    for interest in INTERESTS {
        let origin = h2_echo();
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            talk(&client).await;
        });
        check(&recorder, interest);
        // A connection of HTTP/1 may have been tried in vain, as long as the origin's settings were on their way.
        let heads = origin.heads();
        let [head] = &heads[..] else {
            panic!("{heads:?}");
        };
        assert_eq!((head.method.as_str(), head.uri.path()), ("CONNECT", "/ws"));
    }
}

#[test]
fn an_origin_that_does_not_is_asked_over_http1() {
    for interest in INTERESTS {
        let origin = both_versions();
        let recorder = Recorder::new(interest);
        let mut config = config();
        config.upstream_http = UpstreamHttp::Http2;
        let proxy = start_with(config, [recorder.clone()]);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            talk(&client).await;
        });
        check(&recorder, interest);
        let received = String::from_utf8_lossy(&origin.received_all()).into_owned();
        assert!(received.starts_with("GET /ws HTTP/1.1\r\n"), "{received}");
    }
}

#[test]
fn interceptors_see_an_upgrade_whichever_way_it_came() {
    let origin = h2_echo();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let hook = Hook::new(Interest::HEADS | Interest::EDIT_MESSAGES)
        .on_request(move |flow| {
            assert_eq!(flow.request.version, HttpVersion::Http2);
            let mut log = log.lock().unwrap();
            log.push(String::from_utf8_lossy(flow.request.method()).into_owned());
            let upgrade = flow.request.headers().get("upgrade");
            log.push(String::from_utf8_lossy(upgrade.unwrap_or_default()).into_owned());
            flow.request.headers_mut().set(b"x-hook", b"1").unwrap();
            Step::Continue
        })
        .on_message(|_, message| match message.text() {
            Some("one") => Step::Replace(Bytes::from_static(b"new")),
            _ => Step::Continue,
        });
    let proxy = start_with(config(), [hook.shared()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let (answer, mut out) = open(&client, "/ws").await;
        let mut body = Bytewise::new(answer.into_body());
        out.send_data(frame(Opcode::Text, b"one"), false).unwrap();
        assert_eq!(body.read(5).await.unwrap(), b"\x81\x03new");
        // The connection goes on beside it.
        assert_eq!(client.get("/").await.unwrap().text(), "no websocket");
    });
    assert_eq!(*seen.lock().unwrap(), ["GET", "websocket", "GET", ""]);
    assert_eq!(origin.heads()[0].headers["x-hook"], "1");
}

#[test]
fn a_violation_over_http2_is_closed_on_both_sides() {
    let origin = h2_echo();
    let recorder = Recorder::new(Interest::EDIT_MESSAGES);
    let proxy = start_with(config(), [recorder.clone()]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let (answer, mut out) = open(&client, "/ws").await;
        let mut body = Bytewise::new(answer.into_body());
        // Not masked.
        out.send_data(Bytes::from_static(b"\x81\x01x"), false)
            .unwrap();
        let close = body.read(4).await.unwrap();
        assert_eq!(close[0], 0x88);
        assert_eq!(close[2..], 1002_u16.to_be_bytes());
        let _ = out.send_data(Bytes::new(), true);
        assert_eq!(client.get("/").await.unwrap().text(), "no websocket");
    });
    assert_eq!(recorder.ends(2).len(), 2);
}

#[test]
fn a_refusal_is_an_ordinary_response_and_plain_connect_is_not_served() {
    let origin = H2Origin::serve_with(
        Identity::Good,
        h2::server::Builder::new().enable_connect_protocol(),
        |mut call| async move { call.answer(403, "not here").await },
    );
    let proxy = start_with(config(), [Recorder::new(Interest::MESSAGES)]);
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let (answer, _out) = open(&client, "/ws").await;
        assert_eq!(answer.status(), 403);
        let mut body = Bytewise::new(answer.into_body());
        assert_eq!(body.read(8).await.unwrap(), b"not here");
        let request = http::Request::builder()
            .method("CONNECT")
            .uri("localhost:1")
            .body(())
            .unwrap();
        let mut sender = client.send.clone().ready().await.unwrap();
        let (answer, _) = sender.send_request(request, false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 501);
    });
}

#[test]
fn a_client_of_http1_gets_its_websocket_where_others_share_http2() {
    let origin = both_versions();
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http2;
    let recorder = Recorder::new(Interest::MESSAGES);
    let proxy = start_with(config, [recorder.clone()]);
    let mut client = proxy.tls(&origin);
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    client
        .send(format!(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        ))
        .unwrap();
    assert!(client.read_head().unwrap().starts_with(b"HTTP/1.1 101 "));
    client.send(frame(Opcode::Text, b"one")).unwrap();
    assert_eq!(client.read_exact(5).unwrap(), b"\x81\x03one");
}

//! WebSockets between an HTTP/1 client and an HTTP/1 origin: what is shown, what may be changed, and
//! what happens to a peer that breaks the protocol.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tollgate_flow::{
    Bytes, Direction, ErrorClass, Interest, MessageKind, OutcomeKind, Reply, Side, Step,
    UNREAD_MESSAGES, WebSocketClose, WebSocketHandle,
};
use tollgate_wire::websocket::{
    Close, Deflater, Event, MessageReader, Opcode, PermessageDeflate, Sender, accept_key,
    write_close, write_frame, write_message_frame,
};

use crate::support::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: Option<[u8; 4]> = Some([0x11, 0x22, 0x33, 0x44]);

fn handshake(extensions: &str) -> String {
    let extensions = match extensions {
        "" => String::new(),
        offer => format!("Sec-WebSocket-Extensions: {offer}\r\n"),
    };
    format!(
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{extensions}\r\n"
    )
}

fn switching(extensions: &str) -> String {
    let extensions = match extensions {
        "" => String::new(),
        agreed => format!("Sec-WebSocket-Extensions: {agreed}\r\n"),
    };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{extensions}\r\n",
        accept_key(KEY.as_bytes())
    )
}

/// Opens a WebSocket, and then echoes bytes with the client's mask taken off.
fn echo(extensions: &'static str) -> Origin {
    Origin::script(Identity::Good, move |wire, _| {
        wire.read_request()?;
        wire.send(switching(extensions))?;
        let mut peer = Peer::new(Sender::Client, extensions);
        loop {
            let Some((opcode, data)) = peer.next(wire) else {
                return Ok(());
            };
            let mut out = Vec::new();
            let answer = if opcode == Opcode::Ping {
                Opcode::Pong
            } else {
                opcode
            };
            write_frame(&mut out, answer, None, &data);
            wire.send(&out)?;
            if opcode == Opcode::Close {
                wire.finish();
                return Ok(());
            }
        }
    })
}

/// Reads a side's messages.
struct Peer {
    reader: MessageReader,
    unread: Vec<u8>,
}

impl Peer {
    fn new(sender: Sender, extensions: &str) -> Self {
        let agreed = PermessageDeflate::default();
        let deflate = (!extensions.is_empty()).then_some(&agreed);
        Self {
            reader: MessageReader::new(sender, 1 << 26, deflate),
            unread: Vec::new(),
        }
    }

    /// The next message, pings and all; `None` at the end. A close frame's payload is its code and
    /// reason.
    fn next(&mut self, wire: &mut Wire) -> Option<(Opcode, Vec<u8>)> {
        loop {
            if self.unread.is_empty() {
                let mut byte = wire.read_exact(1).ok()?;
                self.unread.append(&mut byte);
            }
            let unread = std::mem::take(&mut self.unread);
            let mut rest = unread.as_slice();
            let event = self.reader.next(&mut rest).unwrap();
            let next = event.and_then(|event| match event {
                Event::Text(text) => Some((Opcode::Text, text.as_bytes().to_vec())),
                Event::Binary(data) => Some((Opcode::Binary, data.to_vec())),
                Event::Ping(data) => Some((Opcode::Ping, data.to_vec())),
                Event::Pong(data) => Some((Opcode::Pong, data.to_vec())),
                Event::Close(Close { code, reason }) => {
                    let payload = code.map_or(Vec::new(), |code| write_close(code, reason));
                    Some((Opcode::Close, payload))
                }
                Event::Fragment => None,
            });
            self.unread = rest.to_vec();
            if next.is_some() {
                return next;
            }
        }
    }

    fn text(&mut self, wire: &mut Wire) -> String {
        let (opcode, data) = self.next(wire).unwrap();
        assert_eq!(opcode, Opcode::Text);
        String::from_utf8(data).unwrap()
    }

    /// The code and reason of the close frame that must come now.
    fn close(&mut self, wire: &mut Wire) -> (u16, String) {
        let (opcode, data) = self.next(wire).unwrap();
        assert_eq!(opcode, Opcode::Close);
        let close = Close::parse(&data).unwrap();
        (close.code.unwrap(), close.reason.to_owned())
    }
}

fn open(proxy: &TestProxy, origin: &Origin, extensions: &str) -> (Wire, Peer) {
    let mut client = proxy.tls(origin);
    client.send(handshake(extensions)).unwrap();
    let head = client.read_head().unwrap();
    assert!(head.starts_with(b"HTTP/1.1 101 Switching Protocols\r\n"));
    (client, Peer::new(Sender::Server, extensions))
}

fn frame(opcode: Opcode, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    write_frame(&mut out, opcode, MASK, payload.as_ref());
    out
}

fn text(payload: &str) -> Vec<u8> {
    frame(Opcode::Text, payload)
}

/// A text in two fragments with a ping between them.
fn fragmented() -> Vec<u8> {
    let mut out = frame(Opcode::Text, "two ");
    out[0] = 0x01;
    out.extend(frame(Opcode::Ping, "?"));
    let end = out.len();
    out.extend(frame(Opcode::Text, "parts"));
    out[end] = 0x80;
    out
}

#[test]
fn frames_that_nobody_edits_pass_as_they_came() {
    let everything = [
        text("one"),
        fragmented(),
        frame(Opcode::Binary, pattern(70_000)),
        frame(Opcode::Pong, ""),
        frame(Opcode::Close, write_close(1000, "bye")),
        b"and what comes after the end".to_vec(),
    ]
    .concat();
    let back = b"\x81\x02hi\x89\x00\x88\x02\x03\xe8";
    for interest in [Interest::END, Interest::MESSAGES, Interest::EDIT_MESSAGES] {
        let length = everything.len()
            - if interest == Interest::EDIT_MESSAGES {
                28
            } else {
                0
            };
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            // The first frame comes with the answer.
            wire.send([switching("").as_bytes(), back].concat())?;
            wire.read_exact(length)?;
            wire.finish();
            Ok(())
        });
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        client.send(handshake("")).unwrap();
        assert_same(&client.read_head().unwrap(), switching("").as_bytes());
        assert_eq!(client.read_exact(back.len()).unwrap(), back);
        for piece in everything.chunks(1000) {
            client.send(piece).unwrap();
        }
        client.read_to_end();
        client.finish();
        let mut passed = everything[..length].to_vec();
        if interest == Interest::EDIT_MESSAGES {
            // The fragments wait for their message to be whole; the ping between them doesn't.
            let start = text("one").len();
            let end = start + fragmented().len();
            let (first, ping) = (
                frame(Opcode::Text, "two ").len(),
                frame(Opcode::Ping, "?").len(),
            );
            passed[start..end][..first + ping].rotate_left(first);
        }
        let request = handshake("");
        let expected = [request.as_bytes(), &passed].concat();
        wait_until("the origin has it all", || {
            origin.received_all().len() >= expected.len()
        });
        assert_same(&origin.received_all(), &expected);
        assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Upgraded);
    }
}

#[test]
fn observers_see_messages_in_their_order_and_the_flow_counts_them() {
    let origin = echo("");
    let recorder = Recorder::new(Interest::MESSAGES);
    let proxy = start_with(config(), [recorder.clone()]);
    let (mut client, mut peer) = open(&proxy, &origin, "");
    client.send([text("one"), fragmented()].concat()).unwrap();
    for expected in ["one", "?", "two parts"] {
        let (_, data) = peer.next(&mut client).unwrap();
        assert_eq!(String::from_utf8(data).unwrap(), expected);
    }
    client
        .send(frame(Opcode::Close, write_close(4000, "enough")))
        .unwrap();
    assert_eq!(peer.close(&mut client), (4000, "enough".to_owned()));
    client.finish();
    let (websocket, marks) = recorder.stream();
    let websocket = websocket.unwrap();
    assert_eq!(
        (websocket.client_messages, websocket.origin_messages),
        (2, 2)
    );
    let close = WebSocketClose {
        by: Side::Client,
        code: Some(4000),
        reason: "enough".to_owned(),
    };
    assert_eq!(websocket.close, Some(close));
    assert!(websocket.handle().is_none());
    assert_eq!(marks, []);
    let mut requests = Vec::new();
    let mut responses = Vec::new();
    for event in recorder.events() {
        if let support_event!(direction, sequence, kind, data) = event {
            let seen = (sequence, kind, String::from_utf8(data).unwrap());
            match direction {
                Direction::Request => requests.push(seen),
                Direction::Response => responses.push(seen),
            }
        }
    }
    let list = |list: &[(u64, &str, &str)]| -> Vec<(u64, String, String)> {
        list.iter()
            .map(|(sequence, kind, data)| (*sequence, (*kind).to_owned(), (*data).to_owned()))
            .collect()
    };
    assert_eq!(
        requests,
        list(&[
            (0, "text", "one"),
            (1, "ping", "?"),
            (2, "text", "two parts"),
            (3, "close", "enough")
        ])
    );
    assert_eq!(
        responses,
        list(&[
            (0, "text", "one"),
            (1, "pong", "?"),
            (2, "text", "two parts"),
            (3, "close", "enough")
        ])
    );
    assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Upgraded);
    assert_eq!(proxy.metrics().websocket_messages, 4);
    assert_eq!(proxy.metrics().websockets_total, 1);
}

macro_rules! support_event {
    ($direction:ident, $sequence:ident, $kind:ident, $data:ident) => {
        crate::support::Event::Message($direction, $sequence, $kind, $data)
    };
}
use support_event;

#[test]
fn messages_are_replaced_dropped_and_passed() {
    let origin = echo("");
    let hook = Hook::new(Interest::EDIT_MESSAGES).on_message(|_, message| {
        match (message.direction, message.text()) {
            (Direction::Request, Some("secret")) => Step::Replace(Bytes::from_static(b"***")),
            (Direction::Request, Some("never")) => Step::Drop,
            (Direction::Response, Some("answer")) => Step::Replace(Bytes::from("a longer answer")),
            _ => Step::Continue,
        }
    });
    let recorder = Recorder::new(Interest::MESSAGES);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let (mut client, mut peer) = open(&proxy, &origin, "");
    let sent = ["a", "secret", "never", "answer", "z"].map(text).concat();
    client.send(sent).unwrap();
    for expected in ["a", "***", "a longer answer", "z"] {
        assert_eq!(peer.text(&mut client), expected);
    }
    // A later interceptor sees what an earlier one made of it, and nothing of what it dropped.
    let seen: Vec<String> = recorder
        .messages(8)
        .into_iter()
        .filter(|(direction, ..)| *direction == Direction::Request)
        .map(|(_, _, data)| data)
        .collect();
    assert_eq!(seen, ["a", "***", "answer", "z"]);
}

#[test]
fn compressed_messages_survive_edits_of_their_neighbours() {
    for (agreed, keeps) in [
        ("permessage-deflate", true),
        (
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            false,
        ),
    ] {
        let hook =
            Hook::new(Interest::EDIT_MESSAGES).on_message(|_, message| match message.text() {
                Some("drop this one") => Step::Drop,
                Some("change this one") => Step::Replace(Bytes::from_static(b"changed, this one")),
                _ => Step::Continue,
            });
        let received: Arc<Mutex<Vec<String>>> = Arc::default();
        let at_origin = Arc::clone(&received);
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send(switching(agreed))?;
            let mut peer = Peer::new(Sender::Client, agreed);
            while let Some((_, data)) = peer.next(wire) {
                at_origin
                    .lock()
                    .unwrap()
                    .push(String::from_utf8(data).unwrap());
            }
            Ok(())
        });
        let proxy = start_with(config(), [hook.shared()]);
        let (mut client, _) = open(
            &proxy,
            &origin,
            "permessage-deflate; client_max_window_bits",
        );
        let parameters = PermessageDeflate {
            client_no_context_takeover: !keeps,
            ..PermessageDeflate::default()
        };
        let mut deflater = Deflater::new(&parameters, Sender::Client);
        let sent = [
            "the same words again and again",
            "drop this one",
            "the same words again and again",
            "change this one",
            "the same words again and again",
            "and not compressed",
            "the same words again and again",
        ];
        for message in sent {
            let mut out = Vec::new();
            let mut squeezed = Vec::new();
            if message.contains("not") {
                out = text(message);
            } else {
                assert!(deflater.message(message.as_bytes(), &mut squeezed));
                write_message_frame(&mut out, Opcode::Text, MASK, true, &squeezed);
            }
            client.send(out).unwrap();
        }
        wait_until("six messages", || received.lock().unwrap().len() == 6);
        let mut expected = sent.to_vec();
        expected[3] = "changed, this one";
        expected.remove(1);
        assert_eq!(*received.lock().unwrap(), expected);
    }
}

#[test]
fn a_message_waits_for_a_hold_and_those_before_it_do_not() {
    let origin = echo("");
    let (decide, decided) = std::sync::mpsc::channel::<()>();
    let decided = Arc::new(Mutex::new(decided));
    let hook = Hook::new(Interest::EDIT_MESSAGES).on_message(move |_, message| {
        if message.direction == Direction::Request && message.text() == Some("judge me") {
            let decided = Arc::clone(&decided);
            let verdict = async move {
                let waited = tokio::task::spawn_blocking(move || decided.lock().unwrap().recv());
                waited.await.unwrap().unwrap();
                Step::Replace(Bytes::from_static(b"judged"))
            };
            return Step::hold(verdict, Duration::from_secs(60), Step::Drop);
        }
        Step::Continue
    });
    let proxy = start_with(config(), [hook.shared()]);
    let (mut client, mut peer) = open(&proxy, &origin, "");
    client
        .send([text("first"), text("judge me"), text("last")].concat())
        .unwrap();
    assert_eq!(peer.text(&mut client), "first");
    decide.send(()).unwrap();
    assert_eq!(peer.text(&mut client), "judged");
    assert_eq!(peer.text(&mut client), "last");
}

#[test]
fn an_interceptor_speaks_to_both_sides_and_closes_them() {
    let handle: Arc<Mutex<Option<WebSocketHandle>>> = Arc::default();
    let taken = Arc::clone(&handle);
    let hook = Hook::new(Interest::EDIT_MESSAGES).on_message(move |flow, _| {
        let websocket = flow.websocket.as_ref().unwrap();
        *taken.lock().unwrap() = websocket.handle().cloned();
        Step::Continue
    });
    let recorder = Recorder::new(Interest::MESSAGES);
    let origin = echo("");
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let (mut client, mut peer) = open(&proxy, &origin, "");
    client.send(text("hello")).unwrap();
    assert_eq!(peer.text(&mut client), "hello");
    let handle = handle.lock().unwrap().clone().unwrap();
    handle
        .send_text(Direction::Response, "for the client")
        .unwrap();
    assert_eq!(peer.text(&mut client), "for the client");
    handle
        .send_binary(Direction::Request, &b"for the origin"[..])
        .unwrap();
    assert_eq!(
        peer.next(&mut client).unwrap(),
        (Opcode::Binary, b"for the origin".to_vec())
    );
    let injected = recorder
        .messages(5)
        .into_iter()
        .filter(|(_, kind, _)| kind.starts_with("injected"))
        .count();
    assert_eq!(injected, 2);
    handle.close(4001, "enough").unwrap();
    assert_eq!(peer.close(&mut client), (4001, "enough".to_owned()));
    client.finish();
    let (websocket, _) = recorder.stream();
    let websocket = websocket.unwrap();
    assert_eq!(
        (websocket.client_messages, websocket.origin_messages),
        (1, 2)
    );
    assert_eq!(websocket.close.unwrap().by, Side::Proxy);
    assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Upgraded);
    assert!(handle.send_text(Direction::Request, "late").is_err());
    let received = origin.received_all();
    assert!(received.len() > handshake("").len());
}

#[test]
fn close_and_failures_reach_both_sides_as_close_frames() {
    for (step, code, kind) in [
        ("close", 1008, OutcomeKind::Dropped),
        ("panic", 1011, OutcomeKind::Failed),
        ("bytes", 1011, OutcomeKind::Failed),
    ] {
        let hook = Hook::new(Interest::EDIT_MESSAGES).on_message(move |_, message| {
            if !matches!(message.kind, MessageKind::Text) {
                return Step::Continue;
            }
            match step {
                "close" => Step::close("not in here"),
                "panic" => panic!("on purpose"),
                _ => Step::Replace(Bytes::from_static(b"\xff is no text")),
            }
        });
        let closes: Arc<Mutex<Vec<(u16, String)>>> = Arc::default();
        let at_origin = Arc::clone(&closes);
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send(switching(""))?;
            let mut peer = Peer::new(Sender::Client, "");
            at_origin.lock().unwrap().push(peer.close(wire));
            Ok(())
        });
        let recorder = Recorder::new(Interest::END);
        let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
        let (mut client, mut peer) = open(&proxy, &origin, "");
        client.send(text("anything")).unwrap();
        let (got, reason) = peer.close(&mut client);
        assert_eq!(got, code, "{step}");
        client.finish();
        assert_eq!(recorder.ends(1)[0].kind, kind);
        wait_until("the origin's close", || !closes.lock().unwrap().is_empty());
        let (got, at_origin) = closes.lock().unwrap()[0].clone();
        assert_eq!(got, code);
        // What an interceptor says stays on the client's side.
        assert_eq!(at_origin, "");
        assert_eq!(reason == "not in here", step == "close");
    }
}

#[test]
fn what_follows_a_close_frame_is_dropped_where_somebody_may_edit() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send(switching(""))?;
        let mut peer = Peer::new(Sender::Client, "");
        assert_eq!(peer.close(wire).0, 1000);
        // Only now: the client's direction has ended.
        assert_eq!(wire.read_to_end().0, b"");
        let mut answer = Vec::new();
        write_frame(&mut answer, Opcode::Close, None, &write_close(1000, ""));
        wire.send(answer)?;
        wire.finish();
        Ok(())
    });
    let recorder = Recorder::new(Interest::EDIT_MESSAGES);
    let mut config = config();
    config.limits.message_bytes = 1000;
    let proxy = start_with(config, [recorder.clone()]);
    let (mut client, mut peer) = open(&proxy, &origin, "");
    client
        .send(frame(Opcode::Close, write_close(1000, "")))
        .unwrap();
    client.send(pattern(300_000)).unwrap();
    client.finish();
    assert_eq!(peer.close(&mut client).0, 1000);
    let outcome = recorder.ends(1).remove(0);
    assert_eq!((outcome.kind, outcome.error), (OutcomeKind::Upgraded, None));
}

/// Frames that break the protocol, and the code that says it.
fn violations() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut endless = frame(Opcode::Binary, vec![0; 1000]);
    endless[0] = 0x02;
    for _ in 0..70 {
        let start = endless.len();
        endless.extend(frame(Opcode::Binary, vec![0; 1000]));
        endless[start] = 0x00;
    }
    let mut bomb = Vec::new();
    let mut squeezed = Vec::new();
    let agreed = PermessageDeflate::default();
    assert!(Deflater::new(&agreed, Sender::Client).message(&vec![0; 1 << 20], &mut squeezed));
    write_message_frame(&mut bomb, Opcode::Binary, MASK, true, &squeezed);
    let with_first = |first: u8| {
        let mut out = text("x");
        out[0] = first;
        out
    };
    let mut unmasked = Vec::new();
    write_frame(&mut unmasked, Opcode::Text, None, b"x");
    let control = [&[0x89, 0x80 | 126, 0, 126][..], &[0; 130]].concat();
    vec![
        ("reserved bit", with_first(0xa1), 1002),
        ("reserved opcode", with_first(0x83), 1002),
        ("unmasked", unmasked, 1002),
        ("oversized control frame", control, 1002),
        ("not UTF-8", frame(Opcode::Text, b"\xff"), 1007),
        ("endless fragments", endless, 1009),
        (
            "announced size",
            [&[0x82, 0xff, 0, 0, 0, 1][..], &[0; 8]].concat(),
            1009,
        ),
        ("bomb", bomb, 1009),
    ]
}

#[test]
fn fragments_that_are_empty_are_not_held_for_ever() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_request()?;
        wire.send(switching(""))?;
        wire.read_to_end();
        Ok(())
    });
    let recorder = Recorder::new(Interest::EDIT_MESSAGES);
    let mut config = config();
    config.limits.message_bytes = 1024;
    let proxy = start_with(config, [recorder.clone()]);
    let (mut client, mut peer) = open(&proxy, &origin, "");
    let mut first = frame(Opcode::Text, "x");
    first[0] = 0x01;
    let mut empty = frame(Opcode::Text, "");
    empty[0] = 0x00;
    client.send(&first).unwrap();
    // More than the slack that framing has. The close may come before all of it was taken.
    for _ in 0..64 {
        if client.send(empty.repeat(4096)).is_err() {
            break;
        }
    }
    assert_eq!(peer.close(&mut client).0, 1009);
    let error = recorder.ends(1).remove(0).error.unwrap();
    assert_eq!((error.side, error.class), (Side::Client, ErrorClass::Limit));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_closed_where_somebody_may_edit() {
    for (what, bytes, code) in violations() {
        let closes: Arc<Mutex<Vec<u16>>> = Arc::default();
        let at_origin = Arc::clone(&closes);
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send(switching("permessage-deflate"))?;
            let mut peer = Peer::new(Sender::Client, "permessage-deflate");
            assert_eq!(peer.text(wire), "before");
            at_origin.lock().unwrap().push(peer.close(wire).0);
            Ok(())
        });
        let recorder = Recorder::new(Interest::EDIT_MESSAGES);
        let mut config = config();
        config.limits.message_bytes = 64 * 1024;
        let proxy = start_with(config, [recorder.clone()]);
        let (mut client, mut peer) = open(&proxy, &origin, "permessage-deflate");
        client.send([text("before"), bytes].concat()).unwrap();
        assert_eq!(peer.close(&mut client).0, code, "{what}");
        client.finish();
        let outcome = recorder.ends(1).remove(0);
        let error = outcome.error.unwrap();
        let class = if code == 1009 {
            ErrorClass::Limit
        } else {
            ErrorClass::Protocol
        };
        assert_eq!((error.side, error.class), (Side::Client, class), "{what}");
        wait_until("the origin's close", || !closes.lock().unwrap().is_empty());
        assert_eq!(*closes.lock().unwrap(), [code]);
    }
}

#[test]
fn what_an_observer_cant_read_passes_and_marks_the_flow() {
    for (what, bytes, _) in violations() {
        let length = bytes.len();
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            wire.send(switching("permessage-deflate"))?;
            wire.read_exact(length)?;
            wire.send(b"\x81\x02ok")?;
            wire.read_to_end();
            Ok(())
        });
        let recorder = Recorder::new(Interest::MESSAGES);
        let mut config = config();
        config.limits.message_bytes = 64 * 1024;
        let proxy = start_with(config, [recorder.clone()]);
        let (mut client, mut peer) = open(&proxy, &origin, "permessage-deflate");
        client.send(&bytes).unwrap();
        assert_eq!(peer.text(&mut client), "ok", "{what}");
        client.finish();
        let (websocket, marks) = recorder.stream();
        assert_eq!(websocket.unwrap().origin_messages, 1);
        assert_eq!(marks.len(), 1, "{what}");
        assert_eq!(marks[0].0, UNREAD_MESSAGES);
        assert!(marks[0].1.starts_with("client: "), "{:?}", marks[0]);
        assert_eq!(proxy.metrics().observer_truncations, 1);
        assert!(origin.received_all().ends_with(&bytes));
    }
}

#[test]
fn an_extension_that_cant_be_read_passes_for_observers_and_is_not_offered_for_editors() {
    let offer = "x-secret; a=\"b, c\", permessage-deflate";
    for (interest, offered) in [
        (Interest::MESSAGES, Some(offer)),
        (Interest::EDIT_MESSAGES, Some("permessage-deflate")),
    ] {
        let origin = Origin::script(Identity::Good, |wire, _| {
            let request = wire.read_request()?;
            let offer = request.header("sec-websocket-extensions").unwrap();
            wire.send(switching(if offer.contains("x-secret") {
                "x-secret"
            } else {
                ""
            }))?;
            // A frame that only the extension explains.
            wire.send(if offer.contains("x-secret") {
                b"\xb1\x01?"
            } else {
                b"\x81\x01!"
            })?;
            wire.read_to_end();
            Ok(())
        });
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        client.send(handshake(offer)).unwrap();
        client.read_head().unwrap();
        let frame = client.read_exact(3).unwrap();
        client.finish();
        let (_, marks) = recorder.stream();
        let sent = String::from_utf8(origin.received_all()).unwrap();
        let line = sent
            .lines()
            .find_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        assert_eq!(line, offered);
        let unread = interest == Interest::MESSAGES;
        assert_eq!(frame, if unread { b"\xb1\x01?" } else { b"\x81\x01!" });
        assert_eq!(marks.len(), usize::from(unread));
    }
}

#[test]
fn an_origin_that_agrees_to_what_an_editor_cant_read_is_a_502() {
    let origin = Origin::http(Identity::Good, |_| switching("x-secret").into_bytes());
    let recorder = Recorder::new(Interest::EDIT_MESSAGES);
    let proxy = start_with(config(), [recorder.clone()]);
    let response = proxy.tls(&origin).exchange(handshake("")).unwrap();
    assert_eq!(response.status(), 502);
}

#[test]
fn a_wrong_accept_is_a_502_whoever_watches() {
    let wrong = switching("").replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x");
    let missing = switching("").replace("Sec-WebSocket-Accept", "X-Accept");
    for interest in [Interest::END, Interest::MESSAGES, Interest::EDIT_MESSAGES] {
        for answer in [wrong.clone(), missing.clone()] {
            let answer = answer.into_bytes();
            let origin = Origin::http(Identity::Good, move |_| answer.clone());
            let recorder = Recorder::new(interest);
            let proxy = start_with(config(), [recorder.clone()]);
            let response = proxy.tls(&origin).exchange(handshake("")).unwrap();
            assert_eq!(response.status(), 502);
            let error = recorder.ends(1).remove(0).error.unwrap();
            assert_eq!(
                (error.side, error.class),
                (Side::Upstream, ErrorClass::Protocol)
            );
        }
    }
}

#[test]
fn a_handshake_that_is_refused_or_answered_here_is_an_ordinary_response() {
    let origin = Origin::http(Identity::Good, |_| {
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec()
    });
    let proxy = start_with(config(), [Recorder::new(Interest::EDIT_MESSAGES)]);
    let mut client = proxy.tls(&origin);
    for _ in 0..2 {
        let response = client.exchange(handshake("")).unwrap();
        assert_eq!((response.status(), response.text().as_str()), (403, "no"));
    }
    let hook = Hook::new(Interest::REQUEST | Interest::EDIT_MESSAGES)
        .on_request(|_| Step::respond(Reply::new(429)));
    let proxy = start_with(config(), [hook.shared()]);
    let response = proxy.tls(&origin).exchange(handshake("")).unwrap();
    assert_eq!(response.status(), 429);
    let received = String::from_utf8(origin.received_all()).unwrap();
    assert_eq!(received.matches("GET /ws").count(), 2);
}

#[test]
fn a_peer_that_goes_away_without_a_close_frame_is_a_failure() {
    for interest in [Interest::MESSAGES, Interest::EDIT_MESSAGES] {
        let origin = Origin::script(Identity::Good, |wire, _| {
            wire.read_request()?;
            wire.send([switching("").as_bytes(), b"\x81\x05cut"].concat())?;
            wire.read_exact(1)?;
            Ok(())
        });
        let recorder = Recorder::new(interest);
        let proxy = start_with(config(), [recorder.clone()]);
        let (mut client, _) = open(&proxy, &origin, "");
        client.send(text("x")).unwrap();
        let (rest, _) = client.read_to_end();
        // An editor has not let the start of a message pass.
        let passed = if interest == Interest::MESSAGES {
            &b"\x81\x05cut"[..]
        } else {
            b""
        };
        assert_eq!(rest, passed);
        drop(client);
        let (websocket, _) = recorder.stream();
        assert_eq!(websocket.unwrap().close, None);
        recorder.ends(1);
    }
}

//! The messages inside bodies that are streams: shown as they pass, and never held back.

use std::io::Write;

use tollgate_flow::{Direction, Interest, MessageKind, OutcomeKind, Step, UNREAD_MESSAGES};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A response head for a chunked body.
fn head(fields: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{fields}\r\n")
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(data).unwrap();
    gzip.finish().unwrap()
}

fn seen(recorder: &Recorder, n: usize) -> Vec<String> {
    let word = |(direction, kind, data): (Direction, String, String)| {
        let arrow = if direction == Direction::Request {
            ">"
        } else {
            "<"
        };
        format!("{arrow} {kind} {data}")
    };
    recorder.messages(n).into_iter().map(word).collect()
}

/// One response with this head and body, and what an observer made of it.
fn observe(fields: &str, body: &[u8], limit: usize) -> (Vec<String>, Vec<(String, String)>) {
    let answer = [head(fields).as_bytes(), &chunk(body), b"0\r\n\r\n"].concat();
    let origin = Origin::http(Identity::Good, move |_| answer.clone());
    let recorder = Recorder::new(Interest::MESSAGES);
    let mut config = config();
    config.limits.message_bytes = limit;
    let proxy = start_with(config, [recorder.clone()]);
    let response = proxy.tls(&origin).exchange(GET).unwrap();
    assert_same(&response.body, body);
    assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Completed);
    let marks = recorder.stream().1;
    assert_eq!(
        proxy.metrics().observer_truncations,
        u64::from(!marks.is_empty())
    );
    (seen(&recorder, 0), marks)
}

#[test]
fn each_event_is_shown_and_passes_before_the_next_one_exists() {
    for compressed in [false, true] {
        let (go, next) = std::sync::mpsc::channel::<()>();
        let next = std::sync::Mutex::new(next);
        let origin = Origin::script(Identity::Good, move |wire, _| {
            wire.read_request()?;
            let coding = if compressed {
                "Content-Encoding: gzip\r\n"
            } else {
                ""
            };
            wire.send(head(&format!(
                "Content-Type: text/event-stream\r\n{coding}"
            )))?;
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            for i in 0..3 {
                let event = format!("event: tick\ndata: {i}\n\n");
                if compressed {
                    gzip.write_all(event.as_bytes())?;
                    gzip.flush()?;
                    wire.send(chunk(gzip.get_ref()))?;
                    gzip.get_mut().clear();
                } else {
                    wire.send(chunk(event.as_bytes()))?;
                }
                next.lock().unwrap().recv().unwrap();
            }
            let end = if compressed {
                chunk(&gzip.finish()?)
            } else {
                Vec::new()
            };
            wire.send([&end[..], b"0\r\n\r\n"].concat())
        });
        let recorder = Recorder::new(Interest::MESSAGES);
        let proxy = start_with(config(), [recorder.clone()]);
        let mut client = proxy.tls(&origin);
        client.send(GET).unwrap();
        client.read_head().unwrap();
        for i in 0..3 {
            // The bytes of the event, whatever they look like.
            client.read_until(b"\r\n").unwrap();
            assert_eq!(recorder.messages(i + 1)[i].2, i.to_string());
            go.send(()).unwrap();
        }
        recorder.ends(1);
        assert_eq!(seen(&recorder, 3), ["< sse 0", "< sse 1", "< sse 2"]);
    }
}

#[test]
fn streams_are_split_by_their_type() {
    let all = |fields: &str, body: &str| observe(fields, body.as_bytes(), 1 << 20);
    let nothing: &[(String, String)] = &[];
    for (content_type, body, expected) in [
        (
            "application/x-ndjson",
            "{\"a\":1}\n[2]\n",
            &["< ndjson {\"a\":1}", "< ndjson [2]"][..],
        ),
        (
            "application/json-seq",
            "\x1e{}\n\x1e1\n",
            &["< json-seq {}", "< json-seq 1"],
        ),
        (
            "application/json",
            "[{\"a\":[1]},\n2]",
            &["< json-element {\"a\":[1]}", "< json-element 2"],
        ),
        // An ordinary answer is no stream, and no reason for a mark.
        ("application/json", "{\"a\": [1, 2]}", &[]),
        ("text/html", "[1]", &[]),
        (
            "application/grpc-web+proto",
            "\0\0\0\0\x02hi\u{0}\0\0\0\0",
            &["< grpc hi", "< grpc "],
        ),
        (
            "application/connect+json",
            "\0\0\0\0\x02{}\x02\0\0\0\x02{}",
            &["< connect {}", "< connect-end {}"],
        ),
    ] {
        let (messages, marks) = all(&format!("Content-Type: {content_type}\r\n"), body);
        assert_eq!(messages, expected, "{content_type}");
        assert_eq!(marks, nothing, "{content_type}");
    }
}

#[test]
fn what_cant_be_read_passes_and_marks_the_flow() {
    let sse = "Content-Type: text/event-stream\r\n";
    let large = format!("data: 1\n\ndata: {}\n\ndata: 3\n\n", "x".repeat(5000));
    let bomb = gzip(format!("data: {}\n\n", "x".repeat(100_000)).as_bytes());
    for (fields, body, expected) in [
        (sse.to_owned(), large.into_bytes(), &["< sse 1"][..]),
        (format!("{sse}Content-Encoding: gzip\r\n"), bomb, &[]),
        (
            format!("{sse}Content-Encoding: gzip\r\n"),
            b"data: no gzip\n\n".to_vec(),
            &[],
        ),
        (
            format!("{sse}Content-Encoding: zap\r\n"),
            b"data: 1\n\n".to_vec(),
            &[],
        ),
        (
            "Content-Type: application/grpc\r\n".to_owned(),
            b"\0\xff\xff\xff\xffx".to_vec(),
            &[],
        ),
    ] {
        let (messages, marks) = observe(&fields, &body, 4096);
        assert_eq!(messages, expected, "{fields}");
        assert_eq!(marks.len(), 1, "{fields}");
        assert_eq!(marks[0].0, UNREAD_MESSAGES);
        assert!(marks[0].1.starts_with("origin: "), "{:?}", marks[0]);
    }
}

#[test]
fn requests_are_streams_too_and_compressed_messages_are_shown_plain() {
    let message = gzip(b"the question");
    let mut body = vec![1];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(&message);
    let answer = body.clone();
    let origin = Origin::http(Identity::Good, move |_| {
        let head = head("Content-Type: application/grpc\r\ngrpc-encoding: unheard-of\r\n");
        [head.as_bytes(), &chunk(&answer), b"0\r\n\r\n"].concat()
    });
    let recorder = Recorder::new(Interest::MESSAGES);
    let proxy = start_with(config(), [recorder.clone()]);
    let request = [
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/grpc+proto\r\n\
          grpc-encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        &chunk(&body[..9])[..],
        &chunk(&body[9..]),
        b"0\r\n\r\n",
    ]
    .concat();
    let response = proxy.tls(&origin).exchange(&request).unwrap();
    assert_same(&response.body, &body);
    assert!(
        origin
            .received_all()
            .ends_with(&request[request.len() - 20..])
    );
    let messages = recorder.messages(2);
    assert_eq!(messages[0].2, "the question");
    assert_eq!(
        messages[1].2.as_bytes(),
        String::from_utf8_lossy(&message).as_bytes()
    );
}

#[test]
fn a_message_may_end_the_flow() {
    let origin = Origin::http(Identity::Good, |_| {
        let events = [
            chunk(b"data: fine\n\n"),
            chunk(b"data: bad\n\n"),
            chunk(b"data: never\n\n"),
        ];
        let head = head("Content-Type: text/event-stream\r\n");
        [head.as_bytes(), &events.concat(), b"0\r\n\r\n"].concat()
    });
    let hook = Hook::new(Interest::MESSAGES).on_message(|_, message| {
        assert!(matches!(
            message.kind,
            MessageKind::ServerSentEvent {
                event_type: "message",
                ..
            }
        ));
        match message.text() {
            Some("bad") => Step::close("not this"),
            _ => Step::Continue,
        }
    });
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [hook.shared(), recorder.clone()]);
    let mut client = proxy.tls(&origin);
    client.send(GET).unwrap();
    let (received, _) = client.read_to_end();
    let received = String::from_utf8(received).unwrap();
    assert!(
        !received.contains("bad") && !received.contains("never"),
        "{received}"
    );
    assert_eq!(recorder.ends(1)[0].kind, OutcomeKind::Dropped);
}

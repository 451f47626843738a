//! Event streams from arbitrary bytes: the same events for every split, under a wide and a narrow limit,
//! and the same as a plain reading of the standard gives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_fuzz::split::check_stream;
use tollgate_wire::framing::StreamKind;
use tollgate_wire::sse::{DEFAULT_MAX_EVENT_BYTES, MAX_ID_BYTES, SseEvent, SseParser};

fuzz_target!(|input: &[u8]| {
    for limit in [DEFAULT_MAX_EVENT_BYTES, 32, 0] {
        let whole = parse(&[input], limit);
        for pieces in cuts(input) {
            assert_eq!(parse(&pieces, limit), whole);
        }
        check_stream(input, limit, StreamKind::Sse);
        for event in &whole.events {
            // An invalid byte grows to three; `data` lines are joined by LF.
            assert!(event.data.len() + event.event_type.len() <= 3 * limit + "message".len());
            assert!(event.id.as_deref() != Some("") && !event.event_type.is_empty());
        }
    }
    let wide = parse(&[input], DEFAULT_MAX_EVENT_BYTES);
    assert_eq!(wide.overflowed, 0);
    assert_eq!(wide.events, reference(input));
});

#[derive(Debug, PartialEq)]
struct Stream {
    events: Vec<SseEvent>,
    flushed: Option<SseEvent>,
    last_event_id: String,
    reconnection_time: Option<u64>,
    overflowed: u64,
}

fn parse(pieces: &[&[u8]], limit: usize) -> Stream {
    let mut parser = SseParser::with_limit(limit);
    let mut events = Vec::new();
    for piece in pieces {
        parser.feed(piece, |event| events.push(event));
    }
    let mut finished = parser.clone();
    finished.finish();
    let last_event_id = finished.last_event_id().to_owned();
    let reconnection_time = finished.reconnection_time();
    Stream {
        events,
        flushed: parser.flush(),
        last_event_id,
        reconnection_time,
        overflowed: finished.overflowed(),
    }
}

/// The algorithm of the WHATWG HTML standard (section 9.2.6) over the whole stream at once.
fn reference(input: &[u8]) -> Vec<SseEvent> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut events, mut last_id) = (Vec::new(), String::new());
    let (mut kind, mut id, mut retry) = (String::new(), None, None);
    let mut data: Option<Vec<String>> = None;
    for line in lines(input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input)) {
        if line.is_empty() {
            last_id = id.take().unwrap_or(last_id);
            if let Some(data) = data.take() {
                events.push(SseEvent {
                    event_type: Some(kind)
                        .filter(|kind| !kind.is_empty())
                        .unwrap_or("message".into()),
                    data: data.join("\n"),
                    id: Some(last_id.clone()).filter(|id| !id.is_empty()),
                    retry,
                });
            }
            (kind, retry) = (String::new(), None);
            continue;
        }
        let colon = line.iter().position(|b| *b == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => data.get_or_insert_default().push(text(value)),
            b"event" => kind = text(value),
            b"id" if !value.contains(&0) && value.len() <= MAX_ID_BYTES => id = Some(text(value)),
            b"retry" if value.iter().all(u8::is_ascii_digit) => {
                retry = text(value).parse().ok().or(retry);
            }
            _ => {}
        }
    }
    events
}

/// The lines that have an end: LF, CRLF or CR.
fn lines(input: &[u8]) -> Vec<Vec<u8>> {
    let (mut lines, mut line) = (Vec::new(), Vec::new());
    let mut bytes = input.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' | b'\n' => {
                if *byte == b'\r' {
                    bytes.next_if(|next| **next == b'\n');
                }
                lines.push(std::mem::take(&mut line));
            }
            _ => line.push(*byte),
        }
    }
    lines
}

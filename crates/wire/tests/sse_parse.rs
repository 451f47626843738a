//! The event-stream parser against the standard's rules, every split, and its bound.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use tollgate_wire::sse::{SseEvent, SseParser};

fn event(event_type: &str, data: &str, id: Option<&str>, retry: Option<u64>) -> SseEvent {
    SseEvent {
        event_type: event_type.into(),
        data: data.into(),
        id: id.map(Into::into),
        retry,
    }
}

fn message(data: &str) -> SseEvent {
    event("message", data, None, None)
}

fn parse<'a>(parser: &mut SseParser, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<SseEvent> {
    let mut events = Vec::new();
    for piece in pieces {
        parser.feed(piece, |event| events.push(event));
    }
    events
}

/// Parses in one feed and byte by byte; both must agree.
fn events(input: &[u8]) -> Vec<SseEvent> {
    let whole = parse(&mut SseParser::new(), [input]);
    assert_eq!(parse(&mut SseParser::new(), input.chunks(1)), whole);
    whole
}

#[test]
fn the_examples_of_the_standard() {
    assert_eq!(
        events(b"data: YHOO\ndata: +2\ndata: 10\n\n"),
        [message("YHOO\n+2\n10")]
    );
    assert_eq!(
        events(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"),
        [
            event("message", "first event", Some("1"), None),
            message("second event"),
        ]
    );
    assert_eq!(
        events(b"data\n\ndata\ndata\n\ndata:"),
        [message(""), message("\n")]
    );
    assert_eq!(
        events(b"data:test\n\ndata: test\n\n"),
        [message("test"), message("test")]
    );
}

#[test]
fn every_line_end_counts_and_may_be_mixed() {
    for end in ["\n", "\r\n", "\r"] {
        let stream = format!("event: a{end}data: 1{end}{end}data: 2{end}data: 3{end}{end}");
        assert_eq!(
            events(stream.as_bytes()),
            [event("a", "1", None, None), message("2\n3")],
            "{end:?}"
        );
    }
    assert_eq!(
        events(b"data: 1\r\n\rdata: 2\n\r\n"),
        [message("1"), message("2")]
    );
}

#[test]
fn an_event_does_not_wait_for_the_lf_after_its_cr() {
    let mut parser = SseParser::new();
    assert_eq!(parse(&mut parser, [&b"data: 1\r\r"[..]]), [message("1")]);
    // An empty feed between CR and LF changes nothing.
    assert_eq!(
        parse(&mut parser, [&b""[..], b"\ndata: 2\r", b"", b"\n\r", b"\n"]),
        [message("2")]
    );
}

#[test]
fn one_byte_order_mark_is_skipped() {
    assert_eq!(events(b"\xef\xbb\xbfdata: 1\n\n"), [message("1")]);
    assert_eq!(events(b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n"), []);
    assert_eq!(events(b"data: 0\n\xef\xbb\xbfdata: 1\n\n"), [message("0")]);
}

#[test]
fn ids_stay_in_force() {
    let mut parser = SseParser::new();
    let seen = parse(
        &mut parser,
        [&b"id: 7\ndata: a\n\ndata: b\n\nid: x\0y\ndata: c\n\nid: 8\n\ndata: d\n\nid: 9\n"[..]],
    );
    let ids: Vec<_> = seen.iter().map(|event| event.id.as_deref()).collect();
    assert_eq!(ids, [Some("7"), Some("7"), Some("7"), Some("8")]);
    assert_eq!(
        parser.last_event_id(),
        "8",
        "an id takes effect with its empty line"
    );
    parser.finish();
    assert_eq!(parser.last_event_id(), "8");
    assert_eq!(
        parse(&mut parser, [&b"\xef\xbb\xbfdata: e\n\n"[..]])[0]
            .id
            .as_deref(),
        Some("8")
    );

    let long = format!("id: {}\ndata: f\n\n", "i".repeat(1025));
    assert_eq!(
        parse(&mut parser, [long.as_bytes()])[0].id.as_deref(),
        Some("8")
    );
}

#[test]
fn retry_takes_digits_only() {
    let mut parser = SseParser::new();
    let seen = parse(
        &mut parser,
        [&b"retry: 10\ndata\n\nretry: 1s\ndata\n\nretry: -1\ndata\n\nretry\ndata\n\nretry: 99999999999999999999\ndata\n\nretry: 250\n\n"[..]],
    );
    let retries: Vec<_> = seen.iter().map(|event| event.retry).collect();
    assert_eq!(retries, [Some(10), None, None, None, None]);
    assert_eq!(parser.reconnection_time(), Some(250));
}

#[test]
fn events_without_data_are_not_dispatched_and_leave_no_type_behind() {
    assert_eq!(events(b"event: gone\n\ndata: 1\n\n"), [message("1")]);
    assert_eq!(
        events(b"event: a\nevent: b\ndata: 1\n\n"),
        [event("b", "1", None, None)]
    );
    assert_eq!(events(b"event: a\nevent:\ndata: 1\n\n"), [message("1")]);
    assert_eq!(events(b"Data: 1\n data: 2\n:data: 3\nunknown: 4\n\n"), []);
}

#[test]
fn invalid_utf8_is_replaced() {
    assert_eq!(
        events(b"data: \xff\xe2\x82\ndata: \xe2\x82\xac\n\n"),
        [message("\u{fffd}\u{fffd}\n€")]
    );
}

#[test]
fn the_end_discards_or_flushes() {
    for (stream, tail) in [
        (&b"data: 1\n\ndata: 2"[..], Some(message("2"))),
        (b"data: 2\n", Some(message("2"))),
        (b"data: 2\r", Some(message("2"))),
        (b"data: 1\n\n", None),
        (b"event: x\n", None),
        (b": comment", None),
        (b"", None),
    ] {
        let mut parser = SseParser::new();
        parse(&mut parser, [stream]);
        assert_eq!(parser.clone().flush(), tail, "{stream:?}");
        parser.finish();
        assert_eq!(parser.flush(), None);
    }
}

#[test]
fn an_event_over_the_limit_is_dropped_and_the_next_one_read() {
    let long = "x".repeat(100);
    for stream in [
        format!("data: {long}\n\ndata: ok\n\n"),
        format!("data: {long}\nevent: lost\nid: lost\n\ndata: ok\n\n"),
        format!("id: lost\n: {long}\ndata: lost\n\ndata: ok\n\n"),
        format!("{}\ndata: ok\n\n", "data: 12345\n".repeat(6)),
    ] {
        for size in [1, 2, 7, stream.len()] {
            let mut parser = SseParser::with_limit(64);
            let seen = parse(&mut parser, stream.as_bytes().chunks(size));
            assert_eq!(seen, [message("ok")], "{stream:?} by {size}");
            assert_eq!(parser.overflowed(), 1);
        }
    }
    let mut parser = SseParser::with_limit(64);
    parse(&mut parser, [format!("data: {long}").as_bytes()]);
    assert_eq!((parser.flush(), parser.overflowed()), (None, 1));
    assert_eq!(
        parse(&mut parser, [&b"data: next\n\n"[..]]),
        [message("next")]
    );

    // Exactly at the limit.
    let fits = format!("data:{}\n\n", "y".repeat(59));
    assert_eq!(
        parse(&mut SseParser::with_limit(64), [fits.as_bytes()]).len(),
        1
    );
}

#[test]
fn comments_that_keep_the_connection_alive_add_nothing() {
    let mut parser = SseParser::with_limit(64);
    let stream = format!("data: 1\n{}\n", ": ping\n".repeat(1000));
    assert_eq!(parse(&mut parser, [stream.as_bytes()]), [message("1")]);
    assert_eq!(parser.overflowed(), 0);
}

#[cfg(feature = "llm-text")]
#[test]
fn text_deltas_of_each_wire_format() {
    let text = |data: &str| message(data).get_text();
    let some = |text: &str| Some(text.to_owned());

    assert_eq!(
        text(
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"He"}}"#
        ),
        some("He")
    );
    for other in [
        r#"{"type":"thinking_delta","thinking":"hm"}"#,
        r#"{"type":"input_json_delta","partial_json":"{"}"#,
    ] {
        assert_eq!(
            text(&format!(
                r#"{{"type":"content_block_delta","index":0,"delta":{other}}}"#
            )),
            None
        );
    }
    assert_eq!(
        text(
            r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo"}}]}"#
        ),
        some("lo")
    );
    assert_eq!(
        text(r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#),
        None
    );
    assert_eq!(text(r#"{"choices":[]}"#), None);
    assert_eq!(
        text(r#"{"type":"response.output_text.delta","item_id":"m","delta":" wo"}"#),
        some(" wo")
    );
    assert_eq!(
        text(r#"{"type":"response.function_call_arguments.delta","delta":"{"}"#),
        None
    );
    assert_eq!(
        text(
            r#"{"candidates":[{"content":{"parts":[{"text":"hm","thought":true},{"text":"r"},{"functionCall":{}},{"text":"ld"}]}}]}"#
        ),
        some("rld")
    );
    assert_eq!(
        text(r#"{"candidates":[{"content":{"parts":[{"functionCall":{}}]}}]}"#),
        None
    );
    assert_eq!(text("not json"), None);
    assert_eq!(text(&"[".repeat(100_000)), None);
    assert_eq!(text("[DONE]"), None);
}

#[test]
fn done_is_recognised() {
    assert!(message("[DONE]").is_done());
    assert!(message(" [DONE] ").is_done());
    assert!(!message("{}").is_done());
}

/// Streams made of the tokens that matter, and of bytes that don't.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        4 => prop::sample::select(vec![&b"data"[..], b"event", b"id", b"retry", b": ", b":", b" ", b"12"]),
        4 => prop::sample::select(vec![&b"\n"[..], b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"]),
        1 => prop::sample::select(vec![&b"\xef\xbb\xbf"[..], b"\xe2\x82\xac", b"\xff", b"\0", b"a long filler text"]),
    ];
    proptest::collection::vec(token, 0..60).prop_map(|tokens| tokens.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_events(
        stream in stream(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
        limit in prop_oneof![Just(20usize), Just(1 << 20)],
    ) {
        let mut whole = SseParser::with_limit(limit);
        let expected = parse(&mut whole, [&stream[..]]);

        let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let mut split = SseParser::with_limit(limit);
        let seen = parse(&mut split, at.windows(2).map(|w| &stream[w[0]..w[1]]));

        prop_assert_eq!(seen, expected);
        prop_assert_eq!(split.overflowed(), whole.overflowed());
        prop_assert_eq!(split.last_event_id(), whole.last_event_id());
        prop_assert_eq!(split.flush(), whole.flush());
    }
}

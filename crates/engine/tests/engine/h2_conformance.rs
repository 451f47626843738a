//! What RFC 9113 and RFC 7541 say about frames that a client must not send: which error, on which level; and that no
//! malformed request reaches an origin. `docs/reference/h2spec.md` has the results of h2spec, which asks much the same.

use std::io;
use std::sync::Arc;

use crate::support::http2::{H2Origin, frame, read_frame};
use crate::support::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITISED: u8 = 0x20;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;

/// What section 4.2 calls FRAME_SIZE_ERROR. The h2 crate ends the connection, as it must, and says PROTOCOL_ERROR for frames
/// whose payload it can't read.
const FRAME_SIZE: &[u32] = &[FRAME_SIZE_ERROR, PROTOCOL_ERROR];

/// The same for blocks of fields, where section 4.3 has COMPRESSION_ERROR.
const COMPRESSION: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];

/// The same for frames on a stream whose other end has been sent, where section 5.1 has STREAM_CLOSED for the stream.
const CLOSED: &[u32] = &[STREAM_CLOSED, PROTOCOL_ERROR];

/// The largest frame that the proxy takes, as its SETTINGS say.
const MAX_FRAME: usize = 64 * 1024;

/// How the proxy answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Stream 1 has a response.
    Served,
    /// A stream ends with this code.
    Stream(u32),
    /// The connection ends with this code.
    Connection(u32),
    /// The connection ends without a word.
    Closed,
}

/// What is right.
#[derive(Clone, Copy, Debug)]
enum Right {
    /// What is wrong is passed over; the request is answered.
    Ignored,
    /// A stream error; the peer may make it one of the connection (RFC 9113 section 5.4.2).
    Stream(&'static [u32]),
    /// A connection error; a peer may close without saying so (section 5.4.1), this one says so.
    Connection(&'static [u32]),
}

impl Right {
    fn allows(self, answer: Answer) -> bool {
        match (self, answer) {
            (Self::Ignored, Answer::Served) => true,
            (Self::Stream(codes), Answer::Stream(code) | Answer::Connection(code))
            | (Self::Connection(codes), Answer::Connection(code)) => codes.contains(&code),
            _ => false,
        }
    }
}

/// An origin that answers when a request has ended, and no earlier.
fn origin() -> H2Origin {
    H2Origin::serve(|mut call| async move {
        let (body, _) = call.body().await?;
        call.answer(200, body).await
    })
}

/// Sends each case on a connection of its own, and compares what comes back.
#[track_caller]
fn judge(origin: &H2Origin, cases: &[(&str, Vec<u8>, Right)]) {
    let proxy = start(config());
    let mut wrong = Vec::new();
    for (name, bytes, right) in cases {
        let mut wire = proxy.raw_h2(&origin.authority());
        // The proxy may have ended the connection before it has read everything.
        let _ = wire.send(bytes);
        let answer = answer_on(&mut wire);
        if !right.allows(answer) {
            wrong.push(format!("{name}: {right:?} is right, came {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Waits for the first frame that decides.
fn answer_on(wire: &mut Wire) -> Answer {
    loop {
        let frame = match read_frame(wire) {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("the proxy says nothing")
            }
            Err(_) => return Answer::Closed,
        };
        let code = |at: usize| {
            let bytes = frame.payload[at..at + 4].try_into().unwrap();
            u32::from_be_bytes(bytes)
        };
        match frame.kind {
            GOAWAY => return Answer::Connection(code(4)),
            RST_STREAM => return Answer::Stream(code(0)),
            HEADERS if frame.stream == 1 => return Answer::Served,
            _ => {}
        }
    }
}

/// A field without Huffman coding and without a place in the table.
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for part in [name, value] {
        out.push(u8::try_from(part.len()).unwrap());
        out.extend_from_slice(part.as_bytes());
    }
    out
}

/// Fields one after the other.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| field(name, value));
    fields.collect::<Vec<_>>().concat()
}

/// A request's pseudo-header fields and what follows them. `H2Origin` takes any authority; the proxy takes the CONNECT's.
fn request(method: &str, authority: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", method),
        (":scheme", "https"),
        (":path", "/"),
        (":authority", authority),
    ];
    block(&[&pseudo[..], more].concat())
}

/// HEADERS that are whole, with or without a body to come.
fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, block)
}

fn setting(identifier: u16, value: u32) -> Vec<u8> {
    let payload = [&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

#[test]
fn what_comes_first_is_the_preface() {
    let origin = origin();
    let proxy = start(config());
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\r\r\r",
    ] {
        let mut config = (*proxy.client_config()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tunnel = proxy.tunnel(&origin.authority());
        let mut wire = tunnel.tls_client(Arc::new(config), "localhost").unwrap();
        let _ = wire.send(bytes);
        let answer = answer_on(&mut wire);
        assert!(
            matches!(answer, Answer::Closed | Answer::Connection(PROTOCOL_ERROR)),
            "{}: {answer:?}",
            bytes.escape_ascii()
        );
    }
    assert!(origin.heads().is_empty());
}

#[test]
fn frames_and_their_sizes() {
    let origin = origin();
    let get = request("GET", &origin.authority(), &[]);
    let post = request("POST", &origin.authority(), &[]);
    let whole = headers(1, END_STREAM, &get);
    let begun = headers(1, 0, &post);
    let large = vec![0; MAX_FRAME + 1];
    let cases = [
        (
            "4.1 an unknown type",
            [frame(0x16, 0, 0, b"12345678"), whole.clone()].concat(),
            Right::Ignored,
        ),
        (
            "4.1 flags that are not defined",
            [frame(PING, 0x16, 0, b"12345678"), whole.clone()].concat(),
            Right::Ignored,
        ),
        (
            "4.1 the reserved bit",
            [frame(PING, 0, 1 << 31, b"12345678"), whole.clone()].concat(),
            Right::Ignored,
        ),
        (
            "4.2 DATA larger than the default, as allowed",
            [begun.clone(), frame(DATA, END_STREAM, 1, &large[2..])].concat(),
            Right::Ignored,
        ),
        (
            "4.2 DATA larger than allowed",
            [begun.clone(), frame(DATA, END_STREAM, 1, &large)].concat(),
            Right::Stream(&[FRAME_SIZE_ERROR]),
        ),
        (
            "4.2 HEADERS larger than allowed",
            headers(1, END_STREAM, &large),
            Right::Connection(&[FRAME_SIZE_ERROR]),
        ),
        (
            "6.1 DATA on the connection",
            frame(DATA, 0, 0, b"test"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.1 DATA with more padding than payload",
            [
                begun.clone(),
                frame(DATA, PADDED | END_STREAM, 1, b"\x06test"),
            ]
            .concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.2 HEADERS on the connection",
            headers(0, END_STREAM, &get),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.2 HEADERS with more padding than payload",
            headers(1, PADDED | END_STREAM, b"\x05\x82"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.3 PRIORITY is passed over",
            [frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"), whole.clone()].concat(),
            Right::Ignored,
        ),
        (
            "6.3 PRIORITY on the connection",
            frame(PRIORITY, 0, 0, b"\0\0\0\x01\x10"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.3 PRIORITY of four bytes",
            [whole.clone(), frame(PRIORITY, 0, 1, b"\0\0\0\x01")].concat(),
            Right::Stream(FRAME_SIZE),
        ),
        (
            "6.4 RST_STREAM on the connection",
            frame(RST_STREAM, 0, 0, b"\0\0\0\x08"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.4 RST_STREAM of three bytes",
            [begun.clone(), frame(RST_STREAM, 0, 1, b"\0\0\0")].concat(),
            Right::Connection(FRAME_SIZE),
        ),
        (
            "6.5 SETTINGS on a stream",
            frame(SETTINGS, 0, 1, b"\0\x03\0\0\0\x64"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.5 an acknowledgement with a payload",
            frame(SETTINGS, ACK, 0, b"\0"),
            Right::Connection(FRAME_SIZE),
        ),
        (
            "6.5 SETTINGS of three bytes",
            frame(SETTINGS, 0, 0, b"\0\x03\0"),
            Right::Connection(FRAME_SIZE),
        ),
        (
            "6.5.2 ENABLE_PUSH other than 0 and 1",
            setting(2, 2),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.5.2 INITIAL_WINDOW_SIZE over its maximum",
            setting(4, 1 << 31),
            Right::Connection(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]),
        ),
        (
            "6.5.2 MAX_FRAME_SIZE below its minimum",
            setting(5, 16_383),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.5.2 MAX_FRAME_SIZE over its maximum",
            setting(5, 1 << 24),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.5.2 an unknown setting",
            [setting(0xff, 1), whole.clone()].concat(),
            Right::Ignored,
        ),
        (
            "6.7 PING on a stream",
            frame(PING, 0, 1, b"12345678"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.7 PING of six bytes",
            frame(PING, 0, 0, b"123456"),
            Right::Connection(FRAME_SIZE),
        ),
        (
            "6.7 an answer to no PING",
            [frame(PING, ACK, 0, b"invalid!"), whole.clone()].concat(),
            Right::Ignored,
        ),
        (
            "6.8 GOAWAY on a stream",
            frame(GOAWAY, 0, 1, &[0; 8]),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "7 a GOAWAY with an unknown code, and a stream before it",
            [whole.clone(), frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\xff")].concat(),
            Right::Ignored,
        ),
        (
            "8.4 PUSH_PROMISE by a client",
            [
                begun.clone(),
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    1,
                    &[&[0, 0, 0, 3][..], &get].concat(),
                ),
            ]
            .concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
    ];
    judge(&origin, &cases);
}

#[test]
fn states_of_streams() {
    let origin = origin();
    let authority = origin.authority();
    let get = request("GET", &authority, &[]);
    let begun = headers(1, 0, &request("POST", &authority, &[]));
    let whole = headers(1, END_STREAM, &get);
    let reset = frame(RST_STREAM, 0, 1, b"\0\0\0\x08");
    let many: Vec<u8> = (0..2_000)
        .flat_map(|n| headers(2 * n + 1, 0, &get))
        .collect();
    let cases = [
        (
            "5.1 DATA on an idle stream",
            frame(DATA, END_STREAM, 1, b"test"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "5.1 RST_STREAM on an idle stream",
            reset.clone(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "5.1 WINDOW_UPDATE on an idle stream",
            frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\x64"),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "5.1 DATA after the end of the request",
            [whole.clone(), frame(DATA, END_STREAM, 1, b"test")].concat(),
            Right::Stream(CLOSED),
        ),
        (
            "5.1 HEADERS after the end of the request",
            [whole.clone(), whole.clone()].concat(),
            Right::Stream(CLOSED),
        ),
        (
            "5.1 DATA after a reset",
            [
                begun.clone(),
                reset.clone(),
                frame(DATA, END_STREAM, 1, b"test"),
            ]
            .concat(),
            Right::Stream(&[STREAM_CLOSED]),
        ),
        (
            "5.1 HEADERS after a reset",
            [begun.clone(), reset, whole.clone()].concat(),
            Right::Stream(CLOSED),
        ),
        (
            "5.1.1 an even stream",
            headers(2, END_STREAM, &get),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "5.1.1 a stream below the last",
            [headers(5, END_STREAM, &get), headers(3, END_STREAM, &get)].concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "5.1.2 more streams than allowed",
            many,
            Right::Stream(&[PROTOCOL_ERROR, REFUSED_STREAM]),
        ),
        (
            "5.3.1 of RFC 7540: a stream that depends on itself",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM | PRIORITISED,
                1,
                &[b"\0\0\0\x01\xff", &get[..]].concat(),
            ),
            Right::Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "6.9 an increment of nothing for the connection",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.9 an increment of nothing for a stream",
            [begun.clone(), frame(WINDOW_UPDATE, 0, 1, &[0; 4])].concat(),
            Right::Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "6.9 WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, b"\0\0\x01"),
            Right::Connection(FRAME_SIZE),
        ),
        (
            "6.9.1 a window of the connection over its maximum",
            frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff").repeat(2),
            Right::Connection(&[FLOW_CONTROL_ERROR]),
        ),
        (
            "6.9.1 a window of a stream over its maximum",
            [
                begun,
                frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff").repeat(2),
            ]
            .concat(),
            Right::Stream(&[FLOW_CONTROL_ERROR]),
        ),
    ];
    judge(&origin, &cases);
}

#[test]
fn heads_in_several_frames() {
    let origin = origin();
    let get = request("GET", &origin.authority(), &[]);
    let (first, rest) = get.split_at(5);
    let open = |flags| frame(HEADERS, flags, 1, first);
    let begun = headers(1, 0, &request("POST", &origin.authority(), &[]));
    let cases = [
        (
            "6.10 a head in pieces",
            [
                open(END_STREAM),
                frame(CONTINUATION, 0, 1, &rest[..3]),
                frame(CONTINUATION, 0, 1, b""),
                frame(CONTINUATION, END_HEADERS, 1, &rest[3..]),
            ]
            .concat(),
            Right::Ignored,
        ),
        (
            "4.3 another stream's HEADERS within a head",
            [open(END_STREAM), headers(3, END_STREAM, &get)].concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "4.3 PRIORITY within a head",
            [open(END_STREAM), frame(PRIORITY, 0, 1, b"\0\0\0\0\x10")].concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "5.5 an unknown type within a head",
            [open(END_STREAM), frame(0x16, 0, 0, b"12345678")].concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 CONTINUATION of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &get),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 CONTINUATION of the connection",
            [open(END_STREAM), frame(CONTINUATION, END_HEADERS, 0, rest)].concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 CONTINUATION of a head that has ended",
            [begun.clone(), frame(CONTINUATION, END_HEADERS, 1, rest)].concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
        (
            "6.10 CONTINUATION behind DATA",
            [
                begun,
                frame(DATA, 0, 1, b"test"),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat(),
            Right::Connection(&[PROTOCOL_ERROR]),
        ),
    ];
    judge(&origin, &cases);
}

#[test]
fn malformed_requests_never_reach_the_origin() {
    let origin = origin();
    let authority = origin.authority();
    let with = |more: &[(&str, &str)]| headers(1, END_STREAM, &request("GET", &authority, more));
    let only = |fields: &[(&str, &str)]| headers(1, END_STREAM, &block(fields));
    let method = (":method", "GET");
    let scheme = (":scheme", "https");
    let path = (":path", "/");
    let host = (":authority", authority.as_str());
    let malformed = Right::Stream(&[PROTOCOL_ERROR]);
    let cases = [
        (
            "8.2.1 capitals in a name",
            with(&[("X-TEST", "a")]),
            malformed,
        ),
        (
            "8.2.1 a line end in a value",
            with(&[("x-test", "a\r\nb")]),
            malformed,
        ),
        (
            "8.2.1 a NUL in a value",
            with(&[("x-test", "a\0b")]),
            malformed,
        ),
        (
            "8.2.1 a space in a name",
            with(&[("x test", "a")]),
            malformed,
        ),
        (
            "8.2.2 Connection",
            with(&[("connection", "keep-alive")]),
            malformed,
        ),
        (
            "8.2.2 Transfer-Encoding",
            with(&[("transfer-encoding", "chunked")]),
            malformed,
        ),
        (
            "8.2.2 Upgrade",
            with(&[("upgrade", "websocket")]),
            malformed,
        ),
        (
            "8.2.2 TE other than trailers",
            with(&[("te", "trailers, deflate")]),
            malformed,
        ),
        (
            "8.3 an unknown pseudo-header field",
            with(&[(":test", "a")]),
            malformed,
        ),
        (
            "8.3 a pseudo-header field of responses",
            with(&[(":status", "200")]),
            malformed,
        ),
        (
            "8.3 a pseudo-header field behind another",
            only(&[method, scheme, path, ("x-test", "a"), host]),
            malformed,
        ),
        (
            "8.3 a method twice",
            only(&[method, method, scheme, path, host]),
            malformed,
        ),
        (
            "8.3 a scheme twice",
            only(&[method, scheme, scheme, path, host]),
            malformed,
        ),
        (
            "8.3 a path twice",
            only(&[method, scheme, path, path, host]),
            malformed,
        ),
        (
            "8.3 an authority twice",
            only(&[method, scheme, path, host, host]),
            malformed,
        ),
        ("8.3.1 no method", only(&[scheme, path, host]), malformed),
        ("8.3.1 no scheme", only(&[method, path, host]), malformed),
        ("8.3.1 no path", only(&[method, scheme, host]), malformed),
        (
            "8.3.1 an empty path",
            only(&[method, scheme, (":path", ""), host]),
            malformed,
        ),
        (
            "8.1.1 a length, and no body",
            with(&[("content-length", "4")]),
            malformed,
        ),
    ];
    judge(&origin, &cases);
    assert!(origin.heads().is_empty(), "{:?}", origin.heads());
}

#[test]
fn bodies_and_trailers() {
    let origin = origin();
    let post = |more: &[(&str, &str)]| headers(1, 0, &request("POST", &origin.authority(), more));
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    let cases = [
        (
            "8.1 trailers",
            [
                post(&[]),
                data(0, b"test"),
                headers(1, END_STREAM, &block(&[("x-test", "ok")])),
            ]
            .concat(),
            Right::Ignored,
        ),
        (
            "8.1 a second head that does not end the stream",
            [
                post(&[]),
                data(0, b"test"),
                headers(1, 0, &block(&[("x-test", "ok")])),
            ]
            .concat(),
            Right::Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "8.1.1 less than the length says",
            [post(&[("content-length", "5")]), data(END_STREAM, b"test")].concat(),
            Right::Stream(&[PROTOCOL_ERROR]),
        ),
        (
            "8.1.1 more than the length says, in two frames",
            [
                post(&[("content-length", "5")]),
                data(0, b"test"),
                data(END_STREAM, b"test"),
            ]
            .concat(),
            Right::Stream(&[PROTOCOL_ERROR]),
        ),
    ];
    judge(&origin, &cases);
}

/// Section 8.1 calls them malformed. The h2 crate reads such trailers without them, so no origin ever gets one.
#[test]
fn pseudo_header_fields_in_trailers_stay_here() {
    let origin = H2Origin::serve(|mut call| async move {
        let (_, trailers) = call.body().await?;
        call.answer(200, format!("{:?}", trailers.unwrap())).await
    });
    let proxy = start(config());
    let mut wire = proxy.raw_h2(&origin.authority());
    let trailers = block(&[(":path", "/other"), ("x-test", "ok")]);
    wire.send(headers(1, 0, &request("POST", &origin.authority(), &[])))
        .unwrap();
    wire.send(headers(1, END_STREAM, &trailers)).unwrap();
    let answer = loop {
        let frame = read_frame(&mut wire).unwrap();
        if frame.kind == DATA {
            break String::from_utf8(frame.payload).unwrap();
        }
    };
    assert_eq!(answer, r#"{"x-test": "ok"}"#);
}

#[test]
fn header_compression() {
    let origin = origin();
    let get = request("GET", &origin.authority(), &[]);
    let with = |bytes: &[u8]| headers(1, END_STREAM, &[&get[..], bytes].concat());
    let broken = Right::Connection(COMPRESSION);
    // The field `x-test`, its value by hand.
    let value = |bytes: &[u8]| with(&[b"\0\x06x-test", bytes].concat());
    let cases = [
        ("2.3.3 an index beyond both tables", with(b"\xc6"), broken),
        (
            "2.3.3 a name beyond both tables",
            with(b"\x7f\x07\x01x"),
            broken,
        ),
        ("4.2 a new size behind a field", with(b"\x20"), broken),
        (
            "4.2 a new size before the fields",
            headers(1, END_STREAM, &[b"\x20", &get[..]].concat()),
            Right::Ignored,
        ),
        (
            "5.1 an integer without an end",
            with(b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            broken,
        ),
        // `test` is 49 50 9f in Huffman's code, one bit of the last byte being padding.
        (
            "5.2 Huffman's code",
            value(b"\x83\x49\x50\x9f"),
            Right::Ignored,
        ),
        (
            "5.2 padding of more than seven bits",
            value(b"\x84\x49\x50\x9f\xff"),
            broken,
        ),
        ("5.2 padding with zeros", value(b"\x83\x49\x50\x9e"), broken),
        (
            "5.2 the end of a string within it",
            value(b"\x87\x49\x50\x9f\xff\xff\xff\xfc"),
            broken,
        ),
        ("6.1 index 0", with(b"\x80"), broken),
        (
            "6.3 a table larger than allowed",
            headers(1, END_STREAM, &[b"\x3f\xe2\x1f", &get[..]].concat()),
            broken,
        ),
    ];
    judge(&origin, &cases);
}

//! WebSocket: the same messages for every cut, what is written is read back, and every violation has
//! its name.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use proptest::prelude::*;
use tollgate_wire::websocket::{
    Deflater, Event, FrameHeader, Inflater, MessageReader, Opcode, PermessageDeflate, Sender, Utf8,
    WebSocketError, apply_mask, write_close, write_frame, write_message_frame,
};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

type Outcome = (Vec<Seen>, Result<(), WebSocketError>);

fn read(
    pieces: &[&[u8]],
    sender: Sender,
    limit: usize,
    deflate: Option<&PermessageDeflate>,
) -> Outcome {
    let mut reader = MessageReader::new(sender, limit, deflate);
    let mut seen = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match reader.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(Event::Fragment)) => {}
                Ok(Some(Event::Text(text))) => seen.push(Seen::Text(text.to_owned())),
                Ok(Some(Event::Binary(data))) => seen.push(Seen::Binary(data.to_vec())),
                Ok(Some(Event::Ping(data))) => seen.push(Seen::Ping(data.to_vec())),
                Ok(Some(Event::Pong(data))) => seen.push(Seen::Pong(data.to_vec())),
                Ok(Some(Event::Close(close))) => {
                    seen.push(Seen::Close(close.code, close.reason.to_owned()));
                }
                Err(error) => {
                    assert_eq!(reader.next(&mut rest), Err(error), "it must stay");
                    return (seen, Err(error));
                }
            }
        }
        assert!(rest.is_empty(), "bytes that were not taken");
    }
    (seen, Ok(()))
}

/// Reads the input whole, byte by byte and in threes; all must agree.
fn check(input: &[u8], sender: Sender, deflate: Option<&PermessageDeflate>) -> Outcome {
    let whole = read(&[input], sender, 1 << 20, deflate);
    for size in [1, 3] {
        let pieces: Vec<_> = input.chunks(size).collect();
        assert_eq!(read(&pieces, sender, 1 << 20, deflate), whole, "by {size}");
    }
    whole
}

fn mask_of(sender: Sender) -> Option<[u8; 4]> {
    (sender == Sender::Client).then_some([0x9a, 0x17, 0xfe, 0x00])
}

/// A frame that need not be allowed.
fn frame(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        n @ 0..=125 => out.push(bit | n as u8),
        n @ 126..=0xffff => {
            out.push(bit | 126);
            out.extend((n as u16).to_be_bytes());
        }
        n => {
            out.push(bit | 127);
            out.extend((n as u64).to_be_bytes());
        }
    }
    let start = out.len();
    out.extend(mask.iter().flatten());
    let start = if mask.is_some() { start + 4 } else { start };
    out.extend(payload);
    if let Some(key) = mask {
        apply_mask(&mut out[start..], key, 0);
    }
    out
}

fn server(first: u8, payload: &[u8]) -> Vec<u8> {
    frame(first, None, payload)
}

fn failed(error: WebSocketError) -> Outcome {
    (Vec::new(), Err(error))
}

#[test]
fn fragments_are_joined_around_control_frames() {
    let wire = [
        server(0x01, b"gr\xc3"),
        server(0x89, b"are you there?"),
        server(0x00, b""),
        server(0x00, b"\xbc\xc3\x9f"),
        server(0x8a, b""),
        server(0x80, b" you"),
        server(0x82, b"\xff"),
        server(0x81, b""),
        server(0x88, &write_close(1000, "bye")),
        b"what comes after a close is not read".to_vec(),
    ]
    .concat();
    let (seen, end) = check(&wire, Sender::Server, None);
    assert_eq!(end, Ok(()));
    assert_eq!(
        seen,
        [
            Seen::Ping(b"are you there?".to_vec()),
            Seen::Pong(Vec::new()),
            Seen::Text("grüß you".to_owned()),
            Seen::Binary(vec![0xff]),
            Seen::Text(String::new()),
            Seen::Close(Some(1000), "bye".to_owned()),
        ]
    );
}

#[test]
fn every_violation_has_its_name() {
    use WebSocketError as E;
    let deflate = PermessageDeflate::default();
    let text = server(0x01, b"a");
    for (wire, error) in [
        (server(0xc1, b"a"), E::ReservedBits),
        (server(0xa1, b"a"), E::ReservedBits),
        (server(0x91, b"a"), E::ReservedBits),
        (server(0x83, b""), E::ReservedOpcode(3)),
        (server(0x8b, b""), E::ReservedOpcode(11)),
        (server(0x09, b""), E::BadControl),
        (server(0x89, &[0; 126]), E::BadControl),
        (vec![0x82, 126, 0, 1, 0], E::InvalidLength),
        (frame(0x81, Some([1; 4]), b"a"), E::Masking),
        (server(0x80, b"a"), E::UnexpectedContinuation),
        (
            [text.clone(), server(0x81, b"a")].concat(),
            E::ExpectedContinuation,
        ),
        (server(0x88, &[3]), E::InvalidClose),
        (server(0x88, &1005_u16.to_be_bytes()), E::InvalidClose),
        (server(0x88, b"\x03\xe8\xff"), E::InvalidUtf8),
        (server(0x81, b"\xff"), E::InvalidUtf8),
        (server(0x81, b"\xc3"), E::InvalidUtf8),
        (
            [server(0x01, b"\xc3"), server(0x80, b"")].concat(),
            E::InvalidUtf8,
        ),
        (
            [server(0x01, b"\xed\xa0"), server(0x80, b"\x80")].concat(),
            E::InvalidUtf8,
        ),
    ] {
        assert_eq!(
            check(&wire, Sender::Server, None),
            failed(error),
            "{wire:x?}"
        );
    }
    assert_eq!(
        check(&server(0x81, b"a"), Sender::Client, None),
        failed(E::Masking)
    );
    for (wire, error) in [
        (server(0xc9, b""), E::ReservedBits),
        ([text, server(0xc0, b"a")].concat(), E::ReservedBits),
        (server(0xc1, b"\xff\xff\xff"), E::InvalidDeflate),
    ] {
        let outcome = check(&wire, Sender::Server, Some(&deflate));
        assert_eq!(outcome, failed(error), "{wire:x?}");
    }
}

#[test]
fn of_two_things_that_are_wrong_the_first_one_is_named() {
    // Compressed text that is not UTF-8, and then can't be decompressed: found by fuzzing.
    let wire = b"\xc1\xb8\x07\xf2\xcdH\x15\0\0ssage-deflate; client_max_window\0\xc9\xce\x07\0";
    let deflate = PermessageDeflate::default();
    let (seen, end) = check(wire, Sender::Client, Some(&deflate));
    assert_eq!((seen, end), failed(WebSocketError::InvalidUtf8));
}

#[test]
fn a_message_over_the_limit_is_refused_before_it_is_kept() {
    let limit = 1000;
    let too_large = failed(WebSocketError::TooLarge { limit });
    // By its length, before a byte of it has come.
    let announced = [0x82, 127, 0, 0, 0, 0x7f, 0, 0, 0, 0];
    assert_eq!(read(&[&announced], Sender::Server, limit, None), too_large);
    // By its fragments, however small.
    let mut endless = server(0x02, &[0; 10]);
    for _ in 0..100 {
        endless.extend(server(0x00, &[0; 10]));
    }
    assert_eq!(read(&[&endless], Sender::Server, limit, None), too_large);
    let most = server(0x82, &[7; 1000]);
    let (seen, end) = read(&[&most], Sender::Server, limit, None);
    assert_eq!((seen.len(), end), (1, Ok(())));
    // By what it decompresses to.
    let deflate = PermessageDeflate::default();
    let mut bomb = Vec::new();
    assert!(Deflater::new(&deflate, Sender::Server).message(&[0; 100_000], &mut bomb));
    assert!(bomb.len() < limit);
    let bomb = server(0xc2, &bomb);
    assert_eq!(
        read(&[&bomb], Sender::Server, limit, Some(&deflate)),
        too_large
    );
}

/// What one side sends: a message in so many fragments, or a control frame.
#[derive(Debug, Clone)]
struct Sent {
    what: Seen,
    compressed: bool,
    fragments: usize,
}

fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let bytes = || proptest::collection::vec(prop_oneof![Just(b'a'), any::<u8>()], 0..400);
    let what = prop_oneof![
        4 => "\\PC{0,100}".prop_map(Seen::Text),
        4 => bytes().prop_map(Seen::Binary),
        1 => proptest::collection::vec(any::<u8>(), 0..=125).prop_map(Seen::Ping),
        1 => proptest::collection::vec(any::<u8>(), 0..=125).prop_map(Seen::Pong),
    ];
    let one = (what, any::<bool>(), 1_usize..4).prop_map(|(what, compressed, fragments)| Sent {
        what,
        compressed,
        fragments,
    });
    proptest::collection::vec(one, 0..12)
}

fn agreed() -> impl Strategy<Value = PermessageDeflate> {
    (any::<bool>(), any::<bool>(), 8_u8..=15, 8_u8..=15).prop_map(|(s, c, sb, cb)| {
        PermessageDeflate {
            server_no_context_takeover: s,
            client_no_context_takeover: c,
            server_max_window_bits: sb,
            client_max_window_bits: cb,
        }
    })
}

fn write(all: &[Sent], sender: Sender, agreed: Option<&PermessageDeflate>) -> Vec<u8> {
    let mask = mask_of(sender);
    let mut deflater = agreed.map(|agreed| Deflater::new(agreed, sender));
    let mut out = Vec::new();
    for sent in all {
        let (opcode, payload) = match &sent.what {
            Seen::Text(text) => (1, text.as_bytes()),
            Seen::Binary(data) => (2, data.as_slice()),
            Seen::Ping(data) => {
                write_frame(&mut out, Opcode::Ping, mask, data);
                continue;
            }
            Seen::Pong(data) => {
                write_frame(&mut out, Opcode::Pong, mask, data);
                continue;
            }
            Seen::Close(..) => unreachable!("not generated"),
        };
        let mut squeezed = Vec::new();
        let compressed = sent.compressed
            && deflater
                .as_mut()
                .is_some_and(|d| d.message(payload, &mut squeezed));
        let payload = if compressed { &squeezed } else { payload };
        if sent.fragments == 1 {
            let opcode = [Opcode::Text, Opcode::Binary][opcode - 1];
            write_message_frame(&mut out, opcode, mask, compressed, payload);
            continue;
        }
        let size = payload.len() / sent.fragments;
        for i in 0..sent.fragments {
            let last = i + 1 == sent.fragments;
            let end = if last { payload.len() } else { (i + 1) * size };
            let first = if i == 0 { opcode as u8 } else { 0 }
                | if last { 0x80 } else { 0 }
                | if i == 0 && compressed { 0x40 } else { 0 };
            out.extend(frame(first, mask, &payload[i * size..end]));
        }
    }
    out
}

proptest! {
    #[test]
    fn headers_are_read_back(
        bits in any::<[bool; 4]>(),
        opcode in 0_usize..6,
        mask in any::<Option<[u8; 4]>>(),
        length in prop_oneof![0_u64..200, 65_000_u64..66_000, 0..i64::MAX as u64],
    ) {
        let opcode = [
            Opcode::Continuation, Opcode::Text, Opcode::Binary, Opcode::Close, Opcode::Ping, Opcode::Pong,
        ][opcode];
        let header = FrameHeader {
            fin: bits[0] || opcode.is_control(),
            rsv1: bits[1],
            rsv2: bits[2],
            rsv3: bits[3],
            opcode,
            mask,
            length: if opcode.is_control() { length % 126 } else { length },
        };
        let mut out = Vec::new();
        header.write(&mut out);
        for end in 0..out.len() {
            prop_assert_eq!(FrameHeader::parse(&out[..end]), Ok(None));
        }
        let len = out.len();
        out.extend(b"payload");
        prop_assert_eq!(FrameHeader::parse(&out), Ok(Some((header, len))));
    }

    #[test]
    fn a_mask_is_the_same_however_the_payload_is_cut(
        data in proptest::collection::vec(any::<u8>(), 0..200),
        key in any::<[u8; 4]>(),
        at in 0_usize..200,
    ) {
        let plain: Vec<u8> = data.iter().enumerate().map(|(i, b)| b ^ key[i % 4]).collect();
        let mut whole = data.clone();
        apply_mask(&mut whole, key, 0);
        prop_assert_eq!(&whole, &plain);
        let mut cut = data.clone();
        let at = at.min(cut.len());
        let (a, b) = cut.split_at_mut(at);
        apply_mask(a, key, 0);
        apply_mask(b, key, at as u64);
        prop_assert_eq!(&cut, &plain);
    }

    #[test]
    fn text_is_valid_or_not_however_it_is_cut(
        data in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            "\\PC{0,10}".prop_map(String::into_bytes),
        ],
        drop in 0_usize..3,
    ) {
        let data = &data[..data.len().saturating_sub(drop)];
        let expected = std::str::from_utf8(data).is_ok();
        for size in 1..=data.len().max(1) {
            let mut utf8 = Utf8::default();
            let valid = data.chunks(size).all(|piece| utf8.feed(piece).is_ok()) && utf8.finish().is_ok();
            prop_assert_eq!(valid, expected);
        }
    }

    #[test]
    fn what_is_sent_is_read(all in sent(), agreed in proptest::option::of(agreed()), by_client in any::<bool>()) {
        let sender = if by_client { Sender::Client } else { Sender::Server };
        let wire = write(&all, sender, agreed.as_ref());
        let expected: Vec<Seen> = all.iter().map(|sent| sent.what.clone()).collect();
        prop_assert_eq!(check(&wire, sender, agreed.as_ref()), (expected, Ok(())));
    }

    #[test]
    fn every_cut_of_any_bytes_means_the_same(
        wire in proptest::collection::vec(
            prop_oneof![Just(0x81_u8), Just(0xc1), Just(0x01), Just(0x80), Just(2), Just(0x82), any::<u8>()],
            0..40,
        ),
        deflated in any::<bool>(),
    ) {
        let deflate = PermessageDeflate::default();
        let deflate = deflated.then_some(&deflate);
        for sender in [Sender::Client, Sender::Server] {
            let whole = check(&wire, sender, deflate);
            for at in 0..wire.len() {
                let (a, b) = wire.split_at(at);
                prop_assert_eq!(&read(&[a, b], sender, 1 << 20, deflate), &whole);
            }
        }
    }

    #[test]
    fn compressed_messages_come_back(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..2000), 1..6),
        agreed in agreed(),
    ) {
        for sender in [Sender::Client, Sender::Server] {
            let mut deflater = Deflater::new(&agreed, sender);
            let mut inflater = Inflater::new(&agreed, sender);
            for message in &messages {
                let (mut squeezed, mut out) = (Vec::new(), Vec::new());
                if !deflater.message(message, &mut squeezed) {
                    prop_assert_eq!(agreed.window_bits(sender), 8);
                    continue;
                }
                for piece in squeezed.chunks(7) {
                    inflater.feed(piece, &mut out, 2000).unwrap();
                }
                inflater.finish(&mut out, 2000).unwrap();
                prop_assert_eq!(&out, message);
            }
        }
    }
}

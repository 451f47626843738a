//! WebSocket frames from arbitrary bytes: the same messages for every cut, none over its limit, errors
//! that stay, and messages that are written again as they were read.
//!
//! The input is one direction's bytes. It is read as a client's and as a server's, with and without
//! compression; and once as the payload of a compressed message, which no mutation of a frame reaches.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::cuts;
use tollgate_wire::websocket::{
    Close, Deflater, Event, Extensions, MessageReader, Opcode, PermessageDeflate, Sender,
    WebSocketError, write_close, write_message_frame,
};

fuzz_target!(|input: &[u8]| {
    let agreed = PermessageDeflate::default();
    for sender in [Sender::Client, Sender::Server] {
        for deflate in [None, Some(&agreed)] {
            for limit in [1 << 20, 20] {
                let whole = read(&[input], sender, limit, deflate);
                for pieces in cuts(input) {
                    assert_eq!(read(&pieces, sender, limit, deflate), whole);
                }
                if limit > 20 {
                    again(&whole.events, sender, deflate);
                }
            }
        }
    }
    let mut wrapped = Vec::new();
    write_message_frame(&mut wrapped, Opcode::Binary, None, true, input);
    read(&[&wrapped], Sender::Server, 1 << 20, Some(&agreed));
    if let Some(list) = Extensions::parse([input]) {
        let _ = list.negotiated();
        if let Some(offer) = list.only_supported() {
            let kept = Extensions::parse([offer.as_bytes()]).expect("a list that was written");
            assert!(kept.iter().all(|e| e.is_permessage_deflate()));
        }
    }
});

#[derive(Debug, Clone, PartialEq)]
enum Owned {
    Data(Opcode, Vec<u8>),
    Close(Option<u16>, String),
}

#[derive(Debug, PartialEq)]
struct Outcome {
    events: Vec<Owned>,
    end: Result<(), WebSocketError>,
}

fn read(
    pieces: &[&[u8]],
    sender: Sender,
    limit: usize,
    deflate: Option<&PermessageDeflate>,
) -> Outcome {
    let mut reader = MessageReader::new(sender, limit, deflate);
    let mut events = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match reader.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(event)) => events.extend(owned(event, limit)),
                Err(error) => {
                    assert_eq!(reader.next(&mut rest), Err(error), "it must stay");
                    return Outcome {
                        events,
                        end: Err(error),
                    };
                }
            }
        }
        assert!(rest.is_empty(), "bytes that were not taken");
    }
    Outcome {
        events,
        end: Ok(()),
    }
}

fn owned(event: Event<'_>, limit: usize) -> Option<Owned> {
    let data = |opcode, data: &[u8], limit| {
        assert!(data.len() <= limit);
        Some(Owned::Data(opcode, data.to_vec()))
    };
    match event {
        Event::Fragment => None,
        Event::Text(text) => data(Opcode::Text, text.as_bytes(), limit),
        Event::Binary(bytes) => data(Opcode::Binary, bytes, limit),
        Event::Ping(bytes) => data(Opcode::Ping, bytes, 125),
        Event::Pong(bytes) => data(Opcode::Pong, bytes, 125),
        Event::Close(Close { code, reason }) => Some(Owned::Close(code, reason.to_owned())),
    }
}

/// Writes what was read, and reads it back.
fn again(events: &[Owned], sender: Sender, deflate: Option<&PermessageDeflate>) {
    let mask = (sender == Sender::Client).then_some([1, 2, 3, 4]);
    let mut deflater = deflate.map(|agreed| Deflater::new(agreed, sender));
    let mut wire = Vec::new();
    for event in events {
        let (opcode, payload) = match event {
            Owned::Data(opcode, payload) => (*opcode, payload.clone()),
            Owned::Close(Some(code), reason) => (Opcode::Close, write_close(*code, reason)),
            Owned::Close(None, _) => (Opcode::Close, Vec::new()),
        };
        let mut squeezed = Vec::new();
        let compressed = !opcode.is_control()
            && deflater
                .as_mut()
                .is_some_and(|d| d.message(&payload, &mut squeezed));
        let payload = if compressed { squeezed } else { payload };
        write_message_frame(&mut wire, opcode, mask, compressed, &payload);
    }
    let read = read(&[&wire], sender, 1 << 20, deflate);
    assert_eq!(read.events, events);
    assert_eq!(read.end, Ok(()));
}

//! Clients that mean harm: the proxy ends them, or bears them, and serves the others.

use std::io;
use std::thread;
use std::time::Duration;

use tollgate_flow::Interest;

use crate::support::http2::{H2Origin, answer as answer_of, frame, read_frame, run, until};
use crate::support::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method GET`, `:scheme https`, `:path /`, `:authority localhost`, without Huffman coding.
const GET: &[u8] = b"\x82\x87\x84\x01\x09localhost";

/// Floods the proxy with what `flood` writes while another client is served, then looks that
/// nothing is left of it.
fn survives(flood: impl FnOnce(&mut Wire) -> io::Result<()> + Send) {
    let origin = H2Origin::echo_path();
    let recorder = Recorder::new(Interest::END);
    let proxy = start_with(config(), [recorder.clone()]);
    thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let mut wire = proxy.raw_h2(&origin.authority());
            // What comes back is thrown away: an attacker that doesn't read is another test.
            let result = flood(&mut wire);
            wire.finish();
            result
        });
        run(async {
            let mut rounds = 0;
            while !attacker.is_finished() || rounds < 3 {
                let client = proxy.h2(&origin.authority()).await;
                // The shared connection may be ended by the origin for what it was made to carry.
                let served = client.get("/x").await;
                assert!(served.is_ok(), "in round {rounds}: {served:?}");
                rounds += 1;
            }
        });
        // Writing to a connection that the proxy has ended fails: so it should.
        let _ = attacker.join().unwrap();
    });
    wait_until("no flow is left", || proxy.metrics().flows_active == 0);
    wait_until("the attacker's connection ends", || {
        proxy.metrics().connections_active == 0
    });
    let metrics = proxy.metrics();
    assert_eq!(metrics.flows_total as usize, recorder.ends(0).len());
    assert!(proxy.shutdown(PATIENCE).drained);
}

#[test]
fn ten_thousand_streams_that_are_reset_at_once() {
    survives(|wire| {
        for n in 0..10_000 {
            let stream = 2 * n + 1;
            let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, GET);
            both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            wire.send(both)?;
        }
        Ok(())
    });
}

#[test]
fn streams_that_are_reset_at_once_do_not_cost_another_client_its_own() {
    let (go, goes) = tokio::sync::watch::channel(false);
    let origin = H2Origin::serve(move |mut call| {
        let mut goes = goes.clone();
        async move {
            if call.head.uri.path() == "/victim" {
                let _ = goes.wait_for(|go| *go).await;
            }
            call.answer(200, "whole").await
        }
    });
    let proxy = start(config());
    run(async {
        let victim = proxy.h2(&origin.authority()).await;
        let request = victim.request("POST", "/victim");
        let (answer, mut up) = victim.begin(request, false).await.unwrap();
        until("it is under way", || origin.heads().len() == 1).await;
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut wire = proxy.raw_h2(&origin.authority());
                for n in 0..10_000 {
                    let stream = 2 * n + 1;
                    let mut both = frame(HEADERS, END_STREAM | END_HEADERS, stream, GET);
                    both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    if wire.send(both).is_err() {
                        break;
                    }
                }
            });
        });
        until("the flood is over", || proxy.metrics().flows_active == 1).await;
        go.send(true).unwrap();
        up.send_data("end".into(), true).unwrap();
        assert_eq!(answer_of(answer).await.unwrap().text(), "whole");
    });
}

#[test]
fn ten_thousand_settings() {
    survives(|wire| {
        for _ in 0..100 {
            wire.send(frame(SETTINGS, 0, 0, b"").repeat(100))?;
        }
        read_until_pong(wire)
    });
}

#[test]
fn ten_thousand_pings() {
    survives(|wire| {
        for _ in 0..100 {
            wire.send(frame(PING, 0, 0, b"12345678").repeat(100))?;
        }
        read_until_pong(wire)
    });
}

/// Shows that the connection still lives, or has been ended.
fn read_until_pong(wire: &mut Wire) -> io::Result<()> {
    wire.send(frame(PING, 0, 0, b"last one"))?;
    loop {
        let frame = read_frame(wire)?;
        if frame.kind == PING && frame.payload == b"last one" {
            return Ok(());
        }
    }
}

#[test]
fn a_head_that_never_ends() {
    survives(|wire| {
        wire.send(frame(HEADERS, END_STREAM, 1, GET))?;
        // A literal field without indexing: 16 000 bytes of value in each frame.
        let value = [&b"\x00\x01x\x7f\x81\x7c"[..], &[b'v'; 16_000]].concat();
        for _ in 0..2_000 {
            wire.send(frame(CONTINUATION, 0, 1, &value))?;
        }
        panic!("32 MB of one head were taken");
    });
}

#[test]
fn a_head_of_empty_pieces_that_never_ends() {
    survives(|wire| {
        wire.send(frame(HEADERS, END_STREAM, 1, GET))?;
        for _ in 0..1_000 {
            wire.send(frame(CONTINUATION, 0, 1, b"").repeat(100))?;
        }
        Ok(())
    });
}

#[test]
fn empty_data_that_never_ends() {
    survives(|wire| {
        wire.send(frame(HEADERS, END_HEADERS, 1, GET))?;
        for _ in 0..100 {
            wire.send(frame(DATA, 0, 1, b"").repeat(100))?;
        }
        Ok(())
    });
}

#[test]
fn more_streams_than_allowed() {
    survives(|wire| {
        for n in 0..2_000 {
            wire.send(frame(HEADERS, END_HEADERS, 2 * n + 1, GET))?;
        }
        Ok(())
    });
}

#[test]
fn frames_that_make_no_sense() {
    let cases: [Vec<u8>; 6] = [
        // DATA on a stream that nobody opened.
        frame(DATA, 0, 1, b"x"),
        // An even stream.
        frame(HEADERS, END_STREAM | END_HEADERS, 2, GET),
        // A head that isn't HPACK.
        frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            1,
            b"\xff\xff\xff\xff\xff\xff",
        ),
        // A CONTINUATION of nothing.
        frame(CONTINUATION, END_HEADERS, 1, GET),
        // SETTINGS with a length that isn't a multiple of 6.
        frame(SETTINGS, 0, 0, b"12345"),
        // A frame of 16 MiB, announced.
        b"\xff\xff\xff\0\0\0\0\0\x01".to_vec(),
    ];
    for case in cases {
        survives(move |wire| {
            wire.send(case)?;
            wire.finish();
            wire.read_to_end();
            Ok(())
        });
    }
}

#[test]
fn a_client_that_reads_nothing_does_not_hold_others_up() {
    let origin =
        H2Origin::serve(|mut call| async move { call.answer(200, vec![b'x'; 1 << 20]).await });
    let mut config = config();
    config.timeouts.idle = Duration::from_millis(500);
    let proxy = start(config);
    let mut wire = proxy.raw_h2(&origin.authority());
    for n in 0..50 {
        wire.send(frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, GET))
            .unwrap();
    }
    run(async {
        for _ in 0..3 {
            let client = proxy.h2(&origin.authority()).await;
            assert_eq!(client.get("/").await.unwrap().body.len(), 1 << 20);
        }
    });
    drop(wire);
    wait_until("no flow is left", || proxy.metrics().flows_active == 0);
}

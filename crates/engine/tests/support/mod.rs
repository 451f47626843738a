//! What the integration tests are made of: a scripted origin, a raw client, a proxy between them,
//! and interceptors that record or do as a closure says.
//!
//! Everything is blocking and byte-exact: a test says which bytes are sent and sees which bytes
//! arrive, on 127.0.0.1 and ports that the system chooses. Reads give up after [`PATIENCE`], so a
//! proxy that hangs fails a test instead of hanging it.

mod hooks;
#[cfg(feature = "http2")]
pub mod http2;
#[cfg(feature = "http3")]
pub mod http3;
mod origin;
mod proxy;
mod tls;
mod wire;

use std::time::{Duration, Instant};

pub use hooks::{Event, Hook, Recorder};
pub use origin::{Origin, closed_port, ok};
pub use proxy::{TestProxy, block_on, config, start, start_with, try_start};
pub use tls::{
    Identity, client_config, client_config_with, lax_authority, origin_authority, server_config,
    server_config_with,
};
pub use wire::{Ending, Wire};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A limit that a test wants to see pass.
pub const SHORT: Duration = Duration::from_millis(100);

/// Waits until a condition holds that nobody announces (a gauge, say).
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Bytes that aren't all the same, so that a shifted or repeated block is noticed.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let mut out = Vec::with_capacity(len + 4);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Compares without printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8]) {
    if got == expected {
        return;
    }
    let at = got.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let show = |bytes: &[u8]| {
        let from = at.saturating_sub(40);
        let to = bytes.len().min(at + 80);
        bytes[from.min(to)..to].escape_ascii().to_string()
    };
    panic!(
        "{} bytes instead of {}, the first difference is at {at}:\n got      …{}…\n expected …{}…",
        got.len(),
        expected.len(),
        show(got),
        show(expected),
    );
}

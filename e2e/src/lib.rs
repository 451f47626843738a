//! What the end-to-end tests in `tests/` stand on: the real binary `tollgate`, between real clients and a real origin.
//!
//! | | |
//! |---|---|
//! | [`Tollgate`] | the proxy, started on a free port with an authority of its own; [`tollgate_run`] for `tollgate run -- CMD` |
//! | [`Origin`] | nginx with HTTP/1.1 and HTTP/2 over TLS, its certificate signed by a throw-away [`Pki`] |
//! | [`RawOrigin`], [`raw::through`] | both ends as plain bytes inside TLS, for what no well-behaved program would send |
//! | [`ForwardProxy`] | other people's proxies: tinyproxy, microsocks, squid |
//! | [`ScanServer`] | `tollgate scan-server` on a free port |
//! | [`Net`] | a client, a gateway and an origin in network namespaces of their own |
//! | [`Script`] | servers in Python, in `programs/`: WebSocket echo, gRPC, a way into TLS and proxies |
//! | [`Process`] | a program that is killed with all its children when the test ends, however it ends |
//! | [`require!`] | which programs a test needs |
//!
//! **The binary.** `TOLLGATE_BIN` names one; else it is `tollgate` in the folder of the profile that the tests were built
//! with (`target/debug/tollgate`). `cargo test --workspace` has just built it there; where it is missing or older than
//! its sources (`cargo test -p tollgate-e2e` builds this crate alone), the harness runs `cargo build -p tollgate-cli` first.
//!
//! **Programs.** A test whose client is not installed says so and passes, so that `cargo test --workspace` works on a
//! fresh machine. With `CI=true` or `TOLLGATE_E2E=1` it fails instead. `.ci/run` installs all of them.
//!
//! Nothing here sleeps: ports are waited for by connecting, output by reading it, both with a limit.
#![cfg(unix)]
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a harness for tests, which fail by panicking"
)]

mod forward_proxy;
mod net;
mod origin;
mod pki;
mod process;
pub mod programs;
pub mod raw;
mod scan_server;
mod script;
mod tollgate;

pub use forward_proxy::ForwardProxy;
pub use net::{End, Net};
pub use origin::Origin;
pub use pki::Pki;
pub use process::{Finished, Process, command};
pub use raw::RawOrigin;
pub use scan_server::ScanServer;
pub use script::Script;
pub use tollgate::{Tollgate, binary, tollgate_command, tollgate_run};

use std::time::Duration;

/// How long anything may take before it counts as hanging: long, for a debug build on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Bytes that look random, and are the same each time: what is lost, repeated or out of order shows.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

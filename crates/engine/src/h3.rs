//! HTTP/3 on either side, on quinn's QUIC and the codec of [`tollgate_wire::http3`]. What a stream
//! carries is in [`crate::streams`].
//!
//! [`Acceptor`] takes connections from a UDP socket, and [`serve`] is one of them: what
//! [`h2::serve`](crate::h2::serve) is for HTTP/2. [`connect`] makes a connection to an origin, and
//! [`open`] a stream on it. Why this is not the `h3` crate: ADR 0013.

mod connection;
mod head;
mod listener;
mod stream;
mod upstream;

use std::sync::PoisonError;
use std::time::Duration;

use h2::Reason;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use tollgate_wire::http3::code;

pub(crate) use listener::{Acceptor, Incoming, serve};
pub(crate) use stream::{Receiver, Sender};
pub(crate) use upstream::{Client, Endpoints, ResponseHead, connect, open};

/// The protocol's name in ALPN.
pub(crate) const ALPN: &[u8] = b"h3";

/// Flow-control windows that we give: what may be in flight and not yet passed on.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// What QUIC may hold of a connection's data that its peer has not acknowledged.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// Unidirectional streams that a peer may have open: control, two of QPACK, and some to spare.
const UNI_STREAMS: u32 = 8;
/// After how long without a packet a peer counts as gone.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a packet is asked for while nothing else is said.
const PROBE: Duration = Duration::from_secs(10);

/// How QUIC is spoken, with room for so many requests of the peer's.
fn transport(requests: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(requests))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_idle_timeout(IdleTimeout::try_from(SILENCE).ok())
        .keep_alive_interval(Some(PROBE))
        .datagram_receive_buffer_size(None);
    transport
}

/// Codes that mean the same in HTTP/2 and HTTP/3.
const SAME: [(Reason, u64); 8] = [
    (Reason::NO_ERROR, code::NO_ERROR),
    (Reason::CANCEL, code::REQUEST_CANCELLED),
    (Reason::REFUSED_STREAM, code::REQUEST_REJECTED),
    (Reason::PROTOCOL_ERROR, code::MESSAGE_ERROR),
    (Reason::INTERNAL_ERROR, code::INTERNAL_ERROR),
    (Reason::ENHANCE_YOUR_CALM, code::EXCESSIVE_LOAD),
    (Reason::CONNECT_ERROR, code::CONNECT_ERROR),
    (Reason::HTTP_1_1_REQUIRED, code::VERSION_FALLBACK),
];

/// What a stream of HTTP/3 is reset with for a reason of HTTP/2's, in which exchanges speak of resets.
fn code_of(reason: Reason) -> u64 {
    let known = SAME.iter().find(|(r, _)| *r == reason);
    match known {
        Some((_, code)) => *code,
        // Came from HTTP/3, or means nothing there.
        None if u32::from(reason) >= 0x100 => u64::from(u32::from(reason)),
        None => code::INTERNAL_ERROR,
    }
}

/// The other way. A code that HTTP/2 has no word for keeps its number.
fn reason_of(code: u64) -> Reason {
    let known = SAME.iter().find(|(_, c)| *c == code);
    match known {
        Some((reason, _)) => *reason,
        // Below are HTTP/2's own words, which mean something else.
        None => u32::try_from(code)
            .ok()
            .filter(|code| *code >= 0x100)
            .map_or(Reason::INTERNAL_ERROR, Reason::from),
    }
}

/// Which of a connection's bytes have been counted.
#[derive(Default)]
struct Counted(std::sync::Mutex<(u64, u64)>);

impl Counted {
    /// What was received and sent since the last call.
    fn take(&self, connection: &quinn::Connection) -> (u64, u64) {
        let stats = connection.stats();
        let now = (stats.udp_rx.bytes, stats.udp_tx.bytes);
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *counted, now);
        (
            now.0.saturating_sub(before.0),
            now.1.saturating_sub(before.1),
        )
    }
}

fn varint(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_keeps_its_meaning() {
        for (reason, code) in SAME {
            assert_eq!(code_of(reason), code);
            assert_eq!(reason_of(code), reason);
        }
        // One of HTTP/3 only goes through as it is; one of HTTP/2 only has no counterpart.
        assert_eq!(code_of(reason_of(code::REQUEST_INCOMPLETE)), 0x10d);
        assert_eq!(code_of(Reason::FLOW_CONTROL_ERROR), code::INTERNAL_ERROR);
        assert_eq!(reason_of(u64::MAX), Reason::INTERNAL_ERROR);
    }
}

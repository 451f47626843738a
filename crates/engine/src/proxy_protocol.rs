//! The PROXY protocol on both sides: who a load balancer speaks for, and whom we speak for.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use tollgate_flow::{ErrorClass, FlowError, Side, Target};
use tollgate_wire::proxy_protocol::{self, Endpoints, Parsed};
use tracing::warn;

use crate::config::{Config, ProxyProtocolVersion, Timeouts};
use crate::metrics::Counters;
use crate::ports::{Accepted, Came};
use crate::proxy::{Live, Worker};
use crate::session::Dialled;
use crate::timer::Timer;

/// Whether a connection must begin with a PROXY header.
pub(crate) fn is_expected(config: &Config, accepted: &Accepted) -> bool {
    let from = &config.proxy_protocol.from;
    // There is none for QUIC.
    if from.is_empty() || !matches!(accepted.came, Came::Stream(_)) {
        return false;
    }
    let peer = Target::new(
        &accepted.client.ip().to_canonical().to_string(),
        accepted.client.port(),
    );
    from.iter().any(|pattern| pattern.matches(&peer))
}

/// Reads the header. `None`: there is no proper one, and the connection is to be closed.
pub(crate) async fn receive(
    worker: &Worker,
    live: &Live,
    mut accepted: Accepted,
) -> Option<Accepted> {
    let mut timer = Timer::default();
    timer.set(live.config.timeouts.first_bytes);
    let rd = match &mut accepted.came {
        Came::Stream(conn) => &mut conn.rd,
        #[cfg(feature = "http3")]
        Came::Quic(_) => return None,
    };
    loop {
        match proxy_protocol::parse(rd.data()) {
            Ok(Parsed::Complete { value, consumed }) => {
                rd.consume(consumed);
                // A health check of the balancer itself speaks for nobody.
                if let Endpoints::Ip {
                    source,
                    destination,
                    ..
                } = value.endpoints
                {
                    accepted.client = source;
                    accepted.local = destination;
                }
                return Some(accepted);
            }
            Ok(Parsed::Partial) => {}
            Err(error) => {
                refuse(&worker.counters, accepted.client, &error.to_string());
                return None;
            }
        }
        let filled = poll_fn(|cx| {
            if let Poll::Ready(result) = rd.poll_fill(cx) {
                return Poll::Ready(result.is_ok_and(|n| n > 0));
            }
            timer.poll(cx).map(|()| false)
        })
        .await;
        if !filled {
            refuse(&worker.counters, accepted.client, "it did not come");
            return None;
        }
    }
}

fn refuse(counters: &Counters, peer: SocketAddr, why: &str) {
    counters.failure(Side::Client, ErrorClass::Protocol);
    warn!(%peer, "a PROXY header is expected of this peer: {why}");
}

/// Begins a connection to an origin with a header for its client.
pub(crate) async fn send(
    dialled: &mut Dialled,
    version: ProxyProtocolVersion,
    client: SocketAddr,
    timeouts: &Timeouts,
) -> Result<(), FlowError> {
    let mut header = Vec::with_capacity(128);
    // A client on a Unix socket has no address.
    let known = !client.ip().is_unspecified();
    let addresses = known.then_some((client, dialled.address));
    match version {
        ProxyProtocolVersion::V1 => proxy_protocol::write_v1(addresses, &mut header),
        ProxyProtocolVersion::V2 => proxy_protocol::write_v2(addresses, &mut header),
    }
    let written = Timer::default()
        .within(timeouts.connect, dialled.conn.wr.write_all(&header))
        .await;
    match written {
        Ok(Ok(())) => Ok(()),
        _ => Err(FlowError::new(
            Side::Upstream,
            ErrorClass::Reset,
            format!("{} took no PROXY header", dialled.address),
        )),
    }
}

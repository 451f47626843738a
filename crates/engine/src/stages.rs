//! The way of one connection: a flat loop in which each stage consumes what it has and names the
//! next one. An upgrade, or a CONNECT, is one more turn of the loop.
//!
//! ```text
//! First ── HTTP/1 ──> Http1 ── CONNECT ──> Connect ──> Inner ── ClientHello ──> Intercept ──> Http1 | Http2 | Opaque
//!    └─── HTTP/2 ──> Http2                   │           ├── HTTP ──> Http1 | Http2
//!                                            └─ tunnel ──┴── anything else ──> Opaque
//! ```

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tollgate_ca::LeafRequest;
use tollgate_flow::{
    ClientHello, ClientTls, ConnectDecision, ErrorClass, FlowError, Scheme, Side, Target,
    TlsDecision, TlsFailure, TlsFailureKind,
};
use tollgate_wire::detect::{Detected, Protocol, detect};
use tollgate_wire::tls::{HelloStatus, parse_client_hello};
use tracing::{debug, info};

use crate::config::UpstreamHttp;
use crate::h1::{self, Fixed, Mode};
use crate::io::Conn;
use crate::metrics::count;
use crate::policy::Action;
use crate::pool::{RouteTls, UpConn};
use crate::reply;
use crate::session::{Dialled, Session, Up, UpstreamError};
use crate::tls::{failure, handshake};
use crate::tunnel;

/// Most bytes that are looked at before a protocol must have shown itself.
const MAX_PEEK: usize = 16 * 1024;

/// A stage, with everything that it needs.
enum Stage {
    First(Conn),
    Http1 {
        client: Conn,
        mode: Mode,
        upstream: Option<Up>,
    },
    #[cfg(feature = "http2")]
    Http2 {
        client: Conn,
        fixed: Option<Fixed>,
        upstream: Option<Up>,
    },
    Connect {
        client: Conn,
        target: Target,
    },
    Inner {
        client: Conn,
        target: Target,
        decision: ConnectDecision,
        dialled: Option<Dialled>,
    },
    Intercept {
        client: Conn,
        target: Target,
        hello: Arc<ClientHello>,
        dialled: Option<Dialled>,
    },
    Opaque {
        client: Conn,
        upstream: Conn,
    },
    Closed,
}

/// Serves a client's connection to its end.
pub(crate) async fn serve(session: &mut Session, client: Conn) {
    let mut stage = Stage::First(client);
    loop {
        // Each stage is a future of its own, so that a connection only pays for the one it is in.
        stage = match stage {
            Stage::First(client) => Box::pin(first(session, client)).await,
            Stage::Http1 {
                client,
                mode,
                upstream,
            } => Box::pin(http1(session, client, mode, upstream)).await,
            #[cfg(feature = "http2")]
            Stage::Http2 {
                client,
                fixed,
                upstream,
            } => {
                Box::pin(crate::h2::serve(session, client, fixed, upstream)).await;
                Stage::Closed
            }
            Stage::Connect { client, target } => Box::pin(connect(session, client, target)).await,
            Stage::Inner {
                client,
                target,
                decision,
                dialled,
            } => Box::pin(inner(session, client, target, decision, dialled)).await,
            Stage::Intercept {
                client,
                target,
                hello,
                dialled,
            } => Box::pin(intercept(session, client, target, hello, dialled)).await,
            Stage::Opaque { client, upstream } => Box::pin(opaque(session, client, upstream)).await,
            Stage::Closed => return,
        };
    }
}

/// The first bytes on a proxy's own port.
async fn first(session: &mut Session, mut client: Conn) -> Stage {
    let limit = session.live.config.timeouts.first_bytes;
    match peek(session, &mut client, limit).await {
        Peek::Known(Protocol::Http1) => Stage::Http1 {
            client,
            mode: Mode::Proxy,
            upstream: None,
        },
        #[cfg(feature = "http2")]
        Peek::Known(Protocol::Http2) if session.live.config.http2 => Stage::Http2 {
            client,
            fixed: None,
            upstream: None,
        },
        Peek::Closed => Stage::Closed,
        Peek::Known(protocol) => {
            debug!(client = %session.info.client, ?protocol, "not spoken on this port");
            let error = FlowError::new(
                Side::Client,
                ErrorClass::Protocol,
                format!("this port speaks HTTP; what arrived looks like {protocol:?}"),
            );
            session.counters().failure(error.side, error.class);
            // Somebody who speaks TLS to us would not understand an answer.
            if !matches!(protocol, Protocol::Tls) {
                let reply = reply::for_error(&error);
                let _ = h1::send_reply(&mut client, &reply, false, true).await;
                h1::linger(session, &mut client).await;
            }
            session.count_client_bytes(&mut client);
            Stage::Closed
        }
    }
}

async fn http1(session: &mut Session, mut client: Conn, mode: Mode, upstream: Option<Up>) -> Stage {
    match h1::serve(session, &mut client, &mode, upstream).await {
        h1::Next::Close => Stage::Closed,
        h1::Next::Connect(target) => Stage::Connect { client, target },
        h1::Next::Upgraded(upstream) => Stage::Opaque {
            client,
            upstream: upstream.conn,
        },
    }
}

/// A CONNECT: decides by the authority, makes sure that the origin is there, and answers.
async fn connect(session: &mut Session, mut client: Conn, target: Target) -> Stage {
    session.info.set_target(target.clone());
    let worker = Arc::clone(&session.worker);
    let decision = worker
        .shared
        .hooks
        .connect(&target, &session.info, &worker.counters);
    let decision = match decision {
        ConnectDecision::Default => match session.live.config.policy.decide(&[&target]) {
            Action::Block => ConnectDecision::Block,
            Action::Tunnel => ConnectDecision::Tunnel,
            Action::Intercept => ConnectDecision::Default,
        },
        decision => decision,
    };
    if decision == ConnectDecision::Block {
        count(&worker.counters.blocked_total);
        info!(client = %session.info.client, %target, "blocked");
        let error = h1::blocked(&target);
        return refuse(session, client, &error).await;
    }
    // A pooled connection is proof enough that the origin is alive.
    // So is one in use, where their number is bounded and dialling might exceed it.
    let bounded = session.live.config.pool.max_per_route > 0;
    let known = decision != ConnectDecision::Tunnel
        && (worker.knows(&target) || (bounded && worker.slots.of(&target).is_taken()));
    let dialled = if known {
        None
    } else {
        match session.dial(&target).await {
            Ok(dialled) => Some(dialled),
            Err(error) => {
                session.counters().failure(error.side, error.class);
                tracing::warn!(client = %session.info.client, "{error}");
                return refuse(session, client, &error).await;
            }
        }
    };
    let answer = b"HTTP/1.1 200 Connection established\r\n\r\n";
    if client.wr.write_all(answer).await.is_err() {
        return Stage::Closed;
    }
    session.count_client_bytes(&mut client);
    Stage::Inner {
        client,
        target,
        decision,
        dialled,
    }
}

async fn refuse(session: &mut Session, mut client: Conn, error: &FlowError) -> Stage {
    let reply = reply::for_error(error);
    if h1::send_reply(&mut client, &reply, false, true)
        .await
        .is_ok()
    {
        h1::linger(session, &mut client).await;
    }
    session.count_client_bytes(&mut client);
    Stage::Closed
}

/// Inside a CONNECT: finds out what the client speaks.
async fn inner(
    session: &mut Session,
    mut client: Conn,
    target: Target,
    decision: ConnectDecision,
    dialled: Option<Dialled>,
) -> Stage {
    if decision == ConnectDecision::Tunnel {
        count(&session.counters().tunnels_total);
        return to_opaque(session, client, &target, dialled).await;
    }
    let limit = session.live.config.timeouts.first_bytes;
    let mut dialled = dialled;
    let peeked = match &mut dialled {
        Some(d) => peek_both(session, &mut client, &mut d.conn, limit).await,
        None => peek(session, &mut client, limit).await,
    };
    match peeked {
        Peek::Known(Protocol::Tls) => hello(session, client, target, decision, dialled).await,
        Peek::Known(Protocol::Http1) => {
            let fixed = fixed_plain(&target);
            Stage::Http1 {
                client,
                upstream: dialled.map(|d| Up::Conn(plain_upstream(session, &target, d))),
                mode: Mode::Fixed(fixed),
            }
        }
        #[cfg(feature = "http2")]
        Peek::Known(Protocol::Http2) if session.live.config.http2 => Stage::Http2 {
            client,
            fixed: Some(fixed_plain(&target)),
            upstream: None,
        },
        Peek::Known(_) => to_opaque(session, client, &target, dialled).await,
        Peek::Closed => Stage::Closed,
    }
}

fn fixed_plain(target: &Target) -> Fixed {
    Fixed {
        target: target.clone(),
        scheme: Scheme::Http,
        tls: None,
        broken: None,
    }
}

fn plain_upstream(session: &Session, target: &Target, d: Dialled) -> UpConn {
    UpConn {
        info: Arc::new(tollgate_flow::UpstreamInfo {
            address: d.address,
            local: d.local,
            tls_version: None,
            alpn: None,
            certificates: Arc::new([]),
            unverified: false,
            connected: d.connected,
            connect_time: d.connect_time,
            handshake_time: Duration::ZERO,
        }),
        conn: d.conn,
        route: Arc::new(session.route(target, None, false)),
        reused: false,
        pinned: false,
        slot: None,
    }
}

async fn to_opaque(
    session: &mut Session,
    client: Conn,
    target: &Target,
    dialled: Option<Dialled>,
) -> Stage {
    let upstream = match dialled {
        Some(dialled) => dialled.conn,
        None => match session.dial(target).await {
            Ok(dialled) => dialled.conn,
            Err(error) => {
                session.counters().failure(error.side, error.class);
                tracing::warn!(client = %session.info.client, "{error}");
                return Stage::Closed;
            }
        },
    };
    Stage::Opaque { client, upstream }
}

/// Reads the whole ClientHello, without consuming it, and decides.
async fn hello(
    session: &mut Session,
    mut client: Conn,
    target: Target,
    decision: ConnectDecision,
    dialled: Option<Dialled>,
) -> Stage {
    session.timer.set(session.live.config.timeouts.first_bytes);
    let hello = loop {
        match parse_client_hello(client.rd.data()) {
            Ok(HelloStatus::Complete(hello)) => break Arc::from(hello),
            Ok(HelloStatus::Partial) => {}
            Err(error) => {
                // It begins like TLS and isn't: whatever it is, nobody was to look inside.
                session.tls_failed(&TlsFailure {
                    side: Side::Client,
                    kind: TlsFailureKind::Protocol,
                    host: Arc::clone(&target.host),
                    detail: error.to_string(),
                });
                let _ = client.wr.write_all(&alert(50)).await;
                return Stage::Closed;
            }
        }
        let timer = &mut session.timer;
        let filled = poll_fn(|cx| {
            if let Poll::Ready(result) = client.rd.poll_fill(cx) {
                return Poll::Ready(result.ok().filter(|n| *n > 0).ok_or(TlsFailureKind::Reset));
            }
            timer.poll(cx).map(|()| Err(TlsFailureKind::Timeout))
        })
        .await;
        if let Err(kind) = filled {
            session.tls_failed(&TlsFailure {
                side: Side::Client,
                kind,
                host: Arc::clone(&target.host),
                detail: "in the ClientHello".to_owned(),
            });
            return Stage::Closed;
        }
    };
    session.info.set_tls(ClientTls::new(Arc::clone(&hello)));
    let worker = Arc::clone(&session.worker);
    let by_hook = worker
        .shared
        .hooks
        .tls(&hello, &session.info, &worker.counters);
    let action = match by_hook {
        TlsDecision::Intercept => Action::Intercept,
        TlsDecision::Tunnel => Action::Tunnel,
        TlsDecision::Block => Action::Block,
        TlsDecision::Default if decision == ConnectDecision::Intercept => Action::Intercept,
        TlsDecision::Default => {
            let sni = hello
                .server_name
                .as_deref()
                .map(|name| Target::new(name, target.port));
            match &sni {
                Some(sni) => session.live.config.policy.decide(&[&target, sni]),
                None => session.live.config.policy.decide(&[&target]),
            }
        }
    };
    match action {
        Action::Intercept => Stage::Intercept {
            client,
            target,
            hello,
            dialled,
        },
        Action::Tunnel => {
            count(&session.counters().tunnels_total);
            to_opaque(session, client, &target, dialled).await
        }
        Action::Block => {
            count(&session.counters().blocked_total);
            info!(client = %session.info.client, %target, sni = hello.server_name, "blocked");
            // access_denied, RFC 8446 section 6.2
            let _ = client.wr.write_all(&alert(49)).await;
            h1::linger(session, &mut client).await;
            Stage::Closed
        }
    }
}

/// A fatal alert before any keys: a record of its own.
fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// Opens TLS: first towards the origin with the client's offer, then towards the client with the
/// origin's answer.
async fn intercept(
    session: &mut Session,
    mut client: Conn,
    target: Target,
    hello: Arc<ClientHello>,
    dialled: Option<Dialled>,
) -> Stage {
    let offer = offer(session, &hello);
    let tls = RouteTls {
        sni: match &hello.server_name {
            Some(name) => Arc::from(name.as_str()),
            None => Arc::clone(&target.host),
        },
        alpn: offer,
    };
    let route = session.route(&target, Some(tls.clone()), false);
    let upstream = session.acquire(route, dialled).await;
    let (upstream, broken) = match upstream {
        Ok(up) => (Some(up), None),
        Err(error) => {
            if let UpstreamError::Tls(failure) = &error {
                session.tls_failed(failure);
            }
            // The client gets its handshake all the same, and then an answer that says what is wrong.
            (None, Some(error.into_flow_error()))
        }
    };
    let info = upstream.as_ref().map(|up| Arc::clone(up.info()));
    let fail = |kind, detail: String| TlsFailure {
        side: Side::Client,
        kind,
        host: Arc::clone(&target.host),
        detail,
    };

    let leaf = {
        let mut request = LeafRequest::new(&*target.host);
        if let Some(name) = &hello.server_name {
            request = request.with_server_name(name);
        }
        let origin = info.as_ref().and_then(|i| i.certificates.first());
        let request = match origin {
            // An origin certificate that can't be read has no names to copy.
            Some(der) => request.clone().with_origin(der).unwrap_or(request),
            None => request,
        };
        match session.live.leaves.get_or_mint(&request) {
            Ok(leaf) => leaf,
            Err(error) => {
                session.tls_failed(&fail(TlsFailureKind::Minting, error.to_string()));
                // internal_error
                let _ = client.wr.write_all(&alert(80)).await;
                return Stage::Closed;
            }
        }
    };
    let alpn = client_alpn(session, &hello, info.as_deref().map(|i| i.alpn.as_deref()));
    let cap = info.as_ref().and_then(|i| i.tls_version);
    let config = session
        .live
        .client_side
        .config(Arc::clone(&leaf.certified), alpn.as_deref(), cap);
    let limit = session.live.config.timeouts.handshake;
    let accepted = session
        .timer
        .within(limit, handshake::accept(&mut client, config))
        .await;
    let agreed = match accepted {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(error)) => {
            session.tls_failed(&failure::client(&error, &target.host));
            session.count_client_bytes(&mut client);
            give_back(session, upstream);
            return Stage::Closed;
        }
        Err(_) => {
            session.tls_failed(&fail(TlsFailureKind::Timeout, format!("{limit:?}")));
            give_back(session, upstream);
            return Stage::Closed;
        }
    };
    count(&session.counters().client_handshakes);
    if let Some(tls) = session.info.tls() {
        tls.set_agreed(agreed.alpn.clone(), agreed.version);
    }
    session.count_client_bytes(&mut client);

    let fixed = Fixed {
        target: target.clone(),
        scheme: Scheme::Https,
        tls: Some(tls),
        broken,
    };
    #[cfg(feature = "http2")]
    if agreed.alpn.as_deref() == Some(b"h2") {
        return Stage::Http2 {
            client,
            fixed: Some(fixed),
            upstream,
        };
    }
    if agreed.alpn.as_deref() == Some(b"http/1.1") {
        return Stage::Http1 {
            client,
            mode: Mode::Fixed(fixed),
            upstream,
        };
    }
    // No ALPN, or one that isn't HTTP's: look at what the client says.
    let limit = session.live.config.timeouts.first_bytes;
    let mut upstream = upstream;
    let peeked = match &mut upstream {
        Some(Up::Conn(up)) => peek_both(session, &mut client, &mut up.conn, limit).await,
        _ => peek(session, &mut client, limit).await,
    };
    match (peeked, upstream) {
        (Peek::Known(Protocol::Http1), upstream) => Stage::Http1 {
            client,
            mode: Mode::Fixed(fixed),
            upstream,
        },
        #[cfg(feature = "http2")]
        (Peek::Known(Protocol::Http2), upstream) if session.live.config.http2 => Stage::Http2 {
            client,
            fixed: Some(fixed),
            upstream,
        },
        (Peek::Known(_), Some(Up::Conn(up))) => Stage::Opaque {
            client,
            upstream: up.conn,
        },
        (_, upstream) => {
            give_back(session, upstream);
            Stage::Closed
        }
    }
}

fn give_back(session: &Session, upstream: Option<Up>) {
    if let Some(up) = upstream {
        session.give_back(up);
    }
}

/// What to offer the origin: what the client offered, as far as the configuration allows it.
fn offer(session: &Session, hello: &ClientHello) -> Arc<[Vec<u8>]> {
    let config = &session.live.config;
    let speaks_h2 = config.http2 && cfg!(feature = "http2");
    let is_http = |p: &[u8]| p == b"h2" || p == b"http/1.1";
    let http = hello.alpn.iter().any(|p| is_http(p));
    match config.upstream_http {
        UpstreamHttp::Http1 if http => Arc::new([b"http/1.1".to_vec()]),
        UpstreamHttp::Http2 if http && speaks_h2 => {
            Arc::new([b"h2".to_vec(), b"http/1.1".to_vec()])
        }
        _ => hello
            .alpn
            .iter()
            .filter(|p| speaks_h2 || p.as_slice() != b"h2")
            // GREASE means nothing upstream, and h3 is not for TCP.
            .filter(|p| !matches!(p.as_slice(), [a, b] if a == b && a & 0x0f == 0x0a))
            .cloned()
            .collect(),
    }
}

/// What to answer the client: the origin's choice, where the client offered it.
/// `origin` is `None` where there is no origin to ask.
fn client_alpn(
    session: &Session,
    hello: &ClientHello,
    origin: Option<Option<&[u8]>>,
) -> Option<Vec<u8>> {
    let config = &session.live.config;
    let speaks_h2 = config.http2 && cfg!(feature = "http2");
    let mirrored = match (origin, config.upstream_http) {
        (Some(choice), UpstreamHttp::Mirror) => choice,
        // Both are served whatever the origin speaks: the client's preference decides.
        (Some(_), _) | (None, _) => hello
            .alpn
            .iter()
            .map(Vec::as_slice)
            .find(|p| *p == b"http/1.1" || (*p == b"h2" && speaks_h2)),
    };
    mirrored
        .filter(|choice| hello.offers_alpn(choice))
        .map(<[u8]>::to_vec)
}

/// Relays bytes until both sides are done.
async fn opaque(session: &mut Session, mut client: Conn, mut upstream: Conn) -> Stage {
    let idle = session.live.config.timeouts.idle;
    // A tunnel has no point at which it could be ended in good order: at a shutdown it runs until
    // the deadline.
    let end = tunnel::relay(&mut client, &mut upstream, &mut session.timer, idle).await;
    debug!(client = %session.info.client, ?end, "tunnel ended");
    session.count_client_bytes(&mut client);
    crate::metrics::add_to(
        &session.counters().upstream_bytes_in,
        upstream.rd.take_received(),
    );
    crate::metrics::add_to(
        &session.counters().upstream_bytes_out,
        upstream.wr.take_sent(),
    );
    Stage::Closed
}

enum Peek {
    Known(Protocol),
    Closed,
}

/// Reads until the first bytes show what is spoken.
async fn peek(session: &mut Session, client: &mut Conn, limit: Duration) -> Peek {
    session.timer.set(limit);
    loop {
        if !client.rd.data().is_empty() {
            match detect(client.rd.data()) {
                Detected::Known(protocol) => return Peek::Known(protocol),
                Detected::NeedMore if client.rd.data().len() >= MAX_PEEK => {
                    return Peek::Known(Protocol::Unknown);
                }
                Detected::NeedMore => {}
            }
        }
        let Session { timer, control, .. } = &mut *session;
        let waited = poll_fn(|cx| {
            if let Poll::Ready(result) = client.rd.poll_fill(cx) {
                return Poll::Ready(result.is_ok_and(|n| n > 0));
            }
            if client.rd.data().is_empty() && control.poll_drain(cx).is_ready() {
                return Poll::Ready(false);
            }
            timer.poll(cx).map(|()| false)
        })
        .await;
        if !waited {
            return if client.rd.data().is_empty() {
                Peek::Closed
            } else {
                Peek::Known(Protocol::Unknown)
            };
        }
    }
}

/// The same where the server may speak first: then it is no protocol that we know.
async fn peek_both(
    session: &mut Session,
    client: &mut Conn,
    server: &mut Conn,
    limit: Duration,
) -> Peek {
    session.timer.set(limit);
    let timer = &mut session.timer;
    let control = &session.control;
    let first = poll_fn(|cx| {
        if !client.rd.data().is_empty() {
            return Poll::Ready(First::Client);
        }
        if let Poll::Ready(result) = client.rd.poll_fill(cx) {
            return Poll::Ready(if result.is_ok_and(|n| n > 0) {
                First::Client
            } else {
                First::Closed
            });
        }
        if let Poll::Ready(result) = server.rd.poll_fill(cx) {
            return Poll::Ready(if result.is_ok_and(|n| n > 0) {
                First::Server
            } else {
                First::ServerClosed
            });
        }
        if control.poll_drain(cx).is_ready() {
            return Poll::Ready(First::Closed);
        }
        timer.poll(cx).map(|()| First::Closed)
    })
    .await;
    match first {
        // A server that is gone is no reason yet: the next request may get another connection.
        First::Client | First::ServerClosed => peek(session, client, limit).await,
        First::Server => Peek::Known(Protocol::Unknown),
        First::Closed => Peek::Closed,
    }
}

enum First {
    Client,
    Server,
    ServerClosed,
    Closed,
}

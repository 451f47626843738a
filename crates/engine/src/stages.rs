//! The way of one connection: a flat loop in which each stage consumes what it has and names the
//! next one. An upgrade, or a CONNECT, is one more turn of the loop.
//!
//! ```text
//! First ── HTTP/1 ──> Http1 ── CONNECT ──> Connect ──> Inner ── ClientHello ──> Intercept ──> Http1 | Http2 | Opaque
//!    └─── HTTP/2 ──> Http2                 ^ │           ├── HTTP ──> Http1 | Http2
//! Socks ─── transparent ─── reverse ───────┘ └─ tunnel ──┴── anything else ──> Opaque
//! ```

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tollgate_ca::LeafRequest;
use tollgate_flow::{
    ClientHello, ClientTls, ConnectDecision, ErrorClass, FlowError, HttpVersion, Scheme, Side,
    Target, TlsDecision, TlsFailure, TlsFailureKind, UpstreamInfo, Via,
};
use tollgate_wire::detect::{Detected, Protocol, detect};
use tollgate_wire::tls::{HelloStatus, parse_client_hello};
use tracing::{debug, info};

use crate::auth;
use crate::config::{ConnectionStrategy, UpstreamHttp};
use crate::h1::{self, Fixed, Mode};
use crate::io::Conn;
use crate::metrics::count;
use crate::mode::{Mode as ListenMode, ReverseScheme};
use crate::policy::Action;
use crate::pool::{Destination, RouteTls, UpConn};
use crate::reply;
use crate::session::{Dialled, Session, Up, UpstreamError};
use crate::socks;
use crate::tcp;
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
    Socks(Conn),
    Connect {
        client: Conn,
        towards: Towards,
        ask: Ask,
    },
    Inner {
        client: Conn,
        towards: Towards,
        decision: ConnectDecision,
        dialled: Option<Dialled>,
    },
    Intercept {
        client: Conn,
        towards: Towards,
        hello: Arc<ClientHello>,
        dialled: Option<Dialled>,
    },
    Opaque {
        client: Conn,
        upstream: Conn,
        /// What it is recorded as; `None` for what is passed on unseen.
        recorded: Option<Recorded>,
    },
    Closed,
}

/// The one destination of a connection.
#[derive(Clone)]
struct Towards {
    target: Target,
    /// What is spoken there, where that doesn't depend on the client: behind a reverse proxy.
    server: Option<ReverseScheme>,
}

/// How a client asked for a connection, and so how it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// With a CONNECT request.
    Connect,
    /// As SOCKS5.
    Socks,
    /// Not at all: it takes us for the server.
    Silent,
}

/// A stream that is recorded.
struct Recorded {
    target: Target,
    upstream: Option<Arc<UpstreamInfo>>,
}

/// Serves a client's connection to its end. `original` is where the client was going, where the
/// kernel gave us its connection.
pub(crate) async fn serve(session: &mut Session, client: Conn, original: Option<SocketAddr>) {
    let mut stage = begin(session, client, original);
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
            Stage::Socks(client) => Box::pin(socks5(session, client)).await,
            Stage::Connect {
                client,
                towards,
                ask,
            } => Box::pin(connect(session, client, towards, ask)).await,
            Stage::Inner {
                client,
                towards,
                decision,
                dialled,
            } => Box::pin(inner(session, client, towards, decision, dialled)).await,
            Stage::Intercept {
                client,
                towards,
                hello,
                dialled,
            } => Box::pin(intercept(session, client, towards, hello, dialled)).await,
            Stage::Opaque {
                client,
                upstream,
                recorded,
            } => Box::pin(opaque(session, client, upstream, recorded)).await,
            Stage::Closed => return,
        };
    }
}

/// The first stage of a connection, by the mode of its listener.
fn begin(session: &Session, client: Conn, original: Option<SocketAddr>) -> Stage {
    match (&*session.mode, original) {
        (ListenMode::Socks5, _) => Stage::Socks(client),
        (ListenMode::Reverse(reverse), _) => Stage::Connect {
            client,
            towards: Towards {
                target: reverse.target.clone(),
                server: Some(reverse.scheme),
            },
            ask: Ask::Silent,
        },
        (ListenMode::Transparent, Some(original)) => {
            let ip = original.ip().to_canonical();
            Stage::Connect {
                client,
                towards: Towards {
                    target: Target::new(&ip.to_string(), original.port()),
                    server: None,
                },
                ask: Ask::Silent,
            }
        }
        // A Unix socket has no other side that a client could have meant.
        (ListenMode::Transparent, None) => Stage::Closed,
        _ => Stage::First(client),
    }
}

async fn socks5(session: &mut Session, mut client: Conn) -> Stage {
    let target = socks::greet(session, &mut client).await;
    session.count_client_bytes(&mut client);
    match target {
        Some(target) => Stage::Connect {
            client,
            towards: Towards {
                target,
                server: None,
            },
            ask: Ask::Socks,
        },
        None => Stage::Closed,
    }
}

/// The first bytes on a proxy's own port.
async fn first(session: &mut Session, mut client: Conn) -> Stage {
    let limit = session.live.config.timeouts.first_bytes;
    let returns = *session.mode == ListenMode::Return;
    match peek(session, &mut client, limit).await {
        Peek::Known(Protocol::Http1) => Stage::Http1 {
            client,
            mode: if returns { Mode::Return } else { Mode::Proxy },
            upstream: None,
        },
        #[cfg(feature = "http2")]
        Peek::Known(Protocol::Http2) if session.live.config.http2 && !returns => Stage::Http2 {
            client,
            fixed: None,
            upstream: None,
        },
        Peek::Closed => Stage::Closed,
        Peek::Known(protocol) => {
            debug!(client = %session.info.client, ?protocol, "not spoken on this port");
            let hint = match protocol {
                Protocol::Socks5 => "; SOCKS is spoken in mode socks5",
                Protocol::ProxyV1 | Protocol::ProxyV2 => {
                    "; PROXY headers are taken from listed peers only"
                }
                _ => "",
            };
            let error = FlowError::new(
                Side::Client,
                ErrorClass::Protocol,
                format!("this port speaks HTTP; what arrived looks like {protocol:?}{hint}"),
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
        h1::Next::Connect(target) => Stage::Connect {
            client,
            towards: Towards {
                target,
                server: None,
            },
            ask: Ask::Connect,
        },
        h1::Next::Upgraded(upstream) => Stage::Opaque {
            client,
            upstream: upstream.conn,
            recorded: None,
        },
    }
}

/// A client wants to be connected: decides by the destination, makes sure that the origin is there,
/// and answers.
async fn connect(session: &mut Session, mut client: Conn, towards: Towards, ask: Ask) -> Stage {
    let target = &towards.target;
    session.info.set_target(target.clone());
    let worker = Arc::clone(&session.worker);
    let decision = worker
        .shared
        .hooks
        .connect(target, &session.info, &worker.counters);
    let decision = match decision {
        ConnectDecision::Default => match session.live.config.policy.decide(&[target]) {
            Action::Block => ConnectDecision::Block,
            Action::Tunnel => ConnectDecision::Tunnel,
            Action::Intercept => ConnectDecision::Default,
        },
        decision => decision,
    };
    if decision == ConnectDecision::Block {
        count(&worker.counters.blocked_total);
        info!(client = %session.info.client, %target, "blocked");
        let error = h1::blocked(target);
        return refuse(session, client, ask, &error).await;
    }
    let dialled = if dials_first(session, &towards, decision) {
        let to = session.destination(target, &Via::Configured);
        match session.dial(&to, false).await {
            Ok(dialled) => Some(dialled),
            Err(error) => {
                let error = error.into_flow_error();
                session.counters().failure(error.side, error.class);
                tracing::warn!(client = %session.info.client, "{error}");
                return refuse(session, client, ask, &error).await;
            }
        }
    } else {
        None
    };
    let granted = match ask {
        Ask::Connect => {
            let answer = b"HTTP/1.1 200 Connection established\r\n\r\n";
            client.wr.write_all(answer).await
        }
        Ask::Socks => socks::grant(&mut client, dialled.as_ref().map(|d| d.local)).await,
        Ask::Silent => Ok(()),
    };
    if granted.is_err() {
        return Stage::Closed;
    }
    session.count_client_bytes(&mut client);
    Stage::Inner {
        client,
        towards,
        decision,
        dialled,
    }
}

/// Whether the origin is dialled before the client says anything more.
fn dials_first(session: &Session, towards: &Towards, decision: ConnectDecision) -> bool {
    if decision == ConnectDecision::Tunnel {
        return true;
    }
    // Nothing goes out before the scanner has seen it, and nothing over TCP to an origin of UDP.
    let config = &session.live.config;
    if session.scanner().is_some()
        || config.upstream_http == UpstreamHttp::Http3
        || config.connection_strategy != ConnectionStrategy::Eager
    {
        return false;
    }
    if let Some(server) = towards.server {
        return server == ReverseScheme::Tcp;
    }
    // A pooled connection is proof enough that the origin is alive.
    // So is one in use, where their number is bounded and dialling might exceed it.
    let worker = &session.worker;
    let bounded = session.live.config.pool.max_per_route > 0;
    let to = session.destination(&towards.target, &Via::Configured);
    !(worker.knows(&to) || (bounded && worker.slots.of(&towards.target).is_taken()))
}

async fn refuse(session: &mut Session, mut client: Conn, ask: Ask, error: &FlowError) -> Stage {
    match ask {
        Ask::Connect => {
            let reply = reply::for_error(error);
            if h1::send_reply(&mut client, &reply, false, true)
                .await
                .is_ok()
            {
                h1::linger(session, &mut client).await;
            }
        }
        Ask::Socks => socks::deny(session, &mut client, error).await,
        // There is no word for it in a protocol that isn't known yet.
        Ask::Silent => {}
    }
    session.count_client_bytes(&mut client);
    Stage::Closed
}

/// Connected, as far as the client knows: finds out what it speaks.
async fn inner(
    session: &mut Session,
    mut client: Conn,
    towards: Towards,
    decision: ConnectDecision,
    dialled: Option<Dialled>,
) -> Stage {
    if decision == ConnectDecision::Tunnel {
        count(&session.counters().tunnels_total);
        return to_opaque(session, client, &towards, dialled, Seen::Ignored).await;
    }
    if towards.server == Some(ReverseScheme::Tcp) {
        return to_opaque(session, client, &towards, dialled, Seen::Raw).await;
    }
    let limit = session.live.config.timeouts.first_bytes;
    let mut dialled = dialled;
    let peeked = match &mut dialled {
        Some(d) => peek_both(session, &mut client, &mut d.conn, limit).await,
        None => peek(session, &mut client, limit).await,
    };
    let protocol = match peeked {
        Peek::Known(protocol) => protocol,
        Peek::Closed => return Stage::Closed,
    };
    if protocol == Protocol::Tls {
        return hello(session, client, towards, decision, dialled).await;
    }
    let target = &towards.target;
    let policy = &session.live.config.policy;
    let is_http = protocol == Protocol::Http1
        || (protocol == Protocol::Http2 && session.live.config.http2 && cfg!(feature = "http2"));
    if !is_http || policy.is_raw(&[target]) || towards.server.is_some_and(ReverseScheme::is_raw) {
        return to_opaque(session, client, &towards, dialled, Seen::Raw).await;
    }
    // What a client says of its destination decides only where nothing else is known of it.
    if protocol == Protocol::Http1
        && target.ip().is_some()
        && decision != ConnectDecision::Intercept
        && let Some(host) = host_header(client.rd.data(), target.port)
        && policy.decide_connection(target, Some(&host)) == Action::Tunnel
    {
        count(&session.counters().tunnels_total);
        return to_opaque(session, client, &towards, dialled, Seen::Ignored).await;
    }
    let has_tls = towards.server.is_some_and(ReverseScheme::has_tls);
    let tls = has_tls.then(|| RouteTls {
        sni: Arc::clone(&target.host),
        alpn: alpn_towards(session, protocol == Protocol::Http2),
    });
    let fixed = fixed(session, &towards, tls);
    let upstream = dialled.map(|d| plain_upstream(session, target, d));
    match protocol {
        #[cfg(feature = "http2")]
        Protocol::Http2 => {
            Stage::Http2 {
                client,
                fixed: Some(fixed),
                // It waits in the pool for the first request that may pass.
                upstream: upstream.map(Up::Conn),
            }
        }
        _ => Stage::Http1 {
            client,
            mode: Mode::Fixed(fixed),
            upstream: upstream.map(Up::Conn),
        },
    }
}

/// The versions of HTTP to offer a server where the client can't be asked: it speaks no TLS.
/// How TLS is spoken to the origin of a request, which a hook may have sent elsewhere or another way.
///
/// # Errors
/// The connection's one origin could not be reached.
pub(crate) fn origin_tls(
    session: &Session,
    request: &tollgate_flow::Request,
    fixed: Option<&Fixed>,
) -> Result<Option<RouteTls>, FlowError> {
    if let Some(fixed) = fixed
        && fixed.target == request.target
        && fixed.scheme == request.scheme
    {
        return match &fixed.broken {
            Some(error) => Err(error.clone()),
            None => Ok(fixed.tls.clone()),
        };
    }
    if request.scheme == Scheme::Http {
        return Ok(None);
    }
    let agreed = fixed.and_then(|fixed| fixed.tls.as_ref());
    Ok(Some(RouteTls {
        sni: Arc::clone(&request.target.host),
        alpn: match agreed {
            Some(tls) => Arc::clone(&tls.alpn),
            None => alpn_towards(session, request.version == HttpVersion::Http2),
        },
    }))
}

fn alpn_towards(session: &Session, client_has_h2: bool) -> Arc<[Vec<u8>]> {
    let config = &session.live.config;
    #[cfg(feature = "http3")]
    if config.upstream_http == UpstreamHttp::Http3 {
        return Arc::new([crate::h3::ALPN.to_vec()]);
    }
    let h2 = config.http2
        && cfg!(feature = "http2")
        && match config.upstream_http {
            UpstreamHttp::Mirror => client_has_h2,
            UpstreamHttp::Http1 => false,
            _ => true,
        };
    if h2 {
        Arc::new([b"h2".to_vec(), b"http/1.1".to_vec()])
    } else {
        Arc::new([b"http/1.1".to_vec()])
    }
}

/// Where the requests of a connection of QUIC go. `None`: its listener is for nothing like it.
#[cfg(feature = "http3")]
pub(crate) fn fixed_http3(session: &Session) -> Option<Fixed> {
    let ListenMode::Reverse(reverse) = &*session.mode else {
        return None;
    };
    let alpn: Arc<[Vec<u8>]> = match session.live.config.upstream_http {
        UpstreamHttp::Mirror => Arc::new([crate::h3::ALPN.to_vec()]),
        _ => alpn_towards(session, true),
    };
    let towards = Towards {
        target: reverse.target.clone(),
        server: Some(reverse.scheme),
    };
    let tls = RouteTls {
        sni: Arc::clone(&reverse.target.host),
        alpn,
    };
    Some(fixed(session, &towards, Some(tls)))
}

fn fixed(session: &Session, towards: &Towards, tls: Option<RouteTls>) -> Fixed {
    let target = &towards.target;
    let scheme = match tls {
        Some(_) => Scheme::Https,
        None => Scheme::Http,
    };
    // A server behind us is called by its own name.
    let renamed = towards.server.is_some() && !session.live.config.keep_host_header;
    let host_header = renamed.then(|| {
        if target.port == scheme.default_port() && !target.host.contains(':') {
            Arc::clone(&target.host)
        } else {
            Arc::from(target.to_string())
        }
    });
    Fixed {
        target: target.clone(),
        scheme,
        tls,
        host_header,
        authorization: match &*session.mode {
            ListenMode::Reverse(reverse) => {
                let credentials = reverse.credentials.as_ref();
                credentials.map(|c| Arc::from(auth::basic_value(c)))
            }
            _ => None,
        },
        broken: None,
    }
}

/// What the first request of HTTP/1 names as its host, as far as it is here.
fn host_header(data: &[u8], port: u16) -> Option<Target> {
    let mut lines = data.split(|b| *b == b'\n').skip(1);
    let value = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(5)?;
        name.eq_ignore_ascii_case(b"host:").then_some(value)
    })?;
    Target::parse(std::str::from_utf8(value.trim_ascii()).ok()?, Some(port))
}

fn plain_upstream(session: &Session, target: &Target, d: Dialled) -> UpConn {
    let to = session.destination(target, &Via::Configured);
    UpConn {
        info: Arc::new(plain_info(&to, &d)),
        conn: d.conn,
        route: Arc::new(session.route(to, None, false)),
        reused: false,
        pinned: false,
        slot: None,
    }
}

fn plain_info(to: &Destination, d: &Dialled) -> UpstreamInfo {
    UpstreamInfo {
        address: d.address,
        via: to.via.clone(),
        local: d.local,
        tls_version: None,
        alpn: None,
        certificates: Arc::new([]),
        unverified: false,
        connected: d.connected,
        connect_time: d.connect_time,
        handshake_time: Duration::ZERO,
    }
}

/// Why bytes are relayed without being read as HTTP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Nobody is to look inside.
    Ignored,
    /// It is another protocol.
    Raw,
}

async fn to_opaque(
    session: &mut Session,
    client: Conn,
    towards: &Towards,
    dialled: Option<Dialled>,
    seen: Seen,
) -> Stage {
    let target = &towards.target;
    if seen == Seen::Raw
        && let Some(why) = not_raw(session)
    {
        session.counters().failure(Side::Proxy, ErrorClass::Blocked);
        tracing::warn!(client = %session.info.client, %target, "closed: {why}");
        return Stage::Closed;
    }
    let to = session.destination(target, &Via::Configured);
    let has_tls = seen == Seen::Raw && towards.server.is_some_and(ReverseScheme::has_tls);
    let found = if has_tls {
        let tls = RouteTls {
            sni: Arc::clone(&target.host),
            alpn: Arc::new([]),
        };
        let found = session.fresh(session.route(to, Some(tls), false)).await;
        found.map(|up| match up {
            Up::Conn(up) => Some((up.conn, up.info)),
            // Nothing was offered that could have become this.
            #[cfg(feature = "http2")]
            Up::Shared(_) => None,
        })
    } else {
        let dialled = match dialled {
            Some(dialled) => Ok(dialled),
            None => session.dial(&to, false).await,
        };
        dialled.map(|d| {
            let info = Arc::new(plain_info(&to, &d));
            Some((d.conn, info))
        })
    };
    let (upstream, info) = match found {
        Ok(Some(found)) => found,
        Ok(None) => return Stage::Closed,
        Err(error) => {
            if let UpstreamError::Tls(failure) = &error {
                session.tls_failed(failure);
            }
            let error = error.into_flow_error();
            session.counters().failure(error.side, error.class);
            tracing::warn!(client = %session.info.client, "{error}");
            return Stage::Closed;
        }
    };
    let recorded = seen == Seen::Raw || session.live.config.policy.show_ignored;
    Stage::Opaque {
        client,
        upstream,
        recorded: recorded.then(|| Recorded {
            target: target.clone(),
            upstream: Some(info),
        }),
    }
}

/// Why a protocol that is not HTTP may not pass, if it mayn't.
fn not_raw(session: &Session) -> Option<&'static str> {
    if session.scanner().is_some() {
        return Some("only HTTP can be given to the scanner");
    }
    let unknown = auth::asked(session).is_some() && session.info.user().is_none();
    unknown.then_some("only HTTP can ask the client who it is")
}

/// Reads the whole ClientHello, without consuming it, and decides.
async fn hello(
    session: &mut Session,
    mut client: Conn,
    towards: Towards,
    decision: ConnectDecision,
    dialled: Option<Dialled>,
) -> Stage {
    let target = towards.target.clone();
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
            let policy = &session.live.config.policy;
            policy.decide_connection(&target, sni.as_ref())
        }
    };
    match action {
        Action::Intercept => Stage::Intercept {
            client,
            towards,
            hello,
            dialled,
        },
        Action::Tunnel => {
            count(&session.counters().tunnels_total);
            to_opaque(session, client, &towards, dialled, Seen::Ignored).await
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
    towards: Towards,
    hello: Arc<ClientHello>,
    dialled: Option<Dialled>,
) -> Stage {
    let target = towards.target.clone();
    let offer = offer(session, &hello);
    let tls = RouteTls {
        sni: match &hello.server_name {
            // A server behind us is called by its own name.
            Some(name) if towards.server.is_none() => Arc::from(name.as_str()),
            _ => Arc::clone(&target.host),
        },
        alpn: offer,
    };
    let has_tls = towards.server.is_none_or(ReverseScheme::has_tls);
    // Nothing goes out before the scanner has seen it.
    let asks_origin = has_tls
        && session.scanner().is_none()
        && session.live.config.connection_strategy == ConnectionStrategy::Eager;
    let upstream = if asks_origin {
        let to = session.destination(&target, &Via::Configured);
        let route = session.route(to, Some(tls.clone()), false);
        session.acquire(route, dialled).await.map(Some)
    } else {
        Ok(None)
    };
    let (upstream, broken) = match upstream {
        Ok(up) => (up, None),
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
        broken,
        ..fixed(session, &towards, has_tls.then_some(tls))
    };
    let sni = hello.server_name.as_deref();
    let sni = sni.map(|name| Target::new(name, target.port));
    let names: Vec<&Target> = std::iter::once(&target).chain(&sni).collect();
    if towards.server.is_some_and(ReverseScheme::is_raw)
        || session.live.config.policy.is_raw(&names)
    {
        return raw_inside(session, client, target, upstream);
    }
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
        (Peek::Known(_), upstream @ Some(Up::Conn(_))) => {
            raw_inside(session, client, target, upstream)
        }
        (_, upstream) => {
            give_back(session, upstream);
            Stage::Closed
        }
    }
}

/// Inside TLS that was opened, there is another protocol than HTTP.
fn raw_inside(session: &Session, client: Conn, target: Target, upstream: Option<Up>) -> Stage {
    match (upstream, not_raw(session)) {
        (Some(Up::Conn(up)), None) => Stage::Opaque {
            client,
            upstream: up.conn,
            recorded: Some(Recorded {
                target,
                upstream: Some(up.info),
            }),
        },
        (upstream, why) => {
            session.counters().failure(Side::Proxy, ErrorClass::Blocked);
            let why = why.unwrap_or("there is no connection to the origin that it could use");
            tracing::warn!(client = %session.info.client, %target, "closed: {why}");
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
        #[cfg(feature = "http3")]
        UpstreamHttp::Http3 if http => Arc::new([crate::h3::ALPN.to_vec()]),
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
async fn opaque(
    session: &mut Session,
    mut client: Conn,
    mut upstream: Conn,
    recorded: Option<Recorded>,
) -> Stage {
    let idle = session.live.config.timeouts.idle;
    // A tunnel has no point at which it could be ended in good order: at a shutdown it runs until
    // the deadline.
    if let Some(recorded) = recorded {
        let Recorded {
            target,
            upstream: info,
        } = recorded;
        tcp::relay(session, &mut client, &mut upstream, target, info).await;
    } else {
        let end = tunnel::relay(&mut client, &mut upstream, &mut session.timer, idle).await;
        debug!(client = %session.info.client, ?end, "tunnel ended");
    }
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

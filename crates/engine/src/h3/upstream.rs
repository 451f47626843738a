//! HTTP/3 towards origins.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, Error as TlsError};
use tollgate_flow::{
    ErrorClass, FlowError, Side, Target, TlsFailure, TlsFailureKind, TlsVersion, UpstreamInfo,
};
use tollgate_wire::http3::code;
use tracing::{debug, warn};

use crate::config::Limits;
use crate::dial::{Own, race, resolve};
use crate::metrics::{Counters, add_to, count};
use crate::mode::Mode;
use crate::pool::{Route, RouteTls, Slot};
use crate::session::{Session, UpstreamError};
use crate::streams::body::Source;
use crate::streams::connections::{Carrier, Shared};
use crate::streams::exchange::{Arrived, Outgoing, StreamFailed, UpHead};
use crate::tls::failure;
use crate::tls::handshake::HandshakeError;

use super::connection::{Control, Peer, Role, mind};
use super::stream::{Failure, Receiver, Sender};
use super::{Counted, head, transport, varint};

/// Local addresses that a worker's endpoints may be bound to: one for each family, and those of
/// configurations before.
const ENDPOINTS: usize = 8;

/// The UDP sockets that a worker's connections to origins share.
#[derive(Default)]
pub(crate) struct Endpoints(Mutex<Vec<(IpAddr, Endpoint)>>);

impl Endpoints {
    fn get(&self, local: IpAddr) -> io::Result<Endpoint> {
        let mut endpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, endpoint)) = endpoints.iter().find(|(ip, _)| *ip == local) {
            return Ok(endpoint.clone());
        }
        if endpoints.len() >= ENDPOINTS {
            // Connections keep theirs.
            endpoints.clear();
        }
        let socket = std::net::UdpSocket::bind(SocketAddr::new(local, 0))?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
        endpoints.push((local, endpoint.clone()));
        Ok(endpoint)
    }

    /// Lets the last packets of connections that have just been closed leave, at the end of the
    /// worker: they do so from tasks of their own.
    pub(crate) async fn flush(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        tokio::task::yield_now().await;
    }
}

/// An upstream connection that carries requests. With the last of its like it closes.
#[derive(Clone)]
pub(crate) struct Client(Arc<Handle>);

struct Handle {
    connection: quinn::Connection,
    peer: Arc<Peer>,
    limits: Limits,
    counted: Arc<Counted>,
}

impl Client {
    /// Whether it takes no further requests.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.peer.is_leaving()
    }

    /// Adds what passed since the last call to the counters.
    pub(crate) fn count_bytes(&self, counters: &Counters) {
        count_bytes(&self.0.connection, &self.0.counted, counters);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.connection.close(varint(code::NO_ERROR), b"");
    }
}

/// Makes a connection by a route; it stands among the worker's shared ones.
pub(crate) async fn connect(
    session: &Session,
    route: Arc<Route>,
    slot: Option<Slot>,
) -> Result<Shared, UpstreamError> {
    let Some(tls) = &route.tls else {
        let why = "it needs TLS".to_owned();
        return Err(failed(&route.to.target, ErrorClass::Protocol, why));
    };
    let config = &session.live.config;
    let target = &route.to.target;
    // What must go another way does not go this one.
    let barred = match &route.to.via {
        Some(proxy) => Some(format!("the proxy {proxy} on the way carries no UDP")),
        None => config
            .proxy_protocol
            .send
            .map(|_| "the PROXY protocol does not exist for it".to_owned()),
    };
    if let Some(why) = barred {
        return Err(failed(target, ErrorClass::Connect, why));
    }
    let retry = &config.retry;
    let established = match within_limit(session, target, tls).await {
        Err(UpstreamError::Flow(error))
            if retry.on_connect_failure
                && matches!(error.class, ErrorClass::Connect | ErrorClass::Timeout) =>
        {
            count(&session.counters().retries);
            tokio::time::sleep(retry.delay).await;
            within_limit(session, target, tls).await
        }
        established => established,
    };
    let Established {
        connection,
        info,
        control,
    } = established?;
    let peer = Arc::new(Peer::default());
    let counted = Arc::new(Counted::default());
    let client = Client(Arc::new(Handle {
        connection: connection.clone(),
        peer: Arc::clone(&peer),
        counted: Arc::clone(&counted),
        limits: session.live.config.limits.clone(),
    }));
    let shared = Shared::new(Carrier::H3(client), Arc::new(info), route).list(session);
    let state = Arc::clone(&shared.state);
    let worker = Arc::clone(&session.worker);
    tokio::spawn(async move {
        // It has nothing more to say, and must not be closed.
        let _control = control;
        let _slot = slot;
        mind(connection.clone(), Role::Client, peer).await;
        let reason = connection.closed().await;
        debug!(error = %reason, "an upstream HTTP/3 connection ended");
        count_bytes(&connection, &counted, &worker.counters);
        state.close();
    });
    Ok(shared)
}

struct Established {
    connection: quinn::Connection,
    info: UpstreamInfo,
    control: Control,
}

async fn within_limit(
    session: &Session,
    target: &Target,
    tls: &RouteTls,
) -> Result<Established, UpstreamError> {
    let limit = session.live.config.timeouts.connect;
    let work = establish(session, target, tls);
    if limit.is_zero() {
        return work.await;
    }
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let message = format!("nothing came back over UDP within {limit:?}");
        Err(failed(target, ErrorClass::Timeout, message))
    })
}

async fn establish(
    session: &Session,
    target: &Target,
    tls: &RouteTls,
) -> Result<Established, UpstreamError> {
    let shared = &session.worker.shared;
    let config = &session.live.config;
    let counters = session.counters();
    let local = session.reached;
    let own = match &*session.mode {
        Mode::Reverse(reverse) if reverse.target == *target => Own::Configured,
        _ => Own::Asked,
    };
    let addresses = resolve(&shared.dns, target, config, counters, own, |address| {
        shared.is_ourselves(address, local, true)
    })
    .await?;
    let broken = |kind, detail: String| {
        UpstreamError::from(TlsFailure {
            side: Side::Upstream,
            kind,
            host: Arc::clone(&target.host),
            detail,
        })
    };
    let with = session
        .live
        .upstream
        .quic_handshake(target, &tls.alpn)
        .map_err(|e| broken(TlsFailureKind::ClientCertificateRequired, e.to_string()))?;
    let crypto = QuicClientConfig::try_from(with.config)
        .map_err(|e| broken(TlsFailureKind::NoSharedParameters, e.to_string()))?;
    let mut client = ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport(0)));

    count(&counters.upstream_connects);
    let (connected, started) = (SystemTime::now(), Instant::now());
    let dial = |address: SocketAddr| {
        let bind = config
            .connect_addr
            .filter(|ip| ip.is_ipv4() == address.is_ipv4())
            .unwrap_or(match address {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            });
        let connecting = session.worker.quic.get(bind).and_then(|endpoint| {
            endpoint
                .connect_with(client.clone(), address, &tls.sni)
                .map_err(io::Error::other)
        });
        async move {
            match connecting {
                Ok(connecting) => connecting.await.map_err(DialError::Quic),
                Err(error) => Err(DialError::Io(error)),
            }
        }
    };
    let connection = race(&addresses, dial).await.map_err(|error| match error {
        DialError::Io(error) => failed(target, ErrorClass::Connect, error.to_string()),
        DialError::Quic(error) => refused(target, error, with.noted.refusal()),
    })?;
    count(&counters.upstream_handshakes);
    let unverified = with.noted.problem();
    if let Some(problem) = unverified {
        count(&counters.unverified_upstreams);
        warn!(host = %target, "accepted although {problem}");
    }
    let control = Control::open(&connection, config.limits.head_bytes)
        .await
        .map_err(|error| refused(target, error, None))?;
    let certificates: Arc<[Vec<u8>]> = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map(|chain| chain.iter().map(|c| c.as_ref().to_vec()).collect())
        .unwrap_or_default();
    let info = UpstreamInfo {
        address: connection.remote_address(),
        via: None,
        local: SocketAddr::new(
            connection
                .local_ip()
                .unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            0,
        ),
        tls_version: Some(TlsVersion::Tls13),
        alpn: Some(super::ALPN.to_vec()),
        certificates,
        unverified: unverified.is_some(),
        connected,
        connect_time: Duration::ZERO,
        handshake_time: started.elapsed(),
    };
    Ok(Established {
        connection,
        info,
        control,
    })
}

enum DialError {
    Io(io::Error),
    Quic(ConnectionError),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn failed(target: &Target, class: ErrorClass, detail: String) -> UpstreamError {
    FlowError::new(
        Side::Upstream,
        class,
        format!("can't connect to {target} over HTTP/3: {detail}"),
    )
    .into()
}

/// Why a handshake failed. `noted` is what our own verification said.
fn refused(target: &Target, error: ConnectionError, noted: Option<TlsError>) -> UpstreamError {
    if let Some(noted) = noted {
        return failure::upstream(&HandshakeError::Tls(noted), &target.host).into();
    }
    let class = match &error {
        ConnectionError::TransportError(_) | ConnectionError::ConnectionClosed(_) => {
            match alert_of(&error) {
                Some(alert) => {
                    let error = HandshakeError::Tls(TlsError::AlertReceived(alert));
                    return failure::upstream(&error, &target.host).into();
                }
                None => ErrorClass::Protocol,
            }
        }
        ConnectionError::TimedOut => ErrorClass::Timeout,
        ConnectionError::VersionMismatch => ErrorClass::Protocol,
        _ => ErrorClass::Reset,
    };
    failed(target, class, error.to_string())
}

/// Opens a stream for a request and sends its head.
pub(crate) async fn open(
    client: &Client,
    parts: &http::request::Parts,
    empty: bool,
    limit: Duration,
) -> Result<(Outgoing, UpHead), StreamFailed> {
    let handle = &client.0;
    if handle.peer.is_leaving() {
        return Err(StreamFailed {
            retry: true,
            closes: true,
            ..StreamFailed::new(
                ErrorClass::Reset,
                "the origin takes no further requests on this connection".to_owned(),
            )
        });
    }
    let work = async {
        let (send, recv) = handle.connection.open_bi().await.map_err(Failure::Lost)?;
        let mut sender = Sender::new(send, &handle.peer);
        let receiver = Receiver::new(
            recv,
            &handle.connection,
            &handle.limits,
            code::REQUEST_CANCELLED,
        );
        sender.request(parts).await?;
        Ok((sender, receiver))
    };
    let opened = if limit.is_zero() {
        work.await
    } else {
        match tokio::time::timeout(limit, work).await {
            Ok(opened) => opened,
            Err(_) => {
                return Err(StreamFailed::new(
                    ErrorClass::Timeout,
                    "the origin allows no further streams".to_owned(),
                ));
            }
        }
    };
    let (mut sender, receiver) = opened.map_err(|e| stream_failed(&e, "sending the request"))?;
    if empty {
        // Fails where the origin doesn't want it: its response says why.
        let _ = sender.finish(None).await;
    }
    let is_head = parts.method == http::Method::HEAD;
    let waiting = Box::pin(wait(receiver, is_head));
    let response = ResponseHead { waiting, is_head };
    Ok((Outgoing::H3(sender), UpHead::H3(response)))
}

/// Waits for the heads of a response.
pub(crate) struct ResponseHead {
    waiting: Pin<Box<dyn Future<Output = Result<Head, Failure>> + Send>>,
    is_head: bool,
}

enum Head {
    Interim(http::response::Parts, Receiver),
    Final(http::response::Parts, Source<'static>),
}

impl ResponseHead {
    pub(crate) fn poll_arrived(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Arrived, StreamFailed>> {
        let head = ready!(self.waiting.as_mut().poll(cx));
        Poll::Ready(match head {
            Ok(Head::Interim(parts, receiver)) => {
                self.waiting = Box::pin(wait(receiver, self.is_head));
                Ok(Arrived::Interim(http::Response::from_parts(parts, ())))
            }
            Ok(Head::Final(parts, source)) => Ok(Arrived::Final(parts, source)),
            Err(failure) => Err(stream_failed(&failure, "waiting for the response")),
        })
    }
}

async fn wait(mut receiver: Receiver, is_head: bool) -> Result<Head, Failure> {
    let fields = receiver.head().await?;
    let parts = head::response(fields).map_err(|what| receiver.malformed(what))?;
    if parts.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(receiver.malformed("101 does not exist in HTTP/3"));
    }
    if parts.status.is_informational() {
        return Ok(Head::Interim(parts, receiver));
    }
    if is_head || has_no_body(parts.status) {
        // Whatever length it says that there would be.
        receiver.expect_nothing();
    } else {
        receiver.expect_length(&parts.headers)?;
    }
    let source = match receiver.has_ended().await? {
        true => Source::Empty,
        false => Source::H3(receiver),
    };
    Ok(Head::Final(parts, source))
}

/// RFC 9110 section 6.4.1: what is sent there as a body is none.
fn has_no_body(status: http::StatusCode) -> bool {
    matches!(
        status,
        http::StatusCode::NO_CONTENT | http::StatusCode::NOT_MODIFIED
    )
}

fn stream_failed(failure: &Failure, doing: &str) -> StreamFailed {
    let rejected = matches!(failure, Failure::Reset(code::REQUEST_REJECTED));
    let lost = matches!(failure, Failure::Lost(_));
    // Silence may mean that it is still being worked on.
    let silent = matches!(failure, Failure::Lost(ConnectionError::TimedOut));
    StreamFailed {
        retry: rejected || (lost && !silent),
        unprocessed: rejected,
        closes: lost,
        reset: match failure {
            Failure::Reset(_) => Some(failure.reason()),
            _ => None,
        },
        ..StreamFailed::new(
            failure.class(),
            format!("the HTTP/3 connection to the origin failed while {doing}: {failure}"),
        )
    }
}

fn count_bytes(connection: &quinn::Connection, counted: &Counted, counters: &Counters) {
    let (read, sent) = counted.take(connection);
    add_to(&counters.upstream_bytes_in, read);
    add_to(&counters.upstream_bytes_out, sent);
}

/// The TLS alert that a connection ended with.
pub(super) fn alert_of(error: &ConnectionError) -> Option<AlertDescription> {
    let code = match error {
        ConnectionError::TransportError(e) => u64::from(e.code),
        ConnectionError::ConnectionClosed(e) => u64::from(e.error_code),
        _ => return None,
    };
    // RFC 9001 section 4.8: 0x100 and the alert.
    let alert = code.checked_sub(0x100)?;
    u8::try_from(alert).ok().map(AlertDescription::from)
}

//! HTTP/3 towards clients: connections from a UDP socket, and one connection's life.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::{ConnectionError, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use tokio::task::JoinSet;
use tollgate_ca::LeafRequest;
use tollgate_flow::{
    ClientHello, ClientTls, ErrorClass, HttpVersion, Side, Target, TlsDecision, TlsFailure,
    TlsFailureKind, TlsVersion,
};
use tollgate_wire::http3::code;
use tracing::{debug, info};

use crate::h1::Fixed;
use crate::metrics::{add_to, count};
use crate::policy::Action;
use crate::proxy::{Live, Worker};
use crate::session::Session;
use crate::streams::body::Source;
use crate::streams::exchange::Down;
use crate::streams::{self, Streams};
use crate::tls::client_side::ClientSide;
use crate::tls::failure;
use crate::tls::handshake::HandshakeError;

use super::connection::{Control, Peer, Role, close, mind};
use super::stream::{Failure, Receiver, Sender};
use super::upstream::alert_of;
use super::{Counted, head, transport};

/// Connections whose client has not shown that its address is its own, before that is asked for with
/// a Retry (RFC 9000 section 8.1.2).
const UNPROVEN: usize = 64;
/// Connections that wait to be accepted. More are refused by QUIC.
const WAITING: usize = 1024;
/// How long a connection that ends waits for its client to take what was sent.
const FLUSH: Duration = Duration::from_secs(10);

/// How long a client may take to take a GOAWAY.
const GOAWAY: Duration = Duration::from_secs(1);

/// Takes connections from a UDP socket.
pub(crate) struct Acceptor {
    endpoint: Endpoint,
    base: ServerConfig,
    next: Next,
    unproven: Arc<AtomicUsize>,
    local: SocketAddr,
}

type Next = Pin<Box<dyn Future<Output = Option<quinn::Incoming>> + Send>>;

/// A connection that begins.
pub(crate) struct Incoming {
    incoming: quinn::Incoming,
    base: ServerConfig,
    unproven: Unproven,
}

/// Counts a connection for as long as its handshake goes on.
struct Unproven(Arc<AtomicUsize>);

impl Drop for Unproven {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Acceptor {
    /// Must be called on the runtime that serves the connections. A connection's packets all have to
    /// come to the socket that it began on.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        // Never used for a handshake: each connection brings its own.
        let crypto = ClientSide::new(crate::config::TlsVersions::default())
            .ok()
            .and_then(|side| side.quic(Arc::new(NoLeaf), super::ALPN))
            .ok_or_else(|| io::Error::other("TLS for QUIC can't be set up"))?;
        let mut base = ServerConfig::with_crypto(Arc::new(crypto));
        base.max_incoming(WAITING);
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            Some(base.clone()),
            socket,
            Arc::new(TokioRuntime),
        )?;
        Ok(Self {
            next: next(&endpoint),
            endpoint,
            base,
            unproven: Arc::default(),
            local,
        })
    }

    /// The next connection, its client's address, and ours.
    pub(crate) fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Incoming, SocketAddr, SocketAddr)>> {
        loop {
            let incoming = ready!(self.next.as_mut().poll(cx));
            let Some(incoming) = incoming else {
                // The endpoint is gone, and no further connection comes.
                self.next = Box::pin(std::future::pending());
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            self.next = next(&self.endpoint);
            if self.unproven.load(Ordering::Relaxed) >= UNPROVEN
                && !incoming.remote_address_validated()
                && incoming.may_retry()
            {
                let _ = incoming.retry();
                continue;
            }
            self.unproven.fetch_add(1, Ordering::Relaxed);
            let client = incoming.remote_address();
            let ip = incoming.local_ip().unwrap_or(self.local.ip());
            let local = SocketAddr::new(ip, self.local.port());
            let incoming = Incoming {
                incoming,
                base: self.base.clone(),
                unproven: Unproven(Arc::clone(&self.unproven)),
            };
            return Poll::Ready(Ok((incoming, client, local)));
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // Connections go on; new ones are refused.
        self.endpoint.set_server_config(None);
    }
}

/// A future of its own: one that is asked for anew at each poll would lose its place.
fn next(endpoint: &Endpoint) -> Next {
    let endpoint = endpoint.clone();
    Box::pin(async move { endpoint.accept().await })
}

/// Serves a client's connection to its end; all of its requests go to one destination.
///
/// It can't be passed on unopened: a destination that the policy says to tunnel is refused.
pub(crate) async fn serve(session: &mut Session, incoming: Incoming, fixed: Fixed) {
    session.info.set_target(fixed.target.clone());
    let Some(connection) = handshake(session, incoming, &fixed.target).await else {
        return;
    };
    let config = Arc::clone(&session.live.config);
    let counted = Counted::default();
    // A client may not let us, and say nothing.
    let limit = config.timeouts.handshake;
    let open = Control::open(&connection, config.limits.head_bytes);
    match session.timer.within(limit, open).await {
        Ok(Ok(control)) => requests(session, &connection, control, fixed, &counted).await,
        Ok(Err(error)) => debug!(client = %session.info.client, %error, "HTTP/3 was not begun"),
        Err(_) => {
            session
                .counters()
                .failure(Side::Client, ErrorClass::Timeout);
            close(&connection, code::MISSING_SETTINGS, "no stream is allowed");
        }
    }
    count_bytes(session, &connection, &counted);
}

fn count_bytes(session: &Session, connection: &quinn::Connection, counted: &Counted) {
    let (read, sent) = counted.take(connection);
    let counters = session.counters();
    add_to(&counters.client_bytes_in, read);
    add_to(&counters.client_bytes_out, sent);
    session.info.count_bytes(read, sent);
}

async fn requests(
    session: &mut Session,
    connection: &quinn::Connection,
    mut ours: Control,
    fixed: Fixed,
    counted: &Counted,
) {
    let config = Arc::clone(&session.live.config);
    let streams = Arc::new(Streams {
        session: session.another(),
        fixed: Some(fixed),
    });
    let peer = Arc::new(Peer::default());
    let mut minding = std::pin::pin!(mind(connection.clone(), Role::Server, Arc::clone(&peer)));
    let mut is_minded = true;
    // Dropped with this future: then every request's task is gone too.
    let mut tasks = JoinSet::new();
    // A stream that was reset makes room for another at once, its task only when it has noticed.
    let most = usize::try_from(config.limits.h2_streams).unwrap_or(usize::MAX);
    let mut draining = false;
    let mut next_id = 0;
    let keep_alive = config.timeouts.keep_alive;
    session.timer.set(keep_alive);
    let mut accept = Box::pin(connection.accept_bi());
    loop {
        let Session { timer, control, .. } = &mut *session;
        let event = poll_fn(|cx| {
            if let Poll::Ready(Some(_)) = tasks.poll_join_next(cx) {
                return Poll::Ready(Event::Done);
            }
            if draining && tasks.is_empty() {
                return Poll::Ready(Event::Drained);
            }
            if is_minded && minding.as_mut().poll(cx).is_ready() {
                is_minded = false;
            }
            if tasks.len() < most
                && let Poll::Ready(accepted) = accept.as_mut().poll(cx)
            {
                return Poll::Ready(Event::Stream(accepted));
            }
            if !draining && control.poll_drain(cx).is_ready() {
                return Poll::Ready(Event::Drain);
            }
            timer.poll(cx).map(|()| Event::Tick)
        })
        .await;
        match event {
            Event::Stream(Ok((send, recv))) => {
                accept = Box::pin(connection.accept_bi());
                let id = u64::from(send.id());
                let mut sender = Sender::new(send, &peer);
                let mut receiver = Receiver::new(recv, connection, &config.limits, code::NO_ERROR);
                if draining && id >= next_id {
                    sender.reset_with(code::REQUEST_REJECTED);
                    receiver.refuse(code::REQUEST_REJECTED);
                    continue;
                }
                next_id = next_id.max(id + 4);
                // Boxed here: a task is moved several times on its way to the runtime.
                tasks.spawn(Box::pin(stream(Arc::clone(&streams), sender, receiver)));
            }
            Event::Stream(Err(error)) => {
                debug!(client = %session.info.client, %error, "an HTTP/3 connection ended");
                if let ConnectionError::TransportError(_) | ConnectionError::LocallyClosed = error {
                    session
                        .counters()
                        .failure(Side::Client, ErrorClass::Protocol);
                }
                break;
            }
            Event::Done => {
                // The time between requests counts from the end of the last one.
                session.timer.set(keep_alive);
                count_bytes(session, connection, counted);
            }
            Event::Tick if !tasks.is_empty() => session.timer.set(keep_alive),
            Event::Drain | Event::Tick => {
                draining = true;
                // A client that takes nothing is not waited for: its connection ends with the drain.
                let _ = tokio::time::timeout(GOAWAY, ours.goaway(next_id)).await;
            }
            Event::Drained => {
                close(connection, code::NO_ERROR, "");
                // The packet that says so leaves from a task of its own.
                tokio::task::yield_now().await;
                break;
            }
        }
    }
    // The connection is gone: the requests notice and end by themselves, with their own reasons.
    let _ = session
        .timer
        .within(Duration::from_secs(1), async {
            while tasks.join_next().await.is_some() {}
        })
        .await;
}

enum Event {
    Stream(Result<(quinn::SendStream, quinn::RecvStream), ConnectionError>),
    /// A request has ended.
    Done,
    Drain,
    Drained,
    Tick,
}

/// Serves one request.
async fn stream(streams: Arc<Streams>, mut sender: Sender, mut receiver: Receiver) {
    let session = &streams.session;
    let config = &session.live.config;
    let read = async {
        let fields = receiver.head().await?;
        let parts = head::request(fields).map_err(|what| receiver.malformed(what))?;
        receiver.expect_length(&parts.headers)?;
        let is_empty = receiver.has_ended().await?;
        Ok((parts, is_empty))
    };
    let limit = config.timeouts.request_head;
    let read = crate::timer::Timer::default().within(limit, read).await;
    let failure = match read {
        Ok(Ok((parts, is_empty))) => {
            let source = match is_empty {
                true => Source::Empty,
                false => Source::H3(receiver),
            };
            let head_only = parts.method == http::Method::HEAD;
            let down = Down::H3 {
                sender: &mut sender,
                head_only,
            };
            streams::serve(&streams, HttpVersion::Http3, parts, source, down).await;
            sender.delivered(FLUSH).await;
            return;
        }
        Ok(Err(failure)) => failure,
        Err(_) => {
            session
                .counters()
                .failure(Side::Client, ErrorClass::Timeout);
            reply(&mut sender, http::StatusCode::REQUEST_TIMEOUT).await;
            return;
        }
    };
    debug!(client = %session.info.client, error = %failure, "a request was not begun");
    match failure {
        Failure::TooLarge => {
            session
                .counters()
                .failure(Side::Client, ErrorClass::Protocol);
            let status = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            reply(&mut sender, status).await;
        }
        Failure::Malformed { code, .. } => {
            session
                .counters()
                .failure(Side::Client, ErrorClass::Protocol);
            sender.reset_with(code);
        }
        _ => {}
    }
}

async fn reply(sender: &mut Sender, status: http::StatusCode) {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    parts.status = status;
    sender.reply(&parts, None).await;
    sender.delivered(FLUSH).await;
}

/// Makes the handshake. `None`: it failed or was refused, which has been recorded.
async fn handshake(
    session: &mut Session,
    incoming: Incoming,
    target: &Target,
) -> Option<quinn::Connection> {
    let Incoming {
        incoming,
        mut base,
        unproven: _unproven,
    } = incoming;
    let decided = session.live.config.policy.decide(&[target]);
    if decided != Action::Intercept {
        count(&session.counters().blocked_total);
        info!(client = %session.info.client, %target, "refused: it is not to be opened");
        incoming.refuse();
        return None;
    }
    let leaf = Arc::new(Leaf {
        worker: Arc::clone(&session.worker),
        live: Arc::clone(&session.live),
        connection: Arc::clone(&session.info),
        target: target.clone(),
        refused: Mutex::new(None),
    });
    let fail = |kind, detail: String| TlsFailure {
        side: Side::Client,
        kind,
        host: Arc::clone(&target.host),
        detail,
    };
    let resolver = Arc::clone(&leaf) as Arc<dyn ResolvesServerCert>;
    let Some(crypto) = session.live.client_side.quic(resolver, super::ALPN) else {
        let detail = "QUIC needs TLS 1.3, which is not allowed".to_owned();
        session.tls_failed(&fail(TlsFailureKind::NoSharedParameters, detail));
        incoming.refuse();
        return None;
    };
    base.crypto = Arc::new(crypto);
    base.transport_config(Arc::new(transport(session.live.config.limits.h2_streams)));
    let limit = session.live.config.timeouts.handshake;
    let work = async { incoming.accept_with(Arc::new(base))?.await };
    let accepted = session.timer.within(limit, work).await;
    let error = match accepted {
        Ok(Ok(connection)) => {
            count(&session.counters().client_handshakes);
            if let Some(tls) = session.info.tls() {
                tls.set_agreed(Some(super::ALPN.to_vec()), TlsVersion::Tls13);
            }
            return Some(connection);
        }
        Ok(Err(error)) => error,
        Err(_) => {
            session.tls_failed(&fail(TlsFailureKind::Timeout, format!("{limit:?}")));
            return None;
        }
    };
    let refused = leaf
        .refused
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match refused {
        Some(Refused::Blocked) => {
            count(&session.counters().blocked_total);
            info!(client = %session.info.client, %target, "blocked");
        }
        Some(Refused::Minting(error)) => {
            session.tls_failed(&fail(TlsFailureKind::Minting, error));
        }
        None => {
            let error = match alert_of(&error) {
                Some(alert) => HandshakeError::Tls(rustls::Error::AlertReceived(alert)),
                None => HandshakeError::Io(error.into()),
            };
            session.tls_failed(&failure::client(&error, &target.host));
        }
    }
    None
}

/// Decides about a client by its hello, and finds its leaf. rustls asks in the middle of the
/// handshake; what is answered here can't wait for the origin, so that the leaf has the names that
/// the client asked for and not those of the origin's certificate.
struct Leaf {
    worker: Arc<Worker>,
    live: Arc<Live>,
    connection: Arc<tollgate_flow::ConnectionInfo>,
    target: Target,
    refused: Mutex<Option<Refused>>,
}

enum Refused {
    Blocked,
    Minting(String),
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Leaf").field(&self.target).finish()
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = self.find(&hello);
        match found {
            Ok(leaf) => Some(leaf),
            Err(refused) => {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
                // rustls sends the alert `access_denied`.
                None
            }
        }
    }
}

impl Leaf {
    fn find(&self, hello: &rustls::server::ClientHello<'_>) -> Result<Arc<CertifiedKey>, Refused> {
        let hello = Arc::new(as_hello(hello));
        self.connection.set_tls(ClientTls::new(Arc::clone(&hello)));
        let name = hello.server_name.as_deref();
        let worker = &self.worker;
        let by_hook = worker
            .shared
            .hooks
            .tls(&hello, &self.connection, &worker.counters);
        let action = match by_hook {
            TlsDecision::Intercept => Action::Intercept,
            TlsDecision::Tunnel => Action::Tunnel,
            TlsDecision::Block => Action::Block,
            TlsDecision::Default => {
                let name = name.map(|name| Target::new(name, self.target.port));
                let names: Vec<&Target> = [&self.target].into_iter().chain(&name).collect();
                self.live.config.policy.decide(&names)
            }
        };
        if action != Action::Intercept {
            return Err(Refused::Blocked);
        }
        let mut request = LeafRequest::new(&*self.target.host);
        if let Some(name) = name {
            request = request.with_server_name(name);
        }
        match self.live.leaves.get_or_mint(&request) {
            Ok(leaf) => Ok(Arc::clone(&leaf.certified)),
            Err(error) => Err(Refused::Minting(error.to_string())),
        }
    }
}

/// What rustls tells of a hello. QUIC's first packets are read by quinn, so that the hello's own
/// bytes, and with them the fingerprints, are not to be had.
fn as_hello(from: &rustls::server::ClientHello<'_>) -> ClientHello {
    let mut hello = ClientHello::default();
    hello.legacy_version = 0x0303;
    hello.supported_versions = vec![0x0304];
    hello.server_name = from.server_name().map(str::to_ascii_lowercase);
    hello.alpn = from
        .alpn()
        .map(|names| names.map(<[u8]>::to_vec).collect())
        .unwrap_or_default();
    hello.cipher_suites = from.cipher_suites().iter().map(|&s| s.into()).collect();
    hello.signature_algorithms = from.signature_schemes().iter().map(|&s| s.into()).collect();
    hello.groups = from
        .named_groups()
        .map(|groups| groups.iter().map(|&g| g.into()).collect())
        .unwrap_or_default();
    hello
}

/// Stands in an endpoint's own configuration.
#[derive(Debug)]
struct NoLeaf;

impl ResolvesServerCert for NoLeaf {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

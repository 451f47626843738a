//! SOCKS5 for clients (RFC 1928, RFC 1929): CONNECT, and UDP ASSOCIATE.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tollgate_flow::{
    ConnectDecision, Credentials, Direction, ErrorClass, Flow, FlowError, FlowKind, Outcome, Side,
    Target,
};
use tollgate_wire::dns;
use tollgate_wire::socks5::{self, Address, Command, Method, ReplyCode, SocksError};
use tracing::{debug, info};

use crate::dial::{may_dial, not_public};
use crate::h1;
use crate::hooks::{PieceVerdict, Run, SharedFlow};
use crate::io::Conn;
use crate::metrics::count;
use crate::policy::Action;
use crate::session::{FlowGuard, Session};

/// Destinations that one association sends to at once; datagrams to further ones are dropped.
const MAX_PEERS: usize = 256;
/// Datagrams of a client that wait for their destination's turn; further ones are dropped.
const MAX_WAITING: usize = 64;
/// The largest datagram that UDP has.
const MAX_DATAGRAM: usize = 65_535;
/// How long a destination is kept to which nothing passes.
const PEER_IDLE: Duration = Duration::from_secs(60);
/// Datagrams to this port are QUIC's.
const QUIC: u16 = 443;
const DNS: u16 = 53;

/// Greets a client, and answers where it wants to go. `None`: it has got its answer, and the
/// connection is to be closed.
pub(crate) async fn greet(session: &mut Session, client: &mut Conn) -> Option<Target> {
    let limit = session.live.config.timeouts.first_bytes;
    session.timer.set(limit);
    let auth = session.live.config.auth.clone();
    let wanted = match auth {
        Some(_) => Method::UsernamePassword,
        None => Method::NoAuthentication,
    };
    let offered = read(session, client, |input| {
        Ok(socks5::parse_greeting(input)?.map(|greeting| greeting.offers(wanted)))
    })
    .await?;
    let mut out = Vec::new();
    if !offered {
        socks5::write_no_acceptable_method(&mut out);
        let why = match auth {
            Some(_) => "it shows no user and password",
            None => "it insists on authentication",
        };
        return refuse(session, client, &out, ErrorClass::Unauthenticated, why).await;
    }
    socks5::write_method(wanted, &mut out);
    client.wr.write_all(&out).await.ok()?;
    if let Some(auth) = &auth {
        let shown = read(session, client, socks5::parse_credentials).await?;
        let given = Credentials {
            user: String::from_utf8_lossy(shown.username()).into_owned(),
            password: String::from_utf8_lossy(shown.password()).into_owned(),
        };
        let right = session.worker.shared.verified.check(auth, &given).await;
        out.clear();
        socks5::write_status(right, &mut out);
        if !right {
            let why = "user and password are not right";
            return refuse(session, client, &out, ErrorClass::Unauthenticated, why).await;
        }
        session.info.set_user(given.user.into());
        client.wr.write_all(&out).await.ok()?;
    }
    let request = read(session, client, socks5::parse_request).await?;
    let target = target(&request.address);
    match (request.command, target) {
        (Command::Connect, Some(target)) => Some(target),
        (Command::Connect, None) => {
            answer(client, ReplyCode::GeneralFailure, session).await;
            None
        }
        (Command::UdpAssociate, _) if session.scanner().is_none() => {
            associate(session, client).await;
            None
        }
        // What is not HTTP can't be scanned.
        (Command::Bind | Command::UdpAssociate, _) => {
            answer(client, ReplyCode::CommandNotSupported, session).await;
            None
        }
    }
}

/// Tells a client that its connection stands.
pub(crate) async fn grant(client: &mut Conn, bound: Option<SocketAddr>) -> std::io::Result<()> {
    let mut out = Vec::new();
    let bound = bound.map_or(Address::UNSPECIFIED, Address::from);
    socks5::write_reply(ReplyCode::Succeeded, &bound, &mut out);
    client.wr.write_all(&out).await
}

/// Tells a client why its connection does not stand.
pub(crate) async fn deny(session: &mut Session, client: &mut Conn, error: &FlowError) {
    let code = match error.class {
        ErrorClass::Blocked => ReplyCode::NotAllowed,
        ErrorClass::Dns => ReplyCode::HostUnreachable,
        ErrorClass::Timeout => ReplyCode::TtlExpired,
        ErrorClass::Connect if error.message.contains("refused") => ReplyCode::ConnectionRefused,
        ErrorClass::Connect => ReplyCode::HostUnreachable,
        _ => ReplyCode::GeneralFailure,
    };
    answer(client, code, session).await;
}

async fn answer(client: &mut Conn, code: ReplyCode, session: &mut Session) {
    let mut out = Vec::new();
    socks5::write_reply(code, &Address::UNSPECIFIED, &mut out);
    if client.wr.write_all(&out).await.is_ok() {
        h1::linger(session, client).await;
    }
}

async fn refuse<T>(
    session: &mut Session,
    client: &mut Conn,
    bytes: &[u8],
    class: ErrorClass,
    why: &'static str,
) -> Option<T> {
    session.counters().failure(Side::Client, class);
    info!(client = %session.info.client, "a SOCKS client is refused: {why}");
    if client.wr.write_all(bytes).await.is_ok() {
        h1::linger(session, client).await;
    }
    None
}

/// Reads one message of the client.
async fn read<T>(
    session: &mut Session,
    client: &mut Conn,
    parse: impl Fn(&[u8]) -> Result<socks5::Parsed<T>, SocksError>,
) -> Option<T> {
    loop {
        match parse(client.rd.data()) {
            Ok(socks5::Parsed::Complete { value, consumed }) => {
                client.rd.consume(consumed);
                return Some(value);
            }
            Ok(socks5::Parsed::Partial) => {}
            Err(error) => {
                let mut out = Vec::new();
                match (error, error.reply_code()) {
                    (SocksError::Socks4, _) => out.extend_from_slice(&socks5::SOCKS4_REFUSAL),
                    (_, Some(code)) => socks5::write_reply(code, &Address::UNSPECIFIED, &mut out),
                    (_, None) => {}
                }
                debug!(client = %session.info.client, "{error}");
                session
                    .counters()
                    .failure(Side::Client, ErrorClass::Protocol);
                if client.wr.write_all(&out).await.is_ok() {
                    h1::linger(session, client).await;
                }
                return None;
            }
        }
        let Session { timer, control, .. } = &mut *session;
        let filled = poll_fn(|cx| {
            if let Poll::Ready(result) = client.rd.poll_fill(cx) {
                return Poll::Ready(result.is_ok_and(|n| n > 0));
            }
            if control.poll_drain(cx).is_ready() {
                return Poll::Ready(false);
            }
            timer.poll(cx).map(|()| false)
        })
        .await;
        if !filled {
            return None;
        }
    }
}

fn target(address: &Address) -> Option<Target> {
    let target = match address {
        Address::Ip(address) => Target::new(&address.ip().to_string(), address.port()),
        Address::Domain { name, port } => Target::parse(name.as_str(), Some(*port))?,
    };
    (target.port != 0).then_some(target)
}

/// Relays datagrams for as long as the client keeps its connection.
async fn associate(session: &mut Session, client: &mut Conn) {
    let here = SocketAddr::new(session.info.local.ip(), 0);
    let bound = match UdpSocket::bind(here).await {
        Ok(socket) => socket
            .local_addr()
            .map(|address| (Arc::new(socket), address)),
        Err(error) => Err(error),
    };
    let Ok((socket, address)) = bound else {
        return answer(client, ReplyCode::GeneralFailure, session).await;
    };
    if grant(client, Some(address)).await.is_err() {
        return;
    }
    let mut association = Association {
        session: session.another(),
        socket,
        client: None,
        peers: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let socket = Arc::clone(&association.socket);
        let control = &session.control;
        let event = poll_fn(|cx| {
            match client.rd.poll_fill(cx) {
                // Nothing is to be said on the connection; it only stands for the association.
                Poll::Ready(Ok(n)) if n > 0 => {
                    client.rd.consume(n);
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(_) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            if control.poll_drain(cx).is_ready() {
                return Poll::Ready(None);
            }
            while let Poll::Ready(Some(ended)) = association.tasks.poll_join_next(cx) {
                if let Ok(target) = ended {
                    association.peers.remove(&target);
                }
            }
            let mut read = tokio::io::ReadBuf::new(&mut buffer);
            match socket.poll_recv_from(cx, &mut read) {
                Poll::Ready(Ok(from)) => {
                    Poll::Ready(Some(Some((from, Bytes::copy_from_slice(read.filled())))))
                }
                Poll::Ready(Err(_)) => Poll::Ready(Some(None)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        match event {
            Some(Some((from, datagram))) => association.take(from, &datagram),
            // An ICMP error of an earlier datagram.
            Some(None) => {}
            None => return,
        }
    }
}

struct Association {
    session: Session,
    /// Towards the client.
    socket: Arc<UdpSocket>,
    /// Where the client sends from: the first datagram from its address says so.
    client: Option<SocketAddr>,
    peers: HashMap<Target, mpsc::Sender<Bytes>>,
    /// One for each peer; they end with the association.
    tasks: JoinSet<Target>,
}

impl Association {
    /// Passes a datagram on, or drops it: the client can't tell, as with any datagram.
    fn take(&mut self, from: SocketAddr, datagram: &[u8]) {
        let expected = match self.client {
            Some(client) => client == from,
            None => from.ip().to_canonical() == self.session.info.client.ip().to_canonical(),
        };
        let parsed = socks5::parse_datagram(datagram);
        let dropped = &self.session.counters().datagrams_dropped;
        let (true, Ok((address, payload))) = (expected, parsed) else {
            return count(dropped);
        };
        self.client = Some(from);
        let Some(target) = target(&address) else {
            return count(dropped);
        };
        let payload = Bytes::copy_from_slice(payload);
        let payload = match self
            .peers
            .get(&target)
            .map(|peer| peer.try_send(payload.clone()))
        {
            Some(Ok(())) => return,
            Some(Err(mpsc::error::TrySendError::Full(_))) => return count(dropped),
            Some(Err(mpsc::error::TrySendError::Closed(payload))) => payload,
            None => payload,
        };
        if self.peers.len() >= MAX_PEERS || !self.allows(&target) {
            return count(dropped);
        }
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        // There is room for the first.
        let _ = sender.try_send(payload);
        self.peers.insert(target.clone(), sender);
        let session = self.session.another();
        let socket = Arc::clone(&self.socket);
        self.tasks.spawn(async move {
            if let Err(error) = peer(&session, &socket, from, &target, receiver).await {
                session.counters().failure(error.side, error.class);
                debug!(client = %session.info.client, %target, "{error}");
            }
            target
        });
    }

    /// Whether datagrams may go to a destination: the policy's word for connections holds for them.
    fn allows(&self, target: &Target) -> bool {
        let session = &self.session;
        let config = &session.live.config;
        if config.block_quic && target.port == QUIC {
            return false;
        }
        let worker = &session.worker;
        let decision = worker
            .shared
            .hooks
            .connect(target, &session.info, &worker.counters);
        let blocked = match decision {
            ConnectDecision::Default => config.policy.decide(&[target]) == Action::Block,
            decision => decision == ConnectDecision::Block,
        };
        if blocked {
            count(&worker.counters.blocked_total);
            info!(client = %session.info.client, %target, "blocked");
        }
        !blocked
    }
}

/// Relays datagrams between the client and one destination, as a flow.
async fn peer(
    session: &Session,
    socket: &UdpSocket,
    client: SocketAddr,
    target: &Target,
    mut from_client: mpsc::Receiver<Bytes>,
) -> Result<(), FlowError> {
    let config = &session.live.config;
    let shared = &session.worker.shared;
    let counters = session.counters();
    let failed = |class, what: String| FlowError::new(Side::Upstream, class, what);
    if session
        .destination(target, &tollgate_flow::Via::Configured)
        .via
        .is_some()
    {
        // Straight there would be past the proxy that it should go through.
        let what = format!("datagrams to {target} can't go through a proxy");
        return Err(FlowError::new(Side::Proxy, ErrorClass::Blocked, what));
    }
    may_dial(target, config)?;
    let found = shared.dns.resolve(&target.host, &config.hosts, counters);
    let found = tokio::time::timeout(Duration::from_secs(10), found).await;
    let address = match found {
        Ok(Ok(addresses)) => {
            let may = |ip: &&std::net::IpAddr| config.policy.may_be_at(target, **ip);
            match (addresses.iter().find(may), addresses.first()) {
                (Some(ip), _) => Some(SocketAddr::new(*ip, target.port)),
                (None, Some(ip)) => return Err(not_public(target, *ip)),
                (None, None) => None,
            }
        }
        _ => None,
    };
    let address = address.ok_or_else(|| {
        failed(
            ErrorClass::Dns,
            format!("{} can't be resolved", target.host),
        )
    })?;
    let local = match config.connect_addr {
        Some(ip) if ip.is_ipv4() == address.is_ipv4() => SocketAddr::new(ip, 0),
        _ if address.is_ipv4() => SocketAddr::from(([0, 0, 0, 0], 0)),
        _ => SocketAddr::from(([0_u16; 8], 0)),
    };
    let io = |e: std::io::Error| failed(ErrorClass::Connect, format!("datagrams to {target}: {e}"));
    let upstream = UdpSocket::bind(local).await.map_err(io)?;
    upstream.connect(address).await.map_err(io)?;

    let mut flow = Box::new(Flow::new(Arc::clone(&session.info)));
    flow.kind = FlowKind::Udp;
    flow.request.target = target.clone();
    session.begin_flow(&mut flow);
    flow.response = Some(Box::default());
    let run = Run::begin(&shared.hooks, &flow, counters);
    let mut guard = FlowGuard::new(&mut flow, run, counters);
    let (mut sent, mut received) = (0, 0);
    let outcome = {
        let FlowGuard { flow, run, .. } = &mut guard;
        let flow = SharedFlow::new(flow);
        let mut there = run.body(
            &flow,
            Direction::Request,
            &session.live.config.limits,
            counters,
        );
        let mut back = run.body(
            &flow,
            Direction::Response,
            &session.live.config.limits,
            counters,
        );
        let mut header = Vec::new();
        socks5::write_datagram_header(&address.into(), &mut header);
        let prefix = header.len();
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let arrived = tokio::select! {
                datagram = from_client.recv() => match datagram {
                    Some(datagram) => Arrived::FromClient(datagram),
                    None => break Outcome::COMPLETED,
                },
                n = upstream.recv(&mut buffer) => match n {
                    Ok(n) => Arrived::FromPeer(n),
                    // An ICMP error: nobody listens there, say.
                    Err(e) => break Outcome::failed(io(e)),
                },
                () = tokio::time::sleep(PEER_IDLE) => break Outcome::COMPLETED,
            };
            if let Arrived::FromPeer(n) = &arrived
                && target.port == DNS
                && config.hide_http3
                && let Some(answer) = buffer.get_mut(..*n)
                && dns::strip(answer, dns::Strip::ALL).is_err()
            {
                // Nobody could say that nothing gets past in it.
                count(&counters.datagrams_dropped);
                continue;
            }
            let (hooks, data) = match &arrived {
                Arrived::FromClient(datagram) => {
                    sent += datagram.len() as u64;
                    (&mut there, &**datagram)
                }
                Arrived::FromPeer(n) => {
                    received += *n as u64;
                    (&mut back, buffer.get(..*n).unwrap_or_default())
                }
            };
            let verdict = if hooks.watched {
                hooks.data(data, false).await
            } else {
                PieceVerdict::Pass
            };
            let replaced;
            let data = match verdict {
                PieceVerdict::Pass => data,
                // Nothing goes on instead: the datagram is dropped.
                PieceVerdict::Replace(bytes) if bytes.is_empty() => continue,
                PieceVerdict::Replace(bytes) => {
                    replaced = bytes;
                    &*replaced
                }
                PieceVerdict::End(verdict) => break h1::dropped(verdict),
            };
            // A datagram that can't be sent is one that is lost.
            match arrived {
                Arrived::FromClient(_) => {
                    let _ = upstream.send(data).await;
                }
                Arrived::FromPeer(_) => {
                    header.truncate(prefix);
                    header.extend_from_slice(data);
                    let _ = socket.send_to(&header, client).await;
                }
            }
        }
    };
    guard.flow.request.body_size = sent;
    if let Some(response) = &mut guard.flow.response {
        response.body_size = received;
    }
    guard.end(&outcome);
    Ok(())
}

enum Arrived {
    FromClient(Bytes),
    /// So many bytes in the buffer.
    FromPeer(usize),
}

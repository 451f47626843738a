//! Resolves names and makes TCP connections (RFC 8305, "happy eyeballs").

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tollgate_flow::{ErrorClass, FlowError, Side, Target};

use crate::config::{Config, ConnectionStrategy};
use crate::metrics::{Counters, count};

/// After how long the next address is tried beside the one before.
const STAGGER: Duration = Duration::from_millis(250);

/// Resolves the names of origins, in place of the system's resolver.
///
/// ```
/// use std::net::{IpAddr, Ipv4Addr};
/// use tollgate_engine::{Proxy, Resolver};
///
/// /// Finds everything on this machine.
/// struct Here;
///
/// impl Resolver for Here {
///     fn resolve(&self, _host: &str) -> tollgate_engine::Resolving {
///         Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
///     }
/// }
///
/// let proxy = Proxy::builder().resolver(Here).build()?;
/// # Ok::<(), tollgate_engine::ProxyError>(())
/// ```
pub trait Resolver: Send + Sync + 'static {
    /// Finds the addresses of a host name (in lower case, without a trailing dot), in the order in
    /// which they should be tried. The time that it takes counts against `timeouts.connect`; the
    /// answer is remembered for `timeouts.dns_cache`.
    fn resolve(&self, host: &str) -> Resolving;
}

/// What a [`Resolver`] is waited for with.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Remembers what names resolve to. Shared by the workers of a proxy.
pub(crate) struct DnsCache {
    resolver: Option<Arc<dyn Resolver>>,
    entries: Mutex<HashMap<Arc<str>, Answer>>,
    capacity: usize,
    ttl: Duration,
}

struct Answer {
    addresses: Arc<[IpAddr]>,
    until: Instant,
}

impl DnsCache {
    pub fn new(capacity: usize, ttl: Duration, resolver: Option<Arc<dyn Resolver>>) -> Self {
        Self {
            resolver,
            entries: Mutex::new(HashMap::new()),
            capacity,
            ttl,
        }
    }

    pub async fn resolve(
        &self,
        host: &Arc<str>,
        hosts: &[(String, Vec<IpAddr>)],
        counters: &Counters,
    ) -> io::Result<Arc<[IpAddr]>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Arc::new([ip]));
        }
        if let Some((_, addresses)) = hosts.iter().find(|(name, _)| **name == **host) {
            return Ok(addresses.as_slice().into());
        }
        {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(answer) = entries.get(host)
                && answer.until > Instant::now()
            {
                count(&counters.dns_cache_hits);
                return Ok(Arc::clone(&answer.addresses));
            }
        }
        count(&counters.dns_lookups);
        let addresses: Arc<[IpAddr]> = match &self.resolver {
            Some(resolver) => resolver.resolve(host).await?.into(),
            None => {
                let found = tokio::net::lookup_host((&**host, 0)).await?;
                interleave(found.map(|a| a.ip()).collect()).into()
            }
        };
        if self.ttl > Duration::ZERO && self.capacity > 0 && !addresses.is_empty() {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if entries.len() >= self.capacity && !entries.contains_key(host) {
                let now = Instant::now();
                entries.retain(|_, answer| answer.until > now);
                if entries.len() >= self.capacity {
                    entries.clear();
                }
            }
            let answer = Answer {
                addresses: Arc::clone(&addresses),
                until: Instant::now() + self.ttl,
            };
            entries.insert(Arc::clone(host), answer);
        }
        Ok(addresses)
    }
}

/// Alternates the address families, beginning with the one that the resolver put first.
fn interleave(found: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v6 = found.first().is_some_and(IpAddr::is_ipv6);
    let (a, b): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|ip| ip.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        match (a.next(), b.next()) {
            (None, None) => break,
            (x, y) => mixed.extend(x.into_iter().chain(y)),
        }
    }
    mixed.dedup();
    mixed
}

/// Whether a destination is the configuration's own, or what somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Own {
    Configured,
    Asked,
}

/// The refusal of a destination for its address.
pub(crate) fn not_public(target: &Target, address: IpAddr) -> FlowError {
    FlowError::new(
        Side::Proxy,
        ErrorClass::Blocked,
        format!("{target} is at {address}, and only public addresses are allowed"),
    )
}

/// Refuses a destination where nothing is to be dialled.
pub(crate) fn may_dial(target: &Target, config: &Config) -> Result<(), FlowError> {
    match config.connection_strategy {
        ConnectionStrategy::Never => Err(FlowError::new(
            Side::Proxy,
            ErrorClass::Blocked,
            format!(
                "{target} is not connected to: this proxy is offline (connection strategy \"never\")"
            ),
        )),
        ConnectionStrategy::Eager | ConnectionStrategy::Lazy => Ok(()),
    }
}

/// Connects to a target within the configured time.
pub(crate) async fn dial(
    cache: &DnsCache,
    target: &Target,
    config: &Config,
    counters: &Counters,
    own: Own,
    is_ourselves: impl Fn(SocketAddr) -> bool,
) -> Result<TcpStream, FlowError> {
    let (bind, limit) = (config.connect_addr, config.timeouts.connect);
    let work = async {
        let addresses = resolve(cache, target, config, counters, own, is_ourselves).await?;
        count(&counters.upstream_connects);
        race(&addresses, |address| connect(address, bind))
            .await
            .map_err(|e: io::Error| {
                let class = if e.kind() == io::ErrorKind::TimedOut {
                    ErrorClass::Timeout
                } else {
                    ErrorClass::Connect
                };
                FlowError::new(
                    Side::Upstream,
                    class,
                    format!("can't connect to {target}: {}", describe(&e)),
                )
            })
    };
    if limit.is_zero() {
        return work.await;
    }
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(FlowError::new(
            Side::Upstream,
            ErrorClass::Timeout,
            format!("connecting to {target} took longer than {limit:?}"),
        )),
    }
}

/// The addresses of a target, in the order in which they are tried; none of them is our own. Whoever dials asks here first.
pub(crate) async fn resolve(
    cache: &DnsCache,
    target: &Target,
    config: &Config,
    counters: &Counters,
    own: Own,
    is_ourselves: impl Fn(SocketAddr) -> bool,
) -> Result<Vec<SocketAddr>, FlowError> {
    may_dial(target, config)?;
    let found = cache.resolve(&target.host, &config.hosts, counters).await;
    let addresses = found.map_err(|e| {
        FlowError::new(
            Side::Upstream,
            ErrorClass::Dns,
            format!("{} can't be resolved: {e}", target.host),
        )
    })?;
    if addresses.is_empty() {
        return Err(FlowError::new(
            Side::Upstream,
            ErrorClass::Dns,
            format!("{} has no address", target.host),
        ));
    }
    let may = |ip: &&IpAddr| own == Own::Configured || config.policy.may_be_at(target, **ip);
    let first = addresses.first().copied();
    let addresses: Vec<SocketAddr> = addresses
        .iter()
        .filter(may)
        .map(|ip| SocketAddr::new(*ip, target.port))
        .collect();
    if let (true, Some(first)) = (addresses.is_empty(), first) {
        count(&counters.blocked_total);
        return Err(not_public(target, first));
    }
    if addresses.iter().any(|a| is_ourselves(*a)) {
        return Err(FlowError::new(
            Side::Proxy,
            ErrorClass::Loop,
            format!("{target} is this proxy itself"),
        ));
    }
    Ok(addresses)
}

/// A sentence for the errors that people meet, without the operating system's number.
pub(crate) fn describe(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        io::ErrorKind::HostUnreachable => "host unreachable".to_owned(),
        _ => e.to_string(),
    }
}

/// Tries addresses in turn, each beside the ones before it, and answers the first that succeeds.
pub(crate) async fn race<T, E, F>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    if let [only] = addresses {
        return connect(*only).await;
    }
    let mut waiting = addresses.iter().copied();
    let mut attempts = JoinSet::new();
    let mut last_error = E::from(io::ErrorKind::NotFound.into());
    loop {
        let next = waiting.next();
        let more = next.is_some();
        if let Some(address) = next {
            attempts.spawn(connect(address));
        }
        let joined = if more {
            match tokio::time::timeout(STAGGER, attempts.join_next()).await {
                Ok(joined) => joined,
                Err(_) => continue,
            }
        } else {
            attempts.join_next().await
        };
        match joined {
            Some(Ok(Ok(connection))) => return Ok(connection),
            Some(Ok(Err(e))) => last_error = e,
            Some(Err(e)) => last_error = io::Error::other(e).into(),
            None => return Err(last_error),
        }
    }
}

async fn connect(address: SocketAddr, bind: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(ip) = bind.filter(|ip| ip.is_ipv4() == address.is_ipv4()) {
        crate::os::before_bind_for_connect(&socket);
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    socket.connect(address).await
}

#[cfg(test)]
mod tests {
    use super::interleave;

    #[test]
    fn families_alternate() {
        let ips = |list: &[&str]| list.iter().map(|s| s.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(
            interleave(ips(&["::1", "::2", "::3", "10.0.0.1"])),
            ips(&["::1", "10.0.0.1", "::2", "::3"])
        );
        assert_eq!(interleave(ips(&["10.0.0.1"])), ips(&["10.0.0.1"]));
    }
}

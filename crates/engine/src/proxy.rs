//! A proxy: its parts, its workers, and the handle that steers it.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tollgate_ca::{Authority, AuthorityParams, CaError, LeafCache};
use tollgate_flow::{ConnectionId, ConnectionInfo, Interceptor, ProcessResolver, ProxyScheme};
use tracing::{debug, error, warn};

use crate::auth::Verified;
use crate::config::{Config, ConfigError, PoolMode};
use crate::dial::{DnsCache, Resolver};
use crate::hooks::Hooks;
use crate::metrics::{Counters, Metrics, count, uncount};
use crate::mode::{Endpoint, Mode};
use crate::os;
use crate::pool::{Destination, NotH2c, Pool, Slots};
use crate::ports::{Accepted, Acceptor, Came, Port, Socket, UnixPath};
use crate::proxy_protocol;
use crate::sandwich::Tickets;
use crate::session::{Registry, Session};
use crate::stages;
use crate::timer::Timer;
use crate::tls::client_side::ClientSide;
use crate::tls::upstream::Upstream;

/// How often a worker closes upstream connections that were idle for too long.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How long accepting pauses after it failed, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// File descriptors that are left for files, DNS and the program around the proxy.
const SPARE_FILES: u64 = 64;

/// An intercepting proxy that is ready to start.
///
/// ```
/// use tollgate_engine::{Config, Listen, Proxy};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = Config::default();
/// config.listen = vec![Listen::Tcp("127.0.0.1:0".parse()?).into()];
/// let proxy = Proxy::builder().config(config).build()?;
/// let handle = proxy.start().await?;
/// println!("listening on {}", handle.local_addr());
/// handle.shutdown(std::time::Duration::from_secs(1)).await;
/// # Ok(())
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
/// ```
pub struct Proxy {
    config: Arc<Config>,
    live: Live,
    authority: Arc<Authority>,
    interceptors: Vec<Arc<dyn Interceptor>>,
    resolver: Option<Arc<dyn Resolver>>,
    runtime: Runtime,
}

/// Collects what a [`Proxy`] is made of.
#[derive(Default)]
pub struct ProxyBuilder {
    config: Config,
    authority: Option<Arc<Authority>>,
    interceptors: Vec<Arc<dyn Interceptor>>,
    resolver: Option<Arc<dyn Resolver>>,
    runtime: Runtime,
}

/// Where a proxy's work is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// On threads of its own, each with a single-threaded runtime: the fastest.
    #[default]
    Own,
    /// As tasks on the tokio runtime that [`Proxy::start`] is called on.
    Current,
}

/// Why a proxy can't be made or started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The authority can't be used.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// A place to listen at isn't to be had.
    #[error("can't listen on {address}: {error}")]
    Bind {
        /// The address or path.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// A worker can't be started.
    #[error("can't start a worker: {0}")]
    Worker(io::Error),
}

impl ProxyBuilder {
    /// What the proxy is told. Default: [`Config::default`].
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The authority that signs for hosts. Without one, an authority is made that lives in memory only.
    pub fn authority(mut self, authority: Arc<Authority>) -> Self {
        self.authority = Some(authority);
        self
    }

    /// Adds an interceptor, after those that were added before.
    pub fn interceptor(self, interceptor: impl Interceptor) -> Self {
        self.shared_interceptor(Arc::new(interceptor))
    }

    /// Adds an interceptor that the caller keeps a hold on.
    pub fn shared_interceptor(mut self, interceptor: Arc<dyn Interceptor>) -> Self {
        self.interceptors.push(interceptor);
        self
    }

    /// What resolves the names of origins. Default: the system's resolver.
    pub fn resolver(mut self, resolver: impl Resolver) -> Self {
        self.resolver = Some(Arc::new(resolver));
        self
    }

    /// Where the work is done. Default: [`Runtime::Own`].
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.runtime = runtime;
        self
    }

    /// Checks the configuration, and loads what it names.
    pub fn build(self) -> Result<Proxy, ProxyError> {
        let authority = match self.authority {
            Some(authority) => authority,
            None => Arc::new(Authority::generate(&AuthorityParams::default())?),
        };
        let config = Arc::new(self.config);
        let live = Live::new(Arc::clone(&config), &authority, 0)?;
        Ok(Proxy {
            config,
            live,
            authority,
            interceptors: self.interceptors,
            resolver: self.resolver,
            runtime: self.runtime,
        })
    }
}

impl Proxy {
    /// Begins to put a proxy together.
    pub fn builder() -> ProxyBuilder {
        ProxyBuilder::default()
    }

    /// Starts, and serves until the future is dropped.
    pub async fn run(self) -> Result<(), ProxyError> {
        let handle = self.start().await?;
        handle.finished().await;
        Ok(())
    }

    /// Starts. When this returns, every listener accepts.
    pub async fn start(self) -> Result<Handle, ProxyError> {
        let workers = match self.config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n.min(1024),
        };
        let mut sockets: Vec<Vec<(Arc<Port>, Socket)>> = (0..workers).map(|_| Vec::new()).collect();
        let mut ports = Vec::new();
        let mut files = Vec::new();
        for (id, endpoint) in (0..).zip(&self.config.listen) {
            let bound = Port::bind(id, endpoint, workers)?;
            for (socket, list) in bound.sockets.into_iter().zip(&mut sockets) {
                list.push((Arc::clone(&bound.port), socket));
            }
            files.extend(bound.file.map(|file| (id, file)));
            ports.push(bound.port);
        }
        let limit = connection_limit(self.config.limits.connections);
        let resolver = self
            .config
            .process_attribution
            .then(os::process_resolver)
            .flatten();
        let mut node = [0; 8];
        aws_lc_rs::rand::fill(&mut node)
            .map_err(|_| ProxyError::Worker(io::Error::other("no randomness")))?;
        let shared = Arc::new(Shared {
            dns: DnsCache::new(
                self.config.limits.dns_entries,
                self.config.timeouts.dns_cache,
                self.resolver,
            ),
            verified: Verified::new()
                .map_err(|_| ProxyError::Worker(io::Error::other("no randomness")))?,
            tickets: Tickets::default(),
            live: ArcSwap::from_pointee(self.live),
            hooks: Hooks::new(self.interceptors),
            next_port: AtomicU32::new(u32::try_from(ports.len()).unwrap_or(u32::MAX)),
            ports: ArcSwap::from_pointee(ports),
            next_connection: AtomicU64::new(1),
            next_flow: AtomicU64::new(0),
            node: u64::from_ne_bytes(node),
            resolver,
            connections: AtomicUsize::new(0),
            limit,
            slot_free: Notify::new(),
            draining: AtomicBool::new(false),
        });
        let (stop, stopped) = watch::channel(Phase::Run);
        let mut handles = Vec::new();
        let mut running = Vec::new();
        for (i, listeners) in sockets.into_iter().enumerate() {
            let worker = Arc::new(Worker {
                shared: Arc::clone(&shared),
                counters: Counters::default(),
                mail: Mail::default(),
                pool: Mutex::new(Pool::default()),
                slots: Slots::default(),
                not_h2c: NotH2c::default(),
                #[cfg(feature = "http2")]
                shared_upstreams: Mutex::default(),
                #[cfg(feature = "http3")]
                quic: crate::h3::Endpoints::default(),
                registry: Registry::default(),
            });
            handles.push(Arc::clone(&worker));
            let (done, finished) = watch::channel(false);
            running.push(finished);
            let work = worker_main(worker, listeners, stopped.clone(), done);
            match self.runtime {
                Runtime::Current => {
                    tokio::spawn(work);
                }
                Runtime::Own => {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .map_err(ProxyError::Worker)?;
                    std::thread::Builder::new()
                        .name(format!("tollgate-{i}"))
                        .spawn(move || runtime.block_on(work))
                        .map_err(ProxyError::Worker)?;
                }
            }
        }
        Ok(Handle {
            shared,
            workers: handles,
            authority: self.authority,
            stop,
            running,
            files: Mutex::new(files),
        })
    }
}

/// What is remade by a reload.
pub(crate) struct Live {
    pub config: Arc<Config>,
    pub client_side: ClientSide,
    pub upstream: Upstream,
    pub leaves: LeafCache,
    pub generation: u64,
}

/// Endpoints that can't serve together, or not with the rest of the configuration.
fn check_endpoints(config: &Config) -> Result<(), ConfigError> {
    let invalid = |problem: String| Err(ConfigError::Invalid(problem));
    if config.listen.is_empty() {
        return invalid("there is nothing to listen at".to_owned());
    }
    for (i, endpoint) in config.listen.iter().enumerate() {
        let any_port = matches!(&endpoint.at, crate::config::Listen::Tcp(a) if a.port() == 0);
        if !any_port
            && config
                .listen
                .iter()
                .take(i)
                .any(|other| other.at == endpoint.at)
        {
            return invalid(format!("two modes listen at {}", endpoint.at));
        }
        if endpoint.mode.is_datagrams() {
            if !cfg!(feature = "http3") {
                return invalid(format!("{}: this build has no HTTP/3", endpoint.mode));
            }
            if let crate::config::Listen::Unix(_) = endpoint.at {
                return invalid(format!("{} needs a UDP port", endpoint.mode));
            }
        }
    }
    let returns = config.listen.iter().any(|e| e.mode == Mode::Return);
    let others = config.listen.iter().any(|e| e.mode != Mode::Return);
    match (&config.sandwich, returns) {
        (Some(_), false) => invalid(
            "a sandwich needs a listener in mode `return`, to which the scanner forwards"
                .to_owned(),
        ),
        (None, true) => invalid("a listener in mode `return` needs a sandwich".to_owned()),
        (Some(_), true) if !others => invalid(
            "a sandwich needs a listener for clients beside the one to return to".to_owned(),
        ),
        (Some(sandwich), true) if sandwich.scanner.scheme == ProxyScheme::Socks5 => {
            invalid("the scanner in a sandwich must be an HTTP proxy".to_owned())
        }
        _ => Ok(()),
    }
}

impl Live {
    fn new(
        config: Arc<Config>,
        authority: &Arc<Authority>,
        generation: u64,
    ) -> Result<Self, ConfigError> {
        check_endpoints(&config)?;
        let tls = &config.tls;
        for versions in [tls.client_versions, tls.upstream_versions] {
            if versions.min > versions.max {
                return Err(ConfigError::Tls(format!(
                    "the lowest version {} is above the highest, {}",
                    versions.min, versions.max
                )));
            }
        }
        #[cfg(not(feature = "http3"))]
        if config.upstream_http == crate::config::UpstreamHttp::Http3 {
            return Err(ConfigError::Invalid("this build has no HTTP/3".to_owned()));
        }
        let leaves = LeafCache::new(Arc::clone(authority), config.limits.leaves);
        for spec in &tls.certs {
            leaves
                .load_custom(spec)
                .map_err(|e| ConfigError::Certificate {
                    what: "certificate",
                    path: spec.into(),
                    problem: e.to_string(),
                })?;
        }
        Ok(Self {
            client_side: ClientSide::new(tls.client_versions)?,
            upstream: Upstream::new(tls)?,
            leaves,
            config,
            generation,
        })
    }
}

/// What the workers of one proxy share.
pub(crate) struct Shared {
    pub live: ArcSwap<Live>,
    pub hooks: Hooks,
    pub dns: DnsCache,
    /// Credentials that were found right lately.
    pub verified: Verified,
    /// Requests that are with the scanner of a sandwich.
    pub tickets: Tickets,
    ports: ArcSwap<Vec<Arc<Port>>>,
    next_port: AtomicU32,
    next_connection: AtomicU64,
    next_flow: AtomicU64,
    node: u64,
    resolver: Option<Arc<dyn ProcessResolver>>,
    connections: AtomicUsize,
    limit: usize,
    slot_free: Notify,
    draining: AtomicBool,
}

impl Shared {
    /// Bits that make a flow's id unique: of this proxy, and of the flow within it.
    pub fn unique(&self) -> u128 {
        let n = self.next_flow.fetch_add(1, Ordering::Relaxed);
        (u128::from(n) << 34) | u128::from(self.node >> 30)
    }

    /// Whether dialling an address would reach this proxy. `local` is where the client reached us.
    /// A port of UDP is no port of TCP.
    pub fn is_ourselves(&self, address: SocketAddr, local: SocketAddr, udp: bool) -> bool {
        let ports = self.ports.load();
        let ports = ports.iter().filter(|port| port.is_udp() == udp);
        ports.filter_map(|port| port.address).any(|ours| {
            ours.port() == address.port()
                && (ours.ip() == address.ip()
                    || (ours.ip().is_unspecified()
                        && (address.ip().is_loopback()
                            || address.ip().is_unspecified()
                            || address.ip() == local.ip()))
                    // Dialling "any" reaches this machine.
                    || (address.ip().is_unspecified() && ours.ip().is_loopback()))
        })
    }
}

/// One worker: a single thread with all that its connections need.
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub counters: Counters,
    mail: Mail,
    pool: Mutex<Pool>,
    pub slots: Slots,
    pub not_h2c: NotH2c,
    #[cfg(feature = "http2")]
    shared_upstreams: Mutex<crate::streams::connections::SharedConnections>,
    /// The UDP sockets of connections to origins.
    #[cfg(feature = "http3")]
    pub quic: crate::h3::Endpoints,
    registry: Registry,
}

impl Worker {
    /// The idle upstream connections.
    pub fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upstream connections that many exchanges use at once.
    #[cfg(feature = "http2")]
    pub fn shared_upstreams(
        &self,
    ) -> MutexGuard<'_, crate::streams::connections::SharedConnections> {
        self.shared_upstreams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a connection to a destination that could serve the next request.
    pub fn knows(&self, destination: &Destination) -> bool {
        #[cfg(feature = "http2")]
        if self.shared_upstreams().knows(destination) {
            return true;
        }
        self.pool().knows(destination)
    }
}

/// Changes of what a worker listens at, on their way to it.
#[derive(Default)]
struct Mail {
    orders: Mutex<Vec<Order>>,
    arrived: Notify,
}

enum Order {
    Open(Arc<Port>, Socket),
    Close(u32),
}

impl Mail {
    fn send(&self, order: Order) {
        self.orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(order);
        self.arrived.notify_one();
    }

    fn take(&self) -> Vec<Order> {
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Run,
    /// Accept no more; let connections end.
    Drain,
    /// Cut what is left.
    Stop,
}

/// Steers a proxy that runs. Dropping it stops the proxy.
pub struct Handle {
    shared: Arc<Shared>,
    workers: Vec<Arc<Worker>>,
    authority: Arc<Authority>,
    stop: watch::Sender<Phase>,
    running: Vec<watch::Receiver<bool>>,
    /// The files of Unix sockets, by port. Held while a reload is under way.
    files: Mutex<Vec<(u32, UnixPath)>>,
}

/// How a shutdown went.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Every connection ended by itself before the deadline.
    pub drained: bool,
    /// Connections that were cut.
    pub aborted_connections: usize,
    /// The counters at the end.
    pub metrics: Metrics,
}

impl Handle {
    /// The address of the first listener that has one, with the real port; the unspecified address
    /// when all are Unix sockets.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs()
            .first()
            .copied()
            .unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
    }

    /// The addresses of all listeners but Unix sockets, in the order of the configuration. Those in
    /// mode `reverse:http3` are of UDP.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        let ports = self.shared.ports.load();
        ports.iter().filter_map(|port| port.address).collect()
    }

    /// What is listened at now: modes, and places with their real ports.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let ports = self.shared.ports.load();
        let real = |port: &Port| match port.address {
            Some(address) => crate::config::Listen::Tcp(address),
            None => port.at.clone(),
        };
        ports
            .iter()
            .map(|port| Endpoint {
                mode: Mode::clone(&port.mode.load()),
                at: real(port),
            })
            .collect()
    }

    /// The authority that signs for hosts.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The counters so far.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::collect(self.workers.iter().map(|w| &w.counters));
        metrics.count_interceptors(self.shared.hooks.all());
        metrics
    }

    /// The configuration in force.
    pub fn current_config(&self) -> Arc<Config> {
        Arc::clone(&self.shared.live.load().config)
    }

    /// Puts a configuration in force: all of it, or on an error nothing. Connections that are open
    /// keep the one that they began with; upstream connections made under it are not used again.
    ///
    /// Listeners that are new are bound, those that are gone are closed (connections accepted there
    /// live on), and one whose mode changed keeps its socket.
    ///
    /// `workers`, `process_attribution`, `limits.connections`, `limits.dns_entries` and
    /// `timeouts.dns_cache` can't change.
    ///
    /// # Errors
    /// [`ProxyError::Config`], or [`ProxyError::Bind`] for a listener that isn't to be had.
    pub fn reload(&self, config: Config) -> Result<(), ProxyError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.shared.live.load_full();
        let old = &current.config;
        let fixed = [
            ("workers", old.workers == config.workers),
            (
                "process_attribution",
                old.process_attribution == config.process_attribution,
            ),
            (
                "limits.connections",
                old.limits.connections == config.limits.connections,
            ),
            (
                "limits.dns_entries",
                old.limits.dns_entries == config.limits.dns_entries,
            ),
            (
                "timeouts.dns_cache",
                old.timeouts.dns_cache == config.timeouts.dns_cache,
            ),
        ];
        if let Some((name, _)) = fixed.into_iter().find(|(_, same)| !same) {
            return Err(ConfigError::NotReloadable(name).into());
        }
        let live = Live::new(Arc::new(config), &self.authority, current.generation + 1)?;
        let old_ports = self.shared.ports.load_full();
        let mut unused: Vec<&Arc<Port>> = old_ports.iter().collect();
        let mut ports = Vec::new();
        let mut modes = Vec::new();
        let mut bound = Vec::new();
        for endpoint in &live.config.listen {
            match unused.iter().position(|port| port.is_at(endpoint)) {
                Some(at) => {
                    let port = Arc::clone(unused.remove(at));
                    modes.push((Arc::clone(&port), endpoint.mode.clone()));
                    ports.push(port);
                }
                None => {
                    let id = self.shared.next_port.fetch_add(1, Ordering::Relaxed);
                    let new = Port::bind(id, endpoint, self.workers.len())?;
                    ports.push(Arc::clone(&new.port));
                    bound.push(new);
                }
            }
        }
        // From here on nothing fails.
        let closed: Vec<u32> = unused.iter().map(|port| port.id).collect();
        self.shared.live.store(Arc::new(live));
        for (port, mode) in modes {
            port.mode.store(Arc::new(mode));
        }
        self.shared.ports.store(Arc::new(ports));
        files.retain(|(id, _)| !closed.contains(id));
        for new in bound {
            files.extend(new.file.map(|file| (new.port.id, file)));
            for (socket, worker) in new.sockets.into_iter().zip(&self.workers) {
                worker.mail.send(Order::Open(Arc::clone(&new.port), socket));
            }
        }
        for worker in &self.workers {
            for id in &closed {
                worker.mail.send(Order::Close(*id));
            }
            worker.pool().clear(&worker.counters);
            #[cfg(feature = "http2")]
            worker.shared_upstreams().clear();
        }
        Ok(())
    }

    /// Whether every worker has ended.
    pub fn is_finished(&self) -> bool {
        self.running.iter().all(|done| *done.borrow())
    }

    /// Waits until every worker has ended.
    pub async fn finished(&self) {
        for done in &self.running {
            let mut done = done.clone();
            // An error means that the worker is gone, which is what we wait for.
            let _ = done.wait_for(|done| *done).await;
        }
    }

    /// Stops accepting, lets flows end for at most `timeout`, and cuts what is left then.
    pub async fn shutdown(self, timeout: Duration) -> Shutdown {
        self.shared.draining.store(true, Ordering::Relaxed);
        let _ = self.stop.send(Phase::Drain);
        for worker in &self.workers {
            worker.registry.drain_all();
        }
        let drained = tokio::time::timeout(timeout, self.finished()).await.is_ok();
        let aborted_connections = if drained {
            0
        } else {
            let left = self.workers.iter().map(|w| w.registry.len()).sum();
            let _ = self.stop.send(Phase::Stop);
            self.finished().await;
            left
        };
        Shutdown {
            drained,
            aborted_connections,
            metrics: self.metrics(),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _ = self.stop.send(Phase::Stop);
    }
}

/// Raises this process's limit of open files as far as the system lets it, and answers the limit.
/// For programs that are a proxy; an embedder may have reasons of its own for a lower one.
pub fn raise_file_limit() -> Option<u64> {
    os::raise_file_limit()
}

/// The connections that fit: each has a socket of its own and one upstream.
fn connection_limit(configured: usize) -> usize {
    let fitting = os::file_limit()
        .map(|limit| limit.saturating_sub(SPARE_FILES) / 2)
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(usize::MAX);
    configured.min(fitting).max(1)
}

async fn worker_main(
    worker: Arc<Worker>,
    listeners: Vec<(Arc<Port>, Socket)>,
    mut phase: watch::Receiver<Phase>,
    done: watch::Sender<bool>,
) {
    let mut connections = JoinSet::new();
    let mut acceptors = Vec::new();
    for (port, socket) in listeners {
        open(&mut acceptors, port, socket);
    }
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Whether the limit was reached since the last connection: it is reported once.
    let mut delayed = false;
    while *phase.borrow() == Phase::Run {
        let event = next_event(
            &worker,
            &mut acceptors,
            &mut phase,
            &mut housekeeping,
            &mut delayed,
        )
        .await;
        // Ended connections leave their place in the set.
        while connections.try_join_next().is_some() {}
        match event {
            Event::Accepted(accepted) => {
                let live = worker.shared.live.load_full();
                if proxy_protocol::is_expected(&live.config, &accepted) {
                    let worker = Arc::clone(&worker);
                    connections.spawn(async move {
                        match proxy_protocol::receive(&worker, &live, accepted).await {
                            Some(accepted) => serve(worker, live, accepted).await,
                            None => release_slot(&worker.shared),
                        }
                    });
                } else {
                    connections.spawn(serve(Arc::clone(&worker), live, accepted));
                }
            }
            Event::Mail => {
                for order in worker.mail.take() {
                    match order {
                        Order::Open(port, socket) => open(&mut acceptors, port, socket),
                        Order::Close(id) => acceptors.retain(|acceptor| acceptor.port.id != id),
                    }
                }
            }
            Event::Failed(e) => {
                count(&worker.counters.accept_errors);
                release_slot(&worker.shared);
                if is_transient(&e) {
                    debug!(error = %e, "a connection was gone before it was accepted");
                } else {
                    warn!(error = %e, "can't accept: trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            Event::Housekeeping => {
                let limit = worker.shared.live.load().config.pool.idle_timeout;
                worker.pool().expire(limit, &worker.counters);
                worker.slots.prune();
                #[cfg(feature = "http2")]
                worker.shared_upstreams().expire(limit);
            }
            Event::Phase => {}
        }
    }
    drop(acceptors);
    worker.registry.drain_all();
    loop {
        tokio::select! {
            joined = connections.join_next() => if joined.is_none() { break },
            changed = phase.changed() => if changed.is_err() || *phase.borrow() == Phase::Stop {
                connections.shutdown().await;
                break;
            },
        }
    }
    worker.pool().clear(&worker.counters);
    // Their tasks hold the worker, and the worker their handles: somebody has to let go first, or
    // on a runtime that outlives the proxy they would stay for ever.
    #[cfg(feature = "http2")]
    worker.shared_upstreams().clear();
    #[cfg(feature = "http3")]
    worker.quic.flush().await;
    let _ = done.send(true);
}

fn open(acceptors: &mut Vec<Acceptor>, port: Arc<Port>, socket: Socket) {
    match Acceptor::new(port, socket) {
        Ok(acceptor) => acceptors.push(acceptor),
        Err(e) => error!(error = %e, "a listener can't be used"),
    }
}

#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart in the same breath, never stored"
)]
enum Event {
    Accepted(Accepted),
    Failed(io::Error),
    Mail,
    Housekeeping,
    Phase,
}

async fn next_event(
    worker: &Worker,
    acceptors: &mut [Acceptor],
    phase: &mut watch::Receiver<Phase>,
    housekeeping: &mut tokio::time::Interval,
    delayed: &mut bool,
) -> Event {
    tokio::select! {
        biased;
        _ = phase.changed() => Event::Phase,
        () = worker.mail.arrived.notified() => Event::Mail,
        _ = housekeeping.tick() => Event::Housekeeping,
        accepted = accept(worker, acceptors, delayed) => match accepted {
            Ok(accepted) => Event::Accepted(accepted),
            Err(e) => Event::Failed(e),
        },
    }
}

/// Accepts once there is a place free. What a scanner gives back has a quarter more: the clients that it comes from
/// have their places already, and would wait for it.
async fn accept(
    worker: &Worker,
    acceptors: &mut [Acceptor],
    delayed: &mut bool,
) -> io::Result<Accepted> {
    let shared = &worker.shared;
    loop {
        let free = shared.slot_free.notified();
        let open = shared.connections.load(Ordering::Relaxed);
        if open < shared.limit {
            break;
        }
        if !std::mem::replace(delayed, true) {
            count(&worker.counters.connections_delayed);
            warn!(
                limit = shared.limit,
                "the connection limit is reached: clients wait"
            );
        }
        let reserve = shared
            .limit
            .saturating_add(shared.limit / 4)
            .saturating_add(1);
        let returned = async {
            match open < reserve {
                true => first_of(acceptors, Acceptor::takes_back).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = returned => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                return accepted;
            }
            () = free => {}
        }
    }
    let accepted = first_of(acceptors, |_| true).await;
    *delayed = false;
    // Counted here, and not before: waiting to accept can be given up at any time.
    shared.connections.fetch_add(1, Ordering::Relaxed);
    accepted
}

/// The next connection of any of the listeners. They take turns at being asked first, so that none starves another.
async fn first_of(
    acceptors: &mut [Acceptor],
    of: impl Fn(&Acceptor) -> bool,
) -> io::Result<Accepted> {
    let accepted = std::future::poll_fn(|cx| {
        for (at, acceptor) in acceptors.iter_mut().enumerate() {
            if of(acceptor)
                && let std::task::Poll::Ready(result) = acceptor.poll_accept(cx)
            {
                return std::task::Poll::Ready((at, result));
            }
        }
        std::task::Poll::Pending
    });
    let (at, result) = accepted.await;
    acceptors.rotate_left((at + 1) % acceptors.len().max(1));
    result
}

fn release_slot(shared: &Shared) {
    let before = shared.connections.fetch_sub(1, Ordering::Relaxed);
    if before >= shared.limit {
        shared.slot_free.notify_waiters();
    }
}

/// Errors of one connection, not of the listener.
fn is_transient(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NotConnected
    )
}

/// One connection, from accept to close.
fn serve(
    worker: Arc<Worker>,
    live: Arc<Live>,
    accepted: Accepted,
) -> impl Future<Output = ()> + Send {
    let shared = &worker.shared;
    let id = ConnectionId(shared.next_connection.fetch_add(1, Ordering::Relaxed));
    let info = Arc::new(ConnectionInfo::new(
        id,
        accepted.client,
        accepted.local,
        shared.resolver.clone(),
    ));
    let mode = accepted.port.mode.load_full();
    info.set_mode(mode.name());
    let control = worker.registry.add(id);
    if shared.draining.load(Ordering::Relaxed) {
        control.drain();
    }
    count(&worker.counters.connections_total);
    count(&worker.counters.connections_active);
    shared.hooks.connection_opened(&info, &worker.counters);
    // Closes on every way out, cancellation included.
    let closer = Closer {
        worker: Arc::clone(&worker),
        info: Arc::clone(&info),
        isolated: live.config.pool.mode == PoolMode::Mirror
            || live.config.proxy_protocol.send.is_some(),
    };
    let mut session = Session {
        worker,
        live,
        info,
        mode,
        port: accepted.port.id,
        reached: accepted.reached,
        timer: Timer::default(),
        control,
        acting_for: None,
    };
    async move {
        let _closer = closer;
        match accepted.came {
            Came::Stream(client) => {
                stages::serve(&mut session, client, accepted.original).await;
            }
            #[cfg(feature = "http3")]
            Came::Quic(incoming) => {
                if let Some(fixed) = stages::fixed_http3(&session) {
                    crate::h3::serve(&mut session, incoming, fixed).await;
                }
            }
        }
    }
}

struct Closer {
    worker: Arc<Worker>,
    info: Arc<ConnectionInfo>,
    /// Whether it had upstream connections of its own, which end with it.
    isolated: bool,
}

impl Drop for Closer {
    fn drop(&mut self) {
        let worker = &self.worker;
        worker.registry.remove(self.info.id);
        if self.isolated {
            worker.pool().drop_isolated(self.info.id, &worker.counters);
            #[cfg(feature = "http2")]
            worker.shared_upstreams().drop_isolated(self.info.id);
        }
        uncount(&worker.counters.connections_active);
        worker
            .shared
            .hooks
            .connection_closed(&self.info, &worker.counters);
        release_slot(&worker.shared);
    }
}

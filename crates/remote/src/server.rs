//! Listens, counts, limits, and ends in an orderly way.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tollgate_wire::http1::HeadLimits;

use crate::connection::Connection;
use crate::http::{self, Access};
use crate::icap;
use crate::judge::Judge;

/// What a [`Server`] takes, and how long it waits.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Connections at once; more are answered 503 and closed. Default: 256.
    pub connections: usize,
    /// A head, of ICAP or HTTP. Default: 64 KiB, 256 lines.
    pub head: HeadLimits,
    /// A body that has to be held until it is judged. A larger one is refused, or judged in pieces where the screen fails
    /// open. Default: 32 MiB.
    pub body: u64,
    /// All bodies that are held, together; at the limit the answer is 503. Default: 256 MiB.
    pub memory: u64,
    /// The preview that ICAP clients are told to send. Default: 4096 bytes.
    pub preview: u64,
    /// How long a connection may wait for its next request. Default: 60 s.
    pub idle: Duration,
    /// How long a head may take, from its first byte. Default: 30 s.
    pub head_time: Duration,
    /// How long a body may make no progress, either way. Default: 60 s.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            head: HeadLimits::default(),
            body: 32 << 20,
            memory: 256 << 20,
            preview: 4096,
            idle: Duration::from_secs(60),
            head_time: Duration::from_secs(30),
            stall: Duration::from_secs(60),
        }
    }
}

/// Serves a [`Judge`] to others.
///
/// ```
/// use std::sync::Arc;
/// use tokio::net::TcpListener;
/// use tollgate_remote::{Judge, Limits, Server};
/// use tollgate_screen::scan::Scanner;
/// use tollgate_screen::{Screen, ScreenConfig};
///
/// # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// let scanner = Scanner::builtin();
/// let screen = Screen::new(scanner.clone(), ScreenConfig::default());
/// let judge = Judge::new(screen, scanner, Arc::new(|verdict| tracing::warn!("{}", verdict.reason)));
/// let tag = judge.tag(&[]);
/// let server = Server::new(judge, Limits::default()).icap(TcpListener::bind("127.0.0.1:0").await?, tag);
/// let ended = server.run(async {}, std::time::Duration::ZERO).await;
/// assert_eq!(ended.connections, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    judge: Judge,
    limits: Limits,
    icap: Option<TcpListener>,
    tag: String,
    http: Option<TcpListener>,
    access: Access,
}

/// Why a listener can't be used.
pub type ServerError = io::Error;

/// What a server has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Connections that it took.
    pub connections: u64,
    /// Connections that it turned away.
    pub turned_away: u64,
    /// Connections that were cut at the end.
    pub cut: u64,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) judge: Judge,
    pub(crate) limits: Limits,
    pub(crate) tag: String,
    pub(crate) access: Access,
    held: AtomicU64,
}

/// A body's share of what is held.
pub(crate) struct Held<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Shared {
    pub(crate) fn hold_nothing(&self) -> Held<'_> {
        Held {
            shared: self,
            bytes: 0,
        }
    }
}

impl Held<'_> {
    /// Takes more; `false` if there is no room.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let before = self.shared.held.fetch_add(bytes, Ordering::Relaxed);
        self.bytes = self.bytes.saturating_add(bytes);
        before.saturating_add(bytes) <= self.shared.limits.memory
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.shared.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Server {
    /// A server that listens nowhere yet.
    #[must_use]
    pub fn new(judge: Judge, limits: Limits) -> Self {
        Self {
            judge,
            limits,
            icap: None,
            tag: String::new(),
            http: None,
            access: Access::default(),
        }
    }

    /// Speaks ICAP there. `tag` is the `ISTag`: see [`Judge::tag`].
    #[must_use]
    pub fn icap(mut self, listener: TcpListener, tag: String) -> Self {
        self.icap = Some(listener);
        self.tag = tag;
        self
    }

    /// Answers `POST /scan` there: see [`scan`](crate::scan).
    ///
    /// # Errors
    /// An address that can be reached from elsewhere, without a token.
    pub fn http(mut self, listener: TcpListener, access: Access) -> Result<Self, ServerError> {
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() && !access.has_token() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{address} can be reached from elsewhere: it needs a token"),
            ));
        }
        self.http = Some(listener);
        self.access = access;
        Ok(self)
    }

    /// Where it speaks HTTP.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref()?.local_addr().ok()
    }

    /// Where it speaks ICAP.
    #[must_use]
    pub fn icap_address(&self) -> Option<SocketAddr> {
        self.icap.as_ref()?.local_addr().ok()
    }

    /// Serves until `stop` is done. Then nobody is taken any more, connections that wait for a request are closed, and
    /// others may end within `drain`.
    pub async fn run(self, stop: impl Future<Output = ()>, drain: Duration) -> Ended {
        let shared = Arc::new(Shared {
            judge: self.judge,
            limits: self.limits,
            tag: self.tag,
            access: self.access,
            held: AtomicU64::new(0),
        });
        let (ending, phase) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut ended = Ended::default();
        tokio::pin!(stop);
        loop {
            let (stream, is_icap) = tokio::select! {
                () = &mut stop => break,
                Some(_) = tasks.join_next() => continue,
                stream = accept(self.icap.as_ref()) => (stream, true),
                stream = accept(self.http.as_ref()) => (stream, false),
            };
            // Ended ones that nobody asked for yet take no room.
            while tasks.try_join_next().is_some() {}
            if tasks.len() >= shared.limits.connections {
                ended.turned_away += 1;
                turn_away(stream, if is_icap { icap::BUSY } else { http::BUSY });
                continue;
            }
            ended.connections += 1;
            let (connection, shared, phase) =
                (Connection::new(stream), Arc::clone(&shared), phase.clone());
            if is_icap {
                tasks.spawn(icap::serve(connection, shared, phase));
            } else {
                tasks.spawn(http::serve(connection, shared, phase));
            }
        }
        drop((self.icap, self.http));
        let _ = ending.send(true);
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(drain, all).await.is_err() {
            ended.cut = tasks.len() as u64;
        }
        tasks.shutdown().await;
        ended
    }
}

/// The next connection; never, where there is no listener.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // The client has gone, or there are no descriptors: others may end meanwhile.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A word for who comes when there is no room. Nothing was sent on this connection, so that it needn't wait.
fn turn_away(stream: TcpStream, answer: &[u8]) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(answer);
    }
}

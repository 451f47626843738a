//! Building, starting and stopping.

use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::timeout_at;
use tollgate_engine::Proxy;

use super::adapter::Adapter;
use super::ca::{self, CertificateAuthority};
use super::config::MitmConfig;
use super::dispatch::{Live, Shared};
use super::error::MitmError;
use super::handler::InterceptHandler;
use super::types::ProxyMetrics;

/// Makes a [`MitmProxy`].
pub struct MitmProxyBuilder<H> {
    config: MitmConfig,
    handler: H,
    authority: Option<CertificateAuthority>,
}

impl<H: InterceptHandler> MitmProxyBuilder<H> {
    /// From a configuration and a handler.
    pub fn new(config: MitmConfig, handler: H) -> Self {
        Self {
            config,
            handler,
            authority: None,
        }
    }

    /// Uses this authority. The configured files are then neither read nor written.
    #[must_use]
    pub fn with_ca(mut self, ca: CertificateAuthority) -> Self {
        self.authority = Some(ca);
        self
    }

    /// Checks the configuration, and loads the authority or makes it.
    ///
    /// # Errors
    /// [`MitmError::InvalidConfig`], [`MitmError::CaLoadFailed`], [`MitmError::CaOperationFailed`].
    pub fn build(self) -> Result<MitmProxy<H>, MitmError> {
        let scope = self.config.validate()?;
        let authority = match self.authority {
            Some(ca) => ca
                .to_native()
                .map_err(|e| MitmError::CaLoadFailed(e.to_string()))?,
            None => ca::open_or_create(&self.config.tls)?,
        };
        let engine = self.config.to_engine();
        let shared = Arc::new(Shared::new(Live {
            config: self.config,
            scope,
        }));
        let proxy = Proxy::builder()
            .config(engine)
            .authority(Arc::new(authority))
            .interceptor(Adapter::new(Arc::new(self.handler), Arc::clone(&shared)))
            .build()?;
        Ok(MitmProxy {
            proxy,
            shared,
            handler: PhantomData,
        })
    }
}

/// A proxy that has not been started.
pub struct MitmProxy<H> {
    proxy: Proxy,
    shared: Arc<Shared>,
    handler: PhantomData<fn() -> H>,
}

impl<H: InterceptHandler> MitmProxy<H> {
    /// Serves until something fatal happens or the future is dropped.
    ///
    /// # Errors
    /// [`MitmError::Io`], e.g. when the address is in use.
    pub async fn run(self) -> Result<(), MitmError> {
        self.shared.set_runtime(runtime()?);
        Ok(self.proxy.run().await?)
    }

    /// Starts to serve. The listeners accept connections when it returns. The handler's asynchronous
    /// methods run on the runtime that this is called on.
    ///
    /// # Errors
    /// [`MitmError::Io`], e.g. when the address is in use.
    pub async fn start(self) -> Result<MitmProxyHandle, MitmError> {
        self.shared.set_runtime(runtime()?);
        Ok(MitmProxyHandle {
            handle: self.proxy.start().await?,
            shared: self.shared,
            reloading: Mutex::new(()),
        })
    }
}

/// A running proxy.
pub struct MitmProxyHandle {
    handle: tollgate_engine::Handle,
    shared: Arc<Shared>,
    /// Two reloads at once must leave engine and handler with the same configuration.
    reloading: Mutex<()>,
}

impl MitmProxyHandle {
    /// The address that is listened at: tells the port where the configuration said 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.handle.local_addr()
    }

    /// Changes the configuration for connections to come; open ones keep what was decided for them.
    /// (The original could change the interception scope only.)
    ///
    /// # Errors
    /// [`MitmError::InvalidConfig`] when the configuration is wrong, or changes what can't change while
    /// the proxy runs (`bind`, `unix_socket_path`, the authority's paths, and
    /// `max_connections_per_host` where it changes the number of workers). Nothing has changed then.
    #[expect(
        clippy::unused_async,
        reason = "the surface that this stands for has an async function here"
    )]
    pub async fn reload(&self, config: MitmConfig) -> Result<(), MitmError> {
        let scope = config.validate()?;
        let _one = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let old = self.shared.live();
        if (&old.config.tls.ca_cert_path, &old.config.tls.ca_key_path)
            != (&config.tls.ca_cert_path, &config.tls.ca_key_path)
        {
            return Err(MitmError::InvalidConfig(
                "the authority can't change while the proxy runs".to_owned(),
            ));
        }
        let (before, after) = (old.config.to_engine(), config.to_engine());
        if before.listen != after.listen {
            return Err(MitmError::InvalidConfig(
                "`bind` and `unix_socket_path` can't change while the proxy runs".to_owned(),
            ));
        }
        if before != after {
            self.handle.reload(after)?;
        }
        self.shared.set_live(Live { config, scope });
        Ok(())
    }

    /// The configuration in force.
    #[expect(
        clippy::unused_async,
        reason = "the surface that this stands for has an async function here"
    )]
    pub async fn current_config(&self) -> MitmConfig {
        self.shared.live().config.clone()
    }

    /// A snapshot of the counters.
    pub fn metrics(&self) -> ProxyMetrics {
        metrics(&self.handle.metrics(), &self.shared)
    }

    /// Stops accepting, waits until connections have ended and the handler has had its last calls, and
    /// closes what is left after `timeout`. When it returns, nothing is relayed any more.
    ///
    /// # Errors
    /// [`MitmError::Io`] of kind `TimedOut` when something had to be closed.
    pub async fn shutdown(self, timeout: Duration) -> Result<(), MitmError> {
        let deadline = Instant::now() + timeout;
        let end = self.handle.shutdown(timeout).await;
        // Those that were just closed have their last calls to come.
        let deadline = deadline.max(Instant::now() + Duration::from_millis(100));
        let told = timeout_at(deadline.into(), self.shared.drained()).await;
        if end.drained && told.is_ok() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "timed out waiting for proxy shutdown",
            )
            .into())
        }
    }
}

fn runtime() -> Result<Handle, MitmError> {
    Handle::try_current().map_err(|e| MitmError::Io(io::Error::other(e.to_string())))
}

fn metrics(engine: &tollgate_engine::Metrics, shared: &Shared) -> ProxyMetrics {
    use std::sync::atomic::{AtomicU64, Ordering};
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let upstream = |classes: &[&str]| {
        engine
            .failures
            .iter()
            .filter(|(side, class, _)| *side == "upstream" && classes.contains(class))
            .map(|(_, _, count)| count)
            .sum()
    };
    let counts = &shared.counts;
    ProxyMetrics {
        active_connections: engine.connections_active,
        total_connections: engine.connections_total,
        handler_panic_count: get(&counts.panics),
        handler_timeout_count: engine.hold_timeouts + get(&counts.timeouts),
        upstream_connect_error_count: upstream(&["dns", "connect", "tls"]),
        upstream_timeout_count: upstream(&["timeout"]),
        process_attribution_failure_count: get(&counts.attribution_failures),
        process_attribution_timeout_count: get(&counts.attribution_timeouts),
        dropped_dispatch_work_count: get(&counts.dropped),
        ..ProxyMetrics::default()
    }
}

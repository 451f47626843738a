//! The proxy under test, and ways to talk through it.

use std::sync::Arc;
use std::time::Duration;

use tollgate_engine::{Config, Handle, Listen, Metrics, Proxy, ProxyError, Roots, Shutdown};
use tollgate_flow::Interceptor;

use super::origin::Origin;
use super::tls::{client_config, origin_authority};
use super::wire::Wire;

/// A proxy that runs.
pub struct TestProxy {
    pub handle: Handle,
}

/// One worker (so that the pool is one), on a free port, trusting the origins of the tests.
pub fn config() -> Config {
    let mut config = Config::default();
    config.listen = vec![Listen::Tcp("127.0.0.1:0".parse().unwrap()).into()];
    config.workers = 1;
    config.tls.roots = Roots::Files(vec![origin_authority().pem.clone()]);
    config
}

/// Starts a proxy without interceptors.
pub fn start(config: Config) -> TestProxy {
    start_with(config, [])
}

/// Starts a proxy.
pub fn start_with<const N: usize>(
    config: Config,
    interceptors: [Arc<dyn Interceptor>; N],
) -> TestProxy {
    try_start(config, interceptors).unwrap()
}

/// Starts a proxy, or says why it can't.
pub fn try_start<const N: usize>(
    config: Config,
    interceptors: [Arc<dyn Interceptor>; N],
) -> Result<TestProxy, ProxyError> {
    let mut builder = Proxy::builder().config(config);
    for interceptor in interceptors {
        builder = builder.shared_interceptor(interceptor);
    }
    let handle = block_on(builder.build()?.start())?;
    Ok(TestProxy { handle })
}

/// Runs a future on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

impl TestProxy {
    /// A connection to the proxy that has said nothing yet.
    pub fn plain(&self) -> Wire {
        Wire::connect(self.handle.local_addr())
    }

    /// A connection after a CONNECT that was answered 200.
    #[track_caller]
    pub fn tunnel(&self, authority: &str) -> Wire {
        let mut wire = self.plain();
        let response = wire.exchange(connect(authority)).unwrap();
        assert_eq!(response.status(), 200, "{}", response.text());
        wire
    }

    /// A connection with TLS to the origin, through CONNECT: `http/1.1` and our authority.
    #[track_caller]
    pub fn tls(&self, origin: &Origin) -> Wire {
        self.tunnel(&origin.authority())
            .tls_client(self.client_config(), "localhost")
            .unwrap()
    }

    /// What a client needs that trusts this proxy.
    pub fn client_config(&self) -> Arc<rustls::ClientConfig> {
        client_config(&[self.handle.authority().cert_der().clone()])
    }

    /// The counters.
    pub fn metrics(&self) -> Metrics {
        self.handle.metrics()
    }

    /// Stops it.
    pub fn shutdown(self, timeout: Duration) -> Shutdown {
        block_on(self.handle.shutdown(timeout))
    }
}

/// A CONNECT request.
fn connect(authority: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")
}

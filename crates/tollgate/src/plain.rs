//! The proxy without `tls-intercept`: the same names, and nothing opens TLS.

use std::sync::Arc;

use tollgate_engine::{Action, Config, Handle, ProxyError, Runtime};
use tollgate_flow::{ClientHello, ConnectionInfo, Interceptor, TlsDecision};

/// A proxy that relays HTTP and passes TLS on unopened.
///
/// With the feature `tls-intercept` this is the engine's own type, which opens TLS.
pub struct Proxy(tollgate_engine::Proxy);

/// Makes a [`Proxy`].
pub struct ProxyBuilder(tollgate_engine::ProxyBuilder);

impl Proxy {
    /// Begins to put a proxy together.
    pub fn builder() -> ProxyBuilder {
        ProxyBuilder(tollgate_engine::Proxy::builder())
            .config(Config::default())
            // Asked first: nobody after it can decide to open TLS.
            .interceptor(NeverOpen)
    }

    /// Starts, and serves until the future is dropped.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn run(self) -> Result<(), ProxyError> {
        self.0.run().await
    }

    /// Starts. When this returns, every listener accepts.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub async fn start(self) -> Result<Handle, ProxyError> {
        self.0.start().await
    }
}

impl ProxyBuilder {
    /// What the proxy is told. Where its policy would open TLS, it is passed on.
    #[must_use]
    pub fn config(self, mut config: Config) -> Self {
        if config.policy.default == Action::Intercept {
            config.policy.default = Action::Tunnel;
        }
        Self(self.0.config(config))
    }

    /// Adds an interceptor, after those that were added before.
    #[must_use]
    pub fn interceptor(self, interceptor: impl Interceptor) -> Self {
        Self(self.0.interceptor(interceptor))
    }

    /// Adds an interceptor that the caller keeps a hold on.
    #[must_use]
    pub fn shared_interceptor(self, interceptor: Arc<dyn Interceptor>) -> Self {
        Self(self.0.shared_interceptor(interceptor))
    }

    /// Where the work is done. Default: [`Runtime::Own`].
    #[must_use]
    pub fn runtime(self, runtime: Runtime) -> Self {
        Self(self.0.runtime(runtime))
    }

    /// Checks the configuration, and loads what it names.
    ///
    /// # Errors
    /// See [`ProxyError`].
    pub fn build(self) -> Result<Proxy, ProxyError> {
        self.0.build().map(Proxy)
    }
}

/// Passes TLS on, whatever a configuration that comes later says.
struct NeverOpen;

impl Interceptor for NeverOpen {
    fn tls(&self, _: &ClientHello, _: &ConnectionInfo) -> TlsDecision {
        TlsDecision::Tunnel
    }
}

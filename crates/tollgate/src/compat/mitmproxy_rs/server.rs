//! Building and running.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use tollgate_ca::{Authority, CaError};
use tollgate_engine::{Handle, Listen, ProxyError};

use super::ResponseInterceptor;
use super::adapter::Adapter;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address to listen at. Default: `127.0.0.1`. `localhost` is understood.
    pub proxy_host: String,
    /// The port to listen at. Default: 8080. 0 takes a free one.
    pub proxy_port: u16,
    /// The folder of the authority; made if it does not exist. Default: `~/.mitmproxy-rs/certs`.
    pub cert_store_path: PathBuf,
    /// Accept any certificate from any origin. Default: false.
    pub ssl_insecure: bool,
    /// Remove `If-None-Match` and `If-Modified-Since` from requests, so that origins send what they have.
    /// Default: false.
    pub anticache: bool,
    /// Ask origins not to compress (`Accept-Encoding: identity`). Default: false.
    pub anticomp: bool,
    /// The most of one body that an interceptor gets as `content`. Longer responses pass in pieces.
    /// Default: 32 MiB.
    pub max_body_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            proxy_host: "127.0.0.1".to_owned(),
            proxy_port: 8080,
            cert_store_path: PathBuf::from("~/.mitmproxy-rs/certs"),
            ssl_insecure: false,
            anticache: false,
            anticomp: false,
            max_body_bytes: 32 * 1024 * 1024,
        }
    }
}

/// Why a proxy can't be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The host to listen at is not an IP address.
    #[error("listen host {0:?} is not an IP address")]
    ListenHost(String),
    /// The authority can't be loaded or made.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The proxy can't be made.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

/// Makes a [`Proxy`].
#[derive(Default)]
pub struct ProxyBuilder {
    config: Config,
    interceptor: Option<Arc<dyn ResponseInterceptor>>,
}

impl ProxyBuilder {
    /// With the default configuration and no interceptor.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`Config::proxy_host`].
    #[must_use]
    pub fn listen_host(mut self, host: impl Into<String>) -> Self {
        self.config.proxy_host = host.into();
        self
    }

    /// See [`Config::proxy_port`].
    #[must_use]
    pub fn listen_port(mut self, port: u16) -> Self {
        self.config.proxy_port = port;
        self
    }

    /// See [`Config::cert_store_path`].
    #[must_use]
    pub fn cert_store_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.cert_store_path = path.into();
        self
    }

    /// See [`Config::ssl_insecure`].
    #[must_use]
    pub fn ssl_insecure(mut self, insecure: bool) -> Self {
        self.config.ssl_insecure = insecure;
        self
    }

    /// Replaces the whole configuration.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// The interceptor. A second one replaces the first.
    #[must_use]
    pub fn interceptor(mut self, interceptor: impl ResponseInterceptor) -> Self {
        self.interceptor = Some(Arc::new(interceptor));
        self
    }

    /// Checks the configuration, and loads the authority or makes it.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub fn build(self) -> Result<Proxy, BuildError> {
        build(&self.config, self.interceptor)
    }
}

/// A proxy that has not been started.
pub struct Proxy {
    proxy: tollgate_engine::Proxy,
}

impl Proxy {
    /// Serves until something fatal happens or the future is dropped.
    ///
    /// # Errors
    /// A [`ProxyError`], e.g. when the address is in use.
    pub async fn run(self) -> Result<(), Box<dyn Error>> {
        Ok(self.proxy.run().await?)
    }

    /// Starts to serve; the listener accepts connections when it returns.
    ///
    /// # Errors
    /// E.g. when the address is in use.
    pub async fn start(self) -> Result<Handle, ProxyError> {
        self.proxy.start().await
    }
}

/// A proxy from a configuration.
pub struct ProxyServer {
    config: Arc<Config>,
    interceptor: Option<Arc<dyn ResponseInterceptor>>,
}

impl ProxyServer {
    /// From a configuration, plain or shared.
    pub fn new(config: impl Into<Arc<Config>>) -> Self {
        Self {
            config: config.into(),
            interceptor: None,
        }
    }

    /// Adds the interceptor. A second one replaces the first.
    #[must_use]
    pub fn interceptor(mut self, interceptor: impl ResponseInterceptor) -> Self {
        self.interceptor = Some(Arc::new(interceptor));
        self
    }

    /// Serves until something fatal happens or the future is dropped.
    ///
    /// # Errors
    /// A [`BuildError`] or a [`ProxyError`].
    pub async fn run(&self) -> Result<(), Box<dyn Error>> {
        self.build()?.run().await
    }

    /// Starts to serve; the listener accepts connections when it returns.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn start(&self) -> Result<Handle, BuildError> {
        Ok(self.build()?.start().await?)
    }

    fn build(&self) -> Result<Proxy, BuildError> {
        build(&self.config, self.interceptor.clone())
    }
}

fn build(
    config: &Config,
    interceptor: Option<Arc<dyn ResponseInterceptor>>,
) -> Result<Proxy, BuildError> {
    let host: IpAddr = match config.proxy_host.trim_matches(['[', ']']) {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        host => host
            .parse()
            .map_err(|_| BuildError::ListenHost(config.proxy_host.clone()))?,
    };
    let mut engine = tollgate_engine::Config::default();
    engine.listen = vec![Listen::Tcp(SocketAddr::new(host, config.proxy_port)).into()];
    engine.tls.insecure = config.ssl_insecure;
    engine.limits.body_limit = config.max_body_bytes;
    let proxy = tollgate_engine::Proxy::builder()
        .authority(Arc::new(Authority::new(&config.cert_store_path)?))
        .config(engine)
        .interceptor(Adapter::new(interceptor, config))
        .build()?;
    Ok(Proxy { proxy })
}

//! TLS towards clients: which leaf, which versions, which protocol.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tollgate_flow::TlsVersion;

use crate::config::{ConfigError, TlsVersions};

/// Makes the configuration of one client's handshake from a template: a template holds what is
/// the same for all (suites, ticket keys), so that a connection costs a few reference counts.
pub(crate) struct ClientSide {
    /// By highest version: TLS 1.2 only, and everything that is allowed.
    tls12: Option<ServerConfig>,
    all: ServerConfig,
}

impl ClientSide {
    pub fn new(versions: TlsVersions) -> Result<Self, ConfigError> {
        let all = template(&protocol_versions(versions))?;
        let tls12 = if versions.min == TlsVersion::Tls12 {
            let mut config = template(&[&rustls::version::TLS12])?;
            config.ticketer = Arc::clone(&all.ticketer);
            Some(config)
        } else {
            None
        };
        Ok(Self { tls12, all })
    }

    /// The configuration for one handshake. `cap` is the origin's version: a client isn't told
    /// that TLS 1.3 reaches an origin which only speaks 1.2.
    pub fn config(
        &self,
        leaf: Arc<CertifiedKey>,
        alpn: Option<&[u8]>,
        cap: Option<TlsVersion>,
    ) -> Arc<ServerConfig> {
        let template = match (&self.tls12, cap) {
            (Some(tls12), Some(TlsVersion::Tls12)) => tls12,
            _ => &self.all,
        };
        let mut config = template.clone();
        config.alpn_protocols = alpn.map(<[u8]>::to_vec).into_iter().collect();
        config.cert_resolver = Arc::new(Single(leaf));
        Arc::new(config)
    }
}

#[cfg(feature = "http3")]
impl ClientSide {
    /// The configuration for a handshake over QUIC, whose leaf is found while it goes on. `None`:
    /// QUIC is TLS 1.3 only, and that is not allowed.
    pub fn quic(
        &self,
        resolver: Arc<dyn ResolvesServerCert>,
        alpn: &[u8],
    ) -> Option<quinn::crypto::rustls::QuicServerConfig> {
        let mut config = self.all.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.cert_resolver = resolver;
        // Only fails where the version is missing.
        config.try_into().ok()
    }
}

/// The rustls names of the versions within bounds.
pub(crate) fn protocol_versions(versions: TlsVersions) -> Vec<&'static SupportedProtocolVersion> {
    [
        (TlsVersion::Tls13, &rustls::version::TLS13),
        (TlsVersion::Tls12, &rustls::version::TLS12),
    ]
    .into_iter()
    .filter(|(version, _)| (versions.min..=versions.max).contains(version))
    .map(|(_, supported)| supported)
    .collect()
}

fn template(versions: &[&'static SupportedProtocolVersion]) -> Result<ServerConfig, ConfigError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|e| ConfigError::Tls(e.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(NoCertificate));
    config.enable_secret_extraction = true;
    config.send_tls13_tickets = 1;
    config.max_early_data_size = 0;
    config.ticketer =
        rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|e| ConfigError::Tls(e.to_string()))?;
    Ok(config)
}

/// The one cryptography of this crate, asked for by name: an embedding program may have installed
/// another as rustls' process default.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[derive(Debug)]
struct Single(Arc<CertifiedKey>);

impl ResolvesServerCert for Single {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Stands in a template, which is never used for a handshake itself.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

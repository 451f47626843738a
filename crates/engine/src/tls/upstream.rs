//! TLS towards origins: whom to trust, what to offer, which client certificate to show.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tollgate_flow::{CertificateProblem, Target};

use crate::config::{ConfigError, Roots, TlsConfig};
use crate::tls::client_side::{protocol_versions, provider};
use crate::tls::failure::certificate_problem;

/// Sessions kept for resumption, for each distinct configuration.
const SESSIONS: usize = 1024;
/// Distinct client configurations kept (they differ by ALPN offer and client certificate).
const CONFIGS: usize = 256;

/// Makes and keeps the configurations of handshakes with origins.
pub(crate) struct Upstream {
    tls: TlsConfig,
    verifier: Arc<WebPkiServerVerifier>,
    configs: Mutex<HashMap<ConfigKey, Arc<ClientConfig>>>,
}

/// What configurations differ by: the ALPN offer, and the file of the client certificate.
type ConfigKey = (Vec<Vec<u8>>, Option<PathBuf>);

/// What one handshake is made with.
pub(crate) struct UpstreamHandshake {
    pub config: Arc<ClientConfig>,
    /// Says, after the handshake, whether the certificate was only accepted by exception.
    pub exception: Option<Arc<Noted>>,
}

/// What one handshake over QUIC is made with.
#[cfg(feature = "http3")]
pub(crate) struct QuicHandshake {
    pub config: ClientConfig,
    /// Says, after the handshake, what was wrong with the certificate.
    pub noted: Arc<Noted>,
}

impl Upstream {
    /// Loads roots and client certificates; fails on any file that can't be used.
    pub fn new(tls: &TlsConfig) -> Result<Self, ConfigError> {
        let mut roots = RootCertStore::empty();
        match &tls.roots {
            Roots::Platform => {
                let found = rustls_native_certs::load_native_certs();
                let (added, _) = roots.add_parsable_certificates(found.certs);
                if added == 0 {
                    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
                }
            }
            Roots::Files(paths) => {
                for path in paths {
                    add_roots(&mut roots, path)?;
                }
            }
        }
        for path in &tls.extra_roots {
            add_roots(&mut roots, path)?;
        }
        if let Some(path) = tls.client_certs.as_deref().filter(|p| !p.is_dir()) {
            load_client_cert(path)?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| ConfigError::Tls(e.to_string()))?;
        Ok(Self {
            tls: tls.clone(),
            verifier,
            configs: Mutex::new(HashMap::new()),
        })
    }

    /// The configuration for a handshake with `target`, offering these protocols.
    pub fn handshake(
        &self,
        target: &Target,
        alpn: &[Vec<u8>],
    ) -> Result<UpstreamHandshake, ConfigError> {
        let client_cert = self.client_cert(target);
        let key = (alpn.to_vec(), client_cert);
        let cached = self
            .configs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        let config = match cached {
            Some(config) => config,
            None => {
                let config = Arc::new(self.build(alpn, key.1.as_deref())?);
                let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
                if configs.len() >= CONFIGS {
                    // Only loses sessions that could have been resumed.
                    configs.clear();
                }
                configs.insert(key, Arc::clone(&config));
                config
            }
        };
        if !self.is_exception(target) {
            return Ok(UpstreamHandshake {
                config,
                exception: None,
            });
        }
        let exception = self.noted(true);
        let mut config = ClientConfig::clone(&config);
        config
            .dangerous()
            .set_certificate_verifier(Arc::clone(&exception) as Arc<dyn ServerCertVerifier>);
        // A session resumed without verification must not serve a verified connection.
        config.resumption = Resumption::disabled();
        Ok(UpstreamHandshake {
            config: Arc::new(config),
            exception: Some(exception),
        })
    }

    /// The configuration for a handshake over QUIC. Its library only tells that a handshake failed:
    /// what the verification said is noted here. So no session is resumed, which rustls would only
    /// do for the same verifier.
    #[cfg(feature = "http3")]
    pub fn quic_handshake(
        &self,
        target: &Target,
        alpn: &[Vec<u8>],
    ) -> Result<QuicHandshake, ConfigError> {
        let mut config = self.build(alpn, self.client_cert(target).as_deref())?;
        let noted = self.noted(self.is_exception(target));
        config
            .dangerous()
            .set_certificate_verifier(Arc::clone(&noted) as Arc<dyn ServerCertVerifier>);
        config.resumption = Resumption::disabled();
        Ok(QuicHandshake { config, noted })
    }

    fn noted(&self, accept: bool) -> Arc<Noted> {
        Arc::new(Noted {
            verifier: Reporting(Arc::clone(&self.verifier)),
            accept,
            error: Mutex::new(None),
        })
    }

    fn is_exception(&self, target: &Target) -> bool {
        self.tls.insecure || self.tls.insecure_hosts.iter().any(|p| p.matches(target))
    }

    fn client_cert(&self, target: &Target) -> Option<PathBuf> {
        let path = self.tls.client_certs.as_ref()?;
        if !path.is_dir() {
            return Some(path.clone());
        }
        // A name that could leave the folder is no host name.
        if target.host.contains(['/', '\\']) {
            return None;
        }
        let file = path.join(format!("{}.pem", target.host));
        file.is_file().then_some(file)
    }

    fn build(
        &self,
        alpn: &[Vec<u8>],
        client_cert: Option<&Path>,
    ) -> Result<ClientConfig, ConfigError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&protocol_versions(self.tls.upstream_versions))
            .map_err(|e| ConfigError::Tls(e.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Reporting(Arc::clone(&self.verifier))));
        let mut config = match client_cert {
            Some(path) => {
                let key = load_client_cert(path)?;
                builder.with_client_cert_resolver(Arc::new(Always(Arc::new(key))))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.to_vec();
        config.enable_secret_extraction = true;
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(config)
    }
}

/// Tells a certificate that signed itself from one of an unknown authority.
#[derive(Debug)]
struct Reporting(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Reporting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
            .map_err(|error| match error {
                // webpki has another error for one that also says it is an authority.
                Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::Other(_),
                ) if is_self_signed(end_entity) => {
                    // rustls has no kind of its own for it; this one is free for applications.
                    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
                }
                other => other,
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn is_self_signed(cert: &CertificateDer<'_>) -> bool {
    use x509_parser::prelude::FromDer;
    x509_parser::certificate::X509Certificate::from_der(cert)
        .is_ok_and(|(_, cert)| cert.subject() == cert.issuer())
}

/// A verifier for one handshake: remembers what was wrong, and accepts it where the host is an
/// exception.
#[derive(Debug)]
pub(crate) struct Noted {
    verifier: Reporting,
    accept: bool,
    error: Mutex<Option<Error>>,
}

impl Noted {
    /// Why the certificate was not accepted.
    #[cfg(feature = "http3")]
    pub fn refusal(&self) -> Option<Error> {
        self.error().filter(|_| !self.accept)
    }

    /// What is wrong with the certificate that was accepted; `None` when it verified.
    pub fn problem(&self) -> Option<CertificateProblem> {
        self.error().filter(|_| self.accept).map(|e| match &e {
            Error::InvalidCertificate(e) => certificate_problem(e),
            _ => CertificateProblem::Invalid,
        })
    }

    fn error(&self) -> Option<Error> {
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ServerCertVerifier for Noted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .verifier
            .verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verified {
            Err(error) => {
                *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
                match self.accept {
                    true => Ok(ServerCertVerified::assertion()),
                    false => Err(error),
                }
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Shows the one client certificate that is configured, whatever authorities the origin names.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn add_roots(store: &mut RootCertStore, path: &Path) -> Result<(), ConfigError> {
    const WHAT: &str = "trusted authorities";
    let file_error = |path: &Path, error| ConfigError::File {
        what: WHAT,
        path: path.to_owned(),
        error,
    };
    if path.is_dir() {
        let mut files: Vec<_> = std::fs::read_dir(path)
            .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
            .map_err(|e| file_error(path, e))?;
        files.retain(|f| f.is_file());
        files.sort();
        for file in files {
            add_roots(store, &file)?;
        }
        return Ok(());
    }
    let pem = std::fs::read(path).map_err(|e| file_error(path, e))?;
    let mut added = 0;
    for cert in CertificateDer::pem_slice_iter(&pem) {
        let problem = |problem: String| ConfigError::Certificate {
            what: WHAT,
            path: path.to_owned(),
            problem,
        };
        let cert = cert.map_err(|e| problem(e.to_string()))?;
        store.add(cert).map_err(|e| problem(e.to_string()))?;
        added += 1;
    }
    if added == 0 {
        return Err(ConfigError::Certificate {
            what: WHAT,
            path: path.to_owned(),
            problem: "holds no certificate in PEM".to_owned(),
        });
    }
    Ok(())
}

fn load_client_cert(path: &Path) -> Result<CertifiedKey, ConfigError> {
    const WHAT: &str = "client certificate";
    let pem = std::fs::read(path).map_err(|error| ConfigError::File {
        what: WHAT,
        path: path.to_owned(),
        error,
    })?;
    let problem = |problem: String| ConfigError::Certificate {
        what: WHAT,
        path: path.to_owned(),
        problem,
    };
    let chain = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| problem(e.to_string()))?;
    if chain.is_empty() {
        return Err(problem("holds no certificate in PEM".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|e| problem(format!("holds no private key in PEM: {e}")))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|e| problem(e.to_string()))
}

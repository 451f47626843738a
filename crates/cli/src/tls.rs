//! TLS towards what the command itself asks: webhooks, scanners elsewhere.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Verifies by the platform's roots, or by Mozilla's where it has none, and by those in these files. `SSL_CERT_FILE` names
/// others for the platform's.
///
/// # Errors
/// A file that can't be read, or holds no certificate.
pub fn client_config(more: &[PathBuf]) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    for file in more {
        let shown = file.display();
        let read = std::fs::read(file).with_context(|| format!("can't read {shown}"))?;
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(&read) {
            let certificate = certificate.with_context(|| format!("{shown} is no PEM file"))?;
            roots
                .add(certificate)
                .with_context(|| format!("{shown} holds a certificate that can't be used"))?;
        }
        ensure!(roots.len() > before, "{shown} holds no certificate");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

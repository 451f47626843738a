//! Certificates of every kind, and TLS configurations for both ends.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;
use tollgate_ca::{Authority, AuthorityParams, LeafRequest};

/// What an origin shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// No TLS.
    Plain,
    /// For `localhost` and 127.0.0.1, from the authority that test proxies trust.
    Good,
    /// The same, but its time is over.
    Expired,
    /// The same, but its time has not come.
    NotYetValid,
    /// From the trusted authority, for `other.example`.
    WrongHost,
    /// For `localhost`, signed by itself.
    SelfSigned,
    /// For `localhost`, from an authority that nobody knows.
    UnknownIssuer,
}

/// The authorities of the origins, in a file for `roots`.
pub struct OriginAuthority {
    /// Signs what is in order.
    pub authority: Authority,
    /// Signs whatever it is asked to.
    lax: Issuer<'static, KeyPair>,
    /// Both certificates in PEM.
    pub pem: PathBuf,
    _folder: TempDir,
}

/// The authority that test proxies trust.
pub fn origin_authority() -> &'static OriginAuthority {
    static ORIGINS: LazyLock<OriginAuthority> = LazyLock::new(|| {
        let authority = generate("Origins of the tests");
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("origins.pem");
        let (lax, lax_pem) = lax_authority("Lax origins of the tests");
        std::fs::write(&pem, authority.cert_pem() + &lax_pem).unwrap();
        OriginAuthority {
            authority,
            lax,
            pem,
            _folder: folder,
        }
    });
    &ORIGINS
}

fn generate(common_name: &str) -> Authority {
    Authority::generate(&AuthorityParams {
        common_name: common_name.to_owned(),
        ..AuthorityParams::default()
    })
    .unwrap()
}

/// An authority that signs whatever it is asked to, and its certificate in PEM.
pub fn lax_authority(common_name: &str) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certified(identity: Identity) -> Arc<CertifiedKey> {
    let request = LeafRequest::new("127.0.0.1").with_server_name("localhost");
    match identity {
        Identity::Plain => panic!("a plain origin has no certificate"),
        Identity::Good => {
            origin_authority()
                .authority
                .mint(&request)
                .unwrap()
                .certified
        }
        Identity::WrongHost => {
            let request = LeafRequest::new("other.example");
            origin_authority()
                .authority
                .mint(&request)
                .unwrap()
                .certified
        }
        Identity::UnknownIssuer => {
            generate("Nobody knows me")
                .mint(&request)
                .unwrap()
                .certified
        }
        Identity::Expired => dated(2001, 2002),
        Identity::NotYetValid => dated(2150, 2151),
        Identity::SelfSigned => {
            let key = KeyPair::generate().unwrap();
            let certificate = names().self_signed(&key).unwrap();
            pair(certificate.der().clone(), &key)
        }
    }
}

fn names() -> CertificateParams {
    CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap()
}

/// A certificate for a time, in years, from the trusted authority.
fn dated(from_year: i32, to_year: i32) -> Arc<CertifiedKey> {
    let mut params = names();
    params.not_before = date_time_ymd(from_year, 1, 1);
    params.not_after = date_time_ymd(to_year, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &origin_authority().lax).unwrap();
    pair(certificate.der().clone(), &key)
}

fn pair(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(CertifiedKey::from_der(vec![certificate], key, &provider()).unwrap())
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// An origin's configuration: every TLS version, `http/1.1` for clients that offer it.
pub fn server_config(identity: Identity) -> ServerConfig {
    server_config_with(identity, rustls::ALL_VERSIONS)
}

/// The same with these versions.
pub fn server_config_with(
    identity: Identity,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Always(certified(identity))));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// A client that trusts these certificates and offers `http/1.1`.
pub fn client_config(roots: &[CertificateDer<'static>]) -> Arc<ClientConfig> {
    let mut config = client_config_with(roots, rustls::ALL_VERSIONS);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A client that trusts these certificates and speaks these versions, without ALPN.
pub fn client_config_with(
    roots: &[CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth()
}

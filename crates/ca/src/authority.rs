//! The authority: made, loaded, exported, and minting.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::der::{self, Der};
use crate::error::CaError;
use crate::files::{self, Naming};
use crate::key::{CaKey, KeyKind, LeafKey};
use crate::leaf::{
    HostCert, Identity, Leaf, LeafRequest, MAX_ORIGIN_SANS, fits_attribute, sha256, system_time,
    unix_now,
};
use crate::name::{Constraints, NameConstraint, SanName};
use crate::x509::{self, Fields, Issuer, extension};
use crate::{pem, pkcs12};

const DAY: i64 = 24 * 3600;
/// Certificates are valid from two days ago, because clocks of clients differ.
const BACKDATE: i64 = 2 * DAY;
/// From first to last second. Well below the 398 days (and falling) that browsers accept.
const LEAF_LIFETIME: i64 = 90 * DAY;

/// How a new authority shall look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityParams {
    /// The subject's common name, 1 to 64 characters.
    pub common_name: String,
    /// The subject's organization, at most 64 characters; empty for none.
    pub organization: String,
    /// Kind of key.
    pub key: KeyKind,
    /// Days from now until it expires, at least 1. An end after the year 9999 is moved there.
    pub validity_days: u32,
    /// Permitted subtrees (RFC 5280, 4.2.1.10); empty permits everything. When only DNS subtrees are given, IP addresses
    /// are excluded as a whole, and the other way round.
    pub permit: Vec<NameConstraint>,
}

impl Default for AuthorityParams {
    /// `CN=Tollgate CA, O=Tollgate`, P-256, ten years, no constraints.
    fn default() -> Self {
        Self {
            common_name: "Tollgate CA".to_owned(),
            organization: "Tollgate".to_owned(),
            key: KeyKind::default(),
            validity_days: 3650,
            permit: Vec::new(),
        }
    }
}

/// A certificate authority with its private key. Share it as `Arc<Authority>`.
pub struct Authority {
    key: CaKey,
    certificate: CertificateDer<'static>,
    issuer: Issuer,
    /// Certificates that came with it, in their order: normally from its issuer up.
    chain: Vec<CertificateDer<'static>>,
    /// Its own name constraints and those of its chain; all must permit.
    constraints: Vec<Constraints>,
    leaf_key: Mutex<Arc<LeafKey>>,
}

impl Authority {
    /// Opens the authority of a folder, or makes one there, with all defaults. A leading `~/` is the home folder.
    ///
    /// # Errors
    /// As [`open_or_create`](Self::open_or_create).
    pub fn new(dir: impl AsRef<Path>) -> Result<Self, CaError> {
        let dir = files::expand_home(dir.as_ref());
        Self::open_or_create(&dir, Naming::default(), &AuthorityParams::default())
            .map(|(authority, _)| authority)
    }

    /// Makes an authority in memory only.
    ///
    /// # Errors
    /// [`CaError::InvalidParameter`], [`CaError::Crypto`].
    pub fn generate(params: &AuthorityParams) -> Result<Self, CaError> {
        Self::generate_at(params, unix_now())
    }

    /// Opens the authority in a folder, or makes it there; the second value says whether it was made.
    ///
    /// The folder is created with mode 0700, the files atomically, those with the key with mode 0600 from the start (on
    /// Unix). Of several processes that start at once, one makes the authority and all use it. Public copies that are
    /// missing are written again. See [`Naming`] for the files.
    ///
    /// # Errors
    /// [`CaError::File`] around the reason when the file is broken, truncated, expired or not an authority, and
    /// [`CaError::Io`] when it can't be read or written. An existing file is never overwritten.
    pub fn open_or_create(
        dir: &Path,
        naming: Naming,
        params: &AuthorityParams,
    ) -> Result<(Self, bool), CaError> {
        files::open_or_create(dir, naming, params)
    }

    /// Replaces the authority of a folder with a new one. The old key file stays beside it as `*.bak-<unix time>`; it
    /// may be broken or missing. Clients must be told to trust the new certificate.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and [`CaError::Io`].
    pub fn rotate(dir: &Path, naming: Naming, params: &AuthorityParams) -> Result<Self, CaError> {
        files::rotate(dir, naming, params)
    }

    /// Loads an authority from PEM text with one private key (PKCS#1, PKCS#8 or SEC1; RSA, P-256 or P-384) and one or
    /// more certificates. The certificate that belongs to the key is the authority, the others are its chain.
    ///
    /// An expired authority loads with a warning in the log, but does not mint.
    ///
    /// # Errors
    /// [`CaError::NoKey`], [`CaError::EncryptedKey`], [`CaError::UnsupportedKey`], [`CaError::NoCertificate`],
    /// [`CaError::KeyMismatch`], [`CaError::NotAnAuthority`], [`CaError::Malformed`].
    pub fn from_pem(cert_and_key: &str) -> Result<Self, CaError> {
        let authority = Self::parse_pem(cert_and_key)?;
        authority.warn_when_expired();
        Ok(authority)
    }

    /// Loads an authority from two PEM files, or from one named twice. At most 1 MiB each.
    ///
    /// # Errors
    /// Those of [`from_pem`](Self::from_pem) and [`CaError::Io`], with the path.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, CaError> {
        let key_text = files::read(key)?;
        let ca_key = pem::read_key(&key_text)
            .and_then(|der| CaKey::from_der(&der.ok_or(CaError::NoKey)?))
            .map_err(|error| error.in_file(key))?;
        let authority = pem::read_certificates(&files::read(cert)?)
            .and_then(|certificates| Self::find_own(ca_key, certificates))
            .map_err(|error| error.in_file(cert))?;
        authority.warn_when_expired();
        Ok(authority)
    }

    /// The authority's certificate as PEM: what clients shall trust.
    pub fn cert_pem(&self) -> String {
        pem::encode("CERTIFICATE", &self.certificate)
    }

    /// The authority's certificate.
    pub fn cert_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Certificates that were loaded with it; clients get them after the leaf.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key as PEM (PKCS#8). **Secret**: who has it can impersonate any host to whoever trusts this authority.
    ///
    /// # Errors
    /// [`CaError::Crypto`].
    pub fn key_pem(&self) -> Result<String, CaError> {
        self.key
            .to_pkcs8()
            .map(|der| pem::encode("PRIVATE KEY", &der))
    }

    /// The certificate alone as PKCS#12 with an empty password, marked as trusted so that Java takes it as a trust store.
    ///
    /// # Errors
    /// [`CaError::Crypto`].
    pub fn cert_p12(&self) -> Result<Vec<u8>, CaError> {
        pkcs12::certificate(&self.certificate, &self.friendly_name())
    }

    /// Certificate and private key as PKCS#12. **Secret.** An empty password leaves the contents unencrypted, as in
    /// mitmproxy's file; another encrypts them (PBES2: PBKDF2-HMAC-SHA-256, AES-256-CBC).
    ///
    /// # Errors
    /// [`CaError::Crypto`].
    pub fn p12(&self, password: &str) -> Result<Vec<u8>, CaError> {
        pkcs12::identity(
            &self.certificate,
            &self.chain,
            &self.key.to_pkcs8()?,
            &self.friendly_name(),
            password,
        )
    }

    /// SHA-256 of the certificate's DER.
    pub fn fingerprint_sha256(&self) -> [u8; 32] {
        sha256(&self.certificate)
    }

    /// The fingerprint as browsers show it: `AA:BB:…`.
    pub fn fingerprint_hex(&self) -> String {
        self.fingerprint_sha256()
            .map(|byte| format!("{byte:02X}"))
            .join(":")
    }

    /// When the authority expires.
    pub fn not_after(&self) -> SystemTime {
        system_time(self.issuer.not_after)
    }

    /// Whether the name constraints of the authority and its chain let it sign for this host. False for what is no host.
    pub fn permits(&self, host: &str) -> bool {
        SanName::parse(host).is_ok_and(|name| self.permits_name(&name))
    }

    /// Signs a leaf: with a P-256 authority in the time of one ECDSA signature.
    ///
    /// The leaf is for server authentication, has the P-256 key that all leaves of a day share, is valid from two days
    /// ago and for 90 days in all, but never longer than the authority.
    ///
    /// # Errors
    /// [`CaError::InvalidName`] for an SNI or target that is no host; [`CaError::NotPermitted`] when name constraints
    /// forbid the SNI, or the target of a request without one; [`CaError::Expired`] for an authority past its end;
    /// [`CaError::Crypto`].
    pub fn mint(&self, request: &LeafRequest) -> Result<Leaf, CaError> {
        self.mint_at(&request.identity()?, request, unix_now())
    }

    /// Mints a leaf for one host and gives it as PEM.
    ///
    /// # Errors
    /// As [`mint`](Self::mint).
    pub fn get_cert_for_host(&self, host: &str) -> Result<HostCert, CaError> {
        let leaf = self.mint(&LeafRequest::new(host))?;
        let sections: Vec<String> = leaf
            .certified
            .cert
            .iter()
            .map(|der| pem::encode("CERTIFICATE", der))
            .collect();
        Ok(HostCert {
            cert_pem: sections.first().cloned().unwrap_or_default(),
            key_pem: leaf.key.map(|key| key.pem()).unwrap_or_default(),
            chain_pem: sections.concat(),
        })
    }

    pub(crate) fn generate_at(params: &AuthorityParams, now: i64) -> Result<Self, CaError> {
        let invalid = |name, reason| Err(CaError::InvalidParameter { name, reason });
        if !fits_attribute(&params.common_name) {
            return invalid("common_name", "it needs 1 to 64 characters");
        }
        if !params.organization.is_empty() && !fits_attribute(&params.organization) {
            return invalid("organization", "it may have 64 characters at most");
        }
        if params.validity_days == 0 {
            return invalid("validity_days", "it must be at least 1");
        }
        let key = CaKey::generate(params.key)?;
        let organization = Some(params.organization.as_str()).filter(|text| !text.is_empty());
        let subject = x509::distinguished_name(organization, Some(&params.common_name));
        let constraints = Constraints::only(&params.permit);
        let fields = Fields {
            issuer: &subject,
            subject: &subject,
            spki: &Der::build(|der| key.write_spki(der)),
            not_before: now.saturating_sub(BACKDATE).max(0),
            not_after: now
                .saturating_add(i64::from(params.validity_days) * DAY)
                .min(der::LAST_MOMENT),
        };
        let certificate = x509::issue(&key, &fields, |der| {
            extension::basic_constraints_ca(der);
            extension::key_usage_ca(der);
            extension::subject_key_identifier(der, &x509::key_identifier(key.public_bits()));
            if !constraints.is_empty() {
                extension::name_constraints(der, &constraints);
            }
        })?;
        Self::assemble(key, certificate, Vec::new())
    }

    /// Like [`from_pem`](Self::from_pem), but leaves the validity to the caller.
    pub(crate) fn parse_pem(text: &str) -> Result<Self, CaError> {
        let key = CaKey::from_der(&pem::read_key(text)?.ok_or(CaError::NoKey)?)?;
        Self::find_own(key, pem::read_certificates(text)?)
    }

    pub(crate) fn check_validity(&self, now: i64) -> Result<(), CaError> {
        if now > self.issuer.not_after {
            return Err(CaError::Expired {
                not_after: der::rfc3339(self.issuer.not_after),
            });
        }
        Ok(())
    }

    /// Whether the identity may be minted at all; cheap, so that a cache can ask before it makes room.
    pub(crate) fn check_identity(&self, identity: &Identity) -> Result<(), CaError> {
        if self.permits_name(&identity.primary) {
            return Ok(());
        }
        Err(CaError::NotPermitted {
            name: identity.primary.to_string(),
        })
    }

    pub(crate) fn mint_at(
        &self,
        identity: &Identity,
        request: &LeafRequest,
        now: i64,
    ) -> Result<Leaf, CaError> {
        self.check_identity(identity)?;
        self.check_validity(now)?;
        let names = self.subject_alt_names(identity, request);
        let first = names.first().map(SanName::to_string);
        let common_name = request.usable_common_name().or(first.as_deref()).filter(|name| {
            fits_attribute(name)
                && SanName::parse(name).map_or(true, |name| names.contains(&name))
                && !self.constraints.iter().any(|c| c.restricts_subject)
                // OpenSSL checks a common name that looks like a host against DNS constraints, and takes "10.0.0.1" for one.
                && (self.constraints.iter().all(Constraints::is_empty) || names.iter().any(|name| name.as_dns().is_some()))
        });
        let organization = request
            .usable_organization()
            .filter(|_| common_name.is_some());
        let subject = x509::distinguished_name(organization, common_name);
        let key = self.leaf_key(now)?;
        let not_before = now.saturating_sub(BACKDATE).max(self.issuer.not_before);
        let not_after = not_before
            .saturating_add(LEAF_LIFETIME - 1)
            .min(self.issuer.not_after);
        let fields = Fields {
            issuer: &self.issuer.subject,
            subject: &subject,
            spki: &key.spki,
            not_before,
            not_after,
        };
        let certificate = x509::issue(&self.key, &fields, |der| {
            extension::key_usage_leaf(der);
            extension::server_auth(der);
            extension::authority_key_identifier(der, &self.issuer.key_id);
            extension::subject_alt_names(der, common_name.is_none(), &names);
        })?;
        let mut chain = Vec::with_capacity(2 + self.chain.len());
        chain.push(certificate);
        if !self.issuer.self_issued {
            chain.push(self.certificate.clone());
        }
        chain.extend_from_slice(&self.chain);
        Ok(Leaf {
            certified: Arc::new(CertifiedKey::new(chain, Arc::clone(&key.signing))),
            not_before: system_time(not_before),
            not_after: system_time(not_after),
            key: Some(key),
        })
    }

    /// The leaf key of this moment, made anew when the old one had its day.
    pub(crate) fn leaf_key(&self, now: i64) -> Result<Arc<LeafKey>, CaError> {
        // A panic between lock and unlock can't leave a half-made key behind, so poison means nothing here.
        let mut current = self.leaf_key.lock().unwrap_or_else(PoisonError::into_inner);
        if !current.is_fresh(now) {
            *current = Arc::new(LeafKey::generate(now)?);
        }
        Ok(Arc::clone(&current))
    }

    /// The private key, for custom certificates that were made for it.
    pub(crate) fn key_der(&self) -> Result<PrivateKeyDer<'static>, CaError> {
        self.key
            .to_pkcs8()
            .map(|der| rustls_pki_types::PrivatePkcs8KeyDer::from(der).into())
    }

    /// Picks the certificate that belongs to the key; the others are the chain.
    fn find_own(
        key: CaKey,
        mut certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CaError> {
        let mut own = None;
        for (index, der) in certificates.iter().enumerate() {
            let parsed = x509::parse(der)?;
            if own.is_none() && *parsed.public_key().subject_public_key.data == *key.public_bits() {
                own = Some(index);
            }
        }
        let certificate = certificates.remove(own.ok_or(CaError::KeyMismatch)?);
        certificates.retain(|other| *other != certificate);
        Self::assemble(key, certificate, certificates)
    }

    fn assemble(
        key: CaKey,
        certificate: CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CaError> {
        let issuer = Issuer::read(&certificate)?;
        let mut constraints = Vec::new();
        for der in std::iter::once(&certificate).chain(&chain) {
            constraints.push(x509::constraints(&x509::parse(der)?)?);
        }
        let leaf_key = Mutex::new(Arc::new(LeafKey::generate(unix_now())?));
        Ok(Self {
            key,
            certificate,
            issuer,
            chain,
            constraints,
            leaf_key,
        })
    }

    fn warn_when_expired(&self) {
        if let Err(expired) = self.check_validity(unix_now()) {
            tracing::warn!(fingerprint = %self.fingerprint_hex(), "{expired}");
        }
    }

    fn permits_name(&self, name: &SanName) -> bool {
        self.constraints
            .iter()
            .all(|constraints| constraints.permit(name))
    }

    fn subject_alt_names(&self, identity: &Identity, request: &LeafRequest) -> Vec<SanName> {
        let common_name = request
            .usable_common_name()
            .and_then(|name| SanName::parse(name).ok());
        let origin = request.origin_sans.iter().take(MAX_ORIGIN_SANS);
        let mut names: Vec<SanName> = Vec::new();
        for name in identity.names().chain(&common_name).chain(origin) {
            if !names.contains(name) && self.permits_name(name) {
                names.push(name.clone());
            }
        }
        names
    }

    fn friendly_name(&self) -> String {
        x509::parse(&self.certificate)
            .ok()
            .and_then(|certificate| {
                Some(
                    certificate
                        .subject()
                        .iter_common_name()
                        .next()?
                        .as_str()
                        .ok()?
                        .to_owned(),
                )
            })
            .unwrap_or_default()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint_hex())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

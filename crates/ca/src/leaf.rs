//! What a leaf is asked for with, and the leaf.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;

use crate::error::CaError;
use crate::key::LeafKey;
use crate::name::SanName;
use crate::x509;

/// Names of an origin that go into a leaf; the rest is dropped. Some certificates carry thousands.
pub(crate) const MAX_ORIGIN_SANS: usize = 100;

/// `ub-common-name` and `ub-organization-name` (RFC 5280, appendix A), in characters.
const MAX_ATTRIBUTE: usize = 64;

/// What a leaf shall stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafRequest {
    /// The SNI of the client's hello. It is what the client will verify, so the leaf is refused rather than made
    /// without it.
    pub server_name: Option<String>,
    /// Host or IP address that the client asked for (`CONNECT`, SOCKS, the original destination), without a port. It
    /// may be empty when there is an SNI. Beside an SNI it is left out where name constraints forbid it.
    pub target: String,
    /// Names of the origin's own certificate. At most 100 are used; those outside the name constraints are left out.
    pub origin_sans: Vec<SanName>,
    /// The subject's common name, normally the origin's; a host name becomes a subject alternative name as well.
    /// Ignored when longer than 64 characters. `None`: the first subject alternative name.
    pub common_name: Option<String>,
    /// The subject's organization, normally the origin's. Ignored when longer than 64 characters.
    pub organization: Option<String>,
    /// SHA-256 of the origin's certificate, so that a cache can tell apart what was copied from where. When it is
    /// `None` the cache compares the three fields above instead, which costs a hash over them per lookup.
    pub origin_fingerprint: Option<[u8; 32]>,
}

impl LeafRequest {
    /// A leaf for one host, with nothing copied from an origin.
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            ..Self::default()
        }
    }

    /// Adds the client's SNI.
    #[must_use]
    pub fn with_server_name(mut self, server_name: impl Into<String>) -> Self {
        self.server_name = Some(server_name.into());
        self
    }

    /// Copies names, common name, organization and fingerprint from the origin's certificate (DER).
    ///
    /// # Errors
    /// [`CaError::Malformed`] when it is not a certificate. A single odd name in it is only skipped.
    pub fn with_origin(mut self, certificate: &[u8]) -> Result<Self, CaError> {
        let parsed = x509::parse(certificate)?;
        self.origin_sans = parsed
            .iter_extensions()
            .filter_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.iter()),
                _ => None,
            })
            .flatten()
            .filter_map(SanName::from_general_name)
            .take(MAX_ORIGIN_SANS)
            .collect();
        let text = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            attribute.and_then(|a| a.as_str().ok()).map(str::to_owned)
        };
        self.common_name = text(parsed.subject().iter_common_name().next());
        self.organization = text(parsed.subject().iter_organization().next());
        self.origin_fingerprint = Some(sha256(certificate));
        Ok(self)
    }

    /// The names that must be in the leaf, in their normal form.
    pub(crate) fn identity(&self) -> Result<Identity, CaError> {
        let target = match (&self.server_name, self.target.as_str()) {
            (Some(_), "") => None,
            (_, target) => Some(SanName::parse(target)?),
        };
        match (
            self.server_name
                .as_deref()
                .map(SanName::parse)
                .transpose()?,
            target,
        ) {
            (Some(primary), target) => Ok(Identity {
                secondary: target.filter(|target| *target != primary),
                primary,
            }),
            (None, Some(primary)) => Ok(Identity {
                primary,
                secondary: None,
            }),
            (None, None) => Err(CaError::InvalidName {
                name: String::new(),
                reason: "there is neither an SNI nor a target",
            }),
        }
    }

    /// Tells requests with the same identity apart by what they copy from the origin.
    pub(crate) fn origin_digest(&self) -> Option<[u8; 32]> {
        if self.origin_fingerprint.is_some() {
            return self.origin_fingerprint;
        }
        if self.origin_sans.is_empty() && self.common_name.is_none() && self.organization.is_none()
        {
            return None;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        let mut part = |tag: u8, text: &str| {
            context.update(&[tag]);
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        };
        for san in self.origin_sans.iter().take(MAX_ORIGIN_SANS) {
            part(0, &san.to_string());
        }
        self.common_name.iter().for_each(|name| part(1, name));
        self.organization.iter().for_each(|name| part(2, name));
        context.finish().as_ref().try_into().ok()
    }

    pub(crate) fn usable_common_name(&self) -> Option<&str> {
        self.common_name
            .as_deref()
            .filter(|name| fits_attribute(name))
    }

    pub(crate) fn usable_organization(&self) -> Option<&str> {
        self.organization
            .as_deref()
            .filter(|name| fits_attribute(name))
    }
}

/// The names a client may verify: its SNI, or else the target; and the target when it differs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) primary: SanName,
    pub(crate) secondary: Option<SanName>,
}

impl Identity {
    pub(crate) fn names(&self) -> impl Iterator<Item = &SanName> {
        std::iter::once(&self.primary).chain(&self.secondary)
    }
}

/// A certificate with its key, ready for a TLS handshake.
#[derive(Clone)]
pub struct Leaf {
    /// Chain and key as rustls wants them: the leaf, then what a client needs to reach the authority it trusts.
    pub certified: Arc<CertifiedKey>,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// The key behind it, when it was minted and not brought by the operator.
    pub(crate) key: Option<Arc<LeafKey>>,
}

impl Leaf {
    /// The leaf's own certificate.
    pub fn cert_der(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// Wraps a certificate that somebody else issued.
    pub(crate) fn custom(certified: Arc<CertifiedKey>) -> Result<Self, CaError> {
        let certificate = x509::parse(certified.cert.first().ok_or(CaError::NoCertificate)?)?;
        let (not_before, not_after) = (
            certificate.validity().not_before,
            certificate.validity().not_after,
        );
        let (not_before, not_after) = (
            system_time(not_before.timestamp()),
            system_time(not_after.timestamp()),
        );
        Ok(Self {
            certified,
            not_before,
            not_after,
            key: None,
        })
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A leaf as PEM, for programs that run a TLS server of their own.
#[derive(Clone)]
pub struct HostCert {
    /// The leaf.
    pub cert_pem: String,
    /// Its private key (PKCS#8). Secret; other leaves of the day share it.
    pub key_pem: String,
    /// The leaf and what a client needs to reach the authority, in the order of a TLS handshake.
    pub chain_pem: String,
}

impl fmt::Debug for HostCert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostCert")
            .field("cert_pem", &self.cert_pem)
            .finish_non_exhaustive()
    }
}

pub(crate) fn fits_attribute(text: &str) -> bool {
    !text.is_empty() && text.chars().nth(MAX_ATTRIBUTE).is_none()
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.iter_mut()
        .zip(digest::digest(&digest::SHA256, bytes).as_ref())
        .for_each(|(to, from)| *to = *from);
    out
}

/// Seconds since 1970; 0 for a clock that stands before.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

pub(crate) fn system_time(unix: i64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(u64::try_from(unix).unwrap_or(0)))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Authority, AuthorityParams};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// An origin may send anything.
        #[test]
        fn a_damaged_origin_certificate_never_panics(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let authority = Authority::generate(&AuthorityParams::default()).unwrap();
            let mut der = authority.mint(&LeafRequest::new("*.example.com")).unwrap().cert_der().unwrap().to_vec();
            for (at, byte) in damage {
                *at.get_mut(&mut der) = byte;
            }
            for bytes in [der.as_slice(), &der[..cut.index(der.len())]] {
                if let Ok(request) = LeafRequest::new("example.com").with_origin(bytes) {
                    authority.mint(&request).unwrap();
                }
            }
        }
    }

    #[test]
    fn the_sni_comes_first_and_an_equal_target_is_no_second_name() {
        let identity = |request: LeafRequest| {
            request
                .identity()
                .map(|i| i.names().map(SanName::to_string).collect::<Vec<_>>())
        };
        assert_eq!(
            identity(LeafRequest::new("A.example")).unwrap(),
            ["a.example"]
        );
        assert_eq!(
            identity(LeafRequest::new("a.example.").with_server_name("A.example")).unwrap(),
            ["a.example"]
        );
        assert_eq!(
            identity(LeafRequest::new("192.0.2.1").with_server_name("a.example")).unwrap(),
            ["a.example", "192.0.2.1"]
        );
        assert_eq!(
            identity(LeafRequest::new("").with_server_name("a.example")).unwrap(),
            ["a.example"]
        );
        assert!(identity(LeafRequest::new("")).is_err());
        assert!(identity(LeafRequest::new("a.example").with_server_name("a b")).is_err());
    }

    #[test]
    fn the_digest_tells_fields_apart() {
        let with = |cn: Option<&str>, o: Option<&str>| {
            let mut request = LeafRequest::new("a");
            (request.common_name, request.organization) =
                (cn.map(str::to_owned), o.map(str::to_owned));
            request.origin_digest()
        };
        assert_eq!(with(None, None), None);
        assert_ne!(with(Some("x"), None), with(None, Some("x")));
        assert_eq!(with(Some("x"), None), with(Some("x"), None));
    }
}

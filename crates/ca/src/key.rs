//! Private keys: the authority's, and the one that leaves share.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::der::Der;
use crate::error::CaError;
use crate::pem;

/// The key of a new authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum KeyKind {
    /// ECDSA on P-256: signs a leaf in about 15 µs. Every client of the last ten years takes it.
    #[default]
    P256,
    /// RSA, 2048 bits: for clients that know nothing else. Signs a leaf in about 0.25 ms.
    Rsa2048,
    /// RSA, 3072 bits.
    Rsa3072,
    /// RSA, 4096 bits. Signs a leaf in well over a millisecond.
    Rsa4096,
}

/// The authority's signing key.
pub(crate) enum CaKey {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl CaKey {
    pub(crate) fn generate(kind: KeyKind) -> Result<Self, CaError> {
        let rsa = |size| RsaKeyPair::generate(size).map(Self::Rsa);
        match kind {
            KeyKind::P256 => {
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self::P256)
            }
            KeyKind::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyKind::Rsa3072 => rsa(KeySize::Rsa3072),
            KeyKind::Rsa4096 => rsa(KeySize::Rsa4096),
        }
        .map_err(|_| CaError::Crypto("generating the authority's key"))
    }

    /// PKCS#1, SEC1 or PKCS#8, as the PEM label said.
    pub(crate) fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, CaError> {
        let bytes = der.secret_der();
        let rsa = match der {
            PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(bytes).ok(),
            PrivateKeyDer::Pkcs8(_) => RsaKeyPair::from_pkcs8(bytes).ok(),
            _ => None,
        };
        rsa.map(Self::Rsa)
            .or_else(|| {
                EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, bytes)
                    .ok()
                    .map(Self::P256)
            })
            .or_else(|| {
                EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_ASN1_SIGNING, bytes)
                    .ok()
                    .map(Self::P384)
            })
            .ok_or(CaError::UnsupportedKey)
    }

    pub(crate) fn to_pkcs8(&self) -> Result<Vec<u8>, CaError> {
        match self {
            Self::P256(key) | Self::P384(key) => key.to_pkcs8v1().map(|der| der.as_ref().to_vec()),
            Self::Rsa(key) => key.as_der().map(|der| der.as_ref().to_vec()),
        }
        .map_err(|_| CaError::Crypto("encoding the authority's key"))
    }

    /// What stands in the `subjectPublicKey` bit string.
    pub(crate) fn public_bits(&self) -> &[u8] {
        match self {
            Self::P256(key) | Self::P384(key) => key.public_key().as_ref(),
            Self::Rsa(key) => key.public_key().as_ref(),
        }
    }

    pub(crate) fn write_spki(&self, der: &mut Der) {
        match self {
            Self::P256(_) => write_ec_spki(der, oid::P256, self.public_bits()),
            Self::P384(_) => write_ec_spki(der, oid::P384, self.public_bits()),
            Self::Rsa(_) => der.sequence(|der| {
                der.sequence(|der| {
                    der.oid(oid::RSA_ENCRYPTION);
                    der.null();
                });
                der.bit_string(0, self.public_bits());
            }),
        }
    }

    /// The `AlgorithmIdentifier` of [`sign`](Self::sign).
    pub(crate) fn write_signature_algorithm(&self, der: &mut Der) {
        der.sequence(|der| match self {
            Self::P256(_) => der.oid(oid::ECDSA_SHA256),
            Self::P384(_) => der.oid(oid::ECDSA_SHA384),
            Self::Rsa(_) => {
                der.oid(oid::RSA_SHA256);
                der.null(); // RFC 4055: present, unlike with ECDSA (RFC 5758)
            }
        });
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CaError> {
        let random = SystemRandom::new();
        match self {
            Self::P256(key) | Self::P384(key) => key
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec()),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map(|()| signature)
            }
        }
        .map_err(|_| CaError::Crypto("signing a certificate"))
    }
}

/// The P-256 key that all leaves of a day share.
///
/// It is not the authority's: a leaf key lives in the TLS stack of every worker, and its loss must not cost more than a
/// day. One key for all spares a key generation per host.
pub(crate) struct LeafKey {
    pub(crate) signing: Arc<dyn SigningKey>,
    pub(crate) spki: Vec<u8>,
    /// When it was made, in seconds since 1970.
    pub(crate) born: i64,
    pkcs8: Vec<u8>,
}

impl LeafKey {
    /// Seconds after which a new one is made.
    pub(crate) const LIFETIME: i64 = 24 * 3600;

    pub(crate) fn generate(now: i64) -> Result<Self, CaError> {
        let fail = |_| CaError::Crypto("generating a leaf key");
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(fail)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(fail)?.as_ref().to_vec();
        let signing = any_ecdsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()).into())
            .map_err(|_| CaError::Crypto("loading a leaf key"))?;
        let spki = Der::build(|der| write_ec_spki(der, oid::P256, pair.public_key().as_ref()));
        Ok(Self {
            signing,
            spki,
            born: now,
            pkcs8,
        })
    }

    /// Also false for a key from the future: then the clock was set back, and nobody knows how old it is.
    pub(crate) fn is_fresh(&self, now: i64) -> bool {
        (0..Self::LIFETIME).contains(&now.saturating_sub(self.born))
    }

    pub(crate) fn pem(&self) -> String {
        pem::encode("PRIVATE KEY", &self.pkcs8)
    }
}

impl fmt::Debug for LeafKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeafKey")
            .field("born", &self.born)
            .finish_non_exhaustive()
    }
}

fn write_ec_spki(der: &mut Der, curve: &[u8], point: &[u8]) {
    der.sequence(|der| {
        der.sequence(|der| {
            der.oid(oid::EC_PUBLIC_KEY);
            der.oid(curve);
        });
        der.bit_string(0, point);
    });
}

mod oid {
    pub(super) const RSA_ENCRYPTION: &[u8] =
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    pub(super) const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    pub(super) const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    pub(super) const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    pub(super) const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
    pub(super) const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    pub(super) const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
}

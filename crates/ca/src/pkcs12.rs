//! PKCS#12 (RFC 7292): writing.
//!
//! Built on the DER writer and aws-lc: a general library would bring a second set of ciphers and hashes into the tree.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{digest, hmac, pbkdf2, rand};

use crate::der::{Der, context, context_primitive};
use crate::error::CaError;

/// Rounds of both key derivations. An attacker may attack either one.
const ITERATIONS: u32 = 100_000;
const FAILED: CaError = CaError::Crypto("writing a PKCS#12 file");

/// A trusted certificate, empty password.
pub(crate) fn certificate(certificate: &[u8], name: &str) -> Result<Vec<u8>, CaError> {
    let bags = Der::build(|der| {
        der.sequence(|der| {
            certificate_bag(der, certificate, &[friendly_name(name), trusted_by_java()])
        })
    });
    let safes = Der::build(|der| der.sequence(|der| data(der, &bags)));
    seal(&safes, "")
}

/// A certificate with its chain and its private key (PKCS#8 DER). An empty password encrypts nothing.
pub(crate) fn identity(
    certificate: &[u8],
    chain: &[impl AsRef<[u8]>],
    key: &[u8],
    name: &str,
    password: &str,
) -> Result<Vec<u8>, CaError> {
    let id = digest::digest(&digest::SHA256, certificate);
    let attributes = [friendly_name(name), local_key_id(id.as_ref())];
    let certificates = Der::build(|der| {
        der.sequence(|der| {
            certificate_bag(der, certificate, &attributes);
            for certificate in chain {
                certificate_bag(der, certificate.as_ref(), &[]);
            }
        });
    });
    let safes = if password.is_empty() {
        let keys = Der::build(|der| der.sequence(|der| bag(der, oid::KEY_BAG, key, &attributes)));
        Der::build(|der| {
            der.sequence(|der| {
                data(der, &certificates);
                data(der, &keys);
            });
        })
    } else {
        let (algorithm, ciphertext) = encrypt(key, password)?;
        let shrouded = Der::build(|der| {
            der.sequence(|der| {
                der.raw(&algorithm);
                der.octet_string(&ciphertext);
            });
        });
        let keys = Der::build(|der| {
            der.sequence(|der| bag(der, oid::SHROUDED_KEY_BAG, &shrouded, &attributes))
        });
        let (algorithm, ciphertext) = encrypt(&certificates, password)?;
        Der::build(|der| {
            der.sequence(|der| {
                encrypted_data(der, &algorithm, &ciphertext);
                data(der, &keys);
            });
        })
    };
    seal(&safes, password)
}

/// `PFX` with its integrity check.
fn seal(safes: &[u8], password: &str) -> Result<Vec<u8>, CaError> {
    let mut salt = [0; 16];
    rand::fill(&mut salt).map_err(|_| FAILED)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &mac_key(password, &salt));
    let tag = hmac::sign(&key, safes);
    Ok(Der::build(|der| {
        der.sequence(|der| {
            der.small_integer(3);
            data(der, safes);
            der.sequence(|der| {
                der.sequence(|der| {
                    der.sequence(|der| {
                        der.oid(oid::SHA256);
                        der.null();
                    });
                    der.octet_string(tag.as_ref());
                });
                der.octet_string(&salt);
                der.small_integer(ITERATIONS);
            });
        });
    }))
}

/// RFC 7292, appendix B.2, for ID 3 with SHA-256: one round of output is exactly the key.
fn mac_key(password: &str, salt: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    let fill = |bytes: &[u8]| {
        bytes
            .iter()
            .copied()
            .cycle()
            .take(bytes.len().div_ceil(BLOCK) * BLOCK)
            .collect::<Vec<u8>>()
    };
    let password: Vec<u8> = password
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_be_bytes)
        .collect();
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[3; BLOCK]);
    context.update(&fill(salt));
    context.update(&fill(&password));
    let first = context.finish();
    (1..ITERATIONS)
        .fold(first, |hash, _| {
            digest::digest(&digest::SHA256, hash.as_ref())
        })
        .as_ref()
        .to_vec()
}

/// PBES2 (RFC 8018): the `AlgorithmIdentifier` and the ciphertext.
fn encrypt(plain: &[u8], password: &str) -> Result<(Vec<u8>, Vec<u8>), CaError> {
    let (mut salt, mut iv, mut key) = ([0; 16], [0; 16], [0; 32]);
    rand::fill(&mut salt).map_err(|_| FAILED)?;
    rand::fill(&mut iv).map_err(|_| FAILED)?;
    let rounds = NonZeroU32::new(ITERATIONS).ok_or(FAILED)?;
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        &salt,
        password.as_bytes(),
        &mut key,
    );
    let cipher = UnboundCipherKey::new(&AES_256, &key)
        .and_then(PaddedBlockEncryptingKey::cbc_pkcs7)
        .map_err(|_| FAILED)?;
    let mut ciphertext = plain.to_vec();
    cipher
        .less_safe_encrypt(
            &mut ciphertext,
            EncryptionContext::Iv128(FixedLength::from(iv)),
        )
        .map_err(|_| FAILED)?;
    let algorithm = Der::build(|der| {
        der.sequence(|der| {
            der.oid(oid::PBES2);
            der.sequence(|der| {
                der.sequence(|der| {
                    der.oid(oid::PBKDF2);
                    der.sequence(|der| {
                        der.octet_string(&salt);
                        der.small_integer(ITERATIONS);
                        der.sequence(|der| {
                            der.oid(oid::HMAC_SHA256);
                            der.null();
                        });
                    });
                });
                der.sequence(|der| {
                    der.oid(oid::AES_256_CBC);
                    der.octet_string(&iv);
                });
            });
        });
    });
    Ok((algorithm, ciphertext))
}

/// `ContentInfo` of type `data`.
fn data(der: &mut Der, content: &[u8]) {
    der.sequence(|der| {
        der.oid(oid::DATA);
        der.nest(context(0), |der| der.octet_string(content));
    });
}

/// `ContentInfo` of type `encryptedData`.
fn encrypted_data(der: &mut Der, algorithm: &[u8], ciphertext: &[u8]) {
    der.sequence(|der| {
        der.oid(oid::ENCRYPTED_DATA);
        der.nest(context(0), |der| {
            der.sequence(|der| {
                der.small_integer(0);
                der.sequence(|der| {
                    der.oid(oid::DATA);
                    der.raw(algorithm);
                    der.value(context_primitive(0), ciphertext);
                });
            });
        });
    });
}

fn certificate_bag(der: &mut Der, certificate: &[u8], attributes: &[Vec<u8>]) {
    let value = Der::build(|der| {
        der.sequence(|der| {
            der.oid(oid::X509_CERTIFICATE);
            der.nest(context(0), |der| der.octet_string(certificate));
        });
    });
    bag(der, oid::CERT_BAG, &value, attributes);
}

/// `SafeBag`.
fn bag(der: &mut Der, kind: &[u8], value: &[u8], attributes: &[Vec<u8>]) {
    der.sequence(|der| {
        der.oid(kind);
        der.nest(context(0), |der| der.raw(value));
        if !attributes.is_empty() {
            // DER sorts the elements of a SET OF.
            let mut sorted: Vec<&Vec<u8>> = attributes.iter().collect();
            sorted.sort();
            der.set(|der| sorted.iter().for_each(|attribute| der.raw(attribute)));
        }
    });
}

fn friendly_name(name: &str) -> Vec<u8> {
    attribute(oid::FRIENDLY_NAME, |der| der.bmp_string(name))
}

fn local_key_id(id: &[u8]) -> Vec<u8> {
    attribute(oid::LOCAL_KEY_ID, |der| der.octet_string(id))
}

/// Java takes a certificate without a key for trusted only with this attribute (any extended key usage).
fn trusted_by_java() -> Vec<u8> {
    attribute(oid::TRUSTED_KEY_USAGE, |der| {
        der.oid(oid::ANY_EXTENDED_KEY_USAGE)
    })
}

fn attribute(oid: &[u8], value: impl FnOnce(&mut Der)) -> Vec<u8> {
    Der::build(|der| {
        der.sequence(|der| {
            der.oid(oid);
            der.set(value);
        });
    })
}

mod oid {
    macro_rules! pkcs {
        ($($arc:expr),*) => { &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, $($arc),*] };
    }
    pub(super) const PBKDF2: &[u8] = pkcs![5, 12];
    pub(super) const PBES2: &[u8] = pkcs![5, 13];
    pub(super) const DATA: &[u8] = pkcs![7, 1];
    pub(super) const ENCRYPTED_DATA: &[u8] = pkcs![7, 6];
    pub(super) const FRIENDLY_NAME: &[u8] = pkcs![9, 20];
    pub(super) const LOCAL_KEY_ID: &[u8] = pkcs![9, 21];
    pub(super) const X509_CERTIFICATE: &[u8] = pkcs![9, 22, 1];
    pub(super) const KEY_BAG: &[u8] = pkcs![12, 10, 1, 1];
    pub(super) const SHROUDED_KEY_BAG: &[u8] = pkcs![12, 10, 1, 2];
    pub(super) const CERT_BAG: &[u8] = pkcs![12, 10, 1, 3];
    pub(super) const HMAC_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x09];
    pub(super) const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
    pub(super) const AES_256_CBC: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a];
    pub(super) const TRUSTED_KEY_USAGE: &[u8] = &[
        0x60, 0x86, 0x48, 0x01, 0x86, 0xf9, 0x66, 0xad, 0xca, 0x7b, 0x01, 0x01,
    ];
    pub(super) const ANY_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
}

//! Certificates (RFC 5280): writing ours, reading the authority's.

use aws_lc_rs::{digest, rand};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::der::{Der, context, context_primitive};
use crate::error::CaError;
use crate::key::CaKey;
use crate::name::{Constraints, NameConstraint, SanName, ip_bytes};

/// Everything of a certificate except the extensions.
pub(crate) struct Fields<'a> {
    /// DER of the issuer's name, byte for byte as in the issuer's certificate.
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// DER of the `SubjectPublicKeyInfo`.
    pub(crate) spki: &'a [u8],
    /// Seconds since 1970; both moments belong to the validity.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

/// Writes and signs a version 3 certificate with a random serial number.
pub(crate) fn issue(
    key: &CaKey,
    fields: &Fields<'_>,
    extensions: impl FnOnce(&mut Der),
) -> Result<CertificateDer<'static>, CaError> {
    let serial = random_serial()?;
    let tbs = Der::build(|der| {
        der.sequence(|der| {
            der.nest(context(0), |der| der.small_integer(2));
            der.integer(&serial);
            key.write_signature_algorithm(der);
            der.raw(fields.issuer);
            der.sequence(|der| {
                der.time(fields.not_before);
                der.time(fields.not_after);
            });
            der.raw(fields.subject);
            der.raw(fields.spki);
            der.nest(context(3), |der| der.sequence(extensions));
        });
    });
    let signature = key.sign(&tbs)?;
    Ok(Der::build(|der| {
        der.sequence(|der| {
            der.raw(&tbs);
            key.write_signature_algorithm(der);
            der.bit_string(0, &signature);
        });
    })
    .into())
}

/// DER of a distinguished name; with neither part it is the empty name.
pub(crate) fn distinguished_name(organization: Option<&str>, common_name: Option<&str>) -> Vec<u8> {
    Der::build(|der| {
        der.sequence(|der| {
            for (oid, text) in [
                (oid::ORGANIZATION, organization),
                (oid::COMMON_NAME, common_name),
            ] {
                let Some(text) = text else { continue };
                der.set(|der| {
                    der.sequence(|der| {
                        der.oid(oid);
                        der.utf8_string(text);
                    });
                });
            }
        });
    })
}

/// RFC 7093, 2 (1): the first 160 bits of the SHA-256 of the public key's bits.
pub(crate) fn key_identifier(public_bits: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, public_bits)
        .as_ref()
        .iter()
        .copied()
        .take(20)
        .collect()
}

/// The extensions, each written as a whole.
pub(crate) mod extension {
    use super::*;

    /// `CA:TRUE, pathlen:0`, critical.
    pub(crate) fn basic_constraints_ca(der: &mut Der) {
        write(der, oid::BASIC_CONSTRAINTS, true, |der| {
            der.sequence(|der| {
                der.boolean(true);
                der.small_integer(0);
            });
        });
    }

    /// `keyCertSign, cRLSign`, critical.
    pub(crate) fn key_usage_ca(der: &mut Der) {
        write(der, oid::KEY_USAGE, true, |der| {
            der.bit_string(1, &[0b0000_0110])
        });
    }

    /// `digitalSignature`, critical.
    pub(crate) fn key_usage_leaf(der: &mut Der) {
        write(der, oid::KEY_USAGE, true, |der| {
            der.bit_string(7, &[0b1000_0000])
        });
    }

    pub(crate) fn server_auth(der: &mut Der) {
        write(der, oid::EXTENDED_KEY_USAGE, false, |der| {
            der.sequence(|der| der.oid(oid::SERVER_AUTH))
        });
    }

    pub(crate) fn subject_key_identifier(der: &mut Der, id: &[u8]) {
        write(der, oid::SUBJECT_KEY_IDENTIFIER, false, |der| {
            der.octet_string(id)
        });
    }

    pub(crate) fn authority_key_identifier(der: &mut Der, id: &[u8]) {
        write(der, oid::AUTHORITY_KEY_IDENTIFIER, false, |der| {
            der.sequence(|der| der.value(context_primitive(0), id));
        });
    }

    /// Critical when the subject is empty (RFC 5280, 4.2.1.6).
    pub(crate) fn subject_alt_names(der: &mut Der, critical: bool, names: &[SanName]) {
        write(der, oid::SUBJECT_ALT_NAME, critical, |der| {
            der.sequence(|der| {
                for name in names {
                    match (name.as_dns(), name.as_ip()) {
                        (Some(dns), _) => der.value(DNS_NAME, dns.as_bytes()),
                        (None, Some(ip)) => der.value(IP_ADDRESS, &ip_bytes(ip)),
                        (None, None) => {}
                    }
                }
            });
        });
    }

    /// Critical, as RFC 5280 demands.
    pub(crate) fn name_constraints(der: &mut Der, constraints: &Constraints) {
        write(der, oid::NAME_CONSTRAINTS, true, |der| {
            der.sequence(|der| {
                for (tag, subtrees) in [
                    (context(0), &constraints.permitted),
                    (context(1), &constraints.excluded),
                ] {
                    if subtrees.is_empty() {
                        continue;
                    }
                    der.nest(tag, |der| {
                        for subtree in subtrees {
                            der.sequence(|der| match subtree {
                                NameConstraint::Dns(base) => der.value(DNS_NAME, base.as_bytes()),
                                NameConstraint::Ip { network, prefix } => {
                                    der.value(
                                        IP_ADDRESS,
                                        &NameConstraint::ip_bytes(*network, *prefix),
                                    );
                                }
                            });
                        }
                    });
                }
            });
        });
    }

    const DNS_NAME: u8 = context_primitive(2);
    const IP_ADDRESS: u8 = context_primitive(7);

    fn write(der: &mut Der, oid: &[u8], critical: bool, value: impl FnOnce(&mut Der)) {
        der.sequence(|der| {
            der.oid(oid);
            if critical {
                der.boolean(true);
            }
            der.octets(value);
        });
    }
}

/// What minting needs to know of the authority's certificate.
pub(crate) struct Issuer {
    pub(crate) subject: Vec<u8>,
    /// Its subject key identifier, or the one we compute when it has none.
    pub(crate) key_id: Vec<u8>,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) self_issued: bool,
}

impl Issuer {
    /// Reads a certificate and makes sure that it is an authority's (RFC 5280, 4.2.1.3 and 4.2.1.9).
    pub(crate) fn read(der: &[u8]) -> Result<Self, CaError> {
        let certificate = parse(der)?;
        let malformed = |error: x509_parser::error::X509Error| CaError::Malformed {
            what: "certificate",
            reason: error.to_string(),
        };
        match certificate.basic_constraints().map_err(malformed)? {
            Some(basic) if basic.value.ca => {}
            Some(_) => {
                return Err(CaError::NotAnAuthority(
                    "its basic constraints say CA:FALSE",
                ));
            }
            None => return Err(CaError::NotAnAuthority("it has no basic constraints")),
        }
        if certificate
            .key_usage()
            .map_err(malformed)?
            .is_some_and(|usage| !usage.value.key_cert_sign())
        {
            return Err(CaError::NotAnAuthority("its key usage lacks keyCertSign"));
        }
        let key_id = certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
            .unwrap_or_else(|| key_identifier(&certificate.public_key().subject_public_key.data));
        Ok(Self {
            subject: certificate.subject().as_raw().to_vec(),
            key_id,
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            self_issued: certificate.subject().as_raw() == certificate.issuer().as_raw(),
        })
    }
}

/// A whole certificate and nothing behind it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CaError> {
    let malformed = |reason: String| CaError::Malformed {
        what: "certificate",
        reason,
    };
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(malformed("bytes follow its end".to_owned())),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// The name constraints of a certificate; none when it has no such extension.
pub(crate) fn constraints(certificate: &X509Certificate<'_>) -> Result<Constraints, CaError> {
    let unreadable = |reason: String| CaError::Malformed {
        what: "name constraints",
        reason,
    };
    let Some(extension) = certificate
        .iter_extensions()
        .find(|extension| extension.oid.as_bytes() == oid::NAME_CONSTRAINTS)
    else {
        return Ok(Constraints::default());
    };
    match extension.parsed_extension() {
        ParsedExtension::NameConstraints(constraints) => Constraints::from_extension(constraints),
        ParsedExtension::ParseError { error } => Err(unreadable(error.to_string())),
        _ => Err(unreadable("not understood".to_owned())),
    }
}

/// 16 random bytes, positive and never shorter (RFC 5280, 4.1.2.2, allows 20).
fn random_serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| CaError::Crypto("drawing a serial number"))?;
    if let Some(first) = serial.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    Ok(serial)
}

mod oid {
    pub(super) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    pub(super) const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
    pub(super) const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x0e];
    pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
    pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
    pub(super) const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
    pub(super) const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
    pub(super) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    pub(super) const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
}

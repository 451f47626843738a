//! PEM (RFC 7468).

use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::CaError;

/// The first private key: PKCS#1, PKCS#8 or SEC1. `None` when there is none.
pub(crate) fn read_key(text: &str) -> Result<Option<PrivateKeyDer<'static>>, CaError> {
    // Both forms of encrypted keys (PKCS#8, and RFC 1421 headers) would otherwise look like a missing or broken one.
    if text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        || text.contains("Proc-Type: 4,ENCRYPTED")
    {
        return Err(CaError::EncryptedKey);
    }
    match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
        Err(Error::NoItemsFound) => Ok(None),
        other => other.map(Some).map_err(malformed("private key")),
    }
}

/// All certificates in their order; at least one.
pub(crate) fn read_certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(malformed("certificate"))?;
    if certificates.is_empty() {
        Err(CaError::NoCertificate)
    } else {
        Ok(certificates)
    }
}

/// One section with lines of 64 characters.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            push_group(&mut text, group);
        }
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Four base64 characters for one to three bytes.
fn push_group(text: &mut String, group: &[u8]) {
    let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    for i in 0..4 {
        text.push(if i <= group.len() {
            sextet((bits >> (18 - 6 * i)) as u8 & 0x3f)
        } else {
            '='
        });
    }
}

fn malformed(what: &'static str) -> impl FnOnce(Error) -> CaError {
    move |error| CaError::Malformed {
        what,
        reason: error.to_string(),
    }
}

fn sextet(value: u8) -> char {
    char::from(match value {
        0..26 => b'A' + value,
        26..52 => b'a' + (value - 26),
        52..62 => b'0' + (value - 52),
        62 => b'+',
        _ => b'/',
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(der in proptest::collection::vec(any::<u8>(), 0..300)) {
            let text = encode("CERTIFICATE", &der);
            prop_assert!(text.lines().all(|line| line.len() <= 64));
            let read = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            prop_assert_eq!(read.as_ref(), &der);
        }
    }
}

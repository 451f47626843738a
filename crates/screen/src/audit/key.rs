//! The key that signs a log of verdicts, and the one that proves it: Ed25519 (RFC 8032), in PEM as OpenSSL has it.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A `SubjectPublicKeyInfo` of Ed25519 (RFC 8410) up to the key itself.
const SPKI: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// No file of a key is longer.
const MAX_PEM: u64 = 16 << 10;

/// Why a key can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Others can read the private key.
    #[error("{}: others can read this key; make it your own: chmod 600", path.display())]
    Open {
        /// The file.
        path: PathBuf,
    },
    /// It is no such key.
    #[error("{}: no Ed25519 key in PEM ({wanted})", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// The label that its PEM should have.
        wanted: &'static str,
    },
    /// The library makes none.
    #[error("no key can be made")]
    Make,
}

/// A private key. It has no `Debug` that shows it.
pub struct AuditKey {
    pair: Ed25519KeyPair,
}

impl AuditKey {
    /// Makes a key, and writes it into a file of its owner's that doesn't exist yet.
    ///
    /// # Errors
    /// [`KeyError`], also where the file is there already.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let io = |error| KeyError::Io {
            path: path.to_owned(),
            error,
        };
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Make)?;
        let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Make)?;
        let text = pem("PRIVATE KEY", der.as_ref());
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(io)?;
        file.write_all(text.as_bytes()).map_err(io)?;
        file.sync_all().map_err(io)?;
        Ok(Self { pair })
    }

    /// Reads a key, which must be its owner's alone: PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        const LABEL: &str = "PRIVATE KEY";
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let data = fs::metadata(path).map_err(|error| KeyError::Io {
                path: path.to_owned(),
                error,
            })?;
            if data.permissions().mode() & 0o077 != 0 {
                return Err(KeyError::Open {
                    path: path.to_owned(),
                });
            }
        }
        let der = read(path, LABEL)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der);
        let pair = pair.map_err(|_| KeyError::Other {
            path: path.to_owned(),
            wanted: LABEL,
        })?;
        Ok(Self { pair })
    }

    /// The key that proves what this one signs.
    #[must_use]
    pub fn public(&self) -> AuditPublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(
            self.pair
                .public_key()
                .as_ref()
                .first_chunk()
                .unwrap_or(&[0; 32]),
        );
        AuditPublicKey { key }
    }

    pub(super) fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.pair.sign(message))
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditKey")
            .field("public", &self.public())
            .finish_non_exhaustive()
    }
}

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPublicKey {
    key: [u8; 32],
}

impl AuditPublicKey {
    /// Reads a public key in PEM.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        const LABEL: &str = "PUBLIC KEY";
        let der = read(path, LABEL)?;
        let key = der.strip_prefix(&SPKI).and_then(|key| key.try_into().ok());
        let key = key.ok_or_else(|| KeyError::Other {
            path: path.to_owned(),
            wanted: LABEL,
        })?;
        Ok(Self { key })
    }

    /// It in PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI[..], &self.key].concat())
    }

    /// A name for it: the beginning of the SHA-256 of its `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn name(&self) -> String {
        let mut hash = super::hash_of(&[&SPKI[..], &self.key].concat());
        hash.truncate(16);
        hash
    }

    pub(super) fn proves(&self, message: &[u8], signature: &str) -> bool {
        let Ok(signature) = STANDARD.decode(signature) else {
            return false;
        };
        UnparsedPublicKey::new(&ED25519, &self.key)
            .verify(message, &signature)
            .is_ok()
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for (at, c) in text.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            out.push('\n');
        }
        out.push(c);
    }
    out.push_str(&format!("\n-----END {label}-----\n"));
    out
}

/// The DER of the first PEM block with this label.
fn read(path: &Path, label: &'static str) -> Result<Vec<u8>, KeyError> {
    let io = |error| KeyError::Io {
        path: path.to_owned(),
        error,
    };
    let other = || KeyError::Other {
        path: path.to_owned(),
        wanted: label,
    };
    if fs::metadata(path).map_err(io)?.len() > MAX_PEM {
        return Err(other());
    }
    let text = fs::read_to_string(path).map_err(io)?;
    let begin = format!("-----BEGIN {label}-----");
    let (_, rest) = text.split_once(&begin).ok_or_else(other)?;
    let (body, _) = rest.split_once("-----END").ok_or_else(other)?;
    let body: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(body).map_err(|_| other())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_belongs_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let made = AuditKey::create(&path).unwrap();
        let read = AuditKey::open(&path).unwrap();
        assert_eq!(read.public(), made.public());
        let signature = read.sign(b"text");
        assert!(made.public().proves(b"text", &signature));
        assert!(!made.public().proves(b"other", &signature));
        assert!(!made.public().proves(b"text", "bm9uZQ=="));

        let public = dir.path().join("public.pem");
        fs::write(&public, made.public().to_pem()).unwrap();
        assert_eq!(AuditPublicKey::open(&public).unwrap(), made.public());
        assert!(matches!(
            AuditPublicKey::open(&path),
            Err(KeyError::Other { .. })
        ));
        // One that is there is not written over.
        assert!(matches!(AuditKey::create(&path), Err(KeyError::Io { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600
            );
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
            assert!(matches!(AuditKey::open(&path), Err(KeyError::Open { .. })));
        }
    }

    #[test]
    fn a_key_of_openssl_is_read() {
        // The test vector of RFC 8410, section 10.3 and 10.1.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let private = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC";
        fs::write(&path, pem_of("PRIVATE KEY", private)).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let public = pem_of(
            "PUBLIC KEY",
            "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
        );
        assert_eq!(AuditKey::open(&path).unwrap().public().to_pem(), public);
    }

    fn pem_of(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }
}

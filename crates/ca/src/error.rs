//! What can go wrong with an authority.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the authority, its files, or a leaf. No variant ever carries key material.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer (already part of the message, so not a `source`).
        error: io::Error,
    },
    /// What was read from a file is not usable. The file was left as it is.
    #[error("{}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it (already part of the message, so not a `source`).
        cause: Box<CaError>,
    },
    /// PEM or DER that is broken, truncated or not what it says.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// The thing that was being read.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// No `CERTIFICATE` section.
    #[error("no certificate found (is the file empty or truncated?)")]
    NoCertificate,
    /// No private key section.
    #[error("no private key found (is the file empty or truncated?)")]
    NoKey,
    /// The private key needs a password.
    #[error(
        "the private key is encrypted; decrypt it first, e.g. with `openssl pkey -in FILE -out FILE.plain`"
    )]
    EncryptedKey,
    /// The private key is neither RSA (2048 to 8192 bits) nor EC P-256 or P-384.
    #[error(
        "unsupported private key: an authority needs RSA (2048 to 8192 bits), EC P-256 or EC P-384"
    )]
    UnsupportedKey,
    /// No certificate belongs to the private key.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The certificate may not sign others.
    #[error("the certificate is not a certificate authority: {0}")]
    NotAnAuthority(&'static str),
    /// The authority's certificate is no longer valid.
    #[error(
        "the authority's certificate expired on {not_after}; rotate it and install the new one"
    )]
    Expired {
        /// The end of its validity, RFC 3339.
        not_after: String,
    },
    /// Not a host name or IP address that a certificate can carry.
    #[error("{name:?} cannot be put into a certificate: {reason}")]
    InvalidName {
        /// The name as given, shortened to 255 bytes.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// Not a DNS suffix, IP address or CIDR block.
    #[error("{constraint:?} is not a name constraint: {reason}")]
    InvalidConstraint {
        /// The constraint as given.
        constraint: String,
        /// Why not.
        reason: &'static str,
    },
    /// The authority's name constraints leave this name out.
    #[error("the name constraints of the authority do not permit {name}")]
    NotPermitted {
        /// The name in its normal form.
        name: String,
    },
    /// A parameter is out of range.
    #[error("invalid parameter {name}: {reason}")]
    InvalidParameter {
        /// The field.
        name: &'static str,
        /// Its limits.
        reason: &'static str,
    },
    /// The cryptographic library refused an operation.
    #[error("cryptography failed while {0}")]
    Crypto(&'static str),
}

impl CaError {
    /// Says in which file the problem is.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            located @ (Self::Io { .. } | Self::File { .. }) => located,
            cause => Self::File {
                path: path.to_path_buf(),
                cause: Box::new(cause),
            },
        }
    }

    /// For `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::Io {
            action,
            path,
            error,
        }
    }
}

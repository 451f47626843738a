//! The authority, as this surface has it: PEM text and a fingerprint.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use tollgate_ca::{Authority, AuthorityParams, trust};

use super::config::TlsConfig;
use super::dispatch::random_uuid;
use super::error::{CaError, MitmError};

/// A certificate authority.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateAuthority {
    /// The certificate, PEM.
    pub cert_pem: Vec<u8>,
    /// The private key, PEM. **Secret.**
    pub key_pem: Vec<u8>,
    /// SHA-256 of the certificate (DER), as lower-case hex. (The original put the start of the PEM text
    /// here, which is the same for every authority.)
    pub fingerprint: String,
}

/// Shows no key.
impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    pub(super) fn to_native(&self) -> Result<Authority, CaError> {
        let text = format!(
            "{}\n{}",
            String::from_utf8_lossy(&self.key_pem),
            String::from_utf8_lossy(&self.cert_pem)
        );
        Ok(Authority::from_pem(&text)?)
    }

    fn from_native(authority: &Authority) -> Result<Self, CaError> {
        Ok(Self {
            cert_pem: authority.cert_pem().into_bytes(),
            key_pem: authority.key_pem()?.into_bytes(),
            fingerprint: fingerprint(authority),
        })
    }
}

/// Makes an authority in memory.
///
/// # Errors
/// [`CaError::OperationFailed`].
pub fn generate_ca() -> Result<CertificateAuthority, CaError> {
    CertificateAuthority::from_native(&Authority::generate(&AuthorityParams::default())?)
}

/// Takes an authority from PEM text. Certificate and key are checked to belong together.
///
/// # Errors
/// [`CaError::InvalidMaterial`].
pub fn load_ca(cert: &[u8], key: &[u8]) -> Result<CertificateAuthority, CaError> {
    let mut authority = CertificateAuthority {
        cert_pem: cert.to_vec(),
        key_pem: key.to_vec(),
        fingerprint: String::new(),
    };
    authority.fingerprint = fingerprint(&authority.to_native()?);
    Ok(authority)
}

/// Takes an authority from PEM files.
///
/// # Errors
/// [`CaError::Io`], [`CaError::InvalidMaterial`].
pub fn load_ca_from_files(
    cert_path: impl AsRef<Path>,
    key_path: impl AsRef<Path>,
) -> Result<CertificateAuthority, CaError> {
    CertificateAuthority::from_native(&Authority::from_files(
        cert_path.as_ref(),
        key_path.as_ref(),
    )?)
}

/// Puts the authority into the trust stores of this machine and user. May take seconds.
///
/// # Errors
/// [`CaError::PermissionDenied`] with the command for a person to run, where the process may not.
pub fn install_ca_system_trust(ca: &CertificateAuthority) -> Result<(), CaError> {
    // The name can't be guessed and the file is new, so nobody else on the machine can put a link there.
    let file = std::env::temp_dir().join(format!("soth-mitm-ca-{}.pem", random_uuid()));
    write_new(&file, &ca.cert_pem, 0o644)?;
    let report = trust::install(&ca.to_native()?, &file);
    // A command for a person refers to the file; otherwise it has served.
    if report.is_complete() {
        let _ = fs::remove_file(&file);
    }
    check("install_ca_system_trust", &report)
}

/// Takes the authority out of the trust stores of this machine and user. (The original took no argument and
/// removed what it had installed last.)
///
/// # Errors
/// As [`install_ca_system_trust`].
pub fn uninstall_ca_system_trust(ca: &CertificateAuthority) -> Result<(), CaError> {
    check(
        "uninstall_ca_system_trust",
        &trust::uninstall(&ca.to_native()?),
    )
}

/// Whether the system's store holds the authority. (The original took a fingerprint that was none.)
///
/// # Errors
/// [`CaError::InvalidMaterial`].
pub fn is_ca_trusted(ca: &CertificateAuthority) -> Result<bool, CaError> {
    let report = trust::status(&ca.to_native()?);
    Ok(report.stores.iter().any(|(store, outcome)| {
        *store == trust::Store::System && *outcome == trust::Outcome::Present
    }))
}

/// The authority of the configured files, which are made if there are none.
pub(super) fn open_or_create(tls: &TlsConfig) -> Result<Authority, MitmError> {
    let (cert, key) = (&tls.ca_cert_path, &tls.ca_key_path);
    match (cert.exists(), key.exists()) {
        (true, true) => {
            Authority::from_files(cert, key).map_err(|e| MitmError::CaLoadFailed(e.to_string()))
        }
        (false, false) => {
            let failed = |e: &dyn fmt::Display| MitmError::CaOperationFailed(e.to_string());
            let authority =
                Authority::generate(&AuthorityParams::default()).map_err(|e| failed(&e))?;
            let key_pem = authority.key_pem().map_err(|e| failed(&e))?;
            let write = |path: &Path, text: &str, mode| {
                write_new(path, text.as_bytes(), mode)
                    .map_err(|e| failed(&format_args!("{}: {e}", path.display())))
            };
            write(key, &key_pem, 0o600)?;
            write(cert, &authority.cert_pem(), 0o644)?;
            Ok(authority)
        }
        (there, _) => {
            let (there, missing) = if there { (cert, key) } else { (key, cert) };
            Err(MitmError::CaLoadFailed(format!(
                "{} exists, but {} does not",
                there.display(),
                missing.display()
            )))
        }
    }
}

fn fingerprint(authority: &Authority) -> String {
    authority
        .fingerprint_sha256()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn check(operation: &str, report: &trust::Report) -> Result<(), CaError> {
    let manual: Vec<String> = report
        .stores
        .iter()
        .filter_map(|(store, outcome)| match outcome {
            trust::Outcome::Manual { command, reason } => {
                Some(format!("{store}: {reason}; run: {command}"))
            }
            _ => None,
        })
        .collect();
    if manual.is_empty() {
        Ok(())
    } else {
        Err(CaError::PermissionDenied {
            operation: operation.to_owned(),
            detail: manual.join("\n"),
        })
    }
}

/// Writes a file that must not exist yet.
fn write_new(path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    options.open(path)?.write_all(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_load_what_was_made() {
        let made = generate_ca().unwrap();
        assert_eq!(load_ca(&made.cert_pem, &made.key_pem).unwrap(), made);
        assert_eq!(made.fingerprint.len(), 64);
        let other = generate_ca().unwrap();
        assert_ne!(made.fingerprint, other.fingerprint);
        assert!(matches!(
            load_ca(&made.cert_pem, &other.key_pem),
            Err(CaError::InvalidMaterial(_))
        ));
        assert!(load_ca(b"", b"").is_err());
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn files_are_made_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let tls = TlsConfig {
            ca_cert_path: dir.path().join("new/ca.pem"),
            ca_key_path: dir.path().join("new/key.pem"),
            ..TlsConfig::default()
        };
        let first = open_or_create(&tls).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&tls.ca_key_path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let again = open_or_create(&tls).unwrap();
        assert_eq!(first.fingerprint_sha256(), again.fingerprint_sha256());
        let loaded = load_ca_from_files(&tls.ca_cert_path, &tls.ca_key_path).unwrap();
        assert_eq!(loaded.fingerprint, fingerprint(&first));
        fs::remove_file(&tls.ca_cert_path).unwrap();
        assert!(matches!(
            open_or_create(&tls),
            Err(MitmError::CaLoadFailed(_))
        ));
    }
}

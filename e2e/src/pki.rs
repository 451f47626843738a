//! A throw-away authority for origins, made by the OpenSSL command line: nothing of ours vouches for itself.

use std::fs;
use std::path::{Path, PathBuf};

use crate::LIMIT;
use crate::process::{Process, command};

/// An authority that nothing trusts, and a certificate it signed for `localhost`, `127.0.0.1` and `::1`.
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Makes both, in a folder that is there already. Needs `openssl` 3.
    ///
    /// # Panics
    /// If that fails.
    pub fn create(dir: &Path) -> Self {
        let pki = Self {
            dir: dir.to_owned(),
        };
        // One configuration of our own: a system's openssl.cnf may add extensions.
        let config = dir.join("openssl.cnf");
        fs::write(
            &config,
            "[req]\n\
             distinguished_name = name\n\
             prompt = no\n\
             [name]\n\
             CN = Tollgate end-to-end test\n\
             [authority]\n\
             basicConstraints = critical,CA:TRUE\n\
             keyUsage = critical,keyCertSign,cRLSign\n\
             subjectKeyIdentifier = hash\n\
             [leaf]\n\
             basicConstraints = critical,CA:FALSE\n\
             keyUsage = critical,digitalSignature\n\
             extendedKeyUsage = serverAuth\n\
             subjectKeyIdentifier = hash\n\
             authorityKeyIdentifier = keyid\n\
             subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1\n",
        )
        .unwrap();
        let (ca, ca_key) = (pki.ca(), dir.join("origin-ca.key"));
        let make =
            |extensions: &str, subject: &str, certificate: &Path, key: &Path, signer: bool| {
                let mut openssl = command("openssl");
                openssl
                    .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "3"])
                    .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-sha256"])
                    .args(["-subj", subject, "-extensions", extensions, "-config"])
                    .arg(&config)
                    .arg("-keyout")
                    .arg(key)
                    .arg("-out")
                    .arg(certificate);
                if signer {
                    openssl.arg("-CA").arg(&ca).arg("-CAkey").arg(&ca_key);
                }
                Process::run(openssl, LIMIT).success();
            };
        make("authority", "/CN=Throw-away CA", &ca, &ca_key, false);
        make("leaf", "/CN=localhost", &pki.cert(), &pki.key(), true);
        pki
    }

    /// The authority's certificate (PEM), for `--upstream-trusted-ca`.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("origin-ca.pem")
    }

    /// The origin's certificate (PEM).
    pub fn cert(&self) -> PathBuf {
        self.dir.join("origin.pem")
    }

    /// Its key (PEM).
    pub fn key(&self) -> PathBuf {
        self.dir.join("origin.key")
    }
}

//! What is known and decided about TLS on either side, and how it fails.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tollgate_wire::tls::ClientHello;

use crate::outcome::Side;

/// The client's side of TLS on one connection.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// The client's hello as it came.
    pub hello: Arc<ClientHello>,
    agreed: OnceLock<Agreed>,
    fingerprints: OnceLock<(String, String)>,
}

#[derive(Clone, Debug)]
struct Agreed {
    alpn: Option<Vec<u8>>,
    version: TlsVersion,
    at: SystemTime,
}

impl ClientTls {
    /// What is known when the hello has been read.
    pub fn new(hello: Arc<ClientHello>) -> Self {
        Self {
            hello,
            agreed: OnceLock::new(),
            fingerprints: OnceLock::new(),
        }
    }

    /// The JA3 fingerprint of the hello. Computed at the first call and remembered, like [`ja4`](Self::ja4).
    pub fn ja3(&self) -> &str {
        &self.fingerprints().0
    }

    /// The JA4 fingerprint of the hello.
    pub fn ja4(&self) -> &str {
        &self.fingerprints().1
    }

    fn fingerprints(&self) -> &(String, String) {
        self.fingerprints
            .get_or_init(|| (self.hello.ja3(), self.hello.ja4()))
    }

    /// The protocol that was agreed with the client, e.g. `h2`; `None` before the handshake ended
    /// and where no ALPN was agreed.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.agreed.get()?.alpn.as_deref()
    }

    /// The version that was agreed; `None` where the connection is tunnelled or failed.
    pub fn version(&self) -> Option<TlsVersion> {
        self.agreed.get().map(|agreed| agreed.version)
    }

    /// When the handshake ended.
    pub fn established(&self) -> Option<SystemTime> {
        self.agreed.get().map(|agreed| agreed.at)
    }

    /// Fills in what the handshake agreed on. The first call wins.
    pub fn set_agreed(&self, alpn: Option<Vec<u8>>, version: TlsVersion) {
        let _ = self.agreed.set(Agreed {
            alpn,
            version,
            at: SystemTime::now(),
        });
    }
}

/// A TLS protocol version that Tollgate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    Tls12,
    /// TLS 1.3, RFC 8446.
    Tls13,
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        })
    }
}

/// What to do with a connection whose ClientHello has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsDecision {
    /// As the policy says; the next interceptor may decide.
    #[default]
    Default,
    /// Open TLS.
    Intercept,
    /// Pass the bytes unopened.
    Tunnel,
    /// Refuse: the client gets a TLS alert, the origin not one byte of TLS.
    Block,
}

/// A TLS handshake that did not succeed.
#[derive(Clone, Debug)]
pub struct TlsFailure {
    /// Whose handshake: the client's with us, or ours with the origin.
    pub side: Side,
    /// What went wrong.
    pub kind: TlsFailureKind,
    /// The host that the client wanted.
    pub host: Arc<str>,
    /// The library's words, for a log.
    pub detail: String,
}

impl fmt::Display for TlsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.side {
            Side::Client => "TLS handshake with the client failed",
            _ => "TLS handshake with the origin failed",
        };
        write!(f, "{who} ({}): {}", self.host, self.kind)?;
        if !self.detail.is_empty() {
            write!(f, " [{}]", self.detail)?;
        }
        Ok(())
    }
}

/// Why a TLS handshake failed: from the alert or the error's type, never from its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFailureKind {
    /// The client does not know our authority (alert `unknown_ca`): it isn't installed there.
    UnknownAuthority,
    /// The client refused our certificate by other words (`bad_certificate`,
    /// `certificate_unknown`, …) or hung up right after seeing it: probably pinned.
    Pinned,
    /// The origin's certificate does not verify.
    OriginCertificate(CertificateProblem),
    /// The origin wants a client certificate and got none that it accepts.
    ClientCertificateRequired,
    /// The handshake took too long.
    Timeout,
    /// The peer closed or reset the connection.
    Reset,
    /// No version, cipher suite, group or ALPN protocol in common.
    NoSharedParameters,
    /// The peer broke the protocol, or sent an alert that says we did.
    Protocol,
    /// No certificate could be made for the host.
    Minting,
}

impl TlsFailureKind {
    /// A short stable name for logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownAuthority => "unknown_ca",
            Self::Pinned => "pinned",
            Self::OriginCertificate(problem) => problem.code(),
            Self::ClientCertificateRequired => "client_certificate_required",
            Self::Timeout => "timeout",
            Self::Reset => "eof_or_reset",
            Self::NoSharedParameters => "no_shared_parameters",
            Self::Protocol => "protocol",
            Self::Minting => "minting",
        }
    }
}

impl fmt::Display for TlsFailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownAuthority => {
                "the client does not trust our authority; install its certificate there"
            }
            Self::Pinned => {
                "the client refused our certificate; it may be pinned (ignore the host to tunnel it)"
            }
            Self::OriginCertificate(problem) => return problem.fmt(f),
            Self::ClientCertificateRequired => "the origin requires a client certificate",
            Self::Timeout => "timed out",
            Self::Reset => "the peer closed the connection",
            Self::NoSharedParameters => "no TLS version or cipher in common",
            Self::Protocol => "protocol error",
            Self::Minting => "no certificate could be made for this host",
        })
    }
}

/// What is wrong with an origin's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CertificateProblem {
    /// Its validity is over.
    Expired,
    /// Its validity has not begun.
    NotYetValid,
    /// It is for another name.
    WrongHost,
    /// It signed itself.
    SelfSigned,
    /// Nobody we trust signed it.
    UnknownIssuer,
    /// It was revoked.
    Revoked,
    /// A signature does not verify.
    BadSignature,
    /// It is not for servers.
    WrongPurpose,
    /// It can't be parsed, or breaks a rule that has no variant here.
    Invalid,
}

impl CertificateProblem {
    /// A short stable name for logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::WrongHost => "certificate_wrong_host",
            Self::SelfSigned => "certificate_self_signed",
            Self::UnknownIssuer => "certificate_unknown_issuer",
            Self::Revoked => "certificate_revoked",
            Self::BadSignature => "certificate_bad_signature",
            Self::WrongPurpose => "certificate_wrong_purpose",
            Self::Invalid => "certificate_invalid",
        }
    }
}

impl fmt::Display for CertificateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the origin's certificate has expired",
            Self::NotYetValid => "the origin's certificate is not valid yet",
            Self::WrongHost => "the origin's certificate is for another host",
            Self::SelfSigned => "the origin's certificate is self-signed",
            Self::UnknownIssuer => "the origin's certificate comes from an unknown authority",
            Self::Revoked => "the origin's certificate was revoked",
            Self::BadSignature => "a signature in the origin's certificate chain is wrong",
            Self::WrongPurpose => "the origin's certificate is not meant for servers",
            Self::Invalid => "the origin's certificate is invalid",
        })
    }
}

//! Names TLS failures: from the alert and the error's type, never from its text.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error};
use tollgate_flow::{CertificateProblem, Side, TlsFailure, TlsFailureKind};

use crate::tls::handshake::HandshakeError;

/// Names the failure of a handshake with a client.
pub(crate) fn client(error: &HandshakeError, host: &Arc<str>) -> TlsFailure {
    let kind = match error {
        HandshakeError::Tls(Error::AlertReceived(alert)) => match alert {
            AlertDescription::UnknownCA => TlsFailureKind::UnknownAuthority,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => TlsFailureKind::Pinned,
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::NoApplicationProtocol => TlsFailureKind::NoSharedParameters,
            AlertDescription::UserCanceled => TlsFailureKind::Reset,
            _ => TlsFailureKind::Protocol,
        },
        // Clients that pin often just hang up once they have seen the certificate.
        HandshakeError::Closed { after_flight: true } => TlsFailureKind::Pinned,
        other => common(other),
    };
    failure(Side::Client, kind, error, host)
}

/// Names the failure of a handshake with an origin.
pub(crate) fn upstream(error: &HandshakeError, host: &Arc<str>) -> TlsFailure {
    let kind = match error {
        HandshakeError::Tls(Error::InvalidCertificate(certificate)) => {
            TlsFailureKind::OriginCertificate(certificate_problem(certificate))
        }
        HandshakeError::Tls(Error::AlertReceived(alert)) => match alert {
            AlertDescription::CertificateRequired => TlsFailureKind::ClientCertificateRequired,
            AlertDescription::ProtocolVersion
            | AlertDescription::HandshakeFailure
            | AlertDescription::InsufficientSecurity
            | AlertDescription::UnrecognisedName
            | AlertDescription::NoApplicationProtocol => TlsFailureKind::NoSharedParameters,
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => TlsFailureKind::ClientCertificateRequired,
            _ => TlsFailureKind::Protocol,
        },
        HandshakeError::Tls(Error::NoCertificatesPresented) => {
            TlsFailureKind::OriginCertificate(CertificateProblem::Invalid)
        }
        other => common(other),
    };
    failure(Side::Upstream, kind, error, host)
}

fn common(error: &HandshakeError) -> TlsFailureKind {
    match error {
        HandshakeError::Tls(Error::PeerIncompatible(_)) => TlsFailureKind::NoSharedParameters,
        HandshakeError::Tls(Error::NoApplicationProtocol) => TlsFailureKind::NoSharedParameters,
        HandshakeError::Tls(_) | HandshakeError::Record(_) => TlsFailureKind::Protocol,
        HandshakeError::Closed { .. } => TlsFailureKind::Reset,
        HandshakeError::Io(e) if e.kind() == io::ErrorKind::TimedOut => TlsFailureKind::Timeout,
        HandshakeError::Io(_) => TlsFailureKind::Reset,
    }
}

/// Names what is wrong with a certificate.
pub(crate) fn certificate_problem(error: &CertificateError) -> CertificateProblem {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => CertificateProblem::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => CertificateProblem::NotYetValid,
        E::NotValidForName | E::NotValidForNameContext { .. } => CertificateProblem::WrongHost,
        E::UnknownIssuer => CertificateProblem::UnknownIssuer,
        E::ApplicationVerificationFailure => CertificateProblem::SelfSigned,
        E::Revoked => CertificateProblem::Revoked,
        E::BadSignature => CertificateProblem::BadSignature,
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => CertificateProblem::WrongPurpose,
        _ => CertificateProblem::Invalid,
    }
}

fn failure(
    side: Side,
    kind: TlsFailureKind,
    error: &HandshakeError,
    host: &Arc<str>,
) -> TlsFailure {
    TlsFailure {
        side,
        kind,
        host: Arc::clone(host),
        detail: error.to_string(),
    }
}

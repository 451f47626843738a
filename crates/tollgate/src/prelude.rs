//! What nearly every embedder needs: `use tollgate::prelude::*;`.

pub use tollgate_flow::{
    Bytes, ClientHello, ConnectDecision, ConnectionInfo, Direction, Flow, Interceptor, Interest,
    OnFailure, Outcome, OutcomeKind, Piece, Reply, Step, Target, TlsDecision, TlsFailure,
};

#[cfg(feature = "tls-intercept")]
pub use crate::CertificateAuthority;
#[cfg(feature = "sse-parsing")]
pub use crate::sse::{SseEvent, SseParser};
#[cfg(feature = "http-proxy")]
pub use crate::{
    Action, Config, Handle, HostPattern, Listen, Policy, Proxy, ProxyBuilder, ProxyError,
};

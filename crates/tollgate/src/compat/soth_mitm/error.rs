//! Errors of the proxy and of the authority.

/// An error of the proxy's lifecycle.
#[derive(Debug, thiserror::Error)]
pub enum MitmError {
    /// A configuration that can't be used, or a change that a running proxy can't make.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),
    /// The configured authority can't be loaded.
    #[error("certificate authority load failed: {0}")]
    CaLoadFailed(String),
    /// An authority could not be made or written.
    #[error("certificate authority operation failed: {0}")]
    CaOperationFailed(String),
    /// A socket or file failed: the address is in use, say, or a shutdown took too long (`TimedOut`).
    #[error("runtime I/O error: {0}")]
    Io(#[from] std::io::Error),
    /// A task failed. Not used by this adapter; kept so that matches on it compile.
    #[error("task join error: {0}")]
    Join(#[from] tokio::task::JoinError),
}

/// An error of an authority or a trust store.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The store needs rights that the process does not have; `detail` says what a person can run.
    #[error("permission denied while performing {operation}: {detail}")]
    PermissionDenied {
        /// What was tried.
        operation: String,
        /// Why it failed, and the command that does it.
        detail: String,
    },
    /// Something failed that no other variant names.
    #[error("certificate authority operation failed: {0}")]
    OperationFailed(String),
    /// Certificate or key is broken, or they don't belong together.
    #[error("invalid certificate authority material: {0}")]
    InvalidMaterial(String),
    /// Not on this platform.
    #[error("unsupported operation: {0}")]
    UnsupportedOperation(String),
    /// A file could not be read or written.
    #[error("I/O error: {0}")]
    Io(#[from] std::io::Error),
}

impl From<tollgate_engine::ConfigError> for MitmError {
    fn from(error: tollgate_engine::ConfigError) -> Self {
        Self::InvalidConfig(error.to_string())
    }
}

impl From<tollgate_engine::ProxyError> for MitmError {
    fn from(error: tollgate_engine::ProxyError) -> Self {
        use tollgate_engine::ProxyError;
        match error {
            ProxyError::Config(error) => error.into(),
            ProxyError::Bind { address, error } => Self::Io(std::io::Error::new(
                error.kind(),
                format!("can't listen at {address}: {error}"),
            )),
            ProxyError::Authority(error) => Self::CaOperationFailed(error.to_string()),
            error => Self::Io(std::io::Error::other(error.to_string())),
        }
    }
}

impl From<tollgate_ca::CaError> for CaError {
    fn from(error: tollgate_ca::CaError) -> Self {
        use tollgate_ca::CaError as Native;
        match error {
            Native::Io { error: ref io, .. } => {
                Self::Io(std::io::Error::new(io.kind(), error.to_string()))
            }
            Native::Crypto(_) => Self::OperationFailed(error.to_string()),
            error => Self::InvalidMaterial(error.to_string()),
        }
    }
}

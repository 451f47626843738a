//! How a flow ends.

use std::borrow::Cow;
use std::fmt;

/// Which side of the proxy something happened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Between the client and us.
    Client,
    /// Between us and the origin (or a proxy on the way to it).
    Upstream,
    /// In the proxy itself: a limit, an interceptor, the file system.
    Proxy,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Proxy => "proxy",
        })
    }
}

/// The class of an error, for metrics and for deciding what to tell the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// A name could not be resolved.
    Dns,
    /// A TCP connection could not be made.
    Connect,
    /// A TLS handshake failed.
    Tls,
    /// A stage took longer than its limit.
    Timeout,
    /// The peer reset or closed the connection in the middle.
    Reset,
    /// The peer broke its protocol.
    Protocol,
    /// A limit of the proxy was reached.
    Limit,
    /// An interceptor failed (and is declared to fail closed).
    Interceptor,
    /// The proxy is shutting down.
    Shutdown,
    /// The request would come back to ourselves.
    Loop,
    /// The policy refuses it.
    Blocked,
    /// The client did not show who it is, where the proxy asks for it.
    Unauthenticated,
}

impl ErrorClass {
    /// A short stable name for logs and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::Limit => "limit",
            Self::Interceptor => "interceptor",
            Self::Shutdown => "shutdown",
            Self::Loop => "loop",
            Self::Blocked => "blocked",
            Self::Unauthenticated => "unauthenticated",
        }
    }
}

/// What went wrong with a flow: which side, what kind, and a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowError {
    /// The side that failed.
    pub side: Side,
    /// The kind of failure.
    pub class: ErrorClass,
    /// A sentence for a person; carries no secret.
    pub message: Cow<'static, str>,
}

impl FlowError {
    /// An error with its sentence.
    pub fn new(side: Side, class: ErrorClass, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            side,
            class,
            message: message.into(),
        }
    }
}

impl fmt::Display for FlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.side, self.message)
    }
}

impl std::error::Error for FlowError {}

/// The one end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What kind of end.
    pub kind: OutcomeKind,
    /// Why, where it did not simply complete.
    pub error: Option<FlowError>,
}

impl Outcome {
    /// The flow completed.
    pub const COMPLETED: Self = Self {
        kind: OutcomeKind::Completed,
        error: None,
    };

    /// The flow failed by `error`.
    pub fn failed(error: FlowError) -> Self {
        Self {
            kind: OutcomeKind::Failed,
            error: Some(error),
        }
    }
}

/// The kinds of ends that a flow has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutcomeKind {
    /// Request and response passed whole.
    Completed,
    /// The proxy answered instead of the origin (an interceptor's reply, a policy's refusal).
    Answered,
    /// The connection was switched to another protocol, which has ended.
    Upgraded,
    /// An interceptor dropped or closed it.
    Dropped,
    /// Something failed; see the error.
    Failed,
}

impl OutcomeKind {
    const ALL: [Self; 5] = [
        Self::Completed,
        Self::Answered,
        Self::Upgraded,
        Self::Dropped,
        Self::Failed,
    ];

    /// A short stable name for logs and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Answered => "answered",
            Self::Upgraded => "upgraded",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }

    /// The kind of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

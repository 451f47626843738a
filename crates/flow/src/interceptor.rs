//! The trait that observes and edits flows.

use bitflags::bitflags;
use tollgate_wire::tls::ClientHello;

use crate::connection::{ConnectionInfo, Target};
use crate::flow::Flow;
use crate::message::Message;
use crate::outcome::Outcome;
use crate::step::Step;
use crate::tls::{TlsDecision, TlsFailure};

/// Observes and edits flows. Every method has a default, so an interceptor is as long as what it does.
///
/// Hooks are synchronous and run on the connection's worker: do no I/O in them. To wait for
/// something, return [`Step::Hold`]. Interceptors run in the order in which they were added; a
/// step other than [`Step::Continue`] ends the round for that hook.
///
/// The order for one connection is `connection_opened`, `connect`, `tls`, then for each flow
/// `interest`, `request`, `data`*, `response`, `data`*, `end` (request and response data may
/// overlap, and `message` is called among them), and last `connection_closed`. `end` is called exactly once for each flow whose
/// interest was not empty, `connection_closed` exactly once for each `connection_opened`.
///
/// ```
/// use tollgate_flow::{Flow, Interceptor, Interest, Step};
///
/// /// Hides the origin's software.
/// struct NoServer;
///
/// impl Interceptor for NoServer {
///     fn interest(&self, _: &Flow) -> Interest {
///         Interest::RESPONSE
///     }
///     fn response(&self, flow: &mut Flow) -> Step {
///         if let Some(response) = &mut flow.response {
///             response.headers_mut().remove("server");
///         }
///         Step::Continue
///     }
/// }
/// ```
pub trait Interceptor: Send + Sync + 'static {
    /// A name for logs and metrics.
    fn name(&self) -> &str {
        std::any::type_name::<Self>()
    }

    /// What a panic in a hook, or an error that leaves no answer, means for the flow.
    fn on_failure(&self) -> OnFailure {
        OnFailure::Closed
    }

    /// A client has connected.
    fn connection_opened(&self, _connection: &ConnectionInfo) {}

    /// A client's connection has ended, whatever the way.
    fn connection_closed(&self, _connection: &ConnectionInfo) {}

    /// The client asked for a connection to `target` (`CONNECT`, SOCKS, …). Nothing has been dialled.
    fn connect(&self, _target: &Target, _connection: &ConnectionInfo) -> ConnectDecision {
        ConnectDecision::Default
    }

    /// A ClientHello arrived; the client has been sent nothing yet.
    fn tls(&self, _hello: &ClientHello, _connection: &ConnectionInfo) -> TlsDecision {
        TlsDecision::Default
    }

    /// A TLS handshake failed on either side. Called once for each failure.
    fn tls_failed(&self, _failure: &TlsFailure, _connection: &ConnectionInfo) {}

    /// What this interceptor wants of a flow, asked when its request head has been read.
    /// What nobody wants is forwarded verbatim and costs nothing.
    fn interest(&self, _flow: &Flow) -> Interest {
        Interest::NONE
    }

    /// The request head is there (with [`Interest::REQUEST_BODY`]: the whole request). Nothing has
    /// been sent to the origin, and nothing has been dialled for this flow.
    fn request(&self, _flow: &mut Flow) -> Step {
        Step::Continue
    }

    /// The response head is there (with [`Interest::RESPONSE_BODY`]: the whole response). Nothing of
    /// it has been sent to the client.
    fn response(&self, _flow: &mut Flow) -> Step {
        Step::Continue
    }

    /// Asked once after `response`, of who asked for [`Interest::EDIT_RESPONSE_DATA`]: whether it still wants to, now
    /// that the response's head is known. Who says no is offered none of its pieces; a body that nobody edits keeps its
    /// framing.
    fn edits_response(&self, _flow: &Flow) -> bool {
        true
    }

    /// A piece of a body passes.
    fn data(&self, _flow: &mut Flow, _piece: Piece<'_>) -> Step {
        Step::Continue
    }

    /// A message within a stream passes: of a WebSocket, or of a body that is a stream by its type.
    ///
    /// With [`Interest::MESSAGES`] it is seen before its last byte goes on, and the bytes pass as
    /// they are. With [`Interest::EDIT_MESSAGES`] a message of a WebSocket waits for the answer:
    /// [`Step::Replace`] sends other content, [`Step::Drop`] nothing, [`Step::Close`] closes both
    /// sides with a close frame (without `EDIT_MESSAGES` the connections are cut).
    fn message(&self, _flow: &mut Flow, _message: Message<'_>) -> Step {
        Step::Continue
    }

    /// The flow has ended. The last call for this flow.
    fn end(&self, _flow: &Flow, _outcome: &Outcome) {}

    /// What it has counted since it was made, for metrics: names in snake case, and numbers that only grow. Called from any
    /// thread when somebody looks, so it must not wait for anything.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What to do about a connection that a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectDecision {
    /// As the policy says; the next interceptor may decide.
    #[default]
    Default,
    /// Connect, look inside.
    Intercept,
    /// Connect, pass the bytes unopened.
    Tunnel,
    /// Refuse with 403; nothing is dialled.
    Block,
}

/// What a failure of an interceptor means for the flow it failed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// The flow ends with an error: 502 while nothing was sent, else the connection closes.
    Closed,
    /// The flow goes on as if the hook had answered `Continue`.
    Open,
}

bitflags! {
    /// What an interceptor wants of a flow.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Interest: u16 {
        /// `request` is called.
        const REQUEST = 1;
        /// `response` is called.
        const RESPONSE = 1 << 1;
        /// `data` is called for pieces of the request body.
        const REQUEST_DATA = 1 << 2;
        /// `data` is called for pieces of the response body.
        const RESPONSE_DATA = 1 << 3;
        /// `data` may change or drop pieces of the request body: it is sent with chunked framing
        /// and pieces are offered as they are on the wire (still content-coded).
        const EDIT_REQUEST_DATA = 1 << 4 | 1 << 2;
        /// The same for the response body.
        const EDIT_RESPONSE_DATA = 1 << 5 | 1 << 3;
        /// The whole request body is collected (up to the engine's `body_limit`; a larger one is
        /// answered 413) before `request` is called, and may be replaced there.
        const REQUEST_BODY = 1 << 6 | 1;
        /// The whole response body is collected (up to the engine's `body_limit`; of a larger one
        /// the response streams on and [`Response::body`](crate::Response::body) is `None`).
        /// Responses that are streams by their type (event streams, NDJSON, gRPC, …) are never
        /// held back: their body is `None` too; ask for their pieces.
        const RESPONSE_BODY = 1 << 7 | 1 << 1;
        /// Pieces are offered after content decoding (gzip, deflate, br, zstd). For observers: it
        /// has no effect together with an `EDIT` flag.
        const DECODED = 1 << 8;
        /// `end` is called. Implied by every other flag.
        const END = 1 << 9;
        /// `message` is called for messages of a WebSocket, and for those within bodies that are
        /// streams by their type, whatever their content coding. What can't be read, or is larger
        /// than the engine's `message_bytes`, passes unseen from there on: the flow is marked with
        /// [`UNREAD_MESSAGES`](crate::UNREAD_MESSAGES).
        const MESSAGES = 1 << 10;
        /// `message` may change, drop and add messages of a WebSocket: frames are read and written
        /// anew where something changed, extensions that can't be read are not offered to the
        /// origin, and a WebSocket that breaks the protocol or a bound is closed. (Bodies are
        /// edited with `EDIT_*_DATA`.)
        const EDIT_MESSAGES = 1 << 11 | 1 << 10;
    }
}

impl Interest {
    /// Nothing at all.
    pub const NONE: Self = Self::empty();
    /// Both heads.
    pub const HEADS: Self = Self::REQUEST.union(Self::RESPONSE);
    /// Pieces of both bodies.
    pub const DATA: Self = Self::REQUEST_DATA.union(Self::RESPONSE_DATA);
    /// Both bodies whole.
    pub const BODIES: Self = Self::REQUEST_BODY.union(Self::RESPONSE_BODY);
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client to the origin.
    Request,
    /// From the origin to the client.
    Response,
}

/// A piece of a body.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// The bytes; empty for the last piece of a body.
    pub data: &'a [u8],
    /// True once for each body that was watched and ended properly, with empty `data` (trailers
    /// are in the flow by then).
    pub last: bool,
}

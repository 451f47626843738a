//! The flow: one recorded exchange, the traits that touch it, and the formats it is kept in.
//!
//! A [`Flow`] is made when a request head has been read and ends in exactly one [`Outcome`].
//! An [`Interceptor`] observes and edits flows while they pass. This crate does no I/O but a
//! format's and knows no sockets: the engine fills flows in and calls the interceptors.
//!
//! A [`Record`](record::Record) is a flow that was recorded: [`filter`] says which, [`mitm`] and [`har`] read and write
//! files of them, [`export`] makes commands of one.
//!
//! ```
//! use tollgate_flow::{Flow, Interceptor, Interest, Reply, Step};
//!
//! /// Answers every request for `/health` itself and marks all others.
//! struct Health;
//!
//! impl Interceptor for Health {
//!     fn interest(&self, _flow: &Flow) -> Interest {
//!         Interest::REQUEST
//!     }
//!
//!     fn request(&self, flow: &mut Flow) -> Step {
//!         if flow.request.path() == b"/health" {
//!             return Step::respond(Reply::new(200).text("fine"));
//!         }
//!         let _ = flow.request.headers_mut().set(b"via-tollgate", b"1");
//!         Step::Continue
//!     }
//! }
//! ```
#![forbid(unsafe_code)]

mod connection;
pub mod export;
pub mod filter;
mod flow;
pub mod har;
pub mod hold;
mod interceptor;
mod message;
pub mod mitm;
mod outcome;
pub mod record;
mod step;
mod suggest;
mod text;
mod tls;
mod upstream_proxy;
mod url;
mod value;
mod websocket;

pub use bytes::Bytes;
pub use connection::{
    ConnectionId, ConnectionInfo, ProcessInfo, ProcessResolver, Target, UpstreamInfo,
};
pub use flow::{Flow, FlowId, FlowKind, HttpVersion, Request, Response, Scheme, Timing};
pub use interceptor::{ConnectDecision, Direction, Interceptor, Interest, OnFailure, Piece};
pub use message::{Message, MessageKind, UNREAD_MESSAGES};
pub use outcome::{ErrorClass, FlowError, Outcome, OutcomeKind, Side};
pub use step::{Edit, EditStep, Hold, KeepAlive, PieceMark, Reply, Step};
pub use suggest::{closest, with_suggestion};
pub use tls::{CertificateProblem, ClientTls, TlsDecision, TlsFailure, TlsFailureKind, TlsVersion};
pub use tollgate_wire::headers::{HeaderList, InvalidHeader};
pub use tollgate_wire::tls::ClientHello;
pub use upstream_proxy::{Credentials, InvalidProxy, ProxyScheme, UpstreamProxy, Via};
pub use url::UrlParts;
pub use value::Value;
pub use websocket::{InjectError, Injected, WebSocket, WebSocketClose, WebSocketHandle};

//! A flow that has been recorded: what files, exports, filters and replays work with.
//!
//! A [`Record`] holds everything that mitmproxy's flow files hold (format version 21), so that reading and writing one
//! loses nothing, and what Tollgate knows beyond that ([`Facts`], cut marks of bodies).
//! A live [`Flow`](crate::Flow) becomes one with [`Record::from_flow`].

mod connection;
mod dns;
mod headers;
mod http;
mod live;
mod timestamp;

use std::sync::Arc;

use bytes::Bytes;

pub use connection::{
    Address, Certificates, ClientConnection, Connection, ServerConnection, Transport, Via,
};
pub use dns::{DnsExchange, DnsMessage, Question, ResourceRecord};
pub use headers::HeaderFields;
pub(crate) use headers::write_line;
pub(crate) use http::decode;
pub use http::{
    Body, HttpExchange, HttpMessage, HttpRequest, HttpResponse, WebSocketData, WebSocketMessage,
};
pub use timestamp::Timestamp;

use crate::connection::ProcessInfo;
use crate::flow::FlowId;
use crate::outcome::OutcomeKind;
use crate::step::PieceMark;
use crate::value::{Value, lookup};

/// A recorded flow.
///
/// ```
/// use tollgate_flow::record::{Body, HttpExchange, HttpRequest, Record};
///
/// let mut request = HttpRequest::new("GET", "https", "example.com", 443, "/");
/// request.message.headers.push("Host", "example.com");
/// let record = Record::http("01234567-89ab-7def-8123-456789abcdef", HttpExchange::new(request));
/// assert_eq!(record.as_http().unwrap().request.pretty_url(), "https://example.com/");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Identifies the flow; a UUID, in what Tollgate and mitmproxy write.
    pub id: String,
    /// When the flow was made. A replay does not change it.
    pub created: Timestamp,
    /// The client's connection.
    pub client: ClientConnection,
    /// The connection to the origin, or what is known of where it would have gone.
    pub server: ServerConnection,
    /// What went wrong. A flow can have a response and an error.
    pub error: Option<RecordError>,
    /// Whether the flow was being held when it was written.
    pub intercepted: bool,
    /// Whether, and what of it, was replayed.
    pub replay: Option<Replay>,
    /// A mark that a person set: `:red_circle:` and other emoji names, a character, or empty for none.
    pub marked: String,
    /// What a person wrote about it.
    pub comment: String,
    /// What interceptors and add-ons left.
    pub metadata: Metadata,
    /// What Tollgate knows and mitmproxy has no field for.
    pub facts: Facts,
    /// The flow as it was before somebody edited it, in the form of a flow file.
    pub backup: Option<Box<Value>>,
    /// What passed.
    pub content: Content,
}

/// What passed in a flow, by its type.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A request, its response, and the WebSocket that it opened.
    Http(Box<HttpExchange>),
    /// Bytes over TCP.
    Tcp(Vec<StreamMessage>),
    /// Datagrams.
    Udp(Vec<StreamMessage>),
    /// A DNS query and its answer.
    Dns(Box<DnsExchange>),
}

/// The type of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlowType {
    /// HTTP, WebSocket included.
    Http,
    /// TCP that is no HTTP.
    Tcp,
    /// UDP.
    Udp,
    /// DNS.
    Dns,
}

impl FlowType {
    /// As flow files spell it: `http`, `tcp`, `udp`, `dns`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Dns => "dns",
        }
    }
}

/// A piece of what passed over TCP, or a datagram. Boundaries of TCP pieces mean nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamMessage {
    /// Whether the client sent it.
    pub from_client: bool,
    /// The bytes.
    pub content: Bytes,
    /// When it passed.
    pub timestamp: Timestamp,
}

/// What went wrong with a recorded flow.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordError {
    /// A sentence for a person.
    pub message: String,
    /// When it happened.
    pub timestamp: Timestamp,
}

impl RecordError {
    /// How mitmproxy words the end of a flow that somebody killed.
    pub const KILLED: &'static str = "Connection killed.";
}

/// What of a flow was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The request was sent again by the proxy.
    Request,
    /// The response came from a recording.
    Response,
}

impl Replay {
    /// `request` or `response`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// What interceptors and add-ons left on a flow, in the order in which they did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub Vec<(Value, Value)>);

impl Metadata {
    /// The value under a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        lookup(&self.0, key)
    }

    /// Puts a value under a key, in place of what was there.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self
            .0
            .iter_mut()
            .find(|(name, _)| name.as_str() == Some(key))
        {
            Some((_, slot)) => *slot = value,
            None => self.0.push((key.into(), value)),
        }
    }

    /// Takes the value under a key out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self
            .0
            .iter()
            .position(|(name, _)| name.as_str() == Some(key))?;
        Some(self.0.remove(at).1)
    }

    /// Adds a note as interceptors leave them: a second one under the same key makes a list.
    pub fn note(&mut self, key: &str, text: &str) {
        match self
            .0
            .iter_mut()
            .find(|(name, _)| name.as_str() == Some(key))
        {
            Some((_, Value::List(notes))) => notes.push(text.into()),
            Some((_, slot)) => {
                let first = std::mem::replace(slot, Value::Null);
                *slot = Value::List(vec![first, text.into()]);
            }
            None => self.0.push((key.into(), text.into())),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What Tollgate knows of a flow and mitmproxy has no field for. Files carry it in the metadata, under `tollgate`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// The JA3 fingerprint of the client's hello.
    pub ja3: Option<String>,
    /// The JA4 fingerprint of the client's hello.
    pub ja4: Option<String>,
    /// The client's process, where somebody asked for it.
    pub process: Option<Arc<ProcessInfo>>,
    /// How the flow ended; `None` for one that had not ended yet.
    pub outcome: Option<OutcomeKind>,
    /// In what pieces the body of the response came, and when; empty where nobody asked for it.
    pub response_pieces: Vec<PieceMark>,
}

/// The key in a live flow's metadata under which screening leaves what it found, one entry for each finding.
pub const FINDING: &str = "finding";

/// The key in a live flow's metadata under which screening leaves what models used to answer: an object of JSON.
pub const USAGE: &str = "usage";

/// The key in a record's metadata for the rules that acted on it: each with its action and name.
pub const RULE: &str = "rule";

impl Record {
    /// An HTTP flow of which nothing but the exchange is known.
    pub fn http(id: impl Into<String>, exchange: HttpExchange) -> Self {
        let created = exchange.request.message.started;
        Self::new(id, created, Content::Http(Box::new(exchange)))
    }

    /// A flow of which nothing but its content is known.
    pub fn new(id: impl Into<String>, created: Timestamp, content: Content) -> Self {
        Self {
            id: id.into(),
            created,
            client: ClientConnection::default(),
            server: ServerConnection::default(),
            error: None,
            intercepted: false,
            replay: None,
            marked: String::new(),
            comment: String::new(),
            metadata: Metadata::default(),
            facts: Facts::default(),
            backup: None,
            content,
        }
    }

    /// The type of the flow.
    pub fn flow_type(&self) -> FlowType {
        match &self.content {
            Content::Http(_) => FlowType::Http,
            Content::Tcp(_) => FlowType::Tcp,
            Content::Udp(_) => FlowType::Udp,
            Content::Dns(_) => FlowType::Dns,
        }
    }

    /// The id, where it is a UUID.
    pub fn flow_id(&self) -> Option<FlowId> {
        FlowId::parse(&self.id)
    }

    /// The exchange of an HTTP flow.
    pub fn as_http(&self) -> Option<&HttpExchange> {
        match &self.content {
            Content::Http(exchange) => Some(exchange),
            _ => None,
        }
    }

    /// The exchange of an HTTP flow, to change it.
    pub fn as_http_mut(&mut self) -> Option<&mut HttpExchange> {
        match &mut self.content {
            Content::Http(exchange) => Some(exchange),
            _ => None,
        }
    }

    /// What screening found, in order.
    pub fn findings(&self) -> impl Iterator<Item = &str> {
        let notes = match self.metadata.get(FINDING) {
            Some(Value::List(notes)) => notes.as_slice(),
            Some(note) => std::slice::from_ref(note),
            None => &[],
        };
        notes.iter().filter_map(Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_under_one_key_become_a_list() {
        let mut metadata = Metadata::default();
        metadata.note(FINDING, "a");
        assert_eq!(metadata.get(FINDING), Some(&"a".into()));
        metadata.note(FINDING, "b");
        metadata.note(FINDING, "c");
        let mut record = Record::new("x", Timestamp::default(), Content::Tcp(Vec::new()));
        record.metadata = metadata;
        assert_eq!(record.findings().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(record.metadata.remove(FINDING).is_some());
        assert!(record.metadata.is_empty());
    }
}

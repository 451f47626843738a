//! What a filter is asked about.

use std::borrow::Cow;
use std::io::Write as _;
use std::time::Duration;

use crate::connection::ProcessInfo;
use crate::flow::{Flow, FlowKind, HttpVersion};
use crate::interceptor::Direction;
use crate::record::{
    Content, FINDING, FlowType, HttpExchange, HttpMessage, Record, Replay, StreamMessage, Timestamp,
};
use crate::url::UrlParts;

/// Something that a filter can be asked about.
///
/// Implemented by [`Flow`], as far as it is known at that moment, and by [`Record`].
pub trait Subject {
    /// The type of the flow.
    fn flow_type(&self) -> FlowType;

    /// Whether it has an error.
    fn has_error(&self) -> bool;

    /// Whether it has a response (HTTP, DNS).
    fn has_response(&self) -> bool;

    /// Whether it became a WebSocket.
    fn is_websocket(&self) -> bool;

    /// What of it was replayed.
    fn replay(&self) -> Option<Replay>;

    /// The status code of an HTTP response.
    fn status(&self) -> Option<u16>;

    /// Bytes of bodies or messages that passed in a direction; `None` when it isn't known.
    fn size(&self, direction: Direction) -> Option<u64>;

    /// From the request to the end of the response; `None` before the end.
    fn duration(&self) -> Option<Duration>;

    /// Whether one of the texts of a field passes a test: calls it with each until it answers true.
    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}

/// The texts of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The method.
    Method,
    /// The URL with the host that the request names; the name that a DNS query asks first.
    Url,
    /// The host that the request went to, and the one that it names.
    Host,
    /// All header lines of a message, as `name: value` with CRLF.
    HeaderBlock(Direction),
    /// Each `Content-Type`.
    ContentType(Direction),
    /// The decoded body; each message of a WebSocket, of TCP or UDP; the text of a DNS message.
    Body(Direction),
    /// `address:port` of the client.
    Source,
    /// `host:port` of the origin.
    Destination,
    /// The metadata, as lines `key: value`.
    Metadata,
    /// The mark; empty for none.
    Marker,
    /// The comment; empty for none.
    Comment,
    /// Each finding of screening.
    Finding,
    /// Name, path and command line of the client's process.
    Process,
    /// The JA3 fingerprint.
    Ja3,
    /// The JA4 fingerprint.
    Ja4,
    /// The server name in the client's hello.
    Sni,
    /// The HTTP version of the request.
    Version,
    /// The flow's id.
    Id,
}

/// What is so or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// An HTTP flow.
    Http,
    /// A TCP flow.
    Tcp,
    /// A UDP flow.
    Udp,
    /// A DNS flow.
    Dns,
    /// An HTTP flow that became a WebSocket.
    WebSocket,
    /// It has an error.
    Error,
    /// HTTP or DNS, with a response.
    Response,
    /// HTTP or DNS, without a response.
    NoResponse,
    /// Marked by a person.
    Marked,
    /// Replayed, either way.
    Replayed,
    /// The request was replayed.
    RequestReplayed,
    /// The response was replayed.
    ResponseReplayed,
}

impl Property {
    /// As mitmproxy words it.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Http => "is an HTTP Flow",
            Self::Tcp => "is a TCP Flow",
            Self::Udp => "is a UDP Flow",
            Self::Dns => "is a DNS Flow",
            Self::WebSocket => "is a Websocket Flow",
            Self::Error => "has error",
            Self::Response => "has response",
            Self::NoResponse => "has no response",
            Self::Marked => "is marked",
            Self::Replayed => "flow has been replayed",
            Self::RequestReplayed => "request has been replayed",
            Self::ResponseReplayed => "response has been replayed",
        }
    }
}

impl Subject for Flow {
    fn flow_type(&self) -> FlowType {
        match self.kind {
            FlowKind::Http => FlowType::Http,
            FlowKind::Tcp => FlowType::Tcp,
            FlowKind::Udp => FlowType::Udp,
        }
    }

    /// A live flow has none: its error is in its outcome, when it has ended.
    fn has_error(&self) -> bool {
        false
    }

    fn has_response(&self) -> bool {
        self.response.is_some()
    }

    fn is_websocket(&self) -> bool {
        let upgrade = |response: &crate::Response| {
            response.status() == 101 && response.headers().has_token("upgrade", "websocket")
        };
        self.websocket.is_some() || self.response.as_deref().is_some_and(upgrade)
    }

    fn replay(&self) -> Option<Replay> {
        self.replay
    }

    fn status(&self) -> Option<u16> {
        self.response.as_ref().map(|response| response.status())
    }

    fn size(&self, direction: Direction) -> Option<u64> {
        match direction {
            Direction::Request => Some(self.request.body_size),
            Direction::Response => self.response.as_ref().map(|response| response.body_size),
        }
    }

    fn duration(&self) -> Option<Duration> {
        self.timing.response_end
    }

    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let headers = |direction| match direction {
            Direction::Request => Some(self.request.headers()),
            Direction::Response => self.response.as_deref().map(|response| response.headers()),
        };
        match field {
            // The heads of a stream are empty.
            Field::Method
            | Field::Url
            | Field::Host
            | Field::HeaderBlock(_)
            | Field::ContentType(_)
            | Field::Body(_)
            | Field::Version
                if self.kind != FlowKind::Http =>
            {
                false
            }
            Field::Method => test(self.request.method()),
            Field::Url => self.url_parts().test_pretty_url(test),
            Field::Host => self.url_parts().test_hosts(test),
            Field::HeaderBlock(direction) => headers(direction).is_some_and(|list| {
                let size = list
                    .iter()
                    .map(|(name, value)| name.len() + value.len() + 4);
                let mut block = Vec::with_capacity(size.sum());
                for (name, value) in list.iter() {
                    crate::record::write_line(name, value, &mut block);
                }
                test(&block)
            }),
            Field::ContentType(direction) => {
                headers(direction).is_some_and(|list| list.get_all("content-type").any(test))
            }
            Field::Body(direction) => {
                let body = match direction {
                    Direction::Request => self.request.body(),
                    Direction::Response => self.response.as_deref().and_then(|r| r.body()),
                };
                let (Some(body), Some(list)) = (body, headers(direction)) else {
                    return false;
                };
                let codings = list.get_all("content-encoding");
                test(&crate::record::decode(body, codings).unwrap_or(Cow::Borrowed(body)))
            }
            Field::Source => address(
                &self.connection.client.ip().to_string(),
                self.connection.client.port(),
                test,
            ),
            Field::Destination => {
                let target = &self.request.target;
                !target.host.is_empty() && address(&target.host, target.port, test)
            }
            Field::Metadata => {
                let mut lines = Vec::new();
                for (i, (key, value)) in self.metadata.iter().enumerate() {
                    let line_end = if i > 0 { "\n" } else { "" };
                    // Writing to memory can't fail.
                    let _ = write!(lines, "{line_end}{key}: {value}");
                }
                test(&lines)
            }
            Field::Marker | Field::Comment => test(b""),
            Field::Finding => {
                let mut notes = self.metadata.iter().filter(|(key, _)| key == FINDING);
                notes.any(|(_, note)| test(note.as_bytes()))
            }
            Field::Process => self.connection.process().is_some_and(|p| process(p, test)),
            Field::Ja3 => self
                .hello()
                .is_some_and(|hello| test(hello.ja3().as_bytes())),
            Field::Ja4 => self
                .hello()
                .is_some_and(|hello| test(hello.ja4().as_bytes())),
            Field::Sni => self
                .hello()
                .and_then(|hello| hello.server_name.as_ref())
                .is_some_and(|name| test(name.as_bytes())),
            Field::Version => test(self.request.version.as_str().as_bytes()),
            Field::Id => test(self.id.to_string().as_bytes()),
        }
    }
}

impl Flow {
    fn hello(&self) -> Option<&crate::ClientHello> {
        self.connection.tls().map(|tls| &*tls.hello)
    }

    pub(crate) fn url_parts(&self) -> UrlParts<'_> {
        let request = &self.request;
        UrlParts {
            method: request.method(),
            scheme: request.scheme.as_str().as_bytes(),
            host: &request.target.host,
            port: request.target.port,
            path: request.path(),
            authority: request.authority.as_deref().unwrap_or_default(),
            host_header: request.headers().get("host").map(Cow::Borrowed),
            has_authority: matches!(request.version, HttpVersion::Http2 | HttpVersion::Http3),
        }
    }
}

impl Subject for Record {
    fn flow_type(&self) -> FlowType {
        Record::flow_type(self)
    }

    fn has_error(&self) -> bool {
        self.error.is_some()
    }

    fn has_response(&self) -> bool {
        match &self.content {
            Content::Http(http) => http.response.is_some(),
            Content::Dns(dns) => dns.response.is_some(),
            Content::Tcp(_) | Content::Udp(_) => false,
        }
    }

    fn is_websocket(&self) -> bool {
        self.as_http().is_some_and(|http| http.websocket.is_some())
    }

    fn replay(&self) -> Option<Replay> {
        self.replay
    }

    fn status(&self) -> Option<u16> {
        self.as_http()?
            .response
            .as_ref()
            .map(|response| response.status)
    }

    fn size(&self, direction: Direction) -> Option<u64> {
        let from_client = direction == Direction::Request;
        match &self.content {
            Content::Http(http) => {
                let size = message(http, direction)?.body.size()?;
                let messages = http.websocket.iter().flat_map(|ws| &ws.messages);
                let passed = messages
                    .filter(|message| message.from_client == from_client)
                    .map(|message| message.content.len() as u64);
                Some(size + passed.sum::<u64>())
            }
            Content::Tcp(messages) | Content::Udp(messages) => Some(
                messages
                    .iter()
                    .filter(|message| message.from_client == from_client)
                    .map(|message| message.content.len() as u64)
                    .sum(),
            ),
            Content::Dns(_) => None,
        }
    }

    fn duration(&self) -> Option<Duration> {
        match &self.content {
            Content::Http(http) => {
                let end = match &http.websocket {
                    Some(websocket) => websocket.timestamp_end,
                    None => http.response.as_ref()?.message.ended,
                };
                end?.since(http.request.message.started)
            }
            Content::Dns(dns) => {
                let end: Timestamp = dns.response.as_ref()?.timestamp?;
                end.since(dns.request.timestamp?)
            }
            Content::Tcp(messages) | Content::Udp(messages) => {
                let (first, last) = messages.first().zip(messages.last())?;
                last.timestamp.since(first.timestamp)
            }
        }
    }

    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let http = self.as_http();
        match field {
            Field::Method => http.is_some_and(|http| test(&http.request.method)),
            Field::Url => match &self.content {
                Content::Http(http) => http.request.url_parts().test_pretty_url(test),
                Content::Dns(dns) => {
                    let first = dns.request.questions.first();
                    first.is_some_and(|question| test(question.name.as_bytes()))
                }
                Content::Tcp(_) | Content::Udp(_) => false,
            },
            Field::Host => http.is_some_and(|http| http.request.url_parts().test_hosts(test)),
            Field::HeaderBlock(direction) => http
                .and_then(|http| message(http, direction))
                .is_some_and(|message| {
                    let mut block = Vec::new();
                    message.headers.write_block(&mut block);
                    test(&block)
                }),
            Field::ContentType(direction) => http
                .and_then(|http| message(http, direction))
                .is_some_and(|message| message.headers.get_all("content-type").any(test)),
            Field::Body(direction) => self.any_body(direction, test),
            Field::Source => {
                let peer = self.client.common.peername.as_ref();
                peer.is_some_and(|peer| address(&peer.host, peer.port, test))
            }
            Field::Destination => {
                let origin = self.server.address.as_ref();
                origin.is_some_and(|origin| address(&origin.host, origin.port, test))
            }
            Field::Metadata => {
                let mut lines = String::new();
                for (i, (key, value)) in self.metadata.0.iter().enumerate() {
                    if i > 0 {
                        lines.push('\n');
                    }
                    key.write_str(&mut lines);
                    lines.push_str(": ");
                    value.write_str(&mut lines);
                }
                test(lines.as_bytes())
            }
            Field::Marker => test(self.marked.as_bytes()),
            Field::Comment => test(self.comment.as_bytes()),
            Field::Finding => self.findings().any(|finding| test(finding.as_bytes())),
            Field::Process => self
                .facts
                .process
                .as_ref()
                .is_some_and(|p| process(p, test)),
            Field::Ja3 => self
                .facts
                .ja3
                .as_ref()
                .is_some_and(|ja3| test(ja3.as_bytes())),
            Field::Ja4 => self
                .facts
                .ja4
                .as_ref()
                .is_some_and(|ja4| test(ja4.as_bytes())),
            Field::Sni => self
                .client
                .common
                .sni
                .as_ref()
                .is_some_and(|name| test(name.as_bytes())),
            Field::Version => http.is_some_and(|http| test(&http.request.message.version)),
            Field::Id => test(self.id.as_bytes()),
        }
    }
}

impl Record {
    fn any_body(&self, direction: Direction, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let from_client = direction == Direction::Request;
        let stream = |messages: &[StreamMessage], test: &mut dyn FnMut(&[u8]) -> bool| {
            let mut passed = messages.iter().filter(|m| m.from_client == from_client);
            passed.any(|message| test(&message.content))
        };
        match &self.content {
            Content::Http(http) => {
                let body = message(http, direction).and_then(HttpMessage::content);
                if body.is_some_and(|body| test(&body)) {
                    return true;
                }
                let messages = http.websocket.iter().flat_map(|ws| &ws.messages);
                let mut passed = messages.filter(|m| m.from_client == from_client);
                passed.any(|message| test(&message.content))
            }
            Content::Tcp(messages) | Content::Udp(messages) => stream(messages, test),
            Content::Dns(dns) => {
                let message = match direction {
                    Direction::Request => Some(&dns.request),
                    Direction::Response => dns.response.as_ref(),
                };
                message.is_some_and(|message| {
                    let mut text = String::new();
                    message.write_text(&mut text);
                    test(text.as_bytes())
                })
            }
        }
    }
}

fn message(http: &HttpExchange, direction: Direction) -> Option<&HttpMessage> {
    match direction {
        Direction::Request => Some(&http.request.message),
        Direction::Response => http.response.as_ref().map(|response| &response.message),
    }
}

fn address(host: &str, port: u16, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    test(format!("{host}:{port}").as_bytes())
}

fn process(process: &ProcessInfo, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    let name = process.name.as_deref();
    let path = process
        .executable
        .as_deref()
        .map(|path| path.to_string_lossy());
    name.is_some_and(|name| test(name.as_bytes()))
        || path.is_some_and(|path| test(path.as_bytes()))
        || (!process.command.is_empty() && test(process.command.join(" ").as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tollgate_wire::http1::{HeadLimits, RequestHead, ResponseHead};

    use super::super::Filter;
    use super::*;
    use crate::{ConnectionId, ConnectionInfo, Response, Scheme, Target};

    fn flow() -> Flow {
        let client = "127.0.0.1:50000".parse().unwrap();
        let mut flow = Flow::new(Arc::new(ConnectionInfo::new(
            ConnectionId(1),
            client,
            client,
            None,
        )));
        let head = b"POST /a?b HTTP/1.1\r\nhost:named.example\r\nContent-Type: text/plain\r\n\r\n";
        flow.request.head = RequestHead::new();
        flow.request
            .head
            .parse(head, &HeadLimits::default())
            .unwrap();
        flow.request.target = Target::new("192.0.2.1", 443);
        flow.request.scheme = Scheme::Https;
        flow.request.put_collected_body("it's here".into());
        flow.request.body_size = 9;
        flow.metadata = vec![
            ("finding".into(), "secret".into()),
            ("finding".into(), "tool".into()),
        ];
        flow
    }

    fn check(flow: &Flow, table: &[(&str, bool)]) {
        for (expression, expected) in table {
            assert_eq!(
                Filter::new(expression).unwrap().matches(flow),
                *expected,
                "{expression}"
            );
        }
    }

    #[test]
    fn a_live_flow_is_asked_about_what_is_known_of_it() {
        let mut flow = flow();
        check(
            &flow,
            &[
                ("~http", true),
                ("~q", true),
                ("~s", false),
                ("~e", false),
                ("~m post", true),
                ("~u ^https://named.example/a", true),
                ("~d ^192 & ~d named", true),
                ("~h '^host: named'", true),
                ("~t plain", true),
                ("~ts plain", false),
                ("~b here", true),
                ("~bs here", false),
                ("~src :50000$", true),
                ("~dst ^192.0.2.1:443$", true),
                ("~meta '^finding: tool'", true),
                ("~finding tool", true),
                ("~finding no", false),
                ("~process x", false),
                ("~ja4 .", false),
                ("~version 1.1", true),
                ("~size 9", true),
                ("~sizes 0", false),
                ("~duration >0", false),
                ("~status 2xx", false),
                ("~marked", false),
                ("~websocket", false),
            ],
        );
        let mut response = Response::default();
        response.head = ResponseHead::build(101, b"").unwrap();
        response
            .headers_mut()
            .append(b"Upgrade", b"WebSocket")
            .unwrap();
        flow.response = Some(Box::new(response));
        flow.timing.response_end = Some(Duration::from_millis(20));
        check(
            &flow,
            &[
                ("~s & ~websocket & ~c 101", true),
                ("~status 1xx", true),
                ("~duration >=20ms", true),
                ("~sizes 0", true),
            ],
        );
    }

    #[test]
    fn a_stream_has_no_heads() {
        let mut flow = flow();
        flow.kind = FlowKind::Tcp;
        check(
            &flow,
            &[
                ("~tcp", true),
                (
                    "~http | ~q | ~s | ~m . | ~u . | ~d . | ~h . | ~t . | ~b . | ~version .",
                    false,
                ),
                ("~dst 192 & ~sizeq 9", true),
            ],
        );
    }
}

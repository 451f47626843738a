//! From a flow's dictionary, in the form of version 21, to a record.

use std::borrow::Cow;

use bytes::Bytes;

use super::facts;
use super::item::{Dict, Entries, Item, Items, Malformed, pair_of};
use crate::record::{
    Address, Body, Certificates, ClientConnection, Connection, Content, DnsExchange, DnsMessage,
    Facts, HeaderFields, HttpExchange, HttpMessage, HttpRequest, HttpResponse, Metadata, Question,
    Record, RecordError, Replay, ResourceRecord, ServerConnection, StreamMessage, Timestamp,
    Transport, Via, WebSocketData, WebSocketMessage,
};
use crate::value::Value;

/// What keeps a dictionary from being a flow.
#[derive(Debug)]
pub(super) enum Invalid {
    /// Its type is unknown.
    Type(String),
    /// A value is not what it must be.
    Key {
        key: String,
        expected: &'static str,
        found: &'static str,
    },
    /// What was taken apart late is none; the offset is an address.
    Syntax(Malformed),
}

impl From<Malformed> for Invalid {
    fn from(malformed: Malformed) -> Self {
        Self::Syntax(malformed)
    }
}

type Result<T> = std::result::Result<T, Invalid>;

pub(super) struct Decoder<'b, F> {
    /// What the dictionary was read from: long values become slices of it.
    buffer: &'b Bytes,
    unknown: F,
}

/// A key and where it stands.
#[derive(Clone, Copy)]
struct Key<'k> {
    within: &'k str,
    name: &'k str,
}

impl Key<'_> {
    fn path(self) -> String {
        match self.within {
            "" => self.name.to_owned(),
            within => format!("{within}.{}", self.name),
        }
    }

    fn wrong(self, expected: &'static str, item: &Item<'_>) -> Invalid {
        Invalid::Key {
            key: self.path(),
            expected,
            found: item.kind(),
        }
    }

    fn missing(self, expected: &'static str) -> Invalid {
        Invalid::Key {
            key: self.path(),
            expected,
            found: "nothing at all",
        }
    }
}

impl<'b, F: FnMut(&str)> Decoder<'b, F> {
    /// `unknown` is told every key that is passed over, by its path.
    pub fn new(buffer: &'b Bytes, unknown: F) -> Self {
        Self { buffer, unknown }
    }

    pub fn record(&mut self, mut dict: Dict<'_>) -> Result<Record> {
        let mut need = |name: &'static str, expected| {
            dict.take(name)
                .ok_or_else(|| Key { within: "", name }.missing(expected))
        };
        let flow_type = need("type", "text")?;
        let client = self.client(need("client_conn", "a dictionary")?)?;
        let server = self.server(need("server_conn", "a dictionary")?)?;
        let content = match flow_type.as_str() {
            Some("http") => {
                let request = self.request(need("request", "a dictionary")?)?;
                let response = match dict.take("response") {
                    Some(item) if item.is_truthy() => Some(self.response(item)?),
                    _ => None,
                };
                let websocket = match dict.take("websocket") {
                    Some(item) if item.is_truthy() => Some(self.websocket(item)?),
                    _ => None,
                };
                Content::Http(Box::new(HttpExchange {
                    request,
                    response,
                    websocket,
                }))
            }
            Some(kind @ ("tcp" | "udp")) => {
                let messages = self.stream(need("messages", "a list")?)?;
                // Left by the upgrade from old versions.
                if dict.get("websocket") == Some(&Item::Null) {
                    dict.take("websocket");
                }
                match kind {
                    "tcp" => Content::Tcp(messages),
                    _ => Content::Udp(messages),
                }
            }
            Some("dns") => {
                let request = self.dns("request", need("request", "a dictionary")?)?;
                let response = match dict.take("response") {
                    Some(item) if item.is_truthy() => Some(self.dns("response", item)?),
                    _ => None,
                };
                Content::Dns(Box::new(DnsExchange { request, response }))
            }
            Some(other) => return Err(Invalid::Type(other.to_owned())),
            None => {
                return Err(Key {
                    within: "",
                    name: "type",
                }
                .wrong("text", &flow_type));
            }
        };
        let mut record = Record {
            id: String::new(),
            created: Timestamp::default(),
            client,
            server,
            error: None,
            intercepted: false,
            replay: None,
            marked: String::new(),
            comment: String::new(),
            metadata: Metadata::default(),
            facts: Facts::default(),
            backup: None,
            content,
        };
        let mut has_id = false;
        for (name, item) in dict.0 {
            let name = name.as_str().unwrap_or_default();
            let key = Key { within: "", name };
            match name {
                "version" => {}
                "id" => {
                    record.id = text(key, item)?;
                    has_id = true;
                }
                "error" => record.error = self.error(item)?,
                "intercepted" => record.intercepted = item.is_truthy(),
                "is_replay" => {
                    record.replay = match (item.as_str(), &item) {
                        (Some("request"), _) => Some(Replay::Request),
                        (Some("response"), _) => Some(Replay::Response),
                        (_, Item::Null) => None,
                        _ => return Err(key.wrong("request or response", &item)),
                    }
                }
                "marked" => record.marked = text(key, item)?,
                "comment" => record.comment = text(key, item)?,
                "timestamp_created" => record.created = timestamp(key, &item)?,
                "metadata" => {
                    record.metadata = match item.into_value()? {
                        Value::Dict(entries) => Metadata(entries),
                        _ => return Err(key.missing("a dictionary")),
                    };
                }
                "backup" => {
                    record.backup = optional(item, |item| Ok(Box::new(item.into_value()?)))?;
                }
                _ => (self.unknown)(&key.path()),
            }
        }
        if !has_id {
            return Err(Key {
                within: "",
                name: "id",
            }
            .missing("text"));
        }
        facts::take(&mut record);
        Ok(record)
    }

    fn error(&mut self, item: Item<'_>) -> Result<Option<RecordError>> {
        if !item.is_truthy() {
            return Ok(None);
        }
        let mut error = RecordError {
            message: String::new(),
            timestamp: Timestamp::default(),
        };
        for entry in dict("error", item)? {
            let (name, item) = entry?;
            let key = Key {
                within: "error",
                name,
            };
            match name {
                "msg" => error.message = text(key, item)?,
                "timestamp" => error.timestamp = float_timestamp(key, &item)?,
                _ => (self.unknown)(&key.path()),
            }
        }
        Ok(Some(error))
    }

    fn client(&mut self, item: Item<'_>) -> Result<ClientConnection> {
        let within = "client_conn";
        let mut client = ClientConnection {
            common: Connection::default(),
            mitmcert: None,
            proxy_mode: String::new(),
        };
        let mut has_mode = false;
        for entry in dict(within, item)? {
            let (name, item) = entry?;
            let key = Key { within, name };
            match name {
                "mitmcert" => client.mitmcert = self.optional_bytes(key, item)?,
                "proxy_mode" => {
                    client.proxy_mode = text(key, item)?;
                    has_mode = true;
                }
                _ => self.connection(&mut client.common, key, item)?,
            }
        }
        if !has_mode {
            client.proxy_mode = ClientConnection::default().proxy_mode;
        }
        Ok(client)
    }

    fn server(&mut self, item: Item<'_>) -> Result<ServerConnection> {
        let within = "server_conn";
        let mut server = ServerConnection::default();
        for entry in dict(within, item)? {
            let (name, item) = entry?;
            let key = Key { within, name };
            match name {
                "address" => server.address = optional(item, |item| address(key, item))?,
                "timestamp_tcp_setup" => {
                    server.timestamp_tcp_setup =
                        optional(item, |item| float_timestamp(key, &item))?;
                }
                "via" => {
                    server.via = optional(item, |item| match item {
                        Item::List(_) | Item::RawList(_) => {
                            let mut parts = list(key, item)?;
                            match (parts.next().transpose()?, parts.next().transpose()?) {
                                (Some(scheme), Some(proxy)) => Ok(Via {
                                    scheme: text(key, scheme)?,
                                    address: address(key, proxy)?,
                                }),
                                _ => Err(key.missing("a scheme and an address")),
                            }
                        }
                        other => Err(key.wrong("a scheme and an address", &other)),
                    })?;
                }
                _ => self.connection(&mut server.common, key, item)?,
            }
        }
        Ok(server)
    }

    fn connection(&mut self, common: &mut Connection, key: Key<'_>, item: Item<'_>) -> Result<()> {
        match key.name {
            "id" => common.id = text(key, item)?,
            "peername" => common.peername = optional(item, |item| address(key, item))?,
            "sockname" => common.sockname = optional(item, |item| address(key, item))?,
            "transport_protocol" => {
                common.transport_protocol = match item.as_str() {
                    Some("tcp") => Transport::Tcp,
                    Some("udp") => Transport::Udp,
                    _ => return Err(key.wrong("tcp or udp", &item)),
                }
            }
            "error" => common.error = optional(item, |item| text(key, item))?,
            "tls" => common.tls = item.is_truthy(),
            "certificate_list" => {
                common.certificates = Certificates::Pem(self.bytes_list(key, item)?);
            }
            "alpn" => common.alpn = self.optional_bytes(key, item)?,
            "alpn_offers" => common.alpn_offers = self.bytes_list(key, item)?,
            "cipher" => common.cipher = optional(item, |item| text(key, item))?,
            "cipher_list" => {
                let items = list(key, item)?;
                common.cipher_list = items.map(|item| text(key, item?)).collect::<Result<_>>()?;
            }
            "tls_version" => common.tls_version = optional(item, |item| text(key, item))?,
            "sni" => common.sni = optional(item, |item| text(key, item))?,
            "timestamp_start" => {
                common.timestamp_start = optional(item, |item| float_timestamp(key, &item))?;
            }
            "timestamp_end" => {
                common.timestamp_end = optional(item, |item| float_timestamp(key, &item))?;
            }
            "timestamp_tls_setup" => {
                common.timestamp_tls_setup = optional(item, |item| float_timestamp(key, &item))?;
            }
            _ => (self.unknown)(&key.path()),
        }
        Ok(())
    }

    fn request(&mut self, item: Item<'_>) -> Result<HttpRequest> {
        let within = "request";
        let mut request = HttpRequest::new("", "", "", 0, "");
        let mut seen = Seen::default();
        for entry in dict(within, item)? {
            let (name, item) = entry?;
            let key = Key { within, name };
            seen.note(name);
            match name {
                "method" => request.method = self.bytes(key, item)?,
                "scheme" => request.scheme = self.bytes(key, item)?,
                "authority" => request.authority = self.bytes(key, item)?,
                "path" => request.path = self.bytes(key, item)?,
                "host" => {
                    request.host = match item {
                        Item::Bytes(bytes) => {
                            let name = String::from_utf8_lossy(&bytes);
                            crate::url::to_unicode(&name).into_owned()
                        }
                        item => text(key, item)?,
                    }
                }
                "port" => request.port = integer(key, &item)?,
                _ => self.message(&mut request.message, key, item)?,
            }
        }
        seen.check(
            within,
            &[
                "method",
                "path",
                "host",
                "port",
                "headers",
                "timestamp_start",
            ],
        )?;
        Ok(request)
    }

    fn response(&mut self, item: Item<'_>) -> Result<HttpResponse> {
        let within = "response";
        let mut response = HttpResponse::new(0, "");
        let mut seen = Seen::default();
        for entry in dict(within, item)? {
            let (name, item) = entry?;
            let key = Key { within, name };
            seen.note(name);
            match name {
                "status_code" => response.status = integer(key, &item)?,
                "reason" => response.reason = self.bytes(key, item)?,
                _ => self.message(&mut response.message, key, item)?,
            }
        }
        seen.check(within, &["status_code", "headers", "timestamp_start"])?;
        Ok(response)
    }

    fn message(&mut self, message: &mut HttpMessage, key: Key<'_>, item: Item<'_>) -> Result<()> {
        match key.name {
            "http_version" => message.version = self.bytes(key, item)?,
            "headers" => message.headers = self.headers(key, item)?,
            "content" => {
                message.body = Body {
                    data: self.optional_bytes(key, item)?,
                    cut_from: None,
                }
            }
            "trailers" => message.trailers = optional(item, |item| self.headers(key, item))?,
            "timestamp_start" => message.started = timestamp(key, &item)?,
            "timestamp_end" => message.ended = optional(item, |item| timestamp(key, &item))?,
            _ => (self.unknown)(&key.path()),
        }
        Ok(())
    }

    fn headers(&self, key: Key<'_>, item: Item<'_>) -> Result<HeaderFields> {
        let mut fields = Vec::with_capacity(16);
        let mut items = list(key, item)?;
        if let Items::Raw(rest) = &mut items {
            // As a rule, all are pairs of bytes.
            while let Some((name, value)) = pair_of(rest) {
                fields.push((self.slice(name), self.slice(value)));
            }
        }
        for item in items {
            let mut pair = list(key, item?)?;
            let mut next = || pair.next().transpose();
            match (next()?, next()?, next()?) {
                (Some(name), Some(value), None) => {
                    fields.push((self.bytes(key, name)?, self.bytes(key, value)?));
                }
                _ => return Err(key.missing("pairs of name and value")),
            }
        }
        Ok(HeaderFields(fields))
    }

    fn websocket(&mut self, item: Item<'_>) -> Result<WebSocketData> {
        let within = "websocket";
        let mut data = WebSocketData::default();
        for entry in dict(within, item)? {
            let (name, item) = entry?;
            let key = Key { within, name };
            match name {
                "messages" => {
                    let items = list(key, item)?;
                    let messages = items.map(|item| self.websocket_message(key, item?));
                    data.messages = messages.collect::<Result<_>>()?;
                }
                "closed_by_client" => {
                    data.closed_by_client = optional(item, |item| boolean(key, &item))?;
                }
                "close_code" => data.close_code = optional(item, |item| integer(key, &item))?,
                "close_reason" => data.close_reason = optional(item, |item| text(key, item))?,
                "timestamp_end" => {
                    data.timestamp_end = optional(item, |item| float_timestamp(key, &item))?;
                }
                _ => (self.unknown)(&key.path()),
            }
        }
        Ok(data)
    }

    fn websocket_message(&self, key: Key<'_>, item: Item<'_>) -> Result<WebSocketMessage> {
        let mut fields = list(key, item)?;
        let mut next = || {
            let field = fields.next().transpose()?;
            field.ok_or_else(|| key.missing("opcode, direction, content, time, dropped, injected"))
        };
        Ok(WebSocketMessage {
            opcode: integer(key, &next()?)?,
            from_client: boolean(key, &next()?)?,
            content: self.bytes(key, next()?)?,
            timestamp: timestamp(key, &next()?)?,
            dropped: boolean(key, &next()?)?,
            injected: boolean(key, &next()?)?,
        })
    }

    fn stream(&self, item: Item<'_>) -> Result<Vec<StreamMessage>> {
        let key = Key {
            within: "",
            name: "messages",
        };
        let message = |item: std::result::Result<_, Malformed>| {
            let mut fields = list(key, item?)?;
            let mut next = || {
                let field = fields.next().transpose()?;
                field.ok_or_else(|| key.missing("direction, content, time"))
            };
            Ok(StreamMessage {
                from_client: boolean(key, &next()?)?,
                content: self.bytes(key, next()?)?,
                timestamp: timestamp(key, &next()?)?,
            })
        };
        list(key, item)?.map(message).collect()
    }

    fn dns(&mut self, within: &'static str, item: Item<'_>) -> Result<DnsMessage> {
        let mut message = DnsMessage::default();
        for entry in dict(within, item)? {
            let (name, item) = entry?;
            let key = Key { within, name };
            match name {
                "id" => message.id = integer(key, &item)?,
                "query" => message.query = boolean(key, &item)?,
                "op_code" => message.op_code = integer(key, &item)?,
                "authoritative_answer" => message.authoritative_answer = boolean(key, &item)?,
                "truncation" => message.truncation = boolean(key, &item)?,
                "recursion_desired" => message.recursion_desired = boolean(key, &item)?,
                "recursion_available" => message.recursion_available = boolean(key, &item)?,
                "reserved" => message.reserved = integer(key, &item)?,
                "response_code" => message.response_code = integer(key, &item)?,
                "questions" => {
                    for item in list(key, item)? {
                        message.questions.push(self.question(key, item?)?);
                    }
                }
                "answers" => message.answers = self.records(key, item)?,
                "authorities" => message.authorities = self.records(key, item)?,
                "additionals" => message.additionals = self.records(key, item)?,
                "timestamp" => {
                    message.timestamp = optional(item, |item| float_timestamp(key, &item))?;
                }
                _ => (self.unknown)(&key.path()),
            }
        }
        Ok(message)
    }

    fn question(&mut self, key: Key<'_>, item: Item<'_>) -> Result<Question> {
        let mut question = Question {
            name: String::new(),
            kind: 0,
            class: 0,
        };
        for entry in dict_at(key, item)? {
            let (name, item) = entry?;
            match name {
                "name" => question.name = text(key, item)?,
                "type" => question.kind = integer(key, &item)?,
                "class_" => question.class = integer(key, &item)?,
                other => (self.unknown)(&format!("{}.{other}", key.path())),
            }
        }
        Ok(question)
    }

    fn records(&mut self, key: Key<'_>, item: Item<'_>) -> Result<Vec<ResourceRecord>> {
        let mut records = Vec::new();
        for item in list(key, item)? {
            let mut record = ResourceRecord {
                name: String::new(),
                kind: 0,
                class: 0,
                ttl: 0,
                data: Bytes::new(),
            };
            for entry in dict_at(key, item?)? {
                let (name, item) = entry?;
                match name {
                    "name" => record.name = text(key, item)?,
                    "type" => record.kind = integer(key, &item)?,
                    "class_" => record.class = integer(key, &item)?,
                    "ttl" => record.ttl = integer(key, &item)?,
                    "data" => record.data = self.bytes(key, item)?,
                    other => (self.unknown)(&format!("{}.{other}", key.path())),
                }
            }
            records.push(record);
        }
        Ok(records)
    }

    fn bytes_list(&self, key: Key<'_>, item: Item<'_>) -> Result<Vec<Bytes>> {
        let items = list(key, item)?;
        items.map(|item| self.bytes(key, item?)).collect()
    }

    fn optional_bytes(&self, key: Key<'_>, item: Item<'_>) -> Result<Option<Bytes>> {
        optional(item, |item| self.bytes(key, item))
    }

    /// A slice of the buffer, or a copy of what an upgrade made. Text is taken, too, as mitmproxy does for most of these.
    fn bytes(&self, key: Key<'_>, item: Item<'_>) -> Result<Bytes> {
        let bytes = match &item {
            Item::Bytes(Cow::Borrowed(bytes)) => bytes,
            Item::Bytes(Cow::Owned(bytes)) => return Ok(Bytes::copy_from_slice(bytes)),
            Item::Str(text) => return Ok(Bytes::copy_from_slice(text.as_bytes())),
            other => return Err(key.wrong("bytes", other)),
        };
        Ok(self.slice(bytes))
    }

    fn slice(&self, bytes: &[u8]) -> Bytes {
        let within = self.buffer.as_ptr_range();
        let slice = bytes.as_ptr_range();
        if within.start <= slice.start && slice.end <= within.end {
            self.buffer.slice_ref(bytes)
        } else {
            Bytes::copy_from_slice(bytes)
        }
    }
}

/// Which keys were there, of those that must be.
#[derive(Default)]
struct Seen(u32);

impl Seen {
    #[inline]
    fn note(&mut self, name: &str) {
        self.0 |= match name {
            "method" => 1,
            "path" => 1 << 1,
            "host" => 1 << 2,
            "port" => 1 << 3,
            "headers" => 1 << 4,
            "timestamp_start" => 1 << 5,
            "status_code" => 1 << 6,
            _ => 0,
        };
    }

    fn check(&self, within: &str, needed: &[&'static str]) -> Result<()> {
        for name in needed {
            let mut one = Self::default();
            one.note(name);
            if self.0 & one.0 == 0 {
                return Err(Key { within, name }.missing("a value"));
            }
        }
        Ok(())
    }
}

fn optional<'a, T>(item: Item<'a>, read: impl FnOnce(Item<'a>) -> Result<T>) -> Result<Option<T>> {
    match item {
        Item::Null => Ok(None),
        item => read(item).map(Some),
    }
}

fn dict<'a>(name: &str, item: Item<'a>) -> Result<Entries<'a>> {
    dict_at(Key { within: "", name }, item)
}

fn dict_at<'a>(key: Key<'_>, item: Item<'a>) -> Result<Entries<'a>> {
    match item {
        Item::Dict(dict) => Ok(Entries::Read(dict.0.into_iter())),
        Item::RawDict(raw) => Ok(Entries::Raw(raw)),
        other => Err(key.wrong("a dictionary", &other)),
    }
}

fn list<'a>(key: Key<'_>, item: Item<'a>) -> Result<Items<'a>> {
    match item {
        Item::List(items) => Ok(Items::Read(items.into_iter())),
        Item::RawList(raw) => Ok(Items::Raw(raw)),
        other => Err(key.wrong("a list", &other)),
    }
}

fn text(key: Key<'_>, item: Item<'_>) -> Result<String> {
    match item {
        Item::Str(text) => Ok(text.into_owned()),
        other => Err(key.wrong("text", &other)),
    }
}

fn boolean(key: Key<'_>, item: &Item<'_>) -> Result<bool> {
    match item {
        Item::Bool(value) => Ok(*value),
        other => Err(key.wrong("true or false", other)),
    }
}

fn integer<T: TryFrom<i64>>(key: Key<'_>, item: &Item<'_>) -> Result<T> {
    match item {
        Item::Int(number) => {
            T::try_from(*number).map_err(|_| key.wrong("an integer that is possible here", item))
        }
        other => Err(key.wrong("an integer", other)),
    }
}

/// A moment that stays an integer if it was written as one.
fn timestamp(key: Key<'_>, item: &Item<'_>) -> Result<Timestamp> {
    match item {
        Item::Int(seconds) => Ok(Timestamp::integer(*seconds)),
        other => float_timestamp(key, other),
    }
}

fn float_timestamp(key: Key<'_>, item: &Item<'_>) -> Result<Timestamp> {
    match item {
        Item::Int(seconds) => Ok(Timestamp::new(*seconds as f64)),
        Item::Float(seconds) => Ok(Timestamp::new(*seconds)),
        other => Err(key.wrong("a time", other)),
    }
}

/// `[host, port]`, for IPv6 with flow label and scope.
fn address(key: Key<'_>, item: Item<'_>) -> Result<Address> {
    let mut parts = list(key, item)?;
    let (Some(host), Some(port)) = (parts.next().transpose()?, parts.next().transpose()?) else {
        return Err(key.missing("a host and a port"));
    };
    Ok(Address {
        host: text(key, host)?,
        port: integer(key, &port)?,
        rest: parts
            .map(|part| integer(key, &part?))
            .collect::<Result<_>>()?,
    })
}

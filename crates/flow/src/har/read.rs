//! Flows from a HAR file.

use std::fmt;
use std::io::{self, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::time::parse_iso;
use crate::export::set_length;
use crate::flow::FlowId;
use crate::record::{
    Address, Body, HeaderFields, HttpExchange, HttpMessage, HttpRequest, HttpResponse, Record,
    RecordError, Timestamp, WebSocketData, WebSocketMessage,
};
use crate::text::{charset_of, encode};

/// Reads a HAR file, and calls `entry` with each flow as soon as it is there; that answers whether to go on.
///
/// An entry that can't be made a flow is given as an error, and reading goes on behind it. Bodies are without their content
/// coding, and headers say so. WebSocket messages are read as browsers and mitmproxy write them.
///
/// # Errors
/// [`HarError`] when the file can't be read, is no JSON, or no HAR.
pub fn read_har(
    input: impl Read,
    mut entry: impl FnMut(Result<Record, HarEntryError>) -> bool,
) -> Result<(), HarError> {
    let mut input = BufReader::with_capacity(64 * 1024, input);
    skip_byte_order_mark(&mut input)?;
    let mut state = State {
        entry: &mut entry,
        index: 0,
        seen: false,
        stopped: false,
    };
    let mut deserializer = serde_json::Deserializer::from_reader(input);
    let result = Level::File(&mut state).deserialize(&mut deserializer);
    if state.stopped {
        return Ok(());
    }
    result?;
    if !state.seen {
        return Err(HarError::NoEntries);
    }
    deserializer.end()?;
    Ok(())
}

/// Why a HAR file can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarError {
    /// It could not be read.
    #[error("can't read: {0}")]
    Io(#[from] io::Error),
    /// It is no JSON, or its structure is not that of a HAR file.
    #[error("this is not a HAR file: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON without `log.entries`.
    #[error("this is not a HAR file: it has no `log.entries`")]
    NoEntries,
}

/// An entry that is no flow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {index}: {what}")]
pub struct HarEntryError {
    /// Which entry, from 0.
    pub index: u64,
    /// What is wrong with it.
    pub what: String,
}

fn skip_byte_order_mark(input: &mut BufReader<impl Read>) -> io::Result<()> {
    use io::BufRead as _;
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    Ok(())
}

struct State<'a> {
    entry: &'a mut dyn FnMut(Result<Record, HarEntryError>) -> bool,
    index: u64,
    /// Whether there were entries, be it none.
    seen: bool,
    stopped: bool,
}

/// On the way to `log.entries`, without keeping anything else.
enum Level<'s, 'a> {
    File(&'s mut State<'a>),
    Log(&'s mut State<'a>),
    Entries(&'s mut State<'a>),
}

impl<'de> DeserializeSeed<'de> for Level<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self {
            Self::Entries(_) => deserializer.deserialize_seq(self),
            _ => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Level<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "an object with `log`",
            Self::Log(_) => "an object with `entries`",
            Self::Entries(_) => "a list of entries",
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (state, wanted, is_file) = match self {
            Self::File(state) => (state, "log", true),
            Self::Log(state) | Self::Entries(state) => (state, "entries", false),
        };
        while let Some(key) = map.next_key::<String>()? {
            if key != wanted {
                map.next_value::<IgnoredAny>()?;
            } else if is_file {
                map.next_value_seed(Level::Log(state))?;
            } else {
                map.next_value_seed(Level::Entries(state))?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let (Self::File(state) | Self::Log(state) | Self::Entries(state)) = self;
        state.seen = true;
        // As text first, so that an entry of another shape costs itself only.
        while let Some(text) = seq.next_element::<Box<RawValue>>()? {
            let index = state.index;
            state.index += 1;
            let entry = serde_json::from_str::<Entry>(text.get());
            let record = entry
                .map_err(|error| format!("it is not what HAR says: {error}"))
                .and_then(|entry| entry.record(index))
                .map_err(|what| HarEntryError { index, what });
            if !(state.entry)(record) {
                state.stopped = true;
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Text whose lone surrogates, such as mitmproxy writes for bytes that are no UTF-8, become these bytes again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Text(Vec<u8>);

impl Text {
    fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.as_bytes().to_vec()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Text, E> {
                Ok(Text(unescape_surrogates(bytes)))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text::default())
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// U+DC80 to U+DCFF, which stand as `ed b2 80` to `ed b3 bf`, back to the bytes that they stand for.
fn unescape_surrogates(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        match (byte, after) {
            (0xed, [middle @ (0xb2 | 0xb3), last, tail @ ..]) => {
                out.push(((middle & 1) << 6) | (last & 0x3f) | 0x80);
                rest = tail;
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    started_date_time: Text,
    #[serde(default)]
    time: Option<f64>,
    #[serde(default)]
    request: Option<Request>,
    #[serde(default)]
    response: Option<Response>,
    #[serde(default, rename = "serverIPAddress")]
    server_ip_address: Option<Text>,
    #[serde(default, rename = "_webSocketMessages")]
    websocket_messages: Option<Vec<Message>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    method: Text,
    url: Text,
    #[serde(default)]
    http_version: Text,
    #[serde(default)]
    headers: Vec<Header>,
    #[serde(default)]
    post_data: Option<PostData>,
}

#[derive(Deserialize)]
struct PostData {
    #[serde(default)]
    text: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    status: f64,
    #[serde(default)]
    http_version: Text,
    #[serde(default)]
    headers: Vec<Header>,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default, rename = "_error")]
    error: Option<Text>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(default)]
    text: Option<Text>,
    #[serde(default)]
    encoding: Option<Text>,
}

/// Most programs write objects, Slack writes pairs.
struct Header {
    name: Text,
    value: Text,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name and a value")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut name, mut value) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "name" => name = Some(map.next_value()?),
                        "value" => value = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                let missing = serde::de::Error::missing_field;
                Ok(Header {
                    name: name.ok_or_else(|| missing("name"))?,
                    value: value.ok_or_else(|| missing("value"))?,
                })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Header, A::Error> {
                let missing = |at| serde::de::Error::invalid_length(at, &"a name and a value");
                let name = seq.next_element()?.ok_or_else(|| missing(0))?;
                let value = seq.next_element()?.ok_or_else(|| missing(1))?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Header { name, value })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
struct Message {
    r#type: Text,
    time: f64,
    opcode: u8,
    #[serde(default)]
    data: Text,
}

impl Entry {
    fn record(self, index: u64) -> Result<Record, String> {
        let request = self.request.ok_or("it has no request")?;
        let started = self.started_date_time.lossy();
        let started = parse_iso(&started)
            .ok_or_else(|| format!("its startedDateTime, {started:?}, is no time"))?;
        let started = Timestamp::new(started);
        let ended = Timestamp::new(started.seconds() + self.time.unwrap_or(0.0).max(0.0) / 1000.0);
        let url = Url::parse(&request.url)
            .ok_or_else(|| format!("its URL has no host: {:?}", request.url.lossy()))?;
        let port = if url.scheme == b"http" { 80 } else { 443 };

        let mut exchange = HttpExchange::new(request.record(url, started, ended));
        let mut error = None;
        if let Some(response) = self.response {
            match response.error {
                // What mitmproxy and Chrome write where there was no response.
                Some(message) if response.status == 0.0 => {
                    error = Some(RecordError {
                        message: message.lossy(),
                        timestamp: ended,
                    });
                }
                _ => exchange.response = Some(response.record(started, ended)?),
            }
        }
        if let Some(messages) = self.websocket_messages {
            exchange.websocket = Some(websocket(messages)?);
        }
        let epoch = std::time::UNIX_EPOCH;
        let began = epoch.checked_add(duration(started)).unwrap_or(epoch);
        let id = FlowId::new(began, u128::from(index));
        let mut record = Record::http(id.to_string(), exchange);
        record.error = error;
        let here = Some(Address::new("127.0.0.1", 0));
        record.client.common.id = record.id.clone();
        record.client.common.peername = here.clone();
        record.client.common.sockname = here;
        record.client.common.timestamp_start = Some(started);
        record.client.common.timestamp_end = Some(ended);
        record.server.common.id = record.id.clone();
        let address = self.server_ip_address.map(|address| address.lossy());
        record.server.address = address
            .filter(|address| !address.is_empty())
            .map(|address| Address::new(address.trim_matches(['[', ']']), port));
        Ok(record)
    }
}

fn duration(moment: Timestamp) -> std::time::Duration {
    moment.since(Timestamp::default()).unwrap_or_default()
}

impl Request {
    fn record(self, url: Url, started: Timestamp, ended: Timestamp) -> HttpRequest {
        let mut message = HttpMessage {
            version: version(&self.http_version),
            headers: fields(self.headers),
            started,
            ended: Some(ended),
            ..HttpMessage::default()
        };
        if message.headers.get("host").is_some() {
            message.headers.set("Host", url.host_and_port());
        }
        let text = self
            .post_data
            .and_then(|data| data.text)
            .unwrap_or_default();
        set_text(&mut message, text, None);
        message.headers.remove("content-encoding");
        let length = message.body.data.as_ref().map_or(0, Bytes::len);
        set_length(&mut message, length);
        HttpRequest {
            method: Bytes::from(self.method.0),
            scheme: Bytes::from(url.scheme),
            authority: Bytes::new(),
            path: Bytes::from(url.path),
            host: url.host,
            port: url.port,
            message,
        }
    }
}

impl Response {
    fn record(self, started: Timestamp, ended: Timestamp) -> Result<HttpResponse, String> {
        let mut message = HttpMessage {
            version: version(&self.http_version),
            headers: fields(self.headers),
            started,
            ended: Some(ended),
            ..HttpMessage::default()
        };
        let content = self.content.unwrap_or(Content {
            text: None,
            encoding: None,
        });
        let text = content.text.unwrap_or_default();
        let encoding = content
            .encoding
            .map(|encoding| encoding.lossy())
            .filter(|e| !e.is_empty());
        match encoding.as_deref() {
            Some("base64") => {
                let clean: Vec<u8> = text
                    .0
                    .into_iter()
                    .filter(|b| !b.is_ascii_whitespace())
                    .collect();
                let bytes = STANDARD.decode(clean);
                let bytes =
                    bytes.map_err(|e| format!("the content of its response is no Base64: {e}"))?;
                message.body = Body::whole(bytes);
            }
            charset => set_text(&mut message, text, charset),
        }
        let length = message.body.data.as_ref().map_or(0, Bytes::len);
        // What has no body, such as the answer to HEAD, keeps the length of the one that it speaks of.
        if message.headers.remove("content-encoding") || length > 0 {
            set_length(&mut message, length);
        }
        let status = if (0.0..=999.0).contains(&self.status) {
            self.status as u16
        } else {
            0
        };
        Ok(HttpResponse {
            status,
            reason: Bytes::from_static(reason(status).as_bytes()),
            message,
        })
    }
}

/// Puts text into the body, in the charset of the message; one that can't say it becomes UTF-8.
fn set_text(message: &mut HttpMessage, text: Text, charset: Option<&str>) {
    let content_type = message.content_type();
    let charset = charset.map_or_else(|| charset_of(&content_type, b""), str::to_owned);
    let encoded = std::str::from_utf8(&text.0)
        .ok()
        .and_then(|text| encode(text, &charset));
    message.body = Body::whole(encoded.unwrap_or(text.0));
}

fn fields(headers: Vec<Header>) -> HeaderFields {
    let pair = |header: Header| (Bytes::from(header.name.0), Bytes::from(header.value.0));
    HeaderFields(headers.into_iter().map(pair).collect())
}

fn version(text: &Text) -> Bytes {
    let version: &'static str = match text.lossy().to_ascii_lowercase().as_str() {
        "http/2" | "http/2.0" | "h2" => "HTTP/2.0",
        "http/3" | "h3" => "HTTP/3",
        "http/1.0" => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    Bytes::from_static(version.as_bytes())
}

fn websocket(messages: Vec<Message>) -> Result<WebSocketData, String> {
    let message = |message: Message| {
        let content = match message.opcode {
            1 => message.data.0,
            _ => STANDARD
                .decode(&message.data.0)
                .map_err(|e| format!("a WebSocket message of it is no Base64: {e}"))?,
        };
        Ok(WebSocketMessage {
            opcode: message.opcode,
            from_client: message.r#type.0 == b"send",
            content: Bytes::from(content),
            timestamp: Timestamp::new(message.time),
            dropped: false,
            injected: false,
        })
    };
    Ok(WebSocketData {
        messages: messages
            .into_iter()
            .map(message)
            .collect::<Result<_, String>>()?,
        ..WebSocketData::default()
    })
}

struct Url {
    scheme: Vec<u8>,
    host: String,
    port: u16,
    /// With query and fragment.
    path: Vec<u8>,
}

impl Url {
    fn parse(text: &Text) -> Option<Self> {
        let text = text.lossy();
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        let (_, authority) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']')?;
                (host, rest.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let default_port = if scheme == "https" { 443 } else { 80 };
        let port = match port {
            Some(port) if !port.is_empty() => port.parse().ok()?,
            _ => default_port,
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Some(Self {
            scheme: scheme.into_bytes(),
            host: crate::url::to_unicode(&host.to_ascii_lowercase()).into_owned(),
            port: if port == 0 { default_port } else { port },
            path: format!("{slash}{path}").into_bytes(),
        })
    }

    fn host_and_port(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (&self.scheme[..], self.port) {
            (b"http", 80) | (b"https", 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// The reason phrase of a status: HAR's `statusText` is passed over, as mitmproxy does, since HTTP/2 has none to tell.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Time-out",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Requested Range not satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Time-out",
        505 => "HTTP Version not supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage Space",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

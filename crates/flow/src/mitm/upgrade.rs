//! From the forms of old versions to the one of version 21, version by version.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;

use super::item::{Dict, Item};

/// How many WebSocket handshakes wait for their messages, and their bytes in all.
const MAX_HANDSHAKES: usize = 256;
const MAX_HANDSHAKE_BYTES: usize = 64 << 20;

/// What must be remembered between flows: up to version 11 a WebSocket's messages were a flow of their own, some time
/// behind the one of its handshake.
#[derive(Debug, Default)]
pub(super) struct Upgrader {
    handshakes: VecDeque<(String, Bytes)>,
    bytes: usize,
}

pub(super) enum Upgraded<'a> {
    /// A flow in the form of version 21.
    Flow(Dict<'a>),
    /// The messages of a WebSocket in the form of version 11, and the flow file's bytes of its handshake.
    WebSocket {
        messages: Dict<'a>,
        handshake: Bytes,
    },
}

impl Upgrader {
    /// `payload` is what `dict` was read from.
    pub fn upgrade<'a>(
        &mut self,
        mut dict: Dict<'a>,
        version: i64,
        payload: &Bytes,
    ) -> Upgraded<'a> {
        if version > 11 {
            steps(&mut dict, version, 21);
            return Upgraded::Flow(dict);
        }
        let metadata = match dict.get("metadata") {
            Some(Item::Dict(metadata)) => metadata,
            _ => &Dict::default(),
        };
        let id = dict.get("id").and_then(Item::as_str).unwrap_or_default();
        let handshake = metadata.get("websocket_handshake").and_then(Item::as_str);
        if metadata.get("websocket").is_some() {
            self.remember(id.to_owned(), payload.clone());
        }
        let Some(handshake) = handshake else {
            steps(&mut dict, version, 21);
            return Upgraded::Flow(dict);
        };
        let stored = self.recall(handshake);
        steps(&mut dict, version, 11);
        match stored {
            Some(handshake) => Upgraded::WebSocket {
                messages: dict,
                handshake,
            },
            None => Upgraded::Flow(join(without_handshake(&dict), dict)),
        }
    }

    /// Puts the messages of a WebSocket into the flow of its handshake.
    pub fn merge<'a>(messages: Dict<'a>, handshake: &'a Bytes) -> Dict<'a> {
        let mut flow = match Item::parse(handshake, b'}') {
            Ok(Item::Dict(flow)) => flow,
            // It could be read before it was put by.
            _ => without_handshake(&messages),
        };
        if let Some(Item::Int(version)) = flow.get("version") {
            let version = *version;
            steps(&mut flow, version, 11);
        }
        join(flow, messages)
    }

    fn remember(&mut self, id: String, payload: Bytes) {
        self.bytes += payload.len();
        self.handshakes.push_back((id, payload));
        while self.handshakes.len() > MAX_HANDSHAKES || self.bytes > MAX_HANDSHAKE_BYTES {
            let Some((_, oldest)) = self.handshakes.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
        }
    }

    fn recall(&mut self, id: &str) -> Option<Bytes> {
        let at = self.handshakes.iter().rposition(|(known, _)| known == id)?;
        let (_, payload) = self.handshakes.remove(at)?;
        self.bytes -= payload.len();
        Some(payload)
    }
}

/// A flow of version 11 and the messages of its WebSocket become one of version 21.
fn join<'a>(mut flow: Dict<'a>, mut messages: Dict<'a>) -> Dict<'a> {
    let end = match flow.get("server_conn") {
        Some(Item::Dict(server)) => server.get("timestamp_end").cloned(),
        _ => None,
    };
    let by_client = messages.get("close_sender").and_then(Item::as_str) == Some("client");
    let mut websocket = Dict::default();
    let mut move_over = |key: &'static str, or: Item<'a>| {
        websocket.put(key, messages.take(key).unwrap_or(or));
    };
    move_over("messages", Item::List(Vec::new()));
    move_over("close_code", Item::Null);
    move_over("close_reason", Item::Null);
    websocket.put("closed_by_client", Item::Bool(by_client));
    websocket.put("timestamp_end", end.unwrap_or(Item::Null));
    flow.put("websocket", Item::Dict(websocket));
    if let Some(metadata) = flow.dict_mut("metadata") {
        let note = "This WebSocket flow has been migrated from an old file format version and may appear duplicated.";
        metadata.put("duplicated", Item::Str(Cow::Borrowed(note)));
    }
    steps(&mut flow, 12, 21);
    flow
}

/// What stands in for a handshake that isn't in the file.
fn without_handshake<'a>(messages: &Dict<'a>) -> Dict<'a> {
    let mut flow = Dict::default();
    for key in [
        "client_conn",
        "server_conn",
        "error",
        "id",
        "intercepted",
        "is_replay",
        "marked",
    ] {
        flow.put(key, messages.get(key).cloned().unwrap_or(Item::Null));
    }
    let mut request = Dict::default();
    for (key, bytes) in [
        ("authority", &b""[..]),
        ("host", b"unknown"),
        ("http_version", b"HTTP/1.1"),
        ("method", b"GET"),
        ("path", b"/"),
        ("scheme", b"http"),
    ] {
        request.put(key, Item::Bytes(Cow::Borrowed(bytes)));
    }
    request.put("port", Item::Int(80));
    request.put("headers", Item::List(Vec::new()));
    request.put("content", Item::Null);
    request.put("trailers", Item::Null);
    request.put("timestamp_start", Item::Int(0));
    request.put("timestamp_end", Item::Int(0));
    flow.put("request", Item::Dict(request));
    flow.put("response", Item::Null);
    flow.put("metadata", Item::Dict(Dict::default()));
    flow.put("type", text("http"));
    flow
}

fn steps(flow: &mut Dict<'_>, from: i64, to: i64) {
    for version in from..to {
        step(flow, version);
    }
}

fn text(text: &'static str) -> Item<'static> {
    Item::Str(Cow::Borrowed(text))
}

const CONNECTIONS: [&str; 2] = ["client_conn", "server_conn"];

/// From a version to the next.
fn step(flow: &mut Dict<'_>, version: i64) {
    match version {
        7 => {
            for key in ["request", "response"] {
                if let Some(message) = flow.dict_mut(key) {
                    message.put("trailers", Item::Null);
                }
            }
        }
        8 => {
            let mut replayed = Item::Null;
            for key in ["response", "request"] {
                let Some(message) = flow.dict_mut(key) else {
                    continue;
                };
                if message.take("is_replay").is_some_and(|was| was.is_truthy()) {
                    replayed = text(key);
                }
                if key == "request" {
                    message.take("first_line_format");
                    message.put("authority", Item::Bytes(Cow::Borrowed(b"")));
                }
            }
            flow.put("is_replay", replayed);
        }
        9 => {
            for key in CONNECTIONS {
                let Some(connection) = flow.dict_mut(key) else {
                    continue;
                };
                let certificate = if key == "client_conn" {
                    let sockname = vec![text(""), Item::Int(0)];
                    connection.put("sockname", Item::List(sockname));
                    connection.take("clientcert")
                } else {
                    connection.put("cipher_name", Item::Null);
                    connection.put("via2", Item::Null);
                    connection.take("cert")
                };
                connection.put("certificate_list", list_of(certificate));
                connection.put("error", Item::Null);
                let tls = connection.get("tls_established").cloned();
                connection.put("tls", tls.unwrap_or(Item::Bool(false)));
                let alpn = connection.get("alpn_proto_negotiated").cloned();
                connection.put("alpn_offers", list_of(alpn));
                let cipher = connection.get("cipher_name").cloned();
                connection.put("cipher_list", list_of(cipher));
            }
        }
        10 => {
            for key in CONNECTIONS {
                let Some(connection) = flow.dict_mut(key) else {
                    continue;
                };
                connection.rename("alpn_proto_negotiated", "alpn");
                if let Some(sni) = connection.get_mut("sni") {
                    as_text(sni);
                }
            }
        }
        11 => flow.put("websocket", Item::Null),
        12 => {
            let marked = flow.get("marked").is_some_and(Item::is_truthy);
            flow.put("marked", text(if marked { ":default:" } else { "" }));
        }
        13 => {
            flow.put("comment", text(""));
            let end = flow
                .dict_mut("request")
                .and_then(|r| r.get("timestamp_end").cloned());
            if let Some(response) = flow.dict_mut("response")
                && response.get("timestamp_start") == Some(&Item::Null)
            {
                let start = end.unwrap_or(Item::Null);
                let end = match start {
                    Item::Int(seconds) => Item::Int(seconds.saturating_add(1)),
                    Item::Float(seconds) => Item::Float(seconds + 1.0),
                    _ => Item::Null,
                };
                response.put("timestamp_start", start);
                response.put("timestamp_end", end);
            }
        }
        14 => {
            let websocket = flow.dict_mut("websocket");
            if let Some(Item::List(messages)) = websocket.and_then(|ws| ws.get_mut("messages")) {
                for message in messages {
                    if let Item::List(fields) = message {
                        fields.push(Item::Bool(false));
                    }
                }
            }
        }
        15 => {
            let whose = if flow.get("request").is_some() {
                "request"
            } else {
                "client_conn"
            };
            let start = flow
                .dict_mut(whose)
                .and_then(|d| d.get("timestamp_start").cloned());
            flow.put("timestamp_created", start.unwrap_or(Item::Null));
        }
        16 => {
            flow.take("mode");
        }
        17 => {
            if let Some(client) = flow.dict_mut("client_conn") {
                client.put("proxy_mode", text("regular"));
            }
        }
        18 => names_of_19(flow),
        19 => {
            for key in CONNECTIONS {
                if let Some(connection) = flow.dict_mut(key) {
                    connection.take("state");
                }
            }
        }
        20 => {
            for key in CONNECTIONS {
                if let Some(connection) = flow.dict_mut(key)
                    && let Some(version) = connection.get_mut("tls_version")
                    && version.as_str() == Some("QUIC")
                {
                    *version = text("QUICv1");
                }
            }
        }
        _ => {}
    }
}

fn names_of_19(flow: &mut Dict<'_>) {
    for key in CONNECTIONS {
        let Some(connection) = flow.dict_mut(key) else {
            continue;
        };
        if key == "client_conn" {
            connection.rename("address", "peername");
            connection.take("tls_extensions");
            if connection
                .get("timestamp_start")
                .is_none_or(|start| *start == Item::Null)
            {
                connection.put("timestamp_start", Item::Float(0.0));
            }
        } else {
            connection.rename("ip_address", "peername");
            connection.rename("source_address", "sockname");
            connection.rename("via2", "via");
        }
        connection.take("tls_established");
        connection.rename("cipher_name", "cipher");
        if connection.get("transport_protocol").is_none() {
            connection.put("transport_protocol", text("tcp"));
        }
        for name in ["peername", "sockname", "address"] {
            if let Some(Item::List(parts)) = connection.get_mut(name)
                && let Some(host) = parts.first_mut()
            {
                as_text(host);
            }
        }
        if connection.get("sni") == Some(&Item::Bool(true)) {
            let host = match connection.get("address") {
                Some(Item::List(parts)) => parts.first().cloned(),
                _ => None,
            };
            connection.put("sni", host.unwrap_or(Item::Null));
        }
    }
}

/// A list of the item, if there is one.
fn list_of(item: Option<Item<'_>>) -> Item<'_> {
    Item::List(item.filter(Item::is_truthy).into_iter().collect())
}

/// Bytes become text; what is no ASCII, `\xff`.
fn as_text(item: &mut Item<'_>) {
    let Item::Bytes(bytes) = item else {
        return;
    };
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes.iter() {
        if byte.is_ascii() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    *item = Item::Str(Cow::Owned(out));
}

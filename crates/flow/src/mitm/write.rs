//! A flow file of version 21, byte for byte as mitmproxy writes it.
//!
//! A tnetstring says how long it is before it begins, so a flow is built from its end to its beginning. That is also why
//! the entries of a dictionary stand in the file in the reverse of the order in which they are put in.

use std::io::{self, Write};

use super::{FORMAT_VERSION, facts};
use crate::record::{
    Address, ClientConnection, Connection, Content, DnsMessage, HeaderFields, HttpMessage,
    HttpRequest, HttpResponse, Record, ResourceRecord, ServerConnection, StreamMessage, Timestamp,
    WebSocketData,
};
use crate::value::{PythonFloat, Value};

/// The memory that is kept from one flow to the next.
const KEPT_BYTES: usize = 4 << 20;

/// Writes a flow file, one flow at a time.
///
/// A flow goes to the output in one call, so that a file which is cut short, by a full disk say, ends behind a whole flow or
/// in the last one.
#[derive(Debug)]
pub struct FlowWriter<W> {
    output: W,
    buffer: Reverse,
}

impl<W: Write> FlowWriter<W> {
    /// A writer at the beginning of a file, or at the end of one that holds flows already.
    pub fn new(output: W) -> Self {
        Self {
            output,
            buffer: Reverse::default(),
        }
    }

    /// Appends a flow; answers how many bytes it took.
    ///
    /// # Errors
    /// What the output says.
    pub fn write(&mut self, record: &Record) -> io::Result<u64> {
        self.buffer.clear();
        self.buffer.record(record);
        let bytes = self.buffer.bytes();
        self.output.write_all(bytes)?;
        Ok(bytes.len() as u64)
    }

    /// The bytes of the flow that was written last.
    pub fn last(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Flushes the output.
    ///
    /// # Errors
    /// What the output says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// The output.
    pub fn get_ref(&self) -> &W {
        &self.output
    }

    /// The output, for which nothing is left to be written.
    pub fn into_inner(self) -> W {
        self.output
    }
}

/// Bytes that grow towards the front.
#[derive(Debug, Default)]
struct Reverse {
    space: Vec<u8>,
    start: usize,
}

impl Reverse {
    fn clear(&mut self) {
        if self.space.len() > KEPT_BYTES {
            self.space = Vec::new();
        }
        self.start = self.space.len();
    }

    fn bytes(&self) -> &[u8] {
        self.space.get(self.start..).unwrap_or_default()
    }

    fn len(&self) -> usize {
        self.space.len() - self.start
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.start < bytes.len() {
            self.grow(bytes.len());
        }
        let begin = self.start - bytes.len();
        if let Some(slot) = self.space.get_mut(begin..self.start) {
            slot.copy_from_slice(bytes);
        }
        self.start = begin;
    }

    fn grow(&mut self, needed: usize) {
        let used = self.len();
        let size = (used + needed).max(self.space.len() * 2).max(8192);
        let mut space = vec![0; size];
        let start = size - used;
        if let Some(slot) = space.get_mut(start..) {
            slot.copy_from_slice(self.bytes());
        }
        self.space = space;
        self.start = start;
    }

    /// The length of what was written since there were `before` bytes.
    fn length(&mut self, before: usize) {
        let mut rest = self.len() - before;
        let mut digits = [0; 21];
        let mut at = digits.len() - 1;
        if let Some(colon) = digits.get_mut(at) {
            *colon = b':';
        }
        loop {
            at -= 1;
            if let Some(digit) = digits.get_mut(at) {
                *digit = b'0' + (rest % 10) as u8;
            }
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        let text = digits;
        self.push(text.get(at..).unwrap_or_default());
    }

    fn scalar(&mut self, payload: &[u8], tag: u8) {
        self.push(&[tag]);
        let before = self.len();
        self.push(payload);
        self.length(before);
    }

    fn null(&mut self) {
        self.push(b"0:~");
    }

    fn boolean(&mut self, value: bool) {
        self.push(if value { b"4:true!" } else { b"5:false!" });
    }

    fn integer(&mut self, number: i64) {
        self.scalar(number.to_string().as_bytes(), b'#');
    }

    fn float(&mut self, number: f64) {
        self.scalar(PythonFloat(number).to_string().as_bytes(), b'^');
    }

    fn text(&mut self, text: &str) {
        self.scalar(text.as_bytes(), b';');
    }

    fn data(&mut self, bytes: &[u8]) {
        self.scalar(bytes, b',');
    }

    /// Items from the last to the first.
    fn list<T>(
        &mut self,
        items: impl DoubleEndedIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.push(b"]");
        let before = self.len();
        for item in items.rev() {
            write(self, item);
        }
        self.length(before);
    }

    /// Entries from the first that was put in to the last.
    fn dict(&mut self, write: impl FnOnce(&mut Self)) {
        self.push(b"}");
        let before = self.len();
        write(self);
        self.length(before);
    }

    fn entry(&mut self, key: &str, write: impl FnOnce(&mut Self)) {
        write(self);
        self.text(key);
    }

    fn optional<T>(&mut self, key: &str, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.null(),
        }
        self.text(key);
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.null(),
            Value::Bool(value) => self.boolean(*value),
            Value::Int(number) => self.integer(*number),
            Value::BigInt(digits) => self.scalar(digits.as_bytes(), b'#'),
            Value::Float(number) => self.float(*number),
            Value::Bytes(bytes) => self.data(bytes),
            Value::Str(text) => self.text(text),
            Value::List(items) => self.list(items.iter(), Self::value),
            Value::Dict(entries) => self.dict(|w| {
                for (key, value) in entries {
                    w.value(value);
                    w.value(key);
                }
            }),
        }
    }

    /// A moment that is an integer where it was read as one.
    fn timestamp(&mut self, moment: Timestamp) {
        if moment.is_integer() {
            self.integer(moment.seconds() as i64);
        } else {
            self.float(moment.seconds());
        }
    }

    fn float_timestamp(&mut self, moment: Timestamp) {
        self.float(moment.seconds());
    }

    fn record(&mut self, record: &Record) {
        self.dict(|w| {
            w.entry("version", |w| w.integer(FORMAT_VERSION));
            w.entry("type", |w| w.text(record.flow_type().as_str()));
            w.entry("id", |w| w.text(&record.id));
            w.optional("error", record.error.as_ref(), |w, error| {
                w.dict(|w| {
                    w.entry("msg", |w| w.text(&error.message));
                    w.entry("timestamp", |w| w.float_timestamp(error.timestamp));
                });
            });
            w.entry("client_conn", |w| w.client(&record.client));
            w.entry("server_conn", |w| w.server(&record.server));
            w.entry("intercepted", |w| w.boolean(record.intercepted));
            w.optional("is_replay", record.replay, |w, replay| {
                w.text(replay.as_str())
            });
            w.entry("marked", |w| w.text(&record.marked));
            w.entry("metadata", |w| w.metadata(record));
            w.entry("comment", |w| w.text(&record.comment));
            w.entry("timestamp_created", |w| w.timestamp(record.created));
            w.optional("backup", record.backup.as_deref(), Self::value);
            match &record.content {
                Content::Http(http) => {
                    w.entry("request", |w| w.request(&http.request));
                    w.optional("response", http.response.as_ref(), Self::response);
                    w.optional("websocket", http.websocket.as_ref(), Self::websocket);
                }
                Content::Tcp(messages) | Content::Udp(messages) => {
                    w.entry("messages", |w| {
                        w.list(messages.iter(), Self::stream_message)
                    });
                }
                Content::Dns(dns) => {
                    w.entry("request", |w| w.dns(&dns.request));
                    w.optional("response", dns.response.as_ref(), Self::dns);
                }
            }
        });
    }

    fn metadata(&mut self, record: &Record) {
        self.dict(|w| {
            for (key, value) in facts::others(record) {
                w.value(value);
                w.value(key);
            }
            if let Some(ours) = facts::entry(record) {
                w.value(&ours);
                w.text("tollgate");
            }
        });
    }

    fn client(&mut self, client: &ClientConnection) {
        self.dict(|w| {
            w.connection(&client.common);
            // mitmproxy's own order: these three stand before what only clients have.
            w.optional(
                "timestamp_start",
                client.common.timestamp_start,
                Self::float_timestamp,
            );
            w.optional(
                "timestamp_end",
                client.common.timestamp_end,
                Self::float_timestamp,
            );
            w.optional(
                "timestamp_tls_setup",
                client.common.timestamp_tls_setup,
                Self::float_timestamp,
            );
            w.optional("mitmcert", client.mitmcert.as_deref(), Self::data);
            w.entry("proxy_mode", |w| w.text(&client.proxy_mode));
        });
    }

    fn server(&mut self, server: &ServerConnection) {
        self.dict(|w| {
            w.connection(&server.common);
            w.optional(
                "timestamp_start",
                server.common.timestamp_start,
                Self::float_timestamp,
            );
            w.optional(
                "timestamp_end",
                server.common.timestamp_end,
                Self::float_timestamp,
            );
            w.optional(
                "timestamp_tls_setup",
                server.common.timestamp_tls_setup,
                Self::float_timestamp,
            );
            w.optional("address", server.address.as_ref(), Self::address);
            w.optional(
                "timestamp_tcp_setup",
                server.timestamp_tcp_setup,
                Self::float_timestamp,
            );
            w.optional("via", server.via.as_ref(), |w, via| {
                w.push(b"]");
                let before = w.len();
                w.address(&via.address);
                w.text(&via.scheme);
                w.length(before);
            });
        });
    }

    fn connection(&mut self, common: &Connection) {
        self.optional("peername", common.peername.as_ref(), Self::address);
        self.optional("sockname", common.sockname.as_ref(), Self::address);
        self.entry("id", |w| w.text(&common.id));
        self.entry("transport_protocol", |w| {
            w.text(common.transport_protocol.as_str())
        });
        self.optional("error", common.error.as_deref(), Self::text);
        self.entry("tls", |w| w.boolean(common.tls));
        self.entry("certificate_list", |w| {
            w.list(common.certificates.pem(), |w, pem| w.data(&pem));
        });
        self.optional("alpn", common.alpn.as_deref(), Self::data);
        self.entry("alpn_offers", |w| {
            w.list(common.alpn_offers.iter(), |w, offer| w.data(offer))
        });
        self.optional("cipher", common.cipher.as_deref(), Self::text);
        self.entry("cipher_list", |w| {
            w.list(common.cipher_list.iter(), |w, name| w.text(name))
        });
        self.optional("tls_version", common.tls_version.as_deref(), Self::text);
        self.optional("sni", common.sni.as_deref(), Self::text);
    }

    fn address(&mut self, address: &Address) {
        self.push(b"]");
        let before = self.len();
        for part in address.rest.iter().rev() {
            self.integer((*part).into());
        }
        self.integer(address.port.into());
        self.text(&address.host);
        self.length(before);
    }

    fn request(&mut self, request: &HttpRequest) {
        self.dict(|w| {
            w.message(&request.message);
            w.entry("host", |w| w.text(&request.host));
            w.entry("port", |w| w.integer(request.port.into()));
            w.entry("method", |w| w.data(&request.method));
            w.entry("scheme", |w| w.data(&request.scheme));
            w.entry("authority", |w| w.data(&request.authority));
            w.entry("path", |w| w.data(&request.path));
        });
    }

    fn response(&mut self, response: &HttpResponse) {
        self.dict(|w| {
            w.message(&response.message);
            w.entry("status_code", |w| w.integer(response.status.into()));
            w.entry("reason", |w| w.data(&response.reason));
        });
    }

    fn message(&mut self, message: &HttpMessage) {
        self.entry("http_version", |w| w.data(&message.version));
        self.entry("headers", |w| w.headers(&message.headers));
        self.optional("content", message.body.data.as_deref(), Self::data);
        self.optional("trailers", message.trailers.as_ref(), Self::headers);
        self.entry("timestamp_start", |w| w.timestamp(message.started));
        self.optional("timestamp_end", message.ended, Self::timestamp);
    }

    fn headers(&mut self, headers: &HeaderFields) {
        self.list(headers.0.iter(), |w, (name, value)| {
            w.list([name, value].into_iter(), |w, part| w.data(part));
        });
    }

    fn websocket(&mut self, data: &WebSocketData) {
        self.dict(|w| {
            w.entry("messages", |w| {
                w.list(data.messages.iter(), |w, message| {
                    w.push(b"]");
                    let before = w.len();
                    w.boolean(message.injected);
                    w.boolean(message.dropped);
                    w.timestamp(message.timestamp);
                    w.data(&message.content);
                    w.boolean(message.from_client);
                    w.integer(message.opcode.into());
                    w.length(before);
                });
            });
            w.optional("closed_by_client", data.closed_by_client, Self::boolean);
            w.optional("close_code", data.close_code, |w, code| {
                w.integer(code.into())
            });
            w.optional("close_reason", data.close_reason.as_deref(), Self::text);
            w.optional("timestamp_end", data.timestamp_end, Self::float_timestamp);
        });
    }

    fn stream_message(&mut self, message: &StreamMessage) {
        self.push(b"]");
        let before = self.len();
        self.timestamp(message.timestamp);
        self.data(&message.content);
        self.boolean(message.from_client);
        self.length(before);
    }

    fn dns(&mut self, message: &DnsMessage) {
        self.dict(|w| {
            w.entry("id", |w| w.integer(message.id.into()));
            w.entry("query", |w| w.boolean(message.query));
            w.entry("op_code", |w| w.integer(message.op_code.into()));
            w.entry("authoritative_answer", |w| {
                w.boolean(message.authoritative_answer)
            });
            w.entry("truncation", |w| w.boolean(message.truncation));
            w.entry("recursion_desired", |w| {
                w.boolean(message.recursion_desired)
            });
            w.entry("recursion_available", |w| {
                w.boolean(message.recursion_available)
            });
            w.entry("reserved", |w| w.integer(message.reserved.into()));
            w.entry("response_code", |w| w.integer(message.response_code.into()));
            w.entry("questions", |w| {
                w.list(message.questions.iter(), |w, question| {
                    w.dict(|w| {
                        w.entry("name", |w| w.text(&question.name));
                        w.entry("type", |w| w.integer(question.kind.into()));
                        w.entry("class_", |w| w.integer(question.class.into()));
                    });
                });
            });
            w.entry("answers", |w| w.records(&message.answers));
            w.entry("authorities", |w| w.records(&message.authorities));
            w.entry("additionals", |w| w.records(&message.additionals));
            w.optional("timestamp", message.timestamp, Self::float_timestamp);
        });
    }

    fn records(&mut self, records: &[ResourceRecord]) {
        self.list(records.iter(), |w, record| {
            w.dict(|w| {
                w.entry("name", |w| w.text(&record.name));
                w.entry("type", |w| w.integer(record.kind.into()));
                w.entry("class_", |w| w.integer(record.class.into()));
                w.entry("ttl", |w| w.integer(record.ttl.into()));
                w.entry("data", |w| w.data(&record.data));
            });
        });
    }
}

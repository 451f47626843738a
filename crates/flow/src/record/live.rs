//! From a live flow to a record.

use bytes::Bytes;

use super::{
    Address, Body, Certificates, ClientConnection, Connection, Content, Facts, HeaderFields,
    HttpExchange, HttpMessage, HttpRequest, HttpResponse, Metadata, Record, RecordError,
    ServerConnection, Timestamp, Transport, Via, WebSocketData,
};
use crate::connection::{ConnectionInfo, UpstreamInfo};
use crate::flow::{Flow, FlowId, FlowKind, HttpVersion, Request, Response, Scheme};
use crate::outcome::{Outcome, OutcomeKind, Side};
use crate::upstream_proxy::ProxyScheme;
use crate::websocket::WebSocket;

impl Record {
    /// Records a flow as it is now; with its outcome, if it has ended.
    ///
    /// Bodies are those that an interceptor had collected ([`Request::body`]); of others only the size is known, and they
    /// are marked as cut. Who captured pieces puts them in: `record.as_http_mut()`, then [`Body::kept`]; for TCP and UDP,
    /// into [`Content::Tcp`] and [`Content::Udp`]; messages of a WebSocket, into [`WebSocketData::messages`].
    /// The client's process is not looked up, because that may take a millisecond; `facts.process` is there for it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tollgate_flow::{ConnectionId, ConnectionInfo, Flow, Outcome};
    /// use tollgate_flow::record::Record;
    ///
    /// # let address = "127.0.0.1:1".parse().unwrap();
    /// # let flow = Flow::new(Arc::new(ConnectionInfo::new(ConnectionId(1), address, address, None)));
    /// let record = Record::from_flow(&flow, Some(&Outcome::COMPLETED));
    /// assert_eq!(record.id, flow.id.to_string());
    /// ```
    pub fn from_flow(flow: &Flow, outcome: Option<&Outcome>) -> Self {
        let started = Timestamp::from(flow.timing.started);
        let content = match flow.kind {
            FlowKind::Http => Content::Http(Box::new(HttpExchange {
                request: request(flow, started),
                response: flow.response.as_deref().map(|r| response(flow, r, started)),
                websocket: flow
                    .websocket
                    .as_deref()
                    .map(|open| websocket(flow, open, started)),
            })),
            // Their pieces belong to who captured them.
            FlowKind::Tcp => Content::Tcp(Vec::new()),
            FlowKind::Udp => Content::Udp(Vec::new()),
        };
        let mut record = Self::new(flow.id.to_string(), started, content);
        record.client = client(&flow.connection, flow.request.version);
        record.server = server(flow);
        if flow.kind == FlowKind::Udp {
            record.client.common.transport_protocol = Transport::Udp;
            record.server.common.transport_protocol = Transport::Udp;
        }
        record.error = outcome.and_then(|outcome| {
            Some(RecordError {
                message: match (&outcome.error, outcome.kind) {
                    (Some(error), _) => error.to_string(),
                    (None, OutcomeKind::Dropped) => RecordError::KILLED.to_owned(),
                    (None, _) => return None,
                },
                timestamp: started.after(flow.timing.start.elapsed()),
            })
        });
        let mut metadata = Metadata::default();
        for (key, text) in &flow.metadata {
            metadata.note(key, text);
        }
        record.metadata = metadata;
        record.replay = flow.replay;
        let tls = flow.connection.tls();
        record.facts = Facts {
            ja3: tls.map(|tls| tls.ja3().to_owned()),
            ja4: tls.map(|tls| tls.ja4().to_owned()),
            process: None,
            outcome: outcome.map(|outcome| outcome.kind),
            response_pieces: Vec::new(),
        };
        record
    }
}

fn request(flow: &Flow, started: Timestamp) -> HttpRequest {
    let request = &flow.request;
    let is_connect = request.method().eq_ignore_ascii_case(b"CONNECT");
    let mut headers = HeaderFields::from(request.headers());
    if matches!(request.version, HttpVersion::Http2 | HttpVersion::Http3) {
        // In HTTP/2 and HTTP/3, `Host` stands in for `:authority`, which has a place of its own in a record.
        if request.authority.as_deref() == headers.get("host") {
            headers.remove("host");
        }
    }
    HttpRequest {
        method: Bytes::copy_from_slice(request.method()),
        scheme: if is_connect {
            Bytes::new()
        } else {
            Bytes::from_static(request.scheme.as_str().as_bytes())
        },
        authority: Bytes::from(request.authority.clone().unwrap_or_default()),
        path: Bytes::copy_from_slice(request.path()),
        host: request.target.host.to_string(),
        port: request.target.port,
        message: HttpMessage {
            version: version(request.version),
            headers,
            body: request_body(request),
            trailers: request.trailers.as_ref().map(HeaderFields::from),
            started,
            ended: flow.timing.request_end.map(|end| started.after(end)),
        },
    }
}

fn response(flow: &Flow, response: &Response, started: Timestamp) -> HttpResponse {
    let timing = &flow.timing;
    let begins = timing.response_start.or(timing.response_end);
    HttpResponse {
        status: response.status(),
        reason: Bytes::copy_from_slice(response.reason()),
        message: HttpMessage {
            version: version(response.version),
            headers: HeaderFields::from(response.headers()),
            body: match response.body() {
                Some(body) => Body::whole(body.clone()),
                None if response.body_size == 0 => Body::whole(Bytes::new()),
                None => Body::not_kept(response.body_size),
            },
            trailers: response.trailers.as_ref().map(HeaderFields::from),
            started: begins.map_or(started, |begins| started.after(begins)),
            ended: timing.response_end.map(|end| started.after(end)),
        },
    }
}

fn request_body(request: &Request) -> Body {
    match request.body() {
        Some(body) => Body::whole(body.clone()),
        None if request.body_size == 0 => Body::whole(Bytes::new()),
        None => Body::not_kept(request.body_size),
    }
}

/// Without its messages, which belong to who captured them.
fn websocket(flow: &Flow, open: &WebSocket, started: Timestamp) -> WebSocketData {
    let close = open.close.as_ref();
    WebSocketData {
        messages: Vec::new(),
        closed_by_client: close.map(|close| close.by == Side::Client),
        close_code: close.and_then(|close| close.code),
        close_reason: close.map(|close| close.reason.clone()),
        timestamp_end: flow.timing.response_end.map(|end| started.after(end)),
    }
}

fn version(version: HttpVersion) -> Bytes {
    Bytes::from_static(version.as_str().as_bytes())
}

fn client(connection: &ConnectionInfo, version: HttpVersion) -> ClientConnection {
    let tls = connection.tls();
    let is_quic = version == HttpVersion::Http3;
    let mode = connection.mode();
    ClientConnection {
        common: Connection {
            // The connection's number is unique in its proxy, and the time among proxies.
            id: FlowId::new(connection.opened, u128::from(connection.id.0)).to_string(),
            peername: Some(connection.client.into()),
            sockname: Some(connection.local.into()),
            transport_protocol: if is_quic {
                Transport::Udp
            } else {
                Transport::Tcp
            },
            error: None,
            tls: tls.is_some(),
            certificates: Certificates::default(),
            alpn: tls.and_then(|tls| tls.alpn()).map(Bytes::copy_from_slice),
            alpn_offers: tls.map_or_else(Vec::new, |tls| {
                let offers = tls.hello.alpn.iter();
                offers.map(|offer| Bytes::copy_from_slice(offer)).collect()
            }),
            cipher: None,
            cipher_list: Vec::new(),
            tls_version: match is_quic {
                true => Some(QUIC.to_owned()),
                false => tls.and_then(|tls| tls.version()).map(|v| v.to_string()),
            },
            sni: tls.and_then(|tls| tls.hello.server_name.clone()),
            timestamp_start: Some(connection.opened.into()),
            timestamp_tls_setup: tls.and_then(|tls| tls.established()).map(Timestamp::from),
            timestamp_end: None,
        },
        mitmcert: None,
        proxy_mode: if mode.is_empty() { "regular" } else { mode }.to_owned(),
    }
}

/// How mitmproxy calls the TLS in QUIC.
const QUIC: &str = "QUICv1";

fn server(flow: &Flow) -> ServerConnection {
    let target = &flow.request.target;
    let mut server = ServerConnection {
        address: Some(Address::new(&*target.host, target.port)),
        ..ServerConnection::default()
    };
    let common = &mut server.common;
    common.tls = flow.request.scheme == Scheme::Https;
    if common.tls && target.ip().is_none() {
        common.sni = Some(target.host.to_string());
    }
    let Some(upstream) = &flow.upstream else {
        common.id = flow.id.to_string();
        return server;
    };
    common.id = upstream_id(upstream);
    common.peername = Some(upstream.address.into());
    common.sockname = Some(upstream.local.into());
    common.certificates = Certificates::Der(upstream.certificates.clone());
    common.alpn = upstream.alpn.as_deref().map(Bytes::copy_from_slice);
    common.tls_version = upstream.tls_version.map(|version| version.to_string());
    if upstream.alpn.as_deref() == Some(b"h3") {
        common.transport_protocol = Transport::Udp;
        common.tls_version = Some(QUIC.to_owned());
    }
    // mitmproxy knows no SOCKS proxies on the way, and would refuse a file with one.
    server.via = upstream
        .via
        .as_ref()
        .filter(|proxy| proxy.scheme != ProxyScheme::Socks5)
        .map(|proxy| Via {
            scheme: proxy.scheme.as_str().to_owned(),
            address: Address::new(&*proxy.address.host, proxy.address.port),
        });
    let connected = Timestamp::from(upstream.connected);
    common.timestamp_start = upstream
        .connected
        .checked_sub(upstream.connect_time)
        .map(Timestamp::from);
    server.timestamp_tcp_setup = Some(connected);
    if upstream.tls_version.is_some() {
        common.timestamp_tls_setup = Some(connected.after(upstream.handshake_time));
    }
    server
}

/// The same for all flows of a connection, and different for different ones: a local port is used once at a time.
fn upstream_id(upstream: &UpstreamInfo) -> String {
    let unique = (u128::from(upstream.local.port()) << 16) | u128::from(upstream.address.port());
    let micros = upstream.connected.duration_since(std::time::UNIX_EPOCH);
    let micros = micros.map_or(0, |d| u128::from(d.subsec_micros()));
    FlowId::new(upstream.connected, (micros << 32) | unique).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{ConnectionId, Target};
    use crate::outcome::{ErrorClass, FlowError};
    use crate::websocket::WebSocketClose;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};
    use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

    fn flow() -> Flow {
        let connection = ConnectionInfo::new(
            ConnectionId(7),
            "127.0.0.1:50000".parse().unwrap(),
            "[::1]:8080".parse().unwrap(),
            None,
        );
        let mut flow = Flow::new(Arc::new(connection));
        flow.id = FlowId::new(SystemTime::now(), 1);
        flow.request.head = RequestHead::build(b"POST", b"/a?b", Version::Http11).unwrap();
        flow.request
            .headers_mut()
            .append(b"Host", b"example.com")
            .unwrap();
        flow.request.target = Target::new("example.com", 443);
        flow.request.scheme = Scheme::Https;
        flow.timing.started = SystemTime::now();
        flow
    }

    fn upstream() -> UpstreamInfo {
        UpstreamInfo {
            address: "192.0.2.1:443".parse().unwrap(),
            via: Some(Arc::new("http://proxy.example:3128".parse().unwrap())),
            local: "192.0.2.2:1234".parse().unwrap(),
            tls_version: Some(crate::TlsVersion::Tls13),
            alpn: Some(b"http/1.1".to_vec()),
            certificates: Arc::new([vec![1, 2, 3]]),
            unverified: false,
            connected: SystemTime::now(),
            connect_time: Duration::from_millis(5),
            handshake_time: Duration::from_millis(7),
        }
    }

    #[test]
    fn a_live_flow_is_recorded_with_both_connections() {
        let mut flow = flow();
        flow.upstream = Some(Arc::new(upstream()));
        flow.request.body_size = 10;
        let mut response = Response::default();
        response.head = ResponseHead::build(200, b"OK").unwrap();
        response.put_collected_body("hello".into());
        response.body_size = 5;
        flow.response = Some(Box::new(response));
        flow.timing.request_end = Some(Duration::from_millis(1));
        flow.timing.response_start = Some(Duration::from_millis(2));
        flow.timing.response_end = Some(Duration::from_millis(4));
        flow.metadata.push(("finding".into(), "one".into()));
        flow.metadata.push(("finding".into(), "two".into()));

        let record = Record::from_flow(&flow, Some(&Outcome::COMPLETED));
        assert_eq!(record.flow_id(), Some(flow.id));
        let http = record.as_http().unwrap();
        assert_eq!(http.request.pretty_url(), "https://example.com/a?b");
        assert_eq!(http.request.message.body, Body::not_kept(10));
        let response = &http.response.as_ref().unwrap();
        assert_eq!(response.message.body, Body::whole("hello"));
        let took = response
            .message
            .ended
            .unwrap()
            .since(response.message.started);
        assert!((took.unwrap().as_secs_f64() - 0.002).abs() < 1e-5);
        assert_eq!(
            record.server.address,
            Some(Address::new("example.com", 443))
        );
        assert_eq!(
            record.server.common.peername,
            Some(Address::new("192.0.2.1", 443))
        );
        assert_eq!(
            record.server.via.as_ref().unwrap().address,
            Address::new("proxy.example", 3128)
        );
        let tcp = record.server.timestamp_tcp_setup.unwrap();
        let dialled = tcp.since(record.server.common.timestamp_start.unwrap());
        assert!((dialled.unwrap().as_secs_f64() - 0.005).abs() < 1e-5);
        assert_eq!(record.client.common.sockname.as_ref().unwrap().rest, [0, 0]);
        assert_eq!(record.findings().collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(record.error, None);
        assert_eq!(record.facts.outcome, Some(OutcomeKind::Completed));
        // Flows that share connections say so.
        let again = Record::from_flow(&flow, None);
        assert_eq!(again.server.common.id, record.server.common.id);
        assert_eq!(again.client.common.id, record.client.common.id);
    }

    #[test]
    fn failures_and_drops_are_errors() {
        let flow = flow();
        let failed = Outcome::failed(FlowError::new(
            Side::Upstream,
            ErrorClass::Dns,
            "no such host",
        ));
        let record = Record::from_flow(&flow, Some(&failed));
        assert_eq!(record.error.unwrap().message, "upstream: no such host");
        let dropped = Outcome {
            kind: OutcomeKind::Dropped,
            error: None,
        };
        let record = Record::from_flow(&flow, Some(&dropped));
        assert_eq!(record.error.unwrap().message, "Connection killed.");
    }

    #[test]
    fn the_close_of_a_websocket_is_recorded() {
        let mut flow = flow();
        let mut open = WebSocket::new(None);
        open.close = Some(WebSocketClose {
            by: Side::Client,
            code: Some(1001),
            reason: "going".to_owned(),
        });
        flow.websocket = Some(Box::new(open));
        let record = Record::from_flow(&flow, None);
        let websocket = record.as_http().unwrap().websocket.as_ref().unwrap();
        assert_eq!(websocket.closed_by_client, Some(true));
        assert_eq!(websocket.close_code, Some(1001));
        assert_eq!(websocket.close_reason.as_deref(), Some("going"));
    }

    #[test]
    fn a_stream_is_recorded_without_its_pieces() {
        let mut flow = flow();
        flow.kind = FlowKind::Udp;
        let record = Record::from_flow(&flow, None);
        assert_eq!(record.content, Content::Udp(Vec::new()));
        assert_eq!(record.client.common.transport_protocol, Transport::Udp);
    }

    #[test]
    fn the_authority_of_http2_is_no_host_field() {
        let mut flow = flow();
        flow.request.version = HttpVersion::Http2;
        flow.request.authority = Some(b"example.com".to_vec());
        let record = Record::from_flow(&flow, None);
        let request = &record.as_http().unwrap().request;
        assert!(request.message.headers.is_empty());
        assert_eq!(request.pretty_url(), "https://example.com/a?b");
    }
}

//! What passes between every pair of HTTP versions: the same exchange, told in the words of each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tollgate_engine::{Config, UpstreamHttp};
use tollgate_flow::{HttpVersion, Interest};

use crate::support::http2::{self, Call, H2Origin, response, run, send};
#[cfg(feature = "http3")]
use crate::support::http3::{self, H3Origin};
use crate::support::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    H1,
    H2,
    #[cfg(feature = "http3")]
    H3,
}
#[cfg(feature = "http3")]
use Version::H3;
use Version::{H1, H2};

/// Client, origin.
const PAIRS: &[(Version, Version)] = &[
    (H1, H1),
    (H1, H2),
    (H2, H1),
    (H2, H2),
    #[cfg(feature = "http3")]
    (H1, H3),
    #[cfg(feature = "http3")]
    (H2, H3),
    #[cfg(feature = "http3")]
    (H3, H1),
    #[cfg(feature = "http3")]
    (H3, H2),
    #[cfg(feature = "http3")]
    (H3, H3),
];

/// A configuration in which this client meets this origin.
fn config_for(client: Version, origin: Version) -> Config {
    let mut config = config();
    config.upstream_http = match origin {
        _ if client == origin => UpstreamHttp::Mirror,
        H1 => UpstreamHttp::Http1,
        H2 => UpstreamHttp::Http2,
        #[cfg(feature = "http3")]
        H3 => UpstreamHttp::Http3,
    };
    config
}

/// The same with a way for the client to this site.
fn config_to(site: &Site, client: Version, origin: Version) -> Config {
    let config = config_for(client, origin);
    match client {
        H1 | H2 => config,
        #[cfg(feature = "http3")]
        H3 => http3::in_front_of(config, &site.authority()),
    }
}

type Fields = Vec<(String, String)>;

/// A message of either version: names in lower case, in order.
#[derive(Clone, Debug, Default)]
struct Message {
    method: String,
    path: String,
    /// `Host`, or `:authority`.
    host: String,
    status: u16,
    fields: Fields,
    body: Vec<u8>,
    trailers: Fields,
    /// Responses before the final one.
    interim: Vec<(u16, Fields)>,
}

impl Message {
    fn request(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            ..Self::default()
        }
    }

    fn response(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn interim(mut self, status: u16, name: &str, value: &str) -> Self {
        let fields = vec![(name.to_owned(), value.to_owned())];
        self.interim.push((status, fields));
        self
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, v)| v.as_str());
        assert!(found.next().is_none(), "{name} twice: {:?}", self.fields);
        value
    }
}

/// An origin of either version that remembers what it was asked.
struct Site {
    origin: Either,
    seen: Arc<Mutex<Vec<Message>>>,
}

enum Either {
    H1(Origin),
    H2(H2Origin),
    #[cfg(feature = "http3")]
    H3(H3Origin),
}

impl Site {
    fn new(
        version: Version,
        answer: impl Fn(&Message) -> Message + Clone + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::<Mutex<Vec<Message>>>::default();
        let log = Arc::clone(&seen);
        let answer = move |request: Message| {
            let answer = answer(&request);
            log.lock().unwrap().push(request);
            answer
        };
        let origin = match version {
            H1 => Either::H1(Origin::script(Identity::Good, move |wire, _| {
                loop {
                    let raw = wire.read_request()?;
                    let request = from_h1(&raw.head, raw.body, &raw.raw_body);
                    let bodiless = request.method == "HEAD";
                    wire.send(to_h1(&answer(request), bodiless))?;
                }
            })),
            H2 => Either::H2(H2Origin::serve(move |call| {
                let answer = answer.clone();
                async move { answer_h2(call, answer).await }
            })),
            #[cfg(feature = "http3")]
            H3 => Either::H3(H3Origin::serve(move |call| {
                let answer = answer.clone();
                async move { answer_h3(call, answer).await }
            })),
        };
        Self { origin, seen }
    }

    fn authority(&self) -> String {
        match &self.origin {
            Either::H1(origin) => origin.authority(),
            Either::H2(origin) => origin.authority(),
            #[cfg(feature = "http3")]
            Either::H3(origin) => origin.authority(),
        }
    }

    /// The last request that arrived.
    fn last(&self) -> Message {
        self.seen.lock().unwrap().last().unwrap().clone()
    }
}

fn parse_lines(lines: &str) -> Fields {
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let lines = lines.split("\r\n").filter(|line| !line.is_empty());
    lines.map(field).collect()
}

fn from_h1(head: &[u8], body: Vec<u8>, raw_body: &[u8]) -> Message {
    let head = std::str::from_utf8(head).unwrap();
    let (start, lines) = head.split_once("\r\n").unwrap();
    let mut words = start.split(' ');
    let mut message = Message {
        fields: parse_lines(lines),
        body,
        ..Message::default()
    };
    if start.starts_with("HTTP/") {
        message.status = words.nth(1).unwrap().parse().unwrap();
    } else {
        message.method = words.next().unwrap().to_owned();
        message.path = words.next().unwrap().to_owned();
        message.host = message.get("host").unwrap().to_owned();
        message.fields.retain(|(name, _)| name != "host");
    }
    if message.get("transfer-encoding").is_some() {
        let last = raw_body.windows(5).rposition(|w| w == b"\r\n0\r\n");
        let from = last.map_or(3, |at| at + 5);
        message.trailers = parse_lines(std::str::from_utf8(&raw_body[from..]).unwrap());
    }
    message
}

/// With `bodiless`, only the head of a message that would have a body.
fn to_h1(message: &Message, bodiless: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let line = |out: &mut Vec<u8>, name: &str, value: &str| {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    };
    for (status, fields) in &message.interim {
        out.extend_from_slice(format!("HTTP/1.1 {status} Interim\r\n").as_bytes());
        for (name, value) in fields {
            line(&mut out, name, value);
        }
        out.extend_from_slice(b"\r\n");
    }
    if message.status > 0 {
        out.extend_from_slice(format!("HTTP/1.1 {} Text\r\n", message.status).as_bytes());
    } else {
        let start = format!("{} {} HTTP/1.1\r\n", message.method, message.path);
        out.extend_from_slice(start.as_bytes());
        line(&mut out, "host", &message.host);
    }
    for (name, value) in &message.fields {
        line(&mut out, name, value);
    }
    let has_body = !message.body.is_empty() || !message.trailers.is_empty();
    let chunked = has_body && message.get("content-length").is_none();
    if chunked {
        line(&mut out, "transfer-encoding", "chunked");
    } else if message.status == 200 && message.get("content-length").is_none() {
        line(&mut out, "content-length", "0");
    }
    out.extend_from_slice(b"\r\n");
    if bodiless {
        return out;
    }
    if !chunked {
        out.extend_from_slice(&message.body);
        return out;
    }
    for chunk in message.body.chunks(60_000) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n");
    for (name, value) in &message.trailers {
        line(&mut out, name, value);
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn from_map(map: &HeaderMap) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let fields = map.iter();
    fields
        .map(|(n, v)| (n.as_str().to_owned(), text(v.as_bytes())))
        .collect()
}

fn to_map(fields: &Fields) -> HeaderMap {
    let fields: Vec<_> = fields
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    http2::fields(&fields)
}

async fn answer_h2(mut call: Call, answer: impl Fn(Message) -> Message) -> Result<(), h2::Error> {
    let (body, trailers) = call.body().await?;
    let answer = answer(Message {
        method: call.head.method.to_string(),
        path: call.head.uri.path_and_query().unwrap().to_string(),
        host: call.head.uri.authority().unwrap().to_string(),
        fields: from_map(&call.head.headers),
        body,
        trailers: trailers.as_ref().map(from_map).unwrap_or_default(),
        ..Message::default()
    });
    for (status, fields) in &answer.interim {
        let mut interim = response(*status, &[]);
        *interim.headers_mut() = to_map(fields);
        call.respond.send_informational(interim)?;
    }
    let mut head = response(answer.status, &[]);
    *head.headers_mut() = to_map(&answer.fields);
    let bodiless = call.head.method == "HEAD";
    let ends = bodiless || (answer.body.is_empty() && answer.trailers.is_empty());
    let mut stream = call.respond.send_response(head, ends)?;
    if ends {
        return Ok(());
    }
    if answer.trailers.is_empty() {
        return send(&mut stream, answer.body.into(), true).await;
    }
    send(&mut stream, answer.body.into(), false).await?;
    stream.send_trailers(to_map(&answer.trailers))
}

#[cfg(feature = "http3")]
async fn answer_h3(
    mut call: http3::Call,
    answer: impl Fn(Message) -> Message,
) -> Result<(), h3::error::StreamError> {
    let (body, trailers) = call.body().await?;
    let answer = answer(Message {
        method: call.head.method.to_string(),
        path: call.head.uri.path_and_query().unwrap().to_string(),
        host: call.head.uri.authority().unwrap().to_string(),
        fields: from_map(&call.head.headers),
        body,
        trailers: trailers.as_ref().map(from_map).unwrap_or_default(),
        ..Message::default()
    });
    let stream = &mut call.stream;
    for (status, fields) in &answer.interim {
        let mut interim = response(*status, &[]);
        *interim.headers_mut() = to_map(fields);
        stream.send_response(interim).await?;
    }
    let mut head = response(answer.status, &[]);
    *head.headers_mut() = to_map(&answer.fields);
    stream.send_response(head).await?;
    if call.head.method != "HEAD" {
        if !answer.body.is_empty() {
            stream.send_data(answer.body.into()).await?;
        }
        if !answer.trailers.is_empty() {
            stream.send_trailers(to_map(&answer.trailers)).await?;
        }
    }
    stream.finish().await
}

/// Sends a request as a client of this version, on a connection of its own.
fn ask(proxy: &TestProxy, version: Version, site: &Site, mut request: Message) -> Message {
    request.host = site.authority();
    match version {
        H1 => {
            let mut client = proxy
                .tunnel(&request.host)
                .tls_client(proxy.client_config(), "localhost")
                .unwrap();
            client.send(to_h1(&request, false)).unwrap();
            let mut interim = Vec::new();
            loop {
                let head = client.read_head().unwrap();
                let found = from_h1(&head, Vec::new(), b"0\r\n\r\n");
                if found.status >= 200 {
                    let raw = client.read_rest_of(head, &request.method).unwrap();
                    let mut message = from_h1(&raw.head, raw.body, &raw.raw_body);
                    message.interim = interim;
                    return message;
                }
                interim.push((found.status, found.fields));
            }
        }
        H2 => run(async {
            let client = proxy.h2(&request.host).await;
            let mut head = client.request(&request.method, &request.path);
            *head.headers_mut().unwrap() = to_map(&request.fields);
            let ends = request.body.is_empty() && request.trailers.is_empty();
            let (mut answer, mut stream) = client.begin(head, ends).await.unwrap();
            let upload = async {
                if !ends {
                    let last = request.trailers.is_empty();
                    send(&mut stream, Bytes::from(request.body), last)
                        .await
                        .unwrap();
                    if !last {
                        stream.send_trailers(to_map(&request.trailers)).unwrap();
                    }
                }
            };
            let download = async {
                let mut interim = Vec::new();
                while let Some(found) =
                    std::future::poll_fn(|cx| answer.poll_informational(cx)).await
                {
                    let found = found.unwrap();
                    interim.push((found.status().as_u16(), from_map(found.headers())));
                }
                let answer = http2::answer(answer).await.unwrap();
                Message {
                    status: answer.status,
                    fields: from_map(&answer.headers),
                    body: answer.body,
                    trailers: answer.trailers.as_ref().map(from_map).unwrap_or_default(),
                    interim,
                    ..Message::default()
                }
            };
            tokio::join!(download, upload).0
        }),
        #[cfg(feature = "http3")]
        H3 => run(async {
            let client = proxy.h3(&request.host).await;
            let mut head = client.request(&request.method, &request.path);
            *head.headers_mut().unwrap() = to_map(&request.fields);
            let (mut stream, mut answer) = client.begin(head).await.unwrap();
            let upload = async {
                if !request.body.is_empty() {
                    stream.send_data(request.body.into()).await.unwrap();
                }
                if !request.trailers.is_empty() {
                    let trailers = to_map(&request.trailers);
                    stream.send_trailers(trailers).await.unwrap();
                }
                stream.finish().await.unwrap();
            };
            let download = async {
                let mut interim = Vec::new();
                let head = loop {
                    let (head, ()) = answer.recv_response().await.unwrap().into_parts();
                    if !head.status.is_informational() {
                        break head;
                    }
                    interim.push((head.status.as_u16(), from_map(&head.headers)));
                };
                let answer = http3::rest(head, answer).await.unwrap();
                Message {
                    status: answer.status,
                    fields: from_map(&answer.headers),
                    body: answer.body,
                    trailers: answer.trailers.as_ref().map(from_map).unwrap_or_default(),
                    interim,
                    ..Message::default()
                }
            };
            tokio::join!(download, upload).0
        }),
    }
}

/// Runs a test for each pair of versions.
fn for_all(
    answer: impl Fn(&Message) -> Message + Clone + Send + Sync + 'static,
    test: impl Fn(&dyn Fn(Message) -> Message, &Site, (Version, Version)),
) {
    for &(client, origin) in PAIRS {
        let site = Site::new(origin, answer.clone());
        let recorder = Recorder::new(Interest::END);
        // With and without somebody who looks: heads take different ways.
        let watched = Recorder::new(Interest::HEADS | Interest::DATA);
        for interceptors in [[recorder.clone()], [watched.clone()]] {
            let proxy = start_with(
                config_to(&site, client, origin),
                interceptors.map(|r| r as Arc<dyn tollgate_flow::Interceptor>),
            );
            let ask = |request| ask(&proxy, client, &site, request);
            test(&ask, &site, (client, origin));
        }
    }
}

#[test]
fn a_get_arrives_as_it_was_meant() {
    for_all(
        |_| {
            Message::response(200)
                .field("content-type", "text/plain")
                .field("set-cookie", "a=1")
                .field("set-cookie", "b=2")
                .body("hello")
        },
        |ask, site, pair| {
            let request = Message::request("GET", "/a%20b/?q=1&r=%C3%A9")
                .field("accept", "*/*")
                .field("x-twice", "1")
                .field("x-twice", "2");
            let answer = ask(request);
            assert_eq!((answer.status, &answer.body[..]), (200, &b"hello"[..]));
            assert_eq!(answer.get("content-type"), Some("text/plain"));
            let cookies: Vec<_> = answer
                .fields
                .iter()
                .filter(|(n, _)| n == "set-cookie")
                .map(|(_, v)| v.as_str())
                .collect();
            assert_eq!(cookies, ["a=1", "b=2"], "{pair:?}");
            let mut seen = site.last();
            seen.fields.sort();
            assert_eq!(
                (seen.method.as_str(), seen.path.as_str()),
                ("GET", "/a%20b/?q=1&r=%C3%A9")
            );
            assert_eq!(seen.host, site.authority(), "{pair:?}");
            assert_eq!(
                seen.fields,
                [("accept", "*/*"), ("x-twice", "1"), ("x-twice", "2")]
                    .map(|(n, v)| (n.to_owned(), v.to_owned())),
                "{pair:?}"
            );
        },
    );
}

#[test]
fn fields_keep_their_order_between_versions() {
    for_all(
        |_| Message::response(200),
        |ask, site, pair| {
            let names = ["x-first", "accept", "x-second", "user-agent", "x-last"];
            let mut request = Message::request("GET", "/");
            for name in names {
                request = request.field(name, "1");
            }
            ask(request);
            let seen = site.last();
            let seen: Vec<_> = seen.fields.iter().map(|(n, _)| n.as_str()).collect();
            assert_eq!(seen, names, "{pair:?}");
        },
    );
}

#[test]
fn a_post_and_its_answer_keep_their_lengths() {
    for_all(
        |request| {
            Message::response(201)
                .field("content-length", &request.body.len().to_string())
                .body(request.body.clone())
        },
        |ask, site, pair| {
            let request = Message::request("POST", "/up")
                .field("content-length", "7")
                .body("payload");
            let answer = ask(request);
            assert_eq!((answer.status, &answer.body[..]), (201, &b"payload"[..]));
            assert_eq!(answer.get("content-length"), Some("7"), "{pair:?}");
            let seen = site.last();
            assert_eq!(seen.body, b"payload");
            assert_eq!(seen.get("content-length"), Some("7"), "{pair:?}");
            assert_eq!(seen.get("transfer-encoding"), None, "{pair:?}");
        },
    );
}

#[test]
fn bodies_without_a_length_pass_whole() {
    for_all(
        |request| Message::response(200).body(request.body.clone()),
        |ask, site, pair| {
            let answer = ask(Message::request("PUT", "/up").body("no length"));
            assert_eq!(answer.body, b"no length", "{pair:?}");
            assert_eq!(site.last().get("content-length"), None, "{pair:?}");
            assert_eq!(answer.get("content-length"), None, "{pair:?}");
        },
    );
}

#[test]
fn a_request_without_a_body_gets_none() {
    for_all(
        |_| Message::response(200).body("x"),
        |ask, site, pair| {
            ask(Message::request("DELETE", "/"));
            assert_eq!(site.last().fields, [], "{pair:?}");
        },
    );
}

#[test]
fn large_bodies_pass_both_ways_byte_for_byte() {
    const SIZE: usize = 10 << 20;
    let body = pattern(SIZE);
    for &(client, origin) in PAIRS {
        let down = body.clone();
        let up = body.clone();
        let site = Site::new(origin, move |request| {
            if request.method == "GET" {
                return Message::response(200).body(down.clone());
            }
            assert_same(&request.body, &up);
            Message::response(200).body("got it")
        });
        let proxy = start(config_to(&site, client, origin));
        let answer = ask(&proxy, client, &site, Message::request("GET", "/"));
        assert_same(&answer.body, &body);
        let request = Message::request("POST", "/").body(body.clone());
        let answer = ask(&proxy, client, &site, request);
        assert_eq!(answer.body, b"got it", "{client:?} to {origin:?}");
    }
}

#[test]
fn answers_without_a_body_keep_their_fields() {
    for_all(
        |request| match request.path.as_str() {
            "/204" => Message::response(204).field("x-a", "1"),
            "/304" => Message::response(304).field("etag", "\"1\""),
            _ => Message::response(200)
                .field("content-length", "5")
                .body("12345"),
        },
        |ask, _, pair| {
            let head = ask(Message::request("HEAD", "/"));
            assert_eq!((head.status, head.body.len()), (200, 0), "{pair:?}");
            assert_eq!(head.get("content-length"), Some("5"), "{pair:?}");
            let empty = ask(Message::request("GET", "/204"));
            assert_eq!((empty.status, empty.get("x-a")), (204, Some("1")));
            assert_eq!(empty.get("content-length"), None, "{pair:?}");
            let same = ask(Message::request("GET", "/304"));
            assert_eq!((same.status, same.get("etag")), (304, Some("\"1\"")));
            assert_eq!(same.get("transfer-encoding"), None, "{pair:?}");
        },
    );
}

#[test]
fn trailers_pass_both_ways() {
    for_all(
        |_| {
            Message::response(200)
                .body("down")
                .trailer("x-sum", "4")
                .trailer("x-more", "yes")
        },
        |ask, site, pair| {
            let request = Message::request("POST", "/")
                .body("up")
                .trailer("x-check", "2");
            let answer = ask(request);
            assert_eq!(answer.body, b"down");
            let expected = [("x-sum", "4"), ("x-more", "yes")];
            let expected = expected.map(|(n, v)| (n.to_owned(), v.to_owned()));
            assert_eq!(answer.trailers, expected, "{pair:?}");
            let expected = [("x-check".to_owned(), "2".to_owned())];
            assert_eq!(site.last().trailers, expected, "{pair:?}");
        },
    );
}

#[test]
fn trailers_without_a_body_pass() {
    for_all(
        |_| Message::response(200).trailer("x-sum", "0"),
        |ask, _, pair| {
            let answer = ask(Message::request("GET", "/"));
            assert_eq!(answer.body, b"");
            let expected = [("x-sum".to_owned(), "0".to_owned())];
            assert_eq!(answer.trailers, expected, "{pair:?}");
        },
    );
}

#[test]
fn early_hints_come_before_the_answer() {
    for_all(
        |_| {
            Message::response(200)
                .interim(103, "link", "</a.css>; rel=preload")
                .interim(103, "link", "</b.js>; rel=preload")
                .body("page")
        },
        |ask, _, pair| {
            let answer = ask(Message::request("GET", "/"));
            assert_eq!((answer.status, &answer.body[..]), (200, &b"page"[..]));
            let hints: Vec<_> = answer
                .interim
                .iter()
                .map(|(status, fields)| (*status, fields[0].1.as_str()))
                .collect();
            let expected = [
                (103, "</a.css>; rel=preload"),
                (103, "</b.js>; rel=preload"),
            ];
            assert_eq!(hints, expected, "{pair:?}");
        },
    );
}

#[test]
fn crumbs_of_a_cookie_are_one_field_in_http1() {
    for_all(
        |_| Message::response(200),
        |ask, site, pair| {
            let request = Message::request("GET", "/")
                .field("cookie", "a=1")
                .field("cookie", "b=2")
                .field("accept", "*/*")
                .field("cookie", "c=3");
            if pair.0 != H1 {
                ask(request);
                let seen = site.last();
                let cookies: Vec<_> = seen
                    .fields
                    .iter()
                    .filter(|(n, _)| n == "cookie")
                    .map(|(_, v)| v.as_str())
                    .collect();
                match pair.1 {
                    H1 => assert_eq!(cookies, ["a=1; b=2; c=3"]),
                    _ => assert_eq!(cookies, ["a=1", "b=2", "c=3"]),
                }
            }
        },
    );
}

#[test]
fn what_belongs_to_a_connection_does_not_cross() {
    for_all(
        |request| {
            let answer = Message::response(200).field("x-kept", "1").body("x");
            // An HTTP/2 origin may not send such fields at all.
            if request.path == "/h1" {
                return answer
                    .field("connection", "keep-alive, x-hop")
                    .field("keep-alive", "timeout=5")
                    .field("x-hop", "1");
            }
            answer
        },
        |ask, site, (client, origin)| {
            let path = if origin == H1 { "/h1" } else { "/h2" };
            let mut request = Message::request("GET", path).field("x-kept", "1");
            if client == H1 {
                request = request
                    .field("connection", "keep-alive, x-hop")
                    .field("keep-alive", "timeout=5")
                    .field("proxy-connection", "keep-alive")
                    .field("x-hop", "1");
            }
            request = request.field("proxy-authorization", "Basic c2VjcmV0");
            let answer = ask(request);
            let seen = site.last();
            assert_eq!(seen.get("x-kept"), Some("1"));
            assert_eq!(seen.get("proxy-authorization"), None);
            assert_eq!(seen.get("proxy-connection"), None);
            assert_eq!(answer.get("x-kept"), Some("1"));
            if client != origin {
                for name in ["connection", "keep-alive", "x-hop", "transfer-encoding"] {
                    assert_eq!(seen.get(name), None, "{client:?} to {origin:?}");
                }
            }
            if origin == H1 && client != H1 {
                for name in ["connection", "keep-alive", "x-hop", "transfer-encoding"] {
                    assert_eq!(answer.get(name), None, "{client:?} of {origin:?}");
                }
            }
        },
    );
}

#[test]
fn alternatives_of_http3_are_hidden_from_those_who_don_t_speak_it() {
    const BOTH: &str = r#"h3=":443"; ma=86400, h2="alt.example:8443""#;
    for_all(
        |request| match request.path.as_str() {
            "/both" => Message::response(200).field("alt-svc", BOTH),
            "/only" => Message::response(200).field("alt-svc", r#"h3-29=":443""#),
            _ => Message::response(200).field("alt-svc", "clear"),
        },
        |ask, _, (client, origin)| {
            let hides = client == H1 || client == H2;
            let both = ask(Message::request("GET", "/both"));
            let expected = if hides {
                r#"h2="alt.example:8443""#
            } else {
                BOTH
            };
            assert_eq!(both.get("alt-svc"), Some(expected), "{client:?} {origin:?}");
            let only = ask(Message::request("GET", "/only"));
            assert_eq!(
                only.get("alt-svc").is_none(),
                hides,
                "{client:?} {origin:?}"
            );
            let none = ask(Message::request("GET", "/none"));
            assert_eq!(none.get("alt-svc"), Some("clear"));
        },
    );
}

/// An answer of DNS: an HTTPS record of the root with `alpn=h3,h2`.
const DNS: &[u8] = b"\0\0\x80\0\0\0\0\x01\0\0\0\0\0\0\x41\0\x01\0\0\x0e\x10\0\x0d\
    \0\x01\0\0\x01\0\x06\x02h3\x02h2";

#[test]
fn answers_of_dns_don_t_lead_to_http3() {
    let gzip = |data: &[u8]| {
        use std::io::Write;
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    };
    let coded = gzip(DNS);
    for_all(
        move |request| {
            let answer = Message::response(200).field("content-type", "application/dns-message");
            let length = |bytes: &[u8]| bytes.len().to_string();
            match request.path.as_str() {
                "/length" => answer.field("content-length", &length(DNS)).body(DNS),
                "/coded" => answer
                    .field("content-encoding", "gzip")
                    .field("content-length", &length(&coded))
                    .body(coded.clone()),
                "/other" => Message::response(200).body(DNS),
                // Longer than any message.
                "/long" => answer.body(pattern(200_000)),
                _ => answer.body(DNS).trailer("x-after", "1"),
            }
        },
        |ask, _, pair| {
            let mut stripped = DNS.to_vec();
            let at = stripped.len() - 5;
            stripped[at..at + 2].copy_from_slice(&[0x0a, 0x0a]);
            for path in ["/length", "/coded", "/chunked"] {
                let answer = ask(Message::request("GET", path));
                assert_eq!(answer.body, stripped, "{path} {pair:?}");
                assert_eq!(answer.get("content-encoding"), None);
                if path != "/chunked" {
                    let length = answer.get("content-length").map(str::to_owned);
                    let chunked = answer.get("transfer-encoding") == Some("chunked");
                    assert!(
                        chunked || length == Some(stripped.len().to_string()),
                        "{path} {pair:?}: {:?}",
                        answer.fields
                    );
                }
            }
            let other = ask(Message::request("GET", "/other"));
            assert_eq!(other.body, DNS, "{pair:?}");
            let long = ask(Message::request("GET", "/long"));
            assert_same(&long.body, &pattern(200_000));
        },
    );
}

#[test]
fn te_trailers_crosses_and_other_te_does_not() {
    let site = Site::new(H2, |_| Message::response(200));
    let proxy = start(config_for(H1, H2));
    let request = Message::request("GET", "/")
        .field("te", "trailers")
        .field("connection", "te");
    ask(&proxy, H1, &site, request);
    assert_eq!(site.last().get("te"), Some("trailers"));
    ask(
        &proxy,
        H1,
        &site,
        Message::request("GET", "/").field("te", "gzip"),
    );
    assert_eq!(site.last().get("te"), None);
    let proxy = start(config_for(H2, H2));
    let request = Message::request("GET", "/").field("te", "trailers");
    ask(&proxy, H2, &site, request);
    assert_eq!(site.last().get("te"), Some("trailers"));
}

#[test]
fn an_http1_upload_that_expects_100_gets_it_and_the_origin_gets_the_body() {
    let site = Site::new(H2, |request| {
        Message::response(200).body(request.body.clone())
    });
    let proxy = start(config_for(H1, H2));
    let mut client = proxy
        .tunnel(&site.authority())
        .tls_client(proxy.client_config(), "localhost")
        .unwrap();
    for _ in 0..2 {
        client
            .send("POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
            .unwrap();
        let interim = client.read_head().unwrap();
        assert!(interim.starts_with(b"HTTP/1.1 100 "));
        client.send("body").unwrap();
        assert_eq!(client.read_response("POST").unwrap().text(), "body");
    }
    assert_eq!(site.last().body, b"body");
}

#[test]
fn an_http2_upload_that_expects_100_waits_for_the_http1_origins() {
    let origin = Origin::script(Identity::Good, |wire, _| {
        wire.read_head()?;
        wire.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        assert_eq!(wire.read_exact(4)?, b"body");
        wire.send(ok("thanks"))
    });
    let proxy = start(config_for(H2, H1));
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let request = client
            .request("POST", "/")
            .header("expect", "100-continue")
            .header("content-length", "4");
        let (mut answer, mut stream) = client.begin(request, false).await.unwrap();
        let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await;
        assert_eq!(interim.unwrap().unwrap().status(), 100);
        stream.send_data("body".into(), true).unwrap();
        assert_eq!(http2::answer(answer).await.unwrap().text(), "thanks");
    });
}

#[test]
fn an_http10_client_of_an_http2_origin_reads_to_the_close() {
    let site = Site::new(H2, |_| {
        Message::response(200)
            .interim(103, "link", "</a>")
            .body("to the end")
    });
    let proxy = start(config_for(H1, H2));
    let mut client = proxy
        .tunnel(&site.authority())
        .tls_client(proxy.client_config(), "localhost")
        .unwrap();
    client
        .send("GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let (all, ending) = client.read_to_end();
    let all = String::from_utf8(all).unwrap();
    assert_eq!(ending, Ending::Clean);
    assert!(all.starts_with("HTTP/1.1 200 "), "{all}");
    assert!(all.ends_with("\r\n\r\nto the end"), "{all}");
    assert!(!all.contains("chunked"), "{all}");
}

#[test]
fn mirror_gives_the_client_what_the_origin_speaks() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config());
    let alpn = run(async {
        let stream = proxy.open(&origin.authority(), &["h2", "http/1.1"]).await;
        stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
    });
    assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
}

#[test]
fn without_http2_nobody_is_offered_it() {
    let origin = Origin::echo_path(Identity::Good);
    for upstream_http in [UpstreamHttp::Mirror, UpstreamHttp::Http2] {
        let mut config = config();
        config.http2 = false;
        config.upstream_http = upstream_http;
        let proxy = start(config);
        let alpn = run(async {
            let stream = proxy.open(&origin.authority(), &["h2", "http/1.1"]).await;
            stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
        });
        assert_eq!(alpn.as_deref(), Some(&b"http/1.1"[..]));
    }
}

#[test]
fn an_origin_without_http2_serves_http2_clients_all_the_same() {
    let site = Site::new(H1, |request| {
        Message::response(200).body(request.path.clone())
    });
    let mut config = config();
    config.upstream_http = UpstreamHttp::Http2;
    let proxy = start(config);
    for version in [H1, H2] {
        let answer = ask(&proxy, version, &site, Message::request("GET", "/x"));
        assert_eq!(answer.body, b"/x");
    }
}

#[test]
fn streams_of_one_client_use_http1_connections_side_by_side() {
    const STREAMS: usize = 8;
    let waiting = Arc::new(std::sync::Barrier::new(STREAMS));
    let origin = Origin::http(Identity::Good, move |request| {
        // All of them are under way before the first is answered.
        if request.path() == "/together" {
            waiting.wait();
        }
        ok(request.path())
    });
    let proxy = start(config_for(H2, H1));
    run(async {
        let client = proxy.h2(&origin.authority()).await;
        let calls: Vec<_> = (0..STREAMS)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.get("/together").await })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().text(), "/together");
        }
        for _ in 0..STREAMS {
            assert_eq!(client.get("/after").await.unwrap().text(), "/after");
        }
    });
    assert_eq!(origin.accepted(), STREAMS);
}

#[test]
fn an_http1_origin_that_answers_early_is_not_used_again_in_the_middle_of_a_body() {
    for length in [Some("100000"), None] {
        let origin = Origin::script(Identity::Good, |wire, number| {
            if number == 0 {
                wire.read_head()?;
                wire.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nwho?")?;
                wire.read_to_end();
                return Ok(());
            }
            loop {
                let request = wire.read_request()?;
                wire.send(ok(request.path()))?;
            }
        });
        let mut config = config_for(H2, H1);
        config.timeouts.response_head = SHORT * 10;
        let proxy = start(config);
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            let mut request = client.request("POST", "/up");
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            let (answer, mut stream) = client.begin(request, false).await.unwrap();
            stream.send_data("the beginning".into(), false).unwrap();
            let answer = http2::answer(answer).await.unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (401, "who?"));
            let next = client.get("/next").await.unwrap();
            assert_eq!((next.status, next.text().as_str()), (200, "/next"));
        });
        let first = String::from_utf8(origin.received()[0].clone()).unwrap();
        assert!(!first.contains("/next"), "{first}");
    }
}

#[test]
fn lengths_that_contradict_each_other_never_reach_an_http1_origin() {
    for lengths in [["5", "50"], ["50", "5"], ["5", "+5"], ["5", "5, 50"]] {
        let origin = Origin::echo_path(Identity::Good);
        let proxy = start(config_for(H2, H1));
        run(async {
            let client = proxy.h2(&origin.authority()).await;
            let mut request = client.request("POST", "/up");
            for length in lengths {
                request = request.header("content-length", length);
            }
            match client.call(request, "hello").await {
                Ok(answer) => assert_eq!(answer.status, 400, "{lengths:?}"),
                Err(error) => assert!(error.is_reset(), "{lengths:?}: {error}"),
            }
            assert_eq!(client.get("/x").await.unwrap().text(), "/x");
        });
        let received = String::from_utf8(origin.received().concat()).unwrap();
        assert!(!received.contains("/up"), "{lengths:?}: {received}");
    }
}

#[test]
fn lines_within_fields_never_reach_an_http1_origin() {
    let origin = Origin::echo_path(Identity::Good);
    let proxy = start(config_for(H2, H1));
    // A literal path, method or value that would be more than one line in HTTP/1.
    let evil = b"/x HTTP/1.1\r\nevil: 1";
    let length = u8::try_from(evil.len()).unwrap();
    let path = [&b"\x82\x87\x04"[..], &[length], evil, b"\x01\x09localhost"].concat();
    let value = [
        &b"\x82\x87\x84\x01\x09localhost\x00\x01x"[..],
        &[length],
        evil,
    ]
    .concat();
    let name = [
        &b"\x82\x87\x84\x01\x09localhost\x00"[..],
        &[length],
        evil,
        b"\x01v",
    ]
    .concat();
    let method = [&b"\x02"[..], &[length], evil, b"\x87\x84\x01\x09localhost"].concat();
    let authority = [&b"\x82\x87\x84\x01"[..], &[length], evil].concat();
    let proper = b"\x82\x87\x84\x01\x09localhost".to_vec();
    for block in [path, value, name, method, authority, proper] {
        let mut client = proxy.raw_h2(&origin.authority());
        client.send(http2::frame(1, 5, 1, &block)).unwrap();
        // An answer, a reset, or the end of the connection (GOAWAY).
        while let Ok(frame) = http2::read_frame(&mut client) {
            if frame.stream == 1 || frame.kind == 7 {
                break;
            }
        }
    }
    let received = String::from_utf8(origin.received().concat()).unwrap();
    assert_eq!(received, "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
}

#[test]
fn the_rest_of_an_http1_upload_that_was_answered_early_is_no_request() {
    let origin = H2Origin::serve(|mut call| async move {
        match call.head.uri.path() {
            "/401" => call.answer(401, "who?").await,
            path => {
                let path = path.to_owned();
                call.answer(200, path).await
            }
        }
    });
    let proxy = start(config_for(H1, H2));
    for framing in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let mut client = proxy
            .tunnel(&origin.authority())
            .tls_client(proxy.client_config(), "localhost")
            .unwrap();
        let head = format!("POST /401 HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n");
        client.send(head).unwrap();
        let answer = client.read_response("POST").unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (401, "who?"));
        // A body that looks like a request. The proxy may have closed by now.
        let _ = client.send("GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.finish();
        let (rest, _) = client.read_to_end();
        let rest = String::from_utf8(rest).unwrap();
        assert!(!rest.contains("/smuggled"), "{framing}: {rest}");
    }
    let paths = origin.heads();
    assert!(paths.iter().all(|head| head.uri.path() == "/401"));
}

#[test]
fn flows_name_the_versions_of_both_sides() {
    for &(client, origin) in PAIRS {
        let versions = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&versions);
        let hook = Hook::new(Interest::HEADS).on_response(move |flow| {
            let upstream = flow.response.as_ref().unwrap().version;
            keep.lock().unwrap().push((flow.request.version, upstream));
            tollgate_flow::Step::Continue
        });
        let site = Site::new(origin, |_| Message::response(200));
        let proxy = start_with(config_to(&site, client, origin), [hook.shared()]);
        ask(&proxy, client, &site, Message::request("GET", "/"));
        let name = |version| match version {
            H1 => HttpVersion::Http11,
            H2 => HttpVersion::Http2,
            #[cfg(feature = "http3")]
            H3 => HttpVersion::Http3,
        };
        let seen = versions.lock().unwrap().clone();
        assert_eq!(seen, [(name(client), name(origin))]);
    }
}

#[test]
fn http2_without_tls_reaches_plain_origins() {
    let origin = Origin::echo_path(Identity::Plain);
    let proxy = start(config());
    run(async {
        let stream = tokio::net::TcpStream::connect(proxy.handle.local_addr());
        let (send, connection) = h2::client::handshake(stream.await.unwrap()).await.unwrap();
        tokio::spawn(connection);
        let call = async |method: &str, uri: String| {
            let request = http::Request::builder().method(method).uri(uri);
            let mut send: h2::client::SendRequest<Bytes> = send.clone().ready().await.unwrap();
            let (answer, _) = send.send_request(request.body(()).unwrap(), true).unwrap();
            http2::answer(answer).await.unwrap()
        };
        let authority = origin.authority();
        let answer = call("GET", format!("http://{authority}/plain")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "/plain"));
        // Nobody would check a certificate for it.
        let answer = call("GET", format!("https://{authority}/")).await;
        assert_eq!(answer.status, 400);
        let answer = call("CONNECT", authority.clone()).await;
        assert!(answer.status >= 400);
    });
    // It was asked first whether it speaks HTTP/2, too, and didn't know what that is.
    let received = origin.received();
    assert!(received[0].starts_with(b"PRI * HTTP/2.0\r\n"));
    assert_eq!(received.len(), 2);
    assert_eq!(
        String::from_utf8_lossy(&received[1]),
        format!(
            "GET /plain HTTP/1.1\r\nhost: {}\r\n\r\n",
            origin.authority()
        )
    );
}

#[test]
fn http2_without_tls_in_a_tunnel_is_http2_at_the_origin() {
    let proxy = start(config());
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else {
                        return;
                    };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        let answer = http2::response(200, &[]);
                        let mut body = respond.send_response(answer, false).unwrap();
                        let uri = request.uri().to_string();
                        body.send_data(uri.into(), true).unwrap();
                    }
                });
            }
        });
        let mut stream = tokio::net::TcpStream::connect(proxy.handle.local_addr())
            .await
            .unwrap();
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        for path in ["/1", "/2"] {
            let uri = format!("http://{authority}{path}");
            let request = http::Request::get(&uri).body(()).unwrap();
            let mut send: h2::client::SendRequest<Bytes> = send.clone().ready().await.unwrap();
            let (answer, _) = send.send_request(request, true).unwrap();
            let answer = http2::answer(answer).await.unwrap();
            assert_eq!((answer.status, answer.text()), (200, uri));
        }
        // The one that proved the origin alive, on which it has spoken already, and the one that is
        // used: nothing is said to an origin before a request may pass.
        assert!(accepted.load(Ordering::SeqCst) <= 2);
    });
}

#[test]
fn a_reader_that_stops_stops_the_sender() {
    const SIZE: usize = 24 << 20;
    /// More than all windows and buffers on the way, and far less than the body.
    const BOUND: usize = 8 << 20;
    for (client_version, origin_version) in [(H2, H2), (H2, H1)] {
        let sent = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&sent);
        let body = Bytes::from(pattern(SIZE));
        let expected = body.clone();
        let counting = {
            let (count, body) = (Arc::clone(&count), body.clone());
            move |wire: &mut Wire| {
                for piece in body.chunks(64 * 1024) {
                    wire.send(piece)?;
                    count.fetch_add(piece.len(), Ordering::SeqCst);
                }
                Ok::<_, std::io::Error>(())
            }
        };
        let origin = match origin_version {
            H1 => Either::H1(Origin::script(Identity::Good, move |wire, _| {
                loop {
                    if wire.read_request()?.path() == "/small" {
                        wire.send(ok(vec![b'x'; 100_000]))?;
                        continue;
                    }
                    wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
                    counting(wire)?;
                }
            })),
            H2 => Either::H2(H2Origin::serve(move |mut call| {
                let (count, mut body) = (Arc::clone(&count), body.clone());
                async move {
                    if call.head.uri.path() == "/small" {
                        return call.answer(200, vec![b'x'; 100_000]).await;
                    }
                    let mut stream = call.begin(response(200, &[]))?;
                    while !body.is_empty() {
                        let piece = body.split_to(body.len().min(64 * 1024));
                        let len = piece.len();
                        send(&mut stream, piece, body.is_empty()).await?;
                        count.fetch_add(len, Ordering::SeqCst);
                    }
                    Ok(())
                }
            })),
            #[cfg(feature = "http3")]
            H3 => unreachable!("see the tests of HTTP/3"),
        };
        let authority = match &origin {
            Either::H1(origin) => origin.authority(),
            Either::H2(origin) => origin.authority(),
            #[cfg(feature = "http3")]
            Either::H3(origin) => origin.authority(),
        };
        let proxy = start(config_for(client_version, origin_version));
        run(async {
            let mut settings = h2::client::Builder::new();
            settings.initial_connection_window_size(4 << 20);
            let client = proxy.h2_with(&authority, &settings).await;
            let request = client.request("GET", "/large");
            let (answer, _) = client.begin(request, true).await.unwrap();
            let mut body = answer.await.unwrap().into_body();
            // Time enough for the sender to run away, in which others are served.
            for _ in 0..50 {
                assert_eq!(client.get("/small").await.unwrap().body.len(), 100_000);
            }
            let stopped_at = sent.load(Ordering::SeqCst);
            assert!(
                stopped_at < BOUND,
                "{stopped_at} bytes were taken from the origin"
            );
            let (whole, _) = http2::read(&mut body).await.unwrap();
            assert_same(&whole, &expected);
        });
    }
}

#[test]
fn an_origin_that_stops_reading_stops_the_upload() {
    const SIZE: usize = 24 << 20;
    const BOUND: usize = 8 << 20;
    let (go, goes) = tokio::sync::watch::channel(false);
    let mut settings = h2::server::Builder::new();
    settings.initial_connection_window_size(4 << 20);
    let origin = H2Origin::serve_with(Identity::Good, &settings, move |mut call| {
        let mut goes = goes.clone();
        async move {
            if call.head.uri.path() == "/small" {
                return call.answer(200, "small").await;
            }
            let _ = goes.wait_for(|go| *go).await;
            let (body, _) = call.body().await?;
            call.answer(200, body).await
        }
    });
    let proxy = start(config());
    run(async {
        let mut settings = h2::client::Builder::new();
        settings
            .initial_connection_window_size(32 << 20)
            .initial_window_size(32 << 20);
        let client = proxy.h2_with(&origin.authority(), &settings).await;
        let body = Bytes::from(pattern(SIZE));
        let request = client.request("POST", "/large");
        let (answer, mut stream) = client.begin(request, false).await.unwrap();
        let sent = Arc::new(AtomicUsize::new(0));
        let (count, mut left) = (Arc::clone(&sent), body.clone());
        let upload = tokio::spawn(async move {
            while !left.is_empty() {
                let piece = left.split_to(left.len().min(64 * 1024));
                let len = piece.len();
                send(&mut stream, piece, left.is_empty()).await?;
                count.fetch_add(len, Ordering::SeqCst);
            }
            Ok::<_, h2::Error>(())
        });
        for _ in 0..200 {
            assert_eq!(client.get("/small").await.unwrap().text(), "small");
        }
        let stopped_at = sent.load(Ordering::SeqCst);
        assert!(
            stopped_at < BOUND,
            "{stopped_at} bytes were taken from the client"
        );
        go.send(true).unwrap();
        upload.await.unwrap().unwrap();
        assert_same(&http2::answer(answer).await.unwrap().body, &body);
    });
}

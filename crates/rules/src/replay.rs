//! Answering from recorded flows: mitmproxy's server replay.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use tollgate_flow::record::{Content, HttpExchange, HttpMessage, HttpResponse, Record};
use tollgate_flow::{Flow, FlowKind, Interceptor, Interest, Reply, Response, Step};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tracing::{debug, warn};

/// The most that recordings may hold, in bytes of bodies.
pub const MAX_RECORDING: u64 = 1 << 30;

/// The metadata of a flow that was answered from a recording.
pub const REPLAYED: &str = "replayed";

/// What a request without a recording gets: mitmproxy's `server_replay_extra`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extra {
    /// It goes to its origin.
    #[default]
    Forward,
    /// Its connection is cut.
    Kill,
    /// It is answered with this status, and a text that says what was looked for.
    Status(u16),
}

/// How requests and recordings are compared, and what follows: mitmproxy's `server_replay_*` options.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayOptions {
    /// What a request without a recording gets. Default: it is forwarded.
    pub extra: Extra,
    /// Whether a recording answers more than once. Default: no; then they answer in the order in which they were
    /// recorded.
    pub reuse: bool,
    /// Whether dates and the expiry of cookies move with the time. Default: yes.
    pub refresh: bool,
    /// Header fields that have to be the same.
    pub use_headers: Vec<String>,
    /// Whether bodies may differ.
    pub ignore_content: bool,
    /// Whether hosts may differ.
    pub ignore_host: bool,
    /// Whether ports may differ.
    pub ignore_port: bool,
    /// Parameters of the query that may differ.
    pub ignore_params: Vec<String>,
    /// Parameters of forms that may differ.
    pub ignore_payload_params: Vec<String>,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            extra: Extra::Forward,
            reuse: false,
            refresh: true,
            use_headers: Vec::new(),
            ignore_content: false,
            ignore_host: false,
            ignore_port: false,
            ignore_params: Vec::new(),
            ignore_payload_params: Vec::new(),
        }
    }
}

/// Why a recording can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// More than [`MAX_RECORDING`].
    #[error("the recordings hold more than {} MiB, which is the most that is kept to answer from", MAX_RECORDING >> 20)]
    TooLarge,
}

/// Answers requests from recorded flows.
///
/// A request is answered by a recording with the same method, scheme, host, port, path, query and body; options say
/// what may differ. Recordings without a response, and flows that are not HTTP, answer nothing.
///
/// ```
/// use tollgate_flow::record::{HttpExchange, HttpRequest, HttpResponse, Record};
/// use tollgate_rules::replay::{ReplayOptions, ServerReplay};
///
/// let mut exchange = HttpExchange::new(HttpRequest::new("GET", "https", "example.com", 443, "/"));
/// exchange.response = Some(HttpResponse::new(200, "OK"));
///
/// let mut replay = ServerReplay::new(ReplayOptions::default());
/// replay.add(Record::http("id", exchange))?;
/// assert_eq!(replay.remaining(), 1);
/// // Proxy::builder().interceptor(replay) …
/// # Ok::<(), tollgate_rules::replay::ReplayError>(())
/// ```
pub struct ServerReplay {
    options: ReplayOptions,
    recorded: Mutex<HashMap<Vec<u8>, VecDeque<Arc<HttpExchange>>>>,
    bytes: u64,
}

impl std::fmt::Debug for ServerReplay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerReplay")
            .field("options", &self.options)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

impl ServerReplay {
    /// With nothing recorded.
    pub fn new(options: ReplayOptions) -> Self {
        Self {
            options,
            recorded: Mutex::default(),
            bytes: 0,
        }
    }

    /// Adds a recorded flow. One that is not HTTP, or has no response, is passed over.
    ///
    /// # Errors
    /// [`ReplayError::TooLarge`].
    pub fn add(&mut self, record: Record) -> Result<(), ReplayError> {
        let Content::Http(http) = record.content else {
            return Ok(());
        };
        let Some(response) = &http.response else {
            return Ok(());
        };
        let size = |message: &HttpMessage| {
            message
                .body
                .data
                .as_ref()
                .map_or(0, |data| data.len() as u64)
                + 1024
        };
        self.bytes += size(&http.request.message) + size(&response.message);
        if self.bytes > MAX_RECORDING {
            return Err(ReplayError::TooLarge);
        }
        let key = self.key(&Asked::of_record(&http));
        let recorded = self
            .recorded
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        recorded.entry(key).or_default().push_back(Arc::new(*http));
        Ok(())
    }

    /// How many recordings have not answered yet.
    pub fn remaining(&self) -> usize {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.values().map(VecDeque::len).sum()
    }

    fn next(&self, key: &[u8]) -> Option<Arc<HttpExchange>> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.reuse {
            return recorded.get(key)?.front().cloned();
        }
        let list = recorded.get_mut(key)?;
        let next = list.pop_front();
        if list.is_empty() {
            recorded.remove(key);
        }
        next
    }

    /// What two requests have in common where one answers for the other. Parts have their lengths, so that no two
    /// requests look the same for being cut at other places.
    fn key(&self, asked: &Asked<'_>) -> Vec<u8> {
        let options = &self.options;
        let mut key = Key(Vec::with_capacity(256));
        key.put(asked.scheme);
        key.put(asked.method);
        let (path, query) = match asked.path.iter().position(|b| *b == b'?') {
            Some(at) => asked.path.split_at_checked(at).unwrap_or((asked.path, b"")),
            None => (asked.path, &b""[..]),
        };
        key.put(path);
        if !options.ignore_content {
            match self.form(asked) {
                Some(form) => form.iter().for_each(|(name, value)| {
                    key.put(name);
                    key.put(value);
                }),
                None => key.put(asked.body),
            }
        }
        if !options.ignore_host {
            key.put(asked.host);
        }
        if !options.ignore_port {
            key.put(&asked.port.to_be_bytes());
        }
        let query = query.strip_prefix(b"?").unwrap_or_default();
        for (name, value) in pairs(query) {
            if !is_named(&options.ignore_params, &name) {
                key.put(&name);
                key.put(&value);
            }
        }
        for name in &options.use_headers {
            match (asked.header)(name) {
                Some(value) => key.put(&value),
                None => key.0.push(0xff),
            }
        }
        key.0
    }

    /// The fields of a form, without those that may differ; `None` where the body is to be compared as it is.
    fn form(&self, asked: &Asked<'_>) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let ignored = &self.options.ignore_payload_params;
        if ignored.is_empty() {
            return None;
        }
        let kind = (asked.header)("content-type")?;
        let kind = String::from_utf8_lossy(&kind).into_owned();
        let lower = kind.to_ascii_lowercase();
        let mut fields = if lower.starts_with("application/x-www-form-urlencoded") {
            pairs(asked.body)
        } else if lower.starts_with("multipart/form-data") {
            multipart(asked.body, boundary(&kind)?)
        } else {
            return None;
        };
        fields.retain(|(name, _)| !is_named(ignored, name));
        Some(fields)
    }

    /// The request that was recorded and is most like this one, for who looks for the difference.
    fn closest(&self, asked: &Asked<'_>) -> Option<String> {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let common = |other: &HttpExchange| {
            let path = &other.request.path;
            let same = path.iter().zip(asked.path).take_while(|(a, b)| a == b);
            let host = usize::from(other.request.host.as_bytes() == asked.host);
            let method = usize::from(&*other.request.method == asked.method);
            host * 1000 + method * 100 + same.count().min(99)
        };
        let all = recorded.values().filter_map(|list| list.front());
        let best = all.max_by_key(|exchange| common(exchange))?;
        Some(format!(
            "{} {}",
            String::from_utf8_lossy(&best.request.method),
            best.request.url()
        ))
    }
}

struct Key(Vec<u8>);

impl Key {
    fn put(&mut self, part: &[u8]) {
        self.0.extend_from_slice(&(part.len() as u64).to_be_bytes());
        self.0.extend_from_slice(part);
    }
}

/// All values of a header field, joined.
type Header<'a> = dyn Fn(&str) -> Option<Vec<u8>> + 'a;

/// What is compared of a request.
struct Asked<'a> {
    scheme: &'a [u8],
    method: &'a [u8],
    path: &'a [u8],
    host: &'a [u8],
    port: u16,
    body: &'a [u8],
    header: Box<Header<'a>>,
}

impl<'a> Asked<'a> {
    fn of_record(http: &'a HttpExchange) -> Self {
        let request = &http.request;
        Self {
            scheme: &request.scheme,
            method: &request.method,
            path: &request.path,
            host: request.host.as_bytes(),
            port: request.port,
            body: request.message.body.data.as_deref().unwrap_or_default(),
            header: Box::new(|name| request.message.headers.joined(name)),
        }
    }

    fn of_flow(flow: &'a Flow) -> Self {
        let request = &flow.request;
        Self {
            scheme: request.scheme.as_str().as_bytes(),
            method: request.method(),
            path: request.path(),
            host: request.target.host.as_bytes(),
            port: request.target.port,
            body: request.body().map(|body| &**body).unwrap_or_default(),
            header: Box::new(|name| {
                let mut values = request.headers().get_all(name);
                let mut joined = values.next()?.to_vec();
                for value in values {
                    joined.extend_from_slice(b", ");
                    joined.extend_from_slice(value);
                }
                Some(joined)
            }),
        }
    }
}

fn is_named(names: &[String], name: &[u8]) -> bool {
    names.iter().any(|known| known.as_bytes() == name)
}

/// `a=b&c`: names and values, decoded.
fn pairs(text: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decoded = |part: &[u8]| {
        let mut out = Vec::with_capacity(part.len());
        let mut rest = part;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte == b'%'
                && let Some((digits, after)) = after.split_at_checked(2)
                && let Ok(digits) = std::str::from_utf8(digits)
                && digits.bytes().all(|b| b.is_ascii_hexdigit())
                && let Ok(code) = u8::from_str_radix(digits, 16)
            {
                out.push(code);
                rest = after;
                continue;
            }
            out.push(if byte == b'+' { b' ' } else { byte });
        }
        out
    };
    text.split(|b| *b == b'&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let at = part.iter().position(|b| *b == b'=');
            let (name, value) = at
                .and_then(|at| part.split_at_checked(at))
                .unwrap_or((part, b""));
            (decoded(name), decoded(value.get(1..).unwrap_or_default()))
        })
        .collect()
}

fn boundary(content_type: &str) -> Option<&str> {
    let lower = content_type.to_ascii_lowercase();
    let at = lower.find("boundary=")? + "boundary=".len();
    let value = content_type.get(at..)?;
    let value = value.split(';').next()?.trim().trim_matches('"');
    (!value.is_empty()).then_some(value)
}

/// The fields of a multipart form: names and contents.
fn multipart(body: &[u8], boundary: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let delimiter = format!("--{boundary}").into_bytes();
    let mut fields = Vec::new();
    let finder = |text: &[u8], what: &[u8]| {
        text.windows(what.len().max(1))
            .position(|window| window == what)
    };
    let mut rest = body;
    while let Some(at) = finder(rest, &delimiter) {
        rest = rest.get(at + delimiter.len()..).unwrap_or_default();
        let end = finder(rest, &delimiter).unwrap_or(rest.len());
        let part = rest.get(..end).unwrap_or_default();
        if let Some(blank) = finder(part, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(part.get(..blank).unwrap_or_default()).into_owned();
            let content = part.get(blank + 4..).unwrap_or_default();
            let content = content.strip_suffix(b"\r\n").unwrap_or(content);
            let name = head
                .split_once("name=\"")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map(|(name, _)| name);
            if let Some(name) = name {
                fields.push((name.as_bytes().to_vec(), content.to_vec()));
            }
        }
    }
    fields
}

/// A recorded response as an answer of ours.
fn reply(response: &HttpResponse, refresh: bool, now: SystemTime) -> Reply {
    let message = &response.message;
    let mut reply = Reply::new(response.status);
    for (name, value) in message.headers.iter() {
        let framing = [
            &b"content-length"[..],
            b"transfer-encoding",
            b"connection",
            b"keep-alive",
        ];
        if framing.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            continue;
        }
        // What a recording holds may be no header; then it is left out.
        let _ = reply.headers.append(name, value);
    }
    reply.body = message.body.data.clone().unwrap_or_default();
    if message.body.is_cut() {
        warn!("a recorded body was cut: the answer is not whole");
    }
    if refresh {
        let recorded =
            UNIX_EPOCH.checked_add(Duration::from_secs_f64(message.started.seconds().max(0.0)));
        if let Some(age) = recorded.and_then(|at| now.duration_since(at).ok()) {
            move_dates(&mut reply, age);
        }
    }
    reply
}

/// Moves dates, and the expiry of cookies, by the age of a recording.
fn move_dates(reply: &mut Reply, age: Duration) {
    let moved = |date: &str| {
        let at = httpdate::parse_http_date(&date.trim().replace('-', " ")).ok()?;
        Some(httpdate::fmt_http_date(at.checked_add(age)?))
    };
    for name in ["Date", "Expires", "Last-Modified"] {
        let old = reply
            .headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value).into_owned());
        if let Some(new) = old.and_then(|old| moved(&old)) {
            // A date is a valid value.
            let _ = reply.headers.set(name.as_bytes(), new.as_bytes());
        }
    }
    let cookies: Vec<String> = reply
        .headers
        .get_all("set-cookie")
        .map(|cookie| {
            let cookie = String::from_utf8_lossy(cookie);
            let parts = cookie.split(';').map(|part| {
                let (key, value) = part.split_once('=').unwrap_or((part, ""));
                match key
                    .trim()
                    .eq_ignore_ascii_case("expires")
                    .then(|| moved(value))
                {
                    Some(Some(date)) => format!("{key}={date}"),
                    _ => part.to_owned(),
                }
            });
            parts.collect::<Vec<_>>().join(";")
        })
        .collect();
    if !cookies.is_empty() {
        reply.headers.remove("set-cookie");
        for cookie in cookies {
            // It came from a header.
            let _ = reply.headers.append(b"Set-Cookie", cookie.as_bytes());
        }
    }
}

impl Interceptor for ServerReplay {
    fn name(&self) -> &str {
        "server replay"
    }

    fn interest(&self, flow: &Flow) -> Interest {
        if flow.kind != FlowKind::Http {
            return Interest::NONE;
        }
        // A body is waited for only where it is compared.
        match self.options.ignore_content {
            true => Interest::REQUEST,
            false => Interest::REQUEST_BODY,
        }
    }

    fn request(&self, flow: &mut Flow) -> Step {
        let key = self.key(&Asked::of_flow(flow));
        if let Some(recorded) = self.next(&key) {
            let Some(response) = &recorded.response else {
                return Step::Continue;
            };
            debug!(flow = %flow.id, "answered from a recording");
            flow.metadata
                .push((REPLAYED.to_owned(), "response".to_owned()));
            return Step::respond(reply(response, self.options.refresh, SystemTime::now()));
        }
        match self.options.extra {
            Extra::Forward => Step::Continue,
            Extra::Kill => {
                warn!(url = flow.url(), "no recording answers this: killed");
                Step::Drop
            }
            Extra::Status(status) => {
                let asked = Asked::of_flow(flow);
                let method = String::from_utf8_lossy(asked.method).into_owned();
                let mut text = format!("Tollgate: no recording answers {method} {}\n", flow.url());
                match self.closest(&asked) {
                    Some(closest) => {
                        text.push_str(&format!("The most like it that is left: {closest}\n"))
                    }
                    None => text.push_str("All recordings have answered.\n"),
                }
                warn!(url = flow.url(), status, "no recording answers this");
                Step::respond(Reply::new(status).text(text))
            }
        }
    }
}

/// What a second answer has that the first one hasn't: for client replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The status codes.
    Status(u16, u16),
    /// Fields that only one of them has, or with other values, by name. Dates and lengths are left out.
    Headers(Vec<String>),
    /// The lengths of the decoded bodies, and whether they are the same length.
    Body(u64, u64),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(was, is) => write!(f, "status {was}, now {is}"),
            Self::Headers(names) => write!(f, "headers {}", names.join(", ")),
            Self::Body(was, is) if was == is => write!(f, "another body of {is} bytes"),
            Self::Body(was, is) => write!(f, "a body of {was} bytes, now {is}"),
        }
    }
}

/// Compares a recorded response with a new one.
pub fn differences(recorded: &HttpResponse, new: &Response, body: &[u8]) -> Vec<Difference> {
    let mut found = Vec::new();
    if recorded.status != new.status() {
        found.push(Difference::Status(recorded.status, new.status()));
    }
    const PASSING: [&str; 12] = [
        "date",
        "age",
        "expires",
        "last-modified",
        "set-cookie",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "content-encoding",
        "etag",
        "server-timing",
    ];
    let mut names: Vec<String> = Vec::new();
    let was = recorded.message.headers.iter().map(|(name, _)| name);
    let is = new.headers().iter().map(|(name, _)| name);
    for name in was.chain(is) {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        if PASSING.contains(&&*name) || names.contains(&name) {
            continue;
        }
        let same = {
            let old = recorded.message.headers.get_all(&name);
            old.eq(new.headers().get_all(&name))
        };
        if !same {
            names.push(name);
        }
    }
    if !names.is_empty() {
        found.push(Difference::Headers(names));
    }
    let was = recorded.message.content().unwrap_or_default();
    let is = decoded(body, new.headers().get_all("content-encoding"));
    if was != is {
        found.push(Difference::Body(was.len() as u64, is.len() as u64));
    }
    found
}

fn decoded<'a>(body: &[u8], codings: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let limit = OutputLimit {
        total: 256 << 20,
        per_feed: 256 << 20,
    };
    let Ok(Some(mut decoder)) = Decoder::new(codings, limit) else {
        return body.to_vec();
    };
    let mut out = Vec::new();
    match decoder
        .feed(body, &mut out)
        .and_then(|()| decoder.finish(&mut out))
    {
        Ok(()) => out,
        Err(_) => body.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::flow;
    use tollgate_flow::Bytes;
    use tollgate_flow::record::{Body, HttpRequest, Timestamp};

    fn record(method: &str, path: &str, body: &str, answer: &str) -> Record {
        let mut request = HttpRequest::new(method, "https", "api.example", 443, path);
        request.message.body = Body::whole(body.to_owned());
        let mut exchange = HttpExchange::new(request);
        let mut response = HttpResponse::new(200, "OK");
        response.message.body = Body::whole(answer.to_owned());
        exchange.response = Some(response);
        Record::http("id", exchange)
    }

    fn replay(options: ReplayOptions, records: Vec<Record>) -> ServerReplay {
        let mut replay = ServerReplay::new(options);
        for record in records {
            replay.add(record).unwrap();
        }
        replay
    }

    fn ask(replay: &ServerReplay, method: &str, url: &str, body: &str) -> Result<String, String> {
        let mut flow = flow(method, url);
        flow.request
            .put_collected_body(Bytes::from(body.to_owned()));
        match replay.request(&mut flow) {
            Step::Respond(reply) if reply.status == 200 => {
                Ok(String::from_utf8(reply.body.to_vec()).unwrap())
            }
            Step::Respond(reply) => Err(String::from_utf8(reply.body.to_vec()).unwrap()),
            step => Err(format!("{step:?}")),
        }
    }

    #[test]
    fn recordings_answer_in_their_order_and_once() {
        let records = vec![
            record("GET", "/a", "", "first"),
            record("GET", "/a", "", "second"),
            record("POST", "/a", "x=1", "posted"),
        ];
        let replay = replay(ReplayOptions::default(), records);
        let get = |url: &str| ask(&replay, "GET", url, "");
        assert_eq!(get("https://api.example/a").unwrap(), "first");
        assert_eq!(get("https://api.example/a").unwrap(), "second");
        assert_eq!(get("https://api.example/a").unwrap_err(), "Continue");
        assert_eq!(
            ask(&replay, "POST", "https://api.example/a", "x=2").unwrap_err(),
            "Continue"
        );
        assert_eq!(
            ask(&replay, "POST", "https://api.example/a", "x=1").unwrap(),
            "posted"
        );
        assert_eq!(replay.remaining(), 0);
    }

    #[test]
    fn options_say_what_may_differ() {
        type Set = fn(&mut ReplayOptions);
        let cases: [(Set, &str, &str, &str); 7] = [
            (
                |o| o.ignore_host = true,
                "POST",
                "https://other.example/p?q=1&t=9",
                "a=1&n=2",
            ),
            (
                |o| o.ignore_port = true,
                "POST",
                "https://api.example:8443/p?q=1&t=9",
                "a=1&n=2",
            ),
            (
                |o| o.ignore_params = vec!["t".into()],
                "POST",
                "https://api.example/p?q=1&t=10",
                "a=1&n=2",
            ),
            (
                |o| o.ignore_params = vec!["t".into()],
                "POST",
                "https://api.example/p?q=1",
                "a=1&n=2",
            ),
            (
                |o| o.ignore_content = true,
                "POST",
                "https://api.example/p?q=1&t=9",
                "anything",
            ),
            (
                |o| o.ignore_payload_params = vec!["n".into()],
                "POST",
                "https://api.example/p?q=1&t=9",
                "n=7&a=1",
            ),
            (
                |o| o.reuse = true,
                "POST",
                "https://api.example/p?q=1&t=9",
                "a=1&n=2",
            ),
        ];
        for (set, method, url, body) in cases {
            let mut options = ReplayOptions::default();
            set(&mut options);
            let mut recorded = record("POST", "/p?q=1&t=9", "a=1&n=2", "yes");
            if let Content::Http(http) = &mut recorded.content {
                http.request
                    .message
                    .headers
                    .push("Content-Type", "application/x-www-form-urlencoded");
            }
            let reuse = options.reuse;
            let replay = replay(options, vec![recorded]);
            let ask = || {
                let mut flow = flow(method, url);
                let headers = flow.request.headers_mut();
                headers
                    .set(b"Content-Type", b"application/x-www-form-urlencoded")
                    .unwrap();
                flow.request
                    .put_collected_body(Bytes::from(body.to_owned()));
                matches!(replay.request(&mut flow), Step::Respond(_))
            };
            assert!(ask(), "{url} {body}");
            assert_eq!(ask(), reuse, "{url} {body}");
        }
    }

    #[test]
    fn header_fields_may_have_to_be_the_same() {
        let options = ReplayOptions {
            use_headers: vec!["X-Tenant".into()],
            ..ReplayOptions::default()
        };
        let mut recorded = record("GET", "/", "", "yes");
        if let Content::Http(http) = &mut recorded.content {
            http.request.message.headers.push("x-tenant", "a");
        }
        let replay = replay(options, vec![recorded]);
        for (tenant, answers) in [(None, false), (Some("b"), false), (Some("a"), true)] {
            let mut flow = flow("GET", "https://api.example/");
            if let Some(tenant) = tenant {
                flow.request
                    .headers_mut()
                    .set(b"X-Tenant", tenant.as_bytes())
                    .unwrap();
            }
            assert_eq!(
                matches!(replay.request(&mut flow), Step::Respond(_)),
                answers
            );
        }
    }

    #[test]
    fn what_has_no_recording_says_what_is_like_it() {
        let options = ReplayOptions {
            extra: Extra::Status(404),
            ..ReplayOptions::default()
        };
        let replay = replay(options, vec![record("GET", "/items/1", "", "x")]);
        let error = ask(&replay, "GET", "https://api.example/items/2", "").unwrap_err();
        assert!(
            error.contains("no recording answers GET https://api.example/items/2"),
            "{error}"
        );
        assert!(error.contains("GET https://api.example/items/1"), "{error}");
    }

    #[test]
    fn forms_in_parts_have_fields() {
        let body = b"--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--x\r\nContent-Disposition: form-data; name=\"b\"; filename=\"f\"\r\n\r\n2\r\n--x--\r\n";
        assert_eq!(
            multipart(
                body,
                boundary("multipart/form-data; boundary=\"x\"").unwrap()
            ),
            [
                (b"a".to_vec(), b"1".to_vec()),
                (b"b".to_vec(), b"2".to_vec())
            ]
        );
    }

    #[test]
    fn dates_move_with_the_time() {
        let mut response = HttpResponse::new(200, "OK");
        response.message.started = Timestamp::new(1_000_000_000.0);
        let fields = [
            ("Date", "Sun, 09 Sep 2001 01:46:40 GMT"),
            ("Expires", "Sun, 09 Sep 2001 02:46:40 GMT"),
            (
                "Set-Cookie",
                "a=b; Expires=Sun, 09-Sep-2001 01:46:50 GMT; Path=/",
            ),
            ("Content-Length", "0"),
        ];
        for (name, value) in fields {
            response.message.headers.push(name, value);
        }
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000_060);
        let moved = reply(&response, true, now);
        assert_eq!(
            moved.headers.get("date").unwrap(),
            b"Sun, 09 Sep 2001 01:47:40 GMT"
        );
        assert_eq!(
            moved.headers.get("expires").unwrap(),
            b"Sun, 09 Sep 2001 02:47:40 GMT"
        );
        assert_eq!(
            moved.headers.get("set-cookie").unwrap(),
            b"a=b; Expires=Sun, 09 Sep 2001 01:47:50 GMT; Path=/"
        );
        assert_eq!(moved.headers.get("content-length"), None);
        let same = reply(&response, false, now);
        assert_eq!(
            same.headers.get("date").unwrap(),
            b"Sun, 09 Sep 2001 01:46:40 GMT"
        );
    }
}

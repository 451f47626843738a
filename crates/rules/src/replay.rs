//! Answering from recorded flows: mitmproxy's server replay.

use std::collections::VecDeque;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use serde_json::Value;
use tollgate_flow::record::{
    Content, HttpExchange, HttpMessage, HttpRequest, HttpResponse, Record, Replay,
};
use tollgate_flow::{
    Flow, FlowKind, HeaderList, Interceptor, Interest, PieceMark, Reply, Response, Step,
};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tracing::{debug, warn};

/// The most that recordings may hold, in bytes of bodies.
pub const MAX_RECORDING: u64 = 1 << 30;

/// The longest that [`ReplayOptions::timing`] waits for the head of an answer, and from there for each of its pieces,
/// whatever a recording says.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The names of a query or a form that are compared to say what is different.
const MOST_NAMED: usize = 64;

/// The largest body in which the place of a difference is looked for.
const MOST_JSON: usize = 8 << 20;

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
    /// Whether answers come at the times at which they were recorded: the head after as long, and, where the recording
    /// has them, the pieces of the body. Default: no; then they come at once, in the same pieces.
    pub timing: bool,
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
            timing: false,
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

/// Answers requests from recorded flows: as an interceptor of its own, or in the order of mitmproxy's addons among rules
/// ([`RuleSet::server_replay`](crate::RuleSet::server_replay)).
///
/// A request is answered by a recording with the same method, scheme, host, port, path, query and body; options say
/// what may differ. Recordings without a response, WebSockets, and flows that are not HTTP answer nothing.
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
    recorded: Mutex<HashMap<u128, VecDeque<Arc<Recorded>>>>,
    /// What keys are hashed with.
    seeds: [RandomState; 2],
    /// All that were recorded, whether or not they have answered: to say what is different.
    requests: Vec<Arc<HttpRequest>>,
    bytes: u64,
}

/// An answer, and when it came.
struct Recorded {
    response: HttpResponse,
    pieces: Vec<PieceMark>,
    /// From the end of the request to the head.
    delay: Duration,
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
            seeds: Default::default(),
            requests: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds a recorded flow. One that is not HTTP, has no response, or became a WebSocket or some other protocol is passed
    /// over.
    ///
    /// # Errors
    /// [`ReplayError::TooLarge`].
    pub fn add(&mut self, record: Record) -> Result<(), ReplayError> {
        let Content::Http(http) = record.content else {
            return Ok(());
        };
        let HttpExchange {
            request,
            response: Some(response),
            websocket,
            ..
        } = *http
        else {
            return Ok(());
        };
        if websocket.is_some() || response.status < 200 {
            return Ok(());
        }
        let size = |message: &HttpMessage| {
            message
                .body
                .data
                .as_ref()
                .map_or(0, |data| data.len() as u64)
                + 1024
        };
        let pieces = record.facts.response_pieces;
        let marks = pieces.len() * size_of::<PieceMark>();
        self.bytes += size(&request.message) + size(&response.message) + marks as u64;
        if self.bytes > MAX_RECORDING {
            return Err(ReplayError::TooLarge);
        }
        let key = self.key(&Asked::of_request(&request));
        let asked = request.message.ended.unwrap_or(request.message.started);
        let delay = response.message.started.since(asked).unwrap_or_default();
        let recorded = self
            .recorded
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let answer = Recorded {
            response,
            pieces,
            delay: delay.min(LONGEST_WAIT),
        };
        recorded.entry(key).or_default().push_back(Arc::new(answer));
        self.requests.push(Arc::new(request));
        Ok(())
    }

    /// How many recordings have not answered yet.
    pub fn remaining(&self) -> usize {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.values().map(VecDeque::len).sum()
    }

    fn next(&self, key: u128) -> Option<Arc<Recorded>> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.reuse {
            return recorded.get(&key)?.front().cloned();
        }
        let list = recorded.get_mut(&key)?;
        let next = list.pop_front();
        if list.is_empty() {
            recorded.remove(&key);
        }
        next
    }

    /// What two requests have in common where one answers for the other: 128 bits of hashes, since bodies are long, and
    /// are kept once. Parts have their lengths, so that no two requests look the same for being cut at other places.
    fn key(&self, asked: &Asked<'_>) -> u128 {
        let options = &self.options;
        let mut key = Key(self.seeds.each_ref().map(BuildHasher::build_hasher));
        key.put(asked.scheme);
        key.put(asked.method);
        let (path, query) = asked.path_and_query();
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
        for (name, value) in pairs(query) {
            if !is_named(&options.ignore_params, &name) {
                key.put(&name);
                key.put(&value);
            }
        }
        for name in &options.use_headers {
            match (asked.header)(name) {
                Some(value) => key.put(&value),
                // No part is as long.
                None => key.length(u64::MAX),
            }
        }
        key.end()
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

    /// Says that nothing answers a request, and what is different from the recorded one that is most like it. Names of
    /// things are said, and no values but those of the URL: they may be secrets.
    fn missing(&self, flow: &Flow) -> String {
        let asked = Asked::of_flow(flow);
        let method = String::from_utf8_lossy(asked.method);
        let mut text = format!("no recording answers {method} {}", flow.url());
        let nearest = self
            .requests
            .iter()
            .max_by_key(|request| nearness(&asked, &Asked::of_request(request)));
        let Some(nearest) = nearest else {
            text.push_str("\nNothing was recorded.");
            return text;
        };
        let recorded = Asked::of_request(nearest);
        let name = format!(
            "{} {}",
            String::from_utf8_lossy(&nearest.method),
            nearest.url()
        );
        let differences = self.differences(&asked, &recorded);
        if differences.is_empty() {
            let key = self.key(&recorded);
            let same = |request: &&Arc<HttpRequest>| self.key(&Asked::of_request(request)) == key;
            let times = match self.requests.iter().filter(same).count() {
                1 => "once".to_owned(),
                times => format!("{times} times"),
            };
            text.push_str(&format!(
                "\nIt was recorded {times}, and has been answered as often; where recordings are reused, it is again."
            ));
            return text;
        }
        text.push_str(&format!(
            "\nThe recorded request that is most like it: {name}\nWhat is different:"
        ));
        for difference in differences {
            text.push_str("\n- ");
            text.push_str(&difference);
        }
        text
    }

    /// What keeps one request from being answered by the recording of another.
    fn differences(&self, asked: &Asked<'_>, recorded: &Asked<'_>) -> Vec<String> {
        let options = &self.options;
        let mut found = Vec::new();
        let mut compare = |what: &str, is: &[u8], was: &[u8]| {
            if is != was {
                found.push(format!(
                    "{what}: {}, recorded {}",
                    is.escape_ascii(),
                    was.escape_ascii()
                ));
            }
        };
        compare("method", asked.method, recorded.method);
        compare("scheme", asked.scheme, recorded.scheme);
        if !options.ignore_host {
            compare("host", asked.host, recorded.host);
        }
        if !options.ignore_port {
            let port = |asked: &Asked<'_>| asked.port.to_string().into_bytes();
            compare("port", &port(asked), &port(recorded));
        }
        let ((path, query), (old_path, old_query)) =
            (asked.path_and_query(), recorded.path_and_query());
        compare("path", path, old_path);
        let wanted = |query| {
            let mut pairs = pairs(query);
            pairs.retain(|(name, _)| !is_named(&options.ignore_params, name));
            pairs
        };
        differing_pairs("query", &wanted(query), &wanted(old_query), &mut found);
        for name in &options.use_headers {
            let (is, was) = ((asked.header)(name), (recorded.header)(name));
            if is != was {
                found.push(format!(
                    "header {name}: {}",
                    how(is.is_some(), was.is_some())
                ));
            }
        }
        if !options.ignore_content {
            match (self.form(asked), self.form(recorded)) {
                (Some(is), Some(was)) => differing_pairs("form", &is, &was, &mut found),
                _ => found.extend(differing_bodies(asked.body, recorded.body)),
            }
        }
        found
    }
}

/// How much two requests have in common: the host and the path first, then the method, the query and the body.
fn nearness(asked: &Asked<'_>, recorded: &Asked<'_>) -> (bool, usize, bool, bool, usize) {
    let common = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let ((path, query), (old_path, old_query)) =
        (asked.path_and_query(), recorded.path_and_query());
    let path = match path == old_path {
        true => usize::MAX,
        false => common(path, old_path),
    };
    let body = match asked.body == recorded.body {
        true => usize::MAX,
        false => common(asked.body, recorded.body),
    };
    (
        asked.host == recorded.host,
        path,
        asked.method == recorded.method,
        query == old_query,
        body,
    )
}

/// The names in two lists that don't have the same values.
fn differing_pairs(
    what: &str,
    is: &[(Vec<u8>, Vec<u8>)],
    was: &[(Vec<u8>, Vec<u8>)],
    found: &mut Vec<String>,
) {
    if is == was {
        return;
    }
    let before = found.len();
    let mut seen: Vec<&[u8]> = Vec::new();
    for (name, _) in is.iter().chain(was) {
        if seen.contains(&&**name) || seen.len() >= MOST_NAMED {
            continue;
        }
        seen.push(name);
        let of = |list: &[(Vec<u8>, Vec<u8>)]| -> Vec<Vec<u8>> {
            let values = list.iter().filter(|(known, _)| known == name);
            values.map(|(_, value)| value.clone()).collect()
        };
        let (is, was) = (of(is), of(was));
        if is != was {
            let how = how(!is.is_empty(), !was.is_empty());
            found.push(format!("{what} {}: {how}", name.escape_ascii()));
        }
    }
    if found.len() == before {
        found.push(format!("{what}: another order"));
    }
}

fn how(is: bool, was: bool) -> &'static str {
    match (is, was) {
        (true, false) => "was not there when it was recorded",
        (false, _) => "is missing",
        (true, true) => "another value",
    }
}

fn differing_bodies(is: &[u8], was: &[u8]) -> Option<String> {
    if is == was {
        return None;
    }
    let json = |body: &[u8]| -> Option<Value> {
        (body.len() <= MOST_JSON)
            .then(|| serde_json::from_slice(body).ok())
            .flatten()
    };
    if let (Some(is), Some(was)) = (json(is), json(was)) {
        let mut at = String::new();
        if differing_json(&is, &was, &mut at) {
            return Some(format!("body: at {at}"));
        }
        return Some("body: the same JSON, written in another way".to_owned());
    }
    let same = is.iter().zip(was).take_while(|(a, b)| a == b).count();
    Some(format!(
        "body: {} bytes, recorded {}; the first {same} are the same",
        is.len(),
        was.len()
    ))
}

/// Finds the first place where two values differ, and appends its path.
fn differing_json(is: &Value, was: &Value, at: &mut String) -> bool {
    let length = at.len();
    match (is, was) {
        (Value::Object(is), Value::Object(was)) => {
            for key in was.keys().chain(is.keys()) {
                let name = key.escape_debug();
                at.push_str(&format!("{}{name}", if length > 0 { "." } else { "" }));
                match (is.get(key), was.get(key)) {
                    (Some(is), Some(was)) => {
                        if differing_json(is, was, at) {
                            return true;
                        }
                    }
                    (is, was) => {
                        at.push_str(&format!(": {}", how(is.is_some(), was.is_some())));
                        return true;
                    }
                }
                at.truncate(length);
            }
            false
        }
        (Value::Array(is), Value::Array(was)) => {
            for (index, pair) in is.iter().zip(was).enumerate() {
                at.push_str(&format!("[{index}]"));
                if differing_json(pair.0, pair.1, at) {
                    return true;
                }
                at.truncate(length);
            }
            if is.len() != was.len() {
                at.push_str(&format!(": {} elements, recorded {}", is.len(), was.len()));
            }
            is.len() != was.len()
        }
        _ if is != was => {
            if length == 0 {
                at.push_str("its top");
            }
            true
        }
        _ => false,
    }
}

struct Key([DefaultHasher; 2]);

impl Key {
    fn put(&mut self, part: &[u8]) {
        self.length(part.len() as u64);
        self.0.iter_mut().for_each(|hasher| hasher.write(part));
    }

    fn length(&mut self, length: u64) {
        self.0.iter_mut().for_each(|h| h.write_u64(length));
    }

    fn end(self) -> u128 {
        let [high, low] = self.0.map(|hasher| hasher.finish());
        u128::from(high) << 64 | u128::from(low)
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
    /// The path, and what stands behind its question mark.
    fn path_and_query(&self) -> (&'a [u8], &'a [u8]) {
        let at = self.path.iter().position(|b| *b == b'?');
        let (path, query) = at
            .and_then(|at| self.path.split_at_checked(at))
            .unwrap_or((self.path, b""));
        (path, query.strip_prefix(b"?").unwrap_or_default())
    }

    fn of_request(request: &'a HttpRequest) -> Self {
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

/// A recorded response as an answer of ours, in the pieces that it came in.
fn reply(recorded: &Recorded, options: &ReplayOptions, now: SystemTime) -> Reply {
    let response = &recorded.response;
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
    reply.pieces.clone_from(&recorded.pieces);
    for piece in &mut reply.pieces {
        piece.at = match options.timing {
            true => piece.at.min(LONGEST_WAIT),
            false => Duration::ZERO,
        };
    }
    reply.trailers = message.trailers.as_ref().map(|fields| {
        let mut list = HeaderList::new();
        for (name, value) in fields.iter() {
            // As above.
            let _ = list.append(name, value);
        }
        list
    });
    if reply.is_streamed()
        && reply.trailers.is_none()
        && message.headers.get("content-length").is_some()
    {
        // It was not chunked; the length is a valid value.
        let length = reply.body.len().to_string();
        let _ = reply.headers.set(b"Content-Length", length.as_bytes());
    }
    if options.refresh {
        let recorded = Duration::try_from_secs_f64(message.started.seconds().max(0.0))
            .ok()
            .and_then(|since| UNIX_EPOCH.checked_add(since));
        if let Some(age) = recorded.and_then(|at| now.duration_since(at).ok()) {
            move_dates(&mut reply, age);
        }
    }
    reply
}

/// The end of the year 9999: the format of dates has no later ones.
const LAST_DATE: Duration = Duration::from_secs(253_402_300_799);

/// Moves dates, and the expiry of cookies, by the age of a recording. One that would come to lie behind the year 9999,
/// which means that something never expires, stays.
fn move_dates(reply: &mut Reply, age: Duration) {
    let moved = |date: &str| {
        let at = httpdate::parse_http_date(&date.trim().replace('-', " ")).ok()?;
        let since = at.duration_since(UNIX_EPOCH).ok()?.checked_add(age)?;
        let at = UNIX_EPOCH.checked_add(since)?;
        (since <= LAST_DATE).then(|| httpdate::fmt_http_date(at))
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

/// What becomes of a request.
pub(crate) enum Answer {
    /// It goes on.
    Forward,
    /// Its connection is cut.
    Kill,
    /// It gets this, after a time.
    Reply(Box<Reply>, Duration),
}

/// Waits as long as an answer took when it was recorded.
pub(crate) fn after(delay: Duration, then: impl Future<Output = Step> + Send + 'static) -> Step {
    Step::hold(
        async move {
            tokio::time::sleep(delay).await;
            then.await
        },
        delay + Duration::from_secs(60),
        Step::close("a recorded answer took too long"),
    )
}

impl ServerReplay {
    /// What becomes of a request; the recording that answers it is used up.
    pub(crate) fn answer(&self, flow: &mut Flow) -> Answer {
        let key = self.key(&Asked::of_flow(flow));
        if let Some(recorded) = self.next(key) {
            debug!(flow = %flow.id, "answered from a recording");
            flow.replay = Some(Replay::Response);
            let mut answer = reply(&recorded, &self.options, SystemTime::now());
            let fields = &recorded.response.message.headers;
            if flow.request.method() == b"HEAD"
                && let Some(length) = fields.get("content-length")
            {
                // It has no body whose length it could be. What is no header is left out.
                let _ = answer.headers.set(b"Content-Length", length);
            }
            let delay = match self.options.timing {
                true => recorded.delay,
                false => Duration::ZERO,
            };
            return Answer::Reply(Box::new(answer), delay);
        }
        match self.options.extra {
            Extra::Forward => Answer::Forward,
            Extra::Kill => {
                warn!("{}; it is killed", self.missing(flow).replace('\n', " "));
                Answer::Kill
            }
            Extra::Status(status) => {
                let missing = self.missing(flow);
                warn!(status, "{}", missing.replace('\n', " "));
                let reply = Reply::new(status);
                let reply = match status {
                    // These have no body.
                    204 | 304 => reply,
                    _ => reply.text(format!("Tollgate: {missing}\n")),
                };
                Answer::Reply(Box::new(reply), Duration::ZERO)
            }
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
        match self.answer(flow) {
            Answer::Forward => Step::Continue,
            Answer::Kill => Step::Drop,
            Answer::Reply(reply, delay) if delay.is_zero() => Step::Respond(reply),
            Answer::Reply(reply, delay) => after(delay, async move { Step::Respond(reply) }),
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
    fn what_became_another_protocol_answers_nothing() {
        let mut socket = record("GET", "/socket", "", "");
        let mut other = record("GET", "/other", "", "");
        for (record, status) in [(&mut socket, 200), (&mut other, 101)] {
            let Content::Http(http) = &mut record.content else {
                panic!("not HTTP")
            };
            http.response.as_mut().unwrap().status = status;
            http.websocket = (status == 200).then(Default::default);
        }
        let replay = replay(ReplayOptions::default(), vec![socket, other]);
        assert_eq!(replay.remaining(), 0);
        for path in ["socket", "other"] {
            let url = format!("https://api.example/{path}");
            assert_eq!(ask(&replay, "GET", &url, "").unwrap_err(), "Continue");
        }
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
    fn what_has_no_recording_says_what_is_different_from_the_nearest() {
        let options = ReplayOptions {
            extra: Extra::Status(404),
            use_headers: vec!["X-Tenant".into()],
            ..ReplayOptions::default()
        };
        let chat = r#"{"model":"large","messages":[{"role":"user","content":"a secret"}]}"#;
        let mut tenant = record("GET", "/tenant", "", "x");
        if let Content::Http(http) = &mut tenant.content {
            http.request.message.headers.push("X-Tenant", "secret");
        }
        let records = vec![
            record("GET", "/items/1?page=1&key=secret", "", "x"),
            record("POST", "/chat", chat, "x"),
            record("POST", "/text", "one two secret", "x"),
            tenant,
        ];
        let replay = replay(options, records);
        let cases = [
            (
                "GET",
                "/items/2?page=1&key=secret",
                "",
                "path: /items/2, recorded /items/1",
            ),
            (
                "PUT",
                "/items/1?page=1&key=secret",
                "",
                "method: PUT, recorded GET",
            ),
            (
                "GET",
                "/items/1?page=2&key=secret",
                "",
                "query page: another value",
            ),
            ("GET", "/items/1?page=1", "", "query key: is missing"),
            (
                "GET",
                "/items/1?key=secret&page=1",
                "",
                "query: another order",
            ),
            (
                "POST",
                "/chat",
                r#"{"model":"large","messages":[{"role":"user","content":"b secret"}]}"#,
                "body: at messages[0].content",
            ),
            (
                "POST",
                "/chat",
                r#"{"model":"large","messages":[{"role":"user","content":"a secret"}],"top_p":1}"#,
                "body: at top_p: was not there when it was recorded",
            ),
            (
                "POST",
                "/text",
                "one three",
                "body: 9 bytes, recorded 14; the first 5 are the same",
            ),
            ("GET", "/tenant", "", "header X-Tenant: is missing"),
        ];
        for (method, path, body, different) in cases {
            let url = format!("https://api.example{path}");
            let error = ask(&replay, method, &url, body).unwrap_err();
            let (said, differences) = error.split_once("\nWhat is different:\n").unwrap();
            assert!(
                said.starts_with(&format!("Tollgate: no recording answers {method} {url}\n")),
                "{error}"
            );
            assert_eq!(differences, format!("- {different}\n"), "{method} {path}");
            assert!(!differences.contains("secret"));
        }
        // One that has answered says so.
        assert_eq!(
            ask(&replay, "POST", "https://api.example/chat", chat),
            Ok("x".into())
        );
        let error = ask(&replay, "POST", "https://api.example/chat", chat).unwrap_err();
        assert!(
            error.contains("recorded once, and has been answered as often"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_its_pieces_its_trailers_and_its_times() {
        let millis = Duration::from_millis;
        let recorded = || {
            let mut record = record("GET", "/stream", "", "onetwothree");
            if let Content::Http(http) = &mut record.content {
                http.request.message.started = Timestamp::new(1000.0);
                let response = http.response.as_mut().unwrap();
                response.message.started = Timestamp::new(1002.5);
                let mut trailers = tollgate_flow::record::HeaderFields::new();
                trailers.push("X-Sum", "11");
                response.message.trailers = Some(trailers);
            }
            record.facts.response_pieces = [(3, 10), (3, 250), (5, 9_000_000)]
                .map(|(bytes, at)| PieceMark {
                    bytes,
                    at: millis(at),
                })
                .to_vec();
            record
        };
        for timing in [false, true] {
            let options = ReplayOptions {
                timing,
                ..ReplayOptions::default()
            };
            let replay = replay(options, vec![recorded()]);
            let mut flow = flow("GET", "https://api.example/stream");
            flow.request.put_collected_body(Bytes::new());
            let started = tokio::time::Instant::now();
            let answer = match replay.request(&mut flow) {
                Step::Respond(answer) if !timing => answer,
                Step::Hold(hold) if timing => match hold.future.await {
                    Step::Respond(answer) => answer,
                    step => panic!("{step:?}"),
                },
                step => panic!("{step:?}"),
            };
            assert_eq!(started.elapsed().as_millis(), if timing { 2500 } else { 0 });
            assert_eq!(flow.replay, Some(Replay::Response));
            let filter = tollgate_flow::filter::Filter::new("~replays & ~replay").unwrap();
            assert!(filter.matches(&flow));
            let sent: Vec<_> = answer.cut().collect();
            let at = |times: [Duration; 3]| {
                ["one", "two", "three"]
                    .map(Bytes::from)
                    .into_iter()
                    .zip(times)
                    .collect::<Vec<_>>()
            };
            let expected = match timing {
                true => at([millis(10), millis(250), LONGEST_WAIT]),
                false => at([Duration::ZERO; 3]),
            };
            assert_eq!(sent, expected);
            assert_eq!(answer.trailers.unwrap().get("x-sum").unwrap(), b"11");
        }
    }

    #[test]
    fn an_answer_to_head_says_how_long_the_body_would_be() {
        for (method, length) in [("HEAD", Some(&b"4711"[..])), ("GET", None)] {
            let mut record = record(method, "/file", "", "");
            if let Content::Http(http) = &mut record.content {
                let response = http.response.as_mut().unwrap();
                response.message.headers.push("content-length", "4711");
            }
            let replay = replay(ReplayOptions::default(), vec![record]);
            let mut flow = flow(method, "https://api.example/file");
            let Step::Respond(answer) = replay.request(&mut flow) else {
                panic!("not answered")
            };
            assert_eq!(answer.headers.get("content-length"), length);
        }
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
        let recorded = Recorded {
            response,
            pieces: Vec::new(),
            delay: Duration::ZERO,
        };
        let moved = reply(&recorded, &ReplayOptions::default(), now);
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
        let still = ReplayOptions {
            refresh: false,
            ..ReplayOptions::default()
        };
        let same = reply(&recorded, &still, now);
        assert_eq!(
            same.headers.get("date").unwrap(),
            b"Sun, 09 Sep 2001 01:46:40 GMT"
        );
    }

    #[test]
    fn dates_at_the_end_of_time_stay_and_recordings_from_any_time_answer() {
        let recorded = |response| Recorded {
            response,
            pieces: Vec::new(),
            delay: Duration::ZERO,
        };
        let never = "Fri, 31 Dec 9999 23:59:59 GMT";
        for (date, moves) in [
            (never, false),
            ("Fri, 31 Dec 9999 23:58:00 GMT", true),
            ("Thu, 01 Jan 1970 00:00:00 GMT", true),
            ("Wed, 31 Dec 1969 23:59:59 GMT", false),
            ("Sat, 01 Jan 10000 00:00:00 GMT", false),
            ("0", false),
            ("", false),
        ] {
            let mut response = HttpResponse::new(200, "OK");
            response.message.started = Timestamp::new(1_000_000_000.0);
            response.message.headers.push("Expires", date);
            let cookie = format!("a=b; Expires={date}");
            response.message.headers.push("Set-Cookie", cookie.clone());
            let now = UNIX_EPOCH + Duration::from_secs(1_000_000_060);
            let moved = reply(&recorded(response), &ReplayOptions::default(), now);
            let same = moved.headers.get("expires").unwrap() == date.as_bytes();
            assert_eq!(!same, moves, "{date}");
            let same = moved.headers.get("set-cookie").unwrap() == cookie.as_bytes();
            assert_eq!(!same, moves, "{date}");
        }
        for started in [
            0.0,
            -1e300,
            1e300,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ] {
            let mut response = HttpResponse::new(200, "OK");
            response.message.started = Timestamp::new(started);
            response.message.headers.push("Expires", never);
            let options = ReplayOptions::default();
            let answer = reply(&recorded(response), &options, SystemTime::now());
            assert_eq!(answer.headers.get("expires").unwrap(), never.as_bytes());
        }
    }
}

//! Connections to a scanner, and one question on one of them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tollgate_flow::{Bytes, Reply};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::http1::{self, ChunkedDecoder, Framing, HeadLimits, Parsed};
use tollgate_wire::icap::{self, Encapsulated, HttpHeads};

use super::asked::{Asked, Changed, Question, Verdict, reply};
use super::{ExternalConfig, ScannerUrl};

/// A connection that waited longer is not used again.
const MAX_IDLE: Duration = Duration::from_secs(20);
/// What an answer may have beside a body of the length that was shown.
const ROOM: usize = 1 << 20;
/// The longest preview that a service is given.
const MAX_PREVIEW: usize = 64 << 10;
/// What trailers of a body may take.
const MAX_TRAILERS: usize = 16 << 10;

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No connection.
    Connect,
    /// No handshake.
    Tls,
    /// The connection has ended.
    Gone,
    /// The message can't be written as a question.
    Question,
    /// The answer is none.
    Malformed(&'static str),
    /// An answer with this status.
    Status(u16),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect => f.write_str("it can't be reached"),
            Self::Tls => f.write_str("TLS with it fails"),
            Self::Gone => f.write_str("it has closed the connection"),
            Self::Question => f.write_str("the message can't be written for it"),
            Self::Malformed(what) => write!(f, "its answer is malformed: {what}"),
            Self::Status(status) => write!(f, "it answers {status}"),
        }
    }
}

pub(super) struct Connections {
    url: ScannerUrl,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    /// The longest answer.
    limit: usize,
    most_idle: usize,
    idle: Mutex<Vec<(Instant, Wire)>>,
    /// What the service wants, once ICAP's OPTIONS have said so.
    service: OnceLock<Service>,
}

/// What a service wants.
#[derive(Clone, Copy, Debug)]
struct Service {
    requests: bool,
    responses: bool,
    /// How much of a body it sees before it says whether it wants the rest.
    preview: Option<usize>,
}

/// Without OPTIONS: all there is.
const EVERYTHING: Service = Service {
    requests: true,
    responses: true,
    preview: None,
};

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

struct Wire {
    stream: Box<dyn Duplex>,
    /// What has arrived and wasn't used.
    buffer: Vec<u8>,
    /// How much has arrived since the question.
    arrived: usize,
}

/// Reads one answer as it arrives, each byte once.
trait Reading: Default {
    type Answer;

    /// Takes what it can off the front of what has arrived: how many bytes, and the answer once it is whole. What it leaves
    /// comes again, with more behind it.
    fn feed(&mut self, arrived: &[u8]) -> Fed<Self::Answer>;

    /// Whether an answer asks for the rest of the question.
    fn wants_more(_: &Self::Answer) -> bool {
        false
    }
}

/// An answer of HTTP.
struct HttpAnswer {
    status: u16,
    body: Vec<u8>,
}

/// An answer of ICAP.
struct IcapAnswer {
    head: icap::ResponseHead,
    heads: HttpHeads,
    body: Vec<u8>,
}

/// How many bytes were used, and the answer with whether the connection goes on.
type Fed<T> = Result<(usize, Option<(T, bool)>), Failure>;

impl Connections {
    pub(super) fn new(url: ScannerUrl, config: &ExternalConfig) -> Self {
        let service = OnceLock::new();
        if !url.is_icap {
            let _ = service.set(EVERYTHING);
        }
        let body = usize::try_from(config.body).unwrap_or(usize::MAX);
        Self {
            url,
            token: config.token.clone(),
            tls: config.tls.clone(),
            // A body in chunks of one byte would be six times as long.
            limit: body.saturating_mul(6).saturating_add(ROOM),
            most_idle: config.concurrency,
            idle: Mutex::default(),
            service,
        }
    }

    /// Whether requests and answers are wanted, as far as that is known.
    pub(super) fn wants(&self) -> (bool, bool) {
        let service = self.service.get().unwrap_or(&EVERYTHING);
        (service.requests, service.responses)
    }

    pub(super) async fn ask(&self, asked: &Asked) -> Result<Verdict, Failure> {
        if !self.url.is_icap {
            return self.ask_http(asked).await;
        }
        let service = match self.service.get() {
            Some(service) => *service,
            None => *self.service.get_or_init({
                let service = self.options().await?;
                move || service
            }),
        };
        let wanted = match asked.heads.response {
            Some(_) => service.responses,
            None => service.requests,
        };
        if !wanted {
            return Ok(Verdict::Clean);
        }
        let question = asked.to_icap(&self.url, service.preview);
        let question = question.ok_or(Failure::Question)?;
        let answer = self.exchange::<IcapReading>(&question).await?;
        icap_verdict(asked, answer)
    }

    async fn options(&self) -> Result<Service, Failure> {
        let head = icap::RequestHead::build("OPTIONS", &self.url.whole());
        let mut head = head.map_err(|_| Failure::Question)?;
        let host = self.url.target.to_string();
        let _ = head.headers.append(b"Host", host.as_bytes());
        let mut first = Vec::new();
        head.write_to(&mut first);
        let question = Question { first, rest: None };
        let answer = self.exchange::<IcapReading>(&question).await?;
        if answer.head.status() != 200 {
            return Err(Failure::Status(answer.head.status()));
        }
        let has = |method| answer.head.headers.has_token("methods", method);
        match (has("REQMOD"), has("RESPMOD")) {
            (false, false) => Err(Failure::Malformed("its OPTIONS name no method")),
            (requests, responses) => Ok(Service {
                requests,
                responses,
                preview: preview(&answer.head),
            }),
        }
    }

    async fn ask_http(&self, asked: &Asked) -> Result<Verdict, Failure> {
        let body = asked.to_json().to_string();
        let mut question = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            self.url.path,
            self.url.target,
            body.len()
        );
        if let Some(token) = &self.token {
            question.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        question.push_str("\r\n");
        question.push_str(&body);
        let first = question.into_bytes();
        let question = Question { first, rest: None };
        let answer = self.exchange::<HttpReading>(&question).await?;
        if answer.status != 200 {
            return Err(Failure::Status(answer.status));
        }
        let answer: Value = serde_json::from_slice(&answer.body)
            .map_err(|_| Failure::Malformed("it is not JSON"))?;
        match answer.get("verdict").and_then(Value::as_str) {
            Some("allow") => Ok(Verdict::Clean),
            Some("block") => {
                let why = answer
                    .get("reason")
                    .and_then(Value::as_str)
                    .unwrap_or("no reason given");
                let why: String = why.chars().take(200).collect();
                let text = format!("Tollgate: refused by the external scanner: {why}\n");
                Ok(Verdict::Reply {
                    reply: Box::new(Reply::new(403).text(text)),
                    why,
                })
            }
            _ => Err(Failure::Malformed("there is no verdict")),
        }
    }

    /// Asks on a connection that waits, or on a new one; again on a new one where the old one turns out to be closed.
    async fn exchange<R: Reading>(&self, question: &Question) -> Result<R::Answer, Failure> {
        if let Some(mut wire) = self.waiting() {
            match wire.ask::<R>(question, self.limit).await {
                Err(Failure::Gone) if wire.arrived == 0 => {}
                outcome => return self.settled(wire, outcome),
            }
        }
        let mut wire = Wire {
            stream: self.connect().await?,
            buffer: Vec::new(),
            arrived: 0,
        };
        let outcome = wire.ask::<R>(question, self.limit).await;
        self.settled(wire, outcome)
    }

    async fn connect(&self) -> Result<Box<dyn Duplex>, Failure> {
        let host = &*self.url.target.host;
        let stream = TcpStream::connect((host, self.url.target.port))
            .await
            .map_err(|_| Failure::Connect)?;
        let _ = stream.set_nodelay(true);
        if !self.url.is_tls {
            return Ok(Box::new(stream));
        }
        let config = self.tls.clone().ok_or(Failure::Tls)?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Failure::Tls)?;
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => {
                // The client is told less: what is wrong with a certificate says where the scanner is.
                tracing::warn!(scanner = %self.url, "TLS with the external scanner fails: {error}");
                Err(Failure::Tls)
            }
        }
    }

    fn settled<T>(&self, wire: Wire, outcome: Result<(T, bool), Failure>) -> Result<T, Failure> {
        let (answer, keep) = outcome?;
        if keep {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < self.most_idle {
                idle.push((Instant::now(), wire));
            }
        }
        Ok(answer)
    }

    fn waiting(&self) -> Option<Wire> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < MAX_IDLE);
        idle.pop().map(|(_, wire)| wire)
    }
}

impl Wire {
    /// Writes and reads at the same time: a scanner may answer before it has read all.
    async fn ask<R: Reading>(
        &mut self,
        question: &Question,
        limit: usize,
    ) -> Result<(R::Answer, bool), Failure> {
        self.buffer.clear();
        self.arrived = 0;
        let mut reading = R::default();
        let (mut reader, mut writer) = tokio::io::split(&mut *self.stream);
        let mut unsent: &[u8] = &question.first;
        let mut rest = question.rest.as_deref();
        let mut broken = false;
        let mut flushed = false;
        loop {
            let (used, answer) = reading.feed(&self.buffer)?;
            self.buffer.drain(..used.min(self.buffer.len()));
            if let Some((answer, keep)) = answer {
                if R::wants_more(&answer)
                    && unsent.is_empty()
                    && let Some(more) = rest.take()
                {
                    unsent = more;
                    flushed = false;
                    reading = R::default();
                    continue;
                }
                let keep = keep && unsent.is_empty() && !broken && self.buffer.is_empty();
                return Ok((answer, keep));
            }
            if self.arrived > limit {
                return Err(Failure::Malformed("it is too long"));
            }
            tokio::select! {
                done = push(&mut writer, unsent), if !flushed && !broken => match done {
                    Ok(0) if unsent.is_empty() => flushed = true,
                    Ok(count @ 1..) => unsent = unsent.get(count..).unwrap_or_default(),
                    // It may have answered all the same.
                    Ok(0) | Err(_) => broken = true,
                },
                count = reader.read_buf(&mut self.buffer) => match count {
                    Ok(count @ 1..) => self.arrived = self.arrived.saturating_add(count),
                    Ok(0) | Err(_) => return Err(Failure::Gone),
                },
            }
        }
    }
}

/// Writes some of what is unsent; when nothing is, what TLS has taken is sent on its way.
async fn push(writer: &mut (impl AsyncWrite + Unpin), unsent: &[u8]) -> std::io::Result<usize> {
    match unsent.is_empty() {
        true => writer.flush().await.map(|()| 0),
        false => writer.write(unsent).await,
    }
}

/// The preview that a service wants.
fn preview(options: &icap::ResponseHead) -> Option<usize> {
    let value = std::str::from_utf8(options.headers.get("preview")?).ok()?;
    let wanted: usize = value.trim().parse().ok()?;
    Some(wanted.min(MAX_PREVIEW))
}

/// When it is worth parsing a head that arrives in pieces: once its end is there, and for what is wrong with it, each time
/// that twice as much has arrived.
#[derive(Default)]
struct Due {
    searched: usize,
    parsed: usize,
}

impl Due {
    fn now(&mut self, arrived: &[u8]) -> bool {
        let new = arrived
            .get(self.searched.saturating_sub(3)..)
            .unwrap_or_default();
        let is_whole = new.windows(4).any(|four| four == b"\r\n\r\n");
        self.searched = arrived.len();
        let is_due = is_whole || arrived.len() >= self.parsed.saturating_mul(2).max(1);
        if is_due {
            self.parsed = arrived.len();
        }
        is_due
    }
}

/// An answer of ICAP that arrives.
#[derive(Default)]
struct IcapReading {
    due: Due,
    head: Option<(icap::ResponseHead, Encapsulated)>,
    heads: Option<HttpHeads>,
    /// `None` before the body.
    decoder: Option<ChunkedDecoder>,
    body: Vec<u8>,
}

impl Reading for IcapReading {
    type Answer = IcapAnswer;

    fn feed(&mut self, arrived: &[u8]) -> Fed<IcapAnswer> {
        const BAD: Failure = Failure::Malformed("it is none of ICAP");
        let limits = HeadLimits::default();
        let mut used = 0;
        if self.head.is_none() {
            let mut head = icap::ResponseHead::default();
            if !self.due.now(arrived) {
                return Ok((0, None));
            }
            let Parsed::Complete { len } = head.parse(arrived, &limits).map_err(|_| BAD)? else {
                return Ok((0, None));
            };
            let encapsulated = match head.headers.get("encapsulated") {
                Some(value) => Encapsulated::parse(value).map_err(|_| BAD)?,
                None => Encapsulated::NOTHING,
            };
            self.head = Some((head, encapsulated));
            used = len;
        }
        let Some((head, encapsulated)) = &self.head else {
            return Ok((used, None));
        };
        if self.heads.is_none() {
            let rest = arrived.get(used..).unwrap_or_default();
            let Some(heads) = rest.get(..encapsulated.heads_len()) else {
                return Ok((used, None));
            };
            self.heads = Some(HttpHeads::parse(heads, encapsulated, &limits).map_err(|_| BAD)?);
            used += heads.len();
        }
        if encapsulated.has_body() {
            let decoder = self
                .decoder
                .get_or_insert_with(|| ChunkedDecoder::new(MAX_TRAILERS));
            let body = &mut self.body;
            let progress = decoder
                .feed(arrived.get(used..).unwrap_or_default(), |piece| {
                    body.extend_from_slice(piece);
                })
                .map_err(|_| BAD)?;
            used += progress.consumed;
            if !progress.done {
                return Ok((used, None));
            }
        }
        let keep = head.keep_alive();
        let (Some((head, _)), Some(heads)) = (self.head.take(), self.heads.take()) else {
            return Ok((used, None));
        };
        let body = std::mem::take(&mut self.body);
        Ok((used, Some((IcapAnswer { head, heads, body }, keep))))
    }

    fn wants_more(answer: &IcapAnswer) -> bool {
        answer.head.status() == 100
    }
}

/// An answer of HTTP that arrives.
#[derive(Default)]
struct HttpReading {
    due: Due,
    head: Option<http1::ResponseHead>,
    rest: Rest,
    body: Vec<u8>,
}

/// What of a body is yet to come.
enum Rest {
    Length(u64),
    Chunked(Box<ChunkedDecoder>),
}

impl Default for Rest {
    fn default() -> Self {
        Self::Length(0)
    }
}

impl Reading for HttpReading {
    type Answer = HttpAnswer;

    fn feed(&mut self, arrived: &[u8]) -> Fed<HttpAnswer> {
        const BAD: Failure = Failure::Malformed("it is none of HTTP");
        let mut used = 0;
        if self.head.is_none() {
            let mut head = http1::ResponseHead::new();
            let limits = HeadLimits::default();
            if !self.due.now(arrived) {
                return Ok((0, None));
            }
            let Parsed::Complete { len } = head.parse(arrived, &limits).map_err(|_| BAD)? else {
                return Ok((0, None));
            };
            if head.is_interim() {
                // Nobody asked for one.
                return Err(BAD);
            }
            self.rest = match head.framing(b"POST").map_err(|_| BAD)? {
                Framing::None => Rest::Length(0),
                Framing::Length(length) => Rest::Length(length),
                Framing::Chunked => Rest::Chunked(Box::new(ChunkedDecoder::new(MAX_TRAILERS))),
                Framing::UntilClose => return Err(Failure::Malformed("its length isn't known")),
            };
            self.head = Some(head);
            used = len;
        }
        let rest = arrived.get(used..).unwrap_or_default();
        let body = &mut self.body;
        let (taken, is_whole) = match &mut self.rest {
            Rest::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX);
                let piece = rest.get(..length).unwrap_or(rest);
                body.extend_from_slice(piece);
                *left -= piece.len() as u64;
                (piece.len(), *left == 0)
            }
            Rest::Chunked(decoder) => {
                let progress = decoder
                    .feed(rest, |piece| body.extend_from_slice(piece))
                    .map_err(|_| BAD)?;
                (progress.consumed, progress.done)
            }
        };
        used += taken;
        let Some(head) = self.head.take_if(|_| is_whole) else {
            return Ok((used, None));
        };
        let answer = HttpAnswer {
            status: head.status(),
            body: std::mem::take(&mut self.body),
        };
        Ok((used, Some((answer, head.keep_alive()))))
    }
}

fn icap_verdict(asked: &Asked, answer: IcapAnswer) -> Result<Verdict, Failure> {
    match answer.head.status() {
        204 => return Ok(Verdict::Clean),
        200 => {}
        other => return Err(Failure::Status(other)),
    }
    let same_body = answer.body == asked.body;
    if let Some(response) = &answer.heads.response {
        if same_body && asked.heads.response.as_ref() == Some(response) {
            return Ok(Verdict::Clean);
        }
        let why = why(&answer.head);
        return Ok(Verdict::Reply {
            reply: reply(response, Bytes::from(answer.body)),
            why,
        });
    }
    let (Some(head), None) = (answer.heads.request, &asked.heads.response) else {
        return Err(Failure::Malformed("there is no message in it"));
    };
    if same_body && asked.heads.request.as_ref() == Some(&head) {
        return Ok(Verdict::Clean);
    }
    let body = match same_body {
        true => None,
        false => Some(plain(&head, answer.body, asked.body.len())?),
    };
    Ok(Verdict::Changed(Box::new(Changed { head, body })))
}

/// A body without its coding.
fn plain(head: &http1::RequestHead, body: Vec<u8>, before: usize) -> Result<Bytes, Failure> {
    const BAD: Failure = Failure::Malformed("its body can't be decoded");
    let most = before.saturating_mul(8).saturating_add(ROOM);
    let limit = OutputLimit {
        total: most as u64,
        per_feed: most,
    };
    let codings = head.headers.get_all("content-encoding");
    let Some(mut decoder) = Decoder::new(codings, limit).map_err(|_| BAD)? else {
        return Ok(Bytes::from(body));
    };
    let mut plain = Vec::new();
    decoder.feed(&body, &mut plain).map_err(|_| BAD)?;
    decoder.finish(&mut plain).map_err(|_| BAD)?;
    Ok(Bytes::from(plain))
}

/// What an antivirus service says that it has found.
fn why(head: &icap::ResponseHead) -> String {
    let found = head
        .headers
        .get("x-infection-found")
        .or_else(|| head.headers.get("x-virus-id"));
    let text = String::from_utf8_lossy(found.unwrap_or(b"another answer was given")).into_owned();
    let threat = text
        .split_once("Threat=")
        .map_or(text.as_str(), |(_, threat)| threat);
    threat.trim_end_matches(';').chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: [&str; 5] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"verdict\":\"allow\"}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.0 404\r\nContent-Length: 2\r\n\r\nno",
    ];

    fn icap() -> Vec<String> {
        let http = "HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n";
        let head = |rest: &str| format!("ICAP/1.0 200 OK\r\nISTag: \"x\"\r\n{rest}\r\n");
        let body = head(&format!(
            "Encapsulated: res-hdr=0, res-body={}\r\n",
            http.len()
        ));
        let no_body = head(&format!(
            "Encapsulated: res-hdr=0, null-body={}\r\n",
            http.len()
        ));
        vec![
            format!("{body}{http}2\r\nno\r\n3\r\n, 3\r\n0\r\n\r\n"),
            format!("{no_body}{http}"),
            "ICAP/1.0 204 Unmodified\r\nConnection: close\r\n\r\n".to_owned(),
            "ICAP/1.0 100 Continue\r\n\r\n".to_owned(),
        ]
    }

    /// Feeds pieces as they would arrive. What came of it, and what was left over.
    fn read<'a, R: Reading>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Option<(R::Answer, bool)>, Vec<u8>) {
        let mut reading = R::default();
        let mut buffer = Vec::new();
        let mut outcome = None;
        for piece in pieces {
            buffer.extend_from_slice(piece);
            if outcome.is_none() {
                let (used, answer) = reading.feed(&buffer).unwrap();
                buffer.drain(..used);
                outcome = answer;
            }
        }
        (outcome, buffer)
    }

    /// The same, however the bytes are cut; `None` before the last one.
    fn every_way<R: Reading, T: PartialEq + std::fmt::Debug>(
        answer: &str,
        shown: impl Fn(R::Answer) -> T,
    ) -> (T, bool) {
        let shown = |(outcome, left): (Option<(R::Answer, bool)>, Vec<u8>)| {
            (outcome.map(|(answer, keep)| (shown(answer), keep)), left)
        };
        let whole = shown(read::<R>([answer.as_bytes()]));
        assert_eq!(whole.1, b"", "{answer}");
        assert!(whole.0.is_some(), "{answer}");
        assert_eq!(shown(read::<R>(answer.as_bytes().chunks(1))), whole);
        for at in 0..=answer.len() {
            let (first, second) = answer.as_bytes().split_at(at);
            assert_eq!(shown(read::<R>([first, second])), whole, "{answer} at {at}");
            if at < answer.len() {
                assert!(read::<R>([first]).0.is_none(), "{answer} at {at}");
            }
        }
        let more = [answer.as_bytes(), b"HTTP"].concat();
        let (outcome, left) = shown(read::<R>([&more[..]]));
        assert_eq!((&outcome, &left[..]), (&whole.0, &b"HTTP"[..]));
        whole.0.unwrap()
    }

    #[test]
    fn an_answer_of_http_is_the_same_however_it_arrives() {
        let read = HTTP
            .map(|text| every_way::<HttpReading, _>(text, |answer| (answer.status, answer.body)));
        let body = |text: &str| text.as_bytes().to_vec();
        assert_eq!(
            read,
            [
                ((200, body("{\"verdict\":\"allow\"}")), true),
                ((200, body("abc0123456789abcdef")), true),
                ((200, body("")), false),
                ((204, body("")), true),
                ((404, body("no")), false),
            ]
        );
    }

    #[test]
    fn an_answer_of_icap_is_the_same_however_it_arrives() {
        let read = icap().into_iter().map(|text| {
            every_way::<IcapReading, _>(&text, |answer| {
                let status = answer.heads.response.map(|head| head.status());
                (answer.head.status(), status, answer.body)
            })
        });
        let body = |text: &str| text.as_bytes().to_vec();
        assert_eq!(
            read.collect::<Vec<_>>(),
            [
                ((200, Some(403), body("no, 3")), true),
                ((200, Some(403), body("")), true),
                ((204, None, body("")), false),
                ((100, None, body("")), true),
            ]
        );
    }

    #[test]
    fn what_is_no_answer_is_seen_before_its_end() {
        for text in ["SSH-2.0-x\r\n", "HTTP/1.1 200 OK\nA: b\n\n"] {
            assert!(
                HttpReading::default().feed(text.as_bytes()).is_err(),
                "{text}"
            );
        }
        assert!(IcapReading::default().feed(b"HTTP/1.1 200 OK\r\n").is_err());
        // A head without an end is parsed seldom, and refused at its limit.
        let mut reading = HttpReading::default();
        let mut arrived = b"HTTP/1.1 200 OK\r\n".to_vec();
        let refused = (0..1 << 20).any(|at| {
            arrived.extend_from_slice(if at % 100 == 99 { b"\r\n" } else { b"a:" });
            reading.feed(&arrived).is_err()
        });
        assert!(refused);
    }
}

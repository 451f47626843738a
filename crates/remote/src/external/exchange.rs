//! Connections to a scanner, and one question on one of them.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
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

struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer that can be read from the bytes that have arrived.
trait Answer: Sized {
    /// `None` until it is there.
    fn read(arrived: &[u8]) -> Read<Self>;

    /// Whether it asks for the rest.
    fn wants_more(&self) -> bool {
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

/// An answer, how many bytes it took, and whether the connection goes on.
type Read<T> = Result<Option<(T, usize, bool)>, Failure>;

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
        let answer = self.exchange(&question).await?;
        icap_verdict(asked, answer)
    }

    async fn options(&self) -> Result<Service, Failure> {
        let head = icap::RequestHead::build("OPTIONS", &self.url.whole());
        let mut head = head.map_err(|_| Failure::Question)?;
        let host = self.url.target.to_string();
        let _ = head.headers.append(b"Host", host.as_bytes());
        let mut first = Vec::new();
        head.write_to(&mut first);
        let answer: IcapAnswer = self.exchange(&Question { first, rest: None }).await?;
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
        let answer: HttpAnswer = self.exchange(&Question { first, rest: None }).await?;
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
    async fn exchange<T: Answer>(&self, question: &Question) -> Result<T, Failure> {
        if let Some(mut wire) = self.waiting() {
            match wire.ask(question, self.limit).await {
                Err(Failure::Gone) if wire.buffer.is_empty() => {}
                outcome => return self.settled(wire, outcome),
            }
        }
        let target = (&*self.url.target.host, self.url.target.port);
        let stream = TcpStream::connect(target)
            .await
            .map_err(|_| Failure::Connect)?;
        let _ = stream.set_nodelay(true);
        let mut wire = Wire {
            stream,
            buffer: Vec::new(),
        };
        let outcome = wire.ask(question, self.limit).await;
        self.settled(wire, outcome)
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
    async fn ask<T: Answer>(
        &mut self,
        question: &Question,
        limit: usize,
    ) -> Result<(T, bool), Failure> {
        self.buffer.clear();
        let (mut reader, mut writer) = self.stream.split();
        let mut unsent: &[u8] = &question.first;
        let mut rest = question.rest.as_deref();
        let mut broken = false;
        loop {
            if let Some((answer, used, keep)) = T::read(&self.buffer)? {
                if answer.wants_more()
                    && unsent.is_empty()
                    && let Some(more) = rest.take()
                {
                    unsent = more;
                    self.buffer.drain(..used.min(self.buffer.len()));
                    continue;
                }
                let keep = keep && unsent.is_empty() && !broken && used == self.buffer.len();
                return Ok((answer, keep));
            }
            if self.buffer.len() > limit {
                return Err(Failure::Malformed("it is too long"));
            }
            tokio::select! {
                count = writer.write(unsent), if !unsent.is_empty() && !broken => match count {
                    Ok(count @ 1..) => unsent = unsent.get(count..).unwrap_or_default(),
                    // It may have answered all the same.
                    Ok(0) | Err(_) => broken = true,
                },
                count = reader.read_buf(&mut self.buffer) => match count {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Err(Failure::Gone),
                },
            }
        }
    }
}

/// The preview that a service wants.
fn preview(options: &icap::ResponseHead) -> Option<usize> {
    let value = std::str::from_utf8(options.headers.get("preview")?).ok()?;
    let wanted: usize = value.trim().parse().ok()?;
    Some(wanted.min(MAX_PREVIEW))
}

impl Answer for IcapAnswer {
    fn read(arrived: &[u8]) -> Read<Self> {
        icap_answer(arrived)
    }

    fn wants_more(&self) -> bool {
        self.head.status() == 100
    }
}

impl Answer for HttpAnswer {
    fn read(arrived: &[u8]) -> Read<Self> {
        http_answer(arrived)
    }
}

fn icap_answer(arrived: &[u8]) -> Read<IcapAnswer> {
    const BAD: Failure = Failure::Malformed("it is none of ICAP");
    let limits = HeadLimits::default();
    let mut head = icap::ResponseHead::default();
    let Parsed::Complete { len } = head.parse(arrived, &limits).map_err(|_| BAD)? else {
        return Ok(None);
    };
    let encapsulated = match head.headers.get("encapsulated") {
        Some(value) => Encapsulated::parse(value).map_err(|_| BAD)?,
        None => Encapsulated::NOTHING,
    };
    let rest = arrived.get(len..).unwrap_or_default();
    let Some((heads, rest)) = rest.split_at_checked(encapsulated.heads_len()) else {
        return Ok(None);
    };
    let heads = HttpHeads::parse(heads, &encapsulated, &limits).map_err(|_| BAD)?;
    let mut body = Vec::new();
    let mut used = arrived.len() - rest.len();
    if encapsulated.has_body() {
        let mut decoder = ChunkedDecoder::new(MAX_TRAILERS);
        let progress = decoder
            .feed(rest, |piece| body.extend_from_slice(piece))
            .map_err(|_| BAD)?;
        if !progress.done {
            return Ok(None);
        }
        used += progress.consumed;
    }
    let keep = head.keep_alive();
    Ok(Some((IcapAnswer { head, heads, body }, used, keep)))
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

fn http_answer(arrived: &[u8]) -> Read<HttpAnswer> {
    const BAD: Failure = Failure::Malformed("it is none of HTTP");
    let mut head = http1::ResponseHead::new();
    let Parsed::Complete { len } = head
        .parse(arrived, &HeadLimits::default())
        .map_err(|_| BAD)?
    else {
        return Ok(None);
    };
    if head.is_interim() {
        // Nobody asked for one.
        return Err(BAD);
    }
    let rest = arrived.get(len..).unwrap_or_default();
    let (body, taken) = match head.framing(b"POST").map_err(|_| BAD)? {
        Framing::None => (Vec::new(), 0),
        Framing::Length(length) => {
            let length = usize::try_from(length).map_err(|_| BAD)?;
            match rest.get(..length) {
                Some(body) => (body.to_vec(), length),
                None => return Ok(None),
            }
        }
        Framing::Chunked => {
            let mut body = Vec::new();
            let mut decoder = ChunkedDecoder::new(MAX_TRAILERS);
            let progress = decoder
                .feed(rest, |piece| body.extend_from_slice(piece))
                .map_err(|_| BAD)?;
            if !progress.done {
                return Ok(None);
            }
            (body, progress.consumed)
        }
        Framing::UntilClose => return Err(Failure::Malformed("its length isn't known")),
    };
    let keep = head.keep_alive();
    let answer = HttpAnswer {
        status: head.status(),
        body,
    };
    Ok(Some((answer, len + taken, keep)))
}

//! An ICAP server (RFC 3507).
//!
//! | service | method | what becomes of it |
//! |---|---|---|
//! | `/reqmod` | REQMOD | judged as a request that leaves: 204, a changed request, or a 403 in its place |
//! | `/respmod` | RESPMOD | a model's answer goes through the gate; any other text is read, and what is found is reported |
//! | both | OPTIONS | methods, preview, ISTag, Max-Connections |
//!
//! A request that the screen wants whole is held up to [`Limits::body`](crate::Limits::body), and a longer one is refused,
//! or judged in pieces where the screen fails open; one that it reads in pieces, and every answer that streams, passes
//! through, however long it is. Where a client allows 204, nothing of what isn't
//! changed is sent back.

use std::sync::Arc;

use tokio::sync::watch;
use tollgate_flow::{Bytes, Direction, HeaderList, Reply};
use tollgate_wire::http1::{self, Anomaly, encode_chunk};
use tollgate_wire::icap::{
    BodyReader, BodyState, CONTINUE, Encapsulated, HttpHeads, IcapError, LAST, Part, RequestHead,
    ResponseHead, Shape, Violation,
};

use crate::connection::{Connection, Trouble, whole};
use crate::judge::{Exchange, Said};
use crate::server::{Held, Shared};

/// The answer where there is no room for a connection.
pub(crate) const BUSY: &[u8] =
    b"ICAP/1.0 503 Service Overloaded\r\nConnection: close\r\nEncapsulated: null-body=0\r\n\r\n";

/// Findings that the head of an answer names: clients take heads of some KiB.
const MAX_NAMED: usize = 16;

/// The service for requests.
pub const REQMOD: &str = "reqmod";
/// The service for responses.
pub const RESPMOD: &str = "respmod";

/// Answers on one connection until it ends.
pub(crate) async fn serve(
    connection: Connection,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<bool>,
) {
    let mut client = Client {
        connection,
        shared: &shared,
        begun: false,
    };
    let mut head = RequestHead::new();
    loop {
        match client.request(&mut head, &mut phase).await {
            Ok(After::Next) if !*phase.borrow() => {}
            Ok(After::Next | After::Close) => return client.connection.close().await,
            Ok(After::Cut) => return,
            Err(Trouble::Connection) => return,
            // Another answer can't stand in the middle of one.
            Err(Trouble::Answer(..)) if client.begun => return,
            Err(Trouble::Answer(status, why)) => {
                tracing::debug!(status, why, "an ICAP request is refused");
                let _ = client.answer(status, Vec::new(), true).await;
                return client.connection.close().await;
            }
        }
    }
}

/// What follows an exchange.
enum After {
    /// Another one may.
    Next,
    /// The connection is closed, in good order.
    Close,
    /// The connection is cut: the client is to notice that an answer isn't whole.
    Cut,
}

impl From<IcapError> for Trouble {
    fn from(error: IcapError) -> Self {
        tracing::debug!("{error}");
        Self::Answer(error.status(), "malformed")
    }
}

struct Client<'a> {
    connection: Connection,
    shared: &'a Shared,
    /// Something of a message was sent back whose end hasn't come.
    begun: bool,
}

/// A request whose heads were read, and whose body comes.
struct Incoming {
    reader: BodyReader,
    shape: Shape,
    /// Whether the client waits for the verdict on its preview.
    in_preview: bool,
    keep: bool,
}

impl Client<'_> {
    async fn request(
        &mut self,
        head: &mut RequestHead,
        phase: &mut watch::Receiver<bool>,
    ) -> Result<After, Trouble> {
        let limits = self.shared.limits;
        if !self.connection.begins(limits.idle, phase).await {
            return Ok(After::Close);
        }
        let parse = |arrived: &[u8]| Ok(whole(head.parse(arrived, &limits.head)?));
        self.connection
            .take(limits.head_time, "the head takes too long", parse)
            .await?;
        let shape = Shape::of(head)?;
        let keep = head.keep_alive();
        let is_options = head.method() == b"OPTIONS";
        let expected = match head.service() {
            Some(REQMOD) => "REQMOD",
            Some(RESPMOD) => "RESPMOD",
            _ => return Err(Trouble::Answer(404, "there is no such service")),
        };
        if is_options {
            if shape.encapsulated.has_body() {
                return Err(Trouble::Answer(400, "OPTIONS with a body"));
            }
            return self.options(expected, keep).await;
        }
        match head.method() {
            method if method == expected.as_bytes() => {}
            b"REQMOD" | b"RESPMOD" => {
                return Err(Trouble::Answer(405, "the method of another service"));
            }
            _ => return Err(Trouble::Answer(501, "an unknown method")),
        }
        let heads = self.read_heads(&shape).await?;
        let incoming = Incoming {
            reader: BodyReader::new(shape.preview),
            in_preview: shape.preview.is_some(),
            shape,
            keep,
        };
        if expected == "REQMOD" {
            self.reqmod(heads, incoming).await
        } else {
            self.respmod(heads, incoming).await
        }
    }

    /// Reads the encapsulated heads.
    async fn read_heads(&mut self, shape: &Shape) -> Result<HttpHeads, Trouble> {
        let limits = self.shared.limits;
        let length = shape.encapsulated.heads_len();
        if length > limits.head.bytes.saturating_mul(2) {
            return Err(Trouble::Answer(400, "the encapsulated heads are too large"));
        }
        let parse = |arrived: &[u8]| {
            let Some(bytes) = arrived.get(..length) else {
                return Ok(None);
            };
            let heads = HttpHeads::parse(bytes, &shape.encapsulated, &limits.head)?;
            Ok(Some((length, heads)))
        };
        let late = "the encapsulated heads take too long";
        self.connection.take(limits.head_time, late, parse).await
    }

    /// Reads on in a body: appends the next bytes to `out`, asks for what is behind the preview, and says whether the body
    /// has ended. With `stop_at_preview`, nothing is asked for, and the end of the preview counts as the end.
    async fn piece(
        &mut self,
        incoming: &mut Incoming,
        out: &mut Vec<u8>,
        stop_at_preview: bool,
    ) -> Result<bool, Trouble> {
        if !incoming.shape.encapsulated.has_body() {
            return Ok(true);
        }
        let stall = self.shared.limits.stall;
        loop {
            let progress = incoming.reader.feed(self.connection.unread(), |piece| {
                out.extend_from_slice(piece)
            })?;
            self.connection.use_up(progress.consumed);
            match progress.state {
                BodyState::End => return Ok(true),
                BodyState::Preview if stop_at_preview => return Ok(true),
                BodyState::Preview if !out.is_empty() => return Ok(false),
                BodyState::Preview => {
                    self.connection.write(CONTINUE, stall).await?;
                    incoming.in_preview = false;
                    incoming.reader.go_on();
                }
                BodyState::More if !out.is_empty() => return Ok(false),
                BodyState::More => self.connection.more(stall).await?,
            }
        }
    }

    async fn options(&mut self, method: &str, keep: bool) -> Result<After, Trouble> {
        let limits = self.shared.limits;
        let fields = [
            ("Methods", method.to_owned()),
            (
                "Service",
                format!("Tollgate {} screening", env!("CARGO_PKG_VERSION")),
            ),
            (
                "Service-ID",
                format!("tollgate-{}", method.to_ascii_lowercase()),
            ),
            ("Max-Connections", limits.connections.to_string()),
            ("Options-TTL", "3600".to_owned()),
            ("Allow", "204".to_owned()),
            ("Preview", limits.preview.to_string()),
            ("Transfer-Preview", "*".to_owned()),
        ];
        self.answer(200, fields.into(), !keep).await?;
        Ok(if keep { After::Next } else { After::Close })
    }

    /// An answer without an HTTP message.
    async fn answer(
        &mut self,
        status: u16,
        fields: Vec<(&str, String)>,
        close: bool,
    ) -> Result<(), Trouble> {
        let mut head = self.head(status, close);
        for (name, value) in fields {
            put(&mut head.headers, name, &value);
        }
        put(
            &mut head.headers,
            "Encapsulated",
            &Encapsulated::NOTHING.to_string(),
        );
        let mut out = Vec::new();
        head.write_to(&mut out);
        self.connection.write(&out, self.shared.limits.stall).await
    }

    fn head(&self, status: u16, close: bool) -> ResponseHead {
        let mut head = ResponseHead::new(status);
        put(
            &mut head.headers,
            "ISTag",
            &format!("\"{}\"", self.shared.tag),
        );
        if close {
            put(&mut head.headers, "Connection", "close");
        }
        head
    }

    async fn reqmod(&mut self, heads: HttpHeads, mut incoming: Incoming) -> Result<After, Trouble> {
        let head = heads.request.clone().unwrap_or_default();
        check(&head)?;
        let original = head.clone();
        let has_body = incoming.shape.encapsulated.has_body();
        let Ok(mut exchange) = self.shared.judge.request(head, has_body) else {
            return Err(Trouble::Answer(400, "the request names no host"));
        };
        let mut onward = Onward::new(&incoming, heads);
        let mut begun = Vec::new();
        if !has_body || exchange.collects() {
            let mut held = self.shared.hold_nothing();
            match self.collect(&mut incoming, &mut held).await? {
                Ok(body) => {
                    let body = Bytes::from(body);
                    match exchange.judge_request(Some(body.clone())).await {
                        Said::Pass => {}
                        said => {
                            let reply = reply_of(&exchange, said);
                            return self.block(&exchange, &incoming, true, &reply).await;
                        }
                    }
                    let replaced = exchange.replaced_body();
                    let head = exchange.request_head();
                    if head != original || replaced.is_some() {
                        onward.change_request(head, replaced.as_ref());
                    }
                    onward.give(&replaced.unwrap_or(body));
                    return self.conclude(&incoming, onward, &exchange).await;
                }
                Err(_) if self.shared.judge.is_closed() => {
                    let reply = exchange.refuse("the body is over the limit");
                    return self.block(&exchange, &incoming, false, &reply).await;
                }
                // What is too long to be held is judged as it passes, and so is what it came with.
                Err(longer) => begun = longer,
            }
        }
        match exchange.judge_request(None).await {
            Said::Pass => {}
            said => {
                let reply = reply_of(&exchange, said);
                return self.block(&exchange, &incoming, false, &reply).await;
            }
        }
        let head = exchange.request_head();
        if head != original {
            onward.change_request(head, None);
        }
        let direction = Direction::Request;
        self.through(&mut incoming, onward, &mut exchange, direction, begun)
            .await
    }

    async fn respmod(
        &mut self,
        heads: HttpHeads,
        mut incoming: Incoming,
    ) -> Result<After, Trouble> {
        // Who sends no request has an answer to something.
        let request = match &heads.request {
            Some(request) => request.clone(),
            None => http1::RequestHead::build(b"GET", b"http://unknown/", http1::Version::Http11)
                .unwrap_or_default(),
        };
        let answer = heads.response.clone().unwrap_or_default();
        let Ok(mut exchange) = self.shared.judge.request(request, false) else {
            return Err(Trouble::Answer(400, "the request names no host"));
        };
        let length = answer.headers.content_length();
        let (said, gated) = exchange.judge_answer(answer).await;
        match said {
            Said::Pass => {}
            said => {
                let reply = reply_of(&exchange, said);
                return self.block(&exchange, &incoming, false, &reply).await;
            }
        }
        let mut onward = Onward::new(&incoming, heads);
        if !incoming.shape.encapsulated.has_body() {
            return self.conclude(&incoming, onward, &exchange).await;
        }
        if !gated {
            return self.read_answer(incoming, onward, exchange).await;
        }
        if length.is_none_or(|length| length > self.shared.limits.body) {
            onward.change_response(exchange.response_head(), None);
            let direction = Direction::Response;
            return self
                .through(&mut incoming, onward, &mut exchange, direction, Vec::new())
                .await;
        }
        // An answer of known length that fits: it goes on as it came, unless a call is refused or written anew.
        let mut held = self.shared.hold_nothing();
        let body = match self.collect(&mut incoming, &mut held).await? {
            Ok(body) => body,
            Err(_) => {
                return Err(Trouble::Answer(
                    400,
                    "the body is longer than its Content-Length",
                ));
            }
        };
        let mut edited = Vec::new();
        for piece in [Some(&body[..]), None] {
            match exchange.judge_piece(Direction::Response, piece).await {
                Said::Pass => edited.extend_from_slice(piece.unwrap_or_default()),
                Said::Replace(bytes) => edited.extend_from_slice(&bytes),
                said => {
                    let reply = reply_of(&exchange, said);
                    return self.block(&exchange, &incoming, true, &reply).await;
                }
            }
        }
        if exchange.has_changed() {
            let edited = Bytes::from(edited);
            onward.change_response(exchange.response_head(), Some(&edited));
            onward.give(&edited);
        } else {
            onward.give(&body);
        }
        self.conclude(&incoming, onward, &exchange).await
    }

    /// Reads an answer that no model gave, while it passes.
    async fn read_answer(
        &mut self,
        mut incoming: Incoming,
        mut onward: Onward,
        mut exchange: Exchange,
    ) -> Result<After, Trouble> {
        let reads = exchange.is_text();
        let mut data = Vec::new();
        loop {
            data.clear();
            let ended = self.piece(&mut incoming, &mut data, !reads).await?;
            if reads && !data.is_empty() {
                exchange.read_inbound(Some(&data));
            }
            onward.give(&data);
            if ended {
                break;
            }
            self.forward(&incoming, &mut onward).await?;
        }
        if reads {
            exchange.read_inbound(None);
        }
        self.conclude(&incoming, onward, &exchange).await
    }

    /// Shows a body, of which `data` has come, to the judge as it comes, and passes on what the judge lets go.
    async fn through(
        &mut self,
        incoming: &mut Incoming,
        mut onward: Onward,
        exchange: &mut Exchange,
        direction: Direction,
        mut data: Vec<u8>,
    ) -> Result<After, Trouble> {
        loop {
            let ended = self.piece(incoming, &mut data, false).await?;
            let last = ended.then_some(None);
            let piece = (!data.is_empty()).then_some(Some(&data[..]));
            for piece in [piece, last].into_iter().flatten() {
                match exchange.judge_piece(direction, piece).await {
                    Said::Pass => onward.give(piece.unwrap_or_default()),
                    Said::Replace(bytes) => onward.give(&bytes),
                    Said::Close(_) | Said::Reply(_) if self.begun => return Ok(After::Cut),
                    said => {
                        let reply = reply_of(exchange, said);
                        return self.block(exchange, incoming, ended, &reply).await;
                    }
                }
            }
            if ended {
                return self.conclude(incoming, onward, exchange).await;
            }
            self.forward(incoming, &mut onward).await?;
            // What had come may have been much.
            data = Vec::new();
        }
    }

    /// Reads a whole body. `Ok(Err(begun))`: it is longer than the limit.
    async fn collect(
        &mut self,
        incoming: &mut Incoming,
        held: &mut Held<'_>,
    ) -> Result<Result<Vec<u8>, Vec<u8>>, Trouble> {
        let mut body = Vec::new();
        let mut data = Vec::new();
        loop {
            data.clear();
            let ended = self.piece(incoming, &mut data, false).await?;
            if !held.add(data.len()) {
                return Err(Trouble::Answer(503, "too much is held at once"));
            }
            body.extend_from_slice(&data);
            if body.len() as u64 > self.shared.limits.body {
                return Ok(Err(body));
            }
            if ended {
                return Ok(Ok(body));
            }
        }
    }

    /// Sends what waits, if the client is ready for it and is to get it.
    async fn forward(&mut self, incoming: &Incoming, onward: &mut Onward) -> Result<(), Trouble> {
        if incoming.in_preview || !onward.streams() || onward.waiting.is_empty() {
            return Ok(());
        }
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            self.begin(incoming, onward, Vec::new(), &mut out);
        }
        encode_chunk(&mut out, &std::mem::take(&mut onward.waiting));
        self.connection.write(&out, self.shared.limits.stall).await
    }

    /// The message has passed: its end, or that nothing was changed.
    async fn conclude(
        &mut self,
        incoming: &Incoming,
        onward: Onward,
        exchange: &Exchange,
    ) -> Result<After, Trouble> {
        let verdicts = exchange.verdicts();
        let mut rules: Vec<String> = Vec::new();
        for verdict in &verdicts {
            let rule = plain(&verdict.reason);
            if !rules.contains(&rule) && rules.len() < MAX_NAMED {
                rules.push(rule);
            }
        }
        let mut fields = Vec::new();
        if !rules.is_empty() {
            fields.push(("X-Tollgate-Findings", rules.join(", ")));
        }
        if let Some(refused) = verdicts.iter().find(|verdict| verdict.refused) {
            fields.push(("X-Infection-Found", infection(1, &refused.reason)));
        }
        self.finish(incoming, onward, fields).await
    }

    async fn finish(
        &mut self,
        incoming: &Incoming,
        mut onward: Onward,
        fields: Vec<(&str, String)>,
    ) -> Result<After, Trouble> {
        let close = !incoming.keep;
        let may_204 = onward.allow_204 || incoming.in_preview;
        if !onward.edited && !self.begun && may_204 {
            self.answer(204, fields, close).await?;
        } else {
            let mut out = Vec::new();
            if !self.begun {
                self.begin(incoming, &onward, fields, &mut out);
            }
            if onward.body != Part::NoBody {
                encode_chunk(&mut out, &onward.waiting);
                out.extend_from_slice(LAST);
            }
            onward.waiting = Vec::new();
            self.connection
                .write(&out, self.shared.limits.stall)
                .await?;
            self.begun = false;
        }
        // Behind a preview that was answered, the client sends nothing more of it.
        Ok(if close { After::Close } else { After::Next })
    }

    /// The heads of an answer with an HTTP message.
    fn begin(
        &self,
        incoming: &Incoming,
        onward: &Onward,
        fields: Vec<(&str, String)>,
        out: &mut Vec<u8>,
    ) {
        let mut inner = Vec::new();
        let heads = match &onward.heads.response {
            Some(response) => HttpHeads {
                request: None,
                response: Some(response.clone()),
            },
            None => onward.heads.clone(),
        };
        let encapsulated = heads.write_to(onward.body, &mut inner);
        let mut head = self.head(200, !incoming.keep);
        for (name, value) in fields {
            put(&mut head.headers, name, &value);
        }
        put(&mut head.headers, "Encapsulated", &encapsulated.to_string());
        head.write_to(out);
        out.extend_from_slice(&inner);
    }

    /// The client gets an answer of ours in the place of the message. `whole`: all of its body has come.
    async fn block(
        &mut self,
        exchange: &Exchange,
        incoming: &Incoming,
        whole: bool,
        reply: &Reply,
    ) -> Result<After, Trouble> {
        // Within the preview the client sends nothing behind it until it is asked.
        let whole = whole
            || !incoming.shape.encapsulated.has_body()
            || incoming.reader.state() != BodyState::More;
        let keep = incoming.keep && whole;
        let mut inner = Vec::new();
        let response = response_of(reply);
        let heads = HttpHeads {
            request: None,
            response: Some(response),
        };
        let part = match reply.body.is_empty() {
            true => Part::NoBody,
            false => Part::ResponseBody,
        };
        let encapsulated = heads.write_to(part, &mut inner);
        let mut head = self.head(200, !keep);
        let verdicts = exchange.verdicts();
        let refused = verdicts.iter().filter(|verdict| verdict.refused);
        for verdict in refused.take(MAX_NAMED) {
            if head.violations.is_empty() {
                put(
                    &mut head.headers,
                    "X-Infection-Found",
                    &infection(2, &verdict.reason),
                );
                put(&mut head.headers, "X-Virus-ID", &plain(&verdict.reason));
            }
            head.violations.push(Violation {
                file: plain(&verdict.place.to_string()),
                threat: plain(&verdict.reason),
                resolution: 2,
            });
        }
        put(&mut head.headers, "Encapsulated", &encapsulated.to_string());
        let mut out = Vec::new();
        head.write_to(&mut out);
        out.extend_from_slice(&inner);
        if part == Part::ResponseBody {
            encode_chunk(&mut out, &reply.body);
            out.extend_from_slice(LAST);
        }
        self.connection
            .write(&out, self.shared.limits.stall)
            .await?;
        Ok(if keep { After::Next } else { After::Close })
    }
}

/// A message on its way back to the client.
struct Onward {
    heads: HttpHeads,
    body: Part,
    /// The client has the message and needn't get it again, if it isn't changed.
    allow_204: bool,
    /// It was changed: it has to be sent.
    edited: bool,
    /// What waits to be sent.
    waiting: Vec<u8>,
}

impl Onward {
    fn new(incoming: &Incoming, heads: HttpHeads) -> Self {
        Self {
            heads,
            body: incoming.shape.encapsulated.body(),
            allow_204: incoming.shape.allow_204,
            edited: false,
            waiting: Vec::new(),
        }
    }

    /// Whether what passes has to be sent as it comes.
    fn streams(&self) -> bool {
        self.edited || !self.allow_204
    }

    /// These bytes go on.
    fn give(&mut self, bytes: &[u8]) {
        if self.streams() {
            self.waiting.extend_from_slice(bytes);
        }
    }

    fn change_request(&mut self, mut head: http1::RequestHead, body: Option<&Bytes>) {
        self.edited = true;
        if let Some(body) = body {
            set_length(&mut head.headers, Some(body.len()));
            self.body = Part::RequestBody;
        }
        self.heads.request = Some(head);
    }

    /// The body has this length now; `None`: nobody knows.
    fn change_response(&mut self, mut head: http1::ResponseHead, body: Option<&Bytes>) {
        self.edited = true;
        set_length(&mut head.headers, body.map(Bytes::len));
        self.heads.response = Some(head);
    }
}

fn set_length(headers: &mut HeaderList, length: Option<usize>) {
    headers.remove("transfer-encoding");
    match length {
        Some(length) => put(headers, "Content-Length", &length.to_string()),
        None => {
            headers.remove("content-length");
        }
    }
}

/// Refuses what the proxy would: a message that those behind us may read as another one. A `Host` may be missing where the
/// target names one; the judge asks for one of the two.
fn check(head: &http1::RequestHead) -> Result<(), IcapError> {
    head.framing()?;
    match head.check_host() {
        Ok(()) | Err(Anomaly::MissingHost) => Ok(()),
        Err(anomaly) => Err(anomaly.into()),
    }
}

fn reply_of(exchange: &Exchange, said: Said) -> Box<Reply> {
    match said {
        Said::Reply(reply) => reply,
        Said::Close(reason) => exchange.refusal(reason.trim_start_matches("refused: ")),
        Said::Pass | Said::Replace(_) => exchange.refusal("it can't be judged"),
    }
}

fn response_of(reply: &Reply) -> http1::ResponseHead {
    let status = match reply.status {
        status @ 200..=599 => status,
        _ => 500,
    };
    let reason = match &*reply.reason {
        "" => http1::standard_reason(status),
        reason => reason,
    };
    let mut head = http1::ResponseHead::build(status, reason.as_bytes())
        .or_else(|_| http1::ResponseHead::build(status, b""))
        .unwrap_or_default();
    for (name, value) in reply.headers.iter() {
        let _ = head.headers.append(name, value);
    }
    set_length(&mut head.headers, Some(reply.body.len()));
    head
}

/// What antivirus services say of what they found, so that ICAP clients have it in their logs.
fn infection(resolution: u8, threat: &str) -> String {
    format!("Type=1; Resolution={resolution}; Threat={};", plain(threat))
}

/// Words that can stand in a header between semicolons, and aren't long: what they name may come from who is judged.
fn plain(text: &str) -> String {
    let kept = text.chars().take(120).map(|c| match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | ' ' => c,
        _ => '_',
    });
    kept.collect()
}

fn put(headers: &mut HeaderList, name: &str, value: &str) {
    // Ours are valid; what a rule is called may not be, and can be left out.
    let _ = headers.set(name.as_bytes(), value.as_bytes());
}

//! An HTTP/1.1 server for the scan endpoint: `POST /scan` and `GET /health`.
//!
//! It is meant for programs, and closed to web pages: a page that a browser shows could send requests to this machine
//! (and, by a name that it makes point here, read the answers). So the `Host` has to be an address or a name that was
//! agreed upon, a request says `Content-Type: application/json`, which no page can say without asking first, and
//! without a token nothing that names an `Origin` is answered.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tollgate_flow::Target;
use tollgate_wire::http1::{Anomaly, ChunkedDecoder, Framing, RequestHead, standard_reason};

use crate::connection::{Connection, Trouble, whole};
use crate::scan;
use crate::server::Shared;

/// The answer where there is no room for a connection.
pub(crate) const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// What trailers of a body may take.
const MAX_TRAILERS: usize = 16 << 10;
/// A JSON string may be six times as long as what it means, and base64 a third longer.
const JSON_OVERHEAD: u64 = 2;

/// Who may ask, and by which name.
#[derive(Clone, Default)]
pub struct Access {
    /// The SHA-256 of the token, so that comparing takes the same time whatever is compared.
    token: Option<[u8; 32]>,
    hosts: Vec<String>,
}

impl Access {
    /// With `Authorization: Bearer TOKEN` only, where there is a token. `hosts` are names for `Host`, beside addresses and
    /// `localhost`.
    #[must_use]
    pub fn new(token: Option<&str>, hosts: Vec<String>) -> Self {
        Self {
            token: token.map(|token| Sha256::digest(token.as_bytes()).into()),
            hosts,
        }
    }

    /// Whether there is a token.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The status that a head is refused with, and why.
    fn refuses(&self, head: &RequestHead) -> Option<(u16, &'static str)> {
        let host = head.headers.get("host").unwrap_or_default();
        let host = std::str::from_utf8(host).ok();
        let known = host
            .and_then(|host| Target::parse(host, Some(80)))
            .is_some_and(|target| {
                target.ip().is_some()
                    || &*target.host == "localhost"
                    || self
                        .hosts
                        .iter()
                        .any(|known| known.eq_ignore_ascii_case(&target.host))
            });
        if !known {
            return Some((421, "this server isn't known by that Host"));
        }
        match &self.token {
            None if head.headers.contains("origin") => {
                Some((403, "web pages are answered with a token only"))
            }
            None => None,
            Some(token) => {
                let given = head.headers.get("authorization").unwrap_or_default();
                let given = match given.split_at_checked(7) {
                    Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
                    _ => b"",
                };
                let given: [u8; 32] = Sha256::digest(given).into();
                let differs = given.iter().zip(token).fold(0, |sum, (a, b)| sum | (a ^ b));
                (differs != 0).then_some((401, "the token is missing or wrong"))
            }
        }
    }
}

/// Answers on one connection until it ends.
pub(crate) async fn serve(
    connection: Connection,
    shared: Arc<Shared>,
    mut phase: watch::Receiver<bool>,
) {
    let mut client = Client {
        connection,
        shared: &shared,
    };
    let mut head = RequestHead::new();
    loop {
        match client.request(&mut head, &mut phase).await {
            Ok(true) if !*phase.borrow() => {}
            Ok(_) => return client.connection.close().await,
            Err(Trouble::Connection) => return,
            Err(Trouble::Answer(status, why)) => {
                let body = serde_json::json!({ "error": why });
                let _ = client.answer(status, &body, false).await;
                return client.connection.close().await;
            }
        }
    }
}

impl From<Anomaly> for Trouble {
    fn from(anomaly: Anomaly) -> Self {
        Self::Answer(anomaly.status(), "malformed")
    }
}

struct Client<'a> {
    connection: Connection,
    shared: &'a Shared,
}

impl Client<'_> {
    /// Serves one request; whether another may follow.
    async fn request(
        &mut self,
        head: &mut RequestHead,
        phase: &mut watch::Receiver<bool>,
    ) -> Result<bool, Trouble> {
        let limits = self.shared.limits;
        if !self.connection.begins(limits.idle, phase).await {
            return Ok(false);
        }
        let parse = |arrived: &[u8]| Ok(whole(head.parse(arrived, &limits.head)?));
        self.connection
            .take(limits.head_time, "the head takes too long", parse)
            .await?;
        head.check_host()?;
        if let Some((status, why)) = self.shared.access.refuses(head) {
            return Err(Trouble::Answer(status, why));
        }
        let framing = head.framing()?;
        let keep = head.keep_alive();
        let path = head
            .target()
            .split(|&byte| byte == b'?')
            .next()
            .unwrap_or_default();
        let bodiless = matches!(framing, Framing::None | Framing::Length(0));
        match (path, head.method()) {
            (b"/health", b"GET" | b"HEAD") if bodiless => {
                let body =
                    serde_json::json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") });
                let body = (head.method() == b"GET").then_some(body);
                self.write(200, body.as_ref(), keep).await?;
                Ok(keep)
            }
            (b"/scan", b"POST") => {
                let media = head.headers.get("content-type").unwrap_or_default();
                let media = media.split(|&byte| byte == b';').next().unwrap_or_default();
                if !media.trim_ascii().eq_ignore_ascii_case(b"application/json") {
                    return Err(Trouble::Answer(
                        415,
                        "the Content-Type has to be application/json",
                    ));
                }
                let mut held = self.shared.hold_nothing();
                let body = self.body(head, framing, &mut held).await?;
                let answer = scan::answer(&self.shared.judge, &body).await;
                drop((body, held));
                self.answer(answer.status, &answer.body, keep).await?;
                Ok(keep)
            }
            (b"/scan", _) => Err(Trouble::Answer(405, "POST is meant")),
            (b"/health", _) => Err(Trouble::Answer(405, "GET is meant")),
            _ => Err(Trouble::Answer(404, "there are /scan and /health")),
        }
    }

    async fn body(
        &mut self,
        head: &RequestHead,
        framing: Framing,
        held: &mut crate::server::Held<'_>,
    ) -> Result<Vec<u8>, Trouble> {
        const TOO_LONG: Trouble = Trouble::Answer(413, "the body is over the limit");
        let limits = self.shared.limits;
        let most = limits.body.saturating_mul(JSON_OVERHEAD);
        let mut left = match framing {
            Framing::Length(length) if length > most => return Err(TOO_LONG),
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
            Framing::None | Framing::UntilClose => Some(0),
        };
        if head.expects_continue() {
            self.connection
                .write(b"HTTP/1.1 100 Continue\r\n\r\n", limits.stall)
                .await?;
        }
        let mut body = Vec::new();
        let mut decoder = ChunkedDecoder::new(MAX_TRAILERS);
        loop {
            let before = body.len();
            let arrived = self.connection.unread();
            let (used, done) = match &mut left {
                Some(left) => {
                    let take = usize::try_from(*left)
                        .map_or(arrived.len(), |left| left.min(arrived.len()));
                    body.extend_from_slice(arrived.get(..take).unwrap_or_default());
                    *left = left.saturating_sub(take as u64);
                    (take, *left == 0)
                }
                None => {
                    let progress = decoder.feed(arrived, |piece| body.extend_from_slice(piece))?;
                    (progress.consumed, progress.done)
                }
            };
            self.connection.use_up(used);
            if body.len() as u64 > most {
                return Err(TOO_LONG);
            }
            if !held.add(body.len() - before) {
                return Err(Trouble::Answer(503, "too much is held at once"));
            }
            if done {
                return Ok(body);
            }
            self.connection.more(limits.stall).await?;
        }
    }

    async fn answer(
        &mut self,
        status: u16,
        body: &serde_json::Value,
        keep: bool,
    ) -> Result<(), Trouble> {
        self.write(status, Some(body), keep).await
    }

    /// Without a body it is the answer to HEAD.
    async fn write(
        &mut self,
        status: u16,
        body: Option<&serde_json::Value>,
        keep: bool,
    ) -> Result<(), Trouble> {
        let body = body.map(ToString::to_string);
        let mut out = format!("HTTP/1.1 {status} {}\r\n", standard_reason(status));
        out.push_str("Content-Type: application/json\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n");
        match status {
            401 => out.push_str("WWW-Authenticate: Bearer\r\n"),
            405 => out.push_str("Allow: GET, HEAD, POST\r\n"),
            _ => {}
        }
        if !keep {
            out.push_str("Connection: close\r\n");
        }
        if let Some(body) = &body {
            out.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        out.push_str("\r\n");
        out.push_str(body.as_deref().unwrap_or_default());
        self.connection
            .write(out.as_bytes(), self.shared.limits.stall)
            .await
    }
}

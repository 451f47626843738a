//! A screen outside a proxy.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use tollgate_flow::{
    Bytes, ConnectionId, ConnectionInfo, Direction, Flow, FlowId, HttpVersion, Interceptor,
    Interest, OnFailure, Outcome, Piece, Reply, Response, Scheme, Step, Target,
};
use tollgate_screen::policy::Action;
use tollgate_screen::scan::{Category, Finding, Kind, ScanState, Scanner, Severity};
use tollgate_screen::{OnVerdict, Place, Screen, Verdict};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{self, RequestHead, ResponseHead};

/// Steps of a hook in a row, until it counts as failed.
const MAX_STEPS: usize = 16;
/// What is read of an answer that no model gave.
const MAX_INBOUND: u64 = 8 << 20;
/// Findings of one answer that are told.
const MAX_FINDINGS: usize = 100;
/// Verdicts that are kept of one exchange, and findings in all of them. Each verdict is told.
const MAX_KEPT: usize = 100;
const MAX_KEPT_FINDINGS: usize = 4096;

/// A screen outside a proxy: it is shown messages that somebody else carries, and says what becomes of them.
///
/// What it says is what the proxy would do: the same screen judges, in the same places. In addition, answers that no
/// language model gave are read as text that comes in, and what is found in them is reported.
#[derive(Clone)]
pub struct Judge(Arc<Inner>);

struct Inner {
    screen: Screen,
    scanner: Scanner,
    seen: Arc<Seen>,
    on_verdict: OnVerdict,
    connection: Arc<ConnectionInfo>,
    /// What makes ids of flows differ from those of other processes, and from each other.
    node: u64,
    next: AtomicU64,
}

/// What was found in the exchanges that are open.
struct Seen {
    enforces: bool,
    verdicts: Mutex<HashMap<FlowId, Vec<Verdict>>>,
}

impl Seen {
    fn new(enforces: bool) -> Self {
        Self {
            enforces,
            verdicts: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<FlowId, Vec<Verdict>>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a verdict. A body may be endless, and bring one with each piece: of very many the first are kept, and the
    /// first that has other consequences than those.
    fn note(&self, verdict: &Verdict) {
        let mut open = self.open();
        let Some(kept) = open.get_mut(&verdict.flow) else {
            return;
        };
        let follows = |verdict: &Verdict| (verdict.refused, self.counts(verdict));
        let is_like = |other: &Verdict| follows(other) == follows(verdict);
        if kept.len() >= MAX_KEPT && kept.iter().any(is_like) {
            return;
        }
        let findings = kept.iter().map(|verdict| verdict.findings.len()).sum();
        let mut verdict = verdict.clone();
        verdict
            .findings
            .truncate(MAX_KEPT_FINDINGS.saturating_sub(findings));
        kept.push(verdict);
    }

    /// Whether a verdict has consequences: something was refused, or taken out.
    fn counts(&self, verdict: &Verdict) -> bool {
        let redacts = matches!(verdict.action, Action::Redact { .. });
        verdict.refused || (redacts && self.enforces)
    }
}

impl Judge {
    /// A judge that asks `screen`, and tells each verdict to `on_verdict`. `scanner` is the screen's.
    #[must_use]
    pub fn new(screen: Screen, scanner: Scanner, on_verdict: OnVerdict) -> Self {
        let seen = Arc::new(Seen::new(screen.enforces()));
        let (noting, telling) = (Arc::clone(&seen), Arc::clone(&on_verdict));
        let screen = screen.on_verdict(Arc::new(move |verdict: &Verdict| {
            noting.note(verdict);
            telling(verdict);
        }));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self(Arc::new(Inner {
            screen,
            scanner,
            seen,
            on_verdict,
            connection: Arc::new(ConnectionInfo::new(ConnectionId(0), any, any, None)),
            node: RandomState::new().build_hasher().finish(),
            next: AtomicU64::new(0),
        }))
    }

    /// Begins an exchange with a request, which may have a body. It is registered with the screen, and not judged yet.
    ///
    /// # Errors
    /// A target that is none.
    pub fn request(&self, head: RequestHead, has_body: bool) -> Result<Exchange, InvalidTarget> {
        let mut flow = Flow::new(Arc::clone(&self.0.connection));
        flow.id = self.next_id();
        flow.timing.started = SystemTime::now();
        flow.request.version = version(head.version());
        let target = head.target().to_vec();
        flow.request.head = head;
        address(&mut flow)?;
        let path = flow.request.path().to_vec();
        self.0.seen.open().insert(flow.id, Vec::new());
        let mut exchange = Exchange {
            judge: Arc::clone(&self.0),
            flow,
            target,
            path,
            interest: Interest::NONE,
            inbound: None,
        };
        let head = exchange.flow.request.head.clone();
        if has_body && !head.headers.contains("content-length") {
            // Who showed it to us has taken off how it was framed; the screen reads from that how long it may be.
            let headers = exchange.flow.request.headers_mut();
            let _ = headers.set(b"Transfer-Encoding", b"chunked");
        }
        exchange.interest = exchange
            .guarded(|screen, flow| screen.interest(flow))
            .unwrap_or(Interest::REQUEST_BODY);
        exchange.flow.request.head = head;
        Ok(exchange)
    }

    /// All that a scanner finds in a text. What counts in one that comes in is told.
    #[must_use]
    pub fn scan(&self, kind: Kind, text: &[u8]) -> Vec<Finding> {
        let findings = self.0.scanner.scan(kind, text);
        let told: Vec<Finding> = findings
            .iter()
            .filter(|found| is_told(found))
            .cloned()
            .collect();
        if let Some(verdict) =
            told_of(self.next_id(), "scan", told).filter(|_| kind == Kind::Inbound)
        {
            (self.0.on_verdict)(&verdict);
        }
        findings
    }

    /// Whether a verdict has consequences: something was refused, or taken out.
    #[must_use]
    pub fn counts(&self, verdict: &Verdict) -> bool {
        self.0.seen.counts(verdict)
    }

    fn next_id(&self) -> FlowId {
        let count = self.0.next.fetch_add(1, Ordering::Relaxed) & 0xff_ffff_ffff;
        FlowId::new(
            SystemTime::now(),
            u128::from(self.0.node) << 40 | u128::from(count),
        )
    }

    /// Whether what can't be read, or is over a limit, is refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.screen.on_failure() == OnFailure::Closed
    }

    /// What changes when the rules do: for caches of judgements. `more` is what the rules' ids don't tell, such as the
    /// text of rule packs.
    #[must_use]
    pub fn tag(&self, more: &[&[u8]]) -> String {
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        put(env!("CARGO_PKG_VERSION").as_bytes());
        for rule in self.0.scanner.rules() {
            put(rule.id.as_bytes());
            put(rule.severity.as_str().as_bytes());
            put(rule.description.as_bytes());
        }
        more.iter().for_each(|bytes| put(bytes));
        let digest = hash.finalize();
        let hex: String = digest
            .iter()
            .take(12)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("TG-{hex}")
    }
}

/// A request target that names no host, or isn't one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidTarget;

/// One exchange before the judge. It ends when it is dropped.
pub struct Exchange {
    judge: Arc<Inner>,
    flow: Flow,
    /// The request target as it came.
    target: Vec<u8>,
    /// Its path and query, as they were judged.
    path: Vec<u8>,
    interest: Interest,
    inbound: Option<Box<Inbound>>,
}

/// What the judge says.
#[derive(Debug)]
pub enum Said {
    /// It goes on as it is: the head may have been changed, see [`Exchange::request_head`].
    Pass,
    /// These bytes go on in the place of those that were shown; none, if they are held back or taken out.
    Replace(Bytes),
    /// Somebody gets this answer, and the message goes no further.
    Reply(Box<Reply>),
    /// It goes no further; and why.
    Close(String),
}

/// An answer that no model gave, as it is read.
struct Inbound {
    state: ScanState,
    decoder: Option<Decoder>,
    read: u64,
    findings: Vec<Finding>,
}

impl Exchange {
    /// Its number, which stands in logs.
    #[must_use]
    pub fn id(&self) -> FlowId {
        self.flow.id
    }

    /// Whether the request's body has to be there when it is judged; else it is shown in pieces.
    #[must_use]
    pub fn collects(&self) -> bool {
        self.interest.contains(Interest::REQUEST_BODY)
    }

    /// Judges the request, with its body if that was collected.
    pub async fn judge_request(&mut self, body: Option<Bytes>) -> Said {
        if let Some(body) = body {
            self.flow.request.body_size = body.len() as u64;
            self.flow.request.put_collected_body(body);
        }
        let step = self.guarded(|screen, flow| screen.request(flow));
        self.follow(step).await
    }

    /// Judges the next piece of a body that is shown in pieces; `None` is its end.
    pub async fn judge_piece(&mut self, direction: Direction, data: Option<&[u8]>) -> Said {
        let piece = Piece {
            direction,
            data: data.unwrap_or_default(),
            last: data.is_none(),
        };
        let step = self.guarded(|screen, flow| screen.data(flow, piece));
        self.follow(step).await
    }

    /// The request's head as it goes on.
    #[must_use]
    pub fn request_head(&self) -> RequestHead {
        let mut head = self.flow.request.head.clone();
        let path = self.flow.request.path();
        if path == self.path {
            // It was valid when it came.
            let _ = head.set_target(&self.target);
        } else if let Some(before) = self.target.strip_suffix(self.path.as_slice()) {
            // Something was taken out of it.
            let _ = head.set_target(&[before, path].concat());
        }
        head
    }

    /// The request's body, if it was replaced.
    #[must_use]
    pub fn replaced_body(&self) -> Option<Bytes> {
        let request = &self.flow.request;
        request.body().filter(|_| request.is_body_edited()).cloned()
    }

    /// Judges the head of the answer. `false`: it holds no answer of a model, and its body is to be shown to
    /// [`read_inbound`](Self::read_inbound), if anything.
    pub async fn judge_answer(&mut self, head: ResponseHead) -> (Said, bool) {
        let mut response = Response::default();
        response.version = version(head.version());
        response.head = head;
        self.flow.response = Some(Box::new(response));
        let step = self.guarded(|screen, flow| screen.response(flow));
        let said = self.follow(step).await;
        let edits = self
            .guarded(|screen, flow| screen.edits_response(flow))
            .unwrap_or(true);
        (said, edits)
    }

    /// The answer's head as it goes on.
    #[must_use]
    pub fn response_head(&self) -> ResponseHead {
        let response = self.flow.response.as_ref();
        response
            .map(|response| response.head.clone())
            .unwrap_or_default()
    }

    /// Whether the body of this answer is text that a model might be given.
    #[must_use]
    pub fn is_text(&self) -> bool {
        let response = self.flow.response.as_ref();
        let content_type = response.and_then(|response| response.headers().get("content-type"));
        let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
        content_type.starts_with(b"text/")
            || [&b"json"[..], b"xml", b"javascript"].iter().any(|word| {
                content_type
                    .windows(word.len())
                    .any(|window| window == *word)
            })
    }

    /// Reads the next piece of an answer that no model gave; `None` is its end, where what was found is told. At most
    /// 8 MiB are read, and nothing is refused.
    pub fn read_inbound(&mut self, data: Option<&[u8]>) {
        let scanner = &self.judge.scanner;
        if self.inbound.is_none() {
            let empty = HeaderList::new();
            let response = self.flow.response.as_ref();
            let headers = response.map_or(&empty, |response| response.headers());
            let limit = OutputLimit {
                total: MAX_INBOUND,
                per_feed: 8 << 20,
            };
            // What can't be read isn't read: the proxy wouldn't look at it at all.
            let (decoder, read) = match Decoder::new(headers.get_all("content-encoding"), limit) {
                Ok(decoder) => (decoder, 0),
                Err(_) => (None, MAX_INBOUND),
            };
            self.inbound = Some(Box::new(Inbound {
                state: scanner.start(Kind::Inbound),
                decoder,
                read,
                findings: Vec::new(),
            }));
        }
        let Some(inbound) = &mut self.inbound else {
            return;
        };
        let Some(data) = data else {
            scanner.finish(&mut inbound.state, &mut inbound.findings);
            let mut findings = std::mem::take(&mut inbound.findings);
            findings.retain(is_told);
            let target = self.flow.request.target.to_string();
            if let Some(verdict) = told_of(self.flow.id, &target, findings) {
                self.tell(&verdict);
            }
            return;
        };
        if inbound.read >= MAX_INBOUND {
            return;
        }
        inbound.read = inbound.read.saturating_add(data.len() as u64);
        match &mut inbound.decoder {
            None => scanner.feed(&mut inbound.state, data, &mut inbound.findings),
            Some(decoder) => {
                let mut plain = Vec::new();
                if decoder.feed(data, &mut plain).is_err() {
                    inbound.read = MAX_INBOUND;
                }
                scanner.feed(&mut inbound.state, &plain, &mut inbound.findings);
            }
        }
        if inbound.findings.len() > 10 * MAX_FINDINGS {
            inbound.findings.retain(is_told);
            inbound.findings.truncate(MAX_FINDINGS);
        }
    }

    /// What was found so far; of very much the first, and what has other consequences.
    #[must_use]
    pub fn verdicts(&self) -> Vec<Verdict> {
        let seen = self.judge.seen.open();
        seen.get(&self.flow.id).cloned().unwrap_or_default()
    }

    /// Whether something was refused, or taken out, so far: the message isn't what it was.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let seen = self.judge.seen.open();
        let mut verdicts = seen.get(&self.flow.id).into_iter().flatten();
        verdicts.any(|verdict| self.judge.seen.counts(verdict))
    }

    /// Refuses a request that the screen wasn't shown, and tells so. What is answered.
    #[must_use]
    pub fn refuse(&self, reason: &str) -> Box<Reply> {
        self.tell(&Verdict {
            flow: self.flow.id,
            target: self.flow.request.target.to_string(),
            place: Place::RequestBody,
            findings: Vec::new(),
            refused: true,
            reason: reason.to_owned(),
            action: Action::Block,
            rule: None,
            allow: String::new(),
        });
        self.refusal(reason)
    }

    /// The answer to who sent a request that can't be judged, or was refused in the middle of its body.
    #[must_use]
    pub fn refusal(&self, reason: &str) -> Box<Reply> {
        let body = serde_json::json!({
            "error": {
                "type": "tollgate_refused",
                "message": format!("Tollgate refused this message: {reason}."),
                "flow": self.flow.id.to_string(),
            }
        });
        let reply = Reply::new(403).body(body.to_string());
        let reply = reply
            .header("Content-Type", "application/json")
            .and_then(|reply| reply.header("Proxy-Status", "tollgate; error=http_request_denied"));
        Box::new(reply.unwrap_or_else(|_| Reply::new(403)))
    }

    /// Reports a verdict that isn't the screen's.
    fn tell(&self, verdict: &Verdict) {
        self.judge.seen.note(verdict);
        (self.judge.on_verdict)(verdict);
    }

    /// Asks the screen; `None` if it panicked.
    fn guarded<T>(&mut self, ask: impl FnOnce(&Screen, &mut Flow) -> T) -> Option<T> {
        let (screen, flow) = (&self.judge.screen, &mut self.flow);
        catch_unwind(AssertUnwindSafe(|| ask(screen, flow))).ok()
    }

    async fn follow(&mut self, step: Option<Step>) -> Said {
        let Some(mut step) = step else {
            return self.failed("the screen has failed");
        };
        for _ in 0..MAX_STEPS {
            step = match step {
                Step::Continue => return Said::Pass,
                Step::Respond(reply) => return Said::Reply(reply),
                Step::Replace(bytes) => return Said::Replace(bytes),
                Step::Drop => return Said::Replace(Bytes::new()),
                Step::Close(reason) => return Said::Close(reason.into_owned()),
                Step::Edit(edit) => {
                    let flow = &mut self.flow;
                    match catch_unwind(AssertUnwindSafe(|| (edit.0)(flow))) {
                        Ok(step) => step,
                        Err(_) => return self.failed("the screen has failed"),
                    }
                }
                Step::Hold(hold) => match tokio::time::timeout(hold.deadline, hold.future).await {
                    Ok(step) => step,
                    Err(_) => *hold.at_deadline,
                },
            };
        }
        self.failed("the screen doesn't come to an end")
    }

    fn failed(&self, why: &str) -> Said {
        match self.judge.screen.on_failure() {
            OnFailure::Closed => Said::Close(why.to_owned()),
            OnFailure::Open => Said::Pass,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let _ = self.guarded(|screen, flow| screen.end(flow, &Outcome::COMPLETED));
        self.judge.seen.open().remove(&self.flow.id);
    }
}

/// What is said of findings in what comes in: nothing is refused.
fn told_of(flow: FlowId, target: &str, mut findings: Vec<Finding>) -> Option<Verdict> {
    findings.truncate(MAX_FINDINGS);
    let worst = findings.iter().max_by_key(|finding| finding.severity)?;
    Some(Verdict {
        flow,
        target: target.to_owned(),
        place: Place::Answer,
        reason: worst.rule.to_string(),
        findings,
        refused: false,
        action: Action::Allow,
        rule: None,
        allow: String::new(),
    })
}

/// What is worth telling of an answer that isn't a model's: what is aimed at a model, or hides from people.
fn is_told(finding: &Finding) -> bool {
    let aimed = matches!(
        finding.category,
        Category::Injection | Category::HiddenText | Category::Exfiltration
    );
    aimed && finding.severity >= Severity::Medium
}

fn version(version: http1::Version) -> HttpVersion {
    match version {
        http1::Version::Http10 => HttpVersion::Http10,
        http1::Version::Http11 => HttpVersion::Http11,
    }
}

/// Finds out where a request goes: from an absolute URL, the authority of a CONNECT, or its `Host`.
fn address(flow: &mut Flow) -> Result<(), InvalidTarget> {
    let request = &mut flow.request;
    let target = request.head.target().to_vec();
    let parse = |authority: &[u8], scheme: Scheme| {
        let authority = std::str::from_utf8(authority).ok()?;
        Target::parse(authority, Some(scheme.default_port()))
    };
    if request.head.method() == b"CONNECT" {
        request.scheme = Scheme::Https;
        request.target = parse(&target, Scheme::Https).ok_or(InvalidTarget)?;
        request.authority = Some(target);
        return Ok(());
    }
    for scheme in [Scheme::Http, Scheme::Https] {
        let start = format!("{}://", scheme.as_str());
        let Some((begin, rest)) = target.split_at_checked(start.len()) else {
            continue;
        };
        if !begin.eq_ignore_ascii_case(start.as_bytes()) {
            continue;
        }
        let end = rest
            .iter()
            .position(|byte| matches!(byte, b'/' | b'?' | b'#'));
        let (authority, path) = rest
            .split_at_checked(end.unwrap_or(rest.len()))
            .unwrap_or((rest, b""));
        let host = authority
            .rsplit(|&byte| byte == b'@')
            .next()
            .unwrap_or_default();
        request.scheme = scheme;
        request.target = parse(host, scheme).ok_or(InvalidTarget)?;
        request.authority = Some(host.to_vec());
        let path = match path.first() {
            Some(b'/') => path.to_vec(),
            _ => [b"/", path].concat(),
        };
        return request.head.set_target(&path).map_err(|_| InvalidTarget);
    }
    let host = request.head.headers.get("host").unwrap_or_default();
    request.target = parse(host, request.scheme).ok_or(InvalidTarget)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tollgate_screen::policy::Policy;
    use tollgate_screen::{PolicyInForce, ScreenConfig};

    use super::*;

    #[tokio::test]
    async fn of_an_endless_body_every_verdict_is_told_and_few_are_kept() {
        // Tokens that every scanner knows, and no scanner of source code.
        let seen = ["AKIA", "Y3T6DKCNFLR2QWZ4"].concat();
        let refused = ["hf_", "kTzQwVbXnRmLpYcHdJfGsNeWuAoIxEyBrS"].concat();
        let policy = "[[rule]]\nfinding = \"aws-access-key-id\"\naction = \"warn\"\n";
        let policy = Policy::parse(policy, "policy.toml").unwrap();
        let scanner = Scanner::builtin();
        let screen = Screen::new(scanner.clone(), ScreenConfig::default());
        let screen = screen.policy(PolicyInForce::new(policy));
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        let tell = move |_: &Verdict| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let judge = Judge::new(screen, scanner, Arc::new(tell));
        let url = b"http://example.com/";
        let head = RequestHead::build(b"POST", url, http1::Version::Http11).unwrap();
        let mut exchange = judge.request(head, true).unwrap();
        assert!(!exchange.collects());
        assert!(matches!(exchange.judge_request(None).await, Said::Pass));
        let mut piece = async |secret: &str| {
            let piece = format!("{} {secret} ", "words ".repeat(1000));
            let piece = Some(piece.as_bytes());
            exchange.judge_piece(Direction::Request, piece).await
        };
        let many = 3 * MAX_KEPT as u64;
        for _ in 0..many + 5 {
            let said = piece(&seen).await;
            assert!(matches!(said, Said::Pass | Said::Replace(_)), "{said:?}");
        }
        assert!(told.load(Ordering::Relaxed) >= many);
        let _ = piece(&refused).await;
        let said = piece("").await;
        assert!(matches!(said, Said::Close(_)), "{said:?}");
        let verdicts = exchange.verdicts();
        assert_eq!(verdicts.len(), MAX_KEPT + 1);
        assert!(exchange.has_changed() && verdicts.last().unwrap().refused);
    }
}

//! A scanner elsewhere, as an interceptor: what passes is shown to it, and it says what becomes of it.
//!
//! [`ExternalScanner`] speaks ICAP (REQMOD and RESPMOD, and with a preview, by what the service's OPTIONS say) or the shape
//! of [`scan`](crate::scan) over HTTP. A request is held until the scanner has answered, at most for a deadline; an answer
//! that isn't held by its nature (a stream, a body over the limit) passes unseen, and is counted.

mod asked;
mod exchange;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tollgate_flow::record::FINDING;
use tollgate_flow::{Flow, FlowKind, Interceptor, Interest, OnFailure, Reply, Step, Target};
use tollgate_screen::Enforcement;

use self::asked::{Asked, Changed, Verdict};
use self::exchange::{Connections, Failure};

/// Where the scanner is.
#[derive(Clone, PartialEq, Eq)]
pub struct ScannerUrl {
    target: Target,
    path: String,
    is_icap: bool,
    is_tls: bool,
}

/// A URL of a scanner is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a scanner is icap[s]://HOST[:PORT]/SERVICE or http[s]://HOST[:PORT]/PATH")]
pub struct InvalidUrl;

impl std::str::FromStr for ScannerUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidUrl)?;
        let (port, is_icap, is_tls) = match scheme {
            "icap" => (1344, true, false),
            "icaps" => (11344, true, true),
            "http" => (80, false, false),
            "https" => (443, false, true),
            _ => return Err(InvalidUrl),
        };
        let (authority, path) = rest.split_once('/').ok_or(InvalidUrl)?;
        let target = Target::parse(authority, Some(port)).ok_or(InvalidUrl)?;
        if path.is_empty() || !path.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) {
            return Err(InvalidUrl);
        }
        Ok(Self {
            target,
            path: format!("/{path}"),
            is_icap,
            is_tls,
        })
    }
}

impl fmt::Debug for ScannerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ScannerUrl {
    /// Whether it is spoken to within TLS: `icaps` and `https`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    fn with_path(&self, path: &str) -> String {
        let scheme = match (self.is_icap, self.is_tls) {
            (true, false) => "icap",
            (true, true) => "icaps",
            (false, false) => "http",
            (false, true) => "https",
        };
        format!("{scheme}://{}{path}", self.target)
    }

    /// All of it.
    fn whole(&self) -> String {
        self.with_path(&self.path)
    }
}

/// Without a query: services may have a key in theirs.
impl fmt::Display for ScannerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, _) = self.path.split_once('?').unwrap_or((&self.path, ""));
        f.write_str(&self.with_path(path))
    }
}

/// How an [`ExternalScanner`] asks.
#[derive(Clone)]
#[non_exhaustive]
pub struct ExternalConfig {
    /// How long an answer may take, waiting for a turn included. Default: 10 s.
    pub deadline: Duration,
    /// Whether what a scanner says has consequences. Who only watches lets everything pass unchanged. Default: it has.
    pub enforcement: Enforcement,
    /// What becomes of a request when there is no answer, or its body is over the limit; and of an answer that can't be
    /// asked about. Default: closed, which is 502.
    pub on_failure: OnFailure,
    /// The longest body that is shown. Default: 1 MiB.
    pub body: u64,
    /// Questions at once, each on a connection of its own; others wait for their turn, within their deadline. As many
    /// connections are kept. Default: 64.
    pub concurrency: usize,
    /// The token for HTTP.
    pub token: Option<String>,
    /// How a scanner behind TLS is verified. Without it none can be asked.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Default for ExternalConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            enforcement: Enforcement::Enforce,
            on_failure: OnFailure::Closed,
            body: 1 << 20,
            concurrency: 64,
            token: None,
            tls: None,
        }
    }
}

/// What was asked of a scanner, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalStats {
    /// Requests and answers that were to be shown.
    pub asked: u64,
    /// Those that it gave a usable answer to, in time: that they are clean, or one of the next two.
    pub answered: u64,
    /// Those that the scanner refused, or put another answer in their place.
    pub refused: u64,
    /// Requests that it changed.
    pub changed: u64,
    /// Those that it gave no usable answer to, in time, and requests over the limit.
    pub failed: u64,
    /// Of those that failed, the ones for which the deadline passed.
    pub timed_out: u64,
    /// Answers that passed unseen: streams, and bodies over the limit.
    pub unseen: u64,
}

#[derive(Debug, Default)]
struct Counters {
    asked: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    changed: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
    unseen: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Shows requests and whole answers to a scanner elsewhere. Clones are the same.
#[derive(Clone)]
pub struct ExternalScanner {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    url: ScannerUrl,
    config: ExternalConfig,
    connections: Connections,
    turns: Semaphore,
    counters: Counters,
}

impl ExternalScanner {
    /// Asks the scanner at `url`. Its connections live on `runtime`.
    #[must_use]
    pub fn new(url: ScannerUrl, config: ExternalConfig, runtime: Handle) -> Self {
        let turns = Semaphore::new(config.concurrency.clamp(1, 65_536));
        let connections = Connections::new(url.clone(), &config);
        Self {
            shared: Arc::new(Shared {
                url,
                config,
                connections,
                turns,
                counters: Counters::default(),
            }),
            runtime,
        }
    }

    /// Where the scanner is.
    #[must_use]
    pub fn url(&self) -> &ScannerUrl {
        &self.shared.url
    }

    /// What was asked so far.
    #[must_use]
    pub fn stats(&self) -> ExternalStats {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExternalStats {
            asked: get(&counters.asked),
            answered: get(&counters.answered),
            refused: get(&counters.refused),
            changed: get(&counters.changed),
            failed: get(&counters.failed),
            timed_out: get(&counters.timed_out),
            unseen: get(&counters.unseen),
        }
    }

    /// Waits for the verdict on `asked`.
    fn hold(&self, asked: Asked) -> Step {
        count(&self.shared.counters.asked);
        let shared = Arc::clone(&self.shared);
        let asking = Aborting(self.runtime.spawn(async move {
            let _turn = shared.turns.acquire().await.map_err(|_| Failure::Gone)?;
            shared.connections.ask(&asked).await
        }));
        let shared = Arc::clone(&self.shared);
        let future = async move {
            let mut asking = asking;
            match (&mut asking.0).await {
                Ok(Ok(verdict)) => Step::edit(move |flow| apply(flow, &shared, verdict)),
                Ok(Err(failure)) => {
                    Step::edit(move |flow| shared.failed(flow, &failure.to_string()))
                }
                Err(_) => Step::edit(move |flow| shared.failed(flow, "asking has failed")),
            }
        };
        let shared = Arc::clone(&self.shared);
        let late = Step::edit(move |flow| {
            count(&shared.counters.timed_out);
            shared.failed(flow, "no answer in time")
        });
        Step::hold(future, self.shared.config.deadline, late)
    }
}

/// A question that nobody waits for any more isn't asked on.
struct Aborting<T>(JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// The declared answer for what couldn't be shown.
    fn failed(&self, flow: &mut Flow, why: &str) -> Step {
        count(&self.counters.failed);
        let open = self.config.on_failure == OnFailure::Open || self.watches();
        let then = match open {
            true => "it passes unseen",
            false => "it is refused",
        };
        tracing::warn!(flow = %flow.id, scanner = %self.url, "the external scanner can't be asked: {why}; {then}");
        if open {
            return Step::Continue;
        }
        // Where the scanner is stays here: the client has no business with it.
        let text = format!("Tollgate: the external scanner can't be asked: {why}\n");
        Step::respond(Reply::new(502).text(text))
    }

    fn watches(&self) -> bool {
        self.config.enforcement == Enforcement::Monitor
    }
}

fn note(flow: &mut Flow, what: String) {
    if flow.metadata.len() < 64 {
        flow.metadata.push((FINDING.to_owned(), what));
    }
}

/// Does what the scanner says.
fn apply(flow: &mut Flow, shared: &Shared, verdict: Verdict) -> Step {
    match verdict {
        Verdict::Clean => {
            count(&shared.counters.answered);
            Step::Continue
        }
        Verdict::Reply { reply, why } => {
            count(&shared.counters.answered);
            count(&shared.counters.refused);
            let word = match shared.watches() {
                true => "seen",
                false => "refused",
            };
            note(flow, format!("{word}: {why} by the external scanner"));
            tracing::warn!(flow = %flow.id, scanner = %shared.url, "{word} by the external scanner: {why}");
            match shared.watches() {
                true => Step::Continue,
                false => Step::respond(*reply),
            }
        }
        Verdict::Changed(changed) => {
            let Changed { head, body } = *changed;
            let (method, path) = (head.method() == flow.request.method(), asked::url_of(flow));
            if !method || head.target() != path.as_bytes() {
                return shared.failed(flow, "it has changed the request line");
            }
            count(&shared.counters.answered);
            count(&shared.counters.changed);
            if shared.watches() {
                note(
                    flow,
                    "seen: a request that the external scanner would change".to_owned(),
                );
                return Step::Continue;
            }
            let headers = flow.request.headers_mut();
            let kept: Vec<(Vec<u8>, Vec<u8>)> = headers
                .iter()
                .filter(|(name, _)| asked::is_framing(name))
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect();
            headers.clear();
            let given = head
                .headers
                .iter()
                .filter(|(name, _)| !asked::is_framing(name));
            let kept = kept.iter().map(|(name, value)| (&name[..], &value[..]));
            for (name, value) in given.chain(kept) {
                let _ = headers.append(name, value);
            }
            if let Some(body) = body {
                flow.request.set_body(body);
            }
            Step::Continue
        }
    }
}

impl Interceptor for ExternalScanner {
    fn name(&self) -> &str {
        "external-scanner"
    }

    fn on_failure(&self) -> OnFailure {
        self.shared.config.on_failure
    }

    fn interest(&self, flow: &Flow) -> Interest {
        if flow.kind != FlowKind::Http {
            return Interest::NONE;
        }
        let (requests, responses) = self.shared.connections.wants();
        let mut interest = Interest::NONE;
        if requests {
            // Also of a body that says it is too long: clients lose an answer that comes before they have sent all.
            interest |= Interest::REQUEST_BODY;
        }
        if responses {
            interest |= Interest::RESPONSE_BODY;
        }
        interest
    }

    fn request(&self, flow: &mut Flow) -> Step {
        let limit = self.shared.config.body;
        let length = flow.request.body().map_or(0, |body| body.len() as u64);
        let declared = flow.request.headers().content_length().unwrap_or(0);
        if length.max(declared) > limit {
            return self
                .shared
                .failed(flow, "the body is over the limit of what is shown");
        }
        match Asked::request(flow) {
            Some(asked) => self.hold(asked),
            None => self.shared.failed(flow, "the request can't be written"),
        }
    }

    fn response(&self, flow: &mut Flow) -> Step {
        let limit = self.shared.config.body;
        let length = flow.response.as_ref().and_then(|response| response.body());
        match length.map(|body| body.len() as u64) {
            Some(length) if length <= limit => match Asked::response(flow) {
                Some(asked) => self.hold(asked),
                None => self.shared.failed(flow, "the answer can't be written"),
            },
            // It streams, or is longer than what is collected or shown.
            _ => {
                count(&self.shared.counters.unseen);
                Step::Continue
            }
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let stats = self.stats();
        vec![
            ("asked", stats.asked),
            ("answered", stats.answered),
            ("refused", stats.refused),
            ("changed", stats.changed),
            ("failed", stats.failed),
            ("timed_out", stats.timed_out),
            ("unseen", stats.unseen),
        ]
    }
}

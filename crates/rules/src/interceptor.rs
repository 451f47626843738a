//! Rules as an interceptor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use tollgate_flow::record::RULE;
use tollgate_flow::{
    Bytes, ClientHello, ConnectDecision, ConnectionInfo, Direction, Flow, FlowId, FlowKind,
    Interceptor, Interest, Message, MessageKind, Outcome, Piece, Reply, Response, Step, Target,
    TlsDecision,
};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::http1::{ResponseHead, standard_reason};
use tracing::{debug, warn};

use crate::budget::{Budget, Exhausted};
use crate::hold::Holds;
use crate::local::{self, Candidates};
use crate::replay::{self, Answer};
use crate::rewrite::{Replace, Rewriter};
use crate::rule::{Action, CUT, MessageOutcome, Rule, blocked, modify_headers};
use crate::set::{Connecting, OfConnection, RuleSet};
use crate::sticky::Bucket;
use crate::url::set_url;

/// Flows in flight are spread over so many tables, so that workers seldom meet at a lock.
const SHARDS: usize = 16;

/// The longest that files or a command may take that a rule waits for.
const BLOCKING: Duration = Duration::from_secs(30);

/// What one piece of a coded body may decode to.
const DECODED_PIECE: usize = 32 << 20;

/// Rules in force: an interceptor that blocks, maps, modifies and answers as they say.
///
/// The rules act in their order. The first that answers ends the list; `allow` frees a flow from the `block`s behind it.
/// A flow keeps the rules that were in force when its request came, also where [`replace`](Self::replace) brings others.
///
/// ```
/// use tollgate_rules::{RuleSet, Rules};
///
/// let set = RuleSet::parse(
///     "[[rule]]\nwhen = \"~d ads.example\"\nblock = 403\n",
///     "rules.toml",
///     ".".as_ref(),
/// )?;
/// let rules = Rules::new(set);
/// // Proxy::builder().interceptor(rules.clone()) …, and later, without a restart:
/// rules.replace(RuleSet::default());
/// # Ok::<(), tollgate_rules::RuleError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rules(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    set: ArcSwap<RuleSet>,
    flows: [Mutex<HashMap<FlowId, Arc<Mutex<State>>>>; SHARDS],
    holds: Holds,
    counters: Counters,
}

/// What budgets have come to, whatever rules were in force.
#[derive(Debug, Default)]
struct Counters {
    budget_requests: AtomicU64,
    budget_refused: AtomicU64,
    budget_cut: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What is remembered of a flow until it ends.
#[derive(Debug)]
struct State {
    set: Arc<RuleSet>,
    allowed: bool,
    request: Option<Chain>,
    response: Option<Chain>,
    budgets: Vec<Arc<Budget>>,
    /// What bodies may yet have, the request's and the response's.
    left: [Option<u64>; 2],
    upload: Vec<Arc<Bucket>>,
    download: Vec<Arc<Bucket>>,
}

/// A body on its way through replacements.
#[derive(Debug)]
struct Chain {
    decoder: Option<Box<DebugDecoder>>,
    rewriters: Vec<Rewriter>,
    failed: bool,
}

struct DebugDecoder(Decoder);

impl std::fmt::Debug for DebugDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Rules {
    /// Puts rules in force.
    pub fn new(set: RuleSet) -> Self {
        Self(Arc::new(Inner {
            set: ArcSwap::from_pointee(set),
            flows: Default::default(),
            holds: Holds::default(),
            counters: Counters::default(),
        }))
    }

    /// Puts other rules in force, for the flows that come.
    pub fn replace(&self, set: RuleSet) {
        self.0.set.store(Arc::new(set));
    }

    /// The rules that are in force.
    pub fn current(&self) -> Arc<RuleSet> {
        self.0.set.load_full()
    }

    /// The flows that `hold` keeps waiting, to list them and decide.
    pub fn holds(&self) -> &Holds {
        &self.0.holds
    }

    fn shard(&self, id: FlowId) -> MutexGuard<'_, HashMap<FlowId, Arc<Mutex<State>>>> {
        // The low bits of an id are its random ones.
        let at = (id.0 % SHARDS as u128) as usize;
        #[expect(
            clippy::indexing_slicing,
            reason = "a remainder by the number of shards"
        )]
        lock(&self.0.flows[at])
    }

    fn state(&self, id: FlowId) -> Option<Arc<Mutex<State>>> {
        self.shard(id).get(&id).cloned()
    }

    /// The rules for requests, from one on.
    fn request_from(&self, flow: &mut Flow, from: usize) -> Step {
        let Some(state) = self.state(flow.id) else {
            return Step::Continue;
        };
        let set = Arc::clone(&lock(&state).set);
        for (at, rule) in set.rules.iter().enumerate().skip(from) {
            match self.act_on_request(&state, &set, rule, at, flow) {
                Step::Continue => {}
                Step::Respond(reply) => return Step::respond(finish_reply(&set, flow, *reply)),
                step => return step,
            }
        }
        Step::Continue
    }

    fn act_on_request(
        &self,
        state: &Mutex<State>,
        set: &Arc<RuleSet>,
        rule: &Rule,
        at: usize,
        flow: &mut Flow,
    ) -> Step {
        if rule.on == Direction::Response {
            return Step::Continue;
        }
        match &rule.action {
            // Each of its parts has a filter of its own.
            Action::ModifyHeaders(specs) => {
                if modify_headers(specs, flow, Direction::Request) {
                    note(flow, rule);
                }
                return Step::Continue;
            }
            Action::MapLocal(maps) => {
                if !rule.applies(flow) {
                    return Step::Continue;
                }
                let url = flow.pretty_url();
                let found: Vec<_> = maps
                    .iter()
                    .filter_map(|map| map.candidates(flow, &url))
                    .collect();
                if found.is_empty() {
                    return Step::Continue;
                }
                let candidates = Candidates {
                    files: found.into_iter().flatten().collect(),
                };
                note(flow, rule);
                return self.answer_from(set, candidates, at);
            }
            Action::StickyAuth(sticky) => {
                let applies = rule.applies(flow);
                sticky.request(flow, applies);
                return Step::Continue;
            }
            _ => {}
        }
        if !rule.applies(flow) {
            return Step::Continue;
        }
        match &rule.action {
            Action::Block(_) if lock(state).allowed => return Step::Continue,
            Action::Block(status) => {
                note(flow, rule);
                return refuse(*status);
            }
            Action::Allow => lock(state).allowed = true,
            Action::MapRemote(replacement) => {
                let Some(url) = replacement.replaced(&flow.pretty_url()) else {
                    return Step::Continue;
                };
                if let Err(why) = set_url(flow, &url) {
                    return broken(rule, &why);
                }
            }
            Action::Headers(edits) => edits.apply(flow.request.headers_mut()),
            Action::Body(edit) if edit.is_on(Direction::Request) => {
                if !edit_request(state, flow, &edit.replace) {
                    return Step::Continue;
                }
            }
            Action::Respond(reply) => {
                note(flow, rule);
                return Step::respond(reply.clone());
            }
            Action::Redirect(redirect) => {
                let Some(location) = redirect.location(&flow.pretty_url()) else {
                    return Step::Continue;
                };
                note(flow, rule);
                return redirected(redirect.status, &location)
                    .map_or_else(|why| broken(rule, &why), Step::respond);
            }
            Action::Upstream(via) => flow.request.via = via.clone(),
            Action::Throttle(throttle) => {
                let mut state = lock(state);
                state.upload.extend(throttle.upload.clone());
                state.download.extend(throttle.download.clone());
                drop(state);
                note(flow, rule);
                if !throttle.latency.is_zero() {
                    return self.after(throttle.latency, at);
                }
                return Step::Continue;
            }
            Action::Budget(budget) => {
                count(&self.0.counters.budget_requests);
                if let Err(exhausted) = budget.request(&flow.request.target.host, Instant::now()) {
                    note(flow, rule);
                    count(&self.0.counters.budget_refused);
                    return used_up(rule, exhausted);
                }
                if budget.upload.is_some() {
                    lock(state).budgets.push(Arc::clone(budget));
                }
                return Step::Continue;
            }
            Action::BodyLimit(limit) => {
                // Asked for here, since its filter is about the request.
                lock(state).limit(Direction::Response, *limit);
                let length = match flow.request.body() {
                    Some(body) => Some(body.len() as u64),
                    None => flow.request.headers().content_length(),
                };
                if length.is_some_and(|length| length > *limit) {
                    note(flow, rule);
                    return too_large(413, rule, *limit);
                }
                if length.is_none() {
                    lock(state).limit(Direction::Request, *limit);
                }
                return Step::Continue;
            }
            Action::Hold(hold) => {
                note(flow, rule);
                let this = self.clone();
                return self.0.holds.hold(
                    flow,
                    Direction::Request,
                    rule.name(),
                    hold.deadline,
                    hold.then_continue,
                    move |flow| this.request_from(flow, at + 1),
                );
            }
            Action::Inject(inject) => {
                if !inject.belongs(flow) {
                    return Step::Continue;
                }
                if inject.is_stale() {
                    let inject = Arc::clone(inject);
                    return self.blocking(at, move || {
                        if let Err(error) = inject.fetch() {
                            warn!("{error}; the old one is used");
                        }
                        None
                    });
                }
                if let Err(why) = inject.apply(flow) {
                    return broken(rule, &why);
                }
            }
            Action::Replay(replay) => {
                return match replay.answer(flow) {
                    Answer::Forward => Step::Continue,
                    Answer::Kill => Step::Drop,
                    Answer::Reply(reply, delay) if delay.is_zero() => Step::respond(*reply),
                    Answer::Reply(reply, delay) => {
                        let set = Arc::clone(set);
                        replay::after(delay, async move {
                            Step::edit(move |flow| Step::respond(finish_reply(&set, flow, *reply)))
                        })
                    }
                };
            }
            Action::StickyCookie(jar) => jar.apply(flow),
            Action::AntiCache => {
                flow.request.headers_mut().remove("if-modified-since");
                flow.request.headers_mut().remove("if-none-match");
            }
            Action::AntiComp => {
                // A constant that is a valid header.
                let _ = flow
                    .request
                    .headers_mut()
                    .set(b"Accept-Encoding", b"identity");
            }
            Action::Tunnel
            | Action::Body(_)
            | Action::Message(_)
            | Action::ModifyHeaders(_)
            | Action::MapLocal(_)
            | Action::StickyAuth(_) => return Step::Continue,
        }
        note(flow, rule);
        Step::Continue
    }

    /// Goes on behind a rule after a time.
    fn after(&self, time: Duration, at: usize) -> Step {
        let this = self.clone();
        let future = async move {
            tokio::time::sleep(time).await;
            Step::edit(move |flow| this.request_from(flow, at + 1))
        };
        Step::hold(
            future,
            time + BLOCKING,
            Step::close("a throttle took too long"),
        )
    }

    /// Answers from files, or goes on where there are none to look for.
    fn answer_from(&self, set: &Arc<RuleSet>, candidates: Candidates, at: usize) -> Step {
        let this = self.clone();
        let set = Arc::clone(set);
        let future = async move {
            match tokio::task::spawn_blocking(move || local::answer(&candidates)).await {
                Ok(Some(reply)) => {
                    Step::edit(move |flow| Step::respond(finish_reply(&set, flow, reply)))
                }
                Ok(None) => Step::edit(move |flow| this.request_from(flow, at + 1)),
                Err(_) => Step::respond(Reply::new(500).text("Tollgate: reading a file failed\n")),
            }
        };
        Step::hold(
            future,
            BLOCKING,
            Step::respond(Reply::new(504).text("Tollgate: reading a file took too long\n")),
        )
    }

    /// Does something that blocks, and comes back to the same rule.
    fn blocking(&self, at: usize, work: impl FnOnce() -> Option<Step> + Send + 'static) -> Step {
        let this = self.clone();
        let future = async move {
            match tokio::task::spawn_blocking(work).await {
                Ok(Some(step)) => step,
                _ => Step::edit(move |flow| this.request_from(flow, at)),
            }
        };
        Step::hold(
            future,
            BLOCKING,
            Step::respond(Reply::new(504).text("Tollgate: fetching a credential took too long\n")),
        )
    }

    /// The rules for responses, from one on.
    fn response_from(&self, flow: &mut Flow, from: usize) -> Step {
        let Some(state) = self.state(flow.id) else {
            return Step::Continue;
        };
        let set = Arc::clone(&lock(&state).set);
        let mut replaces: Vec<Arc<Replace>> = Vec::new();
        for (at, rule) in set.rules.iter().enumerate().skip(from) {
            match &rule.action {
                Action::ModifyHeaders(specs) => {
                    if modify_headers(specs, flow, Direction::Response) {
                        note(flow, rule);
                    }
                    continue;
                }
                Action::StickyCookie(jar) => {
                    jar.learn(flow);
                    continue;
                }
                Action::Body(edit) if edit.is_on(Direction::Response) && rule.applies(flow) => {
                    replaces.push(Arc::clone(&edit.replace));
                    note(flow, rule);
                    continue;
                }
                Action::BodyLimit(limit) if lock(&state).left(Direction::Response).is_some() => {
                    let length = response_length(flow);
                    if length.is_some_and(|length| length > *limit) && rule.applies(flow) {
                        note(flow, rule);
                        return too_large(502, rule, *limit);
                    }
                    continue;
                }
                _ if rule.on != Direction::Response || !rule.applies(flow) => continue,
                Action::Headers(edits) => {
                    if let Some(response) = &mut flow.response {
                        edits.apply(response.headers_mut());
                    }
                }
                Action::Block(_) if lock(&state).allowed => continue,
                Action::Block(status) => {
                    note(flow, rule);
                    return refuse(*status);
                }
                Action::Respond(reply) => {
                    note(flow, rule);
                    return Step::respond(reply.clone());
                }
                Action::Redirect(redirect) => {
                    let Some(location) = redirect.location(&flow.pretty_url()) else {
                        continue;
                    };
                    note(flow, rule);
                    return redirected(redirect.status, &location)
                        .map_or_else(|why| broken(rule, &why), Step::respond);
                }
                Action::Hold(hold) => {
                    note(flow, rule);
                    let this = self.clone();
                    return self.0.holds.hold(
                        flow,
                        Direction::Response,
                        rule.name(),
                        hold.deadline,
                        hold.then_continue,
                        move |flow| this.response_from(flow, at + 1),
                    );
                }
                _ => continue,
            }
            note(flow, rule);
        }
        if !replaces.is_empty() {
            edit_response(&state, flow, replaces);
        }
        Step::Continue
    }
}

impl Interceptor for Rules {
    fn name(&self) -> &str {
        "rules"
    }

    fn connect(&self, target: &Target, connection: &ConnectionInfo) -> ConnectDecision {
        let subject = Connecting {
            target: Some(target),
            hello: None,
            connection,
        };
        match self.0.set.load().of_connection(&subject) {
            OfConnection::Nothing => ConnectDecision::Default,
            OfConnection::Tunnel => ConnectDecision::Tunnel,
            OfConnection::Block => ConnectDecision::Block,
        }
    }

    fn tls(&self, hello: &ClientHello, connection: &ConnectionInfo) -> TlsDecision {
        let subject = Connecting {
            target: connection.target(),
            hello: Some(hello),
            connection,
        };
        match self.0.set.load().of_connection(&subject) {
            OfConnection::Nothing => TlsDecision::Default,
            OfConnection::Tunnel => TlsDecision::Tunnel,
            OfConnection::Block => TlsDecision::Block,
        }
    }

    fn interest(&self, flow: &Flow) -> Interest {
        let set = self.0.set.load();
        if set.is_empty() || flow.kind != FlowKind::Http {
            return Interest::NONE;
        }
        let interest = set.interest(flow);
        if interest.is_empty() {
            return interest;
        }
        let state = State {
            set: Arc::clone(&set),
            allowed: false,
            request: None,
            response: None,
            budgets: Vec::new(),
            left: [None; 2],
            upload: Vec::new(),
            download: Vec::new(),
        };
        self.shard(flow.id)
            .insert(flow.id, Arc::new(Mutex::new(state)));
        interest
    }

    fn request(&self, flow: &mut Flow) -> Step {
        self.request_from(flow, 0)
    }

    fn response(&self, flow: &mut Flow) -> Step {
        self.response_from(flow, 0)
    }

    /// Of budgets: the requests that came to one, those it refused, and those it cut within their bodies.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.0.counters;
        [
            ("budget_requests", &counters.budget_requests),
            ("budget_refused", &counters.budget_refused),
            ("budget_cut", &counters.budget_cut),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .into()
    }

    fn edits_response(&self, flow: &Flow) -> bool {
        self.state(flow.id)
            .is_some_and(|state| lock(&state).response.is_some())
    }

    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        let Some(state) = self.state(flow.id) else {
            return Step::Continue;
        };
        let mut state = lock(&state);
        let state = &mut *state;
        if piece.direction == Direction::Request {
            let host = &*flow.request.target.host;
            let bytes = piece.data.len() as u64;
            for budget in &state.budgets {
                if budget.upload(host, bytes, Instant::now()).is_err() {
                    count(&self.0.counters.budget_cut);
                    return Step::close("a budget of bytes to this host is used up");
                }
            }
        }
        if let Some(left) = state.left_mut(piece.direction) {
            match left.checked_sub(piece.data.len() as u64) {
                Some(less) => *left = less,
                None => return Step::close("the body is larger than a rule lets it be"),
            }
        }
        let (chain, buckets) = match piece.direction {
            Direction::Request => (&mut state.request, &state.upload),
            Direction::Response => (&mut state.response, &state.download),
        };
        let step = match chain {
            None => Step::Continue,
            Some(chain) => match chain.feed(piece) {
                Ok(out) => Step::Replace(Bytes::from(out)),
                Err(error) => {
                    warn!(flow = %flow.id, %error, "a body can't be decoded to change it");
                    return Step::close(format!("a rule changes the body, and {error}"));
                }
            },
        };
        let bytes = match &step {
            Step::Replace(out) => out.len(),
            _ => piece.data.len(),
        };
        let now = Instant::now();
        let wait = buckets.iter().map(|bucket| bucket.wait(bytes, now)).max();
        match wait.filter(|wait| !wait.is_zero() && bytes > 0) {
            None => step,
            Some(wait) => Step::hold(
                async move {
                    tokio::time::sleep(wait).await;
                    step
                },
                wait + BLOCKING,
                Step::close("a throttle took too long"),
            ),
        }
    }

    fn message(&self, flow: &mut Flow, message: Message<'_>) -> Step {
        if message.injected {
            // Said by the proxy, or said later and in place of one that has passed here: twice is once too often.
            return Step::Continue;
        }
        let is_text = matches!(message.kind, MessageKind::Text);
        if !is_text && !matches!(message.kind, MessageKind::Binary) {
            return Step::Continue;
        }
        let Some(state) = self.state(flow.id) else {
            return Step::Continue;
        };
        let set = Arc::clone(&lock(&state).set);
        let mut changed: Option<Vec<u8>> = None;
        for rule in &set.rules {
            let Action::Message(edit) = &rule.action else {
                continue;
            };
            let content = changed.as_deref().unwrap_or(message.data);
            let Some(outcome) = edit.act(rule, &*flow, message.direction, content) else {
                continue;
            };
            note(flow, rule);
            match outcome {
                MessageOutcome::Changed(content) if is_text && !is_utf8(&content) => {
                    warn!(
                        rule = rule.name(),
                        "makes a text of a WebSocket that is no UTF-8"
                    );
                    return Step::close("a rule made a text that is none");
                }
                MessageOutcome::Changed(content) => changed = Some(content),
                MessageOutcome::Dropped => return Step::Drop,
                MessageOutcome::Closed(reason) => return Step::close(reason.to_owned()),
            }
        }
        changed.map_or(Step::Continue, |content| Step::Replace(content.into()))
    }

    fn end(&self, flow: &Flow, _: &Outcome) {
        self.shard(flow.id).remove(&flow.id);
    }
}

impl State {
    fn left_mut(&mut self, of: Direction) -> &mut Option<u64> {
        let [request, response] = &mut self.left;
        match of {
            Direction::Request => request,
            Direction::Response => response,
        }
    }

    fn left(&mut self, of: Direction) -> Option<u64> {
        *self.left_mut(of)
    }

    /// A body may have no more; of several limits the smallest holds.
    fn limit(&mut self, of: Direction, limit: u64) {
        let left = self.left_mut(of);
        *left = Some(left.map_or(limit, |left| left.min(limit)));
    }
}

impl Chain {
    fn new(decoder: Option<Decoder>, replaces: Vec<Arc<Replace>>) -> Self {
        Self {
            decoder: decoder.map(|decoder| Box::new(DebugDecoder(decoder))),
            rewriters: replaces.into_iter().map(Rewriter::new).collect(),
            failed: false,
        }
    }

    /// What goes on in place of a piece.
    fn feed(&mut self, piece: Piece<'_>) -> Result<Vec<u8>, tollgate_wire::coding::CodingError> {
        if self.failed {
            return Ok(Vec::new());
        }
        let mut data = Vec::new();
        match &mut self.decoder {
            None => data.extend_from_slice(piece.data),
            Some(decoder) => {
                let fed = match piece.last {
                    false => decoder.0.feed(piece.data, &mut data),
                    true => decoder.0.finish(&mut data),
                };
                if let Err(error) = fed {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
        for rewriter in &mut self.rewriters {
            let mut out = Vec::with_capacity(data.len());
            rewriter.feed(&data, &mut out);
            if piece.last {
                rewriter.finish(&mut out);
            }
            data = out;
        }
        Ok(data)
    }
}

/// Changes a request body: the whole one where it is there, else as it streams. Answers whether it is changed.
fn edit_request(state: &Mutex<State>, flow: &mut Flow, replace: &Arc<Replace>) -> bool {
    if let Some(body) = flow.request.body().filter(|body| !body.is_empty()) {
        let decoded = match decoded(body, flow.request.headers().get_all("content-encoding")) {
            Ok(decoded) => decoded,
            Err(error) => {
                warn!(flow = %flow.id, %error, "a request body is not changed: it can't be decoded");
                return false;
            }
        };
        let Some(replaced) = replace.all(&decoded) else {
            return false;
        };
        flow.request.set_body(replaced);
        return true;
    }
    if flow.request.body().is_some() {
        return false;
    }
    let mut state = lock(state);
    if let Some(chain) = &mut state.request {
        chain.rewriters.push(Rewriter::new(Arc::clone(replace)));
        return true;
    }
    match decoder(flow.request.headers().get_all("content-encoding")) {
        Ok(decoder) => {
            flow.request.headers_mut().remove("content-encoding");
            state.request = Some(Chain::new(decoder, vec![Arc::clone(replace)]));
            true
        }
        Err(error) => {
            warn!(flow = %flow.id, %error, "a request body is not changed: it can't be decoded");
            false
        }
    }
}

/// Changes a response body, as far as there is one.
fn edit_response(state: &Mutex<State>, flow: &mut Flow, replaces: Vec<Arc<Replace>>) {
    let is_head = flow.request.method() == b"HEAD";
    let id = flow.id;
    let Some(response) = &mut flow.response else {
        return;
    };
    if is_head || matches!(response.status(), 100..=199 | 204 | 304) {
        return;
    }
    if response.body().is_some() {
        return replace_in_response(flow, &replaces);
    }
    match decoder(response.headers().get_all("content-encoding")) {
        Ok(decoder) => {
            response.headers_mut().remove("content-encoding");
            lock(state).response = Some(Chain::new(decoder, replaces));
        }
        Err(error) => {
            warn!(flow = %id, %error, "a response body is not changed: it can't be decoded");
        }
    }
}

/// Changes the body of a response that is there as a whole.
fn replace_in_response(flow: &mut Flow, replaces: &[Arc<Replace>]) {
    let is_head = flow.request.method() == b"HEAD";
    let Some(response) = &mut flow.response else {
        return;
    };
    let Some(body) = response.body() else { return };
    if body.is_empty() && (is_head || matches!(response.status(), 204 | 304)) {
        return;
    }
    let body = match decoded(body, response.headers().get_all("content-encoding")) {
        Ok(body) => body,
        Err(error) => {
            warn!(flow = %flow.id, %error, "a response body is not changed: it can't be decoded");
            return;
        }
    };
    let mut changed: Option<Vec<u8>> = None;
    for replace in replaces {
        changed = replace.all(changed.as_deref().unwrap_or(&body)).or(changed);
    }
    if let Some(body) = changed {
        response.set_body(body);
    }
}

fn decoder<'a>(
    codings: impl Iterator<Item = &'a [u8]>,
) -> Result<Option<Decoder>, tollgate_wire::coding::CodingError> {
    let limit = OutputLimit {
        total: u64::MAX,
        per_feed: DECODED_PIECE,
    };
    Decoder::new(codings, limit)
}

fn decoded<'a>(
    body: &Bytes,
    codings: impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, tollgate_wire::coding::CodingError> {
    let limit = OutputLimit {
        total: 64 << 20,
        per_feed: 64 << 20,
    };
    let Some(mut decoder) = Decoder::new(codings, limit)? else {
        return Ok(body.to_vec());
    };
    let mut out = Vec::new();
    decoder.feed(body, &mut out)?;
    decoder.finish(&mut out)?;
    Ok(out)
}

/// Lets the rules for responses change an answer of ours, as mitmproxy does.
fn finish_reply(set: &RuleSet, flow: &mut Flow, reply: Reply) -> Reply {
    let touches = |rule: &Rule| {
        matches!(&rule.action, Action::ModifyHeaders(_))
            || matches!(&rule.action, Action::Body(edit) if edit.is_on(Direction::Response))
            || (rule.on == Direction::Response && matches!(rule.action, Action::Headers(_)))
    };
    if !set.rules.iter().any(touches) {
        return reply;
    }
    let Ok(head) = ResponseHead::build(reply.status, standard_reason(reply.status).as_bytes())
    else {
        return reply;
    };
    let mut response = Box::<Response>::default();
    response.head = head;
    response.head.headers = reply.headers.clone();
    response.put_collected_body(reply.body.clone());
    let before = flow.response.replace(response);
    for rule in &set.rules {
        match &rule.action {
            Action::ModifyHeaders(specs) => {
                modify_headers(specs, flow, Direction::Response);
            }
            _ if !rule.applies(flow) => {}
            Action::Headers(edits) if edits.on == Direction::Response => {
                if let Some(response) = &mut flow.response {
                    edits.apply(response.headers_mut());
                }
            }
            Action::Body(edit) if edit.is_on(Direction::Response) => {
                replace_in_response(flow, std::slice::from_ref(&edit.replace));
            }
            _ => {}
        }
    }
    let Some(response) = std::mem::replace(&mut flow.response, before) else {
        return reply;
    };
    Reply {
        headers: response.head.headers.clone(),
        body: response.body().cloned().unwrap_or_default(),
        ..reply
    }
}

/// Notes in the flow which rule acted on it.
fn note(flow: &mut Flow, rule: &Rule) {
    let text = format!("{}: {}", rule.action(), rule.name());
    debug!(flow = %flow.id, rule = text, "a rule acts");
    let entry = (RULE.to_owned(), text);
    if !flow.metadata.contains(&entry) {
        flow.metadata.push(entry);
    }
}

fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

fn refuse(status: u16) -> Step {
    match status {
        CUT => Step::Drop,
        status => Step::respond(blocked(status)),
    }
}

/// A rule that can't do what it says: the request goes nowhere.
fn broken(rule: &Rule, why: &str) -> Step {
    warn!(rule = rule.name(), "{why}");
    let text = format!("Tollgate: the rule {} can't act: {why}\n", rule.name());
    Step::respond(Reply::new(502).text(text))
}

/// A body that is too large, and says so before it comes.
fn too_large(status: u16, rule: &Rule, limit: u64) -> Step {
    let whose = match status {
        413 => "request",
        _ => "response",
    };
    let text = format!(
        "Tollgate: the body of the {whose} is larger than the {limit} bytes that {} allows\n",
        rule.name()
    );
    Step::respond(Reply::new(status).text(text))
}

/// How many bytes the body of a response has, where that is known.
fn response_length(flow: &Flow) -> Option<u64> {
    let response = flow.response.as_ref()?;
    if flow.request.method() == b"HEAD" || matches!(response.status(), 100..=199 | 204 | 304) {
        return None;
    }
    match response.body() {
        Some(body) => Some(body.len() as u64),
        None => response.headers().content_length(),
    }
}

/// A budget's refusal: 429, and when to come again.
fn used_up(rule: &Rule, exhausted: Exhausted) -> Step {
    let seconds = exhausted.0.as_secs().saturating_add(1).to_string();
    let text = format!("Tollgate: the budget of {} is used up\n", rule.name());
    let reply = Reply::new(429).text(text);
    Step::respond(match reply.clone().header("Retry-After", &seconds) {
        Ok(reply) => reply,
        Err(_) => reply,
    })
}

fn redirected(status: u16, location: &[u8]) -> Result<Reply, String> {
    let mut reply = Reply::new(status);
    reply
        .headers
        .append(b"Location", location)
        .map_err(|_| "what it redirects to can't stand in a header".to_owned())?;
    Ok(reply)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{flow, respond};
    use tollgate_flow::HttpVersion;

    fn rules(text: &str) -> Rules {
        Rules::new(RuleSet::parse(text, "rules.toml", ".".as_ref()).unwrap())
    }

    fn data(rules: &Rules, flow: &mut Flow, direction: Direction, length: usize) -> Step {
        let data = vec![b'x'; length];
        let piece = Piece {
            direction,
            data: &data,
            last: false,
        };
        rules.data(flow, piece)
    }

    fn status(step: Step) -> u16 {
        match step {
            Step::Respond(reply) => reply.status,
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn what_budgets_have_come_to_is_counted() {
        let text = "[[rule]]\nbudget = { requests = 2, upload = \"1k\", per = \"1h\" }\n";
        let rules = rules(text);
        let ask = || {
            let mut flow = flow("POST", "http://host/");
            rules.interest(&flow);
            let step = rules.request(&mut flow);
            (flow, step)
        };
        let (mut first, step) = ask();
        assert!(matches!(step, Step::Continue));
        let step = data(&rules, &mut first, Direction::Request, 1000);
        assert!(matches!(step, Step::Continue));
        let step = data(&rules, &mut first, Direction::Request, 1000);
        assert!(matches!(step, Step::Close(_)));
        assert_eq!(status(ask().1), 429);
        // It counts on with other rules.
        rules.replace(RuleSet::parse(text, "rules.toml", ".".as_ref()).unwrap());
        assert!(matches!(ask().1, Step::Continue));
        let counters = [
            ("budget_requests", 3),
            ("budget_refused", 1),
            ("budget_cut", 1),
        ];
        assert_eq!(rules.counters(), counters);
    }

    #[test]
    fn a_body_is_as_large_as_its_limit_at_most() {
        use Direction::{Request, Response};
        let rules = rules(
            "[[rule]]\nwhen = \"~d small\"\nbody_limit = \"100b\"\n[[rule]]\nbody_limit = \"1k\"\n",
        );
        let begun = |url: &str, length: Option<&str>| {
            let mut flow = flow("POST", url);
            let (name, value) = match length {
                Some(length) => ("Content-Length", length),
                None => ("Transfer-Encoding", "chunked"),
            };
            let headers = flow.request.headers_mut();
            headers.append(name.as_bytes(), value.as_bytes()).unwrap();
            let interest = rules.interest(&flow);
            assert!(interest.contains(Interest::REQUEST | Interest::RESPONSE));
            assert!(interest.contains(Interest::RESPONSE_DATA));
            assert_eq!(interest.contains(Interest::REQUEST_DATA), length.is_none());
            let step = rules.request(&mut flow);
            (flow, step)
        };
        for (url, length, refused) in [
            ("http://small/", "100", false),
            ("http://small/", "101", true),
            ("http://other/", "1024", false),
            ("http://other/", "1025", true),
        ] {
            let (_, step) = begun(url, Some(length));
            match refused {
                true => assert_eq!(status(step), 413, "{url} {length}"),
                false => assert!(matches!(step, Step::Continue), "{url} {length}"),
            }
        }
        // What doesn't say its length is cut where it goes beyond.
        for direction in [Request, Response] {
            let (mut flow, step) = begun("http://small/", None);
            assert!(matches!(step, Step::Continue));
            respond(&mut flow, 200, &[]);
            assert!(matches!(rules.response(&mut flow), Step::Continue));
            for length in [60, 40, 0] {
                let step = data(&rules, &mut flow, direction, length);
                assert!(matches!(step, Step::Continue), "{step:?}");
            }
            let step = data(&rules, &mut flow, direction, 1);
            assert!(matches!(step, Step::Close(_)), "{step:?}");
        }
        // Over HTTP/2 a GET may have a body, and needn't say so.
        let mut hidden = flow("GET", "http://small/");
        hidden.request.version = HttpVersion::Http2;
        assert!(rules.interest(&hidden).contains(Interest::REQUEST_DATA));
        assert!(matches!(rules.request(&mut hidden), Step::Continue));
        let step = data(&rules, &mut hidden, Request, 101);
        assert!(matches!(step, Step::Close(_)), "{step:?}");
        for (method, length, refused) in [
            ("GET", "100", false),
            ("GET", "101", true),
            ("HEAD", "101", false),
        ] {
            let mut flow = flow(method, "http://small/");
            rules.interest(&flow);
            assert!(matches!(rules.request(&mut flow), Step::Continue));
            respond(&mut flow, 200, &[("Content-Length", length)]);
            let step = rules.response(&mut flow);
            match refused {
                true => assert_eq!(status(step), 502, "{method} {length}"),
                false => assert!(matches!(step, Step::Continue), "{method} {length}"),
            }
        }
    }

    /// A flow that became a WebSocket, and that the rules have begun with.
    fn socket(rules: &Rules, url: &str) -> Flow {
        let mut flow = flow("GET", url);
        let headers = flow.request.headers_mut();
        headers.append(b"Connection", b"Upgrade").unwrap();
        headers.append(b"Upgrade", b"websocket").unwrap();
        assert!(rules.interest(&flow).contains(Interest::EDIT_MESSAGES));
        assert!(matches!(rules.request(&mut flow), Step::Continue));
        respond(&mut flow, 101, &[("Upgrade", "websocket")]);
        flow
    }

    fn pass(
        rules: &Rules,
        flow: &mut Flow,
        from: Direction,
        kind: MessageKind<'_>,
        data: &[u8],
    ) -> String {
        pass_one(rules, flow, from, kind, data, false)
    }

    fn pass_one(
        rules: &Rules,
        flow: &mut Flow,
        from: Direction,
        kind: MessageKind<'_>,
        data: &[u8],
        injected: bool,
    ) -> String {
        let message = Message {
            direction: from,
            sequence: 0,
            kind,
            data,
            injected,
        };
        match rules.message(flow, message) {
            Step::Continue => "as it is".to_owned(),
            Step::Replace(data) => String::from_utf8_lossy(&data).into_owned(),
            Step::Drop => "dropped".to_owned(),
            Step::Close(reason) => format!("closed: {reason}"),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn rules_act_on_messages_in_their_order() {
        use Direction::{Request, Response};
        let rules = rules(
            r#"
            [[rule]]
            message = { from = "client", replace = 'secret-(\d)', with = '[\1]' }
            [[rule]]
            when = "~bq secret & ~c 101"
            message = { drop = true }
            [[rule]]
            name = "no rm"
            when = "~bs rm"
            message = { close = "not here" }
            [[rule]]
            when = '~b ^\[1\]$'
            message = { replace = '1', with = 'one' }
            [[rule]]
            when = "~d other.example"
            message = { drop = true }
            "#,
        );
        let mut flow = socket(&rules, "https://chat.example/ws");
        for (from, data, becomes) in [
            (Request, "hello", "as it is"),
            (Request, "a secret-7", "a [7]"),
            // What an earlier rule made of it is what a later one sees.
            (Request, "secret-1", "[one]"),
            (Request, "a secret", "dropped"),
            (Response, "a secret-7", "as it is"),
            (Request, "rm -rf", "as it is"),
            (Response, "rm -rf", "closed: not here"),
        ] {
            let text = pass(&rules, &mut flow, from, MessageKind::Text, data.as_bytes());
            assert_eq!(text, becomes, "{from:?} {data}");
            let binary = pass(
                &rules,
                &mut flow,
                from,
                MessageKind::Binary,
                data.as_bytes(),
            );
            assert_eq!(binary, becomes, "{from:?} {data}");
            let bytes = data.as_bytes();
            let ours = pass_one(&rules, &mut flow, from, MessageKind::Text, bytes, true);
            assert_eq!(ours, "as it is");
            for kind in [MessageKind::Ping, MessageKind::Close { code: None }] {
                let control = pass(&rules, &mut flow, from, kind, data.as_bytes());
                assert_eq!(control, "as it is");
            }
        }
        assert!(
            flow.metadata
                .contains(&(RULE.to_owned(), "message: no rm".to_owned()))
        );
    }

    #[test]
    fn a_text_that_is_none_any_more_ends_its_websocket() {
        let rules = rules(r#"rule = [{ message = { replace = '\xc3', with = '' } }]"#);
        let mut flow = socket(&rules, "https://chat.example/ws");
        let mut pass = |kind| {
            pass(
                &rules,
                &mut flow,
                Direction::Response,
                kind,
                "a\u{e9}b".as_bytes(),
            )
        };
        assert_eq!(pass(MessageKind::Binary), "a\u{fffd}b");
        assert_eq!(
            pass(MessageKind::Text),
            "closed: a rule made a text that is none"
        );
    }

    #[test]
    fn what_is_no_websocket_and_what_no_rule_is_for_costs_nothing() {
        let rules = rules("[[rule]]\nwhen = \"~d chat.example\"\nmessage = { drop = true }\n");
        let plain = flow("GET", "https://chat.example/ws");
        assert_eq!(rules.interest(&plain), Interest::NONE);
        let mut other = flow("GET", "https://other.example/ws");
        other
            .request
            .headers_mut()
            .append(b"Upgrade", b"websocket")
            .unwrap();
        assert_eq!(rules.interest(&other), Interest::NONE);
    }
}

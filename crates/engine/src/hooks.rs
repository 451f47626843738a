//! Calls interceptors, and turns what they answer into what the wire does.

mod messages;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::MissedTickBehavior;
use tollgate_flow::{
    ConnectDecision, ConnectionInfo, Direction, ErrorClass, Flow, FlowError, HeaderList,
    Interceptor, Interest, Message, MessageKind, OnFailure, Outcome, Piece, Reply, Side, Step,
    Target, TlsDecision, TlsFailure, UNREAD_MESSAGES,
};
use tollgate_wire::coding::{Decoder, OutputLimit};
use tollgate_wire::framing::FramingError;
use tollgate_wire::tls::ClientHello;
use tollgate_wire::websocket::MAX_CONTROL_PAYLOAD;
use tracing::{debug, error, warn};

use crate::config::Limits;
use crate::metrics::{Counters, count};

use messages::Messages;

/// Steps that one hook may take in a row before it counts as stuck.
const MAX_STEPS: usize = 16;
/// The shortest time between two signs of life.
const SHORTEST_SIGN: Duration = Duration::from_millis(10);

/// The interceptors of a proxy, in order.
#[derive(Clone, Default)]
pub(crate) struct Hooks(Arc<[Arc<dyn Interceptor>]>);

impl Hooks {
    pub fn new(interceptors: Vec<Arc<dyn Interceptor>>) -> Self {
        Self(interceptors.into())
    }

    /// Each of them.
    pub fn all(&self) -> impl Iterator<Item = &dyn Interceptor> {
        self.0.iter().map(|hook| &**hook)
    }

    #[cfg(feature = "http2")]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn connection_opened(&self, connection: &ConnectionInfo, counters: &Counters) {
        for hook in &*self.0 {
            guard(&**hook, counters, || hook.connection_opened(connection));
        }
    }

    pub fn connection_closed(&self, connection: &ConnectionInfo, counters: &Counters) {
        for hook in &*self.0 {
            guard(&**hook, counters, || hook.connection_closed(connection));
        }
    }

    pub fn connect(
        &self,
        target: &Target,
        connection: &ConnectionInfo,
        counters: &Counters,
    ) -> ConnectDecision {
        for hook in &*self.0 {
            match guard(&**hook, counters, || hook.connect(target, connection)) {
                Some(ConnectDecision::Default) => {}
                Some(decision) => return decision,
                None if hook.on_failure() == OnFailure::Closed => return ConnectDecision::Block,
                None => {}
            }
        }
        ConnectDecision::Default
    }

    pub fn tls(
        &self,
        hello: &ClientHello,
        connection: &ConnectionInfo,
        counters: &Counters,
    ) -> TlsDecision {
        for hook in &*self.0 {
            match guard(&**hook, counters, || hook.tls(hello, connection)) {
                Some(TlsDecision::Default) => {}
                Some(decision) => return decision,
                None if hook.on_failure() == OnFailure::Closed => return TlsDecision::Block,
                None => {}
            }
        }
        TlsDecision::Default
    }

    pub fn tls_failed(
        &self,
        failure: &TlsFailure,
        connection: &ConnectionInfo,
        counters: &Counters,
    ) {
        for hook in &*self.0 {
            guard(&**hook, counters, || hook.tls_failed(failure, connection));
        }
    }
}

/// Runs a hook; `None` when it panicked.
fn guard<T>(hook: &dyn Interceptor, counters: &Counters, f: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => Some(value),
        Err(_) => {
            count(&counters.hook_panics);
            // A name that panics too is no reason to end the worker.
            let name = catch_unwind(AssertUnwindSafe(|| hook.name().to_owned()));
            error!(interceptor = name.unwrap_or_default(), "a hook panicked");
            None
        }
    }
}

/// What comes of a round of hooks.
#[derive(Debug)]
pub(crate) enum Verdict {
    Continue,
    Respond(Box<Reply>),
    Drop,
    Close(String),
    Failed(FlowError),
}

/// What comes of offering a piece.
#[derive(Debug)]
pub(crate) enum PieceVerdict {
    /// It goes on as it is.
    Pass,
    /// These bytes go on instead (empty: nothing does).
    Replace(Bytes),
    /// The flow ends here.
    End(Verdict),
}

/// What happens while a piece is offered.
pub(crate) enum Offered {
    /// A hook waits, and this shall tell the client that it does.
    Alive(Bytes),
    /// It was decided about.
    Verdict(PieceVerdict),
}

/// A piece that is being offered. As a future it tells the client nothing while a hook waits.
pub(crate) struct Offering<'a> {
    // Boxed for the same reason as the heads' hooks.
    verdict: Pin<Box<dyn Future<Output = PieceVerdict> + Send + 'a>>,
    alive: Option<SignOfLife>,
}

impl Offering<'_> {
    /// What happens next. Not to be asked again after a verdict.
    pub async fn next(&mut self) -> Offered {
        poll_fn(|cx| {
            if let Poll::Ready(verdict) = self.verdict.as_mut().poll(cx) {
                return Poll::Ready(Offered::Verdict(verdict));
            }
            match self.alive.as_ref().and_then(SignOfLife::take) {
                Some(bytes) => Poll::Ready(Offered::Alive(bytes)),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Future for Offering<'_> {
    type Output = PieceVerdict;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PieceVerdict> {
        self.verdict.as_mut().poll(cx)
    }
}

/// Where a hold leaves what the client is to get while it waits.
#[derive(Clone, Default)]
struct SignOfLife(Arc<Mutex<Option<Bytes>>>);

impl SignOfLife {
    fn put(&self, bytes: Bytes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    fn take(&self) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What comes of offering a message.
#[derive(Debug)]
pub(crate) enum MessageVerdict {
    /// It goes on as it is.
    Pass,
    /// The message goes on with this content.
    Replace(Bytes),
    /// It doesn't go on.
    Drop,
    /// The flow ends here.
    End(Verdict),
}

/// A flow that both directions of an exchange work on. Locked only while a hook runs.
pub(crate) type SharedFlow<'a> = Mutex<&'a mut Flow>;

/// Locks a flow. A hook that panicked while it held the lock has been dealt with already.
pub(crate) fn lock<'a, 'f>(flow: &'a SharedFlow<'f>) -> MutexGuard<'a, &'f mut Flow> {
    flow.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One flow's way through the interceptors.
pub(crate) struct Run {
    hooks: Hooks,
    interests: Vec<Interest>,
    /// All interests together.
    any: Interest,
    /// Who of them, by position, has given up editing the response's body. Those behind the 64th can't.
    gave_up: AtomicU64,
}

impl Run {
    /// Asks every interceptor for its interest.
    pub fn begin(hooks: &Hooks, flow: &Flow, counters: &Counters) -> Self {
        let mut any = Interest::NONE;
        let interests = hooks
            .0
            .iter()
            .map(|hook| {
                let interest = match guard(&**hook, counters, || hook.interest(flow)) {
                    Some(interest) => interest,
                    // It is asked again in `request`, where its failure has an answer.
                    None if hook.on_failure() == OnFailure::Closed => Interest::REQUEST,
                    None => Interest::NONE,
                };
                any |= interest;
                interest
            })
            .collect();
        Self {
            hooks: hooks.clone(),
            interests,
            any,
            gave_up: AtomicU64::new(0),
        }
    }

    /// Nobody's.
    pub fn none() -> Self {
        Self {
            hooks: Hooks::default(),
            interests: Vec::new(),
            any: Interest::NONE,
            gave_up: AtomicU64::new(0),
        }
    }

    pub fn wants(&self, interest: Interest) -> bool {
        self.any.contains(interest)
    }

    /// Whether anybody wants anything of this flow.
    #[cfg(feature = "http2")]
    pub fn wants_anything(&self) -> bool {
        !self.any.is_empty()
    }

    /// Whether pieces of a body are to be offered.
    pub fn watches(&self, direction: Direction) -> bool {
        self.asks(direction, watch_flag(direction))
    }

    /// Whether pieces of a body may be changed.
    pub fn edits(&self, direction: Direction) -> bool {
        self.asks(direction, edit_flag(direction))
    }

    fn asks(&self, direction: Direction, flag: Interest) -> bool {
        self.any.contains(flag)
            && (direction == Direction::Request
                || self.gave_up.load(Ordering::Relaxed) == 0
                || self
                    .interests
                    .iter()
                    .enumerate()
                    .any(|(at, wants)| wants.contains(flag) && !self.has_given_up(at)))
    }

    fn has_given_up(&self, at: usize) -> bool {
        at < 64 && self.gave_up.load(Ordering::Relaxed) >> at & 1 == 1
    }

    pub async fn request(&self, flow: &SharedFlow<'_>, counters: &Counters) -> Verdict {
        self.head(flow, counters, Interest::REQUEST, |hook, flow| {
            hook.request(flow)
        })
        .await
    }

    pub async fn response(&self, flow: &SharedFlow<'_>, counters: &Counters) -> Verdict {
        let verdict = self
            .head(flow, counters, Interest::RESPONSE, |hook, flow| {
                hook.response(flow)
            })
            .await;
        if self.any.contains(Interest::EDIT_RESPONSE_DATA) {
            for (at, (hook, wants)) in self.hooks.0.iter().zip(&self.interests).enumerate() {
                if at < 64
                    && wants.contains(Interest::EDIT_RESPONSE_DATA)
                    && guard(&**hook, counters, || hook.edits_response(&lock(flow))) == Some(false)
                {
                    self.gave_up.fetch_or(1 << at, Ordering::Relaxed);
                }
            }
        }
        verdict
    }

    async fn head(
        &self,
        flow: &SharedFlow<'_>,
        counters: &Counters,
        interest: Interest,
        call: impl Fn(&dyn Interceptor, &mut Flow) -> Step + Send + Sync,
    ) -> Verdict {
        if !self.wants(interest) {
            return Verdict::Continue;
        }
        // Boxed, so that the flows that nobody is interested in don't carry its state.
        Box::pin(self.call_heads(flow, counters, interest, call)).await
    }

    async fn call_heads(
        &self,
        flow: &SharedFlow<'_>,
        counters: &Counters,
        interest: Interest,
        call: impl Fn(&dyn Interceptor, &mut Flow) -> Step + Send + Sync,
    ) -> Verdict {
        for (hook, wants) in self.hooks.0.iter().zip(&self.interests) {
            if !wants.contains(interest) {
                continue;
            }
            let step = guard(&**hook, counters, || call(&**hook, &mut lock(flow)));
            let step = follow(&**hook, step, flow, counters).await;
            match settle(&**hook, step) {
                Verdict::Continue => {}
                verdict => return verdict,
            }
        }
        Verdict::Continue
    }

    /// One body's way through the interceptors; `limit` bounds what it may decode to.
    pub fn body<'a, 'f>(
        &'a self,
        flow: &'a SharedFlow<'f>,
        direction: Direction,
        limits: &Limits,
        counters: &'a Counters,
    ) -> BodyRun<'a, 'f> {
        let mut body = BodyRun {
            run: self,
            flow,
            direction,
            watched: self.watches(direction),
            decoding: None,
            messages: None,
            alive: None,
            counters,
        };
        if direction == Direction::Response && self.edits(direction) {
            body.alive = Some(SignOfLife::default());
        }
        if self.wants(Interest::MESSAGES) {
            let found = Messages::of(&lock(flow), direction, limits.message_bytes);
            body.messages = found.map(Box::new);
        }
        if body.messages.is_some() || (body.watched && self.wants(Interest::DECODED)) {
            body.decoding = decoding(&lock(flow), direction, limits.decoded_bytes);
        }
        body.watched |= body.messages.is_some();
        body
    }

    /// Offers a message of a WebSocket to those who want it. The close frame can't be changed.
    pub async fn message(
        &self,
        flow: &SharedFlow<'_>,
        message: Message<'_>,
        counters: &Counters,
    ) -> MessageVerdict {
        let mut changed: Option<Bytes> = None;
        for (hook, wants) in self.hooks.0.iter().zip(&self.interests) {
            if !wants.contains(Interest::MESSAGES) {
                continue;
            }
            let view = Message {
                data: changed.as_deref().unwrap_or(message.data),
                ..message
            };
            let step = guard(&**hook, counters, || hook.message(&mut lock(flow), view));
            if matches!(step, Some(Step::Continue)) {
                continue;
            }
            let may_edit = wants.contains(Interest::EDIT_MESSAGES)
                && !matches!(message.kind, MessageKind::Close { .. });
            let verdict = match follow(&**hook, step, flow, counters).await {
                Some(Step::Replace(bytes)) if may_edit => {
                    if fits(&message.kind, &bytes) {
                        changed = Some(bytes);
                        Verdict::Continue
                    } else {
                        warn!(
                            interceptor = hook.name(),
                            "replaces a message by what its kind can't carry"
                        );
                        settle(&**hook, None)
                    }
                }
                Some(Step::Drop) if may_edit => return MessageVerdict::Drop,
                Some(Step::Replace(_) | Step::Drop) => {
                    warn!(
                        interceptor = hook.name(),
                        "changes a message that it may not: ignored"
                    );
                    Verdict::Continue
                }
                step => settle(&**hook, step),
            };
            if !matches!(verdict, Verdict::Continue) {
                return MessageVerdict::End(verdict);
            }
        }
        changed.map_or(MessageVerdict::Pass, MessageVerdict::Replace)
    }

    /// The last call for a flow.
    pub fn end(&self, flow: &Flow, outcome: &Outcome, counters: &Counters) {
        for (hook, wants) in self.hooks.0.iter().zip(&self.interests) {
            if !wants.is_empty() {
                guard(&**hook, counters, || hook.end(flow, outcome));
            }
        }
    }
}

/// One body's way through the interceptors.
pub(crate) struct BodyRun<'a, 'f> {
    run: &'a Run,
    flow: &'a SharedFlow<'f>,
    pub direction: Direction,
    /// Somebody wants its pieces.
    pub watched: bool,
    decoding: Option<Box<Decoding>>,
    messages: Option<Box<Messages>>,
    /// Of a response that somebody may edit.
    alive: Option<SignOfLife>,
    counters: &'a Counters,
}

/// A body decoded for observers: once, for all who want it so.
struct Decoding {
    /// `None` once it failed or passed its bound: observers see no more.
    decoder: Option<Decoder>,
    /// That it did has been counted.
    counted: bool,
    out: Vec<u8>,
}

impl<'f> BodyRun<'_, 'f> {
    /// The flow that the body belongs to.
    pub fn flow(&self) -> MutexGuard<'_, &'f mut Flow> {
        lock(self.flow)
    }

    /// Puts the trailers into the flow, where hooks look for them at the last piece.
    pub fn put_trailers(&self, trailers: Option<&HeaderList>) {
        let Some(trailers) = trailers.filter(|_| self.watched) else {
            return;
        };
        let mut flow = lock(self.flow);
        match self.direction {
            Direction::Request => flow.request.trailers = Some(trailers.clone()),
            Direction::Response => {
                if let Some(response) = &mut flow.response {
                    response.trailers = Some(trailers.clone());
                }
            }
        }
    }

    /// Offers a piece to those who want it. `last` comes once, with no data.
    pub fn data<'p>(&'p mut self, data: &'p [u8], last: bool) -> Offering<'p> {
        Offering {
            alive: self.alive.clone(),
            verdict: Box::pin(self.offer(data, last)),
        }
    }

    async fn offer(&mut self, data: &[u8], last: bool) -> PieceVerdict {
        let (watch, edit) = (watch_flag(self.direction), edit_flag(self.direction));
        if let Some(decoding) = &mut self.decoding {
            decoding.feed(data, last, self.counters);
        }
        if let Some(verdict) = self.offer_messages(data, last).await {
            return PieceVerdict::End(verdict);
        }
        let counters = self.counters;
        let decoded = self.decoding.as_ref().map(|d| d.out.as_slice());
        let mut changed: Option<Bytes> = None;
        let given_up = |at| self.direction == Direction::Response && self.run.has_given_up(at);
        for (at, (hook, wants)) in self.run.hooks.0.iter().zip(&self.run.interests).enumerate() {
            if !wants.contains(watch) || given_up(at) {
                continue;
            }
            let may_edit = wants.contains(edit);
            // Observers see what came; editors what those before them made of it.
            let view = match decoded {
                Some(decoded) if wants.contains(Interest::DECODED) && !may_edit => decoded,
                _ => changed.as_deref().unwrap_or(data),
            };
            let piece = |data, last| Piece {
                direction: self.direction,
                data,
                last,
            };
            // The end of a decoder may bring more data.
            let parts = [
                (!view.is_empty()).then(|| piece(view, false)),
                last.then(|| piece(&[], true)),
            ];
            // What the parts become together; `None` as long as nothing is replaced.
            let mut replaced: Option<Bytes> = None;
            let mut passed: &[u8] = &[];
            for part in parts.into_iter().flatten() {
                let step = guard(&**hook, counters, || hook.data(&mut lock(self.flow), part));
                // One behind it that edits, too, may have kept the beginning of something.
                let mut behind = self.run.interests.iter().skip(at + 1);
                let is_last = may_edit && !behind.any(|wants| wants.contains(edit));
                let alive = self.alive.as_ref().filter(|_| is_last);
                match follow_alive(&**hook, step, self.flow, alive, counters).await {
                    Some(Step::Continue) => match &mut replaced {
                        None => passed = part.data,
                        Some(before) if !part.data.is_empty() => {
                            *before = [before.as_ref(), part.data].concat().into();
                        }
                        Some(_) => {}
                    },
                    Some(Step::Replace(bytes)) if may_edit => {
                        let before = replaced.as_deref().unwrap_or(passed);
                        replaced = Some(match before.is_empty() {
                            true => bytes,
                            false => [before, &bytes].concat().into(),
                        });
                    }
                    Some(Step::Drop) if may_edit => {
                        let before = replaced.as_deref().unwrap_or(passed);
                        replaced = Some(Bytes::copy_from_slice(before));
                    }
                    Some(Step::Replace(_) | Step::Drop) => warn!(
                        interceptor = hook.name(),
                        "changes a body without an EDIT interest: ignored"
                    ),
                    step => match settle(&**hook, step) {
                        Verdict::Continue => {}
                        verdict => return PieceVerdict::End(verdict),
                    },
                }
            }
            changed = replaced.or(changed);
        }
        changed.map_or(PieceVerdict::Pass, PieceVerdict::Replace)
    }

    /// Offers the messages that a piece completes. A hook that waits holds the piece.
    async fn offer_messages(&mut self, data: &[u8], last: bool) -> Option<Verdict> {
        let messages = self.messages.as_mut()?;
        let (data, unreadable) = match &self.decoding {
            Some(decoding) => (decoding.out.as_slice(), decoding.decoder.is_none()),
            None => (data, false),
        };
        let (run, flow, counters) = (self.run, self.flow, self.counters);
        let mut steps = Vec::new();
        let mut show = |message: Message<'_>| {
            for (hook, wants) in run.hooks.0.iter().zip(&run.interests) {
                if !wants.contains(Interest::MESSAGES) {
                    continue;
                }
                match guard(&**hook, counters, || hook.message(&mut lock(flow), message)) {
                    Some(Step::Continue) => {}
                    step => steps.push((hook, step)),
                }
            }
        };
        let split = messages.feed(data, last && !unreadable, &mut show);
        let failed = match split {
            Err(FramingError::NotAnArray) => Some(None),
            Err(error) => {
                count(&counters.observer_truncations);
                Some(Some(error.to_string()))
            }
            Ok(()) if unreadable => Some(Some("its content coding can't be undone".to_owned())),
            Ok(()) => None,
        };
        if let Some(why) = failed {
            self.messages = None;
            if let Some(why) = why {
                mark_unread(flow, whose(self.direction), &why);
            }
        }
        for (hook, step) in steps {
            match follow(&**hook, step, flow, counters).await {
                Some(Step::Replace(_) | Step::Drop) => warn!(
                    interceptor = hook.name(),
                    "changes a message within a body: ignored"
                ),
                step => match settle(&**hook, step) {
                    Verdict::Continue => {}
                    verdict => return Some(verdict),
                },
            }
        }
        None
    }
}

fn watch_flag(direction: Direction) -> Interest {
    match direction {
        Direction::Request => Interest::REQUEST_DATA,
        Direction::Response => Interest::RESPONSE_DATA,
    }
}

fn edit_flag(direction: Direction) -> Interest {
    match direction {
        Direction::Request => Interest::EDIT_REQUEST_DATA,
        Direction::Response => Interest::EDIT_RESPONSE_DATA,
    }
}

/// The side that bytes of a direction come from, for marks.
fn whose(direction: Direction) -> &'static str {
    match direction {
        Direction::Request => "client",
        Direction::Response => "origin",
    }
}

/// Marks a flow: interceptors see no more of its messages.
pub(crate) fn mark_unread(flow: &SharedFlow<'_>, whose: &str, why: &str) {
    debug!(whose, why, "messages pass unread");
    let mark = (UNREAD_MESSAGES.to_owned(), format!("{whose}: {why}"));
    let mut flow = lock(flow);
    if !flow.metadata.contains(&mark) {
        flow.metadata.push(mark);
    }
}

impl Decoding {
    fn feed(&mut self, data: &[u8], last: bool, counters: &Counters) {
        self.out.clear();
        if let Some(decoder) = &mut self.decoder {
            let result = if last {
                decoder.finish(&mut self.out)
            } else {
                decoder.feed(data, &mut self.out)
            };
            if let Err(error) = result {
                warn!(%error, "observers see no more of a body");
                self.decoder = None;
            }
        }
        if self.decoder.is_none() && !std::mem::replace(&mut self.counted, true) {
            count(&counters.observer_truncations);
        }
    }
}

fn decoding(flow: &Flow, direction: Direction, limit: u64) -> Option<Box<Decoding>> {
    let headers = messages::headers(flow, direction)?;
    let limit = OutputLimit {
        total: limit,
        per_feed: 32 * 1024 * 1024,
    };
    let decoder = match Decoder::new(headers.get_all("content-encoding"), limit) {
        Ok(decoder) => Some(decoder?),
        Err(error) => {
            warn!(%error, "a body can't be decoded for observers");
            None
        }
    };
    Some(Box::new(Decoding {
        decoder,
        counted: false,
        out: Vec::new(),
    }))
}

/// Whether a frame of this kind can carry these bytes.
fn fits(kind: &MessageKind<'_>, bytes: &[u8]) -> bool {
    match kind {
        MessageKind::Text => std::str::from_utf8(bytes).is_ok(),
        MessageKind::Ping | MessageKind::Pong => bytes.len() <= MAX_CONTROL_PAYLOAD,
        _ => true,
    }
}

/// Follows a step to one that ends the hook: waits, and applies edits.
async fn follow(
    hook: &dyn Interceptor,
    step: Option<Step>,
    flow: &SharedFlow<'_>,
    counters: &Counters,
) -> Option<Step> {
    follow_alive(hook, step, flow, None, counters).await
}

/// The same, with signs of life for a client that waits.
async fn follow_alive(
    hook: &dyn Interceptor,
    mut step: Option<Step>,
    flow: &SharedFlow<'_>,
    alive: Option<&SignOfLife>,
    counters: &Counters,
) -> Option<Step> {
    for _ in 0..MAX_STEPS {
        step = match step {
            Some(Step::Hold(hold)) => wait(hold, alive, counters).await,
            Some(Step::Edit(edit)) => guard(hook, counters, || (edit.0)(&mut lock(flow))),
            _ => break,
        };
    }
    step
}

/// Waits for a hold. `None`: its future panicked.
async fn wait(
    hold: tollgate_flow::Hold,
    alive: Option<&SignOfLife>,
    counters: &Counters,
) -> Option<Step> {
    let mut future = hold.future;
    let mut signs = alive.zip(hold.keep_alive).map(|(alive, keep)| {
        let mut ticks = tokio::time::interval(keep.every.max(SHORTEST_SIGN));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is now.
        ticks.reset();
        (alive, keep.bytes, ticks)
    });
    let guarded = poll_fn(|cx| {
        if let Some((alive, bytes, ticks)) = &mut signs {
            while ticks.poll_tick(cx).is_ready() {
                alive.put(bytes.clone());
            }
        }
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))).map_or_else(
            |_| {
                count(&counters.hook_panics);
                error!("what a hook waits for panicked");
                Poll::Ready(None)
            },
            |poll| poll.map(Some),
        )
    });
    match tokio::time::timeout(hold.deadline, guarded).await {
        Ok(step) => step,
        Err(_) => {
            count(&counters.hold_timeouts);
            Some(*hold.at_deadline)
        }
    }
}

fn settle(hook: &dyn Interceptor, step: Option<Step>) -> Verdict {
    match step {
        Some(Step::Continue | Step::Replace(_)) => Verdict::Continue,
        Some(Step::Respond(reply)) => Verdict::Respond(reply),
        Some(Step::Drop) => Verdict::Drop,
        Some(Step::Close(reason)) => Verdict::Close(reason.into_owned()),
        None | Some(Step::Hold(_) | Step::Edit(_)) => match hook.on_failure() {
            OnFailure::Open => Verdict::Continue,
            OnFailure::Closed => Verdict::Failed(FlowError::new(
                Side::Proxy,
                ErrorClass::Interceptor,
                format!("the interceptor `{}` failed", hook.name()),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::time::Instant;
    use tollgate_flow::{ConnectionId, KeepAlive};

    use super::*;

    /// Takes 35 seconds for a piece, and says each ten that it does.
    struct Waits;

    impl Interceptor for Waits {
        fn interest(&self, _: &Flow) -> Interest {
            Interest::EDIT_RESPONSE_DATA | Interest::EDIT_REQUEST_DATA
        }

        fn data(&self, _: &mut Flow, _: Piece<'_>) -> Step {
            let decided = async {
                tokio::time::sleep(Duration::from_secs(35)).await;
                Step::Replace("decided".into())
            };
            Step::hold(decided, Duration::from_secs(60), Step::Drop).keeping_alive(Some(
                KeepAlive {
                    every: Duration::from_secs(10),
                    bytes: "alive".into(),
                },
            ))
        }
    }

    struct Edits;

    impl Interceptor for Edits {
        fn interest(&self, _: &Flow) -> Interest {
            Interest::EDIT_RESPONSE_DATA
        }
    }

    /// When signs of life were given, in seconds, and what came after how many.
    async fn offered(hooks: Vec<Arc<dyn Interceptor>>, direction: Direction) -> (Vec<u64>, u64) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let connection = ConnectionInfo::new(ConnectionId(1), any, any, None);
        let mut flow = Flow::new(Arc::new(connection));
        let counters = Counters::default();
        let run = Run::begin(&Hooks::new(hooks), &flow, &counters);
        let flow = Mutex::new(&mut flow);
        let mut body = run.body(&flow, direction, &Limits::default(), &counters);
        let start = Instant::now();
        let mut signs = Vec::new();
        let mut offering = body.data(b"piece", false);
        loop {
            match offering.next().await {
                Offered::Alive(bytes) => {
                    assert_eq!(bytes, "alive");
                    signs.push(start.elapsed().as_secs());
                }
                Offered::Verdict(PieceVerdict::Replace(bytes)) => {
                    assert_eq!(bytes, "decided");
                    return (signs, start.elapsed().as_secs());
                }
                Offered::Verdict(verdict) => panic!("{verdict:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_gets_signs_of_life_until_it_is_decided() {
        let told = offered(vec![Arc::new(Waits)], Direction::Response).await;
        assert_eq!(told, (vec![10, 20, 30], 35));
        let told = offered(vec![Arc::new(Edits), Arc::new(Waits)], Direction::Response).await;
        assert_eq!(told, (vec![10, 20, 30], 35));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_last_that_edits_an_answer_may_tell_its_client_something() {
        let told = offered(vec![Arc::new(Waits), Arc::new(Edits)], Direction::Response).await;
        assert_eq!(told, (Vec::new(), 35));
        let told = offered(vec![Arc::new(Waits)], Direction::Request).await;
        assert_eq!(told, (Vec::new(), 35));
    }
}

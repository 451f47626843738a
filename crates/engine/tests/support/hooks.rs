//! Interceptors for tests.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use tollgate_flow::{
    ClientHello, ConnectDecision, ConnectionId, ConnectionInfo, Direction, Flow, Interceptor,
    Interest, Message, OnFailure, Outcome, Piece, Step, Target, TlsDecision, TlsFailure,
    UpstreamInfo, WebSocket,
};

use super::PATIENCE;

/// A call of a hook.
#[derive(Clone, Debug)]
pub enum Event {
    Opened,
    Closed(ConnectionId),
    Connect,
    Tls,
    TlsFailed(TlsFailure),
    Request(String),
    Response(u16),
    Data(Direction, Vec<u8>, bool),
    /// Direction, sequence, kind and content of a message.
    Message(Direction, u64, String, Vec<u8>),
    /// The last state of a flow that became a WebSocket, or whose messages could not be read.
    Stream(Option<WebSocket>, Vec<(String, String)>),
    End(String, Outcome, Option<Arc<UpstreamInfo>>),
}

/// Keeps every call, in order, and changes nothing.
pub struct Recorder {
    interest: Interest,
    events: Mutex<Vec<Event>>,
    changed: Condvar,
}

impl Recorder {
    /// With this interest in every flow.
    pub fn new(interest: Interest) -> Arc<Self> {
        Arc::new(Self {
            interest,
            events: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// The calls so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    /// Waits until `n` calls fit, and gives the first `n` of what they were picked as.
    #[track_caller]
    pub fn wait<T>(&self, n: usize, pick: impl Fn(&Event) -> Option<T>) -> Vec<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut events = self.events.lock().unwrap();
        loop {
            let picked: Vec<T> = events.iter().filter_map(&pick).collect();
            if picked.len() >= n {
                return picked;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "only {} of {n} calls: {events:#?}",
                picked.len()
            );
            events = self.changed.wait_timeout(events, left).unwrap().0;
        }
    }

    /// Waits for the ends of `n` flows.
    #[track_caller]
    pub fn ends(&self, n: usize) -> Vec<Outcome> {
        self.wait(n, |event| match event {
            Event::End(_, outcome, _) => Some(outcome.clone()),
            _ => None,
        })
    }

    /// Waits for the closing of `n` connections.
    #[track_caller]
    pub fn closed(&self, n: usize) -> Vec<ConnectionId> {
        self.wait(n, |event| match event {
            Event::Closed(id) => Some(*id),
            _ => None,
        })
    }

    /// Waits for `n` failures of TLS.
    #[track_caller]
    pub fn tls_failures(&self, n: usize) -> Vec<TlsFailure> {
        self.wait(n, |event| match event {
            Event::TlsFailed(failure) => Some(failure.clone()),
            _ => None,
        })
    }

    /// The pieces of bodies seen in one direction, and how often the last came.
    pub fn data(&self, direction: Direction) -> (Vec<Vec<u8>>, usize) {
        let mut pieces = Vec::new();
        let mut last = 0;
        for event in self.events() {
            if let Event::Data(way, data, is_last) = event
                && way == direction
            {
                last += usize::from(is_last);
                if !data.is_empty() {
                    pieces.push(data);
                }
            }
        }
        (pieces, last)
    }

    /// The calls as words, for the order of them.
    pub fn trace(&self) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Opened => "opened".to_owned(),
            Event::Closed(_) => "closed".to_owned(),
            Event::Connect => "connect".to_owned(),
            Event::Tls => "tls".to_owned(),
            Event::TlsFailed(_) => "tls_failed".to_owned(),
            Event::Request(path) => format!("request {path}"),
            Event::Response(status) => format!("response {status}"),
            Event::Data(Direction::Request, _, last) => format!("request data {last}"),
            Event::Data(Direction::Response, _, last) => format!("response data {last}"),
            Event::Message(direction, _, kind, _) => format!("{direction:?} message {kind}"),
            Event::Stream(..) => "stream".to_owned(),
            Event::End(path, outcome, _) => format!("end {path} {:?}", outcome.kind),
        };
        self.events().iter().map(word).collect()
    }

    /// Waits for `n` messages: direction, kind and content.
    #[track_caller]
    pub fn messages(&self, n: usize) -> Vec<(Direction, String, String)> {
        self.wait(n, |event| match event {
            Event::Message(direction, _, kind, data) => {
                let data = String::from_utf8_lossy(data).into_owned();
                Some((*direction, kind.clone(), data))
            }
            _ => None,
        })
    }

    /// Waits for the end of a flow with messages: its WebSocket and its marks.
    #[track_caller]
    pub fn stream(&self) -> (Option<WebSocket>, Vec<(String, String)>) {
        let ended = |event: &Event| match event {
            Event::Stream(websocket, marks) => Some((websocket.clone(), marks.clone())),
            _ => None,
        };
        self.wait(1, ended).remove(0)
    }

    fn record(&self, event: Event) {
        self.events.lock().unwrap().push(event);
        self.changed.notify_all();
    }
}

fn path(flow: &Flow) -> String {
    String::from_utf8_lossy(flow.request.path()).into_owned()
}

impl Interceptor for Recorder {
    fn interest(&self, _: &Flow) -> Interest {
        self.interest
    }
    fn connection_opened(&self, _: &ConnectionInfo) {
        self.record(Event::Opened);
    }
    fn connection_closed(&self, connection: &ConnectionInfo) {
        self.record(Event::Closed(connection.id));
    }
    fn connect(&self, _: &Target, _: &ConnectionInfo) -> ConnectDecision {
        self.record(Event::Connect);
        ConnectDecision::Default
    }
    fn tls(&self, _: &ClientHello, _: &ConnectionInfo) -> TlsDecision {
        self.record(Event::Tls);
        TlsDecision::Default
    }
    fn tls_failed(&self, failure: &TlsFailure, _: &ConnectionInfo) {
        self.record(Event::TlsFailed(failure.clone()));
    }
    fn request(&self, flow: &mut Flow) -> Step {
        self.record(Event::Request(path(flow)));
        Step::Continue
    }
    fn response(&self, flow: &mut Flow) -> Step {
        self.record(Event::Response(flow.response.as_ref().unwrap().status()));
        Step::Continue
    }
    fn data(&self, _: &mut Flow, piece: Piece<'_>) -> Step {
        self.record(Event::Data(
            piece.direction,
            piece.data.to_vec(),
            piece.last,
        ));
        Step::Continue
    }
    fn message(&self, _: &mut Flow, message: Message<'_>) -> Step {
        let injected = if message.injected { "injected " } else { "" };
        self.record(Event::Message(
            message.direction,
            message.sequence,
            format!("{injected}{}", message.kind.code()),
            message.data.to_vec(),
        ));
        Step::Continue
    }
    fn end(&self, flow: &Flow, outcome: &Outcome) {
        if self.interest.contains(Interest::MESSAGES) {
            let websocket = flow.websocket.as_deref().cloned();
            self.record(Event::Stream(websocket, flow.metadata.clone()));
        }
        self.record(Event::End(
            path(flow),
            outcome.clone(),
            flow.upstream.clone(),
        ));
    }
}

type OnFlow = Box<dyn Fn(&mut Flow) -> Step + Send + Sync>;
type OnPiece = Box<dyn Fn(&mut Flow, Piece<'_>) -> Step + Send + Sync>;
type OnMessage = Box<dyn Fn(&mut Flow, Message<'_>) -> Step + Send + Sync>;
type OnConnect = Box<dyn Fn(&Target) -> ConnectDecision + Send + Sync>;
type OnTls = Box<dyn Fn(&ClientHello, &ConnectionInfo) -> TlsDecision + Send + Sync>;

/// An interceptor of closures.
#[derive(Default)]
pub struct Hook {
    interest: Interest,
    fails_open: bool,
    request: Option<OnFlow>,
    response: Option<OnFlow>,
    data: Option<OnPiece>,
    message: Option<OnMessage>,
    connect: Option<OnConnect>,
    tls: Option<OnTls>,
}

impl Hook {
    /// Does nothing, with this interest in every flow.
    pub fn new(interest: Interest) -> Self {
        Self {
            interest,
            ..Self::default()
        }
    }

    /// In `request`.
    pub fn on_request(mut self, f: impl Fn(&mut Flow) -> Step + Send + Sync + 'static) -> Self {
        self.request = Some(Box::new(f));
        self
    }

    /// In `response`.
    pub fn on_response(mut self, f: impl Fn(&mut Flow) -> Step + Send + Sync + 'static) -> Self {
        self.response = Some(Box::new(f));
        self
    }

    /// In `data`.
    pub fn on_data(
        mut self,
        f: impl Fn(&mut Flow, Piece<'_>) -> Step + Send + Sync + 'static,
    ) -> Self {
        self.data = Some(Box::new(f));
        self
    }

    /// In `message`.
    pub fn on_message(
        mut self,
        f: impl Fn(&mut Flow, Message<'_>) -> Step + Send + Sync + 'static,
    ) -> Self {
        self.message = Some(Box::new(f));
        self
    }

    /// In `connect`.
    pub fn on_connect(
        mut self,
        f: impl Fn(&Target) -> ConnectDecision + Send + Sync + 'static,
    ) -> Self {
        self.connect = Some(Box::new(f));
        self
    }

    /// In `tls`.
    pub fn on_tls(
        mut self,
        f: impl Fn(&ClientHello, &ConnectionInfo) -> TlsDecision + Send + Sync + 'static,
    ) -> Self {
        self.tls = Some(Box::new(f));
        self
    }

    /// A failure lets the flow pass.
    pub fn fails_open(mut self) -> Self {
        self.fails_open = true;
        self
    }

    /// As the proxy takes it.
    pub fn shared(self) -> Arc<dyn Interceptor> {
        Arc::new(self)
    }
}

impl Interceptor for Hook {
    fn name(&self) -> &str {
        "test-hook"
    }
    fn on_failure(&self) -> OnFailure {
        if self.fails_open {
            OnFailure::Open
        } else {
            OnFailure::Closed
        }
    }
    fn interest(&self, _: &Flow) -> Interest {
        self.interest
    }
    fn connect(&self, target: &Target, _: &ConnectionInfo) -> ConnectDecision {
        self.connect
            .as_ref()
            .map_or_else(Default::default, |f| f(target))
    }
    fn tls(&self, hello: &ClientHello, connection: &ConnectionInfo) -> TlsDecision {
        self.tls
            .as_ref()
            .map_or_else(Default::default, |f| f(hello, connection))
    }
    fn request(&self, flow: &mut Flow) -> Step {
        self.request.as_ref().map_or(Step::Continue, |f| f(flow))
    }
    fn response(&self, flow: &mut Flow) -> Step {
        self.response.as_ref().map_or(Step::Continue, |f| f(flow))
    }
    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        self.data
            .as_ref()
            .map_or(Step::Continue, |f| f(flow, piece))
    }
    fn message(&self, flow: &mut Flow, message: Message<'_>) -> Step {
        self.message
            .as_ref()
            .map_or(Step::Continue, |f| f(flow, message))
    }
}

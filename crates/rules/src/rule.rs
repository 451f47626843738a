//! What a rule is, and what it does to a flow.

use std::sync::Arc;
use std::time::Duration;

use regex::bytes::Regex;
use tollgate_flow::filter::{Field, Filter, Subject};
use tollgate_flow::record::{FlowType, Replay};
use tollgate_flow::{Bytes, Direction, Flow, HeaderList, Reply, Via};

use crate::budget::Budget;
use crate::error::Place;
use crate::inject::Inject;
use crate::local::MapLocal;
use crate::replay::ServerReplay;
use crate::rewrite::Replace;
use crate::sticky::{Bucket, CookieJar, StickyAuth};
use crate::template::Template;

/// The status code with which a `block` cuts the connection in place of answering: nginx's.
pub const CUT: u16 = 444;

/// A rule: what it does, and to which flows.
#[derive(Debug)]
pub struct Rule {
    pub(crate) name: Option<String>,
    pub(crate) place: Place,
    pub(crate) when: Option<Filter>,
    /// When it acts, for what can act on a request or a response.
    pub(crate) on: Direction,
    pub(crate) action: Action,
}

impl Rule {
    /// The name that it was given, else where it stands.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.place.to_string())
    }

    /// Where it stands.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The word for what it does, as in a file of rules.
    pub fn action(&self) -> &'static str {
        self.action.word()
    }

    /// The filter, as it was written; `None` for a rule for every flow.
    pub fn when(&self) -> Option<&str> {
        self.when.as_ref().map(Filter::source)
    }

    pub(crate) fn applies(&self, flow: &Flow) -> bool {
        self.when.as_ref().is_none_or(|filter| filter.matches(flow))
    }
}

#[derive(Debug)]
pub(crate) enum Action {
    Block(u16),
    Allow,
    Tunnel,
    MapLocal(Arc<Vec<MapLocal>>),
    MapRemote(Replacement),
    Headers(HeaderEdits),
    ModifyHeaders(Vec<HeaderSpec>),
    Body(BodyEdit),
    Message(MessageEdit),
    Respond(Reply),
    Redirect(Redirect),
    Upstream(Via),
    Throttle(Throttle),
    Budget(Arc<Budget>),
    /// The largest body, of requests and of responses.
    BodyLimit(u64),
    Hold(HoldFor),
    Inject(Arc<Inject>),
    StickyCookie(CookieJar),
    StickyAuth(StickyAuth),
    AntiCache,
    AntiComp,
    Replay(Arc<ServerReplay>),
}

impl Action {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Allow => "allow",
            Self::Tunnel => "tunnel",
            Self::MapLocal(_) => "map_local",
            Self::MapRemote(_) => "map_remote",
            Self::Headers(edits) => match edits.on {
                Direction::Request => "request_headers",
                Direction::Response => "response_headers",
            },
            Self::ModifyHeaders(_) => "modify_headers",
            Self::Body(edit) => match edit.on {
                Some(Direction::Request) => "request_body",
                Some(Direction::Response) => "response_body",
                None => "modify_body",
            },
            Self::Message(_) => "message",
            Self::Respond(_) => "respond",
            Self::Redirect(_) => "redirect",
            Self::Upstream(_) => "upstream",
            Self::Throttle(_) => "throttle",
            Self::Budget(_) => "budget",
            Self::BodyLimit(_) => "body_limit",
            Self::Hold(_) => "hold",
            Self::Inject(_) => "inject",
            Self::StickyCookie(_) => "sticky_cookie",
            Self::StickyAuth(_) => "sticky_auth",
            Self::AntiCache => "anticache",
            Self::AntiComp => "anticomp",
            Self::Replay(_) => "server_replay",
        }
    }

    /// Whether what a later rule sees of the request may be different once it has acted.
    pub(crate) fn changes_request(&self) -> bool {
        match self {
            Self::MapRemote(_)
            | Self::ModifyHeaders(_)
            | Self::StickyCookie(_)
            | Self::StickyAuth(_)
            | Self::AntiCache
            | Self::AntiComp => true,
            Self::Headers(edits) => edits.on == Direction::Request,
            _ => false,
        }
    }
}

/// A pattern, and what a match is replaced by.
#[derive(Debug)]
pub(crate) struct Replacement {
    pub url: Regex,
    pub to: Template,
}

impl Replacement {
    /// The text with every match replaced; `None` where it is the same.
    pub fn replaced(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(text.len());
        let mut at = 0;
        for found in self.url.captures_iter(text) {
            let Some(whole) = found.get(0) else { continue };
            out.extend_from_slice(text.get(at..whole.start()).unwrap_or_default());
            self.to.expand(&found, &mut out);
            at = whole.end();
        }
        out.extend_from_slice(text.get(at..).unwrap_or_default());
        (out != text).then_some(out)
    }
}

/// What is done to a message's header: first remove, then set, then add.
#[derive(Debug)]
pub(crate) struct HeaderEdits {
    pub on: Direction,
    pub remove: Vec<String>,
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
}

impl HeaderEdits {
    pub fn apply(&self, headers: &mut HeaderList) {
        for name in &self.remove {
            headers.remove(name);
        }
        // Names and values were looked at when the rule was read.
        for (name, value) in &self.set {
            let _ = headers.set(name.as_bytes(), value.as_bytes());
        }
        for (name, value) in &self.add {
            let _ = headers.append(name.as_bytes(), value.as_bytes());
        }
    }
}

/// One of mitmproxy's `modify_headers`.
#[derive(Debug)]
pub(crate) struct HeaderSpec {
    pub when: Option<Filter>,
    pub name: String,
    /// Empty: it is removed.
    pub value: Vec<u8>,
}

/// Applies all of mitmproxy's `modify_headers`: first all that match lose their header, then the values are added.
pub(crate) fn modify_headers(specs: &[HeaderSpec], flow: &mut Flow, on: Direction) -> bool {
    let matched: Vec<&HeaderSpec> = specs
        .iter()
        .filter(|spec| spec.when.as_ref().is_none_or(|filter| filter.matches(flow)))
        .collect();
    let Some(headers) = headers_mut(flow, on) else {
        return false;
    };
    for spec in &matched {
        headers.remove(&spec.name);
    }
    for spec in &matched {
        if !spec.value.is_empty() {
            // Looked at when the rule was read.
            let _ = headers.append(spec.name.as_bytes(), &spec.value);
        }
    }
    !matched.is_empty()
}

pub(crate) fn headers_mut(flow: &mut Flow, on: Direction) -> Option<&mut HeaderList> {
    match on {
        Direction::Request => Some(flow.request.headers_mut()),
        Direction::Response => flow.response.as_mut().map(|r| r.headers_mut()),
    }
}

/// Replacement within bodies.
#[derive(Debug)]
pub(crate) struct BodyEdit {
    /// Which bodies; `None` for both.
    pub on: Option<Direction>,
    pub replace: Arc<Replace>,
}

impl BodyEdit {
    pub fn is_on(&self, direction: Direction) -> bool {
        self.on.is_none_or(|on| on == direction)
    }
}

/// What is done to a message of a WebSocket.
#[derive(Debug)]
pub(crate) struct MessageEdit {
    /// Whose messages; `None` for both sides'.
    pub from: Option<Direction>,
    pub does: OnMessage,
}

#[derive(Debug)]
pub(crate) enum OnMessage {
    /// Matches are replaced.
    Replace(Arc<Replace>),
    /// It doesn't go on.
    Drop,
    /// The WebSocket is closed, with this reason.
    Close(String),
}

impl MessageEdit {
    /// What a rule does to a message; `None` where it leaves it as it is.
    pub fn act(
        &self,
        rule: &Rule,
        flow: &dyn Subject,
        from: Direction,
        content: &[u8],
    ) -> Option<MessageOutcome<'_>> {
        if self.from.is_some_and(|only| only != from) {
            return None;
        }
        let passing = PassingMessage {
            flow,
            from,
            content,
        };
        if !rule
            .when
            .as_ref()
            .is_none_or(|filter| filter.matches(&passing))
        {
            return None;
        }
        match &self.does {
            OnMessage::Replace(replace) => replace
                .all(content)
                .filter(|changed| changed != content)
                .map(MessageOutcome::Changed),
            OnMessage::Drop => Some(MessageOutcome::Dropped),
            OnMessage::Close(reason) => Some(MessageOutcome::Closed(reason)),
        }
    }
}

pub(crate) enum MessageOutcome<'a> {
    Changed(Vec<u8>),
    Dropped,
    Closed(&'a str),
}

/// A flow of which the one message that passes is the body of its direction, for filters.
struct PassingMessage<'a> {
    flow: &'a dyn Subject,
    from: Direction,
    content: &'a [u8],
}

impl Subject for PassingMessage<'_> {
    fn flow_type(&self) -> FlowType {
        self.flow.flow_type()
    }

    fn has_error(&self) -> bool {
        self.flow.has_error()
    }

    fn has_response(&self) -> bool {
        self.flow.has_response()
    }

    fn is_websocket(&self) -> bool {
        true
    }

    fn replay(&self) -> Option<Replay> {
        self.flow.replay()
    }

    fn status(&self) -> Option<u16> {
        self.flow.status()
    }

    fn size(&self, direction: Direction) -> Option<u64> {
        (direction == self.from).then_some(self.content.len() as u64)
    }

    fn duration(&self) -> Option<Duration> {
        self.flow.duration()
    }

    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        match field {
            Field::Body(direction) => direction == self.from && test(self.content),
            field => self.flow.any(field, test),
        }
    }
}

/// An answer that sends the client elsewhere.
#[derive(Debug)]
pub(crate) struct Redirect {
    pub status: u16,
    /// With a pattern: only for URLs that it matches, and the match is replaced.
    pub url: Option<Replacement>,
    pub to: String,
}

impl Redirect {
    /// Where to; `None` where the pattern doesn't match.
    pub fn location(&self, url: &[u8]) -> Option<Vec<u8>> {
        match &self.url {
            None => Some(self.to.clone().into_bytes()),
            Some(replacement) => {
                replacement.url.find(url)?;
                Some(replacement.replaced(url).unwrap_or_else(|| url.to_vec()))
            }
        }
    }
}

/// A slow link.
#[derive(Debug)]
pub(crate) struct Throttle {
    pub latency: Duration,
    pub upload: Option<Arc<Bucket>>,
    pub download: Option<Arc<Bucket>>,
}

/// A pause for a person.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HoldFor {
    pub deadline: Duration,
    /// Whether it goes on at the deadline; else it is refused.
    pub then_continue: bool,
}

/// The answer of a `block`.
pub(crate) fn blocked(status: u16) -> Reply {
    Reply::new(status).body(Bytes::new())
}

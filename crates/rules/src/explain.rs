//! What rules would do to a recorded flow.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tollgate_flow::record::{Content, HttpMessage, Record};
use tollgate_flow::{
    ConnectionId, ConnectionInfo, Direction, Flow, FlowId, HttpVersion, Response, Scheme, Target,
    Via,
};
use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

use crate::rule::{Action, CUT, MessageOutcome, Rule, modify_headers};
use crate::set::RuleSet;
use crate::url::set_url;

/// A rule that matches a flow, and what it would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The rule's name, or where it stands.
    pub rule: String,
    /// The word for its action.
    pub action: &'static str,
    /// When it would act.
    pub on: Direction,
    /// What it would do, in words.
    pub does: String,
    /// Whether nothing behind it would act on the same message.
    pub ends: bool,
}

impl RuleSet {
    /// Which rules match a recorded flow, and what they would do, in order. Nothing is read, sent or waited for; a
    /// flow that is not HTTP matches none.
    pub fn explain(&self, record: &Record) -> Vec<Explained> {
        let Some((mut flow, response)) = flow_of(record) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut allowed = false;
        let mut ended = false;
        for rule in &self.rules {
            if ended {
                break;
            }
            if rule.on == Direction::Request
                && let Some(does) = on_request(rule, &mut flow, &mut allowed)
            {
                ended = does.ends;
                found.push(does);
            }
        }
        if ended {
            return found;
        }
        flow.response = response;
        if flow.response.is_none() {
            return found;
        }
        for rule in &self.rules {
            if let Some(does) = on_response(rule, &mut flow, allowed) {
                let ends = does.ends;
                found.push(does);
                if ends {
                    return found;
                }
            }
        }
        self.explain_messages(record, &mut found);
        found
    }

    /// What the rules would do to the messages of a recorded WebSocket.
    fn explain_messages(&self, record: &Record, found: &mut Vec<Explained>) {
        let socket = record.as_http().and_then(|http| http.websocket.as_ref());
        let Some(socket) = socket else { return };
        // Of each rule: how many messages it changes and drops, and the one at which it closes.
        let mut counts = vec![(0_usize, 0_usize, None); self.rules.len()];
        'messages: for (number, message) in (1_usize..).zip(&socket.messages) {
            let from = match message.from_client {
                true => Direction::Request,
                false => Direction::Response,
            };
            let mut content = message.content.to_vec();
            for (rule, count) in self.rules.iter().zip(&mut counts) {
                let Action::Message(edit) = &rule.action else {
                    continue;
                };
                match edit.act(rule, record, from, &content) {
                    None => {}
                    Some(MessageOutcome::Changed(new)) => {
                        count.0 += 1;
                        content = new;
                    }
                    Some(MessageOutcome::Dropped) => {
                        count.1 += 1;
                        break;
                    }
                    Some(MessageOutcome::Closed(_)) => {
                        count.2 = Some(number);
                        break 'messages;
                    }
                }
            }
        }
        let total = socket.messages.len();
        for (rule, (changed, dropped, closed)) in self.rules.iter().zip(counts) {
            let does = match (changed, dropped, closed) {
                (_, _, Some(number)) => {
                    format!("closes the WebSocket at message {number} of {total}")
                }
                (0, 0, None) => continue,
                (0, dropped, None) => format!("drops {dropped} of {total} messages"),
                (changed, _, None) => format!("changes {changed} of {total} messages"),
            };
            let on = match &rule.action {
                Action::Message(edit) => edit.from.unwrap_or(Direction::Request),
                _ => rule.on,
            };
            found.push(explained(rule, on, does, closed.is_some()));
        }
    }
}

fn explained(rule: &Rule, on: Direction, does: impl Into<String>, ends: bool) -> Explained {
    Explained {
        rule: rule.name(),
        action: rule.action(),
        on,
        does: does.into(),
        ends,
    }
}

fn on_request(rule: &Rule, flow: &mut Flow, allowed: &mut bool) -> Option<Explained> {
    let says = |does: String, ends| Some(explained(rule, Direction::Request, does, ends));
    if let Action::ModifyHeaders(specs) = &rule.action {
        return modify_headers(specs, flow, Direction::Request).then(|| {
            explained(
                rule,
                Direction::Request,
                "changes headers of the request",
                false,
            )
        });
    }
    if !rule.applies(flow) {
        return None;
    }
    match &rule.action {
        Action::Block(_) if *allowed => says("is freed from by an allow".to_owned(), false),
        Action::Allow => {
            *allowed = true;
            says("frees from the blocks behind it".to_owned(), false)
        }
        Action::Tunnel => says("passes the connection unopened".to_owned(), true),
        Action::MapLocal(maps) => {
            let url = flow.pretty_url();
            let files: Vec<String> = maps
                .iter()
                .filter_map(|map| map.candidates(flow, &url))
                .flatten()
                .map(|file| {
                    let there = if file.is_file() { "" } else { " (not there)" };
                    format!("{}{there}", file.display())
                })
                .collect();
            if files.is_empty() {
                return None;
            }
            says(
                format!("answers from the first of {}", files.join(", ")),
                true,
            )
        }
        Action::MapRemote(replacement) => {
            let before = flow.pretty_url();
            let url = replacement.replaced(&before)?;
            match set_url(flow, &url) {
                Ok(()) => says(
                    format!("sends it to {}", String::from_utf8_lossy(&url)),
                    false,
                ),
                Err(why) => says(format!("answers 502: {why}"), true),
            }
        }
        Action::Headers(edits) => {
            edits.apply(flow.request.headers_mut());
            says("changes headers of the request".to_owned(), false)
        }
        Action::Body(edit) if edit.is_on(Direction::Request) => {
            let body = flow.request.body().filter(|body| !body.is_empty())?;
            let changed = edit.replace.all(body)?;
            flow.request.set_body(changed);
            says("changes the body of the request".to_owned(), false)
        }
        Action::Redirect(redirect) => {
            let to = redirect.location(&flow.pretty_url())?;
            let to = String::from_utf8_lossy(&to).into_owned();
            says(format!("answers {} to {to}", redirect.status), true)
        }
        Action::Upstream(Via::Proxy(proxy)) => says(format!("sends it through {proxy}"), false),
        Action::Upstream(_) => says("sends it past proxies".to_owned(), false),
        Action::Throttle(throttle) => says(
            match throttle.latency.is_zero() {
                true => "slows its bodies down".to_owned(),
                false => format!("waits {:?}, and slows its bodies down", throttle.latency),
            },
            false,
        ),
        Action::Budget(_) => says(
            "counts it, and answers 429 when the budget is used up".to_owned(),
            false,
        ),
        Action::BodyLimit(limit) => says(
            format!("refuses bodies of more than {limit} bytes, both ways"),
            false,
        ),
        Action::Inject(inject) if inject.belongs(flow) => says(
            format!("puts {} in, from {}", inject.header, inject.source),
            false,
        ),
        Action::StickyCookie(_) => says("puts remembered cookies in".to_owned(), false),
        Action::StickyAuth(_) => says("puts remembered credentials in".to_owned(), false),
        Action::AntiCache => {
            flow.request.headers_mut().remove("if-modified-since");
            flow.request.headers_mut().remove("if-none-match");
            says(
                "takes If-Modified-Since and If-None-Match out".to_owned(),
                false,
            )
        }
        Action::AntiComp => says("asks for an uncompressed body".to_owned(), false),
        // Whether it answers is known once it has: recordings are used up.
        Action::Replay(_) => None,
        action => answers(rule, action, Direction::Request),
    }
}

fn on_response(rule: &Rule, flow: &mut Flow, allowed: bool) -> Option<Explained> {
    let says = |does: &str| Some(explained(rule, Direction::Response, does, false));
    match &rule.action {
        Action::ModifyHeaders(specs) => {
            return modify_headers(specs, flow, Direction::Response).then(|| {
                explained(
                    rule,
                    Direction::Response,
                    "changes headers of the response",
                    false,
                )
            });
        }
        Action::Body(edit) if edit.is_on(Direction::Response) && rule.applies(flow) => {
            let response = flow.response.as_mut()?;
            let changed = edit.replace.all(response.body()?)?;
            response.set_body(changed);
            return says("changes the body of the response");
        }
        Action::StickyCookie(_)
            if flow.response.as_ref()?.headers().contains("set-cookie") && rule.applies(flow) =>
        {
            return says("remembers cookies");
        }
        _ if rule.on != Direction::Response || !rule.applies(flow) => return None,
        Action::Headers(edits) => {
            edits.apply(flow.response.as_mut()?.headers_mut());
            return says("changes headers of the response");
        }
        Action::Block(_) if allowed => return says("is freed from by an allow"),
        Action::Redirect(redirect) => {
            let to = redirect.location(&flow.pretty_url())?;
            let does = format!(
                "answers {} to {}",
                redirect.status,
                String::from_utf8_lossy(&to)
            );
            return Some(explained(rule, Direction::Response, does, true));
        }
        _ => {}
    }
    answers(rule, &rule.action, Direction::Response)
}

fn answers(rule: &Rule, action: &Action, on: Direction) -> Option<Explained> {
    let (does, ends) = match action {
        Action::Block(CUT) => ("cuts the connection".to_owned(), true),
        Action::Block(status) => (format!("answers {status}"), true),
        Action::Respond(reply) => (
            format!("answers {} with {} bytes", reply.status, reply.body.len()),
            true,
        ),
        Action::Hold(hold) => {
            let then = if hold.then_continue {
                "continues"
            } else {
                "blocks"
            };
            (
                format!("holds it up to {:?}, then {then}", hold.deadline),
                false,
            )
        }
        _ => return None,
    };
    Some(explained(rule, on, does, ends))
}

/// A recorded flow as it was while it passed: the request with its body, and the response.
/// A recorded request as a flow that has just begun, and its response.
pub(crate) fn flow_of(record: &Record) -> Option<(Flow, Option<Box<Response>>)> {
    let Content::Http(http) = &record.content else {
        return None;
    };
    let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let client = record
        .client
        .common
        .peername
        .as_ref()
        .and_then(|peer| Some(SocketAddr::new(peer.host.parse().ok()?, peer.port)))
        .unwrap_or(nowhere);
    let info = ConnectionInfo::new(ConnectionId(0), client, nowhere, None);
    let mut flow = Flow::new(Arc::new(info));
    flow.id = FlowId::parse(&record.id).unwrap_or_default();
    let request = &http.request;
    let mut head = RequestHead::build(&request.method, &request.path, Version::Http11).ok()?;
    copy_headers(&request.message, &mut head.headers);
    flow.request.head = head;
    flow.request.version = match &*request.message.version {
        b"HTTP/1.0" => HttpVersion::Http10,
        b"HTTP/2.0" | b"HTTP/2" => HttpVersion::Http2,
        b"HTTP/3" | b"HTTP/3.0" => HttpVersion::Http3,
        _ => HttpVersion::Http11,
    };
    flow.request.scheme = match &*request.scheme {
        b"https" => Scheme::Https,
        _ => Scheme::Http,
    };
    flow.request.target = Target::new(&request.host, request.port);
    if !request.authority.is_empty() {
        flow.request.authority = Some(request.authority.to_vec());
    }
    if let Some(body) = request.message.content() {
        flow.request.put_collected_body(body.into_owned().into());
        flow.request.headers_mut().remove("content-encoding");
    }
    let response = http.response.as_ref().and_then(|recorded| {
        let mut response = Box::<Response>::default();
        response.head = ResponseHead::build(recorded.status, &recorded.reason).ok()?;
        copy_headers(&recorded.message, &mut response.head.headers);
        if let Some(body) = recorded.message.content() {
            response.put_collected_body(body.into_owned().into());
        }
        Some(response)
    });
    Some((flow, response))
}

fn copy_headers(message: &HttpMessage, headers: &mut tollgate_flow::HeaderList) {
    for (name, value) in message.headers.iter() {
        // What a file holds may not be a header; then it has none that could be looked at.
        let _ = headers.append(name, value);
    }
}

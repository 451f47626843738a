//! A flow as it stands in a block, as a filter sees it.
//!
//! A filter over everything is asked about each flow that is stored. No record is made for that, and nothing is copied
//! that the filter doesn't ask for.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use tollgate_flow::filter::{Field, Filter, Subject};
use tollgate_flow::record::{FlowType, Replay, Timestamp};
use tollgate_flow::{Direction, HttpVersion, UrlParts};

use crate::entry::{Entry, Fields, Line, Message};
use crate::link::Context;

/// A flow of HTTP without its bodies, which are numbers. It notes when it was asked for what it doesn't have.
struct Peek<'a> {
    entry: &'a Entry<&'a [u8], usize>,
    context: &'a Context,
    size: &'a dyn Fn(usize) -> u64,
    unknown: Cell<bool>,
}

/// Whether a filter means a flow; `None` when only the whole flow can tell. `size` tells how long a body is.
///
/// If the filter comes to its answer without looking at what isn't here, the answer holds: it is that about the record.
pub(crate) fn matches(
    entry: &Entry<&[u8], usize>,
    context: &Context,
    size: &dyn Fn(usize) -> u64,
    filter: &Filter,
) -> Option<bool> {
    let peek = Peek {
        entry,
        context,
        size,
        unknown: Cell::new(false),
    };
    let answer = filter.matches(&peek);
    (!peek.unknown.get()).then_some(answer)
}

impl<'a> Peek<'a> {
    fn unknown(&self) -> bool {
        self.unknown.set(true);
        false
    }

    fn message(&self, direction: Direction) -> Option<&Message<&'a [u8], usize>> {
        match direction {
            Direction::Request => Some(&self.entry.request),
            Direction::Response => self.entry.response.as_ref().map(|answer| &answer.message),
        }
    }

    fn fields(&self, direction: Direction) -> Option<Fields<'a>> {
        self.message(direction)
            .map(|message| Fields::new(message.headers))
    }

    fn line(&self) -> Option<Line<'a>> {
        Line::read(self.entry.line)
    }

    /// `None` where the record has to say it.
    fn url(&self) -> Option<UrlParts<'_>> {
        let line = self.line()?;
        let target = self.context.server.address.as_ref()?;
        let mut hosts = Fields::new(self.entry.request.headers).all("host");
        let host = hosts.next();
        if hosts.next().is_some() {
            return None;
        }
        Some(UrlParts {
            method: line.method,
            scheme: line.scheme(self.context.scheme()).as_bytes(),
            host: &target.host,
            port: target.port,
            path: line.path,
            authority: line.authority,
            host_header: host.map(Cow::Borrowed),
            has_authority: matches!(
                self.entry.request.version,
                HttpVersion::Http2 | HttpVersion::Http3
            ),
        })
    }
}

impl Subject for Peek<'_> {
    fn flow_type(&self) -> FlowType {
        FlowType::Http
    }

    fn has_error(&self) -> bool {
        self.entry.error.is_some()
    }

    fn has_response(&self) -> bool {
        self.entry.response.is_some()
    }

    // A WebSocket, and what was replayed, is no entry.
    fn is_websocket(&self) -> bool {
        false
    }

    fn replay(&self) -> Option<Replay> {
        None
    }

    fn status(&self) -> Option<u16> {
        self.entry.response.as_ref().map(|answer| answer.status)
    }

    fn size(&self, direction: Direction) -> Option<u64> {
        let message = self.message(direction)?;
        message.cut_from.or(message.body.map(self.size))
    }

    fn duration(&self) -> Option<Duration> {
        let started = Timestamp::new(self.entry.started);
        let ended = self.entry.response.as_ref()?.message.ended?;
        // As the record's moments tell it, to the last digit.
        started.after(Duration::from_nanos(ended)).since(started)
    }

    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let context = self.context;
        match field {
            Field::Method => match self.line() {
                Some(line) => test(line.method),
                None => self.unknown(),
            },
            Field::Url => match self.url() {
                Some(parts) => parts.test_pretty_url(test),
                None => self.unknown(),
            },
            Field::Host => match self.url() {
                Some(parts) => parts.test_hosts(test),
                None => self.unknown(),
            },
            Field::HeaderBlock(direction) => self.fields(direction).is_some_and(|fields| {
                let mut block = Vec::new();
                for (name, value) in fields {
                    for part in [name, b": ", value, b"\r\n"] {
                        block.extend_from_slice(part);
                    }
                }
                test(&block)
            }),
            Field::ContentType(direction) => self
                .fields(direction)
                .is_some_and(|fields| fields.all("content-type").any(test)),
            Field::Source => match &context.client.common.peername {
                Some(peer) => test(format!("{}:{}", peer.host, peer.port).as_bytes()),
                None => false,
            },
            Field::Destination => match &context.server.address {
                Some(origin) => test(format!("{}:{}", origin.host, origin.port).as_bytes()),
                None => false,
            },
            Field::Ja3 => {
                let ja3 = context.facts.ja3.as_ref();
                ja3.is_some_and(|ja3| test(ja3.as_bytes()))
            }
            Field::Ja4 => {
                let ja4 = context.facts.ja4.as_ref();
                ja4.is_some_and(|ja4| test(ja4.as_bytes()))
            }
            Field::Sni => {
                let name = context.client.common.sni.as_ref();
                name.is_some_and(|name| test(name.as_bytes()))
            }
            Field::Version => test(self.entry.request.version.as_str().as_bytes()),
            Field::Id => test(self.entry.id.to_string().as_bytes()),
            // Nobody has marked it, or said anything of it.
            Field::Marker | Field::Comment => test(b""),
            Field::Metadata if self.entry.notes.is_none() => test(b""),
            Field::Finding if self.entry.notes.is_none() => false,
            Field::Process if context.facts.process.is_none() => false,
            Field::Body(_) | Field::Metadata | Field::Finding | Field::Process => self.unknown(),
        }
    }
}

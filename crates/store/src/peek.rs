//! A flow as it stands in a block, as a filter sees it.
//!
//! A filter over everything is asked about each flow that is stored. No record is made for that, and nothing is copied
//! that the filter doesn't ask for.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::Duration;

use tollgate_flow::filter::{Field, Filter, Subject};
use tollgate_flow::record::{Address, FlowType, Replay, Timestamp};
use tollgate_flow::{Direction, HttpVersion, UrlParts};

use crate::entry::{Entry, Fields, Line, Message};
use crate::link::Context;

/// Reads what carried a flow: a filter mostly doesn't ask for it.
type ContextOf<'a> = &'a dyn Fn() -> Option<&'a Context>;

/// A flow of HTTP without its bodies, which are numbers. It notes when it was asked for what it doesn't have.
struct Peek<'a> {
    entry: &'a Entry<&'a [u8], usize>,
    context: ContextOf<'a>,
    size: &'a dyn Fn(usize) -> u64,
    unknown: Cell<bool>,
}

/// Whether a filter means a flow; `None` when only the whole flow can tell. `size` tells how long a body is.
///
/// If the filter comes to its answer without looking at what isn't here, the answer holds: it is that about the record.
pub(crate) fn matches<'a>(
    entry: &'a Entry<&'a [u8], usize>,
    context: ContextOf<'a>,
    size: &'a dyn Fn(usize) -> u64,
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

    /// The texts of the connections.
    fn any_of_context(
        &self,
        context: &Context,
        field: Field,
        test: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        let address = |address: &Address| format!("{}:{}", address.host, address.port);
        let text = match field {
            Field::Source => context.client.common.peername.as_ref().map(address),
            Field::Destination => context.server.address.as_ref().map(address),
            Field::Ja3 => context.facts.ja3.as_deref().map(str::to_owned),
            Field::Ja4 => context.facts.ja4.as_deref().map(str::to_owned),
            Field::Sni => context.client.common.sni.as_deref().map(str::to_owned),
            // The record knows how it is asked about.
            _ if context.facts.process.is_some() => return self.unknown(),
            _ => None,
        };
        text.is_some_and(|text| test(text.as_bytes()))
    }

    /// `None` where the record has to say it.
    fn url(&self) -> Option<UrlParts<'_>> {
        let line = self.line()?;
        let context = (self.context)()?;
        let target = context.server.address.as_ref()?;
        let mut hosts = Fields::new(self.entry.request.headers).all("host");
        let host = hosts.next();
        if hosts.next().is_some() {
            return None;
        }
        Some(UrlParts {
            method: line.method,
            scheme: line.scheme(context.scheme()).as_bytes(),
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
            Field::Source
            | Field::Destination
            | Field::Ja3
            | Field::Ja4
            | Field::Sni
            | Field::Process => match (self.context)() {
                Some(context) => self.any_of_context(context, field, test),
                None => self.unknown(),
            },
            Field::Version => test(self.entry.request.version.as_str().as_bytes()),
            Field::Id => test(self.entry.id.to_string().as_bytes()),
            // Nobody has marked it, or said anything of it.
            Field::Marker | Field::Comment => test(b""),
            Field::Metadata if self.entry.notes.is_none() => test(b""),
            Field::Finding if self.entry.notes.is_none() => false,
            Field::Body(_) | Field::Metadata | Field::Finding => self.unknown(),
        }
    }
}

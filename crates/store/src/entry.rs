//! A flow as blocks and the queue hold it: the few numbers that are its own, and texts that others may share.
//!
//! It says what [`Record::from_flow`] would, and nothing else: a test holds the two together.
//!
//! Of texts there are two kinds: those of heads (`T`: the request line, all header fields together, an error) and bodies
//! (`B`). In the queue they stand in place; in a block they are numbers of a table, in which each stands once.

use std::fmt::Write as _;

use bytes::Bytes;
use tollgate_flow::record::{
    Body, Content, HeaderFields, HttpExchange, HttpMessage, HttpRequest, HttpResponse, Record,
    RecordError, Timestamp,
};
use tollgate_flow::{Flow, FlowId, FlowKind, HeaderList, HttpVersion, Outcome, OutcomeKind};

use crate::codec::{Cursor, put_measured, put_number, put_sized};
use crate::link::Context;

/// A flow of HTTP that has ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Entry<T, B> {
    pub id: FlowId,
    /// Which of the connections that are listed elsewhere carried it.
    pub link: u32,
    /// Seconds since 1970.
    pub started: f64,
    pub outcome: OutcomeKind,
    /// Method, authority and path: see [`Line`].
    pub line: T,
    pub request: Message<T, B>,
    pub response: Option<Answer<T, B>>,
    /// What went wrong, and when.
    pub error: Option<(T, f64)>,
    /// What interceptors left: pairs of key and text, each with its length.
    pub notes: Option<T>,
}

/// An entry with its texts in place.
pub(crate) type Whole<'a> = Entry<&'a [u8], &'a [u8]>;

/// What makes the body of a record.
type BodyOf<'f, 'a, B> = &'f dyn Fn(&Message<&'a [u8], B>) -> Body;

/// What requests and responses have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Message<T, B> {
    pub version: HttpVersion,
    /// See [`Fields`].
    pub headers: T,
    pub trailers: Option<T>,
    /// What was kept of the body.
    pub body: Option<B>,
    /// The size of the body, where it was not kept whole.
    pub cut_from: Option<u64>,
    /// When it ended, in nanoseconds behind the flow's start.
    pub ended: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Answer<T, B> {
    pub status: u16,
    pub reason: T,
    /// When the head was there, in nanoseconds behind the flow's start.
    pub began: Option<u64>,
    pub message: Message<T, B>,
}

/// What was kept of a body, and its size if that is not all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept<'a> {
    pub data: Option<&'a [u8]>,
    pub cut_from: Option<u64>,
}

const TRAILERS: u8 = 1;
const BODY: u8 = 1 << 1;
const CUT_FROM: u8 = 1 << 2;
const ENDED: u8 = 1 << 3;
const RESPONSE: u8 = 1;
const ERROR: u8 = 1 << 1;
const NOTES: u8 = 1 << 2;
const BEGAN: u8 = 1 << 3;

impl<T, B> Entry<T, B> {
    /// Appends it; the functions append the texts.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        text: &mut impl FnMut(&mut Vec<u8>, &T),
        body: &mut impl FnMut(&mut Vec<u8>, &B),
    ) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let began = self.response.as_ref().and_then(|answer| answer.began);
        out.push(
            flag(self.response.is_some(), RESPONSE)
                | flag(self.error.is_some(), ERROR)
                | flag(self.notes.is_some(), NOTES)
                | flag(began.is_some(), BEGAN)
                | outcome_code(self.outcome) << 4,
        );
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.started.to_le_bytes());
        put_number(out, self.link.into());
        text(out, &self.line);
        self.request.write(out, text, body);
        if let Some(answer) = &self.response {
            out.extend_from_slice(&answer.status.to_le_bytes());
            text(out, &answer.reason);
            if let Some(began) = began {
                put_number(out, began);
            }
            answer.message.write(out, text, body);
        }
        if let Some((message, at)) = &self.error {
            text(out, message);
            out.extend_from_slice(&at.to_le_bytes());
        }
        if let Some(notes) = &self.notes {
            text(out, notes);
        }
    }

    /// Reads one; the functions read the texts.
    pub fn read<'a>(
        cursor: &mut Cursor<'a>,
        text: &mut impl FnMut(&mut Cursor<'a>) -> Option<T>,
        body: &mut impl FnMut(&mut Cursor<'a>) -> Option<B>,
    ) -> Option<Self> {
        let flags = cursor.u8()?;
        Some(Self {
            outcome: outcome_of(flags >> 4)?,
            id: FlowId(cursor.u128()?),
            started: cursor.f64()?,
            link: u32::try_from(cursor.number()?).ok()?,
            line: text(cursor)?,
            request: Message::read(cursor, text, body)?,
            response: match flags & RESPONSE {
                0 => None,
                _ => Some(Answer {
                    status: cursor.u16()?,
                    reason: text(cursor)?,
                    began: match flags & BEGAN {
                        0 => None,
                        _ => Some(cursor.number()?),
                    },
                    message: Message::read(cursor, text, body)?,
                }),
            },
            error: match flags & ERROR {
                0 => None,
                _ => Some((text(cursor)?, cursor.f64()?)),
            },
            notes: match flags & NOTES {
                0 => None,
                _ => Some(text(cursor)?),
            },
        })
    }

    /// The same flow with other texts.
    pub fn map<U, C>(
        &self,
        text: &mut impl FnMut(&T) -> Option<U>,
        body: &mut impl FnMut(&B) -> Option<C>,
    ) -> Option<Entry<U, C>> {
        Some(Entry {
            id: self.id,
            link: self.link,
            started: self.started,
            outcome: self.outcome,
            line: text(&self.line)?,
            request: self.request.map(text, body)?,
            response: match &self.response {
                None => None,
                Some(answer) => Some(Answer {
                    status: answer.status,
                    reason: text(&answer.reason)?,
                    began: answer.began,
                    message: answer.message.map(text, body)?,
                }),
            },
            error: match &self.error {
                None => None,
                Some((message, at)) => Some((text(message)?, *at)),
            },
            notes: match &self.notes {
                None => None,
                Some(notes) => Some(text(notes)?),
            },
        })
    }
}

impl<T, B> Message<T, B> {
    fn write(
        &self,
        out: &mut Vec<u8>,
        text: &mut impl FnMut(&mut Vec<u8>, &T),
        body: &mut impl FnMut(&mut Vec<u8>, &B),
    ) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        out.push(
            flag(self.trailers.is_some(), TRAILERS)
                | flag(self.body.is_some(), BODY)
                | flag(self.cut_from.is_some(), CUT_FROM)
                | flag(self.ended.is_some(), ENDED)
                | version_code(self.version) << 4,
        );
        text(out, &self.headers);
        if let Some(trailers) = &self.trailers {
            text(out, trailers);
        }
        if let Some(data) = &self.body {
            body(out, data);
        }
        if let Some(size) = self.cut_from {
            put_number(out, size);
        }
        if let Some(ended) = self.ended {
            put_number(out, ended);
        }
    }

    fn read<'a>(
        cursor: &mut Cursor<'a>,
        text: &mut impl FnMut(&mut Cursor<'a>) -> Option<T>,
        body: &mut impl FnMut(&mut Cursor<'a>) -> Option<B>,
    ) -> Option<Self> {
        let flags = cursor.u8()?;
        Some(Self {
            version: version_of(flags >> 4)?,
            headers: text(cursor)?,
            trailers: match flags & TRAILERS {
                0 => None,
                _ => Some(text(cursor)?),
            },
            body: match flags & BODY {
                0 => None,
                _ => Some(body(cursor)?),
            },
            cut_from: match flags & CUT_FROM {
                0 => None,
                _ => Some(cursor.number()?),
            },
            ended: match flags & ENDED {
                0 => None,
                _ => Some(cursor.number()?),
            },
        })
    }

    fn map<U, C>(
        &self,
        text: &mut impl FnMut(&T) -> Option<U>,
        body: &mut impl FnMut(&B) -> Option<C>,
    ) -> Option<Message<U, C>> {
        Some(Message {
            version: self.version,
            headers: text(&self.headers)?,
            trailers: match &self.trailers {
                None => None,
                Some(trailers) => Some(text(trailers)?),
            },
            body: match &self.body {
                None => None,
                Some(data) => Some(body(data)?),
            },
            cut_from: self.cut_from,
            ended: self.ended,
        })
    }
}

/// A text of a live flow, to be written once.
#[derive(Clone, Copy)]
pub(crate) enum Live<'a> {
    Bytes(&'a [u8]),
    Line(&'a Flow),
    /// All fields; those named `host` only if the flag says so.
    Fields(&'a HeaderList, bool),
    Error(&'a Outcome),
    Notes(&'a [(String, String)]),
}

impl Live<'_> {
    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => out.extend_from_slice(bytes),
            Self::Line(flow) => {
                let request = &flow.request;
                put_sized(out, request.method());
                put_sized(out, request.authority.as_deref().unwrap_or_default());
                out.extend_from_slice(request.path());
            }
            Self::Fields(list, with_host) => {
                for (name, value) in list.iter() {
                    if with_host || !name.eq_ignore_ascii_case(b"host") {
                        match (u8::try_from(name.len()), u8::try_from(value.len())) {
                            (Ok(name @ ..0x80), Ok(value @ ..0x80)) => {
                                out.extend_from_slice(&[name, value]);
                            }
                            _ => {
                                put_number(out, name.len() as u64);
                                put_number(out, value.len() as u64);
                            }
                        }
                        out.extend_from_slice(name);
                        out.extend_from_slice(value);
                    }
                }
            }
            Self::Error(outcome) => match &outcome.error {
                Some(error) => {
                    let mut text = String::new();
                    // A string takes anything.
                    let _ = write!(text, "{error}");
                    out.extend_from_slice(text.as_bytes());
                }
                None => out.extend_from_slice(RecordError::KILLED.as_bytes()),
            },
            Self::Notes(notes) => {
                for (key, text) in notes {
                    put_sized(out, key.as_bytes());
                    put_sized(out, text.as_bytes());
                }
            }
        }
    }
}

impl<'a> Entry<Live<'a>, &'a [u8]> {
    /// A flow that has ended. `None` for one that is more than a request and its response: it needs a record.
    pub fn of(
        flow: &'a Flow,
        outcome: &'a Outcome,
        link: u32,
        request: Kept<'a>,
        response: Kept<'a>,
    ) -> Option<Self> {
        if flow.kind != FlowKind::Http || flow.websocket.is_some() {
            return None;
        }
        let nanos = |duration: Option<std::time::Duration>| {
            duration.map(|d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
        };
        let timing = &flow.timing;
        let headers = flow.request.headers();
        // In HTTP/2 and HTTP/3, `Host` stands in for `:authority`, which has a place of its own.
        let host_is_authority = matches!(
            flow.request.version,
            HttpVersion::Http2 | HttpVersion::Http3
        ) && flow.request.authority.as_deref() == headers.get("host");
        let started = Timestamp::from(timing.started);
        let failed = outcome.error.is_some() || outcome.kind == OutcomeKind::Dropped;
        let all = |list: &'a HeaderList| Live::Fields(list, true);
        Some(Self {
            id: flow.id,
            link,
            started: started.seconds(),
            outcome: outcome.kind,
            line: Live::Line(flow),
            request: Message {
                version: flow.request.version,
                headers: Live::Fields(headers, !host_is_authority),
                trailers: flow.request.trailers.as_ref().map(all),
                body: request.data,
                cut_from: request.cut_from,
                ended: nanos(timing.request_end),
            },
            response: flow.response.as_deref().map(|answer| Answer {
                status: answer.status(),
                reason: Live::Bytes(answer.reason()),
                began: nanos(timing.response_start.or(timing.response_end)),
                message: Message {
                    version: answer.version,
                    headers: all(answer.headers()),
                    trailers: answer.trailers.as_ref().map(all),
                    body: response.data,
                    cut_from: response.cut_from,
                    ended: nanos(timing.response_end),
                },
            }),
            error: failed.then(|| {
                let at = started.after(timing.start.elapsed());
                (Live::Error(outcome), at.seconds())
            }),
            notes: (!flow.metadata.is_empty()).then(|| Live::Notes(&flow.metadata)),
        })
    }

    /// Appends it with its texts in place.
    pub fn write_whole(&self, out: &mut Vec<u8>) {
        self.write(
            out,
            &mut |out, text| put_measured(out, |out| text.write(out)),
            &mut |out, body| put_measured(out, |out| out.extend_from_slice(body)),
        );
    }
}

impl<'a> Entry<&'a [u8], &'a [u8]> {
    /// Reads what [`write_whole`](Entry::write_whole) wrote.
    pub fn read_whole(cursor: &mut Cursor<'a>) -> Option<Self> {
        Self::read(cursor, &mut Cursor::measured, &mut Cursor::measured)
    }

    /// The whole flow. `None` where a text is not what it should be.
    pub fn record(&self, context: &Context) -> Option<Record> {
        let body = |message: &Message<&[u8], &[u8]>| Body {
            data: message.body.map(Bytes::copy_from_slice),
            cut_from: message.cut_from,
        };
        let mut record = self.outline(context, &mut all_fields, &body)?;
        record.client = context.client.clone();
        record.server = context.server.clone();
        if context.is_unconnected {
            record.server.common.id.clone_from(&record.id);
        }
        record.facts = context.facts.clone();
        record.facts.outcome = Some(self.outcome);
        if let Some(notes) = self.notes {
            let mut cursor = Cursor(notes);
            while !cursor.is_empty() {
                let key = std::str::from_utf8(cursor.sized()?).ok()?;
                let text = std::str::from_utf8(cursor.sized()?).ok()?;
                record.metadata.note(key, text);
            }
        }
        Some(record)
    }
}

impl<'a, B> Entry<&'a [u8], B> {
    /// A record with what a list needs: addresses, and of headers those that say what it is. Its bodies are not there,
    /// but their sizes are.
    pub fn sketch(&self, context: &Context, size: impl Fn(&B) -> u64) -> Option<Record> {
        let body = |message: &Message<&[u8], B>| Body {
            data: None,
            cut_from: message.cut_from.or(message.body.as_ref().map(&size)),
        };
        let mut record = self.outline(context, &mut telling_fields, &body)?;
        record.client.common.peername = context.client.common.peername.clone();
        record.server.address = context.server.address.clone();
        Some(record)
    }

    fn outline(
        &self,
        context: &Context,
        fields: &mut dyn FnMut(&'a [u8]) -> Option<HeaderFields>,
        body: BodyOf<'_, 'a, B>,
    ) -> Option<Record> {
        let started = Timestamp::new(self.started);
        let after = |nanos: u64| started.after(std::time::Duration::from_nanos(nanos));
        let mut message = |of: &Message<&'a [u8], B>, began| {
            Some(HttpMessage {
                version: Bytes::from_static(of.version.as_str().as_bytes()),
                headers: fields(of.headers)?,
                body: body(of),
                trailers: match of.trailers {
                    Some(trailers) => Some(fields(trailers)?),
                    None => None,
                },
                started: began,
                ended: of.ended.map(after),
            })
        };
        let line = Line::read(self.line)?;
        let target = context.server.address.as_ref()?;
        let exchange = HttpExchange {
            request: HttpRequest {
                message: message(&self.request, started)?,
                ..line.request(context.scheme(), &target.host, target.port)
            },
            response: match &self.response {
                None => None,
                Some(answer) => Some(HttpResponse {
                    status: answer.status,
                    reason: Bytes::copy_from_slice(answer.reason),
                    message: message(&answer.message, answer.began.map_or(started, after))?,
                }),
            },
            websocket: None,
        };
        let content = Content::Http(Box::new(exchange));
        let mut record = Record::new(self.id.to_string(), started, content);
        record.error = self.error.map(|(text, at)| RecordError {
            message: String::from_utf8_lossy(text).into_owned(),
            timestamp: Timestamp::new(at),
        });
        Some(record)
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub method: &'a [u8],
    pub authority: &'a [u8],
    pub path: &'a [u8],
}

impl<'a> Line<'a> {
    pub fn read(text: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor(text);
        Some(Self {
            method: cursor.sized()?,
            authority: cursor.sized()?,
            path: cursor.0,
        })
    }

    /// The request's scheme, over a connection of this one.
    pub fn scheme(&self, scheme: &'static str) -> &'static str {
        match self.method.eq_ignore_ascii_case(b"CONNECT") {
            true => "",
            false => scheme,
        }
    }

    /// A request of this line, without headers or body.
    pub fn request(&self, scheme: &'static str, host: &str, port: u16) -> HttpRequest {
        HttpRequest {
            method: Bytes::copy_from_slice(self.method),
            scheme: Bytes::from_static(self.scheme(scheme).as_bytes()),
            authority: Bytes::copy_from_slice(self.authority),
            path: Bytes::copy_from_slice(self.path),
            host: host.to_owned(),
            port,
            message: HttpMessage::default(),
        }
    }
}

/// Names and values of header fields. It ends early where the bytes are no fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(Cursor<'a>);

impl<'a> Fields<'a> {
    pub fn new(text: &'a [u8]) -> Self {
        Self(Cursor(text))
    }

    /// How many bytes are left.
    fn rest(&self) -> usize {
        self.0.0.len()
    }

    /// The values of a name.
    pub fn all(self, wanted: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.filter(move |(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()))
            .map(|(_, value)| value)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (name, value) = (self.0.count()?, self.0.count()?);
        Some((self.0.take(name)?, self.0.take(value)?))
    }
}

fn all_fields(text: &[u8]) -> Option<HeaderFields> {
    // One copy, shared by the fields.
    let shared = Bytes::copy_from_slice(text);
    let mut fields = Fields::new(text);
    let mut all = HeaderFields::new();
    while let Some((name, value)) = fields.next() {
        let end = text.len() - fields.rest();
        let middle = end - value.len();
        all.push(
            shared.slice(middle - name.len()..middle),
            shared.slice(middle..end),
        );
    }
    (fields.rest() == 0).then_some(all)
}

/// The fields that a list wants: the host that is meant, and what bodies are.
fn telling_fields(text: &[u8]) -> Option<HeaderFields> {
    let mut fields = HeaderFields::new();
    for (name, value) in Fields::new(text) {
        for telling in ["host", "content-type"] {
            if name.eq_ignore_ascii_case(telling.as_bytes()) {
                fields.push(telling, Bytes::copy_from_slice(value));
            }
        }
    }
    Some(fields)
}

fn version_code(version: HttpVersion) -> u8 {
    match version {
        HttpVersion::Http10 => 0,
        HttpVersion::Http11 => 1,
        HttpVersion::Http2 => 2,
        HttpVersion::Http3 => 3,
    }
}

fn version_of(code: u8) -> Option<HttpVersion> {
    Some(match code {
        0 => HttpVersion::Http10,
        1 => HttpVersion::Http11,
        2 => HttpVersion::Http2,
        3 => HttpVersion::Http3,
        _ => return None,
    })
}

fn outcome_code(kind: OutcomeKind) -> u8 {
    match kind {
        OutcomeKind::Completed => 0,
        OutcomeKind::Answered => 1,
        OutcomeKind::Upgraded => 2,
        OutcomeKind::Dropped => 3,
        OutcomeKind::Failed => 4,
    }
}

fn outcome_of(code: u8) -> Option<OutcomeKind> {
    Some(match code {
        0 => OutcomeKind::Completed,
        1 => OutcomeKind::Answered,
        2 => OutcomeKind::Upgraded,
        3 => OutcomeKind::Dropped,
        4 => OutcomeKind::Failed,
        _ => return None,
    })
}

//! What a list shows of a flow: its row.

use std::cell::Cell;
use std::time::Duration;

use tollgate_flow::Direction;
use tollgate_flow::filter::{Field, Filter, Subject};
use tollgate_flow::record::{Content, FlowType, HttpMessage, Record, Replay, Timestamp};

use crate::capture::CUT_MESSAGES;
use crate::codec::{Cursor, put_number, put_sized};

/// What a list shows of a flow.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Its place in the order in which flows ended. Numbers only grow; one that is missing was dropped or deleted.
    pub seq: u64,
    /// Its id, a UUID.
    pub id: String,
    /// Its type.
    pub flow_type: FlowType,
    /// When it was made, to the microsecond.
    pub created: Timestamp,
    /// The method of an HTTP request.
    pub method: Option<String>,
    /// The URL of an HTTP request; the name that a DNS query asks for.
    pub url: Option<String>,
    /// The host that it went to.
    pub host: Option<String>,
    /// The HTTP version of the request.
    pub version: Option<String>,
    /// The status code.
    pub status: Option<u16>,
    /// The content type of the request.
    pub request_type: Option<String>,
    /// The content type of the response.
    pub response_type: Option<String>,
    /// The bytes from the client, without heads; those that were not kept count.
    pub request_bytes: Option<u64>,
    /// The bytes from the origin; otherwise the same.
    pub response_bytes: Option<u64>,
    /// From the request to the end of the response.
    pub duration: Option<Duration>,
    /// The client, `address:port`.
    pub client: Option<String>,
    /// The origin, `host:port`.
    pub server: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// Whether there is a response.
    pub has_response: bool,
    /// Whether it became a WebSocket.
    pub websocket: bool,
    /// Whether bytes passed that were not kept.
    pub is_cut: bool,
    /// What of it was replayed.
    pub replay: Option<Replay>,
    /// A row can't tell everything of the flow exactly: bytes that are no text, several content types.
    inexact: bool,
    /// The request names another host than it went to, of which a row has one.
    other_host: bool,
    pub(crate) block: u64,
}

const HAS_RESPONSE: u8 = 1;
const WEBSOCKET: u8 = 1 << 1;
const CUT: u8 = 1 << 2;
const REPLAYED_REQUEST: u8 = 1 << 3;
const REPLAYED_RESPONSE: u8 = 1 << 4;
const INEXACT: u8 = 1 << 5;
const OTHER_HOST: u8 = 1 << 6;

impl Summary {
    /// What a list shows of a record.
    pub(crate) fn of(seq: u64, block: u64, record: &Record) -> Self {
        let size = |direction| Subject::size(record, direction);
        let mut summary = Self {
            seq,
            id: record.id.clone(),
            flow_type: record.flow_type(),
            created: record.created,
            method: None,
            url: None,
            host: None,
            version: None,
            status: Subject::status(record),
            request_type: None,
            response_type: None,
            request_bytes: size(Direction::Request),
            response_bytes: size(Direction::Response),
            duration: Subject::duration(record),
            client: None,
            server: None,
            error: record.error.as_ref().map(|error| error.message.clone()),
            has_response: Subject::has_response(record),
            websocket: Subject::is_websocket(record),
            is_cut: record.metadata.get(CUT_MESSAGES).is_some(),
            replay: record.replay,
            inexact: false,
            other_host: false,
            block,
        };
        let address =
            |address: &tollgate_flow::record::Address| format!("{}:{}", address.host, address.port);
        summary.client = record.client.common.peername.as_ref().map(address);
        summary.server = record.server.address.as_ref().map(address);
        match &record.content {
            Content::Http(http) => {
                let request = &http.request;
                summary.method = Some(summary.text(&request.method));
                summary.url = Some(request.pretty_url());
                summary.host = Some(request.host.clone());
                summary.version = Some(summary.text(&request.message.version));
                summary.request_type = summary.media(&request.message);
                summary.is_cut |= request.message.body.is_cut();
                if let Some(response) = &http.response {
                    summary.response_type = summary.media(&response.message);
                    summary.is_cut |= response.message.body.is_cut();
                }
                let lossy = |text: &String| text.contains(char::REPLACEMENT_CHARACTER);
                summary.inexact |= summary.url.as_ref().is_some_and(lossy);
                summary.other_host = request.pretty_host() != request.host;
            }
            Content::Dns(dns) => {
                summary.url = dns.request.questions.first().map(|q| q.name.clone());
            }
            Content::Tcp(_) | Content::Udp(_) => {
                summary.host = record.server.address.as_ref().map(|a| a.host.clone());
            }
        }
        summary
    }

    fn text(&mut self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        self.inexact |= text.contains(char::REPLACEMENT_CHARACTER);
        text.into_owned()
    }

    fn media(&mut self, message: &HttpMessage) -> Option<String> {
        let mut values = message.headers.get_all("content-type");
        let first = values.next()?;
        self.inexact |= values.next().is_some();
        Some(self.text(first))
    }

    /// Appends it, but for its number and its block.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let type_code = match self.flow_type {
            FlowType::Http => 0,
            FlowType::Tcp => 1,
            FlowType::Udp => 2,
            FlowType::Dns => 3,
        };
        out.push(type_code);
        out.push(self.flags());
        out.push(self.created.is_integer().into());
        out.extend_from_slice(&self.created.seconds().to_le_bytes());
        put_sized(out, self.id.as_bytes());
        for text in self.texts() {
            // 0 for none, else one more than the length.
            put_number(out, text.as_ref().map_or(0, |text| text.len() as u64 + 1));
            out.extend_from_slice(text.as_deref().unwrap_or_default().as_bytes());
        }
        let numbers = [
            self.status.map(u64::from),
            self.request_bytes,
            self.response_bytes,
            self.duration
                .map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
        ];
        for number in numbers {
            put_number(out, number.is_some().into());
            put_number(out, number.unwrap_or(0));
        }
    }

    /// Reads what was appended.
    pub(crate) fn read(bytes: &[u8], seq: u64, block: u64) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let flow_type = match cursor.u8()? {
            0 => FlowType::Http,
            1 => FlowType::Tcp,
            2 => FlowType::Udp,
            3 => FlowType::Dns,
            _ => return None,
        };
        let flags = cursor.u8()?;
        let is_integer = cursor.u8()? != 0;
        let seconds = cursor.f64()?;
        let mut summary = Self {
            seq,
            id: String::from_utf8(cursor.sized()?.to_vec()).ok()?,
            flow_type,
            created: match is_integer {
                true => Timestamp::integer(seconds as i64),
                false => Timestamp::new(seconds),
            },
            method: None,
            url: None,
            host: None,
            version: None,
            status: None,
            request_type: None,
            response_type: None,
            request_bytes: None,
            response_bytes: None,
            duration: None,
            client: None,
            server: None,
            error: None,
            has_response: flags & HAS_RESPONSE != 0,
            websocket: flags & WEBSOCKET != 0,
            is_cut: flags & CUT != 0,
            replay: if flags & REPLAYED_REQUEST != 0 {
                Some(Replay::Request)
            } else if flags & REPLAYED_RESPONSE != 0 {
                Some(Replay::Response)
            } else {
                None
            },
            inexact: flags & INEXACT != 0,
            other_host: flags & OTHER_HOST != 0,
            block,
        };
        for text in summary.texts_mut() {
            if let Some(length) = cursor.count()?.checked_sub(1) {
                *text = Some(String::from_utf8(cursor.take(length)?.to_vec()).ok()?);
            }
        }
        let mut number = || {
            let is_some = cursor.number()? != 0;
            let number = cursor.number()?;
            Some(is_some.then_some(number))
        };
        summary.status = number()?.and_then(|status| u16::try_from(status).ok());
        summary.request_bytes = number()?;
        summary.response_bytes = number()?;
        summary.duration = number()?.map(Duration::from_micros);
        Some(summary)
    }

    fn texts(&self) -> [&Option<String>; 9] {
        [
            &self.method,
            &self.url,
            &self.host,
            &self.version,
            &self.request_type,
            &self.response_type,
            &self.client,
            &self.server,
            &self.error,
        ]
    }

    fn texts_mut(&mut self) -> [&mut Option<String>; 9] {
        [
            &mut self.method,
            &mut self.url,
            &mut self.host,
            &mut self.version,
            &mut self.request_type,
            &mut self.response_type,
            &mut self.client,
            &mut self.server,
            &mut self.error,
        ]
    }

    fn flags(&self) -> u8 {
        let replay = match self.replay {
            Some(Replay::Request) => REPLAYED_REQUEST,
            Some(Replay::Response) => REPLAYED_RESPONSE,
            None => 0,
        };
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        replay
            | flag(self.has_response, HAS_RESPONSE)
            | flag(self.websocket, WEBSOCKET)
            | flag(self.is_cut, CUT)
            | flag(self.inexact, INEXACT)
            | flag(self.other_host, OTHER_HOST)
    }

    /// Whether a filter means this flow; `None` when only the whole flow can tell.
    ///
    /// The filter is asked about the row. If it comes to its answer without looking at anything that a row doesn't
    /// have, the answer holds.
    pub(crate) fn matches(&self, filter: &Filter) -> Option<bool> {
        if self.inexact {
            return None;
        }
        let glance = Glance {
            row: self,
            unknown: Cell::new(false),
        };
        let answer = filter.matches(&glance);
        (!glance.unknown.get()).then_some(answer)
    }
}

/// A moment in microseconds since 1970, as the database holds it.
pub(crate) fn micros(moment: Timestamp) -> i64 {
    (moment.seconds() * 1e6) as i64
}

/// SQLite's integers have a sign.
pub(crate) fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A row as a filter sees it, which notes when it was asked for more than a row has.
struct Glance<'a> {
    row: &'a Summary,
    unknown: Cell<bool>,
}

impl Subject for Glance<'_> {
    fn flow_type(&self) -> FlowType {
        self.row.flow_type
    }

    fn has_error(&self) -> bool {
        self.row.error.is_some()
    }

    fn has_response(&self) -> bool {
        self.row.has_response
    }

    fn is_websocket(&self) -> bool {
        self.row.websocket
    }

    fn replay(&self) -> Option<Replay> {
        self.row.replay
    }

    fn status(&self) -> Option<u16> {
        self.row.status
    }

    fn size(&self, direction: Direction) -> Option<u64> {
        match direction {
            Direction::Request => self.row.request_bytes,
            Direction::Response => self.row.response_bytes,
        }
    }

    fn duration(&self) -> Option<Duration> {
        self.row.duration
    }

    fn any(&self, field: Field, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let row = self.row;
        let mut ask =
            |text: &Option<String>| text.as_ref().is_some_and(|text| test(text.as_bytes()));
        match field {
            Field::Method => ask(&row.method),
            Field::Url => ask(&row.url),
            Field::Host if row.flow_type == FlowType::Http => {
                let answer = ask(&row.host);
                // A match is one; where there is none, the other host may be.
                if !answer && row.other_host {
                    self.unknown.set(true);
                }
                answer
            }
            Field::Version => ask(&row.version),
            Field::ContentType(Direction::Request) => ask(&row.request_type),
            Field::ContentType(Direction::Response) => ask(&row.response_type),
            Field::Source => ask(&row.client),
            Field::Destination => ask(&row.server),
            Field::Id => test(row.id.as_bytes()),
            _ => {
                self.unknown.set(true);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{HttpExchange, HttpRequest, HttpResponse};

    fn record(host_header: &'static str) -> Record {
        let mut request = HttpRequest::new("GET", "https", "example.com", 443, "/a?b");
        request.message.headers.push("Host", host_header);
        request.message.headers.push("X-A", "1");
        let mut exchange = HttpExchange::new(request);
        let mut response = HttpResponse::new(404, "Not Found");
        response.message.headers.push("Content-Type", "text/html");
        exchange.response = Some(response);
        Record::http("id", exchange)
    }

    #[test]
    fn a_row_answers_what_it_can_and_as_the_record_would() {
        for host in ["example.com", "other.example"] {
            let record = record(host);
            let row = Summary::of(1, 1, &record);
            // A row has one of two.
            let one_host = host == "example.com";
            for (expression, known) in [
                ("~m GET", true),
                ("~c 404 & ~d example.com", true),
                ("~u other", true),
                ("~d other", one_host),
                ("!~d other", one_host),
                ("~t html & ~status 4xx", true),
                ("~size 0 & !~e & ~s & ~http", true),
                ("~a | ~tcp", true),
                ("~hq X-A", false),
                ("~m POST & ~b x", true),
                ("~m GET & ~b x", false),
                ("~m GET | ~b x", true),
                ("!~marked", false),
                ("~c 500 & ~d other", true),
            ] {
                let filter = Filter::new(expression).unwrap();
                let answer = row.matches(&filter);
                assert_eq!(answer.is_some(), known, "{expression} at {host}");
                if let Some(answer) = answer {
                    assert_eq!(answer, filter.matches(&record), "{expression}");
                }
            }
        }
    }

    #[test]
    fn a_row_comes_back_as_it_went() {
        let mut row = Summary::of(3, 4, &record("example.com"));
        row.created = Timestamp::new(1_700_000_000.25);
        row.duration = Some(Duration::from_micros(1234));
        row.replay = Some(Replay::Response);
        row.is_cut = true;
        row.other_host = true;
        row.error = Some("x".into());
        row.host = Some(String::new());
        let mut bytes = Vec::new();
        row.write(&mut bytes);
        let read = Summary::read(&bytes, 3, 4).unwrap();
        assert_eq!(read, row);
        for end in 0..bytes.len() {
            assert_eq!(Summary::read(&bytes[..end], 3, 4), None);
        }
    }
}

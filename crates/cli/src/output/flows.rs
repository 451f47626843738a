//! The interceptor that shows flows. It observes, and answers `Continue` to everything.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollgate_flow::filter::Filter;
use tollgate_flow::{
    Direction, Flow, FlowId, HttpVersion, Interceptor, Interest, Message, OnFailure, Outcome,
    Piece, Step,
};

use super::style::Style;
use super::{Printer, Stream, Text, detail, json, line, websocket};
use crate::os::terminal_width;

/// Bytes of both bodies that are kept of one flow until it is shown.
const FLOW_BYTES: usize = 1024 * 1024;
/// Bytes of all bodies that wait for their flow to end, or for the terminal.
const ALL_BYTES: usize = 64 * 1024 * 1024;

/// Shows flows as they end: mitmdump's lines, or JSON.
pub struct FlowPrinter {
    printer: Printer,
    stream: Stream,
    style: Style,
    form: Form,
    cuts_urls: bool,
    filter: Option<Filter>,
    captures: Mutex<HashMap<FlowId, Capture>>,
    held: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Form {
    Lines { detail: u8 },
    Json { process: bool },
}

impl FlowPrinter {
    /// Shows lines; `detail` is mitmproxy's `flow_detail`, 1 to 4.
    pub fn lines(printer: Printer, stream: Stream, style: Style, detail: u8) -> Self {
        Self::new(printer, stream, style, Form::Lines { detail })
    }

    /// Shows one JSON object per flow, with the client's process if asked for.
    pub fn json(printer: Printer, stream: Stream, process: bool) -> Self {
        Self::new(printer, stream, Style::PLAIN, Form::Json { process })
    }

    /// Cuts URLs so that lines fit the terminal, where only lines are shown. What goes to a file or a pipe stays whole.
    pub fn cut_urls(mut self) -> Self {
        self.cuts_urls = true;
        self
    }

    /// Shows only flows that match, as they are known when they are shown.
    pub fn only(mut self, filter: Option<Filter>) -> Self {
        self.filter = filter;
        self
    }

    fn shows(&self, flow: &Flow) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| filter.matches(flow))
    }

    fn new(printer: Printer, stream: Stream, style: Style, form: Form) -> Self {
        Self {
            printer,
            stream,
            style,
            form,
            cuts_urls: false,
            filter: None,
            captures: Mutex::default(),
            held: Arc::default(),
        }
    }

    fn shows_bodies(&self) -> bool {
        matches!(self.form, Form::Lines { detail: 3.. })
    }

    fn captures(&self) -> MutexGuard<'_, HashMap<FlowId, Capture>> {
        self.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message's line, and its content where bodies are shown.
    fn message_text(&self, line: String, message: &Message<'_>, detail: u8) -> Text {
        if detail < 3 {
            return Text::Ready(line);
        }
        let direction = message.direction;
        let mut capture = Capture::new(&self.held);
        capture.add(Piece {
            direction,
            data: message.data,
            last: false,
        });
        let style = self.style;
        Text::Later(Box::new(move || {
            let mut out = line;
            let body = match direction {
                Direction::Request => &capture.request,
                Direction::Response => &capture.response,
            };
            detail::body(&mut out, &body.data, !body.cut, detail >= 4, style);
            out.push('\n');
            out
        }))
    }

    /// The flow's lines. Heads are written at once; bodies are made readable by the printing thread.
    fn text(&self, flow: &Flow, outcome: &Outcome, detail: u8) -> Text {
        let style = self.style;
        let mut request = String::with_capacity(160);
        let url_width =
            (detail == 1 && self.cuts_urls).then(|| terminal_width().saturating_sub(25).max(50));
        line::request_line(&mut request, flow, style, url_width);
        let mut response = String::new();
        if detail >= 2 {
            line::headers(&mut request, flow.request.headers(), style);
            if let Some(trailers) = &flow.request.trailers {
                line::headers(&mut request, trailers, style);
            }
        }
        line::response_line(&mut response, flow, style, detail == 1);
        if detail >= 2
            && let Some(head) = &flow.response
        {
            line::headers(&mut response, head.headers(), style);
            if let Some(trailers) = &head.trailers {
                line::headers(&mut response, trailers, style);
            }
        }
        let mut end = String::new();
        if detail >= 2 {
            line::usage_line(&mut end, flow, style);
        }
        line::error_line(&mut end, outcome, style);
        if detail >= 2 {
            end.push('\n');
        }
        let capture = self.captures().remove(&flow.id);
        let Some(capture) = capture.filter(|_| detail >= 3) else {
            if detail >= 2 && !response.is_empty() {
                request.push('\n');
            }
            return Text::Ready(request + &response + &end);
        };
        Text::Later(Box::new(move || {
            let mut out = request;
            let whole = detail >= 4;
            let body = |out: &mut String, body: &Body| {
                detail::body(out, &body.data, !body.cut, whole, style);
            };
            body(&mut out, &capture.request);
            if !response.is_empty() {
                out.push('\n');
            }
            out.push_str(&response);
            body(&mut out, &capture.response);
            out + &end
        }))
    }
}

/// Whether a response says that a WebSocket begins: over HTTP/1, or over HTTP/2 (RFC 8441).
fn opens_websocket(flow: &Flow) -> bool {
    websocket::is_asked_for(flow)
        && flow.response.as_ref().is_some_and(|response| {
            let is_h2 = response.version == HttpVersion::Http2;
            response.status() == 101 || (is_h2 && response.status() == 200)
        })
}

impl Interceptor for FlowPrinter {
    fn name(&self) -> &str {
        "terminal"
    }

    fn on_failure(&self) -> OnFailure {
        OnFailure::Open
    }

    fn interest(&self, flow: &Flow) -> Interest {
        if let Form::Json { process: true } = self.form {
            // Now, while the client waits: at the end of the flow it may be gone. The connection remembers it.
            flow.connection.process();
        }
        let http = match self.form {
            Form::Lines { detail: 3.. } => {
                Interest::HEADS | Interest::DATA | Interest::DECODED | Interest::END
            }
            Form::Lines { detail: 2 } => Interest::HEADS | Interest::END,
            Form::Lines { .. } | Form::Json { .. } => Interest::END,
        };
        if websocket::is_asked_for(flow) {
            return http | Interest::RESPONSE | Interest::MESSAGES;
        }
        http
    }

    fn response(&self, flow: &mut Flow) -> Step {
        if let Form::Lines { detail } = self.form
            && opens_websocket(flow)
            && self.shows(flow)
        {
            // Before its messages, which may come for hours.
            let text = self.text(flow, &Outcome::COMPLETED, detail);
            self.printer.flow(self.stream, text);
        }
        Step::Continue
    }

    fn message(&self, flow: &mut Flow, message: Message<'_>) -> Step {
        if let (Form::Lines { detail }, Some(_)) = (self.form, &flow.websocket)
            && let Some(line) = websocket::message_line(flow, &message)
            && self.shows(flow)
        {
            let text = self.message_text(line, &message, detail);
            self.printer.flow(self.stream, text);
        }
        Step::Continue
    }

    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        if self.shows_bodies() && !piece.data.is_empty() {
            let mut captures = self.captures();
            let capture = match captures.entry(flow.id) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Capture::new(&self.held)),
            };
            capture.add(piece);
        }
        Step::Continue
    }

    fn end(&self, flow: &Flow, outcome: &Outcome) {
        if !self.shows(flow) {
            self.captures().remove(&flow.id);
            return;
        }
        let text = match self.form {
            Form::Json { process } => {
                let mut out = String::with_capacity(768);
                json::flow_line(&mut out, flow, outcome, process);
                Text::Ready(out)
            }
            Form::Lines { .. } if flow.websocket.is_some() && opens_websocket(flow) => {
                let mut out = String::new();
                websocket::end_line(&mut out, flow, self.style);
                line::error_line(&mut out, outcome, self.style);
                Text::Ready(out)
            }
            Form::Lines { detail } => self.text(flow, outcome, detail),
        };
        self.printer.flow(self.stream, text);
    }
}

/// What was kept of one flow's bodies.
struct Capture {
    request: Body,
    response: Body,
    size: usize,
    held: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Body {
    data: Vec<u8>,
    cut: bool,
}

impl Capture {
    fn new(held: &Arc<AtomicUsize>) -> Self {
        Self {
            request: Body::default(),
            response: Body::default(),
            size: 0,
            held: Arc::clone(held),
        }
    }

    fn add(&mut self, piece: Piece<'_>) {
        let body = match piece.direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        };
        if body.cut {
            return;
        }
        let free = FLOW_BYTES.saturating_sub(self.size);
        let (kept, rest) = piece
            .data
            .split_at_checked(free)
            .unwrap_or((piece.data, &[]));
        let before = self.held.fetch_add(kept.len(), Ordering::Relaxed);
        if before.saturating_add(kept.len()) > ALL_BYTES {
            self.held.fetch_sub(kept.len(), Ordering::Relaxed);
            body.cut = true;
            return;
        }
        body.data.extend_from_slice(kept);
        body.cut = !rest.is_empty();
        self.size += kept.len();
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.held.fetch_sub(self.size, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tollgate_flow::{
        ConnectionId, ConnectionInfo, ErrorClass, FlowError, Response, Scheme, Side, Target,
    };

    use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

    use super::*;

    /// A flow of a GET that was answered over HTTP/1.1.
    pub fn flow(url: &str, status: u16, reason: &[u8], size: u64) -> Flow {
        let connection = ConnectionInfo::new(
            ConnectionId(1),
            "127.0.0.1:1234".parse().unwrap(),
            "127.0.0.1:8080".parse().unwrap(),
            None,
        );
        let mut flow = Flow::new(Arc::new(connection));
        let (scheme, rest) = url.split_once("://").unwrap();
        flow.request.scheme = match scheme {
            "http" => Scheme::Http,
            _ => Scheme::Https,
        };
        let (authority, path) = rest.split_at_checked(rest.find('/').unwrap()).unwrap();
        let port = flow.request.scheme.default_port();
        flow.request.target = Target::parse(authority, Some(port)).unwrap();
        flow.request.head = RequestHead::build(b"GET", path.as_bytes(), Version::Http11).unwrap();
        let mut response = Response::default();
        response.body_size = size;
        response.head = ResponseHead::build(status, reason).unwrap();
        flow.response = Some(Box::new(response));
        flow
    }

    /// An upstream failure.
    pub fn failed(message: &'static str) -> Outcome {
        Outcome::failed(FlowError::new(Side::Upstream, ErrorClass::Connect, message))
    }

    fn rendered(detail: u8, bodies: &[(Direction, &[u8])]) -> String {
        let printer = Printer::start().unwrap();
        let shown = FlowPrinter::lines(printer, Stream::Stdout, Style::PLAIN, detail);
        let mut flow = flow("https://example.com/", 200, b"OK", 5);
        flow.request
            .headers_mut()
            .append(b"Host", b"example.com")
            .unwrap();
        for &(direction, data) in bodies {
            let _ = shown.data(
                &mut flow,
                Piece {
                    direction,
                    data,
                    last: false,
                },
            );
        }
        let text = match shown.text(&flow, &Outcome::COMPLETED, detail) {
            Text::Ready(text) => text,
            Text::Later(make) => make(),
        };
        assert_eq!(shown.held.load(Ordering::Relaxed), 0, "captures are freed");
        assert!(shown.captures().is_empty());
        text
    }

    #[test]
    fn detail_decides_what_is_shown() {
        assert_eq!(
            rendered(1, &[]),
            "127.0.0.1:1234: GET https://example.com/\n             << 200 OK 5b\n"
        );
        assert_eq!(
            rendered(2, &[]),
            "127.0.0.1:1234: GET https://example.com/\n    Host: example.com\n\n << 200 OK 5b\n\n"
        );
        assert_eq!(
            rendered(
                3,
                &[(Direction::Response, b"[1"), (Direction::Response, b"]")]
            ),
            "127.0.0.1:1234: GET https://example.com/\n    Host: example.com\n\n << 200 OK 5b\n\n    [\n      1\n    ]\n\n"
        );
    }

    #[test]
    fn bodies_are_kept_within_their_bound() {
        let held = Arc::new(AtomicUsize::new(0));
        let mut capture = Capture::new(&held);
        let piece = |data| Piece {
            direction: Direction::Response,
            data,
            last: false,
        };
        let mebibyte = vec![b'a'; FLOW_BYTES];
        capture.add(piece(&mebibyte));
        assert!(!capture.response.cut);
        capture.add(piece(b"b"));
        assert!(capture.response.cut);
        assert_eq!(capture.response.data.len(), FLOW_BYTES);
        assert_eq!(held.load(Ordering::Relaxed), FLOW_BYTES);

        held.store(ALL_BYTES, Ordering::Relaxed);
        let mut other = Capture::new(&held);
        other.add(piece(b"c"));
        assert!(other.response.cut && other.response.data.is_empty());
    }
}

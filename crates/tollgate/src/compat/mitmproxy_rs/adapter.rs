//! The native interceptor that speaks to a [`ResponseInterceptor`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tollgate_flow::{Direction, Flow, FlowId, Interceptor, Interest, Outcome, Piece, Reply, Step};

use super::flow::{HTTPFlow, HTTPResponse, apply};
use super::{Config, ResponseInterceptor};

/// Calls a [`ResponseInterceptor`], or none, and does what the configuration asks of requests.
pub(super) struct Adapter {
    interceptor: Option<Arc<dyn ResponseInterceptor>>,
    anticache: bool,
    anticomp: bool,
    limit: usize,
    open: Mutex<HashMap<FlowId, Open>>,
}

/// What is kept of a flow until it ends.
enum Open {
    /// The request body so far; `None` once it is too long. The flag says that it is whole.
    Request(Option<Vec<u8>>, bool),
    /// A response that passes in pieces.
    Streaming(Arc<HTTPFlow>),
    /// Nothing more is needed.
    Done,
}

impl Adapter {
    pub fn new(interceptor: Option<Arc<dyn ResponseInterceptor>>, config: &Config) -> Self {
        Self {
            interceptor,
            anticache: config.anticache,
            anticomp: config.anticomp,
            limit: config.max_body_bytes,
            open: Mutex::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<FlowId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interceptor for Adapter {
    fn name(&self) -> &str {
        "mitmproxy_rs interceptor"
    }

    fn interest(&self, flow: &Flow) -> Interest {
        let mut interest = Interest::NONE;
        if self.anticache || self.anticomp || self.interceptor.is_some() {
            interest |= Interest::REQUEST;
        }
        if self.interceptor.is_some() {
            interest |= Interest::REQUEST_DATA | Interest::RESPONSE_DATA | Interest::DECODED;
            // A stream may never end: waiting for its body would keep it from the client.
            interest |= if asks_for_stream(flow) {
                Interest::RESPONSE
            } else {
                Interest::RESPONSE_BODY
            };
        }
        interest
    }

    fn request(&self, flow: &mut Flow) -> Step {
        let headers = flow.request.headers_mut();
        if self.anticache {
            headers.remove("if-none-match");
            headers.remove("if-modified-since");
        }
        if self.anticomp {
            // A constant that is a valid header.
            let _ = headers.set(b"Accept-Encoding", b"identity");
        }
        if self.interceptor.is_some() {
            let body = Open::Request(Some(Vec::new()), false);
            self.open().insert(flow.id, body);
        }
        Step::Continue
    }

    fn response(&self, flow: &mut Flow) -> Step {
        let Some(interceptor) = &self.interceptor else {
            return Step::Continue;
        };
        let request_body = match self.open().insert(flow.id, Open::Done) {
            Some(Open::Request(body, whole)) if whole || flow.request.body_size == 0 => body,
            _ => None,
        };
        let Some(response) = &flow.response else {
            return Step::Continue;
        };
        let mut copy = HTTPFlow::new(flow, response, request_body, self.limit);
        let before = copy.response.clone();
        interceptor.on_response(&mut copy);
        let Some(response) = &mut flow.response else {
            return Step::Continue;
        };
        let passes = response.body().is_none();
        if apply(&before, &copy.response, response) {
            return replacement(copy.response);
        }
        if passes {
            self.open().insert(flow.id, Open::Streaming(Arc::new(copy)));
        }
        Step::Continue
    }

    fn data(&self, flow: &mut Flow, piece: Piece<'_>) -> Step {
        let streaming = match (self.open().get_mut(&flow.id), piece.direction) {
            (Some(Open::Request(body, whole)), Direction::Request) => {
                let fits = body
                    .as_ref()
                    .is_some_and(|b| b.len().saturating_add(piece.data.len()) <= self.limit);
                match body {
                    Some(body) if fits => body.extend_from_slice(piece.data),
                    _ => *body = None,
                }
                *whole |= piece.last;
                None
            }
            (Some(Open::Streaming(copy)), Direction::Response) => Some(Arc::clone(copy)),
            _ => None,
        };
        if let (Some(copy), Some(interceptor), false) =
            (streaming, &self.interceptor, piece.data.is_empty())
        {
            interceptor.on_response_chunk(&copy, piece.data);
        }
        Step::Continue
    }

    fn end(&self, flow: &Flow, _: &Outcome) {
        self.open().remove(&flow.id);
    }
}

/// Whether a request says that it wants a stream.
fn asks_for_stream(flow: &Flow) -> bool {
    flow.request.headers().tokens("accept").any(|token| {
        let essence = token.split(|&b| b == b';').next().unwrap_or_default();
        essence
            .trim_ascii()
            .eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// The answer instead of a response whose body is not here.
fn replacement(response: HTTPResponse) -> Step {
    let mut reply = Reply::new(response.status_code).body(response.content.unwrap_or_default());
    reply.reason = response.reason.into();
    for (name, value) in response.headers {
        if !name.eq_ignore_ascii_case("content-encoding") {
            // What can't be sent is left out.
            let _ = reply.headers.append(name.as_bytes(), value.as_bytes());
        }
    }
    Step::respond(reply)
}

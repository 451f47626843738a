//! What a scanner is shown, and what it may answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tollgate_flow::{Bytes, Flow, HeaderList, Reply};
use tollgate_wire::http1::{RequestHead, ResponseHead, encode_chunk};
use tollgate_wire::icap::{self, HttpHeads, LAST, LAST_OF_ALL, Part};

use super::ScannerUrl;

/// A question as it is written.
pub(super) struct Question {
    pub first: Vec<u8>,
    /// What follows a `100 Continue`, behind a preview.
    pub rest: Option<Vec<u8>>,
}

/// A request, or an answer with the request that it is for.
pub(super) struct Asked {
    pub heads: HttpHeads,
    pub body: Bytes,
}

/// What becomes of it.
pub(super) enum Verdict {
    Clean,
    /// This is the answer in its place.
    Reply {
        reply: Box<Reply>,
        why: String,
    },
    /// The request goes on like this.
    Changed(Box<Changed>),
}

/// A request as a scanner gave it back.
pub(super) struct Changed {
    pub head: RequestHead,
    /// The body without its coding, if it is another one.
    pub body: Option<Bytes>,
}

impl Asked {
    /// `None` if it can't be written in HTTP/1.
    pub fn request(flow: &Flow) -> Option<Self> {
        Some(Self {
            heads: HttpHeads {
                request: Some(request_head(flow)?),
                response: None,
            },
            body: flow.request.body().cloned().unwrap_or_default(),
        })
    }

    /// The same.
    pub fn response(flow: &Flow) -> Option<Self> {
        let response = flow.response.as_ref()?;
        let mut head = response.head.clone();
        head.headers.remove("transfer-encoding");
        Some(Self {
            heads: HttpHeads {
                request: Some(request_head(flow)?),
                response: Some(head),
            },
            body: response.body().cloned().unwrap_or_default(),
        })
    }

    /// The method of ICAP.
    pub fn method(&self) -> &'static str {
        match self.heads.response {
            Some(_) => "RESPMOD",
            None => "REQMOD",
        }
    }

    /// As a request of ICAP; with a preview of so many bytes, if the service wants one.
    pub fn to_icap(&self, url: &ScannerUrl, preview: Option<usize>) -> Option<Question> {
        let part = match (self.body.is_empty(), &self.heads.response) {
            (true, _) => Part::NoBody,
            (false, None) => Part::RequestBody,
            (false, Some(_)) => Part::ResponseBody,
        };
        let mut http = Vec::new();
        let encapsulated = self.heads.write_to(part, &mut http);
        let mut head = icap::RequestHead::build(self.method(), &url.whole()).ok()?;
        let fields = [
            ("Host", url.target.to_string()),
            ("Allow", "204".to_owned()),
            ("Encapsulated", encapsulated.to_string()),
        ];
        for (name, value) in fields {
            head.headers
                .append(name.as_bytes(), value.as_bytes())
                .ok()?;
        }
        let preview = preview.filter(|_| part != Part::NoBody);
        if let Some(preview) = preview {
            let length = preview.to_string();
            head.headers.append(b"Preview", length.as_bytes()).ok()?;
        }
        let mut first = Vec::new();
        head.write_to(&mut first);
        first.extend(http);
        let mut rest = None;
        match preview.map(|preview| self.body.split_at_checked(preview)) {
            _ if part == Part::NoBody => {}
            // More than what is previewed: the rest waits until it is asked for.
            Some(Some((begin, more))) if !more.is_empty() => {
                chunk(&mut first, begin);
                first.extend_from_slice(LAST);
                let mut behind = Vec::new();
                chunk(&mut behind, more);
                behind.extend_from_slice(LAST);
                rest = Some(behind);
            }
            Some(_) => {
                chunk(&mut first, &self.body);
                first.extend_from_slice(LAST_OF_ALL);
            }
            None => {
                chunk(&mut first, &self.body);
                first.extend_from_slice(LAST);
            }
        }
        Some(Question { first, rest })
    }

    /// As the scan endpoint takes it.
    pub fn to_json(&self) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let lines = |list: &HeaderList| -> Vec<(String, String)> {
            list.iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect()
        };
        let request = self.heads.request.as_ref();
        let method = request.map(|head| text(head.method()));
        let url = request.map(|head| text(head.target()));
        let body = STANDARD.encode(&self.body);
        match (&self.heads.response, request) {
            (Some(response), _) => json!({
                "kind": "response",
                "method": method,
                "url": url,
                "status": response.status(),
                "headers": lines(&response.headers),
                "body_b64": body,
            }),
            (None, request) => json!({
                "kind": "request",
                "method": method,
                "url": url,
                "headers": request.map(|head| lines(&head.headers)),
                "body_b64": body,
            }),
        }
    }
}

/// One of no length would be the end.
fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        encode_chunk(out, bytes);
    }
}

/// The absolute URL, which stands in the request line that a scanner sees.
pub(super) fn url_of(flow: &Flow) -> String {
    flow.request.url()
}

/// Whether a field says how a body is framed, or is about the connection: no scanner changes that.
pub(super) fn is_framing(name: &[u8]) -> bool {
    [
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "trailer",
        "expect",
    ]
    .iter()
    .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// An answer as the proxy's own.
pub(super) fn reply(head: &ResponseHead, body: Bytes) -> Box<Reply> {
    let mut reply = Reply::new(head.status());
    for (name, value) in head.headers.iter().filter(|(name, _)| !is_framing(name)) {
        let _ = reply.headers.append(name, value);
    }
    Box::new(reply.body(body))
}

fn request_head(flow: &Flow) -> Option<RequestHead> {
    let mut head = flow.request.head.clone();
    head.set_target(url_of(flow).as_bytes()).ok()?;
    head.headers.remove("transfer-encoding");
    if !head.headers.contains("host") {
        let host = flow.request.target.to_string();
        head.headers.append(b"Host", host.as_bytes()).ok()?;
    }
    Some(head)
}

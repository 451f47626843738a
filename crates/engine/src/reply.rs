//! Answers that the proxy gives itself.

use std::borrow::Cow;

use tollgate_flow::{ErrorClass, FlowError, Reply, Side};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1;

/// The reply for a flow that failed before its response began: a proper status, a sentence for a
/// person, and a `Proxy-Status` field (RFC 9209) for programs.
pub(crate) fn for_error(error: &FlowError) -> Reply {
    let status = match (error.class, error.side) {
        (ErrorClass::Blocked, _) => 403,
        (ErrorClass::Loop, _) => 508,
        (ErrorClass::Limit, Side::Client) => 413,
        (ErrorClass::Limit | ErrorClass::Shutdown, Side::Proxy) => 503,
        (ErrorClass::Timeout, Side::Client) => 408,
        (ErrorClass::Timeout, _) => 504,
        (_, Side::Client) => 400,
        _ => 502,
    };
    with_status(status, error)
}

/// The same with a status that the caller knows better.
pub(crate) fn with_status(status: u16, error: &FlowError) -> Reply {
    // Names from RFC 9209 section 2.3.
    let name = match error.class {
        ErrorClass::Dns => "dns_error",
        ErrorClass::Connect => "connection_refused",
        ErrorClass::Tls => "tls_certificate_error",
        ErrorClass::Timeout if error.side == Side::Client => "http_request_error",
        ErrorClass::Timeout => "connection_timeout",
        ErrorClass::Reset => "connection_terminated",
        ErrorClass::Protocol if error.side == Side::Client => "http_request_error",
        ErrorClass::Protocol => "http_protocol_error",
        ErrorClass::Limit => "connection_limit_reached",
        ErrorClass::Loop => "proxy_loop_detected",
        ErrorClass::Blocked => "http_request_denied",
        _ => "proxy_internal_error",
    };
    let mut details = String::new();
    for c in error.message.chars().take(200) {
        match c {
            '"' | '\\' => details.extend(['\\', c]),
            ' '..='~' => details.push(c),
            _ => details.push('?'),
        }
    }
    let mut reply = Reply::new(status).text(format!(
        "Tollgate: {} error\n\n{}\n",
        error.side, error.message
    ));
    let value = format!("tollgate; error={name}; details=\"{details}\"");
    // Only printable ASCII went in.
    let _ = reply.headers.append(b"Proxy-Status", value.as_bytes());
    reply
}

/// The status that a reply may have: an interceptor can ask for any number.
pub(crate) fn valid_status(status: u16) -> u16 {
    if (200..=599).contains(&status) {
        status
    } else {
        500
    }
}

/// Whether a reply with this status has no body.
pub(crate) fn is_bodiless(status: u16) -> bool {
    status == 204 || status == 304
}

/// The length that a reply has: its body's. One to HEAD, without a body, may say how long that would be.
pub(crate) fn length(reply: &Reply, head_only: bool) -> u64 {
    match reply.headers.content_length() {
        Some(said) if head_only && reply.body.is_empty() => said,
        _ => reply.body.len() as u64,
    }
}

/// Writes a reply as HTTP/1.1, without a body for HEAD and where the status has none.
pub(crate) fn write_http1(reply: &Reply, head_only: bool, close: bool, out: &mut Vec<u8>) {
    write_http1_head(reply, Some(length(reply, head_only)), close, out);
    if !head_only && !is_bodiless(valid_status(reply.status)) {
        out.extend_from_slice(&reply.body);
    }
}

/// Writes the head of a reply as HTTP/1.1: with a length, or for a body in chunks.
pub(crate) fn write_http1_head(reply: &Reply, length: Option<u64>, close: bool, out: &mut Vec<u8>) {
    let status = valid_status(reply.status);
    let reason = if reply.reason.is_empty() {
        Cow::Borrowed(http1::standard_reason(status))
    } else {
        // A reason with a line break would be a second header.
        Cow::Owned(reply.reason.replace(['\r', '\n'], " "))
    };
    out.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
    let mut headers: HeaderList = reply.headers.clone();
    for name in ["content-length", "transfer-encoding", "connection"] {
        headers.remove(name);
    }
    headers.write_to(out);
    match length {
        None => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Some(length) if !is_bodiless(status) => {
            out.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        Some(_) => {}
    }
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

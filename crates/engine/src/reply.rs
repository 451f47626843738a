//! Answers that the proxy gives itself.

use std::borrow::Cow;

use tollgate_flow::{ErrorClass, FlowError, Reply, Side};
use tollgate_wire::headers::HeaderList;

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

/// Writes a reply as HTTP/1.1, without a body for HEAD and where the status has none.
pub(crate) fn write_http1(reply: &Reply, head_only: bool, close: bool, out: &mut Vec<u8>) {
    let status = valid_status(reply.status);
    let reason = if reply.reason.is_empty() {
        Cow::Borrowed(reason(status))
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
    let bodiless = status == 204 || status == 304;
    if !bodiless {
        out.extend_from_slice(format!("Content-Length: {}\r\n", reply.body.len()).as_bytes());
    }
    if close {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !head_only && !bodiless {
        out.extend_from_slice(&reply.body);
    }
}

/// The standard reason phrase.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        511 => "Network Authentication Required",
        _ => "",
    }
}

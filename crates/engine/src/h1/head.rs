//! What this hop reads in a request's head, and what it takes off it.

use std::sync::Arc;

use tollgate_flow::{ErrorClass, Flow, FlowError, HttpVersion, Scheme, Side, Target};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{RequestHead, Version};

use crate::policy::{Action, Policy};
use crate::sandwich::{self, Ticket, Tickets};

use super::Mode;
use super::failure::client_anomaly;

pub(super) enum Prepared {
    Request,
    Connect(Target),
    /// A request that the scanner gives back.
    Returned(Arc<Ticket>),
}

/// Finds out where a request goes, and takes off what is meant for this hop only.
pub(super) fn prepare(
    mode: &Mode,
    request: &mut tollgate_flow::Request,
    tickets: &Tickets,
) -> Result<Prepared, (u16, FlowError)> {
    let bad = |message: &str| {
        (
            400,
            FlowError::new(Side::Client, ErrorClass::Protocol, message.to_owned()),
        )
    };
    request.version = match request.head.version() {
        Version::Http10 => HttpVersion::Http10,
        Version::Http11 => HttpVersion::Http11,
    };
    match mode {
        Mode::Proxy => {
            if request.head.method() == b"CONNECT" {
                let target = std::str::from_utf8(request.head.target())
                    .ok()
                    .and_then(|t| Target::parse(t, None))
                    .ok_or_else(|| bad("CONNECT needs a target of the form host:port"))?;
                return Ok(Prepared::Connect(target));
            }
            check_host(&request.head)?;
            absolute_form(request).map_err(bad)?;
        }
        Mode::Return => {
            check_host(&request.head)?;
            if request.head.method() == b"CONNECT" {
                return Err((
                    403,
                    FlowError::new(
                        Side::Client,
                        ErrorClass::Unauthenticated,
                        "only the scanner's requests are taken here",
                    ),
                ));
            }
            absolute_form(request).map_err(bad)?;
            let ticket = tickets
                .redeem(&mut request.head.headers, &request.target)
                .map_err(|error| (403, error))?;
            request.target = ticket.target.clone();
            request.scheme = ticket.scheme;
            if let Some(host) = &ticket.host {
                let renamed = request.head.headers.set(b"Host", host);
                renamed.map_err(|_| bad("the Host header can't be put back"))?;
            }
            strip_hop_by_hop(&mut request.head.headers);
            return Ok(Prepared::Returned(ticket));
        }
        Mode::Fixed(fixed) => {
            check_host(&request.head)?;
            if request.target != fixed.target {
                request.target = fixed.target.clone();
            }
            request.scheme = fixed.scheme;
            if let Some(host) = &fixed.host_header {
                request
                    .head
                    .headers
                    .set(b"Host", host.as_bytes())
                    .map_err(|_| bad("the Host header can't be replaced"))?;
            }
            if let Some(authorization) = &fixed.authorization {
                request
                    .head
                    .headers
                    .set(b"Authorization", authorization.as_bytes())
                    .map_err(|_| bad("the Authorization header can't be replaced"))?;
            }
        }
    }
    // Nobody but us gives receipts.
    request.head.headers.remove(sandwich::FIELD);
    strip_hop_by_hop(&mut request.head.headers);
    Ok(Prepared::Request)
}

pub(super) fn check_host(head: &RequestHead) -> Result<(), (u16, FlowError)> {
    head.check_host()
        .map_err(|anomaly| (anomaly.status(), client_anomaly(anomaly)))
}

/// The destination that a request may not have, by the name it was connected to or by the one it
/// names as its host: what the two say may differ (domain fronting).
pub(super) fn refused(
    policy: &Policy,
    mode: &Mode,
    request: &tollgate_flow::Request,
) -> Option<Target> {
    let is_blocked = |target: &Target| policy.decide(&[target]) == Action::Block;
    if let Mode::Proxy | Mode::Return = mode {
        // A proxy on the way would be asked for it.
        let target = &request.target;
        if target.ip().is_some_and(|ip| !policy.may_be_at(target, ip)) {
            return Some(target.clone());
        }
        return is_blocked(&request.target).then(|| request.target.clone());
    }
    if policy.block.is_empty() {
        return None;
    }
    let host = std::str::from_utf8(request.headers().get("host")?).ok()?;
    Target::parse(host, Some(request.target.port)).filter(is_blocked)
}

/// Reads `http://host/path` or `https://host/path`, and leaves the path as the request's target.
pub(super) fn absolute_form(request: &mut tollgate_flow::Request) -> Result<(), &'static str> {
    let target = request.head.target();
    let after = |scheme: &[u8]| {
        let (start, rest) = target.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    let (scheme, rest) = match (after(b"http://"), after(b"https://")) {
        (Some(rest), _) => (Scheme::Http, rest),
        (_, Some(rest)) => (Scheme::Https, rest),
        _ => {
            return Err(
                "this is an HTTP proxy: requests need an absolute URL (http://host/path) or CONNECT",
            );
        }
    };
    let end = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, b""));
    // Credentials in a URL are the client's business with nobody; they are not sent on.
    let host = match authority.iter().rposition(|b| *b == b'@') {
        Some(at) => authority.get(at + 1..).unwrap_or_default(),
        None => authority,
    };
    let parsed = std::str::from_utf8(host)
        .ok()
        .and_then(|h| Target::parse(h, Some(scheme.default_port())))
        .ok_or("the URL's host is not one")?;
    let path = match path.first() {
        Some(b'/') => path.to_vec(),
        None if request.head.method() == b"OPTIONS" => b"*".to_vec(),
        _ => [b"/", path].concat(),
    };
    let authority = host.to_vec();
    request
        .head
        .set_target(&path)
        .map_err(|_| "the URL's path is not valid")?;
    // RFC 9112 section 3.2.2: the target's authority wins over a Host that says otherwise.
    let same = request
        .head
        .headers
        .get("host")
        .is_some_and(|h| h.eq_ignore_ascii_case(&authority));
    if !same {
        request
            .head
            .headers
            .set(b"Host", &authority)
            .map_err(|_| "the URL's host is not one")?;
    }
    request.authority = Some(authority);
    request.scheme = scheme;
    if request.target != parsed {
        request.target = parsed;
    }
    Ok(())
}

/// Takes off the fields that are for this hop (RFC 9110 section 7.6.1). `Connection` itself stays
/// with the options that mean the same on the next hop.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderList) {
    headers.remove("proxy-authorization");
    headers.remove("proxy-connection");
    let foreign = |token: &[u8]| {
        ![&b"close"[..], b"keep-alive", b"upgrade", b"te"]
            .iter()
            .any(|known| token.eq_ignore_ascii_case(known))
    };
    if headers.contains("keep-alive") && headers.has_token("connection", "keep-alive") {
        headers.remove("keep-alive");
    }
    if !headers.tokens("connection").any(foreign) {
        return;
    }
    let tokens: Vec<Vec<u8>> = headers.tokens("connection").map(<[u8]>::to_vec).collect();
    let (named, kept): (Vec<_>, Vec<_>) = tokens.into_iter().partition(|t| foreign(t));
    for name in named {
        // A field that frames the message or names its host is no option of a connection.
        let protected = [
            &b"host"[..],
            b"content-length",
            b"transfer-encoding",
            b"connection",
        ];
        if protected.iter().any(|p| name.eq_ignore_ascii_case(p)) {
            continue;
        }
        if let Ok(name) = std::str::from_utf8(&name) {
            headers.remove(name);
        }
    }
    if kept.is_empty() {
        headers.remove("connection");
    } else {
        // Tokens of a header that was parsed are a valid value.
        let _ = headers.set(b"Connection", &kept.join(&b", "[..]));
    }
}

/// Whether credentials are bound to the connection that carries them.
pub(super) fn is_connection_bound(headers: &HeaderList, name: &str) -> bool {
    headers.get_all(name).any(|value| {
        [&b"ntlm"[..], b"negotiate"].iter().any(|scheme| {
            value
                .get(..scheme.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(scheme))
        })
    })
}

/// Whether a response is one that goes on for as long as the origin likes: collecting it would
/// keep from the client what it is waiting for.
pub(crate) fn is_stream(flow: &Flow) -> bool {
    let Some(value) = flow
        .response
        .as_ref()
        .and_then(|r| r.headers().get("content-type"))
    else {
        return false;
    };
    let media = value.split(|b| *b == b';').next().unwrap_or_default();
    let media = media.trim_ascii().to_ascii_lowercase();
    media.starts_with(b"application/grpc")
        || [
            &b"text/event-stream"[..],
            b"application/x-ndjson",
            b"application/ndjson",
            b"application/jsonl",
            b"application/json-seq",
            b"application/vnd.amazon.eventstream",
            b"multipart/x-mixed-replace",
        ]
        .contains(&media.as_slice())
}

pub(super) fn make_chunked(headers: &mut HeaderList) {
    headers.remove("content-length");
    if !headers.has_token("transfer-encoding", "chunked") {
        let _ = headers.set(b"Transfer-Encoding", b"chunked");
    }
}

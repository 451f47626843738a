//! Heads from one version of HTTP to the other.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use http::{Request, Uri};
use tollgate_flow::{ErrorClass, Flow, FlowError, Scheme, Side};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http1::{RequestHead, Version};

/// Shows a head to interceptors as the ordered list that HTTP/1 has.
pub(crate) fn fill_head(parts: &http::request::Parts, flow: &mut Flow) -> Result<(), FlowError> {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    flow.request.head = RequestHead::build(
        parts.method.as_str().as_bytes(),
        path.as_bytes(),
        Version::Http11,
    )
    .map_err(interceptor_error)?;
    from_map(&parts.headers, &mut flow.request.head.headers);
    Ok(())
}

pub(crate) fn interceptor_error(e: tollgate_wire::headers::InvalidHeader) -> FlowError {
    FlowError::new(Side::Proxy, ErrorClass::Interceptor, e.to_string())
}

/// Makes the parts of an HTTP/2 request from what interceptors left of a flow's head.
pub(crate) fn parts_of(flow: &Flow) -> Result<http::request::Parts, FlowError> {
    let failed = |what: &str| {
        FlowError::new(
            Side::Proxy,
            ErrorClass::Protocol,
            format!("{what} can't be sent over HTTP/2"),
        )
    };
    let mut request = Request::new(());
    *request.method_mut() =
        http::Method::from_bytes(flow.request.method()).map_err(|_| failed("the method"))?;
    let head = flow.request.wire_head();
    let headers = &head.headers;
    let authority = match (&flow.request.authority, headers.get("host")) {
        (_, Some(host)) => host.to_vec(),
        (Some(authority), None) => authority.clone(),
        (None, None) => flow.request.target.to_string().into_bytes(),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(match flow.request.scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    });
    uri.authority = Some(Authority::try_from(&*authority).map_err(|_| failed("the host"))?);
    let path = flow.request.path();
    let path = match path {
        b"*" => PathAndQuery::from_static("*"),
        path => PathAndQuery::try_from(path).map_err(|_| failed("the path"))?,
    };
    uri.path_and_query = Some(path);
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| failed("the URL"))?;
    let map = request.headers_mut();
    // Removing it afterwards would reorder the others.
    copy_to_map(headers, map, |name| !name.eq_ignore_ascii_case(b"host"));
    let (parts, ()) = request.into_parts();
    Ok(parts)
}

/// Copies an ordered list to a map for HTTP/2: lower case, without what belongs to a connection
/// (RFC 9113 section 8.2.2).
pub(crate) fn to_map(list: &HeaderList, map: &mut HeaderMap) {
    copy_to_map(list, map, |_| true);
}

pub(crate) fn copy_to_map(list: &HeaderList, map: &mut HeaderMap, wanted: impl Fn(&[u8]) -> bool) {
    map.reserve(list.len());
    for (name, value) in list.iter() {
        if !wanted(name) || is_connection_specific(name) || list_names(list, name) {
            continue;
        }
        if name.eq_ignore_ascii_case(b"te") && !value.eq_ignore_ascii_case(b"trailers") {
            continue;
        }
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        else {
            continue;
        };
        map.append(name, value);
    }
}

/// Whether `Connection` names a field.
pub(crate) fn list_names(list: &HeaderList, name: &[u8]) -> bool {
    !name.eq_ignore_ascii_case(b"te")
        && list
            .tokens("connection")
            .any(|token| token.eq_ignore_ascii_case(name))
}

pub(crate) fn is_connection_specific(name: &[u8]) -> bool {
    [
        &b"connection"[..],
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    ]
    .iter()
    .any(|n| name.eq_ignore_ascii_case(n))
}

pub(crate) fn from_map(map: &HeaderMap, list: &mut HeaderList) {
    for (name, value) in map {
        // What h2 let through is a valid field.
        let _ = list.append(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// The head of an HTTP/1 request for one that came as HTTP/2.
pub(crate) fn head_of(
    parts: &http::request::Parts,
    flow: &Flow,
    has_body: bool,
) -> Result<RequestHead, FlowError> {
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut list = HeaderList::new();
    from_map(&parts.headers, &mut list);
    let authority = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes().to_vec());
    http1_head(
        parts.method.as_str().as_bytes(),
        path.as_bytes(),
        authority,
        &list,
        flow,
        has_body,
    )
}

pub(crate) fn head_from_flow(flow: &Flow, has_body: bool) -> Result<RequestHead, FlowError> {
    let head = flow.request.wire_head();
    http1_head(
        head.method(),
        head.target(),
        flow.request.authority.clone(),
        &head.headers,
        flow,
        has_body,
    )
}

pub(crate) fn http1_head(
    method: &[u8],
    path: &[u8],
    authority: Option<Vec<u8>>,
    from: &HeaderList,
    flow: &Flow,
    has_body: bool,
) -> Result<RequestHead, FlowError> {
    let mut head = RequestHead::build(method, path, Version::Http11).map_err(interceptor_error)?;
    let host = match (from.get("host"), authority) {
        (Some(host), _) => host.to_vec(),
        (None, Some(authority)) => authority,
        (None, None) => flow.request.target.to_string().into_bytes(),
    };
    let put = |head: &mut RequestHead, name: &[u8], value: &[u8]| {
        head.headers.append(name, value).map_err(interceptor_error)
    };
    put(&mut head, b"host", &host)?;
    // HTTP/2 splits cookies for compression; HTTP/1 servers expect one (RFC 9113 section 8.2.3).
    let cookies: Vec<&[u8]> = from.get_all("cookie").collect();
    let mut cookies_written = false;
    for (name, value) in from.iter() {
        if name.eq_ignore_ascii_case(b"host") || is_connection_specific(name) {
            continue;
        }
        if name.eq_ignore_ascii_case(b"cookie") {
            if !std::mem::replace(&mut cookies_written, true) {
                put(&mut head, name, &cookies.join(&b"; "[..]))?;
            }
            continue;
        }
        put(&mut head, name, value)?;
    }
    if !head.headers.contains("content-length") {
        if has_body {
            put(&mut head, b"transfer-encoding", b"chunked")?;
        } else if matches!(method, b"POST" | b"PUT" | b"PATCH") {
            put(&mut head, b"content-length", b"0")?;
        }
    }
    Ok(head)
}

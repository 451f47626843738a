//! Heads: from QPACK's fields to what exchanges work with, and back (RFC 9114 sections 4.2 and 4.3).

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version, request, response};
use tollgate_wire::headers::HeaderList;
use tollgate_wire::http3::qpack::{self, Field};

use crate::streams::convert::{from_map, is_connection_specific, to_map};

/// What is wrong with a message.
pub(super) type Malformed = &'static str;

/// The head of a request.
pub(super) fn request(fields: Vec<Field>) -> Result<request::Parts, Malformed> {
    let (mut parts, ()) = Request::new(()).into_parts();
    let (mut method, mut scheme, mut authority, mut path) = (None, None, None, None);
    parts.headers = split(fields, |name, value| {
        let slot = match name {
            b":method" => &mut method,
            b":scheme" => &mut scheme,
            b":authority" => &mut authority,
            b":path" => &mut path,
            _ => return Err("an unknown pseudo-header field"),
        };
        match slot.replace(value.to_vec()) {
            None => Ok(()),
            Some(_) => Err("a pseudo-header field stands twice"),
        }
    })?;
    let method = method.ok_or("there is no :method")?;
    parts.method = Method::from_bytes(&method).map_err(|_| ":method is not one")?;
    let mut uri = http::uri::Parts::default();
    if let Some(authority) = authority {
        let authority = Authority::try_from(authority).map_err(|_| ":authority is not one")?;
        uri.authority = Some(authority);
    }
    if parts.method == Method::CONNECT {
        if scheme.is_some() || path.is_some() {
            return Err("CONNECT has a :scheme or a :path");
        }
        if uri.authority.is_none() {
            return Err("CONNECT has no :authority");
        }
    } else {
        let scheme = scheme.ok_or("there is no :scheme")?;
        uri.scheme = Some(Scheme::try_from(&*scheme).map_err(|_| ":scheme is not one")?);
        uri.path_and_query = Some(match path.ok_or("there is no :path")? {
            star if star == b"*" => PathAndQuery::from_static("*"),
            path if path.first() == Some(&b'/') => {
                PathAndQuery::try_from(path).map_err(|_| ":path is not one")?
            }
            _ => return Err(":path is not one"),
        });
        if uri.authority.is_none() {
            // What follows needs one where there is a scheme; RFC 9114 section 4.3.1 as well.
            let host = parts.headers.get("host").ok_or("there is no host")?;
            let host = Authority::try_from(host.as_bytes()).map_err(|_| "Host is not a host")?;
            uri.authority = Some(host);
        }
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| "the URL is not one")?;
    parts.version = Version::HTTP_3;
    Ok(parts)
}

/// The head of a response.
pub(super) fn response(fields: Vec<Field>) -> Result<response::Parts, Malformed> {
    let (mut parts, ()) = Response::new(()).into_parts();
    let mut status = None;
    parts.headers = split(fields, |name, value| match name {
        b":status" if status.is_none() => {
            status = Some(StatusCode::from_bytes(value).map_err(|_| ":status is not one")?);
            Ok(())
        }
        _ => Err("a pseudo-header field that does not belong there"),
    })?;
    parts.status = status.ok_or("there is no :status")?;
    parts.version = Version::HTTP_3;
    Ok(parts)
}

/// Trailers.
pub(super) fn trailers(fields: Vec<Field>) -> Result<HeaderList, Malformed> {
    let map = split(fields, |_, _| Err("a pseudo-header field in trailers"))?;
    let mut list = HeaderList::new();
    from_map(&map, &mut list);
    Ok(list)
}

/// How long a head says that its body is. More than one length that differ are malformed.
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut found = None;
    for value in headers.get_all(http::header::CONTENT_LENGTH) {
        let digits = value.as_bytes();
        let length = std::str::from_utf8(digits)
            .ok()
            .filter(|s| s.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|s| s.parse().ok())
            .ok_or("Content-Length is not a number")?;
        if found.replace(length).is_some_and(|before| before != length) {
            return Err("there are two lengths");
        }
    }
    Ok(found)
}

pub(super) fn write_request(parts: &request::Parts) -> Vec<u8> {
    let mut pseudo: Vec<(&[u8], &[u8])> = vec![(b":method", parts.method.as_str().as_bytes())];
    let uri = &parts.uri;
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if parts.method != Method::CONNECT {
        pseudo.push((b":scheme", uri.scheme_str().unwrap_or("https").as_bytes()));
    }
    if let Some(authority) = uri.authority() {
        pseudo.push((b":authority", authority.as_str().as_bytes()));
    }
    if parts.method != Method::CONNECT {
        pseudo.push((b":path", path.as_bytes()));
    }
    write(&pseudo, &parts.headers)
}

pub(super) fn write_response(parts: &response::Parts) -> Vec<u8> {
    write(
        &[(b":status", parts.status.as_str().as_bytes())],
        &parts.headers,
    )
}

pub(super) fn write_trailers(list: &HeaderList) -> Vec<u8> {
    let mut map = HeaderMap::new();
    to_map(list, &mut map);
    write(&[], &map)
}

/// What a section counts against the peer's SETTINGS_MAX_FIELD_SECTION_SIZE.
pub(super) fn section_size(headers: &HeaderMap) -> u64 {
    let fields = headers
        .iter()
        .map(|(name, value)| (name.as_str().len() + value.len() + 32) as u64);
    // Pseudo-header fields are short, but for a path.
    fields.sum()
}

fn write(pseudo: &[(&[u8], &[u8])], headers: &HeaderMap) -> Vec<u8> {
    let fields = headers
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    let mut block = Vec::with_capacity(256);
    qpack::encode(pseudo.iter().copied().chain(fields), &mut block);
    block
}

/// Separates the pseudo-header fields, which come first, from the others, and checks those.
fn split(
    fields: Vec<Field>,
    mut pseudo: impl FnMut(&[u8], &[u8]) -> Result<(), Malformed>,
) -> Result<HeaderMap, Malformed> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for Field { name, value } in fields {
        if name.first() == Some(&b':') {
            if !map.is_empty() {
                return Err("a pseudo-header field after others");
            }
            pseudo(&name, &value)?;
            continue;
        }
        if is_connection_specific(&name) {
            return Err("a field that belongs to a connection of HTTP/1");
        }
        if &*name == b"te" && &*value != b"trailers" {
            return Err("TE other than trailers");
        }
        let name = HeaderName::from_lowercase(&name).map_err(|_| "a field's name is not one")?;
        let value = HeaderValue::from_bytes(&value).map_err(|_| "a field's value is not one")?;
        map.append(name, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> Vec<Field> {
        list.iter()
            .map(|(name, value)| Field {
                name: name.as_bytes().into(),
                value: value.as_bytes().into(),
            })
            .collect()
    }

    const GET: [(&str, &str); 4] = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "example.com"),
        (":path", "/a?b"),
    ];

    #[test]
    fn a_request_is_written_and_read_back() {
        let mut all = GET.to_vec();
        all.extend([("accept", "*/*"), ("cookie", "a=1"), ("cookie", "b=2")]);
        let parts = request(fields(&all)).unwrap();
        assert_eq!(parts.uri, "https://example.com/a?b");
        let limits = qpack::Limits {
            bytes: 4096,
            lines: 100,
        };
        let read = qpack::decode(&write_request(&parts), &limits).unwrap();
        assert_eq!(read, fields(&all));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let without = |name: &str| -> Vec<(&'static str, &'static str)> {
            GET.iter().copied().filter(|(n, _)| *n != name).collect()
        };
        let with = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
        let cases = [
            without(":method"),
            without(":scheme"),
            without(":path"),
            without(":authority"),
            with(&[(":path", "/again")]),
            with(&[(":status", "200")]),
            with(&[(":protocol", "websocket")]),
            with(&[("accept", "*/*"), (":path", "/late")]),
            with(&[("Accept", "*/*")]),
            with(&[("connection", "close")]),
            with(&[("transfer-encoding", "chunked")]),
            with(&[("te", "gzip")]),
            with(&[("x", "a\r\nb: c")]),
            [&without(":path")[..], &[(":path", "")]].concat(),
            [&without(":path")[..], &[(":path", "http://elsewhere/")]].concat(),
            [&without(":authority")[..], &[(":authority", "a b")]].concat(),
        ];
        for case in cases {
            assert!(request(fields(&case)).is_err(), "{case:?}");
        }
        assert!(request(fields(&with(&[("te", "trailers")]))).is_ok());
        let host = [&without(":authority")[..], &[("host", "example.com")]].concat();
        assert_eq!(
            request(fields(&host)).unwrap().uri,
            "https://example.com/a?b"
        );
    }

    #[test]
    fn malformed_responses_and_trailers_are_refused() {
        for bad in [
            &[("content-type", "text/plain")][..],
            &[(":status", "200"), (":status", "200")],
            &[(":status", "abc")],
            &[(":status", "200"), (":path", "/")],
        ] {
            assert!(response(fields(bad)).is_err(), "{bad:?}");
        }
        assert!(trailers(fields(&[(":status", "200")])).is_err());
        assert!(trailers(fields(&[("grpc-status", "0")])).is_ok());
    }

    #[test]
    fn lengths_must_agree() {
        let length = |values: &[&'static str]| {
            let mut map = HeaderMap::new();
            for value in values {
                map.append("content-length", HeaderValue::from_static(value));
            }
            content_length(&map)
        };
        assert_eq!(length(&[]), Ok(None));
        assert_eq!(length(&["5", "5"]), Ok(Some(5)));
        for bad in [&["5", "6"][..], &["+5"], &["5, 5"], &[""]] {
            assert!(length(bad).is_err(), "{bad:?}");
        }
    }
}

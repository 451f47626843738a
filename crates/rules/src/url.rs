//! Sending a request to another URL.

use tollgate_flow::{Flow, Scheme, Target};

/// Sends a request to another URL: scheme, destination, path, and the host that it names.
///
/// # Errors
/// What makes the URL none that a request can go to, in words.
pub(crate) fn set_url(flow: &mut Flow, url: &[u8]) -> Result<(), String> {
    let shown = || {
        String::from_utf8_lossy(url)
            .chars()
            .take(200)
            .collect::<String>()
    };
    let no = |why: &str| format!("'{}' {why}", shown());
    let (scheme, rest) = if let Some(rest) = strip_scheme(url, b"http://") {
        (Scheme::Http, rest)
    } else if let Some(rest) = strip_scheme(url, b"https://") {
        (Scheme::Https, rest)
    } else {
        return Err(no("is no http:// or https:// URL"));
    };
    let end = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, b""));
    let authority = match authority.iter().rposition(|b| *b == b'@') {
        Some(at) => authority.get(at + 1..).unwrap_or_default(),
        None => authority,
    };
    let target = std::str::from_utf8(authority)
        .ok()
        .map(|authority| idna::domain_to_ascii(authority).unwrap_or_else(|_| authority.to_owned()))
        .and_then(|authority| Target::parse(&authority, Some(scheme.default_port())))
        .ok_or_else(|| no("has no host that can be connected to"))?;
    let path = match path.first() {
        Some(b'/') => path.to_vec(),
        _ => [b"/", path].concat(),
    };
    let named = if target.port == scheme.default_port() {
        match target.host.contains(':') {
            true => format!("[{}]", target.host),
            false => target.host.to_string(),
        }
    } else {
        target.to_string()
    };
    let request = &mut flow.request;
    request
        .head
        .set_target(&path)
        .map_err(|_| no("has a path that can't be sent"))?;
    request
        .headers_mut()
        .set(b"Host", named.as_bytes())
        .map_err(|_| no("has a host that can't be sent"))?;
    if request.authority.is_some() {
        request.authority = Some(named.into_bytes());
    }
    request.scheme = scheme;
    request.target = target;
    Ok(())
}

fn strip_scheme<'a>(url: &'a [u8], scheme: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = url.split_at_checked(scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::flow;

    #[test]
    fn a_url_changes_where_a_request_goes() {
        for (url, scheme, target, path, host) in [
            (
                "http://a.example",
                Scheme::Http,
                "a.example:80",
                "/",
                "a.example",
            ),
            (
                "HTTPS://A.example:8443/x?y#z",
                Scheme::Https,
                "a.example:8443",
                "/x?y#z",
                "a.example:8443",
            ),
            ("http://[::1]/?q", Scheme::Http, "[::1]:80", "/?q", "[::1]"),
            (
                "http://u:p@h.example?q",
                Scheme::Http,
                "h.example:80",
                "/?q",
                "h.example",
            ),
        ] {
            let mut flow = flow("GET", "https://old.example/");
            set_url(&mut flow, url.as_bytes()).unwrap();
            assert_eq!(flow.request.scheme, scheme, "{url}");
            assert_eq!(flow.request.target.to_string(), target, "{url}");
            assert_eq!(flow.request.path(), path.as_bytes(), "{url}");
            assert_eq!(
                flow.request.headers().get("host"),
                Some(host.as_bytes()),
                "{url}"
            );
        }
        for url in [
            "ftp://a/",
            "/path",
            "",
            "http:///x",
            "http://a:b/",
            "http://a/\r\nx",
        ] {
            let mut flow = flow("GET", "https://old.example/");
            assert!(set_url(&mut flow, url.as_bytes()).is_err(), "{url}");
        }
    }
}

//! URLs of requests, for people: by the host that went on the wire, and by the host that the client named.

use std::borrow::Cow;
use std::io::Write as _;

/// What makes up a request's URL.
#[derive(Clone, Debug)]
pub struct UrlParts<'a> {
    /// The method: the URL of a CONNECT is an authority.
    pub method: &'a [u8],
    /// `http`, `https`, or nothing.
    pub scheme: &'a [u8],
    /// The host that it went to.
    pub host: &'a str,
    /// The port that it went to.
    pub port: u16,
    /// Path and query.
    pub path: &'a [u8],
    /// The authority of the target, or `:authority`; empty for none.
    pub authority: &'a [u8],
    /// All `Host` fields, joined.
    pub host_header: Option<Cow<'a, [u8]>>,
    /// Whether `authority` is the message's `:authority`, as in HTTP/2 and HTTP/3.
    pub has_authority: bool,
}

impl UrlParts<'_> {
    /// The URL by where the request went; for CONNECT, host and port.
    pub fn write_url(&self, out: &mut Vec<u8>) {
        if self.is_connect() {
            return write_host_port(out, self.host.as_bytes(), Some(self.port));
        }
        self.write(out, self.host.as_bytes(), self.port);
    }

    /// The URL by the host that the request names; for CONNECT, the authority as it came.
    pub fn write_pretty_url(&self, out: &mut Vec<u8>) {
        if self.is_connect() {
            out.extend_from_slice(&unicode_authority(self.authority));
            return;
        }
        match self.named_host() {
            Some(name) => {
                let (host, port) = parse_authority(&name);
                let port = port
                    .filter(|port| *port != 0)
                    .unwrap_or_else(|| default_port(self.scheme).unwrap_or(443));
                self.write(out, host, port);
            }
            None => self.write_url(out),
        }
    }

    /// Whether the URL by the host that the request names passes a test: [`Field::Url`](crate::filter::Field::Url).
    pub fn test_pretty_url(&self, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let mut url = Vec::with_capacity(self.path.len() + 64);
        self.write_pretty_url(&mut url);
        test(&url)
    }

    /// Whether the host that it went to passes a test, or the one that the request names:
    /// [`Field::Host`](crate::filter::Field::Host).
    pub fn test_hosts(&self, test: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        test(self.host.as_bytes()) || {
            let named = self.pretty_host();
            *named != *self.host.as_bytes() && test(&named)
        }
    }

    /// The host that the request names, else the one that it went to.
    pub fn pretty_host(&self) -> Cow<'_, [u8]> {
        match self.named_host() {
            Some(Cow::Borrowed(name)) => Cow::Borrowed(parse_authority(name).0),
            Some(Cow::Owned(name)) => Cow::Owned(parse_authority(&name).0.to_vec()),
            None => Cow::Borrowed(self.host.as_bytes()),
        }
    }

    fn is_connect(&self) -> bool {
        self.method.eq_ignore_ascii_case(b"CONNECT")
    }

    fn named_host(&self) -> Option<Cow<'_, [u8]>> {
        if self.has_authority && !self.authority.is_empty() {
            return Some(unicode_authority(self.authority));
        }
        self.host_header
            .as_deref()
            .filter(|h| !h.is_empty())
            .map(Cow::Borrowed)
    }

    fn write(&self, out: &mut Vec<u8>, host: &[u8], port: u16) {
        out.extend_from_slice(self.scheme);
        out.extend_from_slice(b"://");
        let shown = Some(port).filter(|port| default_port(self.scheme) != Some(*port));
        write_host_port(out, host, shown);
        if self.path != b"*" {
            out.extend_from_slice(self.path);
        }
    }
}

fn write_host_port(out: &mut Vec<u8>, host: &[u8], port: Option<u16>) {
    if host.contains(&b':') && !host.starts_with(b"[") {
        out.push(b'[');
        out.extend_from_slice(host);
        out.push(b']');
    } else {
        out.extend_from_slice(host);
    }
    if let Some(port) = port {
        // Writing to memory can't fail.
        let _ = write!(out, ":{port}");
    }
}

fn default_port(scheme: &[u8]) -> Option<u16> {
    match scheme {
        b"http" => Some(80),
        b"https" => Some(443),
        _ => None,
    }
}

/// Host and port of an authority; one that is none is the host as a whole. Brackets are taken off.
fn parse_authority(authority: &[u8]) -> (&[u8], Option<u16>) {
    let (host, port) = if authority.starts_with(b"[") {
        match authority.iter().rposition(|b| *b == b']') {
            Some(end) => authority.split_at(end + 1),
            None => return (authority, None),
        }
    } else {
        match authority.iter().position(|b| *b == b':') {
            Some(colon) => authority.split_at(colon),
            None => (authority, &[][..]),
        }
    };
    let port = match port.split_first() {
        None => None,
        Some((b':', digits)) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            match std::str::from_utf8(digits)
                .ok()
                .and_then(|d| d.parse().ok())
            {
                Some(port) => Some(port),
                None => return (authority, None),
            }
        }
        Some(_) => return (authority, None),
    };
    let bare = host
        .strip_prefix(b"[")
        .and_then(|host| host.strip_suffix(b"]"))
        .unwrap_or(host);
    if is_host(bare) {
        (bare, port)
    } else {
        (authority, None)
    }
}

/// Whether it can be a host name or an address.
fn is_host(host: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(host) else {
        return false;
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let legal = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len()) && label.chars().all(legal)
    };
    (text.len() <= 255 && name.split('.').all(label)) || text.parse::<std::net::IpAddr>().is_ok()
}

/// Labels of the form `xn--` in Unicode, as mitmproxy shows the authority of HTTP/2.
fn unicode_authority(authority: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(authority) {
        Ok(text) => match to_unicode(text) {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        Err(_) => Cow::Borrowed(authority),
    }
}

/// A name with its `xn--` labels in Unicode; as it is where there is none, or one can't be decoded.
pub(crate) fn to_unicode(name: &str) -> Cow<'_, str> {
    let is_coded = |window: &[u8]| window.eq_ignore_ascii_case(b"xn--");
    if !name.as_bytes().windows(4).any(is_coded) {
        return Cow::Borrowed(name);
    }
    let (host, port) = match name.rsplit_once(':') {
        Some((host, _)) => name.split_at(host.len()),
        None => (name, ""),
    };
    match idna::domain_to_unicode(host) {
        (unicode, Ok(())) => Cow::Owned(unicode + port),
        (_, Err(_)) => Cow::Borrowed(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>() -> UrlParts<'a> {
        UrlParts {
            method: b"GET",
            scheme: b"https",
            host: "192.0.2.1",
            port: 443,
            path: b"/a?b",
            authority: b"",
            host_header: None,
            has_authority: false,
        }
    }

    fn pretty(parts: &UrlParts<'_>) -> String {
        let mut out = Vec::new();
        parts.write_pretty_url(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_named_host_wins_in_pretty_urls() {
        let mut p = parts();
        assert_eq!(pretty(&p), "https://192.0.2.1/a?b");
        for (header, url) in [
            ("example.com", "https://example.com/a?b"),
            ("example.com:443", "https://example.com/a?b"),
            ("example.com:8443", "https://example.com:8443/a?b"),
            ("example.com:0", "https://example.com/a?b"),
            ("[::1]:8443", "https://[::1]:8443/a?b"),
            ("[::1]", "https://[::1]/a?b"),
            // What is no authority is shown as it is.
            ("a b", "https://a b/a?b"),
            ("a:b", "https://[a:b]/a?b"),
            ("a:99999", "https://[a:99999]/a?b"),
            ("", "https://192.0.2.1/a?b"),
        ] {
            p.host_header = Some(Cow::Borrowed(header.as_bytes()));
            assert_eq!(pretty(&p), url, "{header}");
        }
        assert_eq!(p.pretty_host(), &b"192.0.2.1"[..]);
    }

    #[test]
    fn connect_and_asterisk_have_forms_of_their_own() {
        let mut p = parts();
        p.method = b"connect";
        p.authority = b"a.example:443";
        assert_eq!(pretty(&p), "a.example:443");
        let mut url = Vec::new();
        p.write_url(&mut url);
        assert_eq!(url, b"192.0.2.1:443");
        let mut p = parts();
        p.path = b"*";
        p.port = 80;
        assert_eq!(pretty(&p), "https://192.0.2.1:80");
    }

    #[test]
    fn the_authority_of_http2_is_shown_in_unicode() {
        let mut p = parts();
        p.authority = b"xn--mnchen-3ya.example:1";
        p.host_header = Some(Cow::Borrowed(b"other"));
        assert_eq!(p.pretty_host(), &b"other"[..]);
        p.has_authority = true;
        assert_eq!(pretty(&p), "https://münchen.example:1/a?b");
        assert_eq!(p.pretty_host(), "münchen.example".as_bytes());
        p.authority = b"";
        assert_eq!(p.pretty_host(), &b"other"[..]);
    }
}

//! Addresses: those that carry data out, and those that no agent should be sent to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use tollgate_wire::address::{Unsafe, unsafe_address};

use super::catalogue::own;
use super::encoding;
use super::finding::{Confidence, Kind};
use super::scanner::{Pass, Report, Window};
use super::verify::{self, random_looking};

/// An address is read up to this length.
const MAX_URL: usize = 1024;

/// Looks at the address around a `://`.
pub(super) fn look(pass: &mut Pass<'_>, window: Window<'_>, separator: Range<usize>) {
    let text = window.text;
    let mut start = separator.start;
    while start > 0
        && separator.start - start < 16
        && text
            .get(start - 1)
            .is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    {
        start -= 1;
    }
    let scheme = window.get(start..separator.start).to_ascii_lowercase();
    if !matches!(
        scheme.as_slice(),
        b"http" | b"https" | b"ws" | b"wss" | b"ftp" | b"gopher"
    ) {
        return;
    }
    let mut end = separator.end;
    let mut template = false;
    while end < text.len() && end - start < MAX_URL {
        match text.get(end) {
            Some(b'$') if text.get(end + 1) == Some(&b'(') => template = true,
            Some(b)
                if b.is_ascii_whitespace()
                    || matches!(b, b'"' | b'\'' | b'<' | b'>' | b'`' | b'\\' | b'|') =>
            {
                break;
            }
            Some(b')') if !template => break,
            None => break,
            _ => {}
        }
        end += 1;
    }
    let url = start..end;
    let bytes = window.get(separator.end..end);
    let authority_len = bytes
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .unwrap_or(bytes.len());
    let (authority, rest) = bytes
        .split_at_checked(authority_len)
        .unwrap_or((bytes, &[]));
    let user_ends = authority.iter().rposition(|&b| b == b'@');
    let host = match user_ends {
        Some(at) => authority.get(at + 1..).unwrap_or_default(),
        None => authority,
    };
    let host = strip_port(host);
    let place = place(window, start);

    // `MODE:http://host@8443`: what listens there, and the address is another one.
    if user_ends.is_none() || !is_port(host) {
        destination(pass, window, url.clone(), host, place);
    }
    if pass.kind != Kind::Command {
        labels(pass, window, url.clone(), host, place);
        payload(pass, window, url, host, rest, place, template);
    }
}

/// Where in the text an address stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// It is what will be fetched: a request line, a field called `url`.
    Target,
    /// A picture or a frame: it is fetched when the text is shown.
    Embedded,
    /// The address behind a link.
    Link,
    /// Anywhere else.
    Mentioned,
}

fn place(window: Window<'_>, start: usize) -> Place {
    let before = window.get(start.saturating_sub(40)..start);
    let lower = before.to_ascii_lowercase();
    for method in [
        &b"get "[..],
        b"post ",
        b"put ",
        b"head ",
        b"patch ",
        b"delete ",
        b"options ",
    ] {
        if lower.ends_with(method) {
            let at = lower.len() - method.len();
            let line_start = at == 0 || lower.get(at - 1) == Some(&b'\n');
            let upper = before
                .get(at..at + method.len())
                .is_some_and(|m| m.iter().take(3).all(u8::is_ascii_uppercase));
            if line_start && upper {
                return Place::Target;
            }
        }
    }
    let trimmed: Vec<u8> = lower
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    for key in [
        &b"\"url\":\""[..],
        b"\"uri\":\"",
        b"\"endpoint\":\"",
        b"\"href\":\"",
        b"\"target\":\"",
        b"\"webhook\":\"",
        b"\\\"url\\\":\\\"",
    ] {
        if trimmed.ends_with(key) {
            return Place::Target;
        }
    }
    if trimmed.ends_with(b"](") {
        let line = window.get(start.saturating_sub(200)..start);
        let open = line.iter().rposition(|&b| b == b'[').unwrap_or(0);
        return if open > 0 && line.get(open - 1) == Some(&b'!') {
            Place::Embedded
        } else {
            Place::Link
        };
    }
    if trimmed.ends_with(b"src=\"")
        || trimmed.ends_with(b"src='")
        || trimmed.ends_with(b"src=")
        || trimmed.ends_with(b"url(")
        || trimmed.ends_with(b"url('")
        || trimmed.ends_with(b"srcset=\"")
        || trimmed.ends_with(b"poster=\"")
    {
        return Place::Embedded;
    }
    if trimmed.ends_with(b"href=\"")
        || trimmed.ends_with(b"href='")
        || trimmed.ends_with(b"]:")
        || trimmed.ends_with(b"]:<")
    {
        return Place::Link;
    }
    Place::Mentioned
}

fn strip_port(host: &[u8]) -> &[u8] {
    if host.first() == Some(&b'[') {
        let end = host
            .iter()
            .position(|&b| b == b']')
            .map_or(host.len(), |at| at + 1);
        return host.get(..end).unwrap_or_default();
    }
    match host.iter().rposition(|&b| b == b':') {
        Some(at) => host.get(..at).unwrap_or_default(),
        None => host,
    }
}

/// Whether a bare decimal number is a port rather than an address: read as one, it would lie in 0.0.0.0/16, of which
/// only 0.0.0.0 leads anywhere.
fn is_port(host: &[u8]) -> bool {
    let number = std::str::from_utf8(host)
        .ok()
        .and_then(|text| text.parse::<u16>().ok());
    host.first().is_some_and(u8::is_ascii_digit) && number.is_some_and(|number| number > 0)
}

/// Judges a host as it stands in a URL: a name, an IPv4 address in any spelling that `inet_aton`
/// reads, an IPv6 address in brackets. `None`: nothing speaks against it; a name must still be
/// resolved, and its addresses judged with [`unsafe_address`].
///
/// ```
/// use tollgate_screen::scan::{Unsafe, unsafe_host};
///
/// assert_eq!(unsafe_host("0xA9.0xFE.43518"), Some(Unsafe::Metadata));
/// assert_eq!(unsafe_host("[64:ff9b::7f00:1]"), Some(Unsafe::NotGlobal));
/// assert_eq!(unsafe_host("example.com"), None);
/// ```
#[must_use]
pub fn unsafe_host(host: &str) -> Option<Unsafe> {
    let host = host.trim_end_matches('.');
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let inner = inner.split('%').next().unwrap_or(inner);
        return inner
            .parse::<Ipv6Addr>()
            .ok()
            .and_then(|ip| unsafe_address(IpAddr::V6(ip)));
    }
    if let Some(ip) = loose_ipv4(host) {
        return unsafe_address(IpAddr::V4(ip));
    }
    let lower = host.to_ascii_lowercase();
    if matches!(
        lower.as_str(),
        "metadata.google.internal" | "metadata" | "instance-data" | "metadata.goog"
    ) || lower.ends_with(".metadata.google.internal")
    {
        return Some(Unsafe::Metadata);
    }
    if lower == "localhost"
        || lower.ends_with(".localhost")
        || lower == "localhost.localdomain"
        || lower == "ip6-localhost"
    {
        return Some(Unsafe::NotGlobal);
    }
    // Names that are an address: 127.0.0.1.nip.io.
    for suffix in [".nip.io", ".sslip.io", ".xip.io"] {
        if let Some(head) = lower.strip_suffix(suffix) {
            let parts: Vec<&str> = head.split(['.', '-']).collect();
            let tail = parts.len().checked_sub(4).and_then(|at| parts.get(at..))?;
            return loose_ipv4(&tail.join(".")).and_then(|ip| unsafe_address(IpAddr::V4(ip)));
        }
    }
    None
}

/// Reads an IPv4 address as `inet_aton` does: one to four parts, each decimal, octal or hexadecimal.
pub(crate) fn loose_ipv4(host: &str) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = host.split('.').collect();
    if parts.len() > 4 {
        return None;
    }
    let mut numbers = Vec::with_capacity(4);
    for part in &parts {
        let number = if let Some(hex) = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X"))
        {
            u64::from_str_radix(hex, 16).ok()?
        } else if part.len() > 1 && part.starts_with('0') {
            u64::from_str_radix(part, 8).ok()?
        } else if part.bytes().all(|b| b.is_ascii_digit()) {
            part.parse().ok()?
        } else {
            return None;
        };
        numbers.push(number);
    }
    let (last, head) = numbers.split_last()?;
    let mut value = 0_u64;
    for &number in head {
        if number > 255 {
            return None;
        }
        value = value << 8 | number;
    }
    let free = 8 * (4 - head.len());
    if *last >= 1 << free {
        return None;
    }
    u32::try_from(value << free | last).ok().map(Ipv4Addr::from)
}

fn destination(
    pass: &mut Pass<'_>,
    window: Window<'_>,
    url: Range<usize>,
    host: &[u8],
    place: Place,
) {
    let Ok(name) = std::str::from_utf8(host) else {
        return;
    };
    let Some(what) = unsafe_host(name) else {
        return;
    };
    // An address that is written to be misread is meant badly wherever it stands.
    let plain_v4 = name.parse::<Ipv4Addr>().is_ok();
    let disguised =
        !plain_v4 && (loose_ipv4(name).is_some() || (name.starts_with('[') && name != "[::1]"));
    let rule = match what {
        Unsafe::Metadata => own("metadata-address"),
        Unsafe::NotGlobal if disguised => own("disguised-private-address"),
        Unsafe::NotGlobal if place == Place::Target && pass.kind == Kind::Outbound => {
            own("private-address")
        }
        Unsafe::NotGlobal => return,
    };
    // In prose on the way in, the address alone is a fact, not a request.
    if pass.kind == Kind::Inbound && place == Place::Mentioned && what == Unsafe::Metadata {
        return;
    }
    let report = Report {
        confidence: Confidence::High,
        excerpt: name.chars().take(60).collect(),
        score: None,
    };
    pass.emit(window, &rule, url, report);
}

/// Data in the labels of a host name.
fn labels(pass: &mut Pass<'_>, window: Window<'_>, url: Range<usize>, host: &[u8], place: Place) {
    if host.len() > 255 || host.first() == Some(&b'[') {
        return;
    }
    let all: Vec<&[u8]> = host.split(|&b| b == b'.').collect();
    let Some(sub) = all.len().checked_sub(2).and_then(|n| all.get(..n)) else {
        return;
    };
    let mut why = None;
    for label in sub {
        if label.len() >= 8 {
            let printable = |bytes: &Vec<u8>| {
                bytes.len() >= 5 && bytes.iter().all(|b| (0x20..0x7f).contains(b))
            };
            if label.len() % 2 == 0
                && encoding::hex(label).is_some_and(|d| printable(&d))
                && label.iter().any(|b| b.is_ascii_digit())
            {
                why = Some("a label is hexadecimal for text");
            } else if label.len() >= 16
                && label.iter().any(|b| b.is_ascii_digit())
                && encoding::base32(label).is_some_and(|d| {
                    d.len() >= 8
                        && d.iter()
                            .take(d.len() - 1)
                            .filter(|b| (0x20..0x7f).contains(*b))
                            .count()
                            * 10
                            >= (d.len() - 1) * 8
                })
            {
                why = Some("a label is base32");
            } else if label.len() >= 16
                && label.iter().any(u8::is_ascii_uppercase)
                && encoding::base64(label).is_some_and(|d| printable(&d))
            {
                why = Some("a label is base64 for text");
            } else if label.len() >= 32
                && random_looking(label)
                && !label.iter().all(u8::is_ascii_hexdigit)
            {
                why = Some("a long label is random");
            }
        }
    }
    // Pieces of one size, as a tool cuts them.
    let mut run = 1;
    for (a, b) in sub.iter().zip(sub.iter().skip(1)) {
        run = if a.len() == b.len() && a.len() >= 6 {
            run + 1
        } else {
            1
        };
        if run >= 3 {
            why = why.or(Some("labels are pieces of one size"));
        }
    }
    if sub.len() >= 6 && sub.iter().filter(|label| label.len() >= 6).count() >= 5 {
        why = why.or(Some("many long labels"));
    }
    if let Some(why) = why {
        let rule = own("hostname-exfiltration");
        let report = Report {
            confidence: Confidence::Medium,
            excerpt: why.to_owned(),
            score: None,
        };
        pass.emit(window, &rule, url.clone(), report);
    }
    if pass.kind != Kind::Outbound || place != Place::Target {
        return;
    }
    // Names that say what they are for.
    let lower = host.to_ascii_lowercase();
    const NAMES: [&[u8]; 20] = [
        b"exfil",
        b"webhook.site",
        b"requestbin",
        b"pipedream.net",
        b"interact.sh",
        b"oast.",
        b"burpcollaborator",
        b"canarytokens",
        b"dnslog",
        b"ceye.io",
        b"beeceptor.com",
        b"requestcatcher.com",
        b"ngrok",
        b"transfer.sh",
        b"file.io",
        b"0x0.st",
        b"pastebin.com",
        b"paste.ee",
        b"hookb.in",
        b"keylogger",
    ];
    if NAMES.iter().any(|name| verify::contains(&lower, name)) {
        let rule = own("drop-site");
        let report = Report {
            confidence: Confidence::Medium,
            excerpt: String::from_utf8_lossy(&lower).chars().take(60).collect(),
            score: None,
        };
        pass.emit(window, &rule, url, report);
    }
}

/// Data in a path or a query.
fn payload(
    pass: &mut Pass<'_>,
    window: Window<'_>,
    url: Range<usize>,
    host: &[u8],
    rest: &[u8],
    place: Place,
    template: bool,
) {
    let (path, query) = match rest.iter().position(|&b| b == b'?') {
        Some(at) => (
            rest.get(..at).unwrap_or_default(),
            rest.get(at + 1..).unwrap_or_default(),
        ),
        None => (rest, &[][..]),
    };
    let values: Vec<(&[u8], &[u8])> = query
        .split(|&b| matches!(b, b'&' | b'#'))
        .filter_map(|pair| {
            let at = pair.iter().position(|&b| b == b'=')?;
            Some((pair.get(..at)?, pair.get(at + 1..)?))
        })
        .collect();
    let opaque = |value: &[u8]| {
        value.len() >= 24
            && random_looking(value)
            && !value.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-')
    };
    let said = |name: &[u8]| {
        let name = name.to_ascii_lowercase();
        [
            &b"data"[..],
            b"payload",
            b"exfil",
            b"secret",
            b"token",
            b"key",
            b"password",
            b"pass",
            b"info",
            b"content",
            b"leak",
            b"stolen",
            b"cookie",
            b"env",
            b"history",
            b"conversation",
            b"summary",
            b"context",
            b"message",
            b"msg",
            b"text",
            b"session",
            b"account",
            b"balance",
            b"email",
            b"creds",
            b"d",
        ]
        .contains(&name.as_slice())
    };
    // A place holder that the model is to fill in.
    let blank = |value: &[u8]| {
        (value.first() == Some(&b'{') && value.last() == Some(&b'}'))
            || value.first() == Some(&b'[')
            || value.starts_with(b"%7B")
            || value.starts_with(b"$")
            || (value.len() >= 6
                && value.iter().all(|b| b.is_ascii_uppercase() || *b == b'_')
                && value.contains(&b'_'))
    };
    let why = match place {
        Place::Embedded if pass.kind == Kind::Inbound => {
            if template || values.iter().any(|(_, value)| blank(value)) {
                Some("a picture's address is a form to fill in")
            } else if values.iter().any(|(name, value)| {
                said(name) && value.len() >= 4 && !value.iter().all(u8::is_ascii_digit)
            }) {
                Some("a picture's address has a field for data")
            } else if values
                .iter()
                .any(|(_, value)| opaque(value) || value.len() >= 100)
            {
                Some("a picture's address carries opaque data")
            } else {
                None
            }
        }
        Place::Link if pass.kind == Kind::Inbound => {
            if template
                || values
                    .iter()
                    .any(|(name, value)| blank(value) && said(name))
            {
                Some("a link is a form to fill in")
            } else if values
                .iter()
                .any(|(name, value)| said(name) && (opaque(value) || value.len() >= 120))
            {
                Some("a link carries opaque data")
            } else {
                None
            }
        }
        Place::Target if pass.kind == Kind::Outbound => {
            let segment = path.split(|&b| b == b'/').any(opaque);
            if segment
                || values
                    .iter()
                    .any(|(name, value)| said(name) && opaque(value))
            {
                Some("a request carries opaque data in its address")
            } else if values.iter().any(|(name, _)| {
                matches!(
                    name.to_ascii_lowercase().as_slice(),
                    b"exfil" | b"leak" | b"stolen"
                )
            }) || verify::contains(&path.to_ascii_lowercase(), b"/exfil")
                || verify::contains(&path.to_ascii_lowercase(), b"/steal")
            {
                Some("a request says that it takes something")
            } else {
                None
            }
        }
        _ => None,
    };
    let Some(why) = why else {
        return;
    };
    if host.is_empty() {
        return;
    }
    let rule = match place {
        Place::Embedded | Place::Link => own("link-exfiltration"),
        _ => own("url-payload"),
    };
    let report = Report {
        confidence: Confidence::Medium,
        excerpt: format!(
            "{}: {why}",
            String::from_utf8_lossy(host)
                .chars()
                .take(50)
                .collect::<String>()
        ),
        score: None,
    };
    pass.emit(window, &rule, url, report);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_special_address_is_known() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0x7f.1",
            "0.0.0.0",
            "0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "100.64.0.1",
            "192.0.0.8",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::a00:1]",
            "[2002:7f00:1::]",
            "[fc00::1]",
            "[fe80::1]",
            "[ff02::1]",
            "localhost",
            "a.localhost",
            "127.0.0.1.nip.io",
            "10-0-0-1.sslip.io",
            "localhost.",
        ] {
            assert_eq!(unsafe_host(host), Some(Unsafe::NotGlobal), "{host}");
        }
        for host in [
            "169.254.169.254",
            "2852039166",
            "0xa9fea9fe",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "metadata.google.internal",
            "[fd00:ec2::254]",
            "192.0.0.192",
            "169.254.169.254.nip.io",
        ] {
            assert_eq!(unsafe_host(host), Some(Unsafe::Metadata), "{host}");
        }
        for host in [
            "example.com",
            "8.8.8.8",
            "[2606:4700::1111]",
            "1.1.1.1",
            "10.example.com",
            "[64:ff9b::808:808]",
        ] {
            assert_eq!(unsafe_host(host), None, "{host}");
        }
    }

    #[test]
    fn a_bare_number_is_an_address_only_where_a_host_stands() {
        let scanner = crate::scan::Scanner::builtin();
        let told = |kind, text: &str| {
            let found = scanner.scan(kind, text.as_bytes());
            found
                .iter()
                .any(|one| &*one.rule == "disguised-private-address")
        };
        for text in [
            "http://2130706433/admin",
            "http://3232235777:8080/",
            "http://www.example.com@2130706433/",
            "http://user:pass@167772161/",
            "http://8443/",
            "http://user@0/",
            "http://user@0x7f.1/",
            "http://user@127.1/",
        ] {
            for kind in [Kind::Outbound, Kind::Inbound, Kind::Command] {
                assert!(told(kind, text), "{kind} {text}");
            }
        }
        for text in [
            "let spec: ModeSpec = \"reverse:https://example.com@8443\".parse()?;",
            "--mode reverse:http://localhost:3000@8443",
            "\"upstream:https://p:1@2\"",
            "listen = 8443; connect(8443); port: 2130706433",
            "let url = format!(\"http://{host}:8443\");",
            "\"http://\" + 8443",
        ] {
            for kind in [Kind::Outbound, Kind::Inbound, Kind::Command] {
                assert!(!told(kind, text), "{kind} {text}");
            }
        }
    }
}

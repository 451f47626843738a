//! Cookies and credentials that are remembered, and shown again for clients that don't.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tollgate_flow::Flow;

/// The most cookies, or hosts with credentials, that a rule remembers; then the oldest goes.
pub(crate) const MAX_REMEMBERED: usize = 4096;

/// The cookies of mitmproxy's `stickycookie`: what responses set, shown to the same host, port and path.
#[derive(Debug, Default)]
pub(crate) struct CookieJar(Mutex<Vec<Cookie>>);

#[derive(Clone, Debug)]
struct Cookie {
    domain: String,
    port: u16,
    path: String,
    name: String,
    value: Option<String>,
}

impl CookieJar {
    /// Takes the cookies that a response sets.
    pub fn learn(&self, flow: &Flow) {
        let Some(response) = &flow.response else {
            return;
        };
        let target = &flow.request.target;
        for line in response.headers().get_all("set-cookie") {
            let line = String::from_utf8_lossy(line);
            let Some(set) = SetCookie::parse(&line) else {
                continue;
            };
            let domain = set.domain.unwrap_or(&target.host).to_owned();
            if !domain_match(&target.host, &domain) {
                continue;
            }
            let cookie = Cookie {
                domain,
                port: target.port,
                path: set.path.unwrap_or("/").to_owned(),
                name: set.name.to_owned(),
                value: set.value,
            };
            let mut jar = self.lock();
            let same = |known: &Cookie| {
                known.domain == cookie.domain
                    && known.port == cookie.port
                    && known.path == cookie.path
                    && known.name == cookie.name
            };
            let known = jar.iter().position(same);
            match (known, set.expired) {
                (Some(at), true) => {
                    jar.remove(at);
                }
                (Some(at), false) => {
                    if let Some(known) = jar.get_mut(at) {
                        known.value = cookie.value;
                    }
                }
                (None, true) => {}
                (None, false) => {
                    if jar.len() >= MAX_REMEMBERED {
                        jar.remove(0);
                    }
                    jar.push(cookie);
                }
            }
        }
    }

    /// Puts what is known for a request into its `Cookie` header, in place of what it has.
    pub fn apply(&self, flow: &mut Flow) {
        let target = &flow.request.target;
        let mut header = String::new();
        let jar = self.lock();
        // Cookies of one place stand together, places in the order in which they were learnt.
        let mut places: Vec<(&str, u16, &str)> = Vec::new();
        for cookie in jar.iter() {
            let place = (&*cookie.domain, cookie.port, &*cookie.path);
            if !places.contains(&place)
                && cookie.port == target.port
                && flow.request.path().starts_with(cookie.path.as_bytes())
                && domain_match(&target.host, &cookie.domain)
            {
                places.push(place);
            }
        }
        for place in places {
            let of = |c: &&Cookie| (&*c.domain, c.port, &*c.path) == place;
            for cookie in jar.iter().filter(of) {
                if !header.is_empty() {
                    header.push_str("; ");
                }
                header.push_str(&cookie.name);
                if let Some(value) = &cookie.value {
                    header.push('=');
                    push_value(&mut header, value);
                }
            }
        }
        drop(jar);
        if !header.is_empty() {
            // What a header carried can stand in one.
            let _ = flow.request.headers_mut().set(b"Cookie", header.as_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Cookie>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Quotes a value where it has characters that end one.
fn push_value(out: &mut String, value: &str) {
    let special = |c: char| matches!(c, '"' | ',' | ';' | '\\') || !('!'..='~').contains(&c);
    if !value.contains(special) {
        out.push_str(value);
        return;
    }
    out.push('"');
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

struct SetCookie<'a> {
    name: &'a str,
    value: Option<String>,
    domain: Option<&'a str>,
    path: Option<&'a str>,
    expired: bool,
}

impl<'a> SetCookie<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.split(';');
        let first = parts.next()?;
        let (name, value) = match first.split_once('=') {
            Some((name, value)) => (name.trim_start(), Some(unquote(value))),
            None => (first.trim_start(), None),
        };
        if name.is_empty() {
            return None;
        }
        let mut cookie = Self {
            name,
            value,
            domain: None,
            path: None,
            expired: false,
        };
        let mut expires = None;
        let mut max_age = None;
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let (key, value) = (key.trim(), value.trim());
            if key.eq_ignore_ascii_case("domain") {
                cookie.domain = Some(value);
            } else if key.eq_ignore_ascii_case("path") {
                cookie.path = Some(value);
            } else if key.eq_ignore_ascii_case("expires") {
                expires = httpdate::parse_http_date(&value.replace('-', " ")).ok();
            } else if key.eq_ignore_ascii_case("max-age") {
                max_age = value.parse::<i64>().ok();
            }
        }
        cookie.expired = match (expires, max_age) {
            (Some(at), _) => at <= SystemTime::now(),
            (None, Some(seconds)) => seconds <= 0,
            (None, None) => false,
        };
        Some(cookie)
    }
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else {
        return value.to_owned();
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    out
}

/// Whether a cookie of a domain is for a host: `.example.com` for every name below it, anything else for that name.
fn domain_match(host: &str, domain: &str) -> bool {
    let bare = domain.trim_matches('.');
    if host.eq_ignore_ascii_case(bare) {
        return true;
    }
    domain.starts_with('.')
        && host.parse::<std::net::IpAddr>().is_err()
        && host
            .len()
            .checked_sub(domain.len())
            .filter(|at| *at > 0)
            .and_then(|at| host.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(domain))
}

/// The credentials of mitmproxy's `stickyauth`: what a client showed a host once is shown to it again.
#[derive(Debug, Default)]
pub(crate) struct StickyAuth(Mutex<Vec<(String, Vec<u8>)>>);

impl StickyAuth {
    /// Learns a request's credentials, or puts known ones in where `applies`.
    pub fn request(&self, flow: &mut Flow, applies: bool) {
        let host = flow.request.target.host.to_string();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|(name, _)| *name == host);
        if let Some(shown) = flow.request.headers().get("authorization") {
            match at.and_then(|at| known.get_mut(at)) {
                Some((_, value)) => *value = shown.to_vec(),
                None => {
                    if known.len() >= MAX_REMEMBERED {
                        known.remove(0);
                    }
                    known.push((host, shown.to_vec()));
                }
            }
        } else if let (true, Some((_, value))) = (applies, at.and_then(|at| known.get(at))) {
            // What a header carried can stand in one.
            let _ = flow.request.headers_mut().set(b"Authorization", value);
        }
    }
}

/// Waits between the pieces of what passes, so that all that a rule applies to shares a bandwidth.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Bytes a second.
    rate: u64,
    /// When what was let through so far has passed at that rate.
    free_at: Mutex<Option<std::time::Instant>>,
}

impl Bucket {
    pub fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            free_at: Mutex::default(),
        }
    }

    /// How long a piece has to wait.
    pub fn wait(&self, bytes: usize, now: std::time::Instant) -> Duration {
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = free_at.filter(|at| *at > now).unwrap_or(now);
        *free_at = begin.checked_add(takes);
        (begin + takes).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{flow, respond};

    fn cookie(jar: &CookieJar, url: &str) -> Option<String> {
        let mut flow = flow("GET", url);
        jar.apply(&mut flow);
        let cookie = flow.request.headers().get("cookie");
        cookie.map(|c| String::from_utf8_lossy(c).into_owned())
    }

    #[test]
    fn cookies_go_back_to_where_they_came_from() {
        let jar = CookieJar::default();
        let mut set = flow("GET", "http://www.example.com/");
        respond(
            &mut set,
            200,
            &[
                ("Set-Cookie", "a=1; Path=/"),
                ("Set-Cookie", "b=\"x y\"; Domain=.example.com"),
                ("Set-Cookie", "c=3; Path=/deep"),
                ("Set-Cookie", "d=4; Domain=other.com"),
                ("Set-Cookie", "e=5; Max-Age=0"),
            ],
        );
        jar.learn(&set);
        assert_eq!(
            cookie(&jar, "http://www.example.com/").unwrap(),
            "a=1; b=\"x y\""
        );
        assert_eq!(
            cookie(&jar, "http://www.example.com/deep/x").unwrap(),
            "a=1; b=\"x y\"; c=3"
        );
        assert_eq!(
            cookie(&jar, "http://api.example.com/").unwrap(),
            "b=\"x y\""
        );
        assert_eq!(cookie(&jar, "http://www.example.com:81/"), None);
        respond(
            &mut set,
            200,
            &[("Set-Cookie", "a=0; expires=Thu, 01-Jan-1970 00:00:00 GMT")],
        );
        jar.learn(&set);
        assert_eq!(
            cookie(&jar, "http://www.example.com/").unwrap(),
            "b=\"x y\""
        );
    }

    #[test]
    fn a_jar_is_bounded() {
        let jar = CookieJar::default();
        for i in 0..MAX_REMEMBERED + 10 {
            let mut set = flow("GET", "http://www.example.com/");
            respond(&mut set, 200, &[("Set-Cookie", &format!("c{i}=1"))]);
            jar.learn(&set);
        }
        assert_eq!(jar.lock().len(), MAX_REMEMBERED);
    }

    #[test]
    fn credentials_are_shown_again_to_the_same_host() {
        let sticky = StickyAuth::default();
        let mut shown = flow("GET", "http://a.example/");
        shown
            .request
            .headers_mut()
            .set(b"Authorization", b"Basic eA==")
            .unwrap();
        sticky.request(&mut shown, false);
        for (url, applies, expected) in [
            ("http://a.example/", true, Some(&b"Basic eA=="[..])),
            ("http://a.example/", false, None),
            ("http://b.example/", true, None),
        ] {
            let mut flow = flow("GET", url);
            sticky.request(&mut flow, applies);
            assert_eq!(
                flow.request.headers().get("authorization"),
                expected,
                "{url}"
            );
        }
    }

    #[test]
    fn a_bandwidth_is_shared() {
        let bucket = Bucket::new(1000);
        let now = std::time::Instant::now();
        assert_eq!(bucket.wait(500, now), Duration::from_millis(500));
        assert_eq!(bucket.wait(500, now), Duration::from_secs(1));
        let later = now + Duration::from_secs(10);
        assert_eq!(bucket.wait(100, later), Duration::from_millis(100));
    }
}

//! Proxies on the way to an origin.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::connection::Target;

/// A proxy that requests go through on their way to the origin.
///
/// ```
/// use tollgate_flow::{ProxyScheme, UpstreamProxy};
///
/// let proxy: UpstreamProxy = "socks5://anna:secret@proxy.example:1080".parse()?;
/// assert_eq!(proxy.scheme, ProxyScheme::Socks5);
/// assert_eq!(proxy.to_string(), "socks5://proxy.example:1080");
/// # Ok::<(), tollgate_flow::InvalidProxy>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamProxy {
    /// What is spoken to it.
    pub scheme: ProxyScheme,
    /// Where it is.
    pub address: Target,
    /// What it is told about who we are: `Proxy-Authorization: Basic` (RFC 7617), or the user and
    /// password of SOCKS5 (RFC 1929).
    pub credentials: Option<Credentials>,
}

/// What is spoken to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyScheme {
    /// HTTP: absolute-form requests, and CONNECT for everything else.
    Http,
    /// The same inside TLS, which is verified like that of an origin.
    Https,
    /// SOCKS5 (RFC 1928). The proxy resolves names.
    Socks5,
}

impl ProxyScheme {
    /// As it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5 => "socks5",
        }
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Self::Socks5 => Some(1080),
            // 80 and 443 are rarely what somebody means who leaves a proxy's port out.
            Self::Http | Self::Https => None,
        }
    }
}

/// A user and a password. Neither is shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Credentials {
    /// Reads `user:password`; a password may hold colons. `None` without a colon.
    pub fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':')?;
        Some(Self {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

/// The text names no proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a proxy: {problem}")]
pub struct InvalidProxy {
    /// What was given, without credentials.
    pub text: String,
    /// What is wrong.
    pub problem: &'static str,
}

impl FromStr for UpstreamProxy {
    type Err = InvalidProxy;

    /// Reads `[http://|https://|socks5://][user:password@]host[:port]`; without a scheme it is
    /// `http`, and `socks5h` is `socks5`. User and password may be percent-encoded.
    fn from_str(text: &str) -> Result<Self, InvalidProxy> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let shown = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let error = |problem| InvalidProxy {
            text: format!("{scheme}://{shown}"),
            problem,
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => ProxyScheme::Http,
            "https" => ProxyScheme::Https,
            "socks5" | "socks5h" => ProxyScheme::Socks5,
            _ => return Err(error("the scheme is none of http, https and socks5")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, authority) = match rest.rsplit_once('@') {
            Some((credentials, authority)) => {
                let credentials = Credentials::parse(credentials)
                    .ok_or_else(|| error("the credentials are not user:password"))?;
                (Some(credentials.percent_decoded()), authority)
            }
            None => (None, rest),
        };
        let address = Target::parse(authority, scheme.default_port())
            .ok_or_else(|| error("it needs a host and a port"))?;
        Ok(Self {
            scheme,
            address,
            credentials,
        })
    }
}

impl Credentials {
    fn percent_decoded(self) -> Self {
        Self {
            user: percent_decode(&self.user),
            password: percent_decode(&self.password),
        }
    }
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let pair = (byte == b'%').then(|| (ahead.next(), ahead.next()));
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        match pair.map(|(high, low)| (digit(high), digit(low))) {
            Some((Some(high), Some(low))) => {
                // Two hexadecimal digits fit.
                out.push((high * 16 + low) as u8);
                bytes = ahead;
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Shows no credentials.
impl fmt::Display for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.address)
    }
}

/// Which way a request leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// As the configuration says.
    #[default]
    Configured,
    /// Straight to the origin.
    Direct,
    /// Through this proxy.
    Proxy(Arc<UpstreamProxy>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_proxies() {
        let parse = |text: &str| text.parse::<UpstreamProxy>();
        let proxy = parse("proxy.example:3128").unwrap();
        assert_eq!(proxy.scheme, ProxyScheme::Http);
        assert_eq!(proxy.address, Target::new("proxy.example", 3128));
        assert_eq!(parse("socks5h://[::1]").unwrap().address.port, 1080);
        let proxy = parse("https://a%40b:p%3aw%zz:x@h:1/").unwrap();
        let credentials = proxy.credentials.as_ref().unwrap();
        assert_eq!(
            (&*credentials.user, &*credentials.password),
            ("a@b", "p:w%zz:x")
        );
        for bad in [
            "",
            "http://h",
            "ftp://h:1",
            "http://u@h:1",
            "h:0",
            "socks4://h:1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let proxy: UpstreamProxy = "http://u:hunter2@h:1".parse().unwrap();
        let error = "http://u:hunter2@h".parse::<UpstreamProxy>().unwrap_err();
        for shown in [
            proxy.to_string(),
            format!("{proxy:?}"),
            error.to_string(),
            format!("{error:?}"),
        ] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }
}

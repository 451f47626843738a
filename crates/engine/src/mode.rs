//! In which ways clients come: mitmproxy's modes, and its grammar for them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use tollgate_flow::{Credentials, Target, UpstreamProxy};

use crate::config::Listen;

/// A place to listen at, and what those who come there speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What clients take us for.
    pub mode: Mode,
    /// Where.
    pub at: Listen,
}

/// A place alone serves [`Mode::Regular`].
impl From<Listen> for Endpoint {
    fn from(at: Listen) -> Self {
        Self {
            mode: Mode::Regular,
            at,
        }
    }
}

/// What clients of a listener take us for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// An HTTP proxy: absolute-form requests and CONNECT.
    #[default]
    Regular,
    /// The same, and what it forwards goes through another proxy. It wins over
    /// [`ViaConfig::proxy`](crate::ViaConfig::proxy), not over its rules.
    Upstream(Arc<UpstreamProxy>),
    /// The one server behind us.
    Reverse(Reverse),
    /// A SOCKS5 proxy (RFC 1928): CONNECT and UDP ASSOCIATE.
    Socks5,
    /// The server that the client dialled: the kernel hands us connections to others (Linux:
    /// REDIRECT and TPROXY).
    Transparent,
    /// The other side of a [`Sandwich`](crate::Sandwich): takes back from the scanner what the
    /// other listeners handed to it, and nothing else.
    Return,
}

/// The one server behind a reverse proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reverse {
    /// What is spoken to it.
    pub scheme: ReverseScheme,
    /// Where it is.
    pub target: Target,
    /// What it is told about who we are, as `Authorization: Basic`, in place of what clients say.
    pub credentials: Option<Credentials>,
}

/// What is spoken to the server behind a reverse proxy. Clients may come with TLS or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReverseScheme {
    /// HTTP without TLS.
    Http,
    /// HTTP over TLS.
    Https,
    /// HTTP/3, for clients that speak HTTP/3.
    Http3,
    /// Any bytes.
    Tcp,
    /// Any bytes over TLS.
    Tls,
}

impl ReverseScheme {
    const ALL: [Self; 5] = [Self::Http, Self::Https, Self::Http3, Self::Tcp, Self::Tls];

    /// As it stands in a mode.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Http3 => "http3",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// The port of a server that names none.
    fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https | Self::Http3 => Some(443),
            Self::Tcp | Self::Tls => None,
        }
    }

    /// Whether there is TLS towards the server.
    pub(crate) fn has_tls(self) -> bool {
        matches!(self, Self::Https | Self::Http3 | Self::Tls)
    }

    /// Whether what passes is relayed without being read as HTTP.
    pub(crate) fn is_raw(self) -> bool {
        matches!(self, Self::Tcp | Self::Tls)
    }
}

impl Mode {
    /// The port that the mode listens on unless told otherwise.
    pub fn default_port(&self) -> u16 {
        match self {
            Self::Socks5 => 1080,
            _ => 8080,
        }
    }

    /// Whether clients come over UDP.
    pub(crate) fn is_datagrams(&self) -> bool {
        matches!(self, Self::Reverse(reverse) if reverse.scheme == ReverseScheme::Http3)
    }

    /// The name by which connections carry it.
    pub(crate) fn name(&self) -> Arc<str> {
        Arc::from(self.to_string())
    }
}

/// As mitmproxy writes it, without the place.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regular => f.write_str("regular"),
            Self::Upstream(proxy) => write!(f, "upstream:{proxy}"),
            Self::Reverse(reverse) => {
                write!(
                    f,
                    "reverse:{}://{}",
                    reverse.scheme.as_str(),
                    reverse.target
                )
            }
            Self::Socks5 => f.write_str("socks5"),
            Self::Transparent => f.write_str("transparent"),
            Self::Return => f.write_str("return"),
        }
    }
}

/// A mode as a person writes it: `name[:data][@[host:]port]`, or `name[:data]@unix:PATH`.
///
/// ```
/// use tollgate_engine::{Mode, ModeSpec};
///
/// let spec: ModeSpec = "reverse:https://example.com@8443".parse()?;
/// assert_eq!(spec.mode.to_string(), "reverse:https://example.com:443");
/// assert_eq!(spec.port, Some(8443));
/// # Ok::<(), tollgate_engine::InvalidMode>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeSpec {
    /// The mode.
    pub mode: Mode,
    /// The address to listen at, where one is given.
    pub host: Option<String>,
    /// The port to listen on, where one is given.
    pub port: Option<u16>,
    /// A Unix socket to listen at instead.
    pub unix: Option<PathBuf>,
}

/// The text is no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mode '{mode}': {problem}")]
pub struct InvalidMode {
    /// What was given.
    pub mode: String,
    /// What is wrong.
    pub problem: String,
}

/// mitmproxy's other modes: named, so that the error is not that they are misspelt.
const MISSING: [&str; 5] = ["dns", "local", "osproxy", "tun", "wireguard"];
/// mitmproxy's other schemes behind `reverse:`.
const MISSING_SCHEMES: [&str; 4] = ["dns", "dtls", "quic", "udp"];

impl FromStr for ModeSpec {
    type Err = InvalidMode;

    fn from_str(text: &str) -> Result<Self, InvalidMode> {
        let error = |problem: String| InvalidMode {
            mode: text.to_owned(),
            problem,
        };
        let (head, place) = match text.rsplit_once('@') {
            Some((head, place)) => (head, Some(place)),
            None => (text, None),
        };
        let (name, data) = match head.split_once(':') {
            Some((name, data)) => (name, Some(data)),
            None => (head, None),
        };
        let name = name.to_ascii_lowercase();
        let mode = match (name.as_str(), data) {
            ("regular", None) => Mode::Regular,
            ("socks5", None) => Mode::Socks5,
            ("transparent", None) => Mode::Transparent,
            ("return", None) => Mode::Return,
            ("upstream", Some(data)) => Mode::Upstream(Arc::new(data.parse().map_err(
                |e: tollgate_flow::InvalidProxy| {
                    error(if place.is_some_and(|p| p.contains('.')) {
                        format!("{e}; credentials go into --upstream-auth")
                    } else {
                        e.to_string()
                    })
                },
            )?)),
            ("reverse", Some(data)) => Mode::Reverse(reverse(data).map_err(error)?),
            ("upstream" | "reverse", None) => {
                return Err(error(format!(
                    "{name} needs to know where: {name}:https://host:port"
                )));
            }
            (known @ ("regular" | "socks5" | "transparent" | "return"), Some(_)) => {
                return Err(error(format!("{known} takes nothing behind a colon")));
            }
            (known, _) if MISSING.contains(&known) => {
                return Err(error(
                    "it exists in mitmproxy but Tollgate doesn't have it yet".to_owned(),
                ));
            }
            _ => {
                return Err(error(
                    "unknown; there are regular, upstream, reverse, socks5, transparent and return"
                        .to_owned(),
                ));
            }
        };
        let mut spec = Self {
            mode,
            host: None,
            port: None,
            unix: None,
        };
        match place.map(|place| (place.strip_prefix("unix:"), place)) {
            None => {}
            Some((Some(path), _)) if !path.is_empty() => spec.unix = Some(PathBuf::from(path)),
            Some((Some(_), _)) => {
                return Err(error("the path of the socket is missing".to_owned()));
            }
            Some((None, place)) => {
                let port = match place.rsplit_once(':') {
                    Some((host, port)) => {
                        spec.host = Some(host.to_owned());
                        port
                    }
                    None => place,
                };
                let port = port
                    .parse()
                    .map_err(|_| error(format!("'{port}' is not a port")))?;
                spec.port = Some(port);
            }
        }
        Ok(spec)
    }
}

/// mitmproxy's server specification, `[scheme://]host[:port][/]`; https without a scheme.
fn reverse(data: &str) -> Result<Reverse, String> {
    let (scheme, authority) = data.split_once("://").unwrap_or(("https", data));
    let scheme = scheme.to_ascii_lowercase();
    let Some(scheme) = ReverseScheme::ALL
        .into_iter()
        .find(|s| s.as_str() == scheme)
    else {
        return Err(if MISSING_SCHEMES.contains(&scheme.as_str()) {
            format!("reverse:{scheme}:// exists in mitmproxy but Tollgate doesn't have it yet")
        } else {
            format!("'{scheme}' is none of http, https, http3, tcp and tls")
        });
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let target = Target::parse(authority, scheme.default_port()).ok_or_else(|| {
        match scheme.default_port() {
            Some(_) => format!("'{authority}' is not host or host:port"),
            None => format!("'{authority}' is not host:port"),
        }
    })?;
    Ok(Reverse {
        scheme,
        target,
        credentials: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<ModeSpec, String> {
        text.parse().map_err(|e: InvalidMode| e.to_string())
    }

    #[test]
    fn modes_as_mitmproxy_writes_them() {
        for (text, mode, host, port) in [
            ("regular", "regular", None, None),
            ("REGULAR@9000", "regular", None, Some(9000)),
            ("socks5@[::1]:1", "socks5", Some("[::1]"), Some(1)),
            (
                "transparent@0.0.0.0:8080",
                "transparent",
                Some("0.0.0.0"),
                Some(8080),
            ),
            (
                "upstream:proxy:3128",
                "upstream:http://proxy:3128",
                None,
                None,
            ),
            (
                "upstream:https://p:1@2",
                "upstream:https://p:1",
                None,
                Some(2),
            ),
            (
                "reverse:example.com",
                "reverse:https://example.com:443",
                None,
                None,
            ),
            (
                "reverse:http://localhost:3000/",
                "reverse:http://localhost:3000",
                None,
                None,
            ),
            (
                "reverse:tcp://[::1]:5432@127.0.0.1:0",
                "reverse:tcp://[::1]:5432",
                Some("127.0.0.1"),
                Some(0),
            ),
            (
                "reverse:http3://example.com",
                "reverse:http3://example.com:443",
                None,
                None,
            ),
        ] {
            let spec = spec(text).unwrap();
            assert_eq!(spec.mode.to_string(), mode, "{text}");
            assert_eq!(spec.host.as_deref(), host, "{text}");
            assert_eq!(spec.port, port, "{text}");
        }
        let at = spec("regular@unix:/run/tollgate.sock").unwrap();
        assert_eq!(at.unix, Some(PathBuf::from("/run/tollgate.sock")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("sideways", "unknown"),
            ("regular:x", "nothing behind a colon"),
            ("regular@x", "not a port"),
            ("regular@70000", "not a port"),
            ("regular@unix:", "path"),
            ("reverse", "where"),
            ("reverse:tcp://host", "host:port"),
            ("reverse:gopher://host", "none of"),
            ("reverse:dns://host", "doesn't have it yet"),
            ("wireguard", "doesn't have it yet"),
            ("upstream:ftp://h:1", "scheme"),
            (
                "upstream:http://u:secret@proxy.example:1",
                "--upstream-auth",
            ),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

//! What is opened, tunnelled and refused.

use std::fmt;
use std::net::IpAddr;

use tollgate_flow::Target;
use tollgate_wire::address::unsafe_address;

use crate::config::ConfigError;

/// What happens to a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Open TLS and look inside.
    #[default]
    Intercept,
    /// Pass the bytes unopened.
    Tunnel,
    /// Refuse: 403, and not one packet goes to the origin.
    Block,
}

/// Decides by host, in this order: `block`, then `allow` (if it isn't empty and nothing in it
/// matches: tunnel), then `ignore` (tunnel), else `default`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Refused hosts.
    pub block: Vec<HostPattern>,
    /// mitmproxy's `allow_hosts`: if not empty, only these are opened.
    pub allow: Vec<HostPattern>,
    /// mitmproxy's `ignore_hosts`: these are tunnelled.
    pub ignore: Vec<HostPattern>,
    /// mitmproxy's `tcp_hosts`: what is said to these is not read as HTTP. TLS is opened.
    pub raw: Vec<HostPattern>,
    /// Whether only public addresses are destinations: none of this machine, a private network, a metadata service or
    /// another range with a special purpose, whatever name leads there. An address is looked at when it is dialled, so
    /// that a name can't change its mind. Default: false. Upstream proxies and the server of a reverse proxy are the
    /// configuration's own, and exempt.
    pub public_only: bool,
    /// Destinations that may have any address all the same.
    pub private: Vec<HostPattern>,
    /// mitmproxy's `show_ignored_hosts`: whether tunnels are recorded, as bytes.
    pub show_ignored: bool,
    /// What happens to everything else.
    pub default: Action,
}

impl Policy {
    /// Decides about a connection. `names` are all the names by which the destination is known:
    /// the authority of a CONNECT, the SNI, the Host header.
    pub fn decide(&self, names: &[&Target]) -> Action {
        let any = |patterns: &[HostPattern]| {
            patterns
                .iter()
                .any(|p| names.iter().any(|name| p.matches(name)))
        };
        if any(&self.block) {
            Action::Block
        } else if (!self.allow.is_empty() && !any(&self.allow)) || any(&self.ignore) {
            Action::Tunnel
        } else {
            self.default
        }
    }

    /// Decides about a connection to `target` of which the client says, in its SNI or Host, that
    /// it is to `claimed`. Such a claim can get a connection refused or opened, but it can't get
    /// one past us to a destination that is known by a name of its own: anybody can claim anything.
    /// Where only an address is known, it is all there is.
    pub fn decide_connection(&self, target: &Target, claimed: Option<&Target>) -> Action {
        let Some(claimed) = claimed else {
            return self.decide(&[target]);
        };
        match self.decide(&[target, claimed]) {
            Action::Tunnel if target.ip().is_none() => match self.decide(&[target]) {
                Action::Tunnel => Action::Tunnel,
                _ if self.default == Action::Block => Action::Block,
                _ => Action::Intercept,
            },
            action => action,
        }
    }

    /// Whether a destination may have that address.
    pub(crate) fn may_be_at(&self, target: &Target, address: IpAddr) -> bool {
        !self.public_only
            || unsafe_address(address).is_none()
            || self.private.iter().any(|pattern| pattern.matches(target))
    }

    /// Whether what is said to a destination is not to be read as HTTP.
    pub fn is_raw(&self, names: &[&Target]) -> bool {
        self.raw
            .iter()
            .any(|pattern| names.iter().any(|name| pattern.matches(name)))
    }
}

/// A pattern for hosts.
#[derive(Clone)]
pub struct HostPattern {
    source: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// Searched for in the host alone.
    HostRegex(regex::Regex),
    /// Host (exact, or `*.` and a suffix, or `*`), and a port where one is given.
    Glob { host: Glob, port: Option<u16> },
    /// A network: address and prefix length.
    Net { address: IpAddr, prefix: u8 },
    /// mitmproxy's: searched for in `host:port`, case-insensitive.
    Regex(regex::Regex),
}

#[derive(Clone)]
enum Glob {
    Any,
    Exact(String),
    /// `.example.com`: every name below, not the name itself.
    Below(String),
    /// A `*` elsewhere: the pieces between the stars.
    Pieces(Vec<String>),
}

impl HostPattern {
    /// A pattern in our own form: `example.com`, `*.example.com`, `*`, `10.0.0.0/8`, each with an
    /// optional `:port`. Case doesn't matter; `*.example.com` doesn't match `example.com`.
    pub fn new(pattern: &str) -> Result<Self, ConfigError> {
        let error = |problem: &str| ConfigError::Pattern {
            pattern: pattern.to_owned(),
            problem: problem.to_owned(),
        };
        let lower = pattern.trim().to_ascii_lowercase();
        if let Some((address, prefix)) = lower.split_once('/') {
            let address: IpAddr = address
                .parse()
                .map_err(|_| error("not a network address"))?;
            let prefix: u8 = prefix
                .parse()
                .map_err(|_| error("the prefix length is not a number"))?;
            let max = if address.is_ipv4() { 32 } else { 128 };
            if prefix > max {
                return Err(error("the prefix is longer than the address"));
            }
            return Ok(Self {
                source: pattern.to_owned(),
                kind: Kind::Net { address, prefix },
            });
        }
        let (host, port) = if lower.parse::<std::net::Ipv6Addr>().is_ok() {
            (lower.as_str(), None)
        } else if let Some(rest) = lower.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| error("a bracket is not closed"))?;
            (host, rest.strip_prefix(':'))
        } else {
            match lower.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (lower.as_str(), None),
            }
        };
        let port = match port {
            Some("*") | None => None,
            Some(port) => Some(
                port.parse()
                    .ok()
                    .filter(|&p: &u16| p > 0)
                    .ok_or_else(|| error("the port is not a number from 1 to 65535"))?,
            ),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        let host = match host {
            "" => return Err(error("the host is empty")),
            "*" => Glob::Any,
            _ => match (host.strip_prefix("*."), host.matches('*').count()) {
                (Some(suffix), 1) => Glob::Below(format!(".{suffix}")),
                (_, 0) => Glob::Exact(host.to_owned()),
                _ => Glob::Pieces(host.split('*').map(str::to_owned).collect()),
            },
        };
        Ok(Self {
            source: pattern.to_owned(),
            kind: Kind::Glob { host, port },
        })
    }

    /// A pattern in mitmproxy's form (`--ignore-hosts`, `--allow-hosts`): a regular expression
    /// that is searched for in `host:port`, case-insensitive.
    pub fn regex(pattern: &str) -> Result<Self, ConfigError> {
        let regex = regex::RegexBuilder::new(pattern)
            .case_insensitive(true)
            .size_limit(1 << 20)
            .build()
            .map_err(|e| ConfigError::Pattern {
                pattern: pattern.to_owned(),
                problem: e.to_string(),
            })?;
        Ok(Self {
            source: pattern.to_owned(),
            kind: Kind::Regex(regex),
        })
    }

    /// The same, searched for in the host alone (`--tcp-hosts`).
    pub fn host_regex(pattern: &str) -> Result<Self, ConfigError> {
        let mut pattern = Self::regex(pattern)?;
        if let Kind::Regex(regex) = pattern.kind {
            pattern.kind = Kind::HostRegex(regex);
        }
        Ok(pattern)
    }

    /// Whether the pattern matches a destination.
    pub fn matches(&self, target: &Target) -> bool {
        match &self.kind {
            Kind::Regex(regex) => regex.is_match(&target.to_string()),
            Kind::HostRegex(regex) => regex.is_match(&target.host),
            Kind::Net { address, prefix } => target
                .ip()
                .is_some_and(|ip| in_network(ip, *address, *prefix)),
            Kind::Glob { host, port } => {
                port.is_none_or(|port| port == target.port) && host.matches(&target.host)
            }
        }
    }
}

impl Glob {
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            Self::Pieces(pieces) => {
                let Some((first, rest)) = pieces.split_first() else {
                    return false;
                };
                let Some((last, middle)) = rest.split_last() else {
                    return host == first;
                };
                let Some(mut left) = host.strip_prefix(first.as_str()) else {
                    return false;
                };
                for piece in middle {
                    match left.split_once(piece.as_str()) {
                        Some((_, after)) => left = after,
                        None => return false,
                    }
                }
                left.ends_with(last.as_str())
            }
        }
    }
}

fn in_network(ip: IpAddr, network: IpAddr, prefix: u8) -> bool {
    match (ip.to_canonical(), network) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            ip.to_bits() & mask == net.to_bits() & mask
        }
        _ => false,
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, f)
    }
}

impl PartialEq for HostPattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
            && std::mem::discriminant(&self.kind) == std::mem::discriminant(&other.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(s: &str) -> Target {
        Target::parse(s, Some(443)).unwrap()
    }

    #[test]
    fn patterns_match_what_they_say() {
        let cases = [
            ("example.com", "example.com", true),
            ("EXAMPLE.com.", "Example.COM", true),
            ("example.com", "www.example.com", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "notexample.com", false),
            ("*.example.com:8443", "www.example.com", false),
            ("*.example.com:8443", "www.example.com:8443", true),
            ("api-*.example.com", "api-eu.example.com", true),
            ("api-*.example.com", "api.example.com", false),
            ("a*a", "a", false),
            ("*:25", "anything:25", true),
            ("*:25", "anything:26", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("fd00::/8", "[fd00::1]", true),
            ("::1", "[::1]", true),
            ("[::1]:443", "[::1]", true),
        ];
        for (pattern, host, expected) in cases {
            let got = HostPattern::new(pattern).unwrap().matches(&target(host));
            assert_eq!(got, expected, "{pattern} on {host}");
        }
        for bad in ["", ":443", "a:0", "a:b", "10.0.0.0/33", "x/8", "[::1"] {
            assert!(HostPattern::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mitmproxy_semantics_of_allow_and_ignore() {
        let regex = |s: &str| HostPattern::regex(s).unwrap();
        let policy = Policy {
            allow: vec![regex(r"example\.com")],
            ignore: vec![regex(r"^pinned\.example\.com:443$")],
            ..Policy::default()
        };
        assert_eq!(
            policy.decide(&[&target("www.example.com")]),
            Action::Intercept
        );
        assert_eq!(
            policy.decide(&[&target("pinned.example.com")]),
            Action::Tunnel
        );
        assert_eq!(policy.decide(&[&target("elsewhere.net")]), Action::Tunnel);
        assert_eq!(
            policy.decide(&[&target("192.0.2.1"), &target("www.EXAMPLE.com")]),
            Action::Intercept
        );
    }
}

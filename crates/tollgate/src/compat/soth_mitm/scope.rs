//! Which destinations are opened.

use tollgate_engine::HostPattern;
use tollgate_flow::Target;

use super::config::InterceptionScope;
use super::error::MitmError;

/// The destinations, parsed.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    patterns: Vec<HostPattern>,
    passthrough_unlisted: bool,
}

/// What happens to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Listed: the handler sees it.
    Listed,
    /// Passed on unseen.
    Passthrough,
    /// Refused.
    Refused,
}

impl Scope {
    /// Parses the destinations.
    pub fn new(scope: &InterceptionScope) -> Result<Self, MitmError> {
        if scope.destinations.is_empty() {
            return Err(MitmError::InvalidConfig(
                "interception.destinations must name at least one host:port".to_owned(),
            ));
        }
        let patterns = scope
            .destinations
            .iter()
            .map(|text| pattern(text.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            patterns,
            passthrough_unlisted: scope.passthrough_unlisted,
        })
    }

    /// Decides about a destination.
    pub fn decide(&self, target: &Target) -> Verdict {
        if self.patterns.iter().any(|pattern| pattern.matches(target)) {
            Verdict::Listed
        } else if self.passthrough_unlisted {
            Verdict::Passthrough
        } else {
            Verdict::Refused
        }
    }
}

fn pattern(text: &str) -> Result<HostPattern, MitmError> {
    let error = |problem: &str| {
        MitmError::InvalidConfig(format!("interception destination {text:?}: {problem}"))
    };
    let (host, port) = text
        .rsplit_once(':')
        .ok_or_else(|| error("it needs a port, as in example.com:443"))?;
    if port != "*" && !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(error("the port is not a number from 1 to 65535"));
    }
    if host.contains('/') {
        return Err(error("a destination is a host, not a network or URL"));
    }
    if host.contains('*') {
        if host.contains([':', '[']) {
            return Err(error("an IPv6 address can't hold a `*`"));
        }
    } else if Target::parse(host, Some(1)).is_none() {
        return Err(error("not a host (an IPv6 address needs brackets)"));
    }
    HostPattern::new(text).map_err(|e| MitmError::InvalidConfig(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(destinations: &[&str], passthrough_unlisted: bool) -> Result<Scope, MitmError> {
        Scope::new(&InterceptionScope {
            destinations: destinations.iter().map(|&d| d.to_owned()).collect(),
            passthrough_unlisted,
        })
    }

    #[test]
    fn destinations_match_host_and_port() {
        let scope = scope(
            &[
                "API.example.com:443",
                "*.internal.test:8443",
                "[::1]:443",
                "*:9443",
            ],
            true,
        )
        .unwrap();
        let cases = [
            ("api.example.com:443", Verdict::Listed),
            ("Api.Example.Com.:443", Verdict::Listed),
            ("api.example.com:444", Verdict::Passthrough),
            ("example.com:443", Verdict::Passthrough),
            ("a.internal.test:8443", Verdict::Listed),
            ("internal.test:8443", Verdict::Passthrough),
            ("[::1]:443", Verdict::Listed),
            ("anything:9443", Verdict::Listed),
        ];
        for (target, expected) in cases {
            let target = Target::parse(target, None).unwrap();
            assert_eq!(scope.decide(&target), expected, "{target}");
        }
    }

    #[test]
    fn unlisted_are_refused_when_told_so() {
        let scope = scope(&["a:1"], false).unwrap();
        assert_eq!(scope.decide(&Target::new("b", 1)), Verdict::Refused);
        assert_eq!(scope.decide(&Target::new("a", 1)), Verdict::Listed);
    }

    #[test]
    fn bad_destinations_are_refused() {
        for bad in [
            "",
            "example.com",
            ":443",
            "a:0",
            "a:65536",
            "a:x",
            "::1:443",
            "[::1",
            "[*]:443",
            "10.0.0.0/8:443",
            "https://a:443",
            "a b:1",
        ] {
            assert!(scope(&[bad], true).is_err(), "{bad}");
        }
        assert!(scope(&[], true).is_err());
    }
}

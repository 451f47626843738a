//! Requests that name another host than the connection they come in (domain fronting): who decides by the name that
//! was asked for would let them pass to another one behind the same front.

use tollgate_flow::{Flow, Target};

use crate::scan::{Category, Confidence, Finding, Range64, Severity};

/// The rule's id.
pub(super) const RULE: &str = "domain-fronting";

/// The host that a request goes to, by its name: where the client asked for an address (mode `transparent`), that of the
/// SNI, for which the origin has to show a certificate.
pub(crate) fn goes_to(flow: &Flow) -> &str {
    asked_for(flow).unwrap_or(&flow.request.target.host)
}

/// The name of the host that a client asked to be connected to; `None` where it has said none, and where the
/// configuration says where to go (a reverse proxy, a rule that sends a request elsewhere).
fn asked_for(flow: &Flow) -> Option<&str> {
    let connection = &flow.connection;
    let asked = connection.target()?;
    if connection.mode().starts_with("reverse") || flow.request.target.host != asked.host {
        return None;
    }
    match asked.ip() {
        Some(_) => sni(flow),
        None => Some(&asked.host),
    }
}

fn sni(flow: &Flow) -> Option<&str> {
    let tls = flow.connection.tls()?;
    tls.hello.server_name.as_deref()
}

/// The finding, if SNI, `:authority` or `Host` name another host than the one that the client asked to be connected to.
/// Where the configuration says where to go, names may differ.
pub(super) fn fronted(flow: &Flow) -> Option<Finding> {
    let expected = asked_for(flow)?;
    let asked = flow.connection.target()?;
    let named = [
        sni(flow).map(str::as_bytes),
        flow.request.authority.as_deref(),
        flow.request.headers().get("host"),
    ];
    let is_other = |name: &&[u8]| {
        let host = std::str::from_utf8(name)
            .ok()
            .and_then(|name| Target::parse(name, Some(asked.port)));
        host.is_none_or(|named| *named.host != *expected && named.host != asked.host)
    };
    let other = named
        .into_iter()
        .flatten()
        .filter(|name| !name.is_empty())
        .find(is_other)?;
    let mut excerpt: String = String::from_utf8_lossy(other).chars().take(40).collect();
    excerpt.push_str(" in a connection to ");
    excerpt.extend(expected.chars().take(40));
    Some(Finding {
        range: Range64 { start: 0, end: 0 },
        rule: RULE.into(),
        category: Category::Destination,
        severity: Severity::High,
        confidence: Confidence::High,
        excerpt,
        via: Vec::new(),
        score: None,
    })
}

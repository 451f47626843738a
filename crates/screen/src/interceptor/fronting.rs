//! Requests that name another host than the connection they come in (domain fronting): who decides by the name that
//! was asked for would let them pass to another one behind the same front.

use tollgate_flow::{Flow, Target};

use crate::scan::{Category, Confidence, Finding, Range64, Severity};

/// The rule's id.
pub(super) const RULE: &str = "domain-fronting";

/// The finding, if SNI, `:authority` or `Host` name another host than the one that the client asked to be connected to.
///
/// Where it asked for an address, the SNI stands for the name. Where the configuration says where to go (a reverse
/// proxy, a rule that sends a request elsewhere), names may differ.
pub(super) fn fronted(flow: &Flow) -> Option<Finding> {
    let connection = &flow.connection;
    let asked = connection.target()?;
    if connection.mode().starts_with("reverse") || flow.request.target.host != asked.host {
        return None;
    }
    let sni = connection
        .tls()
        .and_then(|tls| tls.hello.server_name.as_deref());
    let expected = match asked.ip() {
        Some(_) => sni?,
        None => &*asked.host,
    };
    let named = [
        sni.map(str::as_bytes),
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

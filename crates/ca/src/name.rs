//! Names that a certificate can carry, and the constraints an authority puts on them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints};

use crate::error::CaError;

/// A subject alternative name in its normal form: an IP address, or a DNS name in lower-case A-labels without a
/// trailing dot, possibly with `*` as its first label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SanName(Repr);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Repr {
    Dns(Box<str>),
    Ip(IpAddr),
}

impl SanName {
    /// Normalises a host as it stands in a URL, a `CONNECT` target without its port, an SNI or a certificate.
    ///
    /// Takes IPv4, IPv6 (with or without brackets, the zone is dropped), DNS names and wildcards. Unicode becomes
    /// A-labels (UTS #46). Underscores pass, because they occur in real host names.
    ///
    /// # Errors
    /// [`CaError::InvalidName`] for what is empty, longer than 253 bytes, has an empty label or one of more than 63
    /// bytes, or holds a character that no host name has.
    pub fn parse(host: &str) -> Result<Self, CaError> {
        let host = host.trim();
        if let Some(ip) = parse_ip(host) {
            return Ok(Self(Repr::Ip(ip)));
        }
        normalise_dns(host, true)
            .map(|dns| Self(Repr::Dns(dns.into())))
            .map_err(|reason| invalid(host, reason))
    }

    /// The DNS name, if it is one.
    pub fn as_dns(&self) -> Option<&str> {
        match &self.0 {
            Repr::Dns(dns) => Some(dns),
            Repr::Ip(_) => None,
        }
    }

    /// The IP address, if it is one.
    pub fn as_ip(&self) -> Option<IpAddr> {
        match self.0 {
            Repr::Dns(_) => None,
            Repr::Ip(ip) => Some(ip),
        }
    }

    /// Of the name forms of a parsed certificate, those that name a host and are valid.
    pub(crate) fn from_general_name(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(dns) => normalise_dns(dns, true)
                .ok()
                .map(|dns| Self(Repr::Dns(dns.into()))),
            GeneralName::IPAddress(bytes) => ip_from_bytes(bytes).map(|ip| Self(Repr::Ip(ip))),
            _ => None,
        }
    }
}

impl fmt::Display for SanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Dns(dns) => f.write_str(dns),
            Repr::Ip(ip) => ip.fmt(f),
        }
    }
}

impl From<IpAddr> for SanName {
    fn from(ip: IpAddr) -> Self {
        Self(Repr::Ip(ip))
    }
}

impl FromStr for SanName {
    type Err = CaError;

    fn from_str(host: &str) -> Result<Self, CaError> {
        Self::parse(host)
    }
}

/// One permitted subtree (RFC 5280, 4.2.1.10).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NameConstraint {
    /// `example.com`: the name and everything below it. `.example.com`: only what is below it. Lower-case A-labels.
    Dns(String),
    /// An address block; `prefix` counts the leading bits that must agree.
    Ip {
        /// The block's first address.
        network: IpAddr,
        /// At most 32 for IPv4 and 128 for IPv6.
        prefix: u8,
    },
}

impl FromStr for NameConstraint {
    type Err = CaError;

    /// Reads `example.com`, `.example.com`, `10.0.0.0/8`, `2001:db8::/32` or a single address.
    fn from_str(text: &str) -> Result<Self, CaError> {
        let fail = |reason| CaError::InvalidConstraint {
            constraint: text.to_owned(),
            reason,
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        if let Some(network) = parse_ip(address) {
            let widest = if network.is_ipv4() { 32 } else { 128 };
            let prefix = match prefix {
                None => widest,
                Some(bits) => bits
                    .parse()
                    .ok()
                    .filter(|bits| *bits <= widest)
                    .ok_or_else(|| fail("the prefix length is out of range"))?,
            };
            if masked(network, prefix) != network {
                return Err(fail("address bits are set behind the prefix"));
            }
            return Ok(Self::Ip { network, prefix });
        }
        if prefix.is_some() {
            return Err(fail("what stands before the slash is not an IP address"));
        }
        let (dot, suffix) = match text.strip_prefix('.') {
            Some(suffix) => (".", suffix),
            None => ("", text),
        };
        Ok(Self::Dns(format!(
            "{dot}{}",
            normalise_dns(suffix, false).map_err(fail)?
        )))
    }
}

impl NameConstraint {
    /// Whether this subtree contains the name. A DNS subtree never contains an address, nor the other way round.
    pub fn contains(&self, name: &SanName) -> bool {
        match (self, &name.0) {
            (Self::Dns(base), Repr::Dns(dns)) => dns_within(dns, base),
            (Self::Ip { network, prefix }, Repr::Ip(ip)) => {
                network.is_ipv4() == ip.is_ipv4() && masked(*ip, *prefix) == *network
            }
            _ => false,
        }
    }

    fn covers_same_form(&self, name: &SanName) -> bool {
        matches!(
            (self, &name.0),
            (Self::Dns(_), Repr::Dns(_)) | (Self::Ip { .. }, Repr::Ip(_))
        )
    }

    /// The address and mask bytes of an `iPAddress` subtree.
    pub(crate) fn ip_bytes(network: IpAddr, prefix: u8) -> Vec<u8> {
        let mut bytes = ip_bytes(network);
        bytes.extend(ip_bytes(masked(all_ones(network), prefix)));
        bytes
    }
}

/// The name constraints of one certificate.
#[derive(Debug, Default)]
pub(crate) struct Constraints {
    pub(crate) permitted: Vec<NameConstraint>,
    pub(crate) excluded: Vec<NameConstraint>,
    /// Subtrees for directory names apply to a leaf's subject; such a leaf gets an empty one.
    pub(crate) restricts_subject: bool,
}

impl Constraints {
    /// What an authority that permits `permitted` writes: RFC 5280 leaves a name form without a permitted subtree
    /// free, so the form that the operator did not mention is excluded as a whole.
    pub(crate) fn only(permitted: &[NameConstraint]) -> Self {
        let mut excluded = Vec::new();
        if !permitted.is_empty() {
            if !permitted
                .iter()
                .any(|c| matches!(c, NameConstraint::Ip { .. }))
            {
                excluded.push(NameConstraint::Ip {
                    network: Ipv4Addr::UNSPECIFIED.into(),
                    prefix: 0,
                });
                excluded.push(NameConstraint::Ip {
                    network: Ipv6Addr::UNSPECIFIED.into(),
                    prefix: 0,
                });
            }
            if !permitted
                .iter()
                .any(|c| matches!(c, NameConstraint::Dns(_)))
            {
                excluded.push(NameConstraint::Dns(String::new()));
            }
        }
        Self {
            permitted: permitted.to_vec(),
            excluded,
            restricts_subject: false,
        }
    }

    pub(crate) fn from_extension(extension: &NameConstraints<'_>) -> Result<Self, CaError> {
        let mut constraints = Self::default();
        let mut read = |subtrees: &Option<Vec<GeneralSubtree<'_>>>| {
            let mut list = Vec::new();
            for subtree in subtrees.iter().flatten() {
                match &subtree.base {
                    GeneralName::DNSName(dns) => {
                        list.push(NameConstraint::Dns(dns.to_ascii_lowercase()))
                    }
                    GeneralName::IPAddress(bytes) => list.push(ip_subtree(bytes)?),
                    GeneralName::Invalid(..) => return Err(malformed("a name is not readable")),
                    GeneralName::DirectoryName(_) => constraints.restricts_subject = true,
                    // Mail addresses, URIs and the rest never stand in a leaf.
                    _ => {}
                }
            }
            Ok(list)
        };
        let (permitted, excluded) = (
            read(&extension.permitted_subtrees)?,
            read(&extension.excluded_subtrees)?,
        );
        Ok(Self {
            permitted,
            excluded,
            ..constraints
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.permitted.is_empty() && self.excluded.is_empty()
    }

    pub(crate) fn permit(&self, name: &SanName) -> bool {
        let mut same_form = self
            .permitted
            .iter()
            .filter(|c| c.covers_same_form(name))
            .peekable();
        (same_form.peek().is_none() || same_form.any(|c| c.contains(name)))
            && !self.excluded.iter().any(|c| c.contains(name))
    }
}

/// The bytes of an `iPAddress` name.
pub(crate) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn ip_subtree(bytes: &[u8]) -> Result<NameConstraint, CaError> {
    let (address, mask) = bytes.split_at(bytes.len() / 2);
    let (Some(address), Some(mask)) = (ip_from_bytes(address), ip_from_bytes(mask)) else {
        return Err(malformed("an address block has a wrong length"));
    };
    let prefix = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones() as u8,
        IpAddr::V6(mask) => mask.to_bits().leading_ones() as u8,
    };
    if mask != masked(all_ones(mask), prefix) {
        return Err(malformed("an address mask has gaps"));
    }
    Ok(NameConstraint::Ip {
        network: masked(address, prefix),
        prefix,
    })
}

fn malformed(reason: &str) -> CaError {
    CaError::Malformed {
        what: "name constraints",
        reason: reason.to_owned(),
    }
}

fn all_ones(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(u32::MAX).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(u128::MAX).into(),
    }
}

fn masked(ip: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX
                .checked_shl(32u32.saturating_sub(prefix))
                .unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128u32.saturating_sub(prefix))
                .unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

/// RFC 5280, 4.2.1.10, with the common reading of a leading dot ("only below").
fn dns_within(dns: &str, base: &str) -> bool {
    if base.is_empty() {
        return true;
    }
    match dns.strip_suffix(base) {
        Some("") => true,
        Some(rest) => rest.ends_with('.') || base.starts_with('.'),
        None => false,
    }
}

fn parse_ip(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    match bare.split_once('%') {
        // A zone names an interface of the client and means nothing to anyone else.
        Some((address, _zone)) => address.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => bare.parse().ok(),
    }
}

fn normalise_dns(host: &str, wildcard: bool) -> Result<String, &'static str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    // Before anything is allocated; UTF-8 of a legal name is at most four times as long as its characters.
    if host.len() > 4 * 253 {
        return Err("longer than 253 bytes");
    }
    let (star, rest) = match host.strip_prefix("*.") {
        Some(rest) if wildcard => ("*.", rest),
        _ => ("", host),
    };
    let labels = if rest.is_ascii() {
        rest.to_ascii_lowercase()
    } else {
        idna::domain_to_ascii(rest).map_err(|_| "not a valid internationalised name")?
    };
    for label in labels.split('.') {
        match label.len() {
            0 => return Err("a label is empty"),
            1..=63 => {}
            _ => return Err("a label is longer than 63 bytes"),
        }
        if !label
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        {
            return Err("a character does not belong in a host name");
        }
    }
    let name = if star.is_empty() {
        labels
    } else {
        format!("{star}{labels}")
    };
    if name.len() > 253 {
        Err("longer than 253 bytes")
    } else {
        Ok(name)
    }
}

fn invalid(name: &str, reason: &'static str) -> CaError {
    let mut end = name.len().min(255);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    CaError::InvalidName {
        name: name.get(..end).unwrap_or_default().to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_are_brought_to_one_form() {
        for (host, normal) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("*.Example.com", "*.example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
            ("my_host.internal", "my_host.internal"),
            ("localhost", "localhost"),
            ("127.0.0.1", "127.0.0.1"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("::1", "::1"),
            ("[fe80::1%eth0]", "fe80::1"),
        ] {
            assert_eq!(SanName::parse(host).unwrap().to_string(), normal);
        }
        assert!(SanName::parse("[::1]").unwrap().as_ip().is_some());
        assert!(SanName::parse("::ffff").unwrap().as_dns().is_none());
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let (long, label) = (format!("{}com", "abcdefg.".repeat(40)), "a".repeat(64));
        for host in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            "a b",
            "a/b",
            "*.*.example",
            "a.*.b",
            "exa\0mple",
            "1.2.3.4%x",
            long.as_str(),
            label.as_str(),
        ] {
            assert!(
                matches!(SanName::parse(host), Err(CaError::InvalidName { .. })),
                "{host:?}"
            );
        }
    }

    #[test]
    fn constraints_contain_what_rfc_5280_says() {
        let within = |constraint: &str, name: &str| {
            constraint
                .parse::<NameConstraint>()
                .unwrap()
                .contains(&SanName::parse(name).unwrap())
        };
        assert!(within("example.com", "example.com"));
        assert!(within("Example.com", "a.b.example.com"));
        assert!(within("example.com", "*.example.com"));
        assert!(!within("example.com", "notexample.com"));
        assert!(!within("example.com", "com"));
        assert!(within(".example.com", "a.example.com"));
        assert!(!within(".example.com", "example.com"));
        assert!(within("10.0.0.0/8", "10.255.0.1"));
        assert!(!within("10.0.0.0/8", "11.0.0.1"));
        assert!(within("0.0.0.0/0", "192.0.2.1"));
        assert!(!within("0.0.0.0/0", "::1"));
        assert!(within("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(within("192.0.2.7", "192.0.2.7"));
        assert!(!within("10.0.0.0/8", "10.example.com"));
        for bad in [
            "",
            ".",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::/129",
            "a/8",
            "*.example.com",
            "10.0.0.0/-1",
        ] {
            assert!(bad.parse::<NameConstraint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_form_without_a_permitted_subtree_is_closed() {
        let names = Constraints::only(&["example.com".parse().unwrap()]);
        assert!(names.permit(&SanName::parse("a.example.com").unwrap()));
        assert!(!names.permit(&SanName::parse("192.0.2.1").unwrap()));
        let addresses = Constraints::only(&["10.0.0.0/8".parse().unwrap()]);
        assert!(addresses.permit(&SanName::parse("10.1.1.1").unwrap()));
        assert!(!addresses.permit(&SanName::parse("example.com").unwrap()));
        assert!(!addresses.permit(&SanName::parse("::1").unwrap()));
        assert!(Constraints::only(&[]).permit(&SanName::parse("::1").unwrap()));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(host in "\\PC{0,300}") {
            if let Ok(name) = SanName::parse(&host) {
                prop_assert_eq!(SanName::parse(&name.to_string()).unwrap(), name);
            }
            let _ = host.parse::<NameConstraint>();
        }
    }
}

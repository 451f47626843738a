use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::Timestamp;

/// What is known of either connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Connection {
    /// Identifies the connection: flows that share it carry the same id.
    pub id: String,
    /// The address of the other side.
    pub peername: Option<Address>,
    /// Our address.
    pub sockname: Option<Address>,
    /// `tcp` or `udp`.
    pub transport_protocol: Transport,
    /// Why no further connection to this address should be tried.
    pub error: Option<String>,
    /// Whether it is, or should have been, protected by TLS.
    pub tls: bool,
    /// The certificates that the other side sent, leaf first.
    pub certificates: Certificates,
    /// The protocol that was agreed by ALPN.
    pub alpn: Option<Bytes>,
    /// The protocols that the hello offered.
    pub alpn_offers: Vec<Bytes>,
    /// The cipher suite, by OpenSSL's name.
    pub cipher: Option<String>,
    /// The cipher suites that were offered.
    pub cipher_list: Vec<String>,
    /// The TLS version: `TLSv1.3`.
    pub tls_version: Option<String>,
    /// The server name in the hello.
    pub sni: Option<String>,
    /// When it began: accepted from a client; towards an origin, when the first step to it was taken.
    pub timestamp_start: Option<Timestamp>,
    /// When the TLS handshake was done.
    pub timestamp_tls_setup: Option<Timestamp>,
    /// When it was closed.
    pub timestamp_end: Option<Timestamp>,
}

/// The transport below a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, for DNS and QUIC.
    Udp,
}

impl Transport {
    /// `tcp` or `udp`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The client's connection.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConnection {
    /// What both sides have.
    pub common: Connection,
    /// The leaf that was shown to the client, PEM. mitmproxy never fills it in.
    pub mitmcert: Option<Bytes>,
    /// The mode of the proxy, in mitmproxy's notation: `regular`, `reverse:https://example.com`.
    pub proxy_mode: String,
}

impl Default for ClientConnection {
    fn default() -> Self {
        let nowhere = Some(Address::new("", 0));
        Self {
            common: Connection {
                peername: nowhere.clone(),
                sockname: nowhere,
                timestamp_start: Some(Timestamp::default()),
                ..Connection::default()
            },
            mitmcert: None,
            proxy_mode: "regular".to_owned(),
        }
    }
}

/// The connection to the origin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerConnection {
    /// What both sides have.
    pub common: Connection,
    /// Where the connection was meant to go, by name or address.
    pub address: Option<Address>,
    /// When TCP was connected.
    pub timestamp_tcp_setup: Option<Timestamp>,
    /// The proxy on the way to the origin.
    pub via: Option<Via>,
}

/// A proxy on the way to the origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via {
    /// `http` or `https`.
    pub scheme: String,
    /// Its address.
    pub address: Address,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Flow label and scope of an IPv6 address, where they were recorded.
    pub rest: Vec<u32>,
}

impl Address {
    /// A host and a port.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            rest: Vec::new(),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let rest = match address {
            SocketAddr::V4(_) => Vec::new(),
            SocketAddr::V6(v6) => vec![v6.flowinfo(), v6.scope_id()],
        };
        Self {
            host: address.ip().to_string(),
            port: address.port(),
            rest,
        }
    }
}

/// A chain of certificates, leaf first.
#[derive(Clone, Debug)]
pub enum Certificates {
    /// As a flow file holds them: PEM, one certificate each.
    Pem(Vec<Bytes>),
    /// As they came in a handshake, shared with the flow.
    Der(Arc<[Vec<u8>]>),
}

impl Certificates {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Pem(list) => list.len(),
            Self::Der(list) => list.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each as PEM, with lines of 64 characters.
    pub fn pem(&self) -> impl DoubleEndedIterator<Item = Cow<'_, [u8]>> {
        let (pem, der): (&[Bytes], &[Vec<u8>]) = match self {
            Self::Pem(list) => (list, &[]),
            Self::Der(list) => (&[], list),
        };
        pem.iter()
            .map(|text| Cow::Borrowed(&text[..]))
            .chain(der.iter().map(|der| Cow::Owned(to_pem(der))))
    }

    /// Each as DER; `None` for one whose PEM is none.
    pub fn der(&self) -> impl Iterator<Item = Option<Cow<'_, [u8]>>> {
        let (pem, der): (&[Bytes], &[Vec<u8>]) = match self {
            Self::Pem(list) => (list, &[]),
            Self::Der(list) => (&[], list),
        };
        pem.iter()
            .map(|text| from_pem(text).map(Cow::Owned))
            .chain(der.iter().map(|der| Some(Cow::Borrowed(&der[..]))))
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::Pem(Vec::new())
    }
}

impl PartialEq for Certificates {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.pem().eq(other.pem())
    }
}

fn to_pem(der: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(der);
    let mut pem = Vec::with_capacity(text.len() + text.len() / 64 + 64);
    pem.extend_from_slice(b"-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend_from_slice(line);
        pem.push(b'\n');
    }
    pem.extend_from_slice(b"-----END CERTIFICATE-----\n");
    pem
}

fn from_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let (_, body) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = body.split_once("-----END CERTIFICATE-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_the_same_in_either_form() {
        let chain = [vec![7; 100], vec![1, 2, 3]];
        let der = Certificates::Der(Arc::from(chain.clone()));
        let pem = Certificates::Pem(der.pem().map(|pem| Bytes::from(pem.into_owned())).collect());
        assert_eq!(der, pem);
        let back: Vec<_> = pem.der().map(|der| der.unwrap().into_owned()).collect();
        assert_eq!(back, chain);
        let broken = Certificates::Pem(vec![Bytes::from_static(b"x")]);
        assert_eq!(broken.der().next(), Some(None));
        assert_ne!(broken, Certificates::default());
    }
}

//! SOCKS5 (RFC 1928) with user name and password (RFC 1929), both sides.
//!
//! The order of a connection, with what reads and writes each message:
//!
//! | message | from | read | written |
//! |---|---|---|---|
//! | greeting | client | [`parse_greeting`] | [`write_greeting`] |
//! | chosen method | server | [`parse_method`] | [`write_method`] |
//! | credentials, if chosen | client | [`parse_credentials`] | [`Credentials::write`] |
//! | status of the credentials | server | [`parse_status`] | [`write_status`] |
//! | request | client | [`parse_request`] | [`Request::write`] |
//! | reply | server | [`parse_reply`] | [`write_reply`] |
//! | header of each UDP datagram | both | [`parse_datagram`] | [`write_datagram_header`] |
//!
//! A parser looks at what has arrived so far and takes nothing; [`Parsed`] says what a caller may drop. The format bounds
//! every message: none is longer than [`MAX_MESSAGE_LEN`], so that a caller who reads that much never waits for more.
//!
//! ```
//! use tollgate_wire::socks5::{self, Address, Method, Parsed, ReplyCode};
//!
//! let input = b"\x05\x01\x00";
//! let Parsed::Complete { value: greeting, consumed } = socks5::parse_greeting(input)? else { panic!("read on") };
//! assert!(greeting.offers(Method::NoAuthentication));
//! assert_eq!(consumed, 3);
//! let mut answer = Vec::new();
//! socks5::write_method(Method::NoAuthentication, &mut answer);
//!
//! let input = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb";
//! let Parsed::Complete { value: request, .. } = socks5::parse_request(input)? else { panic!("read on") };
//! assert_eq!(request.address.to_string(), "example.com:443");
//! socks5::write_reply(ReplyCode::Succeeded, &Address::UNSPECIFIED, &mut answer);
//! assert_eq!(answer, b"\x05\x00\x05\x00\x00\x01\0\0\0\0\0\0");
//! # Ok::<(), tollgate_wire::socks5::SocksError>(())
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

pub use crate::reader::Parsed;
use crate::reader::Reader;

/// No message is longer: credentials of 255 bytes each with their framing.
pub const MAX_MESSAGE_LEN: usize = 3 + 2 * 255;

/// What a SOCKS4 or SOCKS4a client understands as a refusal: for a server that got [`SocksError::Socks4`].
pub const SOCKS4_REFUSAL: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

const VERSION: u8 = 5;
const SOCKS4_VERSION: u8 = 4;
/// The version of the sub-negotiation of RFC 1929.
const CREDENTIALS_VERSION: u8 = 1;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;
const IPV4: u8 = 1;
const DOMAIN: u8 = 3;
const IPV6: u8 = 4;

/// Reads the client's greeting.
///
/// # Errors
///
/// [`SocksError::Socks4`] and [`SocksError::Version`] with the first byte, [`SocksError::NoMethods`].
pub fn parse_greeting(input: &[u8]) -> Result<Parsed<Greeting<'_>>, SocksError> {
    let mut reader = Reader::new(input);
    match reader.byte() {
        None => return Ok(Parsed::Partial),
        Some(version) => check_version(version)?,
    }
    if reader.rest().first() == Some(&0) {
        return Err(SocksError::NoMethods);
    }
    Ok(match reader.sized_u8() {
        Some(methods) => reader.complete(input, Greeting { methods }),
        None => Parsed::Partial,
    })
}

/// Writes a client's greeting. Methods beyond the 255th are left out.
pub fn write_greeting(methods: &[Method], out: &mut Vec<u8>) {
    let methods = methods.iter().take(255).map(|method| method.code());
    // At most 255, as above.
    out.extend([VERSION, u8::try_from(methods.len()).unwrap_or(u8::MAX)]);
    out.extend(methods);
}

/// Reads the server's choice among the methods that were `offered`.
///
/// # Errors
///
/// [`SocksError::NoAcceptableMethod`], [`SocksError::MethodNotOffered`], [`SocksError::Version`].
pub fn parse_method(input: &[u8], offered: &[Method]) -> Result<Parsed<Method>, SocksError> {
    let mut reader = Reader::new(input);
    if let Some(version) = reader.byte() {
        check_version(version)?;
    }
    match reader.byte() {
        None => Ok(Parsed::Partial),
        Some(NO_ACCEPTABLE_METHOD) => Err(SocksError::NoAcceptableMethod),
        Some(code) => match offered.iter().find(|method| method.code() == code) {
            Some(method) => Ok(reader.complete(input, *method)),
            None => Err(SocksError::MethodNotOffered(code)),
        },
    }
}

/// Writes a server's choice of a method.
pub fn write_method(method: Method, out: &mut Vec<u8>) {
    out.extend([VERSION, method.code()]);
}

/// Writes a server's answer to a client that offers nothing acceptable. The client has to close then.
pub fn write_no_acceptable_method(out: &mut Vec<u8>) {
    out.extend([VERSION, NO_ACCEPTABLE_METHOD]);
}

/// Reads the client's user name and password (RFC 1929). Both may be empty, which the RFC doesn't provide for and clients do.
///
/// # Errors
///
/// [`SocksError::CredentialsVersion`].
pub fn parse_credentials(input: &[u8]) -> Result<Parsed<Credentials>, SocksError> {
    let mut reader = Reader::new(input);
    match reader.byte() {
        None => return Ok(Parsed::Partial),
        Some(CREDENTIALS_VERSION) => {}
        Some(version) => return Err(SocksError::CredentialsVersion(version)),
    }
    let (Some(username), Some(password)) = (reader.sized_u8(), reader.sized_u8()) else {
        return Ok(Parsed::Partial);
    };
    let credentials = Credentials {
        username: username.to_vec(),
        password: password.to_vec(),
    };
    Ok(reader.complete(input, credentials))
}

/// Reads the server's verdict on the credentials. Its version byte is not looked at: servers send 1 and 5 there.
///
/// # Errors
///
/// [`SocksError::AuthenticationFailed`].
pub fn parse_status(input: &[u8]) -> Result<Parsed<()>, SocksError> {
    let mut reader = Reader::new(input);
    match reader.array() {
        None => Ok(Parsed::Partial),
        Some([_, 0]) => Ok(reader.complete(input, ())),
        Some([_, _]) => Err(SocksError::AuthenticationFailed),
    }
}

/// Writes a server's verdict on the credentials. After a refusal the server has to close.
pub fn write_status(accepted: bool, out: &mut Vec<u8>) {
    out.extend([CREDENTIALS_VERSION, u8::from(!accepted)]);
}

/// Reads the client's request. Its reserved byte is not looked at.
///
/// # Errors
///
/// [`SocksError::Version`], [`SocksError::Command`], [`SocksError::AddressType`], [`SocksError::Domain`]. A server answers
/// with [`SocksError::reply_code`].
pub fn parse_request(input: &[u8]) -> Result<Parsed<Request>, SocksError> {
    let mut reader = Reader::new(input);
    if let Some(version) = reader.byte() {
        check_version(version)?;
    }
    let command = match reader.byte() {
        None => return Ok(Parsed::Partial),
        Some(code) => Command::from_code(code).ok_or(SocksError::Command(code))?,
    };
    if reader.byte().is_none() {
        return Ok(Parsed::Partial);
    }
    let address = read_address(&mut reader)?;
    Ok(match address {
        Some(address) => reader.complete(input, Request { command, address }),
        None => Parsed::Partial,
    })
}

/// Reads the server's reply and answers the address that it bound: for CONNECT its side of the connection to the target,
/// for UDP ASSOCIATE where to send datagrams. Servers often say [`Address::UNSPECIFIED`].
///
/// A refusal is known with its code, whatever address a server puts behind it or leaves out.
///
/// # Errors
///
/// [`SocksError::Refused`], [`SocksError::Version`], [`SocksError::AddressType`], [`SocksError::Domain`].
pub fn parse_reply(input: &[u8]) -> Result<Parsed<Address>, SocksError> {
    let mut reader = Reader::new(input);
    if let Some(version) = reader.byte() {
        check_version(version)?;
    }
    match reader.byte().map(ReplyCode::from_code) {
        None => return Ok(Parsed::Partial),
        Some(ReplyCode::Succeeded) => {}
        Some(code) => return Err(SocksError::Refused(code)),
    }
    if reader.byte().is_none() {
        return Ok(Parsed::Partial);
    }
    Ok(match read_address(&mut reader)? {
        Some(bound) => reader.complete(input, bound),
        None => Parsed::Partial,
    })
}

/// Writes a server's reply. A refusal carries [`Address::UNSPECIFIED`].
pub fn write_reply(code: ReplyCode, bound: &Address, out: &mut Vec<u8>) {
    out.extend([VERSION, code.code(), 0]);
    bound.write(out);
}

/// Takes a whole UDP datagram apart (RFC 1928 section 7): where to, and the payload. Its reserved bytes are not looked at.
///
/// # Errors
///
/// [`SocksError::Fragment`], which a relay without reassembly has to drop; [`SocksError::Truncated`],
/// [`SocksError::AddressType`], [`SocksError::Domain`].
pub fn parse_datagram(datagram: &[u8]) -> Result<(Address, &[u8]), SocksError> {
    let mut reader = Reader::new(datagram);
    match reader.array() {
        None => return Err(SocksError::Truncated),
        Some([_, _, 0]) => {}
        Some([_, _, fragment]) => return Err(SocksError::Fragment(fragment)),
    }
    let address = read_address(&mut reader)?.ok_or(SocksError::Truncated)?;
    Ok((address, reader.rest()))
}

/// Writes what stands before the payload of an unfragmented UDP datagram.
pub fn write_datagram_header(address: &Address, out: &mut Vec<u8>) {
    out.extend([0, 0, 0]);
    address.write(out);
}

/// What a client offers first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting<'a> {
    /// The codes of its authentication methods, at least one, as sent.
    pub methods: &'a [u8],
}

impl Greeting<'_> {
    /// Whether the client can do this.
    #[must_use]
    pub fn offers(&self, method: Method) -> bool {
        self.methods.contains(&method.code())
    }
}

/// An authentication method that this module knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// Code 0.
    NoAuthentication,
    /// Code 2: user name and password (RFC 1929), in the clear.
    UsernamePassword,
}

impl Method {
    /// Its code on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::NoAuthentication => 0,
            Self::UsernamePassword => 2,
        }
    }
}

/// A user name and password (RFC 1929). The password stays out of `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: Vec<u8>,
    password: Vec<u8>,
}

impl Credentials {
    /// Credentials to send.
    ///
    /// # Errors
    ///
    /// [`SocksError::CredentialsTooLong`] if one of them has more than 255 bytes.
    pub fn new(username: &[u8], password: &[u8]) -> Result<Self, SocksError> {
        if username.len() > 255 || password.len() > 255 {
            return Err(SocksError::CredentialsTooLong);
        }
        Ok(Self {
            username: username.to_vec(),
            password: password.to_vec(),
        })
    }

    /// The user name. The RFC knows no character set; UTF-8 is usual.
    #[must_use]
    pub fn username(&self) -> &[u8] {
        &self.username
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> &[u8] {
        &self.password
    }

    /// Writes the client's message.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(CREDENTIALS_VERSION);
        write_sized(&self.username, out);
        write_sized(&self.password, out);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &String::from_utf8_lossy(&self.username))
            .finish_non_exhaustive()
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Where to. For UDP ASSOCIATE the client's own address, or [`Address::UNSPECIFIED`] if it doesn't know.
    pub address: Address,
}

impl Request {
    /// Writes the client's message.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend([VERSION, self.command.code(), 0]);
        self.address.write(out);
    }
}

/// The command of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Code 1: a TCP connection to the address.
    Connect,
    /// Code 2: a TCP connection from the address.
    Bind,
    /// Code 3: a relay for datagrams.
    UdpAssociate,
}

impl Command {
    fn code(self) -> u8 {
        match self {
            Self::Connect => 1,
            Self::Bind => 2,
            Self::UdpAssociate => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Connect,
            2 => Self::Bind,
            3 => Self::UdpAssociate,
            _ => return None,
        })
    }
}

/// What a reply says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReplyCode {
    /// Code 0.
    Succeeded,
    /// Code 1: general SOCKS server failure.
    GeneralFailure,
    /// Code 2: connection not allowed by ruleset.
    NotAllowed,
    /// Code 3.
    NetworkUnreachable,
    /// Code 4. Also what servers answer when a name doesn't resolve.
    HostUnreachable,
    /// Code 5.
    ConnectionRefused,
    /// Code 6. Also what servers answer after a timeout.
    TtlExpired,
    /// Code 7.
    CommandNotSupported,
    /// Code 8.
    AddressTypeNotSupported,
    /// A code that RFC 1928 doesn't assign.
    Other(u8),
}

impl ReplyCode {
    /// Its code on the wire.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::GeneralFailure => 1,
            Self::NotAllowed => 2,
            Self::NetworkUnreachable => 3,
            Self::HostUnreachable => 4,
            Self::ConnectionRefused => 5,
            Self::TtlExpired => 6,
            Self::CommandNotSupported => 7,
            Self::AddressTypeNotSupported => 8,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Succeeded,
            1 => Self::GeneralFailure,
            2 => Self::NotAllowed,
            3 => Self::NetworkUnreachable,
            4 => Self::HostUnreachable,
            5 => Self::ConnectionRefused,
            6 => Self::TtlExpired,
            7 => Self::CommandNotSupported,
            8 => Self::AddressTypeNotSupported,
            code => Self::Other(code),
        }
    }
}

impl fmt::Display for ReplyCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Succeeded => "succeeded",
            Self::GeneralFailure => "general failure",
            Self::NotAllowed => "not allowed by its rules",
            Self::NetworkUnreachable => "network unreachable",
            Self::HostUnreachable => "host unreachable",
            Self::ConnectionRefused => "connection refused",
            Self::TtlExpired => "TTL expired",
            Self::CommandNotSupported => "command not supported",
            Self::AddressTypeNotSupported => "address type not supported",
            Self::Other(code) => return write!(f, "code {code}"),
        })
    }
}

/// A host, by address or name, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IPv4 or IPv6 address. Scope and flow of an IPv6 address don't go on the wire.
    Ip(SocketAddr),
    /// A name that the server is to resolve.
    Domain {
        /// The name.
        name: DomainName,
        /// The port.
        port: u16,
    },
}

impl Address {
    /// `0.0.0.0:0`: no address to speak of.
    pub const UNSPECIFIED: Self = Self::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0));

    /// The address of `host`, which is a name or an IP address; IPv6 with or without brackets.
    ///
    /// # Errors
    ///
    /// [`SocksError::Domain`].
    pub fn new(host: &str, port: u16) -> Result<Self, SocksError> {
        let unbracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .filter(|host| host.contains(':'))
            .unwrap_or(host);
        match unbracketed.parse() {
            Ok(ip) => Ok(Self::Ip(SocketAddr::new(ip, port))),
            Err(_) => DomainName::new(host).map(|name| Self::Domain { name, port }),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Domain { port, .. } => *port,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ip(SocketAddr::V4(address)) => {
                out.push(IPV4);
                out.extend(address.ip().octets());
            }
            Self::Ip(SocketAddr::V6(address)) => {
                out.push(IPV6);
                out.extend(address.ip().octets());
            }
            Self::Domain { name, .. } => {
                out.push(DOMAIN);
                write_sized(name.0.as_bytes(), out);
            }
        }
        out.extend(self.port().to_be_bytes());
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Domain { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

/// A host name of 1 to 255 letters, digits, `-`, `_` and `.`, in the sender's case. Never an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// # Errors
    ///
    /// [`SocksError::Domain`] for anything else, an internationalised name (send its `xn--` form) and an IP address included.
    pub fn new(name: &str) -> Result<Self, SocksError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let fits = matches!(name.len(), 1..=255) && name.bytes().all(allowed);
        if !fits || name.parse::<IpAddr>().is_ok() {
            return Err(SocksError::Domain);
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why bytes are not the SOCKS5 message that is due, or what the other side refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SocksError {
    /// The client speaks SOCKS4 or SOCKS4a; [`SOCKS4_REFUSAL`] tells it.
    #[error("the client speaks SOCKS4, only SOCKS5 is supported here")]
    Socks4,
    /// A message begins with another version: the other side doesn't speak SOCKS.
    #[error("not SOCKS5: the message begins with {0:#04x}")]
    Version(u8),
    /// A greeting without an authentication method.
    #[error("the client offers no authentication method")]
    NoMethods,
    /// The server wants none of the offered methods.
    #[error("the SOCKS server accepts none of the offered authentication methods")]
    NoAcceptableMethod,
    /// The server chose what wasn't offered.
    #[error("the SOCKS server chose authentication method {0}, which was not offered")]
    MethodNotOffered(u8),
    /// Credentials in a version other than 1.
    #[error("unknown version {0} of the user name and password message")]
    CredentialsVersion(u8),
    /// A user name or password of more than 255 bytes.
    #[error("a SOCKS user name and password may have 255 bytes each")]
    CredentialsTooLong,
    /// The server didn't take the credentials.
    #[error("the SOCKS server refused the user name and password")]
    AuthenticationFailed,
    /// A command that RFC 1928 doesn't know.
    #[error("unknown SOCKS command {0}")]
    Command(u8),
    /// An address type that RFC 1928 doesn't know.
    #[error("unknown SOCKS address type {0}")]
    AddressType(u8),
    /// A host name that is empty, too long, or has characters that a [`DomainName`] can't have.
    #[error("not a host name that SOCKS can carry")]
    Domain,
    /// The server refused the request.
    #[error("the SOCKS server refused: {0}")]
    Refused(ReplyCode),
    /// A datagram that is a fragment, with its FRAG byte.
    #[error("a fragmented SOCKS datagram ({0:#04x})")]
    Fragment(u8),
    /// A datagram that ends within its header.
    #[error("a SOCKS datagram that ends within its header")]
    Truncated,
}

impl SocksError {
    /// What a server replies to a request that doesn't parse; `None` where the other side wouldn't understand a reply.
    #[must_use]
    pub fn reply_code(self) -> Option<ReplyCode> {
        match self {
            Self::Command(_) => Some(ReplyCode::CommandNotSupported),
            Self::AddressType(_) => Some(ReplyCode::AddressTypeNotSupported),
            Self::Domain => Some(ReplyCode::GeneralFailure),
            _ => None,
        }
    }
}

fn check_version(version: u8) -> Result<(), SocksError> {
    match version {
        VERSION => Ok(()),
        SOCKS4_VERSION => Err(SocksError::Socks4),
        version => Err(SocksError::Version(version)),
    }
}

/// Type, address and port; `None` if they are not all there.
///
/// An IP address in the place of a name is what some clients send; it is read as the address that it means, so that no rule
/// about addresses is missed.
fn read_address(reader: &mut Reader<'_>) -> Result<Option<Address>, SocksError> {
    enum Host<'a> {
        Ip(IpAddr),
        Name(&'a [u8]),
    }
    let host = match reader.byte() {
        None => None,
        Some(IPV4) => reader
            .array::<4>()
            .map(|octets| Host::Ip(Ipv4Addr::from(octets).into())),
        Some(IPV6) => reader
            .array::<16>()
            .map(|octets| Host::Ip(Ipv6Addr::from(octets).into())),
        Some(DOMAIN) => reader.sized_u8().map(Host::Name),
        Some(kind) => return Err(SocksError::AddressType(kind)),
    };
    let (Some(host), Some(port)) = (host, reader.u16()) else {
        return Ok(None);
    };
    match host {
        Host::Ip(ip) => Ok(Some(Address::Ip(SocketAddr::new(ip, port)))),
        Host::Name(name) => {
            let name = std::str::from_utf8(name).map_err(|_| SocksError::Domain)?;
            Address::new(name, port).map(Some)
        }
    }
}

/// Writes a length of one byte and the bytes, whose number the caller has checked.
fn write_sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend(bytes.iter().take(255));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every proper prefix asks for more; the whole, with anything behind it, is complete and takes `input.len()`.
    fn complete<'a, T: PartialEq + fmt::Debug>(
        parse: impl Fn(&'a [u8]) -> Result<Parsed<T>, SocksError>,
        input: &'a [u8],
        followed: &'a [u8],
    ) -> T {
        for len in 0..input.len() {
            assert_eq!(parse(&input[..len]), Ok(Parsed::Partial), "{len} bytes");
        }
        assert!(followed.starts_with(input));
        let whole = parse(input).unwrap();
        assert_eq!(parse(followed).unwrap(), whole);
        match whole {
            Parsed::Complete { value, consumed } => {
                assert_eq!(consumed, input.len());
                value
            }
            Parsed::Partial => panic!("partial: {input:?}"),
        }
    }

    fn followed(input: &[u8]) -> Vec<u8> {
        [input, b"\x05rest"].concat()
    }

    /// Every proper prefix asks for more, the whole is the error.
    fn error_at_the_end<T: PartialEq + fmt::Debug>(
        parse: impl Fn(&[u8]) -> Result<Parsed<T>, SocksError>,
        input: &[u8],
        error: SocksError,
    ) {
        for len in 0..input.len() {
            assert!(
                matches!(parse(&input[..len]), Ok(Parsed::Partial)),
                "{len} bytes"
            );
        }
        assert_eq!(parse(input).unwrap_err(), error);
        assert_eq!(parse(&followed(input)).unwrap_err(), error);
    }

    #[test]
    fn a_greeting_says_what_the_client_can_do() {
        let input = [5, 3, 0, 1, 2];
        let more = followed(&input);
        let greeting = complete(parse_greeting, &input, &more);
        assert_eq!(greeting.methods, [0, 1, 2]);
        assert!(greeting.offers(Method::UsernamePassword));
        assert!(!Greeting { methods: &[2] }.offers(Method::NoAuthentication));
    }

    #[test]
    fn other_versions_are_told_apart_by_the_first_byte() {
        let is = |input: &[u8], error| {
            assert_eq!(parse_greeting(input), Err(error));
            assert_eq!(parse_request(input), Err(error));
            assert_eq!(parse_reply(input), Err(error));
            assert_eq!(parse_method(input, &[]), Err(error));
        };
        is(&[4], SocksError::Socks4);
        is(&[4, 1, 0, 80, 127, 0, 0, 1, 0], SocksError::Socks4);
        is(b"G", SocksError::Version(b'G'));
        let parse = |input: &[u8]| parse_greeting(input).map(|parsed| parsed.map(drop));
        error_at_the_end(parse, &[5, 0], SocksError::NoMethods);
    }

    #[test]
    fn a_server_may_choose_only_what_was_offered() {
        let offered = [Method::NoAuthentication, Method::UsernamePassword];
        let parse = |input: &[u8]| parse_method(input, &offered);
        assert_eq!(
            complete(parse, &[5, 2], &followed(&[5, 2])),
            Method::UsernamePassword
        );
        error_at_the_end(parse, &[5, 0xff], SocksError::NoAcceptableMethod);
        error_at_the_end(parse, &[5, 1], SocksError::MethodNotOffered(1));
        let parse = |input: &[u8]| parse_method(input, &offered[..1]);
        error_at_the_end(parse, &[5, 2], SocksError::MethodNotOffered(2));
        let mut refusal = Vec::new();
        write_no_acceptable_method(&mut refusal);
        error_at_the_end(parse, &refusal, SocksError::NoAcceptableMethod);
    }

    #[test]
    fn credentials_may_be_empty_and_never_show_their_password() {
        let input = [1, 0, 0];
        let credentials = complete(parse_credentials, &input, &followed(&input));
        assert_eq!(
            (credentials.username(), credentials.password()),
            (&b""[..], &b""[..])
        );
        error_at_the_end(parse_credentials, &[5], SocksError::CredentialsVersion(5));

        let credentials = Credentials::new(b"joe", b"hunter2").unwrap();
        let shown = format!("{credentials:?}");
        assert!(
            shown.contains("joe") && !shown.contains("hunter2"),
            "{shown}"
        );
        let long = [b'x'; 256];
        assert_eq!(
            Credentials::new(&long, b""),
            Err(SocksError::CredentialsTooLong)
        );
        assert_eq!(
            Credentials::new(b"", &long),
            Err(SocksError::CredentialsTooLong)
        );

        let mut longest = Vec::new();
        Credentials::new(&long[..255], &long[..255])
            .unwrap()
            .write(&mut longest);
        assert_eq!(longest.len(), MAX_MESSAGE_LEN);
    }

    #[test]
    fn the_verdict_on_credentials_is_its_second_byte() {
        for version in [1, 5] {
            complete(parse_status, &[version, 0], &followed(&[version, 0]));
            error_at_the_end(
                parse_status,
                &[version, 1],
                SocksError::AuthenticationFailed,
            );
        }
        let mut out = Vec::new();
        write_status(true, &mut out);
        write_status(false, &mut out);
        assert_eq!(out, [1, 0, 1, 1]);
    }

    #[test]
    fn each_kind_of_request_is_read() {
        let cases: [(&[u8], Command, &str); 4] = [
            (
                b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50",
                Command::Connect,
                "127.0.0.1:80",
            ),
            (
                b"\x05\x02\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x1f\x90",
                Command::Bind,
                "[::1]:8080",
            ),
            (
                b"\x05\x03\x00\x03\x09Localhost\0\0",
                Command::UdpAssociate,
                "Localhost:0",
            ),
            (
                b"\x05\x01\xff\x03\x03a_b\x01\xbb",
                Command::Connect,
                "a_b:443",
            ),
        ];
        for (input, command, address) in cases {
            let request = complete(parse_request, input, &followed(input));
            assert_eq!(request.command, command);
            assert_eq!(request.address.to_string(), address);
        }
    }

    #[test]
    fn an_ip_address_in_place_of_a_name_is_that_address() {
        for (name, address) in [
            ("127.0.0.1", "127.0.0.1:7"),
            ("::1", "[::1]:7"),
            ("[::1]", "[::1]:7"),
        ] {
            let mut input = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
            input.extend(name.as_bytes());
            input.extend([0, 7]);
            let request = complete(parse_request, &input, &followed(&input));
            assert_eq!(request.address, Address::Ip(address.parse().unwrap()));
        }
    }

    #[test]
    fn a_bad_request_has_its_reply() {
        error_at_the_end(parse_request, &[5, 4], SocksError::Command(4));
        error_at_the_end(parse_request, &[5, 1, 0, 2], SocksError::AddressType(2));
        for name in [
            &b""[..],
            b"a b",
            b"a\0b",
            b"a\r\nb",
            b"h\xc3\xb6r",
            b"\xff",
            b"[a]",
            b"a:1",
            b"[127.0.0.1]",
        ] {
            let mut input = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
            input.extend(name);
            input.extend([0, 7]);
            error_at_the_end(parse_request, &input, SocksError::Domain);
        }
        assert_eq!(SocksError::Command(4).reply_code().unwrap().code(), 7);
        assert_eq!(SocksError::AddressType(2).reply_code().unwrap().code(), 8);
        assert_eq!(SocksError::Domain.reply_code().unwrap().code(), 1);
        assert_eq!(SocksError::Socks4.reply_code(), None);
    }

    #[test]
    fn a_refusal_is_known_without_its_address() {
        for code in 1..=255 {
            let refused = SocksError::Refused(ReplyCode::from_code(code));
            error_at_the_end(parse_reply, &[5, code], refused);
        }
        let said = SocksError::Refused(ReplyCode::from_code(5)).to_string();
        assert_eq!(said, "the SOCKS server refused: connection refused");
    }

    #[test]
    fn a_fragment_is_reported() {
        assert_eq!(
            parse_datagram(&[0, 0, 0x81, 1, 127, 0, 0, 1, 0, 53, 1]),
            Err(SocksError::Fragment(0x81))
        );
        assert_eq!(
            parse_datagram(&[0, 0, 0, 7, 127, 0, 0, 1, 0, 53, 1]),
            Err(SocksError::AddressType(7))
        );
        let whole = [0, 0, 0, 1, 127, 0, 0, 1, 0, 53];
        for len in 0..whole.len() {
            assert_eq!(parse_datagram(&whole[..len]), Err(SocksError::Truncated));
        }
        let address = Address::Ip("127.0.0.1:53".parse().unwrap());
        assert_eq!(parse_datagram(&whole), Ok((address, &[][..])));
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        assert_eq!(
            Address::new("example.com", 1).unwrap().to_string(),
            "example.com:1"
        );
        assert!(matches!(Address::new("[fe80::1]", 1), Ok(Address::Ip(_))));
        assert!(matches!(Address::new("10.0.0.1", 1), Ok(Address::Ip(_))));
        assert!(Address::new(&"a".repeat(255), 1).is_ok());
        for bad in ["", &"a".repeat(256), "a/b", "bücher.example", "user@host"] {
            assert_eq!(Address::new(bad, 1), Err(SocksError::Domain), "{bad}");
        }
        assert_eq!(DomainName::new("::1"), Err(SocksError::Domain));
    }

    fn any_address() -> impl Strategy<Value = Address> {
        let name = "[A-Za-z0-9_-]{1,63}(\\.[a-z]{1,60}){0,3}";
        prop_oneof![
            any::<([u8; 4], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port)).into()),
            any::<([u8; 16], u16)>().prop_map(|(ip, port)| SocketAddr::from((ip, port)).into()),
            (name, any::<u16>())
                .prop_filter_map("a name", |(name, port)| { Address::new(&name, port).ok() }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            address in any_address(),
            command in prop::sample::select(vec![Command::Connect, Command::Bind, Command::UdpAssociate]),
            username in prop::collection::vec(any::<u8>(), 0..=255),
            password in prop::collection::vec(any::<u8>(), 0..=255),
            payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let request = Request { command, address: address.clone() };
            let mut out = Vec::new();
            request.write(&mut out);
            prop_assert!(out.len() <= MAX_MESSAGE_LEN);
            prop_assert_eq!(complete(parse_request, &out, &followed(&out)), request);

            out.clear();
            write_reply(ReplyCode::Succeeded, &address, &mut out);
            prop_assert_eq!(complete(parse_reply, &out, &followed(&out)), address.clone());

            out.clear();
            let credentials = Credentials::new(&username, &password).unwrap();
            credentials.write(&mut out);
            prop_assert_eq!(complete(parse_credentials, &out, &followed(&out)), credentials);

            out.clear();
            write_datagram_header(&address, &mut out);
            out.extend(&payload);
            prop_assert_eq!(parse_datagram(&out), Ok((address, &payload[..])));

            out.clear();
            let methods = [Method::NoAuthentication, Method::UsernamePassword];
            write_greeting(&methods, &mut out);
            let more = followed(&out);
            prop_assert_eq!(complete(parse_greeting, &out, &more).methods, &[0, 2][..]);
        }
    }
}

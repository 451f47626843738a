//! Receipts for requests that are with a scanner.
//!
//! The request that the scanner gets is plain and says `http`; what it was, where it goes and who
//! sent it stays here, under a random number that travels with it in a header field. The listener
//! that takes requests back believes the number alone. A client can't forge one: it can't guess
//! it, and a field of that name in its request is taken off. Nor can the scanner: a number is good
//! only while its request is under way, and only for the destination that it was made for.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tollgate_flow::{
    ConnectionId, ErrorClass, FlowError, HeaderList, Request, Scheme, Side, Target, UpstreamInfo,
    UpstreamProxy,
};

use crate::pool::RouteTls;

/// The field in which the number travels.
pub(crate) const FIELD: &str = "tollgate-ticket";

/// Requests that can be with the scanner at once. At the limit: 503.
const MAX_TICKETS: usize = 65_536;

/// What a request was before it went to the scanner.
pub(crate) struct Ticket {
    number: [u8; 16],
    pub scheme: Scheme,
    pub target: Target,
    /// What the client called it.
    pub host: Option<Vec<u8>>,
    /// How TLS is to be spoken to the origin.
    pub tls: Option<RouteTls>,
    /// The client, and its connection.
    pub client: SocketAddr,
    pub connection: ConnectionId,
    /// Who the client is, where it was asked.
    pub user: Option<Arc<str>>,
    /// The proxy on the way to the origin, by the mode that the client came in and by what hooks said.
    pub via: Option<Arc<UpstreamProxy>>,
    /// The connection to the origin, once there was one.
    pub upstream: OnceLock<Arc<UpstreamInfo>>,
}

/// The requests that are with the scanner now.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<HashMap<[u8; 16], Arc<Ticket>>>);

/// A ticket for as long as its request is under way.
pub(crate) struct Issued<'a> {
    pub ticket: Arc<Ticket>,
    tickets: &'a Tickets,
}

impl Tickets {
    /// Makes a ticket.
    ///
    /// # Errors
    /// At the limit, and where the system has no randomness.
    pub fn issue(
        &self,
        request: &Request,
        tls: Option<RouteTls>,
        (client, connection): (SocketAddr, ConnectionId),
        user: Option<Arc<str>>,
        via: Option<Arc<UpstreamProxy>>,
    ) -> Result<Issued<'_>, FlowError> {
        let mut number = [0; 16];
        aws_lc_rs::rand::fill(&mut number).map_err(|_| {
            FlowError::new(Side::Proxy, ErrorClass::Limit, "no randomness for a ticket")
        })?;
        let ticket = Arc::new(Ticket {
            number,
            scheme: request.scheme,
            target: request.target.clone(),
            host: request.headers().get("host").map(<[u8]>::to_vec),
            tls,
            client,
            connection,
            user,
            via,
            upstream: OnceLock::new(),
        });
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() >= MAX_TICKETS {
            return Err(FlowError::new(
                Side::Proxy,
                ErrorClass::Limit,
                format!("{MAX_TICKETS} requests are with the scanner"),
            ));
        }
        tickets.insert(number, Arc::clone(&ticket));
        Ok(Issued {
            ticket,
            tickets: self,
        })
    }

    /// The ticket of a request that comes back, which must be going where it was sent. Takes the
    /// field off.
    ///
    /// # Errors
    /// For the client of the listener: the scanner, or somebody who takes its place.
    pub fn redeem(
        &self,
        headers: &mut HeaderList,
        target: &Target,
    ) -> Result<Arc<Ticket>, FlowError> {
        let denied =
            |why: &'static str| FlowError::new(Side::Client, ErrorClass::Unauthenticated, why);
        let number = {
            let mut numbers = headers.get_all(FIELD);
            let first = numbers.next().and_then(number);
            first.filter(|_| numbers.next().is_none())
        };
        let number = number.ok_or_else(|| denied("only the scanner's requests are taken here"))?;
        let ticket = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
            .ok_or_else(|| denied("this request was not sent to the scanner, or is over"))?;
        headers.remove(FIELD);
        // A URL without a port means the port that was left out on the way there.
        let port = target.port == ticket.target.port || target.port == 80;
        if target.host != ticket.target.host || !port {
            return Err(denied("the scanner sends this request elsewhere"));
        }
        Ok(ticket)
    }
}

impl Ticket {
    /// The field that travels. What follows the number is for the scanner to see; nobody here
    /// believes it.
    pub fn header(&self) -> (&'static [u8], String) {
        let mut value = String::with_capacity(64);
        for byte in self.number {
            // Writing to a string does not fail.
            let _ = write!(value, "{byte:02x}");
        }
        let _ = write!(
            value,
            "; scheme={}; client=\"{}\"",
            self.scheme.as_str(),
            self.client
        );
        if let Some(user) = self.user.as_deref()
            && user
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
        {
            let _ = write!(value, "; user=\"{user}\"");
        }
        (b"Tollgate-Ticket", value)
    }
}

impl Drop for Issued<'_> {
    fn drop(&mut self) {
        self.tickets
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.ticket.number);
    }
}

fn number(value: &[u8]) -> Option<[u8; 16]> {
    let hex = value.split(|b| *b == b';').next()?.trim_ascii();
    if hex.len() != 32 {
        return None;
    }
    let mut number = [0; 16];
    for (to, pair) in number.iter_mut().zip(hex.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *to = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue<'a>(tickets: &'a Tickets, target: &str) -> Issued<'a> {
        let mut request = Request::default();
        request.target = Target::parse(target, None).unwrap();
        request.scheme = Scheme::Https;
        let client = SocketAddr::from(([127, 0, 0, 1], 5));
        let client = (client, ConnectionId(1));
        tickets.issue(&request, None, client, None, None).unwrap()
    }

    fn redeem(tickets: &Tickets, values: &[&str], target: &str) -> Result<Target, String> {
        let mut headers = HeaderList::new();
        for value in values {
            headers
                .append(b"Tollgate-Ticket", value.as_bytes())
                .unwrap();
        }
        let target = Target::parse(target, Some(80)).unwrap();
        let ticket = tickets
            .redeem(&mut headers, &target)
            .map_err(|e| e.to_string())?;
        assert!(!headers.contains(FIELD));
        Ok(ticket.target.clone())
    }

    #[test]
    fn a_ticket_is_good_for_its_destination_while_its_request_is_under_way() {
        let tickets = Tickets::default();
        let issued = issue(&tickets, "example.com:443");
        let (_, value) = issued.ticket.header();
        let target = Target::new("example.com", 443);
        assert_eq!(
            redeem(&tickets, &[&value], "example.com"),
            Ok(target.clone())
        );
        assert_eq!(redeem(&tickets, &[&value], "example.com:443"), Ok(target));
        for elsewhere in ["evil.example", "example.com:444", "www.example.com"] {
            assert!(
                redeem(&tickets, &[&value], elsewhere).is_err(),
                "{elsewhere}"
            );
        }
        assert!(redeem(&tickets, &[&value, &value], "example.com").is_err());
        drop(issued);
        assert!(redeem(&tickets, &[&value], "example.com").is_err());
    }

    #[test]
    fn numbers_can_not_be_made_up() {
        let tickets = Tickets::default();
        let _issued = issue(&tickets, "example.com:443");
        let zeros = "0".repeat(32);
        for forged in ["", "0", "zz", &zeros, &"g".repeat(32), &"é".repeat(16)] {
            assert!(
                redeem(&tickets, &[forged], "example.com").is_err(),
                "{forged}"
            );
        }
        assert!(redeem(&tickets, &[], "example.com").is_err());
    }
}

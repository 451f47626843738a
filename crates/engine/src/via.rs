//! Ways out: through a proxy, or straight to the origin.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tollgate_flow::{ErrorClass, FlowError, ProxyScheme, Side, Target, UpstreamProxy, Via};
use tollgate_wire::http1::{HeadLimits, Parsed, RequestHead, ResponseHead};
use tollgate_wire::socks5::{self, Method, SocksError};

use crate::auth::basic_value;
use crate::config::Config;
use crate::io::Conn;
use crate::mode::Mode;
use crate::pool::Route;
use crate::sandwich::Ticket;
use crate::timer::Timer;
use crate::tunnel;

/// Most bytes of a proxy's answer.
const MAX_ANSWER: usize = 64 * 1024;
/// What is on its way between two layers of TLS.
const NESTED: usize = 64 * 1024;

/// The proxy that a request goes through, if any, sandwiches aside.
pub(crate) fn choose(
    config: &Config,
    mode: &Mode,
    asked: &Via,
    target: &Target,
) -> Option<Arc<UpstreamProxy>> {
    match asked {
        Via::Direct => return None,
        Via::Proxy(proxy) => return Some(Arc::clone(proxy)),
        Via::Configured => {}
    }
    let via = &config.via;
    let matches =
        |patterns: &[crate::policy::HostPattern]| patterns.iter().any(|p| p.matches(target));
    if let Some(rule) = via.rules.iter().find(|rule| matches(&rule.hosts)) {
        return rule.proxy.clone();
    }
    if matches(&via.no_proxy) {
        return None;
    }
    match mode {
        Mode::Upstream(proxy) => Some(Arc::clone(proxy)),
        _ => via.proxy.clone(),
    }
}

/// How a request is written for a proxy that reads it: with its absolute URL, and with what only
/// that proxy is to know.
pub(crate) struct Forward<'a> {
    pub proxy: &'a UpstreamProxy,
    /// The scanner's receipt, in a sandwich.
    pub ticket: Option<&'a Ticket>,
}

impl Forward<'_> {
    /// Writes a head. `target` is the request's destination; the scheme is `http`: what needs
    /// another goes through the proxy with CONNECT.
    pub fn write_head(
        &self,
        head: &RequestHead,
        target: &Target,
        out: &mut Vec<u8>,
    ) -> Result<(), FlowError> {
        let failed = |_| {
            FlowError::new(
                Side::Proxy,
                ErrorClass::Interceptor,
                "the request's path can't be part of a URL",
            )
        };
        let mut head = head.clone();
        let default_port = self
            .ticket
            .map_or(80, |ticket| ticket.scheme.default_port());
        let mut url = b"http://".to_vec();
        if target.port != default_port {
            url.extend_from_slice(target.to_string().as_bytes());
        } else if target.host.contains(':') {
            url.extend_from_slice(format!("[{}]", target.host).as_bytes());
        } else {
            url.extend_from_slice(target.host.as_bytes());
        }
        // `OPTIONS *` is the one request whose URL has no path (RFC 9112 section 3.2.4).
        if head.target() != b"*" {
            url.extend_from_slice(head.target());
        }
        head.set_target(&url).map_err(failed)?;
        if let Some(credentials) = &self.proxy.credentials {
            let value = basic_value(credentials);
            head.headers
                .append(b"Proxy-Authorization", value.as_bytes())
                .map_err(failed)?;
        }
        if let Some(ticket) = self.ticket {
            let (name, value) = ticket.header();
            head.headers.set(name, value.as_bytes()).map_err(failed)?;
        }
        head.write_to(out);
        Ok(())
    }
}

/// How requests are written on a route.
pub(crate) fn forward<'a>(route: &'a Route, ticket: Option<&'a Ticket>) -> Option<Forward<'a>> {
    let proxy = route.to.via.as_deref().filter(|_| route.forward)?;
    Some(Forward { proxy, ticket })
}

/// Asks a proxy for a connection to `target`.
pub(crate) async fn tunnel_through(
    conn: &mut Conn,
    proxy: &UpstreamProxy,
    target: &Target,
    limit: Duration,
) -> Result<(), FlowError> {
    let work = async {
        match proxy.scheme {
            ProxyScheme::Http | ProxyScheme::Https => connect(conn, proxy, target).await,
            ProxyScheme::Socks5 => socks(conn, proxy, target).await,
        }
    };
    if limit.is_zero() {
        work.await
    } else {
        timeout(limit, work).await.unwrap_or_else(|_| {
            Err(FlowError::new(
                Side::Upstream,
                ErrorClass::Timeout,
                format!("the proxy {proxy} did not connect to {target} within {limit:?}"),
            ))
        })
    }
}

fn refused(proxy: &UpstreamProxy, target: &Target, why: impl std::fmt::Display) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Connect,
        format!("the proxy {proxy} does not connect to {target}: {why}"),
    )
}

fn broken(proxy: &UpstreamProxy, why: impl std::fmt::Display) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Protocol,
        format!("the proxy {proxy} answered nonsense: {why}"),
    )
}

fn gone(proxy: &UpstreamProxy) -> FlowError {
    FlowError::new(
        Side::Upstream,
        ErrorClass::Reset,
        format!("the proxy {proxy} closed the connection before it answered"),
    )
}

async fn connect(conn: &mut Conn, proxy: &UpstreamProxy, target: &Target) -> Result<(), FlowError> {
    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(credentials) = &proxy.credentials {
        request.push_str(&format!(
            "Proxy-Authorization: {}\r\n",
            basic_value(credentials)
        ));
    }
    request.push_str("\r\n");
    let sent = conn.wr.write_all(request.as_bytes()).await;
    sent.map_err(|_| gone(proxy))?;
    let limits = HeadLimits {
        bytes: MAX_ANSWER,
        lines: 256,
    };
    let mut head = ResponseHead::new();
    loop {
        match head.parse(conn.rd.data(), &limits) {
            Ok(Parsed::Complete { len }) => {
                conn.rd.consume(len);
                match head.status() {
                    100..=199 => {}
                    200..=299 => return Ok(()),
                    407 => {
                        return Err(refused(
                            proxy,
                            target,
                            match proxy.credentials {
                                Some(_) => "407, our user and password are not right",
                                None => "407, it wants a user and a password (--upstream-auth)",
                            },
                        ));
                    }
                    status => {
                        let reason = String::from_utf8_lossy(head.reason());
                        return Err(refused(proxy, target, format!("{status} {reason}")));
                    }
                }
                continue;
            }
            Ok(Parsed::Partial) => {}
            Err(anomaly) => return Err(broken(proxy, anomaly)),
        }
        if !matches!(conn.rd.fill().await, Ok(n) if n > 0) {
            return Err(gone(proxy));
        }
    }
}

/// Puts a connection with TLS on it under another: our record layer is over sockets, so a task
/// carries the bytes between the two layers. It ends with either of them.
pub(crate) fn nest(mut outer: Conn, idle: Duration) -> Conn {
    let (inner, carrier) = tokio::io::duplex(NESTED);
    let mut carrier = Conn::memory(carrier);
    tokio::spawn(async move {
        tunnel::relay(&mut outer, &mut carrier, &mut Timer::default(), idle).await;
    });
    Conn::memory(inner)
}

/// Asks a SOCKS5 proxy, which is left to resolve the name.
async fn socks(conn: &mut Conn, proxy: &UpstreamProxy, target: &Target) -> Result<(), FlowError> {
    let address =
        socks5::Address::new(&target.host, target.port).map_err(|e| refused(proxy, target, e))?;
    let mut out = Vec::new();
    let methods: &[_] = match proxy.credentials {
        Some(_) => &[Method::NoAuthentication, Method::UsernamePassword],
        None => &[Method::NoAuthentication],
    };
    socks5::write_greeting(methods, &mut out);
    let method = ask(conn, proxy, target, &out, |input| {
        socks5::parse_method(input, methods)
    })
    .await?;
    if let (Method::UsernamePassword, Some(credentials)) = (method, &proxy.credentials) {
        let (user, password) = (credentials.user.as_bytes(), credentials.password.as_bytes());
        out.clear();
        socks5::Credentials::new(user, password)
            .map_err(|e| refused(proxy, target, e))?
            .write(&mut out);
        ask(conn, proxy, target, &out, socks5::parse_status).await?;
    }
    out.clear();
    let command = socks5::Command::Connect;
    socks5::Request { command, address }.write(&mut out);
    ask(conn, proxy, target, &out, socks5::parse_reply).await?;
    Ok(())
}

/// Sends a message to a SOCKS proxy and reads the one that answers it.
async fn ask<T>(
    conn: &mut Conn,
    proxy: &UpstreamProxy,
    target: &Target,
    message: &[u8],
    parse: impl Fn(&[u8]) -> Result<socks5::Parsed<T>, SocksError>,
) -> Result<T, FlowError> {
    let sent = conn.wr.write_all(message).await;
    sent.map_err(|_| gone(proxy))?;
    loop {
        match parse(conn.rd.data()) {
            Ok(socks5::Parsed::Complete { value, consumed }) => {
                conn.rd.consume(consumed);
                return Ok(value);
            }
            Ok(socks5::Parsed::Partial) => {}
            Err(
                error @ (SocksError::Refused(_)
                | SocksError::AuthenticationFailed
                | SocksError::NoAcceptableMethod),
            ) => {
                return Err(refused(proxy, target, error));
            }
            Err(error) => return Err(broken(proxy, error)),
        }
        if !matches!(conn.rd.fill().await, Ok(n) if n > 0) {
            return Err(gone(proxy));
        }
    }
}

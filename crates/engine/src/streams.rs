//! Exchanges of which at least one side has many streams on a connection: HTTP/2 and HTTP/3, with
//! each other and with HTTP/1.
//!
//! A request is a task. Its bodies are pulled: a piece is read, offered, sent, and only then is its
//! flow-control window given back, so that the receiver's window is the only buffer. What differs by
//! version stands behind [`body::Source`], [`body::Sink`], [`exchange::Down`] and
//! [`connections::Carrier`].

pub(crate) mod body;
pub(crate) mod connections;
pub(crate) mod convert;
pub(crate) mod exchange;
mod websocket;

use http::Uri;
use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme as UriScheme};
use std::sync::Arc;

use tollgate_flow::{ErrorClass, Flow, FlowError, HttpVersion, Outcome, Scheme, Side, Target};
use tracing::debug;

use crate::auth::{self, Admitted};
use crate::config::Config;
use crate::h1::{self, Fixed};
use crate::hooks::Run;
use crate::metrics::count;
use crate::policy::Action;
use crate::reply;
use crate::sandwich;
use crate::session::{FlowGuard, Session};

use body::Source;
use convert::fill_head;
use exchange::{Down, Ended, Exchange};

/// What the requests of one client connection share.
pub(crate) struct Streams {
    pub(crate) session: Session,
    pub(crate) fixed: Option<Fixed>,
}

/// Serves one request of a client.
pub(crate) async fn serve(
    streams: &Streams,
    version: HttpVersion,
    mut parts: http::request::Parts,
    mut source: Source<'_>,
    mut down: Down<'_>,
) {
    let session = &streams.session;
    let counters = session.counters();
    let config = &*session.live.config;
    let mut flow = Box::new(Flow::new(Arc::clone(&session.info)));
    flow.request.version = version;
    let asked = auth::asked(session);
    let shown = asked.map(|(name, _)| parts.headers.get(name).map(|v| v.as_bytes().to_vec()));
    let mut prepared = prepare(
        &mut parts,
        streams.fixed.as_ref(),
        config.limits.header_lines,
        &mut flow,
    );
    if let (Some((name, status)), Ok(())) = (asked, &prepared) {
        let shown = shown.flatten();
        match auth::admit(session, shown.as_deref(), status).await {
            Ok(Admitted::AsItIs) => {}
            Ok(Admitted::WithoutField) => {
                // What stands there may be ours already.
                let fixed = streams.fixed.as_ref();
                if fixed.is_none_or(|fixed| fixed.authorization.is_none()) {
                    parts.headers.remove(name);
                }
            }
            Err(refusal) => prepared = Err(refusal),
        }
    }
    session.begin_flow(&mut flow);
    let hooks = &session.worker.shared.hooks;
    let is_websocket = prepared.is_ok() && websocket::is_asked_for(&parts);
    if is_websocket {
        websocket::show_as_upgrade(&mut parts);
    }
    if (is_websocket || !hooks.is_empty())
        && let Err(error) = fill_head(&parts, &mut flow)
    {
        debug!(%error, "a request head can't be shown to interceptors");
    }
    let run = Run::begin(hooks, &flow, counters);
    let mut guard = FlowGuard::new(&mut flow, run, counters);

    let early = match prepared {
        Err((status, error)) => Some((
            Box::new(auth::refusal(status, &error)),
            Outcome::failed(error),
        )),
        Ok(()) => refused(config, streams.fixed.as_ref(), &guard.flow.request).map(|target| {
            count(&counters.blocked_total);
            let error = h1::blocked(&target);
            (Box::new(reply::for_error(&error)), Outcome::failed(error))
        }),
    };
    let end = match early {
        Some((reply, outcome)) => Ended::Answer(reply, outcome),
        None => {
            let exchange = Exchange {
                streams,
                config,
                counters,
            };
            if is_websocket {
                Box::pin(websocket::serve(&exchange, &mut guard, source, &mut down)).await
            } else {
                exchange
                    .run(&mut guard, Some(parts), &mut source, &mut down)
                    .await
            }
        }
    };
    match end {
        Ended::Complete | Ended::Switched(_) => guard.end(&Outcome::COMPLETED),
        Ended::Upgraded(outcome) => guard.end(&outcome),
        Ended::Answer(reply, outcome) => {
            h1::put_reply(guard.flow, &reply);
            down.answer(&reply).await;
            guard.end(&outcome);
        }
        Ended::Cut(reason, outcome) => {
            down.reset(reason);
            guard.end(&outcome);
        }
    }
}

/// The destination that a request may not have, by what it was connected to or by its authority.
pub(crate) fn refused(
    config: &Config,
    fixed: Option<&Fixed>,
    request: &tollgate_flow::Request,
) -> Option<Target> {
    let is_blocked = |target: &Target| config.policy.decide(&[target]) == Action::Block;
    if fixed.is_none() {
        return is_blocked(&request.target).then(|| request.target.clone());
    }
    if config.policy.block.is_empty() {
        return None;
    }
    let authority = std::str::from_utf8(request.authority.as_deref()?).ok()?;
    Target::parse(authority, Some(request.target.port)).filter(is_blocked)
}

/// Finds out where a request goes.
pub(crate) fn prepare(
    parts: &mut http::request::Parts,
    fixed: Option<&Fixed>,
    lines: usize,
    flow: &mut Flow,
) -> Result<(), (u16, FlowError)> {
    let bad = |status: u16, message: &str| {
        (
            status,
            FlowError::new(Side::Client, ErrorClass::Protocol, message.to_owned()),
        )
    };
    let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
    let host = parts
        .headers
        .get(header::HOST)
        .map(|h| String::from_utf8_lossy(h.as_bytes()).into_owned());
    if parts.headers.get_all(header::HOST).iter().count() > 1 {
        return Err(bad(400, "more than one Host"));
    }
    if parts.headers.len() > lines {
        return Err(bad(431, "the request has too many header fields"));
    }
    if let (Some(authority), Some(host)) = (&authority, &host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(bad(400, ":authority and Host differ"));
    }
    if authority.is_none()
        && let Some(host) = &host
    {
        // RFC 9113 section 8.3.1 lets a Host stand in; from here on the authority is what counts.
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Authority::try_from(host.as_str()).ok();
        uri.scheme.get_or_insert(UriScheme::HTTPS);
        uri.path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
        parts.uri = Uri::from_parts(uri).map_err(|_| bad(400, "Host is not a host"))?;
    }
    flow.request.authority = parts
        .uri
        .authority()
        .map(|a| a.as_str().as_bytes().to_vec());
    match fixed {
        Some(fixed) => {
            flow.request.target = fixed.target.clone();
            flow.request.scheme = fixed.scheme;
            if let Some(host) = &fixed.host_header {
                let mut uri = std::mem::take(&mut parts.uri).into_parts();
                uri.authority = Authority::try_from(&**host).ok();
                uri.scheme.get_or_insert(UriScheme::HTTPS);
                uri.path_and_query
                    .get_or_insert(PathAndQuery::from_static("/"));
                parts.uri = Uri::from_parts(uri).map_err(|_| bad(400, "the URL is not one"))?;
                parts.headers.remove(header::HOST);
                flow.request.authority = Some(host.as_bytes().to_vec());
            }
            if let Some(authorization) = &fixed.authorization
                && let Ok(value) = HeaderValue::from_str(authorization)
            {
                parts.headers.insert(header::AUTHORIZATION, value);
            }
        }
        None => {
            let scheme = parts.uri.scheme_str().unwrap_or("http");
            if scheme != "http" {
                return Err(bad(
                    400,
                    "only http:// URLs are served on this port; use CONNECT",
                ));
            }
            let target = authority
                .as_deref()
                .or(host.as_deref())
                .and_then(|a| Target::parse(a, Some(80)))
                .ok_or_else(|| bad(400, "the request names no host"))?;
            flow.request.target = target;
            flow.request.scheme = Scheme::Http;
        }
    }
    if parts.method == http::Method::CONNECT && !websocket::is_asked_for(parts) {
        return Err(bad(501, "CONNECT inside HTTP/2 and HTTP/3 is not served"));
    }
    // Nobody but us gives receipts.
    parts.headers.remove(sandwich::FIELD);
    parts.headers.remove(header::PROXY_AUTHORIZATION);
    parts.headers.remove("proxy-connection");
    Ok(())
}

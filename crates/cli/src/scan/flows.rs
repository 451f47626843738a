//! `tollgate scan --flows`: recorded flows, in the places where the proxy looks.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tollgate_flow::record::{HeaderFields, HttpExchange, HttpMessage};
use tollgate_flow::{
    ConnectionId, ConnectionInfo, Direction, Flow, FlowId, HeaderList, HttpVersion, Interceptor,
    Message, MessageKind, Outcome, Piece, Response, Scheme, Target,
};
use tollgate_screen::scan::{Finding, Scanner};
use tollgate_screen::{Enforcement, OnVerdict, Screen, ScreenConfig, Verdict};
use tollgate_wire::http1::{RequestHead, ResponseHead, Version};

use crate::files::each_record;

/// Shows every flow to a screen that only watches, and gives each place with what was found there: `FILE/FLOW/PLACE`.
///
/// # Errors
/// Whatever keeps the file from being read as flows. An error that is told to `take` is of a single flow.
pub(super) fn scan(
    scanner: Scanner,
    path: &Path,
    mut take: impl FnMut(String, io::Result<Vec<Finding>>),
) -> anyhow::Result<()> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let screen = watching(scanner, Arc::clone(&seen));
    let connection = connection();
    let mut count = 0;
    let mut cut = 0_u64;
    let code = each_record(path, None, None, |record| {
        let Some(http) = record.as_http() else {
            return Ok(());
        };
        count += 1;
        let name = format!("{}/{}", path.display(), record.id);
        cut += u64::from(is_cut(http));
        if let Err(error) = show(&screen, &connection, FlowId(count), http) {
            take(name.clone(), Err(io::Error::other(format!("{error:#}"))));
        }
        let verdicts = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        for verdict in verdicts {
            let name = format!("{name}/{}", verdict.place.path());
            let outcome = match verdict.findings.is_empty() {
                true => Err(io::Error::other(verdict.reason)),
                false => Ok(verdict.findings),
            };
            take(name, outcome);
        }
        Ok(())
    })?;
    if cut > 0 {
        let s = if cut == 1 { "" } else { "s" };
        crate::fail(&format!(
            "{cut} flow{s} had not been recorded whole, and only what was recorded is scanned"
        ));
    }
    anyhow::ensure!(
        code == ExitCode::SUCCESS,
        "{}: not all of it could be read",
        path.display()
    );
    Ok(())
}

fn watching(scanner: Scanner, seen: Arc<Mutex<Vec<Verdict>>>) -> Screen {
    let mut config = ScreenConfig::default();
    config.enforcement = Enforcement::Monitor;
    // Each flow of a file is looked at for itself.
    config.tell_again = true;
    let on_verdict: OnVerdict = Arc::new(move |verdict: &Verdict| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(verdict.clone());
    });
    Screen::new(scanner, config).on_verdict(on_verdict)
}

fn connection() -> Arc<ConnectionInfo> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Arc::new(ConnectionInfo::new(ConnectionId(0), any, any, None))
}

fn is_cut(http: &HttpExchange) -> bool {
    let response = http.response.as_ref();
    http.request.message.body.is_cut()
        || response.is_some_and(|response| response.message.body.is_cut())
}

/// A flow passes the screen: its request, its answer, its messages.
fn show(
    screen: &Screen,
    connection: &Arc<ConnectionInfo>,
    id: FlowId,
    http: &HttpExchange,
) -> anyhow::Result<()> {
    let mut flow = Flow::new(Arc::clone(connection));
    flow.id = id;
    let request = &http.request;
    flow.request.head = RequestHead::build(&request.method, &request.path, Version::Http11)
        .context("the request line")?;
    flow.request.version = match &request.message.version[..] {
        b"HTTP/2.0" => HttpVersion::Http2,
        b"HTTP/3" => HttpVersion::Http3,
        _ => HttpVersion::Http11,
    };
    flow.request.scheme = match &request.scheme[..] {
        b"http" => Scheme::Http,
        _ => Scheme::Https,
    };
    flow.request.target = Target::new(&request.host, request.port);
    copy(&request.message.headers, flow.request.headers_mut()).context("the request's headers")?;
    flow.request.trailers = trailers(&request.message)?;
    flow.request.put_collected_body(body(&request.message));
    let _ = screen.interest(&flow);
    let shown = after(screen, &mut flow, http);
    screen.end(&flow, &Outcome::COMPLETED);
    shown
}

fn after(screen: &Screen, flow: &mut Flow, http: &HttpExchange) -> anyhow::Result<()> {
    let _ = screen.request(flow);
    if let Some(recorded) = &http.response {
        let mut response = Response::default();
        response.head = ResponseHead::build(recorded.status, &recorded.reason)
            .context("the response's status line")?;
        copy(&recorded.message.headers, response.headers_mut())
            .context("the response's headers")?;
        flow.response = Some(Box::new(response));
        let _ = screen.response(flow);
        let body = body(&recorded.message);
        for (data, last) in [(&body[..], false), (&b""[..], true)] {
            let piece = Piece {
                direction: Direction::Response,
                data,
                last,
            };
            let _ = screen.data(flow, piece);
        }
    }
    let messages = http.websocket.iter().flat_map(|ws| &ws.messages);
    for (sequence, message) in messages.enumerate() {
        let _ = screen.message(
            flow,
            Message {
                direction: match message.from_client {
                    true => Direction::Request,
                    false => Direction::Response,
                },
                sequence: sequence as u64,
                kind: match message.is_text() {
                    true => MessageKind::Text,
                    false => MessageKind::Binary,
                },
                data: &message.content,
                // Whoever made it up, it passed.
                injected: false,
            },
        );
    }
    Ok(())
}

fn body(message: &HttpMessage) -> tollgate_flow::Bytes {
    message.body.data.clone().unwrap_or_default()
}

fn trailers(message: &HttpMessage) -> anyhow::Result<Option<HeaderList>> {
    let Some(recorded) = &message.trailers else {
        return Ok(None);
    };
    let mut list = HeaderList::new();
    copy(recorded, &mut list).context("the request's trailers")?;
    Ok(Some(list))
}

fn copy(from: &HeaderFields, to: &mut HeaderList) -> anyhow::Result<()> {
    for (name, value) in from.iter() {
        to.append(name, value)?;
    }
    Ok(())
}

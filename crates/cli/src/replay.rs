//! `-r`, `-C`, `-S` and `--replay`: recorded flows as input.

use std::io::{self, IsTerminal as _, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tollgate_flow::filter::Filter;
use tollgate_flow::record::{HttpExchange, Record};
use tollgate_flow::{Credentials, HeaderList, Response};
use tollgate_rules::RuleSet;
use tollgate_rules::replay::{ReplayOptions, ServerReplay, differences};
use tollgate_wire::http1::{
    ChunkedDecoder, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version,
};

use crate::files::{each_record, finish, plural, say, warn};
use crate::output::{Style, record_detail, record_json, record_lines};
use crate::settings::OutputSettings;

/// The file in a folder of `--record`.
pub const RECORDING: &str = "flows.mitm";

/// How long a replayed request waits for the next byte of its answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The largest answer to a replayed request that is compared.
const MAX_ANSWER: usize = 256 << 20;

/// Answers from recordings: `-S` and `--replay`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerReplaySettings {
    /// Flow files or HAR.
    pub files: Vec<PathBuf>,
    /// How requests are compared.
    pub options: ReplayOptions,
}

impl ServerReplaySettings {
    /// Reads the recordings.
    ///
    /// # Errors
    /// A file that can't be read, or is broken: an answer that is missing would go unnoticed.
    pub fn open(&self) -> anyhow::Result<ServerReplay> {
        let mut replay = ServerReplay::new(self.options.clone());
        for file in &self.files {
            let code = each_record(file, None, None, |record| Ok(replay.add(record.clone())?))?;
            ensure!(
                code == ExitCode::SUCCESS,
                "{}: it can't be read whole, and what is missing could not be answered",
                file.display()
            );
        }
        Ok(replay)
    }
}

/// Shows the flows of a file as if they had passed, and hands them on. `filter` says which are read, `edit` what options
/// do to them, `shown` which of them are shown.
///
/// # Errors
/// A file that can't be read at all.
pub fn show_file(
    path: &Path,
    filter: Option<&Filter>,
    edit: Option<&RuleSet>,
    shown: Option<&Filter>,
    output: &OutputSettings,
    mut also: impl FnMut(&Record),
) -> anyhow::Result<ExitCode> {
    let style = Style::detect(output.no_color, io::stdout().is_terminal());
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut text = String::new();
    let mut is_read = true;
    let mut show = |text: &[u8], out: &mut dyn Write| match out.write_all(text) {
        // Whoever reads our output has seen enough; a file that is written gets the rest all the same.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            is_read = false;
            Ok(())
        }
        result if is_read => result,
        _ => Ok(()),
    };
    let code = each_record(path, None, filter, |record| {
        let edited = edit.map(|rules| {
            let mut record = record.clone();
            rules.read(&mut record);
            record
        });
        let record = edited.as_ref().unwrap_or(record);
        text.clear();
        if shown.is_none_or(|filter| filter.matches(record)) {
            match (output.json, output.flow_detail) {
                (true, _) => record_json(&mut text, record),
                (false, 0) => {}
                (false, 1) => record_lines(&mut text, record, style),
                (false, _) => record_detail(&mut text, record, style),
            }
        }
        show(text.as_bytes(), &mut out)?;
        also(record);
        Ok(())
    })?;
    finish(out.flush().map_err(anyhow::Error::from))?;
    Ok(code)
}

/// Sends recorded requests again: `-C`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientReplaySettings {
    /// Flow files or HAR.
    pub files: Vec<PathBuf>,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Whether a difference is a failure.
    pub check: bool,
    /// One JSON object per line and request, in place of text.
    pub json: bool,
    /// Who they come from, where the proxy asks.
    pub credentials: Option<Credentials>,
}

/// What came of a replay.
#[derive(Debug, Default)]
pub struct Replayed {
    same: AtomicUsize,
    different: AtomicUsize,
    failed: AtomicUsize,
}

impl ClientReplaySettings {
    /// Sends all requests through the proxy at an address, and says what is different. Blocks.
    ///
    /// # Errors
    /// A file that can't be read at all.
    pub fn run(&self, proxy: SocketAddr, filter: Option<&Filter>) -> anyhow::Result<ExitCode> {
        let mut requests = Vec::new();
        for file in &self.files {
            each_record(file, None, filter, |record| {
                if let Some(http) = record.as_http() {
                    requests.push((record.id.clone(), http.clone()));
                }
                Ok(())
            })?;
        }
        let total = requests.len();
        ensure!(total > 0, "there is no HTTP request to replay");
        let replayed = Replayed::default();
        let queue = Mutex::new(requests.into_iter());
        let progress = Progress::new(total);
        std::thread::scope(|scope| {
            for _ in 0..self.concurrency.clamp(1, total) {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().map_or(None, |mut queue| queue.next());
                        let Some((id, http)) = next else { return };
                        self.one(proxy, &id, &http, &replayed, &progress);
                        progress.step();
                    }
                });
            }
        });
        progress.clear();
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let (same, different, failed) = (
            count(&replayed.same),
            count(&replayed.different),
            count(&replayed.failed),
        );
        if !self.json {
            say(&format!(
                "{} replayed: {same} the same, {different} different, {failed} failed",
                plural(total as u64, "request")
            ));
        }
        Ok(match self.check && different + failed > 0 {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }

    fn one(
        &self,
        proxy: SocketAddr,
        id: &str,
        http: &HttpExchange,
        replayed: &Replayed,
        progress: &Progress,
    ) {
        let url = http.request.url();
        let method = String::from_utf8_lossy(&http.request.method).into_owned();
        let (status, found, counter) = match send(proxy, self.credentials.as_ref(), http) {
            Err(error) => (None, vec![format!("{error:#}")], &replayed.failed),
            Ok((response, body)) => {
                let found: Vec<String> = match &http.response {
                    Some(recorded) => differences(recorded, &response, &body)
                        .iter()
                        .map(ToString::to_string)
                        .collect(),
                    None => Vec::new(),
                };
                let counter = match found.is_empty() {
                    true => &replayed.same,
                    false => &replayed.different,
                };
                (Some(response.status()), found, counter)
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if self.json {
            let line = json!({
                "id": id,
                "method": method,
                "url": url,
                "status": status,
                "failed": status.is_none(),
                "differences": found,
            });
            let _ = writeln!(io::stdout(), "{line}");
        } else if !found.is_empty() {
            progress.clear();
            warn(&format!("{method} {url}: {}", found.join("; ")));
        }
    }
}

/// Sends a recorded request through a proxy, and takes the whole answer.
fn send(
    proxy: SocketAddr,
    credentials: Option<&Credentials>,
    http: &HttpExchange,
) -> anyhow::Result<(Response, Vec<u8>)> {
    let request = &http.request;
    if request.message.body.is_cut() {
        bail!("its body was not recorded whole");
    }
    if http.websocket.is_some() {
        bail!("a WebSocket can't be replayed");
    }
    let url = request.url();
    let mut head = RequestHead::build(&request.method, url.as_bytes(), Version::Http11)
        .context("it can't be sent")?;
    let host = request.message.headers.get("host");
    let authority = url
        .split_once("://")
        .map_or("", |(_, rest)| rest)
        .split('/')
        .next()
        .unwrap_or_default();
    put(
        &mut head.headers,
        b"Host",
        host.unwrap_or(authority.as_bytes()),
    );
    let body = request.message.body.data.clone().unwrap_or_default();
    for (name, value) in request.message.headers.iter() {
        let ours = [
            &b"host"[..],
            b"connection",
            b"proxy-connection",
            b"keep-alive",
            b"upgrade",
            b"te",
            b"expect",
            b"transfer-encoding",
            b"content-length",
            b"proxy-authorization",
        ];
        if !name.starts_with(b":") && !ours.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            put(&mut head.headers, name, value);
        }
    }
    let had_length = request.message.headers.get("content-length").is_some();
    if !body.is_empty() || had_length {
        put(
            &mut head.headers,
            b"Content-Length",
            body.len().to_string().as_bytes(),
        );
    }
    if let Some(own) = credentials {
        let value = BASE64_STANDARD.encode(format!("{}:{}", own.user, own.password));
        let value = format!("Basic {value}");
        put(&mut head.headers, b"Proxy-Authorization", value.as_bytes());
    }
    put(&mut head.headers, b"Connection", b"close");
    let mut bytes = Vec::new();
    head.write_to(&mut bytes);
    bytes.extend_from_slice(&body);

    let mut stream = TcpStream::connect(proxy).context("can't reach the proxy")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&bytes).context("can't send the request")?;
    receive(&mut stream, &request.method)
}

fn put(headers: &mut HeaderList, name: &[u8], value: &[u8]) {
    // What a recording holds may be no header; then it is left out.
    let _ = headers.append(name, value);
}

fn receive(stream: &mut TcpStream, method: &[u8]) -> anyhow::Result<(Response, Vec<u8>)> {
    let mut data = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let limits = HeadLimits::default();
    let mut head = ResponseHead::new();
    let mut more = |data: &mut Vec<u8>| -> anyhow::Result<bool> {
        let n = stream.read(&mut buffer).context("no answer came")?;
        data.extend_from_slice(buffer.get(..n).unwrap_or_default());
        ensure!(
            data.len() <= MAX_ANSWER,
            "the answer is larger than {} MiB",
            MAX_ANSWER >> 20
        );
        Ok(n > 0)
    };
    loop {
        match head.parse(&data, &limits) {
            Ok(Parsed::Complete { len }) => {
                data.drain(..len);
                if !head.is_interim() {
                    break;
                }
            }
            Ok(Parsed::Partial) => {
                ensure!(more(&mut data)?, "the connection was cut before an answer")
            }
            Err(anomaly) => bail!("the answer is none: {}", anomaly.code()),
        }
    }
    let framing = head
        .framing(method)
        .map_err(|a| anyhow::anyhow!("{}", a.code()))?;
    let mut body = Vec::new();
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            while (data.len() as u64) < length {
                ensure!(more(&mut data)?, "the answer was cut");
            }
            data.truncate(usize::try_from(length).unwrap_or(usize::MAX));
            body = data;
        }
        Framing::UntilClose => {
            while more(&mut data)? {}
            body = data;
        }
        Framing::Chunked => {
            let mut decoder = ChunkedDecoder::new(64 << 10);
            loop {
                let progress = decoder
                    .feed(&data, |piece| body.extend_from_slice(piece))
                    .map_err(|a| anyhow::anyhow!("{}", a.code()))?;
                if progress.done {
                    break;
                }
                data.clear();
                ensure!(
                    body.len() <= MAX_ANSWER,
                    "the answer is larger than {} MiB",
                    MAX_ANSWER >> 20
                );
                ensure!(more(&mut data)?, "the answer was cut");
            }
        }
    }
    let mut response = Response::default();
    response.head = head;
    Ok((response, body))
}

/// A bar on a terminal.
struct Progress {
    total: usize,
    done: AtomicUsize,
    is_terminal: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            total,
            done: AtomicUsize::new(0),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    fn step(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_terminal {
            let share = done as f64 / self.total.max(1) as f64;
            let bar = "#".repeat((share * 30.0) as usize);
            let _ = write!(
                io::stderr(),
                "\r[{bar:.<30}] {done} of {} requests\x1b[K",
                self.total
            );
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

//! `-r`, `-C`, `-S` and `--replay`: recorded flows as input.

use std::collections::{HashSet, VecDeque};
use std::io::{self, IsTerminal as _, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tollgate_flow::filter::Filter;
use tollgate_flow::record::{HttpExchange, HttpMessage, Record, Replay, Timestamp};
use tollgate_flow::{Credentials, Flow, HeaderList, Interceptor, Interest, Response, Step};
use tollgate_rules::RuleSet;
use tollgate_rules::replay::{ReplayOptions, ServerReplay, differences};
use tollgate_wire::http1::{
    ChunkedDecoder, Framing, HeadLimits, Parsed, RequestHead, ResponseHead, Version,
};

use crate::files::{each_record, finish, plural, say, warn, while_records};
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
#[derive(Clone, Debug, PartialEq)]
pub struct ClientReplaySettings {
    /// Flow files or HAR.
    pub files: Vec<PathBuf>,
    /// Requests under way at once.
    pub concurrency: usize,
    /// How much faster than recorded the requests are begun; `None` for as fast as they can be.
    pub speed: Option<f64>,
    /// Whether a difference is a failure.
    pub check: bool,
    /// One JSON object per line and request, in place of text.
    pub json: bool,
    /// Who they come from, where the proxy asks.
    pub credentials: Option<Credentials>,
}

/// Flows that are read ahead, at most.
const AHEAD_FLOWS: usize = 64;

/// Bytes of bodies that are read ahead; one larger flow is read alone.
const AHEAD_BYTES: usize = 64 << 20;

/// A replay that is under way: what was read and not yet sent, the wish to stop, and the addresses that it sends from.
#[derive(Debug, Default)]
pub struct ClientReplay {
    state: Mutex<Ahead>,
    changed: Condvar,
    sends_from: Mutex<HashSet<SocketAddr>>,
}

#[derive(Debug, Default)]
struct Ahead {
    waiting: VecDeque<(String, HttpExchange)>,
    bytes: usize,
    read: usize,
    all_read: bool,
    stopped: bool,
}

impl ClientReplay {
    /// Nothing more is sent. What is under way ends.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    fn lock(&self) -> MutexGuard<'_, Ahead> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, ahead: MutexGuard<'a, Ahead>) -> MutexGuard<'a, Ahead> {
        self.changed
            .wait(ahead)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, and hands a flow over. False: no more is wanted.
    fn put(&self, id: String, http: HttpExchange) -> bool {
        let size = size_of_bodies(&http);
        let mut ahead = self.lock();
        loop {
            let is_full = ahead.waiting.len() >= AHEAD_FLOWS
                || (ahead.bytes + size > AHEAD_BYTES && !ahead.waiting.is_empty());
            if ahead.stopped || !is_full {
                break;
            }
            ahead = self.wait(ahead);
        }
        if ahead.stopped {
            return false;
        }
        ahead.read += 1;
        ahead.bytes += size;
        ahead.waiting.push_back((id, http));
        drop(ahead);
        self.changed.notify_all();
        true
    }

    fn end_of_files(&self) {
        self.lock().all_read = true;
        self.changed.notify_all();
    }

    /// The next flow, in the order of the files; `None` when all were sent, or no more are to be.
    fn next(&self) -> Option<(String, HttpExchange)> {
        let mut ahead = self.lock();
        loop {
            if ahead.stopped {
                return None;
            }
            if let Some(next) = ahead.waiting.pop_front() {
                ahead.bytes -= size_of_bodies(&next.1);
                drop(ahead);
                self.changed.notify_all();
                return Some(next);
            }
            if ahead.all_read {
                return None;
            }
            ahead = self.wait(ahead);
        }
    }

    /// Waits for a time. False: the replay was stopped meanwhile.
    fn wait_until(&self, at: Instant) -> bool {
        let mut ahead = self.lock();
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if ahead.stopped || left.is_zero() {
                return !ahead.stopped;
            }
            let waited = self.changed.wait_timeout(ahead, left);
            ahead = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until it is stopped.
    pub fn wait_for_stop(&self) {
        let mut ahead = self.lock();
        while !ahead.stopped {
            ahead = self.wait(ahead);
        }
    }

    /// So many were read, and whether those were all.
    fn total(&self) -> (usize, bool) {
        let ahead = self.lock();
        (ahead.read, ahead.all_read)
    }

    fn sending(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.sends_from
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn size_of_bodies(http: &HttpExchange) -> usize {
    let size = |message: &HttpMessage| message.body.data.as_ref().map_or(0, |data| data.len());
    size(&http.request.message) + http.response.as_ref().map_or(0, |r| size(&r.message))
}

/// Marks the requests that a client replay sends: for `~replay`, and for who records them.
pub struct MarkReplayed(pub Arc<ClientReplay>);

impl Interceptor for MarkReplayed {
    fn name(&self) -> &str {
        "client replay"
    }

    fn interest(&self, flow: &Flow) -> Interest {
        match self.0.sending().contains(&flow.connection.client) {
            true => Interest::REQUEST,
            false => Interest::NONE,
        }
    }

    fn request(&self, flow: &mut Flow) -> Step {
        flow.replay = Some(Replay::Request);
        Step::Continue
    }
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
    pub fn run(
        &self,
        proxy: SocketAddr,
        filter: Option<&Filter>,
        replay: &ClientReplay,
    ) -> anyhow::Result<ExitCode> {
        let replayed = Replayed::default();
        let progress = Progress::new();
        let pace = Pace::new(self.speed);
        let read = std::thread::scope(|scope| {
            for _ in 0..self.concurrency.max(1) {
                scope.spawn(|| {
                    while let Some((id, http)) = pace.next(replay) {
                        self.one(proxy, &id, &http, replay, &replayed, &progress);
                        progress.step(replay);
                    }
                });
            }
            let read = self.read(filter, replay);
            if read.is_err() {
                // What was read before is sent all the same.
                replay.end_of_files();
            }
            read
        });
        progress.clear();
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        let (same, different, failed) = (
            count(&replayed.same),
            count(&replayed.different),
            count(&replayed.failed),
        );
        let total = same + different + failed;
        let is_stopped = replay.is_stopped();
        if !self.json && (total > 0 || is_stopped) {
            let requests = plural(total, "request");
            let stopped = if is_stopped {
                "; stopped before the end"
            } else {
                ""
            };
            say(&format!(
                "{requests} replayed: {same} the same, {different} different, {failed} failed{stopped}"
            ));
        }
        let is_whole = read?;
        ensure!(
            total > 0 || is_stopped,
            "there is no HTTP request to replay"
        );
        let is_other = self.check && different + failed > 0;
        Ok(match is_other || !is_whole || is_stopped {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }

    /// Reads the files, a little ahead of what is sent. Says whether they were whole.
    fn read(&self, filter: Option<&Filter>, replay: &ClientReplay) -> anyhow::Result<bool> {
        let mut is_whole = true;
        for file in &self.files {
            let code = while_records(file, None, filter, |record| {
                Ok(match record.as_http() {
                    Some(http) => replay.put(record.id.clone(), http.clone()),
                    None => !replay.is_stopped(),
                })
            })?;
            is_whole &= code == ExitCode::SUCCESS;
            if replay.is_stopped() {
                break;
            }
        }
        replay.end_of_files();
        Ok(is_whole)
    }

    fn one(
        &self,
        proxy: SocketAddr,
        id: &str,
        http: &HttpExchange,
        replay: &ClientReplay,
        replayed: &Replayed,
        progress: &Progress,
    ) {
        let url = http.request.url();
        let method = String::from_utf8_lossy(&http.request.method).into_owned();
        let (status, found, counter) = match send(proxy, self.credentials.as_ref(), http, replay) {
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
    replay: &ClientReplay,
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
    let from = stream.local_addr()?;
    // Known before anything is sent: whoever looks at the request can see that it is a replay.
    replay.sending().insert(from);
    let answer = stream
        .write_all(&bytes)
        .context("can't send the request")
        .and_then(|()| receive(&mut stream, &request.method));
    replay.sending().remove(&from);
    answer
}

/// When requests are begun.
struct Pace {
    /// How much faster than recorded; `None` for at once.
    speed: Option<f64>,
    /// When the first was begun, now and when it was recorded.
    first: Mutex<Option<(Instant, Timestamp)>>,
}

impl Pace {
    fn new(speed: Option<f64>) -> Self {
        Self {
            speed,
            first: Mutex::default(),
        }
    }

    /// The next request, when its time has come. One that is late is begun at once.
    fn next(&self, replay: &ClientReplay) -> Option<(String, HttpExchange)> {
        let Some(speed) = self.speed else {
            return replay.next();
        };
        // One waits, and the others behind it.
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let next = replay.next()?;
        let recorded = next.1.request.message.started;
        let (began, recorded_first) = *first.get_or_insert((Instant::now(), recorded));
        let since = recorded.since(recorded_first).unwrap_or_default();
        let since = Duration::try_from_secs_f64(since.as_secs_f64() / speed).unwrap_or_default();
        match began.checked_add(since) {
            Some(at) => replay.wait_until(at).then_some(next),
            None => Some(next),
        }
    }
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
    done: AtomicUsize,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            done: AtomicUsize::new(0),
            is_terminal: io::stderr().is_terminal(),
        }
    }

    fn step(&self, replay: &ClientReplay) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r{}\x1b[K", bar(done, replay.total()));
        }
    }

    fn clear(&self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// A bar, or only a number where it isn't known yet how many there are.
fn bar(done: usize, (read, all_read): (usize, bool)) -> String {
    if !all_read {
        return plural(done as u64, "request");
    }
    let share = done as f64 / read.max(1) as f64;
    let bar = "#".repeat((share * 30.0) as usize);
    format!("[{bar:.<30}] {done} of {}", plural(read as u64, "request"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_flow::record::{Body, HttpRequest};

    fn exchange(body: usize) -> HttpExchange {
        let mut request = HttpRequest::new("POST", "http", "a.example", 80, "/");
        request.message.body = Body::whole(vec![0; body]);
        HttpExchange::new(request)
    }

    #[test]
    fn reading_ahead_is_bounded_in_flows_and_in_bytes() {
        for (size, most) in [(1, AHEAD_FLOWS), (AHEAD_BYTES / 4, 4), (AHEAD_BYTES * 2, 1)] {
            let replay = ClientReplay::default();
            std::thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut put = 0;
                    while put < 100 && replay.put(put.to_string(), exchange(size)) {
                        put += 1;
                    }
                    put
                });
                // It is full before anything is taken, and again after.
                let is_full = |read: usize| {
                    let mut ahead = replay.lock();
                    while ahead.read < read {
                        ahead = replay.wait(ahead);
                    }
                    assert_eq!((ahead.read, ahead.waiting.len()), (read, most));
                };
                is_full(most);
                assert_eq!(replay.next().unwrap().0, "0");
                is_full(most + 1);
                replay.stop();
                assert_eq!(reading.join().unwrap(), most + 1);
            });
            assert!(replay.next().is_none());
        }
    }

    #[test]
    fn a_pace_waits_as_long_as_it_was_recorded_and_ends_when_it_is_stopped() {
        let at = |seconds: f64| {
            let mut exchange = exchange(0);
            exchange.request.message.started = Timestamp::new(seconds);
            exchange
        };
        let replay = ClientReplay::default();
        for (id, seconds) in [("a", 100.0), ("b", 100.5), ("late", 99.0), ("c", 1e9)] {
            assert!(replay.put(id.to_owned(), at(seconds)));
        }
        replay.end_of_files();
        let pace = Pace::new(Some(5.0));
        let started = Instant::now();
        assert_eq!(pace.next(&replay).unwrap().0, "a");
        assert_eq!(pace.next(&replay).unwrap().0, "b");
        assert!(started.elapsed() >= Duration::from_millis(100));
        assert_eq!(pace.next(&replay).unwrap().0, "late");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pace.next(&replay).is_none());
            replay.stop();
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn a_bar_says_how_many_once_it_knows() {
        assert_eq!(bar(3, (64, false)), "3 requests");
        assert_eq!(
            bar(1, (2, true)),
            "[###############...............] 1 of 2 requests"
        );
    }
}

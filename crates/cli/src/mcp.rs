//! `tollgate mcp -- CMD`: an MCP server that speaks over standard input and output, behind the screen.

use std::fs;
use std::io::{ErrorKind, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tollgate_flow::{FlowId, OnFailure};
use tollgate_screen::mcp::{Drift, McpConfig, Pins, Session};
use tollgate_screen::{Enforcement, Verdict};

use crate::args::{DriftArg, McpArgs, ScreenArg};
use crate::output::{Printer, Stream, Style, Text, Verbosity, install_log};
use crate::proxy::report;
use crate::run::{complain, exit_code, start_failure};
use crate::scan;
use crate::settings::ScreenPolicy;
use crate::trail::{self, Trail};

/// One read.
const PIECE: usize = 64 << 10;
/// What may wait to be written before its writer is not read any more.
const WAITING: usize = 256 << 10;
/// What may wait to be written before the other direction, whose refusals add to it, is not read any more. It is more than
/// a message: a server that reads nothing before it has written must not stand still because a long one waits for it.
const WAITING_ANSWERS: usize = 36 << 20;
/// How long a server that has ended may have others write for it.
const AFTERMATH: Duration = Duration::from_millis(250);
/// How long a server may take to end when its output has, or when nobody reads what it says.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the server, and gives its exit code, as `tollgate run` does.
///
/// # Errors
/// What keeps it from starting.
pub fn mcp(args: &McpArgs) -> anyhow::Result<ExitCode> {
    let printer = Printer::start().context("can't start a thread")?;
    let style = Style::detect(false, std::io::stderr().is_terminal());
    // With --json, verdicts are objects, and the log has what is left.
    let verbosity = match args.json {
        true => Verbosity::Error,
        false => Verbosity::Warn,
    };
    install_log(printer.clone(), verbosity, style)?;
    let audit = Trail::open(&args.audit)?;
    let mut session = session(args, &printer, audit.clone())?;
    if let Some(file) = &args.pin {
        session = session.pin(read_pins(file)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start")?;
    let result = runtime.block_on(run(args, session, audit.clone()));
    if let Some(audit) = &audit {
        audit.close();
    }
    printer.flush();
    result
}

fn session(args: &McpArgs, printer: &Printer, audit: Option<Trail>) -> anyhow::Result<Session> {
    let scanner = scan::build(
        &args.screen_rules,
        &args.known_secrets,
        &[],
        &args.screen_allow,
    )?;
    let mut config = McpConfig::default();
    config.enforcement = match args.screen {
        ScreenArg::Enforce => Enforcement::Enforce,
        ScreenArg::Monitor => Enforcement::Monitor,
    };
    if args.screen_fail_open {
        config.on_failure = OnFailure::Open;
    }
    config.drift = match args.drift {
        DriftArg::Refuse => Drift::Refuse,
        DriftArg::Warn => Drift::Warn,
    };
    let program = args.command.first().context("there is no server to run")?;
    let name = Path::new(program).file_name().unwrap_or(program);
    let target = format!("mcp:{}", name.to_string_lossy());
    let (printer, json) = (printer.clone(), args.json);
    let on_verdict = move |verdict: &Verdict| {
        if json {
            let line = format!("{}\n", verdict.to_json());
            printer.flow(Stream::Stderr, Text::Ready(line));
        } else {
            report(verdict);
        }
        if let Some(audit) = &audit {
            audit.record(verdict);
        }
    };
    // Unique enough within a millisecond: no two sessions are of one process.
    let flow = FlowId::new(SystemTime::now(), u128::from(std::process::id()));
    let policy = match &args.screen_policy {
        Some(file) => ScreenPolicy::open(file, &scanner)?.in_force.current(),
        None => Arc::default(),
    };
    let never: Vec<String> = policy.needing_flows().collect();
    if !never.is_empty() {
        tracing::warn!(
            "rules with `when`, `process` or `destination` never hold here: {}",
            never.join(", ")
        );
    }
    let session = Session::new(scanner, config, &target, flow).policy((*policy).clone())?;
    Ok(session.on_verdict(Arc::new(on_verdict)))
}

fn read_pins(file: &Path) -> anyhow::Result<Option<Pins>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => bail!("{}: {error}", file.display()),
    };
    let pins = Pins::parse(&text).with_context(|| file.display().to_string())?;
    Ok(Some(pins))
}

/// Writes a file of pins: all of it, or none.
fn write_pins(file: &Path, pins: &Pins) -> anyhow::Result<()> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(pins.to_text().as_bytes())?;
    new.as_file().sync_all()?;
    // Not over one that somebody else has made in the meantime.
    new.persist_noclobber(file)?;
    Ok(())
}

async fn run(args: &McpArgs, session: Session, audit: Option<Trail>) -> anyhow::Result<ExitCode> {
    // Before the server is there, so that no signal is missed.
    let signals = Signals::listen().context("can't listen for signals")?;
    let (program, rest) = args
        .command
        .split_first()
        .context("there is no server to run")?;
    let mut command = Command::new(program);
    command
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What proves that a verdict is ours is not for whom it is about.
        .env_remove(trail::SECRET)
        .kill_on_drop(true);
    crate::os::end_with_us(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let (code, why) = start_failure(&error);
            complain(program, &why);
            return Ok(ExitCode::from(code));
        }
    };
    let (answers, written) = write_client().context("can't start a thread")?;
    let pump = Pump {
        input: child.stdin.take(),
        output: child.stdout.take(),
        client: read_client().context("can't start a thread")?,
        answers: Some(answers),
        written,
        child,
        signals,
        session,
        audit,
        pin: args.pin.clone(),
        status: None,
        deadline: None,
        asked_to_end: false,
    };
    let status = pump.run().await.context("can't wait for the server")?;
    Ok(exit_code(status))
}

/// Moves bytes between a client and a server, through a session.
struct Pump {
    session: Session,
    audit: Option<Trail>,
    pin: Option<PathBuf>,
    child: Child,
    signals: Signals,
    /// What the server reads; `None` when it is to see the end of it.
    input: Option<ChildStdin>,
    /// What the server writes; `None` when that has ended.
    output: Option<ChildStdout>,
    /// What the client wrote.
    client: Receiver<Vec<u8>>,
    /// Towards the client; `None` when it reads no more.
    answers: Option<Sender<Vec<u8>>>,
    /// Told when all of it was written.
    written: oneshot::Receiver<()>,
    /// How the server ended.
    status: Option<ExitStatus>,
    /// When patience ends.
    deadline: Option<Instant>,
    /// It was asked to end.
    asked_to_end: bool,
}

impl Pump {
    async fn run(mut self) -> std::io::Result<ExitStatus> {
        let mut client_open = true;
        // How much of what goes to the server is there already.
        let mut sent = 0;
        let mut piece = vec![0; PIECE];
        loop {
            if self.input.is_none() {
                // It reads no more.
                sent = self.session.to_server.len();
            }
            if sent == self.session.to_server.len()
                || sent > WAITING.max(self.session.to_server.len() / 2)
            {
                self.session
                    .to_server
                    .drain(..sent.min(self.session.to_server.len()));
                sent = 0;
            }
            let to_server = self.session.to_server.len().saturating_sub(sent);
            let to_client = self.session.to_client.len();
            if to_server == 0 && !client_open {
                self.input = None;
            }
            if let (Some(status), None) = (self.status, &self.output)
                && (self.answers.is_none() || to_client == 0)
            {
                self.end().await;
                return Ok(status);
            }
            let read_client = client_open && to_server < WAITING && to_client < WAITING_ANSWERS;
            let read_server = to_client < WAITING && to_server < WAITING_ANSWERS;
            let has_ended = self.status.is_some();
            let unsent = self.session.to_server.get(sent..).unwrap_or_default();
            tokio::select! {
                bytes = self.client.recv(), if read_client => match bytes {
                    Some(bytes) => {
                        let stopped = self.audit.as_ref().is_some_and(Trail::is_stopped);
                        self.session.stop(stopped.then_some("the audit log can't be written"));
                        self.session.from_client(&bytes);
                    }
                    None => {
                        client_open = false;
                        self.session.client_ended();
                    }
                },
                count = read(&mut self.output, &mut piece), if read_server => match count {
                    Ok(count @ 1..) => {
                        self.session.from_server(piece.get(..count).unwrap_or_default());
                        self.keep_pins();
                    }
                    Ok(0) | Err(_) => self.output_ended(),
                },
                count = write(&mut self.input, unsent), if to_server > 0 => match count {
                    Ok(count) => sent += count,
                    Err(_) => self.input = None,
                },
                open = has_room(self.answers.as_ref()), if to_client > 0 => {
                    let bytes = std::mem::take(&mut self.session.to_client);
                    // Nobody else sends there: where there was room, there is.
                    if !open || self.answers.as_ref().is_none_or(|answers| answers.try_send(bytes).is_err()) {
                        self.client_gone();
                    } else if has_ended && !read_server {
                        self.deadline = Some(Instant::now() + AFTERMATH);
                    }
                },
                status = self.child.wait(), if !has_ended => {
                    self.status = Some(status?);
                    self.input = None;
                    self.patience(AFTERMATH);
                }
                number = self.signals.next() => match has_ended {
                    false => self.signals.pass(&self.child, number),
                    // It says that nobody listens.
                    true => (self.answers, self.output) = (None, None),
                },
                // A server that has ended is not kept waiting by its client: what it said last is still in the pipe.
                () = until(self.deadline), if !has_ended || read_server => self.patience_ends(),
            }
        }
    }

    fn keep_pins(&mut self) {
        let (Some(pins), Some(file)) = (self.session.take_pins(), &self.pin) else {
            return;
        };
        if let Err(error) = write_pins(file, &pins) {
            tracing::error!("{}: the pins are not written: {error:#}", file.display());
        }
    }

    /// The server writes no more: without its answers, a session is over.
    fn output_ended(&mut self) {
        self.output = None;
        self.session.server_ended();
        self.input = None;
        if self.status.is_none() {
            self.patience(GRACE);
        }
    }

    /// The client reads no more.
    fn client_gone(&mut self) {
        self.answers = None;
        self.input = None;
        if self.status.is_none() {
            self.patience(GRACE);
        }
    }

    fn patience(&mut self, duration: Duration) {
        let deadline = Instant::now() + duration;
        self.deadline = Some(
            self.deadline
                .map_or(deadline, |sooner| sooner.min(deadline)),
        );
    }

    fn patience_ends(&mut self) {
        self.deadline = None;
        if self.status.is_some() {
            // Somebody else holds its output.
            if self.output.take().is_some() {
                self.session.server_ended();
            }
        } else if std::mem::replace(&mut self.asked_to_end, true) {
            let _ = self.child.start_kill();
        } else {
            self.signals.terminate(&mut self.child);
            self.patience(GRACE);
        }
    }

    /// Waits until what was said has been written, or a signal says that nobody listens.
    async fn end(&mut self) {
        // With the sender the writer ends.
        if self.answers.take().is_some() {
            tokio::select! {
                _ = &mut self.written => {}
                _ = self.signals.next() => {}
            }
        }
    }
}

async fn read(output: &mut Option<ChildStdout>, piece: &mut [u8]) -> std::io::Result<usize> {
    match output {
        Some(output) => output.read(piece).await,
        None => std::future::pending().await,
    }
}

async fn write(input: &mut Option<ChildStdin>, bytes: &[u8]) -> std::io::Result<usize> {
    match input {
        Some(input) => input.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// Waits until there is room for one more; `false`: there never is again.
async fn has_room(answers: Option<&Sender<Vec<u8>>>) -> bool {
    match answers {
        Some(answers) => answers.reserve().await.is_ok(),
        None => false,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Reads standard input in a thread of its own: it can't be waited for in any other way on every platform. A read that
/// nobody waits for ends with the process.
fn read_client() -> std::io::Result<Receiver<Vec<u8>>> {
    let (tell, client) = channel(1);
    std::thread::Builder::new()
        .name("tollgate-stdin".to_owned())
        .spawn(move || {
            let mut input = std::io::stdin().lock();
            let mut piece = vec![0; PIECE];
            loop {
                match input.read(&mut piece) {
                    Ok(0) => return,
                    Ok(count) => {
                        let bytes = piece.get(..count).unwrap_or_default().to_vec();
                        if tell.blocking_send(bytes).is_err() {
                            return;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })?;
    Ok(client)
}

/// Writes to standard output in a thread of its own.
fn write_client() -> std::io::Result<(Sender<Vec<u8>>, oneshot::Receiver<()>)> {
    let (answers, mut queue) = channel::<Vec<u8>>(1);
    let (tell, written) = oneshot::channel();
    std::thread::Builder::new()
        .name("tollgate-stdout".to_owned())
        .spawn(move || {
            let mut output = std::io::stdout().lock();
            while let Some(bytes) = queue.blocking_recv() {
                let done = output.write_all(&bytes).and_then(|()| output.flush());
                if done.is_err() {
                    break;
                }
            }
            drop(queue);
            let _ = tell.send(());
        })?;
    Ok((answers, written))
}

#[cfg(unix)]
struct Signals(crate::signals::Passed);

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        crate::signals::Passed::listen().map(Self)
    }

    async fn next(&mut self) -> i32 {
        self.0.next().await
    }

    fn pass(&self, child: &Child, number: i32) {
        let from_keyboard = matches!(number, libc::SIGINT | libc::SIGQUIT);
        // The terminal has sent Ctrl-C to the server as well.
        if from_keyboard && crate::os::in_foreground_of_a_terminal() {
            return;
        }
        if let Some(pid) = child.id() {
            crate::os::send_signal(pid, number);
        }
    }

    fn terminate(&self, child: &mut Child) {
        self.pass(child, libc::SIGTERM);
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> i32 {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        0
    }

    /// The console has sent it to the server as well, which decides.
    fn pass(&self, _child: &Child, _number: i32) {}

    fn terminate(&self, child: &mut Child) {
        let _ = child.start_kill();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use tollgate_screen::scan::Scanner;

    #[tokio::test(start_paused = true)]
    async fn what_a_server_said_last_reaches_a_client_that_is_slow() {
        // Our buffer is full when a part of it is still in the pipe, and small enough for that.
        let all = WAITING + PIECE;
        let script = format!("head -c {all} /dev/zero | tr '\\0' '\\n'");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let running = PathBuf::from(format!("/proc/{}", child.id().unwrap()));
        let (_open, client) = channel(1);
        let (answers, mut queue) = channel(1);
        let (tell, written) = oneshot::channel();
        // The client has not read something earlier.
        answers.try_send(Vec::new()).unwrap();
        let session = Session::new(
            Scanner::builtin(),
            McpConfig::default(),
            "mcp:test",
            FlowId(1),
        );
        let pump = Pump {
            input: child.stdin.take(),
            output: child.stdout.take(),
            client,
            answers: Some(answers),
            written,
            child,
            signals: Signals::listen().unwrap(),
            session,
            audit: None,
            pin: None,
            status: None,
            deadline: None,
            asked_to_end: false,
        };
        let client = async {
            // Until the pump knows that the server has ended; then for longer than it has patience.
            while running.exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(AFTERMATH * 4).await;
            let mut got = 0;
            while let Some(bytes) = queue.recv().await {
                got += bytes.len();
            }
            let _ = tell.send(());
            got
        };
        let (status, got) = tokio::join!(pump.run(), client);
        assert!(status.unwrap().success());
        assert_eq!(got, all);
    }
}

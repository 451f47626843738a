//! `tollgate scan-server`: the scanners for other programs, over a network.

use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, ErrorKind, IsTerminal as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tollgate_remote::{Access, Ended, Judge, Limits, Server};

use crate::args::{AuditFullArg, ScreenArgs, bytes, seconds};
use crate::files::plural;
use crate::output::{Printer, Style, Verbosity, install_log};
use crate::proxy;
use crate::settings::ScreenSettings;
use crate::signals::Stop;

/// What `--screen-policy` does here, where nobody reads it again.
const POLICY_HELP: &str = "Decide by the rules in this file what follows from findings and tool calls: allow, warn, redact, hold, block. \
     It is read once, at the start";

/// `tollgate scan-server`.
#[derive(Debug, Args)]
#[command(
    mut_arg("screen", |screen| screen.required(true)),
    mut_arg("screen_policy", |policy| policy.help(POLICY_HELP)),
    mut_arg("budget", |budget| budget.hide(true)),
    mut_arg("prices", |prices| prices.hide(true)),
    mut_arg("audit_full", |full| full.hide(true))
)]
pub struct ScanServerArgs {
    /// Speak ICAP at this address and port (port 0: a free one). ICAP knows no passwords: whoever reaches it may use it.
    #[arg(long, value_name = "ADDR:PORT", required_unless_present = "http")]
    icap: Option<SocketAddr>,
    /// Answer POST /scan at this address and port, in HTTP.
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// A file with the token that HTTP requests must have, as `Authorization: Bearer TOKEN`; TOLLGATE_SCAN_TOKEN in the
    /// environment holds the token itself. Needed unless HTTP is on a loopback address.
    #[arg(long, value_name = "FILE", requires = "http")]
    token_file: Option<PathBuf>,
    /// A name by which HTTP may be asked for, beside localhost and addresses [repeatable].
    #[arg(long, value_name = "HOST", requires = "http")]
    allow_host: Vec<String>,
    /// Connections at once; more are answered 503.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_connections: u32,
    /// The longest body that is held until it is judged. A longer one is refused, or with --screen-fail-open judged in
    /// pieces, as it passes.
    #[arg(long, value_name = "SIZE", default_value = "32m", value_parser = bytes)]
    body_limit: u64,
    /// How long exchanges may take to end after SIGTERM or Ctrl-C (a second one ends them at once).
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    drain: Duration,
    /// Show nothing but errors.
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Log more.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten, next_help_heading = "Screening")]
    screen: ScreenArgs,
}

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// What keeps it from starting.
pub fn scan_server(args: &ScanServerArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.screen.audit.audit_full != Some(AuditFullArg::Stop),
        "--audit-full stop is for proxies: who asks by ICAP decides by itself what happens without an answer"
    );
    ensure!(
        args.screen.budget.is_empty() && args.screen.prices.is_none(),
        "--budget and --prices have no meaning for `scan-server`: it sees requests and answers apart"
    );
    let settings = ScreenSettings::new(&args.screen)?.context("--screen is missing")?;
    let printer = Printer::start().context("can't start a thread")?;
    let verbosity = match (args.quiet, args.verbose) {
        (true, _) => Verbosity::Error,
        (_, true) => Verbosity::Debug,
        _ => Verbosity::Info,
    };
    install_log(
        printer.clone(),
        verbosity,
        Style::detect(false, io::stderr().is_terminal()),
    )?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start")?;
    let result = runtime.block_on(until_stopped(args, &settings, &printer));
    if let Some(audit) = &settings.audit {
        audit.close();
    }
    printer.flush();
    result.map(|()| ExitCode::SUCCESS)
}

async fn until_stopped(
    args: &ScanServerArgs,
    settings: &ScreenSettings,
    printer: &Printer,
) -> anyhow::Result<()> {
    // Before anything else, so that no signal is missed.
    let mut stop = Stop::listen().context("can't listen for signals")?;
    tollgate_engine::raise_file_limit();
    let judge = Judge::new(
        proxy::new_screen(settings),
        settings.scanner.clone(),
        proxy::on_verdict(settings),
    );
    let tag = tag(&judge, &args.screen)?;
    let mut limits = Limits::default();
    limits.connections = args.max_connections as usize;
    limits.body = args.body_limit;
    limits.memory = limits.memory.max(args.body_limit.saturating_mul(2));
    let mut banner = format!(
        "Tollgate {} screens for others\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut server = Server::new(judge, limits);
    if let Some(address) = args.icap {
        server = server.icap(bind(address).await?, tag);
    }
    if let Some(address) = args.http {
        let access = Access::new(token(args)?.as_deref(), args.allow_host.clone());
        server = server
            .http(bind(address).await?, access)
            .context("use --token-file or TOLLGATE_SCAN_TOKEN")?;
    }
    if let Some(address) = server.icap_address() {
        if !address.ip().is_loopback() {
            tracing::warn!("{address} can be reached from elsewhere, and ICAP knows no passwords");
        }
        let _ = writeln!(banner, "  requests     icap://{address}/reqmod");
        let _ = writeln!(banner, "  responses    icap://{address}/respmod");
    }
    if let Some(address) = server.http_address() {
        let _ = writeln!(banner, "  texts        http://{address}/scan");
    }
    if !args.quiet {
        printer.notice(banner);
    }
    let (first, begun) = oneshot::channel::<()>();
    let stopped = async {
        let _ = begun.await;
    };
    let serving = server.run(stopped, args.drain);
    tokio::pin!(serving);
    let mut ended = tokio::select! {
        () = stop.requested() => None,
        ended = &mut serving => Some(ended),
    };
    drop(first);
    if ended.is_none() {
        ended = tokio::select! {
            ended = &mut serving => Some(ended),
            () = stop.requested() => None,
        };
    }
    if let Some(ended) = ended.filter(|_| !args.quiet) {
        printer.notice(summary(&ended));
    }
    Ok(())
}

fn summary(ended: &Ended) -> String {
    format!(
        "Tollgate ends: {}, {} turned away, {} cut\n",
        plural(ended.connections, "connection"),
        ended.turned_away,
        ended.cut
    )
}

/// The `ISTag`. It tells nothing of known secrets: with them, each start has its own.
fn tag(judge: &Judge, args: &ScreenArgs) -> anyhow::Result<String> {
    let mut parts = vec![format!("{args:?}").into_bytes()];
    for path in args.screen_rules.iter().chain(&args.screen_policy) {
        parts.push(std::fs::read(path).with_context(|| path.display().to_string())?);
    }
    if !args.known_secrets.is_empty() {
        let random = std::hash::RandomState::new().build_hasher().finish();
        parts.push(random.to_be_bytes().to_vec());
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Ok(judge.tag(&parts))
}

/// The token for HTTP: from the file, or else from the environment.
fn token(args: &ScanServerArgs) -> anyhow::Result<Option<String>> {
    if let Some(path) = &args.token_file {
        return read_token(path).map(Some);
    }
    match std::env::var("TOLLGATE_SCAN_TOKEN") {
        Ok(text) => checked(&text, "TOLLGATE_SCAN_TOKEN").map(Some),
        Err(_) => Ok(None),
    }
}

/// A token from a file.
///
/// # Errors
/// A file that can't be read, or holds none.
pub fn read_token(path: &Path) -> anyhow::Result<String> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
    checked(&text, &name)
}

fn checked(text: &str, from: &str) -> anyhow::Result<String> {
    let token = text.trim();
    let is_token = token.len() >= 16 && token.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
    ensure!(
        is_token,
        "{from}: a token has at least 16 characters, and none that is white space or not ASCII"
    );
    Ok(token.to_owned())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| explain(address, &error))
}

fn explain(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::AddrInUse => anyhow!("{address} is in use by another program"),
        ErrorKind::PermissionDenied => anyhow!("no permission to listen on {address}"),
        ErrorKind::AddrNotAvailable => {
            anyhow!("can't listen on {address}: this machine doesn't have that address")
        }
        _ => anyhow!("can't listen on {address}: {error}"),
    }
}

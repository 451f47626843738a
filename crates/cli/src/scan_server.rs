//! `tollgate scan-server`: the scanners for other programs, over a network.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, ErrorKind, IsTerminal as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tollgate_remote::{Ended, Judge, Limits, Server};

use crate::args::{ScreenArgs, bytes, seconds};
use crate::files::plural;
use crate::output::{Printer, Style, Verbosity, install_log};
use crate::proxy;
use crate::settings::ScreenSettings;
use crate::signals::Stop;

/// `tollgate scan-server`.
#[derive(Debug, Args)]
#[command(mut_arg("screen", |screen| screen.required(true)))]
pub struct ScanServerArgs {
    /// Speak ICAP at this address and port (port 0: a free one). ICAP knows no passwords: whoever reaches it may use it.
    #[arg(long, value_name = "ADDR:PORT", required = true)]
    icap: SocketAddr,
    /// Connections at once; more are answered 503.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_connections: u32,
    /// The longest body that is held until it is judged. A longer one is refused, or passes with --screen-fail-open.
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
    printer.flush();
    if let Some(audit) = &settings.audit {
        audit.close();
    }
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
    let listener = TcpListener::bind(args.icap)
        .await
        .map_err(|error| explain(args.icap, &error))?;
    let server = Server::new(judge, limits).icap(listener, tag);
    let address = server.icap_address().context("where is it?")?;
    if !address.ip().is_loopback() {
        tracing::warn!("{address} can be reached from elsewhere, and ICAP knows no passwords");
    }
    if !args.quiet {
        printer.notice(format!(
            "Tollgate {} screens for others\n  requests     icap://{address}/reqmod\n  responses    \
             icap://{address}/respmod\n",
            env!("CARGO_PKG_VERSION"),
        ));
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

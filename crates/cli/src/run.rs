//! `tollgate run -- CMD`: one command with a proxy of its own.

use std::ffi::OsStr;
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tokio::process::{Child, Command};

use tollgate_engine::{Endpoint, Listen, Mode};
use tollgate_rules::Rules;
use tollgate_store::Store;

use crate::args::RunArgs;
use crate::child_env::{self, Files};
use crate::output::{Printer, Stream, usage_totals};
use crate::proxy;
use crate::rules::{Reload, while_reloading};
use crate::save::{self, FileSink};
use crate::settings::{OpenAuthority, Purpose, Settings};

/// How long connections may take to end when the command has: what it left behind, say.
const AFTERMATH: Duration = Duration::from_millis(250);

/// Runs the command, and gives its exit code: 128 and the number of the signal for one that was killed, 127 for one that
/// isn't there, 126 for one that can't be run.
///
/// # Errors
/// What keeps the proxy from starting.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(&args.proxy, Purpose::Run)?;
    let authority = settings.authority.open()?;
    let printer = proxy::open_output(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start")?;
    let files = &settings.files;
    ensure!(
        files.read.is_none() && files.client_replay.is_none() && files.server,
        "-r, -C and -n have no meaning for `run`"
    );
    let (sinks, saves) = save::open(&files.save)?;
    let reload = Reload::open(&settings)?;
    let rules = reload.as_ref().map(|reload| reload.rules().clone());
    let store = settings.store.open()?;
    let proxy = with_proxy(
        args,
        &settings,
        &authority,
        &printer,
        rules.as_ref(),
        store.as_ref(),
        sinks,
    );
    let result = runtime.block_on(while_reloading(reload, proxy));
    // What was recorded last is written before the process ends.
    drop(store);
    proxy::close_audit(&settings);
    printer.flush();
    // Nothing is printed beside the command's own output but what was lost; the exit code is the command's.
    save::close(saves, true)?;
    result
}

async fn with_proxy(
    args: &RunArgs,
    settings: &Settings,
    authority: &OpenAuthority,
    printer: &Printer,
    rules: Option<&Rules>,
    store: Option<&Store>,
    sinks: Vec<FileSink>,
) -> anyhow::Result<ExitCode> {
    #[cfg(unix)]
    let mut signals = crate::signals::Passed::listen().context("can't listen for signals")?;
    // Standard output is the command's.
    let handle = proxy::start(
        settings,
        authority,
        printer,
        Stream::Stderr,
        rules,
        store,
        proxy::Files {
            sinks,
            replay: None,
        },
    )
    .await?;
    let address = handle
        .endpoints()
        .into_iter()
        .find_map(|endpoint| match endpoint {
            Endpoint {
                mode: Mode::Regular | Mode::Upstream(_),
                at: Listen::Tcp(address),
            } => Some(address),
            _ => None,
        })
        .context("`run` needs an address and port to listen on, in mode regular or upstream")?;
    let files = Files::create(&authority.authority)
        .context("can't write the certificates for the command")?;
    let (program, rest) = args
        .command
        .split_first()
        .context("there is no command to run")?;
    let mut command = Command::new(program);
    command.args(rest);
    for (name, value) in
        child_env::variables(reachable(address), &files, |name| std::env::var_os(name))
    {
        command.env(name, value);
    }
    let code = match command.spawn() {
        Ok(child) => {
            #[cfg(unix)]
            let status = wait(child, &mut signals).await;
            #[cfg(not(unix))]
            let status = wait(child).await;
            exit_code(status.context("can't wait for the command")?)
        }
        Err(error) => {
            let (code, why) = start_failure(&error);
            complain(program, &why);
            ExitCode::from(code)
        }
    };
    handle.shutdown(AFTERMATH).await;
    let used = settings.screen.as_ref().map(|screen| &*screen.ledger);
    if let Some(totals) = used.and_then(usage_totals) {
        tracing::info!("{}", totals.trim_end());
    }
    if let Some(totals) = settings.external.totals() {
        tracing::info!("{}", totals.trim_end());
    }
    Ok(code)
}

/// Waits for the child, and passes signals on to it.
#[cfg(unix)]
async fn wait(
    mut child: Child,
    signals: &mut crate::signals::Passed,
) -> std::io::Result<ExitStatus> {
    use crate::os::{in_foreground_of_a_terminal, send_signal};

    loop {
        tokio::select! {
            status = child.wait() => return status,
            number = signals.next() => {
                let from_keyboard = matches!(number, libc::SIGINT | libc::SIGQUIT);
                // The terminal has sent Ctrl-C to the child as well: twice would mean "at once" to many programs.
                if from_keyboard && in_foreground_of_a_terminal() {
                    continue;
                }
                if let Some(pid) = child.id() {
                    send_signal(pid, number);
                }
            }
        }
    }
}

#[cfg(not(unix))]
async fn wait(mut child: Child) -> std::io::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            // The console has sent it to the child as well, which decides.
            _ = tokio::signal::ctrl_c() => {}
        }
    }
}

/// Where a program on this machine finds the proxy.
pub fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    address
}

/// The exit code and the words for a command that can't be started.
pub fn start_failure(error: &std::io::Error) -> (u8, String) {
    match error.kind() {
        ErrorKind::NotFound => (127, "command not found".to_owned()),
        ErrorKind::PermissionDenied => (126, "not a program that may be run".to_owned()),
        _ => (126, error.to_string()),
    }
}

/// The exit code of a command as a shell gives it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    #[cfg(unix)]
    let killed = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    #[cfg(not(unix))]
    let killed = None;
    let code = killed.or(status.code()).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Says on standard error what is wrong with a program.
pub fn complain(program: &OsStr, why: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "error: {}: {why}",
        program.to_string_lossy()
    );
}

//! `tollgate` without a command: the proxy until somebody ends it.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tollgate_engine::{Endpoint, Handle, Listen, Metrics, Mode};
use tollgate_rules::Rules;
use tollgate_store::Store;

use crate::args::ProxyArgs;
use crate::output::{Printer, Stream, Verbosity, pretty_size, usage_totals};
use crate::proxy;
use crate::replay::{self, ClientReplay};
use crate::rules::{Reload, while_reloading};
use crate::run::reachable;
use crate::save::{self, FileSink};
use crate::settings::{OpenAuthority, Purpose, Settings};
use crate::signals::Stop;

/// Runs the proxy until SIGTERM, Ctrl-C, or the end of whoever reads its output. Then connections may end within `--drain`;
/// a second signal ends them at once.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub fn serve(args: &ProxyArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::new(args, Purpose::Serve)?;
    let authority = settings.authority.open()?;
    let printer = proxy::open_output(&settings)?;
    // The engine brings its own threads; this one waits.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start")?;
    let (sinks, saves) = save::open(&settings.files.save)?;
    let result = work(&settings, &authority, &printer, &runtime, sinks);
    proxy::close_audit(&settings);
    printer.flush();
    let quiet = settings.output.verbosity == Verbosity::Error;
    // What ended last is written before the process ends, whatever came of it.
    let whole = save::close(saves, quiet)?;
    match whole {
        true => result,
        false => result.map(|_| ExitCode::FAILURE),
    }
}

/// Reads, replays and serves, as far as each is asked for.
fn work(
    settings: &Settings,
    authority: &OpenAuthority,
    printer: &Printer,
    runtime: &Runtime,
    sinks: Vec<FileSink>,
) -> anyhow::Result<ExitCode> {
    let files = &settings.files;
    let mut code = ExitCode::SUCCESS;
    if let Some(path) = &files.read {
        let edit = settings.rules.open(None)?.map(|rules| rules.current());
        code = replay::show_file(
            path,
            files.read_filter.as_ref(),
            edit.as_deref(),
            files.filter.as_ref(),
            &settings.output,
            |record| {
                sinks.iter().for_each(|sink| sink.put(record.clone()));
            },
        )?;
        if files.client_replay.is_none() && !files.keepserving {
            return Ok(code);
        }
    }
    let reload = Reload::open(settings)?;
    let rules = reload.as_ref().map(|reload| reload.rules().clone());
    let store = settings.store.open()?;
    let serving = until_stopped(
        settings,
        authority,
        printer,
        rules.as_ref(),
        store.as_ref(),
        sinks,
    );
    let result = runtime.block_on(while_reloading(reload, serving));
    // What was recorded last is written before the process ends.
    drop(store);
    match result? {
        Some(replayed) if replayed != ExitCode::SUCCESS => Ok(replayed),
        _ => Ok(code),
    }
}

async fn until_stopped(
    settings: &Settings,
    authority: &OpenAuthority,
    printer: &Printer,
    rules: Option<&Rules>,
    store: Option<&Store>,
    sinks: Vec<FileSink>,
) -> anyhow::Result<Option<ExitCode>> {
    // Before anything else, so that no signal is missed.
    let mut stop = Stop::listen().context("can't listen for signals")?;
    let started = Instant::now();
    let replay = Arc::<ClientReplay>::default();
    let handle = proxy::start(
        settings,
        authority,
        printer,
        Stream::Stdout,
        rules,
        store,
        proxy::Files {
            sinks,
            replay: Some(Arc::clone(&replay)).filter(|_| settings.files.client_replay.is_some()),
        },
    )
    .await?;
    let quiet = matches!(
        settings.output.verbosity,
        Verbosity::Error | Verbosity::Warn
    );
    if !quiet && settings.files.server {
        let mut banner = banner(&handle, authority);
        if let (Some(_), Some(folder)) = (store, settings.store.folder()) {
            let _ = writeln!(banner, "  flows        {}", folder.display());
        }
        printer.notice(banner);
    }
    let mut replayed = None;
    let mut replaying = client_replay(settings, &handle, &replay)?;
    tokio::select! {
        code = ended(&mut replaying) => replayed = Some(code?),
        () = stop.requested() => replay.stop(),
        () = printer.closed() => replay.stop(),
        () = handle.finished() => {
            bail!("all workers have ended");
        }
    }
    let before = handle.metrics();
    let replay_is_under_way = replaying.is_some();
    let metrics = tokio::select! {
        shutdown = handle.shutdown(settings.drain) => {
            if replayed.is_none() && replay_is_under_way {
                // What was under way has ended with its connections; it says what came of it. Who waits for standard
                // input instead says nothing.
                let last = tokio::time::timeout(LAST_WORD, ended(&mut replaying)).await;
                replayed = Some(last.unwrap_or(Ok(ExitCode::FAILURE))?);
            }
            shutdown.metrics
        }
        () = stop.requested() => before,
    };
    if !quiet && settings.files.server {
        printer.notice(summary(&metrics, started.elapsed()));
        let used = settings.screen.as_ref().map(|screen| &*screen.ledger);
        if let Some(totals) = used.and_then(usage_totals) {
            printer.notice(totals);
        }
        if let Some(totals) = settings.external.totals() {
            printer.notice(totals);
        }
    }
    Ok(replayed)
}

/// How long a replay that was stopped may take to say what came of it, once all connections are closed.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What a replay comes to.
type Replaying = Option<oneshot::Receiver<anyhow::Result<ExitCode>>>;

/// Begins to send recorded requests through the proxy, if there are any: on a thread of its own, which nobody waits for
/// at a second signal.
fn client_replay(
    settings: &Settings,
    handle: &Handle,
    replay: &Arc<ClientReplay>,
) -> anyhow::Result<Replaying> {
    let Some(client) = settings.files.client_replay.clone() else {
        return Ok(None);
    };
    let address = handle
        .endpoints()
        .into_iter()
        .find_map(|endpoint| match endpoint {
            Endpoint {
                mode: Mode::Regular | Mode::Upstream(_),
                at: Listen::Tcp(address),
            } => Some(reachable(address)),
            _ => None,
        });
    let address = address.context(
        "a client replay needs an address and port to go through, in mode regular or upstream",
    )?;
    let filter = settings.files.read_filter.clone();
    let goes_on = settings.files.keepserving;
    let replay = Arc::clone(replay);
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("tollgate-replay".to_owned())
        .spawn(move || {
            let code = client.run(address, filter.as_ref(), &replay);
            if goes_on && code.is_ok() {
                // The proxy goes on until somebody ends it.
                replay.wait_for_stop();
            }
            // Nobody waits any more at a second signal.
            let _ = sender.send(code);
        })
        .context("can't start a thread")?;
    Ok(Some(receiver))
}

/// Waits for the end of a replay; for ever where there is none.
async fn ended(replaying: &mut Replaying) -> anyhow::Result<ExitCode> {
    match replaying {
        None => std::future::pending().await,
        Some(receiver) => {
            let code = receiver.await.context("the replay failed")?;
            *replaying = None;
            code
        }
    }
}

fn banner(handle: &Handle, authority: &OpenAuthority) -> String {
    let mut out = format!("Tollgate {} listens on", env!("CARGO_PKG_VERSION"));
    let endpoints = handle.endpoints();
    for Endpoint { mode, at } in &endpoints {
        let _ = match (mode, at) {
            (Mode::Regular, Listen::Tcp(address)) => write!(out, " http://{address}"),
            (Mode::Regular, at) => write!(out, " {at}"),
            (mode, at) => write!(out, "\n  {mode} at {at}"),
        };
    }
    out.push('\n');
    let fingerprint = authority.authority.fingerprint_hex();
    if let Some(cert) = &authority.cert_file {
        let made = if authority.created { " (new)" } else { "" };
        let cert = cert.display();
        let _ = writeln!(out, "  certificate  {cert}{made}");
        let _ = writeln!(out, "  SHA-256      {fingerprint}");
        let regular = endpoints.iter().find_map(|endpoint| match endpoint {
            Endpoint {
                mode: Mode::Regular | Mode::Upstream(_),
                at: Listen::Tcp(address),
            } => Some(*address),
            _ => None,
        });
        if let Some(mut address) = regular {
            if address.ip().is_unspecified() {
                let loopback: std::net::IpAddr = if address.is_ipv4() {
                    std::net::Ipv4Addr::LOCALHOST.into()
                } else {
                    std::net::Ipv6Addr::LOCALHOST.into()
                };
                address.set_ip(loopback);
            }
            let _ = writeln!(
                out,
                "  try          curl -x http://{address} --cacert {} https://example.com",
                shell_word(&cert.to_string())
            );
        }
    } else {
        let _ = writeln!(out, "  SHA-256      {fingerprint}");
    }
    out
}

fn summary(metrics: &Metrics, uptime: Duration) -> String {
    format!(
        "Tollgate ends: {} {}, {} failed, {} in, {} out, up {}\n",
        metrics.flows_total,
        if metrics.flows_total == 1 {
            "flow"
        } else {
            "flows"
        },
        metrics.flows_failed,
        pretty_size(metrics.client_bytes_in),
        pretty_size(metrics.client_bytes_out),
        pretty_duration(uptime)
    )
}

/// `1 d 2 h`, `3 h 4 min`, `5 min 6 s`, `7.8 s`.
fn pretty_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Quotes a word for a shell where it needs it.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let shown = |seconds| pretty_duration(Duration::from_millis(seconds));
        assert_eq!(shown(7_840), "7.8 s");
        assert_eq!(shown(306_000), "5 min 6 s");
        assert_eq!(shown(11_040_000), "3 h 4 min");
        assert_eq!(shown(93_600_000), "1 d 2 h");
    }

    #[test]
    fn a_summary_is_one_line() {
        let line = summary(&Metrics::default(), Duration::from_secs(1));
        assert_eq!(
            line,
            "Tollgate ends: 0 flows, 0 failed, 0b in, 0b out, up 1.0 s\n"
        );
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(shell_word("/a/b.pem"), "/a/b.pem");
        assert_eq!(shell_word("/it's here"), r"'/it'\''s here'");
    }
}

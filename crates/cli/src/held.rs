//! `tollgate held`: what rules hold in a running proxy, and the decisions about it.

#[cfg(unix)]
pub mod desk;

use std::process::ExitCode;

use crate::args::HeldArgs;

#[cfg(not(unix))]
/// `tollgate held`.
///
/// # Errors
/// Always: it needs Unix sockets.
pub fn held(_: &HeldArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("held flows can't be decided on from the command line on this platform")
}

#[cfg(unix)]
pub use client::held;

#[cfg(unix)]
mod client {
    use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::time::{SystemTime, UNIX_EPOCH};

    use anyhow::{Context as _, bail, ensure};
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;
    use tollgate_flow::mitm::FlowReader;

    use super::desk::{Answer, HeldFlow, Request, folder, is_ours, pid_of};
    use super::{ExitCode, HeldArgs};
    use crate::args::HeldCommand;
    use crate::files::{finish, plural, say, warn};
    use crate::output::{Style, harmless, record_detail, record_json};

    /// `tollgate held`.
    ///
    /// # Errors
    /// No proxy, more than one, a flow that isn't held, or what the proxy says.
    pub fn held(args: &HeldArgs) -> anyhow::Result<ExitCode> {
        let request = match &args.command {
            None => Request::List {
                follow: args.follow,
            },
            Some(HeldCommand::List { follow }) => Request::List {
                follow: *follow || args.follow,
            },
            Some(_) if args.follow => bail!("--follow is for listing; it says nothing here"),
            Some(HeldCommand::Show { flow }) => Request::Show { flow: flow.clone() },
            Some(HeldCommand::Release { flow }) => Request::Release { flow: flow.clone() },
            Some(HeldCommand::Refuse { flow, status }) => Request::Refuse {
                flow: flow.clone(),
                status: *status,
            },
        };
        let (stream, path) = connect(args)?;
        let failed = || format!("{}: the proxy doesn't answer", path.display());
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        (&stream).write_all(&line).with_context(failed)?;
        finish(show(BufReader::new(stream), &request, args)).map(|()| ExitCode::SUCCESS)
    }

    fn show(
        answers: BufReader<UnixStream>,
        request: &Request,
        args: &HeldArgs,
    ) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        let mut any = false;
        for line in answers.lines() {
            let answer: Answer = serde_json::from_str(&line?).context("it is another version")?;
            match answer {
                Answer::Held(held) if args.json => {
                    writeln!(out, "{}", serde_json::to_string(&held)?)?;
                }
                Answer::Held(held) => writeln!(out, "{}", in_words(&held))?,
                Answer::Gone(flow) if args.json => writeln!(out, "{}", json!({ "gone": flow }))?,
                Answer::Gone(flow) => {
                    writeln!(out, "{}  is held no longer", harmless(&flow, false))?;
                }
                Answer::Listed { not_held } => {
                    if not_held > 0 {
                        let flows = plural(not_held, "flow");
                        warn(&format!("{flows} more could not be held: too many were"));
                    }
                    if !any && !args.json {
                        say("no flow is held");
                    }
                    return Ok(());
                }
                Answer::Record(file) => {
                    let file = STANDARD.decode(file)?;
                    let record = FlowReader::new(&file[..])
                        .next()
                        .context("the flow is missing")??;
                    let mut text = String::new();
                    match args.json {
                        true => record_json(&mut text, &record),
                        false => {
                            let style = Style::detect(args.no_color, out.is_terminal());
                            record_detail(&mut text, &record, style);
                        }
                    }
                    out.write_all(text.as_bytes())?;
                    return Ok(());
                }
                Answer::Decided(flows) => {
                    let word = match request {
                        Request::Refuse { .. } => "refused",
                        _ => "released",
                    };
                    match args.json {
                        true => writeln!(out, "{}", json!({ word: flows }))?,
                        false => say(&format!("{} {word}", plural(flows as u64, "flow"))),
                    }
                    return Ok(());
                }
                Answer::Failed(why) => bail!("{}", harmless(&why, false)),
            }
            any = true;
            out.flush()?;
        }
        match request {
            // The proxy has ended, and with it what it held.
            Request::List { follow: true } => Ok(()),
            _ => bail!("it went away in the middle of its answer"),
        }
    }

    fn in_words(held: &HeldFlow) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let left = (held.until - now).max(0.0);
        let text = format!(
            "{}  {} for {left:.0} s  {} {}  ({})",
            held.flow, held.on, held.method, held.url, held.rule
        );
        // What came from a network must not steer a terminal.
        harmless(&text, false).into_owned()
    }

    /// The one proxy that is meant.
    fn connect(args: &HeldArgs) -> anyhow::Result<(UnixStream, PathBuf)> {
        if let Some(path) = &args.socket {
            let stream = UnixStream::connect(path)
                .with_context(|| format!("no proxy answers at {}", path.display()))?;
            return Ok((stream, path.clone()));
        }
        let folder = folder();
        if folder.symlink_metadata().is_ok() {
            // Where anybody can make it, anybody could answer.
            is_ours(&folder)?;
        }
        let mut found: Vec<(UnixStream, PathBuf)> = Vec::new();
        for path in sockets(&folder) {
            if args.pid.is_some_and(|pid| pid_of(&path) != Some(pid)) {
                continue;
            }
            match UnixStream::connect(&path) {
                Ok(stream) => found.push((stream, path)),
                // Left by one that was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = std::fs::remove_file(&path);
                }
                Err(_) => {}
            }
        }
        let pids: Vec<String> = found
            .iter()
            .filter_map(|(_, path)| pid_of(path))
            .map(|pid| pid.to_string())
            .collect();
        ensure!(
            pids.len() < 2,
            "several proxies with rules run here: choose one with --pid {}",
            pids.join(" or --pid ")
        );
        found.pop().with_context(|| match args.pid {
            Some(pid) => format!("no proxy with rules runs as process {pid}"),
            None => format!(
                "no proxy with rules runs here (there is no socket in {})",
                folder.display()
            ),
        })
    }

    fn sockets(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| pid_of(path).is_some())
            .collect();
        paths.sort();
        paths
    }
}

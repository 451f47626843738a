//! Starts the proxy with what the command line decided, and says in one line why it could not.

use std::io::{self, ErrorKind, IsTerminal as _};
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tollgate_engine::{Handle, Proxy, ProxyBuilder, ProxyError};
use tollgate_rules::Rules;
use tollgate_screen::scan::Finding;
use tollgate_screen::{OnVerdict, Screen, Verdict};
use tollgate_store::{Capture, Store};

use crate::output::{FlowPrinter, Printer, Stream, Style, install_log};
use crate::replay::{ClientReplay, MarkReplayed};
use crate::rules::follow_file;
use crate::save::FileSink;
use crate::settings::{OpenAuthority, ScreenSettings, Settings};
use crate::trail::Trail;

/// What passes because of files, and what goes into them.
pub struct Files {
    /// Where flows are written.
    pub sinks: Vec<FileSink>,
    /// The replay whose requests are to be marked.
    pub replay: Option<Arc<ClientReplay>>,
}

/// Opens what is shown: the printing thread and the log.
///
/// # Errors
/// No thread, or directives for the log that can't be read.
pub fn open_output(settings: &Settings) -> anyhow::Result<Printer> {
    let printer = Printer::start().context("can't start a thread")?;
    let style = Style::detect(settings.output.no_color, io::stderr().is_terminal());
    install_log(printer.clone(), settings.output.verbosity, style)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    Ok(printer)
}

/// Starts the proxy. When it returns, connections are accepted. Flows are shown on `stream`, and recorded in the store.
///
/// # Errors
/// What keeps it from starting.
pub async fn start(
    settings: &Settings,
    authority: &OpenAuthority,
    printer: &Printer,
    stream: Stream,
    rules: Option<&Rules>,
    store: Option<&Store>,
    files: Files,
) -> anyhow::Result<Handle> {
    // Two descriptors for each connection: the usual 1024 are soon used up.
    tollgate_engine::raise_file_limit();
    let builder = Proxy::builder()
        .config(settings.config.clone())
        .authority(authority.authority.clone());
    let builder = match settings.rules.kill_switch() {
        Some((file, switch)) => {
            tokio::spawn(follow_file(file, switch.clone()));
            builder.interceptor(switch)
        }
        None => builder,
    };
    #[cfg(unix)]
    if let Some(rules) = rules
        && let Err(error) = crate::held::desk::open(rules)
    {
        let why = format!("`tollgate held` won't find this proxy: {error:#}");
        match rules
            .current()
            .rules()
            .iter()
            .any(|rule| rule.action() == "hold")
        {
            true => tracing::warn!("{why}"),
            // It may be asked for later, when other rules are read.
            false => tracing::info!("{why}"),
        }
    }
    let builder = match files.replay {
        Some(replay) => builder.interceptor(MarkReplayed(replay)),
        None => builder,
    };
    let audit = settings.screen.as_ref().and_then(|s| s.audit.as_ref());
    let builder = match audit.and_then(Trail::guard) {
        Some(guard) => builder.interceptor(guard),
        None => builder,
    };
    // First: everybody else sees what the rules make of the traffic.
    let builder = match rules {
        Some(rules) => builder.interceptor(rules.clone()),
        None => builder,
    };
    // Before whoever shows flows: what is shown is what became of them.
    let builder = match &settings.screen {
        Some(screen) => {
            let mut interceptor = new_screen(screen)
                .on_verdict(on_verdict(screen))
                .ledger(Arc::clone(&screen.ledger));
            if let Some(rules) = rules {
                interceptor = interceptor.person(Arc::new(rules.holds().clone()));
            }
            builder.interceptor(interceptor)
        }
        None => builder,
    };
    // Behind our own screen: what that refuses is shown to nobody.
    let external = settings.external.start(&tokio::runtime::Handle::current());
    let builder = external.iter().fold(builder, |builder, scanner| {
        builder.interceptor(scanner.clone())
    });
    let mut builder = show_flows(builder, settings, printer, stream);
    if let Some(store) = store {
        // The last ones: they record what the others made of the traffic.
        builder = builder.interceptor(Capture::new(store.sink(), settings.store.limits));
    }
    for sink in files.sinks {
        builder = builder.interceptor(Capture::new(sink, crate::save::LIMITS));
    }
    let proxy = builder.build().map_err(explain)?;
    proxy.start().await.map_err(explain)
}

/// The screen that the command line asks for.
pub fn new_screen(settings: &ScreenSettings) -> Screen {
    let screen = Screen::new(settings.scanner.clone(), settings.config.clone());
    match &settings.policy {
        Some(policy) => screen.policy(policy.in_force.clone()),
        None => screen,
    }
}

/// Puts verdicts into the log and, if there is one, the audit log.
pub fn on_verdict(screen: &ScreenSettings) -> OnVerdict {
    let audit = screen.audit.clone();
    Arc::new(move |verdict: &Verdict| {
        report(verdict);
        if let Some(audit) = &audit {
            audit.record(verdict);
        }
    })
}

/// Puts a verdict into the log, with what would allow what it refuses.
pub fn report(verdict: &Verdict) {
    let word = match verdict.refused {
        true => "refused",
        false => "seen",
    };
    if let Some(rule) = &verdict.rule {
        // What a rule of a policy says stands in one line, whatever was found.
        let is_finding = |found: &Finding| *found.rule == *verdict.reason;
        let place = match verdict.findings.iter().any(is_finding) {
            true => format!(" in {}", verdict.place),
            false => String::new(),
        };
        let allow = match &*verdict.allow {
            "" => String::new(),
            allow => format!("; to let it pass: {allow}"),
        };
        tracing::warn!(
            flow = %verdict.flow,
            target = verdict.target,
            rule = &**rule,
            action = verdict.action.as_str(),
            "{word}: {}{place}{allow}",
            verdict.reason,
        );
        return;
    }
    if verdict.findings.is_empty() {
        tracing::warn!(
            flow = %verdict.flow,
            target = verdict.target,
            "{word}: {}: {}",
            verdict.place,
            verdict.reason
        );
    }
    for finding in &verdict.findings {
        tracing::warn!(
            flow = %verdict.flow,
            target = verdict.target,
            severity = finding.severity.as_str(),
            "{word}: {} in {} ({}); to let it pass: {}",
            finding.rule,
            verdict.place,
            finding.excerpt,
            finding.allow_hint()
        );
    }
}

/// Nothing to show: no interceptor, and no cost.
fn show_flows(
    builder: ProxyBuilder,
    settings: &Settings,
    printer: &Printer,
    stream: Stream,
) -> ProxyBuilder {
    let output = &settings.output;
    let printer = printer.clone();
    match (output.json, output.flow_detail) {
        (true, _) => {
            let lines = FlowPrinter::json(printer, stream, output.process);
            builder.interceptor(lines.only(settings.files.filter.clone()))
        }
        (false, 0) => builder,
        (false, detail) => {
            let is_terminal = match stream {
                Stream::Stdout => io::stdout().is_terminal(),
                Stream::Stderr => io::stderr().is_terminal(),
            };
            let style = Style::detect(output.no_color, is_terminal);
            let lines = FlowPrinter::lines(printer, stream, style, detail);
            let lines = lines.only(settings.files.filter.clone());
            builder.interceptor(if is_terminal { lines.cut_urls() } else { lines })
        }
    }
}

/// Writes the verdicts that wait: the proxy has ended.
pub fn close_audit(settings: &Settings) {
    if let Some(audit) = settings
        .screen
        .as_ref()
        .and_then(|screen| screen.audit.as_ref())
    {
        audit.close();
    }
}

fn explain(error: ProxyError) -> anyhow::Error {
    match error {
        ProxyError::Bind { address, error } => match error.kind() {
            ErrorKind::AddrInUse => {
                anyhow!("{address} is in use by another program; choose another port with -p")
            }
            ErrorKind::PermissionDenied => {
                anyhow!("no permission to listen on {address}; choose a port from 1024 on with -p")
            }
            ErrorKind::AddrNotAvailable => {
                anyhow!("can't listen on {address}: this machine doesn't have that address")
            }
            _ => anyhow!("can't listen on {address}: {error}"),
        },
        other => anyhow!(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let error = explain(ProxyError::Bind {
            address: "127.0.0.1:8080".to_owned(),
            error: ErrorKind::AddrInUse.into(),
        });
        assert_eq!(
            error.to_string(),
            "127.0.0.1:8080 is in use by another program; choose another port with -p"
        );
    }
}

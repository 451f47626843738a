//! `tollgate ca` and `tollgate trust`.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use tollgate_ca::trust::{self, Outcome, Report};
use tollgate_ca::{Authority, KeyKind};

use crate::args::{AuthorityArgs, CaCommand, ExportFormat, KeyType, TrustCommand};
use crate::mitm_options::MitmOptions;
use crate::output::timestamp;
use crate::settings::{AuthoritySource, OpenAuthority, Purpose};

/// Looks at, exports or replaces the authority.
///
/// # Errors
/// No authority, or files that can't be used.
pub fn ca(command: &CaCommand) -> anyhow::Result<ExitCode> {
    match command {
        CaCommand::Show { authority } => {
            let opened = existing(authority)?;
            print(&description(&opened))?;
        }
        CaCommand::Export {
            authority,
            format,
            output,
        } => export(&existing(authority)?.authority, *format, output.as_ref())?,
        CaCommand::Rotate {
            authority,
            key_type,
        } => rotate(authority, *key_type)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Changes or shows who trusts the authority. The code says whether everything was done; for `status`, whether anybody does.
///
/// # Errors
/// No authority, or files that can't be used.
pub fn trust(command: &TrustCommand) -> anyhow::Result<ExitCode> {
    let (report, success) = match command {
        TrustCommand::Install { authority } => {
            let opened = source(authority)?.open()?;
            let cert = opened
                .cert_file
                .as_ref()
                .context("the authority has no certificate file")?;
            let report = trust::install(&opened.authority, cert);
            let success = report.is_complete();
            (report, success)
        }
        TrustCommand::Uninstall { authority } => {
            let report = trust::uninstall(&existing(authority)?.authority);
            let success = report.is_complete();
            (report, success)
        }
        TrustCommand::Status { authority } => {
            let report = trust::status(&existing(authority)?.authority);
            let success = report
                .stores
                .iter()
                .any(|(_, outcome)| *outcome == Outcome::Present);
            (report, success)
        }
    };
    print(&report_text(&report))?;
    Ok(if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn source(args: &AuthorityArgs) -> anyhow::Result<AuthoritySource> {
    AuthoritySource::new(args, &MitmOptions::default(), Purpose::Serve)
}

/// Opens the authority, but makes none: showing one must not bring it into being.
fn existing(args: &AuthorityArgs) -> anyhow::Result<OpenAuthority> {
    let source = source(args)?;
    if let AuthoritySource::Folder { dir, naming, .. } = &source {
        let file = naming.key_file(dir);
        if !file.exists() {
            bail!(
                "there is no authority in {} yet; the first start of `tollgate` makes it",
                dir.display()
            );
        }
    }
    source.open()
}

fn description(opened: &OpenAuthority) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        out.push_str(&format!("{name:<12} {value}\n"));
    };
    if let Some(cert) = &opened.cert_file {
        row("certificate", &cert.display().to_string());
    }
    row("SHA-256", &opened.authority.fingerprint_hex());
    row("valid until", &timestamp(opened.authority.not_after()));
    out
}

fn export(
    authority: &Authority,
    format: ExportFormat,
    output: Option<&PathBuf>,
) -> anyhow::Result<()> {
    let bytes = match format {
        ExportFormat::Pem => authority.cert_pem().into_bytes(),
        ExportFormat::Der => authority.cert_der().to_vec(),
        ExportFormat::P12 => authority.cert_p12()?,
    };
    match output {
        Some(path) => {
            fs::write(path, bytes).with_context(|| format!("can't write {}", path.display()))
        }
        None if format != ExportFormat::Pem && io::stdout().is_terminal() => {
            bail!("that is no text for a terminal: name a file with -o")
        }
        None => Ok(io::stdout().write_all(&bytes)?),
    }
}

fn rotate(args: &AuthorityArgs, key_type: KeyType) -> anyhow::Result<()> {
    let AuthoritySource::Folder {
        dir,
        naming,
        mut params,
    } = source(args)?
    else {
        bail!("only an authority in a folder can be rotated");
    };
    params.key = match key_type {
        KeyType::P256 => KeyKind::P256,
        KeyType::Rsa2048 => KeyKind::Rsa2048,
        KeyType::Rsa3072 => KeyKind::Rsa3072,
        KeyType::Rsa4096 => KeyKind::Rsa4096,
    };
    let authority = Authority::rotate(&dir, naming, &params)?;
    print(&description(&OpenAuthority {
        authority: authority.into(),
        created: true,
        cert_file: Some(naming.cert_file(&dir)),
    }))?;
    print("Clients must be told to trust this certificate: `tollgate trust install` here.\n")
}

fn report_text(report: &Report) -> String {
    let mut out = String::new();
    for (store, outcome) in &report.stores {
        let text = match outcome {
            Outcome::Installed => "installed".to_owned(),
            Outcome::Removed => "removed".to_owned(),
            Outcome::Present => "trusted".to_owned(),
            Outcome::Absent => "not there".to_owned(),
            Outcome::Manual { command, reason } => {
                format!("not done: {reason}\n  run it yourself: {command}")
            }
            other => format!("{other:?}"),
        };
        out.push_str(&format!("{store}: {text}\n"));
    }
    if report.stores.is_empty() {
        out.push_str("no trust store was found on this machine\n");
    }
    out
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}

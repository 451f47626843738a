//! Where verdicts are kept, and who is told: the audit log, a syslog server, a web service.

mod format;
mod remote;
mod syslog;
mod webhook;

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tollgate_screen::Verdict;
use tollgate_screen::audit::{AuditGuard, AuditKey, AuditLog, AuditOptions, WhenFull};

use self::format::Format;
use self::remote::Remote;
use self::syslog::{Event, Syslog, SyslogAt};
use self::webhook::{Webhook, WebhookUrl};
use crate::args::{AuditArgs, AuditFormatArg, AuditFullArg};

/// Where the secret of a webhook is looked for without a flag.
pub const SECRET: &str = "TOLLGATE_AUDIT_WEBHOOK_SECRET";

/// Takes verdicts. Cloning gives the same one.
#[derive(Clone)]
pub struct Trail(Arc<Sinks>);

struct Sinks {
    log: Option<AuditLog>,
    stop: bool,
    syslog: Option<Remote<Event>>,
    format: Format,
    webhook: Option<Remote<Value>>,
}

impl Trail {
    /// Opens what the arguments name; `None` if that is nothing.
    ///
    /// # Errors
    /// A file, or a key, that can't be used.
    pub fn open(args: &AuditArgs) -> anyhow::Result<Option<Self>> {
        let stop = args.audit_full == Some(AuditFullArg::Stop);
        let log = match &args.audit_log {
            Some(path) => {
                let mut options = AuditOptions::default();
                options.key = match &args.audit_key {
                    Some(key) => Some(AuditKey::open(key)?),
                    None => None,
                };
                if stop {
                    options.when_full = WhenFull::Stop;
                }
                Some(AuditLog::with(path, options)?)
            }
            None => None,
        };
        let syslog = match &args.audit_syslog {
            Some(at) => {
                let at: SyslogAt = at.parse().with_context(|| format!("--audit-syslog {at}"))?;
                Some(Remote::start(Syslog::new(at)).context("can't start a thread")?)
            }
            None => None,
        };
        let format = match args.audit_format {
            Some(AuditFormatArg::Cef) => Format::Cef,
            Some(AuditFormatArg::Json) | None => Format::Json,
        };
        let webhook = match &args.audit_webhook {
            Some(url) => {
                // The URL may hold a token: it is not repeated.
                let url: WebhookUrl = url.parse().context("--audit-webhook")?;
                let secret = secret(args.audit_webhook_secret.as_deref())?;
                let webhook = Webhook::new(url, secret.as_deref())?;
                Some(Remote::start(webhook).context("can't start a thread")?)
            }
            None => None,
        };
        if log.is_none() && syslog.is_none() && webhook.is_none() {
            return Ok(None);
        }
        Ok(Some(Self(Arc::new(Sinks {
            log,
            stop,
            syslog,
            format,
            webhook,
        }))))
    }

    /// The same for a command without a screen, where there is nothing to keep.
    ///
    /// # Errors
    /// An argument that would do nothing.
    pub fn without_screen(args: &AuditArgs) -> anyhow::Result<()> {
        let named = [
            (args.audit_log.is_some(), "--audit-log"),
            (args.audit_syslog.is_some(), "--audit-syslog"),
            (args.audit_webhook.is_some(), "--audit-webhook"),
        ];
        for (is_there, name) in named {
            ensure!(
                !is_there,
                "{name} is for the verdicts of a screen: add --screen enforce or --screen monitor"
            );
        }
        Ok(())
    }

    /// Takes a verdict. Never waits.
    pub fn record(&self, verdict: &Verdict) {
        if let Some(log) = &self.0.log {
            log.record(verdict);
        }
        if let Some(syslog) = &self.0.syslog {
            syslog.send(Event::of(verdict, self.0.format));
        }
        if let Some(webhook) = &self.0.webhook {
            webhook.send(format::json_value(verdict));
        }
    }

    /// What lets no traffic pass while the log can't be written, if that was asked for.
    pub fn guard(&self) -> Option<AuditGuard> {
        let log = self.0.log.as_ref().filter(|_| self.0.stop)?;
        Some(log.guard())
    }

    /// Whether traffic is to stand still.
    pub fn is_stopped(&self) -> bool {
        self.0.log.as_ref().is_some_and(AuditLog::is_stopped)
    }

    /// Writes what waits, and delivers it as far as that is possible within seconds.
    pub fn close(&self) {
        if let Some(log) = &self.0.log {
            log.close();
        }
        if let Some(syslog) = &self.0.syslog {
            syslog.close();
        }
        if let Some(webhook) = &self.0.webhook {
            webhook.close();
        }
    }
}

impl fmt::Debug for Trail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trail")
            .field("log", &self.0.log.is_some())
            .field("syslog", &self.0.syslog.is_some())
            .field("webhook", &self.0.webhook.is_some())
            .finish()
    }
}

/// The secret of a webhook: `env:NAME` or `file:PATH`, without the line break at its end.
fn secret(source: Option<&str>) -> anyhow::Result<Option<Vec<u8>>> {
    let secret = match source.map(|source| (source, source.split_once(':'))) {
        None => match std::env::var_os(SECRET) {
            Some(secret) => secret.into_encoded_bytes(),
            None => return Ok(None),
        },
        Some((source, Some(("env", name)))) => std::env::var_os(name)
            .with_context(|| format!("{source}: not in the environment"))?
            .into_encoded_bytes(),
        Some((source, Some(("file", path)))) => {
            std::fs::read(path).with_context(|| source.to_owned())?
        }
        Some(_) => bail!("--audit-webhook-secret takes env:NAME or file:PATH"),
    };
    let secret = secret.trim_ascii_end().to_vec();
    ensure!(!secret.is_empty(), "the secret of the webhook is empty");
    Ok(Some(secret))
}

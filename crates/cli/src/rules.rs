//! What changes traffic: the rules of the command line, their reload, and `tollgate rules`.

use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tollgate_flow::Direction;
use tollgate_rules::{Explained, KillSwitch, MitmOptions, RuleSet, Rules};

use crate::args::{RulesArgs, RulesCommand};
use crate::files;
use crate::settings::{ScreenPolicy, Settings};

/// How often files of rules are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The rules of a command line.
#[derive(Clone, Debug)]
pub struct RulesSettings {
    files: Vec<PathBuf>,
    options: MitmOptions,
    kill_switch: Option<PathBuf>,
}

impl RulesSettings {
    /// What flags and `--set` say together: lists are joined, and of the rest a flag wins.
    pub fn new(args: &RulesArgs, set: &MitmOptions) -> Self {
        let joined = |set: &[String], flags: &[String]| [set, flags].concat();
        let mut options = MitmOptions::default();
        options.block_list = joined(&set.block_list, &args.block_list);
        options.map_remote = joined(&set.map_remote, &args.map_remote);
        options.map_local = joined(&set.map_local, &args.map_local);
        options.modify_headers = joined(&set.modify_headers, &args.modify_headers);
        options.modify_body = joined(&set.modify_body, &args.modify_body);
        options.stickycookie = args.stickycookie.clone().or(set.stickycookie.clone());
        options.stickyauth = args.stickyauth.clone().or(set.stickyauth.clone());
        options.anticache = args.anticache || (set.anticache && !args.no_anticache);
        options.anticomp = args.anticomp || (set.anticomp && !args.no_anticomp);
        Self {
            files: args.rules.clone(),
            options,
            kill_switch: args.kill_switch.clone(),
        }
    }

    /// Reads the rules; `None` where there are none, and no file that may get some.
    ///
    /// # Errors
    /// The first rule that can't be used.
    pub fn open(&self) -> anyhow::Result<Option<Rules>> {
        let set = RuleSet::load(&self.files, &self.options)?;
        Ok((!set.is_empty() || !self.files.is_empty()).then(|| Rules::new(set)))
    }

    /// The switch, where there is one, as its file says now.
    pub fn kill_switch(&self) -> Option<(PathBuf, KillSwitch)> {
        let file = self.kill_switch.clone()?;
        let switch = KillSwitch::default();
        switch.set(file.exists());
        Some((file, switch))
    }
}

/// What is read again when its files change.
pub struct Reload {
    settings: RulesSettings,
    rules: Rules,
    policy: Option<ScreenPolicy>,
}

impl Reload {
    /// Reads the rules; `None` where there is nothing that may change. Where a policy may ask a person, there are rules,
    /// if empty ones: the table of those that wait is theirs.
    ///
    /// # Errors
    /// The first rule that can't be used.
    pub fn open(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let policy = settings.screen.as_ref().and_then(|s| s.policy.clone());
        let rules = match settings.rules.open()? {
            None if policy.is_some() => Some(Rules::new(RuleSet::default())),
            rules => rules,
        };
        Ok(rules.map(|rules| Self {
            settings: settings.rules.clone(),
            rules,
            policy,
        }))
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = self.rules.current().files().to_vec();
        files.extend(self.policy.iter().map(|policy| policy.file.clone()));
        files
    }

    /// Puts rules and policy in force anew whenever one of their files changes: all of them, or, where one is wrong,
    /// none.
    pub async fn keep_current(self) -> Infallible {
        let mut seen = changed_at(&self.files());
        loop {
            tokio::time::sleep(LOOK).await;
            let now = changed_at(&self.files());
            if now == seen {
                continue;
            }
            let (settings, policy) = (self.settings.clone(), self.policy.clone());
            // Injected credentials may come from a command.
            let loading = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
                let set = RuleSet::load(&settings.files, &settings.options)?;
                Ok((set, policy.map(|policy| policy.load()).transpose()?))
            });
            match loading.await {
                Ok(Ok((set, policy))) => {
                    tracing::info!("rules reloaded: {} in force", set.rules().len());
                    self.rules.replace(set);
                    if let (Some(own), Some(policy)) = (&self.policy, policy) {
                        tracing::info!("policy reloaded: {} rules in force", policy.len());
                        own.in_force.replace(policy);
                    }
                    seen = changed_at(&self.files());
                }
                Ok(Err(error)) => {
                    tracing::error!("rules not reloaded, the old ones stay in force: {error}");
                    seen = now;
                }
                Err(_) => seen = now,
            }
        }
    }
}

/// Turns a switch as its file comes and goes.
pub async fn follow_file(file: PathBuf, switch: KillSwitch) -> Infallible {
    loop {
        let on = file.exists();
        if on != switch.is_on() {
            switch.set(on);
            match on {
                true => tracing::warn!("{} is there: everything is refused", file.display()),
                false => tracing::warn!("{} is gone: traffic passes again", file.display()),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reloads while `work` goes on.
pub async fn while_reloading<T>(reload: Option<Reload>, work: impl Future<Output = T>) -> T {
    let reloading = async {
        match reload {
            Some(reload) => reload.keep_current().await,
            None => std::future::pending::<Infallible>().await,
        }
    };
    tokio::select! {
        result = work => result,
        never = reloading => match never {},
    }
}

/// When each file was changed last, and its length.
fn changed_at(files: &[PathBuf]) -> Vec<Option<(SystemTime, u64)>> {
    files
        .iter()
        .map(|file| {
            let data = std::fs::metadata(file).ok()?;
            Some((data.modified().ok()?, data.len()))
        })
        .collect()
}

/// `tollgate rules`.
///
/// # Errors
/// A rule that can't be used, or flows that can't be read.
pub fn rules(command: &RulesCommand) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut code = ExitCode::SUCCESS;
    let result = match command {
        RulesCommand::Check { files, json } => check(files, *json, &mut out),
        RulesCommand::Test {
            file,
            flow,
            from,
            filter,
            json,
        } => {
            let set = RuleSet::load(std::slice::from_ref(file), &MitmOptions::default())?;
            let filter = filter.as_deref().map(files::filter_of).transpose()?;
            files::each_record(flow, *from, filter.as_ref(), |record| {
                let found = set.explain(record);
                match json {
                    true => explained_json(&mut out, record, &found)?,
                    false => explained_text(&mut out, record, &found)?,
                }
                Ok(())
            })
            .map(|read| code = read)
        }
    };
    files::finish(result.and_then(|()| Ok(out.flush()?)))?;
    Ok(code)
}

fn check(files: &[PathBuf], json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let set = RuleSet::load(files, &MitmOptions::default())?;
    for rule in set.rules() {
        if json {
            let line = json!({
                "name": rule.name(),
                "place": rule.place().to_string(),
                "action": rule.action(),
                "when": rule.when(),
            });
            writeln!(out, "{line}")?;
        } else {
            let when = rule.when().unwrap_or("every flow");
            writeln!(out, "{:16} {when}  ({})", rule.action(), rule.name())?;
        }
    }
    if !json {
        let rules = set.rules().len();
        let s = if rules == 1 { "" } else { "s" };
        writeln!(out, "{rules} rule{s}, all fine")?;
    }
    Ok(())
}

fn title(record: &tollgate_flow::record::Record) -> String {
    match record.as_http() {
        Some(http) => format!(
            "{} {}",
            String::from_utf8_lossy(&http.request.method),
            http.request.pretty_url()
        ),
        None => format!("{:?}", record.flow_type()),
    }
}

fn explained_text(
    out: &mut impl Write,
    record: &tollgate_flow::record::Record,
    found: &[Explained],
) -> io::Result<()> {
    writeln!(out, "{}", title(record))?;
    if found.is_empty() {
        writeln!(out, "    no rule matches")?;
    }
    for rule in found {
        let on = match rule.on {
            Direction::Request => "",
            Direction::Response => " on the response",
        };
        let ends = if rule.ends { ", and ends the list" } else { "" };
        writeln!(
            out,
            "    {} ({}){on}: {}{ends}",
            rule.action, rule.rule, rule.does
        )?;
    }
    Ok(())
}

fn explained_json(
    out: &mut impl Write,
    record: &tollgate_flow::record::Record,
    found: &[Explained],
) -> io::Result<()> {
    let rules: Vec<_> = found
        .iter()
        .map(|rule| {
            json!({
                "rule": rule.rule,
                "action": rule.action,
                "on": match rule.on {
                    Direction::Request => "request",
                    Direction::Response => "response",
                },
                "does": rule.does,
                "ends": rule.ends,
            })
        })
        .collect();
    writeln!(
        out,
        "{}",
        json!({ "id": record.id, "flow": title(record), "rules": rules })
    )
}

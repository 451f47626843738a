//! What changes traffic: the rules of the command line, their reload, and `tollgate rules`.

use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::json;
use tollgate_flow::Direction;
use tollgate_rules::replay::ServerReplay;
use tollgate_rules::{Explained, KillSwitch, MitmOptions, RuleError, RuleSet, Rules};

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
        // What has no flag stays as `--set` says.
        let mut options = set.clone();
        options.block_list = joined(&set.block_list, &args.block_list);
        options.map_remote = joined(&set.map_remote, &args.map_remote);
        options.map_local = joined(&set.map_local, &args.map_local);
        options.modify_headers = joined(&set.modify_headers, &args.modify_headers);
        options.modify_body = joined(&set.modify_body, &args.modify_body);
        options.stickycookie = args.stickycookie.clone().or(options.stickycookie);
        options.stickyauth = args.stickyauth.clone().or(options.stickyauth);
        options.anticache = args.anticache || (set.anticache && !args.no_anticache);
        options.anticomp = args.anticomp || (set.anticomp && !args.no_anticomp);
        Self {
            files: args.rules.clone(),
            options,
            kill_switch: args.kill_switch.clone(),
        }
    }

    /// Reads the rules; `None` where there are none, and no file that may get some. `replay` answers among them.
    ///
    /// # Errors
    /// The first rule that can't be used.
    pub fn open(&self, replay: Option<&Arc<ServerReplay>>) -> anyhow::Result<Option<Rules>> {
        let set = self.load(replay)?;
        Ok((!set.is_empty() || !self.files.is_empty()).then(|| Rules::new(set)))
    }

    fn load(&self, replay: Option<&Arc<ServerReplay>>) -> Result<RuleSet, RuleError> {
        let set = RuleSet::load(&self.files, &self.options)?;
        Ok(match replay {
            Some(replay) => set.server_replay(Arc::clone(replay)),
            None => set,
        })
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
    /// What answers from recordings stays, with what it has left.
    replay: Option<Arc<ServerReplay>>,
    rules: Rules,
    policy: Option<ScreenPolicy>,
}

impl Reload {
    /// Reads the rules and recordings that answer; `None` where there is nothing that may change. Where a policy may ask
    /// a person, there are rules, if empty ones: the table of those that wait is theirs.
    ///
    /// # Errors
    /// The first rule that can't be used.
    pub fn open(settings: &Settings) -> anyhow::Result<Option<Self>> {
        let policy = settings.screen.as_ref().and_then(|s| s.policy.clone());
        let replay = settings.files.server_replay.as_ref();
        let replay = replay
            .map(|replay| replay.open())
            .transpose()?
            .map(Arc::new);
        let rules = match settings.rules.open(replay.as_ref())? {
            None if policy.is_some() => Some(Rules::new(RuleSet::default())),
            rules => rules,
        };
        Ok(rules.map(|rules| Self {
            settings: settings.rules.clone(),
            replay,
            rules,
            policy,
        }))
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Puts rules and policy in force anew when their files change: all that has changed, or, where something is wrong,
    /// nothing until that changes. What has not changed goes on as it is, with what its budgets have counted.
    pub async fn keep_current(self) -> Infallible {
        let policy_file: Vec<PathBuf> = self.policy.iter().map(|p| p.file.clone()).collect();
        let mut rules_seen = Seen::new(self.rules.current().files());
        let mut policy_seen = Seen::new(&policy_file);
        let (mut rules_are_old, mut policy_is_old) = (false, false);
        loop {
            tokio::time::sleep(LOOK).await;
            // Looked at before they are read: what changes meanwhile is read the next time.
            let rules_now = Seen::new(self.rules.current().files());
            let policy_now = Seen::new(&policy_file);
            if rules_now == rules_seen && policy_now == policy_seen {
                continue;
            }
            rules_are_old |= rules_now != rules_seen;
            policy_is_old |= policy_now != policy_seen;
            (rules_seen, policy_seen) = (rules_now, policy_now);
            let settings = rules_are_old.then(|| self.settings.clone());
            let policy = self.policy.clone().filter(|_| policy_is_old);
            let replay = self.replay.clone();
            // Injected credentials may come from a command.
            let loading = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
                let set = settings.map(|s| s.load(replay.as_ref()));
                Ok((set.transpose()?, policy.map(|p| p.load()).transpose()?))
            });
            match loading.await {
                Ok(Ok((set, policy))) => {
                    if let Some(set) = set {
                        tracing::info!("rules reloaded: {} in force", set.rules().len());
                        rules_seen = rules_seen.of(set.files());
                        self.rules.replace(set);
                    }
                    if let (Some(own), Some(policy)) = (&self.policy, policy) {
                        tracing::info!("policy reloaded: {} rules in force", policy.len());
                        own.in_force.replace(policy);
                    }
                    (rules_are_old, policy_is_old) = (false, false);
                }
                Ok(Err(error)) => {
                    tracing::error!("rules not reloaded, the old ones stay in force: {error}");
                }
                Err(_) => {}
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
#[derive(Debug, PartialEq)]
struct Seen(Vec<(PathBuf, Stamp)>);

type Stamp = Option<(SystemTime, u64)>;

impl Seen {
    fn new(files: &[PathBuf]) -> Self {
        Self(Vec::new()).of(files)
    }

    /// The same of other files; those that were not among these are looked at now.
    fn of(&self, files: &[PathBuf]) -> Self {
        let stamp = |file: &PathBuf| {
            let known = self.0.iter().find(|(known, _)| known == file);
            known.map_or_else(|| changed_at(file), |(_, stamp)| *stamp)
        };
        Self(files.iter().map(|f| (f.clone(), stamp(f))).collect())
    }
}

fn changed_at(file: &Path) -> Stamp {
    let data = std::fs::metadata(file).ok()?;
    Some((data.modified().ok()?, data.len()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_while_it_is_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other] = ["rules.toml", "answer.json"].map(|name| dir.path().join(name));
        std::fs::write(&file, "half").unwrap();
        std::fs::write(&other, "{}").unwrap();
        let before = Seen::new(std::slice::from_ref(&file));
        std::fs::write(&file, "half and half").unwrap();
        let both = [file, other];
        let after = before.of(&both);
        assert_ne!(after, Seen::new(&both));
        assert_eq!(after.0[1], Seen::new(&both).0[1]);
    }
}

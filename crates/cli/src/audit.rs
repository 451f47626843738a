//! `tollgate audit`: logs of verdicts.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde_json::{Value, json};
use tollgate_screen::audit::{
    AuditKey, AuditPublicKey, Verified, set_aside, verify, verify_signed,
};

use crate::args::AuditCommand;
use crate::files::{line_to_stdout, plural};
use crate::os::strftime;
use crate::output::{harmless, timestamp};

/// How often a log is looked at for new lines.
const LOOK: Duration = Duration::from_millis(200);
/// A longer line is none of a log.
const MAX_LINE: u64 = 1 << 20;

/// `tollgate audit`.
///
/// # Errors
/// A file that can't be opened.
pub fn audit(command: &AuditCommand) -> anyhow::Result<ExitCode> {
    match command {
        AuditCommand::Verify {
            file,
            public_key,
            json,
        } => check(file, public_key.as_deref(), *json),
        AuditCommand::Key { file } => key(file),
        AuditCommand::Show {
            file,
            follow,
            json,
            rule,
            since,
        } => {
            let since = since.and_then(|since| SystemTime::now().checked_sub(since));
            let wanted = Wanted {
                rule: rule.clone(),
                since_ms: since.map_or(0, millis),
                json: *json,
            };
            show(file, *follow, &wanted)
        }
    }
}

fn check(file: &Path, public_key: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let files: anyhow::Result<Vec<File>> = all_files(file)
        .iter()
        .map(|path| File::open(path).with_context(|| format!("can't open {}", path.display())))
        .collect();
    let verified = match public_key {
        Some(key) => verify_signed(files?, &AuditPublicKey::open(key)?),
        None => verify(files?),
    };
    let signed = public_key.is_some();
    let (line, code) = match verified {
        Ok(whole) => {
            // Who asks for a proof, and gets none for a single line, should notice.
            let unproven = signed && whole.checkpoints == 0;
            let code = match unproven {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
            let line = match json {
                true => verified_json(&whole, signed).to_string(),
                false => verified_text(&whole, signed),
            };
            (line, code)
        }
        Err(broken) if json => (
            json!({ "whole": false, "line": broken.line, "why": broken.why }).to_string(),
            ExitCode::FAILURE,
        ),
        Err(broken) => (format!("broken: {broken}"), ExitCode::FAILURE),
    };
    line_to_stdout(&line)?;
    Ok(code)
}

fn verified_json(whole: &Verified, signed: bool) -> Value {
    let mut value = json!({
        "whole": true,
        "lines": whole.lines,
        "first": whole.first,
        "last_hash": whole.last_hash,
        "dropped": whole.dropped,
        "checkpoints": whole.checkpoints,
    });
    if let (true, Value::Object(fields)) = (signed, &mut value) {
        fields.insert("unsigned".to_owned(), json!(whole.unsigned));
    }
    value
}

fn verified_text(whole: &Verified, signed: bool) -> String {
    let mut line = format!(
        "whole: {} from number {}, the last hash is {}",
        plural(whole.lines, "line"),
        whole.first,
        whole.last_hash
    );
    if whole.dropped > 0 {
        let _ = write!(line, "; {} dropped", plural(whole.dropped, "verdict"));
    }
    if signed {
        let _ = match (whole.checkpoints, whole.unsigned) {
            (0, _) => write!(line, "; nothing of it is signed"),
            (_, 0) => write!(line, "; all of it is signed"),
            (_, unsigned) => write!(line, "; signed up to its last {}", plural(unsigned, "line")),
        };
    }
    line
}

/// Makes a key unless it is there, and prints its public key.
fn key(file: &Path) -> anyhow::Result<ExitCode> {
    let key = match file.exists() {
        true => AuditKey::open(file)?,
        false => AuditKey::create(file)?,
    };
    line_to_stdout(key.public().to_pem().trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// A log's files, the oldest first.
fn all_files(file: &Path) -> Vec<PathBuf> {
    let mut paths = set_aside(file);
    paths.push(file.to_owned());
    paths
}

/// Which lines are shown, and how.
struct Wanted {
    rule: Option<String>,
    since_ms: u64,
    json: bool,
}

fn show(file: &Path, follow: bool, wanted: &Wanted) -> anyhow::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut last = 0;
    let mut current = None;
    for path in all_files(file) {
        let mut log = Log::open(&path).with_context(|| format!("can't open {}", path.display()))?;
        log.read(&mut last, wanted, &mut out)?;
        current = Some(log);
    }
    out.flush()?;
    if !follow {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        sleep(LOOK);
        if let Some(log) = &mut current {
            log.read(&mut last, wanted, &mut out)?;
        }
        // It may have been set aside, and others with it: what was shown is known by its number.
        let replaced = current.as_ref().is_none_or(|log| log.was_replaced(file));
        if replaced {
            for path in all_files(file) {
                let Ok(mut log) = Log::open(&path) else {
                    continue;
                };
                log.read(&mut last, wanted, &mut out)?;
                current = Some(log);
            }
        }
        out.flush()?;
    }
}

/// A file that is read as it grows.
struct Log {
    input: BufReader<File>,
    /// The beginning of a line whose end isn't there yet.
    begun: Vec<u8>,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            input: BufReader::new(File::open(path)?),
            begun: Vec::new(),
        })
    }

    /// Shows the lines that have come, but those up to the number `last`.
    fn read(
        &mut self,
        last: &mut u64,
        wanted: &Wanted,
        out: &mut impl io::Write,
    ) -> io::Result<()> {
        loop {
            let mut limited = io::Read::take(&mut self.input, MAX_LINE);
            limited.read_until(b'\n', &mut self.begun)?;
            if self.begun.last() != Some(&b'\n') && (self.begun.len() as u64) < MAX_LINE {
                return Ok(());
            }
            let line = std::mem::take(&mut self.begun);
            let value: Value = serde_json::from_slice(&line).unwrap_or_default();
            let seq = value.get("seq").and_then(Value::as_u64).unwrap_or(0);
            if seq <= *last {
                continue;
            }
            *last = seq;
            if !wanted.wants(&value) {
                continue;
            }
            if wanted.json {
                out.write_all(&line)?;
            } else {
                writeln!(out, "{}", text_of(&value))?;
            }
        }
    }

    fn was_replaced(&self, path: &Path) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let own = self.input.get_ref().metadata();
            let there = fs::metadata(path);
            match (own, there) {
                (Ok(own), Ok(there)) => own.ino() != there.ino() || own.dev() != there.dev(),
                _ => true,
            }
        }
        #[cfg(not(unix))]
        {
            let own = self.input.get_ref().metadata().map_or(0, |own| own.len());
            fs::metadata(path).map_or(true, |there| there.len() < own)
        }
    }
}

impl Wanted {
    fn wants(&self, line: &Value) -> bool {
        let time = line.get("time_ms").and_then(Value::as_u64).unwrap_or(0);
        let by_rule = match &self.rule {
            None => line.get("checkpoint").is_none() || self.json,
            Some(rule) => findings(line).any(|finding| text(finding, "rule") == rule),
        };
        by_rule && time >= self.since_ms
    }
}

fn findings(line: &Value) -> impl Iterator<Item = &Value> {
    line.get("findings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `2026-11-26 15:04:05 refused api.example:443, the request body: aws-access-key-id (AKIA…, 20 characters)`
fn text_of(line: &Value) -> String {
    let time = line.get("time_ms").and_then(Value::as_u64).unwrap_or(0);
    let time = UNIX_EPOCH + Duration::from_millis(time);
    let time = strftime("%Y-%m-%d %H:%M:%S", time).unwrap_or_else(|| timestamp(time));
    let refused = line
        .get("refused")
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let word = if refused { "refused" } else { "seen" };
    let mut found: Vec<String> = findings(line)
        .map(|finding| format!("{} ({})", text(finding, "rule"), text(finding, "excerpt")))
        .collect();
    if found.is_empty() {
        found.push(text(line, "reason").to_owned());
    }
    let mut out = format!(
        "{time} {word:<7} {}, {}: {}",
        text(line, "target"),
        text(line, "place"),
        found.join("; ")
    );
    if let Some(dropped) = line.get("dropped").and_then(Value::as_u64) {
        let _ = write!(out, " (before it, {} dropped)", plural(dropped, "verdict"));
    }
    harmless(&out, false).into_owned()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people_plays_no_tricks_on_a_terminal() {
        let line = json!({
            "time_ms": 1_000_000_000_000_u64, "target": "a\u{1b}[2J:1", "place": "the URL", "refused": true,
            "reason": "x", "findings": [{"rule": "x", "excerpt": "e\n"}], "dropped": 2,
        });
        let text = text_of(&line);
        assert!(text.starts_with("2001-09-0"), "{text}");
        assert!(
            text.ends_with(" refused a␛[2J:1, the URL: x (e␊) (before it, 2 verdicts dropped)"),
            "{text}"
        );
    }
}

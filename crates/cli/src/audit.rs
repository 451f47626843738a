//! `tollgate audit`: logs of verdicts.

use std::fs::File;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;
use tollgate_screen::audit::{set_aside, verify};

use crate::args::AuditCommand;
use crate::files::{line_to_stdout, plural};

/// `tollgate audit`.
///
/// # Errors
/// A file that can't be opened.
pub fn audit(command: &AuditCommand) -> anyhow::Result<ExitCode> {
    let AuditCommand::Verify { file, json } = command;
    let mut paths = set_aside(file);
    paths.push(file.clone());
    let files: anyhow::Result<Vec<File>> = paths
        .iter()
        .map(|path| File::open(path).with_context(|| format!("can't open {}", path.display())))
        .collect();
    let (line, code) = match verify(files?) {
        Ok(whole) if *json => (
            json!({
                "whole": true,
                "lines": whole.lines,
                "first": whole.first,
                "last_hash": whole.last_hash,
                "dropped": whole.dropped,
            })
            .to_string(),
            ExitCode::SUCCESS,
        ),
        Ok(whole) => {
            let mut line = format!(
                "whole: {} from number {}, the last hash is {}",
                plural(whole.lines, "line"),
                whole.first,
                whole.last_hash
            );
            if whole.dropped > 0 {
                line.push_str(&format!("; {} dropped", plural(whole.dropped, "verdict")));
            }
            (line, ExitCode::SUCCESS)
        }
        Err(broken) if *json => (
            json!({ "whole": false, "line": broken.line, "why": broken.why }).to_string(),
            ExitCode::FAILURE,
        ),
        Err(broken) => (format!("broken: {broken}"), ExitCode::FAILURE),
    };
    line_to_stdout(&line)?;
    Ok(code)
}

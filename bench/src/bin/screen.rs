//! What the scanners find in labelled text, what they find where nothing is, and what they cost: one Markdown table.
//!
//! ```sh
//! bench/screen CORPORA     # or TOLLGATE_CORPORA=CORPORA bench/screen
//! bench/screen --speed     # without corpora: the figures about time alone
//! bench/screen --speed verdict    # of these, one part
//! ```
//!
//! CORPORA is a folder of files with one JSON object per line (`id`, `kind`, `text`, `label` = secret, attack or benign;
//! `group`, `attack` and `expected_verdict` where a source has them), plain or gzip. The table in `corpora.rs` says which
//! files count, and for what. They are not part of the repository: their licences differ, and many lines look like live
//! credentials.
//!
//! Throughput is by processor time of one thread. Percentiles are of single operations by the clock, other work on the
//! machine included.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the program's output"
)]

#[path = "screen/corpora.rs"]
mod corpora;
#[path = "screen/material.rs"]
mod material;
#[path = "screen/speed.rs"]
mod speed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tollgate_screen::scan::Scanner;

const USAGE: &str = "usage: bench/screen CORPORA | --speed [PART]

CORPORA (or the environment variable TOLLGATE_CORPORA) is a folder with labelled text: files of JSON lines with `id`,
`kind` (outbound, inbound, command), `text` and `label` (secret, attack, benign). It is not part of the repository.
The sources are public: agent-egress-bench, the examples of noseyparker's rules, agentdojo, CyberSecEval's prompts,
atomic-red-team, the pages of tldr; bench/README.md says which lines count.
--speed prints what the scanners cost, for which the repository has what it takes; with one of scanning, stream, event,
verdict, request and memory, that part alone.";

/// One row of the table.
pub(crate) struct Row {
    what: String,
    figure: String,
    wanted: &'static str,
    note: String,
}

impl Row {
    fn print(&self) {
        let Row {
            what,
            figure,
            wanted,
            note,
        } = self;
        println!("| {what} | {figure} | {wanted} | {note} |");
    }
}

fn main() -> ExitCode {
    let argument = std::env::args_os().nth(1);
    let speed_only = argument.as_ref().is_some_and(|first| first == "--speed");
    let folder = argument
        .filter(|_| !speed_only)
        .or_else(|| std::env::var_os("TOLLGATE_CORPORA"))
        .map(PathBuf::from);
    let part = std::env::args_os()
        .nth(2)
        .filter(|_| speed_only)
        .map(|part| part.to_string_lossy().into_owned());
    let known = part
        .as_deref()
        .is_none_or(|part| speed::PARTS.contains(&part));
    if folder.is_none() && !speed_only || !known {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    match table(folder.filter(|_| !speed_only).as_deref(), part.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench/screen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table(folder: Option<&Path>, part: Option<&str>) -> Result<(), Box<dyn std::error::Error>> {
    let scanner = Scanner::builtin();
    println!("| what | figure | wanted | of what |");
    println!("|---|---:|---|---|");
    if let Some(folder) = folder {
        for row in corpora::score(&scanner, folder)? {
            row.print();
        }
    }
    for row in speed::rows(&scanner, folder, part)? {
        row.print();
    }
    Ok(())
}

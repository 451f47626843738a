//! Runs one case so often as it is told, and does nothing else: `icount.sh` counts its instructions.
//!
//! `icount` lists the cases, a line each: name and how often to run it. `icount NAME TIMES` runs one.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use tollgate_bench::{CASES, Operation};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.as_slice() {
        [] => list(),
        [name, times] => run(name, times),
        _ => Err("usage: icount [NAME TIMES]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // Nothing is left to be done when even that can't be said.
            let _ = writeln!(io::stderr(), "icount: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<(), String> {
    let mut out = io::stdout().lock();
    CASES
        .iter()
        .try_for_each(|case| writeln!(out, "{} {}", case.name, case.count))
        .map_err(|error| error.to_string())
}

fn run(name: &str, times: &str) -> Result<(), String> {
    let case = CASES.iter().find(|case| case.name == name);
    let case = case.ok_or_else(|| format!("there is no case {name:?}"))?;
    let times: u64 = times
        .parse()
        .map_err(|error| format!("{times:?}: {error}"))?;
    let mut operation = (case.prepare)();
    // What is done once, at first use, isn't counted either.
    operation();
    measured(operation, times);
    Ok(())
}

/// The only function inside which instructions are counted: `icount.sh` knows it by name.
#[inline(never)]
fn measured(mut operation: Operation, times: u64) {
    for _ in 0..times {
        operation();
    }
}

//! `tollgate scan`: the scanners on files, on standard input, and line by line for other programs.

mod flows;
mod jsonl;
mod known;
mod report;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tollgate_screen::scan::{Finding, Kind, RulePack, Scanner};

/// Something was found.
const FOUND: u8 = 1;
/// Something went wrong.
const FAILED: u8 = 2;
/// How many folders deep a walk goes.
const MAX_DEPTH: usize = 64;
/// At most this many findings are kept for one report; the rest is counted.
const MAX_FINDINGS: usize = 100_000;

/// `tollgate scan`.
#[derive(Debug, Args)]
pub struct ScanArgs {
    /// Files and folders; `-` is standard input, and so is nothing.
    #[arg(value_name = "FILES")]
    files: Vec<PathBuf>,
    /// Read one JSON object per line from standard input and answer each with one line.
    ///
    /// An object has `id` (given back), `kind` (outbound, inbound or command) and either `text` or `body_b64`, with
    /// `content_encoding` if those bytes are compressed (gzip, br, zstd, deflate). The answer has `id` and `findings`, and
    /// `error` if the line could not be scanned. `truncated` is true if it doesn't say all: only a part was read (damaged or
    /// too much when decoded, a script over 64 KiB), or there are over 10 000 findings, and `more_findings` is how many were
    /// left out. Answers come in order, each as soon as its line was read. The exit code is 0 if every line was answered,
    /// whatever was found.
    #[arg(long, conflicts_with_all = ["files", "json", "sarif", "kind"], verbatim_doc_comment)]
    jsonl: bool,
    /// Read recorded flows from a flow file or HAR, `-` for standard input, and look where the proxy does with --screen: at
    /// URLs, headers and bodies of requests, at calls of tools in models' answers, at messages of WebSockets.
    ///
    /// What the proxy would refuse is found. Can be given more than once.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "jsonl", "kind"])]
    flows: Vec<PathBuf>,
    /// Which way the text goes; decides which rules look at it.
    #[arg(long, value_enum, default_value_t = KindArg::Outbound)]
    kind: KindArg,
    /// Print one JSON object per finding.
    #[arg(long, conflicts_with = "sarif")]
    json: bool,
    /// Print a SARIF 2.1.0 report.
    #[arg(long)]
    sarif: bool,
    /// Add a rule pack in gitleaks' TOML; can be given more than once.
    #[arg(long, value_name = "FILE")]
    rules: Vec<PathBuf>,
    /// Look for values that must not leave, in all their encodings: `env:NAME` (a variable), `file:PATH` (one a line, or
    /// NAME=value) or `cmd:COMMAND` (what it prints, the same way). Can be given more than once.
    #[arg(long, value_name = "SOURCE", verbatim_doc_comment)]
    known_secrets: Vec<String>,
    /// Like --known-secrets, for values that are planted to see who takes them.
    #[arg(long, value_name = "SOURCE")]
    canary: Vec<String>,
    /// Never report this rule; can be given more than once.
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
}

/// [`Kind`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArg {
    /// What leaves the machine: a request, a prompt, a tool call's arguments.
    Outbound,
    /// What comes in: a tool result, a fetched page, a model's answer.
    Inbound,
    /// A shell command.
    Command,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Outbound => Kind::Outbound,
            KindArg::Inbound => Kind::Inbound,
            KindArg::Command => Kind::Command,
        }
    }
}

/// Runs it. Exit code: 0 nothing found, 1 something found, 2 an error.
pub fn scan(args: &ScanArgs) -> ExitCode {
    match run(args) {
        Ok(code) => code,
        // Whoever reads our output has seen enough.
        Err(error) if super::files::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            super::fail(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

fn run(args: &ScanArgs) -> anyhow::Result<ExitCode> {
    let scanner = scanner(args)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.jsonl {
        jsonl::answer(&scanner, io::stdin().lock(), &mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let kind = args.kind.into();
    let mut results = Vec::new();
    let mut left_out = 0_u64;
    let mut failed = false;
    let mut take = |name: String, outcome: io::Result<Vec<Finding>>| match outcome {
        Ok(findings) => {
            for finding in findings {
                if results.len() < MAX_FINDINGS {
                    results.push((name.clone(), finding));
                } else {
                    left_out += 1;
                }
            }
        }
        Err(error) => {
            super::fail(&format!("{name}: {error}"));
            failed = true;
        }
    };
    for path in &args.flows {
        let scanned = flows::scan(scanner.clone(), path, &mut take);
        if let Err(error) = scanned {
            take(
                path.display().to_string(),
                Err(io::Error::other(format!("{error:#}"))),
            );
        }
    }
    if args.files.is_empty() && args.flows.is_empty() {
        take("-".to_owned(), read(&scanner, kind, io::stdin().lock()));
    }
    for path in &args.files {
        if path.as_os_str() == "-" {
            take("-".to_owned(), read(&scanner, kind, io::stdin().lock()));
        } else {
            walk(path, 0, &mut |path, readable| {
                let outcome = readable
                    .and_then(|()| File::open(path))
                    .and_then(|file| read(&scanner, kind, file));
                take(path.display().to_string(), outcome);
            });
        }
    }
    if args.sarif {
        report::sarif(&mut out, &results)?;
    } else if args.json {
        report::json(&mut out, &results)?;
    } else {
        report::text(&mut out, &results)?;
    }
    out.flush()?;
    if left_out > 0 {
        super::fail(&format!("{left_out} more findings are not shown"));
    }
    Ok(if failed {
        ExitCode::from(FAILED)
    } else {
        code(!results.is_empty())
    })
}

fn code(found: bool) -> ExitCode {
    ExitCode::from(if found { FOUND } else { 0 })
}

fn scanner(args: &ScanArgs) -> anyhow::Result<Scanner> {
    build(&args.rules, &args.known_secrets, &args.canary, &args.allow)
}

/// A scanner with the built-in rules, these packs, and these values to look for.
///
/// # Errors
/// A pack or a source that can't be read.
pub fn build(
    rules: &[PathBuf],
    known_secrets: &[String],
    canary: &[String],
    allow: &[String],
) -> anyhow::Result<Scanner> {
    let mut builder = Scanner::builder();
    for path in rules {
        let name = path.display().to_string();
        let toml = std::fs::read_to_string(path).with_context(|| name.clone())?;
        builder = builder.pack(RulePack::gitleaks(&toml, &name)?);
    }
    for rule in allow {
        builder = builder.allow(rule);
    }
    builder = builder.known(known::collect(known_secrets, canary)?);
    let scanner = builder.build()?;
    let ids: Vec<String> = scanner.rules().map(|rule| rule.id.to_string()).collect();
    for rule in allow {
        if ids.contains(rule) {
            continue;
        }
        match tollgate_rules::closest(rule, ids.iter().map(String::as_str)) {
            Some(meant) => bail!("there is no rule '{rule}' to allow; did you mean '{meant}'?"),
            None => bail!(
                "there is no rule '{rule}' to allow; docs/reference/screening-rules.md lists them"
            ),
        }
    }
    Ok(scanner)
}

fn read(scanner: &Scanner, kind: Kind, mut from: impl Read) -> io::Result<Vec<Finding>> {
    let mut state = scanner.start(kind);
    let mut findings = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if n == 0 {
            break;
        }
        scanner.feed(
            &mut state,
            buffer.get(..n).unwrap_or_default(),
            &mut findings,
        );
        findings.truncate(MAX_FINDINGS + 1);
    }
    scanner.finish(&mut state, &mut findings);
    findings.sort();
    Ok(findings)
}

/// Files below a path, in order of their names, without following links below it.
fn walk(path: &Path, depth: usize, each: &mut impl FnMut(&Path, io::Result<()>)) {
    let folder = if depth == 0 {
        path.is_dir()
    } else {
        path.symlink_metadata().is_ok_and(|data| data.is_dir())
    };
    if !folder {
        let link = depth > 0 && path.symlink_metadata().is_ok_and(|data| !data.is_file());
        if !link {
            each(path, Ok(()));
        }
        return;
    }
    if depth >= MAX_DEPTH {
        let why = format!("folders deeper than {MAX_DEPTH} are not scanned");
        return each(path, Err(io::Error::other(why)));
    }
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut below: Vec<_> = match entries {
        Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
        Err(error) => return each(path, Err(error)),
    };
    below.sort();
    for entry in below {
        walk(&entry, depth + 1, each);
    }
}

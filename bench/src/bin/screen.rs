//! What the scanners find in labelled text, what they find where nothing is, and how fast: one
//! Markdown table.
//!
//! ```sh
//! cargo run --release -p tollgate-bench --bin screen -- CORPORA [TEXT ...]
//! ```
//!
//! CORPORA (or `TOLLGATE_CORPORA`) is a folder of files with one JSON object per line (`kind`, `text`,
//! `label` = secret, attack or benign; `group` and `expected_verdict` where a source has them), plain
//! or gzip. The corpora are not part of the repository. Each TEXT is a file of clean text, for the
//! throughput.
#![expect(clippy::print_stdout, reason = "the table is the program's output")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use tollgate_screen::scan::{Kind, Scanner};

#[derive(Deserialize)]
struct Line {
    kind: String,
    text: String,
    label: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    expected_verdict: String,
    #[serde(default)]
    attack: String,
}

/// Groups of which no finding is asked.
const NOT_COUNTED: [&str; 4] = ["identifier", "hashed", "contested", "cloud"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let corpora = std::env::var_os("TOLLGATE_CORPORA")
        .map(PathBuf::from)
        .or_else(|| arguments.next())
        .ok_or("usage: screen CORPORA [TEXT ...]")?;
    let scanner = Scanner::builtin();

    println!("| corpus | rows | found | of | 95 % |");
    println!("|---|---|---:|---:|---|");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&corpora)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.to_string_lossy().contains(".jsonl"))
        .collect();
    files.sort();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split(".jsonl").next().unwrap_or_default().to_owned();
        for ((label, group), (found, of)) in score(&scanner, file)? {
            let (low, high) = wilson(found, of);
            println!("| {name} | {label} {group} | {found} | {of} | {low:.1}–{high:.1} % |");
        }
    }
    for file in arguments {
        throughput(&scanner, &file)?;
    }
    Ok(())
}

type Scores = BTreeMap<(String, String), (u32, u32)>;

fn score(scanner: &Scanner, file: &Path) -> Result<Scores, Box<dyn std::error::Error>> {
    let raw = std::fs::read(file)?;
    let mut text = String::new();
    if raw.starts_with(&[0x1f, 0x8b]) {
        flate2::read::MultiGzDecoder::new(raw.as_slice()).read_to_string(&mut text)?;
    } else {
        text = String::from_utf8(raw)?;
    }
    let mut scores = Scores::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line)?;
        if NOT_COUNTED.contains(&line.group.as_str()) {
            continue;
        }
        let kind = Kind::parse(&line.kind).ok_or("a kind that is not known")?;
        let found = !scanner.scan(kind, line.text.as_bytes()).is_empty();
        let group = [&line.expected_verdict, &line.attack, &line.group]
            .into_iter()
            .find(|name| !name.is_empty())
            .cloned()
            .unwrap_or_default();
        let entry = scores.entry((line.label, group)).or_default();
        entry.0 += u32::from(found);
        entry.1 += 1;
    }
    Ok(scores)
}

/// The 95 % interval of Wilson, in per cent.
fn wilson(found: u32, of: u32) -> (f64, f64) {
    let (n, z) = (f64::from(of.max(1)), 1.96_f64);
    let p = f64::from(found) / n;
    let middle = p + z * z / (2.0 * n);
    let spread = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let below = 1.0 + z * z / n;
    (
        100.0 * (middle - spread) / below,
        100.0 * (middle + spread) / below,
    )
}

fn throughput(scanner: &Scanner, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let text = std::fs::read(file)?;
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for cut in [64, 512, 4096, 64 << 10, text.len().max(1)] {
        let mut best = f64::INFINITY;
        let mut findings = Vec::new();
        for _ in 0..3 {
            findings.clear();
            let start = Instant::now();
            let mut state = scanner.start(Kind::Outbound);
            for piece in text.chunks(cut) {
                scanner.feed(&mut state, piece, &mut findings);
            }
            scanner.finish(&mut state, &mut findings);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let speed = text.len() as f64 / 1e6 / best;
        println!(
            "| {name} | pieces of {cut} bytes: {speed:.0} MB/s | {} | | |",
            findings.len()
        );
    }
    Ok(())
}

//! `tollgate flows`: what a proxy has recorded.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use tollgate_store::{
    Flows, Followed, Place, Query, Store, StoreConfig, StoreError, Summary, Words,
};

use crate::args::{FlowsArgs, FlowsCommand, FlowsFolder, FlowsQuery};
use crate::files::{Sink, filter_of, finish, line_to_stdout, output_format, plural, say, warn};
use crate::output::{
    Style, pretty_size, record_detail, record_detail_json, summary_json, summary_line,
};
use crate::store::folder;

/// How many flows are listed where nobody says.
const LISTED: usize = 50;

/// How long one wait for new flows lasts, until the output is looked after again.
const WAIT: Duration = Duration::from_secs(1);

/// `tollgate flows`.
///
/// # Errors
/// No recorded flows, a wrong expression, or what the store says.
pub fn flows(args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    let Some(command) = &args.command else {
        return match &args.export {
            Some(_) if args.json => bail!("--export writes a file, and --json prints"),
            Some(path) => export(args, path),
            None => finish(list(args)).map(|()| ExitCode::SUCCESS),
        };
    };
    ensure!(
        args.number.is_none()
            && !args.follow
            && args.export.is_none()
            && args.query.since.is_none(),
        "--number, --follow, --export and --since before a command are for listing; they say nothing there"
    );
    match command {
        FlowsCommand::Show { flow } => show(flow, &args.folder, args.json, args.no_color),
        FlowsCommand::Delete { query, all, older } => {
            delete(query, *all, *older, &args.folder, args.json)
        }
        FlowsCommand::Stats => stats(&args.folder, args.json),
    }
}

fn open(at: &FlowsFolder) -> anyhow::Result<Flows> {
    let folder = folder(at.store_dir.as_deref(), at.data_dir.as_deref())?;
    Ok(Flows::open(&folder)?)
}

/// What the arguments ask for.
fn query_of(args: &FlowsQuery) -> anyhow::Result<Query> {
    let mut query = Query::default();
    let text = args.query.join(" ");
    if text.trim_start().starts_with(['~', '!', '(']) {
        query.filter = Some(filter_of(&text)?);
    } else if !text.trim().is_empty() {
        let words = Words::new(&text).with_context(|| format!("there is no word in '{text}'"))?;
        query.words = Some(words);
    }
    if let Some(since) = args.since {
        query.since = SystemTime::now().checked_sub(since);
    }
    Ok(query)
}

fn list(args: &FlowsArgs) -> anyhow::Result<()> {
    let flows = open(&args.folder)?;
    let mut query = query_of(&args.query)?;
    query.limit = match args.number.unwrap_or(LISTED) {
        0 => None,
        number => Some(number),
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let style = Style::detect(args.no_color, io::stdout().is_terminal());
    let mut line = String::new();
    let mut show = |out: &mut dyn Write, row: &Summary| {
        line.clear();
        if args.json {
            summary_json(&mut line, row);
        } else {
            summary_line(&mut line, row, style);
        }
        out.write_all(line.as_bytes())
    };
    // What comes after this is for `follow`.
    let seen = flows.last_number()?;
    query.before = Some(seen.saturating_add(1));
    if query.limit.is_none() {
        query.oldest_first = true;
        flows.each::<anyhow::Error>(&query, &mut |row| Ok(show(&mut out, &row)?))?;
    } else {
        // The newest are chosen; the newest of them is shown last, where the eye is.
        let mut rows = flows.list(&query)?;
        rows.sort_by_key(|row| row.seq);
        for row in &rows {
            show(&mut out, row)?;
        }
        if rows.is_empty() && !args.follow && !args.json {
            say("no flows");
        }
    }
    out.flush()?;
    if !args.follow {
        return Ok(());
    }
    query.limit = Some(1);
    let mut follow = flows.follow(seen);
    loop {
        match follow.next(WAIT)? {
            Some(Followed::Flow(row)) => {
                query.after = Some(row.seq - 1);
                query.before = Some(row.seq + 1);
                for row in flows.list(&query)? {
                    show(&mut out, &row)?;
                }
            }
            Some(Followed::Gap { missing }) if args.json => {
                writeln!(out, "{}", json!({"missing": missing}))?;
            }
            Some(Followed::Gap { missing }) => {
                writeln!(out, "… {} missing", plural(missing, "flow"))?;
            }
            None => {}
        }
        out.flush()?;
    }
}

fn export(args: &FlowsArgs, path: &Path) -> anyhow::Result<ExitCode> {
    let flows = open(&args.folder)?;
    let mut query = query_of(&args.query)?;
    let format = output_format(path, None)?;
    let mut sink = Sink::open(path, format, None)?;
    let mut broken: u64 = 0;
    let mut write = |row: &Summary| -> anyhow::Result<()> {
        match flows.read(row) {
            Ok(Some(record)) => sink.write(&record)?,
            Ok(None) => {}
            Err(error @ StoreError::Damaged { .. }) => {
                broken += 1;
                warn(&format!("flow {}: {error}", row.seq));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    };
    match args.number {
        None | Some(0) => {
            query.oldest_first = true;
            flows.each::<anyhow::Error>(&query, &mut |row| write(&row))?;
        }
        Some(number) => {
            query.limit = Some(number);
            let mut rows = flows.list(&query)?;
            rows.sort_by_key(|row| row.seq);
            for row in &rows {
                write(row)?;
            }
        }
    }
    let written = sink.close()?;
    if path != Path::new("-") {
        say(&format!(
            "{}, {}, to {}",
            plural(written.flows, "flow"),
            pretty_size(written.bytes),
            path.display()
        ));
    }
    if written.not_http > 0 {
        let flows = plural(written.not_http, "flow");
        say(&format!("{flows} left out: HAR has a place for HTTP only"));
    }
    Ok(match broken {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn show(flow: &str, at: &FlowsFolder, json: bool, no_color: bool) -> anyhow::Result<ExitCode> {
    let flows = open(at)?;
    // Ids have 32 digits, so that a short number is a number.
    let by_number = flow.parse().ok().filter(|_| flow.len() < 16);
    let row = match by_number {
        Some(number) => match flows.by_number(number)? {
            Some(row) => Some(row),
            None => flows.by_id(flow)?,
        },
        None => flows.by_id(flow)?,
    };
    let row = row.with_context(|| format!("there is no flow {flow}"))?;
    let record = flows.read(&row)?;
    let record = record.with_context(|| format!("flow {flow} was deleted meanwhile"))?;
    let mut text = String::new();
    if json {
        record_detail_json(&mut text, &row, &record);
    } else {
        let style = Style::detect(no_color, io::stdout().is_terminal());
        record_detail(&mut text, &record, style);
    }
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    finish(written.map_err(anyhow::Error::from))?;
    Ok(ExitCode::SUCCESS)
}

fn delete(
    args: &FlowsQuery,
    all: bool,
    older: Option<Duration>,
    at: &FlowsFolder,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut query = query_of(args)?;
    query.oldest_first = true;
    if let Some(older) = older {
        query.until = SystemTime::now().checked_sub(older);
    }
    let is_narrow = query.filter.is_some()
        || query.words.is_some()
        || query.since.is_some()
        || query.until.is_some();
    ensure!(
        is_narrow || all,
        "say which flows to delete: an expression, words, --older, --since, or --all"
    );
    if is_narrow && all {
        bail!("--all deletes every flow: leave it out, or the rest");
    }
    let folder = folder(at.store_dir.as_deref(), at.data_dir.as_deref())?;
    // Missing flows are an error, and no reason to make a store.
    let flows = Flows::open(&folder)?;
    let mut config = StoreConfig::new(Place::Disk(folder));
    // It is opened for its tidying only: what it keeps is not this command's to decide.
    config.max_age = None;
    config.max_bytes = u64::MAX;
    let deleted = match Store::open(config) {
        Ok(store) => {
            let deleted = store.flows().delete(&query)?;
            // As often as there is something left to overwrite.
            for _ in 0..=deleted / 64 {
                store.tidy();
            }
            deleted
        }
        // The proxy that records there does it.
        Err(StoreError::InUse(_)) => flows.delete(&query)?,
        Err(error) => return Err(error.into()),
    };
    if json {
        line_to_stdout(&json!({"deleted": deleted}).to_string())?;
    } else {
        say(&format!("{} deleted", plural(deleted, "flow")));
    }
    Ok(ExitCode::SUCCESS)
}

fn stats(at: &FlowsFolder, json: bool) -> anyhow::Result<ExitCode> {
    let usage = open(at)?.usage()?;
    if json {
        let line = json!({
            "flows": usage.flows,
            "first": usage.first,
            "last": usage.last,
            "segments": usage.segments,
            "segment_bytes": usage.segment_bytes,
            "database_bytes": usage.database_bytes,
        });
        line_to_stdout(&line.to_string())?;
    } else {
        line_to_stdout(&format!(
            "{}, {} in {}, {} in the database",
            plural(usage.flows, "flow"),
            pretty_size(usage.segment_bytes),
            plural(usage.segments, "segment"),
            pretty_size(usage.database_bytes)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

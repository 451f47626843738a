//! `tollgate convert`, `export` and `filter`: recorded flows in files.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tempfile::NamedTempFile;
use tollgate_flow::export::{ExportOptions, export as export_flow};
use tollgate_flow::filter::{Filter, FilterOptions};
use tollgate_flow::har::{HarWriter, read_har};
use tollgate_flow::mitm::{FlowReader, FlowWriter};
use tollgate_flow::record::Record;

use crate::args::{ConvertArgs, ExportArgs, FileFormat, FilterArgs};
use crate::output::{Style, pretty_size, record_json, record_lines};

/// `tollgate convert`.
///
/// # Errors
/// What keeps the input from being read at all, or the output from being written.
pub fn convert(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let filter = args.filter.as_deref().map(filter_of).transpose()?;
    let to = output_format(&args.output, args.to)?;
    let mut report = Report::default();
    let mut sink = Sink::open(&args.output, to, Some(&args.input))?;
    let input = Input::open(&args.input, args.from)?;
    input.for_each(&mut report, |record| {
        if filter.as_ref().is_none_or(|filter| filter.matches(&record)) {
            sink.write(&record)?;
        }
        Ok(true)
    })?;
    let written = sink.close()?;
    if args.json {
        let line = json!({
            "flows": written.flows,
            "bytes": written.bytes,
            "not_http": written.not_http,
            "broken": report.broken,
        });
        line_to_stdout(&line.to_string())?;
    } else if args.output != Path::new("-") {
        let flows = plural(written.flows, "flow");
        say(&format!(
            "{flows}, {}, to {}",
            pretty_size(written.bytes),
            args.output.display()
        ));
    }
    if written.not_http > 0 {
        let flows = plural(written.not_http, "flow");
        say(&format!("{flows} left out: HAR has a place for HTTP only"));
    }
    Ok(report.exit_code())
}

/// `tollgate export`.
///
/// # Errors
/// As for [`convert`].
pub fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let filter = args.filter.as_deref().map(filter_of).transpose()?;
    let options = ExportOptions {
        preserve_original_ip: args.preserve_original_ip,
    };
    let mut report = Report::default();
    let mut out = BufWriter::new(io::stdout().lock());
    let mut exported: u64 = 0;
    let mut refused: u64 = 0;
    let input = Input::open(&args.file, args.from)?;
    let result = input.for_each(&mut report, |record| {
        if filter
            .as_ref()
            .is_some_and(|filter| !filter.matches(&record))
        {
            return Ok(true);
        }
        let text = match export_flow(&record, args.format, &options) {
            Ok(text) => text,
            Err(error) => {
                refused += 1;
                warn(&format!("{}: {error}", record.id));
                return Ok(true);
            }
        };
        if args.json {
            let (id, format) = (&record.id, args.format.as_str());
            let line = match String::from_utf8(text) {
                Ok(text) => json!({"id": id, "format": format, "text": text}),
                Err(error) => {
                    let bytes = STANDARD.encode(error.as_bytes());
                    json!({"id": id, "format": format, "base64": bytes})
                }
            };
            writeln!(out, "{line}")?;
        } else {
            // As mitmproxy puts them between messages.
            if exported > 0 && !args.format.is_command() {
                out.write_all(b"\r\n\r\n")?;
            }
            out.write_all(&text)?;
            if args.format.is_command() {
                out.write_all(b"\n")?;
            }
        }
        exported += 1;
        Ok(!args.first)
    });
    finish(result.and_then(|()| Ok(out.flush()?)))?;
    if exported == 0 && refused == 0 {
        say("no flow matches");
    }
    Ok(match exported {
        0 => ExitCode::FAILURE,
        _ => report.exit_code(),
    })
}

/// `tollgate filter`.
///
/// # Errors
/// As for [`convert`].
pub fn filter(args: &FilterArgs) -> anyhow::Result<ExitCode> {
    let filter = filter_of(&args.expression)?;
    let mut report = Report::default();
    let mut matched: u64 = 0;
    let input = Input::open(&args.file, args.from)?;
    if let Some(path) = &args.output {
        let mut sink = Sink::open(path, output_format(path, args.to)?, Some(&args.file))?;
        input.for_each(&mut report, |record| {
            if filter.matches(&record) {
                sink.write(&record)?;
            }
            Ok(true)
        })?;
        let written = sink.close()?;
        if path != Path::new("-") {
            say(&format!(
                "{} to {}",
                plural(written.flows, "flow"),
                path.display()
            ));
        }
        return Ok(report.exit_code());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let style = Style::detect(args.no_color, io::stdout().is_terminal());
    let mut text = String::new();
    let result = input.for_each(&mut report, |record| {
        if !filter.matches(&record) {
            return Ok(true);
        }
        matched += 1;
        if args.count {
            return Ok(true);
        }
        text.clear();
        if args.json {
            record_json(&mut text, &record);
        } else {
            record_lines(&mut text, &record, style);
        }
        out.write_all(text.as_bytes())?;
        Ok(true)
    });
    let result = result.and_then(|()| {
        if args.count {
            writeln!(out, "{matched}")?;
        }
        Ok(out.flush()?)
    });
    finish(result)?;
    Ok(report.exit_code())
}

/// Compiles an expression; an error shows it with a caret below the column.
pub(crate) fn filter_of(expression: &str) -> anyhow::Result<Filter> {
    let options = FilterOptions {
        case_sensitive: std::env::var_os("MITMPROXY_CASE_SENSITIVE_FILTERS")
            .is_some_and(|v| v == "1"),
    };
    Filter::with_options(expression, &options)
        .map_err(|error| anyhow::anyhow!("filter {expression:?}, {error}"))
}

/// Whoever reads our output has seen enough: no error.
pub(crate) fn finish(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Calls with every flow of a file that matches a filter; the exit code says whether the file was whole.
///
/// # Errors
/// What keeps the file from being read at all; or what `with` says.
pub(crate) fn each_record(
    path: &Path,
    from: Option<FileFormat>,
    filter: Option<&Filter>,
    mut with: impl FnMut(&Record) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    while_records(path, from, filter, |record| with(record).map(|()| true))
}

/// The same for as long as it is told to go on.
///
/// # Errors
/// As above.
pub(crate) fn while_records(
    path: &Path,
    from: Option<FileFormat>,
    filter: Option<&Filter>,
    mut with: impl FnMut(&Record) -> anyhow::Result<bool>,
) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    Input::open(path, from)?.for_each(&mut report, |record| {
        match filter.is_none_or(|filter| filter.matches(&record)) {
            true => with(&record),
            false => Ok(true),
        }
    })?;
    Ok(report.exit_code())
}

/// What was wrong with the input beside what was good.
#[derive(Default)]
struct Report {
    broken: u64,
    cut: bool,
}

impl Report {
    fn exit_code(&self) -> ExitCode {
        if self.broken > 0 || self.cut {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        }
    }
}

struct Input {
    name: String,
    reader: BufReader<Box<dyn Read>>,
    format: FileFormat,
    size: Option<u64>,
    read: Rc<Cell<u64>>,
}

impl Input {
    /// Opens a file, or standard input for `-`. Without a format given, the first bytes tell it.
    fn open(path: &Path, format: Option<FileFormat>) -> anyhow::Result<Self> {
        let read = Rc::new(Cell::new(0));
        let (name, inner, size): (_, Box<dyn Read>, _) = if path == Path::new("-") {
            if io::stdin().is_terminal() {
                bail!("no file is given, and standard input is a terminal");
            }
            ("standard input".to_owned(), Box::new(io::stdin()), None)
        } else {
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("can't open {name}"))?;
            let metadata = file
                .metadata()
                .with_context(|| format!("can't read {name}"))?;
            if metadata.is_dir() {
                bail!("{name} is a folder");
            }
            let size = metadata.is_file().then_some(metadata.len());
            (name, Box::new(file), size)
        };
        let counting: Box<dyn Read> = Box::new(Counting {
            inner,
            read: Rc::clone(&read),
        });
        let mut reader = BufReader::with_capacity(64 * 1024, counting);
        let format = match format {
            Some(format) => format,
            None => {
                let start = reader
                    .fill_buf()
                    .with_context(|| format!("can't read {name}"))?;
                let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
                match start.trim_ascii_start().first() {
                    Some(b'{') => FileFormat::Har,
                    _ => FileFormat::Mitm,
                }
            }
        };
        Ok(Self {
            name,
            reader,
            format,
            size,
            read,
        })
    }

    /// Calls with every flow, until it answers false. What is broken is told and counted.
    fn for_each(
        self,
        report: &mut Report,
        mut with: impl FnMut(Record) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let name = self.name;
        let mut progress = Progress::new(self.size, self.read);
        let mut result = Ok(());
        let mut flows: u64 = 0;
        let mut take = |record: Record, progress: &mut Progress| {
            flows += 1;
            progress.at(flows);
            match with(record) {
                Ok(more) => more,
                Err(error) => {
                    result = Err(error);
                    false
                }
            }
        };
        match self.format {
            FileFormat::Mitm => {
                let mut reader = FlowReader::new(self.reader);
                for next in reader.by_ref() {
                    match next {
                        Ok(record) => {
                            if !take(record, &mut progress) {
                                break;
                            }
                        }
                        Err(error) => {
                            progress.clear();
                            // Nothing was good: that is no damage, but the wrong file.
                            if error.flows == 0 && !error.is_about_one_flow() {
                                bail!("{name}: {error}");
                            }
                            report.broken += 1;
                            report.cut |= !error.is_about_one_flow();
                            warn(&format!("{name}: {error}"));
                        }
                    }
                }
                let unknown: Vec<_> = reader.unknown_keys().collect();
                if !unknown.is_empty() {
                    progress.clear();
                    warn(&format!(
                        "{name}: keys that Tollgate doesn't know were passed over: {}",
                        unknown.join(", ")
                    ));
                }
            }
            FileFormat::Har => {
                let read = read_har(self.reader, |entry| match entry {
                    Ok(record) => take(record, &mut progress),
                    Err(error) => {
                        progress.clear();
                        report.broken += 1;
                        warn(&format!("{name}: {error}"));
                        true
                    }
                });
                if let Err(error) = read {
                    progress.clear();
                    if flows == 0 {
                        bail!("{name}: {error}");
                    }
                    report.broken += 1;
                    report.cut = true;
                    warn(&format!("{name}: {error}"));
                }
            }
        }
        progress.clear();
        result
    }
}

struct Counting {
    inner: Box<dyn Read>,
    read: Rc<Cell<u64>>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.set(self.read.get() + count as u64);
        Ok(count)
    }
}

/// A line on a terminal that says how far it is, once it takes longer than a moment.
struct Progress {
    shown: bool,
    is_terminal: bool,
    next: Instant,
    size: Option<u64>,
    read: Rc<Cell<u64>>,
}

impl Progress {
    fn new(size: Option<u64>, read: Rc<Cell<u64>>) -> Self {
        Self {
            shown: false,
            is_terminal: io::stderr().is_terminal(),
            next: Instant::now() + Duration::from_secs(1),
            size,
            read,
        }
    }

    fn at(&mut self, flows: u64) {
        // Looking at the clock costs more than most flows.
        if !self.is_terminal || !flows.is_multiple_of(64) || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + Duration::from_millis(200);
        self.shown = true;
        let read = self.read.get();
        let line = match self.size {
            Some(size) if size > 0 => {
                let done = (read as f64 / size as f64).min(1.0);
                let bar = "#".repeat((done * 30.0) as usize);
                format!("[{bar:.<30}] {:3.0} %  {flows} flows", done * 100.0)
            }
            _ => format!("{}  {flows} flows", pretty_size(read)),
        };
        let _ = write!(io::stderr(), "\r{line}\x1b[K");
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
            self.shown = false;
        }
    }
}

/// By name; a flow file unless it says HAR.
pub(crate) fn output_format(path: &Path, format: Option<FileFormat>) -> anyhow::Result<FileFormat> {
    if let Some(format) = format {
        return Ok(format);
    }
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "har" => Ok(FileFormat::Har),
        "zhar" => bail!("compressed HAR (.zhar) can't be written; write .har and compress it"),
        _ => Ok(FileFormat::Mitm),
    }
}

/// A file that appears under its name when it is complete, readable for its owner only; or standard output.
pub(crate) struct Sink {
    writer: Writer,
    target: Option<PathBuf>,
    written: Written,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Written {
    pub flows: u64,
    pub bytes: u64,
    pub not_http: u64,
}

enum Writer {
    Mitm(FlowWriter<BufWriter<Output>>),
    Har(HarWriter<BufWriter<Output>>),
}

enum Output {
    Stdout(io::Stdout),
    /// A device or a pipe, which is not to be replaced by a file.
    Device(File),
    File(NamedTempFile, u64),
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(stdout) => stdout.write(bytes),
            Self::Device(device) => device.write(bytes),
            Self::File(file, size) => {
                let count = file.write(bytes)?;
                *size += count as u64;
                Ok(count)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::Device(device) => device.flush(),
            Self::File(file, _) => file.flush(),
        }
    }
}

impl Sink {
    pub(crate) fn open(
        path: &Path,
        format: FileFormat,
        input: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let (output, target) = if path == Path::new("-") {
            (Output::Stdout(io::stdout()), None)
        } else {
            let shown = path.display();
            let same = |input: &Path| {
                input
                    .canonicalize()
                    .ok()
                    .zip(path.canonicalize().ok())
                    .is_some_and(|(a, b)| a == b)
            };
            if input.is_some_and(same) {
                bail!("{shown} is the input, too");
            }
            let failed = || format!("can't write {shown}");
            if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
                let device = File::options()
                    .write(true)
                    .open(path)
                    .with_context(failed)?;
                (Output::Device(device), None)
            } else {
                // Behind a link, the file that it leads to.
                let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let folder = match path.parent() {
                    Some(folder) if folder != Path::new("") => folder,
                    _ => Path::new("."),
                };
                let file = NamedTempFile::new_in(folder).with_context(failed)?;
                (Output::File(file, 0), Some(path))
            }
        };
        let output = BufWriter::with_capacity(256 * 1024, output);
        Ok(Self {
            writer: match format {
                FileFormat::Mitm => Writer::Mitm(FlowWriter::new(output)),
                FileFormat::Har => Writer::Har(HarWriter::new(output)),
            },
            target,
            written: Written::default(),
        })
    }

    pub(crate) fn write(&mut self, record: &Record) -> anyhow::Result<()> {
        let was_written = match &mut self.writer {
            Writer::Mitm(writer) => writer.write(record).map(|_| true),
            Writer::Har(writer) => writer.write(record),
        };
        match was_written.context("can't write")? {
            true => self.written.flows += 1,
            false => self.written.not_http += 1,
        }
        Ok(())
    }

    pub(crate) fn close(self) -> anyhow::Result<Written> {
        let mut written = self.written;
        let output = match self.writer {
            Writer::Mitm(mut writer) => {
                writer.flush().context("can't write")?;
                writer.into_inner()
            }
            Writer::Har(writer) => writer.finish().context("can't write")?,
        };
        let output = output
            .into_inner()
            .map_err(|e| e.into_error())
            .context("can't write")?;
        if let (Output::File(file, size), Some(target)) = (output, self.target) {
            written.bytes = size;
            file.persist(&target)
                .map_err(|error| error.error)
                .with_context(|| format!("can't write {}", target.display()))?;
        }
        Ok(written)
    }
}

pub(crate) fn plural(count: u64, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    }
}

pub(crate) fn line_to_stdout(line: &str) -> anyhow::Result<()> {
    finish(writeln!(io::stdout(), "{line}").map_err(anyhow::Error::from))
}

pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

pub(crate) fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "warning: {text}");
}

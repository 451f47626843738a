//! The log as mitmproxy writes it: `[12:34:56.789][127.0.0.1:1234] message`, on standard error.

use std::fmt;
use std::io::{self, Write};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::Printer;
use super::style::{Colour, Style, harmless};
use crate::os::time_of_day;

/// The least severe log line that is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Only what keeps the proxy from working.
    Error,
    /// Also what keeps a connection from working.
    Warn,
    /// Also what is good to know.
    Info,
    /// Also what the proxy does.
    Debug,
}

/// Sends the log of this process to the printer. `TOLLGATE_LOG` takes `tracing` directives in place of `verbosity`.
///
/// # Errors
/// When the directives can't be read.
pub fn install(printer: Printer, verbosity: Verbosity, style: Style) -> anyhow::Result<()> {
    let directives = match verbosity {
        Verbosity::Error => "error",
        Verbosity::Warn => "warn",
        Verbosity::Info => "warn,tollgate=info",
        Verbosity::Debug => "info,tollgate=debug",
    };
    let filter = match std::env::var("TOLLGATE_LOG") {
        Ok(own) if !own.is_empty() => EnvFilter::builder()
            .parse(&own)
            .map_err(|error| anyhow::anyhow!("TOLLGATE_LOG: {error}"))?,
        _ => EnvFilter::new(directives),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .event_format(Format { style })
        .with_writer(Lines(printer))
        .finish();
    // Fails only where one is installed already, and then that one logs.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

struct Format {
    style: Style,
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = self.line(SystemTime::now(), *event.metadata().level(), &fields);
        writer.write_str(&line)
    }
}

impl Format {
    fn line(&self, time: SystemTime, level: Level, fields: &Fields) -> String {
        let (hour, minute, second, millis) = time_of_day(time);
        let mut out = format!("[{hour:02}:{minute:02}:{second:02}.{millis:03}]");
        if !fields.client.is_empty() {
            out.push('[');
            out.push_str(&fields.client);
            out.push(']');
        }
        out.push(' ');
        let text = harmless(&fields.text, false);
        match level {
            Level::ERROR => self.style.colour(&mut out, &text, Colour::Red),
            Level::WARN => self.style.colour(&mut out, &text, Colour::Yellow),
            _ => out.push_str(&text),
        }
        out.push('\n');
        out
    }
}

/// An event's message, then its other fields as `name=value`; the client stands for itself.
#[derive(Default)]
struct Fields {
    client: String,
    text: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        let _ = match field.name() {
            "client" => write!(self.client, "{value:?}"),
            "message" => {
                let behind = std::mem::take(&mut self.text);
                write!(self.text, "{value:?}{behind}")
            }
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

/// Hands each event, which is one line, to the printer.
struct Lines(Printer);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

struct Line<'a>(&'a Printer);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.log(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_mitmproxys() {
        let format = Format {
            style: Style::PLAIN,
        };
        let fields = Fields {
            client: "127.0.0.1:1234".to_owned(),
            text: "handshake failed\x1b host=a".to_owned(),
        };
        let line = format.line(SystemTime::UNIX_EPOCH, Level::WARN, &fields);
        let (time, rest) = line.split_at(14);
        assert!(time.starts_with('[') && time.ends_with(".000]"), "{time}");
        assert_eq!(rest, "[127.0.0.1:1234] handshake failed␛ host=a\n");
    }
}

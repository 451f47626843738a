//! Where known secrets come from.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use tollgate_screen::scan::{KnownError, KnownSecrets};

/// Reads every source. A value that is too short to look for is left out of files and of what a
/// command prints; a variable that is named must hold one.
pub(super) fn collect(secrets: &[String], canaries: &[String]) -> anyhow::Result<KnownSecrets> {
    let mut known = KnownSecrets::new();
    let sources = secrets
        .iter()
        .map(|source| (source, false))
        .chain(canaries.iter().map(|source| (source, true)));
    for (source, canary) in sources {
        let mut add = |name: &str, value: &[u8]| {
            if canary {
                known.add_canary(name, value)
            } else {
                known.add(name, value)
            }
        };
        match source.split_once(':') {
            Some(("env", name)) => {
                let value = std::env::var_os(name)
                    .with_context(|| format!("{source}: not in the environment"))?;
                add(name, value.as_encoded_bytes())?;
            }
            Some(("file", path)) => {
                let text = std::fs::read(path).with_context(|| source.clone())?;
                lines(&text, path, &mut add)?;
            }
            Some(("cmd", command)) => {
                let output = Command::new(if cfg!(windows) { "cmd" } else { "sh" })
                    .arg(if cfg!(windows) { "/C" } else { "-c" })
                    .arg(command)
                    .stdin(Stdio::null())
                    .stderr(Stdio::inherit())
                    .output()
                    .context("the command for known secrets can't be started")?;
                if !output.status.success() {
                    bail!("the command for known secrets failed: {}", output.status);
                }
                lines(&output.stdout, "command", &mut add)?;
            }
            _ => bail!("{source:?} is none of env:NAME, file:PATH, cmd:COMMAND"),
        }
    }
    Ok(known)
}

/// One value a line; `NAME=value` (with `export`, with quotes) as in environment files.
fn lines(
    text: &[u8],
    origin: &str,
    add: &mut impl FnMut(&str, &[u8]) -> Result<(), KnownError>,
) -> Result<(), KnownError> {
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let line = line.strip_prefix(b"export ").unwrap_or(line);
        let place = format!("{origin}:{}", number + 1);
        let (name, value) = match line.iter().position(|&byte| byte == b'=') {
            Some(at)
                if line
                    .iter()
                    .take(at)
                    .all(|&b| b.is_ascii_alphanumeric() || b == b'_')
                    && at > 0 =>
            {
                let (name, value) = line.split_at(at);
                (
                    String::from_utf8_lossy(name).into_owned(),
                    value.get(1..).unwrap_or_default(),
                )
            }
            _ => (place, line),
        };
        let value = match value {
            [b'"', inner @ .., b'"'] | [b'\'', inner @ .., b'\''] => inner,
            plain => plain,
        };
        match add(&name, value) {
            Ok(()) | Err(KnownError::TooPlain { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

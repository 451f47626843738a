//! Tool calls in JSON text: the shell commands and the paths in their arguments.

use std::ops::Range;

use super::catalogue::own;
use super::command;
use super::finding::Confidence;
use super::scanner::{Pass, Report, Window};

/// Keys whose values are shell commands, with their quotes.
pub(super) const COMMAND_KEYS: &[&str] = &[
    "\"command\"",
    "\"cmd\"",
    "\"script\"",
    "\"bash\"",
    "\"shell_command\"",
    "\"commandline\"",
    "\"command_line\"",
];
/// Keys whose values are paths or names of variables.
pub(super) const PATH_KEYS: &[&str] = &[
    "\"path\"",
    "\"file_path\"",
    "\"filename\"",
    "\"file\"",
    "\"filepath\"",
    "\"target_file\"",
    "\"variable\"",
    "\"notebook_path\"",
];

/// A key of a command stands at `key`.
pub(super) fn command(pass: &mut Pass<'_>, window: Window<'_>, key: Range<usize>) {
    let Some((range, text)) = string_after(window, key.end) else {
        return;
    };
    for danger in command::judge(&crate::shell::Script::parse(&text)) {
        let rule = danger.info();
        let report = Report {
            confidence: Confidence::Medium,
            excerpt: danger.excerpt,
            score: None,
        };
        pass.emit(window, &rule, range.clone(), report);
    }
}

/// A key of a path stands at `key`.
pub(super) fn path(pass: &mut Pass<'_>, window: Window<'_>, key: Range<usize>) {
    let Some((range, text)) = string_after(window, key.end) else {
        return;
    };
    let variable = window.get(key) == b"\"variable\"";
    let why = if variable {
        secret_variable(&text).then_some("a variable that holds a credential")
    } else {
        command::sensitive_path(&text)
    };
    if let Some(why) = why {
        let rule = own("tool-sensitive-path");
        let report = Report {
            confidence: Confidence::Medium,
            excerpt: why.to_owned(),
            score: None,
        };
        pass.emit(window, &rule, range, report);
    }
}

fn secret_variable(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    name.len() <= 64
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && [
            "SECRET",
            "TOKEN",
            "PASSWORD",
            "PASSWD",
            "API_KEY",
            "APIKEY",
            "ACCESS_KEY",
            "DATABASE_URL",
            "PRIVATE_KEY",
            "CREDENTIAL",
            "CONNECTION_STRING",
            "DSN",
        ]
        .iter()
        .any(|word| upper.contains(word))
}

/// The JSON string that is the value of a key: where it stands, and what it says.
fn string_after(window: Window<'_>, key_end: usize) -> Option<(Range<usize>, String)> {
    let rest = window.get(key_end..window.text.len());
    let mut at = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
    if rest.get(at) != Some(&b':') {
        return None;
    }
    at += 1;
    at += rest
        .get(at..)?
        .iter()
        .take_while(|b| b.is_ascii_whitespace())
        .count();
    // A list of words, as exec takes it.
    let list = rest.get(at) == Some(&b'[');
    if list {
        at += 1;
    } else if rest.get(at) != Some(&b'"') {
        return None;
    }
    let start = key_end + at;
    let mut words = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    let mut inside = false;
    while let Some(&byte) = rest.get(at) {
        at += 1;
        if !inside {
            match byte {
                b'"' => {
                    inside = true;
                    bytes.clear();
                }
                b']' => break,
                b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
                _ => break,
            }
            continue;
        }
        match byte {
            b'"' => {
                inside = false;
                words.push(String::from_utf8_lossy(&bytes).into_owned());
                if !list {
                    break;
                }
            }
            b'\\' => {
                let escaped = rest.get(at).copied()?;
                at += 1;
                match escaped {
                    b'n' => bytes.push(b'\n'),
                    b't' => bytes.push(b'\t'),
                    b'r' => bytes.push(b'\r'),
                    b'u' => {
                        let digits = rest
                            .get(at..at + 4)
                            .and_then(|d| std::str::from_utf8(d).ok());
                        let c = digits
                            .and_then(|d| u32::from_str_radix(d, 16).ok())
                            .and_then(char::from_u32)
                            .unwrap_or('\u{fffd}');
                        let mut utf8 = [0; 4];
                        bytes.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
                        at += 4;
                    }
                    other => bytes.push(other),
                }
            }
            other => bytes.push(other),
        }
    }
    if inside {
        // Cut off by the window: what is there counts.
        words.push(String::from_utf8_lossy(&bytes).into_owned());
    }
    let text = if list { quoted(&words) } else { words.concat() };
    (!text.is_empty()).then(|| (start..key_end + at.min(rest.len()), text))
}

/// Words as a command line that splits into them again; `["sh", "-c", "…"]` keeps its script whole.
fn quoted(words: &[String]) -> String {
    words
        .iter()
        .map(|word| {
            let plain = word.chars().all(|c| {
                c.is_ascii_alphanumeric()
                    || matches!(c, '-' | '_' | '/' | '.' | ':' | '=' | '@' | '+')
            });
            if plain && !word.is_empty() {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

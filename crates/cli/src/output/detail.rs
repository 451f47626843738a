//! Bodies for the eye: JSON indented, text as it is, everything else as a hex dump.

use std::fmt::Write as _;

use serde::de::IgnoredAny;

use super::style::{Colour, Style, harmless};

/// What is shown of a body before `(cut off)`, where anything is cut: mitmproxy's `content_view_lines_cutoff`.
pub const MAX_LINES: usize = 512;
/// The lines of a hex dump, where anything is cut.
const MAX_HEX_LINES: usize = 32;

/// Appends a body, indented by four, between two empty lines; nothing for an empty one.
///
/// `complete` is false when `data` is only the beginning. `whole` shows all of it.
pub fn body(out: &mut String, data: &[u8], complete: bool, whole: bool, style: Style) {
    if data.is_empty() && complete {
        return;
    }
    let (text, max_lines) = match text(data, complete) {
        Some(text) => (text, MAX_LINES),
        None => (hex_dump(data), MAX_HEX_LINES),
    };
    let text = harmless(&text, true);
    let mut lines = text.lines();
    out.push('\n');
    for line in lines
        .by_ref()
        .take(if whole { usize::MAX } else { max_lines })
    {
        if !line.is_empty() {
            out.push_str("    ");
            out.push_str(line);
        }
        out.push('\n');
    }
    if !complete || lines.next().is_some() {
        out.push_str("    ");
        style.colour(out, "(cut off)", Colour::Blue);
        out.push('\n');
    }
}

/// The body as text, if it is one.
fn text(data: &[u8], complete: bool) -> Option<String> {
    if complete && serde_json::from_slice::<IgnoredAny>(data).is_ok() {
        return Some(indented(data));
    }
    let text = match std::str::from_utf8(data) {
        Ok(text) => text,
        // The cut may have gone through a character.
        Err(error) if !complete && error.error_len().is_none() => {
            let (valid, _) = data.split_at_checked(error.valid_up_to())?;
            std::str::from_utf8(valid).ok()?
        }
        Err(_) => return None,
    };
    let binary = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x1b' | '\x0c');
    if text.chars().any(binary) {
        return None;
    }
    Some(text.replace("\r\n", "\n"))
}

/// Valid JSON, indented by two; its keys, numbers and strings as they were spelt.
fn indented(json: &[u8]) -> String {
    let mut out = Vec::with_capacity(json.len() + json.len() / 2);
    let mut depth = 0_usize;
    let (mut in_string, mut escaped, mut opened) = (false, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + depth.min(64) * 2, b' ');
    };
    for &byte in json {
        if in_string {
            out.push(byte);
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        if opened && !matches!(byte, b'}' | b']') {
            line(&mut out, depth);
        }
        let closes_empty = opened;
        opened = false;
        match byte {
            b'{' | b'[' => {
                out.push(byte);
                depth += 1;
                opened = true;
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if !closes_empty {
                    line(&mut out, depth);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            _ => {
                in_string = byte == b'"';
                out.push(byte);
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `0000000010 68 65 6c 6c 6f …  hello …`, sixteen bytes a line.
fn hex_dump(data: &[u8]) -> String {
    let mut out = String::with_capacity(data.len() * 5);
    for (number, row) in data.chunks(16).enumerate() {
        let _ = write!(out, "{:010x} ", number * 16);
        for column in 0..16 {
            match row.get(column) {
                Some(byte) => {
                    let _ = write!(out, "{byte:02x} ");
                }
                None => out.push_str("   "),
            }
        }
        out.push(' ');
        for &byte in row {
            let shown = byte == b' ' || byte.is_ascii_graphic();
            out.push(if shown { char::from(byte) } else { '.' });
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(data: &[u8], complete: bool, whole: bool) -> String {
        let mut out = String::new();
        body(&mut out, data, complete, whole, Style::PLAIN);
        out
    }

    #[test]
    fn json_keeps_its_order_and_spelling() {
        assert_eq!(
            shown(
                br#"{"b":1.50,"a":["x, {y}\"",{} ,[]],"c":null}"#,
                true,
                false
            ),
            "\n    {\n      \"b\": 1.50,\n      \"a\": [\n        \"x, {y}\\\"\",\n        {},\n        []\n      ],\n      \"c\": null\n    }\n"
        );
    }

    #[test]
    fn text_is_cut_after_512_lines() {
        let text = "line\n".repeat(600);
        let cut = shown(text.as_bytes(), true, false);
        assert_eq!(cut.lines().count(), 1 + 512 + 1);
        assert!(cut.ends_with("    (cut off)\n"));
        assert_eq!(shown(text.as_bytes(), true, true).lines().count(), 1 + 600);
    }

    #[test]
    fn a_beginning_is_marked() {
        assert_eq!(
            shown("aü".as_bytes().split_at(2).0, false, true),
            "\n    a\n    (cut off)\n"
        );
        assert_eq!(shown(b"", false, true), "\n    (cut off)\n");
        assert_eq!(shown(b"", true, true), "");
    }

    #[test]
    fn binary_is_dumped() {
        assert_eq!(
            shown(b"\x7fELF\0", true, false),
            "\n    0000000000 7f 45 4c 46 00                                   .ELF.\n"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn indenting_changes_nothing_but_white_space(
            keys in proptest::collection::vec(("\\PC{0,6}", any::<i64>()), 0..6),
        ) {
            let value = serde_json::json!({ "list": keys.iter().map(|(key, number)| {
                serde_json::json!({ key.as_str(): [number, null, {}] })
            }).collect::<Vec<_>>() });
            let text = indented(value.to_string().as_bytes());
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }

        #[test]
        fn no_body_trips_it(data in proptest::collection::vec(any::<u8>(), 0..300), complete: bool) {
            shown(&data, complete, false);
        }
    }
}

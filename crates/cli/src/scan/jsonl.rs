//! One object in, one answer out.

use std::io::{self, BufRead, Write};

use serde::Deserialize;
use serde_json::{Map, Value};
use tollgate_screen::scan::{Finding, Kind, Scanner};
use tollgate_screen::shell::MAX_SCRIPT;
use tollgate_wire::coding::{Decoder, OutputLimit};

/// A longer line is answered with an error, and skipped.
const MAX_LINE: usize = 64 << 20;
/// A body that decodes to more is answered with an error.
const MAX_DECODED: u64 = 64 << 20;
/// How much of a body is decoded at a time.
const CHUNK: usize = 16 << 10;
/// How much of a text is scanned before its findings are counted.
const PIECE: usize = 1 << 20;
/// More findings than this in one text are counted, not told one by one: the most severe ones are told.
const MAX_FINDINGS: usize = 10_000;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    kind: Option<String>,
    text: Option<String>,
    body_b64: Option<String>,
    content_encoding: Option<String>,
}

/// What was found in a text, and what of it is missing.
#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    /// Findings that are counted only.
    more: u64,
    /// Not all of the text was read.
    cut: bool,
    /// Why not, or why none of it.
    error: Option<String>,
}

impl Found {
    /// None of the text was read.
    fn nothing(error: String) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }

    /// Keeps as many findings as are told.
    fn bound(&mut self) {
        let more = self.findings.len().saturating_sub(MAX_FINDINGS);
        if more > 0 {
            self.findings
                .sort_by_key(|finding| std::cmp::Reverse(finding.severity));
            self.findings.truncate(MAX_FINDINGS);
            self.more += more as u64;
        }
    }

    fn into_answer(mut self, id: Value) -> Value {
        self.findings.sort();
        let findings: Vec<Value> = self.findings.iter().map(Finding::to_json).collect();
        let mut answer = Map::new();
        answer.insert("id".to_owned(), id);
        answer.insert("findings".to_owned(), findings.into());
        if self.cut || self.more > 0 {
            answer.insert("truncated".to_owned(), true.into());
        }
        if self.more > 0 {
            answer.insert("more_findings".to_owned(), self.more.into());
        }
        if let Some(error) = self.error {
            answer.insert("error".to_owned(), error.into());
        }
        Value::Object(answer)
    }
}

/// Answers every line.
pub(super) fn answer(
    scanner: &Scanner,
    mut input: impl BufRead,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let Some(whole) = read_line(&mut input, &mut line)? else {
            return Ok(());
        };
        if whole && line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let (id, found) = match whole {
            true => one(scanner, &line),
            false => {
                let error = format!("the line is longer than {MAX_LINE} bytes");
                (Value::Null, Found::nothing(error))
            }
        };
        let answer = found.into_answer(id);
        serde_json::to_writer(&mut *out, &answer).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
}

/// Reads up to a line break. `None`: the end; `Some(false)`: the line was too long and is skipped.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    let mut whole = true;
    let mut any = false;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if buffer.is_empty() {
            return Ok(any.then_some(whole));
        }
        any = true;
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let part = buffer
            .get(..end.unwrap_or(buffer.len()))
            .unwrap_or_default();
        if line.len() + part.len() > MAX_LINE {
            whole = false;
            line.clear();
        } else if whole {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(whole));
        }
    }
}

fn one(scanner: &Scanner, line: &[u8]) -> (Value, Found) {
    match serde_json::from_slice::<Line>(line) {
        Ok(line) => {
            let found = scan(scanner, &line).unwrap_or_else(Found::nothing);
            (line.id, found)
        }
        Err(error) => {
            let error = format!("not an object of this kind: {error}");
            (rescued_id(line), Found::nothing(error))
        }
    }
}

/// The id of a line whose other fields can't be read.
fn rescued_id(line: &[u8]) -> Value {
    #[derive(Deserialize)]
    struct Id {
        #[serde(default)]
        id: Value,
    }
    serde_json::from_slice::<Id>(line).map_or(Value::Null, |found| found.id)
}

/// Scans what a line has. `Err`: none of it could be read.
fn scan(scanner: &Scanner, line: &Line) -> Result<Found, String> {
    let kind = match line.kind.as_deref() {
        None => Kind::Outbound,
        Some(name) => Kind::parse(name)
            .ok_or_else(|| format!("the kind {name:?} is none of outbound, inbound, command"))?,
    };
    let mut state = scanner.start(kind);
    let mut found = Found::default();
    let mut length = 0;
    let mut feed = |found: &mut Found, text: &[u8]| {
        length += text.len();
        for piece in text.chunks(PIECE) {
            scanner.feed(&mut state, piece, &mut found.findings);
            found.bound();
        }
    };
    match (&line.text, &line.body_b64) {
        (Some(text), None) => feed(&mut found, text.as_bytes()),
        (None, Some(body)) => {
            let body = base64(body.as_bytes()).ok_or("body_b64 is not base64")?;
            let encoding = line.content_encoding.as_deref().unwrap_or_default();
            let limit = OutputLimit {
                total: MAX_DECODED,
                per_feed: 32 << 20,
            };
            let decoder = Decoder::new(std::iter::once(encoding.as_bytes()), limit)
                .map_err(|error| error.to_string())?;
            match decoder {
                None => feed(&mut found, &body),
                Some(mut decoder) => {
                    // What could be decoded before an error is scanned all the same.
                    let mut plain = Vec::new();
                    let mut outcome = Ok(());
                    for chunk in body.chunks(CHUNK) {
                        plain.clear();
                        outcome = decoder.feed(chunk, &mut plain);
                        feed(&mut found, &plain);
                        if outcome.is_err() {
                            break;
                        }
                    }
                    if outcome.is_ok() {
                        plain.clear();
                        outcome = decoder.finish(&mut plain);
                        feed(&mut found, &plain);
                    }
                    if let Err(error) = outcome {
                        found.cut = true;
                        found.error = Some(error.to_string());
                    }
                }
            }
        }
        (Some(_), Some(_)) => return Err("both text and body_b64".to_owned()),
        (None, None) => return Err("neither text nor body_b64".to_owned()),
    }
    scanner.finish(&mut state, &mut found.findings);
    found.bound();
    // Of a script, the shell parser reads no more.
    found.cut |= kind == Kind::Command && length > MAX_SCRIPT;
    Ok(found)
}

/// Base64 (RFC 4648), standard alphabet, padded or not, line breaks ignored.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits = 0_u32;
    let mut count = 0;
    let mut padding = 0;
    for &byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            b'\r' | b'\n' => continue,
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    (padding <= 2 && count < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answers(input: &[u8]) -> Vec<Value> {
        let mut out = Vec::new();
        answer(&Scanner::builtin(), input, &mut out).unwrap();
        out.split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    }

    fn token() -> String {
        format!("AKIA{}", "Y3T6DKCNFLR2QWZ4")
    }

    #[test]
    fn every_line_has_its_answer_in_order() {
        let input = format!(
            "{{\"id\":1,\"kind\":\"outbound\",\"text\":\"key {}\"}}\nnonsense\n\n{{\"id\":\"c\",\"kind\":\"inbound\",\"text\":\"hello\"}}",
            token()
        );
        let answers = answers(input.as_bytes());
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[0]["id"], 1);
        assert_eq!(answers[0]["findings"][0]["rule"], "aws-access-key-id");
        assert!(
            answers[1]["error"]
                .as_str()
                .unwrap()
                .starts_with("not an object")
        );
        assert_eq!(answers[2], json!({ "id": "c", "findings": [] }));
    }

    #[test]
    fn a_line_that_makes_no_sense_keeps_its_id() {
        let answers = answers(
            b"{\"id\":7,\"kind\":\"sideways\",\"text\":\"\"}\n{\"id\":8,\"text\":3}\n{\"id\":9}",
        );
        for (answer, id) in answers.iter().zip([7, 8, 9]) {
            assert_eq!(answer["id"], id);
            assert!(answer["error"].is_string(), "{answer}");
        }
    }

    #[test]
    fn findings_that_are_not_told_are_counted() {
        let many = format!("{}\n", token()).repeat(MAX_FINDINGS + 5);
        let input = [
            json!({ "id": 1, "text": many }).to_string(),
            json!({ "id": 2, "text": token() }).to_string(),
        ]
        .join("\n");
        let answers = answers(input.as_bytes());
        let told = answers[0]["findings"].as_array().unwrap();
        assert_eq!(told.len(), MAX_FINDINGS);
        assert_eq!(answers[0]["truncated"], true);
        assert_eq!(answers[0]["more_findings"], 5);
        for answer in &answers[1..] {
            assert!(answer.get("truncated").is_none(), "{answer}");
            assert!(answer.get("more_findings").is_none(), "{answer}");
        }
    }

    #[test]
    fn the_most_severe_findings_are_told() {
        let finding = |severity| {
            let mut one = Scanner::builtin().scan(Kind::Outbound, token().as_bytes());
            let mut one = one.remove(0);
            one.severity = severity;
            one
        };
        use tollgate_screen::scan::Severity;
        let mut found = Found {
            findings: vec![finding(Severity::Low); MAX_FINDINGS],
            ..Found::default()
        };
        found.findings.push(finding(Severity::Critical));
        found.bound();
        assert_eq!(found.findings.len(), MAX_FINDINGS);
        assert!(
            found
                .findings
                .iter()
                .any(|f| f.severity == Severity::Critical)
        );
    }

    #[test]
    fn a_script_that_is_read_in_part_says_so() {
        let long = "x".repeat(MAX_SCRIPT);
        let lines = [
            json!({ "id": 1, "kind": "command", "text": format!("true {long}") }),
            json!({ "id": 2, "kind": "command", "text": "true" }),
            json!({ "id": 3, "kind": "outbound", "text": long }),
        ];
        let input = lines.map(|line| line.to_string()).join("\n");
        let answers = answers(input.as_bytes());
        assert_eq!(answers[0]["truncated"], true);
        assert!(answers[1].get("truncated").is_none() && answers[2].get("truncated").is_none());
    }

    #[test]
    fn what_stood_before_damage_is_found() {
        use tollgate_wire::coding::{Coding, Encoder};
        let mut packed = Vec::new();
        let mut encoder = Encoder::new(Coding::Gzip).unwrap();
        encoder
            .feed(format!("{} and more", token()).as_bytes(), &mut packed)
            .unwrap();
        encoder.finish(&mut packed).unwrap();
        packed.truncate(packed.len() - 4);
        let line = json!({ "id": 1, "body_b64": encode(&packed), "content_encoding": "gzip" });
        let answers = answers(line.to_string().as_bytes());
        assert_eq!(answers[0]["findings"][0]["rule"], "aws-access-key-id");
        assert_eq!(answers[0]["truncated"], true);
        assert!(answers[0]["error"].is_string());
    }

    #[test]
    fn a_bomb_is_an_answer() {
        use tollgate_wire::coding::{Coding, Encoder};
        let mut packed = Vec::new();
        let mut encoder = Encoder::new(Coding::Gzip).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..70 {
            encoder.feed(&zeros, &mut packed).unwrap();
        }
        encoder.finish(&mut packed).unwrap();
        let body = encode(&packed);
        let input = format!(
            "{{\"id\":1,\"body_b64\":\"{body}\",\"content_encoding\":\"gzip\"}}\n{{\"id\":2,\"text\":\"\"}}"
        );
        let answers = answers(input.as_bytes());
        assert_eq!(answers[0]["error"], "decoded body exceeds its limit");
        assert_eq!(answers[0]["truncated"], true);
        assert_eq!(answers[1]["id"], 2);
    }

    #[test]
    fn a_compressed_body_is_scanned() {
        use tollgate_wire::coding::{Coding, Encoder};
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let mut packed = Vec::new();
            let mut encoder = Encoder::new(coding).unwrap();
            encoder
                .feed(format!("here: {}", token()).as_bytes(), &mut packed)
                .unwrap();
            encoder.finish(&mut packed).unwrap();
            let input = format!(
                "{{\"id\":1,\"body_b64\":\"{}\",\"content_encoding\":\"{coding}\"}}",
                encode(&packed)
            );
            let answers = answers(input.as_bytes());
            assert_eq!(
                answers[0]["findings"][0]["rule"], "aws-access-key-id",
                "{coding}"
            );
        }
    }

    fn encode(bytes: &[u8]) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for chunk in bytes.chunks(3) {
            let mut three = [0; 3];
            three[..chunk.len()].copy_from_slice(chunk);
            let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
            for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
                if at <= chunk.len() {
                    out.push(char::from(ALPHABET[(bits >> shift & 63) as usize]));
                } else {
                    out.push('=');
                }
            }
        }
        out
    }
}

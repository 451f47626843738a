//! Findings for people, for programs and for code hosts.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::{Value, json};
use tollgate_screen::scan::{Finding, Severity};

/// What was found, and in which file.
pub(super) type Results = [(String, Finding)];

/// A line each: place, severity, rule, excerpt.
pub(super) fn text(out: &mut impl Write, results: &Results) -> io::Result<()> {
    for (name, finding) in results {
        let via = if finding.via.is_empty() {
            String::new()
        } else {
            format!(" in {}", finding.via.join(" in "))
        };
        writeln!(
            out,
            "{name}:{}: {} {} ({} confidence){via}: {}",
            finding.range.start,
            finding.severity,
            finding.rule,
            finding.confidence,
            finding.excerpt
        )?;
    }
    Ok(())
}

/// A JSON object each, with `file` and `allow`.
pub(super) fn json(out: &mut impl Write, results: &Results) -> io::Result<()> {
    for (name, finding) in results {
        let mut object = finding.to_json();
        if let Some(map) = object.as_object_mut() {
            map.insert("file".to_owned(), json!(name));
            map.insert("allow".to_owned(), json!(finding.allow_hint()));
        }
        serde_json::to_writer(&mut *out, &object)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// One SARIF 2.1.0 document.
pub(super) fn sarif(out: &mut impl Write, results: &Results) -> io::Result<()> {
    let mut rules = BTreeMap::new();
    for (_, finding) in results {
        let next = rules.len();
        rules.entry(&*finding.rule).or_insert(next);
    }
    // The order of first appearance is the index; SARIF wants an array in that order.
    let mut names: Vec<(&str, usize)> = rules.iter().map(|(name, at)| (*name, *at)).collect();
    names.sort_by_key(|&(_, at)| at);
    let driver_rules: Vec<Value> = names
        .iter()
        .map(|(name, _)| json!({ "id": name }))
        .collect();
    let list: Vec<Value> = results
        .iter()
        .map(|(name, finding)| {
            let level = match finding.severity {
                Severity::Low => "note",
                Severity::Medium => "warning",
                Severity::High | Severity::Critical => "error",
            };
            json!({
                "ruleId": &*finding.rule,
                "ruleIndex": rules.get(&*finding.rule),
                "level": level,
                "message": { "text": format!("{}: {}", finding.rule, finding.excerpt) },
                "locations": [{
                    "physicalLocation": {
                        "artifactLocation": { "uri": uri(name) },
                        "region": {
                            "byteOffset": finding.range.start,
                            "byteLength": finding.range.end - finding.range.start,
                        },
                    },
                }],
                "properties": {
                    "category": finding.category.as_str(),
                    "confidence": finding.confidence.as_str(),
                },
            })
        })
        .collect();
    let document = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "tollgate",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": driver_rules,
            } },
            "results": list,
        }],
    });
    serde_json::to_writer_pretty(&mut *out, &document)?;
    out.write_all(b"\n")
}

/// A path as a relative URI reference (RFC 3986).
fn uri(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

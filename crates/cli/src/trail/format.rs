//! Verdicts as other systems read them: syslog (RFC 5424) and the Common Event Format.

use std::time::SystemTime;

use serde_json::{Value, json};
use tollgate_screen::Verdict;
use tollgate_screen::scan::Severity;

use crate::output::timestamp;

/// The facility `log audit`.
const FACILITY: u8 = 13;
/// Findings in one event; the others are counted.
const FINDINGS: usize = 8;
/// Characters of one field.
const FIELD: usize = 512;

/// How a verdict stands in a syslog message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As in the audit log.
    #[default]
    Json,
    /// The Common Event Format, version 0.
    Cef,
}

impl Format {
    /// The text of an event.
    pub fn event(self, verdict: &Verdict) -> String {
        match self {
            Self::Json => json_event(verdict),
            Self::Cef => cef_event(verdict),
        }
    }
}

/// A syslog message without a frame. `host` may be empty.
pub fn syslog(host: &str, time: SystemTime, refused: bool, event: &str) -> Vec<u8> {
    // Warning, and notice.
    let severity = if refused { 4 } else { 5 };
    let host = printable(host, 255);
    format!(
        "<{}>1 {} {host} tollgate {} verdict - {event}",
        FACILITY * 8 + severity,
        timestamp(time),
        std::process::id(),
    )
    .into_bytes()
}

/// A field of a syslog header: visible ASCII, or `-`.
fn printable(text: &str, most: usize) -> String {
    let visible = text.chars().filter(char::is_ascii_graphic).take(most);
    let visible: String = visible.collect();
    match visible.is_empty() {
        true => "-".to_owned(),
        false => visible,
    }
}

/// A verdict as JSON, of bounded length.
pub fn json_value(verdict: &Verdict) -> Value {
    let mut value = verdict.to_json();
    if let Value::Object(fields) = &mut value {
        for field in fields.values_mut() {
            if let Value::String(text) = field {
                *text = cut(text);
            }
        }
        if let Some(Value::Array(findings)) = fields.get_mut("findings") {
            let more = findings.len().saturating_sub(FINDINGS);
            findings.truncate(FINDINGS);
            if more > 0 {
                fields.insert("more_findings".to_owned(), json!(more));
            }
        }
    }
    value
}

fn json_event(verdict: &Verdict) -> String {
    escaped(&json_value(verdict).to_string())
}

/// JSON in which no character controls anything: serde_json leaves those behind ASCII as they are.
pub fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if acts(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Characters that a terminal, or whoever splits lines, acts upon.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `CEF:0|Tollgate|tollgate|0.1.0|RULE|NAME|SEVERITY|EXTENSION`
fn cef_event(verdict: &Verdict) -> String {
    let word = if verdict.refused { "refused" } else { "seen" };
    let worst = verdict.findings.iter().max_by_key(|f| f.severity);
    let severity = match worst.map(|finding| finding.severity) {
        Some(Severity::Critical) => 10,
        Some(Severity::High) => 8,
        Some(Severity::Medium) | None => 5,
        Some(Severity::Low) => 3,
    };
    let (rule, what) = match (worst, &verdict.rule) {
        (Some(finding), _) => (&*finding.rule, finding.excerpt.as_str()),
        (None, Some(rule)) => (&**rule, verdict.reason.as_str()),
        (None, None) => ("unread", verdict.reason.as_str()),
    };
    let (host, port) = verdict
        .target
        .rsplit_once(':')
        .unwrap_or((&verdict.target, ""));
    let event = verdict.to_json();
    let time = event.get("time_ms").and_then(Value::as_u64).unwrap_or(0);
    let flow = verdict.flow.to_string();
    let place = verdict.place.to_string();
    let count = verdict.findings.len().to_string();
    let time = time.to_string();
    let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let mut extension = vec![
        ("rt", time.as_str()),
        ("act", word),
        ("dhost", if is_port { host } else { &verdict.target }),
    ];
    if is_port {
        extension.push(("dpt", port));
    }
    let allow = match (verdict.allow.as_str(), worst) {
        ("", Some(finding)) => finding.allow_hint(),
        (allow, _) => allow.to_owned(),
    };
    extension.extend([
        ("msg", what),
        ("externalId", flow.as_str()),
        ("cs1Label", "place"),
        ("cs1", place.as_str()),
        ("cs2Label", "allow"),
        ("cs2", allow.as_str()),
        ("cn1Label", "findings"),
        ("cn1", count.as_str()),
    ]);
    let extension: Vec<String> = extension
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={}", cef_value(value)))
        .collect();
    format!(
        "CEF:0|Tollgate|tollgate|{}|{}|{}|{severity}|{}",
        env!("CARGO_PKG_VERSION"),
        cef_header(rule),
        cef_header(&format!("{word}: {rule} in {place}")),
        extension.join(" ")
    )
}

/// In a header `\` and `|` are escaped, and a line break can't be.
fn cef_header(text: &str) -> String {
    let mut out = String::new();
    for c in cut(text).chars() {
        match c {
            '\\' | '|' => out.extend(['\\', c]),
            c if acts(c) => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// In a value `\` and `=` are escaped, and line breaks are written `\n` and `\r`.
fn cef_value(text: &str) -> String {
    let mut out = String::new();
    for c in cut(text).chars() {
        match c {
            '\\' | '=' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if acts(c) => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(FIELD) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tollgate_flow::FlowId;
    use tollgate_screen::Place;
    use tollgate_screen::policy::Action;
    use tollgate_screen::scan::{Kind, Scanner};

    fn verdict(place: &str) -> Verdict {
        let findings = Scanner::builtin().scan(Kind::Command, b"rm -rf ~");
        assert!(!findings.is_empty());
        Verdict {
            flow: FlowId(7),
            target: "api.example:443".to_owned(),
            place: Place::ToolCall(place.to_owned()),
            reason: findings[0].rule.to_string(),
            findings,
            refused: true,
            action: Action::Block,
            rule: None,
            allow: String::new(),
        }
    }

    #[test]
    fn what_somebody_else_named_breaks_no_line_and_no_field() {
        let odd = "a|b=c\\d\r\ne\u{1b}[2J\u{85}\u{2028}\u{202e}f";
        for event in [
            Format::Json.event(&verdict(odd)),
            Format::Cef.event(&verdict(odd)),
        ] {
            assert!(!event.chars().any(acts), "{event:?}");
        }
        let cef = Format::Cef.event(&verdict(odd));
        // Seven bars that are none of a name's.
        let bars = cef
            .replace("\\\\", "")
            .replace("\\|", "")
            .matches('|')
            .count();
        assert_eq!(bars, 7 + 1, "{cef}");
        assert!(
            cef.contains("cs1=a call of the tool a|b\\=c\\\\d\\r\\ne"),
            "{cef}"
        );
        let json: Value = serde_json::from_str(&Format::Json.event(&verdict(odd))).unwrap();
        assert_eq!(json["place"], format!("a call of the tool {odd}"));
    }

    #[test]
    fn a_cef_event_has_its_fields() {
        let cef = Format::Cef.event(&verdict("bash"));
        let rule = verdict("bash").reason;
        assert!(
            cef.starts_with(&format!(
                "CEF:0|Tollgate|tollgate|0.1.0|{rule}|refused: {rule} in a call of the tool bash|"
            )),
            "{cef}"
        );
        for part in [
            " act=refused ",
            " dhost=api.example ",
            " dpt=443 ",
            " cs1=a call of the tool bash ",
        ] {
            assert!(cef.contains(part), "{part} {cef}");
        }
        let mut unread = verdict("x");
        unread.findings.clear();
        unread.target = "mcp:server".to_owned();
        unread.reason = "it is not UTF-8".to_owned();
        let cef = Format::Cef.event(&unread);
        assert!(
            cef.contains("|unread|")
                && cef.contains("dhost=mcp:server ")
                && cef.contains("msg=it is not UTF-8 "),
            "{cef}"
        );
    }

    #[test]
    fn a_syslog_message_has_its_header_and_a_bounded_length() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_123);
        let text = syslog("host name\n", time, true, "event");
        let text = String::from_utf8(text).unwrap();
        let pid = std::process::id();
        assert_eq!(
            text,
            format!("<108>1 2001-09-09T01:46:40.123Z hostname tollgate {pid} verdict - event")
        );
        assert!(
            syslog("", time, false, "").starts_with(b"<109>1 2001-09-09T01:46:40.123Z - tollgate ")
        );
        let long = verdict(&"x".repeat(100_000));
        assert!(Format::Json.event(&long).len() < 10_000);
        assert!(Format::Cef.event(&long).len() < 10_000);
    }
}

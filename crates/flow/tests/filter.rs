//! The filter language against what mitmproxy itself says: `data/filters.json` and `data/patterns.json`, made by
//! `data/generate.py`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests assert as tests do"
)]

use serde_json::Value;
use tollgate_flow::filter::Filter;
use tollgate_flow::mitm::FlowReader;
use tollgate_flow::record::{
    Body, Content, DnsExchange, DnsMessage, HttpExchange, HttpRequest, Question, Record,
};

fn flows() -> Vec<Record> {
    let file = &include_bytes!("data/flows.mitm")[..];
    FlowReader::new(file).collect::<Result<_, _>>().unwrap()
}

fn table(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn answers(filter: &Filter, flows: &[Record]) -> String {
    flows
        .iter()
        .map(|flow| if filter.matches(flow) { '1' } else { '0' })
        .collect()
}

#[test]
fn what_mitmproxy_accepts_means_the_same() {
    let flows = flows();
    let rows = table(include_str!("data/filters.json"));
    let mut wrong = Vec::new();
    for row in rows.as_array().unwrap() {
        let expression = row["expression"].as_str().unwrap();
        if row["accepted"] == false {
            continue;
        }
        match Filter::new(expression) {
            Ok(filter) => {
                let found = (filter.to_string(), answers(&filter, &flows));
                let wanted = (
                    row["words"].as_str().unwrap().to_owned(),
                    row["matches"].as_str().unwrap().to_owned(),
                );
                // Larger than any status; the number itself doesn't matter.
                let is_huge = expression.contains("9999999999");
                if found.1 != wanted.1 || (found.0 != wanted.0 && !is_huge) {
                    wrong.push(format!("{expression:?}: {found:?}, but {wanted:?}"));
                }
            }
            Err(error) => wrong.push(format!("{expression:?}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What it refuses may be accepted here; it is listed, so that a change is seen.
#[test]
fn what_mitmproxy_refuses_is_an_error_or_an_extension() {
    let rows = table(include_str!("data/filters.json"));
    let rows = rows.as_array().unwrap();
    let refused = rows.iter().filter(|row| row["accepted"] == false);
    let mut accepted: Vec<&str> = refused
        .map(|row| row["expression"].as_str().unwrap())
        .filter(|expression| Filter::new(expression).is_ok())
        // Among the random ones are many with two expressions beside each other in parentheses.
        .filter(|expression| !expression.contains("( "))
        .collect();
    accepted.sort_unstable();
    assert_eq!(
        accepted,
        [
            "(~q)",
            "(~u a ~u b)",
            "~b\"x\"",
            "~c200",
            "~q&~s",
            "~u a**",
            "~u a{2}{3}"
        ]
    );
}

#[test]
fn regular_expressions_match_as_in_python() {
    let table = table(include_str!("data/patterns.json"));
    let texts: Vec<&str> = table["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for row in table["patterns"].as_array().unwrap() {
        let operator = row["operator"].as_str().unwrap();
        let pattern = row["pattern"].as_str().unwrap();
        // Quoted, so that every character reaches the pattern.
        let quoted = pattern.replace('\\', "\\\\").replace('"', "\\\"");
        let filter = match Filter::new(&format!("{operator} \"{quoted}\"")) {
            Ok(filter) => filter,
            Err(error) => {
                wrong.push(format!("{operator} {pattern:?}: {error}"));
                continue;
            }
        };
        for (text, wanted) in texts.iter().zip(row["matches"].as_str().unwrap().bytes()) {
            // Python 3.14 has come round to Rust's view that this matches.
            if text.is_empty() && pattern.contains("\\B") {
                continue;
            }
            compared += 1;
            let found = filter.matches(&holding(operator, text));
            if found != (wanted == b'1') {
                wrong.push(format!("{operator} {pattern:?} in {text:?}: {found}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {compared}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A flow that has the text where the operator looks, and nowhere else.
fn holding(operator: &str, text: &str) -> Record {
    let mut request = HttpRequest::new("", "http", "h", 80, "/");
    let text = text.to_owned();
    match operator {
        "~m" => request.method = text.into(),
        "~b" => request.message.body = Body::whole(text),
        "~u" => {
            let mut query = DnsMessage::default();
            query.questions.push(Question {
                name: text,
                kind: 1,
                class: 1,
            });
            let dns = DnsExchange {
                request: query,
                response: None,
            };
            return Record::new("x", Default::default(), Content::Dns(Box::new(dns)));
        }
        _ => {
            let mut record = Record::http("x", HttpExchange::new(request));
            record.comment = text;
            return record;
        }
    }
    Record::http("x", HttpExchange::new(request))
}

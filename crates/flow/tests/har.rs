//! HAR and exports against what mitmproxy makes of the same flows: `data/flows.har`, `data/exports.json` and
//! `data/browser.mitm`, made by `data/generate.py`.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests assert as tests do"
)]

use serde_json::Value;
use tollgate_flow::export::{ExportFormat, ExportOptions, export};
use tollgate_flow::har::{HarEntryError, HarWriter, read_har};
use tollgate_flow::mitm::FlowReader;
use tollgate_flow::record::{Body, HttpExchange, HttpRequest, HttpResponse, Record};

fn flows(file: &[u8]) -> Vec<Record> {
    FlowReader::new(file).collect::<Result<_, _>>().unwrap()
}

fn written(records: &[Record]) -> String {
    let mut writer = HarWriter::new(Vec::new());
    for record in records {
        let is_http = record.as_http().is_some();
        assert_eq!(writer.write(record).unwrap(), is_http);
    }
    String::from_utf8(writer.finish().unwrap()).unwrap()
}

fn entries(file: &[u8]) -> Vec<Result<Record, HarEntryError>> {
    let mut entries = Vec::new();
    read_har(file, |entry| {
        entries.push(entry);
        true
    })
    .unwrap();
    entries
}

#[test]
fn a_har_is_what_mitmproxy_writes() {
    let ours = written(&flows(include_bytes!("data/flows.mitm")));
    // Who wrote it; and the size of heads, where mitmproxy has something else.
    let lines = |text: &str| {
        let differs = [
            "\"name\": \"mitmproxy\"",
            "\"name\": \"Tollgate\"",
            "\"version\": \"",
            "\"headersSize\": ",
        ];
        let lines = text
            .lines()
            .filter(|line| !differs.iter().any(|part| line.contains(part)));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let (ours, theirs) = (lines(&ours), lines(include_str!("data/flows.har")));
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours, theirs, "line {at}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn exports_are_what_mitmproxy_writes() {
    let table: Value = serde_json::from_str(include_str!("data/exports.json")).unwrap();
    let flows = flows(include_bytes!("data/flows.mitm"));
    let mut wrong = Vec::new();
    for (number, (record, row)) in flows.iter().zip(table.as_array().unwrap()).enumerate() {
        for format in ExportFormat::ALL {
            let ours = export(record, format, &ExportOptions::default()).ok();
            let ours = ours.map(|bytes| bytes.iter().map(|b| char::from(*b)).collect::<String>());
            let theirs = row[format.as_str()].as_str();
            if ours.as_deref() != theirs {
                wrong.push(format!(
                    "{number} {format}:\n{ours:?}\nbut mitmproxy\n{theirs:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_har_of_a_browser_is_read_as_mitmproxy_reads_it() {
    let theirs = flows(include_bytes!("data/browser.mitm"));
    let ours: Vec<_> = entries(include_bytes!("data/browser.har"))
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(ours.len(), theirs.len());
    for (mut ours, theirs) in ours.into_iter().zip(theirs) {
        assert!(ours.flow_id().is_some());
        ours.id = theirs.id.clone();
        ours.client.common.id.clear();
        ours.server.common.id.clear();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn what_was_written_is_read_again() {
    let mut request = HttpRequest::new("POST", "https", "example.com", 443, "/x?y");
    request.message.version = "HTTP/2.0".into();
    request.message.headers.push("content-type", "text/plain");
    request
        .message
        .headers
        .push("x-bytes", &b"\xff\x80\xfe"[..]);
    request.message.body = Body::whole("hello");
    let mut exchange = HttpExchange::new(request);
    let mut response = HttpResponse::new(200, "OK");
    response.message.body = Body::whole(vec![0, 1, 2, 255]);
    exchange.response = Some(response);
    let mut failed = Record::http(
        "y",
        HttpExchange::new(HttpRequest::new("GET", "http", "a", 80, "/")),
    );
    failed.error = Some(tollgate_flow::record::RecordError {
        message: "upstream: no such host".into(),
        timestamp: Default::default(),
    });
    let file = written(&[Record::http("x", exchange), failed]);
    let read: Vec<_> = entries(file.as_bytes())
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let http = read[0].as_http().unwrap();
    assert_eq!(http.request.pretty_url(), "https://example.com/x?y");
    assert_eq!(http.request.message.version, "HTTP/2.0");
    assert_eq!(
        http.request.message.headers.get("x-bytes"),
        Some(&b"\xff\x80\xfe"[..])
    );
    assert_eq!(http.request.message.body, Body::whole("hello"));
    assert_eq!(
        http.response.as_ref().unwrap().message.body,
        Body::whole(vec![0, 1, 2, 255])
    );
    assert_eq!(read[1].as_http().unwrap().response, None);
    assert_eq!(
        read[1].error.as_ref().unwrap().message,
        "upstream: no such host"
    );
}

#[test]
fn a_cut_body_is_marked() {
    let mut exchange = HttpExchange::new(HttpRequest::new("GET", "https", "example.com", 443, "/"));
    let mut response = HttpResponse::new(200, "OK");
    response.message.body = Body::kept("hel", 5);
    exchange.response = Some(response);
    let file: Value = serde_json::from_str(&written(&[Record::http("x", exchange)])).unwrap();
    let response = &file["log"]["entries"][0]["response"];
    assert_eq!(response["bodySize"], 5);
    assert_eq!(
        response["content"]["comment"],
        "the first 3 of 5 bytes were kept"
    );
}

#[test]
fn one_broken_entry_costs_itself_only() {
    let good = r#"{"startedDateTime": "2023-11-14T22:13:20Z", "time": 1,
        "request": {"method": "GET", "url": "http://a/", "headers": []},
        "response": {"status": 200, "headers": []}}"#;
    for (bad, what) in [
        ("7", "entry 1: it is not what HAR says: "),
        ("{}", "entry 1: it has no request"),
        (
            &good.replace("http://a/", "data:,x"),
            "entry 1: its URL has no host: \"data:,x\"",
        ),
        (
            &good.replace("2023-11", "x"),
            "entry 1: its startedDateTime, \"x-14T22:13:20Z\", is no time",
        ),
        (
            &good.replace(
                "\"status\"",
                "\"content\": {\"encoding\": \"base64\", \"text\": \"?\"}, \"status\"",
            ),
            "entry 1: the content of its response is no Base64: ",
        ),
    ] {
        let file = format!(
            "\u{feff}{{\"log\": {{\"pages\": [{{}}], \"entries\": [{good}, {bad}, {good}]}}}}"
        );
        let entries = entries(file.as_bytes());
        assert!(entries[0].is_ok() && entries[2].is_ok());
        let error = entries[1].as_ref().unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
}

#[test]
fn what_is_no_har_is_refused() {
    let error = |file: &str| read_har(file.as_bytes(), |_| true).unwrap_err().to_string();
    assert_eq!(
        error("{}"),
        "this is not a HAR file: it has no `log.entries`"
    );
    assert!(error("").starts_with("this is not a HAR file: EOF"));
    assert!(error("[]").starts_with("this is not a HAR file: invalid type"));
    assert!(error("{\"log\": {\"entries\": [").starts_with("this is not a HAR file: EOF"));
    assert!(
        error("{\"log\": {\"entries\": []}} x").starts_with("this is not a HAR file: trailing")
    );
    // Whoever has seen enough stops.
    let mut seen = 0;
    let file = include_bytes!("data/browser.har");
    read_har(&file[..], |_| {
        seen += 1;
        false
    })
    .unwrap();
    assert_eq!(seen, 1);
}

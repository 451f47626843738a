//! `tollgate scan --flows`: recorded flows are looked at where the proxy looks.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::process::{Command, Output};

use tollgate_flow::mitm::FlowWriter;
use tollgate_flow::record::{
    Body, HttpExchange, HttpRequest, HttpResponse, Record, Timestamp, WebSocketData,
    WebSocketMessage,
};

/// Not written in one piece, so that no scanner of a code host trips over it.
fn token() -> String {
    format!("AKIA{}", "Y3T6DKCNFLR2QWZ4")
}

fn post(id: &str, path: &str, body: String, answer: &str) -> Record {
    let mut request = HttpRequest::new("POST", "https", "api.example.com", 443, path);
    let headers = &mut request.message.headers;
    headers.push("Content-Type", "application/json");
    headers.push("Content-Length", body.len().to_string());
    request.message.body = Body::whole(body);
    let mut exchange = HttpExchange::new(request);
    let mut response = HttpResponse::new(200, "OK");
    let headers = &mut response.message.headers;
    headers.push("Content-Type", "application/json");
    response.message.body = Body::whole(answer.to_owned());
    exchange.response = Some(response);
    Record::http(id, exchange)
}

fn websocket(id: &str, content: String) -> Record {
    let mut request = HttpRequest::new("GET", "https", "api.example.com", 443, "/ws");
    request.message.headers.push("Connection", "Upgrade");
    request.message.headers.push("Upgrade", "websocket");
    let mut exchange = HttpExchange::new(request);
    let mut response = HttpResponse::new(101, "Switching Protocols");
    response.message.headers.push("Connection", "Upgrade");
    response.message.headers.push("Upgrade", "websocket");
    exchange.response = Some(response);
    exchange.websocket = Some(WebSocketData {
        messages: vec![WebSocketMessage {
            opcode: 1,
            from_client: true,
            content: content.into(),
            timestamp: Timestamp::new(1.5),
            dropped: false,
            injected: false,
        }],
        ..WebSocketData::default()
    });
    Record::http(id, exchange)
}

fn file(records: &[Record]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut writer = FlowWriter::new(&mut file);
    for record in records {
        writer.write(record).unwrap();
    }
    file
}

/// What `tollgate` says with its exit code, in a folder that has `all.mitm`.
fn scan(all: &[u8], arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("all.mitm"), all).unwrap();
    let mut tollgate = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    tollgate.current_dir(folder.path());
    let convert = ["convert", "all.mitm", "all.har"];
    if arguments.contains(&"all.har") {
        let mut first = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        first.current_dir(folder.path()).args(convert);
        assert!(first.output().unwrap().status.success());
    }
    let done: Output = tollgate.arg("scan").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        done.status.code().unwrap(),
        text(done.stdout),
        text(done.stderr),
    )
}

const CALL: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,
    "finish_reason":"tool_calls","message":{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function",
    "function":{"name":"bash","arguments":"{\"command\":\"rm -rf /\"}"}}]}}]}"#;

fn conversation(id: &str) -> Record {
    let asked = r#"{"model":"m","messages":[{"role":"user","content":"go"}]}"#;
    post(id, "/v1/chat/completions", asked.to_owned(), CALL)
}

#[test]
fn flows_without_findings_are_exit_code_0() {
    let all = file(&[post("one", "/a", r#"{"a":1}"#.to_owned(), "{}")]);
    assert_eq!(
        scan(&all, &["--flows", "all.mitm"]),
        (0, String::new(), String::new())
    );
}

#[test]
fn each_place_of_a_flow_is_named() {
    let all = file(&[
        post("body", "/a", format!(r#"{{"k":"{}"}}"#, token()), "{}"),
        post("url", &format!("/a?k={}", token()), "{}".to_owned(), "{}"),
        conversation("call"),
        websocket("ws", format!("my key: {}", token())),
    ]);
    for name in ["all.mitm", "all.har"] {
        let (code, out, err) = scan(&all, &["--flows", name]);
        assert_eq!((code, err.as_str()), (1, ""), "{name}: {out}");
        assert!(!out.contains(&token()), "{out}");
        let mut places: Vec<&str> = out
            .lines()
            .filter_map(|line| line.split(':').next()?.rsplit_once('/'))
            .map(|(_, place)| place)
            .collect();
        // A call is looked at as a command and as text that leaves.
        places.dedup();
        assert_eq!(places, ["request-body", "url", "bash", "message"], "{out}");
    }
    let (_, out, _) = scan(&all, &["--flows", "all.mitm"]);
    assert!(
        out.starts_with("all.mitm/body/request-body:6: high aws-access-key-id"),
        "{out}"
    );
    assert!(out.contains("\nall.mitm/call/tool-call/bash:"), "{out}");
}

#[test]
fn flows_are_reported_as_json_and_sarif() {
    let all = file(&[conversation("call")]);
    let (code, out, _) = scan(&all, &["--flows", "all.mitm", "--json"]);
    let line: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(
        (code, &line["file"]),
        (1, &"all.mitm/call/tool-call/bash".into())
    );
    let (code, out, _) = scan(&all, &["--flows", "all.mitm", "--sarif"]);
    let sarif: serde_json::Value = serde_json::from_str(&out).unwrap();
    let result = &sarif["runs"][0]["results"][0];
    let uri = &result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"];
    assert_eq!((code, uri), (1, &"all.mitm/call/tool-call/bash".into()));
}

#[test]
fn what_cannot_be_read_is_exit_code_2_and_the_rest_is_scanned() {
    let mut broken = post("coding", "/a", "{}".to_owned(), "{}");
    if let tollgate_flow::record::Content::Http(http) = &mut broken.content {
        http.request
            .message
            .headers
            .push("Content-Encoding", "gzip");
    }
    let all = file(&[broken, conversation("call")]);
    let (code, out, err) = scan(&all, &["--flows", "all.mitm"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("all.mitm/coding/request-body: "), "{err}");
    assert!(out.starts_with("all.mitm/call/tool-call/bash:"), "{out}");
    // Cut in its last flow.
    let cut = all.get(..all.len() - 10).unwrap();
    assert_eq!(scan(cut, &["--flows", "all.mitm"]).0, 2);
    assert_eq!(scan(&all, &["--flows", "nowhere.mitm"]).0, 2);
    assert_eq!(scan(b"no flows", &["--flows", "all.mitm"]).0, 2);
    assert_eq!(scan(&all, &["--flows", "all.mitm", "all.mitm"]).0, 2);
}

#[test]
fn a_body_that_was_not_kept_whole_is_said() {
    let mut record = post("cut", "/a", "{}".to_owned(), "{}");
    if let tollgate_flow::record::Content::Http(http) = &mut record.content {
        http.request.message.body = Body::kept(token(), 1000);
    }
    let (code, out, err) = scan(&file(&[record]), &["--flows", "all.mitm"]);
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("1 flow had not been recorded whole"), "{err}");
}

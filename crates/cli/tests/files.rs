//! `tollgate convert`, `export` and `filter`.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};

use serde_json::Value;
use support::{failure, output, tollgate};
use tollgate_flow::mitm::FlowWriter;
use tollgate_flow::record::{
    Body, Content, HttpExchange, HttpRequest, HttpResponse, Record, StreamMessage, Timestamp,
};

fn http(method: &str, path: &str, status: u16) -> Record {
    let mut request = HttpRequest::new(method, "https", "example.com", 443, path);
    request.message.started = Timestamp::new(1_700_000_000.5);
    request.message.headers.push("Host", "example.com");
    let mut exchange = HttpExchange::new(request);
    let mut response = HttpResponse::new(status, "OK");
    response.message.body = Body::whole("hello");
    exchange.response = Some(response);
    Record::http(format!("id-{path}"), exchange)
}

/// Two HTTP flows and a TCP flow.
fn capture() -> Vec<u8> {
    let message = StreamMessage {
        from_client: true,
        content: "hi".into(),
        timestamp: Timestamp::new(1.5),
    };
    let tcp = Record::new("id-tcp", Timestamp::new(1.5), Content::Tcp(vec![message]));
    let mut file = Vec::new();
    let mut writer = FlowWriter::new(&mut file);
    for record in [http("GET", "/a", 200), tcp, http("POST", "/b", 500)] {
        writer.write(&record).unwrap();
    }
    file
}

fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut child = tollgate(home.path())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_capture_becomes_har_and_a_flow_file_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("a.mitm"), capture()).unwrap();
    let done = output(&["convert", &path("a.mitm"), &path("a.har")]);
    assert!(done.status.success());
    let said = text(&done.stderr);
    assert!(
        said.starts_with("2 flows, ") && said.contains("1 flow left out: HAR"),
        "{said}"
    );
    let mode = fs::metadata(path("a.har")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let har: Value = serde_json::from_slice(&fs::read(path("a.har")).unwrap()).unwrap();
    assert_eq!(
        har["log"]["entries"][1]["request"]["url"],
        "https://example.com/b"
    );

    let done = output(&[
        "convert",
        &path("a.har"),
        &path("b.mitm"),
        "--json",
        "--filter",
        "~m post",
    ]);
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&report["flows"], &report["not_http"], &report["broken"]),
        (&1.into(), &0.into(), &0.into())
    );
    let shown = output(&["filter", "~all", &path("b.mitm")]);
    assert_eq!(
        text(&shown.stdout),
        "127.0.0.1:0: POST https://example.com/b\n << 500 Internal Server Error 5b\n"
    );
}

#[test]
fn standard_input_and_output_work() {
    let done = with_input(&["convert", "-", "-", "--to", "har"], &capture());
    assert!(done.status.success());
    assert!(serde_json::from_slice::<Value>(&done.stdout).is_ok());
    let done = with_input(&["filter", "~tcp | ~c 500", "-o", "-"], &capture());
    let again = with_input(&["filter", "~all", "--count"], &done.stdout);
    assert_eq!(text(&again.stdout), "2\n");
    let lines = with_input(&["filter", "~all", "--json"], &capture());
    let lines: Vec<Value> = text(&lines.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let types: Vec<_> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect();
    assert_eq!(types, ["http", "tcp", "http"]);
    assert_eq!(lines[2]["status"], 500);
}

#[test]
fn flows_are_exported_and_those_that_cannot_be_are_named() {
    let done = with_input(&["export", "curl"], &capture());
    assert!(done.status.success());
    assert_eq!(
        text(&done.stdout),
        "curl https://example.com/a\ncurl -H 'content-length: 0' -X POST https://example.com/b\n"
    );
    assert_eq!(
        text(&done.stderr),
        "warning: id-tcp: the flow has no request: it is not HTTP\n"
    );
    let done = with_input(
        &["export", "raw_response", "--filter", "~http", "--first"],
        &capture(),
    );
    assert_eq!(
        text(&done.stdout),
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    );
    let done = with_input(
        &["export", "raw", "--filter", "~c 500", "--json"],
        &capture(),
    );
    let line: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(line["text"].as_str().unwrap().ends_with("hello"));
    let none = with_input(&["export", "curl", "--filter", "~tcp"], &capture());
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn a_cut_file_gives_its_good_flows_and_exit_code_1() {
    let capture = capture();
    let done = with_input(
        &["filter", "~all", "--count"],
        &capture[..capture.len() - 5],
    );
    assert_eq!((text(&done.stdout), done.status.code()), ("2\n", Some(1)));
    let said = text(&done.stderr);
    assert!(
        said.starts_with("warning: standard input: byte ") && said.contains("cut off"),
        "{said}"
    );
}

#[test]
fn a_pipe_is_written_to_and_a_link_is_followed() {
    use std::os::unix::fs::{FileTypeExt as _, symlink};
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let made = std::process::Command::new("mkfifo")
        .arg(path("pipe"))
        .status();
    assert!(made.unwrap().success());
    let pipe = path("pipe");
    let reader = std::thread::spawn(move || fs::read(pipe).unwrap());
    let done = with_input(&["convert", "-", &path("pipe")], &capture());
    assert!(done.status.success());
    assert_eq!(reader.join().unwrap(), capture());
    let metadata = fs::symlink_metadata(path("pipe")).unwrap();
    assert!(metadata.file_type().is_fifo());
    fs::write(path("file"), "").unwrap();
    symlink(path("file"), path("link")).unwrap();
    assert!(
        with_input(&["convert", "-", &path("link")], &capture())
            .status
            .success()
    );
    assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink());
    assert_eq!(fs::read(path("file")).unwrap(), capture());
}

#[test]
fn what_is_wrong_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("a.mitm"), capture()).unwrap();
    fs::write(path("text"), "hello").unwrap();
    let (code, line) = failure(&["filter", "~foo", &path("a.mitm")]);
    assert_eq!(
        (code, line.as_str()),
        (
            1,
            "error: filter \"~foo\", column 1: there is no operator ~foo"
        )
    );
    let (code, line) = failure(&["filter", "~all", &path("text")]);
    assert_eq!(code, 1);
    assert!(
        line.ends_with("byte 0: this is not a flow file of mitmproxy"),
        "{line}"
    );
    let (_, line) = failure(&["filter", "~all", &path("nothing")]);
    assert!(line.contains("can't open"), "{line}");
    let (_, line) = failure(&["convert", &path("a.mitm"), &path("a.mitm")]);
    assert!(line.ends_with("is the input, too"), "{line}");
    let (_, line) = failure(&["convert", &path("a.mitm"), &path("a.zhar")]);
    assert!(line.contains(".zhar"), "{line}");
    assert_eq!(output(&["export", "word", "x"]).status.code(), Some(2));
}

#[test]
fn the_documents_list_every_operator() {
    use tollgate_flow::filter::{Argument, OPERATORS};
    let page = include_str!("../../../docs/reference/filters.md");
    let table = |name: &str, in_mitmproxy: bool| {
        let (_, rest) = page
            .split_once(&format!("<!-- {name}:begin -->\n"))
            .unwrap();
        let (table, _) = rest.split_once(&format!("<!-- {name}:end -->")).unwrap();
        let mut wanted = "| operator | matches |\n|---|---|\n".to_owned();
        for operator in OPERATORS
            .iter()
            .filter(|operator| operator.in_mitmproxy == in_mitmproxy)
        {
            let argument = match operator.argument {
                Argument::None => "",
                Argument::Regex => " rx",
                Argument::Integer => " N",
                Argument::Size => " SIZE",
                Argument::Duration => " TIME",
                Argument::Status => " STATUS",
            };
            wanted += &format!("| `~{}{argument}` | {} |\n", operator.code, operator.help);
        }
        assert_eq!(table, wanted);
    };
    table("operators", true);
    table("ours", false);
}

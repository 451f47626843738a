//! Recorded flows between Tollgate and real mitmproxy: what one writes, the other reads.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use tollgate_e2e::{LIMIT, Process, command, programs, require, tollgate_command};

/// Flows of every type, made by mitmproxy itself: in a script for its own Python, so that it is the version under test.
const MAKE: &str = r"
import sys
from mitmproxy import http
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

rich = tflow.tflow(resp=True)
rich.request = http.Request.make('POST', 'https://example.com:8443/a?b=c', b'hello \xff', {'Host': 'example.com:8443'})
rich.response.headers['content-encoding'] = 'gzip'
rich.response.content = b'compressed'
rich.comment, rich.marked, rich.metadata['note'] = 'look', ':red_circle:', {'deep': [1, None, b'x']}
flows = [
    rich, tflow.tflow(resp=True), tflow.tflow(err=True), tflow.twebsocketflow(), tflow.ttcpflow(), tflow.ttcpflow(err=True),
    tflow.tudpflow(), tflow.tdnsflow(resp=True), tflow.tdnsflow(),
]
with open(sys.argv[1], 'wb') as f:
    writer = FlowWriter(f)
    for flow in flows:
        writer.add(flow)
";

fn run(program: &str, arguments: &[&str]) -> String {
    let mut run = command(program);
    run.args(arguments);
    Process::run(run, LIMIT).success().text()
}

fn python() -> String {
    programs::mitmproxy_venv().display().to_string()
}

/// mitmdump in its virtual environment.
fn mitmdump() -> String {
    programs::mitmproxy_venv()
        .with_file_name("mitmdump")
        .display()
        .to_string()
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        run(
            &python(),
            &["-W", "ignore", "-c", MAKE, &files.path("made.mitm")],
        );
        files
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }

    /// What mitmdump makes of a file when it reads it and writes it again.
    fn rewritten(&self, name: &str) -> Vec<u8> {
        let out = self.path("rewritten.mitm");
        let _ = fs::remove_file(&out);
        let confdir = format!("confdir={}", self.path("conf"));
        run(
            &mitmdump(),
            &[
                "-q",
                "-n",
                "-r",
                &self.path(name),
                "-w",
                &out,
                "--set",
                &confdir,
            ],
        );
        fs::read(out).unwrap()
    }
}

#[test]
fn mitmdump_reads_what_tollgate_writes_and_the_other_way_round() {
    require!("mitmproxy-venv");
    let files = Files::new();
    let ran = tollgate_command(&[
        "convert",
        "--json",
        &files.path("made.mitm"),
        &files.path("ours.mitm"),
    ]);
    let report: Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!(
        (&report["flows"], &report["broken"]),
        (&9.into(), &0.into())
    );
    // Byte for byte the same, once mitmproxy has read and written both. (Where the format leaves the order of keys open, it
    // has changed with mitmproxy 12: that is the order which we write.)
    assert!(files.rewritten("ours.mitm") == files.rewritten("made.mitm"));
}

#[test]
fn mitmdump_reads_flows_that_came_from_har() {
    require!("mitmproxy-venv");
    let files = Files::new();
    tollgate_command(&["convert", &files.path("made.mitm"), &files.path("ours.har")]);
    tollgate_command(&["convert", &files.path("ours.har"), &files.path("back.mitm")]);
    assert!(files.rewritten("back.mitm") == files.read("back.mitm"));
    // mitmdump reads the HAR as well, and sees the same requests.
    let confdir = format!("confdir={}", files.path("conf"));
    let urls = |name: &str| {
        let arguments = [
            "-n",
            "-r",
            &files.path(name),
            "--set",
            &confdir,
            "--showhost",
            "--set",
            "flow_detail=2",
        ];
        let shown = run(&mitmdump(), &arguments);
        let lines = shown
            .lines()
            .filter_map(|line| line.split_once("http").map(|(_, url)| url.to_owned()));
        lines.collect::<Vec<_>>()
    };
    let from_har = urls("ours.har");
    assert!(from_har.len() >= 4, "{from_har:?}");
    assert_eq!(urls("back.mitm"), from_har);
}

#[test]
fn filters_choose_the_same_flows() {
    require!("mitmproxy-venv");
    let files = Files::new();
    let confdir = format!("confdir={}", files.path("conf"));
    for expression in [
        "~m post",
        "~http ~q",
        "~b hello | ~dns",
        "!~http & !( ~tcp )",
        "~comment look",
        "~meta deep",
    ] {
        let theirs = files.path("theirs.mitm");
        let _ = fs::remove_file(&theirs);
        run(
            &mitmdump(),
            &[
                "-q",
                "-n",
                "-r",
                &files.path("made.mitm"),
                "-w",
                &theirs,
                "--set",
                &confdir,
                expression,
            ],
        );
        let ours = files.path("ours.mitm");
        tollgate_command(&["filter", expression, &files.path("made.mitm"), "-o", &ours]);
        let same = files.rewritten("ours.mitm") == fs::read(theirs).unwrap();
        assert!(same, "{expression}");
    }
}

#[test]
fn curl_commands_run() {
    require!("mitmproxy-venv", "sh");
    let files = Files::new();
    let made = files.path("made.mitm");
    let ran = tollgate_command(&["export", "curl", &made, "--filter", "~u b=c", "--first"]);
    // Without curl itself: what its shell makes of the words.
    let script = format!(
        "curl() {{ for word; do printf '%s\\n' \"$word\"; done; }}; {}",
        ran.text()
    );
    let words = run("sh", &["-c", &script]);
    let words: Vec<_> = words.lines().collect();
    assert!(
        words.contains(&"https://example.com:8443/a?b=c"),
        "{words:?}"
    );
    assert!(
        words.windows(2).any(|pair| pair == ["-X", "POST"]),
        "{words:?}"
    );
}

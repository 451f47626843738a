//! Flows from files and into files, and which of them.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use tollgate_e2e::{LIMIT, Process, binary, command, require};
use tollgate_flow::mitm::FlowReader;
use tollgate_flow::record::Record;

use crate::at;
use crate::pair::{Theirs, mitmdump, sets, tollgate};
use crate::traffic::{Client, Origin, Transport, get, post};

/// Flows as mitmproxy would have recorded them, and one that has no answer.
const MAKE: &str = r"
import sys
from mitmproxy import http
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

def flow(method, url, body, headers, answer):
    made = tflow.tflow(resp=answer is not None)
    made.request = http.Request.make(method, url, body, headers)
    if answer is not None:
        made.response = http.Response.make(200, answer, {'Content-Type': 'text/plain', 'Set-Cookie': 'a=1; Path=/'})
    return made

with open(sys.argv[1], 'wb') as f:
    writer = FlowWriter(f)
    for made in [
        flow('GET', 'http://one.example/a', b'', {'If-None-Match': '1', 'Accept-Encoding': 'gzip'}, b'a secret'),
        flow('GET', 'http://one.example/b', b'', {'Authorization': 'Basic eDp5', 'X-Two': 'old'}, b'a secret'),
        flow('POST', 'http://one.example/c', b'hello', {'If-Modified-Since': 'x'}, b'another'),
        flow('GET', 'https://two.example/d?x=1', b'', {}, b'a secret'),
        flow('GET', 'http://one.example/e', b'', {}, None),
        tflow.ttcpflow(),
        tflow.tdnsflow(resp=True),
        tflow.twebsocketflow(),
    ]:
        writer.add(made)
";

fn records(path: &str) -> Vec<Record> {
    let file = fs::File::open(path).unwrap();
    FlowReader::new(file).map(Result::unwrap).collect()
}

/// What is compared of a flow: its content.
fn shown(record: &Record) -> String {
    format!(
        "{} {:?} {:?} {:#?}",
        record.id, record.replay, record.error, record.content
    )
}

#[test]
fn read_flows_pass_through_the_same_options() {
    require!("mitmproxy-venv");
    let dir = TempDir::new().unwrap();
    let made = at(&dir, "made.mitm");
    let mut make = command(
        &tollgate_e2e::programs::mitmproxy_venv()
            .display()
            .to_string(),
    );
    make.args(["-W", "ignore", "-c", MAKE, &made]);
    Process::run(make, LIMIT).success();
    for options in [
        &[][..],
        // What changes traffic that passes leaves alone what has passed.
        &[
            "modify_headers=/X-Two/changed",
            "modify_body=/secret/[gone]",
            "map_remote=|one.example|other.example",
            "block_list=|~u /b|403",
        ],
        &["anticache", "anticomp"],
        &["stickycookie=.", "stickyauth=."],
        &["stickycookie=~u /c", "stickyauth=~m post"],
        &[
            "readfile_filter=~m get & ~http",
            "save_stream_filter=~u /b | ~u /d",
        ],
        &["readfile_filter=~u one", "anticache"],
        &["save_stream_filter=!~hq if-none-match & ~http", "anticache"],
    ] {
        let run = |program: &str, name: &str| {
            let out = at(&dir, name);
            let _ = fs::remove_file(&out);
            let mut run = command(program);
            run.arg("-q").args(sets(&[
                "server=false".to_owned(),
                format!("rfile={made}"),
                format!("save_stream_file={out}"),
            ]));
            run.args(sets(options));
            run.arg("--set")
                .arg(format!("confdir={}", at(&dir, "conf")));
            Process::run(run, LIMIT).success();
            let mut records: Vec<_> = records(&out).iter().map(shown).collect();
            // What has no answer is written at its end there.
            records.sort();
            records
        };
        let theirs = run(&mitmdump(), "theirs.mitm");
        assert!(!theirs.is_empty(), "{options:?}: nothing is compared");
        let ours = run(binary(), "ours.mitm");
        assert_eq!(
            ours, theirs,
            "Tollgate (left) and mitmdump (right), {options:?}"
        );
    }
}

/// The lines that say which requests were shown.
fn lines(output: &str, origin: &Origin) -> Vec<String> {
    let authorities = [Transport::Plain, Transport::Tls].map(|one| origin.authority(one));
    let shown = output.lines().filter_map(|line| {
        let (_, request) = line.split_once(": ")?;
        authorities
            .iter()
            .any(|authority| request.contains(authority))
            .then(|| request.trim_end().to_owned())
    });
    // The names of connections stand there, too.
    shown
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect()
}

#[test]
fn what_is_shown_and_saved_as_it_passes() {
    require!("mitmproxy-venv", "openssl");
    let origin = Origin::start();
    let dir = TempDir::new().unwrap();
    let options = |who: &str| {
        sets(&[
            format!("ssl_verify_upstream_trusted_ca={}", origin.ca().display()),
            format!("save_stream_file={}", at(&dir, &format!("{who}.mitm"))),
            "save_stream_filter=~m post | ~u gzip".to_owned(),
            format!("hardump={}", at(&dir, &format!("{who}.har"))),
            "dumper_filter=~u /a | ~c 403".to_owned(),
            "block_list=|~u blocked|403".to_owned(),
            "modify_headers=/~q/X-Saved/yes".to_owned(),
            "modify_body=/~s/secret/[gone]".to_owned(),
        ])
    };
    let theirs = Theirs::start(&options("theirs"));
    let ours = tollgate(&options("ours"));
    let requests = [
        get("/a?x=1&y=2"),
        get("/gzip").with("Cookie", "k=v; other=\"x y\""),
        post("/form", "name=me&x=a+b").with("Content-Type", "application/x-www-form-urlencoded"),
        get("/blocked"),
        get("/else").method("HEAD"),
    ];
    let theirs_client = theirs.client().trusting(&[theirs.cert()]);
    let ours_client = Client::new(ours.address()).trusting(&[ours.cert()]);
    for transport in Transport::ALL {
        for request in &requests {
            for client in [&theirs_client, &ours_client] {
                client.ask(transport, &origin, request).unwrap();
            }
        }
    }
    let theirs = theirs.stop();
    ours.process().signal("TERM");
    let ours = ours.finish().text();
    let (ours, theirs) = (lines(&ours, &origin), lines(&theirs, &origin));
    assert_eq!(
        ours, theirs,
        "shown by Tollgate (left) and mitmdump (right)"
    );
    assert_eq!(theirs.len(), 6, "{theirs:?}");

    let saved = |who: &str| {
        let saved = records(&at(&dir, &format!("{who}.mitm")));
        let each = saved.iter().map(|record| {
            let http = record.as_http().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let response = http.response.as_ref().unwrap();
            (
                format!("{} {}", text(&http.request.method), http.request.url()),
                text(&http.request.message.version),
                text(&http.request.message.content().unwrap()),
                http.request
                    .message
                    .headers
                    .joined("x-saved")
                    .map(|value| text(&value)),
                (response.status, text(&response.message.content().unwrap())),
            )
        });
        each.collect::<Vec<_>>()
    };
    assert_eq!(
        saved("ours"),
        saved("theirs"),
        "saved by Tollgate (left) and mitmdump (right)"
    );
    assert_eq!(saved("ours").len(), 6);

    let entries = |who: &str| {
        let text = fs::read(dir.path().join(format!("{who}.har"))).unwrap();
        let har: Value = serde_json::from_slice(&text).unwrap();
        let entries = har["log"]["entries"].as_array().unwrap().clone();
        entries.iter().map(entry).collect::<Vec<_>>()
    };
    assert_eq!(
        entries("ours"),
        entries("theirs"),
        "HAR of Tollgate (left) and mitmdump (right)"
    );
    assert_eq!(entries("ours").len(), 6);
}

/// What of an entry is no time and no framing.
fn entry(entry: &Value) -> Vec<Value> {
    let fields = |message: &Value| {
        let mut fields: Vec<(String, String)> = message["headers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|field| {
                let text = |key: &str| field[key].as_str().unwrap().to_owned();
                (text("name").to_ascii_lowercase(), text("value"))
            })
            .filter(|(name, _)| {
                ![
                    "content-length",
                    "transfer-encoding",
                    "connection",
                    "content-encoding",
                    "server",
                ]
                .contains(&&**name)
            })
            .collect();
        fields.sort();
        serde_json::to_value(fields).unwrap()
    };
    let (request, response) = (&entry["request"], &entry["response"]);
    vec![
        request["method"].clone(),
        request["url"].clone(),
        request["httpVersion"].clone(),
        request["cookies"].clone(),
        request["queryString"].clone(),
        request["postData"].clone(),
        fields(request),
        response["status"].clone(),
        response["statusText"].clone(),
        response["httpVersion"].clone(),
        response["cookies"].clone(),
        response["redirectURL"].clone(),
        response["content"]["mimeType"].clone(),
        response["content"]["text"].clone(),
        response["content"]["encoding"].clone(),
        fields(response),
        entry["serverIPAddress"].clone(),
    ]
}

#[test]
fn options_that_make_no_sense_end_both() {
    require!("mitmproxy-venv");
    let dir = TempDir::new().unwrap();
    let empty = at(&dir, "empty.mitm");
    fs::write(&empty, "").unwrap();
    for (options, is_good) in [
        (
            &["anticache", "http2=toggle", "stickyauth=", "modify_headers"][..],
            true,
        ),
        (
            &[
                "modify_headers=/a/b",
                "modify_headers=/c/d",
                "flow_detail=3",
            ],
            true,
        ),
        (&["anticache=maybe"], false),
        (&["anticache=true", "anticache=false"], false),
        (&["flow_detail=much"], false),
        (&["block_list=/~d a"], false),
        (&["block_list=/~d a/teapot"], false),
        (&["modify_body=/(/x"], false),
        (&["stickycookie=~zz"], false),
        (&["proxyauth=nobody"], false),
    ] {
        let run = |program: &str| {
            let mut run = command(program);
            run.arg("-q").args(sets(&[
                "server=false".to_owned(),
                format!("rfile={empty}"),
                format!("confdir={}", at(&dir, "conf")),
            ]));
            run.args(sets(options));
            Process::run(run, LIMIT).status.success()
        };
        assert_eq!(run(&mitmdump()), is_good, "mitmdump: {options:?}");
        assert_eq!(run(binary()), is_good, "Tollgate: {options:?}");
    }
}

//! The cases of the Autobahn test suite through Tollgate.
//!
//! kosoku drives Autobahn's own case files (25.10.1). It speaks plain WebSocket, so `tls_forward.py` stands before it and
//! opens TLS: once to the echo server itself, once through Tollgate, which opens TLS on both sides. What the proxy may not
//! do is change a result; what the echo server itself can't do stays as it is.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};
use tollgate_e2e::programs::python_venv;
use tollgate_e2e::{Pki, Process, Script, Tollgate, command, require};

/// All of framing, pings, reserved bits, opcodes, fragments, UTF-8 and closing; of limits (9) the ones that take no minute;
/// and of each kind of compression (12, 13) a small size, a large one, and a large one in fragments.
const CASES: [&str; 21] = [
    "1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.1.1", "9.1.2", "9.2.1", "9.3.9", "9.5.6",
    "9.7.1", "9.8.1", "10.*", "12.*.2", "12.*.7", "12.*.12", "13.*.2", "13.*.7", "13.*.12",
];

/// How many they are.
const COUNT: usize = 290;

/// More messages than this come from the client: each case of compression alone has a thousand.
const MESSAGES: u64 = 30_000;

/// How many run at once; most wait for a second in which nothing may come.
const PARALLEL: &str = "16";

/// How long one run may take, each of whose cases has a limit of its own.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn every_case_ends_as_it_does_without_the_proxy() {
    require!("python-venv", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let echo = Script::start("ws_echo.py", [pki.cert(), pki.key()]);
    let target = echo.authority();

    let direct = Script::start("tls_forward.py", [&target, &text(&pki.ca())]);
    let expected = run(&direct, &dir.path().join("direct"));

    let proxy = Tollgate::trusting(&pki.ca(), &["--json"]);
    let address = proxy.address().to_string();
    let through = Script::start("tls_forward.py", [&target, &text(proxy.cert()), &address]);
    let seen = run(&through, &dir.path().join("through"));

    assert_eq!(expected.len(), COUNT, "cases were not found");
    let different: Vec<_> = expected
        .iter()
        .filter(|(case, result)| seen.get(*case).map(judgement) != Some(judgement(result)))
        .map(|(case, result)| format!("{case}: {result} became {:?}", seen.get(case)))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
    // A suite in which everything fails would be the same on both ways, too.
    let failed = |result: &&Value| judgement(result).0 == "FAILED";
    assert!(
        expected.values().filter(failed).count() <= 1,
        "{expected:?}"
    );
    // Nor is it one if Tollgate only passes bytes: it has read the messages of every case.
    let messages = proxy
        .process()
        .wait_stdout(LIMIT, "a flow for each case", |text| {
            let flows = text.lines().map(serde_json::from_str::<Value>);
            let counts: Vec<_> = flows
                .filter_map(|flow| flow.ok()?["websocket"]["client_messages"].as_u64())
                .collect();
            (counts.len() == COUNT).then(|| counts.iter().sum::<u64>())
        });
    assert!(messages > MESSAGES, "{messages}");
}

/// What a case came to, without how long it took. NON-STRICT counts as OK: it says that the server noticed a bad frame before
/// it had answered the good one in front of it, which is a race of the server's own.
fn judgement(result: &Value) -> (&str, &str, Option<u64>) {
    let behavior = match result["behavior"].as_str() {
        Some("NON-STRICT") => "OK",
        other => other.unwrap_or_default(),
    };
    let close = result["behaviorClose"].as_str().unwrap_or_default();
    (behavior, close, result["remoteCloseCode"].as_u64())
}

/// Runs the cases; the results by case.
fn run(target: &Script, folder: &Path) -> Map<String, Value> {
    let kosoku = python_venv().with_file_name("kosoku");
    let mut kosoku = command(&text(&kosoku));
    for case in CASES {
        kosoku.args(["--include", case]);
    }
    kosoku
        .args(["--parallelism", PARALLEL, "--outdir"])
        .arg(folder)
        .arg(format!("127.0.0.1:{}", target.port()));
    // Its exit code is 1 if any case failed; without any the report is missing.
    let finished = Process::run(kosoku, LIMIT);
    let report = fs::read(folder.join("index.json"))
        .unwrap_or_else(|error| panic!("no report ({error}): {}", finished.stderr));
    let mut agents: Map<String, Value> = serde_json::from_slice(&report).unwrap();
    let agent = agents.keys().next().expect("one agent").clone();
    match agents.remove(&agent) {
        Some(Value::Object(cases)) => cases,
        other => panic!("not a report: {other:?}"),
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

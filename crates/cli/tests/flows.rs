//! `tollgate flows`: what a proxy recorded, while it runs and after.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Value;
use support::{Origin, PATIENCE, Proxy, output, tollgate};

fn flows(home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = tollgate(home)
        .arg("flows")
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn json(home: &Path, arguments: &[&str]) -> Vec<Value> {
    let (code, out, err) = flows(home, arguments);
    assert_eq!(code, 0, "{err}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn wait_for(home: &Path, count: usize) -> Vec<Value> {
    let begin = Instant::now();
    loop {
        let (code, out, _) = flows(home, &["--json"]);
        if code == 0 && out.lines().count() == count {
            return json(home, &["--json"]);
        }
        assert!(begin.elapsed() < PATIENCE, "{out}");
    }
}

#[test]
fn flows_are_recorded_listed_searched_shown_exported_and_deleted() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--upstream-trusted-ca", &origin.ca()]);
    let home = proxy.home.path().to_owned();
    proxy.curl(&origin.url("/first"), &["--http1.1"]);
    proxy.curl(&origin.url("/second"), &["--http1.1", "--data", "a secret"]);
    // From beside the running proxy.
    let all = wait_for(&home, 2);
    assert_eq!(all[0]["url"], origin.url("/first"));
    assert_eq!(all[1]["method"], "POST");
    assert_eq!(all[1]["request_bytes"], 8);
    let folder = home.join(".local/share/tollgate/flows");
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("flows.db")), 0o600);

    for (query, expected) in [
        (&["~m post"][..], 1),
        (&["~u", "/first"], 1),
        (&["secret"], 1),
        (&["SECRET", "sec*"], 1),
        (&["received"], 2),
        (&["~c 404"], 0),
        (&["-n", "1"], 1),
        (&["--since", "1h"], 2),
    ] {
        let found = json(&home, &[&["--json"], query].concat());
        assert_eq!(found.len(), expected, "{query:?}");
    }
    let (_, table, _) = flows(&home, &[]);
    assert!(
        table.contains("  200  POST   https://localhost:"),
        "{table}"
    );
    let (_, shown, _) = flows(&home, &["show", "2"]);
    for part in [
        "POST https://localhost",
        "\n\n    a secret\n",
        " << 200 OK",
        "\"received\": 8",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let id = all[0]["id"].as_str().unwrap();
    let shown = json(&home, &["show", "--json", id.get(..18).unwrap()]);
    assert_eq!(
        shown[0]["response"]["body"],
        r#"{"path":"/first","received":0}"#
    );
    let (code, _, err) = flows(&home, &["show", "77"]);
    assert_eq!((code, err.as_str()), (1, "error: there is no flow 77\n"));

    for name in ["all.mitm", "all.har"] {
        let file = home.join(name);
        let (code, _, err) = flows(&home, &["--export", file.to_str().unwrap()]);
        assert_eq!(code, 0, "{err}");
        let read = output(&["filter", "--json", "~bq secret", file.to_str().unwrap()]);
        assert_eq!(String::from_utf8_lossy(&read.stdout).lines().count(), 1);
    }

    // The proxy has it open: it overwrites what is deleted here.
    assert_eq!(
        json(&home, &["delete", "--json", "~m post"])[0]["deleted"],
        1
    );
    assert_eq!(wait_for(&home, 1)[0]["number"], 1);
    proxy.signal("TERM");
    proxy.wait();
    assert_eq!(json(&home, &["stats", "--json"])[0]["flows"], 1);
    let (code, _, err) = flows(&home, &["delete"]);
    assert!(code == 1 && err.contains("--all"), "{err}");
    assert_eq!(json(&home, &["delete", "--all", "--json"])[0]["deleted"], 1);
    assert_eq!(json(&home, &["--json"]), Vec::<Value>::new());
}

#[test]
fn what_comes_is_followed() {
    let origin = Origin::start();
    let proxy = Proxy::start(&["--upstream-trusted-ca", &origin.ca()]);
    proxy.curl(&origin.url("/before"), &["--http1.1"]);
    wait_for(proxy.home.path(), 1);
    let mut follow = tollgate(proxy.home.path())
        .args(["flows", "-f", "--json", "~u wanted|before"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["url"], origin.url("/before"));
    proxy.curl(&origin.url("/other"), &["--http1.1"]);
    proxy.curl(&origin.url("/wanted"), &["--http1.1"]);
    assert_eq!(next()["url"], origin.url("/wanted"));
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn who_wants_no_record_has_none() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--store", "off", "--upstream-trusted-ca", &origin.ca()]);
    proxy.curl(&origin.url("/"), &["--http1.1"]);
    proxy.line();
    proxy.signal("TERM");
    proxy.wait();
    let (code, _, err) = flows(proxy.home.path(), &[]);
    assert!(
        code == 1 && err.contains("no flows have been recorded"),
        "{err}"
    );
}

#[test]
fn the_folder_may_be_named_before_the_command() {
    let origin = Origin::start();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let mut proxy = Proxy::start(&["--store-dir", folder, "--upstream-trusted-ca", &origin.ca()]);
    proxy.curl(&origin.url("/here"), &["--http1.1"]);
    proxy.line();
    proxy.signal("TERM");
    proxy.wait();
    for arguments in [
        &["--store-dir", folder, "show", "1", "--json"],
        &["show", "1", "--store-dir", folder, "--json"],
    ] {
        let (code, out, err) = flows(proxy.home.path(), arguments);
        assert!(code == 0 && out.contains("/here"), "{out}{err}");
    }
    let (code, _, err) = flows(proxy.home.path(), &["-n", "1", "show", "1"]);
    assert!(code == 1 && err.contains("for listing"), "{err}");
}

#[test]
fn the_environment_does_not_record_what_a_command_does() {
    let origin = Origin::start();
    let folder = tempfile::tempdir().unwrap();
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["run", "--upstream-trusted-ca", &origin.ca(), "--", "true"])
        .env("TOLLGATE_STORE", "disk")
        .env("TOLLGATE_STORE_DIR", folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn a_second_proxy_works_without_recording_unless_it_was_told_to() {
    let origin = Origin::start();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let first = Proxy::start(&["--data-dir", data]);
    let mut second = Proxy::start(&["--data-dir", data, "--upstream-trusted-ca", &origin.ca()]);
    let answer = second.curl(
        &origin.url("/"),
        &[
            "--http1.1",
            "--cacert",
            &format!("{data}/tollgate-ca-cert.pem"),
        ],
    );
    assert!(answer.status.success(), "{answer:?}");
    let (_, lines) = {
        second.signal("TERM");
        second.wait()
    };
    assert!(!lines.is_empty());
    let home = tempfile::tempdir().unwrap();
    let told = tollgate(home.path())
        .args([
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data,
            "--store",
            "disk",
        ])
        .output()
        .unwrap();
    let error = String::from_utf8(told.stderr).unwrap();
    assert!(error.contains("another tollgate records here"), "{error}");
    assert_eq!(told.status.code(), Some(1));
    drop(first);
}

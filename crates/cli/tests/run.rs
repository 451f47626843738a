//! `tollgate run`: what a command gets, and what comes of it.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::path::Path;
use std::process::Output;

use support::{Origin, has, tollgate};

fn run(arguments: &[&str], command: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let output = tollgate(home.path())
        .arg("run")
        .args(arguments)
        .arg("--")
        .args(command)
        .output()
        .unwrap();
    // Neither an authority nor temporary files are left behind.
    let left: Vec<_> = home.path().read_dir().unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    output
}

fn sh(script: &str) -> Output {
    run(&[], &["sh", "-c", script])
}

fn text(output: &Output) -> (&str, &str) {
    (
        std::str::from_utf8(&output.stdout).unwrap(),
        std::str::from_utf8(&output.stderr).unwrap(),
    )
}

#[test]
fn the_exit_code_is_the_commands() {
    assert_eq!(sh("exit 7").status.code(), Some(7));
    assert_eq!(sh("kill -KILL $$").status.code(), Some(137));
    assert_eq!(run(&[], &["/does/not/exist"]).status.code(), Some(127));
    assert_eq!(run(&[], &["/dev/null"]).status.code(), Some(126));
}

#[test]
fn signals_reach_the_command() {
    // The command sends the signal to its parent, and gets it back.
    for (signal, code) in [
        ("TERM", 5),
        ("INT", 6),
        ("HUP", 7),
        ("QUIT", 8),
        ("USR1", 9),
    ] {
        let script = format!(
            "trap 'kill $!; exit {code}' {signal}; sleep 60 >/dev/null 2>&1 & kill -s {signal} $PPID; wait"
        );
        // In a session of its own: on a terminal, Ctrl-C reaches the command without us.
        let home = tempfile::tempdir().unwrap();
        let tollgate = tollgate(home.path());
        let mut command = std::process::Command::new("setsid");
        command
            .arg("--wait")
            .arg(tollgate.get_program())
            .args(["run", "--", "sh", "-c", &script])
            .env("HOME", home.path());
        assert_eq!(command.status().unwrap().code(), Some(code), "{signal}");
    }
}

#[test]
fn the_environment_names_the_proxy_and_its_authority() {
    let output = sh(
        "echo $HTTPS_PROXY; echo $https_proxy; echo [$NO_PROXY]; cat $SSL_CERT_FILE; ls -ld $(dirname $SSL_CERT_FILE)",
    );
    let (out, err) = text(&output);
    assert_eq!(err, "");
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("http://127.0.0.1:"));
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2], "[]");
    assert_eq!(lines[3], "-----BEGIN CERTIFICATE-----");
    assert!(lines.last().unwrap().starts_with("drwx------"));
}

#[test]
fn curl_goes_through() {
    let origin = Origin::start();
    let url = origin.url("/x");
    let output = run(
        &["--upstream-trusted-ca", &origin.ca()],
        &["curl", "-sS", &url],
    );
    assert_eq!(text(&output), (r#"{"path":"/x","received":0}"#, ""));

    // Flows only if asked for, and beside the command's output.
    let output = run(
        &["--flow-detail", "1", "--upstream-trusted-ca", &origin.ca()],
        &["curl", "-sS", &url],
    );
    let (out, err) = text(&output);
    assert_eq!(out, r#"{"path":"/x","received":0}"#);
    assert!(err.contains(&format!("GET {url}")), "{err}");
}

#[test]
fn what_a_screen_finds_is_told_beside_the_commands_output() {
    // Put together here, so that nobody takes it for a real one.
    let key = format!("AK{}", "IAY3T6DKCNFLR2QWZ4");
    let origin = Origin::start();
    let (ca, url) = (origin.ca(), origin.url("/x"));
    for (mode, word, answer) in [
        ("monitor", "seen", r#"{"path":"/x","received":20}"#),
        ("enforce", "refused", r#""type":"tollgate_refused""#),
    ] {
        let output = run(
            &["--screen", mode, "--upstream-trusted-ca", &ca],
            &["curl", "-sS", "--data-binary", &key, &url],
        );
        let (out, err) = text(&output);
        assert!(out.contains(answer), "{out}");
        let told = format!("{word}: aws-access-key-id in the request body");
        assert!(err.contains(&told) && !err.contains(&key), "{err}");
    }
}

/// Runs a program that gets the URL in `URL`, and expects the origin's answer, and the flow to be seen.
fn goes_through(program: &[&str], path: &str) {
    let origin = Origin::start();
    let url = origin.url(path);
    let mut command = vec!["env"];
    let variable = format!("URL={url}");
    command.push(&variable);
    command.extend(program);
    let output = run(&["--json", "--upstream-trusted-ca", &origin.ca()], &command);
    let (out, err) = text(&output);
    assert!(
        out.contains(&format!("\"path\":\"{path}\"")) && err.contains(&url),
        "{out}\n{err}"
    );
}

#[test]
fn nodes_fetch_goes_through() {
    if has("node") {
        let script = "fetch(process.env.URL, { method: 'POST', body: 'x' }).then((r) => r.text()).then(console.log)";
        goes_through(&["node", "-e", script], "/fetch");
    }
}

#[test]
fn nodes_https_goes_through() {
    if has("node") {
        let script = "require('https').get(process.env.URL, (r) => r.pipe(process.stdout))";
        goes_through(&["node", "-e", script], "/get");
        let script = "require('https').get(process.env.URL, { agent: false }, (r) => r.pipe(process.stdout))";
        goes_through(&["node", "-e", script], "/agent");
    }
}

#[test]
fn python_goes_through() {
    if has("python3") {
        let script =
            "import os, urllib.request as u; print(u.urlopen(os.environ['URL']).read().decode())";
        goes_through(&["python3", "-c", script], "/python");
    }
}

#[test]
fn java_goes_through() {
    if has("java") {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("Get.java");
        std::fs::write(
            &source,
            "class Get { public static void main(String[] a) throws Exception { System.out.write(new java.net.URL(System.getenv(\"URL\")).openStream().readAllBytes()); System.out.flush(); } }",
        )
        .unwrap();
        goes_through(&["java", path(&source)], "/java");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

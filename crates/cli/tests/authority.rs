//! `--set confdir`, `tollgate ca` and `tollgate trust`.
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
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use support::{Proxy, output, tollgate};

#[test]
fn confdir_has_mitmproxys_names_and_keeps_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let confdir = format!("confdir={}", dir.path().display());
    let fingerprint = || {
        let mut proxy = Proxy::start(&["--set", &confdir]);
        let line = proxy.wait_for("SHA-256");
        proxy.signal("TERM");
        proxy.wait();
        assert!(
            !proxy.cert().exists(),
            "nothing is made in the default folder"
        );
        line
    };
    let first = fingerprint();
    let mode = |name: &str| {
        let metadata = fs::metadata(dir.path().join(name)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("mitmproxy-ca.pem"), 0o600);
    assert_eq!(mode("mitmproxy-ca.p12"), 0o600);
    for name in [
        "mitmproxy-ca-cert.pem",
        "mitmproxy-ca-cert.cer",
        "mitmproxy-ca-cert.p12",
    ] {
        assert_eq!(mode(name), 0o644, "{name}");
    }
    assert_eq!(fingerprint(), first);
}

fn ca(dir: &Path, arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    tollgate(home.path())
        .arg("ca")
        .args(arguments)
        .arg("--data-dir")
        .arg(dir)
        .output()
        .unwrap()
}

#[test]
fn an_authority_is_made_shown_exported_and_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let show = || String::from_utf8(ca(dir.path(), &["show"]).stdout).unwrap();

    let nothing = ca(dir.path(), &["show"]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("there is no authority"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    assert!(ca(dir.path(), &["rotate"]).status.success());
    let first = show();
    assert!(
        first.contains("SHA-256") && first.contains("valid until"),
        "{first}"
    );

    let pem = ca(dir.path(), &["export"]).stdout;
    assert_eq!(
        pem,
        fs::read(dir.path().join("tollgate-ca-cert.pem")).unwrap()
    );
    let file = dir.path().join("out.der");
    let exported = ca(
        dir.path(),
        &["export", "--format", "der", "-o", file.to_str().unwrap()],
    );
    assert!(exported.status.success());
    assert_eq!(fs::read(file).unwrap().first(), Some(&0x30));

    assert!(
        ca(dir.path(), &["rotate", "--permit", "example.com"])
            .status
            .success()
    );
    assert_ne!(show(), first);
}

#[test]
fn trust_of_nothing_is_one_line() {
    let output = output(&["trust", "status"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("error: there is no authority in "),
        "{text}"
    );
}

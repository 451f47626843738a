//! gRPC's own client and server (grpcio) through Tollgate.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which fail by panicking"
)]

use tollgate_e2e::programs::python_venv;
use tollgate_e2e::{LIMIT, Pki, Process, Script, Tollgate, command, require, tollgate_run};

/// The calls that `grpc_client.py` makes.
const CALLS: &str =
    "unary\nlarge\ncompressed\ncollect\nspread\nboth\nrefuse\nbreak_off\ndeadline\ncancel\n";

#[test]
fn every_kind_of_call_passes() {
    require!("python-venv", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let server = Script::start("grpc_server.py", [pki.cert(), pki.key()]);
    let proxy = Tollgate::trusting(&pki.ca(), &["--json"]);
    let mut client = command(&python_venv().to_string_lossy());
    client
        .arg(Script::path("grpc_client.py"))
        .arg(server.authority())
        .env("https_proxy", proxy.url())
        .env("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", proxy.cert());
    let finished = Process::run(client, LIMIT).success();
    assert_eq!(finished.text(), CALLS);

    // Tollgate has seen what gRPC says: the status of HTTP is 200, whatever came of the call.
    for (path, outcome) in [
        ("/e2e.Echo/Unary", "completed"),
        ("/e2e.Echo/Both", "completed"),
        ("/e2e.Echo/Refuse", "completed"),
    ] {
        let flow = proxy.wait_json(path);
        assert_eq!(flow["status"], 200, "{flow}");
        assert_eq!(flow["outcome"], outcome, "{flow}");
        assert_eq!(flow["response_version"], "HTTP/2.0", "{flow}");
    }
    // A call that the client gives up is not one that succeeded. It is the second: the first has a
    // deadline, which the server keeps, too, and may be the first to act on.
    let given_up = proxy
        .process()
        .wait_stdout(LIMIT, "two calls of Wait", |text| {
            let (complete, _) = text.rsplit_once('\n')?;
            let mut calls = complete
                .lines()
                .filter(|line| line.contains("/e2e.Echo/Wait"));
            calls.nth(1).map(str::to_owned)
        });
    assert!(
        !given_up.contains("\"outcome\":\"completed\""),
        "{given_up}"
    );
}

#[test]
fn the_environment_of_run_is_enough() {
    require!("python-venv", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let server = Script::start("grpc_server.py", [pki.cert(), pki.key()]);
    let python = python_venv().into_os_string();
    let client = Script::path("grpc_client.py").into_os_string();
    let ran = tollgate_run(&pki.ca(), [python, client, server.authority().into()]);
    assert_eq!(ran.text(), CALLS);
    assert_eq!(ran.flow("/e2e.Echo/Both")["status"], 200);
}

//! gRPC-Web through Tollgate: a stream in both of its forms, each frame when it comes.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::process::Command;

use tollgate_e2e::{LIMIT, Pki, Process, Script, Tollgate, command, require};

/// A frame with the message `hello`: flags, length, bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x05hello";

/// The frame that ends a call.
const TRAILERS: &[u8] = b"\x80\0\0\0\x2bgrpc-status: 5\r\ngrpc-message: not%20found\r\n";

#[test]
fn binary_frames_pass_one_by_one() {
    require!("curl", "python-venv", "openssl");
    let expected = [MESSAGE, MESSAGE, TRAILERS].concat();
    let first = String::from_utf8_lossy(MESSAGE);
    stream("application/grpc-web+proto", MESSAGE, &first, &expected);
}

#[test]
fn frames_in_base64_pass_one_by_one() {
    require!("curl", "python-venv", "openssl");
    let message = "AAAAAAVoZWxsbw==";
    let trailers = "gAAAACtncnBjLXN0YXR1czogNQ0KZ3JwYy1tZXNzYWdlOiBub3QlMjBmb3VuZA0K";
    let expected = [message, message, trailers].concat();
    stream(
        "application/grpc-web-text+proto",
        message.as_bytes(),
        message,
        expected.as_bytes(),
    );
}

/// Sends `request`, waits for `first`, lets the origin go on, and compares the whole answer.
fn stream(kind: &str, request: &[u8], first: &str, expected: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let origin = Script::start("grpc_web_server.py", [pki.cert(), pki.key()]);
    let base = format!("https://{}", origin.authority());
    let proxy = Tollgate::trusting(&pki.ca(), &["--json"]);
    let file = dir.path().join("request");
    fs::write(&file, request).unwrap();

    let mut call = curl(&proxy);
    call.args(["--no-buffer", "--header"])
        .arg(format!("content-type: {kind}"))
        .arg("--data-binary")
        .arg(format!("@{}", file.display()))
        .arg(format!("{base}/e2e.Echo/Stream"));
    let call = Process::start(call);
    // The origin sends no more until it is told to: whoever waits for a whole body waits for ever.
    call.wait_stdout(LIMIT, "the first frame", |text| {
        (text == first).then_some(())
    });
    let mut release = curl(&proxy);
    release.args(["--data", "", &format!("{base}/release")]);
    Process::run(release, LIMIT).success();

    let answer = call.finish(LIMIT).success().stdout;
    assert_eq!(answer, expected, "{}", String::from_utf8_lossy(&answer));
    let flow = proxy.wait_json("/e2e.Echo/Stream");
    assert_eq!(flow["content_type"], kind);
    assert_eq!(flow["response_bytes"], expected.len());
    assert_eq!(flow["outcome"], "completed");
}

fn curl(proxy: &Tollgate) -> Command {
    let mut curl = command("curl");
    curl.args(["--disable", "--silent", "--show-error", "--fail", "--proxy"])
        .arg(proxy.url())
        .arg("--cacert")
        .arg(proxy.cert());
    curl
}

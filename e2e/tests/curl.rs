//! curl through Tollgate to nginx.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use tollgate_e2e::{Finished, LIMIT, Origin, Process, Tollgate, command, noise, require};

const MEBIBYTE: usize = 1024 * 1024;

#[test]
fn http1_and_http2_arrive_as_what_they_are() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &[]);
    for (flag, version, line) in [
        ("--http1.1", "HTTP/1.1", " << 200 OK 8b"),
        ("--http2", "HTTP/2.0", " << HTTP/2.0 200 OK 8b"),
    ] {
        let path = format!("/protocol?{version}");
        let mut curl = curl(&proxy);
        curl.args([
            flag,
            "--write-out",
            "\n%{http_version}",
            &origin.https(&path),
        ]);
        let answer = Process::run(curl, LIMIT).success().text();
        // What the origin saw, and what the client saw.
        let seen = version.trim_start_matches("HTTP/").trim_end_matches(".0");
        assert_eq!(answer, format!("{version}\n{seen}"));

        let [request, response] = proxy.wait_flow(&origin.https(&path));
        assert!(request.starts_with("127.0.0.1:"), "{request}");
        assert!(request.contains(": GET https://localhost:"), "{request}");
        assert_eq!(
            request.ends_with(" HTTP/2.0"),
            flag == "--http2",
            "{request}"
        );
        assert!(response.ends_with(line), "{response}");
    }
}

#[test]
fn tls_1_2_works_with_both_protocols() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &["--json"]);
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        let mut curl = curl(&proxy);
        curl.args([flag, "--tls-max", "1.2", &origin.https("/protocol")]);
        assert_eq!(Process::run(curl, LIMIT).success().text(), version);
    }
    assert_eq!(proxy.wait_json("/protocol")["tls"]["version"], "TLSv1.2");
}

#[test]
fn plain_http_passes() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &[]);
    let mut curl = curl(&proxy);
    curl.arg(origin.http("/protocol"));
    assert_eq!(Process::run(curl, LIMIT).success().text(), "HTTP/1.1");
    proxy.wait_flow(&format!("GET {}", origin.http("/protocol")));
}

#[test]
fn five_mebibytes_arrive_byte_for_byte() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let content = noise(5 * MEBIBYTE);
    origin.write("/large.bin", &content);
    let proxy = Tollgate::trusting(&origin.ca(), &["--json"]);
    for flag in ["--http1.1", "--http2"] {
        let mut curl = curl(&proxy);
        curl.args([flag, &origin.https("/large.bin")]);
        let arrived = Process::run(curl, LIMIT).success().stdout;
        assert_eq!(arrived.len(), content.len(), "{flag}");
        assert!(arrived == content, "{flag}: the bytes differ");
    }
    let flow = proxy.wait_json("/large.bin");
    assert_eq!(flow["response_bytes"], content.len());
    assert_eq!(flow["outcome"], "completed");
}

#[test]
fn an_upload_waits_for_the_origins_100_continue() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let content = noise(3 * MEBIBYTE + 17);
    let source = origin.scratch().join("source.bin");
    fs::write(&source, &content).unwrap();
    let proxy = Tollgate::trusting(&origin.ca(), &["--json"]);
    for (flag, path) in [
        ("--http1.1", "/upload/h1.bin"),
        ("--http2", "/upload/h2.bin"),
    ] {
        let mut curl = curl(&proxy);
        curl.args([flag, "--verbose", "--header", "Expect: 100-continue"])
            // Without a 100 curl would wait this long; the test then fails by its limit.
            .args(["--expect100-timeout", "300", "--upload-file"])
            .arg(&source)
            .arg(origin.https(path));
        let finished = Process::run(curl, LIMIT).success();
        if flag == "--http1.1" {
            assert!(
                finished.stderr.contains("< HTTP/1.1 100 Continue"),
                "{}",
                finished.stderr
            );
        }
        assert!(origin.read(path) == content, "{flag}: the bytes differ");
        let flow = proxy.wait_json(path);
        assert_eq!(flow["method"], "PUT");
        assert_eq!(flow["status"], 201);
        assert_eq!(flow["request_bytes"], content.len());
    }
}

#[test]
fn what_a_rule_takes_out_of_a_body_of_unknown_length_does_not_leave() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let policy = origin.scratch().join("policy.toml");
    let rule = "[[rule]]\ncategory = \"secret\"\naction = \"redact\"\n";
    fs::write(&policy, rule).unwrap();
    let policy = policy.to_string_lossy();
    let flags = ["--json", "--screen", "enforce", "--screen-policy", &policy];
    let proxy = Tollgate::trusting(&origin.ca(), &flags);
    let key = format!("AK{}", "IAY3T6DKCNFLR2QWZ4");
    // More than is held of a body that streams, before and behind it.
    let prose = "The old bridge stands under the river. ".repeat(2000);
    let text = format!("{prose}the key is {key}, keep it. {prose}");
    for (flag, path) in [
        ("--http1.1", "/upload/redacted-h1.txt"),
        ("--http2", "/upload/redacted-h2.txt"),
    ] {
        let mut curl = curl(&proxy);
        curl.args([flag, "--header", "Content-Type: text/plain"])
            .args(["--upload-file", "-", &origin.https(path)]);
        let upload = Process::start_with_input(curl, text.clone().into_bytes());
        upload.finish(LIMIT).success();
        let arrived = String::from_utf8(origin.read(path)).unwrap();
        assert!(!arrived.contains(&key), "{flag}");
        let (before, behind) = arrived.split_once("[tollgate:aws-access-key-id:").unwrap();
        assert_eq!(before, format!("{prose}the key is "), "{flag}");
        assert!(behind.ends_with(&format!("], keep it. {prose}")), "{flag}");
        let flow = proxy.wait_json(path);
        assert_eq!(flow["status"], 201, "{flow}");
        assert!(
            flow.to_string().contains("redacted: aws-access-key-id"),
            "{flow}"
        );
    }
}

#[test]
fn a_client_that_does_not_trust_the_authority_is_named_so() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &[]);
    let mut curl = command("curl");
    curl.args([
        "--disable",
        "--silent",
        "--show-error",
        "--proxy",
        &proxy.url(),
    ])
    .arg("--cacert")
    .arg(origin.ca())
    .arg(origin.https("/protocol"));
    let finished = Process::run(curl, LIMIT);
    assert_eq!(finished.status.code(), Some(60), "{}", finished.stderr);
    let line = proxy.wait_log("trust");
    assert!(line.contains("[127.0.0.1:"), "{line}");
}

#[test]
fn an_origin_that_cannot_be_verified_is_a_502_that_says_so() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let proxy = Tollgate::start::<&str>([]);
    let finished = get_anyway(&proxy, &origin.https("/protocol"));
    let answer = finished.text();
    // In the tunnel, after the client's handshake: in the place of the origin's answer.
    assert!(answer.ends_with(" 502"), "{answer}{}", finished.stderr);
    assert!(answer.contains("certificate"), "{answer}");

    let proxy = Tollgate::start(["--ssl-insecure"]);
    let answer = get_anyway(&proxy, &origin.https("/protocol"))
        .success()
        .text();
    assert_eq!(answer, "HTTP/2.0 200");
}

#[test]
fn a_blocked_host_gets_403_and_a_tunnelled_one_its_own_certificate() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();

    let proxy = Tollgate::trusting(&origin.ca(), &["--block-hosts", "localhost"]);
    let mut blocked = curl(&proxy);
    blocked.args(["--write-out", "%{http_connect}", &origin.https("/protocol")]);
    let finished = Process::run(blocked, LIMIT);
    assert_eq!(finished.text(), "403", "{}", finished.stderr);
    assert!(!finished.status.success());

    let proxy = Tollgate::trusting(&origin.ca(), &["--tunnel-hosts", "localhost"]);
    let mut tunnelled = command("curl");
    tunnelled
        .args([
            "--disable",
            "--silent",
            "--show-error",
            "--proxy",
            &proxy.url(),
        ])
        .arg("--cacert")
        .arg(origin.ca())
        .arg(origin.https("/protocol"));
    let answer = Process::run(tunnelled, LIMIT).success().text();
    assert_eq!(answer, "HTTP/2.0");
}

#[test]
fn a_newcomer_can_follow_what_the_first_start_prints() {
    require!("curl", "nginx", "openssl", "sh");
    let origin = Origin::start();
    let proxy = Tollgate::trusting(&origin.ca(), &[]);
    let line = proxy
        .process()
        .wait_stderr(LIMIT, "a curl command", |text| {
            let (_, rest) = text.split_once("curl -x ")?;
            let (line, _) = rest.split_once('\n')?;
            Some(format!("curl -sS -x {line}"))
        });
    let mut shell = command("sh");
    shell.args([
        "-c",
        &line.replace("https://example.com", &origin.https("/protocol")),
    ]);
    assert_eq!(Process::run(shell, LIMIT).success().text(), "HTTP/2.0");

    let folder = proxy
        .cert()
        .parent()
        .expect("the certificate is in a folder");
    let private: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .filter(|file| {
            fs::read(file)
                .unwrap()
                .windows(11)
                .any(|part| part == b"PRIVATE KEY")
        })
        .collect();
    assert!(!private.is_empty());
    for file in private {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
    }
}

/// curl through the proxy, trusting its authority and no other.
fn curl(proxy: &Tollgate) -> Command {
    let mut curl = command("curl");
    curl.args([
        "--disable",
        "--silent",
        "--show-error",
        "--proxy",
        &proxy.url(),
    ])
    .arg("--cacert")
    .arg(proxy.cert());
    curl
}

/// The answer, whatever its status, and that.
fn get_anyway(proxy: &Tollgate, url: &str) -> Finished {
    let mut curl = curl(proxy);
    curl.args(["--write-out", " %{http_code}", url]);
    Process::run(curl, LIMIT)
}

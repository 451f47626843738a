//! `tollgate` as a proxy: what it prints, and how it ends.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

use support::{Origin, PATIENCE, Proxy, failure, has, output, tollgate};

#[test]
fn an_https_flow_is_a_line_and_sigterm_a_summary() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--upstream-trusted-ca", &origin.ca()]);
    let answer = proxy.curl(&origin.url("/a?b=c"), &["--http1.1"]);
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        r#"{"path":"/a?b=c","received":0}"#,
        "{answer:?}"
    );
    let line = proxy.line();
    let (client, rest) = line.split_once(": ").unwrap();
    assert!(client.starts_with("127.0.0.1:"), "{line}");
    assert_eq!(rest, format!("GET {}", origin.url("/a?b=c")));
    assert_eq!(
        proxy.line(),
        format!("{:1$} << 200 OK 30b", "", client.len() - 2)
    );

    proxy.signal("TERM");
    let (status, lines) = proxy.wait();
    assert_eq!(status.code(), Some(0));
    let summary = lines.last().unwrap();
    assert!(
        summary.starts_with("Tollgate ends: 1 flow, 0 failed, "),
        "{lines:?}"
    );
    assert_eq!(proxy.rest(), "");
}

#[test]
fn the_banner_says_how_to_use_it() {
    let mut proxy = Proxy::start(&[]);
    assert!(
        proxy
            .wait_for("certificate ")
            .ends_with("tollgate-ca-cert.pem (new)")
    );
    let fingerprint = proxy.wait_for("SHA-256 ");
    assert_eq!(fingerprint.split(':').count(), 32);
    let hint = proxy.wait_for("try ");
    let address = proxy.address();
    assert!(
        hint.contains(&format!(
            "curl -x http://{address} --cacert {}",
            proxy.cert().display()
        )),
        "{hint}"
    );
    let key = proxy.cert().with_file_name("tollgate-ca.pem");
    let mode = std::fs::metadata(key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn json_is_one_object_per_flow() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--json", "--process", "--upstream-trusted-ca", &origin.ca()]);
    proxy.curl(&origin.url("/"), &["--http1.1", "--data", "12345"]);
    let flow: serde_json::Value = serde_json::from_str(&proxy.line()).unwrap();
    assert_eq!(flow["method"], "POST");
    assert_eq!(flow["url"], origin.url("/"));
    assert_eq!(flow["status"], 200);
    assert_eq!(flow["request_bytes"], 5);
    assert_eq!(flow["outcome"], "completed");
    assert_eq!(flow["tls"]["sni"], "localhost");
    assert_eq!(flow["tls"]["ja4"].as_str().unwrap().len(), 36);
    assert_eq!(flow["upstream"]["unverified"], false);
    assert_eq!(flow["upstream"]["address"], origin.address.to_string());
    assert_eq!(flow["process"]["name"], "curl");
    assert!(flow["durations_ms"]["total"].as_f64().unwrap() > 0.0);
}

#[test]
fn detail_shows_headers_and_bodies() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--flow-detail", "3", "--upstream-trusted-ca", &origin.ca()]);
    proxy.curl(&origin.url("/"), &["--http1.1", "--data", "a=b"]);
    proxy.signal("TERM");
    proxy.wait();
    let text = proxy.rest();
    for part in [
        "\n    Host: localhost:",
        "\n\n    a=b\n\n << 200 OK ",
        "\n    Content-Type: application/json\n",
        "\n\n    {\n      \"path\": \"/\",\n      \"received\": 3\n    }\n\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn messages_of_a_websocket_are_lines() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let origin = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        read_head(&mut client);
        // The answer to the key of RFC 6455 section 1.3.
        let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        client.write_all(answer.as_bytes()).unwrap();
        client
            .write_all(b"\x82\x02\xff\x00\x88\x05\x03\xe8bye")
            .unwrap();
        let _ = client.read_to_end(&mut Vec::new());
    });
    let mut proxy = Proxy::start(&["--flow-detail", "3"]);
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    let request = format!(
        "GET http://{address}/chat HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    client.write_all(request.as_bytes()).unwrap();
    read_head(&mut client);
    // Masked with zeros: readable.
    client.write_all(b"\x81\x85\0\0\0\0hello").unwrap();
    client.read_exact(&mut [0; 11]).unwrap();
    drop(client);
    origin.join().unwrap();
    proxy.signal("TERM");
    proxy.wait();
    let text = proxy.rest();
    let handshake = text.find(" << 101 Switching Protocols 0b\n").unwrap();
    for (part, content) in [
        (
            format!(" -> WebSocket text message -> {address}/chat\n"),
            "\n    hello\n",
        ),
        (
            format!(" <- WebSocket binary message <- {address}/chat\n"),
            " ff 00",
        ),
        (
            "WebSocket connection closed by server: 1000 bye\n".to_owned(),
            "",
        ),
    ] {
        let (before, after) = text
            .split_once(&part)
            .unwrap_or_else(|| panic!("{part:?} in {text}"));
        assert!(
            before.len() > handshake && after.contains(content),
            "{content:?} in {text}"
        );
    }
}

fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
}

#[test]
fn quiet_is_quiet() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&[
        "--set",
        "flow_detail=0",
        "--upstream-trusted-ca",
        &origin.ca(),
    ]);
    assert!(proxy.curl(&origin.url("/"), &[]).status.success());
    proxy.signal("INT");
    assert_eq!(proxy.wait().0.code(), Some(0));
    assert_eq!(proxy.rest(), "");
}

#[test]
fn with_q_nothing_but_errors_is_said() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (code, _) = failure(&["-q", "-p", &address.port().to_string()]);
    assert_eq!(code, 1);

    // A Unix socket shows that it runs, where no banner does.
    let home = tempfile::tempdir().unwrap();
    let script =
        "$0 -q --listen unix:$HOME/s & while ! [ -S $HOME/s ]; do :; done; kill $!; wait $!";
    let tollgate = tollgate(home.path());
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(tollgate.get_program())
        .env("HOME", home.path())
        .env_remove("XDG_DATA_HOME")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(
        output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn failed_handshakes_are_log_lines() {
    let origin = Origin::start();
    // The origin's authority is nobody's.
    let mut proxy = Proxy::start(&[]);
    let answer = proxy.curl(&origin.url("/"), &["--http1.1", "--fail"]);
    assert!(!answer.status.success());
    let line = proxy.wait_for("handshake with the origin failed");
    assert!(
        line.starts_with('[') && line.contains("][127.0.0.1:"),
        "{line}"
    );
}

#[test]
fn a_second_signal_does_not_wait() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--drain", "3600", "--ignore-hosts", ".*"]);
    // A tunnel that nobody ends.
    let mut tunnel = TcpStream::connect(proxy.address()).unwrap();
    tunnel.set_read_timeout(Some(PATIENCE)).unwrap();
    let authority = origin.address;
    write!(
        tunnel,
        "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    )
    .unwrap();
    let mut answer = [0; 12];
    tunnel.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    // Two signals of one kind could become one.
    proxy.signal("TERM");
    proxy.signal("INT");
    assert_eq!(proxy.wait().0.code(), Some(0));
}

#[test]
fn the_end_of_the_reader_is_the_end() {
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--upstream-trusted-ca", &origin.ca()]);
    proxy.hang_up();
    proxy.curl(&origin.url("/"), &[]);
    assert_eq!(proxy.wait().0.code(), Some(0));
}

#[test]
fn a_port_in_use_is_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (code, line) = failure(&["-p", &address.port().to_string()]);
    assert_eq!(code, 1);
    assert_eq!(
        line,
        format!("error: {address} is in use by another program; choose another port with -p")
    );
}

#[test]
fn what_cannot_be_read_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n").unwrap();
    let broken = broken.to_str().unwrap();
    let trusted = format!("ssl_verify_upstream_trusted_ca={broken}");
    let client = format!("client_certs={broken}");
    for arguments in [
        &["--ca-cert", broken][..],
        &["--ca-cert", "/does/not/exist.pem"],
        &["--set", &trusted],
        &["--set", &client],
        &["--certs", broken],
        &["--upstream-trusted-ca", "/does/not/exist.pem"],
    ] {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(arguments);
        let (code, line) = failure(&all);
        assert_eq!(code, 1, "{arguments:?}");
        assert!(
            line.starts_with("error: ") && line.contains(".pem"),
            "{arguments:?}: {line}"
        );
    }
}

#[test]
fn options_that_cannot_be_used_are_one_line() {
    for (arguments, expected) in [
        (
            &["--set", "flow_detial=2"][..],
            "error: unknown option 'flow_detial' — did you mean 'flow_detail'?",
        ),
        (
            &["--map-local", "|a|/no/such/path"],
            "error: map_local '|a|/no/such/path': can't find /no/such/path: No such file or directory (os error 2)",
        ),
        (
            &["-s", "addon.py"],
            "error: option '-s' (--scripts) exists in mitmproxy but Tollgate doesn't have it yet",
        ),
        (
            &["-m", "wireguard"],
            "error: mode 'wireguard': it exists in mitmproxy but Tollgate doesn't have it yet",
        ),
        (
            &["--set", "listen_port=http"],
            "error: option 'listen_port' must be a whole number, not 'http'",
        ),
    ] {
        assert_eq!(failure(arguments), (1, expected.to_owned()));
    }
    let usage = output(&["--frobnicate"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn help_and_version_are_no_errors() {
    let help = output(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    for part in ["tollgate run", "--listen-port", "--set", "mitmproxy"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(output(&["--version"]).status.success());
    let completions = output(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&completions.stdout).contains("_tollgate"));
}

#[test]
fn the_environment_is_below_flags() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = |arguments: &[&str]| {
        let home = tempfile::tempdir().unwrap();
        let output = tollgate(home.path())
            .env("TOLLGATE_LISTEN", &address)
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&[]).contains(&format!("{address} is in use")));
    // The flag is what is tried, and not what the environment says.
    let flag = run(&["--listen", "192.0.2.1:1"]);
    assert!(flag.contains("192.0.2.1:1"), "{flag}");
    // Commands that don't listen don't mind.
    assert!(run(&["ca", "show"]).contains("there is no authority"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_descriptor_table_is_said_and_survived() {
    if !support::has("prlimit") {
        println!("skipped: prlimit is not installed");
        return;
    }
    let origin = Origin::start();
    let mut proxy = Proxy::start(&["--upstream-trusted-ca", &origin.ca()]);
    let pid = proxy.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count();
    // Lowered behind the proxy's back: it has counted on more, and runs into the wall.
    let limit = open + 20;
    let lowered = std::process::Command::new("prlimit")
        .args([
            "--pid",
            &pid.to_string(),
            &format!("--nofile={limit}:{limit}"),
        ])
        .status()
        .unwrap();
    assert!(lowered.success());
    let clients: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(proxy.address()).unwrap())
        .collect();
    proxy.wait_for("can't accept");
    drop(clients);
    let answer = proxy.curl(&origin.url("/after"), &[]);
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout),
        r#"{"path":"/after","received":0}"#,
        "{answer:?}"
    );
}

#[test]
fn verdicts_are_written_and_the_log_is_checked() {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("audit.jsonl").display().to_string();
    let secret = format!("key=AK{}", "IAY3T6DKCNFLR2QWZ4");
    let mut proxy = Proxy::start(&[
        "--screen",
        "enforce",
        "--audit-log",
        &log,
        "--upstream-trusted-ca",
        &origin.ca(),
    ]);
    let answer = proxy.curl(&origin.url("/"), &["--http1.1", "--data", &secret]);
    assert!(
        String::from_utf8_lossy(&answer.stdout).contains("aws-access-key-id"),
        "{answer:?}"
    );
    proxy.signal("TERM");
    proxy.wait();
    let written = std::fs::read_to_string(&log).unwrap();
    assert!(
        written.contains("\"refused\":true") && !written.contains(secret.get(4..).unwrap()),
        "{written}"
    );
    let run = output(&["audit", "verify", &log]);
    let said = String::from_utf8(run.stdout).unwrap();
    assert!(
        run.status.success() && said.starts_with("whole: 1 line from number 1"),
        "{said}"
    );
    std::fs::write(&log, written.replace("true", "false") + &written).unwrap();
    let run = output(&["audit", "verify", "--json", &log]);
    assert_eq!(run.status.code(), Some(1));
    assert!(
        String::from_utf8(run.stdout)
            .unwrap()
            .contains("\"line\":2")
    );
}

#[test]
fn a_budget_without_prices_or_with_a_wrong_word_is_one_line() {
    for (arguments, word) in [
        (
            &["--screen", "enforce", "--budget", "cost=5,per=1d"][..],
            "--prices",
        ),
        (&["--screen", "enforce", "--budget", "tokens=5"], "per"),
        (
            &["--screen", "enforce", "--prices", "/nowhere.toml"],
            "/nowhere.toml",
        ),
    ] {
        let (code, text) = failure(arguments);
        assert!(code != 0 && text.contains(word), "{text}");
    }
}

#[test]
fn a_scanner_within_tls_is_trusted_by_its_authority() {
    if !has("curl") {
        return;
    }
    // It answers, if not as a scanner.
    let service = Origin::start();
    let (url, ca) = (service.url("/scan"), service.ca());
    let scanner = ["--external-scanner", &url];
    for (more, why) in [
        (&["--external-scanner-ca", &ca][..], "there is no verdict"),
        (&[], "TLS with it fails"),
    ] {
        let proxy = Proxy::start(&[&scanner[..], more].concat());
        let got = proxy.curl("http://127.0.0.1:1/", &[]);
        let got = String::from_utf8(got.stdout).unwrap();
        assert!(got.contains(why), "{got}");
    }
    for (url, file, why) in [
        ("icap://127.0.0.1/x", &*ca, "is for scanners within TLS"),
        (&*url, "/nowhere.pem", "can't read /nowhere.pem"),
        (&*url, "/dev/null", "/dev/null holds no certificate"),
    ] {
        let (code, text) = failure(&["--external-scanner", url, "--external-scanner-ca", file]);
        assert_eq!(code, 1);
        assert!(text.contains(why), "{text}");
    }
}

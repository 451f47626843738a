//! `deploy/sandwich`: TLS opened on one side of a scanner, closed again on the other. tinyproxy is the scanner.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use tollgate_e2e::{
    Finished, ForwardProxy, LIMIT, Origin, Pki, Process, Script, Tollgate, binary, command, noise,
    require,
};

/// `deploy/sandwich/start` on free ports.
struct Sandwich {
    tollgate: Tollgate,
    scanner: SocketAddr,
}

impl Sandwich {
    fn start(ca: &Path) -> Self {
        let scanner = ForwardProxy::free_address();
        let back = ForwardProxy::free_address();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/sandwich");
        let mut start = command(folder.join("start").to_str().expect("a path in UTF-8"));
        start
            .env("LISTEN", "127.0.0.1:0")
            .env("SCANNER_PORT", scanner.port().to_string())
            .env("RETURN_PORT", back.port().to_string())
            .env("TOLLGATE", binary())
            .args(["--json", "--upstream-trusted-ca"])
            .arg(ca);
        let mut tollgate = Tollgate::launch(start);
        // Tollgate may be there before its scanner.
        let there = || TcpStream::connect(scanner).is_ok();
        assert!(tollgate.process_mut().becomes(there), "no scanner");
        Self { tollgate, scanner }
    }

    /// What the scanner has written about requests so far, once `words` are there.
    fn scanned(&self, words: &str) -> String {
        self.tollgate.process().wait_stdout(LIMIT, words, |text| {
            text.contains(words).then(|| text.to_owned())
        })
    }
}

#[test]
fn the_scanner_reads_what_tls_hides_and_the_origin_still_gets_tls() {
    require!("curl", "nginx", "openssl", "tinyproxy", "bash");
    let origin = Origin::start();
    let content = noise(5 * 1024 * 1024 + 3);
    origin.write("/large.bin", &content);
    let sandwich = Sandwich::start(&origin.ca());
    // The scanner speaks HTTP/1; on both sides of it there may be HTTP/2.
    for (flag, version) in [("--http1.1", "HTTP/1.1"), ("--http2", "HTTP/2.0")] {
        let url = origin.https(&format!("/protocol?{flag}"));
        let answer = get(&sandwich.tollgate, &[flag, &url]).success();
        assert_eq!(answer.text(), version);
        let scanned = sandwich.scanned(&format!("/protocol?{flag}"));
        let plain = url.replacen("https://", "http://", 1);
        assert!(scanned.contains(&format!("GET {plain}")), "{scanned}");

        let answer = get(&sandwich.tollgate, &[flag, &origin.https("/large.bin")]).success();
        assert!(answer.stdout == content, "{flag}: the bytes differ");
        let file = origin.scratch().join("upload");
        fs::write(&file, &content).unwrap();
        let path = format!("/upload/{}.bin", flag.trim_start_matches('-'));
        let url = origin.https(&path);
        let file = file.to_str().expect("a path in UTF-8");
        get(&sandwich.tollgate, &[flag, "--upload-file", file, &url]).success();
        assert!(origin.read(&path) == content, "{flag}: the bytes differ");
    }
    // The flow says what the client asked for, and that the origin was reached with TLS.
    let flow = sandwich.tollgate.wait_json("/protocol?--http2");
    assert_eq!(flow["url"], origin.https("/protocol?--http2"));
    assert_eq!(flow["status"], 200);
    let plain = origin.http("/protocol?plain");
    assert_eq!(
        get(&sandwich.tollgate, &[&plain]).success().text(),
        "HTTP/1.1"
    );
    sandwich.scanned("/protocol?plain");
}

#[test]
fn what_the_scanner_refuses_never_reaches_the_origin() {
    require!("curl", "nginx", "openssl", "tinyproxy", "bash");
    let origin = Origin::start();
    origin.write("/forbidden", "from the origin");
    let sandwich = Sandwich::start(&origin.ca());
    for flag in ["--http1.1", "--http2"] {
        let answer = get(&sandwich.tollgate, &[flag, &origin.https("/forbidden")]);
        let text = answer.success().text();
        assert!(text.contains("tinyproxy"), "{text}");
        assert!(!text.contains("from the origin"), "{text}");
    }
    assert_eq!(sandwich.tollgate.wait_json("/forbidden")["status"], 403);
}

#[test]
fn streams_stay_streams() {
    require!("curl", "python-venv", "openssl", "tinyproxy", "bash");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let origin = Script::start("grpc_web_server.py", [pki.cert(), pki.key()]);
    let sandwich = Sandwich::start(&pki.ca());
    let message = "AAAAAAVoZWxsbw==";
    let mut call = curl(&sandwich.tollgate);
    call.args(["--no-buffer", "--data", message, "--header"])
        .arg("content-type: application/grpc-web-text")
        .arg(format!("https://{}/e2e.Echo/Stream", origin.authority()));
    let call = Process::start(call);
    // The origin sends no more until it is told to, which it is only when the first piece is here.
    call.wait_stdout(LIMIT, "the first frame", |text| {
        (text == message).then_some(())
    });
    let release = format!("https://{}/release", origin.authority());
    get(&sandwich.tollgate, &["--data", "", &release]).success();
    let answer = call.finish(LIMIT).success().text();
    assert!(answer.starts_with(&message.repeat(2)), "{answer}");
    assert!(answer.len() > 2 * message.len(), "{answer}");
}

#[test]
fn nobody_forges_a_way_around_the_scanner() {
    require!("curl", "nginx", "openssl", "tinyproxy", "bash");
    let origin = Origin::start();
    origin.write("/forbidden", "from the origin");
    origin.write("/allowed", "from the origin");
    let sandwich = Sandwich::start(&origin.ca());
    let back = format!("http://{}", sandwich.tollgate.at("return"));
    let scanner = format!("http://{}", sandwich.scanner);
    let ticket = format!("Tollgate-Ticket: {}", "ab".repeat(16));
    let forged = format!("{ticket}; scheme=https; client=\"127.0.0.1:1\"");
    let (plain, secure) = (origin.http("/forbidden"), origin.https("/forbidden"));
    let allowed = origin.http("/allowed");
    for (what, arguments) in [
        ("straight to the return", vec!["--proxy", &back, &plain]),
        (
            "there with a ticket made up",
            vec!["--proxy", &back, "--header", &forged, &plain],
        ),
        (
            "there with TLS",
            vec!["--insecure", "--proxy", &back, &secure],
        ),
        (
            "straight to the scanner",
            vec!["--proxy", &scanner, &allowed],
        ),
        (
            "to the scanner with a ticket made up",
            vec!["--proxy", &scanner, "--header", &forged, &allowed],
        ),
        (
            "through the scanner in a tunnel",
            vec!["--insecure", "--proxy", &scanner, &secure],
        ),
    ] {
        let mut curl = command("curl");
        curl.args(["--disable", "--silent", "--show-error"])
            .args(["--write-out", "%{http_code} %{http_connect}"])
            .args(arguments);
        let finished = Process::run(curl, LIMIT);
        let text = finished.text();
        assert!(!text.contains("from the origin"), "{what}: {text}");
        let refused = text.ends_with("403 000") || text.ends_with("000 403");
        assert!(refused, "{what}: {text} {}", finished.stderr);
    }
    // By the front door such a field is nothing: the request is scanned like any other.
    for header in [&ticket, &forged] {
        let secure = get(&sandwich.tollgate, &["--header", header, &secure]).success();
        assert!(secure.text().contains("tinyproxy"), "{}", secure.text());
        let allowed = origin.https("/allowed");
        let answer = get(&sandwich.tollgate, &["--header", header, &allowed]).success();
        assert_eq!(answer.text(), "from the origin");
    }
}

#[test]
fn without_its_scanner_it_is_closed() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let modes = ["regular@127.0.0.1:0", "return@127.0.0.1:0"];
    // Nobody listens there.
    let scanner = format!("http://{}", ForwardProxy::free_address());
    let closed = Tollgate::with_modes(&origin.ca(), &modes, &["--scanner", &scanner]);
    let url = origin.https("/protocol");
    let answer = get(&closed, &["--write-out", " %{http_code}", &url]).success();
    assert!(answer.text().ends_with(" 502"), "{}", answer.text());
    assert!(answer.text().contains("the scanner"), "{}", answer.text());

    let arguments = ["--scanner", &scanner, "--scanner-fail-open"];
    let open = Tollgate::with_modes(&origin.ca(), &modes, &arguments);
    assert_eq!(
        get(&open, &["--http1.1", &url]).success().text(),
        "HTTP/1.1"
    );
    open.wait_log("unscanned");
}

fn curl(proxy: &Tollgate) -> Command {
    let mut curl = command("curl");
    curl.args(["--disable", "--silent", "--show-error", "--proxy"])
        .arg(proxy.url())
        .arg("--cacert")
        .arg(proxy.cert());
    curl
}

fn get(proxy: &Tollgate, arguments: &[&str]) -> Finished {
    let mut curl = curl(proxy);
    curl.args(arguments);
    Process::run(curl, LIMIT)
}

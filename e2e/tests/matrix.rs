//! Every version of HTTP that curl speaks, with and without TLS, on every way in and out: each reaches the origin as what it
//! is. One Tollgate has all the listeners, but for the one in network namespaces.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which fail by panicking"
)]

use std::process::Command;

use tollgate_e2e::programs::python_venv;
use tollgate_e2e::{
    End, ForwardProxy, LIMIT, Net, Origin, Pki, Process, Script, Tollgate, binary, command, require,
};

/// What curl is to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    Http1,
    Http1Tls,
    /// With prior knowledge: nothing before it says what it is.
    Http2,
    Http2Tls,
    Http3,
}

impl Row {
    /// Those that every way has.
    const ALL: [Self; 4] = [Self::Http1, Self::Http1Tls, Self::Http2, Self::Http2Tls];

    fn flag(self) -> &'static str {
        match self {
            Self::Http1 | Self::Http1Tls => "--http1.1",
            Self::Http2 => "--http2-prior-knowledge",
            Self::Http2Tls => "--http2",
            Self::Http3 => "--http3-only",
        }
    }

    /// As it is written.
    fn version(self) -> &'static str {
        match self {
            Self::Http1 | Self::Http1Tls => "HTTP/1.1",
            Self::Http2 | Self::Http2Tls => "HTTP/2.0",
            Self::Http3 => "HTTP/3",
        }
    }

    fn has_tls(self) -> bool {
        !matches!(self, Self::Http1 | Self::Http2)
    }

    fn url(self, origin: &Origin, path: &str) -> String {
        match self {
            Self::Http1 => origin.http(path),
            Self::Http2 => origin.h2c(path),
            Self::Http1Tls | Self::Http2Tls | Self::Http3 => origin.https(path),
        }
    }
}

/// Runs curl, which must get through, and looks at all three: curl, the origin, and what Tollgate says of the flow.
#[track_caller]
fn check(proxy: &Tollgate, mut curl: Command, row: Row, url: &str, mode: &str, via: Option<&str>) {
    let cell = format!("{row:?} in mode {mode}");
    curl.args(["--disable", "--silent", "--show-error", row.flag()])
        .arg("--cacert")
        .arg(proxy.cert())
        .args(["--write-out", "\n%{http_code} %{http_version}", url]);
    let finished = Process::run(curl, LIMIT);
    let version = row.version();
    let seen = version.trim_start_matches("HTTP/").trim_end_matches(".0");
    assert_eq!(
        finished.text(),
        format!("{version}\n200 {seen}"),
        "{cell}: {}",
        finished.stderr
    );
    let (_, path) = url.split_once("/protocol").expect("the path of the origin");
    let flow = proxy.wait_json(path);
    assert_eq!(flow["version"], version, "{cell}: {flow}");
    assert_eq!(flow["response_version"], version, "{cell}: {flow}");
    assert_eq!(flow["outcome"], "completed", "{cell}: {flow}");
    let flows_mode = flow["mode"].as_str().unwrap_or_default();
    assert!(flows_mode.starts_with(mode), "{cell}: {flow}");
    assert_eq!(flow["tls"].is_object(), row.has_tls(), "{cell}: {flow}");
    assert_eq!(
        flow["upstream"]["tls"].is_string(),
        row.has_tls(),
        "{cell}: {flow}"
    );
    match via {
        Some(via) => assert_eq!(flow["upstream"]["via"], via, "{cell}: {flow}"),
        None => assert!(flow["upstream"]["via"].is_null(), "{cell}: {flow}"),
    }
}

#[test]
fn every_version_on_every_way() {
    require!("curl", "nginx", "openssl", "tinyproxy", "microsocks");
    let origin = Origin::start();
    let http = ForwardProxy::tinyproxy("");
    let socks = ForwardProxy::microsocks(&[]);
    let http_url = format!("http://{}", http.address());
    let socks_url = format!("socks5://{}", socks.address());
    let (socks_path, regular_path) = (
        origin.scratch().join("socks"),
        origin.scratch().join("proxy"),
    );
    let mut modes = vec![
        "regular@127.0.0.1:0".to_owned(),
        format!("upstream:{http_url}@127.0.0.1:0"),
        format!("upstream:{socks_url}@127.0.0.1:0"),
        "socks5@127.0.0.1:0".to_owned(),
        format!("socks5@unix:{}", socks_path.display()),
        format!("regular@unix:{}", regular_path.display()),
    ];
    // Each port of the origin has a reverse proxy before it.
    let reverse = |row: Row| format!("reverse:{}", row.url(&origin, ""));
    for row in [Row::Http1, Row::Http2, Row::Http2Tls] {
        modes.push(format!("{}@127.0.0.1:0", reverse(row)));
    }
    let proxy = Tollgate::with_modes(&origin.ca(), &modes, &["--json"]);

    for row in Row::ALL {
        let url = |way: &str| row.url(&origin, &format!("/protocol?{row:?}-{way}"));

        for (way, mode, via) in [
            ("regular", "regular".to_owned(), None),
            ("http", format!("upstream:{http_url}"), Some(&http_url)),
            ("socks", format!("upstream:{socks_url}"), Some(&socks_url)),
        ] {
            let mut curl = command("curl");
            curl.arg("--proxy")
                .arg(format!("http://{}", proxy.at(&mode)));
            if row == Row::Http2 {
                // A request to a proxy is HTTP/1.1; in a tunnel it can be anything.
                curl.arg("--proxytunnel");
            }
            let via = via.map(String::as_str);
            check(&proxy, curl, row, &url(way), &mode, via);
        }

        let socks = format!("socks5h://{}", proxy.at("socks5"));
        let unix = format!("socks5h://localhost{}", socks_path.display());
        for (way, socks) in [("socks5", socks), ("unix", unix)] {
            let mut curl = command("curl");
            curl.args(["--proxy", &socks]);
            check(&proxy, curl, row, &url(way), "socks5", None);
        }

        let mode = reverse(row);
        let port = proxy.at(&mode).rsplit_once(':').expect("a port").1;
        let scheme = url("").split_once("://").expect("a URL").0.to_owned();
        let url = format!("{scheme}://localhost:{port}/protocol?{row:?}-reverse");
        check(&proxy, command("curl"), row, &url, &mode, None);
    }

    // An ordinary proxy at a Unix socket: curl knows none, but says what a client of one would say.
    let target = origin.http("/protocol?unix-regular");
    let mut curl = command("curl");
    curl.arg("--unix-socket")
        .arg(&regular_path)
        .args(["--request-target", &target]);
    check(&proxy, curl, Row::Http1, &target, "regular", None);
}

#[test]
fn every_version_in_transparent_mode() {
    require!("curl", "nginx", "openssl", "ip", "nft", "root");
    let net = Net::create();
    let origin = Origin::start_in(&net);
    let mut tollgate = net.command(End::Gate, binary());
    tollgate
        .args(["--mode", "transparent@0.0.0.0:0", "--json"])
        .arg("--upstream-trusted-ca")
        .arg(origin.ca());
    let proxy = Tollgate::launch(tollgate);
    let (_, port) = proxy.at("transparent").rsplit_once(':').expect("a port");
    let mut rules = net.command(End::Gate, binary());
    rules.args(["transparent", "apply", "--port", port, "--ports"]);
    rules.arg("80,443,8080");
    Process::run(rules, LIMIT).success();

    for row in Row::ALL {
        let mut curl = net.command(End::Client, "curl");
        // The name is for the certificate; where it lies is no one's business but the client's.
        curl.arg("--connect-to").arg(format!("::{}:", Net::ORIGIN));
        let url = row.url(&origin, &format!("/protocol?{row:?}"));
        check(&proxy, curl, row, &url, "transparent", None);
    }
}

/// A client of HTTP/3 reaches an origin of HTTP/3. QUIC has no CONNECT here and passes no proxy of TCP: of the ways in, it is
/// the reverse proxy's.
#[test]
fn http3_in_reverse_mode() {
    require!("python-venv", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let origin = Script::start("h3_origin.py", [pki.cert(), pki.key()]);
    let mode = format!("reverse:http3://{}", origin.authority());
    let modes = [format!("{mode}@127.0.0.1:0")];
    let proxy = Tollgate::with_modes(&pki.ca(), &modes, &["--json"]);
    let (_, port) = proxy.at(&mode).rsplit_once(':').expect("a port");
    let mut curl = command(python_venv().to_str().expect("a path in UTF-8"));
    curl.arg(Script::path("curl_h3.py"));
    let url = format!("https://localhost:{port}/protocol?reverse");
    check(&proxy, curl, Row::Http3, &url, &mode, None);
}

/// Clients of TCP reach it as well, where they are told to: nothing asks an origin of UDP what it speaks.
#[test]
fn http3_towards_the_origin() {
    require!("curl", "python-venv", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let origin = Script::start("h3_origin.py", [pki.cert(), pki.key()]);
    let modes = ["regular@127.0.0.1:0", "socks5@127.0.0.1:0"];
    let proxy = Tollgate::with_modes(&pki.ca(), &modes, &["--json", "--upstream-http", "http3"]);
    for scheme in ["http", "socks5h"] {
        for flag in ["--http1.1", "--http2"] {
            let mode = if scheme == "http" {
                "regular"
            } else {
                "socks5"
            };
            let path = format!("/protocol?{mode}{flag}");
            let mut curl = command("curl");
            curl.args(["--disable", "--silent", "--show-error", flag])
                .args(["--data", "body", "--cacert"])
                .arg(proxy.cert())
                .arg("--proxy")
                .arg(format!("{scheme}://{}", proxy.at(mode)))
                .arg(format!("https://{}{path}", origin.authority()));
            let answer = Process::run(curl, LIMIT).success();
            assert_eq!(answer.text(), "HTTP/3body", "{path}");
            let flow = proxy.wait_json(&path);
            assert_eq!(flow["response_version"], "HTTP/3", "{flow}");
        }
    }
}

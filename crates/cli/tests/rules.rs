//! Rules through the real command: what reaches the origin, and what the client.
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
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Origin, PATIENCE, Proxy, output, tollgate};
use tollgate_wire::coding::{Coding, Encoder};

/// A plain server that answers with the request as it came.
struct Echo {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Lets `/events` go on.
    go_on: Sender<()>,
}

impl Echo {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (go_on, wait) = channel();
        let wait = Arc::new(Mutex::new(wait));
        let counted = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let wait = Arc::clone(&wait);
                thread::spawn(move || echo(stream, &wait));
            }
        });
        Self {
            address,
            connections,
            go_on,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn echo(stream: TcpStream, wait: &Mutex<Receiver<()>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    let mut length = Some(0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        if line.trim_end().is_empty() {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok();
        }
        if lower.starts_with("transfer-encoding:") {
            length = None;
        }
        head.push_str(&line);
    }
    let mut body = Vec::new();
    match length {
        Some(length) => {
            stream.by_ref().take(length).read_to_end(&mut body).ok()?;
        }
        None => loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok()?;
            let length = u64::from_str_radix(line.trim(), 16).ok()?;
            stream.by_ref().take(length).read_to_end(&mut body).ok()?;
            stream.read_line(&mut line).ok()?;
            if length == 0 {
                break;
            }
        },
    }
    let out = stream.get_mut();
    if head.contains("/events") {
        let events = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: a secret\n\n";
        out.write_all(events.as_bytes()).ok()?;
        wait.lock().ok()?.recv_timeout(PATIENCE).ok()?;
        return out.write_all(b"data: another secret\n\n").ok();
    }
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    answer.extend_from_slice(b"\nthe secret\n");
    let mut more = "Set-Cookie: id=7; Path=/\r\nX-Origin: yes\r\n".to_owned();
    if answer.starts_with(b"GET /gzip") {
        let mut encoder = Encoder::new(Coding::Gzip).unwrap();
        let mut packed = Vec::new();
        encoder.feed(&answer, &mut packed).unwrap();
        encoder.finish(&mut packed).unwrap();
        answer = packed;
        more.push_str("Content-Encoding: gzip\r\n");
    }
    let status = if answer.starts_with(b"GET /broken") {
        "500 Broken"
    } else {
        "200 OK"
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n",
        answer.len()
    );
    out.write_all(head.as_bytes()).ok()?;
    out.write_all(&answer).ok()
}

struct Setup {
    origin: Echo,
    proxy: Proxy,
    dir: tempfile::TempDir,
}

/// A proxy with these rules; `ORIGIN` in them stands for the origin's address.
fn with(rules: &str, more: &[&str]) -> Setup {
    let origin = Echo::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.toml");
    fs::write(&file, rules.replace("ORIGIN", &origin.address.to_string())).unwrap();
    let arguments = [&["--rules", file.to_str().unwrap()], more].concat();
    let proxy = Proxy::start(&arguments);
    Setup { origin, proxy, dir }
}

impl Setup {
    /// Status line and head, and body.
    fn get(&self, path: &str, more: &[&str]) -> (String, String) {
        self.get_url(&self.origin.url(path), more)
    }

    fn get_url(&self, url: &str, more: &[&str]) -> (String, String) {
        let output = self.proxy.curl(
            url,
            &[
                &["--include", "--suppress-connect-headers", "--http1.1"],
                more,
            ]
            .concat(),
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match text.split_once("\r\n\r\n") {
            Some((head, body)) => (head.to_owned(), body.to_owned()),
            None => (
                String::from_utf8_lossy(&output.stderr).into_owned(),
                String::new(),
            ),
        }
    }
}

#[test]
fn the_first_rule_that_answers_wins() {
    let setup = with(
        r#"
        [[rule]]
        when = "~u /allowed"
        allow = true
        [[rule]]
        when = "~u /cut"
        block = 444
        [[rule]]
        when = "~u /(blocked|allowed)"
        block = 451
        [[rule]]
        when = "~u /mock"
        respond = { status = 201, json = { ok = true }, headers = { X-Mock = "1" } }
        [[rule]]
        when = "~u /moved"
        redirect = { to = "http://elsewhere.example/", status = 307 }
        [[rule]]
        when = "~c 500"
        on = "response"
        respond = { status = 503, body = "later" }
        "#,
        &[],
    );
    let (head, _) = setup.get("/blocked", &[]);
    assert!(head.starts_with("HTTP/1.1 451 "), "{head}");
    let (head, body) = setup.get("/mock", &[]);
    assert!(
        head.starts_with("HTTP/1.1 201 ") && head.contains("X-Mock: 1"),
        "{head}"
    );
    assert_eq!(body, r#"{"ok":true}"#);
    let (head, _) = setup.get("/moved", &[]);
    assert!(
        head.contains("307") && head.contains("Location: http://elsewhere.example/"),
        "{head}"
    );
    let (error, _) = setup.get("/cut", &[]);
    assert!(error.contains("Empty reply"), "{error}");
    assert_eq!(setup.origin.connections.load(Ordering::SeqCst), 0);
    let (head, _) = setup.get("/allowed", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (head, body) = setup.get("/broken", &[]);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "later");
}

#[test]
fn a_blocked_host_is_not_connected_to() {
    let setup = with("[[rule]]\nwhen = '~d ^localhost$'\nblock = 403", &[]);
    let https = format!(
        "https://localhost:{}/secret/path",
        setup.origin.address.port()
    );
    let output = setup.proxy.curl(&https, &[]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("403"), "{text}");
    assert_eq!(setup.origin.connections.load(Ordering::SeqCst), 0);
}

#[test]
fn a_tunnelled_host_shows_its_own_certificate() {
    let origin = Origin::start();
    let setup = with("[[rule]]\nwhen = '~d ^localhost$'\ntunnel = true", &[]);
    let output = setup
        .proxy
        .curl(&origin.url("/x"), &["--cacert", &origin.ca()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn heads_and_bodies_are_changed_both_ways() {
    let setup = with(
        r#"
        [[rule]]
        request_headers = { remove = ["User-Agent"], set = { X-Env = "dev" }, add = { X-Env = "two" } }
        [[rule]]
        response_headers = { remove = ["X-Origin"], set = { X-Seen = "1" } }
        [[rule]]
        when = "~m POST"
        request_body = { replace = 'hello (\w+)', with = 'bye \1' }
        [[rule]]
        when = "~ts plain"
        response_body = { replace = "secret", with = "[gone]" }
        "#,
        &[],
    );
    let (head, body) = setup.get("/x", &[]);
    assert!(!body.to_lowercase().contains("user-agent"), "{body}");
    assert!(body.contains("X-Env: dev\r\nX-Env: two"), "{body}");
    assert!(
        head.contains("X-Seen: 1") && !head.contains("X-Origin"),
        "{head}"
    );
    assert!(body.ends_with("the [gone]\n"), "{body}");
    let (head, body) = setup.get("/gzip", &["--compressed"]);
    assert!(body.ends_with("the [gone]\n"), "{head}{body}");
    let (_, body) = setup.get("/x", &["--data", "hello world"]);
    assert!(
        body.contains("Content-Length: 9") && body.contains("bye world"),
        "{body}"
    );
    let chunked = [
        "--data",
        "hello world",
        "--header",
        "Transfer-Encoding: chunked",
    ];
    let (_, body) = setup.get("/x", &chunked);
    assert!(
        body.contains("Transfer-Encoding: chunked") && body.contains("bye world"),
        "{body}"
    );
}

#[test]
fn what_no_rule_changes_keeps_its_framing() {
    let setup = with(
        "[[rule]]\nwhen = '~ts html'\nresponse_body = { replace = 'secret', with = 'x' }",
        &[],
    );
    let (head, body) = setup.get("/x", &[]);
    assert!(head.contains("Content-Length: "), "{head}");
    assert!(body.ends_with("the secret\n"), "{body}");
}

#[test]
fn an_event_is_changed_without_being_held_back() {
    let setup = with(
        "[[rule]]\nresponse_body = { replace = 'secret', with = 'word' }",
        &[],
    );
    let mut client = TcpStream::connect(setup.proxy.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let url = setup.origin.url("/events");
    write!(
        client,
        "GET {url} HTTP/1.1\r\nHost: {}\r\n\r\n",
        setup.origin.address
    )
    .unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    // The origin sends the second event only when the first has arrived here.
    while !String::from_utf8_lossy(&got).contains("data: a word\n\n") {
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&buffer[..n]);
    }
    setup.origin.go_on.send(()).unwrap();
    while !String::from_utf8_lossy(&got).contains("data: another word\n\n") {
        let n = client.read(&mut buffer).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&got));
        got.extend_from_slice(&buffer[..n]);
    }
}

#[test]
fn requests_go_elsewhere_with_and_without_tls() {
    let tls = Origin::start();
    let setup = with(
        &format!(
            r#"
        [[rule]]
        map_remote = {{ url = 'http://ORIGIN/tls/(.*)', to = '{}' }}
        [[rule]]
        map_remote = {{ url = 'https://localhost:\d+/plain', to = 'http://ORIGIN/from-tls' }}
        [[rule]]
        map_remote = {{ url = '/loop', to = '/loop/loop' }}
        [[rule]]
        map_remote = {{ url = '^http://.*/nowhere', to = 'ftp://x/' }}
        "#,
            tls.url(r"/\1")
        ),
        &["--upstream-trusted-ca", &tls.ca()],
    );
    let (_, body) = setup.get("/tls/head", &[]);
    let json: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["path"], "/head");
    let host = format!("Host: localhost:{}", tls.address.port());
    assert!(
        json["head"].as_array().unwrap().contains(&host.into()),
        "{json}"
    );
    let (_, body) = setup.get_url(&tls.url("/plain"), &[]);
    assert!(body.starts_with("GET /from-tls HTTP/1.1"), "{body}");
    let (_, body) = setup.get_url(&tls.url("/plain"), &["--http2"]);
    assert!(body.starts_with("GET /from-tls HTTP/1.1"), "{body}");
    // A rule that makes what it matches acts once.
    let (_, body) = setup.get("/loop", &[]);
    assert!(body.starts_with("GET /loop/loop HTTP/1.1"), "{body}");
    let (head, body) = setup.get("/nowhere", &[]);
    assert!(
        head.starts_with("HTTP/1.1 502 ") && body.contains("no http:// or https:// URL"),
        "{head}{body}"
    );
}

#[test]
fn files_answer() {
    let site = tempfile::tempdir().unwrap();
    fs::create_dir(site.path().join("sub")).unwrap();
    fs::write(site.path().join("sub/index.html"), "<p>hi").unwrap();
    let setup = with(
        &format!(
            "[[rule]]\nmap_local = {{ url = '//ORIGIN/static', path = '{}' }}",
            site.path().display()
        ),
        &[],
    );
    let (head, body) = setup.get("/static/sub", &[]);
    assert!(head.contains("Content-Type: text/html"), "{head}");
    assert_eq!(body, "<p>hi");
    let (head, _) = setup.get("/static/none", &[]);
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let (head, _) = setup.get("/static/%2e%2e/secret", &["--path-as-is"]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (head, _) = setup.get("/other", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[test]
fn a_credential_is_seen_by_its_host_alone() {
    let tls = Origin::start();
    let secret = "k-3f9a0c55d1";
    let mut setup = with(
        r#"
        [[rule]]
        inject = { host = "localhost", header = "Authorization", value = "Bearer {}", command = "printf 'k-%s' 3f9a0c55d1" }
        "#,
        &[
            "--upstream-trusted-ca",
            &tls.ca(),
            "--json",
            "--flow-detail",
            "3",
        ],
    );
    let (_, body) = setup.get_url(
        &tls.url("/head"),
        &["--header", "Authorization: Bearer dummy"],
    );
    let json: Value = serde_json::from_str(&body).unwrap();
    let head = json["head"].to_string();
    assert!(
        head.contains(&format!("Authorization: Bearer {secret}")) && !head.contains("dummy"),
        "{head}"
    );
    let (_, body) = setup.get_url(&tls.url("/head"), &["--http2"]);
    assert!(body.contains(secret), "{body}");
    // Over plain HTTP, and to a host that is only called so, it doesn't go.
    let (_, body) = setup.get("/x", &["--header", "Host: localhost"]);
    assert!(!body.contains(secret), "{body}");
    setup.proxy.signal("TERM");
    let (_, log) = setup.proxy.wait();
    let shown = setup.proxy.rest();
    assert!(shown.contains("/head"), "{shown}");
    // Neither is it in what is shown (but for the origin's own echo), logged or recorded.
    assert!(
        !log.concat().contains(secret) && !shown.contains(secret),
        "{shown}"
    );
    let flows = tollgate(setup.proxy.home.path())
        .args(["flows", "show", "1", "--json"])
        .output()
        .unwrap();
    let flow: Value = serde_json::from_slice(&flows.stdout).unwrap();
    assert!(
        !flow["request"].to_string().contains(secret),
        "{}",
        flow["request"]
    );
}

#[test]
fn a_throttle_waits_and_a_hold_ends_at_its_deadline() {
    let setup = with(
        r#"
        [[rule]]
        when = "~u /slow"
        throttle = { latency = "300ms" }
        [[rule]]
        when = "~u /narrow"
        throttle = { download = "400" }
        [[rule]]
        when = "~u /held"
        hold = { for = "100ms", then = "continue" }
        [[rule]]
        when = "~u /refused"
        hold = { for = "100ms" }
        "#,
        &[],
    );
    let begin = Instant::now();
    let (head, _) = setup.get("/slow", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let begin = Instant::now();
    let (_, body) = setup.get("/narrow", &[]);
    let least = Duration::from_secs_f64(body.len() as f64 / 400.0);
    assert!(begin.elapsed() >= least && !body.is_empty());
    let (head, _) = setup.get("/held", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (head, _) = setup.get("/refused", &[]);
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
}

#[test]
fn a_changed_file_takes_effect_all_or_nothing() {
    let mut setup = with("[[rule]]\nwhen = '~u /x'\nblock = 403", &[]);
    let file = setup.dir.path().join("rules.toml");
    let replace = |text: &str| {
        // As editors do: the file is whole at every moment.
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    let status = |setup: &Setup| setup.get("/x", &[]).0.chars().skip(9).take(3).collect();
    let got: String = status(&setup);
    assert_eq!(got, "403");
    replace("# another list\n[[rule]]\nwhen = '~u /x'\nblock = 451");
    setup.proxy.wait_for("rules reloaded: 1 in force");
    let got: String = status(&setup);
    assert_eq!(got, "451");
    replace("[[rule]]\nwhen = '~u /x'\nblock = 451\n[[rule]]\nblok = 403");
    setup
        .proxy
        .wait_for("rules.toml:5: unknown key 'blok'; did you mean 'block'?");
    let got: String = status(&setup);
    assert_eq!(got, "451");
}

/// Nobody has to ask for the process to be shown.
#[cfg(target_os = "linux")]
#[test]
fn a_rule_is_for_a_process() {
    let setup = with("[[rule]]\nwhen = '~process curl'\nblock = 451", &[]);
    let (head, _) = setup.get("/x", &[]);
    assert!(head.starts_with("HTTP/1.1 451 "), "{head}");
    let setup = with("[[rule]]\nwhen = '~process wget'\nblock = 451", &[]);
    let (head, _) = setup.get("/x", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[test]
fn a_budget_is_used_up() {
    let setup = with(
        r#"
        [[rule]]
        when = "~u /few"
        budget = { requests = 2, per = "1h" }
        [[rule]]
        when = "~u /small"
        budget = { upload = "10", per = "1h" }
        "#,
        &[],
    );
    for _ in 0..2 {
        let (head, _) = setup.get("/few", &[]);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    let (head, body) = setup.get("/few", &[]);
    assert!(
        head.starts_with("HTTP/1.1 429 ") && head.contains("Retry-After: "),
        "{head}"
    );
    assert!(body.contains("used up"), "{body}");
    let (head, _) = setup.get("/small", &["--data", "12345"]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (error, _) = setup.get("/small", &["--data", "123456"]);
    assert!(!error.starts_with("HTTP/1.1 200 "), "{error}");
    let (head, _) = setup.get("/small", &["--data", "1"]);
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
}

#[test]
fn a_changed_policy_leaves_what_a_budget_has_counted() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let replace = |file: &Path, text: &str| {
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, file).unwrap();
    };
    let policy = |text: &str| replace(&file, text);
    policy("[[rule]]\ncategory = \"secret\"\naction = \"block\"\n");
    let mut setup = with(
        "[[rule]]\nbudget = { requests = 1, per = \"1h\" }",
        &[
            "--screen",
            "enforce",
            "--screen-policy",
            file.to_str().unwrap(),
        ],
    );
    let (head, _) = setup.get("/x", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    policy("# another\n[[rule]]\ncategory = \"secret\"\naction = \"warn\"\n");
    setup.proxy.wait_for("policy reloaded: 1 rules in force");
    let (head, _) = setup.get("/x", &[]);
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    // Two that have changed, one of them wrong: the other one waits until that is mended.
    let rules = setup.dir.path().join("rules.toml");
    let old = fs::read_to_string(&rules).unwrap();
    replace(&rules, &format!("{old}\n[[rule]]\nblok = 403\n"));
    setup.proxy.wait_for("rules not reloaded");
    policy("[[rule]]\ncategory = \"secret\"\naction = \"block\"\n");
    setup.proxy.wait_for("rules not reloaded");
    replace(&rules, &format!("{old}\n# as it was\n"));
    setup.proxy.wait_for("rules reloaded: 1 in force");
    setup.proxy.wait_for("policy reloaded: 1 rules in force");
}

#[test]
fn a_kill_switch_refuses_and_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("stop");
    let mut setup = with("", &["--kill-switch", file.to_str().unwrap()]);
    let mut client = TcpStream::connect(setup.proxy.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let url = setup.origin.url("/events");
    let address = setup.origin.address;
    write!(client, "GET {url} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
    let mut client = BufReader::new(client);
    let mut line = String::new();
    while !line.contains("data: ") {
        line.clear();
        assert!(client.read_line(&mut line).unwrap() > 0);
    }
    fs::write(&file, "").unwrap();
    setup.proxy.wait_for("everything is refused");
    let (head, _) = setup.get("/x", &[]);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    setup.origin.go_on.send(()).unwrap();
    let mut rest = String::new();
    let _ = client.read_to_string(&mut rest);
    assert!(!rest.contains("another"), "{rest}");
    fs::remove_file(&file).unwrap();
    setup.proxy.wait_for("traffic passes again");
    let (head, _) = setup.get("/x", &[]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[test]
fn cookies_and_credentials_stick() {
    let setup = with(
        "[[rule]]\nsticky_cookie = true\n[[rule]]\nsticky_auth = true",
        &[],
    );
    let (_, body) = setup.get("/x", &["--user", "a:b"]);
    assert!(!body.contains("Cookie:"), "{body}");
    let (_, body) = setup.get("/x", &[]);
    assert!(
        body.contains("Cookie: id=7") && body.contains("Authorization: Basic YTpi"),
        "{body}"
    );
}

#[test]
fn a_wrong_rule_keeps_the_proxy_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.toml");
    fs::write(&file, "\n[[rule]]\nwhen = \"~d (\"\nblock = 403\n").unwrap();
    let file = file.to_str().unwrap();
    for arguments in [&["--rules", file][..], &["rules", "check", file]] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("rules.toml:3: the filter is none: column 4"),
            "{text}"
        );
    }
}

#[test]
fn rules_are_tried_on_recorded_flows() {
    let setup = with("[[rule]]\nallow = true", &[]);
    setup.get("/api/x", &[]);
    setup.get("/other", &[]);
    let capture = setup.dir.path().join("capture.mitm");
    let capture = capture.to_str().unwrap();
    let home = setup.proxy.home.path();
    let begin = Instant::now();
    while !exported(home, capture) {
        assert!(begin.elapsed() < PATIENCE, "two flows are never recorded");
    }
    let file = setup.dir.path().join("new.toml");
    fs::write(
        &file,
        "[[rule]]\nname = 'stage'\nmap_remote = { url = '/api/', to = '/v2/' }\n[[rule]]\nwhen = '~u /v2/'\nblock = 403\n[[rule]]\nresponse_body = { replace = 'secret', with = 'x' }",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let run = output(&["rules", "test", file, "--flow", capture]);
    let text = String::from_utf8(run.stdout).unwrap();
    assert_eq!(run.status.code(), Some(0));
    let url = setup.origin.url("/v2/x");
    assert!(
        text.contains(&format!("map_remote (stage): sends it to {url}\n")),
        "{text}"
    );
    assert!(text.contains("answers 403, and ends the list"), "{text}");
    assert!(
        text.contains("on the response: changes the body of the response"),
        "{text}"
    );
    let run = output(&["rules", "test", file, "--flow", capture, "--json"]);
    let line = String::from_utf8(run.stdout).unwrap();
    let json: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(json["rules"][0]["action"], "map_remote");
    assert_eq!(json["rules"][1]["ends"], true);
    let run = output(&["rules", "check", file, "--json"]);
    assert_eq!(String::from_utf8(run.stdout).unwrap().lines().count(), 3);
}

fn exported(home: &Path, capture: &str) -> bool {
    let run = tollgate(home)
        .args(["flows", "--export", capture])
        .output()
        .unwrap();
    String::from_utf8_lossy(&run.stderr).starts_with("2 flows")
}

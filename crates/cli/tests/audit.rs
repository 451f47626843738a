//! `tollgate audit`, and where a screen's verdicts go.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use support::{Origin, PATIENCE, has, tollgate};

/// A call that is refused.
fn bad_call(id: u32) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":"bash","arguments":{"command":"rm -rf ~"}}}).to_string() + "\n"
}

/// One verdict for each of `count` calls, with these arguments.
fn verdicts(home: &Path, arguments: &[&str], count: u32) -> Output {
    let mut child = session(tollgate(home), arguments);
    let mut stdin = child.stdin.take().unwrap();
    for id in 0..count {
        stdin.write_all(bad_call(id).as_bytes()).unwrap();
    }
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn session(mut command: Command, arguments: &[&str]) -> Child {
    command
        .arg("mcp")
        .args(arguments)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn audit(home: &Path, arguments: &[&str]) -> (String, Option<i32>) {
    let output = tollgate(home)
        .arg("audit")
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.code())
}

struct Files {
    home: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }
}

#[test]
fn a_signed_log_is_proven_by_the_public_key_alone() {
    let files = Files::new();
    let home = files.home.path();
    let (log, key, public) = (
        files.path("audit.jsonl"),
        files.path("key"),
        files.path("public"),
    );
    let (pem, code) = audit(home, &["key", &key]);
    assert_eq!(code, Some(0), "{pem}");
    // It is made once.
    assert_eq!(audit(home, &["key", &key]).0, pem);
    std::fs::write(&public, &pem).unwrap();

    verdicts(home, &["--audit-log", &log, "--audit-key", &key], 3);
    let (text, code) = audit(home, &["verify", &log, "--public-key", &public]);
    assert!(
        text.starts_with("whole: 4 lines from number 1,")
            && text.ends_with("; all of it is signed\n"),
        "{text}"
    );
    assert_eq!(code, Some(0));
    // Without the key the chain goes on, unsigned.
    verdicts(home, &["--audit-log", &log], 2);
    let (text, code) = audit(home, &["verify", &log, "--public-key", &public]);
    assert!(
        text.ends_with("; signed up to its last 2 lines\n"),
        "{text}"
    );
    assert_eq!(code, Some(0));
    let (text, _) = audit(home, &["verify", &log, "--public-key", &public, "--json"]);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&value["checkpoints"], &value["unsigned"]),
        (&json!(1), &json!(2))
    );

    let other = audit(home, &["key", &files.path("other")]).0;
    std::fs::write(&public, other).unwrap();
    let (text, code) = audit(home, &["verify", &log, "--public-key", &public]);
    assert_eq!(
        text,
        "broken: line 4 is a checkpoint that this key has not signed\n"
    );
    assert_eq!(code, Some(1));

    // A key that others can read is not taken.
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let output = verdicts(home, &["--audit-log", &log, "--audit-key", &key], 0);
    assert!(String::from_utf8_lossy(&output.stderr).contains("chmod 600"));
}

#[test]
fn a_second_process_is_told_that_the_file_is_in_use() {
    let files = Files::new();
    let log = files.path("audit.jsonl");
    let mut first = session(tollgate(files.home.path()), &["--audit-log", &log]);
    // It has the file when it answers.
    let mut stdin = first.stdin.take().unwrap();
    stdin.write_all(bad_call(1).as_bytes()).unwrap();
    BufReader::new(first.stdout.take().unwrap())
        .read_line(&mut String::new())
        .unwrap();
    let second = verdicts(files.home.path(), &["--audit-log", &log], 0);
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(
        text.contains("audit.jsonl: another process writes this log"),
        "{text}"
    );
    drop(stdin);
    assert_eq!(first.wait().unwrap().code(), Some(0));
}

#[test]
fn a_log_is_shown_and_followed() {
    let files = Files::new();
    let home = files.home.path();
    let log = files.path("audit.jsonl");
    verdicts(home, &["--audit-log", &log], 2);
    let (text, _) = audit(home, &["show", &log]);
    assert_eq!(text.lines().count(), 2);
    assert!(
        text.lines()
            .all(|line| line.contains(" refused mcp:cat, a call of the tool bash: command-")),
        "{text}"
    );
    let (json, _) = audit(home, &["show", &log, "--json"]);
    assert_eq!(json, std::fs::read_to_string(&log).unwrap());
    let rule =
        serde_json::from_str::<Value>(json.lines().next().unwrap()).unwrap()["reason"].clone();
    assert_eq!(
        audit(home, &["show", &log, "--rule", rule.as_str().unwrap()]).0,
        text
    );
    assert_eq!(audit(home, &["show", &log, "--rule", "canary"]).0, "");
    assert_eq!(audit(home, &["show", &log, "--since", "1d"]).0, text);

    let mut follower = tollgate(home)
        .args(["audit", "show", "--follow", "--json", &log])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next =
        || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()["seq"].as_u64();
    assert_eq!((next(), next()), (Some(1), Some(2)));
    verdicts(home, &["--audit-log", &log], 1);
    assert_eq!(next(), Some(3));
    // Set aside, as after 16 MiB: the chain goes on in another file.
    std::fs::rename(&log, format!("{log}.000000000003")).unwrap();
    verdicts(home, &["--audit-log", &log], 1);
    assert_eq!(next(), Some(4));
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn a_syslog_server_and_a_web_service_are_told() {
    let files = Files::new();
    let syslog = UdpSocket::bind("127.0.0.1:0").unwrap();
    syslog.set_read_timeout(Some(PATIENCE)).unwrap();
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let to_syslog = format!("udp://{}", syslog.local_addr().unwrap());
    let to_service = format!("http://{}/verdicts", service.local_addr().unwrap());
    let served = std::thread::spawn(move || {
        let (mut stream, _) = service.accept().unwrap();
        let mut request = String::new();
        let mut byte = [0];
        // The body is one object.
        while !request.ends_with("\"verdicts\":[]}") && !request.ends_with("}]}") {
            stream.read_exact(&mut byte).unwrap();
            request.push(char::from(byte[0]));
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        request
    });
    let mut command = tollgate(files.home.path());
    command.env("TOLLGATE_AUDIT_WEBHOOK_SECRET", "secret");
    let arguments = [
        "--audit-syslog",
        &to_syslog,
        "--audit-format",
        "cef",
        "--audit-webhook",
        &to_service,
    ];
    let mut child = session(command, &arguments);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(bad_call(1).as_bytes())
        .unwrap();
    let mut buffer = [0; 8192];
    let length = syslog.recv(&mut buffer).unwrap();
    let message = String::from_utf8_lossy(&buffer[..length]);
    assert!(
        message.starts_with("<108>1 20") && message.contains(" - CEF:0|Tollgate|tollgate|"),
        "{message}"
    );
    let request = served.join().unwrap();
    assert!(
        request.starts_with("POST /verdicts HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains("X-Tollgate-Signature: sha256="),
        "{request}"
    );
    assert!(request.contains("a call of the tool bash"), "{request}");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
fn a_web_service_is_verified() {
    let files = Files::new();
    let service = Origin::start();
    let url = service.url("/verdicts");
    let told = |authority: &str| {
        let mut command = tollgate(files.home.path());
        command.env("SSL_CERT_FILE", authority);
        let mut child = session(command, &["--audit-webhook", &url]);
        child
            .stdin
            .take()
            .unwrap()
            .write_all(bad_call(1).as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        text.lines()
            .filter(|line| line.contains("webhook at localhost:"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&service.ca()), [] as [String; 0]);
    assert_eq!(service.accepted(), 1);
    // An authority that has not signed it.
    let other = Origin::start();
    let errors = told(&other.ca());
    assert!(
        errors[0].contains("verdicts wait: ") && errors[0].contains("certificate"),
        "{errors:?}"
    );
    assert!(
        errors
            .last()
            .unwrap()
            .ends_with("1 verdicts were not delivered"),
        "{errors:?}"
    );
}

#[test]
fn a_proxy_says_at_its_end_what_was_not_delivered() {
    if !has("curl") {
        return;
    }
    let files = Files::new();
    // Nobody listens there any more.
    let service = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let hook = format!("http://{service}/");
    let url = format!("http://origin.invalid/?key=AKIA{}", "Y3T6DKCNFLR2QWZ4");
    let output = tollgate(files.home.path())
        .args(["run", "--screen", "enforce", "--audit-webhook", &hook])
        .args(["--", "curl", "-s", "-o", "/dev/null", &url])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("1 verdicts were not delivered"), "{text}");
}

#[test]
fn places_that_make_no_sense_are_errors() {
    let files = Files::new();
    for (arguments, why) in [
        (
            &["--audit-syslog", "log.example"][..],
            "--audit-syslog log.example: expected udp://HOST:PORT",
        ),
        (
            &["--audit-webhook", "ftp://a"],
            "--audit-webhook: expected http:// or https://",
        ),
        (
            &["--audit-webhook", "http://a", "--audit-webhook-secret", "x"],
            "takes env:NAME or file:PATH",
        ),
        (&["--audit-key", "k"], "--audit-log"),
    ] {
        let output = verdicts(files.home.path(), arguments, 0);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(why), "{text}");
    }
    // Without a screen there are no verdicts.
    let output = tollgate(files.home.path())
        .args(["run", "--audit-log", &files.path("a"), "--", "true"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("add --screen enforce"),
        "{text}"
    );
}

/// A shell that runs `tollgate` with files of at most so many blocks of 512 bytes: a disk that is full.
fn on_a_small_disk(home: &Path, blocks: u32) -> Command {
    let tollgate = tollgate(home);
    let mut shell = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(tollgate.get_program());
    shell.env_clear();
    for (name, value) in tollgate.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
}

#[test]
fn a_full_disk_stops_traffic_where_that_is_wanted_until_there_is_room() {
    if !has("prlimit") {
        return;
    }
    let files = Files::new();
    let log = files.path("audit.jsonl");
    let arguments = ["--audit-log", &log, "--audit-full", "stop"];
    let mut child = session(on_a_small_disk(files.home.path(), 4), &arguments);
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = |id| {
        stdin.write_all(bad_call(id).as_bytes()).unwrap();
        answers.next().unwrap().unwrap()
    };
    let deadline = Instant::now() + PATIENCE;
    assert!(ask(0).contains("command-"));
    while !ask(1).contains("the audit log can't be written") {
        assert!(Instant::now() < deadline);
    }
    let pid = child.id().to_string();
    let more = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=unlimited"])
        .status();
    assert!(more.unwrap().success());
    while ask(2).contains("the audit log can't be written") {
        assert!(Instant::now() < deadline);
    }
    drop(answers);
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let (text, _) = audit(files.home.path(), &["verify", &log]);
    assert!(text.starts_with("whole: "), "{text}");
}

#[test]
fn a_proxy_on_a_full_disk_answers_503_or_goes_on() {
    if !has("curl") {
        return;
    }
    let codes = |full: &str| {
        let files = Files::new();
        let log = files.path("audit.jsonl");
        let secret = format!("AKIA{}", "Y3T6DKCNFLR2QWZ4");
        let url = format!("http://origin.invalid/[1-2000]?key={secret}");
        // The authorities that the command gets fit, and some thousand verdicts.
        let output = on_a_small_disk(files.home.path(), 1000)
            .args([
                "run",
                "--screen",
                "enforce",
                "--audit-log",
                &log,
                "--audit-full",
                full,
            ])
            .args([
                "--",
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}\n",
                &url,
            ])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let codes: Vec<String> = text.lines().map(str::to_owned).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(codes.len(), 2000, "{said}");
        codes
    };
    let stopped = codes("stop");
    assert_eq!(
        (stopped[0].as_str(), stopped[1999].as_str()),
        ("403", "503")
    );
    assert!(codes("go-on").iter().all(|code| code == "403"));
}

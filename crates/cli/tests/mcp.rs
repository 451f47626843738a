//! `tollgate mcp`: what passes between a client and a server, and how both end.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests assert as tests do"
)]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::{Value, json};
use support::tollgate;

/// A server that writes what it reads into `$OUT`, and answers with it.
const ECHO: &str =
    r#"while IFS= read -r line; do printf '%s\n' "$line" >> "$OUT"; printf '%s\n' "$line"; done"#;

struct Session {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    home: tempfile::TempDir,
}

impl Session {
    fn start(arguments: &[&str], script: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self::in_home(home, arguments, script)
    }

    fn in_home(home: tempfile::TempDir, arguments: &[&str], script: &str) -> Self {
        let mut child = command(home.path(), arguments, script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            to: child.stdin.take(),
            from: BufReader::new(child.stdout.take().unwrap()),
            child,
            home,
        }
    }

    fn send(&mut self, line: &str) {
        let to = self.to.as_mut().unwrap();
        to.write_all(line.as_bytes()).unwrap();
        to.write_all(b"\n").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim_end_matches('\n').to_owned()
    }

    fn answer(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Ends the input, and gives the rest of the output, standard error, the exit code and the folder.
    fn end(mut self) -> (String, String, Option<i32>, tempfile::TempDir) {
        self.to = None;
        let (mut out, mut err) = (String::new(), String::new());
        self.from.read_to_string(&mut out).unwrap();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut err).unwrap();
        (out, err, self.child.wait().unwrap().code(), self.home)
    }
}

fn command(home: &Path, arguments: &[&str], script: &str) -> Command {
    let mut command = tollgate(home);
    command
        .arg("mcp")
        .args(arguments)
        .args(["--", "sh", "-c", script])
        .env("OUT", home.join("received"));
    command
}

fn with_input(arguments: &[&str], script: &str, input: &[u8]) -> Output {
    let home = tempfile::tempdir().unwrap();
    let mut child = command(home.path(), arguments, script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A server may end without reading all of it.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn call(id: Value, tool: &str, arguments: Value) -> String {
    json!({"jsonrpc":"2.0","id":id,"method":"tools/call","params":{"name":tool,"arguments":arguments}}).to_string()
}

#[test]
fn a_refused_call_is_answered_and_the_session_goes_on() {
    let mut session = Session::start(&[], ECHO);
    let fine = call(json!(1), "bash", json!({"command": "ls"}));
    session.send(&fine);
    assert_eq!(session.line(), fine);
    session.send(&call(json!("b"), "bash", json!({"command": "rm -rf ~"})));
    let answer = session.answer();
    assert_eq!(answer["id"], "b");
    assert_eq!(answer["result"]["isError"], true);
    let next = call(json!(3), "bash", json!({"command": "pwd"}));
    session.send(&next);
    assert_eq!(session.line(), next);
    let (out, err, code, home) = session.end();
    assert_eq!((out.as_str(), code), ("", Some(0)));
    assert!(
        err.contains("refused: ") && err.contains("a call of the tool bash"),
        "{err}"
    );
    assert!(err.contains("to let it pass: "), "{err}");
    let received = std::fs::read_to_string(home.path().join("received")).unwrap();
    assert_eq!(received, format!("{fine}\n{next}\n"));
}

#[test]
fn what_passes_is_byte_for_byte_the_same_also_where_it_is_long() {
    // More than pipes and buffers hold, in lines of several sizes; nothing stalls, nothing is lost.
    let mut input = Vec::new();
    for n in 0..200 {
        let padding = " ".repeat(n * 97 % 40_000);
        let text =
            format!("{{\"jsonrpc\": \"2.0\",{padding}\"method\":\"notifications/n{n}\"}}\r\n");
        input.extend_from_slice(text.as_bytes());
    }
    let output = with_input(&[], "cat", &input);
    assert!(output.stdout == input);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_long_message_does_not_stop_what_comes_the_other_way() {
    // A server that reads no more before it has written, and a client that doesn't wait for that.
    let script = "read -r line; yes \"$(printf '%4000s' '')\" | head -c 16777216; cat > /dev/null";
    let mut input = b"{\"jsonrpc\":\"2.0\",\"method\":\"begin\"}\n{\"jsonrpc\":\"2.0\",".to_vec();
    input.resize(input.len() + (6 << 20), b' ');
    input.extend_from_slice(b"\"method\":\"long\"}\n");
    let output = with_input(&[], script, &input);
    assert_eq!(output.stdout.len(), 16 << 20);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn the_exit_code_is_the_servers() {
    let code = |script: &str| with_input(&[], script, b"").status.code();
    assert_eq!(code("exit 7"), Some(7));
    assert_eq!(code("kill -KILL $$"), Some(137));
    let home = tempfile::tempdir().unwrap();
    let missing = tollgate(home.path())
        .args(["mcp", "--", "/does/not/exist"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("command not found"));
}

#[test]
fn signals_reach_the_server() {
    let mut session = Session::start(
        &[],
        "trap 'kill $!; exit 5' TERM; sleep 60 >/dev/null 2>&1 & echo '{\"jsonrpc\":\"2.0\",\"method\":\"ready\"}'; wait",
    );
    assert_eq!(session.answer()["method"], "ready");
    let pid = session.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-s", "TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(session.child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_signal_ends_what_a_client_does_not_read() {
    // More than pipes hold, and no more than we take.
    let script = "head -c 300000 /dev/zero | tr '\\0' '\\n'; : > \"$OUT\"";
    let mut session = Session::start(&[], script);
    let pid = session.child.id().to_string();
    let written = session.home.path().join("received");
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while session.child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline);
        if !written.exists() {
            std::thread::yield_now();
            continue;
        }
        // One may come when the server is still there, which gets it then.
        Command::new("kill")
            .args(["-s", "TERM", &pid])
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_ends_with_us_however_we_end() {
    let mut session = Session::start(
        &[],
        "echo \"{\\\"jsonrpc\\\":\\\"2.0\\\",\\\"method\\\":\\\"$$\\\"}\"; trap '' TERM; exec sleep 600",
    );
    let server = session.answer()["method"].as_str().unwrap().to_owned();
    session.child.kill().unwrap();
    session.child.wait().unwrap();
    // Its death is the kernel's work: soon, but not at once.
    let stat = format!("/proc/{server}/stat");
    let deadline = std::time::Instant::now() + support::PATIENCE;
    loop {
        let state = std::fs::read_to_string(&stat).unwrap_or_default();
        if state.is_empty() || state.contains(") Z") {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{state}");
        std::thread::yield_now();
    }
}

#[test]
fn a_server_does_not_get_the_secret_that_signs_verdicts() {
    let home = tempfile::tempdir().unwrap();
    let script = "printf '%s,%s' \"${TOLLGATE_AUDIT_WEBHOOK_SECRET-none}\" \"$OTHER\" > \"$OUT\"";
    let status = command(home.path(), &[], script)
        .env("TOLLGATE_AUDIT_WEBHOOK_SECRET", "secret")
        .env("OTHER", "kept")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let seen = std::fs::read_to_string(home.path().join("received")).unwrap();
    assert_eq!(seen, "none,kept");
}

#[test]
fn lines_that_are_no_messages_stay_away_from_the_client() {
    let script = "echo 'INFO: ready'; echo '{\"jsonrpc\":\"2.0\",\"method\":\"hello\"}'; printf '{\"jsonrpc\":\"2.0\",'";
    let output = with_input(&[], script, b"");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "{\"jsonrpc\":\"2.0\",\"method\":\"hello\"}\n"
    );
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        err.contains("it is no JSON") && err.contains("it was cut off"),
        "{err}"
    );
    let watched = with_input(&["--screen", "monitor"], script, b"");
    assert!(watched.stdout.starts_with(b"INFO: ready\n{"));
    assert!(watched.stdout.ends_with(b"{\"jsonrpc\":\"2.0\","));
}

#[test]
fn verdicts_are_lines_of_json_and_stand_in_the_audit_log() {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("audit.jsonl");
    let log_name = log.display().to_string();
    let mut session = Session::in_home(home, &["--json", "--audit-log", &log_name], ECHO);
    session.send(&call(json!(1), "bash", json!({"command": "rm -rf ~"})));
    assert_eq!(session.answer()["id"], 1);
    let (_, err, _, home) = session.end();
    let verdict: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(verdict["refused"], true);
    assert_eq!(verdict["target"], "mcp:sh");
    assert_eq!(verdict["place"], "a call of the tool bash");
    let verified = tollgate(home.path())
        .args(["audit", "verify", "--json", &log_name])
        .output()
        .unwrap();
    let verified: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["lines"], 1);
}

fn write_policy(home: &Path, text: &str) -> String {
    let file = home.join("policy.toml");
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

#[test]
fn a_policy_decides_what_passes() {
    let home = tempfile::tempdir().unwrap();
    let file = write_policy(
        home.path(),
        r#"
[[rule]]
name = "no pushes"
tool = "bash"
command = "git push*"
action = "block"
message = "ask the user"

[[rule]]
name = "keys stay"
category = "secret"
action = "redact"

[[rule]]
name = "elsewhere"
destination = "*.example"
action = "hold"
"#,
    );
    let mut session = Session::in_home(home, &["--json", "--screen-policy", &file], ECHO);
    session.send(&call(json!(1), "bash", json!({"command": "g\\it push"})));
    let text = session.answer()["result"]["content"][0]["text"].clone();
    assert!(
        text.as_str()
            .unwrap()
            .ends_with("not allowed by no pushes; ask the user."),
        "{text}"
    );
    let token = ["AKIA", "Y3T6DKCNFLR2QWZ4"].concat();
    session.send(&call(json!(2), "note", json!({"text": token})));
    let text = session.answer()["params"]["arguments"]["text"].clone();
    assert!(
        text.as_str()
            .unwrap()
            .starts_with("[tollgate:aws-access-key-id:"),
        "{text}"
    );
    let (_, err, _, home) = session.end();
    let received = std::fs::read_to_string(home.path().join("received")).unwrap();
    assert!(
        !received.contains(&token) && received.lines().count() == 1,
        "{received}"
    );
    let verdicts: Vec<Value> = err
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(verdicts[0]["rule"], "no pushes");
    assert_eq!(verdicts[1]["rule"], "keys stay");
    assert_eq!(verdicts[1]["action"], "redact");
    assert_eq!(verdicts.len(), 2);
}

#[test]
fn the_policy_in_the_guide_can_be_used() {
    let guide = include_str!("../../../docs/mcp.md");
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = write_policy(home.path(), text);
    let output = command(home.path(), &["--screen-policy", &file], "true")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && err.is_empty(), "{err}");
}

#[test]
fn a_policy_that_cant_be_used_keeps_the_server_from_starting() {
    for (text, why) in [
        (
            "[[rule]]\nname = \"pushes\"\ntool = \"bash\"\naction = \"hold\"\n",
            "policy.toml:1: the rule \"pushes\" asks a person",
        ),
        (
            "[[rule]]\nfinding = \"tool-drif\"\naction = \"warn\"\n",
            "did you mean 'tool-drift'?",
        ),
    ] {
        let home = tempfile::tempdir().unwrap();
        let file = write_policy(home.path(), text);
        let output = command(home.path(), &["--screen-policy", &file], "touch \"$OUT\"")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(err.contains(why), "{err}");
        assert!(!home.path().join("received").exists());
    }
}

#[test]
fn rules_that_never_hold_are_named() {
    let home = tempfile::tempdir().unwrap();
    let file = write_policy(
        home.path(),
        "[[rule]]\nname = \"by process\"\nprocess = \"x\"\naction = \"block\"\n",
    );
    let output = command(home.path(), &["--screen-policy", &file], "true")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && err.contains("never hold here: by process"),
        "{err}"
    );
}

#[test]
fn tools_are_pinned_and_compared_with_the_pins() {
    let list = |description: &str| json!({"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"add","description":description,"inputSchema":{}}]}});
    let script = "read -r line; printf '%s\\n' \"$LIST\"; cat > /dev/null";
    let home = tempfile::tempdir().unwrap();
    let pins = home.path().join("pins.json");
    let ask = |arguments: &[&str], answer: &Value| {
        let mut child = command(home.path(), arguments, script)
            .env("LIST", answer.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin
            .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}\n")
            .unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let tools = answer["result"]["tools"].as_array().unwrap().len();
        (tools, String::from_utf8(output.stderr).unwrap())
    };
    let file = pins.display().to_string();
    assert_eq!(ask(&["--pin", &file], &list("Adds.")), (1, String::new()));
    assert!(std::fs::read_to_string(&pins).unwrap().contains("\"add\""));
    assert_eq!(ask(&["--pin", &file], &list("Adds.")), (1, String::new()));
    let (tools, err) = ask(&["--pin", &file], &list("Adds, and more."));
    assert_eq!(tools, 0);
    assert!(
        err.contains("the tool has changed since it was pinned: description"),
        "{err}"
    );
    let (tools, err) = ask(
        &["--pin", &file, "--drift", "warn"],
        &list("Adds, and more."),
    );
    assert_eq!(tools, 1);
    assert!(err.contains("seen: "), "{err}");

    std::fs::write(&pins, "{}").unwrap();
    let broken = tollgate(home.path())
        .args(["mcp", "--pin", &file, "--", "true"])
        .output()
        .unwrap();
    assert_eq!(broken.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&broken.stderr).contains("pins.json: no file of pins"));
}

//! `tollgate held`: a person decides about what a rule holds in a running proxy.
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
use std::io::{BufRead as _, BufReader, Lines, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use serde_json::Value;
use support::{Origin, Proxy, failure, tollgate};

const RULES: &str = r#"
    [[rule]]
    name = "ask first"
    when = "~u /held"
    hold = { for = "1h", then = "block" }
    [[rule]]
    name = "look at it"
    when = "~u /answer"
    on = "response"
    hold = { for = "1h" }
    [[rule]]
    name = "soon over"
    when = "~u /soon"
    hold = { for = "10ms", then = "continue" }
"#;

struct Setup {
    origin: Origin,
    proxy: Proxy,
    _dir: tempfile::TempDir,
}

fn start() -> Setup {
    let origin = Origin::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rules.toml");
    fs::write(&file, RULES).unwrap();
    let rules = file.display().to_string();
    let proxy = Proxy::start(&["--rules", &rules, "--upstream-trusted-ca", &origin.ca()]);
    Setup {
        origin,
        proxy,
        _dir: dir,
    }
}

impl Setup {
    fn held(&self, arguments: &[&str]) -> Output {
        let mut command = tollgate(self.proxy.home.path());
        command.arg("held").args(arguments).output().unwrap()
    }

    /// What it prints, once it has done what it was asked for.
    fn shown(&self, arguments: &[&str]) -> String {
        let output = self.held(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &said
    }

    /// What it says where it can't.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.held(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Asks for a path, which prints the status code.
    fn get(&self, path: &str) -> Client {
        let child = Command::new("curl")
            .args([
                "--silent",
                "--noproxy",
                "",
                "--http1.1",
                "--output",
                "/dev/null",
            ])
            .args([
                "--write-out",
                "%{http_code}",
                "--proxy",
                self.proxy.address(),
            ])
            .arg("--cacert")
            .arg(self.proxy.cert())
            .arg(self.origin.url(path))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Client(child)
    }

    fn follow(&self) -> Follow {
        let mut child = tollgate(self.proxy.home.path())
            .args(["held", "--follow", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Follow { child, lines }
    }

    fn socket(&self) -> PathBuf {
        let folders = fs::read_dir(self.proxy.home.path()).unwrap();
        let mut folders = folders.map(|entry| entry.unwrap().path());
        let folder = folders
            .find(|path| {
                path.file_name()
                    .unwrap()
                    .to_string_lossy()
                    .starts_with("tollgate-")
            })
            .unwrap();
        assert_eq!(mode(&folder), 0o700);
        folder.join(format!("held-{}.sock", self.proxy.pid()))
    }
}

struct Client(Child);

impl Client {
    /// The status code that came.
    fn status(mut self) -> String {
        let mut status = String::new();
        let mut out = self.0.stdout.take().unwrap();
        out.read_to_string(&mut status).unwrap();
        status
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Follow {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follow {
    fn next(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_person_releases_and_refuses_what_is_held() {
    let setup = start();
    assert_eq!(mode(&setup.socket()), 0o600);
    assert_eq!(setup.shown(&[]), "no flow is held\n");
    let mut follow = setup.follow();
    for (path, on, arguments, status) in [
        ("/held/1", "request", &["release"][..], "200"),
        ("/held/2", "request", &["refuse"], "403"),
        ("/held/3", "request", &["refuse", "--status", "451"], "451"),
        ("/held/4", "request", &["refuse", "--status", "444"], "000"),
        ("/answer", "response", &["release"], "200"),
        ("/answer", "response", &["refuse", "--status", "502"], "502"),
    ] {
        let before = setup.origin.accepted();
        let client = setup.get(path);
        let held = follow.next();
        let id = held["flow"].as_str().unwrap();
        assert_eq!(held["url"], setup.origin.url(path));
        assert_eq!(held["on"], on);
        let left = held["until"].as_f64().unwrap() - held["since"].as_f64().unwrap();
        assert!((left - 3600.0).abs() < 1.0, "{left}");
        let list = setup.shown(&["list"]);
        assert!(
            list.starts_with(&format!("{id}  {on} for ")) && list.lines().count() == 1,
            "{list}"
        );
        // What it is, with its head.
        let shown = setup.shown(&["show", id]);
        assert!(shown.contains("GET ") && shown.to_lowercase().contains("user-agent: curl"));
        assert_eq!(shown.contains(" 200 OK"), on == "response", "{shown}");
        let (word, more) = arguments.split_first().unwrap();
        setup.shown(&[&[*word, id], more].concat());
        assert_eq!(client.status(), status);
        assert_eq!(follow.next()["gone"], id);
        // Nothing of a refused request arrives. (The connection stands before there is one.)
        assert!(setup.origin.accepted() <= before + 1);
        assert!(
            setup
                .refused(&["release", id])
                .contains("no held flow has the id")
        );
    }
    // What nobody decides about goes the way that its rule says.
    assert_eq!(setup.get("/soon").status(), "200");
    let held = follow.next();
    assert_eq!(held["rule"], "soon over");
    assert_eq!(follow.next()["gone"], held["flow"]);
}

#[test]
fn all_can_be_decided_on_and_a_list_ends_with_its_proxy() {
    let mut setup = start();
    let mut follow = setup.follow();
    let clients = ["/held/1", "/held/2", "/held/3"].map(|path| {
        let client = setup.get(path);
        follow.next();
        client
    });
    let json = setup.shown(&["--json"]);
    let urls: Vec<Value> = json
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["url"].clone())
        .collect();
    let expected = ["/held/1", "/held/2", "/held/3"].map(|path| setup.origin.url(path));
    assert_eq!(urls, expected);
    // Their ids begin with the same time.
    let same = setup.refused(&["release", "0"]);
    assert!(same.contains("more than one held flow"), "{same}");
    assert_eq!(
        setup.shown(&["refuse", "all", "--json"]),
        "{\"refused\":3}\n"
    );
    for client in clients {
        assert_eq!(client.status(), "403");
    }
    let socket = setup.socket();
    setup.proxy.signal("TERM");
    let (status, _) = setup.proxy.wait();
    assert!(status.success());
    assert!(!socket.exists());
    assert_eq!(
        follow.lines.by_ref().count(),
        3,
        "three went, and then it ended"
    );
    assert_eq!(follow.child.wait().unwrap().code(), Some(0));
    assert!(setup.refused(&[]).contains("no proxy with rules runs here"));
}

#[test]
fn which_proxy_is_meant_has_to_be_clear() {
    let (first, second) = (start(), start());
    // Two in one folder: the socket of the second under a name that is free.
    let other = first.socket().with_file_name("held-1.sock");
    std::os::unix::fs::symlink(second.socket(), &other).unwrap();
    let said = first.refused(&["release", "all"]);
    let pid = first.proxy.pid().to_string();
    assert!(
        said.contains("several proxies with rules run here")
            && said.contains(&format!("--pid {pid}")),
        "{said}"
    );
    assert_eq!(first.shown(&["--pid", &pid]), "no flow is held\n");
    let socket = second.socket().display().to_string();
    assert_eq!(
        first.shown(&["list", "--socket", &socket]),
        "no flow is held\n"
    );
    assert!(first.refused(&["--pid", "2"]).contains("as process 2"));
    // One that was killed leaves its socket; it is no proxy, and goes.
    let stale = first.socket().with_file_name("held-3.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    fs::remove_file(other).unwrap();
    assert_eq!(first.shown(&[]), "no flow is held\n");
    assert!(!stale.exists());
    let (code, error) = failure(&["held", "--socket", "/no/such/socket"]);
    assert!(
        code == 1 && error.contains("no proxy answers at /no/such/socket"),
        "{error}"
    );
    let (code, error) = failure(&["held", "--follow", "release", "all"]);
    assert!(
        code == 1 && error.contains("--follow is for listing"),
        "{error}"
    );
}

/// In a folder that others can write to, others could answer.
#[test]
fn nobody_else_answers_in_the_place_of_a_proxy() {
    let home = tempfile::tempdir().unwrap();
    let held = || {
        let mut command = tollgate(home.path());
        let output = command.arg("held").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    };
    let said = held();
    let (_, folder) = said.split_once("there is no socket in ").unwrap();
    let folder = Path::new(folder.trim_end().trim_end_matches(')'));
    fs::create_dir(folder).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    let socket = folder.join("held-1.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let said = held();
    assert!(
        said.contains("no folder that only this user can enter"),
        "{said}"
    );
    assert!(socket.exists());
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    assert!(held().contains("no proxy with rules runs here"));
    assert!(!socket.exists());
}

/// What answers may be anything, where somebody names a socket.
#[test]
fn what_a_proxy_says_does_not_steer_a_terminal() {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let answers = [
        r#"{"gone":"\u001b[2J\u202eid"}"#,
        r#"{"held":{"flow":"\u001b]0;x","on":"\u009b1m","method":"GET","url":"u\u202e","rule":"r","since":0,"until":0}}"#,
        r#"{"failed":"\u001b[31mno"}"#,
    ];
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).lines().next().unwrap().unwrap();
        std::io::Write::write_all(&mut stream, (answers.join("\n") + "\n").as_bytes()).unwrap();
    });
    let mut command = tollgate(home.path());
    let output = command
        .args(["held", "--follow", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    server.join().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("is held no longer") && said.contains("for 0 s") && said.contains("[31mno")
    );
    let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!said.contains(acts), "{said:?}");
}

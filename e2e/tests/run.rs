//! `tollgate run -- CMD` with the clients that people run: each is told nothing but what its environment says.
//!
//! The origin's authority is one that no client trusts, so a client that got through has gone through Tollgate; and the
//! flows that Tollgate shows name what it asked for.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "helpers of tests, which fail by panicking"
)]

use std::fs;
use std::path::Path;

use serde_json::Value;
use tollgate_e2e::{LIMIT, Origin, Process, command, programs, require, tollgate_run};

#[test]
fn curl() {
    require!("curl", "nginx", "openssl");
    let origin = Origin::start();
    let ran = tollgate_run(
        &origin.ca(),
        ["curl", "--disable", "-sS", &origin.https("/protocol")],
    );
    assert_eq!(ran.text(), "HTTP/2.0");
    assert_completed(&ran.flow("/protocol"), "HTTP/2.0");
}

#[test]
fn python_ssl_strict() {
    require!("python3", "nginx", "openssl");
    let origin = Origin::start();
    let script = r"
import ssl, sys, urllib.request
context = ssl.create_default_context()
context.verify_flags |= ssl.VERIFY_X509_STRICT
assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
with urllib.request.build_opener(
    urllib.request.ProxyHandler(), urllib.request.HTTPSHandler(context=context)
).open(sys.argv[1]) as answer:
    print(answer.read().decode())
";
    let ran = tollgate_run(
        &origin.ca(),
        ["python3", "-c", script, &origin.https("/protocol")],
    );
    assert_eq!(ran.text().trim(), "HTTP/1.1");
    assert_completed(&ran.flow("/protocol"), "HTTP/1.1");
}

#[test]
fn python_requests() {
    require!("python-venv", "nginx", "openssl");
    let origin = Origin::start();
    let script = r"
import requests, sys
with requests.Session() as session:
    for _ in range(2):
        answer = session.get(sys.argv[1], timeout=60)
        answer.raise_for_status()
    print(answer.text)
";
    let ran = tollgate_run(
        &origin.ca(),
        [&venv(), "-c", script, &origin.https("/protocol")],
    );
    assert_eq!(ran.text().trim(), "HTTP/1.1");
    assert_completed(&ran.flow("/protocol"), "HTTP/1.1");
}

#[test]
fn python_httpx_over_http1_and_http2() {
    require!("python-venv", "nginx", "openssl");
    let origin = Origin::start();
    let script = r"
import httpx, sys
for http2 in (False, True):
    with httpx.Client(http2=http2, timeout=60) as client:
        answer = client.get(f'{sys.argv[1]}?{http2}')
        answer.raise_for_status()
        print(answer.http_version, answer.text)
";
    let ran = tollgate_run(
        &origin.ca(),
        [&venv(), "-c", script, &origin.https("/protocol")],
    );
    assert_eq!(ran.text().trim(), "HTTP/1.1 HTTP/1.1\nHTTP/2 HTTP/2.0");
    assert_completed(&ran.flow("/protocol?False"), "HTTP/1.1");
    assert_completed(&ran.flow("/protocol?True"), "HTTP/2.0");
}

#[test]
fn python_httpx_with_many_requests_at_once_on_one_connection() {
    require!("python-venv", "nginx", "openssl");
    let origin = Origin::start();
    let script = r"
import asyncio, httpx, sys
async def main():
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(http2=True, timeout=60, limits=limits) as client:
        answers = await asyncio.gather(*(client.get(f'{sys.argv[1]}?{n}') for n in range(50)))
        print(sum(answer.status_code == 200 for answer in answers))
asyncio.run(main())
";
    let ran = tollgate_run(
        &origin.ca(),
        [&venv(), "-c", script, &origin.https("/protocol")],
    );
    assert_eq!(ran.text().trim(), "50");
    let connection = ran.flow("/protocol?0")["connection"].clone();
    for number in 0..50 {
        let flow = ran.flow(&format!("/protocol?{number}"));
        assert_completed(&flow, "HTTP/2.0");
        assert_eq!(flow["connection"], connection);
    }
}

#[test]
fn node_fetch() {
    require!("node", "nginx", "openssl");
    let origin = Origin::start();
    let script = format!(
        "fetch('{}').then(a => a.text()).then(t => console.log(t))",
        origin.https("/protocol")
    );
    let ran = tollgate_run(&origin.ca(), ["node", "-e", &script]);
    assert_eq!(ran.text().trim(), "HTTP/1.1");
    assert_completed(&ran.flow("/protocol"), "HTTP/1.1");
}

#[test]
fn node_https_get() {
    require!("node", "nginx", "openssl");
    let origin = Origin::start();
    let script = format!(
        "require('https').get('{}', a => a.pipe(process.stdout))",
        origin.https("/protocol")
    );
    let ran = tollgate_run(&origin.ca(), ["node", "-e", &script]);
    assert_eq!(ran.text(), "HTTP/1.1");
    assert_completed(&ran.flow("/protocol"), "HTTP/1.1");
}

#[test]
fn git_ls_remote_and_clone() {
    require!("git", "nginx", "openssl");
    let origin = Origin::start();
    let commit = repository(&origin);

    let url = origin.https("/project.git");
    let ran = tollgate_run(&origin.ca(), ["git", "ls-remote", &url, "refs/heads/trunk"]);
    assert_eq!(ran.text().trim(), format!("{commit}\trefs/heads/trunk"));
    ran.flow("/project.git/info/refs?service=git-upload-pack");

    let clone = origin.scratch().join("clone");
    let clone = clone.to_str().expect("a path in UTF-8");
    tollgate_run(&origin.ca(), ["git", "clone", "--quiet", &url, clone]);
    let content = fs::read_to_string(Path::new(clone).join("file")).unwrap();
    assert_eq!(content, "content\n");
}

#[test]
fn java_http_client() {
    require!("java", "nginx", "openssl");
    let origin = Origin::start();
    let source = origin.scratch().join("Fetch.java");
    fs::write(
        &source,
        r#"
import java.net.URI;
import java.net.http.*;

class Fetch {
    public static void main(String[] arguments) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(arguments[0])).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
    }
}
"#,
    )
    .unwrap();
    let source = source.to_str().expect("a path in UTF-8");
    let ran = tollgate_run(&origin.ca(), ["java", source, &origin.https("/protocol")]);
    assert_eq!(ran.text().trim(), "HTTP_2 200 HTTP/2.0");
    assert_completed(&ran.flow("/protocol"), "HTTP/2.0");
}

#[track_caller]
fn assert_completed(flow: &Value, version: &str) {
    assert_eq!(flow["outcome"], "completed", "{flow}");
    assert_eq!(flow["status"], 200, "{flow}");
    assert_eq!(flow["version"], version, "{flow}");
    assert_eq!(flow["tls"]["sni"], "localhost", "{flow}");
}

/// The path of the Python that has the packages.
fn venv() -> String {
    let python = programs::python_venv();
    python
        .into_os_string()
        .into_string()
        .expect("a path in UTF-8")
}

/// Makes a repository with one commit, which the origin serves as plain files; gives the commit.
fn repository(origin: &Origin) -> String {
    let work = origin.scratch().join("work");
    let bare = origin.root().join("project.git");
    let git = |folder: &Path, words: &[&str]| {
        let mut git = command("git");
        git.arg("-C").arg(folder).args(words);
        for role in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{role}_NAME"), "Test");
            git.env(format!("GIT_{role}_EMAIL"), "test@localhost");
        }
        Process::run(git, LIMIT).success().text()
    };
    let (work_name, bare_name) = (
        work.to_str().expect("a path in UTF-8"),
        bare.to_str().expect("a path in UTF-8"),
    );
    git(
        origin.scratch(),
        &["init", "--quiet", "--initial-branch=trunk", work_name],
    );
    fs::write(work.join("file"), "content\n").unwrap();
    git(&work, &["add", "file"]);
    git(&work, &["commit", "--quiet", "--message=First"]);
    git(&work, &["clone", "--quiet", "--bare", work_name, bare_name]);
    git(&bare, &["update-server-info"]);
    git(&work, &["rev-parse", "HEAD"]).trim().to_owned()
}

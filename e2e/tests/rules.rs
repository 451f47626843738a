//! Rules between real programs.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use tollgate_e2e::programs::python_venv;
use tollgate_e2e::{Pki, Process, Script, Tollgate, command, require};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn messages_of_a_real_websocket_are_changed_dropped_and_closed() {
    require!("python-venv", "openssl");
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::create(dir.path());
    let echo = Script::start("ws_echo.py", [pki.cert(), pki.key()]);
    let rules = dir.path().join("rules.toml");
    std::fs::write(
        &rules,
        r#"
        [[rule]]
        message = { from = "client", replace = 'secret-\d+', with = 'secret-0' }
        [[rule]]
        when = "~bq drop"
        message = { drop = true }
        [[rule]]
        message = { from = "origin", replace = '^echo me$', with = 'echoed' }
        [[rule]]
        when = '~bs "^over$"'
        message = { close = "it is over" }
        "#,
    )
    .unwrap();
    let proxy = Tollgate::trusting(&pki.ca(), &["--rules", &rules.to_string_lossy()]);
    let talk = |messages: &[&str]| {
        let mut client = command(&python_venv().to_string_lossy());
        client
            .arg(Script::path("ws_client.py"))
            .arg(format!("wss://{}/", echo.authority()))
            .arg(proxy.cert())
            .arg(proxy.url())
            .args(messages);
        Process::run(client, PATIENCE).success().text()
    };
    let long = format!("secret-77 {}", "x".repeat(100_000));
    let said = talk(&["echo me", "a secret-123", "drop this", &long]);
    let expected = format!(
        "got echoed\ngot a secret-0\ngot secret-0 {}\nclosed 1000 \n",
        "x".repeat(100_000)
    );
    assert_eq!(said, expected);
    assert_eq!(talk(&["over", "never"]), "closed 1008 it is over\n");
}

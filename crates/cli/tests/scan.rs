//! `tollgate scan`: exit codes, formats, errors, and one answer per line.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

fn tollgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.arg("scan");
    command
}

fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// Not written in one piece, so that no scanner of a code host trips over it.
fn token() -> String {
    format!("AKIA{}", "Y3T6DKCNFLR2QWZ4")
}

#[test]
fn the_exit_code_says_what_was_found() {
    assert_eq!(
        run(&mut tollgate(), "nothing here\n").status.code(),
        Some(0)
    );
    let found = run(&mut tollgate(), &format!("key {}\n", token()));
    assert_eq!(found.status.code(), Some(1));
    let line = String::from_utf8(found.stdout).unwrap();
    assert!(line.starts_with("-:4: high aws-access-key-id"), "{line}");
    assert!(!line.contains(&token()), "{line}");
    assert_eq!(
        run(tollgate().arg("/nowhere/at/all"), "").status.code(),
        Some(2)
    );
    assert_eq!(
        run(tollgate().args(["--known-secrets", "nonsense"]), "")
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn folders_are_walked_and_formats_are_json() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("below")).unwrap();
    std::fs::write(folder.path().join("below/a.txt"), token()).unwrap();
    std::fs::write(folder.path().join("b.txt"), "clean").unwrap();
    let json = run(tollgate().arg("--json").arg(folder.path()), "");
    assert_eq!(json.status.code(), Some(1));
    let finding: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(
        finding["file"].as_str().unwrap().ends_with("below/a.txt"),
        "{finding}"
    );
    assert_eq!(finding["rule"], "aws-access-key-id");
    let sarif = run(tollgate().arg("--sarif").arg(folder.path()), "");
    let document: serde_json::Value = serde_json::from_slice(&sarif.stdout).unwrap();
    assert_eq!(document["version"], "2.1.0");
    let result = &document["runs"][0]["results"][0];
    assert_eq!(result["ruleId"], "aws-access-key-id");
    let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(
        document["runs"][0]["tool"]["driver"]["rules"][index]["id"],
        "aws-access-key-id"
    );
}

#[test]
fn packs_known_secrets_and_allowed_rules_take_part() {
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("acme.toml");
    std::fs::write(&pack, "[[rules]]\nid='acme'\nregex='''acme-[0-9]{8}'''\n").unwrap();
    let found = run(tollgate().arg("--rules").arg(&pack), "acme-01234567\n");
    assert!(String::from_utf8(found.stdout).unwrap().contains(" acme "));
    let broken = folder.path().join("broken.toml");
    std::fs::write(&broken, "[[rules]]\nid='acme'\nregex='('\n").unwrap();
    let refused = run(tollgate().arg("--rules").arg(&broken), "");
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("rule `acme`")
    );

    let mut command = tollgate();
    command
        .args(["--known-secrets", "env:MY_PHRASE"])
        .env("MY_PHRASE", "correct horse battery");
    let found = run(&mut command, "say Y29ycmVjdCBob3JzZSBiYXR0ZXJ5 to me");
    assert!(
        String::from_utf8(found.stdout)
            .unwrap()
            .contains("known-secret")
    );

    let allowed = run(tollgate().args(["--allow", "aws-access-key-id"]), &token());
    assert_eq!(allowed.status.code(), Some(0));
}

#[test]
fn each_line_is_answered_before_the_next_is_sent() {
    let mut child = tollgate()
        .arg("--jsonl")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for (number, (text, found)) in [("hello", false), (&*token(), true), ("bye", false)]
        .into_iter()
        .enumerate()
    {
        writeln!(
            input,
            "{{\"id\":{number},\"kind\":\"outbound\",\"text\":\"{text}\"}}"
        )
        .unwrap();
        input.flush().unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["id"], number);
        assert_eq!(
            !answer["findings"].as_array().unwrap().is_empty(),
            found,
            "{line}"
        );
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

//! The official client libraries of model providers against answers that passed the gate.
#![cfg(unix)]

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use tollgate_e2e::programs::{example, node_folder, python_venv};
use tollgate_e2e::{Process, binary, command, require};

/// Some sixty conversations, each with a gate process of its own.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
fn official_sdks_take_gated_answers_for_answers() {
    require!("python-sdks", "example-gate");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = command(&python_venv().to_string_lossy());
    python
        .arg(tests.join("tests/sdk/gated_streams.py"))
        .arg(example("gate"))
        .arg(tests.join("../crates/screen/tests/streams"));
    let finished = Process::run(python, PATIENCE).success();
    let text = finished.text();
    assert!(text.contains("\n0 failed"), "{text}");
    assert!(text.matches("\nok ").count() > 50, "{text}");
}

#[test]
fn official_sdks_work_through_a_screening_proxy() {
    require!("python-sdks");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tollgate = OsString::from("tollgate=");
    tollgate.push(binary());
    let mut python = command(&python_venv().to_string_lossy());
    python
        .arg(tests.join("tests/sdk/gated_streams.py"))
        .arg(tollgate)
        .arg(tests.join("../crates/screen/tests/streams"));
    let finished = Process::run(python, PATIENCE).success();
    let text = finished.text();
    assert!(text.contains("\n0 failed"), "{text}");
    assert!(text.matches("\nok ").count() > 30, "{text}");
}

#[test]
fn official_sdks_raise_their_rate_limit_error_at_the_end_of_a_budget() {
    require!("python-sdks");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = command(&python_venv().to_string_lossy());
    python.arg(tests.join("tests/sdk/budgets.py")).arg(binary());
    let finished = Process::run(python, PATIENCE).success();
    let text = finished.text();
    assert!(text.contains("\n0 failed"), "{text}");
    assert_eq!(text.matches("ok ").count(), 8, "{text}");
}

#[test]
fn a_secret_in_the_text_of_an_answer_is_reported_while_the_text_arrives() {
    require!("python-sdks");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = command(&python_venv().to_string_lossy());
    python
        .arg(tests.join("tests/sdk/answer_text.py"))
        .arg(binary());
    let finished = Process::run(python, PATIENCE).success();
    let text = finished.text();
    assert_eq!(text.trim(), "ok", "{text}");
}

#[test]
fn official_node_sdks_take_gated_answers_for_answers() {
    require!("python3", "node", "node-sdks", "example-gate");
    assert_eq!(node_conversations(example("gate").into_os_string()), 54);
}

#[test]
fn official_node_sdks_work_through_a_screening_proxy() {
    require!("python3", "node", "node-sdks");
    let mut tollgate = OsString::from("tollgate=");
    tollgate.push(binary());
    assert_eq!(node_conversations(tollgate), 36);
}

/// How many conversations went as they should: libraries × streamed or not × calls allowed, one blocked, or both.
fn node_conversations(gate: OsString) -> usize {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut node = OsString::from("node=");
    node.push(node_folder());
    let mut python = command("python3");
    python
        .arg(tests.join("tests/sdk/gated_streams.py"))
        .arg(gate)
        .arg(tests.join("../crates/screen/tests/streams"))
        .arg(node);
    let finished = Process::run(python, PATIENCE).success();
    let text = finished.text();
    assert!(text.contains("\n0 failed"), "{text}");
    text.lines().filter(|line| line.starts_with("ok ")).count()
}

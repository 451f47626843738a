//! kill -9 under load.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{everything, fill, open, record};

const FOLDER: &str = "TOLLGATE_STORE_TEST_FOLDER";

/// The program that is killed: records without end, and says how many flows have surely been written.
#[test]
#[ignore = "the child of the tests below"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = open(&PathBuf::from(folder));
    let sink = store.sink();
    for n in store.flows().last_number().unwrap().. {
        // When it is dropped, the numbers would shift.
        while sink.record(record(n)).is_err() {
            store.flush();
        }
        if n % 97 == 0 {
            store.flush();
            println!("written {n}");
            std::io::stdout().flush().unwrap();
        }
    }
}

#[test]
fn a_kill_costs_at_most_what_was_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut written = 0;
        let mut reports = 0;
        for line in lines {
            let line = line.unwrap();
            if let Some(n) = line.strip_prefix("written ") {
                written = n.parse::<u64>().unwrap() + 1;
                reports += 1;
                if reports == 5 + round * 3 {
                    break;
                }
            }
        }
        // SIGKILL, between any two of its instructions.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(written > before, "round {round}");

        let store = open(folder.path());
        assert_eq!(store.stats().set_aside, Vec::<PathBuf>::new());
        let found = everything(&store);
        assert!(
            found.len() as u64 >= written,
            "{} of {written}",
            found.len()
        );
        for (n, found) in found.iter().enumerate() {
            assert_eq!(*found, record(n as u64), "flow {n}");
        }
        before = found.len() as u64;
        assert_eq!(store.flows().last_number().unwrap(), before);
    }
    // And it goes on.
    let store = open(folder.path());
    fill(&store, before..before + 10);
    assert_eq!(everything(&store).len() as u64, before + 10);
}

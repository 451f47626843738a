//! Bytes, age, and a disk that has no room.

use std::fs;
use std::path::Path;
use std::process::Command;

use tollgate_flow::record::{Body, Record, Timestamp};
use tollgate_store::{Dropped, Query, State, Store, StoreConfig};

use crate::support::{config, day, everything, fill, noise, open, record};

fn large(n: u64, bytes: usize) -> Record {
    let mut record = record(n);
    let message = &mut record.as_http_mut().unwrap().request.message;
    message.body = Body::whole(noise(n, bytes));
    record
}

fn bytes_of(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum()
}

#[test]
fn the_oldest_flows_go_when_there_is_no_more_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig {
        max_bytes: 2 << 20,
        ..config(folder.path())
    })
    .unwrap();
    for n in 0..200 {
        store.sink().record(large(n, 64 << 10)).unwrap();
        store.flush();
        store.tidy();
        let usage = store.flows().usage().unwrap();
        let total = usage.segment_bytes + usage.database_bytes;
        assert!(total <= 2 << 20, "{total} after {n}");
    }
    let usage = store.flows().usage().unwrap();
    assert!(usage.flows > 10, "{usage:?}");
    assert_eq!(usage.last, Some(200));
    assert_eq!(usage.first, Some(201 - usage.flows));
    let rest = (200 - usage.flows..200).map(|n| large(n, 64 << 10));
    assert_eq!(everything(&store), rest.collect::<Vec<_>>());
    drop(store);
    // The write-ahead log beside it.
    let bytes = bytes_of(folder.path());
    assert!(bytes < 8 << 20, "{bytes}");
}

#[test]
fn flows_that_are_too_old_go() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = Store::open(StoreConfig {
            max_age: None,
            ..config(folder.path())
        })
        .unwrap();
        for n in 0..10 {
            let mut old = record(n);
            let age = if n < 5 { 20.0 } else { 0.5 };
            old.created = Timestamp::new(old.created.seconds() - age * day().as_secs_f64());
            store.sink().record(old).unwrap();
            // Each in a block of its own: a block goes when its newest flow is too old.
            store.flush();
        }
        store.tidy();
        assert_eq!(store.flows().usage().unwrap().flows, 10);
    }
    let store = open(folder.path());
    store.tidy();
    let numbers: Vec<_> = store.flows().list(&Query::all()).unwrap();
    let numbers: Vec<_> = numbers.iter().map(|row| row.seq).collect();
    assert_eq!(numbers, [6, 7, 8, 9, 10]);
}

#[test]
fn what_comes_too_fast_is_dropped_counted_and_leaves_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig {
        queue_flows: 10,
        queue_bytes: 1 << 20,
        ..config(folder.path())
    })
    .unwrap();
    let sink = store.sink();
    let mut dropped = 0;
    for n in 0..5000 {
        match sink.record(record(n)) {
            Ok(()) => {}
            Err(Dropped::Behind) => dropped += 1,
            Err(other) => panic!("{other}"),
        }
    }
    store.flush();
    sink.record(record(5000)).unwrap();
    store.flush();
    assert!(dropped > 0);
    let stats = store.stats();
    assert_eq!(
        (stats.dropped_behind, stats.kept),
        (dropped, 5001 - dropped)
    );
    // Every one that was dropped has a number.
    assert_eq!(store.flows().last_number().unwrap(), 5001);
}

/// A file system of its own; `None` where that needs rights that we don't have.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            _ => None,
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_stops_recording_until_there_is_room() {
    let Some(small) = Small::mount() else {
        eprintln!("skipped: a small file system can't be mounted here");
        return;
    };
    let folder = small.0.path().join("flows");
    let store = open(&folder);
    let mut kept = 0;
    for n in 0..100 {
        if store.sink().record(large(n, 50_000)) == Err(Dropped::Stopped) {
            break;
        }
        store.flush();
        kept = store.stats().kept;
    }
    let stats = store.stats();
    assert_eq!(stats.state, State::Full);
    assert_eq!((stats.kept, stats.lost), (kept, 1));
    assert!(kept > 3, "{kept}");
    assert_eq!(store.sink().record(record(0)), Err(Dropped::Stopped));
    // What was kept is there and whole.
    let expected: Vec<_> = (0..kept).map(|n| large(n, 50_000)).collect();
    assert_eq!(everything(&store), expected);
    // Still no room: it stays as it is.
    store.tidy();
    assert_eq!(store.stats().state, State::Full);
    // Room: it goes on by itself.
    let remounted = Command::new("mount")
        .args(["-o", "remount,size=8m"])
        .arg(small.0.path())
        .status();
    assert!(remounted.unwrap().success());
    store.tidy();
    assert_eq!(store.stats().state, State::Recording);
    fill(&store, 200..210);
    assert_eq!(everything(&store).len() as u64, kept + 10);
    drop(store);
    assert_eq!(everything(&open(&folder)).len() as u64, kept + 10);
}

//! Databases and segments that are not what was written.

use std::fs;
use std::path::{Path, PathBuf};

use tollgate_flow::record::{Body, Record};
use tollgate_store::{Flows, Query, State, StoreError};

use crate::support::{everything, fill, open, readable, record};

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "tgs"))
        .collect();
    paths.sort();
    paths
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

fn recorded(flows: u64) -> (tempfile::TempDir, Vec<Record>) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    // In small batches, for many blocks.
    for n in 0..flows / 20 {
        fill(&store, n * 20..(n + 1) * 20);
    }
    let expected = everything(&store);
    drop(store);
    (folder, expected)
}

/// Whatever was done to it: it opens, nothing panics, what is read is what was recorded, and it records.
fn is_usable(folder: &Path, expected: &[Record], what: &str) -> Vec<Record> {
    let store = open(folder);
    let before = readable(&store);
    for found in &before {
        assert!(expected.contains(found), "{what}");
    }
    store.sink().record(record(9999)).unwrap();
    store.flush();
    assert_eq!(store.stats().state, State::Recording, "{what}");
    let after = readable(&store);
    assert_eq!(after.last(), Some(&record(9999)), "{what}");
    before
}

#[test]
fn a_database_that_is_none_is_set_aside_and_made_anew_from_the_segments() {
    let (folder, expected) = recorded(100);
    for content in [
        &b"this is no database, but is long enough to be taken for one"[..],
        b"",
    ] {
        let folder = copy(folder.path());
        fs::write(folder.path().join("flows.db"), content).unwrap();
        let store = open(folder.path());
        assert_eq!(everything(&store), expected);
        let aside = store.stats().set_aside;
        // An empty file is as good as none.
        assert_eq!(aside.len(), usize::from(!content.is_empty()));
        for path in aside {
            assert_eq!(fs::read(path).unwrap(), content);
        }
    }
}

#[test]
fn a_database_that_is_damaged_in_any_page_does_no_harm() {
    let (folder, expected) = recorded(200);
    let database = fs::read(folder.path().join("flows.db")).unwrap();
    assert_eq!(database.len() % 4096, 0);
    for page in 0..database.len() / 4096 {
        let at = page * 4096;
        for (what, damaged) in [
            ("flipped", {
                let mut bytes = database.clone();
                for byte in &mut bytes[at..at + 100] {
                    *byte ^= 0x55;
                }
                bytes
            }),
            ("cut", database[..at].to_vec()),
        ] {
            let folder = copy(folder.path());
            fs::write(folder.path().join("flows.db"), damaged).unwrap();
            // As after a crash, when the database is checked.
            is_usable(folder.path(), &expected, &format!("{what} at page {page}"));
        }
    }
}

#[test]
fn a_segment_that_is_damaged_anywhere_costs_its_blocks_only() {
    let (folder, expected) = recorded(200);
    let path = &segments(folder.path())[0];
    let segment = fs::read(path).unwrap();
    for at in (0..segment.len()).step_by(701) {
        for cut in [false, true] {
            let folder = copy(folder.path());
            let mut bytes = segment.clone();
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 0x10;
            }
            fs::write(folder.path().join(path.file_name().unwrap()), bytes).unwrap();
            let what = format!("byte {at}, cut: {cut}");
            let found = is_usable(folder.path(), &expected, &what);
            if !cut && at > 8 {
                assert!(
                    found.len() >= expected.len() - 20,
                    "{what}: {}",
                    found.len()
                );
            }
        }
    }
}

#[test]
fn segments_without_a_database_are_enough_and_are_cut_at_damage() {
    let (folder, expected) = recorded(200);
    fs::remove_file(folder.path().join("flows.db")).unwrap();
    let path = &segments(folder.path())[0];
    let segment = fs::read(path).unwrap();
    for at in (0..segment.len()).step_by(977) {
        let folder = copy(folder.path());
        let path = folder.path().join(path.file_name().unwrap());
        fs::write(&path, &segment[..at]).unwrap();
        let found = is_usable(folder.path(), &expected, &format!("cut at {at}"));
        assert_eq!(found, expected[..found.len()], "cut at {at}");
    }
    // A segment that was lost is no reason not to open.
    let folder = copy(folder.path());
    fs::remove_file(folder.path().join(path.file_name().unwrap())).unwrap();
    assert_eq!(is_usable(folder.path(), &expected, "lost"), []);
}

#[test]
fn damage_in_the_middle_of_a_segment_costs_no_flow_behind_it() {
    let (folder, expected) = recorded(200);
    fs::remove_file(folder.path().join("flows.db")).unwrap();
    let path = &segments(folder.path())[0];
    let segment = fs::read(path).unwrap();
    for at in (8..segment.len()).step_by(1301) {
        let folder = copy(folder.path());
        let path = folder.path().join(path.file_name().unwrap());
        let mut damaged = segment.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        let found = is_usable(folder.path(), &expected, &format!("damaged at {at}"));
        // A block holds twenty.
        assert!(
            found.len() + 20 >= expected.len(),
            "{} at {at}",
            found.len()
        );
    }
}

/// A body may hold what a segment holds, a download of it say. Where the block around it is damaged, and frames are
/// looked for, what stands in the body is none.
#[test]
fn a_recorded_body_is_never_taken_for_blocks() {
    let (folder, expected) = recorded(40);
    let path = segments(folder.path()).remove(0);
    let segment = fs::read(&path).unwrap();
    let deleted = {
        // The header of a deleted block, which would have everything behind it passed over.
        let mut bytes = segment[8..40].to_vec();
        bytes[..4].copy_from_slice(b"TGX2");
        bytes[4..8].copy_from_slice(&4000_u32.to_le_bytes());
        bytes
    };
    // zstd leaves as it is what it can't make smaller.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        std::iter::repeat_with(next).take(length).collect()
    };
    let number = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap()) as usize;
    let frame = 32 + number(12) + number(20);
    let first = &segment[8..8 + frame];
    let body = [
        &noise(90_000)[..],
        first,
        &noise(30_000),
        &deleted,
        &noise(120_000),
        &deleted,
        &noise(500),
    ]
    .concat();
    let mut copied = record(5000);
    copied.as_http_mut().unwrap().request.message.body = Body::whole(body);
    let begin = segment.len();
    {
        let store = open(folder.path());
        store.sink().record(copied.clone()).unwrap();
        store.flush();
        fill(&store, 40..80);
    }
    let whole = fs::read(&path).unwrap();
    let found = |needle: &[u8]| whole.windows(needle.len()).filter(|w| *w == needle).count();
    // The test would show nothing if the body were compressed.
    assert!(found(first) >= 2, "a frame stands in the body");
    assert!(found(&deleted) >= 2, "and what looks like deleted ones");
    fs::remove_file(folder.path().join("flows.db")).unwrap();
    let mut all = expected;
    all.extend((40..80).map(record));
    for at in [begin, begin + 5, begin + 30, begin + 4000, begin + 200_000] {
        let folder = copy(folder.path());
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        let path = folder.path().join(path.file_name().unwrap());
        fs::write(&path, damaged).unwrap();
        let store = open(folder.path());
        assert_eq!(everything(&store), all, "damaged at {at}");
        let rows = store.flows().list(&Query::all()).unwrap();
        let mut ids: Vec<_> = everything(&store).into_iter().map(|flow| flow.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), rows.len(), "each flow is there once");
    }
    // Undamaged, it is there as it was.
    let store = open(folder.path());
    all.insert(40, copied);
    assert_eq!(everything(&store), all);
}

/// Segments without seals go on.
#[test]
fn a_segment_without_seals_is_read_and_written_to() {
    let (folder, expected) = recorded(40);
    let path = segments(folder.path()).remove(0);
    let mut segment = fs::read(&path).unwrap();
    let mut at = 8;
    while at < segment.len() {
        let number =
            |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap()) as usize;
        let length = number(at + 4) + number(at + 12);
        segment[at + 28..at + 32].fill(0);
        at += 32 + length;
    }
    assert_eq!(at, segment.len());
    segment[..8].copy_from_slice(b"TGSEG\0\0\x02");
    fs::write(&path, segment).unwrap();
    for _ in 0..2 {
        fs::remove_file(folder.path().join("flows.db")).unwrap();
        let store = open(folder.path());
        assert_eq!(everything(&store)[..40], expected);
        store.sink().record(record(9999)).unwrap();
    }
    let store = open(folder.path());
    assert_eq!(everything(&store).len(), 42);
}

#[test]
fn a_database_that_breaks_while_it_is_used_is_set_aside_then() {
    let (folder, _) = recorded(100);
    let store = open(folder.path());
    fill(&store, 100..120);
    // Bytes that are overwritten may hide behind a cache for long; a table that is gone does not.
    let other = rusqlite::Connection::open(folder.path().join("flows.db")).unwrap();
    other.execute_batch("DROP TABLE blocks").unwrap();
    drop(other);
    fill(&store, 120..150);
    assert_eq!(store.stats().set_aside.len(), 1);
    assert_eq!(store.stats().lost, 0);
    let found = everything(&store);
    assert_eq!(found, (0..150).map(record).collect::<Vec<_>>());
}

#[test]
fn a_database_that_another_program_keeps_locked_is_set_aside() {
    let (folder, expected) = recorded(40);
    let other = rusqlite::Connection::open(folder.path().join("flows.db")).unwrap();
    other
        .execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE x(y)")
        .unwrap();
    let store = open(folder.path());
    assert_eq!(store.stats().set_aside.len(), 1);
    assert_eq!(everything(&store), expected);
    fill(&store, 40..50);
    assert_eq!(store.flows().list(&Query::all()).unwrap().len(), 50);
}

#[test]
fn a_folder_in_a_form_that_is_no_longer_read_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(folder.path().join("flows.db")).unwrap();
    old.execute_batch("CREATE TABLE flows(seq); PRAGMA user_version=1")
        .unwrap();
    drop(old);
    let segment = folder.path().join("segment-00000001.tgs");
    fs::write(&segment, b"TGSEG\0\0\x01and what was recorded").unwrap();
    let reader = Flows::open(folder.path());
    assert!(matches!(reader, Err(StoreError::TooOld)), "{reader:?}");

    let store = open(folder.path());
    let aside = folder.path().join("form-1");
    assert_eq!(store.stats().set_aside, std::slice::from_ref(&aside));
    let kept = fs::read(aside.join("segment-00000001.tgs")).unwrap();
    assert!(kept.ends_with(b"and what was recorded"));
    assert!(aside.join("flows.db").exists());
    fill(&store, 0..10);
    assert_eq!(everything(&store).len(), 10);
    drop(store);
    // Once.
    let store = open(folder.path());
    assert_eq!(store.stats().set_aside, Vec::<PathBuf>::new());
    assert_eq!(everything(&store).len(), 10);
}

#[test]
fn everything_can_be_deleted_also_what_cannot_be_read() {
    let (folder, expected) = recorded(100);
    let path = &segments(folder.path())[0];
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(path, bytes).unwrap();
    let store = open(folder.path());
    assert!(readable(&store).len() < expected.len());
    assert_eq!(store.flows().usage().unwrap().flows, 100);
    assert_eq!(store.flows().delete(&Query::all()).unwrap(), 100);
    store.tidy();
    assert_eq!(store.flows().usage().unwrap().flows, 0);
}

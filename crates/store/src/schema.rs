//! The database: its schema, how it is opened, and what becomes of one that can't be used.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OpenFlags};

use crate::error::StoreError;
use crate::segment::{is_old_segment, private};

/// The steps from an empty database to today's schema. A released one never changes: a new one is added.
const MIGRATIONS: &[&str] = &[
    // 1. What was before the first release, with a row for each flow. A folder of that time is set aside.
    "",
    // 2. A row for each block; what a list shows of a flow stands in its block. `blocks.live` counts the flows that are
    // still wanted; a block without any is overwritten and forgotten. `deleted` has the others of blocks that are still to
    // be written anew. The index of words has one row for each block, with the block's number.
    "CREATE TABLE state(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
     CREATE TABLE segments(id INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);
     CREATE TABLE blocks(
       id INTEGER PRIMARY KEY,
       segment INTEGER NOT NULL, offset INTEGER NOT NULL, heads INTEGER NOT NULL, length INTEGER NOT NULL,
       first INTEGER NOT NULL, last INTEGER NOT NULL, oldest INTEGER NOT NULL, newest INTEGER NOT NULL,
       least_id TEXT NOT NULL, greatest_id TEXT NOT NULL,
       flows INTEGER NOT NULL, live INTEGER NOT NULL);
     CREATE INDEX blocks_by_segment ON blocks(segment);
     CREATE INDEX blocks_by_last ON blocks(last);
     CREATE INDEX blocks_by_newest ON blocks(newest);
     CREATE INDEX blocks_to_tidy ON blocks(id) WHERE live < flows;
     CREATE TABLE deleted(seq INTEGER PRIMARY KEY);
     CREATE VIRTUAL TABLE words USING fts5(
       text, content='', contentless_delete=1, detail=none, tokenize='ascii');",
    // 3. A filter of words for each block in place of the index, which cost more than all the rest. A block without one
    // is read when words are looked for.
    "DROP TABLE words;
     CREATE TABLE word_filters(block INTEGER PRIMARY KEY, bits BLOB NOT NULL);",
];

/// The version of the schema that this code knows.
pub(crate) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// How long another program may have the database locked before that counts as trouble.
const BUSY: Duration = Duration::from_secs(2);

/// Databases that were set aside and are still kept.
const KEPT_ASIDE: usize = 2;

/// The database of a folder.
pub(crate) fn database_path(folder: &Path) -> PathBuf {
    folder.join("flows.db")
}

/// What tells a folder's database from one that stood in its place before.
pub(crate) fn identity(folder: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let file = fs::metadata(database_path(folder)).ok()?;
        Some((file.dev(), file.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Opens the database of a folder to write, makes it if it isn't there, and brings its schema up to date.
pub(crate) fn open(folder: &Path) -> Result<Connection, StoreError> {
    let path = database_path(folder);
    // SQLite gives its other files the mode of this one.
    private(OpenOptions::new().write(true).create(true))
        .open(&path)
        .map_err(|source| StoreError::Folder {
            path: path.clone(),
            source,
        })?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        // A file system without shared memory: slower, and as good.
        connection.execute_batch("PRAGMA journal_mode=TRUNCATE")?;
    }
    // In WAL mode NORMAL never waits for the disk at a commit; what the machine's end may cost is the last commits.
    connection.execute_batch("PRAGMA synchronous=NORMAL; PRAGMA journal_size_limit=16777216;")?;
    settle(&mut connection)?;
    Ok(connection)
}

/// A database in memory.
pub(crate) fn open_in_memory() -> Result<Connection, StoreError> {
    let mut connection = Connection::open_in_memory()?;
    settle(&mut connection)?;
    Ok(connection)
}

/// Opens the database of a folder for a reader, who may also delete.
pub(crate) fn open_for_reading(folder: &Path) -> Result<Connection, StoreError> {
    let path = database_path(folder);
    match path.try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(StoreError::Missing(folder.to_owned())),
        // It may be there: its folder can't be looked into.
        Err(error) => return Err(StoreError::Segment(error)),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    common(&connection)?;
    let found = version(&connection)?;
    if found != SCHEMA_VERSION {
        return Err(match found {
            0 => StoreError::Missing(folder.to_owned()),
            ..SCHEMA_VERSION => StoreError::TooOld,
            _ => StoreError::TooNew {
                found,
                known: SCHEMA_VERSION,
            },
        });
    }
    Ok(connection)
}

/// Whether SQLite finds nothing wrong with a database. It reads all of it.
pub(crate) fn is_sound(connection: &Connection) -> Result<bool, StoreError> {
    let answer: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    Ok(answer == "ok")
}

/// Moves what is in a form that is no longer read into a folder beside it. Answers that folder, if there was any.
pub(crate) fn set_aside_old(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut names = Vec::new();
    let mut is_old = false;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("segment-") && name.ends_with(".tgs") {
            is_old |= is_old_segment(&entry.path())?;
            names.push(name);
        } else if ["flows.db", "flows.db-wal", "flows.db-shm"].contains(&name.as_str()) {
            names.push(name);
        }
    }
    if !is_old {
        return Ok(None);
    }
    let aside = folder.join("form-1");
    fs::create_dir_all(&aside)?;
    for name in names {
        fs::rename(folder.join(&name), aside.join(&name))?;
    }
    Ok(Some(aside))
}

/// Renames a database that can't be used. Answers its new name.
pub(crate) fn set_aside(folder: &Path) -> io::Result<PathBuf> {
    let path = database_path(folder);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let aside = folder.join(format!("flows.db.damaged-{:013}", now.as_millis()));
    for suffix in ["-wal", "-shm", ""] {
        let with = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        match fs::rename(with(&path), with(&aside)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    forget_older(folder)?;
    Ok(aside)
}

/// Removes all but the newest databases that were set aside: they may be large, and nothing bounds them otherwise.
fn forget_older(folder: &Path) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("flows.db.damaged-") {
            names.push(name);
        }
    }
    let stem = |name: &str| {
        name.trim_end_matches("-wal")
            .trim_end_matches("-shm")
            .to_owned()
    };
    let mut stems: Vec<String> = names.iter().map(|name| stem(name)).collect();
    stems.sort_unstable();
    stems.dedup();
    let old = stems.len().saturating_sub(KEPT_ASIDE);
    for name in names {
        if stems.iter().take(old).any(|old| *old == stem(&name)) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

fn common(connection: &Connection) -> Result<(), StoreError> {
    // 4 MiB of pages; sorting in memory; what was deleted is overwritten where
    // that costs no reading or writing.
    connection.execute_batch(
        "PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY; PRAGMA secure_delete=FAST;",
    )?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn settle(connection: &mut Connection) -> Result<(), StoreError> {
    common(connection)?;
    migrate(connection, MIGRATIONS)
}

fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Takes the steps that a database lacks, each in a transaction of its own.
fn migrate(connection: &mut Connection, steps: &[&str]) -> Result<(), StoreError> {
    let found = version(connection)?;
    let known = steps.len() as i64;
    if found > known || found < 0 {
        return Err(StoreError::TooNew { found, known });
    }
    for (step, next) in steps.iter().zip(1..).skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", next)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_once_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.db");
        let steps = [
            "CREATE TABLE a(x); INSERT INTO a VALUES(1)",
            "ALTER TABLE a ADD COLUMN y DEFAULT 7",
        ];
        migrate(&mut Connection::open(&path).unwrap(), &steps[..1]).unwrap();
        for _ in 0..2 {
            let mut connection = Connection::open(&path).unwrap();
            migrate(&mut connection, &steps).unwrap();
            let rows: (i64, i64) = connection
                .query_row("SELECT x, y FROM a", [], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .unwrap();
            assert_eq!(rows, (1, 7));
        }
        let error = migrate(&mut Connection::open(&path).unwrap(), &steps[..1]).unwrap_err();
        assert!(matches!(error, StoreError::TooNew { found: 2, known: 1 }));
    }

    #[test]
    fn a_step_that_fails_leaves_the_database_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        let steps = ["CREATE TABLE a(x)", "CREATE TABLE b(x); nonsense"];
        migrate(&mut connection, &steps).unwrap_err();
        assert_eq!(version(&connection).unwrap(), 1);
        let tables: i64 = connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .unwrap();
        assert_eq!(tables, 1);
    }

    #[test]
    fn few_databases_stay_aside() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..4 {
            fs::write(database_path(folder.path()), "x").unwrap();
            set_aside(folder.path()).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), KEPT_ASIDE);
    }
}

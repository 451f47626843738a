//! A store that records: its files, its thread, and its state.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::config::{Place, StoreConfig};
use crate::error::StoreError;
use crate::flows::Flows;
use crate::schema;
use crate::segment::{SegmentDir, lock, private};
use crate::sink::{FlowSink, Queue};
use crate::writer::{News, Shared, State, Writer, database_bytes};

/// A database up to this size is checked whenever it is opened.
const CHECKED_BYTES: u64 = 32 << 20;

/// A store that records flows. One process records into a folder; others can read it with [`Flows::open`].
///
/// Dropping it writes what waits, and closes the files.
///
/// ```
/// use tollgate_flow::record::{HttpExchange, HttpRequest, Record};
/// use tollgate_store::{Place, Query, Store, StoreConfig};
///
/// let store = Store::open(StoreConfig::new(Place::Memory))?;
/// let request = HttpRequest::new("GET", "https", "example.com", 443, "/");
/// store.sink().record(Record::http("id", HttpExchange::new(request)))?;
///
/// store.flush();
/// let newest = store.flows().list(&Query::newest(50))?;
/// assert_eq!(newest[0].url.as_deref(), Some("https://example.com/"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Store {
    shared: Arc<Shared>,
    flows: Flows,
    thread: Option<JoinHandle<()>>,
    /// Held as long as the store is open.
    _lock: Option<File>,
}

/// What a store has done since it was opened, and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// Whether it records.
    pub state: State,
    /// Flows that were written.
    pub kept: u64,
    /// Flows that were dropped because more waited than the limits allow.
    pub dropped_behind: u64,
    /// Flows that were dropped while the store could not write.
    pub dropped_stopped: u64,
    /// Flows that were taken and could not be written.
    pub lost: u64,
    /// Flows that wait to be written.
    pub waiting: usize,
    /// What had to be set aside, databases mostly, by their new names.
    pub set_aside: Vec<PathBuf>,
}

impl Store {
    /// Opens a store, and makes it if it isn't there.
    ///
    /// What a crash left is put right: segments are cut behind their last whole block, and the database learns of
    /// blocks that only the segments have. A database that is damaged, or that another program keeps locked, is renamed
    /// to
    /// `flows.db.damaged-…` (the newest two of them stay), and a new one is made from the segments.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process records into the folder, [`StoreError::TooNew`], and what the system
    /// says.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        let mut old = None;
        let (lock, dir) = match &config.place {
            Place::Memory => (None, SegmentDir::Memory(Arc::default())),
            Place::Disk(folder) => {
                make_folder(folder)?;
                let lock = lock_folder(folder)?;
                old = schema::set_aside_old(folder)?;
                (Some(lock), SegmentDir::Disk(folder.clone()))
            }
        };
        if let Some(aside) = &old {
            tracing::warn!(
                "flows that an earlier Tollgate recorded are in a form that is no longer read; they are now in {}",
                aside.display()
            );
        }
        let shared = Arc::new(Shared {
            queue: Arc::new(Queue::new(config.queue_flows, config.queue_bytes)),
            news: Arc::new(News::default()),
            state: Mutex::new(State::Recording),
            set_aside: Mutex::new(old.into_iter().collect()),
            dir,
            config,
        });
        let (writer, connection) = open_writer(&shared)?;
        let flows = match &shared.config.place {
            Place::Memory => Flows::new(
                None,
                shared.dir.clone(),
                connection,
                Some(Arc::clone(&shared.news)),
            ),
            Place::Disk(folder) => Flows::new(
                Some(folder.clone()),
                shared.dir.clone(),
                Arc::new(Mutex::new(schema::open_for_reading(folder)?)),
                Some(Arc::clone(&shared.news)),
            ),
        };
        let thread = std::thread::Builder::new()
            .name("tollgate-store".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            shared,
            flows,
            thread: Some(thread),
            _lock: lock,
        })
    }

    /// The way in.
    pub fn sink(&self) -> FlowSink {
        FlowSink {
            queue: Arc::clone(&self.shared.queue),
        }
    }

    /// What is there.
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Waits until what was recorded before is written, or lost.
    pub fn flush(&self) {
        self.shared.queue.flush();
    }

    /// Keeps the bounds, overwrites what was deleted, and tries to go on if the store has stopped: now, instead of
    /// within the next second. Waits until that is done.
    pub fn tidy(&self) {
        self.shared.queue.tidy();
    }

    /// What the store has done, and how it is.
    pub fn stats(&self) -> StoreStats {
        let counters = &self.shared.queue.counters;
        StoreStats {
            state: lock(&self.shared.state).clone(),
            kept: counters.kept.load(Ordering::Relaxed),
            dropped_behind: counters.behind.load(Ordering::Relaxed),
            dropped_stopped: counters.stopped.load(Ordering::Relaxed),
            lost: counters.lost.load(Ordering::Relaxed),
            waiting: self.shared.queue.waiting(),
            set_aside: lock(&self.shared.set_aside).clone(),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic of the writer was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("place", &self.shared.config.place)
            .finish_non_exhaustive()
    }
}

fn open_writer(shared: &Arc<Shared>) -> Result<(Writer, Arc<Mutex<Connection>>), StoreError> {
    let first = open_connection(shared, true).and_then(|connection| {
        let connection = Arc::new(Mutex::new(connection));
        Ok((
            Writer::new(Arc::clone(shared), Arc::clone(&connection))?,
            connection,
        ))
    });
    let error = match (first, &shared.config.place) {
        (Err(error), Place::Disk(_)) if error.is_database_unusable() => error,
        (result, _) => return result,
    };
    if let Place::Disk(folder) = &shared.config.place {
        let aside = schema::set_aside(folder)?;
        tracing::warn!(
            "the database of flows can't be used ({error}); it is now {}, and a new one was begun",
            aside.display()
        );
        lock(&shared.set_aside).push(aside);
    }
    let connection = Arc::new(Mutex::new(open_connection(shared, false)?));
    let writer = Writer::new(Arc::clone(shared), Arc::clone(&connection))?;
    Ok((writer, connection))
}

fn open_connection(shared: &Shared, check: bool) -> Result<Connection, StoreError> {
    let Place::Disk(folder) = &shared.config.place else {
        return schema::open_in_memory();
    };
    let connection = schema::open(folder)?;
    if check {
        let clean: Option<i64> = connection.query_row(
            "SELECT max(value) FROM state WHERE key = 'clean'",
            [],
            |row| row.get(0),
        )?;
        // Checking reads all of it: after a proper end a large database is taken at its word.
        let in_doubt = clean == Some(0) || database_bytes(&connection)? <= CHECKED_BYTES;
        if in_doubt && !schema::is_sound(&connection)? {
            return Err(StoreError::Database(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                None,
            )));
        }
    }
    Ok(connection)
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|source| StoreError::Folder {
        path: folder.to_owned(),
        source,
    })
}

fn lock_folder(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let failed = |source: io::Error| StoreError::Folder {
        path: path.clone(),
        source,
    };
    let file = private(OpenOptions::new().write(true).create(true))
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::InUse(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

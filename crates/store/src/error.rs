//! What can go wrong with a store.

use std::io;
use std::path::PathBuf;

/// Why a store could not be opened, read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder, or a file in it, can't be made or opened.
    #[error("{}: {source}", path.display())]
    Folder {
        /// What was to be opened.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process records into the folder.
    #[error("{}: another tollgate records here", .0.display())]
    InUse(PathBuf),
    /// There is no store in the folder.
    #[error("{}: no flows have been recorded here", .0.display())]
    Missing(PathBuf),
    /// A newer Tollgate made the database.
    #[error("the database has schema version {found}; this Tollgate knows {known}")]
    TooNew {
        /// The version of its schema.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// A Tollgate from before the first release made the store. Whoever records into the folder sets it aside.
    #[error("the flows here are in a form that is no longer read; recording sets them aside")]
    TooOld,
    /// The database can't be read or written.
    #[error("database: {0}")]
    Database(#[from] rusqlite::Error),
    /// A segment can't be read or written.
    #[error("segment: {0}")]
    Segment(#[from] io::Error),
    /// A block is not what was written.
    #[error("block {block}: {problem}")]
    Damaged {
        /// The block.
        block: u64,
        /// What is wrong with it.
        problem: String,
    },
}

impl StoreError {
    /// Whether the disk has no room, or the user's share of it is used up.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Segment(error) | Self::Folder { source: error, .. } => matches!(
                error.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            ),
            Self::Database(error) => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }

    /// Whether the database is no database, or damaged, or in the grip of another program: to be set aside.
    pub(crate) fn is_database_unusable(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        let Self::Database(error) = self else {
            return false;
        };
        match error.sqlite_error_code() {
            Some(
                Code::DatabaseCorrupt
                | Code::NotADatabase
                | Code::DatabaseBusy
                | Code::DatabaseLocked,
            ) => true,
            // What SQLite says of a schema that lacks what ours has ("no such table").
            Some(Code::Unknown) => true,
            // A value of another type than was written.
            None => matches!(
                error,
                rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
            ),
            Some(_) => false,
        }
    }
}

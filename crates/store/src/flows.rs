//! What is in a store: lists, searches, single flows, deletion.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, params};
use tollgate_flow::filter::Filter;
use tollgate_flow::record::Record;

use crate::block::Block;
use crate::error::StoreError;
use crate::follow::Follow;
use crate::schema;
use crate::segment::{SegmentDir, lock};
use crate::summary::{COLUMNS, Summary, saturating};
use crate::words::Words;
use crate::writer::{BlockRow, News, database_bytes};

/// Rows that are read at once: the database is free for others in between.
const PAGE: usize = 512;

/// The flows in a store, to read and to delete.
///
/// Made by [`Store::flows`](crate::Store::flows), or by [`Flows::open`] in a process that doesn't record. A reader
/// never keeps the writer waiting for longer than a page of rows takes.
#[derive(Debug)]
pub struct Flows {
    folder: Option<PathBuf>,
    dir: SegmentDir,
    connection: Arc<Mutex<Connection>>,
    /// Which file the connection is to, where there is one and the platform tells.
    file: Mutex<Option<(u64, u64)>>,
    news: Option<Arc<News>>,
    /// The block that was read last: flows are mostly read one after the other.
    last: Mutex<Option<Arc<Block>>>,
}

/// Which flows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Query {
    /// Only those that the filter means.
    pub filter: Option<Filter>,
    /// Only those that have the words.
    pub words: Option<Words>,
    /// Only those with a larger number.
    pub after: Option<u64>,
    /// Only those with a smaller number.
    pub before: Option<u64>,
    /// Only those that were made at this time or later.
    pub since: Option<SystemTime>,
    /// Only those that were made before this time.
    pub until: Option<SystemTime>,
    /// At most so many; `None` for all.
    pub limit: Option<usize>,
    /// From the oldest to the newest, instead of from the newest to the oldest.
    pub oldest_first: bool,
}

impl Query {
    /// The newest flows, the newest of them first.
    pub fn newest(limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    /// Every flow, from the oldest to the newest.
    pub fn all() -> Self {
        Self {
            oldest_first: true,
            ..Self::default()
        }
    }
}

/// How much is in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Flows.
    pub flows: u64,
    /// The number of the oldest flow.
    pub first: Option<u64>,
    /// The number of the newest flow.
    pub last: Option<u64>,
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// The bytes of the database that are in use.
    pub database_bytes: u64,
}

impl Flows {
    /// Opens the flows of a folder, in which another process may be recording.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there are none, [`StoreError::TooNew`], [`StoreError::Database`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self::new(
            Some(folder.to_owned()),
            SegmentDir::Disk(folder.to_owned()),
            Arc::new(Mutex::new(schema::open_for_reading(folder)?)),
            None,
        ))
    }

    pub(crate) fn new(
        folder: Option<PathBuf>,
        dir: SegmentDir,
        connection: Arc<Mutex<Connection>>,
        news: Option<Arc<News>>,
    ) -> Self {
        Self {
            file: Mutex::new(folder.as_deref().and_then(schema::identity)),
            folder,
            dir,
            connection,
            news,
            last: Mutex::new(None),
        }
    }

    /// The rows of the flows that a query means.
    ///
    /// Rows are looked at from the end that the query names until there are enough. A filter is asked about rows; flows
    /// are read only where it wants more than a row has. Words are looked up in the index.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Segment`]. A flow whose block is damaged doesn't match what only the
    /// flow could tell.
    pub fn list(&self, query: &Query) -> Result<Vec<Summary>, StoreError> {
        let mut found = Vec::new();
        self.each::<StoreError>(query, &mut |row| {
            found.push(row);
            Ok(())
        })?;
        Ok(found)
    }

    /// Hands the rows of the flows that a query means to a function, one page in memory at a time.
    ///
    /// # Errors
    /// As for [`list`](Self::list), and what the function says.
    pub fn each<E: From<StoreError>>(
        &self,
        query: &Query,
        found: &mut dyn FnMut(Summary) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = query.limit.unwrap_or(usize::MAX);
        let mut pages = Pages::new(self, query);
        while left > 0 {
            let Some(page) = pages.next()? else { break };
            for row in page.rows {
                if left == 0 {
                    break;
                }
                if self.matches(query, &row, page.words_hold)? {
                    left -= 1;
                    found(row)?;
                }
            }
        }
        Ok(())
    }

    fn matches(&self, query: &Query, row: &Summary, words_hold: bool) -> Result<bool, StoreError> {
        let words = query.words.as_ref().filter(|_| !words_hold);
        let verdict = match &query.filter {
            Some(filter) => row.matches(filter),
            None => Some(true),
        };
        match (verdict, words) {
            (Some(false), _) => Ok(false),
            (Some(true), None) => Ok(true),
            _ => {
                let record = match self.read(row) {
                    Ok(Some(record)) => record,
                    // Deleted meanwhile, or damaged.
                    Ok(None) | Err(StoreError::Damaged { .. } | StoreError::Segment(_)) => {
                        return Ok(false);
                    }
                    Err(error) => return Err(error),
                };
                let filter = query.filter.as_ref().filter(|_| verdict.is_none());
                Ok(filter.is_none_or(|filter| filter.matches(&record))
                    && words.is_none_or(|words| words.matches(&record)))
            }
        }
    }

    /// The whole flow of a row. `None` when it is gone meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its block is not what was written.
    pub fn read(&self, row: &Summary) -> Result<Option<Record>, StoreError> {
        if let Some(block) = &*lock(&self.last)
            && block.number() == row.block
            && let Some(record) = block.record(row.seq)?
        {
            return Ok(Some(record));
        }
        // It may have moved since the row was read, and may move now.
        let mut tries = 0;
        loop {
            tries += 1;
            match self.read_once(row) {
                Err(StoreError::Segment(_) | StoreError::Damaged { .. }) if tries < 3 => {}
                result => return result,
            }
        }
    }

    fn read_once(&self, row: &Summary) -> Result<Option<Record>, StoreError> {
        let place = self.with(|connection| {
            let rows = BlockRow::select(
                connection,
                "WHERE id = (SELECT block FROM flows WHERE seq = ?)",
                [saturating(row.seq)],
            )?;
            Ok(rows.into_iter().next())
        })?;
        let Some(place) = place else { return Ok(None) };
        let frame = self
            .dir
            .open(place.segment, false)?
            .read_at(place.offset, place.length)?;
        let block = Arc::new(Block::parse(&frame)?);
        if block.number() != place.id {
            return Err(StoreError::Damaged {
                block: place.id,
                problem: format!("block {} is in its place", block.number()),
            });
        }
        let record = block.record(row.seq)?;
        *lock(&self.last) = Some(block);
        Ok(record)
    }

    /// The row of a number.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn by_number(&self, seq: u64) -> Result<Option<Summary>, StoreError> {
        self.one("WHERE seq = ?", &saturating(seq))
    }

    /// The row of an id, or of the beginning of one. The newest, if there are several.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn by_id(&self, id: &str) -> Result<Option<Summary>, StoreError> {
        if let Some(row) = self.one("WHERE id = ? ORDER BY seq DESC LIMIT 1", &id)? {
            return Ok(Some(row));
        }
        // Ids are made of ASCII: behind the last of them that begins so.
        let end = format!("{id}\u{7f}");
        self.with(|connection| {
            let row = connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM flows WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 1"
                ))?
                .query_row([id, &end], Summary::from_row)
                .optional()?;
            Ok(row)
        })
    }

    fn one(
        &self,
        clause: &str,
        param: &dyn rusqlite::ToSql,
    ) -> Result<Option<Summary>, StoreError> {
        self.with(|connection| {
            let row = connection
                .prepare_cached(&format!("SELECT {COLUMNS} FROM flows {clause}"))?
                .query_row([param], Summary::from_row)
                .optional()?;
            Ok(row)
        })
    }

    /// Follows the flows behind a number: first those that are there, then those that come. 0 for all.
    pub fn follow(&self, after: u64) -> Follow<'_> {
        Follow::new(self, after)
    }

    /// The number of the newest flow that was recorded, also when it is gone again.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn last_number(&self) -> Result<u64, StoreError> {
        self.with(|connection| {
            let next: Option<i64> = connection.query_row(
                "SELECT max(value) FROM state WHERE key = 'next_seq'",
                [],
                |row| row.get(0),
            )?;
            Ok(next.unwrap_or(1).cast_unsigned().saturating_sub(1))
        })
    }

    /// Deletes flows; answers how many.
    ///
    /// They are gone from every list when this returns. Their bytes are overwritten within about a second by the
    /// process that records, or when the store is opened for recording the next time. Single words of theirs may stay
    /// in the index until it is merged the next time.
    ///
    /// # Errors
    /// As for [`list`](Self::list).
    pub fn delete(&self, query: &Query) -> Result<u64, StoreError> {
        let mut deleted = 0;
        let mut page: Vec<(u64, u64)> = Vec::new();
        self.each::<StoreError>(query, &mut |row| {
            page.push((row.seq, row.block));
            if page.len() >= PAGE {
                deleted += self.delete_page(&page)?;
                page.clear();
            }
            Ok(())
        })?;
        Ok(deleted + self.delete_page(&page)?)
    }

    fn delete_page(&self, page: &[(u64, u64)]) -> Result<u64, StoreError> {
        if page.is_empty() {
            return Ok(0);
        }
        *lock(&self.last) = None;
        self.with(|connection| {
            let transaction = connection.unchecked_transaction()?;
            let mut deleted = 0;
            for (seq, _) in page {
                // The block as it is now: the flow may have moved.
                let block: Option<i64> = transaction
                    .prepare_cached("DELETE FROM flows WHERE seq = ? RETURNING block")?
                    .query_row([saturating(*seq)], |row| row.get(0))
                    .optional()?;
                if let Some(block) = block {
                    deleted += 1;
                    transaction
                        .prepare_cached("UPDATE blocks SET live = live - 1 WHERE id = ?")?
                        .execute([block])?;
                }
            }
            transaction.commit()?;
            Ok(deleted)
        })
    }

    /// How much there is.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn usage(&self) -> Result<Usage, StoreError> {
        self.with(|connection| {
            let number = |row: &rusqlite::Row<'_>, at| -> rusqlite::Result<u64> {
                Ok(row.get::<_, Option<i64>>(at)?.unwrap_or(0).cast_unsigned())
            };
            let ends = connection.query_row(
                "SELECT (SELECT min(seq) FROM flows), (SELECT max(seq) FROM flows)",
                [],
                |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)),
            )?;
            let (flows, segments, segment_bytes) = connection.query_row(
                "SELECT (SELECT sum(live) FROM blocks), count(*), sum(bytes) FROM segments",
                [],
                |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?)),
            )?;
            Ok(Usage {
                flows,
                first: ends.0.map(i64::cast_unsigned),
                last: ends.1.map(i64::cast_unsigned),
                segments,
                segment_bytes,
                database_bytes: database_bytes(connection)?,
            })
        })
    }

    pub(crate) fn news(&self) -> Option<&News> {
        self.news.as_deref()
    }

    /// Works with the database; once more with a new connection if the file was set aside meanwhile.
    fn with<T>(
        &self,
        work: impl Fn(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = lock(&self.connection);
        if let Some(folder) = &self.folder {
            let mut file = lock(&self.file);
            let now = schema::identity(folder);
            // One that was renamed reads well, and never changes again.
            if now.is_some() && *file != now {
                *connection = schema::open_for_reading(folder)?;
                *file = now;
                *lock(&self.last) = None;
            }
        }
        match (work(&connection), &self.folder) {
            (Err(error), Some(folder)) if error.is_database_unusable() => {
                match schema::open_for_reading(folder) {
                    Ok(fresh) => *connection = fresh,
                    Err(_) => return Err(error),
                }
                work(&connection)
            }
            (result, _) => result,
        }
    }
}

/// Rows, page by page.
struct Pages<'a> {
    flows: &'a Flows,
    query: &'a Query,
    /// The numbers that are left.
    after: u64,
    before: u64,
    /// Blocks that have all words, if words are asked for.
    blocks: Option<VecDeque<Range>>,
    ended: bool,
}

struct Page {
    rows: Vec<Summary>,
    /// Every row of it has the words that are asked for.
    words_hold: bool,
}

impl<'a> Pages<'a> {
    fn new(flows: &'a Flows, query: &'a Query) -> Self {
        Self {
            flows,
            query,
            after: query.after.unwrap_or(0),
            before: query.before.unwrap_or(i64::MAX.cast_unsigned()),
            blocks: None,
            ended: false,
        }
    }

    fn next(&mut self) -> Result<Option<Page>, StoreError> {
        if self.ended {
            return Ok(None);
        }
        match &self.query.words {
            Some(words) => self.next_block(words),
            None => self.next_rows(),
        }
    }

    fn next_rows(&mut self) -> Result<Option<Page>, StoreError> {
        let order = if self.query.oldest_first {
            "ASC"
        } else {
            "DESC"
        };
        let limit = self.query.limit.filter(|_| self.query.filter.is_none());
        let limit = limit.unwrap_or(PAGE).min(PAGE);
        let rows = self.select(&format!("ORDER BY seq {order} LIMIT {limit}"), None)?;
        match rows.last() {
            Some(last) if self.query.oldest_first => self.after = last.seq,
            Some(last) => self.before = last.seq,
            None => self.ended = true,
        }
        Ok((!self.ended).then_some(Page {
            rows,
            words_hold: false,
        }))
    }

    fn next_block(&mut self, words: &Words) -> Result<Option<Page>, StoreError> {
        if self.blocks.is_none() {
            let order = if self.query.oldest_first {
                "ASC"
            } else {
                "DESC"
            };
            let blocks = self.flows.with(|connection| {
                // By the flows that they hold: one that was moved has a new number, and old flows.
                let mut statement = connection.prepare_cached(&format!(
                    "SELECT first, last, flows FROM words JOIN blocks ON blocks.id = words.rowid \
                     WHERE words MATCH ? ORDER BY last {order}"
                ))?;
                let rows = statement.query_map([words.expression()], |row| {
                    Ok(Range {
                        first: row.get::<_, i64>(0)?.cast_unsigned(),
                        last: row.get::<_, i64>(1)?.cast_unsigned(),
                        flows: row.get::<_, i64>(2)?.cast_unsigned(),
                    })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })?;
            self.blocks = Some(blocks);
        }
        let Some(block) = self.blocks.as_mut().and_then(VecDeque::pop_front) else {
            return Ok(None);
        };
        let order = if self.query.oldest_first {
            "ASC"
        } else {
            "DESC"
        };
        let rows = self.select(&format!("ORDER BY seq {order}"), Some(&block))?;
        Ok(Some(Page {
            rows,
            words_hold: block.flows == 1,
        }))
    }

    fn select(&self, tail: &str, block: Option<&Range>) -> Result<Vec<Summary>, StoreError> {
        let mut clause = String::from("WHERE seq > ?1 AND seq < ?2");
        let micros = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        };
        let (mut after, mut before) = (self.after, self.before);
        if let Some(block) = block {
            after = after.max(block.first.saturating_sub(1));
            before = before.min(block.last.saturating_add(1));
        }
        if let Some(since) = self.query.since {
            clause.push_str(&format!(" AND created >= {}", micros(since)));
        }
        if let Some(until) = self.query.until {
            clause.push_str(&format!(" AND created < {}", micros(until)));
        }
        self.flows.with(|connection| {
            let mut statement =
                connection.prepare(&format!("SELECT {COLUMNS} FROM flows {clause} {tail}"))?;
            let rows = statement.query_map(
                params![saturating(after), saturating(before)],
                Summary::from_row,
            )?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

/// The numbers of the flows of a block. No two blocks share one, also where one is moved meanwhile.
struct Range {
    first: u64,
    last: u64,
    flows: u64,
}

/// How long a reader in another process waits before it looks again.
pub(crate) const POLL: Duration = Duration::from_millis(100);

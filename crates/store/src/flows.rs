//! What is in a store: lists, searches, single flows, deletion.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashSet;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tollgate_flow::filter::Filter;
use tollgate_flow::record::Record;

use crate::block::Block;
use crate::error::StoreError;
use crate::follow::Follow;
use crate::schema;
use crate::segment::{SegmentDir, lock};
use crate::summary::{self, Summary, saturating};
use crate::words::Words;
use crate::writer::{BlockRow, News, database_bytes};

/// Flows that are deleted at once: the database is free for others in between.
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

    fn means_time(&self, row: &Summary) -> bool {
        let created = summary::micros(row.created);
        self.since.is_none_or(|since| created >= micros(since))
            && self.until.is_none_or(|until| created < micros(until))
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
    /// Flows are looked at from the end that the query names until there are enough. A filter is asked about what a
    /// block has beside bodies; those are read only where it wants them. Words are looked for in blocks that may have them.
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
            for seq in page.seqs {
                if left == 0 {
                    break;
                }
                // Most are none that the filter means: only of the others a row is made.
                let verdict = match &query.filter {
                    Some(filter) => page.block.matches(seq, filter),
                    None => Ok(Some(true)),
                };
                let is_meant = match verdict {
                    Ok(Some(false)) | Err(StoreError::Damaged { .. }) => continue,
                    Ok(verdict) => verdict.is_some(),
                    Err(error) => return Err(error.into()),
                };
                let row = match page.block.summary(seq) {
                    Ok(Some(row)) => row,
                    Ok(None) | Err(StoreError::Damaged { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
                if query.means_time(&row) && self.matches(query, &row, is_meant)? {
                    left -= 1;
                    found(row)?;
                }
            }
        }
        Ok(())
    }

    /// Asks the whole flow about what is still to be known: whether the filter means it, whether it has the words.
    fn matches(&self, query: &Query, row: &Summary, is_meant: bool) -> Result<bool, StoreError> {
        let words = query.words.as_ref();
        let filter = query.filter.as_ref().filter(|_| !is_meant);
        if words.is_none() && filter.is_none() {
            return Ok(true);
        }
        let record = match self.read(row) {
            Ok(Some(record)) => record,
            // Deleted meanwhile, or damaged.
            Ok(None) | Err(StoreError::Damaged { .. } | StoreError::Segment(_)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        Ok(filter.is_none_or(|filter| filter.matches(&record))
            && words.is_none_or(|words| words.matches(&record)))
    }

    /// The whole flow of a row. `None` when it is gone meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when its block is not what was written.
    pub fn read(&self, row: &Summary) -> Result<Option<Record>, StoreError> {
        if let Some(block) = &*lock(&self.last)
            && block.number() == row.block
            && block.has_bodies()
            && let Some(record) = block.record(row.seq)?
        {
            return Ok(Some(record));
        }
        match self.holding(row.seq, true)? {
            Some(block) => block.record(row.seq),
            None => Ok(None),
        }
    }

    /// The row of a number.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Damaged`].
    pub fn by_number(&self, seq: u64) -> Result<Option<Summary>, StoreError> {
        match self.holding(seq, false)? {
            Some(block) => block.summary(seq),
            None => Ok(None),
        }
    }

    /// The row of an id, or of the beginning of one. The newest, if there are several.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn by_id(&self, id: &str) -> Result<Option<Summary>, StoreError> {
        if let Some(row) = self.newest_with_id(id, id, &|found| found == id)? {
            return Ok(Some(row));
        }
        // Ids are made of ASCII: behind the last of them that begins so.
        let end = format!("{id}\u{7f}");
        self.newest_with_id(id, &end, &|found| found.starts_with(id))
    }

    fn newest_with_id(
        &self,
        least: &str,
        greatest: &str,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Option<Summary>, StoreError> {
        let candidates = self.with(|connection| {
            BlockRow::select(
                connection,
                "WHERE live > 0 AND greatest_id >= ?1 AND least_id <= ?2 ORDER BY last DESC",
                [least, greatest],
            )
        })?;
        for candidate in candidates {
            let range = [saturating(candidate.first), saturating(candidate.last)];
            let Some(found) = self.block("last >= ?1 AND first <= ?2", &range, false)? else {
                continue;
            };
            let Some(block) = &found.block else { continue };
            let is_wanted = |seq: &u64| !found.deleted.contains(seq);
            if let Some(seq) = block.find_id(wanted).filter(is_wanted) {
                return block.summary(seq);
            }
        }
        Ok(None)
    }

    /// The block that holds a flow which is not deleted.
    pub(crate) fn holding(&self, seq: u64, whole: bool) -> Result<Option<Arc<Block>>, StoreError> {
        let at = saturating(seq);
        let found = self.block("last >= ?1 AND first <= ?2", &[at, at], whole)?;
        let Some(found) = found.filter(|found| !found.deleted.contains(&seq)) else {
            return Ok(None);
        };
        match found.block {
            Some(block) => Ok(Some(block).filter(|block| block.contains(seq))),
            None => Err(found.problem()),
        }
    }

    /// The first block of those that a condition means, and that have flows: as far as lists need it, or whole.
    fn block(
        &self,
        condition: &str,
        params: &[i64],
        whole: bool,
    ) -> Result<Option<Found>, StoreError> {
        let clause = format!("WHERE live > 0 AND {condition} LIMIT 1");
        let mut before: Option<BlockRow> = None;
        loop {
            let found = self.with(|connection| {
                // Both as of one moment.
                let transaction = connection.unchecked_transaction()?;
                let rows =
                    BlockRow::select(&transaction, &clause, rusqlite::params_from_iter(params))?;
                let Some(row) = rows.into_iter().next() else {
                    return Ok(None);
                };
                let deleted = row.deleted(&transaction)?;
                Ok(Some((row, deleted)))
            })?;
            let Some((row, deleted)) = found else {
                return Ok(None);
            };
            let (block, problem) = match self.load(&row, whole) {
                Ok(block) => (Some(block), None),
                // It may have moved since its row was read.
                Err(StoreError::Segment(_) | StoreError::Damaged { .. })
                    if before.as_ref().is_none_or(|before| before.id != row.id) =>
                {
                    before = Some(row);
                    continue;
                }
                Err(error @ (StoreError::Segment(_) | StoreError::Damaged { .. })) => {
                    (None, Some(error))
                }
                Err(error) => return Err(error),
            };
            return Ok(Some(Found {
                row,
                deleted,
                block,
                problem,
            }));
        }
    }

    fn load(&self, row: &BlockRow, whole: bool) -> Result<Arc<Block>, StoreError> {
        if let Some(block) = &*lock(&self.last)
            && block.number() == row.id
            // Numbers of blocks that are all gone are given again.
            && block.contains(row.first)
            && (block.has_bodies() || !whole)
        {
            return Ok(Arc::clone(block));
        }
        let length = if whole { row.length } else { row.heads };
        let frame = self
            .dir
            .open(row.segment, false)?
            .read_at(row.offset, length)?;
        let block = Arc::new(Block::parse(&frame)?);
        if block.number() != row.id {
            return Err(StoreError::Damaged {
                block: row.id,
                problem: format!("block {} is in its place", block.number()),
            });
        }
        *lock(&self.last) = Some(Arc::clone(&block));
        Ok(block)
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
    /// process that records, or when the store is opened for recording the next time.
    ///
    /// # Errors
    /// As for [`list`](Self::list).
    pub fn delete(&self, query: &Query) -> Result<u64, StoreError> {
        let mut deleted = self.delete_blocks(query)?;
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

    /// Deletes the blocks that a query means as a whole, also those that can't be read.
    fn delete_blocks(&self, query: &Query) -> Result<u64, StoreError> {
        let is_range = Query {
            after: None,
            before: None,
            oldest_first: false,
            ..query.clone()
        } == Query::default();
        if !is_range {
            return Ok(0);
        }
        *lock(&self.last) = None;
        self.with(|connection| {
            let transaction = immediate(connection)?;
            let blocks = BlockRow::select(
                &transaction,
                "WHERE live > 0 AND first > ?1 AND last < ?2",
                [
                    saturating(query.after.unwrap_or(0)),
                    saturating(query.before.unwrap_or(u64::MAX)),
                ],
            )?;
            for block in &blocks {
                block.forget_flows(&transaction)?;
            }
            transaction.commit()?;
            Ok(blocks.iter().map(|block| block.live).sum())
        })
    }

    fn delete_page(&self, page: &[(u64, u64)]) -> Result<u64, StoreError> {
        if page.is_empty() {
            return Ok(0);
        }
        *lock(&self.last) = None;
        self.with(|connection| {
            let transaction = immediate(connection)?;
            let mut deleted = 0;
            for (seq, block) in page {
                let at = saturating(*seq);
                let rows = BlockRow::select(
                    &transaction,
                    "WHERE live > 0 AND last >= ?1 AND first <= ?1 LIMIT 1",
                    [at],
                )?;
                let Some(row) = rows.into_iter().next() else {
                    continue;
                };
                // Its block may have moved, and lost this flow on the way.
                if row.id != *block
                    && !self
                        .load(&row, false)
                        .is_ok_and(|block| block.contains(*seq))
                {
                    continue;
                }
                let added = transaction
                    .prepare_cached("INSERT OR IGNORE INTO deleted(seq) VALUES(?)")?
                    .execute([at])?;
                if added == 0 {
                    continue;
                }
                deleted += 1;
                if row.live == 1 {
                    row.forget_flows(&transaction)?;
                } else {
                    transaction
                        .prepare_cached("UPDATE blocks SET live = live - 1 WHERE id = ?")?
                        .execute([saturating(row.id)])?;
                }
            }
            transaction.commit()?;
            *lock(&self.last) = None;
            Ok(deleted)
        })
    }

    /// How much there is.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let end = |oldest_first| -> Result<Option<u64>, StoreError> {
            let query = Query {
                limit: Some(1),
                oldest_first,
                ..Query::default()
            };
            Ok(self.list(&query)?.first().map(|row| row.seq))
        };
        let (first, last) = (end(true)?, end(false)?);
        self.with(|connection| {
            let number = |row: &rusqlite::Row<'_>, at| -> rusqlite::Result<u64> {
                Ok(row.get::<_, Option<i64>>(at)?.unwrap_or(0).cast_unsigned())
            };
            let (flows, segments, segment_bytes) = connection.query_row(
                "SELECT (SELECT sum(live) FROM blocks), count(*), sum(bytes) FROM segments",
                [],
                |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?)),
            )?;
            Ok(Usage {
                flows,
                first,
                last,
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

/// A block, and which of its flows are deleted.
struct Found {
    row: BlockRow,
    deleted: HashSet<u64>,
    /// `None` when it is not what was written.
    block: Option<Arc<Block>>,
    problem: Option<StoreError>,
}

impl Found {
    fn problem(self) -> StoreError {
        self.problem.unwrap_or(StoreError::Damaged {
            block: self.row.id,
            problem: "it can't be read".to_owned(),
        })
    }
}

/// A transaction that has the right to write from its beginning.
fn immediate(connection: &Connection) -> Result<Transaction<'_>, StoreError> {
    Ok(Transaction::new_unchecked(
        connection,
        TransactionBehavior::Immediate,
    )?)
}

/// Rows, block by block.
struct Pages<'a> {
    flows: &'a Flows,
    query: &'a Query,
    /// The numbers that are left.
    after: u64,
    before: u64,
    /// The next blocks that may have all words, if words are asked for.
    blocks: VecDeque<Range>,
}

struct Page {
    block: Arc<Block>,
    seqs: Vec<u64>,
}

impl<'a> Pages<'a> {
    fn new(flows: &'a Flows, query: &'a Query) -> Self {
        Self {
            flows,
            query,
            after: query.after.unwrap_or(0),
            before: query.before.unwrap_or(i64::MAX.cast_unsigned()),
            blocks: VecDeque::new(),
        }
    }

    fn next(&mut self) -> Result<Option<Page>, StoreError> {
        loop {
            let range = match &self.query.words {
                None => None,
                Some(words) => match self.next_with(words)? {
                    Some(range) => Some(range),
                    None => return Ok(None),
                },
            };
            let (after, before) = match &range {
                None => (self.after, self.before),
                Some(range) => (range.first.saturating_sub(1), range.last.saturating_add(1)),
            };
            let found = self.select(after, before)?;
            let Some(found) = found else {
                if range.is_some() {
                    continue;
                }
                return Ok(None);
            };
            if range.is_none() {
                self.pass(found.row.first, found.row.last);
            }
            // One that is damaged has nothing to show.
            let Some(block) = found.block else { continue };
            let is_meant =
                |seq: &u64| *seq > after && *seq < before && !found.deleted.contains(seq);
            let mut seqs: Vec<u64> = block.seqs().filter(is_meant).collect();
            if !self.query.oldest_first {
                seqs.reverse();
            }
            return Ok(Some(Page { block, seqs }));
        }
    }

    /// Leaves the flows of a block behind.
    fn pass(&mut self, first: u64, last: u64) {
        if self.query.oldest_first {
            self.after = last;
        } else {
            self.before = first;
        }
    }

    fn order(&self) -> &'static str {
        match self.query.oldest_first {
            true => "ASC",
            false => "DESC",
        }
    }

    fn next_with(&mut self, words: &Words) -> Result<Option<Range>, StoreError> {
        while self.blocks.is_empty() {
            let params = [saturating(self.after), saturating(self.before)];
            let order = self.order();
            let looked_at = self.flows.with(|connection| {
                // By the flows that they hold: one that was moved has a new number, and old flows.
                let mut statement = connection.prepare_cached(&format!(
                    "SELECT first, last, bits FROM blocks LEFT JOIN word_filters ON block = id \
                     WHERE live > 0 AND last > ?1 AND first < ?2 ORDER BY last {order} LIMIT {FILTERS}"
                ))?;
                let rows = statement.query_map(params, |row| {
                    let bits = row.get_ref(2)?.as_blob_or_null()?;
                    Ok(Range {
                        first: row.get::<_, i64>(0)?.cast_unsigned(),
                        last: row.get::<_, i64>(1)?.cast_unsigned(),
                        may_have: bits.is_none_or(|bits| words.may_be_in(bits)),
                    })
                })?;
                Ok(rows.collect::<Result<Vec<_>, _>>()?)
            })?;
            let Some(last) = looked_at.last() else {
                return Ok(None);
            };
            let (after, before) = (self.after, self.before);
            self.pass(last.first, last.last);
            let may_have = looked_at.into_iter().filter(|range| range.may_have);
            self.blocks.extend(may_have.map(|range| Range {
                // What lies on the edge of what is asked for.
                first: range.first.max(after.saturating_add(1)),
                last: range.last.min(before.saturating_sub(1)),
                ..range
            }));
        }
        Ok(self.blocks.pop_front())
    }

    fn select(&self, after: u64, before: u64) -> Result<Option<Found>, StoreError> {
        let since = self.query.since.map_or(i64::MIN, micros);
        let until = self.query.until.map_or(i64::MAX, micros);
        let condition = range_condition(self.order());
        let params = [saturating(after), saturating(before), since, until];
        // Words are looked for in the whole flow.
        let whole = self.query.words.is_some();
        self.flows.block(&condition, &params, whole)
    }
}

/// The blocks with numbers behind `?1` and before `?2`, and of the time from `?3` to `?4`, from one end.
///
/// No two blocks share a number, so that none behind the one that reaches up to `?2` begins before it. Without that said,
/// all that were looked at before are walked over again for each block, where the newest come first.
fn range_condition(order: &str) -> String {
    format!(
        "last > ?1 AND first < ?2 AND newest >= ?3 AND oldest < ?4 \
         AND last <= coalesce((SELECT last FROM blocks WHERE live > 0 AND last >= ?2 - 1 ORDER BY last LIMIT 1), \
         9223372036854775807) \
         ORDER BY last {order}"
    )
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The numbers of the flows of a block. No two blocks share one, also where one is moved meanwhile.
struct Range {
    first: u64,
    last: u64,
    /// Whether they may have the words that are looked for.
    may_have: bool,
}

/// So many filters of words are looked at before flows are.
const FILTERS: usize = 256;

/// How long a reader in another process waits before it looks again.
pub(crate) const POLL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::StatementStatus;

    /// How many steps SQLite takes to find the next block of a list.
    fn steps(connection: &Connection, order: &str, after: i64, before: i64) -> (i64, i32) {
        let condition = range_condition(order);
        let mut statement = connection
            .prepare(&format!(
                "SELECT id FROM blocks WHERE live > 0 AND {condition} LIMIT 1"
            ))
            .unwrap();
        let params = [after, before, i64::MIN, i64::MAX];
        let found = statement.query_row(params, |row| row.get(0)).unwrap();
        (found, statement.get_status(StatementStatus::VmStep))
    }

    #[test]
    fn the_next_block_is_found_without_walking_over_others() {
        const BLOCKS: i64 = 2000;
        let connection = schema::open_in_memory().unwrap();
        // Ten numbers each; of every third the last two are gone.
        for id in 1..=BLOCKS {
            let gone = if id % 3 == 0 { 2 } else { 0 };
            connection
                .execute(
                    "INSERT INTO blocks VALUES(?1, 1, 8, 40, 80, ?2, ?3, 5, 5, 'a', 'b', 10, 10)",
                    [id, id * 10 - 9, id * 10 - gone],
                )
                .unwrap();
        }
        // What a block was whose rest stands in another one, until it is overwritten.
        connection
            .execute_batch(
                "INSERT INTO blocks VALUES(2001, 1, 8, 40, 80, 11, 20, 5, 5, 'a', 'b', 10, 0)",
            )
            .unwrap();
        let most = 200;
        for block in [1, 2, 3, 4, BLOCKS / 2, BLOCKS - 1, BLOCKS] {
            let (first, last) = (block * 10 - 9, block * 10);
            for (what, order, after, before) in [
                ("behind the one before", "ASC", first - 1, i64::MAX),
                ("behind its first", "ASC", first, i64::MAX),
                ("before the next one", "DESC", 0, last + 1),
                ("before its second", "DESC", 0, first + 1),
                ("a range of numbers", "DESC", first - 1, last + 1),
                ("one number", "DESC", first - 1, first + 1),
            ] {
                let (found, steps) = steps(&connection, order, after, before);
                assert_eq!(found, block, "{what}");
                assert!(steps < most, "{steps} steps for {what} of {block}");
            }
        }
        // All of them, from the newest on.
        assert_eq!(steps(&connection, "DESC", 0, i64::MAX).0, BLOCKS);
    }
}

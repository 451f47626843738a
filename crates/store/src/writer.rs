//! The thread that writes: batches into segments and the database, and keeps both within their bounds.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashSet;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::block::{Block, BlockBuilder, BlockFacts, Built, Compressor, CopiedLinks, wiped};
use crate::config::{Place, StoreConfig};
use crate::error::StoreError;
use crate::link::LinkCache;
use crate::os;
use crate::schema;
use crate::segment::{FIRST_FRAME, Frame, Segment, SegmentDir, lock};
use crate::sink::{Flows, Queue, Queued};
use crate::summary::saturating;

/// How often bounds are looked at, what was deleted is overwritten, and a store that stopped tries again.
const TICK: Duration = Duration::from_secs(1);

/// How many blocks one tick tidies: what is left is for the next one.
const TIDIED_AT_ONCE: i64 = 256;

/// Whether the store records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Recording,
    /// The disk has no room. Traffic goes on and is not recorded until there is some.
    Full,
    /// It can't write for another reason. It tries again every second.
    Failed(String),
}

/// Wakes those who follow.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub last: Mutex<u64>,
    pub changed: Condvar,
}

/// What the writer and the store's owner have in common.
pub(crate) struct Shared {
    pub config: StoreConfig,
    pub dir: SegmentDir,
    pub queue: Arc<Queue>,
    pub news: Arc<News>,
    pub state: Mutex<State>,
    /// Databases that had to be set aside, by their new names.
    pub set_aside: Mutex<Vec<PathBuf>>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    connection: Arc<Mutex<Connection>>,
    compressor: Compressor,
    builder: BlockBuilder,
    links: LinkCache,
    active: Option<Active>,
    next_seq: u64,
    next_block: u64,
    last_tick: Instant,
}

struct Active {
    id: u64,
    segment: Segment,
    bytes: u64,
}

impl Writer {
    /// Makes database and segments agree, and continues behind what is there.
    pub fn new(
        shared: Arc<Shared>,
        connection: Arc<Mutex<Connection>>,
    ) -> Result<Self, StoreError> {
        let compressor = Compressor::new(shared.config.compression_level)?;
        let mut writer = Self {
            shared,
            connection,
            compressor,
            builder: BlockBuilder::new(),
            links: LinkCache::default(),
            active: None,
            next_seq: 1,
            next_block: 1,
            last_tick: Instant::now(),
        };
        writer.reconcile()?;
        Ok(writer)
    }

    pub fn run(mut self) {
        // However this thread ends, nobody waits for it any longer.
        let _closing = Closing(Arc::clone(&self.shared.queue));
        os::let_others_go_first();
        let mut flows = Flows::default();
        loop {
            let batch = self.shared.queue.take(TICK, std::mem::take(&mut flows));
            self.next_seq += batch.dropped;
            let waiting = batch.waiting as u64;
            flows = batch.flows;
            if waiting > 0 {
                self.keep(&mut flows, waiting);
                self.shared.queue.dealt_with(waiting);
            }
            if batch.closed {
                break;
            }
            if batch.tidy.is_some() || self.last_tick.elapsed() >= TICK {
                self.last_tick = Instant::now();
                self.tick();
            }
            if let Some(asked) = batch.tidy {
                self.shared.queue.tidied(asked);
            }
        }
        let closed = self.close();
        if let Err(error) = closed {
            tracing::warn!(%error, "the store of flows was not closed properly");
        }
    }

    fn keep(&mut self, batch: &mut Flows, flows: u64) {
        let counters = &Arc::clone(&self.shared.queue).counters;
        let kept = self.prepare(batch).and_then(|mut prepared| {
            match self.commit(&mut prepared, None) {
                // The next database is a new one, and what is in the segments goes into it.
                Err(error) if error.is_database_unusable() && self.renew(&error).is_ok() => {
                    self.commit(&mut prepared, None)
                }
                result => result,
            }
        });
        match kept {
            Ok(()) => {
                counters.kept.fetch_add(flows, Ordering::Relaxed);
                self.set_state(State::Recording);
                *lock(&self.shared.news.last) = self.next_seq - 1;
                self.shared.news.changed.notify_all();
            }
            Err(error) => {
                counters.lost.fetch_add(flows, Ordering::Relaxed);
                self.stop(&error);
            }
        }
    }

    fn stop(&mut self, error: &StoreError) {
        self.set_state(if error.is_full() {
            State::Full
        } else {
            State::Failed(error.to_string())
        });
    }

    fn set_state(&self, state: State) {
        let mut current = lock(&self.shared.state);
        if *current == state {
            return;
        }
        match &state {
            State::Recording => tracing::info!("flows are recorded again"),
            State::Full => tracing::warn!(
                "the disk is full: flows are not recorded until there is room; traffic goes on"
            ),
            State::Failed(why) => {
                tracing::warn!("flows can't be recorded; traffic goes on: {why}");
            }
        }
        self.shared.queue.set_stopped(state != State::Recording);
        *current = state;
    }

    /// Makes blocks of flows, and gives the flows their numbers.
    fn prepare(&mut self, flows: &mut Flows) -> Result<Vec<Built>, StoreError> {
        let mut prepared = Vec::new();
        let links: Vec<_> = std::mem::take(&mut flows.links)
            .into_iter()
            .map(|link| self.links.written(link))
            .collect();
        let all = flows.each(|flow| {
            let seq = self.next_seq;
            self.next_seq += 1;
            match flow {
                Queued::Entry(entry) => {
                    if let Some(link) = links.get(entry.link as usize) {
                        self.builder.add_entry(seq, &entry, link);
                    }
                }
                Queued::Record(record) => self.builder.add_record(seq, *record),
            }
            if self.builder.is_full() {
                prepared.push(self.finish()?);
            }
            Ok(())
        });
        if !self.builder.is_empty() {
            prepared.push(self.finish()?);
        }
        all.map(|()| prepared)
    }

    fn finish(&mut self) -> Result<Built, StoreError> {
        let block = self.next_block;
        self.next_block += 1;
        self.builder.finish(block, &mut self.compressor)
    }

    /// Writes blocks: first into the segment, then, in one transaction, what the database knows of them. They may take
    /// the place of an older block.
    fn commit(
        &mut self,
        prepared: &mut [Built],
        replaced: Option<&BlockRow>,
    ) -> Result<(), StoreError> {
        self.rotate_if_full();
        let begin = self.active()?.bytes;
        let result = self.append(prepared, replaced);
        if result.is_err()
            && let Some(active) = &mut self.active
        {
            // What is left is cut off when the store is opened again, if not now.
            active.bytes = begin;
            let _ = active.segment.truncate(begin);
        }
        result
    }

    fn append(
        &mut self,
        prepared: &mut [Built],
        replaced: Option<&BlockRow>,
    ) -> Result<(), StoreError> {
        let next_seq = self.next_seq;
        let connection = Arc::clone(&self.connection);
        let active = self.active()?;
        let mut places = Vec::with_capacity(prepared.len());
        let mut end = active.bytes;
        for one in &mut *prepared {
            active.segment.write_frame(end, &mut one.frame)?;
            places.push(end);
            end += one.frame.len() as u64;
        }
        let mut connection = lock(&connection);
        let transaction = begin(&mut connection)?;
        for (one, offset) in prepared.iter().zip(places) {
            // Another process may have deleted some of them since they were read.
            let deleted = match replaced {
                Some(old) => old.replace(&transaction, &one.seqs)?,
                None => 0,
            };
            let place = BlockPlace {
                id: one.block,
                segment: active.id,
                offset,
                heads: one.heads,
                length: one.frame.len() as u64,
            };
            place.index(&transaction, &one.facts, deleted, &one.words)?;
        }
        set_segment_bytes(&transaction, active.id, end)?;
        put_state(&transaction, "next_seq", next_seq)?;
        transaction.commit()?;
        active.bytes = end;
        Ok(())
    }

    /// The segment that is written to; a new one if there is none.
    fn active(&mut self) -> Result<&mut Active, StoreError> {
        let active = match self.active.take() {
            Some(active) => active,
            None => {
                let id = self.shared.dir.list()?.last().map_or(1, |last| last + 1);
                Active {
                    id,
                    segment: self.shared.dir.create(id)?,
                    bytes: FIRST_FRAME,
                }
            }
        };
        Ok(self.active.insert(active))
    }

    fn rotate_if_full(&mut self) {
        let full = self.shared.config.segment_bytes();
        self.active.take_if(|active| active.bytes >= full);
    }

    fn tick(&mut self) {
        if self.shared.queue.is_stopped() {
            match self.probe() {
                Ok(()) => self.set_state(State::Recording),
                Err(error) => self.stop(&error),
            }
        }
        if let Err(error) = self.tidy() {
            if error.is_database_unusable() {
                if let Err(error) = self.renew(&error) {
                    self.stop(&error);
                }
            } else if !error.is_full() {
                tracing::warn!(%error, "the store of flows can't be tidied");
            }
        }
    }

    /// Finds out whether there is room, by taking some for a moment.
    fn probe(&mut self) -> Result<(), StoreError> {
        let active = self.active()?;
        let result = active.segment.write_at(active.bytes, &vec![0; 256 << 10]);
        active.segment.truncate(active.bytes)?;
        Ok(result?)
    }

    /// Keeps the bounds, and overwrites what was deleted.
    pub fn tidy(&mut self) -> Result<(), StoreError> {
        self.forget_old()?;
        self.forget_most()?;
        self.wipe_deleted()?;
        self.remove_empty_segments()
    }

    fn forget_old(&mut self) -> Result<(), StoreError> {
        let Some(age) = self.shared.config.max_age else {
            return Ok(());
        };
        let cutoff = SystemTime::now()
            .checked_sub(age)
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |since| {
                i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
            });
        let mut connection = lock(&self.connection);
        let transaction = begin(&mut connection)?;
        let old: Vec<BlockRow> = BlockRow::select(
            &transaction,
            "WHERE newest < ?1 AND live > 0 ORDER BY newest LIMIT ?2",
            params![cutoff, TIDIED_AT_ONCE],
        )?;
        for block in &old {
            block.forget_flows(&transaction)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Drops the oldest segments until what is left is within the bound.
    fn forget_most(&mut self) -> Result<(), StoreError> {
        loop {
            let connection = Arc::clone(&self.connection);
            let mut connection = lock(&connection);
            let segments: i64 = connection.query_row(
                "SELECT coalesce(sum(bytes), 0) FROM segments",
                [],
                |row| row.get(0),
            )?;
            let total = segments.cast_unsigned() + database_bytes(&connection)?;
            if total <= self.shared.config.max_bytes {
                return Ok(());
            }
            let oldest: Option<i64> = connection
                .query_row("SELECT min(id) FROM segments", [], |row| row.get(0))
                .optional()?
                .flatten();
            let Some(oldest) = oldest else { return Ok(()) };
            self.active
                .take_if(|active| active.id == oldest.cast_unsigned());
            let transaction = begin(&mut connection)?;
            let blocks = BlockRow::select(&transaction, "WHERE segment = ?1", params![oldest])?;
            for block in &blocks {
                block.forget_flows(&transaction)?;
                block.forget(&transaction)?;
            }
            transaction.execute("DELETE FROM segments WHERE id = ?", [oldest])?;
            transaction.commit()?;
            self.shared.dir.remove(oldest.cast_unsigned())?;
        }
    }

    /// Overwrites blocks of which something was deleted; what is left of them is written anew.
    fn wipe_deleted(&mut self) -> Result<(), StoreError> {
        let blocks = BlockRow::select(
            &lock(&self.connection),
            "WHERE live < flows ORDER BY id LIMIT ?1",
            params![TIDIED_AT_ONCE],
        )?;
        for block in blocks {
            let mut segment = match self.shared.dir.open(block.segment, true) {
                Ok(segment) => segment,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    block.forget(&lock(&self.connection))?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if block.live > 0 {
                self.move_rest(&block, &mut segment)?;
            }
            // Before the row goes, so that a crash between the two leaves something to do.
            segment.write_frame(block.offset, &mut wiped(block.length))?;
            let connection = lock(&self.connection);
            block.forget(&connection)?;
        }
        Ok(())
    }

    fn move_rest(&mut self, row: &BlockRow, segment: &mut Segment) -> Result<(), StoreError> {
        let deleted = row.deleted(&lock(&self.connection))?;
        if let Ok(block) = Block::parse(&segment.read_at(row.offset, row.length)?) {
            let mut links = CopiedLinks::default();
            for seq in block.seqs().filter(|seq| !deleted.contains(seq)) {
                // What can't be read goes with the block.
                let _ = block.copy(seq, &mut links, &mut self.builder);
            }
        }
        if self.builder.is_empty() {
            return row.forget_flows(&lock(&self.connection));
        }
        let prepared = self.finish()?;
        self.commit(&mut [prepared], Some(row))
    }

    fn remove_empty_segments(&mut self) -> Result<(), StoreError> {
        let active = self.active.as_ref().map_or(0, |active| active.id);
        let empty: Vec<i64> = {
            let connection = lock(&self.connection);
            let mut statement = connection.prepare_cached(
                "SELECT id FROM segments WHERE id <> ? AND NOT EXISTS \
                 (SELECT 1 FROM blocks WHERE segment = segments.id)",
            )?;
            let rows = statement.query_map([saturating(active)], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        for id in empty {
            self.shared.dir.remove(id.cast_unsigned())?;
            lock(&self.connection).execute("DELETE FROM segments WHERE id = ?", [id])?;
        }
        Ok(())
    }

    /// Sets a database aside that can't be used, and makes a new one from what the segments hold.
    fn renew(&mut self, why: &StoreError) -> Result<(), StoreError> {
        let Place::Disk(folder) = &self.shared.config.place else {
            return Err(StoreError::Segment(std::io::Error::other(why.to_string())));
        };
        let aside = schema::set_aside(folder)?;
        tracing::warn!(
            "the database of flows can't be used ({why}); it is now {}, and a new one was begun",
            aside.display()
        );
        lock(&self.shared.set_aside).push(aside);
        *lock(&self.connection) = schema::open(folder)?;
        self.active = None;
        // Numbers that were given out stay given: blocks that carry them may still wait to be written.
        let (next_seq, next_block) = (self.next_seq, self.next_block);
        self.reconcile()?;
        self.next_seq = self.next_seq.max(next_seq);
        self.next_block = self.next_block.max(next_block);
        Ok(())
    }

    /// Makes the database know what the segments hold: what a crash left, or all, if the database is new.
    fn reconcile(&mut self) -> Result<(), StoreError> {
        let dir = self.shared.dir.clone();
        let present = dir.list()?;
        let connection = Arc::clone(&self.connection);
        let mut connection = lock(&connection);
        let known: Vec<(u64, u64)> = {
            let mut statement = connection.prepare("SELECT id, bytes FROM segments")?;
            let rows = statement.query_map([], |row| {
                Ok((
                    row.get::<_, i64>(0)?.cast_unsigned(),
                    row.get::<_, i64>(1)?.cast_unsigned(),
                ))
            })?;
            rows.collect::<Result<_, _>>()?
        };
        for (id, _) in known.iter().filter(|(id, _)| !present.contains(id)) {
            let transaction = begin(&mut connection)?;
            forget_behind(&transaction, *id, 0)?;
            transaction.execute("DELETE FROM segments WHERE id = ?", [saturating(*id)])?;
            transaction.commit()?;
        }
        for id in &present {
            let mut segment = dir.open(*id, true)?;
            if segment.seal().is_none() {
                tracing::warn!(
                    segment = id,
                    "a segment of flows has no beginning; it is removed"
                );
                let transaction = begin(&mut connection)?;
                forget_behind(&transaction, *id, 0)?;
                transaction.commit()?;
                dir.remove(*id)?;
                continue;
            }
            let good = known.iter().find(|(known, _)| known == id);
            let good = good.map_or(FIRST_FRAME, |(_, bytes)| *bytes);
            let length = segment.len()?;
            let transaction = begin(&mut connection)?;
            if length < good {
                forget_behind(&transaction, *id, length)?;
            }
            let mut problem = None;
            let scanned = segment.scan(good.min(length), |frame, block| {
                let result = recover(&transaction, *id, frame, &block);
                if let Err(error) = result {
                    problem.get_or_insert(error);
                }
            })?;
            let end = scanned.end;
            if scanned.damaged > 0 {
                tracing::warn!(
                    segment = id,
                    bytes = scanned.damaged,
                    "a part of a segment of flows is damaged; its flows are lost"
                );
            }
            if let Some(error) = problem {
                return Err(error);
            }
            if end < length {
                tracing::warn!(
                    segment = id,
                    bytes = length - end,
                    "the end of a segment of flows is damaged; it is cut off"
                );
                segment.truncate(end)?;
            }
            set_segment_bytes(&transaction, *id, end)?;
            transaction.commit()?;
            self.active = Some(Active {
                id: *id,
                segment,
                bytes: end,
            });
        }
        let number = |sql: &str| -> Result<u64, StoreError> {
            let found: Option<i64> = connection.query_row(sql, [], |row| row.get(0))?;
            Ok(found.unwrap_or(0).cast_unsigned())
        };
        let stored = number("SELECT max(value) FROM state WHERE key = 'next_seq'")?;
        let last = number("SELECT max(last) FROM blocks")?;
        self.next_seq = stored.max(last + 1).max(1);
        self.next_block = number("SELECT max(id) FROM blocks")? + 1;
        put_state(&connection, "clean", 0)?;
        *lock(&self.shared.news.last) = self.next_seq - 1;
        Ok(())
    }

    fn close(&mut self) -> Result<(), StoreError> {
        let connection = lock(&self.connection);
        put_state(&connection, "next_seq", self.next_seq)?;
        put_state(&connection, "clean", 1)?;
        Ok(())
    }
}

struct Closing(Arc<Queue>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A transaction that has the right to write from its beginning: one that reads first could find that another process
/// has written meanwhile.
fn begin(connection: &mut Connection) -> Result<Transaction<'_>, StoreError> {
    Ok(connection.transaction_with_behavior(TransactionBehavior::Immediate)?)
}

/// Bytes of the database's pages that are in use.
pub(crate) fn database_bytes(connection: &Connection) -> Result<u64, StoreError> {
    let bytes: i64 = connection.query_row(
        "SELECT (page_count - freelist_count) * page_size \
         FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        [],
        |row| row.get(0),
    )?;
    Ok(bytes.cast_unsigned())
}

pub(crate) fn put_state(connection: &Connection, key: &str, value: u64) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare_cached("INSERT OR REPLACE INTO state(key, value) VALUES(?, ?)")?;
    statement.execute(params![key, saturating(value)])?;
    Ok(())
}

fn set_segment_bytes(transaction: &Transaction<'_>, id: u64, bytes: u64) -> Result<(), StoreError> {
    let mut statement =
        transaction.prepare_cached("INSERT OR REPLACE INTO segments(id, bytes) VALUES(?, ?)")?;
    statement.execute([saturating(id), saturating(bytes)])?;
    Ok(())
}

/// Forgets the blocks of a segment that reach beyond a place.
fn forget_behind(transaction: &Transaction<'_>, segment: u64, end: u64) -> Result<(), StoreError> {
    let lost = BlockRow::select(
        transaction,
        "WHERE segment = ?1 AND offset + length > ?2",
        params![saturating(segment), saturating(end)],
    )?;
    for block in &lost {
        block.forget_flows(transaction)?;
        block.forget(transaction)?;
    }
    Ok(())
}

/// Puts a block into the database that only its segment knows of.
fn recover(
    transaction: &Transaction<'_>,
    segment: u64,
    frame: Frame,
    block: &Block,
) -> Result<(), StoreError> {
    let (facts, words) = block.facts();
    let place = BlockPlace {
        id: block.number(),
        segment,
        offset: frame.offset,
        heads: frame.heads,
        length: frame.length,
    };
    // Numbers are given once: another block with some of these is an older copy, which a crash left. It counts.
    let others = BlockRow::select(
        transaction,
        "WHERE id <> ?1 AND live > 0 AND first <= ?2 AND last >= ?3",
        params![
            saturating(place.id),
            saturating(facts.last),
            saturating(facts.first)
        ],
    )?;
    let deleted = if others.is_empty() { 0 } else { facts.flows };
    place.index(transaction, &facts, deleted, &words)
}

struct BlockPlace {
    id: u64,
    segment: u64,
    offset: u64,
    heads: u64,
    length: u64,
}

impl BlockPlace {
    /// Puts in a block, of whose flows so many are deleted.
    fn index(
        &self,
        transaction: &Transaction<'_>,
        facts: &BlockFacts,
        deleted: u64,
        words: &[u8],
    ) -> Result<(), StoreError> {
        let mut insert = transaction.prepare_cached(
            "INSERT OR REPLACE INTO blocks(id, segment, offset, heads, length, first, last, oldest, newest, \
             least_id, greatest_id, flows, live) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )?;
        insert.execute(params![
            saturating(self.id),
            saturating(self.segment),
            saturating(self.offset),
            saturating(self.heads),
            saturating(self.length),
            saturating(facts.first),
            saturating(facts.last),
            facts.oldest,
            facts.newest,
            facts.least_id,
            facts.greatest_id,
            saturating(facts.flows),
            saturating(facts.flows.saturating_sub(deleted)),
        ])?;
        let mut insert = transaction
            .prepare_cached("INSERT OR REPLACE INTO word_filters(block, bits) VALUES(?, ?)")?;
        insert.execute(params![saturating(self.id), words])?;
        Ok(())
    }
}

/// A row of `blocks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockRow {
    pub id: u64,
    pub segment: u64,
    pub offset: u64,
    /// The length of what lists need.
    pub heads: u64,
    pub length: u64,
    pub first: u64,
    pub last: u64,
    pub flows: u64,
    /// How many of them are not deleted.
    pub live: u64,
}

impl BlockRow {
    pub fn select(
        connection: &Connection,
        clause: &str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<Self>, StoreError> {
        let mut statement = connection.prepare_cached(&format!(
            "SELECT id, segment, offset, heads, length, first, last, flows, live FROM blocks {clause}"
        ))?;
        let rows = statement.query_map(params, |row| {
            let number =
                |at| -> rusqlite::Result<u64> { Ok(row.get::<_, i64>(at)?.cast_unsigned()) };
            Ok(Self {
                id: number(0)?,
                segment: number(1)?,
                offset: number(2)?,
                heads: number(3)?,
                length: number(4)?,
                first: number(5)?,
                last: number(6)?,
                flows: number(7)?,
                live: number(8)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The numbers of its flows that are deleted, where some are and some are not.
    pub fn deleted(&self, connection: &Connection) -> Result<HashSet<u64>, StoreError> {
        if self.live == self.flows {
            return Ok(HashSet::new());
        }
        let mut statement =
            connection.prepare_cached("SELECT seq FROM deleted WHERE seq BETWEEN ?1 AND ?2")?;
        let range = [saturating(self.first), saturating(self.last)];
        let rows = statement.query_map(range, |row| Ok(row.get::<_, i64>(0)?.cast_unsigned()))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Makes room for a block with what is left of this one. Answers how many of those are deleted by now.
    fn replace(&self, connection: &Connection, seqs: &[u64]) -> Result<u64, StoreError> {
        let now = Self::select(
            connection,
            "WHERE id = ? AND live > 0",
            [saturating(self.id)],
        )?;
        let Some(now) = now.into_iter().next() else {
            return Ok(seqs.len() as u64);
        };
        let deleted = now.deleted(connection)?;
        now.forget_flows(connection)?;
        let mut insert = connection.prepare_cached("INSERT INTO deleted(seq) VALUES(?)")?;
        let mut still = 0;
        for seq in seqs.iter().filter(|seq| deleted.contains(*seq)) {
            still += 1;
            insert.execute([saturating(*seq)])?;
        }
        Ok(still)
    }

    /// Deletes its flows, if there are any left; the block is left to be overwritten.
    pub fn forget_flows(&self, connection: &Connection) -> Result<(), StoreError> {
        if self.live == 0 {
            // The numbers may be another's by now, which has what was left of this one.
            return Ok(());
        }
        connection
            .prepare_cached("DELETE FROM deleted WHERE seq BETWEEN ? AND ?")?
            .execute([saturating(self.first), saturating(self.last)])?;
        connection
            .prepare_cached("UPDATE blocks SET live = 0 WHERE id = ?")?
            .execute([saturating(self.id)])?;
        Ok(())
    }

    /// Deletes what the database knows of the block.
    fn forget(&self, connection: &Connection) -> Result<(), StoreError> {
        let id = saturating(self.id);
        connection
            .prepare_cached("DELETE FROM word_filters WHERE block = ?")?
            .execute([id])?;
        connection
            .prepare_cached("DELETE FROM blocks WHERE id = ?")?
            .execute([id])?;
        Ok(())
    }
}

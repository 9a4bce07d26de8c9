//! Loading existing rows while the stream goes on: the visibility cut (docs/design.md section 4), decided without IO.
//!
//! A commit reaches the stream before it is visible to new snapshots, so a chunk read at "the same place" can be older than
//! the stream. Therefore every change of the tables under load is remembered from **before** a snapshot S is taken, and laid
//! over the chunk wherever its transaction is not visible in S. Transactions streamed before remembering began are excluded
//! by a fence: after it began, the driver takes a transaction id X of its own, and no S with `xmin(S) <= X` is used.
//!
//! One job at a time, one chunk at a time, tables parents first. A chunk enters the stream at the logical message that was
//! written after its read. What a later position of the stream would make wrong (another relation version, an absent column
//! without a base, too much to remember) makes the loader read the chunk again, never guess.
//!
//! A new incarnation reads what the ledger does not say is loaded, and single keys that it says are to be read a second time:
//! who sees why tells of each ([`Loader::left_out`]). A table that changed without a trace begins anew by itself
//! ([`Loader::begin_anew`]); the others of its job go on.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

use crate::change::{Key, Op};
use crate::error::{Code, Error, Result};
use crate::key::{KeyError, KeyOrder, KeyRange};
use crate::ledger::cover::{Cover, KeyTexts};
use crate::relation::{Fingerprint, TableName};
use crate::value::RowBuf;

/// Changes remembered while one chunk is read; beyond it the chunk is read again, smaller, behind a new fence.
const REMEMBERED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Keys to be read again that may wait for the end of their table; beyond it they come first. Each stands in the ledger's bases.
const AGAIN_KEYS_MAX: usize = 10_000;

/// A chunk is never asked for with fewer rows than this, however wide they are.
const CHUNK_ROWS_MIN: usize = 10;

/// Which transactions a snapshot shows; the driver's `pg_snapshot`.
pub trait Visibility {
    /// Whether the transaction with this 32-bit id, as the stream names it, is visible.
    fn sees(&self, xid: u32) -> bool;
}

/// Tables to load and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Requests that the job answers, to be told when it is done.
    pub requests: Vec<Uuid>,
    /// `Some`: the chunks name this one sink, and of each table the request that they answer; `None`: they are for every sink
    /// and answer every request.
    pub only: Option<(String, HashMap<TableName, Uuid>)>,
    /// Parents first.
    pub tables: Vec<TableName>,
    /// Nothing of these tables was ever loaded: their rows are a snapshot to consumers, otherwise an incremental one.
    pub initial: bool,
    /// What an earlier incarnation loaded of them for everybody whom the job is for. Changes of these ranges must have been
    /// remembered ever since, so only a job that starts before anything is streamed may have some.
    pub resumed: HashMap<TableName, Resumed>,
}

/// What is loaded of a table, and under which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    pub key: RangeKey,
    pub cover: Cover,
}

impl Job {
    /// The sink and the request that the table's chunks are for, if not for all.
    pub fn answers(&self, table: &TableName) -> Option<(String, Uuid)> {
        let (sink, requests) = self.only.as_ref()?;
        Some((sink.clone(), *requests.get(table).expect("somebody asked for every table of a job")))
    }
}

/// What a range's borders are texts of: the key's columns and their orders. Under another key they say nothing.
pub type RangeKey = Vec<(String, KeyOrder)>;

/// Where a chunk lies in a first load, for `source.snapshot` of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// No row was loaded before it: of any table, of its own.
    pub first: bool,
    pub first_of_table: bool,
    /// No range is left behind it: of its table, of any.
    pub last_of_table: bool,
    pub last: bool,
}

/// What the driver is to do next. Nothing else is asked before it has been answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take a transaction id of its own, wait until every older transaction has ended, then call [`Loader::fenced`] with
    /// this name.
    Fence(Uuid),
    /// Read a chunk, hand it over with [`Loader::chunk`], then write the nonce into the stream.
    Read(Read),
    /// Every chunk was emitted: tell the requests once the last chunk's checkpoint is appended.
    Done(Vec<Uuid>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub table: TableName,
    pub range: KeyRange,
    pub rows_max: usize,
    pub nonce: Uuid,
    /// The key that the range speaks of; `None` where it is the whole table under whatever key.
    pub key: Option<RangeKey>,
}

/// A chunk as it was read.
pub struct ChunkRead<V> {
    pub nonce: Uuid,
    pub table: TableName,
    pub snapshot: V,
    /// The version of the rows, built from the catalog in the same transaction.
    pub relation: Fingerprint,
    pub key_columns: Vec<usize>,
    pub key_orders: Vec<KeyOrder>,
    /// The key that it was read by.
    pub key: RangeKey,
    pub rows: Vec<RowBuf>,
    /// What was read of the range asked for.
    pub range: KeyRange,
    /// Some of the range's rows were left out: nobody makes a table of such chunks.
    pub partial: bool,
}

/// A chunk whose place in the stream has come.
#[derive(Debug, PartialEq)]
pub struct Ready {
    pub table: TableName,
    pub relation: Fingerprint,
    pub range: KeyRange,
    pub rows: Vec<RowBuf>,
    pub only: Option<(String, Uuid)>,
    /// `None`: not a first load.
    pub extent: Option<Extent>,
}

struct Remembered {
    xid: u32,
    table: TableName,
    relation: Fingerprint,
    op: Op,
    bytes: usize,
}

struct Running {
    job: Job,
    /// What is still to be read; the first is being read, from its beginning.
    left: VecDeque<(TableName, KeyRange)>,
    /// What is loaded.
    covers: HashMap<TableName, Cover>,
    /// Keys to be read again before the next table.
    again: VecDeque<(TableName, KeyRange)>,
    /// Those of them that nobody was told of yet.
    untold: Vec<(TableName, KeyTexts)>,
    mismatch: Option<Fingerprint>,
    keys: HashMap<TableName, RangeKey>,
    fenced: bool,
    /// Name of the fence or chunk that was asked for. An answer under another name is late and means nothing: taking it would
    /// put two questions on their way, and a chunk in the place of another.
    asked: Option<Uuid>,
    /// The table of the last row that was emitted.
    rows_of: Option<TableName>,
}

/// The loader of one incarnation of the reader.
pub struct Loader<V> {
    chunk_rows_max: usize,
    chunk_bytes_max: usize,
    rows_max: usize,
    running: Option<Running>,
    remembered: Vec<Remembered>,
    remembered_bytes: usize,
    pending: Option<ChunkRead<V>>,
}

impl<V: Visibility> Loader<V> {
    pub fn new(chunk_rows_max: usize, chunk_bytes_max: usize) -> Loader<V> {
        Loader {
            chunk_rows_max,
            chunk_bytes_max,
            rows_max: chunk_rows_max.clamp(CHUNK_ROWS_MIN, 1000),
            running: None,
            remembered: Vec::new(),
            remembered_bytes: 0,
            pending: None,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// The table being read, for status.
    pub fn table(&self) -> Option<&TableName> {
        self.running.as_ref().and_then(|running| running.left.front()).map(|(table, _)| table)
    }

    /// Keys that turned out to be in need of a second reading since this was asked last: rows that the sinks left out.
    pub fn left_out(&mut self) -> Vec<(TableName, KeyTexts)> {
        self.running.as_mut().map_or_else(Vec::new, |running| std::mem::take(&mut running.untold))
    }

    /// Begins a job; remembering starts here, so the fence that follows covers everything streamed before.
    pub fn start(&mut self, job: Job) {
        assert!(self.running.is_none() && self.remembered.is_empty(), "one job at a time");
        let left = job.tables.iter().flat_map(|table| {
            let ranges = job.resumed.get(table).map_or_else(|| vec![KeyRange::ALL], |resumed| resumed.cover.left());
            ranges.into_iter().map(|range| (table.clone(), range))
        });
        let resumed = job.resumed.iter();
        self.running = Some(Running {
            left: left.collect(),
            covers: resumed.clone().map(|(table, resumed)| (table.clone(), resumed.cover.clone())).collect(),
            again: VecDeque::new(),
            untold: Vec::new(),
            mismatch: None,
            keys: resumed.map(|(table, resumed)| (table.clone(), resumed.key.clone())).collect(),
            fenced: false,
            asked: None,
            rows_of: None,
            job,
        });
    }

    /// What was read of the table is of another one, or under another key: it is read from its beginning, and the rest of the
    /// job goes on. `requests`, by their sinks, were made for this; those of sinks that the job is for are answered by it.
    pub fn begin_anew(&mut self, table: &TableName, requests: &[(String, Uuid)]) {
        let Some(running) = self.running.as_mut().filter(|running| running.job.tables.contains(table)) else { return };
        let place = running.left.iter().position(|(name, _)| name == table).unwrap_or(0);
        let is_other = |(name, _): &(TableName, KeyRange)| name != table;
        running.left.retain(is_other);
        running.again.retain(is_other);
        running.left.insert(place, (table.clone(), KeyRange::ALL));
        running.covers.remove(table);
        running.keys.remove(table);
        running.mismatch = None;
        running.untold.retain(|(name, _)| name != table);
        running.job.answer(table, requests);
        if place == 0 && running.fenced {
            // What was asked for is for nothing any more; its answer is late.
            self.pending = None;
            running.asked = None;
        }
    }

    /// Whether some of the table was read: under which key is known.
    pub fn has_begun(&self, table: &TableName) -> bool {
        self.running.as_ref().is_some_and(|running| running.keys.contains_key(table))
    }

    /// A table is gone: the rest of the job goes on without it.
    pub fn let_go(&mut self, table: &TableName) {
        let Some(running) = &mut self.running else { return };
        let is_other = |(name, _): &(TableName, KeyRange)| name != table;
        let is_read = running.left.front().is_some_and(|first| !is_other(first));
        running.job.tables.retain(|name| name != table);
        running.left.retain(is_other);
        running.again.retain(is_other);
        running.covers.remove(table);
        running.untold.retain(|(name, _)| name != table);
        self.remembered.retain(|r| r.table != *table);
        self.remembered_bytes = self.remembered.iter().map(|r| r.bytes).sum();
        if is_read {
            if let Some(again) = running.again.pop_front() {
                running.left.push_front(again);
            }
            if running.fenced || running.left.is_empty() {
                // What was asked for is for nothing any more; its answer is late.
                self.pending = None;
                running.asked = None;
            }
        }
    }

    /// Tables of the job.
    pub fn tables(&self) -> &[TableName] {
        self.running.as_ref().map_or(&[], |running| &running.job.tables)
    }

    /// Whether changes of the table must be given to [`Loader::remember`].
    pub fn remembers(&self, table: &TableName) -> bool {
        self.running.as_ref().is_some_and(|running| running.job.tables.contains(table))
    }

    /// A change streamed while the job runs. `key`: the columns in key order.
    pub fn remember(
        &mut self,
        xid: u32,
        table: &TableName,
        relation: Fingerprint,
        key: &[(usize, KeyOrder)],
        op: Op,
    ) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if let Op::Rekey { old, new } = &op {
            running.read_again(table, key, old, new)?;
        }
        if self.pending.as_ref().is_some_and(|chunk| chunk.snapshot.sees(xid)) {
            // Where the stream lags far behind, most of it is.
            return Ok(());
        }
        let bytes = match &op {
            Op::Insert(row) | Op::Update(row) | Op::Delete(row) => row.bytes(),
            Op::Rekey { old, new } => old.bytes() + new.bytes(),
            Op::Truncate => 0,
        } + size_of::<Remembered>();
        self.remembered_bytes += bytes;
        self.remembered.push(Remembered { xid, table: table.clone(), relation, op, bytes });
        if self.remembered_bytes > REMEMBERED_BYTES_MAX {
            self.forget();
        }
        Ok(())
    }

    /// Too much to remember: read the chunk again, smaller, behind a new fence.
    fn forget(&mut self) {
        self.remembered.clear();
        self.remembered_bytes = 0;
        self.pending = None;
        if let Some(running) = &mut self.running {
            if running.fenced {
                self.rows_max = (self.rows_max / 2).max(CHUNK_ROWS_MIN);
            }
            running.fenced = false;
            running.asked = None;
        }
    }

    /// A snapshot was taken: every later one sees what it sees, so only the rest is remembered.
    pub fn saw(&mut self, snapshot: &V) {
        self.remembered.retain(|r| !snapshot.sees(r.xid));
        self.remembered_bytes = self.remembered.iter().map(|r| r.bytes).sum();
    }

    /// What the driver is to do now, if anything. `nonce` names the chunk that is asked for; nobody else can guess it.
    pub fn next_action(&mut self, nonce: Uuid) -> Option<Action> {
        let running = self.running.as_mut()?;
        if running.asked.is_some() {
            return None;
        }
        if running.left.is_empty() {
            let running = self.running.take()?;
            self.remembered.clear();
            self.remembered_bytes = 0;
            return Some(Action::Done(running.job.requests));
        }
        running.asked = Some(nonce);
        if !running.fenced {
            return Some(Action::Fence(nonce));
        }
        let (table, range) = running.left[0].clone();
        let key = running.keys.get(&table).cloned();
        Some(Action::Read(Read { table, range, rows_max: self.rows_max, nonce, key }))
    }

    /// Every transaction older than the driver's own, taken after the question, has ended.
    pub fn fenced(&mut self, asked: Uuid) {
        if let Some(running) = self.running.as_mut().filter(|running| running.asked == Some(asked)) {
            running.fenced = true;
            running.asked = None;
        }
    }

    /// The read failed in a way that heals: ask again.
    pub fn failed(&mut self, asked: Uuid) {
        if let Some(running) = self.running.as_mut().filter(|running| running.asked == Some(asked)) {
            self.pending = None;
            running.asked = None;
        }
    }

    /// A chunk was read; its message is still to come in the stream.
    pub fn chunk(&mut self, chunk: ChunkRead<V>) {
        if self.running.as_ref().is_some_and(|running| running.asked == Some(chunk.nonce)) {
            self.saw(&chunk.snapshot);
            self.pending = Some(chunk);
        }
    }

    /// The stream reached the message with this nonce, between two transactions. `streamed` is the version that the stream
    /// knows of the chunk's table.
    pub fn mark(&mut self, nonce: Uuid, streamed: impl Fn(&TableName) -> Option<Fingerprint>) -> Result<Option<Ready>> {
        if self.pending.as_ref().is_none_or(|chunk| chunk.nonce != nonce) {
            return Ok(None);
        }
        let (Some(chunk), Some(running)) = (self.pending.take(), self.running.as_mut()) else { return Ok(None) };
        running.asked = None;
        let table = running.left[0].0.clone();
        assert_eq!(table, chunk.table, "a chunk is of the table that was asked for");
        if let Some(known) = streamed(&table)
            && known != chunk.relation
            && running.mismatch != Some(chunk.relation)
        {
            // Either the stream has yet to reach the change of the table, or the chunk was read before it: a second read
            // tells. The stream names a new version only with its next row, so a second mismatch is the first case.
            running.mismatch = Some(chunk.relation);
            return Ok(None);
        }
        let remembered: Vec<&Remembered> =
            self.remembered.iter().filter(|r| r.table == table && !chunk.snapshot.sees(r.xid)).collect();
        let same_version = remembered.iter().all(|r| r.relation == chunk.relation);
        let Some(rows) = (if same_version {
            let place = Place { range: &chunk.range, key: &chunk.key_columns, orders: &chunk.key_orders };
            overlay(chunk.rows, &remembered, place, chunk.partial)?
        } else {
            None
        }) else {
            return Ok(None);
        };
        running.mismatch = None;
        let before = running.rows_of.clone();
        if !rows.is_empty() {
            running.rows_of = Some(table.clone());
        }
        running.emitted(&table, &chunk.range, chunk.key)?;
        running.advance(&chunk.range);
        let extent = running.job.initial.then(|| Extent {
            first: before.is_none(),
            first_of_table: before.as_ref() != Some(&table),
            last_of_table: running.left.front().is_none_or(|(next, _)| *next != table),
            last: running.left.is_empty(),
        });
        self.saw(&chunk.snapshot);
        self.adapt(&rows);
        let only = self.running.as_ref().and_then(|running| running.job.answers(&table));
        Ok(Some(Ready { table, relation: chunk.relation, range: chunk.range, rows, only, extent }))
    }

    /// Aims the next chunk at the byte limit.
    fn adapt(&mut self, rows: &[RowBuf]) {
        if rows.is_empty() {
            return;
        }
        let average = (rows.iter().map(RowBuf::bytes).sum::<usize>() / rows.len()).max(1);
        let aimed = self.chunk_bytes_max / average;
        // Grows at most fourfold: the next rows may be wider than these.
        self.rows_max = aimed.min(self.rows_max * 4).clamp(CHUNK_ROWS_MIN, self.chunk_rows_max.max(CHUNK_ROWS_MIN));
    }
}

impl Running {
    /// The first range was read as far as `read` says.
    fn advance(&mut self, read: &KeyRange) {
        let (table, asked) = self.left.pop_front().expect("a range was asked for");
        if read.through != asked.through {
            self.left.push_front((table, KeyRange { after: read.through.clone(), through: asked.through }));
            if self.again.len() < AGAIN_KEYS_MAX {
                return;
            }
        }
        if let Some(again) = self.again.pop_front() {
            self.left.push_front(again);
        }
    }

    /// The table's chunk entered the stream: what lies in its range is loaded, under its key.
    fn emitted(&mut self, table: &TableName, range: &KeyRange, key: RangeKey) -> Result<()> {
        let cover = self.covers.entry(table.clone()).or_default();
        let orders: Vec<KeyOrder> = key.iter().map(|(_, order)| *order).collect();
        cover.emitted(&orders, range).map_err(not_of_type)?;
        let still = |again: &KeyRange| again.key().is_none_or(|key| cover.again.contains(key));
        self.again.retain(|(name, again)| name != table || still(again));
        // The first is the one that was read.
        let mut first = true;
        self.left.retain(|(name, left)| std::mem::take(&mut first) || name != table || still(left));
        self.keys.insert(table.clone(), key);
        Ok(())
    }

    /// A row moved to a key that is loaded and can't be there: it is read again.
    fn read_again(&mut self, table: &TableName, key: &[(usize, KeyOrder)], old: &RowBuf, new: &RowBuf) -> Result<()> {
        let Some(cover) = self.covers.get_mut(table) else { return Ok(()) };
        let (columns, orders): (Vec<usize>, Vec<KeyOrder>) = key.iter().copied().unzip();
        let (from, to) = (key_strings(old, &columns)?, key_strings(new, &columns)?);
        if cover.moved(&orders, &from, &to, new.row().has_absent()).map_err(not_of_type)? {
            self.again.push_back((table.clone(), KeyRange::of_key(to.clone())));
            self.untold.push((table.clone(), to));
        }
        Ok(())
    }
}

impl Job {
    /// Requests that a table's rows answer from now on too.
    fn answer(&mut self, table: &TableName, requests: &[(String, Uuid)]) {
        for (sink, id) in requests {
            match &mut self.only {
                Some((only, _)) if only != sink => continue,
                Some((_, ids)) => drop(ids.insert(table.clone(), *id)),
                None => {}
            }
            if !self.requests.contains(id) {
                self.requests.push(*id);
            }
        }
    }
}

fn not_of_type(error: KeyError) -> Error {
    Error::halt(Code::SourceProtocol, format!("a key's text is not of its type: {error}"), "lockstep check")
}

fn key_strings(row: &RowBuf, key_columns: &[usize]) -> Result<KeyTexts> {
    let texts = key_texts(row, key_columns)?.into_iter().map(String::from_utf8);
    texts.collect::<std::result::Result<_, _>>().map_err(|_| key_incomplete())
}

fn key_texts(row: &RowBuf, key_columns: &[usize]) -> Result<Vec<Vec<u8>>> {
    let text = |&column: &usize| row.row().get(column).text().map(<[u8]>::to_vec);
    key_columns.iter().map(text).collect::<Option<_>>().ok_or_else(key_incomplete)
}

fn contains(range: &KeyRange, orders: &[KeyOrder], key: &[Vec<u8>]) -> Result<bool> {
    range.contains(orders, key).map_err(not_of_type)
}

fn key_incomplete() -> Error {
    let message = "the source sent a row without its whole key";
    Error::halt(Code::SourceProtocol, message, "check the table's replica identity: lockstep check")
}

/// A range and what its borders speak of.
#[derive(Clone, Copy)]
struct Place<'a> {
    range: &'a KeyRange,
    key: &'a [usize],
    orders: &'a [KeyOrder],
}

/// The chunk with every change laid over it that its snapshot did not see. `None`: a column has no base here, read again.
///
/// Where the chunk is partial, a row that is not in it was left out: its changes stand in the stream by themselves.
fn overlay(
    rows: Vec<RowBuf>,
    changes: &[&Remembered],
    Place { range, key: key_columns, orders }: Place<'_>,
    partial: bool,
) -> Result<Option<Vec<RowBuf>>> {
    if changes.is_empty() {
        return Ok(Some(rows));
    }
    if key_columns.is_empty() {
        return Ok(overlay_keyless(rows, changes, partial));
    }
    let key = |row: &RowBuf| Key::of(row.row(), key_columns).ok_or_else(key_incomplete);
    let inside = |row: &RowBuf| contains(range, orders, &key_texts(row, key_columns)?);
    let mut held: HashMap<Key, RowBuf> = HashMap::with_capacity(rows.len());
    for row in rows {
        held.insert(key(&row)?, row);
    }
    for change in changes {
        match &change.op {
            Op::Insert(new) => {
                if inside(new)? {
                    if new.row().has_absent() {
                        return Ok(None);
                    }
                    held.insert(key(new)?, new.clone());
                }
            }
            Op::Update(new) => {
                if inside(new)? {
                    match held.get_mut(&key(new)?) {
                        Some(row) => *row = row.merged(new.row()),
                        None if partial => {}
                        None => return Ok(None),
                    }
                }
            }
            Op::Delete(old) => {
                held.remove(&key(old)?);
            }
            Op::Rekey { old, new } => {
                let base = held.remove(&key(old)?);
                if inside(new)? {
                    let row = match base {
                        Some(base) => base.merged(new.row()),
                        None if partial => continue,
                        None if new.row().has_absent() => return Ok(None),
                        None => new.clone(),
                    };
                    held.insert(key(new)?, row);
                }
            }
            Op::Truncate => held.clear(),
        }
    }
    Ok(Some(held.into_values().collect()))
}

/// The same for a table without a key, where a change names its row by all that the row held. Every row that such a change
/// touched is in the snapshot as it was before: whoever changed it before was seen, or is among the changes.
fn overlay_keyless(rows: Vec<RowBuf>, changes: &[&Remembered], partial: bool) -> Option<Vec<RowBuf>> {
    let image = |row: &RowBuf| Key::whole(row.row(), &(0..row.row().len()).collect::<Vec<_>>());
    let mut held: HashMap<Key, Vec<RowBuf>> = HashMap::with_capacity(rows.len());
    for row in rows {
        held.entry(image(&row)?).or_default().push(row);
    }
    for change in changes {
        if let Op::Delete(old) | Op::Rekey { old, .. } = &change.op {
            let was_held = held.get_mut(&image(old)?).and_then(Vec::pop).is_some();
            match (was_held, partial) {
                (true, _) => {}
                (false, true) => continue,
                (false, false) => return None,
            }
        }
        match &change.op {
            Op::Insert(new) | Op::Rekey { new, .. } => held.entry(image(new)?).or_default().push(new.clone()),
            Op::Truncate => held.clear(),
            Op::Delete(_) => {}
            Op::Update(_) => return None,
        }
    }
    Some(held.into_values().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use crate::key::ranges::RangeSet;
    use crate::value::Cell;

    /// A snapshot that sees the transactions below a number.
    struct Below(u32);

    impl Visibility for Below {
        fn sees(&self, xid: u32) -> bool {
            xid < self.0
        }
    }

    const VERSION: Fingerprint = Fingerprint(1);
    const ALL_KEYLESS: Place<'_> = Place { range: &KeyRange::ALL, key: &[], orders: &[] };

    fn table() -> TableName {
        TableName::new("public", "t")
    }

    fn row(cells: &[&str]) -> RowBuf {
        cells.iter().map(|text| if *text == "~" { Cell::Absent } else { Cell::Text(text.as_bytes()) }).collect()
    }

    fn loader() -> Loader<Below> {
        let mut loader = Loader::new(1000, 1 << 20);
        loader.start(job(&[]));
        fence(&mut loader);
        loader
    }

    fn job(loaded: &[KeyRange]) -> Job {
        let cover = Cover {
            ranges: RangeSet::of(&[KeyOrder::Integer], loaded.iter().cloned()).unwrap(),
            again: BTreeSet::new(),
        };
        let resumed = HashMap::from([(table(), Resumed { key: id(), cover })]);
        let resumed = if loaded.is_empty() { HashMap::new() } else { resumed };
        Job { requests: vec![Uuid::nil()], only: None, tables: vec![table()], initial: true, resumed }
    }

    fn id() -> RangeKey {
        vec![("id".to_owned(), KeyOrder::Integer)]
    }

    fn range(after: Option<&str>, through: Option<&str>) -> KeyRange {
        KeyRange { after: after.map(|key| vec![key.to_owned()]), through: through.map(|key| vec![key.to_owned()]) }
    }

    fn fence(loader: &mut Loader<Below>) {
        let name = Uuid::new_v4();
        assert_eq!(loader.next_action(name), Some(Action::Fence(name)));
        assert_eq!(loader.next_action(Uuid::new_v4()), None);
        loader.fenced(name);
    }

    fn read(loader: &mut Loader<Below>) -> Read {
        match loader.next_action(Uuid::new_v4()) {
            Some(Action::Read(read)) => read,
            other => panic!("expected a read, got {other:?}"),
        }
    }

    fn answer(loader: &mut Loader<Below>, sees_below: u32, rows: &[RowBuf], through: Option<&str>) -> Option<Ready> {
        answer_as(loader, sees_below, rows, through, VERSION)
    }

    fn answer_as(
        loader: &mut Loader<Below>,
        below: u32,
        rows: &[RowBuf],
        through: Option<&str>,
        relation: Fingerprint,
    ) -> Option<Ready> {
        let read = read(loader);
        let through = through.map(|t| vec![t.to_owned()]).or(read.range.through.clone());
        let range = KeyRange { after: read.range.after.clone(), through };
        loader.chunk(ChunkRead { relation, range, ..chunk(&read, below, rows) });
        loader.mark(read.nonce, |_| Some(VERSION)).unwrap()
    }

    /// All that was asked for.
    fn chunk(read: &Read, below: u32, rows: &[RowBuf]) -> ChunkRead<Below> {
        ChunkRead {
            nonce: read.nonce,
            table: read.table.clone(),
            snapshot: Below(below),
            relation: VERSION,
            key_columns: vec![0],
            key_orders: vec![KeyOrder::Integer],
            key: id(),
            rows: rows.to_vec(),
            range: read.range.clone(),
            partial: false,
        }
    }

    fn remember(loader: &mut Loader<Below>, xid: u32, op: Op) {
        loader.remember(xid, &table(), VERSION, &[(0, KeyOrder::Integer)], op).unwrap();
    }

    fn sorted(ready: Option<Ready>) -> Vec<String> {
        let text = |row: &RowBuf| {
            row.row()
                .iter()
                .map(|c| String::from_utf8_lossy(c.text().unwrap_or(b"~")).into_owned())
                .collect::<Vec<_>>()
                .join(",")
        };
        let mut rows: Vec<String> = ready.expect("the chunk is ready").rows.iter().map(text).collect();
        rows.sort();
        rows
    }

    #[test]
    fn changes_that_the_snapshot_did_not_see_are_laid_over_it_and_those_it_saw_are_not() {
        let mut loader = loader();
        remember(&mut loader, 10, Op::Update(row(&["1", "seen already", "x"])));
        remember(&mut loader, 20, Op::Update(row(&["1", "new", "~"])));
        remember(&mut loader, 21, Op::Insert(row(&["4", "in", "big"])));
        remember(&mut loader, 22, Op::Delete(row(&["2", "~", "~"])));
        remember(&mut loader, 23, Op::Rekey { old: row(&["3", "~", "~"]), new: row(&["5", "moved", "~"]) });
        let rows = [row(&["1", "old", "big1"]), row(&["2", "gone", "big2"]), row(&["3", "old", "big3"])];
        let ready = answer(&mut loader, 15, &rows, None);
        assert_eq!(sorted(ready), ["1,new,big1", "4,in,big", "5,moved,big3"]);
        assert_eq!(loader.next_action(Uuid::new_v4()), Some(Action::Done(vec![Uuid::nil()])));
        assert!(loader.is_idle());
    }

    #[test]
    fn rows_without_a_key_are_told_apart_by_all_they_hold() {
        let rows = ["a", "a", "b", "c"].map(|text| row(&["1", text]));
        let change = |op| Remembered { xid: 20, table: table(), relation: VERSION, op, bytes: 0 };
        let changes = [
            change(Op::Delete(row(&["1", "a"]))),
            change(Op::Rekey { old: row(&["1", "b"]), new: row(&["1", "a"]) }),
            change(Op::Insert(row(&["2", "c"]))),
        ];
        let held = |changes: &[&Remembered]| {
            let rows = overlay(rows.to_vec(), changes, ALL_KEYLESS, false).unwrap();
            sorted(rows.map(|rows| Ready {
                table: table(),
                relation: VERSION,
                range: KeyRange::ALL,
                rows,
                only: None,
                extent: None,
            }))
        };
        let changes: Vec<&Remembered> = changes.iter().collect();
        assert_eq!(held(&changes), ["1,a", "1,a", "1,c", "2,c"]);
        let truncate = change(Op::Truncate);
        assert_eq!(held(&[&truncate, changes[2]]), ["2,c"]);
        // A row that is not there: the chunk is read again.
        let gone = change(Op::Delete(row(&["9", "a"])));
        assert_eq!(overlay(rows.to_vec(), &[&gone], ALL_KEYLESS, false).unwrap(), None);
    }

    #[test]
    fn a_change_stays_remembered_until_a_snapshot_sees_it() {
        let mut loader = loader();
        remember(&mut loader, 20, Op::Insert(row(&["9", "late", "x"])));
        assert_eq!(sorted(answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5"))), ["1,a,b"]);
        assert_eq!(sorted(answer(&mut loader, 15, &[], None)), ["9,late,x"]);
    }

    #[test]
    fn an_absent_column_without_a_base_is_read_again() {
        let mut loader = loader();
        remember(&mut loader, 20, Op::Rekey { old: row(&["90", "~", "~"]), new: row(&["3", "moved", "~"]) });
        assert_eq!(answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")), None);
        assert_eq!(sorted(answer(&mut loader, 30, &[row(&["3", "moved", "big"])], Some("5"))), ["3,moved,big"]);
    }

    fn moved(loader: &mut Loader<Below>, xid: u32, from: &str, to: &str, big: &str) -> Vec<String> {
        remember(loader, xid, Op::Rekey { old: row(&[from, "~", "~"]), new: row(&[to, "moved", big]) });
        loader.left_out().into_iter().map(|(_, key)| key.concat()).collect()
    }

    /// The single key that is read next, and its row.
    fn answer_key(loader: &mut Loader<Below>, sees_below: u32, after: &str) -> String {
        let read = read(loader);
        let key = read.range.key().expect("a single key").concat();
        let range = range(Some(after), Some(&key));
        let chunk = ChunkRead { range: range.clone(), ..chunk(&read, sees_below, &[row(&[&key, "moved", "big"])]) };
        loader.chunk(chunk);
        let ready = loader.mark(read.nonce, |_| Some(VERSION)).unwrap().unwrap();
        assert_eq!(ready.range, range);
        key
    }

    #[test]
    fn a_row_that_moves_into_a_loaded_range_with_a_column_missing_is_read_again_alone() {
        let mut loader = loader();
        answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
        assert_eq!(moved(&mut loader, 20, "7", "3", "~"), ["3"]);
        assert_eq!(moved(&mut loader, 21, "8", "9", "~"), [""; 0], "its range is still to be read");
        answer(&mut loader, 30, &[], None).unwrap();
        assert_eq!(answer_key(&mut loader, 30, "1"), "3");
        assert!(matches!(loader.next_action(Uuid::new_v4()), Some(Action::Done(_))));
    }

    #[test]
    fn a_row_that_was_left_out_and_moves_on_is_read_again_at_its_new_key_too() {
        let mut loader = loader();
        answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
        answer(&mut loader, 15, &[row(&["6", "a", "b"])], Some("8")).unwrap();
        assert_eq!(moved(&mut loader, 20, "9", "3", "~"), ["3"]);
        assert_eq!(moved(&mut loader, 21, "3", "7", "big"), ["7"]);
        answer(&mut loader, 30, &[], None).unwrap();
        assert_eq!((answer_key(&mut loader, 30, "1"), answer_key(&mut loader, 30, "6")), ("3".into(), "7".into()));
        assert_eq!(moved(&mut loader, 40, "3", "2", "~"), [""; 0], "by now the sinks have it");
        assert!(matches!(loader.next_action(Uuid::new_v4()), Some(Action::Done(_))));
    }

    #[test]
    fn a_key_to_be_read_again_that_its_range_brings_is_not_read_by_itself() {
        let mut loader: Loader<Below> = Loader::new(1000, 1 << 20);
        let mut job = job(&[range(None, Some("5"))]);
        // In the order of their texts, so the lower one comes second.
        let again = BTreeSet::from([vec!["10".to_owned()], vec!["9".to_owned()]]);
        job.resumed.get_mut(&table()).unwrap().cover = Cover { ranges: vec![KeyRange::ALL].into(), again };
        loader.start(job);
        fence(&mut loader);
        assert_eq!(answer_key(&mut loader, 30, "7"), "10");
        assert!(matches!(loader.next_action(Uuid::new_v4()), Some(Action::Done(_))));
    }

    #[test]
    fn a_load_goes_on_in_what_is_missing_and_still_knows_what_is_loaded() {
        let mut loader: Loader<Below> = Loader::new(1000, 1 << 20);
        loader.start(job(&[range(None, Some("5")), range(Some("9"), None), range(Some("5"), Some("7"))]));
        fence(&mut loader);
        // A row that nobody has moves into a range that an earlier incarnation loaded.
        assert_eq!(moved(&mut loader, 20, "8", "3", "~"), ["3"]);
        let asked = read(&mut loader);
        assert_eq!((asked.range, asked.key), (range(Some("7"), Some("9")), Some(id())));
        loader.forget();
        fence(&mut loader);
        answer(&mut loader, 30, &[], None).unwrap();
        assert_eq!(answer_key(&mut loader, 30, "1"), "3");
        assert!(matches!(loader.next_action(Uuid::new_v4()), Some(Action::Done(_))));
    }

    #[test]
    fn a_table_that_changed_begins_anew_and_the_others_of_its_job_go_on() {
        let mut loader: Loader<Below> = Loader::new(1000, 1 << 20);
        let other = TableName::new("public", "u");
        let ids = HashMap::from([(table(), Uuid::nil()), (other.clone(), Uuid::nil())]);
        let only = Some(("x".to_owned(), ids));
        loader.start(Job { tables: vec![table(), other.clone()], only, ..job(&[]) });
        fence(&mut loader);
        answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
        let late = read(&mut loader);
        let asked_since = Uuid::from_u128(7);
        loader.begin_anew(&table(), &[("y".to_owned(), Uuid::from_u128(8)), ("x".to_owned(), asked_since)]);
        loader.chunk(chunk(&late, 15, &[]));
        assert_eq!(loader.mark(late.nonce, |_| None).unwrap(), None, "it was read before");
        assert_eq!(moved(&mut loader, 20, "8", "3", "~"), [""; 0], "nothing of it is loaded any more");
        let ready = answer(&mut loader, 30, &[], None).unwrap();
        assert_eq!((ready.range, ready.only), (KeyRange::ALL, Some(("x".to_owned(), asked_since))));
        // Once the other one is being read too.
        let asked = read(&mut loader);
        assert_eq!((&asked.table, &asked.range), (&other, &KeyRange::ALL));
        let part = range(None, Some("5"));
        loader.chunk(ChunkRead { range: part.clone(), ..chunk(&asked, 30, &[]) });
        let ready = loader.mark(asked.nonce, |_| Some(VERSION)).unwrap().unwrap();
        assert_eq!(ready.only, Some(("x".to_owned(), Uuid::nil())));
        loader.begin_anew(&table(), &[]);
        answer(&mut loader, 30, &[], None).unwrap();
        let asked = read(&mut loader);
        assert_eq!((&asked.table, asked.range), (&other, range(Some("5"), None)), "it goes on where it was");
        loader.let_go(&other);
        let done = vec![Uuid::nil(), asked_since];
        assert_eq!(
            loader.next_action(Uuid::new_v4()),
            Some(Action::Done(done)),
            "a request of another sink is not answered"
        );
    }

    #[test]
    fn nothing_is_read_of_a_table_that_is_loaded_whole() {
        let mut loader: Loader<Below> = Loader::new(1000, 1 << 20);
        loader.start(job(&[range(None, Some("5")), range(Some("5"), None)]));
        assert_eq!(loader.next_action(Uuid::new_v4()), Some(Action::Done(vec![Uuid::nil()])));
    }

    #[test]
    fn a_late_answer_means_nothing() {
        let mut loader = loader();
        let first = read(&mut loader);
        loader.failed(first.nonce);
        let second = read(&mut loader);
        loader.failed(first.nonce);
        loader.fenced(first.nonce);
        assert_eq!(loader.next_action(Uuid::new_v4()), None, "the second read is still on its way");
        assert_eq!(loader.mark(first.nonce, |_| None).unwrap(), None);
        loader.failed(second.nonce);
        assert_eq!(read(&mut loader).range, second.range);
    }

    #[test]
    fn another_version_of_the_table_is_read_again_once() {
        let mut loader = loader();
        let newer = Fingerprint(2);
        assert_eq!(answer_as(&mut loader, 15, &[], None, newer), None);
        assert_eq!(answer_as(&mut loader, 15, &[], None, newer).unwrap().relation, newer);
        let mut loader = self::loader();
        remember(&mut loader, 20, Op::Insert(row(&["9", "old shape"])));
        assert_eq!(answer_as(&mut loader, 15, &[], None, newer), None);
        assert_eq!(answer_as(&mut loader, 15, &[], None, newer), None, "a change of the old shape is not visible yet");
        assert!(answer_as(&mut loader, 21, &[], None, newer).is_some());
    }

    #[test]
    fn a_range_is_of_the_key_that_its_table_was_read_by() {
        let mut loader = loader();
        assert_eq!(read(&mut loader).key, None);
        let mut loader = self::loader();
        answer(&mut loader, 15, &[row(&["1", "a", "b"])], Some("5")).unwrap();
        assert_eq!(read(&mut loader).key, Some(id()));
        assert!(loader.has_begun(&table()));
        loader.begin_anew(&table(), &[]);
        assert!(!loader.has_begun(&table()));
        assert_eq!(read(&mut loader).key, None, "whatever key it has now");
    }

    #[test]
    fn what_the_chunk_shows_already_is_not_remembered_however_far_the_stream_lags() {
        let mut loader = loader();
        let big = "x".repeat(1 << 20);
        let read = read(&mut loader);
        loader.chunk(chunk(&read, 15, &[row(&["1", "shown"])]));
        for _ in 0..=REMEMBERED_BYTES_MAX >> 20 {
            remember(&mut loader, 10, Op::Update(row(&["1", &big])));
        }
        remember(&mut loader, 20, Op::Update(row(&["1", "newer"])));
        assert_eq!(sorted(loader.mark(read.nonce, |_| Some(VERSION)).unwrap()), ["1,newer"]);
    }

    #[test]
    fn a_table_that_is_gone_leaves_the_job_and_the_rest_goes_on() {
        let (mut loader, other) = (Loader::new(1000, 1 << 20), TableName::new("public", "u"));
        let two = Job { tables: vec![table(), other.clone()], ..job(&[]) };
        loader.start(two);
        fence(&mut loader);
        let first = read(&mut loader);
        remember(&mut loader, 20, Op::Insert(row(&["1", "x"])));
        loader.let_go(&table());
        assert!(!loader.remembers(&table()) && loader.remembers(&other));
        assert_eq!(loader.mark(first.nonce, |_| None).unwrap(), None, "its chunk is late");
        assert_eq!(read(&mut loader).table, other);
        loader.let_go(&other);
        assert_eq!(loader.next_action(Uuid::new_v4()), Some(Action::Done(vec![Uuid::nil()])));
    }

    #[test]
    fn a_table_that_is_gone_before_the_fence_leaves_it_standing() {
        let (mut loader, other) = (Loader::<Below>::new(1000, 1 << 20), TableName::new("public", "u"));
        loader.start(Job { tables: vec![table(), other.clone()], ..job(&[]) });
        let name = Uuid::new_v4();
        assert_eq!(loader.next_action(name), Some(Action::Fence(name)));
        loader.let_go(&table());
        assert_eq!(loader.next_action(Uuid::new_v4()), None, "it is still asked for");
        loader.let_go(&other);
        assert_eq!(loader.next_action(Uuid::new_v4()), Some(Action::Done(vec![Uuid::nil()])), "for nobody");
    }

    #[test]
    fn too_much_to_remember_means_a_new_fence_and_a_smaller_chunk() {
        let mut loader = loader();
        let first = read(&mut loader);
        let big = "x".repeat(REMEMBERED_BYTES_MAX / 2 + 1);
        for i in 0..2 {
            remember(&mut loader, 20 + i, Op::Insert(row(&["1", &big, ""])));
        }
        assert_eq!(loader.mark(first.nonce, |_| None).unwrap(), None);
        let name = Uuid::new_v4();
        assert_eq!(loader.next_action(name), Some(Action::Fence(name)));
        loader.fenced(name);
        assert!(read(&mut loader).rows_max < first.rows_max);
    }

    fn partial(key: &[usize], rows: &[RowBuf], ops: Vec<Op>) -> Option<Vec<String>> {
        let op = |op| Remembered { xid: 9, table: table(), relation: VERSION, op, bytes: 0 };
        let remembered: Vec<Remembered> = ops.into_iter().map(op).collect();
        let place = Place { range: &KeyRange::ALL, key, orders: &[KeyOrder::Integer][..key.len()] };
        let rows = overlay(rows.to_vec(), &remembered.iter().collect::<Vec<_>>(), place, true).unwrap()?;
        let text = |cell: Cell<'_>| String::from_utf8_lossy(cell.text().unwrap_or(b"~")).into_owned();
        let mut rows: Vec<String> =
            rows.iter().map(|row| row.row().iter().map(text).collect::<Vec<_>>().join(",")).collect();
        rows.sort_unstable();
        Some(rows)
    }

    #[test]
    fn changes_of_rows_that_were_left_out_stand_in_the_stream_alone() {
        let ops = || {
            vec![
                Op::Update(row(&["2", "left out"])),
                Op::Update(row(&["1", "b"])),
                Op::Delete(row(&["3", "~"])),
                Op::Rekey { old: row(&["4", "~"]), new: row(&["5", "~"]) },
                Op::Insert(row(&["6", "new"])),
            ]
        };
        assert_eq!(partial(&[0], &[row(&["1", "a"])], ops()).unwrap(), ["1,b", "6,new"]);
        let whole = vec![
            Op::Delete(row(&["3", "c"])),
            Op::Rekey { old: row(&["4", "d"]), new: row(&["4", "e"]) },
            Op::Rekey { old: row(&["1", "a"]), new: row(&["1", "b"]) },
        ];
        assert_eq!(partial(&[], &[row(&["1", "a"])], whole).unwrap(), ["1,b"]);
    }
}

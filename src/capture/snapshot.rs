//! Loading existing rows while the stream goes on: the visibility cut (docs/design.md section 4), decided without IO.
//!
//! A commit reaches the stream before it is visible to new snapshots, so a chunk read at "the same place" can be older than
//! the stream. Therefore every change of the tables under load is remembered from **before** a snapshot S is taken, and laid
//! over the chunk wherever its transaction is not visible in S. Transactions streamed before remembering began are excluded
//! by a fence: after it began, the driver takes a transaction id X of its own, and no S with `xmin(S) <= X` is used.
//!
//! One job at a time, tables parents first, ranges in rising order. Several chunks are read at once and ahead of the stream;
//! each may enter it at the logical message that was written after its read or anywhere later, and enters behind all that
//! come before it: whoever follows the chunks sees the order of a load that reads one after the other. So a change is
//! remembered until the snapshots of all chunks that are held show it, those that are being read surely will, and every later
//! one will too ([`Loader::saw`]).
//!
//! What a later position of the stream would make wrong (another relation version, an absent column without a base, too much
//! to remember) makes the loader read the chunk again, never guess; chunks behind it stay as they are.
//!
//! A new incarnation reads what the ledger does not say is loaded, and single keys that it says are to be read a second time:
//! who sees why tells of each ([`Loader::left_out`]). A table that changed without a trace begins anew by itself
//! ([`Loader::begin_anew`]); the others of its job go on.

mod overlay;
mod pieces;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use uuid::Uuid;

use crate::capture::pace::ChunkSize;
use crate::change::Op;
use crate::error::{Code, Error, Result};
use crate::key::{KeyError, KeyOrder, KeyRange};
use crate::ledger::cover::{Cover, KeyTexts};
use crate::postgres::chunk::ROWS_ALL;
use crate::relation::{Fingerprint, TableName};
use crate::value::RowBuf;
use overlay::{Place, key_strings, overlay};
use pieces::{Pieces, Taken};

/// Changes remembered while one chunk is read; beyond it the chunk is read again, smaller, behind a new fence.
const REMEMBERED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Keys of a table to be read again one by one: each is a read, and stands in checkpoints and bases.
const AGAIN_KEYS_MAX: usize = 10_000;

/// Chunks that are held or being read beside one for each connection: while one waits for its message and one is emitted,
/// nobody who could read need wait.
const AHEAD: usize = 2;

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
    /// remembered ever since, so only a job that starts before anything is streamed may have some. Or what nobody asks for:
    /// the sinks have it, and ask for it too where a row comes into it that they can't make.
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

/// What the driver is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Take a transaction id of its own, wait until every older transaction has ended, then call [`Loader::fenced`] with
    /// this name.
    Fence(Uuid),
    /// Read a chunk, hand it over with [`Loader::chunk`], then write the nonce into the stream. Where a border is wanted, find
    /// one and tell it first ([`Loader::border`]).
    Read(Read),
    /// Every chunk was emitted: tell the requests once the last chunk's checkpoint is appended.
    Done(Vec<Uuid>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub table: TableName,
    pub range: KeyRange,
    pub rows_max: usize,
    pub bytes_max: usize,
    pub nonce: Uuid,
    /// The key that the range speaks of; `None` where it is the whole table under whatever key.
    pub key: Option<RangeKey>,
    /// Somebody else could read what lies behind `rows_max` rows meanwhile.
    pub border_wanted: bool,
    /// Where the key's order makes it worth it, the range is to be planned as a whole ([`Loader::planned`]), in ranges of so
    /// many rows.
    pub plan_rows: Option<usize>,
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
    /// In key order.
    pub rows: Vec<RowBuf>,
    /// What was read of the range asked for.
    pub range: KeyRange,
    /// Some of the range's rows were left out: nobody makes a table of such chunks.
    pub partial: bool,
    /// How long its lock and its snapshot were held.
    pub took: Duration,
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

struct Running<V> {
    job: Job,
    /// What is still to be emitted, in order.
    pieces: Pieces<V>,
    /// What is loaded.
    covers: HashMap<TableName, Cover>,
    /// Keys to be read again that nobody was told of yet.
    untold: Vec<(TableName, KeyTexts)>,
    keys: HashMap<TableName, RangeKey>,
    fenced: bool,
    /// Name of the fence that was asked for. An answer under another name is late and means nothing.
    fence: Option<Uuid>,
    /// The table of the last row that was emitted.
    rows_of: Option<TableName>,
}

/// The loader of one incarnation of the reader.
pub struct Loader<V> {
    /// Reads that may be on their way at once.
    connections: usize,
    size: ChunkSize,
    running: Option<Running<V>>,
    remembered: Vec<Remembered>,
    remembered_bytes: usize,
    /// A snapshot that was taken before any read that is still to be asked for, which therefore shows all that it shows.
    known: Option<V>,
    /// Nothing is read, and nothing that was enters the stream.
    paused: bool,
}

impl<V: Visibility + Clone> Loader<V> {
    pub fn new(connections: usize, size: ChunkSize) -> Loader<V> {
        Loader {
            connections,
            size,
            running: None,
            remembered: Vec::new(),
            remembered_bytes: 0,
            known: None,
            paused: false,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// The table being loaded, for status.
    pub fn table(&self) -> Option<&TableName> {
        self.running.as_ref().and_then(|running| running.pieces.front()).map(|piece| &piece.table)
    }

    /// Keys that turned out to be in need of a second reading since this was asked last: rows that the sinks left out.
    pub fn left_out(&mut self) -> Vec<(TableName, KeyTexts)> {
        self.running.as_mut().map_or_else(Vec::new, |running| std::mem::take(&mut running.untold))
    }

    /// Begins a job; remembering starts here, so the fence that follows covers everything streamed before.
    pub fn start(&mut self, job: Job) {
        assert!(self.running.is_none() && self.remembered.is_empty(), "one job at a time");
        let pieces = job.tables.iter().flat_map(|table| {
            let ranges = job.resumed.get(table).map_or_else(|| vec![KeyRange::ALL], |resumed| resumed.cover.left());
            ranges.into_iter().map(|range| (table.clone(), range))
        });
        let resumed = job.resumed.iter();
        self.running = Some(Running {
            pieces: pieces.collect(),
            covers: resumed.clone().map(|(table, resumed)| (table.clone(), resumed.cover.clone())).collect(),
            untold: Vec::new(),
            keys: resumed.map(|(table, resumed)| (table.clone(), resumed.key.clone())).collect(),
            fenced: false,
            fence: None,
            rows_of: None,
            job,
        });
    }

    /// What was read of the table is of another one, or under another key: it is read from its beginning, and the rest of the
    /// job goes on. `requests`, by their sinks, were made for this; those of sinks that the job is for are answered by it.
    pub fn begin_anew(&mut self, table: &TableName, requests: &[(String, Uuid)]) {
        let Some(running) = self.running.as_mut().filter(|running| running.job.tables.contains(table)) else { return };
        running.pieces.begin_anew(table);
        running.covers.remove(table);
        running.keys.remove(table);
        running.untold.retain(|(name, _)| name != table);
        running.job.answer(table, requests);
    }

    /// Whether so many keys of the table are to be read a second time that all of it had better be.
    pub fn is_torn(&self, table: &TableName) -> bool {
        let cover = self.running.as_ref().and_then(|running| running.covers.get(table));
        cover.is_some_and(|cover| cover.again.len() > AGAIN_KEYS_MAX)
    }

    /// Whether some of the table was read: under which key is known.
    pub fn has_begun(&self, table: &TableName) -> bool {
        self.running.as_ref().is_some_and(|running| running.keys.contains_key(table))
    }

    /// A table is gone: the rest of the job goes on without it.
    pub fn let_go(&mut self, table: &TableName) {
        let Some(running) = &mut self.running else { return };
        running.job.tables.retain(|name| name != table);
        running.pieces.let_go(table);
        running.covers.remove(table);
        running.untold.retain(|(name, _)| name != table);
        self.remembered.retain(|r| r.table != *table);
        self.remembered_bytes = self.remembered.iter().map(|r| r.bytes).sum();
    }

    /// Tables of the job.
    pub fn tables(&self) -> &[TableName] {
        self.running.as_ref().map_or(&[], |running| &running.job.tables)
    }

    /// The table that is read under this name.
    pub fn table_asked(&self, asked: Uuid) -> Option<&TableName> {
        self.running.as_ref().and_then(|running| running.pieces.table_asked(asked))
    }

    /// What is left of these tables comes last: nobody can read it now.
    pub fn defer(&mut self, tables: &BTreeSet<TableName>) {
        if let Some(running) = &mut self.running {
            running.pieces.defer(tables);
        }
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
        if self.paused || self.is_shown(xid) {
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

    /// Whether every chunk that is held, being read or still to be read shows what the transaction did.
    fn is_shown(&self, xid: u32) -> bool {
        let known = self.known.as_ref().is_some_and(|known| known.sees(xid));
        known && self.running.as_ref().is_none_or(|running| running.pieces.show(xid))
    }

    /// Somebody wants nothing to be read for a while, or is done with that. However long it lasts nothing of the stream is to be
    /// remembered for it: what was read and is not in the stream yet is read again, behind a fence that is asked for once
    /// remembering has begun again.
    pub fn pause(&mut self, paused: bool) {
        if self.paused != paused {
            self.paused = paused;
            self.drop_read();
        }
    }

    /// Too much to remember: read again what was not emitted, smaller, behind a new fence.
    fn forget(&mut self) {
        if self.running.as_ref().is_some_and(|running| running.fenced) {
            self.size.halve();
        }
        self.drop_read();
    }

    fn drop_read(&mut self) {
        self.remembered.clear();
        self.remembered_bytes = 0;
        if let Some(running) = &mut self.running {
            running.pieces.forget();
            running.fenced = false;
            running.fence = None;
        }
    }

    /// A snapshot was taken: every later one sees what it sees, so only the rest is remembered. Chunks that are being read
    /// may have an older one.
    pub fn saw(&mut self, snapshot: &V) {
        self.known = Some(snapshot.clone());
        let mut remembered = std::mem::take(&mut self.remembered);
        remembered.retain(|r| !self.is_shown(r.xid));
        self.remembered = remembered;
        self.remembered_bytes = self.remembered.iter().map(|r| r.bytes).sum();
    }

    /// What the driver is to do now, if anything; to be asked until there is nothing. `nonce` names what is asked for; nobody
    /// else can guess it. `may_read`: no read is to wait.
    pub fn next_action(&mut self, nonce: Uuid, may_read: bool) -> Option<Action> {
        let running = self.running.as_mut()?;
        if running.pieces.is_empty() {
            let running = self.running.take()?;
            self.remembered.clear();
            self.remembered_bytes = 0;
            return Some(Action::Done(running.job.requests));
        }
        if self.paused {
            return None;
        }
        if !running.fenced {
            let is_new = running.fence.is_none();
            return is_new.then(|| Action::Fence(*running.fence.insert(nonce)));
        }
        if !may_read {
            return None;
        }
        let (table, range, is_planned) =
            running.pieces.ask(nonce, self.known.as_ref(), self.connections, self.connections + AHEAD)?;
        let key = running.keys.get(&table).filter(|_| range != KeyRange::ALL).cloned();
        let (rows_max, bytes_max) = (if is_planned { ROWS_ALL } else { self.size.rows() }, self.size.bytes());
        let border_wanted = self.connections > 1 && !is_planned;
        let plan_rows = (!is_planned).then(|| self.size.rows_limit());
        Some(Action::Read(Read { table, range, rows_max, bytes_max, nonce, key, border_wanted, plan_rows }))
    }

    /// Every transaction older than the driver's own, taken after the question, has ended.
    pub fn fenced(&mut self, asked: Uuid) {
        if let Some(running) = self.running.as_mut().filter(|running| running.fence == Some(asked)) {
            running.fenced = true;
            running.fence = None;
        }
    }

    /// Whether what was asked for under this name is still wanted.
    pub fn asks(&self, asked: Uuid) -> bool {
        self.running.as_ref().is_some_and(|running| running.fence == Some(asked) || running.pieces.asks(asked))
    }

    /// The fence, the read or its message failed in a way that heals: ask again.
    pub fn failed(&mut self, asked: Uuid) {
        let Some(running) = self.running.as_mut() else { return };
        if running.fence == Some(asked) {
            running.fence = None;
        }
        running.pieces.failed(asked);
    }

    /// Who reads under this name reads no further than a border; `None`: the range ends before one. What lies behind is
    /// anybody's.
    pub fn border(&mut self, asked: Uuid, through: Option<Vec<String>>, key: RangeKey) {
        let Some(running) = self.running.as_mut() else { return };
        if let Some(table) = running.pieces.border(asked, through) {
            running.keys.insert(table, key);
        }
    }

    /// Who reads under this name has planned its range: it reads up to the first of these borders, and ranges between the
    /// others are read as they are.
    pub fn planned(&mut self, asked: Uuid, borders: Vec<Vec<String>>, key: RangeKey) {
        let Some(running) = self.running.as_mut() else { return };
        if let Some(table) = running.pieces.planned(asked, borders) {
            running.keys.insert(table, key);
        }
    }

    /// A chunk was read; its message is still to come in the stream.
    pub fn chunk(&mut self, chunk: ChunkRead<V>) {
        let Some(running) = self.running.as_mut().filter(|running| running.pieces.asks(chunk.nonce)) else { return };
        self.size.read(chunk.rows.len(), chunk.rows.iter().map(RowBuf::bytes).sum(), chunk.took);
        running.keys.insert(chunk.table.clone(), chunk.key.clone());
        let snapshot = chunk.snapshot.clone();
        running.pieces.read(chunk);
        self.saw(&snapshot);
    }

    /// The stream reached the message with this nonce: from here on its chunk may be emitted.
    pub fn mark(&mut self, nonce: Uuid) {
        if let Some(running) = &mut self.running {
            running.pieces.mark(nonce);
        }
    }

    /// Whether a chunk is next and may enter the stream.
    pub fn is_due(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.pieces.is_due())
    }

    /// The next chunk as it is at this place of the stream, between two transactions; `None` if there is none, or it must be
    /// read again. Of more than `rows_max` rows the first so many, as a chunk of their own. `streamed` is the version that the
    /// stream knows of a table.
    pub fn take(
        &mut self,
        rows_max: usize,
        streamed: impl Fn(&TableName) -> Option<Fingerprint>,
    ) -> Result<Option<Ready>> {
        let Some(running) = self.running.as_mut() else { return Ok(None) };
        let Some(Taken { chunk, mismatch }) = running.pieces.take(rows_max, streamed)? else { return Ok(None) };
        let table = chunk.table;
        let remembered: Vec<&Remembered> =
            self.remembered.iter().filter(|r| r.table == table && !chunk.snapshot.sees(r.xid)).collect();
        let same_version = remembered.iter().all(|r| r.relation == chunk.relation);
        let place = Place { range: &chunk.range, key: &chunk.key_columns, orders: &chunk.key_orders };
        let rows = if same_version { overlay(chunk.rows, &remembered, place, chunk.partial)? } else { None };
        let Some(rows) = rows else {
            running.pieces.put_back(table, chunk.range, mismatch);
            return Ok(None);
        };
        let before = running.rows_of.clone();
        if !rows.is_empty() {
            running.rows_of = Some(table.clone());
        }
        running.emitted(&table, &chunk.range, chunk.key)?;
        let next = running.pieces.front();
        let extent = running.job.initial.then(|| Extent {
            first: before.is_none(),
            first_of_table: before.as_ref() != Some(&table),
            last_of_table: next.is_none_or(|next| next.table != table),
            last: next.is_none(),
        });
        let only = running.job.answers(&table);
        if let Some(known) = self.known.clone() {
            self.saw(&known);
        }
        Ok(Some(Ready { table, relation: chunk.relation, range: chunk.range, rows, only, extent }))
    }
}

impl<V: Visibility + Clone> Running<V> {
    /// The table's chunk entered the stream: what lies in its range is loaded, under its key.
    fn emitted(&mut self, table: &TableName, range: &KeyRange, key: RangeKey) -> Result<()> {
        let cover = self.covers.entry(table.clone()).or_default();
        let orders: Vec<KeyOrder> = key.iter().map(|(_, order)| *order).collect();
        cover.emitted(&orders, range).map_err(not_of_type)?;
        self.pieces.keep_keys(table, |key| cover.again.contains(key));
        self.keys.insert(table.clone(), key);
        Ok(())
    }

    /// A row moved to a key that is loaded and can't be there: it is read again.
    fn read_again(&mut self, table: &TableName, key: &[(usize, KeyOrder)], old: &RowBuf, new: &RowBuf) -> Result<()> {
        let Some(cover) = self.covers.get_mut(table) else { return Ok(()) };
        let (columns, orders): (Vec<usize>, Vec<KeyOrder>) = key.iter().copied().unzip();
        let (from, to) = (key_strings(old, &columns)?, key_strings(new, &columns)?);
        if cover.moved(&orders, &from, &to, new.row().has_absent()).map_err(not_of_type)? {
            self.pieces.again(table.clone(), to.clone());
            self.untold.push((table.clone(), to));
        }
        Ok(())
    }
}

fn not_of_type(error: KeyError) -> Error {
    Error::halt(Code::SourceProtocol, format!("a key's text is not of its type: {error}"), "lockstep check")
}

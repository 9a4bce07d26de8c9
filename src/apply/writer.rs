//! The records of intervals, folded and written into the sink's open transaction.
//!
//! Changes are folded per table into their net effect and written when they are many, when something stands in the way (a
//! chunk, a truncate, a key change that depends on what is pending), and at the end. A chunk is a barrier for its range and a
//! truncate for its table; both flush everything, which costs nothing where it matters and keeps the order plain.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::apply::decode::{Content, Decoded, Place, half, half_of, outside};
use crate::apply::fold::Fold;
use crate::apply::letters::Letters;
use crate::apply::machine::{Interval, Loads};
use crate::apply::net::Folded;
use crate::apply::refused::{self, Named};
use crate::apply::{soft, targets};
use crate::change::Op;
use crate::config::{self, Evolve, Snapshot};
use crate::error::{Code, Error, Result};
use crate::kafka::reread::Reread;
use crate::key::KeyOrder;
use crate::ledger::entry::{Chunk, Join};
use crate::ledger::state::State;
use crate::lsn::Position;
use crate::record::{Header, Kind};
use crate::relation::{Fingerprint, Relation, TableName};
use crate::sink::circles::Circles;
use crate::sink::letters::LetterKey;
use crate::sink::{Counts, Outcome, Sink, WantedTable, missing};
use crate::value::{Cell, RowBuf};

/// How often the sink's tables are looked at again.
const PLAN_INTERVAL: Duration = Duration::from_secs(10);

/// One relation version at this sink.
pub struct Version<P> {
    pub(super) table: TableName,
    pub(super) topic: String,
    pub(super) wanted: WantedTable,
    pub plan: P,
    /// What its rows are called where one of them is refused.
    pub named: Named,
    /// Without constants: what ranges speak of.
    pub(super) key: Vec<usize>,
    /// Its columns' names.
    pub(super) key_names: Vec<String>,
    pub(super) orders: Vec<KeyOrder>,
}

/// Where the record of a change stands.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub place: Place,
    pub position: Position,
    /// One of the two records that a key change is.
    pub of_key_change: bool,
}

impl<P> Version<P> {
    /// The change as it is folded; rows that it ends are marked with their transaction's commit time where they stay.
    fn marked(&self, op: Op, commit_time_us: Option<i64>) -> Op {
        if self.wanted.mark.is_some() { soft::marked(op, commit_time_us) } else { op }
    }

    /// A row that is there, as it is written.
    fn living(&self, mut row: RowBuf) -> RowBuf {
        if self.wanted.mark.is_some() {
            row.push(Cell::Null);
        }
        row
    }
}

/// Changes of one table that are not written yet.
struct Pending<P> {
    version: Arc<Version<P>>,
    fold: Fold,
}

/// A chunk whose place in the merged stream was reached and whose rows are coming.
struct OpenChunk {
    chunk: Chunk,
    mine: bool,
    rows: Vec<RowBuf>,
    /// Of the rows, in their order.
    changes: Vec<Change>,
    seen: u64,
}

/// What the sink was given when it refused.
pub enum Refused<P> {
    /// With the change that it is of, where it is of one alone.
    Row(Named, refused::Row, Option<(Arc<Version<P>>, Change)>),
    /// So many changes.
    Changes(u64),
    Chunk(ChunkRows<P>),
}

pub struct ChunkRows<P> {
    pub version: Arc<Version<P>>,
    pub rows: Vec<RowBuf>,
    /// Of the rows, in their order.
    pub changes: Vec<Change>,
}

/// Changes are written in pieces of so many.
pub struct Pieces {
    /// From this write of the transaction on.
    from: u64,
    every: u64,
}

/// Pieces of fewer changes than this are not divided once more before each change is written by itself.
const PIECES_MIN: u64 = 64;

/// Writes for one sink over one connection.
pub struct Writer<S: Sink> {
    pub sink: S,
    pub loads: Loads,
    pub counts: Counts,
    /// Rows of chunks written in the open transaction.
    pub loaded: Vec<(TableName, u64)>,
    pub(super) name: String,
    tables: HashMap<TableName, config::SinkTable>,
    rows_max: usize,
    bytes_max: usize,
    versions: HashMap<Fingerprint, Arc<Version<S::Plan>>>,
    /// While parking, by the versions that the ledger has.
    rows: targets::Rows,
    pending: Vec<Pending<S::Plan>>,
    /// The delete half of a key change; its create half follows.
    moving: Option<(Fingerprint, RowBuf)>,
    truncates: Vec<Arc<Version<S::Plan>>>,
    /// When their transaction was committed, where rows are marked with it.
    truncated_us: Option<i64>,
    /// Of the interval that is being written.
    offset: i64,
    planned: Instant,
    /// Of the sink's tables by their names there; `None` until they are needed.
    circles: Option<Circles>,
    chunks: VecDeque<Chunk>,
    open: Option<OpenChunk>,
    /// Every change is written by itself, in order.
    pub strict: bool,
    /// A row of this table came into what is there from a range that is read again, and not whole: only all of it heals that.
    pub moved_in: Option<TableName>,
    /// Rows that hold unique values of others get out of their way.
    pub parking: bool,
    /// The transaction ends only when no table is under load any more. One of them does not take changes where it was
    /// not read yet, so a row there may still reference what the stream has deleted, or not be there for what it has brought.
    pub whole: bool,
    /// What was refused last; for as long as nothing else is tried.
    pub refused: Option<Refused<S::Plan>>,
    pub pieces: Vec<Pieces>,
    pub letters: Letters,
    /// For records that are parked.
    pub again: Option<Reread>,
    /// What was folded last, if it is of one row.
    pub(super) last: Option<Change>,
    /// Its row, where it is written by itself and may be parked.
    pub(super) last_key: Option<LetterKey>,
    /// Writes of changes in the open transaction that were not refused.
    writes: u64,
    /// Changes since the last of them.
    pub(super) changes: u64,
}

impl<S: Sink> Writer<S> {
    pub fn new(sink: S, config: &config::Sink, tables: HashMap<TableName, config::SinkTable>) -> Writer<S> {
        Writer {
            sink,
            loads: Loads::none(&config.name),
            counts: Counts::default(),
            loaded: Vec::new(),
            name: config.name.clone(),
            tables,
            rows_max: config.batch_rows_max,
            bytes_max: config.batch_bytes_max,
            versions: HashMap::new(),
            rows: targets::Rows::default(),
            pending: Vec::new(),
            moving: None,
            truncates: Vec::new(),
            truncated_us: None,
            offset: -1,
            planned: Instant::now(),
            circles: None,
            chunks: VecDeque::new(),
            open: None,
            strict: false,
            moved_in: None,
            parking: false,
            whole: false,
            refused: None,
            pieces: Vec::new(),
            letters: Letters::of(&config.name, config.parking.records_max),
            again: None,
            last: None,
            last_key: None,
            writes: 0,
            changes: 0,
        }
    }

    /// Forgets what an aborted transaction left half done.
    pub fn reset(&mut self) {
        self.pending.clear();
        self.moving = None;
        self.truncates.clear();
        self.chunks.clear();
        self.open = None;
        self.changes = 0;
        (self.counts, self.loaded) = (Counts::default(), Vec::new());
        self.letters.rolled_back();
        // Tables that follow may do so no more. The others were not altered: to ask for all of them again after each refused
        // hand-over takes longer than the hand-over.
        let tables = &self.tables;
        let follows = |table: &TableName| tables.get(table).is_none_or(|target| target.evolve != Evolve::Off);
        self.versions.retain(|_, version| !follows(&version.table));
    }

    /// Writes are counted from here on.
    pub fn begin_transaction(&mut self) {
        (self.writes, self.refused) = (0, None);
    }

    /// A value was refused: the next try writes what it was among in smaller pieces, after the same writes as before. False where
    /// there is nothing to divide.
    pub fn narrow(&mut self) -> bool {
        let Some(Refused::Changes(changes)) = self.refused else { return false };
        if self.strict || self.pieces.last().is_some_and(|pieces| pieces.every == 1) {
            return false;
        }
        let every = if changes < PIECES_MIN || !self.pieces.is_empty() { 1 } else { changes.isqrt() };
        self.pieces.push(Pieces { from: self.writes, every });
        true
    }

    /// Changes that are written together at most.
    pub(super) fn every(&self) -> u64 {
        match self.strict {
            true => 1,
            false => self.pieces.iter().rfind(|p| p.from <= self.writes).map_or(u64::MAX, |p| p.every),
        }
    }

    /// From here on rows that hold unique values of others get out of their way.
    pub fn begin_parking(&mut self, state: &State) {
        self.parking = true;
        self.rows = targets::Rows::of(state, &self.tables);
    }

    /// Prepares for every relation that the ledger knows of this sink's tables, so that a table or column that is missing at
    /// the sink is named before anything is written.
    pub async fn prepare(&mut self, state: &State) -> Result<()> {
        let known: Vec<Fingerprint> =
            state.relations.values().filter(|r| self.is_own_business(&r.name)).map(|r| r.fingerprint).collect();
        // Of several versions of a table only the newest must fit, and which it is shows when its records come.
        let single = |f: &&Fingerprint| {
            let name = &state.relations[*f].name;
            known.iter().filter(|other| state.relations[*other].name == *name).count() == 1
        };
        // A name that the table does not have may be that of a column that was just made: its version comes with the rows that
        // are asked for.
        let coming = |f: &&Fingerprint| {
            let relation = &state.relations[*f];
            let asked = |join: &Join| join.request.sink == self.name && join.request.tables.contains(&relation.name);
            let lacks = missing(&self.tables[&relation.name], &[relation]).is_some();
            lacks && state.open_joins().any(asked)
        };
        let known: Vec<Fingerprint> = known.iter().filter(single).filter(|f| !coming(f)).copied().collect();
        for fingerprint in &known {
            self.version(*fingerprint, state).await?;
        }
        Ok(())
    }

    /// A table that is not equal to the source's whatever is applied: the rows that were there were never read, or nobody would
    /// notice one that is lost.
    pub fn is_partial(&self, table: &TableName, state: &State) -> bool {
        let configured = self.tables.get(table).is_some_and(|target| target.snapshot != Snapshot::Initial);
        let mut of_sink = state.joins.iter().map(|join| &join.request).filter(|request| request.sink == self.name);
        let newest = of_sink.rfind(|request| request.says(table));
        configured || newest.is_some_and(|request| !request.reads(table))
    }

    /// Tables at the source and what is taken of them.
    pub fn tables(&self) -> impl Iterator<Item = (&TableName, &config::SinkTable)> {
        self.tables.iter()
    }

    pub fn takes(&self, table: &TableName) -> bool {
        self.tables.contains_key(table)
    }

    /// Tables at the source and what they are here.
    pub fn targets(&self) -> impl Iterator<Item = (&TableName, &TableName)> {
        self.tables.iter().map(|(source, target)| (source, &target.table))
    }

    /// The sink's tables are no longer what they were looked at as.
    pub fn forget_plans(&mut self) {
        self.versions.clear();
        self.circles = None;
        self.planned = Instant::now();
    }

    /// A table that we take and never alter.
    fn is_own_business(&self, table: &TableName) -> bool {
        self.tables.get(table).is_some_and(|target| target.evolve == Evolve::Off)
    }

    /// The chunks of the interval that follows.
    pub fn begin_interval(&mut self, interval: &Interval) {
        if self.planned.elapsed() >= PLAN_INTERVAL {
            // The sink's tables belong to somebody else, who may have changed them.
            self.forget_plans();
        }
        self.offset = interval.offset;
        let chunks = &interval.checkpoint.chunks;
        let mut chunks: Vec<Chunk> =
            chunks.iter().filter(|chunk| self.tables.contains_key(&chunk.table)).cloned().collect();
        chunks.sort_by_key(|chunk| chunk.at);
        self.chunks = chunks.into();
    }

    /// The next record of the interval.
    pub async fn record(&mut self, record: Decoded, state: &State) -> Outcome<()> {
        let header = record.header;
        self.reach(Some(&header), state).await?;
        let Some(version) = self.version(header.relation, state).await? else { return Ok(()) };
        let at = Change::new(record.place, &header);
        let committed_us = record.commit_time_us;
        let other_time = committed_us.zip(self.truncated_us).is_some_and(|(now, before)| now != before);
        if header.kind != Kind::Truncate || other_time {
            self.write_truncates().await?;
        }
        match header.kind {
            Kind::Tombstone | Kind::Foreign => Ok(()),
            Kind::Change => match record.content? {
                Content::Change(op) => self.change(&version, version.marked(op, committed_us), at).await,
                _ => Err(half(&version.table).into()),
            },
            Kind::KeyChangeDelete => match record.content? {
                Content::OldKey(old) => {
                    self.moving = Some((header.relation, old));
                    Ok(())
                }
                _ => Err(half(&version.table).into()),
            },
            Kind::KeyChangeCreate => {
                let old = self.moving.take().filter(|(relation, _)| *relation == header.relation);
                match (old, record.content?) {
                    (Some((_, old)), Content::Change(Op::Insert(new))) => {
                        self.change(&version, version.marked(Op::Rekey { old, new }, committed_us), at).await
                    }
                    _ => Err(half(&version.table).into()),
                }
            }
            Kind::Truncate => {
                record.content?;
                self.truncated_us = committed_us.or(self.truncated_us);
                self.truncates.push(version);
                Ok(())
            }
            Kind::ChunkRow => self.chunk_row(&version, record.content, at),
        }
    }

    fn chunk_row(&mut self, version: &Version<S::Plan>, content: Result<Content>, at: Change) -> Outcome<()> {
        let open = self.open.as_mut().ok_or_else(|| outside(&version.table))?;
        open.seen += 1;
        if open.mine {
            match content? {
                Content::Row(row) => {
                    open.rows.push(version.living(row));
                    open.changes.push(at);
                }
                _ => return Err(outside(&version.table).into()),
            }
        }
        Ok(())
    }

    /// Every record of the interval was given.
    pub async fn end_interval(&mut self, state: &State) -> Outcome<()> {
        self.reach(None, state).await?;
        self.write_truncates().await?;
        assert!(self.chunks.is_empty() && self.open.is_none(), "every chunk was reached");
        if let Some((relation, _)) = &self.moving {
            let table = state.relations.get(relation).map_or_else(|| relation.to_string(), |r| r.name.to_string());
            return Err(half_of(&table).into());
        }
        Ok(())
    }

    /// Opens and closes chunks up to the record's place.
    async fn reach(&mut self, header: Option<&Header>, state: &State) -> Outcome<()> {
        loop {
            let position = header.map(|header| header.position);
            if let Some(open) = &self.open {
                if position.is_some_and(|position| position < open.chunk.end()) {
                    return Ok(());
                }
                self.close_chunk(state).await?;
            }
            match self.chunks.front() {
                Some(chunk) if position.is_none_or(|position| chunk.at <= position) => {
                    let chunk = self.chunks.pop_front().expect("just looked");
                    self.write_truncates().await?;
                    let mine = self.loads.wants(self.offset, &chunk);
                    self.open = Some(OpenChunk { chunk, mine, rows: Vec::new(), changes: Vec::new(), seen: 0 });
                }
                _ => return Ok(()),
            }
        }
    }

    async fn close_chunk(&mut self, state: &State) -> Outcome<()> {
        let OpenChunk { chunk, mine, mut rows, mut changes, seen } =
            self.open.take().expect("called with an open chunk");
        if seen != chunk.rows {
            return Err(outside(&chunk.table)
                .fact(format!("the chunk at {} counts {} rows, {seen} are there", chunk.at, chunk.rows))
                .into());
        }
        if !mine {
            return Ok(());
        }
        self.flush().await?;
        let Some(version) = self.version(chunk.relation, state).await? else { return Ok(()) };
        let blank = targets::blank(&self.tables, &self.loads, &chunk.table);
        self.park();
        let left_out = self.take_refused(&version, &mut rows, &mut changes);
        if let Err(failure) = self.sink.replace_range(&version.plan, &chunk.range, &rows, &blank).await {
            self.refused = Some(Refused::Chunk(ChunkRows { version, rows, changes }));
            return Err(failure);
        }
        self.settle_range(&version, &chunk.range).await?;
        for (of, change, reason) in left_out {
            Box::pin(self.keep(&version, of, &change, reason)).await?;
        }
        self.sink.hear();
        self.loaded.push((chunk.table.clone(), chunk.rows));
        self.loads.chunk(self.offset, &chunk, &state.relations);
        Ok(())
    }

    /// Whether the open transaction holds a part of tables whose rows reference each other in a circle, or of what must go
    /// together once a foreign key has refused a part. Only when all is there do the foreign keys hold, so it can't end before.
    pub async fn is_half_loaded(&mut self) -> Outcome<bool> {
        if self.whole && !self.loads.is_empty() {
            return Ok(true);
        }
        if self.loaded.is_empty() {
            return Ok(false);
        }
        let circles = match &mut self.circles {
            Some(circles) => circles,
            none => {
                let targets: Vec<TableName> = self.tables.values().map(|target| target.table.clone()).collect();
                none.insert(self.sink.circles(&targets).await?)
            }
        };
        let missing = |target: &TableName| {
            let sources = self.tables.iter().filter(|(_, known)| known.table == *target).map(|(source, _)| source);
            sources.into_iter().any(|source| !self.loads.is_whole(source))
        };
        let mut targets = self.loaded.iter().filter_map(|(source, _)| self.tables.get(source));
        Ok(targets.any(|target| circles.get(&target.table).is_some_and(|circle| circle.iter().any(missing))))
    }

    /// The version at this sink; `None` for a table that the sink does not take.
    pub(super) async fn version(
        &mut self,
        fingerprint: Fingerprint,
        state: &State,
    ) -> Outcome<Option<Arc<Version<S::Plan>>>> {
        if let Some(version) = self.versions.get(&fingerprint) {
            return Ok(Some(version.clone()));
        }
        let relation = state.relations.get(&fingerprint).cloned().ok_or_else(|| {
            let message = format!("a record names relation version {fingerprint}, which the ledger does not hold");
            Error::halt(Code::LedgerLost, message, format!("lockstep resync --all --sink {}", self.name))
        })?;
        let Some(target) = self.tables.get(&relation.name).cloned() else { return Ok(None) };
        let wanted = WantedTable::of_version(&relation, &target, &newest(state, &relation.name))?;
        // While their columns are there.
        for before in targets::left_behind(&relation, state, &self.tables) {
            self.sink.check_left(&wanted, &before).await?;
        }
        if target.evolve != Evolve::Off {
            self.follow(&relation, &wanted, &target, state).await?;
        }
        let plan = self.sink.plan(std::slice::from_ref(&wanted)).await?.remove(0);
        if self.parking {
            self.rows = targets::Rows::of(state, &self.tables);
        }
        let key = relation.own_key();
        let orders = key.iter().map(|&i| KeyOrder::of(relation.columns[i].type_oid)).collect();
        let key_names = key.iter().map(|&i| relation.columns[i].name.clone()).collect();
        let named = Named::of(&relation);
        let (table, topic) = (relation.name.clone(), relation.topic.clone());
        let version = Arc::new(Version { table, topic, wanted, plan, named, key, key_names, orders });
        self.versions.insert(fingerprint, version.clone());
        Ok(Some(version))
    }

    /// Lets the sink's table follow to this version, after everything that was written by another one.
    async fn follow(
        &mut self,
        relation: &Relation,
        wanted: &WantedTable,
        target: &config::SinkTable,
        state: &State,
    ) -> Outcome<()> {
        self.write_truncates().await?;
        self.flush().await?;
        let half = self.is_half_loaded().await?;
        let newest = newest(state, &relation.name);
        // What the ledger tells of only behind this interval is to come.
        let is_before = |r: &Relation| state.relations_at.get(&r.fingerprint).is_some_and(|at| *at < self.offset);
        let others =
            state.relations.values().filter(|r| r.name == relation.name && r.fingerprint != relation.fingerprint);
        let earlier: Vec<WantedTable> =
            others.filter(|r| is_before(r)).filter_map(|r| WantedTable::of_version(r, target, &newest).ok()).collect();
        self.sink.evolve(wanted, &earlier, target.evolve, half).await?;
        // Should one of them come back, it is looked at again.
        self.versions.retain(|_, version| version.table != relation.name);
        Ok(())
    }

    /// Folds a change as far as the sink takes it: a table under load takes it only where a chunk has been.
    async fn change(&mut self, version: &Arc<Version<S::Plan>>, op: Op, at: Change) -> Outcome<()> {
        let Some(op) = self.admitted(version, op)? else { return Ok(()) };
        let mut op = op;
        if !self.letters.is_idle() {
            // Boxed, as all that is about letters: what hardly ever happens must not make every future below it larger.
            let Some(left) = Box::pin(self.around_letters(version, op, &at)).await? else { return Ok(()) };
            op = left;
        }
        // Half of a key change may be all that is written here, and its record says the other half, too.
        let is_of_one = !matches!(op, Op::Rekey { .. }) && !at.of_key_change;
        let last_key = if is_of_one { self.last_key(version, &op) } else { None };
        loop {
            let index = self.pending_of(version).await?;
            match self.pending[index].fold.fold(op)? {
                Folded::Done => break,
                Folded::FlushFirst(again) => {
                    self.flush().await?;
                    op = again;
                }
            }
        }
        let rows: usize = self.pending.iter().map(|pending| pending.fold.rows()).sum();
        let bytes: usize = self.pending.iter().map(|pending| pending.fold.bytes()).sum();
        self.changes += 1;
        (self.last, self.last_key) = (is_of_one.then_some(at), last_key);
        if self.changes >= self.every() || rows >= self.rows_max || bytes >= self.bytes_max {
            self.flush().await?;
        }
        Ok(())
    }

    fn admitted(&mut self, version: &Version<S::Plan>, op: Op) -> Result<Option<Op>> {
        if !self.loads.is_loading(&version.table) {
            return Ok(Some(op));
        }
        let admits = |row: &RowBuf| {
            let texts: Option<Vec<&[u8]>> = version.key.iter().map(|&i| row.row().get(i).text()).collect();
            self.loads.admits(&version.table, &version.orders, &texts.ok_or_else(|| half(&version.table))?)
        };
        Ok(match op {
            Op::Insert(row) => admits(&row)?.then_some(Op::Insert(row)),
            Op::Update(row) => admits(&row)?.then_some(Op::Update(row)),
            Op::Delete(row) => admits(&row)?.then_some(Op::Delete(row)),
            Op::Rekey { old, new } => match (admits(&old)?, admits(&new)?) {
                (true, true) => Some(Op::Rekey { old, new }),
                (true, false) => Some(Op::Delete(old)),
                // Nobody watched a range that is there because nobody asked for it.
                (false, true) if new.row().has_absent() && self.loads.is_within(&version.table) => {
                    self.moved_in = Some(version.table.clone());
                    let what =
                        "a row came without all its columns from a range that is read again into one that is not";
                    return Err(Error::retry_plain(format!("{what}: all of table {} is asked for", version.table)));
                }
                // With a column missing the row can't be made; the reader reads its range again.
                (false, true) => (!new.row().has_absent()).then_some(Op::Insert(new)),
                (false, false) => None,
            },
            Op::Truncate => Some(Op::Truncate),
        })
    }

    /// Where the changes of this version are folded. Another version of the same table is written first.
    async fn pending_of(&mut self, version: &Arc<Version<S::Plan>>) -> Outcome<usize> {
        let same = |pending: &Pending<S::Plan>| Arc::ptr_eq(&pending.version, version);
        if let Some(index) = self.pending.iter().position(same) {
            return Ok(index);
        }
        if self.pending.iter().any(|pending| pending.version.table == version.table) {
            self.flush().await?;
        }
        self.pending.push(Pending { version: version.clone(), fold: version.wanted.fold() });
        Ok(self.pending.len() - 1)
    }

    /// Rows that the changes of the open transaction come to; `None` once some of it is written, or is to be written one by one.
    pub fn unwritten(&self) -> Option<u64> {
        let whole = !self.strict && !self.parking && self.pieces.is_empty();
        let untouched = self.counts == Counts::default() && self.loaded.is_empty() && whole;
        let rows = || self.pending.iter().map(|pending| pending.fold.rows() as u64).sum();
        untouched.then(rows)
    }

    /// Lets the sink know what is still to be read.
    fn park(&mut self) {
        if self.parking {
            self.sink.park(self.rows.unread(&self.tables, &self.loads));
        }
    }

    /// Writes what is folded.
    pub async fn flush(&mut self) -> Outcome<()> {
        self.park();
        let pending = std::mem::take(&mut self.pending);
        let nets = pending.into_iter().map(|mut p| (p.version, p.fold.drain()));
        let (versions, nets): (Vec<_>, Vec<_>) = nets.filter(|(_, net)| !net.is_empty()).unzip();
        let mut batch = Vec::with_capacity(nets.len());
        for (version, mut net) in versions.iter().zip(nets) {
            net.loading = self.loads.is_loading(&version.table);
            batch.push((&version.plan, net));
        }
        if !batch.is_empty() {
            let last = self.save_for_last().await?;
            match self.sink.apply(&batch).await {
                Ok(counts) => self.counts += counts,
                Err(failure) => {
                    if let Some(last) = last
                        && Box::pin(self.park_last(&versions[0], last, &failure)).await?
                    {
                        self.changes = 0;
                        return Ok(());
                    }
                    let only = match &batch[..] {
                        [(_, net)] => versions[0].named.only_row(net),
                        _ => None,
                    };
                    let change = self.last.filter(|_| self.changes == 1).map(|last| (versions[0].clone(), last));
                    // What is parked is one record, so several of a row are told apart first.
                    let only = only.filter(|_| self.changes <= 1 || !self.letters.parks);
                    let row = only.map(|row| Refused::Row(versions[0].named.clone(), row, change));
                    self.refused = Some(row.unwrap_or(Refused::Changes(self.changes)));
                    return Err(failure);
                }
            }
            self.sink.hear();
            self.writes += 1;
        }
        self.changes = 0;
        Ok(())
    }

    /// Truncates that stand in a row are one statement: tables that reference each other are emptied together.
    async fn write_truncates(&mut self) -> Outcome<()> {
        if self.truncates.is_empty() {
            return Ok(());
        }
        self.flush().await?;
        let half = self.is_half_loaded().await?;
        let truncates = std::mem::take(&mut self.truncates);
        let mut truncates: Vec<&Version<S::Plan>> = truncates.iter().map(|version| &**version).collect();
        truncates.sort_by_key(|version| version.wanted.rows_of());
        truncates.dedup_by_key(|version| version.wanted.rows_of());
        let plans: Vec<&S::Plan> = truncates.iter().map(|version| &version.plan).collect();
        self.sink.committed(self.truncated_us.take());
        match half {
            true => self.sink.truncate_half_loaded(&plans).await?,
            false => self.sink.truncate(&plans).await?,
        }
        self.counts.truncated += plans.len() as u64;
        let emptied: Vec<TableName> = truncates.iter().map(|version| version.table.clone()).collect();
        for table in &emptied {
            self.settle_table(table).await?;
        }
        Ok(())
    }
}

/// The newest versions of a table that are known; several where a base tells of them.
fn newest<'a>(state: &'a State, table: &TableName) -> Vec<&'a Relation> {
    let place = |r: &Relation| state.relations_at.get(&r.fingerprint).copied();
    let versions = || state.relations.values().filter(|r| r.name == *table);
    let last = versions().map(|r| place(r)).max().flatten();
    versions().filter(|r| place(r) == last).map(|r| &**r).collect()
}

//! The sink's walk along the ledger: which checkpoints are applied, in which order, and what of them concerns this sink.
//!
//! Pure: entries in, items out. An item is applied in one database transaction (or several items in one) together with the
//! progress row, which is the only memory: after any failure a new machine starts from the row and the ledger, so nothing
//! that was remembered can be wrong.
//!
//! Invariants (docs/design.md section 2): only valid checkpoints are applied, only as an unbroken chain from what the progress row
//! holds; a table under load takes changes only in ranges whose chunk was applied; a request counts from where it stands in
//! the ledger.
//!
//! Deliberately not here: records and their checks (`span`), folding (`net`), SQL (`sink`).

use std::collections::{BTreeSet, HashMap, VecDeque};

use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::key::ranges::RangeSet;
use crate::key::{KeyOrder, KeyRange};
use crate::ledger::entry::{Checkpoint, Chunk, Entry, Request, RequestKind, Restarted};
use crate::ledger::loaded::{LoadedTable, Relations, orders};
use crate::ledger::state::{Event, State};
use crate::ledger::within::Within;
use crate::lsn::{Lsn, Position};
use crate::record::Epoch;
use crate::relation::TableName;

/// Where a sink stands: what its progress row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Of the checkpoint applied last; -1 at the origin.
    pub offset: i64,
    pub epoch: Epoch,
    pub position: Position,
    pub closed: Lsn,
    /// Microseconds since 1970; 0 before the first commit.
    pub commit_time: i64,
}

impl At {
    /// Nothing is applied.
    pub const ORIGIN: At = At {
        offset: -1,
        epoch: Epoch { offset: 0, nonce: 0 },
        position: Position::ORIGIN,
        closed: Lsn::ZERO,
        commit_time: 0,
    };

    /// Whether this is from before the restart, in the same ledger. Where that lost its end, offsets alone do not tell.
    pub fn is_before(&self, restarted: &Restarted) -> bool {
        self.offset < restarted.offset || self.epoch.offset < restarted.epoch.offset
    }

    /// Where a sink goes on that met the restart.
    pub fn after(restarted: &Restarted) -> At {
        let Restarted { offset, epoch, new, .. } = *restarted;
        At { offset, epoch, closed: new, ..At::ORIGIN }
    }

    /// The last valid checkpoint of a ledger.
    pub fn end_of(state: &State) -> At {
        state.last.map_or(At::ORIGIN, |last| At {
            offset: last.anchor.offset,
            epoch: last.anchor.epoch,
            position: last.anchor.to,
            closed: last.closed,
            commit_time: last.commit_time,
        })
    }
}

/// Something to apply, in ledger order.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A valid checkpoint, next in the chain.
    Interval(Box<Interval>),
    /// The sink's tables of this request are loaded from here on only by chunks.
    Joined(i64, Request),
    /// The request's load is complete.
    Loaded(Uuid),
    /// The tables of this request, at this offset, are no longer this sink's.
    Left(i64, Request),
    /// The base at this offset says that the reader has these tables.
    Routed(i64, Vec<TableName>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Interval {
    pub offset: i64,
    pub checkpoint: Checkpoint,
    /// Something in it concerns this sink.
    pub concerns: bool,
}

impl Interval {
    /// Records of this sink's topics, as far as the spans tell.
    pub fn records(&self) -> u64 {
        self.checkpoint.spans.iter().map(|span| span.count).sum()
    }

    pub fn at(&self, before: At) -> At {
        let c = &self.checkpoint;
        At {
            offset: self.offset,
            epoch: c.epoch,
            position: c.to,
            closed: c.closed,
            commit_time: if c.commit_time == 0 { before.commit_time } else { c.commit_time },
        }
    }
}

/// How much of the intervals' records are existing rows.
#[expect(clippy::cast_precision_loss, reason = "a share")]
pub fn existing_share(intervals: &[Interval]) -> f64 {
    let rows: u64 = intervals.iter().flat_map(|interval| &interval.checkpoint.chunks).map(|chunk| chunk.rows).sum();
    let records: u64 = intervals.iter().map(Interval::records).sum();
    rows.min(records) as f64 / records.max(1) as f64
}

/// The walk of one worker on one connection.
#[derive(Debug, Clone)]
pub struct Machine {
    pipeline: String,
    sink: String,
    tables: BTreeSet<TableName>,
    state: State,
    /// The end of the chain: of the last item given out.
    end: At,
    /// The row's, for telling a request that it knows from a new one.
    join_offset: i64,
    items: VecDeque<Item>,
    /// Bases are given out too.
    tells_routes: bool,
}

impl Machine {
    /// A machine whose state was folded up to the row's checkpoint or further back; [`Machine::entry`] continues there.
    pub fn new(pipeline: &str, sink: &str, tables: BTreeSet<TableName>, row: At, join_offset: i64) -> Machine {
        let (pipeline, sink, items) = (pipeline.to_owned(), sink.to_owned(), VecDeque::new());
        Machine { pipeline, sink, tables, state: State::default(), end: row, join_offset, items, tells_routes: false }
    }

    /// For a sink with patterns: what the reader's bases say of its tables is given out.
    pub fn telling_routes(self) -> Machine {
        Machine { tells_routes: true, ..self }
    }

    /// Takes a state that was folded elsewhere, for [`Machine::check_row`].
    pub fn begin_with(&mut self, state: State) {
        self.state = state;
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Requests of this sink that the state knows as open: what is loading, for [`Loads::of`] once the row is reached.
    pub fn loads(&self) -> Loads {
        Loads::of(&self.state, &self.sink)
    }

    /// The next entry of the ledger. Entries at or below the row's offset only fill the state.
    pub fn entry(&mut self, offset: i64, entry: Entry) -> Result<()> {
        let event = self.state.apply(offset, entry);
        if offset <= self.end.offset {
            if offset == self.end.offset && At::end_of(&self.state).offset != offset {
                return Err(self.lost());
            }
            return Ok(());
        }
        match event {
            Event::Valid(checkpoint) => self.chain(offset, checkpoint),
            Event::Requested(request) if request.sink == self.sink => {
                self.items.push_back(match request.kind {
                    RequestKind::Leave => Item::Left(offset, request),
                    _ => Item::Joined(offset, request),
                });
                Ok(())
            }
            // What stands before it counts no more; the next start of this worker goes on from there.
            Event::Restarted(_) => Err(Error::retry_plain(format!(
                "the source was begun anew (ledger entry {offset}), every table is loaded again"
            ))),
            Event::Done(done) => {
                let mine = self.state.joins.iter().any(|j| j.request.id == done.id && j.request.sink == self.sink);
                if mine {
                    self.items.push_back(Item::Loaded(done.id));
                }
                Ok(())
            }
            Event::Base if self.tells_routes => {
                if let Some(routed) = self.state.routed.as_ref().filter(|routed| routed.offset == offset) {
                    self.items.push_back(Item::Routed(offset, routed.tables.clone()));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Called when every entry up to the row's offset was given: the ledger must hold what the row names.
    pub fn check_row(&self) -> Result<()> {
        let held = At::end_of(&self.state);
        let same = (held.offset, held.epoch, held.position) == (self.end.offset, self.end.epoch, self.end.position);
        if same { Ok(()) } else { Err(self.lost()) }
    }

    /// The way out when the chain is broken: without a row the sink joins anew.
    fn anew(&self) -> String {
        format!(
            "DELETE FROM lockstep.progress WHERE pipeline = '{}' AND sink = '{}' at the sink, then start again",
            self.pipeline, self.sink
        )
    }

    fn lost(&self) -> Error {
        Error::halt(
            Code::LedgerLost,
            format!(
                "the progress of sink {} names checkpoint {} (epoch {}, {}), which the ledger does not hold",
                self.sink, self.end.offset, self.end.epoch, self.end.position
            ),
            self.anew(),
        )
    }

    fn chain(&mut self, offset: i64, checkpoint: Checkpoint) -> Result<()> {
        let prev = checkpoint.prev.map_or((-1, At::ORIGIN.epoch, Position::ORIGIN), |p| (p.offset, p.epoch, p.to));
        let end = (self.end.offset, self.end.epoch, self.end.position);
        if prev != end || checkpoint.from != self.end.position || checkpoint.to < checkpoint.from {
            let message = format!(
                "checkpoint {offset} does not follow the one that sink {} stands at: the ledger lost entries in between",
                self.sink
            );
            let facts =
                format!("it follows {} at {}, the sink stands at {} at {}", prev.0, checkpoint.from, end.0, end.2);
            return Err(Error::halt(Code::LedgerLost, message, self.anew()).fact(facts));
        }
        let topics: BTreeSet<&str> =
            self.state.relations.values().filter(|r| self.tables.contains(&r.name)).map(|r| r.topic.as_str()).collect();
        let mut mine = checkpoint;
        mine.spans.retain(|span| topics.contains(span.topic.as_str()));
        let chunks = mine.chunks.iter().any(|c| c.is_for(&self.sink) && self.tables.contains(&c.table));
        let interval = Interval { offset, concerns: chunks || !mine.spans.is_empty(), checkpoint: mine };
        self.end = interval.at(self.end);
        self.items.push_back(Item::Interval(Box::new(interval)));
        Ok(())
    }

    /// Whether the join was in the row when this machine started.
    pub fn is_known(&self, join_offset: i64) -> bool {
        join_offset <= self.join_offset
    }

    /// The row now knows of requests up to this offset.
    pub fn knows(&mut self, join_offset: i64) {
        self.join_offset = join_offset;
    }

    pub fn peek(&self) -> Option<&Item> {
        self.items.front()
    }

    pub fn pop(&mut self) -> Option<Item> {
        self.items.pop_front()
    }

    /// The item that was popped last, to be given out once more.
    pub fn put_back(&mut self, item: Item) {
        self.items.push_front(item);
    }

    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// Intervals for one transaction, up to so many records. What was committed does not wait for existing rows behind it.
    pub fn gather(&mut self, records_max: u64) -> Vec<Interval> {
        let mut gathered: Vec<Interval> = Vec::new();
        let (mut records, mut commits) = (0, false);
        while let Some(Item::Interval(next)) = self.items.front() {
            records += next.records();
            let is_late = records > records_max || (commits && !next.checkpoint.chunks.is_empty());
            if !gathered.is_empty() && is_late {
                break;
            }
            commits |= next.checkpoint.commit_time > 0;
            let Some(Item::Interval(next)) = self.items.pop_front() else { unreachable!("just looked") };
            gathered.push(*next);
        }
        gathered
    }

    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    /// Where the sink will stand once everything given out is applied.
    pub fn end(&self) -> At {
        self.end
    }
}

/// Tables under load at this sink and the ranges of them that are there, as of the items applied so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Loads {
    sink: String,
    /// Several of one table where ranges were asked for while what was asked for before was still to come here: a row takes
    /// changes if all of them let it.
    tables: HashMap<TableName, Vec<Loading>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Loading {
    request: Uuid,
    /// The table was whole before.
    reread: bool,
    /// Where the request stands in the ledger: only chunks after it answer it.
    since: i64,
    /// What it asks for; `None`: all of the table.
    within: Option<Within>,
    loaded: LoadedTable,
    /// Of the key that the ranges speak of, as far as anybody said.
    orders: Option<Vec<KeyOrder>>,
}

impl Loads {
    /// Nothing is under load.
    pub fn none(sink: &str) -> Loads {
        Loads { sink: sink.to_owned(), tables: HashMap::new() }
    }

    fn of(state: &State, sink: &str) -> Loads {
        let mut loads = Loads::none(sink);
        for join in state.open_joins().filter(|join| join.request.sink == sink) {
            loads.joined(join.offset, &join.request);
            for (table, loaded) in join.loaded.tables() {
                let of_table = loads.tables.get_mut(table).into_iter().flatten();
                for loading in of_table.filter(|loading| loading.request == join.request.id) {
                    loading.orders = orders_of(loaded, &state.relations);
                    loading.loaded = loaded.clone();
                }
            }
        }
        loads
    }

    /// The request's tables take changes only where chunks that stand after it have been. A request counts as soon as it is
    /// seen, however far behind the sink stands: that is the way past records that can't be had or rows that don't fit.
    pub fn joined(&mut self, offset: i64, request: &Request) {
        for table in request.read() {
            let of_table = self.tables.entry(table.clone()).or_default();
            if of_table.iter().any(|loading| loading.since >= offset) {
                continue;
            }
            let reread = request.kind.is_resync() && of_table.iter().all(|loading| loading.reread);
            let within = request.within.clone();
            // What it asks for too comes with its own chunks.
            of_table.retain(|loading| !covers(within.as_ref(), loading.within.as_ref()));
            let orders = within.as_ref().map(Within::orders);
            let loaded = within.as_ref().map_or_else(LoadedTable::default, Within::loaded);
            of_table.push(Loading { request: request.id, reread, since: offset, within, loaded, orders });
        }
    }

    /// Whether the chunk of the checkpoint at this offset is to be applied. Where a later request is open, it is not: changes
    /// of its range would not be taken from here on, so its rows would only grow old.
    pub fn wants(&self, offset: i64, chunk: &Chunk) -> bool {
        let answers =
            |loading: &Loading| chunk.request.is_none_or(|id| id == loading.request) && offset > loading.since;
        chunk.is_for(&self.sink) && self.tables.get(&chunk.table).is_none_or(|of_table| of_table.iter().any(answers))
    }

    /// A chunk that is wanted was applied: of what was asked for before it, it has the newest there is.
    pub fn chunk(&mut self, offset: i64, chunk: &Chunk, relations: &Relations) {
        let of_table = self.tables.get_mut(&chunk.table).into_iter().flatten();
        for loading in of_table.filter(|loading| loading.since < offset) {
            loading.loaded.insert(chunk, relations);
            loading.orders = orders_of(&loading.loaded, relations);
        }
    }

    /// The request's tables are no longer this sink's. A load that was asked for after it stays.
    pub fn left(&mut self, offset: i64, leave: &Request) {
        let named = |table: &TableName| leave.tables.is_empty() || leave.tables.contains(table);
        self.keep(|table, loading| loading.since > offset || !named(table));
    }

    /// The request is answered; tables that a later one asked for stay under load.
    pub fn loaded(&mut self, request: Uuid) {
        self.keep(|_, loading| loading.request != request);
    }

    fn keep(&mut self, keep: impl Fn(&TableName, &Loading) -> bool) {
        self.tables.retain(|table, of_table| {
            of_table.retain(|loading| keep(table, loading));
            !of_table.is_empty()
        });
    }

    fn of_table(&self, table: &TableName) -> &[Loading] {
        self.tables.get(table).map_or(&[], Vec::as_slice)
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Nothing of the table is there yet, so no change of it is wanted.
    pub fn is_blank(&self, table: &TableName) -> bool {
        self.of_table(table).iter().any(|loading| loading.loaded.cover.ranges.is_empty())
    }

    /// Everything of the table is there.
    pub fn is_whole(&self, table: &TableName) -> bool {
        self.of_table(table).iter().all(|loading| loading.loaded.cover.ranges.is_whole())
    }

    pub fn is_loading(&self, table: &TableName) -> bool {
        self.tables.contains_key(table)
    }

    /// A table under load that was whole before.
    pub fn is_reread(&self, table: &TableName) -> bool {
        self.is_loading(table) && self.of_table(table).iter().all(|loading| loading.reread)
    }

    /// Whether a part of the table takes changes for no other reason than that nobody asked for it.
    pub fn is_within(&self, table: &TableName) -> bool {
        self.of_table(table).iter().any(|loading| loading.within.is_some())
    }

    /// The ranges that are there of a table under load, and so what is still to be read: all else.
    pub fn loaded_ranges(&self, table: &TableName) -> Option<Vec<KeyRange>> {
        let (first, others) = self.of_table(table).split_first()?;
        let ranges = |loading: &Loading| loading.loaded.cover.ranges.clone();
        let both = |one: RangeSet, other: &Loading| match &other.orders {
            Some(orders) => one.intersection(orders, &ranges(other)).ok(),
            None => Some(RangeSet::default()).filter(|_| ranges(other).is_empty()),
        };
        // What can't be said is taken for loaded: a row that is not is only spared.
        let all = others.iter().try_fold(ranges(first), both).unwrap_or_else(|| vec![KeyRange::ALL].into());
        Some(all.into())
    }

    /// Whether a row with this key takes changes.
    pub fn admits(&self, table: &TableName, orders: &[KeyOrder], key: &[&[u8]]) -> Result<bool> {
        for loading in self.of_table(table) {
            if !self.admitted(loading, table, orders, key)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn admitted(&self, loading: &Loading, table: &TableName, orders: &[KeyOrder], key: &[&[u8]]) -> Result<bool> {
        if loading.orders.as_ref().is_some_and(|known| known != orders) {
            // A chunk that was on its way when the key was changed: what it says of other keys nobody knows.
            return Ok(false);
        }
        loading.loaded.cover.ranges.contains(orders, key).map_err(|e| {
            Error::halt(
                Code::RecordInvalid,
                format!("a key of {table} is not of its type: {e}"),
                format!("lockstep resync {table} --sink {}", self.sink),
            )
        })
    }
}

/// Whether who asks for the one asks for the other too; `None` is everything.
fn covers(one: Option<&Within>, other: Option<&Within>) -> bool {
    one.is_none_or(|one| other.is_some_and(|other| one.contains(other)))
}

fn orders_of(loaded: &LoadedTable, relations: &Relations) -> Option<Vec<KeyOrder>> {
    loaded.relation.and_then(|relation| relations.get(&relation)).map(|relation| orders(relation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::{Anchor, Body, Claim, Done};
    use crate::ledger::loaded::tests::version;
    use crate::relation::Fingerprint;

    const A: Epoch = Epoch { offset: 0, nonce: 5 };

    fn table() -> TableName {
        TableName::new("public", "t")
    }

    fn machine(row: At) -> Machine {
        Machine::new("p", "x", BTreeSet::from([table()]), row, -1)
    }

    fn claim(nonce: u64) -> Body {
        let (instance, version, host) = (Uuid::nil(), "0".to_owned(), "h".to_owned());
        Body::Claim(Claim { instance, nonce, timeline: 1, host, version })
    }

    fn checkpoint(epoch: Epoch, from: u64, to: u64, prev: Option<(i64, Epoch)>) -> Body {
        let at = |lsn| if lsn == 0 { Position::ORIGIN } else { Position::new(Lsn(lsn), 0) };
        Body::Checkpoint(Checkpoint {
            epoch,
            from: at(from),
            to: at(to),
            closed: Lsn(to),
            commit_time: 0,
            spans: vec![],
            chunks: vec![],
            again: vec![],
            forget: None,
            barriers: None,
            prev: prev.map(|(offset, epoch)| Anchor { offset, epoch, to: at(from) }),
        })
    }

    fn feed(machine: &mut Machine, bodies: &[Body]) -> Result<Vec<i64>> {
        for (offset, body) in (0..).zip(bodies) {
            machine.entry(offset, Entry::new(None, body.clone()))?;
        }
        let offsets = machine.items.iter().filter_map(|item| match item {
            Item::Interval(interval) => Some(interval.offset),
            _ => None,
        });
        Ok(offsets.collect())
    }

    #[test]
    fn what_is_committed_is_not_gathered_with_rows_behind_it() {
        let rows = || {
            let (relation, range, sinks, request) = (Fingerprint(1), KeyRange::ALL, None, None);
            Chunk { relation, table: table(), range, at: Position::ORIGIN, rows: 1, sinks, request }
        };
        let mut machine = machine(At::ORIGIN);
        // Commits and chunks of each interval.
        let script = [(0, 1), (0, 1), (7, 1), (7, 0), (7, 0), (0, 1), (7, 0), (7, 1)];
        for (offset, (commit_time, chunks)) in (0..).zip(script) {
            let Body::Checkpoint(checkpoint) = checkpoint(A, 0, 1, None) else { unreachable!("as made") };
            let chunks = (0..chunks).map(|_| rows()).collect();
            let checkpoint = Checkpoint { commit_time, chunks, ..checkpoint };
            machine.items.push_back(Item::Interval(Box::new(Interval { offset, concerns: true, checkpoint })));
        }
        let mut gathered = || machine.gather(100).iter().map(|interval| interval.offset).collect::<Vec<_>>();
        assert_eq!([gathered(), gathered(), gathered()], [vec![0, 1, 2, 3, 4], vec![5, 6], vec![7]]);
    }

    #[test]
    fn valid_checkpoints_are_given_out_as_a_chain_and_a_zombies_are_not() {
        let b = Epoch { offset: 2, nonce: 6 };
        let bodies = [
            claim(5),
            checkpoint(A, 0, 10, None),
            claim(6),
            checkpoint(A, 10, 20, Some((1, A))),
            checkpoint(b, 10, 21, Some((1, A))),
        ];
        assert_eq!(feed(&mut machine(At::ORIGIN), &bodies).unwrap(), [1, 4]);
        let row = At { offset: 1, epoch: A, position: Position::new(Lsn(10), 0), ..At::ORIGIN };
        assert_eq!(feed(&mut machine(row), &bodies).unwrap(), [4]);
    }

    #[test]
    fn a_broken_chain_halts() {
        let lost = |bodies: &[Body]| feed(&mut machine(At::ORIGIN), bodies).unwrap_err().code();
        // the entry at 1 was lost and another one stands there
        assert_eq!(
            lost(&[claim(5), claim(5), checkpoint(Epoch { offset: 1, nonce: 5 }, 10, 20, Some((1, A)))]),
            Some(Code::LedgerLost)
        );
        assert_eq!(lost(&[claim(5), checkpoint(A, 0, 10, None), checkpoint(A, 10, 20, None)]), Some(Code::LedgerLost));
        assert_eq!(
            lost(&[claim(5), checkpoint(A, 0, 10, None), checkpoint(A, 9, 20, Some((1, A)))]),
            Some(Code::LedgerLost)
        );
        let row = At { offset: 1, epoch: A, position: Position::new(Lsn(11), 0), ..At::ORIGIN };
        let mut other = machine(row);
        feed(&mut other, &[claim(5), checkpoint(A, 0, 10, None)]).unwrap();
        assert_eq!(other.check_row().unwrap_err().code(), Some(Code::LedgerLost));
    }

    #[test]
    fn a_table_under_load_takes_changes_only_where_a_chunk_was() {
        let request = Request::new(Uuid::from_u128(1), RequestKind::Join, "x", vec![table()], "");
        let chunk = Chunk {
            relation: crate::relation::Fingerprint(1),
            table: table(),
            range: KeyRange { after: None, through: Some(vec!["5".into()]) },
            at: Position::ORIGIN,
            rows: 0,
            sinks: None,
            request: None,
        };
        let mut loads = Loads::none("x");
        let admits = |loads: &Loads, key: &[u8]| loads.admits(&table(), &[KeyOrder::Integer], &[key]).unwrap();
        assert!(admits(&loads, b"3"));
        loads.joined(4, &request);
        assert!(!admits(&loads, b"3"));
        assert!(!loads.wants(5, &Chunk { sinks: Some(vec!["other".into()]), ..chunk.clone() }));
        assert!(!loads.wants(5, &Chunk { request: Some(Uuid::from_u128(2)), ..chunk.clone() }));
        assert!(!loads.wants(3, &chunk) && loads.is_blank(&table()));
        assert!(loads.wants(5, &Chunk { sinks: Some(vec!["x".into()]), ..chunk.clone() }));
        assert!(loads.wants(5, &chunk));
        loads.chunk(5, &chunk, &Relations::new());
        assert!(admits(&loads, b"3") && admits(&loads, b"5") && !admits(&loads, b"6"));
        // The key is a text from here on, and the chunk was read before.
        let made = crate::relation::Relation { fingerprint: chunk.relation, ..version(&table(), 1, 23) };
        let relations = Relations::from([(chunk.relation, made.into())]);
        loads.chunk(5, &chunk, &relations);
        assert!(admits(&loads, b"3") && !loads.admits(&table(), &[KeyOrder::Text], &[b"3"]).unwrap());
        loads.loaded(Uuid::from_u128(1));
        assert!(admits(&loads, b"6") && loads.is_empty());
    }

    #[test]
    fn done_of_another_epoch_is_ignored() {
        let request = |id| Body::Request(Request::new(Uuid::from_u128(id), RequestKind::Join, "x", vec![table()], ""));
        let done = |epoch| Body::Done(Done { id: Uuid::from_u128(1), epoch, result: "ok".into() });
        let mut m = machine(At::ORIGIN);
        let zombie = Epoch { offset: 9, nonce: 9 };
        feed(&mut m, &[claim(5), request(1), done(zombie)]).unwrap();
        assert!(matches!(m.items.as_slices().0, [Item::Joined(1, _)]));
        m.entry(3, Entry::new(None, done(A))).unwrap();
        assert!(matches!(m.items.as_slices().0, [Item::Joined(1, _), Item::Loaded(_)]));
    }
}

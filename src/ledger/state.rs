//! What is true after a prefix of the ledger: a fold, the same for reader and sinks.
//!
//! A checkpoint is valid iff its epoch is the latest claim before it. `base`, `done` and `restart` count only as a checkpoint
//! does (a zombie's are ignored); `relation` and `request` count whoever wrote them. A start begins at a base that an entry names and
//! arrives at the same state as one that began at the first entry (models/base.py).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::ledger::entry::{
    Anchor, Base, Body, Checkpoint, Chunk, Done, Entry, Join, LastCheckpoint, Request, RequestKind, Restart, Restarted,
    SourceIdentity, TopicIdentity, Upgraded,
};
use crate::ledger::loaded::{Loaded, Relations};
use crate::ledger::signalled::{self, Signalled};
use crate::look::Look;
use crate::lsn::Position;
use crate::record::Epoch;
use crate::relation::{Fingerprint, Relation, TableName};

/// Versions of a table that outlive those who write by them. A sink that follows a table's shape compares with the one before.
const VERSIONS_KEPT: usize = 4;

/// The fold. Cheap to clone but for the relations, which are shared.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Offset of the entry applied last.
    pub offset: Option<i64>,
    /// The epoch in force.
    pub claim: Option<Epoch>,
    /// The source's timeline when the epoch in force began.
    pub timeline: Option<u32>,
    /// The one that `last` was read on, or one that whoever wrote a base since then found to have all of it. A claim alone says
    /// nothing of that: it may be of a reader that came too late, on a primary that nobody had stopped.
    pub read_on: Option<u32>,
    /// A slot name that was about to be made and has no `source` yet.
    pub intent: Option<String>,
    pub source: Option<SourceIdentity>,
    pub last: Option<LastCheckpoint>,
    pub relations: Relations,
    /// Where each relation was told of last, or the base that the fold began at.
    pub relations_at: HashMap<Fingerprint, i64>,
    pub topics: BTreeMap<String, TopicIdentity>,
    /// Joins and resyncs in ledger order, but for those that later ones cover; those of one sink say which tables it has.
    pub joins: Vec<Join>,
    /// Tables that an older reader reads from their beginning, whatever was loaded of them.
    pub again: Vec<TableName>,
    /// What was loaded and no longer counts is told of by itself; `again` counts for nobody who reads this.
    pub forgets: bool,
    /// The source's tables as the newest valid base knows them.
    pub catalog: BTreeMap<TableName, Look>,
    /// The newest base that an entry may name: one that says what was true where it stands. A base is made from what its
    /// writer had read back; what landed between that and the base itself is not in it, and a start there would not see it.
    pub base: Option<i64>,
    /// A restart that was asked for and has not happened.
    pub asked: Option<Request>,
    /// The source that such a restart has made ready; it takes effect with the restart.
    pub next: Option<SourceIdentity>,
    /// The last restart.
    pub restarted: Option<Restarted>,
    /// What the source's server was before pg_upgrade made it: system ids, oldest first. Rows of progress may name one of them.
    pub formerly: Vec<u64>,
    /// Requests that a reader has ended and whose end it has not read back.
    pub ended: BTreeSet<uuid::Uuid>,
    /// The tables that the reader has, as the newest valid base says that says so.
    pub routed: Option<Routed>,
    /// The newest signal of the source that became requests: those up to it count no second time.
    pub signalled: Option<Signalled>,
    /// Existing rows are not read until somebody resumes it; who asked for that.
    pub paused: Option<String>,
}

/// The tables of a reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// Of the base.
    pub offset: i64,
    pub tables: Vec<TableName>,
}

/// What an entry meant where it stood.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new epoch is in force.
    Claimed(Epoch),
    Valid(Checkpoint),
    /// A checkpoint, base or done of an epoch that is not in force.
    Superseded(Epoch),
    Relation(Fingerprint),
    Requested(Request),
    /// A request of a signal that became one before.
    Repeated,
    Done(Done),
    Restarted(Restart),
    Base,
    Source,
}

impl State {
    /// Applies the entry at `offset`; offsets rise.
    pub fn apply(&mut self, offset: i64, entry: Entry) -> Event {
        assert!(self.offset.is_none_or(|last| offset > last), "ledger offsets rise: {offset} after {:?}", self.offset);
        self.offset = Some(offset);
        match entry.body {
            Body::Source(source) => {
                // Of several the first counts: others are of readers that were slower.
                let slot = if self.asked.is_some() { &mut self.next } else { &mut self.source };
                if let Some(made) = source.made {
                    slot.get_or_insert(made);
                    self.intent = None;
                } else if slot.is_none() {
                    self.intent = source.intent;
                }
                Event::Source
            }
            Body::Claim(claim) => {
                let epoch = Epoch { offset: offset.unsigned_abs(), nonce: claim.nonce };
                self.claim = Some(epoch);
                self.timeline = Some(claim.timeline);
                Event::Claimed(epoch)
            }
            Body::Relation(entry) => {
                let fingerprint = entry.relation.fingerprint;
                self.relations.insert(fingerprint, Arc::new(entry.relation));
                self.relations_at.insert(fingerprint, offset);
                Event::Relation(fingerprint)
            }
            Body::Checkpoint(checkpoint) => self.checkpoint(offset, checkpoint),
            Body::Base(base) => self.base(offset, *base),
            Body::Request(request) if signalled::is_repeat(&mut self.signalled, &request) => Event::Repeated,
            Body::Request(request) => {
                let request = request.behind(&self.joins, &self.ended);
                match request.kind {
                    RequestKind::Join | RequestKind::Resync | RequestKind::ResyncRange | RequestKind::Load => {
                        let loaded = Loaded::of_request(&request);
                        let join = Join { offset, request: request.clone(), loaded, done: false };
                        self.joins.push(join);
                    }
                    RequestKind::Leave => self.leave(&request),
                    RequestKind::Pause => drop(self.paused.get_or_insert_with(|| request.asked_by.clone())),
                    RequestKind::Resume => self.paused = None,
                    RequestKind::Stop => self.stop(&request),
                    RequestKind::Restart => {
                        // What an earlier one made ready may be gone by now, which may be why it was asked for again.
                        (self.asked, self.next, self.intent) = (Some(request.clone()), None, None);
                    }
                }
                Event::Requested(request)
            }
            Body::Restart(restart) => self.restart(offset, restart),
            Body::Upgraded(upgraded) => {
                self.upgraded(upgraded);
                Event::Source
            }
            Body::Done(done) => {
                if self.claim != Some(done.epoch) {
                    return Event::Superseded(done.epoch);
                }
                self.ended.remove(&done.id);
                self.finish(done.id);
                self.prune_joins(done.id);
                Event::Done(done)
            }
        }
    }

    fn checkpoint(&mut self, offset: i64, checkpoint: Checkpoint) -> Event {
        if self.claim != Some(checkpoint.epoch) {
            return Event::Superseded(checkpoint.epoch);
        }
        let before = self.last.map(|last| last.commit_time).unwrap_or_default();
        self.read_on = self.timeline;
        self.last = Some(LastCheckpoint {
            anchor: Anchor { offset, epoch: checkpoint.epoch, to: checkpoint.to },
            closed: checkpoint.closed,
            commit_time: if checkpoint.commit_time == 0 { before } else { checkpoint.commit_time },
        });
        self.again.clone_from(&checkpoint.again);
        self.forgets = checkpoint.forget.is_some();
        for join in self.joins.iter_mut().filter(|join| !join.done) {
            let request = &join.request;
            let answers = |chunk: &Chunk| {
                let is_asked = match chunk.request {
                    Some(id) => id == request.id,
                    None => chunk.is_for(&request.sink),
                };
                is_asked && request.tables.contains(&chunk.table)
            };
            join.loaded.checkpoint(&checkpoint, request, answers, &self.relations);
        }
        Event::Valid(checkpoint)
    }

    fn leave(&mut self, leave: &Request) {
        for join in self.joins.iter_mut().filter(|join| join.request.sink == leave.sink) {
            join.request.tables.retain(|table| !leave.tables.is_empty() && !leave.tables.contains(table));
            join.loaded.retain(|table| join.request.tables.contains(table));
        }
        self.joins.retain(|join| !join.request.tables.is_empty());
    }

    /// Somebody has these tables, and is not to get their rows once more. A first load goes on.
    fn stop(&mut self, stop: &Request) {
        let again: BTreeSet<TableName> =
            stop.tables.iter().filter(|table| self.is_had(&stop.sink, table)).cloned().collect();
        let ended = &self.ended;
        let is_open = |join: &&mut Join| !join.done || ended.contains(&join.request.id);
        for join in self.joins.iter_mut().filter(|join| join.request.sink == stop.sink).filter(is_open) {
            join.request.tables.retain(|table| !again.contains(table));
            join.loaded.retain(|table| join.request.tables.contains(table));
        }
        self.joins.retain(|join| !join.request.tables.is_empty());
    }

    /// Whether the sink was given all of the table before.
    pub fn is_had(&self, sink: &str, table: &TableName) -> bool {
        let is_over = |join: &&Join| join.done && !self.ended.contains(&join.request.id);
        let mut given = self.joins.iter().filter(is_over);
        given.any(|join| join.request.sink == sink && join.request.within.is_none() && join.request.reads(table))
    }

    /// Positions go on where they were. Whoever still reads the old server reads it in vain: its epoch is over.
    fn upgraded(&mut self, upgraded: Upgraded) {
        let Upgraded { from, to, published } = upgraded;
        if self.asked.is_some() || self.source.as_ref().is_none_or(|source| source.system_id != from) {
            return;
        }
        self.claim = None;
        self.timeline = Some(to.timeline);
        // Its histories begin with itself.
        self.read_on = Some(to.timeline);
        if let Some(last) = &mut self.last {
            last.closed = last.closed.max(to.consistent_point);
        }
        for (table, mark) in published {
            self.catalog.entry(table).and_modify(|look| look.published = Some(mark));
        }
        self.formerly.push(from);
        self.source = Some(to);
    }

    fn restart(&mut self, offset: i64, restart: Restart) -> Event {
        if self.claim != Some(restart.epoch) {
            return Event::Superseded(restart.epoch);
        }
        self.source = self.next.take().or(self.source.take());
        self.formerly.clear();
        (self.asked, self.intent) = (None, None);
        let anchor = Anchor { offset, epoch: restart.epoch, to: Position::ORIGIN };
        self.read_on = self.timeline;
        self.last = Some(LastCheckpoint { anchor, closed: restart.new, commit_time: 0 });
        // Topics may be others, and every sink asks for its tables again.
        self.topics.clear();
        self.joins.clear();
        (self.again, self.forgets) = (Vec::new(), false);
        self.catalog.clear();
        (self.routed, self.signalled) = (None, None);
        // A sink may have been away since the restart before.
        let before = self.restarted.take().and_then(|restarted| restarted.old_ledger);
        let Restart { epoch, new, old_ledger, .. } = restart;
        self.restarted = Some(Restarted { offset, epoch, new, old_ledger: old_ledger.or(before) });
        Event::Restarted(restart)
    }

    fn base(&mut self, offset: i64, base: Base) -> Event {
        let fresh = self.claim.is_none() && self.last.is_none() && self.source.is_none();
        if !fresh {
            if self.claim != Some(base.epoch) {
                return Event::Superseded(base.epoch);
            }
            if self.is_described_by(&base) {
                self.base = Some(offset);
            }
            self.read_on = self.timeline;
            self.topics = base.topics;
            self.catalog = base.catalog.into_iter().collect();
            self.route(offset, base.tables);
            return Event::Base;
        }
        self.base = Some(offset);
        self.claim = Some(base.epoch);
        (self.timeline, self.read_on) = (Some(base.timeline), Some(base.timeline));
        self.last = base.last;
        self.source = base.source;
        self.topics = base.topics;
        self.joins = base.joins;
        (self.again, self.forgets) = (base.again, base.forgets);
        self.catalog = base.catalog.into_iter().collect();
        (self.restarted, self.formerly) = (base.restarted, base.formerly);
        (self.signalled, self.paused) = (base.signalled, base.paused);
        self.route(offset, base.tables);
        for relation in base.relations {
            self.relations_at.insert(relation.fingerprint, offset);
            self.relations.insert(relation.fingerprint, Arc::new(relation));
        }
        self.joins.iter_mut().for_each(|join| join.loaded.put_in_order(&self.relations));
        Event::Base
    }

    fn route(&mut self, offset: i64, tables: Option<Vec<TableName>>) {
        if let Some(tables) = tables {
            self.routed = Some(Routed { offset, tables });
        }
    }

    /// Whether a start at this base would know what is known here.
    fn is_described_by(&self, base: &Base) -> bool {
        let known: HashSet<Fingerprint> = base.relations.iter().map(|r| r.fingerprint).collect();
        let is_left_out = |fingerprint| match (self.relations_at.get(fingerprint), base.read) {
            (Some(at), Some(read)) => *at <= read,
            _ => false,
        };
        (self.last, &self.source, self.timeline.unwrap_or_default()) == (base.last, &base.source, base.timeline)
            && self.joins == base.joins
            && (&self.again, self.forgets) == (&base.again, base.forgets)
            && self.restarted == base.restarted
            && (&self.signalled, &self.paused) == (&base.signalled, &base.paused)
            // An open restart is told by its own entries: a start must see them.
            && self.asked.is_none()
            // What its writer had read back and left out nobody needs any more.
            && self.relations.keys().all(|fingerprint| known.contains(fingerprint) || is_left_out(fingerprint))
    }

    /// The versions of the relation with this OID, newest first.
    pub fn versions_of(&self, oid: u32) -> Vec<Arc<Relation>> {
        let mut found: Vec<Arc<Relation>> = self.relations.values().filter(|r| r.oid == oid).cloned().collect();
        // One that was not read back yet is the newest.
        let at = |r: &Arc<Relation>| self.relations_at.get(&r.fingerprint).copied().unwrap_or(i64::MAX);
        found.sort_by_key(|relation| std::cmp::Reverse(at(relation)));
        found
    }

    /// The version of the table that was told of last.
    pub fn newest_of(&self, table: &TableName) -> Option<&Arc<Relation>> {
        let at = |r: &&Arc<Relation>| self.relations_at.get(&r.fingerprint).copied().unwrap_or(i64::MAX);
        self.relations.values().filter(|relation| relation.name == *table).max_by_key(at)
    }

    /// The reader itself says that the request is answered. To requests that come before its word in the ledger it is open.
    pub fn end(&mut self, request: uuid::Uuid) {
        self.ended.insert(request);
        self.finish(request);
    }

    /// The request is answered: from here on nobody asks for its ranges.
    fn finish(&mut self, request: uuid::Uuid) {
        if let Some(join) = self.joins.iter_mut().find(|join| join.request.id == request) {
            join.done = true;
            join.loaded = Loaded::default();
        }
    }

    /// Forgets requests that later ones cover: each of their tables was loaded for their sink once more. A first load is
    /// covered by nothing less, for a sink that stands before both has nothing of the table. The one that was answered
    /// just now stays: its sink is still to see it.
    fn prune_joins(&mut self, answered: uuid::Uuid) {
        let is_covered = |place: usize, join: &Join| {
            let covers = |later: &Join, table: &TableName| {
                later.done
                    && later.request.sink == join.request.sink
                    && later.request.tables.contains(table)
                    && (!later.request.kind.is_resync() || join.request.kind.is_resync())
                    && later.request.covers_ranges_of(&join.request)
                    // How the sink takes a table is told by the newest request that says so.
                    && (later.request.says(table) || !join.request.says(table))
            };
            let later = &self.joins[place + 1..];
            join.done && join.request.tables.iter().all(|table| later.iter().any(|later| covers(later, table)))
        };
        let keep: Vec<bool> = self
            .joins
            .iter()
            .enumerate()
            .map(|(place, join)| join.request.id == answered || !is_covered(place, join))
            .collect();
        let mut keep = keep.into_iter();
        self.joins.retain(|_| keep.next().expect("one for each"));
    }

    /// Forgets versions that no record behind the next base is of: the reader's `used` ones stay, those that open loads speak
    /// of, and the newest of each table that somebody has, by which sinks see what became of a table.
    pub fn prune_relations(&mut self, used: &HashSet<Fingerprint>, routed: &[TableName]) {
        let mut tables: HashSet<&TableName> = routed.iter().collect();
        tables.extend(self.joins.iter().flat_map(|join| &join.request.tables));
        let mut keep = used.clone();
        keep.extend(self.open_joins().flat_map(|join| join.loaded.tables()).filter_map(|(_, of)| of.relation));
        let mut versions: HashMap<&TableName, Vec<(i64, Fingerprint)>> = HashMap::new();
        for relation in self.relations.values().filter(|relation| tables.contains(&relation.name)) {
            // One that was told of and not read back yet is the newest.
            let at = self.relations_at.get(&relation.fingerprint).copied().unwrap_or(i64::MAX);
            versions.entry(&relation.name).or_default().push((at, relation.fingerprint));
        }
        for mut of_table in versions.into_values() {
            of_table.sort_unstable_by(|a, b| b.cmp(a));
            keep.extend(of_table.into_iter().take(VERSIONS_KEPT).map(|(_, fingerprint)| fingerprint));
        }
        self.relations.retain(|fingerprint, _| keep.contains(fingerprint));
        self.relations_at.retain(|fingerprint, _| keep.contains(fingerprint));
    }

    /// This state as a base entry of the epoch in force; `tables` are those that its writer has.
    pub fn as_base(
        &self,
        epoch: Epoch,
        topics: BTreeMap<String, TopicIdentity>,
        catalog: BTreeMap<TableName, Look>,
        tables: Vec<TableName>,
    ) -> Base {
        let mut relations: Vec<Relation> = self.relations.values().map(|r| Relation::clone(r)).collect();
        relations.sort_by_key(|relation| relation.fingerprint);
        let timeline = self.timeline.unwrap_or_default();
        Base {
            epoch,
            last: self.last,
            source: self.source.clone(),
            relations,
            topics,
            joins: self.joins.clone(),
            again: self.again.clone(),
            forgets: self.forgets,
            read: self.offset,
            catalog: catalog.into_iter().collect(),
            timeline,
            restarted: self.restarted.clone(),
            formerly: self.formerly.clone(),
            tables: Some(tables),
            signalled: self.signalled.clone(),
            paused: self.paused.clone(),
        }
    }

    /// Sinks that have asked for one of these tables so far, each with those that it asked for.
    pub fn sinks_of(&self, tables: &[TableName]) -> BTreeMap<String, Vec<TableName>> {
        let mut sinks: BTreeMap<String, Vec<TableName>> = BTreeMap::new();
        for sink in self.joins.iter().map(|join| &join.request.sink) {
            let joined = self.joined(sink);
            let of_sink: Vec<TableName> = tables.iter().filter(|table| joined.contains(table)).cloned().collect();
            if !of_sink.is_empty() {
                sinks.insert(sink.clone(), of_sink);
            }
        }
        sinks
    }

    /// Tables that the sink has asked for so far.
    pub fn joined(&self, sink: &str) -> std::collections::BTreeSet<TableName> {
        let of_sink = self.joins.iter().filter(|join| join.request.sink == sink);
        of_sink.flat_map(|join| join.request.tables.iter().cloned()).collect()
    }

    /// Requests that are not done, oldest first.
    pub fn open_joins(&self) -> impl Iterator<Item = &Join> {
        self.joins.iter().filter(|join| !join.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyRange;
    use crate::ledger::entry::{Claim, RelationEntry, SourceEntry};
    use crate::lsn::Lsn;
    use uuid::Uuid;

    fn claim(nonce: u64) -> Body {
        let (instance, version, host) = (Uuid::nil(), "0".to_owned(), "h".to_owned());
        Body::Claim(Claim { instance, nonce, timeline: 1, host, version })
    }

    fn checkpoint(epoch: Epoch, to: u64, chunks: Vec<Chunk>) -> Body {
        Body::Checkpoint(Checkpoint {
            epoch,
            from: Position::ORIGIN,
            to: Position::new(Lsn(to), 0),
            closed: Lsn(to),
            commit_time: 0,
            spans: vec![],
            chunks,
            again: vec![],
            forget: None,
            barriers: None,
            prev: None,
        })
    }

    fn fold(bodies: &[Body]) -> (State, Vec<Event>) {
        let mut state = State::default();
        let events = (0..).zip(bodies).map(|(o, body)| state.apply(o, Entry::new(None, body.clone()))).collect();
        (state, events)
    }

    #[test]
    fn a_checkpoint_is_valid_iff_its_epoch_is_the_latest_claim_before_it() {
        let (a, b) = (Epoch { offset: 0, nonce: 5 }, Epoch { offset: 2, nonce: 6 });
        let (state, events) = fold(&[
            claim(5),
            checkpoint(a, 10, vec![]),
            claim(6),
            checkpoint(a, 20, vec![]),
            checkpoint(b, 30, vec![]),
        ]);
        assert!(matches!(events[1], Event::Valid(_)) && matches!(events[4], Event::Valid(_)));
        assert_eq!(events[3], Event::Superseded(a));
        assert_eq!(state.last.unwrap().anchor, Anchor { offset: 4, epoch: b, to: Position::new(Lsn(30), 0) });
    }

    #[test]
    fn an_epoch_is_its_offset_and_its_nonce() {
        let imposter = Epoch { offset: 0, nonce: 7 };
        let (_, events) = fold(&[claim(5), checkpoint(imposter, 10, vec![])]);
        assert_eq!(events[1], Event::Superseded(imposter));
    }

    #[test]
    fn a_chunk_answers_its_request_or_all_before_it() {
        let table = TableName::new("public", "t");
        let request = |id: u128, sink: &str| {
            let tables = vec![table.clone()];
            let (id, kind, sink) = (Uuid::from_u128(id), RequestKind::Join, sink.to_owned());
            Body::Request(Request {
                id,
                kind,
                sink,
                tables,
                asked_by: String::new(),
                old_ledger: None,
                taken: vec![],
                within: None,
                signal: None,
            })
        };
        let chunk = |request: Option<u128>, sinks: Option<&str>| Chunk {
            relation: Fingerprint(1),
            table: table.clone(),
            range: KeyRange { after: None, through: None },
            at: Position::ORIGIN,
            rows: 0,
            sinks: sinks.map(|s| vec![s.to_owned()]),
            request: request.map(Uuid::from_u128),
        };
        let a = Epoch { offset: 0, nonce: 5 };
        let named = checkpoint(a, 1, vec![chunk(Some(1), Some("x"))]);
        let (state, _) = fold(&[
            claim(5),
            request(1, "x"),
            request(2, "y"),
            named,
            checkpoint(a, 2, vec![chunk(None, None)]),
            request(3, "z"),
        ]);
        let ranges = |join: &Join| join.loaded.table(&table).map_or(0, |table| table.cover.ranges.iter().count());
        let loaded: Vec<usize> = state.joins.iter().map(ranges).collect();
        assert_eq!(loaded, [2, 1, 0], "of a version that nobody told of each range stands by itself");
    }

    #[test]
    fn a_start_from_a_base_sees_what_a_start_from_the_first_entry_sees() {
        let a = Epoch { offset: 1, nonce: 5 };
        let identity = SourceIdentity {
            system_id: 1,
            timeline: 1,
            database: "d".into(),
            slot: "s".into(),
            consistent_point: Lsn(1),
        };
        let source = Body::Source(SourceEntry { intent: None, made: Some(identity) });
        let Body::Checkpoint(plain) = checkpoint(a, 10, vec![]) else { unreachable!("just made") };
        let torn = Checkpoint { again: vec![TableName::new("public", "t")], ..plain };
        let (full, _) = fold(&[source, claim(5), Body::Checkpoint(torn)]);
        let base = Entry::new(None, Body::Base(Box::new(full.as_base(a, BTreeMap::new(), BTreeMap::new(), vec![]))));
        let bytes = base.encode(a, 0).remove(0);
        let crate::ledger::entry::Piece::Whole(base) = Entry::decode(3, &bytes).unwrap() else { panic!("one part") };
        let mut short = State::default();
        short.apply(3, base.clone());
        assert_eq!((short.claim, short.last, &short.source), (full.claim, full.last, &full.source));
        assert_eq!((short.again.len(), &short.again), (1, &full.again));
        // a base that something landed in front of is not to be named
        let mut behind = full.clone();
        assert!(matches!(behind.apply(4, Entry::new(None, checkpoint(a, 11, vec![]))), Event::Valid(_)));
        assert_eq!((behind.apply(5, base.clone()), behind.base), (Event::Base, None));
        let mut level = full.clone();
        assert_eq!((level.apply(5, base.clone()), level.base), (Event::Base, Some(5)));
        // nor one that a restart was asked for in front of
        let mut asked = full.clone();
        let (id, kind, tables) = (Uuid::from_u128(9), RequestKind::Restart, vec![]);
        let request = Request::new(id, kind, "", tables, "");
        asked.apply(4, Entry::new(None, Body::Request(request)));
        assert_eq!((asked.apply(5, base.clone()), asked.base), (Event::Base, None));
        // a zombie's base changes nothing
        let mut later = full.clone();
        later.apply(4, Entry::new(None, claim(9)));
        assert_eq!(later.apply(5, base), Event::Superseded(a));
    }

    fn request(kind: RequestKind, sink: &str, tables: &[&str]) -> Body {
        let tables = tables.iter().map(|name| TableName::new("public", *name)).collect();
        Body::Request(Request::new(Uuid::from_u128(1), kind, sink, tables, ""))
    }

    #[test]
    fn a_pause_lasts_until_somebody_ends_it_and_stands_in_bases() {
        let (pause, resume) = (|| request(RequestKind::Pause, "", &[]), request(RequestKind::Resume, "", &[]));
        let Body::Request(first) = pause() else { unreachable!("just made") };
        let first = Body::Request(Request { asked_by: "first".into(), ..first });
        let (state, _) = fold(&[claim(5), first, pause()]);
        assert_eq!(state.paused.as_deref(), Some("first"));
        let base = state.as_base(Epoch { offset: 0, nonce: 5 }, BTreeMap::new(), BTreeMap::new(), vec![]);
        let mut begun = State::default();
        begun.apply(7, Entry::new(None, Body::Base(Box::new(base.clone()))));
        assert_eq!(begun.paused.as_deref(), Some("first"));
        let mut behind = state.clone();
        behind.apply(8, Entry::new(None, resume));
        assert_eq!(behind.paused, None);
        behind.apply(9, Entry::new(None, Body::Base(Box::new(base))));
        assert_eq!(behind.base, None, "a start there would not know");
    }

    #[test]
    fn what_topics_have_may_be_left_as_it_is_and_a_first_load_may_not() {
        let load = |number, tables: &[&str]| {
            let Body::Request(load) = asked(number, RequestKind::Load, tables) else { unreachable!("just made") };
            Body::Request(Request { sink: String::new(), ..load })
        };
        let stop = request(RequestKind::Stop, "", &["a", "b"]);
        let (state, _) = fold(&[claim(5), load(1, &["a", "c"]), done(1), load(2, &["a", "b"]), load(3, &["a"]), stop]);
        let of =
            |join: &Join| (join.request.id.as_u128(), join.request.tables.iter().map(|t| t.table.clone()).collect());
        let kept: Vec<(u128, Vec<String>)> = state.joins.iter().map(of).collect();
        assert_eq!(kept, [(1, vec!["a".into(), "c".into()]), (2, vec!["b".into()])]);
    }

    #[test]
    fn who_leaves_is_forgotten() {
        let (join, leave) = (RequestKind::Join, RequestKind::Leave);
        let left = |leave: Body| {
            let (state, _) = fold(&[request(join, "x", &["a", "b"]), request(join, "y", &["a"]), leave]);
            let of = |sink: &str| state.joined(sink).iter().map(|table| table.table.clone()).collect::<Vec<_>>();
            (of("x"), of("y"))
        };
        assert_eq!(left(request(leave, "x", &["a"])), (vec!["b".into()], vec!["a".into()]));
        assert_eq!(left(request(leave, "x", &[])), (vec![], vec!["a".to_owned()]));
        assert_eq!(left(request(leave, "y", &["a", "b"])), (vec!["a".into(), "b".into()], vec![]));
    }

    fn asked(number: u128, kind: RequestKind, tables: &[&str]) -> Body {
        let Body::Request(request) = request(kind, "x", tables) else { unreachable!("just made") };
        Body::Request(Request { id: Uuid::from_u128(number), ..request })
    }

    fn done(number: u128) -> Body {
        let epoch = Epoch { offset: 0, nonce: 5 };
        Body::Done(Done { id: Uuid::from_u128(number), epoch, result: String::new() })
    }

    #[test]
    fn a_request_that_later_ones_cover_is_forgotten_and_a_first_load_is_not_for_a_second_reading() {
        let (join, resync) = (RequestKind::Join, RequestKind::Resync);
        let kept = |bodies: &[Body]| -> Vec<u128> {
            let (state, _) = fold(&[&[claim(5)], bodies].concat());
            state.joins.iter().map(|join| join.request.id.as_u128()).collect()
        };
        let first = [asked(1, join, &["a", "b"]), asked(2, resync, &["a"]), asked(3, resync, &["b"])];
        let again = [asked(4, resync, &["a"]), asked(5, resync, &["a", "b"])];
        let bodies = [&first[..], &[done(1), done(2), done(3)], &again].concat();
        assert_eq!(kept(&bodies), [1, 2, 3, 4, 5], "they are not answered");
        assert_eq!(kept(&[&bodies[..], &[done(4)]].concat()), [1, 3, 4, 5]);
        assert_eq!(kept(&[&bodies[..], &[done(5)]].concat()), [1, 4, 5], "one that is open is still to be loaded");
        assert_eq!(kept(&[&bodies[..], &[done(5), done(4)]].concat()), [1, 4, 5], "its sink is still to see it");
        assert_eq!(kept(&[&bodies[..], &[done(5), done(4), asked(6, join, &["a", "b"]), done(6)]].concat()), [6]);
    }

    #[test]
    fn a_base_leaves_out_versions_that_nobody_needs_and_is_named_all_the_same() {
        let name = |table: &str| TableName::new("public", table);
        let told = |number: u64, table: &str| {
            let fingerprint = Fingerprint(number);
            let relation = Relation { fingerprint, ..crate::ledger::loaded::tests::version(&name(table), 1, 23) };
            Body::Relation(Box::new(RelationEntry { relation }))
        };
        let mut bodies = vec![claim(5), request(RequestKind::Join, "x", &["joined"])];
        bodies.extend((1..=6).map(|number| told(number, "routed")));
        bodies.extend([told(7, "joined"), told(8, "gone")]);
        let (mut reader, _) = fold(&bodies);
        let (sink, _) = fold(&bodies);
        reader.prune_relations(&HashSet::from([Fingerprint(1)]), &[name("routed")]);
        let mut left: Vec<u64> = reader.relations.keys().map(|fingerprint| fingerprint.0).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 3, 4, 5, 6, 7]);
        let (epoch, none) = (Epoch { offset: 0, nonce: 5 }, BTreeMap::new);
        let base = reader.as_base(epoch, none(), BTreeMap::new(), vec![]);
        let named = |mut state: State, ahead: Option<Body>, base: Base| {
            if let Some(body) = ahead {
                state.apply(20, Entry::new(None, body));
            }
            state.apply(21, Entry::new(None, Body::Base(Box::new(base))));
            (state.base, state.relations.len())
        };
        assert_eq!(named(sink.clone(), None, base.clone()), (Some(21), 8), "who still has records of them keeps them");
        assert_eq!(named(reader, None, base.clone()), (Some(21), 6));
        assert_eq!(named(sink.clone(), Some(told(9, "routed")), base.clone()).0, None, "that one it does not know");
        assert_eq!(named(sink, None, Base { read: None, ..base }).0, None, "an older writer leaves none out");
    }

    fn source(slot: &str) -> Body {
        let (slot, database) = (slot.to_owned(), "d".to_owned());
        let made = SourceIdentity { system_id: 1, timeline: 1, database, slot, consistent_point: Lsn(50) };
        Body::Source(SourceEntry { intent: None, made: Some(made) })
    }

    #[test]
    fn a_claim_alone_does_not_say_on_which_timeline_the_last_checkpoint_was_read() {
        let on = |timeline| {
            let Body::Claim(made) = claim(5) else { unreachable!("just made") };
            Body::Claim(Claim { timeline, ..made })
        };
        let epoch = |offset| Epoch { offset, nonce: 5 };
        // A standby was promoted, and the reader of the old primary claims once more.
        let mut bodies = vec![on(1), checkpoint(epoch(0), 10, vec![]), on(2), checkpoint(epoch(2), 20, vec![]), on(1)];
        let told = |bodies: &[Body]| {
            let (state, _) = fold(bodies);
            (state.timeline, state.read_on)
        };
        assert_eq!(told(&bodies[..3]), (Some(2), Some(1)));
        assert_eq!(told(&bodies), (Some(1), Some(2)));
        // Who writes a base has looked at the history before.
        bodies.truncate(3);
        let base = fold(&bodies).0.as_base(epoch(2), BTreeMap::new(), BTreeMap::new(), vec![]);
        bodies.push(Body::Base(Box::new(base)));
        assert_eq!(told(&bodies), (Some(2), Some(2)));
        assert_eq!(told(&bodies[3..]), (Some(2), Some(2)));
    }

    #[test]
    fn a_restart_takes_effect_with_its_own_entry_and_only_from_the_reader_in_force() {
        let (a, b) = (Epoch { offset: 1, nonce: 5 }, Epoch { offset: 6, nonce: 6 });
        let restart = |epoch| {
            let (request, old_ledger, reason) = (Uuid::from_u128(1), None, String::new());
            Body::Restart(Restart { epoch, request, old: None, new: Lsn(50), old_ledger, reason })
        };
        let mut bodies = vec![
            source("s"),
            claim(5),
            checkpoint(a, 10, vec![]),
            request(RequestKind::Join, "x", &["a"]),
            request(RequestKind::Restart, "", &[]),
            source("t"),
            claim(6),
            restart(a),
        ];
        let (state, events) = fold(&bodies);
        assert_eq!(events[7], Event::Superseded(a));
        assert_eq!((state.source.unwrap().slot, state.next.unwrap().slot), ("s".to_owned(), "t".to_owned()));
        assert_eq!((state.last.unwrap().anchor.offset, state.joins.len()), (2, 1));
        bodies.push(restart(b));
        let (state, _) = fold(&bodies);
        let last = state.last.unwrap();
        assert_eq!((state.source.unwrap().slot, state.next, state.asked), ("t".to_owned(), None, None));
        assert_eq!(last.anchor, Anchor { offset: 8, epoch: b, to: Position::ORIGIN });
        assert_eq!((last.closed, state.joins.len(), state.restarted.unwrap().offset), (Lsn(50), 0, 8));
    }

    #[test]
    fn an_upgraded_server_takes_the_old_ones_place_and_ends_its_epoch() {
        let (a, b) = (Epoch { offset: 1, nonce: 5 }, Epoch { offset: 4, nonce: 6 });
        let upgraded = |from, system_id| {
            let Body::Source(SourceEntry { made: Some(made), .. }) = source("s") else { unreachable!("just made") };
            let to = SourceIdentity { system_id, timeline: 7, ..made };
            Body::Upgraded(Upgraded { from, to, published: vec![] })
        };
        let bodies = vec![
            source("s"),
            claim(5),
            checkpoint(a, 10, vec![]),
            upgraded(1, 2),
            claim(6),
            checkpoint(b, 60, vec![]),
            upgraded(1, 3),
        ];
        let (state, _) = fold(&bodies[..4]);
        assert_eq!(
            (state.last.unwrap().anchor.offset, state.last.unwrap().closed),
            (2, Lsn(50)),
            "it has all of the old one"
        );
        assert_eq!((state.claim, state.timeline, state.read_on), (None, Some(7), Some(7)));
        let (state, _) = fold(&bodies);
        assert_eq!(
            (state.source.clone().unwrap().system_id, &state.formerly),
            (2, &vec![1]),
            "that one is gone already"
        );
        let json = serde_json::to_string(&state.as_base(b, BTreeMap::new(), BTreeMap::new(), vec![])).unwrap();
        assert_eq!(serde_json::from_str::<Base>(&json).unwrap().formerly, [1]);
        // Who reads the old server still does so for nothing.
        let (_, events) = fold(&[&bodies[..4], &[checkpoint(a, 20, vec![])]].concat());
        assert_eq!(events[4], Event::Superseded(a));
        let (state, _) = fold(&[&bodies[..3], &[request(RequestKind::Restart, "", &[]), upgraded(1, 2)]].concat());
        assert_eq!(state.source.unwrap().system_id, 1, "a restart takes nothing over");
    }

    #[test]
    fn a_restart_that_is_asked_for_again_begins_again() {
        let ask = || request(RequestKind::Restart, "", &[]);
        let (state, _) = fold(&[source("s"), ask(), source("t"), ask()]);
        assert_eq!((state.next, state.source.unwrap().slot), (None, "s".to_owned()));
        // a ledger that begins with one has no source until then
        let (state, _) = fold(&[ask(), source("t")]);
        assert!(state.source.is_none() && state.next.is_some());
    }
}

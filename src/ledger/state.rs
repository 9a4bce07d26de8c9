//! What is true after a prefix of the ledger: a fold, the same for reader and sinks.
//!
//! A checkpoint is valid iff its epoch is the latest claim before it. `base`, `done` and `restart` count only as a checkpoint
//! does (a zombie's are ignored); `relation` and `request` count whoever wrote them. A start begins at a base that an entry names and
//! arrives at the same state as one that began at the first entry (models/base.py).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::key::KeyRange;
use crate::ledger::entry::{
    Anchor, Base, Body, Checkpoint, Done, Entry, Join, LastCheckpoint, Request, RequestKind, Restart, Restarted,
    SourceIdentity, TopicIdentity,
};
use crate::look::Look;
use crate::lsn::Position;
use crate::record::Epoch;
use crate::relation::{Fingerprint, Relation, TableName};

/// The fold. Cheap to clone but for the relations, which are shared.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Offset of the entry applied last.
    pub offset: Option<i64>,
    /// The epoch in force.
    pub claim: Option<Epoch>,
    /// The source's timeline when the epoch in force began.
    pub timeline: Option<u32>,
    /// A slot name that was about to be made and has no `source` yet.
    pub intent: Option<String>,
    pub source: Option<SourceIdentity>,
    pub last: Option<LastCheckpoint>,
    pub relations: HashMap<Fingerprint, Arc<Relation>>,
    /// Where each relation was told of last, or the base that the fold began at.
    pub relations_at: HashMap<Fingerprint, i64>,
    pub topics: BTreeMap<String, TopicIdentity>,
    /// Every join and resync since the start, in ledger order; those of one sink say which tables it has.
    pub joins: Vec<Join>,
    /// Tables that a new reader reads from their beginning, whatever was loaded of them.
    pub again: Vec<TableName>,
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
    /// The tables that the reader has, as the newest valid base says that says so.
    pub routed: Option<Routed>,
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
            Body::Request(request) => {
                match request.kind {
                    RequestKind::Join | RequestKind::Resync | RequestKind::Load => {
                        let join = Join { offset, request: request.clone(), loaded: Vec::new(), done: false };
                        self.joins.push(join);
                    }
                    RequestKind::Leave => self.leave(&request),
                    RequestKind::Restart => {
                        // What an earlier one made ready may be gone by now, which may be why it was asked for again.
                        (self.asked, self.next, self.intent) = (Some(request.clone()), None, None);
                    }
                }
                Event::Requested(request)
            }
            Body::Restart(restart) => self.restart(offset, restart),
            Body::Done(done) => {
                if self.claim != Some(done.epoch) {
                    return Event::Superseded(done.epoch);
                }
                self.finish(done.id);
                Event::Done(done)
            }
        }
    }

    fn checkpoint(&mut self, offset: i64, checkpoint: Checkpoint) -> Event {
        if self.claim != Some(checkpoint.epoch) {
            return Event::Superseded(checkpoint.epoch);
        }
        let before = self.last.map(|last| last.commit_time).unwrap_or_default();
        self.last = Some(LastCheckpoint {
            anchor: Anchor { offset, epoch: checkpoint.epoch, to: checkpoint.to },
            closed: checkpoint.closed,
            commit_time: if checkpoint.commit_time == 0 { before } else { checkpoint.commit_time },
        });
        self.again.clone_from(&checkpoint.again);
        for chunk in &checkpoint.chunks {
            for join in self.joins.iter_mut().filter(|join| !join.done) {
                let answers = match chunk.request {
                    Some(id) => id == join.request.id,
                    None => chunk.is_for(&join.request.sink),
                };
                if answers && join.request.tables.contains(&chunk.table) {
                    push_range(&mut join.loaded, &chunk.table, chunk.range.clone());
                }
            }
        }
        Event::Valid(checkpoint)
    }

    fn leave(&mut self, leave: &Request) {
        for join in self.joins.iter_mut().filter(|join| join.request.sink == leave.sink) {
            join.request.tables.retain(|table| !leave.tables.is_empty() && !leave.tables.contains(table));
            join.loaded.retain(|(table, _)| join.request.tables.contains(table));
        }
        self.joins.retain(|join| !join.request.tables.is_empty());
    }

    fn restart(&mut self, offset: i64, restart: Restart) -> Event {
        if self.claim != Some(restart.epoch) {
            return Event::Superseded(restart.epoch);
        }
        self.source = self.next.take().or(self.source.take());
        (self.asked, self.intent) = (None, None);
        let anchor = Anchor { offset, epoch: restart.epoch, to: Position::ORIGIN };
        self.last = Some(LastCheckpoint { anchor, closed: restart.new, commit_time: 0 });
        // Topics may be others, and every sink asks for its tables again.
        self.topics.clear();
        self.joins.clear();
        self.again.clear();
        self.catalog.clear();
        self.routed = None;
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
            self.topics = base.topics;
            self.catalog = base.catalog.into_iter().collect();
            self.route(offset, base.tables);
            return Event::Base;
        }
        self.base = Some(offset);
        self.claim = Some(base.epoch);
        self.timeline = Some(base.timeline);
        self.last = base.last;
        self.source = base.source;
        self.topics = base.topics;
        self.joins = base.joins;
        self.again = base.again;
        self.catalog = base.catalog.into_iter().collect();
        self.restarted = base.restarted;
        self.route(offset, base.tables);
        for relation in base.relations {
            self.relations_at.insert(relation.fingerprint, offset);
            self.relations.insert(relation.fingerprint, Arc::new(relation));
        }
        Event::Base
    }

    fn route(&mut self, offset: i64, tables: Option<Vec<TableName>>) {
        if let Some(tables) = tables {
            self.routed = Some(Routed { offset, tables });
        }
    }

    /// Whether a start at this base would know what is known here.
    fn is_described_by(&self, base: &Base) -> bool {
        let known: std::collections::HashSet<Fingerprint> = base.relations.iter().map(|r| r.fingerprint).collect();
        (self.last, &self.source, self.timeline.unwrap_or_default()) == (base.last, &base.source, base.timeline)
            && self.joins == base.joins
            && self.again == base.again
            && self.restarted == base.restarted
            // An open restart is told by its own entries: a start must see them.
            && self.asked.is_none()
            && self.relations.keys().all(|fingerprint| known.contains(fingerprint))
    }

    /// The versions of the relation with this OID, newest first.
    pub fn versions_of(&self, oid: u32) -> Vec<Arc<Relation>> {
        let mut found: Vec<Arc<Relation>> = self.relations.values().filter(|r| r.oid == oid).cloned().collect();
        // One that was not read back yet is the newest.
        let at = |r: &Arc<Relation>| self.relations_at.get(&r.fingerprint).copied().unwrap_or(i64::MAX);
        found.sort_by_key(|relation| std::cmp::Reverse(at(relation)));
        found
    }

    /// The request is answered: from here on nobody asks for its ranges.
    pub fn finish(&mut self, request: uuid::Uuid) {
        if let Some(join) = self.joins.iter_mut().find(|join| join.request.id == request) {
            join.done = true;
            join.loaded = Vec::new();
        }
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
            catalog: catalog.into_iter().collect(),
            timeline,
            restarted: self.restarted.clone(),
            tables: Some(tables),
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

/// Adds a range, joined to the one before it where it goes on from there: a load that reads on needs one range, not
/// thousands.
pub fn push_range(ranges: &mut Vec<(TableName, KeyRange)>, table: &TableName, range: KeyRange) {
    match ranges.last_mut() {
        Some((last, before)) if last == table && before.through.is_some() && before.through == range.after => {
            before.through = range.through;
        }
        _ => ranges.push((table.clone(), range)),
    }
}

/// What is still to be read of a table when these ranges are loaded; `None`: nothing. Loads read in rising order, so it is
/// what lies behind ranges that go on from one another; where several loads began anew, behind those read last.
pub fn unread(table: &TableName, loaded: &[(TableName, KeyRange)]) -> Option<KeyRange> {
    let mut ends = vec![(0, None)];
    for next in 0.. {
        let Some((_, after)) = ends.get(next).cloned() else { break };
        for (place, (_, range)) in
            loaded.iter().enumerate().filter(|(_, (name, range))| name == table && range.after == after)
        {
            let end = (place + 1, Some(range.through.clone()?));
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
    }
    let (_, after) = ends.into_iter().max_by_key(|(place, _)| *place).expect("at least the beginning");
    Some(KeyRange { after, through: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::{Chunk, Claim, SourceEntry};
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
            Body::Request(Request { id, kind, sink, tables, asked_by: String::new(), old_ledger: None })
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
        let loaded: Vec<usize> = state.joins.iter().map(|join| join.loaded.len()).collect();
        assert_eq!(loaded, [2, 1, 0]);
    }

    #[test]
    fn what_is_unread_lies_behind_ranges_that_go_on_from_one_another() {
        let table = TableName::new("public", "t");
        let unread = |ranges: &[(&str, &str)]| {
            let key = |text: &str| (!text.is_empty()).then(|| vec![text.to_owned()]);
            let range = |&(after, through): &(&str, &str)| KeyRange { after: key(after), through: key(through) };
            let loaded: Vec<_> = ranges.iter().map(|r| (table.clone(), range(r))).collect();
            super::unread(&table, &loaded).map(|range| range.after.map_or(String::new(), |key| key.concat()))
        };
        assert_eq!(unread(&[]), Some(String::new()));
        assert_eq!(unread(&[("", "5"), ("5", "9")]), Some("9".to_owned()));
        assert_eq!(unread(&[("", "5"), ("7", "9"), ("9", "")]), Some("5".to_owned()));
        assert_eq!(unread(&[("", "5"), ("", "3"), ("3", "")]), None, "a load that began anew");
        assert_eq!(unread(&[("", "5"), ("", "3")]), Some("3".to_owned()));
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
        let (sink, asked_by) = (String::new(), String::new());
        let request = Request { id, kind, sink, tables, asked_by, old_ledger: None };
        asked.apply(4, Entry::new(None, Body::Request(request)));
        assert_eq!((asked.apply(5, base.clone()), asked.base), (Event::Base, None));
        // a zombie's base changes nothing
        let mut later = full.clone();
        later.apply(4, Entry::new(None, claim(9)));
        assert_eq!(later.apply(5, base), Event::Superseded(a));
    }

    fn request(kind: RequestKind, sink: &str, tables: &[&str]) -> Body {
        let tables = tables.iter().map(|name| TableName::new("public", *name)).collect();
        let (id, sink, asked_by) = (Uuid::from_u128(1), sink.to_owned(), String::new());
        Body::Request(Request { id, kind, sink, tables, asked_by, old_ledger: None })
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

    fn source(slot: &str) -> Body {
        let (slot, database) = (slot.to_owned(), "d".to_owned());
        let made = SourceIdentity { system_id: 1, timeline: 1, database, slot, consistent_point: Lsn(50) };
        Body::Source(SourceEntry { intent: None, made: Some(made) })
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
    fn a_restart_that_is_asked_for_again_begins_again() {
        let ask = || request(RequestKind::Restart, "", &[]);
        let (state, _) = fold(&[source("s"), ask(), source("t"), ask()]);
        assert_eq!((state.next, state.source.unwrap().slot), (None, "s".to_owned()));
        // a ledger that begins with one has no source until then
        let (state, _) = fold(&[ask(), source("t")]);
        assert!(state.source.is_none() && state.next.is_some());
    }
}

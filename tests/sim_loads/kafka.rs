//! The log: partitions of records and a ledger, which keep what they took.

use std::collections::BTreeSet;
use std::sync::Arc;

use lockstep::change::Op;
use lockstep::error::Result;
use lockstep::key::KeyRange;
use lockstep::ledger::entry::{Body, Entry, RelationEntry, Request, RequestKind, SourceEntry, SourceIdentity};
use lockstep::ledger::start::{self, Start};
use lockstep::ledger::state::State;
use lockstep::ledger::within::Within;
use lockstep::lsn::Position;
use lockstep::record::Epoch;
use lockstep::relation::{Column, Fingerprint, Format, Modes, Relation, TableName, TypeKind};
use lockstep::value::RowBuf;
use uuid::Uuid;

use super::choices::{Choices, tell};
use super::source::{BEGINNING, KEYS, TABLES};

pub const PARTITIONS: usize = 2;
pub const TOPIC: &str = "t";

#[derive(Clone)]
pub enum Data {
    Change { table: usize, op: Op },
    ChunkRow(RowBuf),
}

#[derive(Clone)]
pub struct Record {
    pub epoch: Epoch,
    pub position: Position,
    pub data: Data,
}

pub struct Kafka {
    pub data: [Vec<Record>; PARTITIONS],
    pub ledger: Vec<Entry>,
    /// The first entry that was not trimmed.
    pub low: i64,
    pub versions: Vec<Arc<Relation>>,
    pub nonces: u128,
}

pub fn table(number: usize) -> TableName {
    TableName::new("public", ["parent", "child"][number])
}

pub fn number(table: &TableName) -> usize {
    (0..TABLES).find(|number| self::table(*number) == *table).expect("one of the two")
}

/// The second table is of the first sink only.
pub fn tables_of(sink: &str) -> BTreeSet<TableName> {
    (0..if sink == "a" { TABLES } else { 1 }).map(table).collect()
}

pub fn sinks_of(name: &TableName) -> Vec<&'static str> {
    ["a", "b"].into_iter().filter(|sink| tables_of(sink).contains(name)).collect()
}

fn version(number: usize) -> Relation {
    let column = |name: &str, key| Column {
        name: name.to_owned(),
        type_oid: 23,
        type_name: "int4".to_owned(),
        typmod: -1,
        kind: TypeKind::Base,
        nullable: false,
        default: None,
        key,
        exact: true,
    };
    let relation = Relation {
        fingerprint: Fingerprint(0),
        oid: u32::try_from(number).expect("few tables") + 1,
        name: table(number),
        topic: TOPIC.to_owned(),
        partitions: PARTITIONS as i32,
        format: Format::Json,
        modes: Modes::default(),
        columns: vec![column("id", Some(0)), column("small", None), column("big", None)],
        composites: vec![],
        avro: None,
        transforms: vec![],
        hidden: vec![],
    };
    relation.sealed()
}

impl Kafka {
    pub fn new() -> Kafka {
        let made = SourceIdentity {
            system_id: 1,
            timeline: 1,
            database: "d".into(),
            slot: "s".into(),
            consistent_point: BEGINNING,
        };
        let versions: Vec<Arc<Relation>> = (0..TABLES).map(|number| Arc::new(version(number))).collect();
        let mut ledger = vec![Entry::new(None, Body::Source(SourceEntry { intent: None, made: Some(made) }))];
        ledger.extend(versions.iter().map(|version| {
            Entry::new(None, Body::Relation(Box::new(RelationEntry { relation: Relation::clone(version) })))
        }));
        Kafka { data: Default::default(), ledger, low: 0, versions, nonces: 0 }
    }

    pub fn nonce(&mut self) -> Uuid {
        self.nonces += 1;
        Uuid::from_u128(self.nonces)
    }

    /// Where a fold begins that is complete from an entry on.
    pub fn fold_start(&self, needed: i64) -> Result<i64> {
        let named = |at: i64| Ok(self.ledger.get(at as usize).map(|entry| entry.base));
        Ok(match start::before(needed, (self.low, self.ledger.len() as i64), named)? {
            Start::First => self.low,
            Start::Base(base) => base,
        })
    }

    /// What is true behind so many entries.
    pub fn fold(&self, upto: usize) -> State {
        let from = self.fold_start(upto as i64 - 1).expect("nobody asks for what was trimmed");
        let mut state = State::default();
        for (offset, entry) in (0..).zip(&self.ledger[..upto]).skip(from as usize) {
            state.apply(offset, entry.clone());
        }
        state
    }

    /// Deletes what none of these needs, who say so themselves, and what is old enough.
    pub fn trim(&mut self, told: &[Option<i64>], old: i64) -> bool {
        let Some(needed) = told.iter().copied().chain([Some(old)]).min().flatten() else { return false };
        let cut = match needed - 1 > self.low {
            true => self.fold_start(needed - 1).unwrap_or(self.low),
            false => self.low,
        };
        let is_cut = cut > self.low;
        self.low = self.low.max(cut);
        is_cut
    }

    /// A person types `lockstep restart`.
    pub fn restart(&mut self) {
        self.request(RequestKind::Restart, "", &BTreeSet::new());
    }

    /// The newest base that an entry may name.
    pub fn base(&self) -> Option<i64> {
        self.fold(self.ledger.len()).base
    }

    pub fn request(&mut self, kind: RequestKind, sink: &str, tables: &BTreeSet<TableName>) -> i64 {
        let request = Request::new(self.nonce(), kind, sink, tables.iter().cloned().collect(), "");
        self.push(request);
        self.ledger.len() as i64 - 1
    }

    /// Somebody asks for some of a sink's tables once more.
    pub fn resync(&mut self, choices: &mut Choices) {
        let sink = ["a", "b"][choices.below(2)];
        if !self.fold(self.ledger.len()).joins.iter().any(|join| join.request.sink == sink) {
            return;
        }
        let mut tables = self.fold(self.ledger.len()).joined(sink);
        if tables.is_empty() {
            return;
        }
        if tables.len() > 1 && choices.percent(50) {
            tables.pop_first();
        }
        let range = choices.percent(50).then(|| (choices.below(KEYS + 1), choices.below(KEYS + 1)));
        let Some((one, other)) = range.filter(|(one, other)| one != other) else {
            self.request(RequestKind::Resync, sink, &tables);
            return;
        };
        let border = |key: usize, open: usize| (key != open).then(|| vec![key.to_string()]);
        let range = KeyRange { after: border(one.min(other), 0), through: border(one.max(other), KEYS) };
        let name = tables.pop_last().expect("every sink takes one");
        let within =
            Within { relation: self.versions[number(&name)].fingerprint, types: vec![23], ranges: vec![range] };
        let request = Request::new(self.nonce(), RequestKind::ResyncRange, sink, vec![name], "");
        self.push(Request { within: Some(within), ..request });
    }

    fn push(&mut self, request: Request) {
        tell(format_args!("ledger {}: {request:?}", self.ledger.len()));
        self.ledger.push(Entry::new(self.base(), Body::Request(request)));
    }
}

//! Ranges of one table's key that a request is about: all else at its sink stays as it is and goes on taking changes.
//!
//! Such a request counts as a load of which everything but its ranges is there already. What it means must be the same for a
//! reader and a sink that begin to read the ledger at different places, so it follows from requests alone: one that comes
//! while an older one for the same table is open asks for what both ask for, which of a whole table is the whole table.
//!
//! Pure. Deliberately not here: how ranges are written by people (`key::condition`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::key::ranges::RangeSet;
use crate::key::{KeyError, KeyOrder, KeyRange};
use crate::ledger::cover::Cover;
use crate::ledger::entry::{Join, Request, RequestKind};
use crate::ledger::loaded::LoadedTable;
use crate::relation::Fingerprint;

/// Ranges of one request, with those of open ones that it takes over; beyond it the table is read whole. They stand in bases.
pub const RANGES_MAX: usize = 64;

/// Answered requests of one sink for ranges of one table that a base still tells of; beyond it the next is for all of the
/// table, which covers them.
pub const REQUESTS_MAX: usize = 64;

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Within {
    /// The version whose key the ranges speak of.
    pub relation: Fingerprint,
    /// Of that key's columns: what the borders are texts of.
    pub types: Vec<u32>,
    pub ranges: Vec<KeyRange>,
}

impl Within {
    pub fn orders(&self) -> Vec<KeyOrder> {
        self.types.iter().map(|&oid| KeyOrder::of(oid)).collect()
    }

    fn set(&self) -> Result<RangeSet, KeyError> {
        RangeSet::of(&self.orders(), self.ranges.iter().cloned())
    }

    /// What needs no reading: all else.
    pub fn cover(&self) -> Result<Cover, KeyError> {
        let left = RangeSet::of(&self.orders(), self.set()?.missing())?;
        Ok(Cover { ranges: left, ..Cover::default() })
    }

    /// As a load begins.
    pub fn loaded(&self) -> LoadedTable {
        // Borders that are no keys leave everything to be read.
        self.cover()
            .map_or_else(|_| LoadedTable::default(), |cover| LoadedTable { relation: Some(self.relation), cover })
    }

    /// Both, if they speak of one key and are not too many.
    pub fn with(&self, other: &Within) -> Option<Within> {
        if (self.relation, &self.types) != (other.relation, &other.types) {
            return None;
        }
        let ranges = self.ranges.iter().chain(&other.ranges).cloned();
        let ranges: Vec<KeyRange> = RangeSet::of(&self.orders(), ranges).ok()?.into();
        (ranges.len() <= RANGES_MAX).then_some(Within { ranges, ..self.clone() })
    }

    /// Whether whoever has this has the other too.
    pub fn contains(&self, other: &Within) -> bool {
        self.with(other).is_some_and(|both| self.set().is_ok_and(|mine| Vec::from(mine) == both.ranges))
    }
}

impl RequestKind {
    /// A sink has the table and is to have it again, or some of it.
    pub fn is_resync(self) -> bool {
        matches!(self, RequestKind::Resync | RequestKind::ResyncRange)
    }
}

impl Request {
    /// Whether nothing that the other asks for is left out.
    pub fn covers_ranges_of(&self, other: &Request) -> bool {
        match (&self.within, &other.within) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => mine.contains(theirs),
        }
    }

    fn whole(self) -> Request {
        let kind = if self.kind == RequestKind::ResyncRange { RequestKind::Resync } else { self.kind };
        Request { kind, within: None, ..self }
    }

    /// What the request asks for behind those that the ledger holds before it.
    /// `ended` are those that are done before the ledger says so.
    pub fn behind(self, joins: &[Join], ended: &BTreeSet<Uuid>) -> Request {
        let (Some(within), [table]) = (&self.within, &self.tables[..]) else { return self.whole() };
        if self.kind != RequestKind::ResyncRange || within.ranges.len() > RANGES_MAX || within.cover().is_err() {
            return self.whole();
        }
        let of_table = |join: &&Join| join.request.sink == self.sink && join.request.tables.contains(table);
        let before: Vec<&Join> = joins.iter().filter(of_table).collect();
        let ranged = before.iter().filter(|join| join.request.within.is_some()).count();
        if before.is_empty() || ranged >= REQUESTS_MAX {
            return self.whole();
        }
        let mut both = within.clone();
        for join in before.iter().filter(|join| !join.done || ended.contains(&join.request.id)) {
            match join.request.within.as_ref().and_then(|open| both.with(open)) {
                Some(wider) => both = wider,
                None => return self.whole(),
            }
        }
        Request { within: Some(both), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::{Body, Claim, Done, Entry};
    use crate::ledger::state::State;
    use crate::record::Epoch;
    use crate::relation::TableName;

    const EPOCH: Epoch = Epoch { offset: 0, nonce: 1 };

    fn range(after: i32, through: i32) -> KeyRange {
        KeyRange { after: Some(vec![after.to_string()]), through: Some(vec![through.to_string()]) }
    }

    fn within(ranges: &[(i32, i32)]) -> Within {
        let ranges = ranges.iter().map(|&(after, through)| range(after, through)).collect();
        Within { relation: Fingerprint(1), types: vec![23], ranges }
    }

    /// A ledger that begins with a claim; requests and ends of them follow.
    #[derive(Default)]
    struct Script(State, i64);

    impl Script {
        fn new() -> Script {
            let mut script = Script::default();
            let (instance, host, version) = (Uuid::nil(), String::new(), String::new());
            script.entry(Body::Claim(Claim { instance, nonce: 1, timeline: 1, host, version }));
            script
        }

        fn entry(&mut self, body: Body) {
            self.0.apply(self.1, Entry::new(None, body));
            self.1 += 1;
        }

        fn ask(&mut self, id: u128, kind: RequestKind, within: Option<Within>) -> Option<Within> {
            let tables = vec![TableName::new("public", "t")];
            let request = Request::new(Uuid::from_u128(id), kind, "orders", tables, "");
            self.entry(Body::Request(Request { within, ..request }));
            self.0.joins.last().unwrap().request.within.clone()
        }

        fn done(&mut self, id: u128) {
            self.entry(Body::Done(Done { id: Uuid::from_u128(id), epoch: EPOCH, result: String::new() }));
        }

        fn requests(&self) -> Vec<u128> {
            self.0.joins.iter().map(|join| join.request.id.as_u128()).collect()
        }
    }

    #[test]
    fn all_but_its_ranges_needs_no_reading() {
        let cover = within(&[(4, 5), (10, 20)]).cover().unwrap();
        assert_eq!(cover.left(), [range(4, 5), range(10, 20)]);
        let wrong = Within { types: vec![23], ranges: vec![KeyRange::of_key(vec!["x".into()])], ..within(&[]) };
        assert_eq!(wrong.loaded(), LoadedTable::default());
    }

    #[test]
    fn one_asks_for_what_is_still_open_too() {
        let (join, part) = (RequestKind::Join, RequestKind::ResyncRange);
        let mut script = Script::new();
        assert_eq!(script.ask(1, part, Some(within(&[(1, 2)]))), None, "the sink never asked for the table");
        script.done(1);
        script.ask(2, join, None);
        assert_eq!(script.ask(3, part, Some(within(&[(1, 2)]))), None, "its first load is under way");
        assert_eq!(script.0.joins.last().unwrap().request.kind, RequestKind::Resync);
        script.done(2);
        script.done(3);
        assert_eq!(script.ask(4, part, Some(within(&[(1, 2)]))), Some(within(&[(1, 2)])));
        assert_eq!(script.ask(5, part, Some(within(&[(5, 6), (2, 3)]))), Some(within(&[(1, 3), (5, 6)])));
        let other = Within { relation: Fingerprint(2), ..within(&[(8, 9)]) };
        assert_eq!(script.ask(6, part, Some(other)), None, "another version's key");
    }

    #[test]
    fn what_the_reader_knows_before_the_ledger_says_it_changes_no_meaning() {
        let mut script = Script::new();
        script.ask(1, RequestKind::Join, None);
        script.0.end(Uuid::from_u128(1));
        assert_eq!(script.ask(2, RequestKind::ResyncRange, Some(within(&[(1, 2)]))), None, "as the sink sees it");
        script.done(1);
        script.0.end(Uuid::from_u128(2));
        script.done(2);
        assert!(script.ask(3, RequestKind::ResyncRange, Some(within(&[(1, 2)]))).is_some());
    }

    #[test]
    fn a_sink_that_is_behind_still_learns_of_whole_loads_and_of_every_range() {
        let part = RequestKind::ResyncRange;
        let mut script = Script::new();
        script.ask(1, RequestKind::Join, None);
        script.ask(2, RequestKind::Resync, None);
        script.done(1);
        script.done(2);
        for (id, ranges) in [(3, [(1, 2)]), (4, [(5, 9)]), (5, [(6, 7)]), (6, [(1, 9)])] {
            script.ask(id, part, Some(within(&ranges)));
            script.done(id);
        }
        assert_eq!(script.requests(), [1, 2, 6], "the last has the ranges of those before it");
        script.ask(7, RequestKind::Resync, None);
        script.done(7);
        assert_eq!(script.requests(), [1, 7]);
    }

    #[test]
    fn neither_ranges_nor_requests_for_them_pile_up() {
        let part = RequestKind::ResyncRange;
        let mut script = Script::new();
        script.ask(0, RequestKind::Join, None);
        script.done(0);
        let mut asked = None;
        for id in 1..=RANGES_MAX + 1 {
            let at = 2 * i32::try_from(id).unwrap();
            asked = script.ask(id as u128, part, Some(within(&[(at, at + 1)])));
        }
        assert_eq!(asked, None);
        let mut script = Script::new();
        script.ask(0, RequestKind::Join, None);
        script.done(0);
        for id in 1..=REQUESTS_MAX {
            let at = 2 * i32::try_from(id).unwrap();
            assert!(script.ask(id as u128, part, Some(within(&[(at, at + 1)]))).is_some());
            script.done(id as u128);
        }
        assert_eq!(script.ask(1000, part, Some(within(&[(1, 2)]))), None);
    }

    #[test]
    fn other_requests_are_written_as_ever_and_builds_that_know_no_ranges_refuse_one() {
        let mut request = Request::new(Uuid::nil(), RequestKind::Resync, "s", vec![], "x");
        let json =
            r#"{"id":"00000000-0000-0000-0000-000000000000","kind":"resync","sink":"s","tables":[],"asked_by":"x"}"#;
        assert_eq!(serde_json::to_string(&request).unwrap(), json);
        (request.kind, request.within) = (RequestKind::ResyncRange, Some(within(&[(1, 2)])));
        let told = serde_json::to_string(&request).unwrap();
        assert!(told.contains(r#""kind":"resync_range""#), "{told}");
        assert_eq!(serde_json::from_str::<Request>(&told).unwrap(), request);
    }
}

//! How a sink takes a table, as its requests say it: into which table, and which columns.
//!
//! Another answer in the configuration than in the newest request means that rows which nobody touches again are not what the
//! sink should hold, so they are asked for again. A request of an older build, of the reader or of the command line says
//! nothing about it and changes nothing. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config;
use crate::ledger::entry::Request;
use crate::ledger::state::State;
use crate::relation::TableName;

/// One table of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// At the source.
    pub table: TableName,
    /// At the sink.
    pub into: TableName,
    /// The columns, whatever their order, as a digest: a base holds this of every table of every sink. `None`: all there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<String>,
    /// The rows that are there are not asked for: only what is written from here on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streamed: bool,
    /// The column in which deleted rows are marked. `None`: none is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// A digest of what is computed for columns of the sink's own. `None`: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<String>,
}

/// Bytes of SHA-256 that are kept: two lists of columns are compared, and nobody gains by making them equal.
const DIGEST_BYTES: usize = 8;

impl Taken {
    pub fn of(table: &TableName, target: &config::SinkTable) -> Taken {
        let digest = |names: BTreeSet<String>| {
            let json = serde_json::to_vec(&names).expect("names are plain data");
            hex::encode(&Sha256::digest(json)[..DIGEST_BYTES])
        };
        let columns = target.columns.as_ref().map(|names| digest(names.iter().cloned().collect()));
        let computed = target.values.iter().map(|value| format!("{} = {}", value.column, value.expression));
        let values = (!target.values.is_empty()).then(|| digest(computed.collect()));
        let streamed = target.snapshot == config::Snapshot::Never;
        let mark = target.delete.mark().map(str::to_owned);
        Taken { table: table.clone(), into: target.table.clone(), columns, streamed, mark, values }
    }
}

impl Taken {
    /// What rows look like.
    fn shape(&self) -> [&Option<String>; 3] {
        [&self.columns, &self.mark, &self.values]
    }
}

impl Request {
    /// Whether it asks for the rows that the table has.
    pub fn reads(&self, table: &TableName) -> bool {
        self.tables.contains(table) && !self.taken.iter().any(|taken| taken.table == *table && taken.streamed)
    }

    /// The tables of which it does.
    pub fn read(&self) -> impl Iterator<Item = &TableName> {
        self.tables.iter().filter(|table| self.reads(table))
    }

    /// Whether it says how its sink takes the table.
    pub fn says(&self, table: &TableName) -> bool {
        self.taken.iter().any(|taken| taken.table == *table)
    }
}

/// Tables that a sink has and takes in another way now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Otherwise {
    /// Into another table, which has nothing yet; what the one before holds stays as it is.
    pub moved: BTreeSet<TableName>,
    /// With other columns or computed values, or with another mark for deleted rows: those that are kept are rows to who knows no mark.
    pub reshaped: BTreeSet<TableName>,
    /// With the rows that were there, which it never had.
    pub begun: BTreeSet<TableName>,
}

impl Otherwise {
    /// Compares what the sink takes `now` with its newest requests that say how it took the same tables.
    pub fn of(state: &State, sink: &str, now: &[Taken]) -> Otherwise {
        let of_sink = state.joins.iter().map(|join| &join.request).filter(|request| request.sink == sink);
        let named = |request: &Request, taken: &Taken| request.tables.contains(&taken.table);
        let said = of_sink.flat_map(|request| request.taken.iter().filter(move |taken| named(request, taken)));
        let before: BTreeMap<&TableName, &Taken> = said.map(|taken| (&taken.table, taken)).collect();
        let mut otherwise = Otherwise::default();
        for now in now {
            match before.get(&now.table) {
                Some(before) if before.into != now.into => otherwise.moved.insert(now.table.clone()),
                Some(before) if before.streamed && !now.streamed => otherwise.begun.insert(now.table.clone()),
                // What was never read is not read again either.
                Some(before) if before.shape() != now.shape() && !now.streamed => {
                    otherwise.reshaped.insert(now.table.clone())
                }
                _ => false,
            };
        }
        otherwise
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SinkTable;
    use crate::ledger::entry::{Body, Done, Entry, RequestKind};
    use crate::record::Epoch;
    use uuid::Uuid;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    fn taken(source: &str, into: &str, columns: Option<&[&str]>) -> Taken {
        let columns = columns.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        let target = SinkTable { columns, ..SinkTable::new("orders", table(into)) };
        Taken::of(&table(source), &target)
    }

    fn asked(state: &mut State, offset: i64, kind: RequestKind, tables: &[&str], taken: Vec<Taken>) {
        let (id, tables) =
            (Uuid::from_u128(offset.unsigned_abs().into()), tables.iter().map(|name| table(name)).collect());
        let request = Request { taken, ..Request::new(id, kind, "orders", tables, "") };
        state.apply(offset, Entry::new(None, Body::Request(request)));
    }

    #[test]
    fn what_is_taken_in_another_way_is_told_from_the_newest_request_that_says_so() {
        let mut state = State::default();
        let first = vec![taken("a", "a", Some(&["id", "x"])), taken("b", "b", None)];
        asked(&mut state, 1, RequestKind::Join, &["a", "b", "old"], first.clone());
        asked(&mut state, 2, RequestKind::Resync, &["a", "b"], vec![]);
        let otherwise = |state: &State, now: &[Taken]| {
            let Otherwise { moved, reshaped, .. } = Otherwise::of(state, "orders", now);
            let names = |tables: BTreeSet<TableName>| tables.into_iter().map(|name| name.table).collect::<Vec<_>>();
            (names(moved), names(reshaped))
        };
        assert_eq!(otherwise(&state, &first), (vec![], vec![]));
        let ordered = [taken("a", "a", Some(&["x", "id"])), taken("old", "elsewhere", None)];
        assert_eq!(otherwise(&state, &ordered), (vec![], vec![]), "in another order; of a request that says nothing");
        let now = [taken("a", "a", Some(&["id"])), taken("b", "c", None)];
        assert_eq!(otherwise(&state, &now), (vec!["b".into()], vec!["a".into()]));
        assert_eq!(otherwise(&state, &[taken("a", "a", None)]).1, ["a"], "all is more than some");
        assert_eq!(Otherwise::of(&state, "inventory", &now), Otherwise::default(), "another sink");
        let marked = Taken { mark: Some("deleted_at".into()), ..first[1].clone() };
        assert_eq!(otherwise(&state, &[marked]).1, ["b"], "deleted rows stay from now on");
        asked(&mut state, 3, RequestKind::Resync, &["a"], vec![now[0].clone()]);
        assert_eq!(otherwise(&state, &now), (vec!["b".into()], vec![]));
        // One that says nothing covers its rows, not what it says.
        let epoch = Epoch { offset: 4, nonce: 1 };
        state.claim = Some(epoch);
        asked(&mut state, 5, RequestKind::Resync, &["a"], vec![]);
        for (offset, id) in [(6, 1), (7, 2), (8, 3), (9, 5)] {
            let done = Done { id: Uuid::from_u128(id), epoch, result: String::new() };
            state.apply(offset, Entry::new(None, Body::Done(done)));
        }
        assert_eq!(otherwise(&state, &now), (vec!["b".into()], vec![]));
        asked(&mut state, 10, RequestKind::Leave, &["b"], vec![]);
        assert_eq!(otherwise(&state, &now), (vec![], vec![]), "nothing is taken of it");
    }

    #[test]
    fn rows_that_were_never_asked_for_are_asked_for_once_they_are_wanted() {
        let mut state = State::default();
        let streamed = |now: bool| Taken { streamed: now, ..taken("a", "a", None) };
        let begun = |state: &State, now| Otherwise::of(state, "orders", &[now]).begun.len();
        asked(&mut state, 1, RequestKind::Join, &["a", "b"], vec![streamed(true), taken("b", "b", None)]);
        let request = state.joins[0].request.clone();
        assert_eq!(request.read().collect::<Vec<_>>(), [&table("b")]);
        assert_eq!((begun(&state, streamed(true)), begun(&state, streamed(false))), (0, 1));
        asked(&mut state, 2, RequestKind::Join, &["a"], vec![streamed(false)]);
        assert_eq!((begun(&state, streamed(true)), begun(&state, streamed(false))), (0, 0), "and what was read stays");
        let json = serde_json::to_string(&streamed(true)).unwrap();
        assert!(json.ends_with(r#","streamed":true}"#), "{json}");
        assert!(!serde_json::to_string(&streamed(false)).unwrap().contains("streamed"), "as older builds wrote it");
    }

    #[test]
    fn requests_of_older_builds_say_nothing() {
        let json =
            r#"{"id":"00000000-0000-0000-0000-000000000000","kind":"join","sink":"s","tables":[],"asked_by":"x"}"#;
        let request: Request = serde_json::from_str(json).unwrap();
        assert_eq!(request.taken, []);
        assert_eq!(serde_json::to_string(&request).unwrap(), json, "and are written as before");
    }
}

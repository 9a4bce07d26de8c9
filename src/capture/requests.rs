//! Which requests of the ledger are answered next, and with what: pure planning over the ledger's state.
//!
//! Sinks ask for tables through the ledger (`join`, `resync`), and so does the reader itself for what has changed without a
//! trace. A job answers some of these requests with the rows of their tables; what a reader before this one has loaded for
//! them need not be read again as far as nobody's ranges mean something else by now.
//!
//! Deliberately not here: when a job begins, and the reading itself (`capture::driver`, `capture::snapshot`).

use std::collections::{BTreeSet, HashMap};

use crate::capture::snapshot::Job;
use crate::key::KeyRange;
use crate::ledger::entry::{Join, Request};
use crate::ledger::state::{State, unread};
use crate::relation::{Relation, TableName};

/// Open requests that this reader `answers`.
pub fn answerable(answers: impl Fn(&Request) -> bool, state: &State) -> impl Iterator<Item = &Join> {
    state.open_joins().filter(move |join| answers(&join.request))
}

/// What to load next: everything that is asked for when every sink asks, otherwise the oldest request for its sink alone, so
/// that sinks which have their rows are not bothered.
/// `sinks_of` says which sinks take a table, `order` the tables that there are, parents first.
pub fn plan<'a>(
    answers: impl Fn(&Request) -> bool,
    sinks_of: impl Fn(&TableName) -> Vec<&'a str>,
    order: &[TableName],
    state: &State,
) -> Job {
    let open: Vec<_> = answerable(answers, state).collect();
    let asked: BTreeSet<&TableName> = open.iter().flat_map(|join| &join.request.tables).collect();
    let asks = |sink: &str, table: &TableName| {
        open.iter().any(|join| join.request.sink == sink && join.request.tables.contains(table))
    };
    let everybody = asked.iter().all(|table| sinks_of(table).iter().all(|sink| asks(sink, table)));
    let (requests, only, wanted) = if everybody {
        (open.iter().map(|join| join.request.id).collect(), None, asked)
    } else {
        let first = &open[0].request;
        (vec![first.id], Some((first.sink.clone(), first.id)), first.tables.iter().collect())
    };
    let tables: Vec<TableName> = order.iter().filter(|name| wanted.contains(name)).cloned().collect();
    let loaded = |table| state.joins.iter().any(|join| join.done && join.request.tables.contains(table));
    let initial = !tables.iter().any(loaded);
    Job { requests, only, tables, initial, loaded: Vec::new(), keys: HashMap::new() }
}

/// Requests of which something is loaded.
pub fn begun(state: &State) -> impl Iterator<Item = &Join> {
    state.open_joins().filter(|join| !join.loaded.is_empty())
}

pub fn tables_of(join: &Join) -> Vec<TableName> {
    join.request.tables.clone()
}

/// What need not be read again for a job: the beginning of each table that all its requests have alike.
pub fn loaded(job: &Job, state: &State) -> Vec<(TableName, KeyRange)> {
    let joins: Vec<&Join> = state.joins.iter().filter(|join| job.requests.contains(&join.request.id)).collect();
    let beginning = |table: &TableName| {
        if state.again.contains(table) || !has_one_key(table, state) {
            return None;
        }
        let mut left = joins.iter().map(|join| unread(table, &join.loaded));
        let first = left.next()?;
        if !left.all(|other| other == first) {
            return None;
        }
        match first {
            Some(KeyRange { after: None, .. }) => None,
            Some(KeyRange { after, .. }) => Some((table.clone(), KeyRange { after: None, through: after })),
            None => Some((table.clone(), KeyRange::ALL)),
        }
    };
    job.tables.iter().filter_map(beginning).collect()
}

/// Whether ranges of a table mean the same in every version of it: in another table or under another key they do not.
fn has_one_key(table: &TableName, state: &State) -> bool {
    let key = |relation: &Relation| (relation.oid, relation.row_key());
    let mut keys = state.relations.values().filter(|relation| relation.name == *table).map(|relation| key(relation));
    let first = keys.next();
    keys.all(|other| Some(other) == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::RequestKind;
    use uuid::Uuid;

    fn table(name: &str) -> TableName {
        TableName::new("public", name)
    }

    fn order() -> Vec<TableName> {
        ["parent", "child"].map(table).to_vec()
    }

    /// Both sinks take the parent, `a` alone takes the child.
    fn sinks_of(name: &TableName) -> Vec<&'static str> {
        if name.table == "parent" { vec!["a", "b"] } else { vec!["a"] }
    }

    fn join(number: u128, sink: &str, tables: &[&str]) -> Join {
        let (id, tables) = (Uuid::from_u128(number), tables.iter().map(|name| table(name)).collect());
        let request = Request {
            id,
            kind: RequestKind::Join,
            sink: sink.to_owned(),
            tables,
            asked_by: String::new(),
            old_ledger: None,
            taken: vec![],
        };
        Join { offset: i64::try_from(number).unwrap(), request, loaded: Vec::new(), done: false }
    }

    fn state(joins: Vec<Join>) -> State {
        State { joins, ..State::default() }
    }

    fn answers(request: &Request) -> bool {
        request.tables.iter().all(|table| order().contains(table))
    }

    fn planned(state: &State) -> (Vec<u128>, Option<String>, Vec<String>, bool) {
        let job = plan(answers, sinks_of, &order(), state);
        let tables = job.tables.iter().map(|name| name.table.clone()).collect();
        (job.requests.iter().map(Uuid::as_u128).collect(), job.only.map(|(sink, _)| sink), tables, job.initial)
    }

    fn through(border: &str) -> KeyRange {
        KeyRange { after: None, through: Some(vec![border.into()]) }
    }

    #[test]
    fn what_every_sink_asks_for_is_one_job_with_parents_first() {
        let both = state(vec![join(1, "a", &["child", "parent"]), join(2, "b", &["parent"])]);
        assert_eq!(planned(&both), (vec![1, 2], None, vec!["parent".into(), "child".into()], true));
    }

    #[test]
    fn a_sink_that_asks_alone_is_answered_alone() {
        let mut whole = join(1, "a", &["child", "parent"]);
        whole.done = true;
        let alone = state(vec![whole, join(2, "b", &["parent"])]);
        assert_eq!(planned(&alone), (vec![2], Some("b".into()), vec!["parent".into()], false), "a has the table");
    }

    #[test]
    fn a_request_for_a_table_that_nobody_routes_waits() {
        let strange = state(vec![join(1, "a", &["child", "elsewhere"]), join(2, "a", &["child"])]);
        assert_eq!(answerable(answers, &strange).map(|join| join.offset).collect::<Vec<_>>(), [2]);
        assert_eq!(planned(&strange).0, [2]);
    }

    #[test]
    fn what_all_its_requests_have_is_not_read_again() {
        let mut one = join(1, "a", &["parent"]);
        one.loaded = vec![(table("parent"), through("5"))];
        let mut other = join(2, "b", &["parent"]);
        other.loaded.clone_from(&one.loaded);
        let mut both = state(vec![one, other]);
        let job = plan(answers, sinks_of, &order(), &both);
        assert_eq!(loaded(&job, &both), [(table("parent"), through("5"))]);
        assert_eq!(begun(&both).count(), 2);
        both.again = vec![table("parent")];
        assert_eq!(loaded(&job, &both), [], "somebody said that it must be");
        both.again.clear();
        both.joins[1].loaded.clear();
        assert_eq!(loaded(&job, &both), [], "one of them has nothing");
    }
}

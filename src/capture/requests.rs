//! Which requests of the ledger are answered next, and with what: pure planning over the ledger's state.
//!
//! Sinks ask for tables through the ledger (`join`, `resync`), and so does the reader itself for what has changed without a
//! trace. A job answers some of these requests with the rows of their tables; what a reader before this one has loaded for
//! them need not be read again as far as nobody's ranges mean something else by now.
//!
//! Deliberately not here: when a job begins, and the reading itself (`capture::driver`, `capture::snapshot`).

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use crate::capture::chunks::range_key;
use crate::capture::snapshot::{Job, Resumed};
use crate::ledger::cover::Cover;
use crate::ledger::entry::{Join, Request};
use crate::ledger::loaded::LoadedTable;
use crate::ledger::state::State;
use crate::relation::TableName;

/// Open requests that this reader `answers`.
pub fn answerable(answers: impl Fn(&Request) -> bool, state: &State) -> impl Iterator<Item = &Join> {
    state.open_joins().filter(move |join| answers(&join.request))
}

/// What to load next: everything that is asked for when every sink asks, otherwise what the sink of the oldest request asks
/// for, for it alone, so that sinks which have their rows are not bothered.
/// `sinks_of` says which sinks take a table, `order` the tables that there are, parents first.
pub fn plan<'a>(
    answers: impl Fn(&Request) -> bool,
    sinks_of: impl Fn(&TableName) -> Vec<&'a str>,
    order: &[TableName],
    state: &State,
) -> Job {
    let open: Vec<_> = answerable(answers, state).collect();
    let asked: BTreeSet<&TableName> = open.iter().flat_map(|join| join.request.read()).collect();
    let asks =
        |sink: &str, table: &TableName| open.iter().any(|join| join.request.sink == sink && join.request.reads(table));
    let everybody = asked.iter().all(|table| sinks_of(table).iter().all(|sink| asks(sink, table)));
    let sink = (!everybody).then(|| open[0].request.sink.clone());
    let answered = open.iter().filter(|join| sink.as_ref().is_none_or(|sink| join.request.sink == *sink));
    let answered: Vec<&Request> = answered.map(|join| &join.request).collect();
    let wanted: BTreeSet<&TableName> = answered.iter().flat_map(|request| request.read()).collect();
    let requests = answered.iter().map(|request| request.id).collect();
    // A sink takes chunks only for what it asked for last.
    let ids = answered.iter().flat_map(|request| request.read().map(|table| (table.clone(), request.id)));
    let only = sink.map(|sink| (sink, ids.collect()));
    let tables: Vec<TableName> = order.iter().filter(|name| wanted.contains(name)).cloned().collect();
    let loaded = |table| state.joins.iter().any(|join| join.done && join.request.reads(table));
    let initial = !tables.iter().any(loaded);
    Job { requests, only, tables, initial, resumed: HashMap::new() }
}

/// Requests of which something is loaded.
pub fn begun(state: &State) -> impl Iterator<Item = &Join> {
    state.open_joins().filter(|join| !join.loaded.is_empty())
}

/// What need not be read again for a job that goes on where a reader before this one was: what of each table all that its
/// chunks answer have alike, or else what none of them asks for.
pub fn resumed(job: &Job, state: &State) -> HashMap<TableName, Resumed> {
    let of = |table: &TableName| {
        if !state.forgets && state.again.contains(table) {
            return None;
        }
        let answered = state.joins.iter().filter(|join| is_answered(join, table, job));
        let mut loaded = answered.map(|join| join.loaded.table(table));
        let first = loaded.next()??;
        let relation = state.relations.get(&first.relation?).filter(|_| first.cover.ranges.is_rising())?;
        let mut cover = first.cover.clone();
        for other in loaded {
            let other =
                other.filter(|other| (&other.cover.ranges, other.relation) == (&cover.ranges, first.relation))?;
            cover.again.extend(other.cover.again.iter().cloned());
        }
        Some(Resumed { key: range_key(relation), cover })
    };
    let of = |table: &TableName| of(table).or_else(|| unasked_of(table, job, state));
    job.tables.iter().filter_map(|table| Some((table.clone(), of(table)?))).collect()
}

/// What no request of a job asks for: the sinks have it, and need nobody to watch it.
pub fn unasked(job: &Job, state: &State) -> HashMap<TableName, Resumed> {
    job.tables.iter().filter_map(|table| Some((table.clone(), unasked_of(table, job, state)?))).collect()
}

fn unasked_of(table: &TableName, job: &Job, state: &State) -> Option<Resumed> {
    let mut answered = state.joins.iter().filter(|join| is_answered(join, table, job));
    let first = answered.next()?.request.within.clone()?;
    let within = answered.try_fold(first, |both, join| both.with(join.request.within.as_ref()?))?;
    let relation = state.relations.get(&within.relation)?;
    // What became of the table since: of another key, or of another table, the ranges say nothing.
    let newest = state.newest_of(table)?;
    let same = (newest.oid, newest.row_key()) == (relation.oid, relation.row_key());
    let cover: Cover = within.cover().ok().filter(|_| same)?;
    Some(Resumed { key: range_key(relation), cover })
}

/// Whether the job's chunks of the table answer this request.
fn is_answered(join: &Join, table: &TableName, job: &Job) -> bool {
    job.requests.contains(&join.request.id)
        && join.request.reads(table)
        && job.answers(table).is_none_or(|(_, id)| id == join.request.id)
}

/// What of open requests is loaded and the job does not go on with: nobody watches it from here on.
pub fn unwatched(job: Option<&Job>, state: &State) -> Vec<(TableName, Uuid)> {
    let is_watched = |join: &Join, table: &TableName| {
        let goes_on = |job: &Job| {
            let ranges = |loaded: &LoadedTable| loaded.cover.ranges.clone();
            let resumed = job.resumed.get(table).map(|resumed| resumed.cover.ranges.clone());
            resumed.is_some() && resumed == join.loaded.table(table).map(ranges)
        };
        job.is_some_and(|job| goes_on(job) && is_answered(join, table, job))
    };
    let tables = |join: &'_ Join| {
        let tables = join.loaded.tables().map(|(table, _)| table).filter(|table| !is_watched(join, table));
        tables.map(|table| (table.clone(), join.request.id)).collect::<Vec<_>>()
    };
    begun(state).flat_map(tables).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::key::KeyRange;
    use crate::ledger::entry::RequestKind;
    use crate::ledger::loaded::tests::{chunks, version};
    use crate::ledger::loaded::{Loaded, Relations};
    use crate::ledger::taken::Taken;
    use crate::ledger::within::Within;
    use crate::relation::{Fingerprint, Relation};

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
        let request = Request::new(id, RequestKind::Join, sink, tables, "");
        Join { offset: i64::try_from(number).unwrap(), request, loaded: Loaded::default(), done: false }
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
    fn what_is_only_streamed_is_in_no_job() {
        let mut one = join(1, "a", &["child", "parent"]);
        let streamed = |name| {
            let (table, into) = (table(name), table(name));
            Taken { table, into, columns: None, streamed: true, mark: None, values: None }
        };
        one.request.taken = vec![streamed("child")];
        let alone = state(vec![one.clone(), join(2, "b", &["parent"])]);
        assert_eq!(planned(&alone), (vec![1, 2], None, vec!["parent".into()], true));
        one.request.taken.push(streamed("parent"));
        assert_eq!(planned(&state(vec![one])), (vec![1], None, vec![], true), "answered all the same");
    }

    #[test]
    fn a_request_for_a_table_that_nobody_routes_waits() {
        let strange = state(vec![join(1, "a", &["child", "elsewhere"]), join(2, "a", &["child"])]);
        assert_eq!(answerable(answers, &strange).map(|join| join.offset).collect::<Vec<_>>(), [2]);
        assert_eq!(planned(&strange).0, [2]);
    }

    #[test]
    fn a_sink_is_answered_for_what_it_asked_for_last() {
        let mut whole = join(1, "b", &["parent"]);
        whole.done = true;
        let twice = state(vec![whole, join(2, "a", &["child", "parent"]), join(3, "a", &["parent"])]);
        assert_eq!(planned(&twice), (vec![2, 3], Some("a".into()), vec!["parent".into(), "child".into()], false));
        let job = plan(answers, sinks_of, &order(), &twice);
        let answered = |name| job.answers(&table(name)).unwrap().1.as_u128();
        assert_eq!((answered("parent"), answered("child")), (3, 2));
    }

    /// The parent as `number` describes it, told by version.
    fn told(number: u64, oid: u32) -> (Fingerprint, Arc<Relation>) {
        let fingerprint = Fingerprint(number);
        (fingerprint, Arc::new(Relation { fingerprint, ..version(&table("parent"), oid, 23) }))
    }

    /// The parent's rows are loaded up to 5 under a version.
    fn loaded(join: &mut Join, relation: u64, relations: &Relations) {
        join.loaded.checkpoint(&chunks(&[(None, Some("5"), relation, 1)], &[]), &join.request, |_| true, relations);
    }

    fn goes_on_with(state: &State) -> Vec<(String, Vec<KeyRange>)> {
        let job = plan(answers, sinks_of, &order(), state);
        let resumed = resumed(&job, state).into_iter();
        resumed.map(|(table, resumed)| (table.table, resumed.cover.left())).collect()
    }

    #[test]
    fn what_all_its_requests_have_is_not_read_again() {
        let relations = Relations::from([told(1, 7)]);
        let (mut one, mut other) = (join(1, "a", &["parent", "child"]), join(2, "b", &["parent"]));
        loaded(&mut one, 1, &relations);
        loaded(&mut other, 1, &relations);
        let mut both = State { relations, ..state(vec![one, other]) };
        let rest = vec![("parent".to_owned(), vec![KeyRange { after: Some(vec!["5".into()]), through: None }])];
        assert_eq!(goes_on_with(&both), rest);
        assert_eq!(begun(&both).count(), 2);
        both.again = vec![table("parent")];
        assert_eq!(goes_on_with(&both), [], "an older writer said that it must be");
        both.forgets = true;
        assert_eq!(goes_on_with(&both), rest, "this one says what");
        let whole = plan(answers, sinks_of, &order(), &both);
        let job = Job { resumed: resumed(&whole, &both), ..whole };
        assert_eq!(unwatched(Some(&job), &both), []);
        both.joins[1].loaded = Loaded::default();
        assert_eq!(goes_on_with(&both), [], "one of them has nothing");
        assert_eq!(unwatched(None, &both), [(table("parent"), Uuid::from_u128(1))]);
    }

    #[test]
    fn a_key_that_the_table_once_had_does_not_matter_to_a_load_under_another() {
        let mut relations = Relations::from([told(1, 7), told(2, 8)]);
        let mut one = join(1, "a", &["parent"]);
        loaded(&mut one, 2, &relations);
        relations.extend([told(3, 9)]);
        let alone = State { relations, ..state(vec![one]) };
        assert_eq!(goes_on_with(&alone).len(), 1, "tables of that name were there before, and one is there by now");
    }

    /// A request for keys after `after`, up to `through`.
    fn part(number: u128, sink: &str, after: &str, through: &str) -> Join {
        let range = KeyRange { after: Some(vec![after.into()]), through: Some(vec![through.into()]) };
        let mut join = join(number, sink, &["parent"]);
        join.request.kind = RequestKind::ResyncRange;
        join.request.within = Some(Within { relation: Fingerprint(1), types: vec![23], ranges: vec![range] });
        join.loaded = Loaded::of_request(&join.request);
        join
    }

    fn reads(state: &State) -> Vec<KeyRange> {
        let job = plan(answers, sinks_of, &order(), state);
        unasked(&job, state).remove(&table("parent")).map_or_else(|| vec![KeyRange::ALL], |rest| rest.cover.left())
    }

    #[test]
    fn what_nobody_asks_for_is_not_read() {
        let range = |after: &str, through: &str| part(0, "", after, through).request.within.unwrap().ranges.remove(0);
        let relations = Relations::from([told(1, 7)]);
        let alone = State { relations: relations.clone(), forgets: true, ..state(vec![part(1, "b", "3", "5")]) };
        assert_eq!(reads(&alone), [range("3", "5")]);
        let both = state(vec![part(1, "a", "3", "5"), part(2, "b", "3", "5"), part(3, "b", "7", "9")]);
        let mut both = State { relations, forgets: true, ..both };
        assert_eq!(reads(&both), [range("3", "5"), range("7", "9")], "one job for both");
        // A reader that dies in the middle of it: nobody watched what the others ask for.
        let in_part = chunks(&[(Some("3"), Some("4"), 1, 1)], &[]);
        let first = &mut both.joins[0];
        first.loaded.checkpoint(&in_part, &first.request, |_| true, &both.relations);
        let job = plan(answers, sinks_of, &order(), &both);
        let job = Job { resumed: resumed(&job, &both), ..job };
        assert_eq!(job.resumed[&table("parent")].cover.left(), [range("3", "5"), range("7", "9")]);
        assert!(unwatched(Some(&job), &both).contains(&(table("parent"), Uuid::from_u128(1))));
        both.joins[1].request.within = None;
        assert_eq!(reads(&both), [KeyRange::ALL], "one asks for all of it");
    }

    #[test]
    fn ranges_of_a_key_that_the_table_had_are_all_of_it() {
        let relations = Relations::from([told(1, 7), told(2, 8)]);
        let relations_at = [(Fingerprint(1), 5), (Fingerprint(2), 6)].into();
        let later = State { relations, relations_at, ..state(vec![part(1, "b", "3", "5")]) };
        assert_eq!(reads(&later), [KeyRange::ALL]);
    }

    #[test]
    fn a_single_key_is_read_again_and_not_its_table() {
        let relations = Relations::from([told(1, 7)]);
        let (mut one, mut other) = (join(1, "a", &["parent"]), join(2, "b", &["parent"]));
        loaded(&mut one, 1, &relations);
        loaded(&mut other, 1, &relations);
        one.loaded.checkpoint(&chunks(&[], &[("parent", Some("3"), 2)]), &one.request, |_| true, &relations);
        let both = State { relations, forgets: true, ..state(vec![one, other]) };
        let after = KeyRange { after: Some(vec!["5".into()]), through: None };
        assert_eq!(goes_on_with(&both), [("parent".to_owned(), vec![after, KeyRange::of_key(vec!["3".into()])])]);
    }
}

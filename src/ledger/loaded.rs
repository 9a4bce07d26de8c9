//! What is loaded of the tables of a request: a fold over the chunks that answer it, the same for reader and sinks.
//!
//! Ranges are of one key. A chunk of another key, or of another table of that name, begins anew. Two things take back what a
//! chunk said, and only the reader minds them: a key that sinks had to leave out is to be read again by itself, and of a table
//! that nobody watched everything is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::key::ranges::RangeSet;
use crate::key::{KeyOrder, KeyRange};
use crate::ledger::cover::Cover;
use crate::ledger::entry::{Checkpoint, Chunk, Forget, Request};
use crate::lsn::Position;
use crate::relation::{Fingerprint, Relation, TableName};

/// Versions by their fingerprints, as the ledger tells of them.
pub type Relations = HashMap<Fingerprint, Arc<Relation>>;

/// What is loaded of each table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Told", into = "Told")]
pub struct Loaded {
    tables: BTreeMap<TableName, LoadedTable>,
}

/// What is loaded of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedTable {
    /// The version of the last chunk, which says what the borders are texts of; `None`: an older writer's, which does not say.
    pub relation: Option<Fingerprint>,
    pub cover: Cover,
}

/// As it stands in a base.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Told {
    loaded: Vec<(TableName, KeyRange)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    loaded_as: Vec<(TableName, Fingerprint)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    again_keys: Vec<(TableName, Vec<String>)>,
}

impl From<Told> for Loaded {
    fn from(told: Told) -> Loaded {
        let mut ranges: BTreeMap<TableName, Vec<KeyRange>> = BTreeMap::new();
        for (table, range) in told.loaded {
            ranges.entry(table).or_default().push(range);
        }
        let with_ranges = |(table, ranges): (TableName, Vec<KeyRange>)| {
            (table, LoadedTable { relation: None, cover: Cover { ranges: ranges.into(), again: BTreeSet::new() } })
        };
        let mut tables: BTreeMap<TableName, LoadedTable> = ranges.into_iter().map(with_ranges).collect();
        for (table, relation) in told.loaded_as {
            tables.entry(table).or_default().relation = Some(relation);
        }
        for (table, key) in told.again_keys {
            tables.entry(table).or_default().cover.again.insert(key);
        }
        Loaded { tables }
    }
}

impl From<Loaded> for Told {
    fn from(loaded: Loaded) -> Told {
        let mut told = Told { loaded: Vec::new(), loaded_as: Vec::new(), again_keys: Vec::new() };
        for (table, of) in loaded.tables {
            told.loaded.extend(Vec::from(of.cover.ranges).into_iter().map(|range| (table.clone(), range)));
            told.loaded_as.extend(of.relation.map(|relation| (table.clone(), relation)));
            told.again_keys.extend(of.cover.again.into_iter().map(|key| (table.clone(), key)));
        }
        told
    }
}

impl Loaded {
    /// As the request's load begins: with all that it does not ask for.
    pub fn of_request(request: &Request) -> Loaded {
        let mut loaded = Loaded::default();
        loaded.begin(request);
        loaded
    }

    fn begin(&mut self, request: &Request) {
        if let (Some(within), [table]) = (&request.within, &request.tables[..]) {
            self.tables.entry(table.clone()).or_insert_with(|| within.loaded());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub fn table(&self, table: &TableName) -> Option<&LoadedTable> {
        self.tables.get(table)
    }

    pub fn tables(&self) -> impl Iterator<Item = (&TableName, &LoadedTable)> {
        self.tables.iter()
    }

    pub fn retain(&mut self, keep: impl Fn(&TableName) -> bool) {
        self.tables.retain(|table, _| keep(table));
    }

    /// A checkpoint's chunks that answer a request for the `tables`, and what it says no longer counts, in the order of their
    /// positions.
    pub fn checkpoint(
        &mut self,
        checkpoint: &Checkpoint,
        request: &Request,
        answers: impl Fn(&Chunk) -> bool,
        relations: &Relations,
    ) {
        let chunks =
            checkpoint.chunks.iter().filter(|chunk| answers(chunk)).map(|chunk| (chunk.at, Step::Chunk(chunk)));
        let forgets = checkpoint.forget.iter().flatten();
        let forgets = forgets.filter(|forget| forget.is_of(request.id));
        let mut steps: Vec<(Position, Step<'_>)> =
            chunks.chain(forgets.map(|forget| (forget.at, Step::Forget(forget)))).collect();
        // Of the same position a chunk is the earlier one: what is said of a place is said of everything up to it.
        steps.sort_by_key(|(at, step)| (*at, matches!(step, Step::Forget(_))));
        for (_, step) in steps {
            match step {
                Step::Chunk(chunk) => self.tables.entry(chunk.table.clone()).or_default().insert(chunk, relations),
                Step::Forget(forget) => {
                    self.forget(forget);
                    self.begin(request);
                }
            }
        }
    }

    fn forget(&mut self, forget: &Forget) {
        let is_meant = |table: &TableName| forget.table.as_ref().is_none_or(|meant| meant == table);
        match &forget.key {
            None => self.tables.retain(|table, _| !is_meant(table)),
            Some(key) => {
                for (_, table) in self.tables.iter_mut().filter(|(table, _)| is_meant(table)) {
                    table.cover.again.insert(key.clone());
                }
            }
        }
    }

    /// What was read from a base becomes sets: of an older writer's only where every version of the table that the ledger
    /// knows has one key.
    pub fn put_in_order(&mut self, relations: &Relations) {
        for (name, table) in &mut self.tables {
            let relation = match table.relation {
                Some(relation) => relations.get(&relation).map(Arc::as_ref),
                None => only_key(name, relations),
            };
            if let Some(relation) = relation
                && let Ok(ranges) = RangeSet::of(&orders(relation), table.cover.ranges.iter().cloned())
            {
                (table.cover.ranges, table.relation) = (ranges, Some(relation.fingerprint));
            }
        }
    }
}

enum Step<'a> {
    Chunk(&'a Chunk),
    Forget(&'a Forget),
}

impl LoadedTable {
    /// The chunk's range is loaded, of its key alone.
    pub fn insert(&mut self, chunk: &Chunk, relations: &Relations) {
        let Some(relation) = relations.get(&chunk.relation) else {
            // No reader counts a chunk whose version it has not told of. The range is known and its order is not.
            self.cover.ranges.push(chunk.range.clone());
            return;
        };
        let before = self.relation.and_then(|before| relations.get(&before));
        if before.is_some_and(|before| !has_key_of(before, relation)) {
            *self = LoadedTable::default();
        }
        if self.cover.emitted(&orders(relation), &chunk.range).is_err() {
            // Borders that are no keys of the table's type are of another one.
            self.cover = Cover { ranges: vec![chunk.range.clone()].into(), again: BTreeSet::new() };
        }
        self.relation = Some(relation.fingerprint);
    }
}

/// The orders of the key that the ranges of this version speak of.
pub fn orders(relation: &Relation) -> Vec<KeyOrder> {
    relation.row_key().into_iter().map(|(_, type_oid)| KeyOrder::of(type_oid)).collect()
}

/// Whether ranges mean the same in both versions: in another table or under another key they do not.
fn has_key_of(one: &Relation, other: &Relation) -> bool {
    (one.oid, one.row_key()) == (other.oid, other.row_key())
}

/// A version of the table, if every version of it has the same key.
fn only_key<'a>(table: &TableName, relations: &'a Relations) -> Option<&'a Relation> {
    let mut versions = relations.values().filter(|relation| relation.name == *table);
    let first = versions.next()?;
    versions.all(|other| has_key_of(first, other)).then_some(first)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ledger::entry::{Join, RequestKind};
    use crate::lsn::Lsn;
    use crate::record::Epoch;
    use crate::relation::tests::relation;
    use uuid::Uuid;

    /// A version with a key of one column.
    pub fn version(name: &TableName, oid: u32, type_oid: u32) -> Relation {
        let mut made = relation();
        (made.name, made.oid) = (name.clone(), oid);
        made.columns.truncate(1);
        (made.columns[0].key, made.columns[0].type_oid) = (Some(0), type_oid);
        made.sealed()
    }

    fn at(ordinal: u64) -> Position {
        Position::new(Lsn(1), ordinal)
    }

    fn key(text: &str) -> Vec<String> {
        vec![text.to_owned()]
    }

    /// A checkpoint with chunks of the parent (after, through, version, place) and with what no longer counts (table, key,
    /// place).
    pub fn chunks(
        chunks: &[(Option<&str>, Option<&str>, u64, u64)],
        forgets: &[(&str, Option<&str>, u64)],
    ) -> Checkpoint {
        let chunk = |&(after, through, relation, place): &(Option<&str>, Option<&str>, u64, u64)| Chunk {
            relation: Fingerprint(relation),
            table: TableName::new("public", "parent"),
            range: KeyRange { after: after.map(key), through: through.map(key) },
            at: at(place),
            rows: 0,
            sinks: None,
            request: None,
        };
        let forget = |&(table, of, place): &(&str, Option<&str>, u64)| Forget {
            table: Some(TableName::new("public", table)),
            key: of.map(key),
            at: at(place),
            ..Forget::default()
        };
        Checkpoint {
            epoch: Epoch { offset: 0, nonce: 0 },
            from: Position::ORIGIN,
            to: at(100),
            closed: Lsn(1),
            commit_time: 0,
            spans: vec![],
            chunks: chunks.iter().map(chunk).collect(),
            again: vec![],
            forget: Some(forgets.iter().map(forget).collect()),
            barriers: None,
            prev: None,
        }
    }

    fn parent() -> TableName {
        TableName::new("public", "parent")
    }

    /// Versions 1 and 2 of the parent have an integer key, 3 a text; 4 is another table of that name.
    fn relations() -> Relations {
        let made = [(1, 7, 23), (2, 7, 23), (3, 7, 25), (4, 8, 23)];
        let made = made.map(|(number, oid, type_oid)| {
            let fingerprint = Fingerprint(number);
            (fingerprint, Arc::new(Relation { fingerprint, ..version(&parent(), oid, type_oid) }))
        });
        made.into()
    }

    fn left(loaded: &Loaded) -> Vec<String> {
        let text = |key: &Option<Vec<String>>| key.as_ref().map_or("-".to_owned(), |key| key.concat());
        let cover = loaded.table(&parent()).map_or_else(Cover::default, |table| table.cover.clone());
        cover.left().iter().map(|range| format!("{}..{}", text(&range.after), text(&range.through))).collect()
    }

    fn nobodys() -> Request {
        Request::new(Uuid::nil(), RequestKind::Join, "x", vec![], "")
    }

    fn fold(loaded: &mut Loaded, checkpoint: &Checkpoint) {
        loaded.checkpoint(checkpoint, &nobodys(), |_| true, &relations());
    }

    #[test]
    fn chunks_come_in_any_order_and_what_is_missing_is_what_is_left() {
        let mut loaded = Loaded::default();
        fold(&mut loaded, &chunks(&[(Some("20"), None, 1, 1), (Some("5"), Some("9"), 2, 2)], &[]));
        assert_eq!(left(&loaded), ["-..5", "9..20"]);
        fold(&mut loaded, &chunks(&[(None, Some("5"), 2, 3), (Some("9"), Some("20"), 2, 4)], &[]));
        assert_eq!(left(&loaded), [""; 0]);
    }

    #[test]
    fn what_no_longer_counts_is_what_stood_before_it() {
        let mut loaded = Loaded::default();
        fold(&mut loaded, &chunks(&[(None, Some("9"), 1, 5)], &[("parent", Some("3"), 7), ("parent", Some("4"), 4)]));
        assert_eq!(left(&loaded), ["9..-", "3..3"], "the chunk brought 4");
        fold(&mut loaded, &chunks(&[(Some("2"), Some("3"), 1, 9)], &[("parent", Some("3"), 7)]));
        assert_eq!(left(&loaded), ["9..-"], "told twice and read in between");
        let later = [(Some("30"), Some("40"), 1, 15), (Some("9"), Some("20"), 1, 11)];
        fold(&mut loaded, &chunks(&later, &[("parent", None, 12), ("child", None, 20)]));
        assert_eq!(left(&loaded), ["-..30", "40..-"]);
    }

    #[test]
    fn what_no_longer_counts_is_said_of_requests() {
        let (mine, other) = (Uuid::nil(), Uuid::from_u128(1));
        let of = |forget: Forget| {
            let mut loaded = Loaded::default();
            fold(&mut loaded, &chunks(&[(None, Some("9"), 1, 5)], &[]));
            fold(&mut loaded, &Checkpoint { forget: Some(vec![Forget { at: at(6), ..forget }]), ..chunks(&[], &[]) });
            loaded.is_empty()
        };
        assert!(of(Forget::default()), "of every table and whoever asked");
        assert!(of(Forget { request: Some(mine), ..Forget::default() }));
        assert!(!of(Forget { request: Some(other), ..Forget::default() }));
        assert!(!of(Forget { besides: vec![mine], ..Forget::default() }));
    }

    #[test]
    fn ranges_of_another_key_or_another_table_begin_anew() {
        for other in [3, 4] {
            let mut loaded = Loaded::default();
            fold(&mut loaded, &chunks(&[(None, Some("5"), 1, 1)], &[]));
            fold(&mut loaded, &chunks(&[(Some("5"), Some("7"), other, 2)], &[]));
            assert_eq!(left(&loaded), ["-..5", "7..-"]);
        }
    }

    #[test]
    fn it_survives_a_base_and_an_older_writers_list_is_read() {
        let mut loaded = Loaded::default();
        let holes = [(Some("20"), None, 1, 1), (None, Some("9"), 1, 2)];
        fold(&mut loaded, &chunks(&holes, &[("parent", Some("3"), 7)]));
        let request: crate::ledger::entry::Request = serde_json::from_str(
            r#"{"id":"00000000-0000-0000-0000-000000000000","kind":"join","sink":"x","tables":[],"asked_by":""}"#,
        )
        .unwrap();
        let join = Join { offset: 1, request, loaded: loaded.clone(), done: false };
        let json = serde_json::to_string(&join).unwrap();
        let mut told: Join = serde_json::from_str(&json).unwrap();
        assert_eq!(told, join, "{json}");
        told.loaded.put_in_order(&relations());
        assert_eq!(left(&told.loaded), ["9..20", "3..3"]);

        let list = r#"{"loaded":[[{"schema":"public","table":"parent"},{"through":["5"]}],
            [{"schema":"public","table":"parent"},{"through":["3"]}],
            [{"schema":"public","table":"parent"},{"after":["3"],"through":["11"]}]]}"#;
        let mut old: Loaded = serde_json::from_str(list).unwrap();
        let mut one_key = relations();
        one_key.retain(|version, _| version.0 < 3);
        old.put_in_order(&one_key);
        assert_eq!(left(&old), ["11..-"]);
        let mut several: Loaded = serde_json::from_str(list).unwrap();
        several.put_in_order(&relations());
        assert_eq!(several.table(&parent()).unwrap().relation, None, "which key it speaks of nobody knows");
    }
}

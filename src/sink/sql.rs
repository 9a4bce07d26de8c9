//! The statements that write one table at a Postgres sink. Pure: names and types in, text out.
//!
//! Rows come from one of two places, under the same names: parameters (`unnest` of one text array per column) or a stage (a
//! temporary table that COPY filled). `c<i>` is the plan's column `i`, `o<k>` the key's column `k` as the row has it now.
//! Identifiers are quoted, everything is qualified, values never enter the text.
//!
//! Rows are found by the key index's own equality operator: with search_path pinned to pg_catalog, `=` on a type of an
//! extension would silently be another one.

use std::collections::HashSet;

use super::WantedTable;
#[cfg(doc)]
use super::catalog::ColumnFacts;
use super::catalog::{ConstraintFacts, TableFacts};
use super::confine::Held;
use super::direct;
use super::fit;
use super::labels;
use super::soft::Mark;
use super::values::PlanValue;
use crate::apply::fold::Fold;
use crate::config::Truncate;
use crate::key::{KeyColumn, KeyOrder, KeyRange, predicate, type_sql};
use crate::relation::{TableName, quote_identifier};

/// Where a statement's rows come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rows {
    /// One parameter per column: text[].
    Parameters,
    Stage,
}

/// How one relation version is written into one table of the sink as its catalog now is.
#[derive(Clone, Debug)]
pub struct SinkTablePlan {
    pub source: TableName,
    pub table: TableName,
    pub oid: u32,
    /// Our role at the sink, for GRANTs.
    pub(super) role: String,
    pub(super) columns: Vec<PlanColumn>,
    /// Places in `columns`, in key order; all of them in a table without a key.
    pub(super) key: Vec<usize>,
    pub(super) keyless: bool,
    /// Columns that hold the same in every row, by their places in `columns`.
    pub(super) held: Vec<Held>,
    /// Deleted rows stay, marked in this column.
    pub(super) mark: Option<Mark>,
    /// Columns that are computed of the others.
    pub(super) values: Vec<PlanValue>,
    /// The sink database's.
    encoding: String,
    /// The key index's equality, by key column.
    equals: Vec<String>,
    /// Tables that this one references, itself excluded.
    parents: HashSet<u32>,
    references_itself: bool,
    /// Some foreign key acts on or checks a delete here at once, so deletes wait until nothing that lives on can hang on them.
    pub(super) deletes_last: bool,
    /// ON DELETE actions of a table that this one references may take rows of this table first.
    pub(super) deletes_short: bool,
    /// Equal keys are equal texts.
    exact_key: bool,
    pub(super) deferrable: bool,
    /// New rows may go by COPY to the table itself.
    pub(super) direct: bool,
    pub(super) constraints: Vec<ConstraintFacts>,
    /// Names of columns that the sink generates always, and so allows no UPDATE of.
    pub(super) generated_always: Vec<String>,
    pub(super) truncate: Truncate,
    pub(super) skips_missing: bool,
    /// Quoted, with its schema.
    pub(super) stage: String,
}

#[derive(Clone, Debug)]
pub(super) struct PlanColumn {
    /// Place in the relation's rows.
    pub index: usize,
    pub name: String,
    pub quoted: String,
    /// The type to cast texts to: the base type, without modifier.
    pub cast: String,
    /// The type as declared, with its modifier: what a value is once it is stored.
    pub stored: String,
    /// See [`ColumnFacts::input`].
    input: Option<String>,
    base: String,
    /// How SQL names the enum that it is of, if it is.
    pub enum_sql: Option<String>,
    /// Statements that give it the labels which the source's enum has besides.
    pub add_labels: Vec<String>,
    pub source_oid: u32,
}

impl PlanColumn {
    /// The value of a text, as the type's input function reads it.
    pub fn parse(&self, text: &str) -> String {
        match &self.input {
            Some(input) => input.replacen('%', &format!("pg_catalog.textout({text})"), 1),
            None => format!("{text}::{}", self.cast),
        }
    }
}

/// Types whose equal values have equal texts, given a deterministic collation: two texts never name one key.
const EXACT_KEY_TYPES: &[&str] = &[
    "int2",
    "int4",
    "int8",
    "oid",
    "uuid",
    "text",
    "varchar",
    "bytea",
    "bool",
    "date",
    "timestamp",
    "timestamptz",
    "name",
];

impl SinkTablePlan {
    pub(super) fn references(&self, other: &SinkTablePlan) -> bool {
        self.parents.contains(&other.oid)
    }

    /// `facts` was judged to fit `wanted`; `role` is ours.
    pub fn compile(wanted: &WantedTable, facts: &TableFacts, role: &str) -> SinkTablePlan {
        let find = |name: &str| facts.columns.iter().find(|c| c.name == name).expect("judged: every column is there");
        let columns: Vec<PlanColumn> = wanted
            .columns
            .iter()
            .map(|wanted| {
                let sink = find(&wanted.column.name);
                PlanColumn {
                    index: wanted.index,
                    name: sink.name.clone(),
                    quoted: quote_identifier(&sink.name),
                    cast: sink.base_sql.clone(),
                    stored: sink.declared_sql.clone(),
                    input: sink.input.clone(),
                    base: sink.base.clone(),
                    enum_sql: (sink.stored.kind == 'e').then(|| type_sql(&sink.stored.name)),
                    add_labels: labels::of_column(&wanted.column, &sink.stored),
                    source_oid: wanted.column.type_oid,
                }
            })
            .collect();
        let keyless = wanted.is_keyless();
        let key = if keyless { (0..columns.len()).collect() } else { wanted.key() };
        let equals = if keyless { Vec::new() } else { equals(wanted, facts, &columns) };
        let acts = |on_delete: &str| matches!(on_delete, "c" | "n" | "d");
        let keys = &facts.foreign_keys;
        let exact =
            |&k: &usize| find(&columns[k].name).deterministic && EXACT_KEY_TYPES.contains(&columns[k].base.as_str());
        SinkTablePlan {
            source: wanted.source.clone(),
            table: wanted.table.clone(),
            oid: facts.oid,
            role: role.to_owned(),
            equals,
            parents: keys.iter().filter(|f| f.child == facts.oid && f.parent != facts.oid).map(|f| f.parent).collect(),
            references_itself: keys.iter().any(|f| f.child == facts.oid && f.parent == facts.oid),
            deletes_last: keys.iter().any(|f| f.parent == facts.oid && !(f.deferrable && f.on_delete == "a")),
            deletes_short: keys.iter().any(|f| f.child == facts.oid && acts(&f.on_delete)),
            exact_key: !keyless && key.iter().all(exact),
            deferrable: facts.constraints.iter().any(|c| c.deferrable) || keys.iter().any(|f| f.deferrable),
            direct: wanted.values.is_empty() && direct::is_alike(wanted, facts),
            constraints: facts.constraints.clone(),
            generated_always: facts.columns.iter().filter(|c| c.identity_always).map(|c| c.name.clone()).collect(),
            truncate: wanted.truncate,
            skips_missing: wanted.skips_missing,
            stage: stage_name(facts.oid, &columns, &key),
            columns,
            key,
            keyless,
            held: wanted.held.clone(),
            values: wanted.values.iter().map(|value| PlanValue::of(value, find(&value.column))).collect(),
            mark: wanted.mark.map(|place| Mark::of(place, &find(&wanted.columns[place].column.name).stored)),
            encoding: facts.encoding.clone(),
        }
    }

    /// Nothing folded yet, for this plan's table.
    pub fn fold(&self) -> Fold {
        let relation = |place: usize| self.columns[place].index;
        let wanted = (0..self.columns.len()).map(relation).collect();
        let key = if self.keyless { Vec::new() } else { self.key.iter().map(|&k| relation(k)).collect() };
        let mark = self.mark.map(|mark| (relation(mark.place), self.exact_key));
        Fold::new(self.table.clone(), wanted, key, mark, self.skips_missing)
    }

    /// Whether new rows go in before others are updated: only where a row may reference a new one of its own table.
    pub(super) fn inserts_first(&self) -> bool {
        // Another text of a key that is marked brings its row back to life, so the mark must not come later.
        self.references_itself && (self.mark.is_none() || self.exact_key)
    }

    /// Places in `columns` of the relation's columns `indexes`.
    pub(super) fn places(&self, indexes: &[usize]) -> Vec<usize> {
        let place = |index: &usize| self.columns.iter().position(|column| column.index == *index);
        indexes.iter().map(|index| place(index).expect("a net effect names wanted columns only")).collect()
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.columns.len()).collect()
    }

    pub(super) fn has_only_key(&self) -> bool {
        !self.keyless && self.key.len() == self.columns.len() && self.values.is_empty()
    }

    /// New rows. A row that is already there is overwritten, except where deletes come last and another text of the same key
    /// is about to be deleted (`deletes`): there the clash must show.
    pub(super) fn insert(&self, rows: Rows, deletes: bool) -> String {
        let all = self.all();
        let insert = self.insert_into(rows, &all);
        match self.keyless || (deletes && self.deletes_last && !self.exact_key && self.mark.is_none()) {
            true => insert,
            false => format!("{insert} {}", self.on_conflict()),
        }
    }

    /// Rows of a chunk: as `insert`, but rows that are already right are not written again.
    pub(super) fn insert_differing(&self) -> String {
        let all = self.all();
        let insert = format!("{} {}", self.insert_into(Rows::Stage, &all), self.on_conflict());
        if self.has_only_key() && self.exact_key {
            return insert;
        }
        // Images rather than values: 1.0 and 1.00 differ, and json has no equality at all.
        let image = |of: &str| {
            let quoted = self.columns.iter().map(|c| &c.quoted).chain(self.values.iter().map(|value| &value.quoted));
            let columns = quoted.map(|column| format!("{of}.{column}"));
            format!("ROW({})::record", columns.collect::<Vec<_>>().join(", "))
        };
        format!("{insert} WHERE {} OPERATOR(pg_catalog.*<>) {}", image("t"), image("excluded"))
    }

    pub(super) fn update(&self, rows: Rows, present: &[usize]) -> String {
        let set: Vec<usize> = present.iter().copied().filter(|place| !self.key.contains(place)).collect();
        assert!(!set.is_empty(), "a row that carries only its key is not updated");
        format!(
            "UPDATE {} AS t SET {}{} {} WHERE {}",
            self.table.quoted(),
            self.assignments(rows, &set),
            self.computed_anew(rows, &set, present),
            self.from(rows, present, false),
            self.same_key("t", |k| self.value(rows, self.key[k]))
        ) + &self.and_alive("t")
    }

    pub(super) fn shift(&self, rows: Rows, present: &[usize]) -> String {
        format!(
            "UPDATE {} AS t SET {}{} {} WHERE {}",
            self.table.quoted(),
            self.assignments(rows, present),
            self.computed_anew(rows, present, present),
            self.from(rows, present, true),
            self.same_key("t", |k| self.old_value(rows, k))
        )
    }

    pub(super) fn delete(&self, rows: Rows) -> String {
        format!(
            "DELETE FROM {} AS t USING {} WHERE {}",
            self.table.quoted(),
            self.source_of(rows, &[], true),
            self.same_key("t", |k| self.old_value(rows, k))
        )
    }

    /// Rows of a range that are not in the stage.
    pub(super) fn delete_phantoms(&self, range: &KeyRange) -> String {
        self.take_out(None, Some(self.phantoms(range)))
    }

    /// Rows `t` of the table that are in the range and not among the staged ones.
    pub(super) fn phantoms(&self, range: &KeyRange) -> String {
        format!(
            "{}{} AND NOT EXISTS (SELECT FROM {} AS v WHERE {})",
            self.in_range(range, |k| format!("t.{}", self.columns[self.key[k]].quoted)),
            self.and_ours(|place| format!("t.{}", self.columns[place].quoted)),
            self.stage,
            self.same_key("t", |k| self.value(Rows::Stage, self.key[k]))
        )
    }

    /// The condition that a key lies in the range, whichever table it is of; `name` says where its columns stand.
    pub(super) fn in_range(&self, range: &KeyRange, name: impl Fn(usize) -> String) -> String {
        let columns = self.own_key().into_iter().map(|k| {
            let column = &self.columns[self.key[k]];
            let order = KeyOrder::of(column.source_oid);
            let key = KeyColumn::new(&column.name, order, &column.base).in_encoding(&self.encoding);
            KeyColumn { sql: name(k), ..key }
        });
        predicate(&columns.collect::<Vec<_>>(), range)
    }

    pub(super) fn create_stage(&self) -> String {
        let column = |place: usize| format!("c{place} {}", self.columns[place].cast);
        let old = |k: usize| format!("o{k} {}", self.columns[self.key[k]].cast);
        let all: Vec<String> = (0..self.columns.len()).map(column).chain((0..self.key.len()).map(old)).collect();
        format!("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DELETE ROWS", self.stage, all.join(", "))
    }

    pub(super) fn copy_to_stage(&self, present: &[usize], with_old: bool) -> String {
        format!("COPY {} ({}) FROM STDIN", self.stage, self.names(present, with_old).join(", "))
    }

    fn insert_into(&self, rows: Rows, places: &[usize]) -> String {
        let names: Vec<&str> = places.iter().map(|&place| self.columns[place].quoted.as_str()).collect();
        let values: Vec<String> = places.iter().map(|&place| self.value(rows, place)).collect();
        format!(
            "INSERT INTO {} AS t ({}{}) OVERRIDING SYSTEM VALUE SELECT {}{} {}",
            self.table.quoted(),
            names.join(", "),
            self.value_names(),
            values.join(", "),
            self.computed(|place| self.value(rows, place)),
            self.from(rows, places, false)
        )
    }

    pub(super) fn on_conflict(&self) -> String {
        // Another text of the same key is written too; an equal one would only cost.
        let written = |place: &usize| !self.exact_key || !self.key.contains(place);
        let all = self.all();
        let columns = all.iter().filter(|place| written(place)).map(|&place| &self.columns[place].quoted);
        let columns = columns.chain(self.values.iter().map(|value| &value.quoted));
        let set: Vec<String> = columns.map(|column| format!("{column} = excluded.{column}")).collect();
        let key: Vec<&str> = self.key.iter().map(|&k| self.columns[k].quoted.as_str()).collect();
        match set.is_empty() {
            true => format!("ON CONFLICT ({}) DO NOTHING", key.join(", ")),
            false => format!("ON CONFLICT ({}) DO UPDATE SET {}", key.join(", "), set.join(", ")),
        }
    }

    fn assignments(&self, rows: Rows, places: &[usize]) -> String {
        let set = places.iter().map(|&place| format!("{} = {}", self.columns[place].quoted, self.value(rows, place)));
        set.collect::<Vec<_>>().join(", ")
    }

    /// A row of the table, under the name `table`, has the key `value`.
    pub(super) fn same_key(&self, table: &str, value: impl Fn(usize) -> String) -> String {
        let equal = |k: usize| format!("{table}.{} {} {}", self.columns[self.key[k]].quoted, self.equals[k], value(k));
        (0..self.key.len()).map(equal).collect::<Vec<_>>().join(" AND ")
    }

    /// The key that stands in `{keys}0`, `{keys}1` … is `value`.
    pub(super) fn same_key_of(&self, keys: &str, value: impl Fn(usize) -> String) -> String {
        let equal = |k: usize| format!("{keys}{k} {} {}", self.equals[k], value(k));
        (0..self.key.len()).map(equal).collect::<Vec<_>>().join(" AND ")
    }

    /// Both have the same columns and key at the same places.
    pub(super) fn has_columns_of(&self, other: &SinkTablePlan) -> bool {
        let shape = |plan: &SinkTablePlan| -> Vec<(String, String)> {
            plan.columns.iter().map(|column| (column.name.clone(), column.cast.clone())).collect()
        };
        self.key == other.key && shape(self) == shape(other)
    }

    pub(super) fn encoding(&self) -> &str {
        &self.encoding
    }

    pub(super) fn value(&self, rows: Rows, place: usize) -> String {
        match rows {
            Rows::Parameters => self.columns[place].parse(&format!("v.c{place}")),
            Rows::Stage => format!("v.c{place}"),
        }
    }

    pub(super) fn old_value(&self, rows: Rows, k: usize) -> String {
        match rows {
            Rows::Parameters => self.columns[self.key[k]].parse(&format!("v.o{k}")),
            Rows::Stage => format!("v.o{k}"),
        }
    }

    fn from(&self, rows: Rows, places: &[usize], with_old: bool) -> String {
        format!("FROM {}", self.source_of(rows, places, with_old))
    }

    pub(super) fn source_of(&self, rows: Rows, places: &[usize], with_old: bool) -> String {
        match rows {
            Rows::Stage => format!("{} AS v", self.stage),
            Rows::Parameters => {
                let names = self.names(places, with_old);
                let arrays: Vec<String> = (1..=names.len()).map(|i| format!("${i}::pg_catalog.text[]")).collect();
                format!("unnest({}) AS v({})", arrays.join(", "), names.join(", "))
            }
        }
    }

    /// The order of parameters and of a stage's copied columns: the present ones, then the old key's.
    fn names(&self, places: &[usize], with_old: bool) -> Vec<String> {
        let old = if with_old { 0..self.key.len() } else { 0..0 };
        places.iter().map(|place| format!("c{place}")).chain(old.map(|k| format!("o{k}"))).collect()
    }
}

/// The key index's equality, by key column.
fn equals(wanted: &WantedTable, facts: &TableFacts, columns: &[PlanColumn]) -> Vec<String> {
    let arbiter = fit::arbiter(wanted, facts).expect("judged: a unique index over the key is there");
    let equal = |k: usize| {
        let place = arbiter.columns.iter().position(|name| *name == columns[k].name);
        arbiter.equals[place.expect("the index is over the key")].clone()
    };
    wanted.key().into_iter().map(equal).collect()
}

/// A stage belongs to a table and the types of its columns: another shape is another stage.
fn stage_name(oid: u32, columns: &[PlanColumn], key: &[usize]) -> String {
    use std::hash::BuildHasher;
    let shape: Vec<&str> = columns.iter().map(|c| c.cast.as_str()).collect();
    let hash = foldhash::fast::FixedState::default().hash_one((shape, key));
    format!("pg_temp.{}", quote_identifier(&format!("lockstep_{oid}_{hash:016x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(oid: u32, parents: &[u32]) -> SinkTablePlan {
        let column = |index, name: &str, cast: &str| PlanColumn {
            index,
            name: name.into(),
            quoted: quote_identifier(name),
            cast: cast.into(),
            stored: format!("{cast}(5)"),
            input: None,
            base: "int4".into(),
            enum_sql: None,
            add_labels: vec![],
            source_oid: 23,
        };
        SinkTablePlan {
            source: TableName::new("public", "t"),
            table: TableName::new("s", "t"),
            oid,
            role: "r".into(),
            columns: vec![column(0, "a", "ta"), column(2, "k", "tk"), column(3, "b\"", "tb")],
            key: vec![1],
            keyless: false,
            held: vec![],
            mark: None,
            values: vec![],
            skips_missing: false,
            encoding: "UTF8".into(),
            equals: vec!["OPERATOR(x.=)".into()],
            parents: parents.iter().copied().collect(),
            references_itself: false,
            deletes_last: false,
            deletes_short: false,
            exact_key: true,
            deferrable: false,
            direct: true,
            constraints: vec![],
            generated_always: vec![],
            truncate: Truncate::Truncate,
            stage: "pg_temp.\"st\"".into(),
        }
    }

    #[test]
    fn statements_from_parameters() {
        let plan = plan(1, &[]);
        assert_eq!(
            plan.insert(Rows::Parameters, true),
            "INSERT INTO \"s\".\"t\" AS t (\"a\", \"k\", \"b\"\"\") OVERRIDING SYSTEM VALUE SELECT v.c0::ta, v.c1::tk, v.c2::tb \
             FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[]) AS v(c0, c1, c2) \
             ON CONFLICT (\"k\") DO UPDATE SET \"a\" = excluded.\"a\", \"b\"\"\" = excluded.\"b\"\"\""
        );
        assert_eq!(
            plan.update(Rows::Parameters, &plan.places(&[2, 3])),
            "UPDATE \"s\".\"t\" AS t SET \"b\"\"\" = v.c2::tb \
             FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS v(c1, c2) \
             WHERE t.\"k\" OPERATOR(x.=) v.c1::tk"
        );
        assert_eq!(
            plan.shift(Rows::Parameters, &[1]),
            "UPDATE \"s\".\"t\" AS t SET \"k\" = v.c1::tk \
             FROM unnest($1::pg_catalog.text[], $2::pg_catalog.text[]) AS v(c1, o0) \
             WHERE t.\"k\" OPERATOR(x.=) v.o0::tk"
        );
        assert_eq!(
            plan.delete(Rows::Parameters),
            "DELETE FROM \"s\".\"t\" AS t USING unnest($1::pg_catalog.text[]) AS v(o0) WHERE t.\"k\" OPERATOR(x.=) v.o0::tk"
        );
    }

    #[test]
    fn statements_from_a_stage() {
        let plan = plan(1, &[]);
        assert_eq!(
            plan.create_stage(),
            "CREATE TEMPORARY TABLE pg_temp.\"st\" (c0 ta, c1 tk, c2 tb, o0 tk) ON COMMIT DELETE ROWS"
        );
        assert_eq!(plan.copy_to_stage(&[1, 2], true), "COPY pg_temp.\"st\" (c1, c2, o0) FROM STDIN");
        assert_eq!(
            plan.update(Rows::Stage, &[1, 2]),
            "UPDATE \"s\".\"t\" AS t SET \"b\"\"\" = v.c2 FROM pg_temp.\"st\" AS v WHERE t.\"k\" OPERATOR(x.=) v.c1"
        );
        assert_eq!(
            plan.delete_phantoms(&KeyRange { after: Some(vec!["1".into()]), through: None }),
            "DELETE FROM \"s\".\"t\" AS t WHERE t.\"k\" > '1'::pg_catalog.\"int4\" \
             AND NOT EXISTS (SELECT FROM pg_temp.\"st\" AS v WHERE t.\"k\" OPERATOR(x.=) v.c1)"
        );
    }

    #[test]
    fn a_text_is_read_as_the_type_reads_it() {
        let mut plan = plan(1, &[]);
        plan.columns[2].input = Some("s.\"in\"(%, 7::pg_catalog.oid, -1)".into());
        assert!(
            plan.insert(Rows::Parameters, true)
                .contains("v.c1::tk, s.\"in\"(pg_catalog.textout(v.c2), 7::pg_catalog.oid, -1) FROM")
        );
        assert!(plan.insert(Rows::Stage, true).contains("v.c1, v.c2 FROM"));
    }

    #[test]
    fn rows_without_a_key_are_found_by_all_they_hold() {
        let plan = SinkTablePlan { key: vec![0, 1, 2], keyless: true, equals: vec![], ..plan(1, &[]) };
        assert!(!plan.insert(Rows::Stage, true).contains("ON CONFLICT"));
        assert_eq!(
            plan.delete_whole(Rows::Parameters),
            "WITH w AS MATERIALIZED (SELECT s.i, pg_catalog.row_number() OVER (PARTITION BY s.i) AS n FROM \
             (SELECT ROW(v.o0::ta::ta(5), v.o1::tk::tk(5), v.o2::tb::tb(5))::pg_catalog.text COLLATE pg_catalog.\"C\" AS i FROM \
             unnest($1::pg_catalog.text[], $2::pg_catalog.text[], $3::pg_catalog.text[]) AS v(o0, o1, o2)) AS s) \
             DELETE FROM \"s\".\"t\" AS t USING (SELECT f.o, f.c, f.i, pg_catalog.row_number() OVER (PARTITION BY f.i) AS n \
             FROM (SELECT t.tableoid AS o, t.ctid AS c, \
             ROW(t.\"a\", t.\"k\", t.\"b\"\"\")::pg_catalog.text COLLATE pg_catalog.\"C\" AS i FROM \"s\".\"t\" AS t) AS f \
             WHERE f.i IN (SELECT w.i FROM w)) AS r JOIN w ON r.i = w.i AND r.n = w.n \
             WHERE t.tableoid = r.o AND t.ctid = r.c"
        );
        assert!(
            plan.shift_whole(Rows::Stage, &[0, 1, 2]).contains("SET \"a\" = w.c0, \"k\" = w.c1, \"b\"\"\" = w.c2 FROM")
        );
    }

    #[test]
    fn another_text_of_a_key_that_goes_last_must_clash() {
        let loose = SinkTablePlan { exact_key: false, ..plan(1, &[]) };
        assert!(
            loose.insert(Rows::Stage, true).contains("DO UPDATE SET \"a\" = excluded.\"a\", \"k\" = excluded.\"k\"")
        );
        let clashing = SinkTablePlan { deletes_last: true, ..loose };
        assert!(!clashing.insert(Rows::Stage, true).contains("ON CONFLICT"));
        assert!(clashing.insert(Rows::Stage, false).contains("ON CONFLICT"), "nothing goes");
    }
}

//! The statements that write a table without a key. Pure, as [`super::sql`], whose names for rows hold here too.
//!
//! A row is found by all it holds: by the text of the whole row, under the pinned settings and as the column would store the
//! value (a numeric gets its column's scale), because not every type has an equality and not every equality is identity (1.0
//! and 1.00, json). Equal rows are numbered on both sides, so that n of them are n rows. A statement reads the whole table
//! once: that is what a table without a key costs.

use super::sql::{Rows, SinkTablePlan};

impl SinkTablePlan {
    pub(super) fn delete_whole(&self, rows: Rows) -> String {
        format!(
            "{} DELETE FROM {} AS t USING {} WHERE t.tableoid = r.o AND t.ctid = r.c",
            self.numbered_old(rows, &[]),
            self.table.quoted(),
            self.found()
        )
    }

    pub(super) fn shift_whole(&self, rows: Rows, present: &[usize]) -> String {
        let set = present.iter().map(|&place| format!("{} = w.c{place}", self.columns[place].quoted));
        format!(
            "{} UPDATE {} AS t SET {} FROM {} WHERE t.tableoid = r.o AND t.ctid = r.c",
            self.numbered_old(rows, present),
            self.table.quoted(),
            set.collect::<Vec<_>>().join(", "),
            self.found()
        )
    }

    /// Rows of the table beyond the staged ones.
    pub(super) fn delete_surplus(&self) -> String {
        format!(
            "{} DELETE FROM {} AS t USING {} AS r WHERE t.tableoid = r.o AND t.ctid = r.c \
             AND NOT EXISTS (SELECT FROM w WHERE w.i = r.i AND w.n = r.n)",
            self.numbered_staged(),
            self.table.quoted(),
            self.numbered_table("")
        )
    }

    /// Staged rows that the table does not hold.
    pub(super) fn insert_missing(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.quoted.as_str()).collect();
        let values: Vec<String> = self.all().iter().map(|place| format!("w.c{place}")).collect();
        format!(
            "{} INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM w \
             WHERE NOT EXISTS (SELECT FROM {} AS r WHERE r.i = w.i AND r.n = w.n)",
            self.numbered_staged(),
            self.table.quoted(),
            names.join(", "),
            values.join(", "),
            self.numbered_table("")
        )
    }

    /// The given old rows as `w`: image `i`, number `n` among equal ones, and the new values of `present`.
    fn numbered_old(&self, rows: Rows, present: &[usize]) -> String {
        let all = 0..self.columns.len();
        let old = all.map(|place| format!("{}::{}", self.old_value(rows, place), self.columns[place].stored));
        let values = present.iter().map(|&place| format!(", {} AS c{place}", self.value(rows, place)));
        let list = format!("{} AS i{}", image(old), values.collect::<String>());
        numbered(&list, present, &self.source_of(rows, present, true))
    }

    fn numbered_staged(&self) -> String {
        let all = self.all();
        let staged = all.iter().map(|place| format!("v.c{place}::{}", self.columns[*place].stored));
        let values = all.iter().map(|place| format!(", v.c{place}"));
        let list = format!("{} AS i{}", image(staged), values.collect::<String>());
        numbered(&list, &all, &self.source_of(Rows::Stage, &all, false))
    }

    /// The table's rows `r` that stand for the rows of `w`, one each.
    fn found(&self) -> String {
        format!("{} AS r JOIN w ON r.i = w.i AND r.n = w.n", self.numbered_table(" WHERE f.i IN (SELECT w.i FROM w)"))
    }

    /// Where the table's rows lie (a ctid is unique within one partition only), image and number.
    fn numbered_table(&self, filter: &str) -> String {
        let ours = self.only_ours().map(|ours| format!(" WHERE {ours}")).unwrap_or_default();
        let stored = self.columns.iter().map(|column| format!("t.{}", column.quoted));
        format!(
            "(SELECT f.o, f.c, f.i, pg_catalog.row_number() OVER (PARTITION BY f.i) AS n \
             FROM (SELECT t.tableoid AS o, t.ctid AS c, {} AS i FROM {} AS t{ours}) AS f{filter})",
            image(stored),
            self.table.quoted()
        )
    }
}

/// The text of a row: quotes tell NULL from the empty text, so different rows have different images.
fn image(values: impl Iterator<Item = String>) -> String {
    let values: Vec<String> = values.collect();
    format!("ROW({})::pg_catalog.text COLLATE pg_catalog.\"C\"", values.join(", "))
}

fn numbered(list: &str, present: &[usize], from: &str) -> String {
    let values: String = present.iter().map(|place| format!(", s.c{place}")).collect();
    format!(
        "WITH w AS MATERIALIZED (SELECT s.i, pg_catalog.row_number() OVER (PARTITION BY s.i) AS n{values} \
         FROM (SELECT {list} FROM {from}) AS s)"
    )
}

//! The statements that write one table, a row each: names in, text out. Pure but for where the facts come from.
//!
//! Values are parameters: those of the present columns in their order, then the key's as the row has it. `OR ABORT` stands
//! everywhere, because a table may say `ON CONFLICT REPLACE` of its constraints, which deletes other rows. Comparisons name
//! their collation, because a column may have another one than the index that tells rows apart.

use super::catalog::{TableFacts, same_name};
use super::form::{Form, Held, Unfit};
use crate::config::Truncate;
use crate::error::{Code, Halt};
use crate::key::{KeyOrder, KeyRange};
use crate::relation::{TableName, quote_identifier};
use crate::sink::{Outcome, WantedTable, confine};
use crate::value::Cell;

/// How one relation version is written into one table of the file as it is now.
#[derive(Clone, PartialEq, Debug)]
pub struct TablePlan {
    pub(super) source: TableName,
    /// As the configuration names it.
    pub(super) table: TableName,
    /// Quoted.
    pub(super) quoted: String,
    pub(super) columns: Vec<PlanColumn>,
    /// Places in `columns`, in key order; all of them in a table without a key.
    pub(super) key: Vec<usize>,
    pub(super) keyless: bool,
    held: Vec<confine::Held>,
    pub(super) truncate: Truncate,
    pub(super) skips_missing: bool,
    pub(super) facts: TableFacts,
    /// Of the file that the facts were read from.
    pub(super) schema_version: i64,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct PlanColumn {
    /// Place in the relation's rows.
    pub index: usize,
    pub name: String,
    pub quoted: String,
    pub form: Form,
    pub order: KeyOrder,
}

impl PlanColumn {
    /// SQLite sorts its values as the order of ranges says.
    fn is_native(&self) -> bool {
        use KeyOrder as O;
        matches!(
            (self.order, self.form),
            (O::Integer, Form::Integer) | (O::Text, Form::Text | Form::Bool) | (O::Bytes, Form::Blob | Form::Text)
        )
    }

    pub(super) fn compared(&self) -> String {
        match self.form {
            Form::Text => format!("{} COLLATE BINARY", self.quoted),
            _ => self.quoted.clone(),
        }
    }
}

impl TablePlan {
    /// `facts` was judged to fit `wanted`.
    pub(super) fn compile(wanted: &WantedTable, facts: TableFacts, schema_version: i64) -> TablePlan {
        let column = |wanted: &crate::sink::WantedColumn| {
            let sink = facts.column(&wanted.column.name).expect("judged: every column is there");
            let form = Form::of(&wanted.column, &sink.declared, facts.strict).expect("judged: it holds its values");
            PlanColumn {
                index: wanted.index,
                name: sink.name.clone(),
                quoted: quote_identifier(&sink.name),
                form,
                order: KeyOrder::of(wanted.column.type_oid),
            }
        };
        let columns: Vec<PlanColumn> = wanted.columns.iter().map(column).collect();
        let keyless = wanted.is_keyless();
        TablePlan {
            source: wanted.source.clone(),
            table: wanted.table.clone(),
            quoted: format!("main.{}", quote_identifier(&facts.name)),
            key: if keyless { (0..columns.len()).collect() } else { wanted.key() },
            columns,
            keyless,
            held: wanted.held.clone(),
            truncate: wanted.truncate,
            skips_missing: wanted.skips_missing,
            facts,
            schema_version,
        }
    }

    /// Nothing folded yet, for this plan's table.
    pub fn fold(&self) -> crate::apply::fold::Fold {
        let relation = |place: usize| self.columns[place].index;
        let wanted = (0..self.columns.len()).map(relation).collect();
        let key = if self.keyless { Vec::new() } else { self.key.iter().map(|&k| relation(k)).collect() };
        crate::apply::fold::Fold::new(self.table.clone(), wanted, key, None, self.skips_missing)
    }

    /// As messages name it.
    pub(super) fn name(&self) -> &str {
        &self.table.table
    }

    /// Some foreign key acts on or checks a delete here at once, so deletes wait until nothing that lives on can hang on them.
    pub(super) fn deletes_last(&self) -> bool {
        self.facts.referenced_by().any(|key| !key.waits())
    }

    /// Actions of a table that this one references may take rows of this table first.
    pub(super) fn deletes_short(&self) -> bool {
        self.facts.references().any(|key| key.acts())
    }

    pub(super) fn is_parent_of(&self, other: &TablePlan) -> bool {
        other.facts.references().any(|key| same_name(&key.parent, &self.facts.name))
            && !same_name(&self.facts.name, &other.facts.name)
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.columns.len()).collect()
    }

    /// Places of the relation's columns `indexes`.
    pub(super) fn places(&self, indexes: &[usize]) -> Vec<usize> {
        let place = |index: &usize| self.columns.iter().position(|column| column.index == *index);
        indexes.iter().map(|index| place(index).expect("a net effect names wanted columns only")).collect()
    }

    pub(super) fn not_key(&self, places: &[usize]) -> Vec<usize> {
        places.iter().copied().filter(|place| !self.key.contains(place)).collect()
    }

    pub(super) fn insert(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.quoted.as_str()).collect();
        let values: Vec<String> = (1..=names.len()).map(|i| format!("?{i}")).collect();
        format!("INSERT OR ABORT INTO {} ({}) VALUES ({})", self.quoted, names.join(", "), values.join(", "))
    }

    /// Of the row that has the key: parameters are the columns at `places`, then the key.
    pub(super) fn update(&self, places: &[usize]) -> String {
        assert!(!places.is_empty(), "an update writes something");
        let set = places.iter().enumerate().map(|(i, &place)| format!("{} = ?{}", self.columns[place].quoted, i + 1));
        let set: Vec<String> = set.collect();
        format!("UPDATE OR ABORT {} SET {} WHERE {}", self.quoted, set.join(", "), self.same_row(places.len() + 1))
    }

    /// The same of a row that does not hold this yet.
    pub(super) fn update_differing(&self, places: &[usize]) -> String {
        let differs = places
            .iter()
            .enumerate()
            .map(|(i, &place)| format!("{} IS NOT ?{}", self.columns[place].compared(), i + 1));
        let differs: Vec<String> = differs.collect();
        format!("{} AND ({})", self.update(places), differs.join(" OR "))
    }

    pub(super) fn delete(&self) -> String {
        format!("DELETE FROM {} WHERE {}", self.quoted, self.same_row(1))
    }

    /// Some columns of the row that has the key.
    pub(super) fn select(&self, places: &[usize]) -> String {
        format!("SELECT {} FROM {} WHERE {}", self.names(places), self.quoted, self.same_row(1))
    }

    pub(super) fn names(&self, places: &[usize]) -> String {
        places.iter().map(|&place| self.columns[place].quoted.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The condition that a row is the one whose key stands in the parameters from `first` on. Of several equal rows of a table
    /// without a key it is one.
    fn same_row(&self, first: usize) -> String {
        let is = if self.keyless { "IS" } else { "=" };
        let same = self
            .key
            .iter()
            .enumerate()
            .map(|(k, &place)| format!("{} {is} ?{}", self.columns[place].compared(), first + k));
        let same = same.collect::<Vec<_>>().join(" AND ");
        match self.keyless {
            true => format!("rowid = (SELECT rowid FROM {} WHERE {same} LIMIT 1)", self.quoted),
            false => same,
        }
    }

    /// Which of the key's columns tell the table's own rows apart: those that ranges speak of.
    pub(super) fn own_key(&self) -> Vec<usize> {
        let is_own = |place: &usize| self.held.iter().all(|held| held.place != *place);
        if self.keyless { Vec::new() } else { self.key.iter().copied().filter(is_own).collect() }
    }

    /// The same by name and order.
    pub(super) fn range_key(&self) -> Vec<(String, KeyOrder)> {
        self.own_key().into_iter().map(|place| (self.columns[place].name.clone(), self.columns[place].order)).collect()
    }

    /// The condition that a row is of this version's table, with its parameters from `first` on; empty: all are.
    fn ours(&self, first: usize) -> Outcome<(Vec<String>, Vec<Held<'_>>)> {
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        for (i, held) in self.held.iter().enumerate() {
            conditions.push(format!("{} = ?{}", self.columns[held.place].compared(), first + i));
            values.push(self.value(held.place, Cell::Text(held.value.as_bytes()))?);
        }
        Ok((conditions, values))
    }

    /// Deletes every row of this version's table.
    pub(super) fn delete_ours(&self) -> Outcome<(String, Vec<Held<'_>>)> {
        let (conditions, values) = self.ours(1)?;
        Ok((format!("DELETE FROM {}{}", self.quoted, filter(&conditions)), values))
    }

    /// Columns of all rows that may lie in the range: those that do, where the key sorts alike here and there; else a reader asks
    /// [`TablePlan::is_exact`] and judges by himself.
    pub(super) fn in_range<'v>(&'v self, places: &[usize], range: &'v KeyRange) -> Outcome<(String, Vec<Held<'v>>)> {
        let (mut conditions, mut values) = self.ours(1)?;
        let native: Vec<usize> =
            self.own_key().into_iter().take_while(|&place| self.columns[place].is_native()).collect();
        // With the rest of the key left out, the borders are in.
        let after = if self.is_exact() { ">" } else { ">=" };
        for (border, operator) in [(&range.after, after), (&range.through, "<=")] {
            let Some(border) = border.as_ref().filter(|_| !native.is_empty()) else { continue };
            assert_eq!(border.len(), self.own_key().len(), "a range is over the table's own key");
            let first = values.len() + 1;
            let names: Vec<String> = native.iter().map(|&place| self.columns[place].compared()).collect();
            let parameters: Vec<String> = (0..native.len()).map(|i| format!("?{}", first + i)).collect();
            conditions.push(format!("({}) {operator} ({})", names.join(", "), parameters.join(", ")));
            for (&place, text) in native.iter().zip(border) {
                values.push(self.value(place, Cell::Text(text.as_bytes()))?);
            }
        }
        Ok((format!("SELECT {} FROM {}{}", self.names(places), self.quoted, filter(&conditions)), values))
    }

    /// Whether SQLite sorts the table's keys as ranges do.
    pub(super) fn is_exact(&self) -> bool {
        self.own_key().iter().all(|&place| self.columns[place].is_native())
    }

    /// What a cell is here. Never an absent one.
    pub(super) fn value<'v>(&self, place: usize, cell: Cell<'v>) -> Outcome<Held<'v>> {
        let column = &self.columns[place];
        let text = match cell {
            Cell::Null => return Ok(Held::Null),
            Cell::Text(text) => text,
            Cell::Absent => unreachable!("absent columns are not written"),
        };
        column.form.value(text).map_err(|unfit| self.unfit(&column.name, unfit).into())
    }

    fn unfit(&self, column: &str, unfit: Unfit) -> Halt {
        let table = self.name();
        let (code, message) = match unfit {
            Unfit::NaN => {
                (Code::ValueRefused, format!("column {column} of {table} is to hold NaN, which SQLite stores as NULL"))
            }
            Unfit::NegativeZero => {
                let message = format!(
                    "column {column} of {table} is to hold the negative zero, which SQLite stores without its sign"
                );
                (Code::ValueRefused, message)
            }
            Unfit::Text => (Code::RecordInvalid, format!("a value for column {column} of {table} is none of its type")),
            Unfit::Encoding => (Code::SourceEncoding, format!("a text for column {column} of {table} is not UTF-8")),
        };
        let hint = match code {
            Code::ValueRefused => {
                format!("make the table with column {column} declared TEXT, which holds it as Postgres writes it")
            }
            _ => format!("lockstep resync {}", self.source),
        };
        Halt { code, message, facts: vec![], hint }
    }
}

fn filter(conditions: &[String]) -> String {
    if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) }
}

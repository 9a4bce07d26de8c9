//! A table of a sink that holds more than what one relation version is of: rows of several tables of the source, told apart by
//! constant columns. Whatever speaks of all rows, or of a range of keys, is confined to those with the version's own constants;
//! otherwise a chunk would delete the rows of other tables as phantoms, and one table's TRUNCATE would empty them all.
//!
//! So it is also where this pipeline has one such table alone: another pipeline may write the others.
//!
//! Pure, as [`super::sql`]: a constant enters the text as a literal, like the borders of a range.

use super::postgres::PostgresSink;
use super::refusal::failure;
use super::sql::SinkTablePlan;
use super::{Outcome, WantedColumn, WantedTable};
use crate::error::{Code, Halt};
use crate::key::KeyOrder;
use crate::relation::{Relation, TableName, quote_identifier, quote_literal};

/// A constant of a version: the place of its column in what is wanted, and the value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    pub place: usize,
    pub value: String,
}

/// Constants of a relation among the columns that are wanted of it; refused where one is not.
pub(super) fn held(relation: &Relation, table: &TableName, columns: &[WantedColumn]) -> Result<Vec<Held>, Halt> {
    let held = |(index, value): (usize, &str)| {
        let place = columns.iter().position(|column| column.index == index);
        place.map(|place| Held { place, value: value.to_owned() }).ok_or_else(|| {
            let name = &relation.columns[index].name;
            let message =
                format!("{table} is not to have {name}, which tells the rows of {} apart there", relation.name);
            let hint = format!("write {name:?} into columns, under the sink in the connector of {}", relation.name);
            Halt { code: Code::Config, message, facts: vec![], hint }
        })
    };
    relation.constants().into_iter().map(held).collect()
}

/// A table that holds rows under constants of before.
pub(super) fn left(wanted: &WantedTable, table: &str, facts: Vec<String>, hint: String) -> Halt {
    let message = format!(
        "[add_columns] gives the rows of {} other values than before, and {table} still holds them under the earlier ones",
        wanted.source
    );
    Halt { code: Code::SinkTable, message, facts, hint }
}

impl PostgresSink {
    /// Refuses a table that still holds rows under constants that a table of the source had before: no chunk of it replaces them.
    pub async fn check_left(&self, wanted: &WantedTable, before: &[(String, String)]) -> Outcome<()> {
        let is = |(column, value): &(String, String)| {
            format!("{} OPERATOR(pg_catalog.=) {}", quote_identifier(column), quote_literal(value).trim_start())
        };
        let condition = before.iter().map(is).collect::<Vec<_>>().join(" AND ");
        let rows = format!("FROM {} WHERE {condition}", wanted.table.quoted());
        let found = self.client.query_one(&format!("SELECT EXISTS (SELECT {rows})"), &[]).await;
        let found = found.map_err(|error| failure("looking for rows of before", None, error))?;
        if !found.get::<_, bool>(0) {
            return Ok(());
        }
        Err(left(wanted, &wanted.table.to_string(), vec![], format!("DELETE {rows}")).into())
    }
}

impl WantedTable {
    /// Whether a column holds the same in every row of the table.
    pub(super) fn is_constant(&self, column: &WantedColumn) -> bool {
        self.held.iter().any(|held| self.columns[held.place].index == column.index)
    }
}

impl SinkTablePlan {
    /// Which of the key's columns tell the table's own rows apart: those that ranges speak of.
    pub(super) fn own_key(&self) -> Vec<usize> {
        let is_own = |k: &usize| self.held.iter().all(|held| held.place != self.key[*k]);
        (0..self.key.len()).filter(is_own).collect()
    }

    /// The same by name and order.
    pub(super) fn range_key(&self) -> Vec<(String, KeyOrder)> {
        let column = |k: usize| &self.columns[self.key[k]];
        let named = |k: usize| (column(k).name.clone(), KeyOrder::of(column(k).source_oid));
        self.own_key().into_iter().map(named).collect()
    }

    /// ` AND ` with the condition that a row is of this version's table; `name` says where its column at a place stands. Empty for a
    /// version without constants.
    pub(super) fn and_ours(&self, name: impl Fn(usize) -> String) -> String {
        let is = |held: &Held| format!(" AND {}", self.is_value(held.place, &name(held.place), &held.value));
        self.held.iter().map(is).collect()
    }

    /// The condition that a row `t` is of this version's table; `None`: all are.
    pub(super) fn only_ours(&self) -> Option<String> {
        let all = self.and_ours(|place| format!("t.{}", self.columns[place].quoted));
        all.strip_prefix(" AND ").map(str::to_owned)
    }

    /// The condition that what stands at `name` is this value of the column at a place, a text.
    pub(super) fn is_value(&self, place: usize, name: &str, value: &str) -> String {
        format!("{name} OPERATOR(pg_catalog.=) {}::{}", quote_literal(value).trim_start(), self.columns[place].cast)
    }
}

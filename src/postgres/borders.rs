//! From what people say of a key to a range of it: values as the source prints them, and borders that a range can have.
//!
//! A range excludes its lower border and includes its upper one (docs/protocol.md). Where a condition means the other thing, or
//! names the key's first columns only, the border becomes the next key on that side that the source has; of whole numbers it
//! is the next number. A key that is made between them afterwards lies in the range and is read with it. So a range holds what
//! was asked for, and beside it at most one key of the source.
//!
//! Values reach the server as parameters, and nothing else of a condition does.

use std::cmp::Ordering;

use tokio_postgres::GenericClient;

use super::catalog::{ColumnFacts, Kind, TableFacts};
use super::chunk::key_columns;
use super::failure::{failed, unreadable};
use crate::error::Result;
use crate::key::condition::{Bounds, End, NoRange};
use crate::key::{
    Comparison, KeyColumn, KeyOrder, KeyRange, compare, comparison, order_by, order_by_descending, type_sql,
};

/// Types whose order is what somebody means who writes `<`; of others that are ordered by their text nobody does.
const ORDERED_TEXTS: [&str; 4] = ["text", "varchar", "bpchar", "name"];

/// A header of four bytes is in the modifier of a type with a length.
const TYPMOD_HEADER: i32 = 4;

/// The range of the table's key that the bounds mean; `key` are indexes of its columns, in key order.
pub async fn key_range(
    client: &(impl GenericClient + Sync),
    facts: &TableFacts,
    key: &[usize],
    bounds: &Bounds,
) -> Result<Result<KeyRange, NoRange>> {
    let (columns, looks) = (key_columns(facts, key), Looks { client, facts, key });
    let bounds = match looks.as_printed(bounds).await? {
        Ok(bounds) => bounds,
        Err(refused) => return Ok(Err(refused)),
    };
    if let Some(column) = unordered(&bounds, facts, key) {
        let what = format!("{} has a type ({}) that is ordered by its text here", column.name, column.type_name);
        return Ok(Err(NoRange(format!("{what}; write {} = …", column.name))));
    }
    let after = match &bounds.lower {
        Some(end) => looks.after(&columns, end).await?,
        None => None,
    };
    let through = match &bounds.upper {
        Some(end) => looks.through(&columns, end).await?,
        None => None,
    };
    let orders: Vec<KeyOrder> = columns.iter().map(|column| column.order).collect();
    if let (Some(after), Some(through)) = (&after, &through)
        && compare(&orders, after, through).map_err(|e| unreadable("a key", e))? != Ordering::Less
    {
        return Ok(Err(NoRange("no key lies between the two ends; write the lower one behind >".to_owned())));
    }
    Ok(Ok(KeyRange { after, through }))
}

/// A column by whose order the bounds go and whose order nobody means.
fn unordered<'a>(bounds: &Bounds, facts: &'a TableFacts, key: &[usize]) -> Option<&'a ColumnFacts> {
    let values = |end: &Option<End>| end.as_ref().map(|end| end.values.clone()).unwrap_or_default();
    let (lower, upper) = (values(&bounds.lower), values(&bounds.upper));
    let same = lower.iter().zip(&upper).take_while(|(lower, upper)| lower == upper).count();
    let alike = |end: &Option<End>| end.as_ref().is_none_or(|end| end.inclusive);
    let whole = same == lower.len().max(upper.len()) && alike(&bounds.lower) && alike(&bounds.upper);
    let compared =
        key.iter().take(lower.len().max(upper.len())).skip(if whole { key.len() } else { same.min(key.len()) });
    let mut columns = compared.map(|&i| &facts.columns[i]);
    columns.find(|column| {
        KeyOrder::of(column.type_oid) == KeyOrder::Text && !ORDERED_TEXTS.contains(&column.type_name.as_str())
    })
}

struct Looks<'a, C> {
    client: &'a C,
    facts: &'a TableFacts,
    key: &'a [usize],
}

impl<C: GenericClient + Sync> Looks<'_, C> {
    async fn as_printed(&self, bounds: &Bounds) -> Result<Result<Bounds, NoRange>> {
        let mut printed = bounds.clone();
        for end in [&mut printed.lower, &mut printed.upper].into_iter().flatten() {
            for (value, &i) in end.values.iter_mut().zip(self.key) {
                match self.printed(value, &self.facts.columns[i]).await? {
                    Ok(text) => *value = text,
                    Err(refused) => return Ok(Err(refused)),
                }
            }
        }
        Ok(Ok(printed))
    }

    /// A value as its type prints it, which is how it stands in keys.
    async fn printed(&self, value: &str, column: &ColumnFacts) -> Result<Result<String, NoRange>> {
        let mut of_type = type_sql(&column.type_name);
        if column.type_name == "bpchar" && column.typmod > TYPMOD_HEADER {
            of_type = format!("{of_type}({})", column.typmod - TYPMOD_HEADER);
        }
        let sql = format!("SELECT pg_catalog.concat($1::pg_catalog.text::{of_type})");
        match self.client.query_one(&sql, &[&value]).await {
            Ok(row) => row.try_get(0).map(Ok).map_err(|e| unreadable("a value's text", e)),
            Err(error) if error.as_db_error().is_some_and(|refusal| refusal.code().code().starts_with("22")) => {
                let what = format!("{value:?} is no value of {}, which is {}", column.name, column.type_name);
                Ok(Err(NoRange(format!("{what}; write one"))))
            }
            Err(error) => Err(failed(format!("reading a value of {}", column.name), error)),
        }
    }

    async fn after(&self, columns: &[KeyColumn], end: &End) -> Result<Option<Vec<String>>> {
        let full = end.values.len() == columns.len();
        if full && !end.inclusive {
            return Ok(Some(end.values.clone()));
        }
        if full && let Some(before) = self.number_before(&end.values) {
            return Ok(Some(before));
        }
        let how = if end.inclusive { Comparison::Below } else { Comparison::UpTo };
        let condition = comparison(&columns[..end.values.len()], how, &end.values);
        self.first(columns, &condition, &order_by_descending(columns)).await
    }

    async fn through(&self, columns: &[KeyColumn], end: &End) -> Result<Option<Vec<String>>> {
        let full = end.values.len() == columns.len();
        if full {
            let before = self.number_before(&end.values).filter(|_| !end.inclusive);
            return Ok(Some(before.unwrap_or_else(|| end.values.clone())));
        }
        let begins = &columns[..end.values.len()];
        let condition = match end.inclusive {
            true => comparison(begins, Comparison::Above, &end.values),
            false => format!("NOT ({})", comparison(begins, Comparison::Below, &end.values)),
        };
        self.first(columns, &condition, &order_by(columns)).await
    }

    /// Of a key whose last column is a whole number.
    fn number_before(&self, values: &[String]) -> Option<Vec<String>> {
        let column = &self.facts.columns[*self.key.last()?];
        let lowest = match column.type_oid {
            21 => i128::from(i16::MIN),
            23 => i128::from(i32::MIN),
            20 => i128::from(i64::MIN),
            26 => 0,
            _ => return None,
        };
        let (last, first) = values.split_last()?;
        let before = last.parse::<i128>().ok()? - 1;
        (before >= lowest).then(|| first.iter().cloned().chain([before.to_string()]).collect())
    }

    /// The first key with this condition that the source has.
    async fn first(&self, columns: &[KeyColumn], condition: &str, order: &str) -> Result<Option<Vec<String>>> {
        let only = if self.facts.kind == Kind::Partitioned { "" } else { "ONLY " };
        let texts: Vec<String> = columns.iter().map(|column| format!("pg_catalog.concat({})", column.sql)).collect();
        let (texts, table) = (texts.join(", "), self.facts.name.quoted());
        let sql = format!("SELECT {texts} FROM {only}{table} WHERE {condition} ORDER BY {order} LIMIT 1");
        let found = self.client.query_opt(&sql, &[]).await;
        let found = found.map_err(|e| failed(format!("looking for a key of {}", self.facts.name), e))?;
        let text = |row: &tokio_postgres::Row, i| row.try_get(i).map_err(|e| unreadable("a key's text", e));
        found.map(|row| (0..columns.len()).map(|i| text(&row, i)).collect()).transpose()
    }
}

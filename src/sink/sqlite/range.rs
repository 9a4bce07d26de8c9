//! A chunk: "this range of keys now holds exactly these rows".
//!
//! What the range holds is read first, by its keys alone. Rows that are not among the chunk's are deleted (phantoms), the
//! others are written where they differ: a row that is already right is not written again, so no trigger hears of it. Where
//! SQLite sorts a key otherwise than ranges do (numeric and times are texts here), all of the table that may be meant is read
//! and judged by the order of ranges itself ([`crate::key`]): that costs a scan for each chunk.
//!
//! A table without a key has one range, all of it, and its rows are told apart by all they hold.
//!
//! Rows of tables that are not loaded yet and reference a phantom are left to their own chunks: foreign keys are checked at the
//! commit, and where one then refuses, the driver loads all of it in one transaction.

use std::collections::HashMap;

use rusqlite::params_from_iter;
use rusqlite::types::{Value, ValueRef};

use super::file::OpenFile;
use super::form::{Held, Image};
use super::park::NewRow;
use super::plan::TablePlan;
use super::refusal::failure;
use super::write::{Written, write};
use crate::error::{Code, Halt};
use crate::key::KeyRange;
use crate::sink::step::Verb;
use crate::sink::{Counts, Failure, Outcome};
use crate::value::RowBuf;

impl OpenFile {
    /// Makes a range hold exactly these rows.
    pub fn replace_range(&mut self, plan: &TablePlan, range: &KeyRange, rows: &[RowBuf]) -> Outcome<Counts> {
        self.check_plan(plan)?;
        let rows: Vec<Vec<Held<'_>>> = rows.iter().map(|row| complete(plan, row)).collect::<Outcome<_>>()?;
        let keys: Vec<Image> = rows.iter().map(|row| key_of(plan, row)).collect();
        let mut there = self.there(plan, range)?;
        let mut counts = Counts::default();
        // Of equal rows of a table without a key as many stay as are to be there.
        let kept: Vec<bool> = keys.iter().map(|key| there.take(key)).collect();
        for key in there.rest() {
            counts.deleted += self.delete(plan, &key)?;
        }
        for (row, kept) in rows.iter().zip(kept) {
            counts.inserted += self.put(plan, row, kept)?;
        }
        Ok(counts)
    }

    /// Keys of the rows that the range holds.
    fn there(&self, plan: &TablePlan, range: &KeyRange) -> Outcome<There> {
        let failed = |error| failure(&format!("looking into a range of {}", plan.name()), Some(plan), error);
        let (sql, values) = plan.in_range(&plan.key, range)?;
        let mut statement = self.connection.prepare_cached(&sql).map_err(failed)?;
        let mut found = statement.query(params_from_iter(values)).map_err(failed)?;
        let mut there = There::default();
        while let Some(row) = found.next().map_err(failed)? {
            let key: Vec<Value> = (0..plan.key.len()).map(|k| row.get(k)).collect::<Result<_, _>>().map_err(failed)?;
            if plan.is_exact() || is_within(plan, range, &key)? {
                there.add(key);
            }
        }
        Ok(there)
    }

    fn delete(&mut self, plan: &TablePlan, key: &[Value]) -> Outcome<u64> {
        let failed = |error| failure(&format!("deleting rows of {}", plan.name()), Some(plan), error);
        // What it owed goes with it: an update reaches nothing any more.
        let mut statement = self.connection.prepare_cached(&plan.delete()).map_err(failed)?;
        statement.execute(params_from_iter(key)).map(|rows| rows as u64).map_err(failed)
    }

    /// Writes a row of the chunk, if it is not there as it is.
    fn put(&mut self, plan: &TablePlan, row: &[Held<'_>], kept: bool) -> Outcome<u64> {
        let failed = |error| failure(&format!("loading rows of {}", plan.name()), Some(plan), error);
        let all = plan.all();
        let own_key: Vec<Held<'_>> = plan.key.iter().map(|&place| row[place].clone()).collect();
        if !kept {
            let mut statement = self.connection.prepare_cached(&plan.insert()).map_err(failed)?;
            let new = NewRow { plan, verb: Verb::Insert, places: &all, new: row, key: &own_key };
            return match write(&self.connection, &mut self.parking, &mut statement, &new)? {
                Written::Rows(rows) => Ok(rows),
                // Its key lies in the range, where nothing of it was seen.
                Written::IsThere => Err(super::file::diverged(plan, "loading rows of", 1, 0)),
            };
        }
        let places = plan.not_key(&all);
        if places.is_empty() {
            return Ok(0);
        }
        let new: Vec<Held<'_>> = places.iter().map(|&place| row[place].clone()).collect();
        let mut statement = self.connection.prepare_cached(&plan.update_differing(&places)).map_err(failed)?;
        let new = NewRow { plan, verb: Verb::Update, places: &places, new: &new, key: &own_key };
        match write(&self.connection, &mut self.parking, &mut statement, &new)? {
            Written::Rows(rows) => Ok(rows),
            Written::IsThere => unreachable!("an update is of a row that is there"),
        }
    }
}

/// Keys that the range holds, as often as they are there.
#[derive(Default)]
struct There {
    rows: HashMap<Image, Vec<Vec<Value>>>,
}

impl There {
    fn add(&mut self, key: Vec<Value>) {
        self.rows.entry(Image::of(key.iter().map(ValueRef::from))).or_default().push(key);
    }

    /// Whether there is one left; it is taken.
    fn take(&mut self, key: &Image) -> bool {
        let Some(rows) = self.rows.get_mut(key) else { return false };
        rows.pop();
        if rows.is_empty() {
            self.rows.remove(key);
        }
        true
    }

    fn rest(self) -> impl Iterator<Item = Vec<Value>> {
        self.rows.into_values().flatten()
    }
}

/// By the order of ranges.
fn is_within(plan: &TablePlan, range: &KeyRange, key: &[Value]) -> Outcome<bool> {
    let own = plan.own_key();
    let mut texts = Vec::with_capacity(own.len());
    for (&place, value) in plan.key.iter().zip(key).filter(|(place, _)| own.contains(place)) {
        let column = &plan.columns[place];
        texts.push(column.form.text(ValueRef::from(value)).ok_or_else(|| odd_key(plan, &column.name))?);
    }
    let orders: Vec<_> = own.iter().map(|&place| plan.columns[place].order).collect();
    let odd = |_| Failure::from(odd_key(plan, &plan.columns[own[0]].name));
    range.contains(&orders, &texts).map_err(odd)
}

/// Somebody else's.
fn odd_key(plan: &TablePlan, column: &str) -> Halt {
    Halt {
        code: Code::SinkDiverged,
        message: format!("{} holds a row whose {column} is none of the source's values", plan.name()),
        facts: vec![],
        hint: format!("delete it, then lockstep resync {}", plan.source),
    }
}

fn key_of(plan: &TablePlan, row: &[Held<'_>]) -> Image {
    Image::of(plan.key.iter().map(|&place| row[place].as_ref()))
}

/// What the row is here, in every column.
fn complete<'r>(plan: &TablePlan, row: &'r RowBuf) -> Outcome<Vec<Held<'r>>> {
    let cells = || plan.columns.iter().map(|column| row.row().get(column.index));
    if cells().any(|cell| cell.is_absent()) {
        let halt = Halt {
            code: Code::AbsentBase,
            message: format!("a chunk row of table {} lacks a column that was never sent", plan.name()),
            facts: vec![],
            hint: format!("lockstep resync {}", plan.source),
        };
        return Err(halt.into());
    }
    cells().enumerate().map(|(place, cell)| plan.value(place, cell)).collect()
}

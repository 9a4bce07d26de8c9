//! Writing the net effect of changes, a statement for each row: SQLite has no round trips, so a prepared statement costs what
//! the row costs.
//!
//! The order is that of every engine: deletes of tables where no foreign key acts at once, children first; moves; updates and
//! inserts, parents first; the other deletes, when every row that lives on has left the parents that go. What is checked at the
//! commit needs no order.
//!
//! A row that a unique constraint refuses is tried again once those that hold its values are out of the way ([`super::park`]).

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection};

use super::file::{OpenFile, diverged};
use super::form::Held;
use super::park::{NewRow, Parking};
use super::plan::TablePlan;
use super::refusal::{failure, is_unique};
use crate::apply::net::NetEffect;
use crate::config::Truncate;
use crate::error::{Code, Halt};
use crate::sink::step::{StepRows, Verb, parents_first};
use crate::sink::{Counts, Failure, Outcome};

pub(super) type Batch = Vec<(Arc<TablePlan>, NetEffect)>;

/// Rows of one table that are written alike.
struct Step<'a> {
    plan: &'a TablePlan,
    verb: Verb,
    /// Places in the plan's columns that are written.
    places: Vec<usize>,
    rows: StepRows<'a>,
    /// See [`NetEffect::loading`].
    loading: bool,
}

impl Step<'_> {
    fn sql(&self) -> String {
        match self.verb {
            Verb::Delete => self.plan.delete(),
            Verb::Move | Verb::Update => self.plan.update(&self.places),
            Verb::Insert => self.plan.insert(),
        }
    }

    /// What row `i` is to hold, and its key as the file has it.
    fn values(&self, i: usize) -> Outcome<(Vec<Held<'_>>, Vec<Held<'_>>)> {
        let plan = self.plan;
        let row = self.rows.row(i);
        let cell = |place: usize| row.expect("only a delete carries no columns").row().get(plan.columns[place].index);
        let new = self.places.iter().map(|&place| plan.value(place, cell(place))).collect::<Outcome<_>>()?;
        let key = match self.rows.old_key(i) {
            Some(key) => plan
                .key
                .iter()
                .zip(key.cells())
                .map(|(&place, cell)| plan.value(place, cell))
                .collect::<Outcome<_>>()?,
            None => plan.key.iter().map(|&place| plan.value(place, cell(place))).collect::<Outcome<_>>()?,
        };
        Ok((new, key))
    }

    /// A row that the statement did not reach may be missing.
    fn may_fall_short(&self) -> bool {
        self.loading || self.plan.skips_missing || (self.verb == Verb::Delete && self.plan.deletes_short())
    }

    fn count(&self, reached: u64, overwritten: u64) -> Outcome<Counts> {
        let named = self.rows.len() as u64;
        if reached < named && !self.may_fall_short() {
            return Err(diverged(self.plan, self.verb.doing(), named, reached));
        }
        let mut counts = Counts::default();
        if self.plan.skips_missing && !self.loading {
            counts.missing = named - reached;
        }
        match self.verb {
            Verb::Delete => counts.deleted = reached,
            Verb::Move => counts.moved = reached,
            Verb::Update => counts.updated = reached,
            Verb::Insert => (counts.inserted, counts.overwritten) = (reached, overwritten),
        }
        Ok(counts)
    }
}

impl OpenFile {
    /// Writes the net effects of some tables, each table at most once.
    pub fn apply(&mut self, batch: &Batch) -> Outcome<Counts> {
        for (plan, _) in batch {
            self.check_plan(plan)?;
        }
        let emptied: Vec<Arc<TablePlan>> =
            batch.iter().filter(|(_, net)| net.truncate).map(|(plan, _)| plan.clone()).collect();
        self.truncate(&emptied)?;
        let mut counts = Counts::default();
        for step in steps(batch) {
            counts += self.step(&step)?;
        }
        Ok(counts)
    }

    fn step(&mut self, step: &Step<'_>) -> Outcome<Counts> {
        let (plan, connection) = (step.plan, &self.connection);
        let failed = |error| failure(&format!("{} {}", step.verb.doing(), plan.name()), Some(plan), error);
        let mut statement = connection.prepare_cached(&step.sql()).map_err(failed)?;
        let (mut reached, mut overwritten) = (0, 0);
        for i in 0..step.rows.len() {
            let (new, key) = step.values(i)?;
            let row = NewRow { plan, verb: step.verb, places: &step.places, new: &new, key: &key };
            reached += match write(connection, &mut self.parking, &mut statement, &row) {
                Ok(Written::Rows(rows)) => rows,
                Ok(Written::IsThere) => {
                    overwritten += u64::from(!step.loading);
                    overwrite(connection, &mut self.parking, &row)?
                }
                Err(failure) => return Err(failure),
            };
        }
        if overwritten > 0 {
            tracing::warn!(
                table = plan.name(),
                rows = overwritten,
                "rows that are new at the source were there already at the sink; they are overwritten. Who else writes to the table?"
            );
        }
        step.count(reached, overwritten)
    }

    /// Empties exactly these tables. No statement of SQLite empties several at once, so a service's own table that would lose
    /// rows by it is in the way, unless the user chose row by row.
    pub fn truncate(&mut self, plans: &[Arc<TablePlan>]) -> Outcome<()> {
        for plan in plans.iter().filter(|plan| plan.truncate == Truncate::Truncate) {
            let ours = |table: &str| plans.iter().any(|plan| super::catalog::same_name(&plan.facts.name, table));
            if let Some(key) = plan.facts.referenced_by().find(|key| key.acts() && !ours(&key.child)) {
                return Err(Failure::Constraint(Box::new(emptied_along(plan, &key.child))));
            }
        }
        let plans: Vec<&TablePlan> = plans.iter().map(|plan| &**plan).collect();
        // Rows that reference others go before those.
        for plan in
            parents_first(&plans, |child, parent| parent.is_parent_of(child)).into_iter().rev().map(|i| plans[i])
        {
            self.check_plan(plan)?;
            let (sql, values) = plan.delete_ours()?;
            let done = self.connection.execute(&sql, rusqlite::params_from_iter(values));
            done.map_err(|error| failure(&format!("emptying {}", plan.name()), Some(plan), error))?;
        }
        Ok(())
    }
}

fn emptied_along(plan: &TablePlan, child: &str) -> Halt {
    Halt {
        code: Code::ConstraintRefused,
        message: format!(
            "a TRUNCATE of {} is refused: rows of {child}, which is not emptied along with it, would go or change by a foreign key",
            plan.name()
        ),
        facts: vec![],
        hint: format!("write truncate = \"delete\" under [sinks.…] of the connector of {}", plan.source),
    }
}

/// What became of a row.
pub(super) enum Written {
    Rows(u64),
    /// A new one whose key is there already. Nothing was written.
    IsThere,
}

/// Writes one row by `statement`, whose parameters are the new values and then the key, of an insert the new values alone.
pub(super) fn write(
    connection: &Connection,
    parking: &mut Parking,
    statement: &mut CachedStatement<'_>,
    row: &NewRow<'_>,
) -> Outcome<Written> {
    let failed = |error| failure(&format!("writing rows of {}", row.plan.name()), Some(row.plan), error);
    let key: &[Held<'_>] = if row.verb == Verb::Insert { &[] } else { row.key };
    for (i, value) in row.new.iter().chain(key).enumerate() {
        statement.raw_bind_parameter(i + 1, value).map_err(failed)?;
    }
    loop {
        match statement.raw_execute() {
            Ok(rows) => {
                parking.written(row);
                return Ok(Written::Rows(rows as u64));
            }
            Err(error) if is_unique(&error) && !connection.is_autocommit() && !row.plan.keyless => {
                if row.verb == Verb::Insert && is_there(connection, row).map_err(failed)? {
                    return Ok(Written::IsThere);
                }
                parking.make_way(connection, row, error)?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

fn is_there(connection: &Connection, row: &NewRow<'_>) -> rusqlite::Result<bool> {
    connection.prepare_cached(&row.plan.select(&row.plan.key))?.exists(rusqlite::params_from_iter(row.key))
}

/// A new row whose key is there: it holds what the source says now.
fn overwrite(connection: &Connection, parking: &mut Parking, row: &NewRow<'_>) -> Outcome<u64> {
    let plan = row.plan;
    let places = plan.not_key(row.places);
    if places.is_empty() {
        return Ok(1);
    }
    let failed = |error| failure(&format!("writing rows of {}", plan.name()), Some(plan), error);
    let new: Vec<Held<'_>> = row
        .places
        .iter()
        .zip(row.new)
        .filter(|(place, _)| places.contains(place))
        .map(|(_, value)| value.clone())
        .collect();
    let mut statement = connection.prepare_cached(&plan.update(&places)).map_err(failed)?;
    let row = NewRow { verb: Verb::Update, places: &places, new: &new, ..*row };
    match write(connection, parking, &mut statement, &row)? {
        Written::Rows(rows) => Ok(rows),
        Written::IsThere => unreachable!("an update is of a row that is there"),
    }
}

/// The steps of a batch, in the order of this file's head.
fn steps<'a>(batch: &'a Batch) -> Vec<Step<'a>> {
    let plans: Vec<&TablePlan> = batch.iter().map(|(plan, _)| &**plan).collect();
    let order = parents_first(&plans, |child, parent| parent.is_parent_of(child));
    let mut steps = Vec::new();
    let step = |i: usize, verb: Verb, places: Vec<usize>, rows: StepRows<'a>| {
        let (plan, net) = &batch[i];
        Step { plan, verb, places, rows, loading: net.loading }
    };
    let deletes = |steps: &mut Vec<Step<'a>>, last: bool| {
        let of = order.iter().rev().copied().filter(|&i| batch[i].0.deletes_last() == last);
        steps.extend(of.map(|i| step(i, Verb::Delete, vec![], StepRows::Keys(&batch[i].1.deletes))));
    };
    deletes(&mut steps, false);
    for &i in &order {
        let (plan, net) = &batch[i];
        steps.extend(net.moves.iter().map(|m| step(i, Verb::Move, plan.places(&m.columns), StepRows::Moved(&m.rows))));
    }
    for &i in &order {
        let (plan, net) = &batch[i];
        let set = |columns: &[usize]| plan.not_key(&plan.places(columns));
        steps.extend(net.updates.iter().map(|u| step(i, Verb::Update, set(&u.columns), StepRows::Full(&u.rows))));
        steps.push(step(i, Verb::Insert, plan.all(), StepRows::Full(&net.inserts)));
    }
    deletes(&mut steps, true);
    steps.retain(|step| step.rows.len() > 0);
    steps
}

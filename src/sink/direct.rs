//! New rows by COPY straight into their table: no stage, no look-up by key, 1.7 times as fast as the upsert.
//!
//! The sink is exactly a state of the source, so a row that is inserted there is new here; and so are the rows of a chunk whose
//! range was just seen to be empty ([`super::range`]). Should a row stand in the way after all, COPY is refused as a whole. It runs under a savepoint, so then nothing has happened, and the rows go through the stage
//! as those of any other kind do. Whatever else refuses a row (a value, a constraint, a trigger) is met again there, where it
//! gets its name.
//!
//! COPY reads values with the input function of the column's type, an INSERT from the stage assigns them to the column. With a
//! modifier those could differ, so a table goes direct only where no column has one, or has the source's own. COPY knows
//! no rules, so a table with rules never does.

use futures_util::future::join;

use super::catalog::{ColumnFacts, TableFacts};
use super::encode::CopyText;
use super::fit::same_type;
use super::postgres::PostgresSink;
use super::refusal::{Class, classify, failure};
use super::sql::{Rows, SinkTablePlan};
use super::stored::Stored;
use super::write::Step;
use super::{Counts, Outcome, WantedTable};
use crate::relation::Column;

const SAVEPOINT: &str = "SAVEPOINT lockstep_direct";
const RELEASE: &str = "RELEASE SAVEPOINT lockstep_direct";
const ROLLBACK: &str = "ROLLBACK TO SAVEPOINT lockstep_direct; RELEASE SAVEPOINT lockstep_direct";

/// Whether COPY into the table stores what an INSERT would.
pub(super) fn is_alike(wanted: &WantedTable, facts: &TableFacts) -> bool {
    let column = |name: &str| facts.columns.iter().find(|column| column.name == name);
    let alike = |source: &Column| column(&source.name).is_some_and(|sink| reads_alike(source, sink));
    !facts.rules && wanted.columns.iter().all(|wanted| alike(&wanted.column))
}

fn reads_alike(source: &Column, sink: &ColumnFacts) -> bool {
    let (from, to) = (Stored::of(source), &sink.stored);
    let same = || from.typmod == to.typmod && from.arrays == to.arrays && same_type(&from.name, &to.name);
    // What an interval's text means depends on the fields that its modifier names.
    to.typmod == -1 || (same() && to.name != "interval")
}

impl SinkTablePlan {
    fn copy_to_table(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.quoted.as_str()).collect();
        format!("COPY {} ({}) FROM STDIN", self.table.quoted(), names.join(", "))
    }

    /// How many staged rows have the key of a row that is there.
    fn count_there(&self) -> String {
        let there = self.same_key("t", |k| self.value(Rows::Stage, self.key[k])) + &self.and_alive("t");
        format!(
            "SELECT pg_catalog.count(*) FROM {} AS v WHERE EXISTS (SELECT FROM {} AS t WHERE {there})",
            self.stage,
            self.table.quoted()
        )
    }
}

impl PostgresSink {
    /// Inserts the rows of a step; those that were there already are overwritten, and counted as such.
    pub(super) async fn direct_step(&mut self, step: &Step<'_>) -> Outcome<Counts> {
        let copied = self.copy_direct(step.plan, step.len(), |copy, row| step.copy_row(copy, row)).await?;
        if let Some(copied) = copied {
            return step.count(copied).inspect_err(|_| self.fail());
        }
        self.stage_step(step).await?;
        let there = match step.plan.keyless {
            true => 0,
            false => self.there(step.plan).await?,
        };
        let counts = self.staged_step(step).await?;
        if there > 0 {
            tracing::warn!(
                table = %step.plan.table,
                rows = there,
                "rows that are new at the source were there already at the sink; they are overwritten. Who else writes to the table?"
            );
        }
        Ok(Counts { overwritten: there, ..counts })
    }

    async fn there(&mut self, plan: &SinkTablePlan) -> Outcome<u64> {
        let found = self.client.query_one(&plan.count_there(), &[]).await;
        let found = found.map_err(|error| {
            self.fail();
            failure(&format!("looking for rows of {}", plan.table), Some(plan), error)
        })?;
        Ok(u64::try_from(found.get::<_, i64>(0)).expect("a count"))
    }

    /// COPY into the table itself; `None` where something refused it and nothing has happened.
    pub(super) async fn copy_direct(
        &mut self,
        plan: &SinkTablePlan,
        rows: usize,
        write: impl Fn(&mut CopyText, usize),
    ) -> Outcome<Option<u64>> {
        self.written = true;
        let copy = self.prepared(&plan.copy_to_table(), Some(plan)).await.inspect_err(|_| self.fail())?;
        let copy = self.copy(&copy, rows, write);
        // Sent together: no round trip for the savepoint.
        let (saved, copied) = join(self.client.batch_execute(SAVEPOINT), copy).await;
        let refused = |error: &tokio_postgres::Error| {
            error.code().is_some_and(|code| matches!(classify(code), Class::Value | Class::Constraint))
        };
        let outcome = match (saved, copied) {
            (Ok(()), Ok(copied)) => self.client.batch_execute(RELEASE).await.map(|()| Some(copied)),
            (Ok(()), Err(error)) if refused(&error) => self.client.batch_execute(ROLLBACK).await.map(|()| None),
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        outcome.map_err(|error| {
            self.fail();
            failure(&format!("inserting rows into {}", plan.table), Some(plan), error)
        })
    }
}

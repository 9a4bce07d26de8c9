//! A chunk: "this range of keys now holds exactly these rows".
//!
//! The rows go into a stage as they come, so a chunk needs no memory here. Then two statements: keys of the range that are not
//! among the rows are deleted (phantoms), the rows are inserted or updated where they differ. A row that is already right is
//! not written: no new version, no trigger, no work for vacuum.

use super::postgres::PostgresSink;
use super::refusal::failure;
use super::sql::SinkTablePlan;
use super::{Counts, Outcome};
use crate::error::{Code, Halt};
use crate::key::KeyRange;
use crate::value::{Cell, RowBuf};

/// A chunk that is being loaded. To be ended with [`PostgresSink::end_range`], or the transaction rolled back.
#[must_use = "a range is not replaced before its end"]
pub struct RangeLoad<'a> {
    plan: &'a SinkTablePlan,
    range: KeyRange,
    rows: u64,
}

impl PostgresSink {
    /// Starts to replace what `range` of the plan's table holds. One range at a time.
    pub async fn begin_range<'a>(&mut self, plan: &'a SinkTablePlan, range: &KeyRange) -> Outcome<RangeLoad<'a>> {
        self.assert_open();
        for border in [&range.after, &range.through].into_iter().flatten() {
            assert_eq!(border.len(), plan.key.len(), "a range is over the table's key");
        }
        self.empty_stage(plan).await.inspect_err(|_| self.fail())?;
        Ok(RangeLoad { plan, range: range.clone(), rows: 0 })
    }

    /// Adds rows, complete in the wanted columns. No key comes twice.
    pub async fn push_range(&mut self, load: &mut RangeLoad<'_>, rows: &[RowBuf]) -> Outcome<()> {
        let plan = load.plan;
        let cells = |row: &RowBuf| plan.columns.iter().any(|column| row.row().get(column.index).is_absent());
        if rows.iter().any(cells) {
            self.fail();
            let halt = Halt {
                code: Code::AbsentBase,
                message: format!("a chunk row of table {} lacks a column that was never sent", plan.table),
                facts: vec![],
                hint: format!("lockstep resync {}", plan.source),
            };
            return Err(halt.into());
        }
        let sql = plan.copy_to_stage(&plan.all(), false);
        self.stages_filled.insert(plan.stage.clone());
        let copied = self
            .copy(&sql, rows.len(), |copy, row| {
                let cell = |column: usize| -> Cell<'_> { rows[row].row().get(column) };
                copy.row(plan.columns.iter().map(|column| cell(column.index)));
            })
            .await;
        load.rows += rows.len() as u64;
        copied.map_err(|error| {
            self.fail();
            failure(&format!("loading rows for {}", plan.table), Some(plan), error)
        })
    }

    /// Makes the range hold exactly the rows pushed. Counts: phantoms as deleted, rows written as inserted.
    pub async fn end_range(&mut self, load: RangeLoad<'_>) -> Outcome<Counts> {
        let RangeLoad { plan, range, rows } = load;
        self.written = true;
        let doing = format!("replacing a range of {}", plan.table);
        let deleted = self.client.execute(&plan.delete_phantoms(&range), &[]).await;
        let inserted = match (&deleted, rows) {
            (Ok(_), 1..) => self.client.execute(&plan.insert_differing(), &[]).await,
            _ => Ok(0),
        };
        match deleted.and_then(|deleted| Ok(Counts { deleted, inserted: inserted?, ..Counts::default() })) {
            Ok(counts) => Ok(counts),
            Err(error) => {
                self.fail();
                Err(failure(&doing, Some(plan), error))
            }
        }
    }
}

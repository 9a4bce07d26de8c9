//! Writing the net effect of changes: few statements, in an order that foreign keys and unique values bear best.
//!
//! Per table the net effect itself sets the order (deletes, moves, updates, inserts). Over several tables, foreign keys that
//! are checked or act at once decide:
//! 1. deletes, children first, of tables where no foreign key acts on them or checks them at once;
//! 2. moves;
//! 3. updates and inserts, parents first: a child may now reference a new parent;
//! 4. deletes, children first, of the other tables: by now every row that lives on has left the parents that go. Deleting
//!    those first would let ON DELETE CASCADE take rows that live on.
//!
//! Within a part, rows are disjoint, so nothing depends on order. What still clashes the server refuses: of a unique value
//! handed over between rows the driver tries again with parking on ([`super::park`]), of anything else with the changes one
//! by one.
//!
//! Up to [`PARAMETER_ROWS_MAX`] rows go as arrays in parameters, all statements sent before the first answer; more go by
//! COPY through a stage, new rows by COPY to the table itself ([`super::direct`]).

use bytes::Bytes;
use futures_util::SinkExt;
use futures_util::future::join_all;
use tokio_postgres::ToStatement;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::encode::{CopyText, TextArray};
use super::park::{NewRows, Param};
use super::postgres::PostgresSink;
use super::refusal::{Class, classify, copied_column, failure, value_hint, value_message};
use super::sql::{Rows, SinkTablePlan};
use super::step::{StepRows, Verb, parents_first};
use super::{Counts, Failure, Outcome};
use crate::apply::net::NetEffect;
use crate::change::Key;
use crate::config::Truncate;
use crate::error::{Code, Error, Halt};
use crate::value::Cell;

/// More rows than this go by COPY.
pub const PARAMETER_ROWS_MAX: usize = 2_000;
/// So do rows of more than this: a statement's parameters are held three times (rows, arrays, socket buffer).
const PARAMETER_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A stage has no statistics, so the planner would read the whole table for every batch and hash it: 12 k updates a second
/// into 300 k rows, fewer the larger the table is, and 25 k by the key's index on the same busy machine. Only around these
/// statements: comparing a chunk with its range wants those joins.
pub(super) const LOOK_UP: &str = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";
pub(super) const LOOK_UP_NO_MORE: &str = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on";

/// One statement's worth of rows of one table.
pub(super) struct Step<'a> {
    pub plan: &'a SinkTablePlan,
    verb: Verb,
    /// Places in the plan's columns that the rows carry.
    present: Vec<usize>,
    rows: StepRows<'a>,
    /// See [`NetEffect::loading`].
    loading: bool,
    /// Rows of the table go in the same batch.
    deletes: bool,
}

impl Step<'_> {
    fn sql(&self, rows: Rows) -> String {
        match self.verb {
            Verb::Delete if self.plan.keyless => self.plan.delete_whole(rows),
            Verb::Move if self.plan.keyless => self.plan.shift_whole(rows, &self.present),
            Verb::Move if self.plan.mark.is_some() => self.plan.carry_over(rows, &self.present),
            Verb::Delete => self.plan.delete(rows),
            Verb::Move => self.plan.shift(rows, &self.present),
            Verb::Update => self.plan.update(rows, &self.present),
            Verb::Insert => self.plan.insert(rows, self.deletes),
        }
    }

    fn doing(&self) -> String {
        format!("{} {}", self.verb.doing(), self.plan.table)
    }

    fn new_rows(&self, rows: Rows) -> NewRows<'_> {
        let (present, upsert) = (self.present.clone(), self.verb == Verb::Insert);
        NewRows { plan: self.plan, rows, present, has_old: self.rows.has_old_key(), upsert }
    }

    fn goes_by_copy(&self) -> bool {
        self.rows.len() > PARAMETER_ROWS_MAX || self.rows.bytes() > PARAMETER_BYTES_MAX
    }

    /// New rows that COPY can take to the table itself.
    fn goes_direct(&self) -> bool {
        self.verb == Verb::Insert && self.plan.direct && self.goes_by_copy()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn parameters(&self) -> Vec<TextArray> {
        let len = self.rows.len();
        let column = |&place: &usize| TextArray::new((0..len).map(|row| self.plan.cell(self.rows.carried(row), place)));
        let mut arrays: Vec<TextArray> = self.present.iter().map(column).collect();
        if self.rows.has_old_key() {
            arrays.extend((0..self.plan.key.len()).map(|k| TextArray::new((0..len).map(|row| self.old_cell(row, k)))));
        }
        arrays
    }

    fn old_cell(&self, row: usize, k: usize) -> Cell<'_> {
        let key = self.rows.old_key(row).expect("only asked of rows with an old key");
        key.cells().nth(k).expect("a key has all its columns")
    }

    pub(super) fn copy_row(&self, copy: &mut CopyText, row: usize) {
        let cells = self.present.iter().map(|&place| self.plan.cell(self.rows.carried(row), place));
        let old = self.rows.old_key(row).into_iter().flat_map(Key::cells);
        copy.row(cells.chain(old));
    }

    /// Counts the rows that the server says it wrote.
    pub(super) fn count(&self, affected: u64) -> Outcome<Counts> {
        let named = self.rows.len() as u64;
        let may_fall_short = match self.verb {
            Verb::Delete => self.plan.deletes_short,
            // An equal row that is already there is left alone.
            Verb::Insert => self.plan.has_only_key(),
            Verb::Move | Verb::Update => false,
        } || self.loading
            || self.plan.skips_missing;
        if affected > named || (affected < named && !may_fall_short) {
            return Err(self.diverged(named, affected));
        }
        let mut counts = Counts::default();
        if self.plan.skips_missing && !self.loading {
            counts.missing = named - affected;
        }
        match self.verb {
            Verb::Delete => counts.deleted = affected,
            Verb::Move => counts.moved = affected,
            Verb::Update => {
                let named = (0..self.rows.len()).filter(|&row| self.plan.marks(self.rows.carried(row))).count();
                counts.deleted = affected.min(named as u64);
                counts.updated = affected - counts.deleted;
            }
            Verb::Insert => counts.inserted = affected,
        }
        Ok(counts)
    }

    fn diverged(&self, named: u64, affected: u64) -> Failure {
        Failure::Error(Error::halt(
            Code::SinkDiverged,
            format!(
                "{} reached {affected} rows of the {named} that it names: the sink is not the state that it claims",
                self.doing()
            ),
            format!("lockstep resync {}", self.plan.source),
        ))
    }
}

impl PostgresSink {
    /// Writes the net effects of some tables, each table at most once. Tables that are emptied first are emptied together.
    pub async fn apply(&mut self, batch: &[(&SinkTablePlan, NetEffect)]) -> Outcome<Counts> {
        self.assert_open();
        let emptied: Vec<&SinkTablePlan> =
            batch.iter().filter(|(_, net)| net.truncate).map(|(plan, _)| *plan).collect();
        if !emptied.is_empty() {
            self.truncate(&emptied).await?;
        }
        let steps = steps(batch);
        let mut counts = Counts::default();
        let mut rest = &steps[..];
        while let Some(step) = rest.first() {
            self.written = true;
            let run = match step.goes_by_copy() || self.parking.is_some() {
                true => 1,
                false => rest.iter().take_while(|step| !step.goes_by_copy()).count(),
            };
            let (now, later) = rest.split_at(run);
            counts += match (step.goes_by_copy(), self.parking.is_some()) {
                (true, false) if step.goes_direct() => self.direct_step(step).await?,
                (true, _) => self.copy_step(step).await?,
                (false, true) => self.parking_step(step).await?,
                (false, false) => self.parameter_steps(now).await?,
            };
            rest = later;
        }
        Ok(counts)
    }

    /// Empties exactly these tables, never CASCADE: by one statement, but for those of which other tables' rows stay, or that are to
    /// be emptied row by row.
    pub async fn truncate(&mut self, plans: &[&SinkTablePlan]) -> Outcome<()> {
        self.assert_open();
        let at_once =
            |plan: &&&SinkTablePlan| plan.held.is_empty() && plan.truncate == Truncate::Truncate && plan.mark.is_none();
        let (whole, others): (Vec<&SinkTablePlan>, Vec<&SinkTablePlan>) = plans.iter().partition(at_once);
        if !whole.is_empty() {
            self.truncate_whole(&whole).await?;
        }
        // Rows that reference others go before those.
        for plan in
            parents_first(&others, |child, parent| child.references(parent)).into_iter().rev().map(|i| others[i])
        {
            self.delete_ours(plan).await?;
        }
        for plan in plans.iter().filter(|plan| plan.mark.is_none()) {
            self.paid_all(plan).await?;
        }
        Ok(())
    }

    async fn delete_ours(&mut self, plan: &SinkTablePlan) -> Outcome<()> {
        self.written = true;
        let done = self.client.execute(&plan.take_out(self.committed_us, plan.only_ours()), &[]).await;
        done.map(drop).map_err(|error| {
            self.fail();
            failure(&format!("emptying {} of the rows of {}", plan.table, plan.source), Some(plan), error)
        })
    }

    /// Deletes the rows of all the tables by one statement.
    pub(super) async fn delete_all_ours(&mut self, plans: &[&SinkTablePlan]) -> Outcome<()> {
        let delete = |plan: &&SinkTablePlan| plan.take_out(self.committed_us, plan.only_ours());
        let mut deletes: Vec<String> = plans.iter().map(delete).collect();
        let Some(last) = deletes.pop() else { return Ok(()) };
        let before: Vec<String> = deletes.iter().enumerate().map(|(i, delete)| format!("d{i} AS ({delete})")).collect();
        let with = if before.is_empty() { String::new() } else { format!("WITH {} ", before.join(", ")) };
        self.written = true;
        self.client.execute(&format!("{with}{last}"), &[]).await.map_err(|error| {
            self.fail();
            failure("emptying tables while a circle of them is half loaded", plans.first().copied(), error)
        })?;
        for plan in plans.iter().filter(|plan| plan.mark.is_none()) {
            self.paid_all(plan).await?;
        }
        Ok(())
    }

    async fn truncate_whole(&mut self, plans: &[&SinkTablePlan]) -> Outcome<()> {
        let tables: Vec<String> = plans.iter().map(|plan| plan.table.quoted()).collect();
        let truncate = format!("TRUNCATE {}", tables.join(", "));
        // A table with constraint checks pending can't be truncated, so these are made now.
        let sql = match self.written && plans.iter().any(|plan| plan.deferrable) {
            true => format!("SET CONSTRAINTS ALL IMMEDIATE; {truncate}; SET CONSTRAINTS ALL DEFERRED"),
            false => truncate,
        };
        self.client.batch_execute(&sql).await.map_err(|error| {
            self.fail();
            failure("truncating", plans.first().copied(), error)
        })
    }

    /// A step by itself, behind what gets rows out of its way.
    async fn parking_step(&mut self, step: &Step<'_>) -> Outcome<Counts> {
        self.carry_no_stand_in(step).await?;
        let (new, arrays) = (step.new_rows(Rows::Parameters), step.parameters());
        let params: Vec<Param<'_>> = arrays.iter().map(|array| array as Param<'_>).collect();
        self.make_way(&new, &params).await?;
        let counts = self.parameter_steps(std::slice::from_ref(step)).await?;
        self.paid(&new, &params).await?;
        Ok(counts)
    }

    /// Where rows are made of others, those must hold what is theirs.
    async fn carry_no_stand_in(&mut self, step: &Step<'_>) -> Outcome<()> {
        match step.verb == Verb::Move && step.plan.mark.is_some() {
            true => self.settle().await,
            false => Ok(()),
        }
    }

    /// All statements are sent before the first answer is awaited.
    async fn parameter_steps(&mut self, steps: &[Step<'_>]) -> Outcome<Counts> {
        let mut statements = Vec::with_capacity(steps.len());
        for step in steps {
            let statement = self.prepared(&step.sql(Rows::Parameters), Some(step.plan)).await;
            statements.push(statement.inspect_err(|_| self.fail())?);
        }
        let arrays: Vec<Vec<TextArray>> = steps.iter().map(Step::parameters).collect();
        let params: Vec<Vec<&(dyn ToSql + Sync)>> =
            arrays.iter().map(|arrays| arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect()).collect();
        let client = &self.client;
        let answers = join_all(statements.iter().zip(&params).map(|(s, p)| client.execute(s, p))).await;
        let mut counts = Counts::default();
        for (step, answer) in steps.iter().zip(answers) {
            counts += match answer {
                Ok(affected) => step.count(affected).inspect_err(|_| self.fail())?,
                Err(error) => return Err(self.step_failed(step, error).await),
            };
        }
        Ok(counts)
    }

    async fn copy_step(&mut self, step: &Step<'_>) -> Outcome<Counts> {
        self.stage_step(step).await?;
        self.staged_step(step).await
    }

    /// Takes the rows of a step to the stage.
    pub(super) async fn stage_step(&mut self, step: &Step<'_>) -> Outcome<()> {
        self.empty_stage(step.plan).await.inspect_err(|_| self.fail())?;
        self.stages_filled.insert(step.plan.stage.clone());
        let copy_sql = step.plan.copy_to_stage(&step.present, step.rows.has_old_key());
        match self.copy(&copy_sql, step.rows.len(), |copy, row| step.copy_row(copy, row)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.step_failed(step, error).await),
        }
    }

    /// Writes what is staged for a step.
    pub(super) async fn staged_step(&mut self, step: &Step<'_>) -> Outcome<Counts> {
        self.carry_no_stand_in(step).await?;
        let new = step.new_rows(Rows::Stage);
        self.make_way(&new, &[]).await?;
        let counts = match self.write_staged(step).await {
            Ok(affected) => step.count(affected).inspect_err(|_| self.fail())?,
            Err(error) => return Err(self.step_failed(step, error).await),
        };
        self.paid(&new, &[]).await?;
        Ok(counts)
    }

    /// The statement that takes the staged rows to the table. Rows that are there already are looked up one by one.
    async fn write_staged(&self, step: &Step<'_>) -> std::result::Result<u64, tokio_postgres::Error> {
        let sql = step.sql(Rows::Stage);
        if step.verb == Verb::Insert || step.plan.keyless {
            return self.client.execute(&sql, &[]).await;
        }
        self.client.batch_execute(LOOK_UP).await?;
        let affected = self.client.execute(&sql, &[]).await?;
        self.client.batch_execute(LOOK_UP_NO_MORE).await?;
        Ok(affected)
    }

    /// COPY … FROM STDIN of `rows` rows that `write` writes; how many the server took.
    pub(super) async fn copy(
        &self,
        sql: &(impl ToStatement + ?Sized),
        rows: usize,
        write: impl Fn(&mut CopyText, usize),
    ) -> std::result::Result<u64, tokio_postgres::Error> {
        let mut out = std::pin::pin!(self.client.copy_in::<_, Bytes>(sql).await?);
        let mut copy = CopyText::default();
        let mut sent = Ok(());
        for row in 0..rows {
            write(&mut copy, row);
            if let Some(piece) = copy.piece() {
                sent = out.send(piece).await;
                if sent.is_err() {
                    break;
                }
            }
        }
        if sent.is_ok() {
            sent = out.send(copy.rest()).await;
        }
        // Where sending failed, the end has the server's reason.
        let finished = out.as_mut().finish().await;
        match (sent, finished) {
            (Err(sent), Err(finished)) if finished.as_db_error().is_none() => Err(sent),
            (Err(sent), Ok(_)) => Err(sent),
            (_, finished) => finished,
        }
    }

    async fn step_failed(&mut self, step: &Step<'_>, error: tokio_postgres::Error) -> Failure {
        self.fail();
        let server = error.as_db_error();
        let nameless_value = server.is_some_and(|server| {
            let named = server.column().is_some() || copied_column(server, step.plan).is_some();
            classify(server.code()) == Class::Value && !named
        });
        let code = server.map(|server| server.code().clone());
        let failure = failure(&step.doing(), Some(step.plan), error);
        match (failure, code) {
            (Failure::Error(Error::Halt(halt)), Some(code)) if nameless_value => {
                // Best effort: without the column's name it is still the same halt.
                let column = self.find_column(step, &code).await.ok().flatten();
                let message = value_message(&step.plan.table.to_string(), column.as_deref());
                let hint = value_hint(Some(step.plan), column.as_deref());
                Halt { message, hint, ..*halt }.into()
            }
            (failure, _) => failure,
        }
    }

    /// Which column refuses a value. The server names it only for NOT NULL, so each column is tried by itself, against a copy
    /// of the table's shape, after the transaction is rolled back.
    async fn find_column(&mut self, step: &Step<'_>, code: &SqlState) -> Outcome<Option<String>> {
        let doing = "looking for the refused column";
        let back = "ROLLBACK TO SAVEPOINT lockstep_probe; RELEASE SAVEPOINT lockstep_probe";
        // Where the row alone is to be taken back, the rest of the transaction stays.
        let (begin, end) = match self.saved.is_some() {
            true => {
                let gone = self.client.batch_execute("ROLLBACK TO SAVEPOINT lockstep_row").await;
                gone.map_err(|error| failure(doing, Some(step.plan), error))?;
                ("SAVEPOINT lockstep_probe", back)
            }
            false => {
                self.rollback().await?;
                ("BEGIN", "ROLLBACK")
            }
        };
        let plan = step.plan;
        let old = (0..if step.rows.has_old_key() { plan.key.len() } else { 0 }).map(|k| plan.key[k]);
        let places: Vec<usize> = step.present.iter().copied().chain(old).collect();
        for (place, values) in places.iter().zip(step.parameters()) {
            let column = &plan.columns[*place];
            let shape = format!(
                "{begin}; CREATE TEMPORARY TABLE lockstep_probe ON COMMIT DROP AS SELECT t.{} AS c FROM {} AS t WITH NO DATA",
                column.quoted,
                plan.table.quoted()
            );
            let try_sql = format!(
                "INSERT INTO pg_temp.lockstep_probe (c) SELECT {} FROM unnest($1::pg_catalog.text[]) AS v(c)",
                column.parse("v.c")
            );
            self.client.batch_execute(&shape).await.map_err(|error| failure(doing, Some(plan), error))?;
            let tried = self.client.execute(&try_sql, &[&values]).await;
            self.client.batch_execute(end).await.map_err(|error| failure(doing, Some(plan), error))?;
            if tried.is_err_and(|error| error.code() == Some(code)) {
                return Ok(Some(column.name.clone()));
            }
        }
        Ok(None)
    }
}

/// The statements of a batch, in the order of this file's head.
fn steps<'a>(batch: &'a [(&'a SinkTablePlan, NetEffect)]) -> Vec<Step<'a>> {
    let plans: Vec<&SinkTablePlan> = batch.iter().map(|(plan, _)| *plan).collect();
    let order = parents_first(&plans, |child, parent| child.references(parent));
    let mut steps = Vec::new();
    let deletes = |steps: &mut Vec<Step<'a>>, last: bool| {
        for &i in order.iter().rev() {
            let (plan, net) = &batch[i];
            if plan.deletes_last == last && !net.deletes.is_empty() {
                steps.push(Step {
                    plan,
                    verb: Verb::Delete,
                    present: vec![],
                    rows: StepRows::Keys(&net.deletes),
                    loading: net.loading,
                    deletes: !net.deletes.is_empty(),
                });
            }
        }
    };
    deletes(&mut steps, false);
    let moves = |i: usize| {
        let (plan, net) = &batch[i];
        let moves = net.moves.iter().map(|moves| (plan.places(&moves.columns), StepRows::Moved(&moves.rows)));
        moves.map(|(present, rows)| Step {
            plan,
            verb: Verb::Move,
            present,
            rows,
            loading: net.loading,
            deletes: !net.deletes.is_empty(),
        })
    };
    for &i in &order {
        steps.extend(moves(i).filter(|step| step.plan.mark.is_none()));
    }
    for &i in &order {
        let (plan, net) = &batch[i];
        let updates = net.updates.iter().map(|updates| Step {
            plan,
            verb: Verb::Update,
            present: plan.places(&updates.columns),
            rows: StepRows::Full(&updates.rows),
            loading: net.loading,
            deletes: !net.deletes.is_empty(),
        });
        let inserts = (!net.inserts.is_empty()).then(|| Step {
            plan,
            verb: Verb::Insert,
            present: plan.all(),
            rows: StepRows::Full(&net.inserts),
            loading: net.loading,
            deletes: !net.deletes.is_empty(),
        });
        let moves = moves(i).filter(|_| plan.mark.is_some());
        match plan.inserts_first() {
            true => steps.extend(inserts.into_iter().chain(updates).chain(moves)),
            false => steps.extend(updates.chain(moves).chain(inserts)),
        }
    }
    deletes(&mut steps, true);
    steps
}

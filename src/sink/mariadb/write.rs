//! Writing the net effect of changes into a MariaDB.
//!
//! Every constraint is checked with the row, so the order over several tables is what foreign keys bear best: deletes children first,
//! of tables that nobody references; moves; updates and inserts parents first; at the end deletes of the others, when every row that
//! lives on has left them. What still clashes the server refuses, and the driver tries again with rows parked, then one by one.
//!
//! - New rows go by many in a statement. One that is there already makes the statement fail, which undoes it alone; then its rows are
//!   updated by their keys, and made where they were not ([`MariaDbSink::overwrite`]).
//! - Updates of whole rows go by many as well where the key is all that is unique: counted and locked first, so that the statement can
//!   make no row and reaches no other. All others are one statement each, many in a packet.
//! - Parking: rows that a statement is about to update hold NULL for a moment in a column of each other unique index, so that they
//!   can swap. Only these rows, and only inside of the transaction.

use super::MariaDbSink;
use super::fit::quoted;
use super::link::Done;
use super::refusal::{self, Class, class, failure};
use super::sql::{Batch, Plan};
use crate::apply::net::NetEffect;
use crate::change::Key;
use crate::error::{Code, Error, Halt};
use crate::sink::step::{Verb, parents_first};
use crate::sink::{Counts, Failure, Outcome};
use crate::value::RowBuf;

/// Fewer rows than this are not worth a statement of their own that counts them.
const BULK_ROWS_MIN: usize = 8;

/// Keys as texts in key order.
pub(super) type Keys = Vec<Vec<Vec<u8>>>;

fn doing(verb: Verb, plan: &Plan) -> String {
    format!("{} {}", verb.doing(), plan.table)
}

impl MariaDbSink {
    pub(super) async fn write(&mut self, batch: &[(&Plan, NetEffect)]) -> Outcome<Counts> {
        self.assert_open();
        let emptied: Vec<&Plan> = batch.iter().filter(|(_, net)| net.truncate).map(|(plan, _)| *plan).collect();
        self.empty(&emptied).await?;
        let plans: Vec<&Plan> = batch.iter().map(|(plan, _)| *plan).collect();
        let order = parents_first(&plans, |child, parent| child.references(parent));
        let mut counts = Counts::default();
        for last in [false, true] {
            if last {
                for &i in &order {
                    counts += self.moves(plans[i], &batch[i].1).await?;
                }
                for &i in &order {
                    counts += self.rows(plans[i], &batch[i].1).await?;
                }
            }
            for &i in order.iter().rev().filter(|&&i| plans[i].deletes_last == last) {
                counts += self.deletes(plans[i], &batch[i].1).await?;
            }
        }
        Ok(counts)
    }

    /// Row by row, since TRUNCATE would end the transaction. As with TRUNCATE no other table's rows go along, unless that is asked for.
    pub(super) async fn empty(&mut self, plans: &[&Plan]) -> Outcome<()> {
        self.assert_open();
        for &i in parents_first(plans, |child, parent| child.references(parent)).iter().rev() {
            let plan = plans[i];
            if let Some(child) = plan.left_behind(plans) {
                self.fail();
                let message =
                    format!("{} is emptied, and {child} references it, which is not emptied along with it", plan.table);
                let hint = format!("write truncate = \"delete\" under [sinks.…] of the connector of {}", plan.source);
                let halt = Halt { code: Code::ConstraintRefused, message, facts: vec![], hint };
                return Err(Failure::Constraint(Box::new(halt)));
            }
            let sql = plan.delete_all().inspect_err(|_| self.fail())?;
            self.run(plan, Verb::Delete, sql.as_bytes()).await?;
        }
        Ok(())
    }

    async fn deletes(&mut self, plan: &Plan, net: &NetEffect) -> Outcome<Counts> {
        let keys: Keys = net.deletes.iter().map(texts).collect();
        let deleted = self.delete_keys(plan, &keys).await?;
        let short = plan.deletes_short || net.loading || plan.skips_missing;
        let missing = self.judge(plan, Verb::Delete, (keys.len() as u64, deleted), short, net.loading)?;
        Ok(Counts { deleted, missing, ..Counts::default() })
    }

    /// How many of them were there.
    pub(super) async fn delete_keys(&mut self, plan: &Plan, keys: &Keys) -> Outcome<u64> {
        let batches = plan.deletes(keys, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        let mut deleted = 0;
        for batch in batches {
            deleted += rows(&self.run(plan, Verb::Delete, &batch.sql).await?);
        }
        Ok(deleted)
    }

    async fn moves(&mut self, plan: &Plan, net: &NetEffect) -> Outcome<Counts> {
        let mut counts = Counts::default();
        for moves in &net.moves {
            let present = plan.places(&moves.columns);
            let keys: Keys = moves.rows.iter().map(|(key, _)| texts(key)).collect();
            self.make_way(plan, &keys, &present).await?;
            let batches = plan.moves(&moves.rows, &present, self.link.statement_bytes).inspect_err(|_| self.fail())?;
            let (moved, missing) = self.one_by_one(plan, Verb::Move, batches, net.loading).await?;
            (counts.moved, counts.missing) = (counts.moved + moved, counts.missing + missing);
        }
        Ok(counts)
    }

    async fn rows(&mut self, plan: &Plan, net: &NetEffect) -> Outcome<Counts> {
        let mut counts = Counts::default();
        if plan.inserts_first() {
            counts += self.inserts(plan, net).await?;
        }
        for updates in &net.updates {
            let rows: Vec<&RowBuf> = updates.rows.iter().collect();
            let (updated, missing) = self.update(plan, &rows, &plan.places(&updates.columns), net.loading).await?;
            counts += Counts { updated, missing, ..Counts::default() };
        }
        if !plan.inserts_first() {
            counts += self.inserts(plan, net).await?;
        }
        Ok(counts)
    }

    async fn inserts(&mut self, plan: &Plan, net: &NetEffect) -> Outcome<Counts> {
        let rows: Vec<&RowBuf> = net.inserts.iter().collect();
        let overwritten = self.insert(plan, &rows).await?;
        let overwritten = if net.loading { 0 } else { overwritten };
        Ok(Counts { inserted: rows.len() as u64, overwritten, ..Counts::default() })
    }

    /// New rows; how many were there already.
    pub(super) async fn insert(&mut self, plan: &Plan, rows: &[&RowBuf]) -> Outcome<u64> {
        let (mut done, mut overwritten) = (0, 0);
        let batches = plan.inserts(rows, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        for batch in batches {
            let these = &rows[done..done + batch.rows];
            done += batch.rows;
            match self.try_run(plan, Verb::Insert, &batch.sql).await? {
                Ok(_) => {}
                Err(error) if self.is_of_key(plan, &error) => overwritten += self.overwrite(plan, these).await?,
                Err(error) => return Err(self.failed(plan, Verb::Insert, error)),
            }
        }
        Ok(overwritten)
    }

    /// Rows of which some are there: those are updated by their keys, the others made. How many were there.
    async fn overwrite(&mut self, plan: &Plan, rows: &[&RowBuf]) -> Outcome<u64> {
        let (mut done, mut missing) = (0, Vec::new());
        let batches = plan.updates(rows, &plan.all(), self.link.statement_bytes).inspect_err(|_| self.fail())?;
        for batch in batches {
            for answer in self.run(plan, Verb::Update, &batch.sql).await? {
                if answer.rows == 0 {
                    missing.push(rows[done]);
                }
                done += 1;
            }
        }
        let batches = plan.inserts(&missing, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        for batch in batches {
            self.run(plan, Verb::Insert, &batch.sql).await?;
        }
        Ok((rows.len() - missing.len()) as u64)
    }

    fn is_of_key(&self, plan: &Plan, error: &mysql_async::Error) -> bool {
        let mysql_async::Error::Server(refusal) = error else { return false };
        class(refusal.code, &refusal.state) == Class::Unique
            && refusal::duplicate_key(&refusal.message) == Some(plan.index.as_str())
    }

    /// Rows by their keys: how many were there, and how many were not though they might have been.
    pub(super) async fn update(
        &mut self,
        plan: &Plan,
        rows: &[&RowBuf],
        present: &[usize],
        loading: bool,
    ) -> Outcome<(u64, u64)> {
        self.make_way(plan, &keys_of(plan, rows), present).await?;
        let whole = present.len() == plan.columns.len() && plan.columns.len() > plan.key.len();
        if whole && plan.bulk && rows.len() >= BULK_ROWS_MIN && !loading && !plan.skips_missing {
            self.update_whole(plan, rows).await?;
            return Ok((rows.len() as u64, 0));
        }
        let batches = plan.updates(rows, present, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        self.one_by_one(plan, Verb::Update, batches, loading).await
    }

    async fn update_whole(&mut self, plan: &Plan, rows: &[&RowBuf]) -> Outcome<()> {
        let mut there = 0;
        let batches = plan.counts(rows, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        for batch in batches {
            let counted = self.link.rows(&batch.sql).await;
            let counted = counted.map_err(|error| self.failed(plan, Verb::Update, error))?;
            there += super::link::text(counted.first(), 0).parse::<u64>().unwrap_or_default();
        }
        self.judge(plan, Verb::Update, (rows.len() as u64, there), false, false)?;
        let batches = plan.overwrites(rows, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        for batch in batches {
            self.run(plan, Verb::Update, &batch.sql).await?;
        }
        Ok(())
    }

    /// Statements that name a row each: how many found theirs, and how many did not where that may be.
    async fn one_by_one(&mut self, plan: &Plan, verb: Verb, batches: Vec<Batch>, loading: bool) -> Outcome<(u64, u64)> {
        let (mut found, mut missing) = (0, 0);
        for batch in batches {
            let answers = self.run(plan, verb, &batch.sql).await?;
            let reached = rows(&answers);
            let may_fall_short = loading || plan.skips_missing;
            missing += self.judge(plan, verb, (batch.rows as u64, reached), may_fall_short, loading)?;
            found += reached;
        }
        Ok((found, missing))
    }

    /// Counts rows that a statement reached against those that it names; how many were left out.
    fn judge(
        &mut self,
        plan: &Plan,
        verb: Verb,
        (named, reached): (u64, u64),
        may_fall_short: bool,
        loading: bool,
    ) -> Outcome<u64> {
        if reached > named || (reached < named && !may_fall_short) {
            self.fail();
            let message = format!(
                "{} reached {reached} rows of the {named} that it names: the sink is not the state that it claims",
                doing(verb, plan)
            );
            return Err(Error::halt(Code::SinkDiverged, message, format!("lockstep resync {}", plan.source)).into());
        }
        Ok(if plan.skips_missing && !loading { named - reached } else { 0 })
    }

    /// While parking: rows that are about to be written let go of their other unique values, as far as a NULL can stand for them and
    /// they are to get one.
    async fn make_way(&mut self, plan: &Plan, keys: &Keys, present: &[usize]) -> Outcome<()> {
        let places: Vec<usize> = plan.stand_ins.iter().copied().filter(|place| present.contains(place)).collect();
        if !self.parking || places.is_empty() || keys.is_empty() {
            return Ok(());
        }
        let batches = plan.parks(keys, &places, self.link.statement_bytes).inspect_err(|_| self.fail())?;
        for batch in batches {
            self.run(plan, Verb::Update, &batch.sql).await?;
        }
        Ok(())
    }

    /// Statements of which none may fail.
    async fn run(&mut self, plan: &Plan, verb: Verb, sql: &[u8]) -> Outcome<Vec<Done>> {
        match self.try_run(plan, verb, sql).await? {
            Ok(done) => Ok(done),
            Err(error) => Err(self.failed(plan, verb, error)),
        }
    }

    /// The server's refusal is the caller's to judge.
    async fn try_run(
        &mut self,
        plan: &Plan,
        verb: Verb,
        sql: &[u8],
    ) -> Outcome<std::result::Result<Vec<Done>, mysql_async::Error>> {
        if sql.len() > self.link.packet_bytes {
            self.fail();
            return Err(too_large(plan, self.link.packet_bytes).into());
        }
        match self.link.run(sql).await {
            Ok(done) if done.iter().any(|done| done.warnings) && !plan.has_triggers => {
                self.warned(plan, verb).await?;
                Ok(Ok(done))
            }
            outcome => Ok(outcome),
        }
    }

    /// A warning may say that a value was changed: then nothing of it stays. What [`super::value`] checks before should leave none.
    async fn warned(&mut self, plan: &Plan, verb: Verb) -> Outcome<()> {
        let warnings = self.link.rows(b"SHOW WARNINGS").await.map_err(|error| self.failed(plan, verb, error))?;
        let number = |row| super::link::text(Some(row), 1).parse::<u16>().unwrap_or_default();
        // Of several statements only the last one's are left to be read.
        let harmless = !warnings.is_empty() && warnings.iter().all(|row| class(number(row), "") != Class::Value);
        if harmless {
            return Ok(());
        }
        self.fail();
        let facts = warnings.first().map(|row| format!("warning {}", number(row)));
        Err(refusal::value(plan, None, facts.into_iter().collect()).into())
    }

    fn failed(&mut self, plan: &Plan, verb: Verb, error: mysql_async::Error) -> Failure {
        self.fail();
        failure(&doing(verb, plan), plan, error, self.parking)
    }
}

fn rows(done: &[Done]) -> u64 {
    done.iter().map(|done| done.rows).sum()
}

fn too_large(plan: &Plan, packet_bytes: usize) -> Halt {
    Halt {
        code: Code::ValueRefused,
        message: format!("a row of {} is larger than what the server takes at once ({packet_bytes} bytes)", plan.table),
        facts: vec![format!("table {}", quoted(&plan.table))],
        hint: "SET GLOBAL max_allowed_packet = 1073741824".to_owned(),
    }
}

fn texts(key: &Key) -> Vec<Vec<u8>> {
    key.cells().map(|cell| cell.text().unwrap_or_default().to_vec()).collect()
}

/// The keys of rows.
pub(super) fn keys_of(plan: &Plan, rows: &[&RowBuf]) -> Keys {
    let cell =
        |row: &RowBuf, place: usize| row.row().get(plan.columns[place].index).text().unwrap_or_default().to_vec();
    rows.iter().map(|row| plan.key.iter().map(|&place| cell(row, place)).collect()).collect()
}

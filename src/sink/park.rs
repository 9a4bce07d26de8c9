//! Unique values that are handed over between rows: whoever holds a value that a written row is to hold gets out of its way
//! first, is parked.
//!
//! A constraint that is checked at once refuses a hand-over within one statement in any order of the rows, and sees a swap as
//! a clash even when rows are written one by one. So once a unique constraint has refused a transaction, it is applied anew
//! with parking on: before a statement writes rows, every other row that holds a unique value of theirs gets a stand-in
//! ([`super::uniques`]). No row is deleted for it, since ON DELETE actions of the service's own tables would fire.
//!
//! A parked row owes a value. What it held is kept in a temporary table; a statement that writes the column pays the debt. A
//! row that still owes before the commit gets back what it held: in the middle of a transaction of the source with a deferred
//! constraint two rows may hold the same, and either may be the one that changes in the end. If that is refused, the end itself
//! is. So no reader ever sees a stand-in (what decodes the sink's own log sees every version of a row), with one exception: rows
//! of a table under load that lie in what is still to be read. They are stale anyway, take no changes, and their own chunk
//! replaces them.
//!
//! Where a column can't hold a stand-in, rows that are still to be read are deleted, if nothing hangs on them, and their chunk
//! makes them again. Otherwise it is `UNIQUE_HANDOVER`, and the driver's last try is each change by itself, in order.
//!
//! Not here: uniqueness of the key (moves in each other's way are `apply::net`'s), tables without a key (their rows are found
//! by all they hold), unique indexes of single partitions.

use std::collections::HashMap;
use std::rc::Rc;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::postgres::PostgresSink;
use super::refusal::{Class, classify, failure};
use super::sql::{Rows, SinkTablePlan};
use super::uniques::{self, StandIn, Unique, Uniques};
use super::write::{LOOK_UP, LOOK_UP_NO_MORE};
use super::{Failure, Outcome};
use crate::key::{KeyOrder, KeyRange};
use crate::relation::{TableName, quote_identifier};

/// Tables of the sink under load, with what is there of each table of the source that goes into it.
pub type Unread = HashMap<TableName, Vec<Loaded>>;

/// What is there of a table under load: everything else of it is still to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub ranges: Vec<KeyRange>,
    /// Columns that tell its rows from those of other tables, with their values.
    pub constants: Vec<(String, String)>,
    /// What the ranges speak of, where there are constants.
    pub key: Vec<(String, KeyOrder)>,
}

/// What is known while parking is on: from [`PostgresSink::park`] to the end of the transaction.
#[derive(Default)]
pub(super) struct Parking {
    unread: Unread,
    uniques: HashMap<u32, Rc<Uniques>>,
    /// Tables of which rows may owe.
    owing: HashMap<u32, Rc<SinkTablePlan>>,
}

/// Rows that are about to be written, as a statement finds them.
pub(super) struct NewRows<'a> {
    pub plan: &'a SinkTablePlan,
    pub rows: Rows,
    /// Places in the plan's columns that they carry.
    pub present: Vec<usize>,
    /// They say which row it is by an old key.
    pub has_old: bool,
    /// They may be there already, under the same key.
    pub upsert: bool,
}

/// A parameter of every statement about rows.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

impl PostgresSink {
    /// Until the end of the open transaction rows that stand in the way of unique values are parked. To be called again before
    /// each write: `unread` changes as ranges come.
    pub fn park(&mut self, unread: Unread) {
        self.assert_open();
        self.parking.get_or_insert_default().unread = unread;
    }

    /// Parks every row that holds a unique value which one of the new rows is to hold.
    pub(super) async fn make_way(&mut self, new: &NewRows<'_>, params: &[Param<'_>]) -> Outcome<()> {
        if self.parking.is_none() || new.plan.keyless {
            return Ok(());
        }
        self.keep_shape(new.plan).await?;
        let known = self.uniques_of(new.plan).await?;
        for unique in known.uniques.iter().filter(|unique| new.touches(unique)) {
            let unread = self.unread(new.plan, "h.k");
            // Checked at the end, only rows that will not be written by then are in the way.
            let which = match (unique.immediate, &unread) {
                (true, _) => "true",
                (false, Some(unread)) => unread,
                (false, None) => continue,
            };
            let holders = new.holders(&known, unique, which);
            match known.stand_in(new.plan, unique, &new.present, Uuid::new_v4().as_u64_pair().0) {
                Ok(stand_in) => self.stand_in(new, (&known, unique), &holders, &stand_in, params).await?,
                Err(reasons) => self.replace(new, (&known, unique), &holders, reasons, params).await?,
            }
        }
        Ok(())
    }

    /// Debts are told by places in a plan. Where another version of the table begins, the source's own ALTER stood, which waits
    /// for no deferred check: there nobody owes.
    async fn keep_shape(&mut self, plan: &SinkTablePlan) -> Outcome<()> {
        let owing = self.parking.as_ref().and_then(|parking| parking.owing.get(&plan.oid));
        match owing.is_some_and(|before| !before.has_columns_of(plan)) {
            true => self.settle().await,
            false => Ok(()),
        }
    }

    async fn uniques_of(&mut self, plan: &SinkTablePlan) -> Outcome<Rc<Uniques>> {
        let parking = self.parking.as_ref().expect("called while parking");
        if let Some(known) = parking.uniques.get(&plan.oid) {
            return Ok(known.clone());
        }
        let mut known = uniques::read(&self.client, plan).await.inspect_err(|_| self.fail())?;
        known.uniques.retain(|unique| !unique.is_key(plan));
        let known = Rc::new(known);
        self.parking.as_mut().expect("just looked").uniques.insert(plan.oid, known.clone());
        Ok(known)
    }

    /// The condition that a row whose key stands in `{alias}0`, `{alias}1` … is still to be read; `None`: its table is not
    /// under load.
    fn unread(&self, plan: &SinkTablePlan, alias: &str) -> Option<String> {
        let loaded = self.parking.as_ref()?.unread.get(&plan.table)?;
        let unread: Vec<String> = loaded.iter().map(|loaded| format!("({})", loaded.unread(plan, alias))).collect();
        Some(unread.join(" OR ")).filter(|unread| !unread.is_empty()).map(|unread| format!("({unread})"))
    }

    async fn stand_in(
        &mut self,
        new: &NewRows<'_>,
        (known, unique): (&Uniques, &Unique),
        holders: &str,
        stand_in: &StandIn,
        params: &[Param<'_>],
    ) -> Outcome<()> {
        self.owe(new.plan).await?;
        match self.looked_up(&new.park(holders, stand_in), params).await {
            Ok(_) => Ok(()),
            Err(error) => {
                self.fail();
                let server = error.as_db_error();
                let refused = server.filter(|s| matches!(classify(s.code()), Class::Constraint | Class::Value));
                let Some(server) = refused else { return Err(failure(&new.doing(), Some(new.plan), error)) };
                let by = server.constraint().map_or_else(String::new, |name| format!(" ({name})"));
                let column = &new.plan.columns[stand_in.place].name;
                let reason = format!(
                    "column {column}: a value that stands in is refused, SQLSTATE {}{by}",
                    server.code().code()
                );
                let stale = self.unread(new.plan, "").is_some();
                Err(Failure::Unique(Box::new(known.handover(new.plan, unique, vec![reason], stale))))
            }
        }
    }

    /// There is no stand-in: what is still to be read is deleted if it may be; anything else in the way is named.
    async fn replace(
        &mut self,
        new: &NewRows<'_>,
        (known, unique): (&Uniques, &Unique),
        holders: &str,
        reasons: Vec<String>,
        params: &[Param<'_>],
    ) -> Outcome<()> {
        let unread = self.unread(new.plan, "w.k").unwrap_or_else(|| "false".to_owned());
        let count = format!("{holders} SELECT count(*), count(*) FILTER (WHERE {unread}) FROM w");
        let counted = self.looked_up(&count, params).await.map_err(|error| {
            self.fail();
            failure(&new.doing(), Some(new.plan), error)
        })?;
        let (holding, stale): (i64, i64) = (counted[0].get(0), counted[0].get(1));
        if holding == 0 {
            return Ok(());
        }
        if stale < holding || !known.is_replaceable(new.plan) || new.plan.mark.is_some() {
            self.fail();
            return Err(Failure::Unique(Box::new(known.handover(new.plan, unique, reasons, stale > 0))));
        }
        let plan = new.plan;
        let delete = format!(
            "{holders} DELETE FROM {} AS t USING w WHERE {}",
            plan.table.quoted(),
            plan.same_key("t", |k| format!("w.k{k}"))
        );
        self.looked_up(&delete, params).await.map(drop).map_err(|error| {
            self.fail();
            failure(&new.doing(), Some(plan), error)
        })
    }

    /// Rows are few and the table is large: they are looked up one by one.
    async fn looked_up(&self, sql: &str, params: &[Param<'_>]) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
        self.client.batch_execute(LOOK_UP).await?;
        let rows = self.client.query(sql, params).await?;
        self.client.batch_execute(LOOK_UP_NO_MORE).await?;
        Ok(rows)
    }

    /// Makes room for what rows of the table owe.
    async fn owe(&mut self, plan: &SinkTablePlan) -> Outcome<()> {
        let parking = self.parking.as_mut().expect("called while parking");
        if parking.owing.insert(plan.oid, Rc::new(plan.clone())).is_some() {
            return Ok(());
        }
        let keys = (0..plan.key.len()).map(|k| format!(", k{k} {}", plan.columns[plan.key[k]].cast));
        let held = plan.columns.iter().enumerate().map(|(place, column)| format!(", c{place} {}", column.cast));
        let create = format!(
            "CREATE TEMPORARY TABLE {} (place int{}) ON COMMIT DROP",
            owing(plan),
            keys.chain(held).collect::<String>()
        );
        self.run(plan, &create, &[]).await
    }

    async fn run(&mut self, plan: &SinkTablePlan, sql: &str, params: &[Param<'_>]) -> Outcome<()> {
        self.client.execute(sql, params).await.map(drop).map_err(|error| {
            self.fail();
            failure("parking rows at the sink", Some(plan), error)
        })
    }

    fn owes(&self, plan: &SinkTablePlan) -> bool {
        self.parking.as_ref().is_some_and(|parking| parking.owing.contains_key(&plan.oid))
    }

    /// The rows were written, or deleted where they carry nothing: they owe no more what they carry.
    pub(super) async fn paid(&mut self, new: &NewRows<'_>, params: &[Param<'_>]) -> Outcome<()> {
        if !self.owes(new.plan) {
            return Ok(());
        }
        let (plan, owing) = (new.plan, owing(new.plan));
        let source = plan.source_of(new.rows, &new.present, new.has_old);
        let same = plan.same_key_of("d.k", |k| new.old_key(k));
        let places: Vec<String> = new.present.iter().map(usize::to_string).collect();
        let carried = match new.present.is_empty() {
            true => String::new(),
            false => format!(" AND d.place IN ({})", places.join(", ")),
        };
        self.run(plan, &format!("DELETE FROM {owing} AS d USING {source} WHERE {same}{carried}"), params).await?;
        if new.has_old && !new.present.is_empty() {
            // What a moved row still owes it owes under its new key.
            let keys = plan.key.iter().enumerate().map(|(k, &place)| format!("k{k} = {}", plan.value(new.rows, place)));
            let keys = keys.collect::<Vec<_>>().join(", ");
            self.run(plan, &format!("UPDATE {owing} AS d SET {keys} FROM {source} WHERE {same}"), params).await?;
        }
        Ok(())
    }

    /// The range now holds exactly what it is to hold.
    pub(super) async fn paid_range(&mut self, plan: &SinkTablePlan, range: &KeyRange) -> Outcome<()> {
        if !self.owes(plan) {
            return Ok(());
        }
        let range = plan.in_range(range, |k| format!("d.k{k}"));
        self.run(plan, &format!("DELETE FROM {} AS d WHERE {range}{}", owing(plan), owed_by_ours(plan)), &[]).await
    }

    /// The table is empty.
    pub(super) async fn paid_all(&mut self, plan: &SinkTablePlan) -> Outcome<()> {
        match self.owes(plan) {
            true => {
                let sql = format!("DELETE FROM {} AS d WHERE true{}", owing(plan), owed_by_ours(plan));
                self.run(plan, &sql, &[]).await
            }
            false => Ok(()),
        }
    }

    /// Whoever still owes gets back what it held, but for rows that are still to be read. What is written must be whole here:
    /// before a commit, and where the table changes its shape.
    pub(super) async fn settle(&mut self) -> Outcome<()> {
        let Some(parking) = &mut self.parking else { return Ok(()) };
        parking.uniques.clear();
        let plans: Vec<Rc<SinkTablePlan>> = parking.owing.drain().map(|(_, plan)| plan).collect();
        for plan in plans {
            let unread = self.unread(&plan, "d.k").unwrap_or_else(|| "false".to_owned());
            let places = format!("SELECT DISTINCT d.place FROM {} AS d WHERE NOT ({unread})", owing(&plan));
            let owed = self.client.query(&places, &[]).await.map_err(|error| {
                self.fail();
                failure("looking for parked rows", Some(&plan), error)
            })?;
            for row in owed {
                let place = row.get::<_, i32>(0);
                let column = usize::try_from(place).expect("places count from 0");
                let sql = format!(
                    "UPDATE {} AS t SET {} = d.c{place} FROM {} AS d WHERE d.place = {place} AND NOT ({unread}) AND {}",
                    plan.table.quoted(),
                    plan.columns[column].quoted,
                    owing(&plan),
                    plan.same_key("t", |k| format!("d.k{k}"))
                );
                self.run(&plan, &sql, &[]).await?;
            }
            self.run(&plan, &format!("DROP TABLE {}", owing(&plan)), &[]).await?;
        }
        Ok(())
    }
}

/// Who owes: `place` in the plan's columns, the row's key, and what it held there.
fn owing(plan: &SinkTablePlan) -> String {
    format!("pg_temp.{}", quote_identifier(&format!("lockstep_owing_{}", plan.oid)))
}

/// Of debts `d`: those of the rows of this version's table.
fn owed_by_ours(plan: &SinkTablePlan) -> String {
    let k = |place: usize| plan.key.iter().position(|key| *key == place).expect("constants are of the key");
    plan.and_ours(|place| format!("d.k{}", k(place)))
}

impl Loaded {
    /// The condition that a row whose key stands in `{alias}0`, `{alias}1` … is still to be read.
    fn unread(&self, plan: &SinkTablePlan, alias: &str) -> String {
        if !self.constants.is_empty() && self.key != plan.range_key() {
            // Of another key its ranges say nothing; then its rows are like any that stay.
            return "false".to_owned();
        }
        let name = |k: usize| format!("{alias}{k}");
        let ranges: Vec<String> = self.ranges.iter().map(|range| format!("({})", plan.in_range(range, name))).collect();
        let unread = if ranges.is_empty() { "true".to_owned() } else { format!("NOT ({})", ranges.join(" OR ")) };
        let is = |(column, value): &(String, String)| {
            let k = plan.key.iter().position(|&place| plan.columns[place].name == *column);
            match k {
                Some(k) => format!(" AND {}", plan.is_value(plan.key[k], &name(k), value)),
                // Of a version without it, whose rows are not of that table.
                None => " AND false".to_owned(),
            }
        };
        format!("{unread}{}", self.constants.iter().map(is).collect::<String>())
    }
}

impl NewRows<'_> {
    /// Whether writing the rows may change what the index holds of them.
    fn touches(&self, unique: &Unique) -> bool {
        // An update leaves the key alone.
        let key_too = self.has_old || self.upsert;
        let written = |place: &usize| self.present.contains(place) && (key_too || !self.plan.key.contains(place));
        unique.places(self.plan).iter().any(written)
    }

    fn doing(&self) -> String {
        format!("parking unique values of {}", self.plan.table)
    }

    /// The row's key as the database has it.
    fn old_key(&self, k: usize) -> String {
        match self.has_old {
            true => self.plan.old_value(self.rows, k),
            false => self.plan.value(self.rows, self.plan.key[k]),
        }
    }

    /// `n`, what the index is to hold of the new rows; `w`, the keys of other rows that hold it now.
    fn holders(&self, known: &Uniques, unique: &Unique, which: &str) -> String {
        let (plan, table) = (self.plan, self.plan.table.quoted());
        let terms: Vec<String> =
            unique.terms.iter().enumerate().map(|(i, term)| format!("{} AS u{i}", term.sql)).collect();
        let terms = terms.join(", ");
        let filter = unique.predicate.as_ref().map_or_else(String::new, |predicate| format!(" WHERE {predicate}"));
        let clash = unique.terms.iter().enumerate().map(|(i, term)| {
            let clash = format!("h.u{i} {} n.u{i}", term.clashes);
            match unique.nulls_equal {
                true => format!("({clash} OR (h.u{i} IS NULL AND n.u{i} IS NULL))"),
                false => clash,
            }
        });
        let keys = |of: &dyn Fn(usize) -> String| {
            (0..plan.key.len()).map(|k| format!(", {} AS k{k}", of(k))).collect::<String>()
        };
        format!(
            "WITH n AS MATERIALIZED (SELECT {terms}{new_keys} FROM ({rows}) AS x{filter}), \
             w AS MATERIALIZED (SELECT DISTINCT {held} FROM (SELECT {terms}{held_keys} FROM {table} AS t{filter}) AS h \
             JOIN n ON {clash} AND NOT ({same}) WHERE {which})",
            new_keys = keys(&|k| format!("x.\"lockstep: k{k}\"")),
            rows = self.written_rows(known),
            held = (0..plan.key.len()).map(|k| format!("h.k{k}")).collect::<Vec<_>>().join(", "),
            held_keys = keys(&|k| format!("t.{}", plan.columns[plan.key[k]].quoted)),
            clash = clash.collect::<Vec<_>>().join(" AND "),
            same = plan.same_key_of("h.k", |k| format!("n.k{k}")),
        )
    }

    /// The new rows under the names of the table's columns: what they carry, and what the table holds of the rest.
    fn written_rows(&self, known: &Uniques) -> String {
        let plan = self.plan;
        let carried = |name: &str| self.present.iter().copied().find(|&place| plan.columns[place].name == name);
        let mut kept = false;
        let columns = known.columns.iter().filter(|column| !column.generated).map(|column| {
            let quoted = quote_identifier(&column.name);
            match carried(&column.name) {
                Some(place) => format!("{} AS {quoted}", plan.value(self.rows, place)),
                None => {
                    kept = true;
                    format!("t0.{quoted} AS {quoted}")
                }
            }
        });
        let keys = (0..plan.key.len()).map(|k| format!("{} AS \"lockstep: k{k}\"", self.old_key(k)));
        let columns: Vec<String> = columns.chain(keys).collect();
        let generated = known.generated.iter().map(|(name, sql)| format!(", ({sql}) AS {}", quote_identifier(name)));
        let join = match kept {
            true => format!(" LEFT JOIN {} AS t0 ON {}", plan.table.quoted(), plan.same_key("t0", |k| self.old_key(k))),
            false => String::new(),
        };
        format!(
            "SELECT s.*{} FROM (SELECT {} FROM {}{join}) AS s",
            generated.collect::<String>(),
            columns.join(", "),
            plan.source_of(self.rows, &self.present, self.has_old)
        )
    }

    fn park(&self, holders: &str, stand_in: &StandIn) -> String {
        let (plan, place) = (self.plan, stand_in.place);
        let (table, column, owing) = (plan.table.quoted(), &plan.columns[place].quoted, owing(plan));
        let keys = |of: &str| (0..plan.key.len()).map(|k| format!("{of}.k{k}")).collect::<Vec<_>>().join(", ");
        format!(
            "{holders}, p AS MATERIALIZED (SELECT w.*, t.{column} AS held, pg_catalog.row_number() OVER () AS i, \
             pg_catalog.count(*) OVER () AS of FROM w JOIN {table} AS t ON {found}), \
             u AS (UPDATE {table} AS t SET {column} = {value} FROM p WHERE {parked} RETURNING {held}, p.held) \
             INSERT INTO {owing} (place, {names}, c{place}) SELECT {place}, u.* FROM u \
             WHERE NOT EXISTS (SELECT FROM {owing} AS d WHERE d.place = {place} AND {owed})",
            found = plan.same_key("t", |k| format!("w.k{k}")),
            value = stand_in.sql.replace("{t}", &table),
            parked = plan.same_key("t", |k| format!("p.k{k}")),
            held = keys("p"),
            names = (0..plan.key.len()).map(|k| format!("k{k}")).collect::<Vec<_>>().join(", "),
            // One that is parked already owes what it held before.
            owed = plan.same_key_of("d.k", |k| format!("u.k{k}")),
        )
    }
}

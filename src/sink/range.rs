//! A chunk: "this range of keys now holds exactly these rows".
//!
//! The rows go into a stage as they come, so a chunk needs no memory here. Then two statements: keys of the range that are not
//! among the rows are deleted (phantoms), the rows are inserted or updated where they differ. A row that is already right is
//! not written: no new version, no trigger, no work for vacuum. A table without a key has one range, all of it.
//!
//! A range that holds no row, as all do in a first load, has no phantoms and nothing to compare: its rows go by COPY into the
//! table itself ([`super::direct`]).
//!
//! A unique value of a row may be held by another row still: of the range, or of what is not read again yet. With parking on
//! ([`super::park`]) those get out of the way between the two statements.

use super::park::NewRows;
use super::postgres::PostgresSink;
use super::refusal::failure;
use super::sql::{Rows, SinkTablePlan};
use super::{Counts, Outcome};
use crate::error::{Code, Halt};
use crate::key::KeyRange;
use crate::relation::{TableName, quote_identifier, quote_literal};
use crate::value::RowBuf;

/// A chunk that is being loaded. To be ended with [`PostgresSink::end_range`], or the transaction rolled back.
#[must_use = "a range is not replaced before its end"]
pub struct RangeLoad<'a> {
    plan: &'a SinkTablePlan,
    range: KeyRange,
    rows: u64,
    /// A condition that leaves some rows alone.
    spared: String,
}

impl SinkTablePlan {
    /// Whether the range holds any row.
    fn any_there(&self, range: &KeyRange) -> String {
        let which = match self.keyless {
            true => self.only_ours().unwrap_or_else(|| "true".to_owned()),
            false => {
                let name = |place: usize| format!("t.{}", self.columns[place].quoted);
                format!("{}{}", self.in_range(range, |k| name(self.key[k])), self.and_ours(name))
            }
        };
        format!("SELECT EXISTS (SELECT FROM {} AS t WHERE {which})", self.table.quoted())
    }

    /// Of rows `t`: that they have none of these keys.
    fn but_for(&self, keys: &[Vec<String>]) -> String {
        let equal = |(k, text): (usize, &String)| {
            let column = &self.columns[self.key[k]];
            format!("t.{} = {}::{}", column.quoted, quote_literal(text), column.cast)
        };
        let one = |key: &Vec<String>| {
            let equal: Vec<String> = self.own_key().into_iter().zip(key).map(equal).collect();
            format!(" AND NOT ({})", equal.join(" AND "))
        };
        keys.iter().map(one).collect()
    }
}

impl PostgresSink {
    /// Makes a range hold exactly these rows: all that [`end_range`](PostgresSink::end_range) says, in one call.
    pub async fn replace_range(
        &mut self,
        plan: &SinkTablePlan,
        range: &KeyRange,
        rows: &[RowBuf],
        blank: &[TableName],
    ) -> Outcome<Counts> {
        let spared = std::mem::take(&mut self.spared);
        if let Some(inserted) = self.fill_empty(plan, range, rows).await? {
            return Ok(Counts { inserted, ..Counts::default() });
        }
        let spared = plan.but_for(&spared);
        let mut load = RangeLoad { spared, ..self.begin_range(plan, range).await? };
        self.push_range(&mut load, rows).await?;
        self.end_range(load, blank).await
    }

    /// The rows as new ones, if the range is empty; `None`: nothing has happened.
    async fn fill_empty(&mut self, plan: &SinkTablePlan, range: &KeyRange, rows: &[RowBuf]) -> Outcome<Option<u64>> {
        self.assert_open();
        if !plan.direct || self.parking.is_some() || rows.is_empty() {
            return Ok(None);
        }
        self.check_complete(plan, rows)?;
        let found = self.client.query_one(&plan.any_there(range), &[]).await;
        let found = found.map_err(|error| {
            self.fail();
            failure(&format!("looking into a range of {}", plan.table), Some(plan), error)
        })?;
        if found.get(0) {
            return Ok(None);
        }
        let copied = self.copy_direct(plan, rows.len(), |copy, row| {
            copy.row((0..plan.columns.len()).map(|place| plan.cell(rows[row].row(), place)));
        });
        copied.await
    }

    fn check_complete(&mut self, plan: &SinkTablePlan, rows: &[RowBuf]) -> Outcome<()> {
        let lacks = |row: &RowBuf| plan.columns.iter().any(|column| row.row().get(column.index).is_absent());
        if !rows.iter().any(lacks) {
            return Ok(());
        }
        self.fail();
        let halt = Halt {
            code: Code::AbsentBase,
            message: format!("a chunk row of table {} lacks a column that was never sent", plan.table),
            facts: vec![],
            hint: format!("lockstep resync {}", plan.source),
        };
        Err(halt.into())
    }

    /// Starts to replace what `range` of the plan's table holds. One range at a time.
    pub async fn begin_range<'a>(&mut self, plan: &'a SinkTablePlan, range: &KeyRange) -> Outcome<RangeLoad<'a>> {
        self.assert_open();
        for border in [&range.after, &range.through].into_iter().flatten() {
            assert_eq!(border.len(), plan.own_key().len(), "a range is over the table's own key");
        }
        self.empty_stage(plan).await.inspect_err(|_| self.fail())?;
        Ok(RangeLoad { plan, range: range.clone(), rows: 0, spared: String::new() })
    }

    /// Adds rows, complete in the wanted columns. No key comes twice.
    pub async fn push_range(&mut self, load: &mut RangeLoad<'_>, rows: &[RowBuf]) -> Outcome<()> {
        let plan = load.plan;
        self.check_complete(plan, rows)?;
        let sql = plan.copy_to_stage(&plan.all(), false);
        self.stages_filled.insert(plan.stage.clone());
        let copied = self
            .copy(&sql, rows.len(), |copy, row| {
                copy.row((0..plan.columns.len()).map(|place| plan.cell(rows[row].row(), place)));
            })
            .await;
        load.rows += rows.len() as u64;
        copied.map(drop).map_err(|error| {
            self.fail();
            failure(&format!("loading rows for {}", plan.table), Some(plan), error)
        })
    }

    /// Makes the range hold exactly the rows pushed. Counts: phantoms as deleted, rows written as inserted.
    ///
    /// `blank` are tables under load of which nothing was loaded yet: rows there that reference a phantom go with it, since
    /// their own ranges are still to be replaced and would otherwise hold the phantom for ever.
    pub async fn end_range(&mut self, load: RangeLoad<'_>, blank: &[TableName]) -> Outcome<Counts> {
        let RangeLoad { plan, range, rows, spared } = load;
        self.written = true;
        let doing = format!("replacing a range of {}", plan.table);
        // Nothing can reference a row that has no key, and nothing is in the way of a mark.
        if !plan.keyless
            && plan.mark.is_none()
            && let Err(error) = self.delete_references(plan, (&range, &spared), blank).await
        {
            self.fail();
            return Err(failure(&doing, Some(plan), error));
        }
        let (delete, insert) = match plan.keyless {
            true => (plan.delete_surplus(), plan.insert_missing()),
            false => (plan.delete_phantoms(&range) + &spared, plan.insert_differing()),
        };
        let deleted = self.client.execute(&delete, &[]).await;
        if deleted.is_ok() && rows > 0 {
            self.make_way(&staged(plan), &[]).await?;
        }
        let inserted = match (&deleted, rows) {
            (Ok(_), 1..) => self.client.execute(&insert, &[]).await,
            _ => Ok(0),
        };
        match deleted.and_then(|deleted| Ok(Counts { deleted, inserted: inserted?, ..Counts::default() })) {
            Ok(counts) => {
                self.paid_range(plan, &range).await?;
                Ok(counts)
            }
            Err(error) => {
                self.fail();
                Err(failure(&doing, Some(plan), error))
            }
        }
    }

    /// Deletes the rows of blank tables that hold phantoms of the range, those at the end of a chain of references first.
    async fn delete_references(
        &self,
        plan: &SinkTablePlan,
        (range, spared): (&KeyRange, &str),
        blank: &[TableName],
    ) -> std::result::Result<(), tokio_postgres::Error> {
        if blank.is_empty() {
            return Ok(());
        }
        let (schemas, tables): (Vec<&str>, Vec<&str>) =
            blank.iter().map(|t| (t.schema.as_str(), t.table.as_str())).unzip();
        let mut references = Vec::new();
        for row in self.client.query(REFERENCES, &[&schemas, &tables, &plan.oid]).await? {
            references.push(Reference {
                child: row.get(0),
                parent: row.get(1),
                table: TableName::new(row.get::<_, String>(2), row.get::<_, String>(3)),
                columns: row.get(4),
                referenced: row.get(5),
            });
        }
        let mut statements = Vec::new();
        follow(plan.oid, &references, &mut Vec::new(), &mut statements);
        for (joined, table) in statements {
            let phantoms = plan.phantoms(range) + spared;
            let sql = format!(
                "DELETE FROM {table} USING {} AS t{} WHERE {} AND {phantoms}",
                plan.table.quoted(),
                joined.0,
                joined.1
            );
            self.client.batch_execute(&sql).await?;
        }
        Ok(())
    }
}

/// The rows of a chunk, all of them staged.
fn staged(plan: &SinkTablePlan) -> NewRows<'_> {
    NewRows { plan, rows: Rows::Stage, present: plan.all(), has_old: false, upsert: true }
}

/// Foreign keys whose child is one of the tables, and whose parent is one of them or the table with the OID.
const REFERENCES: &str = "
WITH w AS (SELECT c.oid, n.nspname, c.relname FROM unnest($1::text[], $2::text[]) AS w(schema, tab)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.tab)
SELECT k.conrelid, k.confrelid, w.nspname::text, w.relname::text,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS x(num, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.num ORDER BY x.place),
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS x(num, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = x.num ORDER BY x.place)
  FROM pg_catalog.pg_constraint k JOIN w ON w.oid = k.conrelid
 WHERE k.contype = 'f' AND k.conrelid <> k.confrelid AND (k.confrelid = $3::oid OR k.confrelid IN (SELECT oid FROM w))
 ORDER BY k.oid";

/// One foreign key between two tables of the sink.
struct Reference {
    child: u32,
    parent: u32,
    table: TableName,
    columns: Vec<String>,
    referenced: Vec<String>,
}

/// The phantom's table is `t`; those along a chain of references are `c1`, `c2`, …
fn alias(place: usize) -> String {
    if place == 0 { "t".to_owned() } else { format!("c{place}") }
}

/// Statements' middles for every chain of references that ends at `parent`, the far ends first: what is joined between, and
/// how; and the table to delete from.
fn follow<'a>(
    parent: u32,
    all: &'a [Reference],
    chain: &mut Vec<&'a Reference>,
    out: &mut Vec<((String, String), String)>,
) {
    for reference in all.iter().filter(|reference| reference.parent == parent) {
        // A circle of references has no end; its rows are found as far as the chain does not meet itself.
        if chain.iter().any(|before| before.child == reference.child) {
            continue;
        }
        chain.push(reference);
        follow(reference.child, all, chain, out);
        let joins = chain.iter().enumerate().flat_map(|(i, link)| {
            let pairs = link.columns.iter().zip(&link.referenced);
            pairs.map(move |(child, parent)| {
                format!("{}.{} = {}.{}", alias(i + 1), quote_identifier(child), alias(i), quote_identifier(parent))
            })
        });
        let joins = joins.collect::<Vec<_>>().join(" AND ");
        let between = chain[..chain.len() - 1].iter().enumerate();
        let between: String =
            between.map(|(i, link)| format!(", {} AS {}", link.table.quoted(), alias(i + 1))).collect();
        out.push(((between, joins), format!("{} AS {}", reference.table.quoted(), alias(chain.len()))));
        chain.pop();
    }
}

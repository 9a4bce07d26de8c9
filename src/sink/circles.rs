//! Which tables reference each other in a circle: their foreign keys hold only once all their rows are there.

use std::collections::{BTreeSet, HashMap};

use super::Outcome;
use super::postgres::PostgresSink;
use super::refusal::failure;
use super::sql::SinkTablePlan;
use crate::relation::TableName;

/// Pairs of tables that reference each other, be it by way of others; a table that references itself is a pair with itself.
const CIRCLES: &str = "
WITH RECURSIVE w AS (SELECT c.oid, n.nspname::text AS schema, c.relname::text AS tab FROM unnest($1::text[], $2::text[]) AS w(schema, tab)
    JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.tab),
edges AS (SELECT DISTINCT k.conrelid AS child, k.confrelid AS parent FROM pg_catalog.pg_constraint k
    WHERE k.contype = 'f' AND k.conrelid IN (SELECT oid FROM w) AND k.confrelid IN (SELECT oid FROM w)),
reach AS (SELECT child, parent FROM edges UNION SELECT r.child, e.parent FROM reach r JOIN edges e ON e.child = r.parent)
SELECT a.schema, a.tab, b.schema, b.tab FROM reach there
  JOIN reach back ON back.child = there.parent AND back.parent = there.child
  JOIN w a ON a.oid = there.child JOIN w b ON b.oid = there.parent";

/// Each table that stands in a circle, with all that stand in one with it, itself among them.
pub type Circles = HashMap<TableName, BTreeSet<TableName>>;

impl PostgresSink {
    /// The circles among these tables of the sink.
    pub async fn circles(&self, tables: &[TableName]) -> Outcome<Circles> {
        let (schemas, names): (Vec<&str>, Vec<&str>) =
            tables.iter().map(|table| (table.schema.as_str(), table.table.as_str())).unzip();
        let rows = self.client.query(CIRCLES, &[&schemas, &names]).await;
        let rows = rows.map_err(|error| failure("reading the sink's foreign keys", None, error))?;
        let mut circles = Circles::new();
        for row in rows {
            let table = |at: usize| TableName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1));
            circles.entry(table(0)).or_default().insert(table(2));
        }
        Ok(circles)
    }
}

/// Tables other than these that reference one of them.
const REFERENCED: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint
    WHERE contype = 'f' AND confrelid = ANY ($1::oid[]) AND conrelid <> ALL ($1::oid[]))";

impl PostgresSink {
    /// Empties tables while a circle is half there: TRUNCATE is refused for a table whose checks are pending, and made now they would
    /// fail. So their rows are deleted, all by one statement, at whose end their foreign keys hold whatever they do about a
    /// DELETE. Where a table that stays references one of them it is to refuse, as ever.
    pub async fn truncate_half_loaded(&mut self, plans: &[&SinkTablePlan]) -> Outcome<()> {
        self.assert_open();
        let oids: Vec<u32> = plans.iter().map(|plan| plan.oid).collect();
        let referenced = self.client.query_one(REFERENCED, &[&oids]).await.map_err(|error| {
            self.fail();
            failure("reading the sink's foreign keys", None, error)
        })?;
        if referenced.get(0) {
            return self.truncate(plans).await;
        }
        self.delete_all_ours(plans).await
    }
}

//! Keys whose order no index of the source serves, such as a text under another collation than ranges have: each chunk would
//! sort the table. Their ranges are planned once instead, by one pass over the sorted keys.
//!
//! As few ranges as bytes allow, because each is a scan of the table; as few as [`RANGES_MAX`] where rows are narrow. Who plans
//! holds the table's lock and snapshot for the pass.

use tokio_postgres::{SimpleQueryMessage, Transaction};

use super::failure::failed;
use crate::error::Result;
use crate::key::{KeyColumn, order_by};
use crate::relation::{TableName, quote_literal};

/// Ranges of a table whose bytes need no more of them.
const RANGES_MAX: usize = 64;

/// What ranges are planned for.
pub(super) struct Unserved<'a> {
    pub name: &'a TableName,
    pub columns: &'a [KeyColumn],
    /// Behind FROM.
    pub from: &'a str,
    /// Behind WHERE.
    pub condition: &'a str,
}

impl Unserved<'_> {
    /// Whether an index serves the order after all: whether Postgres would sort if it could do anything else.
    pub(super) async fn is_served(&self, transaction: &Transaction<'_>) -> Result<bool> {
        let order = order_by(self.columns);
        let set =
            |to| ["seqscan", "bitmapscan", "sort"].map(|what| format!("SET LOCAL enable_{what} = {to}")).join("; ");
        let sql = format!(
            "{}; EXPLAIN (COSTS OFF) SELECT FROM {} WHERE {} ORDER BY {order} LIMIT 1; {}",
            set("off"),
            self.from,
            self.condition,
            set("DEFAULT"),
        );
        let messages = transaction.simple_query(&sql).await;
        let messages = messages.map_err(|e| failed(format!("planning ranges of {}", self.name), e))?;
        let sorts = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).is_some_and(is_sort),
            _ => false,
        };
        Ok(!messages.iter().any(sorts))
    }

    /// The keys that ranges end with, but for the last, of so many rows each as `rows` or, of many, more, and of `bytes` at most
    /// as far as rows are alike. `estimate` is that of the table's rows.
    pub(super) fn borders(&self, (rows, bytes): (usize, usize), estimate: Option<u64>) -> String {
        let numbered = |i: usize| format!("k{i}");
        let names = (0..self.columns.len()).map(numbered).collect::<Vec<_>>().join(", ");
        let list = self.columns.iter().enumerate().map(|(i, column)| format!("{} AS k{i}", column.sql));
        let (list, order) = (list.collect::<Vec<_>>().join(", "), order_by(self.columns));
        let (from, condition, table) = (self.from, self.condition, quote_literal(&self.name.quoted()));
        let estimate = estimate.unwrap_or(0);
        // Sizes of partitions with what they hold out of line.
        let size = format!(
            "greatest(1, coalesce((SELECT sum(pg_catalog.pg_table_size(relid)) FROM pg_catalog.pg_partition_tree({table}::regclass)),
                 pg_catalog.pg_table_size({table}::regclass)))"
        );
        format!(
            "COPY (SELECT {names} FROM (
                 SELECT {list}, row_number() OVER (ORDER BY {order}) AS n, count(*) OVER () AS c FROM {from} WHERE {condition}) AS s
             WHERE n < c AND n % greatest(1, least({bytes} * greatest(c, {estimate}) / {size}, greatest({rows}, (c + {RANGES_MAX} - 1) / {RANGES_MAX})))::int8 = 0
             ORDER BY n) TO STDOUT"
        )
    }
}

/// A line of a plan. That an index serves the first columns is as good.
fn is_sort(line: &str) -> bool {
    line.trim_start().trim_start_matches("->").trim() == "Sort"
}

/// The statement that makes such an index, if there can be one.
pub fn advice(name: &TableName, columns: &[KeyColumn]) -> Option<String> {
    let columns = columns.iter().map(KeyColumn::indexed).collect::<Option<Vec<_>>>()?;
    Some(format!("CREATE INDEX ON {} ({})", name.quoted(), columns.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyOrder;

    #[test]
    fn a_plan_that_sorts_all_is_told_from_one_that_sorts_the_rest() {
        assert!(["Sort", "  ->  Sort", "->  Sort "].into_iter().all(is_sort));
        assert!(
            !["  Sort Key: a", "->  Incremental Sort", "Limit", "->  Index Scan using \"Sort\" on t"]
                .into_iter()
                .any(is_sort)
        );
    }

    #[test]
    fn an_index_is_named_where_there_can_be_one() {
        let name = TableName::new("public", "t");
        let column = |name, oid, type_name| KeyColumn::new(name, KeyOrder::of(oid), type_name);
        let of = |columns: &[KeyColumn]| advice(&name, columns);
        let both = [column("a", 23, "int4"), column("k", 25, "text")];
        let text = r#"CREATE INDEX ON "public"."t" ("a", ("k"::pg_catalog.text COLLATE pg_catalog."C"))"#;
        assert_eq!(of(&both).as_deref(), Some(text));
        // What prints it is not immutable.
        assert_eq!(of(&[column("e", 70_000, "public.colour")]), None);
        assert_eq!(of(&[column("k", 25, "text").in_encoding("EUC_JP")]), None);
    }
}

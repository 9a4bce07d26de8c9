//! Tables that patterns may mean, as the catalog has them now: one query, no lock.
//!
//! Only what can be followed at all is given: permanent tables and partitioned ones. Views, foreign, unlogged and temporary
//! tables are never meant by a pattern.

use tokio_postgres::GenericClient;
use tokio_postgres::error::SqlState;

use super::failure::{failed, unreadable};
use crate::error::Result;
use crate::relation::TableName;

/// A table whose name was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedTable {
    pub name: TableName,
    pub oid: u32,
    /// Of a partition: every partitioned table above it.
    pub ancestors: Vec<u32>,
    /// It is in the publication.
    pub published: bool,
}

/// Tables whose schema and name are LIKE one of the pairs, and those of these names; in order of name.
pub async fn named_tables(
    client: &(impl GenericClient + Sync),
    publication: &str,
    like: &[(String, String)],
    names: &[TableName],
) -> Result<Vec<NamedTable>> {
    const SQL: &str = r#"
        SELECT n.nspname::text, c.relname::text, c.oid,
               CASE WHEN c.relispartition THEN ARRAY(
                 SELECT a.relid::oid FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid) ELSE '{}'::oid[] END,
               EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                 WHERE p.pubname = $5 AND r.prrelid = c.oid)
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
          AND (EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS w (nsp, rel)
                 WHERE n.nspname::text LIKE w.nsp AND c.relname::text LIKE w.rel)
               OR EXISTS (SELECT FROM unnest($3::text[], $4::text[]) AS w (nsp, rel)
                 WHERE n.nspname = w.nsp AND c.relname = w.rel))
        ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C""#;
    let (schemas, tables): (Vec<&str>, Vec<&str>) = like.iter().map(|(s, t)| (s.as_str(), t.as_str())).unzip();
    let (of, called): (Vec<&str>, Vec<&str>) = names.iter().map(|t| (t.schema.as_str(), t.table.as_str())).unzip();
    let doing = "looking for tables by their names";
    let rows = client.query(SQL, &[&schemas, &tables, &of, &called, &publication]).await;
    rows.map_err(|e| failed(doing, e))?
        .iter()
        .map(|row| {
            Ok(NamedTable {
                name: TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?),
                oid: row.try_get(2)?,
                ancestors: row.try_get(3)?,
                published: row.try_get(4)?,
            })
        })
        .collect::<Result<_, tokio_postgres::Error>>()
        .map_err(|e| unreadable("pg_class", e))
}

/// Those of the names that a regular expression of the server's matches as a whole; the inner error is why it is none.
pub async fn matching(
    client: &(impl GenericClient + Sync),
    names: &[String],
    expression: &str,
) -> Result<std::result::Result<Vec<String>, String>> {
    const SQL: &str =
        "SELECT n FROM pg_catalog.unnest($1::pg_catalog.text[]) AS w (n) WHERE n ~ ('^(?:' || $2 || ')$')";
    match client.query(SQL, &[&names, &expression]).await {
        Ok(rows) => {
            let read = |row: &tokio_postgres::Row| row.try_get(0);
            rows.iter().map(read).collect::<Result<_, _>>().map(Ok).map_err(|e| unreadable("a name", e))
        }
        Err(error) => match error.as_db_error() {
            Some(refusal) if *refusal.code() == SqlState::INVALID_REGULAR_EXPRESSION => {
                Ok(Err(refusal.message().to_owned()))
            }
            _ => Err(failed("comparing names with a regular expression", error)),
        },
    }
}

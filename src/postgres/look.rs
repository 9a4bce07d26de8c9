//! Looking at the catalog: one query, one instant, all tables asked for.
//!
//! Takes no lock on any of them, so a table that is being altered does not hold up whoever looks; what is not
//! committed yet is not seen. What a look is for: [`crate::look`].

use tokio_postgres::GenericClient;

use super::failure::{failed, unreadable};
use crate::error::Result;
use crate::look::Look;
use crate::relation::TableName;

/// What a column's type is made of, at any depth, is followed where somebody made it: types that the server came with have OIDs
/// below 16384 and are made of their own kind alone. The key is that of [`super::row_key::key_of`]; columns are those that are published.
const SQL: &str = "
    SELECT w.ord, jsonb_build_object('oid', c.oid::int8, 'file', c.relfilenode::int8,
      'columns', coalesce((
        SELECT jsonb_agg(jsonb_build_object('number', a.attnum, 'name', a.attname, 'type_oid', a.atttypid::int8,
                                            'typmod', a.atttypmod, 'row', a.xmin::text) ORDER BY a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '[]'),
      'last', c.relnatts,
      'dropped', coalesce((
        SELECT jsonb_agg(a.attnum ORDER BY a.attnum)
        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attisdropped), '[]'),
      'key', coalesce((
        SELECT jsonb_agg(k.attnum ORDER BY k.ord)
        FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
        WHERE i.indrelid = c.oid AND i.indisvalid AND k.ord <= i.indnkeyatts
          AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'f' THEN i.indisprimary AND i.indimmediate
                                  ELSE i.indisprimary END), '[]'),
      'leaves', coalesce((
        WITH RECURSIVE below AS (
          SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = c.oid AND NOT i.inhdetachpending
          UNION ALL
          SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.inhrelid AND NOT i.inhdetachpending)
        SELECT jsonb_agg(jsonb_build_object('oid', l.oid::int8, 'file', l.relfilenode::int8) ORDER BY l.oid)
        FROM below b JOIN pg_class l ON l.oid = b.inhrelid
        WHERE c.relkind = 'p' AND l.relkind <> 'p'), '[]'),
      'published', (
        SELECT format('%s:%s %s:%s', p.oid, p.xmin, r.oid, r.xmin)
        FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
        WHERE p.pubname = $3 AND r.prrelid = c.oid),
      'labels', coalesce((
        SELECT jsonb_agg(jsonb_build_array(e.oid::int8, e.enumlabel) ORDER BY e.oid)
        FROM pg_enum e WHERE e.enumtypid = ANY (made.types)), '[]'),
      'composites', coalesce((
        SELECT jsonb_agg(jsonb_build_object('oid', t.typrelid::int8, 'attributes', coalesce((
          SELECT jsonb_agg(jsonb_build_array(a.attnum, a.atttypid::int8) ORDER BY a.attnum)
          FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped), '[]')) ORDER BY t.typrelid)
        FROM pg_type t WHERE t.oid = ANY (made.types) AND t.typrelid <> 0), '[]')
    )::text
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (nsp, rel, ord)
    JOIN pg_namespace n ON n.nspname = w.nsp
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
    CROSS JOIN LATERAL (
      WITH RECURSIVE of (type) AS (
        SELECT a.atttypid FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.atttypid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        UNION
        SELECT part.type FROM of JOIN pg_type t ON t.oid = of.type, LATERAL (
          SELECT t.typelem UNION ALL SELECT t.typbasetype
          UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
          UNION ALL SELECT a.atttypid FROM pg_attribute a
            WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS part (type)
        WHERE part.type >= 16384)
      SELECT array_agg(of.type) AS types FROM of) AS made";

/// A look at each table, in the order asked for; `None` where there is no relation of that name.
pub async fn looks(
    client: &(impl GenericClient + Sync),
    publication: &str,
    tables: &[TableName],
) -> Result<Vec<Option<Look>>> {
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.table.as_str()).collect();
    let doing = "looking at the source's tables";
    let rows = client.query(SQL, &[&schemas, &names, &publication]).await.map_err(|e| failed(doing, e))?;
    let mut looks: Vec<Option<Look>> = tables.iter().map(|_| None).collect();
    for row in &rows {
        let (ordinal, text): (i64, String) =
            row.try_get(0).and_then(|ordinal| Ok((ordinal, row.try_get(1)?))).map_err(|e| unreadable("tables", e))?;
        let at = usize::try_from(ordinal - 1).ok().filter(|&at| at < looks.len());
        let at = at.ok_or_else(|| unreadable("tables", format!("row {ordinal} was not asked for")))?;
        looks[at] = Some(serde_json::from_str(&text).map_err(|e| unreadable("tables", e))?);
    }
    Ok(looks)
}

/// What a relation is called now, if it still exists.
pub async fn name_of(client: &(impl GenericClient + Sync), oid: u32) -> Result<Option<TableName>> {
    const SQL: &str = "SELECT n.nspname::text, c.relname::text FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let row = client.query_opt(SQL, &[&oid]).await.map_err(|e| failed("looking for a table's name", e))?;
    row.map(|row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)))
        .transpose()
        .map_err(|e: tokio_postgres::Error| unreadable("pg_class", e))
}

/// Whether none of the relations holds a row that anybody could have put there before now: their files are empty. One
/// that is locked counts as full, which costs a reading and never a row.
pub async fn are_empty(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<bool> {
    const SQL: &str = "SELECT coalesce(sum(pg_relation_size(o)), 0) = 0 FROM unnest($1::oid[]) AS o";
    let doing = "looking at new partitions";
    client.batch_execute("SET lock_timeout = '1s'").await.map_err(|e| failed(doing, e))?;
    let found = client.query_one(SQL, &[&oids]).await;
    // Whoever uses the session next waits for locks as long as it always did.
    client.batch_execute("RESET lock_timeout").await.map_err(|e| failed(doing, e))?;
    match found {
        Ok(row) => row.try_get(0).map_err(|e| unreadable("partitions", e)),
        Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) => Ok(false),
        Err(e) => Err(failed(doing, e)),
    }
}

//! What the sink's own catalog says about the tables that are written: read whole, once per plan, judged elsewhere.
//!
//! Facts only: no opinion on what fits ([`super::fit`]), no SQL for rows ([`super::sql`]).

use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::stored::Stored;
use crate::error::Result;
use crate::relation::{TableName, quote_identifier, type_names};
use crate::session;

/// A table of the sink that exists.
#[derive(Clone, Debug)]
pub struct TableFacts {
    pub oid: u32,
    /// `pg_class.relkind`: only r and p hold rows that we may write.
    pub kind: String,
    /// The database's, as `server_encoding` names it.
    pub encoding: String,
    /// Emptied by a crash of the server, while the progress row stays.
    pub unlogged: bool,
    pub columns: Vec<ColumnFacts>,
    /// Composite types that columns contain, of whatever table.
    pub composites: Vec<CompositeFacts>,
    /// Unique indexes over plain columns, without a predicate, valid; the primary key first.
    pub uniques: Vec<UniqueFacts>,
    /// Foreign keys that this table has or that reference it.
    pub foreign_keys: Vec<ForeignKey>,
    /// Every constraint with its definition, for hints.
    pub constraints: Vec<ConstraintFacts>,
    /// Enabled triggers of the table's owner.
    pub triggers: Vec<String>,
    /// The table has rules, which rewrite statements and which COPY knows nothing of.
    pub rules: bool,
    /// Row security applies to our role, so that statements fail.
    pub row_security: bool,
    /// Rights that our role lacks: `USAGE ON SCHEMA …` or `SELECT`, `INSERT` … on the table.
    pub rights_missing: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnFacts {
    pub name: String,
    /// Declared type, as [`crate::relation::Column::type_name`].
    pub declared: String,
    /// The type below all domains, its modifier, and how SQL names it without the modifier.
    pub base: String,
    pub base_oid: u32,
    pub typmod: i32,
    pub base_sql: String,
    /// What its values are in the end.
    pub stored: Stored,
    /// How SQL names the declared type, with its modifier.
    pub declared_sql: String,
    /// A call of the base type's input function with `%` in the place of its cstring, where a cast of text would call another
    /// function: that of regclass, for one, does not know the `-` that stands for none.
    pub input: Option<String>,
    pub not_null: bool,
    pub has_default: bool,
    pub identity_always: bool,
    pub generated: bool,
    /// False for a collation that calls different texts equal.
    pub deterministic: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompositeFacts {
    /// As [`crate::relation::Column::type_name`].
    pub name: String,
    /// In the order of their values.
    pub attributes: Vec<ColumnFacts>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueFacts {
    pub index: String,
    pub columns: Vec<String>,
    /// The index's own equality for each column, as `OPERATOR(schema.=)`: with search_path pinned to pg_catalog, a plain `=`
    /// misses operators of extensions and silently compares something else.
    pub equals: Vec<String>,
    /// False for a deferrable constraint.
    pub immediate: bool,
    /// Its columns can't be NULL while it is there.
    pub primary: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub child: u32,
    pub parent: u32,
    pub deferrable: bool,
    /// `pg_constraint.confdeltype`: a no action, r restrict, c cascade, n set null, d set default.
    pub on_delete: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConstraintFacts {
    pub name: String,
    pub definition: String,
    pub deferrable: bool,
}

const TABLES: &str = "
SELECT w.ordinal, c.oid, c.relkind::text, pg_catalog.row_security_active(c.oid),
       pg_catalog.array_remove(ARRAY[
           CASE WHEN NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                THEN 'USAGE ON SCHEMA ' || pg_catalog.quote_ident(n.nspname) END,
           CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
           CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
           CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'UPDATE') THEN 'UPDATE' END,
           CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'DELETE') THEN 'DELETE' END,
           CASE WHEN NOT pg_catalog.has_table_privilege(c.oid, 'TRUNCATE') THEN 'TRUNCATE' END], NULL),
       ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger t
              WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' ORDER BY 1),
       c.relpersistence = 'u', pg_catalog.current_setting('server_encoding'), c.relhasrules
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(schema, tab, ordinal)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.tab";

/// A domain's columns carry no modifier of their own; the first one below that has one holds. `base` is the type below all
/// domains, `core` what is below its arrays too, but for int2vector and oidvector, which are no arrays to us.
const COLUMNS: &str = "
WITH RECURSIVE base AS (
    SELECT a.attrelid, a.attnum, a.atttypid AS type, a.atttypmod AS typmod
      FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT b.attrelid, b.attnum, t.typbasetype, CASE WHEN b.typmod = -1 THEN t.typtypmod ELSE b.typmod END
      FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype = 'd'),
core AS (
    SELECT attrelid, attnum, type, typmod, 0 AS arrays FROM base JOIN pg_catalog.pg_type t ON t.oid = type AND t.typtype <> 'd'
    UNION ALL
    SELECT c.attrelid, c.attnum, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END,
           CASE WHEN t.typtype = 'd' AND c.typmod = -1 THEN t.typtypmod ELSE c.typmod END,
           c.arrays + CASE t.typtype WHEN 'd' THEN 0 ELSE 1 END
      FROM core c JOIN pg_catalog.pg_type t ON t.oid = c.type
     WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typlen = -1 AND t.typelem <> 0 AND t.oid NOT IN (22, 30))
SELECT a.attrelid, a.attname::text,
       dn.nspname::text, d.typname::text,
       t.oid, b.typmod, tn.nspname::text, t.typname::text,
       a.attnotnull OR EXISTS (SELECT FROM pg_catalog.pg_type x WHERE x.oid = a.atttypid AND x.typnotnull),
       a.atthasdef OR a.attidentity <> '' OR d.typdefault IS NOT NULL,
       a.attidentity = 'a', a.attgenerated <> '', coalesce(l.collisdeterministic, true),
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       (SELECT pg_catalog.quote_ident(pn.nspname) || '.' || pg_catalog.quote_ident(p.proname) || CASE p.pronargs WHEN 1 THEN '(%)'
               ELSE '(%, ' || CASE t.typelem WHEN 0 THEN t.oid ELSE t.typelem END || '::pg_catalog.oid, -1)' END
          FROM pg_catalog.pg_cast k JOIN pg_catalog.pg_proc p ON p.oid = t.typinput
          JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
         WHERE k.castsource = 'pg_catalog.text'::pg_catalog.regtype AND k.casttarget = t.oid AND k.castmethod = 'f'),
       sn.nspname::text, s.typname::text, c.typmod, c.arrays, s.typtype,
       ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = s.oid ORDER BY e.enumsortorder)
  FROM base b
  JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd'
  JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = b.attrelid AND a.attnum = b.attnum
  JOIN pg_catalog.pg_type d ON d.oid = a.atttypid
  JOIN pg_catalog.pg_namespace dn ON dn.oid = d.typnamespace
  JOIN core c ON c.attrelid = b.attrelid AND c.attnum = b.attnum
  JOIN pg_catalog.pg_type s ON s.oid = c.type AND s.typtype <> 'd'
       AND NOT (s.typcategory = 'A' AND s.typlen = -1 AND s.typelem <> 0 AND s.oid NOT IN (22, 30))
  JOIN pg_catalog.pg_namespace sn ON sn.oid = s.typnamespace
  LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
 ORDER BY a.attrelid, a.attnum";

/// Composite types inside of the tables' columns, at any depth, by the relations that hold their attributes.
const COMPOSITES: &str = "
WITH RECURSIVE inside (oid) AS (
    SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = ANY ($1::oid[]) AND attnum > 0 AND NOT attisdropped
    UNION
    SELECT part.oid FROM inside JOIN pg_catalog.pg_type t USING (oid), LATERAL (
        SELECT t.typelem WHERE t.typcategory = 'A' AND t.typlen = -1
        UNION ALL SELECT t.typbasetype
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS part (oid)
    WHERE part.oid <> 0)
SELECT t.typrelid, n.nspname::text, t.typname::text
  FROM inside JOIN pg_catalog.pg_type t USING (oid) JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
 WHERE t.typtype = 'c' ORDER BY t.oid";

const UNIQUES: &str = "
SELECT i.indrelid, c.relname::text, i.indimmediate,
       pg_catalog.array_agg(a.attname::text ORDER BY k.ordinal),
       pg_catalog.array_agg(e.nspname::text ORDER BY k.ordinal),
       pg_catalog.array_agg(o.oprname::text ORDER BY k.ordinal), i.indisprimary
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
 CROSS JOIN LATERAL unnest(i.indkey, i.indclass) WITH ORDINALITY AS k(attnum, opclass, ordinal)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_catalog.pg_opclass s ON s.oid = k.opclass
  JOIN pg_catalog.pg_amop m ON m.amopfamily = s.opcfamily AND m.amoplefttype = s.opcintype
       AND m.amoprighttype = s.opcintype AND m.amopstrategy = 3
  JOIN pg_catalog.pg_operator o ON o.oid = m.amopopr
  JOIN pg_catalog.pg_namespace e ON e.oid = o.oprnamespace
 WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
   AND k.ordinal <= i.indnkeyatts
 GROUP BY i.indrelid, c.relname, i.indimmediate, i.indisprimary
 ORDER BY i.indrelid, i.indisprimary DESC, c.relname";

const FOREIGN_KEYS: &str = "
SELECT conname::text, conrelid, confrelid, condeferrable, confdeltype::text
  FROM pg_catalog.pg_constraint
 WHERE contype = 'f' AND (conrelid = ANY ($1::oid[]) OR confrelid = ANY ($1::oid[]))
 ORDER BY oid";

const CONSTRAINTS: &str = "
SELECT conrelid, conname::text, pg_catalog.pg_get_constraintdef(oid), condeferrable
  FROM pg_catalog.pg_constraint
 WHERE conrelid = ANY ($1::oid[]) AND contype IN ('p', 'u', 'x', 'c', 'f')
 ORDER BY conrelid, conname";

/// Facts about `tables`, in their order; `None` for one that does not exist (or whose schema doesn't).
pub async fn read(client: &Client, tables: &[&TableName]) -> Result<Vec<Option<TableFacts>>> {
    let failed = |error| session::classify("reading the sink's catalog", error);
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.table.as_str()).collect();
    let mut facts: Vec<Option<TableFacts>> = vec![None; tables.len()];
    for row in client.query(TABLES, &[&schemas, &names]).await.map_err(failed)? {
        let ordinal = usize::try_from(row.get::<_, i64>(0)).expect("ordinals count from 1");
        facts[ordinal - 1] = Some(TableFacts {
            oid: row.get(1),
            kind: row.get(2),
            row_security: row.get(3),
            rights_missing: row.get(4),
            triggers: row.get(5),
            unlogged: row.get(6),
            encoding: row.get(7),
            rules: row.get(8),
            columns: Vec::new(),
            composites: Vec::new(),
            uniques: Vec::new(),
            foreign_keys: Vec::new(),
            constraints: Vec::new(),
        });
    }
    let oids: Vec<u32> = facts.iter().flatten().map(|table| table.oid).collect();
    let params: [&(dyn ToSql + Sync); 1] = [&oids];
    let (columns, uniques, foreign_keys, constraints) = tokio::try_join!(
        client.query(COLUMNS, &params),
        client.query(UNIQUES, &params),
        client.query(FOREIGN_KEYS, &params),
        client.query(CONSTRAINTS, &params),
    )
    .map_err(failed)?;
    let composites = composites(client, &oids).await.map_err(failed)?;
    for table in facts.iter_mut().flatten() {
        table.composites.clone_from(&composites);
        let of_table = |row: &&tokio_postgres::Row| row.get::<_, u32>(0) == table.oid;
        table.columns = columns.iter().filter(of_table).map(column).collect();
        table.uniques = uniques.iter().filter(of_table).map(unique).collect();
        table.constraints = constraints.iter().filter(of_table).map(constraint).collect();
        let touching = |key: &ForeignKey| key.child == table.oid || key.parent == table.oid;
        table.foreign_keys = foreign_keys.iter().map(foreign_key).filter(touching).collect();
    }
    Ok(facts)
}

async fn composites(client: &Client, tables: &[u32]) -> Result<Vec<CompositeFacts>, tokio_postgres::Error> {
    let found = client.query(COMPOSITES, &[&tables]).await?;
    let relations: Vec<u32> = found.iter().map(|row| row.get(0)).collect();
    let attributes = if relations.is_empty() { Vec::new() } else { client.query(COLUMNS, &[&relations]).await? };
    let composite = |(row, oid): (&tokio_postgres::Row, &u32)| CompositeFacts {
        name: type_names::join(row.get(1), row.get(2)),
        attributes: attributes.iter().filter(|row| row.get::<_, u32>(0) == *oid).map(column).collect(),
    };
    Ok(found.iter().zip(&relations).map(composite).collect())
}

fn column(row: &tokio_postgres::Row) -> ColumnFacts {
    let (schema, name): (String, String) = (row.get(6), row.get(7));
    ColumnFacts {
        name: row.get(1),
        declared: type_names::join(row.get(2), row.get(3)),
        base: type_names::join(&schema, &name),
        base_oid: row.get(4),
        typmod: row.get(5),
        base_sql: format!("{}.{}", quote_identifier(&schema), quote_identifier(&name)),
        not_null: row.get(8),
        has_default: row.get(9),
        identity_always: row.get(10),
        generated: row.get(11),
        deterministic: row.get(12),
        declared_sql: row.get(13),
        input: row.get(14),
        stored: Stored {
            name: type_names::join(row.get(15), row.get(16)),
            typmod: row.get(17),
            arrays: u32::try_from(row.get::<_, i32>(18)).expect("arrays are counted from 0"),
            kind: char::from(row.get::<_, i8>(19).cast_unsigned()),
            labels: row.get(20),
        },
    }
}

fn unique(row: &tokio_postgres::Row) -> UniqueFacts {
    let (schemas, operators): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
    // Operator names need no quotes: their characters are a closed list.
    let equals = schemas.iter().zip(&operators).map(|(s, o)| format!("OPERATOR({}.{o})", quote_identifier(s)));
    let equals = equals.collect();
    UniqueFacts { index: row.get(1), immediate: row.get(2), columns: row.get(3), equals, primary: row.get(6) }
}

fn foreign_key(row: &tokio_postgres::Row) -> ForeignKey {
    ForeignKey {
        name: row.get(0),
        child: row.get(1),
        parent: row.get(2),
        deferrable: row.get(3),
        on_delete: row.get(4),
    }
}

fn constraint(row: &tokio_postgres::Row) -> ConstraintFacts {
    ConstraintFacts { name: row.get(1), definition: row.get(2), deferrable: row.get(3) }
}

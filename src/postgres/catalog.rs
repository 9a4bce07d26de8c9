//! Facts from the source's catalog: the server, its tables, and the relation versions that follow from them.
//!
//! Everything here is read with plain queries and no side effects, and works inside the transaction that a chunk is read in
//! (then the facts are those of its snapshot). What the facts mean for a pipeline is [`super::preflight`]'s.
//!
//! A relation version can be built two ways: from the catalog alone (a chunk, a first start) and from a RELATION message of
//! the stream, which is older than the catalog but true for the rows behind it. When nothing changed in between both give
//! the same fingerprint; tests hold that.
//!
//! Invariants: columns are those that pgoutput publishes (not dropped, not generated) in attnum order; a key is in the order
//! of its index; names of types are resolved by OID, because a RELATION message has no names.
//!
//! Deliberately not here: which columns are the key (`row_key`), watching for DDL, and the right `exact` of a type (the codec's,
//! handed in).

use std::collections::HashMap;

use tokio_postgres::{GenericClient, Row};

use super::failure::{failed, unreadable};
use super::row_key::{identity_finding, row_key_of, streamed_key};
use super::types::{self, column_default, type_name};
use crate::error::Result;
use crate::relation::{
    Column, ColumnDefault, Composite, Fingerprint, Format, Modes, Relation, TableName, TypeKind, TypeName, composites,
    quote_identifier,
};

/// The server and the role that we are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceFacts {
    /// `server_version_num`: 170010 is 17.10.
    pub version: i32,
    pub database: String,
    pub role: String,
    pub superuser: bool,
    /// May use replication slots.
    pub replication: bool,
    /// May make a publication in this database.
    pub may_create: bool,
    pub in_recovery: bool,
    pub wal_level: String,
    /// The database's own encoding.
    pub encoding: String,
    pub max_replication_slots: i64,
    pub replication_slots: i64,
    /// As `SHOW` prints it; `-1` is no limit.
    pub max_slot_wal_keep_size: String,
    /// `None` before Postgres 17.
    pub synchronized_standby_slots: Option<String>,
}

/// Reads what there is to know about the server in one query.
pub async fn source_facts(client: &(impl GenericClient + Sync)) -> Result<SourceFacts> {
    // Amazon's RDS grants replication through membership in rds_replication, not by the role's attribute.
    const SQL: &str = "
        SELECT current_setting('server_version_num')::int4, current_database()::text, current_user::text, r.rolsuper,
               r.rolsuper OR r.rolreplication
                 OR coalesce(pg_has_role(to_regrole('rds_replication')::oid, 'USAGE'), false),
               has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery(), current_setting('wal_level'),
               current_setting('server_encoding'), current_setting('max_replication_slots')::int8,
               (SELECT count(*) FROM pg_replication_slots), current_setting('max_slot_wal_keep_size'),
               current_setting('synchronized_standby_slots', true)
        FROM pg_roles r WHERE r.rolname = current_user";
    let doing = "reading the source's settings";
    let row = client.query_one(SQL, &[]).await.map_err(|e| failed(doing, e))?;
    let read = || -> Result<SourceFacts, tokio_postgres::Error> {
        Ok(SourceFacts {
            version: row.try_get(0)?,
            database: row.try_get(1)?,
            role: row.try_get(2)?,
            superuser: row.try_get(3)?,
            replication: row.try_get(4)?,
            may_create: row.try_get(5)?,
            in_recovery: row.try_get(6)?,
            wal_level: row.try_get(7)?,
            encoding: row.try_get(8)?,
            max_replication_slots: row.try_get(9)?,
            replication_slots: row.try_get(10)?,
            max_slot_wal_keep_size: row.try_get(11)?,
            synchronized_standby_slots: row.try_get(12)?,
        })
    };
    read().map_err(|e| unreadable("settings", e))
}

/// `pg_class.relkind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Table,
    Partitioned,
    View,
    MaterializedView,
    Foreign,
    /// Sequences, indexes, composite types, toast tables.
    Other,
}

impl Kind {
    fn from_letter(letter: u8) -> Kind {
        match letter {
            b'r' => Kind::Table,
            b'p' => Kind::Partitioned,
            b'v' => Kind::View,
            b'm' => Kind::MaterializedView,
            b'f' => Kind::Foreign,
            _ => Kind::Other,
        }
    }
}

/// `pg_class.relpersistence`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Persistence {
    Permanent,
    Unlogged,
    Temporary,
}

impl Persistence {
    fn from_letter(letter: u8) -> Persistence {
        match letter {
            b'u' => Persistence::Unlogged,
            b't' => Persistence::Temporary,
            _ => Persistence::Permanent,
        }
    }
}

/// `pg_class.relreplident`: what the stream says of the old row of an UPDATE or DELETE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Identity {
    /// The primary key, if there is one.
    Default,
    /// Nothing; a published UPDATE or DELETE fails.
    Nothing,
    /// The whole old row.
    Full,
    /// The columns of one unique index.
    Index,
}

impl Identity {
    /// The letter in the catalog and in a RELATION message.
    pub fn from_letter(letter: u8) -> Option<Identity> {
        match letter {
            b'd' => Some(Identity::Default),
            b'n' => Some(Identity::Nothing),
            b'f' => Some(Identity::Full),
            b'i' => Some(Identity::Index),
            _ => None,
        }
    }
}

/// One published column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColumnFacts {
    pub name: String,
    pub attnum: i16,
    pub type_oid: u32,
    /// As [`Column::type_name`].
    pub type_name: String,
    pub typmod: i32,
    pub kind: TypeKind,
    pub not_null: bool,
    pub has_default: bool,
    /// As far as a schema shows it.
    pub default: Option<ColumnDefault>,
}

/// A unique index that can name rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyIndex {
    pub name: String,
    /// In index order. May name a column that is not published (a generated one).
    pub columns: Vec<String>,
    /// Checked at once; a deferrable constraint's index can't be a replica identity.
    pub immediate: bool,
}

/// A foreign key of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignKey {
    pub name: String,
    pub references: TableName,
    pub deferrable: bool,
}

/// A partition that holds rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeafFacts {
    pub name: TableName,
    pub kind: Kind,
    pub persistence: Persistence,
    pub identity: Identity,
}

/// One table as the catalog has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableFacts {
    pub oid: u32,
    pub name: TableName,
    pub owner: String,
    /// Then nobody should become a member of the owner to share its rights.
    pub owner_is_superuser: bool,
    pub kind: Kind,
    pub persistence: Persistence,
    pub identity: Identity,
    /// The database's, as `server_encoding` names it.
    pub encoding: String,
    /// A leaf, or an inner node, of a partitioned table.
    pub is_partition: bool,
    /// Tables that inherit from it directly, partitions included.
    pub children: i64,
    /// Of a partition: every partitioned table above it.
    pub ancestors: Vec<u32>,
    /// Of a partitioned table: what holds its rows, at any depth.
    pub leaves: Vec<LeafFacts>,
    pub columns: Vec<ColumnFacts>,
    /// What its columns contain of them.
    pub composites: Vec<Composite>,
    pub primary_key: Option<KeyIndex>,
    pub identity_index: Option<KeyIndex>,
    /// Of every index over plain columns that refuses a second row with the same values at once.
    pub unique_keys: Vec<Vec<String>>,
    pub foreign_keys: Vec<ForeignKey>,
    /// `None` until the table has been vacuumed or analyzed.
    pub rows_estimate: Option<u64>,
    /// Of the heap alone, as of the last VACUUM or ANALYZE.
    pub bytes_estimate: u64,
    /// SELECT on the whole table: LOCK TABLE is not content with rights on columns.
    pub may_select: bool,
    /// USAGE on its schema.
    pub may_use_schema: bool,
    /// Member of the owning role, as adding the table to a publication needs.
    pub owned: bool,
    /// Row level security would hide rows from us.
    pub rows_hidden: bool,
    /// It has generated columns, and the server refuses to change rows whose replica identity has some that are not published
    /// (Postgres 18).
    pub generated_refused: bool,
}

impl TableFacts {
    pub(super) fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == column)
    }
}

/// The facts of each table, in the order asked for; `None` where there is no such relation.
pub async fn table_facts(
    client: &(impl GenericClient + Sync),
    tables: &[TableName],
) -> Result<Vec<Option<TableFacts>>> {
    const SQL: &str = "
        SELECT w.ord, c.oid, o.rolname::text, c.relkind, c.relpersistence, c.relreplident, c.relispartition,
               (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = c.oid), c.reltuples::float8,
               c.relpages::int8 * current_setting('block_size')::int8,
               has_table_privilege(c.oid, 'SELECT'), has_schema_privilege(n.oid, 'USAGE'), pg_has_role(c.relowner, 'USAGE'), row_security_active(c.oid), o.rolsuper,
               current_setting('server_encoding'),
               current_setting('server_version_num')::int >= 180000 AND EXISTS (
                 SELECT FROM pg_attribute a
                 WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '')
        FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (nsp, rel, ord)
        JOIN pg_namespace n ON n.nspname = w.nsp
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.rel
        JOIN pg_roles o ON o.oid = c.relowner";
    let schemas: Vec<&str> = tables.iter().map(|t| t.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|t| t.table.as_str()).collect();
    let doing = "reading tables from the source's catalog";
    let rows = client.query(SQL, &[&schemas, &names]).await.map_err(|e| failed(doing, e))?;
    let mut facts: Vec<Option<TableFacts>> = tables.iter().map(|_| None).collect();
    for row in &rows {
        let (at, table) = read_table(row, tables)?;
        facts[at] = Some(table);
    }
    let oids: Vec<u32> = facts.iter().flatten().map(|t| t.oid).collect();
    let mut columns = columns_of(client, &oids).await?;
    let mut keys = keys_of(client, &oids).await?;
    let mut foreign_keys = foreign_keys_of(client, &oids).await?;
    for table in facts.iter_mut().flatten() {
        if table.kind == Kind::Partitioned {
            table.leaves = leaves_of(client, table.oid).await?;
        }
        if table.is_partition {
            table.ancestors = ancestors_of(client, table.oid).await?;
        }
    }
    let inside: Vec<u32> = columns.values().flatten().map(|column| column.type_oid).collect();
    let composites = types::composites(client, &inside).await?;
    for table in facts.iter_mut().flatten() {
        table.columns = columns.remove(&table.oid).unwrap_or_default();
        let types = table.columns.iter().map(|column| (column.type_oid, &column.kind));
        table.composites = composites::contained_in(types, &composites);
        let keys = keys.remove(&table.oid).unwrap_or_default();
        (table.primary_key, table.identity_index, table.unique_keys) = (keys.primary, keys.identity, keys.unique);
        table.foreign_keys = foreign_keys.remove(&table.oid).unwrap_or_default();
    }
    Ok(facts)
}

fn read_table(row: &Row, asked: &[TableName]) -> Result<(usize, TableFacts)> {
    let letter = |i: usize| -> Result<u8, tokio_postgres::Error> { Ok(row.try_get::<_, i8>(i)?.cast_unsigned()) };
    let read = || -> Result<_, tokio_postgres::Error> {
        let ordinal: i64 = row.try_get(0)?;
        let tuples: f64 = row.try_get(8)?;
        let bytes: i64 = row.try_get(9)?;
        let table = TableFacts {
            oid: row.try_get(1)?,
            name: TableName::new("", ""),
            owner: row.try_get(2)?,
            kind: Kind::from_letter(letter(3)?),
            persistence: Persistence::from_letter(letter(4)?),
            identity: Identity::Nothing,
            encoding: row.try_get(15)?,
            is_partition: row.try_get(6)?,
            children: row.try_get(7)?,
            ancestors: Vec::new(),
            leaves: Vec::new(),
            columns: Vec::new(),
            composites: Vec::new(),
            primary_key: None,
            identity_index: None,
            unique_keys: Vec::new(),
            foreign_keys: Vec::new(),
            rows_estimate: rows_estimate(tuples),
            bytes_estimate: u64::try_from(bytes).unwrap_or(0),
            may_select: row.try_get(10)?,
            may_use_schema: row.try_get(11)?,
            owned: row.try_get(12)?,
            rows_hidden: row.try_get(13)?,
            owner_is_superuser: row.try_get(14)?,
            generated_refused: row.try_get(16)?,
        };
        Ok((ordinal, letter(5)?, table))
    };
    let (ordinal, identity, mut table) = read().map_err(|e| unreadable("pg_class", e))?;
    let at = usize::try_from(ordinal - 1).ok().filter(|&i| i < asked.len());
    let at = at.ok_or_else(|| unreadable("pg_class", format!("row {ordinal} was not asked for")))?;
    table.name = asked[at].clone();
    table.identity = Identity::from_letter(identity).ok_or_else(|| unreadable("relreplident", char::from(identity)))?;
    Ok((at, table))
}

/// `reltuples` is an estimate in a float, -1 while unknown (0 can mean either before the first VACUUM).
fn rows_estimate(tuples: f64) -> Option<u64> {
    // Estimates far above 2^53 do not exist; saturating is right for one.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (tuples >= 0.0).then_some(tuples as u64)
}

/// Without locks on the partitions, unlike `pg_partition_tree`. One that is being detached concurrently is none any more, for
/// queries of the root as for the stream.
async fn leaves_of(client: &(impl GenericClient + Sync), root: u32) -> Result<Vec<LeafFacts>> {
    const SQL: &str = "
        WITH RECURSIVE below AS (
          SELECT inhrelid FROM pg_inherits WHERE inhparent = $1 AND NOT inhdetachpending
          UNION ALL
          SELECT i.inhrelid FROM below b JOIN pg_inherits i ON i.inhparent = b.inhrelid AND NOT i.inhdetachpending)
        SELECT n.nspname::text, c.relname::text, c.relkind, c.relpersistence, c.relreplident
        FROM below b JOIN pg_class c ON c.oid = b.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind <> 'p' ORDER BY 1, 2";
    let rows =
        client.query(SQL, &[&root]).await.map_err(|e| failed("reading partitions from the source's catalog", e))?;
    let mut leaves = Vec::with_capacity(rows.len());
    for row in &rows {
        let read = || -> Result<_, tokio_postgres::Error> {
            let letter = |i: usize| Ok(row.try_get::<_, i8>(i)?.cast_unsigned());
            let name = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
            Ok((name, letter(2)?, letter(3)?, letter(4)?))
        };
        let (name, kind, persistence, identity) = read().map_err(|e| unreadable("pg_inherits", e))?;
        leaves.push(LeafFacts {
            name,
            kind: Kind::from_letter(kind),
            persistence: Persistence::from_letter(persistence),
            identity: Identity::from_letter(identity)
                .ok_or_else(|| unreadable("relreplident", char::from(identity)))?,
        });
    }
    Ok(leaves)
}

async fn ancestors_of(client: &(impl GenericClient + Sync), partition: u32) -> Result<Vec<u32>> {
    const SQL: &str = "
        WITH RECURSIVE above AS (
          SELECT inhparent FROM pg_inherits WHERE inhrelid = $1
          UNION ALL SELECT i.inhparent FROM above a JOIN pg_inherits i ON i.inhrelid = a.inhparent)
        SELECT inhparent FROM above";
    let doing = "reading partitions from the source's catalog";
    let rows = client.query(SQL, &[&partition]).await.map_err(|e| failed(doing, e))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(|e| unreadable("pg_inherits", e))
}

async fn columns_of(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<HashMap<u32, Vec<ColumnFacts>>> {
    const SQL: &str = "
        SELECT a.attrelid, a.attname::text, a.attnum, a.atttypid, n.nspname::text, t.typname::text, a.atttypmod,
               a.attnotnull OR t.typtype = 'd' AND t.typnotnull, a.atthasdef OR a.attidentity <> '',
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace n ON n.oid = t.typnamespace
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        ORDER BY a.attrelid, a.attnum";
    let rows = client.query(SQL, &[&oids]).await.map_err(|e| failed("reading columns from the source's catalog", e))?;
    let mut columns: HashMap<u32, Vec<ColumnFacts>> = HashMap::new();
    for row in &rows {
        let read = || -> Result<_, tokio_postgres::Error> {
            let column = ColumnFacts {
                name: row.try_get(1)?,
                attnum: row.try_get(2)?,
                type_oid: row.try_get(3)?,
                type_name: type_name(row.try_get(4)?, row.try_get(5)?),
                typmod: row.try_get(6)?,
                kind: TypeKind::Base,
                not_null: row.try_get(7)?,
                has_default: row.try_get(8)?,
                default: row.try_get::<_, Option<&str>>(9)?.and_then(column_default),
            };
            Ok((row.try_get(0)?, column))
        };
        let (oid, column) = read().map_err(|e| unreadable("pg_attribute", e))?;
        columns.entry(oid).or_default().push(column);
    }
    let oids: Vec<u32> = columns.values().flatten().map(|column| column.type_oid).collect();
    let known = types::types(client, &oids).await?;
    for column in columns.values_mut().flatten() {
        column.kind = known.get(&column.type_oid).map(|found| found.kind.clone()).unwrap_or_default();
    }
    Ok(columns)
}

/// The indexes of one table that tell its rows apart.
#[derive(Default)]
struct Keys {
    primary: Option<KeyIndex>,
    identity: Option<KeyIndex>,
    unique: Vec<Vec<String>>,
}

async fn keys_of(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<HashMap<u32, Keys>> {
    // indkey also holds INCLUDE columns, behind the first indnkeyatts.
    const SQL: &str = "
        SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate, c.relname::text, ARRAY(
                 SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, ord)
                 JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                 WHERE k.ord <= i.indnkeyatts ORDER BY k.ord),
               i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = ANY ($1) AND i.indisvalid AND i.indisunique ORDER BY i.indexrelid";
    let rows = client.query(SQL, &[&oids]).await.map_err(|e| failed("reading keys from the source's catalog", e))?;
    let mut keys: HashMap<u32, Keys> = HashMap::new();
    for row in &rows {
        let read = || -> Result<_, tokio_postgres::Error> {
            let index = KeyIndex { immediate: row.try_get(3)?, name: row.try_get(4)?, columns: row.try_get(5)? };
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, index, row.try_get(6)?))
        };
        let (oid, primary, identity, index, unique): (u32, bool, bool, KeyIndex, bool) =
            read().map_err(|e| unreadable("pg_index", e))?;
        let entry = keys.entry(oid).or_default();
        if unique {
            entry.unique.push(index.columns.clone());
        }
        if identity {
            entry.identity = Some(index.clone());
        }
        if primary {
            entry.primary = Some(index);
        }
    }
    Ok(keys)
}

async fn foreign_keys_of(client: &(impl GenericClient + Sync), oids: &[u32]) -> Result<HashMap<u32, Vec<ForeignKey>>> {
    const SQL: &str = "
        SELECT f.conrelid, f.conname::text, n.nspname::text, c.relname::text, f.condeferrable
        FROM pg_constraint f JOIN pg_class c ON c.oid = f.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE f.contype = 'f' AND f.conrelid = ANY ($1) ORDER BY f.conrelid, f.conname";
    let doing = "reading foreign keys from the source's catalog";
    let rows = client.query(SQL, &[&oids]).await.map_err(|e| failed(doing, e))?;
    let mut keys: HashMap<u32, Vec<ForeignKey>> = HashMap::new();
    for row in &rows {
        let read = || -> Result<_, tokio_postgres::Error> {
            let key = ForeignKey {
                name: row.try_get(1)?,
                references: TableName::new(row.try_get::<_, String>(2)?, row.try_get::<_, String>(3)?),
                deferrable: row.try_get(4)?,
            };
            Ok((row.try_get(0)?, key))
        };
        let (oid, key) = read().map_err(|e| unreadable("pg_constraint", e))?;
        keys.entry(oid).or_default().push(key);
    }
    Ok(keys)
}

/// What shapes a relation version besides the table itself.
#[derive(Clone, Copy, Debug)]
pub struct RelationShape<'a> {
    pub topic: &'a str,
    pub partitions: i32,
    pub format: Format,
    pub modes: &'a Modes,
    /// Whether the format carries every value of a column exactly.
    pub exact: fn(&Column, &Modes) -> bool,
    /// The application only inserts: a table without a replica identity will do.
    pub insert_only: bool,
    /// The columns that tell rows apart, where the connector names them; empty: the table's own.
    pub key: &'a [String],
}

/// The relation version of a table as the catalog has it.
pub fn build_relation(table: &TableFacts, shape: RelationShape<'_>) -> Result<Relation> {
    if let Some(halt) = identity_finding(table).filter(|_| !shape.insert_only) {
        return Err(halt.into());
    }
    let key = row_key_of(table, shape.key)?;
    let columns = table
        .columns
        .iter()
        .enumerate()
        .map(|(i, column)| Column {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_name: column.type_name.clone(),
            typmod: column.typmod,
            kind: column.kind.clone(),
            nullable: !column.not_null,
            default: column.default.clone(),
            key: ordinal(key.iter().position(|&k| k == i)),
            exact: false,
        })
        .collect();
    Ok(seal(table.oid, table.name.clone(), columns, table.composites.clone(), shape))
}

/// A RELATION message, as far as it shapes a relation version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamedRelation {
    pub oid: u32,
    pub name: TableName,
    pub identity: Identity,
    pub columns: Vec<StreamedColumn>,
}

impl StreamedRelation {
    /// Whether the catalog still has every column of the message.
    pub fn is_within(&self, table: &TableFacts) -> bool {
        let has =
            |ours: &StreamedColumn| table.columns.iter().any(|c| (&c.name, c.type_oid) == (&ours.name, ours.type_oid));
        self.columns.iter().all(has)
    }

    /// Whether `known` is this message's version, as far as the message speaks of it.
    pub fn is_of(&self, known: &Relation, shape: RelationShape<'_>) -> bool {
        let same = |(ours, known): (&StreamedColumn, &Column)| {
            let keyed = self.identity == Identity::Full || ours.key == known.key.is_some();
            ours.name == known.name && ours.type_oid == known.type_oid && ours.typmod == known.typmod && keyed
        };
        let shaped = (shape.topic, shape.partitions, shape.format, shape.modes)
            == (&*known.topic, known.partitions, known.format, &known.modes);
        (self.oid, &self.name) == (known.oid, &known.name)
            && shaped
            && self.columns.len() == known.columns.len()
            && self.columns.iter().zip(&known.columns).all(same)
    }
}

/// A column of a RELATION message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamedColumn {
    /// Part of the replica identity; under FULL every column is.
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
}

/// The relation version of a RELATION message. The message has no nullability, key order or names of types: they come from
/// the catalog, which may be ahead (`table` is `None` once the table is dropped). `types` names the types by OID, `told` are the keys
/// that the ledger knows of the table, newest first.
pub fn build_streamed_relation(
    message: &StreamedRelation,
    table: Option<&TableFacts>,
    types: &HashMap<u32, TypeName>,
    told: &[Vec<String>],
    shape: RelationShape<'_>,
) -> Result<Relation> {
    let key = streamed_key(message, table, told, shape)?;
    let mut columns = Vec::with_capacity(message.columns.len());
    for (i, column) in message.columns.iter().enumerate() {
        let known = table.and_then(|t| t.columns.iter().find(|c| c.name == column.name));
        let same = known.filter(|c| c.type_oid == column.type_oid);
        // Dropped, and the column with it. What is left of it are texts, and nothing but text is known to hold them.
        let text = TypeName { oid: column.type_oid, name: "text".to_owned(), typmod: -1, kind: TypeKind::Base };
        let (type_name, kind) = same
            .map(|c| (&c.type_name, &c.kind))
            .or_else(|| types.get(&column.type_oid).map(|found| (&found.name, &found.kind)))
            .unwrap_or((&text.name, &text.kind));
        columns.push(Column {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_name: type_name.to_owned(),
            typmod: column.typmod,
            kind: kind.clone(),
            nullable: known.is_none_or(|c| !c.not_null),
            // Of another type it would be another default.
            default: same.and_then(|c| c.default.clone()),
            key: ordinal(key.iter().position(|k| *k == i)),
            exact: false,
        });
    }
    let composites = composites::contained(&columns, table.map_or(&[], |table| &table.composites));
    Ok(seal(message.oid, message.name.clone(), columns, composites, shape))
}

fn ordinal(place: Option<usize>) -> Option<u16> {
    place.map(|at| u16::try_from(at).expect("an index has at most 32 columns"))
}

fn seal(
    oid: u32,
    name: TableName,
    mut columns: Vec<Column>,
    composites: Vec<Composite>,
    shape: RelationShape<'_>,
) -> Relation {
    for column in &mut columns {
        column.exact = (shape.exact)(column, shape.modes);
    }
    Relation {
        fingerprint: Fingerprint(0),
        oid,
        name,
        topic: shape.topic.to_owned(),
        partitions: shape.partitions,
        format: shape.format,
        modes: shape.modes.clone(),
        columns,
        avro: None,
        transforms: Vec::new(),
        hidden: Vec::new(),
        composites,
    }
    .sealed()
}

/// Quoted names for messages and SQL: `"a", "b"`.
pub fn quoted_list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quote_identifier).collect::<Vec<_>>().join(", ")
}

//! From a version of a table's rows to the version of its records: the connector's shape laid over what the source has.
//!
//! Rows go through the loader as they come, and only what is written is shaped: two rows that a mask makes alike are still two.
//! So a table has two versions, that of its rows, which the stream and chunks are compared by, and that of its records, which
//! stands in the ledger. Without a shape they are one. A row filter is the publication's; only what is known of it is here.

use std::collections::BTreeMap;

use crate::capture::heard::Heard;
use crate::codec::{self, mapping};
use crate::config::{Config, Table};
use crate::error::{Code, Error, Halt, Result};
use crate::key::KeyOrder;
use crate::look::Look;
use crate::postgres::catalog::{self, RelationShape, TableFacts};
use crate::postgres::chunk;
use crate::postgres::filter::{self, Filters};
use crate::postgres::named_key;
use crate::postgres::publication::PublicationFacts;
use crate::postgres::row_key;
use crate::relation::{Column, Fingerprint, Relation, TableName, TypeKind};
use crate::session::Session;
use crate::transform::Transformer;

/// The relation version of a table's records, and how its rows become them.
pub struct Shaped {
    pub relation: Relation,
    pub rows: Rows,
    /// `None`: rows are written as they come.
    pub transformer: Option<Transformer>,
    /// Old rows lack columns of the key, because nothing is said to happen but INSERT: an UPDATE would leave records under the
    /// old key.
    pub inserts_alone: bool,
}

/// A version of the rows of a table as the source sends them.
#[derive(Clone)]
pub struct Rows {
    /// Of what their texts are, and of nothing else: see [`version_of_rows`].
    pub fingerprint: Fingerprint,
    /// Columns of a row.
    pub width: usize,
    /// What tells rows apart: columns in key order; empty where only the whole row does.
    pub key: Vec<usize>,
    pub key_orders: Vec<(usize, KeyOrder)>,
    /// What is known of their types; not in the fingerprint.
    pub heard: Heard,
}

impl Rows {
    fn of(rows: &Relation) -> Rows {
        let key = rows.key_columns();
        let key_orders = key.iter().map(|&i| (i, KeyOrder::of(rows.columns[i].type_oid))).collect();
        let (fingerprint, heard) = (version_of_rows(rows), Heard::of(rows));
        Rows { fingerprint, width: rows.columns.len(), key, key_orders, heard }
    }
}

/// What rows of the stream and of chunks must share to be laid over each other: the table, its columns' names and types, and the
/// key. The rest of a version only the catalog says, and the stream tells of no change in it: labels that an enum was given,
/// attributes of a composite, a
/// type's name, NOT NULL, a default. So a stream's version can lack them for as long as its reader lives.
fn version_of_rows(rows: &Relation) -> Fingerprint {
    let plain = |column: &Column| Column {
        type_name: String::new(),
        kind: TypeKind::Base,
        nullable: true,
        default: None,
        exact: true,
        ..column.clone()
    };
    let columns = rows.columns.iter().map(plain).collect();
    Relation { columns, avro: None, composites: Vec::new(), ..rows.clone() }.sealed().fingerprint
}

/// The version of a table's rows that a connector asks for.
pub fn relation_shape(table: &Table) -> RelationShape<'_> {
    RelationShape {
        topic: &table.topic,
        partitions: table.partitions,
        format: table.wire.format,
        modes: &table.wire.modes,
        exact: mapping::exact,
        // A table of a topic alone may lose its key once it is published: then nothing but INSERT can happen to it.
        insert_only: table.insert_only || table.sinks.is_empty(),
        // Sinks read ranges, and find rows, by the key of the records. Where no sink does, records may share a key.
        key: if table.sinks.is_empty() { &[] } else { &table.shape.key },
    }
}

/// Tables that need no replica identity: nothing but INSERT happens to them. So it is with those of topics alone that are
/// published already: whatever a missing key breaks is broken, and one table must not stop the others.
pub fn insert_only(config: &Config, publication: Option<&PublicationFacts>) -> Vec<TableName> {
    let published = |name: &TableName| publication.is_some_and(|facts| facts.table(name).is_some());
    let alone = |table: &&Table| table.insert_only || (table.sinks.is_empty() && published(&table.name));
    config.tables.iter().filter(alone).map(|table| table.name.clone()).collect()
}

/// Completes a version of the table's rows to one of its records. `facts`: the table as the catalog has it by now.
pub fn shaped(table: &Table, rows: Relation, facts: Option<&TableFacts>, prefix: &str) -> Result<Shaped> {
    if table.shape.is_plain() {
        return Ok(plain(codec::complete(rows, prefix)?));
    }
    let version = Rows::of(&rows);
    let shaped = records(table, rows, facts)?;
    let key = &table.shape.key;
    let for_sinks = !table.sinks.is_empty();
    let blind = |facts| named_key::finding(facts, key, for_sinks, false).is_some();
    let inserts_alone = table.insert_only && !key.is_empty() && facts.is_some_and(blind);
    let relation = codec::complete(shaped.relation, prefix)?;
    Ok(Shaped { relation, rows: version, transformer: shaped.transformer, inserts_alone })
}

/// Records that hold what rows hold.
pub fn plain(relation: Relation) -> Shaped {
    Shaped { rows: Rows::of(&relation), relation, transformer: None, inserts_alone: false }
}

fn records(table: &Table, rows: Relation, facts: Option<&TableFacts>) -> Result<crate::transform::Shaped> {
    let for_sinks = !table.sinks.is_empty();
    let names: Option<Vec<&str>> = facts.map(|facts| facts.columns.iter().map(|c| c.name.as_str()).collect());
    // Names first: what is said of a column that is not there is no finding of its own.
    let shaped = table.shape.compile(rows, names.as_deref(), for_sinks)?;
    let finding = |facts| named_key::finding(facts, &table.shape.key, for_sinks, table.insert_only);
    let keyed = facts.filter(|_| !table.shape.key.is_empty()).and_then(finding);
    let filtered = facts.filter(|_| table.shape.filter.is_some()).and_then(filter::identity_finding);
    match keyed.or(filtered) {
        Some(halt) => Err(halt.into()),
        None => Ok(shaped),
    }
}

/// The records' version of a table as the catalog has it, before its format's schemas.
pub fn relation_of(table: &Table, facts: &TableFacts) -> Result<Relation> {
    let rows = catalog::build_relation(facts, relation_shape(table))?;
    Ok(records(table, rows, Some(facts))?.relation)
}

/// What keeps connectors' shapes from being laid over their tables. What is wrong with a table itself is not said again.
pub async fn findings(session: &Session, version: i32, config: &Config, facts: &[TableFacts]) -> Result<Vec<Halt>> {
    let mut found = shape_findings(config, facts);
    for table in &config.tables {
        let facts = facts.iter().find(|facts| facts.name == table.name);
        if let (Some(sql), Some(facts)) = (&table.shape.filter, facts) {
            found.extend(filter::finding(&**session, version, facts, sql).await?);
        }
    }
    Ok(found)
}

/// Whether records can be written of the table as it is, and its first rows read.
pub async fn check_records(session: &Session, table: &Table, facts: &TableFacts, prefix: &str) -> Result<()> {
    if let Some(only) = &table.wire.modes.snapshot_where {
        chunk::check_condition(&**session, &table.name, only).await?;
    }
    let rows = catalog::build_relation(facts, relation_shape(table))?;
    shaped(table, rows, Some(facts), prefix).map(|_| ())
}

/// The row filters that the publication is to have, and the marks of those that the ledger knows to be there.
pub fn filters(config: &Config, known: &BTreeMap<TableName, Look>) -> Filters {
    let mut filters = Filters::default();
    for table in &config.tables {
        let (name, filter, look) = (&table.name, &table.shape.filter, known.get(&table.name));
        let had = look.and_then(|look| look.filter.as_ref());
        if filter.is_some() || had.is_some() {
            filters.wanted.push((name.clone(), filter.clone()));
        }
        if let Some(mark) =
            look.and_then(|look| look.published.clone()).filter(|_| filter.is_some() && had == filter.as_ref())
        {
            filters.marks.insert(name.clone(), mark);
        }
    }
    filters
}

fn shape_findings(config: &Config, facts: &[TableFacts]) -> Vec<Halt> {
    let shaped = config.tables.iter().filter(|table| !table.shape.is_plain());
    let finding = |table: &Table| {
        let facts = facts.iter().find(|facts| facts.name == table.name)?;
        if row_key::identity_finding(facts).is_some_and(|_| !relation_shape(table).insert_only) {
            return None;
        }
        let asked = !table.shape.key.is_empty() || table.shape.filter.is_some();
        match relation_of(table, facts) {
            // The rest is said of the table already.
            Err(Error::Halt(halt)) if halt.code == Code::ConnectorColumns || asked => Some(*halt),
            _ => None,
        }
    };
    shaped.filter_map(finding).collect()
}

/// Whether `known` is the version that was made of rows like these before the catalog forgot what only it can tell.
pub fn resembles(made: &Relation, known: &Relation) -> bool {
    let told = |relation: &Relation| {
        let column = |c: &crate::relation::Column| (c.name.clone(), c.type_oid, c.typmod, c.key.is_some());
        relation.columns.iter().map(column).collect::<Vec<_>>()
    };
    (made.oid, &made.name, &made.topic, made.partitions) == (known.oid, &known.name, &known.topic, known.partitions)
        && (made.format, &made.modes, &made.transforms) == (known.format, &known.modes, &known.transforms)
        && told(made) == told(known)
}

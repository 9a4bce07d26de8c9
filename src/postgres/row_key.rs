//! Which columns tell a table's rows apart, and whether the stream says of an old row which one it was.
//!
//! The same question is asked of the catalog (a chunk, a first start) and of a RELATION message, which is older than the
//! catalog; both give the same key where nothing happened in between.
//!
//! Deliberately not here: keys that a connector names (`named_key`).

use super::catalog::{Identity, KeyIndex, RelationShape, StreamedRelation, TableFacts};
use crate::error::{Code, Error, Halt, Result};
use crate::relation::TableName;

/// The primary key, where old rows come whole. A deferrable one tells no rows apart: within a transaction two rows may share it,
/// and the stream has what happened in the order in which it happened, not in one that the key bears.
fn key_under_full(table: &TableFacts) -> Option<&KeyIndex> {
    table.primary_key.as_ref().filter(|index| index.immediate)
}

/// The index whose columns name a row.
fn key_index(table: &TableFacts) -> Option<&KeyIndex> {
    match (table.identity, &table.identity_index) {
        (Identity::Full, _) => key_under_full(table),
        (Identity::Index, Some(index)) => Some(index),
        // Deferrable or not: where nothing but INSERT happens, rows are told apart by it in the end.
        (Identity::Default | Identity::Nothing | Identity::Index, _) => table.primary_key.as_ref(),
    }
}

/// Which columns name a row: indexes into [`TableFacts::columns`] in key order; empty where only the whole row does.
pub fn key_of(table: &TableFacts) -> Result<Vec<usize>> {
    let name = table.name.quoted();
    let Some(index) = key_index(table) else { return Ok(Vec::new()) };
    let position = |column: &String| {
        table.position(column).ok_or_else(|| {
            Error::halt(
                Code::ReplicaIdentity,
                format!(
                    "column {column:?} of the key of table {} is generated, so it is not in the stream",
                    table.name
                ),
                format!("ALTER TABLE {name} ADD UNIQUE (…), then ALTER TABLE {name} REPLICA IDENTITY USING INDEX …"),
            )
        })
    };
    index.columns.iter().map(position).collect()
}

/// The same where the connector names the key: its columns, in its order.
pub fn row_key_of(table: &TableFacts, named: &[String]) -> Result<Vec<usize>> {
    if named.is_empty() {
        return key_of(table);
    }
    let position = |name: &String| table.position(name).ok_or_else(|| key_missing(&table.name, name));
    named.iter().map(position).collect()
}

fn key_missing(table: &TableName, column: &str) -> Error {
    let found = format!("connector of table {table}: key names column {column:?}, which its rows do not have");
    Error::halt(Code::ConnectorColumns, found, "write other columns into key, or delete key from the connector")
}

/// Why the application could not change rows of the table any more, once it is published: the stream carries the old row
/// only as the replica identity says, and Postgres refuses an UPDATE or DELETE that it can't tell of. A table that is only
/// ever inserted into may be published all the same.
pub fn identity_finding(table: &TableFacts) -> Option<Halt> {
    let name = table.name.quoted();
    match (table.identity, &table.primary_key) {
        (Identity::Nothing, _) => Some(breaks_updates(
            format!("table {} has REPLICA IDENTITY NOTHING", table.name),
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
        )),
        (Identity::Index, _) if table.identity_index.is_none() => Some(breaks_updates(
            format!("the replica identity index of table {} is gone", table.name),
            format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
        )),
        (Identity::Default, Some(index)) if !index.immediate => {
            let mut halt = breaks_updates(
                format!("the primary key of table {} is deferrable, which is no replica identity", table.name),
                format!("ALTER TABLE {name} REPLICA IDENTITY FULL"),
            );
            halt.facts.push("FULL makes of it a table without a key: a key that is not deferrable is better".into());
            Some(halt)
        }
        (Identity::Default, None) => Some(without_identity(&table.name)),
        (Identity::Default | Identity::Full | Identity::Index, _) => None,
    }
}

fn breaks_updates(message: String, hint: String) -> Halt {
    Halt { code: Code::ReplicaIdentity, message, facts: vec![BREAKS_UPDATES.into(), INSERT_ONLY.into()], hint }
}

fn without_identity(name: &TableName) -> Halt {
    let facts = vec![
        BREAKS_UPDATES.into(),
        format!("or, without a key: ALTER TABLE {} REPLICA IDENTITY FULL", name.quoted()),
        INSERT_ONLY.into(),
    ];
    Halt {
        code: Code::TableWithoutKey,
        message: format!("table {name} has no primary key and no other replica identity"),
        facts,
        hint: format!("ALTER TABLE {} ADD PRIMARY KEY (…)", name.quoted()),
    }
}

pub(super) const BREAKS_UPDATES: &str = "published like this, the application's own UPDATE and DELETE on it would fail";
pub(super) const INSERT_ONLY: &str =
    "or, if nothing but INSERT and TRUNCATE ever happens to it: insert_only = true in its connector";

/// The key of a RELATION message: indexes into its columns in key order. `told`: the keys of its table that the ledger knows,
/// newest first, which are asked where the catalog has another one by now, or no such table.
///
/// DEFAULT and USING INDEX flag the key's columns, but in table order: the index's order is believed of whoever speaks of the
/// same columns. FULL flags every column. Where none is flagged no old row can come, so nothing but INSERT happened meanwhile:
/// then any key will do, and the table must be one again by which rows can be followed.
pub(super) fn streamed_key(
    message: &StreamedRelation,
    table: Option<&TableFacts>,
    told: &[Vec<String>],
    shape: RelationShape<'_>,
) -> Result<Vec<usize>> {
    let position = |name: &String| message.columns.iter().position(|c| c.name == *name);
    if !shape.key.is_empty() {
        let named = |name: &String| position(name).ok_or_else(|| key_missing(&message.name, name));
        return shape.key.iter().map(named).collect();
    }
    let flagged: Vec<usize> = (0..message.columns.len()).filter(|&i| message.columns[i].key).collect();
    let index = match message.identity {
        Identity::Full => table.and_then(key_under_full),
        // Of the table as it is now.
        _ if flagged.is_empty() => table.and_then(key_index),
        Identity::Index => table.and_then(|t| t.identity_index.as_ref()),
        Identity::Default | Identity::Nothing => table.and_then(|t| t.primary_key.as_ref()),
    };
    let positions = |names: &Vec<String>| names.iter().map(position).collect::<Option<Vec<usize>>>();
    let catalog = index.and_then(|index| positions(&index.columns));
    let mut known = catalog.into_iter().chain(told.iter().filter_map(positions));
    let is_keyless = table.is_some() && index.is_none();
    match message.identity {
        Identity::Full if is_keyless => Ok(Vec::new()),
        Identity::Full => Ok(known.next().unwrap_or_default()),
        Identity::Default | Identity::Index if !flagged.is_empty() => {
            Ok(known.find(|key| same_members(key, &flagged)).unwrap_or(flagged))
        }
        Identity::Default | Identity::Index | Identity::Nothing => {
            match table.and_then(identity_finding).filter(|_| !shape.insert_only) {
                Some(halt) => Err(halt.into()),
                None if is_keyless => Ok(Vec::new()),
                None => Ok(known.next().unwrap_or_default()),
            }
        }
    }
}

fn same_members(key: &[usize], ascending: &[usize]) -> bool {
    let mut sorted = key.to_vec();
    sorted.sort_unstable();
    sorted == ascending
}

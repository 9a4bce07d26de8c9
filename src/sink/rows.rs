//! What of a sink's tables does not go with `consistency = "row"`: whatever sees more than one row, since rows of different
//! partitions are written by different processes, each in its own time.
//!
//! Partitions keep the changes of one key in order and nothing else. So two keys must never be one row at the sink: a value
//! of the key's types has one text at the source, and the sink calls different texts different.

use tokio_postgres::Client;

use super::WantedTable;
use super::catalog::TableFacts;
use crate::error::{Code, Halt, Result};
use crate::relation::{Column, TypeKind};
use crate::session;

/// bool, bytea, int8, int2, int4, text, oid, varchar, date, timestamp, timestamptz, uuid: pg_type.dat. Equal values
/// have equal texts. Not so intervals, floats (-0 and 0), citext.
const ONE_TEXT: [u32; 12] = [16, 17, 20, 21, 23, 25, 26, 1043, 1082, 1114, 1184, 2950];
/// bpchar and numeric: so do these with a length or a scale; without one `a` and `a `, 1.0 and 1.00 are equal.
const WITH_MODIFIER: [u32; 2] = [1042, 1700];

pub(super) fn has_one_text(column: &Column) -> bool {
    match column.kind {
        TypeKind::Enum { .. } => true,
        TypeKind::Base => {
            ONE_TEXT.contains(&column.type_oid) || (WITH_MODIFIER.contains(&column.type_oid) && column.typmod >= 0)
        }
        _ => false,
    }
}

fn halt(message: String, hint: String) -> Halt {
    Halt { code: Code::RowConsistency, message, facts: vec![], hint }
}

/// Unique and exclusion constraints and indexes: the table, their name, the columns if they are plain, and how to be rid of it.
const UNIQUES: &str = "
SELECT i.indrelid, c.relname::text,
       CASE WHEN i.indexprs IS NULL AND i.indpred IS NULL AND NOT i.indisexclusion THEN
            ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                   WHERE k.place <= i.indnkeyatts ORDER BY 1) END,
       CASE WHEN x.oid IS NULL THEN 'DROP INDEX ' || i.indexrelid::pg_catalog.regclass
            ELSE 'ALTER TABLE ' || i.indrelid::pg_catalog.regclass || ' DROP CONSTRAINT ' || pg_catalog.quote_ident(x.conname) END
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
  LEFT JOIN pg_catalog.pg_constraint x ON x.conindid = i.indexrelid AND x.conrelid = i.indrelid AND x.contype IN ('p', 'u', 'x')
 WHERE i.indrelid = ANY ($1::oid[]) AND (i.indisunique OR i.indisexclusion) ORDER BY 1, 2";

/// Everything about these tables that stands in the way of writing their rows apart from each other.
pub(super) async fn findings(
    client: &Client,
    wanted: &[WantedTable],
    facts: &[Option<TableFacts>],
) -> Result<Vec<Halt>> {
    let known: Vec<(&WantedTable, &TableFacts)> =
        wanted.iter().zip(facts).filter_map(|(wanted, facts)| Some((wanted, facts.as_ref()?))).collect();
    let oids: Vec<u32> = known.iter().map(|(_, facts)| facts.oid).collect();
    let mut halts: Vec<Halt> = known.iter().filter_map(|(wanted, facts)| judge_key(wanted, facts)).collect();
    let uniques = client.query(UNIQUES, &[&oids]).await;
    for row in uniques.map_err(|error| session::classify("reading the sink's unique indexes", error))? {
        let (oid, name): (u32, String) = (row.get(0), row.get(1));
        let (columns, hint): (Option<Vec<String>>, String) = (row.get(2), row.get(3));
        for (wanted, _) in known.iter().filter(|(_, facts)| facts.oid == oid) {
            let key: Vec<&String> = wanted.key().into_iter().map(|i| &wanted.columns[i].column.name).collect();
            // Rows of different keys differ where it holds the key.
            if !columns.as_ref().is_some_and(|columns| key.iter().all(|&name| columns.contains(name))) {
                let message = format!(
                    "{name} of {} compares rows of different keys, which are written each in its own time",
                    wanted.table
                );
                halts.push(halt(message, hint.clone()));
            }
        }
    }
    for (wanted, facts) in &known {
        // Each is found at both of its ends.
        let among = facts.foreign_keys.iter().filter(|key| key.child == facts.oid && oids.contains(&key.parent));
        halts.extend(among.map(|key| {
            halt(
                format!(
                    "foreign key {} of {} is between rows that are written each in its own time",
                    key.name, wanted.table
                ),
                format!(
                    "ALTER TABLE {} DROP CONSTRAINT {}",
                    wanted.table.quoted(),
                    crate::relation::quote_identifier(&key.name)
                ),
            )
        }));
    }
    Ok(halts)
}

fn judge_key(wanted: &WantedTable, facts: &TableFacts) -> Option<Halt> {
    if wanted.is_keyless() {
        let message = format!("table {} has no key: its rows are told apart by nothing", wanted.source);
        return Some(halt(
            message,
            format!("ALTER TABLE {} ADD PRIMARY KEY (…) at the source", wanted.source.quoted()),
        ));
    }
    wanted.key().into_iter().find_map(|i| {
        let column = &wanted.columns[i].column;
        let here = facts.columns.iter().find(|found| found.name == column.name);
        let message = match () {
            () if !has_one_text(column) => format!(
                "column {} of the key of {} is {}: equal values of it can have different texts, which go into different partitions",
                column.name, wanted.source, column.type_name
            ),
            () if here.is_some_and(|here| !here.deterministic) => format!(
                "column {} of the key of {} has a collation at the sink that calls different texts equal, which go into different partitions",
                column.name, wanted.table
            ),
            () => return None,
        };
        Some(halt(message, "write consistency = \"transaction\" for this sink".to_owned()))
    })
}

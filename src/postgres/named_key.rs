//! Keys that a connector names: what they ask of the table.
//!
//! Old rows must come with the key, or a change would leave records behind under the old one; and a sink finds rows by it, so for
//! a sink it is unique and never NULL. All of it can be undone at the source at any time, so it is asked again whenever the
//! table's shape is met.

use super::catalog::{Identity, KeyIndex, TableFacts, quoted_list};
use super::row_key::INSERT_ONLY;
use crate::error::{Code, Halt};
use crate::relation::quote_identifier;

/// Why a key that the connector names can't be that of its records: an old row would come without it. `for_sinks`: rows are
/// found by it, so each has its own.
pub fn finding(table: &TableFacts, key: &[String], for_sinks: bool, insert_only: bool) -> Option<Halt> {
    let (name, listed) = (table.name.quoted(), quoted_list(key.iter().map(String::as_str)));
    let halt = |code, message: String, hint: String| Some(Halt { code, message, facts: vec![], hint });
    if !insert_only && let Some(column) = key.iter().find(|column| !is_carried(table, column)) {
        let message =
            format!("the old row of an UPDATE or DELETE of table {} lacks column {column:?} of its key", table.name);
        let finding = halt(Code::ReplicaIdentity, message, format!("ALTER TABLE {name} REPLICA IDENTITY FULL"));
        return finding.map(|halt| Halt { facts: vec![INSERT_ONLY.into()], ..halt });
    }
    if !for_sinks {
        return None;
    }
    let nullable = |column: &&String| table.columns.iter().any(|c| c.name == **column && !c.not_null);
    if let Some(column) = key.iter().find(nullable) {
        let message = format!(
            "column {column:?} of the key of table {} may be NULL, so a sink can't find rows by it",
            table.name
        );
        return halt(
            Code::TableWithoutKey,
            message,
            format!("ALTER TABLE {name} ALTER COLUMN {} SET NOT NULL", quote_identifier(column)),
        );
    }
    if !table.unique_keys.iter().any(|unique| unique.iter().all(|column| key.contains(column))) {
        let message =
            format!("the key ({listed}) of table {} is not unique, so a sink can't find rows by it", table.name);
        return halt(Code::TableWithoutKey, message, format!("ALTER TABLE {name} ADD UNIQUE ({listed})"));
    }
    None
}

/// Whether the stream's old rows hold the column: those of the table, and of every partition, which has its own identity.
fn is_carried(table: &TableFacts, column: &String) -> bool {
    let holds = |index: &Option<KeyIndex>| index.as_ref().is_some_and(|index| index.columns.contains(column));
    let carried = |identity: Identity| match identity {
        Identity::Full => true,
        Identity::Nothing => false,
        Identity::Default => holds(&table.primary_key),
        Identity::Index => holds(&table.identity_index),
    };
    carried(table.identity) && table.leaves.iter().all(|leaf| carried(leaf.identity))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::catalog::{ColumnFacts, Kind, LeafFacts, Persistence};
    use crate::relation::{TableName, TypeKind};

    /// Columns a and b, which are NOT NULL, and c; the primary key is a, and (a, b) and b are unique.
    fn table(identity: Identity, leaves: &[Identity]) -> TableFacts {
        let column = |(attnum, name): (i16, &str)| ColumnFacts {
            name: name.into(),
            attnum,
            type_oid: 23,
            type_name: "int4".into(),
            typmod: -1,
            kind: TypeKind::Base,
            not_null: name != "c",
            has_default: false,
            default: None,
        };
        let leaf = |identity: &Identity| LeafFacts {
            name: TableName::new("public", "leaf"),
            kind: Kind::Table,
            persistence: Persistence::Permanent,
            identity: *identity,
        };
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        TableFacts {
            oid: 1,
            name: TableName::new("public", "t"),
            owner: "o".into(),
            owner_is_superuser: false,
            kind: if leaves.is_empty() { Kind::Table } else { Kind::Partitioned },
            persistence: Persistence::Permanent,
            identity,
            encoding: "UTF8".into(),
            is_partition: false,
            children: 0,
            ancestors: vec![],
            leaves: leaves.iter().map(leaf).collect(),
            columns: [(1, "a"), (2, "b"), (3, "c")].into_iter().map(column).collect(),
            composites: vec![],
            primary_key: Some(KeyIndex { name: "t_pkey".into(), columns: names(&["a"]), immediate: true }),
            identity_index: None,
            unique_keys: vec![names(&["a"]), names(&["b"])],
            foreign_keys: vec![],
            rows_estimate: None,
            bytes_estimate: 0,
            may_select: true,
            may_use_schema: true,
            owned: true,
            rows_hidden: false,
            generated_refused: false,
        }
    }

    fn code(table: &TableFacts, key: &[&str], for_sinks: bool, insert_only: bool) -> Option<Code> {
        let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
        finding(table, &key, for_sinks, insert_only).map(|halt| halt.code)
    }

    #[test]
    fn old_rows_hold_the_key_or_there_are_none() {
        let plain = table(Identity::Default, &[]);
        assert_eq!(code(&plain, &["a"], true, false), None);
        assert_eq!(code(&plain, &["b"], true, false), Some(Code::ReplicaIdentity));
        assert_eq!(code(&plain, &["b"], true, true), None);
        assert_eq!(code(&table(Identity::Full, &[]), &["b"], true, false), None);
        let partitioned = table(Identity::Full, &[Identity::Full, Identity::Default]);
        assert_eq!(code(&partitioned, &["b"], true, false), Some(Code::ReplicaIdentity), "a partition's are its own");
        assert_eq!(code(&partitioned, &["a"], true, false), None);
    }

    #[test]
    fn a_sink_finds_one_row_by_the_key() {
        let full = table(Identity::Full, &[]);
        assert_eq!(code(&full, &["c"], false, false), None, "without a sink rows may share a key");
        assert_eq!(code(&full, &["c", "a"], true, false), Some(Code::TableWithoutKey), "c may be NULL");
        assert_eq!(code(&full, &["b", "a"], true, false), None, "more than a unique key is unique");
        let mut shared = full;
        shared.unique_keys = vec![vec!["a".into(), "b".into()]];
        assert_eq!(code(&shared, &["b"], true, false), Some(Code::TableWithoutKey));
    }
}

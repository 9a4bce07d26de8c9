//! Flat records: the row alone instead of an envelope, as Debezium's ExtractNewRecordState makes them.
//!
//! What the envelope would say beside the row comes as fields and headers that are asked for by name ([`Added`]). No sink reads
//! such records: what was before a change, and TRUNCATE, are not in them.

use serde::{Deserialize, Serialize};

/// How the records of a table are flat.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Flat {
    pub deletes: DeleteMode,
    /// Behind the columns, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Added>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Added>,
}

impl Flat {
    /// Names of the fields behind the columns.
    pub fn added(&self) -> impl Iterator<Item = &str> {
        let deleted = self.deletes.rewrites().then_some(DELETED);
        deleted.into_iter().chain(self.fields.iter().map(|field| field.name.as_str()))
    }
}

/// `delete.tombstone.handling.mode`: what is written of a deleted row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeleteMode {
    /// Nothing.
    Drop,
    /// The tombstone.
    #[default]
    Tombstone,
    /// The row as far as it was sent, with `__deleted`, which every record has then.
    Rewrite,
    /// Both.
    RewriteWithTombstone,
    /// The delete's own record as a tombstone, also where tombstones are off.
    DeleteToTombstone,
}

impl DeleteMode {
    /// Whether records have the field [`DELETED`].
    pub fn rewrites(self) -> bool {
        matches!(self, DeleteMode::Rewrite | DeleteMode::RewriteWithTombstone)
    }
}

impl DeleteMode {
    /// Whether the tombstone behind a delete is written.
    pub fn keeps_tombstone(self) -> bool {
        matches!(self, DeleteMode::Tombstone | DeleteMode::RewriteWithTombstone)
    }
}

/// Whether the row is gone: `"true"` or `"false"`.
pub const DELETED: &str = "__deleted";

/// Something of the envelope under another name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Added {
    pub of: Fact,
    /// With its prefix.
    pub name: String,
}

macro_rules! facts {
    ($($name:ident = $text:literal,)*) => {
        /// What an envelope says beside its rows.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
        pub enum Fact { $(#[serde(rename = $text)] $name,)* }

        impl Fact {
            const ALL: &[(&str, Fact)] = &[$(($text, Fact::$name),)*];
        }
    };
}

facts! {
    Op = "op",
    TsMs = "ts_ms",
    TsUs = "ts_us",
    TsNs = "ts_ns",
    Version = "source.version",
    Connector = "source.connector",
    Name = "source.name",
    SourceTsMs = "source.ts_ms",
    SourceTsUs = "source.ts_us",
    SourceTsNs = "source.ts_ns",
    Snapshot = "source.snapshot",
    Db = "source.db",
    Sequence = "source.sequence",
    Schema = "source.schema",
    Table = "source.table",
    TxId = "source.txId",
    Lsn = "source.lsn",
    Xmin = "source.xmin",
    Origin = "source.origin",
    OriginLsn = "source.origin_lsn",
    TransactionId = "transaction.id",
    TotalOrder = "transaction.total_order",
    CollectionOrder = "transaction.data_collection_order",
}

impl Fact {
    /// By its name in the envelope, of which `source.` and `transaction.` may be left out where the rest says it.
    pub fn named(text: &str) -> Option<Fact> {
        let exact = |wanted: &str| Fact::ALL.iter().find(|(name, _)| *name == wanted).map(|(_, fact)| *fact);
        let within = |part: &str| exact(&format!("{part}.{text}"));
        exact(text).or_else(|| within("transaction")).or_else(|| within("source"))
    }

    pub fn all() -> impl Iterator<Item = &'static str> {
        Fact::ALL.iter().map(|(name, _)| *name)
    }
}

impl Added {
    /// `FACT` or `FACT:NAME`; `None` if there is no such fact, or no name.
    pub fn parse(text: &str, prefix: &str) -> Option<Added> {
        let (fact, name) = match text.split_once(':') {
            Some((fact, name)) => (fact, name.to_owned()),
            None => (text, text.replace('.', "_")),
        };
        let of = Fact::named(fact)?;
        (!name.is_empty() && !name.contains(':')).then(|| Added { of, name: format!("{prefix}{name}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_fields_are_named_as_debezium_names_them() {
        let added = |text| Added::parse(text, "__").map(|added| (added.of, added.name));
        let of = |fact, name: &str| Some((fact, name.to_owned()));
        assert_eq!(added("op"), of(Fact::Op, "__op"));
        assert_eq!(added("table"), of(Fact::Table, "__table"));
        assert_eq!(added("ts_ms"), of(Fact::TsMs, "__ts_ms"));
        assert_eq!(added("source.ts_ms:src_ms"), of(Fact::SourceTsMs, "__src_ms"));
        assert_eq!(added("source.snapshot"), of(Fact::Snapshot, "__source_snapshot"));
        assert_eq!(added("transaction.total_order"), of(Fact::TotalOrder, "__transaction_total_order"));
        assert_eq!(added("total_order"), of(Fact::TotalOrder, "__total_order"));
        assert_eq!(added("op:o:x"), None);
        assert_eq!(added("before"), None);
        assert_eq!(added("op:"), None);
    }

    #[test]
    fn it_is_the_same_after_the_ledger() {
        let flat = Flat {
            deletes: DeleteMode::RewriteWithTombstone,
            fields: vec![Added::parse("lsn", "__").unwrap()],
            headers: vec![],
        };
        let json = serde_json::to_string(&flat).unwrap();
        assert_eq!(json, r#"{"deletes":"rewrite-with-tombstone","fields":[{"of":"source.lsn","name":"__lsn"}]}"#);
        assert_eq!(serde_json::from_str::<Flat>(&json).unwrap(), flat);
    }
}

//! A relation version: everything that shapes the records of one table.
//!
//! Sinks decode by the ledger's relation entry alone, never by their own configuration: configuration may have changed while
//! a record waited. Two versions are the same iff their fingerprints are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Names a relation version: the first 8 bytes of SHA-256 over its canonical JSON (RFC 8785) without the fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Fingerprint, Self::Err> {
        u64::from_str_radix(text, 16).map(Fingerprint)
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Fingerprint, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A table's name as Postgres resolves it, unquoted. Prints as `schema.table`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    /// `"schema"."table"`, quotes doubled: safe in SQL whatever the name holds.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// The one way an identifier enters SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The one way a text literal enters SQL, independent of `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// How records are written. JSON without schemas is the one there is so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Json,
}

/// The handling modes of Debezium's connector that shape a value. Defaults are the ones that lose nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Modes {
    pub decimal: DecimalMode,
}

/// `decimal.handling.mode`: how numeric and money are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecimalMode {
    String,
}

impl Default for Modes {
    fn default() -> Modes {
        Modes { decimal: DecimalMode::String }
    }
}

/// One column of a relation version, in table order; dropped and unpublished columns are not in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// `pg_type.typname`, with the schema in front unless it is `pg_catalog`.
    pub type_name: String,
    /// -1 when the type has no modifier.
    pub typmod: i32,
    pub nullable: bool,
    /// Place in the key, counted from 0; `None` outside the key.
    pub key: Option<u16>,
    /// The format carries every value of the column exactly; otherwise `ls-text` rides beside some.
    pub exact: bool,
}

/// A relation version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Relation {
    pub fingerprint: Fingerprint,
    pub oid: u32,
    #[serde(flatten)]
    pub name: TableName,
    pub topic: String,
    pub partitions: i32,
    pub format: Format,
    pub modes: Modes,
    pub columns: Vec<Column>,
    /// Reserved for masks, renames and filters; none yet.
    pub transforms: Vec<serde_json::Value>,
}

impl Relation {
    /// The version with its fingerprint computed. What `fingerprint` held before does not matter.
    pub fn sealed(mut self) -> Relation {
        let mut json = serde_json::to_value(&self).expect("a relation is plain data");
        json.as_object_mut().expect("a struct is an object").remove("fingerprint");
        let canonical = serde_json_canonicalizer::to_vec(&json).expect("plain data has a canonical form");
        let digest = Sha256::digest(&canonical);
        self.fingerprint = Fingerprint(u64::from_be_bytes(digest[..8].try_into().expect("8 of 32 bytes")));
        self
    }

    /// Indexes of the key columns in key order; empty for a table without a key.
    pub fn key_columns(&self) -> Vec<usize> {
        let mut key: Vec<(u16, usize)> =
            self.columns.iter().enumerate().filter_map(|(i, c)| c.key.map(|ordinal| (ordinal, i))).collect();
        key.sort_unstable();
        key.into_iter().map(|(_, i)| i).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn relation() -> Relation {
        let column = |name: &str, key| Column {
            name: name.into(),
            type_oid: 23,
            type_name: "int4".into(),
            typmod: -1,
            nullable: false,
            key,
            exact: true,
        };
        Relation {
            fingerprint: Fingerprint(0),
            oid: 1,
            name: TableName::new("public", "t"),
            topic: "p.public.t".into(),
            partitions: 1,
            format: Format::Json,
            modes: Modes::default(),
            columns: vec![column("a", Some(1)), column("b", None), column("c", Some(0))],
            transforms: vec![],
        }
    }

    #[test]
    fn the_fingerprint_covers_everything_but_itself() {
        let sealed = relation().sealed();
        assert_eq!(sealed.clone().sealed().fingerprint, sealed.fingerprint);
        let mut other = relation();
        other.columns[1].typmod = 4;
        assert_ne!(other.sealed().fingerprint, sealed.fingerprint);
        let json = serde_json::to_string(&sealed).unwrap();
        assert_eq!(serde_json::from_str::<Relation>(&json).unwrap(), sealed);
    }

    #[test]
    fn the_key_is_in_key_order_not_table_order() {
        assert_eq!(relation().key_columns(), [2, 0]);
    }

    #[test]
    fn names_enter_sql_quoted() {
        assert_eq!(TableName::new("a\"b", "select").quoted(), "\"a\"\"b\".\"select\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
    }
}

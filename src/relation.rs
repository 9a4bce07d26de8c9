//! A relation version: everything that shapes the records of one table.
//!
//! Sinks decode by the ledger's relation entry alone, never by their own configuration: configuration may have changed while
//! a record waited. Two versions are the same iff their fingerprints are.

pub mod composites;
pub mod flat;
pub mod names;
pub mod outbox;
pub mod type_names;

use std::fmt;
use std::str::FromStr;

pub use composites::{Attribute, Composite};
pub use flat::Flat;
pub use names::{Delimiter, NameMode};
pub use outbox::Outbox;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::transform::Transform;

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

/// How records are written. [`Modes::schemas`] says whether JSON carries schemas.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON without schemas.
    Json,
    /// Avro in Confluent's framing, its schemas in a registry.
    Avro,
}

/// The handling modes of Debezium's connector and of Connect's converters that shape a record. Defaults lose nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Modes {
    pub decimal: DecimalMode,
    pub time: TimeMode,
    pub interval: IntervalMode,
    pub binary: BinaryMode,
    pub hstore: HstoreMode,
    pub unknown: UnknownMode,
    pub conversion_failure: ConversionFailure,
    /// `replace.null.with.default` of the converters: an explicit NULL is shown as the column's default.
    pub null_as_default: bool,
    /// `schemas.enable` of JsonConverter: keys and values carry their schema.
    pub schemas: bool,
    /// `column.propagate.source.type`: schemas say what columns are at the source.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub source_types: bool,
    /// `unavailable.value.placeholder`, for columns that the source did not send.
    pub placeholder: Placeholder,
    /// `field.name.adjustment.mode`. What follows is written only where it is said, so that versions of older builds are still the
    /// same ones.
    #[serde(skip_serializing_if = "NameMode::is_none")]
    pub field_names: NameMode,
    /// `schema.name.adjustment.mode`.
    #[serde(skip_serializing_if = "NameMode::is_none")]
    pub schema_names: NameMode,
    /// `topic.delimiter`, which stands in the names of schemas too.
    #[serde(skip_serializing_if = "Delimiter::is_default")]
    pub delimiter: Delimiter,
    /// Rows alone; `None`: envelopes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flat: Option<Flat>,
    /// Rows are events with topics of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<Outbox>,
    /// An SQL condition: rows that do not meet it are not among the existing rows that are copied to the topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_where: Option<String>,
    /// `skipped.operations`, a letter each, in alphabetical order.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub skipped: String,
}

impl Default for Modes {
    fn default() -> Modes {
        Modes {
            decimal: DecimalMode::String,
            time: TimeMode::Adaptive,
            interval: IntervalMode::String,
            binary: BinaryMode::Bytes,
            hstore: HstoreMode::Json,
            unknown: UnknownMode::Text,
            conversion_failure: ConversionFailure::Fail,
            null_as_default: false,
            schemas: false,
            source_types: false,
            placeholder: Placeholder::default(),
            field_names: NameMode::None,
            schema_names: NameMode::None,
            delimiter: Delimiter::default(),
            flat: None,
            outbox: None,
            snapshot_where: None,
            skipped: String::new(),
        }
    }
}

impl Modes {
    /// Records say all of a change, and chunks hold all rows of their ranges, so that a sink can be made of them.
    pub fn is_whole(&self) -> bool {
        self.flat.is_none() && self.outbox.is_none() && self.snapshot_where.is_none() && self.skipped.is_empty()
    }

    /// Records have headers beside ours and Debezium's.
    pub fn has_headers(&self) -> bool {
        self.outbox.is_some() || self.flat.as_ref().is_some_and(|flat| !flat.headers.is_empty())
    }
}

/// `decimal.handling.mode`: how numeric and money are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecimalMode {
    String,
    /// Connect's Decimal: the unscaled value's bytes.
    Precise,
    Double,
}

/// `time.precision.mode`: how date, time and timestamp are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeMode {
    /// Milliseconds for up to three digits of a second, microseconds for more.
    Adaptive,
    /// The same, but times always in microseconds.
    AdaptiveTimeMicroseconds,
    /// Connect's own types, all in milliseconds.
    Connect,
    Isostring,
    Microseconds,
    Nanoseconds,
}

/// `interval.handling.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalMode {
    /// Microseconds, a month being 30.4375 days.
    Numeric,
    /// ISO 8601.
    String,
}

/// `binary.handling.mode`: how bytea is written, and unknown types where they are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BinaryMode {
    /// Bytes, which are base64 in JSON.
    Bytes,
    /// Strings of base64.
    Base64,
    Base64UrlSafe,
    Hex,
}

/// `hstore.handling.mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HstoreMode {
    /// A string that holds an object.
    Json,
    Map,
}

/// What becomes of types that Debezium has no mapping for (`include.unknown.datatypes`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownMode {
    /// A string of the Postgres text.
    Text,
    /// Bytes of the Postgres text, written as `binary` says; Debezium with `include.unknown.datatypes=true`.
    Bytes,
    /// No field; Debezium's default. The value still travels to our sinks, in `ls-text`.
    Skip,
}

/// `event.converting.failure.handling.mode`: what becomes of a value that the modes have no form for, like NaN as a precise
/// decimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversionFailure {
    /// The source halts with RECORD_INVALID.
    Fail,
    /// Consumers see NULL, or the type's zero where NULL is not allowed; our sinks see the value, in `ls-text`.
    Null,
}

/// What stands in for a value that the source did not send. `hex:` before it gives bytes, as in Debezium.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Placeholder(pub String);

impl Default for Placeholder {
    fn default() -> Placeholder {
        Placeholder("__debezium_unavailable_value".to_owned())
    }
}

impl Placeholder {
    /// Its bytes; `None` if `hex:` is followed by anything but pairs of hexadecimal digits.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self.0.strip_prefix("hex:") {
            Some(digits) => hex::decode(digits).ok(),
            None => Some(self.0.clone().into_bytes()),
        }
    }
}

/// What a type is made of, as far as it shapes values: from `pg_type`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TypeKind {
    #[default]
    Base,
    /// Labels in their order.
    Enum {
        labels: Vec<String>,
    },
    Array {
        element: Box<TypeName>,
        /// Between elements, as the element's type says (`pg_type.typdelim`): `;` of boxes, `:` of PostGIS' types.
        #[serde(default = "comma", skip_serializing_if = "is_comma")]
        delimiter: u8,
    },
    Domain {
        base: Box<TypeName>,
    },
    Composite,
    Range,
    Multirange,
}

fn comma() -> u8 {
    b','
}

fn is_comma(delimiter: &u8) -> bool {
    *delimiter == b','
}

impl TypeKind {
    pub fn is_base(&self) -> bool {
        *self == TypeKind::Base
    }
}

/// A type inside another: an array's element, a domain's base.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TypeName {
    pub oid: u32,
    /// As [`Column::type_name`].
    pub name: String,
    /// -1 when the type has no modifier.
    pub typmod: i32,
    #[serde(default, skip_serializing_if = "TypeKind::is_base")]
    pub kind: TypeKind,
}

/// A column's DEFAULT, as far as Debezium's schemas show it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnDefault {
    /// The Postgres text of a literal.
    Literal(String),
    /// A call: schemas show the type's zero.
    Call,
}

/// One column of a relation version, in table order; dropped and unpublished columns are not in it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// `pg_type.typname`, with the schema in front unless it is `pg_catalog`: see [`type_names`].
    pub type_name: String,
    /// -1 when the type has no modifier.
    pub typmod: i32,
    #[serde(default, skip_serializing_if = "TypeKind::is_base")]
    pub kind: TypeKind,
    pub nullable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<ColumnDefault>,
    /// Place in the key, counted from 0; `None` outside the key.
    pub key: Option<u16>,
    /// The format carries every value of the column exactly; otherwise `ls-text` rides beside some.
    pub exact: bool,
}

/// The Avro schemas that a relation's records are written with, as the registry has them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AvroSchemas {
    /// `None`: the null key of a table without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Of the envelope, or of the flat record.
    pub value: String,
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
    /// Only in Avro: sinks read by these, whatever their own build would make of the table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avro: Option<AvroSchemas>,
    /// What the connector makes of rows before they are written, but for columns that it leaves out: they are not in `columns`.
    pub transforms: Vec<Transform>,
    /// Columns that the source's table has and the connector leaves out. Written only where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hidden: Vec<String>,
    /// What is in the columns' composite types. Written only where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub composites: Vec<Composite>,
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

    /// Whether a column stands in keys and in no row.
    pub fn is_key_only(&self, column: usize) -> bool {
        let name = &self.columns[column].name;
        self.transforms.iter().any(|t| matches!(t, Transform::KeyOnly { column } if column == name))
    }

    /// Columns that hold the same in every row of the table, by their places, with what they hold.
    pub fn constants(&self) -> Vec<(usize, &str)> {
        let held = |(i, column): (usize, &Column)| {
            self.transforms.iter().find_map(|t| match t {
                Transform::Constant { column: name, value } if *name == column.name => Some((i, value.as_str())),
                _ => None,
            })
        };
        self.columns.iter().enumerate().filter_map(held).collect()
    }

    /// The key without constants: what tells the table's own rows apart. Indexes in key order.
    pub fn own_key(&self) -> Vec<usize> {
        let constants = self.constants();
        let mut key = self.key_columns();
        key.retain(|i| constants.iter().all(|(place, _)| place != i));
        key
    }

    /// The columns that tell rows apart and that ranges speak of, by name and type, in key order: the key's own, unless records
    /// have another key.
    pub fn row_key(&self) -> Vec<(String, u32)> {
        let by = self.transforms.iter().find_map(|t| match t {
            Transform::RowsBy { columns } => Some(columns.clone()),
            _ => None,
        });
        let column = |i: usize| (self.columns[i].name.clone(), self.columns[i].type_oid);
        by.unwrap_or_else(|| self.own_key().into_iter().map(column).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn relation() -> Relation {
        let column = |name: &str, key| Column {
            name: name.into(),
            type_oid: 23,
            type_name: "int4".into(),
            typmod: -1,
            kind: TypeKind::Base,
            nullable: false,
            default: None,
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
            avro: None,
            transforms: vec![],
            hidden: vec![],
            composites: vec![],
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
    fn versions_of_older_builds_keep_their_fingerprints() {
        let modes = serde_json::to_value(Modes::default()).unwrap();
        let names: Vec<&String> = modes.as_object().unwrap().keys().collect();
        let first = ["binary", "conversion_failure", "decimal", "hstore", "interval", "null_as_default", "placeholder"];
        assert_eq!(names, [first.as_slice(), &["schemas", "time", "unknown"]].concat());
        assert_eq!(serde_json::from_value::<Modes>(modes).unwrap(), Modes::default());
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

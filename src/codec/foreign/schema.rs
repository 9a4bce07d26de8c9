//! What a value's schema says it is: Connect's types and Debezium's names for what they stand for.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::value::Unread;
use crate::codec::mapping::{self, Encoding, Unit, oid};
use crate::relation::{BinaryMode, Column, Modes, TypeKind};

/// A schema of Connect's as JsonConverter writes it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Node {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    /// The name in the struct around it.
    #[serde(default)]
    pub field: Option<String>,
    #[serde(default)]
    pub fields: Vec<Node>,
    #[serde(default)]
    pub items: Option<Box<Node>>,
}

impl Node {
    fn number<T: std::str::FromStr>(&self, parameter: &str) -> Option<T> {
        self.parameters.get(parameter)?.parse().ok()
    }
}

const VARBIT: &str =
    "Debezium cuts the zeros of a bit varying, so its length is not known; leave the column out of the sink's columns";
const INT2VECTOR: &str =
    "Debezium writes int2vector and oidvector as empty arrays; leave the column out of the sink's columns";

/// How values of a field with this schema are written, where they go into this column.
pub fn encoding(node: &Node, column: &Column, modes: &Modes) -> Result<Encoding, Unread> {
    let own = plain_encoding(column, modes)?;
    if let Some(encoding) = node.name.as_deref().and_then(|name| named(name, node, &own)) {
        return Ok(encoding);
    }
    Ok(match node.kind.as_str() {
        "boolean" => match own {
            Encoding::Bit { varying } => Encoding::Bit { varying },
            _ => Encoding::Bool,
        },
        // Arrays of these have no placeholder.
        "int8" | "int16" => Encoding::Int16,
        "int32" | "int64" => Encoding::Int64,
        "float" | "float32" if base_oid(column) == oid::FLOAT4 => Encoding::Float32,
        "float" | "float32" | "double" | "float64" => match base_oid(column) {
            oid::NUMERIC => Encoding::DecimalDouble,
            oid::MONEY => Encoding::MoneyDouble,
            _ => Encoding::Float64,
        },
        "bytes" if base_oid(column) == oid::BYTEA => Encoding::Bytes(BinaryMode::Bytes),
        "bytes" => Encoding::Opaque(BinaryMode::Bytes),
        "string" => string(column, modes, own)?,
        "array" => array(node, column, modes)?,
        "map" => Encoding::HstoreMap,
        _ => return Err(Unread::Unfit),
    })
}

/// What could come out as another value than the source's where the sink's column has other modifiers than the source's, which
/// records don't tell of: a scale, or a unit, that is the column's; or digits that the column rounds away.
pub fn changes(encoding: &Encoding, column: &Column, has_schema: bool) -> bool {
    let typmod = match &column.kind {
        TypeKind::Domain { base } if column.typmod == -1 => base.typmod,
        _ => column.typmod,
    };
    let is_rounded = typmod != -1;
    // pg_type_typmod of numeric: precision and an eleven-bit signed scale.
    let scale = || (((typmod - 4) & 0x7ff) ^ 1024) - 1024;
    let digits = || if is_rounded { typmod & 0xffff } else { 6 };
    match encoding {
        Encoding::Array { element, .. } => changes(element, column, has_schema),
        Encoding::Decimal { scale: told, .. } => match has_schema {
            true => is_rounded && i64::from(*told) > i64::from(scale()),
            false => true,
        },
        Encoding::VariableDecimal | Encoding::DecimalDouble | Encoding::DecimalText { .. } => is_rounded,
        Encoding::Time(unit) | Encoding::Timestamp(unit) => match (has_schema, unit) {
            (true, Unit::Millis) => digits() < 3,
            (true, _) => digits() < 6,
            (false, _) => true,
        },
        Encoding::ConnectTime | Encoding::ConnectTimestamp => digits() < 3,
        Encoding::IsoTime | Encoding::IsoTimestamp | Encoding::TimeTz => digits() < 6,
        Encoding::TimestampTz { .. } => digits() < 6,
        Encoding::IntervalText => is_rounded,
        Encoding::Float64 => base_oid(column) == oid::FLOAT4,
        _ => false,
    }
}

/// Without a schema: the column says what it is, and the configuration how it is written.
pub fn plain_encoding(column: &Column, modes: &Modes) -> Result<Encoding, Unread> {
    match mapping::encoding(column, modes) {
        Encoding::NumberVector(_) => Err(Unread::Ambiguous(INT2VECTOR)),
        Encoding::Bit { .. } | Encoding::Bits { .. } if base_oid(column) == oid::VARBIT => {
            Err(Unread::Ambiguous(VARBIT))
        }
        encoding => Ok(encoding),
    }
}

/// The type below all domains.
fn base_oid(column: &Column) -> u32 {
    let (mut oid, mut kind) = (column.type_oid, &column.kind);
    while let TypeKind::Domain { base } = kind {
        (oid, kind) = (base.oid, &base.kind);
    }
    oid
}

fn string(column: &Column, modes: &Modes, own: Encoding) -> Result<Encoding, Unread> {
    Ok(match base_oid(column) {
        oid::NUMERIC => Encoding::DecimalText { scale: 0 },
        oid::MONEY => Encoding::MoneyText,
        // A string of base64 or of hexadecimal digits: the schema does not say which.
        oid::BYTEA if modes.binary == BinaryMode::Bytes => {
            return Err(Unread::Ambiguous(
                "write binary_handling under [topics] as Debezium's connector has it: bytea is a string here",
            ));
        }
        oid::BYTEA => Encoding::Bytes(modes.binary),
        _ => match own {
            Encoding::Opaque(mode) if mode != BinaryMode::Bytes => Encoding::Opaque(mode),
            _ => Encoding::Text(None),
        },
    })
}

fn array(node: &Node, column: &Column, modes: &Modes) -> Result<Encoding, Unread> {
    let (mut typmod, mut kind) = (column.typmod, &column.kind);
    while let TypeKind::Domain { base } = kind {
        (typmod, kind) = (base.typmod, &base.kind);
    }
    let (TypeKind::Array { element, delimiter }, Some(items)) = (kind, &node.items) else { return Err(Unread::Unfit) };
    let element = Column {
        type_oid: element.oid,
        type_name: element.name.clone(),
        typmod: if element.typmod == -1 { typmod } else { element.typmod },
        kind: element.kind.clone(),
        ..column.clone()
    };
    Ok(Encoding::Array { element: Box::new(encoding(items, &element, modes)?), delimiter: *delimiter })
}

/// What Debezium's and Connect's names stand for.
fn named(name: &str, node: &Node, own: &Encoding) -> Option<Encoding> {
    Some(match name {
        "org.apache.kafka.connect.data.Decimal" => Encoding::Decimal { precision: 0, scale: node.number("scale")? },
        "org.apache.kafka.connect.data.Date" => Encoding::ConnectDate,
        "org.apache.kafka.connect.data.Time" => Encoding::ConnectTime,
        "org.apache.kafka.connect.data.Timestamp" => Encoding::ConnectTimestamp,
        "io.debezium.data.VariableScaleDecimal" => Encoding::VariableDecimal,
        "io.debezium.data.Bits" => match own {
            Encoding::Bits { length } => Encoding::Bits { length: *length },
            _ => Encoding::Bits { length: node.number("length")? },
        },
        // An hstore has the same name.
        "io.debezium.data.Json" => match own {
            Encoding::HstoreJson | Encoding::HstoreMap => Encoding::HstoreJson,
            _ => Encoding::Text(None),
        },
        "io.debezium.time.Date" => Encoding::Date,
        "io.debezium.time.IsoDate" => Encoding::IsoDate,
        "io.debezium.time.Time" => Encoding::Time(Unit::Millis),
        "io.debezium.time.MicroTime" => Encoding::Time(Unit::Micros),
        "io.debezium.time.NanoTime" => Encoding::Time(Unit::Nanos),
        "io.debezium.time.IsoTime" => Encoding::IsoTime,
        "io.debezium.time.Timestamp" => Encoding::Timestamp(Unit::Millis),
        "io.debezium.time.MicroTimestamp" => Encoding::Timestamp(Unit::Micros),
        "io.debezium.time.NanoTimestamp" => Encoding::Timestamp(Unit::Nanos),
        "io.debezium.time.IsoTimestamp" => Encoding::IsoTimestamp,
        "io.debezium.time.ZonedTimestamp" => Encoding::TimestampTz { digits: 6 },
        "io.debezium.time.ZonedTime" => Encoding::TimeTz,
        "io.debezium.time.Interval" => Encoding::IntervalText,
        "io.debezium.time.MicroDuration" => match own {
            Encoding::Int64 => Encoding::Int64,
            _ => Encoding::IntervalMicros,
        },
        "io.debezium.data.geometry.Point" => Encoding::Point,
        "io.debezium.data.geometry.Geometry" | "io.debezium.data.geometry.Geography" => Encoding::Geometry(""),
        "io.debezium.data.DoubleVector" => Encoding::DoubleVector,
        "io.debezium.data.FloatVector" => Encoding::FloatVector,
        "io.debezium.data.SparseDoubleVector" => Encoding::SparseVector,
        // Texts with a name: enums, uuid, xml, ltree, tsvector.
        _ if node.kind == "string" => Encoding::Text(None),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(type_oid: u32, typmod: i32) -> Column {
        Column {
            name: "c".into(),
            type_oid,
            type_name: String::new(),
            typmod,
            kind: TypeKind::Base,
            nullable: true,
            default: None,
            key: None,
            exact: false,
        }
    }

    #[test]
    fn what_the_columns_modifiers_decide_is_not_told_by_records() {
        let numeric = |precision: i32, scale: i32| column(oid::NUMERIC, ((precision << 16) | (scale & 0x7ff)) + 4);
        let decimal = |scale| Encoding::Decimal { precision: 0, scale };
        assert!(!changes(&decimal(2), &numeric(12, 4), true) && !changes(&decimal(2), &numeric(10, 2), true));
        assert!(changes(&decimal(4), &numeric(10, 2), true), "it would be rounded");
        assert!(changes(&decimal(0), &numeric(10, -2), true));
        assert!(changes(&decimal(4), &numeric(12, 4), false), "the scale is the column's");
        assert!(changes(&Encoding::DecimalText { scale: 0 }, &numeric(12, 4), true));
        assert!(!changes(&Encoding::DecimalText { scale: 0 }, &column(oid::NUMERIC, -1), false));
        let (millis, micros) = (Encoding::Timestamp(Unit::Millis), Encoding::Timestamp(Unit::Micros));
        let at = |digits| column(oid::TIMESTAMP, digits);
        assert!(
            !changes(&millis, &at(-1), true) && !changes(&micros, &at(-1), true) && !changes(&millis, &at(3), true)
        );
        assert!(changes(&micros, &at(3), true) && changes(&millis, &at(2), true));
        assert!(changes(&micros, &at(-1), false), "the source's may have had three digits, and be milliseconds");
        let real = |encoding| changes(&encoding, &column(oid::FLOAT4, -1), true);
        assert!(real(Encoding::Float64) && !real(Encoding::Float32));
        assert!(!changes(&Encoding::Int64, &column(oid::INT8, -1), false));
    }
}

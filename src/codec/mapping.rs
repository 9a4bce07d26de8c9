//! What a column becomes: one pure function of its type and the modes, used alike by encoders, decoder and schemas.
//!
//! The names follow Debezium's documentation ("Data type mappings" of the PostgreSQL connector). Types that Debezium has no
//! mapping for are what [`UnknownMode`] says; a string of the Postgres text unless asked otherwise, so nothing is ever dropped
//! for being unknown. Where Debezium drops or damages a type that it could map (arrays of intervals, `name` …), the mapping is
//! the one that its elements would have: docs/debezium-compatibility.md lists them.

use super::schema::{self, Schema, Type, Value};
use super::write::{TreeWriter, write};
use crate::relation::{
    BinaryMode, Column, ColumnDefault, DecimalMode, HstoreMode, IntervalMode, Modes, Relation, TimeMode, TypeKind,
    TypeName, UnknownMode, type_names,
};

/// How the values of a column are written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Encoding {
    Bool,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    /// A string of the Postgres text, with the semantic type's name if it has one.
    Text(Option<&'static str>),
    Enum {
        labels: Vec<String>,
    },
    /// A string; NaN and the infinities under Debezium's names.
    DecimalText {
        scale: u16,
    },
    DecimalDouble,
    /// Connect's Decimal of a fixed scale.
    Decimal {
        precision: u16,
        scale: u16,
    },
    /// Debezium's struct of a scale and an unscaled value.
    VariableDecimal,
    /// Money as a string without currency sign and thousands separators.
    MoneyText,
    MoneyDouble,
    /// Connect's Decimal with two digits.
    Money,
    Bytes(BinaryMode),
    /// bit(1), and bit varying(1), which can be empty too.
    Bit {
        varying: bool,
    },
    /// Little-endian bytes without trailing zeros; `length` is the column's, in bits.
    Bits {
        length: u32,
    },
    /// Days since 1970-01-01.
    Date,
    ConnectDate,
    IsoDate,
    /// Since midnight.
    Time(Unit),
    ConnectTime,
    IsoTime,
    /// Since 1970-01-01 00:00, without a time zone.
    Timestamp(Unit),
    ConnectTimestamp,
    IsoTimestamp,
    /// ISO 8601 in UTC, the fraction padded to as many digits as the column has.
    TimestampTz {
        digits: u8,
    },
    /// ISO 8601 in UTC.
    TimeTz,
    IntervalText,
    IntervalMicros,
    HstoreJson,
    HstoreMap,
    /// Debezium's struct of coordinates and WKB.
    Point,
    /// PostGIS: WKB and SRID. The name is `Geometry` or `Geography`.
    Geometry(&'static str),
    /// pgvector.
    DoubleVector,
    FloatVector,
    SparseVector,
    /// int2vector and oidvector: numbers between spaces.
    NumberVector(Box<Encoding>),
    Array {
        element: Box<Encoding>,
        /// In the text, between elements.
        delimiter: u8,
    },
    /// Bytes of the Postgres text.
    Opaque(BinaryMode),
    /// No field: the value is in `ls-text` alone.
    Skipped,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    Millis,
    Micros,
    Nanos,
}

impl Unit {
    /// Of times and timestamps with this type modifier: up to three digits are milliseconds.
    fn of(typmod: i32) -> Unit {
        if (0..=3).contains(&typmod) { Unit::Millis } else { Unit::Micros }
    }
}

/// Type OIDs of `pg_catalog`; they never change (src/include/catalog/pg_type.dat).
pub mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const CHAR: u32 = 18;
    pub const NAME: u32 = 19;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT2VECTOR: u32 = 22;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const OIDVECTOR: u32 = 30;
    pub const JSON: u32 = 114;
    pub const XML: u32 = 142;
    pub const POINT: u32 = 600;
    pub const CIDR: u32 = 650;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const MACADDR8: u32 = 774;
    pub const MONEY: u32 = 790;
    pub const MACADDR: u32 = 829;
    pub const INET: u32 = 869;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const INTERVAL: u32 = 1186;
    pub const TIMETZ: u32 = 1266;
    pub const BIT: u32 = 1560;
    pub const VARBIT: u32 = 1562;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const TSVECTOR: u32 = 3614;
    pub const JSONB: u32 = 3802;
    pub const INT4RANGE: u32 = 3904;
    pub const NUMRANGE: u32 = 3906;
    pub const TSRANGE: u32 = 3908;
    pub const TSTZRANGE: u32 = 3910;
    pub const DATERANGE: u32 = 3912;
    pub const INT8RANGE: u32 = 3926;
}

/// How the values of a column are written.
pub fn encoding(column: &Column, modes: &Modes) -> Encoding {
    of_type(column.type_oid, &column.type_name, column.typmod, &column.kind, modes)
}

/// All columns of a relation version.
pub fn encodings(relation: &Relation) -> Vec<Encoding> {
    relation.columns.iter().map(|column| encoding(column, &relation.modes)).collect()
}

fn of_type(type_oid: u32, name: &str, typmod: i32, kind: &TypeKind, modes: &Modes) -> Encoding {
    match kind {
        TypeKind::Enum { labels } => return Encoding::Enum { labels: labels.clone() },
        // A domain's own modifier is its base's; the column has none.
        TypeKind::Domain { base } => return of_type(base.oid, &base.name, base.typmod, &base.kind, modes),
        TypeKind::Array { element, delimiter } => return array(element, *delimiter, typmod, modes),
        TypeKind::Base | TypeKind::Composite | TypeKind::Range | TypeKind::Multirange => {}
    }
    match type_oid {
        oid::INT2 => Encoding::Int16,
        oid::INT4 => Encoding::Int32,
        oid::INT8 | oid::OID => Encoding::Int64,
        oid::FLOAT4 => Encoding::Float32,
        oid::FLOAT8 => Encoding::Float64,
        oid::NUMERIC => numeric(typmod, modes.decimal),
        oid::MONEY => match modes.decimal {
            DecimalMode::String => Encoding::MoneyText,
            DecimalMode::Double => Encoding::MoneyDouble,
            DecimalMode::Precise => Encoding::Money,
        },
        oid::BOOL => Encoding::Bool,
        oid::BYTEA => Encoding::Bytes(modes.binary),
        // bit without a length is bit(1), and its modifier says so.
        oid::BIT | oid::VARBIT if typmod == 1 => Encoding::Bit { varying: type_oid == oid::VARBIT },
        oid::BIT | oid::VARBIT => Encoding::Bits { length: u32::try_from(typmod).unwrap_or(i32::MAX.unsigned_abs()) },
        oid::DATE => match modes.time {
            TimeMode::Connect => Encoding::ConnectDate,
            TimeMode::Isostring => Encoding::IsoDate,
            _ => Encoding::Date,
        },
        oid::TIME => match modes.time {
            TimeMode::Adaptive => Encoding::Time(Unit::of(typmod)),
            TimeMode::AdaptiveTimeMicroseconds | TimeMode::Microseconds => Encoding::Time(Unit::Micros),
            TimeMode::Nanoseconds => Encoding::Time(Unit::Nanos),
            TimeMode::Connect => Encoding::ConnectTime,
            TimeMode::Isostring => Encoding::IsoTime,
        },
        oid::TIMESTAMP => match modes.time {
            TimeMode::Adaptive | TimeMode::AdaptiveTimeMicroseconds => Encoding::Timestamp(Unit::of(typmod)),
            TimeMode::Microseconds => Encoding::Timestamp(Unit::Micros),
            TimeMode::Nanoseconds => Encoding::Timestamp(Unit::Nanos),
            TimeMode::Connect => Encoding::ConnectTimestamp,
            TimeMode::Isostring => Encoding::IsoTimestamp,
        },
        oid::TIMESTAMPTZ => {
            let digits = u8::try_from(typmod).ok().filter(|digits| *digits <= 6);
            Encoding::TimestampTz { digits: digits.unwrap_or(6) }
        }
        oid::TIMETZ => Encoding::TimeTz,
        oid::INTERVAL => match modes.interval {
            IntervalMode::Numeric => Encoding::IntervalMicros,
            IntervalMode::String => Encoding::IntervalText,
        },
        oid::CHAR | oid::NAME | oid::TEXT | oid::BPCHAR | oid::VARCHAR => Encoding::Text(None),
        oid::INET | oid::CIDR | oid::MACADDR | oid::MACADDR8 => Encoding::Text(None),
        oid::INT4RANGE | oid::INT8RANGE | oid::NUMRANGE => Encoding::Text(None),
        oid::TSRANGE | oid::TSTZRANGE | oid::DATERANGE => Encoding::Text(None),
        oid::JSON | oid::JSONB => Encoding::Text(Some(JSON)),
        oid::XML => Encoding::Text(Some("io.debezium.data.Xml")),
        oid::UUID => Encoding::Text(Some("io.debezium.data.Uuid")),
        oid::TSVECTOR => Encoding::Text(Some("io.debezium.data.Tsvector")),
        oid::POINT => Encoding::Point,
        oid::INT2VECTOR => Encoding::NumberVector(Box::new(Encoding::Int16)),
        oid::OIDVECTOR => Encoding::NumberVector(Box::new(Encoding::Int64)),
        _ => of_extension(name, kind, modes),
    }
}

/// Types of extensions have no fixed OIDs; their names are those that Debezium looks for.
fn of_extension(name: &str, kind: &TypeKind, modes: &Modes) -> Encoding {
    let (schema, plain) = type_names::split(name);
    match if schema.is_some() && kind.is_base() { &*plain } else { "" } {
        "hstore" => match modes.hstore {
            HstoreMode::Json => Encoding::HstoreJson,
            HstoreMode::Map => Encoding::HstoreMap,
        },
        "citext" | "isbn" => Encoding::Text(None),
        "ltree" => Encoding::Text(Some("io.debezium.data.Ltree")),
        "geometry" => Encoding::Geometry(GEOMETRY),
        "geography" => Encoding::Geometry(GEOGRAPHY),
        "vector" => Encoding::DoubleVector,
        "halfvec" => Encoding::FloatVector,
        "sparsevec" => Encoding::SparseVector,
        _ => match modes.unknown {
            UnknownMode::Text => Encoding::Text(None),
            UnknownMode::Bytes => Encoding::Opaque(modes.binary),
            UnknownMode::Skip => Encoding::Skipped,
        },
    }
}

/// An array's modifier is its elements'.
fn array(element: &TypeName, delimiter: u8, typmod: i32, modes: &Modes) -> Encoding {
    let typmod = if element.typmod == -1 { typmod } else { element.typmod };
    match of_type(element.oid, &element.name, typmod, &element.kind, modes) {
        Encoding::Skipped => Encoding::Skipped,
        element => Encoding::Array { element: Box::new(element), delimiter },
    }
}

fn numeric(typmod: i32, mode: DecimalMode) -> Encoding {
    let (precision, scale) = numeric_shape(typmod);
    match mode {
        DecimalMode::String => Encoding::DecimalText { scale: scale.unwrap_or(0) },
        DecimalMode::Double => Encoding::DecimalDouble,
        DecimalMode::Precise => match scale {
            Some(scale) => Encoding::Decimal { precision, scale },
            None => Encoding::VariableDecimal,
        },
    }
}

/// Precision and scale of a numeric's modifier; a negative scale counts as none behind the point. No scale: no modifier.
fn numeric_shape(typmod: i32) -> (u16, Option<u16>) {
    if typmod < 4 {
        return (0, None);
    }
    // numeric_typmod_scale() of Postgres 15+: 11 bits with a sign; earlier versions only make 0 to 1000.
    let scale = (((typmod - 4) & 0x7ff) ^ 1024) - 1024;
    let precision = u16::try_from((typmod - 4) >> 16 & 0xffff).expect("16 bits");
    (precision, Some(u16::try_from(scale).unwrap_or(0)))
}

const JSON: &str = "io.debezium.data.Json";
const GEOMETRY: &str = "io.debezium.data.geometry.Geometry";
const GEOGRAPHY: &str = "io.debezium.data.geometry.Geography";

/// For [`Column::exact`]: whether the format carries every value that Postgres prints for the column. Where it does not,
/// `ls-text` rides beside some or all.
pub fn exact(column: &Column, modes: &Modes) -> bool {
    !modes.null_as_default && carries_all(&encoding(column, modes))
}

fn carries_all(encoding: &Encoding) -> bool {
    matches!(
        encoding,
        Encoding::Bool
            | Encoding::Int16
            | Encoding::Int32
            | Encoding::Int64
            | Encoding::Text(_)
            | Encoding::Enum { .. }
            | Encoding::MoneyText
            | Encoding::Bytes(_)
            | Encoding::Bit { varying: false }
            | Encoding::Time(_)
            | Encoding::TimestampTz { .. }
    )
}

/// The schema of a column; `None` for one that has no field. Debezium's schema of a geometry is optional whatever the column is.
pub fn schema(column: &Column, modes: &Modes) -> Option<Schema> {
    let encoding = encoding(column, modes);
    let schema = schema_of(&encoding)?.with_default(default(column, &encoding));
    Some(if column.nullable || encoding == Encoding::Geometry(GEOMETRY) { schema.optional() } else { schema })
}

/// The schema of an encoding: not optional, no default.
pub fn schema_of(encoding: &Encoding) -> Option<Schema> {
    let new = Schema::new;
    let named = |of, name: &str| Schema::named(of, name, 1);
    let decimal =
        |scale: u16| named(Type::Bytes, "org.apache.kafka.connect.data.Decimal").with_parameter("scale", scale);
    Some(match encoding {
        Encoding::Bool | Encoding::Bit { .. } => new(Type::Boolean),
        Encoding::Int16 => new(Type::Int16),
        Encoding::Int32 => new(Type::Int32),
        Encoding::Int64 => new(Type::Int64),
        Encoding::Float32 => new(Type::Float32),
        Encoding::Float64 | Encoding::DecimalDouble | Encoding::MoneyDouble => new(Type::Float64),
        Encoding::Text(None) | Encoding::DecimalText { .. } | Encoding::MoneyText => schema::string(),
        Encoding::Text(Some(name)) => named(Type::String, name),
        Encoding::Enum { labels } => {
            named(Type::String, "io.debezium.data.Enum").with_parameter("allowed", labels.join(","))
        }
        Encoding::Decimal { precision, scale } => {
            decimal(*scale).with_parameter("connect.decimal.precision", precision)
        }
        Encoding::Money => decimal(2),
        Encoding::VariableDecimal => {
            let of = schema::fields([("scale", schema::int32()), ("value", new(Type::Bytes))]);
            named(of, "io.debezium.data.VariableScaleDecimal").with_doc("Variable scaled decimal")
        }
        Encoding::Bytes(BinaryMode::Bytes) | Encoding::Opaque(BinaryMode::Bytes) => new(Type::Bytes),
        Encoding::Bytes(_) | Encoding::Opaque(_) => schema::string(),
        Encoding::Bits { length } => named(Type::Bytes, "io.debezium.data.Bits").with_parameter("length", length),
        Encoding::Date => named(Type::Int32, "io.debezium.time.Date"),
        Encoding::ConnectDate => named(Type::Int32, "org.apache.kafka.connect.data.Date"),
        Encoding::IsoDate => named(Type::String, "io.debezium.time.IsoDate"),
        Encoding::Time(Unit::Millis) => named(Type::Int32, "io.debezium.time.Time"),
        Encoding::Time(Unit::Micros) => named(Type::Int64, "io.debezium.time.MicroTime"),
        Encoding::Time(Unit::Nanos) => named(Type::Int64, "io.debezium.time.NanoTime"),
        Encoding::ConnectTime => named(Type::Int32, "org.apache.kafka.connect.data.Time"),
        Encoding::IsoTime => named(Type::String, "io.debezium.time.IsoTime"),
        Encoding::Timestamp(Unit::Millis) => named(Type::Int64, "io.debezium.time.Timestamp"),
        Encoding::Timestamp(Unit::Micros) => named(Type::Int64, "io.debezium.time.MicroTimestamp"),
        Encoding::Timestamp(Unit::Nanos) => named(Type::Int64, "io.debezium.time.NanoTimestamp"),
        Encoding::ConnectTimestamp => named(Type::Int64, "org.apache.kafka.connect.data.Timestamp"),
        Encoding::IsoTimestamp => named(Type::String, "io.debezium.time.IsoTimestamp"),
        Encoding::TimestampTz { .. } => named(Type::String, "io.debezium.time.ZonedTimestamp"),
        Encoding::TimeTz => named(Type::String, "io.debezium.time.ZonedTime"),
        Encoding::IntervalMicros => named(Type::Int64, "io.debezium.time.MicroDuration"),
        Encoding::IntervalText => named(Type::String, "io.debezium.time.Interval"),
        Encoding::HstoreJson => named(Type::String, JSON),
        Encoding::HstoreMap => new(Type::Map(Box::new(schema::string()), Box::new(schema::string().optional()))),
        Encoding::Point => {
            let double = || new(Type::Float64);
            let of = schema::fields([
                ("x", double()),
                ("y", double()),
                ("wkb", new(Type::Bytes).optional()),
                ("srid", schema::int32().optional()),
            ]);
            named(of, "io.debezium.data.geometry.Point").with_doc("Geometry (POINT)")
        }
        Encoding::Geometry(name) => {
            let of = schema::fields([("wkb", new(Type::Bytes)), ("srid", schema::int32().optional())]);
            named(of, name).with_doc(name.rsplit_once('.').map_or(*name, |(_, plain)| plain))
        }
        Encoding::DoubleVector => named(Type::Array(Box::new(new(Type::Float64))), "io.debezium.data.DoubleVector"),
        Encoding::FloatVector => named(Type::Array(Box::new(new(Type::Float32))), "io.debezium.data.FloatVector"),
        Encoding::SparseVector => {
            let vector = Type::Map(Box::new(new(Type::Int16)), Box::new(new(Type::Float64)));
            let of = schema::fields([("dimensions", new(Type::Int16)), ("vector", new(vector))]);
            named(of, "io.debezium.data.SparseDoubleVector").with_doc("Sparse double vector")
        }
        Encoding::NumberVector(number) => new(Type::Array(Box::new(schema_of(number)?))),
        Encoding::Array { element, .. } => {
            let items = schema_of(element)?;
            // Debezium makes the elements of these three required, and drops arrays that hold NULL. Ours say what is true,
            // except where the schema must not differ.
            new(Type::Array(Box::new(items.optional())))
        }
        Encoding::Skipped => return None,
    })
}

/// The default that a column's schema shows.
pub fn default(column: &Column, encoding: &Encoding) -> Option<Value> {
    let text = match column.default.as_ref()? {
        ColumnDefault::Call => return if is_extended(encoding) { None } else { zero(encoding) },
        ColumnDefault::Literal(text) => text,
    };
    // Debezium reads no defaults of these.
    let without = matches!(
        encoding,
        Encoding::Array { .. }
            | Encoding::Bytes(_)
            | Encoding::Opaque(_)
            | Encoding::MoneyText
            | Encoding::MoneyDouble
            | Encoding::Money
            | Encoding::HstoreJson
            | Encoding::HstoreMap
            | Encoding::Point
            | Encoding::Geometry(_)
            | Encoding::DoubleVector
            | Encoding::FloatVector
            | Encoding::SparseVector
            | Encoding::NumberVector(_)
            | Encoding::Skipped
    );
    if without {
        return None;
    }
    let mut tree = TreeWriter::default();
    write(encoding, default_text(encoding, text).as_bytes(), &mut tree).ok()?;
    tree.value()
}

/// Of PostGIS or pgvector: Debezium reads no defaults of these at all.
fn is_extended(encoding: &Encoding) -> bool {
    matches!(encoding, Encoding::Geometry(_) | Encoding::SparseVector)
}

/// A numeric's default is printed with the digits that were written, not with the column's.
fn default_text(encoding: &Encoding, text: &str) -> String {
    match encoding {
        Encoding::DecimalText { scale } | Encoding::Decimal { scale, .. } => {
            let have = text.split_once('.').map_or(0, |(_, digits)| digits.len());
            let missing = usize::from(*scale).saturating_sub(have);
            let point = if have == 0 && missing > 0 { "." } else { "" };
            format!("{text}{point}{}", "0".repeat(missing))
        }
        _ => text.to_owned(),
    }
}

/// What Debezium shows where NULL is not allowed and nothing is known.
pub fn zero(encoding: &Encoding) -> Option<Value> {
    let text = match encoding {
        Encoding::Bool => "f",
        Encoding::Bit { .. } => "0",
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 => "0",
        Encoding::Float32 | Encoding::Float64 => "0.0",
        Encoding::DecimalDouble | Encoding::DecimalText { .. } | Encoding::Decimal { .. } => "0",
        Encoding::VariableDecimal => "0",
        Encoding::MoneyText | Encoding::MoneyDouble | Encoding::Money => "$0.00",
        Encoding::Text(_) | Encoding::Enum { .. } => "",
        Encoding::Bytes(_) => "\\x",
        Encoding::Bits { .. } | Encoding::HstoreJson | Encoding::HstoreMap => "",
        Encoding::Opaque(_) => "",
        Encoding::Date | Encoding::ConnectDate | Encoding::IsoDate => "1970-01-01",
        Encoding::Time(_) | Encoding::ConnectTime | Encoding::IsoTime => "00:00:00",
        Encoding::Timestamp(_) | Encoding::ConnectTimestamp | Encoding::IsoTimestamp => "1970-01-01 00:00:00",
        Encoding::TimestampTz { .. } => "1970-01-01 00:00:00+00",
        Encoding::TimeTz => "00:00:00+00",
        Encoding::IntervalText | Encoding::IntervalMicros => "00:00:00",
        Encoding::Point => "(0,0)",
        // GEOMETRYCOLLECTION EMPTY
        Encoding::Geometry(_) => "010700000000000000",
        // An empty collection.
        Encoding::Array { .. } | Encoding::NumberVector(_) => return Some(Value::Array(Vec::new())),
        Encoding::DoubleVector | Encoding::FloatVector => return Some(Value::Array(Vec::new())),
        // Debezium's connector stops here, for want of one.
        Encoding::SparseVector => "{}/0",
        Encoding::Skipped => return None,
    };
    let mut tree = TreeWriter::default();
    write(encoding, default_text(encoding, text).as_bytes(), &mut tree).ok()?;
    tree.value()
}

/// What `before` shows of a column that was not sent, and what stands for a value that has no form: the default, else null,
/// or the type's zero where null is not allowed.
pub fn unsent(column: &Column, encoding: &Encoding, modes: &Modes) -> Value {
    let default = if column.nullable && !modes.null_as_default { None } else { default(column, encoding) };
    let zero = || if column.nullable { None } else { zero(encoding) };
    default.or_else(zero).unwrap_or(Value::Null)
}

/// What `after` shows of a column that was not sent. Types that Debezium has no placeholder for get what `before` would show.
pub fn unavailable(column: &Column, encoding: &Encoding, modes: &Modes) -> Value {
    let bytes = modes.placeholder.bytes().unwrap_or_default();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    let signed = || bytes.iter().map(|byte| Value::Integer(i64::from(byte.cast_signed()))).collect();
    match encoding {
        Encoding::Text(_) | Encoding::Enum { .. } | Encoding::DecimalText { .. } | Encoding::HstoreJson => text(),
        Encoding::Bytes(BinaryMode::Bytes) | Encoding::Opaque(BinaryMode::Bytes) => Value::Bytes(bytes),
        Encoding::HstoreMap => Value::Map(vec![(text(), text())]),
        Encoding::Array { element, .. } => match **element {
            Encoding::Text(_) | Encoding::Enum { .. } => Value::Array(vec![text()]),
            Encoding::Int32 | Encoding::Int64 => Value::Array(signed()),
            _ => unsent(column, encoding, modes),
        },
        _ => unsent(column, encoding, modes),
    }
}

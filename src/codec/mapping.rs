//! Which JSON a column becomes: one pure function of its type, used alike by encoder and decoder.
//!
//! The names follow Debezium's documentation ("Data type mappings" of the PostgreSQL connector) with time.precision.mode
//! adaptive and decimal.handling.mode string. A type that is not listed is [`Encoding::Text`]: a string of its Postgres text
//! is always exact, so nothing is ever dropped for being unknown.

use crate::relation::{Column, DecimalMode, Modes};

/// How the values of a column are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// A JSON number with the digits of the Postgres text.
    Integer,
    /// A JSON number with Postgres' shortest digits; NaN and the infinities as Java's names in quotes.
    Float,
    /// A string; NaN and the infinities under Debezium's names.
    Numeric,
    /// Money as a string without currency sign and thousands separators.
    Money,
    Bool,
    /// A string of the Postgres text.
    Text,
    /// Base64.
    Bytes,
    /// Days since 1970-01-01.
    Date,
    /// Since midnight.
    Time(Unit),
    /// Since 1970-01-01 00:00, without a time zone.
    Timestamp(Unit),
    /// ISO 8601 in UTC, the fraction padded to as many digits as the column has.
    TimestampTz {
        digits: u8,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    Millis,
    Micros,
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
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const OID: u32 = 26;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const MONEY: u32 = 790;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const JSONB: u32 = 3802;
}

/// How values of the type are written.
pub fn encoding(type_oid: u32, typmod: i32, modes: &Modes) -> Encoding {
    let DecimalMode::String = modes.decimal;
    match type_oid {
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => Encoding::Integer,
        oid::FLOAT4 | oid::FLOAT8 => Encoding::Float,
        oid::NUMERIC => Encoding::Numeric,
        oid::MONEY => Encoding::Money,
        oid::BOOL => Encoding::Bool,
        oid::BYTEA => Encoding::Bytes,
        oid::DATE => Encoding::Date,
        oid::TIME => Encoding::Time(Unit::of(typmod)),
        oid::TIMESTAMP => Encoding::Timestamp(Unit::of(typmod)),
        oid::TIMESTAMPTZ => {
            let digits = u8::try_from(typmod).ok().filter(|digits| *digits <= 6);
            Encoding::TimestampTz { digits: digits.unwrap_or(6) }
        }
        _ => Encoding::Text,
    }
}

/// For [`Column::exact`]: whether the JSON carries every value that Postgres prints for the type. Where it does not, `ls-text`
/// rides beside some: NaN and the infinities, and timestamps beyond 64 bits of microseconds.
pub fn exact(type_oid: u32) -> bool {
    !matches!(type_oid, oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC | oid::DATE | oid::TIMESTAMP)
}

/// Debezium's `unavailable.value.placeholder`.
pub const PLACEHOLDER: &str = "__debezium_unavailable_value";
const PLACEHOLDER_STRING: &str = "\"__debezium_unavailable_value\"";
const PLACEHOLDER_BASE64: &str = "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"";

/// The JSON of a column of `after` that was not sent. Types that can't be stored out of line are never in this place as a
/// stream stands; they get what `before` would show.
pub fn unavailable(column: &Column, encoding: Encoding) -> String {
    match encoding {
        Encoding::Text | Encoding::Numeric => PLACEHOLDER_STRING.to_owned(),
        Encoding::Bytes => PLACEHOLDER_BASE64.to_owned(),
        Encoding::Integer
        | Encoding::Float
        | Encoding::Money
        | Encoding::Bool
        | Encoding::Date
        | Encoding::Time(_)
        | Encoding::Timestamp(_)
        | Encoding::TimestampTz { .. } => unsent(column, encoding),
    }
}

/// The JSON of a column of `before` that was not sent: null, or the type's zero where null is not allowed.
pub fn unsent(column: &Column, encoding: Encoding) -> String {
    if column.nullable {
        return "null".to_owned();
    }
    match encoding {
        Encoding::Integer | Encoding::Date | Encoding::Time(_) | Encoding::Timestamp(_) => "0".to_owned(),
        Encoding::Float => "0.0".to_owned(),
        Encoding::Bool => "false".to_owned(),
        Encoding::Text | Encoding::Bytes => "\"\"".to_owned(),
        Encoding::Numeric => match numeric_scale(column.typmod) {
            0 => "\"0\"".to_owned(),
            scale => format!("\"0.{}\"", "0".repeat(scale)),
        },
        Encoding::Money => "\"0.00\"".to_owned(),
        Encoding::TimestampTz { digits: 0 } => "\"1970-01-01T00:00:00Z\"".to_owned(),
        Encoding::TimestampTz { digits } => {
            format!("\"1970-01-01T00:00:00.{}Z\"", "0".repeat(usize::from(digits)))
        }
    }
}

/// Digits behind the point of numeric(p,s); 0 without a modifier or when s is negative.
fn numeric_scale(typmod: i32) -> usize {
    if typmod < 4 {
        return 0;
    }
    // numeric_typmod_scale() of Postgres 15+: 11 bits with a sign; earlier versions only make 0 to 1000.
    let scale = (((typmod - 4) & 0x7ff) ^ 1024) - 1024;
    usize::try_from(scale).unwrap_or(0)
}

//! What a column is at the source, as parameters of its schema (`column.propagate.source.type`).
//!
//! Length and scale are those that Postgres' JDBC driver gives a type (its TypeInfoCache: getPrecision, getScale), which
//! Debezium passes on: digits of integers, characters of dates as they are printed, 2147483647 where there is no limit.

use super::mapping::oid;
use crate::relation::{Column, TypeKind, type_names};

/// The driver's word for "no limit".
const UNLIMITED: i64 = i32::MAX as i64;
/// Of times and timestamps without a modifier.
const DIGITS: i64 = 6;

/// Names and values, in Debezium's order.
pub fn parameters(column: &Column) -> [(&'static str, String); 4] {
    let (length, scale) = size(column.type_oid, column.typmod, &column.kind);
    let (_, type_name) = type_names::split(&column.type_name);
    [
        ("__debezium.source.column.type", type_name.to_uppercase()),
        ("__debezium.source.column.length", length.to_string()),
        ("__debezium.source.column.scale", scale.to_string()),
        ("__debezium.source.column.name", column.name.clone()),
    ]
}

/// Length and scale of a type; an array's are its elements'.
fn size(type_oid: u32, typmod: i32, kind: &TypeKind) -> (i64, i64) {
    match kind {
        TypeKind::Domain { base } => return size(base.oid, base.typmod, &base.kind),
        TypeKind::Array { element, .. } => {
            let typmod = if element.typmod == -1 { typmod } else { element.typmod };
            return size(element.oid, typmod, &element.kind);
        }
        _ => {}
    }
    let modifier = (typmod != -1).then(|| i64::from(typmod));
    let digits = modifier.unwrap_or(DIGITS);
    // What stands behind the seconds: a point and digits.
    let fraction = if digits == 0 { 0 } else { digits + 1 };
    match type_oid {
        oid::INT2 => (5, 0),
        oid::INT4 | oid::OID => (10, 0),
        oid::INT8 => (19, 0),
        oid::FLOAT4 => (8, 8),
        oid::FLOAT8 => (17, 17),
        oid::NUMERIC => modifier.map_or((0, 0), |typmod| ((typmod - 4) >> 16 & 0xffff, (typmod - 4) & 0xffff)),
        oid::BOOL | oid::CHAR => (1, 0),
        oid::BPCHAR | oid::VARCHAR => (modifier.map_or(UNLIMITED, |typmod| typmod - 4), 0),
        oid::BIT | oid::VARBIT => (modifier.unwrap_or(UNLIMITED), 0),
        oid::DATE => (13, 0),
        oid::TIME => (8 + fraction, digits),
        oid::TIMETZ => (14 + fraction, digits),
        oid::TIMESTAMP => (22 + fraction, digits),
        oid::TIMESTAMPTZ => (28 + fraction, digits),
        oid::INTERVAL => (49, modifier.map_or(DIGITS, |typmod| typmod & 0xffff)),
        _ => (UNLIMITED, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::column;

    #[test]
    fn sizes_are_the_driver_s() {
        // The first five as tests/golden/17-mask-v2-propagated-schemas has them.
        for (type_oid, typmod, length, scale) in [
            (oid::INT4, -1, 10, 0),
            (oid::TEXT, -1, UNLIMITED, 0),
            (oid::VARCHAR, 15, 11, 0),
            (oid::NUMERIC, (10 << 16) + 2 + 4, 10, 2),
            (oid::DATE, -1, 13, 0),
            (oid::TIMESTAMP, -1, 29, 6),
            (oid::TIMESTAMPTZ, 3, 32, 3),
            (oid::TIME, 0, 8, 0),
            (oid::BYTEA, -1, UNLIMITED, 0),
        ] {
            assert_eq!(size(type_oid, typmod, &TypeKind::Base), (length, scale), "{type_oid}");
        }
        let mut of = column("Mood", 70_000, -1, true, None);
        of.type_name = "public.mood".into();
        assert_eq!(parameters(&of)[0].1, "MOOD");
        assert_eq!(parameters(&of)[3], ("__debezium.source.column.name", "Mood".to_owned()));
    }
}

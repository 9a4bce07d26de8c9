//! Whether a table of a MariaDB can hold what is wanted of it, judged from its catalog alone: every finding at once, each with
//! the SQL that mends it. A schema of Postgres is a database here.
//!
//! | at the source | here |
//! |---|---|
//! | int2, int4, int8, oid | an integer with at least that room, or DECIMAL |
//! | numeric(p, s) | DECIMAL with at least that room; equal as a number, not in its zeros at the end |
//! | numeric | DECIMAL; a value with more digits, NaN and the infinities are refused when they come |
//! | float4, float8 | FLOAT and DOUBLE, or DOUBLE; NaN and the infinities are refused when they come |
//! | bool | any integer: 1 and 0 |
//! | date, time, timestamp | DATE, TIME, DATETIME with as many digits of a second; infinities, BC and years from 10000 on are refused when they come |
//! | timestamptz | DATETIME or TIMESTAMP: the time in UTC |
//! | bytea | BLOBs, VARBINARY |
//! | uuid | BINARY(16), CHAR(36) or a text; the type UUID refuses some, and sorts by other bytes first |
//! | every other type, and each of these | a text in utf8mb4 or binary: what Postgres prints |
//!
//! Keys must be told apart and ordered as at the source, so a text in a key needs a collation by bytes that does not pad:
//! utf8mb4_bin takes `a` and `a ` for one.

use super::catalog::{ColumnFacts, TableFacts, UniqueFacts};
use super::value::Kind;
use crate::error::{Code, Halt};
use crate::key::KeyOrder;
use crate::relation::{Column, TableName};
use crate::sink::stored::Stored;
use crate::sink::{Findings, WantedColumn, WantedTable};

/// The collation of texts in keys.
const KEY_COLLATION: &str = "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin";

/// Digits that a DECIMAL has at most, and of them behind the point.
const DECIMAL_DIGITS_MAX: i32 = 65;
const DECIMAL_SCALE_MAX: i32 = 38;

/// The one way an identifier enters SQL here.
pub(super) fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

pub(super) fn quoted(table: &TableName) -> String {
    format!("{}.{}", quote(&table.schema), quote(&table.table))
}

/// Judges one table.
pub(super) fn judge(wanted: &WantedTable, facts: Option<&TableFacts>) -> Findings {
    let Some(facts) = facts else {
        let message = format!("table {} does not exist at the sink", wanted.table);
        return Findings { halts: vec![halt(message, create_table(wanted))], notes: vec![] };
    };
    let (table, mut halts) = (quoted(&wanted.table), Vec::new());
    if !facts.is_table {
        halts.push(halt(format!("{} is not a table but a view or the like", wanted.table), create_table(wanted)));
    } else if !facts.engine.eq_ignore_ascii_case("InnoDB") {
        halts.push(halt(
            format!("table {} is of the engine {}, which has no transactions", wanted.table, facts.engine),
            format!("ALTER TABLE {table} ENGINE = InnoDB"),
        ));
    }
    if wanted.is_keyless() {
        halts.push(halt(
            format!("table {} has no key, and a MariaDB sink finds rows by their key alone", wanted.source),
            format!("ALTER TABLE {} ADD PRIMARY KEY (…)", wanted.source.quoted()),
        ));
    }
    for column in &wanted.columns {
        halts.extend(judge_column(wanted, column, facts).err());
    }
    halts.extend(judge_key(wanted, facts));
    halts.extend(columns_left_empty(wanted, facts));
    let names: Vec<&str> = facts.triggers.iter().map(|trigger| trigger.name.as_str()).collect();
    let notes = match names.is_empty() {
        true => vec![],
        false => vec![format!("triggers of {} fire for what is applied: {}", wanted.table, names.join(", "))],
    };
    Findings { halts, notes }
}

fn halt(message: String, hint: String) -> Halt {
    Halt { code: Code::SinkTable, message, facts: vec![], hint }
}

/// The column of that name; MariaDB knows no capitals in names of columns.
pub(super) fn find<'a>(facts: &'a TableFacts, name: &str) -> Option<&'a ColumnFacts> {
    facts.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
}

/// The unique index by which rows are found.
pub(super) fn arbiter<'a>(wanted: &WantedTable, facts: &'a TableFacts) -> Option<&'a UniqueFacts> {
    let lower = |name: &str| name.to_ascii_lowercase();
    let mut key: Vec<String> = wanted.key().into_iter().map(|i| lower(&wanted.columns[i].column.name)).collect();
    key.sort_unstable();
    let same = |unique: &&UniqueFacts| {
        let mut columns: Vec<String> = unique.columns.iter().map(|name| lower(name)).collect();
        columns.sort_unstable();
        let told_apart = |name: &String| find(facts, name).is_some_and(|column| !column.nullable);
        columns == key && unique.columns.iter().all(told_apart)
    };
    // Rows lie in the primary key.
    let mut found = facts.uniques.iter().filter(same);
    let first = found.clone().find(|unique| unique.name == "PRIMARY");
    first.or_else(|| found.next())
}

/// How the values of a column are written; refused where it is not known to hold them.
pub(super) fn judge_column(wanted: &WantedTable, source: &WantedColumn, facts: &TableFacts) -> Result<Kind, Halt> {
    let (name, table) = (&source.column.name, quoted(&wanted.table));
    let (is_key, column) = (source.column.key.is_some(), &source.column);
    let modify = |nullable: bool| {
        let null = if nullable { "" } else { " NOT NULL" };
        format!("ALTER TABLE {table} MODIFY COLUMN {} {}{null}", quote(name), declaration(column))
    };
    let not_null = is_key || !column.nullable;
    let Some(sink) = find(facts, name) else {
        let hint = format!("ALTER TABLE {table} ADD COLUMN {} {}", quote(name), declaration(column));
        return Err(halt(format!("table {} has no column {name} at the sink", wanted.table), hint));
    };
    if sink.is_generated() {
        return Err(halt(
            format!("column {name} of {} is generated at the sink and can't be written", wanted.table),
            format!("ALTER TABLE {table} DROP COLUMN {0}, ADD COLUMN {0} {1}", quote(name), declaration(column)),
        ));
    }
    if sink.extra.to_lowercase().contains("on update") {
        // It would change with a row whose value was not sent.
        return Err(halt(
            format!("column {name} of {} changes by itself whenever its row does", wanted.table),
            modify(!not_null),
        ));
    }
    let Some(kind) = kind(&Stored::of(column), sink) else {
        return Err(halt(
            format!(
                "column {name} of {} is {} at the sink, which is not known to hold every {} of the source",
                wanted.table, sink.column_type, column.type_name
            ),
            modify(!not_null),
        ));
    };
    let apart = is_key || wanted.held.iter().any(|held| wanted.columns[held.place].index == source.index);
    if apart && !tells_apart(KeyOrder::of(column.type_oid), kind, sink) {
        let collation =
            if sink.collation.is_empty() { String::new() } else { format!(" with collation {}", sink.collation) };
        return Err(halt(
            format!(
                "column {name} of {} is {}{collation}, which does not tell keys apart and order them as the source does",
                wanted.table, sink.column_type
            ),
            modify(false),
        ));
    }
    if !sink.nullable && !not_null {
        return Err(halt(
            format!("column {name} of {} is not null at the sink, but may be NULL at the source", wanted.table),
            modify(true),
        ));
    }
    Ok(kind)
}

/// How values of that type become those of the column; `None` where some might not.
fn kind(from: &Stored, sink: &ColumnFacts) -> Option<Kind> {
    let unsigned = sink.column_type.contains("unsigned");
    // Bytes of each integer.
    let room = match sink.data_type.as_str() {
        "tinyint" => 1,
        "smallint" => 2,
        "mediumint" => 3,
        "int" => 4,
        "bigint" => 8,
        _ => 0,
    };
    let (precision, scale) = (sink.precision.unwrap_or_default(), sink.scale.unwrap_or_default());
    let decimal = Kind::Decimal { whole: precision.saturating_sub(scale), scale };
    let keeps = |digits: usize| sink.fraction.is_some_and(|fraction| fraction >= digits);
    let second_digits = usize::try_from(from.typmod).unwrap_or(6);
    let base = if from.arrays == 0 && from.kind == 'b' { from.name.as_str() } else { "" };
    let own = match (base, sink.data_type.as_str()) {
        ("int2", _) if room >= 2 && !unsigned => Some(Kind::Integer),
        ("int4", _) if room >= 4 && !unsigned => Some(Kind::Integer),
        ("int8", _) if room >= 8 && !unsigned => Some(Kind::Integer),
        ("oid", _) if room == 8 || room == 4 && unsigned => Some(Kind::Integer),
        ("bool", _) if room >= 1 => Some(Kind::Bool),
        ("int2" | "int4" | "int8" | "oid", "decimal") if !unsigned && precision - scale >= digits_of(base) => {
            Some(Kind::Integer)
        }
        ("numeric", "decimal") if !unsigned && has_room(from.typmod, precision, scale) => Some(decimal),
        ("float4", "float" | "double") | ("float8", "double") if !unsigned => Some(Kind::Float),
        ("date", "date") => Some(Kind::Date),
        ("time", "time") if keeps(second_digits) => Some(Kind::Time),
        ("timestamp", "datetime") if keeps(second_digits) => Some(Kind::Moment),
        ("timestamptz", "datetime" | "timestamp") if keeps(second_digits) => Some(Kind::Moment),
        ("bytea", "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob") => {
            Some(Kind::Bytes { bytes: sink.bytes? })
        }
        ("uuid", "binary") if sink.bytes == Some(16) => Some(Kind::Uuid),
        // Its length is the same in all.
        ("uuid", "char") if sink.chars >= Some(36) => Some(Kind::Text { chars: None, bytes: 36 }),
        _ => None,
    };
    own.or_else(|| text(from, sink))
}

/// Every type as what Postgres prints; a type with a length of its own only where there is as much room.
fn text(from: &Stored, sink: &ColumnFacts) -> Option<Kind> {
    let bytes = sink.bytes?;
    let chars = match sink.data_type.as_str() {
        "varchar" if sink.charset == "utf8mb4" => sink.chars,
        "tinytext" | "text" | "mediumtext" | "longtext" if sink.charset == "utf8mb4" => None,
        "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" if from.name != "bytea" => None,
        _ => return None,
    };
    let limit = match (from.name.as_str(), from.arrays) {
        ("varchar" | "bpchar", 0) if from.typmod > 4 => usize::try_from(from.typmod - 4).ok(),
        _ => None,
    };
    let fits = match (limit, chars) {
        (Some(limit), Some(chars)) => limit <= chars,
        _ => true,
    };
    fits.then_some(Kind::Text { chars, bytes })
}

/// Digits of the largest value.
fn digits_of(integer: &str) -> usize {
    match integer {
        "int2" => 5,
        "int4" | "oid" => 10,
        _ => 19,
    }
}

/// Without a modifier each value shows for itself.
fn has_room(typmod: i32, precision: usize, scale: usize) -> bool {
    let Some((source_precision, source_scale)) = digits(typmod) else { return true };
    let (Ok(precision), Ok(scale)) = (i32::try_from(precision), i32::try_from(scale)) else { return false };
    scale >= source_scale && precision - scale >= source_precision - source_scale
}

/// Precision and scale of a numeric's modifier; scale is 11 bits, signed.
fn digits(typmod: i32) -> Option<(i32, i32)> {
    let packed = typmod - 4;
    (typmod >= 4).then_some((packed >> 16 & 0xFFFF, (packed & 0x7FF ^ 0x400) - 0x400))
}

/// Whether keys are equal and ordered here as they are at the source.
fn tells_apart(order: KeyOrder, kind: Kind, sink: &ColumnFacts) -> bool {
    let by_bytes = sink.charset.is_empty() && sink.data_type != "binary";
    match (order, kind) {
        (KeyOrder::Integer, Kind::Integer) | (KeyOrder::Micros, Kind::Date | Kind::Moment) => true,
        (KeyOrder::Numeric, Kind::Decimal { .. }) => true,
        (KeyOrder::Bytes, Kind::Bytes { .. } | Kind::Uuid) => true,
        // A uuid, whose texts are all of one length and in lower case.
        (KeyOrder::Bytes, Kind::Text { .. }) => by_bytes || sink.collation.ends_with("_bin"),
        (KeyOrder::Text, Kind::Bool) => true,
        (KeyOrder::Text, Kind::Text { .. }) => by_bytes || sink.collation == "utf8mb4_nopad_bin",
        _ => false,
    }
}

fn key_list(wanted: &WantedTable) -> String {
    let names = wanted.key().into_iter().map(|i| quote(&wanted.columns[i].column.name));
    names.collect::<Vec<_>>().join(", ")
}

fn judge_key(wanted: &WantedTable, facts: &TableFacts) -> Option<Halt> {
    if wanted.is_keyless() || arbiter(wanted, facts).is_some() {
        return None;
    }
    let (table, list) = (quoted(&wanted.table), key_list(wanted));
    let what = if facts.uniques.iter().any(|unique| unique.name == "PRIMARY") { "UNIQUE" } else { "PRIMARY KEY" };
    Some(halt(
        format!("table {} has no unique index over the whole key ({list}), without NULLs", wanted.table),
        format!("ALTER TABLE {table} ADD {what} ({list})"),
    ))
}

/// Columns that we don't write must fill themselves.
fn columns_left_empty(wanted: &WantedTable, facts: &TableFacts) -> Vec<Halt> {
    let ours = |name: &str| wanted.columns.iter().any(|column| column.column.name.eq_ignore_ascii_case(name));
    let empty = facts.columns.iter().filter(|column| !ours(&column.name) && !column.fills_itself());
    let name = |column: &ColumnFacts| {
        halt(
            format!("column {} of {} is not null, has no default, and is not written", column.name, wanted.table),
            format!(
                "ALTER TABLE {} MODIFY COLUMN {} {} NULL",
                quoted(&wanted.table),
                quote(&column.name),
                column.column_type
            ),
        )
    };
    empty.map(name).collect()
}

fn create_table(wanted: &WantedTable) -> String {
    let column = |wanted: &WantedColumn| {
        let null = if wanted.column.nullable && wanted.column.key.is_none() { "" } else { " NOT NULL" };
        format!("{} {}{null}", quote(&wanted.column.name), declaration(&wanted.column))
    };
    let mut parts: Vec<String> = wanted.columns.iter().map(column).collect();
    if !wanted.is_keyless() {
        parts.push(format!("PRIMARY KEY ({})", key_list(wanted)));
    }
    format!("CREATE TABLE {} ({}) ENGINE = InnoDB", quoted(&wanted.table), parts.join(", "))
}

/// The type that a column of ours would best have here.
fn declaration(column: &Column) -> String {
    let (from, is_key) = (Stored::of(column), column.key.is_some());
    let base = if from.arrays == 0 && from.kind == 'b' { from.name.as_str() } else { "" };
    let fraction = || usize::try_from(from.typmod).unwrap_or(6).min(6);
    match base {
        "int2" => "SMALLINT".to_owned(),
        "int4" => "INT".to_owned(),
        "int8" | "oid" => "BIGINT".to_owned(),
        "bool" => "BOOLEAN".to_owned(),
        "numeric" => match digits(from.typmod) {
            Some((precision, scale)) if (0..=DECIMAL_SCALE_MAX).contains(&scale) && precision <= DECIMAL_DIGITS_MAX => {
                format!("DECIMAL({precision},{scale})")
            }
            Some(_) if !is_key => "LONGTEXT CHARACTER SET utf8mb4".to_owned(),
            _ => "DECIMAL(65,30)".to_owned(),
        },
        "float4" if !is_key => "FLOAT".to_owned(),
        "float8" if !is_key => "DOUBLE".to_owned(),
        "date" => "DATE".to_owned(),
        "time" if !is_key => format!("TIME({})", fraction()),
        "timestamp" | "timestamptz" => format!("DATETIME({})", fraction()),
        "bytea" => (if is_key { "VARBINARY(255)" } else { "LONGBLOB" }).to_owned(),
        "uuid" => "BINARY(16)".to_owned(),
        "varchar" | "bpchar" if (5..=16_000).contains(&from.typmod) => {
            let length = from.typmod - 4;
            let collation = if is_key { KEY_COLLATION } else { "CHARACTER SET utf8mb4" };
            format!("VARCHAR({length}) {collation}")
        }
        _ if is_key => format!("VARCHAR(255) {KEY_COLLATION}"),
        _ => "LONGTEXT CHARACTER SET utf8mb4".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(name: &str, typmod: i32) -> Stored {
        Stored { name: name.to_owned(), typmod, arrays: 0, kind: 'b', labels: vec![] }
    }

    fn sink(data_type: &str) -> ColumnFacts {
        ColumnFacts { data_type: data_type.to_owned(), column_type: data_type.to_owned(), ..ColumnFacts::default() }
    }

    fn varchar(chars: usize, collation: &str) -> ColumnFacts {
        let charset = collation.split('_').next().unwrap_or_default().to_owned();
        ColumnFacts {
            chars: Some(chars),
            bytes: Some(4 * chars),
            charset,
            collation: collation.to_owned(),
            ..sink("varchar")
        }
    }

    #[test]
    fn types_hold_or_are_refused() {
        let decimal =
            |precision, scale| ColumnFacts { precision: Some(precision), scale: Some(scale), ..sink("decimal") };
        let datetime = |fraction| ColumnFacts { fraction: Some(fraction), ..sink("datetime") };
        let unsigned = ColumnFacts { column_type: "int(10) unsigned".to_owned(), ..sink("int") };
        let numeric = |precision: i32, scale: i32| (precision << 16 | scale) + 4;
        let blob = ColumnFacts { bytes: Some(65_535), ..sink("blob") };
        let latin = varchar(20, "latin1_swedish_ci");
        for (source, at_sink, holds) in [
            (from("int4", -1), sink("int"), true),
            (from("int4", -1), sink("bigint"), true),
            (from("int4", -1), unsigned.clone(), false),
            (from("oid", -1), unsigned, true),
            (from("int8", -1), sink("int"), false),
            (from("int8", -1), decimal(20, 0), true),
            (from("int8", -1), decimal(10, 0), false),
            (from("bool", -1), sink("tinyint"), true),
            (from("numeric", numeric(10, 2)), decimal(12, 2), true),
            (from("numeric", numeric(10, 2)), decimal(10, 3), false),
            (from("numeric", -1), decimal(10, 3), true),
            (from("float8", -1), sink("float"), false),
            (from("timestamp", -1), datetime(6), true),
            (from("timestamp", -1), datetime(3), false),
            (from("timestamp", 3), datetime(3), true),
            (from("timestamp", -1), ColumnFacts { fraction: Some(6), ..sink("timestamp") }, false),
            (from("timestamptz", -1), ColumnFacts { fraction: Some(6), ..sink("timestamp") }, true),
            (from("bytea", -1), blob.clone(), true),
            (from("bytea", -1), varchar(20, "utf8mb4_bin"), true),
            (from("text", -1), blob, true),
            (from("text", -1), varchar(20, "utf8mb4_general_ci"), true),
            (from("text", -1), latin, false),
            (from("text", -1), sink("enum"), false),
            (from("varchar", 24), varchar(20, "utf8mb4_bin"), true),
            (from("varchar", 25), varchar(20, "utf8mb4_bin"), false),
            (from("interval", -1), varchar(64, "utf8mb4_bin"), true),
            (from("uuid", -1), ColumnFacts { bytes: Some(16), ..sink("binary") }, true),
            (from("uuid", -1), sink("uuid"), false),
            (Stored { arrays: 1, ..from("int4", -1) }, sink("int"), false),
        ] {
            assert_eq!(kind(&source, &at_sink).is_some(), holds, "{} {}", source.name, at_sink.column_type);
        }
    }

    #[test]
    fn keys_are_told_apart_by_bytes_alone() {
        let text = Kind::Text { chars: Some(20), bytes: 80 };
        for (collation, apart) in [
            ("utf8mb4_nopad_bin", true),
            ("utf8mb4_bin", false),
            ("utf8mb4_general_ci", false),
            ("utf8mb4_nopad_general_ci", false),
        ] {
            assert_eq!(tells_apart(KeyOrder::Text, text, &varchar(20, collation)), apart, "{collation}");
        }
        assert!(tells_apart(KeyOrder::Text, text, &ColumnFacts { bytes: Some(80), ..sink("varbinary") }));
        assert!(!tells_apart(KeyOrder::Text, Kind::Integer, &sink("int")), "a domain's order is its text's");
        assert!(!tells_apart(KeyOrder::Text, Kind::Float, &sink("double")));
    }
}

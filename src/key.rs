//! Orders of keys, and ranges of them: the closed list of docs/protocol.md that source, reader and sink compute alike.
//!
//! A chunk says "this range now holds exactly these rows". Source (an ORDER BY), reader (is this change inside?) and sink
//! (which rows are phantoms?) must agree on every border, or a row is lost. So a column has one of five orders, decided by
//! its type alone, and each order exists twice: here in memory over Postgres' text of the value, and as SQL.
//!
//! Invariants:
//! - The two agree for every value that Postgres can print under the pinned session settings (`tests/it_source.rs` compares
//!   them on a real server). NULL is never part of a key.
//! - Text is ordered by its UTF-8 bytes, never by a collation.
//! - "Text of the value" is what the type's output function prints, which is what the stream carries. A cast to text is
//!   something else for some types (`true` for `t`, `1.1.1.1/32` for `1.1.1.1`, char(n) without its padding), hence
//!   `concat`, which calls the output function.
//!
//! Deliberately not here: the orders of other databases than Postgres, and any reading of rows.

pub mod condition;
pub mod ranges;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::relation::{quote_identifier, quote_literal, type_names};

/// How the values of one key column are ordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyOrder {
    /// Whole numbers.
    Integer,
    /// Dates and timestamps: microseconds on one time line.
    Micros,
    /// Exact decimals; `-Infinity` first, `Infinity` and then `NaN` last.
    Numeric,
    /// uuid and bytea, bytewise.
    Bytes,
    /// Everything else: the UTF-8 bytes of the value's text.
    Text,
}

impl KeyOrder {
    /// Decided by the type's OID; these are fixed in Postgres' catalog, a name could be a user's own type.
    pub fn of(type_oid: u32) -> KeyOrder {
        match type_oid {
            // int8, int2, int4, oid
            20 | 21 | 23 | 26 => KeyOrder::Integer,
            // date, timestamp, timestamptz
            1082 | 1114 | 1184 => KeyOrder::Micros,
            1700 => KeyOrder::Numeric,
            // bytea, uuid
            17 | 2950 => KeyOrder::Bytes,
            _ => KeyOrder::Text,
        }
    }
}

/// A text that is not a value of the order it should have: never Postgres' doing under the pinned settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("not a key of order {order:?}: {text:?}")]
    Value { order: KeyOrder, text: String },
    #[error("a key of {found} columns where {expected} are needed")]
    Columns { expected: usize, found: usize },
}

/// The keys above `after` and up to and including `through`, in Postgres' text; `None` is unbounded. The default is
/// everything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KeyRange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<Vec<String>>,
}

impl KeyRange {
    pub const ALL: KeyRange = KeyRange { after: None, through: None };

    /// A question for one key. No chunk has such a range: who reads it says between which keys it lies.
    pub fn of_key(key: Vec<String>) -> KeyRange {
        KeyRange { after: Some(key.clone()), through: Some(key) }
    }

    /// The key that [`KeyRange::of_key`] asks for.
    pub fn key(&self) -> Option<&Vec<String>> {
        self.through.as_ref().filter(|_| self.after == self.through)
    }

    /// Whether the key lies in the range. `orders` and `key` are in key order.
    pub fn contains<K: AsRef<[u8]>>(&self, orders: &[KeyOrder], key: &[K]) -> Result<bool, KeyError> {
        if let Some(after) = &self.after
            && compare(orders, key, after)? != Ordering::Greater
        {
            return Ok(false);
        }
        match &self.through {
            Some(through) => Ok(compare(orders, key, through)? != Ordering::Greater),
            None => Ok(true),
        }
    }
}

/// Orders two keys column by column.
pub fn compare<A, B>(orders: &[KeyOrder], a: &[A], b: &[B]) -> Result<Ordering, KeyError>
where
    A: AsRef<[u8]>,
    B: AsRef<[u8]>,
{
    for found in [a.len(), b.len()] {
        if found != orders.len() {
            return Err(KeyError::Columns { expected: orders.len(), found });
        }
    }
    for ((order, a), b) in orders.iter().zip(a).zip(b) {
        match compare_values(*order, a.as_ref(), b.as_ref())? {
            Ordering::Equal => {}
            unequal => return Ok(unequal),
        }
    }
    Ok(Ordering::Equal)
}

fn compare_values(order: KeyOrder, a: &[u8], b: &[u8]) -> Result<Ordering, KeyError> {
    fn both<'a, T: Ord>(
        order: KeyOrder,
        (a, b): (&'a [u8], &'a [u8]),
        parse: impl Fn(&'a [u8]) -> Option<T>,
    ) -> Result<Ordering, KeyError> {
        let value = |text: &'a [u8]| {
            parse(text).ok_or_else(|| KeyError::Value { order, text: String::from_utf8_lossy(text).into_owned() })
        };
        Ok(value(a)?.cmp(&value(b)?))
    }
    match order {
        KeyOrder::Integer => both(order, (a, b), |text| std::str::from_utf8(text).ok()?.parse::<i128>().ok()),
        KeyOrder::Micros => both(order, (a, b), parse_micros),
        KeyOrder::Numeric => both(order, (a, b), Numeric::parse),
        KeyOrder::Bytes => both(order, (a, b), parse_bytes),
        KeyOrder::Text => Ok(a.cmp(b)),
    }
}

/// An exact decimal, borrowed from its text. Leading and trailing zeros are cut, so that equal values are equal.
#[derive(PartialEq, Eq)]
enum Numeric<'a> {
    NegativeInfinity,
    Finite { negative: bool, whole: &'a [u8], fraction: &'a [u8] },
    Infinity,
    NaN,
}

impl<'a> Numeric<'a> {
    fn parse(text: &'a [u8]) -> Option<Numeric<'a>> {
        match text {
            b"NaN" => return Some(Numeric::NaN),
            b"Infinity" => return Some(Numeric::Infinity),
            b"-Infinity" => return Some(Numeric::NegativeInfinity),
            _ => {}
        }
        let (negative, digits) = match text.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let point = digits.iter().position(|&b| b == b'.').unwrap_or(digits.len());
        let (mut whole, rest) = digits.split_at(point);
        let mut fraction = rest.strip_prefix(b".").unwrap_or(rest);
        let plain = |digits: &[u8]| digits.iter().all(u8::is_ascii_digit);
        if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) {
            return None;
        }
        while let [b'0', rest @ ..] = whole {
            whole = rest;
        }
        while let [rest @ .., b'0'] = fraction {
            fraction = rest;
        }
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Numeric::Finite { negative: negative && !zero, whole, fraction })
    }

    fn rank(&self) -> u8 {
        match self {
            Numeric::NegativeInfinity => 0,
            Numeric::Finite { negative: true, .. } => 1,
            Numeric::Finite { negative: false, .. } => 2,
            Numeric::Infinity => 3,
            Numeric::NaN => 4,
        }
    }
}

impl Ord for Numeric<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank()).then_with(|| match (self, other) {
            (
                Numeric::Finite { negative, whole, fraction },
                Numeric::Finite { whole: other_whole, fraction: other_fraction, .. },
            ) => {
                let magnitude = (whole.len(), whole, fraction).cmp(&(other_whole.len(), other_whole, other_fraction));
                if *negative { magnitude.reverse() } else { magnitude }
            }
            _ => Ordering::Equal,
        })
    }
}

impl PartialOrd for Numeric<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// `\x…` as bytea prints with bytea_output = hex, or a uuid.
fn parse_bytes(text: &[u8]) -> Option<Vec<u8>> {
    match text.strip_prefix(b"\\x") {
        Some(digits) => hex::decode(digits).ok(),
        None if text.len() == 36 => {
            let digits: Vec<u8> = text.iter().copied().filter(|&b| b != b'-').collect();
            (digits.len() == 32).then(|| hex::decode(digits).ok()).flatten()
        }
        None => None,
    }
}

/// Microseconds since 1970 of a date, timestamp or timestamptz as DateStyle ISO prints it, in UTC. Years go to 5874897 and
/// down to 4713 BC, beyond what 64 bits of microseconds hold.
fn parse_micros(text: &[u8]) -> Option<i128> {
    let text = std::str::from_utf8(text).ok()?;
    match text {
        "infinity" => return Some(i128::MAX),
        "-infinity" => return Some(i128::MIN),
        _ => {}
    }
    let (text, before_christ) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (date, time) = match text.split_once(' ') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let mut parts = date.splitn(3, '-');
    let (year, month, day) =
        (number(parts.next()?, 4..=7)?, number(parts.next()?, 2..=2)?, number(parts.next()?, 2..=2)?);
    if year == 0 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if before_christ { 1 - year } else { year };
    let time = match time {
        Some(time) => parse_time(time)?,
        None => 0,
    };
    Some(i128::from(days_since_1970(year, month, day)) * MICROS_PER_DAY + time)
}

const MICROS_PER_SECOND: i128 = 1_000_000;
const MICROS_PER_DAY: i128 = 86_400 * MICROS_PER_SECOND;

/// `HH:MM:SS[.ffffff][±HH[:MM[:SS]]]` as microseconds into the day, in UTC.
fn parse_time(text: &str) -> Option<i128> {
    let clock = |text: &str| -> Option<i128> {
        let mut seconds = 0;
        for (i, part) in text.split(':').enumerate() {
            let scale = [3600, 60, 1].get(i)?;
            seconds += i128::from(number(part, 2..=2)?) * scale;
        }
        Some(seconds)
    };
    let (local, offset) = match text.find(['+', '-']) {
        Some(at) => {
            let offset = clock(&text[at + 1..])?;
            (&text[..at], if text[at..].starts_with('-') { -offset } else { offset })
        }
        None => (text, 0),
    };
    let (whole, fraction) = match local.split_once('.') {
        Some((whole, digits)) => {
            let micros = number(digits, 1..=6)? * 10_i64.pow(6 - u32::try_from(digits.len()).ok()?);
            (whole, i128::from(micros))
        }
        None => (local, 0),
    };
    Some((clock(whole)? - offset) * MICROS_PER_SECOND + fraction)
}

fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC. The year is counted from March, so that the
/// leap day is its last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month_from_march + 2) / 5 + day - 1 - 719_468
}

/// One key column in SQL: how it is named there, its order, and its type at that database.
///
/// At a sink the name and type are the sink's, the order is the source's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyColumn {
    /// Quoted, with a table alias in front where one is needed.
    pub sql: String,
    pub order: KeyOrder,
    /// As [`crate::relation::Column::type_name`].
    pub type_name: String,
    /// The bytes of a text at this database do not sort as those of UTF-8.
    pub converted: bool,
}

impl KeyColumn {
    /// In a database whose encoding is UTF-8, or sorts alike.
    pub fn new(name: &str, order: KeyOrder, type_name: &str) -> KeyColumn {
        KeyColumn { sql: quote_identifier(name), order, type_name: type_name.to_owned(), converted: false }
    }

    /// `encoding` is the database's, as `server_encoding` names it.
    pub fn in_encoding(self, encoding: &str) -> KeyColumn {
        // Latin 1 is the beginning of Unicode; in a database without an encoding only UTF-8 can be read at all.
        KeyColumn { converted: !matches!(encoding, "UTF8" | "LATIN1" | "SQL_ASCII"), ..self }
    }

    /// The expression that sorts as the order demands.
    fn expression(&self) -> String {
        match (self.order, self.type_name.as_str()) {
            (KeyOrder::Text, _) if self.converted => utf8(&format!("pg_catalog.concat({})", self.sql)),
            (KeyOrder::Text, "text" | "varchar") => format!("{}::pg_catalog.text COLLATE pg_catalog.\"C\"", self.sql),
            (KeyOrder::Text, _) => format!("pg_catalog.concat({}) COLLATE pg_catalog.\"C\"", self.sql),
            (KeyOrder::Integer | KeyOrder::Micros | KeyOrder::Numeric | KeyOrder::Bytes, _) => self.sql.clone(),
        }
    }

    /// Whether its order may be another than that of an index that the table has anyway.
    pub fn is_text(&self) -> bool {
        self.order == KeyOrder::Text
    }

    /// As a column of an index that serves its order; `None`: what it takes to print it can't be indexed.
    pub fn indexed(&self) -> Option<String> {
        match (self.order, self.type_name.as_str()) {
            (KeyOrder::Text, "text" | "varchar") if !self.converted => Some(format!("({})", self.expression())),
            (KeyOrder::Text, _) => None,
            _ => Some(self.sql.clone()),
        }
    }

    fn literal(&self, value: &str) -> String {
        let literal = quote_literal(value);
        match self.order {
            KeyOrder::Text if self.converted => utf8(&format!("{}::pg_catalog.text", literal.trim_start())),
            KeyOrder::Text => format!("{}::pg_catalog.text", literal.trim_start()),
            KeyOrder::Integer | KeyOrder::Micros | KeyOrder::Numeric | KeyOrder::Bytes => {
                format!("{}::{}", literal.trim_start(), type_sql(&self.type_name))
            }
        }
    }
}

/// A text as the bytes that it has in UTF-8; bytea sorts by them.
fn utf8(text: &str) -> String {
    format!("pg_catalog.convert_to({text}, 'UTF8')")
}

/// A type's name for SQL, from `typname` or `schema.typname`.
pub fn type_sql(type_name: &str) -> String {
    let (schema, name) = type_names::split(type_name);
    let schema = schema.map_or_else(|| "pg_catalog".to_owned(), |schema| quote_identifier(&schema));
    format!("{schema}.{}", quote_identifier(&name))
}

/// How a row's key stands to a given one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Comparison {
    Below,
    UpTo,
    Equal,
    Above,
}

/// The condition that a row's key stands so to `key`. Row comparison rather than `a > x OR (a = x AND …)`: the same result
/// where no column is NULL, and an index can start at the very key instead of at its first column.
///
/// The key has as many parts as there are columns.
pub fn comparison(columns: &[KeyColumn], comparison: Comparison, key: &[String]) -> String {
    assert_eq!(key.len(), columns.len(), "a range border has the key's columns");
    let row = |parts: Vec<String>| match parts.len() {
        1 => parts.into_iter().next().expect("one part"),
        _ => format!("ROW({})", parts.join(", ")),
    };
    let operator = match comparison {
        Comparison::Below => "<",
        Comparison::UpTo => "<=",
        Comparison::Equal => "=",
        Comparison::Above => ">",
    };
    let left = row(columns.iter().map(KeyColumn::expression).collect());
    let right = row(columns.iter().zip(key).map(|(column, value)| column.literal(value)).collect());
    format!("{left} {operator} {right}")
}

/// The condition that a row's key lies in the range, `true` for everything.
pub fn predicate(columns: &[KeyColumn], range: &KeyRange) -> String {
    let after = range.after.as_ref().map(|key| comparison(columns, Comparison::Above, key));
    let through = range.through.as_ref().map(|key| comparison(columns, Comparison::UpTo, key));
    match (after, through) {
        (None, None) => "true".to_owned(),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(after), Some(through)) => format!("{after} AND {through}"),
    }
}

/// What stands behind ORDER BY.
pub fn order_by(columns: &[KeyColumn]) -> String {
    columns.iter().map(KeyColumn::expression).collect::<Vec<_>>().join(", ")
}

/// What stands behind ORDER BY to see the highest key first.
pub fn order_by_descending(columns: &[KeyColumn]) -> String {
    columns.iter().map(|column| format!("{} DESC", column.expression())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn less(order: KeyOrder, ascending: &[&str]) {
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(&[order], &[a], &[b]), Ok(i.cmp(&j)), "{a} against {b}");
            }
        }
    }

    #[test]
    fn orders_follow_from_the_type() {
        assert_eq!(KeyOrder::of(23), KeyOrder::Integer);
        assert_eq!(KeyOrder::of(1184), KeyOrder::Micros);
        assert_eq!(KeyOrder::of(1700), KeyOrder::Numeric);
        assert_eq!(KeyOrder::of(2950), KeyOrder::Bytes);
        // float8, bool, an enum
        assert!([701, 16, 70_000].into_iter().all(|oid| KeyOrder::of(oid) == KeyOrder::Text));
    }

    #[test]
    fn numerics_are_exact_with_nan_last() {
        let ascending = [
            "-Infinity",
            "-10000000000000000000000.5",
            "-2",
            "-1.00000000000000000001",
            "-1.0",
            "-0.5",
            "0",
            "0.00000000000000000001",
            "0.1",
            "1",
            "1.00000000000000000001",
            "9",
            "10",
            "99.9",
            "100",
            "Infinity",
            "NaN",
        ];
        less(KeyOrder::Numeric, &ascending);
        for (a, b) in [("0", "0.000"), ("-0.0", "0"), ("1.50", "1.5"), ("007", "7")] {
            assert_eq!(compare(&[KeyOrder::Numeric], &[a], &[b]), Ok(Ordering::Equal));
        }
        for wrong in ["", "-", ".", "1e5", "+1", "nan", "1.2.3", "--1"] {
            assert!(compare(&[KeyOrder::Numeric], &[wrong], &["1"]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_one_line_from_bc_to_year_5874897() {
        let ascending = [
            "-infinity",
            "4713-01-01 BC",
            "0044-03-15 12:00:00 BC",
            "0001-12-31 23:59:59.999999 BC",
            "0001-01-01",
            "1969-12-31 23:59:59",
            "1970-01-01 00:00:00.000001",
            "2000-02-29",
            "2000-03-01 00:00:00+00",
            "9999-12-31",
            "10000-01-01 00:00:00",
            "294276-12-31 23:59:59.999999+00",
            "5874897-12-31",
            "infinity",
        ];
        less(KeyOrder::Micros, &ascending);
        assert_eq!(parse_micros(b"1970-01-02 01:30:00.5+01:30"), Some(86_400_500_000));
        assert_eq!(parse_micros(b"2024-03-01"), Some(19_783 * MICROS_PER_DAY));
        for wrong in ["", "1970-1-1", "1970-13-01", "0000-01-01", "1970-01-01 1:2:3", "1970-01-01T00:00:00", "now"] {
            assert_eq!(parse_micros(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn bytes_and_text_are_ordered_bytewise() {
        less(KeyOrder::Bytes, &["\\x", "\\x00", "\\x0000", "\\x01", "\\x7f", "\\xff"]);
        let uuids = ["00000000-0000-0000-0000-0000000000ff", "f0000000-0000-0000-0000-000000000000"];
        less(KeyOrder::Bytes, &uuids);
        less(KeyOrder::Text, &["", " ", "A", "B", "Z", "a", "a ", "aa", "b", "ä", "你", "\u{ffff}", "😀"]);
        assert!(compare(&[KeyOrder::Bytes], &["\\x0"], &["\\x"]).is_err());
    }

    #[test]
    fn composite_keys_compare_column_by_column() {
        let orders = [KeyOrder::Integer, KeyOrder::Text];
        assert_eq!(compare(&orders, &["9", "z"], &["10", "a"]), Ok(Ordering::Less));
        assert_eq!(compare(&orders, &["10", "B"], &["10", "a"]), Ok(Ordering::Less));
        assert_eq!(compare(&orders, &["1"], &["1", "2"]), Err(KeyError::Columns { expected: 2, found: 1 }));
    }

    #[test]
    fn a_range_excludes_its_lower_border_and_includes_its_upper() {
        let range = KeyRange { after: Some(vec!["5".into()]), through: Some(vec!["10".into()]) };
        let orders = [KeyOrder::Integer];
        let inside: Vec<&str> =
            ["4", "5", "6", "10", "11"].into_iter().filter(|k| range.contains(&orders, &[k]).unwrap()).collect();
        assert_eq!(inside, ["6", "10"]);
        assert!(KeyRange::ALL.contains(&orders, &["-1"]).unwrap());
        assert!(range.contains(&orders, &["x"]).is_err());
        assert_eq!(serde_json::to_string(&range).unwrap(), r#"{"after":["5"],"through":["10"]}"#);
        assert_eq!(serde_json::to_string(&KeyRange::ALL).unwrap(), "{}");
        assert_eq!(serde_json::from_str::<KeyRange>("{}").unwrap(), KeyRange::ALL);
    }

    #[test]
    fn sql_casts_literals_and_pins_the_collation() {
        let columns =
            [KeyColumn::new("id", KeyOrder::Integer, "int4"), KeyColumn::new("na\"me", KeyOrder::Text, "public.mood")];
        let range = KeyRange { after: Some(vec!["1".into(), "it's\\".into()]), through: None };
        assert_eq!(
            predicate(&columns, &range),
            r#"ROW("id", pg_catalog.concat("na""me") COLLATE pg_catalog."C") > ROW('1'::pg_catalog."int4", E'it''s\\'::pg_catalog.text)"#
        );
        assert_eq!(order_by(&columns[..1]), "\"id\"");
        let converted = [columns[1].clone().in_encoding("WIN1252")];
        assert_eq!(
            comparison(&converted, Comparison::Above, &["é".to_owned()]),
            r#"pg_catalog.convert_to(pg_catalog.concat("na""me"), 'UTF8') > pg_catalog.convert_to('é'::pg_catalog.text, 'UTF8')"#
        );
        let range = KeyRange { after: None, through: Some(vec!["7".into()]) };
        assert_eq!(predicate(&columns[..1], &range), r#""id" <= '7'::pg_catalog."int4""#);
        assert_eq!(predicate(&columns, &KeyRange::ALL), "true");
    }

    proptest! {
        #[test]
        fn integers_agree_with_numbers(a: i64, b: i64) {
            prop_assert_eq!(compare(&[KeyOrder::Integer], &[a.to_string()], &[b.to_string()]), Ok(a.cmp(&b)));
        }

        #[test]
        fn numerics_agree_with_scaled_integers(a in -100_000_i64..100_000, b in -100_000_i64..100_000, zeros in 0_usize..4) {
            let text = |n: i64, zeros: usize| {
                let sign = if n < 0 { "-" } else { "" };
                format!("{sign}{}.{:03}{}", n.abs() / 1000, n.abs() % 1000, "0".repeat(zeros))
            };
            prop_assert_eq!(compare(&[KeyOrder::Numeric], &[text(a, zeros)], &[text(b, 0)]), Ok(a.cmp(&b)));
        }

        #[test]
        fn times_agree_with_the_calendar(a in -60_000_000_000_i64..200_000_000_000, b in -60_000_000_000_i64..200_000_000_000) {
            let text = |seconds: i64| {
                let time = jiff::Timestamp::from_second(seconds).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
                format!("{:04}-{:02}-{:02} {:02}:{:02}:{:02}+00",
                    time.year(), time.month(), time.day(), time.hour(), time.minute(), time.second())
            };
            prop_assert_eq!(parse_micros(text(a).as_bytes()), Some(i128::from(a) * MICROS_PER_SECOND));
            prop_assert_eq!(compare(&[KeyOrder::Micros], &[text(a)], &[text(b)]), Ok(a.cmp(&b)));
        }

        #[test]
        fn garbage_never_panics(text: Vec<u8>, other in "[-0-9.: BCxinfty+]{0,24}") {
            for order in [KeyOrder::Integer, KeyOrder::Micros, KeyOrder::Numeric, KeyOrder::Bytes, KeyOrder::Text] {
                let _ = compare(&[order], &[text.as_slice()], &[other.as_bytes()]);
                let _ = compare(&[order], &[other.as_bytes()], &[other.as_bytes()]);
            }
        }
    }
}

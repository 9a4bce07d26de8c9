//! A value of a record as Postgres text: what [`write`](crate::codec::write) does, backwards.
//!
//! What Debezium has cut off can't be had back (microseconds in Connect's own times, the offset of a timetz): docs/guarantees.md
//! says so. What it has damaged so that it now looks like another value is refused.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::decimal::decimal;
use super::envelope::fields;
use crate::codec::json_decode::{read_raw, read_string};
use crate::codec::mapping::Encoding;
use crate::codec::write::{FLOAT_NAMES, TIMESTAMP_INFINITY_MS, TIMESTAMP_MINUS_INFINITY_MS, push_money};
use crate::pgtext::{self, Stamp};
use crate::relation::BinaryMode;

/// What a field says of its column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    Null,
    /// It was not sent; what the row held before still holds.
    Unsent,
    /// The text was appended.
    Text,
}

/// Why a value can't be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// It is not of the type that its schema, or the sink's column, says.
    Unfit,
    /// It could mean more than one thing; how to make it one.
    Ambiguous(&'static str),
}

const INTERVALS: &str = "set interval.handling.mode=string for Debezium's connector: a number of microseconds does not say which months and days it is";
const NESTED: &str = "Debezium writes arrays of several dimensions so, and an array of nothing but NULL: leave the column out of the sink's columns";

/// Appends the text of a value that is there.
pub fn read(encoding: &Encoding, raw: &str, out: &mut Vec<u8>) -> Result<(), Unread> {
    let quoted = raw.starts_with('"');
    let done = match encoding {
        Encoding::IntervalMicros | Encoding::IntervalText if !quoted => return Err(Unread::Ambiguous(INTERVALS)),
        Encoding::Array { element, delimiter } => return array(element, *delimiter, raw, out),
        Encoding::NumberVector(_) | Encoding::Skipped => None,
        Encoding::Text(_)
        | Encoding::Enum { .. }
        | Encoding::DecimalText { .. }
        | Encoding::MoneyText
        | Encoding::Bytes(_)
        | Encoding::TimestampTz { .. }
        | Encoding::TimeTz
        | Encoding::IntervalMicros
        | Encoding::IntervalText => string(raw).and_then(|text| read_string(encoding, &text, out)),
        Encoding::Decimal { scale, .. } => decimal_text(raw, i64::from(*scale)).map(|text| push(out, &text)),
        Encoding::Money => decimal_text(raw, 2).and_then(|text| push_money(out, text.as_bytes())),
        Encoding::MoneyDouble => number(raw).and_then(|text| push_money(out, text.as_bytes())),
        Encoding::VariableDecimal => variable(raw).map(|text| push(out, &text)),
        Encoding::DecimalDouble => number(raw).map(|text| push(out, text)),
        Encoding::Bits { length } => bits(raw, *length, out),
        Encoding::IsoDate | Encoding::IsoTimestamp => iso(encoding, raw, out),
        Encoding::IsoTime => string(raw).and_then(|text| text.strip_suffix('Z').map(|text| push(out, text))),
        Encoding::HstoreJson | Encoding::HstoreMap => hstore(raw, out),
        Encoding::Point => point(raw, out),
        Encoding::Geometry(_) => geometry(raw, out),
        Encoding::DoubleVector | Encoding::FloatVector => vector(raw, out),
        Encoding::SparseVector => sparse_vector(raw, out),
        Encoding::Opaque(mode) => opaque(*mode, raw, out),
        Encoding::Bool
        | Encoding::Bit { .. }
        | Encoding::Int16
        | Encoding::Int32
        | Encoding::Int64
        | Encoding::Float32
        | Encoding::Float64
        | Encoding::Date
        | Encoding::ConnectDate
        | Encoding::Time(_)
        | Encoding::ConnectTime
        | Encoding::Timestamp(_)
        | Encoding::ConnectTimestamp => read_raw(encoding, raw, out),
    };
    done.ok_or(Unread::Unfit)
}

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

fn string(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok()
}

fn base64(raw: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(string(raw)?).ok()
}

/// A number, or the name of one that JSON has none for.
fn number(raw: &str) -> Option<&str> {
    match raw.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|name| FLOAT_NAMES.contains(name)),
        None => pgtext::is_json_number(raw.as_bytes()).then_some(raw),
    }
}

/// Connect's Decimal: base64 of the unscaled value, or a number where the converter has `decimal.format=NUMERIC`.
fn decimal_text(raw: &str, scale: i64) -> Option<String> {
    match raw.starts_with('"') {
        true => decimal(&base64(raw)?, scale),
        false => pgtext::is_json_number(raw.as_bytes()).then(|| raw.to_owned()),
    }
}

fn variable(raw: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Variable {
        scale: i32,
        value: String,
    }
    let Variable { scale, value } = serde_json::from_str(raw).ok()?;
    decimal(&BASE64_STANDARD.decode(value).ok()?, i64::from(scale))
}

/// The last bit is bit 0 of the first byte; zero bytes at the end were cut.
fn bits(raw: &str, length: u32, out: &mut Vec<u8>) -> Option<()> {
    let bytes = base64(raw)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= 1 << 27)?;
    let bit = |place: usize| bytes.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1);
    if (length..bytes.len() * 8).any(bit) {
        return None;
    }
    out.extend((0..length).rev().map(|place| if bit(place) { b'1' } else { b'0' }));
    Some(())
}

/// ISO 8601 in UTC; a date has no time of day. The infinities are the moments that stand for them.
fn iso(encoding: &Encoding, raw: &str, out: &mut Vec<u8>) -> Option<()> {
    let text = string(raw)?;
    let whole = match encoding {
        Encoding::IsoDate if !text.contains('T') => format!("{}T00:00:00Z", text.strip_suffix('Z').unwrap_or(&text)),
        _ => text,
    };
    let stamp = pgtext::parse_iso_utc(whole.as_bytes())?;
    if stamp == Stamp::from_millis(TIMESTAMP_INFINITY_MS) {
        push(out, "infinity");
    } else if stamp == Stamp::from_millis(TIMESTAMP_MINUS_INFINITY_MS) {
        push(out, "-infinity");
    } else {
        stamp.is_valid().then(|| pgtext::push_timestamp(out, stamp))?;
    }
    Some(())
}

/// An object, or a string that holds one.
fn hstore(raw: &str, out: &mut Vec<u8>) -> Option<()> {
    let inside;
    let object = match raw.starts_with('"') {
        true => {
            inside = string(raw)?;
            inside.as_str()
        }
        false => raw,
    };
    for (i, (key, value)) in fields(object)?.into_iter().enumerate() {
        if i > 0 {
            push(out, ", ");
        }
        push_quoted(out, &key);
        push(out, "=>");
        match value.get() {
            "null" => push(out, "NULL"),
            value => push_quoted(out, &string(value)?),
        }
    }
    Some(())
}

fn push_quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for byte in text.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn member<'a>(raw: &'a str, name: &str) -> Option<&'a str> {
    fields(raw)?.into_iter().find(|(field, _)| field == name).map(|(_, value)| value.get())
}

fn point(raw: &str, out: &mut Vec<u8>) -> Option<()> {
    let (x, y) = (number(member(raw, "x")?)?, number(member(raw, "y")?)?);
    push(out, &format!("({x},{y})"));
    Some(())
}

/// PostGIS reads extended well-known binary in hex. One without an SRID inside gets the one beside it.
fn geometry(raw: &str, out: &mut Vec<u8>) -> Option<()> {
    const HAS_SRID: u32 = 0x2000_0000;
    let wkb = base64(member(raw, "wkb")?)?;
    let word = |bytes: &[u8]| {
        let bytes: [u8; 4] = bytes.get(1..5)?.try_into().ok()?;
        Some(if wkb[0] == 1 { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let srid = member(raw, "srid").filter(|srid| *srid != "null");
    if let (Some(srid), 0) = (srid, word(&wkb)? & HAS_SRID) {
        push(out, &format!("SRID={};", srid.parse::<i32>().ok()?));
    }
    push(out, &hex::encode(wkb));
    Some(())
}

fn vector(raw: &str, out: &mut Vec<u8>) -> Option<()> {
    let numbers: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
    let numbers: Option<Vec<&str>> = numbers.into_iter().map(|raw| number(raw.get())).collect();
    push(out, &format!("[{}]", numbers?.join(",")));
    Some(())
}

/// Entries are a list of pairs: their keys are no strings.
fn sparse_vector(raw: &str, out: &mut Vec<u8>) -> Option<()> {
    let dimensions: u32 = member(raw, "dimensions")?.parse().ok()?;
    let entries: Vec<(u32, &RawValue)> = serde_json::from_str(member(raw, "vector")?).ok()?;
    let entry = |(place, value): (u32, &RawValue)| Some(format!("{place}:{}", number(value.get())?));
    let entries: Option<Vec<String>> = entries.into_iter().map(entry).collect();
    push(out, &format!("{{{}}}/{dimensions}", entries?.join(",")));
    Some(())
}

/// The Postgres text as bytes.
fn opaque(mode: BinaryMode, raw: &str, out: &mut Vec<u8>) -> Option<()> {
    use base64::engine::general_purpose::URL_SAFE;
    let text = string(raw)?;
    let bytes = match mode {
        BinaryMode::Bytes | BinaryMode::Base64 => BASE64_STANDARD.decode(text).ok()?,
        BinaryMode::Base64UrlSafe => URL_SAFE.decode(text).ok()?,
        BinaryMode::Hex => hex::decode(text).ok()?,
    };
    out.extend_from_slice(std::str::from_utf8(&bytes).ok()?.as_bytes());
    Some(())
}

/// One dimension; others do not come.
fn array(element: &Encoding, delimiter: u8, raw: &str, out: &mut Vec<u8>) -> Result<(), Unread> {
    let elements: Vec<&RawValue> = serde_json::from_str(raw).map_err(|_| Unread::Unfit)?;
    if !elements.is_empty() && elements.iter().all(|raw| raw.get() == "null") {
        return Err(Unread::Ambiguous(NESTED));
    }
    out.push(b'{');
    let mut text = Vec::new();
    for (i, raw) in elements.into_iter().enumerate() {
        if i > 0 {
            out.push(delimiter);
        }
        if raw.get() == "null" {
            push(out, "NULL");
            continue;
        }
        if raw.get().starts_with("\"[L") && raw.get().contains(";@") {
            // The name of a Java object.
            return Err(Unread::Ambiguous(NESTED));
        }
        text.clear();
        read(element, raw.get(), &mut text)?;
        push_quoted(out, std::str::from_utf8(&text).map_err(|_| Unread::Unfit)?);
    }
    out.push(b'}');
    Ok(())
}

//! The envelope's JSON back to exact Postgres text.
//!
//! Only records that the ledger counts come here, and those were written by our encoder under the same relation version: so
//! fields stand in the relation's order, and a missing, unknown or misplaced field is RECORD_INVALID, not a thing to be
//! tolerant about. serde_json streams straight into the row: strings are unescaped into its buffer, numbers keep their
//! digits, and the row that is not asked for is skipped. Errors name table and column; serde's own messages are dropped
//! because they quote values.

use std::cell::Cell as Slot;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::mapping::{self, Encoding, Unit};
use super::write::{
    DATE_INFINITY, DATE_MINUS_INFINITY, FLOAT_NAMES, NUMERIC_NAMES, push_money, stamp_of, timestamp_unit,
};
use super::{Op, invalid, null_key};
use crate::error::{Error, Result};
use crate::pgtext::{self, Temporal};
use crate::record::{Side, is_absent, read_texts};
use crate::relation::{BinaryMode, Relation};
use crate::value::{Cell, RowBuf};

/// Reads the records of one relation version.
pub struct Decoder {
    relation: Arc<Relation>,
    encodings: Vec<Encoding>,
    /// Of the columns' fields.
    names: Vec<String>,
    /// By column: rows leave it out.
    key_only: Vec<bool>,
    /// Indexes of the key columns in key order.
    key: Vec<usize>,
}

impl Decoder {
    pub fn new(relation: Arc<Relation>) -> Decoder {
        let field = |name: &str| relation.modes.field_names.field(name).into_owned();
        let names = relation.columns.iter().map(|column| field(&column.name)).collect();
        let key_only = (0..relation.columns.len()).map(|i| relation.is_key_only(i)).collect();
        Decoder { encodings: mapping::encodings(&relation), names, key_only, key: relation.key_columns(), relation }
    }

    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// As [`super::Decoder::row`].
    pub fn row(
        &self,
        value: &[u8],
        side: Side,
        absent: Option<&[u8]>,
        text: Option<&[u8]>,
        out: &mut RowBuf,
    ) -> Result<Op> {
        out.clear();
        let texts = match text {
            Some(text) => read_texts(text).map_err(|e| self.invalid(None, &e.to_string()))?,
            None => Vec::new(),
        };
        let at = Place::default();
        let rows = Rows {
            names: &self.names,
            key_only: &self.key_only,
            encodings: &self.encodings,
            texts: &texts,
            absent,
            side,
            at: &at,
            out,
        };
        let mut json = serde_json::Deserializer::from_str(self.payload(value)?);
        let op = json.deserialize_map(Envelope(rows)).and_then(|op| json.end().map(|()| op));
        op.map_err(|e| self.refuse(&at, &e))
    }

    /// As [`super::Decoder::key`].
    pub fn key(&self, key: &[u8], text: Option<&[u8]>, out: &mut RowBuf) -> Result<()> {
        out.clear();
        let texts = match text {
            Some(text) => read_texts(text).map_err(|e| self.invalid(None, &e.to_string()))?,
            None => Vec::new(),
        };
        let mut found = RowBuf::with_capacity(self.key.len(), key.len());
        if !(key.is_empty() && self.key.is_empty()) {
            let at = Place::default();
            let seed = Fields {
                names: &self.names,
                encodings: &self.encodings,
                columns: self.key.iter().copied(),
                key_only: &[],
                texts: &texts,
                absent: None,
                side: Side::Before,
                at: &at,
                out: &mut found,
            };
            let mut json = serde_json::Deserializer::from_str(self.payload(key)?);
            let read = json.deserialize_map(seed).and_then(|()| json.end());
            read.map_err(|e| self.refuse(&at, &e))?;
        }
        for column in 0..self.relation.columns.len() {
            match self.key.iter().position(|k| *k == column) {
                Some(place) if found.row().get(place) == Cell::Null => {
                    return Err(null_key(&self.relation, column));
                }
                Some(place) => out.push(found.row().get(place)),
                None => out.push(Cell::Absent),
            }
        }
        Ok(())
    }

    /// The JSON without its schema. UTF-8 is checked once for all its strings.
    pub(super) fn payload<'a>(&self, json: &'a [u8]) -> Result<&'a str> {
        #[derive(serde::Deserialize)]
        struct WithSchema<'a> {
            #[serde(borrow)]
            payload: &'a RawValue,
        }
        let text = self.utf8(json)?;
        if !self.relation.modes.schemas {
            return Ok(text);
        }
        let read = serde_json::from_str::<WithSchema<'_>>(text);
        read.map(|with| with.payload.get()).map_err(|e| self.refuse(&Place::default(), &e))
    }

    /// Once for all its strings.
    fn utf8<'a>(&self, json: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(json).map_err(|_| self.invalid(None, "the record is not UTF-8"))
    }

    fn refuse(&self, at: &Place, error: &serde_json::Error) -> Error {
        match at.fault.get() {
            Some(fault) => self.invalid(at.column.get(), fault),
            None => {
                let found = format!("not the JSON of its relation (byte {})", error.column());
                self.invalid(at.column.get(), &found)
            }
        }
    }

    pub(super) fn invalid(&self, column: Option<usize>, found: &str) -> Error {
        invalid(&self.relation, column, found, format!("lockstep resync {}", self.relation.name))
    }
}

/// Where reading stands, for the error: serde's errors can't carry it.
#[derive(Default)]
struct Place {
    column: Slot<Option<usize>>,
    fault: Slot<Option<&'static str>>,
}

impl Place {
    fn fail<E: serde::de::Error>(&self, fault: &'static str) -> E {
        self.fault.set(Some(fault));
        E::custom(fault)
    }
}

/// What the two rows of an envelope are read with.
struct Rows<'a> {
    names: &'a [String],
    key_only: &'a [bool],
    encodings: &'a [Encoding],
    texts: &'a [(Side, u16, Cell<'a>)],
    absent: Option<&'a [u8]>,
    side: Side,
    at: &'a Place,
    out: &'a mut RowBuf,
}

impl Rows<'_> {
    fn fields(&mut self, absent: bool) -> Fields<'_, std::ops::Range<usize>> {
        Fields {
            names: self.names,
            encodings: self.encodings,
            columns: 0..self.names.len(),
            key_only: self.key_only,
            texts: self.texts,
            absent: self.absent.filter(|_| absent),
            side: self.side,
            at: self.at,
            out: self.out,
        }
    }
}

struct Envelope<'a>(Rows<'a>);

impl<'de> Visitor<'de> for Envelope<'_> {
    type Value = Op;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an envelope")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Op, A::Error> {
        let rows = &mut self.0;
        let at = rows.at;
        let mut op = None;
        let (mut before, mut after): (Option<&RawValue>, bool) = (None, false);
        while let Some(name) = map.next_key::<EnvelopeField>()? {
            match name {
                // What `ls-absent` means for `before` is known only once `after` was seen.
                EnvelopeField::Before if rows.side == Side::Before => before = Some(map.next_value()?),
                EnvelopeField::After if rows.side == Side::After => map.next_value_seed(rows.fields(true))?,
                EnvelopeField::After => after = map.next_value::<Option<IgnoredAny>>()?.is_some(),
                EnvelopeField::Op => op = Op::from_text(map.next_value()?),
                EnvelopeField::Before | EnvelopeField::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if let Some(before) = before {
            let mut json = serde_json::Deserializer::from_str(before.get());
            let read = rows.fields(!after).deserialize(&mut json);
            read.map_err(|_| serde::de::Error::custom("before"))?;
        }
        op.ok_or_else(|| at.fail("the envelope has no operation that is known"))
    }
}

enum EnvelopeField {
    Before,
    After,
    Op,
    Other,
}

impl<'de> serde::Deserialize<'de> for EnvelopeField {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<EnvelopeField, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = EnvelopeField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field's name")
            }

            fn visit_str<E>(self, name: &str) -> Result<EnvelopeField, E> {
                Ok(match name {
                    "before" => EnvelopeField::Before,
                    "after" => EnvelopeField::After,
                    "op" => EnvelopeField::Op,
                    _ => EnvelopeField::Other,
                })
            }
        }
        d.deserialize_str(Name)
    }
}

/// An object of columns, or null, which adds no cell.
struct Fields<'a, I> {
    names: &'a [String],
    encodings: &'a [Encoding],
    /// The columns that the object has, in its order.
    columns: I,
    /// By column: the object leaves it out. Empty for a key.
    key_only: &'a [bool],
    texts: &'a [(Side, u16, Cell<'a>)],
    absent: Option<&'a [u8]>,
    side: Side,
    at: &'a Place,
    out: &'a mut RowBuf,
}

impl<'a, I> Fields<'a, I> {
    /// The cell that a header gives, whatever the JSON holds.
    fn header_cell(&self, column: usize) -> Option<Cell<'a>> {
        if self.absent.is_some_and(|bitmap| is_absent(bitmap, column)) {
            return Some(Cell::Absent);
        }
        let entry = self.texts.iter().find(|(side, c, _)| *side == self.side && usize::from(*c) == column);
        entry.map(|(_, _, cell)| *cell)
    }
}

impl<'de, I: Iterator<Item = usize>> DeserializeSeed<'de> for Fields<'_, I> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de, I: Iterator<Item = usize>> Visitor<'de> for Fields<'_, I> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(column) = self.columns.next() {
            self.at.column.set(Some(column));
            if self.key_only.get(column) == Some(&true) {
                self.out.push(Cell::Absent);
                continue;
            }
            if self.encodings[column] == Encoding::Skipped {
                let cell = self.header_cell(column).ok_or_else(|| self.at.fail(UNFIT))?;
                self.out.push(cell);
                continue;
            }
            match map.next_key_seed(Name(&self.names[column]))? {
                Some(true) => {}
                Some(false) => return Err(self.at.fail("another field stands in this column's place")),
                None => return Err(self.at.fail("the field is missing")),
            }
            if let Some(cell) = self.header_cell(column) {
                map.next_value::<IgnoredAny>()?;
                self.out.push(cell);
            } else {
                map.next_value_seed(Value { encoding: &self.encodings[column], at: self.at, out: self.out })?;
            }
        }
        self.at.column.set(None);
        match map.next_key::<IgnoredAny>()? {
            None => Ok(()),
            Some(_) => Err(self.at.fail("a field that the relation does not know")),
        }
    }
}

/// Whether an object's next field is the column of this name.
struct Name<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<bool, D::Error> {
        d.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a column's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// One value, pushed as a cell.
struct Value<'a> {
    encoding: &'a Encoding,
    at: &'a Place,
    out: &'a mut RowBuf,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        let is_string = matches!(
            self.encoding,
            Encoding::Text(_)
                | Encoding::Enum { .. }
                | Encoding::DecimalText { .. }
                | Encoding::MoneyText
                | Encoding::Bytes(_)
                | Encoding::TimestampTz { .. }
        );
        if is_string {
            return d.deserialize_any(self);
        }
        // serde would turn numbers into machine numbers; their digits are the text.
        let raw = <&RawValue as serde::Deserialize>::deserialize(d)?.get();
        if raw == "null" {
            self.out.push(Cell::Null);
            return Ok(());
        }
        let read = self.out.push_with(|out| read_raw(self.encoding, raw, out));
        read.ok_or_else(|| self.at.fail(UNFIT))
    }
}

const UNFIT: &str = "the JSON is not a value of the column's type";

impl Visitor<'_> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.out.push(Cell::Null);
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let read = self.out.push_with(|out| read_string(self.encoding, text, out));
        read.ok_or_else(|| self.at.fail(UNFIT))
    }
}

/// Appends the Postgres text of a value whose JSON is a string.
pub(super) fn read_string(encoding: &Encoding, text: &str, out: &mut Vec<u8>) -> Option<()> {
    match encoding {
        Encoding::DecimalText { .. } => {
            let known = NUMERIC_NAMES.iter().find(|(_, debezium)| *debezium == text);
            out.extend_from_slice(known.map_or(text, |(postgres, _)| postgres).as_bytes());
        }
        Encoding::MoneyText => push_money(out, text.as_bytes())?,
        Encoding::Bytes(BinaryMode::Bytes | BinaryMode::Base64) => pgtext::push_bytea(out, text.as_bytes())?,
        Encoding::Bytes(BinaryMode::Base64UrlSafe) => {
            let standard = |byte| match byte {
                b'-' => b'+',
                b'_' => b'/',
                byte => byte,
            };
            let base64: Vec<u8> = text.bytes().map(standard).collect();
            pgtext::push_bytea(out, &base64)?;
        }
        Encoding::Bytes(BinaryMode::Hex) => {
            let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            out.extend_from_slice(b"\\x");
            out.extend_from_slice(is_hex.then_some(text.as_bytes())?);
        }
        Encoding::TimestampTz { .. } if matches!(text, "infinity" | "-infinity") => {
            out.extend_from_slice(text.as_bytes());
        }
        Encoding::TimestampTz { .. } => {
            let stamp = pgtext::parse_iso_utc(text.as_bytes()).filter(|stamp| stamp.is_valid())?;
            pgtext::push_timestamptz(out, stamp);
        }
        _ => out.extend_from_slice(text.as_bytes()),
    }
    Some(())
}

/// Appends the Postgres text of a value whose JSON is no string, or is one only at times. What never stands for itself, like
/// an array, was to be in `ls-text`.
pub(super) fn read_raw(encoding: &Encoding, raw: &str, out: &mut Vec<u8>) -> Option<()> {
    match encoding {
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 => {
            out.extend_from_slice(pgtext::is_integer(raw.as_bytes()).then_some(raw.as_bytes())?);
        }
        Encoding::Float32 | Encoding::Float64 => {
            let text = match unquoted(raw) {
                Some(name) => FLOAT_NAMES.contains(&name).then_some(name)?,
                None => pgtext::is_json_number(raw.as_bytes()).then_some(raw)?,
            };
            out.extend_from_slice(text.as_bytes());
        }
        Encoding::Bool | Encoding::Bit { .. } => {
            let bit = *encoding != Encoding::Bool;
            out.push(match raw {
                "true" if bit => b'1',
                "false" if bit => b'0',
                "true" => b't',
                "false" => b'f',
                _ => return None,
            });
        }
        Encoding::Date | Encoding::ConnectDate => match raw.parse().ok()? {
            DATE_INFINITY => out.extend_from_slice(b"infinity"),
            DATE_MINUS_INFINITY => out.extend_from_slice(b"-infinity"),
            days if pgtext::DATE_RANGE.contains(&days) => pgtext::push_date(out, days),
            _ => return None,
        },
        Encoding::Time(_) | Encoding::ConnectTime => {
            let number: i64 = raw.parse().ok()?;
            let micros = match encoding {
                Encoding::Time(Unit::Micros) => number,
                Encoding::Time(Unit::Nanos) => number / 1_000,
                _ => number.checked_mul(1_000)?,
            };
            (0..=86_400_000_000).contains(&micros).then(|| pgtext::push_time(out, micros))?;
        }
        _ => match stamp_of(timestamp_unit(encoding)?, raw.parse().ok()?)? {
            Temporal::Infinity => out.extend_from_slice(b"infinity"),
            Temporal::MinusInfinity => out.extend_from_slice(b"-infinity"),
            Temporal::Finite(stamp) => pgtext::push_timestamp(out, stamp),
        },
    }
    Some(())
}

/// The inside of a JSON string that needs no unescaping.
fn unquoted(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"').filter(|text| !text.contains('\\'))
}

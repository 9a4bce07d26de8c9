//! Postgres text to the envelope's JSON, written by hand into the caller's buffers.
//!
//! Everything that is the same in all records of a relation is made once, in [`Encoder::new`]: labels of the columns,
//! constant parts of the source block, what stands for a value that was not sent. Strings are escaped as Jackson does:
//! short escapes where JSON has them, `\u00XX` in upper case for other control characters, two `\uXXXX` for characters
//! beyond the BMP, everything else raw.

use std::sync::Arc;

use super::json_decode;
use super::mapping::{self, Encoding, Unit};
use super::{Event, Op, RecordBuf, invalid};
use crate::error::{Error, Result};
use crate::pgtext::{self, Temporal};
use crate::record::{Side, push_text};
use crate::relation::Relation;
use crate::value::{Cell, Row, RowBuf};

/// What `source.version` says: the program that wrote the record, as Debezium says its own version there.
const VERSION: &str = concat!("lockstep-", env!("CARGO_PKG_VERSION"));

/// Debezium's streamed sentinels for infinite dates, in days: java.time's LocalDate limits without the upper bits.
pub(super) const DATE_INFINITY: i32 = -2_147_472_692;
pub(super) const DATE_MINUS_INFINITY: i32 = -2_147_472_691;
/// The JDBC driver's infinite timestamps, in milliseconds.
pub(super) const TIMESTAMP_INFINITY_MS: i64 = 9_223_372_036_825_200;
pub(super) const TIMESTAMP_MINUS_INFINITY_MS: i64 = -9_223_372_036_832_400;
/// Debezium's names for numerics that are no numbers, beside Postgres'.
pub(super) const NUMERIC_NAMES: [(&str, &str); 3] =
    [("NaN", "NAN"), ("Infinity", "POSITIVE_INFINITY"), ("-Infinity", "NEGATIVE_INFINITY")];
/// Floats that are no numbers: Java, Postgres and JsonConverter call them alike.
pub(super) const FLOAT_NAMES: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// Writes the records of one relation version.
pub struct Encoder {
    relation: Arc<Relation>,
    fields: Vec<Field>,
    /// Indexes of the key columns in key order.
    key: Vec<usize>,
    /// `,"source":{…"ts_ms":`
    source_head: Vec<u8>,
    /// `","db":…,"sequence":"[`
    source_db: Vec<u8>,
    /// `,"schema":…,"table":…,"txId":`
    source_table: Vec<u8>,
}

struct Field {
    /// `,"name":`; the first column of an object leaves the comma out.
    label: Vec<u8>,
    encoding: Encoding,
    /// For `after` and `before` when the value was not sent.
    unavailable: String,
    unsent: String,
}

/// What the JSON of a value is worth to our decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fidelity {
    Exact,
    /// The text must ride beside it.
    NeedsText,
}

/// Why a text has no JSON. Nothing that is written before the error counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unfit {
    NotUtf8,
    NotOfItsType,
}

impl Encoder {
    /// `prefix` is the topic prefix (Debezium's logical name), `db` the source's database.
    pub fn new(relation: Arc<Relation>, prefix: &str, db: &str) -> Encoder {
        let fields = relation.columns.iter().map(|column| {
            let encoding = mapping::encoding(column.type_oid, column.typmod, &relation.modes);
            Field {
                label: [b",", quoted(&column.name).as_slice(), b":"].concat(),
                encoding,
                unavailable: mapping::unavailable(column, encoding),
                unsent: mapping::unsent(column, encoding),
            }
        });
        let source_head = [
            br#","source":{"version":"#.as_slice(),
            &quoted(VERSION),
            br#","connector":"postgresql","name":"#,
            &quoted(prefix),
            br#","ts_ms":"#,
        ];
        let source_db = [br#"","db":"#.as_slice(), &quoted(db), br#","sequence":"["#];
        let source_table = [
            br#","schema":"#.as_slice(),
            &quoted(&relation.name.schema),
            br#","table":"#,
            &quoted(&relation.name.table),
            br#","txId":"#,
        ];
        Encoder {
            fields: fields.collect(),
            key: relation.key_columns(),
            source_head: source_head.concat(),
            source_db: source_db.concat(),
            source_table: source_table.concat(),
            relation,
        }
    }

    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// Whether records have a key; without one it is null and `out.key` stays empty.
    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// Writes the row's key into `out.key`. A key column that is NULL or was not sent is RECORD_INVALID.
    pub fn key(&self, row: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.key_json(row, &mut out.key)
    }

    /// The key as JSON, also for the headers of a key change ([`super::HEADER_NEW_KEY`], [`super::HEADER_OLD_KEY`]). Clears
    /// `out`, which stays empty for a table without a key.
    pub fn key_json(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        self.check_width(row)?;
        for (i, &column) in self.key.iter().enumerate() {
            let field = &self.fields[column];
            out.push(if i == 0 { b'{' } else { b',' });
            out.extend_from_slice(&field.label[1..]);
            match row.get(column) {
                Cell::Text(text) => self.key_value(column, text, out)?,
                Cell::Null => return Err(self.no_key(column, "NULL in a key column")),
                Cell::Absent => return Err(self.no_key(column, "the source did not send this key column")),
            }
        }
        if self.has_key() {
            out.push(b'}');
        }
        Ok(())
    }

    /// A row that was inserted, or the new half of a key change.
    pub fn create(&self, event: &Event, after: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Create, event, None, Some(after), out)
    }

    /// A row that was changed. `before` is written if it is whole (REPLICA IDENTITY FULL); a partial old row says nothing
    /// that the key does not say, and Debezium leaves it null.
    pub fn update(&self, event: &Event, before: Option<Row<'_>>, after: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Update, event, before.filter(|row| !row.has_absent()), Some(after), out)
    }

    /// A row that was deleted, or the old half of a key change. `before` is what the source sent of it.
    pub fn delete(&self, event: &Event, before: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Delete, event, Some(before), None, out)
    }

    /// A row that was read by a snapshot.
    pub fn read(&self, event: &Event, after: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Read, event, None, Some(after), out)
    }

    /// Every row is gone. Its key is null: `out.key` is cleared.
    pub fn truncate(&self, event: &Event, out: &mut RecordBuf) -> Result<()> {
        out.key.clear();
        self.envelope(Op::Truncate, event, None, None, out)
    }

    fn envelope(
        &self,
        op: Op,
        event: &Event,
        before: Option<Row<'_>>,
        after: Option<Row<'_>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        out.value.clear();
        out.text.clear();
        out.value.extend_from_slice(br#"{"before":"#);
        self.side(Side::Before, before, out)?;
        out.value.extend_from_slice(br#","after":"#);
        self.side(Side::After, after, out)?;
        self.source(op, event, &mut out.value);
        Ok(())
    }

    fn side(&self, side: Side, row: Option<Row<'_>>, out: &mut RecordBuf) -> Result<()> {
        let Some(row) = row else {
            out.value.extend_from_slice(b"null");
            return Ok(());
        };
        self.check_width(row)?;
        out.value.push(b'{');
        for (column, (cell, field)) in row.iter().zip(&self.fields).enumerate() {
            out.value.extend_from_slice(&field.label[usize::from(column == 0)..]);
            match (cell, side) {
                (Cell::Text(text), _) => {
                    let fidelity = write_value(field.encoding, text, &mut out.value);
                    if fidelity.map_err(|unfit| self.unfit(column, unfit))? == Fidelity::NeedsText {
                        let number = u16::try_from(column).expect("Postgres has at most 1600 columns");
                        push_text(&mut out.text, side, number, cell);
                    }
                }
                (Cell::Null, _) => out.value.extend_from_slice(b"null"),
                (Cell::Absent, Side::After) => out.value.extend_from_slice(field.unavailable.as_bytes()),
                (Cell::Absent, Side::Before) => out.value.extend_from_slice(field.unsent.as_bytes()),
            }
        }
        out.value.push(b'}');
        Ok(())
    }

    /// Everything behind the rows.
    fn source(&self, op: Op, event: &Event, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source_head);
        push_integer(out, event.commit_time_us.div_euclid(1_000));
        out.extend_from_slice(br#","snapshot":""#);
        out.extend_from_slice(event.snapshot.as_str().as_bytes());
        out.extend_from_slice(&self.source_db);
        match event.last_commit_lsn {
            None => out.extend_from_slice(b"null"),
            Some(lsn) => push_escaped_quotes(out, lsn.0),
        }
        out.push(b',');
        push_escaped_quotes(out, event.lsn.0);
        out.extend_from_slice(br#"]","ts_us":"#);
        push_integer(out, event.commit_time_us);
        out.extend_from_slice(br#","ts_ns":"#);
        push_integer(out, event.commit_time_us.saturating_mul(1_000));
        out.extend_from_slice(&self.source_table);
        match event.xid {
            None => out.extend_from_slice(b"null"),
            Some(xid) => push_integer(out, xid),
        }
        out.extend_from_slice(br#","lsn":"#);
        push_integer(out, event.lsn.0);
        out.extend_from_slice(br#","xmin":null,"origin":null,"origin_lsn":null},"transaction":null,"op":""#);
        out.push(u8::try_from(op.letter()).expect("an ASCII letter"));
        out.extend_from_slice(br#"","ts_ms":"#);
        push_integer(out, event.now_ns.div_euclid(1_000_000));
        out.extend_from_slice(br#","ts_us":"#);
        push_integer(out, event.now_ns.div_euclid(1_000));
        out.extend_from_slice(br#","ts_ns":"#);
        push_integer(out, event.now_ns);
        out.push(b'}');
    }

    /// A key has no `ls-text` beside it, so it must stand for itself: JSON that does not decode to the text (a timestamp
    /// beyond 64 bits of microseconds) gives way to a string of the text.
    fn key_value(&self, column: usize, text: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let encoding = self.fields[column].encoding;
        let start = out.len();
        if write_value(encoding, text, out).map_err(|unfit| self.unfit(column, unfit))? == Fidelity::Exact {
            return Ok(());
        }
        let mut scratch = RowBuf::new();
        let mut decodes = |json: &[u8]| {
            scratch.clear();
            json_decode::value(encoding, json, &mut scratch).is_some() && scratch.row().get(0) == Cell::Text(text)
        };
        if decodes(&out[start..]) {
            return Ok(());
        }
        out.truncate(start);
        push_string(out, text).map_err(|unfit| self.unfit(column, unfit))?;
        if decodes(&out[start..]) { Ok(()) } else { Err(self.unfit(column, Unfit::NotOfItsType)) }
    }

    fn check_width(&self, row: Row<'_>) -> Result<()> {
        if row.len() == self.fields.len() {
            return Ok(());
        }
        let found = format!("a row of {} columns, the relation has {}", row.len(), self.fields.len());
        Err(invalid(&self.relation, None, &found, "report it: the relation and the row disagree".to_owned()))
    }

    fn unfit(&self, column: usize, unfit: Unfit) -> Error {
        let found = match unfit {
            Unfit::NotUtf8 => "a value is not valid UTF-8, so it can't be written without loss",
            Unfit::NotOfItsType => "a value is not the text that Postgres prints for the column's type",
        };
        // Only a database without an encoding, or a damaged one, sends such bytes although the session asks for UTF-8.
        let hint = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database(); \
                    then repair the value with UPDATE";
        invalid(&self.relation, Some(column), found, hint.to_owned())
    }

    fn no_key(&self, column: usize, found: &str) -> Error {
        let hint = format!("ALTER TABLE {} REPLICA IDENTITY FULL", self.relation.name.quoted());
        invalid(&self.relation, Some(column), found, hint)
    }
}

fn write_value(encoding: Encoding, text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    match encoding {
        Encoding::Text => push_string(out, text).map(|()| Fidelity::Exact),
        Encoding::Integer => {
            out.extend_from_slice(pgtext::is_integer(text).then_some(text).ok_or(Unfit::NotOfItsType)?);
            Ok(Fidelity::Exact)
        }
        Encoding::Float => write_float(text, out),
        Encoding::Numeric => write_numeric(text, out),
        Encoding::Money => write_money(text, out),
        Encoding::Bool => {
            let (json, fidelity): (&[u8], _) = match text {
                b"t" => (b"true", Fidelity::Exact),
                b"f" => (b"false", Fidelity::Exact),
                // A cast to text prints these.
                b"true" | b"false" => (text, Fidelity::NeedsText),
                _ => return Err(Unfit::NotOfItsType),
            };
            out.extend_from_slice(json);
            Ok(fidelity)
        }
        Encoding::Bytes => {
            out.push(b'"');
            pgtext::push_base64(out, text).ok_or(Unfit::NotOfItsType)?;
            out.push(b'"');
            Ok(exact_if(!text.iter().any(u8::is_ascii_uppercase)))
        }
        Encoding::Date => write_date(text, out),
        Encoding::Time(unit) => write_time(unit, text, out),
        Encoding::Timestamp(unit) => write_timestamp(unit, text, out),
        Encoding::TimestampTz { digits } => write_timestamptz(digits, text, out),
    }
}

fn exact_if(exact: bool) -> Fidelity {
    if exact { Fidelity::Exact } else { Fidelity::NeedsText }
}

fn write_float(text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    if pgtext::is_json_number(text) {
        out.extend_from_slice(text);
        return Ok(Fidelity::Exact);
    }
    if !FLOAT_NAMES.iter().any(|name| name.as_bytes() == text) {
        return Err(Unfit::NotOfItsType);
    }
    push_string(out, text)?;
    Ok(Fidelity::NeedsText)
}

fn write_numeric(text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    if text.last().is_some_and(u8::is_ascii_digit) {
        push_string(out, text)?;
        return Ok(Fidelity::Exact);
    }
    let name = NUMERIC_NAMES.iter().find(|(postgres, _)| postgres.as_bytes() == text);
    push_string(out, name.ok_or(Unfit::NotOfItsType)?.1.as_bytes())?;
    Ok(Fidelity::NeedsText)
}

fn write_money(text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    // 64 bits of cents have 19 digits, a point and a sign.
    let mut plain = [0u8; 24];
    let mut len = 0;
    for byte in text.iter().filter(|b| !matches!(b, b'$' | b',')) {
        *plain.get_mut(len).ok_or(Unfit::NotOfItsType)? = *byte;
        len += 1;
    }
    let plain = &plain[..len];
    if !plain.iter().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-')) || !pgtext::is_json_number(plain) {
        return Err(Unfit::NotOfItsType);
    }
    let exact = prints_as(out, text, |o| {
        let _ = json_decode::push_money(o, plain);
    });
    push_string(out, plain)?;
    Ok(exact_if(exact))
}

fn write_date(text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    let (days, exact) = match pgtext::parse_date(text).ok_or(Unfit::NotOfItsType)? {
        Temporal::Infinity => (DATE_INFINITY, false),
        Temporal::MinusInfinity => (DATE_MINUS_INFINITY, false),
        Temporal::Finite(days) => {
            (days, pgtext::DATE_RANGE.contains(&days) && prints_as(out, text, |o| pgtext::push_date(o, days)))
        }
    };
    push_integer(out, days);
    Ok(exact_if(exact))
}

fn write_time(unit: Unit, text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    let micros = pgtext::parse_time(text).ok_or(Unfit::NotOfItsType)?;
    let carried = match unit {
        Unit::Millis => micros / 1_000 * 1_000,
        Unit::Micros => micros,
    };
    let exact = prints_as(out, text, |o| pgtext::push_time(o, carried));
    push_integer(out, if unit == Unit::Millis { micros / 1_000 } else { micros });
    Ok(exact_if(exact))
}

fn write_timestamp(unit: Unit, text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    let infinite_ms = match pgtext::parse_timestamp(text).ok_or(Unfit::NotOfItsType)? {
        Temporal::Infinity => TIMESTAMP_INFINITY_MS,
        Temporal::MinusInfinity => TIMESTAMP_MINUS_INFINITY_MS,
        Temporal::Finite(stamp) => {
            let number = match unit {
                Unit::Millis => stamp.seconds * 1_000 + i64::from(stamp.micros / 1_000),
                // As java.util.concurrent.TimeUnit does it: beyond 294247-01-10 the seconds saturate, then the sum wraps.
                Unit::Micros => stamp.seconds.saturating_mul(1_000_000).wrapping_add(i64::from(stamp.micros)),
            };
            let exact = match json_decode::stamp_of(unit, number) {
                Some(Temporal::Finite(carried)) => prints_as(out, text, |o| pgtext::push_timestamp(o, carried)),
                _ => false,
            };
            push_integer(out, number);
            return Ok(exact_if(exact));
        }
    };
    push_integer(out, if unit == Unit::Millis { infinite_ms } else { infinite_ms * 1_000 });
    Ok(Fidelity::NeedsText)
}

fn write_timestamptz(digits: u8, text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity, Unfit> {
    out.push(b'"');
    let exact = match pgtext::parse_timestamptz(text).ok_or(Unfit::NotOfItsType)? {
        Temporal::Infinity | Temporal::MinusInfinity => {
            out.extend_from_slice(text);
            true
        }
        Temporal::Finite(stamp) => {
            let exact = stamp.is_valid() && prints_as(out, text, |o| pgtext::push_timestamptz(o, stamp));
            pgtext::push_iso_utc(out, stamp, digits);
            exact
        }
    };
    out.push(b'"');
    Ok(exact_if(exact))
}

/// Whether `print` gives exactly `text`; `out` is the scratch space and stays as it was.
fn prints_as(out: &mut Vec<u8>, text: &[u8], print: impl FnOnce(&mut Vec<u8>)) -> bool {
    let start = out.len();
    print(out);
    let same = &out[start..] == text;
    out.truncate(start);
    same
}

fn push_integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// `\"123\"`: a JSON string inside a JSON string.
fn push_escaped_quotes(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(br#"\""#);
    push_integer(out, number);
    out.extend_from_slice(br#"\""#);
}

fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    push_string(&mut out, text.as_bytes()).expect("a str is UTF-8");
    out
}

/// Appends a JSON string.
fn push_string(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Unfit> {
    let mut rest = std::str::from_utf8(text).map_err(|_| Unfit::NotUtf8)?;
    out.push(b'"');
    loop {
        let (plain, special) = rest.split_at(plain_prefix(rest.as_bytes()));
        out.extend_from_slice(plain.as_bytes());
        let mut chars = special.chars();
        let Some(char) = chars.next() else { break };
        push_escape(out, char);
        rest = chars.as_str();
    }
    out.push(b'"');
    Ok(())
}

/// Bytes that begin a character which is escaped. Bytes from 0xF0 lead the characters beyond the BMP.
fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte >= 0xF0)
}

/// How many bytes need no escape. Sixteen at once: the fold without branches becomes vector instructions.
fn plain_prefix(bytes: &[u8]) -> usize {
    let plain = bytes.chunks_exact(16).take_while(|chunk| !chunk.iter().fold(false, |any, b| any | is_special(*b)));
    let start = plain.count() * 16;
    let rest = &bytes[start..];
    start + rest.iter().position(|b| is_special(*b)).unwrap_or(rest.len())
}

fn push_escape(out: &mut Vec<u8>, char: char) {
    let short: &[u8] = match char {
        '"' => br#"\""#,
        '\\' => br"\\",
        '\n' => br"\n",
        '\r' => br"\r",
        '\t' => br"\t",
        '\u{8}' => br"\b",
        '\u{c}' => br"\f",
        _ => b"",
    };
    if !short.is_empty() {
        return out.extend_from_slice(short);
    }
    for unit in char.encode_utf16(&mut [0; 2]) {
        let digit = |shift: u16| b"0123456789ABCDEF"[usize::from(*unit >> shift & 15)];
        out.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
    }
}

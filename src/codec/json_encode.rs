//! Postgres text to the envelope's JSON, written by hand into the caller's buffers.
//!
//! Everything that is the same in all records of a relation is made once, in [`Encoder::new`]: labels of the columns,
//! constant parts of the source block, what stands for a value that was not sent. Strings are escaped as Jackson does:
//! short escapes where JSON has them, `\u00XX` in upper case for other control characters, two `\uXXXX` for characters
//! beyond the BMP, everything else raw.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::events::head;
use super::mapping::{self, Encoding};
use super::schema::{RelationSchemas, Value};
use super::shell::{EncoderId, Shell};
use super::write::{FLOAT_NAMES, Fidelity, Writer, write};
use super::{Event, Op, RecordBuf, VERSION, check_skipped_key, may_be_unsaid, no_key, unfit, wrong_width};
use crate::error::Result;
use crate::pgtext;
use crate::record::{Side, push_text};
use crate::relation::Relation;
use crate::value::{Cell, Row};

/// Writes the records of one relation version.
pub struct Encoder {
    id: EncoderId,
    relation: Arc<Relation>,
    fields: Vec<Field>,
    /// Indexes of the key columns in key order.
    key: Vec<usize>,
    /// `{"schema":…,"payload":` where values and keys carry their schema, else nothing.
    value_head: Vec<u8>,
    key_head: Vec<u8>,
    source: Source,
}

/// The source block of one table's records.
pub(super) struct Source {
    /// `,"source":{…"ts_ms":`
    head: Vec<u8>,
    /// `","db":…,"sequence":"[`
    db: Vec<u8>,
    /// `,"schema":…,"table":…,"txId":`
    table: Vec<u8>,
}

struct Field {
    /// `,"name":`; the first column of an object leaves the comma out.
    label: Vec<u8>,
    encoding: Encoding,
    /// For `after` and `before` when the value was not sent.
    unavailable: Vec<u8>,
    unsent: Vec<u8>,
    /// What NULL is shown as where the modes or a schema replace it; the header then says that it is NULL.
    null: Option<Vec<u8>>,
    /// The column stands in keys and in no row.
    key_only: bool,
    nullable: bool,
}

impl Field {
    fn is_skipped(&self) -> bool {
        self.encoding == Encoding::Skipped
    }
}

impl Encoder {
    /// `prefix` is the topic prefix (Debezium's logical name), `db` the source's database.
    pub fn new(relation: Arc<Relation>, prefix: &str, db: &str) -> Encoder {
        let modes = &relation.modes;
        let fields = relation.columns.iter().enumerate().map(|(i, column)| {
            let encoding = mapping::encoding(column, modes);
            let null = mapping::default(column, &encoding).filter(|_| modes.null_as_default);
            let unsent = mapping::unsent(column, &encoding, modes);
            // The catalog may know of a NOT NULL that is younger than the row, and the schema says what the catalog says.
            let null = null.or_else(|| (modes.schemas && !column.nullable).then(|| unsent.clone()));
            Field {
                label: [b",", quoted(&modes.field_names.field(&column.name)).as_slice(), b":"].concat(),
                unavailable: json_of(&mapping::unavailable(column, &encoding, modes)),
                unsent: json_of(&unsent),
                null: null.map(|default| json_of(&default)),
                encoding,
                key_only: relation.is_key_only(i),
                nullable: column.nullable,
            }
        });
        let schemas = modes.schemas.then(|| RelationSchemas::new(&relation, prefix));
        Encoder {
            id: EncoderId::new(),
            fields: fields.collect(),
            key: relation.key_columns(),
            value_head: schemas.as_ref().map(|schemas| head(&schemas.envelope)).unwrap_or_default(),
            key_head: schemas.as_ref().and_then(|schemas| schemas.key.as_ref()).map(head).unwrap_or_default(),
            source: Source::new(prefix, db, &relation.name.schema, &relation.name.table),
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

    /// Writes the row's key into `out.key`. A key column that was not sent, or is NULL and may not be, is RECORD_INVALID.
    pub fn key(&self, row: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        out.key.clear();
        if !self.has_key() {
            return Ok(());
        }
        out.key.extend_from_slice(&self.key_head);
        self.push_key(row, &mut out.key)?;
        if !self.key_head.is_empty() {
            out.key.push(b'}');
        }
        Ok(())
    }

    /// The key without its schema, for the headers of a key change ([`super::HEADER_NEW_KEY`], [`super::HEADER_OLD_KEY`]).
    /// Clears `out`, which stays empty for a table without a key.
    pub fn key_json(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        if self.has_key() { self.push_key(row, out) } else { Ok(()) }
    }

    fn push_key(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        self.check_width(row)?;
        out.push(b'{');
        let mut first = true;
        for &column in &self.key {
            let field = &self.fields[column];
            if field.is_skipped() {
                check_skipped_key(&self.relation, column, row.get(column))?;
                continue;
            }
            out.extend_from_slice(&field.label[usize::from(first)..]);
            first = false;
            match row.get(column) {
                Cell::Text(text) => {
                    self.value(column, text, out)?;
                }
                // Only of a key that its connector names: no row is found by it.
                Cell::Null if field.nullable => out.extend_from_slice(field.null.as_deref().unwrap_or(b"null")),
                Cell::Null => return Err(no_key(&self.relation, column, "NULL in a key column")),
                Cell::Absent => return Err(no_key(&self.relation, column, "the source did not send this key column")),
            }
        }
        out.push(b'}');
        Ok(())
    }

    pub(super) fn envelope(
        &self,
        op: Op,
        event: &Event,
        before: Option<Row<'_>>,
        after: Option<Row<'_>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        out.value.clear();
        out.text.clear();
        out.value.extend_from_slice(&self.value_head);
        out.value.extend_from_slice(br#"{"before":"#);
        self.side(Side::Before, before, out)?;
        out.value.extend_from_slice(br#","after":"#);
        self.side(Side::After, after, out)?;
        if out.shell.renew(self.id, event) {
            self.render(event, &mut out.shell);
        }
        let (value, shell) = (&mut out.value, &out.shell);
        let mut lsn = itoa::Buffer::new();
        let lsn = lsn.format(event.lsn.0).as_bytes();
        value.extend_from_slice(&shell.head);
        value.extend_from_slice(lsn);
        value.extend_from_slice(&shell.middle);
        value.extend_from_slice(lsn);
        value.extend_from_slice(&shell.origin);
        value.extend_from_slice(br#","transaction":"#);
        push_block(event, value);
        value.extend_from_slice(br#","op":""#);
        value.push(u8::try_from(op.letter()).expect("an ASCII letter"));
        value.extend_from_slice(&shell.tail);
        if !self.value_head.is_empty() {
            out.value.push(b'}');
        }
        Ok(())
    }

    fn render(&self, event: &Event, shell: &mut Shell) {
        self.source.push_before_lsn(event, &mut shell.head);
        self.source.push_between(event, &mut shell.middle);
        push_origin(event, &mut shell.origin);
        let tail = &mut shell.tail;
        tail.extend_from_slice(br#"","ts_ms":"#);
        push_integer(tail, event.now_ns.div_euclid(1_000_000));
        tail.extend_from_slice(br#","ts_us":"#);
        push_integer(tail, event.now_ns.div_euclid(1_000));
        tail.extend_from_slice(br#","ts_ns":"#);
        push_integer(tail, event.now_ns);
        tail.push(b'}');
    }

    pub(super) fn side(&self, side: Side, row: Option<Row<'_>>, out: &mut RecordBuf) -> Result<()> {
        let Some(row) = row else {
            out.value.extend_from_slice(b"null");
            return Ok(());
        };
        self.check_width(row)?;
        out.value.push(b'{');
        let mut first = true;
        for (column, (cell, field)) in row.iter().zip(&self.fields).enumerate() {
            if field.key_only {
                continue;
            }
            if !field.is_skipped() {
                out.value.extend_from_slice(&field.label[usize::from(first)..]);
                first = false;
            }
            let beside = match (cell, side) {
                (Cell::Text(text), _) => self.value(column, text, &mut out.value)? == Fidelity::NeedsText,
                (Cell::Null, _) if field.is_skipped() => true,
                (Cell::Null, _) => {
                    out.value.extend_from_slice(field.null.as_deref().unwrap_or(b"null"));
                    field.null.is_some()
                }
                (Cell::Absent, _) if field.is_skipped() => false,
                (Cell::Absent, Side::After) => {
                    out.value.extend_from_slice(&field.unavailable);
                    false
                }
                (Cell::Absent, Side::Before) => {
                    out.value.extend_from_slice(&field.unsent);
                    false
                }
            };
            if beside {
                let number = u16::try_from(column).expect("Postgres has at most 1600 columns");
                push_text(&mut out.text, side, number, cell);
            }
        }
        out.value.push(b'}');
        Ok(())
    }

    /// One value, or what stands for it where the modes have no form for it.
    pub(super) fn value(&self, column: usize, text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity> {
        let field = &self.fields[column];
        let start = out.len();
        match write(&field.encoding, text, &mut JsonWriter::new(out)) {
            Ok(fidelity) => Ok(fidelity),
            Err(why) if may_be_unsaid(why, &self.relation.modes) => {
                out.truncate(start);
                out.extend_from_slice(&field.unsent);
                Ok(Fidelity::NeedsText)
            }
            Err(why) => Err(unfit(&self.relation, column, why)),
        }
    }

    fn check_width(&self, row: Row<'_>) -> Result<()> {
        if row.len() == self.fields.len() { Ok(()) } else { Err(wrong_width(&self.relation, row.len())) }
    }
}

impl Source {
    pub fn new(prefix: &str, db: &str, schema: &str, table: &str) -> Source {
        let head = [
            br#","source":{"version":"#.as_slice(),
            &quoted(VERSION),
            br#","connector":"postgresql","name":"#,
            &quoted(prefix),
            br#","ts_ms":"#,
        ];
        let db = [br#"","db":"#.as_slice(), &quoted(db), br#","sequence":"["#];
        let table = [br#","schema":"#.as_slice(), &quoted(schema), br#","table":"#, &quoted(table), br#","txId":"#];
        Source { head: head.concat(), db: db.concat(), table: table.concat() }
    }

    /// `,"source":{…}`
    pub fn push(&self, event: &Event, out: &mut Vec<u8>) {
        self.push_before_lsn(event, out);
        push_integer(out, event.lsn.0);
        self.push_between(event, out);
        push_integer(out, event.lsn.0);
        push_origin(event, out);
    }

    /// Up to where the event's place first stands, within `sequence`.
    fn push_before_lsn(&self, event: &Event, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        push_integer(out, event.commit_time_us.div_euclid(1_000));
        out.extend_from_slice(br#","snapshot":""#);
        out.extend_from_slice(event.snapshot.as_str().as_bytes());
        out.extend_from_slice(&self.db);
        match event.last_commit_lsn {
            None => out.extend_from_slice(b"null"),
            Some(lsn) => {
                out.extend_from_slice(br#"\""#);
                push_integer(out, lsn.0);
                out.extend_from_slice(br#"\""#);
            }
        }
        out.extend_from_slice(br#",\""#);
    }

    /// From there up to where it stands again, as `lsn`.
    fn push_between(&self, event: &Event, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"\"]","ts_us":"#);
        push_integer(out, event.commit_time_us);
        out.extend_from_slice(br#","ts_ns":"#);
        push_integer(out, event.commit_time_us.saturating_mul(1_000));
        out.extend_from_slice(&self.table);
        match event.xid {
            None => out.extend_from_slice(b"null"),
            Some(xid) => push_integer(out, xid),
        }
        out.extend_from_slice(br#","lsn":"#);
    }
}

/// What stands behind the event's place, up to the end of the source block.
fn push_origin(event: &Event, out: &mut Vec<u8>) {
    let Some(origin) = &event.origin else {
        return out.extend_from_slice(br#","xmin":null,"origin":null,"origin_lsn":null}"#);
    };
    out.extend_from_slice(br#","xmin":null,"origin":"#);
    out.extend_from_slice(&quoted(&origin.name));
    out.extend_from_slice(br#","origin_lsn":"#);
    push_integer(out, origin.lsn.0);
    out.push(b'}');
}

/// The transaction block, or null.
pub(super) fn push_block(event: &Event, out: &mut Vec<u8>) {
    let (Some(block), Some(xid)) = (event.block, event.xid) else {
        return out.extend_from_slice(b"null");
    };
    out.extend_from_slice(br#"{"id":""#);
    push_integer(out, xid);
    out.push(b':');
    push_integer(out, event.lsn.0);
    out.extend_from_slice(br#"","total_order":"#);
    push_integer(out, block.total_order);
    out.extend_from_slice(br#","data_collection_order":"#);
    push_integer(out, block.collection_order);
    out.push(b'}');
}

fn json_of(value: &Value) -> Vec<u8> {
    let mut json = Vec::new();
    value.write(&mut JsonWriter::new(&mut json));
    json
}

/// Writes values as JsonConverter does: bytes as base64, maps with text keys as objects, other maps as lists of pairs.
pub struct JsonWriter<'a> {
    out: &'a mut Vec<u8>,
    /// Of each open collection: whether something stands in it.
    filled: Vec<bool>,
    maps: Vec<bool>,
}

impl<'a> JsonWriter<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> JsonWriter<'a> {
        JsonWriter { out, filled: Vec::new(), maps: Vec::new() }
    }

    fn begin(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.filled.push(false);
    }

    fn end(&mut self, bracket: u8) {
        self.out.push(bracket);
        self.filled.pop();
    }

    fn comma(&mut self) {
        if std::mem::replace(self.filled.last_mut().expect("a collection is open"), true) {
            self.out.push(b',');
        }
    }
}

impl Writer for JsonWriter<'_> {
    fn null(&mut self) {
        self.out.extend_from_slice(b"null");
    }

    fn boolean(&mut self, value: bool) {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn integer(&mut self, value: i64) {
        push_integer(self.out, value);
    }

    fn digits(&mut self, text: &[u8]) {
        self.out.extend_from_slice(text);
    }

    fn float(&mut self, text: &[u8]) {
        let named = FLOAT_NAMES.iter().any(|name| name.as_bytes() == text);
        if named {
            self.out.push(b'"');
        }
        self.out.extend_from_slice(text);
        if named {
            self.out.push(b'"');
        }
    }

    fn string(&mut self, text: &str) {
        push_str(self.out, text);
    }

    fn plain(&mut self, print: impl FnOnce(&mut Vec<u8>)) {
        self.out.push(b'"');
        print(self.out);
        self.out.push(b'"');
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        let start = self.out.len();
        self.out.resize(start + bytes.len().div_ceil(3) * 4, 0);
        let written = STANDARD.encode_slice(bytes, &mut self.out[start..]);
        written.expect("the room was measured");
        self.out.push(b'"');
    }

    fn bytea(&mut self, text: &[u8]) -> Option<()> {
        self.out.push(b'"');
        pgtext::push_base64(self.out, text)?;
        self.out.push(b'"');
        Some(())
    }

    fn begin_array(&mut self) {
        self.begin(b'[');
    }

    fn element(&mut self) {
        self.comma();
    }

    fn end_array(&mut self) {
        self.end(b']');
    }

    fn begin_map(&mut self, text_keys: bool) {
        self.maps.push(text_keys);
        self.begin(if text_keys { b'{' } else { b'[' });
    }

    fn map_key(&mut self) {
        let text_keys = *self.maps.last().expect("a map is open");
        // A pair of a map without text keys is a list of two.
        if std::mem::replace(self.filled.last_mut().expect("a map is open"), true) {
            self.out.extend_from_slice(if text_keys { b"," } else { b"],[" });
        } else if !text_keys {
            self.out.push(b'[');
        }
    }

    fn map_value(&mut self) {
        let text_keys = *self.maps.last().expect("a map is open");
        self.out.push(if text_keys { b':' } else { b',' });
    }

    fn end_map(&mut self) {
        let text_keys = self.maps.pop().expect("a map is open");
        if !text_keys && self.filled.last() == Some(&true) {
            self.out.push(b']');
        }
        self.end(if text_keys { b'}' } else { b']' });
    }

    fn begin_struct(&mut self) {
        self.begin(b'{');
    }

    fn field(&mut self, name: &'static str) {
        self.comma();
        push_str(self.out, name);
        self.out.push(b':');
    }

    fn end_struct(&mut self) {
        self.end(b'}');
    }

    fn nests(&self) -> bool {
        true
    }

    fn scratch(&mut self) -> &mut Vec<u8> {
        self.out
    }
}

pub(super) fn push_integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    push_string(&mut out, text.as_bytes()).expect("a str is UTF-8");
    out
}

/// Appends a JSON string; `None` if the text is not UTF-8.
pub(super) fn push_string(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    push_str(out, std::str::from_utf8(text).ok()?);
    Some(())
}

pub(super) fn push_str(out: &mut Vec<u8>, text: &str) {
    let mut rest = text;
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

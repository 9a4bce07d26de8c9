//! Postgres text to a framed datum, written by hand into the caller's buffers.
//!
//! Everything that is the same in all records of a relation is made once, in [`Encoder::new`]: frames, the constant parts of the
//! source block, what stands for NULL and for a value that was not sent. The source block's layout is that of
//! [`super::super::schema::source`], the envelope's that of its `envelope`.

use std::sync::Arc;

use super::shape::Shape;
use super::{FRAME_BYTES, Float, SchemaIds, frame, is_shortest, push_bytes, push_float, push_long};
use crate::codec::mapping::{self, Encoding};
use crate::codec::schema::Value;
use crate::codec::shell::{EncoderId, Shell};
use crate::codec::write::{Fidelity, Writer, write};
use crate::codec::{
    Event, JsonEncoder, Op, RecordBuf, VERSION, check_skipped_key, invalid, may_be_unsaid, no_key, unfit, wrong_width,
};
use crate::error::Result;
use crate::record::{Side, push_text};
use crate::relation::Relation;
use crate::value::{Cell, Row};

/// First and second branch of a union, zig-zag.
const FIRST: u8 = 0;
const SECOND: u8 = 2;

/// Writes the records of one relation version.
pub struct Encoder {
    id: EncoderId,
    relation: Arc<Relation>,
    columns: Vec<Column>,
    /// Indexes of the key columns in key order, and the shape of each in the key; `None` where it has no field.
    key: Vec<(usize, Option<Shape>)>,
    key_frame: [u8; FRAME_BYTES],
    value_frame: [u8; FRAME_BYTES],
    /// Version, connector, name.
    source_head: Vec<u8>,
    db: Vec<u8>,
    /// Schema, table.
    source_table: Vec<u8>,
    /// For the headers of a key change, which are JSON in every format.
    json: JsonEncoder,
}

struct Column {
    encoding: Encoding,
    /// `None`: the column has no field.
    shape: Option<Shape>,
    /// Its field is in keys and in no row.
    key_only: bool,
    nullable: bool,
    /// What NULL is written as, and whether that is something else, so that the header must say that it is NULL.
    null: Vec<u8>,
    null_beside: bool,
    /// For `after` and `before` when the value was not sent.
    unavailable: Vec<u8>,
    unsent: Vec<u8>,
}

impl Encoder {
    /// `prefix` is the topic prefix (Debezium's logical name), `db` the source's database. The relation is of format Avro and
    /// complete.
    pub fn new(relation: Arc<Relation>, ids: SchemaIds, prefix: &str, db: &str) -> Result<Encoder> {
        let shapes = super::shapes(&relation)?;
        let modes = &relation.modes;
        let column = |(i, column): (usize, &crate::relation::Column), shape: Option<Shape>| {
            let (key_only, nullable) = (relation.is_key_only(i), column.nullable);
            let in_key = || shapes.key.iter().find(|(index, _)| *index == i).and_then(|(_, shape)| shape.clone());
            let shape = if key_only { in_key() } else { shape };
            let encoding = mapping::encoding(column, modes);
            let Some(shape) = shape else {
                let none = Vec::new;
                return Column {
                    encoding,
                    shape: None,
                    key_only,
                    nullable,
                    null: none(),
                    null_beside: true,
                    unavailable: none(),
                    unsent: none(),
                };
            };
            let unsent = mapping::unsent(column, &encoding, modes);
            let replaced = mapping::default(column, &encoding).filter(|_| modes.null_as_default);
            // The catalog may know of a NOT NULL that is younger than the row.
            let replaced = replaced.or_else(|| (!matches!(shape, Shape::Nullable { .. })).then(|| unsent.clone()));
            Column {
                null: datum_of(replaced.as_ref().unwrap_or(&Value::Null), &shape),
                null_beside: replaced.is_some(),
                unavailable: datum_of(&mapping::unavailable(column, &encoding, modes), &shape),
                unsent: datum_of(&unsent, &shape),
                encoding,
                key_only,
                nullable,
                shape: Some(shape),
            }
        };
        let columns = relation.columns.iter().enumerate().zip(shapes.columns).map(|(c, s)| column(c, s)).collect();
        let mut source_head = Vec::new();
        for text in [VERSION, "postgresql", prefix] {
            push_bytes(&mut source_head, text.as_bytes());
        }
        let (mut source_db, mut source_table) = (Vec::new(), Vec::new());
        push_bytes(&mut source_db, db.as_bytes());
        push_bytes(&mut source_table, relation.name.schema.as_bytes());
        push_bytes(&mut source_table, relation.name.table.as_bytes());
        Ok(Encoder {
            columns,
            key: shapes.key,
            key_frame: frame(ids.key.unwrap_or_default()),
            value_frame: frame(ids.value),
            id: EncoderId::new(),
            source_head,
            db: source_db,
            source_table,
            json: JsonEncoder::new(relation.clone(), prefix, db),
            relation,
        })
    }

    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// Writes the row's key into `out.key`. A key column that was not sent, or is NULL and may not be, is RECORD_INVALID.
    pub fn key(&self, row: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        out.key.clear();
        if self.key.is_empty() {
            return Ok(());
        }
        self.check_width(row)?;
        out.key.extend_from_slice(&self.key_frame);
        for (index, shape) in &self.key {
            let Some(shape) = shape else {
                check_skipped_key(&self.relation, *index, row.get(*index))?;
                continue;
            };
            match row.get(*index) {
                Cell::Text(text) => self.value(*index, shape, text, &mut out.key)?,
                // Only of a key that its connector names: no row is found by it.
                Cell::Null if self.columns[*index].nullable => {
                    out.key.extend_from_slice(&self.columns[*index].null);
                    continue;
                }
                Cell::Null => return Err(no_key(&self.relation, *index, "NULL in a key column")),
                Cell::Absent => {
                    return Err(no_key(&self.relation, *index, "the source did not send this key column"));
                }
            };
        }
        Ok(())
    }

    /// The key as JSON, for the headers of a key change.
    pub fn key_json(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        self.json.key_json(row, out)
    }

    /// Begins a value.
    pub(super) fn begin(&self, out: &mut RecordBuf) {
        out.value.clear();
        out.text.clear();
        out.value.extend_from_slice(&self.value_frame);
    }

    pub(in crate::codec) fn envelope(
        &self,
        op: Op,
        event: &Event,
        before: Option<Row<'_>>,
        after: Option<Row<'_>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        self.begin(out);
        self.side(Side::Before, before, out)?;
        self.side(Side::After, after, out)?;
        self.source(op, event, out);
        Ok(())
    }

    fn side(&self, side: Side, row: Option<Row<'_>>, out: &mut RecordBuf) -> Result<()> {
        let Some(row) = row else {
            out.value.push(FIRST);
            return Ok(());
        };
        out.value.push(SECOND);
        self.row(side, row, out)
    }

    /// The columns of a row; of a record that is flat, all but what is added.
    pub(super) fn row(&self, side: Side, row: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.check_width(row)?;
        for (index, (cell, column)) in row.iter().zip(&self.columns).enumerate() {
            if column.key_only {
                continue;
            }
            let beside = match (cell, side) {
                (Cell::Text(text), _) => match &column.shape {
                    Some(shape) => self.value(index, shape, text, &mut out.value)? == Fidelity::NeedsText,
                    None => true,
                },
                (Cell::Null, _) => {
                    out.value.extend_from_slice(&column.null);
                    column.null_beside
                }
                (Cell::Absent, Side::After) => {
                    out.value.extend_from_slice(&column.unavailable);
                    false
                }
                (Cell::Absent, Side::Before) => {
                    out.value.extend_from_slice(&column.unsent);
                    false
                }
            };
            if beside {
                let number = u16::try_from(index).expect("Postgres has at most 1600 columns");
                push_text(&mut out.text, side, number, cell);
            }
        }
        Ok(())
    }

    /// One column by itself.
    pub(super) fn cell(&self, index: usize, cell: Cell<'_>, out: &mut Vec<u8>) -> Result<()> {
        let column = &self.columns[index];
        match (cell, &column.shape) {
            (Cell::Text(text), Some(shape)) => self.value(index, shape, text, out).map(drop),
            _ => {
                out.extend_from_slice(&column.null);
                Ok(())
            }
        }
    }

    /// Whether nothing but bytes is written of a column.
    pub(super) fn is_bytes(&self, index: usize) -> bool {
        self.columns[index].shape == Some(Shape::Bytes)
    }

    /// One value, or what stands for it where the modes have no form for it.
    fn value(&self, index: usize, shape: &Shape, text: &[u8], out: &mut Vec<u8>) -> Result<Fidelity> {
        let column = &self.columns[index];
        let start = out.len();
        let mut writer = AvroWriter::new(shape, out);
        match write(&column.encoding, text, &mut writer) {
            Ok(_) if writer.misfit => {
                let found = "a value has no place in the Avro schema that its table was registered with";
                Err(invalid(&self.relation, Some(index), found, "lockstep explain RECORD_INVALID".to_owned()))
            }
            Ok(Fidelity::Exact) if !writer.rounded => Ok(Fidelity::Exact),
            Ok(_) => Ok(Fidelity::NeedsText),
            Err(why) if may_be_unsaid(why, &self.relation.modes) => {
                out.truncate(start);
                out.extend_from_slice(&column.unsent);
                Ok(Fidelity::NeedsText)
            }
            Err(why) => Err(unfit(&self.relation, index, why)),
        }
    }

    /// Everything behind the rows.
    fn source(&self, op: Op, event: &Event, out: &mut RecordBuf) {
        if out.shell.renew(self.id, event) {
            self.render(event, &mut out.shell);
        }
        let (value, shell) = (&mut out.value, &out.shell);
        value.extend_from_slice(&shell.head);
        push_printed(value, |value| {
            push_sequence_head(value, event);
            value.extend_from_slice(itoa::Buffer::new().format(event.lsn.0).as_bytes());
            value.extend_from_slice(b"\"]");
        });
        value.extend_from_slice(&shell.middle);
        push_some(value, event.lsn.0.cast_signed());
        value.extend_from_slice(&shell.origin);
        push_block(value, event);
        push_bytes(value, &[u8::try_from(op.letter()).expect("an ASCII letter")]);
        value.extend_from_slice(&shell.tail);
    }

    fn render(&self, event: &Event, shell: &mut Shell) {
        let head = &mut shell.head;
        head.extend_from_slice(&self.source_head);
        push_long(head, event.commit_time_us.div_euclid(1_000));
        // `snapshot` has a default, so null comes last in its union.
        head.push(FIRST);
        push_bytes(head, event.snapshot.as_str().as_bytes());
        head.extend_from_slice(&self.db);
        head.push(SECOND);
        let middle = &mut shell.middle;
        push_some(middle, event.commit_time_us);
        push_some(middle, event.commit_time_us.saturating_mul(1_000));
        middle.extend_from_slice(&self.source_table);
        match event.xid {
            None => middle.push(FIRST),
            Some(xid) => push_some(middle, xid.cast_signed()),
        }
        // xmin, origin, origin_lsn
        match &event.origin {
            None => shell.origin.extend_from_slice(&[FIRST; 3]),
            Some(origin) => {
                shell.origin.extend_from_slice(&[FIRST, SECOND]);
                push_bytes(&mut shell.origin, origin.name.as_bytes());
                push_some(&mut shell.origin, origin.lsn.0.cast_signed());
            }
        }
        let tail = &mut shell.tail;
        push_some(tail, event.now_ns.div_euclid(1_000_000));
        push_some(tail, event.now_ns.div_euclid(1_000));
        push_some(tail, event.now_ns);
    }

    fn check_width(&self, row: Row<'_>) -> Result<()> {
        if row.len() == self.columns.len() { Ok(()) } else { Err(wrong_width(&self.relation, row.len())) }
    }
}

/// The transaction block, or null.
fn push_block(out: &mut Vec<u8>, event: &Event) {
    let (Some(block), Some(xid)) = (event.block, event.xid) else { return out.push(FIRST) };
    out.push(SECOND);
    push_printed(out, |out| {
        out.extend_from_slice(itoa::Buffer::new().format(xid).as_bytes());
        out.push(b':');
        out.extend_from_slice(itoa::Buffer::new().format(event.lsn.0).as_bytes());
    });
    push_long(out, block.total_order.cast_signed());
    push_long(out, block.collection_order.cast_signed());
}

/// A nullable long that is not null.
fn push_some(out: &mut Vec<u8>, value: i64) {
    out.push(SECOND);
    push_long(out, value);
}

/// `["123","456"]`, the first null before there was a commit.
fn push_sequence_head(out: &mut Vec<u8>, event: &Event) {
    match event.last_commit_lsn {
        None => out.extend_from_slice(b"[null,\""),
        Some(lsn) => {
            out.extend_from_slice(b"[\"");
            out.extend_from_slice(itoa::Buffer::new().format(lsn.0).as_bytes());
            out.extend_from_slice(b"\",\"");
        }
    }
}

/// A string that is printed in its place: most are shorter than 64 bytes, whose length takes one.
pub(super) fn push_printed(out: &mut Vec<u8>, print: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.push(0);
    print(out);
    let len = out.len() - start - 1;
    if let Ok(short @ 0..64) = u8::try_from(len) {
        out[start] = short * 2;
        return;
    }
    insert_long(out, start, super::length(len));
    let behind = out.len() - len;
    out.copy_within(behind.., behind - 1);
    out.truncate(out.len() - 1);
}

/// Writes a long in front of what stands at `start` already.
fn insert_long(out: &mut Vec<u8>, start: usize, value: i64) {
    let end = out.len();
    push_long(out, value);
    let added = out.len() - end;
    out[start..].rotate_right(added);
}

/// The bytes of what stands for a value. Where Debezium has nothing that the schema allows, zeros: a header says that they mean
/// nothing.
pub(super) fn datum_of(value: &Value, shape: &Shape) -> Vec<u8> {
    let mut datum = Vec::new();
    let mut writer = AvroWriter::new(shape, &mut datum);
    value.write(&mut writer);
    if writer.misfit {
        datum.clear();
        push_zero(&mut datum, shape);
    }
    datum
}

fn push_zero(out: &mut Vec<u8>, shape: &Shape) {
    match shape {
        Shape::Nullable { null, .. } => out.push(*null),
        Shape::Float => out.extend_from_slice(&[0; 4]),
        Shape::Double => out.extend_from_slice(&[0; 8]),
        Shape::Record(fields) => fields.iter().for_each(|field| push_zero(out, &field.shape)),
        Shape::Boolean | Shape::Integer | Shape::Bytes | Shape::String | Shape::Array(_) | Shape::Map(_) => out.push(0),
    }
}

/// Writes values of one schema. What does not fit it is noted, not written: the caller looks.
struct AvroWriter<'a> {
    out: &'a mut Vec<u8>,
    /// What comes next.
    next: &'a Shape,
    open: Vec<Open<'a>>,
    /// A value came where the schema has another one.
    misfit: bool,
    /// A float was written whose bits print as another text.
    rounded: bool,
}

/// A collection that is being written.
struct Open<'a> {
    of: &'a Shape,
    /// Where its first element begins.
    start: usize,
    count: usize,
}

/// Keys of maps.
static KEY: Shape = Shape::String;

impl<'a> AvroWriter<'a> {
    fn new(shape: &'a Shape, out: &'a mut Vec<u8>) -> AvroWriter<'a> {
        AvroWriter { out, next: shape, open: Vec::new(), misfit: false, rounded: false }
    }

    /// The type to write, behind its union's branch.
    fn enter(&mut self) -> &'a Shape {
        match self.next {
            Shape::Nullable { some, of, .. } => {
                self.out.push(*some);
                of
            }
            shape => shape,
        }
    }

    fn begin(&mut self, of: &'a Shape) {
        self.open.push(Open { of, start: self.out.len(), count: 0 });
    }

    /// One block with all elements, and an empty one.
    fn end_blocks(&mut self) {
        let open = self.open.pop().expect("what ends was begun");
        if open.count > 0 {
            insert_long(self.out, open.start, super::length(open.count));
        }
        self.out.push(0);
    }

    fn push_number(&mut self, shape: &Shape, value: i64) {
        match shape {
            Shape::Integer => push_long(self.out, value),
            // Not lossy where it is used: the text of such columns always rides beside.
            #[allow(clippy::cast_precision_loss)]
            Shape::Double => self.out.extend_from_slice(&(value as f64).to_le_bytes()),
            _ => self.misfit = true,
        }
    }
}

impl Writer for AvroWriter<'_> {
    fn null(&mut self) {
        match self.next {
            Shape::Nullable { null, .. } => self.out.push(*null),
            _ => self.misfit = true,
        }
    }

    fn boolean(&mut self, value: bool) {
        match self.enter() {
            Shape::Boolean => self.out.push(u8::from(value)),
            _ => self.misfit = true,
        }
    }

    fn integer(&mut self, value: i64) {
        let shape = self.enter();
        self.push_number(shape, value);
    }

    fn digits(&mut self, text: &[u8]) {
        let shape = self.enter();
        match std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()) {
            Some(value) => self.push_number(shape, value),
            None => self.misfit = true,
        }
    }

    fn float(&mut self, text: &[u8]) {
        let shape = self.enter();
        let text_str = std::str::from_utf8(text).unwrap_or_default();
        let value = match shape {
            Shape::Float => text_str.parse().ok().map(Float::Single),
            Shape::Double => text_str.parse().ok().map(Float::Double),
            _ => None,
        };
        let Some(value) = value else {
            self.misfit = true;
            return;
        };
        if !is_shortest(text, value) {
            let start = self.out.len();
            push_float(self.out, value);
            self.rounded |= self.out[start..] != *text;
            self.out.truncate(start);
        }
        match value {
            Float::Single(value) => self.out.extend_from_slice(&value.to_le_bytes()),
            Float::Double(value) => self.out.extend_from_slice(&value.to_le_bytes()),
        }
    }

    fn string(&mut self, text: &str) {
        match self.enter() {
            Shape::String => push_bytes(self.out, text.as_bytes()),
            _ => self.misfit = true,
        }
    }

    fn plain(&mut self, print: impl FnOnce(&mut Vec<u8>)) {
        match self.enter() {
            Shape::String => push_printed(self.out, print),
            _ => self.misfit = true,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        match self.enter() {
            Shape::Bytes => push_bytes(self.out, bytes),
            _ => self.misfit = true,
        }
    }

    fn bytea(&mut self, text: &[u8]) -> Option<()> {
        match self.enter() {
            Shape::Bytes => {}
            _ => self.misfit = true,
        }
        let digits = text.strip_prefix(b"\\x")?;
        push_long(self.out, super::length(digits.len() / 2));
        let start = self.out.len();
        self.out.resize(start + digits.len() / 2, 0);
        hex::decode_to_slice(digits, &mut self.out[start..]).ok()
    }

    fn begin_array(&mut self) {
        match self.enter() {
            Shape::Array(of) => self.begin(of),
            other => {
                self.misfit = true;
                self.begin(other);
            }
        }
    }

    fn element(&mut self) {
        let open = self.open.last_mut().expect("an array is open");
        open.count += 1;
        self.next = open.of;
    }

    fn end_array(&mut self) {
        self.end_blocks();
    }

    /// Other keys than strings make a list of records, each a key and a value.
    fn begin_map(&mut self, text_keys: bool) {
        match (self.enter(), text_keys) {
            (Shape::Map(of), true) | (Shape::Array(of), false) => self.begin(of),
            (other, _) => {
                self.misfit = true;
                self.begin(other);
            }
        }
    }

    fn map_key(&mut self) {
        let open = self.open.last_mut().expect("a map is open");
        open.count += 1;
        self.next = open.of.fields().first().map_or(&KEY, |field| &field.shape);
    }

    fn map_value(&mut self) {
        let of = self.open.last().expect("a map is open").of;
        self.next = of.fields().get(1).map_or(of, |field| &field.shape);
    }

    fn end_map(&mut self) {
        self.end_blocks();
    }

    fn begin_struct(&mut self) {
        let of = self.enter();
        self.misfit |= of.fields().is_empty();
        self.begin(of);
    }

    fn field(&mut self, name: &'static str) {
        let open = self.open.last_mut().expect("a struct is open");
        match open.of.fields().get(open.count) {
            Some(field) if field.name == name => self.next = &field.shape,
            _ => self.misfit = true,
        }
        open.count += 1;
    }

    fn end_struct(&mut self) {
        self.open.pop();
    }

    /// Elements of an Avro array are all of one type.
    fn nests(&self) -> bool {
        false
    }

    fn scratch(&mut self) -> &mut Vec<u8> {
        self.out
    }
}

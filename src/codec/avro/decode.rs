//! A framed datum back to exact Postgres text.
//!
//! Only records that the ledger counts come here, written under the relation version whose entry holds the schema: so bytes that
//! do not follow it are RECORD_INVALID. Errors name table and column, never a value. Nothing is allocated by a length before that
//! many bytes are there.

use std::sync::Arc;

use super::shape::Shape;
use super::{FRAME_BYTES, Float, MAGIC, push_float};
use crate::codec::json_decode::{read_raw, read_string};
use crate::codec::mapping::{self, Encoding};
use crate::codec::{Op, invalid, null_key};
use crate::error::{Error, Result};
use crate::record::{Side, is_absent, read_texts};
use crate::relation::{BinaryMode, Relation};
use crate::value::{Cell, RowBuf};

/// Reads the records of one relation version.
pub struct Decoder {
    relation: Arc<Relation>,
    encodings: Vec<Encoding>,
    /// Indexes of the key columns in key order, and the shape of each in the key; `None` where it has no field.
    key: Vec<(usize, Option<Shape>)>,
    /// Of each column's field; `None` where it has none.
    columns: Vec<Option<Shape>>,
    /// Of the envelope's fields, in order.
    envelope: Vec<(Part, Shape)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Before,
    After,
    Op,
    Source,
    Other,
}

/// Exact texts that ride beside a record.
type Texts<'a> = Vec<(Side, u16, Cell<'a>)>;

impl Decoder {
    /// The relation is of format Avro; without a schema that this build can read it is RECORD_INVALID.
    pub fn new(relation: Arc<Relation>) -> Result<Decoder> {
        let shapes = super::shapes(&relation)?;
        let part = |name: &str| match name {
            "before" => Part::Before,
            "after" => Part::After,
            "op" => Part::Op,
            "source" => Part::Source,
            _ => Part::Other,
        };
        let envelope: Vec<(Part, Shape)> =
            shapes.envelope.fields().iter().map(|field| (part(&field.name), field.shape.clone())).collect();
        let one = |wanted| envelope.iter().filter(|(part, _)| *part == wanted).count() == 1;
        if !(one(Part::Before) && one(Part::After) && one(Part::Op)) {
            return Err(super::foreign_schema(&relation));
        }
        Ok(Decoder {
            encodings: mapping::encodings(&relation),
            key: shapes.key,
            columns: shapes.columns,
            envelope,
            relation,
        })
    }

    pub fn relation(&self) -> &Relation {
        &self.relation
    }

    /// As [`crate::codec::Decoder::row`].
    pub fn row(
        &self,
        value: &[u8],
        side: Side,
        absent: Option<&[u8]>,
        text: Option<&[u8]>,
        out: &mut RowBuf,
    ) -> Result<Op> {
        out.clear();
        let texts = self.texts(text)?;
        let mut input = self.unframed(value)?;
        let (mut before, mut has_after, mut op) = (None, false, None);
        for (part, shape) in &self.envelope {
            match part {
                // What `ls-absent` means for `before` is known only once `after` was seen.
                Part::Before => {
                    before = Some(input);
                    self.read(skip(shape, &mut input), None)?;
                }
                Part::After => {
                    has_after = self.read(is_there(shape, &mut input), None)?;
                    if has_after && side == Side::After {
                        self.columns(&mut input, side, absent, &texts, out)?;
                    } else if has_after {
                        self.read(skip(shape.inner(), &mut input), None)?;
                    }
                }
                Part::Op => {
                    let letter = self.read(bytes(&mut input), None)?;
                    op = std::str::from_utf8(letter).ok().and_then(Op::from_text);
                }
                Part::Source | Part::Other => self.read(skip(shape, &mut input), None)?,
            }
        }
        self.ended(input)?;
        if side == Side::Before {
            let shape = self.envelope.iter().find(|(part, _)| *part == Part::Before).map(|(_, shape)| shape);
            let mut input = before.expect("an envelope has a before");
            if self.read(is_there(shape.expect("an envelope has a before"), &mut input), None)? {
                self.columns(&mut input, side, absent.filter(|_| !has_after), &texts, out)?;
            }
        }
        op.ok_or_else(|| self.invalid(None, "the envelope has no operation that is known"))
    }

    /// As [`crate::codec::Decoder::commit_time_us`].
    pub fn commit_time_us(&self, value: &[u8]) -> Result<i64> {
        let mut input = self.unframed(value)?;
        for (part, shape) in &self.envelope {
            if *part != Part::Source {
                self.read(skip(shape, &mut input), None)?;
                continue;
            }
            for field in shape.fields() {
                if field.name == "ts_us" && self.read(is_there(&field.shape, &mut input), None)? {
                    return self.read(long(&mut input), None);
                }
                self.read(skip(&field.shape, &mut input), None)?;
            }
        }
        Err(self.invalid(None, "the record has no commit time"))
    }

    /// As [`crate::codec::Decoder::key`].
    pub fn key(&self, key: &[u8], text: Option<&[u8]>, out: &mut RowBuf) -> Result<()> {
        out.clear();
        let texts = self.texts(text)?;
        let mut found = RowBuf::with_capacity(self.key.len(), key.len());
        if !(key.is_empty() && self.key.is_empty()) {
            let mut input = self.unframed(key)?;
            for (column, shape) in &self.key {
                let cell = header_cell(*column, Side::Before, None, &texts);
                self.column(*column, shape.as_ref(), &mut input, cell, &mut found)?;
            }
            self.ended(input)?;
        }
        for column in 0..self.relation.columns.len() {
            match self.key.iter().position(|(index, _)| *index == column) {
                Some(place) if found.row().get(place) == Cell::Null => return Err(null_key(&self.relation, column)),
                Some(place) => out.push(found.row().get(place)),
                None => out.push(Cell::Absent),
            }
        }
        Ok(())
    }

    fn columns(
        &self,
        input: &mut &[u8],
        side: Side,
        absent: Option<&[u8]>,
        texts: &Texts<'_>,
        out: &mut RowBuf,
    ) -> Result<()> {
        for (column, shape) in self.columns.iter().enumerate() {
            if self.relation.is_key_only(column) {
                out.push(Cell::Absent);
                continue;
            }
            let cell = header_cell(column, side, absent, texts);
            self.column(column, shape.as_ref(), input, cell, out)?;
        }
        Ok(())
    }

    /// One column: what a header gives, or else what the datum holds if the column has a field there.
    fn column(
        &self,
        column: usize,
        shape: Option<&Shape>,
        input: &mut &[u8],
        cell: Option<Cell<'_>>,
        out: &mut RowBuf,
    ) -> Result<()> {
        let Some(shape) = shape else {
            out.push(cell.ok_or_else(|| self.invalid(Some(column), UNFIT))?);
            return Ok(());
        };
        if let Some(cell) = cell {
            self.read(skip(shape, input), Some(column))?;
            out.push(cell);
            return Ok(());
        }
        if !self.read(is_there(shape, input), Some(column))? {
            out.push(Cell::Null);
            return Ok(());
        }
        let encoding = &self.encodings[column];
        let printed = out.push_with(|out| print(encoding, shape.inner(), input, out));
        printed.ok_or_else(|| self.invalid(Some(column), UNFIT))
    }

    fn texts<'a>(&self, text: Option<&'a [u8]>) -> Result<Texts<'a>> {
        text.map_or(Ok(Vec::new()), |text| read_texts(text).map_err(|e| self.invalid(None, &e.to_string())))
    }

    fn unframed<'a>(&self, framed: &'a [u8]) -> Result<&'a [u8]> {
        match framed.split_at_checked(FRAME_BYTES) {
            Some(([MAGIC, ..], datum)) => Ok(datum),
            _ => Err(self.invalid(None, "the record is not Avro in Confluent's framing")),
        }
    }

    fn ended(&self, rest: &[u8]) -> Result<()> {
        if rest.is_empty() { Ok(()) } else { Err(self.invalid(None, "bytes behind the end of the datum")) }
    }

    fn read<T>(&self, read: Option<T>, column: Option<usize>) -> Result<T> {
        read.ok_or_else(|| self.invalid(column, UNFIT))
    }

    fn invalid(&self, column: Option<usize>, found: &str) -> Error {
        invalid(&self.relation, column, found, format!("lockstep resync {}", self.relation.name))
    }
}

const UNFIT: &str = "the bytes are not a value of the relation's Avro schema";

/// The cell that a header gives, whatever the datum holds.
fn header_cell<'a>(column: usize, side: Side, absent: Option<&[u8]>, texts: &Texts<'a>) -> Option<Cell<'a>> {
    if absent.is_some_and(|bitmap| is_absent(bitmap, column)) {
        return Some(Cell::Absent);
    }
    texts.iter().find(|(s, c, _)| *s == side && usize::from(*c) == column).map(|(_, _, cell)| *cell)
}

/// Appends the Postgres text of a value. What never stands for itself, like an array, was to be in `ls-text`.
fn print(encoding: &Encoding, shape: &Shape, input: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    match shape {
        Shape::Boolean => read_raw(encoding, if boolean(input)? { "true" } else { "false" }, out),
        Shape::Integer => read_raw(encoding, itoa::Buffer::new().format(long(input)?), out),
        Shape::String => read_string(encoding, std::str::from_utf8(bytes(input)?).ok()?, out),
        Shape::Float if *encoding == Encoding::Float32 => {
            let value = f32::from_le_bytes(*take(input)?);
            push_float(out, Float::Single(value));
            Some(())
        }
        Shape::Double if *encoding == Encoding::Float64 => {
            let value = f64::from_le_bytes(*take(input)?);
            push_float(out, Float::Double(value));
            Some(())
        }
        Shape::Bytes if *encoding == Encoding::Bytes(BinaryMode::Bytes) => {
            let bytes = bytes(input)?;
            out.extend_from_slice(b"\\x");
            let start = out.len();
            out.resize(start + bytes.len() * 2, 0);
            hex::encode_to_slice(bytes, &mut out[start..]).ok()
        }
        _ => None,
    }
}

fn take<'a, const N: usize>(input: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(head)
}

pub(super) fn long(input: &mut &[u8]) -> Option<i64> {
    let mut bits = 0u64;
    for shift in (0..70).step_by(7) {
        let [byte] = *take::<1>(input)?;
        let seven = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if shift == 63 && seven > 1 {
            return None;
        }
        bits |= seven << shift;
        if byte & 0x80 == 0 {
            return Some((bits >> 1).cast_signed() ^ -(bits & 1).cast_signed());
        }
    }
    None
}

fn boolean(input: &mut &[u8]) -> Option<bool> {
    match take::<1>(input)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(long(input)?).ok()?;
    let (bytes, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(bytes)
}

/// Reads a union's branch: whether there is a value.
fn is_there(shape: &Shape, input: &mut &[u8]) -> Option<bool> {
    let Shape::Nullable { null, some, .. } = shape else { return Some(true) };
    match take::<1>(input)? {
        [branch] if branch == null => Some(false),
        [branch] if branch == some => Some(true),
        _ => None,
    }
}

pub(super) fn skip(shape: &Shape, input: &mut &[u8]) -> Option<()> {
    if !is_there(shape, input)? {
        return Some(());
    }
    match shape.inner() {
        Shape::Boolean => boolean(input).map(|_| ()),
        Shape::Integer => long(input).map(|_| ()),
        Shape::Float => take::<4>(input).map(|_| ()),
        Shape::Double => take::<8>(input).map(|_| ()),
        Shape::Bytes | Shape::String => bytes(input).map(|_| ()),
        Shape::Array(items) => blocks(input, |input| skip(items, input)),
        Shape::Map(values) => blocks(input, |input| {
            bytes(input)?;
            skip(values, input)
        }),
        Shape::Record(fields) => fields.iter().try_for_each(|field| skip(&field.shape, input)),
        Shape::Nullable { .. } => None,
    }
}

/// Blocks of elements up to the empty one. A count below zero has the block's bytes behind it; ours has none such.
fn blocks(input: &mut &[u8], mut element: impl FnMut(&mut &[u8]) -> Option<()>) -> Option<()> {
    loop {
        let count = usize::try_from(long(input)?).ok()?;
        if count == 0 {
            return Some(());
        }
        for _ in 0..count {
            let before = input.len();
            element(input)?;
            // Elements of no bytes could be counted without end.
            if input.len() == before {
                return None;
            }
        }
    }
}

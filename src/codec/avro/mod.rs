//! One change as a record of Debezium's shape in Avro, and back: Confluent's framing (a zero byte, the schema's id in four, the
//! datum).
//!
//! The schemas are Connect's ([`super::schema`]) as Confluent's AvroConverter registers them ([`mod@schema`]); they stand in the
//! relation's entry in the ledger, so what was written is read by the schema that it was written with, whatever this build would
//! make of the table now. Both directions go by [`shape::Shape`], which is that schema taken apart once for each relation
//! version: the [`Encoder`] writes the values that [`super::write`] says straight into the datum, the [`Decoder`] walks it and
//! prints Postgres text. Ids are the registry's and mean nothing to our sinks.
//!
//! What is exact and what rides in `ls-text` is the same as in JSON, with one more reason: a float whose text is not the one that
//! its bits print as.
//!
//! Names that Avro does not take are adjusted as Debezium's `avro` mode does: characters outside of letters, digits and `_` become
//! `_`. Two columns that become one are [`Code::SchemaRefused`](crate::error::Code).
//!
//! Deliberately not here: the registry itself, reading records of other writers, schema resolution.

mod decode;
mod encode;
pub(in crate::codec) mod event;
mod events;
mod flat;
pub mod schema;
mod shape;
#[cfg(test)]
pub(super) mod tests;

pub use decode::Decoder;
pub use encode::Encoder;
pub use event::set_id;
pub use events::{EventEncoder, EventKind};
pub use schema::{complete, schemas};

use crate::codec::mapping::{self, Encoding};
use crate::error::{Error, Result};
use crate::relation::Relation;
use shape::Shape;

use super::invalid;

/// What a framed record begins with.
const MAGIC: u8 = 0;
/// The zero and the id.
const FRAME_BYTES: usize = 5;

/// The registry's ids of a relation version's schemas.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SchemaIds {
    /// `None`: the null key of a table without one.
    pub key: Option<u32>,
    pub value: u32,
}

/// A relation's schemas taken apart.
struct Shapes {
    /// Indexes of the key columns in key order, and the shape of each in the key; `None` where it has no field.
    key: Vec<(usize, Option<Shape>)>,
    /// Of each column in a row; `None` where it has no field there.
    columns: Vec<Option<Shape>>,
    /// Of a value, which is the row alone where records are flat.
    envelope: Shape,
}

/// A relation whose schemas are not those of its columns is RECORD_INVALID.
fn shapes(relation: &Relation) -> Result<Shapes> {
    read_shapes(relation).ok_or_else(|| foreign_schema(relation))
}

fn read_shapes(relation: &Relation) -> Option<Shapes> {
    let schemas = relation.avro.as_ref()?;
    let envelope = Shape::parse(&schemas.value)?;
    let flat = relation.modes.flat.as_ref();
    let row = match flat {
        Some(_) => &envelope,
        None => envelope.fields().iter().find(|field| field.name == "after")?.shape.inner(),
    };
    let mut fields = row.fields().iter();
    let mut columns = Vec::with_capacity(relation.columns.len());
    let skipped = |i: usize| mapping::encoding(&relation.columns[i], &relation.modes) == Encoding::Skipped;
    for i in 0..relation.columns.len() {
        let in_row = !skipped(i) && !relation.is_key_only(i);
        columns.push(if in_row { Some(fields.next()?.shape.clone()) } else { None });
    }
    let key_schema = match &schemas.key {
        Some(schema) => Shape::parse(schema)?,
        None => Shape::Record([].into()),
    };
    let mut key_fields = key_schema.fields().iter();
    let mut key = Vec::new();
    for index in relation.key_columns() {
        let shape = if skipped(index) { None } else { Some(key_fields.next()?.shape.clone()) };
        key.push((index, shape));
    }
    let added = flat.map_or(0, |flat| flat.added().count());
    let whole = fields.count() == added && key_fields.next().is_none();
    whole.then_some(Shapes { key, columns, envelope })
}

fn foreign_schema(relation: &Relation) -> Error {
    let found = "its relation version has no Avro schema that this build can read";
    invalid(relation, None, found, "lockstep ledger; then run the version that wrote the relation".to_owned())
}

fn frame(id: u32) -> [u8; FRAME_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [MAGIC, a, b, c, d]
}

/// Appends a long: zig-zag, seven bits a byte, the least significant first.
fn push_long(out: &mut Vec<u8>, value: i64) {
    push_varint(out, value.wrapping_shl(1).cast_unsigned() ^ (value >> 63).cast_unsigned());
}

fn push_varint(out: &mut Vec<u8>, mut bits: u64) {
    // Seven bits each of 64.
    let (mut bytes, mut len) = ([0u8; 10], 0);
    while bits > 0x7f {
        bytes[len] = low_byte(bits) | 0x80;
        bits >>= 7;
        len += 1;
    }
    bytes[len] = low_byte(bits);
    out.extend_from_slice(&bytes[..=len]);
}

fn low_byte(bits: u64) -> u8 {
    bits.to_le_bytes()[0]
}

/// Appends bytes with their length.
fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_long(out, length(bytes.len()));
    out.extend_from_slice(bytes);
}

fn length(len: usize) -> i64 {
    i64::try_from(len).expect("memory is smaller than 2^63")
}

/// Appends a float as Postgres prints it with `extra_float_digits` above 0: the shortest digits that read back as the same
/// value, with an exponent below -4 and from 15 (float8) or 6 (float4) on (float8out, float4out).
fn push_float(out: &mut Vec<u8>, value: Float) {
    use std::io::Write;
    let (text, negative, exponent_from) = match value {
        Float::Single(value) => (named(f64::from(value)), value.is_sign_negative(), 6),
        Float::Double(value) => (named(value), value.is_sign_negative(), 15),
    };
    if let Some(text) = text {
        return out.extend_from_slice(text.as_bytes());
    }
    if negative {
        out.push(b'-');
    }
    // `d.ddde±x` of the absolute value, with the shortest digits, at the end of the buffer.
    let start = out.len();
    let printed = match value {
        Float::Single(value) => write!(out, "{:e}", value.abs()),
        Float::Double(value) => write!(out, "{:e}", value.abs()),
    };
    printed.expect("a vector takes everything");
    let mut digits = [0u8; 24];
    let (mut count, mut exponent, mut sign, mut behind) = (0, 0i32, 1, false);
    for &byte in &out[start..] {
        match byte {
            b'e' => behind = true,
            b'-' => sign = -1,
            b'.' => {}
            digit if behind => exponent = exponent * 10 + i32::from(digit - b'0'),
            digit => {
                digits[count] = digit;
                count += 1;
            }
        }
    }
    let (digits, exponent) = (&digits[..count], exponent * sign);
    out.truncate(start);
    push_digits(out, digits, exponent, exponent_from);
}

/// Whether a text is what [`push_float`] prints, told by its shape, where that can be told: so few digits that every float of
/// its type tells them apart, none of them in vain, and no exponent.
fn is_shortest(text: &[u8], value: Float) -> bool {
    let digits_max = match value {
        Float::Single(_) => 6,
        Float::Double(_) => 15,
    };
    let plain = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, fraction) = match plain.iter().position(|b| *b == b'.') {
        Some(point) => (&plain[..point], Some(&plain[point + 1..])),
        None => (plain, None),
    };
    let led = match whole {
        // What begins with zeros behind the point is for the printer.
        [b'0'] => matches!(fraction, Some([b'1'..=b'9', ..])),
        whole => matches!(whole.first(), Some(b'1'..=b'9')),
    };
    let ended = fraction.is_none_or(|digits| matches!(digits.last(), Some(b'1'..=b'9')));
    let digits = whole.len() + fraction.map_or(0, <[u8]>::len);
    led && ended && digits <= digits_max && whole.iter().chain(fraction.unwrap_or_default()).all(u8::is_ascii_digit)
}

#[derive(Clone, Copy)]
enum Float {
    Single(f32),
    Double(f64),
}

fn named(value: f64) -> Option<&'static str> {
    match value {
        value if value.is_nan() => Some("NaN"),
        f64::INFINITY => Some("Infinity"),
        f64::NEG_INFINITY => Some("-Infinity"),
        _ => None,
    }
}

/// Digits of which the first stands before the point, times ten to the exponent.
fn push_digits(out: &mut Vec<u8>, digits: &[u8], exponent: i32, exponent_from: i32) {
    if exponent < -4 || exponent >= exponent_from {
        out.push(digits[0]);
        if digits.len() > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits[1..]);
        }
        out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
        let exponent = exponent.unsigned_abs();
        if exponent < 10 {
            out.push(b'0');
        }
        return out.extend_from_slice(itoa::Buffer::new().format(exponent).as_bytes());
    }
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', usize::try_from(-exponent - 1).expect("at most four")));
        return out.extend_from_slice(digits);
    }
    let whole = usize::try_from(exponent).expect("not negative") + 1;
    if digits.len() <= whole {
        out.extend_from_slice(digits);
        return out.extend(std::iter::repeat_n(b'0', whole - digits.len()));
    }
    out.extend_from_slice(&digits[..whole]);
    out.push(b'.');
    out.extend_from_slice(&digits[whole..]);
}

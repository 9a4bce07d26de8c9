//! Events of an outbox: single columns, alone or beside each other, as Confluent's AvroConverter writes them.
//!
//! Which schema a record has is known with its row: the route is in its name, an expanded payload is its own. So these records
//! have room for an id in front ([`begin`]), and whoever knows their topic asks the registry and puts it there ([`set_id`]).

use super::encode::Encoder;
use super::{FRAME_BYTES, frame, push_bytes, push_long};
use crate::codec::schema::{Schema, Type};
use crate::error::Result;
use crate::value::Row;

/// First and second branch of a union, zig-zag; null is the first where there is no default.
pub(in crate::codec) const NULL: u8 = 0;
pub(in crate::codec) const SOME: u8 = 2;

/// Begins a key or a value whose id is not known yet.
pub(in crate::codec) fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(&frame(0));
}

/// Puts the id in front of a record that was begun without one.
pub fn set_id(record: &mut [u8], id: u32) {
    record[..FRAME_BYTES].copy_from_slice(&frame(id));
}

impl Encoder {
    /// A column's value as a field of a record.
    pub(in crate::codec) fn field(&self, column: usize, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        self.cell(column, row.get(column), out)
    }

    /// A column's value that is all of a key or a value and not NULL. Confluent's serializer writes bytes without their length,
    /// as its deserializer reads them, where a union does not say that they are some.
    pub(in crate::codec) fn alone(&self, column: usize, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        self.cell(column, row.get(column), out)?;
        if self.is_bytes(column) {
            let length = out[start..].iter().take_while(|byte| **byte >= 0x80).count() + 1;
            out.drain(start..start + length);
        }
        Ok(())
    }
}

/// Scalars of a document, by the type that its schema has for them.
pub(in crate::codec) fn push_scalar(out: &mut Vec<u8>, of: &Type, scalar: Scalar<'_>) {
    match (scalar, of) {
        (Scalar::Boolean(value), _) => out.push(u8::from(value)),
        (Scalar::Number(digits), Type::Float64) => {
            out.extend_from_slice(&digits.parse::<f64>().unwrap_or_default().to_le_bytes());
        }
        (Scalar::Number(digits), _) => push_long(out, digits.parse().expect("its schema was made of the digits")),
        (Scalar::Text(text), _) => push_bytes(out, text.as_bytes()),
    }
}

/// A value of a document that holds no others.
#[derive(Clone, Copy)]
pub(in crate::codec) enum Scalar<'a> {
    Boolean(bool),
    Number(&'a str),
    Text(&'a str),
}

/// A list in one block, and the empty one behind it.
pub(in crate::codec) fn push_list<T>(out: &mut Vec<u8>, items: &[T], mut push: impl FnMut(&T, &mut Vec<u8>)) {
    if !items.is_empty() {
        push_long(out, super::length(items.len()));
        items.iter().for_each(|item| push(item, out));
    }
    out.push(0);
}

/// The schema as the registry gets it.
pub(in crate::codec) fn text(schema: &Schema) -> String {
    super::schema::json(schema)
}

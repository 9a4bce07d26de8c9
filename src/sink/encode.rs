//! Rows as bytes that Postgres takes: one text[] parameter per column, or COPY text.

use std::error::Error as StdError;

use bytes::{BufMut, Bytes, BytesMut};
use tokio_postgres::types::{Format, IsNull, ToSql, Type, to_sql_checked};

use crate::value::Cell;

/// text's OID, the element type of the arrays.
const TEXT_OID: i32 = 25;

/// A text[] in binary, ready to be a parameter.
#[derive(Debug)]
pub struct TextArray(Vec<u8>);

impl TextArray {
    pub fn new<'a>(cells: impl ExactSizeIterator<Item = Cell<'a>>) -> TextArray {
        let length = |n: usize| i32::try_from(n).expect("a batch by parameters is far below 2 GiB").to_be_bytes();
        let mut out = Vec::with_capacity(20 + cells.len() * 12);
        // dimensions, nulls possible, element type, length, lower bound
        for word in [1_i32.to_be_bytes(), 1_i32.to_be_bytes(), TEXT_OID.to_be_bytes(), length(cells.len())] {
            out.extend_from_slice(&word);
        }
        out.extend_from_slice(&1_i32.to_be_bytes());
        for cell in cells {
            match cell {
                Cell::Text(text) => {
                    out.extend_from_slice(&length(text.len()));
                    out.extend_from_slice(text);
                }
                Cell::Null => out.extend_from_slice(&(-1_i32).to_be_bytes()),
                Cell::Absent => unreachable!("rows are grouped by what they carry"),
            }
        }
        TextArray(out)
    }
}

impl ToSql for TextArray {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Binary
    }

    to_sql_checked!();
}

/// COPY data goes out in pieces of at least this size: smaller ones cost a system call per row on both sides.
const PIECE_BYTES: usize = 64 * 1024;

/// Writes rows in COPY's text format.
#[derive(Debug, Default)]
pub struct CopyText {
    buffer: BytesMut,
}

impl CopyText {
    pub fn row<'a>(&mut self, cells: impl Iterator<Item = Cell<'a>>) {
        for (i, cell) in cells.enumerate() {
            if i > 0 {
                self.buffer.put_u8(b'\t');
            }
            match cell {
                Cell::Text(text) => escape(&mut self.buffer, text),
                Cell::Null => self.buffer.put_slice(b"\\N"),
                Cell::Absent => unreachable!("rows are grouped by what they carry"),
            }
        }
        self.buffer.put_u8(b'\n');
    }

    /// What has been written, once it is worth sending.
    pub fn piece(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= PIECE_BYTES).then(|| self.rest())
    }

    pub fn rest(&mut self) -> Bytes {
        let bytes = self.buffer.split().freeze();
        self.buffer.reserve(PIECE_BYTES);
        bytes
    }
}

fn escape(out: &mut BytesMut, mut text: &[u8]) {
    let special = |b: &u8| matches!(b, b'\\' | b'\t' | b'\n' | b'\r');
    while let Some(at) = text.iter().position(special) {
        out.put_slice(&text[..at]);
        out.put_slice(match text[at] {
            b'\\' => b"\\\\",
            b'\t' => b"\\t",
            b'\n' => b"\\n",
            _ => b"\\r",
        });
        text = &text[at + 1..];
    }
    out.put_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_text_escapes_what_would_end_a_field_or_a_row() {
        let mut copy = CopyText::default();
        copy.row(
            [Cell::Text(b"a\tb\n"), Cell::Null, Cell::Text(b"\\N"), Cell::Text(b"\\."), Cell::Text(b"")].into_iter(),
        );
        assert_eq!(copy.piece(), None);
        assert_eq!(&copy.rest()[..], b"a\\tb\\n\t\\N\t\\\\N\t\\\\.\t\n");
    }
}

//! A decoded change as a sink takes it, and the key that names the row it is about.
//!
//! Rows are over the columns of one relation version: cell `i` is column `i`. What was a delete, a tombstone and a create on
//! the topic is one [`Op::Rekey`] here, because only `UPDATE … SET key` lets a big column that was not sent survive.
//!
//! [`Key`] compares the key's *texts*, not the values behind them: `1.0` and `1.00` are two keys here and one to Postgres.
//! That is enough, because the source sends a row's key as the row holds it and calls every change of that text a key change
//! (it compares bytes); and what the difference could still hide, a clash inside one statement, the sink's own unique index
//! refuses.

use std::fmt;

use crate::value::{Cell, Row, RowBuf};

/// One row-level change of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// A row that was not there before; also a chunk's row.
    Insert(RowBuf),
    /// The row as it is now; absent cells are as they were.
    Update(RowBuf),
    /// Only the key cells count; the others are absent or the old row's.
    Delete(RowBuf),
    /// The row at `old`'s key is now `new`, at another key; absent cells are as they were.
    Rekey {
        old: RowBuf,
        new: RowBuf,
    },
    Truncate,
}

/// A row's key as one byte string: each cell's length (u32, big-endian) and text, in key order. Equal iff the texts are.
/// Of a table without a key it is the whole row, where NULL has the length 2^32-1 and no text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<[u8]>);

/// In the place of a length: NULL.
const NULL: [u8; 4] = u32::MAX.to_be_bytes();

impl Key {
    /// The key of `row`, whose key columns are `columns` in key order. `None` if one of them is NULL or absent: no row has
    /// such a key.
    pub fn of(row: Row<'_>, columns: &[usize]) -> Option<Key> {
        let mut bytes = Vec::with_capacity(columns.len() * 16);
        for &column in columns {
            let text = row.get(column).text()?;
            let len = u32::try_from(text.len()).expect("Postgres limits a field to 1 GiB");
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(text);
        }
        Some(Key(bytes.into_boxed_slice()))
    }

    /// What names a row of a table without a key: all of it, as far as `columns` go. `None` if one of them is absent.
    pub fn whole(row: Row<'_>, columns: &[usize]) -> Option<Key> {
        let mut bytes = Vec::with_capacity(columns.len() * 16);
        for &column in columns {
            match row.get(column) {
                Cell::Absent => return None,
                Cell::Null => bytes.extend_from_slice(&NULL),
                Cell::Text(text) => {
                    let len = u32::try_from(text.len()).expect("Postgres limits a field to 1 GiB");
                    bytes.extend_from_slice(&len.to_be_bytes());
                    bytes.extend_from_slice(text);
                }
            }
        }
        Some(Key(bytes.into_boxed_slice()))
    }

    /// The key's cells in key order, none of them absent.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            if *len == NULL {
                rest = tail;
                return Some(Cell::Null);
            }
            let (text, tail) = tail.split_at(u32::from_be_bytes(*len) as usize);
            rest = tail;
            Some(Cell::Text(text))
        })
    }

    /// The key as a row of its own: cell `i` is the key's column `i`.
    pub fn to_row(&self) -> RowBuf {
        self.cells().collect()
    }

    /// Heap bytes held, for limits.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }
}

/// Key values are user data and stay out of logs: only the size shows.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> RowBuf {
        cells.iter().map(|text| Cell::Text(text.as_bytes())).collect()
    }

    #[test]
    fn keys_are_equal_iff_their_texts_are_cell_by_cell() {
        let key = |cells: &[&str]| Key::of(row(cells).row(), &[0, 1]).unwrap();
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
        assert_ne!(key(&["", "ab"]), key(&["ab", ""]));
        assert_eq!(key(&["", "x"]).cells().collect::<Vec<_>>(), [Cell::Text(b""), Cell::Text(b"x")]);
        assert_eq!(key(&["1", "x"]).to_row(), row(&["1", "x"]));
    }

    #[test]
    fn the_key_is_taken_in_key_order_and_needs_every_cell() {
        let all = row(&["a", "b", "c"]);
        assert_eq!(
            Key::of(all.row(), &[2, 0]).unwrap().cells().collect::<Vec<_>>(),
            [Cell::Text(b"c"), Cell::Text(b"a")]
        );
        let null: RowBuf = [Cell::Null, Cell::Text(b"b")].into_iter().collect();
        assert_eq!(Key::of(null.row(), &[0]), None);
        let absent: RowBuf = [Cell::Absent, Cell::Text(b"b")].into_iter().collect();
        assert_eq!(Key::of(absent.row(), &[0]), None);
    }

    #[test]
    fn a_whole_row_tells_null_from_nothing() {
        let whole = |cells: &[Cell<'_>]| Key::whole(cells.iter().copied().collect::<RowBuf>().row(), &[0, 1]);
        let null = whole(&[Cell::Null, Cell::Text(b"b")]).unwrap();
        assert_ne!(Some(&null), whole(&[Cell::Text(b""), Cell::Text(b"b")]).as_ref());
        assert_eq!(null.cells().collect::<Vec<_>>(), [Cell::Null, Cell::Text(b"b")]);
        assert_eq!(whole(&[Cell::Absent, Cell::Null]), None);
    }
}

//! Values and rows as the source sends them: text, NULL, or absent.
//!
//! `Absent` is a value of its own, never NULL: the source did not send the column (an unchanged TOAST value, a non-key
//! column of an old row). A sink never writes an absent column. Rows are offsets into one buffer, so that a million of them
//! cost no allocation per value.

/// One column's value, borrowed from wherever its row lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cell<'a> {
    Null,
    /// Not sent; what the row held before still holds.
    Absent,
    /// Postgres text format, in UTF-8 as the session pins `client_encoding`; the source is not trusted to keep that promise.
    Text(&'a [u8]),
}

impl<'a> Cell<'a> {
    pub fn text(self) -> Option<&'a [u8]> {
        match self {
            Cell::Text(text) => Some(text),
            Cell::Null | Cell::Absent => None,
        }
    }

    pub fn is_absent(self) -> bool {
        matches!(self, Cell::Absent)
    }
}

/// Where a cell lies in its row's buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CellRef {
    Null,
    Absent,
    Text { start: u32, len: u32 },
}

/// A row borrowed from a buffer: column `i` of the relation is `get(i)`.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    data: &'a [u8],
    cells: &'a [CellRef],
}

impl<'a> Row<'a> {
    /// Every `Text` of `cells` lies inside `data`.
    pub fn new(data: &'a [u8], cells: &'a [CellRef]) -> Row<'a> {
        Row { data, cells }
    }

    pub fn len(self) -> usize {
        self.cells.len()
    }

    pub fn is_empty(self) -> bool {
        self.cells.is_empty()
    }

    pub fn get(self, column: usize) -> Cell<'a> {
        match self.cells[column] {
            CellRef::Null => Cell::Null,
            CellRef::Absent => Cell::Absent,
            CellRef::Text { start, len } => Cell::Text(&self.data[start as usize..start as usize + len as usize]),
        }
    }

    pub fn iter(self) -> impl Iterator<Item = Cell<'a>> {
        (0..self.len()).map(move |i| self.get(i))
    }

    pub fn has_absent(self) -> bool {
        self.cells.contains(&CellRef::Absent)
    }

    pub fn to_owned(self) -> RowBuf {
        let mut row = RowBuf::with_capacity(self.len(), 0);
        self.iter().for_each(|cell| row.push(cell));
        row
    }
}

impl PartialEq for Row<'_> {
    fn eq(&self, other: &Row<'_>) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

/// An owned row: one buffer for all its values. Reusable: [`RowBuf::clear`] keeps the allocations.
#[derive(Clone, Debug, Default)]
pub struct RowBuf {
    data: Vec<u8>,
    cells: Vec<CellRef>,
}

impl RowBuf {
    pub fn new() -> RowBuf {
        RowBuf::default()
    }

    pub fn with_capacity(columns: usize, bytes: usize) -> RowBuf {
        RowBuf { data: Vec::with_capacity(bytes), cells: Vec::with_capacity(columns) }
    }

    pub fn clear(&mut self) {
        self.data.clear();
        self.cells.clear();
    }

    pub fn push(&mut self, cell: Cell<'_>) {
        self.cells.push(match cell {
            Cell::Null => CellRef::Null,
            Cell::Absent => CellRef::Absent,
            Cell::Text(text) => {
                let start =
                    u32::try_from(self.data.len()).expect("a row is below 4 GiB: Postgres' own limit is 1 GiB a field");
                self.data.extend_from_slice(text);
                CellRef::Text { start, len: u32::try_from(text.len()).expect("Postgres limits a field to 1 GiB") }
            }
        });
    }

    /// Appends the text that `write` appends to the row's own buffer, so that a printed value needs no copy. `None` from
    /// `write` leaves the row as it was.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<()> {
        let before = self.data.len();
        if write(&mut self.data).is_none() {
            self.data.truncate(before);
            return None;
        }
        let start = u32::try_from(before).expect("a row is below 4 GiB: Postgres' own limit is 1 GiB a field");
        let len = u32::try_from(self.data.len() - before).expect("Postgres limits a field to 1 GiB");
        self.cells.push(CellRef::Text { start, len });
        Some(())
    }

    pub fn row(&self) -> Row<'_> {
        Row::new(&self.data, &self.cells)
    }

    /// Heap bytes held, for limits.
    pub fn bytes(&self) -> usize {
        self.data.capacity() + self.cells.capacity() * size_of::<CellRef>()
    }

    /// This row with the absent columns of `newer` kept and every other column taken from it.
    pub fn merged(&self, newer: Row<'_>) -> RowBuf {
        let mut merged = RowBuf::with_capacity(self.cells.len(), self.data.len());
        for (old, new) in self.row().iter().zip(newer.iter()) {
            merged.push(if new.is_absent() { old } else { new });
        }
        merged
    }
}

impl PartialEq for RowBuf {
    fn eq(&self, other: &RowBuf) -> bool {
        self.row() == other.row()
    }
}

impl Eq for RowBuf {}

impl<'a> FromIterator<Cell<'a>> for RowBuf {
    fn from_iter<I: IntoIterator<Item = Cell<'a>>>(cells: I) -> RowBuf {
        let mut row = RowBuf::new();
        cells.into_iter().for_each(|cell| row.push(cell));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_the_newer_row_does_not_carry() {
        let old: RowBuf = [Cell::Text(b"1"), Cell::Text(b"big"), Cell::Null].into_iter().collect();
        let new: RowBuf = [Cell::Text(b"2"), Cell::Absent, Cell::Text(b"")].into_iter().collect();
        let merged = old.merged(new.row());
        assert_eq!(merged.row().iter().collect::<Vec<_>>(), [Cell::Text(b"2"), Cell::Text(b"big"), Cell::Text(b"")]);
        assert!(new.row().has_absent() && !merged.row().has_absent());
    }
}

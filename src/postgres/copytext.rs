//! Rows of COPY's text format, as `COPY … TO STDOUT` sends them.
//!
//! Lines end with a newline, fields are parted by tabs, `\N` is NULL, and the bytes that would confuse this are escaped by a
//! backslash. A message of the protocol may hold several lines or part of one. Pure, and total: any bytes give rows or an
//! error, never a panic. Deliberately not here: the octal and hexadecimal escapes, which COPY reads but never writes.

use memchr::{memchr, memchr_iter};

use crate::value::{Cell, RowBuf};

/// Why bytes are not rows of COPY's text format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CopyError {
    #[error("a row of {found} fields where {expected} columns were asked for")]
    Fields { expected: usize, found: usize },
    #[error("an escape that COPY does not write: backslash and byte {0:#04x}")]
    Escape(u8),
    #[error("the data ends inside a row")]
    Truncated,
}

/// Cuts a stream of COPY data into rows.
#[derive(Debug)]
pub struct CopyRows {
    columns: usize,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Room to unescape a field in.
    field: Vec<u8>,
}

impl CopyRows {
    pub fn new(columns: usize) -> CopyRows {
        CopyRows { columns, partial: Vec::new(), field: Vec::new() }
    }

    /// Takes the next bytes and appends the rows that end in them.
    pub fn feed(&mut self, mut data: &[u8], rows: &mut Vec<RowBuf>) -> Result<(), CopyError> {
        while let Some(end) = memchr(b'\n', data) {
            let row = if self.partial.is_empty() {
                parse_line(&data[..end], self.columns, &mut self.field)?
            } else {
                self.partial.extend_from_slice(&data[..end]);
                let row = parse_line(&self.partial, self.columns, &mut self.field)?;
                self.partial.clear();
                row
            };
            rows.push(row);
            data = &data[end + 1..];
        }
        self.partial.extend_from_slice(data);
        Ok(())
    }

    /// The stream has ended; so must the last row.
    pub fn finish(self) -> Result<(), CopyError> {
        if self.partial.is_empty() { Ok(()) } else { Err(CopyError::Truncated) }
    }
}

fn parse_line(line: &[u8], columns: usize, unescaped: &mut Vec<u8>) -> Result<RowBuf, CopyError> {
    let mut row = RowBuf::with_capacity(columns, line.len());
    let mut found = 0;
    let mut start = 0;
    for end in memchr_iter(b'\t', line).chain([line.len()]) {
        let field = &line[start..end];
        start = end + 1;
        found += 1;
        if found > columns {
            continue;
        }
        if field == b"\\N" {
            row.push(Cell::Null);
        } else if memchr(b'\\', field).is_none() {
            row.push(Cell::Text(field));
        } else {
            unescape(field, unescaped)?;
            row.push(Cell::Text(unescaped));
        }
    }
    if found == columns { Ok(row) } else { Err(CopyError::Fields { expected: columns, found }) }
}

fn unescape(field: &[u8], out: &mut Vec<u8>) -> Result<(), CopyError> {
    out.clear();
    let mut rest = field;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        out.push(match rest.get(at + 1) {
            Some(b'\\') => b'\\',
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'v') => 11,
            Some(&other) => return Err(CopyError::Escape(other)),
            None => return Err(CopyError::Truncated),
        });
        rest = &rest[at + 2..];
    }
    out.extend_from_slice(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(data: &[u8], columns: usize) -> Result<Vec<RowBuf>, CopyError> {
        let mut rows = Vec::new();
        let mut copy = CopyRows::new(columns);
        copy.feed(data, &mut rows)?;
        copy.finish()?;
        Ok(rows)
    }

    /// What the server does: CopyAttributeOutText with the default delimiter.
    fn print(rows: &[Vec<Option<Vec<u8>>>]) -> Vec<u8> {
        let mut out = Vec::new();
        for row in rows {
            for (i, field) in row.iter().enumerate() {
                if i > 0 {
                    out.push(b'\t');
                }
                let Some(field) = field else {
                    out.extend_from_slice(b"\\N");
                    continue;
                };
                for &byte in field {
                    match byte {
                        b'\\' => out.extend_from_slice(b"\\\\"),
                        b'\n' => out.extend_from_slice(b"\\n"),
                        b'\t' => out.extend_from_slice(b"\\t"),
                        b'\r' => out.extend_from_slice(b"\\r"),
                        8 => out.extend_from_slice(b"\\b"),
                        11 => out.extend_from_slice(b"\\v"),
                        12 => out.extend_from_slice(b"\\f"),
                        _ => out.push(byte),
                    }
                }
            }
            out.push(b'\n');
        }
        out
    }

    #[test]
    fn null_empty_and_a_text_that_looks_like_null() {
        let rows = parse(b"\\N\t\t\\\\N\n", 3).unwrap();
        let cells: Vec<Cell<'_>> = rows[0].row().iter().collect();
        assert_eq!(cells, [Cell::Null, Cell::Text(b""), Cell::Text(b"\\N")]);
        assert_eq!(parse(b"\n", 1).unwrap()[0].row().get(0), Cell::Text(b""));
        assert_eq!(parse(b"", 1).unwrap(), []);
    }

    #[test]
    fn what_is_not_copy_text_is_refused() {
        assert_eq!(parse(b"a\tb\n", 3), Err(CopyError::Fields { expected: 3, found: 2 }));
        assert_eq!(parse(b"a\tb\n", 1), Err(CopyError::Fields { expected: 1, found: 2 }));
        assert_eq!(parse(b"a", 1), Err(CopyError::Truncated));
        assert_eq!(parse(b"a\\\n", 1), Err(CopyError::Truncated));
        assert_eq!(parse(b"\\x41\n", 1), Err(CopyError::Escape(b'x')));
    }

    proptest! {
        #[test]
        fn reads_back_what_a_server_prints(
            rows in prop::collection::vec(
                prop::collection::vec(prop::option::of("[a\\\\N\n\t\r\u{8}\u{b}\u{c}é.x0]{0,6}".prop_map(String::into_bytes)), 3),
                0..6),
            cut in 1_usize..9,
        ) {
            let mut parsed = Vec::new();
            let mut copy = CopyRows::new(3);
            for piece in print(&rows).chunks(cut) {
                copy.feed(piece, &mut parsed).unwrap();
            }
            copy.finish().unwrap();
            let parsed: Vec<Vec<Option<Vec<u8>>>> =
                parsed.iter().map(|r| r.row().iter().map(|c| c.text().map(<[u8]>::to_vec)).collect()).collect();
            prop_assert_eq!(parsed, rows);
        }

        #[test]
        fn garbage_never_panics(data: Vec<u8>, columns in 0_usize..4) {
            let _ = parse(&data, columns);
        }
    }
}

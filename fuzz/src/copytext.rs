//! Rows of COPY's text format: read in pieces, printed as a server prints them, and read again.

use lockstep::postgres::copytext::CopyRows;
use lockstep::value::{Cell, RowBuf};

use super::bounds::bounded;
use super::input::Input;

/// The shortest row is a newline: 48 bytes of its own, a place of 12 and the vectors' first sizes; three times while a list of such
/// grows.
const PER_BYTE: u64 = 400;

pub fn copy_text(data: &[u8]) {
    let mut input = Input(data);
    let (columns, piece_bytes) = (input.pick(5), usize::from(input.byte()) + 1);
    let sent = input.0;
    let Some(rows) = bounded(sent.len(), PER_BYTE, || read(sent, columns, piece_bytes)) else { return };
    let printed = print(&rows);
    let again = read(&printed, columns, sent.len().max(1)).expect("what a server prints is read");
    assert!(again == rows, "rows are read as they were printed");
}

fn read(sent: &[u8], columns: usize, piece_bytes: usize) -> Option<Vec<RowBuf>> {
    let (mut copy, mut rows) = (CopyRows::new(columns), Vec::new());
    for piece in sent.chunks(piece_bytes) {
        copy.feed(piece, &mut rows).ok()?;
    }
    copy.finish().ok()?;
    Some(rows)
}

fn print(rows: &[RowBuf]) -> Vec<u8> {
    let mut out = Vec::new();
    for row in rows {
        for (i, cell) in row.row().iter().enumerate() {
            if i > 0 {
                out.push(b'\t');
            }
            match cell {
                Cell::Null | Cell::Absent => out.extend_from_slice(b"\\N"),
                Cell::Text(text) => text.iter().for_each(|byte| push_escaped(&mut out, *byte)),
            }
        }
        out.push(b'\n');
    }
    out
}

fn push_escaped(out: &mut Vec<u8>, byte: u8) {
    let letter = match byte {
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\t' => b't',
        b'\r' => b'r',
        8 => b'b',
        11 => b'v',
        12 => b'f',
        other => return out.push(other),
    };
    out.extend_from_slice(&[b'\\', letter]);
}

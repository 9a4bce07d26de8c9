//! Messages of pgoutput: read, and where they hold rows, written again from the places that were found.

use lockstep::postgres::pgoutput::{Message, OldKind, Scratch, decode};
use lockstep::value::{Cell, Row};

use super::bounds::bounded;

/// A column that is NULL is one byte on the wire and a place of 12 here; a vector that grows holds it three times.
const PER_BYTE: u64 = 40;

pub fn pgoutput(data: &[u8]) {
    let mut scratch = Scratch::default();
    let Ok(message) = bounded(data.len(), PER_BYTE, || decode(data, &mut scratch)) else { return };
    let mut again = Vec::new();
    match message {
        Message::Insert { oid } => {
            head(&mut again, b'I', oid);
            tuple(&mut again, b'N', Row::new(data, &scratch.new));
        }
        Message::Update { oid, old } => {
            head(&mut again, b'U', oid);
            if let Some(old) = old {
                tuple(&mut again, old_letter(old), Row::new(data, &scratch.old));
            }
            tuple(&mut again, b'N', Row::new(data, &scratch.new));
        }
        Message::Delete { oid, old } => {
            head(&mut again, b'D', oid);
            tuple(&mut again, old_letter(old), Row::new(data, &scratch.old));
        }
        _ => return,
    }
    // In a key row NULL is as good as absent, which both are one byte.
    let same = |(a, b): (&u8, &u8)| a == b || (*a == b'u' && *b == b'n');
    assert!(again.len() == data.len() && again.iter().zip(data).all(same), "a row says every byte of its message");
}

fn head(out: &mut Vec<u8>, letter: u8, oid: u32) {
    out.push(letter);
    out.extend_from_slice(&oid.to_be_bytes());
}

fn old_letter(old: OldKind) -> u8 {
    match old {
        OldKind::Key => b'K',
        OldKind::Full => b'O',
    }
}

fn tuple(out: &mut Vec<u8>, mark: u8, row: Row<'_>) {
    out.push(mark);
    out.extend_from_slice(&u16::try_from(row.len()).expect("counted in 16 bits").to_be_bytes());
    for cell in row.iter() {
        match cell {
            Cell::Null => out.push(b'n'),
            Cell::Absent => out.push(b'u'),
            Cell::Text(text) => {
                out.push(b't');
                out.extend_from_slice(&u32::try_from(text.len()).expect("counted in 32 bits").to_be_bytes());
                out.extend_from_slice(text);
            }
        }
    }
}

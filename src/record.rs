//! The headers that make a Kafka record ours: `ls`, `ls-absent`, `ls-text`. Bytes are fixed by docs/protocol.md, version 1.
//!
//! A reader of another version refuses, never guesses.

use crate::lsn::{Lsn, Position};
use crate::relation::Fingerprint;
use crate::value::Cell;

/// Header names.
pub const HEADER: &str = "ls";
pub const HEADER_ABSENT: &str = "ls-absent";
pub const HEADER_TEXT: &str = "ls-text";

const VERSION: u8 = 1;
/// version, kind, five u64.
pub const HEADER_BYTES: usize = 2 + 5 * 8;

/// One incarnation of a source reader: the ledger offset of its claim and the random nonce in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Epoch {
    #[serde(with = "crate::lsn::decimal")]
    pub offset: u64,
    #[serde(with = "crate::lsn::decimal")]
    pub nonce: u64,
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{:016x}", self.offset, self.nonce)
    }
}

/// What a record is to our sinks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    Change = 0,
    /// The delete of a key change; its create follows two ordinals later.
    KeyChangeDelete = 1,
    KeyChangeCreate = 2,
    Tombstone = 3,
    ChunkRow = 4,
    Truncate = 5,
    /// For other consumers only: transaction metadata, heartbeats, messages. In no span.
    Foreign = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [
            Kind::Change,
            Kind::KeyChangeDelete,
            Kind::KeyChangeCreate,
            Kind::Tombstone,
            Kind::ChunkRow,
            Kind::Truncate,
            Kind::Foreign,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// The `ls` header, one per record, big-endian.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    pub epoch: Epoch,
    pub position: Position,
    pub relation: Fingerprint,
}

/// Why bytes are not an `ls` header that this version knows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    #[error("record header of version {0}, this build reads version 1")]
    Version(u8),
    #[error("record header of {0} bytes instead of 42")]
    Length(usize),
    #[error("record kind {0} is unknown")]
    Kind(u8),
    #[error("header ls-text is cut off or names a side that does not exist")]
    Text,
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = VERSION;
        out[1] = self.kind as u8;
        let fields = [self.epoch.offset, self.epoch.nonce, self.position.lsn.0, self.position.ordinal, self.relation.0];
        for (i, field) in fields.into_iter().enumerate() {
            out[2 + i * 8..10 + i * 8].copy_from_slice(&field.to_be_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Header, HeaderError> {
        match bytes.first() {
            None => return Err(HeaderError::Length(0)),
            Some(&VERSION) => {}
            Some(&other) => return Err(HeaderError::Version(other)),
        }
        if bytes.len() != HEADER_BYTES {
            return Err(HeaderError::Length(bytes.len()));
        }
        let field = |i: usize| u64::from_be_bytes(bytes[2 + i * 8..10 + i * 8].try_into().expect("8 bytes"));
        Ok(Header {
            kind: Kind::from_byte(bytes[1]).ok_or(HeaderError::Kind(bytes[1]))?,
            epoch: Epoch { offset: field(0), nonce: field(1) },
            position: Position::new(Lsn(field(2)), field(3)),
            relation: Fingerprint(field(4)),
        })
    }
}

/// Which row of the envelope an `ls-text` entry stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Side {
    After = 0,
    Before = 1,
}

/// Appends one entry of `ls-text`: the exact Postgres text of a column that the format does not carry exactly.
pub fn push_text(out: &mut Vec<u8>, side: Side, column: u16, cell: Cell<'_>) {
    let text = match cell {
        Cell::Absent => return,
        Cell::Null => None,
        Cell::Text(text) => Some(text),
    };
    out.push(side as u8);
    out.extend_from_slice(&column.to_be_bytes());
    let len = text.map_or(u32::MAX, |t| u32::try_from(t.len()).expect("Postgres limits a field to 1 GiB"));
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.unwrap_or_default());
}

/// The entries of an `ls-text` header: (side, column, NULL or text).
pub fn read_texts(mut bytes: &[u8]) -> Result<Vec<(Side, u16, Cell<'_>)>, HeaderError> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(7).ok_or(HeaderError::Text)?;
        let side = match head[0] {
            0 => Side::After,
            1 => Side::Before,
            _ => return Err(HeaderError::Text),
        };
        let column = u16::from_be_bytes([head[1], head[2]]);
        let len = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let cell = if len == u32::MAX {
            bytes = rest;
            Cell::Null
        } else {
            let (text, rest) = rest.split_at_checked(len as usize).ok_or(HeaderError::Text)?;
            bytes = rest;
            Cell::Text(text)
        };
        texts.push((side, column, cell));
    }
    Ok(texts)
}

/// `ls-absent`: a bitmap over the relation's columns, bit 0 = first column, least significant bit first. `None` when no
/// column is absent.
pub fn absent_bitmap(row: crate::value::Row<'_>) -> Option<Vec<u8>> {
    if !row.has_absent() {
        return None;
    }
    let mut bits = vec![0u8; row.len().div_ceil(8)];
    for (i, _) in row.iter().enumerate().filter(|(_, cell)| cell.is_absent()) {
        bits[i / 8] |= 1 << (i % 8);
    }
    Some(bits)
}

/// Whether `ls-absent` names the column.
pub fn is_absent(bitmap: &[u8], column: usize) -> bool {
    bitmap.get(column / 8).is_some_and(|byte| byte & (1 << (column % 8)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::RowBuf;

    #[test]
    fn the_header_is_42_fixed_bytes() {
        let header = Header {
            kind: Kind::ChunkRow,
            epoch: Epoch { offset: 1, nonce: 2 },
            position: Position::new(Lsn(3), 4),
            relation: Fingerprint(5),
        };
        let bytes = header.encode();
        assert_eq!(
            hex::encode(bytes),
            "010400000000000000010000000000000002000000000000000300000000000000040000000000000005"
        );
        assert_eq!(Header::decode(&bytes), Ok(header));
        assert_eq!(Header::decode(&bytes[..41]), Err(HeaderError::Length(41)));
        assert_eq!(Header::decode(&[]), Err(HeaderError::Length(0)));
        let mut other = bytes;
        other[0] = 2;
        assert_eq!(Header::decode(&other), Err(HeaderError::Version(2)));
        other = bytes;
        other[1] = 7;
        assert_eq!(Header::decode(&other), Err(HeaderError::Kind(7)));
    }

    #[test]
    fn absent_columns_and_exact_texts_round_trip() {
        let mut row = RowBuf::new();
        for i in 0..10 {
            row.push(if i == 1 || i == 9 { Cell::Absent } else { Cell::Null });
        }
        let bits = absent_bitmap(row.row()).unwrap();
        assert_eq!(bits, [0b10, 0b10]);
        assert!(is_absent(&bits, 9) && !is_absent(&bits, 8) && !is_absent(&bits, 99));

        let mut text = Vec::new();
        push_text(&mut text, Side::Before, 3, Cell::Text(b"infinity"));
        push_text(&mut text, Side::After, 4, Cell::Null);
        assert_eq!(
            read_texts(&text).unwrap(),
            [(Side::Before, 3, Cell::Text(b"infinity".as_slice())), (Side::After, 4, Cell::Null)]
        );
        assert_eq!(read_texts(&text[..text.len() - 1]), Err(HeaderError::Text));
    }
}

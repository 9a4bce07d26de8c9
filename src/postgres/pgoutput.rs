//! The decoder of pgoutput, protocol version 1: one message in, offsets out.
//!
//! A row is read where it lies. [`decode`] writes only the places of its cells into the reusable vectors of [`Scratch`], so that
//! a stream of changes costs no allocation per message and no copy per value: `Row::new(data, &scratch.new)` is the row.
//! Relations and truncates are rare and owned.
//!
//! The decoder is total: any bytes give a message or a [`DecodeError`], never a panic, and nothing is reserved for a count before
//! the bytes that such a count needs are known to be there. Bytes after the end of a message are an error too: they would mean
//! that we read the message wrongly.
//!
//! Deliberately not here: the messages of streamed and of two-phase transactions (both are never asked for, so they are errors),
//! binary values, what a relation means ([`crate::relation`]), and whether text is UTF-8 (values are bytes to the reader; names
//! are checked). Times leave this file as microseconds since 1970, as everywhere else in this program.
//!
//! Source for the layout: Postgres' manual, "Logical Replication Message Formats", and `src/backend/replication/logical/proto.c`.

use crate::error::{Code, Error};
use crate::lsn::Lsn;
use crate::value::CellRef;

/// Postgres counts microseconds from 2000-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Places of the cells of the last decoded rows. `new` belongs to inserts and updates, `old` to updates and deletes.
#[derive(Debug, Default)]
pub struct Scratch {
    pub new: Vec<CellRef>,
    pub old: Vec<CellRef>,
}

/// One message. Rows are in [`Scratch`], as offsets into the decoded bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Postgres 14 sends begin and commit of every transaction of the database, also of those without changes for us.
    Begin {
        /// The LSN of the commit record: the transaction's place in the only order there is.
        final_lsn: Lsn,
        commit_time_us: i64,
        /// The top-level transaction, 32 bits without its epoch.
        xid: u32,
    },
    Commit {
        /// The same as the `final_lsn` of its begin.
        commit_lsn: Lsn,
        /// The end of the commit record: what is confirmed to the slot. Confirming `commit_lsn` would redeliver the transaction.
        end_lsn: Lsn,
        commit_time_us: i64,
    },
    /// The transaction came to the source by replication; stands after its begin.
    Origin {
        commit_lsn: Lsn,
        name: &'a str,
    },
    Relation(RelationBody),
    Type {
        oid: u32,
        schema: &'a str,
        name: &'a str,
    },
    /// The row is `scratch.new`. A cell can be absent here too (row filters).
    Insert {
        oid: u32,
    },
    /// The new row is `scratch.new`; the old one, if any was sent, `scratch.old`. Without an old row the key did not change.
    Update {
        oid: u32,
        old: Option<OldKind>,
    },
    /// The old row is `scratch.old`.
    Delete {
        oid: u32,
        old: OldKind,
    },
    Truncate {
        oids: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    Message {
        /// Not transactional: sent at once, whatever became of the transaction that emitted it.
        transactional: bool,
        lsn: Lsn,
        prefix: &'a str,
        content: &'a [u8],
    },
}

/// What an old row holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OldKind {
    /// Only the columns of the replica identity. The others are sent as NULL, which says nothing about what they held: they are
    /// absent.
    Key,
    /// Every column (REPLICA IDENTITY FULL).
    Full,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelationBody {
    pub oid: u32,
    pub schema: String,
    pub table: String,
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in table order.
    pub columns: Vec<RelationColumn>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RelationColumn {
    /// Part of the replica identity. Under FULL every column is.
    pub key: bool,
    pub name: String,
    pub type_oid: u32,
    /// -1 when the type has no modifier.
    pub typmod: i32,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

/// Why bytes are not a message that was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("the message is cut off")]
    CutOff,
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    #[error("message type {:?} belongs to no protocol that was asked for", char::from(*.0))]
    Unasked(u8),
    #[error("{:?} is no {what}", char::from(*.byte))]
    Byte { what: &'static str, byte: u8 },
    #[error("a name is not UTF-8")]
    Name,
    #[error("a value is in binary, which was not asked for")]
    Binary,
    #[error("the message is longer than 4 GiB")]
    TooLong,
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Error {
        Error::halt(
            Code::SourceProtocol,
            format!("the source's pgoutput stream can't be read: {error}"),
            "SELECT plugin, two_phase FROM pg_replication_slots",
        )
    }
}

/// Reads one message. What [`Scratch`] held before is gone, whatever the outcome.
pub fn decode<'a>(data: &'a [u8], scratch: &mut Scratch) -> Result<Message<'a>, DecodeError> {
    u32::try_from(data.len()).map_err(|_| DecodeError::TooLong)?;
    scratch.new.clear();
    scratch.old.clear();
    let mut bytes = Bytes { data, at: 0 };
    let message = match bytes.u8()? {
        b'B' => Message::Begin { final_lsn: bytes.lsn()?, commit_time_us: bytes.time_us()?, xid: bytes.u32()? },
        b'C' => {
            // Flags; none is defined.
            bytes.u8()?;
            Message::Commit { commit_lsn: bytes.lsn()?, end_lsn: bytes.lsn()?, commit_time_us: bytes.time_us()? }
        }
        b'O' => Message::Origin { commit_lsn: bytes.lsn()?, name: bytes.name()? },
        b'R' => Message::Relation(relation(&mut bytes)?),
        b'Y' => Message::Type { oid: bytes.u32()?, schema: bytes.schema()?, name: bytes.name()? },
        b'I' => {
            let oid = bytes.u32()?;
            bytes.expect(b'N', "mark of a new row")?;
            tuple(&mut bytes, &mut scratch.new)?;
            Message::Insert { oid }
        }
        b'U' => update(&mut bytes, scratch)?,
        b'D' => {
            let oid = bytes.u32()?;
            let byte = bytes.u8()?;
            let old = old_kind(byte).ok_or(DecodeError::Byte { what: "mark of an old row", byte })?;
            old_tuple(&mut bytes, old, &mut scratch.old)?;
            Message::Delete { oid, old }
        }
        b'T' => truncate(&mut bytes)?,
        b'M' => {
            let flags = bytes.u8()?;
            let (lsn, prefix, len) = (bytes.lsn()?, bytes.name()?, bytes.u32()?);
            Message::Message { transactional: flags & 1 != 0, lsn, prefix, content: bytes.take(len as usize)? }
        }
        other => return Err(DecodeError::Unasked(other)),
    };
    match bytes.left() {
        0 => Ok(message),
        left => Err(DecodeError::Trailing(left)),
    }
}

fn update<'a>(bytes: &mut Bytes<'a>, scratch: &mut Scratch) -> Result<Message<'a>, DecodeError> {
    let oid = bytes.u32()?;
    let byte = bytes.u8()?;
    let old = old_kind(byte);
    if let Some(kind) = old {
        old_tuple(bytes, kind, &mut scratch.old)?;
        bytes.expect(b'N', "mark of a new row")?;
    } else if byte != b'N' {
        return Err(DecodeError::Byte { what: "mark of a row", byte });
    }
    tuple(bytes, &mut scratch.new)?;
    Ok(Message::Update { oid, old })
}

fn old_kind(byte: u8) -> Option<OldKind> {
    match byte {
        b'K' => Some(OldKind::Key),
        b'O' => Some(OldKind::Full),
        _ => None,
    }
}

/// Of a key row only the key was sent, and no column of a key is NULL: what says NULL there says nothing.
fn old_tuple(bytes: &mut Bytes<'_>, kind: OldKind, cells: &mut Vec<CellRef>) -> Result<(), DecodeError> {
    tuple(bytes, cells)?;
    if kind == OldKind::Key {
        cells.iter_mut().filter(|cell| **cell == CellRef::Null).for_each(|cell| *cell = CellRef::Absent);
    }
    Ok(())
}

fn tuple(bytes: &mut Bytes<'_>, cells: &mut Vec<CellRef>) -> Result<(), DecodeError> {
    let columns = usize::from(bytes.u16()?);
    // A cell has at least its kind: nothing is reserved for columns that can't be there.
    if columns > bytes.left() {
        return Err(DecodeError::CutOff);
    }
    cells.reserve(columns);
    for _ in 0..columns {
        let cell = match bytes.u8()? {
            b'n' => CellRef::Null,
            b'u' => CellRef::Absent,
            b't' => {
                let len = bytes.u32()?;
                let start = bytes.at;
                bytes.take(len as usize)?;
                CellRef::Text { start: u32::try_from(start).map_err(|_| DecodeError::TooLong)?, len }
            }
            b'b' => return Err(DecodeError::Binary),
            byte => return Err(DecodeError::Byte { what: "kind of value", byte }),
        };
        cells.push(cell);
    }
    Ok(())
}

fn relation(bytes: &mut Bytes<'_>) -> Result<RelationBody, DecodeError> {
    /// Flags, an empty name's end, type and modifier.
    const COLUMN_BYTES_MIN: usize = 1 + 1 + 4 + 4;
    let (oid, schema, table) = (bytes.u32()?, bytes.schema()?.to_owned(), bytes.name()?.to_owned());
    let replica_identity = match bytes.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        byte => return Err(DecodeError::Byte { what: "replica identity", byte }),
    };
    let count = usize::from(bytes.u16()?);
    if count > bytes.left() / COLUMN_BYTES_MIN {
        return Err(DecodeError::CutOff);
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(RelationColumn {
            key: bytes.u8()? & 1 != 0,
            name: bytes.name()?.to_owned(),
            type_oid: bytes.u32()?,
            typmod: bytes.u32()?.cast_signed(),
        });
    }
    Ok(RelationBody { oid, schema, table, replica_identity, columns })
}

fn truncate<'a>(bytes: &mut Bytes<'a>) -> Result<Message<'a>, DecodeError> {
    let count = bytes.u32()? as usize;
    let flags = bytes.u8()?;
    if count > bytes.left() / size_of::<u32>() {
        return Err(DecodeError::CutOff);
    }
    let oids = (0..count).map(|_| bytes.u32()).collect::<Result<_, _>>()?;
    Ok(Message::Truncate { oids, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

/// The unread rest of a message. Every step checks that the bytes are there.
struct Bytes<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn left(&self) -> usize {
        self.data.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, _) = self.data[self.at..].split_at_checked(len).ok_or(DecodeError::CutOff)?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, _) = self.data[self.at..].split_first_chunk::<N>().ok_or(DecodeError::CutOff)?;
        self.at += N;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array().map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn time_us(&mut self) -> Result<i64, DecodeError> {
        self.array().map(|bytes| unix_us(i64::from_be_bytes(bytes)))
    }

    fn expect(&mut self, wanted: u8, what: &'static str) -> Result<(), DecodeError> {
        match self.u8()? {
            byte if byte == wanted => Ok(()),
            byte => Err(DecodeError::Byte { what, byte }),
        }
    }

    fn name(&mut self) -> Result<&'a str, DecodeError> {
        let rest = &self.data[self.at..];
        let end = memchr::memchr(0, rest).ok_or(DecodeError::CutOff)?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| DecodeError::Name)
    }

    /// A schema's name; empty on the wire stands for pg_catalog (`logicalrep_write_namespace`).
    fn schema(&mut self) -> Result<&'a str, DecodeError> {
        match self.name()? {
            "" => Ok("pg_catalog"),
            name => Ok(name),
        }
    }
}

/// A time on the wire as microseconds since 1970. Saturates: a clock 290 000 years off must not end a stream.
pub(super) fn unix_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(POSTGRES_EPOCH_US)
}

/// A time since 1970 as the wire wants it.
pub(super) fn postgres_us(unix_us: i64) -> i64 {
    unix_us.saturating_sub(POSTGRES_EPOCH_US)
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;

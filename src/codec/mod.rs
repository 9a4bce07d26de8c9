//! One change as a record of Debezium's shape, and back: JSON with or without schemas, in all of Debezium's modes.
//!
//! Consumers that know Debezium read the value; our sinks read the same bytes and get the exact Postgres text back. The rule
//! for every type: `decode(encode(text)) == text`, byte for byte. Where JSON in Debezium's shape does not carry a text
//! exactly, the text rides beside it in `ls-text`, and the decoder prefers that. Where the value of a column was not sent,
//! Debezium's placeholder or fallback stands in the JSON, and `ls-absent` says that it means nothing.
//!
//! Invariants: [`mapping`] alone decides how a type is written, for both directions. Nothing is written lossily: text that
//! is not UTF-8, or not of its type, is `RECORD_INVALID` naming the column, never the value (values may be personal data).
//! Neither direction allocates per value; buffers are the caller's and are reused.
//!
//! [`mapping`] says what a column becomes, [`write`] turns a text into that value for any format, [`schema`] has the schemas that
//! belong to it. Where this differs from Debezium on purpose is listed in docs/debezium-compatibility.md.
//!
//! Not here: the `ls` header and `ls-absent` (record.rs), tombstones (a key and no value), Kafka, any clock.

mod events;
mod json_decode;
mod json_encode;
pub mod mapping;
pub mod schema;
pub mod write;

pub use events::{EventEncoder, TransactionMark};
pub use json_decode::Decoder;
pub use json_encode::{Encoder, JsonWriter};

use crate::error::{Code, Error};
use crate::lsn::Lsn;
use crate::relation::Relation;

/// Header on the delete and tombstone of a key change: the new key's JSON.
pub const HEADER_NEW_KEY: &str = "__debezium.newkey";
/// Header on the create of a key change: the old key's JSON.
pub const HEADER_OLD_KEY: &str = "__debezium.oldkey";

/// What the envelope says about where and when a change happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// End of the last commit that this reader streamed before the change's transaction; `None` until there was one.
    pub last_commit_lsn: Option<Lsn>,
    /// The change's own message; for a chunk row, where the chunk enters the stream.
    pub lsn: Lsn,
    /// The transaction; `None` for rows that were read, not streamed.
    pub xid: Option<u64>,
    /// Commit time, or the time of reading: microseconds since 1970.
    pub commit_time_us: i64,
    pub snapshot: Snapshot,
    /// When the record is made: nanoseconds since 1970.
    pub now_ns: i64,
    /// The record's place in its transaction, where transactions are told of.
    pub block: Option<Block>,
}

/// Places counted from 1, as Debezium's `transaction` block has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Among the transaction's records.
    pub total_order: u64,
    /// Among those of the same table.
    pub collection_order: u64,
}

/// `source.snapshot`: which part of a snapshot a row is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshot {
    /// Streamed.
    False,
    True,
    First,
    FirstInDataCollection,
    LastInDataCollection,
    Last,
    /// A chunk while the stream goes on.
    Incremental,
}

impl Snapshot {
    pub fn as_str(self) -> &'static str {
        match self {
            Snapshot::False => "false",
            Snapshot::True => "true",
            Snapshot::First => "first",
            Snapshot::FirstInDataCollection => "first_in_data_collection",
            Snapshot::LastInDataCollection => "last_in_data_collection",
            Snapshot::Last => "last",
            Snapshot::Incremental => "incremental",
        }
    }
}

/// `op`: what happened to the row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Create,
    Update,
    Delete,
    /// Read by a snapshot.
    Read,
    Truncate,
}

impl Op {
    pub fn letter(self) -> char {
        match self {
            Op::Create => 'c',
            Op::Update => 'u',
            Op::Delete => 'd',
            Op::Read => 'r',
            Op::Truncate => 't',
        }
    }

    fn from_text(text: &str) -> Option<Op> {
        [Op::Create, Op::Update, Op::Delete, Op::Read, Op::Truncate]
            .into_iter()
            .find(|op| text.len() == 1 && text.starts_with(op.letter()))
    }
}

/// Where an encoder writes; one is enough for all records of a thread.
#[derive(Default, Debug)]
pub struct RecordBuf {
    /// The key's JSON; empty for the null key of a table without a key.
    pub key: Vec<u8>,
    /// The envelope.
    pub value: Vec<u8>,
    /// The `ls-text` header; empty when the record needs none.
    pub text: Vec<u8>,
}

impl RecordBuf {
    /// The key as Kafka takes it.
    pub fn key(&self) -> Option<&[u8]> {
        (!self.key.is_empty()).then_some(&self.key)
    }

    /// The `ls-text` header if the record needs one.
    pub fn text(&self) -> Option<&[u8]> {
        (!self.text.is_empty()).then_some(&self.text)
    }
}

/// A record that can't be written or read. Names table and column, never a value.
fn invalid(relation: &Relation, column: Option<usize>, found: &str, hint: String) -> Error {
    let place = match column {
        Some(column) => format!("table {}, column {:?}", relation.name, relation.columns[column].name),
        None => format!("table {}", relation.name),
    };
    Error::halt(Code::RecordInvalid, format!("{place}: {found}"), hint)
}

#[cfg(test)]
mod tests;

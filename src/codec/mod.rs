//! One change as a record of Debezium's shape, and back: JSON with or without schemas, or Avro, in all of Debezium's modes.
//!
//! Consumers that know Debezium read the value; our sinks read the same bytes and get the exact Postgres text back. The rule
//! for every type: `decode(encode(text)) == text`, byte for byte. Where Debezium's shape does not carry a text
//! exactly, the text rides beside it in `ls-text`, and the decoder prefers that. Where the value of a column was not sent,
//! Debezium's placeholder or fallback stands in its place, and `ls-absent` says that it means nothing.
//!
//! Invariants: [`mapping`] alone decides how a type is written, for both directions. Nothing is written lossily: text that
//! is not UTF-8, or not of its type, is `RECORD_INVALID` naming the column, never the value (values may be personal data).
//! Neither direction allocates per value; buffers are the caller's and are reused.
//!
//! [`mapping`] says what a column becomes, [`write`] turns a text into that value for any format, [`schema`] has the schemas that
//! belong to it, `complete` refuses by name what a version can't be written as. `flat` and `outbox` write what no sink takes:
//! there is no way back from them, and [`Decoder::of`] says so. Where this differs from Debezium on purpose is listed in
//! docs/debezium-compatibility.md.
//!
//! Not here: the `ls` header and `ls-absent` (record.rs), tombstones (a key and no value), Kafka, any clock.

pub mod avro;
mod commit_time;
mod complete;
mod document;
mod events;
mod flat;
pub mod foreign;
mod json_decode;
mod json_encode;
pub mod mapping;
mod outbox;
pub mod schema;
mod shell;
mod source_type;
pub mod write;

use std::sync::Arc;

pub use complete::complete;
pub use events::{JsonEventEncoder, TransactionMark};
pub use flat::FlatEncoder;
pub use json_decode::Decoder as JsonDecoder;
pub use json_encode::{Encoder as JsonEncoder, JsonWriter};
pub use outbox::{OutboxEncoder, Place, Written, WrittenSchemas};

use crate::error::{Code, Error, Result};
use crate::lsn::Lsn;
use crate::record::Side;
use crate::relation::{ConversionFailure, Format, Modes, Relation};
use crate::value::{Cell, Row, RowBuf};
use write::Unfit;

/// What `source.version` says: the program that wrote the record, as Debezium says its own version there.
const VERSION: &str = concat!("lockstep-", env!("CARGO_PKG_VERSION"));

/// Header on the delete and tombstone of a key change: the new key's JSON.
pub const HEADER_NEW_KEY: &str = "__debezium.newkey";
/// Header on the create of a key change: the old key's JSON.
pub const HEADER_OLD_KEY: &str = "__debezium.oldkey";

/// What the envelope says about where and when a change happened.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// Where the transaction was first, if it was replicated to the source.
    pub origin: Option<Arc<Origin>>,
}

/// Where a transaction comes from: `source.origin` and `source.origin_lsn`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Of the replication origin at the source.
    pub name: String,
    /// Its commit there.
    pub lsn: Lsn,
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

/// Writes the records of one relation version in its format.
pub enum Encoder {
    Json(Box<JsonEncoder>),
    Avro(Box<avro::Encoder>),
    Flat(Box<FlatEncoder>),
}

impl Encoder {
    /// In JSON. `prefix` is the topic prefix (Debezium's logical name), `db` the source's database.
    pub fn new(relation: Arc<Relation>, prefix: &str, db: &str) -> Encoder {
        match relation.modes.flat {
            Some(_) => Encoder::Flat(Box::new(FlatEncoder::new(relation, prefix, db))),
            None => Encoder::Json(Box::new(JsonEncoder::new(relation, prefix, db))),
        }
    }

    /// In Avro, under the ids that the registry gave the relation's schemas.
    pub fn avro(relation: Arc<Relation>, ids: avro::SchemaIds, prefix: &str, db: &str) -> Result<Encoder> {
        Ok(match relation.modes.flat {
            Some(_) => Encoder::Flat(Box::new(FlatEncoder::avro(relation, ids, prefix, db)?)),
            None => Encoder::Avro(Box::new(avro::Encoder::new(relation, ids, prefix, db)?)),
        })
    }

    /// Writes the row's key into `out.key`, which stays empty for a table without one. A key column that was not
    /// sent, or is NULL and may not be, is RECORD_INVALID.
    pub fn key(&self, row: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        match self {
            Encoder::Json(json) => json.key(row, out),
            Encoder::Avro(avro) => avro.key(row, out),
            Encoder::Flat(flat) => flat.key(row, out),
        }
    }

    /// The key as JSON without its schema, for the headers of a key change ([`HEADER_NEW_KEY`], [`HEADER_OLD_KEY`]), which are
    /// so in every format. Clears `out`, which stays empty for a table without a key.
    pub fn key_json(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Encoder::Json(json) => json.key_json(row, out),
            Encoder::Avro(avro) => avro.key_json(row, out),
            Encoder::Flat(flat) => flat.key_json(row, out),
        }
    }

    /// A row that was inserted, or the new half of a key change.
    pub fn create(&self, event: &Event, after: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Create, event, None, Some(after), out)
    }

    /// A row that was changed. `before` is written if it is whole (REPLICA IDENTITY FULL); a partial old row says nothing
    /// that the key does not say, and Debezium leaves it null.
    pub fn update(&self, event: &Event, before: Option<Row<'_>>, after: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Update, event, before.filter(|row| !row.has_absent()), Some(after), out)
    }

    /// A row that was deleted, or the old half of a key change. `before` is what the source sent of it.
    pub fn delete(&self, event: &Event, before: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Delete, event, Some(before), None, out)
    }

    /// A row that was read by a snapshot.
    pub fn read(&self, event: &Event, after: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        self.envelope(Op::Read, event, None, Some(after), out)
    }

    /// Every row is gone. Its key is null: `out.key` is cleared.
    pub fn truncate(&self, event: &Event, out: &mut RecordBuf) -> Result<()> {
        out.key.clear();
        self.envelope(Op::Truncate, event, None, None, out)
    }

    /// Writes the headers of the tombstone behind a delete into `out.headers`; only records that have headers need it.
    pub fn tombstone(&self, out: &mut RecordBuf) {
        match self {
            Encoder::Json(_) | Encoder::Avro(_) => {}
            Encoder::Flat(flat) => flat.tombstone(&mut out.headers),
        }
    }

    fn envelope(
        &self,
        op: Op,
        event: &Event,
        before: Option<Row<'_>>,
        after: Option<Row<'_>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        match self {
            Encoder::Json(json) => json.envelope(op, event, before, after, out),
            Encoder::Avro(avro) => avro.envelope(op, event, before, after, out),
            Encoder::Flat(flat) => flat.record(op, event, before, after, out),
        }
    }
}

/// Reads the records of one relation version, by its entry in the ledger alone.
pub enum Decoder {
    Json(Box<JsonDecoder>),
    Avro(Box<avro::Decoder>),
}

impl Decoder {
    /// Of JSON.
    pub fn new(relation: Arc<Relation>) -> Decoder {
        Decoder::Json(Box::new(JsonDecoder::new(relation)))
    }

    /// Of the relation's format. In Avro, a relation without a schema that this build can read is RECORD_INVALID.
    pub fn of(relation: Arc<Relation>) -> Result<Decoder> {
        if !relation.modes.is_whole() {
            let found = "its records are written for other consumers: what a sink needs is not in them";
            let hint =
                format!("restart the source with this sink in its connector, then lockstep resync {}", relation.name);
            return Err(invalid(&relation, None, found, hint));
        }
        Ok(match relation.format {
            Format::Json => Decoder::new(relation),
            Format::Avro => Decoder::Avro(Box::new(avro::Decoder::new(relation)?)),
        })
    }

    /// Reads one side of an envelope into `out`, which is cleared first: all columns in the relation's order, or no cell at
    /// all where that side is null (`after` of a delete, `before` of an insert, both of a truncate).
    ///
    /// `absent` and `text` are the record's `ls-absent` and `ls-text`. `ls-absent` speaks of `after` wherever there is one, else of
    /// `before`: the `before` beside an `after` is always whole.
    pub fn row(
        &self,
        value: &[u8],
        side: Side,
        absent: Option<&[u8]>,
        text: Option<&[u8]>,
        out: &mut RowBuf,
    ) -> Result<Op> {
        match self {
            Decoder::Json(json) => json.row(value, side, absent, text, out),
            Decoder::Avro(avro) => avro.row(value, side, absent, text, out),
        }
    }

    /// Reads a key into `out`, which is cleared first: a row over all columns of the relation with only the key's set, the
    /// others absent. An empty key is that of a table without one.
    ///
    /// `text` is the `ls-text` of the record whose `before` is of that key: what the key does not carry exactly stands there for
    /// `before`.
    pub fn key(&self, key: &[u8], text: Option<&[u8]>, out: &mut RowBuf) -> Result<()> {
        match self {
            Decoder::Json(json) => json.key(key, text, out),
            Decoder::Avro(avro) => avro.key(key, text, out),
        }
    }
}

/// Writes the records of the topics that hold no rows.
pub enum EventEncoder {
    Json(Box<JsonEventEncoder>),
    Avro(Box<avro::EventEncoder>),
}

impl EventEncoder {
    /// BEGIN or END of a transaction.
    pub fn transaction(&self, mark: &TransactionMark<'_>, out: &mut RecordBuf) {
        match self {
            EventEncoder::Json(json) => json.transaction(mark, out),
            EventEncoder::Avro(avro) => avro.transaction(mark, out),
        }
    }

    pub fn heartbeat(&self, now_ms: i64, out: &mut RecordBuf) {
        match self {
            EventEncoder::Json(json) => json.heartbeat(now_ms, out),
            EventEncoder::Avro(avro) => avro.heartbeat(now_ms, out),
        }
    }

    /// A message of `pg_logical_emit_message`.
    pub fn message(&self, event: &Event, prefix: &str, content: &[u8], out: &mut RecordBuf) {
        match self {
            EventEncoder::Json(json) => json.message(event, prefix, content, out),
            EventEncoder::Avro(avro) => avro.message(event, prefix, content, out),
        }
    }
}

/// Debezium names a transaction anew with each of its events; what stays the same stands before the colon.
fn transaction_id(xid: u64, lsn: u64) -> String {
    format!("{xid}:{lsn}")
}

/// `source.sequence`: the last commit, null before there was one, and the event, in JSON.
fn sequence(event: &Event) -> String {
    match event.last_commit_lsn {
        None => format!("[null,\"{}\"]", event.lsn.0),
        Some(last) => format!("[\"{}\",\"{}\"]", last.0, event.lsn.0),
    }
}

/// Where an encoder writes; one is enough for all records of a thread.
#[derive(Default, Debug)]
pub struct RecordBuf {
    /// The key; empty for the null key of a table without a key.
    pub key: Vec<u8>,
    /// The envelope.
    pub value: Vec<u8>,
    /// The `ls-text` header; empty when the record needs none.
    pub text: Vec<u8>,
    shell: shell::Shell,
    /// Further headers; only of relation versions that have some ([`crate::relation::Modes::has_headers`]).
    pub headers: Headers,
}

/// Names and values of headers.
pub type Headers = Vec<(String, Option<Vec<u8>>)>;

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

/// A value that the format or the modes can't say.
/// Whether consumers may see something else than the value; its text stands beside.
fn may_be_unsaid(why: Unfit, modes: &Modes) -> bool {
    match why {
        Unfit::Unsayable => true,
        Unfit::NoForm => modes.conversion_failure == ConversionFailure::Null,
        Unfit::NotUtf8 | Unfit::NotOfItsType => false,
    }
}

fn unfit(relation: &Relation, column: usize, why: Unfit) -> Error {
    let found = match why {
        Unfit::NoForm => {
            let found = "the modes of this table have no form for a value: a number that is none as a precise decimal, \
                         or a moment beyond 64 bits of nanoseconds";
            let hint = "write conversion_failure = \"null\" into [wire] of its connector, or choose another mode";
            return invalid(relation, Some(column), found, hint.to_owned());
        }
        Unfit::NotUtf8 => "a value is not valid UTF-8, so it can't be written without loss",
        Unfit::NotOfItsType | Unfit::Unsayable => "a value is not the text that Postgres prints for the column's type",
    };
    // Only a database without an encoding, or a damaged one, sends such bytes although the session asks for UTF-8.
    let hint = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database(); \
                then repair the value with UPDATE";
    invalid(relation, Some(column), found, hint.to_owned())
}

fn no_key(relation: &Relation, column: usize, found: &str) -> Error {
    let hint = format!("ALTER TABLE {} REPLICA IDENTITY FULL", relation.name.quoted());
    invalid(relation, Some(column), found, hint)
}

/// A key column that has no field rides beside the key, and is asked for there like any other.
fn check_skipped_key(relation: &Relation, column: usize, cell: Cell<'_>) -> Result<()> {
    match cell {
        Cell::Null if !relation.columns[column].nullable => Err(no_key(relation, column, "NULL in a key column")),
        Cell::Absent => Err(no_key(relation, column, "the source did not send this key column")),
        Cell::Null | Cell::Text(_) => Ok(()),
    }
}

fn wrong_width(relation: &Relation, columns: usize) -> Error {
    let found = format!("a row of {columns} columns, the relation has {}", relation.columns.len());
    invalid(relation, None, &found, "report it: the relation and the row disagree".to_owned())
}

fn null_key(relation: &Relation, column: usize) -> Error {
    let hint = format!("lockstep resync {}", relation.name);
    invalid(relation, Some(column), "the record's key is null here", hint)
}

#[cfg(test)]
mod shape_tests;
#[cfg(test)]
pub(crate) mod tests;

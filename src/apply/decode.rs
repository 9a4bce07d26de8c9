//! Records as changes: what a record says of its table, by the relation version that its header names.
//!
//! Decoding needs the relation and nothing of the sink, so it runs ahead of what is written ([`super::ahead`]). What a record
//! is worth, and in which order failures count, is the writer's to say: a record that can't be read carries its error along.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::Op;
use crate::codec::{self, Decoder};
use crate::config::{self, Delete};
use crate::error::{Code, Error, Result};
use crate::kafka::consumer::Record;
use crate::kafka::murmur2;
use crate::record::{HEADER_ABSENT, HEADER_TEXT, Header, Kind, Side};
use crate::relation::{Fingerprint, Relation, TableName};
use crate::value::RowBuf;

/// A record of an interval.
pub struct Decoded {
    pub header: Header,
    pub content: Result<Content>,
    /// Of its transaction, where rows go by it: they are marked with it.
    pub commit_time_us: Option<i64>,
    /// What it took in Kafka, for limits.
    pub bytes: usize,
    pub place: Place,
}

/// Where a record stands, and what its key says where it should.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
    /// `None` for a record without a key.
    pub hash: Option<u32>,
}

impl Place {
    /// Whether a topic of so many partitions has the records of this key here.
    pub fn is_of(self, partitions: i32) -> bool {
        self.hash.is_none_or(|hash| murmur2::partition(hash, partitions) == self.partition)
    }
}

/// The bytes of a record that its content is made of.
#[derive(Clone, Copy)]
pub struct Raw<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub absent: Option<&'a [u8]>,
    pub text: Option<&'a [u8]>,
}

impl<'a> Raw<'a> {
    fn of(record: &'a Record<'_>) -> Raw<'a> {
        let (absent, text) = (record.header(HEADER_ABSENT), record.header(HEADER_TEXT));
        Raw { key: record.key(), value: record.value(), absent, text }
    }
}

pub enum Content {
    /// The header says it all, or the sink takes nothing of the table.
    Nothing,
    Change(Op),
    /// The delete half of a key change.
    OldKey(RowBuf),
    /// A row of a chunk.
    Row(RowBuf),
}

struct Known {
    table: TableName,
    keyless: bool,
    decoder: Decoder,
}

/// What a sink is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    Rows,
    /// And when they were deleted.
    RowsAndTimes,
}

impl Needs {
    pub fn of(target: &config::SinkTable) -> Needs {
        match target.delete {
            Delete::Row => Needs::Rows,
            Delete::Soft { .. } => Needs::RowsAndTimes,
        }
    }
}

/// The decoders of the tables that a sink takes.
pub struct Decoders {
    tables: HashMap<TableName, Needs>,
    relations: HashMap<Fingerprint, Arc<Relation>>,
    known: HashMap<Fingerprint, Known>,
}

impl Decoders {
    pub fn new(tables: HashMap<TableName, Needs>) -> Decoders {
        Decoders { tables, relations: HashMap::new(), known: HashMap::new() }
    }

    /// Relations that records may name from here on.
    pub fn learn(&mut self, relations: Vec<Arc<Relation>>) {
        self.relations.extend(relations.into_iter().map(|relation| (relation.fingerprint, relation)));
    }

    pub fn decode(&mut self, record: &Record<'_>, header: Header) -> Decoded {
        let bytes = record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
        let hash = record.key().map(murmur2::hash);
        let place = Place { partition: record.partition(), offset: record.offset(), hash };
        let content = self.content(Raw::of(record), &header);
        let timed = content.and_then(|content| Ok((self.commit_time_us(record, &header, &content)?, content)));
        let (commit_time_us, content) = match timed {
            Ok((time, content)) => (time, Ok(content)),
            Err(error) => (None, Err(error)),
        };
        Decoded { header, content, commit_time_us, bytes, place }
    }

    /// Of what ends rows, in tables that mark them.
    fn commit_time_us(&mut self, record: &Record<'_>, header: &Header, content: &Content) -> Result<Option<i64>> {
        let ends = matches!(content, Content::Change(Op::Delete(_)));
        if !(ends || matches!(header.kind, Kind::KeyChangeCreate | Kind::Truncate)) {
            return Ok(None);
        }
        let Some(table) = self.relations.get(&header.relation).map(|relation| &relation.name) else { return Ok(None) };
        if self.tables.get(table) != Some(&Needs::RowsAndTimes) {
            return Ok(None);
        }
        let Some(known) = self.known(header.relation)? else { return Ok(None) };
        known.decoder.commit_time_us(record.value().ok_or_else(|| half(&known.table))?).map(Some)
    }

    /// What a record says.
    pub fn content(&mut self, record: Raw<'_>, header: &Header) -> Result<Content> {
        if matches!(header.kind, Kind::Tombstone | Kind::Foreign | Kind::Truncate) {
            return Ok(Content::Nothing);
        }
        let Some(known) = self.known(header.relation)? else { return Ok(Content::Nothing) };
        let text = record.text;
        Ok(match header.kind {
            Kind::Change | Kind::KeyChangeCreate => Content::Change(known.change(record, header)?),
            Kind::KeyChangeDelete => {
                let mut old = RowBuf::new();
                known.decoder.key(key_of(record, header)?, text, &mut old)?;
                Content::OldKey(old)
            }
            Kind::ChunkRow => {
                let mut row = RowBuf::new();
                let value = record.value.ok_or_else(|| outside(&known.table))?;
                known.decoder.row(value, Side::After, record.absent, text, &mut row)?;
                Content::Row(row)
            }
            Kind::Tombstone | Kind::Foreign | Kind::Truncate => unreachable!("returned above"),
        })
    }

    /// `None` for a table that the sink does not take, or a relation that nobody told of, which the writer finds out.
    fn known(&mut self, fingerprint: Fingerprint) -> Result<Option<&Known>> {
        if !self.known.contains_key(&fingerprint) {
            let Some(relation) = self.relations.get(&fingerprint) else { return Ok(None) };
            if !self.tables.contains_key(&relation.name) {
                return Ok(None);
            }
            let (table, keyless) = (relation.name.clone(), relation.own_key().is_empty());
            let decoder = Decoder::of(relation.clone())?;
            self.known.insert(fingerprint, Known { table, keyless, decoder });
        }
        Ok(self.known.get(&fingerprint))
    }
}

impl Known {
    fn change(&self, record: Raw<'_>, header: &Header) -> Result<Op> {
        if self.keyless {
            return self.whole(record);
        }
        let Raw { absent, text, .. } = record;
        let value = record.value.ok_or_else(|| half(&self.table))?;
        let mut row = RowBuf::new();
        let op = self.decoder.row(value, Side::After, absent, text, &mut row)?;
        Ok(match op {
            codec::Op::Create | codec::Op::Read => Op::Insert(row),
            codec::Op::Update => Op::Update(row),
            codec::Op::Delete => {
                self.decoder.key(key_of(record, header)?, text, &mut row)?;
                Op::Delete(row)
            }
            codec::Op::Truncate => return Err(half(&self.table)),
        })
    }

    /// A change of a table without a key: its old row is named by all it held.
    fn whole(&self, record: Raw<'_>) -> Result<Op> {
        let Raw { absent, text, .. } = record;
        let value = record.value.ok_or_else(|| half(&self.table))?;
        let (mut old, mut new) = (RowBuf::new(), RowBuf::new());
        let op = self.decoder.row(value, Side::After, absent, text, &mut new)?;
        self.decoder.row(value, Side::Before, absent, text, &mut old)?;
        let (held, holds) = (!old.row().is_empty(), !new.row().is_empty());
        match op {
            codec::Op::Create | codec::Op::Read if holds => Ok(Op::Insert(new)),
            codec::Op::Update if held && holds => Ok(Op::Rekey { old, new }),
            codec::Op::Delete if held => Ok(Op::Delete(old)),
            _ => Err(half(&self.table)),
        }
    }
}

fn key_of<'a>(record: Raw<'a>, header: &Header) -> Result<&'a [u8]> {
    record.key.ok_or_else(|| {
        let message = format!("the record at position {} has no key", header.position);
        Error::halt(Code::RecordInvalid, message, "find out who else writes to the topic")
    })
}

pub fn half(table: &TableName) -> Error {
    half_of(&table.to_string())
}

pub fn half_of(table: &str) -> Error {
    let message = format!("the records of a change of {table} do not belong together");
    Error::halt(Code::RecordInvalid, message, "find out who else writes to the topic")
}

pub fn outside(table: &TableName) -> Error {
    let message = format!("the rows of a chunk of {table} are not the ones that the ledger counts");
    Error::halt(Code::TopicGap, message, "lockstep resync --all")
}

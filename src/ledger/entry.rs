//! Ledger entries: JSON objects `{"v":1,"type":…}`, LSNs as `X/Y`, u64 as decimal strings. Fixed by docs/protocol.md, version 1.
//!
//! Unknown fields are ignored; an unknown type or a higher `v` is refused, never guessed. Entries over 512 KiB are split into
//! parts; an entry stands at its last part.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Code, Error, Result};
use crate::key::KeyRange;
use crate::ledger::loaded::Loaded;
use crate::ledger::signalled::Signalled;
use crate::ledger::taken::Taken;
use crate::ledger::within::Within;
use crate::look::Look;
use crate::lsn::{Lsn, Position, decimal, decimals};
use crate::record::Epoch;
use crate::relation::{Fingerprint, Relation, TableName};

const VERSION: u32 = 1;

/// Larger entries are written in parts: brokers and other readers of the topic often stop at 1 MiB.
pub const PART_BYTES_MAX: usize = 512 * 1024;

/// One entry as it stands in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Offset of the newest base that the writer has read back with no newer claim before it.
    pub base: Option<i64>,
    pub body: Body,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Body {
    Source(SourceEntry),
    Claim(Claim),
    Relation(Box<RelationEntry>),
    Checkpoint(Checkpoint),
    Base(Box<Base>),
    Request(Request),
    Done(Done),
    Restart(Restart),
    Upgraded(Upgraded),
}

/// `intent` stands before the slot is made, `made` after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceEntry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", flatten)]
    pub made: Option<SourceIdentity>,
}

/// The server and slot that the ledger is written for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    #[serde(with = "decimal")]
    pub system_id: u64,
    pub timeline: u32,
    pub database: String,
    pub slot: String,
    /// Where the slot's stream begins.
    pub consistent_point: Lsn,
}

/// A reader's claim: from here on only its checkpoints count. Its epoch is (offset of this entry, nonce).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub instance: Uuid,
    #[serde(with = "decimal")]
    pub nonce: u64,
    pub timeline: u32,
    pub host: String,
    pub version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationEntry {
    #[serde(flatten)]
    pub relation: Relation,
}

/// "The source in the interval (from, to] is exactly these records."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub epoch: Epoch,
    pub from: Position,
    pub to: Position,
    pub closed: Lsn,
    /// Commit time of the last transaction in it, microseconds since 1970; 0 when there is none.
    pub commit_time: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<Chunk>,
    /// Tables under load that a reader which knows no `forget` reads from their beginning; where that is told, this counts
    /// for nobody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub again: Vec<TableName>,
    /// What was loaded and no longer counts as loaded. `None`: nothing, or an older writer's, whose `again` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forget: Option<Vec<Forget>>,
    /// Tables whose records in it can't be told apart by their keys: a truncate, a key change, the first of a relation version.
    /// `None`: an older writer's, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barriers: Option<Vec<TableName>>,
    /// The valid checkpoint before this one; `None` after the origin.
    pub prev: Option<Anchor>,
}

/// Offsets of one partition that a checkpoint counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub topic: String,
    pub partition: i32,
    pub first: i64,
    pub last: i64,
    pub count: u64,
}

/// "This key range now holds exactly these rows."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    pub relation: Fingerprint,
    pub table: TableName,
    pub range: KeyRange,
    /// Position of its first row; an empty chunk takes one too.
    pub at: Position,
    pub rows: u64,
    /// `None`: every sink.
    pub sinks: Option<Vec<String>>,
    /// The request that it answers; `None` when it answers every request before it.
    pub request: Option<Uuid>,
}

impl Chunk {
    pub fn is_for(&self, sink: &str) -> bool {
        self.sinks.as_ref().is_none_or(|names| names.iter().any(|name| name == sink))
    }

    /// The chunk's records have positions from `at` up to here, exclusive.
    pub fn end(&self) -> Position {
        Position::new(self.at.lsn, self.at.ordinal + self.rows.max(1))
    }
}

/// What chunks up to a position say is loaded no longer counts: the next reader reads it again. Sinks go on as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forget {
    /// `None`: every table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<TableName>,
    /// Only the row with this key, which the sinks had to leave out; `None`: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<String>>,
    pub at: Position,
    /// As far as it answers this request; `None`: whichever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Uuid>,
    /// Not of these requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub besides: Vec<Uuid>,
}

impl Forget {
    pub fn is_of(&self, request: Uuid) -> bool {
        self.request.is_none_or(|id| id == request) && !self.besides.contains(&request)
    }
}

/// A valid checkpoint as others refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    pub offset: i64,
    pub epoch: Epoch,
    pub to: Position,
}

/// Everything that a start needs without reading what stands before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// Of the writer; the base counts only as a checkpoint of that epoch does.
    pub epoch: Epoch,
    pub last: Option<LastCheckpoint>,
    pub source: Option<SourceIdentity>,
    pub relations: Vec<Relation>,
    pub topics: BTreeMap<String, TopicIdentity>,
    pub joins: Vec<Join>,
    /// Of the last valid checkpoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub again: Vec<TableName>,
    /// That checkpoint told of what no longer counts by `forget`, which is in `joins`; `again` is for older readers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgets: bool,
    /// What its writer had read back: relations that were told of up to here and are not in it nobody needs any more. `None`:
    /// an older writer, which left none out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<i64>,
    /// The source's tables as the writer last saw them; what differed by then was asked for before this entry.
    #[serde(default)]
    pub catalog: Vec<(TableName, Look)>,
    /// Of the claim in force.
    pub timeline: u32,
    /// The last restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<Restarted>,
    /// What the source's server was before pg_upgrade made it: system ids, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "decimals")]
    pub formerly: Vec<u64>,
    /// The tables that the writer has; `None`: an older writer, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Vec<TableName>>,
    /// The newest signal that became requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signalled: Option<Signalled>,
    /// Who asked for a pause that nobody has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheckpoint {
    #[serde(flatten)]
    pub anchor: Anchor,
    pub closed: Lsn,
    pub commit_time: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicIdentity {
    pub id: Uuid,
    pub partitions: i32,
}

/// A request to load tables at a sink and what has been answered of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Of the request.
    pub offset: i64,
    pub request: Request,
    #[serde(flatten)]
    pub loaded: Loaded,
    pub done: bool,
}

/// Sinks and the command line speak to the reader through these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub id: Uuid,
    pub kind: RequestKind,
    pub sink: String,
    /// For a leave, none: all of them.
    pub tables: Vec<TableName>,
    pub asked_by: String,
    /// For a restart: the ledger that the sinks followed until now, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_ledger: Option<Uuid>,
    /// How the sink takes these tables; of others nothing is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<Taken>,
    /// Only these ranges of the one table's key; `None`: all of the tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<Within>,
    /// The signal at the source that asked for it: its commit, and which of that transaction's signals it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Position>,
}

impl Request {
    /// One that says neither of which ledger nor how.
    pub fn new(
        id: Uuid,
        kind: RequestKind,
        sink: impl Into<String>,
        tables: Vec<TableName>,
        asked_by: impl Into<String>,
    ) -> Request {
        let (sink, asked_by) = (sink.into(), asked_by.into());
        Request { id, kind, sink, tables, asked_by, old_ledger: None, taken: Vec::new(), within: None, signal: None }
    }
}

/// Kinds of later versions (`wait`) are refused by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestKind {
    /// The sink needs the tables' rows: at its first start, or for tables that are new to it.
    Join,
    /// The sink's copy of the tables is to be read again.
    Resync,
    /// Ranges of the sink's copy of one table are. Builds that do not know of ranges take them for nothing or for everything,
    /// so that they refuse it.
    ResyncRange,
    /// The tables' rows are to be in their topics; of no sink.
    Load,
    /// The sink no longer takes the tables: what it had of them is nobody's concern any more.
    Leave,
    /// The reader is to begin anew with a slot of its own, and every table is read again. Of no sink.
    Restart,
    /// No existing rows are to be read until somebody resumes it. Of no sink, like the next two.
    Pause,
    Resume,
    /// Topics are not to have the rows of these tables once more after all.
    Stop,
}

/// The reader has begun anew: what stands before counts no more. The next checkpoint follows this entry as if it were one that
/// ends at the origin. Sinks that stand before it, or that follow the old ledger, go on here and load every table again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Of the writer; the restart counts only as a checkpoint of that epoch does.
    pub epoch: Epoch,
    /// The request that it answers.
    pub request: Uuid,
    /// Closed LSN of the last checkpoint before, if there was one.
    pub old: Option<Lsn>,
    /// Where the new slot's stream begins.
    pub new: Lsn,
    pub old_ledger: Option<Uuid>,
    /// Who asked.
    pub reason: String,
}

/// pg_upgrade made another server of the source's, with the slot, which had been read to its end: the stream goes on there and no
/// row has to be read again. Counts whoever wrote it, if the source is still `from`; whoever reads that one has lost it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The server that was, by its system id.
    #[serde(with = "decimal")]
    pub from: u64,
    /// The one that it is now. Its stream begins at the `consistent_point`; whatever was before it is in the ledger.
    pub to: SourceIdentity,
    /// Of each published table its publication as the new server's catalog has it, where nobody has changed it since.
    pub published: Vec<(TableName, String)>,
}

/// What sinks must know of the last restart, wherever they begin to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarted {
    /// Of the entry.
    pub offset: i64,
    pub epoch: Epoch,
    pub new: Lsn,
    pub old_ledger: Option<Uuid>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub id: Uuid,
    pub epoch: Epoch,
    pub result: String,
}

/// A piece of a long entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub epoch: Epoch,
    #[serde(with = "decimal")]
    pub number: u64,
    pub part: u32,
    pub parts: u32,
    pub base: Option<i64>,
    pub data: String,
}

/// What one Kafka record of the ledger holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Whole(Entry),
    Part(Part),
}

impl Entry {
    pub fn new(base: Option<i64>, body: Body) -> Entry {
        Entry { base, body }
    }

    /// The record values of this entry: one, or several parts when it is long. `number` tells the parts of one writer's
    /// entries apart.
    pub fn encode(&self, epoch: Epoch, number: u64) -> Vec<Vec<u8>> {
        let mut json = serde_json::to_value(&self.body).expect("an entry is plain data");
        let object = json.as_object_mut().expect("a tagged enum is an object");
        object.insert("v".into(), VERSION.into());
        object.insert("base".into(), self.base.into());
        let whole = json.to_string();
        if whole.len() <= PART_BYTES_MAX {
            return vec![whole.into_bytes()];
        }
        let pieces = split_text(&whole, PART_BYTES_MAX);
        let parts = u32::try_from(pieces.len()).expect("an entry fits in memory");
        let encode = |(part, data): (u32, &&str)| {
            let part = Part { epoch, number, part, parts, base: self.base, data: (*data).to_owned() };
            let mut json = serde_json::to_value(part).expect("a part is plain data");
            let object = json.as_object_mut().expect("a struct is an object");
            object.insert("v".into(), VERSION.into());
            object.insert("type".into(), "part".into());
            json.to_string().into_bytes()
        };
        (0..).zip(&pieces).map(encode).collect()
    }

    /// The base that an entry, or a part of one, names.
    pub fn base_of(offset: i64, value: &[u8]) -> Result<Option<i64>> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            base: Option<i64>,
        }
        let head: Head = serde_json::from_slice(value).map_err(|e| unreadable(offset, &e.to_string()))?;
        Ok(head.base)
    }

    /// Reads one record's value.
    pub fn decode(offset: i64, value: &[u8]) -> Result<Piece> {
        #[derive(Deserialize)]
        struct Head {
            v: u32,
            r#type: String,
            #[serde(default)]
            base: Option<i64>,
        }
        let head: Head = serde_json::from_slice(value).map_err(|e| unreadable(offset, &e.to_string()))?;
        if head.v != VERSION {
            return Err(unreadable(offset, &format!("its version is {}, this build reads {VERSION}", head.v)));
        }
        if head.r#type == "part" {
            let part = serde_json::from_slice(value).map_err(|e| unreadable(offset, &e.to_string()))?;
            return Ok(Piece::Part(part));
        }
        let body = serde_json::from_slice(value).map_err(|e| unreadable(offset, &e.to_string()))?;
        Ok(Piece::Whole(Entry { base: head.base, body }))
    }
}

fn unreadable(offset: i64, why: &str) -> Error {
    Error::halt(
        Code::LedgerVersion,
        format!("ledger entry {offset} can't be read: {why}"),
        "run the newest lockstep on every machine of this pipeline, or find out who else writes to the ledger topic",
    )
}

/// Cuts text into pieces of at most `max` bytes at character boundaries.
fn split_text(text: &str, max: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > max {
        let cut = rest.floor_char_boundary(max);
        let (piece, tail) = rest.split_at(cut);
        pieces.push(piece);
        rest = tail;
    }
    pieces.push(rest);
    pieces
}

/// Puts parts together again. Parts of one entry come in order; a newer entry of the same writer or another writer's part
/// drops an unfinished one (its writer died).
#[derive(Debug, Default)]
pub struct Assembler {
    open: Option<(Epoch, u64, u32, String)>,
}

impl Assembler {
    /// The entry that stands at this record, if it is complete here.
    pub fn push(&mut self, offset: i64, piece: Piece) -> Result<Option<Entry>> {
        let part = match piece {
            Piece::Whole(entry) => return Ok(Some(entry)),
            Piece::Part(part) => part,
        };
        let (next, mut text) = match self.open.take() {
            Some((epoch, number, next, text)) if epoch == part.epoch && number == part.number => (next, text),
            _ => (0, String::new()),
        };
        if part.part != next {
            return Ok(None);
        }
        text.push_str(&part.data);
        if part.part + 1 < part.parts {
            self.open = Some((part.epoch, part.number, next + 1, text));
            return Ok(None);
        }
        match Entry::decode(offset, text.as_bytes())? {
            Piece::Whole(entry) => Ok(Some(entry)),
            Piece::Part(_) => Err(unreadable(offset, "a part inside parts")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tables: usize) -> Entry {
        let body = Body::Request(Request {
            id: Uuid::nil(),
            kind: RequestKind::Join,
            sink: "orders".into(),
            tables: (0..tables).map(|i| TableName::new("public", format!("t{i}é"))).collect(),
            asked_by: "test".into(),
            old_ledger: None,
            taken: vec![],
            within: None,
            signal: None,
        });
        Entry::new(Some(7), body)
    }

    const EPOCH: Epoch = Epoch { offset: 1, nonce: u64::MAX };

    #[test]
    fn entries_are_json_that_a_person_can_read() {
        let checkpoint = Entry::new(
            None,
            Body::Checkpoint(Checkpoint {
                epoch: EPOCH,
                from: Position::ORIGIN,
                to: Position::new(Lsn(16), 2),
                closed: Lsn(32),
                commit_time: 5,
                spans: vec![Span { topic: "t".into(), partition: 0, first: 0, last: 2, count: 3 }],
                chunks: vec![],
                again: vec![],
                forget: None,
                barriers: None,
                prev: None,
            }),
        );
        let bytes = checkpoint.encode(EPOCH, 0).remove(0);
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            r#"{"base":null,"closed":"0/20","commit_time":5,"epoch":{"nonce":"18446744073709551615","offset":"1"},"from":{"lsn":"0/0","ordinal":"0"},"prev":null,"spans":[{"count":3,"first":0,"last":2,"partition":0,"topic":"t"}],"to":{"lsn":"0/10","ordinal":"2"},"type":"checkpoint","v":1}"#
        );
        assert_eq!(Entry::decode(0, &bytes).unwrap(), Piece::Whole(checkpoint));
    }

    #[test]
    fn unknown_types_and_versions_are_refused_and_unknown_fields_ignored() {
        let decode = |text: &str| Entry::decode(3, text.as_bytes());
        assert_eq!(decode(r#"{"v":2,"type":"claim"}"#).unwrap_err().code(), Some(Code::LedgerVersion));
        assert_eq!(decode(r#"{"v":1,"type":"surprise"}"#).unwrap_err().code(), Some(Code::LedgerVersion));
        assert_eq!(decode("nonsense").unwrap_err().code(), Some(Code::LedgerVersion));
        let done = r#"{"v":1,"type":"done","new":1,"id":"00000000-0000-0000-0000-000000000000","epoch":{"offset":"1","nonce":"2"},"result":"ok"}"#;
        assert!(matches!(decode(done), Ok(Piece::Whole(Entry { body: Body::Done(_), .. }))));
        let wait = r#"{"v":1,"type":"request","id":"00000000-0000-0000-0000-000000000000","kind":"wait","sink":"s","tables":[],"asked_by":"x"}"#;
        assert_eq!(decode(wait).unwrap_err().code(), Some(Code::LedgerVersion));
    }

    #[test]
    fn long_entries_travel_in_parts_and_a_dead_writers_half_is_dropped() {
        let entry = request(40_000);
        let parts = entry.encode(EPOCH, 4);
        assert!(parts.len() > 1 && parts.iter().all(|p| p.len() < 2 * PART_BYTES_MAX));
        let mut assembler = Assembler::default();
        let mut push = |bytes: &[u8]| assembler.push(0, Entry::decode(0, bytes).unwrap()).unwrap();
        assert_eq!(push(&parts[0]), None);
        let again = entry.encode(Epoch { offset: 9, nonce: 9 }, 0);
        let (last, before) = again.split_last().unwrap();
        assert!(before.iter().all(|part| push(part).is_none()));
        assert_eq!(push(last), Some(entry));
        assert_eq!(push(&parts[1]), None);
    }
}

//! `lockstep.partition_progress`: how far each partition of a sink in row consistency is, and who may move it. Columns are fixed by
//! docs/protocol.md.
//!
//! A row moves in the transaction of its partition's records, by compare-and-set on position, worker epoch and worker. Who owns
//! it says `worker_id`: a worker; nobody (`00000000-…`), then the member to which Kafka assigned the partition takes it; or NULL: the
//! owner of the sink's own row in `lockstep.progress` **holds** it and nobody else may take it. Taking and holding bump the
//! epoch, which waits for the owner's open transaction on the row's lock. So a partition has at most one writer, whatever Kafka has
//! told whom.
//!
//! `lockstep.progress` has `format` 2 while there are such rows: builds that know nothing of them refuse it instead of applying
//! once more what partitions had ahead of it.

use crate::lsn::Position;

/// Of `lockstep.progress` whose partitions may be ahead of it.
pub const FORMAT_PARTITIONED: i32 = 2;

/// The same once rows may be parked ([`super::letters`]): a build that knows nothing of that would write over them.
pub const FORMAT_PARKED: i32 = 3;

/// Version of a partition's columns.
pub const FORMAT: i32 = 1;

/// Of a partition of another program's topic: `next_offset` is where it goes on, and the position is a mark in the source's
/// order ([`crate::apply::foreign`]).
pub const FORMAT_FOREIGN: i32 = 2;

pub const CREATE_TABLE: &str = "CREATE TABLE lockstep.partition_progress (\
    pipeline text, sink text, topic text, topic_id uuid, partition int, next_offset bigint, commit_lsn pg_lsn, \
    ordinal bigint, worker_epoch bigint, worker_id uuid, format int, primary key (pipeline, sink, topic, partition)) \
    WITH (fillfactor = 10)";

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: String,
    pub number: i32,
}

impl std::fmt::Display for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// A row as it was read or written last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRow {
    pub partition: Partition,
    /// Behind the last record that is in, for people and tools.
    pub next_offset: i64,
    /// Every record of the partition up to the end of the interval that ends here is in.
    pub position: Position,
    /// Rises with every change of its owner.
    pub worker_epoch: i64,
}

/// What a partition is to be moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionMove {
    pub next_offset: i64,
    pub position: Position,
}

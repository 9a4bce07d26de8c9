//! What a sink of another program's topics asks of its database beside what every sink does: partitions that begin by themselves,
//! and the columns of its own tables, which say how records without schemas are read.

use uuid::Uuid;

use super::PostgresSink;
use crate::error::{Code, Error, Halt, Result};
use crate::postgres::catalog::{TableFacts, table_facts};
use crate::relation::TableName;
use crate::session::classify;
use crate::sink::Outcome;
use crate::sink::partition_progress::{FORMAT_FOREIGN, Partition};
use crate::sink::refusal::failure;
use crate::sink::sql::SinkTablePlan;

/// A partition as the sink knows it, or as it is to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub partition: Partition,
    pub topic_id: Uuid,
    pub next_offset: i64,
    /// When the newest of its records was committed.
    pub newest_us: Option<i64>,
}

/// A sink of ours under these names; who goes by a ledger has its own idea of what is there.
pub fn goes_by_a_ledger(pipeline: &str, sink: &str) -> Halt {
    let message = format!(
        "sink {sink} goes by a ledger of pipeline {pipeline}, and here its topics are another program's ([topics])"
    );
    let hint = format!(
        "DELETE FROM lockstep.progress WHERE pipeline = '{pipeline}' AND sink = '{sink}' at the sink, once no other process applies that ledger"
    );
    Halt { code: Code::ProgressMismatch, message, facts: vec![], hint }
}

impl PostgresSink {
    /// Makes `lockstep.partition_progress` if it is missing, and `create` allows it.
    pub async fn prepare_foreign(&mut self, create: bool) -> Result<()> {
        if self.progress(create).await?.is_some() {
            return Err(goes_by_a_ledger(&self.name.pipeline, &self.name.sink).into());
        }
        self.create_partitions_table(create).await?;
        self.add_newest(create).await
    }

    /// A column that only such partitions have.
    async fn add_newest(&mut self, create: bool) -> Result<()> {
        const ADD: &str = "ALTER TABLE lockstep.partition_progress ADD COLUMN IF NOT EXISTS newest_us bigint";
        let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute \
                    WHERE attrelid = 'lockstep.partition_progress'::regclass AND attname = 'newest_us' AND NOT attisdropped)";
        let found = self.client.query_one(sql, &[]).await;
        if found.map_err(|error| classify("looking at lockstep.partition_progress", error))?.get(0) {
            return Ok(());
        }
        if !create {
            let message = "create = false and lockstep.partition_progress at the sink has no column newest_us";
            return Err(Error::halt(Code::CreateOff, message, ADD));
        }
        let added = self.client.batch_execute(ADD).await;
        added.map_err(|error| failure("adding a column to lockstep.partition_progress", None, error).into())
    }

    /// Within the open transaction that moves these partitions: when the newest of their records was committed.
    pub async fn note_newest(&mut self, newest: &[(Partition, i64)]) -> Outcome<()> {
        let sql = "UPDATE lockstep.partition_progress p SET newest_us = t.newest \
                     FROM unnest($3::text[], $4::int4[], $5::int8[]) AS t(topic, number, newest) \
                    WHERE p.pipeline = $1 AND p.sink = $2 AND p.topic = t.topic AND p.partition = t.number \
                      AND p.newest_us IS DISTINCT FROM t.newest";
        let topics: Vec<&str> = newest.iter().map(|(of, _)| of.topic.as_str()).collect();
        let numbers: Vec<i32> = newest.iter().map(|(of, _)| of.number).collect();
        let times: Vec<i64> = newest.iter().map(|(_, time)| *time).collect();
        let sql = self.prepared(sql, None).await?;
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let noted = self.client.execute(&sql, &[pipeline, sink, &topics, &numbers, &times]).await;
        noted.map(drop).map_err(|error| {
            self.fail();
            failure("moving the progress of partitions", None, error)
        })
    }

    /// The partitions that the sink knows, in their order.
    pub async fn foreign_partitions(&mut self) -> Result<Vec<Known>> {
        let sql = "SELECT p.topic, p.partition, p.topic_id, p.next_offset, p.format, p.newest_us FROM lockstep.partition_progress p \
                    WHERE p.pipeline = $1 AND p.sink = $2 ORDER BY 1, 2";
        let found = self.client.query(sql, &[&self.name.pipeline, &self.name.sink]).await;
        let found = found.map_err(|error| classify("reading the progress of partitions", error))?;
        self.hear();
        let mut known = Vec::with_capacity(found.len());
        for row in found {
            if row.get::<_, Option<i32>>(4) != Some(FORMAT_FOREIGN) {
                let message =
                    "rows of lockstep.partition_progress are not of another program's topics, or of another version";
                return Err(Error::halt(Code::ProgressMismatch, message, "TABLE lockstep.partition_progress"));
            }
            let partition = Partition { topic: row.get(0), number: row.get(1) };
            known.push(Known { partition, topic_id: row.get(2), next_offset: row.get(3), newest_us: row.get(5) });
        }
        Ok(known)
    }

    /// Partitions of topics that the sink knows nothing of begin here. Those that somebody else was quicker with stay.
    pub async fn begin_foreign(&mut self, partitions: &[Known]) -> Result<()> {
        let topics: Vec<&str> = partitions.iter().map(|known| known.partition.topic.as_str()).collect();
        let numbers: Vec<i32> = partitions.iter().map(|known| known.partition.number).collect();
        let ids: Vec<Uuid> = partitions.iter().map(|known| known.topic_id).collect();
        let offsets: Vec<i64> = partitions.iter().map(|known| known.next_offset).collect();
        // All of a topic or none: its number of partitions is what is known of it from then on.
        let insert = format!(
            "INSERT INTO lockstep.partition_progress (pipeline, sink, topic, topic_id, partition, next_offset, commit_lsn, ordinal, \
                    worker_epoch, worker_id, format) \
             SELECT $1, $2, t.topic, t.id, t.number, t.next, '0/0'::pg_lsn, 0, 0, $7, {FORMAT_FOREIGN} \
               FROM unnest($3::text[], $4::int4[], $5::uuid[], $6::int8[]) AS t(topic, number, id, next) \
              WHERE NOT EXISTS (SELECT FROM lockstep.partition_progress p \
                                 WHERE p.pipeline = $1 AND p.sink = $2 AND p.topic = t.topic) \
             ON CONFLICT DO NOTHING"
        );
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let made =
            self.client.execute(&insert, &[pipeline, sink, &topics, &numbers, &ids, &offsets, &Uuid::nil()]).await;
        made.map(drop).map_err(|error| classify("making the progress of partitions", error))
    }

    /// Tables of the sink as its catalog has them now.
    pub async fn own_tables(&mut self, tables: &[TableName]) -> Result<Vec<Option<TableFacts>>> {
        let facts = table_facts(&*self.client, tables).await;
        self.hear();
        facts
    }
}

impl SinkTablePlan {
    /// For changes that may come again: a row that is to go may be gone, and one that is new may be there.
    #[must_use]
    pub fn repeatable(mut self) -> SinkTablePlan {
        (self.deletes_short, self.direct) = (true, false);
        self
    }
}

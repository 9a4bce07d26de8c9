//! What a sink of another program's topics asks of its database beside what every sink does: partitions that begin by themselves,
//! and the columns of its own tables, which say how records without schemas are read.

use uuid::Uuid;

use super::PostgresSink;
use crate::apply::foreign::goes_by_a_ledger;
use crate::error::{Code, Error, Result};
use crate::postgres::catalog::{TableFacts, table_facts};
use crate::relation::TableName;
use crate::session::classify;
use crate::sink::partition_progress::{FORMAT_FOREIGN, Partition};
use crate::sink::sql::SinkTablePlan;

/// A partition as the sink knows it, or as it is to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub partition: Partition,
    pub topic_id: Uuid,
    pub next_offset: i64,
}

impl PostgresSink {
    /// Makes `lockstep.partition_progress` if it is missing, and `create` allows it.
    pub async fn prepare_foreign(&mut self, create: bool) -> Result<()> {
        if self.progress(create).await?.is_some() {
            return Err(goes_by_a_ledger(&self.name.pipeline, &self.name.sink).into());
        }
        self.create_partitions_table(create).await
    }

    /// The partitions that the sink knows, in their order.
    pub async fn foreign_partitions(&mut self) -> Result<Vec<Known>> {
        let sql = "SELECT p.topic, p.partition, p.topic_id, p.next_offset, p.format FROM lockstep.partition_progress p \
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
            known.push(Known { partition, topic_id: row.get(2), next_offset: row.get(3) });
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
            "INSERT INTO lockstep.partition_progress \
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

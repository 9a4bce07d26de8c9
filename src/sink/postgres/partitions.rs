//! Progress of partitions in a Postgres: [`crate::sink::partition_progress`].
//!
//! Whoever locks several rows does so in their order, so that a member, its successor and the sink's owner wait for each other
//! and not in a circle.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{PostgresSink, Transaction};
use crate::config;
use crate::error::{Code, Error, Halt, Result};
use crate::lsn::Position;
use crate::relation::quote_identifier;
use crate::session::classify;
use crate::sink::partition_progress::{
    CREATE_TABLE, FORMAT, FORMAT_PARKED, FORMAT_PARTITIONED, Partition, PartitionMove, PartitionRow,
};
use crate::sink::progress::{self, GROUP, Owner, ProgressRow};
use crate::sink::refusal::failure;
use crate::sink::{Failure, Outcome};

/// How long a row's owner may go on with its transaction once somebody else is to have the row. It has lost it already, so that
/// only a worker that is frozen, or cut off, takes so long; then its backend is ended.
const OWNER_PATIENCE: Duration = Duration::from_secs(3);

const NAMED: &str = "p.pipeline = $1 AND p.sink = $2";
const COLUMNS: &str = "p.topic, p.partition, p.next_offset, p.commit_lsn::text, p.ordinal, p.worker_epoch";
const AMONG: &str = "(p.topic, p.partition) IN (SELECT * FROM unnest($3::text[], $4::int4[]))";

/// Of the connection of one member, which nobody else has ever had.
pub(super) fn application_name(worker: Uuid) -> String {
    format!("lockstep:rows:{worker}")
}

fn parse(row: &Row) -> Result<PartitionRow> {
    let lsn: String = row.get(3);
    let lsn = lsn.parse().map_err(|_| {
        let message = "a row of lockstep.partition_progress has no position";
        Error::halt(Code::ProgressMismatch, message, "TABLE lockstep.partition_progress")
    })?;
    let ordinal: i64 = row.get(4);
    Ok(PartitionRow {
        partition: Partition { topic: row.get(0), number: row.get(1) },
        next_offset: row.get(2),
        position: Position::new(lsn, ordinal.cast_unsigned()),
        worker_epoch: row.get(5),
    })
}

fn is_partitioned(format: i32) -> bool {
    matches!(format, FORMAT_PARTITIONED | FORMAT_PARKED)
}

fn rows(found: &[Row]) -> Result<Vec<PartitionRow>> {
    found.iter().map(parse).collect()
}

fn split(partitions: &[Partition]) -> (Vec<&str>, Vec<i32>) {
    partitions.iter().map(|partition| (partition.topic.as_str(), partition.number)).unzip()
}

impl PostgresSink {
    /// The connection of a member of the sink's group, which is told from every other one by its `worker`.
    pub(super) async fn connect_member(sink: &config::Sink, pipeline: &str, worker: Uuid) -> Result<PostgresSink> {
        let member = PostgresSink::connect(sink, pipeline, worker).await?;
        let name = format!("SET application_name = '{}'", application_name(worker));
        member.client.batch_execute(&name).await.map_err(|error| classify("naming the connection", error))?;
        Ok(member)
    }

    pub(super) async fn is_partitioned(&mut self) -> Result<bool> {
        let sql = "SELECT p.format FROM lockstep.progress p WHERE p.pipeline = $1 AND p.sink = $2 AND p.\"group\" = $3";
        let found = self.client.query_opt(sql, &[&self.name.pipeline, &self.name.sink, &GROUP]).await;
        let found = found.map_err(|error| classify("reading the sink's progress", error))?;
        Ok(found.is_some_and(|row| row.get::<_, Option<i32>>(0).is_some_and(is_partitioned)))
    }

    pub(super) async fn create_partitions_table(&mut self, create: bool) -> Result<()> {
        self.prepare_table("lockstep.partition_progress", CREATE_TABLE, create).await
    }

    /// Makes a table of ours beside the progress row's if it is missing and `create` allows it.
    pub(super) async fn prepare_table(&mut self, name: &str, statement: &str, create: bool) -> Result<()> {
        let sql = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
        let found = self.client.query_one(sql, &[&name]).await;
        if found.map_err(|error| classify("looking for a table of Lockstep's", error))?.get(0) {
            return Ok(());
        }
        if create {
            let made = self.client.batch_execute(statement).await;
            return made.map_err(|error| self.not_made(name, error));
        }
        let role = quote_identifier(&self.name.role);
        let halt = Halt {
            code: Code::CreateOff,
            message: format!("create = false and the sink has no {name}"),
            facts: vec![
                format!("{statement};"),
                format!("and of another role: GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {role};"),
            ],
            hint: "run these statements at the sink".into(),
        };
        Err(halt.into())
    }

    /// Another worker may have made it at the same moment, which is right after a pause.
    fn not_made(&self, name: &str, error: tokio_postgres::Error) -> Error {
        match error.code().map(|code| code.code()) {
            Some("23505" | "42P07") => Error::retry(format!("making {name}, at once with another worker"), error),
            Some("42501") => Error::halt(
                Code::NoRight,
                format!("the role may not make {name} at the sink"),
                format!("GRANT CREATE ON SCHEMA lockstep TO {}", quote_identifier(&self.name.role)),
            ),
            _ => failure(&format!("making {name}"), None, error).into(),
        }
    }

    pub(super) async fn partitions(&mut self) -> Result<Vec<PartitionRow>> {
        let sql = format!("SELECT {COLUMNS} FROM lockstep.partition_progress p WHERE {NAMED} ORDER BY 1, 2");
        let found = self.client.query(&sql, &[&self.name.pipeline, &self.name.sink]).await;
        let found = found.map_err(|error| classify("reading the progress of partitions", error))?;
        self.hear();
        rows(&found)
    }

    /// Runs statements in one transaction that waits for a row's owner only so long; ends the owners' backends where that is
    /// not enough, and says to try again.
    async fn with_patience<T>(&mut self, work: impl AsyncFnOnce(&mut PostgresSink) -> Outcome<T>) -> Outcome<T> {
        assert_eq!(self.transaction, Transaction::None, "one transaction at a time");
        let begin = format!("BEGIN; SET LOCAL lock_timeout = '{}ms'", OWNER_PATIENCE.as_millis());
        self.transaction = Transaction::Failed;
        let begun = self.client.batch_execute(&begin).await;
        begun.map_err(|error| failure("opening a transaction at the sink", None, error))?;
        let outcome = work(self).await;
        if outcome.is_ok() {
            let committed = self.client.batch_execute("COMMIT").await;
            committed.map_err(|error| failure("committing at the sink", None, error))?;
            self.transaction = Transaction::None;
            self.hear();
            return outcome;
        }
        self.rollback().await?;
        outcome
    }

    /// Ends the backends of members that own rows of this sink and have said nothing for a lease, but for this one's.
    async fn evict_members(&mut self) -> Result<()> {
        let sql = format!(
            "SELECT count(pg_catalog.pg_terminate_backend(a.pid)) FROM pg_catalog.pg_stat_activity a \
              WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.application_name IN \
                    (SELECT 'lockstep:rows:' || p.worker_id FROM lockstep.partition_progress p WHERE {NAMED} AND p.worker_id IS NOT NULL) \
                AND a.state LIKE 'idle in transaction%' \
                AND a.state_change < pg_catalog.clock_timestamp() - $3::float8 * interval '1 second'"
        );
        let lease = self.lease_timeout.as_secs_f64();
        let ended = self.client.query_one(&sql, &[&self.name.pipeline, &self.name.sink, &lease]).await;
        let ended: i64 = ended.map_err(|error| classify("ending a worker that is silent", error))?.get(0);
        if ended > 0 {
            tracing::warn!(
                sink = self.name.sink,
                ended,
                "partitions' last owners are silent in their transactions: ended"
            );
        }
        Ok(())
    }

    async fn patiently<T>(&mut self, doing: &str, result: std::result::Result<T, tokio_postgres::Error>) -> Outcome<T> {
        match result {
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                self.rollback().await?;
                self.evict_members().await?;
                Err(failure(doing, None, error))
            }
            other => other.map_err(|error| failure(doing, None, error)),
        }
    }

    /// Locks the sink's own row, which this worker must own; gives its format.
    async fn lock_progress(&mut self, owned: &ProgressRow) -> Outcome<i32> {
        let sql = "SELECT p.format FROM lockstep.progress p WHERE p.pipeline = $1 AND p.sink = $2 AND p.\"group\" = $3 \
                   AND p.worker_epoch = $4 AND p.worker_id = $5 FOR UPDATE";
        let owner = &owned.owner;
        let (epoch, worker) = (owner.worker_epoch, owner.worker_id);
        let found = self.client.query_opt(sql, &[&self.name.pipeline, &self.name.sink, &GROUP, &epoch, &worker]).await;
        let found = found.map_err(|error| failure("locking the sink's progress", None, error))?;
        found.map(|row| row.get(0)).ok_or(Failure::OwnershipLost)
    }

    async fn lock_partitions(&mut self) -> Outcome<()> {
        let sql =
            format!("SELECT FROM lockstep.partition_progress p WHERE {NAMED} ORDER BY p.topic, p.partition FOR UPDATE");
        let locked = self.client.query(&sql, &[&self.name.pipeline, &self.name.sink]).await;
        self.patiently("holding the partitions", locked).await.map(drop)
    }

    async fn set_format(&mut self, format: i32) -> Outcome<()> {
        let sql =
            "UPDATE lockstep.progress p SET format = $4 WHERE p.pipeline = $1 AND p.sink = $2 AND p.\"group\" = $3";
        let set = self.client.execute(sql, &[&self.name.pipeline, &self.name.sink, &GROUP, &format]).await;
        set.map(drop).map_err(|error| failure("writing the sink's progress", None, error))
    }

    async fn delete_partitions(&mut self) -> Outcome<()> {
        let sql = format!("DELETE FROM lockstep.partition_progress p WHERE {NAMED}");
        let gone = self.client.execute(&sql, &[&self.name.pipeline, &self.name.sink]).await;
        gone.map(drop).map_err(|error| failure("deleting the progress of partitions", None, error))
    }

    pub(super) async fn hold_partitions(
        &mut self,
        owned: &ProgressRow,
        known: &[(Partition, Uuid)],
        create: bool,
    ) -> Outcome<Vec<PartitionRow>> {
        self.create_partitions_table(create).await?;
        self.with_patience(async |sink| {
            let format = sink.lock_progress(owned).await?;
            sink.lock_partitions().await?;
            if !is_partitioned(format) {
                // What rows there are is of a time that the sink's row knows nothing of.
                sink.delete_partitions().await?;
            }
            let now = if sink.has_letters().await? { FORMAT_PARKED } else { FORMAT_PARTITIONED };
            if format != now {
                sink.set_format(now).await?;
            }
            let (names, ids): (Vec<Partition>, Vec<Uuid>) = known.iter().cloned().unzip();
            let (topics, numbers) = split(&names);
            // Of a topic that gets more of them none is added: as long as members judge by how many there were at first, every
            // key that may have moved is left to the owner, wherever its records are.
            let insert = format!(
                "INSERT INTO lockstep.partition_progress \
                 SELECT $1, $2, t.topic, t.id, t.number, 0, $6::text::pg_lsn, $7, 0, NULL, {FORMAT} \
                   FROM unnest($3::text[], $4::int4[], $5::uuid[]) AS t(topic, number, id) \
                  WHERE NOT EXISTS (SELECT FROM lockstep.partition_progress p WHERE {NAMED} AND p.topic = t.topic)"
            );
            let position = owned.standing.position;
            let (lsn, ordinal) = (position.lsn.to_string(), position.ordinal.cast_signed());
            let (pipeline, name) = (&sink.name.pipeline, &sink.name.sink);
            let made = sink.client.execute(&insert, &[pipeline, name, &topics, &numbers, &ids, &lsn, &ordinal]).await;
            made.map_err(|error| failure("making the progress of partitions", None, error))?;
            let hold = format!(
                "UPDATE lockstep.partition_progress p SET worker_epoch = p.worker_epoch + 1, worker_id = NULL \
                  WHERE {NAMED} RETURNING {COLUMNS}"
            );
            let held = sink.client.query(&hold, &[pipeline, name]).await;
            Ok(rows(&held.map_err(|error| failure("holding the partitions", None, error))?)?)
        })
        .await
    }

    pub(super) async fn move_partitions(&mut self, to: Position, next: &[(Partition, i64)]) -> Outcome<()> {
        self.assert_open();
        let (names, offsets): (Vec<Partition>, Vec<i64>) = next.iter().cloned().unzip();
        let (topics, numbers) = split(&names);
        let sql = format!(
            "UPDATE lockstep.partition_progress p SET commit_lsn = $3::text::pg_lsn, ordinal = $4, \
                    next_offset = coalesce((SELECT max(t.next) FROM unnest($5::text[], $6::int4[], $7::int8[]) AS t(topic, number, next) \
                                             WHERE t.topic = p.topic AND t.number = p.partition), p.next_offset) \
              WHERE {NAMED} AND p.worker_id IS NULL AND (p.commit_lsn, p.ordinal) < ($3::text::pg_lsn, $4)"
        );
        let (lsn, ordinal) = (to.lsn.to_string(), to.ordinal.cast_signed());
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        let moved = self.client.execute(&sql, &[pipeline, sink, &lsn, &ordinal, &topics, &numbers, &offsets]).await;
        moved.map(drop).map_err(|error| {
            let failed = failure("moving the progress of partitions", None, error);
            self.transaction = Transaction::Failed;
            failed
        })
    }

    pub(super) async fn release_partitions(&mut self, owned: &ProgressRow) -> Outcome<()> {
        self.with_patience(async |sink| {
            sink.lock_progress(owned).await?;
            let sql = format!(
                "UPDATE lockstep.partition_progress p SET worker_id = $3 WHERE {NAMED} AND p.worker_id IS NULL"
            );
            let freed = sink.client.execute(&sql, &[&sink.name.pipeline, &sink.name.sink, &Uuid::nil()]).await;
            freed.map(drop).map_err(|error| failure("releasing the partitions", None, error))
        })
        .await
    }

    pub(super) async fn forget_partitions(&mut self, owned: &ProgressRow) -> Outcome<()> {
        self.with_patience(async |sink| {
            sink.lock_progress(owned).await?;
            sink.lock_partitions().await?;
            sink.delete_partitions().await?;
            sink.set_format(progress::FORMAT).await
        })
        .await
    }

    /// Within the open transaction, which goes on with another history of the source.
    pub(super) async fn reset_partitions(&mut self, to: Position) -> Outcome<()> {
        self.assert_open();
        let found =
            self.client.query_one("SELECT pg_catalog.to_regclass('lockstep.partition_progress') IS NOT NULL", &[]);
        if !found
            .await
            .map_err(|error| failure("looking for lockstep.partition_progress", None, error))?
            .get::<_, bool>(0)
        {
            return Ok(());
        }
        self.lock_partitions().await?;
        let sql = format!(
            "UPDATE lockstep.partition_progress p SET commit_lsn = $3::text::pg_lsn, ordinal = $4, \
                    worker_epoch = p.worker_epoch + 1, worker_id = NULL WHERE {NAMED}"
        );
        let (lsn, ordinal) = (to.lsn.to_string(), to.ordinal.cast_signed());
        let moved = self.client.execute(&sql, &[&self.name.pipeline, &self.name.sink, &lsn, &ordinal]).await;
        moved.map(drop).map_err(|error| failure("moving the progress of partitions", None, error))
    }

    pub(super) async fn take_partitions(&mut self, wanted: &[Partition]) -> Outcome<Vec<PartitionRow>> {
        let worker = self.worker;
        self.with_patience(async |sink| {
            let (topics, numbers) = split(wanted);
            let (pipeline, name) = (sink.name.pipeline.clone(), sink.name.sink.clone());
            let lock = format!(
                "SELECT FROM lockstep.partition_progress p WHERE {NAMED} AND {AMONG} AND p.worker_id IS NOT NULL \
                  ORDER BY p.topic, p.partition FOR UPDATE"
            );
            let locked = sink.client.query(&lock, &[&pipeline, &name, &topics, &numbers]).await;
            sink.patiently("taking partitions", locked).await?;
            let take = format!(
                "UPDATE lockstep.partition_progress p SET worker_epoch = p.worker_epoch + 1, worker_id = $5 \
                  WHERE {NAMED} AND {AMONG} AND p.worker_id IS NOT NULL RETURNING {COLUMNS}"
            );
            let taken = sink.client.query(&take, &[&pipeline, &name, &topics, &numbers, &worker]).await;
            Ok(rows(&taken.map_err(|error| failure("taking partitions", None, error))?)?)
        })
        .await
    }

    pub(super) async fn begin_partitions(&mut self, moves: &[(PartitionRow, PartitionMove)]) -> Outcome<()> {
        assert_eq!(self.transaction, Transaction::None, "one transaction at a time");
        let sql = format!(
            "UPDATE lockstep.partition_progress p SET next_offset = t.next, commit_lsn = t.lsn::pg_lsn, ordinal = t.ordinal \
               FROM unnest($4::text[], $5::int4[], $6::int8[], $7::text[], $8::int8[], $9::int8[], $10::text[], $11::int8[]) \
                    AS t(topic, number, epoch, from_lsn, from_ordinal, next, lsn, ordinal) \
              WHERE {NAMED} AND p.worker_id = $3 AND p.topic = t.topic AND p.partition = t.number AND p.worker_epoch = t.epoch \
                AND p.commit_lsn = t.from_lsn::pg_lsn AND p.ordinal = t.from_ordinal AND {}",
            progress::BEGUN
        );
        let lock = format!(
            "SELECT FROM lockstep.partition_progress p WHERE {NAMED} AND {AMONG} ORDER BY p.topic, p.partition FOR UPDATE"
        );
        let (lock, cas) = (self.prepared(&lock, None).await?, self.prepared(&sql, None).await?);
        let names: Vec<Partition> = moves.iter().map(|(row, _)| row.partition.clone()).collect();
        let (topics, numbers) = split(&names);
        let epochs: Vec<i64> = moves.iter().map(|(row, _)| row.worker_epoch).collect();
        let place = |position: Position| (position.lsn.to_string(), position.ordinal.cast_signed());
        let (from, from_ordinals): (Vec<String>, Vec<i64>) = moves.iter().map(|(row, _)| place(row.position)).unzip();
        let (to, to_ordinals): (Vec<String>, Vec<i64>) = moves.iter().map(|(_, to)| place(to.position)).unzip();
        let next: Vec<i64> = moves.iter().map(|(_, to)| to.next_offset).collect();
        let (pipeline, sink) = (&self.name.pipeline, &self.name.sink);
        self.transaction = Transaction::Failed;
        // Sent together: one round trip.
        let (begun, locked, moved) = futures_util::future::join3(
            self.client.batch_execute(progress::BEGIN),
            self.client.query(&lock, &[pipeline, sink, &topics, &numbers]),
            self.client.execute(
                &cas,
                &[
                    pipeline,
                    sink,
                    &self.worker,
                    &topics,
                    &numbers,
                    &epochs,
                    &from,
                    &from_ordinals,
                    &next,
                    &to,
                    &to_ordinals,
                ],
            ),
        )
        .await;
        let doing = "moving the progress of partitions";
        begun.map_err(|error| failure("opening a transaction at the sink", None, error))?;
        locked.map_err(|error| failure(doing, None, error))?;
        if moved.map_err(|error| failure(doing, None, error))? == moves.len() as u64 {
            self.transaction = Transaction::Open;
            self.hear();
            return Ok(());
        }
        self.rollback().await?;
        Err(Failure::OwnershipLost)
    }

    /// This connection's backend, for who watches it from beside.
    pub(super) async fn member(&mut self) -> Result<Owner> {
        let sql = "SELECT a.pid, (extract(epoch FROM a.backend_start) * 1000000)::int8 FROM pg_catalog.pg_stat_activity a \
                   WHERE a.pid = pg_catalog.pg_backend_pid()";
        let row =
            self.client.query_one(sql, &[]).await.map_err(|error| classify("asking for our own backend", error))?;
        let (worker_id, backend_pid, backend_start_us) = (self.worker, row.get(0), row.get(1));
        Ok(Owner { worker_epoch: 0, worker_id, backend_pid, backend_start_us })
    }
}

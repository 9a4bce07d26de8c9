//! One process's share of a sink of another program's topics: the loop.
//!
//! Records are gathered over its partitions up to a limit, folded per table, and written in one transaction that begins with
//! the compare-and-set of the partitions' rows. What stands in the way of folding (other columns than before, a row that moves
//! over another) ends the batch, not the order. A record that can't be taken ends it too: what came before is written first, then it is
//! the error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::latest::Latest;
use super::mark::{Verdict, judge};
use super::read::{At, Raw, Reader};
use super::tables::{Shape, Table, Version};
use super::worker_id;
use crate::apply::driver::count;
use crate::apply::start::taken;
use crate::change::Key;
use crate::codec::foreign::{Envelope, Placeholders, Snapshot};
use crate::codec::{HEADER_NEW_KEY, HEADER_OLD_KEY, Op};
use crate::config::{self, Config, Start, Topics};
use crate::error::{Code, Error, Halt, Result};
use crate::http::metrics::SinkMetrics;
use crate::kafka::consumer::{Part, Spans};
use crate::kafka::members::{self, Member as Membership};
use crate::kafka::topics;
use crate::lsn::Position;
use crate::sink::partition_progress::{Partition, PartitionMove, PartitionRow};
use crate::sink::postgres::PostgresSink;
use crate::sink::postgres::foreign::Known;
use crate::sink::{Counts, Failure, Sink};
use crate::status::{PartitionStatus, SinkReporter, State};

/// Records of one transaction, and their bytes: a partition that changes hands waits for its end.
const TRANSACTION_RECORDS_MAX: usize = 5_000;
const TRANSACTION_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Of one partition before the next one's turn.
const TURN_RECORDS: usize = 500;
/// What is fetched ahead.
const FETCH_BYTES: usize = 32 * 1024 * 1024;
/// The loop looks around at least this often.
const TICK: Duration = Duration::from_millis(20);
/// How often topics are asked whether they are there by now, and still what they were.
const TOPICS_INTERVAL: Duration = Duration::from_secs(5);
/// How often partitions that are not this process's yet are tried, and ends of partitions asked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const LAG_INTERVAL: Duration = Duration::from_secs(2);
/// So long the delete of a key change waits for its create, which stands right behind it.
const HELD_MAX: Duration = Duration::from_secs(30);
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
const LAG_TIMEOUT: Duration = Duration::from_secs(1);

/// A partition that is this process's.
struct Lane {
    row: PartitionRow,
    part: Part,
    table: usize,
    /// Behind what is gathered.
    mark: Position,
    /// When the newest of that was committed.
    newest_us: Option<i64>,
    next: i64,
    /// The delete of a key change, whose create follows.
    held: Option<(Raw, Instant)>,
    behind: u64,
}

/// Changes of a table that are not written yet.
struct Pending {
    version: Arc<Version>,
    latest: Latest,
}

/// What became of a record.
enum Taken {
    Done,
    /// What is gathered is to be written first.
    Cut,
}

pub(super) struct Worker {
    pub sink: PostgresSink,
    config: Arc<Config>,
    options: config::Sink,
    topics: Topics,
    unsent: Placeholders,
    tables: Vec<Table>,
    reader: Reader,
    spans: Spans,
    membership: Membership,
    /// How many partitions each topic has that is there.
    partitions: BTreeMap<String, i32>,
    asked: Option<Instant>,
    lanes: BTreeMap<Partition, Lane>,
    looked: Option<Instant>,
    measured: Option<Instant>,
    pending: BTreeMap<usize, Pending>,
    records: usize,
    bytes: usize,
    dropped: u64,
    /// Which partition is first.
    turn: usize,
    /// A record that waits for what is gathered to be written.
    again: Option<(Partition, Raw)>,
    failed: Option<Error>,
    reporter: SinkReporter,
    metrics: SinkMetrics,
}

impl Worker {
    pub async fn start(
        config: Arc<Config>,
        options: config::Sink,
        (reporter, metrics): (SinkReporter, SinkMetrics),
    ) -> Result<Worker> {
        let mut sink = PostgresSink::connect_member(&options, &config.name, worker_id()).await?;
        sink.prepare_foreign(config.create).await?;
        let topics = config.topics.clone().expect("asked of pipelines of another program's topics");
        let targets = taken(&config, &options.name);
        let of = |table: &config::Table| {
            let target = targets.get(&table.name)?.clone();
            Some(Table::new(table.name.clone(), table.topic.clone(), target))
        };
        let tables: Vec<Table> = config.tables.iter().filter_map(of).collect();
        let names: BTreeSet<String> = tables.iter().map(|table| table.topic.clone()).collect();
        let group = members::group(&config.name, &options.name);
        let membership = Membership::open(&config.kafka, &group, &names, options.lease_timeout)?;
        let spans = Spans::committed(&config.kafka, FETCH_BYTES)?;
        let mut worker = Worker {
            unsent: Placeholders::new(&topics.modes.placeholder),
            sink,
            config,
            options,
            topics,
            tables,
            reader: Reader::default(),
            spans,
            membership,
            partitions: BTreeMap::new(),
            asked: None,
            lanes: BTreeMap::new(),
            looked: None,
            measured: None,
            pending: BTreeMap::new(),
            records: 0,
            bytes: 0,
            dropped: 0,
            turn: 0,
            again: None,
            failed: None,
            reporter,
            metrics,
        };
        worker.ask_for_topics().await?;
        Ok(worker)
    }

    pub async fn run(&mut self, stop: &CancellationToken) -> Result<()> {
        while !stop.is_cancelled() {
            self.sink.keep_lease().await?;
            self.ask_for_topics().await?;
            self.look().await?;
            self.release_old().await?;
            self.gather().await;
            let idle = self.records == 0 && self.again.is_none();
            self.write().await?;
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            self.report()?;
            if idle {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.membership.changed() => self.looked = None,
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        }
        Ok(())
    }

    /// Topics that came, and whether the others are what they were.
    async fn ask_for_topics(&mut self) -> Result<()> {
        if self.asked.is_some_and(|asked| asked.elapsed() < TOPICS_INTERVAL) {
            return Ok(());
        }
        let config = self.config.clone();
        let names: Vec<&str> = self.tables.iter().map(|table| table.topic.as_str()).collect();
        let facts = self.sink.meanwhile(topics::describe(&config.kafka, &names)).await?;
        let mut known = self.sink.foreign_partitions().await?;
        for facts in facts.into_iter().flatten() {
            if !known.iter().any(|known| known.partition.topic == facts.name) {
                let mut begin = Vec::new();
                for number in 0..facts.partitions {
                    let (low, _) = self.spans.watermarks(&facts.name, number, QUERY_TIMEOUT)?;
                    let partition = Partition { topic: facts.name.clone(), number };
                    check_beginning(&partition, low, self.topics.start)?;
                    begin.push(Known { partition, topic_id: facts.id, next_offset: low, newest_us: None });
                }
                self.sink.begin_foreign(&begin).await?;
                known = self.sink.foreign_partitions().await?;
            }
            let of_topic: Vec<&Known> = known.iter().filter(|known| known.partition.topic == facts.name).collect();
            self.check_topic(&facts, &of_topic)?;
            self.partitions.insert(facts.name, facts.partitions);
        }
        self.asked = Some(Instant::now());
        Ok(())
    }

    fn check_topic(&self, facts: &topics::TopicFacts, known: &[&Known]) -> Result<()> {
        let name = &facts.name;
        let forget = format!(
            "DELETE FROM lockstep.partition_progress WHERE pipeline = '{}' AND sink = '{}' AND topic = '{name}' at the sink while no \
             process of it runs",
            self.config.name, self.options.name
        );
        if known.iter().any(|known| known.topic_id != facts.id) {
            let message = format!("topic {name} was deleted and made again since the sink read it");
            let hint = format!(
                "{forget}, and have Debezium read the table again: what was not applied of the old topic is gone"
            );
            return Err(Error::halt(Code::TopicRecreated, message, hint));
        }
        if known.len() != usize::try_from(facts.partitions).unwrap_or(0) {
            let message = format!(
                "topic {name} had {} partitions and has {} now: keys have changed their partitions, so that their order is lost",
                known.len(),
                facts.partitions
            );
            let hint = format!(
                "delete the topic, {forget}, empty the table there, and have Debezium read it again: records of a key stand in two partitions"
            );
            return Err(Error::halt(Code::ForeignTopic, message, hint));
        }
        Ok(())
    }

    /// Gives up what is others' turn and takes what is ours. Between transactions: nothing is gathered.
    async fn look(&mut self) -> Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_INTERVAL) || self.again.is_some() {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let assigned = self.membership.assigned();
        let assigned: BTreeSet<Partition> =
            assigned.into_iter().map(|(topic, number)| Partition { topic, number }).collect();
        let gone: Vec<Partition> = self.lanes.keys().filter(|mine| !assigned.contains(*mine)).cloned().collect();
        for partition in gone {
            if let Some(lane) = self.lanes.remove(&partition) {
                self.spans.release(lane.part)?;
            }
        }
        let is_there = |partition: &&Partition| self.partitions.contains_key(&partition.topic);
        let wanted = assigned.iter().filter(is_there).filter(|partition| !self.lanes.contains_key(*partition));
        let wanted: Vec<Partition> = wanted.cloned().collect();
        if !wanted.is_empty() {
            match self.sink.take_partitions(&wanted).await {
                Ok(rows) => {
                    // Nobody else moves them from here on.
                    let known = self.sink.foreign_partitions().await?;
                    rows.into_iter().try_for_each(|row| self.open(row, &known))?;
                }
                // Their last owner sat in a transaction, which is ended by now. Where it is the connection, the next call says so.
                Err(failure) => tracing::warn!(sink = self.options.name, "taking partitions: {}", Error::from(failure)),
            }
        }
        Ok(())
    }

    fn open(&mut self, row: PartitionRow, known: &[Known]) -> Result<()> {
        let Some(table) = self.tables.iter().position(|table| table.topic == row.partition.topic) else {
            return Ok(());
        };
        let part = self.spans.ensure(&row.partition.topic, row.partition.number, row.next_offset)?;
        let (mark, next) = (row.position, row.next_offset);
        let newest_us = known.iter().find(|known| known.partition == row.partition).and_then(|known| known.newest_us);
        let lane = Lane { row, part, table, mark, newest_us, next, held: None, behind: 0 };
        self.lanes.insert(lane.row.partition.clone(), lane);
        Ok(())
    }

    /// Folds records until there are enough of them, none is left, or one has to wait or fails.
    async fn gather(&mut self) {
        if let Some((partition, raw)) = self.again.take()
            && self.lanes.contains_key(&partition)
            && !self.step(&partition, raw).await
        {
            return;
        }
        let mut mine: Vec<Partition> = self.lanes.keys().cloned().collect();
        if !mine.is_empty() {
            // Each is first once: a transaction is full before all had their turn, where there is much.
            self.turn = (self.turn + 1) % mine.len();
            mine.rotate_left(self.turn);
        }
        loop {
            let mut any = false;
            for partition in &mine {
                for _ in 0..TURN_RECORDS {
                    if self.is_full() {
                        return;
                    }
                    match self.poll(partition) {
                        Ok(Some(raw)) => {
                            any = true;
                            if !self.step(partition, raw).await {
                                return;
                            }
                        }
                        Ok(None) => break,
                        Err(error) => {
                            self.failed = Some(error);
                            return;
                        }
                    }
                }
            }
            if !any {
                return;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.records >= TRANSACTION_RECORDS_MAX || self.bytes >= TRANSACTION_BYTES_MAX
    }

    fn poll(&self, partition: &Partition) -> Result<Option<Raw>> {
        let record = self.spans.poll(self.lanes[partition].part, Duration::ZERO)?;
        Ok(record.map(|record| Raw {
            offset: record.offset(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            moves_away: record.header(HEADER_NEW_KEY).is_some(),
            came: record.header(HEADER_OLD_KEY).is_some(),
        }))
    }

    /// Whether to go on gathering.
    async fn step(&mut self, partition: &Partition, raw: Raw) -> bool {
        let (offset, bytes) = (raw.offset, raw.bytes());
        match self.take(partition, &raw).await {
            Ok(Taken::Done) => {
                let lane = self.lane(partition);
                if raw.moves_away && lane.held.as_ref().is_some_and(|(held, _)| held.offset == offset) {
                    return true;
                }
                if lane.held.is_none() {
                    lane.next = offset + 1;
                }
                self.records += 1;
                self.bytes += bytes;
                true
            }
            Ok(Taken::Cut) => {
                self.again = Some((partition.clone(), raw));
                false
            }
            Err(error) => {
                self.failed = Some(At(partition, offset).name(error));
                false
            }
        }
    }

    /// Folds one record.
    async fn take(&mut self, partition: &Partition, raw: &Raw) -> Result<Taken> {
        // Tombstones are for compaction.
        let Some(value) = &raw.value else { return Ok(Taken::Done) };
        let at = At(partition, raw.offset);
        let envelope = self.reader.envelope(value, &self.topics).map_err(|unlike| at.unlike(unlike))?;
        let lane = &self.lanes[partition];
        let table = lane.table;
        self.check_source(table, &envelope, &at)?;
        let Some(verdict) = judge(lane.mark, lane.newest_us, &envelope.source) else {
            let hint = "take Debezium's PostgreSQL connector, and transforms that cut the source block off it";
            return Err(at.refuse("says no position: source.lsn and source.sequence", hint));
        };
        let mark = match verdict {
            Verdict::Apply(mark) => mark,
            Verdict::Drop => {
                self.dropped += 1;
                return Ok(Taken::Done);
            }
            Verdict::Newer => return Err(self.another_server(partition, &at)),
        };
        let repeated = mark == lane.mark;
        let taken = match envelope.op {
            Op::Truncate => self.truncate(partition, &at).await?,
            Op::Delete if raw.moves_away && self.partitions.get(&partition.topic) == Some(&1) => {
                self.hold(partition, raw, &at).await?
            }
            Op::Delete => self.delete(partition, raw, &envelope, &at).await?,
            Op::Create | Op::Update | Op::Read => self.upsert(partition, raw, &envelope, (&at, repeated)).await?,
        };
        let time = envelope.source.time_us().filter(|_| envelope.source.snapshot() == Snapshot::No);
        let lane = self.lane(partition);
        // A delete that is held is not in before the create behind it, which has the same position.
        if matches!(taken, Taken::Done) && lane.held.as_ref().is_none_or(|(held, _)| held.offset != raw.offset) {
            lane.mark = mark;
            lane.newest_us = lane.newest_us.max(time);
        }
        Ok(taken)
    }

    fn another_server(&self, partition: &Partition, at: &At<'_>) -> Error {
        let found = "stands before what was applied, and was committed after it: Debezium reads another server, or its positions began anew";
        let hint = format!(
            "UPDATE lockstep.partition_progress SET commit_lsn = '0/0', ordinal = 0 WHERE pipeline = '{}' AND sink = '{}' AND topic = '{}' \
             at the sink while no process of it runs, and have Debezium read the table again (a new snapshot)",
            self.config.name, self.options.name, partition.topic
        );
        match at.refuse(found, hint) {
            Error::Halt(mut halt) => {
                halt.code = Code::ForeignTopic;
                Error::Halt(halt)
            }
            other => other,
        }
    }

    fn check_source(&self, table: usize, envelope: &Envelope<'_>, at: &At<'_>) -> Result<()> {
        let (source, table) = (&envelope.source, &self.tables[table]);
        if source.connector != "postgresql" {
            let found = format!("is of Debezium's connector for {}", source.connector);
            return Err(at.refuse(found, "take topics of its connector for PostgreSQL"));
        }
        if source.schema != table.name.schema || source.table != table.name.table {
            let found = format!("is of table {}.{}, and the topic of {}", source.schema, source.table, table.name);
            let hint = "write table = \"…\" of the connector as source.schema and source.table of the records have it; topics of several tables are not taken";
            return Err(at.refuse(found, hint));
        }
        Ok(())
    }

    /// A delete that the create of the same change may need.
    async fn hold(&mut self, partition: &Partition, raw: &Raw, at: &At<'_>) -> Result<Taken> {
        // One before it has no create, as where the connector skips those.
        self.release_held(partition, at).await?;
        self.lane(partition).held = Some((raw.clone(), Instant::now()));
        Ok(Taken::Done)
    }

    async fn truncate(&mut self, partition: &Partition, at: &At<'_>) -> Result<Taken> {
        if self.partitions.get(&partition.topic) != Some(&1) {
            let found = "is a TRUNCATE in a topic of several partitions, where nothing says which rows of the others came before it";
            let hint = "empty the table at the sink by hand and set skipped.operations=t for Debezium's connector, or take one partition";
            return Err(at.refuse(found, hint));
        }
        let table = self.lanes[partition].table;
        let version = match self.pending.get(&table) {
            Some(pending) => pending.version.clone(),
            None => self.tables[table].any_version(&self.topics, &mut self.sink).await?,
        };
        self.release_held(partition, at).await?;
        self.pending_of(table, &version).latest.truncate();
        Ok(Taken::Done)
    }

    async fn delete(
        &mut self,
        partition: &Partition,
        raw: &Raw,
        envelope: &Envelope<'_>,
        at: &At<'_>,
    ) -> Result<Taken> {
        let (version, key) = self.key(partition, raw, envelope, at).await?;
        let table = self.lanes[partition].table;
        if self.is_cut(table, &version) {
            return Ok(Taken::Cut);
        }
        self.release_held(partition, at).await?;
        self.pending_of(table, &version).latest.remove(key);
        Ok(Taken::Done)
    }

    async fn upsert(
        &mut self,
        partition: &Partition,
        raw: &Raw,
        envelope: &Envelope<'_>,
        (at, repeated): (&At<'_>, bool),
    ) -> Result<Taken> {
        let (version, key) = self.key(partition, raw, envelope, at).await?;
        let table = self.lanes[partition].table;
        if self.is_cut(table, &version) {
            return Ok(Taken::Cut);
        }
        let Some(after) = &envelope.after else { return Err(at.refuse("has no row after its change", NO_ROW)) };
        // With REPLICA IDENTITY FULL Debezium has what was not sent from the old row.
        let old_is_whole = envelope.before.is_some() && !raw.came;
        let partial = (envelope.op == Op::Update || raw.came) && !old_is_whole;
        let row = version.row(after, (partial, envelope.op == Op::Read), &self.unsent);
        let row = row.map_err(|(column, unread)| self.tables[table].unread(&column, unread))?;
        if version.key_of(&row) != Some(key.clone()) {
            return Err(at.refuse("has a key that is not its row's", NO_ROW));
        }
        // One that is written again has moved already.
        if raw.came && !repeated && row.row().has_absent() && self.lanes[partition].held.is_some() {
            let (_, old) = self.held_key(partition, at).await?;
            match self.pending_of(table, &version).latest.rekey(old, key, row) {
                Ok(true) => self.lane(partition).held = None,
                Ok(false) => return Ok(Taken::Cut),
                Err(_) => return Err(incomplete(&self.tables[table]).into()),
            }
            return Ok(Taken::Done);
        }
        self.release_held(partition, at).await?;
        let put = self.pending_of(table, &version).latest.put(key, row);
        put.map_err(|_| incomplete(&self.tables[table]))?;
        Ok(Taken::Done)
    }

    /// Applies a delete whose row came again whole, or elsewhere.
    async fn release_held(&mut self, partition: &Partition, at: &At<'_>) -> Result<()> {
        if self.lanes[partition].held.is_none() {
            return Ok(());
        }
        let (version, key) = self.held_key(partition, at).await?;
        let lane = self.lane(partition);
        // Its partition moves with it.
        lane.next = lane.held.take().map_or(lane.next, |(held, _)| lane.next.max(held.offset + 1));
        let table = lane.table;
        self.pending_of(table, &version).latest.remove(key);
        Ok(())
    }

    /// A create that does not come is not waited for without end.
    async fn release_old(&mut self) -> Result<()> {
        let old = |lane: &&Lane| lane.held.as_ref().is_some_and(|(_, since)| since.elapsed() >= HELD_MAX);
        let old: Vec<Partition> = self.lanes.values().filter(old).map(|lane| lane.row.partition.clone()).collect();
        for partition in old {
            let offset = self.lane(&partition).held.as_ref().map_or(0, |(raw, _)| raw.offset);
            self.release_held(&partition, &At(&partition, offset)).await?;
        }
        Ok(())
    }

    fn lane(&mut self, partition: &Partition) -> &mut Lane {
        self.lanes.get_mut(partition).expect("it is this process's")
    }

    async fn held_key(&mut self, partition: &Partition, at: &At<'_>) -> Result<(Arc<Version>, Key)> {
        let (held, _) = self.lanes[partition].held.clone().expect("asked where there is one");
        let value = held.value.as_deref().unwrap_or_default();
        let envelope = self.reader.envelope(value, &self.topics).map_err(|unlike| at.unlike(unlike))?;
        self.key(partition, &held, &envelope, at).await
    }

    /// The version of a record and the row that it is about.
    async fn key(
        &mut self,
        partition: &Partition,
        raw: &Raw,
        envelope: &Envelope<'_>,
        at: &At<'_>,
    ) -> Result<(Arc<Version>, Key)> {
        let Some(bytes) = &raw.key else {
            let hint = "give the table a primary key at the source, or message.key.columns to Debezium's connector";
            return Err(at.refuse("has no key", hint));
        };
        let read = self.reader.key(bytes, &self.topics);
        let key = read.map_err(|_| at.refuse("has a key that is no struct of columns", NO_ROW))?;
        let row = envelope.after.as_ref().or(envelope.before.as_ref());
        let Some(row) = row else { return Err(at.refuse("has no row", NO_ROW)) };
        let schema = match envelope.schema {
            None => None,
            Some(schema) => {
                let node = self.reader.row_schema(schema.get());
                let node = node.ok_or_else(|| at.refuse("has a schema without rows", NO_ROW))?;
                Some((schema.get(), node))
            }
        };
        let table = self.lanes[partition].table;
        let shape = Shape {
            fields: row.iter().map(|(name, _)| &**name).collect(),
            key: key.fields.iter().map(|(name, _)| &**name).collect(),
            schema: schema.as_ref().map(|(text, node)| (*text, &**node)),
        };
        let version = self.tables[table].version(&shape, &self.topics, &mut self.sink).await?;
        let said = version.key(&key.fields);
        let said = said.map_err(|(column, unread)| self.tables[table].unread(&column, unread))?;
        Ok((version, said.ok_or_else(|| at.refuse("has a key with NULL in it", NO_ROW))?))
    }

    fn is_cut(&self, table: usize, version: &Arc<Version>) -> bool {
        let other = |pending: &Pending| !Arc::ptr_eq(&pending.version, version) && !pending.latest.is_empty();
        self.pending.get(&table).is_some_and(other)
    }

    fn pending_of(&mut self, table: usize, version: &Arc<Version>) -> &mut Pending {
        let pending = self
            .pending
            .entry(table)
            .or_insert_with(|| Pending { version: version.clone(), latest: Latest::default() });
        if pending.latest.is_empty() {
            pending.version = version.clone();
        }
        pending
    }

    /// One transaction: partitions, rows, commit.
    async fn write(&mut self) -> Result<()> {
        let moved = |lane: &&Lane| (lane.next, lane.mark) != (lane.row.next_offset, lane.row.position);
        let to = |lane: &Lane| (lane.row.clone(), PartitionMove { next_offset: lane.next, position: lane.mark });
        let moves: Vec<(PartitionRow, PartitionMove)> = self.lanes.values().filter(moved).map(to).collect();
        let pending = std::mem::take(&mut self.pending);
        (self.records, self.bytes) = (0, 0);
        if moves.is_empty() {
            assert!(pending.values().all(|pending| pending.latest.is_empty()), "what is gathered moves its partition");
            return Ok(());
        }
        match self.transaction(&moves, pending).await {
            Ok(counts) => {
                for (row, to) in moves {
                    let lane = self.lanes.get_mut(&row.partition).expect("written just now");
                    (lane.row.next_offset, lane.row.position) = (to.next_offset, to.position);
                }
                count(&self.metrics, counts, 0, 0);
                let dropped = std::mem::take(&mut self.dropped);
                if dropped > 0 {
                    tracing::info!(sink = self.options.name, dropped, "records that Debezium wrote again are dropped");
                }
                Ok(())
            }
            Err(Failure::OwnershipLost) => {
                tracing::info!(sink = self.options.name, "partitions are in another hand");
                for lane in std::mem::take(&mut self.lanes).into_values() {
                    self.spans.release(lane.part)?;
                }
                (self.looked, self.again, self.failed) = (None, None, None);
                Ok(())
            }
            Err(failure) => Err(diverged(failure.into())),
        }
    }

    async fn transaction(
        &mut self,
        moves: &[(PartitionRow, PartitionMove)],
        mut pending: BTreeMap<usize, Pending>,
    ) -> Result<Counts, Failure> {
        self.sink.begin_partitions(moves).await?;
        let newest = moves.iter().filter_map(|(row, _)| {
            let time = self.lanes.get(&row.partition)?.newest_us?;
            Some((row.partition.clone(), time))
        });
        let newest: Vec<_> = newest.collect();
        self.sink.note_newest(&newest).await?;
        let nets = pending.values_mut().map(|pending| (&pending.version.plan, pending.latest.drain()));
        let batch: Vec<_> = nets.filter(|(_, net)| !net.is_empty()).collect();
        let mut counts = Counts::default();
        if !batch.is_empty() {
            counts = PostgresSink::apply(&mut self.sink, &batch).await?;
        }
        PostgresSink::commit(&mut self.sink).await?;
        Ok(counts)
    }

    fn report(&mut self) -> Result<()> {
        if self.measured.is_none_or(|measured| measured.elapsed() >= LAG_INTERVAL) {
            self.measured = Some(Instant::now());
            for lane in self.lanes.values_mut() {
                let Partition { topic, number } = &lane.row.partition;
                // Of a partition without a leader what was known last goes on standing there.
                if let Ok((_, high)) = self.spans.watermarks(topic, *number, LAG_TIMEOUT) {
                    lane.behind = u64::try_from(high - lane.next).unwrap_or_default();
                }
            }
        }
        let of = |lane: &Lane| PartitionStatus {
            topic: lane.row.partition.topic.clone(),
            partition: lane.row.partition.number,
            position: lane.row.position.lsn,
            next_offset: lane.row.next_offset,
            lag_records: lane.behind,
        };
        let partitions: Vec<PartitionStatus> = self.lanes.values().map(of).collect();
        self.reporter.update(|status| {
            status.state = State::Streaming;
            status.partitions = partitions;
        });
        Ok(())
    }
}

const NO_ROW: &str = "find out who else writes to the topic, and which transforms Debezium's connector has";

fn check_beginning(partition: &Partition, low: i64, start: Start) -> Result<()> {
    if low == 0 || start == Start::Kept {
        return Ok(());
    }
    let message = format!("the first {low} records of {partition} are gone, and nothing of it was applied yet");
    let hint = "write start = \"kept\" under [topics], if what is left has every row that is to be at the sink";
    Err(Error::halt(Code::ForeignTopic, message, hint))
}

/// What a row without all of its columns comes to where there is none to keep them.
fn incomplete(table: &Table) -> Halt {
    Halt {
        code: Code::SinkDiverged,
        message: format!(
            "a row of {} came without all of its columns (Debezium's placeholder), and table {} at the sink has no such row to keep them",
            table.name,
            table.target().table
        ),
        facts: vec![],
        hint: format!(
            "ALTER TABLE {} REPLICA IDENTITY FULL at the source from now on, and on_missing = \"skip\" under [sinks.{}] of the connector to go past; then have Debezium read the table again",
            table.name.quoted(),
            table.target().sink
        ),
    }
}

/// Only changes without all columns count on rows that are there.
fn diverged(error: Error) -> Error {
    match error {
        Error::Halt(mut halt) if halt.code == Code::SinkDiverged => {
            halt.message = format!("{}: it came without all of its columns (Debezium's placeholder)", halt.message);
            halt.hint = "write on_missing = \"skip\" under [sinks.NAME] of the connector to go past, then have Debezium read the table again".into();
            Error::Halt(halt)
        }
        other => other,
    }
}

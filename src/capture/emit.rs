//! Changes to records: the place of a record in the stream, its envelope, its headers, its way into the producer.
//!
//! One change may be several records (a delete and its tombstone; a key change is a delete, a tombstone and a create), each
//! with a position of its own. Back-pressure is in bytes: when the producer is full, the caller waits here, which stops the
//! reading of the stream; status updates go on from their own timer.

mod barriers;
mod routed;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::capture::heard::Heard;
use crate::capture::machine::{Acked, Machine};
use crate::capture::schemas::RoutedIds;
use crate::capture::shape::{Rows, Shaped};
use crate::change::{Key, Op};
use crate::codec::avro::{self, SchemaIds};
use crate::codec::{
    Block, Encoder, Event, EventEncoder, HEADER_NEW_KEY, HEADER_OLD_KEY, Headers, JsonEventEncoder, Op as Wire,
    OutboxEncoder, RecordBuf, TransactionMark,
};
use crate::config::{Config, TableWire};
use crate::error::{Code, Error, Result};
use crate::http::metrics::SourceMetrics;
use crate::kafka::producer::{Ack, Message, Producer, Route, Sent};
use crate::ledger::entry::TopicIdentity;
use crate::lsn::Lsn;
use crate::postgres::pgoutput::OldKind;
use crate::record::{self, HEADER, HEADER_ABSENT, HEADER_TEXT, Header, Kind};
use crate::registry::Registry;
use crate::relation::flat::DeleteMode;
use crate::relation::outbox::Updates;
use crate::relation::{Fingerprint, Relation};
use crate::transform::Transformer;
use crate::value::{Row, RowBuf};

use barriers::Barriers;
use routed::RoutedTopics;

/// Some hundred records: fewer are a trickle, whose commits wait for nothing.
const MUCH_IN_FLIGHT_BYTES: usize = 256 * 1024;
/// The timer's own grain.
const ACKED_NAP: Duration = Duration::from_millis(1);

/// A relation version, ready to write records of.
pub struct Version {
    pub relation: Arc<Relation>,
    /// What rows are before they are shaped to records.
    pub rows: Rows,
    transformer: Option<Transformer>,
    /// The columns of the record's key, in key order.
    key: Vec<usize>,
    inserts_alone: bool,
    skip_unchanged: bool,
    wire: TableWire,
    /// Its name in the blocks of transactions.
    collection: String,
    encoder: Encoder,
    /// Of a table whose rows are events.
    outbox: Option<Box<OutboxEncoder>>,
    /// Its records have headers beside ours and Debezium's.
    has_headers: bool,
    route: Route,
    /// Its table's, for [`Barriers`].
    number: usize,
    records: metrics::Counter,
}

impl Version {
    /// The same but for what is known of its types.
    pub fn shaped_as(&self, relation: Relation, heard: Heard) -> Shaped {
        let rows = Rows { heard, ..self.rows.clone() };
        Shaped { relation, rows, transformer: self.transformer.clone(), inserts_alone: self.inserts_alone }
    }

    /// Where records go: by their key, or into partition 0 without one.
    fn partition(&self) -> Option<i32> {
        self.key.is_empty().then_some(0)
    }

    /// Further headers of the record that was just written.
    fn headers<'r>(&self, record: &'r RecordBuf) -> &'r Headers {
        if self.has_headers { &record.headers } else { NO_HEADERS }
    }

    /// Nobody is told that an event of an outbox was changed, and it may not pass in silence.
    fn check_update(&self) -> Result<()> {
        let Some(outbox) = &self.outbox else { return Ok(()) };
        match outbox.outbox().updates {
            Updates::Halt => Err(outbox.updated()),
            Updates::Warn => {
                tracing::warn!(table = %self.relation.name, "an event of an outbox was updated, which nobody is told of");
                Ok(())
            }
        }
    }

    fn writes(&self, op: Wire) -> bool {
        !self.wire.skipped.contains(&op.letter()) && (self.outbox.is_none() || op == Wire::Create)
    }
}

/// A change as the stream sends it.
#[derive(Clone, Copy)]
pub enum Streamed<'a> {
    Insert(Row<'a>),
    Update { old: Option<(OldKind, Row<'a>)>, new: Row<'a> },
    Delete { old: Row<'a> },
}

impl<'a> Streamed<'a> {
    /// The rows that were sent.
    pub fn rows(self) -> impl Iterator<Item = Row<'a>> {
        let (new, old) = match self {
            Streamed::Insert(new) => (Some(new), None),
            Streamed::Update { old, new } => (Some(new), old.map(|(_, old)| old)),
            Streamed::Delete { old } => (None, Some(old)),
        };
        new.into_iter().chain(old)
    }

    /// What the change did to a row as the source has it, whose key is these columns. Rows without a key are told apart by all
    /// they hold.
    pub fn op(self, key: &[usize]) -> Op {
        match self {
            Streamed::Insert(new) => Op::Insert(new.to_owned()),
            Streamed::Delete { old } => Op::Delete(old.to_owned()),
            Streamed::Update { old: Some((kind, old)), new }
                if (key.is_empty() && kind == OldKind::Full) || moves(old, new, key) =>
            {
                Op::Rekey { old: old.to_owned(), new: new.to_owned() }
            }
            Streamed::Update { new, .. } => Op::Update(new.to_owned()),
        }
    }

    /// The same change of the rows as they are written.
    fn through(self, transformer: &Transformer, shaped: &'a mut (RowBuf, RowBuf)) -> Streamed<'a> {
        let (new_row, old_row) = (&mut shaped.0, &mut shaped.1);
        match self {
            Streamed::Insert(new) => {
                transformer.apply(new, new_row);
                Streamed::Insert(new_row.row())
            }
            Streamed::Update { old, new } => {
                transformer.apply(new, new_row);
                let old = old.map(|(kind, old)| {
                    transformer.apply(old, old_row);
                    (kind, old_row.row())
                });
                Streamed::Update { old, new: new_row.row() }
            }
            Streamed::Delete { old } => {
                transformer.apply(old, old_row);
                Streamed::Delete { old: old_row.row() }
            }
        }
    }
}

/// Whether the two rows have different keys. A record's key may hold NULL.
fn moves(old: Row<'_>, new: Row<'_>, key: &[usize]) -> bool {
    Key::whole(old, key) != Key::whole(new, key)
}

/// Writes records; owned by the reader's thread.
pub struct Emitter {
    outlet: Outlet,
    /// Topics of the routes, in order.
    pub topics: Vec<String>,
    /// By the fingerprints of their rows.
    versions: HashMap<Fingerprint, Arc<Version>>,
    config: Arc<Config>,
    events: EventEncoder,
    routed: RoutedTopics,
    barriers: Barriers,
    /// The transaction that is told of, once it has a record; `None` where none are.
    counts: Option<Counts>,
    metrics: SourceMetrics,
    record: RecordBuf,
    /// The other half's key, for a header.
    other_key: Vec<u8>,
    /// The rows of a change, shaped: new and old.
    shaped: (RowBuf, RowBuf),
}

/// How many records of which tables the open transaction has had.
#[derive(Default)]
struct Counts {
    total: u64,
    collections: Vec<(String, u64)>,
}

/// Of records that have no further headers.
const NO_HEADERS: &Headers = &Headers::new();

/// Names and values of `__debezium.context.*`.
type ContextHeaders = Vec<(&'static str, Vec<u8>)>;

/// The producer and what it has acknowledged.
struct Outlet {
    producer: Producer,
    /// Of the records being written: when their change was read.
    timestamp_ms: i64,
    acks: Vec<Ack>,
    /// By the routes' numbers: topics that are in no span.
    foreign: Vec<bool>,
    /// `__debezium.context.*`, if they are asked for.
    context: Option<Arc<ContextHeaders>>,
    /// How long Kafka may take no record.
    grace: Duration,
}

impl Emitter {
    /// `events` are the ids of the topics that hold no rows, if these are in Avro; `topics` are those of the ledger.
    pub fn new(
        producer: Producer,
        config: Arc<Config>,
        metrics: SourceMetrics,
        (registry, events): (Option<Arc<Registry>>, Option<[SchemaIds; 3]>),
        topics: &BTreeMap<String, TopicIdentity>,
    ) -> Emitter {
        let (prefix, database) = (&config.kafka.topic_prefix, &config.source.database.dbname);
        let modes = &config.wire.tables.modes;
        let events = match events {
            Some(ids) => EventEncoder::Avro(Box::new(avro::EventEncoder::new(prefix, database, modes, ids))),
            None => EventEncoder::Json(Box::new(JsonEventEncoder::new(prefix, database, modes))),
        };
        let context = config.wire.context_headers.then(|| Arc::new(context_headers(prefix)));
        let grace = config.kafka.grace;
        Emitter {
            outlet: Outlet { producer, timestamp_ms: 0, acks: Vec::new(), foreign: Vec::new(), context, grace },
            topics: Vec::new(),
            versions: HashMap::new(),
            events,
            routed: RoutedTopics::new(&config, topics, RoutedIds::new(registry)),
            barriers: Barriers::default(),
            counts: config.wire.transaction_topic.is_some().then(Counts::default),
            config,
            metrics,
            record: RecordBuf::default(),
            other_key: Vec::new(),
            shaped: Default::default(),
        }
    }

    /// The version for rows of this one, if it is ready for writing already.
    pub fn known(&self, rows: Fingerprint) -> Option<Arc<Version>> {
        self.versions.get(&rows).cloned()
    }

    /// Makes a version ready for writing; in Avro with the ids of its schemas.
    pub fn version(&mut self, shaped: Shaped, ids: Option<SchemaIds>) -> Result<Arc<Version>> {
        let Shaped { relation, rows, transformer, inserts_alone } = shaped;
        let route = self.route(&relation.topic.clone(), false);
        let (fingerprint, key) = (rows.fingerprint, relation.key_columns());
        let relation = Arc::new(relation);
        let (prefix, database) = (&self.config.kafka.topic_prefix, &self.config.source.database.dbname);
        let encoder = match ids {
            Some(ids) => Encoder::avro(relation.clone(), ids, prefix, database)?,
            None => Encoder::new(relation.clone(), prefix, database),
        };
        let outbox = OutboxEncoder::new(&relation, prefix, database).map(Box::new);
        let has_headers = relation.modes.has_headers();
        let records = self.metrics.records(&relation.name);
        let table = self.config.tables.iter().find(|table| table.name == relation.name);
        let wire = table.map(|table| table.wire.clone()).unwrap_or_default();
        let skip_unchanged = table.is_some_and(|table| table.skip_unchanged);
        let collection = relation.name.to_string();
        let number = self.barriers.number(&relation.name);
        let version = Arc::new(Version {
            relation,
            rows,
            transformer,
            key,
            inserts_alone,
            skip_unchanged,
            wire,
            collection,
            encoder,
            outbox,
            has_headers,
            route,
            number,
            records,
        });
        self.versions.insert(fingerprint, version.clone());
        Ok(version)
    }

    /// Tells the machine what the next record of the version is.
    fn next_is(&mut self, machine: &mut Machine, version: &Version, kind: Kind) {
        if self.barriers.is_at(version.number, version.relation.fingerprint, kind) {
            machine.barrier(&version.relation.name);
        }
    }

    fn route(&mut self, topic: &str, foreign: bool) -> Route {
        let route = self.outlet.producer.route(topic);
        let index = route.index();
        if index == self.topics.len() {
            self.topics.push(topic.to_owned());
            self.outlet.foreign.push(foreign);
        }
        assert_eq!(self.topics[index], topic, "routes are numbered in the order of their first use");
        assert_eq!(self.outlet.foreign[index], foreign, "a topic is in spans or it is not");
        route
    }

    /// The event with its record's place in the transaction. The first record of a transaction writes its BEGIN.
    async fn counted(&mut self, machine: &mut Machine, collection: Option<&str>, event: &Event) -> Result<Event> {
        let (Some(counts), Some(xid)) = (&mut self.counts, event.xid) else { return Ok(event.clone()) };
        let begins = counts.total == 0;
        counts.total += 1;
        let place = collection.and_then(|name| counts.collections.iter_mut().find(|(found, _)| found == name));
        let collection_order = match place {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            // Debezium counts each message as a data collection of its own, under a name that does not last.
            None => {
                counts.collections.push((collection.unwrap_or("message").to_owned(), 1));
                1
            }
        };
        let block = Block { total_order: counts.total, collection_order };
        if begins {
            let mark =
                TransactionMark { xid, lsn: event.lsn.0, commit_time_us: event.commit_time_us, collections: None };
            self.events.transaction(&mark, &mut self.record);
            self.transaction_record(machine).await?;
        }
        Ok(Event { block: Some(block), ..event.clone() })
    }

    /// The transaction ends at `end`: its END is written if it had records.
    pub async fn commit(&mut self, machine: &mut Machine, xid: u32, end: Lsn, commit_time_us: i64) -> Result<()> {
        let Some(counts) = &mut self.counts else { return Ok(()) };
        let Counts { total, collections } = std::mem::take(counts);
        if total == 0 {
            return Ok(());
        }
        let collections = Some(collections.as_slice());
        let mark = TransactionMark { xid: u64::from(xid), lsn: end.0, commit_time_us, collections };
        self.events.transaction(&mark, &mut self.record);
        self.transaction_record(machine).await
    }

    async fn transaction_record(&mut self, machine: &mut Machine) -> Result<()> {
        let topic = self.config.wire.transaction_topic.clone().expect("transactions are told of");
        self.foreign(machine, &topic).await
    }

    pub async fn heartbeat(&mut self, machine: &mut Machine, topic: &str, now_ms: i64) -> Result<()> {
        self.events.heartbeat(now_ms, &mut self.record);
        self.foreign(machine, topic).await
    }

    /// A logical message, if messages with its prefix are asked for.
    pub async fn message(&mut self, machine: &mut Machine, event: &Event, prefix: &str, content: &[u8]) -> Result<()> {
        let config = self.config.clone();
        let Some(messages) = &config.wire.messages else { return Ok(()) };
        let listed = |list: &[String]| list.iter().any(|wanted| wanted == prefix);
        if messages.include.as_deref().is_some_and(|list| !listed(list)) || listed(&messages.exclude) {
            return Ok(());
        }
        let event = self.counted(machine, None, event).await?;
        self.events.message(&event, prefix, content, &mut self.record);
        self.foreign(machine, &messages.topic).await
    }

    /// Sends what is in `record` to a topic that is in no span.
    async fn foreign(&mut self, machine: &mut Machine, topic: &str) -> Result<()> {
        let route = self.route(topic, true);
        let token = machine.foreign_record();
        let header = Header {
            kind: Kind::Foreign,
            epoch: machine.epoch(),
            position: machine.position(),
            relation: Fingerprint(0),
        };
        let draft = Draft {
            header,
            partition: Some(0),
            key: Some(&self.record.key),
            value: Some(&self.record.value),
            absent: None,
            text: &[],
            other_key: None,
            headers: NO_HEADERS,
            token,
        };
        self.outlet.send(machine, route, &draft).await
    }

    /// Writes the records of a change in the open transaction. With `keep`, says what it was.
    pub async fn change(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        change: Streamed<'_>,
        keep: bool,
    ) -> Result<Option<Op>> {
        self.outlet.read_at(event);
        // FULL sends an unchanged TOAST value in the old row only, and a key column can be one.
        let filled: RowBuf;
        let change = match change {
            Streamed::Insert(new) if new.has_absent() => return Err(absent_insert(version)),
            Streamed::Update { .. } if version.inserts_alone => return Err(not_inserted(version)),
            Streamed::Update { old: Some((kind, old)), new } if new.has_absent() => {
                filled = old.to_owned().merged(new);
                Streamed::Update { old: Some((kind, old)), new: filled.row() }
            }
            _ => change,
        };
        let op = keep.then(|| change.op(&version.rows.key));
        match &version.transformer {
            None => self.write(machine, version, event, change).await?,
            Some(transformer) => {
                let mut shaped = std::mem::take(&mut self.shaped);
                let change = change.through(transformer, &mut shaped);
                self.write(machine, version, event, change).await?;
                self.shaped = shaped;
            }
        }
        Ok(op)
    }

    async fn write(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        change: Streamed<'_>,
    ) -> Result<()> {
        match change {
            Streamed::Insert(new) if version.writes(Wire::Create) => {
                if version.outbox.is_some() {
                    return self.routed(machine, version, event, new, Kind::Change).await;
                }
                let event = &self.counted(machine, Some(&version.collection), event).await?;
                version.encoder.key(new, &mut self.record)?;
                version.encoder.create(event, new, &mut self.record)?;
                self.put(machine, version, Kind::Change, Some(new), None).await
            }
            Streamed::Delete { old } if version.writes(Wire::Delete) => {
                self.delete(machine, version, event, old, (Kind::Change, None)).await
            }
            Streamed::Update { old, new } => {
                version.check_update()?;
                self.update(machine, version, event, old, new).await
            }
            Streamed::Insert(_) | Streamed::Delete { .. } => Ok(()),
        }
    }

    async fn update(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        old: Option<(OldKind, Row<'_>)>,
        new: Row<'_>,
    ) -> Result<()> {
        if let Some((_, old)) = old.filter(|(_, old)| moves(*old, new, &version.key)) {
            return self.rekey(machine, version, event, old, new).await;
        }
        let before = old.filter(|(kind, _)| *kind == OldKind::Full).map(|(_, old)| old);
        if !version.writes(Wire::Update) || (version.skip_unchanged && before == Some(new)) {
            return Ok(());
        }
        let event = &self.counted(machine, Some(&version.collection), event).await?;
        version.encoder.key(new, &mut self.record)?;
        version.encoder.update(event, before, new, &mut self.record)?;
        self.put(machine, version, Kind::Change, Some(new), None).await
    }

    /// A key change is one change to our sinks and Debezium's delete, tombstone and create to everybody else.
    async fn rekey(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        old: Row<'_>,
        new: Row<'_>,
    ) -> Result<()> {
        if !version.writes(Wire::Update) {
            return Ok(());
        }
        if version.writes(Wire::Delete) {
            version.encoder.key_json(new, &mut self.other_key)?;
            self.delete(machine, version, event, old, (Kind::KeyChangeDelete, Some(HEADER_NEW_KEY))).await?;
        }
        if !version.writes(Wire::Create) {
            return Ok(());
        }
        let event = &self.counted(machine, Some(&version.collection), event).await?;
        version.encoder.key(new, &mut self.record)?;
        version.encoder.key_json(old, &mut self.other_key)?;
        version.encoder.create(event, new, &mut self.record)?;
        self.put(machine, version, Kind::KeyChangeCreate, Some(new), Some(HEADER_OLD_KEY)).await
    }

    /// What is written of a deleted row. In flat records it is told of among the transaction's also where nothing is.
    async fn delete(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        old: Row<'_>,
        (kind, other_key): (Kind, Option<&'static str>),
    ) -> Result<()> {
        let event = &self.counted(machine, Some(&version.collection), event).await?;
        version.encoder.key(old, &mut self.record)?;
        let mode = version.relation.modes.flat.as_ref().map(|flat| flat.deletes);
        if mode.is_none_or(DeleteMode::rewrites) {
            version.encoder.delete(event, old, &mut self.record)?;
            self.put(machine, version, kind, None, other_key).await?;
        }
        if mode == Some(DeleteMode::DeleteToTombstone) {
            // For its headers.
            version.encoder.delete(event, old, &mut self.record)?;
            return self.tombstone(machine, version, other_key).await;
        }
        if version.wire.tombstones && mode.is_none_or(DeleteMode::keeps_tombstone) {
            version.encoder.tombstone(&mut self.record);
            self.tombstone(machine, version, other_key).await?;
        }
        Ok(())
    }

    /// One record for each table of a TRUNCATE; they have no key and stand in partition 0.
    pub async fn truncate(&mut self, machine: &mut Machine, version: &Version, event: &Event) -> Result<()> {
        self.outlet.read_at(event);
        if !version.writes(Wire::Truncate) {
            return Ok(());
        }
        let event = &self.counted(machine, Some(&version.collection), event).await?;
        version.encoder.truncate(event, &mut self.record)?;
        self.next_is(machine, version, Kind::Truncate);
        let (position, token) = machine.record();
        let draft = Draft {
            header: Header {
                kind: Kind::Truncate,
                epoch: machine.epoch(),
                position,
                relation: version.relation.fingerprint,
            },
            partition: Some(0),
            key: None,
            value: Some(&self.record.value),
            absent: None,
            text: &[],
            other_key: None,
            headers: NO_HEADERS,
            token,
        };
        version.records.increment(1);
        self.outlet.send(machine, version.route, &draft).await
    }

    /// A row of a chunk that enters the stream here.
    pub async fn chunk_row(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        row: Row<'_>,
    ) -> Result<()> {
        self.outlet.read_at(event);
        match &version.transformer {
            None => self.chunk_record(machine, version, event, row).await,
            Some(transformer) => {
                let mut shaped = std::mem::take(&mut self.shaped);
                transformer.apply(row, &mut shaped.0);
                let written = self.chunk_record(machine, version, event, shaped.0.row()).await;
                self.shaped = shaped;
                written
            }
        }
    }

    async fn chunk_record(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        row: Row<'_>,
    ) -> Result<()> {
        if version.outbox.is_some() {
            return self.routed(machine, version, event, row, Kind::ChunkRow).await;
        }
        version.encoder.key(row, &mut self.record)?;
        version.encoder.read(event, row, &mut self.record)?;
        self.next_is(machine, version, Kind::ChunkRow);
        let (position, token) = machine.chunk_record();
        let draft = Draft {
            header: Header {
                kind: Kind::ChunkRow,
                epoch: machine.epoch(),
                position,
                relation: version.relation.fingerprint,
            },
            partition: version.partition(),
            key: self.record.key(),
            value: Some(&self.record.value),
            absent: None,
            text: &self.record.text,
            other_key: None,
            headers: version.headers(&self.record),
            token,
        };
        version.records.increment(1);
        self.outlet.send(machine, version.route, &draft).await
    }

    /// Sends what is in `record` as the next record of the open transaction.
    async fn put(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        kind: Kind,
        after: Option<Row<'_>>,
        other_key: Option<&'static str>,
    ) -> Result<()> {
        let absent = after.and_then(record::absent_bitmap);
        self.next_is(machine, version, kind);
        let (position, token) = machine.record();
        let draft = Draft {
            header: Header { kind, epoch: machine.epoch(), position, relation: version.relation.fingerprint },
            partition: version.partition(),
            key: self.record.key(),
            value: Some(&self.record.value),
            absent: absent.as_deref(),
            text: &self.record.text,
            other_key: other_key.map(|name| (name, self.other_key.as_slice())),
            headers: version.headers(&self.record),
            token,
        };
        version.records.increment(1);
        self.outlet.send(machine, version.route, &draft).await
    }

    /// The tombstone of the key in `record`.
    async fn tombstone(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        other_key: Option<&'static str>,
    ) -> Result<()> {
        let (position, token) = machine.record();
        let draft = Draft {
            header: Header {
                kind: Kind::Tombstone,
                epoch: machine.epoch(),
                position,
                relation: version.relation.fingerprint,
            },
            partition: version.partition(),
            key: self.record.key(),
            value: None,
            absent: None,
            text: &[],
            other_key: other_key.map(|name| (name, self.other_key.as_slice())),
            headers: version.headers(&self.record),
            token,
        };
        version.records.increment(1);
        self.outlet.send(machine, version.route, &draft).await
    }

    /// Resolves when records were acknowledged or the producer failed.
    pub async fn acked(&self) {
        self.outlet.producer.acked().await;
    }

    /// The same; while much is in flight it waits a little, because then acknowledgements come by the thousand and each would
    /// wake the reader for itself.
    pub async fn acked_soon(&self) {
        self.acked().await;
        if self.in_flight_bytes() > MUCH_IN_FLIGHT_BYTES {
            tokio::time::sleep(ACKED_NAP).await;
        }
    }

    /// Tells the machine what was acknowledged, and whether anything was.
    pub fn take_acks(&mut self, machine: &mut Machine) -> Result<bool> {
        self.outlet.take_acks(machine)
    }

    pub fn in_flight_bytes(&self) -> usize {
        self.outlet.producer.in_flight_bytes()
    }

    pub fn close(self, timeout: Duration) {
        self.outlet.producer.close(timeout);
    }
}

/// One record on its way.
struct Draft<'a> {
    header: Header,
    partition: Option<i32>,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    absent: Option<&'a [u8]>,
    text: &'a [u8],
    other_key: Option<(&'static str, &'a [u8])>,
    /// Further ones, behind the others.
    headers: &'a Headers,
    token: u64,
}

impl Outlet {
    fn read_at(&mut self, event: &Event) {
        self.timestamp_ms = event.now_ns.div_euclid(1_000_000);
    }

    async fn send(&mut self, machine: &mut Machine, route: Route, draft: &Draft<'_>) -> Result<()> {
        let header = draft.header.encode();
        let mut headers: [(&str, Option<&[u8]>); 4 + CONTEXT] = [("", None); 4 + CONTEXT];
        headers[0] = (HEADER, Some(&header));
        let mut count = 1;
        let mut add = |name, bytes| {
            headers[count] = (name, Some(bytes));
            count += 1;
        };
        if let Some(bitmap) = draft.absent {
            add(HEADER_ABSENT, bitmap);
        }
        if !draft.text.is_empty() {
            add(HEADER_TEXT, draft.text);
        }
        if let Some((name, key)) = draft.other_key {
            add(name, key);
        }
        let context = self.context.clone().filter(|_| draft.header.kind != Kind::Foreign);
        if let Some(context) = &context {
            context.iter().for_each(|(name, text)| add(name, text));
        }
        let mut all: Vec<(&str, Option<&[u8]>)>;
        let mut headers = &headers[..count];
        if !draft.headers.is_empty() {
            all = headers.to_vec();
            all.extend(draft.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
            headers = &all;
        }
        let message = Message {
            route,
            partition: draft.partition,
            key: draft.key,
            value: draft.value,
            headers,
            timestamp_ms: Some(self.timestamp_ms),
            token: draft.token,
        };
        while let Sent::Full = self.producer.send(&message)? {
            if tokio::time::timeout(self.grace, self.producer.acked()).await.is_err() {
                let doing = format!("writing to Kafka: no record was acknowledged for {:?}", self.grace);
                return Err(Error::retry_plain(doing));
            }
            self.take_acks(machine)?;
        }
        Ok(())
    }

    fn take_acks(&mut self, machine: &mut Machine) -> Result<bool> {
        self.producer.take_acks(&mut self.acks)?;
        let any = !self.acks.is_empty();
        for ack in self.acks.drain(..) {
            let Ack { route, partition, token, first, last, count } = ack;
            if self.foreign[route.index()] {
                machine.foreign_acked(token, count);
                continue;
            }
            machine.acked(Acked {
                route: u16::try_from(route.index()).expect("routes are numbered with 16 bits"),
                partition,
                token,
                first,
                last,
                count,
            });
        }
        Ok(any)
    }
}

/// How many headers [`context_headers`] are.
const CONTEXT: usize = 4;

/// What Debezium says of itself on every record of a table.
fn context_headers(prefix: &str) -> Vec<(&'static str, Vec<u8>)> {
    let run = uuid::Uuid::new_v4().to_string();
    let headers = [
        ("__debezium.context.connectorLogicalName", prefix.as_bytes().to_vec()),
        ("__debezium.context.taskId", b"0".to_vec()),
        ("__debezium.context.connectorName", b"postgresql".to_vec()),
        ("__debezium.context.runId", run.into_bytes()),
    ];
    assert_eq!(headers.len(), CONTEXT, "there is room for them beside ours");
    headers.into()
}

fn not_inserted(version: &Version) -> Error {
    let name = &version.relation.name;
    Error::halt(
        Code::ReplicaIdentity,
        format!(
            "a row of {name} was changed, but its connector says insert_only, and old rows lack columns of its key"
        ),
        format!("ALTER TABLE {} REPLICA IDENTITY FULL; then delete insert_only from its connector", name.quoted()),
    )
}

fn absent_insert(version: &Version) -> Error {
    let name = &version.relation.name;
    Error::halt(
        Code::AbsentBase,
        format!("the source sent a new row of {name} without all its columns, as a row filter does"),
        format!("ALTER PUBLICATION … SET TABLE {} without a WHERE clause", name.quoted()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Cell;

    #[test]
    fn a_record_s_key_moves_also_from_and_to_null() {
        let row = |cells: [Cell<'static>; 2]| -> RowBuf { cells.into_iter().collect() };
        let (none, one, other) = (
            row([Cell::Null, Cell::Text(b"1")]),
            row([Cell::Text(b""), Cell::Text(b"1")]),
            row([Cell::Null, Cell::Text(b"2")]),
        );
        assert!(moves(none.row(), one.row(), &[0]), "NULL is not the empty text");
        assert!(moves(none.row(), other.row(), &[0, 1]));
        assert!(!moves(none.row(), other.row(), &[0]));
        assert!(!moves(none.row(), other.row(), &[]), "without a key there is none to move");
    }
}

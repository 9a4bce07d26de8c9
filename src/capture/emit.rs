//! Changes to records: the place of a record in the stream, its envelope, its headers, its way into the producer.
//!
//! One change may be several records (a delete and its tombstone; a key change is a delete, a tombstone and a create), each
//! with a position of its own. Back-pressure is in bytes: when the producer is full, the caller waits here, which stops the
//! reading of the stream; status updates go on from their own timer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::capture::machine::{Acked, Machine};
use crate::change::{Key, Op};
use crate::codec::{Encoder, Event, HEADER_NEW_KEY, HEADER_OLD_KEY, RecordBuf};
use crate::error::{Code, Error, Result};
use crate::http::metrics::SourceMetrics;
use crate::kafka::producer::{Ack, Message, Producer, Route, Sent};
use crate::postgres::pgoutput::OldKind;
use crate::record::{self, HEADER, HEADER_ABSENT, HEADER_TEXT, Header, Kind};
use crate::relation::{Fingerprint, Relation};
use crate::value::{Row, RowBuf};

/// How long Kafka may take no record before the replication connection is dropped: a connected reader that does not confirm
/// blocks the source's shutdown.
pub const KAFKA_GRACE: Duration = Duration::from_secs(30);

/// Some hundred records: fewer are a trickle, whose commits wait for nothing.
const MUCH_IN_FLIGHT_BYTES: usize = 256 * 1024;
/// The timer's own grain.
const ACKED_NAP: Duration = Duration::from_millis(1);

/// A relation version, ready to write records of.
pub struct Version {
    pub relation: Arc<Relation>,
    pub key: Vec<usize>,
    encoder: Encoder,
    route: Route,
    records: metrics::Counter,
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
}

/// Writes records; owned by the reader's thread.
pub struct Emitter {
    outlet: Outlet,
    /// Topics of the routes, in order.
    pub topics: Vec<String>,
    versions: HashMap<Fingerprint, Arc<Version>>,
    prefix: String,
    database: String,
    metrics: SourceMetrics,
    record: RecordBuf,
    /// The other half's key, for a header.
    other_key: Vec<u8>,
}

/// The producer and what it has acknowledged.
struct Outlet {
    producer: Producer,
    acks: Vec<Ack>,
}

impl Emitter {
    pub fn new(producer: Producer, prefix: &str, database: &str, metrics: SourceMetrics) -> Emitter {
        Emitter {
            outlet: Outlet { producer, acks: Vec::new() },
            topics: Vec::new(),
            versions: HashMap::new(),
            prefix: prefix.to_owned(),
            database: database.to_owned(),
            metrics,
            record: RecordBuf::default(),
            other_key: Vec::new(),
        }
    }

    /// The version ready for writing, and whether it is new to this incarnation.
    pub fn version(&mut self, relation: Relation) -> (Arc<Version>, bool) {
        if let Some(known) = self.versions.get(&relation.fingerprint) {
            return (known.clone(), false);
        }
        let route = self.outlet.producer.route(&relation.topic);
        let index = route.index();
        if index == self.topics.len() {
            self.topics.push(relation.topic.clone());
        }
        assert_eq!(self.topics[index], relation.topic, "routes are numbered in the order of their first use");
        let (fingerprint, key) = (relation.fingerprint, relation.key_columns());
        let relation = Arc::new(relation);
        let encoder = Encoder::new(relation.clone(), &self.prefix, &self.database);
        let records = self.metrics.records(&relation.name);
        let version = Arc::new(Version { relation, key, encoder, route, records });
        self.versions.insert(fingerprint, version.clone());
        (version, true)
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
        match change {
            Streamed::Insert(new) => {
                if new.has_absent() {
                    return Err(absent_insert(version));
                }
                version.encoder.key(new, &mut self.record)?;
                version.encoder.create(event, new, &mut self.record)?;
                self.put(machine, version, Kind::Change, Some(new), None).await?;
                Ok(keep.then(|| Op::Insert(new.to_owned())))
            }
            Streamed::Delete { old } => {
                version.encoder.key(old, &mut self.record)?;
                version.encoder.delete(event, old, &mut self.record)?;
                self.put(machine, version, Kind::Change, None, None).await?;
                self.tombstone(machine, version, None).await?;
                Ok(keep.then(|| Op::Delete(old.to_owned())))
            }
            Streamed::Update { old, new } => self.update(machine, version, event, old, new, keep).await,
        }
    }

    async fn update(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        old: Option<(OldKind, Row<'_>)>,
        new: Row<'_>,
        keep: bool,
    ) -> Result<Option<Op>> {
        // FULL sends an unchanged TOAST value in the old row only, and a key column can be one.
        let filled: RowBuf;
        let new = match old {
            Some((_, old)) if new.has_absent() => {
                filled = old.to_owned().merged(new);
                filled.row()
            }
            _ => new,
        };
        let moved = old.filter(|(_, old)| Key::of(*old, &version.key) != Key::of(new, &version.key));
        if let Some((_, old)) = moved {
            self.rekey(machine, version, event, old, new).await?;
            return Ok(keep.then(|| Op::Rekey { old: old.to_owned(), new: new.to_owned() }));
        }
        let before = old.filter(|(kind, _)| *kind == OldKind::Full).map(|(_, old)| old);
        version.encoder.key(new, &mut self.record)?;
        version.encoder.update(event, before, new, &mut self.record)?;
        self.put(machine, version, Kind::Change, Some(new), None).await?;
        Ok(keep.then(|| Op::Update(new.to_owned())))
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
        version.encoder.key_json(new, &mut self.other_key)?;
        version.encoder.key(old, &mut self.record)?;
        version.encoder.delete(event, old, &mut self.record)?;
        self.put(machine, version, Kind::KeyChangeDelete, None, Some(HEADER_NEW_KEY)).await?;
        self.tombstone(machine, version, Some(HEADER_NEW_KEY)).await?;
        version.encoder.key(new, &mut self.record)?;
        version.encoder.key_json(old, &mut self.other_key)?;
        version.encoder.create(event, new, &mut self.record)?;
        self.put(machine, version, Kind::KeyChangeCreate, Some(new), Some(HEADER_OLD_KEY)).await
    }

    /// One record for each table of a TRUNCATE; they have no key and stand in partition 0.
    pub async fn truncate(&mut self, machine: &mut Machine, version: &Version, event: &Event) -> Result<()> {
        version.encoder.truncate(event, &mut self.record)?;
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
            token,
        };
        self.outlet.send(machine, version, &draft).await
    }

    /// A row of a chunk that enters the stream here.
    pub async fn chunk_row(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        row: Row<'_>,
    ) -> Result<()> {
        version.encoder.key(row, &mut self.record)?;
        version.encoder.read(event, row, &mut self.record)?;
        let (position, token) = machine.chunk_record();
        let draft = Draft {
            header: Header {
                kind: Kind::ChunkRow,
                epoch: machine.epoch(),
                position,
                relation: version.relation.fingerprint,
            },
            partition: None,
            key: Some(&self.record.key),
            value: Some(&self.record.value),
            absent: None,
            text: &self.record.text,
            other_key: None,
            token,
        };
        self.outlet.send(machine, version, &draft).await
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
        let (position, token) = machine.record();
        let draft = Draft {
            header: Header { kind, epoch: machine.epoch(), position, relation: version.relation.fingerprint },
            partition: None,
            key: Some(&self.record.key),
            value: Some(&self.record.value),
            absent: absent.as_deref(),
            text: &self.record.text,
            other_key: other_key.map(|name| (name, self.other_key.as_slice())),
            token,
        };
        self.outlet.send(machine, version, &draft).await
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
            partition: None,
            key: Some(&self.record.key),
            value: None,
            absent: None,
            text: &[],
            other_key: other_key.map(|name| (name, self.other_key.as_slice())),
            token,
        };
        self.outlet.send(machine, version, &draft).await
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
    token: u64,
}

impl Outlet {
    async fn send(&mut self, machine: &mut Machine, version: &Version, draft: &Draft<'_>) -> Result<()> {
        let header = draft.header.encode();
        let mut headers: [(&str, &[u8]); 4] = [(HEADER, &header), ("", &[]), ("", &[]), ("", &[])];
        let mut count = 1;
        let mut add = |name, bytes| {
            headers[count] = (name, bytes);
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
        let message = Message {
            route: version.route,
            partition: draft.partition,
            key: draft.key,
            value: draft.value,
            headers: &headers[..count],
            token: draft.token,
        };
        while let Sent::Full = self.producer.send(&message)? {
            if tokio::time::timeout(KAFKA_GRACE, self.producer.acked()).await.is_err() {
                return Err(Error::retry_plain("writing to Kafka: no record was acknowledged for 30 s"));
            }
            self.take_acks(machine)?;
        }
        version.records.increment(1);
        Ok(())
    }

    fn take_acks(&mut self, machine: &mut Machine) -> Result<bool> {
        self.producer.take_acks(&mut self.acks)?;
        let any = !self.acks.is_empty();
        for ack in self.acks.drain(..) {
            let Ack { route, partition, token, first, last, count } = ack;
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

fn absent_insert(version: &Version) -> Error {
    let name = &version.relation.name;
    Error::halt(
        Code::AbsentBase,
        format!("the source sent a new row of {name} without all its columns, as a row filter does"),
        format!("ALTER PUBLICATION … SET TABLE {} without a WHERE clause", name.quoted()),
    )
}

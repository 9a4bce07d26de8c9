//! Events of an outbox on their way: each into the topic that its row names, which is made before its first record.
//!
//! Such a topic is one of the ledger's like any other: its records are counted in checkpoints, its id goes into the next base,
//! which stands before the checkpoint that counts its first record. What a row may not name is somebody else's: a topic of a
//! connector, the ledger's, one of records that are no rows, or one that Kafka can't tell from those.

use std::collections::{BTreeMap, HashMap};

use super::{Draft, Emitter, NO_HEADERS, Version};
use crate::capture::machine::Machine;
use crate::capture::schemas::RoutedIds;
use crate::codec::{Event, Place, Written, WrittenSchemas, avro};
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::kafka::producer::Route;
use crate::kafka::topics::{self, Kind as TopicKind, Wanted};
use crate::ledger::entry::TopicIdentity;
use crate::record::{Header, Kind};
use crate::relation::TableName;
use crate::relation::names::topic_collision;
use crate::value::Row;

/// Longest topic name that Kafka takes (Topic.java, MAX_NAME_LENGTH).
const TOPIC_BYTES_MAX: usize = 249;

/// Of all outboxes of a pipeline. Each topic is files on every broker, and a route with a value for every row would make one for
/// each of them.
const TOPICS_MAX: usize = 1_000;

/// The topics that rows have named.
pub struct RoutedTopics {
    /// Names of all topics that are not routed to, by what is alike of names that Kafka can't tell apart.
    owned: HashMap<String, String>,
    /// The same of those that may be: made by this reader or by one before it.
    known: HashMap<String, String>,
    routes: HashMap<String, Routed>,
    /// Made or met, and not yet told to the ledger.
    news: Vec<(String, TopicIdentity)>,
    /// Of their schemas.
    ids: RoutedIds,
}

#[derive(Clone)]
struct Routed {
    route: Route,
    owner: TableName,
    partitions: i32,
}

impl RoutedTopics {
    /// `known` are the topics of the ledger.
    pub fn new(config: &Config, known: &BTreeMap<String, TopicIdentity>, ids: RoutedIds) -> RoutedTopics {
        let wire = &config.wire;
        let messages = wire.messages.as_ref().map(|messages| &messages.topic);
        let heartbeats = wire.heartbeat.as_ref().map(|heartbeat| &heartbeat.topic);
        // An outbox has no records but events, so that its own topic may be theirs.
        let tables = config.tables.iter().filter(|table| table.wire.modes.outbox.is_none()).map(|table| &table.topic);
        let others = [Some(&config.kafka.ledger), wire.transaction_topic.as_ref(), messages, heartbeats];
        let by_collision = |name: &String| (topic_collision(name), name.clone());
        let owned: HashMap<String, String> = tables.chain(others.into_iter().flatten()).map(by_collision).collect();
        let known = known.keys().map(by_collision).filter(|(alike, _)| !owned.contains_key(alike)).collect();
        RoutedTopics { owned, known, routes: HashMap::new(), news: Vec::new(), ids }
    }

    /// Whether rows of the table may go there. Pure.
    fn admit(&self, topic: &str, table: &TableName) -> Result<()> {
        let alike = topic_collision(topic);
        let owner = self.owned.get(&alike).or_else(|| self.known.get(&alike).filter(|name| *name != topic));
        if let Some(owner) = owner {
            let found = match owner == topic {
                true => "which is not an outbox's".to_owned(),
                false => format!("which Kafka can't tell from {owner:?}"),
            };
            return Err(refused(table, topic, &found));
        }
        if let Some(other) = self.routes.get(topic).filter(|routed| routed.owner != *table) {
            return Err(refused(table, topic, &format!("which is that of outbox {}", other.owner)));
        }
        if topic.is_empty() || [".", ".."].contains(&topic) || topic.len() > TOPIC_BYTES_MAX {
            return Err(refused(table, topic, "which is no name of a topic"));
        }
        if self.routes.len() >= TOPICS_MAX && !self.routes.contains_key(topic) {
            return Err(refused(table, topic, &format!("beyond {TOPICS_MAX} others of this run")));
        }
        Ok(())
    }
}

fn refused(table: &TableName, topic: &str, found: &str) -> Error {
    let message = format!("a row of outbox {table} goes to topic {topic:?}, {found}");
    let hint = "write topic = \"…{route}\" with another name, or route_by_field with another column, into [outbox] of its connector";
    Error::halt(Code::TopicRefused, message, hint)
}

impl Emitter {
    /// Writes the record of a row: of a change, or of a chunk.
    pub(super) async fn routed(
        &mut self,
        machine: &mut Machine,
        version: &Version,
        event: &Event,
        row: Row<'_>,
        kind: Kind,
    ) -> Result<()> {
        let outbox = version.outbox.as_ref().expect("rows of an outbox are routed");
        let topic = outbox.topic(row)?;
        let Routed { route, partitions, .. } = self.route_to(topic.clone(), version).await?;
        let Place { partition, timestamp_ms } = outbox.place(row)?;
        if let Some(number) = partition.filter(|number| !(0..partitions).contains(number)) {
            return Err(outbox.without_partition(number.into()));
        }
        if kind != Kind::ChunkRow {
            self.counted(machine, Some(&version.collection), event).await?;
        }
        let Written { key, value, schemas } = outbox.record(row, &mut self.record)?;
        if let Some(WrittenSchemas { key, value }) = schemas {
            let (table, ids, record) = (&version.relation.name, &mut self.routed.ids, &mut self.record);
            if let Some(schema) = key {
                avro::set_id(&mut record.key, ids.id(table, &topic, "key", &schema).await?);
            }
            if let Some(schema) = value {
                avro::set_id(&mut record.value, ids.id(table, &topic, "value", &schema).await?);
            }
        }
        let (position, token) = if kind == Kind::ChunkRow { machine.chunk_record() } else { machine.record() };
        let draft = Draft {
            header: Header { kind, epoch: machine.epoch(), position, relation: version.relation.fingerprint },
            partition: partition.or((!key).then_some(0)),
            key: key.then_some(&self.record.key),
            value: value.then_some(&self.record.value),
            absent: None,
            text: &[],
            other_key: None,
            headers: if self.record.headers.is_empty() { NO_HEADERS } else { &self.record.headers },
            token,
        };
        version.records.increment(1);
        // The records behind it have the time at which they were read.
        let read_at = self.outlet.timestamp_ms;
        self.outlet.timestamp_ms = timestamp_ms.unwrap_or(read_at);
        let sent = self.outlet.send(machine, route, &draft).await;
        self.outlet.timestamp_ms = read_at;
        sent
    }

    /// The route to a topic, which is there from then on.
    async fn route_to(&mut self, topic: String, version: &Version) -> Result<Routed> {
        let table = &version.relation.name;
        if let Some(routed) = self.routed.routes.get(&topic).filter(|routed| routed.owner == *table) {
            return Ok(routed.clone());
        }
        self.routed.admit(&topic, table)?;
        let timed = version.outbox.as_ref().is_some_and(|outbox| outbox.outbox().columns.timestamp.is_some());
        let kind = if timed { TopicKind::Timed } else { TopicKind::Data };
        let wanted = Wanted { name: topic.clone(), partitions: version.relation.partitions, kind };
        let facts = topics::ensure(&self.config.kafka, &[wanted], self.config.create).await?.remove(0);
        tracing::info!(%table, topic, "a topic that rows of an outbox name");
        let identity = TopicIdentity { id: facts.id, partitions: facts.partitions };
        let route = self.route(&topic, false);
        let routed = Routed { route, owner: table.clone(), partitions: facts.partitions };
        self.routed.known.insert(topic_collision(&topic), topic.clone());
        self.routed.routes.insert(topic.clone(), routed.clone());
        self.routed.news.push((topic, identity));
        Ok(routed)
    }

    /// Topics that the ledger is to be told of.
    pub fn take_routed(&mut self) -> Vec<(String, TopicIdentity)> {
        std::mem::take(&mut self.routed.news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> RoutedTopics {
        let by_collision =
            |names: &[&str]| names.iter().map(|name| (topic_collision(name), (*name).to_owned())).collect();
        RoutedTopics {
            owned: by_collision(&["shop.public.t", "shop.ledger"]),
            known: by_collision(&["shop.event.Order"]),
            routes: HashMap::new(),
            news: Vec::new(),
            ids: RoutedIds::new(None),
        }
    }

    #[test]
    fn rows_name_topics_that_are_nobody_elses() {
        let table = TableName::new("public", "outbox");
        let refusal = |topic: &str| topics().admit(topic, &table).map_err(|error| error.to_string());
        assert_eq!(refusal("shop.event.Order"), Ok(()));
        assert_eq!(refusal("shop.event.Customer"), Ok(()));
        for (topic, found) in [
            ("shop.public.t", "which is not an outbox's"),
            ("shop_ledger", "which Kafka can't tell from \"shop.ledger\""),
            ("shop.event_Order", "which Kafka can't tell from \"shop.event.Order\""),
            ("..", "which is no name of a topic"),
            (&"x".repeat(250), "which is no name of a topic"),
        ] {
            assert!(refusal(topic).unwrap_err().contains(found), "{topic}");
        }
    }
}

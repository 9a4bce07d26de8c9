//! Ids for the schemas of records in Avro: no record is written before its schemas have them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::avro::{EventKind, SchemaIds};
use crate::config::{Config, Wire};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::relation::{AvroSchemas, Format, Relation, TableName};

/// Of a relation version; `None` if its format needs none. Events of an outbox have schemas of their own ([`RoutedIds`]).
pub async fn relation_ids(registry: Option<&Registry>, relation: &Relation) -> Result<Option<SchemaIds>> {
    let Some(schemas) = relation.avro.as_ref().filter(|_| relation.modes.outbox.is_none()) else { return Ok(None) };
    let registry = registry.expect("a configuration with Avro has a registry");
    let what = format!("table {}", relation.name);
    Ok(Some(ids(registry, &what, &relation.topic, schemas).await?))
}

/// Of the topics that hold no rows, in the order of [`EventKind::ALL`]; `None` if they are not in Avro. They are written in the
/// format that tables have by default.
pub async fn event_ids(registry: Option<&Registry>, config: &Config) -> Result<Option<[SchemaIds; 3]>> {
    let wire = &config.wire;
    if wire.tables.format != Format::Avro {
        return Ok(None);
    }
    let mut found = [SchemaIds { key: None, value: 0 }; 3];
    for (kind, found) in EventKind::ALL.into_iter().zip(&mut found) {
        if let Some(topic) = topic(kind, wire) {
            let registry = registry.expect("a configuration with Avro has a registry");
            *found = ids(registry, &format!("topic {topic}"), topic, &kind.schemas(&wire.tables.modes)).await?;
        }
    }
    Ok(Some(found))
}

/// What asking for all these ids would be refused for, found out without registering anything: a finding for each schema, but a
/// single one where the registry itself is the trouble.
pub async fn refusals(registry: &Registry, config: &Config, relations: &[Relation]) -> Vec<Error> {
    if let Err(error) = registry.answers().await {
        return vec![error];
    }
    let of_tables = relations.iter().filter_map(|relation| {
        let schemas = relation.avro.clone().filter(|_| relation.modes.outbox.is_none())?;
        Some((format!("table {}", relation.name), relation.topic.clone(), schemas))
    });
    let wire = &config.wire;
    let of_events = EventKind::ALL.into_iter().filter(|_| wire.tables.format == Format::Avro).filter_map(|kind| {
        let topic = topic(kind, wire)?;
        Some((format!("topic {topic}"), topic.to_owned(), kind.schemas(&wire.tables.modes)))
    });
    let mut errors = Vec::new();
    for (what, topic, schemas) in of_tables.chain(of_events) {
        let key = schemas.key.iter().map(|schema| (subject(&topic, "key"), schema));
        for (subject, schema) in key.chain([(subject(&topic, "value"), &schemas.value)]) {
            errors.extend(registry.would_take(&what, &subject, schema).await.err());
        }
    }
    errors
}

/// As Debezium remembers as many.
const KNOWN_MAX: usize = 10_000;

/// Ids for records whose topic and schema are known with their row.
pub struct RoutedIds {
    registry: Option<Arc<Registry>>,
    /// By subject and schema. Begun anew where there are many: the registry knows them all.
    known: HashMap<(String, Arc<str>), u32>,
}

impl RoutedIds {
    pub fn new(registry: Option<Arc<Registry>>) -> RoutedIds {
        RoutedIds { registry, known: HashMap::new() }
    }

    /// `part` is `key` or `value`.
    pub async fn id(&mut self, table: &TableName, topic: &str, part: &str, schema: &Arc<str>) -> Result<u32> {
        let asked = (subject(topic, part), schema.clone());
        if let Some(id) = self.known.get(&asked) {
            return Ok(*id);
        }
        let registry = self.registry.as_ref().expect("a configuration with Avro has a registry");
        let id = registry.register(&format!("table {table}"), &asked.0, schema).await?;
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(asked, id);
        Ok(id)
    }
}

/// The topic of these records; `None` if they are not asked for.
fn topic(kind: EventKind, wire: &Wire) -> Option<&str> {
    match kind {
        EventKind::Transaction => wire.transaction_topic.as_deref(),
        EventKind::Heartbeat => wire.heartbeat.as_ref().map(|heartbeat| heartbeat.topic.as_str()),
        EventKind::Message => wire.messages.as_ref().map(|messages| messages.topic.as_str()),
    }
}

/// Subjects are named after the topic (Confluent's TopicNameStrategy).
fn subject(topic: &str, part: &str) -> String {
    format!("{topic}-{part}")
}

async fn ids(registry: &Registry, what: &str, topic: &str, schemas: &AvroSchemas) -> Result<SchemaIds> {
    let key = match &schemas.key {
        Some(schema) => Some(registry.register(what, &subject(topic, "key"), schema).await?),
        None => None,
    };
    Ok(SchemaIds { key, value: registry.register(what, &subject(topic, "value"), &schemas.value).await? })
}

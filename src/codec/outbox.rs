//! Rows of an outbox as records: the topic, the key, the payload and the headers that each row names.
//!
//! Nobody decodes these: [`super::Decoder::of`] refuses a relation version that is an outbox. That it has the columns was checked by
//! [`super::complete()`].

use std::sync::Arc;

use super::avro::{self, SchemaIds, event};
use super::document::{Document, is_expandable};
use super::json_encode::{Encoder as JsonEncoder, push_str};
use super::schema::{Field, Schema, Type, push_json};
use super::write::Unfit;
use super::{Headers, RecordBuf, invalid, mapping};
use crate::error::{Error, Result};
use crate::pgtext::{Stamp, Temporal, parse_timestamp, parse_timestamptz};
use crate::relation::names::{fill_topic, topic_name};
use crate::relation::outbox::{Additional, EventFormat, Outbox};
use crate::relation::{Relation, quote_identifier};
use crate::value::{Cell, Row};

/// The header with an event's id.
const ID: &str = "id";
/// The field with the payload where other columns stand beside it, and the name of its struct.
const PAYLOAD: &str = "payload";

/// Writes the records of one relation version that is an outbox.
pub struct OutboxEncoder {
    relation: Arc<Relation>,
    outbox: Outbox,
    json: JsonEncoder,
    id: usize,
    key: usize,
    payload: usize,
    route: usize,
    headers: Vec<(usize, String)>,
    envelope: Vec<(usize, String)>,
    timestamp: Option<usize>,
    version: Option<usize>,
    partition: Option<usize>,
    /// Where keys and values have a schema.
    schemas: Option<Schemas>,
    avro: Option<Box<Avro>>,
}

struct Schemas {
    /// `PREFIX.SCHEMA.TABLE`
    stem: String,
    /// In front of a key that carries its schema.
    key: Vec<u8>,
    payload: Schema,
    envelope: Vec<Field>,
}

struct Avro {
    encoder: avro::Encoder,
    key: Arc<str>,
    /// Of a payload that is all of its value.
    payload: Arc<str>,
}

/// What of a record there is: the rest is null.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Written {
    pub key: bool,
    pub value: bool,
    /// In Avro, the schemas whose ids are still to be put in front ([`avro::set_id`]).
    pub schemas: Option<WrittenSchemas>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WrittenSchemas {
    pub key: Option<Arc<str>>,
    pub value: Option<Arc<str>>,
}

/// Where a record goes, where its row says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// `None`: by its key.
    pub partition: Option<i32>,
    /// Milliseconds since 1970; `None`: when the row was read.
    pub timestamp_ms: Option<i64>,
}

impl OutboxEncoder {
    /// `None` if the relation is no outbox. `prefix` is the topic prefix, `db` the source's database.
    pub fn new(relation: &Arc<Relation>, prefix: &str, db: &str) -> Option<OutboxEncoder> {
        let outbox = relation.modes.outbox.clone()?;
        let modes = &relation.modes;
        let at = |name: &str| {
            let found = relation.columns.iter().position(|column| column.name == name);
            found.expect("a complete relation has the columns of its outbox")
        };
        let schema = |column: usize| {
            let schema = mapping::schema(&relation.columns[column], modes);
            schema.expect("a complete relation has a form for the columns of its outbox")
        };
        let named = |additional: &Additional| (at(&additional.column), additional.name.clone());
        let envelope: Vec<(usize, String)> = outbox.envelope().map(named).collect();
        let columns = &outbox.columns;
        let (id, key, payload, route) = (at(&columns.id), at(&columns.key), at(&columns.payload), at(&columns.route));
        let avro = (outbox.format == EventFormat::Avro).then(|| {
            let ids = SchemaIds { key: None, value: 0 };
            let encoder = avro::Encoder::new(relation.clone(), ids, prefix, db);
            Box::new(Avro {
                encoder: encoder.expect("a complete relation has the schemas of its columns"),
                key: event::text(&schema(key)).into(),
                payload: event::text(&schema(payload)).into(),
            })
        });
        let schemas = (modes.schemas || avro.is_some()).then(|| Schemas {
            stem: topic_name(prefix, &modes.delimiter, &relation.name),
            key: super::events::head(&schema(key)),
            payload: schema(payload),
            envelope: envelope.iter().map(|(i, name)| Field { name: name.clone(), schema: schema(*i) }).collect(),
        });
        Some(OutboxEncoder {
            timestamp: columns.timestamp.as_deref().map(at),
            version: columns.schema_version.as_deref().map(at),
            partition: outbox.partition().map(at),
            headers: outbox.headers().map(named).collect(),
            json: JsonEncoder::new(relation.clone(), prefix, db),
            relation: relation.clone(),
            id,
            key,
            payload,
            route,
            envelope,
            schemas,
            avro,
            outbox,
        })
    }

    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The topic that the row is for. A row without a route is RECORD_INVALID.
    pub fn topic(&self, row: Row<'_>) -> Result<String> {
        let route = self.route(row)?;
        let value = |name: &str| (name == "route").then_some(route.as_str());
        Ok(fill_topic(&self.outbox.topic, value).expect("the configuration was checked for placeholders"))
    }

    fn route(&self, row: Row<'_>) -> Result<String> {
        self.plain(self.route, row)?.and_then(|text| String::from_utf8(text).ok()).ok_or_else(|| self.without_route())
    }

    fn without_route(&self) -> Error {
        let table = &self.relation.name;
        let column = quote_identifier(&self.relation.columns[self.route].name);
        let hint = format!(
            "write route_by_field = \"…\" into [outbox] of its connector; so that it can't come again: ALTER TABLE {} ALTER COLUMN \
             {column} SET NOT NULL",
            table.quoted()
        );
        invalid(&self.relation, Some(self.route), "an event without a route: its topic can't be told", hint)
    }

    /// An event that was changed after it was written.
    pub fn updated(&self) -> Error {
        let found = "an event was updated, and events are for ever: consumers have the one that was inserted";
        let hint = "write invalid_operations = \"warn\" into [outbox] of its connector, to go on without it";
        invalid(&self.relation, None, found, hint.to_owned())
    }

    /// Where the row's record goes in its topic, and at which time. What can be neither is RECORD_INVALID.
    pub fn place(&self, row: Row<'_>) -> Result<Place> {
        let partition = self.partition.map(|column| self.number(column, row)).transpose()?.flatten();
        let partition = partition.map(|number| i32::try_from(number).map_err(|_| self.without_partition(number)));
        let timestamp_ms = self.timestamp.map(|column| self.millis(column, row)).transpose()?.flatten();
        Ok(Place { partition: partition.transpose()?, timestamp_ms })
    }

    /// A row that says a partition that its topic has not.
    pub fn without_partition(&self, number: i64) -> Error {
        let found = format!("an event for partition {number}, which its topic does not have");
        let hint = "write partitions = … into its connector and give the topic as many, or COLUMN:partition in additional_placement \
                    of [outbox] with another column";
        invalid(&self.relation, self.partition, &found, hint.to_owned())
    }

    fn number(&self, column: usize, row: Row<'_>) -> Result<Option<i64>> {
        let Cell::Text(text) = row.get(column) else { return Ok(None) };
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| super::unfit(&self.relation, column, Unfit::NotOfItsType)).map(Some)
    }

    /// A timestamp without a zone is in UTC, as in records.
    fn millis(&self, column: usize, row: Row<'_>) -> Result<Option<i64>> {
        let Cell::Text(text) = row.get(column) else { return Ok(None) };
        let parsed = match self.relation.columns[column].type_oid {
            mapping::oid::TIMESTAMPTZ => parse_timestamptz(text),
            _ => parse_timestamp(text),
        };
        match parsed {
            None => Err(super::unfit(&self.relation, column, Unfit::NotOfItsType)),
            Some(Temporal::Finite(Stamp { seconds, micros })) if seconds >= 0 => {
                Ok(Some(seconds * 1_000 + i64::from(micros / 1_000)))
            }
            Some(_) => {
                let found = "the time of an event is infinite or before 1970, which no record of Kafka can have";
                let hint =
                    "write timestamp_field = \"…\" with another column into [outbox] of its connector, or delete it";
                Err(invalid(&self.relation, Some(column), found, hint.to_owned()))
            }
        }
    }

    /// Writes key, value and headers of the row's record.
    pub fn record(&self, row: Row<'_>, out: &mut RecordBuf) -> Result<Written> {
        let RecordBuf { key, value, text, headers, shell: _ } = out;
        key.clear();
        value.clear();
        text.clear();
        self.push_headers(row, headers)?;
        match &self.avro {
            None => Ok(Written { key: self.push_key(row, key)?, value: self.push_value(row, value)?, schemas: None }),
            Some(avro) => {
                let has_key = self.push_avro_key(avro, row, key)?;
                let schema = self.push_avro_value(avro, row, value)?;
                let schemas = WrittenSchemas { key: has_key.then(|| avro.key.clone()), value: schema };
                Ok(Written { key: has_key, value: schemas.value.is_some(), schemas: Some(schemas) })
            }
        }
    }

    fn push_avro_key(&self, avro: &Avro, row: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        let there = row.get(self.key).text().is_some();
        if there {
            event::begin(out);
            avro.encoder.alone(self.key, row, out)?;
        }
        Ok(there)
    }

    /// The schema of what was written; `None`: there is no value.
    fn push_avro_value(&self, avro: &Avro, row: Row<'_>, out: &mut Vec<u8>) -> Result<Option<Arc<str>>> {
        let text = row.get(self.payload).text();
        if self.outbox.tombstones && is_empty(text) {
            return Ok(None);
        }
        let schemas = self.schemas.as_ref().expect("in Avro there are schemas");
        let expanding = text.filter(|_| self.outbox.expand).and_then(|text| std::str::from_utf8(text).ok());
        let document = expanding.and_then(|text| Document::parse(text, PAYLOAD));
        if self.envelope.is_empty() && document.is_none() {
            if text.is_none() {
                return Ok(None);
            }
            event::begin(out);
            avro.encoder.alone(self.payload, row, out)?;
            return Ok(Some(avro.payload.clone()));
        }
        event::begin(out);
        match &document {
            Some(document) => document.push_avro(out),
            None => avro.encoder.field(self.payload, row, out)?,
        }
        for (column, _) in &self.envelope {
            avro.encoder.field(*column, row, out)?;
        }
        Ok(Some(event::text(&self.value_schema(schemas, row, document.as_ref())?).into()))
    }

    fn push_key(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        if self.outbox.format != EventFormat::Json {
            let key = self.plain(self.key, row)?;
            out.extend_from_slice(key.as_deref().unwrap_or_default());
            return Ok(key.is_some());
        }
        let Cell::Text(text) = row.get(self.key) else { return Ok(false) };
        out.extend_from_slice(self.schemas.as_ref().map_or(&[], |schemas| schemas.key.as_slice()));
        self.json.value(self.key, text, out)?;
        if self.schemas.is_some() {
            out.push(b'}');
        }
        Ok(true)
    }

    fn push_value(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<bool> {
        let text = row.get(self.payload).text();
        if self.outbox.tombstones && is_empty(text) {
            return Ok(false);
        }
        let whole = match self.outbox.format {
            EventFormat::Json | EventFormat::Avro => None,
            EventFormat::String => Some(self.plain(self.payload, row)?),
            EventFormat::Bytes => Some(text.map(|text| self.bytes(text)).transpose()?),
        };
        if let Some(payload) = whole {
            out.extend_from_slice(payload.as_deref().unwrap_or_default());
            return Ok(payload.is_some());
        }
        let expanding = text.filter(|_| self.outbox.expand).and_then(|text| std::str::from_utf8(text).ok());
        match &self.schemas {
            None => self.push_payload(row, expanding.filter(|text| is_expandable(text)), out)?,
            Some(schemas) => self.push_with_schema(schemas, row, expanding, out)?,
        }
        Ok(true)
    }

    /// The payload's bytes: those of a bytea, the text of anything else.
    fn bytes(&self, text: &[u8]) -> Result<Vec<u8>> {
        if self.relation.columns[self.payload].type_oid != mapping::oid::BYTEA {
            return Ok(text.to_vec());
        }
        let bytes = text.strip_prefix(b"\\x").and_then(|digits| hex::decode(digits).ok());
        bytes.ok_or_else(|| super::unfit(&self.relation, self.payload, Unfit::NotOfItsType))
    }

    /// The payload, and what stands beside it. `expanded` is JSON that stands in its place as it is.
    fn push_payload(&self, row: Row<'_>, expanded: Option<&str>, out: &mut Vec<u8>) -> Result<()> {
        if !self.envelope.is_empty() {
            out.extend_from_slice(br#"{"payload":"#);
        }
        match expanded {
            Some(json) => out.extend_from_slice(json.as_bytes()),
            None => self.push_cell(self.payload, row, out)?,
        }
        for (column, name) in &self.envelope {
            out.push(b',');
            push_str(out, name);
            out.push(b':');
            self.push_cell(*column, row, out)?;
        }
        if !self.envelope.is_empty() {
            out.push(b'}');
        }
        Ok(())
    }

    fn push_with_schema(
        &self,
        schemas: &Schemas,
        row: Row<'_>,
        expanding: Option<&str>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let document = expanding.and_then(|text| Document::parse(text, PAYLOAD));
        let schema = self.value_schema(schemas, row, document.as_ref())?;
        out.extend_from_slice(br#"{"schema":"#);
        push_json(&schema, None, out);
        out.extend_from_slice(br#","payload":"#);
        let json = document.map(|document| {
            let mut json = Vec::new();
            document.push(&mut json);
            String::from_utf8(json).expect("JSON is UTF-8")
        });
        self.push_payload(row, json.as_deref(), out)?;
        out.push(b'}');
        Ok(())
    }

    /// That of the payload, or of the object in which it and what stands beside it are.
    fn value_schema(&self, schemas: &Schemas, row: Row<'_>, document: Option<&Document<'_>>) -> Result<Schema> {
        let payload = document.map_or(&schemas.payload, |document| &document.schema).clone();
        if schemas.envelope.is_empty() {
            return Ok(payload);
        }
        let payload = Field { name: PAYLOAD.to_owned(), schema: payload };
        let fields = std::iter::once(payload).chain(schemas.envelope.iter().cloned()).collect();
        let name = format!("{}.{}.Value", schemas.stem, self.route(row)?);
        let name = self.relation.modes.schema_names.schema(&name).into_owned();
        let version = self.version.map(|column| self.schema_version(column, row)).transpose()?.flatten();
        Ok(Schema { name: Some(name), version, ..Schema::new(Type::Struct(fields)) })
    }

    fn schema_version(&self, column: usize, row: Row<'_>) -> Result<Option<u32>> {
        let Some(number) = self.number(column, row)? else { return Ok(None) };
        let version = u32::try_from(number).ok().filter(|version| i32::try_from(*version).is_ok());
        version.map(Some).ok_or_else(|| {
            let found = format!("{number} is no version of a schema, which is a whole number of 31 bits");
            let hint =
                "write schema_version_field = \"…\" with another column into [outbox] of its connector, or delete it";
            invalid(&self.relation, Some(column), &found, hint.to_owned())
        })
    }

    fn push_cell(&self, column: usize, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        match row.get(column) {
            Cell::Text(text) => self.json.value(column, text, out).map(drop),
            Cell::Null | Cell::Absent => {
                out.extend_from_slice(b"null");
                Ok(())
            }
        }
    }

    fn push_headers(&self, row: Row<'_>, out: &mut Headers) -> Result<()> {
        out.clear();
        out.push((ID.to_owned(), self.plain(self.id, row)?));
        for (column, name) in &self.headers {
            out.push((name.clone(), self.plain(*column, row)?));
        }
        Ok(())
    }

    /// A column's value as text: a string itself, anything else as its JSON.
    fn plain(&self, column: usize, row: Row<'_>) -> Result<Option<Vec<u8>>> {
        let Cell::Text(text) = row.get(column) else { return Ok(None) };
        let mut json = Vec::new();
        self.json.value(column, text, &mut json)?;
        if json.first() == Some(&b'"') {
            json = serde_json::from_slice::<String>(&json).expect("just written").into_bytes();
        }
        Ok(Some(json))
    }
}

/// Whether a payload says nothing.
fn is_empty(payload: Option<&[u8]>) -> bool {
    payload.is_none_or(|text| text.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests;

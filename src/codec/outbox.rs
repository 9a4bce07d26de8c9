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
mod tests {
    use super::super::mapping::oid;
    use super::super::tests::{column, relation_of};
    use super::*;
    use crate::codec::Decoder;
    use crate::error::Code;
    use crate::relation::outbox::{Columns, Updates};
    use crate::relation::{Format, Modes};
    use crate::value::RowBuf;

    fn plain() -> Outbox {
        let name = str::to_owned;
        let columns = Columns {
            id: name("id"),
            key: name("key"),
            payload: name("payload"),
            route: name("route"),
            timestamp: None,
            schema_version: None,
        };
        let (additional, format, updates) = (Vec::new(), EventFormat::Json, Updates::Warn);
        Outbox {
            topic: name("p.event.{route}"),
            columns,
            additional,
            expand: false,
            tombstones: false,
            format,
            updates,
        }
    }

    fn relation(outbox: Outbox, schemas: bool) -> Arc<Relation> {
        let columns = vec![
            column("id", oid::INT4, -1, false, Some(0)),
            column("route", oid::TEXT, -1, true, None),
            column("key", oid::TEXT, -1, true, None),
            column("payload", oid::JSONB, -1, true, None),
        ];
        let modes = Modes { outbox: Some(outbox), schemas, ..Modes::default() };
        Arc::new(Relation { modes, ..(*relation_of(columns)).clone() }.sealed())
    }

    fn encoder(outbox: Outbox, schemas: bool) -> OutboxEncoder {
        OutboxEncoder::new(&relation(outbox, schemas), "p", "db").unwrap()
    }

    fn row<'a>(route: Option<&'a str>, key: Option<&'a str>, payload: Option<&'a str>) -> RowBuf {
        let cell = |text: Option<&'a str>| text.map_or(Cell::Null, |text| Cell::Text(text.as_bytes()));
        [Cell::Text(b"7"), cell(route), cell(key), cell(payload)].into_iter().collect()
    }

    /// Key and value; `-` where there is none.
    fn written(encoder: &OutboxEncoder, row: &RowBuf) -> (String, String) {
        let mut out = RecordBuf::default();
        let Written { key, value, .. } = encoder.record(row.row(), &mut out).unwrap();
        let text =
            |is: bool, bytes: &[u8]| if is { String::from_utf8(bytes.to_vec()).unwrap() } else { "-".to_owned() };
        (text(key, &out.key), text(value, &out.value))
    }

    #[test]
    fn a_row_names_topic_key_and_payload() {
        let encoder = encoder(plain(), false);
        let event = row(Some("Order é"), Some("k\"1"), Some("{\"a\": 1}"));
        assert_eq!(encoder.topic(event.row()).unwrap(), "p.event.Order__");
        assert_eq!(written(&encoder, &event), (r#""k\"1""#.into(), r#""{\"a\": 1}""#.into()));
        assert_eq!(written(&encoder, &row(Some("r"), None, None)), ("-".into(), "null".into()));
        let error = encoder.topic(row(None, None, None).row()).unwrap_err();
        assert_eq!(error.code(), Some(Code::RecordInvalid));
        assert!(error.to_string().contains("column \"route\": an event without a route"), "{error}");
    }

    #[test]
    fn strings_are_their_texts_and_an_empty_one_is_not_none() {
        let encoder = encoder(Outbox { format: EventFormat::String, ..plain() }, false);
        assert_eq!(written(&encoder, &row(Some("r"), Some(""), Some("[1, \"a\"]"))), ("".into(), "[1, \"a\"]".into()));
        assert_eq!(written(&encoder, &row(Some("r"), None, None)), ("-".into(), "-".into()));
    }

    #[test]
    fn bytes_pass_through() {
        let bytes = Outbox { format: EventFormat::Bytes, ..plain() };
        let of_text = encoder(bytes.clone(), false);
        assert_eq!(written(&of_text, &row(Some("r"), Some("k"), Some("\\x41"))), ("k".into(), "\\x41".into()));
        let mut relation = Relation::clone(&relation(bytes, false));
        let payload = relation.columns.iter_mut().find(|column| column.name == "payload").unwrap();
        payload.type_oid = oid::BYTEA;
        let of_bytea = OutboxEncoder::new(&Arc::new(relation), "p", "db").unwrap();
        // Confluent's framing of an Avro string, as an application's serializer writes it.
        let mut out = RecordBuf::default();
        let of_bytea_row = |payload| row(Some("r"), Some("k"), payload);
        of_bytea.record(of_bytea_row(Some("\\x00000000070461ff")).row(), &mut out).unwrap();
        assert_eq!(out.value, [0, 0, 0, 0, 7, 4, b'a', 0xff]);
        assert_eq!(written(&of_bytea, &of_bytea_row(None)), ("k".into(), "-".into()));
        assert_eq!(written(&of_bytea, &of_bytea_row(Some("\\x"))), ("k".into(), "".into()));
        let error = of_bytea.record(of_bytea_row(Some("\\x0")).row(), &mut out).unwrap_err();
        assert_eq!(error.code(), Some(Code::RecordInvalid));
    }

    #[test]
    fn payloads_are_expanded_as_they_are_without_a_schema() {
        let encoder = encoder(Outbox { expand: true, tombstones: true, ..plain() }, false);
        let value = |payload| written(&encoder, &row(Some("r"), None, Some(payload))).1;
        assert_eq!(value(r#"{"n": 1.50, "x": null, "m": [1, "a"]}"#), r#"{"n": 1.50, "x": null, "m": [1, "a"]}"#);
        assert_eq!(value("[]"), r#""[]""#);
        assert_eq!(value(" "), "-");
    }

    #[test]
    fn columns_stand_beside_the_payload_and_in_headers() {
        let additional = ["route:envelope:kind", "key:header:by", "id:header:number"];
        let additional = additional.iter().map(|text| Additional::parse(text).unwrap()).collect();
        let encoder = encoder(Outbox { additional, expand: true, ..plain() }, true);
        let mut out = RecordBuf::default();
        encoder.record(row(Some("R"), None, Some("{\"a\":[1]}")).row(), &mut out).unwrap();
        let wanted = concat!(
            r#"{"schema":{"type":"struct","fields":[{"type":"struct","fields":[{"type":"array","items":{"type":"int32","#,
            r#""optional":true},"optional":true,"field":"a"}],"optional":true,"name":"payload","field":"payload"},"#,
            r#"{"type":"string","optional":true,"field":"kind"}],"optional":false,"name":"p.public.t.R.Value"},"#,
            r#""payload":{"payload":{"a":[1]},"kind":"R"}}"#
        );
        assert_eq!(std::str::from_utf8(&out.value).unwrap(), wanted);
        let header = |name: &str, text: Option<&str>| (name.to_owned(), text.map(|text| text.as_bytes().to_vec()));
        assert_eq!(out.headers, [header("id", Some("7")), header("by", None), header("number", Some("7"))]);
    }

    #[test]
    fn events_in_avro_leave_room_for_ids() {
        let avro = |outbox: Outbox, payload: Option<(u32, bool)>| {
            let mut relation = Relation::clone(&relation(Outbox { format: EventFormat::Avro, ..outbox }, false));
            relation.format = Format::Avro;
            if let Some((type_oid, nullable)) = payload {
                let column = relation.columns.iter_mut().find(|column| column.name == "payload").unwrap();
                (column.type_oid, column.nullable) = (type_oid, nullable);
            }
            let relation = super::super::complete(relation, "p").unwrap();
            OutboxEncoder::new(&Arc::new(relation), "p", "db").unwrap()
        };
        let record = |encoder: &OutboxEncoder, row: RowBuf| {
            let mut out = RecordBuf::default();
            let schemas = encoder.record(row.row(), &mut out).unwrap().schemas.unwrap();
            (out.key, out.value, schemas.key, schemas.value)
        };
        let (mut key, value, key_schema, value_schema) =
            record(&avro(plain(), None), row(Some("r"), Some("k"), Some("{}")));
        avro::set_id(&mut key, 7);
        // A union's second branch, and a string with its length.
        assert_eq!((key, value), (vec![0, 0, 0, 0, 7, 2, 2, b'k'], vec![0, 0, 0, 0, 0, 2, 4, b'{', b'}']));
        assert_eq!(key_schema.as_deref(), Some(r#"["null","string"]"#));
        let json = r#"["null",{"type":"string","connect.version":1,"connect.name":"io.debezium.data.Json"}]"#;
        assert_eq!(value_schema.as_deref(), Some(json));
        let nothing = record(&avro(plain(), None), row(Some("r"), None, None));
        assert_eq!(nothing, (vec![], vec![], None, None));

        // Bytes by themselves have no length, as Confluent's serializer writes them.
        let bytes = |nullable| avro(plain(), Some((oid::BYTEA, nullable)));
        let value = |encoder: &OutboxEncoder| record(encoder, row(Some("r"), None, Some("\\x0102"))).1;
        assert_eq!(value(&bytes(false))[5..], [1, 2]);
        assert_eq!(value(&bytes(true))[5..], [2, 4, 1, 2]);
        let long = format!("\\x{}", "00".repeat(100));
        assert_eq!(record(&bytes(false), row(Some("r"), None, Some(&long))).1.len(), 105);
    }

    /// Of a relation with columns for all that a row may say besides.
    fn placing() -> Relation {
        let columns =
            Columns { timestamp: Some("at".into()), schema_version: Some("version".into()), ..plain().columns };
        let additional = ["route:envelope", "part:partition"];
        let additional = additional.iter().map(|text| Additional::parse(text).unwrap()).collect();
        let mut relation = Relation::clone(&relation(Outbox { columns, additional, ..plain() }, true));
        relation.columns.extend([
            column("at", oid::TIMESTAMPTZ, -1, true, None),
            column("version", oid::INT4, -1, true, None),
            column("part", oid::INT2, -1, true, None),
        ]);
        relation.sealed()
    }

    #[test]
    fn a_row_says_its_records_time_partition_and_version() {
        let encoder = OutboxEncoder::new(&Arc::new(placing()), "p", "db").unwrap();
        let row = |placing: [Option<&'static str>; 3]| -> RowBuf {
            let cells = [Some("7"), Some("r"), Some("k"), Some("1")].into_iter().chain(placing);
            cells.map(|text| text.map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))).collect()
        };
        let place = |placing| encoder.place(row(placing).row());
        let said = place([Some("2001-09-09 03:46:40.0079+02"), Some("3"), Some("1")]).unwrap();
        assert_eq!(said, Place { partition: Some(1), timestamp_ms: Some(1_000_000_000_007) });
        assert_eq!(place([None; 3]).unwrap(), Place { partition: None, timestamp_ms: None });
        for never in ["infinity", "1969-12-31 23:59:59.999+00"] {
            let error = place([Some(never), None, None]).unwrap_err();
            assert_eq!(error.code(), Some(Code::RecordInvalid), "{never}");
            assert!(
                error.to_string().contains("column \"at\": the time of an event is infinite or before 1970"),
                "{error}"
            );
        }
        let versioned = |version| written(&encoder, &row([None, Some(version), None])).1;
        assert!(
            versioned("3").contains(r#""name":"p.public.t.r.Value","version":3},"payload":"#),
            "{}",
            versioned("3")
        );
        let unversioned = written(&encoder, &row([None; 3])).1;
        assert!(unversioned.contains(r#""name":"p.public.t.r.Value"},"payload":"#), "{unversioned}");
        let error = encoder.record(row([None, Some("-1"), None]).row(), &mut RecordBuf::default()).unwrap_err();
        assert!(error.to_string().contains("-1 is no version of a schema"), "{error}");
    }

    #[test]
    fn what_says_a_time_or_a_number_is_of_a_type_that_does() {
        assert!(super::super::complete(placing(), "p").is_ok());
        for (name, wanted) in [("at", "a timestamp"), ("version", "an integer"), ("part", "an integer")] {
            let mut wrong = placing();
            wrong.columns.iter_mut().find(|column| column.name == name).unwrap().type_oid = oid::TEXT;
            let error = super::super::complete(wrong, "p").unwrap_err();
            assert_eq!(error.code(), Some(Code::TableUnsupported));
            assert!(error.to_string().contains(&format!("column {name:?} is not {wanted}")), "{error}");
        }
    }

    #[test]
    fn an_outbox_has_its_columns_and_no_sink() {
        let columns = Columns { payload: "body".into(), ..plain().columns };
        let error = super::super::complete((*relation(Outbox { columns, ..plain() }, false)).clone(), "p").unwrap_err();
        assert_eq!(error.code(), Some(Code::TableUnsupported));
        assert!(error.to_string().contains("column \"body\" is not there"), "{error}");
        assert_eq!(Decoder::of(relation(plain(), false)).err().unwrap().code(), Some(Code::RecordInvalid));
    }
}

//! Records that are not rows, in Avro: transactions, heartbeats, logical messages.
//!
//! They are few, so they are written from trees.

use super::encode::datum_of;
use super::schema::json;
use super::shape::Shape;
use super::{FRAME_BYTES, SchemaIds, frame};
use crate::codec::schema::{self, Schema, Type, Value};
use crate::codec::write::{TreeWriter, opaque};
use crate::codec::{Event, RecordBuf, TransactionMark, VERSION, sequence, transaction_id};
use crate::relation::{AvroSchemas, BinaryMode, Modes};

/// A topic of records that are not rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    Transaction,
    Heartbeat,
    Message,
}

impl EventKind {
    pub const ALL: [EventKind; 3] = [EventKind::Transaction, EventKind::Heartbeat, EventKind::Message];

    /// What its records are written with.
    pub fn schemas(self, modes: &Modes) -> AvroSchemas {
        let (key, value) = self.connect(modes);
        AvroSchemas { key: Some(json(&key)), value: json(&value) }
    }

    fn connect(self, modes: &Modes) -> (Schema, Schema) {
        match self {
            EventKind::Transaction => (schema::transaction_key(), schema::transaction_value()),
            EventKind::Heartbeat => (schema::heartbeat_key(), schema::heartbeat_value()),
            EventKind::Message => {
                let content = match modes.binary {
                    BinaryMode::Bytes => Schema::new(Type::Bytes),
                    _ => schema::string(),
                };
                (schema::message_key(), schema::message_value(content))
            }
        }
    }
}

/// Writes the records of the topics that hold no rows.
pub struct EventEncoder {
    prefix: String,
    db: String,
    binary: BinaryMode,
    /// In the order of [`EventKind::ALL`].
    kinds: [Kind; 3],
}

/// Key and value.
type Kind = [(Shape, [u8; FRAME_BYTES]); 2];

impl EventEncoder {
    /// `ids` in the order of [`EventKind::ALL`]; those of kinds that are never written are never looked at.
    pub fn new(prefix: &str, db: &str, modes: &Modes, ids: [SchemaIds; 3]) -> EventEncoder {
        let kind = |(kind, ids): (EventKind, SchemaIds)| -> Kind {
            let schemas = kind.schemas(modes);
            let key = schemas.key.as_deref().expect("events have keys");
            let shape = |schema| Shape::parse(schema).expect("a schema that was just made");
            [(shape(key), frame(ids.key.unwrap_or_default())), (shape(&schemas.value), frame(ids.value))]
        };
        let [transaction, heartbeat, message] = EventKind::ALL;
        let kinds = [kind((transaction, ids[0])), kind((heartbeat, ids[1])), kind((message, ids[2]))];
        EventEncoder { prefix: prefix.to_owned(), db: db.to_owned(), binary: modes.binary, kinds }
    }

    pub fn transaction(&self, mark: &TransactionMark<'_>, out: &mut RecordBuf) {
        let id = || Value::String(transaction_id(mark.xid, mark.lsn));
        let status = if mark.collections.is_some() { "END" } else { "BEGIN" };
        let (count, collections) = match mark.collections {
            None => (Value::Null, Value::Null),
            Some(collections) => {
                let total = collections.iter().map(|(_, count)| count).sum::<u64>();
                let one = |(name, count): &(String, u64)| {
                    Value::Struct(vec![("data_collection", text(name)), ("event_count", number(*count))])
                };
                (number(total), Value::Array(collections.iter().map(one).collect()))
            }
        };
        let value = Value::Struct(vec![
            ("status", text(status)),
            ("id", id()),
            ("event_count", count),
            ("data_collections", collections),
            ("ts_ms", Value::Integer(mark.commit_time_us.div_euclid(1_000))),
        ]);
        self.put(EventKind::Transaction, &Value::Struct(vec![("id", id())]), &value, out);
    }

    pub fn heartbeat(&self, now_ms: i64, out: &mut RecordBuf) {
        let key = Value::Struct(vec![("serverName", text(&self.prefix))]);
        self.put(EventKind::Heartbeat, &key, &Value::Struct(vec![("ts_ms", Value::Integer(now_ms))]), out);
    }

    pub fn message(&self, event: &Event, prefix: &str, content: &[u8], out: &mut RecordBuf) {
        let mut tree = TreeWriter::default();
        opaque(self.binary, content, &mut tree);
        let block = match (event.block, event.xid) {
            (Some(block), Some(xid)) => Value::Struct(vec![
                ("id", Value::String(transaction_id(xid, event.lsn.0))),
                ("total_order", number(block.total_order)),
                ("data_collection_order", number(block.collection_order)),
            ]),
            _ => Value::Null,
        };
        let message = Value::Struct(vec![("prefix", text(prefix)), ("content", tree.value().unwrap_or(Value::Null))]);
        let value = Value::Struct(vec![
            ("op", text("m")),
            ("ts_ms", Value::Integer(event.now_ns.div_euclid(1_000_000))),
            ("source", self.source(event)),
            ("transaction", block),
            ("message", message),
        ]);
        self.put(EventKind::Message, &Value::Struct(vec![("prefix", text(prefix))]), &value, out);
    }

    /// The `source` block of a record that is of no table.
    fn source(&self, event: &Event) -> Value {
        Value::Struct(vec![
            ("version", text(VERSION)),
            ("connector", text("postgresql")),
            ("name", text(&self.prefix)),
            ("ts_ms", Value::Integer(event.commit_time_us.div_euclid(1_000))),
            ("snapshot", text(event.snapshot.as_str())),
            ("db", text(&self.db)),
            ("sequence", Value::String(sequence(event))),
            ("ts_us", Value::Integer(event.commit_time_us)),
            ("ts_ns", Value::Integer(event.commit_time_us.saturating_mul(1_000))),
            ("schema", text("")),
            ("table", text("")),
            ("txId", event.xid.map_or(Value::Null, number)),
            ("lsn", number(event.lsn.0)),
            ("xmin", Value::Null),
            ("origin", event.origin.as_ref().map_or(Value::Null, |origin| text(&origin.name))),
            ("origin_lsn", event.origin.as_ref().map_or(Value::Null, |origin| number(origin.lsn.0))),
        ])
    }

    fn put(&self, kind: EventKind, key: &Value, value: &Value, out: &mut RecordBuf) {
        let index = EventKind::ALL.iter().position(|of| *of == kind).expect("all of them");
        out.text.clear();
        for ((shape, frame), (value, out)) in
            self.kinds[index].iter().zip([(key, &mut out.key), (value, &mut out.value)])
        {
            out.clear();
            out.extend_from_slice(frame);
            out.extend_from_slice(&datum_of(value, shape));
        }
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn number(number: u64) -> Value {
    Value::Integer(number.cast_signed())
}

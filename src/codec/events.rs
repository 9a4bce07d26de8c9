//! Records that are not rows, as Debezium writes them: transactions, heartbeats, logical messages.
//!
//! They are for other consumers; our sinks never read them. In JSON with or without schemas, as most tables are; in Avro:
//! [`super::avro::EventEncoder`].

use super::json_encode::{JsonWriter, Source, push_block, push_integer, push_str};
use super::schema::{self, Schema, Type, push_json};
use super::write::opaque;
use super::{Event, RecordBuf, transaction_id};
use crate::relation::{BinaryMode, Modes};

/// Writes the records of the topics that hold no rows.
pub struct JsonEventEncoder {
    prefix: String,
    source: Source,
    binary: BinaryMode,
    heads: Option<Heads>,
}

/// `{"schema":…,"payload":` of each kind.
struct Heads {
    transaction: [Vec<u8>; 2],
    heartbeat: [Vec<u8>; 2],
    message: [Vec<u8>; 2],
}

/// Where a transaction begins or ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionMark<'a> {
    pub xid: u64,
    /// Debezium names a transaction anew with each of its events; what stays the same stands before the colon.
    pub lsn: u64,
    pub commit_time_us: i64,
    /// At the end: how many records, and of which tables.
    pub collections: Option<&'a [(String, u64)]>,
}

impl JsonEventEncoder {
    pub fn new(prefix: &str, db: &str, modes: &Modes) -> JsonEventEncoder {
        let content = match modes.binary {
            BinaryMode::Bytes => Schema::new(Type::Bytes),
            _ => schema::string(),
        };
        let heads = modes.schemas.then(|| Heads {
            transaction: [head(&schema::transaction_key()), head(&schema::transaction_value())],
            heartbeat: [head(&schema::heartbeat_key()), head(&schema::heartbeat_value())],
            message: [head(&schema::message_key()), head(&schema::message_value(content))],
        });
        let source = Source::new(prefix, db, "", "");
        JsonEventEncoder { prefix: prefix.to_owned(), source, binary: modes.binary, heads }
    }

    /// BEGIN or END of a transaction.
    pub fn transaction(&self, mark: &TransactionMark<'_>, out: &mut RecordBuf) {
        let TransactionMark { xid, lsn, commit_time_us, collections } = *mark;
        let id = transaction_id(xid, lsn);
        self.put(self.heads.as_ref().map(|heads| &heads.transaction), out, |key, value| {
            key.extend_from_slice(format!(r#"{{"id":"{id}"}}"#).as_bytes());
            let status = if collections.is_some() { "END" } else { "BEGIN" };
            value.extend_from_slice(format!(r#"{{"status":"{status}","id":"{id}","event_count":"#).as_bytes());
            match collections {
                None => value.extend_from_slice(br#"null,"data_collections":null"#),
                Some(collections) => {
                    push_integer(value, collections.iter().map(|(_, count)| count).sum::<u64>());
                    value.extend_from_slice(br#","data_collections":["#);
                    for (i, (name, count)) in collections.iter().enumerate() {
                        value.extend_from_slice(if i == 0 {
                            br#"{"data_collection":"#
                        } else {
                            br#",{"data_collection":"#
                        });
                        push_str(value, name);
                        value.extend_from_slice(br#","event_count":"#);
                        push_integer(value, *count);
                        value.push(b'}');
                    }
                    value.push(b']');
                }
            }
            value.extend_from_slice(br#","ts_ms":"#);
            push_integer(value, commit_time_us.div_euclid(1_000));
            value.push(b'}');
        });
    }

    pub fn heartbeat(&self, now_ms: i64, out: &mut RecordBuf) {
        self.put(self.heads.as_ref().map(|heads| &heads.heartbeat), out, |key, value| {
            key.extend_from_slice(br#"{"serverName":"#);
            push_str(key, &self.prefix);
            key.push(b'}');
            value.extend_from_slice(format!(r#"{{"ts_ms":{now_ms}}}"#).as_bytes());
        });
    }

    /// A message of `pg_logical_emit_message`.
    pub fn message(&self, event: &Event, prefix: &str, content: &[u8], out: &mut RecordBuf) {
        self.put(self.heads.as_ref().map(|heads| &heads.message), out, |key, value| {
            key.extend_from_slice(br#"{"prefix":"#);
            push_str(key, prefix);
            key.push(b'}');
            value.extend_from_slice(br#"{"op":"m","ts_ms":"#);
            push_integer(value, event.now_ns.div_euclid(1_000_000));
            self.source.push(event, value);
            value.extend_from_slice(br#","transaction":"#);
            push_block(event, value);
            value.extend_from_slice(br#","message":{"prefix":"#);
            push_str(value, prefix);
            value.extend_from_slice(br#","content":"#);
            opaque(self.binary, content, &mut JsonWriter::new(value));
            value.extend_from_slice(b"}}");
        });
    }

    fn put(&self, heads: Option<&[Vec<u8>; 2]>, out: &mut RecordBuf, write: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) {
        out.key.clear();
        out.value.clear();
        out.text.clear();
        if let Some([key, value]) = heads {
            out.key.extend_from_slice(key);
            out.value.extend_from_slice(value);
        }
        write(&mut out.key, &mut out.value);
        if heads.is_some() {
            out.key.push(b'}');
            out.value.push(b'}');
        }
    }
}

/// What stands before a payload that carries its schema.
pub(super) fn head(schema: &Schema) -> Vec<u8> {
    let mut head = br#"{"schema":"#.to_vec();
    push_json(schema, None, &mut head);
    head.extend_from_slice(br#","payload":"#);
    head
}

//! Flat records: the row with what was asked for of the envelope behind it.
//!
//! The row itself is written by the format's encoder, so that a column looks the same in either kind of record. Nobody decodes
//! these: [`super::Decoder::of`] refuses a relation version with flat records.

use std::borrow::Cow;
use std::sync::Arc;

use super::avro::{self, SchemaIds};
use super::events::head;
use super::json_encode::{Encoder as JsonEncoder, push_integer, push_str};
use super::schema::{self, Field, RelationSchemas, Schema, Type};
use super::{Event, Headers, Op, RecordBuf, Snapshot, VERSION, sequence, transaction_id};
use crate::error::Result;
use crate::record::Side;
use crate::relation::flat::{Added, DELETED, Fact, Flat};
use crate::relation::{Relation, TableName};
use crate::value::Row;

/// Writes the flat records of one relation version.
pub struct FlatEncoder {
    row: RowEncoder,
    flat: Flat,
    facts: Facts,
    /// `{"schema":…,"payload":` where values carry their schema, else nothing.
    head: Vec<u8>,
}

/// What writes keys and the columns of a row.
enum RowEncoder {
    Json(Box<JsonEncoder>),
    Avro(Box<avro::Encoder>),
}

/// What of an envelope is the same in all records of a table.
pub(super) struct Facts {
    prefix: String,
    db: String,
    table: TableName,
}

/// A fact's value.
#[derive(PartialEq, Debug)]
pub(in crate::codec) enum Value<'a> {
    Null,
    Integer(i64),
    Text(Cow<'a, str>),
}

impl FlatEncoder {
    /// In Avro. The relation is complete.
    pub fn avro(relation: Arc<Relation>, ids: SchemaIds, prefix: &str, db: &str) -> Result<FlatEncoder> {
        let flat = relation.modes.flat.clone().expect("records of this relation are flat");
        let facts = Facts::new(prefix, db, &relation.name);
        let row = RowEncoder::Avro(Box::new(avro::Encoder::new(relation, ids, prefix, db)?));
        Ok(FlatEncoder { row, flat, facts, head: Vec::new() })
    }

    /// In JSON. `prefix` is the topic prefix, `db` the source's database. The relation's records are flat.
    pub fn new(relation: Arc<Relation>, prefix: &str, db: &str) -> FlatEncoder {
        let flat = relation.modes.flat.clone().expect("records of this relation are flat");
        let head = if relation.modes.schemas { head(&schema(&relation, &flat, prefix)) } else { Vec::new() };
        let facts = Facts::new(prefix, db, &relation.name);
        let row = RowEncoder::Json(Box::new(JsonEncoder::new(relation, prefix, db)));
        FlatEncoder { row, flat, facts, head }
    }

    pub fn key(&self, row: Row<'_>, out: &mut RecordBuf) -> Result<()> {
        match &self.row {
            RowEncoder::Json(json) => json.key(row, out),
            RowEncoder::Avro(avro) => avro.key(row, out),
        }
    }

    pub fn key_json(&self, row: Row<'_>, out: &mut Vec<u8>) -> Result<()> {
        match &self.row {
            RowEncoder::Json(json) => json.key_json(row, out),
            RowEncoder::Avro(avro) => avro.key_json(row, out),
        }
    }

    /// Of a deleted row `before` is written, of any other `after`.
    pub(super) fn record(
        &self,
        op: Op,
        event: &Event,
        before: Option<Row<'_>>,
        after: Option<Row<'_>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        let (side, row) = if op == Op::Delete { (Side::Before, before) } else { (Side::After, after) };
        let row = row.expect("a TRUNCATE has no flat record, and the configuration leaves it out");
        let deleted = self.flat.deletes.rewrites().then(|| Value::Text((op == Op::Delete).to_string().into()));
        let facts = self.flat.fields.iter().map(|added| self.facts.value(added.of, op, event));
        let values = deleted.into_iter().chain(facts);
        match &self.row {
            RowEncoder::Json(json) => self.json(json, side, row, values, out)?,
            RowEncoder::Avro(avro) => avro.flat(side, row, values, out)?,
        }
        // It is for our sinks, and they do not read this.
        out.text.clear();
        self.headers(op, event, &mut out.headers);
        Ok(())
    }

    /// Opens the row's object again and puts what is added behind its columns.
    fn json<'v>(
        &self,
        json: &JsonEncoder,
        side: Side,
        row: Row<'_>,
        added: impl Iterator<Item = Value<'v>>,
        out: &mut RecordBuf,
    ) -> Result<()> {
        out.value.clear();
        out.value.extend_from_slice(&self.head);
        json.side(side, Some(row), out)?;
        let out = &mut out.value;
        assert_eq!(out.pop(), Some(b'}'), "a row is an object");
        for (name, value) in self.flat.added().zip(added) {
            if out.last() != Some(&b'{') {
                out.push(b',');
            }
            push_str(out, name);
            out.push(b':');
            match value {
                Value::Null => out.extend_from_slice(b"null"),
                Value::Integer(number) => push_integer(out, number),
                Value::Text(text) => push_str(out, &text),
            }
        }
        out.push(b'}');
        if !self.head.is_empty() {
            out.push(b'}');
        }
        Ok(())
    }

    fn headers(&self, op: Op, event: &Event, out: &mut Headers) {
        out.clear();
        for Added { of, name } in &self.flat.headers {
            let text = match self.facts.value(*of, op, event) {
                Value::Null => None,
                Value::Integer(number) => Some(number.to_string()),
                Value::Text(text) => Some(text.into_owned()),
            };
            out.push((name.clone(), text.map(String::into_bytes)));
        }
    }

    /// Of a tombstone behind a delete: of the envelope there is nothing but what happened.
    pub(super) fn tombstone(&self, out: &mut Headers) {
        out.clear();
        let op = |added: &&Added| added.of == Fact::Op;
        out.extend(self.flat.headers.iter().filter(op).map(|added| (added.name.clone(), Some(b"d".to_vec()))));
    }
}

impl Facts {
    pub fn new(prefix: &str, db: &str, table: &TableName) -> Facts {
        Facts { prefix: prefix.to_owned(), db: db.to_owned(), table: table.clone() }
    }

    pub fn value(&self, fact: Fact, op: Op, event: &Event) -> Value<'_> {
        let text = |text| Value::Text(Cow::Borrowed(text));
        let unsigned = |number: u64| Value::Integer(number.cast_signed());
        let block = |of: fn(super::Block) -> u64| event.block.map_or(Value::Null, |block| unsigned(of(block)));
        match fact {
            Fact::Op => Value::Text(op.letter().to_string().into()),
            Fact::TsMs => Value::Integer(event.now_ns.div_euclid(1_000_000)),
            Fact::TsUs => Value::Integer(event.now_ns.div_euclid(1_000)),
            Fact::TsNs => Value::Integer(event.now_ns),
            Fact::Version => text(VERSION),
            Fact::Connector => text("postgresql"),
            Fact::Name => text(&self.prefix),
            Fact::SourceTsMs => Value::Integer(event.commit_time_us.div_euclid(1_000)),
            Fact::SourceTsUs => Value::Integer(event.commit_time_us),
            Fact::SourceTsNs => Value::Integer(event.commit_time_us.saturating_mul(1_000)),
            // Debezium sets it for rows of a snapshot only, and a schema's default is not looked at here.
            Fact::Snapshot if event.snapshot == Snapshot::False => Value::Null,
            Fact::Snapshot => text(event.snapshot.as_str()),
            Fact::Db => text(&self.db),
            Fact::Sequence => Value::Text(sequence(event).into()),
            Fact::Schema => text(&self.table.schema),
            Fact::Table => text(&self.table.table),
            Fact::TxId => event.xid.map_or(Value::Null, unsigned),
            Fact::Lsn => unsigned(event.lsn.0),
            Fact::Xmin => Value::Null,
            Fact::Origin => event.origin.as_ref().map_or(Value::Null, |origin| Value::Text(origin.name.clone().into())),
            Fact::OriginLsn => event.origin.as_ref().map_or(Value::Null, |origin| unsigned(origin.lsn.0)),
            Fact::TransactionId => match (event.block, event.xid) {
                (Some(_), Some(xid)) => Value::Text(transaction_id(xid, event.lsn.0).into()),
                _ => Value::Null,
            },
            Fact::TotalOrder => block(|block| block.total_order),
            Fact::CollectionOrder => block(|block| block.collection_order),
        }
    }
}

/// The schema of flat records: the row's with what is added, and required.
pub(super) fn schema(relation: &Relation, flat: &Flat, prefix: &str) -> Schema {
    let row = RelationSchemas::new(relation, prefix).row;
    let deleted = flat.deletes.rewrites().then(|| (DELETED.to_owned(), schema::string()));
    let added = flat.fields.iter().map(|added| (added.name.clone(), schema_of(added.of)));
    let added = deleted.into_iter().chain(added).map(|(name, schema)| Field { name, schema: schema.optional() });
    let fields = row.fields().iter().cloned().chain(added).collect();
    Schema { of: Type::Struct(fields), optional: false, ..row }
}

/// As in the envelope, but for the default.
fn schema_of(fact: Fact) -> Schema {
    match fact {
        Fact::Snapshot => {
            let source = schema::source();
            let field = source.fields().iter().find(|field| field.name == "snapshot").expect("a source has it");
            field.schema.clone().with_default(None)
        }
        Fact::Op
        | Fact::Version
        | Fact::Connector
        | Fact::Name
        | Fact::Db
        | Fact::Sequence
        | Fact::Schema
        | Fact::Table
        | Fact::Origin
        | Fact::TransactionId => schema::string(),
        Fact::TsMs
        | Fact::TsUs
        | Fact::TsNs
        | Fact::SourceTsMs
        | Fact::SourceTsUs
        | Fact::SourceTsNs
        | Fact::TxId
        | Fact::Lsn
        | Fact::Xmin
        | Fact::OriginLsn
        | Fact::TotalOrder
        | Fact::CollectionOrder => schema::int64(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping::oid;
    use super::super::tests::{EVENT, column, foreign, relation_of};
    use super::super::{Block, Decoder, Encoder};
    use super::*;
    use crate::error::Code;
    use crate::relation::Modes;
    use crate::relation::flat::DeleteMode;
    use crate::value::{Cell, RowBuf};

    fn flat(deletes: DeleteMode, fields: &[&str], headers: &[&str], schemas: bool) -> Arc<Relation> {
        let added = |list: &[&str]| list.iter().map(|text| Added::parse(text, "__").unwrap()).collect();
        let flat = Flat { deletes, fields: added(fields), headers: added(headers) };
        let columns = vec![column("id", oid::INT4, -1, false, Some(0)), column("v", oid::TEXT, -1, true, None)];
        let modes = Modes { flat: Some(flat), schemas, ..Modes::default() };
        Arc::new(Relation { modes, ..(*relation_of(columns)).clone() }.sealed())
    }

    fn row(v: Cell<'static>) -> RowBuf {
        [Cell::Text(b"1"), v].into_iter().collect()
    }

    fn value(buf: &RecordBuf) -> &str {
        std::str::from_utf8(&buf.value).unwrap()
    }

    #[test]
    fn rows_stand_alone_with_what_was_asked_for() {
        let mut buf = RecordBuf::default();
        let plain = Encoder::new(flat(DeleteMode::Tombstone, &[], &[], false), "p", "db");
        plain.update(&EVENT, None, row(Cell::Null).row(), &mut buf).unwrap();
        assert_eq!(value(&buf), r#"{"id":1,"v":null}"#);
        assert!(buf.headers.is_empty());

        let facts = ["op", "table", "lsn", "source.ts_ms:src_ms", "transaction.id", "total_order", "source.snapshot"];
        let rewrite =
            Encoder::new(flat(DeleteMode::Rewrite, &facts, &["op:o", "source.snapshot", "db"], false), "p", "db");
        let event = Event { block: Some(Block { total_order: 3, collection_order: 2 }), ..EVENT };
        rewrite.delete(&event, row(Cell::Absent).row(), &mut buf).unwrap();
        let wanted =
            r#"{"id":1,"v":null,"__deleted":"true","__op":"d","__table":"t","__lsn":17,"__src_ms":1700000000123,"#;
        let wanted = format!(r#"{wanted}"__transaction_id":"5:17","__total_order":3,"__source_snapshot":null}}"#);
        assert_eq!(value(&buf), wanted);
        let header = |name: &str, text: &str| (name.to_owned(), Some(text.as_bytes().to_vec()));
        assert_eq!(buf.headers, [header("__o", "d"), ("__source_snapshot".to_owned(), None), header("__db", "db")]);
        rewrite.tombstone(&mut buf);
        assert_eq!(buf.headers, [header("__o", "d")]);

        let origin =
            Encoder::new(flat(DeleteMode::Drop, &["source.origin", "source.origin_lsn"], &[], false), "p", "db");
        let event = Event { origin: foreign("there"), ..EVENT };
        origin.create(&event, row(Cell::Null).row(), &mut buf).unwrap();
        assert_eq!(value(&buf), r#"{"id":1,"v":null,"__source_origin":"there","__source_origin_lsn":74565}"#);

        let read = Event { snapshot: Snapshot::Last, ..EVENT };
        rewrite.read(&read, row(Cell::Text(b"x")).row(), &mut buf).unwrap();
        assert!(value(&buf).ends_with(r#""__transaction_id":null,"__total_order":null,"__source_snapshot":"last"}"#));
    }

    #[test]
    fn schemas_have_the_added_fields_too() {
        let encoder = Encoder::new(flat(DeleteMode::Rewrite, &["ts_ms"], &[], true), "p", "db");
        let mut buf = RecordBuf::default();
        encoder.create(&EVENT, row(Cell::Text(b"x")).row(), &mut buf).unwrap();
        let wanted = concat!(
            r#"{"schema":{"type":"struct","fields":[{"type":"int32","optional":false,"field":"id"},"#,
            r#"{"type":"string","optional":true,"field":"v"},{"type":"string","optional":true,"field":"__deleted"},"#,
            r#"{"type":"int64","optional":true,"field":"__ts_ms"}],"optional":false,"name":"p.public.t.Value"},"#,
            r#""payload":{"id":1,"v":"x","__deleted":"false","__ts_ms":1700000001000}}"#
        );
        assert_eq!(value(&buf), wanted);
    }

    #[test]
    fn no_sink_reads_them() {
        let thin = Modes { skipped: "d".into(), ..Modes::default() };
        let thin = Relation { modes: thin, ..Relation::clone(&flat(DeleteMode::Drop, &[], &[], false)) };
        assert!(Decoder::of(Arc::new(thin)).is_err(), "what is left out a sink would never miss");
        let error = Decoder::of(flat(DeleteMode::Drop, &[], &[], false)).err().unwrap();
        assert_eq!(error.code(), Some(Code::RecordInvalid));
    }
}

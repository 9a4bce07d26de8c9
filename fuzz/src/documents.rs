//! Rows of an outbox: a payload that is any JSON at all, with and without the schema that it implies.

use std::cell::OnceCell;
use std::sync::Arc;

use lockstep::codec::mapping::oid;
use lockstep::codec::{OutboxEncoder, RecordBuf, complete};
use lockstep::relation::outbox::{Additional, Columns, EventFormat, Updates};
use lockstep::relation::{Column, Fingerprint, Format, Modes, Outbox, Relation, TableName, TypeKind};
use lockstep::value::{Cell, RowBuf};

use super::bounds::bounded;
use super::input::Input;

/// `0,` is two bytes, a node of 32 and what it is found by of 16, and its field in the schema some 200 bytes, three times while lists
/// grow. Of what is written, too: a struct's name is its path, so that a long name around many is written with each.
const PER_BYTE: u64 = 600;

thread_local! {
    static ENCODERS: OnceCell<Vec<OutboxEncoder>> = const { OnceCell::new() };
}

pub fn document(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.pick(4);
    let payload = input.0;
    let row: RowBuf = [Cell::Text(b"7"), Cell::Text(b"k"), Cell::Text(payload), Cell::Text(b"r")].into_iter().collect();
    ENCODERS.with(|encoders| {
        let encoder = &encoders.get_or_init(|| (0..4).map(|i| encoder(i & 1 == 1, i & 2 == 2)).collect())[choice];
        let mut out = RecordBuf::default();
        let mut again = RecordBuf::default();
        let written = encoder.record(row.row(), &mut out).is_ok();
        bounded(payload.len() + out.value.len(), PER_BYTE, || drop(encoder.record(row.row(), &mut again)));
        if written && !out.value.is_empty() {
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&out.value).is_ok(), "a value that is no JSON");
        }
    });
}

fn encoder(schemas: bool, beside: bool) -> OutboxEncoder {
    let column = |name: &str, type_oid| Column {
        name: name.into(),
        type_oid,
        type_name: String::new(),
        typmod: -1,
        kind: TypeKind::Base,
        nullable: true,
        default: None,
        key: None,
        exact: false,
    };
    let columns = Columns {
        id: "id".into(),
        key: "key".into(),
        payload: "payload".into(),
        route: "route".into(),
        timestamp: None,
        schema_version: None,
    };
    let outbox = Outbox {
        topic: "outbox.{route}".into(),
        columns,
        additional: Additional::parse("key:envelope").into_iter().filter(|_| beside).collect(),
        expand: true,
        tombstones: false,
        format: EventFormat::Json,
        updates: Updates::Warn,
    };
    let texts = ["key", "payload", "route"].map(|name| column(name, oid::TEXT));
    let relation = Relation {
        fingerprint: Fingerprint(0),
        oid: 1,
        name: TableName::new("public", "outbox"),
        topic: "p.public.outbox".into(),
        partitions: 1,
        format: Format::Json,
        modes: Modes { schemas, outbox: Some(outbox), ..Modes::default() },
        columns: std::iter::once(column("id", oid::INT8)).chain(texts).collect(),
        avro: None,
        transforms: vec![],
        hidden: vec![],
        composites: vec![],
    };
    let relation = Arc::new(complete(relation, "p").expect("a relation that is an outbox"));
    OutboxEncoder::new(&relation, "p", "db").expect("an outbox")
}

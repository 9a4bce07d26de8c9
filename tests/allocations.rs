//! Decoding a change and encoding its record take nothing from the heap: buffers are the caller's and keep what they have grown
//! to. Reading a record back takes nothing in Avro, and in JSON one buffer for texts with escapes, however many there are.

use std::sync::Arc;

use allocation_counter::measure;
use lockstep::codec::avro::{self, SchemaIds};
use lockstep::codec::mapping::oid;
use lockstep::codec::{Decoder, Encoder, Event, RecordBuf, Snapshot};
use lockstep::lsn::Lsn;
use lockstep::postgres::pgoutput::{self, Scratch};
use lockstep::record::Side;
use lockstep::relation::{Column, Fingerprint, Format, Modes, Relation, TableName, TypeKind};
use lockstep::value::{Cell, Row, RowBuf};

const ROW: [(&str, u32, &str); 10] = [
    ("id", oid::INT8, "1234567"),
    ("ref", oid::UUID, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("quantity", oid::INT4, "42"),
    ("price", oid::NUMERIC, "12345.67"),
    ("name", oid::TEXT, "Chair, oak, \"Windsor\", 4 legs"),
    ("active", oid::BOOL, "t"),
    ("changed_at", oid::TIMESTAMPTZ, "2024-02-29 12:34:56.789012+00"),
    ("shipped", oid::DATE, "2024-02-29"),
    ("attributes", oid::JSONB, "{\"color\": \"oak\", \"weight\": 4.5}"),
    ("rating", oid::FLOAT8, "4.75"),
];

/// How often the one buffer grows for the texts of the row.
const GROWTH: u64 = 3;

fn relation(format: Format) -> Arc<Relation> {
    let columns = ROW.iter().enumerate().map(|(i, (name, type_oid, _))| Column {
        name: (*name).into(),
        type_oid: *type_oid,
        type_name: String::new(),
        typmod: -1,
        kind: TypeKind::Base,
        nullable: i > 0,
        default: None,
        key: (i == 0).then_some(0),
        exact: false,
    });
    let relation = Relation {
        fingerprint: Fingerprint(0),
        oid: 1,
        name: TableName::new("public", "products"),
        topic: "shop.public.products".into(),
        partitions: 1,
        format,
        modes: Modes::default(),
        columns: columns.collect(),
        avro: None,
        transforms: vec![],
        hidden: vec![],
        composites: vec![],
    };
    Arc::new(avro::complete(relation, "shop").unwrap())
}

/// An Insert as the walsender sends it.
fn insert() -> Vec<u8> {
    let mut message = vec![b'I', 0, 0, 0, 1, b'N'];
    message.extend_from_slice(&10u16.to_be_bytes());
    for (_, _, text) in ROW {
        message.push(b't');
        message.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        message.extend_from_slice(text.as_bytes());
    }
    message
}

fn allocations(mut call: impl FnMut()) -> u64 {
    // The buffers grow to their size.
    call();
    measure(|| (0..100).for_each(|_| call())).count_total
}

fn codec(encoder: &Encoder, decoder: &Decoder, reading: u64) {
    let row: RowBuf = ROW.iter().map(|(_, _, text)| Cell::Text(text.as_bytes())).collect();
    let mut event = Event {
        last_commit_lsn: Some(Lsn(16)),
        lsn: Lsn(17),
        xid: Some(5),
        commit_time_us: 1_700_000_000_123_456,
        snapshot: Snapshot::False,
        now_ns: 1_700_000_001_000_000_007,
        block: None,
        origin: None,
    };
    let mut out = RecordBuf::default();
    let encoded = allocations(|| {
        // Every other record is of another transaction.
        event.lsn.0 += 1;
        event.commit_time_us += i64::from(event.lsn.0.is_multiple_of(2));
        encoder.create(&event, row.row(), &mut out).unwrap();
        encoder.key(row.row(), &mut out).unwrap();
    });
    assert_eq!(encoded, 0, "encoding");
    let mut back = RowBuf::new();
    let decoded = allocations(|| {
        decoder.row(&out.value, Side::After, None, None, &mut back).unwrap();
    });
    assert!(decoded <= reading * 100, "decoding: {decoded} for 100 records");
    assert!(back == row);
}

#[test]
fn records_are_written_and_read_without_the_heap() {
    let (json, avro) = (relation(Format::Json), relation(Format::Avro));
    codec(&Encoder::new(json.clone(), "shop", "catalog"), &Decoder::of(json).unwrap(), GROWTH);
    let ids = SchemaIds { key: Some(1), value: 2 };
    codec(&Encoder::avro(avro.clone(), ids, "shop", "catalog").unwrap(), &Decoder::of(avro).unwrap(), 0);
}

#[test]
fn changes_are_decoded_in_place() {
    let (message, mut scratch) = (insert(), Scratch::default());
    let decoded = allocations(|| {
        pgoutput::decode(&message, &mut scratch).unwrap();
        let row = Row::new(&message, &scratch.new);
        assert_eq!(row.get(3), Cell::Text(b"12345.67"));
    });
    assert_eq!(decoded, 0);
}

//! Nanoseconds per record of the codec, on the ten-column row that the project's other figures use.
//!
//! `cargo bench --bench codec`. Medians over rounds, because the machines it runs on are noisy; it judges nothing. A line for
//! people on stderr, one of JSON on stdout, as benches/pipeline has them.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use lockstep::codec::avro::{self, SchemaIds};
use lockstep::codec::mapping::oid;
use lockstep::codec::{Decoder, Encoder, Event, RecordBuf, Snapshot};
use lockstep::lsn::Lsn;
use lockstep::record::Side;
use lockstep::relation::{Column, Fingerprint, Format, Modes, Relation, TableName, TypeKind};
use lockstep::value::{Cell, RowBuf};

const ROUNDS: usize = 15;
const RECORDS: u32 = 100_000;

const ROW: [(&str, u32, &str); 10] = [
    ("id", oid::INT8, "1234567"),
    ("ref", oid::UUID, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("quantity", oid::INT4, "42"),
    ("price", oid::NUMERIC, "12345.67"),
    ("name", oid::TEXT, "Chair, oak, \"Windsor\", 4 legs"),
    ("description", oid::TEXT, "A chair that stands on four legs and carries one person; made in Zürich since 1912."),
    ("active", oid::BOOL, "t"),
    ("changed_at", oid::TIMESTAMPTZ, "2024-02-29 12:34:56.789012+00"),
    ("attributes", oid::JSONB, "{\"color\": \"oak\", \"weight\": 4.5}"),
    ("rating", oid::FLOAT8, "4.75"),
];

fn relation() -> Arc<Relation> {
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
    Arc::new(Relation {
        fingerprint: Fingerprint(0),
        oid: 1,
        name: TableName::new("public", "products"),
        topic: "shop.public.products".into(),
        partitions: 1,
        format: Format::Json,
        modes: Modes::default(),
        columns: columns.collect(),
        avro: None,
        transforms: vec![],
        hidden: vec![],
        composites: vec![],
    })
}

/// Median nanoseconds of one call.
fn measure(name: &str, bytes: usize, call: &mut dyn FnMut()) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..RECORDS).for_each(|_| call());
            start.elapsed().as_secs_f64() * 1e9 / f64::from(RECORDS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    let median = rounds[ROUNDS / 2];
    let allocations = allocation_counter::measure(call).count_total;
    eprintln!("{name:<34} {median:>7.0} ns/record (best {:.0}), {bytes} bytes, {allocations} allocations", rounds[0]);
    let figure = serde_json::json!({
        "bench": "codec", "figure": name, "value": median.round(), "unit": "ns/record", "allocations": allocations,
    });
    println!("{figure}");
}

fn main() {
    let json = relation();
    bench("JSON", &Encoder::new(json.clone(), "shop", "catalog"), &Decoder::new(json.clone()));
    let avro = Relation { format: Format::Avro, ..Relation::clone(&json) };
    let avro = Arc::new(avro::complete(avro, "shop").expect("the columns' names are Avro's"));
    let ids = SchemaIds { key: Some(1), value: 2 };
    let encoder = Encoder::avro(avro.clone(), ids, "shop", "catalog").expect("the schema is ours");
    bench("Avro", &encoder, &Decoder::of(avro).expect("the schema is ours"));
}

fn bench(format: &str, encoder: &Encoder, decoder: &Decoder) {
    let measure = |name: &str, bytes, call: &mut dyn FnMut()| measure(&format!("{format} {name}"), bytes, call);
    let row: RowBuf = ROW.iter().map(|(_, _, text)| Cell::Text(text.as_bytes())).collect();
    let event = Event {
        last_commit_lsn: Some(Lsn(1_786_684_288)),
        lsn: Lsn(1_786_684_896),
        xid: Some(6626),
        commit_time_us: 1_795_248_927_523_123,
        snapshot: Snapshot::False,
        now_ns: 1_795_248_927_928_123_456,
        block: None,
        origin: None,
    };
    let mut out = RecordBuf::default();
    encoder.create(&event, row.row(), &mut out).expect("the row fits");
    encoder.key(row.row(), &mut out).expect("the row has a key");
    let (create, key) = (out.value.clone(), out.key.clone());
    encoder.update(&event, Some(row.row()), row.row(), &mut out).expect("the row fits");
    let update = out.value.clone();

    measure("encode create with key", create.len() + key.len(), &mut || {
        encoder.create(black_box(&event), black_box(row.row()), &mut out).expect("the row fits");
        encoder.key(black_box(row.row()), &mut out).expect("the row has a key");
        black_box(&out);
    });
    measure("encode update, full identity", update.len(), &mut || {
        encoder.update(black_box(&event), Some(row.row()), black_box(row.row()), &mut out).expect("the row fits");
        black_box(&out);
    });
    let mut back = RowBuf::new();
    measure("decode after", create.len(), &mut || {
        decoder.row(black_box(&create), Side::After, None, None, &mut back).expect("our own record");
        black_box(&back);
    });
    assert!(back == row);
    measure("decode before, full identity", update.len(), &mut || {
        decoder.row(black_box(&update), Side::Before, None, None, &mut back).expect("our own record");
        black_box(&back);
    });
    measure("decode key", key.len(), &mut || {
        decoder.key(black_box(&key), None, &mut back).expect("our own key");
        black_box(&back);
    });
}

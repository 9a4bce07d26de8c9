//! Our bytes against those of `apache-avro`, what must be refused, and schemas and datums that real Debezium wrote.
//!
//! [`agree`] is called for every row that the tests of [`crate::codec`] encode in JSON: every type, every mode, their random values.

use std::path::PathBuf;
use std::sync::Arc;

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use proptest::prelude::*;

use super::*;
use crate::codec::mapping::oid;
use crate::codec::tests::{EVENT, column, foreign, relation_of};
use crate::codec::{Block, Decoder, Encoder, Event, Op, RecordBuf, TransactionMark};
use crate::error::Code;
use crate::record::{Side, absent_bitmap};
use crate::relation::flat::{Added, DeleteMode};
use crate::relation::{
    AvroSchemas, BinaryMode, ColumnDefault, DecimalMode, Flat, Format, IntervalMode, Modes, Relation, TableName,
    TypeKind, UnknownMode,
};
use crate::value::{Cell, Row, RowBuf};

const IDS: SchemaIds = SchemaIds { key: Some(1), value: 0x0102_0304 };

fn avro_of(relation: &Relation) -> Arc<Relation> {
    let relation = Relation { format: Format::Avro, ..relation.clone() };
    Arc::new(complete(relation, "p").unwrap())
}

/// The row in Avro: decoded it is the row again, and `apache-avro` reads the same bytes and writes them again. Where JSON can't
/// say it, neither does Avro.
pub(in crate::codec) fn agree(relation: &Relation, before: Option<Row<'_>>, after: Row<'_>, encodes: bool) {
    let relation = avro_of(relation);
    let schemas = relation.avro.as_ref().unwrap();
    let encoder = Encoder::avro(relation.clone(), IDS, "p", "db").unwrap();
    let mut buf = RecordBuf::default();
    let written = encoder.update(&EVENT, before, after, &mut buf);
    assert_eq!(written.is_ok(), encodes, "{written:?}");
    if !encodes {
        return;
    }
    assert_eq!(buf.value[..FRAME_BYTES], [0, 1, 2, 3, 4]);
    let decoder = Decoder::of(relation.clone()).unwrap();
    let (absent, mut out) = (absent_bitmap(after), RowBuf::new());
    let op = decoder.row(&buf.value, Side::After, absent.as_deref(), buf.text(), &mut out).unwrap();
    assert_eq!((op, out.row()), (Op::Update, after));
    decoder.row(&buf.value, Side::Before, absent.as_deref(), buf.text(), &mut out).unwrap();
    assert_eq!(out.row(), before.filter(|row| !row.has_absent()).unwrap_or(RowBuf::new().row()));
    oracle(&schemas.value, &buf.value);

    let has_key = relation.key_columns().iter().all(|&column| after.get(column).text().is_some());
    if let Some(schema) = schemas.key.as_ref().filter(|_| has_key) {
        encoder.key(after, &mut buf).unwrap();
        encoder.delete(&EVENT, after, &mut buf).unwrap();
        oracle(schema, &buf.key);
        decoder.key(&buf.key, buf.text(), &mut out).unwrap();
        for column in relation.key_columns() {
            assert_eq!(out.row().get(column), after.get(column));
        }
    }
}

fn oracle(schema: &str, framed: &[u8]) {
    let parsed = apache_avro::Schema::parse_str(schema).unwrap_or_else(|e| panic!("{e}: {schema}"));
    let mut datum = &framed[FRAME_BYTES..];
    let reader = GenericDatumReader::builder(&parsed).build().unwrap();
    let value = reader.read_value(&mut datum).unwrap_or_else(|e| panic!("{e}: {schema}"));
    assert!(datum.is_empty(), "{} bytes behind the datum", datum.len());
    // Its maps have no order.
    if !schema.contains("\"type\":\"map\"") {
        let again = GenericDatumWriter::builder(&parsed).build().unwrap().write_value_to_vec(value).unwrap();
        assert_eq!(hex::encode(again), hex::encode(&framed[FRAME_BYTES..]));
    }
}

fn row(cells: &[Cell<'_>]) -> RowBuf {
    cells.iter().copied().collect()
}

fn text(text: &str) -> Cell<'_> {
    Cell::Text(text.as_bytes())
}

#[test]
fn a_record_byte_by_byte() {
    let columns = vec![
        column("id", oid::INT4, -1, false, Some(0)),
        column("t", oid::TEXT, -1, true, None),
        column("f", oid::FLOAT8, -1, true, None),
        column("b", oid::BYTEA, -1, true, None),
    ];
    let relation = avro_of(&relation_of(columns));
    let encoder = Encoder::avro(relation, IDS, "p", "d").unwrap();
    let mut buf = RecordBuf::default();
    let new = row(&[text("-65"), text("hé"), text("1.5"), text("\\x0aff")]);
    encoder.key(new.row(), &mut buf).unwrap();
    encoder.create(&EVENT, new.row(), &mut buf).unwrap();
    assert_eq!(hex::encode(&buf.key), "00000000018101");
    let hex = hex::encode(&buf.value);
    // Frame; no before; after; id; branch, length and text; branch and float; branch, length and bytes.
    assert!(hex.starts_with("000102030400028101020668c3a902000000000000f83f02040aff"), "{hex}");
    assert!(buf.text().is_none());
    encoder.truncate(&EVENT, &mut buf).unwrap();
    assert!(buf.key().is_none() && hex::encode(&buf.value).starts_with("00010203040000"));
}

#[test]
fn what_a_schema_has_no_place_for_rides_beside() {
    // The catalog says NOT NULL, an older row says NULL; and a float that is not as Postgres prints it.
    let columns = vec![
        column("id", oid::INT4, -1, false, Some(0)),
        column("n", oid::TEXT, -1, false, None),
        column("f", oid::FLOAT8, -1, false, None),
    ];
    let relation = relation_of(columns);
    for cells in [[text("1"), Cell::Null, text("1")], [text("1"), text(""), text("1.50")]] {
        let after = row(&cells);
        agree(&relation, None, after.row(), true);
        let mut buf = RecordBuf::default();
        Encoder::avro(avro_of(&relation), IDS, "p", "d").unwrap().create(&EVENT, after.row(), &mut buf).unwrap();
        assert!(buf.text().is_some());
    }
}

/// Every cut of a record, and every change of one byte, is read or refused; nothing panics.
#[test]
fn flat_records_are_what_the_oracle_reads() {
    let added = |list: &[&str]| list.iter().map(|text| Added::parse(text, "__").unwrap()).collect();
    let fields = ["op", "lsn", "source.snapshot", "transaction.id", "transaction.total_order"];
    let flat = Flat { deletes: DeleteMode::Rewrite, fields: added(&fields), headers: added(&["op"]) };
    let columns = vec![
        column("id", oid::INT4, -1, false, Some(0)),
        column("skipped", 3220, -1, true, None),
        column("n n", oid::NUMERIC, -1, true, None),
    ];
    let modes = Modes { flat: Some(flat), unknown: UnknownMode::Skip, ..Modes::default() };
    let relation = avro_of(&Relation { modes, ..(*relation_of(columns)).clone() });
    let schemas = relation.avro.as_ref().unwrap();
    let encoder = Encoder::avro(relation.clone(), IDS, "p", "db").unwrap();
    let mut buf = RecordBuf::default();
    let mut fields = |event: &Event, write: fn(&Encoder, &Event, Row<'_>, &mut RecordBuf), cells: &[Cell<'_>]| {
        write(&encoder, event, row(cells).row(), &mut buf);
        oracle(&schemas.value, &buf.value);
        let parsed = apache_avro::Schema::parse_str(&schemas.value).unwrap();
        let reader = GenericDatumReader::builder(&parsed).build().unwrap();
        let value = reader.read_value(&mut &buf.value[FRAME_BYTES..]).unwrap();
        let json: serde_json::Value = value.try_into().unwrap();
        (json, buf.headers.clone())
    };
    let create: fn(&Encoder, &Event, Row<'_>, &mut RecordBuf) =
        |encoder, event, row, buf| encoder.create(event, row, buf).unwrap();
    let event = Event { block: Some(Block { total_order: 3, collection_order: 1 }), ..EVENT };
    let (json, headers) = fields(&event, create, &[text("1"), text("0/1"), text("1.50")]);
    let wanted = serde_json::json!({"id": 1, "n_n": "1.50", "__deleted": "false", "__op": "c", "__lsn": 17,
        "__source_snapshot": null, "__transaction_id": "5:17", "__transaction_total_order": 3});
    assert_eq!(json, wanted);
    assert_eq!(headers, [("__op".to_owned(), Some(b"c".to_vec()))]);
    let (json, _) = fields(
        &EVENT,
        |encoder, event, row, buf| encoder.delete(event, row, buf).unwrap(),
        &[text("1"), Cell::Absent, Cell::Absent],
    );
    let wanted = serde_json::json!({"id": 1, "n_n": null, "__deleted": "true", "__op": "d", "__lsn": 17,
        "__source_snapshot": null, "__transaction_id": null, "__transaction_total_order": null});
    assert_eq!(json, wanted);
}

#[test]
fn damaged_records_are_refused() {
    let columns = vec![
        column("id", oid::INT4, -1, false, Some(0)),
        column("t", oid::TEXT, -1, true, None),
        column("d", oid::DATE, -1, true, None),
    ];
    let relation = avro_of(&relation_of(columns));
    let encoder = Encoder::avro(relation.clone(), IDS, "p", "d").unwrap();
    let decoder = Decoder::of(relation).unwrap();
    let (mut buf, mut out) = (RecordBuf::default(), RowBuf::new());
    let whole = row(&[text("7"), text("some text"), text("2024-02-29")]);
    encoder.update(&EVENT, Some(whole.row()), whole.row(), &mut buf).unwrap();
    encoder.key(whole.row(), &mut buf).unwrap();
    let mut read = |bytes: &[u8]| {
        decoder.row(bytes, Side::Before, None, None, &mut out)?;
        decoder.row(bytes, Side::After, None, None, &mut out)
    };
    read(&buf.value).unwrap();
    for len in 0..buf.value.len() {
        let error = read(&buf.value[..len]).unwrap_err();
        assert_eq!(error.code(), Some(Code::RecordInvalid));
        assert!(!error.to_string().contains("some text"), "{error}");
    }
    let longer = [buf.value.as_slice(), &[0]].concat();
    assert!(read(&longer).is_err());
    for at in 0..buf.value.len() {
        for bit in 0..8 {
            let mut damaged = buf.value.clone();
            damaged[at] ^= 1 << bit;
            let _ = read(&damaged);
        }
    }
    for len in 0..buf.key.len() {
        assert!(decoder.key(&buf.key[..len], None, &mut RowBuf::new()).is_err());
    }
}

#[test]
fn a_relation_without_its_schema_is_refused() {
    let relation = avro_of(&relation_of(vec![column("id", oid::INT4, -1, false, Some(0))]));
    let avro = relation.avro.clone().unwrap();
    let schemas = [
        None,
        Some(AvroSchemas { value: "{}".into(), ..avro.clone() }),
        Some(AvroSchemas { value: "\"int\"".into(), ..avro.clone() }),
        Some(AvroSchemas { value: avro.value.replace("\"name\":\"op\"", "\"name\":\"xx\""), ..avro.clone() }),
        Some(AvroSchemas { key: None, ..avro.clone() }),
    ];
    for avro in schemas {
        let error = Decoder::of(Arc::new(Relation { avro, ..(*relation).clone() })).err().unwrap();
        assert_eq!(error.code(), Some(Code::RecordInvalid), "{error}");
    }
}

#[test]
fn names_are_adjusted_and_two_that_become_one_are_refused() {
    let named = |names: &[&str]| {
        let columns = names.iter().map(|name| column(name, oid::INT4, -1, true, None)).collect();
        let relation = Relation { name: TableName::new("1 s", "Ünïcødé😀"), ..(*relation_of(columns)).clone() };
        complete(Relation { format: Format::Avro, ..relation }, "p")
    };
    let schema = named(&["1st", "a-b", "列", "$x", "plain"]).unwrap().avro.unwrap().value;
    apache_avro::Schema::parse_str(&schema).unwrap();
    for part in ["\"p._1_s._n_c_d___\"", "\"_1st\"", "\"a_b\"", "\"_\"", "\"_x\"", "\"plain\""] {
        assert!(schema.contains(part), "{part} in {schema}");
    }
    let error = named(&["a-b", "a b"]).unwrap_err();
    assert_eq!(error.code(), Some(Code::SchemaRefused));
    assert!(error.to_string().contains("\"a-b\" and \"a b\" are both \"a_b\""), "{error}");
}

#[test]
fn printed_strings_of_every_length_have_their_length_before_them() {
    for len in [0, 1, 63, 64, 65, 8191, 8192, 20_000] {
        let bytes = vec![b'x'; len];
        let (mut printed, mut plain) = (vec![1], vec![1]);
        encode::push_printed(&mut printed, |out| out.extend_from_slice(&bytes));
        push_bytes(&mut plain, &bytes);
        assert!(printed == plain, "{len}");
    }
}

#[test]
fn floats_are_printed_as_postgres_prints_them() {
    let printed = |value| {
        let mut out = Vec::new();
        push_float(&mut out, value);
        String::from_utf8(out).unwrap()
    };
    // As Postgres 17 printed them.
    let doubles = "0 -0 1 0.0001 1e-05 1.5e-05 123456789.123 100000000000000 123456789012345 1.234567890123456e+15 1e+15 \
                   1.2345678901234567e+19 9.007199254740992e+15 1e+22 5e-324 1.7976931348623157e+308 1e+100 NaN Infinity -Infinity";
    for text in doubles.split(' ') {
        assert_eq!(printed(Float::Double(text.parse().unwrap())), text);
    }
    let singles = "0 -0 0.1 100000 1e+06 1.2345678e+06 1.6777216e+07 3.4028235e+38 1e-45 0.0001 1e-05 123456";
    for text in singles.split(' ') {
        assert_eq!(printed(Float::Single(text.parse().unwrap())), text);
    }
    // Postgres breaks this tie the other way; its text rides beside.
    let relation =
        relation_of(vec![column("id", oid::INT4, -1, false, Some(0)), column("f", oid::FLOAT8, -1, false, None)]);
    agree(&relation, None, row(&[text("1"), text("9.999999999999999e+22")]).row(), true);
    assert_eq!(printed(Float::Double(1e23)), "1e+23");
}

proptest! {
    /// The shape is believed only where printing would say the same.
    #[test]
    fn what_is_called_shortest_is_what_is_printed(text in "-?[0-9]{1,17}(\\.[0-9]{0,17})?") {
        for value in [Float::Double(text.parse().unwrap()), Float::Single(text.parse().unwrap())] {
            if is_shortest(text.as_bytes(), value) {
                let mut printed = Vec::new();
                push_float(&mut printed, value);
                prop_assert_eq!(String::from_utf8(printed).unwrap(), text.as_str());
            }
        }
    }

    #[test]
    fn longs_are_those_of_the_oracle(value: i64, small in -200..200i64) {
        for value in [value, small] {
            let mut ours = Vec::new();
            push_long(&mut ours, value);
            let schema = apache_avro::Schema::Long;
            let theirs = GenericDatumWriter::builder(&schema).build().unwrap().write_value_to_vec(value).unwrap();
            prop_assert_eq!(&ours, &theirs);
            prop_assert_eq!(decode::long(&mut ours.as_slice()), Some(value));
        }
    }

    #[test]
    fn printed_floats_read_back(bits: u64, short: u32) {
        let (double, single) = (f64::from_bits(bits), f32::from_bits(short));
        let mut out = Vec::new();
        push_float(&mut out, Float::Double(double));
        let text = String::from_utf8(out).unwrap();
        prop_assert!(text.parse::<f64>().unwrap().to_bits() == bits || double.is_nan(), "{}", text);
        let mut out = Vec::new();
        push_float(&mut out, Float::Single(single));
        let text = String::from_utf8(out).unwrap();
        prop_assert!(text.parse::<f32>().unwrap().to_bits() == short || single.is_nan(), "{}", text);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let columns = vec![column("id", oid::INT4, -1, false, Some(0)), column("t", oid::TEXT, -1, true, None)];
        let decoder = Decoder::of(avro_of(&relation_of(columns))).unwrap();
        let framed = [&[0, 0, 0, 0, 1], bytes.as_slice()].concat();
        for bytes in [&bytes, &framed] {
            let _ = decoder.row(bytes, Side::After, None, None, &mut RowBuf::new());
            let _ = decoder.key(bytes, None, &mut RowBuf::new());
        }
    }
}

/// Columns of tests/golden/21-avro-scalars, whose SQL is that of 01-scalars: name, type, modifier, default, `!` for NOT NULL.
const SCALARS: &[(&str, u32, i32, &str)] = &[
    ("id", oid::INT4, -1, "!"),
    ("b", oid::BOOL, -1, "t"),
    ("i2", oid::INT2, -1, "!-7"),
    ("i4", oid::INT4, -1, "42"),
    ("i8", oid::INT8, -1, "9223372036854775807"),
    ("f4", oid::FLOAT4, -1, ""),
    ("f8", oid::FLOAT8, -1, "1.5"),
    ("n", oid::NUMERIC, -1, ""),
    ("n_5_2", oid::NUMERIC, (5 << 16 | 2) + 4, "!3.10"),
    ("n_10", oid::NUMERIC, (10 << 16) + 4, ""),
    ("c", oid::BPCHAR, 9, ""),
    ("c1", oid::BPCHAR, 5, ""),
    ("vc", oid::VARCHAR, 14, "it's \"q\""),
    ("vcu", oid::VARCHAR, -1, ""),
    ("t", oid::TEXT, -1, "!"),
    ("nm", oid::NAME, -1, ""),
    ("ch", oid::CHAR, -1, ""),
    ("d", oid::DATE, -1, "2024-02-29"),
    ("tm", oid::TIME, -1, ""),
    ("tm3", oid::TIME, 3, ""),
    ("tmtz", oid::TIMETZ, -1, ""),
    ("ts", oid::TIMESTAMP, -1, ""),
    ("ts3", oid::TIMESTAMP, 3, ""),
    ("tstz", oid::TIMESTAMPTZ, -1, "()"),
    ("iv", oid::INTERVAL, -1, ""),
    ("by", oid::BYTEA, -1, ""),
    ("bt", oid::BIT, 1, ""),
    ("bt5", oid::BIT, 5, ""),
    ("vb", oid::VARBIT, -1, ""),
    ("m", oid::MONEY, -1, ""),
    ("uu", oid::UUID, -1, ""),
    ("js", oid::JSON, -1, ""),
    ("jb", oid::JSONB, -1, ""),
    ("x", oid::XML, -1, ""),
    ("o", oid::OID, -1, ""),
    ("ip", oid::INET, -1, ""),
    ("cd", oid::CIDR, -1, ""),
    ("mac", oid::MACADDR, -1, ""),
];

fn debezium_modes() -> Modes {
    Modes {
        decimal: DecimalMode::Precise,
        interval: IntervalMode::Numeric,
        binary: BinaryMode::Bytes,
        unknown: UnknownMode::Skip,
        null_as_default: true,
        ..Modes::default()
    }
}

fn scalars() -> Arc<Relation> {
    let columns = SCALARS.iter().map(|(name, type_oid, typmod, default)| {
        let (not_null, default) = default.strip_prefix('!').map_or((false, *default), |default| (true, default));
        let mut column = column(name, *type_oid, *typmod, !not_null, (*name == "id").then_some(0));
        // The empty text is t's default, and nobody else's.
        column.default = match default {
            "()" => Some(ColumnDefault::Call),
            "" if *name != "t" => None,
            literal => Some(ColumnDefault::Literal(literal.into())),
        };
        column.kind = TypeKind::Base;
        column
    });
    let relation = relation_of(columns.collect());
    let name = TableName::new("public", "scalars");
    let relation = Relation { name, modes: debezium_modes(), format: Format::Avro, ..(*relation).clone() };
    Arc::new(complete(relation, "g21").unwrap())
}

fn golden(case: &str, file: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", case, file].iter().collect();
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn schemas_are_those_that_confluents_converter_registered() {
    let schemas = scalars().avro.clone().unwrap();
    let registered: Vec<serde_json::Value> = serde_json::from_str(&golden("21-avro-scalars", "schemas.json")).unwrap();
    let registered: Vec<&str> = registered.iter().map(|entry| entry["schema"].as_str().unwrap()).collect();
    assert_eq!(schemas.key.unwrap(), registered[0]);
    assert_eq!(schemas.value, registered[1]);
}

fn registered(case: &str, subject: &str) -> String {
    let all: Vec<serde_json::Value> = serde_json::from_str(&golden(case, "schemas.json")).unwrap();
    all.iter().find(|entry| entry["subject"] == subject).unwrap()["schema"].as_str().unwrap().to_owned()
}

#[test]
fn transactions_are_those_that_debezium_wrote() {
    let schemas = EventKind::Transaction.schemas(&debezium_modes());
    assert_eq!(schemas.key.as_ref().unwrap(), &registered("21-avro-transactions", "g21.transaction-key"));
    assert_eq!(schemas.value, registered("21-avro-transactions", "g21.transaction-value"));
    let events = EventEncoder::new("g21", "golden", &debezium_modes(), [IDS; 3]);
    let schema = apache_avro::Schema::parse_str(&schemas.value).unwrap();
    let reader = GenericDatumReader::builder(&schema).build().unwrap();
    let mut seen = 0;
    for line in golden("21-avro-transactions", "events.jsonl").lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        if record["topic"] != "g21.transaction" {
            continue;
        }
        let theirs = [&record["key_hex"], &record["value_hex"]].map(|hex| hex::decode(hex.as_str().unwrap()).unwrap());
        let read: serde_json::Value = reader.read_value(&mut &theirs[1][FRAME_BYTES..]).unwrap().try_into().unwrap();
        let (xid, lsn) = read["id"].as_str().unwrap().split_once(':').unwrap();
        let collections: Option<Vec<(String, u64)>> = read["data_collections"].as_array().map(|all| {
            let one = |c: &serde_json::Value| {
                (c["data_collection"].as_str().unwrap().to_owned(), c["event_count"].as_u64().unwrap())
            };
            all.iter().map(one).collect()
        });
        let mark = TransactionMark {
            xid: xid.parse().unwrap(),
            lsn: lsn.parse().unwrap(),
            commit_time_us: read["ts_ms"].as_i64().unwrap() * 1_000,
            collections: collections.as_deref(),
        };
        let mut buf = RecordBuf::default();
        events.transaction(&mark, &mut buf);
        assert_eq!(hex::encode(&buf.key[FRAME_BYTES..]), hex::encode(&theirs[0][FRAME_BYTES..]));
        assert_eq!(hex::encode(&buf.value[FRAME_BYTES..]), hex::encode(&theirs[1][FRAME_BYTES..]));
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
}

#[test]
fn heartbeats_messages_and_blocks_are_what_the_oracle_reads() {
    for binary in [BinaryMode::Bytes, BinaryMode::Hex] {
        let modes = Modes { binary, ..Modes::default() };
        let events = EventEncoder::new("p", "d", &modes, [IDS; 3]);
        let check = |kind: EventKind, buf: &RecordBuf| {
            let schemas = kind.schemas(&modes);
            oracle(schemas.key.as_ref().unwrap(), &buf.key);
            oracle(&schemas.value, &buf.value);
        };
        let mut buf = RecordBuf::default();
        events.heartbeat(1_700_000_000_000, &mut buf);
        check(EventKind::Heartbeat, &buf);
        let block = Some(Block { total_order: 3, collection_order: 2 });
        let replicated = Event { origin: foreign("other"), ..EVENT };
        for event in [EVENT, Event { block, ..EVENT }, Event { xid: None, last_commit_lsn: None, ..EVENT }, replicated]
        {
            events.message(&event, "audit", b"\x00\xff", &mut buf);
            check(EventKind::Message, &buf);
        }
    }
    // In the envelope of a row.
    let relation = avro_of(&relation_of(vec![column("id", oid::INT4, -1, false, Some(0))]));
    let encoder = Encoder::avro(relation.clone(), IDS, "p", "d").unwrap();
    let mut buf = RecordBuf::default();
    let event = Event { block: Some(Block { total_order: 300, collection_order: 200 }), ..EVENT };
    encoder.create(&event, row(&[text("1")]).row(), &mut buf).unwrap();
    oracle(&relation.avro.as_ref().unwrap().value, &buf.value);
    assert!(hex::encode(&buf.value).contains(&hex::encode("5:17")));
    let event = Event { origin: foreign("other"), ..EVENT };
    encoder.create(&event, row(&[text("1")]).row(), &mut buf).unwrap();
    oracle(&relation.avro.as_ref().unwrap().value, &buf.value);
    // The second branch of each union; 74565 twice over, seven bits a byte.
    assert!(hex::encode(&buf.value).contains(&format!("020a{}028a8d09", hex::encode("other"))));
}

/// The rows of 01-scalars, written by us, against the datums that Debezium wrote of the same rows.
#[test]
fn datums_are_those_that_debezium_wrote() {
    let relation = scalars();
    let encoder = Encoder::avro(relation.clone(), IDS, "g21", "golden").unwrap();
    let shapes = shapes(&relation).unwrap();
    let rows = golden("01-scalars", "rows.tsv");
    let (mut seen, mut differ, mut keys) = (0, Vec::new(), std::collections::HashSet::new());
    for line in golden("21-avro-scalars", "events.jsonl").lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        // rows.tsv has each row as it was first.
        if !keys.insert(record["key_hex"].to_string()) {
            continue;
        }
        let Some(value) = record["value_hex"].as_str() else { continue };
        let (value, key) = (hex::decode(value).unwrap(), hex::decode(record["key_hex"].as_str().unwrap()).unwrap());
        let theirs = after(&shapes, &value);
        let mut buf = RecordBuf::default();
        let row = rows.lines().skip(1).map(cells).find(|row| {
            encoder.key(row.row(), &mut buf).unwrap();
            buf.key[FRAME_BYTES..] == key[FRAME_BYTES..]
        });
        encoder.create(&EVENT, row.unwrap().row(), &mut buf).unwrap();
        let ours = after(&shapes, &buf.value);
        for ((name, ..), (ours, theirs)) in SCALARS.iter().zip(ours.iter().zip(&theirs)) {
            if ours != theirs {
                differ.push(format!(
                    "{} {name}: {} ours {}",
                    hex::encode(&key[5..]),
                    hex::encode(theirs),
                    hex::encode(ours)
                ));
            }
        }
        seen += 1;
    }
    // Debezium shows values of type name as null.
    insta::assert_snapshot!(differ.join("\n"), @"06 nm: 00 ours 0200");
    assert_eq!(seen, 14);
}

fn cells(line: &str) -> RowBuf {
    line.split('\t')
        .map(|field| match field {
            "\\N" => None,
            field => Some(field.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r").replace("\\\\", "\\")),
        })
        .collect::<Vec<_>>()
        .iter()
        .map(|field| field.as_ref().map_or(Cell::Null, |field| Cell::Text(field.as_bytes())))
        .collect()
}

/// The bytes of each column of `after`; none where it is null.
fn after(shapes: &Shapes, framed: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = &framed[FRAME_BYTES..];
    decode::skip(&shapes.envelope.fields()[0].shape, &mut rest).unwrap();
    if rest[0] == 0 {
        return Vec::new();
    }
    rest = &rest[1..];
    let mut columns = Vec::new();
    for shape in shapes.columns.iter().flatten() {
        let before = rest;
        decode::skip(shape, &mut rest).unwrap();
        columns.push(before[..before.len() - rest.len()].to_vec());
    }
    columns
}

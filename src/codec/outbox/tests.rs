//! Rows of an outbox and the bytes that they become.

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
    Outbox { topic: name("p.event.{route}"), columns, additional, expand: false, tombstones: false, format, updates }
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
    let text = |is: bool, bytes: &[u8]| if is { String::from_utf8(bytes.to_vec()).unwrap() } else { "-".to_owned() };
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
    let columns = Columns { timestamp: Some("at".into()), schema_version: Some("version".into()), ..plain().columns };
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
    assert!(versioned("3").contains(r#""name":"p.public.t.r.Value","version":3},"payload":"#), "{}", versioned("3"));
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

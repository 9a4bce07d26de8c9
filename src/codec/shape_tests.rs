//! What connectors make of rows, in records: keys that stand in no row, keys with NULL, marks of masks, in every format.

use std::sync::Arc;

use super::avro::{SchemaIds, complete};
use super::mapping::oid;
use super::tests::{EVENT, column, relation_of};
use super::{Decoder, Encoder, RecordBuf};
use crate::record::Side;
use crate::relation::{Format, Modes, Relation, TableName};
use crate::transform::{MaskMark, Transform};
use crate::value::{Cell, RowBuf};

const IDS: SchemaIds = SchemaIds { key: Some(1), value: 2 };

/// Key (a, n) of which `a` stands in no row and `n` may be NULL; `m` is masked.
fn relation(format: Format) -> Arc<Relation> {
    let columns = vec![
        column("a", oid::INT4, -1, false, Some(0)),
        column("n", oid::TEXT, -1, true, Some(1)),
        column("m", oid::TEXT, -1, true, None),
    ];
    let transforms = vec![
        Transform::KeyOnly { column: "a".into() },
        Transform::Mask { column: "m".into(), mask: MaskMark::Truncate { chars: 4 } },
    ];
    let modes = Modes { schemas: format == Format::Json, ..Modes::default() };
    let relation = Relation { transforms, format, modes, ..Relation::clone(&relation_of(columns)) };
    Arc::new(complete(relation.sealed(), "p").unwrap())
}

fn written(relation: &Arc<Relation>, cells: [Cell<'_>; 3]) -> RecordBuf {
    let row: RowBuf = cells.into_iter().collect();
    let encoder = match relation.format {
        Format::Json => Encoder::new(relation.clone(), "p", "db"),
        Format::Avro => Encoder::avro(relation.clone(), IDS, "p", "db").unwrap(),
    };
    let mut buf = RecordBuf::default();
    encoder.key(row.row(), &mut buf).unwrap();
    encoder.create(&EVENT, row.row(), &mut buf).unwrap();
    buf
}

#[test]
fn a_column_may_stand_in_the_key_alone() {
    for format in [Format::Json, Format::Avro] {
        let relation = relation(format);
        let buf = written(&relation, [Cell::Text(b"7"), Cell::Text(b"x"), Cell::Null]);
        assert!(buf.text.is_empty(), "nor does it ride beside the record");
        let (decoder, mut row) = (Decoder::of(relation).unwrap(), RowBuf::new());
        decoder.row(&buf.value, Side::After, None, None, &mut row).unwrap();
        assert_eq!(row.row().iter().collect::<Vec<_>>(), [Cell::Absent, Cell::Text(b"x"), Cell::Null]);
        decoder.key(&buf.key, None, &mut row).unwrap();
        assert_eq!(row.row().iter().collect::<Vec<_>>(), [Cell::Text(b"7"), Cell::Text(b"x"), Cell::Absent]);
    }
}

#[test]
fn schemas_say_what_stands_where_and_what_is_masked() {
    let buf = written(&relation(Format::Json), [Cell::Text(b"7"), Cell::Null, Cell::Text(b"cut ")]);
    let of = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
    let (key, value) = (of(&buf.key), of(&buf.value));
    assert_eq!(key["payload"], serde_json::json!({ "a": 7, "n": null }));
    assert_eq!(value["payload"]["after"], serde_json::json!({ "n": null, "m": "cut " }));
    let names = |schema: &serde_json::Value| {
        let fields = schema["fields"].as_array().unwrap();
        fields.iter().map(|field| field["field"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&key["schema"]), ["a", "n"]);
    let row = &value["schema"]["fields"][1];
    assert_eq!(names(row), ["n", "m"]);
    assert_eq!(row["fields"][1]["parameters"], serde_json::json!({ "truncateLength": "4" }));
    assert_eq!(row["fields"][0]["parameters"], serde_json::Value::Null);
    let avro = relation(Format::Avro);
    assert!(avro.avro.as_ref().unwrap().value.contains(r#""connect.parameters":{"truncateLength":"4"}"#));
}

#[test]
fn tables_that_share_a_topic_share_its_schemas() {
    let of = |table: &str, topic: &str, constant: bool| {
        let columns = vec![column("k", oid::TEXT, -1, false, Some(0)), column("v", oid::INT4, -1, true, None)];
        let held = Transform::Constant { column: "k".to_owned(), value: table.to_owned() };
        let transforms = if constant { vec![held] } else { Vec::new() };
        let (name, topic) = (TableName::new(table, "t"), topic.to_owned());
        let relation =
            Relation { name, topic, transforms, format: Format::Avro, ..Relation::clone(&relation_of(columns)) };
        complete(relation.sealed(), "p").unwrap().avro.unwrap()
    };
    let shared = of("a", "p.all", true);
    assert_eq!(shared, of("b", "p.all", true), "one version of one subject");
    assert!(shared.value.contains("p.all") && !shared.value.contains("p.a.t"), "{}", shared.value);
    assert_ne!(of("a", "p.all", false), of("b", "p.all", false), "by itself each has its own, as in Debezium");
}

#[test]
fn a_key_with_null_is_read_by_avro_s_own_reader() {
    let relation = relation(Format::Avro);
    let buf = written(&relation, [Cell::Text(b"7"), Cell::Null, Cell::Null]);
    let schema = apache_avro::Schema::parse_str(relation.avro.as_ref().unwrap().key.as_ref().unwrap()).unwrap();
    let mut datum = &buf.key[5..];
    let reader = apache_avro::reader::datum::GenericDatumReader::builder(&schema).build().unwrap();
    let key = format!("{:?}", reader.read_value(&mut datum).unwrap());
    assert!(key.contains("Int(7)") && key.contains("Null") && datum.is_empty(), "{key}");
    let json = written(&self::relation(Format::Json), [Cell::Text(b"7"), Cell::Null, Cell::Null]);
    let mut row = RowBuf::new();
    let refused = Decoder::of(self::relation(Format::Json)).unwrap().key(&json.key, None, &mut row);
    assert!(refused.is_err(), "no sink finds a row by it");
}

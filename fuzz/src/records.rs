//! Rows written as records and read again: in both formats exactly the row, and in Avro the bytes that `apache-avro` reads and writes.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use lockstep::codec::{Decoder, Op, RecordBuf};
use lockstep::record::{Side, absent_bitmap};
use lockstep::value::{Cell, Row, RowBuf};

use super::cases::{Case, EVENT, choose};
use super::input::Input;

/// Confluent's framing: a zero and the schema's id.
const FRAME_BYTES: usize = 5;
const COLUMNS: usize = 3;

pub fn records(data: &[u8]) {
    let mut input = Input(data);
    let cases = choose(&mut input);
    let (before, after) = (row(&mut input), row(&mut input));
    let (before, after) = (before.row(), after.row());
    let json = round_trip(&cases.json, before, after);
    let avro = round_trip(&cases.avro, before, after);
    assert_eq!(json.is_some(), avro.is_some(), "what one format can say the other can");
    if let Some(value) = avro {
        let schemas = cases.avro.relation.avro.as_ref().expect("a relation in Avro");
        oracle(&schemas.value, &value);
    }
    key(&cases.json, after);
    if let (Some(key), Some(schemas)) = (key(&cases.avro, after), &cases.avro.relation.avro) {
        oracle(schemas.key.as_ref().expect("the relation has a key"), &key);
    }
}

fn row(input: &mut Input<'_>) -> RowBuf {
    let cell = |_| match input.pick(8) {
        0 => Cell::Null,
        1 => Cell::Absent,
        _ => Cell::Text(input.piece()),
    };
    (0..COLUMNS).map(cell).collect()
}

/// The record's value, if the rows can be written.
fn round_trip(case: &Case, before: Row<'_>, after: Row<'_>) -> Option<Vec<u8>> {
    let mut buf = RecordBuf::default();
    case.encoder.update(&EVENT, Some(before), after, &mut buf).ok()?;
    let (absent, mut out) = (absent_bitmap(after), RowBuf::new());
    let mut read = |side| {
        let op = case.decoder.row(&buf.value, side, absent.as_deref(), buf.text(), &mut out);
        assert_eq!(op.expect("what was written is read"), Op::Update);
        out.clone()
    };
    assert_eq!(read(Side::After).row(), after);
    let shown = if before.has_absent() { RowBuf::new() } else { before.to_owned() };
    assert_eq!(read(Side::Before), shown);
    Some(buf.value)
}

/// The key alone, if it can be written; what it does not carry exactly stands beside the `before` of a delete.
fn key(case: &Case, row: Row<'_>) -> Option<Vec<u8>> {
    let (mut buf, mut out) = (RecordBuf::default(), RowBuf::new());
    case.encoder.key(row, &mut buf).ok()?;
    case.encoder.delete(&EVENT, row, &mut buf).ok()?;
    case.decoder.key(&buf.key, buf.text(), &mut out).expect("what was written is read");
    assert_eq!(out.row().get(0), row.get(0));
    Some(buf.key)
}

fn oracle(schema: &str, framed: &[u8]) {
    let parsed = Schema::parse_str(schema).expect("a schema");
    let mut datum = &framed[FRAME_BYTES..];
    let reader = GenericDatumReader::builder(&parsed).build().expect("a schema that can be read by");
    let value = reader.read_value(&mut datum).expect("what was written is read by others");
    assert!(datum.is_empty(), "{} bytes behind the datum", datum.len());
    // Its maps have no order.
    if !schema.contains("\"type\":\"map\"") {
        let writer = GenericDatumWriter::builder(&parsed).build().expect("a schema that can be written by");
        assert_eq!(writer.write_value_to_vec(value).expect("what was read is written"), framed[FRAME_BYTES..]);
    }
}

/// Reads a value by both sides and as a key, whatever it is.
pub fn read_all(decoder: &Decoder, value: &[u8], absent: Option<&[u8]>, text: Option<&[u8]>, out: &mut RowBuf) {
    let _ = decoder.row(value, Side::Before, absent, text, out);
    let _ = decoder.key(value, text, out);
    let _ = decoder.row(value, Side::After, absent, text, out);
}

//! Datums of Avro that anybody may have written: under a relation version of ours, and under schemas that are not ours.

use std::sync::Arc;

use lockstep::codec::Decoder;
use lockstep::relation::{AvroSchemas, Relation};
use lockstep::value::RowBuf;

use super::bounds::bounded;
use super::cases::choose;
use super::input::Input;
use super::records::read_all;

/// As of records in JSON: `ls-text` is the dearest. Bytes are twice as long in Postgres' hex.
const RECORD_PER_BYTE: u64 = 20;
/// `{},` in a list of fields is three bytes and a value of 32 as JSON; then maps, names, and a shape of 64 for each field, all of them
/// in vectors that grow.
const SCHEMA_PER_BYTE: u64 = 200;

pub fn record(data: &[u8]) {
    let mut input = Input(data);
    let cases = choose(&mut input);
    let (absent, text) = (input.piece(), input.piece());
    let (absent, text) = ((!absent.is_empty()).then_some(absent), (!text.is_empty()).then_some(text));
    let value = input.0;
    bounded(data.len(), RECORD_PER_BYTE, || read_all(&cases.avro.decoder, value, absent, text, &mut RowBuf::new()));
}

/// A schema and behind its first zero byte a datum.
pub fn schema(data: &[u8]) {
    let mut input = Input(data);
    let cases = choose(&mut input);
    let end = input.0.iter().position(|byte| *byte == 0).unwrap_or(input.0.len());
    let (schema, datum) = input.0.split_at(end);
    let Ok(schema) = std::str::from_utf8(schema) else { return };
    let ours = &cases.avro.relation;
    let key = ours.avro.as_ref().and_then(|schemas| schemas.key.clone());
    let avro = Some(AvroSchemas { key, value: schema.to_owned() });
    let relation = Arc::new(Relation { avro, ..Relation::clone(ours) });
    // What is ours of the relation is held whatever the schema is.
    let fixed = Decoder::of(ours.clone()).is_ok();
    assert!(fixed, "our own schemas are read");
    bounded(data.len(), SCHEMA_PER_BYTE, || {
        let Ok(decoder) = Decoder::of(relation) else { return };
        read_all(&decoder, datum, None, None, &mut RowBuf::new());
    });
}

//! The commit time of a record's transaction, which rows at a sink are marked with. Read by itself and where it is needed: what a
//! sink is made of stands in the rows alone.

use serde::Deserialize;

use super::{Decoder, json_decode};
use crate::error::Result;

impl Decoder {
    /// Microseconds since 1970, as the source's server had it.
    pub fn commit_time_us(&self, value: &[u8]) -> Result<i64> {
        match self {
            Decoder::Json(json) => json.commit_time_us(value),
            Decoder::Avro(avro) => avro.commit_time_us(value),
        }
    }
}

#[derive(Deserialize)]
struct Envelope {
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    ts_us: i64,
}

impl json_decode::Decoder {
    fn commit_time_us(&self, value: &[u8]) -> Result<i64> {
        let read = serde_json::from_str::<Envelope>(self.payload(value)?);
        read.map(|envelope| envelope.source.ts_us).map_err(|_| self.invalid(None, "the record has no commit time"))
    }
}

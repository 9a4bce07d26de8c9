//! One record once more, whole: for who has passed it and finds out that it is to be kept.
//!
//! What streams keeps nothing of a record but what is made of it. That a record is wanted a second time is rare enough to pay a
//! read of its own.

use std::time::{Duration, Instant};

use super::consumer::Spans;
use crate::config;
use crate::error::{Error, Result};

/// Some records around the one that is wanted.
const PREFETCH_BYTES: usize = 1024 * 1024;

/// It was there a moment ago.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Name and value.
pub type OwnedHeader = (String, Option<Vec<u8>>);

/// A record's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<OwnedHeader>,
}

impl Bytes {
    /// The last header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().rfind(|(known, _)| known == name)?.1.as_deref()
    }
}

pub struct Reread {
    kafka: config::Kafka,
    /// Open once it was needed.
    spans: Option<Spans>,
}

impl Reread {
    pub fn new(kafka: &config::Kafka) -> Reread {
        Reread { kafka: kafka.clone(), spans: None }
    }

    /// The record at this offset.
    pub async fn record(&mut self, topic: &str, partition: i32, offset: i64) -> Result<Bytes> {
        let (kafka, topic, spans) = (self.kafka.clone(), topic.to_owned(), self.spans.take());
        let reading = tokio::task::spawn_blocking(move || read(&kafka, spans, &topic, partition, offset));
        let (spans, record) = reading.await.map_err(|error| Error::retry("reading a record again", error))??;
        self.spans = Some(spans);
        Ok(record)
    }
}

/// Blocks.
fn read(
    kafka: &config::Kafka,
    spans: Option<Spans>,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<(Spans, Bytes)> {
    let mut spans = match spans {
        Some(spans) => spans,
        None => Spans::open(kafka, PREFETCH_BYTES)?,
    };
    let (part, begun) = (spans.ensure(topic, partition, offset)?, Instant::now());
    let found = loop {
        if let Some(record) = spans.poll(part, POLL)? {
            if record.offset() != offset {
                break None;
            }
            let owned = |(name, value): (&str, Option<&[u8]>)| (name.to_owned(), value.map(<[u8]>::to_vec));
            let headers = record.headers().into_iter().map(owned).collect();
            let (key, value) = (record.key().map(<[u8]>::to_vec), record.value().map(<[u8]>::to_vec));
            break Some(Bytes { key, value, headers });
        }
        if begun.elapsed() > PATIENCE {
            break None;
        }
    };
    // Nothing of it is wanted but this.
    spans.release(part)?;
    let gone = || Error::retry_plain(format!("the record at {offset} of topic {topic} partition {partition} is gone"));
    Ok((spans, found.ok_or_else(gone)?))
}

//! Bytes of a record as what they say, whatever format they are in.

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::foreign::{Envelope, Key, Node, Unlike, key, row_schema};
use crate::config::Topics;
use crate::error::{Code, Error, Result};
use crate::sink::partition_progress::Partition;

/// Schemas that are kept; each is as long as a record's head.
const SCHEMAS_MAX: usize = 256;

/// One record, owned.
#[derive(Clone, Debug)]
pub struct Raw {
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    /// The delete of a key change.
    pub moves_away: bool,
    /// The create of one.
    pub came: bool,
}

impl Raw {
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Names a record in messages.
pub struct At<'a>(pub &'a Partition, pub i64);

impl At<'_> {
    /// The halt for it.
    pub fn refuse(&self, found: impl std::fmt::Display, hint: impl Into<String>) -> Error {
        let message = format!("the record at offset {} of {} {found}", self.1, self.0);
        Error::halt(Code::ForeignRecord, message, hint)
    }

    pub fn unlike(&self, unlike: Unlike) -> Error {
        self.refuse(unlike.found(), unlike.hint())
    }

    /// Says where it was.
    pub fn name(&self, error: Error) -> Error {
        error.fact(format!("at offset {} of {}", self.1, self.0))
    }
}

/// Reads values, and remembers their schemas.
#[derive(Default)]
pub struct Reader {
    rows: HashMap<String, Arc<Node>>,
}

impl Reader {
    pub fn envelope<'a>(&self, value: &'a [u8], topics: &Topics) -> Result<Envelope<'a>, Unlike> {
        Envelope::parse(value, topics.modes.schemas)
    }

    pub fn key<'a>(&self, bytes: &'a [u8], topics: &Topics) -> Result<Key<'a>, Unlike> {
        key(bytes, topics.modes.schemas)
    }

    /// The schema of the rows of a value.
    pub fn row_schema(&mut self, text: &str) -> Option<Arc<Node>> {
        if let Some(known) = self.rows.get(text) {
            return Some(known.clone());
        }
        let envelope: Node = serde_json::from_str(text).ok()?;
        let row = Arc::new(row_schema(&envelope)?.clone());
        if self.rows.len() >= SCHEMAS_MAX {
            self.rows.clear();
        }
        self.rows.insert(text.to_owned(), row.clone());
        Some(row)
    }
}

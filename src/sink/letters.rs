//! `lockstep.parked`: the letters of a sink in row consistency. A letter is a record whose row the sink refused, or that came for a
//! key which has one (a dead letter, as queues call it; "parked" in this code is a unique value that stands in for another,
//! [`super::park`]).
//!
//! The table is the truth about what is parked. A letter is kept in the transaction that moves its partition past the record, so
//! nothing is lost and nothing parked twice, whoever dies; and it is settled in the transaction that makes it worth nothing: its
//! rows were put back, or the sink has a newer state of the row. The dead-letter topic is a copy for people and tools: written
//! after that transaction, at least once, and known by topic, partition and offset of the record, which stand in its headers. A
//! letter that is settled before it was copied is copied all the same.
//!
//! Columns are fixed by docs/protocol.md.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::Halt;
use crate::kafka::reread::Bytes;
use crate::lsn::Position;
use crate::relation::TableName;

pub const FORMAT: i32 = 1;

pub const CREATE_TABLE: &str = "CREATE TABLE lockstep.parked (\
    pipeline text, sink text, topic text, partition int, \"offset\" bigint, \
    letter bigint generated always as identity, table_schema text, table_name text, key text, \
    commit_lsn pg_lsn, ordinal bigint, record_key bytea, record_value bytea, header_names text[], header_values bytea[], \
    code text, sqlstate text, column_name text, reason text, \
    parked_at timestamptz, asked_at timestamptz, copied_at timestamptz, settled_at timestamptz, format int, \
    primary key (pipeline, sink, topic, partition, \"offset\"))";

/// Which record it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// A row that has letters: its table at the source, and its key as [`key_text`] writes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterKey {
    pub table: TableName,
    pub key: String,
}

/// Why the sink did not take it. Never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Of the error; "BEHIND": nothing is wrong with the record but that it needs what an earlier one holds.
    pub code: String,
    pub sqlstate: Option<String>,
    pub column: Option<String>,
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    pub spot: Spot,
    pub of: LetterKey,
    pub position: Position,
    pub record: Bytes,
    pub reason: Reason,
    /// In seconds since 1970; of a letter that was read.
    pub parked_at: i64,
}

/// What there is of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub of: LetterKey,
    pub letters: u64,
    /// Somebody wants them put back.
    pub asked: bool,
    /// Of the oldest.
    pub reason: Reason,
    pub parked_at: i64,
}

impl Reason {
    pub fn of(halt: &Halt) -> Reason {
        let sqlstate = halt.facts.iter().find_map(|fact| fact.strip_prefix("SQLSTATE ")).map(str::to_owned);
        let column = halt.message.split_once("does not fit column ").and_then(|(_, rest)| rest.split_once(" of "));
        Reason {
            code: halt.code.to_string(),
            sqlstate,
            column: column.map(|(column, _)| column.to_owned()),
            message: halt.message.clone(),
        }
    }

    /// Of a record without all columns, behind one that the sink refused.
    pub fn behind() -> Reason {
        let message = "it lacks columns that an earlier record of its key holds, which is parked".to_owned();
        Reason { code: "BEHIND".to_owned(), sqlstate: None, column: None, message }
    }
}

/// A key as a letter has it: a JSON object of its columns' names and texts, in key order and in ASCII, which every database
/// can store.
pub fn key_text<'a>(columns: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let one = |(name, text): (&str, &[u8])| format!("{}:{}", ascii(name), ascii(&String::from_utf8_lossy(text)));
    format!("{{{}}}", columns.map(one).collect::<Vec<_>>().join(","))
}

fn ascii(text: &str) -> String {
    let json = serde_json::to_string(text).expect("a string is JSON");
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        match c.is_ascii() {
            true => out.push(c),
            false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
        out
    })
}

/// What [`key_text`] made its text of. Of any other text nothing.
pub fn columns_of(key: &str) -> Vec<(String, String)> {
    let parsed: Option<Columns> = serde_json::from_str(key).ok();
    parsed.map(|Columns(columns)| columns).unwrap_or_default()
}

/// The texts alone.
pub fn texts_of(key: &str) -> Vec<String> {
    columns_of(key).into_iter().map(|(_, text)| text).collect()
}

/// In the order in which they stand there.
struct Columns(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Columns, D::Error> {
        deserializer.deserialize_map(Pairs)
    }
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Columns;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of texts")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Columns, M::Error> {
        let mut columns = Vec::new();
        while let Some(column) = map.next_entry()? {
            columns.push(column);
        }
        Ok(Columns(columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn keys_are_ascii_and_read_back() {
        let columns = [("z", "5"), ("a\"b\\", "ä😀"), ("", "")];
        let key = key_text(columns.iter().map(|(name, text)| (*name, text.as_bytes())));
        assert_eq!(key, r#"{"z":"5","a\"b\\":"\u00e4\ud83d\ude00","":""}"#);
        let read = columns_of(&key);
        assert_eq!(read.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect::<Vec<_>>(), columns);
        assert_eq!(columns_of("[5]"), []);
    }

    #[test]
    fn a_reason_names_the_column_and_the_state() {
        let halt = |message: &str| Halt {
            code: Code::ValueRefused,
            message: message.to_owned(),
            facts: vec!["SQLSTATE 22001".to_owned()],
            hint: String::new(),
        };
        let reason = Reason::of(&halt("a value does not fit column note of public.items"));
        assert_eq!((reason.sqlstate.as_deref(), reason.column.as_deref()), (Some("22001"), Some("note")));
        assert_eq!(Reason::of(&halt("a value does not fit a column of public.items")).column, None);
    }
}

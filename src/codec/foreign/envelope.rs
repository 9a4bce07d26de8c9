//! The outside of a record: the envelope and the key, as far as they say what happened, where, and to which row.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::schema::Node;
use crate::codec::Op;
use crate::lsn::Lsn;

/// Names and values of a row, in the order of the record.
pub type Fields<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// A key and its schema, where it has one.
pub struct Key<'a> {
    pub fields: Fields<'a>,
    pub schema: Option<&'a RawValue>,
}

/// A value.
pub struct Envelope<'a> {
    pub op: Op,
    pub before: Option<Fields<'a>>,
    pub after: Option<Fields<'a>>,
    pub source: Source<'a>,
    /// Of the whole value.
    pub schema: Option<&'a RawValue>,
}

/// Where a change comes from.
#[derive(Debug, Deserialize)]
pub struct Source<'a> {
    pub connector: Cow<'a, str>,
    pub schema: Cow<'a, str>,
    pub table: Cow<'a, str>,
    #[serde(default)]
    snapshot: Option<Cow<'a, str>>,
    #[serde(default)]
    sequence: Option<Cow<'a, str>>,
    #[serde(default)]
    lsn: Option<u64>,
    #[serde(default)]
    ts_us: Option<i64>,
    #[serde(default)]
    ts_ms: Option<i64>,
}

/// What kind of row of a snapshot it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshot {
    /// Streamed.
    No,
    /// Read while the stream goes on.
    Incremental,
    /// Read while it stands still.
    Whole,
}

impl Source<'_> {
    pub fn snapshot(&self) -> Snapshot {
        match self.snapshot.as_deref() {
            // Null where the converter does not fill in its default.
            None | Some("false") => Snapshot::No,
            Some("incremental") => Snapshot::Incremental,
            Some(_) => Snapshot::Whole,
        }
    }

    /// When its transaction was committed, in microseconds since 1970; older versions of Debezium say milliseconds.
    pub fn time_us(&self) -> Option<i64> {
        self.ts_us.or_else(|| self.ts_ms?.checked_mul(1000))
    }

    pub fn lsn(&self) -> Option<Lsn> {
        self.lsn.map(Lsn)
    }

    /// The end of the last commit before: the first of two numbers in a list in a string, null before the first commit.
    /// `None` where it is no such thing.
    pub fn last_commit(&self) -> Option<Option<Lsn>> {
        let [last, _]: [Option<Cow<'_, str>>; 2] = serde_json::from_str(self.sequence.as_deref()?).ok()?;
        last.map(|last| last.parse().map(Lsn)).transpose().ok()
    }
}

/// Why bytes are not a record of Debezium's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unlike {
    NotJson,
    /// `schemas` was said and there is none.
    NoSchema,
    /// There is one, and it was not said.
    Schema,
    /// No operation, source or rows: rows alone, perhaps.
    NoEnvelope,
}

impl Unlike {
    pub fn found(self) -> &'static str {
        match self {
            Unlike::NotJson => "is not JSON",
            Unlike::NoSchema => "has no schema",
            Unlike::Schema => "has a schema",
            Unlike::NoEnvelope => "is no envelope of Debezium's (op, before, after, source)",
        }
    }

    pub fn hint(self) -> &'static str {
        match self {
            Unlike::NotJson => "write format under [topics] as the converter of Debezium's connector writes it",
            Unlike::NoSchema => "write schemas = false under [topics], with what the connector was told of values",
            Unlike::Schema => "write schemas = true under [topics]",
            Unlike::NoEnvelope => {
                "take transforms that unwrap or rewrite records (ExtractNewRecordState) off Debezium's connector"
            }
        }
    }
}

#[derive(Deserialize)]
struct WithSchema<'a> {
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// The payload and its schema.
fn opened(text: &str, schemas: bool) -> Result<(&str, Option<&RawValue>), Unlike> {
    let opened: Option<WithSchema<'_>> = serde_json::from_str(text).ok();
    let both = opened.and_then(|opened| Some((opened.payload?, opened.schema?)));
    match (schemas, both) {
        (true, Some((payload, schema))) => Ok((payload.get(), Some(schema))),
        (true, None) => Err(Unlike::NoSchema),
        (false, Some(_)) => Err(Unlike::Schema),
        (false, None) => Ok((text, None)),
    }
}

impl<'a> Envelope<'a> {
    pub fn parse(value: &'a [u8], schemas: bool) -> Result<Envelope<'a>, Unlike> {
        let text = std::str::from_utf8(value).map_err(|_| Unlike::NotJson)?;
        if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
            return Err(Unlike::NotJson);
        }
        let (payload, schema) = opened(text, schemas)?;
        Envelope::of(payload, schema).ok_or(Unlike::NoEnvelope)
    }

    /// Of the payload alone.
    pub fn of(payload: &'a str, schema: Option<&'a RawValue>) -> Option<Envelope<'a>> {
        #[derive(Deserialize)]
        struct Outside<'a> {
            #[serde(borrow)]
            op: Cow<'a, str>,
            #[serde(borrow, default)]
            before: Option<&'a RawValue>,
            #[serde(borrow, default)]
            after: Option<&'a RawValue>,
            #[serde(borrow)]
            source: Source<'a>,
        }
        let outside: Outside<'a> = serde_json::from_str(payload).ok()?;
        let row = |raw: Option<&'a RawValue>| match raw {
            None => Some(None),
            Some(raw) => fields(raw.get()).map(Some),
        };
        let op = Op::from_text(&outside.op)?;
        let (before, after) = (row(outside.before)?, row(outside.after)?);
        Some(Envelope { op, before, after, source: outside.source, schema })
    }
}

/// A key that is a struct. One that is anything else (a string, a number) names no columns.
pub fn key(key: &[u8], schemas: bool) -> Result<Key<'_>, Unlike> {
    let text = std::str::from_utf8(key).map_err(|_| Unlike::NotJson)?;
    let (payload, schema) = opened(text, schemas)?;
    Ok(Key { fields: fields(payload).ok_or(Unlike::NoEnvelope)?, schema })
}

/// The fields of an object.
pub fn fields(raw: &str) -> Option<Fields<'_>> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Fields<'de>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
            #[derive(Deserialize)]
            struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
            let mut fields = Vec::new();
            while let Some(Name(name)) = map.next_key()? {
                fields.push((name, map.next_value()?));
            }
            Ok(fields)
        }
    }
    let mut json = serde_json::Deserializer::from_str(raw);
    let fields = json.deserialize_map(Names).ok()?;
    json.end().ok()?;
    Some(fields)
}

/// The schema of one row within that of a whole value.
pub fn row_schema(envelope: &Node) -> Option<&Node> {
    envelope.fields.iter().find(|field| field.field.as_deref() == Some("after"))
}

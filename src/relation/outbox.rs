//! An outbox: a table whose inserted rows are events for others, as Debezium's EventRouter reads it.
//!
//! Each row names its topic, its key and its payload; what happens to the row afterwards (it is mostly deleted at once) is told
//! to nobody. No sink takes such a table.

use serde::{Deserialize, Serialize};

/// How rows of an outbox become records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outbox {
    /// With `{route}` where the row's route stands.
    pub topic: String,
    pub columns: Columns,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional: Vec<Additional>,
    /// A payload that is JSON becomes what it says, instead of a string of it.
    #[serde(default)]
    pub expand: bool,
    /// A row without a payload is a tombstone.
    #[serde(default)]
    pub tombstones: bool,
    #[serde(default)]
    pub format: EventFormat,
    #[serde(default)]
    pub updates: Updates,
}

/// The columns that make an event.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Columns {
    /// In the header `id`, by which consumers tell a second delivery.
    pub id: String,
    pub key: String,
    pub payload: String,
    pub route: String,
    /// The record's time; `None`: when the row was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// The version that the schema of a value has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
}

/// Another column in the record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Additional {
    pub column: String,
    pub placement: Placement,
    pub name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    Header,
    /// Beside the payload: the value is an object of both.
    Envelope,
    /// In no record: the number of the partition that it goes into.
    Partition,
}

/// How key and value are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventFormat {
    #[default]
    Json,
    /// The texts themselves, as Connect's StringConverter.
    String,
    /// As Confluent's AvroConverter, each schema under the subjects of the event's topic.
    Avro,
    /// The payload's bytes, as Debezium's BinaryDataConverter; the key is its text. Whoever wrote the row has made the value, in
    /// Avro or whatever else.
    Bytes,
}

/// What an UPDATE of an event is, which nobody is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Updates {
    #[default]
    Warn,
    Halt,
}

impl Outbox {
    /// Columns that stand beside the payload.
    pub fn envelope(&self) -> impl Iterator<Item = &Additional> {
        self.additional.iter().filter(|additional| additional.placement == Placement::Envelope)
    }

    pub fn headers(&self) -> impl Iterator<Item = &Additional> {
        self.additional.iter().filter(|additional| additional.placement == Placement::Header)
    }

    /// The column that says the partition.
    pub fn partition(&self) -> Option<&str> {
        let placed = self.additional.iter().find(|additional| additional.placement == Placement::Partition);
        placed.map(|additional| additional.column.as_str())
    }

    /// Columns that hold whole numbers.
    pub fn numbers(&self) -> impl Iterator<Item = &str> {
        self.partition().into_iter().chain(self.columns.schema_version.as_deref())
    }

    /// Every column that is read.
    pub fn read(&self) -> impl Iterator<Item = &str> {
        let Columns { id, key, payload, route, timestamp, schema_version } = &self.columns;
        let additional = self.additional.iter().map(|additional| &additional.column);
        let optional = timestamp.iter().chain(schema_version);
        [id, key, payload, route].into_iter().chain(optional).chain(additional).map(String::as_str)
    }
}

impl Additional {
    /// `COLUMN:header`, `COLUMN:envelope`, each with `:NAME` behind it or not, and `COLUMN:partition`.
    pub fn parse(text: &str) -> Option<Additional> {
        let mut parts = text.splitn(3, ':').map(str::trim);
        let column = parts.next()?;
        let placement = match parts.next()? {
            "header" => Placement::Header,
            "envelope" => Placement::Envelope,
            "partition" => Placement::Partition,
            _ => return None,
        };
        let name = match (placement, parts.next()) {
            (Placement::Partition, None) => "partition",
            (Placement::Partition, Some(_)) => return None,
            (_, name) => name.unwrap_or(column),
        };
        (!column.is_empty() && !name.is_empty()).then(|| Additional {
            column: column.to_owned(),
            placement,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additional_columns_are_placed_as_debezium_writes_it() {
        let parsed = |text| Additional::parse(text).map(|a| (a.column, a.placement, a.name));
        assert_eq!(parsed("type:header:eventType"), Some(("type".into(), Placement::Header, "eventType".into())));
        assert_eq!(parsed("kind:envelope"), Some(("kind".into(), Placement::Envelope, "kind".into())));
        assert_eq!(parsed("p:partition"), Some(("p".into(), Placement::Partition, "partition".into())));
        for wrong in ["type", "type:head", ":header", "type:header:", "type:partition:p"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}

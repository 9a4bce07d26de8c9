//! `[outbox]` of a connector: the table's rows are events with topics of their own. The names are those of Debezium's EventRouter.

use super::Table;
use super::findings::{At, Report};
use super::names;
use super::process::check_identifier;
use super::reader::Section;
use super::wire::word;
use crate::relation::Format;
use crate::relation::outbox::{Additional, Columns, EventFormat, Outbox, Placement, Updates};

/// Placeholders of an event's topic.
const TOPIC: [&str; 4] = ["route", "prefix", "schema", "table"];
const FORMATS: [(&str, EventFormat); 4] = [
    ("json", EventFormat::Json),
    ("avro", EventFormat::Avro),
    ("string", EventFormat::String),
    ("bytes", EventFormat::Bytes),
];
const UPDATES: [(&str, Updates); 2] = [("warn", Updates::Warn), ("halt", Updates::Halt)];

/// The section, where it stands, and where it says a format.
pub(super) struct OutboxText {
    pub outbox: Outbox,
    pub at: At,
    pub format_at: Option<At>,
}

/// `None` if the file has none. The topic's other placeholders are still in it. `format` is that
/// of the table's records, which events have too where nothing is said.
pub(super) fn outbox(section: &mut Section<'_>, format: Format) -> Option<OutboxText> {
    let format = match format {
        Format::Avro => EventFormat::Avro,
        Format::Json => EventFormat::Json,
    };
    let at = section.there();
    let topic = section.text("topic");
    names::check_pattern(section.report(), "topic", topic.as_ref(), &TOPIC);
    let mut column = |key, default: Option<&str>| {
        let text = section.text(key);
        if let Some(text) = &text {
            check_identifier(section, key, text);
        }
        text.map(|text| text.value).or_else(|| default.map(str::to_owned))
    };
    let mut required = |key, default: &str| column(key, Some(default)).expect("it has a default");
    let columns = Columns {
        id: required("id_field", "id"),
        key: required("key_field", "aggregateid"),
        payload: required("payload_field", "payload"),
        route: required("route_by_field", "aggregatetype"),
        timestamp: column("timestamp_field", None),
        schema_version: column("schema_version_field", None),
    };
    let outbox = Outbox {
        topic: topic.map_or_else(|| "{prefix}.event.{route}".to_owned(), |topic| topic.value),
        columns,
        additional: additional(section),
        expand: section.boolean("expand_json_payload", false),
        tombstones: section.boolean("tombstone_on_empty_payload", false),
        format: section.choice("format", &FORMATS).unwrap_or(format),
        updates: section.choice("invalid_operations", &UPDATES).unwrap_or_default(),
    };
    let format_at = section.place("format");
    at.map(|at| OutboxText { outbox, at, format_at })
}

fn additional(section: &mut Section<'_>) -> Vec<Additional> {
    let example = "[\"type:header:eventType\"]";
    let Some((_, texts)) = section.texts("additional_placement", example) else { return Vec::new() };
    let mut found: Vec<Additional> = Vec::new();
    for text in texts {
        let Some(additional) = Additional::parse(&text.value) else {
            let message = format!(
                "additional_placement takes COLUMN:header or COLUMN:envelope, with :NAME or not, and COLUMN:partition, found {:?}",
                text.value
            );
            section.report().add(&text.at, message, format!("write additional_placement = {example}"));
            continue;
        };
        let taken = (additional.placement == Placement::Envelope && additional.name == "payload")
            || (additional.placement == Placement::Header && additional.name == "id");
        let same = |other: &Additional| other.placement == additional.placement && other.name == additional.name;
        if additional.placement == Placement::Partition && found.iter().any(same) {
            let message = "additional_placement has two columns for the partition";
            section.report().add(&text.at, message, "delete one of them");
        } else if taken || found.iter().any(same) {
            let message = format!("additional_placement has {:?} twice", additional.name);
            section.report().add(&text.at, message, "write :NAME with another name behind it");
        }
        found.push(additional);
    }
    found
}

/// What an outbox does not go with. `at` is where its section stands.
pub(super) fn check(table: &Table, at: &At, report: &Report) {
    let Some(outbox) = &table.wire.modes.outbox else { return };
    if table.wire.records.flat {
        let hint = "write records = \"envelope\" into [wire] of this connector";
        report.add(at, "an outbox has events, and records = \"flat\" makes rows of them", hint);
    }
    check_version(table, outbox, at, report);
    let shaped = outbox.expand || outbox.envelope().next().is_some() || table.wire.modes.schemas;
    let alone = matches!(outbox.format, EventFormat::String | EventFormat::Bytes);
    if alone && shaped {
        let message = match outbox.format {
            EventFormat::Bytes => "format = \"bytes\" writes the payload's bytes alone",
            _ => "format = \"string\" writes the payload's text alone",
        };
        let hint = "write format = \"json\", or no expand_json_payload, no envelope in additional_placement and, in [wire], \
                    schemas = false";
        report.add(at, message, hint);
    }
}

/// A version is one of a schema that is ours: that of the object which the payload and what stands beside it are in.
fn check_version(table: &Table, outbox: &Outbox, at: &At, report: &Report) {
    let has_schemas = table.wire.modes.schemas || outbox.format == EventFormat::Avro;
    let written = has_schemas && outbox.envelope().next().is_some();
    if outbox.columns.schema_version.is_some() && !written {
        let message = "schema_version_field has no effect: values have no schema of their own";
        let hint = "delete it, or write schemas = true into [wire], or format = \"avro\", and a COLUMN:envelope into \
                    additional_placement of [outbox]";
        report.add(at, message, hint);
    }
}

/// Of the table whose records are these events: nothing is written of it but them.
pub(super) fn format_of(outbox: &Outbox) -> Format {
    if outbox.format == EventFormat::Avro { Format::Avro } else { Format::Json }
}

/// Two outboxes whose events would be mixed.
pub(super) fn compare<'t>(outboxes: impl Iterator<Item = (&'t Table, &'t At)>, report: &Report) {
    let mut seen: Vec<(&Table, &str)> = Vec::new();
    for (table, at) in outboxes {
        let Some(outbox) = &table.wire.modes.outbox else { continue };
        match seen.iter().find(|(_, topic)| *topic == outbox.topic) {
            Some((other, topic)) => {
                let message = format!("outboxes {} and {} share the topics {topic:?}", other.name, table.name);
                report.add(at, message, "write topic = \"{prefix}.{table}.{route}\" into [outbox]");
            }
            None => seen.push((table, &outbox.topic)),
        }
    }
}

/// Keys and values, for showing them.
pub(super) fn shown(outbox: &Outbox) -> Vec<(&'static str, toml::Value)> {
    let Outbox { topic, columns, additional, expand, tombstones, format, updates } = outbox;
    let placed = |additional: &Additional| {
        let Additional { column, name, .. } = additional;
        toml::Value::from(match additional.placement {
            Placement::Header => format!("{column}:header:{name}"),
            Placement::Envelope => format!("{column}:envelope:{name}"),
            Placement::Partition => format!("{column}:partition"),
        })
    };
    let mut shown = vec![
        ("topic", topic.clone().into()),
        ("id_field", columns.id.clone().into()),
        ("key_field", columns.key.clone().into()),
        ("payload_field", columns.payload.clone().into()),
        ("route_by_field", columns.route.clone().into()),
        ("additional_placement", additional.iter().map(placed).collect::<Vec<_>>().into()),
        ("expand_json_payload", (*expand).into()),
        ("tombstone_on_empty_payload", (*tombstones).into()),
        ("format", word(&FORMATS, *format).into()),
        ("invalid_operations", word(&UPDATES, *updates).into()),
    ];
    let optional = [("timestamp_field", &columns.timestamp), ("schema_version_field", &columns.schema_version)];
    shown.extend(optional.into_iter().filter_map(|(key, column)| Some((key, column.clone()?.into()))));
    shown
}

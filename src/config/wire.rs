//! `[wire]`: what records look like to consumers. In lockstep.toml for every table, in a connector for its own.
//!
//! The names are those of Debezium's options, without what all of them share (`decimal.handling.mode` is `decimal_handling`).
//! Defaults lose nothing. What a mode loses on the wire still reaches our sinks, which read the exact text beside it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::process::check_topic;
use super::reader::Section;
use super::records::records;
use super::snapshot::snapshot;
use super::{Heartbeat, Messages, TableWire, Wire};
use crate::relation::{
    BinaryMode, ConversionFailure, DecimalMode, Delimiter, Format, HstoreMode, IntervalMode, Modes, NameMode,
    Placeholder, TimeMode, UnknownMode,
};

/// Faster than this, heartbeats are most of the traffic.
const HEARTBEAT_LEAST: Duration = Duration::from_millis(100);
const HEARTBEAT_MOST: Duration = Duration::from_secs(86_400);

/// Debezium's letters of operations that may be skipped.
const OPERATIONS: [(&str, char); 4] = [("c", 'c'), ("u", 'u'), ("d", 'd'), ("t", 't')];

pub(super) const FORMATS: [(&str, Format); 2] = [("json", Format::Json), ("avro", Format::Avro)];
pub(super) const DECIMALS: [(&str, DecimalMode); 3] =
    [("string", DecimalMode::String), ("precise", DecimalMode::Precise), ("double", DecimalMode::Double)];
pub(super) const TIMES: [(&str, TimeMode); 6] = [
    ("adaptive", TimeMode::Adaptive),
    ("adaptive_time_microseconds", TimeMode::AdaptiveTimeMicroseconds),
    ("connect", TimeMode::Connect),
    ("isostring", TimeMode::Isostring),
    ("microseconds", TimeMode::Microseconds),
    ("nanoseconds", TimeMode::Nanoseconds),
];
pub(super) const INTERVALS: [(&str, IntervalMode); 2] =
    [("string", IntervalMode::String), ("numeric", IntervalMode::Numeric)];
pub(super) const BINARIES: [(&str, BinaryMode); 4] = [
    ("bytes", BinaryMode::Bytes),
    ("base64", BinaryMode::Base64),
    ("base64-url-safe", BinaryMode::Base64UrlSafe),
    ("hex", BinaryMode::Hex),
];
pub(super) const HSTORES: [(&str, HstoreMode); 2] = [("json", HstoreMode::Json), ("map", HstoreMode::Map)];
pub(super) const UNKNOWNS: [(&str, UnknownMode); 3] =
    [("text", UnknownMode::Text), ("bytes", UnknownMode::Bytes), ("skip", UnknownMode::Skip)];
pub(super) const FAILURES: [(&str, ConversionFailure); 2] =
    [("fail", ConversionFailure::Fail), ("null", ConversionFailure::Null)];
pub(super) const NAMES: [(&str, NameMode); 3] =
    [("none", NameMode::None), ("avro", NameMode::Avro), ("avro_unicode", NameMode::AvroUnicode)];

/// The word of a mode, for showing it.
pub(super) fn word<T: Copy + PartialEq>(words: &[(&'static str, T)], mode: T) -> &'static str {
    words.iter().find(|(_, of)| *of == mode).expect("every mode has a word").0
}

/// The keys that a table may say for itself; what it does not say is as in `default`.
pub(super) fn table_wire(section: &mut Section<'_>, default: &TableWire) -> TableWire {
    let modes = &default.modes;
    let records = records(section, &default.records);
    let skipped = skipped(section).unwrap_or_else(|| default.skipped.clone());
    let letters: BTreeSet<char> = skipped.iter().copied().collect();
    let modes = Modes {
        decimal: section.choice("decimal_handling", &DECIMALS).unwrap_or(modes.decimal),
        time: section.choice("time_precision", &TIMES).unwrap_or(modes.time),
        interval: section.choice("interval_handling", &INTERVALS).unwrap_or(modes.interval),
        binary: section.choice("binary_handling", &BINARIES).unwrap_or(modes.binary),
        hstore: section.choice("hstore_handling", &HSTORES).unwrap_or(modes.hstore),
        unknown: section.choice("unknown_types", &UNKNOWNS).unwrap_or(modes.unknown),
        conversion_failure: section.choice("conversion_failure", &FAILURES).unwrap_or(modes.conversion_failure),
        null_as_default: section.boolean("null_as_default", modes.null_as_default),
        schemas: section.boolean("schemas", modes.schemas),
        source_types: section.boolean("propagate_source_type", modes.source_types),
        placeholder: placeholder(section).unwrap_or_else(|| modes.placeholder.clone()),
        field_names: section.choice("field_name_adjustment", &NAMES).unwrap_or(modes.field_names),
        schema_names: section.choice("schema_name_adjustment", &NAMES).unwrap_or(modes.schema_names),
        delimiter: modes.delimiter.clone(),
        flat: records.resolved(),
        outbox: None,
        snapshot_where: None,
        skipped: letters.into_iter().collect(),
    };
    TableWire {
        format: section.choice("format", &FORMATS).unwrap_or(default.format),
        modes,
        tombstones: section.boolean("tombstones", default.tombstones),
        skipped,
        snapshot: snapshot(section).unwrap_or(default.snapshot),
        records,
    }
}

pub(super) fn placeholder(section: &mut Section<'_>) -> Option<Placeholder> {
    let text = section.text("unavailable_value_placeholder")?;
    let placeholder = Placeholder(text.value);
    if placeholder.bytes().is_none() {
        let message = "behind hex: stand pairs of hexadecimal digits";
        section.report().add(&text.at, message, "write unavailable_value_placeholder = \"hex:00ff\"");
    }
    Some(placeholder)
}

fn skipped(section: &mut Section<'_>) -> Option<Vec<char>> {
    let (_, words) = section.texts("skipped_operations", "[\"t\"]")?;
    let mut letters = Vec::new();
    for word in words {
        match OPERATIONS.iter().find(|(known, _)| *known == word.value) {
            Some((_, letter)) => letters.push(*letter),
            None => {
                let message = format!("skipped_operations takes c, u, d and t, found {:?}", word.value);
                section.report().add(&word.at, message, "write skipped_operations = [\"t\"]");
            }
        }
    }
    Some(letters)
}

/// `[wire]` of lockstep.toml.
pub(super) fn wire(section: &mut Section<'_>, prefix: &str, delimiter: &Delimiter) -> Wire {
    let mut tables = table_wire(section, &TableWire::default());
    tables.modes.delimiter = delimiter.clone();
    let Delimiter(delimiter) = delimiter;
    let context_headers = section.boolean("context_headers", false);
    let transactions = section.boolean("transaction_metadata", false);
    let transaction_topic = topic(section, "transaction_topic", format!("{prefix}{delimiter}transaction"));
    let messages = section.boolean("logical_messages", false);
    let message_topic = topic(section, "message_topic", format!("{prefix}{delimiter}message"));
    let prefixes = |key, section: &mut Section<'_>| {
        section.texts(key, "[\"audit\"]").map(|(_, list)| list.into_iter().map(|text| text.value).collect())
    };
    let include = prefixes("message_prefixes", section);
    let exclude: Option<Vec<String>> = prefixes("message_prefixes_excluded", section);
    let heartbeat = section.duration("heartbeat_interval", Duration::ZERO, Duration::ZERO..=HEARTBEAT_MOST);
    if let (true, Some(at)) = (!heartbeat.is_zero() && heartbeat < HEARTBEAT_LEAST, section.place("heartbeat_interval"))
    {
        section.report().add(
            &at,
            "heartbeat_interval is 100ms or more, or 0s for none",
            "write heartbeat_interval = \"10s\"",
        );
    }
    let heartbeat_topic = topic(section, "heartbeat_topic", format!("__debezium-heartbeat{delimiter}{prefix}"));
    let query = section.text("heartbeat_query").map(|text| text.value);
    Wire {
        tables,
        context_headers,
        transaction_topic: transactions.then_some(transaction_topic),
        messages: messages.then_some(Messages { topic: message_topic, include, exclude: exclude.unwrap_or_default() }),
        heartbeat: (!heartbeat.is_zero()).then_some(Heartbeat { interval: heartbeat, topic: heartbeat_topic, query }),
    }
}

fn topic(section: &mut Section<'_>, key: &'static str, default: String) -> String {
    let topic = section.text(key);
    check_topic(section, key, topic.as_ref());
    topic.map_or(default, |topic| topic.value)
}

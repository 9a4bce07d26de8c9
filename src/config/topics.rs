//! `[topics]`: the topics are another program's, and this process only applies them. It stands in the place of `[source]`.
//!
//! Without schemas a record does not say how its values are written, and a wrong guess would be a wrong value at the sink
//! (`12.34` and base64 can be the same four letters). So what the writer was told is to be said here then.

use super::findings::{At, Report};
use super::reader::Section;
use super::wire::{BINARIES, DECIMALS, FORMATS, HSTORES, TIMES, placeholder, word};
use super::{Consistency, Delete, Sink, Table, TableWire};
use crate::relation::{BinaryMode, DecimalMode, Format, HstoreMode, Modes, TimeMode, UnknownMode};

/// Topics that another program writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub format: Format,
    /// How their writer was told to write values; `schemas` says whether JSON has schemas.
    pub modes: Modes,
    /// Whoever wrote the configuration says that the sink's columns have the source's types, modifiers too.
    pub same_types: bool,
    pub start: Start,
}

/// Where a partition begins that nothing was applied of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At its first record; that this is the first that was ever written is a condition.
    #[default]
    Beginning,
    /// At the first record that Kafka still has.
    Kept,
}

const STARTS: [(&str, Start); 2] = [("beginning", Start::Beginning), ("kept", Start::Kept)];
/// Those that are read by now.
const READ: [(&str, Format); 1] = [("json", Format::Json)];
const WRITERS: [(&str, ()); 1] = [("debezium", ())];

/// `None` where there is no such section.
pub(super) fn topics(section: &mut Section<'_>) -> Option<Topics> {
    let there = section.there();
    let writer = section.choice("written_by", &WRITERS);
    let format = section.choice("format", &READ).unwrap_or(Format::Json);
    let schemas = section.boolean("schemas", false);
    let same_types = section.boolean("same_types", false);
    let decimal = section.choice("decimal_handling", &DECIMALS);
    let time = section.choice("time_precision", &TIMES);
    let binary = section.choice("binary_handling", &BINARIES);
    let hstore = section.choice("hstore_handling", &HSTORES);
    let placeholder = placeholder(section);
    let start = section.choice("start", &STARTS).unwrap_or_default();
    let there = there?;
    if writer.is_none() && section.place("written_by").is_none() {
        section.report().add(&there, "written_by is missing", "write written_by = \"debezium\"");
    }
    if format == Format::Json && !schemas {
        let said = [
            ("decimal_handling", decimal.is_some(), "precise"),
            ("time_precision", time.is_some(), "adaptive"),
            ("binary_handling", binary.is_some(), "bytes"),
        ];
        for (key, said, default) in said {
            if said || section.place(key).is_some() {
                continue;
            }
            let message = format!("JSON without schemas does not say what {key} its writer has");
            let hint = format!("write {key} as Debezium's connector has it (its default is \"{default}\")");
            section.report().add(&there, message, hint);
        }
    }
    let modes = Modes {
        decimal: decimal.unwrap_or(DecimalMode::Precise),
        time: time.unwrap_or(TimeMode::Adaptive),
        binary: binary.unwrap_or(BinaryMode::Bytes),
        hstore: hstore.unwrap_or(HstoreMode::Json),
        // Types that Debezium does not know come, if they do, as bytes.
        unknown: UnknownMode::Bytes,
        schemas,
        placeholder: placeholder.unwrap_or_default(),
        ..Modes::default()
    };
    Some(Topics { format, modes, same_types, start })
}

/// What a table's connector says that is the writer's to say.
pub(super) fn check_table(table: &Table, at: &At, report: &Report) {
    let hint = "tell it to Debezium's connector; here a table has topic, and [sinks.NAME] with table, columns, truncate and on_missing";
    let refuse = |what: &str| {
        report.add(at, format!("{what} of table {}: its topic is written by Debezium", table.name), hint);
    };
    if table.by_pattern {
        refuse("a pattern in the place");
    }
    if !table.shape.is_plain() {
        refuse("columns, masks, key, constants or where");
    }
    let plain = Modes { delimiter: table.wire.modes.delimiter.clone(), ..Modes::default() };
    if table.wire != (TableWire { modes: plain, ..TableWire::default() }) || table.skip_unchanged {
        refuse("[wire], or what else shapes records,");
    }
    for target in &table.sinks {
        let says = [("delete = \"soft\"", target.delete != Delete::Row), ("values", !target.values.is_empty())];
        for (what, _) in says.into_iter().filter(|(_, said)| *said) {
            let message = format!("{what} of sink {:?} is for rows that are read from a [source]", target.sink);
            report.add(at, message, format!("delete it under [sinks.{}]", target.sink));
        }
    }
}

/// Rows of different partitions are written each in its own time, whatever the sink's section says.
pub(super) fn resolve_sink(sink: Sink) -> Sink {
    Sink { consistency: Consistency::Row, ..sink }
}

impl Topics {
    /// Keys and values as they are written, in force.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let modes = &self.modes;
        let text = |key, word: &str| (key, format!("\"{word}\""));
        vec![
            text("written_by", "debezium"),
            text("format", word(&FORMATS, self.format)),
            ("schemas", modes.schemas.to_string()),
            ("same_types", self.same_types.to_string()),
            text("decimal_handling", word(&DECIMALS, modes.decimal)),
            text("time_precision", word(&TIMES, modes.time)),
            text("binary_handling", word(&BINARIES, modes.binary)),
            text("hstore_handling", word(&HSTORES, modes.hstore)),
            ("unavailable_value_placeholder", super::describe::text(&modes.placeholder.0)),
            text("start", word(&STARTS, self.start)),
        ]
    }
}

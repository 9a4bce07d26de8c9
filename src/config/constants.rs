//! `[add_columns]`: columns that tell rows of several tables apart, and what may share a topic or a table of a sink by them.
//!
//! Rows of two tables with one key would take each other's place. With a column that holds the table's name, or a part of it, in
//! front of the key they do not; so sharing asks for such columns, the same ones in every table, with other values in each.
//!
//! Deliberately not here: what becomes of rows ([`crate::transform`]), and that a table has no such column itself, which only the
//! source knows.

use std::fmt::Write;

use super::connector::ConnectorSink;
use super::describe::{pair, text};
use super::findings::{At, Report};
use super::pattern::{Placeholder, TablePattern, Template};
use super::process::check_identifier;
use super::reader::{Section, Text};
use super::{Evolve, Table};
use crate::relation::TableName;
use crate::transform::Constant;

/// Columns and what they hold of each table, in order of column name, and where they stand.
#[derive(Default)]
pub(super) struct ConstantsText {
    pub columns: Vec<(String, Template)>,
    at: Vec<At>,
}

impl ConstantsText {
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Whether tables that differ in this part of their names have other values.
    pub fn has(&self, part: Placeholder) -> bool {
        self.columns.iter().any(|(_, template)| template.has(part))
    }

    /// Whatever else the connector says of columns is about the table's own.
    pub fn check_named(&self, key: &str, named: &[Text], report: &Report) {
        for name in named.iter().filter(|name| self.columns.iter().any(|(column, _)| *column == name.value)) {
            let message = format!("{key} names column {:?}, which [add_columns] adds", name.value);
            report.add(&name.at, message, format!("delete it from {key}: it is in every record, in front of the key"));
        }
    }

    /// A value says what a `*` stood for; every name must have one there. Without, nothing is left of the value.
    pub fn check_stars(&mut self, all: &[TablePattern], report: &Report) {
        let lacks = |template: &Template| {
            let parts = [Placeholder::Schema, Placeholder::Table].into_iter();
            let mut found = all.iter().flat_map(|name| parts.clone().map(move |part| (name, part)));
            found.find(|(name, part)| name.stars(*part) < template.stars(*part))
        };
        for ((column, template), at) in self.columns.iter().zip(&self.at) {
            if let Some((name, part)) = lacks(template) {
                let word = part.as_str();
                let message = format!("{column} is {template}, and {name} has no such * in {word}");
                report.add(
                    at,
                    message,
                    format!("write {word} for the whole name, or a connector of its own for {name}"),
                );
            }
        }
        self.columns.retain(|(_, template)| lacks(template).is_none());
    }

    /// What a sink's table does for one of the tables, it would do to the rows of the others.
    pub fn check_sinks(&self, sinks: &[ConnectorSink], report: &Report) {
        for sink in sinks.iter().filter(|sink| !self.is_empty() && sink.evolve == Evolve::Full) {
            let name = &sink.name.value;
            let message = format!(
                "evolve = \"full\" of sink {name:?} would drop and rename columns that other tables' rows have"
            );
            report.add(
                &sink.name.at,
                message,
                format!("write evolve = \"add\" under [sinks.{name}], or delete the line"),
            );
        }
    }

    pub fn check_outbox(&self, at: &At, report: &Report) {
        if !self.is_empty() {
            report.add(at, "events of an outbox have keys of their own, and no columns to add", "delete [add_columns]");
        }
    }
}

pub(super) fn constants(top: &mut Section<'_>) -> ConstantsText {
    let mut found = ConstantsText::default();
    for (column, value) in top.each_text("add_columns") {
        check_identifier(top, "column", &column);
        match Template::parse_value(&value.value) {
            Ok(template) => {
                found.columns.push((column.value, template));
                found.at.push(column.at);
            }
            Err(placeholder) => {
                let braces = placeholder.replace('{', "{{").replace('}', "}}");
                let message =
                    format!("{placeholder:?} is no placeholder; there are {{schema}}, {{table}}, {{schema.1}} …");
                top.report().add(&value.at, message, format!("write one of them, or {braces} for the text"));
            }
        }
    }
    found
}

/// The columns as one table has them; `pattern` matched it, if one did.
pub(super) fn filled(
    columns: &[(String, Template)],
    pattern: Option<&TablePattern>,
    name: &TableName,
) -> Vec<Constant> {
    let exactly = TablePattern::exactly(name);
    let value = |template: &Template| template.matched(pattern.unwrap_or(&exactly), name).fill("", name, str::to_owned);
    columns.iter().map(|(column, template)| Constant { column: column.clone(), value: value(template) }).collect()
}

/// Where a file names several tables, their topics and the tables at sinks must have several names too, unless columns tell the
/// rows apart: rows of two tables with one key would take each other's place.
pub(super) fn told_apart(
    report: &Report,
    all: &[TablePattern],
    topic: Option<&(Template, At)>,
    sinks: &[ConnectorSink],
    constants: &ConstantsText,
) {
    for part in [Placeholder::Schema, Placeholder::Table] {
        let several = all.iter().any(|name| name.is_open(part) || name.part(part) != all[0].part(part));
        if !several || constants.has(part) {
            continue;
        }
        let word = part.as_str();
        let lacks = format!("lacks {word}: tables that differ in it would share");
        let or = format!("or {HINT} with {word}");
        if let Some((_, at)) = topic.filter(|(topic, _)| !topic.has(part)) {
            let hint = format!("write topic = \"….{word}\", or delete the line; {or}");
            report.add(at, format!("topic {lacks} one topic"), hint);
        }
        for sink in sinks {
            if let Some((_, at)) = sink.table.as_ref().filter(|(table, _)| !table.has(part)) {
                let hint = format!("write table = 'shared.{word}', or delete the line for the same name; {or}");
                report.add(at, format!("table {lacks} one table of sink {:?}", sink.name.value), hint);
            }
        }
    }
}

/// Why rows of the two tables can't stand in one table of a sink, in words; `None` if they can.
pub(super) fn mixed(a: &Table, b: &Table) -> Option<String> {
    let names = |table: &Table| table.shape.constants.iter().map(|c| c.column.clone()).collect::<Vec<_>>();
    let (in_a, in_b) = (names(a), names(b));
    if in_a.is_empty() || in_b.is_empty() {
        return Some("nothing tells their keys apart".to_owned());
    }
    if in_a != in_b {
        return Some(format!("[add_columns] of one has {}, of the other {}", in_a.join(", "), in_b.join(", ")));
    }
    let shown = a.shape.constants.iter().map(|c| format!("{} = {}", c.column, text(&c.value)));
    let same = a.shape.constants == b.shape.constants;
    same.then(|| format!("[add_columns] of both has {}", shown.collect::<Vec<_>>().join(", ")))
}

/// The same of one topic, whose records look alike.
pub(super) fn mixed_records(a: &Table, b: &Table) -> Option<String> {
    mixed(a, b).or_else(|| {
        if a.partitions != b.partitions {
            return Some(format!("partitions of one is {}, of the other {}", a.partitions, b.partitions));
        }
        (a.wire != b.wire).then(|| "their [wire] differs".to_owned())
    })
}

/// What to write, where tables are mixed.
pub(super) const HINT: &str = "tell their rows apart by a column of [add_columns]";

pub(super) fn describe<'c>(out: &mut String, columns: impl Iterator<Item = (&'c String, String)>) {
    for (i, (column, template)) in columns.enumerate() {
        if i == 0 {
            let _ = writeln!(out, "\n[connectors.add_columns]");
        }
        pair(out, &text(column), text(&template));
    }
}

/// A value as it is written.
pub(super) fn shown(constant: &Constant) -> (&String, String) {
    (&constant.column, constant.value.replace('{', "{{").replace('}', "}}"))
}

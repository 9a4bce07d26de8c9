//! The keys of `[wire]` that say what a record is: an envelope or the row alone, and what comes with the row.
//!
//! Defaults are inherited key by key, so what was written is kept ([`Records`]) beside what it means ([`Flat`]).

use super::findings::{At, Report};
use super::outbox;
use super::reader::Section;
use super::wire::word;
use super::{Table, TableWire};
use crate::relation::flat::{Added, DeleteMode, Fact, Flat};

const RECORDS: [(&str, bool); 2] = [("envelope", false), ("flat", true)];
const DELETES: [(&str, DeleteMode); 5] = [
    ("tombstone", DeleteMode::Tombstone),
    ("drop", DeleteMode::Drop),
    ("rewrite", DeleteMode::Rewrite),
    ("rewrite-with-tombstone", DeleteMode::RewriteWithTombstone),
    ("delete-to-tombstone", DeleteMode::DeleteToTombstone),
];

/// What is said of records, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    pub flat: bool,
    pub deletes: DeleteMode,
    /// As they are written: `source.ts_ms:src_ms`.
    pub fields: Vec<String>,
    pub fields_prefix: String,
    pub headers: Vec<String>,
    pub headers_prefix: String,
}

impl Default for Records {
    fn default() -> Records {
        Records {
            flat: false,
            deletes: DeleteMode::default(),
            fields: Vec::new(),
            fields_prefix: "__".to_owned(),
            headers: Vec::new(),
            headers_prefix: "__".to_owned(),
        }
    }
}

impl Records {
    /// `None`: envelopes.
    pub fn resolved(&self) -> Option<Flat> {
        let added = |list: &[String], prefix: &str| list.iter().filter_map(|text| Added::parse(text, prefix)).collect();
        self.flat.then(|| Flat {
            deletes: self.deletes,
            fields: added(&self.fields, &self.fields_prefix),
            headers: added(&self.headers, &self.headers_prefix),
        })
    }
}

pub(super) fn records(section: &mut Section<'_>, default: &Records) -> Records {
    Records {
        flat: section.choice("records", &RECORDS).unwrap_or(default.flat),
        deletes: section.choice("delete_tombstone_handling", &DELETES).unwrap_or(default.deletes),
        fields: added(section, "add_fields").unwrap_or_else(|| default.fields.clone()),
        fields_prefix: prefix(section, "add_fields_prefix").unwrap_or_else(|| default.fields_prefix.clone()),
        headers: added(section, "add_headers").unwrap_or_else(|| default.headers.clone()),
        headers_prefix: prefix(section, "add_headers_prefix").unwrap_or_else(|| default.headers_prefix.clone()),
    }
}

fn prefix(section: &mut Section<'_>, key: &'static str) -> Option<String> {
    section.text(key).map(|text| text.value)
}

/// What does not name a part of an envelope, or names two things alike, is said.
fn added(section: &mut Section<'_>, key: &'static str) -> Option<Vec<String>> {
    let (_, texts) = section.texts(key, "[\"op\", \"source.ts_ms:ts\"]")?;
    let mut names: Vec<String> = Vec::new();
    for text in &texts {
        let Some(added) = Added::parse(&text.value, "") else {
            let known = Fact::all().collect::<Vec<_>>().join(", ");
            let message = format!(
                "{key} takes parts of an envelope, with :NAME behind one for another name, found {:?}",
                text.value
            );
            section.report().add(&text.at, message, format!("write one of {known}"));
            continue;
        };
        if names.contains(&added.name) {
            let message = format!("{key} has {:?} twice", added.name);
            section.report().add(&text.at, message, "write :NAME behind one of them, or delete it");
        }
        names.push(added.name);
    }
    Some(texts.into_iter().map(|text| text.value).collect())
}

/// Keys that decide who can read a table's records.
const DECISIVE: [&str; 5] = ["tombstones", "skipped_operations", "records", "format", "snapshot_where"];

/// Where a connector says them.
#[derive(Clone)]
pub(super) struct Places(Vec<(&'static str, At)>);

impl Places {
    pub fn of(section: &mut Section<'_>) -> Places {
        Places(DECISIVE.into_iter().filter_map(|key| Some((key, section.place(key)?))).collect())
    }

    pub fn add(&mut self, key: &'static str, at: At) {
        self.0.push((key, at));
    }

    pub fn get(&self, key: &str) -> Option<&At> {
        self.0.iter().find(|(found, _)| *found == key).map(|(_, at)| at)
    }
}

/// Why no sink can take the table: the key, and what it says.
fn partial(wire: &TableWire) -> Option<(&'static str, &'static str)> {
    match wire {
        _ if wire.modes.outbox.is_some() => Some(("outbox", "[outbox] writes events, not rows")),
        _ if wire.modes.snapshot_where.is_some() => Some(("snapshot_where", "snapshot_where leaves rows out")),
        _ if wire.records.flat => Some(("records", "records = \"flat\" leaves out what was before a change")),
        _ if !wire.tombstones => Some(("tombstones", "tombstones = false leaves records out")),
        _ if !wire.skipped.is_empty() => Some(("skipped_operations", "skipped_operations leaves records out")),
        _ => None,
    }
}

impl TableWire {
    /// No change is told of: the rows that are there are all.
    pub(super) fn skip_all(&mut self) {
        self.skipped = vec!['c', 'd', 't', 'u'];
        self.modes.skipped = self.skipped.iter().collect();
    }

    /// Records say all of every change, so that a sink can be made of them.
    pub fn is_whole(&self) -> bool {
        partial(self).is_none()
    }
}

/// What can't be together. A sink takes every record of its tables: nothing may be left out of them. `at` is where the table is
/// named.
pub(super) fn check(table: &Table, at: &At, places: &Places, report: &Report) {
    let wire = &table.wire;
    if let (Some((key, why)), Some(sink)) = (partial(wire), table.sinks.first()) {
        let message = format!("{why}, but sink {:?} takes this table", sink.sink);
        let hint = match key {
            "outbox" => "delete [outbox], or [sinks], from this connector",
            "snapshot_where" => "delete snapshot_where from [wire] of this connector, or [sinks]",
            _ => {
                "write records = \"envelope\", tombstones = true and skipped_operations = [] into [wire] of this connector, or \
                 give consumers a pipeline of their own without sinks"
            }
        };
        report.add(places.get(key).unwrap_or(at), message, hint);
    }
    outbox::check(table, places.get("outbox").unwrap_or(at), report);
    if wire.records.flat && !wire.skipped.contains(&'t') {
        let message = "a TRUNCATE has no flat record, and it may not be passed over in silence";
        let hint = "write skipped_operations = [\"t\"] beside records = \"flat\"";
        report.add(places.get("skipped_operations").or(places.get("records")).unwrap_or(at), message, hint);
    }
}

/// `snapshot_where` of a connector: a condition that stands in parentheses in statements of ours, so that it must be one.
pub(super) fn snapshot_where(section: &mut Section<'_>) -> Option<String> {
    let text = section.text("snapshot_where")?;
    if !is_one_expression(&text.value) {
        let message =
            "snapshot_where must be one SQL condition: quotes and parentheses closed, no comment, no semicolon";
        section.report().add(&text.at, message, "write snapshot_where = \"created_at > '2024-01-01'\"");
    }
    Some(text.value)
}

/// As far as text tells; the server tells the rest.
fn is_one_expression(sql: &str) -> bool {
    let (mut depth, mut rest) = (0i32, sql);
    while let Some(c) = rest.chars().next() {
        if c == '\'' || c == '"' {
            // Doubled quotes end one text and begin the next.
            let Some(end) = rest[1..].find(c) else { return false };
            rest = &rest[end + 2..];
            continue;
        }
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        let unsafe_here = [";", "--", "/*", "$$", "\\"].iter().any(|text| rest.starts_with(text));
        if depth < 0 || unsafe_here {
            return false;
        }
        rest = &rest[c.len_utf8()..];
    }
    depth == 0 && !sql.trim().is_empty()
}

/// Keys and values, for showing them.
pub(super) fn shown(records: &Records) -> Vec<(&'static str, toml::Value)> {
    let Records { flat, deletes, fields, fields_prefix, headers, headers_prefix } = records;
    vec![
        ("records", word(&RECORDS, *flat).into()),
        ("delete_tombstone_handling", word(&DELETES, *deletes).into()),
        ("add_fields", fields.clone().into()),
        ("add_fields_prefix", fields_prefix.clone().into()),
        ("add_headers", headers.clone().into()),
        ("add_headers_prefix", headers_prefix.clone().into()),
    ]
}

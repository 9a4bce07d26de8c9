//! What a connector makes of its table's rows: which columns, under which masks, by which key.
//!
//! Names are checked here against one another; whether the table has such columns only the source knows, and
//! [`crate::transform`] says so at the start.

use std::fmt::Write;

use secrecy::SecretString;

use super::Table;
use super::connector::ConnectorSink;
use super::constants::ConstantsText;
use super::describe::{list, pair, text};
use super::findings::At;
use super::process::{IDENTIFIER_BYTES_MAX, check_identifier};
use super::reader::{Section, Text};
use super::wire::word;
use crate::transform::{Algorithm, ColumnName, Columns, HashVersion, Mask, Shape};

/// Longer than any text column that somebody masks, and far below a record.
const MASK_CHARS_MAX: i64 = 10_000;
/// Postgres' own limit of a text.
const TRUNCATE_CHARS_MAX: i64 = 1 << 30;

const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("SHA-256", Algorithm::Sha256),
    ("SHA-224", Algorithm::Sha224),
    ("SHA-384", Algorithm::Sha384),
    ("SHA-512", Algorithm::Sha512),
];

/// The shape, and where its lists stand.
pub(super) struct ShapeText {
    pub shape: Shape,
    columns: Vec<Text>,
    key: Vec<Text>,
    masked: Vec<Text>,
    renamed: Vec<Text>,
}

pub(super) fn shape(top: &mut Section<'_>) -> ShapeText {
    let only = listed(top, "columns", "[\"id\", \"name\"]");
    let except = listed(top, "exclude_columns", "[\"secret\"]");
    let key = names(top, "key", "[\"sku\"]").unwrap_or_default();
    let filter = top.text("where");
    if let Some(filter) = filter.as_ref().filter(|filter| filter.value.trim().is_empty()) {
        top.report().add(&filter.at, "where is empty", "write a condition in SQL, or delete the line for all rows");
    }
    let filter = filter.map(|filter| filter.value);
    let masks = top.each("masks", |column, section| {
        let name = column_name(section, &column);
        let mask = mask(&column, section)?;
        Some((column, name?, mask))
    });
    let masks: Vec<(Text, ColumnName, Mask)> = masks.into_iter().flatten().collect();
    let renamed = renames(top);
    let report = top.report();
    if only.is_some()
        && let Some(at) = top.place("exclude_columns")
    {
        report.add(&at, "columns and exclude_columns are both there", "delete one of them");
    }
    let values = |list: &[Text]| list.iter().map(|name| name.value.clone()).collect::<Vec<String>>();
    let (columns, listed) = match (only, except) {
        (Some((texts, names)), _) => (Columns::Only(names), texts),
        (None, Some((texts, names))) => (Columns::Except(names), texts),
        (None, None) => (Columns::All, Vec::new()),
    };
    let renames = renamed.iter().map(|(from, to)| (from.value.clone(), to.value.clone())).collect();
    let shape = Shape { columns, renames, key: values(&key), filter, ..Shape::default() };
    for (column, _) in renamed.iter().filter(|(column, _)| !shape.keeps(&column.value)) {
        let name = &column.value;
        let message = format!("column {name:?} has another name in records, but is left out");
        report.add(&column.at, message, format!("delete {name} from [rename_columns]"));
    }
    for (column, masked, _) in &masks {
        let name = &column.value;
        if !masked.is_pattern() && !shape.keeps(name) {
            let message = format!("column {name:?} has a mask, but is left out");
            report.add(&column.at, message, format!("delete [masks.{name}]"));
        }
        if let Some(key) = shape.key.iter().find(|key| masked.matches(key)) {
            let message = format!("column {key:?} has a mask and is of the key, which would no longer name the row");
            report.add(&column.at, message, format!("delete [masks.{name}], or take {key:?} out of key"));
        }
    }
    let masked = masks.iter().map(|(column, ..)| column.clone()).collect();
    let masks = masks.into_iter().map(|(_, name, mask)| (name, mask)).collect();
    let renamed = renamed.into_iter().map(|(column, _)| column).collect();
    ShapeText { shape: Shape { masks, ..shape }, columns: listed, key, masked, renamed }
}

/// Columns and the names that records have for them.
fn renames(top: &mut Section<'_>) -> Vec<(Text, Text)> {
    let renamed = top.each_text("rename_columns");
    for (i, (column, name)) in renamed.iter().enumerate() {
        check_identifier(top, "column", column);
        check_identifier(top, "column", name);
        if renamed[..i].iter().any(|(_, before)| before.value == name.value) {
            let message = format!("two columns have the name {:?} in records", name.value);
            top.report().add(&name.at, message, "write another name for one of them");
        }
    }
    renamed
}

/// A list of columns by name or by pattern, as it is written and what it means; `None` if it is not there.
fn listed(section: &mut Section<'_>, key: &'static str, example: &str) -> Option<(Vec<Text>, Vec<ColumnName>)> {
    let texts = distinct(section, key, example)?;
    let names = texts.iter().filter_map(|text| column_name(section, text)).collect();
    Some((texts, names))
}

/// `None` where a finding says why.
fn column_name(section: &mut Section<'_>, text: &Text) -> Option<ColumnName> {
    let name = ColumnName::parse(&text.value);
    match &name {
        None => section.report().add(&text.at, format!("{:?} lacks a closing quote", text.value), "write \" behind it"),
        Some(ColumnName::Exactly(name)) => {
            check_identifier(section, "column", &Text { value: name.clone(), ..text.clone() });
        }
        Some(ColumnName::Like(glob)) if glob.runs().iter().map(String::len).sum::<usize>() > IDENTIFIER_BYTES_MAX => {
            let message = format!("{:?} matches nothing: names have at most {IDENTIFIER_BYTES_MAX} bytes", text.value);
            section.report().add(&text.at, message, "write a shorter one");
        }
        Some(ColumnName::Like(_)) => {}
    }
    name
}

/// A list of columns by name; `None` if it is not there.
pub(super) fn names(section: &mut Section<'_>, key: &'static str, example: &str) -> Option<Vec<Text>> {
    let columns = distinct(section, key, example)?;
    for column in &columns {
        check_identifier(section, "column", column);
    }
    Some(columns)
}

fn distinct(section: &mut Section<'_>, key: &'static str, example: &str) -> Option<Vec<Text>> {
    let (at, columns) = section.texts(key, example)?;
    if columns.is_empty() {
        section.report().add(&at, format!("{key} is empty"), format!("write {key} = {example}, or delete the line"));
    }
    for (i, column) in columns.iter().enumerate() {
        if columns[..i].iter().any(|before| before.value == column.value) {
            let message = format!("column {:?} stands twice", column.value);
            section.report().add(&column.at, message, "delete one of them");
        }
    }
    Some(columns)
}

/// `None` where a finding says why.
fn mask(column: &Text, section: &mut Section<'_>) -> Option<Mask> {
    let chars = section.integer("chars", 0..=MASK_CHARS_MAX);
    let truncate = section.integer("truncate", 0..=TRUNCATE_CHARS_MAX);
    let algorithm = section.choice("hash", &ALGORITHMS);
    let salt = section.text("salt");
    let version = section.integer("hash_version", 1..=2);
    let mut places = |keys: &[&'static str]| -> Vec<(&'static str, At)> {
        keys.iter().filter_map(|key| Some((*key, section.place(key)?))).collect()
    };
    let (said, beside) = (places(&["chars", "truncate", "hash"]), places(&["salt", "hash_version"]));
    let name = &column.value;
    let report = section.report();
    match &said[..] {
        [] => {
            let message = format!("the mask of column {name:?} says nothing");
            let hint = "write chars = 6 (asterisks), truncate = 4, or hash = \"SHA-256\" with a salt below it";
            report.add(&column.at, message, hint);
            return None;
        }
        [_] => {}
        [.., (key, at)] => {
            let message = format!("the mask of column {name:?} is given twice, the second time by {key}");
            report.add(at, message, "delete one of them");
            return None;
        }
    }
    if let Some((key, at)) = beside.first().filter(|_| said[0].0 != "hash") {
        report.add(at, format!("{key} has no effect without hash"), format!("delete {key}"));
    }
    let chars_of = |number: i64| u32::try_from(number).expect("within its range");
    match (chars, truncate, algorithm) {
        (Some(chars), ..) => Some(Mask::Fixed { chars: chars_of(chars) }),
        (_, Some(chars), _) => Some(Mask::Truncate { chars: chars_of(chars) }),
        (_, _, Some(algorithm)) => {
            let salt = salted(column, section, salt)?;
            let version = if version == Some(1) { HashVersion::V1 } else { HashVersion::V2 };
            Some(Mask::Hash { algorithm, version, salt })
        }
        (None, None, None) => None,
    }
}

/// Without a salt, whoever guesses a value finds its hash.
fn salted(column: &Text, section: &mut Section<'_>, salt: Option<Text>) -> Option<SecretString> {
    let hint = "write salt = \"${NAME}\", with the salt in the environment variable NAME";
    match salt {
        Some(salt) if salt.value.is_empty() => {
            section.report().add(&salt.at, "salt is empty", hint);
            None
        }
        Some(salt) => Some(salt.value.into()),
        None if section.place("salt").is_some() => None,
        None => {
            let message = format!("the salt is missing beside the hash of column {:?}", column.value);
            section.report().add(&column.at, message, hint);
            None
        }
    }
}

impl ShapeText {
    /// What sinks take must be in the records, the key among it.
    pub fn check_sinks(&self, sinks: &[ConnectorSink], constants: &ConstantsText, report: &super::findings::Report) {
        let words = if matches!(self.shape.columns, Columns::Only(_)) { "columns" } else { "exclude_columns" };
        let named =
            [(words, &self.columns), ("key", &self.key), ("masks", &self.masked), ("rename_columns", &self.renamed)];
        for (word, named) in named {
            constants.check_named(word, named, report);
        }
        constants.check_sinks(sinks, report);
        let added = |column: &str| constants.columns.iter().any(|(name, _)| name == column);
        let kept = |column: &str| added(column) || self.shape.has_record_column(column);
        for sink in sinks {
            let wanted = sink.columns.iter().flatten();
            if let Some(column) = wanted.clone().find(|column| !kept(column)) {
                let name = &sink.name.value;
                let message =
                    format!("sink {name:?} takes column {column:?}, which is left out of this table's records");
                let hint = match self.shape.name_of(column) {
                    to if to != column => {
                        format!("write {to:?}, as records name it, into columns under [sinks.{name}]")
                    }
                    _ => format!("delete {column:?} from columns under [sinks.{name}]"),
                };
                report.add(&sink.name.at, message, hint);
            }
        }
        let (Some(sink), false) = (sinks.first(), self.key.is_empty()) else { return };
        for key in self.key.iter().filter(|key| !self.shape.keeps(&key.value)) {
            let message = format!(
                "column {:?} is of the key, by which sink {:?} finds rows, but is left out",
                key.value, sink.name.value
            );
            let at = self.columns.iter().find(|column| column.value == key.value).map_or(&key.at, |column| &column.at);
            report.add(at, message, format!("leave {:?} in the records, or take it out of key", key.value));
        }
    }
}

fn shown(names: &[ColumnName]) -> String {
    list(&names.iter().map(ColumnName::to_string).collect::<Vec<_>>())
}

/// The keys of a connector, without salts.
pub(super) fn describe(out: &mut String, table: &Table) {
    let shape = &table.shape;
    match &shape.columns {
        Columns::All => {}
        Columns::Only(names) => pair(out, "columns", shown(names)),
        Columns::Except(names) => pair(out, "exclude_columns", shown(names)),
    }
    if !shape.key.is_empty() {
        pair(out, "key", list(&shape.key));
    }
    if !shape.renames.is_empty() {
        let renames: Vec<String> =
            shape.renames.iter().map(|(from, to)| format!("{} = {}", text(from), text(to))).collect();
        pair(out, "rename_columns", format!("{{ {} }}", renames.join(", ")));
    }
    if let Some(filter) = &shape.filter {
        pair(out, "where", text(filter));
    }
    pair(out, "skip_unchanged", table.skip_unchanged.to_string());
    for (column, mask) in &shape.masks {
        let _ = writeln!(out, "\n[connectors.masks.{}]", text(&column.to_string()));
        match mask {
            Mask::Fixed { chars } => pair(out, "chars", chars.to_string()),
            Mask::Truncate { chars } => pair(out, "truncate", chars.to_string()),
            Mask::Hash { algorithm, version, .. } => {
                pair(out, "hash", text(word(&ALGORITHMS, *algorithm)));
                pair(out, "hash_version", if *version == HashVersion::V1 { "1" } else { "2" }.to_owned());
                out.push_str("# the salt is set\n");
            }
        }
    }
}

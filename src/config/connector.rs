//! One file of `connectors/`: a table, its topic and which sinks take what of it.
//!
//! What a file leaves out (the topic, a sink's table) follows from others, so this module only reads; resolving is `load`'s.
//!
//! A file may also name several tables, by a list or by patterns ([`super::pattern`]); then what their topics and the tables at
//! sinks are called must tell them apart.
//!
//! A table is named as in SQL, `schema.table`, with double quotes around what isn't plain. One difference: SQL folds `Products`
//! to `products` without a word, and the table that was meant is then "missing". Capitals without quotes are refused instead,
//! with both spellings as the hint.

use super::constants::{self, ConstantsText, constants};
use super::delete::delete;
use super::findings::At;
use super::names;
use super::outbox::{OutboxText, format_of, outbox};
use super::pattern::{Named, TablePattern, TableTemplate, Template, parse_named};
use super::process::IDENTIFIER_BYTES_MAX;
use super::reader::{Section, Text};
use super::records::{Places, snapshot_where};
use super::shape::{self, ShapeText, shape};
use super::snapshot::{on_missing, order, snapshot};
use super::values::values;
use super::wire::table_wire;
use super::{Delete, Evolve, OnMissing, Snapshot, TableWire, Truncate, Value};
use crate::relation::{TableName, quote_identifier};

/// Kafka has no limit; each partition costs its broker files and every sink a fetch.
const PARTITIONS_MAX: u32 = 1_000;
/// Schemas of the server and of ours: nothing of a service is in them.
const SCHEMAS_RESERVED: [&str; 3] = ["information_schema", "lockstep", "pg_catalog"];

/// What a connector file says. What is wrong has its finding and is left out here.
pub(super) struct Connector {
    /// Tables by name.
    pub tables: Vec<(TableName, At)>,
    pub patterns: Vec<(TablePattern, At)>,
    pub exclude: Vec<TablePattern>,
    pub topic: Option<(Template, At)>,
    pub partitions: i32,
    pub insert_only: bool,
    pub shape: ShapeText,
    pub constants: ConstantsText,
    pub skip_unchanged: bool,
    pub snapshot: Option<Snapshot>,
    pub snapshot_order: i32,
    pub wire: TableWire,
    /// Where `[wire]` says what decides who can read the records.
    pub places: Places,
    /// Where `[wire]` says a format.
    pub format_at: Option<At>,
    /// In order of sink name.
    pub sinks: Vec<ConnectorSink>,
}

/// `[sinks.NAME]` of a connector.
pub(super) struct ConnectorSink {
    pub name: Text,
    /// The table there, if it has another name, and where that stands.
    pub table: Option<(TableTemplate, At)>,
    pub columns: Option<Vec<String>>,
    pub evolve: Evolve,
    pub truncate: Truncate,
    pub delete: Delete,
    pub values: Vec<Value>,
    pub on_missing: OnMissing,
}

/// `wire` is what lockstep.toml says for every table.
pub(super) fn connector(top: &mut Section<'_>, wire: &TableWire) -> Connector {
    let (tables, patterns) = self::tables(top);
    let exclude = excluded(top, patterns.is_empty());
    let topic = topic(top);
    let partitions = top.count("partitions", 1, 1..=PARTITIONS_MAX);
    let (mut wire, mut places, format_at) = top.section("wire", |section| {
        let mut wire = table_wire(section, wire);
        wire.modes.snapshot_where = snapshot_where(section);
        (wire, Places::of(section), section.place("format"))
    });
    let shape = shape(top);
    let sinks = top.each("sinks", sink);
    let all = names(&tables, &patterns);
    let mut constants = constants(top);
    constants.check_stars(&all, top.report());
    shape.check_sinks(&sinks, &constants, top.report());
    constants::told_apart(top.report(), &all, topic.as_ref(), &sinks, &constants);
    let outbox = top.section("outbox", |section| outbox(section, wire.format));
    let format_at = outbox.as_ref().and_then(|outbox| outbox.format_at.clone()).or(format_at);
    if let Some(OutboxText { outbox, at, .. }) = outbox {
        wire.format = format_of(&outbox);
        wire.modes.outbox = Some(outbox);
        constants.check_outbox(&at, top.report());
        places.add("outbox", at);
    }
    Connector {
        tables,
        patterns,
        exclude,
        topic,
        partitions: i32::try_from(partitions).expect("at most a thousand"),
        insert_only: top.boolean("insert_only", false),
        shape,
        constants,
        skip_unchanged: top.boolean("skip_unchanged", false),
        snapshot: snapshot(top),
        snapshot_order: order(top),
        wire,
        places,
        format_at,
        sinks,
    }
}

/// The tables that the file names, one by one and by pattern, and where each stands.
type Names = (Vec<(TableName, At)>, Vec<(TablePattern, At)>);

fn tables(top: &mut Section<'_>) -> Names {
    let (mut tables, mut patterns) = (Vec::new(), Vec::new());
    for text in top.one_or_more("table", "table = \"public.products\"") {
        let at = text.at.clone();
        match named(top, "table", text) {
            Some(Named::Table(name)) => tables.push((name, at)),
            Some(Named::Pattern(pattern)) => patterns.push((pattern, at)),
            None => {}
        }
    }
    (tables, patterns)
}

/// What the patterns do not mean.
fn excluded(top: &mut Section<'_>, by_name: bool) -> Vec<TablePattern> {
    let Some((at, texts)) = top.texts("exclude", "[\"public.tmp_*\"]") else { return Vec::new() };
    if by_name && !texts.is_empty() {
        let message = "exclude has no effect: table is no pattern";
        top.report().add(&at, message, "delete the line, or write table = \"public.*\"");
    }
    let pattern = |text: Text| match named(top, "exclude", text)? {
        Named::Table(name) => Some(TablePattern::exactly(&name)),
        Named::Pattern(pattern) => Some(pattern),
    };
    texts.into_iter().filter_map(pattern).collect()
}

fn topic(top: &mut Section<'_>) -> Option<(Template, At)> {
    let text = top.text("topic")?;
    names::check_pattern(top.report(), "topic", Some(&text), &["prefix", "schema", "table"]);
    Some((Template::parse_topic(&text.value).ok()?, text.at))
}

/// All of them as patterns.
fn names(tables: &[(TableName, At)], patterns: &[(TablePattern, At)]) -> Vec<TablePattern> {
    let exact = tables.iter().map(|(name, _)| TablePattern::exactly(name));
    exact.chain(patterns.iter().map(|(pattern, _)| pattern.clone())).collect()
}

fn sink(name: Text, section: &mut Section<'_>) -> ConnectorSink {
    let table = section.text("table").and_then(|table| target(section, table));
    let words = [Evolve::Off, Evolve::Add, Evolve::Full].map(|evolve| (evolve.as_str(), evolve));
    let evolve = section.choice("evolve", &words).unwrap_or_default();
    let words = [Truncate::Truncate, Truncate::Delete].map(|how| (how.as_str(), how));
    let truncate = section.choice("truncate", &words).unwrap_or_default();
    let columns = shape::names(section, "columns", "[\"id\", \"name\"]");
    let delete = delete(section, truncate, columns.as_deref());
    let values = values(section, columns.as_deref());
    let columns = columns.map(|columns| columns.into_iter().map(|column| column.value).collect());
    let on_missing = on_missing(section);
    ConnectorSink { name, table, columns, evolve, truncate, delete, values, on_missing }
}

/// A message and a spelling that may be meant.
pub(super) type Refused = (String, Option<String>);

fn named(section: &Section<'_>, key: &str, text: Text) -> Option<Named> {
    let parsed = parse_named(&text.value).map(|named| {
        let schema = match &named {
            Named::Table(name) => Some(name.schema.clone()),
            Named::Pattern(pattern) => pattern.only_schema().map(str::to_owned),
        };
        (named, schema)
    });
    checked(section, key, text, "public.products", parsed)
}

/// A table by its own name, of a key that takes no pattern.
pub(super) fn one_table(section: &mut Section<'_>, key: &'static str, example: &str) -> Option<TableName> {
    let text = section.text(key)?;
    let parsed = parse_table(&text.value).map(|name| (name.clone(), Some(name.schema)));
    checked(section, key, text, example, parsed)
}

/// The table at a sink.
fn target(section: &Section<'_>, text: Text) -> Option<(TableTemplate, At)> {
    let at = text.at.clone();
    let parsed = TableTemplate::parse(&text.value).map(|table| {
        let schema = table.only_schema();
        (table, schema)
    });
    checked(section, "table", text, "public.products", parsed).map(|table| (table, at))
}

/// A finding for what is no name, or one of a schema that no service has tables in.
fn checked<T>(
    section: &Section<'_>,
    key: &str,
    text: Text,
    example: &str,
    parsed: Result<(T, Option<String>), Refused>,
) -> Option<T> {
    match parsed {
        Ok((_, Some(schema))) if SCHEMAS_RESERVED.contains(&schema.as_str()) => {
            let message = format!("schema {schema} is not for tables of a service");
            section.report().add(&text.at, message, format!("write {key} = 'public.…'"));
            None
        }
        Ok((name, _)) => Some(name),
        Err((message, near)) => {
            let near = near.unwrap_or_else(|| example.to_owned());
            section.report().add(&text.at, format!("{key}: {message}"), format!("write {key} = '{near}'"));
            None
        }
    }
}

/// `table`, `schema.table`, each part plain or in double quotes. The error is a message and a spelling that may be meant.
pub(super) fn parse_table(text: &str) -> Result<TableName, Refused> {
    let parts = parts(text)?;
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let spelled = |spell: fn(&Part) -> String| parts.iter().map(spell).collect::<Vec<_>>().join(".");
    if parts.iter().any(|part| part.name.is_empty()) {
        return Err((format!("{text:?} has an empty part"), None));
    }
    if let Some(long) = names.iter().find(|name| name.len() > IDENTIFIER_BYTES_MAX) {
        return Err((
            format!("{long:?} has {} bytes, Postgres keeps {IDENTIFIER_BYTES_MAX} of them", long.len()),
            None,
        ));
    }
    if parts.iter().any(|part| !part.quoted && !is_plain(&part.name)) {
        return Err((format!("{text:?} holds characters that need double quotes"), Some(spelled(Part::quoted))));
    }
    if parts.iter().any(|part| !part.quoted && part.name.contains(|c: char| c.is_ascii_uppercase())) {
        let message = format!("{text:?} has capitals without quotes, which Postgres reads as small letters");
        return Err((message, Some(format!("{}' or '{}", spelled(Part::folded), spelled(Part::quoted)))));
    }
    match names[..] {
        [table] => Ok(TableName::new("public", table)),
        [schema, table] => Ok(TableName::new(schema, table)),
        _ => {
            let last_two = parts[parts.len() - 2..].iter().map(Part::folded).collect::<Vec<_>>().join(".");
            Err((format!("{text:?} has more parts than schema.table; the database stands in url"), Some(last_two)))
        }
    }
}

/// One part of a name as written.
pub(super) struct Part {
    pub name: String,
    pub quoted: bool,
}

impl Part {
    fn quoted(&self) -> String {
        if self.quoted || !is_plain(&self.name) || self.name.contains(|c: char| c.is_ascii_uppercase()) {
            quote_identifier(&self.name)
        } else {
            self.name.clone()
        }
    }

    fn folded(&self) -> String {
        if self.quoted { quote_identifier(&self.name) } else { self.name.to_ascii_lowercase() }
    }
}

/// What Postgres reads as an identifier without quotes; letters beyond ASCII count (scan.l, `ident_start`).
pub(super) fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
}

pub(super) fn parts(text: &str) -> Result<Vec<Part>, Refused> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let (part, after) = match rest.strip_prefix('"') {
            Some(inside) => quoted_part(inside).ok_or_else(|| (format!("{text:?} lacks a closing quote"), None))?,
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                (Part { name: rest[..end].to_owned(), quoted: false }, &rest[end..])
            }
        };
        parts.push(part);
        match after.strip_prefix('.') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(parts),
            None => return Err((format!("{text:?} goes on behind a closing quote"), None)),
        }
    }
}

/// Up to the closing quote, `""` standing for one; and what follows it.
pub(super) fn quoted_part(inside: &str) -> Option<(Part, &str)> {
    let (mut name, mut rest) = (String::new(), inside);
    loop {
        let (before, after) = rest.split_once('"')?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(next) => {
                name.push('"');
                rest = next;
            }
            None => return Some((Part { name, quoted: true }, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_in_sql() {
        let name = |text| parse_table(text).unwrap();
        assert_eq!(name("products"), TableName::new("public", "products"));
        assert_eq!(name("shop.products"), TableName::new("shop", "products"));
        assert_eq!(name(r#""My Schema"."t.x""#), TableName::new("My Schema", "t.x"));
        assert_eq!(name(r#"public."a""b""#), TableName::new("public", "a\"b"));
        assert_eq!(name("größe_1.t$"), TableName::new("größe_1", "t$"));
    }

    #[test]
    fn what_needs_quotes_gets_them_in_the_hint() {
        let near = |text: &str| parse_table(text).unwrap_err().1.unwrap_or_default();
        assert_eq!(near("public.Products"), "public.products' or 'public.\"Products\"");
        assert_eq!(near("public.order items"), "public.\"order items\"");
        assert_eq!(near("public.order-items"), "public.\"order-items\"");
        assert_eq!(near("catalog.public.products"), "public.products");
        for text in ["", ".", "a.", ".a", "\"", "\"\"", "\"a\"b", "a.\"b", &"x".repeat(64)] {
            assert!(parse_table(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_name_in_quotes_reads_back(schema in "[^\0]{1,15}", table in "[^\0]{1,15}") {
            let name = TableName::new(schema, table);
            proptest::prop_assert_eq!(parse_table(&name.quoted()).unwrap(), name);
        }

        #[test]
        fn any_text_is_answered(text in "[a-zA-Z.\" ]{0,20}|\\PC{0,20}") {
            let _ = parse_table(&text);
        }
    }
}

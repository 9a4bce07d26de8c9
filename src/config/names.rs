//! Names of topics: the delimiter between their parts, and patterns with `{placeholders}`.
//!
//! A placeholder is no variable: those are `${NAME}`, and long expanded when a pattern comes here.

use super::findings::Report;
use super::process::check_topic;
use super::reader::{Section, Text};
use crate::relation::names::{fill_topic, is_topic_char, legal_topic};
use crate::relation::{Delimiter, TableName};

/// `topic_delimiter`.
pub(super) fn delimiter(section: &mut Section<'_>) -> Delimiter {
    let text = section.text("topic_delimiter");
    check_topic_part(section, "topic_delimiter", text.as_ref());
    text.map_or_else(Delimiter::default, |text| Delimiter(text.value))
}

/// `.` alone is no topic, but it delimits.
fn check_topic_part(section: &Section<'_>, what: &str, text: Option<&Text>) {
    if text.is_none_or(|text| text.value != ".") {
        check_topic(section, what, text);
    }
}

/// Says what is not a topic's name with these placeholders.
pub(super) fn check_pattern(report: &Report, what: &str, text: Option<&Text>, placeholders: &[&str]) {
    let Some(Text { value, at }) = text else { return };
    let known = |name: &str| placeholders.contains(&name).then_some("x");
    let listed = placeholders.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(", ");
    match fill_topic(value, known) {
        Err(found) => {
            report.add(at, format!("{what} has no placeholder {found}"), format!("write one of {listed}"));
        }
        Ok(filled)
            if filled.is_empty() || [".", ".."].contains(&filled.as_str()) || !filled.chars().all(is_topic_char) =>
        {
            let message =
                format!("{what} takes letters, digits, '.', '_' and '-', as Kafka does, and {listed}, found {value:?}");
            let near: String =
                value.chars().map(|c| if is_topic_char(c) || "{}".contains(c) { c } else { '_' }).collect();
            let near = if near.trim_matches('.').is_empty() { "shop" } else { near.as_str() };
            report.add(at, message, format!("write {what} = {near:?}"));
        }
        Ok(_) => {}
    }
}

/// The topic of an outbox with all but the route filled in.
pub(super) fn outbox_topic(pattern: &str, prefix: &str, table: &TableName) -> String {
    let parts = [("{prefix}", prefix), ("{schema}", &table.schema), ("{table}", &table.table)];
    parts.iter().fold(pattern.to_owned(), |pattern, (name, value)| pattern.replace(name, &legal_topic(value)))
}

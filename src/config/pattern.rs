//! Names of tables by pattern, and the names that follow from them by template.
//!
//! In a pattern `*` stands for any run of characters, also none, of one part of a name: `tenant_*.orders`, `public.*`. It is
//! one only outside of double quotes, as everything is literal inside of them: `"a*b"` is the table a\*b, `"Tenant "*` every
//! name that begins with `Tenant` and a blank. Regular expressions would say more, but a dot between schema and table that
//! matches any character has routed other tables than were meant often enough.
//!
//! A template says what a table that a pattern matched is called elsewhere: `{schema}` and `{table}` stand for the parts of its
//! name, `{{` and `}}` for the braces themselves. Where values follow from a name, `{schema.1}` stands for what the first `*` of the
//! schema's pattern stood for, and so on.
//!
//! Deliberately not here: which tables there are (`postgres::named`), and what a match means (`routes`).

use std::borrow::Cow;

use super::connector::{Refused, is_plain, parse_table, parts};
use super::process::IDENTIFIER_BYTES_MAX;
use crate::relation::{TableName, quote_identifier};
use crate::transform::Glob;

/// Schemas of the server, besides those that begin with `pg_`, and of ours: no pattern means them.
const SCHEMAS_NEVER: [&str; 2] = ["information_schema", "lockstep"];

/// One part of a name that is nothing but itself.
fn literal(text: &str) -> Glob {
    Glob::new(vec![text.to_owned()])
}

fn is_literal(glob: &Glob) -> bool {
    glob.runs().len() == 1
}

/// As an operand of SQL's LIKE.
fn like(glob: &Glob) -> String {
    let escaped = |run: &String| run.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    glob.runs().iter().map(escaped).collect::<Vec<_>>().join("%")
}

/// As written: quoted where a connector would need quotes.
fn shown(glob: &Glob) -> String {
    let run = |(i, run): (usize, &String)| match run.is_empty() || is_bare(run, i == 0) {
        true => run.clone(),
        false => quote_identifier(run),
    };
    glob.runs().iter().enumerate().map(run).collect::<Vec<_>>().join("*")
}

/// Tables by pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePattern {
    schema: Glob,
    table: Glob,
}

impl TablePattern {
    /// The pattern that matches one table.
    pub(super) fn exactly(name: &TableName) -> TablePattern {
        TablePattern { schema: literal(&name.schema), table: literal(&name.table) }
    }

    pub fn matches(&self, name: &TableName) -> bool {
        let schema = name.schema.as_str();
        let served = SCHEMAS_NEVER.contains(&schema) || schema.starts_with("pg_");
        !served && self.schema.matches(schema) && self.table.matches(&name.table)
    }

    /// Both parts as operands of SQL's LIKE.
    pub fn like(&self) -> (String, String) {
        (like(&self.schema), like(&self.table))
    }

    /// The schema, where there is only one that it means.
    pub(super) fn only_schema(&self) -> Option<&str> {
        is_literal(&self.schema).then(|| self.schema.runs()[0].as_str())
    }

    /// Whether several names may have this part.
    pub(super) fn is_open(&self, part: Placeholder) -> bool {
        !is_literal(self.glob(part))
    }

    /// How many `*` a part has.
    pub(super) fn stars(&self, part: Placeholder) -> usize {
        self.glob(part).runs().len() - 1
    }

    /// A part as written.
    pub(super) fn part(&self, part: Placeholder) -> String {
        shown(self.glob(part))
    }

    fn glob(&self, part: Placeholder) -> &Glob {
        match part {
            Placeholder::Schema => &self.schema,
            Placeholder::Table => &self.table,
        }
    }
}

impl std::fmt::Display for TablePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", shown(&self.schema), shown(&self.table))
    }
}

/// What a connector names: one table, or whatever matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Table(TableName),
    Pattern(TablePattern),
}

/// `schema.table` or a pattern of it. The error is a message and a spelling that may be meant.
pub(super) fn parse_named(text: &str) -> Result<Named, Refused> {
    let is_outside = |i: usize| text[..i].matches('"').count().is_multiple_of(2);
    if !text.match_indices('*').any(|(i, _)| is_outside(i)) {
        return parse_table(text).map(Named::Table);
    }
    let mut globs = split(text)?.into_iter();
    match (globs.next(), globs.next(), globs.next()) {
        (Some(table), None, None) => Ok(Named::Pattern(TablePattern { schema: literal("public"), table })),
        (Some(schema), Some(table), None) => Ok(Named::Pattern(TablePattern { schema, table })),
        _ => Err((format!("{text:?} has more parts than schema.table; the database stands in url"), None)),
    }
}

/// The parts of a pattern: runs, plain or in double quotes, with a `*` between each two.
fn split(text: &str) -> Result<Vec<Glob>, Refused> {
    let (mut globs, mut runs, mut run) = (Vec::new(), Vec::new(), None::<String>);
    let mut rest = text;
    loop {
        if rest.is_empty() || rest.starts_with('.') {
            let Some(after) = end_part(text, &mut globs, &mut runs, &mut run, rest)? else { return Ok(globs) };
            rest = after;
        } else if let Some(after) = rest.strip_prefix('*') {
            runs.push(run.take().unwrap_or_default());
            rest = after;
        } else if run.is_some() {
            return Err((format!("{text:?} goes on behind a closing quote"), None));
        } else if rest.starts_with('"') {
            let (quoted, after) = super::connector::quoted_part(&rest[1..])
                .ok_or_else(|| (format!("{text:?} lacks a closing quote"), None))?;
            (run, rest) = (Some(quoted.name), after);
        } else {
            let end = rest.find(['.', '*', '"']).unwrap_or(rest.len());
            run = Some(bare(text, &rest[..end], runs.is_empty())?);
            rest = &rest[end..];
        }
    }
}

/// Takes a part's last run; gives what follows the dot, or nothing at the end.
fn end_part<'t>(
    text: &str,
    globs: &mut Vec<Glob>,
    runs: &mut Vec<String>,
    run: &mut Option<String>,
    rest: &'t str,
) -> Result<Option<&'t str>, Refused> {
    if runs.is_empty() && run.as_ref().is_none_or(String::is_empty) {
        return Err((format!("{text:?} has an empty part"), None));
    }
    let mut all = std::mem::take(runs);
    all.push(run.take().unwrap_or_default());
    let bytes: usize = all.iter().map(String::len).sum();
    if bytes > IDENTIFIER_BYTES_MAX {
        let message = format!("{text:?} matches nothing: names in Postgres have at most {IDENTIFIER_BYTES_MAX} bytes");
        return Err((message, None));
    }
    globs.push(Glob::new(all));
    Ok(rest.strip_prefix('.'))
}

/// A run without quotes, which must be as Postgres would read it.
fn bare(text: &str, run: &str, first: bool) -> Result<String, Refused> {
    if !is_bare(run, first) {
        let capitals = run.chars().any(|c| c.is_ascii_uppercase());
        let quoted = text.replacen(run, &quote_identifier(run), 1);
        return Err(match capitals {
            true => (
                format!("{text:?} has capitals without quotes, which Postgres reads as small letters"),
                Some(format!("{}' or '{quoted}", text.to_ascii_lowercase())),
            ),
            false => (format!("{text:?} holds characters that need double quotes"), Some(quoted)),
        });
    }
    Ok(run.to_owned())
}

fn is_bare(run: &str, first: bool) -> bool {
    let plain = if first { is_plain(run) } else { is_plain(&format!("_{run}")) };
    plain && !run.contains(|c: char| c.is_ascii_uppercase())
}

/// What stands for a part of the matched table's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placeholder {
    Schema,
    Table,
}

impl Placeholder {
    pub fn as_str(self) -> &'static str {
        match self {
            Placeholder::Schema => "{schema}",
            Placeholder::Table => "{table}",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// The topic prefix.
    Prefix,
    Part(Placeholder),
    /// What the `*` of this number, from 1, stood for in a part.
    Star(Placeholder, usize),
}

/// Nobody writes a pattern of more in one part of a name.
const STARS_MAX: usize = 9;

const PARTS: [Piece; 2] = [Piece::Part(Placeholder::Schema), Piece::Part(Placeholder::Table)];

impl Piece {
    fn shown(&self) -> Cow<'_, str> {
        match self {
            Piece::Text(text) => text.replace('{', "{{").replace('}', "}}").into(),
            Piece::Prefix => "{prefix}".into(),
            Piece::Part(part) => part.as_str().into(),
            Piece::Star(part, number) => format!("{}.{number}}}", part.as_str().trim_end_matches('}')).into(),
        }
    }
}

/// A name that follows from a table's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

impl Template {
    /// The error is what stands there instead of a placeholder.
    pub fn parse(text: &str) -> Result<Template, String> {
        Template::parse_with(text, &PARTS)
    }

    /// Of a topic, in which `{prefix}` may stand too.
    pub fn parse_topic(text: &str) -> Result<Template, String> {
        Template::parse_with(text, &[&PARTS[..], &[Piece::Prefix]].concat())
    }

    /// Of a value, in which what a `*` stood for may stand too.
    pub fn parse_value(text: &str) -> Result<Template, String> {
        let numbers = 1..=STARS_MAX;
        let star = |number| [Placeholder::Schema, Placeholder::Table].map(|part| Piece::Star(part, number));
        Template::parse_with(text, &PARTS.into_iter().chain(numbers.flat_map(star)).collect::<Vec<_>>())
    }

    fn parse_with(text: &str, placeholders: &[Piece]) -> Result<Template, String> {
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                literal.push_str(&rest[..1]);
                rest = after;
                continue;
            }
            let known = placeholders.iter().find(|piece| rest.starts_with(piece.shown().as_ref()));
            let Some(placeholder) = known else {
                let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                return Err(rest[..end].to_owned());
            };
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(placeholder.clone());
            rest = &rest[placeholder.shown().len()..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Template(pieces))
    }

    pub fn has(&self, part: Placeholder) -> bool {
        self.0.contains(&Piece::Part(part)) || self.stars(part) > 0
    }

    /// How many `*` of a part a pattern must have for it.
    pub fn stars(&self, part: Placeholder) -> usize {
        let number = |piece: &Piece| match piece {
            Piece::Star(of, number) if *of == part => *number,
            _ => 0,
        };
        self.0.iter().map(number).max().unwrap_or(0)
    }

    /// The same for a table that this pattern matched, which has the stars.
    pub fn matched(&self, pattern: &TablePattern, table: &TableName) -> Template {
        let star = |part: Placeholder, number: usize| {
            let name = if part == Placeholder::Schema { &table.schema } else { &table.table };
            let stars = pattern.glob(part).stars(name).expect("the pattern matched the table");
            Piece::Text(stars[number - 1].to_owned())
        };
        let piece = |piece: &Piece| match piece {
            Piece::Star(part, number) => star(*part, *number),
            other => other.clone(),
        };
        Template(self.0.iter().map(piece).collect())
    }

    /// The name; `write` says how a part of the table's is written in it.
    pub fn fill(&self, prefix: &str, table: &TableName, write: impl Fn(&str) -> String) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Prefix => prefix.to_owned(),
            Piece::Part(Placeholder::Schema) => write(&table.schema),
            Piece::Part(Placeholder::Table) => write(&table.table),
            Piece::Star(..) => unreachable!("what stars stood for is filled in first"),
        };
        self.0.iter().map(piece).collect()
    }

    /// Whether every text in it needs no quotes.
    fn is_bare(&self) -> bool {
        let bare = |(i, piece): (usize, &Piece)| match piece {
            Piece::Text(text) => is_bare(text, i == 0),
            Piece::Prefix | Piece::Part(_) | Piece::Star(..) => true,
        };
        self.0.iter().enumerate().all(bare)
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|piece| f.write_str(&piece.shown()))
    }
}

/// The name of a sink's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableTemplate {
    schema: Template,
    table: Template,
}

impl TableTemplate {
    pub fn parse(text: &str) -> Result<TableTemplate, Refused> {
        let literal = |text: &str| Template(vec![Piece::Text(text.to_owned())]);
        if !text.contains(['{', '}']) {
            let name = parse_table(text)?;
            return Ok(TableTemplate { schema: literal(&name.schema), table: literal(&name.table) });
        }
        let mut templates = Vec::new();
        for part in parts(text)? {
            let template = Template::parse(&part.name).map_err(|found| unknown_placeholder(&found))?;
            if template.0.is_empty() {
                return Err((format!("{text:?} has an empty part"), None));
            }
            if !part.quoted && !template.is_bare() {
                let message = format!("{text:?} holds characters that need double quotes");
                return Err((message, Some(text.replacen(&part.name, &quote_identifier(&part.name), 1))));
            }
            templates.push(template);
        }
        let mut templates = templates.into_iter();
        match (templates.next(), templates.next(), templates.next()) {
            (Some(table), None, None) => Ok(TableTemplate { schema: literal("public"), table }),
            (Some(schema), Some(table), None) => Ok(TableTemplate { schema, table }),
            _ => Err((format!("{text:?} has more parts than schema.table; the database stands in url"), None)),
        }
    }

    pub fn has(&self, part: Placeholder) -> bool {
        self.schema.has(part) || self.table.has(part)
    }

    /// The schema, where it does not depend on the table.
    pub fn only_schema(&self) -> Option<String> {
        match self.schema.0.as_slice() {
            [Piece::Text(schema)] => Some(schema.clone()),
            _ => None,
        }
    }

    pub fn fill(&self, table: &TableName) -> TableName {
        let part = |template: &Template| template.fill("", table, str::to_owned);
        TableName::new(part(&self.schema), part(&self.table))
    }
}

impl std::fmt::Display for TableTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |template: &Template| match template.is_bare() {
            true => template.to_string(),
            false => quote_identifier(&template.to_string()),
        };
        write!(f, "{}.{}", part(&self.schema), part(&self.table))
    }
}

fn unknown_placeholder(found: &str) -> Refused {
    let braces = found.replace('{', "{{").replace('}', "}}");
    let message = format!("{found:?} is no placeholder; there are {{schema}} and {{table}}, and {braces} for the text");
    (message, Some("shared.{schema}_{table}".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> TablePattern {
        match parse_named(text).unwrap() {
            Named::Pattern(pattern) => pattern,
            Named::Table(name) => panic!("{name}"),
        }
    }

    fn matched<'n>(text: &str, names: &[(&'n str, &'n str)]) -> Vec<&'n str> {
        let pattern = pattern(text);
        let matching = names.iter().filter(|(schema, table)| pattern.matches(&TableName::new(*schema, *table)));
        matching.map(|(_, table)| *table).collect()
    }

    #[test]
    fn a_star_is_any_run_of_one_part() {
        let names = [("tenant_a", "orders"), ("tenant_", "orders"), ("tenant", "orders_x"), ("public", "orders.old")];
        assert_eq!(matched("tenant_*.orders", &names), ["orders", "orders"]);
        assert_eq!(matched("*.orders*", &names), ["orders", "orders", "orders_x", "orders.old"]);
        assert_eq!(matched("orders*", &names), ["orders.old"], "public without a schema");
        assert_eq!(matched("*.*_*", &names), ["orders_x"]);
        assert_eq!(matched("*.o*d*s", &names), ["orders", "orders"]);
        assert!(!pattern("p.ab*ba").matches(&TableName::new("p", "aba")), "runs do not overlap");
        assert!(pattern("p.*ab*ab").matches(&TableName::new("p", "xabab")));
    }

    #[test]
    fn what_stands_in_quotes_is_literal() {
        let names =
            [("public", "a*b"), ("public", "a.b"), ("public", "a\"b"), ("public", "Größe 1"), ("public", "axb")];
        assert_eq!(parse_named("\"a*b\"").unwrap(), Named::Table(TableName::new("public", "a*b")));
        assert_eq!(matched("\"a*\"*", &names), ["a*b"]);
        assert_eq!(matched("public.\"a.\"*", &names), ["a.b"]);
        assert_eq!(matched("\"a\"\"\"*", &names), ["a\"b"]);
        assert_eq!(matched("\"Größe \"*", &names), ["Größe 1"]);
        assert_eq!(matched("\"select\"*", &[("public", "select"), ("public", "selects")]), ["select", "selects"]);
        assert_eq!(matched("a*b", &names), ["a*b", "a.b", "a\"b", "axb"]);
    }

    #[test]
    fn schemas_of_the_server_are_never_meant() {
        let names =
            [("pg_catalog", "pg_class"), ("pg_toast", "t"), ("information_schema", "s"), ("lockstep", "progress")];
        assert_eq!(matched("*.*", &names), Vec::<&str>::new());
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        let refused = |text: &str| parse_named(text).unwrap_err();
        assert_eq!(refused("Tenant_*.orders").1.unwrap(), "tenant_*.orders' or '\"Tenant_\"*.orders");
        assert_eq!(refused("a b*").1.unwrap(), "\"a b\"*");
        assert!(refused("a.b.c*").0.contains("more parts"));
        assert!(refused("*.").0.contains("empty part"));
        assert!(refused("\"a\"b*").0.contains("closing quote"));
        assert!(refused("\"a*").0.contains("closing quote") || refused("\"a*").0.contains("lacks"));
        assert!(refused(&format!("{}*", "x".repeat(64))).0.contains("63 bytes"));
        assert!(parse_named(&format!("{}*", "x".repeat(63))).is_ok());
    }

    #[test]
    fn like_takes_its_own_signs_literally() {
        assert_eq!(pattern("tenant_*.\"50%\\\"*").like(), ("tenant\\_%".into(), "50\\%\\\\%".into()));
        assert_eq!(pattern("\"A b\"*.x*\"Y\"").to_string(), "\"A b\"*.x*\"Y\"");
    }

    #[test]
    fn templates_name_what_a_table_is_called_elsewhere() {
        let name = TableName::new("tenant_1", "Or\"ders");
        let filled = |text: &str| TableTemplate::parse(text).unwrap().fill(&name);
        assert_eq!(filled("shared.{schema}_orders"), TableName::new("shared", "tenant_1_orders"));
        assert_eq!(filled("{table}"), TableName::new("public", "Or\"ders"));
        assert_eq!(filled("\"My {schema}\".\"{{{table}}}\""), TableName::new("My tenant_1", "{Or\"ders}"));
        assert_eq!(filled("shared.orders"), TableName::new("shared", "orders"));
        for text in ["shared.{tabel}", "shared.{", "a-{table}", "a.b.{table}", "{table}.", "\"{x}\""] {
            assert!(TableTemplate::parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(text in "[a-zA-Z.*\"{} ]{0,20}|\\PC{0,20}") {
            let _ = parse_named(&text);
            let _ = TableTemplate::parse(&text);
        }

        #[test]
        fn what_is_shown_reads_back(a in "[a-z ]{0,4}", b in "[A-Z\"*.]{0,4}", c in "\\PC{0,4}", name in "[a-z A-Z*.\"]{0,12}") {
            proptest::prop_assume!(!c.contains('\0'));
            let of = TablePattern { schema: Glob::new(vec![a.clone(), b]), table: Glob::new(vec![a, c, String::new()]) };
            proptest::prop_assert_eq!(parse_named(&of.to_string()), Ok(Named::Pattern(of.clone())));
            // As the oracle, the slow way.
            fn slow(runs: &[String], name: &str) -> bool {
                let Some(rest) = name.strip_prefix(runs[0].as_str()) else { return false };
                if runs.len() == 1 { return rest.is_empty() }
                let mut tails = rest.char_indices().map(|(i, _)| &rest[i..]).chain([""]);
                tails.any(|tail| slow(&runs[1..], tail))
            }
            proptest::prop_assert_eq!(of.schema.matches(&name), slow(of.schema.runs(), &name));
            proptest::prop_assert_eq!(of.table.matches(&name), slow(of.table.runs(), &name));
        }
    }

    #[test]
    fn values_hold_what_stars_stood_for() {
        let value = |text: &str, of: &str, schema: &str, table: &str| {
            let (template, name) = (Template::parse_value(text).unwrap(), TableName::new(schema, table));
            template.matched(&pattern(of), &name).fill("", &name, str::to_owned)
        };
        assert_eq!(value("{schema.1}", "tenant_*.orders", "tenant_7", "orders"), "7");
        assert_eq!(value("{table.2}-{table.1}/{schema}", "a*.x*y*z", "ab", "x1yy2z"), "y2-1/ab");
        assert_eq!(value("{schema.1}", "tenant*.*", "tenant", "t"), "");
        assert_eq!(Template::parse_value("{schema.10}").unwrap_err(), "{schema.10}");
        assert_eq!(Template::parse("{schema.1}").unwrap_err(), "{schema.1}", "in names there are none");
        assert_eq!(Template::parse_value("{table.2}{{").unwrap().to_string(), "{table.2}{{");
    }
}

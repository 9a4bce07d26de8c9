//! Tables whose deleted rows stay, marked (`delete = "soft"`), at a Postgres: what the column of the mark must be, and the
//! statements that know of marks. What changes come to is [`crate::apply::soft`]'s.
//!
//! The mark is a `timestamptz` that is NULL, or a `boolean` that is not true, while the row lives. Every statement that changes
//! rows reaches living ones alone, so a change of a marked row is a divergence as one of a missing row is. An insert writes over
//! a marked row.
//!
//! A marked row goes on to hold its unique values. The row that has them now at the source would be refused for ever, so unique
//! indexes beside the key must be partial, over living rows, which [`findings`] asks for.

use tokio_postgres::Client;

use super::catalog::{ColumnFacts, TableFacts};
use super::fit::declaration;
use super::sql::{Rows, SinkTablePlan};
use super::stored::Stored;
use super::{WantedColumn, WantedTable};
use crate::config;
use crate::error::{Code, Halt, Result};
use crate::pgtext::{Stamp, push_timestamptz};
use crate::relation::{Column, Relation, TypeKind, quote_identifier};
use crate::session;
use crate::value::{Cell, Row};

/// OID of timestamptz: pg_type.dat.
const TIMESTAMPTZ: u32 = 1184;
/// Commit times have microseconds.
const DIGITS: i32 = 6;

/// The column of the mark in a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// In the plan's columns.
    pub place: usize,
    /// It is a boolean.
    is_flag: bool,
}

impl Mark {
    pub fn of(place: usize, stored: &Stored) -> Mark {
        Mark { place, is_flag: stored.name == "bool" }
    }
}

/// Puts the column of the mark behind those of the relation, if rows are to be marked; its place.
pub(super) fn mark(
    relation: &Relation,
    target: &config::SinkTable,
    columns: &mut Vec<WantedColumn>,
) -> std::result::Result<Option<usize>, Halt> {
    let Some(name) = target.delete.mark() else { return Ok(None) };
    let halt = |message: String, hint: String| Halt { code: Code::Config, message, facts: vec![], hint };
    let edit = |what: &str| format!("{what} under [sinks.{}] of the connector of {}", target.sink, relation.name);
    if columns.iter().all(|wanted| wanted.column.key.is_none()) {
        let message = format!("table {} has no key, so which of its rows are deleted can't be marked", relation.name);
        return Err(halt(message, edit("write delete = \"row\"")));
    }
    if columns.iter().any(|wanted| wanted.column.name == name) {
        let message = format!("table {} has a column {name}, which is to be the mark of deleted rows", relation.name);
        return Err(halt(message, edit("write deleted_column = \"…\", a column that only the sink has,")));
    }
    let column = Column {
        name: name.to_owned(),
        type_oid: TIMESTAMPTZ,
        type_name: "timestamptz".to_owned(),
        typmod: -1,
        kind: TypeKind::Base,
        nullable: true,
        default: None,
        key: None,
        exact: true,
    };
    columns.push(WantedColumn { index: relation.columns.len(), column });
    Ok(Some(columns.len() - 1))
}

/// What keeps the column from being a mark.
pub(super) fn judge(wanted: &WantedTable, name: &str, column: Option<&ColumnFacts>) -> Option<Halt> {
    let alter = |what: String| format!("ALTER TABLE {} {what}", wanted.table.quoted());
    let quoted = quote_identifier(name);
    let halt = |message: String, hint: String| Some(Halt { code: Code::SinkTable, message, facts: vec![], hint });
    let table = &wanted.table;
    let Some(column) = column else {
        let message = format!("table {table} has no column {name} at the sink, in which deleted rows are to be marked");
        return halt(message, alter(format!("ADD COLUMN {quoted} timestamptz")));
    };
    let Stored { name: type_name, arrays, typmod, .. } = &column.stored;
    let is_time = type_name == "timestamptz" && (*typmod == -1 || *typmod == DIGITS);
    if *arrays > 0 || !(is_time || type_name == "bool") {
        let message = format!("column {name} of {table} is no mark of deleted rows: it is {}", column.declared_sql);
        return halt(message, alter(format!("ALTER COLUMN {quoted} TYPE timestamptz USING NULL")));
    }
    if column.generated {
        let message = format!("column {name} of {table} is generated at the sink and can't be written");
        return halt(message, alter(format!("ALTER COLUMN {quoted} DROP EXPRESSION")));
    }
    if is_time && column.not_null {
        let message = format!("column {name} of {table} is not null, and is to be NULL while a row is not deleted");
        return halt(message, alter(format!("ALTER COLUMN {quoted} DROP NOT NULL")));
    }
    None
}

/// Unique and exclusion indexes beside the key: the table, the name, the predicate, the plain columns if there are no others,
/// and what to type.
const UNIQUES: &str = "
SELECT i.indrelid, c.relname::text, pg_catalog.pg_get_expr(i.indpred, i.indrelid),
       CASE WHEN i.indexprs IS NULL AND NOT i.indisexclusion THEN
            ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                   WHERE k.place <= i.indnkeyatts) END,
       CASE WHEN x.oid IS NULL THEN 'DROP INDEX ' || i.indexrelid::pg_catalog.regclass
            ELSE 'ALTER TABLE ' || i.indrelid::pg_catalog.regclass || ' DROP CONSTRAINT ' || pg_catalog.quote_ident(x.conname) END,
       CASE WHEN i.indisexclusion OR i.indpred IS NOT NULL THEN NULL ELSE pg_catalog.pg_get_indexdef(i.indexrelid) END
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
  LEFT JOIN pg_catalog.pg_constraint x ON x.conindid = i.indexrelid AND x.conrelid = i.indrelid AND x.contype IN ('p', 'u', 'x')
 WHERE i.indrelid = ANY ($1::oid[]) AND (i.indisunique OR i.indisexclusion) ORDER BY 1, 2";

/// Whatever of these tables does not go with rows that stay when they are deleted.
pub(super) async fn findings(
    client: &Client,
    wanted: &[WantedTable],
    facts: &[Option<TableFacts>],
) -> Result<Vec<Halt>> {
    let known: Vec<(&WantedTable, &TableFacts)> =
        wanted.iter().zip(facts).filter_map(|(wanted, facts)| Some((wanted, facts.as_ref()?))).collect();
    let marking = || known.iter().filter_map(|(wanted, facts)| Some((*wanted, *facts, wanted.mark?)));
    let oids: Vec<u32> = marking().map(|(_, facts, _)| facts.oid).collect();
    if oids.is_empty() {
        return Ok(Vec::new());
    }
    let of_table = |(wanted, facts, _)| loose_keys(wanted, facts).into_iter().chain(parents(wanted, facts, &known));
    let mut halts: Vec<Halt> = marking().flat_map(of_table).collect();
    let found = client.query(UNIQUES, &[&oids]).await;
    for row in found.map_err(|error| session::classify("reading the sink's unique indexes", error))? {
        let (oid, name, predicate): (u32, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
        let (columns, drop, definition): (Option<Vec<String>>, String, Option<String>) =
            (row.get(3), row.get(4), row.get(5));
        for (wanted, facts, mark) in marking().filter(|(_, facts, _)| facts.oid == oid) {
            let mark = &wanted.columns[mark].column.name;
            let is_flag = facts.columns.iter().any(|column| column.name == *mark && column.stored.name == "bool");
            let key = wanted.key().into_iter().map(|i| &wanted.columns[i].column.name);
            // Rows of different keys differ where it holds the key.
            let has_key = columns.as_ref().is_some_and(|columns| key.clone().all(|name| columns.contains(name)));
            let is_partial = predicate.as_ref().is_some_and(|predicate| leaves_out_marked(predicate, mark, is_flag));
            // Of columns that nothing is written to.
            let is_own = columns.as_ref().is_some_and(|columns| !columns.iter().any(|name| wanted.writes(name)));
            if has_key || is_partial || is_own {
                continue;
            }
            let living = if is_flag {
                format!("{} IS NOT TRUE", quote_identifier(mark))
            } else {
                format!("{} IS NULL", quote_identifier(mark))
            };
            let again = match definition {
                Some(ref definition) => format!("{definition} WHERE {living}"),
                None => format!("make it again with WHERE ({living})"),
            };
            halts.push(Halt {
                code: Code::SinkTable,
                message: format!(
                    "{name} of {} compares rows with those that are marked as deleted: they would keep their unique values from the rows that have them now",
                    wanted.table
                ),
                facts: vec![],
                hint: format!("{drop}; {again}"),
            });
        }
    }
    Ok(halts)
}

/// Columns of the key whose collation calls different texts equal. Whose row is marked, and whose is alive, would be the same row.
fn loose_keys(wanted: &WantedTable, facts: &TableFacts) -> Vec<Halt> {
    let key = wanted.key().into_iter().map(|place| &wanted.columns[place].column);
    let here = |name: &str| facts.columns.iter().find(|column| column.name == name);
    let loose = key.filter(|column| here(&column.name).is_some_and(|here| !here.deterministic));
    let halt = |column: &Column| Halt {
        code: Code::SinkTable,
        message: format!(
            "column {} of the key of {} has a collation at the sink that calls different texts equal, of which one may be marked as deleted",
            column.name, wanted.table
        ),
        facts: vec![],
        hint: format!(
            "ALTER TABLE {} ALTER COLUMN {} TYPE {} COLLATE \"C\"",
            wanted.table.quoted(),
            quote_identifier(&column.name),
            declaration(column)
        ),
    };
    loose.map(halt).collect()
}

/// Foreign keys by which marked rows hold on to rows that are deleted.
fn parents(child: &WantedTable, facts: &TableFacts, known: &[(&WantedTable, &TableFacts)]) -> Vec<Halt> {
    let keys = facts.foreign_keys.iter().filter(|key| key.child == facts.oid && key.parent != facts.oid);
    let deleted = |oid: u32| known.iter().find(|(parent, facts)| facts.oid == oid && parent.mark.is_none());
    let halt = |(name, parent): (&String, &WantedTable)| Halt {
        code: Code::SinkTable,
        message: format!(
            "rows of {} stay when they are deleted, and by foreign key {name} they hold on to rows of {}, which do not",
            child.table, parent.table
        ),
        facts: vec![],
        hint: format!(
            "ALTER TABLE {} DROP CONSTRAINT {}; or write delete = \"soft\" for {} too",
            child.table.quoted(),
            quote_identifier(name),
            parent.source
        ),
    };
    keys.filter_map(|key| deleted(key.parent).map(|(parent, _)| (&key.name, *parent))).map(halt).collect()
}

/// Whether a predicate, as `pg_get_expr` prints it, is false for marked rows: one of the conditions that it joins by AND says so.
fn leaves_out_marked(predicate: &str, mark: &str, is_flag: bool) -> bool {
    let plain = mark.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && mark.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let names = [quote_identifier(mark), if plain { mark.to_owned() } else { quote_identifier(mark) }];
    let living = |condition: &str| {
        names.iter().any(|name| match is_flag {
            false => condition == format!("{name} IS NULL"),
            true => [
                format!("NOT {name}"),
                format!("{name} IS FALSE"),
                format!("{name} IS NOT TRUE"),
                format!("{name} = false"),
            ]
            .contains(&condition.to_owned()),
        })
    };
    conditions(predicate).into_iter().any(living)
}

/// What a condition joins by AND; itself, if it is one. Without the parentheses around each.
fn conditions(text: &str) -> Vec<&str> {
    let text = unwrapped(text);
    let (mut found, mut from, mut depth, mut quote) = (Vec::new(), 0, 0_u32, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            (None, ' ') if depth == 0 && text[i..].starts_with(" OR ") => return vec![text],
            (None, ' ') if depth == 0 && text[i..].starts_with(" AND ") => {
                found.push(unwrapped(&text[from..i]));
                from = i + " AND ".len();
            }
            _ => {}
        }
    }
    found.push(unwrapped(&text[from..]));
    found
}

/// Without the parentheses that are around all of it.
fn unwrapped(text: &str) -> &str {
    let text = text.trim();
    let Some(inner) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) else { return text };
    let (mut depth, mut quote) = (0_i32, None);
    for c in inner.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '(') => depth += 1,
            (None, ')') if depth == 0 => return text,
            (None, ')') => depth -= 1,
            _ => {}
        }
    }
    unwrapped(inner)
}

impl SinkTablePlan {
    /// ` AND …` with the condition that a row `table` is alive; empty where none is ever marked.
    pub(super) fn and_alive(&self, table: &str) -> String {
        self.mark.map_or_else(String::new, |mark| format!(" AND {}", self.is_alive(mark, table)))
    }

    fn is_alive(&self, mark: Mark, table: &str) -> String {
        let column = &self.columns[mark.place].quoted;
        format!("{table}.{column} IS {}", if mark.is_flag { "NOT TRUE" } else { "NULL" })
    }

    /// What a row holds in a column, as the column takes it.
    pub(super) fn cell<'a>(&self, row: Row<'a>, place: usize) -> Cell<'a> {
        let cell = row.get(self.columns[place].index);
        match (self.mark, cell) {
            (Some(mark), Cell::Text(_)) if mark.is_flag && mark.place == place => Cell::Text(b"t"),
            (Some(mark), Cell::Null) if mark.is_flag && mark.place == place => Cell::Text(b"f"),
            _ => cell,
        }
    }

    /// Whether the row is one to be marked.
    pub(super) fn marks(&self, row: Row<'_>) -> bool {
        self.mark.is_some_and(|mark| row.get(self.columns[mark.place].index).text().is_some())
    }

    /// Deletes the rows of this version's table with a condition, or marks them: as deleted at a time, or just now, since they are
    /// found to be gone.
    pub(super) fn take_out(&self, time_us: Option<i64>, condition: Option<String>) -> String {
        let table = self.table.quoted();
        let Some(mark) = self.mark else {
            let which = condition.map_or_else(String::new, |condition| format!(" WHERE {condition}"));
            return format!("DELETE FROM {table} AS t{which}");
        };
        let value = match (mark.is_flag, time_us) {
            (true, _) => "true".to_owned(),
            (false, None) => "pg_catalog.now()".to_owned(),
            (false, Some(time)) => {
                let mut text = Vec::new();
                push_timestamptz(&mut text, Stamp::from_micros(time));
                format!("'{}'::pg_catalog.timestamptz", String::from_utf8(text).expect("digits"))
            }
        };
        let which = condition.map_or_else(String::new, |condition| format!("{condition} AND "));
        let column = &self.columns[mark.place].quoted;
        format!("UPDATE {table} AS t SET {column} = {value} WHERE {which}{}", self.is_alive(mark, "t"))
    }

    /// Rows under new keys, with what they do not carry from the rows of their old keys, which are marked by now.
    pub(super) fn carry_over(&self, rows: Rows, present: &[usize]) -> String {
        let all = self.all();
        let names: Vec<&str> = all.iter().map(|&place| self.columns[place].quoted.as_str()).collect();
        let value = |place: usize| match present.contains(&place) {
            true => self.value(rows, place),
            false => format!("o.{}", self.columns[place].quoted),
        };
        format!(
            "INSERT INTO {table} AS t ({}{}) OVERRIDING SYSTEM VALUE SELECT {}{} FROM {} JOIN {table} AS o ON {} {}",
            names.join(", "),
            self.value_names(),
            all.iter().map(|&place| value(place)).collect::<Vec<_>>().join(", "),
            self.computed(value),
            self.source_of(rows, present, true),
            self.same_key("o", |k| self.old_value(rows, k)),
            self.on_conflict(),
            table = self.table.quoted(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predicate_leaves_marked_rows_out_where_one_of_its_conditions_does() {
        for (predicate, mark, is_flag, expected) in [
            ("(deleted_at IS NULL)", "deleted_at", false, true),
            ("((deleted_at IS NULL) AND (sku IS NOT NULL))", "deleted_at", false, true),
            ("((sku <> 'a) AND (deleted_at IS NULL'::text) AND (deleted_at IS NULL))", "deleted_at", false, true),
            ("(sku <> 'x AND (deleted_at IS NULL)'::text)", "deleted_at", false, false),
            ("((deleted_at IS NULL) OR (sku IS NOT NULL))", "deleted_at", false, false),
            ("(((deleted_at IS NULL) OR (a = 1)) AND (b = 2))", "deleted_at", false, false),
            ("(deleted_at IS NOT NULL)", "deleted_at", false, false),
            ("(NOT (deleted_at IS NULL))", "deleted_at", false, false),
            ("(gone_at IS NULL)", "deleted_at", false, false),
            ("(\"Gone\" IS NULL)", "Gone", false, true),
            ("(NOT deleted)", "deleted", true, true),
            ("((deleted IS NOT TRUE) AND (a > 1))", "deleted", true, true),
            ("(deleted = false)", "deleted", true, true),
            ("(deleted IS NULL)", "deleted", true, false),
            ("deleted", "deleted", true, false),
        ] {
            assert_eq!(leaves_out_marked(predicate, mark, is_flag), expected, "{predicate}");
        }
    }
}

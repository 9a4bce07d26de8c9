//! Whether a table of the file can hold what is wanted of it: every finding at once, each with what mends it.
//!
//! SQLite alters no column's type, so what mends a wrong one is the table made anew: the hint is the statement that makes it.

use super::catalog::{ColumnFacts, TableFacts, UniqueFacts, same_name};
use super::form::Form;
use crate::error::{Code, Halt};
use crate::relation::quote_identifier;
use crate::sink::fit::declaration;
use crate::sink::{Findings, WantedColumn, WantedTable};

/// Judges one table.
pub(super) fn judge(wanted: &WantedTable, facts: Option<&TableFacts>) -> Findings {
    let name = &wanted.table.table;
    let Some(facts) = facts else {
        let halts = vec![halt(format!("table {name} does not exist at the sink"), create_table(wanted))];
        return Findings { halts, notes: vec![] };
    };
    let mut halts = Vec::new();
    if facts.kind != "table" {
        halts.push(halt(format!("{name} is not a table at the sink but a {}", facts.kind), create_table(wanted)));
    }
    let column = |wanted_column| judge_column(wanted, wanted_column, facts);
    halts.extend(wanted.columns.iter().filter_map(column));
    halts.extend(twins(wanted));
    halts.extend(columns_left_empty(wanted, facts));
    halts.extend(judge_key(wanted, facts));
    let triggers: Vec<&str> = facts.triggers.iter().map(|trigger| trigger.name.as_str()).collect();
    let notes = match triggers.is_empty() {
        true => vec![],
        false => vec![format!("triggers of {name} fire for what is applied: {}", triggers.join(", "))],
    };
    Findings { halts, notes }
}

/// Whether something tells rows apart by the wanted key.
fn has_arbiter(wanted: &WantedTable, facts: &TableFacts) -> bool {
    let key: Vec<&str> = wanted.key().into_iter().map(|i| wanted.columns[i].column.name.as_str()).collect();
    if let [only] = key[..]
        && facts.column(only).is_some_and(|column| column.rowid)
    {
        return true;
    }
    let is_key = |unique: &UniqueFacts| !unique.partial && covers(unique, &key) && unique.terms.len() == key.len();
    facts.uniques.iter().any(|unique| is_key(unique) && merged_by(unique).is_none())
}

/// Whether it is over some of these columns and nothing else.
fn covers(unique: &UniqueFacts, key: &[&str]) -> bool {
    let is_key = |column: &Option<String>| column.as_ref().is_some_and(|c| key.iter().any(|name| same_name(name, c)));
    unique.terms.iter().all(|term| is_key(&term.column))
}

/// The collation that takes different texts for one.
fn merged_by(unique: &UniqueFacts) -> Option<&str> {
    unique.terms.iter().map(|term| term.collation.as_str()).find(|collation| !same_name(collation, "BINARY"))
}

fn halt(message: String, hint: String) -> Halt {
    Halt { code: Code::SinkTable, message, facts: vec![], hint }
}

/// The table as it would hold everything.
fn create_table(wanted: &WantedTable) -> String {
    let column = |wanted: &WantedColumn| {
        let null = if wanted.column.nullable && wanted.column.key.is_none() { "" } else { " NOT NULL" };
        format!("{} {}{null}", quote_identifier(&wanted.column.name), Form::declaration(&wanted.column))
    };
    let mut parts: Vec<String> = wanted.columns.iter().map(column).collect();
    if !wanted.is_keyless() {
        parts.push(format!("PRIMARY KEY ({})", key_list(wanted)));
    }
    format!("CREATE TABLE {} ({})", quote_identifier(&wanted.table.table), parts.join(", "))
}

fn key_list(wanted: &WantedTable) -> String {
    let names = wanted.key().into_iter().map(|i| quote_identifier(&wanted.columns[i].column.name));
    names.collect::<Vec<_>>().join(", ")
}

fn judge_column(wanted: &WantedTable, source: &WantedColumn, facts: &TableFacts) -> Option<Halt> {
    let (name, table) = (&source.column.name, &wanted.table.table);
    let Some(sink) = facts.column(name) else {
        let add = format!(
            "ALTER TABLE {} ADD COLUMN {} {}",
            quote_identifier(table),
            quote_identifier(name),
            Form::declaration(&source.column)
        );
        return Some(halt(format!("table {table} has no column {name} at the sink"), add));
    };
    if sink.generated {
        let drop = format!("ALTER TABLE {} DROP COLUMN {}", quote_identifier(table), quote_identifier(name));
        return Some(halt(format!("column {name} of {table} is generated at the sink, so it can't be written"), drop));
    }
    let Some(form) = Form::of(&source.column, &sink.declared, facts.strict) else {
        return Some(not_held(wanted, source, sink));
    };
    let in_key = source.column.key.is_some();
    if in_key && !form.can_be_key() {
        let message = format!(
            "column {name} of {table} is of the key and {} at the sink: numbers with a point are told apart and ordered there \
             otherwise than at the source",
            shown(&sink.declared)
        );
        return Some(halt(message, format!("declare {name} TEXT: {}", create_table(wanted))));
    }
    if in_key && !sink.not_null && !sink.rowid {
        let message = format!("column {name} of {table} is of the key and may be NULL at the sink");
        return Some(halt(message, create_table(wanted)));
    }
    if sink.not_null && source.column.nullable && !in_key {
        let message = format!("column {name} of {table} is not null at the sink, but may be NULL at the source");
        return Some(halt(message, create_table(wanted)));
    }
    None
}

fn not_held(wanted: &WantedTable, source: &WantedColumn, sink: &ColumnFacts) -> Halt {
    let (name, table) = (&source.column.name, &wanted.table.table);
    let message = format!(
        "column {name} of {table} is declared {} at the sink, where SQLite would not keep every {} of the source as it is",
        shown(&sink.declared),
        declaration(&source.column)
    );
    halt(message, format!("declare {name} {}: {}", Form::declaration(&source.column), create_table(wanted)))
}

fn shown(declared: &str) -> &str {
    if declared.is_empty() { "without a type" } else { declared }
}

/// Columns of the source whose names are one to SQLite.
fn twins(wanted: &WantedTable) -> Option<Halt> {
    let names: Vec<&str> = wanted.columns.iter().map(|column| column.column.name.as_str()).collect();
    let (i, twin) =
        names.iter().enumerate().find(|(i, name)| names[..*i].iter().any(|other| same_name(other, name)))?;
    let first = names[..i].iter().find(|other| same_name(other, twin))?;
    Some(halt(
        format!("columns {first} and {twin} of {} are one to SQLite, which knows no case", wanted.source),
        format!("leave one out: write columns = […] under the sink in the connector of {}", wanted.source),
    ))
}

/// Columns that we don't write must fill themselves.
fn columns_left_empty(wanted: &WantedTable, facts: &TableFacts) -> Vec<Halt> {
    let ours = |name: &str| wanted.columns.iter().any(|c| same_name(&c.column.name, name));
    let empty =
        facts.columns.iter().filter(|c| !ours(&c.name) && c.not_null && !c.has_default && !c.generated && !c.rowid);
    let table = &wanted.table.table;
    empty
        .map(|c| {
            halt(
                format!("column {} of {table} is not null, has no default, and is not written", c.name),
                format!("give it a DEFAULT, or make the table without it: {}", create_table(wanted)),
            )
        })
        .collect()
}

fn judge_key(wanted: &WantedTable, facts: &TableFacts) -> Vec<Halt> {
    let table = &wanted.table.table;
    let key: Vec<&str> = wanted.key().into_iter().map(|i| wanted.columns[i].column.name.as_str()).collect();
    let mut halts = Vec::new();
    if wanted.is_keyless() && (facts.without_rowid || facts.column("rowid").is_some()) {
        let message =
            format!("rows of {table} have no key, and no rowid of their own at the sink to tell equal ones apart");
        halts.push(halt(message, create_table(wanted)));
    }
    // One over a part of the key merges as well.
    for unique in facts.uniques.iter().filter(|unique| !key.is_empty() && covers(unique, &key)) {
        if let Some(collation) = merged_by(unique) {
            halts.push(halt(
                format!("the key of {table} is told apart by collation {collation} at the sink, which takes different keys for one"),
                format!("make the table with COLLATE BINARY, which is the default: {}", create_table(wanted)),
            ));
        }
    }
    if halts.is_empty() && !key.is_empty() && !has_arbiter(wanted, facts) {
        let list = key_list(wanted);
        halts.push(halt(
            format!("table {table} has no unique index over the key ({list})"),
            format!(
                "CREATE UNIQUE INDEX {} ON {} ({list})",
                quote_identifier(&format!("{table}_key")),
                quote_identifier(table)
            ),
        ));
    }
    halts
}

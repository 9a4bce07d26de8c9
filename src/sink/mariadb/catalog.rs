//! What MariaDB's catalog says of a table that is to be written. Facts only; what they mean is [`super::fit`]'s.

use super::link::{Link, Texts, text};
use super::refusal::classify;
use super::value::literal;
use crate::error::Result;
use crate::relation::TableName;

/// A table as it is now.
#[derive(Clone, Debug, Default)]
pub(super) struct TableFacts {
    pub is_table: bool,
    pub engine: String,
    pub columns: Vec<ColumnFacts>,
    pub uniques: Vec<UniqueFacts>,
    pub triggers: Vec<TriggerFacts>,
    pub foreign_keys: Vec<ForeignKeyFacts>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ColumnFacts {
    pub name: String,
    /// `varchar`, lower case.
    pub data_type: String,
    /// `varchar(20)`, `int(10) unsigned`.
    pub column_type: String,
    /// Of texts: characters and bytes at most.
    pub chars: Option<usize>,
    pub bytes: Option<usize>,
    pub precision: Option<usize>,
    pub scale: Option<usize>,
    /// Digits of a second.
    pub fraction: Option<usize>,
    pub charset: String,
    pub collation: String,
    pub nullable: bool,
    pub has_default: bool,
    /// `auto_increment`, `on update current_timestamp()`, `VIRTUAL GENERATED` …
    pub extra: String,
}

impl ColumnFacts {
    pub fn is_generated(&self) -> bool {
        self.extra.to_uppercase().contains("GENERATED")
    }

    pub fn fills_itself(&self) -> bool {
        self.nullable || self.has_default || self.is_generated() || self.extra.contains("auto_increment")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UniqueFacts {
    pub name: String,
    /// In the index's order; an index over expressions or over beginnings of columns names none.
    pub columns: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct TriggerFacts {
    pub name: String,
    pub event: String,
}

#[derive(Clone, Debug)]
pub(super) struct ForeignKeyFacts {
    pub child: TableName,
    pub parent: TableName,
    /// `CASCADE`, `SET NULL`, `RESTRICT`, `NO ACTION`.
    pub on_delete: String,
}

/// `None`: there is no such table, or no right to see it.
pub(super) async fn read(link: &mut Link, table: &TableName) -> Result<Option<TableFacts>> {
    let named = |schema: &str, name: &str| {
        format!("{schema} = {} AND {name} = {}", literal(&table.schema), literal(&table.table))
    };
    let here = named("TABLE_SCHEMA", "TABLE_NAME");
    let found = ask(link, &format!("SELECT TABLE_TYPE, ENGINE FROM information_schema.TABLES WHERE {here}")).await?;
    let Some(row) = found.first() else { return Ok(None) };
    let mut facts = TableFacts {
        is_table: text(Some(row), 0) == "BASE TABLE",
        engine: text(Some(row), 1),
        ..TableFacts::default()
    };
    let columns = format!(
        "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_MAXIMUM_LENGTH, CHARACTER_OCTET_LENGTH, NUMERIC_PRECISION, \
         NUMERIC_SCALE, DATETIME_PRECISION, CHARACTER_SET_NAME, COLLATION_NAME, IS_NULLABLE, COLUMN_DEFAULT IS NOT NULL, EXTRA \
         FROM information_schema.COLUMNS WHERE {here} ORDER BY ORDINAL_POSITION"
    );
    facts.columns = ask(link, &columns).await?.iter().map(column).collect();
    let uniques = format!(
        "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART FROM information_schema.STATISTICS \
         WHERE {here} AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX"
    );
    facts.uniques = uniques_of(&ask(link, &uniques).await?);
    let triggers = format!(
        "SELECT TRIGGER_NAME, EVENT_MANIPULATION FROM information_schema.TRIGGERS WHERE {} ORDER BY TRIGGER_NAME",
        named("EVENT_OBJECT_SCHEMA", "EVENT_OBJECT_TABLE")
    );
    let trigger = |row: &Texts| TriggerFacts { name: text(Some(row), 0), event: text(Some(row), 1) };
    facts.triggers = ask(link, &triggers).await?.iter().map(trigger).collect();
    let keys = format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME, UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME, DELETE_RULE \
         FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE {} OR {}",
        named("CONSTRAINT_SCHEMA", "TABLE_NAME"),
        named("UNIQUE_CONSTRAINT_SCHEMA", "REFERENCED_TABLE_NAME")
    );
    facts.foreign_keys = ask(link, &keys).await?.iter().map(foreign_key).collect();
    Ok(Some(facts))
}

async fn ask(link: &mut Link, sql: &str) -> Result<Vec<Texts>> {
    link.rows(sql.as_bytes()).await.map_err(|error| classify("reading the sink's catalog", error))
}

fn column(row: &Texts) -> ColumnFacts {
    let at = |i: usize| text(Some(row), i);
    let number = |i: usize| at(i).parse().ok();
    ColumnFacts {
        name: at(0),
        data_type: at(1).to_lowercase(),
        column_type: at(2).to_lowercase(),
        chars: number(3),
        bytes: number(4),
        precision: number(5),
        scale: number(6),
        fraction: number(7),
        charset: at(8),
        collation: at(9),
        nullable: at(10) == "YES",
        has_default: at(11) == "1",
        extra: at(12),
    }
}

fn uniques_of(rows: &[Texts]) -> Vec<UniqueFacts> {
    let mut found: Vec<UniqueFacts> = Vec::new();
    let mut partial: Vec<String> = Vec::new();
    for row in rows {
        let (name, column) = (text(Some(row), 0), text(Some(row), 1));
        if column.is_empty() || row.get(2).is_some_and(Option::is_some) {
            partial.push(name.clone());
        }
        match found.last_mut().filter(|last| last.name == name) {
            Some(last) => last.columns.push(column),
            None => found.push(UniqueFacts { name, columns: vec![column] }),
        }
    }
    for unique in found.iter_mut().filter(|unique| partial.contains(&unique.name)) {
        unique.columns.clear();
    }
    found
}

fn foreign_key(row: &Texts) -> ForeignKeyFacts {
    let at = |i: usize| text(Some(row), i);
    ForeignKeyFacts { child: TableName::new(at(0), at(1)), parent: TableName::new(at(2), at(3)), on_delete: at(4) }
}

//! What the file says of a table: columns as declared, unique indexes, foreign keys, triggers. Names are compared as SQLite does,
//! without regard to ASCII case.

use rusqlite::{Connection, OptionalExtension, Result, Row};

/// A table of the sink.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct TableFacts {
    /// As SQLite writes it.
    pub name: String,
    /// `table`, `view`, `virtual` or `shadow`.
    pub kind: String,
    pub strict: bool,
    pub without_rowid: bool,
    pub columns: Vec<ColumnFacts>,
    pub uniques: Vec<UniqueFacts>,
    /// Of all tables of the file that reference this one or are referenced by it.
    pub foreign_keys: Vec<ForeignKey>,
    pub triggers: Vec<Trigger>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ColumnFacts {
    pub name: String,
    pub declared: String,
    pub not_null: bool,
    pub has_default: bool,
    pub generated: bool,
    /// It is the rowid: an INTEGER PRIMARY KEY.
    pub rowid: bool,
}

/// A unique index over columns; one with expressions has names missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct UniqueFacts {
    pub name: String,
    /// It stands for a PRIMARY KEY or UNIQUE of the table, and can't be dropped by itself.
    pub of_table: bool,
    pub partial: bool,
    pub terms: Vec<Term>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Term {
    /// `None` for an expression.
    pub column: Option<String>,
    pub collation: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ForeignKey {
    pub child: String,
    pub parent: String,
    /// `None`: the parent's primary key.
    pub referenced: Option<String>,
    pub on_update: String,
    pub on_delete: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trigger {
    pub name: String,
    /// It may fire on an update.
    pub updates: bool,
}

/// As SQLite compares names.
pub(super) fn same_name(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b)
}

impl TableFacts {
    pub fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|column| same_name(&column.name, name))
    }

    /// Foreign keys of other tables, or of itself, that reference it.
    pub fn referenced_by(&self) -> impl Iterator<Item = &ForeignKey> {
        self.foreign_keys.iter().filter(|key| same_name(&key.parent, &self.name))
    }

    /// Its own.
    pub fn references(&self) -> impl Iterator<Item = &ForeignKey> {
        self.foreign_keys.iter().filter(|key| same_name(&key.child, &self.name))
    }
}

impl ForeignKey {
    /// A delete of the parent's row is checked at the commit alone, and does nothing to the child's.
    pub fn waits(&self) -> bool {
        self.on_delete == "NO ACTION"
    }

    /// A delete of the parent's row changes or takes the child's.
    pub fn acts(&self) -> bool {
        matches!(self.on_delete.as_str(), "CASCADE" | "SET NULL" | "SET DEFAULT")
    }
}

/// The table of that name; `None` if there is none.
pub(super) fn read(connection: &Connection, table: &str) -> Result<Option<TableFacts>> {
    let found = connection
        .prepare_cached(
            "SELECT name, type, strict, wr FROM pragma_table_list WHERE schema = 'main' AND lower(name) = lower(?1)",
        )?
        .query_row([table], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .optional()?;
    let Some((name, kind, strict, without_rowid)) = found else { return Ok(None) };
    let uniques = uniques(connection, &name)?;
    let mut columns = rows(
        connection,
        "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, hidden, pk FROM pragma_table_xinfo(?1)",
        &name,
        |row| {
            let column = ColumnFacts {
                name: row.get(0)?,
                declared: row.get(1)?,
                not_null: row.get(2)?,
                has_default: row.get(3)?,
                generated: matches!(row.get(4)?, 2_i64 | 3),
                rowid: false,
            };
            Ok((column, row.get::<_, i64>(5)?))
        },
    )?;
    // The only primary key without an index of its own.
    let indexed: i64 = connection
        .prepare_cached("SELECT count(*) FROM pragma_index_list(?1) WHERE origin = 'pk'")?
        .query_row([&name], |row| row.get(0))?;
    if indexed == 0 {
        columns.iter_mut().filter(|(_, pk)| *pk > 0).for_each(|(column, _)| column.rowid = true);
    }
    let foreign_keys = foreign_keys(connection)?;
    Ok(Some(TableFacts {
        columns: columns.into_iter().map(|(column, _)| column).collect(),
        foreign_keys: foreign_keys
            .into_iter()
            .filter(|key| same_name(&key.child, &name) || same_name(&key.parent, &name))
            .collect(),
        triggers: rows(
            connection,
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND lower(tbl_name) = lower(?1) ORDER BY name",
            &name,
            |row| Ok(Trigger { name: row.get(0)?, updates: may_hear_of_updates(&row.get::<_, String>(1)?) }),
        )?,
        name,
        kind,
        strict,
        without_rowid,
        uniques,
    }))
}

/// All of the file.
pub(super) fn foreign_keys(connection: &Connection) -> Result<Vec<ForeignKey>> {
    let mut statement = connection.prepare_cached(
        "SELECT m.name, f.\"table\", f.\"to\", f.on_update, f.on_delete FROM sqlite_schema AS m \
         JOIN pragma_foreign_key_list(m.name) AS f WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq",
    )?;
    let key = |row: &Row<'_>| {
        Ok(ForeignKey {
            child: row.get(0)?,
            parent: row.get(1)?,
            referenced: row.get(2)?,
            on_update: row.get(3)?,
            on_delete: row.get(4)?,
        })
    };
    statement.query_map([], key)?.collect()
}

fn uniques(connection: &Connection, table: &str) -> Result<Vec<UniqueFacts>> {
    let list = "SELECT name, origin, partial FROM pragma_index_list(?1) WHERE \"unique\" = 1 ORDER BY name";
    let mut uniques = rows(connection, list, table, |row| {
        let of_table = row.get::<_, String>(1)? != "c";
        Ok(UniqueFacts { name: row.get(0)?, of_table, partial: row.get(2)?, terms: Vec::new() })
    })?;
    for unique in &mut uniques {
        let terms = "SELECT name, coll FROM pragma_index_xinfo(?1) WHERE key = 1 ORDER BY seqno";
        unique.terms =
            rows(connection, terms, &unique.name, |row| Ok(Term { column: row.get(0)?, collation: row.get(1)? }))?;
    }
    Ok(uniques)
}

fn rows<T>(connection: &Connection, sql: &str, of: &str, read: impl FnMut(&Row<'_>) -> Result<T>) -> Result<Vec<T>> {
    connection.prepare_cached(sql)?.query_map([of], read)?.collect()
}

/// Whether UPDATE stands among what a trigger hears of. Its name may hold the word too; then one more is taken to hear.
fn may_hear_of_updates(sql: &str) -> bool {
    let upper = sql.to_ascii_uppercase();
    let head = upper.split_once("BEGIN").map_or(upper.as_str(), |(head, _)| head);
    head.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == "UPDATE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_it_is() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE \"P t\" (id INTEGER PRIMARY KEY, u TEXT NOT NULL UNIQUE COLLATE NOCASE, g AS (u), d DEFAULT 1);
                 CREATE UNIQUE INDEX part ON \"P t\" (lower(u), d) WHERE d > 0;
                 CREATE TABLE c (k TEXT PRIMARY KEY, p REFERENCES \"p T\" ON DELETE CASCADE) STRICT, WITHOUT ROWID;"
                    .replace("p REFERENCES", "p INT REFERENCES")
                    .as_str(),
            )
            .unwrap();
        connection
            .execute_batch(
                "CREATE TRIGGER a AFTER UPDATE OF u ON \"P t\" BEGIN SELECT 1; END;
                 CREATE TRIGGER b AFTER INSERT ON \"P t\" BEGIN UPDATE c SET p = 1; END;",
            )
            .unwrap();
        let facts = read(&connection, "p T").unwrap().unwrap();
        assert_eq!((facts.name.as_str(), facts.kind.as_str(), facts.strict), ("P t", "table", false));
        let flags: Vec<_> =
            facts.columns.iter().map(|c| (c.name.as_str(), c.not_null, c.has_default, c.generated, c.rowid)).collect();
        assert_eq!(
            flags,
            [
                ("id", false, false, false, true),
                ("u", true, false, false, false),
                ("g", false, false, true, false),
                ("d", false, true, false, false)
            ]
        );
        let unique = |i: usize| {
            let terms: Vec<_> =
                facts.uniques[i].terms.iter().map(|t| (t.column.as_deref(), t.collation.as_str())).collect();
            (facts.uniques[i].of_table, facts.uniques[i].partial, terms)
        };
        assert_eq!(unique(0), (false, true, vec![(None, "BINARY"), (Some("d"), "BINARY")]));
        assert_eq!(unique(1), (true, false, vec![(Some("u"), "NOCASE")]));
        assert_eq!(facts.triggers.iter().map(|t| t.updates).collect::<Vec<_>>(), [true, false]);
        assert!(facts.referenced_by().all(|key| key.acts() && key.child == "c") && facts.referenced_by().count() == 1);
        let child = read(&connection, "c").unwrap().unwrap();
        assert!(child.strict && child.columns[0].not_null && !child.columns[0].rowid);
        assert_eq!(read(&connection, "none").unwrap(), None);
    }
}

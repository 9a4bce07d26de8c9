//! Row filters: `where` of connectors, pushed into the publication, so that the server sends no other rows.
//!
//! A filter reads back from the catalog in the server's own words, which are nobody's to compare with what was written. So what
//! counts is who wrote it and when: a table's row in the publication has a mark (its transaction), and a mark that is known from
//! the ledger, of the same connector, is trusted. Anything else is written again, which has the table read again: its mark is
//! another one then.
//!
//! Postgres turns an UPDATE across a filter's border into INSERT or DELETE. The new row of such an INSERT lacks large values that
//! did not change, unless old rows are whole: a filter needs REPLICA IDENTITY FULL, which also covers whatever columns it names.
//!
//! Deliberately not here: what is done about a mark that changes while rows are streamed (`capture::driver`), reading rows under
//! the filter (`chunk`).

use std::collections::HashMap;

use tokio_postgres::GenericClient;

use super::catalog::{Identity, TableFacts};
use super::failure::failed;
use super::publication::{CREATE_OFF_HINT, publication_facts};
use crate::error::{Code, Error, Halt, Result};
use crate::relation::{TableName, quote_identifier};

/// Publications have filters since Postgres 15.
const VERSION_MIN: i32 = 150_000;

/// Tables whose place in the publication is ours to write, with the filter of each; `None`: its filter is to go.
#[derive(Debug, Default)]
pub struct Filters {
    pub wanted: Vec<(TableName, Option<String>)>,
    /// The marks that are known to be of these filters.
    pub marks: HashMap<TableName, String>,
}

impl Filters {
    /// Writes what is not known to be there. Does nothing where there is no publication yet.
    ///
    /// # Errors
    /// `CREATE_OFF` with the statements if `create` is false; `CONNECTOR_COLUMNS` if the server refuses a filter.
    pub async fn ensure(
        &mut self,
        client: &(impl GenericClient + Sync),
        publication: &str,
        create: bool,
    ) -> Result<()> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let Some(facts) = publication_facts(client, publication).await? else { return Ok(()) };
        let found = marks(client, publication, &self.names()).await?;
        let mut statements = Vec::new();
        for (table, filter) in &self.wanted {
            let published = facts.table(table);
            let right = match filter {
                Some(_) => self.marks.get(table).is_some_and(|mark| found.get(table) == Some(mark)),
                None => published.is_none_or(|published| published.filter.is_none()),
            };
            if !right {
                statements
                    .extend(published.map(|_| format!("{} DROP TABLE ONLY {}", alter(publication), table.quoted())));
                let filter = filter.as_ref().map(|sql| format!(" WHERE {}", condition(sql))).unwrap_or_default();
                statements.push(format!("{} ADD TABLE ONLY {}{filter}", alter(publication), table.quoted()));
            }
        }
        if statements.is_empty() {
            return Ok(());
        }
        let sql = statements.join(";\n");
        if !create {
            let message = format!("publication {publication:?} lacks row filters of ours, and create = false");
            return Err(Error::halt(Code::CreateOff, message, CREATE_OFF_HINT).fact(format!("{sql};")));
        }
        // The marks are those of this transaction, whoever comes next.
        let doing = "writing row filters into the publication";
        client.batch_execute(&format!("BEGIN;\n{sql}")).await.map_err(|e| refused(doing, e))?;
        self.marks = marks(client, publication, &self.names()).await?;
        client.batch_execute("COMMIT").await.map_err(|e| failed(doing, e))
    }

    fn names(&self) -> Vec<TableName> {
        self.wanted.iter().map(|(table, _)| table.clone()).collect()
    }
}

/// The condition as it enters SQL. A comment in it ends with its line.
pub fn condition(sql: &str) -> String {
    format!("(\n{sql}\n)")
}

fn alter(publication: &str) -> String {
    format!("ALTER PUBLICATION {}", quote_identifier(publication))
}

/// The tables' marks; none of a table that is not published.
async fn marks(
    client: &(impl GenericClient + Sync),
    publication: &str,
    tables: &[TableName],
) -> Result<HashMap<TableName, String>> {
    let looks = super::look::looks(client, publication, tables).await?;
    let marked = tables.iter().zip(looks).filter_map(|(table, look)| Some((table.clone(), look?.published?)));
    Ok(marked.collect())
}

/// Why rows of the table can't be filtered.
pub fn identity_finding(table: &TableFacts) -> Option<Halt> {
    let whole = |identity| identity == Identity::Full;
    let partition = table.leaves.iter().find(|leaf| !whole(leaf.identity)).map(|leaf| &leaf.name);
    let name = partition.or_else(|| (!whole(table.identity)).then_some(&table.name))?;
    let message = format!("where of table {}: old rows of {name} do not hold every column", table.name);
    let hint = format!("ALTER TABLE {} REPLICA IDENTITY FULL", name.quoted());
    Some(Halt { code: Code::ReplicaIdentity, message, facts: vec![], hint })
}

/// Why the table can't have this filter; asks the server whether it is a condition over its columns.
pub async fn finding(
    client: &(impl GenericClient + Sync),
    version: i32,
    table: &TableFacts,
    filter: &str,
) -> Result<Option<Halt>> {
    if version < VERSION_MIN {
        let message = format!("where of table {}: the source has no row filters before Postgres 15", table.name);
        let hint = "delete where from its connector, or pg_upgrade to 15 or newer".to_owned();
        return Ok(Some(Halt { code: Code::ServerVersion, message, facts: vec![], hint }));
    }
    // One statement at a time can be prepared: what is more than a condition fails here.
    let sql = format!("SELECT FROM ONLY {} WHERE {}", table.name.quoted(), condition(filter));
    match client.prepare(&sql).await {
        Ok(_) => Ok(None),
        Err(error) => match refused(&format!("where of table {}", table.name), error) {
            Error::Halt(halt) => Ok(Some(*halt)),
            retry @ Error::Retry(_) => Err(retry),
        },
    }
}

/// A statement with a filter that failed: what is wrong with the filter only its author can mend.
pub fn refused(doing: &str, error: tokio_postgres::Error) -> Error {
    // Classes 22, 42 and 0A: a value, a name or the grammar, a function that filters can't have.
    let wrong =
        |state: &str| state.starts_with("42") && state != "42501" || state.starts_with("22") || state.starts_with("0A");
    match error.as_db_error() {
        Some(db) if wrong(db.code().code()) => {
            let detail = db.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
            let message = format!("{doing}: {}{detail}", db.message());
            Error::halt(Code::ConnectorColumns, message, "write another where = \"…\" into the table's connector")
        }
        _ => failed(doing, error),
    }
}

//! The table where people of the source write signals: in the publication like those that are followed, and nothing else of it
//! is asked for.
//!
//! It is a convenience, so whatever is wrong with it is said and stops nobody: rows of data go on. Whoever looks at the source
//! every few seconds publishes it as soon as it will do, also when it was made again. What was written before that is no signal.

use std::slice;

use super::signals::Layout;
use crate::config::Config;
use crate::error::{Code, Halt, Result};
use crate::postgres::catalog::{self, Kind, TableFacts};
use crate::postgres::preflight;
use crate::postgres::publication::{self, PublicationFacts, add_tables_sql};
use crate::relation::TableName;
use crate::session::Session;

/// The table, if it is in the publication.
pub async fn published(session: &Session, config: &Config) -> Result<Option<TableName>> {
    let Some(table) = &config.source.signal_table else { return Ok(None) };
    let facts = publication::publication_facts(&**session, &config.source.publication).await?;
    Ok(facts.filter(|facts| facts.table(table).is_some()).map(|_| table.clone()))
}

/// Publishes it if it is not; why no signals are read, if so. A publication that is still to be made is the start's business, and
/// the table that was `seen` in it, by its OID, was taken out by somebody: whoever wants it back adds it.
pub async fn publish(session: &Session, config: &Config, seen: &mut Option<u32>) -> Result<Option<Halt>> {
    let Some(table) = &config.source.signal_table else { return Ok(None) };
    let name = &config.source.publication;
    let facts = publication::publication_facts(&**session, name).await?;
    let oid = match judge(session, config, table, facts.as_ref()).await? {
        Ok(oid) => oid,
        Err(unfit) => return Ok(Some(unfit)),
    };
    let Some(facts) = facts else { return Ok(None) };
    if is_in(&facts, table) {
        *seen = Some(oid);
        return Ok(None);
    }
    let add = add_tables_sql(name, slice::from_ref(table));
    if *seen == Some(oid) {
        let what = format!("table {table} was taken out of publication {name:?}");
        return Ok(Some(finding(Code::PublicationChanged, what, add)));
    }
    Ok(match publication::add_table(&**session, name, table).await? {
        Ok(()) => {
            *seen = Some(oid);
            tracing::info!(%table, "the table of signals is published; what was written into it before is no signal");
            None
        }
        Err(why) => Some(finding(Code::NoRight, format!("{table}: {why}"), add)),
    })
}

/// Why no signals would be read; changes nothing.
pub async fn unfit(session: &Session, config: &Config) -> Result<Option<Halt>> {
    let Some(table) = &config.source.signal_table else { return Ok(None) };
    let facts = publication::publication_facts(&**session, &config.source.publication).await?;
    Ok(judge(session, config, table, facts.as_ref()).await?.err())
}

/// The table's OID, or why no signals would be read.
async fn judge(
    session: &Session,
    config: &Config,
    table: &TableName,
    publication: Option<&PublicationFacts>,
) -> Result<std::result::Result<u32, Halt>> {
    let Some(facts) = catalog::table_facts(&**session, slice::from_ref(table)).await?.remove(0) else {
        let columns = "(id varchar(64) PRIMARY KEY, type varchar(32) NOT NULL, data text)";
        let hint = format!("CREATE TABLE {} {columns}", table.quoted());
        return Ok(Err(finding(Code::TableMissing, format!("table {table} does not exist"), hint)));
    };
    if let Some(unlike) = unlike(&facts) {
        return Ok(Err(unlike));
    }
    if publication.is_some_and(|publication| is_in(publication, table)) {
        return Ok(Ok(facts.oid));
    }
    let wanted = preflight::Wanted {
        publication: &config.source.publication,
        tables: slice::from_ref(table),
        insert_only: &[],
        create: config.create,
        reads: false,
    };
    let source = catalog::source_facts(&**session).await?;
    Ok(preflight::refusal(&source, wanted, publication, &facts).map_or(Ok(facts.oid), Err))
}

fn is_in(publication: &PublicationFacts, table: &TableName) -> bool {
    publication.all_tables || publication.table(table).is_some()
}

/// What is not as rows of signals are.
fn unlike(facts: &TableFacts) -> Option<Halt> {
    let name = &facts.name;
    if facts.kind != Kind::Table {
        let hint = "write another table into source.signal_table";
        return Some(finding(Code::TableUnsupported, format!("{name} is no plain table"), hint));
    }
    let columns: Vec<&str> = facts.columns.iter().map(|column| column.name.as_str()).collect();
    let what = format!("table {name} has no columns id, type and data");
    let hint = format!("ALTER TABLE {} ADD COLUMN …", name.quoted());
    Layout::of(&columns).is_none().then(|| finding(Code::TableUnsupported, what, hint))
}

fn finding(code: Code, message: String, hint: impl Into<String>) -> Halt {
    let (message, hint) = (format!("no signals are read: {message}"), hint.into());
    Halt { code, message, facts: Vec::new(), hint }
}

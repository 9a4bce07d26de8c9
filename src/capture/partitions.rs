//! Partitions that come to a followed table while everything runs, and have a replica identity that will not do.
//!
//! A partition begins with DEFAULT, whatever its root has. Where the root has no key, or a row filter, that is too little: the
//! application's own UPDATE and DELETE on the new partition fail, since it is published with its root. What is in the stream is
//! right all the same, so nothing halts for it; it is said as loudly as can be, with the command to type. The next start refuses it.

use crate::config::Config;
use crate::error::{Halt, Result};
use crate::look::Look;
use crate::postgres::{catalog, filter, preflight};
use crate::relation::TableName;
use crate::session::Session;

/// What is wrong with the partitions of tables that need whole old rows. Asks nothing where there are none.
pub async fn unfit(session: &Session, config: &Config, looks: &[(TableName, Option<Look>)]) -> Result<Vec<Halt>> {
    let filtered = |name: &TableName| config.table(name).is_some_and(|table| table.shape.filter.is_some());
    let needs_whole = |(name, look): &&(TableName, Option<Look>)| {
        look.as_ref().is_some_and(|look| !look.leaves.is_empty() && (look.key.is_empty() || filtered(name)))
    };
    let tables: Vec<TableName> = looks.iter().filter(needs_whole).map(|(name, _)| name.clone()).collect();
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for table in catalog::table_facts(&**session, &tables).await?.iter().flatten() {
        let insert_only = config.table(&table.name).is_some_and(|table| table.insert_only);
        found.extend(preflight::partition_findings(table, insert_only));
        found.extend(filter::identity_finding(table).filter(|_| filtered(&table.name)));
    }
    Ok(found)
}

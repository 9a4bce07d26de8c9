//! Which tables the patterns of the configuration come to at this source.
//!
//! Resolved at a start, and looked at again every now and then by whoever watches the source: a table that is made later, or
//! that is renamed so that a pattern matches it, is published and ends the reader in order; the next one has it. A table that is
//! in the publication is ours and judged as one with a connector of its own. A new one that can't be followed (no key, no right
//! to read it, locked) is left out until it can: it is named, and nobody's table is held up by it.
//!
//! Partitioned tables are followed under the name of their root, so a partition is meant by no pattern where one above it is
//! routed; and where a partition has a connector of its own, those above it are meant by none.
//!
//! Deliberately not here: tables that are gone (`departures`).

use std::collections::{BTreeSet, HashSet};

use crate::capture::shape;
use crate::config::{Config, LeftOut};
use crate::error::{Error, Halt, Result};
use crate::postgres::named::{NamedTable, named_tables};
use crate::postgres::{catalog, preflight, publication};
use crate::relation::TableName;
use crate::session::Session;

/// What patterns come to.
pub struct Resolved {
    /// With every table by its name.
    pub config: Config,
    /// Tables that patterns match and that are left out.
    pub left_out: Vec<LeftOut>,
    /// Tables of patterns that are not in the publication.
    pub unpublished: BTreeSet<TableName>,
}

impl Resolved {
    /// The tables of patterns that are in the publication.
    pub fn published(&self) -> BTreeSet<TableName> {
        by_pattern(&self.config).difference(&self.unpublished).cloned().collect()
    }
}

/// Publishes what is not yet. A table that is locked is left out for now. Where there is no publication yet, or it is not as we
/// make it, that is the start's business.
pub async fn publish(session: &Session, mut resolved: Resolved) -> Result<Resolved> {
    let publication = resolved.config.source.publication.clone();
    if resolved.unpublished.is_empty() {
        return Ok(resolved);
    }
    match publication::publication_facts(&**session, &publication).await? {
        Some(facts) if facts.via_root && !facts.all_tables => {}
        _ => return Ok(resolved),
    }
    for table in std::mem::take(&mut resolved.unpublished) {
        if let Err(why) = publication::add_table(&**session, &publication, &table).await? {
            let hint = format!("SELECT * FROM pg_locks WHERE relation = '{}'::regclass", table.quoted());
            resolved.left_out.push(LeftOut { table: table.clone(), why, hint });
            resolved.unpublished.insert(table);
        }
    }
    let published = resolved.published();
    resolved.unpublished.clear();
    resolved.config = resolved.config.resolve(&published).0;
    Ok(resolved)
}

/// The configuration with every table by its name, and those that patterns match and that are left out.
pub async fn resolve(session: &Session, config: &Config) -> Result<Resolved> {
    if config.routes.is_empty() {
        return Ok(Resolved { config: config.clone(), left_out: Vec::new(), unpublished: BTreeSet::new() });
    }
    let like: Vec<(String, String)> = config.patterns().map(|pattern| pattern.like()).collect();
    let own: Vec<TableName> =
        config.tables.iter().filter(|table| !table.by_pattern).map(|table| table.name.clone()).collect();
    let found = named_tables(&**session, &config.source.publication, &like, &own).await?;
    let meant = meant(config, &found);
    let (published, new): (Vec<&NamedTable>, Vec<&NamedTable>) = meant.into_iter().partition(|table| table.published);
    let (fit, mut left_out) = judge(session, config, &new).await?;
    let (config, clashes) = config.resolve(published.into_iter().map(|table| &table.name).chain(fit));
    left_out.extend(clashes);
    left_out.sort_by(|a, b| a.table.cmp(&b.table));
    let unpublished =
        new.iter().map(|table| &table.name).filter(|name| config.table(name).is_some()).cloned().collect();
    Ok(Resolved { config, left_out, unpublished })
}

/// Tables among these that patterns mean.
fn meant<'f>(config: &Config, found: &'f [NamedTable]) -> Vec<&'f NamedTable> {
    let is_own = |table: &&NamedTable| config.table(&table.name).is_some_and(|table| !table.by_pattern);
    let above_own: HashSet<u32> = found.iter().filter(is_own).flat_map(|own| own.ancestors.iter().copied()).collect();
    let is_meant = |table: &&NamedTable| config.is_by_pattern(&table.name) && !above_own.contains(&table.oid);
    let routed: HashSet<u32> = found.iter().filter(|t| is_own(t) || is_meant(t)).map(|table| table.oid).collect();
    let is_below = |table: &NamedTable| table.ancestors.iter().any(|above| routed.contains(above));
    found.iter().filter(|table| is_meant(table) && !is_below(table)).collect()
}

/// Those of the new tables that can be followed, and why the others can't.
async fn judge<'f>(
    session: &Session,
    config: &Config,
    new: &[&'f NamedTable],
) -> Result<(Vec<&'f TableName>, Vec<LeftOut>)> {
    let (mut fit, mut left_out) = (Vec::new(), Vec::new());
    if new.is_empty() {
        return Ok((fit, left_out));
    }
    let source = catalog::source_facts(&**session).await?;
    let publication = publication::publication_facts(&**session, &config.source.publication).await?;
    let names: Vec<TableName> = new.iter().map(|table| table.name.clone()).collect();
    let facts = catalog::table_facts(&**session, &names).await?;
    for (table, facts) in new.iter().zip(facts) {
        // Gone again.
        let Some(facts) = facts else { continue };
        let insert_only: Vec<TableName> =
            config.routes_of(&table.name).filter(|route| route.is_insert_only()).map(|_| table.name.clone()).collect();
        let wanted = preflight::Wanted {
            publication: &config.source.publication,
            tables: std::slice::from_ref(&table.name),
            insert_only: &insert_only,
            create: config.create,
            reads: true,
        };
        let mut refusal = preflight::refusal(&source, wanted, publication.as_ref(), &facts);
        if refusal.is_none() {
            // Its connector may speak of columns that it does not have.
            let (alone, facts) = (config.resolve([&table.name]).0, std::slice::from_ref(&facts));
            refusal = shape::findings(session, source.version, &alone, facts).await?.into_iter().next();
            if let (None, Some(table), [facts]) = (&refusal, alone.table(&table.name), facts) {
                refusal = halt_of(shape::check_records(session, table, facts, &config.kafka.topic_prefix).await)?;
            }
        }
        match refusal {
            None => fit.push(&table.name),
            Some(halt) => {
                let (table, why, hint) = (table.name.clone(), halt.message, halt.hint);
                left_out.push(LeftOut { table, why, hint });
            }
        }
    }
    Ok((fit, left_out))
}

fn halt_of(checked: Result<()>) -> Result<Option<Halt>> {
    match checked {
        Ok(()) => Ok(None),
        Err(Error::Halt(halt)) => Ok(Some(*halt)),
        Err(error) => Err(error),
    }
}

/// A halt over the publication may be about a table that is left out.
pub fn with_left_out(error: Error, left_out: &[LeftOut]) -> Error {
    left_out.iter().fold(error, |error, table| error.fact(table.to_string()))
}

/// The tables that patterns have come to.
pub fn by_pattern(config: &Config) -> BTreeSet<TableName> {
    config.tables.iter().filter(|table| table.by_pattern).map(|table| table.name.clone()).collect()
}

/// In words, what is different now that patterns mean other tables than a reader has; `None` if nothing is.
pub fn difference(ours: &BTreeSet<TableName>, now: &BTreeSet<TableName>) -> Option<String> {
    if let Some(came) = now.difference(ours).next() {
        return Some(format!("table {came} matches a pattern; a new start reads it"));
    }
    ours.difference(now).next().map(|went| format!("table {went} is meant by no pattern any more; starting again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, oid: u32, ancestors: &[u32]) -> NamedTable {
        let name = TableName::new("public", name);
        NamedTable { name, oid, ancestors: ancestors.to_vec(), published: false }
    }

    fn meant_of(connectors: &[(&str, &str)], found: &[NamedTable]) -> Vec<String> {
        let config = crate::config::example(connectors);
        meant(&config, found).iter().map(|table| table.name.table.clone()).collect()
    }

    #[test]
    fn a_partition_goes_with_the_table_above_it() {
        let found = [named("part", 1, &[]), named("part_a", 2, &[1]), named("part_b", 3, &[1]), named("x", 4, &[])];
        let all = ("all.toml", "table = '*'\n");
        assert_eq!(meant_of(&[all], &found), ["part", "x"]);
        assert_eq!(
            meant_of(&[("a.toml", "table = 'part_*'\n")], &found),
            ["part_a", "part_b"],
            "the root is not meant"
        );
        let root = ("root.toml", "table = 'part'\n");
        assert_eq!(meant_of(&[all, root], &found), ["x"], "the root has a connector");
        let leaf = ("leaf.toml", "table = 'part_a'\n");
        assert_eq!(meant_of(&[all, leaf], &found), ["part_b", "x"], "a partition has one");
    }

    #[test]
    fn a_difference_names_a_table() {
        let set = |names: &[&str]| names.iter().map(|name| TableName::new("public", *name)).collect::<BTreeSet<_>>();
        assert_eq!(difference(&set(&["a"]), &set(&["a"])), None);
        assert!(difference(&set(&["a"]), &set(&["a", "b"])).unwrap().contains("public.b matches"));
        assert!(difference(&set(&["a", "b"]), &set(&["a"])).unwrap().contains("public.b is meant by no"));
    }
}

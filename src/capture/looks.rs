//! The source's tables as this reader last saw them, and what another look shows to be due.
//!
//! Known looks stand in the ledger's base, so a reader that starts compares with what the one before it saw. A
//! difference is answered by requests in the ledger **before** a base tells of the newer look, and before the
//! checkpoint of any row of the newer relation version: whoever dies in between leaves the older look behind, and the
//! difference is found again.
//!
//! Which table a row of the stream belongs to is decided here too: by the relation's OID where one of ours has it
//! now, which stays what it is while names come and go, and by its name otherwise. Tables that are routed no more
//! stay known: whoever routes them again has missed what happened meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use crate::capture::heard::Unheard;
use crate::look::{Difference, Look};
use crate::relation::TableName;

#[derive(Debug, Clone, Default)]
pub struct Looks {
    known: BTreeMap<TableName, Look>,
    /// What rows may say of types that were altered since, which the table was asked for.
    passed: BTreeMap<TableName, BTreeSet<Unheard>>,
}

/// What a look at one table asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Its rows must be read again; in words, why.
    Reread(String),
    /// Partitions came: its rows must be read again unless they are empty.
    Leaves(Vec<u32>),
    /// Another table has its name now and is not published.
    Unpublished,
    /// No table has its name; the OID is that of the one that had it.
    Gone(u32),
}

impl Looks {
    pub fn new(known: BTreeMap<TableName, Look>) -> Looks {
        Looks { known, passed: BTreeMap::new() }
    }

    pub fn known(&self) -> &BTreeMap<TableName, Look> {
        &self.known
    }

    /// Names under which a relation with this OID was seen last: several after a renaming that a connector followed.
    pub fn of_oid(&self, oid: u32) -> impl Iterator<Item = &TableName> {
        self.known.iter().filter(move |(_, look)| look.oid == oid).map(|(name, _)| name)
    }

    /// What is due now that the table looks like this. A table that was never seen is loaded by the sinks' own
    /// requests.
    pub fn compare(&self, table: &TableName, now: Option<&Look>) -> Option<Finding> {
        let known = self.known.get(table)?;
        let Some(now) = now else { return Some(Finding::Gone(known.oid)) };
        if now.published.is_none() {
            // Taken out of the publication, it is the publication's trouble; what was known stays known until it is
            // back.
            return (now.oid != known.oid).then_some(Finding::Unpublished);
        }
        Some(match known.difference(now)? {
            Difference::Rows(why) => Finding::Reread(why),
            Difference::Leaves(came) => Finding::Leaves(came),
        })
    }

    /// From here on the table is known to look like this.
    pub fn see(&mut self, table: TableName, now: Look) {
        if now.published.is_none() {
            return;
        }
        if let Some(before) = self.known.get(&table) {
            let labels = before.relabelled(&now).map(|label| Unheard::Label(label.to_owned()));
            let attributes = before.reshaped(&now).map(|before| Unheard::Attributes(before.attributes.len()));
            let passed: Vec<Unheard> = labels.chain(attributes).collect();
            self.passed.entry(table.clone()).or_default().extend(passed);
        }
        self.known.insert(table, now);
    }

    /// Notes that rows say what the catalog does not say any more; whether that is news.
    pub fn pass(&mut self, table: &TableName, said: Unheard) -> bool {
        self.passed.entry(table.clone()).or_default().insert(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(oid: u32, published: Option<&str>) -> Look {
        Look {
            oid,
            file: oid,
            columns: vec![],
            last: None,
            dropped: vec![],
            key: vec![],
            leaves: vec![],
            published: published.map(str::to_owned),
            labels: vec![],
            composites: vec![],
            shape: None,
            filter: None,
        }
    }

    #[test]
    fn a_name_that_another_table_has_taken_is_published_before_it_is_read() {
        let table = TableName::new("public", "t");
        let mut looks = Looks::default();
        assert_eq!(looks.compare(&table, Some(&look(1, Some("p")))), None, "never seen");
        looks.see(table.clone(), look(1, Some("p")));
        assert_eq!(looks.compare(&table, Some(&look(1, Some("p")))), None);
        assert_eq!(looks.compare(&table, None), Some(Finding::Gone(1)));
        assert_eq!(looks.compare(&table, Some(&look(2, None))), Some(Finding::Unpublished));
        assert_eq!(looks.compare(&table, Some(&look(1, None))), None, "check_published halts");
        looks.see(table.clone(), look(1, None));
        assert!(matches!(looks.compare(&table, Some(&look(1, Some("q")))), Some(Finding::Reread(_))), "back again");
        assert!(matches!(looks.compare(&table, Some(&look(2, Some("p")))), Some(Finding::Reread(_))));
        assert_eq!(looks.of_oid(1).collect::<Vec<_>>(), [&table]);
        assert_eq!(looks.of_oid(2).next(), None);
    }

    #[test]
    fn a_label_that_was_renamed_is_asked_for_once() {
        let table = TableName::new("public", "t");
        let labelled = |labels: &[(u32, &str)]| {
            let labels = labels.iter().map(|(oid, label)| (*oid, (*label).to_owned())).collect();
            Look { labels, ..look(1, Some("p")) }
        };
        let mut looks = Looks::default();
        looks.see(table.clone(), labelled(&[(7, "sad")]));
        looks.see(table.clone(), labelled(&[(7, "blue"), (8, "new")]));
        let mut pass = |label: &str| looks.pass(&table, Unheard::Label(label.into()));
        assert!(!pass("sad"), "the look asked for it");
        assert!(pass("brief"), "nobody saw it");
        assert!(!pass("brief"));
    }
}

//! Tables of patterns that are no longer there: dropped, or renamed.
//!
//! Such a table is followed to its end. Its last changes are in the stream behind the look that finds it gone, so it stays
//! routed until everything that was written by then is in the ledger; only then does a base leave it out of the tables that
//! the reader has, and the sinks that read that base let go of it: what they hold of it stays as it is. A reader that dies in
//! between leaves a base that still has it, and the next one follows it to its end.
//!
//! Pure: positions come in as arguments.

use std::collections::{BTreeMap, BTreeSet};

use crate::lsn::Lsn;
use crate::relation::TableName;

#[derive(Debug, Clone, Default)]
pub struct Departures {
    /// Each with the end of the source's log when it was known to be gone.
    leaving: BTreeMap<TableName, Lsn>,
    gone: BTreeSet<TableName>,
}

impl Departures {
    /// Tables that an earlier reader had, found gone by a start.
    pub fn of(tables: impl IntoIterator<Item = TableName>, end: Lsn) -> Departures {
        let leaving = tables.into_iter().map(|table| (table, end)).collect();
        Departures { leaving, gone: BTreeSet::new() }
    }

    /// The table is gone; the source's log ends here.
    pub fn leave(&mut self, table: TableName, end: Lsn) {
        if !self.has(&table) {
            self.leaving.insert(table, end);
        }
    }

    /// Whether the table is known to be gone.
    pub fn has(&self, table: &TableName) -> bool {
        self.leaving.contains_key(table) || self.gone.contains(table)
    }

    /// Whether everything of the table is told and sinks may let go of it.
    pub fn is_over(&self, table: &TableName) -> bool {
        self.gone.contains(table)
    }

    /// Tables of which everything is told now that all up to `closed` is.
    pub fn passed(&mut self, closed: Lsn) -> Vec<TableName> {
        let over = |(table, end): (&TableName, &Lsn)| (*end <= closed).then(|| table.clone());
        let passed: Vec<TableName> = self.leaving.iter().filter_map(over).collect();
        for table in &passed {
            self.leaving.remove(table);
            self.gone.insert(table.clone());
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_leaves_once_its_end_was_passed() {
        let (a, b) = (TableName::new("s", "a"), TableName::new("s", "b"));
        let mut departures = Departures::of([a.clone()], Lsn(10));
        departures.leave(b.clone(), Lsn(20));
        departures.leave(a.clone(), Lsn(30));
        assert!(departures.has(&a) && !departures.is_over(&a));
        assert_eq!(departures.passed(Lsn(9)), []);
        assert_eq!(departures.passed(Lsn(10)), std::slice::from_ref(&a), "as it was known first");
        assert!(departures.is_over(&a) && departures.has(&a) && !departures.is_over(&b));
        departures.leave(a.clone(), Lsn(40));
        assert_eq!(departures.passed(Lsn(99)), [b]);
    }
}

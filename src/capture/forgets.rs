//! What the ledger must learn of ranges that were loaded and no longer count: told in every checkpoint until one covers the
//! place where it was found out.
//!
//! A chunk that is on its way may be counted after it was found out that it says too much. So nothing waits for the
//! checkpoint of its place: whoever reads the ledger in between would take that chunk for good. What is told twice is read
//! again once.
//!
//! Readers that do not know these entries read the tables from their beginning, for as long as somebody asks for them.

use crate::ledger::entry::Forget;
use crate::lsn::Position;
use crate::relation::TableName;

#[derive(Debug, Default)]
pub struct Forgets {
    pending: Vec<Forget>,
    /// For older readers.
    tables: Vec<TableName>,
}

impl Forgets {
    /// What an older reader must know already.
    pub fn begin(&mut self, tables: &[TableName]) {
        self.tables = tables.to_vec();
    }

    pub fn push(&mut self, forget: Forget) {
        self.told_to_older(forget.table.clone());
        if forget.key.is_none() {
            // It says more than the keys of its table do, and there may be many of those.
            self.pending.retain(|told| told.key.is_none() || told.table != forget.table || told.at > forget.at);
            if self.pending.contains(&forget) {
                return;
            }
        }
        self.pending.push(forget);
    }

    /// Older readers are to read these tables from their beginning.
    pub fn told_to_older(&mut self, tables: impl IntoIterator<Item = TableName>) {
        self.tables.extend(tables);
        self.tables.sort();
        self.tables.dedup();
    }

    /// Of tables that nobody asks for any more an older reader need not know.
    pub fn retain(&mut self, open: impl Fn(&TableName) -> bool) {
        self.tables.retain(|table| open(table));
    }

    /// For a checkpoint that ends at this position: tables for older readers, and the rest of it for the others.
    pub fn tell(&mut self, to: Position) -> (Vec<TableName>, Option<Vec<Forget>>) {
        let told = self.pending.clone();
        self.pending.retain(|forget| forget.at > to);
        (self.tables.clone(), (!self.tables.is_empty() || !told.is_empty()).then_some(told))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    #[test]
    fn a_table_that_begins_anew_takes_its_keys_along() {
        let table = |name| Some(TableName::new("public", name));
        let at = Position::new(Lsn(20), 0);
        let key = |name| Forget { table: table(name), key: Some(vec!["1".to_owned()]), at, ..Forget::default() };
        let whole = Forget { table: table("t"), at, ..Forget::default() };
        let mut forgets = Forgets::default();
        for forget in [key("t"), key("u"), whole.clone(), whole.clone()] {
            forgets.push(forget);
        }
        assert_eq!(forgets.tell(at).1, Some(vec![key("u"), whole]));
    }

    #[test]
    fn what_no_longer_counts_is_told_until_a_checkpoint_covers_its_place() {
        let table = TableName::new("public", "t");
        let at = |lsn| Position::new(Lsn(lsn), 0);
        let forget = Forget { table: Some(table.clone()), at: at(20), ..Forget::default() };
        let mut forgets = Forgets::default();
        assert_eq!(forgets.tell(at(5)), (vec![], None), "as older readers wrote it");
        forgets.push(forget.clone());
        let told = Some(vec![forget]);
        assert_eq!(forgets.tell(at(10)), (vec![table.clone()], told.clone()), "its place is still to come");
        assert_eq!(forgets.tell(at(20)), (vec![table.clone()], told));
        assert_eq!(
            forgets.tell(at(30)),
            (vec![table], Some(vec![])),
            "an older reader must know as long as the load lasts"
        );
        forgets.retain(|_| false);
        assert_eq!(forgets.tell(at(40)), (vec![], None));
    }
}

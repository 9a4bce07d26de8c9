//! Which records are no matter of their key alone, so that a sink which applies partitions apart from each other
//! (`consistency = "row"`) waits there until all of them have come as far.
//!
//! Pure. A TRUNCATE is of all rows and stands in one partition. A key change is one row's and may stand in two; only as one
//! change does the row live on, and keep what was not sent. And records of another relation version may have another key: the row
//! that was in one partition goes on in another.

use std::collections::HashMap;

use crate::record::Kind;
use crate::relation::{Fingerprint, TableName};

/// The versions of which each table's last record was.
#[derive(Default)]
pub(super) struct Barriers {
    numbers: HashMap<TableName, usize>,
    last: Vec<Option<Fingerprint>>,
}

impl Barriers {
    /// The table's number, for [`Barriers::is_at`].
    pub fn number(&mut self, table: &TableName) -> usize {
        let (next, last) = (self.numbers.len(), &mut self.last);
        *self.numbers.entry(table.clone()).or_insert_with(|| {
            last.push(None);
            next
        })
    }

    /// Whether the next record of the table is one. The first of an incarnation is: nobody remembers which version was before.
    pub fn is_at(&mut self, number: usize, version: Fingerprint, kind: Kind) -> bool {
        let another = self.last[number].replace(version) != Some(version);
        let of_key = match kind {
            Kind::Change | Kind::Tombstone | Kind::ChunkRow | Kind::Foreign => true,
            Kind::KeyChangeDelete | Kind::KeyChangeCreate | Kind::Truncate => false,
        };
        another || !of_key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barriers_are_truncates_key_changes_and_every_change_of_version() {
        let mut barriers = Barriers::default();
        let (a, b) = (barriers.number(&TableName::new("s", "a")), barriers.number(&TableName::new("s", "b")));
        assert_eq!(barriers.number(&TableName::new("s", "a")), a);
        let mut at = |number, version, kind| barriers.is_at(number, Fingerprint(version), kind);
        assert!(at(a, 1, Kind::Change) && !at(a, 1, Kind::Change) && !at(a, 1, Kind::Tombstone));
        assert!(at(b, 2, Kind::ChunkRow) && !at(b, 2, Kind::Change) && !at(a, 1, Kind::Change));
        assert!(at(a, 1, Kind::Truncate) && at(a, 1, Kind::KeyChangeDelete) && at(a, 1, Kind::KeyChangeCreate));
        assert!(!at(a, 1, Kind::Change));
        assert!(at(a, 3, Kind::Change) && at(a, 1, Kind::Change), "a version that comes back is another one, too");
    }
}

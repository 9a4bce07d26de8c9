//! What of a table under load the sinks have, and which rows of that they had to leave out.
//!
//! A row that moves to a loaded key can't be made by sinks that do not have it, if a column was not sent. They leave it out,
//! and its new key is read again by itself. Until then it can't be moved on either: then that key is read again too.
//!
//! Invariant: a reader takes a key for covered only where every sink that it loads for takes its changes. The other way round
//! is no harm: a row that a sink has too early is replaced by its chunk.

use std::collections::BTreeSet;

use crate::key::ranges::RangeSet;
use crate::key::{KeyError, KeyOrder, KeyRange};

/// A key's texts.
pub type KeyTexts = Vec<String>;

/// What is loaded of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover {
    pub ranges: RangeSet,
    /// Keys in the ranges that are to be read again.
    pub again: BTreeSet<KeyTexts>,
}

impl Cover {
    /// What is still to be read, rising: ranges first, single keys at the end.
    pub fn left(&self) -> Vec<KeyRange> {
        let keys = self.again.iter().cloned().map(KeyRange::of_key);
        self.ranges.missing().into_iter().chain(keys).collect()
    }

    /// A chunk was emitted.
    pub fn emitted(&mut self, orders: &[KeyOrder], range: &KeyRange) -> Result<(), KeyError> {
        self.ranges.insert(orders, range.clone())?;
        let mut still = BTreeSet::new();
        for key in std::mem::take(&mut self.again) {
            if !range.contains(orders, &key)? {
                still.insert(key);
            }
        }
        self.again = still;
        Ok(())
    }

    /// A row moved from one key to another. Whether the other is to be read again from now on.
    pub fn moved(
        &mut self,
        orders: &[KeyOrder],
        from: &KeyTexts,
        to: &KeyTexts,
        has_absent: bool,
    ) -> Result<bool, KeyError> {
        let was_left_out = self.again.contains(from);
        let is_left_out = was_left_out || (has_absent && !self.ranges.contains(orders, from)?);
        Ok(is_left_out && self.ranges.contains(orders, to)? && self.again.insert(to.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEGER: &[KeyOrder] = &[KeyOrder::Integer];

    fn key(text: &str) -> KeyTexts {
        vec![text.to_owned()]
    }

    fn through(text: &str) -> KeyRange {
        KeyRange { after: None, through: Some(key(text)) }
    }

    fn moved(cover: &mut Cover, from: &str, to: &str, has_absent: bool) -> bool {
        cover.moved(INTEGER, &key(from), &key(to), has_absent).unwrap()
    }

    #[test]
    fn a_row_that_the_sinks_cannot_make_is_read_again_by_its_key() {
        let mut cover = Cover::default();
        cover.emitted(INTEGER, &through("5")).unwrap();
        assert!(!moved(&mut cover, "1", "2", true), "they have it");
        assert!(!moved(&mut cover, "9", "3", false), "it came whole");
        assert!(!moved(&mut cover, "9", "7", true), "its chunk is still to come");
        assert!(moved(&mut cover, "9", "3", true));
        assert!(!moved(&mut cover, "8", "3", true), "once is enough");
        assert!(moved(&mut cover, "3", "4", false), "what they left out they can't move on");
        assert_eq!(
            cover.left(),
            [KeyRange { after: Some(key("5")), through: None }, KeyRange::of_key(key("3")), KeyRange::of_key(key("4"))]
        );
        cover.emitted(INTEGER, &KeyRange { after: Some(key("2")), through: Some(key("3")) }).unwrap();
        assert_eq!(cover.again, BTreeSet::from([key("4")]));
        assert!(!moved(&mut cover, "3", "1", true), "now they have it");
    }
}

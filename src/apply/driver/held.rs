//! How much of the ledger is read and not yet applied, in bytes. Pure.

use std::collections::VecDeque;

/// Most entries have some hundred bytes, and one may have half a MiB.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// Entries that wait to be applied, by their offsets.
#[derive(Debug, Default)]
pub struct Held {
    entries: VecDeque<(i64, usize)>,
    bytes: usize,
}

impl Held {
    pub fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX
    }

    pub fn read(&mut self, offset: i64, bytes: usize) {
        self.entries.push_back((offset, bytes));
        self.bytes += bytes;
    }

    /// Everything up to this entry is applied.
    pub fn applied(&mut self, offset: i64) {
        while let Some(&(first, bytes)) = self.entries.front()
            && first <= offset
        {
            self.entries.pop_front();
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_makes_room_while_more_waits() {
        let mut held = Held::default();
        held.read(1, BYTES_MAX / 2);
        held.read(2, BYTES_MAX / 2 - 1);
        assert!(!held.is_full());
        held.read(5, 1);
        assert!(held.is_full());
        held.applied(1);
        assert!(!held.is_full(), "{held:?}");
        held.read(6, BYTES_MAX);
        held.applied(5);
        assert!(held.is_full(), "{held:?}");
        held.applied(i64::MAX);
        assert_eq!((held.bytes, held.entries.len()), (0, 0));
    }
}

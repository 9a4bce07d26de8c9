//! The net effect of a batch of another program's changes: the last word on each key.
//!
//! Unlike [`Net`](crate::apply::net::Net) it takes nothing for granted of the rows that are there: records may be repetitions, and
//! a row may come again or go twice. A whole row is written whether it was there or not, a delete of none is none. Only a row
//! that came without all of its columns needs one that is there.

use std::collections::{HashMap, HashSet};

use crate::apply::net::{Moves, NetEffect, Updates};
use crate::change::Key;
use crate::value::RowBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Whole(RowBuf),
    /// Without some columns, of the row at this key.
    Part(RowBuf),
    /// Without some columns, of the row that was at another key.
    Moved(Key, RowBuf),
    Gone,
}

impl Word {
    /// Where its row was.
    fn left(&self) -> Option<&Key> {
        match self {
            Word::Moved(from, _) => Some(from),
            _ => None,
        }
    }
}

/// A row without all of its columns, of which nothing is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing;

#[derive(Debug, Default)]
pub struct Latest {
    truncated: bool,
    words: HashMap<Key, Word>,
}

impl Latest {
    pub fn is_empty(&self) -> bool {
        !self.truncated && self.words.is_empty()
    }

    pub fn truncate(&mut self) {
        self.words.clear();
        self.truncated = true;
    }

    /// The row at this key is this one.
    pub fn put(&mut self, key: Key, row: RowBuf) -> Result<(), Missing> {
        let word = match (row.row().has_absent(), self.words.remove(&key)) {
            (true, Some(Word::Whole(before))) => Word::Whole(before.merged(row.row())),
            (true, Some(Word::Part(before))) => Word::Part(before.merged(row.row())),
            (true, Some(Word::Moved(from, before))) => self.moved(from, before.merged(row.row())),
            (true, Some(Word::Gone)) => return Err(Missing),
            (true, None) if self.truncated => return Err(Missing),
            (true, None) => Word::Part(row),
            (false, Some(Word::Moved(from, _))) => {
                self.words.entry(from).or_insert(Word::Gone);
                Word::Whole(row)
            }
            (false, _) => Word::Whole(row),
        };
        self.words.insert(key, word);
        Ok(())
    }

    /// One that has all of its columns by now needs the old row no more.
    fn moved(&mut self, from: Key, row: RowBuf) -> Word {
        match row.row().has_absent() {
            true => Word::Moved(from, row),
            false => {
                self.words.entry(from).or_insert(Word::Gone);
                Word::Whole(row)
            }
        }
    }

    /// There is no row at this key.
    pub fn remove(&mut self, key: Key) {
        if let Some(Word::Moved(from, _)) = self.words.remove(&key) {
            self.words.entry(from).or_insert(Word::Gone);
        }
        self.words.insert(key, Word::Gone);
    }

    /// The row at `old` is this one, at `new`, and keeps what did not come. Only one move takes a batch: what else would be
    /// about one of its keys has to be written before. `false`: nothing was done.
    pub fn rekey(&mut self, old: Key, new: Key, row: RowBuf) -> Result<bool, Missing> {
        let of_others =
            self.words.values().any(|word| matches!(word, Word::Moved(from, _) if *from == new || *from == old));
        if of_others || self.words.contains_key(&new) {
            return Ok(false);
        }
        let word = match self.words.get(&old) {
            None if self.truncated => return Err(Missing),
            None => Word::Moved(old.clone(), row),
            Some(Word::Whole(before)) => {
                let whole = before.merged(row.row());
                self.remove(old);
                Word::Whole(whole)
            }
            Some(_) => return Ok(false),
        };
        self.words.insert(new, word);
        Ok(true)
    }

    /// What it comes to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        let mut net = NetEffect { truncate: std::mem::take(&mut self.truncated), ..NetEffect::default() };
        let (mut updates, mut moves) =
            (HashMap::<Vec<usize>, Vec<RowBuf>>::new(), HashMap::<Vec<usize>, Vec<_>>::new());
        let columns =
            |row: &RowBuf| (0..row.row().len()).filter(|i| !row.row().get(*i).is_absent()).collect::<Vec<_>>();
        let left: HashSet<Key> = self.words.values().filter_map(|word| word.left().cloned()).collect();
        for (key, word) in self.words.drain() {
            match word {
                Word::Whole(row) => net.inserts.push(row),
                Word::Part(row) => updates.entry(columns(&row)).or_default().push(row),
                Word::Moved(from, row) => moves.entry(columns(&row)).or_default().push((from, row)),
                Word::Gone if net.truncate => {}
                // The row that moves from there goes by itself, and deletes come before moves.
                Word::Gone if left.contains(&key) => {}
                Word::Gone => net.deletes.push(key),
            }
        }
        net.updates = updates.into_iter().map(|(columns, rows)| Updates { columns, rows }).collect();
        net.moves = moves.into_iter().map(|(columns, rows)| Moves { columns, rows }).collect();
        net
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Cell;

    fn row(cells: &[&str]) -> RowBuf {
        let cell = |text: &&'static str| if *text == "?" { Cell::Absent } else { Cell::Text(text.as_bytes()) };
        let cells: Vec<&'static str> = cells.iter().map(|text| &*text.to_string().leak()).collect();
        cells.iter().map(cell).collect()
    }

    fn key(text: &str) -> Key {
        Key::of(row(&[text]).row(), &[0]).unwrap()
    }

    #[test]
    fn the_last_word_on_a_key_counts_and_repetitions_change_nothing() {
        let mut latest = Latest::default();
        let words = |latest: &mut Latest| {
            latest.put(key("1"), row(&["1", "a"])).unwrap();
            latest.put(key("1"), row(&["1", "b"])).unwrap();
            latest.remove(key("2"));
            latest.remove(key("3"));
            latest.put(key("3"), row(&["3", "c"])).unwrap();
            latest.put(key("4"), row(&["4", "?"])).unwrap();
            latest.put(key("3"), row(&["3", "?"])).unwrap();
        };
        words(&mut latest);
        words(&mut latest);
        let mut net = latest.drain();
        net.inserts.sort_by_key(|row| row.row().get(0).text().unwrap().to_vec());
        assert_eq!(net.inserts, [row(&["1", "b"]), row(&["3", "c"])]);
        assert_eq!(net.deletes, [key("2")]);
        assert_eq!(net.updates, [Updates { columns: vec![0], rows: vec![row(&["4", "?"])] }]);
        assert!(latest.is_empty() && latest.drain().is_empty());
    }

    #[test]
    fn what_lacks_columns_needs_a_row() {
        let mut latest = Latest::default();
        latest.remove(key("1"));
        assert_eq!(latest.put(key("1"), row(&["1", "?"])), Err(Missing));
        latest.truncate();
        assert_eq!(latest.put(key("2"), row(&["2", "?"])), Err(Missing));
        assert_eq!(latest.rekey(key("2"), key("3"), row(&["3", "?"])), Err(Missing));
    }

    #[test]
    fn a_row_that_moves_keeps_what_did_not_come() {
        let mut latest = Latest::default();
        assert_eq!(latest.rekey(key("1"), key("2"), row(&["2", "?"])), Ok(true));
        assert_eq!(latest.rekey(key("2"), key("3"), row(&["3", "?"])), Ok(false), "written by itself");
        let net = latest.drain();
        assert_eq!(net.moves, [Moves { columns: vec![0], rows: vec![(key("1"), row(&["2", "?"]))] }]);
        assert_eq!((net.deletes.len(), net.inserts.len()), (0, 0));
        latest.put(key("1"), row(&["1", "big"])).unwrap();
        assert_eq!(latest.rekey(key("1"), key("2"), row(&["2", "?"])), Ok(true));
        let net = latest.drain();
        assert_eq!((net.inserts, net.deletes), (vec![row(&["2", "big"])], vec![key("1")]));
        latest.remove(key("2"));
        assert_eq!(latest.rekey(key("1"), key("2"), row(&["2", "?"])), Ok(false), "what is gone there goes first");
        assert_eq!(latest.drain().deletes, [key("2")]);
        latest.rekey(key("1"), key("2"), row(&["2", "?"])).unwrap();
        latest.put(key("1"), row(&["1", "again"])).unwrap();
        latest.remove(key("1"));
        let net = latest.drain();
        assert_eq!((net.moves.len(), net.deletes), (1, vec![]), "its row is at the other key by then");
        latest.rekey(key("1"), key("2"), row(&["2", "?"])).unwrap();
        latest.remove(key("2"));
        let mut gone = latest.drain().deletes;
        gone.sort();
        assert_eq!(gone, [key("1"), key("2")]);
    }
}

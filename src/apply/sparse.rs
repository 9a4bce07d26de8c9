//! The net effect of changes of a table that lacks rows, because those that were there before it was followed were never read.
//!
//! A change of a row that the sink does not have is left out, and which rows it has only the sink knows. So nothing may be folded
//! whose outcome depends on that: a delete and an insert of one key are an update elsewhere, which would pass a missing row over
//! although the insert made it. Here a change of a row that this batch has already touched waits until what is pending is
//! written; only a further update of the row is folded into it, which is left out, or not, together with what is before it.
//!
//! Rows without a key are told apart by all they hold: there, runs of inserts are folded and every other change is written by
//! itself.

use std::collections::HashSet;

use super::fold::Fold;
use super::net::{Folded, NetEffect};
use crate::change::{Key, Op};
use crate::error::Result;

#[derive(Debug)]
pub struct Sparse {
    fold: Box<Fold>,
    touched: HashSet<Key>,
    /// Nothing but inserts is pending.
    only_new: bool,
}

impl Sparse {
    pub fn new(fold: Fold) -> Sparse {
        Sparse { fold: Box::new(fold), touched: HashSet::new(), only_new: true }
    }

    /// Takes in the next change of the stream.
    pub fn fold(&mut self, op: Op) -> Result<Folded> {
        if matches!(op, Op::Truncate) {
            // From here on the batch knows of every row.
            self.touched.clear();
            return self.fold.fold(op);
        }
        let (keys, is_new) = (self.fold.keys(&op)?, matches!(op, Op::Insert(_)));
        let waits = match matches!(*self.fold, Fold::Keyless(_)) {
            true => self.fold.rows() > 0 && !(is_new && self.only_new),
            false => !matches!(op, Op::Update(_)) && keys.iter().any(|key| self.touched.contains(key)),
        };
        if waits {
            return Ok(Folded::FlushFirst(op));
        }
        let folded = self.fold.fold(op)?;
        if folded == Folded::Done {
            self.touched.extend(keys);
            self.only_new &= is_new;
        }
        Ok(folded)
    }

    /// What the changes since the last drain come to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        self.touched.clear();
        self.only_new = true;
        self.fold.drain()
    }

    pub fn keys(&self, op: &Op) -> Result<Vec<Key>> {
        self.fold.keys(op)
    }

    pub fn rows(&self) -> usize {
        self.fold.rows()
    }

    pub fn bytes(&self) -> usize {
        self.fold.bytes() + self.touched.len() * size_of::<Key>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::apply::bag::Bag;
    use crate::apply::net::Net;
    use crate::relation::TableName;
    use crate::value::{Cell, RowBuf};

    /// Value by key.
    type Table = BTreeMap<u8, u8>;

    fn row(key: u8, value: u8) -> RowBuf {
        [Cell::Text(&[b'0' + key]), Cell::Text(&[b'0' + value])].into_iter().collect()
    }

    fn digit(row: &RowBuf, column: usize) -> u8 {
        row.row().get(column).text().unwrap()[0] - b'0'
    }

    fn key(key: &Key) -> u8 {
        key.cells().next().unwrap().text().unwrap()[0] - b'0'
    }

    /// What the source can do, by what it has: no insert of a row that is there, no change of one that is not.
    fn change(source: &mut Table, (kind, a, b): (u8, u8, u8)) -> Option<Op> {
        let there = source.contains_key(&a);
        match kind {
            0 if !there => {
                source.insert(a, b);
                Some(Op::Insert(row(a, b)))
            }
            1 if there => {
                source.insert(a, b);
                Some(Op::Update(row(a, b)))
            }
            2 if there => {
                source.remove(&a);
                Some(Op::Delete(row(a, 0)))
            }
            3 if there && !source.contains_key(&b) => {
                let value = source.remove(&a).unwrap();
                source.insert(b, value);
                Some(Op::Rekey { old: row(a, 0), new: row(b, value) })
            }
            4 if a == 0 => {
                source.clear();
                Some(Op::Truncate)
            }
            _ => None,
        }
    }

    /// One change as a sink does it that leaves out what it does not have.
    fn one(sink: &mut Table, op: &Op) {
        match op {
            Op::Insert(row) => put(sink, row),
            Op::Update(row) => change_value(sink, row),
            Op::Delete(row) => take(sink, digit(row, 0)),
            Op::Rekey { old, new } => {
                if sink.remove(&digit(old, 0)).is_some() {
                    put(sink, new);
                }
            }
            Op::Truncate => sink.clear(),
        }
    }

    /// A net effect as such a sink writes it.
    fn all(sink: &mut Table, net: NetEffect) {
        if net.truncate {
            sink.clear();
        }
        net.deletes.iter().for_each(|deleted| take(sink, key(deleted)));
        let moves = net.moves.iter().flat_map(|moves| &moves.rows);
        let there: Vec<_> = moves.filter(|(from, _)| sink.contains_key(&key(from))).collect();
        there.iter().for_each(|(from, _)| take(sink, key(from)));
        there.iter().for_each(|(_, row)| put(sink, row));
        net.updates.iter().flat_map(|updates| &updates.rows).for_each(|row| change_value(sink, row));
        net.inserts.iter().for_each(|row| put(sink, row));
    }

    fn put(sink: &mut Table, row: &RowBuf) {
        sink.insert(digit(row, 0), digit(row, 1));
    }

    fn take(sink: &mut Table, key: u8) {
        sink.remove(&key);
    }

    fn change_value(sink: &mut Table, row: &RowBuf) {
        sink.entry(digit(row, 0)).and_modify(|value| *value = digit(row, 1));
    }

    fn sparse() -> Sparse {
        Sparse::new(Fold::Keyed(Net::new(TableName::new("public", "t"), vec![0, 1], vec![0])))
    }

    fn folded(sink: &mut Table, ops: &[Op], mut fold: Sparse) {
        for op in ops {
            let mut op = op.clone();
            while let Folded::FlushFirst(again) = fold.fold(op).unwrap() {
                all(sink, fold.drain());
                op = again;
            }
        }
        all(sink, fold.drain());
    }

    #[test]
    fn a_row_that_was_missing_and_is_made_again_is_there() {
        let mut sink = Table::new();
        folded(&mut sink, &[Op::Delete(row(1, 0)), Op::Insert(row(1, 5))], sparse());
        assert_eq!(sink, Table::from([(1, 5)]));
    }

    #[test]
    fn without_a_key_only_inserts_are_folded() {
        let mut fold = Sparse::new(Fold::Keyless(Bag::new(TableName::new("public", "t"), vec![0, 1])));
        assert_eq!(fold.fold(Op::Insert(row(1, 1))).unwrap(), Folded::Done);
        assert_eq!(fold.fold(Op::Insert(row(1, 1))).unwrap(), Folded::Done);
        let deleted = Op::Delete(row(1, 1));
        assert_eq!(fold.fold(deleted.clone()).unwrap(), Folded::FlushFirst(deleted.clone()));
        assert_eq!(fold.drain().inserts.len(), 2);
        assert_eq!(fold.fold(deleted).unwrap(), Folded::Done);
        let made = Op::Insert(row(1, 1));
        assert_eq!(fold.fold(made.clone()).unwrap(), Folded::FlushFirst(made));
    }

    proptest! {
        #[test]
        fn what_is_folded_is_what_one_by_one_comes_to(
            before in proptest::collection::btree_map(0u8..6, 0u8..9, 0..6),
            has in proptest::collection::vec(any::<bool>(), 6),
            changes in proptest::collection::vec((0u8..5, 0u8..6, 0u8..6), 0..30),
        ) {
            let mut source = before.clone();
            let ops: Vec<Op> = changes.into_iter().filter_map(|c| change(&mut source, c)).collect();
            let start: Table = before.into_iter().filter(|(key, _)| has[usize::from(*key)]).collect();
            let (mut single, mut batch) = (start.clone(), start);
            ops.iter().for_each(|op| one(&mut single, op));
            folded(&mut batch, &ops, sparse());
            prop_assert_eq!(single, batch);
        }
    }
}

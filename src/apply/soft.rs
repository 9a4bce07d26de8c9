//! The net effect of changes of a table whose deleted rows stay at the sink, marked (`delete = "soft"`).
//!
//! The mark is one more column behind the relation's: [`marked`] gives every change its cell there. Then a delete is an update
//! that marks, an insert writes a row without a mark, over a marked one if there is one, and a key change is both: the old
//! key's row is marked, the new key's comes to life. So no row is ever deleted, nothing that the service hangs on a row is
//! refused or taken along, and who reads changes of keys sees what other consumers of the topic see.
//!
//! What is written does not depend on where batches end: a row that is inserted and deleted within one is written with its
//! mark, and a marked row holds what it held last. [`net`](super::net) may forget both.
//!
//! Where a key change lacks a column that was not sent, the new row takes it from the old one ([`NetEffect::moves`]), which must
//! be in the database for it as it was before the batch: then what is pending is written first. Updates (and so marks) are written
//! before moves, those before inserts.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::net::{Folded, Groups, Moves, NetEffect, Shape, Updates};
use crate::change::{Key, Op};
use crate::error::{Error, Result};
use crate::pgtext::{Stamp, push_timestamptz};
use crate::relation::TableName;
use crate::value::{Cell, RowBuf};

/// The change with the cell of the mark behind its rows: when the transaction was committed, for rows that it ends.
pub fn marked(op: Op, commit_time_us: Option<i64>) -> Op {
    let with = |mut row: RowBuf, cell: Cell<'_>| {
        row.push(cell);
        row
    };
    let ended = |row: RowBuf| {
        let mut text = Vec::new();
        let time = commit_time_us.expect("what ends rows is read with its commit time");
        push_timestamptz(&mut text, Stamp::from_micros(time));
        with(row, Cell::Text(&text))
    };
    match op {
        Op::Insert(row) => Op::Insert(with(row, Cell::Null)),
        Op::Update(row) => Op::Update(with(row, Cell::Absent)),
        Op::Delete(row) => Op::Delete(ended(row)),
        Op::Rekey { old, new } => Op::Rekey { old: ended(old), new: with(new, Cell::Null) },
        Op::Truncate => Op::Truncate,
    }
}

/// Where a row of this batch comes from.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// Not alive in the database; to be inserted.
    New,
    /// Alive in the database under its key.
    There,
    /// What the batch does not tell of it is in the row of this key.
    From(Key),
}

#[derive(Debug)]
struct Slot {
    origin: Origin,
    row: RowBuf,
    /// A row that is made from this one is pending.
    read: bool,
}

const SLOT_BYTES: usize = size_of::<Slot>() + size_of::<(Key, usize)>();

/// Folds the changes of one table at one relation version.
#[derive(Debug)]
pub struct Soft {
    shape: Shape,
    /// The column of the mark.
    mark: usize,
    truncate: bool,
    slots: Vec<Slot>,
    /// Equal keys are equal texts. Where they are not, what one text of a key comes to may be undone by what another one does, so
    /// each has its turn: a row that the batch has touched is not ended or made again in it.
    exact: bool,
    /// Slots by key. Seeded anew, since keys are users' data; no result depends on it.
    at: HashMap<Key, usize, RandomState>,
    bytes: usize,
}

impl Soft {
    /// `table` is named in errors; `wanted` are the columns that the sink takes, `mark` among them, `key` the key's in key order.
    /// `exact`: equal keys are equal texts.
    pub fn new(table: TableName, wanted: Vec<usize>, key: Vec<usize>, (mark, exact): (usize, bool)) -> Soft {
        assert!(
            wanted.contains(&mark) && !key.contains(&mark),
            "the mark is a column of the sink's, and not of the key"
        );
        let shape = Shape::new(table, wanted, key);
        Soft { shape, mark, truncate: false, slots: Vec::new(), exact, at: HashMap::default(), bytes: 0 }
    }

    pub fn rows(&self) -> usize {
        self.slots.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes in the next change of the stream.
    pub fn fold(&mut self, op: Op) -> Result<Folded> {
        let again = || Ok::<bool, Error>(self.keys(&op)?.iter().any(|key| self.at.contains_key(key)));
        if !self.exact && !matches!(op, Op::Update(_)) && again()? {
            return Ok(Folded::FlushFirst(op));
        }
        match op {
            Op::Insert(row) => return self.insert(row),
            Op::Update(row) => self.update(row)?,
            Op::Delete(row) => self.delete(row)?,
            Op::Rekey { old, new } => return self.rekey(old, new),
            Op::Truncate => {
                self.clear();
                self.truncate = true;
            }
        }
        Ok(Folded::Done)
    }

    /// The keys that a change speaks of: of the row as it was, and as it is.
    pub fn keys(&self, op: &Op) -> Result<Vec<Key>> {
        self.shape.keys(op)
    }

    /// What the changes since the last drain come to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        let mut net = NetEffect { truncate: self.truncate, ..NetEffect::default() };
        let mut updates: Groups<RowBuf> = Groups::default();
        let mut moves: Groups<(Key, RowBuf)> = Groups::default();
        for Slot { origin, row, .. } in std::mem::take(&mut self.slots) {
            match origin {
                Origin::New => net.inserts.push(row),
                Origin::There => updates.push(&self.shape.wanted, row, |row| row),
                Origin::From(old) => moves.push(&self.shape.wanted, row, |row| (old, row)),
            }
        }
        let carries = |(columns, _): &(Vec<usize>, Vec<RowBuf>)| columns.len() > self.shape.key.len();
        let updates = updates.groups.into_iter().filter(carries);
        net.updates = updates.map(|(columns, rows)| Updates { columns, rows }).collect();
        net.moves = moves.groups.into_iter().map(|(columns, rows)| Moves { columns, rows }).collect();
        self.clear();
        net
    }

    fn insert(&mut self, row: RowBuf) -> Result<Folded> {
        let at = self.shape.key_of(&row)?;
        self.shape.complete(&row)?;
        match self.at.get(&at).copied() {
            None => self.add(at, Origin::New, row),
            Some(slot) if !self.is_marked(slot) => {
                return Err(self.shape.contradiction("an insert of a row that is there"));
            }
            Some(slot) if self.slots[slot].read => return Ok(Folded::FlushFirst(Op::Insert(row))),
            Some(slot) => self.set(slot, row),
        }
        Ok(Folded::Done)
    }

    fn update(&mut self, row: RowBuf) -> Result<()> {
        let at = self.shape.key_of(&row)?;
        self.change(at, &row, "an update of a row that is not there")
    }

    fn delete(&mut self, row: RowBuf) -> Result<()> {
        let at = self.shape.key_of(&row)?;
        let mark = self.only_marks(&row);
        self.change(at, &mark, "a delete of a row that is not there")
    }

    /// The old row's other columns are not to be written.
    fn only_marks(&self, row: &RowBuf) -> RowBuf {
        let stays = |(i, cell)| if i == self.mark || self.shape.key.contains(&i) { cell } else { Cell::Absent };
        row.row().iter().enumerate().map(stays).collect()
    }

    /// Changes a row that is alive.
    fn change(&mut self, at: Key, row: &RowBuf, otherwise: &str) -> Result<()> {
        match self.at.get(&at).copied() {
            Some(slot) if self.is_marked(slot) => return Err(self.shape.contradiction(otherwise)),
            Some(slot) => self.set(slot, self.slots[slot].row.merged(row.row())),
            None if self.truncate => return Err(self.shape.contradiction(otherwise)),
            None => self.add(at, Origin::There, row.clone()),
        }
        Ok(())
    }

    fn rekey(&mut self, old: RowBuf, new: RowBuf) -> Result<Folded> {
        const GONE: &str = "a key change of a row that is not there";
        let (from, to) = (self.shape.key_of(&old)?, self.shape.key_of(&new)?);
        if from == to {
            self.change(to, &new, GONE)?;
            return Ok(Folded::Done);
        }
        let (at_from, at_to) = (self.at.get(&from).copied(), self.at.get(&to).copied());
        if at_to.is_some_and(|slot| !self.is_marked(slot)) {
            return Err(self.shape.contradiction("a key change to the key of a row that is there"));
        }
        if at_to.is_some_and(|slot| self.slots[slot].read) {
            return Ok(Folded::FlushFirst(Op::Rekey { old, new }));
        }
        let known = at_from.map(|slot| self.slots[slot].row.merged(new.row()));
        let whole = known.unwrap_or_else(|| new.clone());
        if self.shape.complete(&whole).is_ok() {
            self.change(from, &self.only_marks(&old), GONE)?;
            return self.insert(whole);
        }
        if at_from.is_some() || at_to.is_some() {
            return Ok(Folded::FlushFirst(Op::Rekey { old, new }));
        }
        self.change(from.clone(), &self.only_marks(&old), GONE)?;
        let slot = self.at[&from];
        self.slots[slot].read = true;
        self.add(to, Origin::From(from), new);
        Ok(Folded::Done)
    }

    fn is_marked(&self, slot: usize) -> bool {
        self.slots[slot].row.row().get(self.mark).text().is_some()
    }

    fn add(&mut self, at: Key, origin: Origin, row: RowBuf) {
        self.bytes += SLOT_BYTES + 2 * at.bytes() + row.bytes();
        self.at.insert(at, self.slots.len());
        self.slots.push(Slot { origin, row, read: false });
    }

    fn set(&mut self, slot: usize, row: RowBuf) {
        self.bytes += row.bytes();
        self.bytes -= std::mem::replace(&mut self.slots[slot].row, row).bytes();
    }

    fn clear(&mut self) {
        self.truncate = false;
        self.slots.clear();
        self.at.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KEY: usize = 0;
    const MARK: usize = 3;

    /// A small and a big column, and the mark, by key.
    type Table = BTreeMap<u8, [Option<u8>; 3]>;

    fn soft() -> Soft {
        Soft::new(TableName::new("public", "t"), vec![0, 1, 2, MARK], vec![KEY], (MARK, true))
    }

    fn row(key: u8, small: Option<u8>, big: Option<u8>) -> RowBuf {
        let mut row = RowBuf::new();
        row.push(Cell::Text(&[key]));
        for value in [small, big] {
            row.push(value.as_ref().map_or(Cell::Absent, |value| Cell::Text(std::slice::from_ref(value))));
        }
        row
    }

    fn cell(row: &RowBuf, column: usize) -> u8 {
        row.row().get(column).text().unwrap()[0]
    }

    /// The mark's text is that of its time: the last digit of its seconds is what is compared.
    fn mark_of(row: &RowBuf) -> Option<u8> {
        row.row().get(MARK).text().map(|text| text[18])
    }

    fn write(table: &mut Table, key: u8, row: &RowBuf) {
        let held = table.entry(key).or_default();
        for column in [1, 2] {
            if !row.row().get(column).is_absent() {
                held[column - 1] = Some(cell(row, column));
            }
        }
        if !row.row().get(MARK).is_absent() {
            held[2] = mark_of(row);
        }
    }

    fn alive(table: &Table, key: u8) -> bool {
        table.get(&key).is_some_and(|held| held[2].is_none())
    }

    /// A net effect as a sink writes it; every row that it names must be as it says.
    fn apply(table: &mut Table, net: NetEffect) {
        assert!(net.deletes.is_empty(), "nothing is ever deleted");
        for row in net.updates.iter().flat_map(|updates| &updates.rows) {
            assert!(alive(table, cell(row, KEY)), "an update of a row that is marked");
            write(table, cell(row, KEY), row);
        }
        for (old, new) in net.moves.iter().flat_map(|moves| &moves.rows) {
            let base = table[&old.cells().next().unwrap().text().unwrap()[0]];
            assert!(!alive(table, cell(new, KEY)), "a key change to a row that is alive");
            table.insert(cell(new, KEY), [base[0], base[1], None]);
            write(table, cell(new, KEY), new);
        }
        for row in &net.inserts {
            assert!(!alive(table, cell(row, KEY)), "an insert of a row that is alive");
            write(table, cell(row, KEY), row);
        }
    }

    /// What the source can do, by what it has.
    fn possible(source: &mut BTreeMap<u8, ()>, (kind, a, b, v, big): (u8, u8, u8, u8, bool)) -> Option<Op> {
        let (there, big) = (source.contains_key(&a), big.then_some(v));
        match kind {
            0 if !there => {
                source.insert(a, ());
                Some(Op::Insert(row(a, Some(v), Some(v))))
            }
            1 if there => Some(Op::Update(row(a, Some(v), big))),
            2 if there => {
                source.remove(&a);
                Some(Op::Delete(row(a, None, None)))
            }
            3 if there && !source.contains_key(&b) => {
                source.remove(&a);
                source.insert(b, ());
                Some(Op::Rekey { old: row(a, None, None), new: row(b, Some(v), big) })
            }
            _ => None,
        }
    }

    fn fold(table: &mut Table, soft: &mut Soft, op: Op) {
        let mut op = op;
        while let Folded::FlushFirst(again) = soft.fold(op).unwrap() {
            assert!(soft.rows() > 0, "it would never end");
            apply(table, soft.drain());
            op = again;
        }
    }

    proptest! {
        #[test]
        fn whatever_is_folded_leaves_what_the_changes_one_by_one_leave(
            before in proptest::collection::btree_set(0u8..5, 0..5),
            changes in proptest::collection::vec((0u8..4, 0u8..5, 0u8..5, any::<u8>(), any::<bool>()), 0..25),
        ) {
            let mut source: BTreeMap<u8, ()> = before.iter().map(|key| (*key, ())).collect();
            let start: Table = before.iter().map(|key| (*key, [Some(*key), Some(*key), None])).collect();
            let (mut single, mut batch, mut all) = (start.clone(), start, soft());
            for (i, change) in changes.into_iter().enumerate() {
                let Some(op) = possible(&mut source, change) else { continue };
                let op = marked(op, Some(i64::try_from(i).unwrap() * 1_000_000));
                let mut one = soft();
                fold(&mut single, &mut one, op.clone());
                apply(&mut single, one.drain());
                fold(&mut batch, &mut all, op);
            }
            apply(&mut batch, all.drain());
            prop_assert_eq!(&single, &batch);
            prop_assert_eq!(batch.keys().filter(|key| alive(&batch, **key)).count(), source.len());
        }
    }

    #[test]
    fn what_contradicts_itself_is_no_state_of_the_source() {
        let (insert, update, delete) =
            (Op::Insert(row(1, Some(1), Some(1))), Op::Update(row(1, Some(2), None)), Op::Delete(row(1, None, None)));
        for (first, second) in [(&insert, &insert), (&delete, &update), (&delete, &delete), (&update, &insert)] {
            let mut soft = soft();
            assert_eq!(soft.fold(marked(first.clone(), Some(0))).unwrap(), Folded::Done);
            assert!(soft.fold(marked(second.clone(), Some(0))).is_err(), "{first:?} {second:?}");
        }
    }

    #[test]
    fn bytes_come_to_nothing_in_the_end() {
        let mut soft = soft();
        for op in
            [Op::Insert(row(1, Some(1), Some(1))), Op::Update(row(1, Some(2), None)), Op::Delete(row(1, None, None))]
        {
            soft.fold(marked(op, Some(0))).unwrap();
        }
        assert!(soft.bytes() > 0 && soft.rows() == 1);
        let net = soft.drain();
        assert_eq!((soft.bytes(), soft.rows(), net.inserts.len()), (0, 0, 1));
        assert_eq!((cell(&net.inserts[0], 1), mark_of(&net.inserts[0])), (2, Some(b'0')), "as it was last, and marked");
    }
}

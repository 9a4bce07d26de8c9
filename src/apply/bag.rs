//! The net effect of changes of a table without a key, where rows are what they hold: n equal rows are n rows, and a delete
//! takes one of them.
//!
//! Whatever happens, a row of the database is followed from what it held to what it holds at the end, so a row that lives on
//! is updated, never deleted and made again: columns that the sink keeps for itself survive. Which of several equal rows is
//! taken does not matter. All old rows named here are rows of the database before the batch, so deletes and moves never stand
//! in each other's way.
//!
//! The stream carries whole rows (REPLICA IDENTITY FULL); an old row that the database does not hold shows at the sink, where
//! rows are counted.

use std::collections::HashMap;

use super::net::{Moves, NetEffect};
use crate::change::{Key, Op};
use crate::error::{Code, Error, Result};
use crate::relation::TableName;
use crate::value::RowBuf;

#[derive(Debug)]
struct Slot {
    /// What the row held in the database; `None` for a new one.
    from: Option<Key>,
    /// `None` once it is gone.
    now: Option<RowBuf>,
}

/// Per row: the slot, its number in the table of rows.
const SLOT_BYTES: usize = size_of::<Slot>() + 2 * size_of::<usize>();

/// Folds the changes of one table without a key at one relation version.
#[derive(Debug)]
pub struct Bag {
    table: TableName,
    /// Columns of the relation that the sink takes, ascending.
    wanted: Vec<usize>,
    truncate: bool,
    slots: Vec<Slot>,
    /// Slots by what their rows hold now.
    live: HashMap<Key, Vec<usize>>,
    bytes: usize,
}

impl Bag {
    pub fn new(table: TableName, mut wanted: Vec<usize>) -> Bag {
        wanted.sort_unstable();
        Bag { table, wanted, truncate: false, slots: Vec::new(), live: HashMap::new(), bytes: 0 }
    }

    /// Rows held, an upper bound of what [`Bag::drain`] gives.
    pub fn rows(&self) -> usize {
        self.slots.len()
    }

    /// Heap bytes held, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && !self.truncate
    }

    /// Takes in the next change of the stream.
    pub fn fold(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Insert(row) => {
                let at = self.image(&row)?;
                self.add(None, Some((at, row)));
            }
            Op::Delete(old) => {
                let from = self.image(&old)?;
                match self.take(&from) {
                    Some(slot) => self.slots[slot].now = None,
                    None => {
                        self.of_database("a delete of a row that is not there")?;
                        self.add(Some(from), None);
                    }
                }
            }
            Op::Rekey { old, new } => {
                let (from, at) = (self.image(&old)?, self.image(&new)?);
                match self.take(&from) {
                    Some(slot) => self.settle(slot, at, new),
                    None => {
                        self.of_database("an update of a row that is not there")?;
                        self.add(Some(from), Some((at, new)));
                    }
                }
            }
            Op::Truncate => {
                self.clear();
                self.truncate = true;
            }
            Op::Update(_) => return Err(self.incomplete()),
        }
        Ok(())
    }

    /// What the changes since the last drain come to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        let mut net = NetEffect { truncate: self.truncate, ..NetEffect::default() };
        let mut moved = Vec::new();
        for Slot { from, now } in std::mem::take(&mut self.slots) {
            match (from, now) {
                (None, Some(row)) => net.inserts.push(row),
                (Some(from), None) => net.deletes.push(from),
                (Some(from), Some(row)) => {
                    if Key::whole(row.row(), &self.wanted).as_ref() != Some(&from) {
                        moved.push((from, row));
                    }
                }
                (None, None) => {}
            }
        }
        if !moved.is_empty() {
            net.moves.push(Moves { columns: self.wanted.clone(), rows: moved });
        }
        self.clear();
        net
    }

    fn image(&self, row: &RowBuf) -> Result<Key> {
        Key::whole(row.row(), &self.wanted).ok_or_else(|| self.incomplete())
    }

    /// After a truncate every row is one of this batch.
    fn of_database(&self, what: &str) -> Result<()> {
        if !self.truncate {
            return Ok(());
        }
        Err(Error::halt(
            Code::SinkDiverged,
            format!("changes of table {} contradict each other: {what}", self.table),
            format!("lockstep resync {}", self.table),
        ))
    }

    fn incomplete(&self) -> Error {
        Error::halt(
            Code::RecordInvalid,
            format!("a change of table {}, which has no key, does not carry the whole row", self.table),
            format!("lockstep resync {}", self.table),
        )
    }

    fn add(&mut self, from: Option<Key>, now: Option<(Key, RowBuf)>) {
        self.bytes += SLOT_BYTES + from.as_ref().map_or(0, Key::bytes);
        self.slots.push(Slot { from, now: None });
        if let Some((at, row)) = now {
            self.settle(self.slots.len() - 1, at, row);
        }
    }

    fn settle(&mut self, slot: usize, at: Key, row: RowBuf) {
        self.bytes += at.bytes() + row.bytes();
        self.slots[slot].now = Some(row);
        self.live.entry(at).or_default().push(slot);
    }

    /// A row of this batch that holds that now; it holds it no more.
    fn take(&mut self, at: &Key) -> Option<usize> {
        let slots = self.live.get_mut(at)?;
        let slot = slots.pop().expect("rows that hold nothing any more are not listed");
        if slots.is_empty() {
            self.live.remove(at);
        }
        let row = self.slots[slot].now.take().expect("a listed row is there");
        self.bytes -= at.bytes() + row.bytes();
        Some(slot)
    }

    fn clear(&mut self) {
        self.truncate = false;
        self.slots.clear();
        self.live.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::value::Cell;

    /// A row of two columns: a digit each, 0 is NULL.
    fn row(number: u8) -> RowBuf {
        let cell = |digit: u8| if digit == 0 { Cell::Null } else { Cell::Text(&b"0123456789"[digit.into()..][..1]) };
        [cell(number / 10), cell(number % 10), Cell::Absent].into_iter().collect()
    }

    fn number<'a>(cells: impl Iterator<Item = Cell<'a>>) -> u8 {
        cells.take(2).fold(0, |number, cell| number * 10 + cell.text().map_or(0, |text| text[0] - b'0'))
    }

    fn bag() -> Bag {
        Bag::new(TableName::new("public", "t"), vec![1, 0])
    }

    fn rekey(old: u8, new: u8) -> Op {
        Op::Rekey { old: row(old), new: row(new) }
    }

    fn net(ops: Vec<Op>) -> String {
        let mut bag = bag();
        ops.into_iter().for_each(|op| bag.fold(op).unwrap());
        let net = bag.drain();
        assert!(bag.is_empty() && bag.bytes() == 0 && bag.rows() == 0);
        let mut out: Vec<String> = net.truncate.then(|| "truncate".to_owned()).into_iter().collect();
        out.extend(net.deletes.iter().map(|key| format!("delete {}", number(key.cells()))));
        let moves = net.moves.iter().flat_map(|moves| &moves.rows);
        out.extend(moves.map(|(key, row)| format!("{} to {}", number(key.cells()), number(row.row().iter()))));
        out.extend(net.inserts.iter().map(|row| format!("insert {}", number(row.row().iter()))));
        out.join(", ")
    }

    #[test]
    fn a_row_that_lives_on_is_updated() {
        assert_eq!(net(vec![rekey(1, 2), rekey(2, 3)]), "1 to 3");
        assert_eq!(net(vec![rekey(1, 2), rekey(2, 1)]), "", "as it was");
        assert_eq!(net(vec![rekey(1, 2), Op::Delete(row(2))]), "delete 1");
        assert_eq!(net(vec![Op::Insert(row(1)), rekey(1, 2)]), "insert 2");
        assert_eq!(net(vec![Op::Delete(row(10)), Op::Delete(row(10))]), "delete 10, delete 10");
        assert_eq!(net(vec![rekey(1, 2), Op::Truncate, Op::Insert(row(7))]), "truncate, insert 7");
    }

    #[test]
    fn what_can_not_be_is_named() {
        let mut bag = bag();
        bag.fold(Op::Truncate).unwrap();
        assert_eq!(bag.fold(Op::Delete(row(1))).unwrap_err().code(), Some(Code::SinkDiverged));
        assert_eq!(bag.fold(Op::Update(row(1))).unwrap_err().code(), Some(Code::RecordInvalid));
        let part: RowBuf = [Cell::Null, Cell::Absent, Cell::Null].into_iter().collect();
        assert_eq!(bag.fold(Op::Insert(part)).unwrap_err().code(), Some(Code::RecordInvalid));
    }

    /// Rows and how many there are of each.
    type Model = BTreeMap<u8, usize>;

    fn remove(model: &mut Model, row: u8) {
        let count = model.get_mut(&row).expect("a row that is taken is there");
        *count -= 1;
        model.retain(|_, count| *count > 0);
    }

    fn write(model: &mut Model, net: NetEffect) {
        if net.truncate {
            model.clear();
        }
        net.deletes.iter().for_each(|key| remove(model, number(key.cells())));
        let moved: Vec<(Key, RowBuf)> = net.moves.into_iter().flat_map(|moves| moves.rows).collect();
        // One statement sees what was there before it.
        moved.iter().for_each(|(key, _)| remove(model, number(key.cells())));
        let made = moved.iter().map(|(_, row)| row).chain(&net.inserts);
        made.for_each(|row| *model.entry(number(row.row().iter())).or_default() += 1);
    }

    proptest! {
        #[test]
        fn the_net_effect_equals_the_changes_in_order(
            start in proptest::collection::vec(0..6u8, 0..8),
            raws in proptest::collection::vec((0..8u8, any::<u8>(), 0..6u8), 0..60),
            batch in 1..40usize,
        ) {
            let mut in_order = Model::new();
            start.iter().for_each(|row| *in_order.entry(*row).or_default() += 1);
            let (mut at_once, mut bag) = (in_order.clone(), bag());
            for (i, (kind, pick, new)) in raws.into_iter().enumerate() {
                let taken = in_order.keys().copied().nth(usize::from(pick) % in_order.len().max(1));
                let op = match (kind, taken) {
                    (0 | 1, Some(old)) => {
                        remove(&mut in_order, old);
                        Op::Delete(row(old))
                    }
                    (2..=4, Some(old)) => {
                        remove(&mut in_order, old);
                        *in_order.entry(new).or_default() += 1;
                        rekey(old, new)
                    }
                    (7, _) if pick < 16 => {
                        in_order.clear();
                        Op::Truncate
                    }
                    _ => {
                        *in_order.entry(new).or_default() += 1;
                        Op::Insert(row(new))
                    }
                };
                bag.fold(op).unwrap();
                if i % batch == 0 {
                    write(&mut at_once, bag.drain());
                    prop_assert_eq!(&at_once, &in_order);
                }
            }
            write(&mut at_once, bag.drain());
            prop_assert_eq!(at_once, in_order);
        }
    }
}

//! The net effect of a stream of changes of one table, so that thousands of changes become four statements.
//!
//! An interval is atomic at the sink, so only its end counts: per table what was deleted, moved, updated and inserted.
//! [`Net::fold`] takes changes in stream order, [`Net::drain`] gives what they come to. Writing that (truncate, deletes,
//! moves, updates, inserts, in this order and in any order within each) leaves the table exactly as the changes one by one
//! would have. The property tests below hold this against a model with immediate uniqueness of the key.
//!
//! Every row known here stands in one [`Place`]. The rules behind them:
//! - A row that lives on is never deleted, because ON DELETE actions of the service's own tables would fire: an insert at a
//!   key that was deleted here turns the delete into an update of all columns.
//! - A key change is one `UPDATE … SET key`, so that columns that were not sent survive.
//! - All moves run in one statement, against indexes that check row by row. So no move may go to a key that a row of this
//!   batch came from, and no row moves twice: then [`Folded::FlushFirst`] says that what is pending must be written first
//!   (in the same database transaction), which makes chains and swaps through temporary keys come out right.
//! - A stream that contradicts itself (an insert of a live key, an update of a deleted one) is `SINK_DIVERGED`, never
//!   repaired: the sink would no longer be a state of the source.
//!
//! Not here: uniqueness of other columns. A hand-over of a unique value between rows can clash inside the statements; the
//! driver then applies the same changes with parking on (`sink::park`), then one by one, in order, before it gives up. Also not
//! here: limits. [`Net::rows`] and [`Net::bytes`] are counted, the driver decides.

use std::collections::HashMap;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::change::{Key, Op};
use crate::error::{Code, Error, Result};
use crate::relation::TableName;
use crate::value::RowBuf;

/// What became of one change.
#[derive(Debug, PartialEq, Eq)]
pub enum Folded {
    Done,
    /// Nothing was taken in: drain, write that into the open transaction, then fold this change again.
    FlushFirst(Op),
}

/// What a batch of changes comes to. Written in the order of the fields; within a field the order does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetEffect {
    /// Rows that are named may not be there, because the table is being loaded: what falls short is no divergence.
    pub loading: bool,
    /// The table was emptied before everything else here.
    pub truncate: bool,
    /// Rows of the database that are gone.
    pub deletes: Vec<Key>,
    /// Rows that live on under another key.
    pub moves: Vec<Moves>,
    pub updates: Vec<Updates>,
    /// New rows, complete in the wanted columns, in the order in which they came.
    pub inserts: Vec<RowBuf>,
}

/// Rows to update, all with the same columns present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updates {
    /// Columns of the relation that the rows carry, ascending; the key's are among them.
    pub columns: Vec<usize>,
    /// Over all columns of the relation; the key says which row.
    pub rows: Vec<RowBuf>,
}

/// Rows to move, all with the same columns present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves {
    /// Columns of the relation that the rows carry, ascending; the key's are among them.
    pub columns: Vec<usize>,
    /// The key that the row has in the database, and the row with its new key.
    pub rows: Vec<(Key, RowBuf)>,
}

impl NetEffect {
    pub fn is_empty(&self) -> bool {
        !self.truncate
            && self.deletes.is_empty()
            && self.moves.is_empty()
            && self.updates.is_empty()
            && self.inserts.is_empty()
    }
}

/// Where a row of this batch comes from and where it is now. A key is `at` in at most one place and `from` in at most one.
#[derive(Debug)]
enum Place {
    /// Not in the database; to be inserted.
    New { at: Key },
    /// In the database under this key, changed.
    Kept { at: Key },
    /// In the database under `from`, now elsewhere.
    Moved { from: Key, at: Key },
    /// In the database under `from`, gone now.
    Deleted { from: Key },
    /// Inserted and deleted within the batch, or merged into another place.
    Nothing,
}

impl Place {
    fn at(&self) -> Option<&Key> {
        match self {
            Place::New { at } | Place::Kept { at } | Place::Moved { at, .. } => Some(at),
            Place::Deleted { .. } | Place::Nothing => None,
        }
    }

    /// The key in the database that this row no longer stands at.
    fn left(&self) -> Option<&Key> {
        match self {
            Place::Moved { from, .. } | Place::Deleted { from } => Some(from),
            Place::New { .. } | Place::Kept { .. } | Place::Nothing => None,
        }
    }

    fn bytes(&self) -> usize {
        self.at().map_or(0, Key::bytes) + self.left().map_or(0, Key::bytes)
    }
}

#[derive(Debug)]
struct Slot {
    place: Place,
    /// What is known of the row; empty once deleted.
    row: RowBuf,
}

/// Per row: the slot, its entry in a hash table.
const SLOT_BYTES: usize = size_of::<Slot>() + 2 * size_of::<usize>();

/// What the rows of a table are over.
#[derive(Debug)]
pub(super) struct Shape {
    /// Named in errors.
    table: TableName,
    /// Columns of the relation that the sink takes, ascending.
    pub wanted: Vec<usize>,
    /// The key's columns in key order.
    pub key: Vec<usize>,
}

impl Shape {
    pub(super) fn new(table: TableName, mut wanted: Vec<usize>, key: Vec<usize>) -> Shape {
        assert!(!key.is_empty() && key.iter().all(|k| wanted.contains(k)), "a sink takes at least the table's key");
        wanted.sort_unstable();
        Shape { table, wanted, key }
    }

    pub(super) fn key_of(&self, row: &RowBuf) -> Result<Key> {
        Key::of(row.row(), &self.key).ok_or_else(|| {
            Error::halt(
                Code::RecordInvalid,
                format!("a change of table {} carries no value for a column of its key", self.table),
                format!("lockstep resync {}", self.table),
            )
        })
    }

    /// As [`Net::keys`].
    pub(super) fn keys(&self, op: &Op) -> Result<Vec<Key>> {
        match op {
            Op::Insert(row) | Op::Update(row) | Op::Delete(row) => Ok(vec![self.key_of(row)?]),
            Op::Rekey { old, new } => Ok(vec![self.key_of(old)?, self.key_of(new)?]),
            Op::Truncate => Ok(Vec::new()),
        }
    }

    pub(super) fn complete(&self, row: &RowBuf) -> Result<()> {
        if self.wanted.iter().all(|&column| !row.row().get(column).is_absent()) {
            return Ok(());
        }
        Err(Error::halt(
            Code::AbsentBase,
            format!("a new row of table {} lacks a column that was never sent", self.table),
            format!("lockstep resync {}", self.table),
        ))
    }

    pub(super) fn contradiction(&self, what: &str) -> Error {
        Error::halt(
            Code::SinkDiverged,
            format!("changes of table {} contradict each other: {what}", self.table),
            format!("lockstep resync {}", self.table),
        )
    }
}

/// Folds the changes of one table at one relation version.
#[derive(Debug)]
pub struct Net {
    shape: Shape,
    truncate: bool,
    slots: Vec<Slot>,
    /// Slots by [`Place::at`].
    live: HashTable<usize>,
    /// Slots by [`Place::left`].
    left: HashTable<usize>,
    /// Seeded anew, since keys are users' data; no result depends on it.
    hasher: RandomState,
    bytes: usize,
}

impl Net {
    /// `table` is named in errors; `wanted` are the relation's columns that the sink takes, `key` the key's in key order.
    pub fn new(table: TableName, wanted: Vec<usize>, key: Vec<usize>) -> Net {
        Net {
            shape: Shape::new(table, wanted, key),
            truncate: false,
            slots: Vec::new(),
            live: HashTable::new(),
            left: HashTable::new(),
            hasher: RandomState::default(),
            bytes: 0,
        }
    }

    /// Rows held, an upper bound of what [`Net::drain`] gives.
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
    pub fn fold(&mut self, op: Op) -> Result<Folded> {
        match op {
            Op::Insert(row) => self.insert(row)?,
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
        for Slot { place, row } in std::mem::take(&mut self.slots) {
            match place {
                Place::New { .. } => net.inserts.push(row),
                Place::Kept { .. } => updates.push(&self.shape.wanted, row, |row| row),
                Place::Moved { from, .. } => moves.push(&self.shape.wanted, row, |row| (from, row)),
                Place::Deleted { from } => net.deletes.push(from),
                Place::Nothing => {}
            }
        }
        // A row that carries nothing but its key has nothing to write.
        let key_columns = self.shape.key.len();
        net.updates = updates
            .groups
            .into_iter()
            .filter(|(columns, _)| columns.len() > key_columns)
            .map(|(columns, rows)| Updates { columns, rows })
            .collect();
        net.moves = moves.groups.into_iter().map(|(columns, rows)| Moves { columns, rows }).collect();
        self.clear();
        net
    }

    fn insert(&mut self, row: RowBuf) -> Result<()> {
        let at = self.shape.key_of(&row)?;
        self.shape.complete(&row)?;
        if self.live_at(&at).is_some() {
            return Err(self.shape.contradiction("an insert of a row that is there"));
        }
        self.settle(at, row);
        Ok(())
    }

    /// A complete row comes to a free key: the row that was deleted there, if any, lives on.
    fn settle(&mut self, at: Key, row: RowBuf) {
        match self.left_from(&at) {
            Some(slot) if matches!(self.slots[slot].place, Place::Deleted { .. }) => {
                self.unplace(slot);
                self.place(slot, Place::Kept { at }, row);
            }
            _ => self.add(Place::New { at }, row),
        }
    }

    fn update(&mut self, row: RowBuf) -> Result<()> {
        let at = self.shape.key_of(&row)?;
        match self.live_at(&at) {
            Some(slot) => self.merge(slot, &row),
            None => {
                self.untouched(&at, "an update of a row that is not there")?;
                self.add(Place::Kept { at }, row);
            }
        }
        Ok(())
    }

    fn delete(&mut self, row: RowBuf) -> Result<()> {
        let at = self.shape.key_of(&row)?;
        let Some(slot) = self.live_at(&at) else {
            self.untouched(&at, "a delete of a row that is not there")?;
            self.add(Place::Deleted { from: at }, RowBuf::new());
            return Ok(());
        };
        match self.unplace(slot) {
            Place::New { .. } => {}
            Place::Kept { at: from } => self.place(slot, Place::Deleted { from }, RowBuf::new()),
            Place::Moved { from, .. } => self.delete_moved(slot, from),
            Place::Deleted { .. } | Place::Nothing => unreachable!("only live rows are found by their key"),
        }
        Ok(())
    }

    /// The row that came from `from` is gone. Where a new row took that key meanwhile, the key lives on as that row.
    fn delete_moved(&mut self, slot: usize, from: Key) {
        let Some(heir) = self.live_at(&from) else {
            return self.place(slot, Place::Deleted { from }, RowBuf::new());
        };
        let row = std::mem::take(&mut self.slots[heir].row);
        self.bytes -= row.bytes();
        let place = self.unplace(heir);
        assert!(matches!(place, Place::New { .. }), "no move goes to a key that a row of the batch came from");
        self.place(heir, Place::Kept { at: from }, row);
    }

    fn rekey(&mut self, old: RowBuf, new: RowBuf) -> Result<Folded> {
        let from = self.shape.key_of(&old)?;
        let to = self.shape.key_of(&new)?;
        if from == to {
            self.update(new)?;
            return Ok(Folded::Done);
        }
        if self.live_at(&to).is_some() {
            return Err(self.shape.contradiction("a key change to the key of a row that is there"));
        }
        let Some(slot) = self.live_at(&from) else {
            self.untouched(&from, "a key change of a row that is not there")?;
            if self.left_from(&to).is_some() {
                return Ok(Folded::FlushFirst(Op::Rekey { old, new }));
            }
            self.add(Place::Moved { from, at: to }, new);
            return Ok(Folded::Done);
        };
        match &self.slots[slot].place {
            Place::New { .. } => {
                let row = self.slots[slot].row.merged(new.row());
                self.unplace(slot);
                self.settle(to, row);
            }
            Place::Kept { .. } if self.left_from(&to).is_none() => {
                let row = self.slots[slot].row.merged(new.row());
                self.unplace(slot);
                self.place(slot, Place::Moved { from, at: to }, row);
            }
            _ => return Ok(Folded::FlushFirst(Op::Rekey { old, new })),
        }
        Ok(Folded::Done)
    }

    /// `at` is a key that this batch has not seen, so the row is as the database has it.
    fn untouched(&self, at: &Key, what: &str) -> Result<()> {
        match self.truncate || self.left_from(at).is_some() {
            true => Err(self.shape.contradiction(what)),
            false => Ok(()),
        }
    }

    fn merge(&mut self, slot: usize, newer: &RowBuf) {
        let row = &mut self.slots[slot].row;
        self.bytes -= row.bytes();
        *row = row.merged(newer.row());
        self.bytes += row.bytes();
    }

    fn live_at(&self, key: &Key) -> Option<usize> {
        let found = |&slot: &usize| self.slots[slot].place.at() == Some(key);
        self.live.find(self.hasher.hash_one(key), found).copied()
    }

    fn left_from(&self, key: &Key) -> Option<usize> {
        let found = |&slot: &usize| self.slots[slot].place.left() == Some(key);
        self.left.find(self.hasher.hash_one(key), found).copied()
    }

    fn add(&mut self, place: Place, row: RowBuf) {
        self.slots.push(Slot { place: Place::Nothing, row: RowBuf::new() });
        self.bytes += SLOT_BYTES;
        self.place(self.slots.len() - 1, place, row);
    }

    /// Puts a slot that stands nowhere into a place and makes it findable.
    fn place(&mut self, slot: usize, place: Place, row: RowBuf) {
        self.bytes += place.bytes() + row.bytes();
        self.slots[slot] = Slot { place, row };
        let (slots, hasher) = (&self.slots, &self.hasher);
        if let Some(key) = slots[slot].place.at() {
            let rehash = |&s: &usize| slots[s].place.at().map_or(0, |key| hasher.hash_one(key));
            self.live.insert_unique(hasher.hash_one(key), slot, rehash);
        }
        if let Some(key) = slots[slot].place.left() {
            let rehash = |&s: &usize| slots[s].place.left().map_or(0, |key| hasher.hash_one(key));
            self.left.insert_unique(hasher.hash_one(key), slot, rehash);
        }
    }

    /// Takes a slot out of its place; what it knew of the row is dropped.
    fn unplace(&mut self, slot: usize) -> Place {
        let Slot { place, row } =
            std::mem::replace(&mut self.slots[slot], Slot { place: Place::Nothing, row: RowBuf::new() });
        self.bytes -= place.bytes() + row.bytes();
        if let Some(key) = place.at() {
            remove(&mut self.live, self.hasher.hash_one(key), slot);
        }
        if let Some(key) = place.left() {
            remove(&mut self.left, self.hasher.hash_one(key), slot);
        }
        place
    }

    fn clear(&mut self) {
        self.truncate = false;
        self.slots.clear();
        self.live.clear();
        self.left.clear();
        self.bytes = 0;
    }
}

fn remove(table: &mut HashTable<usize>, hash: u64, slot: usize) {
    table.find_entry(hash, |&s| s == slot).expect("a placed slot is findable").remove();
}

/// Rows by the columns they carry, in order of first appearance.
pub(super) struct Groups<T> {
    pub groups: Vec<(Vec<usize>, Vec<T>)>,
    by_columns: HashMap<Vec<usize>, usize>,
}

impl<T> Default for Groups<T> {
    fn default() -> Groups<T> {
        Groups { groups: Vec::new(), by_columns: HashMap::new() }
    }
}

impl<T> Groups<T> {
    pub fn push(&mut self, wanted: &[usize], row: RowBuf, item: impl FnOnce(RowBuf) -> T) {
        let present = wanted.iter().copied().filter(|&column| !row.row().get(column).is_absent());
        // Neighbours mostly carry the same columns: no allocation, no look-up.
        if let Some((columns, rows)) = self.groups.last_mut()
            && present.clone().eq(columns.iter().copied())
        {
            return rows.push(item(row));
        }
        let columns: Vec<usize> = present.collect();
        let next = self.groups.len();
        let group = *self.by_columns.entry(columns).or_insert_with_key(|columns| {
            self.groups.push((columns.clone(), Vec::new()));
            next
        });
        self.groups[group].1.push(item(row));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::value::Cell;

    const KEY: usize = 1;
    /// Column 3 is one that the sink does not take: it may be absent anywhere.
    const WANTED: [usize; 3] = [0, 1, 2];

    fn net() -> Net {
        Net::new(TableName::new("public", "t"), WANTED.to_vec(), vec![KEY])
    }

    /// A row `a|key|b`; `-` is absent, `~` NULL.
    fn row(text: &str) -> RowBuf {
        let cell = |text| match text {
            "-" => Cell::Absent,
            "~" => Cell::Null,
            text => Cell::Text(str::as_bytes(text)),
        };
        text.split('|').map(cell).chain([Cell::Absent]).collect()
    }

    fn text(row: &RowBuf) -> String {
        let cell = |cell| match cell {
            Cell::Absent => "-".to_owned(),
            Cell::Null => "~".to_owned(),
            Cell::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
        };
        row.row().iter().take(3).map(cell).collect::<Vec<_>>().join("|")
    }

    fn key_text(key: &Key) -> String {
        key.cells().map(|cell| String::from_utf8(cell.text().unwrap().to_vec()).unwrap()).collect()
    }

    fn op(text: &str) -> Op {
        let mut words = text.split(' ');
        let mut next = || words.next().map(row);
        match text.split_once(' ').map_or(text, |(verb, _)| verb) {
            "insert" => (next(), Op::Insert(next().unwrap())).1,
            "update" => (next(), Op::Update(next().unwrap())).1,
            "delete" => (next(), Op::Delete(next().unwrap())).1,
            "rekey" => (next(), Op::Rekey { old: next().unwrap(), new: next().unwrap() }).1,
            "truncate" => Op::Truncate,
            verb => panic!("no such verb: {verb}"),
        }
    }

    fn describe(net: NetEffect, out: &mut Vec<String>) {
        if net.truncate {
            out.push("truncate".into());
        }
        out.extend(net.deletes.iter().map(|key| format!("delete {}", key_text(key))));
        for Moves { columns, rows } in net.moves {
            out.extend(rows.iter().map(|(from, row)| format!("move {} to {} {columns:?}", key_text(from), text(row))));
        }
        for Updates { columns, rows } in net.updates {
            out.extend(rows.iter().map(|row| format!("update {} {columns:?}", text(row))));
        }
        out.extend(net.inserts.iter().map(|row| format!("insert {}", text(row))));
    }

    /// Folds a script, one change a line; what is written, line by line, or the error.
    fn run(script: &str) -> String {
        let (mut net, mut out) = (net(), Vec::new());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut next = op(line);
            loop {
                match net.fold(next) {
                    Ok(Folded::Done) => break,
                    Ok(Folded::FlushFirst(again)) => {
                        describe(net.drain(), &mut out);
                        out.push("flush".into());
                        next = again;
                    }
                    Err(Error::Halt(halt)) => return format!("{}: {}", halt.code, halt.message),
                    Err(retry) => panic!("{retry}"),
                }
            }
        }
        describe(net.drain(), &mut out);
        assert!(net.is_empty() && net.bytes() == 0 && net.rows() == 0);
        out.join("\n")
    }

    #[test]
    fn changes_of_one_row_come_to_one() {
        assert_eq!(run("insert a|1|b\nupdate x|1|-\nupdate -|1|~"), "insert x|1|~");
        assert_eq!(run("update x|1|-\nupdate y|1|-"), "update y|1|- [0, 1]");
        assert_eq!(run("update x|1|-\nupdate -|1|z"), "update x|1|z [0, 1, 2]");
        assert_eq!(run("insert a|1|b\ndelete -|1|-"), "");
        assert_eq!(run("update a|1|b\ndelete -|1|-"), "delete 1");
        assert_eq!(run("update -|1|-"), "", "nothing to write");
        assert_eq!(run("rekey -|1|- x|2|-\nupdate -|2|y"), "move 1 to x|2|y [0, 1, 2]");
        assert_eq!(run("insert a|1|b\nrekey -|1|- x|2|-"), "insert x|2|b");
    }

    #[test]
    fn rows_are_grouped_by_what_they_carry() {
        assert_eq!(
            run("update x|1|-\nupdate -|2|y\nupdate z|3|-\nupdate -|4|y"),
            "update x|1|- [0, 1]\nupdate z|3|- [0, 1]\nupdate -|2|y [1, 2]\nupdate -|4|y [1, 2]"
        );
    }

    #[test]
    fn a_row_that_lives_on_is_never_deleted() {
        assert_eq!(run("delete -|1|-\ninsert a|1|b"), "update a|1|b [0, 1, 2]");
        assert_eq!(run("delete -|1|-\ninsert a|1|b\ndelete -|1|-"), "delete 1");
        assert_eq!(run("delete -|1|-\ninsert a|2|b\nrekey -|2|- a|1|-"), "update a|1|b [0, 1, 2]");
        // A new row stands where a row moved away from; that one is deleted at its new key.
        assert_eq!(run("rekey -|1|- x|2|-\ninsert a|1|b\ndelete -|2|-"), "update a|1|b [0, 1, 2]");
    }

    #[test]
    fn moves_into_each_others_way_are_written_one_by_one() {
        assert_eq!(run("rekey -|1|- -|2|-\nrekey -|3|- -|4|-"), "move 1 to -|2|- [1]\nmove 3 to -|4|- [1]");
        assert_eq!(
            run("rekey -|2|- -|3|-\nrekey -|1|- -|2|-"),
            "move 2 to -|3|- [1]\nflush\nmove 1 to -|2|- [1]",
            "a chain"
        );
        assert_eq!(
            run("rekey -|1|- -|9|-\nrekey -|2|- -|1|-\nrekey -|9|- -|2|-"),
            "move 1 to -|9|- [1]\nflush\nmove 2 to -|1|- [1]\nflush\nmove 9 to -|2|- [1]",
            "a swap through a temporary key"
        );
        assert_eq!(run("delete -|2|-\nrekey -|1|- -|2|-"), "delete 2\nflush\nmove 1 to -|2|- [1]");
        assert_eq!(run("rekey -|1|- -|2|-\ninsert a|1|b"), "move 1 to -|2|- [1]\ninsert a|1|b");
    }

    #[test]
    fn a_truncate_makes_what_was_pending_moot() {
        assert_eq!(run("update a|1|b\ninsert a|2|b\ntruncate\ninsert c|1|d"), "truncate\ninsert c|1|d");
        assert!(run("truncate\nupdate a|1|b").starts_with("SINK_DIVERGED"));
    }

    #[test]
    fn contradictions_are_named_not_repaired() {
        for script in [
            "insert a|1|b\ninsert a|1|b",
            "update a|1|b\ninsert a|1|b",
            "delete -|1|-\nupdate a|1|b",
            "delete -|1|-\ndelete -|1|-",
            "delete -|1|-\nrekey -|1|- a|2|b",
            "rekey -|1|- -|2|-\nupdate a|1|b",
            "rekey -|1|- -|2|-\ndelete -|1|-",
            "rekey -|1|- -|2|-\ninsert a|2|b",
            "update a|2|b\nrekey -|1|- -|2|-",
        ] {
            let error = run(script);
            assert!(error.starts_with("SINK_DIVERGED: changes of table public.t contradict"), "{script}: {error}");
        }
        assert!(run("insert a|1|-").starts_with("ABSENT_BASE"));
        assert!(run("update a|~|b").starts_with("RECORD_INVALID"));
    }

    /// A table with an immediate primary key: key, then columns a and b.
    type Model = BTreeMap<u8, [Option<u8>; 2]>;

    fn number(cell: Cell<'_>) -> Option<u8> {
        cell.text().map(|text| std::str::from_utf8(text).unwrap().parse().unwrap())
    }

    fn key_of(row: &RowBuf) -> u8 {
        number(row.row().get(KEY)).unwrap()
    }

    fn assign(values: &mut [Option<u8>; 2], row: &RowBuf) {
        for (value, column) in values.iter_mut().zip([0, 2]) {
            if !row.row().get(column).is_absent() {
                *value = number(row.row().get(column));
            }
        }
    }

    fn put(model: &mut Model, key: u8, values: [Option<u8>; 2]) {
        assert!(model.insert(key, values).is_none(), "immediate uniqueness: key {key} is taken");
    }

    fn write_one(model: &mut Model, op: &Op) {
        match op {
            Op::Insert(row) => {
                let mut values = [None; 2];
                assign(&mut values, row);
                put(model, key_of(row), values);
            }
            Op::Update(row) => assign(model.get_mut(&key_of(row)).unwrap(), row),
            Op::Delete(row) => drop(model.remove(&key_of(row)).unwrap()),
            Op::Rekey { old, new } => {
                let mut values = model.remove(&key_of(old)).unwrap();
                assign(&mut values, new);
                put(model, key_of(new), values);
            }
            Op::Truncate => model.clear(),
        }
    }

    /// Writes a net effect with uniqueness checked row by row; `backwards` within each part, as a server may.
    fn write_net(model: &mut Model, net: NetEffect, backwards: bool) {
        fn order<T>(mut rows: Vec<T>, backwards: bool) -> Vec<T> {
            if backwards {
                rows.reverse();
            }
            rows
        }
        let number_of = |key: &Key| key_text(key).parse::<u8>().unwrap();
        if net.truncate {
            model.clear();
        }
        for key in order(net.deletes, backwards) {
            model.remove(&number_of(&key)).expect("a deleted row is there");
        }
        for (from, row) in order(net.moves.into_iter().flat_map(|moves| moves.rows).collect(), backwards) {
            let mut values = model.remove(&number_of(&from)).expect("a moved row is there");
            assign(&mut values, &row);
            put(model, key_of(&row), values);
        }
        for row in order(net.updates.into_iter().flat_map(|updates| updates.rows).collect(), backwards) {
            assign(model.get_mut(&key_of(&row)).expect("an updated row is there"), &row);
        }
        for row in order(net.inserts, backwards) {
            write_one(model, &Op::Insert(row));
        }
    }

    /// Raw numbers become a change that is possible in `model`, if any is.
    fn possible(model: &Model, (kind, pick, free, a, b, absent): (u8, u8, u8, u8, u8, u8)) -> Option<Op> {
        let cells = |key: u8, absent: u8| {
            let value = |v: u8, bit| match (absent & bit != 0, v) {
                (true, _) => "-".to_owned(),
                (false, 0) => "~".to_owned(),
                (false, v) => v.to_string(),
            };
            row(&format!("{}|{key}|{}", value(a, 1), value(b, 2)))
        };
        let taken = || model.keys().copied().nth(usize::from(pick) % model.len().max(1));
        let free = (0..12).map(|i| (free + i) % 12).find(|key| !model.contains_key(key));
        Some(match kind {
            0..=2 => Op::Insert(cells(free?, 0)),
            3..=4 => Op::Update(cells(taken()?, absent)),
            5..=6 => Op::Delete(cells(taken()?, 3)),
            7..=9 => Op::Rekey { old: cells(taken()?, 3), new: cells(free?, absent) },
            _ if a == 0 => Op::Truncate,
            _ => return None,
        })
    }

    fn raw() -> impl Strategy<Value = (u8, u8, u8, u8, u8, u8)> {
        (0..11u8, any::<u8>(), 0..12u8, 0..8u8, 0..8u8, 0..4u8)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn the_net_effect_equals_the_changes_in_order(
            start in proptest::collection::btree_map(0..12u8, (0..8u8, 0..8u8), 0..10),
            raws in proptest::collection::vec(raw(), 0..60),
            backwards in any::<bool>(),
            batch in 1..40usize,
        ) {
            let start: Model = start.into_iter().map(|(key, (a, b))| (key, [Some(a), Some(b)])).collect();
            let (mut in_order, mut at_once) = (start.clone(), start);
            let (mut net, mut folded) = (net(), 0);
            for raw in raws {
                let Some(op) = possible(&in_order, raw) else { continue };
                write_one(&mut in_order, &op);
                if let Folded::FlushFirst(op) = net.fold(op).unwrap() {
                    write_net(&mut at_once, net.drain(), backwards);
                    prop_assert_eq!(net.fold(op).unwrap(), Folded::Done);
                }
                folded += 1;
                if folded % batch == 0 {
                    write_net(&mut at_once, net.drain(), backwards);
                    prop_assert_eq!(&at_once, &in_order);
                }
            }
            write_net(&mut at_once, net.drain(), backwards);
            prop_assert_eq!(at_once, in_order);
        }

        #[test]
        fn without_key_changes_nothing_is_flushed_and_no_surviving_key_deleted(
            raws in proptest::collection::vec(raw(), 0..60),
        ) {
            let mut model: Model = (0..6).map(|key| (key, [Some(key), None])).collect();
            let mut net = net();
            for raw in raws {
                let Some(op) = possible(&model, raw) else { continue };
                if matches!(op, Op::Rekey { .. } | Op::Truncate) {
                    continue;
                }
                write_one(&mut model, &op);
                prop_assert_eq!(net.fold(op).unwrap(), Folded::Done);
            }
            let net = net.drain();
            prop_assert!(net.deletes.iter().all(|key| !model.contains_key(&key_text(key).parse::<u8>().unwrap())));
        }
    }
}

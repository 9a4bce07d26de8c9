//! A table as the stream tells it from its first row on, and as a sink has it that is being loaded (docs/design.md section 4).
//!
//! Both are as plain as can be, because they judge: rows by what names them, and the rules of the document, one by one. A change
//! that does not fit what is held is a fault: of the stream's copy a bug of the test, of the sink's a row that a chunk left wrong.

use std::collections::{HashMap, HashSet};

use lockstep::change::{Key, Op};
use lockstep::key::{KeyOrder, KeyRange};
use lockstep::value::RowBuf;

/// What tells rows of a table apart: columns in key order, or nothing but all they hold.
#[derive(Clone, Default)]
pub struct Naming {
    pub key: Vec<usize>,
    pub orders: Vec<KeyOrder>,
}

impl Naming {
    pub fn of(&self, row: &RowBuf) -> Key {
        let all: Vec<usize> = (0..row.row().len()).collect();
        let key = if self.key.is_empty() { Key::whole(row.row(), &all) } else { Key::of(row.row(), &self.key) };
        key.expect("a row has a name")
    }

    fn lies_in(&self, range: &KeyRange, row: &RowBuf) -> bool {
        let texts: Vec<&[u8]> = self.key.iter().map(|&i| row.row().get(i).text().expect("a key")).collect();
        range.contains(&self.orders, &texts).expect("a key's text is of its type")
    }
}

/// How rows differ from what they should be.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Something older, or never there.
    pub stale: u64,
    pub lost: u64,
    pub phantom: u64,
}

impl Difference {
    pub const NONE: Difference = Difference { stale: 0, lost: 0, phantom: 0 };

    pub fn add(&mut self, other: Difference) {
        self.stale += other.stale;
        self.lost += other.lost;
        self.phantom += other.phantom;
    }
}

/// Rows by what names them; more than one under a name only where there is no key.
#[derive(Clone, Default)]
pub struct Copy {
    pub naming: Naming,
    rows: HashMap<Key, Vec<RowBuf>>,
}

impl Copy {
    pub fn new(naming: Naming) -> Copy {
        Copy { naming, rows: HashMap::new() }
    }

    pub fn of(naming: Naming, rows: &[RowBuf]) -> Copy {
        let mut copy = Copy::new(naming);
        rows.iter().for_each(|row| copy.put(row.clone()));
        copy
    }

    pub fn rows(&self) -> impl Iterator<Item = &RowBuf> {
        self.rows.values().flatten()
    }

    fn put(&mut self, row: RowBuf) {
        self.rows.entry(self.naming.of(&row)).or_default().push(row);
    }

    fn take(&mut self, old: &RowBuf) -> Option<RowBuf> {
        let name = self.naming.of(old);
        let held = self.rows.get_mut(&name)?;
        let row = held.pop();
        if held.is_empty() {
            self.rows.remove(&name);
        }
        row
    }

    fn has(&self, row: &RowBuf) -> bool {
        self.rows.contains_key(&self.naming.of(row))
    }

    /// A change of a copy that has everything.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Insert(new) => {
                assert!(self.naming.key.is_empty() || !self.has(new), "a row is inserted once");
                self.put(new.clone());
            }
            Op::Update(new) => {
                let base = self.take(new).expect("the row that is updated");
                self.put(base.merged(new.row()));
            }
            Op::Delete(old) => drop(self.take(old).expect("the row that is deleted")),
            Op::Rekey { old, new } => {
                let base = self.take(old).expect("the row that moves");
                self.put(base.merged(new.row()));
            }
            Op::Truncate => self.rows.clear(),
        }
    }

    /// Texts of a column, sorted.
    pub fn texts(&self, column: usize) -> Vec<String> {
        let text =
            |row: &RowBuf| String::from_utf8(row.row().get(column).text().expect("a text").to_vec()).expect("UTF-8");
        let mut texts: Vec<String> = self.rows().map(text).collect();
        texts.sort_unstable();
        texts
    }

    pub fn within(&self, range: &KeyRange) -> Copy {
        let inside = self.rows().filter(|row| self.naming.lies_in(range, row));
        Copy::of(self.naming.clone(), &inside.cloned().collect::<Vec<_>>())
    }

    /// In what `self` differs from what it should be.
    pub fn against(&self, right: &Copy) -> Difference {
        let mut found = Difference::NONE;
        for (name, rows) in &right.rows {
            let ours = self.rows.get(name).map_or(&[][..], Vec::as_slice);
            found.lost += rows.len().saturating_sub(ours.len()) as u64;
            found.stale += rows.iter().zip(ours).filter(|(right, ours)| right != ours).count() as u64;
        }
        for (name, ours) in &self.rows {
            found.phantom += ours.len().saturating_sub(right.rows.get(name).map_or(0, Vec::len)) as u64;
        }
        found
    }
}

/// A sink's table while it is loaded.
#[derive(Clone, Default)]
pub struct Partial {
    pub copy: Copy,
    pub loaded: Vec<KeyRange>,
    /// Rows that belong into what is loaded and could not be made.
    left_out: HashSet<Key>,
    /// Changes that met no row.
    pub faults: u64,
}

impl Partial {
    fn is_loaded(&self, row: &RowBuf) -> bool {
        self.loaded.iter().any(|range| self.copy.naming.lies_in(range, row))
    }

    /// "This range now holds exactly these rows."
    pub fn chunk(&mut self, naming: &Naming, range: &KeyRange, rows: &[RowBuf]) {
        self.copy.naming = naming.clone();
        self.copy.rows.retain(|_, held| !naming.lies_in(range, &held[0]));
        let width = naming.key.len();
        let key: Vec<usize> = (0..width).collect();
        let of_names = Naming { key, orders: naming.orders.clone() };
        self.left_out.retain(|name| !of_names.lies_in(range, &name.to_row()));
        rows.iter().for_each(|row| self.copy.put(row.clone()));
        if !self.loaded.contains(range) {
            self.loaded.push(range.clone());
        }
    }

    /// A change is of the rows that are loaded; the chunk of the others brings it.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Insert(new) if self.is_loaded(new) => {
                self.left_out.remove(&self.copy.naming.of(new));
                self.faults += u64::from(!self.copy.naming.key.is_empty() && self.copy.has(new));
                self.copy.put(new.clone());
            }
            Op::Update(new) if self.is_loaded(new) => match self.copy.take(new) {
                Some(base) => self.copy.put(base.merged(new.row())),
                None => self.faults += u64::from(!self.left_out.contains(&self.copy.naming.of(new))),
            },
            Op::Delete(old) if self.is_loaded(old) => {
                let known = self.copy.take(old).is_some() || self.left_out.remove(&self.copy.naming.of(old));
                self.faults += u64::from(!known);
            }
            Op::Rekey { old, new } => self.rekey(old, new),
            Op::Truncate => {
                self.copy.rows.clear();
                self.left_out.clear();
            }
            Op::Insert(_) | Op::Update(_) | Op::Delete(_) => {}
        }
    }

    /// From what is loaded into what is not it is a delete; the other way round an insert, if every column was sent. A row that
    /// can't be made is left out: its range comes again.
    fn rekey(&mut self, old: &RowBuf, new: &RowBuf) {
        let had = self.is_loaded(old);
        let base = if had { self.copy.take(old) } else { None };
        let was_left_out = had && self.left_out.remove(&self.copy.naming.of(old));
        self.faults += u64::from(had && base.is_none() && !was_left_out);
        if !self.is_loaded(new) {
            return;
        }
        match base {
            Some(base) => self.copy.put(base.merged(new.row())),
            None if !had && !new.row().has_absent() => self.copy.put(new.clone()),
            None => drop(self.left_out.insert(self.copy.naming.of(new))),
        }
    }
}

//! What the engines' writers share: in what order tables are written, and what one statement's rows are.

use crate::change::Key;
use crate::value::{Row, RowBuf};

/// What is done with rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    Delete,
    Move,
    Update,
    Insert,
}

impl Verb {
    /// For messages; a table's name follows.
    pub fn doing(self) -> &'static str {
        match self {
            Verb::Delete => "deleting rows of",
            Verb::Move => "moving rows of",
            Verb::Update => "updating rows of",
            Verb::Insert => "inserting rows into",
        }
    }
}

/// Rows of one table for one [`Verb`], as a [`NetEffect`](crate::apply::net::NetEffect) has them.
#[derive(Clone, Copy)]
pub enum StepRows<'a> {
    Keys(&'a [Key]),
    Full(&'a [RowBuf]),
    Moved(&'a [(Key, RowBuf)]),
}

impl<'a> StepRows<'a> {
    pub fn len(self) -> usize {
        match self {
            StepRows::Keys(keys) => keys.len(),
            StepRows::Full(rows) => rows.len(),
            StepRows::Moved(rows) => rows.len(),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            StepRows::Keys(keys) => keys.iter().map(Key::bytes).sum(),
            StepRows::Full(rows) => rows.iter().map(RowBuf::bytes).sum(),
            StepRows::Moved(rows) => rows.iter().map(|(key, row)| key.bytes() + row.bytes()).sum(),
        }
    }

    /// What row `i` is to hold; a row that goes holds nothing.
    pub fn row(self, i: usize) -> Option<&'a RowBuf> {
        match self {
            StepRows::Keys(_) => None,
            StepRows::Full(rows) => Some(&rows[i]),
            StepRows::Moved(rows) => Some(&rows[i].1),
        }
    }

    /// What row `i` carries.
    pub fn carried(self, i: usize) -> Row<'a> {
        self.row(i).expect("a row that goes carries no columns").row()
    }

    /// The key that row `i` is found by, where it is not its own.
    pub fn old_key(self, i: usize) -> Option<&'a Key> {
        match self {
            StepRows::Keys(keys) => Some(&keys[i]),
            StepRows::Moved(rows) => Some(&rows[i].0),
            StepRows::Full(_) => None,
        }
    }

    pub fn has_old_key(self) -> bool {
        !matches!(self, StepRows::Full(_))
    }
}

/// Places of `plans` such that a table comes after those that it references. Tables that reference each other in a circle come
/// in the order given: there only constraints that are checked late help.
pub fn parents_first<P>(plans: &[P], references: impl Fn(&P, &P) -> bool) -> Vec<usize> {
    let mut ordered: Vec<usize> = Vec::with_capacity(plans.len());
    let mut waiting: Vec<usize> = (0..plans.len()).collect();
    while !waiting.is_empty() {
        let blocked = |&i: &usize| waiting.iter().any(|&other| other != i && references(&plans[i], &plans[other]));
        let next = waiting.iter().position(|i| !blocked(i)).unwrap_or(0);
        ordered.push(waiting.remove(next));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_circles_in_their_order() {
        let chain = |child: &u32, parent: &u32| parent == &(child + 1);
        assert_eq!(parents_first(&[1, 2, 3], chain), [2, 1, 0]);
        let circle = |a: &u32, b: &u32| matches!((a, b), (1, 2) | (2, 1) | (1, 3));
        assert_eq!(parents_first(&[1, 2, 3], circle), [2, 0, 1]);
    }
}

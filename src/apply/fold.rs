//! How the changes of one table come to their net effect: row by row under a key, or as whole rows without one.

use super::bag::Bag;
use super::net::{Folded, Net, NetEffect};
use super::soft::Soft;
use super::sparse::Sparse;
use crate::change::{Key, Op};
use crate::error::Result;
use crate::relation::TableName;

#[derive(Debug)]
pub enum Fold {
    Keyed(Net),
    Keyless(Bag),
    /// Deleted rows stay, marked.
    Soft(Soft),
    /// Of a table that lacks rows.
    Sparse(Sparse),
}

impl Fold {
    /// Nothing folded yet. `wanted` are the relation's columns that the sink's `table` takes, `key` the key's in key order: empty where
    /// rows have none. `mark`: deleted rows stay, marked in this column; and whether equal keys
    /// are equal texts. `sparse`: the table lacks rows.
    pub fn new(
        table: TableName,
        wanted: Vec<usize>,
        key: Vec<usize>,
        mark: Option<(usize, bool)>,
        sparse: bool,
    ) -> Fold {
        let fold = match (key.is_empty(), mark) {
            (true, _) => Fold::Keyless(Bag::new(table, wanted)),
            (false, None) => Fold::Keyed(Net::new(table, wanted, key)),
            (false, Some(mark)) => Fold::Soft(Soft::new(table, wanted, key, mark)),
        };
        if sparse { Fold::Sparse(Sparse::new(fold)) } else { fold }
    }

    /// The rows that a change speaks of, as far as they are told apart by a key.
    pub fn keys(&self, op: &Op) -> Result<Vec<Key>> {
        match self {
            Fold::Keyed(net) => net.keys(op),
            Fold::Keyless(_) => Ok(Vec::new()),
            Fold::Soft(soft) => soft.keys(op),
            Fold::Sparse(sparse) => sparse.keys(op),
        }
    }

    /// Takes in the next change of the stream.
    pub fn fold(&mut self, op: Op) -> Result<Folded> {
        match self {
            Fold::Keyed(net) => net.fold(op),
            Fold::Keyless(bag) => bag.fold(op).map(|()| Folded::Done),
            Fold::Soft(soft) => soft.fold(op),
            Fold::Sparse(sparse) => sparse.fold(op),
        }
    }

    /// What the changes since the last drain come to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        match self {
            Fold::Keyed(net) => net.drain(),
            Fold::Keyless(bag) => bag.drain(),
            Fold::Soft(soft) => soft.drain(),
            Fold::Sparse(sparse) => sparse.drain(),
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Fold::Keyed(net) => net.rows(),
            Fold::Keyless(bag) => bag.rows(),
            Fold::Soft(soft) => soft.rows(),
            Fold::Sparse(sparse) => sparse.rows(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Fold::Keyed(net) => net.bytes(),
            Fold::Keyless(bag) => bag.bytes(),
            Fold::Soft(soft) => soft.bytes(),
            Fold::Sparse(sparse) => sparse.bytes(),
        }
    }
}

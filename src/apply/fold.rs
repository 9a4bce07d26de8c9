//! How the changes of one table come to their net effect: row by row under a key, or as whole rows without one.

use super::bag::Bag;
use super::net::{Folded, Net, NetEffect};
use super::sparse::Sparse;
use crate::change::{Key, Op};
use crate::error::Result;
use crate::relation::TableName;

#[derive(Debug)]
pub enum Fold {
    Keyed(Net),
    Keyless(Bag),
    /// Of a table that lacks rows.
    Sparse(Sparse),
}

impl Fold {
    /// Nothing folded yet. `wanted` are the relation's columns that the sink's `table` takes, `key` the key's in key order: empty where
    /// rows have none. `sparse`: the table lacks rows.
    pub fn new(table: TableName, wanted: Vec<usize>, key: Vec<usize>, sparse: bool) -> Fold {
        let fold = match key.is_empty() {
            true => Fold::Keyless(Bag::new(table, wanted)),
            false => Fold::Keyed(Net::new(table, wanted, key)),
        };
        if sparse { Fold::Sparse(Sparse::new(fold)) } else { fold }
    }

    /// The rows that a change speaks of, as far as they are told apart by a key.
    pub fn keys(&self, op: &Op) -> Result<Vec<Key>> {
        match self {
            Fold::Keyed(net) => net.keys(op),
            Fold::Keyless(_) => Ok(Vec::new()),
            Fold::Sparse(sparse) => sparse.keys(op),
        }
    }

    /// Takes in the next change of the stream.
    pub fn fold(&mut self, op: Op) -> Result<Folded> {
        match self {
            Fold::Keyed(net) => net.fold(op),
            Fold::Keyless(bag) => bag.fold(op).map(|()| Folded::Done),
            Fold::Sparse(sparse) => sparse.fold(op),
        }
    }

    /// What the changes since the last drain come to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        match self {
            Fold::Keyed(net) => net.drain(),
            Fold::Keyless(bag) => bag.drain(),
            Fold::Sparse(sparse) => sparse.drain(),
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Fold::Keyed(net) => net.rows(),
            Fold::Keyless(bag) => bag.rows(),
            Fold::Sparse(sparse) => sparse.rows(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Fold::Keyed(net) => net.bytes(),
            Fold::Keyless(bag) => bag.bytes(),
            Fold::Sparse(sparse) => sparse.bytes(),
        }
    }
}

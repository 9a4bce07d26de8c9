//! How the changes of one table come to their net effect: row by row under a key, or as whole rows without one.

use super::bag::Bag;
use super::net::{Folded, Net, NetEffect};
use super::sparse::Sparse;
use crate::change::{Key, Op};
use crate::error::Result;

#[derive(Debug)]
pub enum Fold {
    Keyed(Net),
    Keyless(Bag),
    /// Of a table that lacks rows.
    Sparse(Sparse),
}

impl Fold {
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

//! How the changes of one table come to their net effect: row by row under a key, or as whole rows without one.

use super::bag::Bag;
use super::net::{Folded, Net, NetEffect};
use crate::change::Op;
use crate::error::Result;

#[derive(Debug)]
pub enum Fold {
    Keyed(Net),
    Keyless(Bag),
}

impl Fold {
    /// Takes in the next change of the stream.
    pub fn fold(&mut self, op: Op) -> Result<Folded> {
        match self {
            Fold::Keyed(net) => net.fold(op),
            Fold::Keyless(bag) => bag.fold(op).map(|()| Folded::Done),
        }
    }

    /// What the changes since the last drain come to. Empty afterwards.
    pub fn drain(&mut self) -> NetEffect {
        match self {
            Fold::Keyed(net) => net.drain(),
            Fold::Keyless(bag) => bag.drain(),
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Fold::Keyed(net) => net.rows(),
            Fold::Keyless(bag) => bag.rows(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            Fold::Keyed(net) => net.bytes(),
            Fold::Keyless(bag) => bag.bytes(),
        }
    }
}

//! Where a fold of the ledger begins: at a base that an entry names, or where none reaches far enough back, at the first entry
//! kept.
//!
//! An entry names only a base that its writer had read back, so what the base says was in force where it stands (models/base.py).
//! Pure: `topic` reads the entries.

use crate::error::{Code, Error, Result};

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the first entry kept.
    First,
    /// At the base whose last part stands here.
    Base(i64),
}

/// Where a fold must begin so that its state is complete from the entry at `needed` on. `bounds` are the first entry kept and
/// the end; `named` gives the base that an entry names, or nothing where no entry can be read.
pub fn before(
    needed: i64,
    (low, high): (i64, i64),
    mut named: impl FnMut(i64) -> Result<Option<Option<i64>>>,
) -> Result<Start> {
    if needed < low - 1 {
        let message = format!("the ledger begins at entry {low}, but what stands after entry {needed} is needed");
        return Err(Error::halt(Code::LedgerTrimmed, message, "lockstep explain LEDGER_TRIMMED"));
    }
    // What stands at `needed` names a base at or before it, whoever wrote it.
    let mut at = needed.clamp(low, (high - 1).max(low));
    while at > low {
        let Some(base) = named(at)? else { return Ok(Start::First) };
        match base {
            Some(base) if base < low => return Ok(Start::First),
            Some(base) if base <= needed => return Ok(Start::Base(base)),
            Some(base) if base < at => at = base,
            // An entry by somebody who knew of none: the one before it tells.
            _ => at -= 1,
        }
    }
    Ok(Start::First)
}

//! Changes laid over a chunk: what its rows are at a later place of the stream.

use std::collections::HashMap;

use super::{Remembered, not_of_type};
use crate::change::{Key, Op};
use crate::error::{Code, Error, Result};
use crate::key::{KeyOrder, KeyRange};
use crate::ledger::cover::KeyTexts;
use crate::value::RowBuf;

pub(super) fn key_texts(row: &RowBuf, key_columns: &[usize]) -> Result<Vec<Vec<u8>>> {
    let text = |&column: &usize| row.row().get(column).text().map(<[u8]>::to_vec);
    key_columns.iter().map(text).collect::<Option<_>>().ok_or_else(key_incomplete)
}

pub(super) fn contains(range: &KeyRange, orders: &[KeyOrder], key: &[Vec<u8>]) -> Result<bool> {
    range.contains(orders, key).map_err(not_of_type)
}

pub(super) fn key_strings(row: &RowBuf, key_columns: &[usize]) -> Result<KeyTexts> {
    let texts = key_texts(row, key_columns)?.into_iter().map(String::from_utf8);
    texts.collect::<std::result::Result<_, _>>().map_err(|_| key_incomplete())
}

fn key_incomplete() -> Error {
    let message = "the source sent a row without its whole key";
    Error::halt(Code::SourceProtocol, message, "check the table's replica identity: lockstep check")
}

/// A range and what its borders speak of.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) range: &'a KeyRange,
    pub(super) key: &'a [usize],
    pub(super) orders: &'a [KeyOrder],
}

/// The chunk with every change laid over it that its snapshot did not see. `None`: a column has no base here, read again.
///
/// Where the chunk is partial, a row that is not in it was left out: its changes stand in the stream by themselves.
pub(super) fn overlay(
    rows: Vec<RowBuf>,
    changes: &[&Remembered],
    Place { range, key: key_columns, orders }: Place<'_>,
    partial: bool,
) -> Result<Option<Vec<RowBuf>>> {
    if changes.is_empty() {
        return Ok(Some(rows));
    }
    if key_columns.is_empty() {
        return Ok(overlay_keyless(rows, changes, partial));
    }
    let key = |row: &RowBuf| Key::of(row.row(), key_columns).ok_or_else(key_incomplete);
    let inside = |row: &RowBuf| contains(range, orders, &key_texts(row, key_columns)?);
    let mut held: HashMap<Key, RowBuf> = HashMap::with_capacity(rows.len());
    for row in rows {
        held.insert(key(&row)?, row);
    }
    for change in changes {
        match &change.op {
            Op::Insert(new) => {
                if inside(new)? {
                    if new.row().has_absent() {
                        return Ok(None);
                    }
                    held.insert(key(new)?, new.clone());
                }
            }
            Op::Update(new) => {
                if inside(new)? {
                    match held.get_mut(&key(new)?) {
                        Some(row) => *row = row.merged(new.row()),
                        None if partial => {}
                        None => return Ok(None),
                    }
                }
            }
            Op::Delete(old) => {
                held.remove(&key(old)?);
            }
            Op::Rekey { old, new } => {
                let base = held.remove(&key(old)?);
                if inside(new)? {
                    let row = match base {
                        Some(base) => base.merged(new.row()),
                        None if partial => continue,
                        None if new.row().has_absent() => return Ok(None),
                        None => new.clone(),
                    };
                    held.insert(key(new)?, row);
                }
            }
            Op::Truncate => held.clear(),
        }
    }
    Ok(Some(held.into_values().collect()))
}

/// The same for a table without a key, where a change names its row by all that the row held. Every row that such a change
/// touched is in the snapshot as it was before: whoever changed it before was seen, or is among the changes.
fn overlay_keyless(rows: Vec<RowBuf>, changes: &[&Remembered], partial: bool) -> Option<Vec<RowBuf>> {
    let image = |row: &RowBuf| Key::whole(row.row(), &(0..row.row().len()).collect::<Vec<_>>());
    let mut held: HashMap<Key, Vec<RowBuf>> = HashMap::with_capacity(rows.len());
    for row in rows {
        held.entry(image(&row)?).or_default().push(row);
    }
    for change in changes {
        if let Op::Delete(old) | Op::Rekey { old, .. } = &change.op {
            let was_held = held.get_mut(&image(old)?).and_then(Vec::pop).is_some();
            match (was_held, partial) {
                (true, _) => {}
                (false, true) => continue,
                (false, false) => return None,
            }
        }
        match &change.op {
            Op::Insert(new) | Op::Rekey { new, .. } => held.entry(image(new)?).or_default().push(new.clone()),
            Op::Truncate => held.clear(),
            Op::Delete(_) => {}
            Op::Update(_) => return None,
        }
    }
    Some(held.into_values().flatten().collect())
}

//! A chunk: "this range of keys now holds exactly these rows".
//!
//! The keys that the range holds are read and locked in pieces, in the order of the key, and compared here with those of the chunk
//! ([`crate::key`]): rows of other keys (phantoms) go, rows that are there are updated by their keys, others are made. A row that
//! is as it should be is not written again, MariaDB sees to that itself.

use std::cmp::Ordering;

use super::MariaDbSink;
use super::refusal::failure;
use super::sql::Plan;
use super::write::Keys;
use crate::error::{Code, Error};
use crate::key::{KeyError, KeyOrder, KeyRange, compare};
use crate::sink::{Counts, Outcome};
use crate::value::RowBuf;

/// Keys read at once; a range may hold any number of phantoms.
const PIECE_KEYS: usize = 20_000;

impl MariaDbSink {
    pub(super) async fn replace(&mut self, plan: &Plan, range: &KeyRange, rows: &[RowBuf]) -> Outcome<Counts> {
        self.assert_open();
        let lacks = |row: &RowBuf| plan.columns.iter().any(|column| row.row().get(column.index).is_absent());
        if rows.iter().any(lacks) {
            self.fail();
            return Err(plan.absent().into());
        }
        let orders: Vec<KeyOrder> = plan.key.iter().map(|&place| plan.columns[place].order).collect();
        let wanted = sorted(plan, &orders, rows).map_err(|error| self.unordered(plan, &error))?;
        let mut there = vec![false; wanted.len()];
        let mut counts = Counts::default();
        let mut rest = range.clone();
        loop {
            let sql = plan.keys_of(&rest, PIECE_KEYS).inspect_err(|_| self.fail())?;
            let found = self.link.rows(sql.as_bytes()).await.map_err(|error| {
                self.fail();
                failure(&format!("looking into a range of {}", plan.table), plan, error, false)
            })?;
            let keys: Keys =
                found.into_iter().map(|row| row.into_iter().map(Option::unwrap_or_default).collect()).collect();
            let last = keys.last().filter(|_| keys.len() == PIECE_KEYS).cloned();
            let mut phantoms = Keys::new();
            for key in keys {
                match position(&orders, &wanted, &key).map_err(|error| self.unordered(plan, &error))? {
                    Some(place) => there[place] = true,
                    None => phantoms.push(key),
                }
            }
            counts.deleted += self.delete_keys(plan, &phantoms).await?;
            self.hear_of_it();
            match last {
                Some(last) => rest.after = Some(own_key(plan, &last)),
                None => break,
            }
        }
        let pick = |is: bool| -> Vec<&RowBuf> {
            wanted.iter().zip(&there).filter(|(_, there)| **there == is).map(|((_, row), _)| *row).collect()
        };
        let (old, new) = (pick(true), pick(false));
        self.update(plan, &old, &plan.all(), false).await?;
        self.insert(plan, &new).await?;
        counts.inserted = wanted.len() as u64;
        Ok(counts)
    }

    fn hear_of_it(&mut self) {
        crate::sink::Sink::hear(self);
    }

    fn unordered(&mut self, plan: &Plan, error: &KeyError) -> Error {
        self.fail();
        // The text of a key is somebody's value.
        let what = match error {
            KeyError::Value { order, .. } => format!("a key of {} is none of order {order:?}", plan.table),
            KeyError::Columns { .. } => format!("a key of {} has another number of columns", plan.table),
        };
        Error::halt(Code::RecordInvalid, what, format!("lockstep resync {}", plan.source))
    }
}

type Row<'a> = (Vec<&'a [u8]>, &'a RowBuf);

/// The rows by their keys, in their order.
fn sorted<'a>(plan: &Plan, orders: &[KeyOrder], rows: &'a [RowBuf]) -> Result<Vec<Row<'a>>, KeyError> {
    let text = |row: &'a RowBuf, place: usize| row.row().get(plan.columns[place].index).text().unwrap_or_default();
    let keyed = |row: &'a RowBuf| (plan.key.iter().map(|&place| text(row, place)).collect(), row);
    let mut keyed: Vec<Row<'a>> = rows.iter().map(keyed).collect();
    // Each is compared with itself, so that what has no order is found also where there is only one.
    for (key, _) in &keyed {
        compare(orders, key, key)?;
    }
    keyed.sort_by(|(a, _), (b, _)| compare(orders, a, b).unwrap_or(Ordering::Equal));
    Ok(keyed)
}

fn position(orders: &[KeyOrder], rows: &[Row<'_>], key: &[Vec<u8>]) -> Result<Option<usize>, KeyError> {
    compare(orders, key, key)?;
    let found = rows.binary_search_by(|(other, _)| compare(orders, other, key).unwrap_or(Ordering::Equal));
    Ok(found.ok())
}

/// The part of a key that ranges speak of, as text.
fn own_key(plan: &Plan, key: &[Vec<u8>]) -> Vec<String> {
    let own = plan.own_key();
    let texts = plan.key.iter().zip(key).filter(|(place, _)| own.contains(place));
    texts.map(|(_, text)| String::from_utf8_lossy(text).into_owned()).collect()
}

//! What a job still has to emit: pieces in their order, of which the first few are being read or held.
//!
//! The order is the whole point: pieces are emitted from the front only, so however many are read at once the ledger sees one
//! load in rising order. Single keys that are to be read a second time come behind the ranges of the table that is first.

use std::collections::{BTreeSet, VecDeque};

use uuid::Uuid;

use super::overlay::key_strings;
use super::{ChunkRead, Visibility};
use crate::error::Result;
use crate::key::KeyRange;
use crate::ledger::cover::KeyTexts;
use crate::relation::{Fingerprint, TableName};

/// A range of a table, and how far its chunk is.
pub(super) struct Piece<V> {
    pub(super) table: TableName,
    range: KeyRange,
    stage: Stage<V>,
    /// It was cut to be one chunk, as far as bytes allow.
    planned: bool,
    /// The version that a chunk of it had, and the stream did not.
    mismatch: Option<Fingerprint>,
}

enum Stage<V> {
    Waiting,
    Asked {
        nonce: Uuid,
        /// A snapshot that is older than the one that it is read with.
        floor: Option<V>,
        /// It is known where it ends.
        bordered: bool,
    },
    Read {
        chunk: Box<ChunkRead<V>>,
        /// Its message was met in the stream.
        marked: bool,
    },
}

/// A chunk on its way into the stream.
pub(super) struct Taken<V> {
    pub(super) chunk: ChunkRead<V>,
    /// As its piece had it.
    pub(super) mismatch: Option<Fingerprint>,
}

pub(super) struct Pieces<V>(VecDeque<Piece<V>>);

impl<V> FromIterator<(TableName, KeyRange)> for Pieces<V> {
    fn from_iter<I: IntoIterator<Item = (TableName, KeyRange)>>(ranges: I) -> Pieces<V> {
        Pieces(ranges.into_iter().map(|(table, range)| Piece::waiting(table, range)).collect())
    }
}

impl<V> Piece<V> {
    fn waiting(table: TableName, range: KeyRange) -> Piece<V> {
        Piece { table, range, stage: Stage::Waiting, planned: false, mismatch: None }
    }

    fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    fn is_asked(&self, asked: Uuid) -> bool {
        matches!(self.stage, Stage::Asked { nonce, .. } if nonce == asked)
    }
}

impl<V: Visibility + Clone> Pieces<V> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn front(&self) -> Option<&Piece<V>> {
        self.0.front()
    }

    /// Whether every chunk that is held or being read shows what the transaction did.
    pub(super) fn show(&self, xid: u32) -> bool {
        self.0.iter().all(|piece| match &piece.stage {
            Stage::Waiting => true,
            Stage::Asked { floor, .. } => floor.as_ref().is_some_and(|floor| floor.sees(xid)),
            Stage::Read { chunk, .. } => chunk.snapshot.sees(xid),
        })
    }

    pub(super) fn asks(&self, asked: Uuid) -> bool {
        self.0.iter().any(|piece| piece.is_asked(asked))
    }

    pub(super) fn table_asked(&self, asked: Uuid) -> Option<&TableName> {
        self.0.iter().find(|piece| piece.is_asked(asked)).map(|piece| &piece.table)
    }

    /// Puts the pieces of these tables behind all others, in their order.
    pub(super) fn defer(&mut self, tables: &BTreeSet<TableName>) {
        let (last, first): (Vec<_>, Vec<_>) = self.0.drain(..).partition(|piece| tables.contains(&piece.table));
        self.0 = first.into_iter().chain(last).collect();
    }

    /// The first piece that nobody reads, unless `reads_max` are being read or `begun_max` were begun. Nothing is begun behind
    /// one of which it is not known where it ends: what it leaves comes before all others. The first of all may always be read.
    pub(super) fn ask(
        &mut self,
        nonce: Uuid,
        known: Option<&V>,
        reads_max: usize,
        begun_max: usize,
    ) -> Option<(TableName, KeyRange, bool)> {
        let asked = self.0.iter().filter(|piece| matches!(piece.stage, Stage::Asked { .. })).count();
        let begun = self.0.iter().filter(|piece| !piece.is_waiting()).count();
        let place = self.0.iter().position(Piece::is_waiting)?;
        let open = |piece: &Piece<V>| matches!(piece.stage, Stage::Asked { bordered: false, .. });
        if asked >= reads_max || (begun >= begun_max && place > 0) || self.0.iter().take(place).any(open) {
            return None;
        }
        let piece = &mut self.0[place];
        // Behind a single key nothing is left, and behind what was planned nothing but what is too much for a chunk.
        let bordered = piece.range.key().is_some() || piece.planned;
        piece.stage = Stage::Asked { nonce, floor: known.cloned(), bordered };
        Some((piece.table.clone(), piece.range.clone(), piece.planned || piece.range.key().is_some()))
    }

    /// Cuts what is read under this name at all these borders; the table, if it was asked for.
    pub(super) fn planned(&mut self, asked: Uuid, borders: Vec<Vec<String>>) -> Option<TableName> {
        let place = self.0.iter().position(|piece| piece.is_asked(asked))?;
        self.0[place].planned = true;
        for border in borders.into_iter().rev() {
            self.cut(place, Some(border));
        }
        self.border(asked, None)
    }

    /// Cuts what is read under this name at a border, if there is one within; the table, if it was asked for.
    pub(super) fn border(&mut self, asked: Uuid, through: Option<Vec<String>>) -> Option<TableName> {
        let place = self.0.iter().position(|piece| piece.is_asked(asked))?;
        let piece = &mut self.0[place];
        if let Stage::Asked { bordered, .. } = &mut piece.stage {
            *bordered = true;
        }
        let table = piece.table.clone();
        if through.is_some() {
            self.cut(place, through);
        }
        Some(table)
    }

    /// The piece at `place` ends at `through`; what it loses is the next one.
    fn cut(&mut self, place: usize, through: Option<Vec<String>>) {
        let piece = &mut self.0[place];
        if piece.range.through == through {
            return;
        }
        let rest = KeyRange { after: through.clone(), through: std::mem::replace(&mut piece.range.through, through) };
        let rest = Piece { planned: piece.planned, ..Piece::waiting(piece.table.clone(), rest) };
        self.0.insert(place + 1, rest);
    }

    /// A chunk that was asked for.
    pub(super) fn read(&mut self, chunk: ChunkRead<V>) {
        let place = self.0.iter().position(|piece| piece.is_asked(chunk.nonce)).expect("a chunk that was asked for");
        let piece = &mut self.0[place];
        if piece.range.key().is_some() {
            // The key's chunk begins behind the key before it.
            assert_eq!((&piece.table, &piece.range.through), (&chunk.table, &chunk.range.through), "the key asked for");
            piece.range = chunk.range.clone();
            piece.stage = Stage::Read { chunk: Box::new(chunk), marked: false };
            return;
        }
        assert_eq!(
            (&piece.table, &piece.range.after),
            (&chunk.table, &chunk.range.after),
            "a chunk of what was asked for"
        );
        assert!(piece.range.through.is_none() || chunk.range.through.is_some(), "a chunk ends where its range does");
        self.cut(place, chunk.range.through.clone());
        self.0[place].stage = Stage::Read { chunk: Box::new(chunk), marked: false };
    }

    /// A read or its message failed.
    pub(super) fn failed(&mut self, asked: Uuid) {
        for piece in &mut self.0 {
            let failed = match &piece.stage {
                Stage::Waiting => false,
                Stage::Asked { nonce, .. } => *nonce == asked,
                Stage::Read { chunk, marked } => chunk.nonce == asked && !marked,
            };
            if failed {
                piece.stage = Stage::Waiting;
            }
        }
    }

    /// Nothing was read or is being read.
    pub(super) fn forget(&mut self) {
        for piece in &mut self.0 {
            piece.stage = Stage::Waiting;
        }
    }

    pub(super) fn let_go(&mut self, table: &TableName) {
        self.0.retain(|piece| piece.table != *table);
    }

    /// The table is to be read from its beginning, at its place.
    pub(super) fn begin_anew(&mut self, table: &TableName) {
        let place = self.0.iter().position(|piece| piece.table == *table).unwrap_or(0);
        self.let_go(table);
        self.0.insert(place, Piece::waiting(table.clone(), KeyRange::ALL));
    }

    /// A key in what is loaded is to be read again, before another table is begun.
    pub(super) fn again(&mut self, table: TableName, key: KeyTexts) {
        let first = self.0.front().map(|piece| piece.table.clone());
        let last = self.0.iter().rposition(|piece| Some(&piece.table) == first.as_ref());
        let place = last.map_or(self.0.len(), |last| last + 1);
        self.0.insert(place, Piece::waiting(table, KeyRange::of_key(key)));
    }

    /// Keys of the table that are read again after all are left alone, however far that is.
    pub(super) fn keep_keys(&mut self, table: &TableName, keep: impl Fn(&KeyTexts) -> bool) {
        self.0.retain(|piece| piece.table != *table || piece.range.key().is_none_or(&keep));
    }

    pub(super) fn mark(&mut self, nonce: Uuid) {
        for piece in &mut self.0 {
            if let Stage::Read { chunk, marked } = &mut piece.stage
                && chunk.nonce == nonce
            {
                *marked = true;
            }
        }
    }

    pub(super) fn is_due(&self) -> bool {
        matches!(self.0.front().map(|piece| &piece.stage), Some(Stage::Read { marked: true, .. }))
    }

    /// The first piece's chunk if it may enter the stream, or its first rows.
    pub(super) fn take(
        &mut self,
        rows_max: usize,
        streamed: impl Fn(&TableName) -> Option<Fingerprint>,
    ) -> Result<Option<Taken<V>>> {
        let Some(Piece { table, stage: Stage::Read { chunk, marked: true }, mismatch, .. }) = self.0.front() else {
            return Ok(None);
        };
        if let Some(known) = streamed(table)
            && known != chunk.relation
            && *mismatch != Some(chunk.relation)
        {
            // Either the stream has yet to reach the change of the table, or the chunk was read before it: a second read
            // tells. The stream names a new version only with its next row, so a second mismatch is the first case.
            let mismatch = Some(chunk.relation);
            let piece = self.0.front_mut().expect("just looked");
            (piece.stage, piece.mismatch) = (Stage::Waiting, mismatch);
            return Ok(None);
        }
        let Some(Piece { table, range, stage: Stage::Read { mut chunk, marked }, planned, mismatch }) =
            self.0.pop_front()
        else {
            unreachable!("just looked")
        };
        if let Some(rest) = split(&mut chunk, rows_max)? {
            let range = KeyRange { after: rest.range.after.clone(), through: range.through };
            let stage = Stage::Read { chunk: Box::new(rest), marked };
            self.0.push_front(Piece { table, range, stage, planned, mismatch });
        }
        Ok(Some(Taken { chunk: *chunk, mismatch }))
    }

    /// What was taken must be read again.
    pub(super) fn put_back(&mut self, table: TableName, range: KeyRange, mismatch: Option<Fingerprint>) {
        self.0.push_front(Piece { mismatch, ..Piece::waiting(table, range) });
    }
}

/// Leaves the first `rows_max` rows and returns the others. A table without a key has nothing to be cut by.
fn split<V: Clone>(chunk: &mut ChunkRead<V>, rows_max: usize) -> Result<Option<ChunkRead<V>>> {
    if chunk.rows.len() <= rows_max || chunk.key_columns.is_empty() {
        return Ok(None);
    }
    let border = key_strings(&chunk.rows[rows_max - 1], &chunk.key_columns)?;
    let through = chunk.range.through.replace(border.clone());
    let rest = KeyRange { after: Some(border), through };
    Ok(Some(ChunkRead {
        nonce: chunk.nonce,
        table: chunk.table.clone(),
        snapshot: chunk.snapshot.clone(),
        relation: chunk.relation,
        key_columns: chunk.key_columns.clone(),
        key_orders: chunk.key_orders.clone(),
        key: chunk.key.clone(),
        rows: chunk.rows.split_off(rows_max),
        range: rest,
        partial: chunk.partial,
        took: chunk.took,
    }))
}

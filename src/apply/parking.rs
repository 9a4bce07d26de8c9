//! What a writer does about rows that have letters: parks records, writes what makes a row right again, and settles. The rule
//! stands in [`super::letters`]; here it is kept, in the sink's open transaction.

use std::collections::HashMap;
use std::sync::Arc;

use crate::apply::decode::{Content, Decoders, Needs, Place, Raw};
use crate::apply::letters::{At, is_by, key_of};
use crate::apply::net::NetEffect;
use crate::apply::refused::refusal;
use crate::apply::writer::{Change, Refused, Version, Writer};
use crate::change::Op;
use crate::error::{Code, Error, Result};
use crate::key::KeyRange;
use crate::ledger::state::State;
use crate::record::{HEADER, HEADER_ABSENT, HEADER_TEXT, Header, Kind};
use crate::relation::TableName;
use crate::sink::letters::{Letter, LetterKey, Reason, Spot, key_text, texts_of};
use crate::sink::{Failure, Outcome, Sink};
use crate::value::RowBuf;

/// What a letter, or a change of a row that has some, comes to.
enum Whole {
    /// The row as it is now, whatever it was.
    Is(RowBuf),
    Gone(RowBuf),
    /// Stands on what was there before.
    Part(Op),
}

/// A row of a chunk that is parked.
pub(super) type LeftOut = (LetterKey, Change, Reason);

impl<P> Version<P> {
    fn letter_key(&self, row: &RowBuf) -> Option<LetterKey> {
        let texts: Option<Vec<&[u8]>> = self.key.iter().map(|&i| row.row().get(i).text()).collect();
        let texts = texts.filter(|texts| !texts.is_empty())?;
        let columns = self.key_names.iter().map(String::as_str).zip(texts);
        Some(LetterKey { table: self.table.clone(), key: key_text(columns) })
    }

    fn is_complete(&self, row: &RowBuf) -> bool {
        self.wanted.columns.iter().all(|column| !row.row().get(column.index).is_absent())
    }

    fn whole(&self, op: Op) -> Whole {
        match op {
            // Refused beside `park`; what was parked before is not written over.
            op if self.wanted.mark.is_some() => Whole::Part(op),
            Op::Insert(row) => Whole::Is(row),
            Op::Update(row) if self.is_complete(&row) => Whole::Is(row),
            Op::Delete(row) => Whole::Gone(row),
            part => Whole::Part(part),
        }
    }

    /// What one change comes to. `tolerant`: the row may not be there.
    fn net(&self, op: Op, tolerant: bool) -> Result<NetEffect> {
        let mut fold = self.wanted.fold();
        fold.fold(op)?;
        Ok(NetEffect { loading: tolerant, ..fold.drain() })
    }

    pub fn at(&self, place: &Place) -> At {
        At { table: self.table.clone(), partition: place.partition, offset: place.offset }
    }
}

impl<S: Sink> Writer<S> {
    /// What is left of a change to be folded with others. Where the row has letters, or is to get one, that is done here.
    pub(super) async fn around_letters(
        &mut self,
        version: &Arc<Version<S::Plan>>,
        op: Op,
        change: &Change,
    ) -> Outcome<Option<Op>> {
        self.check_key(version)?;
        let of = match &op {
            Op::Rekey { .. } => return self.rekey_around_letters(version, op).await,
            Op::Insert(row) | Op::Update(row) | Op::Delete(row) => version.letter_key(row),
            Op::Truncate => None,
        };
        let Some(of) = of else { return Ok(Some(op)) };
        if let Some(reason) = self.letters.refused(&version.at(&change.place)).cloned() {
            Box::pin(self.keep(version, of, change, reason)).await?;
            return Ok(None);
        }
        if !self.letters.has(&of) {
            return Ok(Some(op));
        }
        let only = |op: Op| version.net(op, true);
        let net = match version.whole(op) {
            Whole::Is(row) => only(Op::Insert(row))?,
            Whole::Gone(row) => only(Op::Delete(row))?,
            Whole::Part(_) => {
                Box::pin(self.keep(version, of, change, Reason::behind())).await?;
                return Ok(None);
            }
        };
        self.flush().await?;
        self.write_alone(version, net, Some(change)).await?;
        self.settle(&of).await?;
        Ok(None)
    }

    /// Of what is parked under other columns nobody can say which row it is of.
    fn check_key(&mut self, version: &Version<S::Plan>) -> Result<()> {
        let table = &version.table;
        // Of a table that is read again as a whole only what is read by now is changed.
        let is_reread = self.loads.is_loading(table) && !self.loads.is_within(table);
        if is_reread || !self.letters.is_of_other_key(table, &version.key_names) {
            return Ok(());
        }
        let message = format!(
            "the key of table {} is made of other columns than that of its rows that are parked",
            version.table
        );
        let hint = format!("lockstep retry --sink {} --table {}", self.name, version.table);
        Err(Error::halt(Code::ParkedKey, message, hint))
    }

    /// A row that lives on under another key is moved if it is there, and then is what the record says.
    async fn rekey_around_letters(&mut self, version: &Arc<Version<S::Plan>>, op: Op) -> Outcome<Option<Op>> {
        let Op::Rekey { old, new } = op else { return Ok(Some(op)) };
        let keys = [&old, &new].map(|row| version.letter_key(row));
        let with: Vec<LetterKey> = keys.into_iter().flatten().filter(|of| self.letters.has(of)).collect();
        if with.is_empty() {
            return Ok(Some(Op::Rekey { old, new }));
        }
        if !version.is_complete(&new) {
            let message = format!(
                "the key of a row of {} changes that is parked, and the change lacks columns that only what is parked holds",
                version.table
            );
            let hint = format!("lockstep retry --sink {} --table {}", self.name, version.table);
            return Err(Error::halt(Code::ParkedKey, message, hint).into());
        }
        self.flush().await?;
        let moved = version.net(Op::Rekey { old, new: new.clone() }, true)?;
        self.write_alone(version, moved, None).await?;
        self.write_alone(version, version.net(Op::Insert(new), true)?, None).await?;
        for of in with {
            self.settle(&of).await?;
        }
        Ok(None)
    }

    /// One change by itself.
    async fn write_alone(
        &mut self,
        version: &Arc<Version<S::Plan>>,
        net: NetEffect,
        change: Option<&Change>,
    ) -> Outcome<()> {
        let row = version.named.only_row(&net);
        match self.sink.apply(&[(&version.plan, net)]).await {
            Ok(counts) => {
                self.counts += counts;
                self.sink.hear();
                Ok(())
            }
            Err(failure) => {
                let change = change.map(|change| (version.clone(), *change));
                self.refused = row.map(|row| Refused::Row(version.named.clone(), row, change));
                Err(failure)
            }
        }
    }

    /// The change that is about to be written by itself, if it is parked where the sink refuses it: then that is all that comes to
    /// nothing, and one try is enough for many of them.
    pub(super) async fn save_for_last(&mut self) -> Outcome<Option<(LetterKey, Change)>> {
        let last = self.last.filter(|_| self.changes == 1).zip(self.last_key.take());
        if last.is_some() {
            self.sink.save().await?;
        }
        Ok(last.map(|(change, of)| (of, change)))
    }

    /// Whether the change that was refused is parked.
    pub(super) async fn park_last(
        &mut self,
        version: &Arc<Version<S::Plan>>,
        (of, change): (LetterKey, Change),
        failure: &Failure,
    ) -> Outcome<bool> {
        let Some(halt) = refusal(failure) else { return Ok(false) };
        self.letters.room().map_err(|full| Error::Halt(full).fact(format!("the next one: {}", halt.message)))?;
        if !self.sink.take_back().await? {
            return Ok(false);
        }
        let reason = Reason::of(halt);
        tell_parked(&self.name, &version.at(&change.place), &reason);
        self.keep(version, of, &change, reason).await?;
        Ok(true)
    }

    /// What is parked of a change that is written by itself.
    pub(super) fn last_key(&self, version: &Version<S::Plan>, op: &Op) -> Option<LetterKey> {
        match op {
            Op::Insert(row) | Op::Update(row) | Op::Delete(row) if self.letters.parks && self.every() == 1 => {
                version.letter_key(row)
            }
            _ => None,
        }
    }

    /// Parks a record.
    pub(super) async fn keep(
        &mut self,
        version: &Arc<Version<S::Plan>>,
        of: LetterKey,
        change: &Change,
        reason: Reason,
    ) -> Outcome<()> {
        self.letters.room().map_err(Error::Halt)?;
        let Change { place, position, .. } = change;
        let (topic, partition, offset) = (version.topic.clone(), place.partition, place.offset);
        let again = self.again.as_mut().expect("whoever parks reads again");
        let record = self.sink.meanwhile(again.record(&topic, partition, offset)).await?;
        let spot = Spot { topic, partition, offset };
        let letter = Letter { spot, of, position: *position, record, reason, parked_at: 0 };
        self.sink.keep_letter(&letter).await?;
        self.letters.keep(letter.of);
        self.counts.parked += 1;
        Ok(())
    }

    async fn settle(&mut self, of: &LetterKey) -> Outcome<()> {
        self.sink.settle_letters(&of.table, Some(&of.key)).await?;
        self.letters.settle(of);
        Ok(())
    }

    /// Takes those that are to be parked out of the rows of a chunk; at the sink they stay as they are.
    pub(super) fn take_refused(
        &mut self,
        version: &Version<S::Plan>,
        rows: &mut Vec<RowBuf>,
        changes: &mut Vec<Change>,
    ) -> Vec<LeftOut> {
        let mut left_out = Vec::new();
        if self.letters.is_idle() {
            return left_out;
        }
        for (row, change) in std::mem::take(rows).into_iter().zip(std::mem::take(changes)) {
            let refused = self.letters.refused(&version.at(&change.place)).cloned();
            match refused.and_then(|reason| Some((version.letter_key(&row)?, reason))) {
                Some((of, reason)) => left_out.push((of, change, reason)),
                None => {
                    rows.push(row);
                    changes.push(change);
                }
            }
        }
        if !left_out.is_empty() {
            self.sink.spare(left_out.iter().map(|(of, ..)| texts_of(&of.key)).collect());
        }
        left_out
    }

    /// No row of the table is there any more.
    pub(super) async fn settle_table(&mut self, table: &TableName) -> Outcome<()> {
        let all = self.letters.of_table(table);
        if all.is_empty() {
            return Ok(());
        }
        self.sink.settle_letters(table, None).await?;
        all.iter().for_each(|of| self.letters.settle(of));
        Ok(())
    }

    /// The range holds what it should.
    pub(super) async fn settle_range(&mut self, version: &Version<S::Plan>, range: &KeyRange) -> Outcome<()> {
        // What is known by other columns is right once all of the table is; chunks come in the order of their keys.
        let is_end = range.through.is_none() && !self.loads.is_within(&version.table);
        for of in self.letters.of_table(&version.table) {
            let within = match is_by(&of, &version.key_names) {
                true => range.contains(&version.orders, &key_of(&of)).map_err(|error| {
                    let message = format!("the key of a parked row of {} can't be compared: {error}", version.table);
                    Error::halt(Code::ParkedKey, message, format!("lockstep resync {}", version.table))
                })?,
                false => is_end,
            };
            if within {
                self.settle(&of).await?;
            }
        }
        Ok(())
    }

    /// Writes what the letters of a row come to, from the last one on that says all of it, and settles them.
    pub(super) async fn put_back(&mut self, letters: &[Letter], state: &State) -> Outcome<()> {
        let Some(first) = letters.first() else { return Ok(()) };
        let mut decoders = Decoders::new(HashMap::from([(first.of.table.clone(), Needs::Rows)]));
        decoders.learn(state.relations.values().cloned().collect());
        let mut ops: Vec<(Arc<Version<S::Plan>>, Op)> = Vec::new();
        let mut tolerant = false;
        for letter in letters {
            let Some((header, op)) = op_of(&mut decoders, letter)? else { return Err(unknown(letter).into()) };
            let version = self.version(header.relation, state).await?;
            let Some(version) = version.filter(|version| version.wanted.mark.is_none()) else {
                return Err(unknown(letter).into());
            };
            let op = match version.whole(op) {
                Whole::Part(op) => op,
                Whole::Is(row) => begins(&mut ops, &mut tolerant, Op::Insert(row)),
                Whole::Gone(row) => begins(&mut ops, &mut tolerant, Op::Delete(row)),
            };
            ops.push((version, op));
        }
        // As the net effect, where only what comes to nothing in the end was refused.
        for run in ops.chunk_by(|(before, _), (after, _)| Arc::ptr_eq(before, after)) {
            let version = &run[0].0;
            let mut fold = version.wanted.fold();
            for (_, op) in run {
                fold.fold(op.clone())?;
            }
            let net = NetEffect { loading: tolerant, ..fold.drain() };
            self.write_alone(version, net, None).await?;
        }
        self.settle(&first.of).await
    }
}

/// Whatever came before an operation that says all of a row, it makes it right.
fn begins<V>(before: &mut Vec<(V, Op)>, tolerant: &mut bool, op: Op) -> Op {
    before.clear();
    *tolerant = true;
    op
}

/// What the record of a letter says; `None` of a relation that the ledger does not know any more.
fn op_of(decoders: &mut Decoders, letter: &Letter) -> Result<Option<(Header, Op)>> {
    let record = &letter.record;
    let Some(Ok(header)) = record.header(HEADER).map(Header::decode) else { return Ok(None) };
    let (absent, text) = (record.header(HEADER_ABSENT), record.header(HEADER_TEXT));
    let raw = Raw { key: record.key.as_deref(), value: record.value.as_deref(), absent, text };
    Ok(match decoders.content(raw, &header)? {
        Content::Change(op) => Some((header, op)),
        Content::Row(row) => Some((header, Op::Insert(row))),
        Content::Nothing | Content::OldKey(_) => None,
    })
}

fn unknown(letter: &Letter) -> Error {
    let message = format!(
        "what is parked of {} can't be made its row any more: the table is another one by now",
        letter.of.table
    );
    Error::halt(Code::ParkedKey, message, format!("lockstep resync {}", letter.of.table))
}

pub(super) fn tell_parked(sink: &str, at: &At, reason: &Reason) {
    let At { table, partition, offset } = at;
    let Reason { code, message, .. } = reason;
    tracing::warn!(sink, code, %table, partition, offset, "a row is parked, lockstep retry puts it back: {message}");
}

impl Change {
    pub fn new(place: Place, header: &Header) -> Change {
        let of_key_change = matches!(header.kind, Kind::KeyChangeDelete | Kind::KeyChangeCreate);
        Change { place, position: header.position, of_key_change }
    }
}

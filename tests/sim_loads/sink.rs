//! A sink: rows and a progress row that change together, and workers that walk along the ledger.

use std::collections::{BTreeMap, BTreeSet};

use lockstep::apply::machine::{At, Interval, Item, Loads, Machine};
use lockstep::apply::span::{SpanCheck, Verdict};
use lockstep::change::Op;
use lockstep::error::Error;
use lockstep::key::KeyOrder;
use lockstep::ledger::entry::{Checkpoint, RequestKind};
use lockstep::lsn::{Lsn, Position};
use lockstep::record::{Header, Kind};
use lockstep::relation::{Fingerprint, TableName};
use lockstep::value::RowBuf;

use super::Bug;
use super::choices::{Choices, tell};
use super::kafka::{Data, Kafka, PARTITIONS, Record, number, table, tables_of};
use super::source::{KEYS, Rows, Source, Values};

/// The sink's database.
pub struct Sink {
    pub name: &'static str,
    pub row: Option<Row>,
    /// As its connectors say.
    pub tables: BTreeSet<TableName>,
    /// What it has said in Kafka that it still needs: the entries from here on.
    pub told: Option<i64>,
    worker_epoch: u64,
    pub rows: Rows,
    /// Rows that moved into what is loaded and could not be made.
    left_out: BTreeSet<(usize, usize)>,
    pub workers: Vec<Worker>,
    pub commits: u64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Row {
    pub at: At,
    join_offset: Option<i64>,
    pub streaming: bool,
    /// Where the slot began whose stream it follows.
    begun: Lsn,
}

pub struct Worker {
    epoch: u64,
    row: Row,
    at: At,
    tables: BTreeSet<TableName>,
    machine: Machine,
    loads: Loads,
    next: i64,
    /// Applied in a transaction that is still open.
    open: Option<Open>,
}

/// What the open transaction would leave.
struct Open {
    to: At,
    rows: Rows,
    left_out: BTreeSet<(usize, usize)>,
    loads: Loads,
}

/// Why intervals are not applied.
pub enum Trouble {
    Wrong(String),
    /// Something was lost.
    Halt(Error),
    /// A row of this table came into what is there from a range that is read again, and not whole.
    MovedIn(usize),
}

impl From<String> for Trouble {
    fn from(what: String) -> Trouble {
        Trouble::Wrong(what)
    }
}

enum Event<'a> {
    Change(usize, &'a Op),
    Chunk(&'a lockstep::ledger::entry::Chunk, Vec<&'a RowBuf>),
}

impl Sink {
    pub fn new(name: &'static str) -> Sink {
        Sink {
            name,
            row: None,
            tables: tables_of(name),
            told: None,
            worker_epoch: 0,
            rows: Rows::new(),
            left_out: BTreeSet::new(),
            workers: Vec::new(),
            commits: 0,
        }
    }

    /// A worker takes the sink over. One without a row joins first; one whose row is from before a restart goes on there.
    pub fn start(&mut self, kafka: &mut Kafka) -> Result<(), Trouble> {
        let state = kafka.fold(kafka.ledger.len());
        if self.row.is_none() {
            let asked = state.open_joins().filter(|join| {
                let of = join.request.tables.iter().cloned().collect::<BTreeSet<_>>();
                join.request.sink == self.name && of == self.tables
            });
            let open = asked.last().map(|join| join.offset);
            let offset = open.unwrap_or_else(|| kafka.request(RequestKind::Join, self.name, &self.tables));
            let state = kafka.fold(offset as usize + 1);
            let begun = state.restarted.as_ref().map_or(Lsn::ZERO, |restarted| restarted.new);
            self.row = Some(Row { at: At::end_of(&state), join_offset: Some(offset), streaming: false, begun });
        }
        let mut row = self.row.expect("there is one now");
        if let Some(restarted) = state.restarted.as_ref().filter(|restarted| row.at.is_before(restarted)) {
            row = Row { at: At::after(restarted), join_offset: None, streaming: false, begun: restarted.new };
            self.row = Some(row);
        }
        self.worker_epoch += 1;
        let known = kafka.fold(kafka.ledger.len()).joined(self.name);
        for (kind, names) in [(RequestKind::Leave, &known - &self.tables), (RequestKind::Join, &self.tables - &known)] {
            if !names.is_empty() {
                kafka.request(kind, self.name, &names);
            }
        }
        let at = row.at;
        let needed = row.join_offset.map_or(at.offset, |join| join.min(at.offset));
        let from = kafka.fold_start(needed).map_err(Trouble::Halt)?;
        let machine = Machine::new("p", self.name, self.tables.clone(), at, row.join_offset.unwrap_or(-1));
        let (loads, tables) = (Loads::none(self.name), self.tables.clone());
        let mut worker = Worker { epoch: self.worker_epoch, row, at, tables, machine, loads, next: from, open: None };
        if at.offset >= 0 {
            while worker.next <= at.offset.min(kafka.ledger.len() as i64 - 1) {
                worker.read(kafka).map_err(Trouble::Halt)?;
            }
            worker.machine.check_row().map_err(Trouble::Halt)?;
            worker.loads = worker.machine.loads();
        }
        // Requests that stand ahead count at once.
        let state = kafka.fold(kafka.ledger.len());
        let mut last = row.join_offset;
        for join in state.joins.iter().filter(|join| join.request.sink == self.name && join.offset > at.offset) {
            worker.loads.joined(join.offset, &join.request);
            last = last.max(Some(join.offset));
        }
        if last != row.join_offset {
            worker.row = Row { join_offset: last, streaming: false, ..row };
            self.row = Some(worker.row);
            worker.machine.knows(last.unwrap_or(-1));
        }
        tell(format_args!(
            "sink {}: worker {} at {} (ledger {}), {:?}",
            self.name, worker.epoch, worker.at.position, worker.at.offset, worker.loads
        ));
        self.workers.push(worker);
        Ok(())
    }

    /// One step of a worker: an entry, an item, or its commit.
    pub fn step(
        &mut self,
        i: usize,
        source: &Source,
        kafka: &mut Kafka,
        choices: &mut Choices,
        bug: Bug,
    ) -> Result<(), Trouble> {
        if self.workers[i].open.is_some() {
            return Ok(self.commit(i, source, choices)?);
        }
        let worker = &self.workers[i];
        match worker.machine.peek() {
            None => {
                let Err(error) = self.workers[i].read(kafka) else { return Ok(()) };
                self.halt(i, error)
            }
            // The transaction begins with a look at the row.
            Some(Item::Interval(_)) if !self.owns(i) => {
                self.workers.remove(i);
                Ok(())
            }
            Some(Item::Interval(_)) => {
                let worker = &mut self.workers[i];
                match worker.intervals(kafka, &self.rows, &self.left_out, (choices, self.name, bug)) {
                    Ok(open) => worker.open = open,
                    Err(Trouble::MovedIn(moved_in)) => {
                        // Only all of the table heals that; it counts from the next start on.
                        kafka.request(RequestKind::Resync, self.name, &BTreeSet::from([table(moved_in)]));
                        self.workers.remove(i);
                    }
                    Err(Trouble::Halt(error)) => return self.halt(i, error),
                    Err(wrong) => return Err(wrong),
                }
                Ok(())
            }
            Some(Item::Joined(offset, request)) => {
                let (offset, request) = (*offset, request.clone());
                let worker = &mut self.workers[i];
                worker.machine.pop();
                worker.loads.joined(offset, &request);
                if worker.machine.is_known(offset) {
                    return Ok(());
                }
                self.write_row(i, |row| Row { join_offset: Some(offset), streaming: false, ..row });
                Ok(())
            }
            Some(Item::Loaded(id)) => {
                let id = *id;
                let worker = &mut self.workers[i];
                worker.machine.pop();
                worker.loads.loaded(id);
                self.end_of_load(i);
                Ok(())
            }
            Some(Item::Left(offset, leave)) => {
                let (offset, leave) = (*offset, leave.clone());
                let worker = &mut self.workers[i];
                worker.machine.pop();
                worker.loads.left(offset, &leave);
                self.end_of_load(i);
                Ok(())
            }
            Some(Item::Routed(..)) => unreachable!("nobody has patterns here"),
        }
    }

    fn end_of_load(&mut self, i: usize) {
        let worker = &self.workers[i];
        if worker.loads.is_empty() && !worker.row.streaming {
            self.write_row(i, |row| Row { join_offset: None, streaming: true, ..row });
        }
    }

    /// Only whoever has the sink says that it halts; whoever is to start anew does.
    fn halt(&mut self, i: usize, what: Error) -> Result<(), Trouble> {
        let is_owner = self.owns(i);
        self.workers.remove(i);
        match what.code() {
            Some(_) if is_owner => Err(Trouble::Halt(what)),
            _ => Ok(()),
        }
    }

    /// The newest worker goes by the connectors as they are now.
    pub fn has_worker(&self) -> bool {
        self.workers.last().is_some_and(|worker| worker.tables == self.tables)
    }

    fn owns(&self, i: usize) -> bool {
        let worker = &self.workers[i];
        worker.epoch == self.worker_epoch && self.row == Some(worker.row)
    }

    fn write_row(&mut self, i: usize, to: impl Fn(Row) -> Row) {
        if !self.owns(i) {
            self.workers.remove(i);
            return;
        }
        let worker = &mut self.workers[i];
        worker.row = to(Row { at: worker.at, ..worker.row });
        self.row = Some(worker.row);
    }

    /// Rows and progress in one transaction.
    fn commit(&mut self, i: usize, source: &Source, choices: &mut Choices) -> Result<(), String> {
        let is_owner = self.owns(i);
        let Open { to, rows, left_out, loads } = self.workers[i].open.take().expect("called with something to commit");
        if !is_owner {
            self.workers.remove(i);
            return Ok(());
        }
        let worker = &mut self.workers[i];
        let row = Row { at: to, ..worker.row };
        (self.rows, self.left_out, self.row) = (rows, left_out, Some(row));
        self.commits += 1;
        (worker.row, worker.at, worker.loads) = (row, to, loads);
        tell(format_args!(
            "sink {}: worker {} commits to {} (ledger {})",
            self.name, worker.epoch, to.position, to.offset
        ));
        // What committed before the slot began is in no stream, and in every row that was read since.
        let as_of = to.position.lsn.max(Lsn(row.begun.0.saturating_sub(1)));
        let outcome = judge(&worker.tables, &self.rows, &self.left_out, &worker.loads, source.as_of(as_of));
        if choices.percent(30) {
            self.told = Some(row.join_offset.unwrap_or(i64::MAX).min(to.offset) + 1);
        }
        if choices.percent(10) {
            // The answer is lost, and with it the worker.
            self.workers.remove(i);
        }
        outcome.map_err(|what| format!("sink {} at {}: {what}", self.name, to.position))
    }

    /// Nothing is under load, and everything is here.
    pub fn is_level(&self, source: &Source) -> bool {
        let all = source.as_of(source.end());
        let is_mine = |number: usize| self.tables.contains(&table(number));
        let mine = |rows: &Rows| -> Rows {
            rows.iter().filter(|((number, _), _)| is_mine(*number)).map(|(k, v)| (*k, *v)).collect()
        };
        let idle = |worker: &Worker| worker.tables == self.tables && worker.loads.is_empty() && worker.open.is_none();
        self.row.is_some_and(|row| row.streaming) && self.workers.iter().any(idle) && mine(&self.rows) == mine(all)
    }
}

/// What the sink must hold: of a table under load the ranges that are there, but for rows that had to be left out.
fn judge(
    tables: &BTreeSet<TableName>,
    rows: &Rows,
    left_out: &BTreeSet<(usize, usize)>,
    loads: &Loads,
    source: &Rows,
) -> Result<(), String> {
    for name in tables {
        let number = number(name);
        for key in 0..KEYS {
            let (here, there) = (rows.get(&(number, key)), source.get(&(number, key)));
            let text = key.to_string();
            let is_there = loads.admits(name, &[KeyOrder::Integer], &[text.as_bytes()]).map_err(|e| e.to_string())?;
            let is_left_out = loads.is_loading(name) && here.is_none() && left_out.contains(&(number, key));
            if is_there && here != there && !is_left_out {
                return Err(format!("row {key} of {name} is {here:?}, at the source {there:?}"));
            }
        }
    }
    Ok(())
}

impl Worker {
    fn read(&mut self, kafka: &Kafka) -> Result<(), Error> {
        if self.next < kafka.low {
            return Err(kafka.fold_start(self.next - 1).err().unwrap_or_else(|| Error::retry_plain("trimmed")));
        }
        let Some(entry) = kafka.ledger.get(self.next as usize) else { return Ok(()) };
        let offset = self.next;
        self.next += 1;
        self.machine.entry(offset, entry.clone())
    }

    /// Applies some intervals in one transaction; `None` if nothing of them concerns this sink.
    fn intervals(
        &mut self,
        kafka: &Kafka,
        rows: &Rows,
        left_out: &BTreeSet<(usize, usize)>,
        (choices, sink, bug): (&mut Choices, &str, Bug),
    ) -> Result<Option<Open>, Trouble> {
        let mut gathered: Vec<Interval> = Vec::new();
        while let Some(Item::Interval(next)) = self.machine.peek() {
            if !gathered.is_empty() && choices.percent(50) {
                break;
            }
            gathered.push(Interval::clone(next));
            self.machine.pop();
        }
        let to = gathered.iter().fold(self.at, |at, interval| interval.at(at));
        if !gathered.iter().any(|interval| interval.concerns) {
            self.at = to;
            return Ok(None);
        }
        let (rows, left_out, loads) = (rows.clone(), left_out.clone(), self.loads.clone());
        let mut open = Open { to, rows, left_out, loads };
        for interval in gathered.iter().filter(|interval| interval.concerns) {
            let records = fetch(kafka, &interval.checkpoint).map_err(Trouble::Halt)?;
            for (at, event) in in_order(events(&interval.checkpoint, &records, &self.tables)?, bug) {
                let outcome = match event {
                    Event::Change(number, op) => open.change(number, op, bug),
                    Event::Chunk(chunk, rows) => {
                        if open.loads.wants(interval.offset, chunk) {
                            open.chunk(chunk, &rows);
                            open.loads.chunk(interval.offset, chunk, &self.machine.state().relations);
                        }
                        Ok(())
                    }
                };
                outcome.map_err(|trouble| match trouble {
                    Trouble::Wrong(what) => Trouble::Wrong(format!("sink {sink} at {at}: {what}")),
                    other => other,
                })?;
            }
        }
        Ok(Some(open))
    }
}

/// The records of a checkpoint's spans, each span checked.
fn fetch<'a>(kafka: &'a Kafka, checkpoint: &Checkpoint) -> Result<BTreeMap<Position, &'a Record>, Error> {
    let mut records = BTreeMap::new();
    for span in &checkpoint.spans {
        let mut check = SpanCheck::new(checkpoint, span);
        for (offset, record) in (0..).zip(&kafka.data[span.partition as usize]).skip(span.first as usize) {
            if check.is_done() || offset > span.last {
                break;
            }
            let kind = if matches!(record.data, Data::ChunkRow(_)) { Kind::ChunkRow } else { Kind::Change };
            let header = Header { kind, epoch: record.epoch, position: record.position, relation: Fingerprint(0) };
            match check.record(offset, Some(&header))? {
                Verdict::Take => drop(records.insert(record.position, record)),
                Verdict::Skip => {}
            }
        }
        check.end()?;
    }
    Ok(records)
}

/// The order in which they are applied: that of their positions, but for mistakes.
fn in_order(mut events: Vec<(Position, Event<'_>)>, bug: Bug) -> Vec<(Position, Event<'_>)> {
    let is_delete = |event: &Event<'_>| matches!(event, Event::Change(_, Op::Delete(_)));
    match bug {
        Bug::DeletesLast => events.sort_by_key(|(_, event)| is_delete(event)),
        // As they come from the partitions, one after the other.
        Bug::OrderByLsn => events.sort_by_key(|(at, _)| (at.lsn, at.ordinal % PARTITIONS as u64)),
        _ => {}
    }
    events
}

/// Changes and chunks of the sink's tables in the order of their positions.
fn events<'a>(
    checkpoint: &'a Checkpoint,
    records: &BTreeMap<Position, &'a Record>,
    mine: &BTreeSet<TableName>,
) -> Result<Vec<(Position, Event<'a>)>, String> {
    let is_mine = |name: &TableName| mine.contains(name);
    let mut events = Vec::new();
    for (position, record) in records {
        if let Data::Change { table: number, op } = &record.data
            && is_mine(&table(*number))
        {
            events.push((*position, Event::Change(*number, op)));
        }
    }
    for chunk in checkpoint.chunks.iter().filter(|chunk| is_mine(&chunk.table)) {
        let rows: Vec<&RowBuf> = records
            .range(chunk.at..chunk.end())
            .filter_map(|(_, record)| match &record.data {
                Data::ChunkRow(row) => Some(row),
                Data::Change { .. } => None,
            })
            .collect();
        if rows.len() as u64 != chunk.rows {
            return Err(format!("the chunk at {} counts {} rows, {} are there", chunk.at, chunk.rows, rows.len()));
        }
        events.push((chunk.at, Event::Chunk(chunk, rows)));
    }
    events.sort_by_key(|(at, _)| *at);
    Ok(events)
}

impl Open {
    /// A change as the writer takes it: of a table under load only where it is loaded; otherwise of rows that must be there.
    fn change(&mut self, number: usize, op: &Op, bug: Bug) -> Result<(), Trouble> {
        let name = table(number);
        let is_loading = self.loads.is_loading(&name);
        let admits = |row: &RowBuf| {
            if bug == Bug::AdmitsAll {
                return Ok(true);
            }
            let text = row.row().get(0).text().expect("keys are there");
            self.loads.admits(&name, &[KeyOrder::Integer], &[text]).map_err(|e| e.to_string())
        };
        match op {
            Op::Truncate => {
                self.rows.retain(|(of, _), _| *of != number);
                self.left_out.retain(|(of, _)| *of != number);
            }
            Op::Insert(row) => {
                if admits(row)? {
                    let key = (number, key(row));
                    if self.rows.insert(key, values(row, None)).is_some() && !is_loading {
                        return Err(format!("row {} is there before it is inserted", key.1).into());
                    }
                    self.left_out.remove(&key);
                }
            }
            Op::Update(row) => {
                if admits(row)? {
                    let key = (number, key(row));
                    match self.rows.get(&key).copied() {
                        Some(before) => {
                            let unsent = if bug == Bug::WritesPlaceholder { 0 } else { before.big };
                            self.rows.insert(key, values(row, Some(Values { big: unsent, ..before })));
                        }
                        None if is_loading && self.left_out.contains(&key) => {}
                        None => return Err(format!("row {} is not there to be updated", key.1).into()),
                    }
                }
            }
            Op::Delete(row) => {
                if admits(row)? {
                    self.delete((number, key(row)), is_loading)?;
                }
            }
            Op::Rekey { old, new } => match (admits(old)?, admits(new)?) {
                (true, true) => {
                    let (from, to) = ((number, key(old)), (number, key(new)));
                    let before = self.rows.remove(&from);
                    let was_left_out = self.left_out.remove(&from);
                    if before.is_none() && !(is_loading && was_left_out) {
                        return Err(format!("row {} is not there to be moved", from.1).into());
                    }
                    match before.is_none() && new.row().has_absent() {
                        true => drop(self.left_out.insert(to)),
                        false => drop(self.rows.insert(to, values(new, before))),
                    }
                }
                (true, false) => self.delete((number, key(old)), is_loading)?,
                // Nobody watched a range that is there because nobody asked for it.
                (false, true) if new.row().has_absent() && self.loads.is_within(&name) => {
                    return Err(Trouble::MovedIn(number));
                }
                (false, true) if new.row().has_absent() => drop(self.left_out.insert((number, key(new)))),
                (false, true) => drop(self.rows.insert((number, key(new)), values(new, None))),
                (false, false) => {}
            },
        }
        Ok(())
    }

    fn delete(&mut self, key: (usize, usize), is_loading: bool) -> Result<(), String> {
        let was_left_out = self.left_out.remove(&key);
        match self.rows.remove(&key) {
            Some(_) => Ok(()),
            None if is_loading && was_left_out => Ok(()),
            None => Err(format!("row {} is not there to be deleted", key.1)),
        }
    }

    /// The range holds exactly these rows.
    fn chunk(&mut self, chunk: &lockstep::ledger::entry::Chunk, rows: &[&RowBuf]) {
        let of = number(&chunk.table);
        let inside =
            |key: usize| chunk.range.contains(&[KeyOrder::Integer], &[key.to_string()]).expect("keys are numbers");
        self.rows.retain(|(table, key), _| *table != of || !inside(*key));
        self.left_out.retain(|(table, key)| *table != of || !inside(*key));
        self.rows.extend(rows.iter().map(|row| ((of, key(row)), values(row, None))));
    }
}

fn key(row: &RowBuf) -> usize {
    cell(row, 0).expect("keys are there") as usize
}

fn cell(row: &RowBuf, column: usize) -> Option<u32> {
    let text = row.row().get(column).text()?;
    Some(std::str::from_utf8(text).expect("digits").parse().expect("digits"))
}

/// The row's values; what is absent is as it was before.
fn values(row: &RowBuf, before: Option<Values>) -> Values {
    Values {
        small: cell(row, 1).expect("small columns are sent"),
        big: cell(row, 2).or(before.map(|before| before.big)).expect("a row is made whole"),
    }
}

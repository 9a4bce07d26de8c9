//! A reader: the machine that cuts checkpoints and the loader of existing rows, with the few lines that the driver has between
//! them and the world, and a reader of chunks whose every step can be the last.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use lockstep::capture::chunks::range_key;
use lockstep::capture::forgets::Forgets;
use lockstep::capture::machine::{Acked, Admit, Machine, ReadBack};
use lockstep::capture::pace::ChunkSize;
use lockstep::capture::requests::{answerable, plan, resumed, unasked, unwatched};
use lockstep::capture::snapshot::{Action, ChunkRead, Job, Loader, Read, Ready};
use lockstep::key::{KeyOrder, KeyRange};
use lockstep::ledger::entry::{
    Body, Chunk, Claim, Done, Entry, Forget, RelationEntry, Request, RequestKind, Restart, SourceEntry, SourceIdentity,
};
use lockstep::ledger::state::{Event, State};
use lockstep::lsn::{Lsn, Position};
use lockstep::record::Epoch;
use lockstep::relation::{Relation, TableName};
use lockstep::value::RowBuf;
use uuid::Uuid;

use super::Bug;
use super::choices::{Choices, tell};
use super::kafka::{Data, Kafka, PARTITIONS, Record, TOPIC, number, sinks_of, table};
use super::source::{Message, Rows, Snapshot, Source, TABLES, row};

const CONNECTIONS: usize = 2;

pub struct Reader {
    nonce: u64,
    /// The server streams to it and takes its confirmations. It may not know that this is over.
    pub connected: bool,
    pub dead: bool,
    claim: Option<i64>,
    /// Where the restart stands that followed our claim.
    restart: Option<i64>,
    begins_anew: bool,
    pub running: Option<Running>,
    /// Sent and not landed, by partition.
    flights: [VecDeque<(Record, u64)>; PARTITIONS],
    entries: VecDeque<Entry>,
    /// Chunks that were handed over and whose message is still to be written: whatever becomes of the reader.
    marks: Vec<Uuid>,
}

pub struct Running {
    machine: Machine,
    state: State,
    /// The entry to read back next.
    next: i64,
    cursor: usize,
    open: Option<usize>,
    acks: [VecDeque<Acked>; PARTITIONS],
    last_ack: [i64; PARTITIONS],
    last_entry: i64,
    /// Numbers of appends of checkpoints that landed, and their offsets.
    landed: VecDeque<(u64, i64)>,
    appends: u64,
    received: Lsn,
    confirm: Lsn,
    now: Duration,
    loader: Loader<Snapshot>,
    forgets: Forgets,
    done: Vec<(Position, Vec<Uuid>)>,
    fence: Option<(Uuid, u32)>,
    reads: Vec<Reading>,
    /// Tables of which rows were read.
    seen: BTreeSet<TableName>,
    /// Chunks that were made too early.
    early: VecDeque<Ready>,
    base: Option<i64>,
    writing_base: bool,
}

/// A chunk that is being read.
struct Reading {
    read: Read,
    /// With how much of it was told where it ends.
    taken: Option<(Snapshot, Rows)>,
    bordered: bool,
    /// What ends it, as it was told or found.
    through: Option<Vec<String>>,
}

/// What a run counts.
#[derive(Default, Clone, Copy)]
pub struct Totals {
    pub chunks: u64,
    pub rows: u64,
    pub loads: u64,
    pub resumed: u64,
    pub again: u64,
    pub bases: u64,
    pub restarts: u64,
}

pub struct World<'a> {
    pub source: &'a mut Source,
    pub kafka: &'a mut Kafka,
    pub choices: &'a mut Choices,
    pub totals: &'a mut Totals,
    pub bug: Bug,
    /// This reader has the slot.
    pub holds: bool,
    pub halted: &'a mut Option<String>,
}

impl Reader {
    /// With what it is to write before its claim.
    pub fn new(nonce: u64, made: Option<SourceIdentity>) -> Reader {
        let claim = Claim { instance: Uuid::nil(), nonce, timeline: 1, host: String::new(), version: String::new() };
        let made = made.map(|made| Body::Source(SourceEntry { intent: None, made: Some(made) }));
        Reader {
            nonce,
            connected: true,
            dead: false,
            claim: None,
            restart: None,
            begins_anew: false,
            running: None,
            flights: Default::default(),
            entries: made.into_iter().chain([Body::Claim(claim)]).map(|body| Entry::new(None, body)).collect(),
            marks: Vec::new(),
        }
    }

    pub fn die(&mut self) {
        tell(format_args!("reader {} dies", self.nonce));
        (self.dead, self.connected, self.running) = (true, false, None);
    }

    /// One step, dead or alive.
    pub fn step(&mut self, world: &mut World<'_>) -> Result<(), String> {
        match world.choices.below(20) {
            0..4 => self.land(world),
            4 | 5 => self.land_entry(world),
            6 => self.write_mark(world),
            _ if self.dead => {}
            7 | 8 => self.take_acks(),
            9 | 10 => return self.read_back(world),
            11 => self.append(world),
            12..15 => return self.load(world),
            _ => return self.stream(world),
        }
        Ok(())
    }

    /// A record arrives in its partition.
    fn land(&mut self, world: &mut World<'_>) {
        let partition = world.choices.below(PARTITIONS);
        let Some((record, token)) = self.flights[partition].pop_front() else { return };
        if self.dead && world.choices.percent(30) {
            // Lost on the way, with everything behind it.
            self.flights[partition].clear();
            return;
        }
        let offset = world.kafka.data[partition].len() as i64;
        world.kafka.data[partition].push(record);
        if let Some(running) = &mut self.running {
            // The producer ends the epoch when an offset does not rise: Kafka lost something.
            if offset <= std::mem::replace(&mut running.last_ack[partition], offset) {
                return self.die();
            }
            let (partition_id, first, last) = (partition as i32, offset, offset);
            running.acks[partition].push_back(Acked {
                route: 0,
                partition: partition_id,
                token,
                first,
                last,
                count: 1,
            });
        }
    }

    fn land_entry(&mut self, world: &mut World<'_>) {
        let Some(entry) = self.entries.pop_front() else { return };
        if self.dead && world.choices.percent(30) {
            self.entries.clear();
            return;
        }
        let offset = world.kafka.ledger.len() as i64;
        tell(format_args!("ledger {offset}: {}", short(&entry.body)));
        let is_checkpoint = matches!(entry.body, Body::Checkpoint(_));
        let (is_claim, is_restart) = (matches!(entry.body, Body::Claim(_)), matches!(entry.body, Body::Restart(_)));
        world.kafka.ledger.push(entry);
        // The same for the ledger.
        if let Some(running) = &mut self.running
            && offset <= std::mem::replace(&mut running.last_entry, offset)
        {
            return self.die();
        }
        match &mut self.running {
            // One at a time is sent, so it is the newest.
            Some(running) if is_checkpoint => running.landed.push_back((running.appends, offset)),
            None if !self.dead && is_claim => self.claim = Some(offset),
            None if !self.dead && is_restart => self.restart = Some(offset),
            _ => {}
        }
    }

    fn write_mark(&mut self, world: &mut World<'_>) {
        if !self.marks.is_empty() {
            let nonce = self.marks.remove(0);
            world.source.mark(nonce);
        }
    }

    fn take_acks(&mut self) {
        let Some(running) = &mut self.running else { return };
        for partition in 0..PARTITIONS {
            running.acks[partition].drain(..).for_each(|ack| running.machine.acked(ack));
        }
        while let Some((number, offset)) = running.landed.pop_front() {
            // It may have been read back already, and another one be on its way.
            if number == running.appends && running.machine.is_appending() {
                running.machine.appended(offset);
            }
        }
    }

    /// Reads the next entry back; before that, its own claim.
    fn read_back(&mut self, world: &mut World<'_>) -> Result<(), String> {
        let Some(running) = &mut self.running else { return self.begin(world) };
        if running.next > world.kafka.ledger.len() as i64 || running.next < world.kafka.low {
            self.die();
            return Ok(());
        }
        let Some(entry) = world.kafka.ledger.get(running.next as usize) else { return Ok(()) };
        let event = running.state.apply(running.next, entry.clone());
        if event == Event::Base {
            running.writing_base = false;
            if running.state.base == Some(running.next) {
                running.base = running.state.base;
            }
        }
        if matches!(&event, Event::Requested(request) if request.kind == RequestKind::Restart) {
            self.die();
            return Ok(());
        }
        match running.machine.read_back(running.next, &event) {
            ReadBack::Nothing => {}
            ReadBack::Confirm(lsn) => running.confirm = running.confirm.max(lsn),
            ReadBack::Fenced(_) => {
                self.die();
                return Ok(());
            }
        }
        running.next += 1;
        if world.holds {
            world.source.confirmed = world.source.confirmed.max(running.confirm.min(running.received));
        }
        Ok(())
    }

    /// A claim that was acknowledged makes an epoch, and the load of the reader before goes on.
    fn begin(&mut self, world: &mut World<'_>) -> Result<(), String> {
        let Some(claim) = self.claim.filter(|_| !self.dead) else { return Ok(()) };
        let epoch = Epoch { offset: claim as u64, nonce: self.nonce };
        let behind = self.restart.unwrap_or(claim) as usize + 1;
        let state =
            (behind <= world.kafka.ledger.len() && behind as i64 > world.kafka.low).then(|| world.kafka.fold(behind));
        let Some(state) = state.filter(|state| state.claim == Some(epoch)) else {
            self.die();
            return Ok(());
        };
        if let Some(asked) = &state.asked {
            match &state.next {
                // Asked for meanwhile.
                None => self.die(),
                Some(_) if self.begins_anew => {}
                Some(next) => {
                    self.begins_anew = true;
                    world.totals.restarts += 1;
                    let (old, new) = (state.last.map(|last| last.closed), next.consistent_point);
                    let restart =
                        Restart { epoch, request: asked.id, old, new, old_ledger: None, reason: String::new() };
                    self.entries.push_back(Entry::new(state.base, Body::Restart(restart)));
                }
            }
            return Ok(());
        }
        let Some(source) = &state.source else {
            *world.halted = Some("LEDGER_LOST".to_owned());
            self.die();
            return Ok(());
        };
        let closed = state.last.map_or(source.consistent_point, |last| last.closed);
        let confirmed = world.source.confirmed;
        if self.connected && confirmed > closed {
            tell(format_args!("the slot is confirmed up to {confirmed}, the ledger closed {closed}"));
            *world.halted = Some("SLOT_MOVED".to_owned());
            self.die();
            return Ok(());
        }
        // Where the ledger lost a base that is still named, a start knows nothing of what stands before.
        for version in world.kafka.versions.iter().filter(|version| !state.relations.contains_key(&version.fingerprint))
        {
            let relation = Relation::clone(version);
            self.entries.push_back(Entry::new(state.base, Body::Relation(Box::new(RelationEntry { relation }))));
        }
        let cursor = world.source.log.iter().position(|m| m.end() > confirmed).unwrap_or(world.source.log.len());
        let size = ChunkSize::new(10, 1 << 20, Duration::from_secs(1));
        let mut running = Running {
            machine: Machine::new(epoch, state.last, closed, Duration::ZERO),
            next: behind as i64,
            cursor,
            open: None,
            acks: Default::default(),
            last_ack: [-1; PARTITIONS],
            last_entry: behind as i64 - 1,
            landed: VecDeque::new(),
            appends: 0,
            received: confirmed,
            confirm: Lsn::ZERO,
            now: Duration::ZERO,
            loader: Loader::new(CONNECTIONS, size),
            forgets: Forgets::default(),
            done: Vec::new(),
            fence: None,
            reads: Vec::new(),
            seen: BTreeSet::new(),
            early: VecDeque::new(),
            base: state.base,
            writing_base: false,
            state,
        };
        running.go_on_loading(world);
        self.running = Some(running);
        Ok(())
    }

    fn append(&mut self, world: &mut World<'_>) {
        let Some(running) = &mut self.running else { return };
        running.now += Duration::from_millis(1);
        if running.writing_base {
            return;
        }
        let calm = !running.machine.is_appending() && running.machine.oldest_unread().is_none();
        if calm && self.entries.is_empty() && world.choices.percent(10) {
            let tables = (0..TABLES).map(table).collect();
            let (topics, looks) = Default::default();
            let base = running.state.as_base(running.machine.epoch(), topics, looks, tables);
            running.writing_base = true;
            world.totals.bases += 1;
            self.entries.push_back(Entry::new(running.base, Body::Base(Box::new(base))));
            return;
        }
        let names = [TOPIC.to_owned()];
        if let Some(checkpoint) = running.machine.next_append(running.now, &names, &mut running.forgets, true) {
            running.appends += 1;
            self.entries.push_back(Entry::new(running.base, Body::Checkpoint(checkpoint)));
        }
    }

    /// The next message of the stream.
    fn stream(&mut self, world: &mut World<'_>) -> Result<(), String> {
        let Reader { running: Some(running), connected: true, flights, .. } = self else { return Ok(()) };
        let Some(message) = world.source.log.get(running.cursor) else {
            let end = world.source.end();
            running.machine.keepalive(end);
            running.received = running.received.max(end);
            return Ok(());
        };
        match message {
            Message::Mark { end, nonce } => {
                running.received = running.received.max(*end);
                running.cursor += 1;
                running.loader.mark(*nonce);
                running.emit_due(world, flights)
            }
            Message::Transaction { lsn, end, xid, changes } => {
                match running.open {
                    None => match running.machine.begin(*lsn) {
                        Admit::Take => running.open = Some(0),
                        Admit::Drop => {
                            running.machine.dropped(*end);
                            running.received = running.received.max(*end);
                            running.cursor += 1;
                        }
                    },
                    Some(n) if n < changes.len() => {
                        let change = changes[n];
                        let (position, token) = running.machine.record();
                        let data = Data::Change { table: change.table(), op: change.op() };
                        let record = Record { epoch: running.machine.epoch(), position, data };
                        flights[n % PARTITIONS].push_back((record, token));
                        running.open = Some(n + 1);
                        tell(format_args!("reader: {change:?} at {position}"));
                        running.remember(*xid, change, world)?;
                    }
                    Some(_) => {
                        running.machine.commit(*end, 1);
                        running.open = None;
                        running.received = running.received.max(*end);
                        running.cursor += 1;
                    }
                }
                Ok(())
            }
        }
    }

    /// One step of the loads: requests become jobs, what the loader asks for is done, answers are given.
    fn load(&mut self, world: &mut World<'_>) -> Result<(), String> {
        let Some(running) = &mut self.running else { return Ok(()) };
        match world.choices.below(6) {
            0 => running.finish(&mut self.entries, world),
            1 => running.ask(world),
            2 => {
                if let Some((asked, xid)) = running.fence
                    && (world.source.snapshot().0.oldest() > xid || world.bug == Bug::NoFence)
                {
                    running.fence = None;
                    running.loader.fenced(asked);
                }
                Ok(())
            }
            3 => running.emit_due(world, &mut self.flights),
            _ => {
                running.read_chunk(&mut self.marks, world);
                Ok(())
            }
        }
    }
}

impl Running {
    fn answers(&self) -> impl Fn(&Request) -> bool + use<> {
        |request| (0..TABLES).map(table).collect::<Vec<_>>().iter().any(|name| request.tables.contains(name))
    }

    fn plan(&self) -> Job {
        let order: Vec<TableName> = (0..TABLES).map(table).collect();
        plan(self.answers(), sinks_of, &order, &self.state)
    }

    fn go_on_loading(&mut self, world: &mut World<'_>) {
        self.forgets.begin(&self.state.again);
        let goes_on = answerable(self.answers(), &self.state).any(|join| !join.loaded.is_empty());
        let job = goes_on.then(|| {
            let job = self.plan();
            Job { resumed: resumed(&job, &self.state), ..job }
        });
        let at = self.machine.position();
        for (table, request) in unwatched(job.as_ref(), &self.state) {
            let (table, request) = (Some(table), Some(request));
            self.forgets.push(Forget { table, request, at, ..Forget::default() });
        }
        if let Some(job) = job {
            world.totals.resumed += u64::from(!job.resumed.is_empty());
            self.loader.start(job);
        }
    }

    /// Tells requests that they are done, and begins the next job.
    fn finish(&mut self, entries: &mut VecDeque<Entry>, world: &mut World<'_>) -> Result<(), String> {
        let appended = match world.bug {
            Bug::DoneEarly => Position::new(Lsn(u64::MAX), 0),
            _ => self.machine.appended_to(),
        };
        while let Some(index) = self.done.iter().position(|(at, _)| *at <= appended) {
            if self.writing_base {
                return Ok(());
            }
            for id in self.done.swap_remove(index).1 {
                let epoch = self.machine.epoch();
                entries.push_back(Entry::new(self.base, Body::Done(Done { id, epoch, result: "ok".to_owned() })));
                self.state.end(id);
                world.totals.loads += 1;
            }
        }
        if self.loader.is_idle() && self.done.is_empty() && answerable(self.answers(), &self.state).count() > 0 {
            let job = self.plan();
            let job = Job { resumed: unasked(&job, &self.state), ..job };
            self.loader.start(job);
        }
        Ok(())
    }

    fn ask(&mut self, world: &mut World<'_>) -> Result<(), String> {
        match self.loader.next_action(world.kafka.nonce(), true) {
            None => {}
            Some(Action::Fence(asked)) => self.fence = Some((asked, world.source.xid())),
            Some(Action::Read(read)) => {
                self.reads.push(Reading { read, taken: None, bordered: false, through: None });
            }
            Some(Action::Done(requests)) => {
                let others = self.state.open_joins().filter(|join| !requests.contains(&join.request.id));
                self.forgets.told_to_older(others.flat_map(|join| join.request.tables.iter().cloned()));
                let at = self.machine.position();
                self.forgets.push(Forget { at, besides: requests.clone(), ..Forget::default() });
                self.done.push((at, requests));
            }
        }
        Ok(())
    }

    fn remember(&mut self, xid: u32, change: super::source::Change, world: &mut World<'_>) -> Result<(), String> {
        let name = table(change.table());
        let is_late = world.bug == Bug::LateOverlay && !self.seen.contains(&name);
        if !self.loader.remembers(&name) || world.bug == Bug::NoOverlay || is_late {
            return Ok(());
        }
        let version = world.kafka.versions[change.table()].fingerprint;
        let key = [(0, KeyOrder::Integer)];
        self.loader.remember(xid, &name, version, &key, change.op()).map_err(|e| e.to_string())?;
        for (table, key) in self.loader.left_out() {
            world.totals.again += 1;
            let at = self.machine.position();
            if world.bug != Bug::NoForgets {
                self.forgets.push(Forget { table: Some(table), key: Some(key), at, ..Forget::default() });
            }
        }
        Ok(())
    }

    /// One step of one of those who read chunks: a snapshot, a border, the rows.
    fn read_chunk(&mut self, marks: &mut Vec<Uuid>, world: &mut World<'_>) {
        if self.reads.is_empty() {
            return;
        }
        let place = world.choices.below(self.reads.len());
        let reading = &mut self.reads[place];
        if world.choices.percent(3) {
            self.loader.failed(reading.read.nonce);
            self.reads.remove(place);
            return;
        }
        let Some((snapshot, rows)) = &reading.taken else {
            if world.bug == Bug::MarkFirst {
                marks.push(reading.read.nonce);
            }
            let (snapshot, rows) = world.source.snapshot();
            tell(format_args!("reader: snapshot {snapshot:?} for {:?} of {}", reading.read.range, reading.read.table));
            self.seen.insert(reading.read.table.clone());
            reading.taken = Some((snapshot, rows));
            return;
        };
        let of = number(&reading.read.table);
        let orders = [KeyOrder::Integer];
        let inside =
            |range: &KeyRange, key: usize| range.contains(&orders, &[key.to_string()]).expect("keys are numbers");
        let keys: Vec<usize> = rows.keys().filter(|(table, _)| *table == of).map(|(_, key)| *key).collect();
        let version = &world.kafka.versions[of];
        let single = reading.read.range.key().map(|key| key[0].parse::<usize>().expect("keys are numbers"));
        let range = match single {
            Some(key) => {
                let before = keys.iter().filter(|other| **other < key).max();
                let after = before.map(|key| vec![key.to_string()]);
                KeyRange { after, through: Some(vec![key.to_string()]) }
            }
            None if reading.bordered => KeyRange { through: reading.through.clone(), ..reading.read.range.clone() },
            None => {
                // As many rows as are taken at once, and what the last of them is.
                let rows_max = 1 + world.choices.below(3);
                let last = keys.iter().filter(|key| inside(&reading.read.range, **key)).nth(rows_max - 1);
                let through = last.map(|key| vec![key.to_string()]);
                let ends = through.clone().or(reading.read.range.through.clone());
                if reading.read.border_wanted && world.choices.percent(70) {
                    (reading.bordered, reading.through) = (true, ends);
                    self.loader.border(reading.read.nonce, through, range_key(version));
                    return;
                }
                KeyRange { through: ends, ..reading.read.range.clone() }
            }
        };
        let rows = keys.iter().filter(|key| inside(&range, **key)).map(|key| {
            let values = rows[&(of, *key)];
            row(*key, Some(values.small), Some(values.big))
        });
        let chunk = ChunkRead {
            nonce: reading.read.nonce,
            table: reading.read.table.clone(),
            snapshot: snapshot.clone(),
            relation: version.fingerprint,
            key_columns: vec![0],
            key_orders: orders.to_vec(),
            key: range_key(version),
            rows: rows.collect(),
            range,
            partial: false,
            took: Duration::from_millis(1),
        };
        if self.loader.asks(chunk.nonce) {
            if world.bug != Bug::MarkFirst {
                marks.push(chunk.nonce);
            }
            self.loader.chunk(chunk);
        }
        self.reads.remove(place);
    }

    /// Writes what is due of existing rows, between two transactions only.
    fn emit_due(
        &mut self,
        world: &mut World<'_>,
        flights: &mut [VecDeque<(Record, u64)>; PARTITIONS],
    ) -> Result<(), String> {
        while self.open.is_none() && self.loader.is_due() && world.choices.percent(30) {
            let rows_max = 1 + world.choices.below(3);
            let versions = &world.kafka.versions;
            let streamed = |name: &TableName| Some(versions[number(name)].fingerprint);
            let mut ready = self.loader.take(rows_max, streamed).map_err(|e| e.to_string())?;
            if world.bug == Bug::AtItsMessage {
                self.early.extend(ready);
                ready = if self.early.len() > 1 { self.early.pop_front() } else { None };
            }
            let Some(ready) = ready else { continue };
            let at = self.machine.chunk_at();
            tell(format_args!(
                "reader: chunk {:?} of {} at {at}, {} rows, for {:?}",
                ready.range,
                ready.table,
                ready.rows.len(),
                ready.only
            ));
            for row in &ready.rows {
                let (position, token) = self.machine.chunk_record();
                let record = Record { epoch: self.machine.epoch(), position, data: Data::ChunkRow(RowBuf::clone(row)) };
                flights[position.ordinal as usize % PARTITIONS].push_back((record, token));
            }
            let (sinks, request) = match ready.only {
                Some((sink, request)) => (Some(vec![sink]), Some(request)),
                None => (None, None),
            };
            let rows = ready.rows.len() as u64;
            (world.totals.chunks, world.totals.rows) = (world.totals.chunks + 1, world.totals.rows + rows);
            let (table, relation, range) = (ready.table, ready.relation, ready.range);
            self.machine.chunk(Chunk { relation, table, range, at, rows, sinks, request });
        }
        Ok(())
    }
}

/// What of an entry matters to loads.
fn short(body: &Body) -> String {
    match body {
        Body::Checkpoint(c) => {
            let chunks: Vec<_> = c.chunks.iter().map(|chunk| (chunk.at, &chunk.table.table, &chunk.range)).collect();
            format!("checkpoint of {} from {} to {}, chunks {chunks:?}, forgets {:?}", c.epoch, c.from, c.to, c.forget)
        }
        Body::Done(done) => format!("done {} of {}", done.id.as_u128(), done.epoch),
        Body::Base(base) => format!("base of {}", base.epoch),
        Body::Claim(claim) => format!("claim of {}", claim.nonce),
        _ => String::new(),
    }
}

//! A reader: the machine that cuts checkpoints, with the few lines that the driver has between it and the world.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lockstep::capture::forgets::Forgets;
use lockstep::capture::machine::{Acked, Admit, Machine, ReadBack};
use lockstep::ledger::entry::{Body, Claim, Entry, TopicIdentity};
use lockstep::ledger::state::{Event, State};
use lockstep::lsn::Lsn;
use lockstep::postgres::timeline::check_timeline;
use lockstep::record::Epoch;
use uuid::Uuid;

use super::choices::tell;
use super::kafka::{BEGINNING, PARTITIONS, Record, TOPIC};
use super::shared::Shared;
use super::world::{Bug, Violation, World};

#[derive(Clone, Debug)]
pub struct Reader {
    pub nonce: u64,
    /// Of the server that it is connected to.
    pub timeline: u32,
    /// The server streams to it and takes its confirmations. It may not know that this is over.
    pub connected: bool,
    pub dead: bool,
    claim: Option<i64>,
    pub running: Option<Running>,
    /// Sent and not landed, by partition.
    pub flights: [VecDeque<(Record, u64)>; PARTITIONS],
    pub entry: Option<Entry>,
}

/// What is read of the ledger; prints what differs in these worlds.
#[derive(Clone)]
pub struct Folded(pub State);

impl std::fmt::Debug for Folded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let State { offset, claim, timeline, read_on, last, topics, base, .. } = &self.0;
        write!(f, "{:?}", (offset, claim, timeline, read_on, last, topics, base))
    }
}

#[derive(Clone, Debug)]
pub struct Running {
    machine: Machine,
    state: Shared<Folded>,
    /// The entry to read back next.
    next: i64,
    cursor: usize,
    open: Option<usize>,
    acks: [VecDeque<Acked>; PARTITIONS],
    last_ack: [i64; PARTITIONS],
    /// Whether the append was of a checkpoint, its number and its offset.
    entry_acks: VecDeque<(bool, u64, i64)>,
    appends: u64,
    last_entry: i64,
    received: Lsn,
    confirm: Lsn,
    /// The newest base that may be named.
    base: Option<i64>,
    base_due: bool,
    writing_base: bool,
    /// The topic as it was when this reader began.
    topic: TopicIdentity,
}

/// What a reader can do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    /// A record that it sent arrives in this partition.
    Land(usize),
    LandEntry,
    /// It hears of what arrived in this partition.
    TakeAcks(usize),
    TakeEntryAcks,
    ReadBack,
    Append,
    BaseIsDue,
    Stream,
}

impl Reader {
    pub fn new(nonce: u64, timeline: u32) -> Reader {
        let (instance, host, version) = (Uuid::nil(), String::new(), String::new());
        let claim = Claim { instance, nonce, timeline, host, version };
        Reader {
            nonce,
            timeline,
            connected: true,
            dead: false,
            claim: None,
            running: None,
            flights: Default::default(),
            entry: Some(Entry::new(None, Body::Claim(claim))),
        }
    }

    /// Whether it would change anything, as far as that is told without doing it.
    pub fn can(&self, doing: Doing) -> bool {
        let running = self.running.as_ref();
        match doing {
            Doing::Land(partition) => !self.flights[partition].is_empty(),
            Doing::LandEntry => self.entry.is_some(),
            Doing::ReadBack => !self.dead && (running.is_some() || self.claim.is_some()),
            Doing::BaseIsDue => running.is_some_and(|r| !r.base_due && !r.writing_base),
            Doing::Stream => self.connected && running.is_some(),
            Doing::TakeAcks(_) | Doing::TakeEntryAcks | Doing::Append => running.is_some(),
        }
    }

    /// It has begun to send a transaction and has not ended.
    pub fn is_in_transaction(&self) -> bool {
        self.connected && self.running.as_ref().is_some_and(|running| running.open.is_some())
    }
}

impl World {
    pub fn die(&mut self, i: usize) {
        let reader: &mut Reader = &mut self.readers[i];
        (reader.dead, reader.connected, reader.running, reader.claim) = (true, false, None, None);
        if self.holder == Some(i) {
            self.holder = None;
        }
    }

    /// A reader takes the slot, if what can be checked before allows it, and is about to claim.
    pub fn take_slot(&mut self) -> Result<(), Violation> {
        if self.holder.is_some() {
            return Ok(());
        }
        let Some(confirmed) = self.source.confirmed else { return self.halt("SLOT_LOST") };
        let state = match self.kafka.fold(self.kafka.ledger.end()) {
            Ok(state) => state,
            Err(error) => return self.halt(&error.chain()),
        };
        if state.source.is_none() {
            return self.halt("LEDGER_LOST");
        }
        if state.topics.get(TOPIC).is_some_and(|known| *known != self.kafka.topic) {
            return self.halt("TOPIC_RECREATED");
        }
        let now = self.source.timeline();
        if self.has_diverged(&state, now) {
            return self.halt("DIVERGED");
        }
        self.readers_made += 1;
        let nonce = self.readers_made;
        tell(format_args!("reader {nonce} takes the slot at {confirmed} on timeline {now}"));
        self.read_on.insert(nonce, now);
        self.holder = Some(self.readers.len());
        self.readers.push(Reader::new(nonce, now).into());
        Ok(())
    }

    /// Whether what was published is not all in the history of a server on this timeline.
    fn has_diverged(&self, state: &State, now: u32) -> bool {
        let (Some(ours), Some(last)) = (state.read_on, state.last) else { return false };
        let history = &self.source.history[..now as usize - 1];
        check_timeline(history, ours, now, last.closed).is_err() && self.bug != Bug::NoHistory
    }

    /// One step of a reader, dead or alive.
    pub fn read(&mut self, i: usize, doing: Doing) -> Result<(), Violation> {
        match doing {
            Doing::Land(partition) => self.land(i, partition),
            Doing::LandEntry => self.land_entry(i),
            Doing::TakeAcks(partition) => self.take_acks(i, partition),
            Doing::TakeEntryAcks => self.take_entry_acks(i),
            Doing::ReadBack => self.read_back(i)?,
            Doing::Append => self.append(i),
            Doing::BaseIsDue => self.base_is_due(i),
            Doing::Stream => self.stream(i),
        }
        Ok(())
    }

    fn land(&mut self, i: usize, partition: usize) {
        let reader: &mut Reader = &mut self.readers[i];
        let Some((record, token)) = reader.flights[partition].pop_front() else { return };
        if reader.dead && self.choices.percent(30) {
            // Lost on the way, with everything behind it.
            reader.flights[partition].clear();
            return;
        }
        let offset = self.kafka.data[partition].push(record);
        if let Some(running) = &mut reader.running {
            let (route, count, first, last) = (0, 1, offset, offset);
            running.acks[partition].push_back(Acked { route, partition: partition as i32, token, first, last, count });
        }
    }

    fn land_entry(&mut self, i: usize) {
        let reader: &mut Reader = &mut self.readers[i];
        let Some(entry) = reader.entry.take() else { return };
        if reader.dead && self.choices.percent(30) {
            return;
        }
        tell(format_args!("ledger {}: {entry:?}", self.kafka.ledger.end()));
        let is_checkpoint = matches!(entry.body, Body::Checkpoint(_));
        let offset = self.kafka.ledger.push(entry);
        if reader.dead {
            return;
        }
        match &mut reader.running {
            // One at a time is sent, so it is the newest.
            Some(running) => running.entry_acks.push_back((is_checkpoint, running.appends, offset)),
            None => reader.claim = Some(offset),
        }
    }

    fn take_acks(&mut self, i: usize, partition: usize) {
        let Some(running) = &mut self.readers[i].running else { return };
        while let Some(ack) = running.acks[partition].pop_front() {
            // The producer ends the epoch when an offset does not rise: Kafka lost something.
            if ack.last <= running.last_ack[partition] {
                return self.die(i);
            }
            running.last_ack[partition] = ack.last;
            running.machine.acked(ack);
        }
    }

    fn take_entry_acks(&mut self, i: usize) {
        let (bug, holds) = (self.bug, self.holder == Some(i));
        let Some(running) = &mut self.readers[i].running else { return };
        while let Some((is_checkpoint, number, offset)) = running.entry_acks.pop_front() {
            // The same for the ledger.
            if offset <= running.last_entry {
                return self.die(i);
            }
            running.last_entry = offset;
            if bug == Bug::NamesUnreadBase && !is_checkpoint {
                (running.base, running.writing_base) = (Some(offset), false);
            }
            // It may have been read back already, and another one be on its way.
            if is_checkpoint && number == running.appends && running.machine.is_appending() {
                running.machine.appended(offset);
                if bug == Bug::ConfirmOnAck
                    && holds
                    && let Some(Body::Checkpoint(checkpoint)) = self.kafka.ledger.get(offset).map(|e| &e.body)
                {
                    self.source.confirm(checkpoint.closed.min(running.received));
                }
            }
        }
    }

    /// Reads the next entry back; before that, its own claim.
    fn read_back(&mut self, i: usize) -> Result<(), Violation> {
        if self.readers[i].running.is_none() {
            return self.begin(i);
        }
        let holds = self.holder == Some(i);
        let Some(running) = &mut self.readers[i].running else { return Ok(()) };
        let ledger = &self.kafka.ledger;
        // What it has read is gone, or what it is to read next.
        if running.next > ledger.end() || running.next < ledger.low {
            self.die(i);
            return Ok(());
        }
        let Some(entry) = ledger.get(running.next) else { return Ok(()) };
        let event = running.state.0.apply(running.next, entry.clone());
        if event == Event::Base {
            running.writing_base = false;
            if running.state.0.base == Some(running.next) {
                running.base = running.state.0.base;
            }
        }
        match running.machine.read_back(running.next, &event) {
            ReadBack::Nothing => {}
            ReadBack::Confirm(lsn) => running.confirm = running.confirm.max(lsn),
            ReadBack::Fenced(_) => {
                self.die(i);
                return Ok(());
            }
        }
        running.next += 1;
        if holds {
            self.source.confirm(running.confirm.min(running.received));
        }
        Ok(())
    }

    /// A claim that was acknowledged makes an epoch, if it is where it should be and the slot is not ahead.
    fn begin(&mut self, i: usize) -> Result<(), Violation> {
        let (nonce, connected) = (self.readers[i].nonce, self.readers[i].connected);
        let Some(claim) = self.readers[i].claim.filter(|_| !self.readers[i].dead) else { return Ok(()) };
        let epoch = Epoch { offset: claim as u64, nonce };
        let state = self.kafka.fold(claim + 1).ok().filter(|state| state.claim == Some(epoch));
        let Some(state) = state.filter(|state| state.source.is_some()) else {
            self.die(i);
            return Ok(());
        };
        let timeline = self.readers[i].timeline;
        // Others may have gone on until the claim.
        if self.bug != Bug::HistoryBeforeClaim && self.has_diverged(&state, timeline) {
            self.die(i);
            // Whoever reads from an old primary halts alone.
            return if timeline == self.source.timeline() { self.halt("DIVERGED") } else { Ok(()) };
        }
        let closed = state.last.map_or(BEGINNING, |last| last.closed);
        let Some(confirmed) = self.source.confirmed else {
            self.die(i);
            return Ok(());
        };
        if connected && confirmed > closed {
            let what = format!("L1: the slot is confirmed up to {confirmed}, the ledger closed {closed}");
            return if self.lossy { self.halt("SLOT_MOVED") } else { Err(what) };
        }
        let sent = self.source.on(self.readers[i].timeline);
        let cursor = sent.iter().position(|t| t.end > confirmed).unwrap_or(sent.len());
        self.readers[i].claim = None;
        self.readers[i].running = Some(Running {
            machine: Machine::new(epoch, state.last, closed, Duration::ZERO),
            next: claim + 1,
            cursor,
            open: None,
            acks: Default::default(),
            last_ack: [-1; PARTITIONS],
            entry_acks: VecDeque::new(),
            appends: 0,
            last_entry: claim,
            received: confirmed,
            confirm: Lsn::ZERO,
            base: state.base,
            base_due: false,
            writing_base: false,
            topic: self.kafka.topic.clone(),
            state: Folded(state).into(),
        });
        Ok(())
    }

    fn append(&mut self, i: usize) {
        let reader: &mut Reader = &mut self.readers[i];
        let (None, Some(running)) = (&reader.entry, &mut reader.running) else { return };
        if running.writing_base {
            return;
        }
        // While a base is due nothing else is appended, so that soon nothing is in flight that it could not tell of.
        if running.base_due {
            if !running.machine.is_appending() && running.machine.oldest_unread().is_none() {
                (running.base_due, running.writing_base) = (false, true);
                let topics = BTreeMap::from([(TOPIC.to_owned(), running.topic.clone())]);
                let base = running.state.0.as_base(running.machine.epoch(), topics, BTreeMap::new(), vec![]);
                reader.entry = Some(Entry::new(running.base, Body::Base(Box::new(base))));
            }
            return;
        }
        let (names, mut forgets) = ([TOPIC.to_owned()], Forgets::default());
        if let Some(checkpoint) = running.machine.next_append(Duration::ZERO, &names, &mut forgets, true) {
            running.appends += 1;
            reader.entry = Some(Entry::new(running.base, Body::Checkpoint(checkpoint)));
        }
    }

    fn base_is_due(&mut self, i: usize) {
        let Some(running) = &mut self.readers[i].running else { return };
        if self.bases > 0 && !running.base_due && !running.writing_base {
            self.bases -= 1;
            running.base_due = true;
        }
    }

    /// The next message of the stream.
    fn stream(&mut self, i: usize) {
        let (bug, holds) = (self.bug, self.holder == Some(i));
        let reader: &mut Reader = &mut self.readers[i];
        let (true, Some(running)) = (reader.connected, &mut reader.running) else { return };
        let Some(transaction) = self.source.on(reader.timeline).get(running.cursor) else {
            let end = self.source.end_on(reader.timeline);
            running.machine.keepalive(end);
            running.received = running.received.max(end);
            return;
        };
        match running.open {
            None => match running.machine.begin(transaction.lsn) {
                Admit::Take => running.open = Some(0),
                Admit::Drop => {
                    running.machine.dropped(transaction.end);
                    running.received = running.received.max(transaction.end);
                    running.cursor += 1;
                }
            },
            Some(n) if n < transaction.records.len() => {
                let (position, token) = running.machine.record();
                let record = Record { epoch: running.machine.epoch(), position };
                reader.flights[transaction.records[n]].push_back((record, token));
                running.open = Some(n + 1);
            }
            Some(_) => {
                running.machine.commit(transaction.end, 1);
                running.open = None;
                running.received = running.received.max(transaction.end);
                running.cursor += 1;
                if bug == Bug::ConfirmOnReceive && holds {
                    self.source.confirm(running.received);
                }
            }
        }
    }
}

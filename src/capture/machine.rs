//! The reader's protocol: which records form a checkpoint, when it may be appended, when the slot may be confirmed.
//!
//! No clock, no IO: time and the world come in as inputs. Records are placed as they are produced, so a transaction larger
//! than memory needs none here. The intervals between two cuts form a queue; an interval is ripe when every record in it is
//! acknowledged. While one append is in flight the ripe intervals behind it wait and are merged into one checkpoint, so the
//! rate of checkpoints adapts to what Kafka takes without a tuning knob.
//!
//! Invariants (docs/design.md section 2): a cut lies where no transaction is open in the stream; checkpoints are contiguous and each
//! names the one before; the slot is confirmed only up to the closed LSN of a checkpoint that was **read back** with no newer
//! claim before it. The acknowledgement alone is not enough: two readers may claim in the other order than they took the slot
//! (models/ledger.py, `confirm_on_ack`).
//!
//! Deliberately not here: what a change looks like, what is loaded (`snapshot`), the ledger's fold (`ledger::state`).

use std::collections::VecDeque;
use std::time::Duration;

use crate::capture::forgets::Forgets;
use crate::ledger::entry::{Anchor, Checkpoint, Chunk, LastCheckpoint, Span};
use crate::ledger::state::Event;
use crate::lsn::{CHUNK_ORDINAL_BASE, Lsn, Position};
use crate::record::Epoch;
use crate::relation::TableName;

/// An open interval is cut at a commit once it holds this many records: small enough that memory for spans stays small, large
/// enough that single-row transactions share an interval when Kafka is the bottleneck.
const CUT_RECORDS: u64 = 64;

/// A checkpoint that says nothing but "nothing happened up to here" is worth an entry this often.
const QUIET_INTERVAL: Duration = Duration::from_secs(2);

/// At most this many records in one checkpoint, unless one transaction alone is larger: a sink applies a checkpoint in one
/// transaction of its own.
const CHECKPOINT_RECORDS_MAX: u64 = 50_000;

/// Intervals waiting for their acknowledgements; beyond it transactions share one.
const INTERVALS_MAX: usize = 64;

/// What to do with a transaction of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admit {
    Take,
    /// It is in the ledger already: the server sends again what was not confirmed.
    Drop,
}

/// What reading the ledger back showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadBack {
    Nothing,
    /// The slot may be confirmed up to here.
    Confirm(Lsn),
    /// Another reader claimed the ledger: this one must stop at once.
    Fenced(Epoch),
}

/// Acknowledged records of one partition, all of one interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acked {
    pub route: u16,
    pub partition: i32,
    pub token: u64,
    pub first: i64,
    pub last: i64,
    pub count: u64,
}

#[derive(Debug, Clone)]
struct Interval {
    token: u64,
    to: Position,
    closed: Lsn,
    commit_time: i64,
    sent: u64,
    acked: u64,
    spans: Vec<Acked>,
    chunks: Vec<Chunk>,
    barriers: Vec<TableName>,
}

impl Interval {
    fn empty(token: u64, to: Position, closed: Lsn) -> Interval {
        let (spans, chunks, barriers) = (Vec::new(), Vec::new(), Vec::new());
        Interval { token, to, closed, commit_time: 0, sent: 0, acked: 0, spans, chunks, barriers }
    }

    fn is_ripe(&self) -> bool {
        self.sent == self.acked
    }

    fn is_quiet(&self) -> bool {
        self.sent == 0 && self.chunks.is_empty()
    }
}

#[derive(Debug, Clone)]
struct Open {
    lsn: Lsn,
    next: u64,
}

/// The reader of one epoch. It dies with any error: the next one starts from the ledger.
#[derive(Debug, Clone)]
pub struct Machine {
    epoch: Epoch,
    /// The valid checkpoint that the next one follows.
    prev: Option<Anchor>,
    /// Closed LSN and time of the last append.
    appended_closed: Lsn,
    appended_at: Option<Duration>,
    interval_min: Duration,
    /// Commits at or below are in the ledger.
    resume: Lsn,
    /// The last of them, while the server still has to send it again. One that sends later commits without it never had it: it
    /// was restored to an earlier point, and has written over what we read.
    owed: Option<Lsn>,
    last_commit: Lsn,
    position: Position,
    open: Option<Open>,
    /// Oldest first. The last is the current one and takes records.
    intervals: VecDeque<Interval>,
    appending: Option<Checkpoint>,
    /// Closed LSN of the last checkpoint that was read back.
    read_closed: Lsn,
    /// Appended, not yet read back: offset and closed LSN.
    unread: VecDeque<(i64, Lsn)>,
    ledger_offset: i64,
}

impl Machine {
    /// A reader whose claim was read back, resuming after the last valid checkpoint.
    pub fn new(epoch: Epoch, last: Option<LastCheckpoint>, origin_closed: Lsn, interval_min: Duration) -> Machine {
        let position = last.map_or(Position::ORIGIN, |last| last.anchor.to);
        let closed = last.map_or(origin_closed, |last| last.closed);
        let mut machine = Machine {
            epoch,
            prev: last.map(|last| last.anchor),
            appended_closed: closed,
            read_closed: closed,
            appended_at: None,
            interval_min,
            resume: position.lsn,
            owed: None,
            last_commit: position.lsn,
            position,
            open: None,
            intervals: VecDeque::new(),
            appending: None,
            unread: VecDeque::new(),
            ledger_offset: i64::try_from(epoch.offset).expect("Kafka offsets are positive i64"),
        };
        machine.push_interval(0, closed);
        machine
    }

    fn push_interval(&mut self, token: u64, closed: Lsn) {
        let interval = Interval::empty(token, self.position, closed);
        self.intervals.push_back(interval);
    }

    fn current(&mut self) -> &mut Interval {
        self.intervals.back_mut().expect("there is always a current interval")
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Position of the last record or, before the first, of the checkpoint resumed from.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Commit LSN of the last transaction streamed.
    pub fn last_commit(&self) -> Lsn {
        self.last_commit
    }

    /// The last checkpoint that was acknowledged.
    pub fn anchor(&self) -> Option<Anchor> {
        self.prev
    }

    /// Position that the last acknowledged checkpoint covers.
    pub fn appended_to(&self) -> Position {
        self.prev.map_or(Position::ORIGIN, |prev| prev.to)
    }

    /// Closed LSN of the last checkpoint that was read back: everything up to here counts.
    pub fn read_closed(&self) -> Lsn {
        self.read_closed
    }

    /// The slot stands here: the server sends every commit again that is not below it.
    pub fn resume_from(&mut self, confirmed: Lsn) {
        self.owed = (self.resume >= confirmed && self.resume > Lsn::ZERO).then_some(self.resume);
    }

    /// A commit that the server had to send again, and can't any more now that it is beyond. Nothing of such a stream counts.
    pub fn missed(&self, beyond: Lsn) -> Option<Lsn> {
        self.owed.filter(|owed| beyond > *owed)
    }

    /// A transaction begins in the stream.
    pub fn begin(&mut self, commit_lsn: Lsn) -> Admit {
        assert!(self.open.is_none(), "a transaction began inside another: proto 1 does not interleave");
        if commit_lsn <= self.resume {
            self.owed = self.owed.filter(|owed| *owed != commit_lsn);
            return Admit::Drop;
        }
        assert!(commit_lsn > self.last_commit, "commits arrive in order: {commit_lsn} after {}", self.last_commit);
        // What is complete must not wait for a transaction that may be huge.
        if !self.current().is_quiet() && self.intervals.len() < INTERVALS_MAX {
            self.cut();
        }
        self.open = Some(Open { lsn: commit_lsn, next: 0 });
        Admit::Take
    }

    /// Position and interval of the next record of the open transaction.
    pub fn record(&mut self) -> (Position, u64) {
        let open = self.open.as_mut().expect("records stand in transactions");
        let position = Position::new(open.lsn, open.next);
        open.next += 1;
        assert!(open.next < CHUNK_ORDINAL_BASE && position > self.position, "positions rise: {position}");
        self.position = position;
        let current = self.current();
        current.sent += 1;
        current.to = position;
        (position, current.token)
    }

    /// Interval of the next record that is in no span: it is for other consumers only, but it too must be acknowledged before
    /// the slot is confirmed.
    pub fn foreign_record(&mut self) -> u64 {
        let current = self.current();
        current.sent += 1;
        current.token
    }

    /// The next record of the table is no matter of its key alone: who applies partitions apart from each other waits here.
    pub fn barrier(&mut self, table: &TableName) {
        note(&mut self.current().barriers, table);
    }

    /// The open transaction ends; `end` is where its commit record ends.
    pub fn commit(&mut self, end: Lsn, commit_time: i64) {
        let open = self.open.take().expect("a commit ends a transaction");
        self.last_commit = open.lsn;
        let current = self.current();
        current.closed = current.closed.max(end);
        if open.next > 0 {
            current.commit_time = commit_time;
        }
        self.cut_if_due();
    }

    /// A dropped transaction ended.
    pub fn dropped(&mut self, end: Lsn) {
        let current = self.current();
        current.closed = current.closed.max(end);
    }

    /// The server has sent everything below `wal_end`. Inside a transaction this says nothing.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        if self.open.is_none() {
            let current = self.current();
            current.closed = current.closed.max(wal_end);
        }
    }

    /// A chunk enters the stream here; the position of its first row. What was committed before it has a checkpoint of its
    /// own, so that nobody who waits for it waits for the chunk.
    pub fn begin_chunk(&mut self) -> Position {
        if self.current().commit_time > 0 && self.intervals.len() < INTERVALS_MAX {
            self.cut();
        }
        self.chunk_at()
    }

    /// Position of the first row of a chunk that enters the stream here, between two transactions.
    pub fn chunk_at(&self) -> Position {
        assert!(self.open.is_none(), "a chunk enters between transactions");
        let same = self.position.lsn == self.last_commit && self.position.ordinal >= CHUNK_ORDINAL_BASE;
        let ordinal = if same { self.position.ordinal + 1 } else { CHUNK_ORDINAL_BASE };
        Position::new(self.last_commit, ordinal)
    }

    /// Position and interval of the next chunk row; the first is at [`Machine::chunk_at`].
    pub fn chunk_record(&mut self) -> (Position, u64) {
        let position = self.chunk_at();
        self.position = position;
        let current = self.current();
        current.sent += 1;
        current.to = position;
        (position, current.token)
    }

    /// All rows of the chunk are placed; it becomes part of the current interval, which is cut here.
    pub fn chunk(&mut self, chunk: Chunk) {
        if chunk.rows == 0 {
            assert_eq!(chunk.at, self.chunk_at(), "an empty chunk takes a position too");
            self.position = chunk.at;
            self.current().to = chunk.at;
        }
        assert_eq!(chunk.end(), Position::new(self.position.lsn, self.position.ordinal + 1), "chunk rows are dense");
        self.current().chunks.push(chunk);
        self.cut();
    }

    fn cut_if_due(&mut self) {
        let alone = self.intervals.len() == 1 && self.appending.is_none();
        let current = self.current();
        if !current.is_quiet() && (alone || current.sent >= CUT_RECORDS) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let (token, closed) = (self.current().token, self.current().closed);
        self.push_interval(token + 1, closed);
    }

    /// Records that are in no span were acknowledged.
    pub fn foreign_acked(&mut self, token: u64, count: u64) {
        self.interval_acked(token, count);
    }

    /// Records were acknowledged. Offsets rise within a partition; the producer has checked that against what it sent.
    pub fn acked(&mut self, acked: Acked) {
        let interval = self.interval_acked(acked.token, acked.count);
        merge_span(&mut interval.spans, acked);
    }

    fn interval_acked(&mut self, token: u64, count: u64) -> &mut Interval {
        let oldest = self.intervals.front().expect("there is always a current interval").token;
        let index = token.checked_sub(oldest).expect("an interval stays until all its records are acknowledged");
        let interval = &mut self.intervals[usize::try_from(index).expect("few intervals")];
        interval.acked += count;
        assert!(interval.acked <= interval.sent, "more records acknowledged than sent");
        interval
    }

    /// The checkpoint to append now, if any. `names` are the topics of the routes, `forgets` what no longer counts as loaded. Nothing is appended while an append is in flight; `flush` appends whatever is ripe without waiting for its
    /// time.
    pub fn next_append(
        &mut self,
        now: Duration,
        names: &[String],
        forgets: &mut Forgets,
        flush: bool,
    ) -> Option<Checkpoint> {
        if self.appending.is_some() {
            return None;
        }
        let alone = self.intervals.len() == 1;
        let current = self.current();
        let worth = !current.is_quiet() && (alone || current.is_ripe());
        if worth && self.open.is_none() {
            self.cut();
        }
        if !self.is_due(now, flush) {
            return None;
        }
        let merged = self.take_ripe();
        let (again, forget) = forgets.tell(merged.to);
        let checkpoint = Checkpoint {
            epoch: self.epoch,
            from: self.prev.map_or(Position::ORIGIN, |prev| prev.to),
            to: merged.to,
            closed: merged.closed,
            commit_time: merged.commit_time,
            spans: merged.spans.iter().map(|span| named(span, names)).collect(),
            chunks: merged.chunks,
            again,
            forget,
            barriers: Some(merged.barriers),
            prev: self.prev,
        };
        self.appended_at = Some(now);
        self.appending = Some(checkpoint.clone());
        Some(checkpoint)
    }

    fn is_due(&self, now: Duration, flush: bool) -> bool {
        let since = self.appended_at.map_or(Duration::MAX, |at| now.saturating_sub(at));
        let front = self.intervals.front().expect("there is always a current interval");
        if self.intervals.len() > 1 {
            return front.is_ripe() && (flush || since >= self.interval_min);
        }
        let moved = self.open.is_none() && front.is_quiet() && front.closed > self.appended_closed;
        moved && (flush || since >= QUIET_INTERVAL)
    }

    /// Takes the ripe intervals at the front as one. The current interval is taken only when it is quiet and alone.
    fn take_ripe(&mut self) -> Interval {
        let mut merged = if self.intervals.len() == 1 {
            let current = self.current();
            let (token, to, closed) = (current.token, current.to, current.closed);
            return Interval::empty(token, to, closed);
        } else {
            self.intervals.pop_front().expect("more than one")
        };
        while self.intervals.len() > 1
            && self.intervals[0].is_ripe()
            && merged.sent + self.intervals[0].sent <= CHECKPOINT_RECORDS_MAX
            && (merged.commit_time == 0 || self.intervals[0].chunks.is_empty())
        {
            let next = self.intervals.pop_front().expect("more than one");
            merged.to = next.to;
            merged.closed = next.closed;
            merged.commit_time = merged.commit_time.max(next.commit_time);
            merged.sent += next.sent;
            next.spans.into_iter().for_each(|span| merge_span(&mut merged.spans, span));
            merged.chunks.extend(next.chunks);
            next.barriers.iter().for_each(|table| note(&mut merged.barriers, table));
        }
        merged
    }

    /// When [`Machine::next_append`] may have something although nothing else happens.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.appending.is_some() {
            return None;
        }
        let at = self.appended_at.unwrap_or_default();
        let front = self.intervals.front()?;
        if self.intervals.len() > 1 {
            return front.is_ripe().then_some(at + self.interval_min);
        }
        (self.open.is_none() && front.closed > self.appended_closed).then_some(at + QUIET_INTERVAL)
    }

    /// The append in flight was acknowledged at this offset.
    pub fn appended(&mut self, offset: i64) {
        let checkpoint = self.appending.take().expect("one append is in flight");
        assert!(offset > self.ledger_offset, "ledger offsets rise: {offset} after {}", self.ledger_offset);
        self.ledger_offset = offset;
        self.prev = Some(Anchor { offset, epoch: self.epoch, to: checkpoint.to });
        self.appended_closed = checkpoint.closed;
        self.unread.push_back((offset, checkpoint.closed));
    }

    /// The ledger was read back up to `offset`, which meant `event`.
    pub fn read_back(&mut self, offset: i64, event: &Event) -> ReadBack {
        match event {
            Event::Claimed(epoch) if *epoch != self.epoch => ReadBack::Fenced(*epoch),
            Event::Superseded(epoch) if *epoch == self.epoch => ReadBack::Fenced(*epoch),
            Event::Valid(checkpoint) if checkpoint.epoch == self.epoch => match self.expect(offset, checkpoint) {
                Some((expected, closed)) if expected == offset => {
                    self.read_closed = closed;
                    ReadBack::Confirm(closed)
                }
                // The ledger lost our entry, or holds one that we did not write: this epoch is over.
                _ => ReadBack::Fenced(self.epoch),
            },
            _ => ReadBack::Nothing,
        }
    }

    /// The append that this read-back is of. It can be read before its acknowledgement has arrived.
    fn expect(&mut self, offset: i64, checkpoint: &Checkpoint) -> Option<(i64, Lsn)> {
        if self.unread.is_empty() && self.appending.as_ref() == Some(checkpoint) {
            self.appended(offset);
        }
        self.unread.pop_front()
    }

    /// The append in flight was seen in the ledger before it was acknowledged.
    pub fn is_appending(&self) -> bool {
        self.appending.is_some()
    }

    /// Everything that was taken from the stream is in a checkpoint that was read back.
    pub fn is_drained(&self) -> bool {
        self.open.is_none()
            && self.appending.is_none()
            && self.unread.is_empty()
            && self.intervals.len() == 1
            && self.intervals[0].is_quiet()
            && self.intervals[0].closed == self.appended_closed
    }

    /// Everything up to the transaction that the stream is in is in a checkpoint that was read back.
    pub fn is_drained_but_for_open(&self) -> bool {
        self.open.is_some() && self.appending.is_none() && self.unread.is_empty() && self.intervals.len() == 1
    }

    /// Offset of the oldest append that was not read back yet, for telling how long it takes.
    pub fn oldest_unread(&self) -> Option<i64> {
        self.unread.front().map(|(offset, _)| *offset)
    }
}

fn note(barriers: &mut Vec<TableName>, table: &TableName) {
    if !barriers.contains(table) {
        barriers.push(table.clone());
    }
}

fn merge_span(spans: &mut Vec<Acked>, acked: Acked) {
    match spans.iter_mut().find(|span| (span.route, span.partition) == (acked.route, acked.partition)) {
        Some(span) => {
            assert!(acked.first > span.last, "offsets rise within a partition");
            span.last = acked.last;
            span.count += acked.count;
        }
        None => spans.push(acked),
    }
}

fn named(span: &Acked, names: &[String]) -> Span {
    let topic = names[usize::from(span.route)].clone();
    Span { topic, partition: span.partition, first: span.first, last: span.last, count: span.count }
}

//! What the owner of a sink in row consistency knows of its partitions: who has them, how far each is, and so which part of an
//! interval is in already.
//!
//! Pure: time comes in. The owner walks the ledger as ever. While partitions are **shared**, members apply what is theirs, and
//! an interval counts once all of its partitions have it. While they are **held**, the owner applies all that is not in yet, in the
//! order of commits, and every partition moves with it. Holding is right at any time, whatever members have done; so whatever
//! they can't do by themselves, or don't do in time, is held for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::apply::machine::Interval;
use crate::ledger::entry::Span;
use crate::lsn::Position;
use crate::relation::TableName;
use crate::sink::partition_progress::{Partition, PartitionRow};

/// Members that move nothing for so long are helped: longer than a rebalance in order, shorter than one for a member that is gone.
const STALL: Duration = Duration::from_secs(4);

/// Who had to help stays at it for so long, unless there is nothing left: what stalled may still do so.
const HELP: Duration = Duration::from_secs(4);

/// How often partitions are looked at while there is something to wait for, and while there is nothing.
const LOOK_BUSY: Duration = Duration::from_millis(20);
const LOOK_IDLE: Duration = Duration::from_secs(1);

/// The partition that a span is of.
pub fn partition(span: &Span) -> Partition {
    Partition { topic: span.topic.clone(), number: span.partition }
}

/// Whether the records of an interval are each a matter of its key alone. Where its writer does not say, they may be anything.
pub fn is_plain(interval: &Interval, sink: &str, has: impl Fn(&TableName) -> bool) -> bool {
    let checkpoint = &interval.checkpoint;
    let barriers = checkpoint.barriers.as_ref();
    let apart = barriers.is_some_and(|tables| !tables.iter().any(&has));
    let chunks = checkpoint.chunks.iter().any(|chunk| chunk.is_for(sink) && has(&chunk.table));
    !interval.concerns || (apart && !chunks)
}

#[derive(Debug)]
pub struct Floor {
    /// As Kafka had them when it was asked, with their topics' ids.
    pub known: Vec<(Partition, Uuid)>,
    /// How far each is, and since when.
    partitions: BTreeMap<Partition, (Position, Instant)>,
    shared: bool,
    looked: Instant,
    /// Since when the oldest interval that is not counted waits.
    waits_since: Instant,
    helping: Option<Instant>,
}

impl Floor {
    /// Just held.
    pub fn held(rows: Vec<PartitionRow>, known: Vec<(Partition, Uuid)>, now: Instant) -> Floor {
        let partitions = rows.into_iter().map(|row| (row.partition, (row.position, now))).collect();
        Floor { known, partitions, shared: false, looked: now, waits_since: now, helping: None }
    }

    pub fn is_shared(&self) -> bool {
        self.shared
    }

    pub fn share(&mut self, now: Instant) {
        (self.shared, self.waits_since, self.looked) = (true, now, now);
    }

    /// Held because members stood still.
    pub fn helping(self) -> Floor {
        Floor { helping: Some(self.looked), ..self }
    }

    pub fn is_helping(&self) -> bool {
        self.helping.is_some()
    }

    /// Whether members may go on, as far as they were the reason for holding.
    pub fn may_share(&self, waiting: bool, now: Instant) -> bool {
        self.helping.is_none_or(|since| !waiting || now.duration_since(since) >= HELP)
    }

    pub fn should_look(&self, waiting: bool, now: Instant) -> bool {
        now.duration_since(self.looked) >= if waiting { LOOK_BUSY } else { LOOK_IDLE }
    }

    pub fn look(&mut self, rows: Vec<PartitionRow>, now: Instant) {
        let before = std::mem::take(&mut self.partitions);
        let since = |row: &PartitionRow| {
            before
                .get(&row.partition)
                .filter(|(position, _)| *position == row.position)
                .map_or(now, |(_, since)| *since)
        };
        self.partitions = rows.into_iter().map(|row| (row.partition.clone(), (row.position, since(&row)))).collect();
        self.looked = now;
    }

    /// Another interval is the oldest that waits, or none does.
    pub fn counted(&mut self, now: Instant) {
        self.waits_since = now;
    }

    /// Whether a partition that the oldest interval waits for does not move.
    pub fn is_stalled(&self, oldest: &Interval, now: Instant) -> bool {
        let to = oldest.checkpoint.to;
        let stands = |span: &Span| {
            let since = self.partitions.get(&partition(span)).map_or(self.waits_since, |(_, since)| *since);
            !self.has(span, to) && now.duration_since(since.max(self.waits_since)) >= STALL
        };
        oldest.checkpoint.spans.iter().any(stands)
    }

    /// Everything up to here was applied while all was held.
    pub fn advance(&mut self, to: Position) {
        self.partitions.values_mut().for_each(|(position, _)| *position = (*position).max(to));
    }

    /// Whether no partition is ahead of this.
    pub fn is_level(&self, at: Position) -> bool {
        self.partitions.values().all(|(position, _)| *position <= at)
    }

    fn has(&self, span: &Span, to: Position) -> bool {
        self.partitions.get(&partition(span)).is_some_and(|(position, _)| *position >= to)
    }

    /// Every partition of the interval is known, so that a member can have it.
    pub fn knows(&self, interval: &Interval) -> bool {
        interval.checkpoint.spans.iter().all(|span| self.partitions.contains_key(&partition(span)))
    }

    /// Every partition of the interval has it.
    pub fn is_done(&self, interval: &Interval) -> bool {
        interval.checkpoint.spans.iter().all(|span| self.has(span, interval.checkpoint.to))
    }

    /// Leaves what is not in yet.
    pub fn narrow(&self, interval: &mut Interval) {
        let (to, before) = (interval.checkpoint.to, interval.checkpoint.spans.len());
        interval.checkpoint.spans.retain(|span| !self.has(span, to));
        if interval.checkpoint.spans.len() < before {
            // Only others' are left: with one of ours it was no member's, so that every partition has it or none.
            interval.checkpoint.chunks.clear();
            interval.concerns &= !interval.checkpoint.spans.is_empty();
        }
    }
}

/// Offsets behind the last records of some intervals.
pub fn next_offsets<'a>(intervals: impl Iterator<Item = &'a Interval>) -> Vec<(Partition, i64)> {
    let spans = intervals.flat_map(|interval| &interval.checkpoint.spans);
    let next: BTreeMap<Partition, i64> = spans.map(|span| (partition(span), span.last + 1)).collect();
    next.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::machine::At;
    use crate::ledger::entry::Checkpoint;
    use crate::lsn::Lsn;

    fn at(lsn: u64) -> Position {
        Position::new(Lsn(lsn), 0)
    }

    fn rows(positions: &[u64]) -> Vec<PartitionRow> {
        let row = |(number, &to): (usize, &u64)| PartitionRow {
            partition: Partition { topic: "t".into(), number: i32::try_from(number).unwrap() },
            next_offset: 0,
            position: at(to),
            worker_epoch: 1,
        };
        positions.iter().enumerate().map(row).collect()
    }

    fn interval(to: u64, partitions: &[i32], barriers: Option<Vec<TableName>>) -> Interval {
        let span = |&partition: &i32| Span { topic: "t".into(), partition, first: 7, last: 8, count: 2 };
        let checkpoint = Checkpoint {
            epoch: At::ORIGIN.epoch,
            from: at(to - 1),
            to: at(to),
            closed: Lsn(to),
            commit_time: 1,
            spans: partitions.iter().map(span).collect(),
            chunks: vec![],
            again: vec![],
            forget: None,
            barriers,
            prev: None,
        };
        Interval { offset: 1, checkpoint, concerns: true }
    }

    #[test]
    fn what_a_partition_has_is_not_applied_once_more() {
        let mut floor = Floor::held(rows(&[4, 2]), vec![], Instant::now());
        let narrowed = |floor: &Floor, to, partitions: &[i32]| {
            let mut interval = interval(to, partitions, None);
            floor.narrow(&mut interval);
            let left: Vec<i32> = interval.checkpoint.spans.iter().map(|span| span.partition).collect();
            (left, interval.concerns)
        };
        assert_eq!(narrowed(&floor, 2, &[0, 1]), (vec![], false));
        assert_eq!(narrowed(&floor, 3, &[0, 1]), (vec![1], true));
        assert_eq!(narrowed(&floor, 5, &[0, 1, 2]), (vec![0, 1, 2], true));
        assert!(!floor.is_done(&interval(3, &[0, 1], None)) && floor.is_done(&interval(3, &[0], None)));
        assert!(!floor.is_level(at(3)) && floor.is_level(at(4)));
        floor.advance(at(3));
        assert_eq!(narrowed(&floor, 4, &[0, 1]), (vec![1], true));
        assert!(floor.knows(&interval(9, &[0, 1], None)) && !floor.knows(&interval(9, &[2], None)));
        assert_eq!(next_offsets([&interval(9, &[1], None)].into_iter())[0].1, 9);
    }

    #[test]
    fn plain_is_what_its_writer_says_is() {
        let (t, u) = (TableName::new("s", "t"), TableName::new("s", "u"));
        let plain = |barriers| is_plain(&interval(2, &[0], barriers), "x", |table| *table == t);
        assert!(plain(Some(vec![])) && plain(Some(vec![u.clone()])));
        assert!(!plain(None) && !plain(Some(vec![u, t.clone()])));
    }

    #[test]
    fn a_partition_that_stands_still_is_helped_and_one_that_works_is_not() {
        let begun = Instant::now();
        let later = |seconds| begun + Duration::from_secs(seconds);
        let mut floor = Floor::held(rows(&[1, 1]), vec![], begun);
        floor.share(begun);
        let oldest = interval(5, &[0, 1], Some(vec![]));
        for second in 1..10 {
            floor.look(rows(&[1 + second, 1]), later(second));
            assert_eq!(floor.is_stalled(&oldest, later(second)), second >= STALL.as_secs(), "after {second} s");
        }
        // It has had nothing to do for long, which is no reason by itself.
        floor.counted(later(20));
        assert!(!floor.is_stalled(&oldest, later(21)) && floor.is_stalled(&oldest, later(24)));
        let helping = floor.helping();
        assert!(!helping.may_share(true, later(10)) && helping.may_share(false, later(10)));
        assert!(helping.may_share(true, later(9) + HELP));
    }
}

//! How far existing rows run ahead of the sinks. Pure; time is an input.
//!
//! Existing rows stand in the ledger in front of what is committed after them, so a sink that writes more slowly than they are
//! read would come to each commit later and later. Therefore the reader counts the pieces that it wrote and that sinks have
//! yet to apply, by what sinks say of themselves (`kafka::groups`), and goes as fast as the slowest of them:
//!
//! - While others commit, a piece is what a sink applies within [`PIECE_TIME`], pieces take [`SHARE`] of a sink's time, and
//!   what is on its way to a sink is what it applies within [`AHEAD_TIME`]: the way there and the answer's way back.
//! - While nobody does, nobody waits: what may be on its way is [`QUIET_BYTES`], or what takes [`QUIET_TIME`].
//! - A sink is waited for while it gets on, and only while it is close. One that has not got on for [`STILL`] while a piece for it
//!   is older than that is gone, or locked: it holds up a load once for so long. One that has just joined is about to begin. One that gets on may need longer than it was
//!   measured to, and would fall behind for good if nobody waited: it is waited for until a piece is older than [`LATE`]. Either is
//!   waited for again when it has caught up. Meanwhile pieces still come no faster than it could apply them when it was last
//!   heard of.
//! - One that does not say what it has applied (an older build) is not waited for at all.
//!
//! Nothing that must be right depends on any of it: it says when, never what.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::lsn::Position;

/// What a commit finds before it at a sink, if it comes at the worst moment.
const PIECE_TIME: Duration = Duration::from_millis(10);

/// Of a sink's time, that is left to what is committed meanwhile: with half of it a commit waits for half a piece on average.
const SHARE: f64 = 0.5;

/// To Kafka, through the ledger to a sink, and back through its consumer group.
const AHEAD_TIME: Duration = Duration::from_millis(100);

/// Transactions of less cost a sink more for themselves than for their rows.
const PIECE_BYTES_MIN: usize = 64 * 1024;
const PIECE_BYTES_MAX: usize = 256 * 1024;

/// Enough that a sink never waits for rows.
const QUIET_BYTES: usize = 16 * 1024 * 1024;

/// Whoever commits first after a pause waits for so long.
const QUIET_TIME: Duration = Duration::from_secs(1);

/// A sink that gets on applies something within this time: its transactions take less.
const STILL: Duration = Duration::from_secs(3);

/// What a sink that gets on has not applied after so long is behind more than pieces: others' rows don't wait for it.
const LATE: Duration = Duration::from_secs(30);

/// The longest pause between two pieces for a sink's pace, which may be that of its worst moment.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Pieces that are kept for sinks which are late.
const PIECES_MAX: usize = 10_000;

/// What is heard last weighs so much: a single transaction may wait for a lock or a disk.
const WEIGHT: f64 = 0.25;

/// A piece of existing rows that was written.
#[derive(Debug)]
struct Piece {
    /// Of its last row.
    to: Position,
    bytes: usize,
    at: Duration,
    /// Of its checkpoint in the ledger, once that is acknowledged.
    entry: Option<i64>,
}

#[derive(Debug, Default)]
struct Sink {
    /// The last entry that it has applied, and the time that it had spent so far; `None`: not heard of yet.
    heard: Option<(i64, Duration)>,
    /// When it was heard to have applied more than before.
    got_on: Duration,
    /// It does not say how far it is.
    silent: bool,
    /// Seconds that it spends with a byte of existing rows.
    byte_seconds: Option<f64>,
}

impl Sink {
    fn applied(&self) -> i64 {
        self.heard.map_or(-1, |(applied, _)| applied)
    }

    /// One that was never heard of has just joined, and is about to begin.
    fn gets_on(&self, now: Duration) -> bool {
        self.heard.is_none() || now.saturating_sub(self.got_on) < STILL
    }
}

/// What was written and is not applied everywhere.
#[derive(Debug, Default)]
pub struct Ahead {
    sinks: BTreeMap<String, Sink>,
    pieces: VecDeque<Piece>,
    /// Who has yet to apply this entry is late.
    late: Option<i64>,
    /// The pace: no piece before.
    next_at: Duration,
}

impl Ahead {
    /// Sinks that a load may be waited with for. What is known of those that stay is kept.
    pub fn watch(&mut self, sinks: impl IntoIterator<Item = String>) {
        let mut before = std::mem::take(&mut self.sinks);
        let known = |name: String| {
            let sink = before.remove(&name).unwrap_or_default();
            (name, sink)
        };
        self.sinks = sinks.into_iter().map(known).collect();
    }

    /// A sink says that it has applied the ledger up to an entry, and how long existing rows took since it began; or nothing of
    /// that.
    pub fn heard(&mut self, name: &str, applied: Option<(i64, Duration)>, now: Duration) {
        let pieces = &self.pieces;
        let Some(sink) = self.sinks.get_mut(name) else { return };
        sink.silent = applied.is_none();
        let Some((to, busy)) = applied else { return };
        if let Some((from, before)) = sink.heard
            && let Some(spent) = busy.checked_sub(before)
        {
            let done = pieces.iter().filter(|piece| piece.entry.is_some_and(|entry| from < entry && entry <= to));
            let bytes: usize = done.map(|piece| piece.bytes).sum();
            if bytes > 0 {
                #[expect(clippy::cast_precision_loss, reason = "a rate")]
                let last = spent.as_secs_f64() / bytes as f64;
                let known = sink.byte_seconds.unwrap_or(last);
                sink.byte_seconds = Some(known + (last - known) * WEIGHT);
            }
        }
        if sink.heard.is_none_or(|(from, _)| from < to) {
            sink.got_on = now;
        }
        sink.heard = Some((to, busy));
        self.drop_applied();
    }

    /// The ledger has a checkpoint, and with it everything up to here.
    pub fn appended(&mut self, to: Position, entry: i64) {
        for piece in self.pieces.iter_mut().filter(|piece| piece.entry.is_none() && piece.to <= to) {
            piece.entry = Some(entry);
        }
    }

    /// A piece was written.
    pub fn wrote(&mut self, to: Position, bytes: usize, is_quiet: bool, now: Duration) {
        if self.sinks.is_empty() || bytes == 0 {
            return;
        }
        // Of one that is gone for hours.
        let is_late = |piece: &Piece| piece.entry.is_some() && piece.entry <= self.late;
        while self.pieces.len() >= PIECES_MAX && self.pieces.front().is_some_and(is_late) {
            self.pieces.pop_front();
        }
        self.pieces.push_back(Piece { to, bytes, at: now, entry: None });
        if !is_quiet {
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let pause = self.byte_seconds().map_or(0.0, |seconds| seconds * bytes as f64 / SHARE);
            self.next_at = now + Duration::from_secs_f64(pause.min(PAUSE_MAX.as_secs_f64()));
        }
    }

    /// Bytes of the next piece at most; `None`: not yet.
    pub fn room(&mut self, is_quiet: bool, now: Duration) -> Option<usize> {
        if self.sinks.is_empty() {
            return Some(usize::MAX);
        }
        self.let_go(now);
        let on_its_way = self.on_its_way();
        let (room, piece) = match is_quiet {
            true => {
                let room = self.within(QUIET_TIME, PIECE_BYTES_MAX, QUIET_BYTES);
                (room, room)
            }
            false if now < self.next_at => return None,
            false => {
                let piece = self.within(PIECE_TIME, PIECE_BYTES_MIN, PIECE_BYTES_MAX);
                (self.within(AHEAD_TIME, piece, QUIET_BYTES), piece)
            }
        };
        (on_its_way == 0 || on_its_way < room).then_some(piece)
    }

    /// When there may be room although nobody says anything, if that is soon.
    pub fn wake_at(&self, now: Duration) -> Option<Duration> {
        (now < self.next_at).then_some(self.next_at)
    }

    /// Bytes that the slowest of the sinks that are close has yet to apply.
    fn on_its_way(&self) -> usize {
        let of = |applied: i64| self.pieces.range(self.first_after(applied)..).map(|piece| piece.bytes).sum();
        self.close().map(of).max().unwrap_or_default()
    }

    /// What the sinks that are close have applied.
    fn close(&self) -> impl Iterator<Item = i64> {
        self.close_sinks().map(Sink::applied)
    }

    fn close_sinks(&self) -> impl Iterator<Item = &Sink> {
        let spoken = self.sinks.values().filter(|sink| !sink.silent);
        spoken.filter(|sink| self.late.is_none_or(|late| sink.applied() >= late))
    }

    /// Of the slowest sink that was heard of.
    fn byte_seconds(&self) -> Option<f64> {
        self.sinks.values().filter(|sink| !sink.silent).filter_map(|sink| sink.byte_seconds).reduce(f64::max)
    }

    /// Bytes that the slowest sink applies within a time; the least where nothing is known.
    fn within(&self, time: Duration, least: usize, most: usize) -> usize {
        let Some(seconds) = self.byte_seconds() else { return most.min(least.saturating_mul(4)).max(least) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is bounded")]
        let bytes = (time.as_secs_f64() / seconds) as usize;
        bytes.clamp(least, most)
    }

    /// The first piece behind an entry of the ledger.
    fn first_after(&self, entry: i64) -> usize {
        self.pieces.partition_point(|piece| piece.entry.is_some_and(|of| of <= entry))
    }

    /// Pieces that are too old hold nobody up any more: older than [`STILL`] where no sink that has yet to apply them gets on.
    fn let_go(&mut self, now: Duration) {
        while let Some(piece) = self.pieces.get(self.late.map_or(0, |late| self.first_after(late)))
            && let Some(entry) = piece.entry
            && let age = now.saturating_sub(piece.at)
            && age >= STILL
            && (age >= LATE || !self.close_sinks().any(|sink| sink.applied() < entry && sink.gets_on(now)))
        {
            self.late = Some(entry);
        }
    }

    /// What all have is forgotten. One that is late is still measured by what it applies: how fast it is, is how fast pieces may
    /// come.
    fn drop_applied(&mut self) {
        let spoken = self.sinks.values().filter(|sink| !sink.silent);
        let Some(applied) = spoken.map(Sink::applied).min() else { return };
        self.pieces.drain(..self.first_after(applied));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    const MB: usize = 1_000_000;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn to(ordinal: u64) -> Position {
        Position::new(Lsn(1), ordinal)
    }

    fn of(sinks: &[&str]) -> Ahead {
        let mut ahead = Ahead::default();
        ahead.watch(sinks.iter().map(|&sink| sink.to_owned()));
        sinks.iter().for_each(|sink| ahead.heard(sink, Some((0, ms(0))), ms(0)));
        ahead
    }

    /// Writes pieces until there is no room; how many bytes these are.
    fn fill(ahead: &mut Ahead, is_quiet: bool, entry: i64, now: Duration) -> usize {
        let mut written = 0;
        while let Some(room) = ahead.room(is_quiet, now) {
            ahead.wrote(to(entry.unsigned_abs()), room, is_quiet, now);
            written += room;
            assert!(written < 1 << 40, "no limit");
        }
        ahead.appended(to(entry.unsigned_abs()), entry);
        written
    }

    /// The sink applied a megabyte within so many milliseconds.
    fn measured(sink: &str, others: &[&str], millis: u64) -> Ahead {
        let all: Vec<&str> = others.iter().copied().chain([sink]).collect();
        let mut ahead = of(&all);
        ahead.wrote(to(1), MB, true, ms(0));
        ahead.appended(to(1), 1);
        ahead.heard(sink, Some((1, ms(millis))), ms(0));
        others.iter().for_each(|other| ahead.heard(other, Some((1, ms(0))), ms(0)));
        ahead
    }

    #[test]
    fn nobody_to_wait_for_is_no_limit() {
        let mut ahead = Ahead::default();
        ahead.wrote(to(1), MB, false, ms(0));
        assert_eq!(ahead.room(false, ms(0)), Some(usize::MAX));
    }

    #[test]
    fn what_is_on_its_way_is_bounded_by_what_the_slowest_sink_applies() {
        let mut ahead = measured("slow", &["fast"], 100);
        assert_eq!(ahead.room(false, ms(1)), Some(100_000), "10 ms of its time");
        let mut at = ms(1);
        let mut written = 0;
        for _ in 0..100 {
            if let Some(room) = ahead.room(false, at) {
                ahead.wrote(to(2), room, false, at);
                assert_eq!(ahead.room(false, at + ms(19)), None, "a piece of 10 ms takes half of 20");
                written += room;
            }
            at += ms(20);
        }
        assert_eq!(written, MB, "100 ms of its time, however long it says nothing");
        ahead.appended(to(2), 2);
        ahead.heard("fast", Some((2, ms(1))), at);
        assert_eq!(ahead.room(false, at), None, "the other one has nothing yet");
        ahead.heard("slow", Some((2, ms(200))), at);
        assert_eq!(ahead.room(false, at), Some(100_000));
    }

    #[test]
    fn without_commits_it_runs_further_ahead_and_not_without_end() {
        assert_eq!(fill(&mut measured("a", &[], 100), true, 2, ms(1)), 10 * MB, "a second of its time");
        assert_eq!(fill(&mut measured("a", &[], 1), true, 2, ms(1)), QUIET_BYTES);
        let mut ahead = measured("a", &[], 100);
        fill(&mut ahead, true, 2, ms(1));
        assert_eq!(ahead.room(false, ms(2)), None, "a commit comes: what is on its way goes first");
    }

    #[test]
    fn one_that_is_gone_is_waited_for_once_and_again_when_it_has_caught_up() {
        let mut ahead = measured("gone", &["there"], 10);
        fill(&mut ahead, true, 2, ms(0));
        ahead.heard("there", Some((2, ms(1))), ms(1));
        assert_eq!(ahead.room(true, STILL - ms(1)), None);
        let hour = Duration::from_secs(3600);
        for (entry, at) in [(3, STILL), (4, STILL + ms(1)), (5, hour), (6, hour + ms(1))] {
            assert!(fill(&mut ahead, true, entry, at) > 0, "the load goes on");
            ahead.heard("there", Some((entry, ms(1))), at);
        }
        ahead.heard("gone", Some((3, ms(20))), hour + STILL);
        assert!(fill(&mut ahead, true, 7, hour + STILL) > 0, "it is still far behind");
        ahead.heard("there", Some((7, ms(1))), hour + STILL);
        ahead.heard("gone", Some((6, ms(30))), hour + STILL);
        assert_eq!(ahead.room(true, hour + STILL + ms(1)), None, "it is close, and has the last ones to apply");
        ahead.heard("gone", Some((7, ms(40))), hour + STILL);
        assert!(ahead.room(true, hour + STILL + ms(2)).is_some());
    }

    #[test]
    fn one_that_needs_longer_than_it_was_measured_to_is_waited_for_while_it_gets_on() {
        let mut ahead = measured("slower", &["there"], 10);
        let other = 1_000_000;
        fill(&mut ahead, true, other, ms(0));
        ahead.heard("there", Some((other, ms(1))), ms(1));
        // What is committed in front of the pieces takes all of its time.
        let mut at = ms(1);
        while at < LATE {
            ahead.heard("slower", Some((i64::try_from(at.as_millis()).unwrap(), ms(10))), at);
            assert_eq!(ahead.room(true, at), None, "{at:?}");
            at += Duration::from_secs(1);
        }
        assert!(ahead.room(true, LATE).is_some(), "not for ever");
        assert_eq!(ahead.close().collect::<Vec<_>>(), [other], "nor again before it has caught up");
        ahead.heard("slower", Some((other, ms(20))), LATE);
        assert_eq!(ahead.close().count(), 2);
    }

    #[test]
    fn one_that_is_late_is_measured_all_the_same() {
        let mut ahead = measured("late", &["there"], 10);
        ahead.wrote(to(2), MB, false, ms(0));
        ahead.appended(to(2), 2);
        ahead.heard("there", Some((2, ms(1))), ms(1));
        assert!(ahead.room(false, STILL).is_some(), "it is let go");
        let known = ahead.byte_seconds();
        ahead.heard("late", Some((2, ms(1010))), STILL);
        assert!(ahead.byte_seconds() > known, "its pace counts: {ahead:?}");
        for i in 0..3 * PIECES_MAX {
            ahead.wrote(to(3), 1, false, STILL);
            ahead.appended(to(3), 3 + i64::try_from(i).unwrap());
            ahead.room(false, STILL * 2 * u32::try_from(i + 1).unwrap());
        }
        assert_eq!(ahead.pieces.len(), PIECES_MAX, "what is kept for it is bounded");
    }

    #[test]
    fn whoever_was_slow_when_it_went_does_not_make_a_load_crawl() {
        let mut ahead = measured("gone", &[], 3_600_000);
        for second in 0..60 {
            let now = STILL * 2 + Duration::from_secs(second);
            if let Some(room) = ahead.room(false, now) {
                ahead.wrote(to(second + 2), room, false, now);
                ahead.appended(to(second + 2), 2 + i64::try_from(second).unwrap());
                assert_eq!(ahead.room(false, now + PAUSE_MAX - ms(1)), None);
                assert_eq!(ahead.wake_at(now), Some(now + PAUSE_MAX));
            }
        }
        assert!(ahead.late.is_some_and(|late| late > 5), "{ahead:?}");
    }

    #[test]
    fn what_does_not_say_how_far_it_is_is_not_waited_for() {
        let mut ahead = of(&["old", "new"]);
        ahead.heard("old", None, ms(0));
        fill(&mut ahead, true, 1, ms(0));
        assert_eq!(ahead.room(true, ms(1)), None);
        ahead.heard("new", Some((1, ms(5))), ms(0));
        assert!(ahead.room(true, ms(1)).is_some());
        let mut ahead = of(&[]);
        ahead.watch(["unheard".to_owned()]);
        assert!(fill(&mut ahead, true, 1, ms(0)) > 0, "one that has said nothing yet is, for a while");
        assert_eq!(ahead.room(true, LATE - ms(1)), None);
        assert!(ahead.room(true, LATE).is_some());
    }

    #[test]
    fn a_worker_that_began_anew_is_measured_anew() {
        let mut ahead = measured("a", &[], 100);
        ahead.wrote(to(2), MB, true, ms(0));
        ahead.appended(to(2), 2);
        ahead.heard("a", Some((2, ms(1))), ms(0));
        let known = ahead.byte_seconds();
        assert!(known.is_some_and(|seconds| (seconds - 1e-7).abs() < 1e-9), "{known:?}");
    }
}

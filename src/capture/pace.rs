//! How fast existing rows are read and written: sizes, rates, and when to make way. Pure; time is an input.
//!
//! - A chunk aims at a number of rows, of bytes and at a time ([`ChunkSize`]): its lock and its snapshot are held that long.
//! - What was read is paid for at a rate, if one is set ([`Rates`]); nothing is read while something is owed.
//! - While the stream is far behind nothing is read at all, and rows enter it only as fast as Kafka takes them, in small pieces
//!   while others write: what they commit waits in the same queues ([`Pace`]). And only as fast as sinks apply them
//!   ([`Ahead`]).

use std::time::Duration;

use crate::capture::ahead::Ahead;
use crate::lsn::Position;
use crate::rate::Rates;

/// A chunk is never asked for with fewer rows than this, but for their bytes.
pub const CHUNK_ROWS_MIN: usize = 10;

/// A chunk aims at so many quarters of its bytes: one that reaches its limit is broken off, and costs its connection.
const AIM_QUARTERS: usize = 3;

/// Rows of the first chunk at most: nothing is known of them yet. Nor does time make a chunk smaller: of so few rows most of it
/// passes with questions and answers, and fewer rows would only need more of those.
const FIRST_ROWS: usize = 1000;

/// A chunk has at most this many times the rows of the one before: the next rows may be wider.
const GROWTH: usize = 4;

/// While transactions stream, rows enter in pieces of about so many bytes: their commits wait for a piece or two, not for a
/// chunk.
const PIECE_BYTES: usize = 256 * 1024;

/// No piece enters while more than this is on its way to Kafka: a commit's records queue behind all of it.
const BUSY_IN_FLIGHT_BYTES: usize = 512 * 1024;

/// The same while nobody writes: enough that Kafka never waits for us.
const QUIET_IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;

/// A source is quiet when it has not committed for so long.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// However much the stream has to do, a piece enters after this time, and a larger one: 4 MiB a second at least.
const PATIENCE: Duration = Duration::from_millis(250);
const PATIENT_PIECE_BYTES: usize = 1024 * 1024;

/// How much the next chunk asks for.
#[derive(Debug, Clone)]
pub struct ChunkSize {
    rows_max: usize,
    bytes_max: usize,
    time: Duration,
    rows: usize,
    row_bytes: usize,
}

impl ChunkSize {
    pub fn new(rows_max: usize, bytes_max: usize, time: Duration) -> ChunkSize {
        let rows_max = rows_max.max(CHUNK_ROWS_MIN);
        ChunkSize { rows_max, bytes_max, time, rows: rows_max.clamp(CHUNK_ROWS_MIN, FIRST_ROWS), row_bytes: 0 }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// However small the rows are.
    pub fn rows_limit(&self) -> usize {
        self.rows_max
    }

    pub fn bytes(&self) -> usize {
        self.bytes_max
    }

    /// A chunk was read: the next one aims at its limits with rows like these.
    pub fn read(&mut self, rows: usize, bytes: usize, took: Duration) {
        if rows == 0 {
            return;
        }
        self.row_bytes = (bytes / rows).max(1);
        let by_bytes = (self.bytes_max / 4 * AIM_QUARTERS / self.row_bytes).max(1);
        let by_time = rows as f64 * self.time.as_secs_f64() / took.as_secs_f64().max(1e-6);
        #[expect(clippy::cast_possible_truncation, reason = "saturates, and is bounded right after")]
        let by_time = (by_time as usize).max(FIRST_ROWS);
        let grown = self.rows.saturating_mul(GROWTH);
        self.rows = by_time.min(grown).clamp(CHUNK_ROWS_MIN, self.rows_max).min(by_bytes);
    }

    /// The last one was too much.
    pub fn halve(&mut self) {
        self.rows = (self.rows / 2).max(CHUNK_ROWS_MIN.min(self.rows));
    }
}

/// What is to be respected.
#[derive(Debug, Clone)]
pub struct Limits {
    pub rows_per_second: Option<usize>,
    pub bytes_per_second: Option<usize>,
    /// Bytes of log that the stream may be behind.
    pub lag_bytes_max: u64,
}

/// Why nothing is read at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// The limits of rows or bytes a second.
    Rate,
    /// The stream is so many bytes behind.
    Lag(u64),
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hold::Rate => {
                write!(f, "its turn: existing rows are read at source.snapshot.rows_per_second or bytes_per_second")
            }
            Hold::Lag(bytes) => write!(
                f,
                "the stream before existing rows are read on: it is {bytes} bytes behind the source (source.snapshot.lag_bytes_max)"
            ),
        }
    }
}

/// When to read and when to write.
#[derive(Debug)]
pub struct Pace {
    rates: Rates,
    lag_bytes_max: u64,
    /// When the stream had a transaction last.
    committed: Option<Duration>,
    /// Since when a chunk could be written.
    due: Option<Duration>,
    row_bytes: usize,
    /// How far sinks are.
    pub ahead: Ahead,
}

impl Pace {
    pub fn new(limits: &Limits) -> Pace {
        Pace {
            rates: Rates::new(limits.rows_per_second, limits.bytes_per_second),
            lag_bytes_max: limits.lag_bytes_max,
            committed: None,
            due: None,
            row_bytes: 1,
            ahead: Ahead::default(),
        }
    }

    /// Why no chunk may be read now, if none may.
    pub fn hold(&mut self, lag_bytes: u64, now: Duration) -> Option<Hold> {
        if lag_bytes > self.lag_bytes_max {
            return Some(Hold::Lag(lag_bytes));
        }
        self.rates.owes(now).then_some(Hold::Rate)
    }

    /// A chunk was read.
    pub fn read(&mut self, rows: usize, bytes: usize, now: Duration) {
        self.rates.spend(rows, bytes, now);
        if let Some(average) = bytes.checked_div(rows) {
            self.row_bytes = average.max(1);
        }
    }

    /// The stream had a transaction.
    pub fn committed(&mut self, now: Duration) {
        self.committed = Some(now);
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.committed.is_none_or(|at| now.saturating_sub(at) >= QUIET_AFTER)
    }

    /// How many rows of a chunk that is due may be written now, with so much on its way to Kafka; `None`: not yet.
    pub fn piece(&mut self, in_flight_bytes: usize, now: Duration) -> Option<usize> {
        let is_quiet = self.is_quiet(now);
        let most = self.ahead.room(is_quiet, now)?;
        let since = *self.due.get_or_insert(now);
        let room = if is_quiet { QUIET_IN_FLIGHT_BYTES } else { BUSY_IN_FLIGHT_BYTES };
        let bytes = match in_flight_bytes > room {
            true if now.saturating_sub(since) < PATIENCE => return None,
            true => PATIENT_PIECE_BYTES,
            false if is_quiet => usize::MAX,
            false => PIECE_BYTES,
        };
        self.due = None;
        Some((bytes.min(most) / self.row_bytes).max(1))
    }

    /// A piece was written up to here.
    pub fn wrote(&mut self, to: Position, bytes: usize, now: Duration) {
        let is_quiet = self.is_quiet(now);
        self.ahead.wrote(to, bytes, is_quiet, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_chunk_aims_at_rows_bytes_and_a_time_and_grows_slowly() {
        let mut size = ChunkSize::new(10_000, 1_000_000, ms(250));
        assert_eq!(size.rows(), 1000);
        size.read(1000, 10_000, ms(1));
        assert_eq!(size.rows(), 4000, "no more than fourfold");
        size.read(4000, 40_000, ms(1));
        assert_eq!(size.rows(), 10_000, "the limit of rows");
        size.read(10_000, 10_000_000, ms(100));
        assert_eq!(size.rows(), 750, "a thousand bytes each");
        size.read(1000, 10_000, ms(100));
        assert_eq!(size.rows(), 2500, "as many as take a quarter of a second");
        size.read(100, 1000, Duration::from_secs(60));
        assert_eq!(size.rows(), 1000, "a source that is far away is no reason for tiny chunks");
        size.read(10, 10_000_000, ms(1));
        assert_eq!(size.rows(), 1, "however wide they are");
        size.read(0, 0, ms(1));
        assert_eq!(size.rows(), 1, "no rows say nothing");
        size.halve();
        assert_eq!(size.rows(), 1);
        size.read(1, 10, ms(1));
        assert_eq!(size.rows(), CHUNK_ROWS_MIN);
    }

    #[test]
    fn a_rate_is_kept_by_waiting_for_what_was_taken() {
        let limits = Limits { rows_per_second: Some(100), bytes_per_second: Some(1000), lag_bytes_max: 50 };
        let mut pace = Pace::new(&limits);
        assert_eq!(pace.hold(0, ms(0)), None);
        pace.read(200, 10, ms(0));
        assert_eq!(pace.hold(0, ms(1900)), Some(Hold::Rate), "two seconds' worth of rows");
        assert_eq!(pace.hold(0, ms(2000)), None);
        pace.read(1, 1500, ms(2000));
        assert_eq!(pace.hold(0, ms(2400)), Some(Hold::Rate), "of bytes a second's worth was saved");
        assert_eq!(pace.hold(0, ms(2510)), None);
        let mut free = Pace::new(&Limits { rows_per_second: None, bytes_per_second: None, ..limits });
        free.read(1_000_000, 1 << 30, ms(0));
        assert_eq!(free.hold(50, ms(0)), None);
        assert_eq!(free.hold(51, ms(0)), Some(Hold::Lag(51)), "the stream goes first");
    }

    #[test]
    fn rows_make_way_for_commits_but_not_for_ever() {
        let mut pace = Pace::new(&Limits { rows_per_second: None, bytes_per_second: None, lag_bytes_max: 0 });
        pace.read(10, 2560, ms(0));
        assert_eq!(pace.piece(QUIET_IN_FLIGHT_BYTES, ms(0)), Some(usize::MAX / 256), "nobody writes");
        assert_eq!(pace.piece(QUIET_IN_FLIGHT_BYTES + 1, ms(0)), None);
        pace.committed(ms(1));
        assert_eq!(pace.piece(0, ms(1)), Some(PIECE_BYTES / 256));
        assert_eq!(pace.piece(BUSY_IN_FLIGHT_BYTES + 1, ms(10)), None);
        assert_eq!(pace.piece(BUSY_IN_FLIGHT_BYTES + 1, ms(259)), None);
        assert_eq!(pace.piece(BUSY_IN_FLIGHT_BYTES + 1, ms(260)), Some(PATIENT_PIECE_BYTES / 256), "patience ends");
        assert_eq!(pace.piece(0, ms(1001)), Some(usize::MAX / 256), "quiet again");
    }
}

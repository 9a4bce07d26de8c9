//! The circuit breaker of a role: whether it is tried again soon, or only probed now and then, and why. Pure; time is an input.
//!
//! | state | the role | until |
//! |---|---|---|
//! | closed | runs, or is tried again after a short pause | it failed [`FAILURES_MAX`] times in a row, or for [`FAILING_MAX`] |
//! | open | waits; nobody connects | its pause is over |
//! | half open | one probe: a start like any other, which connects to the sink before it asks Kafka for anything | it fails (open again), or makes progress, or works for a while with nothing to do (closed) |
//!
//! There is one role for each sink, so there is one probe at a time. Pauses grow to `retry_max` and no further: whoever waits for
//! a sink that is back waits seconds for it, not the length of its outage.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Limits;
use crate::status::{BreakerState, RetryStatus};

/// A restarted server or a fail-over may cost an attempt or two, and is no outage.
const FAILURES_MAX: u32 = 3;

/// A host that swallows what it is sent costs a time-out for each failure: two of these are enough.
const FAILING_MAX: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Breaker {
    limits: Limits,
    /// In a row: nothing was moved in between.
    failures: u32,
    /// When the first of them was.
    since: Option<(Instant, Timestamp)>,
    is_open: bool,
}

/// What follows from a failure.
pub struct Pause {
    pub time: Duration,
    pub status: RetryStatus,
    /// It was closed until now.
    pub opened: bool,
}

impl Breaker {
    pub fn new(limits: Limits) -> Breaker {
        Breaker { limits, failures: 0, since: None, is_open: false }
    }

    /// The role failed. `spread` in 0..1 is by chance, so that roles that failed together do not come back together.
    pub fn failed(&mut self, error: String, spread: f64, (now, time): (Instant, Timestamp)) -> Pause {
        self.failures = self.failures.saturating_add(1);
        let (begun, since) = *self.since.get_or_insert((now, time));
        let before = self.is_open;
        let long = self.failures > 1 && now.saturating_duration_since(begun) >= FAILING_MAX;
        self.is_open |= self.failures >= FAILURES_MAX || long;
        let pause = retry_pause(self.failures, spread, &self.limits);
        let breaker = if self.is_open { BreakerState::Open } else { BreakerState::Closed };
        let status = RetryStatus { failures: self.failures, error, since, next_try: time + pause, breaker };
        Pause { time: pause, status, opened: self.is_open && !before }
    }

    /// The state during the attempt that begins.
    pub fn attempt(&self) -> BreakerState {
        if self.is_open { BreakerState::HalfOpen } else { BreakerState::Closed }
    }

    /// The role made progress, or had nothing to do for a while: what failed before is over. True if it had failed.
    pub fn close(&mut self) -> bool {
        let failed = self.failures > 0;
        (self.failures, self.since, self.is_open) = (0, None, false);
        failed
    }
}

/// The pause after so many failures in a row: doubling from `retry_min` up to `retry_max`, of which `spread` takes up to half
/// away.
pub(super) fn retry_pause(failures: u32, spread: f64, limits: &Limits) -> Duration {
    let doubled = limits.retry_min.saturating_mul(2_u32.saturating_pow(failures.min(16)));
    doubled.min(limits.retry_max).mul_f64(1.0 - spread / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_spread() {
        let limits = Limits::default();
        let pauses: Vec<u128> = (1..=8).map(|n| retry_pause(n, 0.0, &limits).as_millis()).collect();
        assert_eq!(pauses, [400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(retry_pause(1, 1.0, &limits), limits.retry_min);
        assert_eq!(retry_pause(u32::MAX, 1.0, &limits), limits.retry_max / 2);
    }

    /// Fails at these seconds; the states behind each failure and in the attempt that follows.
    fn states(breaker: &mut Breaker, seconds: &[u64]) -> Vec<(BreakerState, BreakerState)> {
        let (start, time) = (Instant::now(), Timestamp::UNIX_EPOCH);
        let mut failed = |second: &u64| {
            let passed = Duration::from_secs(*second);
            let pause = breaker.failed("refused".to_owned(), 0.5, (start + passed, time + passed));
            (pause.status.breaker, breaker.attempt())
        };
        seconds.iter().map(&mut failed).collect()
    }

    #[test]
    fn it_opens_after_some_failures_in_a_row_or_after_a_long_one() {
        use BreakerState::{Closed, HalfOpen, Open};
        let mut breaker = Breaker::new(Limits::default());
        assert_eq!(states(&mut breaker, &[0, 1]), [(Closed, Closed), (Closed, Closed)]);
        assert!(breaker.close(), "it had failed");
        assert_eq!(states(&mut breaker, &[0, 1, 2]), [(Closed, Closed), (Closed, Closed), (Open, HalfOpen)]);
        assert!(breaker.close() && !breaker.close());
        assert_eq!(breaker.attempt(), Closed);
        assert_eq!(states(&mut breaker, &[0, 12]), [(Closed, Closed), (Open, HalfOpen)]);
    }

    #[test]
    fn a_failure_says_since_when_and_until_when() {
        let (mut breaker, start) = (Breaker::new(Limits::default()), Instant::now());
        let at = |ms: u64| (start + Duration::from_millis(ms), Timestamp::UNIX_EPOCH + Duration::from_millis(ms));
        assert!(!breaker.failed("first".to_owned(), 0.0, at(1000)).opened);
        assert!(!breaker.failed("second".to_owned(), 0.0, at(2000)).opened);
        let pause = breaker.failed("third".to_owned(), 0.0, at(3000));
        assert!(pause.opened);
        let RetryStatus { failures, error, since, next_try, breaker: state } = pause.status;
        assert_eq!((failures, error.as_str(), state), (3, "third", BreakerState::Open));
        assert_eq!((since, next_try), (at(1000).1, at(3000 + 1600).1));
        assert!(!breaker.failed("fourth".to_owned(), 0.0, at(5000)).opened, "it was open");
    }
}

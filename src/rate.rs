//! So many rows and bytes a second: what was taken beyond that is owed, and paid off by waiting. Pure; time is an input.
//!
//! Nothing is divided to fit: a chunk or a transaction that is larger than a second's worth goes as a whole, and is waited for
//! afterwards. Over a minute the rate is kept, over a second it may not be.

use std::time::Duration;

/// At most a second's worth is saved up.
#[derive(Debug, Clone)]
struct Rate {
    per_second: f64,
    /// Below zero: owed.
    saved: f64,
    at: Duration,
}

impl Rate {
    fn new(per_second: usize) -> Rate {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_second = per_second as f64;
        Rate { per_second, saved: 0.0, at: Duration::ZERO }
    }

    fn pass(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.saved = (self.saved + passed * self.per_second).min(self.per_second);
        self.at = self.at.max(now);
    }

    fn spend(&mut self, amount: usize, now: Duration) {
        self.pass(now);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let amount = amount as f64;
        self.saved -= amount;
    }

    fn owes(&mut self, now: Duration) -> bool {
        self.pass(now);
        self.saved < 0.0
    }
}

/// Both rates; either may be none.
#[derive(Debug, Clone)]
pub struct Rates {
    rows: Option<Rate>,
    bytes: Option<Rate>,
}

impl Rates {
    pub fn new(rows_per_second: Option<usize>, bytes_per_second: Option<usize>) -> Rates {
        Rates { rows: rows_per_second.map(Rate::new), bytes: bytes_per_second.map(Rate::new) }
    }

    pub fn spend(&mut self, rows: usize, bytes: usize, now: Duration) {
        if let Some(rate) = &mut self.rows {
            rate.spend(rows, now);
        }
        if let Some(rate) = &mut self.bytes {
            rate.spend(bytes, now);
        }
    }

    /// More was taken than it was time for.
    pub fn owes(&mut self, now: Duration) -> bool {
        let owes = |rate: &mut Option<Rate>| rate.as_mut().is_some_and(|rate| rate.owes(now));
        // Both are to pass the time.
        let (rows, bytes) = (owes(&mut self.rows), owes(&mut self.bytes));
        rows || bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_by_waiting_for_what_was_taken() {
        let ms = Duration::from_millis;
        let mut rates = Rates::new(Some(100), Some(1000));
        assert!(!rates.owes(ms(0)));
        rates.spend(200, 10, ms(0));
        assert!(rates.owes(ms(1900)), "two seconds' worth of rows");
        assert!(!rates.owes(ms(2000)));
        rates.spend(1, 1500, ms(2000));
        assert!(rates.owes(ms(2400)), "of bytes a second's worth was saved");
        assert!(!rates.owes(ms(2510)));
        let mut free = Rates::new(None, None);
        free.spend(1_000_000, 1 << 30, ms(0));
        assert!(!free.owes(ms(0)));
    }
}

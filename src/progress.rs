//! How fast a copy goes, from how far it was: rows a second over the last seconds, per table.
//!
//! Pure: time comes in. What is made of it (a share of the rows that there are about, the time that is left) is the status' business.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::relation::TableName;

/// Long enough to even out chunks of seconds, short enough to show that something stands still.
const WINDOW: Duration = Duration::from_secs(15);
/// Between two points that are kept; fewer than a second apart they say little.
const SPACING: Duration = Duration::from_secs(1);

/// The copies of one role.
#[derive(Debug, Default)]
pub struct Meters(HashMap<TableName, Meter>);

impl Meters {
    /// Notes how many rows of the table are done, `None` for one that is not under way; rows a second, once that can be told.
    pub fn rate(&mut self, table: &TableName, rows: Option<u64>, now: Instant) -> Option<f64> {
        let Some(rows) = rows else {
            self.0.remove(table);
            return None;
        };
        let meter = self.0.entry(table.clone()).or_default();
        meter.note(rows, now);
        meter.per_second()
    }
}

#[derive(Debug, Default)]
struct Meter {
    /// Rising in both.
    points: VecDeque<(Instant, u64)>,
    last: Option<(Instant, u64)>,
}

impl Meter {
    fn note(&mut self, rows: u64, now: Instant) {
        if self.last.is_some_and(|(_, before)| rows < before) {
            // The copy began anew.
            self.points.clear();
        }
        if self.points.back().is_none_or(|(at, _)| now.duration_since(*at) >= SPACING) {
            self.points.push_back((now, rows));
        }
        while self.points.len() > 2 && now.duration_since(self.points[0].0) > WINDOW {
            self.points.pop_front();
        }
        self.last = Some((now, rows));
    }

    fn per_second(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (*self.points.front()?, self.last?);
        let seconds = to.duration_since(from).as_secs_f64();
        (seconds >= SPACING.as_secs_f64()).then(|| (after - before) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let (mut meters, start, table) = (Meters::default(), Instant::now(), TableName::new("public", "t"));
        let mut at = |millis: u64, rows: Option<u64>| meters.rate(&table, rows, start + Duration::from_millis(millis));
        assert_eq!(at(0, Some(0)), None);
        assert_eq!(at(500, Some(100)), None, "too early to tell");
        assert_eq!(at(1_000, Some(300)), Some(300.0));
        for second in 2..40 {
            at(second * 1_000, Some(300 + second * 100));
        }
        let rate = at(40_000, Some(4_300)).unwrap();
        assert!((99.0..101.0).contains(&rate), "{rate}: what was before is forgotten");
        for second in 41..60 {
            at(second * 1_000, Some(4_300));
        }
        assert_eq!(at(60_000, Some(4_300)), Some(0.0), "it stands still");
        assert_eq!(at(61_000, Some(10)), None, "it began anew");
        assert_eq!(at(63_000, Some(30)), Some(10.0));
        assert_eq!(at(64_000, None), None);
        assert_eq!(at(65_000, Some(30)), None);
    }
}

//! What was seen to be wrong, and what was counted: the result of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// The same violation is seen again with each look; more of them say nothing new.
const VIOLATIONS_MAX: usize = 50;

const VIOLATION_CHARS_MAX: usize = 600;

/// Shared by all who look.
#[derive(Clone, Debug, Default)]
pub struct Verdict(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    violations: Vec<String>,
    /// How often each fault took effect.
    faults: BTreeMap<&'static str, u64>,
    /// How often each oracle looked and could judge.
    looks: BTreeMap<&'static str, u64>,
    /// The largest value of each.
    peaks: BTreeMap<&'static str, u64>,
    recoveries: Vec<Duration>,
}

impl Verdict {
    pub fn violation(&self, text: impl fmt::Display) {
        let mut seen = self.0.lock().unwrap();
        if seen.violations.len() < VIOLATIONS_MAX {
            eprintln!("torture: VIOLATION: {text}");
            // A process that ended brings the end of its log, which is kept elsewhere.
            seen.violations.push(text.to_string().chars().take(VIOLATION_CHARS_MAX).collect());
        }
    }

    /// Whether all is well so far.
    pub fn is_clean(&self) -> bool {
        self.0.lock().unwrap().violations.is_empty()
    }

    pub fn fault(&self, name: &'static str, times: u64) {
        *self.0.lock().unwrap().faults.entry(name).or_default() += times;
    }

    pub fn faults(&self, name: &str) -> u64 {
        self.0.lock().unwrap().faults.get(name).copied().unwrap_or_default()
    }

    pub fn look(&self, oracle: &'static str) {
        *self.0.lock().unwrap().looks.entry(oracle).or_default() += 1;
    }

    pub fn peak(&self, what: &'static str, value: u64) {
        let mut seen = self.0.lock().unwrap();
        let peak = seen.peaks.entry(what).or_default();
        *peak = value.max(*peak);
    }

    pub fn recovered(&self, time: Duration) {
        self.0.lock().unwrap().recoveries.push(time);
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Report {
    pub verdict: Verdict,
    pub seed: u64,
    pub time: Duration,
    pub transactions: u64,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean()
    }

    pub fn json(&self) -> Value {
        let mut seen = self.verdict.0.lock().unwrap();
        seen.recoveries.sort();
        let millis = |time: &Duration| u64::try_from(time.as_millis()).expect("a run's time");
        json!({
            "seed": self.seed,
            "ended": jiff::Timestamp::now().to_string(),
            "seconds": self.time.as_secs(),
            "transactions": self.transactions,
            "faults": seen.faults,
            "looks": seen.looks,
            "peaks": seen.peaks,
            "recovery_ms_median": seen.recoveries.get(seen.recoveries.len() / 2).map(millis),
            "recovery_ms_max": seen.recoveries.last().map(millis),
            "violations": seen.violations,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = self.verdict.0.lock().unwrap();
        let (seed, seconds, transactions) = (self.seed, self.time.as_secs(), self.transactions);
        write!(f, "torture: seed {seed}, {seconds} s, {transactions} transactions;")?;
        for (fault, times) in &seen.faults {
            write!(f, " {times} {fault},")?;
        }
        write!(f, " {} violations", seen.violations.len())
    }
}

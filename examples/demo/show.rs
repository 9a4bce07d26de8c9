//! How the demo speaks: short lines, each with the seconds since the start.

use std::time::{Duration, Instant};

pub struct Show {
    started: Instant,
}

impl Show {
    pub fn new() -> Show {
        Show { started: Instant::now() }
    }

    /// Something was done or begins.
    pub fn step(&self, text: &str) {
        println!("[{:5.1} s] {text}", self.started.elapsed().as_secs_f64());
    }

    /// A detail of the step before.
    pub fn more(&self, text: &str) {
        println!("          {text}");
    }
}

/// 1234567 as 1,234,567.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

pub fn per_second(count: u64, time: Duration) -> String {
    format!("{:.0}", count as f64 / time.as_secs_f64().max(0.001))
}

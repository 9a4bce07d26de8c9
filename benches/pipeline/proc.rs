//! What the kernel says about a process.

use std::fs;

use anyhow::{Context, Result};

/// Linux shows times in /proc in these, on every architecture (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time of the whole process so far, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).context(path)?;
    // The name in parentheses may hold anything, the fields after it are numbers; utime and stime are the 14th and 15th.
    let (_, fields) = text.rsplit_once(')').context("no name in /proc/PID/stat")?;
    let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

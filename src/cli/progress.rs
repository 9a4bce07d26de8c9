//! Copies as a person follows them: bars where standard error is a terminal, a line of the log now and then elsewhere.
//!
//! Both say what `/status` says. Bars stand below the log: whatever writes a line asks for room first ([`beside`]).

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::status::{Board, Copy};

/// A line is enough so often; of a copy that ends before, none is needed.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often bars move.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// More bars than that push everything else out of sight.
const BARS_MAX: usize = 12;

static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Lets `write` write to standard error without bars in its way.
pub fn beside<T>(write: impl FnOnce() -> T) -> T {
    match BARS.get() {
        // Who panics may hold what a bar waits for, and the process is about to end.
        Some(bars) if !std::thread::panicking() => bars.suspend(write),
        _ => write(),
    }
}

/// The copies of this process, followed.
pub struct Progress {
    board: Board,
    /// By table and place, where they are drawn.
    bars: Option<BTreeMap<(String, String), ProgressBar>>,
    told: Instant,
}

impl Progress {
    /// `for_people`: lines of the log are text, so that bars may stand below them.
    pub fn new(board: Board, for_people: bool) -> Progress {
        let drawn = for_people && io::stderr().is_terminal();
        if drawn {
            BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        }
        Progress { board, bars: drawn.then(BTreeMap::new), told: Instant::now() }
    }

    /// Shows how things are now.
    pub fn look(&mut self) {
        let copies = self.board.copies();
        match &mut self.bars {
            Some(bars) => draw(bars, &copies),
            None if self.told.elapsed() >= LINE_INTERVAL => {
                self.told = Instant::now();
                copies.iter().for_each(tell);
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let (Some(_), Some(bars)) = (&self.bars, BARS.get()) {
            let _ = bars.clear();
        }
    }
}

fn tell(copy: &Copy) {
    tracing::info!(table = %copy.table, at = copy.place, "{}", words(copy));
}

/// `12000 of about 90000 rows (13 %), 1500 rows/s, 52s left`, as far as it is known.
fn words(copy: &Copy) -> String {
    let mut words = match copy.estimated {
        Some(estimated) => {
            let share = percent(copy).map_or_else(String::new, |percent| format!(" ({percent} %)"));
            format!("{} of about {estimated} rows{share}", copy.done)
        }
        None => format!("{} rows", copy.done),
    };
    if let Some(rate) = copy.per_second {
        words.push_str(&format!(", {rate:.0} rows/s"));
    }
    if let Some(left) = copy.left {
        words.push_str(&format!(", {} left", clock(left)));
    }
    words
}

fn percent(copy: &Copy) -> Option<u64> {
    let estimated = copy.estimated.filter(|estimated| *estimated > 0)?;
    Some(copy.done.saturating_mul(100) / estimated)
}

/// `1h02m`, `3m20s`, `52s`.
pub fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

fn draw(bars: &mut BTreeMap<(String, String), ProgressBar>, copies: &[Copy]) {
    let Some(all) = BARS.get() else { return };
    let key = |copy: &Copy| (copy.table.to_string(), copy.place.clone());
    bars.retain(|name, bar| {
        let stays = copies.iter().any(|copy| key(copy) == *name);
        if !stays {
            bar.finish_and_clear();
            all.remove(bar);
        }
        stays
    });
    for copy in copies {
        if !bars.contains_key(&key(copy)) {
            if bars.len() >= BARS_MAX {
                continue;
            }
            let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}").expect("a constant");
            // Names come from a database, and control characters steer terminals.
            let name = format!("{} at {}", copy.table, copy.place).escape_debug().to_string();
            let bar = all.add(ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(name));
            bars.insert(key(copy), bar);
        }
        let bar = &bars[&key(copy)];
        bar.set_length(copy.estimated.unwrap_or_default());
        bar.set_position(copy.done);
        bar.set_message(words(copy));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relation::TableName;

    #[test]
    fn a_copy_is_told_as_far_as_it_is_known() {
        let copy = Copy {
            table: TableName::new("public", "t"),
            place: "orders".to_owned(),
            done: 12_000,
            estimated: Some(90_000),
            per_second: Some(1_500.4),
            left: Some(Duration::from_secs(52)),
        };
        assert_eq!(words(&copy), "12000 of about 90000 rows (13 %), 1500 rows/s, 52s left");
        let young = Copy { per_second: None, left: None, ..copy };
        assert_eq!(words(&young), "12000 of about 90000 rows (13 %)");
        assert_eq!(words(&Copy { estimated: None, ..young }), "12000 rows");
        let times = [0, 59, 60, 200, 3_600, 100_000].map(|seconds| clock(Duration::from_secs(seconds)));
        assert_eq!(times, ["0s", "59s", "1m00s", "3m20s", "1h00m", "27h46m"]);
    }
}

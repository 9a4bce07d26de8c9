//! How long a commit takes to be visible in two sinks while a thousand single-row transactions a second are written.
//!
//! The stamp is `clock_timestamp()` within the INSERT, just before its own COMMIT, so the commit's flush is part of the time.
//! A poller at each sink looks every millisecond for rows that it has not seen and stamps them after the answer. All clocks are
//! this machine's. The rate is kept by time, not by answers: a slow moment costs all the transactions in it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_postgres::Client;

use crate::figure::{Figure, median};
use crate::memory::Set;
use crate::source::megabytes;
use crate::support::Services;
use crate::{Options, rows};

/// Connections of the writer; each commit takes about a millisecond, so one alone could not keep the rate.
const WRITERS: u32 = 8;
const POLL: Duration = Duration::from_millis(1);
/// Of each round, not counted.
const WARM_UP: Duration = Duration::from_secs(3);
/// Who has not seen the last row by then has lost it.
const LAST_SEEN_TIMEOUT: Duration = Duration::from_secs(60);

pub async fn run(services: &Services, options: &Options) -> Result<()> {
    let set = Set::make(services).await?;
    let mut process = set.start().await?;
    let mut by_share =
        [(50, "p50_ms", vec![]), (90, "p90_ms", vec![]), (99, "p99_ms", vec![]), (100, "max_ms", vec![])];
    let mut first = 0;
    for _ in 0..options.rounds {
        let (next, samples) = round(&set, first, options.rate, options.seconds).await?;
        first = next;
        let samples = sorted(&samples);
        for (share, _, rounds) in &mut by_share {
            rounds.push(percentile(&samples, *share));
        }
        let said: Vec<String> =
            by_share.iter().map(|(_, name, rounds)| format!("{name} {:.1}", rounds[rounds.len() - 1])).collect();
        eprintln!("latency: {} samples, {}", samples.len(), said.join(", "));
        process.ensure_running()?;
    }
    for (_, name, rounds) in &by_share {
        ensure!(median(rounds) > 0.0, "nothing was measured");
        Figure::new("latency", name, "ms", rounds).print();
    }
    let peak = [megabytes(process.peak_rss_bytes()?)];
    Figure::new("memory", "peak_mb", "MB", &peak).case("all roles, 2 sinks, latency run").print();
    set.stop(process).await
}

/// When a row was stamped, in microseconds since 1970, and how many of them it took to be seen.
pub type Sample = (i64, i64);

/// What rows took, in rising order.
pub fn sorted(samples: &[Sample]) -> Vec<i64> {
    let mut took: Vec<i64> = samples.iter().map(|(_, took)| *took).collect();
    took.sort_unstable();
    took
}

/// In milliseconds.
pub fn percentile(sorted: &[i64], share: usize) -> f64 {
    let at = (sorted.len() * share / 100).min(sorted.len() - 1);
    sorted[at] as f64 / 1000.0
}

/// One round from row `first` on, with `rate` transactions a second: the number after the last row, and what both sinks saw.
pub async fn round(set: &Set, first: i64, rate: u32, seconds: u64) -> Result<(i64, Vec<Sample>)> {
    let time = WARM_UP + Duration::from_secs(seconds);
    let counted_from = now_us() + i64::try_from(WARM_UP.as_micros())?;
    let (last, until) = watch::channel(None);
    let mut pollers = JoinSet::new();
    for sink in &set.sinks {
        let client = sink.connect().await?;
        pollers.spawn(poll(client, first, counted_from, until.clone()));
    }
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = set.source.connect().await?;
        let begin = first + i64::from(writer);
        writers.spawn(write(client, begin, rate, time));
    }
    // Every writer takes each eighth number; the longest decides where the next round begins.
    let (mut next, mut written) = (first, 0);
    let mut ends = Vec::new();
    while let Some(count) = writers.join_next().await {
        let (begin, count) = count.context("a writer panicked")??;
        ends.push((begin, count));
        written += count;
        next = next.max(begin + count * i64::from(WRITERS));
    }
    let wanted = f64::from(rate) * time.as_secs_f64();
    ensure!(written as f64 >= 0.95 * wanted, "the writer reached {written} of {wanted} transactions");
    last.send_replace(Some(written));
    let mut samples = Vec::new();
    while let Some(seen) = pollers.join_next().await {
        samples.extend(seen.context("a poller panicked")??);
    }
    ensure!(!samples.is_empty(), "no samples");
    Ok((next + i64::from(WRITERS), samples))
}

/// Inserts every [`WRITERS`]th row from `begin` on, at its share of the rate; where it began and how many it wrote.
async fn write(client: Client, begin: i64, rate: u32, time: Duration) -> Result<(i64, i64)> {
    let insert = client.prepare(&rows::insert_one()).await?;
    let mut beat = interval(Duration::from_secs(1) * WRITERS / rate);
    beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < time {
        beat.tick().await;
        client.execute(&insert, &[&(begin + count * i64::from(WRITERS))]).await?;
        count += 1;
    }
    Ok((begin, count))
}

/// Each row that was stamped after `counted_from`, until as many rows as `until` says were seen.
async fn poll(
    client: Client,
    first: i64,
    counted_from: i64,
    until: watch::Receiver<Option<i64>>,
) -> Result<Vec<Sample>> {
    let sql = "SELECT id, (extract(epoch FROM changed_at) * 1000000)::bigint FROM public.events WHERE id >= $1";
    let look = client.prepare(sql).await?;
    // Writers are not in step: rows above the lowest that is missing are asked for again and known by number.
    let (mut low, mut seen, mut samples) = (vec![0_i64; usize::try_from(WRITERS)?], 0, Vec::new());
    let mut above = std::collections::HashSet::new();
    let lanes = i64::from(WRITERS);
    let mut deadline = None;
    loop {
        let from = low.iter().enumerate().map(|(lane, count)| first + lane as i64 + count * lanes).min();
        let found = client.query(&look, &[&from]).await?;
        let now = now_us();
        for row in found {
            let (id, stamp): (i64, i64) = (row.get(0), row.get(1));
            let lane = usize::try_from((id - first) % lanes)?;
            if (id - first) / lanes < low[lane] || !above.insert(id) {
                continue;
            }
            seen += 1;
            if stamp >= counted_from {
                samples.push((stamp, now - stamp));
            }
            while above.remove(&(first + lane as i64 + low[lane] * lanes)) {
                low[lane] += 1;
            }
        }
        let last = *until.borrow();
        if last.is_some_and(|last| seen >= last) {
            return Ok(samples);
        }
        if last.is_some() && Instant::now() > *deadline.get_or_insert(Instant::now() + LAST_SEEN_TIMEOUT) {
            anyhow::bail!("{seen} of {last:?} rows were seen within {LAST_SEEN_TIMEOUT:?} after the last commit");
        }
        sleep(POLL).await;
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands after 1970");
    i64::try_from(since.as_micros()).expect("microseconds since 1970 have 63 bits")
}

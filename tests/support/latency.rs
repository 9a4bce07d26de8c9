//! How long a commit at the source takes to be visible at the sinks.
//!
//! A prober numbers one row up at a fixed rate and notes the time just before each COMMIT; at every sink a poller looks at that
//! row every millisecond and notes when a number, or a later one, is first seen. All stamps are of one clock, this process's.
//! The rate is fixed, so a slow moment costs all the probes in it and not just the first.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::services::Database;
use super::shop::PROBE_ID;

const POLL: Duration = Duration::from_millis(1);
/// Who has not seen the last probe by then has lost it.
const LAST_SEEN_TIMEOUT: Duration = Duration::from_secs(20);

/// Sorted durations from just before a COMMIT to the first look that saw it.
#[derive(Clone, Debug, Default)]
pub struct Latency {
    samples: Vec<Duration>,
}

impl Latency {
    pub fn count(&self) -> usize {
        self.samples.len()
    }

    /// The share of samples, 0 to 100, that are at or below the answer.
    pub fn percentile(&self, share: usize) -> Duration {
        let Some(last) = self.samples.len().checked_sub(1) else { return Duration::ZERO };
        self.samples[(self.samples.len() * share / 100).min(last)]
    }
}

/// Probes at `per_second` for `time`; all sinks' samples together.
pub async fn measure(source: &Database, sinks: &[&Database], per_second: u32, time: Duration) -> Result<Latency> {
    // The number is kept in a column that the product has no opinion on.
    let client = source.connect().await?;
    let first = "SELECT stock FROM public.products WHERE id = $1";
    let first: i32 = client.query_one(first, &[&PROBE_ID]).await.context("the shop has no probe row")?.get(0);
    let (last, until) = watch::channel(None);
    let mut pollers = JoinSet::new();
    for sink in sinks {
        let client = sink.connect().await?;
        pollers.spawn(poll(client, first, until.clone()));
    }
    let sent = probe(client, first, per_second, time).await?;
    last.send_replace(Some(first + i32::try_from(sent.len())?));
    let mut samples = Vec::new();
    while let Some(seen) = pollers.join_next().await {
        let seen = seen.context("a poller panicked")??;
        samples.extend(sent.iter().zip(seen).map(|(sent, seen)| seen - *sent));
    }
    samples.sort_unstable();
    Ok(Latency { samples })
}

/// The times just before each commit.
async fn probe(
    mut client: tokio_postgres::Client,
    first: i32,
    per_second: u32,
    time: Duration,
) -> Result<Vec<Instant>> {
    let mut beat = interval(Duration::from_secs(1) / per_second.max(1));
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sql = "UPDATE public.products SET stock = $2, updated_at = clock_timestamp() WHERE id = $1";
    let update = client.prepare(sql).await?;
    let started = Instant::now();
    let mut sent = Vec::new();
    while started.elapsed() < time {
        beat.tick().await;
        let number = first + i32::try_from(sent.len())? + 1;
        let tx = client.transaction().await?;
        tx.execute(&update, &[&PROBE_ID, &number]).await?;
        sent.push(Instant::now());
        tx.commit().await?;
    }
    Ok(sent)
}

/// The times at which each number after `first` was first seen, until the last one.
async fn poll(
    client: tokio_postgres::Client,
    first: i32,
    mut until: watch::Receiver<Option<i32>>,
) -> Result<Vec<Instant>> {
    let look = client.prepare("SELECT stock FROM public.products WHERE id = $1").await?;
    let mut seen = Vec::new();
    let mut deadline = None;
    loop {
        let number: i32 = client.query_one(&look, &[&PROBE_ID]).await?.get(0);
        let now = Instant::now();
        let count = usize::try_from(number - first).context("the probe row went back")?;
        seen.resize(count.max(seen.len()), now);
        let last = *until.borrow_and_update();
        if last.is_some_and(|last| number >= last) {
            return Ok(seen);
        }
        if last.is_some() && now > *deadline.get_or_insert(now + LAST_SEEN_TIMEOUT) {
            anyhow::bail!("probe {number} is the last that was seen within {LAST_SEEN_TIMEOUT:?} after probe {last:?}");
        }
        sleep(POLL).await;
    }
}

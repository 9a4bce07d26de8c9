//! One transaction of many rows, in a process that may have little memory: what it writes flows through, however much it is.
//!
//! In the long run, with a million rows. `LOCKSTEP_TEST_ROWS=N` says otherwise, and `LOCKSTEP_TEST_BINARY=FILE` takes another build of
//! lockstep, for a figure: docs/reliability.md.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use support::scene::{Scene, text};

/// Of everything that the process has resident.
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(3600);

/// A limit that the kernel holds: a process that wants more is killed. Only root may set it, where cgroups are of version 1.
struct Limit(PathBuf);

impl Limit {
    fn on(pid: u32) -> Option<Limit> {
        let group = PathBuf::from(format!("/sys/fs/cgroup/memory/lockstep-{pid}"));
        fs::create_dir(&group).ok()?;
        let limit = Limit(group);
        fs::write(limit.0.join("memory.limit_in_bytes"), MEMORY_BYTES_MAX.to_string()).ok()?;
        fs::write(limit.0.join("cgroup.procs"), pid.to_string()).ok()?;
        Some(limit)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // Fails while its process lives: of a test that failed an empty group stays.
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_of_many_rows_needs_little_memory() {
    let rows = std::env::var("LOCKSTEP_TEST_ROWS").ok().map(|rows| rows.parse::<u64>().unwrap());
    if rows.is_none() && std::env::var_os("LOCKSTEP_LONG").is_none() {
        return;
    }
    let rows = rows.unwrap_or(1_000_000);
    let binary = std::env::var("LOCKSTEP_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_lockstep").to_owned());
    let schema = "CREATE TABLE public.items (id bigint PRIMARY KEY, v text, n int)";
    let scene = Scene::new(&binary, "large", schema, &[("public.items", &["id"])]).await;
    let mut process = scene.spawn(&[]);
    let limit = Limit::on(process.pid());
    scene.streaming(&mut process).await;
    let begun = Instant::now();
    scene.sql(&format!("INSERT INTO items SELECT i, 'value ' || i, i % 1000 FROM generate_series(1, {rows}) i")).await;
    let inserted = begun.elapsed();
    let sinks = [("orders", scene.orders())];
    scene.pipeline.wait_caught_up(&mut process, &scene.source, &sinks, PATIENCE).await.unwrap();
    let (peak, whole) = (process.peak_rss_bytes().unwrap(), begun.elapsed());
    let sums = "SELECT count(*) || ' ' || sum(id) || ' ' || sum(hashtext(v)::bigint) || ' ' || sum(n) FROM items";
    assert_eq!(text(scene.orders(), sums).await, text(&scene.source, sums).await);
    eprintln!(
        "{rows} rows in one transaction: peak {} MB, {} at the source, {} until they were at the sink, {}",
        peak / 1_000_000,
        humantime(inserted),
        humantime(whole),
        if limit.is_some() { "held to 256 MB by a cgroup" } else { "without a limit that is held" }
    );
    assert!(peak <= MEMORY_BYTES_MAX, "{peak} bytes");
    process.terminate(PATIENCE).await.unwrap();
}

fn humantime(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

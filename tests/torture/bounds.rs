//! What the product may hold, however long it is tortured: memory, descriptors, sessions, the source's log.

use std::fs;

use anyhow::{Context, Result};

use super::stage::{Role, Stage};
use super::support::Database;
use super::verdict::Verdict;

/// One role of a small load; what the issue grants a process for a transaction of any size.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
const DESCRIPTORS_MAX: u64 = 200;
/// Two processes of each role; the source's has sessions for chunks, looks and the stream. Those of the dead end late.
const SESSIONS_MAX: i64 = 30;
/// The server moves restart_lsn only every 15 s, and after a crash a slot is back where it was last saved.
const RETAINED_BYTES_MAX: u64 = 512 << 20;

/// One look at everything that runs.
pub async fn look(stage: &Stage, roles: &[Role], verdict: &Verdict) -> Result<()> {
    for (role, pid) in roles.iter().flat_map(|role| role.processes.iter().map(|process| (&role.name, process.pid()))) {
        // A process that was killed just now has neither.
        let (Ok(memory), Ok(descriptors)) = (resident(pid), fs::read_dir(format!("/proc/{pid}/fd"))) else { continue };
        let descriptors = descriptors.count() as u64;
        verdict.peak("memory_bytes", memory);
        verdict.peak("descriptors", descriptors);
        if memory > MEMORY_BYTES_MAX || descriptors > DESCRIPTORS_MAX {
            verdict.violation(format!("{role} holds {memory} bytes and {descriptors} descriptors"));
        }
    }
    for database in stage.sinks.iter().chain([&stage.source]) {
        let sessions = sessions(database).await?;
        verdict.peak("sessions", sessions.unsigned_abs());
        if sessions > SESSIONS_MAX {
            verdict.violation(format!("{sessions} sessions at {}", database.server.name));
        }
    }
    let retained = retained(stage).await?;
    verdict.peak("retained_bytes", retained);
    if retained > RETAINED_BYTES_MAX {
        verdict.violation(format!("the slot retains {retained} bytes"));
    }
    verdict.look("bounds");
    Ok(())
}

fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

async fn sessions(database: &Database) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'lockstep:%'";
    Ok(database.connect().await?.query_one(sql, &[]).await?.get(0))
}

async fn retained(stage: &Stage) -> Result<u64> {
    let sql = format!(
        "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::int8 FROM pg_replication_slots
          WHERE slot_name = 'lockstep_{}'",
        stage.pipeline.name
    );
    let bytes: i64 = stage.source.connect().await?.query_one(&sql, &[]).await?.get(0);
    Ok(bytes.unsigned_abs())
}

//! Who has the lock that the sink's connection waits for.
//!
//! A statement that waits for a lock says nothing until `lock_timeout` ends it, and then nobody knows any more whom it waited for.
//! So it is asked meanwhile, over a connection beside, once the connection has been silent for longer than it ever is while it works.
//! It is for people alone: whatever fails here is left at that.

use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;

use super::database;
use crate::config;
use crate::error::Result;
use crate::postgres::slot::holder;
use crate::session;
use crate::sink::lease::Heard;
use crate::sink::progress::Owner;

/// So much longer than the longest silence of a connection that works: most statements are over by then.
const SILENCE: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Between two connections: a long statement that waits for nobody is no reason for many.
const CONNECT_INTERVAL: Duration = Duration::from_secs(10);

/// Looks for as long as it is polled. `beat`: how often the connection speaks when it is idle.
pub(super) async fn watch(
    sink: &config::Sink,
    pipeline: &str,
    owner: &Owner,
    (heard, beat): (Heard, Duration),
    tell: impl Fn(Option<String>),
) {
    let patience = beat + SILENCE;
    loop {
        let quiet = heard.get().elapsed();
        if quiet < patience {
            sleep(patience - quiet).await;
            continue;
        }
        let application = format!("lockstep:{pipeline}:{}:locks", sink.name);
        if let Ok(session) = session::connect(database(sink), &application).await {
            let before = heard.get();
            while heard.get() == before {
                let Ok(blocker) = blocker(&session, owner.backend_pid).await else { break };
                tell(blocker);
                sleep(LOOK_INTERVAL).await;
            }
            tell(None);
        }
        sleep(CONNECT_INTERVAL).await;
    }
}

/// The first of those that are in the way of the backend. One that waits itself is too: the queue is fair.
async fn blocker(client: &Client, pid: i32) -> Result<Option<String>> {
    let sql = "SELECT b.pid FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) AS b(pid) LIMIT 1";
    let found = client.query_opt(sql, &[&pid]).await;
    let found = found.map_err(|error| session::classify("looking who has a lock at the sink", error))?;
    // 0 stands for a prepared transaction, which no session has any more.
    match found.map(|row| row.get::<_, i32>(0)) {
        None => Ok(None),
        Some(0) => Ok(Some("a prepared transaction".to_owned())),
        Some(pid) => Ok(Some(holder(client, pid).await?.map_or_else(|| format!("process {pid}"), |h| h.to_string()))),
    }
}

//! Row consistency: the partitions of a sink's topics are spread over processes, each of which writes the rows of its partitions in
//! transactions of its own. What is kept and what is not stands in docs/design.md, section 5.
//!
//! Each process is two things. One of all is the **owner** of the sink ([`super::driver`], as ever): it walks the ledger, and what
//! is no matter of one key (barriers: truncates, key changes, other relation versions, existing rows) it applies by itself, whole and
//! in order, with all partitions in its hand. Every process is a **member** ([`member`]): of what lies between barriers it applies the
//! spans of the partitions that Kafka has assigned to it. Owner and members meet in the sink's database only
//! ([`crate::sink::partition_progress`]), and judge alike what is a barrier, from the ledger alone.
//!
//! A member decides nothing and halts nothing: what it can't apply it leaves, and the owner, who sees that a partition stands still,
//! takes all of them and does it, or halts.

pub mod floor;
mod member;
mod refusals;
mod window;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use refusals::refusals;

use self::member::Ended;
use crate::apply::start::taken;
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::http::metrics::SinkMetrics;
use crate::sink::{Sink, lacks};
use crate::status::{PartitionStatus, SinkReporter, SinkStatus, State};

/// How often at most what owner and member say of themselves is put together.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// How often a member that takes tables in another way than the owner looks whether it still does.
const OTHERWISE_INTERVAL: Duration = Duration::from_secs(2);
/// So long a member that can't go on leaves the word to the owner.
const OWNER_FIRST: Duration = Duration::from_secs(10);

/// The role of one process: runs until it is stopped or fails.
pub async fn run<S: Sink>(
    config: Arc<Config>,
    sink: config::Sink,
    (reporter, metrics): (SinkReporter, SinkMetrics),
    stop: CancellationToken,
) -> Result<()> {
    lacks::refuse::<S>(&sink, taken(&config, &sink.name).values())?;
    if let Some(halt) = refusals(&config, &sink).into_iter().next() {
        return Err(halt.into());
    }
    let (owner, member) = (SinkReporter::default(), SinkReporter::default());
    // What is known of the sink outlives an attempt.
    let last = reporter.watch().borrow().clone();
    owner.update(|status| *status = last.clone());
    member.update(|status| *status = last);
    // Members go on until the owner has counted what they do.
    let after = CancellationToken::new();
    let owned = async {
        let name = sink.name.clone();
        let outcome =
            super::driver::apply::<S>(config.clone(), name, owner.clone(), metrics.clone(), stop.clone()).await;
        after.cancel();
        outcome
    };
    let shared = async {
        let running = loop {
            let of = (member.clone(), metrics.clone());
            match member::run::<S>(config.clone(), sink.clone(), of, after.clone()).await {
                Ok(Ended::Stopped) => break Ok(()),
                // The owner may be this process, which is about to ask for it in its way.
                Ok(Ended::Otherwise(why)) => {
                    tracing::info!(sink = sink.name, "writing nothing: {why}");
                    member.update(|status| {
                        status.partitions = vec![];
                        status.waiting_for = Some(why);
                    });
                    if after.run_until_cancelled(tokio::time::sleep(OTHERWISE_INTERVAL)).await.is_none() {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        let Err(Error::Halt(halt)) = running else { return running };
        // Whether that is one the owner says, which reads the same ledger; and what it does about it may be all that is needed.
        tracing::warn!(code = %halt.code, hint = %halt.hint, "a member can't go on, and leaves its partitions: {}", halt.message);
        tokio::select! {
            () = after.cancelled() => Ok(()),
            () = tokio::time::sleep(OWNER_FIRST) => {
                Err(Error::retry_plain(format!("a member can't go on: {} ({})", halt.message, halt.hint)))
            }
        }
    };
    let told = async {
        let (mut owner, mut member) = (owner.watch(), member.watch());
        loop {
            let (of_owner, of_member) = (owner.borrow_and_update().clone(), member.borrow_and_update().clone());
            reporter.update(|status| tell(status, of_owner, of_member));
            tokio::time::sleep(REPORT_INTERVAL).await;
            // Only what is new is told: a role that is silent is to be seen as one that is.
            let _ = tokio::select! {
                changed = owner.changed() => changed,
                changed = member.changed() => changed,
            };
        }
    };
    tokio::select! {
        outcome = async { tokio::try_join!(owned, shared) } => outcome.map(drop),
        () = told => unreachable!("it never ends"),
    }
}

/// One word of both: the owner's, or the member's where another process has the owner.
fn tell(status: &mut SinkStatus, owner: SinkStatus, member: SinkStatus) {
    let partitions: Vec<PartitionStatus> = member.partitions;
    let (halt, retry) = (status.halt.take(), status.retry.take());
    let told = match owner.state {
        State::Standby => {
            let waiting_for = member.waiting_for.or(owner.waiting_for);
            SinkStatus {
                state: member.state,
                position: member.position,
                closed_lsn: member.closed_lsn,
                waiting_for,
                ..owner
            }
        }
        _ => owner,
    };
    *status = SinkStatus { halt, retry, partitions, ..told };
}

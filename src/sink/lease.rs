//! Whether whoever owns a sink is alive, as others see it.
//!
//! A process that is killed takes its connection with it. One that is frozen does not, and neither does one whose link was cut
//! without a word: its backend waits for the next statement, perhaps inside a transaction. So an owner speaks on its connection
//! at least five times in `lease_timeout`, and whoever watches its backend tells a silent one from one that works: a backend
//! that runs a statement is never silent, however long it takes.
//!
//! The owner watches itself the same way over a second connection ([`watch_link`]), because a statement whose answer never comes
//! looks to it like one that takes long.
//!
//! Nothing here is needed for safety: a predecessor that wakes up is fenced by the compare-and-set of `progress`.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::progress::Owner;
use crate::config;
use crate::error::{Error, Result};
use crate::session::ServerError;

/// Between two looks over the second connection.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How often in a lease the owner speaks: some of these may come late on a busy machine.
pub const BEATS: u32 = 5;

/// What the server says of a backend (`pg_stat_activity` in Postgres).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// It waits for its client. False while it runs a statement, and where the server does not say.
    pub waits: bool,
    /// When that began, in microseconds since 1970; or whatever else is another number after each statement.
    pub since_us: i64,
}

/// What was seen of an owner so far. Pure: time comes in.
#[derive(Debug)]
pub struct Lease {
    timeout: Duration,
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    owner: Owner,
    activity: Activity,
    /// From here on nothing has changed.
    since: Instant,
    looked: Instant,
}

impl Lease {
    pub fn new(timeout: Duration) -> Lease {
        Lease { timeout, seen: None }
    }

    /// How often to look, `usual` if the lease is long enough.
    pub fn look_interval(&self, usual: Duration) -> Duration {
        usual.min(self.timeout / 10)
    }

    /// Another look. True when the owner has been silent for the whole lease, and was looked at all that time: who was frozen
    /// itself must not judge by what its clock says.
    pub fn is_over(&mut self, owner: &Owner, activity: Activity, now: Instant) -> bool {
        let silent = activity.waits
            && self.seen.as_ref().is_some_and(|seen| {
                let attentive = now.saturating_duration_since(seen.looked) <= self.timeout / 2;
                (&seen.owner, seen.activity) == (owner, activity) && attentive
            });
        match &mut self.seen {
            Some(seen) if silent => {
                seen.looked = now;
                now.saturating_duration_since(seen.since) >= self.timeout
            }
            _ => {
                self.seen = Some(Seen { owner: owner.clone(), activity, since: now, looked: now });
                false
            }
        }
    }
}

/// When a connection last gave an answer; written by its owner.
pub type Heard = Rc<Cell<Instant>>;

/// A way to look at our own connection from beside it.
// It lives on the thread of its role, as the sink does.
#[allow(async_fn_in_trait)]
pub trait Probe {
    type Session;

    async fn connect(&self) -> Result<Self::Session>;

    /// What the owner's backend does; `None` when it is gone.
    async fn activity(session: &mut Self::Session, owner: &Owner) -> Result<Option<Activity>>;
}

/// Watches the connection behind `owner`; resolves with the error once it is dead without anybody having said so. A server
/// that runs a long statement is left alone.
pub async fn watch_link<P: Probe>(probe: &P, sink: &config::Sink, owner: Owner, heard: Heard) -> Error {
    // Two looks' worth of patience within the lease: a dead link is found before a standby takes the sink.
    let patience = sink.lease_timeout / 2;
    loop {
        let quiet = heard.get().elapsed();
        if quiet < patience {
            tokio::time::sleep(patience - quiet).await;
            continue;
        }
        if let Some(why) = look(probe, &owner, &heard, patience).await {
            return Error::retry_plain(format!("the connection to sink {} is dead: {why}", sink.name));
        }
    }
}

/// Looks until the connection speaks again (`None`) or is known to be dead, and why.
async fn look<P: Probe>(probe: &P, owner: &Owner, heard: &Heard, patience: Duration) -> Option<String> {
    let before = heard.get();
    let mut session = match probe.connect().await {
        Ok(session) => session,
        // The server answers, so the way to it is open; what it refuses is nothing to end a transaction for.
        Err(error) if is_refusal(&error) => {
            tokio::time::sleep(LOOK_INTERVAL).await;
            return None;
        }
        Err(error) if heard.get() == before => return Some(error.chain()),
        Err(_) => return None,
    };
    let mut lease = Lease::new(patience);
    while heard.get() == before {
        match tokio::time::timeout(patience, P::activity(&mut session, owner)).await {
            Ok(Ok(Some(activity))) => {
                if lease.is_over(owner, activity, Instant::now()) {
                    return Some("the server waits for us, and we for it".to_owned());
                }
            }
            Ok(Ok(None)) if heard.get() == before => return Some("the server has ended it".to_owned()),
            Ok(Err(error)) if heard.get() == before => return Some(error.chain()),
            Err(_) if heard.get() == before => return Some("the server does not answer".to_owned()),
            _ => return None,
        }
        tokio::time::sleep(LOOK_INTERVAL.min(patience / 4)).await;
    }
    None
}

fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Halt(_) => true,
        Error::Retry(retry) => retry.source.as_ref().is_some_and(|source| source.is::<ServerError>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn owner(worker_epoch: i64) -> Owner {
        Owner { worker_epoch, worker_id: Uuid::nil(), backend_pid: 1, backend_start_us: 1 }
    }

    /// Looks once a second at what `activity` gives for that second; the second in which the lease is over.
    fn over(activity: impl Fn(u64) -> Option<Activity>) -> Option<u64> {
        let (mut lease, start) = (Lease::new(TIMEOUT), Instant::now());
        (0..60).find(|&second| {
            let now = start + Duration::from_secs(second);
            activity(second).is_some_and(|activity| lease.is_over(&owner(1), activity, now))
        })
    }

    #[test]
    fn a_silent_owner_loses_the_lease_and_one_that_speaks_or_works_does_not() {
        let at = |waits, since_us| Some(Activity { waits, since_us });
        assert_eq!(over(|_| at(true, 0)), Some(10));
        assert_eq!(over(|second| at(true, i64::try_from(second / 3).unwrap())), None, "it speaks");
        assert_eq!(over(|_| at(false, 0)), None, "a long statement");
        assert_eq!(over(|second| at(second > 20, 0)), Some(31), "silent after a long statement");
    }

    #[test]
    fn who_did_not_look_does_not_judge() {
        let at = |second: u64| (!(3..40).contains(&second)).then_some(Activity { waits: true, since_us: 0 });
        assert_eq!(over(at), Some(50), "the count begins again after the pause");
    }

    #[test]
    fn another_owner_has_a_lease_of_its_own() {
        let (mut lease, start) = (Lease::new(TIMEOUT), Instant::now());
        let activity = Activity { waits: true, since_us: 0 };
        let mut look = |epoch, second| lease.is_over(&owner(epoch), activity, start + Duration::from_secs(second));
        assert!((0..10).all(|second| !look(1, second)));
        assert!((10..20).all(|second| !look(2, second)));
        assert!(look(2, 20));
    }
}

//! Whoever has the lock that the sink waits for, for the status while it waits and for the error once it has waited for too long.

use std::cell::RefCell;

use crate::error::{Error, Retry};
use crate::session::ServerError;
use crate::status::SinkReporter;

/// What Postgres says once `lock_timeout` is over.
const LOCK_NOT_AVAILABLE: &str = "55P03";

pub(super) struct Blocker {
    reporter: SinkReporter,
    who: RefCell<Option<String>>,
}

impl Blocker {
    pub fn new(reporter: SinkReporter) -> Blocker {
        Blocker { reporter, who: RefCell::default() }
    }

    pub fn tell(&self, who: Option<String>) {
        if let Some(who) = &who {
            self.reporter.update(|s| s.waiting_for = Some(format!("a lock at the sink that {who} has")));
        }
        self.who.replace(who);
    }

    /// The error, with whom it is about.
    pub fn name(&self, error: Error) -> Error {
        match (error, self.who.take()) {
            (Error::Retry(retry), Some(who)) if is_lock(&retry) => {
                Error::Retry(Retry { doing: format!("{}, of which {who} has the lock", retry.doing), ..retry })
            }
            (error, _) => error,
        }
    }
}

fn is_lock(retry: &Retry) -> bool {
    let said = retry.source.as_ref().and_then(|source| source.downcast_ref::<ServerError>());
    said.is_some_and(|said| said.code == LOCK_NOT_AVAILABLE)
}

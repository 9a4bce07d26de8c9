//! What is the same in all records that an encoder writes of one transaction in one burst: nearly everything around the rows.
//!
//! It is rendered once and copied from then on. An encoder that follows another one, or another transaction, renders it anew,
//! so where transactions are of one row it costs a copy of some hundred bytes and saves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Event, Origin, Snapshot};
use crate::lsn::Lsn;

/// An event without its own place in the log, which differs from record to record.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Moment {
    last_commit_lsn: Option<Lsn>,
    xid: Option<u64>,
    commit_time_us: i64,
    snapshot: Snapshot,
    now_ns: i64,
    origin: Option<Arc<Origin>>,
}

impl Moment {
    fn of(event: &Event) -> Moment {
        let Event { last_commit_lsn, xid, commit_time_us, snapshot, now_ns, ref origin, lsn: _, block: _ } = *event;
        Moment { last_commit_lsn, xid, commit_time_us, snapshot, now_ns, origin: origin.clone() }
    }
}

/// Names one encoder: shells of another one are not its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EncoderId(u64);

impl EncoderId {
    pub(super) fn new() -> EncoderId {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        EncoderId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Rendered pieces, in their order; the event's place stands between them.
#[derive(Default, Debug)]
pub(super) struct Shell {
    of: Option<(EncoderId, Moment)>,
    pub(super) head: Vec<u8>,
    pub(super) middle: Vec<u8>,
    /// The end of the source block.
    pub(super) origin: Vec<u8>,
    pub(super) tail: Vec<u8>,
}

impl Shell {
    /// Whether the pieces are to be rendered; they are empty then.
    pub(super) fn renew(&mut self, encoder: EncoderId, event: &Event) -> bool {
        let of = Some((encoder, Moment::of(event)));
        if self.of == of {
            return false;
        }
        self.of = of;
        self.head.clear();
        self.middle.clear();
        self.origin.clear();
        self.tail.clear();
        true
    }
}

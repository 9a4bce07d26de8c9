//! A snapshot as Postgres prints it, and what it sees: the arithmetic behind the visibility cut (docs/design.md section 4).
//!
//! Transaction ids are 64 bit here (`xid8`). The stream's are 32 bit; [`PgSnapshot::widen`] puts them back on the long line.
//! No IO here: [`super::slot::snapshot_now`] asks the server.

use std::str::FromStr;

/// `pg_current_snapshot()`: which transactions had ended when it was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgSnapshot {
    /// Every transaction below had ended.
    pub xmin: u64,
    /// No transaction at or above had ended.
    pub xmax: u64,
    /// Top-level transactions between the two that were running; ascending.
    pub xip: Vec<u64>,
}

/// The text is not `xmin:xmax:xip,…` with xmin <= xip < xmax.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a pg_snapshot: {0:?}")]
pub struct NotASnapshot(pub String);

impl PgSnapshot {
    /// Whether what the transaction did, if it committed, is visible. `xid` is a top-level transaction's, as BEGIN in the
    /// stream names it: a subtransaction's would be judged wrongly.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// A transaction id of the stream (32 bit) as the 64-bit one nearest to xmax. Right for every transaction less than 2^31
    /// away, and Postgres never lets more than that be in use.
    pub fn widen(&self, xid: u32) -> u64 {
        const EPOCH: u64 = 1 << 32;
        let near = (self.xmax & !(EPOCH - 1)) | u64::from(xid);
        [near.checked_sub(EPOCH), Some(near), near.checked_add(EPOCH)]
            .into_iter()
            .flatten()
            .min_by_key(|candidate| candidate.abs_diff(self.xmax))
            .expect("near itself is a candidate")
    }
}

impl FromStr for PgSnapshot {
    type Err = NotASnapshot;

    fn from_str(text: &str) -> Result<PgSnapshot, NotASnapshot> {
        let parse = || {
            let mut parts = text.split(':');
            let (xmin, xmax, list) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
            let mut xip = Vec::new();
            for xid in list.split(',').filter(|_| !list.is_empty()) {
                xip.push(xid.parse().ok()?);
            }
            xip.sort_unstable();
            let inside = xip.iter().all(|xid| (xmin..xmax).contains(xid));
            (xmin <= xmax && inside && parts.next().is_none()).then_some(PgSnapshot { xmin, xmax, xip })
        };
        parse().ok_or_else(|| NotASnapshot(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_postgres_prints() {
        let snapshot: PgSnapshot = "10:20:10,14,15".parse().unwrap();
        assert_eq!(snapshot, PgSnapshot { xmin: 10, xmax: 20, xip: vec![10, 14, 15] });
        assert_eq!("7:7:".parse(), Ok(PgSnapshot { xmin: 7, xmax: 7, xip: vec![] }));
        for wrong in ["", "1:2", "2:1:", "1:2:3", "1:5:0", "1:2:x", "1:2::", "1:5:2,,3", "-1:2:"] {
            assert_eq!(wrong.parse::<PgSnapshot>(), Err(NotASnapshot(wrong.to_owned())));
        }
    }

    #[test]
    fn sees_what_had_ended() {
        let snapshot: PgSnapshot = "10:20:10,14".parse().unwrap();
        let seen: Vec<u64> = (8..22).filter(|&xid| snapshot.sees(xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn widens_to_the_epoch_that_is_near() {
        let at = |xmax: u64| PgSnapshot { xmin: xmax, xmax, xip: vec![] };
        assert_eq!(at(1000).widen(990), 990);
        assert_eq!(at(1000).widen(1005), 1005);
        let third = 3 << 32;
        assert_eq!(at(third + 5).widen(u32::MAX), third - 1);
        assert_eq!(at(third - 5).widen(3), third + 3);
        assert_eq!(at(third + 5).widen(4), third + 4);
        // At the very beginning there is no epoch below.
        assert_eq!(at(5).widen(u32::MAX), u64::from(u32::MAX));
        assert_eq!(at(u64::MAX).widen(u32::MAX), u64::MAX);
    }
}

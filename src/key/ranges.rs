//! Ranges of one table's keys as a set: what is loaded of it, and so what is still to be read.
//!
//! Chunks come in whatever order they were read, some of them twice, so they are kept as few ranges that rise and do not
//! touch. Borders compare by the key's orders, which the caller knows; a set is of one key, and whoever changes the key
//! begins a new set.
//!
//! Invariant: a key lies in the set iff it lies in a range that was put in. Sets of older writers are lists in the order of
//! their chunks; they are searched one by one until something is put in.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{KeyError, KeyOrder, KeyRange, compare};

#[derive(Clone, Debug, Default, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<KeyRange>", into = "Vec<KeyRange>")]
pub struct RangeSet {
    ranges: Vec<KeyRange>,
    /// The ranges rise and do not touch.
    rising: bool,
}

/// What lies in two sets is compared, not how it was come by.
impl PartialEq for RangeSet {
    fn eq(&self, other: &RangeSet) -> bool {
        self.ranges == other.ranges
    }
}

impl From<Vec<KeyRange>> for RangeSet {
    fn from(ranges: Vec<KeyRange>) -> RangeSet {
        RangeSet { rising: ranges.len() < 2, ranges }
    }
}

impl From<RangeSet> for Vec<KeyRange> {
    fn from(set: RangeSet) -> Vec<KeyRange> {
        set.ranges
    }
}

impl RangeSet {
    pub fn of(orders: &[KeyOrder], ranges: impl IntoIterator<Item = KeyRange>) -> Result<RangeSet, KeyError> {
        let mut set = RangeSet::default();
        ranges.into_iter().try_for_each(|range| set.insert(orders, range))?;
        Ok(set)
    }

    /// Puts a range in, joined to those that it overlaps or touches.
    pub fn insert(&mut self, orders: &[KeyOrder], range: KeyRange) -> Result<(), KeyError> {
        if !self.rising && self.ranges.len() > 1 {
            *self = RangeSet::of(orders, std::mem::take(&mut self.ranges))?;
        }
        self.rising = true;
        if let (Some(after), Some(through)) = (&range.after, &range.through)
            && compare(orders, after, through)? != Ordering::Less
        {
            return Ok(());
        }
        let first = self.position(|known| Ok(ends(orders, known, &range)? == Ordering::Less))?;
        let behind = self.position(|known| Ok(ends(orders, &range, known)? != Ordering::Less))?;
        let mut joined = range;
        if first < behind {
            let (lowest, highest) = (&self.ranges[first], &self.ranges[behind - 1]);
            if above(orders, joined.after.as_deref(), lowest.after.as_deref())? {
                joined.after.clone_from(&lowest.after);
            }
            let higher = match (&highest.through, &joined.through) {
                (None, _) => true,
                (_, None) => false,
                (Some(highest), Some(through)) => compare(orders, highest, through)? == Ordering::Greater,
            };
            if higher {
                joined.through.clone_from(&highest.through);
            }
        }
        self.ranges.splice(first..behind, [joined]);
        Ok(())
    }

    /// Whether the key lies in one of the ranges.
    pub fn contains<K: AsRef<[u8]>>(&self, orders: &[KeyOrder], key: &[K]) -> Result<bool, KeyError> {
        if !self.rising {
            for range in &self.ranges {
                if range.contains(orders, key)? {
                    return Ok(true);
                }
            }
            return Ok(false);
        }
        let ends_below = |range: &KeyRange| match &range.through {
            Some(through) => Ok(compare(orders, through, key)? == Ordering::Less),
            None => Ok(false),
        };
        let place = self.position(ends_below)?;
        self.ranges.get(place).map_or(Ok(false), |range| range.contains(orders, key))
    }

    /// The ranges that are not in the set, rising.
    ///
    /// # Panics
    /// If the set is an older writer's list, whose order says nothing.
    pub fn missing(&self) -> Vec<KeyRange> {
        assert!(self.rising || self.ranges.is_empty(), "a list is put in order before somebody asks what it lacks");
        let mut missing = Vec::new();
        let mut after = None;
        for range in &self.ranges {
            if range.after.is_some() {
                missing.push(KeyRange { after, through: range.after.clone() });
            }
            match &range.through {
                Some(through) => after = Some(through.clone()),
                None => return missing,
            }
        }
        missing.push(KeyRange { after, through: None });
        missing
    }

    /// What lies in both.
    pub fn intersection(&self, orders: &[KeyOrder], other: &RangeSet) -> Result<RangeSet, KeyError> {
        let rising = |set: &RangeSet| RangeSet::of(orders, set.ranges.iter().cloned());
        let outside = rising(self)?.missing().into_iter().chain(rising(other)?.missing());
        RangeSet::of(orders, RangeSet::of(orders, outside)?.missing())
    }

    /// Every key lies in it.
    pub fn is_whole(&self) -> bool {
        self.ranges.contains(&KeyRange::ALL)
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether the ranges rise, so that it can be said what they lack.
    pub fn is_rising(&self) -> bool {
        self.rising || self.ranges.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, KeyRange> {
        self.ranges.iter()
    }

    /// Of a list whose orders are not known.
    pub fn push(&mut self, range: KeyRange) {
        self.rising = false;
        self.ranges.push(range);
        self.rising = self.ranges.len() == 1;
    }

    /// How many ranges, from the lowest on, meet a condition that none behind them meets.
    fn position(&self, meets: impl Fn(&KeyRange) -> Result<bool, KeyError>) -> Result<usize, KeyError> {
        let (mut low, mut high) = (0, self.ranges.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match meets(&self.ranges[middle])? {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }
}

/// How the upper border of a range stands to the lower one of another: `Equal` where the second goes on from the first.
fn ends(orders: &[KeyOrder], one: &KeyRange, other: &KeyRange) -> Result<Ordering, KeyError> {
    match (&one.through, &other.after) {
        (Some(through), Some(after)) => compare(orders, through, after),
        _ => Ok(Ordering::Greater),
    }
}

/// Whether a lower border is above another; `None` is below every key.
fn above(orders: &[KeyOrder], one: Option<&[String]>, other: Option<&[String]>) -> Result<bool, KeyError> {
    match (one, other) {
        (None, _) => Ok(false),
        (Some(_), None) => Ok(true),
        (Some(one), Some(other)) => Ok(compare(orders, one, other)? == Ordering::Greater),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTEGER: &[KeyOrder] = &[KeyOrder::Integer];
    const KEYS: std::ops::Range<i32> = 0..16;

    fn range(after: Option<i32>, through: Option<i32>) -> KeyRange {
        let key = |n: i32| vec![n.to_string()];
        KeyRange { after: after.map(key), through: through.map(key) }
    }

    fn set(ranges: &[(i32, i32)]) -> RangeSet {
        RangeSet::of(INTEGER, ranges.iter().map(|&(a, t)| range(Some(a), Some(t)))).unwrap()
    }

    fn keys(set: &RangeSet) -> Vec<i32> {
        KEYS.filter(|key| set.contains(INTEGER, &[key.to_string()]).unwrap()).collect()
    }

    #[test]
    fn ranges_that_touch_or_overlap_become_one_in_whatever_order_they_come() {
        assert_eq!(set(&[(5, 9), (1, 3), (3, 5)]), set(&[(1, 9)]));
        assert_eq!(set(&[(9, 10), (1, 4), (2, 12)]), set(&[(1, 12)]));
        assert_eq!(set(&[(1, 3), (4, 5)]).iter().count(), 2, "4 lies between them");
        assert_eq!(set(&[(3, 3), (4, 1)]), RangeSet::default(), "no key lies in them");
    }

    #[test]
    fn what_is_missing_lies_between_and_around() {
        assert_eq!(RangeSet::default().missing(), [KeyRange::ALL]);
        let holes = set(&[(10, 12), (3, 5)]).missing();
        assert_eq!(holes, [range(None, Some(3)), range(Some(5), Some(10)), range(Some(12), None)]);
        let whole = RangeSet::of(INTEGER, [range(Some(4), None), range(None, Some(4))]).unwrap();
        assert!(whole.is_whole() && whole.missing().is_empty());
    }

    #[test]
    fn an_older_writers_list_is_searched_and_put_in_order_with_the_next_range() {
        let list = r#"[{"after":["9"],"through":["10"]},{"through":["3"]},{"after":["3"],"through":["5"]}]"#;
        let mut old: RangeSet = serde_json::from_str(list).unwrap();
        assert!(!old.is_rising());
        assert_eq!(keys(&old), [0, 1, 2, 3, 4, 5, 10]);
        old.insert(INTEGER, range(Some(5), Some(9))).unwrap();
        assert_eq!(old, RangeSet::from(vec![range(None, Some(10))]));
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"[{"through":["10"]}]"#);
    }

    #[test]
    fn borders_of_another_key_are_an_error_and_never_a_guess() {
        let mut texts = RangeSet::from(vec![KeyRange { after: Some(vec!["x".into()]), through: None }]);
        assert!(texts.insert(INTEGER, range(Some(1), Some(2))).is_err());
        assert!(texts.contains(INTEGER, &["1"]).is_err());
    }

    proptest! {
        /// Against a model that is nothing but the keys themselves.
        #[test]
        fn a_set_holds_the_keys_of_its_ranges(
            ranges in proptest::collection::vec((proptest::option::of(KEYS), proptest::option::of(KEYS)), 0..12),
        ) {
            let mut set = RangeSet::default();
            let mut model = vec![false; KEYS.len()];
            for (after, through) in ranges {
                set.insert(INTEGER, range(after, through)).unwrap();
                for (key, inside) in KEYS.zip(&mut model) {
                    *inside |= after.is_none_or(|after| key > after) && through.is_none_or(|through| key <= through);
                }
                let held: Vec<i32> = KEYS.zip(&model).filter(|(_, inside)| **inside).map(|(key, _)| key).collect();
                prop_assert_eq!(keys(&set), held);
                let missing = RangeSet::of(INTEGER, set.missing()).unwrap();
                let others: Vec<i32> = KEYS.zip(&model).filter(|(_, inside)| !**inside).map(|(key, _)| key).collect();
                prop_assert_eq!(keys(&missing), others);
                let ordered: Vec<KeyRange> = set.clone().into();
                for pair in ordered.windows(2) {
                    prop_assert!(pair[0].through.is_some() && pair[1].after.is_some());
                    prop_assert_eq!(ends(INTEGER, &pair[0], &pair[1]).unwrap(), Ordering::Less, "they do not touch");
                }
                prop_assert_eq!(set.is_whole(), set.missing().is_empty());
                let odd = RangeSet::of(INTEGER, (0..8).map(|i| range(Some(2 * i), Some(2 * i + 1)))).unwrap();
                let both = set.intersection(INTEGER, &odd).unwrap();
                let held: Vec<i32> = keys(&set).into_iter().filter(|key| key % 2 == 1).collect();
                prop_assert_eq!(keys(&both), held);
            }
        }
    }
}

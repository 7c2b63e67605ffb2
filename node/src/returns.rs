//! When those that were refused are to come back: one after the other, as fast as the tree works off what waits.
//!
//! Told the same time, all would come together and nearly all be refused again. Whoever comes back at its time finds the places
//! that the lanes keep for that; whoever does not costs nobody anything.

use std::{collections::BTreeMap, sync::Arc};

/// Both of OpenAI's clients ignore longer waits.
pub(crate) const WAIT_MAX_US: u64 = 60_000_000;
/// Sooner is no relief.
const WAIT_MIN_US: u64 = 1_000_000;
/// Owners and models that are told of: more are refused without a promise.
const KEPT: usize = 4096;
/// Promised is a little less than what was measured, so that noise does not break promises.
const MARGIN: f64 = 1.05;

/// The next free times. See the module.
#[derive(Debug, Default)]
pub(crate) struct Returns(BTreeMap<(Arc<str>, Arc<str>), u64>);

/// What a refused client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Return {
    pub(crate) after_us: u64,
    /// Whether a place is kept; else there are more before it than get one in the longest wait.
    pub(crate) kept: bool,
}

impl Returns {
    /// `lane` is the owner and the model, `earliest_us` how long there is no place whatever others do, and `cost_us` how long the
    /// owner's share of the tree works on the query.
    pub(crate) fn promise(&mut self, now: u64, lane: (Arc<str>, Arc<str>), earliest_us: u64, cost_us: f64) -> Return {
        let earliest = now + earliest_us.max(WAIT_MIN_US);
        let due = self.0.get(&lane).map_or(earliest, |next| earliest.max(*next));
        let after_us = (due - now).min(WAIT_MAX_US);
        let kept = due - now <= WAIT_MAX_US && (self.0.len() < KEPT || self.0.contains_key(&lane));
        if kept {
            let cost = (cost_us * MARGIN).clamp(0.0, WAIT_MAX_US as f64);
            self.0.insert(lane, due + cost as u64);
        }
        Return { after_us, kept }
    }

    /// Forgets whose times have all come.
    pub(crate) fn tick(&mut self, now: u64) {
        self.0.retain(|_, next| *next > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(owner: &str) -> (Arc<str>, Arc<str>) {
        (owner.into(), "m".into())
    }

    #[test]
    fn nobody_is_told_the_time_of_another() {
        let mut returns = Returns::default();
        let waits: Vec<u64> = (0..10).map(|_| returns.promise(0, lane("o"), 0, 500_000.0).after_us).collect();
        assert_eq!(waits[0], WAIT_MIN_US);
        assert!(waits.windows(2).all(|pair| pair[1] - pair[0] >= 500_000));
        // Another owner has times of its own.
        assert_eq!(returns.promise(0, lane("p"), 0, 500_000.0).after_us, WAIT_MIN_US);
    }

    #[test]
    fn no_more_is_promised_than_the_longest_wait_holds() {
        let mut returns = Returns::default();
        let told: Vec<Return> = (0..1000).map(|_| returns.promise(0, lane("o"), 0, 1e6)).collect();
        assert!(told.iter().all(|told| (WAIT_MIN_US..=WAIT_MAX_US).contains(&told.after_us)));
        assert!((50..=60).contains(&told.iter().filter(|told| told.kept).count()));
        // Once those times have come there are new ones.
        returns.tick(2 * WAIT_MAX_US);
        assert!(returns.0.is_empty());
        assert!(returns.promise(2 * WAIT_MAX_US, lane("o"), 0, 1e6).kept);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut returns = Returns::default();
        for number in 0..2 * KEPT {
            returns.promise(0, lane(&number.to_string()), 0, 1e6);
        }
        assert_eq!(returns.0.len(), KEPT);
    }
}

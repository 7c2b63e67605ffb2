//! What waits at the root: one lane per owner and model, served fairly by tokens.
//!
//! Fairness is start-time fair queueing over owners: whoever was served the fewest tokens goes next, and an owner that
//! comes back after a pause starts where the others are, with no credit saved up. Pure code; the ledger owns it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use banyan_proto::QueryId;

use crate::config::LaneLimits;

/// Owners whose service is remembered at least, before idle ones are looked for.
const OWNERS_KEPT: usize = 64;

/// Bounded lanes. See the module.
#[derive(Debug)]
pub(crate) struct Lanes {
    limits: LaneLimits,
    lanes: BTreeMap<Key, Lane>,
    /// Lanes with something in them, the least served owner first.
    order: BTreeSet<(u64, Key)>,
    /// Tokens served to each owner that has a lane.
    served: BTreeMap<Arc<str>, u64>,
    /// Owners at which to look for idle ones.
    keep: usize,
    /// The service of the owner that went last: where newcomers start.
    clock: u64,
    entries: usize,
    bytes: usize,
}

type Key = (Arc<str>, Arc<str>);

/// Higher priority first, then the older query.
type Place = (Reverse<i32>, u64);

#[derive(Debug, Default)]
struct Lane {
    waiting: BTreeMap<Place, Waiting>,
}

/// A query that waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) id: QueryId,
    pub(crate) owner: Arc<str>,
    pub(crate) model: Arc<str>,
    pub(crate) priority: i32,
    /// Its number in order of arrival.
    pub(crate) order: u64,
    /// What it is charged, in tokens.
    pub(crate) tokens: u32,
    /// Of its payload.
    pub(crate) bytes: usize,
}

impl Waiting {
    fn key(&self) -> Key {
        (self.owner.clone(), self.model.clone())
    }

    fn place(&self) -> Place {
        (Reverse(self.priority), self.order)
    }
}

impl Lanes {
    pub(crate) fn new(limits: LaneLimits) -> Self {
        Lanes {
            limits,
            lanes: BTreeMap::new(),
            order: BTreeSet::new(),
            served: BTreeMap::new(),
            keep: OWNERS_KEPT,
            clock: 0,
            entries: 0,
            bytes: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Whether one more query of that size may wait.
    pub(crate) fn has_space(&self, bytes: usize) -> bool {
        self.entries < self.limits.entries && self.bytes + bytes <= self.limits.bytes
    }

    /// Lets a query wait. One that comes back finds its old place, since its number is an old one; it was accepted, so
    /// the bounds no longer apply to it.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        let key = waiting.key();
        let has_lane = self.has_lane(&waiting.owner);
        let served = self.served.entry(waiting.owner.clone()).or_insert(self.clock);
        if !has_lane {
            // Whoever comes back after a pause has saved up nothing.
            *served = (*served).max(self.clock);
        }
        let served = *served;
        self.entries += 1;
        self.bytes += waiting.bytes;
        self.lanes.entry(key.clone()).or_default().waiting.insert(waiting.place(), waiting);
        self.order.insert((served, key));
    }

    /// The query whose turn it is, among models for which `open` holds.
    pub(crate) fn peek(&self, open: impl Fn(&str) -> bool) -> Option<&Waiting> {
        let (_, key) = self.order.iter().find(|(_, (_, model))| open(model))?;
        let lane = self.lanes.get(key).expect("a lane in the order exists");
        Some(lane.waiting.first_key_value().expect("a lane in the order is not empty").1)
    }

    /// Takes out a query and charges its owner.
    pub(crate) fn serve(&mut self, waiting: &Waiting) {
        self.remove(waiting);
        let Some(&before) = self.served.get(&waiting.owner) else { return };
        self.clock = self.clock.max(before);
        let after = before + u64::from(waiting.tokens.max(1));
        self.served.insert(waiting.owner.clone(), after);
        let first = (before, (waiting.owner.clone(), Arc::from("")));
        let ours = self.order.range(first..).take_while(|(served, (owner, _))| *served == before && *owner == waiting.owner);
        let moved: Vec<_> = ours.cloned().collect();
        for place in moved {
            self.order.remove(&place);
            self.order.insert((after, place.1));
        }
        self.forget_idle_owners();
    }

    /// Takes out a query without a charge: it was cancelled, or its time is over.
    pub(crate) fn remove(&mut self, waiting: &Waiting) -> bool {
        let key = waiting.key();
        let Some(lane) = self.lanes.get_mut(&key) else { return false };
        let Some(removed) = lane.waiting.remove(&waiting.place()) else { return false };
        self.entries -= 1;
        self.bytes -= removed.bytes;
        if lane.waiting.is_empty() {
            self.lanes.remove(&key);
            let served = self.served.get(&waiting.owner).copied().unwrap_or(0);
            self.order.remove(&(served, key));
        }
        self.forget_idle_owners();
        true
    }

    fn has_lane(&self, owner: &Arc<str>) -> bool {
        self.lanes.range((owner.clone(), Arc::from(""))..).next().is_some_and(|((of, _), _)| of == owner)
    }

    /// When nobody waits any more everybody is even, and the clock moves on to say so. Before that, owners without lanes
    /// that the clock has passed would start at the clock anyway; they are dropped now and then, so that it costs nothing
    /// per query.
    fn forget_idle_owners(&mut self) {
        if self.entries == 0 {
            self.clock = self.served.values().copied().fold(self.clock, u64::max);
            self.served.clear();
            self.keep = OWNERS_KEPT;
        } else if self.served.len() > self.keep {
            let mut served = std::mem::take(&mut self.served);
            served.retain(|owner, served| *served > self.clock || self.has_lane(owner));
            self.keep = OWNERS_KEPT + 2 * served.len();
            self.served = served;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(owner: &str, order: u64, tokens: u32) -> Waiting {
        let id = QueryId::from_u128(order.into());
        Waiting { id, owner: owner.into(), model: "m".into(), priority: 0, order, tokens, bytes: 10 }
    }

    fn drain(lanes: &mut Lanes) -> Vec<u64> {
        let mut served = Vec::new();
        while let Some(next) = lanes.peek(|_| true).cloned() {
            lanes.serve(&next);
            served.push(next.order);
        }
        served
    }

    #[test]
    fn an_owner_with_many_queries_does_not_starve_another() {
        let mut lanes = Lanes::new(LaneLimits::default());
        for order in 0..10 {
            lanes.push(waiting("greedy", order, 100));
        }
        lanes.push(waiting("modest", 10, 100));
        let served = drain(&mut lanes);
        assert!(served.iter().position(|&order| order == 10).unwrap() <= 1, "{served:?}");
    }

    #[test]
    fn service_is_counted_in_tokens_not_in_queries() {
        let mut lanes = Lanes::new(LaneLimits::default());
        for order in 0..4 {
            lanes.push(waiting("long", order, 300));
        }
        for order in 4..16 {
            lanes.push(waiting("short", order, 100));
        }
        let first: Vec<u64> = drain(&mut lanes).into_iter().take(8).collect();
        assert_eq!(first.iter().filter(|&&order| order < 4).count(), 2, "{first:?}");
    }

    #[test]
    fn an_owner_that_was_away_has_saved_up_nothing() {
        let mut lanes = Lanes::new(LaneLimits::default());
        lanes.push(waiting("away", 0, 1));
        lanes.push(waiting("busy", 1, 1000));
        lanes.push(waiting("busy", 2, 1000));
        lanes.push(waiting("busy", 3, 1000));
        let first: Vec<Waiting> =
            (0..3).map(|_| lanes.peek(|_| true).cloned().inspect(|next| lanes.serve(next)).unwrap()).collect();
        assert_eq!(first.iter().map(|next| next.order).collect::<Vec<_>>(), [0, 1, 2]);
        for order in 4..8 {
            lanes.push(waiting("away", order, 1000));
        }
        let served = drain(&mut lanes);
        assert!(served.iter().position(|&order| order == 3).unwrap() <= 2, "{served:?}");
    }

    #[test]
    fn owners_that_come_and_go_are_forgotten() {
        let mut lanes = Lanes::new(LaneLimits::default());
        lanes.push(waiting("stays", 0, 1));
        for order in 1..10_000 {
            let passing = waiting(&format!("owner-{order}"), order, 10);
            lanes.push(passing.clone());
            lanes.remove(&passing);
        }
        assert!(lanes.served.len() < 1000, "{}", lanes.served.len());
        drain(&mut lanes);
        assert!(lanes.served.is_empty());
    }

    #[test]
    fn an_urgent_query_goes_before_older_ones_of_its_owner() {
        let mut lanes = Lanes::new(LaneLimits::default());
        lanes.push(waiting("o", 1, 1));
        lanes.push(Waiting { priority: 5, ..waiting("o", 2, 1) });
        assert_eq!(drain(&mut lanes), [2, 1]);
    }

    #[test]
    fn a_model_without_room_does_not_hold_up_another() {
        let mut lanes = Lanes::new(LaneLimits::default());
        lanes.push(Waiting { model: "full".into(), ..waiting("o", 1, 1) });
        lanes.push(waiting("o", 2, 1));
        assert_eq!(lanes.peek(|model| model == "m").unwrap().order, 2);
    }

    #[test]
    fn full_lanes_say_so() {
        let lanes_of = |entries, bytes| Lanes::new(LaneLimits { entries, bytes });
        let mut lanes = lanes_of(1, 100);
        assert!(lanes.has_space(100) && !lanes.has_space(101));
        lanes.push(waiting("o", 1, 1));
        assert!(!lanes.has_space(1));
    }

    proptest! {
        #[test]
        fn whatever_comes_and_goes_the_counts_hold(steps in proptest::collection::vec((0u8..4, 0u8..3, 0u8..3, 1u32..500), 1..200)) {
            let mut lanes = Lanes::new(LaneLimits::default());
            let mut inside: Vec<Waiting> = Vec::new();
            for (order, (step, owner, model, tokens)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        let new = Waiting { model: format!("m{model}").into(), ..waiting(&format!("o{owner}"), order as u64, tokens) };
                        lanes.push(new.clone());
                        inside.push(new);
                    }
                    2 => if let Some(next) = lanes.peek(|_| true).cloned() {
                        lanes.serve(&next);
                        inside.retain(|known| known.order != next.order);
                    },
                    _ => if let Some(one) = inside.pop() {
                        prop_assert!(lanes.remove(&one));
                    },
                }
                prop_assert_eq!(lanes.len(), inside.len());
                prop_assert_eq!(lanes.bytes, inside.iter().map(|one| one.bytes).sum::<usize>());
                prop_assert_eq!(lanes.peek(|_| true).is_some(), !inside.is_empty());
            }
            prop_assert_eq!(drain(&mut lanes).len(), inside.len());
            prop_assert!(lanes.order.is_empty() && lanes.lanes.is_empty());
        }
    }
}

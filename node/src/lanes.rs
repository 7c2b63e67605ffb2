//! What waits at the root: one lane per owner and model, served fairly by tokens.
//!
//! Fairness is start-time fair queueing over owners: whoever was served the fewest tokens goes next, and an owner that
//! comes back after a pause starts where the others are, with no credit saved up. Priority orders an owner's own queries, and
//! age outweighs it. Space is shared by dynamic thresholds (Choudhury and Hahne, 1998): an owner may hold as much as is free,
//! so nobody who floods the lanes can keep another out. Pure code; the ledger owns it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use banyan_proto::QueryId;

use crate::config::LaneLimits;

/// Owners whose service is remembered at least, before idle ones are looked for.
const OWNERS_KEPT: usize = 64;

/// A point of priority counts as so much waiting: the lowest waits no longer than that times the difference behind the
/// highest, however many come.
const PRIORITY_US: i64 = 1_000_000;
/// Beyond these, priorities are as good as these.
const PRIORITY_MAX: i32 = 100;

/// How many times the free space an owner may hold: newcomers nearly half of everything when they are alone …
const NEW_SHARE: u64 = 1;
/// … and those who were told to come back four fifths, so that they find a place.
const RETURNING_SHARE: u64 = 7;
/// One part of so many is left to owners that have nothing waiting, however many others have filled the rest.
const FIRSTS_PART: u64 = 16;

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
    /// All that waits.
    held: Held,
    /// What waits of each owner, and for each model.
    owners: BTreeMap<Arc<str>, Held>,
    models: BTreeMap<Arc<str>, Held>,
}

type Key = (Arc<str>, Arc<str>);

/// When it came, less what its priority is worth; then the older query.
type Place = (i64, u64);

#[derive(Debug, Default)]
struct Lane {
    waiting: BTreeMap<Place, Waiting>,
    tokens: u64,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) tokens: u64,
    lanes: u64,
}

impl Held {
    fn add(&mut self, waiting: &Waiting, opens: bool) {
        self.entries += 1;
        self.bytes += waiting.bytes as u64;
        self.tokens += u64::from(waiting.tokens);
        self.lanes += u64::from(opens);
    }

    fn take(&mut self, waiting: &Waiting, closes: bool) {
        self.entries -= 1;
        self.bytes -= waiting.bytes as u64;
        self.tokens -= u64::from(waiting.tokens);
        self.lanes -= u64::from(closes);
    }
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
    /// When it arrived, in microseconds.
    pub(crate) since: u64,
    /// What it is charged, in tokens.
    pub(crate) tokens: u32,
    /// Of its payload.
    pub(crate) bytes: usize,
}

/// When one is served that has so many of its own lane before it.
fn turn(own: usize, of_model: Held) -> u32 {
    let taken_in_turns = (own as u64 + 1).saturating_mul(of_model.lanes.max(1));
    taken_in_turns.min(of_model.entries.max(1)).try_into().unwrap_or(u32::MAX)
}

impl Waiting {
    fn key(&self) -> Key {
        (self.owner.clone(), self.model.clone())
    }

    fn place(&self) -> Place {
        let priority = i64::from(self.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX));
        let since = i64::try_from(self.since).unwrap_or(i64::MAX);
        (since.saturating_sub(priority * PRIORITY_US), self.order)
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
            held: Held::default(),
            owners: BTreeMap::new(),
            models: BTreeMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.held.entries as usize
    }

    /// Whether one more query of that size may wait: all together stay within the limits, and its owner within its share of
    /// them. What is larger than a limit waits alone.
    pub(crate) fn has_space(&self, owner: &str, tokens: u32, bytes: usize, returning: bool) -> bool {
        let own = self.owners.get(owner).copied().unwrap_or_default();
        let share = if returning { RETURNING_SHARE } else { NEW_SHARE };
        let fits = |all: u64, own: u64, more: u64, limit: u64| {
            let free = limit.saturating_sub(all);
            more <= free && (own == 0 || own < share.saturating_mul(free.saturating_sub(limit / FIRSTS_PART)))
        };
        let LaneLimits { entries, bytes: bytes_max, tokens: tokens_max, .. } = self.limits;
        self.held.entries == 0 && entries > 0
            || fits(self.held.entries, own.entries, 1, entries as u64)
                && fits(self.held.bytes, own.bytes, bytes as u64, bytes_max as u64)
                && fits(self.held.tokens, own.tokens, tokens.into(), tokens_max)
    }

    /// What waits for a model.
    pub(crate) fn of_model(&self, model: &str) -> Held {
        self.models.get(model).copied().unwrap_or_default()
    }

    /// How many wait for each model that somebody waits for.
    pub(crate) fn by_model(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.models.iter().filter(|(_, held)| held.entries > 0).map(|(model, held)| (model, held.entries))
    }

    /// How many owners' queries wait for a model, this owner's included.
    pub(crate) fn sharers(&self, owner: &Arc<str>, model: &Arc<str>) -> u64 {
        let ours = self.lanes.contains_key(&(owner.clone(), model.clone()));
        self.of_model(model).lanes + u64::from(!ours)
    }

    /// Which one a query will be to be served, when its lane and those of other owners take turns; 1 is the next.
    pub(crate) fn number(&self, waiting: &Waiting) -> u32 {
        let own = self.lanes.get(&waiting.key()).map_or(0, |lane| lane.waiting.range(..waiting.place()).count());
        turn(own, self.of_model(&waiting.model))
    }

    /// The same of all that wait.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (QueryId, u32)> {
        self.lanes.iter().flat_map(|((_, model), lane)| {
            let of_model = self.of_model(model);
            lane.waiting.values().enumerate().map(move |(own, waiting)| (waiting.id, turn(own, of_model)))
        })
    }

    /// How many of an owner's queries wait beyond the share of newcomers, in tokens.
    pub(crate) fn excess(&self, owner: &str) -> u64 {
        let own = self.owners.get(owner).copied().unwrap_or_default();
        let over = own.entries.saturating_sub(self.limits.entries as u64 / (NEW_SHARE + 1));
        own.tokens.checked_div(own.entries).unwrap_or(0) * over
    }

    /// Tokens that would be served before a query that came now: those before it in its lane, and as many of each other
    /// owner as it has.
    pub(crate) fn ahead(&self, waiting: &Waiting) -> u64 {
        let own = self.lanes.get(&waiting.key()).map_or(0, |lane| {
            let place = waiting.place();
            match lane.waiting.last_key_value() {
                Some((last, _)) if *last > place => lane.waiting.range(..place).map(|(_, one)| u64::from(one.tokens)).sum(),
                _ => lane.tokens,
            }
        });
        let others = self.sharers(&waiting.owner, &waiting.model) - 1;
        let all = self.of_model(&waiting.model).tokens;
        all.min(own.saturating_add(others.saturating_mul(own + u64::from(waiting.tokens))))
    }

    /// What `judge` gives up, which is told of each query the tokens that are served before it (see [`Lanes::ahead`]): without
    /// those that are given up.
    pub(crate) fn hopeless<T>(&self, mut judge: impl FnMut(&Waiting, u64) -> Option<T>) -> Vec<(QueryId, T)> {
        let mut hopeless = Vec::new();
        for ((_, model), lane) in &self.lanes {
            let of_model = self.of_model(model);
            let mut own = 0u64;
            for waiting in lane.waiting.values() {
                let tokens = u64::from(waiting.tokens);
                let ahead = of_model.tokens.min(own + (of_model.lanes - 1).saturating_mul(own + tokens));
                match judge(waiting, ahead) {
                    Some(why) => hopeless.push((waiting.id, why)),
                    None => own += tokens,
                }
            }
        }
        hopeless
    }

    /// Lets a query wait. One that comes back finds its old place, since its number is an old one; it was accepted, so
    /// the bounds no longer apply to it.
    pub(crate) fn push(&mut self, waiting: Waiting) {
        let key = waiting.key();
        let has_lane = self.owners.contains_key(&waiting.owner);
        let served = self.served.entry(waiting.owner.clone()).or_insert(self.clock);
        if !has_lane {
            // Whoever comes back after a pause has saved up nothing.
            *served = (*served).max(self.clock);
        }
        let served = *served;
        let lane = self.lanes.entry(key.clone()).or_default();
        let opens = lane.waiting.is_empty();
        lane.tokens += u64::from(waiting.tokens);
        self.held.add(&waiting, opens);
        self.owners.entry(waiting.owner.clone()).or_default().add(&waiting, opens);
        self.models.entry(waiting.model.clone()).or_default().add(&waiting, opens);
        lane.waiting.insert(waiting.place(), waiting);
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
        let closes = lane.waiting.is_empty();
        lane.tokens -= u64::from(removed.tokens);
        self.held.take(&removed, closes);
        for (sums, of) in [(&mut self.owners, &waiting.owner), (&mut self.models, &waiting.model)] {
            let held = sums.get_mut(of).expect("what waits is counted");
            held.take(&removed, closes);
            if held.entries == 0 {
                sums.remove(of);
            }
        }
        if closes {
            self.lanes.remove(&key);
            let served = self.served.get(&waiting.owner).copied().unwrap_or(0);
            self.order.remove(&(served, key));
        }
        self.forget_idle_owners();
        true
    }

    /// When nobody waits any more everybody is even, and the clock moves on to say so. Before that, owners without lanes
    /// that the clock has passed would start at the clock anyway; they are dropped now and then, so that it costs nothing
    /// per query.
    fn forget_idle_owners(&mut self) {
        if self.held.entries == 0 {
            self.clock = self.served.values().copied().fold(self.clock, u64::max);
            self.served.clear();
            self.keep = OWNERS_KEPT;
        } else if self.served.len() > self.keep {
            let (clock, owners) = (self.clock, &self.owners);
            self.served.retain(|owner, served| *served > clock || owners.contains_key(owner));
            self.keep = OWNERS_KEPT + 2 * self.served.len();
        }
    }
}

#[cfg(test)]
mod tests;

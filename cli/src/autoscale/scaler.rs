//! How many nodes there should be, and which come and go. Plain code: what is seen in, what to do out; no clock, no process.
//!
//! A node more or less is a change that takes minutes and costs money, so the scaler is slow to make one: load must be high for
//! a while, and low for longer; between two thresholds nothing changes; and after a change it waits. Only the minimum is restored
//! at once. It never takes a node that it did not name itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// When to change what.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What its nodes' names begin with; a number follows.
    pub(crate) prefix: String,
    /// Nodes at least, whoever started them …
    pub(crate) min: u32,
    /// … and at most.
    pub(crate) max: u32,
    /// The busy part of all places, from 0 to 1, above which nodes are added …
    pub(crate) high: f64,
    /// … and which must not be passed with a node less when one is taken away.
    pub(crate) low: f64,
    /// How long it must be high.
    pub(crate) sustained: Duration,
    /// How long it must be low.
    pub(crate) quiet: Duration,
    /// Between two changes.
    pub(crate) cooldown: Duration,
    /// How long a node may take to appear until another is asked for in its place.
    pub(crate) start: Duration,
}

/// The tree at one moment, as far as one model is concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The nodes that serve it.
    pub(crate) serving: BTreeSet<String>,
    /// All names that somebody has.
    pub(crate) taken: BTreeSet<String>,
    /// Sequences that run when all is busy.
    pub(crate) slots: u32,
    /// Sequences that would start at once.
    pub(crate) room: u32,
    /// Queries that wait at the root.
    pub(crate) waiting: u32,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Add(Vec<String>),
    Remove(String),
}

/// The rule and what it remembers. See the module.
#[derive(Debug)]
pub(crate) struct Scaler {
    settings: Settings,
    /// Nodes that were asked for and have not appeared, and since when.
    coming: BTreeMap<String, Duration>,
    /// Nodes that were told to leave and have not left.
    leaving: BTreeSet<String>,
    high_since: Option<Duration>,
    low_since: Option<Duration>,
    changed: Option<Duration>,
}

impl Scaler {
    pub(crate) fn new(settings: Settings) -> Scaler {
        Scaler { settings, coming: BTreeMap::new(), leaving: BTreeSet::new(), high_since: None, low_since: None, changed: None }
    }

    /// Nodes that are there or on their way, and stay.
    pub(crate) fn have(&self, seen: &Seen) -> u32 {
        self.staying(seen) + self.coming.len() as u32
    }

    /// Nodes that serve and are not about to leave, whose places are no longer counted.
    fn staying(&self, seen: &Seen) -> u32 {
        seen.serving.iter().filter(|name| !self.leaving.contains(*name)).count() as u32
    }

    /// What to do at `now`, a time that only grows.
    pub(crate) fn decide(&mut self, now: Duration, seen: &Seen) -> Option<Action> {
        let Settings { min, max, start, .. } = self.settings;
        self.coming.retain(|name, since| !seen.serving.contains(name) && now < *since + start);
        self.leaving.retain(|name| seen.taken.contains(name));
        let have = self.have(seen);
        let wanted = self.wanted(seen, have);
        let low = wanted < have;
        self.high_since = (wanted > have).then(|| self.high_since.unwrap_or(now));
        self.low_since = low.then(|| self.low_since.unwrap_or(now));

        if have < min {
            return self.add(now, seen, min - have);
        }
        if have > max {
            return self.remove(now, seen);
        }
        let since = |begun: Option<Duration>, least: Duration| begun.is_some_and(|begun| now >= begun + least);
        let rested = self.changed.is_none_or(|changed| now >= changed + self.settings.cooldown);
        if rested && since(self.high_since, self.settings.sustained) {
            return self.add(now, seen, wanted.min(max).saturating_sub(have));
        }
        if rested && have > min && since(self.low_since, self.settings.quiet) {
            return self.remove(now, seen);
        }
        None
    }

    /// A node that was asked for won't come.
    pub(crate) fn failed(&mut self, now: Duration, name: &str) {
        if self.coming.remove(name).is_some() {
            self.changed = Some(now);
        }
    }

    /// A node that was told to leave stays.
    pub(crate) fn stays(&mut self, name: &str) {
        self.leaving.remove(name);
    }

    /// Nobody could be asked how it stands: what was high or low may no longer be.
    pub(crate) fn blind(&mut self) {
        self.high_since = None;
        self.low_since = None;
    }

    /// How many nodes the load wants; at most twice as many as there are, and at least one less.
    fn wanted(&self, seen: &Seen, have: u32) -> u32 {
        let serving = self.staying(seen);
        let busy = f64::from(seen.slots.saturating_sub(seen.room)) + f64::from(seen.waiting);
        if serving == 0 || seen.slots == 0 {
            return if seen.waiting > 0 { have.max(1) } else { have };
        }
        let each = f64::from(seen.slots) / f64::from(serving);
        let full = seen.waiting > 0 && seen.room == 0;
        if busy > self.settings.high * f64::from(seen.slots) || full {
            let enough = (busy / (self.settings.high * each)).ceil() as u32;
            // With somebody waiting there is one too few, whatever the figures say; those on their way count already.
            let least = if full { serving + 1 } else { serving };
            return enough.max(least).min(have.saturating_mul(2).max(1)).max(have);
        }
        let fewer = f64::from(serving.saturating_sub(1)) * each;
        let settled = seen.waiting == 0 && self.coming.is_empty() && self.leaving.is_empty();
        if settled && busy <= self.settings.low * fewer { have.saturating_sub(1) } else { have }
    }

    fn add(&mut self, now: Duration, seen: &Seen, many: u32) -> Option<Action> {
        let free = (0..).map(|number| format!("{}-{number}", self.settings.prefix));
        let free = free.filter(|name| !seen.taken.contains(name) && !self.coming.contains_key(name));
        let names: Vec<String> = free.take(many as usize).collect();
        if names.is_empty() {
            return None;
        }
        self.coming.extend(names.iter().map(|name| (name.clone(), now)));
        self.settle(now);
        Some(Action::Add(names))
    }

    /// The last of its own, as a StatefulSet does.
    fn remove(&mut self, now: Duration, seen: &Seen) -> Option<Action> {
        if !self.leaving.is_empty() {
            return None;
        }
        let number = |name: &String| name.strip_prefix(&self.settings.prefix)?.strip_prefix('-')?.parse::<u32>().ok();
        let (_, last) = seen.serving.iter().filter_map(|name| Some((number(name)?, name))).max()?;
        self.leaving.insert(last.clone());
        self.settle(now);
        Some(Action::Remove(last.clone()))
    }

    fn settle(&mut self, now: Duration) {
        self.changed = Some(now);
        self.blind();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn settings(min: u32, max: u32) -> Settings {
        Settings {
            prefix: "m".into(),
            min,
            max,
            high: 0.8,
            low: 0.5,
            sustained: Duration::from_secs(5),
            quiet: Duration::from_secs(60),
            cooldown: Duration::from_secs(20),
            start: Duration::from_secs(120),
        }
    }

    /// Nodes that come and go as the scaler says, some seconds later.
    struct World {
        scaler: Scaler,
        now: Duration,
        serving: BTreeSet<String>,
        arriving: Vec<(Duration, String)>,
        departing: Vec<(Duration, String)>,
        delay: Duration,
        each: u32,
        demand: u32,
        actions: Vec<(Duration, u32, Action)>,
    }

    impl World {
        fn new(settings: Settings, delay_s: u64, each: u32) -> World {
            World {
                scaler: Scaler::new(settings),
                now: Duration::ZERO,
                serving: BTreeSet::new(),
                arriving: Vec::new(),
                departing: Vec::new(),
                delay: Duration::from_secs(delay_s),
                each,
                demand: 0,
                actions: Vec::new(),
            }
        }

        fn seen(&self) -> Seen {
            let slots = (self.serving.len() - self.departing.len()) as u32 * self.each;
            let taken = self.serving.iter().cloned().collect();
            let (room, waiting) = (slots.saturating_sub(self.demand), self.demand.saturating_sub(slots));
            Seen { serving: self.serving.clone(), taken, slots, room, waiting }
        }

        fn tick(&mut self) {
            self.now += TICK;
            let now = self.now;
            let arrived: Vec<_> = self.arriving.extract_if(.., |(at, _)| *at <= now).collect();
            self.serving.extend(arrived.into_iter().map(|(_, name)| name));
            for (_, name) in self.departing.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
                self.serving.remove(&name);
            }
            let seen = self.seen();
            let Some(action) = self.scaler.decide(now, &seen) else { return };
            match &action {
                Action::Add(names) => {
                    for name in names {
                        assert!(
                            !self.serving.contains(name) && self.arriving.iter().all(|(_, other)| other != name),
                            "{name} twice"
                        );
                        self.arriving.push((now + self.delay, name.clone()));
                    }
                }
                Action::Remove(name) => {
                    assert!(seen.waiting == 0 && self.serving.contains(name), "{name}: {seen:?}");
                    self.departing.push((now + self.delay, name.clone()));
                }
            }
            self.actions.push((now, self.scaler.have(&seen), action));
        }

        fn run(&mut self, seconds: u64) {
            for _ in 0..seconds {
                self.tick();
            }
        }
    }

    #[test]
    fn the_minimum_is_there_at_once_and_is_restored() {
        let mut world = World::new(settings(2, 5), 3, 4);
        world.tick();
        assert_eq!(world.actions[0].2, Action::Add(vec!["m-0".into(), "m-1".into()]));
        world.run(10);
        world.serving.remove("m-0");
        world.tick();
        assert_eq!(world.actions[1].2, Action::Add(vec!["m-0".into()]), "the free name, without waiting");
    }

    #[test]
    fn a_moment_of_load_changes_nothing_and_a_lasting_one_does() {
        let mut world = World::new(settings(1, 8), 1, 4);
        world.run(30);
        world.demand = 8;
        world.run(4);
        world.demand = 0;
        world.run(3);
        assert_eq!(world.actions.len(), 1, "{:?}", world.actions);
        world.demand = 8;
        world.run(60);
        assert!(world.serving.len() >= 3, "8 of 12 places, and not 8 of 8: {:?}", world.actions);
    }

    #[test]
    fn nodes_of_others_count_and_stay() {
        let mut world = World::new(settings(1, 3), 1, 4);
        world.serving = ["by-hand", "m-other", "m-1", "m-0"].map(str::to_owned).into();
        world.run(400);
        let removed: Vec<&Action> = world.actions.iter().map(|(_, _, action)| action).collect();
        assert_eq!(removed, [&Action::Remove("m-1".into()), &Action::Remove("m-0".into())]);
    }

    #[test]
    fn a_node_that_does_not_come_is_replaced_and_one_that_failed_not_at_once() {
        let mut world = World::new(settings(1, 3), 1000, 4);
        world.run(115);
        assert_eq!(world.actions.len(), 1);
        world.arriving.clear();
        world.run(10);
        assert_eq!(world.actions.len(), 2);
        let mut scaler = Scaler::new(settings(0, 3));
        let full = Seen { waiting: 9, slots: 4, serving: ["a".to_owned()].into(), ..Seen::default() };
        assert_eq!(scaler.decide(Duration::ZERO, &full), None);
        let at = Duration::from_secs(5);
        assert_eq!(scaler.decide(at, &full), Some(Action::Add(vec!["m-0".into()])));
        scaler.failed(at, "m-0");
        assert_eq!(scaler.decide(at + TICK, &full), None);
        assert!(scaler.decide(at + Duration::from_secs(30), &full).is_some());
    }

    proptest! {
        #[test]
        fn bounds_and_pauses_hold_whatever_the_load_does(
            (min, max) in (0u32..4, 0u32..8).prop_map(|(min, more)| (min, min + more)),
            delay_s in 1u64..40,
            each in 1u32..9,
            loads in prop::collection::vec((0u32..80, 1u64..120), 1..20),
        ) {
            let mut world = World::new(settings(min, max), delay_s, each);
            for (demand, seconds) in loads {
                world.demand = demand;
                world.run(seconds);
            }
            for pair in world.actions.windows(2) {
                let [(before, ..), (after, _, action)] = pair else { unreachable!() };
                let restores = matches!(action, Action::Add(_)) && min > 0 && pair[1].1 <= min;
                prop_assert!(restores || *after >= *before + world.scaler.settings.cooldown, "{pair:?}");
            }
            for (_, have, action) in &world.actions {
                prop_assert!((min..=max).contains(have), "{have} after {action:?}");
            }
        }

        #[test]
        fn a_load_that_stays_is_served_and_then_nothing_changes(
            (min, max) in (1u32..4, 0u32..8).prop_map(|(min, more)| (min, min + more)),
            delay_s in 1u64..40,
            each in 1u32..9,
            (before, demand) in (0u32..80, 0u32..80),
        ) {
            let mut world = World::new(settings(min, max), delay_s, each);
            world.demand = before;
            world.run(300);
            world.demand = demand;
            world.run(2000);
            let settled = world.actions.len();
            world.run(1000);
            prop_assert_eq!(world.actions.len(), settled, "{:?}", world.actions);
            let seen = world.seen();
            prop_assert!(seen.waiting == 0 || seen.serving.len() as u32 == max, "{:?}", seen);
        }
    }
}

//! Overload under virtual time: many clients, one tree that works at a known rate, and what each client was told.

use std::{cmp::Reverse, collections::BinaryHeap};

use banyan_proto::{Attempt, QueryId};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::super::{
    Asked, Event, Holder, Settings,
    fixtures::{self, SECOND},
};
use super::*;
use crate::{LaneLimits, capacity::Capacity};

const TICK: u64 = SECOND / 10;

/// Clients that ask, and a tree that answers.
struct World {
    ledger: Ledger,
    rng: StdRng,
    now: u64,
    free: u32,
    slots: u32,
    service_us: u64,
    /// What happens next, the soonest first.
    due: BinaryHeap<Reverse<(u64, u64, Next)>>,
    number: u64,
    seen: Seen,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// How many times the client was refused already, its owner, and what it allows.
    Asks {
        before: u32,
        owner: u8,
        time_us: u64,
    },
    Finishes(QueryId, u32),
    Ticks,
}

#[derive(Debug, Default)]
struct Seen {
    finished: [u64; 4],
    /// Came back when it was told to, to a place that was kept.
    returned: u64,
    let_in: u64,
    shed: u64,
    late: u64,
    retry_after_ms: Vec<u64>,
}

/// How the world is.
#[derive(Clone, Debug)]
struct Plan {
    /// Asked of what can be served.
    load: f64,
    /// The share of those refused who come back.
    patience: f64,
    slots: u32,
    service_us: u64,
    entries: usize,
    owners: u8,
    /// What each query allows, in seconds.
    time_s: u64,
    seconds: u64,
    seed: u64,
}

impl Plan {
    fn run(&self) -> Seen {
        let limits = LaneLimits { entries: self.entries, ..LaneLimits::default() };
        let mut world = World {
            ledger: Ledger::new(Settings { epoch: 1, eager: false, lanes: limits }),
            rng: StdRng::seed_from_u64(self.seed),
            now: 0,
            free: self.slots,
            slots: self.slots,
            service_us: self.service_us,
            due: BinaryHeap::new(),
            number: 0,
            seen: Seen::default(),
        };
        world.room();
        world.at(TICK, Next::Ticks);
        let (end, between) = (self.seconds * SECOND, self.service_us as f64 / f64::from(self.slots) / self.load);
        let mut next_new = 0.0;
        while world.now < end {
            while world.due.peek().is_none_or(|Reverse((at, ..))| *at as f64 >= next_new) {
                let owner = world.rng.random_range(0..self.owners);
                world.at(next_new as u64, Next::Asks { before: 0, owner, time_us: self.time_s * SECOND });
                next_new += -between * f64::ln(1.0 - world.rng.random::<f64>());
            }
            let Some(Reverse((at, _, next))) = world.due.pop() else { break };
            world.now = at;
            world.step(next, self.patience);
        }
        world.seen
    }

    fn most(&self) -> f64 {
        (u64::from(self.slots) * self.seconds * SECOND) as f64 / self.service_us as f64
    }
}

impl World {
    fn at(&mut self, at: u64, next: Next) {
        self.number += 1;
        self.due.push(Reverse((at, self.number, next)));
    }

    fn room(&mut self) {
        let capacity = Capacity { models: vec!["m".into()], room: self.free, queue: 0, slots: self.slots };
        self.feed(Event::Room(vec![capacity]));
    }

    fn step(&mut self, next: Next, patience: f64) {
        match next {
            Next::Ticks => {
                self.at(self.now + TICK, Next::Ticks);
                self.feed(Event::Tick);
            }
            Next::Finishes(id, number) => {
                let attempt = Attempt { epoch: 1, number };
                let way = self.ledger.way(&id).expect("what runs is known");
                if way.state == State::Running {
                    self.seen.finished[owner_of(&way.owner)] += 1;
                    self.feed(Event::Finished { id, attempt, holder: holder() });
                }
                self.free += 1;
                self.room();
            }
            Next::Asks { before, owner, time_us } => {
                self.number += 1;
                let asked = Asked {
                    owner: format!("o{owner}").into(),
                    tokens_max: 100,
                    bytes: 1000,
                    time_us,
                    returning: before > 0,
                    impatient: false,
                    ..fixtures::asked(self.number.into())
                };
                let refused = self.feed(Event::Asked(asked));
                if before > 0 {
                    self.seen.returned += 1;
                    self.seen.let_in += u64::from(refused.is_none());
                }
                if let Some((retry_after_ms, kept)) = refused {
                    self.seen.retry_after_ms.push(retry_after_ms);
                    if kept && self.rng.random_bool(patience) {
                        let at = self.now + 1000 * retry_after_ms;
                        self.at(at, Next::Asks { before: before + 1, owner, time_us });
                    }
                }
            }
        }
    }

    /// What a client is told that is refused.
    fn feed(&mut self, event: Event) -> Option<(u64, bool)> {
        let mut refused = None;
        for action in self.ledger.handle(self.now, event) {
            match action {
                Action::Send { ticket, .. } => {
                    self.free -= 1;
                    let (id, attempt) = (ticket.id, ticket.attempt);
                    self.feed(Event::Held { id, attempt, holder: holder(), running: true, trail: Vec::new() });
                    let spread = self.rng.random_range(0.5..1.5);
                    self.at(self.now + (self.service_us as f64 * spread) as u64, Next::Finishes(id, attempt.number));
                }
                Action::Fail { failure: Failure::Overloaded { retry_after_ms, kept, .. }, .. } => {
                    refused = Some((retry_after_ms, kept));
                }
                Action::Fail { failure: Failure::Hopeless { .. }, .. } => self.seen.shed += 1,
                Action::Fail { failure: Failure::Deadline, .. } => self.seen.late += 1,
                Action::Fail { failure, .. } => panic!("{failure:?}"),
                _ => {}
            }
        }
        refused
    }
}

fn holder() -> Holder {
    fixtures::holder("n")
}

fn owner_of(owner: &str) -> usize {
    owner[1..].parse().expect("owners are numbered")
}

fn plan() -> Plan {
    Plan {
        load: 10.0,
        patience: 1.0,
        slots: 16,
        service_us: 400_000,
        entries: 128,
        owners: 1,
        time_s: 300,
        seconds: 180,
        seed: 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn who_comes_back_when_it_was_told_to_is_let_in(
        load in 1.5f64..20.0,
        patience in 0.1f64..1.0,
        slots in 4u32..64,
        entries in 64usize..512,
        owners in 1u8..4,
        seed in any::<u64>(),
    ) {
        let plan = Plan { load, patience, slots, entries, owners, seed, ..plan() };
        let seen = plan.run();
        prop_assert!(seen.retry_after_ms.iter().all(|ms| (1000..=60_000).contains(ms)));
        prop_assert!(seen.returned > 20, "{} came back", seen.returned);
        prop_assert!(seen.let_in as f64 >= 0.95 * seen.returned as f64, "{} of {} let in", seen.let_in, seen.returned);
        // The tree never idles, and whoever was let in is answered.
        let finished: u64 = seen.finished.iter().sum();
        prop_assert!(finished as f64 >= 0.95 * plan.most(), "{finished} of {}", plan.most());
        prop_assert_eq!((seen.shed, seen.late), (0, 0));
    }

    #[test]
    fn nobody_is_let_in_who_would_be_late_and_the_tree_works_on(
        load in 1.5f64..20.0,
        time_s in 1u64..5,
        seed in any::<u64>(),
    ) {
        // Lanes for 100 s of work, and little patience.
        let plan = Plan { load, time_s, entries: 8000, seed, seconds: 60, ..plan() };
        let seen = plan.run();
        let finished: u64 = seen.finished.iter().sum();
        prop_assert!(finished as f64 >= 0.9 * plan.most(), "{finished} of {}", plan.most());
        // Before anything was measured everybody is let in: that takes a second.
        let unmeasured = (load * plan.most() / plan.seconds as f64) as u64;
        prop_assert!(seen.shed + seen.late <= unmeasured + finished / 10, "{:?}", (finished, seen.shed, seen.late));
    }
}

#[test]
fn owners_get_the_same_however_much_they_ask_for() {
    // Three owners ask for ten times what there is, and come back as told; each is served a third.
    let plan = Plan { owners: 3, ..plan() };
    let seen = plan.run();
    let third = plan.most() / 3.0;
    assert!(seen.finished[..3].iter().all(|&finished| (finished as f64 / third - 1.0).abs() < 0.1), "{:?}", seen.finished);
}

#[test]
fn what_waits_in_vain_is_given_up_before_its_deadline() {
    let mut ledger = Ledger::new(Settings { epoch: 1, eager: false, lanes: LaneLimits::default() });
    let query = |number: u64, time_s| Asked { tokens_max: 100, time_us: time_s * SECOND, ..fixtures::asked(number.into()) };
    let room = |room| Event::Room(vec![Capacity { models: vec!["m".into()], room, queue: 0, slots: 1 }]);
    ledger.handle(0, room(1));
    for number in 0..100 {
        ledger.handle(0, Event::Asked(query(number, 300)));
    }
    ledger.handle(0, Event::Asked(query(100, 30)));
    // One answer a second: the last would wait for more than a minute and a half.
    let mut given_up = None;
    for second in 0..30 {
        for action in ledger.handle(second * SECOND, room(1)) {
            if let Action::Send { ticket, .. } = action {
                let (id, attempt) = (ticket.id, ticket.attempt);
                ledger.handle(second * SECOND, Event::Held { id, attempt, holder: holder(), running: true, trail: Vec::new() });
                ledger.handle(second * SECOND, Event::Finished { id, attempt, holder: holder() });
            }
        }
        for tick in 1..=10 {
            for action in ledger.handle(second * SECOND + tick * TICK, Event::Tick) {
                if let Action::Fail { id, failure: Failure::Hopeless { wait_ms } } = action {
                    given_up = given_up.or(Some((id, second, wait_ms)));
                }
            }
        }
    }
    let (id, second, wait_ms) = given_up.expect("one is given up");
    assert_eq!(id, QueryId::from_u128(100));
    assert!(second < 10 && wait_ms > 60_000, "after {second} s, {wait_ms} ms");
}

#[test]
fn live_queries_take_no_more_memory_than_they_may() {
    let limits = LaneLimits { live_bytes: 2500, ..LaneLimits::default() };
    let mut ledger = Ledger::new(Settings { epoch: 1, eager: false, lanes: limits });
    let query = |number: u64| Asked { tokens_max: 100, bytes: 1000, ..fixtures::asked(number.into()) };
    ledger.handle(0, Event::Room(vec![Capacity { models: vec!["m".into()], room: 9, queue: 0, slots: 9 }]));
    let refused = |actions: Vec<Action>| {
        actions
            .iter()
            .any(|action| matches!(action, Action::Fail { failure: Failure::Overloaded { because: Overload::Memory, .. }, .. }))
    };
    assert!(!refused(ledger.handle(0, Event::Asked(query(1)))));
    assert!(!refused(ledger.handle(0, Event::Asked(query(2)))));
    assert!(refused(ledger.handle(0, Event::Asked(query(3)))));
    ledger.handle(1, Event::ClientLeft { id: QueryId::from_u128(1) });
    assert!(!refused(ledger.handle(1, Event::Asked(query(4)))));
    for number in [2, 4] {
        ledger.handle(1, Event::ClientLeft { id: QueryId::from_u128(number) });
    }
    assert_eq!(ledger.live_bytes, 0);
}

//! Who is served when, and who is let in.

use proptest::prelude::*;

use super::*;

fn waiting(owner: &str, order: u64, tokens: u32) -> Waiting {
    let id = QueryId::from_u128(order.into());
    Waiting { id, owner: owner.into(), model: "m".into(), priority: 0, order, since: order, tokens, bytes: 10 }
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
fn a_place_in_the_queue_is_when_one_is_served_at_the_latest_where_all_ask_for_as_much() {
    let mut lanes = Lanes::new(LaneLimits::default());
    let all: Vec<Waiting> = (0..12).map(|order| waiting(["a", "b", "b", "c"][order as usize % 4], order, 100)).collect();
    for one in &all {
        lanes.push(one.clone());
    }
    let told: std::collections::BTreeMap<QueryId, u32> = lanes.numbers().collect();
    let served = drain(&mut lanes);
    for one in &all {
        let place = told[&one.id];
        let turn = served.iter().position(|&order| order == one.order).unwrap() as u32 + 1;
        assert!((1..=12).contains(&place) && turn <= place, "{} is served as number {turn}, and was told {place}", one.order);
    }
    for (before, one) in all.iter().filter(|one| &*one.owner == "b").enumerate() {
        lanes.push(one.clone());
        assert_eq!(lanes.number(one), before as u32 + 1, "one owner's are served in their order");
    }
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
    let first: Vec<Waiting> = (0..3).map(|_| lanes.peek(|_| true).cloned().inspect(|next| lanes.serve(next)).unwrap()).collect();
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
fn full_lanes_say_so_in_each_unit() {
    let lanes_of = |entries, bytes, tokens| {
        let mut lanes = Lanes::new(LaneLimits { entries, bytes, tokens, live_bytes: usize::MAX });
        lanes.push(waiting("o", 1, 10));
        lanes
    };
    let has_space = |lanes: &Lanes| lanes.has_space("p", 10, 10, true);
    assert!(has_space(&lanes_of(2, 20, 20)));
    assert!(!has_space(&lanes_of(1, 20, 20)));
    assert!(!has_space(&lanes_of(2, 19, 20)));
    assert!(!has_space(&lanes_of(2, 20, 19)));
    // Larger than the lanes are, but alone: it would never get in otherwise.
    let empty = Lanes::new(LaneLimits { entries: 1, bytes: 1, tokens: 1, live_bytes: 1 });
    assert!(empty.has_space("o", 10, 10, false));
    let none = Lanes::new(LaneLimits { entries: 0, ..LaneLimits::default() });
    assert!(!none.has_space("o", 1, 1, false));
}

/// Pushes whatever has space.
fn flood(lanes: &mut Lanes, owner: &str, from: u64, count: u64, returning: bool) -> u64 {
    let mut let_in = 0;
    for order in from..from + count {
        if lanes.has_space(owner, 1, 10, returning) {
            lanes.push(waiting(owner, order, 1));
            let_in += 1;
        }
    }
    let_in
}

#[test]
fn whoever_was_told_to_come_back_finds_the_place_that_newcomers_leave() {
    let mut lanes = Lanes::new(LaneLimits { entries: 800, ..LaneLimits::default() });
    assert_eq!(flood(&mut lanes, "o", 0, 10_000, false), 375);
    assert_eq!(flood(&mut lanes, "o", 10_000, 10_000, true), 282);
    assert!(lanes.has_space("another", 1, 10, false));
}

#[test]
fn priority_is_worth_a_time_of_waiting_and_no_more() {
    let mut lanes = Lanes::new(LaneLimits::default());
    let second = PRIORITY_US as u64;
    let of = |order, priority, since| Waiting { priority, since, ..waiting("o", order, 1) };
    lanes.push(of(1, -100, 0));
    lanes.push(of(2, 0, 99 * second));
    lanes.push(of(3, 0, 101 * second));
    lanes.push(of(4, 100, 199 * second));
    lanes.push(of(5, i32::MAX, 201 * second));
    assert_eq!(drain(&mut lanes), [2, 4, 1, 3, 5]);
}

#[test]
fn what_is_ahead_is_counted_in_tokens_over_all_owners() {
    let mut lanes = Lanes::new(LaneLimits::default());
    for order in 0..10 {
        lanes.push(waiting("greedy", order, 100));
    }
    assert_eq!(lanes.ahead(&waiting("greedy", 10, 100)), 1000);
    // A newcomer waits for as much of others as it brings itself.
    assert_eq!(lanes.ahead(&waiting("modest", 10, 100)), 100);
    assert_eq!(lanes.ahead(&Waiting { priority: 1, ..waiting("greedy", 10, 100) }), 0);
    assert_eq!(lanes.ahead(&Waiting { model: "other".into(), ..waiting("greedy", 10, 100) }), 0);
    // What is given up is ahead of nobody.
    let mut seen = Vec::new();
    let given_up = lanes.hopeless(|waiting, ahead| {
        seen.push(ahead);
        (waiting.order < 2).then_some(())
    });
    assert_eq!(seen, [0, 0, 0, 100, 200, 300, 400, 500, 600, 700]);
    assert_eq!(given_up.len(), 2);
}

proptest! {
    #[test]
    fn no_flood_keeps_another_owner_out(
        floods in proptest::collection::vec((0u8..20, 1u64..300, any::<bool>()), 1..40),
    ) {
        let mut lanes = Lanes::new(LaneLimits { entries: 1000, ..LaneLimits::default() });
        let mut order = 0;
        for (owner, count, returning) in floods {
            flood(&mut lanes, &format!("o{owner}"), order, count, returning);
            order += count;
            prop_assert!(lanes.has_space("newcomer", 1, 10, false), "{:?}", lanes.held);
            prop_assert!(lanes.len() <= 1000);
        }
    }

    #[test]
    fn owners_with_enough_to_do_are_served_evenly_whatever_their_priorities(
        queries in proptest::collection::vec((0u8..3, -100i32..=100, 1u32..500), 50..300),
    ) {
        let mut lanes = Lanes::new(LaneLimits::default());
        let mut left = [0u32; 3];
        for (order, (owner, priority, tokens)) in queries.into_iter().enumerate() {
            lanes.push(Waiting { priority, ..waiting(&format!("o{owner}"), order as u64, tokens) });
            left[usize::from(owner)] += 1;
        }
        let mut served = [0u64; 3];
        while left.iter().all(|left| *left > 0) {
            let next = lanes.peek(|_| true).cloned().unwrap();
            lanes.serve(&next);
            let owner = usize::from(next.owner.as_bytes()[1] - b'0');
            served[owner] += u64::from(next.tokens);
            left[owner] -= 1;
            // One query apart, at most.
            let (most, least) = (served.iter().max().unwrap(), served.iter().min().unwrap());
            prop_assert!(most - least < 500, "{served:?}");
        }
    }

    #[test]
    fn nobody_is_passed_by_who_comes_later_than_its_priority_is_worth(
        queries in proptest::collection::vec((-100i32..=100, 0u64..10_000_000), 2..100),
    ) {
        let mut lanes = Lanes::new(LaneLimits::default());
        let mut now = 0;
        let mut known = Vec::new();
        for (order, (priority, pause)) in queries.into_iter().enumerate() {
            now += pause;
            known.push((priority, now));
            lanes.push(Waiting { priority, since: now, ..waiting("o", order as u64, 1) });
        }
        let served = drain(&mut lanes);
        for (at, &first) in served.iter().enumerate() {
            for &second in &served[at + 1..] {
                let ((high, late), (low, early)) = (known[first as usize], known[second as usize]);
                let head_start = i64::from(high - low) * PRIORITY_US;
                prop_assert!(late as i64 - early as i64 <= head_start);
            }
        }
    }

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
            prop_assert_eq!(lanes.held.bytes, inside.iter().map(|one| one.bytes as u64).sum::<u64>());
            prop_assert_eq!(lanes.held.tokens, inside.iter().map(|one| u64::from(one.tokens)).sum::<u64>());
            prop_assert_eq!(lanes.held.lanes, lanes.lanes.len() as u64);
            prop_assert_eq!(lanes.owners.values().map(|held| held.entries).sum::<u64>(), lanes.held.entries);
            prop_assert_eq!(lanes.models.values().map(|held| held.tokens).sum::<u64>(), lanes.held.tokens);
            prop_assert_eq!(lanes.peek(|_| true).is_some(), !inside.is_empty());
        }
        prop_assert_eq!(drain(&mut lanes).len(), inside.len());
        prop_assert!(lanes.order.is_empty() && lanes.lanes.is_empty() && lanes.owners.is_empty() && lanes.models.is_empty());
    }
}

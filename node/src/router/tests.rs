//! The rule, sentence by sentence. Random trees are in `tests/tree`.

use super::*;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A leaf's router with an engine for the model `m`.
fn leaf(busy_at: u32, batch_max: u32) -> Router {
    with_routing(Routing::RoundRobin, busy_at, batch_max)
}

fn with_routing(routing: Routing, busy_at: u32, batch_max: u32) -> Router {
    let engine = Some(Engine { models: vec!["m".into()], busy_at, batch_max, queue_max: batch_max });
    let mut router = Router::new(Settings { name: name("us"), routing, engine });
    router.handle(0, Event::Connected(true));
    router
}

fn root(routing: Routing) -> Router {
    Router::new(Settings { name: name("root"), routing, engine: None })
}

fn id(number: u128) -> QueryId {
    QueryId::from_u128(number)
}

fn ask(number: u128) -> Event {
    let attempt = Attempt { epoch: 1, number: 1 };
    Event::Arrived(Ticket { id: id(number), attempt, model: "m".into(), prefer: None, hops: 0, avoid: None })
}

fn capacity(model: &str, room: u32, queue: u32, slots: u32) -> Vec<Capacity> {
    vec![Capacity { models: vec![model.into()], room, queue, slots }]
}

impl Router {
    /// Feeds events and returns what was done, but for reports.
    fn feed(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        let actions = events.into_iter().flat_map(|event| self.handle(0, event));
        actions.filter(|action| !matches!(action, Action::Report { .. })).collect()
    }

    fn with_child(mut self, child: &str, received: u64, capacity: Vec<Capacity>) -> Self {
        self.feed([
            Event::ChildJoined { child: name(child) },
            Event::ChildReported { child: name(child), received, capacity, service: Service::default() },
        ]);
        self
    }
}

fn to(actions: &[Action]) -> Vec<(&str, Choice)> {
    let forward = |action| match action {
        &Action::Forward { ref child, choice, .. } => Some((child.as_str(), choice)),
        _ => None,
    };
    actions.iter().filter_map(forward).collect()
}

#[test]
fn a_busy_leaf_queues_and_then_runs_one_batch() {
    let mut leaf = leaf(1, 8);
    let first = leaf.feed([ask(1), ask(2), ask(3)]);
    assert_eq!(first, [Action::Execute { id: id(1) }, Action::Queue { id: id(2) }, Action::Queue { id: id(3) }]);
    assert_eq!(leaf.feed([Event::Ended { id: id(1) }]), [Action::Execute { id: id(2) }, Action::Execute { id: id(3) }]);
}

#[test]
fn a_leaf_queues_at_most_one_more_batch() {
    let mut leaf = leaf(2, 2);
    let done = leaf.feed((1..=5).map(ask));
    assert_eq!(done[4], Action::Refuse { id: id(5), because: Because::Busy });
}

#[test]
fn an_engine_whose_keys_are_used_up_has_no_room_and_no_queue() {
    let engine = Some(Engine { models: vec!["m".into()], busy_at: 8, batch_max: 8, queue_max: 0 });
    let mut leaf = Router::new(Settings { name: name("us"), routing: Routing::RoundRobin, engine });
    leaf.feed([Event::Connected(true), Event::Limited { slots: 1 }]);
    assert_eq!(leaf.capacity(), capacity("m", 1, 0, 8));
    let done = leaf.feed([ask(1), ask(2)]);
    assert_eq!(done, [Action::Execute { id: id(1) }, Action::Refuse { id: id(2), because: Because::Busy }]);
    leaf.feed([Event::Limited { slots: 3 }]);
    assert_eq!(leaf.capacity(), capacity("m", 2, 0, 8), "one of three runs");
}

#[test]
fn a_node_with_room_runs_the_query_even_when_it_has_children() {
    let mut inner = leaf(1, 1).with_child("a", 0, capacity("m", 9, 9, 9));
    assert_eq!(inner.feed([ask(1)]), [Action::Execute { id: id(1) }]);
}

#[test]
fn a_busy_node_passes_queries_on_round_robin_to_children_with_room() {
    let mut inner = leaf(1, 1).with_child("a", 0, capacity("m", 2, 1, 2)).with_child("b", 0, capacity("m", 0, 1, 1)).with_child(
        "c",
        0,
        capacity("m", 2, 1, 2),
    );
    inner.feed([ask(0)]);
    let done = inner.feed((1..=4).map(ask));
    assert_eq!(to(&done), [("a", Choice::Room), ("c", Choice::Room), ("a", Choice::Room), ("c", Choice::Room)]);
}

#[test]
fn with_no_room_anywhere_the_round_goes_over_the_queues_and_then_over_all() {
    let mut root =
        root(Routing::RoundRobin).with_child("a", 0, capacity("m", 0, 0, 1)).with_child("b", 0, capacity("m", 0, 1, 1));
    let done = root.feed((1..=3).map(ask));
    assert_eq!(to(&done), [("b", Choice::Turn), ("a", Choice::Turn), ("b", Choice::Turn)]);
}

#[test]
fn a_report_counts_only_what_had_arrived_when_it_was_made() {
    let mut root = root(Routing::RoundRobin).with_child("a", 0, capacity("m", 2, 0, 2));
    root.feed([ask(1), ask(2)]);
    assert_eq!(root.child(&name("a")), Some((0, 2)));
    // Made when one of the two had arrived and had taken its room.
    root.feed([Event::ChildReported {
        child: name("a"),
        received: 1,
        capacity: capacity("m", 1, 0, 2),
        service: Service::default(),
    }]);
    assert_eq!(root.child(&name("a")), Some((0, 2)));
    root.feed([Event::ChildReported {
        child: name("a"),
        received: 2,
        capacity: capacity("m", 1, 0, 2),
        service: Service::default(),
    }]);
    assert_eq!(root.child(&name("a")), Some((1, 2)));
}

#[test]
fn the_classic_rule_looks_at_no_report() {
    let mut root = root(Routing::Classic).with_child("a", 0, capacity("m", 0, 0, 1)).with_child("b", 0, capacity("m", 5, 5, 5));
    let done = root.feed((1..=4).map(ask));
    assert_eq!(to(&done).iter().map(|(child, _)| *child).collect::<Vec<_>>(), ["a", "b", "a", "b"]);
}

#[test]
fn weighted_routing_follows_the_slots_of_the_subtrees() {
    let mut root =
        root(Routing::Weighted).with_child("a", 0, capacity("m", 90, 0, 3)).with_child("b", 0, capacity("m", 90, 0, 1));
    let done = root.feed((1..=8).map(ask));
    assert_eq!(to(&done).iter().filter(|(child, _)| *child == "a").count(), 6);
}

#[test]
fn least_busy_routing_takes_the_largest_free_share() {
    let mut root = root(Routing::LeastBusy).with_child("a", 0, capacity("m", 3, 0, 8)).with_child("b", 0, capacity("m", 2, 0, 2));
    assert_eq!(to(&root.feed([ask(1)])), [("b", Choice::Room)]);
}

#[test]
fn a_query_goes_only_where_its_model_is_served() {
    let mut root =
        root(Routing::RoundRobin).with_child("a", 0, capacity("other", 9, 9, 9)).with_child("b", 0, capacity("m", 0, 1, 1));
    assert_eq!(to(&root.feed([ask(1)])), [("b", Choice::Turn)]);
    let mut lonely = self::root(Routing::RoundRobin).with_child("a", 0, capacity("other", 9, 9, 9));
    assert_eq!(lonely.feed([ask(1)]), [Action::Refuse { id: id(1), because: Because::Model }]);
}

#[test]
fn a_preferred_child_with_room_gets_the_query_and_one_without_does_not() {
    let prefer = |number: u128, node: &str| match ask(number) {
        Event::Arrived(ticket) => Event::Arrived(Ticket { prefer: Some(name(node)), ..ticket }),
        other => other,
    };
    let mut root =
        root(Routing::RoundRobin).with_child("a", 0, capacity("m", 1, 0, 1)).with_child("b", 0, capacity("m", 1, 0, 1));
    let done = root.feed([prefer(1, "b"), prefer(2, "b")]);
    assert_eq!(to(&done), [("b", Choice::Preferred), ("a", Choice::Room)]);
}

#[test]
fn a_recalled_query_comes_back_only_while_it_is_queued() {
    let mut leaf = leaf(1, 1);
    leaf.feed([ask(1), ask(2)]);
    let attempt = Attempt { epoch: 1, number: 1 };
    let recall = |number| Event::Recalled { id: id(number), attempt };
    assert_eq!(leaf.feed([recall(1), recall(2), recall(2)]), [Action::Return { id: id(2) }]);
}

#[test]
fn a_cancelled_query_frees_its_slot_only_when_the_engine_says_so() {
    let mut leaf = leaf(1, 1);
    leaf.feed([ask(1), ask(2)]);
    let attempt = Attempt { epoch: 1, number: 1 };
    assert_eq!(leaf.feed([Event::Cancelled { id: id(1), attempt }]), [Action::Abort { id: id(1) }]);
    assert_eq!(leaf.feed([Event::Ended { id: id(1) }]), [Action::Execute { id: id(2) }]);
}

#[test]
fn a_new_attempt_makes_an_older_one_give_way() {
    let mut leaf = leaf(1, 1);
    leaf.feed([ask(1), ask(2)]);
    let again = |number: u128| match ask(number) {
        Event::Arrived(ticket) => Event::Arrived(Ticket { attempt: Attempt { epoch: 1, number: 2 }, ..ticket }),
        other => other,
    };
    assert_eq!(leaf.feed([again(1)]), [Action::Abort { id: id(1) }, Action::Refuse { id: id(1), because: Because::Held }]);
    assert_eq!(leaf.feed([again(2)]), [Action::Drop { id: id(2) }, Action::Queue { id: id(2) }]);
}

#[test]
fn a_node_without_a_way_to_the_root_takes_nothing() {
    let mut leaf = leaf(4, 4);
    leaf.feed([Event::Connected(false)]);
    assert_eq!(leaf.feed([ask(1)]), [Action::Refuse { id: id(1), because: Because::Disconnected }]);
    assert_eq!(leaf.capacity()[0].room + leaf.capacity()[0].queue, 0);
}

#[test]
fn room_that_appears_or_vanishes_is_urgent_news() {
    let mut leaf = leaf(2, 2);
    let urgent = |actions: Vec<Action>| {
        actions.iter().find_map(|action| match action {
            Action::Report { urgent, .. } => Some(*urgent),
            _ => None,
        })
    };
    assert_eq!(urgent(leaf.handle(0, ask(1))), Some(false));
    assert_eq!(urgent(leaf.handle(0, ask(2))), Some(true));
    assert_eq!(urgent(leaf.handle(0, Event::Ended { id: id(1) })), Some(true));
}

#[test]
fn a_child_that_leaves_does_not_cost_the_others_their_turns() {
    let mut root = root(Routing::RoundRobin);
    for child in ["a", "b", "c"] {
        root = root.with_child(child, 0, capacity("m", 9, 9, 9));
    }
    root.feed([ask(1), ask(2)]);
    root.feed([Event::ChildLeft { child: name("a"), orderly: false }]);
    assert_eq!(to(&root.feed([ask(3), ask(4)])), [("c", Choice::Room), ("b", Choice::Room)]);
}

#[test]
fn a_query_that_goes_in_circles_is_stopped() {
    let mut leaf = leaf(1, 1);
    let Event::Arrived(ticket) = ask(1) else { unreachable!() };
    let done = leaf.feed([Event::Arrived(Ticket { hops: HOPS_MAX, ..ticket })]);
    assert_eq!(done, [Action::Refuse { id: id(1), because: Because::Hops }]);
}

fn with(event: Event, change: impl FnOnce(&mut Ticket)) -> Event {
    let Event::Arrived(mut ticket) = event else { return event };
    change(&mut ticket);
    Event::Arrived(ticket)
}

#[test]
fn the_child_that_let_the_last_attempt_vanish_gets_the_next_only_if_there_is_no_other() {
    let avoiding = |number| with(ask(number), |ticket| ticket.avoid = Some(name("a")));
    let mut root = root(Routing::RoundRobin).with_child("a", 0, capacity("m", 9, 9, 9));
    assert_eq!(to(&root.feed([avoiding(1)])), [("a", Choice::Room)]);
    let mut root = root.with_child("b", 0, capacity("m", 0, 0, 1));
    assert_eq!(to(&root.feed([avoiding(2)])), [("b", Choice::Turn)]);
}

#[test]
fn an_older_attempt_that_arrives_late_does_not_displace_a_newer_one() {
    let mut leaf = leaf(1, 1);
    let newer = with(ask(2), |ticket| ticket.attempt.number = 2);
    let done = leaf.feed([ask(1), newer, ask(2)]);
    assert_eq!(done[2], Action::Refuse { id: id(2), because: Because::Held });
    assert_eq!(leaf.queued(), 1);
}

#[test]
fn a_query_for_any_model_runs_anywhere() {
    let mut leaf = leaf(1, 1);
    assert_eq!(leaf.feed([with(ask(1), |ticket| ticket.model = "".into())]), [Action::Execute { id: id(1) }]);
}

/// Two idle children with much room, under one router that hears of time.
fn siblings() -> Router {
    root(Routing::RoundRobin).with_child("a", 0, capacity("m", 99, 0, 99)).with_child("b", 0, capacity("m", 99, 0, 99))
}

fn served(child: &str, received: u64, service: Service) -> Event {
    Event::ChildReported { child: name(child), received, capacity: capacity("m", 99, 0, 99), service }
}

fn verdicts(actions: Vec<Action>) -> Vec<Verdict> {
    let verdict = |action| match action {
        Action::Judge { verdict, .. } => Some(verdict),
        _ => None,
    };
    actions.into_iter().filter_map(verdict).collect()
}

#[test]
fn a_child_behind_a_slow_link_lets_turns_go_by_and_gets_them_back() {
    let mut root = siblings();
    let mut sent = [0u64; 2];
    let mut now = 0;
    let mut rounds = |root: &mut Router, delays_us: [u64; 2], sent: &mut [u64; 2]| {
        let before = *sent;
        let mut news = Vec::new();
        for number in 0..64u128 {
            let actions = root.handle(now, ask(u128::from(now) + number));
            let [(child, _)] = to(&actions)[..] else { panic!("{actions:?}") };
            let index = usize::from(child == "b");
            sent[index] += 1;
            let report = served(["a", "b"][index], sent[index], Service::default());
            root.handle(now + delays_us[index], report);
            now += 1_000_000;
            news.extend(verdicts(root.handle(now, Event::Tick)));
        }
        ([sent[0] - before[0], sent[1] - before[1]], news)
    };
    assert_eq!(rounds(&mut root, [1000, 1000], &mut sent), ([32, 32], vec![]), "equals take turns");
    let (share, news) = rounds(&mut root, [1000, 500_000], &mut sent);
    assert!(share[1] * 3 < share[0], "{share:?}");
    assert!(matches!(news[..], [Verdict::Turns { one_in: 2.., .. }]), "{news:?}");
    rounds(&mut root, [1000, 1000], &mut sent);
    let (share, news) = rounds(&mut root, [1000, 1000], &mut sent);
    assert_eq!((share, news), ([32, 32], vec![]));
}

#[test]
fn a_child_whose_engine_is_slow_gets_less_but_all_that_nobody_else_can_take() {
    let mut root = siblings();
    for number in 1..=4 {
        let service = |pace_us| Service { busy_us: number * 100 * pace_us, tokens: number * 100, answered: number, failed: 0 };
        root.handle(number, served("a", 0, service(10_000)));
        root.handle(number, served("b", 0, service(40_000)));
    }
    let [Verdict::Turns { one_in: 4, pace_us: 40_000, .. }] = verdicts(root.handle(5, Event::Tick))[..] else { panic!() };
    let actions: Vec<Action> = (0..20).flat_map(|number| root.handle(6, ask(number))).collect();
    let share = to(&actions).iter().filter(|(child, _)| *child == "b").count();
    assert_eq!(share, 4, "one turn in four");
    root.handle(
        7,
        Event::ChildReported { child: name("a"), received: 16, capacity: capacity("m", 0, 0, 99), service: Service::default() },
    );
    let actions: Vec<Action> = (20..30).flat_map(|number| root.handle(8, ask(number))).collect();
    assert!(to(&actions).iter().all(|&(child, choice)| (child, choice) == ("b", Choice::Room)), "{actions:?}");
}

#[test]
fn a_child_that_fails_again_and_again_is_passed_over_for_longer_and_longer_until_a_trial_succeeds() {
    let mut root = siblings();
    let failures = |failed| Service { failed, ..Service::default() };
    root.handle(0, served("b", 0, failures(0)));
    assert_eq!(verdicts(root.handle(0, served("b", 0, failures(6)))), []);
    let mut now = 1;
    let mut spans = Vec::new();
    for round in 0..4u64 {
        let [Verdict::Shut { for_us }] = verdicts(root.handle(now, served("b", round, failures(7 + round))))[..] else {
            panic!()
        };
        spans.push(for_us);
        let actions: Vec<Action> = (0..4).flat_map(|number| root.handle(now, ask(number))).collect();
        assert!(to(&actions).iter().all(|(child, _)| *child == "a"), "{actions:?}");
        assert_eq!(capacity::total(&root.capacity(), "m", |set| set.slots), 198, "its model is still served");
        root.handle(now, served("a", (round + 1) * 7, Service::default()));
        now += for_us;
        assert_eq!(verdicts(root.handle(now, Event::Tick)), [Verdict::Trial]);
        let actions: Vec<Action> = (0..4).flat_map(|number| root.handle(now, ask(number))).collect();
        assert_eq!(to(&actions).iter().filter(|(child, _)| *child == "b").count(), 1, "{actions:?}");
        now += 1;
    }
    assert!(spans.windows(2).all(|two| two[0] < two[1]), "{spans:?}");
    // It was restarted, and its record stays until it has answered something.
    root.handle(now, Event::ChildLeft { child: name("b"), orderly: true });
    root.feed([Event::ChildJoined { child: name("b") }]);
    root.handle(now, served("b", 0, Service::default()));
    let works = Service { answered: 1, ..Service::default() };
    assert_eq!(verdicts(root.handle(now, served("b", 1, works))), [Verdict::Open]);
}

//! The rule, sentence by sentence. Random trees are in `tests/tree.rs`.

use super::*;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

/// A leaf's router with an engine for the model `m`.
fn leaf(busy_at: u32, batch_max: u32) -> Router {
    with_routing(Routing::RoundRobin, busy_at, batch_max)
}

fn with_routing(routing: Routing, busy_at: u32, batch_max: u32) -> Router {
    let engine = Some(Engine { models: vec!["m".into()], busy_at, batch_max });
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

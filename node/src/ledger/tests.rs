//! What the root owes, sentence by sentence. Random histories are in `tests/tree`.

use super::{
    fixtures::{SECOND, asked, holder, id},
    *,
};

fn ledger() -> Ledger {
    Ledger::new(Settings { epoch: 7, eager: false, lanes: crate::LaneLimits { entries: 4, bytes: 1000, ..Default::default() } })
}

fn attempt(number: u32) -> Attempt {
    Attempt { epoch: 7, number }
}

fn room(room: u32, queue: u32) -> Event {
    Event::Room(vec![Capacity { models: vec!["m".into()], room, queue, slots: 4 }])
}

fn held(number: u128, try_number: u32, by: &str, running: bool) -> Event {
    Event::Held { id: id(number), attempt: attempt(try_number), holder: holder(by), running, trail: Vec::new() }
}

fn progressed(number: u128, try_number: u32, by: &str) -> Event {
    Event::Progressed { id: id(number), attempt: attempt(try_number), holder: holder(by) }
}

fn generated(number: u128, try_number: u32, by: &str, position: u32, tokens: &[u32]) -> Event {
    Event::Generated { id: id(number), attempt: attempt(try_number), holder: holder(by), position, tokens: tokens.to_vec() }
}

impl Ledger {
    fn feed(&mut self, now: u64, events: impl IntoIterator<Item = Event>) -> Vec<Action> {
        let actions = events.into_iter().flat_map(|event| self.handle(now, event));
        actions.filter(|action| !matches!(action, Action::Placed { .. })).collect()
    }
}

/// The queries that were sent, with the numbers of their attempts.
fn sent(actions: &[Action]) -> Vec<(QueryId, u32)> {
    let send = |action: &Action| match action {
        Action::Send { ticket, .. } => Some((ticket.id, ticket.attempt.number)),
        _ => None,
    };
    actions.iter().filter_map(send).collect()
}

fn failure(actions: &[Action]) -> Option<&Failure> {
    actions.iter().find_map(|action| match action {
        Action::Fail { failure, .. } => Some(failure),
        _ => None,
    })
}

#[test]
fn what_the_tree_cannot_take_waits_at_the_root_and_goes_as_room_appears() {
    let mut ledger = ledger();
    let actions = ledger.feed(0, [room(1, 1), Event::Asked(asked(1)), Event::Asked(asked(2)), Event::Asked(asked(3))]);
    assert_eq!(sent(&actions), [(id(1), 1), (id(2), 1)]);
    assert_eq!(ledger.waiting(), 1);
    assert_eq!(sent(&ledger.feed(1, [room(1, 0)])), [(id(3), 1)]);
}

#[test]
fn who_waits_at_the_root_hears_its_place_and_again_when_it_has_moved() {
    let mut ledger = Ledger::new(Settings { epoch: 7, eager: false, lanes: crate::LaneLimits::default() });
    let told = |actions: Vec<Action>| {
        let placed = |action| if let Action::Placed { id, place, .. } = action { Some((id, place)) } else { None };
        actions.into_iter().filter_map(placed).collect::<Vec<_>>()
    };
    let waiting = (1..=3).flat_map(|number| ledger.handle(0, Event::Asked(asked(number)))).collect();
    assert_eq!(told(waiting), [(id(1), 1), (id(2), 2), (id(3), 3)]);
    assert_eq!(told(ledger.handle(1, Event::Tick)), [], "nothing has changed");
    ledger.handle(2, room(1, 0));
    assert_eq!(told(ledger.handle(3, Event::Tick)), [(id(2), 1), (id(3), 2)]);
    // Where it runs it has none, and far behind not each step is worth a word.
    assert_eq!(told(ledger.handle(4, held(1, 1, "a", true))), [(id(1), 0)]);
    for number in 4..=100 {
        ledger.handle(5, Event::Asked(asked(number)));
    }
    ledger.handle(6, room(1, 0));
    let news = told(ledger.handle(7, Event::Tick));
    assert!(news.contains(&(id(4), 2)) && news.len() <= 20, "{news:?}");
}

#[test]
fn a_full_lane_refuses_with_an_honest_wait() {
    let mut ledger = ledger();
    // One owner alone has half of the four places, and one more when it was told to come back.
    ledger.feed(0, (1..=2).map(|number| Event::Asked(asked(number))));
    let actions = ledger.feed(0, [Event::Asked(asked(3))]);
    assert!(
        matches!(failure(&actions), Some(Failure::Overloaded { retry_after_ms, because: Overload::Lanes, kept: true }) if (1000..=60_000).contains(retry_after_ms))
    );
    assert_eq!(ledger.live(), 2);
    ledger.feed(0, [Event::Asked(Asked { returning: true, ..asked(3) })]);
    assert_eq!(ledger.live(), 3);
}

#[test]
fn a_query_that_nobody_holds_after_two_seconds_is_sent_again() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1))]);
    assert!(sent(&ledger.feed(SECOND, [room(1, 0), Event::Tick])).is_empty());
    assert_eq!(sent(&ledger.feed(2 * SECOND, [Event::Tick])), [(id(1), 2)]);
}

#[test]
fn a_lost_holders_query_goes_on_elsewhere_behind_what_was_delivered() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true), generated(1, 1, "a", 0, &[10, 11])]);
    let actions = ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }]);
    assert_eq!(sent(&actions), [(id(1), 2)]);
    assert_eq!(ledger.delivered(&id(1), 1).unwrap().0, [10, 11]);
    assert!(ledger.is_suspect(&id(1)));
    let actions = ledger.feed(2, [held(1, 2, "b", true), generated(1, 2, "b", 2, &[12])]);
    assert_eq!(actions, [Action::Deliver { id: id(1) }]);
}

#[test]
fn whatever_carries_an_older_attempt_is_cancelled_at_its_source() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true), Event::HolderLost { stream: holder("a").stream }]);
    ledger.feed(1, [held(1, 2, "b", true)]);
    let cancel = |by: &str, number| Action::Cancel { stream: holder(by).stream, id: id(1), attempt: attempt(number) };
    assert_eq!(ledger.feed(2, [generated(1, 1, "a", 0, &[10])]), [cancel("a", 1)]);
    // The right attempt from a node that never held it is no better.
    assert_eq!(ledger.feed(2, [generated(1, 2, "c", 0, &[10])]), [cancel("c", 2)]);
}

#[test]
fn a_token_that_is_delivered_twice_reaches_the_client_once() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 0), Event::Asked(asked(1)), held(1, 1, "a", true)]);
    assert_eq!(ledger.feed(1, [generated(1, 1, "a", 0, &[10])]).len(), 1);
    assert!(ledger.feed(1, [generated(1, 1, "a", 0, &[10])]).is_empty());
    assert_eq!(ledger.delivered(&id(1), 1).unwrap().0, [10]);
}

#[test]
fn a_gap_in_the_positions_costs_the_attempt_and_not_the_answer() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true)]);
    let actions = ledger.feed(1, [generated(1, 1, "a", 3, &[10])]);
    assert!(matches!(actions[0], Action::Cancel { .. }));
    assert_eq!(sent(&actions), [(id(1), 2)]);
}

#[test]
fn only_running_queries_are_blamed_for_a_death_and_a_second_one_at_the_same_point_fails_them() {
    let mut ledger = ledger();
    ledger.feed(
        0,
        [
            room(1, 1),
            Event::Asked(asked(1)),
            Event::Asked(asked(2)),
            held(1, 1, "a", true),
            progressed(1, 1, "a"),
            held(2, 1, "a", false),
        ],
    );
    ledger.feed(1, [room(2, 0), Event::HolderLost { stream: holder("a").stream }]);
    assert!(ledger.is_suspect(&id(1)), "it ran");
    assert!(!ledger.is_suspect(&id(2)), "the one that was queued is innocent");
    let actions =
        ledger.feed(2, [held(1, 2, "b", true), progressed(1, 2, "b"), Event::HolderLost { stream: holder("b").stream }]);
    assert_eq!(failure(&actions), Some(&Failure::Poison));
}

#[test]
fn a_query_that_kills_before_anybody_hears_that_it_began_is_suspect_after_the_second_and_fails_after_the_third() {
    let mut ledger = ledger();
    ledger.feed(0, [room(4, 0), Event::Asked(asked(1)), held(1, 1, "a", true)]);
    assert_eq!(sent(&ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }])), [(id(1), 2)]);
    assert!(!ledger.is_suspect(&id(1)), "it may have waited in the engine");
    ledger.feed(2, [held(1, 2, "b", true), Event::HolderLost { stream: holder("b").stream }]);
    assert!(ledger.is_suspect(&id(1)), "once may be chance");
    let actions = ledger.feed(3, [held(1, 3, "c", true), Event::HolderLost { stream: holder("c").stream }]);
    assert_eq!(failure(&actions), Some(&Failure::Poison));
}

#[test]
fn suspects_go_one_at_a_time_until_each_has_got_past_the_point() {
    let mut ledger = ledger();
    ledger.feed(0, [room(4, 0), Event::Asked(asked(1)), Event::Asked(asked(2)), held(1, 1, "a", true), held(2, 1, "a", true)]);
    ledger.feed(0, [generated(1, 1, "a", 0, &[7]), progressed(2, 1, "a")]);
    assert_eq!(sent(&ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }])), [(id(1), 2)]);
    assert_eq!(ledger.waiting(), 1);
    assert!(sent(&ledger.feed(2, [held(1, 2, "b", true), generated(1, 2, "b", 1, &[7])])).is_empty());
    assert_eq!(sent(&ledger.feed(3, [generated(1, 2, "b", 2, &[7])])), [(id(2), 2)]);
    assert!(!ledger.is_suspect(&id(1)));
}

#[test]
fn suspects_of_different_deaths_do_not_wait_for_each_other_and_are_told_apart_where_they_meet() {
    let mut ledger = ledger();
    ledger.feed(0, [room(9, 0), Event::Asked(asked(1)), Event::Asked(asked(2))]);
    ledger.feed(0, [held(1, 1, "a", true), progressed(1, 1, "a"), held(2, 1, "b", true), progressed(2, 1, "b")]);
    assert_eq!(sent(&ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }])), [(id(1), 2)]);
    assert_eq!(sent(&ledger.feed(1, [Event::HolderLost { stream: holder("b").stream }])), [(id(2), 2)]);
    // Both run on one node, and it dies as well: one of them may be innocent, so neither fails, and they go one at a time.
    ledger.feed(2, [held(1, 2, "c", true), progressed(1, 2, "c"), held(2, 2, "c", true), progressed(2, 2, "c")]);
    let actions = ledger.feed(3, [Event::HolderLost { stream: holder("c").stream }]);
    assert_eq!((failure(&actions), sent(&actions)), (None, vec![(id(1), 3)]));
    assert_eq!(ledger.waiting(), 1);
    // The innocent gets past the point, and the other one's turn comes.
    let actions = ledger.feed(4, [held(1, 3, "d", true), generated(1, 3, "d", 0, &[7]), generated(1, 3, "d", 1, &[7])]);
    assert_eq!(sent(&actions), [(id(2), 3)]);
    let lost = Event::HolderLost { stream: holder("e").stream };
    let actions = ledger.feed(5, [held(2, 3, "e", true), progressed(2, 3, "e"), lost]);
    assert_eq!(failure(&actions), Some(&Failure::Poison));
}

#[test]
fn a_node_that_dies_with_a_suspect_is_nobody_elses_fault() {
    let mut ledger = ledger();
    ledger.feed(0, [room(4, 0), Event::Asked(asked(1)), held(1, 1, "a", true), progressed(1, 1, "a")]);
    ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }, held(1, 2, "b", true), progressed(1, 2, "b")]);
    ledger.feed(2, [Event::Asked(asked(2)), held(2, 1, "b", true), progressed(2, 1, "b")]);
    let actions = ledger.feed(3, [Event::HolderLost { stream: holder("b").stream }]);
    assert_eq!(failure(&actions), Some(&Failure::Poison));
    assert_eq!(sent(&actions), [(id(2), 2)]);
    assert!(!ledger.is_suspect(&id(2)));
}

#[test]
fn a_query_that_was_sent_to_a_child_that_is_gone_is_sent_again_at_once() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1))]);
    assert_eq!(sent(&ledger.feed(1, [Event::Vanished { id: id(1) }])), [(id(1), 2)]);
    ledger.feed(2, [held(1, 2, "a", true)]);
    assert!(ledger.feed(3, [Event::Vanished { id: id(1) }]).is_empty(), "somebody holds it");
}

#[test]
fn room_that_is_kept_for_a_recalled_query_is_not_given_to_a_younger_one() {
    let mut ledger = ledger();
    ledger.feed(0, [room(0, 1), Event::Asked(asked(1)), held(1, 1, "a", false), Event::Asked(asked(2))]);
    let actions = ledger.feed(1, [room(1, 1)]);
    assert_eq!(actions, [Action::Recall { stream: holder("a").stream, id: id(1), attempt: attempt(1) }]);
    let returned = Event::Returned { id: id(1), attempt: attempt(1), holder: holder("a") };
    assert_eq!(sent(&ledger.feed(2, [returned])), [(id(1), 2), (id(2), 1)]);
}

#[test]
fn a_deadline_ends_a_query_wherever_it_is() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 0), Event::Asked(asked(1)), Event::Asked(asked(2)), held(1, 1, "a", true)]);
    let actions = ledger.feed(300 * SECOND, [Event::Tick]);
    assert!(actions.contains(&Action::Cancel { stream: holder("a").stream, id: id(1), attempt: attempt(1) }));
    let failed = actions.iter().filter(|action| matches!(action, Action::Fail { failure: Failure::Deadline, .. }));
    assert_eq!((failed.count(), ledger.live()), (2, 0));
}

#[test]
fn a_running_query_without_progress_is_taken_from_its_holder() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true)]);
    assert!(ledger.feed(20 * SECOND, [progressed(1, 1, "a"), Event::Tick]).is_empty());
    let actions = ledger.feed(50 * SECOND, [Event::Tick]);
    assert!(matches!(actions[0], Action::Cancel { .. }));
    assert_eq!(sent(&actions), [(id(1), 2)]);
}

#[test]
fn a_queued_query_is_recalled_when_room_appears_and_sent_when_it_is_back() {
    let mut ledger = ledger();
    ledger.feed(0, [room(0, 2), Event::Asked(asked(1)), Event::Asked(asked(2)), held(1, 1, "a", false), held(2, 1, "a", false)]);
    let actions = ledger.feed(1, [room(1, 0)]);
    assert_eq!(actions, [Action::Recall { stream: holder("a").stream, id: id(1), attempt: attempt(1) }]);
    // One recall per free slot: the room is taken until the query is back.
    assert!(ledger.feed(2, [room(1, 0)]).is_empty());
    let returned = Event::Returned { id: id(1), attempt: attempt(1), holder: holder("a") };
    assert_eq!(sent(&ledger.feed(3, [returned])), [(id(1), 2)]);
}

#[test]
fn running_wins_over_a_recall_that_crosses_it() {
    let mut ledger = ledger();
    ledger.feed(0, [room(0, 1), Event::Asked(asked(1)), held(1, 1, "a", false), room(1, 1)]);
    let actions = ledger.feed(1, [held(1, 1, "a", true), generated(1, 1, "a", 0, &[10])]);
    assert_eq!(actions, [Action::Deliver { id: id(1) }]);
    assert!(ledger.recalling.is_empty());
}

#[test]
fn an_older_query_in_a_queue_goes_before_a_younger_one_in_the_lanes() {
    let mut ledger = ledger();
    ledger.feed(0, [room(0, 1), Event::Asked(asked(1)), held(1, 1, "a", false), Event::Asked(asked(2))]);
    let actions = ledger.feed(1, [room(1, 0)]);
    assert_eq!(actions, [Action::Recall { stream: holder("a").stream, id: id(1), attempt: attempt(1) }]);
}

#[test]
fn a_refused_query_waits_for_fresh_numbers_instead_of_going_in_circles() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 1), Event::Asked(asked(1))]);
    let refused = Event::Refused { id: id(1), attempt: attempt(1), holder: holder("a"), fault: Fault::Busy, trail: Vec::new() };
    assert!(ledger.feed(1, [refused]).is_empty());
    assert_eq!(sent(&ledger.feed(2, [room(1, 0)])), [(id(1), 2)]);
}

#[test]
fn a_client_that_leaves_cancels_its_query_at_the_node_that_holds_it() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 0), Event::Asked(asked(1)), held(1, 1, "a", true)]);
    let cancel = Action::Cancel { stream: holder("a").stream, id: id(1), attempt: attempt(1) };
    assert_eq!(ledger.feed(1, [Event::ClientLeft { id: id(1) }]), [cancel]);
    assert_eq!(ledger.way(&id(1)).unwrap().outcome, Some(Outcome::Cancelled));
}

#[test]
fn a_query_that_was_cancelled_on_its_way_down_is_cancelled_where_it_arrives() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 0), Event::Asked(asked(1)), Event::ClientLeft { id: id(1) }]);
    let cancel = Action::Cancel { stream: holder("a").stream, id: id(1), attempt: attempt(1) };
    assert_eq!(ledger.feed(1, [held(1, 1, "a", true)]), [cancel]);
}

#[test]
fn a_model_that_was_never_served_is_refused_at_once() {
    let mut ledger = ledger();
    let actions = ledger.feed(0, [room(1, 0), Event::Asked(Asked { model: "other".into(), ..asked(1) })]);
    assert_eq!(failure(&actions), Some(&Failure::UnknownModel { served: vec!["m".into()] }));
}

#[test]
fn a_model_whose_nodes_are_away_fails_after_they_had_time_to_return() {
    let mut ledger = ledger();
    ledger.feed(0, [room(0, 0), Event::Room(Vec::new()), Event::Asked(asked(1))]);
    assert!(ledger.feed(UNSERVED_TIMEOUT_US - 1, [Event::Tick]).is_empty());
    let actions = ledger.feed(UNSERVED_TIMEOUT_US, [Event::Tick]);
    assert_eq!(failure(&actions), Some(&Failure::Unserved));
}

#[test]
fn the_classic_rule_keeps_nothing_back() {
    let mut ledger = Ledger::new(Settings { eager: true, ..ledger().settings.clone() });
    let actions = ledger.feed(0, [Event::Asked(asked(1)), Event::Asked(asked(2))]);
    assert_eq!(sent(&actions), [(id(1), 1), (id(2), 1)]);
}

#[test]
fn a_query_that_only_waits_in_an_engine_that_gets_on_is_neither_hung_nor_blamed() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), Event::Asked(asked(2)), held(1, 1, "a", true), held(2, 1, "a", true)]);
    for second in 1..100 {
        let progress = generated(1, 1, "a", second as u32 - 1, &[7]);
        assert_eq!(ledger.feed(second * SECOND, [progress, Event::Tick]), [Action::Deliver { id: id(1) }]);
    }
    ledger.feed(100 * SECOND, [Event::HolderLost { stream: holder("a").stream }]);
    assert!(!ledger.is_suspect(&id(2)));
}

#[test]
fn a_stream_that_breaks_and_comes_back_is_no_death() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true), generated(1, 1, "a", 0, &[7])]);
    ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }]);
    assert!(ledger.is_suspect(&id(1)));
    let again = Holder { stream: 99, ..holder("a") };
    let held = Event::Held { id: id(1), attempt: attempt(1), holder: again, running: true, trail: Vec::new() };
    assert_eq!(ledger.feed(2, [held]), [Action::Cancel { stream: 99, id: id(1), attempt: attempt(1) }]);
    assert!(!ledger.is_suspect(&id(1)), "the node lives, so its queries killed nobody");
}

#[test]
fn an_engine_that_fails_with_a_batch_ends_nobodys_answer_the_first_time() {
    let mut ledger = ledger();
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true)]);
    let failed = |number, by: &str| Event::Refused {
        id: id(1),
        attempt: attempt(number),
        holder: holder(by),
        fault: Fault::Engine,
        trail: Vec::new(),
    };
    assert_eq!(sent(&ledger.feed(1, [failed(1, "a")])), [(id(1), 2)]);
    let actions = ledger.feed(2, [held(1, 2, "b", true), failed(2, "b")]);
    assert_eq!(failure(&actions), Some(&Failure::Poison));
}

#[test]
fn a_long_wait_in_a_full_tree_is_no_reason_to_fail_when_its_nodes_blink() {
    let mut ledger = ledger();
    ledger.feed(0, [room(0, 0), Event::Asked(asked(1))]);
    for second in 1..60 {
        assert!(ledger.feed(second * SECOND, [Event::Tick]).is_empty());
    }
    assert!(ledger.feed(60 * SECOND, [Event::Room(Vec::new()), Event::Tick]).is_empty());
    assert_eq!(sent(&ledger.feed(61 * SECOND, [room(1, 0)])), [(id(1), 1)]);
}

#[test]
fn a_query_that_was_asked_twice_is_not_ambiguous() {
    let mut ledger = ledger();
    for now in 0..2 {
        ledger.feed(now, [room(1, 0), Event::Asked(asked(1)), Event::ClientLeft { id: id(1) }]);
    }
    assert_eq!(ledger.ids_with_prefix("0000"), [id(1)]);
}

#[test]
fn a_suspect_whose_nodes_are_away_does_not_hold_up_one_of_another_model() {
    let mut ledger = ledger();
    let set = |model: &str| Capacity { models: vec![model.into()], room: 4, queue: 0, slots: 4 };
    ledger.feed(0, [Event::Room(vec![set("m"), set("other")])]);
    ledger.feed(0, [Event::Asked(asked(1)), Event::Asked(Asked { model: "other".into(), ..asked(2) })]);
    ledger.feed(0, [held(1, 1, "a", true), progressed(1, 1, "a"), held(2, 1, "b", true), progressed(2, 1, "b")]);
    // The last node of `m` takes it along.
    ledger.feed(1, [Event::Room(Vec::new()), Event::HolderLost { stream: holder("a").stream }]);
    ledger.feed(1, [Event::HolderLost { stream: holder("b").stream }]);
    assert_eq!(sent(&ledger.feed(2, [Event::Room(vec![set("other")])])), [(id(2), 2)]);
}

/// One that has another model in mind.
fn impatient(number: u128) -> Event {
    Event::Asked(Asked { impatient: true, ..asked(number) })
}

#[test]
fn an_impatient_query_fails_rather_than_wait() {
    let mut ledger = ledger();
    let actions = ledger.feed(0, [room(0, 1), impatient(1), impatient(2)]);
    assert_eq!(sent(&actions), [(id(1), 1)], "a place in a node's queue is one");
    assert_eq!(failure(&actions), Some(&Failure::NoPlace));
    assert_eq!((ledger.live(), ledger.waiting()), (1, 0));
    // Refused by a node, or lost with it: it is the same as having no place.
    let busy = Event::Refused { id: id(1), attempt: attempt(1), holder: holder("a"), fault: Fault::Busy, trail: Vec::new() };
    assert_eq!(failure(&ledger.feed(1, [busy])), Some(&Failure::NoPlace));
    let lost =
        ledger.feed(2, [room(1, 0), impatient(3), held(3, 1, "a", true), Event::HolderLost { stream: holder("a").stream }]);
    assert_eq!(failure(&lost), Some(&Failure::NoPlace));
    assert_eq!(ledger.live(), 0);
}

#[test]
fn an_impatient_query_that_has_begun_waits_for_its_model() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 0), impatient(1), held(1, 1, "a", true), generated(1, 1, "a", 0, &[10])]);
    let actions = ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }]);
    assert_eq!((failure(&actions), ledger.waiting()), (None, 1));
    assert_eq!(sent(&ledger.feed(2, [room(1, 0)])), [(id(1), 2)]);
}

#[test]
fn who_asks_again_for_another_model_gets_nothing_of_the_last_one() {
    let mut ledger = ledger();
    ledger.feed(0, [room(1, 0), impatient(1), Event::Vanished { id: id(1) }]);
    assert_eq!(ledger.live(), 0);
    let other = Capacity { models: vec!["n".into()], room: 1, queue: 0, slots: 4 };
    let again = Event::Asked(Asked { model: "n".into(), ..asked(1) });
    assert_eq!(sent(&ledger.feed(1, [Event::Room(vec![other]), again])), [(id(1), 2)]);
    // The first attempt was not lost after all.
    let cancel = Action::Cancel { stream: holder("a").stream, id: id(1), attempt: attempt(1) };
    assert_eq!(ledger.feed(2, [held(1, 1, "a", true)]), [cancel]);
}

#[test]
fn a_providers_answer_that_breaks_off_is_not_begun_again() {
    let mut ledger = ledger();
    let piece = generated(1, 1, "a", 0, &[banyan_engine::PIECE]);
    ledger.feed(0, [room(2, 0), Event::Asked(asked(1)), held(1, 1, "a", true), piece]);
    let actions = ledger.feed(1, [Event::HolderLost { stream: holder("a").stream }]);
    assert_eq!((failure(&actions), sent(&actions).len(), ledger.live()), (Some(&Failure::Broken), 0, 0));
}

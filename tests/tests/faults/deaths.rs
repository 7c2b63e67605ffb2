//! Processes that die, hang, or are told to end.

use std::time::{Duration, Instant};

use banyan_tests::{
    Forest,
    clients::{Clients, Wish},
    eventually,
    forest::node,
    history::Seen,
    random::Random,
};
use futures::future::join_all;
use serde_json::json;

use crate::{ORPHANED_MAX, assert_told_well};

/// One sequence at a time, and a step slow enough to do something meanwhile.
const NARROW: &str = "--engine fake --token-time 20ms --batch 1";

#[tokio::test]
async fn a_node_that_dies_idle_gets_nothing_more_and_its_key_goes() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("b", "root")]).await;
    let api = forest.api().await;
    forest.remember().await;
    forest.kill("a").await;
    let stories = join_all((0..8).map(|number| async move { Wish::count(5).ask(api, number).await })).await;
    assert_told_well(&stories);
    forest.whole().await;
}

#[tokio::test]
async fn what_a_dead_node_had_queued_goes_out_again_and_is_not_blamed() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root").flags(NARROW), node("b", "root").flags(NARROW)]).await;
    let api = forest.api().await;
    forest.remember().await;
    // Two run and two are queued, one of each at either node.
    let asked: Vec<_> =
        (0..4).map(|number| tokio::spawn(async move { Wish::count(60 + number).ask(api, number).await })).collect();
    forest.until("a", "one waits behind another", |a| a.running == 1 && a.queued == 1).await;
    forest.kill("a").await;
    let stories: Vec<_> = join_all(asked).await.into_iter().map(|story| story.expect("no client panics")).collect();
    assert_told_well(&stories);
    for story in &stories {
        let why = forest.why(story.id.as_deref().expect("an id")).await;
        assert_eq!(why["state"], "finished", "{why}");
    }
    forest.start_again("a");
    forest.ready("a").await;
    forest.whole().await;
}

#[tokio::test]
async fn answers_of_a_killed_node_go_on_elsewhere_behind_what_was_delivered() {
    let mut random = Random::new(1);
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("b", "root"), node("c", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    for round in 0..3 {
        let mut wish = Wish::count(0);
        wish.body["prompt"] = json!(format!("a tale of round {round}"));
        wish.body["max_tokens"] = json!(60);
        wish.body["ignore_eos"] = json!(true);
        wish.body["seed"] = json!(round);
        wish.expected = wish.ask(api, 0).await.text();
        wish.expected_tokens = Some(60);
        let mut probe = api.stream(wish.path, &wish.body).await;
        let asked: Vec<_> = (1..9)
            .map(|number| {
                let wish = wish.clone();
                tokio::spawn(async move { wish.ask(api, number).await })
            })
            .collect();
        for _ in 0..=random.within(0..30) {
            probe.next_text().await;
        }
        let victim = *random.one_of(&["a", "b", "c"]);
        forest.kill(victim).await;
        drop(probe);
        let stories: Vec<_> = join_all(asked).await.into_iter().map(|story| story.expect("no client panics")).collect();
        assert_told_well(&stories);
        forest.start_again(victim);
        forest.ready(victim).await;
        forest.whole().await;
    }
}

#[tokio::test]
async fn a_node_that_hangs_is_found_and_what_it_says_when_it_wakes_is_refused() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("b", "root")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let asked: Vec<_> = (0..4).map(|number| tokio::spawn(async move { Wish::count(600).ask(api, number).await })).collect();
    forest.until("a", "it runs two", |a| a.running == 2).await;
    forest.pause("a").await;
    forest.until("b", "it has all four", |b| b.running == 4).await;
    forest.resume("a").await;
    let stories: Vec<_> = join_all(asked).await.into_iter().map(|story| story.expect("no client panics")).collect();
    assert_told_well(&stories);
    // Each is where it was or was lost once: nobody was answered by the old attempt.
    let attempts: Vec<u64> = stories
        .iter()
        .map(|story| {
            story
                .seen
                .iter()
                .filter_map(|(_, seen)| if let Seen::Placed { attempt, .. } = seen { Some(*attempt) } else { None })
                .max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    assert_eq!(attempts.iter().filter(|attempt| **attempt > 1).count(), 2, "{attempts:?}");
    forest.whole().await;
}

#[tokio::test]
async fn a_node_that_is_told_to_end_under_load_hands_over_and_exits_0() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("b", "root"), node("c", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 5, 6, Duration::from_millis(20)).await;
    for name in ["a", "b", "c"] {
        let before = clients.asked();
        eventually("the clients are at work", || async { (clients.asked() > before + 12).then_some(()) }).await;
        let ended = forest.end(name).await;
        assert_eq!(ended.code, 0, "{name}: {}", ended.err);
        forest.start_again(name);
        forest.ready(name).await;
    }
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn children_of_a_dead_parent_hang_on_to_the_grandparent_and_come_back() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("c", "a"), node("d", "a"), node("e", "c")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 6, 6, Duration::from_millis(20)).await;
    let before = clients.asked();
    eventually("the clients are at work", || async { (clients.asked() > before + 12).then_some(()) }).await;
    forest.kill("a").await;
    let died = Instant::now();
    for name in ["c", "d"] {
        forest.until(name, "it hangs below the root", |orphan| orphan.attached == "root" && orphan.state != "detached").await;
    }
    let took = died.elapsed();
    assert!(took < ORPHANED_MAX, "the orphans needed {took:?}");
    forest.start_again("a");
    forest.ready("a").await;
    for name in ["c", "d"] {
        forest.until(name, "it is back", |child| child.attached == "a").await;
    }
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}

#[tokio::test]
async fn what_was_sent_to_a_child_that_dies_before_it_forwards_it_is_sent_again() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root"), node("b", "root")]).await;
    let api = forest.api().await;
    forest.remember().await;
    // It takes what it is sent, as far as its parent can tell, and does nothing with it.
    forest.pause("a").await;
    let asked: Vec<_> = (0..6).map(|number| tokio::spawn(async move { Wish::count(10).ask(api, number).await })).collect();
    let root = forest.address("root");
    let sent = || async {
        let root = banyan_tests::query::status(&root, "").await?;
        (root.children.iter().find(|child| child.name == "a")?.sent > 0).then_some(())
    };
    eventually("something was sent to it", sent).await;
    forest.kill("a").await;
    let stories: Vec<_> = join_all(asked).await.into_iter().map(|story| story.expect("no client panics")).collect();
    assert_told_well(&stories);
    forest.start_again("a");
    forest.ready("a").await;
    forest.whole().await;
}

#[tokio::test]
async fn a_query_that_kills_its_node_fails_after_the_second_and_its_neighbours_do_not() {
    let mut forest = Forest::new().await;
    forest.plant(["a", "b", "c", "d"].map(|name| node(name, "root"))).await;
    let api = forest.api().await;
    forest.remember().await;
    let neighbours: Vec<_> = (0..8).map(|number| tokio::spawn(async move { Wish::count(120).ask(api, number).await })).collect();
    forest.until("root", "all are running", |root| root.live == 8 && root.waiting == 0).await;
    let poison = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "[[abort]]" })).await;
    assert!(poison.status.is_server_error(), "{poison:?}");
    let stories: Vec<_> = join_all(neighbours).await.into_iter().map(|story| story.expect("no client panics")).collect();
    assert_told_well(&stories);
    let mut dead = Vec::new();
    for name in ["a", "b", "c", "d"] {
        if forest.fell(name).await {
            dead.push(name);
        }
    }
    assert_eq!(dead.len(), 2, "{dead:?}");
    for name in dead {
        forest.start_again(name);
        forest.ready(name).await;
    }
    forest.whole().await;
}

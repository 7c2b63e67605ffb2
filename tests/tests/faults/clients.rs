//! Clients that leave, that do not read, and that are too many.

use banyan_tests::{Forest, clients::Wish, forest::node};
use serde_json::json;

use crate::assert_told_well;

#[tokio::test]
async fn clients_that_leave_free_what_they_had_wherever_it_was() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root").flags("--engine fake --token-time 20ms --batch 1"), node("b", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let stays = tokio::spawn(async move { Wish::count(400).ask(api, 0).await });
    forest.until("root", "one runs", |root| root.live == 1 && root.waiting == 0).await;
    // More than the tree runs and queues: some of them wait at the root.
    let crowd: Vec<_> = (1..40).map(|number| tokio::spawn(async move { Wish::count(3000).ask(api, number).await })).collect();
    forest.until("root", "some wait at the root", |root| root.live == 40 && root.waiting > 0).await;
    for client in crowd {
        client.abort();
    }
    forest.until("root", "only the one that stays is left", |root| root.live == 1 && root.waiting == 0).await;
    let first = Wish { leaves_after: Some(0), ..Wish::count(3000) }.ask(api, 41).await;
    let later = Wish { leaves_after: Some(3), ..Wish::count(3000) }.ask(api, 42).await;
    assert_told_well(&[first, later, stays.await.expect("no client panics")]);
    forest.whole().await;
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_the_clients_fault_alone() {
    let mut forest = Forest::new().await;
    forest.plant([node("a", "root")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let neighbour = tokio::spawn(async move { Wish::count(60).ask(api, 0).await });
    let long = api.post("/v1/completions", &json!({ "model": "fake", "prompt": "word ".repeat(5000) })).await;
    assert_eq!((long.status.as_u16(), long.json()["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    assert_told_well(&[neighbour.await.expect("no client panics")]);
    forest.whole().await;
}

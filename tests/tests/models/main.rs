//! Several models in one tree, names that stand for them, and providers beside them.

mod cascade;
mod many;
mod providers;
mod spill;

use std::time::Duration;

use banyan_tests::{Cluster, http::Event};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Slow enough to do something while an answer streams, quick enough for a suite.
const SLOW: Duration = Duration::from_millis(20);

/// Asks a model for so many numbers.
fn numbers(model: &str, count: u32) -> Value {
    json!({ "model": model, "prompt": format!("[[count {count}]]"), "max_tokens": count + 1, "stream": true })
}

/// The model and the node that an answer names, the same in all of its events.
fn served(events: &[Event]) -> (String, String) {
    let told: Vec<Value> = events.iter().filter(|event| event.data != "[DONE]").map(Event::json).collect();
    let models: Vec<&str> = told.iter().filter_map(|event| event["model"].as_str()).collect();
    assert!(models.windows(2).all(|two| two[0] == two[1]), "{models:?}");
    let last = told.iter().rev().find(|event| event["banyan"].is_object()).expect("the end says who served");
    assert_eq!(last["banyan"]["model"], last["model"]);
    (models[0].to_owned(), last["banyan"]["node"].as_str().unwrap_or_default().to_owned())
}

/// Gives a node that runs one sequence another one to keep in its queue, until what comes back is dropped.
async fn saturate(cluster: &Cluster, model: &'static str, node: &str) -> JoinSet<()> {
    let api = cluster.api();
    let mut busy = JoinSet::new();
    for _ in 0..2 {
        busy.spawn(async move { drop(api.stream("/v1/completions", &numbers(model, 4000)).await.rest().await) });
    }
    cluster.until(node, "it has no place", |node| node.running == 1 && node.queued == 1).await;
    busy
}

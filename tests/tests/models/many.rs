//! Several models: on one node, beside each other in a tree, and under names that stand for them.

use banyan_tests::{Cluster, eventually, http::joined};
use futures::future::join_all;
use hyper::StatusCode;
use serde_json::json;

use super::{SLOW, numbers};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_several_models_and_their_sequences_count_together() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(2).start().await;
    cluster.add_models("n", "root", &["one", "two"]).await;
    let api = cluster.api();
    let status = cluster.status("n").await;
    assert_eq!((status.models, status.batch_max, status.room), (vec!["one".to_owned(), "two".to_owned()], 2, 2));
    let asked = ["one", "two", "one", "two"].map(|model| async move {
        let answer = api.post("/v1/completions", &json!({ "model": model, "prompt": "[[count 9]]", "max_tokens": 20 })).await;
        (model, answer)
    });
    for (model, answer) in join_all(asked).await {
        assert_eq!(answer.text(), "1 2 3 4 5 6 7 8 9");
        let json = answer.json();
        assert_eq!(
            (&json["model"], &json["banyan"]["model"], &json["banyan"]["node"]),
            (&model.into(), &model.into(), &"n".into())
        );
    }
    let mut held = Vec::new();
    for model in ["one", "two"] {
        let mut stream = api.stream("/v1/completions", &numbers(model, 400)).await;
        stream.next_text().await;
        held.push(stream);
    }
    cluster.until("n", "two sequences are all that it runs", |node| node.running == 2 && node.room == 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn adding_a_node_for_one_model_leaves_the_others_alone() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).start().await;
    cluster.add_models("a1", "root", &["a"]).await;
    cluster.add_models("b1", "root", &["b"]).await;
    let api = cluster.api();
    let mut busy = Vec::new();
    for model in ["a", "b"] {
        let mut stream = api.stream("/v1/completions", &numbers(model, 2000)).await;
        stream.next_text().await;
        busy.push(stream);
    }
    // One waits in the queue of each node.
    let waiting: Vec<_> = ["a", "b"]
        .map(|model| tokio::spawn(async move { api.stream("/v1/completions", &numbers(model, 3)).await.rest().await }))
        .into();
    cluster.until("a1", "its queue is used", |node| node.queued == 1).await;
    cluster.until("b1", "its queue is used", |node| node.queued == 1).await;
    cluster.add_models("a2", "root", &["a"]).await;
    let [a, b]: [_; 2] = waiting.try_into().unwrap_or_else(|_| unreachable!("two wait"));
    assert_eq!(joined(&a.await.unwrap()), "1 2 3", "the new node takes what waited for its model");
    let b1 = cluster.status("b1").await;
    assert_eq!((b1.running, b1.queued, b.is_finished()), (1, 1, false), "and nothing else");
    busy.pop();
    assert_eq!(joined(&b.await.unwrap()), "1 2 3");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_listed_and_unknown_ones_answered_with_those_that_come_near() {
    let mut cluster = Cluster::builder().aliases("fast = ['tiny', 'large']\nnobody = 'absent'").start().await;
    cluster.add_models("n", "root", &["tiny", "large"]).await;
    let api = cluster.api();
    let list = eventually("the API knows the models", || async {
        Some(api.get("/v1/models").await.json()).filter(|list| list["data"].as_array().is_some_and(|data| data.len() == 3))
    })
    .await;
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(names, ["fast", "large", "tiny"], "what nobody serves is not offered");
    let one = api.get("/v1/models/fast").await.json();
    assert_eq!((&one["object"], &one["banyan"]["stands_for"]), (&json!("model"), &json!(["tiny", "large"])));
    for (asked, near) in [("fats", "'fast'"), ("tinny", "'tiny'")] {
        let answer = api.post("/v1/completions", &json!({ "model": asked, "prompt": "x" })).await;
        let json = answer.json();
        assert_eq!((answer.status, &json["error"]["code"]), (StatusCode::NOT_FOUND, &"model_not_found".into()));
        assert!(json["error"]["message"].as_str().unwrap().contains(near), "{json}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_shift_traffic_from_an_old_model_to_a_new_one() {
    let mut cluster = Cluster::builder().aliases("chat = { old = 70, new = 30 }").slots(16).start().await;
    cluster.add_models("n", "root", &["old", "new"]).await;
    let api = cluster.api();
    let asked = (0..200).map(|number| async move {
        let ask = json!({ "model": "chat", "prompt": format!("[[count 1]] {number}"), "n": 2, "max_tokens": 4 });
        api.post("/v1/completions", &ask).await.json()
    });
    let answers = join_all(asked).await;
    let new = answers.iter().filter(|answer| answer["model"] == "new").count();
    // Some 60, with a standard deviation of 6.5.
    assert!((25..95).contains(&new), "{new} of 200");
    for answer in &answers {
        assert!(["old", "new"].contains(&answer["model"].as_str().unwrap()));
        let of = |choice: usize| &answer["choices"][choice]["banyan"]["model"];
        assert_eq!((of(0), of(1)), (&answer["model"], &answer["model"]), "the choices of an answer are of one model");
    }
    cluster.stop().await;
}

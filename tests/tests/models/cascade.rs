//! Fallback chains: the next model is taken before the first token, and none after it.

use banyan_tests::{Cluster, http::joined};

use super::{SLOW, numbers, saturate, served};

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_a_place_gives_way_to_the_next_and_then_the_first_is_waited_for() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).context(8192).aliases("fast = ['a', 'b']").start().await;
    cluster.add_models("na", "root", &["a"]).await;
    cluster.add_models("nb", "root", &["b"]).await;
    let api = cluster.api();
    let ask = || async { api.stream("/v1/completions", &numbers("fast", 3)).await.rest().await };
    let answer = ask().await;
    assert_eq!((joined(&answer).as_str(), served(&answer)), ("1 2 3", ("a".to_owned(), "na".to_owned())));

    let busy = saturate(&cluster, "a", "na").await;
    let answer = ask().await;
    assert_eq!((joined(&answer).as_str(), served(&answer)), ("1 2 3", ("b".to_owned(), "nb".to_owned())));

    let others = saturate(&cluster, "b", "nb").await;
    let waiting = tokio::spawn(async move { api.stream("/v1/completions", &numbers("fast", 3)).await.rest().await });
    cluster.until("root", "the query waits at the root", |root| root.waiting == 1).await;
    drop(busy);
    let answer = waiting.await.unwrap();
    assert_eq!((joined(&answer).as_str(), served(&answer)), ("1 2 3", ("a".to_owned(), "na".to_owned())));
    drop(others);
    cluster.until("root", "nothing is left over", |root| root.live == 0).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_only_node_dies_before_the_first_token_gives_way() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).context(8192).aliases("fast = ['a', 'b']").start().await;
    cluster.add_models("na", "root", &["a"]).await;
    cluster.add_models("nb", "root", &["b"]).await;
    let api = cluster.api();
    let mut running = api.stream("/v1/completions", &numbers("a", 4000)).await;
    running.next_text().await;
    let queued = tokio::spawn(async move { api.stream("/v1/completions", &numbers("fast", 3)).await.rest().await });
    cluster.until("na", "the query waits in its queue", |node| node.queued == 1).await;
    cluster.kill("na");
    let answer = queued.await.unwrap();
    assert_eq!((joined(&answer).as_str(), served(&answer)), ("1 2 3", ("b".to_owned(), "nb".to_owned())));
    drop(running);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_has_begun_never_changes_its_model() {
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).aliases("fast = ['a', 'b']").start().await;
    cluster.add_models("na", "root", &["a"]).await;
    cluster.add_models("nb", "root", &["b"]).await;
    let api = cluster.api();
    let mut stream = api.stream("/v1/completions", &numbers("fast", 60)).await;
    let mut text = stream.next_text().await.text();
    cluster.kill("na");
    cluster.until("root", "the query waits for its model", |root| root.waiting == 1).await;
    assert_eq!(cluster.status("nb").await.running, 0);
    cluster.add_models("na2", "root", &["a"]).await;
    let rest = stream.rest().await;
    text.push_str(&joined(&rest));
    let all: Vec<String> = (1..=60).map(|number| number.to_string()).collect();
    assert_eq!((text, served(&rest)), (all.join(" "), ("a".to_owned(), "na2".to_owned())));
    cluster.stop().await;
}

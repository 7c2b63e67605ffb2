//! Providers beside a tree's own nodes, with a real second tree as the service: when they are taken, and how an answer of theirs
//! streams, ends and is cancelled.

use banyan_etcd::Policy;
use banyan_tests::{Cluster, http::joined};
use hyper::StatusCode;
use serde_json::json;

use super::{SLOW, numbers, saturate, served};

/// A tree that others ask.
async fn service() -> Cluster {
    Cluster::builder().token_time(SLOW).slots(4).context(8192).node("leaf", "root").start().await
}

/// A providers' file that names that tree.
fn file(service: &Cluster) -> String {
    format!(
        "[[upstream]]\nname = 'next door'\nurl = 'http://{}/v1'\nmodels = ['fake']\nextensions = true\n\
         [[upstream.key]]\nrequests_per_minute = 100\n",
        service.api().0
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_tree_answers_as_if_it_were_asked_itself() {
    let service = service().await;
    let mut cluster = Cluster::builder().start().await;
    cluster.add_provider("p", "root", Policy::Spill, &file(&service)).await;
    let api = cluster.api();
    let chat = json!({
        "model": "provider/fake", "messages": [{ "role": "user", "content": "who are you?" }], "seed": 7, "max_tokens": 12, "top_k": 40,
    });
    let mut chat_there = chat.clone();
    chat_there["model"] = "fake".into();
    let there = service.api().post("/v1/chat/completions", &chat_there).await;
    let here = api.post("/v1/chat/completions", &chat).await;
    assert_eq!((here.status, here.text()), (StatusCode::OK, there.text()));
    let (here, there) = (here.json(), there.json());
    assert_eq!(here["usage"], there["usage"]);
    assert_eq!((&here["model"], &here["banyan"]["node"]), (&"provider/fake".into(), &"p".into()));
    let events = api.stream("/v1/completions", &numbers("provider/fake", 9)).await.rest().await;
    let pieces: Vec<_> = events.iter().filter(|event| !event.text().is_empty()).collect();
    assert_eq!((joined(&events).as_str(), pieces.len()), ("1 2 3 4 5 6 7 8 9", 9));
    assert!(pieces[8].at - pieces[0].at >= SLOW * 4, "they came one by one");
    let account = cluster.until("p", "all calls are settled", |node| node.accounts[0].running == 0).await.accounts.remove(0);
    assert_eq!((account.upstream.as_str(), account.requests, account.requests_max), ("next door", 2, 100));
    let refused = api.post("/v1/completions", &json!({ "model": "provider/fake", "prompt": "x", "max_tokens": 9000 })).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "what the service finds wrong with a query is the client's to read");
    cluster.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_spent_when_the_trees_own_nodes_have_no_place() {
    let service = service().await;
    let mut cluster = Cluster::builder().token_time(SLOW).slots(1).context(8192).node("own", "root").start().await;
    cluster.add_provider("p", "root", Policy::Spill, &file(&service)).await;
    let api = cluster.api();
    let ask = || async { served(&api.stream("/v1/completions", &numbers("fake", 3)).await.rest().await) };
    assert_eq!(ask().await, ("fake".to_owned(), "own".to_owned()));
    let busy = saturate(&cluster, "fake", "own").await;
    assert_eq!(ask().await, ("provider/fake".to_owned(), "p".to_owned()));
    drop(busy);
    cluster.until("own", "it has a place again", |node| node.running == 0 && node.queued == 0).await;
    assert_eq!(ask().await, ("fake".to_owned(), "own".to_owned()));
    cluster.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn always_takes_the_provider_first_and_never_not_at_all() {
    let service = service().await;
    for (policy, model) in [(Policy::Always, "provider/fake"), (Policy::Never, "fake")] {
        let mut cluster = Cluster::builder().node("own", "root").start().await;
        cluster.add_provider("p", "root", policy, &file(&service)).await;
        let answer = cluster.api().stream("/v1/completions", &numbers("fake", 3)).await.rest().await;
        assert_eq!((served(&answer).0.as_str(), joined(&answer).as_str()), (model, "1 2 3"), "{policy:?}");
        let named = cluster.api().stream("/v1/completions", &numbers("provider/fake", 3)).await.rest().await;
        assert_eq!(served(&named).1, "p", "asked for by name it answers all the same");
        cluster.stop().await;
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_passed_up() {
    let service = service().await;
    let mut cluster = Cluster::builder().start().await;
    cluster.add_provider("p", "root", Policy::Spill, &file(&service)).await;
    let mut stream = cluster.api().stream("/v1/completions", &numbers("fake", 4000)).await;
    stream.next_text().await;
    service.until("leaf", "the service runs it", |leaf| leaf.running == 1).await;
    drop(stream);
    service.until("leaf", "the service runs it no more", |leaf| leaf.running == 0).await;
    cluster.until("p", "the call is settled", |node| node.running == 0 && node.accounts[0].running == 0).await;
    cluster.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_providers_answer_that_broke_off_says_so_and_goes_on_nowhere() {
    let service = service().await;
    let mut cluster = Cluster::builder().token_time(SLOW).context(8192).node("own", "root").start().await;
    cluster.add_provider("p", "root", Policy::Always, &file(&service)).await;
    cluster.add_provider("q", "root", Policy::Always, &file(&service)).await;
    let api = cluster.api();
    let mut stream = api.stream("/v1/completions", &numbers("fake", 4000)).await;
    stream.next_text().await;
    let holder = if cluster.status("p").await.running == 1 { "p" } else { "q" };
    cluster.kill(holder);
    let rest = stream.rest().await;
    let last = rest.last().expect("the client hears of it").json();
    assert!(last["error"]["message"].as_str().is_some_and(|message| message.contains("broke off")), "{last}");
    assert_eq!(cluster.status("own").await.running, 0);
    let again = api.stream("/v1/completions", &numbers("fake", 3)).await.rest().await;
    assert_eq!(joined(&again), "1 2 3", "before its first token a query goes wherever it can");
    cluster.stop().await;
    service.stop().await;
}
